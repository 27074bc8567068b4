//! What a hook answers.

/// An error for the client in place of an answer. The client's connection lives on.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rejection {
    /// Five upper-case letters or digits; empty for the host's own (`42501` on PostgreSQL, `42000` on MySQL).
    pub sqlstate: String,
    /// MySQL's error number; 0 for the host's own (1227).
    pub code: u16,
    /// What the client reads first. Never put another client's data in it.
    pub message: String,
    /// What the client could do instead; empty for nothing.
    pub hint: String,
}

/// The builder that all verdicts share.
macro_rules! rejecting {
    ($verdict:ident) => {
        impl $verdict {
            /// Answers with an error that says `message`.
            pub fn reject(message: impl Into<String>) -> Self {
                Self::Reject(Rejection { message: message.into(), ..Rejection::default() })
            }

            /// Gives a rejection its SQLSTATE. Does nothing to any other verdict.
            pub fn sqlstate(self, sqlstate: impl Into<String>) -> Self {
                self.map(|rejection| rejection.sqlstate = sqlstate.into())
            }

            /// Gives a rejection MySQL's error number. Does nothing to any other verdict.
            pub fn code(self, code: u16) -> Self {
                self.map(|rejection| rejection.code = code)
            }

            /// Tells the client what it could do instead. Does nothing to any other verdict.
            pub fn hint(self, hint: impl Into<String>) -> Self {
                self.map(|rejection| rejection.hint = hint.into())
            }

            /// Whether it is a rejection.
            #[must_use]
            pub const fn is_reject(&self) -> bool {
                matches!(self, Self::Reject(_))
            }

            /// The rejection, if it is one.
            #[must_use]
            pub const fn rejection(&self) -> Option<&Rejection> {
                if let Self::Reject(rejection) = self { Some(rejection) } else { None }
            }

            fn map(mut self, change: impl FnOnce(&mut Rejection)) -> Self {
                if let Self::Reject(rejection) = &mut self {
                    change(rejection);
                }
                self
            }
        }

        impl From<Rejection> for $verdict {
            fn from(rejection: Rejection) -> Self {
                Self::Reject(rejection)
            }
        }
    };
}

/// What to do with a statement.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub enum QueryVerdict {
    /// No opinion: the next plugin is asked.
    Pass,
    /// Run this text instead. Needs [`Needs::REWRITE`](crate::Needs::REWRITE).
    Rewrite(String),
    /// Answer with this error. In a transaction the server's transaction fails, too.
    Reject(Rejection),
}

/// Where a statement runs, and with it its transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub enum RouteVerdict {
    /// No opinion: the next plugin is asked, and in the end the endpoint's role decides.
    Pass,
    /// The target that takes writes. On a `READ_ONLY` endpoint this counts as `Pass`.
    Writer,
    /// A replica; the writer when there is none.
    Reader,
    /// The target with this address, as configured. When it cannot be used the statement fails.
    Target(String),
    /// Answer with this error.
    Reject(Rejection),
}

/// Whether a session keeps its server connection.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub enum PinVerdict {
    /// No opinion: the next plugin is asked, and in the end the profile and the pinning filters decide.
    Pass,
    /// Keep the connection.
    Pin,
    /// Do not keep it: run the same `SET` again on whichever connection serves the session next. For
    /// [`PinReason::SessionVariable`](crate::PinReason::SessionVariable) outside a transaction only, else it counts as
    /// `Pin`.
    Replay,
    /// Do not keep it: the session may lose what the statement set. For
    /// [`PinReason::SessionVariable`](crate::PinReason::SessionVariable) only, else it counts as `Pin`. Another session
    /// never sees it: the connection is reset first.
    Ignore,
    /// Answer with this error.
    Reject(Rejection),
}

rejecting!(QueryVerdict);
rejecting!(RouteVerdict);
rejecting!(PinVerdict);
