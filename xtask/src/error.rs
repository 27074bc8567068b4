//! What can go wrong in a project command.

use std::fmt::Display;

/// Why a command ended early.
#[derive(Debug)]
pub(crate) enum Error {
    /// Wrong arguments; the usage text is the answer.
    Usage,
    /// Ctrl-C or SIGTERM.
    Interrupted,
    /// One sentence for a person.
    Failed(String),
}

/// A result of a project command.
pub(crate) type Result<T> = std::result::Result<T, Error>;

/// A failure with this sentence.
pub(crate) fn failed<T>(why: impl Into<String>) -> Result<T> {
    Err(Error::Failed(why.into()))
}

/// Says what was being done when another kind of error came up.
pub(crate) trait Context<T> {
    /// The sentence becomes `doing: cause`.
    fn context(self, doing: impl Display) -> Result<T>;
}

impl<T, E: Display> Context<T> for std::result::Result<T, E> {
    fn context(self, doing: impl Display) -> Result<T> {
        self.map_err(|cause| Error::Failed(format!("{doing}: {cause}")))
    }
}

impl Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Usage => f.write_str("wrong arguments"),
            Self::Interrupted => f.write_str("interrupted"),
            Self::Failed(why) => f.write_str(why),
        }
    }
}
