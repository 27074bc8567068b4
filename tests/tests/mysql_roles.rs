//! Several MariaDB targets: who is the writer and who a reader is found by asking, and requests go by it.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use pinion_tests::{Cluster, MySqlClient, Proxy, RawMySql, Server, raw_mysql::command, server_error, until};

const PORT: &str = "SELECT @@port";

async fn port_of(client: &MySqlClient) -> u16 {
    client.scalar(PORT).await
}

#[tokio::test]
async fn roles_are_found_and_each_endpoint_goes_by_its_own() {
    let cluster = Cluster::mariadb(2).await;
    let proxy = Proxy::in_front_of_cluster(&cluster).start().await;
    proxy.target_is(&cluster.primary, "AVAILABLE", "READ_WRITE").await;
    for standby in &cluster.standbys {
        proxy.target_is(standby, "AVAILABLE", "READ_ONLY").await;
    }

    let (writer, reader) = (proxy.mysql().await, proxy.mysql_to("reader").await);
    writer.execute("CREATE TABLE made_here (n int)").await;
    writer.execute("INSERT INTO made_here VALUES (7)").await;
    cluster.caught_up().await;
    for _ in 0..20 {
        assert_eq!(writer.scalar::<u8>("SELECT @@read_only").await, 0);
        assert_eq!(reader.scalar::<u8>("SELECT @@read_only").await, 1);
    }
    assert_eq!(reader.scalar::<i32>("SELECT n FROM made_here").await, 7);
    // The server's own word; the client goes on.
    assert_eq!(reader.errno("INSERT INTO made_here VALUES (8)").await, 1290);
    assert_eq!(reader.scalar::<i32>("SELECT 1").await, 1);

    let metrics = proxy.metrics().await;
    for (server, role) in cluster.servers().zip(["READ_WRITE", "READ_ONLY", "READ_ONLY"]) {
        for known in ["READ_WRITE", "READ_ONLY", "UNKNOWN"] {
            let labels = [("target", server.name()), ("role", known.to_owned())];
            let labels = labels.each_ref().map(|(key, value)| (*key, value.as_str()));
            assert_eq!(metrics.sum("pinion_target_role", &labels), f64::from(u8::from(known == role)));
        }
    }
}

#[tokio::test]
async fn targets_are_listed_with_what_they_do() {
    let cluster = Cluster::mariadb(1).await;
    let proxy = Proxy::in_front_of_cluster(&cluster).max_connections(4).start().await;
    let client = proxy.mysql().await;
    client.execute("START TRANSACTION READ WRITE").await;
    let target = proxy.target(&cluster.primary).await;
    assert_eq!(target["address"], *cluster.primary.name());
    assert_eq!(target["role"], "READ_WRITE");
    assert_eq!(target["state"], "AVAILABLE");
    assert_eq!(target["connections"]["borrowed"], 1);
    assert_eq!(target["budget"], 4);
    assert_eq!(target["capacity"], 100);
    client.execute("COMMIT").await;
    assert_eq!(proxy.target(&cluster.primary).await["connections"]["idle"], 1);
}

#[tokio::test]
async fn readers_are_used_by_their_size() {
    let sizes = [100, 200].map(|size| Server::mariadb().max_connections(size));
    let cluster = Cluster::mariadb_with(Server::mariadb(), sizes.into()).await;
    let proxy = Proxy::in_front_of_cluster(&cluster).start().await;
    let mut clients = Vec::new();
    let mut small = 0;
    for _ in 0..60 {
        let client = proxy.mysql_to("reader").await;
        client.execute("BEGIN").await;
        small += u32::from(port_of(&client).await == cluster.standbys[0].port());
        clients.push(client);
    }
    assert!((18..=22).contains(&small), "{small} of 60 went to the smaller one of two readers");
    assert_eq!(cluster.primary.backends().await, 0);
}

