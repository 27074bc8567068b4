//! Session state that moves with a client from one server connection to the next.
//!
//! A client's settings are statements to run again, in the order they were made. A server connection wears the
//! settings of the client it last served; before it serves one with others it is reset and dressed anew.

use std::sync::Arc;

use crate::mutant::{self, Mutant};

/// A client's settings that are replayed. Never empty inside an [`Arc`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settings {
    /// Variable in lower case, and the statement that sets it.
    made: Vec<(Box<str>, Box<str>)>,
}

impl Settings {
    /// Most settings of one client. Who wants more keeps its connection.
    pub const MOST: usize = 64;
    /// Most bytes of their statements.
    pub const MOST_BYTES: usize = 16 * 1024;

    /// These settings and one more, which takes the place of an older one of the same variable; `None` when that would
    /// be too much.
    #[must_use]
    pub fn with(before: Option<&Arc<Self>>, variable: &str, statement: &str) -> Option<Arc<Self>> {
        let mut settings = before.map(|before| Self::clone(before)).unwrap_or_default();
        settings.made.retain(|(known, _)| **known != *variable);
        settings.made.push((variable.into(), statement.into()));
        let bytes: usize = settings.made.iter().map(|(_, statement)| statement.len()).sum();
        (settings.made.len() <= Settings::MOST && bytes <= Settings::MOST_BYTES).then(|| Arc::new(settings))
    }

    /// These settings without that of `variable`; `None` when nothing is left.
    #[must_use]
    pub fn without(before: &Arc<Self>, variable: &str) -> Option<Arc<Self>> {
        let mut settings = Self::clone(before);
        settings.made.retain(|(known, _)| **known != *variable);
        (!settings.made.is_empty()).then(|| Arc::new(settings))
    }

    /// The statements, in order.
    pub fn statements(&self) -> impl Iterator<Item = &str> {
        self.made.iter().map(|(_, statement)| &**statement)
    }
}

/// What a server connection wears.
#[derive(Debug, Clone, Default)]
pub enum Worn {
    /// What a new or reset connection has.
    #[default]
    Nothing,
    /// These settings.
    Settings(Arc<Settings>),
    /// Settings, but something has changed them in a way that was not followed.
    Uncertain,
}

impl Worn {
    /// True when a client with `settings` finds here what it expects.
    #[must_use]
    pub fn fits(&self, settings: Option<&Arc<Settings>>) -> bool {
        if mutant::is(Mutant::Labels) {
            return true;
        }
        match (self, settings) {
            (Self::Nothing, None) => true,
            (Self::Settings(worn), Some(settings)) => Arc::ptr_eq(worn, settings) || worn == settings,
            (Self::Nothing | Self::Settings(_) | Self::Uncertain, _) => false,
        }
    }
}

impl From<Option<Arc<Settings>>> for Worn {
    fn from(settings: Option<Arc<Settings>>) -> Self {
        settings.map_or(Self::Nothing, Self::Settings)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn statements(settings: &Settings) -> Vec<&str> {
        settings.statements().collect()
    }

    #[test]
    fn the_last_setting_of_a_variable_counts_and_comes_last() {
        let a = Settings::with(None, "a", "set a = 1").expect("small");
        let ab = Settings::with(Some(&a), "b", "set b = 1").expect("small");
        let ba = Settings::with(Some(&ab), "a", "set a = 2").expect("small");
        assert_eq!(statements(&ba), ["set b = 1", "set a = 2"]);
        assert_eq!(statements(&Settings::without(&ba, "b").expect("one is left")), ["set a = 2"]);
        assert!(Settings::without(&a, "a").is_none());
    }

    #[test]
    fn too_much_is_not_kept() {
        assert!(Settings::with(None, "a", &"x".repeat(Settings::MOST_BYTES + 1)).is_none());
        let many = (0..Settings::MOST).try_fold(None, |before: Option<Arc<Settings>>, n| {
            Settings::with(before.as_ref(), &n.to_string(), "x").map(Some)
        });
        let many = many.flatten().expect("just enough");
        assert!(Settings::with(Some(&many), "one more", "x").is_none());
        assert!(Settings::with(Some(&many), "0", "y").is_some());
    }

    #[test]
    fn only_equal_settings_fit() {
        let one = Settings::with(None, "a", "set a = 1");
        let same = Settings::with(None, "a", "set a = 1");
        let other = Settings::with(None, "a", "set a = 2");
        assert!(Worn::from(one.clone()).fits(same.as_ref()));
        assert!(!Worn::from(one.clone()).fits(other.as_ref()));
        assert!(!Worn::from(one.clone()).fits(None));
        assert!(!Worn::Nothing.fits(one.as_ref()));
        assert!(Worn::Nothing.fits(None));
        assert!(!Worn::Uncertain.fits(one.as_ref()) && !Worn::Uncertain.fits(None));
    }
}
