//! MySQL logins: every method on both sides, and what is refused. The server side of `caching_sha2_password` is proven
//! in chain: a proxy in front of a proxy, of which the inner one plays that server.
#![allow(clippy::unwrap_used)]

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use pinion_tests::{
    Address, Ca, MySqlClient, Proxy, ProxyBuilder, RawMySql, Server, Target, foreign, poll,
    raw_mysql::{Login, MySqlError, capability},
    until,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

const NATIVE: &str = "MYSQL_NATIVE_PASSWORD";
const SHA2: &str = "MYSQL_CACHING_SHA2_PASSWORD";
const CLEAR: &str = "MYSQL_CLEAR_PASSWORD";
const FULL: &str = "force_full_authentication = true";

/// A login by `method` to begin with; how it went.
async fn login(address: &Address, begin_with: Option<&str>) -> (Vec<String>, Result<RawMySql, MySqlError>) {
    let mut client = RawMySql::open(address).await.unwrap();
    let mut login = Login::new(address, capability::NEW);
    login.plugin = begin_with.map(str::to_owned);
    let result = client.login(address, &login).await;
    (client.steps.clone(), result.map(|()| client))
}

async fn logs_in(address: &Address, begin_with: Option<&str>, steps: &[&str]) {
    let (seen, client) = login(address, begin_with).await;
    let mut client = client.unwrap_or_else(|e| panic!("{seen:?}: {e:?}"));
    assert_eq!(seen, steps);
    assert_eq!(client.scalar("SELECT current_user()").await, format!("{}@%", address.user));
}

/// Refused with 1045, in the same steps and words whether or not there is such a user; then closed.
async fn refuses(address: &Address, begin_with: Option<&str>, steps: &[&str]) {
    for user in [address.user.as_str(), "stranger", "app2' OR 1=1"] {
        for (password, using) in [("wrong", "YES"), ("app-passwore", "YES"), ("", "NO")] {
            let address = address.clone().user(user, password);
            let mut client = RawMySql::open(&address).await.unwrap();
            let mut login = Login::new(&address, capability::NEW);
            login.plugin = begin_with.map(str::to_owned);
            let error = client.login(&address, &login).await.unwrap_err();
            assert!(client.steps.iter().zip(steps).all(|(seen, step)| seen == step), "{:?}", client.steps);
            assert!(password.is_empty() || client.steps.len() == steps.len(), "{user}: {:?}", client.steps);
            let said = format!("Access denied for user '{user}'@'127.0.0.1' (using password: {using})");
            assert_eq!((error.code, error.state.as_str(), error.message), (1045, "28000", said), "{steps:?}");
            assert!(client.read().await.is_none(), "the connection stays open");
        }
    }
}

fn patient(builder: ProxyBuilder) -> ProxyBuilder {
    builder.proxy_setting("failed_logins_per_minute = 0")
}

// ---- the client's side

#[tokio::test]
async fn caching_sha2_takes_its_fast_path() {
    let db = Server::mariadb().start().await;
    let proxy = patient(Proxy::in_front_of(&db).client_auth(SHA2)).start().await;
    let address = proxy.address();
    let steps = ["caching_sha2_password", "fast"];
    logs_in(&address, None, &steps).await;
    let mut wrong = vec!["caching_sha2_password", "full by RSA"];
    refuses(&address, None, &wrong).await;
    for other in ["mysql_native_password", "mysql_clear_password", "client_ed25519", "dialog", ""] {
        logs_in(&address, Some(other), &[other, steps[0], steps[1]]).await;
    }
    wrong.insert(0, "mysql_native_password");
    refuses(&address, Some("mysql_native_password"), &wrong).await;
    proxy.mysql().await.execute("SELECT 1").await;
}

#[tokio::test]
async fn caching_sha2_takes_its_full_path_over_tls() {
    let db = Server::mariadb().start().await;
    let proxy = patient(Proxy::in_front_of(&db).client_auth(SHA2).tls().proxy_setting(FULL)).start().await;
    let steps = ["caching_sha2_password", "full over TLS"];
    logs_in(&proxy.address(), None, &steps).await;
    refuses(&proxy.address(), None, &steps).await;
    let switched = ["mysql_native_password", steps[0], steps[1]];
    logs_in(&proxy.address(), Some(switched[0]), &switched).await;
    proxy.mysql().await.execute("SELECT 1").await;
}

#[tokio::test]
async fn caching_sha2_takes_its_full_path_by_an_rsa_key() {
    let db = Server::mariadb().start().await;
    let proxy = patient(Proxy::in_front_of(&db).client_auth(SHA2).proxy_setting(FULL)).start().await;
    let steps = ["caching_sha2_password", "full by RSA"];
    logs_in(&proxy.address(), None, &steps).await;
    refuses(&proxy.address(), None, &steps).await;
    let switched = ["mysql_native_password", steps[0], steps[1]];
    logs_in(&proxy.address(), Some(switched[0]), &switched).await;
    // A change of user goes the same way.
    let mut client = RawMySql::connect(&proxy.address()).await;
    let other = Login::new(&proxy.address().user("app2", "app2-password"), capability::NEW);
    client.change_user(&other).await.unwrap();
    assert_eq!(client.steps.last().unwrap(), "full by RSA");
    assert_eq!(client.scalar("SELECT current_user()").await, "app2@%");
    proxy.mysql().await.execute("SELECT 1").await;
}

#[tokio::test]
async fn native_passwords_work_with_and_without_a_switch() {
    let db = Server::mariadb().start().await;
    let proxy = patient(Proxy::in_front_of(&db).client_auth(NATIVE)).start().await;
    let native = "mysql_native_password";
    logs_in(&proxy.address(), Some(native), &[native]).await;
    refuses(&proxy.address(), Some(native), &[native]).await;
    logs_in(&proxy.address(), Some("caching_sha2_password"), &["caching_sha2_password", native]).await;
    refuses(&proxy.address(), Some("caching_sha2_password"), &["caching_sha2_password", native]).await;
}

#[tokio::test]
async fn a_cleartext_password_is_taken_over_tls_only() {
    let db = Server::mariadb().start().await;
    let proxy = patient(Proxy::in_front_of(&db).tls().client_auth(CLEAR)).start().await;
    let clear = "mysql_clear_password";
    logs_in(&proxy.address(), Some(clear), &[clear]).await;
    logs_in(&proxy.address(), Some("mysql_native_password"), &["mysql_native_password", clear]).await;
    refuses(&proxy.address(), Some(clear), &[clear]).await;
    let (steps, result) = login(&proxy.address().plain(), Some("mysql_native_password")).await;
    assert_eq!((steps.len(), result.unwrap_err().code), (1, 3159), "it is not asked for");
}

#[tokio::test]
async fn each_user_has_a_method_of_its_own() {
    let db = Server::mariadb().start().await;
    let builder = Proxy::in_front_of(&db).auth("app", "app-password", SHA2);
    let proxy = builder.auth("app2", "app2-password", NATIVE).start().await;
    let address = proxy.address();
    let app2 = address.clone().user("app2", "app2-password");
    logs_in(&address, Some("caching_sha2_password"), &["caching_sha2_password", "fast"]).await;
    logs_in(&app2, Some("caching_sha2_password"), &["caching_sha2_password", "mysql_native_password"]).await;
}

#[tokio::test]
async fn a_client_without_methods_knows_native_passwords_only() {
    let db = Server::mariadb().start().await;
    let builder = Proxy::in_front_of(&db).auth("app", "app-password", NATIVE);
    let proxy = builder.auth("app2", "app2-password", SHA2).start().await;
    let old = capability::OLD & !capability::PLUGIN_AUTH;
    let mut client = RawMySql::open(&proxy.address()).await.unwrap();
    let login = Login::new(&proxy.address(), old).plugin("mysql_native_password");
    client.login(&proxy.address(), &login).await.unwrap();
    assert_eq!(client.scalar("SELECT 1").await, "1");
    let app2 = proxy.address().user("app2", "app2-password");
    let mut client = RawMySql::open(&app2).await.unwrap();
    let login = Login::new(&app2, old).plugin("mysql_native_password");
    let error = client.login(&app2, &login).await.unwrap_err();
    assert_eq!((error.code, error.state.as_str()), (1251, "08004"));
    assert!(client.read().await.is_none());
}

/// A password longer than a nonce, and one in other letters.
#[tokio::test]
async fn passwords_may_be_long_and_in_any_letters() {
    let db = Server::mariadb().start().await;
    let direct = db.direct().await;
    for (at, password) in ["long ".repeat(20), "p\u{e4}\u{df} \u{1f511}'\"\\".to_owned()].iter().enumerate() {
        let quoted = password.replace('\\', "\\\\").replace('\'', "''");
        direct.execute(&format!("SET PASSWORD FOR app@'%' = PASSWORD('{quoted}')")).await;
        for (method, full) in [(NATIVE, false), (SHA2, false), (SHA2, true)] {
            let builder = Proxy::in_front_of(&db).client_auth(method).auth("app", password, method);
            let setting = format!("force_full_authentication = {full}");
            let proxy = builder.proxy_setting(&setting).start().await;
            let address = proxy.address().user("app", password);
            let (steps, client) = login(&address, None).await;
            let mut client = client.unwrap_or_else(|e| panic!("{at} {method} {steps:?}: {e:?}"));
            assert_eq!(client.scalar("SELECT 1").await, "1");
        }
    }
}

#[tokio::test]
async fn tls_is_required_when_the_config_says_so() {
    let db = Server::mariadb().start().await;
    let proxy = Proxy::in_front_of(&db).tls().start().await;
    for address in [proxy.address().plain(), proxy.address().plain().user("stranger", "x")] {
        let (steps, result) = login(&address, None).await;
        let error = result.unwrap_err();
        assert_eq!((steps.len(), error.code, error.state.as_str()), (1, 3159, "HY000"), "{error:?}");
    }
    proxy.mysql().await.execute("SELECT 1").await;
    let proxy = Proxy::in_front_of(&db).tls().proxy_setting("require_tls = false").start().await;
    for address in [proxy.address().plain(), proxy.address()] {
        MySqlClient::connect(&address).await.unwrap().execute("SELECT 1").await;
    }
}

/// Whoever sits in between may put something in clear in front of the handshake.
#[tokio::test]
async fn bytes_in_clear_behind_the_tls_request_end_the_connection() {
    let db = Server::mariadb().start().await;
    let proxy = Proxy::in_front_of(&db).tls().start().await;
    let mut client = RawMySql::open(&proxy.address()).await.unwrap();
    let flags = (capability::NEW | capability::SSL) as u32;
    let start = [flags.to_le_bytes().as_slice(), &[0, 0, 0, 1, 45], &[0; 23]].concat();
    let request = pinion_tests::raw_mysql::packet(1, &start).0;
    let injected = pinion_tests::raw_mysql::packet(2, &[&start, b"app\0\0appdb\0".as_slice()].concat()).0;
    client.send_bytes(&[request, injected].concat()).await;
    if let Some(said) = client.read_bytes_to_end().await.get(4) {
        assert_ne!(*said, 0, "let in");
    }
    let log = db.general_log();
    assert!(!log.contains("app@"), "nobody has logged in: {log}");
}

// ---- the server's side

/// What goes over the wire between a proxy and the server it stands in front of.
struct Tap {
    port: u16,
    heard: Arc<Mutex<Vec<u8>>>,
}

impl Tap {
    async fn on(behind: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let heard = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&heard);
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let Ok(far) = TcpStream::connect(("127.0.0.1", behind)).await else { continue };
                let (near, far) = (near.into_split(), far.into_split());
                for (mut from, mut to) in [(near.0, far.1), (far.0, near.1)] {
                    let kept = Arc::clone(&kept);
                    tokio::spawn(async move {
                        let mut buffer = vec![0; 8192];
                        while let Ok(n @ 1..) = from.read(&mut buffer).await {
                            kept.lock().unwrap().extend_from_slice(&buffer[..n]);
                            if to.write_all(&buffer[..n]).await.is_err() {
                                break;
                            }
                        }
                    });
                }
            }
        });
        Self { port, heard }
    }

    fn holds(&self, bytes: &[u8]) -> bool {
        self.heard.lock().unwrap().windows(bytes.len()).any(|window| window == bytes)
    }
}

