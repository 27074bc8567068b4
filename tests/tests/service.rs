//! Under a service manager, and what the log tells the person on call.
#![allow(clippy::unwrap_used)]

use std::{os::unix::net::UnixDatagram, time::Duration};

use pinion_tests::{Proxy, Server, until};

/// The next thing the service manager is told.
fn told(notify: &UnixDatagram) -> String {
    let mut message = [0; 256];
    let n = notify.recv(&mut message).expect("the service manager is told in time");
    String::from_utf8_lossy(&message[..n]).trim().to_owned()
}

#[tokio::test]
async fn systemd_hands_over_the_socket_and_is_told_of_start_reload_and_stop() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notify");
    let notify = UnixDatagram::bind(&path).unwrap();
    notify.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let pg = Server::postgres().start().await;
    // The socket is taken already: without the one handed over, the proxy could not listen.
    let mut proxy = Proxy::in_front_of(&pg).activated(&path).start().await;
    assert_eq!(told(&notify), "READY=1");
    assert_eq!(proxy.connect().await.scalar::<i32>("SELECT 7").await, 7);
    proxy.sighup();
    assert!(told(&notify).starts_with("RELOADING=1"));
    assert_eq!(told(&notify), "READY=1");
    proxy.sigterm();
    assert_eq!(told(&notify), "STOPPING=1");
    assert!(proxy.wait_exit().await.success());
}

#[tokio::test]
async fn a_slow_query_is_logged_without_its_values() {
    let pg = Server::postgres().start().await;
    let proxy = Proxy::in_front_of(&pg).start().await;
    let client = proxy.connect().await;
    client.execute("SELECT 'kept secret', pg_sleep(0.05)").await;
    assert!(!proxy.log().contains("slow query"), "nothing is slow by default");
    proxy.rewrite_config(|text| text.replace("[log]", "[log]\nslow_query = \"20ms\""));
    proxy.sighup();
    proxy.logged("configuration reloaded").await;
    client.execute("SELECT 'kept secret', pg_sleep(0.05)").await;
    until("the slow query is logged", async || proxy.log().contains("slow query")).await;
    let log = proxy.log();
    let line = log.lines().find(|line| line.contains("slow query")).unwrap();
    assert!(line.contains("select $1, pg_sleep($2)"), "{line}");
    assert!(!log.contains("kept secret"));
}
