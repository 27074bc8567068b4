//! Clients that try to get past policy, or to leave something behind by it: odd pipelines, names used twice, reloads in
//! between. One server connection for everybody.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use pinion_tests::{Plugin, Proxy, RawClient, Server, poll, until, wire};
use serde_json::Value;

/// `rules` in TOML's inline form.
fn scripted(name: &str, hooks: &[&str], rewrite: bool, rules: &[&str]) -> Plugin {
    let rules = rules.join(", ");
    let config = format!("config = {{ hooks = {hooks:?}, rewrite = {rewrite}, rules = [{rules}] }}");
    Plugin::fixture("scripted").named(name).setting(&config)
}

const NO_SECRETS: &str = r#"{ hook = "on-query", contains = "secret", verdict = "reject", text = "no secrets", sqlstate = "PN001" }"#;
const MASK: &str = r#"{ hook = "on-query", contains = "'old'", verdict = "rewrite", text = "'masked'" }"#;
const REPLAY: &str = r#"{ hook = "on-pin", contains = "search_path", verdict = "replay" }"#;

struct Bench {
    pg: Server,
    proxy: Proxy,
}

async fn bench(plugins: &[Plugin]) -> Bench {
    let pg = Server::postgres().start().await;
    let builder =
        Proxy::in_front_of(&pg).admin().max_connections(1).pool("connection_borrow_timeout = \"5s\"");
    let proxy = plugins.iter().cloned().fold(builder, |builder, plugin| builder.plugin(plugin)).start().await;
    Bench { pg, proxy }
}

impl Bench {
    async fn next_sees(&self) -> String {
        let mut next = self.proxy.raw().await;
        tokio::time::timeout(Duration::from_secs(10), next.scalar("SHOW search_path")).await.expect("served")
    }
}

const CLEAN: &str = "\"$user\", public";

/// Parse, Bind and Execute of the unnamed statement.
fn run(sql: &str) -> Vec<u8> {
    [wire::parse("", sql), wire::bind("", "", &[]), wire::execute("", 0)].concat()
}

/// The same for several, with all Parses first: behind a SET or a BEGIN they would not be believed.
fn run_all(statements: &[&str]) -> Vec<u8> {
    let parses = statements.iter().enumerate().map(|(n, sql)| wire::parse(&format!("n{n}"), sql));
    let runs =
        (0..statements.len()).map(|n| [wire::bind("", &format!("n{n}"), &[]), wire::execute("", 0)].concat());
    let closes = (0..statements.len()).map(|n| wire::close_statement(&format!("n{n}")));
    let parts: Vec<_> =
        parses.chain([wire::sync()]).chain(runs).chain([wire::sync()]).chain(closes).collect();
    [parts.concat(), wire::sync()].concat()
}

/// Tags up to the ReadyForQuery, errors with their code and first column values.
async fn answers(raw: &mut RawClient) -> String {
    let reply = tokio::time::timeout(Duration::from_secs(15), raw.read_reply()).await.expect("an answer");
    let mut parts = Vec::new();
    for message in reply {
        parts.push(match message.tag {
            b'E' => format!("E:{}", message.error().code),
            b'D' => format!("D:{}", message.columns()[0].clone().unwrap_or_default()),
            b'Z' => format!("Z:{}", char::from(message.body[0])),
            tag => char::from(tag).to_string(),
        });
    }
    parts.join(" ")
}

/// Reloads with the change and waits until it counts.
async fn reload(bench: &Bench, from: &str, to: &str) {
    let loads = async || -> u64 {
        let (_, plugins) = bench.proxy.admin("GET", "/plugins").await;
        let plugins = plugins["plugins"].as_array().unwrap().clone();
        plugins.iter().filter_map(|plugin: &Value| plugin["loads_applied"].as_u64()).sum()
    };
    let before = loads().await;
    bench.proxy.rewrite_config(|config| {
        assert!(config.contains(from), "{from} is not in the configuration");
        config.replace(from, to)
    });
    bench.proxy.sighup();
    poll("the reload", async || (loads().await > before).then_some(())).await;
}