/// Two clients share what the outer proxy has, and each is the user that it is.
async fn serves(proxy: &Proxy) {
    let (a, b) = (proxy.mysql().await, proxy.mysql_as("app2").await);
    for _ in 0..3 {
        assert_eq!(a.scalar::<String>("SELECT current_user()").await, "app@%");
        assert_eq!(b.scalar::<String>("SELECT current_user()").await, "app2@%");
    }
    assert_eq!(a.exec("SELECT v FROM t WHERE id = ?", (2,)).await, [[Some("two".to_owned())]]);
    a.execute("SET sql_mode = 'ANSI_QUOTES', @mine = 5").await;
    let c = proxy.mysql().await;
    for _ in 0..3 {
        assert_eq!(a.scalar::<String>("SELECT concat(@@sql_mode, @mine)").await, "ANSI_QUOTES5");
        let other: String = c.scalar("SELECT concat(@@sql_mode, ifnull(@mine, '-'))").await;
        assert!(!other.contains("ANSI_QUOTES") && other.ends_with('-'), "another client's session: {other}");
    }
}

#[tokio::test]
async fn the_server_may_ask_for_caching_sha2_in_each_of_its_ways() {
    let db = Server::mariadb().start().await;
    for (full, tls) in [(false, false), (true, false), (false, true), (true, true)] {
        let mut inner = Proxy::in_front_of(&db).client_auth(SHA2);
        inner = inner.proxy_setting(&format!("force_full_authentication = {full}"));
        inner = if tls { inner.tls() } else { inner };
        let inner = inner.start().await;
        let tap = Tap::on(inner.address().port).await;
        let target = Target { name: format!("127.0.0.1:{}", tap.port), ..inner.as_target(&db) };
        let mode = if tls { "verify-full" } else { "disabled" };
        let outer =
            Proxy::in_front_of(target.clone()).max_connections(3).target_tls(mode, target).start().await;
        serves(&outer).await;
        assert!(!tap.holds(b"app-password"), "in clear on the wire");
        if !tls {
            // The verdict, one byte behind that of the method's own data.
            let (fast, asks) = (b"\x02\0\0\x02\x01\x03".as_slice(), b"\x02\0\0\x02\x01\x04".as_slice());
            assert_eq!((tap.holds(fast), tap.holds(asks)), (!full, full));
            assert_eq!(tap.holds(b"-----BEGIN PUBLIC KEY-----"), full);
        }
        let secure = outer.metric("pinion_database_connections_with_tls", &[]).await;
        assert_eq!(secure >= 1.0, tls, "{secure}");
    }
}

