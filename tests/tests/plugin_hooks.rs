//! Every verdict of every hook, from a client's point of view, by a plugin whose script is its configuration.
#![allow(clippy::unwrap_used)]

use pinion_tests::{Client, Cluster, Plugin, Proxy, ProxyBuilder, RawClient, Server, until, wire};

/// `rules` in TOML's inline form, as in `{ hook = "on-query", contains = "x", verdict = "reject" }`.
fn scripted(hooks: &[&str], rewrite: bool, rules: &[&str]) -> Plugin {
    let config =
        format!("config = {{ hooks = {hooks:?}, rewrite = {rewrite}, rules = [{}] }}", rules.join(", "));
    Plugin::fixture("scripted").setting(&config)
}

fn with(pg: &Server, plugin: Plugin) -> ProxyBuilder {
    Proxy::in_front_of(pg).max_connections(1).plugin(plugin)
}

const NO_SECRETS: &str = r#"{ hook = "on-query", contains = "secret", verdict = "reject", text = "no secrets here", sqlstate = "PN001", hint = "ask politely" }"#;

/// The error of a statement: SQLSTATE, message and hint.
async fn error(client: &Client, sql: &str) -> (String, String, String) {
    let error = client.try_execute(sql).await.unwrap_err();
    let error = error.as_db_error().unwrap();
    (error.code().code().to_owned(), error.message().to_owned(), error.hint().unwrap_or_default().to_owned())
}

/// Tags of the answers up to the next ReadyForQuery, errors with their code, ReadyForQuery with its status.
async fn answers(raw: &mut RawClient) -> String {
    let mut tags = Vec::new();
    for message in raw.read_reply().await {
        tags.push(match message.tag {
            b'E' => format!("E:{}", message.error().code),
            b'Z' => format!("Z:{}", char::from(message.body[0])),
            tag => char::from(tag).to_string(),
        });
    }
    tags.join(" ")
}

#[tokio::test]
async fn a_rejected_statement_is_an_error_and_the_client_stays() {
    let pg = Server::postgres().start().await;
    let proxy = with(&pg, scripted(&["on-query"], false, &[NO_SECRETS])).start().await;
    let client = proxy.connect().await;
    let (code, message, hint) = error(&client, "SELECT 'secret'").await;
    assert_eq!(
        (code.as_str(), message.as_str(), hint.as_str()),
        ("PN001", "no secrets here", "ask politely")
    );
    assert_eq!(client.scalar::<i32>("SELECT 7").await, 7);
    // It never reached the server, nor did it cost a connection.
    let calls = [("plugin", "scripted"), ("hook", "on-query")];
    assert_eq!(
        proxy.metric("pinion_plugin_calls_total", &[calls[0], calls[1], ("verdict", "reject")]).await,
        1.0
    );
    assert_eq!(
        proxy.metric("pinion_plugin_calls_total", &[calls[0], calls[1], ("verdict", "pass")]).await,
        1.0
    );
}

#[tokio::test]
async fn a_rejected_execute_fails_its_pipeline_up_to_the_sync() {
    let pg = Server::postgres().start().await;
    let proxy = with(&pg, scripted(&["on-query"], false, &[NO_SECRETS])).start().await;
    proxy.connect().await.execute("CREATE TABLE kept (n int)").await;
    let mut raw = proxy.raw().await;
    raw.send_all(&[
        wire::parse("", "INSERT INTO kept VALUES (1)"),
        wire::bind("", "", &[]),
        wire::execute("", 0),
        wire::parse("", "SELECT 'secret'"),
        wire::bind("", "", &[]),
        wire::execute("", 0),
        wire::parse("", "INSERT INTO kept VALUES (2)"),
        wire::bind("", "", &[]),
        wire::execute("", 0),
        wire::sync(),
        wire::parse("", "INSERT INTO kept VALUES (3)"),
        wire::bind("", "", &[]),
        wire::execute("", 0),
        wire::sync(),
    ])
    .await;
    assert_eq!(answers(&mut raw).await, "1 2 C 1 2 E:PN001 Z:I");
    assert_eq!(answers(&mut raw).await, "1 2 C Z:I");
    // The pipeline is one implicit transaction: what ran before the rejection is undone.
    assert_eq!(proxy.connect().await.rows("SELECT n FROM kept").await, [[Some("3".to_owned())]]);
}

