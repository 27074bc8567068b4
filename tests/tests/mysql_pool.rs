//! The pool in front of MariaDB: never over its budget, nothing dirty is lent on, and what a client is told when it
//! gets no connection or loses one.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use pinion_tests::{
    MariaDb, MySqlClient, Proxy, RawMySql, Server, poll,
    raw_mysql::{Login, MySqlError, Reply, capability, command},
    server_error, until,
};

async fn kill(db: &MariaDb, id: u64) {
    let direct = db.direct().await;
    direct.execute(&format!("KILL {id}")).await;
    until("it is gone", async || {
        let alive = format!("SELECT count(*) FROM information_schema.processlist WHERE id = {id}");
        direct.scalar::<i32>(&alive).await == 0
    })
    .await;
}

fn code(error: &MySqlError) -> (u16, &str) {
    (error.code, error.state.as_str())
}

#[tokio::test]
async fn a_hundred_clients_never_exceed_the_budget() {
    let db = Server::mariadb().without_general_log().start().await;
    let proxy = Proxy::in_front_of(&db).max_connections(4).start().await;
    let mut tasks = Vec::new();
    for n in 0..100 {
        let address = proxy.address();
        tasks.push(tokio::spawn(async move {
            let client = MySqlClient::connect(&address).await.unwrap();
            for i in 0..20 {
                assert_eq!(client.scalar::<i32>(&format!("SELECT {n} * 1000 + {i}")).await, n * 1000 + i);
                if i % 5 == 0 {
                    client.execute("START TRANSACTION READ WRITE").await;
                    client.execute("DO SLEEP(0.001)").await;
                    client.execute("COMMIT").await;
                }
            }
        }));
    }
    // MariaDB still counts a connection for a while that it has closed, so all clients are one user's: none is closed
    // to make room. The process list would do as well, but MariaDB 10.11 has crashed when it was read at full speed.
    let mut most = 0;
    let watcher = db.direct().await;
    while tasks.iter().any(|task| !task.is_finished()) {
        let row = watcher.rows("SHOW GLOBAL STATUS LIKE 'Threads_connected'").await.remove(0);
        most = most.max(row[1].as_deref().unwrap().parse::<u32>().unwrap());
    }
    for task in tasks {
        task.await.unwrap();
    }
    // The watcher and the proxy's monitor are beside them.
    assert!((3..=6).contains(&most), "{most} server connections");
    assert_eq!(proxy.metric("pinion_max_database_connections_allowed", &[]).await, 4.0);
}

/// As many times as one likes, by text and prepared, and the client stays.
#[tokio::test]
async fn waiting_too_long_is_an_error_and_the_client_stays() {
    let db = Server::mariadb().start().await;
    let builder = Proxy::in_front_of(&db).max_connections(1).pool("connection_borrow_timeout = \"400ms\"");
    let proxy = builder.start().await;
    let (a, mut b) = (proxy.mysql().await, proxy.raw_mysql().await);
    let statement = b.prepare("SELECT ?").await.unwrap();
    a.execute("START TRANSACTION READ WRITE").await;
    let begun = Instant::now();
    let error = b.error("SELECT 1").await;
    assert!(begun.elapsed() >= Duration::from_millis(400), "after {:?}", begun.elapsed());
    assert_eq!(code(&error), (9501, "HY000"));
    assert_eq!(error.message, "Timed-out waiting to acquire database connection.");
    let replies = b.execute(statement.id, 0, &[Some("1")]).await;
    assert!(matches!(&replies[..], [Reply::Failed(error)] if error.code == 9501), "{replies:?}");
    let error = b.simple(command::INIT_DB, b"otherdb").await.unwrap_err();
    assert_eq!(error.code, 9501);
    // Needs no server.
    b.simple(command::PING, b"").await.unwrap();
    a.execute("COMMIT").await;
    assert_eq!(b.scalar("SELECT 1").await, "1");
    let replies = b.execute(statement.id, 0, &[Some("2")]).await;
    assert!(matches!(&replies[..], [Reply::Rows(rows)] if rows.rows.len() == 1), "{replies:?}");
    assert_eq!(b.scalar("SELECT database()").await, "appdb");
}

