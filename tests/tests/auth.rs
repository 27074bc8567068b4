//! Logins: every method on both sides, and what is refused.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use pinion_tests::{Address, Client, Proxy, RawClient, Server, poll, wire};

const SCRAM: &str = "POSTGRES_SCRAM_SHA_256";

async fn plain() -> (Server, Proxy) {
    let pg = Server::postgres().start().await;
    let proxy = Proxy::in_front_of(&pg).start().await;
    (pg, proxy)
}

/// The authentication requests that a login at `address` begins with: the kind, and the mechanisms for SASL.
async fn offered(mut client: RawClient, address: &Address) -> (i32, Vec<String>) {
    client.send_bytes(&wire::startup(3, 0, &[("user", &address.user), ("database", "appdb")])).await;
    let request = client.read().await.unwrap();
    assert_eq!(request.tag, b'R', "{request:?}");
    let kind = i32::from_be_bytes(request.body[..4].try_into().unwrap());
    let names = request.body[4..].split(|b| *b == 0).filter(|name| !name.is_empty());
    let names = names.map(|name| String::from_utf8_lossy(name).into_owned()).collect();
    (kind, if kind == 10 { names } else { Vec::new() })
}

#[tokio::test]
async fn scram_is_offered_and_works() {
    let (_pg, proxy) = plain().await;
    let address = proxy.address();
    let (kind, names) = offered(RawClient::open(&address).await, &address).await;
    assert_eq!((kind, names), (10, vec!["SCRAM-SHA-256".to_owned()]));
    assert_eq!(proxy.connect().await.scalar::<String>("SELECT current_user").await, "app");
}

#[tokio::test]
async fn scram_plus_is_offered_over_tls_and_works() {
    let pg = Server::postgres().start().await;
    let proxy = Proxy::in_front_of(&pg).tls().start().await;
    let address = proxy.address();
    let (kind, names) = offered(RawClient::open_tls(&address).await.unwrap(), &address).await;
    assert_eq!(kind, 10);
    assert!(
        names.contains(&"SCRAM-SHA-256-PLUS".to_owned()) && names.contains(&"SCRAM-SHA-256".to_owned()),
        "{names:?}"
    );
    let required = |config: &mut tokio_postgres::Config| {
        config.channel_binding(tokio_postgres::config::ChannelBinding::Require);
    };
    let client = Client::connect_with(&address, required).await.unwrap();
    assert_eq!(client.scalar::<i32>("SELECT 1").await, 1);
    let without = |config: &mut tokio_postgres::Config| {
        config.channel_binding(tokio_postgres::config::ChannelBinding::Disable);
    };
    Client::connect_with(&address, without).await.unwrap();
}

#[tokio::test]
async fn md5_works() {
    let (_pg, proxy) = plain().await;
    let address = proxy.address().user("md5user", "md5user-password");
    assert_eq!(offered(RawClient::open(&address).await, &address).await.0, 5);
    let client = Client::connect(&address).await.unwrap();
    assert_eq!(client.scalar::<String>("SELECT current_user").await, "md5user");
    assert_eq!(proxy.refusal(&address.user("md5user", "wrong")).await, "28P01");
}

#[tokio::test]
async fn cleartext_works_over_tls() {
    let pg = Server::postgres().start().await;
    let proxy = Proxy::in_front_of(&pg).tls().auth("app", "app-password", "POSTGRES_CLEARTEXT").start().await;
    let address = proxy.address();
    assert_eq!(offered(RawClient::open_tls(&address).await.unwrap(), &address).await.0, 3);
    assert_eq!(proxy.connect().await.scalar::<i32>("SELECT 1").await, 1);
    assert_eq!(proxy.refusal(&address.clone().user("app", "wrong")).await, "28P01");
    // Never asked for without TLS.
    let mut bare = RawClient::open(&address).await;
    assert_eq!(bare.login(&address, &[]).await.unwrap_err().code, "28000");
}

#[tokio::test]
async fn a_wrong_password_and_an_unknown_user_look_the_same() {
    let (_pg, proxy) = plain().await;
    let address = proxy.address();
    let mut told = Vec::new();
    for user in ["app", "nobody", "app2' OR 1=1"] {
        let wrong = address.clone().user(user, "wrong");
        let first = offered(RawClient::open(&wrong).await, &wrong).await;
        let mut client = RawClient::open(&wrong).await;
        let error = client.login(&wrong, &[]).await.unwrap_err();
        assert!(client.read().await.is_none());
        told.push((first, error.severity, error.code, error.message.replace(user, "USER")));
    }
    assert_eq!(told[0], told[1]);
    assert_eq!(told[0], told[2]);
    assert_eq!((told[0].1.as_str(), told[0].2.as_str()), ("FATAL", "28P01"));
}

