//! MySQL and MariaDB.
//!
//! Source: MySQL Source Documentation, "Client/Server Protocol"; MariaDB knowledge base, "MariaDB
//! Client/Server Protocol".

pub mod codec;

/// MySQL and MariaDB, one protocol in two dialects.
#[derive(Debug)]
pub struct MySql;
