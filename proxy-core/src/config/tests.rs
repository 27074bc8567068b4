#![allow(clippy::unwrap_used)]

use std::{collections::BTreeSet, fmt::Write as _};

use rcgen::{CertifiedKey, generate_simple_self_signed};
use tempfile::TempDir;

use super::{
    reader::keys_of,
    schema::{KEYS, Key, Kind, Reload, WhenAbsent},
    *,
};

const MANUAL: &str = include_str!("../../../docs/configuration.md");

/// What most tests start from; the line numbers of the refusals below are this text's.
const BASE: &str = r#"[metrics]
listen = "127.0.0.1:9930"

[[proxy]]
name = "orders"
engine_family = "POSTGRESQL"
require_tls = true
tls = { certificate = "server.crt", key = "server.key" }

[[proxy.auth]]
username = "app"
secret = { file = "secrets/app.json" }

[proxy.pool]
max_connections_percent = 75

[[proxy.target]]
address = "db1.internal:5432"

[[proxy.endpoint]]
name = "default"
listen = "127.0.0.1:6432"
"#;

const PASSWORD: &str = "correct horse battery staple";

/// A directory with every file that the tests and the manual's example name.
fn files() -> TempDir {
    let dir = TempDir::new().unwrap();
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let other = generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    std::fs::create_dir(dir.path().join("secrets")).unwrap();
    let secret =
        |username: &str| format!(r#"{{"username": "{username}", "password": "{PASSWORD}", "port": 5432}}"#);
    for (name, content) in [
        ("server.crt", cert.pem()),
        ("server.key", signing_key.serialize_pem()),
        ("other.key", other.signing_key.serialize_pem()),
        ("ca.pem", other.cert.pem()),
        ("broken.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".to_owned()),
        ("cut.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n".to_owned()),
        ("secrets/app.json", secret("app")),
        ("secrets/pinion_monitor.json", secret("pinion_monitor")),
        ("secrets/text", PASSWORD.to_owned()),
        ("secrets/string.json", format!("\"{PASSWORD}\"")),
        ("secrets/nobody.json", format!(r#"{{"password": "{PASSWORD}"}}"#)),
        ("secrets/number.json", r#"{"username": "app", "password": 86753090}"#.to_owned()),
        ("secrets/blank.json", r#"{"username": "app", "password": ""}"#.to_owned()),
        ("secrets/no-password.json", r#"{"username": "app"}"#.to_owned()),
        ("secrets/huge.json", " ".repeat(70_000)),
        ("plugin.wasm", String::new()),
        ("next.wasm", String::new()),
        ("vectors.toml", String::new()),
        ("secrets/admin-token", "\n0123456789abcdef0123456789abcdef\n".to_owned()),
        ("token", "0123456789abcdef".to_owned()),
    ] {
        std::fs::write(dir.path().join(name), content).unwrap();
    }
    dir
}

fn env(name: &str) -> Option<OsString> {
    let json = match name {
        "APP_SECRET" => format!(r#"{{"username": "app", "password": "{PASSWORD}"}}"#),
        "BARE_PASSWORD" => PASSWORD.to_owned(),
        "ADMIN_TOKEN" => "fedcba9876543210".to_owned(),
        _ => return None,
    };
    Some(json.into())
}

fn parse(dir: &TempDir, text: &str) -> Result<Config, ConfigErrors> {
    build::config(text, Path::new("pinion.toml"), dir.path(), &env)
}

/// `BASE` with one piece of it replaced.
fn edited(find: &str, replace: &str) -> String {
    assert_eq!(BASE.matches(find).count(), 1, "{find:?} must stand once in the base");
    BASE.replace(find, replace)
}

#[test]
fn every_refusal_says_where_what_and_what_is_allowed() {
    let dir = files();
    let mut wrong = String::new();
    for (find, replace, expected) in BAD {
        let errors = parse(&dir, &edited(find, replace)).expect_err(replace);
        let shown = errors.to_string();
        assert!(!shown.contains(PASSWORD) && !shown.contains("86753090"), "a secret stands in {shown}");
        let expected: Vec<_> = expected.iter().map(|line| format!("pinion.toml:{line}")).collect();
        if errors.messages() != expected {
            writeln!(wrong, "{replace:?}\n  expected {expected:#?}\n  got {:#?}", errors.messages()).unwrap();
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

/// What of `BASE` is replaced, by what, and the messages that must come, without the file's name.
#[rustfmt::skip] // one case a line
const BAD: &[(&str, &str, &[&str])] = &[
    // Syntax.
    (r#"name = "orders""#, "name = ", &["5:8: is not TOML: string values must be quoted, expected literal string; allowed: TOML 1.1"]),
    (r#"name = "orders""#, "name = \"orders\"\nname = \"orders\"", &["6:1: is not TOML: duplicate key; allowed: TOML 1.1"]),
    // Unknown keys.
    ("require_tls", "requiretls", &["7:1: proxy.orders.requiretls: is not a key; did you mean require_tls?; allowed: name, engine_family, require_tls, idle_client_timeout, max_client_lifetime, handshake_timeout, max_client_connections, max_unauthenticated, failed_logins_per_minute, profile, server_version, force_full_authentication, tls, auth, pool, target, endpoint, monitor, plugin"]),
    ("max_connections_percent = 75", "max_conections_percent = 75", &["15:1: proxy.orders.pool.max_conections_percent: is not a key; did you mean max_connections_percent?; allowed: max_connections_percent, max_idle_connections_percent, connection_borrow_timeout, max_pinned_percent, max_carried_table_bytes, session_pinning_filters, init_query, max_server_lifetime, idle_server_timeout, max_prepared_statements"]),
    ("[metrics]\n", "[metrics]\ndrain_timeout = \"10s\"\n", &["2:1: metrics.drain_timeout: is not a key here; it belongs at the top of the file; allowed: listen"]),
    ("[metrics]\n", "[metrics]\ninit_query = \"\"\n", &["2:1: metrics.init_query: is not a key here; it belongs in proxy.pool; allowed: listen"]),
    ("[metrics]", "colour = \"red\"\n[metrics]", &["1:1: colour: is not a key; allowed: worker_threads, drain_timeout, log, metrics, admin, plugins, audit, proxy"]),
    (r#"{ file = "secrets/app.json" }"#, "{ file = \"secrets/app.json\", \"pass word\" = \"x\" }", &["12:39: proxy.orders.auth.app.secret.\"pass word\": is not a key; allowed: file, env"]),
    // Known words that are not in this build.
    (r#"{ file = "secrets/app.json" }"#, r#"{ aws = "arn:aws:secretsmanager:eu-west-1:1:secret:x" }"#, &["12:12: proxy.orders.auth.app.secret.aws: AWS Secrets Manager is not in this build; allowed: leave it out"]),
    (r#""POSTGRESQL""#, r#""ORACLE""#, &["6:17: proxy.orders.engine_family: \"ORACLE\" is not known; allowed: \"POSTGRESQL\" or \"MYSQL\""]),
    ("\n\n[[proxy.auth]]", "\nserver_version = \"8.4.0\"\n\n[[proxy.auth]]", &["9:18: proxy.orders.server_version: is for engine_family = \"MYSQL\" only; allowed: leave it out"]),
    ("[proxy.pool]", "iam_auth = \"REQUIRED\"\n[proxy.pool]", &["14:1: proxy.orders.auth.app.iam_auth: IAM authentication is not in this build; allowed: leave it out"]),
    ("require_tls", "default_auth_scheme = \"IAM_AUTH\"\nrequire_tls", &["7:1: proxy.orders.default_auth_scheme: IAM authentication is not in this build; allowed: leave it out"]),
    ("max_connections_percent = 75", "max_pinned_percent = 0", &["15:22: proxy.orders.pool.max_pinned_percent: 0 is out of range; allowed: 1 to 100"]),
    ("[proxy.pool]", "client_password_auth_type = \"MYSQL_NATIVE_PASSWORD\"\n[proxy.pool]", &["14:29: proxy.orders.auth.app.client_password_auth_type: \"MYSQL_NATIVE_PASSWORD\" is not for this engine_family; allowed: \"POSTGRES_SCRAM_SHA_256\", \"POSTGRES_MD5\" or, with require_tls = true, \"POSTGRES_CLEARTEXT\"; for MySQL \"MYSQL_CACHING_SHA2_PASSWORD\", \"MYSQL_NATIVE_PASSWORD\" or, with require_tls = true, \"MYSQL_CLEAR_PASSWORD\""]),
    // Types.
    ("require_tls = true", "require_tls = \"yes\"", &["7:15: proxy.orders.require_tls: is a string, not a boolean; allowed: true or false"]),
    (r#"name = "orders""#, "name = 7", &["5:8: proxy.name: is an integer, not a string; allowed: letters and digits with single hyphens between, a letter first, 1 to 63 long"]),
    ("max_connections_percent = 75", "max_connections_percent = \"75%\"", &["15:27: proxy.orders.pool.max_connections_percent: is a string, not an integer; allowed: 1 to 100"]),
    ("max_connections_percent = 75", "max_connections_percent = 75.5", &["15:27: proxy.orders.pool.max_connections_percent: is a float, not an integer; allowed: 1 to 100"]),
    ("max_connections_percent = 75", "session_pinning_filters = \"EXCLUDE_VARIABLE_SETS\"", &["15:27: proxy.orders.pool.session_pinning_filters: is a string, not a list; allowed: a list that is empty or has \"EXCLUDE_VARIABLE_SETS\""]),
    ("[metrics]\nlisten = \"127.0.0.1:9930\"", "metrics = true", &["1:11: metrics: is a boolean, not a table; allowed: a table with listen"]),
    ("[[proxy.target]]", "[proxy.target]", &["17:1: proxy.orders.target: is a table, not a list of tables; allowed: one or more [[proxy.target]]"]),
    (r#"{ file = "secrets/app.json" }"#, "\"hunter2\"", &["12:10: proxy.orders.auth.app.secret: is a string, not a table; allowed: { file = \"…\" } or { env = \"…\" }"]),
    ("[[proxy.auth]]\nusername = \"app\"\nsecret = { file = \"secrets/app.json\" }", "auth = [\"app\"]", &["10:9: proxy.orders.auth: is a string, not a table; allowed: one or more [[proxy.auth]]"]),
    // Missing.
    (r#"name = "orders""#, "", &["4:1: proxy.name: is missing; allowed: letters and digits with single hyphens between, a letter first, 1 to 63 long"]),
    ("listen = \"127.0.0.1:9930\"", "", &["1:1: metrics.listen: is missing; allowed: an IP address and a port such as \"127.0.0.1:6432\" or \"[::1]:6432\""]),
    ("[[proxy.target]]\naddress = \"db1.internal:5432\"", "", &["4:1: proxy.orders.target: is missing; allowed: one or more [[proxy.target]]"]),
    ("[[proxy.auth]]\nusername = \"app\"\nsecret = { file = \"secrets/app.json\" }", "auth = []", &["10:8: proxy.orders.auth: is empty; allowed: one or more [[proxy.auth]]"]),
    (BASE, "worker_threads = 2", &["1:1: proxy: is missing; allowed: one or more [[proxy]]"]),
    ("secret = { file = \"secrets/app.json\" }", "", &["10:1: proxy.orders.auth.app.secret: is missing; allowed: { file = \"…\" } or { env = \"…\" }"]),
    (r#"{ file = "secrets/app.json" }"#, "{}", &["12:10: proxy.orders.auth.app.secret: names no secret; allowed: { file = \"…\" } or { env = \"…\" }"]),
    // Durations.
    ("require_tls", "idle_client_timeout = 1800\nrequire_tls", &["7:23: proxy.orders.idle_client_timeout: 1800 has no unit; allowed: \"1s\" to \"8h\" (units ms, s, m, h, d)"]),
    ("require_tls", "idle_client_timeout = \"1800\"\nrequire_tls", &["7:23: proxy.orders.idle_client_timeout: \"1800\" has no unit; allowed: \"1s\" to \"8h\" (units ms, s, m, h, d)"]),
    ("require_tls", "idle_client_timeout = \"9h\"\nrequire_tls", &["7:23: proxy.orders.idle_client_timeout: \"9h\" is out of range; allowed: \"1s\" to \"8h\" (units ms, s, m, h, d)"]),
    ("require_tls", "handshake_timeout = \"0s\"\nrequire_tls", &["7:21: proxy.orders.handshake_timeout: \"0s\" is out of range; allowed: \"100ms\" to \"10m\" (units ms, s, m, h, d)"]),
    ("max_connections_percent = 75", "connection_borrow_timeout = \"2 fortnights\"", &["15:29: proxy.orders.pool.connection_borrow_timeout: \"2 fortnights\" is not a duration; allowed: \"0s\" to \"1h\" (units ms, s, m, h, d)"]),
    ("max_connections_percent = 75", "connection_borrow_timeout = \"18446744073709551615s 1000ms\"", &["15:29: proxy.orders.pool.connection_borrow_timeout: \"18446744073709551615s 1000ms\" is not a duration; allowed: \"0s\" to \"1h\" (units ms, s, m, h, d)"]),
    ("[metrics]", "drain_timeout = \"-1s\"\n[metrics]", &["1:17: drain_timeout: \"-1s\" is not a duration; allowed: \"0s\" to \"1h\" (units ms, s, m, h, d)"]),
    // Numbers.
    ("max_connections_percent = 75", "max_connections_percent = 0", &["15:27: proxy.orders.pool.max_connections_percent: 0 is out of range; allowed: 1 to 100"]),
    ("max_connections_percent = 75", "max_connections_percent = 0x65", &["15:27: proxy.orders.pool.max_connections_percent: 0x65 is out of range; allowed: 1 to 100"]),
    ("max_connections_percent = 75", "max_connections_percent = 75\nmax_idle_connections_percent = 76", &["16:32: proxy.orders.pool.max_idle_connections_percent: 76 is out of range; allowed: 0 to max_connections_percent"]),
    ("max_connections_percent = 75", "max_prepared_statements = 10001", &["15:27: proxy.orders.pool.max_prepared_statements: 10001 is out of range; allowed: 1 to 10000"]),
    ("[metrics]", "worker_threads = 0\n[metrics]", &["1:18: worker_threads: 0 is out of range; allowed: 1 to 1024"]),
    ("require_tls", "max_client_connections = -1\nrequire_tls", &["7:26: proxy.orders.max_client_connections: -1 is out of range; allowed: 1 to 1000000"]),
    ("require_tls", "failed_logins_per_minute = 99999999999999999999\nrequire_tls", &["7:28: proxy.orders.failed_logins_per_minute: 99999999999999999999 is out of range; allowed: 0 to 1000000"]),
    // Words.
    ("require_tls", "profile = \"fast\"\nrequire_tls", &["7:11: proxy.orders.profile: \"fast\" is not known; allowed: \"smart\" or \"rds\""]),
    (r#""POSTGRESQL""#, r#""postgresql""#, &["6:17: proxy.orders.engine_family: \"postgresql\" is not known; allowed: \"POSTGRESQL\" or \"MYSQL\""]),
    ("[metrics]", "[log]\nformat = \"xml\"\n[metrics]", &["2:10: log.format: \"xml\" is not known; allowed: \"text\" or \"json\""]),
    ("[metrics]", "[log]\nlevel = \"loud\"\n[metrics]", &["2:9: log.level: \"loud\" is not a level; allowed: off, error, warn, info, debug or trace, or a list such as \"info,pinion=debug\""]),
    ("[metrics]", "[log]\nlevel = \"info,pinion=loud\"\n[metrics]", &["2:9: log.level: \"info,pinion=loud\" is not a filter; allowed: off, error, warn, info, debug or trace, or a list such as \"info,pinion=debug\""]),
    (r#"address = "db1.internal:5432""#, "address = \"db1.internal:5432\"\ntls = \"verify_full\"", &["19:7: proxy.orders.target.tls: \"verify_full\" is not known; allowed: \"disabled\", \"preferred\", \"required\", \"verify-ca\" or \"verify-full\""]),
    ("max_connections_percent = 75", "session_pinning_filters = [\"EXCLUDE_VARIABLE_SETS\", \"ALL\"]", &["15:53: proxy.orders.pool.session_pinning_filters: \"ALL\" is not known; allowed: a list that is empty or has \"EXCLUDE_VARIABLE_SETS\""]),
    ("max_connections_percent = 75", "init_query = \"SELECT '\\u0000'\"", &["15:14: proxy.orders.pool.init_query: has a NUL; allowed: SQL text, no NUL; empty is none"]),
    // Names and addresses.
    (r#"name = "orders""#, r#"name = "or--ders""#, &["5:8: proxy.or--ders.name: \"or--ders\" is not a name; allowed: letters and digits with single hyphens between, a letter first, 1 to 63 long"]),
    (r#"name = "orders""#, r#"name = "7up.\n""#, &["5:8: proxy.\"7up.\\n\".name: \"7up.\\n\" is not a name; allowed: letters and digits with single hyphens between, a letter first, 1 to 63 long"]),
    (r#"listen = "127.0.0.1:6432""#, r#"listen = "localhost:6432""#, &["22:10: proxy.orders.endpoint.default.listen: \"localhost:6432\" is not an address; allowed: an IP address and a port such as \"127.0.0.1:6432\" or \"[::1]:6432\""]),
    (r#""db1.internal:5432""#, r#""db1.internal""#, &["18:11: proxy.orders.target.address: \"db1.internal\" has no port; allowed: a host and a port such as \"db1.internal:5432\" or \"[::1]:5432\""]),
    (r#""db1.internal:5432""#, r#""db1.internal:99999""#, &["18:11: proxy.orders.target.address: \"db1.internal:99999\" has no valid port; allowed: a host and a port such as \"db1.internal:5432\" or \"[::1]:5432\""]),
    (r#""db1.internal:5432""#, r#""::1:5432""#, &["18:11: proxy.orders.target.address: \"::1:5432\" has no valid host; allowed: a host and a port such as \"db1.internal:5432\" or \"[::1]:5432\""]),
    (r#"name = "default""#, "name = \"default\"\nallow = [\"10.0.0.0/8\", \"10.0.0.0/33\", 7]", &["22:24: proxy.orders.endpoint.default.allow: \"10.0.0.0/33\" is not a network; allowed: a list of networks or addresses such as \"10.0.0.0/8\", \"2001:db8::1\"", "22:39: proxy.orders.endpoint.default.allow: is an integer, not a string; allowed: a list of networks or addresses such as \"10.0.0.0/8\", \"2001:db8::1\""]),
    // Files and variables.
    ("secrets/app.json", "secrets/none.json", &["12:19: proxy.orders.auth.app.secret.file: \"secrets/none.json\" cannot be read: No such file or directory (os error 2); allowed: the path of a file with JSON: { \"username\": \"…\", \"password\": \"…\" }"]),
    ("secrets/app.json", "secrets", &["12:19: proxy.orders.auth.app.secret.file: \"secrets\" is not a file; allowed: the path of a file with JSON: { \"username\": \"…\", \"password\": \"…\" }"]),
    ("secrets/app.json", "", &["12:19: proxy.orders.auth.app.secret.file: is empty; allowed: the path of a file with JSON: { \"username\": \"…\", \"password\": \"…\" }"]),
    ("secrets/app.json", "secrets/text", &["12:19: proxy.orders.auth.app.secret.file: \"secrets/text\" is not JSON (line 1 column 1); allowed: the path of a file with JSON: { \"username\": \"…\", \"password\": \"…\" }"]),
    ("secrets/app.json", "secrets/string.json", &["12:19: proxy.orders.auth.app.secret.file: \"secrets/string.json\" is not a JSON object; allowed: the path of a file with JSON: { \"username\": \"…\", \"password\": \"…\" }"]),
    ("secrets/app.json", "secrets/nobody.json", &["12:19: proxy.orders.auth.app.secret.file: \"secrets/nobody.json\" has no username; allowed: the path of a file with JSON: { \"username\": \"…\", \"password\": \"…\" }"]),
    ("secrets/app.json", "secrets/number.json", &["12:19: proxy.orders.auth.app.secret.file: \"secrets/number.json\" has a password that is not a string; allowed: the path of a file with JSON: { \"username\": \"…\", \"password\": \"…\" }"]),
    ("secrets/app.json", "secrets/blank.json", &["12:19: proxy.orders.auth.app.secret.file: \"secrets/blank.json\" has an empty password; allowed: the path of a file with JSON: { \"username\": \"…\", \"password\": \"…\" }"]),
    ("secrets/app.json", "secrets/no-password.json", &["12:19: proxy.orders.auth.app.secret.file: \"secrets/no-password.json\" has no password; allowed: the path of a file with JSON: { \"username\": \"…\", \"password\": \"…\" }"]),
    ("secrets/app.json", "secrets/huge.json", &["12:19: proxy.orders.auth.app.secret.file: \"secrets/huge.json\" is over 65536 bytes; allowed: the path of a file with JSON: { \"username\": \"…\", \"password\": \"…\" }"]),
    ("secrets/app.json", "secrets/pinion_monitor.json", &["12:19: proxy.orders.auth.app.secret.file: \"secrets/pinion_monitor.json\" has a username other than \"app\"; allowed: the path of a file with JSON: { \"username\": \"…\", \"password\": \"…\" }"]),
    (r#"{ file = "secrets/app.json" }"#, r#"{ env = "NOT_SET" }"#, &["12:18: proxy.orders.auth.app.secret.env: \"NOT_SET\" is not set; allowed: the name of an environment variable with JSON: { \"username\": \"…\", \"password\": \"…\" }"]),
    (r#"{ file = "secrets/app.json" }"#, r#"{ env = "BARE_PASSWORD" }"#, &["12:18: proxy.orders.auth.app.secret.env: \"BARE_PASSWORD\" is not JSON (line 1 column 1); allowed: the name of an environment variable with JSON: { \"username\": \"…\", \"password\": \"…\" }"]),
    ("server.crt", "none.crt", &["8:23: proxy.orders.tls.certificate: \"none.crt\" cannot be read: No such file or directory (os error 2); allowed: the path of a PEM file with the chain, leaf first"]),
    ("server.crt", "server.key", &["8:23: proxy.orders.tls.certificate: \"server.key\" has no certificate in PEM; allowed: the path of a PEM file with the chain, leaf first"]),
    ("server.crt", "broken.pem", &["8:23: proxy.orders.tls.certificate: \"broken.pem\" has a certificate that cannot be parsed; allowed: the path of a PEM file with the chain, leaf first"]),
    ("server.crt", "cut.pem", &["8:23: proxy.orders.tls.certificate: \"cut.pem\" is not valid PEM; allowed: the path of a PEM file with the chain, leaf first"]),
    ("server.key", "server.crt", &["8:43: proxy.orders.tls.key: \"server.crt\" has no private key in PEM; allowed: the path of a PEM file with the certificate's private key"]),
    ("server.key", "other.key", &["8:43: proxy.orders.tls.key: \"other.key\" is not the key of the certificate; allowed: the path of a PEM file with the certificate's private key"]),
    (r#"address = "db1.internal:5432""#, "address = \"db1.internal:5432\"\nca = \"broken.pem\"", &["19:6: proxy.orders.target.ca: \"broken.pem\" has a certificate that cannot be parsed; allowed: the path of a PEM file with the trusted roots"]),
    // The admin API.
    ("[metrics]", "[admin]\nlisten = \"0.0.0.0:9931\"\ntoken = { file = \"token\" }\n[metrics]", &["2:10: admin.listen: \"0.0.0.0:9931\" is beyond loopback, and TLS for this listener is not in this build yet; allowed: \"unix:\" and the path of a socket, or a loopback address and a port such as \"127.0.0.1:9931\""]),
    ("[metrics]", "[admin]\nlisten = \"127.0.0.1:9931\"\n[metrics]", &["2:10: admin.listen: would let in anyone on this machine, since there is no token; allowed: token = { file = \"…\" } or { env = \"…\" }, or a Unix socket"]),
    ("[metrics]", "[admin]\nlisten = \"127.0.0.1:9930\"\ntoken = { file = \"token\" }\n[metrics]", &["2:10: admin.listen: 127.0.0.1:9930 clashes with 127.0.0.1:9930 on line 5; allowed: an address and port that nothing else listens on"]),
    ("[metrics]", "[admin]\nlisten = \"admin.sock\"\n[metrics]", &["2:10: admin.listen: \"admin.sock\" is not an address; allowed: \"unix:\" and the path of a socket, or a loopback address and a port such as \"127.0.0.1:9931\""]),
    ("[metrics]", "[admin]\nlisten = \"unix:\"\n[metrics]", &["2:10: admin.listen: names no socket; allowed: \"unix:\" and the path of a socket, or a loopback address and a port such as \"127.0.0.1:9931\""]),
    ("[metrics]", "[admin]\n[metrics]", &["1:1: admin.listen: is missing; allowed: \"unix:\" and the path of a socket, or a loopback address and a port such as \"127.0.0.1:9931\""]),
    ("[metrics]", "[admin]\nlisten = \"unix:a\"\ntoken = {}\n[metrics]", &["3:9: admin.token: names no token; allowed: { file = \"…\" } or { env = \"…\" }"]),
    ("[metrics]", "[admin]\nlisten = \"unix:a\"\ntoken = { file = \"secrets/text\" }\n[metrics]", &["3:18: admin.token.file: \"secrets/text\" is no token; allowed: the path of a file with 16 to 512 printable ASCII characters"]),
    ("[metrics]", "[admin]\nlisten = \"unix:a\"\ntoken = { env = \"NOT_SET\" }\n[metrics]", &["3:17: admin.token.env: \"NOT_SET\" is not set; allowed: the name of an environment variable with 16 to 512 printable ASCII characters"]),
    // Clashes.
    ("[[proxy.endpoint]]", "[[proxy.target]]\naddress = \"db1.internal:5432\"\n[[proxy.endpoint]]", &["21:11: proxy.orders.target[2].address: \"db1.internal:5432\" already stands on line 18; allowed: one that is not used yet"]),
    ("tls = { certificate = \"server.crt\", key = \"server.key\" }", "", &["7:15: proxy.orders.require_tls: is true, but without tls no client could connect; allowed: false, or a certificate in tls = { certificate = \"…\", key = \"…\" }"]),
    ("require_tls = true\ntls = { certificate = \"server.crt\", key = \"server.key\" }\n\n[[proxy.auth]]", "[[proxy.auth]]\nclient_password_auth_type = \"POSTGRES_CLEARTEXT\"", &["8:29: proxy.orders.auth.app.client_password_auth_type: \"POSTGRES_CLEARTEXT\" would send passwords unencrypted without require_tls = true; allowed: \"POSTGRES_SCRAM_SHA_256\", \"POSTGRES_MD5\" or, with require_tls = true, \"POSTGRES_CLEARTEXT\"; for MySQL \"MYSQL_CACHING_SHA2_PASSWORD\", \"MYSQL_NATIVE_PASSWORD\" or, with require_tls = true, \"MYSQL_CLEAR_PASSWORD\""]),
    (r#"address = "db1.internal:5432""#, "address = \"db1.internal:5432\"\ntls = \"required\"\nca = \"ca.pem\"", &["20:6: proxy.orders.target.ca: has no use, because tls = \"required\" verifies nothing; allowed: with tls = \"verify-ca\" or \"verify-full\" only"]),
    (r#"address = "db1.internal:5432""#, "address = \"localhost:5432\"\nca = \"ca.pem\"", &["19:6: proxy.orders.target.ca: has no use, because tls = \"preferred\", its default on loopback, verifies nothing; allowed: with tls = \"verify-ca\" or \"verify-full\" only"]),
    (r#"{ file = "secrets/app.json" }"#, r#"{ file = "secrets/app.json", env = "APP_SECRET" }"#, &["12:10: proxy.orders.auth.app.secret: names more than one secret; allowed: { file = \"…\" } or { env = \"…\" }"]),
    ("[proxy.pool]", "[[proxy.auth]]\nusername = \"app\"\nsecret = { env = \"APP_SECRET\" }\n[proxy.pool]", &["15:12: proxy.orders.auth.app.username: \"app\" already stands on line 11; allowed: one that is not used yet"]),
    ("[[proxy.endpoint]]", "[[proxy.endpoint]]\nname = \"default\"\nlisten = \"127.0.0.1:0\"\n[[proxy.endpoint]]", &["24:8: proxy.orders.endpoint.default.name: \"default\" already stands on line 21; allowed: one that is not used yet"]),
    ("[[proxy.endpoint]]", "[[proxy.endpoint]]\nname = \"reader\"\nlisten = \"0.0.0.0:6432\"\n[[proxy.endpoint]]", &["25:10: proxy.orders.endpoint.default.listen: 127.0.0.1:6432 clashes with 0.0.0.0:6432 on line 22; allowed: an address and port that nothing else listens on"]),
    (r#"listen = "127.0.0.1:6432""#, r#"listen = "127.0.0.1:9930""#, &["22:10: proxy.orders.endpoint.default.listen: 127.0.0.1:9930 clashes with 127.0.0.1:9930 on line 2; allowed: an address and port that nothing else listens on"]),
    ("[proxy.pool]", "[proxy.monitor]\nusername = \"nobody\"\n[proxy.pool]", &["15:12: proxy.orders.monitor.username: no [[proxy.auth]] has the username \"nobody\"; allowed: \"app\""]),
    // Plugins.
    ("[[proxy.endpoint]]", "[[proxy.plugin]]\nname = \"x\"\nwasm = \"none.wasm\"\n\n[[proxy.endpoint]]", &["22:8: proxy.orders.plugin.x.wasm: \"none.wasm\" cannot be read: No such file or directory (os error 2); allowed: the path of a WebAssembly file"]),
    ("[[proxy.endpoint]]", "[[proxy.plugin]]\nname = \"x\"\nwasm = \"plugin.wasm\"\nsha256 = \"abc\"\n[[proxy.endpoint]]", &["23:10: proxy.orders.plugin.x.sha256: \"abc\" is not a SHA-256; allowed: 64 hexadecimal digits"]),
    ("[[proxy.endpoint]]", "[[proxy.plugin]]\nname = \"x\"\nwasm = \"plugin.wasm\"\ngrants = [\"network\", \"audit\"]\n[[proxy.endpoint]]", &["23:11: proxy.orders.plugin.x.grants: \"network\" is not known; allowed: a list of \"log\", \"metrics\", \"store\", \"clock\" and, with [audit], \"audit\"", "23:22: proxy.orders.plugin.x.grants: \"audit\" has no use without [audit]; allowed: a list of \"log\", \"metrics\", \"store\", \"clock\" and, with [audit], \"audit\""]),
    ("[[proxy.endpoint]]", "[[proxy.plugin]]\nname = \"x\"\nwasm = \"plugin.wasm\"\non_failure = { on-events = \"closed\" }\n[[proxy.endpoint]]", &["23:14: proxy.orders.plugin.x.on_failure: \"on-events\" is not a hook that can fail; allowed: \"open\" or \"closed\", or a table of those by hook such as { on-query = \"closed\" }"]),
    ("[[proxy.endpoint]]", "[[proxy.plugin]]\nname = \"x\"\nwasm = \"plugin.wasm\"\nconfig = 7\n[[proxy.endpoint]]", &["23:10: proxy.orders.plugin.x.config: is an integer, not a table; allowed: a table; what may stand in it is the plugin's affair"]),
    ("[[proxy.endpoint]]", "[[proxy.plugin]]\nname = \"x\"\nwasm = \"plugin.wasm\"\nconfig = { a = inf }\n[[proxy.endpoint]]", &["23:10: proxy.orders.plugin.x.config: inf is no number that JSON has; allowed: a table; what may stand in it is the plugin's affair"]),
    // Two proxies of one name, and all that is wrong in the second, in the order of the file.
    ("[[proxy.endpoint]]\nname = \"default\"\nlisten = \"127.0.0.1:6432\"\n", "[[proxy.endpoint]]\nname = \"default\"\nlisten = \"127.0.0.1:6432\"\n[[proxy]]\nname = \"orders\"\nengine_family = 5\n[[proxy.auth]]\nusername = \"\"\nsecret = { env = \"\" }\n", &["23:1: proxy.orders.target: is missing; allowed: one or more [[proxy.target]]", "23:1: proxy.orders.endpoint: is missing; allowed: one or more [[proxy.endpoint]]", "24:8: proxy.orders.name: \"orders\" already stands on line 5; allowed: one that is not used yet", "25:17: proxy.orders.engine_family: is an integer, not a string; allowed: \"POSTGRESQL\" or \"MYSQL\"", "27:12: proxy.orders.auth.\"\".username: is empty; allowed: 1 to 63 bytes, no NUL", "28:18: proxy.orders.auth.\"\".secret.env: \"\" cannot be the name of a variable; allowed: the name of an environment variable with JSON: { \"username\": \"…\", \"password\": \"…\" }"]),
];

#[test]
fn what_is_absent_has_its_default() {
    let dir = files();
    let text = r#"
        [[proxy]]
        name = "orders"
        engine_family = "POSTGRESQL"
        auth = [{ username = "app", secret = { env = "APP_SECRET" } }]
        target = [{ address = "[::1]:5432" }]
        endpoint = [{ name = "default", listen = "127.0.0.1:0" }]
    "#;
    let minutes = |minutes: u64| Duration::from_secs(60 * minutes);
    let config = parse(&dir, text).unwrap();
    let proxy = ProxyConfig {
        name: "orders".into(),
        engine_family: EngineFamily::Postgresql,
        require_tls: false,
        idle_client_timeout: minutes(30),
        max_client_lifetime: minutes(24 * 60),
        handshake_timeout: Duration::from_secs(10),
        max_client_connections: 10_000,
        max_unauthenticated: 1000,
        failed_logins_per_minute: 60,
        profile: Profile::Smart,
        server_version: None,
        force_full_authentication: false,
        tls: None,
        auth: vec![AuthConfig {
            username: "app".into(),
            secret: SecretSource::Env("APP_SECRET".into()),
            client_password_auth_type: ClientAuthType::PostgresScramSha256,
        }],
        pool: PoolConfig {
            max_connections_percent: 100,
            max_idle_connections_percent: 50,
            connection_borrow_timeout: minutes(2),
            max_pinned_percent: None,
            max_carried_table_bytes: 262_144,
            exclude_variable_sets: false,
            init_query: String::new(),
            max_server_lifetime: minutes(24 * 60),
            idle_server_timeout: minutes(5),
            max_prepared_statements: 500,
        },
        targets: vec![TargetConfig { host: "::1".into(), port: 5432, tls: TlsMode::Preferred, ca: None }],
        endpoints: vec![EndpointConfig {
            name: "default".into(),
            listen: "127.0.0.1:0".parse().unwrap(),
            target_role: TargetRole::ReadWrite,
            allow: Vec::new(),
        }],
        monitor: 0,
        monitor_database: "postgres".into(),
        plugins: Vec::new(),
    };
    let expected = Config {
        worker_threads: None,
        drain_timeout: Duration::from_secs(30),
        log: LogConfig { format: LogFormat::Text, level: "info".into(), slow_query: None },
        metrics: None,
        admin: None,
        plugins: PluginsConfig { cache_directory: None, event_queue: 8_192 },
        audit: None,
        proxies: vec![proxy],
    };
    assert_eq!(config, expected);
}

/// The first TOML block of the manual.
fn example() -> &'static str {
    let (_, after) = MANUAL.split_once("```toml\n").unwrap();
    after.split_once("```").unwrap().0
}

#[test]
fn the_manuals_example_is_a_configuration() {
    let dir = files();
    let config = parse(&dir, example()).unwrap();
    let [proxy] = config.proxies.as_slice() else { panic!("one proxy") };
    assert_eq!(proxy.tls.as_ref().unwrap().certificate, dir.path().join("server.crt"));
    assert_eq!(proxy.auth[1].secret, SecretSource::File(dir.path().join("secrets/pinion_monitor.json")));
    assert_eq!(proxy.monitor, 1);
    assert_eq!(proxy.targets[0].tls, TlsMode::VerifyFull);
    assert_eq!(proxy.targets.len(), 2);
    assert_eq!(proxy.endpoints[1].target_role, TargetRole::ReadOnly);
    assert_eq!(
        config.admin.unwrap().token.unwrap().read().unwrap().as_str(),
        "0123456789abcdef0123456789abcdef"
    );
    assert_eq!(proxy.endpoints[0].allow, ["10.0.0.0/8".parse().unwrap(), "192.168.7.1/32".parse().unwrap()]);
}

/// Cut after each character and without each line, the example is either fine or refused in whole messages.
#[test]
fn a_torn_file_is_refused_in_whole_messages() {
    let dir = files();
    let cut = example().char_indices().map(|(at, _)| example()[..at].to_owned());
    let lines: Vec<_> = example().lines().collect();
    let without = (0..lines.len()).map(|skip| [&lines[..skip], &lines[skip + 1..]].concat().join("\n"));
    let (mut fine, mut refused) = (0, 0);
    for text in cut.chain(without) {
        let Err(errors) = parse(&dir, &text) else {
            fine += 1;
            continue;
        };
        refused += 1;
        assert!(!errors.messages().is_empty(), "{text}");
        for message in errors.messages() {
            let mut parts = message.splitn(4, ':');
            assert_eq!(parts.next(), Some("pinion.toml"), "{message}");
            let (line, column) = (parts.next().unwrap(), parts.next().unwrap());
            assert!((1..=text.matches('\n').count() + 1).contains(&line.parse().unwrap()), "{message}");
            assert!(column.parse::<usize>().unwrap() >= 1, "{message}");
            let (_, allowed) = message.split_once("; allowed: ").expect(message);
            assert!(!allowed.is_empty() && !message.contains('\n'), "{message}");
        }
    }
    assert!(fine > 20 && refused > 1000, "{fine} fine, {refused} refused");
}

#[test]
fn addresses_names_and_filters_that_look_odd_are_fine() {
    let dir = files();
    for (find, replace) in [
        (r#""db1.internal:5432""#, "\"localhost:5432\""),
        (r#""db1.internal:5432""#, "\"127.3.2.1:5432\""),
        (r#""db1.internal:5432""#, "\"[2001:db8::1]:5432\"\nca = \"ca.pem\""),
        (r#""db1.internal:5432""#, "\"pg_primary:5432\"\ntls = \"verify-ca\"\nca = \"ca.pem\""),
        (r#"name = "orders""#, r#"name = "A-1-b""#),
        ("[metrics]", "[log]\nlevel = \"warn,pinion::pool=trace,[borrow{pool=1}]=debug\"\n[metrics]"),
        ("[metrics]", "\u{feff}[metrics]"),
        ("max_connections_percent = 75", "max_connections_percent = 1\nmax_idle_connections_percent = 0"),
        ("max_connections_percent = 75", "connection_borrow_timeout = \"0s\""),
        ("max_connections_percent = 75", "connection_borrow_timeout = \"1m 30s\""),
        (r#"{ file = "secrets/app.json" }"#, r#"{ env = "APP_SECRET" }"#),
        ("[proxy.pool]", "client_password_auth_type = \"POSTGRES_CLEARTEXT\"\n[proxy.pool]"),
        (r#"name = "default""#, "name = \"default\"\nallow = [\"::1\", \"10.0.0.0/8\"]"),
        (r#"listen = "127.0.0.1:6432""#, r#"listen = "[::]:9930""#),
        ("[metrics]", "[admin]\nlisten = \"unix:/run/pinion/admin.sock\"\n[metrics]"),
        ("[metrics]", "[admin]\nlisten = \"[::1]:9931\"\ntoken = { env = \"ADMIN_TOKEN\" }\n[metrics]"),
        ("[[proxy.endpoint]]", "[[proxy.target]]\naddress = \"db1.internal:5433\"\n[[proxy.endpoint]]"),
        (r#"name = "default""#, "name = \"default\"\ntarget_role = \"READ_ONLY\""),
    ] {
        if let Err(errors) = parse(&dir, &edited(find, replace)) {
            panic!("{replace:?} is refused: {errors}");
        }
    }
}

#[test]
fn loopback_targets_alone_are_not_verified_by_default() {
    let dir = files();
    for (address, expected) in [
        ("localhost:5432", TlsMode::Preferred),
        ("LOCALHOST:5432", TlsMode::Preferred),
        ("127.255.0.9:5432", TlsMode::Preferred),
        ("[::1]:5432", TlsMode::Preferred),
        ("localhost.example:5432", TlsMode::VerifyFull),
        ("10.0.0.1:5432", TlsMode::VerifyFull),
        ("db1.internal:5432", TlsMode::VerifyFull),
    ] {
        let config = parse(&dir, &edited("db1.internal:5432", address)).unwrap();
        assert_eq!(config.proxies[0].targets[0].tls, expected, "{address}");
    }
}

#[test]
fn a_file_is_read_from_where_it_stands() {
    let dir = files();
    let path = dir.path().join("pinion.toml");
    std::fs::write(&path, BASE).unwrap();
    assert_eq!(Config::load(&path).unwrap(), parse(&dir, BASE).unwrap());

    let parsed = Config::parse(BASE, Path::new("shown.toml"), Path::new("no/such/directory"));
    let errors = parsed.unwrap_err();
    assert_eq!(errors.messages().len(), 3, "{errors}");
    assert!(errors.messages().iter().all(|message| message.starts_with("shown.toml:")), "{errors}");

    std::fs::write(&path, b"# caf\xc3\xa9\n# \xe9\n").unwrap();
    let expected = format!("{}:2:3: is not UTF-8; allowed: UTF-8 text", path.display());
    assert_eq!(Config::load(&path).unwrap_err().to_string(), expected);

    let path = dir.path().join("none.toml");
    let expected = format!(
        "{}: cannot be read: No such file or directory (os error 2); allowed: a readable file",
        path.display()
    );
    assert_eq!(Config::load(&path).unwrap_err().to_string(), expected);
}

/// The row that the manual must have for a key, up to what the key means.
fn manual_row(key: &Key) -> String {
    let default = match key.default {
        WhenAbsent::Required => "required".to_owned(),
        WhenAbsent::Value(value) => format!("`{value}`"),
        WhenAbsent::Said(text) => text.to_owned(),
    };
    let reload = match key.reload {
        Reload::Live => "live",
        Reload::Restart => "restart",
        Reload::Below => "see there",
    };
    format!("| `{}` | {default} | {} | {reload} | ", key.name, key.allowed())
}

#[test]
fn the_manual_lists_every_key() {
    let mut missing = String::new();
    for section in KEYS.iter().map(|key| key.section).collect::<BTreeSet<_>>() {
        let heading = if section.is_empty() { "## Top level".to_owned() } else { format!("## `{section}`") };
        let Some((_, text)) = MANUAL.split_once(&format!("\n{heading}\n")) else {
            writeln!(missing, "{heading}").unwrap();
            continue;
        };
        let text = text.split("\n## ").next().unwrap();
        let rows: Vec<_> = text.lines().filter(|line| line.starts_with("| `")).collect();
        for key in keys_of(section) {
            let row = manual_row(key);
            if !rows.iter().any(|found| found.starts_with(&row) && found.len() > row.len()) {
                writeln!(missing, "{heading}: {row}").unwrap();
            }
        }
        assert_eq!(rows.len(), keys_of(section).count(), "{heading} lists a key that is not there");
    }
    for key in KEYS {
        if let Kind::Later(feature) = key.kind {
            let row = format!("| `{}` | {feature} |", reader::join(key.section, key.name));
            if !MANUAL.contains(&row) {
                writeln!(missing, "{row}").unwrap();
            }
        }
    }
    assert!(missing.is_empty(), "docs/configuration.md lacks\n{missing}");
}

/// A change to the manual's example, the key it changes, and the paths that must be reported.
#[rustfmt::skip] // one case a line
const CHANGED: &[(&str, &str, &str, &[&str])] = &[
    ("worker_threads = 2", "worker_threads = 3", "worker_threads", &["worker_threads"]),
    (r#"drain_timeout = "30s""#, r#"drain_timeout = "31s""#, "drain_timeout", &["drain_timeout"]),
    (r#"format = "json""#, r#"format = "text""#, "log.format", &["log.format"]),
    (r#"level = "info,pinion=debug""#, r#"level = "warn""#, "log.level", &["log.level"]),
    (r#"slow_query = "1s""#, "", "log.slow_query", &["log.slow_query"]),
    (r#"listen = "127.0.0.1:9930""#, r#"listen = "127.0.0.1:9931""#, "metrics.listen", &["metrics.listen"]),
    (r#"listen = "127.0.0.1:9932""#, r#"listen = "unix:admin.sock""#, "admin.listen", &["admin.listen"]),
    (r#"token = { file = "secrets/admin-token" }"#, r#"token = { env = "ADMIN_TOKEN" }"#, "admin.token", &["admin.token"]),
    (r#"token = { file = "secrets/admin-token" }"#, r#"token = { env = "ADMIN_TOKEN" }"#, "admin.token.env", &["admin.token"]),
    (r#"file = "secrets/admin-token""#, r#"file = "token""#, "admin.token.file", &["admin.token"]),
    (r#"name = "orders""#, r#"name = "sales""#, "proxy.name", &["proxy.orders", "proxy.sales"]),
    ("require_tls = true", "require_tls = false", "proxy.require_tls", &["proxy.orders.require_tls"]),
    (r#"idle_client_timeout = "30m""#, "idle_client_timeout = \"1s\"", "proxy.idle_client_timeout", &["proxy.orders.idle_client_timeout"]),
    (r#"max_client_lifetime = "24h""#, "max_client_lifetime = \"1s\"", "proxy.max_client_lifetime", &["proxy.orders.max_client_lifetime"]),
    (r#"handshake_timeout = "10s""#, "handshake_timeout = \"1s\"", "proxy.handshake_timeout", &["proxy.orders.handshake_timeout"]),
    ("max_client_connections = 10000", "max_client_connections = 1", "proxy.max_client_connections", &["proxy.orders.max_client_connections"]),
    ("max_unauthenticated = 1000", "max_unauthenticated = 1", "proxy.max_unauthenticated", &["proxy.orders.max_unauthenticated"]),
    ("failed_logins_per_minute = 60", "failed_logins_per_minute = 0", "proxy.failed_logins_per_minute", &["proxy.orders.failed_logins_per_minute"]),
    (r#"profile = "smart""#, r#"profile = "rds""#, "proxy.profile", &["proxy.orders.profile"]),
    (r#"tls = { certificate = "server.crt", key = "server.key" }"#, "", "proxy.tls", &["proxy.orders.tls"]),
    (r#"certificate = "server.crt""#, r#"certificate = "copy.crt""#, "proxy.tls.certificate", &["proxy.orders.tls.certificate"]),
    (r#"key = "server.key""#, r#"key = "copy.key""#, "proxy.tls.key", &["proxy.orders.tls.key"]),
    (r#"username = "app""#, r#"username = "other""#, "proxy.auth.username", &["proxy.orders.auth.app", "proxy.orders.auth.other"]),
    (r#"secret = { env = "APP_SECRET" }"#, r#"secret = { file = "secrets/app.json" }"#, "proxy.auth.secret", &["proxy.orders.auth.app.secret"]),
    (r#"file = "secrets/pinion_monitor.json""#, r#"file = "secrets/copy.json""#, "proxy.auth.secret.file", &["proxy.orders.auth.pinion_monitor.secret"]),
    (r#"env = "APP_SECRET""#, r#"env = "APP_SECRET_2""#, "proxy.auth.secret.env", &["proxy.orders.auth.app.secret"]),
    ("\"POSTGRES_SCRAM_SHA_256\"", "\"POSTGRES_MD5\"", "proxy.auth.client_password_auth_type", &["proxy.orders.auth.app.client_password_auth_type"]),
    (r#"cache_directory = "cache""#, "", "plugins.cache_directory", &["plugins.cache_directory"]),
    ("event_queue = 8192", "event_queue = 100", "plugins.event_queue", &["plugins.event_queue"]),
    (r#"file = "audit.log""#, r#"file = "stdout""#, "audit.file", &["audit.file"]),
    ("rotate_bytes = 104857600", "rotate_bytes = 65536", "audit.rotate_bytes", &["audit.rotate_bytes"]),
    ("keep = 10\n", "keep = 0\n", "audit.keep", &["audit.keep"]),
    ("\nqueue = 10000", "\nqueue = 1", "audit.queue", &["audit.queue"]),
    (r#"when_full = "block""#, r#"when_full = "drop""#, "audit.when_full", &["audit.when_full"]),
    (r#"name = "guard""#, r#"name = "other""#, "proxy.plugin.name", &["proxy.orders.plugin.guard", "proxy.orders.plugin.other"]),
    (r#"wasm = "plugin.wasm""#, r#"wasm = "next.wasm""#, "proxy.plugin.wasm", &["proxy.orders.plugin.guard.wasm"]),
    ("sha256 = \"9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08\"", "", "proxy.plugin.sha256", &["proxy.orders.plugin.guard.sha256"]),
    (r#"grants = ["log", "metrics", "audit"]"#, "", "proxy.plugin.grants", &["proxy.orders.plugin.guard.grants"]),
    (r#"on_failure = { on-query = "closed" }"#, "", "proxy.plugin.on_failure", &["proxy.orders.plugin.guard.on_failure"]),
    (r#"config = { tables = ["payroll"] }"#, "", "proxy.plugin.config", &["proxy.orders.plugin.guard.config"]),
    ("\ndeadline = \"5ms\"", "\ndeadline = \"6ms\"", "proxy.plugin.deadline", &["proxy.orders.plugin.guard.deadline"]),
    (r#"events_deadline = "1s""#, r#"events_deadline = "2s""#, "proxy.plugin.events_deadline", &["proxy.orders.plugin.guard.events_deadline"]),
    ("memory_bytes = 16777216", "memory_bytes = 33554432", "proxy.plugin.memory_bytes", &["proxy.orders.plugin.guard.memory_bytes"]),
    ("store_bytes = 1048576", "store_bytes = 1024", "proxy.plugin.store_bytes", &["proxy.orders.plugin.guard.store_bytes"]),
    ("log_lines_per_second = 100", "log_lines_per_second = 0", "proxy.plugin.log_lines_per_second", &["proxy.orders.plugin.guard.log_lines_per_second"]),
    (r#"retry_after = "60s""#, r#"retry_after = "1s""#, "proxy.plugin.retry_after", &["proxy.orders.plugin.guard.retry_after"]),
    (r#"vectors = "vectors.toml""#, "", "proxy.plugin.vectors", &["proxy.orders.plugin.guard.vectors"]),
    (r#"shadow = "next.wasm""#, "", "proxy.plugin.shadow", &["proxy.orders.plugin.guard.shadow"]),
    ("max_connections_percent = 75", "max_connections_percent = 76", "proxy.pool.max_connections_percent", &["proxy.orders.pool.max_connections_percent"]),
    ("max_idle_connections_percent = 50", "max_idle_connections_percent = 0", "proxy.pool.max_idle_connections_percent", &["proxy.orders.pool.max_idle_connections_percent"]),
    (r#"connection_borrow_timeout = "120s""#, "connection_borrow_timeout = \"0s\"", "proxy.pool.connection_borrow_timeout", &["proxy.orders.pool.connection_borrow_timeout"]),
    ("max_carried_table_bytes = 262144", "max_carried_table_bytes = 0", "proxy.pool.max_carried_table_bytes", &["proxy.orders.pool.max_carried_table_bytes"]),
    ("max_pinned_percent = 80", "max_pinned_percent = 90", "proxy.pool.max_pinned_percent", &["proxy.orders.pool.max_pinned_percent"]),
    ("session_pinning_filters = []", "session_pinning_filters = [\"EXCLUDE_VARIABLE_SETS\"]", "proxy.pool.session_pinning_filters", &["proxy.orders.pool.session_pinning_filters"]),
    (r#"init_query = """#, r#"init_query = "SET statement_timeout = '60s'""#, "proxy.pool.init_query", &["proxy.orders.pool.init_query"]),
    (r#"max_server_lifetime = "24h""#, "max_server_lifetime = \"1d 1s\"", "proxy.pool.max_server_lifetime", &["proxy.orders.pool.max_server_lifetime"]),
    (r#"idle_server_timeout = "5m""#, "idle_server_timeout = \"1s\"", "proxy.pool.idle_server_timeout", &["proxy.orders.pool.idle_server_timeout"]),
    ("max_prepared_statements = 500", "max_prepared_statements = 1", "proxy.pool.max_prepared_statements", &["proxy.orders.pool.max_prepared_statements"]),
    ("db1.internal:5432", "db1.internal:5433", "proxy.target.address", &["proxy.orders.target.address"]),
    ("db1.internal:5432", "db3.internal:5432", "proxy.target.address", &["proxy.orders.target.address"]),
    ("db2.internal:5432\"", "db2.internal:5432\"\ntls = \"required\"", "proxy.target.tls", &["proxy.orders.target[2].tls"]),
    ("[[proxy.target]]\naddress = \"db2.internal:5432\"", "", "proxy.target.address", &["proxy.orders.target.address"]),
    (r#"tls = "verify-full""#, r#"tls = "verify-ca""#, "proxy.target.tls", &["proxy.orders.target.tls"]),
    (r#"ca = "ca.pem""#, "", "proxy.target.ca", &["proxy.orders.target.ca"]),
    (r#"name = "default""#, r#"name = "writer""#, "proxy.endpoint.name", &["proxy.orders.endpoint.default", "proxy.orders.endpoint.writer"]),
    (r#"listen = "0.0.0.0:6432""#, r#"listen = "0.0.0.0:6433""#, "proxy.endpoint.listen", &["proxy.orders.endpoint.default.listen"]),
    (r#"target_role = "READ_ONLY""#, r#"target_role = "READ_WRITE""#, "proxy.endpoint.target_role", &["proxy.orders.endpoint.reader.target_role"]),
    (r#"allow = ["10.0.0.0/8", "192.168.7.1"]"#, "", "proxy.endpoint.allow", &["proxy.orders.endpoint.default.allow"]),
    (r#"database = "postgres""#, r#"database = "app""#, "proxy.monitor.database", &["proxy.orders.monitor.database"]),
    ("monitor = { username = \"pinion_monitor\"", "monitor = { username = \"app\"", "proxy.monitor.username", &["proxy.orders.monitor.username"]),
];

/// As [`env`], with what `CHANGED` needs besides.
fn changed_env(name: &str) -> Option<OsString> {
    env(name.trim_end_matches("_2"))
}

#[test]
fn a_reload_names_what_changed_and_applies_what_is_live() {
    let dir = files();
    let path = |name| dir.path().join(name);
    std::fs::write(path("other.json"), r#"{"username": "other", "password": "x"}"#).unwrap();
    for (from, to) in [
        ("server.crt", "copy.crt"),
        ("server.key", "copy.key"),
        ("secrets/pinion_monitor.json", "secrets/copy.json"),
    ] {
        std::fs::copy(path(from), path(to)).unwrap();
    }
    let parse = |text: &str| build::config(text, Path::new("pinion.toml"), dir.path(), &changed_env).unwrap();
    let old = parse(example());
    assert_eq!(old.changes(&old), Changes::default());
    let mut seen = BTreeSet::new();
    for (find, replace, changed, paths) in CHANGED {
        assert_eq!(example().matches(find).count(), 1, "{find:?} must stand once in the example");
        let mut text = example().replace(find, replace);
        match *changed {
            "proxy.auth.username" => {
                text = text.replace("{ env = \"APP_SECRET\" }", "{ file = \"other.json\" }")
            }
            "proxy.tls" => text = text.replace("require_tls = true", "require_tls = false"),
            _ => {}
        }
        let new = parse(&text);
        let mut changes = old.changes(&new);
        if *changed == "proxy.tls" {
            changes.live.retain(|path| path != "proxy.orders.require_tls");
        }
        let (section, name) = changed.rsplit_once('.').unwrap_or(("", changed));
        let expected: Vec<_> = paths.iter().map(|path| (*path).to_owned()).collect();
        let reload = schema::key(section, name).reload;
        let (named, unnamed) = if reload == Reload::Live {
            (changes.live, changes.restart)
        } else {
            (changes.restart, changes.live)
        };
        assert_eq!((named, unnamed), (expected, Vec::new()), "{changed}");
        seen.insert(*changed);

        let running = old.reloaded(&new);
        assert_eq!(old.changes(&running).restart, Vec::<String>::new(), "{changed}");
        assert_eq!(running.changes(&new).live, Vec::<String>::new(), "{changed}");
        assert_eq!(if reload == Reload::Live { &new } else { &old }, &running, "{changed}");
    }
    // Not for the example's engine family (tried below), or compared as the tables they hold.
    let exempt = [
        "proxy",
        "proxy.engine_family",
        "proxy.server_version",
        "proxy.force_full_authentication",
        "proxy.auth",
        "proxy.target",
        "proxy.endpoint",
        "proxy.plugin",
    ];
    for key in KEYS.iter().filter(|key| key.reload != Reload::Below && !matches!(key.kind, Kind::Later(_))) {
        let path = reader::join(key.section, key.name);
        assert!(
            seen.contains(path.as_str()) || exempt.contains(&path.as_str()),
            "no change of {path} is tried"
        );
    }
}

#[test]
fn another_engine_family_needs_a_restart_and_takes_all_else_with_it() {
    let dir = files();
    let old = parse(&dir, BASE).unwrap();
    let mut new = old.clone();
    new.proxies[0].engine_family = EngineFamily::Mysql;
    new.proxies[0].auth[0].client_password_auth_type = ClientAuthType::MysqlNativePassword;
    let changes = old.changes(&new);
    assert_eq!(changes.restart, ["proxy.orders.engine_family"]);
    assert_eq!(changes.live, Vec::<String>::new());
    assert_eq!(old.reloaded(&new), old);
}

#[test]
fn mysql_has_its_own_defaults_and_methods() {
    let dir = files();
    let base = edited("\"POSTGRESQL\"", "\"MYSQL\"");
    let proxy = |text: &str| parse(&dir, text).map(|config| config.proxies[0].clone());
    let plain = proxy(&base).unwrap();
    assert_eq!(plain.engine_family, EngineFamily::Mysql);
    assert_eq!(plain.auth[0].client_password_auth_type, ClientAuthType::MysqlCachingSha2Password);
    assert_eq!((plain.monitor_database.as_str(), plain.server_version.as_deref()), ("", None));
    assert!(!plain.force_full_authentication);
    for (word, method) in [
        ("MYSQL_CACHING_SHA2_PASSWORD", ClientAuthType::MysqlCachingSha2Password),
        ("MYSQL_NATIVE_PASSWORD", ClientAuthType::MysqlNativePassword),
        ("MYSQL_CLEAR_PASSWORD", ClientAuthType::MysqlClearPassword),
    ] {
        let line = format!("client_password_auth_type = \"{word}\"\n[proxy.pool]");
        assert_eq!(
            proxy(&base.replace("[proxy.pool]", &line)).unwrap().auth[0].client_password_auth_type,
            method
        );
    }
    for (line, what) in [
        ("[[proxy.auth]]\nclient_password_auth_type = \"POSTGRES_MD5\"", "is not for this engine_family"),
        ("server_version = \"\"\n[[proxy.auth]]", "\"\" is no version"),
        ("server_version = \"8\\t4\"\n[[proxy.auth]]", "is no version"),
    ] {
        let error = proxy(&base.replace("[[proxy.auth]]", line)).unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
    }
    let old = parse(&dir, &base).unwrap();
    let more = "server_version = \"8.0.40\"\nforce_full_authentication = true\n[[proxy.auth]]";
    let new = parse(&dir, &base.replace("[[proxy.auth]]", more)).unwrap();
    assert_eq!(new.proxies[0].server_version.as_deref(), Some("8.0.40"));
    assert_eq!(
        old.changes(&new).live,
        ["proxy.orders.server_version", "proxy.orders.force_full_authentication"]
    );
    assert_eq!(old.reloaded(&new), new);
}

#[test]
fn a_monitor_keeps_its_user_until_the_restart() {
    let dir = files();
    let both = edited(
        "[proxy.pool]",
        "[[proxy.auth]]\nusername = \"pinion_monitor\"\nsecret = { file = \"secrets/pinion_monitor.json\" }\n[proxy.pool]",
    );
    let (old, new) = (parse(&dir, &both).unwrap(), {
        let mut new = parse(&dir, &both).unwrap();
        new.proxies[0].auth.remove(0);
        new
    });
    let changes = old.changes(&new);
    assert_eq!(changes.restart, ["proxy.orders.auth.app", "proxy.orders.monitor.username"]);
    assert_eq!(changes.live, Vec::<String>::new());
    let running = old.reloaded(&new);
    assert_eq!(running.proxies[0].auth[running.proxies[0].monitor].username, "app");
    assert_eq!(running.proxies[0].auth.len(), 2);

    // Nor does it keep asking for a cleartext password once clients may come without TLS.
    let (mut cleartext, mut no_tls) = (old.clone(), new.clone());
    cleartext.proxies[0].auth[0].client_password_auth_type = ClientAuthType::PostgresCleartext;
    no_tls.proxies[0].require_tls = false;
    let running = cleartext.reloaded(&no_tls);
    let kept = &running.proxies[0].auth[running.proxies[0].monitor];
    assert_eq!(kept.username, "app");
    assert_eq!(kept.client_password_auth_type, ClientAuthType::PostgresScramSha256);

    // Another order is no change, although the index is another.
    let mut turned = old.clone();
    turned.proxies[0].auth.reverse();
    turned.proxies[0].monitor = 1;
    assert_eq!(old.changes(&turned), Changes::default());
}

#[test]
fn a_moved_target_keeps_its_trust_until_the_restart() {
    let dir = files();
    let old = parse(&dir, BASE).unwrap();
    let new = parse(&dir, &edited("db1.internal", "localhost")).unwrap();
    let changes = old.changes(&new);
    assert_eq!((changes.live, changes.restart), (Vec::new(), vec!["proxy.orders.target.address".to_owned()]));
    assert_eq!(old.reloaded(&new).proxies[0].targets, old.proxies[0].targets);
}
