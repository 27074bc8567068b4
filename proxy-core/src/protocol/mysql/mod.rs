//! MySQL and MariaDB, one protocol in two dialects, both sides.
//!
//! Source: MySQL Source Documentation, "Client/Server Protocol"; MariaDB knowledge base, "MariaDB
//! Client/Server Protocol".

use std::sync::{Arc, atomic::AtomicBool};

use super::{Dialect, Facts, Fault, PoolKey, Protocol, ServerKey};

pub mod auth;
mod carry;
pub mod classify;
pub mod codec;
pub mod error;
pub mod handshake;
pub mod key;
mod left;
pub mod parameters;
pub mod query;
pub mod server;
pub mod statement;
pub mod tracker;

/// MySQL and MariaDB behind the seam.
#[derive(Debug)]
pub struct MySql;

/// What all connections of one MySQL proxy share.
#[derive(Debug)]
pub struct Shared {
    /// Facts of statement texts, by digest.
    pub classifier: classify::Classifier,
    /// Prepared statements kept on one server connection.
    pub max_prepared: usize,
    /// A client has asked for `LAST_INSERT_ID()`.
    pub ids_are_asked: AtomicBool,
}

/// Statement texts whose facts are kept.
const CLASSIFIED_TEXTS: usize = 16_384;

impl Protocol for MySql {
    const NAME: &'static str = "mysql";
    const DIALECT: Dialect = Dialect::Mysql;
    // The server speaks first.
    const DIRECT_TLS: bool = false;
    const TELLS_SETTINGS: bool = true;
    const KNOWS_WHAT_IS_LEFT: bool = true;
    const PACKS_TABLES: bool = true;
    // One more than `max_connections` is let in for administrators, and none of these is kept from anybody.
    const LIMITS_QUERY: &'static str = "SELECT @@global.max_connections, 0";
    // The variable is a number in most versions and a word in the newest.
    const ROLE_QUERY: &'static str = "SELECT IF(@@global.read_only IN ('0', 'OFF') AND @@global.innodb_read_only = 0, \
        'READ_WRITE', 'READ_ONLY')";

    type Shared = Shared;
    type Hello = handshake::MyHello;
    const FIRST_HELLO: Option<handshake::MyHello> = None;
    type Client = handshake::MyClient;
    type Accept = handshake::MyAccept;
    type Connect = handshake::MyConnect;
    type Tracker = tracker::MyTracker;
    type Server = server::MyServer;

    fn shared(max_prepared: usize) -> Shared {
        Shared {
            classifier: classify::Classifier::new(CLASSIFIED_TEXTS),
            max_prepared,
            ids_are_asked: AtomicBool::new(false),
        }
    }

    fn know(shared: &Shared, text: &[u8]) -> (u128, Arc<Facts>, String) {
        let mode = classify::LexMode::default();
        let known = shared.classifier.facts(text, mode);
        (known.digest, known.facts, classify::hint(text, mode).to_owned())
    }

    fn write_query(server: &mut server::MyServer, sql: &str, out: &mut Vec<u8>) {
        if let Some(made) = &mut server.made_tables {
            *made += u64::from(sql.starts_with(carry::MAKE));
        }
        query::write_query(sql.as_bytes(), server.agreed, out);
    }

    fn write_reset(server: &mut server::MyServer, out: &mut Vec<u8>) {
        let answers = server.write_reset(out);
        server.absorb_answers(answers);
    }

    fn write_ping(out: &mut Vec<u8>) {
        server::write_command(out, codec::Command::Ping, &[]);
    }

    fn write_refusal(fault: &Fault, out: &mut Vec<u8>) {
        // In place of the greeting, where no capability has been agreed.
        error::write_error(fault, 0, codec::Capabilities::NONE, out);
    }

    fn fault_code(fault: &Fault) -> Box<str> {
        error::code(fault).1.into()
    }

    fn database(key: &PoolKey) -> &str {
        key::database(key)
    }

    fn monitor_key(user: &str, database: &str) -> PoolKey {
        let none = (codec::Capabilities::NONE, codec::Extended::NONE);
        key::pool_key(user, database.as_bytes(), key::UTF8MB4_GENERAL_CI, none.0, none.1)
    }

    fn write_cancel(key: &ServerKey, out: &mut Vec<u8>) {
        handshake::write_cancel(key.id, out);
    }

    fn cancel_error(answer: &[u8]) -> Option<String> {
        handshake::cancel_error(answer)
    }

    fn write_goodbye(out: &mut Vec<u8>) {
        server::write_command(out, codec::Command::Quit, &[]);
    }
}