#[tokio::test]
async fn a_rejection_fails_the_transaction_so_that_no_commit_commits_half() {
    let pg = Server::postgres().start().await;
    let proxy = with(&pg, scripted(&["on-query"], false, &[NO_SECRETS])).start().await;
    let client = proxy.connect().await;
    client.execute("CREATE TABLE kept (n int)").await;
    client.execute("BEGIN").await;
    client.execute("INSERT INTO kept VALUES (1)").await;
    assert_eq!(error(&client, "SELECT 'secret'").await.0, "PN001");
    assert_eq!(client.sqlstate("SELECT 1").await, "25P02");
    client.execute("COMMIT").await;
    assert_eq!(client.scalar::<i32>("SELECT count(*) FROM kept").await, 0);

    // By the extended protocol, too; the connection then serves another client.
    let mut raw = proxy.raw().await;
    raw.send_all(&[wire::query("BEGIN")]).await;
    assert_eq!(answers(&mut raw).await, "C Z:T");
    raw.send_all(&[
        wire::parse("s", "SELECT 'secret'"),
        wire::bind("", "s", &[]),
        wire::execute("", 0),
        wire::sync(),
    ])
    .await;
    assert_eq!(answers(&mut raw).await, "1 2 E:PN001 Z:E");
    raw.send_all(&[wire::query("ROLLBACK")]).await;
    assert_eq!(answers(&mut raw).await, "C Z:I");
    assert_eq!(client.scalar::<i32>("SELECT 8").await, 8);
}

#[tokio::test]
async fn a_pinned_client_gets_its_rejection_too() {
    let pg = Server::postgres().start().await;
    let proxy = with(&pg, scripted(&["on-query"], false, &[NO_SECRETS])).start().await;
    let mut raw = proxy.raw().await;
    raw.send_all(&[wire::query("SET application_name = 'pinned'")]).await;
    raw.read_reply().await;
    raw.send_all(&[wire::query("SELECT 'secret'"), wire::query("SELECT 1")]).await;
    assert_eq!(answers(&mut raw).await, "E:PN001 Z:I");
    assert_eq!(answers(&mut raw).await, "T D C Z:I");
    raw.send_all(&[
        wire::parse("", "SELECT 'secret'"),
        wire::bind("", "", &[]),
        wire::execute("", 0),
        wire::sync(),
    ])
    .await;
    assert_eq!(answers(&mut raw).await, "1 2 E:PN001 Z:I");
    raw.send_all(&[wire::query("SHOW application_name")]).await;
    assert_eq!(answers(&mut raw).await, "T D C Z:I");
}

#[tokio::test]
async fn a_rewritten_query_runs_in_place_of_the_one_sent() {
    let pg = Server::postgres().start().await;
    let rules = [
        r#"{ hook = "on-query", contains = "'old'", verdict = "rewrite", text = "'new'" }"#,
        r#"{ hook = "on-query", contains = "drop", verdict = "reject", text = "no" }"#,
    ];
    let proxy = with(&pg, scripted(&["on-query"], true, &rules)).start().await;
    let client = proxy.connect().await;
    assert_eq!(client.scalar::<String>("SELECT 'old'").await, "new");
    assert_eq!(client.scalar::<String>("SELECT 'other'").await, "other");
    // Prepared, and executed again without another Parse.
    let statement = client.prepare("SELECT 'old' || $1::text").await.unwrap();
    for _ in 0..3 {
        let row = client.query_one(&statement, &[&"!"]).await.unwrap();
        assert_eq!(row.get::<_, String>(0), "new!");
    }
    // Unnamed, in a transaction.
    client.execute("BEGIN").await;
    let row = client.query_one("SELECT 'old'", &[]).await.unwrap();
    assert_eq!(row.get::<_, String>(0), "new");
    client.execute("COMMIT").await;
}

