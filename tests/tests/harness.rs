//! The harness itself, against a PostgreSQL without any proxy.
#![allow(clippy::unwrap_used)]

use pinion_tests::{Answer, Client, Message, RawClient, RawServer, Server, foreign, wire};

#[tokio::test]
async fn a_private_server_has_the_users_and_tables_of_the_tests() {
    let pg = Server::postgres().max_connections(23).setting("work_mem", "'1MB'").start().await;
    assert_eq!(pg.backends().await, 0);
    let app = Client::connect(&pg.address()).await.unwrap();
    assert_eq!(pg.backends().await, 1);
    assert_eq!(app.scalar::<i32>("SHOW max_connections").await, 23);
    assert_eq!(app.scalar::<String>("SHOW work_mem").await, "1MB");
    assert_eq!(app.scalar::<String>("SELECT v FROM t WHERE id = 2").await, "two");
    assert_eq!(app.sqlstate("SELECT nothing").await, "42703");
    Client::connect(&pg.address().user("md5user", "md5user-password")).await.unwrap();
    app.close().await;
    assert!(Client::connect(&pg.address().user("app2", "wrong")).await.is_err());
}

#[tokio::test]
async fn the_raw_client_logs_in_and_reads_whole_replies() {
    let pg = Server::postgres().tls().start().await;
    let mut plain = RawClient::connect_with(&pg.address(), &[("application_name", "raw")]).await;
    assert_eq!(plain.parameters["application_name"], "raw");
    assert_eq!(plain.scalar("SELECT 40 + 2").await, "42");
    plain.send_all(&[wire::parse("", "SELECT $1::int"), wire::bind("", "", &["7"])]).await;
    plain.send_all(&[wire::execute("", 0), wire::sync()]).await;
    let tags: Vec<u8> = plain.read_reply().await.iter().map(|m: &Message| m.tag).collect();
    assert_eq!(tags, b"12DCZ");

    let mut address = pg.address();
    address.ca = pg.ca().cloned();
    let mut secure = RawClient::connect(&address).await;
    assert_eq!(secure.scalar("SELECT ssl::text FROM pg_stat_ssl WHERE pid = pg_backend_pid()").await, "true");
    Client::connect(&address).await.unwrap().execute("SELECT 1").await;
}

#[tokio::test]
async fn the_raw_server_answers_what_its_script_says_and_relays_the_rest() {
    let pg = Server::postgres().start().await;
    let raw = RawServer::in_front_of(&pg, |body| {
        body.starts_with(b"MISBEHAVE").then(|| Answer::BytesThenClose(wire::message(b'Z', b"I")))
    })
    .await;
    let mut address = pg.address();
    address.port = raw.port();
    let mut client = RawClient::connect(&address).await;
    assert_eq!(client.scalar("SELECT 1").await, "1");
    assert_eq!(raw.connections(), 1);
    assert_eq!(client.query("MISBEHAVE").await.len(), 1);
    assert!(client.read().await.is_none());
}

#[tokio::test]
async fn a_server_comes_back_after_a_restart() {
    let mut pg = Server::postgres().start().await;
    let client = Client::connect(&pg.address()).await.unwrap();
    pg.restart().await;
    assert!(client.closed().await.is_err());
    assert_eq!(pg.direct().await.scalar::<i32>("SELECT 1").await, 1);
}

#[tokio::test]
async fn foreign_tools_reach_a_server() {
    let pg = Server::postgres().start().await;
    assert_eq!(foreign::psql(&pg.address(), "SELECT v FROM t WHERE id = 1").await, "one");
    let port = pg.port().to_string();
    assert!(foreign::python("drivers.py", &["psycopg3", &port]).await.ends_with("ok\n"));
    assert!(foreign::node("drivers.js", &["pg", &port]).await.ends_with("ok\n"));
}
