//! The plugin host as the session sees it: a chain of policy plugins, asked before a statement is sent.
//!
//! Sync by design: a hook call costs a fraction of a microsecond, and its deadline bounds it.

use std::{fmt, sync::Arc};

use crate::protocol::{Dialect, Facts, Fault, PinReason};

/// The hooks, by family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Hook {
    /// Before a statement goes to a server.
    Query,
    /// Before a server connection is borrowed.
    Route,
    /// Before a statement pins.
    Pin,
    /// After the answer.
    Events,
}

/// A session's names as plugins know them: resolved once, at login, and valid while this lives.
#[derive(Debug, Clone)]
pub struct SessionNames {
    /// The session's number.
    pub session: u64,
    /// Database user.
    pub user: u32,
    /// Database.
    pub database: u32,
    /// Endpoint.
    pub endpoint: u32,
    /// `application_name`.
    pub application: u32,
    /// Client address.
    pub client: u32,
}

/// One statement, as the chain is asked about it.
#[derive(Debug, Clone, Copy)]
pub struct Ask<'a> {
    /// Whose.
    pub names: &'a SessionNames,
    /// Its language.
    pub dialect: Dialect,
    /// Keyed hash of the normalised text.
    pub digest: u128,
    /// What the grammar says.
    pub facts: &'a Facts,
    /// As sent; may be no UTF-8.
    pub text: &'a [u8],
    /// The word after `pinion:` in a comment; empty for none.
    pub hint: &'a str,
    /// In a transaction that was open before this statement.
    pub in_transaction: bool,
    /// It is prepared now and does not run yet.
    pub prepares: bool,
}

/// What the chain says about a statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum QueryVerdict {
    /// Go on.
    Pass,
    /// Know this text anew and ask on with [`Plugins::on_query`] from plugin number `next`.
    Rewrite {
        /// The new statement.
        text: String,
        /// Where in the chain to go on.
        next: usize,
    },
    /// Answer with this error.
    Reject(Fault),
}

/// Where the chain wants a statement to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RouteVerdict {
    /// As the endpoint's role says.
    Pass,
    /// The writer.
    Writer,
    /// A reader.
    Reader,
    /// This target.
    Target(String),
    /// Answer with this error.
    Reject(Fault),
}

/// What the chain says about a pin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PinVerdict {
    /// As profile and filters say.
    Pass,
    /// Keep the connection.
    Pin,
    /// Run the `SET` again where the session is served next.
    Replay,
    /// Let it be lost.
    Ignore,
    /// Answer with this error.
    Reject(Fault),
}

/// One thing a plugin decided about a statement, for observers. Only verdicts other than pass, and failures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// The plugin's configured name.
    pub plugin: Arc<str>,
    /// Which hook.
    pub hook: Hook,
    /// `rewrite`, `reject`, `writer`, `reader`, `target`, `pin`, `replay`, `ignore`, `failed`.
    pub verdict: &'static str,
}

/// The plugins of one proxy, in configuration order. Cheap to ask when nobody subscribed.
pub struct Plugins {}

impl fmt::Debug for Plugins {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Plugins").finish_non_exhaustive()
    }
}

impl Plugins {
    /// No plugins.
    #[must_use]
    pub fn none() -> Arc<Self> {
        Arc::new(Self {})
    }

    /// Whether any loaded plugin subscribed to `hook` at all; one relaxed load.
    pub fn asks(&self, _hook: Hook) -> bool {
        false
    }

    /// Whether any loaded plugin may rewrite and so wants to see statements when they are prepared.
    pub fn rewrites(&self) -> bool {
        false
    }

    /// Whether an observer wants statements' text.
    pub fn wants_text_in_events(&self) -> bool {
        false
    }

    /// Goes up with every change of any plugin of the chain.
    pub fn generation(&self) -> u64 {
        0
    }

    /// Resolves a session's names.
    pub fn names(
        &self,
        session: u64,
        _user: &str,
        _database: &str,
        _endpoint: &str,
        _application: &str,
        _client: &str,
    ) -> SessionNames {
        SessionNames { session, user: 0, database: 0, endpoint: 0, application: 0, client: 0 }
    }

    /// Asks the chain from plugin number `from` on. What was decided is added to `decisions` for observers.
    pub fn on_query(&self, _ask: &Ask<'_>, _from: usize, _decisions: &mut Vec<Decision>) -> QueryVerdict {
        QueryVerdict::Pass
    }

    /// Where it should run.
    pub fn on_route(&self, _ask: &Ask<'_>, _decisions: &mut Vec<Decision>) -> RouteVerdict {
        RouteVerdict::Pass
    }

    /// Whether the session must keep its connection for `reason`; `subject` is the variable or empty.
    pub fn on_pin(
        &self,
        _ask: &Ask<'_>,
        _reason: PinReason,
        _subject: &str,
        _decisions: &mut Vec<Decision>,
    ) -> PinVerdict {
        PinVerdict::Pass
    }
}
