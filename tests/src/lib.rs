//! Harness for end-to-end tests: real servers, the real proxy binary, real clients.
//!
//! - [`Server`]: a private PostgreSQL on a free port, started from a template and stopped on drop.
//! - [`MariaDb`], by [`Server::mariadb`]: likewise a MariaDB.
//! - [`Cluster`]: a primary with streaming standbys or with replicas.
//! - [`Proxy`]: the `pinion` binary with a configuration written for it, in front of a server.
//! - [`Client`]: `tokio-postgres` with the helpers that tests read well with.
//! - [`MySqlClient`]: the same by `mysql_async`.
//! - [`RawClient`], [`RawMySql`]: one message at a time, for what no driver would send.
//! - [`RawServer`]: stands between proxy and server and misbehaves on command.
//! - [`foreign`]: drivers of other languages and command-line tools.
//!
//! Nothing here waits by sleeping: every wait is [`poll`] with a deadline.

#![allow(clippy::unwrap_used)] // A test stops at the first surprise.

mod address;
mod client;
mod cluster;
pub mod foreign;
mod mariadb;
mod mysql_client;
mod plugin;
mod proxy;
mod raw_client;
pub mod raw_mysql;
mod raw_server;
mod running;
mod server;
mod target;
mod tls;
pub mod twin;

use std::{
    collections::HashSet,
    hash::{BuildHasher, RandomState},
    net::TcpListener,
    path::PathBuf,
    sync::{LazyLock, Mutex},
    time::{Duration, Instant},
};

pub use address::Address;
pub use client::Client;
pub use cluster::Cluster;
pub use mariadb::{MariaDb, MariaDbBuilder};
pub use mysql_client::{MySqlClient, server_error};
pub use plugin::{Plugin, replace_file};
pub use proxy::{Metrics, Proxy, ProxyBuilder, request, run_pinion};
pub use raw_client::{Message, RawClient, ServerError, wire};
pub use raw_mysql::RawMySql;
pub use raw_server::{Answer, RawServer};
pub use server::{Server, ServerBuilder, Template};
pub use target::{Engine, Target};
pub use tls::{Ca, PgTls};

/// Longest wait for anything that should happen soon, on a machine busy with other tests.
pub const SOON: Duration = Duration::from_secs(30);

/// Asks `probe` again and again until it answers; panics with `what` after [`SOON`].
pub async fn poll<T>(what: &str, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + SOON;
    loop {
        if let Some(found) = probe().await {
            return found;
        }
        assert!(Instant::now() < deadline, "waited {SOON:?} in vain: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// [`poll`] for a condition.
pub async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    poll(what, async || holds().await.then_some(())).await;
}

/// True when the long variants of load tests are asked for by `PINION_LONG=1`.
#[must_use]
pub fn long_run() -> bool {
    std::env::var_os("PINION_LONG").is_some_and(|v| v == "1")
}

/// A TCP port on loopback that nobody listens on, below the range from which the kernel takes client ports.
pub(crate) fn free_port() -> u16 {
    static TAKEN: LazyLock<Mutex<HashSet<u16>>> = LazyLock::new(Mutex::default);
    let random = RandomState::new();
    let mut taken = TAKEN.lock().unwrap();
    (0..10_000_u32)
        .map(|i| 10_000 + (random.hash_one((i, std::process::id())) % 20_000) as u16)
        .find(|port| !taken.contains(port) && TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .inspect(|port| {
            taken.insert(*port);
        })
        .expect("some port of 20,000 is free")
}

/// The folder cargo builds into, found from where this test executable lies.
pub(crate) fn target_dir() -> PathBuf {
    let exe = std::env::current_exe().unwrap();
    let profile = exe.parent().and_then(|deps| deps.parent()).expect("target/<profile>/deps/<test>");
    profile.parent().expect("target/<profile>").to_owned()
}

/// Lets this test open as many files as the machine allows.
pub fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }).unwrap();
}