#[tokio::test]
async fn a_rejection_behind_statements_that_stay() {
    let bench = bench(&[scripted("guard", &["on-query"], false, &[NO_SECRETS])]).await;
    let mut a = bench.proxy.raw().await;
    a.send_all(&[
        wire::parse("s", "SET search_path TO evil"),
        wire::parse("c", "COMMIT"),
        wire::sync(),
        wire::bind("", "s", &[]),
        wire::execute("", 0),
        wire::bind("", "c", &[]),
        wire::execute("", 0),
        wire::query("SELECT 'secret'"),
    ])
    .await;
    assert_eq!(answers(&mut a).await, "1 1 Z:I");
    assert_eq!(answers(&mut a).await, "2 C 2 N C E:PN001 Z:I");
    drop(a);
    assert_eq!(bench.next_sees().await, CLEAN);
}

/// The words of a rejection are for whom they were meant.
#[tokio::test]
async fn a_rejection_that_the_server_never_reached() {
    let bench = bench(&[scripted("guard", &["on-query"], false, &[NO_SECRETS])]).await;
    let mut a = bench.proxy.raw().await;
    a.send_all(&[wire::parse("", "SELEC"), wire::query("SELECT 'secret'"), wire::sync()]).await;
    assert_eq!(answers(&mut a).await, "E:42601 Z:I");
    let mut b = bench.proxy.raw().await;
    b.send_all(&[wire::query("SELECT nonsense")]).await;
    assert_eq!(answers(&mut b).await, "E:42703 Z:I");
}

#[tokio::test]
async fn a_rewrite_in_a_batch_that_changed_how_text_is_read() {
    let rule = r#"{ hook = "on-query", contains = "harmless", verdict = "rewrite", text = "set_config($$search_path$$, $$evil$$, false) --" }"#;
    let bench = bench(&[scripted("writer", &["on-query"], true, &[rule])]).await;
    let mut a = bench.proxy.raw().await;
    a.send_all(&[
        run("SET LOCAL standard_conforming_strings = off"),
        run(r"SELECT '\' || ', harmless'"),
        wire::sync(),
    ])
    .await;
    answers(&mut a).await;
    drop(a);
    assert_eq!(bench.next_sees().await, CLEAN);
}

/// Settings that are replayed, and what transactions around them undo or keep.
#[tokio::test]
async fn replayed_settings_and_transactions_in_one_pipeline() {
    let bench = bench(&[scripted("replay", &["on-pin"], false, &[REPLAY])]).await;
    for statements in [
        &["BEGIN", "RESET ALL", "ROLLBACK"][..],
        &["BEGIN", "RESET search_path", "ROLLBACK"],
        &["SET search_path TO evil2", "COMMIT", "SELECT 1 / 0"],
        &["SET search_path TO evil3", "ROLLBACK"],
        &["SET search_path TO evil4", "RESET ALL"],
        &["RESET ALL", "SET search_path TO evil5"],
    ] {
        let (mut a, mut other) = (bench.proxy.raw().await, bench.proxy.raw().await);
        a.send_all(&[wire::query("SET search_path TO evil")]).await;
        answers(&mut a).await;
        a.send_all(&[run_all(statements)]).await;
        for _ in 0..3 {
            answers(&mut a).await;
        }
        // What a connection of its own would show.
        let mut direct = RawClient::connect(&bench.pg.address()).await;
        direct.send_all(&[wire::query("SET search_path TO evil"), run_all(statements)]).await;
        for _ in 0..4 {
            answers(&mut direct).await;
        }
        let expected = direct.scalar("SHOW search_path").await;
        assert_eq!(a.scalar("SHOW search_path").await, expected, "{statements:?}");
        // The client goes, unless it was not pinned and the connection is free for another anyway.
        drop(a);
        assert_eq!(other.scalar("SHOW search_path").await, CLEAN, "{statements:?}");
        drop(other);
        assert_eq!(bench.next_sees().await, CLEAN, "{statements:?}");
    }
}

/// A label of settings is worth something only when the server has them.
#[tokio::test]
async fn a_client_with_the_same_settings_has_them_whatever_the_last_one_did() {
    let bench = bench(&[scripted("replay", &["on-pin"], false, &[REPLAY])]).await;
    let mut victim = bench.proxy.raw().await;
    victim.send_all(&[wire::query("SET search_path TO evil")]).await;
    answers(&mut victim).await;
    for statements in [&["SET search_path TO evil", "ROLLBACK"], &["SET search_path TO evil", "RESET ALL"]] {
        let mut a = bench.proxy.raw().await;
        a.send_all(&[run_all(statements)]).await;
        for _ in 0..3 {
            answers(&mut a).await;
        }
        drop(a);
        assert_eq!(victim.scalar("SHOW search_path").await, "evil", "{statements:?}");
    }
}

