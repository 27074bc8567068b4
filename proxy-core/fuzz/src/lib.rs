//! Bodies of the fuzz targets. Each takes any bytes and panics when a property that it states does not hold.
//!
//! The fuzzer calls them with what it finds, `proxy-core/tests/corpus.rs` includes this file and calls them with the
//! committed corpus and with random bytes. They need nothing of `pinion` but what it shows to everybody.

pub mod classify;
pub mod client_messages;
pub mod connect;
pub mod fake;
pub mod mysql_accept;
pub mod mysql_classify;
pub mod mysql_client_messages;
pub mod mysql_connect;
pub mod mysql_fake;
pub mod mysql_server_messages;
pub mod mysql_world;
pub mod scram;
pub mod server_messages;
pub mod startup;
pub mod wire;
pub mod world;

/// One fuzz target.
pub struct Target {
    /// As in `cargo fuzz run` and below `corpus/`.
    pub name: &'static str,
    /// Panics when a property does not hold.
    pub run: fn(&[u8]),
    /// The committed corpus: file name and bytes.
    pub seeds: fn() -> Vec<(String, Vec<u8>)>,
}

/// All of them.
pub const TARGETS: [Target; 11] = [
    Target { name: "startup", run: startup::run, seeds: startup::seeds },
    Target { name: "connect", run: connect::run, seeds: connect::seeds },
    Target { name: "scram", run: scram::run, seeds: scram::seeds },
    Target { name: "client_messages", run: client_messages::run, seeds: client_messages::seeds },
    Target { name: "server_messages", run: server_messages::run, seeds: server_messages::seeds },
    Target { name: "mysql_accept", run: mysql_accept::run, seeds: mysql_accept::seeds },
    Target { name: "mysql_connect", run: mysql_connect::run, seeds: mysql_connect::seeds },
    Target {
        name: "mysql_client_messages",
        run: mysql_client_messages::run,
        seeds: mysql_client_messages::seeds,
    },
    Target {
        name: "mysql_server_messages",
        run: mysql_server_messages::run,
        seeds: mysql_server_messages::seeds,
    },
    Target { name: "mysql_classify", run: mysql_classify::run, seeds: mysql_classify::seeds },
    Target { name: "classify", run: classify::run, seeds: classify::seeds },
];
