//! `audit` as it is shipped: the records that are in the sink's file, that none is missing after a drain, and what is
//! dropped when it is configured to be.
#![allow(clippy::unwrap_used)]

use std::{collections::BTreeSet, fs, path::PathBuf};

use pinion_tests::{Client, Cluster, Plugin, Proxy, ProxyBuilder, Server, poll, until, wire};
use serde_json::Value;
use tempfile::TempDir;

/// A sink and its plugin. The folder holds the records and outlives the proxy.
fn audited(builder: ProxyBuilder, folder: &TempDir, sink: &str, config: &str) -> ProxyBuilder {
    let file = folder.path().join("audit.jsonl");
    let plugin = Plugin::shipped("audit")
        .grants(&["audit", "log", "metrics"])
        .setting(&format!("config = {{ {config} }}"));
    builder
        .top_setting("[audit]")
        .top_setting(&format!("file = \"{}\"\n{sink}", file.display()))
        .plugin(plugin)
}

fn records(folder: &TempDir) -> Vec<Value> {
    let mut files: Vec<PathBuf> =
        fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let mut records: Vec<Value> = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        records.extend(text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()));
    }
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
async fn who_did_what_where_and_how_it_ended() {
    let pg = Server::postgres().start().await;
    let folder = tempfile::tempdir().unwrap();
    let proxy = audited(Proxy::in_front_of(&pg), &folder, "", "").start().await;
    let client = Client::connect_with(&proxy.address(), |config| {
        config.application_name("shop");
    })
    .await
    .unwrap();
    client.execute("CREATE TABLE orders (id int, name text)").await;
    client.execute("INSERT INTO orders SELECT n, 'secret name' FROM generate_series(1, 5) n").await;
    let row = record(&folder, "insert into orders").await;
    let text = row["text"].as_str().unwrap();
    assert!(!text.contains("secret name") && text.contains('$'), "literals must not be recorded: {text}");
    for (field, expected) in [
        ("event", Value::from("statement")),
        ("user", "app".into()),
        ("database", "appdb".into()),
        ("application", "shop".into()),
        ("client", "127.0.0.1".into()),
        ("endpoint", "default".into()),
        ("kind", "write".into()),
        ("rows", 5.into()),
        ("target", format!("127.0.0.1:{}", pg.port()).into()),
        ("role", "read-write".into()),
        ("pinned", false.into()),
        ("tables", vec!["orders"].into()),
    ] {
        assert_eq!(row[field], expected, "{field} of {row}");
    }
    assert!(row["duration_us"].as_u64().unwrap() >= row["database_us"].as_u64().unwrap(), "{row}");
    assert!(row.get("error").is_none(), "{row}");

    // Rows and errors of several statements, by both protocols.
    assert_eq!(client.rows("SELECT id FROM orders").await.len(), 5);
    assert_eq!(record(&folder, "select id from orders").await["rows"], 5);
    assert_eq!(client.sqlstate("SELECT 1 / 0 AS simple").await, "22012");
    assert_eq!(record(&folder, "as simple").await["error"], "22012");
    let statement = client.prepare("SELECT 1 / (id - $1) AS extended FROM orders ORDER BY id").await.unwrap();
    client.query(&statement, &[&1_i32]).await.unwrap_err();
    assert_eq!(record(&folder, "as extended").await["error"], "22012");
    let mut raw = proxy.raw().await;
    let batch = |sql: &str| [wire::parse("", sql), wire::bind("", "", &[]), wire::execute("", 0)].concat();
    raw.send_all(&[
        batch("SELECT 1 AS one FROM generate_series(1, 3)"),
        batch("SELECT 2 AS two FROM generate_series(1, 4)"),
        batch("SELECT 3 / 0 AS three"),
        batch("SELECT 4 AS four"),
        wire::sync(),
    ])
    .await;
    raw.read_reply().await;
    assert_eq!(record(&folder, "as three").await["error"], "22012");
    assert_eq!(record(&folder, "as one").await["rows"], 3);
    assert_eq!(record(&folder, "as two").await["rows"], 4);
    client.close().await;
    poll("the session's end is recorded", async || {
        let ends = records(&folder);
        ends.iter()
            .any(|record| record["event"] == "session-end" && record["application"] == "shop")
            .then_some(())
    })
    .await;
    // What never ran is not told as if it had.
    assert!(
        records(&folder)
            .iter()
            .all(|record| !record["text"].as_str().unwrap_or_default().contains("as four"))
    );
}

#[tokio::test]
async fn filters_samples_and_full_text() {
    let pg = Server::postgres().start().await;
    let folder = tempfile::tempdir().unwrap();
    let config = "text = \"full\", except_users = [\"app2\"], kinds = [\"write\"], sessions = false, errors_always = false";
    let proxy = audited(Proxy::in_front_of(&pg), &folder, "", config).start().await;
    let (app, app2) = (proxy.connect().await, proxy.connect_as("app2").await);
    app.execute("CREATE TABLE entries (n int)").await;
    app.execute("GRANT ALL ON entries TO app2").await;
    app2.execute("INSERT INTO entries VALUES (1)").await;
    app.execute("SELECT * FROM entries").await;
    app.execute("INSERT INTO entries VALUES (4711)").await;
    let row = record(&folder, "4711").await;
    assert_eq!(row["text"], "INSERT INTO entries VALUES (4711)");
    assert_eq!(records(&folder).len(), 1, "{:?}", records(&folder));
    app.close().await;
}

