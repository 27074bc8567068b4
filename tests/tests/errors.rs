//! Each error of the proxy's own, as a client sees it: severity, SQLSTATE and words.
#![allow(clippy::unwrap_used)]

use pinion_tests::{Address, Proxy, ProxyBuilder, RawClient, Server, ServerError, until, wire};

struct Bench {
    pg: Server,
    proxy: Proxy,
}

async fn bench(with: impl FnOnce(ProxyBuilder) -> ProxyBuilder) -> Bench {
    let pg = Server::postgres().start().await;
    let proxy = with(Proxy::in_front_of(&pg).max_connections(1)).start().await;
    Bench { pg, proxy }
}

async fn refused(address: &Address) -> ServerError {
    let mut client = match address.ca {
        Some(_) => RawClient::open_tls(address).await.unwrap(),
        None => RawClient::open(address).await,
    };
    let error = client.login(address, &[]).await.unwrap_err();
    assert!(client.read().await.is_none(), "the connection stays open");
    error
}

fn is(error: &ServerError, severity: &str, code: &str, message: &str) {
    let found = (error.severity.as_str(), error.code.as_str(), error.message.as_str());
    assert_eq!(found, (severity, code, message));
}

#[tokio::test]
async fn borrow_timeout() {
    let bench = bench(|b| b.pool("connection_borrow_timeout = \"200ms\"")).await;
    let (mut a, mut b) = (bench.proxy.raw().await, bench.proxy.raw().await);
    a.query("BEGIN READ WRITE").await;
    let reply = b.query("SELECT 1").await;
    is(&reply[0].error(), "ERROR", "08000", "Timed-out waiting to acquire database connection.");
    assert_eq!(reply[1].tag, b'Z');
}

#[tokio::test]
async fn tls_required() {
    let bench = bench(ProxyBuilder::tls).await;
    let error = refused(&bench.proxy.address().plain()).await;
    is(&error, "FATAL", "28000", "This proxy requires TLS connections.");
}

#[tokio::test]
async fn wrong_password_and_unknown_user() {
    let bench = bench(|b| b).await;
    for user in ["app", "stranger"] {
        let error = refused(&bench.proxy.address().user(user, "wrong")).await;
        is(
            &error,
            "FATAL",
            "28P01",
            &format!("The password that was provided for the role {user} is wrong."),
        );
    }
}

#[tokio::test]
async fn user_missing() {
    let bench = bench(|b| b).await;
    let mut client = RawClient::open(&bench.proxy.address()).await;
    client.send_bytes(&wire::startup(3, 0, &[("database", "appdb")])).await;
    let error = client.expect_error().await;
    let text =
        "A user name is missing from the connection startup packet. Provide a user name for this connection.";
    is(&error, "FATAL", "28000", text);
}

#[tokio::test]
async fn too_many_clients() {
    let bench = bench(|b| b.proxy_setting("max_client_connections = 1")).await;
    let _first = bench.proxy.connect().await;
    let error = refused(&bench.proxy.address()).await;
    is(&error, "FATAL", "53300", "The maximum number of client connections to the proxy exceeded 1.");
}

#[tokio::test]
async fn login_rate() {
    let bench = bench(|b| b.proxy_setting("failed_logins_per_minute = 2")).await;
    for _ in 0..2 {
        refused(&bench.proxy.address().user("app", "wrong")).await;
    }
    let error = refused(&bench.proxy.address()).await;
    is(&error, "FATAL", "53300", "Rate of connection to proxy exceeded 2.");
}

#[tokio::test]
async fn replication() {
    let bench = bench(|b| b).await;
    let mut client = RawClient::open(&bench.proxy.address()).await;
    let error = client.login(&bench.proxy.address(), &[("replication", "database")]).await.unwrap_err();
    assert_eq!((error.severity.as_str(), error.code.as_str()), ("FATAL", "0A000"));
    assert!(error.message.starts_with("Feature not supported: "), "{}", error.message);
    assert!(error.message.contains("streaming replication mode"), "{}", error.message);
}

