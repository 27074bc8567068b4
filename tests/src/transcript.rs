//! Transcripts of programs: what one sees through the proxy is what it sees on the server.

use crate::{Address, MariaDb, Proxy, until};

/// Runs a program through a proxy with two server connections, without TLS and with it, logged in by either method, and
/// panics where it sees anything but `expected`. Once it has ended nothing is pinned.
pub async fn same_through_pinion(db: &MariaDb, expected: &str, program: impl AsyncFn(&Address) -> String) {
    for auth in ["MYSQL_NATIVE_PASSWORD", "MYSQL_CACHING_SHA2_PASSWORD"] {
        let proxy = Proxy::in_front_of(db)
            .max_connections(2)
            .client_auth(auth)
            .tls()
            .proxy_setting("require_tls = false")
            .start()
            .await;
        if auth == "MYSQL_NATIVE_PASSWORD" {
            same(expected, &program(&proxy.address().plain()).await, "through the proxy");
        }
        same(expected, &program(&proxy.address()).await, &format!("through the proxy over TLS by {auth}"));
        // A connection that was closed is in the server's list for a moment longer.
        until("no more server connections than allowed", async || db.backends().await <= 2).await;
        until("the clients are gone", async || proxy.metric("pinion_client_connections", &[]).await == 0.0)
            .await;
        assert_eq!(proxy.metric("pinion_database_connections_currently_session_pinned", &[]).await, 0.0);
    }
}

/// Panics with the first line in which two transcripts differ.
#[track_caller]
pub fn same(expected: &str, seen: &str, place: &str) {
    let mut lines = expected.lines().zip(seen.lines());
    if let Some((wanted, got)) = lines.find(|(wanted, got)| wanted != got) {
        panic!("{place}:\n  direct {wanted}\n  here   {got}");
    }
    assert_eq!(expected.lines().count(), seen.lines().count(), "{place}: one has more to say:\n{seen}");
}