#[tokio::test]
async fn waiters_are_served_in_the_order_they_came() {
    let db = Server::mariadb().start().await;
    db.direct().await.execute("CREATE TABLE served (n int AUTO_INCREMENT PRIMARY KEY, who int)").await;
    let proxy = Proxy::in_front_of(&db).max_connections(1).start().await;
    let holder = proxy.mysql().await;
    holder.execute("START TRANSACTION READ WRITE").await;
    let mut waiting = Vec::new();
    for who in 0..8 {
        let client = proxy.mysql().await;
        waiting.push(tokio::spawn(async move {
            client.execute(&format!("INSERT INTO served (who) VALUES ({who})")).await;
        }));
        until("it waits", async || proxy.metric("pinion_pool_waiting", &[]).await == f64::from(who + 1))
            .await;
    }
    holder.execute("COMMIT").await;
    for client in waiting {
        client.await.unwrap();
    }
    let order: String =
        db.direct().await.scalar("SELECT GROUP_CONCAT(who ORDER BY n SEPARATOR ' ') FROM served").await;
    assert_eq!(order, "0 1 2 3 4 5 6 7");
}

#[tokio::test]
async fn an_idle_connection_of_another_user_makes_room() {
    let db = Server::mariadb().start().await;
    let proxy = Proxy::in_front_of(&db).max_connections(1).start().await;
    let (a, b) = (proxy.mysql().await, proxy.mysql_as("app2").await);
    let other = MySqlClient::connect(&proxy.address().database("otherdb")).await.unwrap();
    let user = "SELECT SUBSTRING_INDEX(CURRENT_USER(), '@', 1)";
    for _ in 0..4 {
        assert_eq!(a.scalar::<String>(user).await, "app");
        assert_eq!(b.scalar::<String>(user).await, "app2");
        assert_eq!(other.scalar::<String>("SELECT database()").await, "otherdb");
        assert!(db.backends().await <= 1);
    }
}

/// It runs on each new connection, and again after each reset, whatever a client does to what it has set.
#[tokio::test]
async fn the_init_query_runs_on_each_new_connection() {
    let db = Server::mariadb().start().await;
    let proxy = Proxy::in_front_of(&db)
        .max_connections(2)
        .pool("init_query = \"SET SESSION sort_buffer_size = 300032, @initialised = 'yes'\"")
        .start()
        .await;
    let told = "SELECT CONCAT(@@sort_buffer_size, ' ', @initialised)";
    let (a, b) = (proxy.mysql().await, proxy.mysql().await);
    a.execute("START TRANSACTION READ WRITE").await;
    for client in [&a, &b] {
        assert_eq!(client.scalar::<String>(told).await, "300032 yes");
    }
    a.execute("COMMIT").await;
    a.execute("SET SESSION sort_buffer_size = 400000, @initialised = 'no'").await;
    for _ in 0..3 {
        assert_eq!(b.scalar::<String>(told).await, "300032 yes");
        assert_eq!(a.scalar::<String>("SELECT @initialised").await, "no");
    }
    // Nor does the next client miss it when one has undone it.
    let mut raw = proxy.raw_mysql().await;
    raw.simple(command::RESET_CONNECTION, b"").await.unwrap();
    a.close().await;
    for _ in 0..3 {
        assert_eq!(b.scalar::<String>(told).await, "300032 yes");
    }
}

#[tokio::test]
async fn an_init_query_that_fails_is_told_without_its_text() {
    let db = Server::mariadb().start().await;
    let proxy =
        Proxy::in_front_of(&db).pool("init_query = \"SET no_such_variable = 1\"").start_without_target();
    let proxy = proxy.await;
    let error =
        poll("the login is answered", async || MySqlClient::connect(&proxy.address()).await.err()).await;
    let error = server_error(&error);
    assert_eq!((error.code, error.message.as_str()), (1105, "The database connection could not be set up."));
}

#[tokio::test]
async fn a_client_that_vanishes_leaves_no_dirty_connection() {
    let db = Server::mariadb().start().await;
    let proxy = Proxy::in_front_of(&db).max_connections(1).start().await;
    let direct = db.direct().await;
    for beginning in [None, Some("BEGIN"), Some("SELECT GET_LOCK('mine', 0)")] {
        let mut a = proxy.raw_mysql().await;
        if let Some(beginning) = beginning {
            a.query(beginning).await;
        }
        a.command(command::QUERY, b"INSERT INTO t (v) SELECT SLEEP(30)").await;
        let running = "SELECT count(*) FROM information_schema.processlist WHERE info LIKE '%SLEEP(30)' \
                       AND user = 'app'";
        until("it runs", async || direct.scalar::<i32>(running).await == 1).await;
        drop(a);
        let b = proxy.mysql().await;
        assert_eq!(b.scalar::<i32>("SELECT 5").await, 5);
        assert_eq!(b.scalar::<i32>("SELECT IS_FREE_LOCK('mine')").await, 1);
        assert_eq!(direct.scalar::<i32>("SELECT count(*) FROM t").await, 3, "{beginning:?}");
        assert!(db.backends().await <= 1);
    }
}

