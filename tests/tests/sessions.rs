//! "Why is it pinned?": the list of sessions, over the admin API and by `pinion sessions`.
#![allow(clippy::unwrap_used)]

use pinion_tests::{Proxy, Server, run_pinion, until};
use serde_json::Value;

async fn sessions(proxy: &Proxy) -> Vec<Value> {
    let (status, answer) = proxy.admin("GET", "/sessions").await;
    assert_eq!(status, 200, "{answer}");
    answer["sessions"].as_array().unwrap().clone()
}

async fn states(proxy: &Proxy) -> Vec<String> {
    sessions(proxy).await.iter().map(|one| one["state"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn each_session_says_what_it_does_and_why_it_is_pinned() {
    let pg = Server::postgres().start().await;
    let proxy = Proxy::in_front_of(&pg).max_connections(2).admin().start().await;
    assert_eq!(sessions(&proxy).await, [] as [Value; 0]);

    let (a, b, c) = (proxy.connect().await, proxy.connect().await, proxy.connect().await);
    assert_eq!(states(&proxy).await, ["IDLE", "IDLE", "IDLE"]);
    a.execute("CREATE TEMP TABLE cart (id int)").await;
    b.execute("BEGIN READ WRITE").await;
    let waiting = tokio::spawn(async move { c.execute("SELECT 1").await });
    until("all have their states", async || states(&proxy).await == ["PINNED", "IN_TRANSACTION", "WAITING"])
        .await;

    let list = sessions(&proxy).await;
    let pinned = &list[0];
    assert_eq!(pinned["user"], "app");
    assert_eq!(pinned["database"], "appdb");
    assert_eq!(pinned["address"], "127.0.0.1");
    assert_eq!(pinned["endpoint"], "default");
    assert_eq!(pinned["target"], *pg.name());
    assert_eq!(pinned["pin"]["reasons"], serde_json::json!(["temporary-table"]));
    assert_eq!(pinned["pin"]["text"], "create temp table cart (id int)");
    assert_eq!(pinned["pin"]["plugin"], Value::Null);
    assert!(pinned["pin"]["for_seconds"].as_f64().unwrap() >= 0.0);
    assert_eq!(list[1]["pin"], Value::Null);
    assert_eq!(list[2]["target"], Value::Null);
    let digest = pinned["pin"]["digest"].as_str().unwrap();
    assert!(proxy.log().contains(digest), "the same digest as in the log");

    let config = proxy.dir().join("pinion.toml");
    let (status, table) = run_pinion(&["sessions", "--config", config.to_str().unwrap()]);
    assert!(status.success(), "{table}");
    assert!(table.contains("temporary-table: create temp table cart (id int)"), "{table}");
    assert_eq!(table.lines().count(), 4, "{table}");

    // What ends the pin ends the note of it.
    a.execute("DISCARD ALL").await;
    waiting.await.unwrap();
    b.execute("COMMIT").await;
    until("nobody is pinned", async || sessions(&proxy).await.iter().all(|one| one["pin"].is_null())).await;
}

#[tokio::test]
async fn sessions_of_mariadb_too() {
    let db = Server::mariadb().start().await;
    let proxy = Proxy::in_front_of(&db).admin().start().await;
    let client = proxy.mysql().await;
    client.execute("SELECT GET_LOCK('mine', 0)").await;
    let list = sessions(&proxy).await;
    assert_eq!(list[0]["id"], client.id().await);
    assert_eq!(list[0]["pin"]["reasons"], serde_json::json!(["advisory-lock"]));
    assert_eq!(list[0]["state"], "PINNED");
    client.close().await;
    until("it is gone", async || sessions(&proxy).await.is_empty()).await;
}
