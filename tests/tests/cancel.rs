//! A cancel reaches the query of the client that asked, and no other.
#![allow(clippy::unwrap_used)]

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use pinion_tests::{Address, Proxy, RawClient, Server, until, wire};

async fn send_cancel(address: &Address, key: &[u8]) {
    let mut canceller = RawClient::open(address).await;
    let process = i32::from_be_bytes(key[..4].try_into().unwrap());
    canceller.send_bytes(&wire::cancel_request(process, &key[4..])).await;
    assert!(canceller.read().await.is_none(), "a cancel is answered by closing, whatever came of it");
}

#[tokio::test]
async fn a_cancel_ends_the_query_of_its_client() {
    let pg = Server::postgres().start().await;
    let proxy = Proxy::in_front_of(&pg).max_connections(3).start().await;
    let (mut a, mut b) = (proxy.raw().await, proxy.raw().await);
    let key = a.key.clone().unwrap();
    a.send_bytes(&wire::query("SELECT pg_sleep(60)")).await;
    b.send_bytes(&wire::query("SELECT pg_sleep(1)")).await;
    let direct = pg.direct().await;
    let running = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'app' AND state = 'active'";
    until("both run", async || direct.scalar::<i32>(running).await == 2).await;
    send_cancel(&proxy.address(), &key).await;
    let reply = a.read_reply().await;
    assert_eq!(reply.iter().find(|m| m.tag == b'E').unwrap().error().code, "57014");
    assert!(b.read_reply().await.iter().all(|m| m.tag != b'E'), "B's query was hit");
    assert_eq!(a.scalar("SELECT 1").await, "1");
}

#[tokio::test]
async fn a_driver_can_cancel() {
    let pg = Server::postgres().start().await;
    let proxy = Proxy::in_front_of(&pg).max_connections(1).start().await;
    let a = Arc::new(proxy.connect().await);
    let token = a.cancel_token();
    let sleeping = tokio::spawn({
        let a = Arc::clone(&a);
        async move { a.sqlstate("SELECT pg_sleep(60)").await }
    });
    let direct = pg.direct().await;
    let running = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'app' AND state = 'active'";
    until("it runs", async || direct.scalar::<i32>(running).await == 1).await;
    token.cancel_query(tokio_postgres::NoTls).await.unwrap();
    assert_eq!(sleeping.await.unwrap(), "57014");
    a.execute("SELECT 1").await;
}

#[tokio::test]
async fn a_cancel_over_tls_works() {
    let pg = Server::postgres().start().await;
    let proxy = Proxy::in_front_of(&pg).max_connections(1).tls().start().await;
    let mut a = proxy.raw().await;
    let key = a.key.clone().unwrap();
    a.send_bytes(&wire::query("SELECT pg_sleep(60)")).await;
    let direct = pg.direct().await;
    let running = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'app' AND state = 'active'";
    until("it runs", async || direct.scalar::<i32>(running).await == 1).await;
    let mut canceller = RawClient::open_tls(&proxy.address()).await.unwrap();
    let process = i32::from_be_bytes(key[..4].try_into().unwrap());
    canceller.send_bytes(&wire::cancel_request(process, &key[4..])).await;
    assert_eq!(a.expect_error().await.code, "57014");
}

#[tokio::test]
async fn a_wrong_secret_cancels_nothing() {
    let pg = Server::postgres().start().await;
    let proxy = Proxy::in_front_of(&pg).max_connections(1).start().await;
    let mut a = proxy.raw().await;
    let key = a.key.clone().unwrap();
    a.send_bytes(&wire::query("SELECT pg_sleep(1)")).await;
    for bit in [0, 7, 31] {
        let mut wrong = key.to_vec();
        wrong[4 + bit / 8] ^= 1 << (bit % 8);
        send_cancel(&proxy.address(), &wrong).await;
        let mut wrong = key.to_vec();
        wrong[bit / 8] ^= 1 << (bit % 8);
        send_cancel(&proxy.address(), &wrong).await;
    }
    // Wrong lengths too.
    send_cancel(&proxy.address(), &key[..6]).await;
    send_cancel(&proxy.address(), &[key.to_vec(), vec![0; 28]].concat()).await;
    // And the server's own key, for a client that learnt it.
    assert!(a.read_reply().await.iter().all(|m| m.tag != b'E'));
}