/// A wrong secret at the outer one is the inner one's refusal, and no details of it reach the client.
#[tokio::test]
async fn a_secret_that_the_server_refuses_is_an_error_for_the_client() {
    let db = Server::mariadb().start().await;
    for full in [false, true] {
        let setting = format!("force_full_authentication = {full}");
        let inner = patient(Proxy::in_front_of(&db).client_auth(SHA2).proxy_setting(&setting)).start().await;
        let outer =
            Proxy::in_front_of(inner.as_target(&db)).auth("app2", "not-the-servers", NATIVE).start().await;
        let address = outer.address().user("app2", "not-the-servers");
        let (_, result) = login(&address, None).await;
        let error = result.unwrap_err();
        assert_eq!((error.code, error.state.as_str()), (1045, "28000"), "{error:?}");
        serves_one(&outer).await;
    }
}

async fn serves_one(proxy: &Proxy) {
    assert_eq!(proxy.mysql().await.scalar::<u8>("SELECT 1").await, 1);
}

#[tokio::test]
async fn the_server_may_ask_for_a_cleartext_password_over_tls() {
    let db = Server::mariadb().start().await;
    let inner = Proxy::in_front_of(&db).tls().client_auth(CLEAR).start().await;
    let target = inner.as_target(&db);
    let outer = Proxy::in_front_of(target.clone()).target_tls("verify-full", target).start().await;
    serves(&outer).await;
}

