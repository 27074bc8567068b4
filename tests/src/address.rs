//! Where and how to reach a server or a proxy.

use crate::Ca;

/// Host is always loopback; with `ca` clients use TLS and verify against it.
#[derive(Debug, Clone)]
pub struct Address {
    /// TCP port on 127.0.0.1.
    pub port: u16,
    /// Database clients ask for.
    pub database: String,
    /// User clients log in as.
    pub user: String,
    /// Their password.
    pub password: String,
    /// The authority that signed the peer's certificate; `None` is no TLS.
    pub ca: Option<Ca>,
}

impl Address {
    /// The same place, another user.
    #[must_use]
    pub fn user(mut self, user: &str, password: &str) -> Self {
        (self.user, self.password) = (user.to_owned(), password.to_owned());
        self
    }
    /// The same place, another database.
    #[must_use]
    pub fn database(mut self, database: &str) -> Self {
        database.clone_into(&mut self.database);
        self
    }
    /// The same place without TLS.
    #[must_use]
    pub fn plain(mut self) -> Self {
        self.ca = None;
        self
    }
}
