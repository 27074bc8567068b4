//! A thousand clients that come, ask once and leave, and five hundred that stay, on twenty server connections.
#![allow(clippy::unwrap_used)]

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use pinion_tests::{
    Address, MariaDb, Proxy, RawMySql, Server, long_run, raise_file_limit,
    raw_mysql::{Login, Reply, capability, command},
};
use tokio::task::JoinSet;

/// Connects, asks once, says goodbye; what went wrong otherwise.
async fn short_life(address: Arc<Address>, n: usize) -> Result<(), String> {
    let mut client = RawMySql::open(&address).await.map_err(|e| format!("greeting: {e:?}"))?;
    // What PyMySQL asks for in most of them.
    let flags = if n.is_multiple_of(3) { capability::NEW } else { capability::OLD };
    client.login(&address, &Login::new(&address, flags)).await.map_err(|e| format!("login: {e:?}"))?;
    let answer = client.query(&format!("SELECT {n}, v FROM t WHERE id = {}", n % 3 + 1)).await;
    let wanted = format!("{n}");
    match answer.as_slice() {
        [Reply::Rows(rows)] if rows.texts().first().is_some_and(|row| row[0].as_ref() == Some(&wanted)) => {}
        other => return Err(format!("client {n}: {other:?}")),
    }
    client.command(command::QUIT, &[]).await;
    Ok(())
}

/// Text, prepared statements and transactions, until the time is over; how many statements.
async fn long_life(address: Arc<Address>, n: usize, until: Instant) -> Result<u64, String> {
    let mut client = RawMySql::open(&address).await.map_err(|e| format!("greeting: {e:?}"))?;
    let login = Login::new(&address, capability::NEW);
    client.login(&address, &login).await.map_err(|e| format!("login: {e:?}"))?;
    let prepared = client.prepare("SELECT n FROM steady WHERE id = ?").await.map_err(|e| format!("{e:?}"))?;
    let id = n.to_string();
    let (mut statements, mut added) = (0, 0);
    while Instant::now() < until {
        for sql in ["BEGIN", &format!("UPDATE steady SET n = n + 1 WHERE id = {n}"), "COMMIT"] {
            let replies = client.query(sql).await;
            if replies.iter().any(|reply| reply.status().is_none()) {
                return Err(format!("client {n}: {sql}: {replies:?}"));
            }
        }
        added += 1;
        let replies = client.execute(prepared.id, 0, &[Some(&id)]).await;
        match replies.as_slice() {
            [Reply::Rows(rows)] if rows.values() == [[Some(added.to_string())]] => {}
            other => return Err(format!("client {n} after {added}: {other:?}")),
        }
        statements += 4;
    }
    client.command(command::QUIT, &[]).await;
    Ok(statements)
}

/// Both crowds at once; the most connections that the server had meanwhile, the watcher's own left out.
async fn crowds(db: &MariaDb, address: &Address, short: usize, long: usize, seconds: u64) -> u64 {
    let direct = db.direct().await;
    direct.execute("CREATE OR REPLACE TABLE steady (id int PRIMARY KEY, n int NOT NULL)").await;
    direct.execute(&format!("INSERT INTO steady SELECT seq, 0 FROM seq_0_to_{long}")).await;
    let (address, began) = (Arc::new(address.clone()), Instant::now());
    let mut steady = JoinSet::new();
    for n in 0..long {
        steady.spawn(long_life(Arc::clone(&address), n, began + Duration::from_secs(seconds)));
    }
    let mut burst = JoinSet::new();
    for n in 0..short {
        burst.spawn(short_life(Arc::clone(&address), n));
    }
    let (mut statements, mut most, mut burst_took) = (0, 0, None);
    while !(steady.is_empty() && burst.is_empty()) {
        tokio::select! {
            Some(ended) = burst.join_next() => {
                ended.unwrap().unwrap();
                burst_took = Some(began.elapsed());
            }
            Some(ended) = steady.join_next() => statements += ended.unwrap().unwrap(),
            rows = direct.rows("SHOW GLOBAL STATUS LIKE 'Threads_connected'") => {
                let connected: u64 = rows[0][1].as_ref().unwrap().parse().unwrap();
                most = most.max(connected - 1);
            }
        }
    }
    println!(
        "{short} short clients within {burst_took:.1?}, {statements} statements of {long} long ones, {most} connections"
    );
    most
}

/// The crowds themselves, without any proxy: as many connections as clients.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_alone_has_a_connection_for_each_client() {
    raise_file_limit();
    let db = Server::mariadb().tls().max_connections(400).without_general_log().start().await;
    let secure = Address { ca: db.ca().cloned(), ..db.address() };
    let most = crowds(&db, &secure, 200, 50, 1).await;
    assert!(most >= 50, "{most} connections");
}

/// For 30 s with `PINION_LONG=1`, else 5 s.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifteen_hundred_clients_share_twenty_connections_without_an_error() {
    raise_file_limit();
    let db = Server::mariadb().tls().without_general_log().start().await;
    let proxy = Proxy::in_front_of(&db)
        .max_connections(20)
        .tls()
        .pool("connection_borrow_timeout = \"60s\"")
        .start()
        .await;
    let most = crowds(&db, &proxy.address(), 1000, 500, if long_run() { 30 } else { 5 }).await;
    // One is the monitor's.
    assert!((1..=21).contains(&most), "{most} server connections");
    assert_eq!(proxy.metric("pinion_pins_total", &[]).await, 0.0);
}