/// The mock salt of an unknown user is the same at each try, as a real one's would be.
#[tokio::test]
async fn an_unknown_user_has_a_salt_of_its_own() {
    let (_pg, proxy) = plain().await;
    let salt = async |user: &str| {
        let mut client = RawClient::open(&proxy.address()).await;
        client.send_bytes(&wire::startup(3, 0, &[("user", user), ("database", "appdb")])).await;
        client.read().await.unwrap();
        let first = b"n,,n=,r=clientnonce";
        let length = u32::try_from(first.len()).unwrap().to_be_bytes();
        client.send(b'p', &[b"SCRAM-SHA-256\0".as_slice(), &length, first].concat()).await;
        let answer = client.read().await.unwrap();
        let text = String::from_utf8_lossy(&answer.body[4..]).into_owned();
        let part = |name: &str| text.split(',').find(|p| p.starts_with(name)).unwrap().to_owned();
        (part("s="), part("i="))
    };
    assert_eq!(salt("nobody").await, salt("nobody").await);
    assert_ne!(salt("nobody").await.0, salt("somebody").await.0);
    assert_eq!(salt("nobody").await.1, salt("app").await.1);
    assert_eq!(salt("nobody").await.0.len(), salt("app").await.0.len());
}

#[tokio::test]
async fn a_missing_user_is_refused() {
    let (_pg, proxy) = plain().await;
    for parameters in [[("database", "appdb")].as_slice(), &[("user", "")]] {
        let mut client = RawClient::open(&proxy.address()).await;
        client.send_bytes(&wire::startup(3, 0, parameters)).await;
        assert_eq!(client.expect_error().await.code, "28000");
    }
}

#[tokio::test]
async fn tls_is_required_when_the_config_says_so() {
    let pg = Server::postgres().start().await;
    let proxy = Proxy::in_front_of(&pg).tls().start().await;
    assert_eq!(proxy.refusal(&proxy.address().plain()).await, "28000");
    let proxy = Proxy::in_front_of(&pg).tls().proxy_setting("require_tls = false").start().await;
    Client::connect(&proxy.address().plain()).await.unwrap();
    Client::connect(&proxy.address()).await.unwrap();
    let metrics = proxy.metrics().await;
    assert_eq!(metrics.sum("pinion_client_connections_setup_succeeded_total", &[]), 2.0);
}

#[tokio::test]
async fn the_server_may_ask_for_scram_or_nothing() {
    for (hba, user) in [
        ("host all app 127.0.0.1/32 scram-sha-256", "app"),
        ("host all app 127.0.0.1/32 md5", "app"),
        ("host all app 127.0.0.1/32 trust", "app"),
    ] {
        let pg = Server::postgres().hba(hba).start().await;
        let proxy = Proxy::in_front_of(&pg).start().await;
        let client = proxy.connect_as(user).await;
        assert_eq!(client.scalar::<String>("SELECT current_user").await, user, "{hba}");
    }
}

#[tokio::test]
async fn the_server_is_reached_over_tls() {
    let pg = Server::postgres()
        .tls()
        .hba("hostnossl all app,monitor 127.0.0.1/32 reject")
        .hba("hostssl all app2 127.0.0.1/32 password")
        .start()
        .await;
    for mode in ["preferred", "required", "verify-ca", "verify-full"] {
        let mut builder = Proxy::in_front_of(&pg);
        builder = if mode.starts_with("verify") {
            builder.target_tls(mode, &pg)
        } else {
            builder.target_tls_unverified(mode)
        };
        let proxy = builder.start().await;
        let own = "FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
        let a = proxy.connect().await;
        assert_eq!(a.scalar::<String>(&format!("SELECT ssl::text {own}")).await, "true", "{mode}");
        // Cleartext is sent to the server only now that nobody can listen.
        let b = proxy.connect_as("app2").await;
        assert_eq!(b.scalar::<String>(&format!("SELECT ssl::text {own}")).await, "true", "{mode}");
        // Here the harness's server asks this user for MD5.
        let c = proxy.connect_as("md5user").await;
        assert_eq!(c.scalar::<String>(&format!("SELECT ssl::text {own}")).await, "true", "{mode}");
        assert!(proxy.metric("pinion_database_connections_with_tls", &[]).await >= 1.0);
    }
}

#[tokio::test]
async fn a_server_that_asks_for_cleartext_or_md5_without_tls_does_not_get_it() {
    for (user, method) in [("app", "password"), ("md5user", "md5")] {
        let pg = Server::postgres()
            .hba(&format!("host all {user} 127.0.0.1/32 {method}"))
            .setting("log_connections", "on")
            .start()
            .await;
        let builder = Proxy::in_front_of(&pg).pool("connection_borrow_timeout = \"2s\"");
        let proxy = builder.start().await;
        match Client::connect(&proxy.address().user(user, &format!("{user}-password"))).await {
            Ok(client) => assert!(client.try_execute("SELECT 1").await.is_err(), "{method}"),
            Err(e) => assert!(e.code().is_some(), "{e:?}"),
        }
        assert!(!pg.log().contains(&format!("connection authorized: user={user} ")), "{method}");
    }
}