#[tokio::test]
async fn the_server_may_ask_for_native_or_ed25519() {
    let db = Server::mariadb().start().await;
    let tap = Tap::on(db.port()).await;
    let proxy = Proxy::in_front_of(&db).target_port(tap.port).start().await;
    for user in ["app", "ed25519user"] {
        let client = proxy.mysql_as(user).await;
        assert_eq!(client.scalar::<String>("SELECT current_user()").await, format!("{user}@%"));
        assert!(!tap.holds(format!("{user}-password").as_bytes()), "in clear on the wire");
    }
    assert!(tap.holds(b"client_ed25519"));
    // Its own client logs in here by whatever the proxy asks.
    let address = proxy.address().user("ed25519user", "ed25519user-password");
    assert_eq!(foreign::mariadb(&address, &["-N"], "SELECT current_user()").await, "ed25519user@%\n");
}

const CIPHER: &str =
    "SELECT variable_value FROM information_schema.session_status WHERE variable_name = 'Ssl_cipher'";

#[tokio::test]
async fn a_server_with_tls_is_reached_in_each_mode() {
    let db = Server::mariadb().tls().start().await;
    for mode in ["disabled", "preferred", "required", "verify-ca", "verify-full"] {
        let mut builder = Proxy::in_front_of(&db).max_connections(2);
        builder = match mode.starts_with("verify") {
            true => builder.target_tls(mode, &db),
            false => builder.target_tls_unverified(mode),
        };
        let proxy = builder.start().await;
        for user in ["app", "ed25519user"] {
            let cipher = proxy.mysql_as(user).await.rows(CIPHER).await;
            let cipher = cipher[0][0].clone().unwrap_or_default();
            assert_eq!(cipher.is_empty(), mode == "disabled", "{mode}: {cipher:?}");
        }
        let secure = proxy.metric("pinion_database_connections_with_tls", &[]).await;
        assert_eq!(secure >= 1.0, mode != "disabled", "{mode}");
    }
}