#[tokio::test]
async fn a_lost_reader_is_done_without() {
    let mut cluster = Cluster::mariadb(2).await;
    let proxy =
        Proxy::in_front_of_cluster(&cluster).pool("connection_borrow_timeout = \"10s\"").start().await;
    let clients = [proxy.mysql_to("reader").await, proxy.mysql_to("reader").await];
    for client in &clients {
        client.execute("SELECT 1").await;
    }
    let lost = cluster.standbys[0].port();
    cluster.standbys[0].stop();
    // A client may meet the end of a server connection; then it comes again. Nobody waits long.
    let began = Instant::now();
    for _ in 0..20 {
        let client = proxy.mysql_to("reader").await;
        assert_ne!(port_of(&client).await, lost);
    }
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    proxy.target_is(&cluster.standbys[0], "UNAVAILABLE", "READ_ONLY").await;
    assert_eq!(proxy.target(&cluster.standbys[0]).await["reason"], "UNREACHABLE");
    assert_eq!(proxy.http("/readyz").await.unwrap().0, 200, "there is a writer and a reader");

    cluster.standbys[1].stop();
    proxy.target_is(&cluster.standbys[1], "UNAVAILABLE", "READ_ONLY").await;
    assert_eq!(proxy.http("/readyz").await.unwrap().0, 503);
    assert_eq!(port_of(&proxy.mysql().await).await, cluster.primary.port(), "writing goes on");

    // Who asks meanwhile is served by whichever comes back, even if it waits at the other.
    let [client, _] = clients;
    let waiting = tokio::spawn(async move { port_of(&client).await });
    cluster.standbys[1].restart().await;
    assert_eq!(waiting.await.unwrap(), cluster.standbys[1].port());
}

#[tokio::test]
async fn without_a_reader_a_read_only_endpoint_says_so_at_once() {
    let db = Server::mariadb().start().await;
    let proxy = Proxy::in_front_of(&db).endpoint("reader", "READ_ONLY").admin().start_without_target().await;
    proxy.target_is(&db, "AVAILABLE", "READ_WRITE").await;
    let began = Instant::now();
    let error = MySqlClient::connect(&proxy.address_of("reader")).await.unwrap_err();
    let error = server_error(&error);
    assert_eq!((error.code, error.state.as_str()), (9501, "HY000"));
    assert_eq!(error.message, "No usable target with the role READ_ONLY.");
    assert!(began.elapsed() < Duration::from_secs(10));
    assert_eq!(proxy.mysql().await.scalar::<i32>("SELECT 1").await, 1);
}

#[tokio::test]
async fn without_a_writer_a_read_write_endpoint_waits_and_then_says_so() {
    let cluster = Cluster::mariadb(1).await;
    let replica = &cluster.standbys[0];
    let proxy = Proxy::in_front_of(replica)
        .admin()
        .pool("connection_borrow_timeout = \"300ms\"")
        .start_without_target()
        .await;
    proxy.target_is(replica, "AVAILABLE", "READ_ONLY").await;
    let error = MySqlClient::connect(&proxy.address()).await.unwrap_err();
    assert_eq!(server_error(&error).message, "No usable target with the role READ_WRITE.");
    // Once it is promoted it is the writer.
    replica.promote().await;
    proxy.target_is(replica, "AVAILABLE", "READ_WRITE").await;
    proxy.mysql().await.execute("INSERT INTO t (v) VALUES ('x')").await;
}

#[tokio::test]
async fn a_promoted_replica_takes_the_writes() {
    let mut cluster = Cluster::mariadb(2).await;
    let proxy = Proxy::in_front_of_cluster(&cluster).start().await;
    let client = proxy.mysql().await;
    client.execute("CREATE TABLE kept (n int)").await;
    client.execute("INSERT INTO kept VALUES (1)").await;
    let reader = proxy.mysql_to("reader").await;
    reader.execute("SELECT 1").await;
    cluster.caught_up().await;
    cluster.primary.stop();
    proxy.target_is(&cluster.primary, "UNAVAILABLE", "READ_WRITE").await;
    // Sent while there is no writer, carried out by the new one.
    let waiting = tokio::spawn(async move {
        client.execute("INSERT INTO kept VALUES (2)").await;
        client
    });
    cluster.standbys[0].promote().await;
    let client = waiting.await.unwrap();
    assert_eq!(port_of(&client).await, cluster.standbys[0].port());
    assert_eq!(proxy.mysql().await.scalar::<i32>("SELECT count(*) FROM kept").await, 2);
    proxy.target_is(&cluster.standbys[0], "AVAILABLE", "READ_WRITE").await;
    // It is no reader any more.
    for _ in 0..5 {
        assert_eq!(port_of(&reader).await, cluster.standbys[1].port());
    }
    proxy.logged("target changed its role").await;
}