/// A certificate of another authority: verifying modes refuse, and the client is told without details.
#[tokio::test]
async fn an_unverified_server_is_not_used() {
    let pg = Server::postgres().tls().start().await;
    let stranger = Server::postgres().tls().start().await;
    let builder = Proxy::in_front_of(&pg).target_tls("verify-ca", &stranger);
    let proxy = builder.pool("connection_borrow_timeout = \"1s\"").start_without_target().await;
    assert_ne!(proxy.http("/readyz").await.unwrap().0, 200);
    match Client::connect(&proxy.address()).await {
        Ok(client) => assert!(client.try_execute("SELECT 1").await.is_err()),
        Err(e) => assert!(e.code().is_some(), "{e:?}"),
    }
}

#[tokio::test]
async fn a_rotated_secret_works_without_restart() {
    let pg = Server::postgres().start().await;
    let builder = Proxy::in_front_of(&pg).max_connections(2).proxy_setting("failed_logins_per_minute = 0");
    let proxy = builder.start().await;
    let old = proxy.connect().await;
    old.execute("SELECT 1").await;
    pg.direct().await.execute("ALTER ROLE app PASSWORD 'rotated-1'").await;
    proxy.rotate_secret("app", "rotated-1");
    let fresh = proxy.address().user("app", "rotated-1");
    let client = poll("the new password works", async || Client::connect(&fresh).await.ok()).await;
    // A new server connection logs in with it too.
    client.execute("BEGIN READ WRITE").await;
    old.execute("BEGIN READ WRITE").await; // the old client goes on
    assert_eq!(client.scalar::<String>("SELECT current_user").await, "app");
    assert_eq!(proxy.refusal(&proxy.address()).await, "28P01");
}

/// The server's password changes and the file soon after: the login that failed is tried again with what the file
/// then says.
#[tokio::test]
async fn a_failed_server_login_reads_the_secret_again() {
    let pg = Server::postgres().start().await;
    let proxy = Proxy::in_front_of(&pg).max_connections(2).start().await;
    let a = proxy.connect().await;
    pg.direct().await.execute("ALTER ROLE app PASSWORD 'rotated-2'").await;
    proxy.rotate_secret("app", "rotated-2");
    assert_eq!(a.scalar::<i32>("SELECT 1").await, 1);
}

#[tokio::test]
async fn a_secret_may_come_from_the_environment() {
    let pg = Server::postgres().start().await;
    let secret = "{\"username\": \"app\", \"password\": \"app-password\"}";
    let proxy = Proxy::in_front_of(&pg).secret_in_env(secret).start().await;
    assert_eq!(proxy.connect().await.scalar::<i32>("SELECT 1").await, 1);
}

#[tokio::test]
async fn failed_logins_are_limited_by_address() {
    let pg = Server::postgres().start().await;
    let proxy = Proxy::in_front_of(&pg).proxy_setting("failed_logins_per_minute = 5").start().await;
    let wrong = proxy.address().user("app", "wrong");
    for _ in 0..5 {
        assert_eq!(proxy.refusal(&wrong).await, "28P01");
    }
    assert_eq!(proxy.refusal(&wrong).await, "53300");
    assert_eq!(proxy.refusal(&proxy.address()).await, "53300", "unheard, right password or not");
    let mut elsewhere = RawClient::open_from(&proxy.address(), [127, 0, 0, 2]).await.unwrap();
    elsewhere.login(&proxy.address(), &[]).await.unwrap();
}

#[tokio::test]
async fn a_handshake_may_not_take_forever() {
    let pg = Server::postgres().start().await;
    let builder = Proxy::in_front_of(&pg).tls().proxy_setting("require_tls = false");
    let proxy = builder.proxy_setting("handshake_timeout = \"500ms\"").start().await;
    let address = proxy.address();
    let startup = wire::startup(3, 0, &[("user", "app"), ("database", "appdb")]);
    for said in [Vec::new(), startup[..7].to_vec(), startup, wire::ssl_request()] {
        let begun = Instant::now();
        let mut client = RawClient::open(&address).await;
        client.send_bytes(&said).await;
        // Plain bytes, since after SSLRequest no message can follow.
        while client.read_byte().await.is_some() {}
        assert!(begun.elapsed() >= Duration::from_millis(400), "closed after {:?}", begun.elapsed());
    }
}