#[tokio::test]
async fn a_server_without_tls_is_used_where_the_mode_allows_it() {
    let db = Server::mariadb().setting("skip-ssl", "1").start().await;
    for mode in ["disabled", "preferred"] {
        let proxy = Proxy::in_front_of(&db).target_tls_unverified(mode).start().await;
        serves_one(&proxy).await;
    }
    for mode in ["required", "verify-ca", "verify-full"] {
        not_used(Proxy::in_front_of(&db).target_tls_unverified(mode), mode).await;
    }
}

/// No client is let in by way of such a server, and none is told why.
async fn not_used(builder: ProxyBuilder, why: &str) {
    let builder =
        builder.pool("connection_borrow_timeout = \"1s\"").proxy_setting("handshake_timeout = \"2s\"");
    let proxy = builder.start_without_target().await;
    assert_ne!(proxy.http("/readyz").await.unwrap().0, 200, "{why}");
    let error = match RawMySql::open(&proxy.address()).await {
        Err(error) => error,
        Ok(mut client) => {
            let login = Login::new(&proxy.address(), capability::NEW);
            client.login(&proxy.address(), &login).await.unwrap_err()
        }
    };
    assert!([9501, 1105].contains(&error.code), "{why}: {error:?}");
    assert!(!error.message.to_lowercase().contains("certificate"), "{why}: {error:?}");
    proxy.logged("target is unavailable").await;
}

#[tokio::test]
async fn a_server_of_another_authority_or_name_is_not_used() {
    let db = Server::mariadb().tls().start().await;
    let stranger = Target { ca: Some(Ca::new()), ..Target::from(&db) };
    for mode in ["verify-ca", "verify-full"] {
        not_used(Proxy::in_front_of(&db).target_tls(mode, stranger.clone()), mode).await;
    }
    // Of the right authority, for another name: seen by `verify-full` alone.
    let inner = Proxy::in_front_of(&db).tls().start().await;
    let target = inner.as_target(&db);
    target.ca.as_ref().unwrap().issue_for(&["elsewhere.invalid"], inner.dir());
    let address = inner.address();
    until("the other certificate is shown", async || MySqlClient::connect(&address).await.is_err()).await;
    let checked = Proxy::in_front_of(target.clone()).target_tls("verify-ca", target.clone()).start().await;
    serves_one(&checked).await;
    not_used(Proxy::in_front_of(target.clone()).target_tls("verify-full", target), "another name").await;
}

// ---- secrets, limits, and what stays inside

