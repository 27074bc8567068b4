//! Plugins that misbehave, as real files under the real limits: what the client sees, that a neighbour goes on, what
//! is logged and counted, and that a plugin which keeps failing is switched off.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use pinion_tests::{Client, Plugin, Proxy, Server};

/// Misbehaves for statements with the hint `now`.
fn hostile(misdeed: &str, on_failure: &str, more: &str) -> Plugin {
    Plugin::fixture("hostile")
        .grants(&["log", "metrics", "store", "clock"])
        .setting(&format!("on_failure = \"{on_failure}\""))
        .setting(&format!("config = {{ do = \"{misdeed}\", hooks = [\"on-query\"], hint = \"now\"{more} }}"))
}

/// A plugin that lets everything pass, and counts.
fn neighbour() -> Plugin {
    Plugin::fixture("versioned-v1").named("neighbour").setting("config = { answer = \"pass\" }")
}

const CLOSED: &str = "The policy plugin \"hostile\" failed, and its on_failure is \"closed\".";

/// SQLSTATE and message of a statement that fails, or its value.
async fn outcome(client: &Client, sql: &str) -> Result<String, (String, String)> {
    match client.simple_query(sql).await {
        Ok(messages) => Ok(messages
            .iter()
            .find_map(|message| match message {
                tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
                _ => None,
            })
            .unwrap_or_default()),
        Err(error) => {
            let error = error.as_db_error().unwrap();
            Err((error.code().code().to_owned(), error.message().to_owned()))
        }
    }
}

async fn traps(proxy: &Proxy, kind: &str) -> f64 {
    proxy.metric("pinion_plugin_traps_total", &[("plugin", "hostile"), ("kind", kind)]).await
}

async fn state(proxy: &Proxy, plugin: &str) -> String {
    let (_, plugins) = proxy.admin("GET", "/plugins").await;
    let plugins = plugins["plugins"].as_array().unwrap().clone();
    plugins.iter().find(|known| known["name"] == plugin).unwrap()["state"].as_str().unwrap().to_owned()
}

/// Misdeed, the kind of trap that is counted, and a part of the log line.
const TRAPS: [(&str, &str, &str); 5] = [
    ("loop", "deadline", "deadline"),
    ("memory", "memory", "memory"),
    ("recursion", "stack", "stack"),
    ("panic", "panic", "told to panic"),
    ("oversized", "memory", "memory"),
];

#[tokio::test]
async fn a_trap_costs_one_statement_at_most() {
    for (misdeed, kind, logged) in TRAPS {
        for on_failure in ["open", "closed"] {
            let pg = Server::postgres().start().await;
            let proxy = Proxy::in_front_of(&pg)
                .max_connections(2)
                .admin()
                .plugin(neighbour())
                // Filling all of its memory takes longer than the usual deadline.
                .plugin(hostile(misdeed, on_failure, "").setting("deadline = \"100ms\""))
                .start()
                .await;
            let client = proxy.connect().await;
            assert_eq!(outcome(&client, "SELECT 1").await.unwrap(), "1", "{misdeed}");
            let seen = outcome(&client, "/* pinion:now */ SELECT 2").await;
            match on_failure {
                "open" => assert_eq!(seen.unwrap(), "2", "{misdeed}"),
                _ => assert_eq!(seen.unwrap_err(), ("58000".to_owned(), CLOSED.to_owned()), "{misdeed}"),
            }
            // The next statement has a fresh instance, and the neighbour has noticed nothing.
            assert_eq!(outcome(&client, "SELECT 3").await.unwrap(), "3", "{misdeed}");
            assert_eq!(traps(&proxy, kind).await, 1.0, "{misdeed} {on_failure}\n{}", proxy.log());
            proxy.logged(logged).await;
            assert_eq!(state(&proxy, "hostile").await, "running", "{misdeed}");
            let calls = [("plugin", "neighbour"), ("hook", "on-query"), ("verdict", "pass")];
            assert_eq!(proxy.metric("pinion_plugin_calls_total", &calls).await, 3.0, "{misdeed}");
            assert_eq!(proxy.metric("pinion_plugin_traps_total", &[("plugin", "neighbour")]).await, 0.0);
        }
    }
}

/// How long 99 of 100 statements took at most, of 1,000.
async fn p99(client: &Client) -> Duration {
    let mut times = Vec::new();
    for n in 0..1_000 {
        let begun = Instant::now();
        assert_eq!(outcome(client, &format!("SELECT {n}")).await.unwrap(), n.to_string());
        times.push(begun.elapsed());
    }
    times.sort_unstable();
    times[990]
}