#[tokio::test]
async fn a_start_up_message_over_10_kb_is_refused() {
    let (_pg, proxy) = plain().await;
    let long = "x".repeat(11_000);
    let mut client = RawClient::open(&proxy.address()).await;
    client.send_bytes(&wire::startup(3, 0, &[("user", "app"), ("application_name", &long)])).await;
    match client.read().await {
        None => {}
        Some(message) => assert_eq!(message.error().code, "08P01"),
    }
    // A length alone is enough: nothing of it is waited for or held.
    let mut client = RawClient::open(&proxy.address()).await;
    client.send_bytes(&[0x7f, 0xff, 0xff, 0xff, 0, 3, 0, 0]).await;
    match client.read().await {
        None => {}
        Some(message) => assert_eq!(message.error().code, "08P01"),
    }
    let nearly = "x".repeat(9_000);
    let mut client = RawClient::open(&proxy.address()).await;
    client.login(&proxy.address(), &[("application_name", &nearly)]).await.unwrap();
}

#[tokio::test]
async fn client_connections_are_limited() {
    let pg = Server::postgres().start().await;
    let proxy = Proxy::in_front_of(&pg).proxy_setting("max_client_connections = 3").start().await;
    let mut clients = vec![proxy.connect().await, proxy.connect().await, proxy.connect().await];
    assert_eq!(proxy.refusal(&proxy.address()).await, "53300");
    clients.pop().unwrap().close().await;
    poll("a place is free", async || Client::connect(&proxy.address()).await.ok()).await;
}

#[tokio::test]
async fn strangers_without_a_login_are_limited_apart() {
    let pg = Server::postgres().start().await;
    let proxy = Proxy::in_front_of(&pg).proxy_setting("max_unauthenticated = 2").start().await;
    let inside = proxy.connect().await;
    let mut strangers = Vec::new();
    for _ in 0..2 {
        let mut stranger = RawClient::open(&proxy.address()).await;
        stranger.send_bytes(&wire::startup(3, 0, &[("user", "app"), ("database", "appdb")])).await;
        assert_eq!(stranger.read().await.unwrap().tag, b'R'); // asked for a password, which it never sends
        strangers.push(stranger);
    }
    assert_eq!(proxy.refusal(&proxy.address()).await, "53300");
    inside.execute("SELECT 1").await;
    drop(strangers);
    poll("a place is free", async || Client::connect(&proxy.address()).await.ok()).await;
}

#[tokio::test]
async fn only_allowed_addresses_are_heard() {
    let pg = Server::postgres().start().await;
    let proxy = Proxy::in_front_of(&pg).endpoint_setting("allow = [\"127.0.0.2/32\"]").start().await;
    let address = proxy.address();
    match Client::connect(&address).await {
        Ok(_) => panic!("127.0.0.1 was let in"),
        Err(e) => assert!(e.code().is_none_or(|code| code.code() == "28000"), "{e:?}"),
    }
    let mut allowed = RawClient::open_from(&address, [127, 0, 0, 2]).await.unwrap();
    allowed.login(&address, &[]).await.unwrap();
}

/// Passwords, the proofs made of them and the secrets' files stay out of the log, at any level.
#[tokio::test]
async fn passwords_never_appear_in_the_log() {
    let pg = Server::postgres().start().await;
    let proxy = Proxy::in_front_of(&pg)
        .log_level("trace")
        .auth("app", "app-password", SCRAM)
        .auth("app2", "not-the-servers-password", SCRAM)
        .pool("connection_borrow_timeout = \"1s\"")
        .proxy_setting("failed_logins_per_minute = 0")
        .start()
        .await;
    proxy.connect().await.execute("SELECT 1").await;
    proxy.connect_as("md5user").await.execute("SELECT 1").await;
    assert_eq!(proxy.refusal(&proxy.address().user("app", "my-typed-password")).await, "28P01");
    if let Ok(client) = Client::connect(&proxy.address().user("app2", "not-the-servers-password")).await {
        client.try_execute("SELECT 1").await.unwrap_err();
    }
    proxy.rotate_secret("app", "rotated-password");
    let rotated = proxy.address().user("app", "rotated-password");
    poll("the new password counts", async || Client::connect(&rotated).await.ok()).await;
    let log = proxy.log();
    for secret in [
        "app-password",
        "not-the-servers-password",
        "my-typed-password",
        "md5user-password",
        "rotated-password",
        "monitor-password",
    ] {
        assert!(!log.contains(secret), "{secret} is in the log");
    }
}

/// The database is asked for only then: a client that may not log in learns nothing about it.
#[tokio::test]
async fn a_database_that_does_not_exist_is_the_servers_own_error() {
    let (_pg, proxy) = plain().await;
    let code = match Client::connect(&proxy.address().database("nowhere")).await {
        Err(e) => e.code().unwrap().code().to_owned(),
        Ok(client) => client.sqlstate("SELECT 1").await,
    };
    assert_eq!(code, "3D000");
    assert_eq!(proxy.refusal(&proxy.address().database("nowhere").user("app", "wrong")).await, "28P01");
}