#[tokio::test]
async fn a_rotated_secret_works_without_restart() {
    let db = Server::mariadb().start().await;
    for method in [NATIVE, SHA2] {
        let direct = db.direct().await;
        direct.execute("SET PASSWORD FOR app@'%' = PASSWORD('app-password')").await;
        let proxy = patient(Proxy::in_front_of(&db).max_connections(2).client_auth(method)).start().await;
        let old = proxy.mysql().await;
        old.execute("SELECT 1").await;
        direct.execute("SET PASSWORD FOR app@'%' = PASSWORD('rotated-1')").await;
        proxy.rotate_secret("app", "rotated-1");
        let fresh = proxy.address().user("app", "rotated-1");
        let client = poll("the new password works", async || MySqlClient::connect(&fresh).await.ok()).await;
        // A new server connection logs in with it too, and the old client goes on.
        client.execute("START TRANSACTION READ WRITE").await;
        old.execute("START TRANSACTION READ WRITE").await;
        assert_eq!(proxy.mysql_refusal(&proxy.address()).await, (1045, "28000".to_owned()));
    }
}

/// The server's password changes and the file soon after: the login that failed is tried again with what the file then
/// says.
#[tokio::test]
async fn a_failed_server_login_reads_the_secret_again() {
    let db = Server::mariadb().start().await;
    let proxy = patient(Proxy::in_front_of(&db).max_connections(2)).start().await;
    let a = proxy.mysql().await;
    a.execute("SELECT 1").await;
    db.direct().await.execute("SET PASSWORD FOR app@'%' = PASSWORD('rotated-2')").await;
    proxy.rotate_secret("app", "rotated-2");
    a.execute("START TRANSACTION READ WRITE").await;
    let b = poll("the new password works", async || {
        MySqlClient::connect(&proxy.address().user("app", "rotated-2")).await.ok()
    })
    .await;
    assert_eq!(b.scalar::<u8>("SELECT 1").await, 1, "on a connection that had to be opened");
}

#[tokio::test]
async fn a_secret_may_come_from_the_environment() {
    let db = Server::mariadb().start().await;
    let secret = "{\"username\": \"app\", \"password\": \"app-password\"}";
    let proxy = Proxy::in_front_of(&db).secret_in_env(secret).start().await;
    serves_one(&proxy).await;
}

#[tokio::test]
async fn failed_logins_are_limited_by_address() {
    let db = Server::mariadb().start().await;
    let proxy = Proxy::in_front_of(&db).proxy_setting("failed_logins_per_minute = 5").start().await;
    let wrong = proxy.address().user("app", "wrong");
    for _ in 0..5 {
        assert_eq!(proxy.mysql_refusal(&wrong).await.0, 1045);
    }
    assert_eq!(login(&wrong, None).await.1.unwrap_err().code, 1040);
    assert_eq!(login(&proxy.address(), None).await.1.unwrap_err().code, 1040, "right password or not");
    let mut elsewhere = RawMySql::open_from(&proxy.address(), [127, 0, 0, 2]).await.unwrap();
    let right = Login::new(&proxy.address(), capability::NEW);
    elsewhere.login(&proxy.address(), &right).await.unwrap();
}

/// Wrong passwords of a change of user count too.
#[tokio::test]
async fn passwords_are_not_guessed_by_changes_of_user() {
    let db = Server::mariadb().start().await;
    let proxy = Proxy::in_front_of(&db).proxy_setting("failed_logins_per_minute = 3").start().await;
    let address = proxy.address();
    let mut codes = Vec::new();
    for _ in 0..5 {
        let Ok(mut client) = RawMySql::open(&address).await else { break };
        if client.login(&address, &Login::new(&address, capability::NEW)).await.is_err() {
            break;
        }
        let wrong = Login::new(&address.clone().user("app2", "wrong"), capability::NEW);
        codes.push(client.change_user(&wrong).await.unwrap_err().code);
    }
    assert_eq!(codes, [1045, 1045, 1045]);
}