#[tokio::test]
async fn protocol_version() {
    let bench = bench(|b| b).await;
    let mut client = RawClient::open(&bench.proxy.address()).await;
    client.send_bytes(&wire::startup(2, 0, &[("user", "app")])).await;
    let error = client.expect_error().await;
    assert_eq!((error.severity.as_str(), error.code.as_str()), ("FATAL", "0A000"));
}

#[tokio::test]
async fn protocol_violation() {
    let bench = bench(|b| b).await;
    let mut client = bench.proxy.raw().await;
    client.send_bytes(&wire::message(b'?', b"what is this")).await;
    let error = client.expect_error().await;
    assert_eq!((error.severity.as_str(), error.code.as_str()), ("FATAL", "08P01"));
    assert!(client.read().await.is_none());
}

#[tokio::test]
async fn handshake_timeout() {
    let bench = bench(|b| b.proxy_setting("handshake_timeout = \"300ms\"")).await;
    let mut client = RawClient::open(&bench.proxy.address()).await;
    client.send_bytes(&wire::startup(3, 0, &[("user", "app"), ("database", "appdb")])).await;
    let error = client.expect_error().await; // past the SASL request, which it never answers
    assert_eq!((error.severity.as_str(), error.code.as_str()), ("FATAL", "08P01"));
}

#[tokio::test]
async fn not_allowed() {
    let bench = bench(|b| b.endpoint_setting("allow = [\"10.0.0.0/8\"]")).await;
    let mut client = RawClient::open(&bench.proxy.address()).await;
    let error = client.login(&bench.proxy.address(), &[]).await.unwrap_err();
    assert_eq!((error.severity.as_str(), error.code.as_str()), ("FATAL", "28000"));
}

#[tokio::test]
async fn shutting_down() {
    let bench = bench(|b| b).await;
    let mut client = bench.proxy.raw().await;
    bench.proxy.sigterm();
    let error = client.expect_error().await;
    assert_eq!((error.severity.as_str(), error.code.as_str()), ("FATAL", "57P01"));
}

#[tokio::test]
async fn idle_too_long() {
    let bench = bench(|b| b.proxy_setting("idle_client_timeout = \"1s\"")).await;
    let error = bench.proxy.raw().await.expect_error().await;
    assert_eq!((error.severity.as_str(), error.code.as_str()), ("FATAL", "57P05"));
}

#[tokio::test]
async fn lifetime_over() {
    let bench = bench(|b| b.proxy_setting("max_client_lifetime = \"1s\"")).await;
    let error = bench.proxy.raw().await.expect_error().await;
    assert_eq!((error.severity.as_str(), error.code.as_str()), ("FATAL", "57P01"));
}

#[tokio::test]
async fn server_lost() {
    let bench = bench(|b| b).await;
    let mut client = bench.proxy.raw().await;
    client.send_bytes(&wire::query("BEGIN; SELECT pg_sleep(60)")).await;
    let direct = bench.pg.direct().await;
    let kill = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = 'app' AND state = 'active'";
    until("it is killed", async || direct.scalar::<i32>(kill).await == 1).await;
    let error = client.expect_error().await;
    // The server's own last words are passed on where it had any.
    assert!(["08006", "57P01"].contains(&error.code.as_str()), "{error:?}");
}

#[tokio::test]
async fn a_database_that_does_not_exist() {
    let bench = bench(|b| b).await;
    let address = bench.proxy.address().database("nowhere");
    let mut client = RawClient::open(&address).await;
    let error = match client.login(&address, &[]).await {
        Err(error) => error,
        Ok(()) => client.query("SELECT 1").await[0].error(),
    };
    assert_eq!(error.code, "3D000");
    assert!(error.message.contains("nowhere"), "{}", error.message);
}
