//! Each error of the proxy's own, as a MySQL client sees it: number, SQLSTATE and words. A test names the row of
//! `docs/errors.md` that it is for, and where Amazon RDS Proxy has the error, that number.
#![allow(clippy::unwrap_used)]

use pinion_tests::{
    Address, MariaDb, MySqlClient, Plugin, Proxy, ProxyBuilder, RawMySql, Server,
    raw_mysql::{Login, MySqlError, Reply, capability, command, packet},
    until,
};

struct Bench {
    db: MariaDb,
    proxy: Proxy,
}

async fn bench(with: impl FnOnce(ProxyBuilder) -> ProxyBuilder) -> Bench {
    let db = Server::mariadb().start().await;
    let proxy = with(Proxy::in_front_of(&db).max_connections(1)).start().await;
    Bench { db, proxy }
}

/// The error that a login ends with; the connection ends with it.
async fn refused(address: &Address) -> MySqlError {
    let mut client = RawMySql::open(address).await.unwrap();
    let error = client.login(address, &Login::new(address, capability::NEW)).await.unwrap_err();
    assert!(client.read().await.is_none(), "the connection stays open");
    error
}

/// The error in the place of the greeting, which has no SQLSTATE.
async fn turned_away(address: &Address) -> MySqlError {
    RawMySql::open(address).await.expect_err("no greeting")
}

/// The error that ends a session that has asked for nothing.
async fn ended(client: &mut RawMySql) -> MySqlError {
    let error = client.expect_error().await;
    assert!(client.read().await.is_none(), "the connection stays open");
    error
}

#[track_caller]
fn is(error: &MySqlError, code: u16, state: &str, message: &str) {
    assert_eq!((error.code, error.state.as_str(), error.message.as_str()), (code, state, message));
}

/// Row `BorrowTimeout`; RDS Proxy's 9501.
#[tokio::test]
async fn borrow_timeout() {
    let bench = bench(|b| b.pool("connection_borrow_timeout = \"200ms\"")).await;
    let (mut a, mut b) = (bench.proxy.raw_mysql().await, bench.proxy.raw_mysql().await);
    a.ok("START TRANSACTION READ WRITE").await;
    let text = "Timed-out waiting to acquire database connection.";
    is(&b.error("SELECT 1").await, 9501, "HY000", text);
    is(&b.simple(command::INIT_DB, b"otherdb").await.unwrap_err(), 9501, "HY000", text);
    is(&b.prepare("SELECT 1").await.unwrap_err(), 9501, "HY000", text);
    a.ok("COMMIT").await;
    // Only the request has ended, and none of it has run.
    assert_eq!(b.scalar("SELECT database()").await, "appdb");
}

/// Row `BorrowTimeout`, in a login: of a pool that has no connection yet.
#[tokio::test]
async fn borrow_timeout_in_a_login() {
    let bench = bench(|b| b.pool("connection_borrow_timeout = \"200ms\"")).await;
    let mut a = bench.proxy.raw_mysql().await;
    a.ok("START TRANSACTION READ WRITE").await;
    let error = refused(&bench.proxy.address().user("app2", "app2-password")).await;
    is(&error, 9501, "HY000", "Timed-out waiting to acquire database connection.");
}

/// Row `TlsRequired`; RDS Proxy's 3159.
#[tokio::test]
async fn tls_required() {
    let bench = bench(ProxyBuilder::tls).await;
    let error = refused(&bench.proxy.address().plain()).await;
    is(&error, 3159, "HY000", "This proxy requires TLS connections.");
}

/// Rows `BadPassword` and `UserMissing`; RDS Proxy's 1045.
#[tokio::test]
async fn wrong_password_unknown_user_and_no_user() {
    let bench = bench(|b| b.proxy_setting("failed_logins_per_minute = 0")).await;
    for user in ["app", "stranger", ""] {
        for (password, using) in [("wrong", "YES"), ("", "NO")] {
            let error = refused(&bench.proxy.address().user(user, password)).await;
            let text = format!("Access denied for user '{user}'@'127.0.0.1' (using password: {using})");
            is(&error, 1045, "28000", &text);
        }
    }
}

