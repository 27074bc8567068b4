//! Policy plugins in front of MariaDB, from a client's point of view: every verdict of every hook, by text and
//! prepared, the plugins as they are shipped, and the same file on either engine.
#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use mysql_async::prelude::Queryable as _;
use pinion_tests::{
    Cluster, MariaDb, MySqlClient, Plugin, Proxy, ProxyBuilder, RawMySql, Server, poll,
    raw_mysql::{MySqlError, Reply, command},
    replace_file, server_error, until,
};
use serde_json::Value;
use tempfile::TempDir;

/// `rules` in TOML's inline form, as in `{ hook = "on-query", contains = "x", verdict = "reject" }`.
fn scripted(hooks: &[&str], rewrite: bool, rules: &[&str]) -> Plugin {
    let config =
        format!("config = {{ hooks = {hooks:?}, rewrite = {rewrite}, rules = [{}] }}", rules.join(", "));
    Plugin::fixture("scripted").setting(&config)
}

fn with(db: &MariaDb, plugin: Plugin) -> ProxyBuilder {
    Proxy::in_front_of(db).max_connections(1).plugin(plugin)
}

const NO_SECRETS: &str = r#"{ hook = "on-query", contains = "secret", verdict = "reject", text = "no secrets here", sqlstate = "PN001", code = 3950, hint = "ask politely" }"#;

/// Number, SQLSTATE and message of the only answer, which is an error.
fn failed(replies: &[Reply]) -> (u16, &str, &str) {
    match replies {
        [Reply::Failed(MySqlError { code, state, message })] => (*code, state, message),
        _ => panic!("{replies:?}"),
    }
}

const REJECTED: (u16, &str, &str) = (3950, "PN001", "no secrets here (ask politely)");

#[tokio::test]
async fn a_rejected_statement_is_an_error_and_the_client_stays() {
    let db = Server::mariadb().start().await;
    let proxy = with(&db, scripted(&["on-query"], false, &[NO_SECRETS])).start().await;
    let mut raw = proxy.raw_mysql().await;
    assert_eq!(failed(&raw.query("SELECT 'secret'").await), REJECTED);
    assert_eq!(raw.scalar("SELECT 7").await, "7");
    // What is prepared does nothing yet; each execution is asked about.
    let statement = raw.prepare("SELECT 'secret', ?").await.unwrap();
    for _ in 0..2 {
        assert_eq!(failed(&raw.execute(statement.id, 0, &[Some("1")]).await), REJECTED);
    }
    assert_eq!(raw.scalar("SELECT 8").await, "8");
    assert!(!db.general_log().contains("Execute"), "it never reached the server");
    let calls = |verdict| [("plugin", "scripted"), ("hook", "on-query"), ("verdict", verdict)];
    assert_eq!(proxy.metric("pinion_plugin_calls_total", &calls("reject")).await, 3.0);
    assert_eq!(proxy.metric("pinion_plugin_calls_total", &calls("pass")).await, 2.0);
}