/// Everything that a client has had an answer to is in the file once the proxy has drained, in numbers without a gap.
#[tokio::test]
async fn a_drain_loses_no_record() {
    const CLIENTS: usize = 20;
    const STATEMENTS: usize = 200;
    let pg = Server::postgres().start().await;
    let folder = tempfile::tempdir().unwrap();
    let builder = Proxy::in_front_of(&pg).max_connections(8);
    let mut proxy =
        audited(builder, &folder, "when_full = \"block\"\nqueue = 64", "sessions = false, text = \"full\"")
            .start()
            .await;
    let mut tasks = Vec::new();
    for n in 0..CLIENTS {
        let client = proxy.connect().await;
        tasks.push(tokio::spawn(async move {
            for i in 0..STATEMENTS {
                client.scalar::<i32>(&format!("SELECT {n} * 1000 + {i}")).await;
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    proxy.sigterm();
    assert!(proxy.wait_exit().await.success());
    let records = records(&folder);
    let texts: BTreeSet<&str> = records.iter().filter_map(|record| record["text"].as_str()).collect();
    for n in 0..CLIENTS {
        for i in 0..STATEMENTS {
            let text = format!("SELECT {n} * 1000 + {i}");
            assert!(texts.contains(text.as_str()), "{text} is missing");
        }
    }
    let numbers: Vec<u64> = records.iter().map(|record| record["seq"].as_u64().unwrap()).collect();
    assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "a gap in the numbers");
}

/// A sink that cannot write and is configured to drop never holds a client up, and says how much it lost.
#[tokio::test]
async fn a_full_disk_drops_and_counts() {
    let pg = Server::postgres().start().await;
    let plugin = Plugin::shipped("audit").grants(&["audit", "log"]);
    let proxy = Proxy::in_front_of(&pg)
        .top_setting("[audit]")
        .top_setting("file = \"/dev/full\"\nwhen_full = \"drop\"\nqueue = 16")
        .plugin(plugin)
        .start()
        .await;
    let client = proxy.connect().await;
    for n in 0..500 {
        assert_eq!(client.scalar::<i32>(&format!("SELECT {n}")).await, n);
    }
    until("losses are counted", async || {
        let dropped = proxy.metric("pinion_audit_records_total", &[("outcome", "dropped")]).await;
        let errors = proxy.metric("pinion_audit_errors_total", &[]).await;
        dropped > 0.0 && errors > 0.0
    })
    .await;
}

/// A read that a policy sent to a standby is recorded as having run there, and by whose word.
#[tokio::test]
async fn the_record_names_target_role_and_decisions() {
    let cluster = Cluster::start(1).await;
    let folder = tempfile::tempdir().unwrap();
    let split = Plugin::shipped("rw-split").setting("config = { sticky_after_write = \"0s\" }");
    let builder = Proxy::in_front_of_cluster(&cluster).plugin(split);
    let proxy = audited(builder, &folder, "", "").start().await;
    let client = proxy.connect().await;
    client.execute("SELECT 1 AS somewhere").await;
    let row = record(&folder, "as somewhere").await;
    assert_eq!(row["role"], "read-only", "{row}");
    assert_eq!(row["target"], format!("127.0.0.1:{}", cluster.standbys[0].port()));
    let decisions = row["decisions"].as_array().unwrap();
    assert!(decisions.iter().any(|one| one["plugin"] == "rw-split" && one["verdict"] == "reader"), "{row}");
}

/// Statements that are answered in other ways than by the server take nobody else's outcome.
#[tokio::test]
async fn outcomes_belong_to_their_statements() {
    let pg = Server::postgres().start().await;
    let folder = tempfile::tempdir().unwrap();
    let rule =
        r#"{ hook = "on-query", contains = "secret", verdict = "reject", text = "no", sqlstate = "PN001" }"#;
    let guard = Plugin::fixture("scripted")
        .setting(&format!("config = {{ hooks = [\"on-query\"], rules = [{rule}] }}"));
    let builder = Proxy::in_front_of(&pg).max_connections(2).plugin(guard);
    let proxy = audited(builder, &folder, "", "text = \"full\"").start().await;
    let mut raw = proxy.raw().await;
    raw.send_all(&[wire::parse("s1", "SELECT 1"), wire::sync()]).await;
    raw.read_reply().await;
    raw.send_all(&[wire::query("DEALLOCATE s1"), wire::query("INSERT INTO t (v) VALUES ('one'), ('two')")])
        .await;
    raw.read_reply().await;
    raw.read_reply().await;
    assert_eq!(record(&folder, "'two'").await["rows"], 2);
    raw.send_all(&[wire::query("SELECT 'secret'"), wire::query("INSERT INTO t (v) VALUES ('third')")]).await;
    raw.read_reply().await;
    raw.read_reply().await;
    let three = record(&folder, "'third'").await;
    assert_eq!((&three["rows"], three.get("error")), (&Value::from(1), None), "{three}");
    let secret = record(&folder, "'secret'").await;
    assert_eq!((&secret["error"], secret.get("target")), (&Value::from("PN001"), None), "{secret}");
    // Pinned, and a Parse that fails with nothing to run.
    raw.query("SET application_name = 'pinned'").await;
    raw.send_all(&[wire::parse("", "SELEC"), wire::sync()]).await;
    raw.read_reply().await;
    raw.query("DELETE FROM t WHERE v = 'third'").await;
    let deleted = record(&folder, "DELETE FROM t").await;
    assert_eq!((&deleted["rows"], deleted.get("error")), (&Value::from(1), None), "{deleted}");
}