#[tokio::test]
async fn a_client_that_vanishes_in_a_transaction_rolls_it_back() {
    let db = Server::mariadb().start().await;
    let proxy = Proxy::in_front_of(&db).max_connections(1).start().await;
    for beginning in ["BEGIN", "SET autocommit = 0"] {
        let mut a = proxy.raw_mysql().await;
        a.ok(beginning).await;
        a.ok("INSERT INTO t (v) VALUES ('ghost')").await;
        drop(a);
        let b = proxy.mysql().await;
        b.execute("COMMIT").await; // there is nothing to commit
        assert_eq!(b.scalar::<i32>("SELECT count(*) FROM t WHERE v = 'ghost'").await, 0);
        assert_eq!(b.scalar::<i32>("SELECT @@autocommit").await, 1);
    }
}

/// What one client leaves is not there for the next, and what a reset does not concern is not reset.
#[tokio::test]
async fn the_next_client_finds_a_clean_session() {
    let db = Server::mariadb().start().await;
    let proxy = Proxy::in_front_of(&db).max_connections(1).start().await;
    let told = "SELECT CONCAT_WS(' ', IFNULL(@mine, '-'), @@sql_mode = '', @@time_zone, database(), \
                IS_FREE_LOCK('mine'), @@autocommit)";
    let clean = proxy.mysql().await.scalar::<String>(told).await;
    for left in [
        "SET @mine = 1",
        "SET @mine = RAND()",
        "SET sql_mode = ''",
        "SET time_zone = '+05:00'",
        "USE otherdb",
        "DO GET_LOCK('mine', 0)",
        "SET autocommit = 0",
        "CREATE TEMPORARY TABLE t (id int, v int)",
        "LOCK TABLES t WRITE",
        "FLUSH TABLES WITH READ LOCK",
        "SET SESSION TRANSACTION READ ONLY",
        "SET TRANSACTION READ ONLY",
        "PREPARE mine FROM 'SELECT 1'",
        "HANDLER t OPEN AS mine",
    ] {
        let a = proxy.mysql().await;
        a.execute(left).await;
        a.close().await;
        let b = proxy.mysql().await;
        assert_eq!(b.scalar::<String>(told).await, clean, "after {left}");
        assert_eq!(b.errno("EXECUTE mine").await, 1243, "after {left}");
        assert_eq!(b.errno("HANDLER mine READ FIRST").await, 1109, "after {left}");
        b.execute("START TRANSACTION READ WRITE").await;
        b.execute("INSERT INTO t (v) VALUES ('next')").await;
        b.execute("ROLLBACK").await;
        b.close().await;
    }
}

/// A prepared statement is the first thing on a connection where another client's `LAST_INSERT_ID()` must be forgotten.
#[tokio::test]
async fn a_prepare_on_a_connection_with_a_foreign_insert_id_is_answered() {
    let db = Server::mariadb().start().await;
    let proxy = Proxy::in_front_of(&db).max_connections(1).start().await;
    let a = proxy.mysql().await;
    a.execute("INSERT INTO t (v) VALUES ('a')").await;
    assert_ne!(a.scalar::<u64>("SELECT LAST_INSERT_ID()").await, 0);
    a.close().await;
    let between = proxy.mysql().await;
    between.execute("SELECT 1").await;
    let b = proxy.mysql().await;
    assert_eq!(b.exec("SELECT LAST_INSERT_ID()", ()).await, [[Some("0".to_owned())]]);
    let forgotten = db.general_log().matches("SET last_insert_id = 0").count();
    assert_eq!(forgotten, 1);
}