#[tokio::test]
async fn a_cancel_of_an_idle_client_hits_nobody() {
    let pg = Server::postgres().start().await;
    let proxy = Proxy::in_front_of(&pg).max_connections(1).start().await;
    let (mut a, mut b) = (proxy.raw().await, proxy.raw().await);
    assert_eq!(a.scalar("SELECT 1").await, "1");
    // B now runs on the connection that A used last.
    b.send_bytes(&wire::query("SELECT pg_sleep(0.5)")).await;
    for _ in 0..10 {
        send_cancel(&proxy.address(), &a.key.clone().unwrap()).await;
    }
    assert!(b.read_reply().await.iter().all(|m| m.tag != b'E'), "B's query was hit");
}

#[tokio::test]
async fn a_client_that_waits_for_a_connection_can_be_cancelled_without_harm() {
    let pg = Server::postgres().start().await;
    let proxy = Proxy::in_front_of(&pg).max_connections(1).start().await;
    let (mut a, mut b) = (proxy.raw().await, proxy.raw().await);
    a.query("BEGIN READ WRITE").await;
    b.send_bytes(&wire::query("SELECT 1")).await;
    until("B waits", async || proxy.metric("pinion_pool_waiting", &[]).await == 1.0).await;
    send_cancel(&proxy.address(), &b.key.clone().unwrap()).await;
    assert_eq!(a.scalar("SELECT 2").await, "2");
    a.query("COMMIT").await;
    let reply = b.read_reply().await;
    let error = reply.iter().find(|m| m.tag == b'E').map(|m| m.error().code);
    assert!(error.is_none() || error.as_deref() == Some("57014"), "{reply:?}");
    assert_eq!(b.scalar("SELECT 3").await, "3");
}

/// Clients that cancel themselves all the time share two connections with clients that never do. A cancel that comes
/// late must not fall on whoever has the connection next.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn racing_cancels_hit_no_other_client() {
    let pg = Server::postgres().start().await;
    let proxy = Proxy::in_front_of(&pg).max_connections(2).start().await;
    let goal = 10_000;
    let (sent, hits) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let over = Arc::new(AtomicBool::new(false));

    let mut bystanders = Vec::new();
    for n in 0..4 {
        let (address, over) = (proxy.address(), Arc::clone(&over));
        bystanders.push(tokio::spawn(async move {
            let mut client = RawClient::connect(&address).await;
            let mut served = 0;
            while !over.load(Ordering::Relaxed) {
                let sql = if served % 5 == 0 { "SELECT pg_sleep(0.002), 7" } else { "SELECT 7" };
                let reply = client.query(sql).await;
                let error = reply.iter().find(|m| m.tag == b'E').map(|m| m.error());
                assert!(error.is_none(), "bystander {n} was hit: {error:?}");
                served += 1;
            }
            served
        }));
    }
    let mut cancellers = Vec::new();
    for n in 0..6_u64 {
        let (address, sent, hits) = (proxy.address(), Arc::clone(&sent), Arc::clone(&hits));
        cancellers.push(tokio::spawn(async move {
            let mut client = RawClient::connect(&address).await;
            let key = client.key.clone().unwrap();
            let mut round = n;
            while sent.fetch_add(1, Ordering::Relaxed) < goal {
                round += 1;
                let mut canceller = RawClient::open(&address).await;
                let sql = ["SELECT pg_sleep(0.001)", "SELECT pg_sleep(0.005)", "SELECT pg_sleep(0.03)"];
                client.send_bytes(&wire::query(sql[usize::try_from(round % 3).unwrap()])).await;
                // At another moment each time: before, during and after the query.
                for _ in 0..(round * 7 % 50) {
                    tokio::task::yield_now().await;
                }
                let process = i32::from_be_bytes(key[..4].try_into().unwrap());
                canceller.send_bytes(&wire::cancel_request(process, &key[4..])).await;
                let reply = client.read_reply().await;
                if let Some(error) = reply.iter().find(|m| m.tag == b'E').map(|m| m.error()) {
                    assert_eq!(error.code, "57014", "{error:?}");
                    hits.fetch_add(1, Ordering::Relaxed);
                }
            }
        }));
    }
    for canceller in cancellers {
        tokio::time::timeout(Duration::from_secs(300), canceller).await.expect("the cancellers end").unwrap();
    }
    over.store(true, Ordering::Relaxed);
    let mut served = 0;
    for bystander in bystanders {
        served += bystander.await.unwrap();
    }
    let hits = hits.load(Ordering::Relaxed);
    println!("{goal} cancels, {hits} hit their own query, {served} queries of bystanders unharmed");
    assert!(hits > 0, "no cancel ever arrived in time");
    assert!(served > 0);
}
