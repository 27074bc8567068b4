//! The process: drain, reload, exit codes, certificates that change.
#![allow(clippy::unwrap_used)]

use std::{fs, time::Duration};

use pinion_tests::{Client, Proxy, RawClient, Server, poll, run_pinion, until, wire};

#[tokio::test]
async fn a_drain_finishes_transactions_and_says_goodbye_to_the_idle() {
    let pg = Server::postgres().start().await;
    let mut proxy =
        Proxy::in_front_of(&pg).max_connections(3).top_setting("drain_timeout = \"20s\"").start().await;
    let (mut busy, mut idle) = (proxy.raw().await, proxy.raw().await);
    busy.query("BEGIN; INSERT INTO t (v) VALUES ('drained')").await;
    proxy.sigterm();
    let goodbye = idle.expect_error().await;
    assert_eq!((goodbye.severity.as_str(), goodbye.code.as_str()), ("FATAL", "57P01"));
    assert!(idle.read().await.is_none());
    until("nobody is let in", async || Client::connect(&proxy.address()).await.is_err()).await;
    assert!(proxy.is_running());
    assert_eq!(busy.scalar("SELECT 1").await, "1");
    let reply = busy.query("COMMIT").await;
    assert!(reply.iter().any(|m| m.tag == b'C'), "{reply:?}");
    assert_eq!(busy.expect_error().await.code, "57P01");
    assert_eq!(proxy.wait_exit().await.code(), Some(0));
    assert_eq!(pg.direct().await.scalar::<i32>("SELECT count(*) FROM t WHERE v = 'drained'").await, 1);
    until("its server connections are closed", async || pg.backends().await == 0).await;
}

#[tokio::test]
async fn a_drain_lets_a_running_statement_finish() {
    let pg = Server::postgres().start().await;
    let mut proxy = Proxy::in_front_of(&pg).max_connections(3).start().await;
    let mut a = proxy.raw().await;
    a.send_bytes(&wire::query("SELECT pg_sleep(1)::text || 'done'")).await;
    let direct = pg.direct().await;
    let running = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'app' AND state = 'active'";
    until("it runs", async || direct.scalar::<i32>(running).await == 1).await;
    proxy.sigterm();
    let reply = a.read_reply().await;
    assert_eq!(reply.iter().find(|m| m.tag == b'D').unwrap().columns()[0].as_deref(), Some("done"));
    assert_eq!(a.expect_error().await.code, "57P01");
    assert_eq!(proxy.wait_exit().await.code(), Some(0));
}

#[tokio::test]
async fn a_drain_is_bounded_by_its_timeout() {
    let pg = Server::postgres().start().await;
    let mut proxy = Proxy::in_front_of(&pg).top_setting("drain_timeout = \"500ms\"").start().await;
    let mut a = proxy.raw().await;
    a.query("BEGIN; INSERT INTO t (v) VALUES ('cut')").await;
    proxy.sigterm();
    assert_eq!(a.expect_error().await.code, "57P01");
    let status = proxy.wait_exit().await;
    assert!(status.code().is_some(), "{status}");
    assert_eq!(pg.direct().await.scalar::<i32>("SELECT count(*) FROM t WHERE v = 'cut'").await, 0);
}

#[tokio::test]
async fn a_second_signal_stops_at_once() {
    let pg = Server::postgres().start().await;
    let mut proxy = Proxy::in_front_of(&pg).top_setting("drain_timeout = \"10m\"").start().await;
    let mut a = proxy.raw().await;
    let mut idle = proxy.raw().await;
    a.query("BEGIN READ WRITE").await;
    proxy.sigterm();
    assert_eq!(idle.expect_error().await.code, "57P01"); // the first signal was heard
    proxy.sigterm();
    proxy.wait_exit().await;
}

#[tokio::test]
async fn readiness_ends_with_the_drain() {
    let pg = Server::postgres().start().await;
    let proxy = Proxy::in_front_of(&pg).start().await;
    let mut a = proxy.raw().await;
    a.query("BEGIN READ WRITE").await;
    proxy.sigterm();
    until("/readyz is not 200", async || proxy.http("/readyz").await.is_none_or(|(status, _)| status != 200))
        .await;
}

#[tokio::test]
async fn a_reload_applies_what_can_live() {
    let pg = Server::postgres().start().await;
    let proxy = Proxy::in_front_of(&pg).max_connections(4).start().await;
    let a = proxy.connect().await;
    a.execute("SELECT 1").await;
    proxy.rewrite_config(|text| {
        text.replace("name = \"test\"", "name = \"test\"\nmax_client_connections = 1")
    });
    proxy.sighup();
    until("the new limit holds", async || Client::connect(&proxy.address()).await.is_err()).await;
    a.execute("SELECT 1").await; // nobody is cut
    proxy.rewrite_config(|text| text.replace("max_client_connections = 1\n", "max_client_connections = 5\n"));
    proxy.sighup();
    poll("the limit is gone", async || Client::connect(&proxy.address()).await.ok()).await;
    until("it is counted", async || proxy.metric("pinion_config_reloads_total", &[]).await >= 2.0).await;
}