#[tokio::test]
async fn an_idle_client_is_told_goodbye() {
    let db = Server::mariadb().start().await;
    let builder = Proxy::in_front_of(&db).max_connections(1).proxy_setting("idle_client_timeout = \"1s\"");
    let proxy = builder.start().await;
    for beginning in [None, Some("BEGIN")] {
        let mut a = proxy.raw_mysql().await;
        if let Some(beginning) = beginning {
            a.ok(beginning).await;
        }
        let error = a.expect_farewell().await;
        assert_eq!(code(&error), (4031, "HY000"));
        assert!(a.read().await.is_none());
        assert_eq!(proxy.mysql().await.scalar::<i32>("SELECT 1").await, 1);
    }
}

#[tokio::test]
async fn a_client_lives_only_so_long_and_is_cut_between_transactions() {
    let db = Server::mariadb().start().await;
    let proxy = Proxy::in_front_of(&db).proxy_setting("max_client_lifetime = \"1s\"").start().await;
    let mut a = proxy.raw_mysql().await;
    a.ok("START TRANSACTION READ WRITE").await;
    for _ in 0..15 {
        assert_eq!(a.scalar("SELECT SLEEP(0.1)").await, "0");
    }
    a.ok("COMMIT").await;
    assert_eq!(code(&a.expect_farewell().await), (1053, "08S01"));
}

#[tokio::test]
async fn a_drain_tells_clients_between_two_transactions() {
    let db = Server::mariadb().start().await;
    let mut proxy = Proxy::in_front_of(&db).start().await;
    let (mut idle, mut busy) = (proxy.raw_mysql().await, proxy.raw_mysql().await);
    busy.ok("START TRANSACTION READ WRITE").await;
    busy.ok("INSERT INTO t (v) VALUES ('drained')").await;
    proxy.sigterm();
    assert_eq!(code(&idle.expect_farewell().await), (1053, "08S01"));
    busy.ok("COMMIT").await;
    assert_eq!(code(&busy.expect_farewell().await), (1053, "08S01"));
    assert!(proxy.wait_exit().await.success());
    let kept = "SELECT count(*) FROM t WHERE v = 'drained'";
    assert_eq!(db.direct().await.scalar::<i32>(kept).await, 1);
}

#[tokio::test]
async fn a_connection_killed_while_idle_is_not_lent() {
    let db = Server::mariadb().start().await;
    let proxy = Proxy::in_front_of(&db).max_connections(2).start().await;
    let a = proxy.mysql().await;
    for _ in 0..10 {
        let id = backend_of(&a, &db).await;
        kill(&db, id).await;
        assert_eq!(a.scalar::<i32>("SELECT 1").await, 1);
        assert_ne!(backend_of(&a, &db).await, id);
    }
}

async fn newest_backend(db: &MariaDb) -> u64 {
    let newest = "SELECT IFNULL(MAX(id), 0) FROM information_schema.processlist WHERE user = 'app'";
    db.direct().await.scalar(newest).await
}

async fn backend_of(client: &MySqlClient, db: &MariaDb) -> u64 {
    client.execute("SELECT 1").await;
    newest_backend(db).await
}

/// The database has rolled the transaction back, and says so by the number that retry loops know.
#[tokio::test]
async fn a_server_lost_in_a_transaction_is_a_transaction_to_run_again() {
    let db = Server::mariadb().start().await;
    let proxy = Proxy::in_front_of(&db).max_connections(1).start().await;
    for prepared in [false, true] {
        let mut a = proxy.raw_mysql().await;
        let statement = a.prepare("INSERT INTO t (v) VALUES ('lost')").await.unwrap();
        a.ok("START TRANSACTION READ WRITE").await;
        a.ok("INSERT INTO t (v) VALUES ('lost')").await;
        kill(&db, newest_backend(&db).await).await;
        let error = if prepared {
            a.send_execute(statement.id, 0, &[]).await;
            a.expect_farewell().await
        } else {
            a.error("INSERT INTO t (v) VALUES ('lost')").await
        };
        assert_eq!(code(&error), (1213, "40001"), "{error:?}");
        assert!(error.message.starts_with("The connection to the database server was lost."), "{error:?}");
        assert!(a.read().await.is_none());
        let b = proxy.mysql().await;
        assert_eq!(b.scalar::<i32>("SELECT count(*) FROM t WHERE v = 'lost'").await, 0);
    }
}