/// A pin does not end by what a rollback brings back.
#[tokio::test]
async fn a_listen_survives_an_unlisten_that_is_rolled_back() {
    let pg = Server::postgres().start().await;
    let proxy = Proxy::in_front_of(&pg).max_connections(1).start().await;
    let mut a = proxy.raw().await;
    a.send_all(&[wire::query("LISTEN news")]).await;
    answers(&mut a).await;
    a.send_all(&[run_all(&["BEGIN", "UNLISTEN *", "ROLLBACK"])]).await;
    for _ in 0..3 {
        answers(&mut a).await;
    }
    assert_eq!(a.scalar("SELECT count(*) FROM pg_listening_channels()").await, "1");
}

#[tokio::test]
async fn pipelines_are_routed_wherever_a_read_cuts_them() {
    let bench = bench(&[scripted("route", &["on-route"], false, &[])]).await;
    let mut a = bench.proxy.raw().await;
    a.send_all(&[wire::query("SELECT pg_sleep(0.2)"), wire::parse("", "SELECT 7")]).await;
    assert_eq!(answers(&mut a).await, "T D: C Z:I");
    a.send_all(&[wire::bind("", "", &[]), wire::execute("", 0), wire::sync()]).await;
    assert_eq!(answers(&mut a).await, "1 2 D:7 C Z:I");
    let many: Vec<Vec<u8>> =
        (0..2000).map(|n| [run(&format!("SELECT {n}")), wire::sync()].concat()).collect();
    a.send_all(&many).await;
    for n in 0..2000 {
        assert_eq!(answers(&mut a).await, format!("1 2 D:{n} C Z:I"));
    }
    // Asked once a request, however it comes.
    let calls = async || bench.proxy.metric("pinion_plugin_calls_total", &[("hook", "on-route")]).await;
    let before = calls().await;
    let request = [run("SELECT 8"), wire::sync()].concat();
    for byte in request {
        a.send_bytes(&[byte]).await;
    }
    assert_eq!(answers(&mut a).await, "1 2 D:8 C Z:I");
    assert_eq!(calls().await, before + 1.0);
}