/// What a plugin makes of a statement is known anew: a rewrite into a SET pins as a SET does.
#[tokio::test]
async fn a_rewrite_is_known_anew() {
    let pg = Server::postgres().start().await;
    let rules = [
        r#"{ hook = "on-query", contains = "SELECT 'please set'", verdict = "rewrite", text = "SET application_name = 'set'" }"#,
    ];
    let proxy = with(&pg, scripted(&["on-query"], true, &rules)).start().await;
    let client = proxy.connect().await;
    client.execute("SELECT 'please set'").await;
    let other = proxy.connect().await;
    for _ in 0..3 {
        assert_ne!(other.scalar::<String>("SHOW application_name").await, "set");
        assert_eq!(client.scalar::<String>("SHOW application_name").await, "set");
    }
}

/// A plugin that comes to rewrite is obeyed for statements that were prepared before, too.
#[tokio::test]
async fn statements_prepared_before_a_reload_follow_the_new_policy() {
    let pg = Server::postgres().start().await;
    let rule = r#"{ hook = "on-query", contains = "'old'", verdict = "rewrite", text = "'first'" }"#;
    let proxy = with(&pg, scripted(&["on-query"], true, &[rule])).start().await;
    let client = proxy.connect().await;
    let statement = client.prepare("SELECT 'old'").await.unwrap();
    let ask = async || client.query_one(&statement, &[]).await.unwrap().get::<_, String>(0);
    assert_eq!(ask().await, "first");
    proxy.rewrite_config(|config| config.replace("'first'", "'second'"));
    proxy.sighup();
    until("the new policy rules", async || ask().await == "second").await;
    proxy.rewrite_config(|config| config.replace("contains = \"'old'\"", "contains = \"'none'\""));
    proxy.sighup();
    until("the statement is as it was sent", async || ask().await == "old").await;
}

#[tokio::test]
async fn policy_decides_whether_a_set_pins() {
    let pg = Server::postgres().start().await;
    let rules = [
        r#"{ hook = "on-pin", contains = "work_mem", verdict = "replay" }"#,
        r#"{ hook = "on-pin", contains = "statement_timeout", verdict = "ignore" }"#,
        r#"{ hook = "on-pin", contains = "search_path", verdict = "reject", text = "name your schemas", sqlstate = "PN002", hint = "as in app.orders" }"#,
        r#"{ hook = "on-pin", contains = "datestyle", verdict = "pin" }"#,
    ];
    let proxy = with(&pg, scripted(&["on-pin"], false, &rules)).start().await;
    let (a, b) = (proxy.connect().await, proxy.connect().await);
    let pins = async || proxy.metric("pinion_pins_total", &[]).await;

    // Replayed: the one server connection serves both, each with its own value.
    a.execute("SET work_mem = '7MB'").await;
    b.execute("SET work_mem = '9MB'").await;
    for _ in 0..3 {
        assert_eq!(a.scalar::<String>("SHOW work_mem").await, "7MB");
        assert_eq!(b.scalar::<String>("SHOW work_mem").await, "9MB");
    }
    assert_eq!(pins().await, 0.0);
    a.execute("RESET work_mem").await;
    assert_eq!(b.scalar::<String>("SHOW work_mem").await, "9MB");
    assert_eq!(a.scalar::<String>("SHOW work_mem").await, "4MB");
    b.execute("RESET ALL").await;
    assert_eq!(b.scalar::<String>("SHOW work_mem").await, "4MB");

    // Ignored: nobody keeps the connection, and nobody else sees the value.
    a.execute("SET statement_timeout = '77s'").await;
    assert_eq!(b.scalar::<String>("SHOW statement_timeout").await, "0");
    assert_eq!(pins().await, 0.0);

    // Rejected, before it ran.
    let (code, message, hint) = error(&a, "SET search_path = app").await;
    assert_eq!(
        (code.as_str(), message.as_str(), hint.as_str()),
        ("PN002", "name your schemas", "as in app.orders")
    );
    assert_eq!(a.scalar::<String>("SHOW search_path").await, "\"$user\", public");
    assert_eq!(error(&a, "SELECT set_config('search_path', 'app', false)").await.0, "PN002");

    // Pinned, and moved where policy has no opinion.
    a.execute("SET datestyle = 'German'").await;
    assert_eq!(pins().await, 1.0);
    assert_eq!(a.scalar::<String>("SHOW datestyle").await, "German, DMY");
    a.execute("RESET ALL").await;
    a.execute("SET lock_timeout = '5s'").await;
    assert_eq!(b.scalar::<String>("SHOW lock_timeout").await, "0");
    assert_eq!(a.scalar::<String>("SHOW lock_timeout").await, "5s");
    assert_eq!(pins().await, 1.0);
}

