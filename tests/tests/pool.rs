//! The pool: never over its budget, fair, and nothing dirty is lent on.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use pinion_tests::{Client, Proxy, Server, foreign, poll, until, wire};

#[tokio::test]
async fn a_hundred_clients_never_exceed_the_budget() {
    let pg = Server::postgres().start().await;
    let proxy = Proxy::in_front_of(&pg).max_connections(4).start().await;
    let mut tasks = Vec::new();
    for n in 0..100 {
        let address =
            if n % 3 == 0 { proxy.address().user("app2", "app2-password") } else { proxy.address() };
        tasks.push(tokio::spawn(async move {
            let client = Client::connect(&address).await.unwrap();
            for i in 0..20 {
                assert_eq!(client.scalar::<i32>(&format!("SELECT {n} * 1000 + {i}")).await, n * 1000 + i);
                if i % 5 == 0 {
                    client.execute("BEGIN; SELECT pg_sleep(0.001)").await;
                    client.execute("COMMIT").await;
                }
            }
        }));
    }
    let mut most = 0;
    let watcher = pg.direct().await;
    while tasks.iter().any(|task| !task.is_finished()) {
        let now: u32 =
            watcher.scalar("SELECT count(*) FROM pg_stat_activity WHERE usename IN ('app', 'app2')").await;
        most = most.max(now);
    }
    for task in tasks {
        task.await.unwrap();
    }
    assert!((1..=4).contains(&most), "{most} server connections");
    assert_eq!(proxy.metric("pinion_max_database_connections_allowed", &[]).await, 4.0);
}

#[tokio::test]
async fn waiting_too_long_is_an_error_and_the_client_stays() {
    let pg = Server::postgres().start().await;
    let builder = Proxy::in_front_of(&pg).max_connections(1).pool("connection_borrow_timeout = \"400ms\"");
    let proxy = builder.start().await;
    let (a, b) = (proxy.connect().await, proxy.connect().await);
    a.execute("BEGIN READ WRITE").await;
    let begun = Instant::now();
    assert_eq!(b.sqlstate("SELECT 1").await, "08000");
    assert!(begun.elapsed() >= Duration::from_millis(400), "after {:?}", begun.elapsed());
    a.execute("COMMIT").await;
    b.execute("SELECT 1").await;
}

#[tokio::test]
async fn a_borrow_timeout_of_zero_does_not_wait() {
    let pg = Server::postgres().start().await;
    let builder = Proxy::in_front_of(&pg).max_connections(1).pool("connection_borrow_timeout = \"0s\"");
    let proxy = builder.start().await;
    // The first login needs a server connection, for whose opening nobody waits either.
    let a = poll("a connection is there", async || Client::connect(&proxy.address()).await.ok()).await;
    let b = proxy.connect().await;
    a.execute("BEGIN READ WRITE").await;
    assert_eq!(b.sqlstate("SELECT 1").await, "08000");
    a.execute("COMMIT").await;
    until("B is served", async || b.try_execute("SELECT 1").await.is_ok()).await;
}

/// An extended-protocol request that cannot get a connection is answered up to its Sync, like any failed one.
#[tokio::test]
async fn a_pipeline_that_waited_too_long_is_answered_once_for_each_sync() {
    let pg = Server::postgres().start().await;
    let builder = Proxy::in_front_of(&pg).max_connections(1).pool("connection_borrow_timeout = \"200ms\"");
    let proxy = builder.start().await;
    let a = proxy.connect().await;
    let mut b = proxy.raw().await;
    a.execute("BEGIN READ WRITE").await;
    b.send_all(&[wire::parse("", "SELECT 1"), wire::bind("", "", &[]), wire::execute("", 0), wire::sync()])
        .await;
    assert_eq!(
        b.transcript(1).await,
        ["E ERROR 08000 Timed-out waiting to acquire database connection.", "Z I"]
    );
    a.execute("COMMIT").await;
    assert_eq!(b.scalar("SELECT 1").await, "1");
}

