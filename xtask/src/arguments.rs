//! Command line arguments: `--name value`, `--flag`, and the rest.

use std::str::FromStr;

use crate::error::{Context, Error, Result};

/// The arguments that no one has taken yet.
#[derive(Debug)]
pub(crate) struct Arguments(Vec<String>);

impl Arguments {
    /// Takes the program's arguments without its name.
    pub(crate) fn new(arguments: impl Iterator<Item = String>) -> Self {
        Self(arguments.collect())
    }

    /// Takes the first argument.
    pub(crate) fn command(&mut self) -> Option<String> {
        (!self.0.is_empty()).then(|| self.0.remove(0))
    }

    /// Takes `--name` if it is there.
    pub(crate) fn flag(&mut self, name: &str) -> bool {
        let found = self.0.iter().position(|argument| argument == name);
        found.map(|at| self.0.remove(at)).is_some()
    }

    /// Takes `--name VALUE` if it is there. Errors when the value is missing or cannot be read.
    pub(crate) fn value<T: FromStr<Err: std::fmt::Display>>(&mut self, name: &str) -> Result<Option<T>> {
        let Some(at) = self.0.iter().position(|argument| argument == name) else { return Ok(None) };
        if at + 1 >= self.0.len() {
            return Err(Error::Usage);
        }
        let text = self.0.remove(at + 1);
        self.0.remove(at);
        text.parse().map(Some).context(format!("{name} {text}"))
    }

    /// Errors when something is left that nobody knew.
    pub(crate) fn end(self) -> Result<()> {
        if self.0.is_empty() { Ok(()) } else { Err(Error::Usage) }
    }

    /// What is left, to hand on to another program.
    pub(crate) fn rest(self) -> Vec<String> {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(line: &str) -> Arguments {
        Arguments::new(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn values_and_flags_are_taken_wherever_they_stand() {
        let mut given = arguments("bench --once --rounds 5");
        assert_eq!(given.command().as_deref(), Some("bench"));
        assert_eq!(given.value::<u32>("--rounds").unwrap(), Some(5));
        assert!(given.flag("--once"));
        assert!(!given.flag("--once"));
        assert!(given.end().is_ok());
    }

    #[test]
    fn a_missing_or_wrong_value_and_an_unknown_argument_are_errors() {
        assert!(matches!(arguments("--rounds").value::<u32>("--rounds"), Err(Error::Usage)));
        assert!(matches!(arguments("--rounds x").value::<u32>("--rounds"), Err(Error::Failed(_))));
        assert!(matches!(arguments("--what").end(), Err(Error::Usage)));
    }
}
