//! What a proxy is told about a server that it stands in front of.

use crate::{Ca, MariaDb, Server, server::RESERVED};

/// Which protocol a server speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// PostgreSQL.
    Postgres,
    /// MySQL and MariaDB.
    MySql,
}

impl Engine {
    /// `engine_family`.
    pub(crate) fn family(self) -> &'static str {
        match self {
            Self::Postgres => "POSTGRESQL",
            Self::MySql => "MYSQL",
        }
    }

    /// `client_password_auth_type` of the harness's users where a test does not choose.
    pub(crate) fn password_auth(self) -> &'static str {
        match self {
            Self::Postgres => "POSTGRES_SCRAM_SHA_256",
            Self::MySql => "MYSQL_NATIVE_PASSWORD",
        }
    }
}

/// A server of either engine.
#[derive(Debug, Clone)]
pub struct Target {
    /// Which protocol it speaks.
    pub engine: Engine,
    /// `host:port`, as configuration and metrics have it.
    pub name: String,
    /// Connections that a proxy may share in: `max_connections` less those that are reserved.
    pub capacity: u32,
    /// The authority behind its certificate, if it has one.
    pub ca: Option<Ca>,
}

impl From<&Server> for Target {
    fn from(server: &Server) -> Self {
        Self {
            engine: Engine::Postgres,
            name: server.name(),
            capacity: server.max_connections() - RESERVED,
            ca: server.ca().cloned(),
        }
    }
}

impl From<&MariaDb> for Target {
    fn from(server: &MariaDb) -> Self {
        Self {
            engine: Engine::MySql,
            name: server.name(),
            capacity: server.max_connections(),
            ca: server.ca().cloned(),
        }
    }
}