#[tokio::test]
async fn waiters_are_served_in_the_order_they_came() {
    let pg = Server::postgres().start().await;
    pg.direct()
        .await
        .execute("CREATE TABLE served (n serial, who int); GRANT ALL ON served, served_n_seq TO PUBLIC")
        .await;
    let proxy = Proxy::in_front_of(&pg).max_connections(1).start().await;
    let holder = proxy.connect().await;
    holder.execute("BEGIN READ WRITE").await;
    let mut waiting = Vec::new();
    for who in 0..12 {
        let client = proxy.connect().await;
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
    let order: Vec<String> = pg
        .direct()
        .await
        .rows("SELECT who FROM served ORDER BY n")
        .await
        .into_iter()
        .map(|row| row[0].clone().unwrap())
        .collect();
    assert_eq!(order, (0..12).map(|who: i32| who.to_string()).collect::<Vec<_>>());
}

#[tokio::test]
async fn an_idle_connection_of_another_user_makes_room() {
    let pg = Server::postgres().start().await;
    let proxy = Proxy::in_front_of(&pg).max_connections(1).start().await;
    let (a, b) = (proxy.connect().await, proxy.connect_as("app2").await);
    let other = Client::connect(&proxy.address().database("otherdb")).await.unwrap();
    for _ in 0..4 {
        assert_eq!(a.scalar::<String>("SELECT current_user").await, "app");
        assert_eq!(b.scalar::<String>("SELECT current_user").await, "app2");
        assert_eq!(other.scalar::<String>("SELECT current_database()").await, "otherdb");
        assert!(pg.backends().await <= 1);
    }
}

/// Someone else's waiter is served too when the connection that comes free is of the wrong user.
#[tokio::test]
async fn a_waiter_of_another_user_is_served_when_a_connection_comes_free() {
    let pg = Server::postgres().start().await;
    let proxy = Proxy::in_front_of(&pg).max_connections(1).start().await;
    let (a, b) = (proxy.connect().await, proxy.connect_as("app2").await);
    a.execute("BEGIN READ WRITE").await;
    let waiting = tokio::spawn(async move { b.scalar::<String>("SELECT current_user").await });
    until("it waits", async || proxy.metric("pinion_pool_waiting", &[]).await == 1.0).await;
    a.execute("COMMIT").await;
    assert_eq!(waiting.await.unwrap(), "app2");
}

#[tokio::test]
async fn the_init_query_runs_on_each_new_connection() {
    let pg = Server::postgres().start().await;
    let proxy = Proxy::in_front_of(&pg)
        .max_connections(3)
        .pool("init_query = \"SET app.initialised = 'yes'; SET work_mem = '2MB'\"")
        .start()
        .await;
    let (a, b) = (proxy.connect().await, proxy.connect().await);
    a.execute("BEGIN READ WRITE").await;
    for client in [&a, &b] {
        assert_eq!(client.scalar::<String>("SHOW app.initialised").await, "yes");
        assert_eq!(client.scalar::<String>("SHOW work_mem").await, "2MB");
    }
    a.execute("COMMIT").await;
    // After a reset, too.
    a.execute("SET work_mem = '3MB'").await;
    a.execute("DISCARD ALL").await;
    a.close().await;
    for _ in 0..3 {
        assert_eq!(b.scalar::<String>("SHOW work_mem").await, "2MB");
    }
}

#[tokio::test]
async fn a_client_that_vanishes_in_mid_request_leaves_no_dirty_connection() {
    let pg = Server::postgres().start().await;
    let proxy = Proxy::in_front_of(&pg).max_connections(1).start().await;
    let direct = pg.direct().await;
    for beginning in ["SELECT pg_sleep(30)", "BEGIN; SELECT pg_sleep(30)"] {
        let mut a = proxy.raw().await;
        a.send_bytes(&wire::query(beginning)).await;
        let running = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'app' AND state = 'active'";
        until("it runs", async || direct.scalar::<i32>(running).await == 1).await;
        drop(a);
        let b = proxy.connect().await;
        assert_eq!(b.scalar::<i32>("SELECT 5").await, 5);
        b.execute("BEGIN; SELECT 1").await; // 25001 would be a warning only, so look:
        assert_eq!(
            direct.scalar::<i32>("SELECT count(*) FROM pg_stat_activity WHERE usename = 'app'").await,
            1
        );
        b.execute("COMMIT").await;
    }
}

#[tokio::test]
async fn a_client_that_vanishes_in_a_transaction_rolls_it_back() {
    let pg = Server::postgres().start().await;
    let proxy = Proxy::in_front_of(&pg).max_connections(1).start().await;
    let a = proxy.connect().await;
    a.execute("BEGIN; INSERT INTO t (v) VALUES ('ghost')").await;
    a.vanish();
    let b = proxy.connect().await;
    assert_eq!(b.scalar::<i32>("SELECT count(*) FROM t WHERE v = 'ghost'").await, 0);
    b.execute("COMMIT").await; // there is nothing to commit
    assert_eq!(pg.direct().await.scalar::<i32>("SELECT count(*) FROM t WHERE v = 'ghost'").await, 0);
}

/// What is sent is what the clients asked for, and nothing beside it.
#[tokio::test]
async fn no_extra_statements_under_pgbench() {
    let pg = Server::postgres().setting("log_statement", "'all'").start().await;
    let mut direct = pg.address();
    "postgres".clone_into(&mut direct.user);
    foreign::pgbench(&direct, &["-i", "-q", "-s", "1", "--no-vacuum"]).await;
    pg.direct().await.execute("GRANT ALL ON ALL TABLES IN SCHEMA public TO PUBLIC").await;
    let proxy = Proxy::in_front_of(&pg).max_connections(4).start().await;
    for (mode, runs) in [("simple", 1), ("prepared", 2)] {
        let seen = pg.log().len();
        foreign::pgbench(&proxy.address(), &["-n", "-S", "-M", mode, "-c", "10", "-t", "100"]).await;
        let log = pg.log()[seen..].to_owned();
        let statements: Vec<&str> = log
            .lines()
            .filter(|line| {
                line.contains(" app ")
                    && (line.contains("LOG:  statement:") || line.contains("LOG:  execute"))
            })
            .collect();
        let others: Vec<&&str> = statements.iter().filter(|line| !line.contains("SELECT abalance")).collect();
        // pgbench itself asks once for its scale, as `-M simple`.
        assert!(others.len() <= 3, "run {runs}: {others:#?}");
        assert_eq!(statements.len() - others.len(), 1000, "{mode}");
    }
}

#[tokio::test]
async fn an_idle_client_is_told_goodbye() {
    let pg = Server::postgres().start().await;
    let proxy = Proxy::in_front_of(&pg).proxy_setting("idle_client_timeout = \"1s\"").start().await;
    let mut a = proxy.raw().await;
    let error = a.expect_error().await;
    assert_eq!((error.severity.as_str(), error.code.as_str()), ("FATAL", "57P05"));
    assert!(a.read().await.is_none());
}

/// In a transaction too: idle is idle, and the transaction is rolled back.
#[tokio::test]
async fn an_idle_client_in_a_transaction_frees_its_connection() {
    let pg = Server::postgres().start().await;
    let builder = Proxy::in_front_of(&pg).max_connections(1).proxy_setting("idle_client_timeout = \"1s\"");
    let proxy = builder.start().await;
    let mut a = proxy.raw().await;
    a.query("BEGIN READ WRITE").await;
    assert_eq!(a.expect_error().await.code, "57P05");
    assert_eq!(proxy.connect().await.scalar::<i32>("SELECT 1").await, 1);
}

#[tokio::test]
async fn a_client_lives_only_so_long_and_is_cut_between_transactions() {
    let pg = Server::postgres().start().await;
    let proxy = Proxy::in_front_of(&pg).proxy_setting("max_client_lifetime = \"1s\"").start().await;
    let mut a = proxy.raw().await;
    a.query("BEGIN READ WRITE").await;
    for _ in 0..15 {
        assert_eq!(a.scalar("SELECT pg_sleep(0.1)::text || 'x'").await, "x");
    }
    let reply = a.query("COMMIT").await;
    assert!(reply.iter().any(|m| m.tag == b'C'), "{reply:?}");
    let error = a.expect_error().await;
    assert_eq!((error.severity.as_str(), error.code.as_str()), ("FATAL", "57P01"));
}

#[tokio::test]
async fn a_connection_killed_while_idle_is_not_lent() {
    let pg = Server::postgres().start().await;
    let proxy = Proxy::in_front_of(&pg).max_connections(2).start().await;
    let direct = pg.direct().await;
    let a = proxy.connect().await;
    for _ in 0..20 {
        let pid: i32 = a.scalar("SELECT pg_backend_pid()").await;
        direct.execute(&format!("SELECT pg_terminate_backend({pid})")).await;
        until("it is gone", async || {
            direct.scalar::<i32>(&format!("SELECT count(*) FROM pg_stat_activity WHERE pid = {pid}")).await
                == 0
        })
        .await;
        assert_eq!(a.scalar::<i32>("SELECT 1").await, 1);
    }
}

#[tokio::test]
async fn a_connection_killed_in_a_transaction_is_an_error_and_the_client_stays() {
    let pg = Server::postgres().start().await;
    let proxy = Proxy::in_front_of(&pg).max_connections(2).start().await;
    let (a, direct) = (proxy.connect().await, pg.direct().await);
    a.execute("BEGIN; INSERT INTO t (v) VALUES ('lost')").await;
    let pid: i32 = a.scalar("SELECT pg_backend_pid()").await;
    direct.execute(&format!("SELECT pg_terminate_backend({pid})")).await;
    assert!(a.try_execute("INSERT INTO t (v) VALUES ('lost too')").await.is_err());
    a.try_execute("ROLLBACK").await.ok();
    let b = proxy.connect().await;
    assert_eq!(b.scalar::<i32>("SELECT count(*) FROM t WHERE v LIKE 'lost%'").await, 0);
}

#[tokio::test]
async fn a_restarted_server_is_found_again() {
    let mut pg = Server::postgres().start().await;
    let proxy = Proxy::in_front_of(&pg).max_connections(3).start().await;
    let a = proxy.connect().await;
    a.execute("SELECT 1").await;
    pg.restart().await;
    let b = proxy.connect().await;
    poll("the proxy serves again", async || b.try_execute("SELECT 1").await.ok()).await;
}

/// Every client is told something when the server is away; none hangs.
#[tokio::test]
async fn a_server_that_is_away_is_an_error_not_a_hang() {
    let mut pg = Server::postgres().start().await;
    let builder = Proxy::in_front_of(&pg).max_connections(3).pool("connection_borrow_timeout = \"1s\"");
    let proxy = builder.start().await;
    let a = proxy.connect().await;
    a.execute("SELECT 1").await;
    pg.stop();
    let code = a.sqlstate("SELECT 1").await;
    assert!(code.starts_with("08") || code == "57P01", "{code}");
    let (status, _) =
        poll("/readyz tells", async || proxy.http("/readyz").await.filter(|(s, _)| *s != 200)).await;
    assert_eq!(status, 503);
    assert_eq!(proxy.http("/healthz").await.unwrap().0, 200);
    pg.restart().await;
    poll("/readyz recovers", async || proxy.http("/readyz").await.filter(|(s, _)| *s == 200)).await;
}

/// A used connection goes back in front: few clients use few connections.
#[tokio::test]
async fn connections_are_used_last_in_first_out() {
    let pg = Server::postgres().start().await;
    let proxy = Proxy::in_front_of(&pg).max_connections(5).start().await;
    let clients = [proxy.connect().await, proxy.connect().await, proxy.connect().await];
    for client in &clients {
        client.execute("BEGIN READ WRITE").await;
    }
    for client in &clients {
        client.execute("COMMIT").await;
    }
    let mut pids = std::collections::HashSet::new();
    for _ in 0..10 {
        for client in &clients {
            pids.insert(client.scalar::<i32>("SELECT pg_backend_pid()").await);
        }
    }
    assert_eq!(pids.len(), 1);
}

#[tokio::test]
async fn an_old_server_connection_is_replaced_between_transactions() {
    let pg = Server::postgres().start().await;
    let builder = Proxy::in_front_of(&pg).max_connections(1).pool("max_server_lifetime = \"1s\"");
    let proxy = builder.start().await;
    let a = proxy.connect().await;
    let first: i32 = a.scalar("SELECT pg_backend_pid()").await;
    until("another connection", async || a.scalar::<i32>("SELECT pg_backend_pid()").await != first).await;
    assert!(pg.backends().await <= 1);
}
