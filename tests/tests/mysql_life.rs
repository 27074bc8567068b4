//! The process in front of MariaDB: drain, reload of users, secrets and certificates, servers that go away.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use pinion_tests::{
    Ca, MySqlClient, Proxy, RawMySql, Server, poll,
    raw_mysql::{MySqlError, Reply, capability, command, packet},
    until,
};

const GOODBYE: &str = "terminating connection due to administrator command";

#[track_caller]
fn is_goodbye(error: &MySqlError) {
    let found = (error.code, error.state.as_str(), error.message.as_str());
    assert_eq!(found, (1053, "08S01", GOODBYE));
}

#[tokio::test]
async fn a_drain_finishes_transactions_and_says_goodbye_to_the_idle() {
    let db = Server::mariadb().start().await;
    let mut proxy =
        Proxy::in_front_of(&db).max_connections(3).top_setting("drain_timeout = \"20s\"").start().await;
    let (mut busy, mut idle) = (proxy.raw_mysql().await, proxy.raw_mysql().await);
    let mut off = proxy.raw_mysql().await;
    busy.ok("BEGIN").await;
    let first = busy.ok("INSERT INTO t (v) VALUES ('drained')").await.insert_id;
    // Without autocommit, a transaction is open from its first statement on.
    off.ok("SET autocommit = 0").await;
    let second = off.ok("INSERT INTO t (v) VALUES ('drained')").await.insert_id;
    proxy.sigterm();
    is_goodbye(&idle.expect_error().await);
    assert!(idle.read().await.is_none());
    let address = proxy.address();
    until("nobody is let in", async || MySqlClient::connect(&address).await.is_err()).await;
    assert!(proxy.is_running());
    for (client, id) in [(&mut busy, first), (&mut off, second)] {
        assert_eq!(client.scalar("SELECT 1").await, "1");
        let prepared = client.prepare("UPDATE t SET v = concat(v, '!') WHERE id = ?").await.unwrap();
        client.execute(prepared.id, 0, &[Some(&id.to_string())]).await;
        client.ok("COMMIT").await;
        is_goodbye(&client.expect_error().await);
        assert!(client.read().await.is_none());
    }
    assert_eq!(proxy.wait_exit().await.code(), Some(0));
    assert_eq!(db.direct().await.scalar::<u32>("SELECT count(*) FROM t WHERE v = 'drained!'").await, 2);
    until("its server connections are closed", async || db.backends().await == 0).await;
}

#[tokio::test]
async fn a_drain_lets_a_running_statement_finish() {
    let db = Server::mariadb().start().await;
    let mut proxy = Proxy::in_front_of(&db).max_connections(3).start().await;
    for flags in [capability::OLD, capability::NEW] {
        if !proxy.is_running() {
            proxy = Proxy::in_front_of(&db).max_connections(3).start().await;
        }
        let mut a = RawMySql::connect_with(&proxy.address(), flags).await;
        a.command(command::QUERY, b"SELECT sleep(1), 'done'").await;
        let direct = db.direct().await;
        let running = "SELECT count(*) FROM information_schema.processlist WHERE info LIKE 'SELECT sleep%'";
        until("it runs", async || direct.scalar::<u8>(running).await == 1).await;
        proxy.sigterm();
        let Reply::Rows(rows) = a.read_reply().await else { panic!("rows") };
        assert_eq!(rows.texts()[0][1].as_deref(), Some("done"));
        is_goodbye(&a.expect_error().await);
        assert_eq!(proxy.wait_exit().await.code(), Some(0));
    }
}

#[tokio::test]
async fn a_drain_is_bounded_by_its_timeout() {
    let db = Server::mariadb().start().await;
    let mut proxy = Proxy::in_front_of(&db).top_setting("drain_timeout = \"500ms\"").start().await;
    let mut a = proxy.raw_mysql().await;
    a.ok("BEGIN").await;
    a.ok("INSERT INTO t (v) VALUES ('cut')").await;
    proxy.sigterm();
    is_goodbye(&a.expect_error().await);
    assert!(proxy.wait_exit().await.code().is_some());
    until("its server connections are closed", async || db.backends().await == 0).await;
    assert_eq!(db.direct().await.scalar::<u32>("SELECT count(*) FROM t WHERE v = 'cut'").await, 0);
}