/// A name that is refused a second Parse keeps its statement, and policy its say.
#[tokio::test]
async fn names_used_twice_do_not_get_past_a_new_policy() {
    let bench = bench(&[scripted(
        "mask",
        &["on-query"],
        true,
        &[r#"{ hook = "on-query", contains = "'none'", verdict = "rewrite", text = "" }"#],
    )])
    .await;
    let mut a = bench.proxy.raw().await;
    a.send_all(&[wire::parse("s1", "SELECT 'old'"), wire::parse("m", "SELECT 'mine'"), wire::sync()]).await;
    assert_eq!(answers(&mut a).await, "1 1 Z:I");
    a.send_all(&[wire::parse("m", "SELECT 'refused'"), wire::sync()]).await;
    assert_eq!(answers(&mut a).await, "E:42P05 Z:I");
    reload(
        &bench,
        "contains = \"'none'\", verdict = \"rewrite\", text = \"\"",
        "contains = \"'old'\", verdict = \"rewrite\", text = \"'masked'\"",
    )
    .await;
    a.send_all(&[wire::parse("s1", "SELECT 1"), wire::sync()]).await;
    assert_eq!(answers(&mut a).await, "E:42P05 Z:I");
    let bound = |name: &str| [wire::bind("", name, &[]), wire::execute("", 0), wire::sync()].concat();
    a.send_all(&[bound("s1")]).await;
    assert_eq!(answers(&mut a).await, "2 D:masked C Z:I");
    a.send_all(&[bound("m")]).await;
    assert_eq!(answers(&mut a).await, "2 D:mine C Z:I");
    // By SQL, too.
    a.send_all(&[wire::query("EXECUTE s1")]).await;
    assert_eq!(answers(&mut a).await, "T D:masked C Z:I");
}

/// A name that was closed and taken again stands for the new statement, whatever came and went meanwhile.
#[tokio::test]
async fn a_name_taken_again_while_nobody_rewrites() {
    let bench = bench(&[scripted("mask", &["on-query"], true, &[MASK])]).await;
    let mut a = bench.proxy.raw().await;
    a.send_all(&[wire::parse("n", "SELECT 'first'"), wire::sync()]).await;
    answers(&mut a).await;
    a.send_all(&[wire::close_statement("n"), wire::sync()]).await;
    answers(&mut a).await;
    reload(&bench, "rewrite = true", "rewrite = false").await;
    a.send_all(&[wire::parse("n", "SELECT 'second'"), wire::sync()]).await;
    answers(&mut a).await;
    reload(&bench, "rewrite = false", "rewrite = true").await;
    a.send_all(&[wire::bind("", "n", &[]), wire::execute("", 0), wire::sync()]).await;
    assert_eq!(answers(&mut a).await, "2 D:second C Z:I");
}

/// SQL `EXECUTE` runs a statement as well as Execute does.
#[tokio::test]
async fn sql_execute_of_a_statement_that_policy_refuses() {
    let bench = bench(&[scripted("guard", &["on-query"], false, &[NO_SECRETS])]).await;
    let mut a = bench.proxy.raw().await;
    a.send_all(&[wire::parse("s1", "SELECT 'secret'"), wire::parse("s2", "SELECT 'open'"), wire::sync()])
        .await;
    assert_eq!(answers(&mut a).await, "1 1 Z:I");
    for text in ["EXECUTE s1", "EXPLAIN ANALYZE EXECUTE s1", "SELECT 1; EXECUTE s1"] {
        a.send_all(&[wire::query(text)]).await;
        assert_eq!(answers(&mut a).await, "E:PN001 Z:I", "{text}");
        a.send_all(&[run(text), wire::sync()]).await;
        let answer = answers(&mut a).await;
        assert!(answer.contains("E:PN001") || text.contains(';'), "{text}: {answer}");
    }
    a.send_all(&[wire::query("EXECUTE s2")]).await;
    assert_eq!(answers(&mut a).await, "T D:open C Z:I");
    a.send_all(&[wire::query("DEALLOCATE s1")]).await;
    assert_eq!(answers(&mut a).await, "C Z:I");
}

/// A setting that fails on every connection can be taken back.
#[tokio::test]
async fn a_lost_setting_can_be_reset() {
    let rule = r#"{ hook = "on-pin", contains = "log_duration", verdict = "replay" }"#;
    let bench = bench(&[scripted("replay", &["on-pin"], false, &[rule])]).await;
    let admin = bench.pg.direct().await;
    admin.execute("GRANT SET ON PARAMETER log_duration TO app").await;
    let (mut a, mut b) = (bench.proxy.raw().await, bench.proxy.raw().await);
    a.send_all(&[wire::query("SET log_duration = on")]).await;
    answers(&mut a).await;
    admin.execute("REVOKE SET ON PARAMETER log_duration FROM app").await;
    b.scalar("SELECT 1").await;
    for _ in 0..3 {
        a.send_all(&[wire::query("SELECT 1")]).await;
        assert_eq!(answers(&mut a).await, "E:55000 Z:I");
    }
    a.send_all(&[wire::query("RESET ALL")]).await;
    assert_eq!(answers(&mut a).await, "C Z:I");
    a.send_all(&[wire::query("SELECT 1")]).await;
    assert_eq!(answers(&mut a).await, "T D:1 C Z:I");
}

/// Many settings in one request are not kept one and all.
#[tokio::test]
async fn a_flood_of_settings_pins_and_takes_little_memory() {
    let bench = bench(&[scripted("replay", &["on-pin"], false, &[REPLAY])]).await;
    let mut a = bench.proxy.raw().await;
    let before = bench.proxy.memory_kib("VmRSS");
    let long = format!("SET search_path = {}", vec!["aaaaaaaaa"; 50_000].join(", "));
    a.send_all(&[wire::parse("s", &long), wire::sync()]).await;
    answers(&mut a).await;
    let runs: Vec<Vec<u8>> =
        (0..300).map(|_| [wire::bind("", "s", &[]), wire::execute("", 0)].concat()).collect();
    a.send_all(&runs).await;
    a.send_all(&[wire::sync()]).await;
    answers(&mut a).await;
    let after = bench.proxy.memory_kib("VmRSS");
    assert!(after < before + 64 * 1024, "from {before} to {after} KiB");
    until("the session is pinned", async || {
        bench.proxy.metric("pinion_pins_total", &[("reason", "session-variable")]).await == 1.0
    })
    .await;
    let after = bench.proxy.memory_kib("VmRSS");
    assert!(after < before + 64 * 1024, "from {before} to {after} KiB");
}
