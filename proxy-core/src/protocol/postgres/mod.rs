//! PostgreSQL wire protocol 3.0, both sides.

use std::sync::{Arc, atomic::AtomicU64};

use super::{Dialect, Facts, Fault, Findings, PinReasons, PoolKey, Protocol, ServerKey, Survey};
use crate::{channels::Notification, state::Settings};

pub mod auth;
pub mod classify;
pub mod codec;
mod description;
pub mod error;
pub mod handshake;
mod inquiry;
pub mod scram;
pub mod server;
pub mod statement;
pub mod tracker;

/// PostgreSQL behind the seam.
#[derive(Debug)]
pub struct Postgres;

/// What all connections of one PostgreSQL proxy share.
#[derive(Debug)]
pub struct Shared {
    /// Facts of statement texts, by digest.
    pub classifier: classify::Classifier,
    /// One entry per distinct text of a named prepared statement in a pool.
    pub statements: Arc<statement::StatementCache>,
    /// Prepared statements kept on one server connection.
    pub max_prepared: usize,
    /// Goes up whenever a statement has changed schemas: what was prepared before may not fit them any more.
    pub schema: Arc<AtomicU64>,
}

/// All that `DISCARD ALL` does (manual, "DISCARD") but for prepared statements, which are Pinion's own and cost time to
/// make again; and first, how many are not. It is one transaction, so all of it is done or none.
const CLEANUP: &str = "SELECT pg_catalog.count(*) FROM pg_catalog.pg_prepared_statements AS p WHERE p.from_sql; \
    CLOSE ALL; SET SESSION AUTHORIZATION DEFAULT; RESET ALL; UNLISTEN *; \
    SELECT pg_catalog.pg_advisory_unlock_all(); DISCARD TEMP; DISCARD SEQUENCES";

/// Statement texts whose facts are kept.
const CLASSIFIED_TEXTS: usize = 16_384;

impl Protocol for Postgres {
    const NAME: &'static str = "postgres";
    const DIALECT: Dialect = Dialect::Postgresql;
    const DIRECT_TLS: bool = true;
    // A few settings only.
    const TELLS_SETTINGS: bool = false;
    const KNOWS_WHAT_IS_LEFT: bool = false;
    const LIMITS_QUERY: &'static str = "SELECT pg_catalog.current_setting('max_connections'), \
        pg_catalog.current_setting('superuser_reserved_connections')::int \
        + coalesce(pg_catalog.current_setting('reserved_connections', true), '0')::int";
    // A standby is in recovery until it is promoted.
    const ROLE_QUERY: &'static str =
        "SELECT CASE WHEN pg_catalog.pg_is_in_recovery() THEN 'READ_ONLY' ELSE 'READ_WRITE' END";

    type Shared = Shared;
    type Hello = ();
    type Client = ();
    const FIRST_HELLO: Option<()> = Some(());
    type Accept = handshake::PgAccept;
    type Connect = handshake::PgConnect;
    type Tracker = tracker::PgTracker;
    type Server = server::PgServer;

    fn shared(max_prepared: usize) -> Shared {
        Shared {
            classifier: classify::Classifier::new(CLASSIFIED_TEXTS),
            statements: Arc::default(),
            schema: Arc::default(),
            max_prepared,
        }
    }

    fn know(shared: &Shared, text: &[u8]) -> (u128, Arc<Facts>, String) {
        let mode = classify::LexMode::default();
        let known = shared.classifier.facts(text, mode);
        (known.digest, known.facts, classify::hint(text, mode).to_owned())
    }

    fn write_refusal(fault: &Fault, out: &mut Vec<u8>) {
        error::write_error(fault, out);
    }

    fn fault_code(fault: &Fault) -> Box<str> {
        error::code(fault).into()
    }

    fn database(key: &PoolKey) -> &str {
        // The user's name is the default, as with the server itself.
        handshake::parameter(key, "database").unwrap_or(&key.user)
    }