/// A request that crosses the goodbye is answered by it: the client takes it for its answer.
#[tokio::test]
async fn a_goodbye_is_the_answer_to_a_request_that_crosses_it() {
    let db = Server::mariadb().start().await;
    let proxy = Proxy::in_front_of(&db).start().await;
    let mut raw = proxy.raw_mysql().await;
    let client = proxy.mysql().await;
    client.execute("SELECT 1").await;
    proxy.sigterm();
    // It lies in the buffer by the time the request is written.
    is_goodbye(&raw.expect_error().await);
    match client.try_execute("SELECT 1").await {
        Err(mysql_async::Error::Server(error)) => assert_eq!(error.code, 1053, "{error:?}"),
        Err(mysql_async::Error::Io(_)) => {}
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_drain_counts_a_prepared_cursor_as_work() {
    let db = Server::mariadb().start().await;
    let mut proxy = Proxy::in_front_of(&db).top_setting("drain_timeout = \"20s\"").start().await;
    let mut client = proxy.raw_mysql().await;
    client.ok("BEGIN").await;
    let prepared = client.prepare("SELECT id FROM t ORDER BY id").await.unwrap();
    client.execute(prepared.id, 1, &[]).await;
    assert_eq!(client.fetch(prepared.id, 1).await.0.len(), 1);
    proxy.sigterm();
    let address = proxy.address();
    until("nobody is let in", async || MySqlClient::connect(&address).await.is_err()).await;
    assert_eq!(client.fetch(prepared.id, 10).await.0.len(), 2);
    client.ok("COMMIT").await;
    is_goodbye(&client.expect_error().await);
    assert_eq!(proxy.wait_exit().await.code(), Some(0));
}

// ---- reload

#[tokio::test]
async fn a_user_comes_and_goes_by_reload() {
    let db = Server::mariadb().start().await;
    let proxy = Proxy::in_front_of(&db)
        .max_connections(4)
        .proxy_setting("failed_logins_per_minute = 0")
        .start()
        .await;
    let direct = db.direct().await;
    direct
        .execute("CREATE USER late@'%' IDENTIFIED BY 'late-password'; GRANT SELECT ON appdb.* TO late@'%'")
        .await;
    let late = proxy.address().user("late", "late-password");
    assert_eq!(proxy.mysql_refusal(&late).await, (1045, "28000".to_owned()));
    proxy.rotate_secret("late", "late-password");
    let entry = "[[proxy.auth]]\nusername = \"late\"\nsecret = { file = \"secret-late.json\" }\n\n";
    proxy.rewrite_config(|text| text.replace("[proxy.pool]", &format!("{entry}[proxy.pool]")));
    proxy.sighup();
    let client = poll("the new user is let in", async || MySqlClient::connect(&late).await.ok()).await;
    assert_eq!(client.scalar::<String>("SELECT current_user()").await, "late@%");
    proxy.rewrite_config(|text| text.replace(entry, ""));
    proxy.sighup();
    until("the user is gone", async || MySqlClient::connect(&late).await.is_err()).await;
    assert_eq!(proxy.mysql_refusal(&late).await, (1045, "28000".to_owned()));
    // Who is in may go on with what is open.
    assert_eq!(client.scalar::<u8>("SELECT 1").await, 1);
    proxy.mysql().await.execute("SELECT 1").await;
}

/// A change of method counts for the next login, not for who is in.
#[tokio::test]
async fn a_method_of_logging_in_changes_by_reload() {
    let db = Server::mariadb().start().await;
    let proxy = Proxy::in_front_of(&db).max_connections(4).start().await;
    let mut old = proxy.raw_mysql().await;
    assert_eq!(old.steps, ["mysql_native_password"]);
    proxy.rewrite_config(|text| text.replace("MYSQL_NATIVE_PASSWORD", "MYSQL_CACHING_SHA2_PASSWORD"));
    proxy.sighup();
    until("it is asked for", async || proxy.raw_mysql().await.steps.ends_with(&["fast".to_owned()])).await;
    proxy.rewrite_config(|text| {
        text.replace("name = \"test\"", "name = \"test\"\nforce_full_authentication = true")
    });
    proxy.sighup();
    until("it is asked for", async || proxy.raw_mysql().await.steps.ends_with(&["full by RSA".to_owned()]))
        .await;
    assert_eq!(old.scalar("SELECT 1").await, "1");
}

#[tokio::test]
async fn a_new_certificate_is_picked_up() {
    let db = Server::mariadb().start().await;
    let proxy = Proxy::in_front_of(&db).tls().start().await;
    let old = proxy.mysql().await;
    let renewed = Ca::new();
    renewed.issue_into(proxy.dir());
    let mut address = proxy.address();
    address.ca = Some(renewed);
    let client =
        poll("the new certificate is shown", async || MySqlClient::connect(&address).await.ok()).await;
    client.execute("SELECT 1").await;
    old.execute("SELECT 1").await;
    assert!(MySqlClient::connect(&proxy.address()).await.is_err());
}

// ---- servers that go away

/// Ends the server connection that serves `user` now.
async fn end_connection(db: &pinion_tests::MariaDb, filter: &str) {
    let direct = db.direct().await;
    let sql = format!("SELECT id FROM information_schema.processlist WHERE user = 'app' AND {filter}");
    let ids = poll("there is such a connection", async || {
        let ids = direct.rows(&sql).await;
        (!ids.is_empty()).then_some(ids)
    })
    .await;
    for id in ids {
        direct.execute(&format!("KILL {}", id[0].as_deref().unwrap())).await;
    }
    until("it is gone", async || direct.rows(&sql).await.is_empty()).await;
}

#[tokio::test]
async fn an_idle_client_does_not_see_that_its_server_connection_was_ended() {
    let db = Server::mariadb().start().await;
    let proxy = Proxy::in_front_of(&db).max_connections(1).start().await;
    let mut client = proxy.raw_mysql().await;
    client.ok("SET time_zone = '+03:00', @mine = 7").await;
    let prepared = client.prepare("SELECT @@time_zone, @mine, v FROM t WHERE id = ?").await.unwrap();
    for _ in 0..3 {
        end_connection(&db, "command = 'Sleep'").await;
        let replies = client.execute(prepared.id, 0, &[Some("2")]).await;
        let [Reply::Rows(rows)] = replies.as_slice() else { panic!("{replies:?}") };
        let row = ["+03:00", "7", "two"].map(|value| Some(value.to_owned()));
        assert_eq!(rows.values(), [row]);
    }
}

#[tokio::test]
async fn a_client_lives_through_a_restart_of_an_idle_server() {
    let mut db = Server::mariadb().start().await;
    let proxy = Proxy::in_front_of(&db).max_connections(2).start().await;
    let mut clients = [proxy.raw_mysql().await, proxy.raw_mysql().await];
    for client in &mut clients {
        client.ok("SET sql_mode = 'ANSI_QUOTES'").await;
    }
    db.restart().await;
    for client in &mut clients {
        assert_eq!(client.scalar("SELECT @@sql_mode").await, "ANSI_QUOTES");
        client.ok("INSERT INTO t (v) VALUES ('after')").await;
    }
    assert_eq!(db.direct().await.scalar::<u32>("SELECT count(*) FROM t WHERE v = 'after'").await, 2);
}

#[tokio::test]
async fn a_client_in_a_transaction_is_told_that_it_is_lost() {
    let db = Server::mariadb().start().await;
    let proxy = Proxy::in_front_of(&db).max_connections(2).start().await;
    for begin in ["BEGIN", "SET autocommit = 0"] {
        let mut client = proxy.raw_mysql().await;
        client.ok(begin).await;
        client.ok("INSERT INTO t (v) VALUES ('lost')").await;
        end_connection(&db, "command = 'Sleep'").await;
        // Told before its next statement or as the answer to it; what it sends then runs in no other transaction.
        client
            .send_bytes(
                &packet(0, &[&[command::QUERY], b"INSERT INTO t (v) VALUES ('lost')".as_slice()].concat()).0,
            )
            .await;
        let error = client.expect_error().await;
        assert!([1105, 1213, 1927].contains(&error.code), "{error:?}");
        client.finish_sending().await;
        client.read_bytes_to_end().await;
        let direct = db.direct().await;
        assert_eq!(direct.scalar::<u32>("SELECT count(*) FROM t WHERE v = 'lost'").await, 0, "{begin}");
    }
    proxy.mysql().await.execute("SELECT 1").await;
}

/// What may have been carried out is not sent again.
#[tokio::test]
async fn a_write_under_way_is_not_repeated() {
    let db = Server::mariadb().start().await;
    let proxy = Proxy::in_front_of(&db).max_connections(2).start().await;
    let mut client = proxy.raw_mysql().await;
    client.ok("CREATE TABLE counted (n int) ENGINE = Aria").await;
    client.command(command::QUERY, b"INSERT INTO counted SELECT sleep(600) UNION ALL SELECT 1").await;
    end_connection(&db, "info LIKE 'INSERT INTO counted%'").await;
    let reply = client.read_reply().await;
    assert!(matches!(reply, Reply::Failed(_)), "{reply:?}");
    let starts = db.general_log().lines().filter(|line| line.contains("INSERT INTO counted SELECT")).count();
    assert_eq!(starts, 1);
}

#[tokio::test]
async fn a_stopped_server_is_waited_for_and_then_used() {
    let mut db = Server::mariadb().start().await;
    let proxy = Proxy::in_front_of(&db).max_connections(2).start().await;
    let mut client = proxy.raw_mysql().await;
    client.ok("SELECT 1").await;
    db.stop();
    until("it is known", async || proxy.http("/readyz").await.is_none_or(|(status, _)| status == 503)).await;
    let waiting = tokio::spawn(async move {
        let value = client.scalar("SELECT 5").await;
        (client, value)
    });
    db.restart().await;
    let (mut client, value) = waiting.await.unwrap();
    assert_eq!(value, "5");
    assert_eq!(client.scalar("SELECT 6").await, "6");
}

/// SIGTERM while the target is away: there is nothing to wait for.
#[tokio::test]
async fn a_drain_without_a_target_ends_at_once() {
    let mut db = Server::mariadb().start().await;
    let mut proxy = Proxy::in_front_of(&db).start().await;
    db.stop();
    proxy.sigterm();
    let ended = tokio::time::timeout(Duration::from_secs(20), proxy.wait_exit()).await;
    assert_eq!(ended.expect("it ends").code(), Some(0));
}