#[tokio::test]
async fn a_user_comes_and_goes_by_reload() {
    let pg = Server::postgres().start().await;
    let proxy = Proxy::in_front_of(&pg).max_connections(4).start().await;
    pg.direct().await.execute("CREATE ROLE late LOGIN PASSWORD 'late-password'").await;
    let late = proxy.address().user("late", "late-password");
    assert_eq!(proxy.refusal(&late).await, "28P01");
    proxy.rotate_secret("late", "late-password");
    proxy.rewrite_config(|text| {
        let entry =
            "[[proxy.auth]]\nusername = \"late\"\nsecret = { file = \"secret-late.json\" }\n\n[proxy.pool]";
        text.replace("[proxy.pool]", entry)
    });
    proxy.sighup();
    let client = poll("the new user is let in", async || Client::connect(&late).await.ok()).await;
    assert_eq!(client.scalar::<String>("SELECT current_user").await, "late");
}

#[tokio::test]
async fn a_bad_config_changes_nothing_and_says_why() {
    let pg = Server::postgres().start().await;
    let mut proxy = Proxy::in_front_of(&pg).max_connections(4).start().await;
    let a = proxy.connect().await;
    proxy.rewrite_config(|text| {
        text.replace("name = \"test\"", "name = \"test\"\nmax_client_connections = 0")
    });
    proxy.sighup();
    let line = proxy.logged("max_client_connections").await;
    assert!(line.contains("pinion.toml") && line.contains("allowed"), "{line}");
    assert!(proxy.is_running());
    a.execute("SELECT 1").await;
    proxy.connect().await.execute("SELECT 1").await;
}

#[tokio::test]
async fn a_setting_that_needs_a_restart_is_named_and_left() {
    let pg = Server::postgres().start().await;
    let proxy = Proxy::in_front_of(&pg).start().await;
    let port = proxy.address().port;
    proxy.rewrite_config(|text| text.replace(&format!("127.0.0.1:{port}"), "127.0.0.1:1"));
    proxy.sighup();
    let line = proxy.logged("restart").await;
    assert!(line.contains("listen"), "{line}");
    proxy.connect().await.execute("SELECT 1").await;
}

#[tokio::test]
async fn a_new_certificate_is_picked_up() {
    let pg = Server::postgres().start().await;
    let proxy = Proxy::in_front_of(&pg).tls().start().await;
    let old = proxy.connect().await;
    let renewed = pinion_tests::Ca::new();
    renewed.issue_into(proxy.dir());
    let mut address = proxy.address();
    address.ca = Some(renewed);
    let client = poll("the new certificate is shown", async || Client::connect(&address).await.ok()).await;
    client.execute("SELECT 1").await;
    old.execute("SELECT 1").await;
    assert!(RawClient::open_tls(&proxy.address()).await.is_err());
}

#[tokio::test]
async fn check_tells_a_good_config_from_a_bad_one() {
    let pg = Server::postgres().start().await;
    let proxy = Proxy::in_front_of(&pg).start().await;
    let file = proxy.dir().join("pinion.toml");
    let (status, text) = run_pinion(&["check", "--config", file.to_str().unwrap()]);
    assert_eq!(status.code(), Some(0), "{text}");
    let bad = proxy.dir().join("bad.toml");
    fs::write(&bad, fs::read_to_string(&file).unwrap().replace("engine_family", "engine_familly")).unwrap();
    for arguments in [vec!["check", "--config"], vec!["--config"]] {
        let (status, text) = run_pinion(&[arguments, vec![bad.to_str().unwrap()]].concat());
        assert_eq!(status.code(), Some(2), "{text}");
        assert!(text.contains("bad.toml") && text.contains("engine_familly"), "{text}");
    }
    let (status, text) = run_pinion(&["check", "--config", "/nonexistent/pinion.toml"]);
    assert_eq!(status.code(), Some(2), "{text}");
    assert!(text.contains("/nonexistent/pinion.toml"), "{text}");
    let (status, _) = run_pinion(&["--no-such-flag"]);
    assert_eq!(status.code(), Some(1));
}

#[tokio::test]
async fn a_port_in_use_is_an_error_at_start() {
    let pg = Server::postgres().start().await;
    let proxy = Proxy::in_front_of(&pg).start().await;
    let second = proxy.dir().join("second.toml");
    let text = fs::read_to_string(proxy.dir().join("pinion.toml")).unwrap();
    fs::write(&second, text).unwrap();
    let (status, text) = run_pinion(&["--config", second.to_str().unwrap()]);
    assert_eq!(status.code(), Some(3), "{text}");
    assert!(text.contains("127.0.0.1:"), "names no address: {text}");
}

/// SIGTERM while the target is away: there is nothing to wait for.
#[tokio::test]
async fn a_drain_without_a_target_ends_at_once() {
    let mut pg = Server::postgres().start().await;
    let mut proxy = Proxy::in_front_of(&pg).start().await;
    pg.stop();
    proxy.sigterm();
    let ended = tokio::time::timeout(Duration::from_secs(20), proxy.wait_exit()).await;
    assert_eq!(ended.expect("it ends").code(), Some(0));
}