/// Of a statement or a COMMIT under way nobody can say whether it took effect.
#[tokio::test]
async fn a_server_lost_otherwise_leaves_the_outcome_open() {
    let mut db = Server::mariadb().start().await;
    let proxy = Proxy::in_front_of(&db).max_connections(1).start().await;
    let running = "SELECT count(*) FROM information_schema.processlist WHERE info LIKE '%SLEEP(30)%' \
                   AND user = 'app'";
    for (first, then) in [
        (None, "INSERT INTO t (v) SELECT SLEEP(30)"),
        // It commits before it begins.
        (Some("BEGIN"), "CREATE TABLE made AS SELECT SLEEP(30)"),
    ] {
        let mut a = poll("a client gets in", async || RawMySql::open(&proxy.address()).await.ok()).await;
        let address = proxy.address();
        let login = Login::new(&address, capability::OLD);
        a.login(&address, &login).await.unwrap();
        if let Some(first) = first {
            a.ok(first).await;
            a.ok("INSERT INTO t (v) VALUES ('before')").await;
        }
        a.command(command::QUERY, then.as_bytes()).await;
        let direct = db.direct().await;
        until("it runs", async || direct.scalar::<i32>(running).await == 1).await;
        db.stop();
        let error = a.expect_farewell().await;
        assert_eq!(code(&error), (1105, "08S01"), "{error:?}");
        assert!(error.message.contains("took effect is not known"), "{error:?}");
        assert!(a.read().await.is_none());
        db.restart().await;
    }
}

#[tokio::test]
async fn an_old_server_connection_is_replaced_between_transactions() {
    let db = Server::mariadb().start().await;
    let builder = Proxy::in_front_of(&db).max_connections(1).pool("max_server_lifetime = \"1s\"");
    let proxy = builder.start().await;
    let a = proxy.mysql().await;
    a.execute("SET time_zone = '+05:00'").await;
    let first = backend_of(&a, &db).await;
    a.execute("START TRANSACTION READ WRITE").await;
    for _ in 0..15 {
        a.execute("DO SLEEP(0.1)").await;
    }
    assert_eq!(newest_backend(&db).await, first, "not within a transaction");
    a.execute("COMMIT").await;
    until("another connection", async || backend_of(&a, &db).await != first).await;
    assert!(db.backends().await <= 1);
    assert_eq!(a.scalar::<String>("SELECT @@time_zone").await, "+05:00");
}

/// The same names and labels as for any other engine.
#[tokio::test]
async fn metrics_and_the_admin_api_tell_of_mysql_sessions() {
    let db = Server::mariadb().start().await;
    let proxy = Proxy::in_front_of(&db).max_connections(3).admin().start().await;
    let (a, b) = (proxy.mysql().await, proxy.mysql_as("app2").await);
    a.execute("START TRANSACTION READ WRITE").await;
    b.execute("CREATE TEMPORARY TABLE mine (n int)").await;
    a.exec("SELECT ?", (1,)).await;
    b.errno("SELECT * FROM missing").await;
    let metrics = proxy.metrics().await;
    let endpoint = [("proxy", "test"), ("endpoint", "default")];
    assert_eq!(metrics.sum("pinion_client_connections", &endpoint), 2.0);
    assert_eq!(metrics.sum("pinion_database_connections_currently_in_transaction", &[]), 1.0);
    assert_eq!(metrics.sum("pinion_database_connections_currently_session_pinned", &[]), 1.0);
    assert_eq!(
        metrics.sum("pinion_pins_total", &[endpoint[0], endpoint[1], ("reason", "temporary-table")]),
        1.0
    );
    let target = db.name();
    let of_target = [("proxy", "test"), ("target", target.as_str())];
    assert!(metrics.sum("pinion_database_connections", &of_target) >= 2.0);
    assert!(metrics.sum("pinion_query_requests_total", &endpoint) >= 4.0);
    for name in ["pinion_target_role", "pinion_database_connections_setup_succeeded_total"] {
        assert!(metrics.has(name), "{name}");
    }

    let entry = proxy.target(&db).await;
    assert_eq!(
        (&entry["proxy"], &entry["role"], &entry["budget"]),
        (&"test".into(), &"READ_WRITE".into(), &3.into())
    );
    assert_eq!(entry["connections"]["borrowed"], 2, "{entry}");
    a.execute("COMMIT").await;
    b.close().await;
    until("both are given back", async || proxy.target(&db).await["connections"]["borrowed"] == 0).await;
}