/// Nobody is asked to come again when two servers exchange their roles in a planned way: a write that meets the old
/// primary closed to writes has its own error, and all others succeed.
#[tokio::test]
async fn a_planned_switch_over_is_followed() {
    let mut cluster = Cluster::mariadb(1).await;
    let proxy = Proxy::in_front_of_cluster(&cluster).start().await;
    let (writer, reader) = (proxy.mysql().await, proxy.mysql_to("reader").await);
    writer.execute("CREATE TABLE kept (n int)").await;
    for round in 1..=3 {
        cluster.switch_over(0).await;
        proxy.target_is(&cluster.primary, "AVAILABLE", "READ_WRITE").await;
        proxy.target_is(&cluster.standbys[0], "AVAILABLE", "READ_ONLY").await;
        writer.execute("INSERT INTO kept VALUES (1)").await;
        assert_eq!(port_of(&writer).await, cluster.primary.port());
        cluster.caught_up().await;
        assert_eq!(port_of(&reader).await, cluster.standbys[0].port());
        assert_eq!(reader.scalar::<u32>("SELECT count(*) FROM kept").await, round);
    }
}

#[tokio::test]
async fn of_two_writers_the_first_is_used_and_the_log_says_so_once() {
    let cluster = Cluster::mariadb(1).await;
    let proxy = Proxy::in_front_of_cluster(&cluster).start().await;
    let client = proxy.mysql().await;
    cluster.standbys[0].promote().await;
    proxy.target_is(&cluster.standbys[0], "AVAILABLE", "READ_WRITE").await;
    let said = "several targets say that they are the writer";
    proxy.logged(said).await;
    for _ in 0..20 {
        assert_eq!(port_of(&client).await, cluster.primary.port());
    }
    assert_eq!(proxy.log().matches(said).count(), 1);
}

/// The id that the proxy told at login, whichever of the readers runs the query.
#[tokio::test]
async fn kill_query_finds_the_reader() {
    let cluster = Cluster::mariadb(2).await;
    let proxy = Proxy::in_front_of_cluster(&cluster).start().await;
    let running = "SELECT count(*) FROM information_schema.processlist WHERE info LIKE 'SELECT sleep%'";
    for _ in 0..4 {
        let mut client = RawMySql::connect(&proxy.address_of("reader")).await;
        client.command(command::QUERY, b"SELECT sleep(60)").await;
        let directs = [cluster.standbys[0].direct().await, cluster.standbys[1].direct().await];
        until("it runs", async || {
            directs[0].scalar::<i32>(running).await + directs[1].scalar::<i32>(running).await == 1
        })
        .await;
        let other = proxy.mysql_to("reader").await;
        other.execute(&format!("KILL QUERY {}", client.greeting.id)).await;
        // A sleep that is cut short says so by its value, or by error 1317 when nothing has been sent yet.
        let replies = client.read_replies().await;
        assert_eq!(replies.len(), 1, "{replies:?}");
        assert_eq!(client.scalar("SELECT 1").await, "1");
    }
}

/// A pin holds at a reader as it does at the writer, and nothing of it reaches another client there.
#[tokio::test]
async fn a_pin_on_a_reader_keeps_that_reader() {
    let cluster = Cluster::mariadb(2).await;
    let proxy = Proxy::in_front_of_cluster(&cluster).start().await;
    let client = proxy.mysql_to("reader").await;
    assert_eq!(client.scalar::<u8>("SELECT GET_LOCK('mine', 0)").await, 1);
    let port = port_of(&client).await;
    let others = [proxy.mysql_to("reader").await, proxy.mysql_to("reader").await];
    for _ in 0..5 {
        for other in &others {
            assert_eq!(other.scalar::<u8>("SELECT RELEASE_LOCK('mine') <=> 1").await, 0);
        }
        assert_eq!(port_of(&client).await, port);
    }
    assert_eq!(proxy.metric("pinion_database_connections_currently_session_pinned", &[]).await, 1.0);
    assert_eq!(client.scalar::<u8>("SELECT RELEASE_LOCK('mine')").await, 1);
}