/// A plugin may say nothing, or what no client could take for an error.
#[tokio::test]
async fn a_rejection_without_codes_has_the_proxys_own() {
    let db = Server::mariadb().start().await;
    for (codes, expected) in [
        ("", (1227, "42000", "no")),
        (", code = 4025", (4025, "42000", "no")),
        (r#", sqlstate = "45000""#, (1227, "45000", "no")),
        (r#", sqlstate = "45 00", code = 65535"#, (1227, "42000", "no")),
    ] {
        let rule =
            format!(r#"{{ hook = "on-query", contains = "'x'", verdict = "reject", text = "no"{codes} }}"#);
        let proxy = with(&db, scripted(&["on-query"], false, &[&rule])).start().await;
        let mut raw = proxy.raw_mysql().await;
        assert_eq!(failed(&raw.query("SELECT 'x'").await), expected, "{codes}");
        assert_eq!(raw.scalar("SELECT 1").await, "1");
    }
}

/// A plugin is built once. Its number is nothing to PostgreSQL, and its vectors of both dialects hold on either proxy.
#[tokio::test]
async fn one_file_serves_both_engines() {
    let (db, pg) = (Server::mariadb().start().await, Server::postgres().start().await);
    let folder = tempfile::tempdir().unwrap();
    let vectors = folder.path().join("vectors.toml");
    let both = r##"
        [[vector]]
        sql = "SELECT $$; DELETE FROM t$$"
        expect = "pass"
        [[vector]]
        sql = "DELETE FROM t WHERE v = E'\\'secret'"
        expect = "reject"
        sqlstate = "PN001"
        code = 3950
        [[vector]]
        dialect = "mysql"
        sql = "DELETE FROM `t` WHERE v = \"\\\"secret\" # and more"
        expect = "reject"
        code = 3950
    "##;
    fs::write(&vectors, both).unwrap();
    let guard = || {
        let config = scripted(&["on-query"], false, &[NO_SECRETS]);
        config.setting(&format!("vectors = \"{}\"", vectors.display())).setting("on_failure = \"closed\"")
    };
    let split = || Plugin::shipped("rw-split").setting("on_failure = \"closed\"");
    let mysql = with(&db, guard()).plugin(split()).admin().start().await;
    let postgres = Proxy::in_front_of(&pg).plugin(guard()).plugin(split()).admin().start().await;
    for proxy in [&mysql, &postgres] {
        let (_, plugins) = proxy.admin("GET", "/plugins").await;
        for plugin in plugins["plugins"].as_array().unwrap() {
            assert_eq!(plugin["state"], "running", "{plugin}");
        }
    }
    assert_eq!(failed(&mysql.raw_mysql().await.query("SELECT 'secret'").await), REJECTED);
    let error = postgres.connect().await.try_execute("SELECT 'secret'").await.unwrap_err();
    let error = error.as_db_error().unwrap();
    assert_eq!((error.code().code(), error.message()), ("PN001", "no secrets here"));
    // What one of them gets wrong is refused by both.
    fs::write(&vectors, both.replace("code = 3950", "code = 1227")).unwrap();
    for proxy in [&mysql, &postgres] {
        let (status, said) = proxy.admin("POST", "/plugins/scripted/reload").await;
        assert_ne!(status, 200, "{said}");
        assert!(said.to_string().contains("expected the code 1227, got 3950"), "{said}");
    }
}

#[tokio::test]
async fn a_rejection_fails_the_transaction_so_that_no_commit_commits_half() {
    let db = Server::mariadb().start().await;
    let proxy = with(&db, scripted(&["on-query"], false, &[NO_SECRETS])).start().await;
    let stopped = "The transaction was rolled back, since a policy plugin refused one of its statements";
    let other = proxy.mysql().await;
    for (begin, prepared) in
        [("BEGIN", false), ("START TRANSACTION", true), ("SET autocommit = 0", false), ("BEGIN", true)]
    {
        let mut raw = proxy.raw_mysql().await;
        let insert = raw.prepare("INSERT INTO t (v) VALUES ('kept')").await.unwrap();
        let secret = raw.prepare("SELECT 'secret'").await.unwrap();
        raw.ok(begin).await;
        raw.execute(insert.id, 0, &[]).await;
        let replies =
            if prepared { raw.execute(secret.id, 0, &[]).await } else { raw.query("SELECT 'secret'").await };
        assert_eq!(failed(&replies), REJECTED);
        // Nothing of the rest runs as if there had been no transaction, and the COMMIT does not go by in silence.
        for replies in
            [raw.query("INSERT INTO t (v) VALUES ('kept')").await, raw.execute(insert.id, 0, &[]).await]
        {
            let (code, state, message) = failed(&replies);
            assert_eq!((code, state), (1105, "HY000"), "{begin}");
            assert!(message.starts_with(stopped), "{message}");
        }
        assert_eq!(failed(&raw.query("COMMIT").await), (1213, "40001", stopped));
        // Then it goes on; the server connection was given back meanwhile.
        assert_eq!(other.scalar::<i32>("SELECT count(*) FROM t WHERE v = 'kept'").await, 0);
        assert_eq!(raw.scalar("SELECT count(*) FROM t WHERE v = 'kept'").await, "0");
        raw.command(command::QUIT, b"").await;
    }
}

/// Whatever a client ends the transaction with that policy has undone.
#[tokio::test]
async fn a_refused_transaction_ends_with_a_rollback_or_a_reset() {
    let db = Server::mariadb().start().await;
    let proxy = with(&db, scripted(&["on-query"], false, &[NO_SECRETS])).start().await;
    for end in ["ROLLBACK", "/* by the driver */ rollback", "reset"] {
        let mut raw = proxy.raw_mysql().await;
        raw.ok("BEGIN").await;
        raw.ok("INSERT INTO t (v) VALUES ('kept')").await;
        assert_eq!(failed(&raw.query("SELECT 'secret'").await), REJECTED);
        if end == "reset" {
            raw.simple(command::RESET_CONNECTION, b"").await.unwrap();
        } else {
            raw.ok(end).await;
        }
        assert_eq!(raw.scalar("SELECT count(*) FROM t WHERE v = 'kept'").await, "0", "{end}");
        raw.ok("INSERT INTO t (v) VALUES ('after')").await;
        raw.command(command::QUIT, b"").await;
    }
    let direct = db.direct().await;
    assert_eq!(direct.scalar::<i32>("SELECT count(*) FROM t WHERE v = 'after'").await, 3);
}

#[tokio::test]
async fn a_pinned_client_gets_its_rejection_too() {
    let db = Server::mariadb().start().await;
    let proxy = with(&db, scripted(&["on-query"], false, &[NO_SECRETS])).start().await;
    let mut raw = proxy.raw_mysql().await;
    raw.ok("CREATE TEMPORARY TABLE mine AS SELECT 7 AS n").await;
    assert_eq!(failed(&raw.query("SELECT 'secret'").await), REJECTED);
    let statement = raw.prepare("SELECT 'secret'").await.unwrap();
    assert_eq!(failed(&raw.execute(statement.id, 1, &[]).await), REJECTED);
    assert_eq!(raw.scalar("SELECT n FROM mine").await, "7");
}

#[tokio::test]
async fn a_rewritten_statement_runs_in_place_of_the_one_sent() {
    let db = Server::mariadb().start().await;
    let rules =
        [r#"{ hook = "on-query", contains = "'old'", verdict = "rewrite", text = "'something new'" }"#];
    let proxy = with(&db, scripted(&["on-query"], true, &rules)).start().await;
    let client = proxy.mysql().await;
    assert_eq!(client.scalar::<String>("SELECT 'old'").await, "something new");
    assert_eq!(client.scalar::<String>("SELECT 'other'").await, "other");
    assert_eq!(client.rows("SELECT 'old'; SELECT 1").await.len(), 2);
    // Prepared, executed again and again, in a transaction, and on another server connection.
    let ask = async |more: &str| client.exec("SELECT CONCAT('old', ?)", (more,)).await[0][0].clone().unwrap();
    for more in ["!", "?"] {
        assert_eq!(ask(more).await, format!("something new{more}"));
    }
    client.execute("BEGIN").await;
    assert_eq!(ask("!").await, "something new!");
    client.execute("COMMIT").await;
    let other = MySqlClient::connect(&proxy.address().database("otherdb")).await.unwrap();
    other.execute("SELECT 1").await; // there is one connection, so the client's is gone
    assert_eq!(ask("!").await, "something new!");
    let log = db.general_log();
    assert!(!log.contains("'old'") && log.contains("CONCAT('something new'"), "{log}");
}

/// What a plugin makes of a statement is known anew.
#[tokio::test]
async fn a_rewrite_is_known_anew() {
    let db = Server::mariadb().start().await;
    let rules = [
        r#"{ hook = "on-query", contains = "SELECT 'lock'", verdict = "rewrite", text = "SELECT GET_LOCK('mine', 0)" }"#,
        r#"{ hook = "on-query", contains = "SELECT 'set'", verdict = "rewrite", text = "SET @mine = 5" }"#,
    ];
    let proxy = with(&db, scripted(&["on-query"], true, &rules)).start().await;
    let (a, b) = (proxy.mysql().await, proxy.mysql().await);
    a.execute("SELECT 'set'").await;
    for _ in 0..2 {
        assert_eq!(a.scalar::<i32>("SELECT @mine").await, 5);
        assert_eq!(b.rows("SELECT @mine").await, [[None]]);
    }
    assert_eq!(proxy.metric("pinion_pins_total", &[]).await, 0.0);
    a.execute("SELECT 'lock'").await;
    proxy.logged("session pinned").await;
    assert_eq!(a.scalar::<i32>("SELECT RELEASE_LOCK('mine')").await, 1);
}

/// A statement that was prepared keeps the text it was prepared with; whether it may run is asked each time.
#[tokio::test]
async fn statements_prepared_before_a_reload_are_refused_by_the_new_policy() {
    let db = Server::mariadb().start().await;
    let rule = NO_SECRETS.replace("secret\"", "forbidden\"");
    let proxy = with(&db, scripted(&["on-query"], false, &[&rule])).start().await;
    let client = proxy.mysql().await;
    let mut conn = client.conn().await;
    let statement = conn.prep("SELECT 'secret'").await.unwrap();
    let asked: Option<String> = conn.exec_first(&statement, ()).await.unwrap();
    assert_eq!(asked.as_deref(), Some("secret"));
    proxy.rewrite_config(|config| config.replace("contains = \"forbidden\"", "contains = \"secret\""));
    proxy.sighup();
    proxy.logged("plugin").await;
    poll("the new policy rules", async || {
        // The driver's connection is in use here, so one of its own.
        let client = proxy.mysql().await;
        client.try_execute("SELECT 'secret'").await.is_err().then_some(())
    })
    .await;
    let error = conn.exec_drop(&statement, ()).await.unwrap_err();
    assert_eq!(server_error(&error).code, 3950);
}

async fn pins(proxy: &Proxy) -> f64 {
    proxy.metric("pinion_pins_total", &[]).await
}

#[tokio::test]
async fn policy_decides_what_pins() {
    let db = Server::mariadb().start().await;
    let rules = [
        r#"{ hook = "on-pin", contains = "@mine", verdict = "ignore" }"#,
        r#"{ hook = "on-pin", contains = "GET_LOCK", verdict = "reject", text = "no locks", sqlstate = "PN002", code = 3951, hint = "use FOR UPDATE" }"#,
        r#"{ hook = "on-pin", contains = "TEMPORARY", verdict = "ignore" }"#,
        r#"{ hook = "on-pin", contains = "sort_buffer_size", verdict = "replay" }"#,
        r#"{ hook = "on-pin", contains = "time_zone", verdict = "pin" }"#,
    ];
    for profile in ["smart", "rds"] {
        let proxy = with(&db, scripted(&["on-pin"], false, &rules)).profile(profile).start().await;
        let (a, b) = (proxy.mysql().await, proxy.mysql().await);

        // Ignored: nobody keeps the connection, and nobody else sees the value.
        for set in ["SET @mine = RAND()", "SELECT @mine := 5", "SELECT 5 INTO @mine"] {
            a.execute(set).await;
            assert_eq!(b.rows("SELECT @mine").await, [[None]], "{profile}: {set}");
            assert_eq!(pins(&proxy).await, 0.0, "{profile}: {set}");
        }

        // Replayed, in `rds` by policy and in `smart` without it.
        a.execute("SET SESSION sort_buffer_size = 300032").await;
        for _ in 0..2 {
            assert_eq!(a.scalar::<u32>("SELECT @@sort_buffer_size = 300032").await, 1);
            assert_eq!(b.scalar::<u32>("SELECT @@sort_buffer_size = 300032").await, 0);
        }
        assert_eq!(pins(&proxy).await, 0.0, "{profile}");

        // Rejected, before it ran, also when it was prepared.
        let rejection = (3951, "PN002".to_owned());
        assert_eq!(a.error("SELECT GET_LOCK('mine', 0)").await, rejection);
        let error = a.conn().await.exec_drop("SELECT GET_LOCK(?, 0)", ("mine",)).await.unwrap_err();
        assert_eq!(server_error(&error).message, "no locks (use FOR UPDATE)");
        assert_eq!(b.scalar::<i32>("SELECT IS_FREE_LOCK('mine')").await, 1);

        // There is nothing to ignore in what cannot be moved.
        a.execute("CREATE TEMPORARY TABLE scratch AS SELECT 5 AS n").await;
        assert_eq!(a.scalar::<i32>("SELECT n FROM scratch").await, 5);
        assert_eq!(pins(&proxy).await, 1.0, "{profile}");
        a.close().await;
        assert_eq!(b.errno("SELECT n FROM scratch").await, 1146);
    }
}

fn on_standby(cluster: &Cluster<MariaDb>, port: u16) -> bool {
    assert!(cluster.servers().any(|server| server.port() == port), "{port}");
    cluster.primary.port() != port
}

#[tokio::test]
async fn policy_decides_where_a_request_runs() {
    let cluster = Cluster::mariadb(1).await;
    let by_name = format!(
        r#"{{ hook = "on-route", contains = "by name", verdict = "target", text = "{}" }}"#,
        cluster.standbys[0].name()
    );
    let rules = [
        r#"{ hook = "on-route", contains = "to the writer", verdict = "writer" }"#,
        r#"{ hook = "on-route", contains = "to a reader", verdict = "reader" }"#,
        by_name.as_str(),
        r#"{ hook = "on-route", contains = "to nowhere", verdict = "target", text = "nowhere:3306" }"#,
        r#"{ hook = "on-route", contains = "refused", verdict = "reject", text = "not here", sqlstate = "PN003", code = 3952 }"#,
    ];
    let proxy =
        Proxy::in_front_of_cluster(&cluster).plugin(scripted(&["on-route"], false, &rules)).start().await;
    let client = proxy.mysql().await;
    let asked = async |client: &MySqlClient, words: &str| {
        let text = format!("SELECT @@port /* {words} */");
        let prepared: u16 = client.exec(&text, ()).await[0][0].as_deref().unwrap().parse().unwrap();
        let port = client.scalar::<u16>(&text).await;
        assert_eq!(prepared, port, "{words}");
        on_standby(&cluster, port)
    };
    assert!(!asked(&client, "no opinion").await);
    assert!(!asked(&client, "to the writer").await);
    assert!(asked(&client, "to a reader").await);
    assert!(asked(&client, "by name").await);
    assert_eq!(client.error("SELECT 1 /* to nowhere */").await, (9501, "HY000".to_owned()));
    assert_eq!(client.error("SELECT 1 /* refused */").await, (3952, "PN003".to_owned()));
    // A verdict holds for its request and not longer, and none is asked for within a transaction.
    assert!(!asked(&client, "no opinion").await);
    client.execute("BEGIN /* to a reader */").await;
    assert!(asked(&client, "to the writer").await);
    assert!(asked(&client, "refused").await);
    client.execute("COMMIT").await;
    assert!(!asked(&client, "no opinion").await);
    // An endpoint for reading leads to readers, whatever policy says.
    let reading = proxy.mysql_to("reader").await;
    assert!(asked(&reading, "to the writer").await);
    assert_eq!(reading.errno("SELECT 1 /* to nowhere */").await, 9501);
}

/// Plugins are asked in order; the first that has an opinion counts, and a rewrite is seen by those after it.
#[tokio::test]
async fn plugins_are_asked_in_order() {
    let db = Server::mariadb().start().await;
    let first = [
        r#"{ hook = "on-query", contains = "'a'", verdict = "rewrite", text = "'b'" }"#,
        r#"{ hook = "on-query", contains = "both", verdict = "reject", text = "the first", code = 3951 }"#,
    ];
    let second = [
        r#"{ hook = "on-query", contains = "'b'", verdict = "rewrite", text = "'c'" }"#,
        r#"{ hook = "on-query", contains = "both", verdict = "reject", text = "the second", code = 3952 }"#,
    ];
    let proxy = Proxy::in_front_of(&db)
        .plugin(scripted(&["on-query"], true, &first).named("first"))
        .plugin(scripted(&["on-query"], true, &second).named("second"))
        .start()
        .await;
    let client = proxy.mysql().await;
    assert_eq!(client.scalar::<String>("SELECT 'a'").await, "c");
    assert_eq!(client.exec("SELECT 'a'", ()).await, [[Some("c".to_owned())]]);
    assert_eq!(client.scalar::<String>("SELECT 'b'").await, "c");
    assert_eq!(client.errno("SELECT 'both'").await, 3951);
}

/// Every command that reaches a server is asked about; what is answered here is not.
#[tokio::test]
async fn every_way_to_the_server_is_asked_about() {
    let db = Server::mariadb().start().await;
    let rule =
        r#"{ hook = "on-query", contains = "", verdict = "reject", text = "nothing runs", code = 3954 }"#;
    let proxy = with(&db, scripted(&["on-query"], false, &[rule])).start().await;
    let mut raw = proxy.raw_mysql().await;
    let long = format!("SELECT '{}'", "x".repeat(5 << 20));
    for (what, text) in [
        ("query", "SELECT 1"),
        ("empty query", ""),
        ("several statements", "SELECT 1; SELECT 2"),
        ("a long query", long.as_str()),
        ("text that is no SQL", "no sql"),
        ("execute of SQL", "EXECUTE s"),
        ("call", "CALL p()"),
        ("file", "LOAD DATA LOCAL INFILE 'x' INTO TABLE t"),
        ("use", "USE otherdb"),
    ] {
        assert_eq!(failed(&raw.query(text).await).0, 3954, "{what}");
    }
    for (what, byte, body) in [
        ("database", command::INIT_DB, &b"otherdb"[..]),
        ("columns", command::FIELD_LIST, b"t\0"),
        ("reset", command::RESET_CONNECTION, b""),
    ] {
        assert_eq!(raw.simple(byte, body).await.unwrap_err().code, 3954, "{what}");
    }
    raw.command(command::STATISTICS, b"").await;
    assert!(raw.read().await.unwrap().starts_with(&[0xff]));
    let statement = raw.prepare("SELECT ?").await.unwrap();
    assert_eq!(failed(&raw.execute(statement.id, 0, &[Some("1")]).await).0, 3954);
    raw.send_long_data(statement.id, 0, b"long").await;
    assert_eq!(failed(&raw.execute(statement.id, 1, &[Some("1")]).await).0, 3954);
    raw.simple(command::PING, b"").await.unwrap();
    let log = db.general_log();
    let ran: Vec<&str> =
        log.lines().filter(|line| line.contains("Execute") || line.contains("Init DB")).collect();
    assert!(ran.is_empty(), "{ran:?}");
}

/// With `closed`, no statement runs that the plugin has not seen; with `open`, it runs as if there were none.
#[tokio::test]
async fn a_plugin_that_fails_closes_or_opens() {
    let db = Server::mariadb().start().await;
    for on_failure in ["closed", "open"] {
        let plugin = Plugin::fixture("hostile")
            .setting(&format!("on_failure = \"{on_failure}\""))
            .setting("config = { do = \"panic\", hooks = [\"on-query\"], hint = \"now\" }");
        let proxy = with(&db, plugin).start().await;
        let mut raw = proxy.raw_mysql().await;
        let statement = raw.prepare("SELECT 5 /* pinion:now */").await.unwrap();
        for replies in [raw.query("SELECT 5 /* pinion:now */").await, raw.execute(statement.id, 0, &[]).await]
        {
            if on_failure == "closed" {
                let message = "The policy plugin \"hostile\" failed, and its on_failure is \"closed\".";
                assert_eq!(failed(&replies), (1105, "HY000", message));
            } else {
                assert!(matches!(&replies[..], [Reply::Rows(rows)] if rows.rows.len() == 1), "{replies:?}");
            }
        }
        assert_eq!(raw.scalar("SELECT 6").await, "6");
        assert_eq!(proxy.metric("pinion_plugin_traps_total", &[("kind", "panic")]).await, 2.0);
    }
}

/// No query fails while plugins are replaced, and every answer comes from exactly one version.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn swaps_under_load_fail_no_query_and_mix_no_versions() {
    const CLIENTS: usize = 20;
    const SWAPS: u8 = 10;
    let db = Server::mariadb().without_general_log().start().await;
    let plugin =
        Plugin::fixture("versioned-v1").named("versioned").setting("config = { answer = \"rewrite\" }");
    let proxy = Proxy::in_front_of(&db).max_connections(5).admin().plugin(plugin).start().await;
    let stop = Arc::new(AtomicBool::new(false));
    let mut asking = Vec::new();
    for n in 0..CLIENTS {
        let (client, stop) = (proxy.mysql().await, stop.clone());
        asking.push(tokio::spawn(async move {
            let mut versions = BTreeSet::new();
            while !stop.load(Ordering::Relaxed) {
                let version: Option<String> = if n % 2 == 0 {
                    let mut conn = client.conn().await;
                    let statement = conn.prep("SELECT 'none'").await.unwrap();
                    let version = conn.exec_first(&statement, ()).await.unwrap();
                    conn.close(statement).await.unwrap();
                    version
                } else {
                    Some(client.scalar("SELECT 'none'").await)
                };
                versions.insert(version.unwrap());
            }
            versions
        }));
    }
    for swap in 0..SWAPS {
        let version = 2 - swap % 2;
        let file = Plugin::built(&format!("fixtures/versioned-v{version}"));
        replace_file(&file, &proxy.dir().join("versioned.wasm"));
        let (code, body) = proxy.admin("POST", "/plugins/versioned/reload").await;
        assert_eq!(code, 200, "{body}");
        let one = proxy.mysql().await;
        assert_eq!(one.scalar::<String>("SELECT 'none'").await, format!("v{version}"));
    }
    stop.store(true, Ordering::Relaxed);
    for asking in asking {
        let versions: Vec<String> = asking.await.unwrap().into_iter().collect();
        assert_eq!(versions, ["v1", "v2"]);
    }
}

/// One of the rule sets beside the plugin.
fn shipped_rules(name: &str) -> String {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../plugins/pin-filter").join(name);
    let text = fs::read_to_string(file).unwrap();
    // The section's head is written by the harness.
    text[text.find("[[proxy.plugin.config.rules]]").unwrap()..].to_owned()
}

fn filtering(db: &MariaDb, rules: &str) -> ProxyBuilder {
    with(db, Plugin::shipped("pin-filter").setting("on_failure = \"closed\"").setting(rules))
}

/// What a session must not see of another.
const SEEN: &str =
    "SELECT CONCAT_WS(' ', IFNULL(@mine, '-'), @@sort_buffer_size = 300032, @@time_zone, @@sql_mode = '')";

/// Row by row what `session_pinning_filters = ["EXCLUDE_VARIABLE_SETS"]` does, in both profiles.
#[tokio::test]
async fn exclude_variable_sets_is_what_the_built_in_filter_is() {
    let db = Server::mariadb().start().await;
    for profile in ["smart", "rds"] {
        let built_in = Proxy::in_front_of(&db)
            .max_connections(1)
            .profile(profile)
            .pool("session_pinning_filters = [\"EXCLUDE_VARIABLE_SETS\"]")
            .start()
            .await;
        let plugin =
            filtering(&db, &shipped_rules("exclude-variable-sets.toml")).profile(profile).start().await;
        for (statement, may_pin) in [
            ("SET @mine = 1", false),
            ("SET @mine = RAND()", false),
            ("SELECT @mine := 1", false),
            ("SELECT 1 INTO @mine", false),
            ("SET sort_buffer_size = 300032", false),
            ("SET time_zone = '+05:00'", false),
            ("SET sql_mode = ''", false),
            ("SET timestamp = 77", false),
            ("DO GET_LOCK('mine', 0)", true),
            ("CREATE TEMPORARY TABLE mine (n int)", true),
            ("LOCK TABLES t READ", true),
        ] {
            let mut seen = Vec::new();
            for proxy in [&built_in, &plugin] {
                let client = proxy.mysql().await;
                let before = pins(proxy).await;
                client.execute(statement).await;
                let pinned = pins(proxy).await - before;
                // Nobody sees what the other has set, be it that the first is still there.
                let next = if may_pin { None } else { Some(proxy.mysql().await) };
                if let Some(next) = &next {
                    assert_eq!(next.scalar::<String>(SEEN).await, "- 0 +00:00 0", "{profile}: {statement}");
                }
                client.close().await;
                let next = proxy.mysql().await;
                assert_eq!(next.scalar::<String>(SEEN).await, "- 0 +00:00 0", "{profile}: {statement}");
                assert_eq!(next.scalar::<i32>("SELECT IS_FREE_LOCK('mine')").await, 1);
                next.execute("UPDATE t SET v = 'next'").await;
                next.close().await;
                seen.push(pinned);
            }
            assert_eq!(seen, [f64::from(u8::from(may_pin)); 2], "{profile}: {statement}");
        }
    }
}

#[tokio::test]
async fn the_safe_rules_replay_what_they_list_and_pin_the_rest() {
    let db = Server::mariadb().start().await;
    for profile in ["smart", "rds"] {
        let proxy = filtering(&db, &shipped_rules("safe.toml")).profile(profile).start().await;
        let (a, b) = (proxy.mysql().await, proxy.mysql().await);
        a.execute("SET SESSION sort_buffer_size = 300032").await;
        a.execute("SET lock_wait_timeout = 77").await;
        b.execute("SET optimizer_search_depth = 7").await;
        let told = "SELECT CONCAT_WS(' ', @@sort_buffer_size = 300032, @@lock_wait_timeout = 77, \
                    @@optimizer_search_depth = 7)";
        for _ in 0..3 {
            assert_eq!(a.scalar::<String>(told).await, "1 1 0", "{profile}");
            assert_eq!(b.scalar::<String>(told).await, "0 0 1", "{profile}");
        }
        assert_eq!(pins(&proxy).await, 0.0, "{profile}: {}", proxy.log());
        // In `smart` it is followed without anybody having been asked.
        b.execute("SET SESSION group_concat_max_len = 777").await;
        assert_eq!(pins(&proxy).await, f64::from(u8::from(profile == "rds")));
        b.close().await;
        let before = pins(&proxy).await;
        a.execute("SET @mine = RAND()").await;
        assert_eq!(pins(&proxy).await - before, 1.0, "{profile}");
    }
}

#[tokio::test]
async fn rules_look_at_variable_user_and_statement() {
    let db = Server::mariadb().start().await;
    let rules = r#"
[[proxy.plugin.config.rules]]
variables = ["Sort_Buffer_*"]
users = ["app2"]
action = "reject"
message = "app2 has memory enough"
hint = "ask for less"
sqlstate = "PF001"
code = 3955

[[proxy.plugin.config.rules]]
variables = ["sort_buffer_size", "@*"]
action = "replay"

[[proxy.plugin.config.rules]]
reasons = ["advisory-lock"]
statements = ["select get_lock(?*"]
action = "reject"
message = "use SELECT … FOR UPDATE"
"#;
    let proxy = filtering(&db, rules).profile("rds").start().await;
    let app2 = proxy.mysql_as("app2").await;
    assert_eq!(app2.error("SET sort_buffer_size = 300032").await, (3955, "PF001".to_owned()));
    assert_eq!(app2.errno("SET @x = 1, sort_buffer_size = 300032").await, 3955);
    assert_eq!(app2.error("SELECT GET_LOCK('mine', 0)").await, (1227, "42000".to_owned()));
    app2.close().await;
    let (a, b) = (proxy.mysql().await, proxy.mysql().await);
    a.execute("SET sort_buffer_size = 300032").await;
    a.execute("SET @mine = 'a'").await;
    b.execute("SET @mine = 'b'").await;
    for _ in 0..3 {
        assert_eq!(a.scalar::<String>(SEEN).await, "a 1 +00:00 0");
        assert_eq!(b.scalar::<String>(SEEN).await, "b 0 +00:00 0");
    }
    assert_eq!(pins(&proxy).await, 0.0, "{}", proxy.log());
    // No rule fits: the profile decides.
    a.execute("SET join_buffer_size = 300032").await;
    assert_eq!(pins(&proxy).await, 1.0);
    // What is on nobody's list of things to do again is kept rather than done again.
    a.close().await;
    b.execute("SET @mine = RAND()").await;
    assert_eq!(pins(&proxy).await, 2.0);
}

/// A sink and its plugin. The folder holds the records and outlives the proxy.
fn audited(builder: ProxyBuilder, folder: &TempDir, config: &str) -> ProxyBuilder {
    let file = folder.path().join("audit.jsonl");
    let plugin = Plugin::shipped("audit")
        .grants(&["audit", "log", "metrics"])
        .setting(&format!("config = {{ {config} }}"));
    builder.top_setting("[audit]").top_setting(&format!("file = \"{}\"", file.display())).plugin(plugin)
}

fn records(folder: &TempDir) -> Vec<Value> {
    let files: Vec<PathBuf> =
        fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    let texts = files.iter().map(|file| fs::read_to_string(file).unwrap());
    let mut records: Vec<Value> = texts
        .flat_map(|text| text.lines().map(|line| serde_json::from_str(line).unwrap()).collect::<Vec<_>>())
        .collect();
    records.sort_by_key(|record| record["seq"].as_u64().unwrap());
    records
}

/// Waits for the record of the statement whose normalised or full text holds `part`.
async fn record(folder: &TempDir, part: &str) -> Value {
    poll(&format!("a record of {part}"), async || {
        records(folder)
            .into_iter()
            .find(|record| record["text"].as_str().is_some_and(|text| text.contains(part)))
    })
    .await
}

#[tokio::test]
async fn audit_records_who_did_what_where_and_how_it_ended() {
    let db = Server::mariadb().start().await;
    let folder = tempfile::tempdir().unwrap();
    let proxy = audited(Proxy::in_front_of(&db), &folder, "").start().await;
    let client = proxy.mysql().await;
    client.execute("CREATE TABLE orders (id int, name text)").await;
    client.execute("INSERT INTO orders VALUES (1, 'secret name'), (2, 'x'), (3, 'y')").await;
    let row = record(&folder, "insert into orders").await;
    let text = row["text"].as_str().unwrap();
    assert!(!text.contains("secret name") && text.contains('?'), "literals must not be recorded: {text}");
    for (field, expected) in [
        ("event", Value::from("statement")),
        ("user", "app".into()),
        ("database", "appdb".into()),
        ("client", "127.0.0.1".into()),
        ("endpoint", "default".into()),
        ("kind", "write".into()),
        ("rows", 3.into()),
        ("target", db.name().into()),
        ("role", "read-write".into()),
        ("pinned", false.into()),
        ("tables", vec!["orders"].into()),
    ] {
        assert_eq!(row[field], expected, "{field} of {row}");
    }
    assert!(row.get("error").is_none(), "{row}");

    // Rows and errors of several statements, by both protocols.
    assert_eq!(client.rows("SELECT id AS simple FROM orders").await.len(), 3);
    assert_eq!(record(&folder, "as simple").await["rows"], 3);
    client.errno("SELECT missing AS wrong FROM orders").await;
    assert_eq!(record(&folder, "as wrong").await["error"], "42S22");
    assert_eq!(client.exec("SELECT id AS prepared FROM orders WHERE id > ?", (1,)).await.len(), 2);
    let row = record(&folder, "as prepared").await;
    assert_eq!((&row["rows"], row.get("error")), (&Value::from(2), None), "{row}");
    client.exec("UPDATE orders SET name = ? WHERE id < ?", ("z", 3)).await;
    assert_eq!(record(&folder, "update orders").await["rows"], 2);
    let missing = client.conn().await.exec_drop("INSERT INTO orders VALUES (?, ?, ?)", (1, 2, 3)).await;
    assert!(missing.is_err());
    assert_eq!(client.rows("SELECT 1 AS one FROM orders; SELECT 2 AS two FROM orders").await.len(), 6);
    assert_eq!(record(&folder, "as two").await["rows"], 6);
    // The database is that of the moment of the login; what a statement names is in `tables`.
    client.execute("SET @mine = 'a secret'").await;
    let row = record(&folder, "set @mine").await;
    assert!(!row.to_string().contains("a secret"), "{row}");
    assert_eq!(row["kind"], "session");
    client.execute("CREATE TEMPORARY TABLE scratch (n int)").await;
    assert_eq!(record(&folder, "create temporary").await["pinned"], true);
    client.close().await;
    until("the session's end is recorded", async || {
        records(&folder).iter().any(|record| record["event"] == "session-end")
    })
    .await;
    // A prepared statement is one statement for each time it ran, and none for having been prepared.
    let prepared =
        records(&folder).iter().filter(|row| row["text"].to_string().contains("as prepared")).count();
    assert_eq!(prepared, 1);
}

/// Statements that are answered in other ways than by the server take nobody else's outcome.
#[tokio::test]
async fn outcomes_belong_to_their_statements() {
    let db = Server::mariadb().start().await;
    let folder = tempfile::tempdir().unwrap();
    let builder = with(&db, scripted(&["on-query"], false, &[NO_SECRETS]));
    let proxy = audited(builder, &folder, "text = \"full\"").start().await;
    let mut raw: RawMySql = proxy.raw_mysql().await;
    raw.query("SELECT 'secret'").await;
    raw.simple(command::PING, b"").await.unwrap();
    raw.query("INSERT INTO t (v) VALUES ('one'), ('two')").await;
    let row = record(&folder, "'two'").await;
    assert_eq!((&row["rows"], row.get("error")), (&Value::from(2), None), "{row}");
    let row = record(&folder, "'secret'").await;
    assert_eq!((&row["error"], row.get("target")), (&Value::from("PN001"), None), "{row}");
    // Pinned, with a prepare that fails, a reset, and a statement in a transaction that policy has undone.
    raw.ok("CREATE TEMPORARY TABLE mine (n int)").await;
    raw.prepare("SELEC").await.unwrap_err();
    raw.query("DELETE FROM t WHERE v = 'one'").await;
    assert_eq!(record(&folder, "DELETE FROM t").await["rows"], 2);
    raw.ok("BEGIN").await;
    raw.query("SELECT 'secret' AS again").await;
    raw.query("UPDATE t SET v = 'undone'").await;
    let row = record(&folder, "'undone'").await;
    assert_eq!((&row["rows"], &row["error"]), (&Value::from(0), &Value::from("HY000")), "{row}");
    raw.ok("ROLLBACK").await;
    raw.query("UPDATE t SET v = 'done'").await;
    let row = record(&folder, "'done'").await;
    assert_eq!((&row["rows"], row.get("error")), (&Value::from(3), None), "{row}");
    assert_eq!(db.direct().await.scalar::<i32>("SELECT count(*) FROM t WHERE v = 'undone'").await, 0);
}