    fn monitor_key(user: &str, database: &str) -> PoolKey {
        own_key(user, &["application_name", "pinion_monitor", "database", database])
    }

    fn listener_key(key: &PoolKey) -> Option<PoolKey> {
        let database = Self::database(key);
        let parameters =
            ["application_name", "pinion_listener", "client_encoding", "UTF8", "database", database];
        Some(own_key(&key.user, &parameters))
    }

    fn write_listen(server: &mut server::PgServer, channels: &[&str], out: &mut Vec<u8>) {
        Self::write_query(server, &for_each_channel("LISTEN", channels), out);
    }

    fn write_unlisten(server: &mut server::PgServer, channels: &[&str], out: &mut Vec<u8>) {
        Self::write_query(server, &for_each_channel("UNLISTEN", channels), out);
    }

    fn notifications(heard: &[u8]) -> Vec<Notification<'_>> {
        codec::notifications(heard)
    }

    fn write_query(server: &mut server::PgServer, sql: &str, out: &mut Vec<u8>) {
        // A simple Query drops the unnamed statement.
        server.unnamed = None;
        codec::write_message(out, b'Q', |body| codec::put_cstr(body, sql.as_bytes()));
    }

    fn write_reset(server: &mut server::PgServer, out: &mut Vec<u8>) {
        server.forget_statements();
        Self::write_query(server, "DISCARD ALL", out);
    }

    fn write_cleanup(server: &mut server::PgServer, out: &mut Vec<u8>) -> bool {
        if !server.may_keep_statements() {
            return false;
        }
        server.forget_code();
        Self::write_query(server, CLEANUP, out);
        true
    }

    fn is_clean(row: &[String]) -> bool {
        matches!(row, [prepared] if prepared == "0")
    }

    const PROVABLE: PinReasons = inquiry::PROVABLE;
    const IDENTITY: &'static [&'static str] = &inquiry::IDENTITY;

    fn write_inquiry(server: &mut server::PgServer, names: &[&str], all: bool, out: &mut Vec<u8>) -> bool {
        let Some(query) = inquiry::query(names, all) else { return false };
        Self::write_query(server, &query, out);
        true
    }

    fn write_survey(server: &mut server::PgServer, out: &mut Vec<u8>) -> bool {
        Self::write_query(server, inquiry::SURVEY, out);
        true
    }

    fn read_survey(row: &[String]) -> Option<Survey> {
        inquiry::read_survey(row)
    }

    fn read_inquiry(row: &[String], names: &[&str], user: &str) -> Option<Findings> {
        inquiry::read(row, names, user)
    }

    fn is_repeatable(statement: &str) -> bool {
        inquiry::is_replayable(statement)
    }

    fn takes_back(cleared: PinReasons, name: &str) -> bool {
        inquiry::takes_back(cleared, name)
    }

    fn is_lasting(name: &str) -> bool {
        inquiry::is_lasting(name)
    }

    fn difference(worn: &Settings, wanted: Option<&Settings>) -> Option<Vec<String>> {
        inquiry::difference(worn, wanted)
    }

    fn write_ping(out: &mut Vec<u8>) {
        codec::write_message(out, b'S', |_| {});
    }

    fn write_goodbye(out: &mut Vec<u8>) {
        codec::write_message(out, b'X', |_| {});
    }

    fn write_cancel(key: &ServerKey, out: &mut Vec<u8>) {
        handshake::write_cancel(key, out);
    }
}

/// The login of a connection of our own.
fn own_key(user: &str, parameters: &[&str]) -> PoolKey {
    let mut bytes = Vec::new();
    for text in parameters {
        codec::put_cstr(&mut bytes, text.as_bytes());
    }
    PoolKey { user: user.into(), parameters: bytes.into() }
}

/// One text, so that it is one transaction.
fn for_each_channel(command: &str, channels: &[&str]) -> String {
    channels.iter().map(|channel| format!("{command} {};", inquiry::quoted(channel))).collect()
}
