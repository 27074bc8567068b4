//! What observers are told.

use std::time::Duration;

use crate::{Query, Role, query::Name};

/// One thing that has happened.
#[derive(Debug, Clone)]
pub enum Event {
    /// A client has logged in.
    SessionStart(SessionEvent),
    /// A client is gone.
    SessionEnd(SessionEvent),
    /// A statement is over.
    Completion(Box<Completion>),
    /// So many events before this one were lost, since the queue was full.
    Lost(u64),
    /// Something that this version has no name for, in words.
    Other(Vec<(String, String)>),
}

/// A client has logged in, or is gone.
#[derive(Debug, Clone)]
pub struct SessionEvent {
    /// Milliseconds since 1970-01-01 UTC.
    pub at_ms: u64,
    /// Number of the session, as [`Query::session`].
    pub session: u64,
    /// For an end: why, empty when the client said goodbye.
    pub reason: String,
    pub(crate) user: Name,
    pub(crate) database: Name,
    pub(crate) endpoint: Name,
    pub(crate) application: Name,
    pub(crate) client: Name,
}

impl SessionEvent {
    /// The database user.
    #[must_use]
    pub fn user(&self) -> &str {
        self.user.text()
    }

    /// The database, or schema in MySQL's sense.
    #[must_use]
    pub fn database(&self) -> &str {
        self.database.text()
    }

    /// The proxy's endpoint by which the client came in.
    #[must_use]
    pub fn endpoint(&self) -> &str {
        self.endpoint.text()
    }

    /// What the client calls itself. The client's word, not proved.
    #[must_use]
    pub fn application(&self) -> &str {
        self.application.text()
    }

    /// The client's network address without its port.
    #[must_use]
    pub fn client(&self) -> &str {
        self.client.text()
    }
}

/// A statement is over.
#[derive(Debug, Clone)]
pub struct Completion {
    /// Milliseconds since 1970-01-01 UTC, when it came.
    pub at_ms: u64,
    /// The statement.
    pub query: Query,
    /// From its arrival to the end of its answer; of a pipeline, for all of it.
    pub duration: Duration,
    /// Of that, from its going to the server on; 0 when it went to none.
    pub in_database: Duration,
    /// Rows returned or changed, as the server counted them.
    pub rows: u64,
    /// SQLSTATE; empty when it went well.
    pub error: String,
    /// Its target's role then.
    pub role: Role,
    /// Whether the session keeps its connection afterwards.
    pub pinned: bool,
    /// What plugins decided about it, `pass` left out.
    pub decisions: Vec<Decision>,
    pub(crate) target: Name,
}

impl Completion {
    /// Where it ran; empty when it went to no server.
    #[must_use]
    pub fn target(&self) -> &str {
        self.target.text()
    }
}

/// What a plugin decided about a statement.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Decision {
    /// The plugin's name in the configuration.
    pub plugin: String,
    /// `on-query`, `on-route`, `on-pin`.
    pub hook: String,
    /// `rewrite`, `reject`, `writer`, `pin` and so on; `failed` for a plugin that failed.
    pub verdict: String,
}