/// What somebody else notices: nothing is missing from the answers, and once the plugin is switched off it costs
/// nothing. The times are printed, not judged.
#[tokio::test]
async fn other_clients_of_a_plugin_that_loops() {
    let pg = Server::postgres().start().await;
    let proxy =
        Proxy::in_front_of(&pg).admin().plugin(neighbour()).plugin(hostile("loop", "open", "")).start().await;
    let other = proxy.connect().await;
    let before = p99(&other).await;
    let culprit = proxy.connect().await;
    let loops = async {
        for _ in 0..3 {
            outcome(&culprit, "/* pinion:now */ SELECT 1").await.unwrap();
        }
    };
    let ((), during) = tokio::join!(loops, p99(&other));
    assert_eq!(state(&proxy, "hostile").await, "broken");
    let after = p99(&other).await;
    assert_eq!(traps(&proxy, "deadline").await, 3.0);
    println!("p99 of other clients: {before:?} before, {during:?} during three deadlines, {after:?} after");
}

/// Three deadlines within ten seconds open the breaker: from then on nobody pays for the plugin.
#[tokio::test]
async fn a_plugin_that_keeps_looping_is_switched_off() {
    for on_failure in ["open", "closed"] {
        let pg = Server::postgres().start().await;
        let proxy = Proxy::in_front_of(&pg)
            .admin()
            .plugin(neighbour())
            .plugin(hostile("loop", on_failure, ""))
            .start()
            .await;
        let client = proxy.connect().await;
        for _ in 0..3 {
            let seen = outcome(&client, "/* pinion:now */ SELECT 1").await;
            assert_eq!(seen.is_ok(), on_failure == "open");
        }
        assert_eq!(state(&proxy, "hostile").await, "broken");
        proxy.logged("switched off").await;
        for _ in 0..20 {
            let seen = outcome(&client, "/* pinion:now */ SELECT 1").await;
            assert_eq!(seen.is_ok(), on_failure == "open");
        }
        // No more instance was made to be lost.
        assert_eq!(traps(&proxy, "deadline").await, 3.0);
        assert_eq!(proxy.metric("pinion_plugin_traps_total", &[("plugin", "neighbour")]).await, 0.0);
        assert_eq!(state(&proxy, "neighbour").await, "running");
        // A reload is a new chance.
        let (code, body) = proxy.admin("POST", "/plugins/hostile/reload").await;
        assert_eq!(code, 200, "{body}");
        assert_eq!(state(&proxy, "hostile").await, "running");
        assert_eq!(outcome(&client, "SELECT 5").await.unwrap(), "5");
    }
}

#[tokio::test]
async fn a_slow_plugin_is_stopped_at_its_deadline() {
    let pg = Server::postgres().start().await;
    let slow = hostile("slow", "closed", ", ms = 200").setting("deadline = \"20ms\"");
    let proxy = Proxy::in_front_of(&pg).admin().plugin(slow).start().await;
    let client = proxy.connect().await;
    assert_eq!(outcome(&client, "/* pinion:now */ SELECT 1").await.unwrap_err().0, "58000");
    assert_eq!(traps(&proxy, "deadline").await, 1.0);
    assert_eq!(outcome(&client, "SELECT 2").await.unwrap(), "2");
}

/// Too many log lines are dropped and counted; none of them holds up a client for long.
#[tokio::test]
async fn a_flood_of_log_lines_is_limited() {
    let pg = Server::postgres().start().await;
    let flood = hostile("log-flood", "open", ", amount = 10000").setting("deadline = \"1s\"");
    let proxy = Proxy::in_front_of(&pg).admin().plugin(flood).start().await;
    let client = proxy.connect().await;
    assert_eq!(outcome(&client, "/* pinion:now */ SELECT 1").await.unwrap(), "1");
    let lines =
        proxy.log().lines().filter(|line| line.contains("\"line ") || line.contains("line 1")).count();
    let dropped = proxy.metric("pinion_plugin_log_dropped_total", &[("plugin", "hostile")]).await;
    assert!((1..=400).contains(&lines), "{lines} lines");
    assert!(dropped >= 9000.0, "{dropped} dropped");
}