/// Row `TooManyClients`; RDS Proxy's 1040.
#[tokio::test]
async fn too_many_clients() {
    let bench = bench(|b| b.proxy_setting("max_client_connections = 1")).await;
    let _first = bench.proxy.raw_mysql().await;
    let error = refused(&bench.proxy.address()).await;
    is(&error, 1040, "HY000", "The maximum number of client connections to the proxy exceeded 1.");
}

/// Row `TooManyClients`, of clients that have not logged in.
#[tokio::test]
async fn too_many_strangers() {
    let bench = bench(|b| b.proxy_setting("max_unauthenticated = 1")).await;
    let _first = RawMySql::open(&bench.proxy.address()).await.unwrap();
    let error = turned_away(&bench.proxy.address()).await;
    is(&error, 1040, "", "The maximum number of client connections to the proxy exceeded 1.");
}

/// Row `LoginRate`.
#[tokio::test]
async fn login_rate() {
    let bench = bench(|b| b.proxy_setting("failed_logins_per_minute = 2")).await;
    for _ in 0..2 {
        refused(&bench.proxy.address().user("app", "wrong")).await;
    }
    let error = refused(&bench.proxy.address()).await;
    is(&error, 1040, "HY000", "Rate of connection to proxy exceeded 2.");
}

/// Row `NotAllowed`.
#[tokio::test]
async fn not_allowed() {
    let bench = bench(|b| b.endpoint_setting("allow = [\"10.0.0.0/8\"]")).await;
    let error = turned_away(&bench.proxy.address()).await;
    is(&error, 1130, "", "Connections from this address are not allowed by this endpoint.");
}

/// Row `NotSupported`.
#[tokio::test]
async fn an_authentication_that_the_client_does_not_know() {
    let bench = bench(|b| b.client_auth("MYSQL_CACHING_SHA2_PASSWORD")).await;
    let address = bench.proxy.address();
    let mut client = RawMySql::open(&address).await.unwrap();
    let login =
        Login::new(&address, capability::OLD & !capability::PLUGIN_AUTH).plugin("mysql_native_password");
    let error = client.login(&address, &login).await.unwrap_err();
    let text = "Client does not support authentication protocol requested by server; consider upgrading MySQL client";
    is(&error, 1251, "08004", text);
    assert!(client.read().await.is_none());
}

/// Row `ProtocolViolation`, after the login.
#[tokio::test]
async fn protocol_violation() {
    let bench = bench(|b| b).await;
    for (bytes, text) in [
        (packet(0, b"").0, "malformed command message"),
        (packet(7, b"\x0e").0, "unexpected message '\\u{7}'"),
    ] {
        let mut client = bench.proxy.raw_mysql().await;
        client.send_bytes(&bytes).await;
        is(&ended(&mut client).await, 1835, "HY000", text);
    }
}

/// Row `ProtocolViolation`, in the login.
#[tokio::test]
async fn protocol_violation_in_the_login() {
    let bench = bench(|b| b).await;
    let address = bench.proxy.address();
    for (sequence, payload, code, text) in [
        (1, b"what is this".as_slice(), 1043, "Bad handshake"),
        (1, b"", 1043, "Bad handshake"),
        (0, b"what is this", 1156, "Got packets out of order"),
        (5, b"what is this", 1156, "Got packets out of order"),
    ] {
        let mut client = RawMySql::open(&address).await.unwrap();
        client.send_bytes(&packet(sequence, payload).0).await;
        let bytes = client.read_bytes_to_end().await;
        let error = [&[0xff], u16::to_le_bytes(code).as_slice(), b"#08S01", text.as_bytes()].concat();
        assert_eq!(bytes[3], sequence + 1, "its number comes behind the client's");
        assert_eq!(bytes[4..], error, "{}", bytes.escape_ascii());
    }
}