#[tokio::test]
async fn a_handshake_may_not_take_forever() {
    let db = Server::mariadb().start().await;
    let builder = Proxy::in_front_of(&db).tls().proxy_setting("require_tls = false");
    let proxy = builder.proxy_setting("handshake_timeout = \"500ms\"").start().await;
    let start = [(capability::NEW as u32 | 1 << 11).to_le_bytes().as_slice(), &[0; 28]].concat();
    for said in [Vec::new(), b"\x20\0\0\x01".to_vec(), pinion_tests::raw_mysql::packet(1, &start).0] {
        let begun = Instant::now();
        let mut client = RawMySql::open(&proxy.address()).await.unwrap();
        client.send_bytes(&said).await;
        client.read_bytes_to_end().await;
        assert!(begun.elapsed() >= Duration::from_millis(400), "closed after {:?}", begun.elapsed());
    }
}

#[tokio::test]
async fn a_login_may_not_be_of_any_length() {
    let db = Server::mariadb().start().await;
    let proxy = Proxy::in_front_of(&db).start().await;
    let address = proxy.address();
    let mut long = Login::new(&address, capability::NEW);
    long.attributes = vec![("program_name".to_owned(), "x".repeat(100_000))];
    let mut client = RawMySql::open(&address).await.unwrap();
    let error = client.login(&address, &long).await.unwrap_err();
    assert_eq!((error.code, error.message.as_str()), (1043, "Bad handshake"));
    // A length alone is enough: nothing of it is waited for or held.
    let mut client = RawMySql::open(&address).await.unwrap();
    client.send_bytes(b"\xff\xff\xff\x01").await;
    assert_eq!(client.read_bytes_to_end().await.get(5..7), Some(1043_u16.to_le_bytes().as_slice()));
    long.attributes = vec![("program_name".to_owned(), "x".repeat(60_000))];
    let mut client = RawMySql::open(&address).await.unwrap();
    client.login(&address, &long).await.unwrap();
}

#[tokio::test]
async fn strangers_without_a_login_are_limited_apart() {
    let db = Server::mariadb().start().await;
    let proxy = Proxy::in_front_of(&db).proxy_setting("max_unauthenticated = 2").start().await;
    let inside = proxy.mysql().await;
    let mut strangers = Vec::new();
    for _ in 0..2 {
        strangers.push(RawMySql::open(&proxy.address()).await.unwrap());
    }
    let error = RawMySql::open(&proxy.address()).await.expect_err("one more");
    assert_eq!(error.code, 1040, "{error:?}");
    inside.execute("SELECT 1").await;
    drop(strangers);
    poll("a place is free", async || MySqlClient::connect(&proxy.address()).await.ok()).await;
}

/// Passwords, the answers made of them and the secrets' files stay out of the log, at any level.
#[tokio::test]
async fn passwords_never_appear_in_the_log() {
    let db = Server::mariadb().start().await;
    for method in [NATIVE, SHA2, CLEAR] {
        let proxy = patient(Proxy::in_front_of(&db))
            .log_level("trace")
            .client_auth(method)
            .auth("app2", "not-the-servers-password", method)
            .pool("connection_borrow_timeout = \"1s\"")
            .proxy_setting(FULL)
            .tls()
            .start()
            .await;
        let begin = (method == CLEAR).then_some("mysql_clear_password");
        for (user, password) in [
            ("app", "app-password"),
            ("ed25519user", "ed25519user-password"),
            ("app", "my-typed-password"),
            ("app2", "not-the-servers-password"),
        ] {
            let (_, result) = login(&proxy.address().user(user, password), begin).await;
            assert_eq!(result.is_ok(), password == format!("{user}-password"), "{user} {password}");
        }
        let log = proxy.log();
        for secret in [
            "app-password",
            "not-the-servers-password",
            "my-typed-password",
            "user-password",
            "monitor-password",
        ] {
            assert!(!log.contains(secret), "{secret} is in the log");
        }
    }
}

/// The database is asked for only then: a client that may not log in learns nothing about it.
#[tokio::test]
async fn a_database_that_does_not_exist_is_the_servers_own_error() {
    let db = Server::mariadb().start().await;
    let proxy = Proxy::in_front_of(&db).start().await;
    let nowhere = proxy.address().database("nowhere");
    let error = login(&nowhere, None).await.1.unwrap_err();
    let direct = login(&db.address().database("nowhere"), None).await.1.unwrap_err();
    assert_eq!((error, direct.code), (direct.clone(), 1044));
    assert_eq!(proxy.mysql_refusal(&nowhere.user("app", "wrong")).await.0, 1045);
}