/// The store is bounded: what does not fit is told to the plugin, which goes on.
#[tokio::test]
async fn a_flood_of_the_store_is_limited() {
    let pg = Server::postgres().start().await;
    let flood =
        hostile("store-flood", "closed", "").setting("deadline = \"1s\"").setting("store_bytes = 65536");
    let proxy = Proxy::in_front_of(&pg).admin().plugin(flood).start().await;
    let client = proxy.connect().await;
    assert_eq!(outcome(&client, "/* pinion:now */ SELECT 1").await.unwrap(), "1");
    let line = proxy.logged("keys fit").await;
    assert!(line.contains("full") || line.contains("room"), "{line}");
    assert_eq!(proxy.metric("pinion_plugin_traps_total", &[("plugin", "hostile")]).await, 0.0);
}

/// Files that must not be loaded, and a word that the reason has.
fn refused() -> Vec<(&'static str, Plugin, &'static str)> {
    let fixture = |name: &str| Plugin::fixture(name).named("hostile");
    let with = |name: &str, config: &str| fixture(name).setting(&format!("config = {config}"));
    let nothing = || with("hostile", "{ do = \"nothing\" }");
    vec![
        ("trap in init", with("hostile", "{ do = \"trap-in-init\" }"), "told to"),
        ("loop in init", with("hostile", "{ do = \"loop-in-init\" }"), "deadline"),
        ("error in init", with("hostile", "{ do = \"error-in-init\" }"), "told to refuse"),
        ("misspelt configuration", with("hostile", "{ dou = 1 }"), "dou"),
        ("newer break", fixture("newer-break"), "0.2.0"),
        ("unknown import", fixture("unknown-import"), "acme:thing"),
        ("failing self-test", fixture("failing-self-test"), "self-test"),
        ("wrong digest", nothing().setting(&format!("sha256 = \"{}\"", "0".repeat(64))), "sha256"),
    ]
}

#[tokio::test]
async fn what_cannot_be_loaded_fails_as_it_is_configured_to() {
    let pg = Server::postgres().start().await;
    for on_failure in ["open", "closed"] {
        for (what, plugin, word) in refused() {
            let plugin = plugin.setting(&format!("on_failure = \"{on_failure}\""));
            let proxy = Proxy::in_front_of(&pg).admin().plugin(neighbour()).plugin(plugin).start().await;
            let client = proxy.connect().await;
            let seen = outcome(&client, "SELECT 1").await;
            match on_failure {
                "open" => assert_eq!(seen.unwrap(), "1", "{what}"),
                _ => assert_eq!(seen.unwrap_err(), ("58000".to_owned(), CLOSED.to_owned()), "{what}"),
            }
            let (_, plugins) = proxy.admin("GET", "/plugins").await;
            let entry = plugins["plugins"]
                .as_array()
                .unwrap()
                .iter()
                .find(|known| known["name"] == "hostile")
                .unwrap()
                .clone();
            assert_eq!(entry["state"], "failed", "{what}: {entry}");
            let reason = entry["last_error"].as_str().unwrap();
            assert!(reason.contains(word), "{what}: {reason}");
            assert!(proxy.log().contains(word), "{what} is not in the log");
            assert_eq!(state(&proxy, "neighbour").await, "running", "{what}");
        }
    }
}

/// A plugin built from an older compatible contract, with fewer exports, is at home here.
#[tokio::test]
async fn an_older_plugin_loads_and_runs() {
    let pg = Server::postgres().start().await;
    let proxy = Proxy::in_front_of(&pg).admin().plugin(Plugin::fixture("older")).start().await;
    assert_eq!(state(&proxy, "older").await, "running", "{}", proxy.log());
    let client = proxy.connect().await;
    assert_eq!(outcome(&client, "SELECT 1").await.unwrap_err(), ("42501".to_owned(), "older".to_owned()));
    client.execute("SET application_name = 'not asked about'").await;
}

/// Of WASI only what is harmless is there: the rest is listed when the plugin loads, and traps when it is called.
#[tokio::test]
async fn a_wasi_import_traps_when_it_is_called() {
    let pg = Server::postgres().start().await;
    for (call, expected) in [("", Ok("1")), ("random", Err("42501")), ("network", Err("58000"))] {
        let config = if call.is_empty() { String::new() } else { format!("call = \"{call}\"") };
        let plugin = Plugin::fixture("wasi-user").setting("on_failure = \"closed\"");
        let plugin = plugin.setting(&format!("config = {{ {config} }}"));
        let proxy = Proxy::in_front_of(&pg).admin().plugin(plugin).start().await;
        proxy.logged("wasi:sockets").await;
        let client = proxy.connect().await;
        let seen = outcome(&client, "SELECT 1").await;
        assert_eq!(seen.as_ref().map(String::as_str).map_err(|(code, _)| code.as_str()), expected, "{call}");
    }
}