/// Row `HandshakeTimeout`.
#[tokio::test]
async fn handshake_timeout() {
    let bench = bench(|b| b.proxy_setting("handshake_timeout = \"300ms\"")).await;
    let mut client = RawMySql::open(&bench.proxy.address()).await.unwrap();
    is(&ended(&mut client).await, 1159, "08S01", "canceling authentication due to timeout");
}

/// Row `ShuttingDown`; RDS Proxy's 1053.
#[tokio::test]
async fn shutting_down() {
    let bench = bench(|b| b).await;
    let mut client = bench.proxy.raw_mysql().await;
    bench.proxy.sigterm();
    is(&ended(&mut client).await, 1053, "08S01", "terminating connection due to administrator command");
}

/// Row `LifetimeOver`.
#[tokio::test]
async fn lifetime_over() {
    let bench = bench(|b| b.proxy_setting("max_client_lifetime = \"1s\"")).await;
    let mut client = bench.proxy.raw_mysql().await;
    let text = "terminating connection because it reached its maximum lifetime";
    is(&ended(&mut client).await, 1053, "08S01", text);
}

/// Row `IdleTimeout`.
#[tokio::test]
async fn idle_too_long() {
    let bench = bench(|b| b.proxy_setting("idle_client_timeout = \"1s\"")).await;
    let mut client = bench.proxy.raw_mysql().await;
    is(&ended(&mut client).await, 4031, "HY000", "terminating connection due to idle-session timeout");
}

/// Row `Cancelled`.
#[tokio::test]
async fn cancelled_while_it_waits() {
    let bench = bench(|b| b).await;
    let (mut a, mut b) = (bench.proxy.raw_mysql().await, bench.proxy.raw_mysql().await);
    a.ok("START TRANSACTION READ WRITE").await;
    b.command(command::QUERY, b"INSERT INTO t (v) VALUES ('never')").await;
    until("it waits", async || bench.proxy.metric("pinion_pool_waiting", &[]).await == 1.0).await;
    a.ok(&format!("KILL QUERY {}", b.greeting.id)).await;
    let Reply::Failed(error) = b.read_reply().await else { panic!("an error") };
    is(&error, 1317, "70100", "canceling statement due to user request");
    a.ok("COMMIT").await;
    assert_eq!(b.scalar("SELECT count(*) FROM t WHERE v = 'never'").await, "0");
}

/// Row `TransactionLost`.
#[tokio::test]
async fn transaction_lost() {
    let bench = bench(|b| b).await;
    let mut client = bench.proxy.raw_mysql().await;
    client.ok("BEGIN").await;
    client.command(command::QUERY, b"SELECT sleep(600)").await;
    let direct = bench.db.direct().await;
    let running =
        "SELECT ifnull(max(id), 0) FROM information_schema.processlist WHERE info LIKE 'SELECT sleep%'";
    let mut id = 0_u32;
    until("it runs", async || {
        id = direct.scalar(running).await;
        id != 0
    })
    .await;
    direct.execute(&format!("KILL {id}")).await;
    let Reply::Failed(error) = client.read_reply().await else { panic!("an error") };
    // The server's own last words are passed on where it had any.
    if error.code != 1927 {
        let message = "The connection to the database server was lost. (The transaction was rolled back.)";
        is(&error, 1213, "40001", message);
    }
}

/// Row `ServerLost`, in the middle of an answer: numbered as the packet that would have come.
#[tokio::test]
async fn server_lost_between_two_results() {
    for capabilities in [capability::NEW, capability::OLD] {
        let mut bench = bench(|b| b).await;
        let capabilities = capabilities | capability::MULTI_STATEMENTS;
        let mut client = RawMySql::connect_with(&bench.proxy.address(), capabilities).await;
        client.command(command::QUERY, b"SELECT 1; SELECT sleep(600)").await;
        assert!(matches!(client.read_reply().await, Reply::Rows(_)));
        bench.db.stop();
        let Reply::Failed(error) = client.read_reply().await else { panic!("an error") };
        let message = "The connection to the database server was lost. (Whether what was under way took effect is \
            not known.)";
        is(&error, 1105, "08S01", message);
        assert!(client.read().await.is_none(), "the connection stays open");
    }
}

