//! MySQL and MariaDB.
//!
//! Source: MySQL Source Documentation, "Client/Server Protocol"; MariaDB knowledge base, "MariaDB
//! Client/Server Protocol".

use std::sync::Arc;

use super::{Dialect, Facts, Fault, PoolKey, Protocol, ServerKey};

pub mod auth;
pub mod codec;
pub mod error;
pub mod handshake;
pub mod key;
pub mod query;
pub mod server;
pub mod tracker;

/// MySQL and MariaDB, one protocol in two dialects.
#[derive(Debug)]
pub struct MySql;

/// What all connections of one MySQL proxy share.
#[derive(Debug)]
pub struct Shared {
    /// Prepared statements kept on one server connection.
    pub max_prepared: usize,
}

#[rustfmt::skip]
impl Protocol for MySql {
    const NAME: &'static str = "mysql";
    const DIALECT: Dialect = Dialect::Mysql;
    const DIRECT_TLS: bool = false;
    const LIMITS_QUERY: &'static str = "SELECT @@max_connections, 0";
    const ROLE_QUERY: &'static str = "SELECT IF(@@read_only, 'READ_ONLY', 'READ_WRITE')";
    type Shared = Shared;
    type Hello = handshake::MyHello;
    type Client = handshake::MyClient;
    const FIRST_HELLO: Option<Self::Hello> = None;
    type Accept = handshake::MyAccept;
    type Connect = handshake::MyConnect;
    type Tracker = tracker::MyTracker;
    type Server = server::MyServer;
    fn shared(max_prepared: usize) -> Shared { Shared { max_prepared } }
    fn know(_: &Shared, _: &[u8]) -> (u128, Arc<Facts>, String) { (0, Arc::new(Facts::unknown(String::new())), String::new()) }
    fn write_fault(fault: &Fault, out: &mut Vec<u8>) { error::write_error(fault, 0, codec::Capabilities::PROTOCOL_41, out); }
    fn write_refusal(fault: &Fault, out: &mut Vec<u8>) { error::write_error(fault, 0, codec::Capabilities::NONE, out); }
    fn fault_code(fault: &Fault) -> Box<str> { error::code(fault).0.to_string().into() }
    fn database(key: &PoolKey) -> &str { key::database(key) }
    fn monitor_key(user: &str, database: &str) -> PoolKey { key::pool_key(user, database.as_bytes(), key::UTF8MB4_GENERAL_CI, codec::Capabilities::NONE, codec::Extended::NONE) }
    fn write_query(_: &server::MyServer, sql: &str, out: &mut Vec<u8>) { query::write_query(sql.as_bytes(), codec::Capabilities::NONE, out); }
    fn write_reset(_: &mut server::MyServer, out: &mut Vec<u8>) { codec::write_packet(out, 0, |body| body.push(codec::Command::ResetConnection as u8)); }
    fn write_ping(out: &mut Vec<u8>) { codec::write_packet(out, 0, |body| body.push(codec::Command::Ping as u8)); }
    fn write_goodbye(out: &mut Vec<u8>) { codec::write_packet(out, 0, |body| body.push(codec::Command::Quit as u8)); }
    fn write_cancel(key: &ServerKey, out: &mut Vec<u8>) { handshake::write_cancel(key.id, out); }
    fn cancel_error(answer: &[u8]) -> Option<String> { handshake::cancel_error(answer) }
}