/// In profile `rds` a text is run again or it is not: a replayed SET inside a transaction could be rolled back, so it pins.
#[tokio::test]
async fn a_replay_in_a_transaction_counts_as_a_pin() {
    let pg = Server::postgres().start().await;
    let rules = [r#"{ hook = "on-pin", contains = "work_mem", verdict = "replay" }"#];
    let proxy = with(&pg, scripted(&["on-pin"], false, &rules)).profile("rds").start().await;
    let client = proxy.connect().await;
    client.execute("BEGIN").await;
    client.execute("SET work_mem = '7MB'").await;
    client.execute("COMMIT").await;
    assert_eq!(proxy.metric("pinion_pins_total", &[("reason", "session-variable")]).await, 1.0);
    assert_eq!(client.scalar::<String>("SHOW work_mem").await, "7MB");
    // Two at once are no single SET to replay, and a failed one sets nothing.
    let other =
        Proxy::in_front_of(&pg).plugin(scripted(&["on-pin"], false, &rules)).profile("rds").start().await;
    let client = other.connect().await;
    client.sqlstate("SET work_mem = 'much'").await;
    assert_eq!(client.scalar::<String>("SHOW work_mem").await, "4MB");
    client.execute("SET work_mem = '5MB'; SET work_mem = '6MB'").await;
    assert_eq!(other.metric("pinion_pins_total", &[("reason", "session-variable")]).await, 1.0);
    assert_eq!(client.scalar::<String>("SHOW work_mem").await, "6MB");
}

/// A setting that cannot be made again fails the request, never runs it without the setting.
#[tokio::test]
async fn a_replay_that_fails_is_told() {
    let pg = Server::postgres().start().await;
    let rules = [r#"{ hook = "on-pin", contains = "log_duration", verdict = "replay" }"#];
    let proxy = with(&pg, scripted(&["on-pin"], false, &rules)).start().await;
    let admin = pg.direct().await;
    admin.execute("GRANT SET ON PARAMETER log_duration TO app").await;
    let (a, b) = (proxy.connect().await, proxy.connect().await);
    a.execute("SET log_duration = on").await;
    assert_eq!(b.scalar::<String>("SHOW log_duration").await, "off");
    assert_eq!(a.scalar::<String>("SHOW log_duration").await, "on");
    admin.execute("REVOKE SET ON PARAMETER log_duration FROM app").await;
    b.execute("SELECT 1").await;
    let (code, message, _) = error(&a, "SELECT 1").await;
    assert_eq!(code, "55000");
    assert!(message.contains("permission denied to set parameter"), "{message}");
    // Nobody else is concerned.
    assert_eq!(b.scalar::<String>("SHOW log_duration").await, "off");
}

#[tokio::test]
async fn policy_decides_where_a_request_runs() {
    let cluster = Cluster::start(1).await;
    let standby = &cluster.standbys[0];
    let to_standby = format!(
        r#"{{ hook = "on-route", contains = "by name", verdict = "target", text = "{}" }}"#,
        standby.name()
    );
    let rules = [
        r#"{ hook = "on-route", contains = "to the writer", verdict = "writer" }"#,
        r#"{ hook = "on-route", contains = "to a reader", verdict = "reader" }"#,
        to_standby.as_str(),
        r#"{ hook = "on-route", contains = "to nowhere", verdict = "target", text = "nowhere:5432" }"#,
        r#"{ hook = "on-route", contains = "refused", verdict = "reject", text = "not here", sqlstate = "PN003" }"#,
    ];
    let proxy = Proxy::in_front_of_cluster(&cluster)
        .endpoint("reading", "READ_ONLY")
        .plugin(scripted(&["on-route"], false, &rules))
        .start()
        .await;
    let client = proxy.connect().await;
    let on_standby = async |client: &Client, words: &str| {
        client.scalar::<String>(&format!("SELECT pg_is_in_recovery() /* {words} */")).await == "t"
    };
    assert!(!on_standby(&client, "no opinion").await);
    assert!(!on_standby(&client, "to the writer").await);
    assert!(on_standby(&client, "to a reader").await);
    assert!(on_standby(&client, "by name").await);
    assert_eq!(error(&client, "SELECT 1 /* to nowhere */").await.0, "08000");
    let (code, message, _) = error(&client, "SELECT 1 /* refused */").await;
    assert_eq!((code.as_str(), message.as_str()), ("PN003", "not here"));
    // A verdict holds for its request and not longer, and none is asked for within a transaction.
    assert!(!on_standby(&client, "no opinion").await);
    client.execute("BEGIN /* to a reader */").await;
    assert!(on_standby(&client, "to the writer").await);
    assert!(on_standby(&client, "refused").await);
    client.execute("COMMIT").await;
    assert!(!on_standby(&client, "no opinion").await);
    // Rejected in a pipeline, the rest of it is skipped and the next one is served.
    let mut raw = proxy.raw().await;
    let batch = |sql: &str| {
        [wire::parse("", sql), wire::bind("", "", &[]), wire::execute("", 0), wire::sync()].concat()
    };
    raw.send_all(&[batch("SELECT 1 /* refused */"), batch("SELECT 2")]).await;
    assert_eq!(answers(&mut raw).await, "E:PN003 Z:I");
    assert_eq!(answers(&mut raw).await, "1 2 D C Z:I");
    // An endpoint for reading leads to readers, whatever policy says.
    let reading = proxy.connect_to("reading").await;
    assert!(on_standby(&reading, "to the writer").await);
    let by_writers_name = error(&reading, "SELECT 1 /* to nowhere */").await.0;
    assert_eq!(by_writers_name, "08000");
}

/// Plugins are asked in order; the first that has an opinion counts, and a rewrite is seen by those after it.
#[tokio::test]
async fn plugins_are_asked_in_order() {
    let pg = Server::postgres().start().await;
    let first = [
        r#"{ hook = "on-query", contains = "'a'", verdict = "rewrite", text = "'b'" }"#,
        r#"{ hook = "on-query", contains = "both", verdict = "reject", text = "the first" }"#,
    ];
    let second = [
        r#"{ hook = "on-query", contains = "'b'", verdict = "rewrite", text = "'c'" }"#,
        r#"{ hook = "on-query", contains = "both", verdict = "reject", text = "the second" }"#,
    ];
    let proxy = Proxy::in_front_of(&pg)
        .plugin(scripted(&["on-query"], true, &first).named("first"))
        .plugin(scripted(&["on-query"], true, &second).named("second"))
        .start()
        .await;
    let client = proxy.connect().await;
    assert_eq!(client.scalar::<String>("SELECT 'a'").await, "c");
    assert_eq!(client.scalar::<String>("SELECT 'b'").await, "c");
    assert_eq!(error(&client, "SELECT 'both'").await.1, "the first");
}

/// Function calls and statements too long to be read are asked about as well.
#[tokio::test]
async fn every_way_to_the_server_is_asked_about() {
    let pg = Server::postgres().start().await;
    let rules = [
        r#"{ hook = "on-query", contains = "", verdict = "reject", text = "nothing runs", sqlstate = "PN004" }"#,
    ];
    let proxy = with(&pg, scripted(&["on-query"], false, &rules)).start().await;
    let mut raw = proxy.raw().await;
    let long = format!("SELECT '{}'", "x".repeat(2 << 20));
    for (what, message) in [
        ("query", wire::query("SELECT 1")),
        ("empty query", wire::query("")),
        ("several statements", wire::query("SELECT 1; SELECT 2")),
        ("a long query", wire::query(&long)),
        ("text that is no SQL", wire::query("no sql")),
        ("execute of SQL", wire::query("EXECUTE s")),
        ("copy", wire::query("COPY pg_class TO STDOUT")),
        ("function call", wire::function_call(1598, &[])),
    ] {
        raw.send_all(&[message]).await;
        assert_eq!(answers(&mut raw).await, "E:PN004 Z:I", "{what}");
    }
    raw.send_all(&[wire::parse("", "SELECT 1"), wire::bind("", "", &[]), wire::execute("", 0), wire::sync()])
        .await;
    assert_eq!(answers(&mut raw).await, "1 2 E:PN004 Z:I");
    raw.send_all(&[wire::parse("s", &long), wire::sync()]).await;
    assert_eq!(answers(&mut raw).await, "E:PN004 Z:I");
}