/// Row `ServerLost`, while the client sends a file: told behind its end, since the client does not listen before.
#[tokio::test]
async fn server_lost_while_a_file_is_on_its_way() {
    let mut bench = bench(|b| b).await;
    let capabilities = capability::NEW | capability::LOCAL_FILES;
    let mut client = RawMySql::connect_with(&bench.proxy.address(), capabilities).await;
    let load = b"LOAD DATA LOCAL INFILE 'x' INTO TABLE t (v)";
    client.command(command::QUERY, load).await;
    assert!(matches!(client.read_reply().await, Reply::WantsFile(_)));
    client.send(b"one\n").await;
    bench.db.stop();
    client.send_file(&[b"two\n", b"three\n"]).await;
    let Reply::Failed(error) = client.read_reply().await else { panic!("an error") };
    assert_eq!((error.code, error.state.as_str()), (1105, "08S01"), "{error:?}");
    assert!(client.read().await.is_none(), "the connection stays open");
}

/// Row `ServerRefused`: a reload has taken the user away.
#[tokio::test]
async fn server_refused_without_credentials() {
    let bench = bench(|b| b).await;
    let address = bench.proxy.address().user("app2", "app2-password");
    let mut client = RawMySql::connect(&address).await;
    bench.proxy.rewrite_config(|text| {
        let begin = text.find("[[proxy.auth]]\nusername = \"app2\"").unwrap();
        let end = begin + 1 + text[begin + 1..].find("\n[").unwrap();
        [&text[..begin], &text[end + 1..]].concat()
    });
    bench.proxy.sighup();
    until("the user is gone", async || MySqlClient::connect(&address).await.is_err()).await;
    // What is open is used as long as it is there; this takes its place.
    let mut other = bench.proxy.raw_mysql().await;
    other.ok("SELECT 1").await;
    is(&client.error("SELECT 1").await, 1105, "HY000", "This proxy has no credentials for the role app2.");
    other.ok("SELECT 1").await;
}

/// Row `ServerRefused`: the connection cannot be set up.
#[tokio::test]
async fn server_refused_by_its_init_query() {
    let db = Server::mariadb().start().await;
    let builder = Proxy::in_front_of(&db).pool("init_query = \"SELECT nonsense\"");
    let proxy = builder.pool("connection_borrow_timeout = \"2s\"").start().await;
    let error = refused(&proxy.address()).await;
    is(&error, 1105, "HY000", "The database connection could not be set up.");
}

/// Row `ServerRefused`, with the server's own number.
#[tokio::test]
async fn a_database_that_does_not_exist() {
    let bench = bench(|b| b).await;
    bench.db.direct().await.execute("GRANT SELECT ON *.* TO app@'%'").await;
    let error = refused(&bench.proxy.address().database("nowhere")).await;
    is(&error, 1049, "42000", "Unknown database 'nowhere'");
}

fn scripted(rules: &str) -> Plugin {
    Plugin::fixture("scripted").setting(&format!("config = {{ hooks = [\"on-query\"], rules = [{rules}] }}"))
}

/// Row `PluginRejected`.
#[tokio::test]
async fn plugin_rejected() {
    let rules = r#"{ hook = "on-query", contains = "secret", verdict = "reject", text = "no secrets here", hint = "ask politely" },
        { hook = "on-query", contains = "named", verdict = "reject", text = "by name", sqlstate = "PN001" }"#;
    let rules = rules.replace('\n', " ");
    let bench = bench(|b| b.plugin(scripted(&rules))).await;
    let mut client = bench.proxy.raw_mysql().await;
    is(&client.error("SELECT 'secret'").await, 1227, "42000", "no secrets here (ask politely)");
    is(&client.error("SELECT 'named'").await, 1227, "PN001", "by name");
    assert_eq!(client.scalar("SELECT 1").await, "1");
}

/// Row `PluginFailed`.
#[tokio::test]
async fn plugin_failed() {
    let hostile = Plugin::fixture("hostile")
        .setting("on_failure = \"closed\"")
        .setting("config = { hook = \"on-query\", act = \"trap\" }");
    let bench = bench(|b| b.plugin(hostile)).await;
    let error = match RawMySql::open(&bench.proxy.address()).await {
        Err(error) => error,
        Ok(_) => bench.proxy.raw_mysql().await.error("SELECT 'trap'").await,
    };
    is(&error, 1105, "HY000", "The policy plugin \"hostile\" failed, and its on_failure is \"closed\".");
}

/// Row `NoTarget`.
#[tokio::test]
async fn no_target_of_the_role() {
    let db = Server::mariadb().start().await;
    let proxy = Proxy::in_front_of(&db).endpoint("reader", "READ_ONLY").admin().start_without_target().await;
    proxy.target_is(&db, "AVAILABLE", "READ_WRITE").await;
    let error = refused(&proxy.address_of("reader")).await;
    is(&error, 9501, "HY000", "No usable target with the role READ_ONLY.");
    let db = Server::mariadb().setting("read-only", "1").start().await;
    let builder = Proxy::in_front_of(&db).pool("connection_borrow_timeout = \"300ms\"").admin();
    let proxy = builder.start_without_target().await;
    proxy.target_is(&db, "AVAILABLE", "READ_ONLY").await;
    let error = refused(&proxy.address()).await;
    is(&error, 9501, "HY000", "No usable target with the role READ_WRITE.");
}

/// Row `NoTarget`, in the place of the greeting.
#[tokio::test]
async fn no_target_was_reached_yet() {
    let mut db = Server::mariadb().start().await;
    db.stop();
    let builder = Proxy::in_front_of(&db).proxy_setting("handshake_timeout = \"300ms\"");
    let proxy = builder.start_without_target().await;
    is(&turned_away(&proxy.address()).await, 9501, "", "No database server was reached yet.");
}

/// Row `StateLost`: a session has a setting that the connection that serves it next refuses.
#[tokio::test]
async fn state_lost() {
    let bench = bench(|b| b.max_connections(2)).await;
    let direct = bench.db.direct().await;
    direct.execute("GRANT BINLOG ADMIN ON *.* TO app@'%'").await;
    let mut client = bench.proxy.raw_mysql().await;
    client.ok("SET SESSION binlog_format = 'ROW'").await;
    direct.execute("REVOKE BINLOG ADMIN ON *.* FROM app@'%'").await;
    let mut other = bench.proxy.raw_mysql().await;
    // Takes the one connection that there is, whose login had the privilege.
    other.ok("START TRANSACTION READ WRITE").await;
    let error = client.error("SELECT 1").await;
    assert_eq!((error.code, error.state.as_str()), (1105, "HY000"), "{error:?}");
    let front = "The settings of this session could not be made again: ";
    assert!(error.message.starts_with(front) && error.message.contains("BINLOG ADMIN"), "{}", error.message);
    // The way out is a reset.
    other.ok("COMMIT").await;
    client.simple(command::RESET_CONNECTION, &[]).await.unwrap();
    assert_eq!(client.scalar("SELECT 1").await, "1");
}

/// RDS Proxy's 1231, which is the server's own here.
#[tokio::test]
async fn a_character_set_that_no_client_may_use() {
    let bench = bench(|b| b).await;
    let mut client = bench.proxy.raw_mysql().await;
    let text = "Variable 'character_set_client' can't be set to the value of 'ucs2'";
    is(&client.error("SET character_set_client = ucs2").await, 1231, "42000", text);
    is(&client.error("SET NAMES utf16").await, 1231, "42000", &text.replace("ucs2", "utf16"));
    assert_eq!(client.scalar("SELECT @@character_set_client").await, "utf8mb4");
    // By the login, too: the server's answer, or a character set of its own choice.
    let address = bench.proxy.address();
    let mut client = RawMySql::open(&address).await.unwrap();
    let login = Login { collation: 35, ..Login::new(&address, capability::NEW) };
    if client.login(&address, &login).await.is_ok() {
        assert_ne!(client.scalar("SELECT @@character_set_client").await, "ucs2");
    }
}
