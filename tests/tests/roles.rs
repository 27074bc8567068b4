//! Several targets: who is the writer and who a reader is found by asking, and requests go by it.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use pinion_tests::{Client, Cluster, Proxy, RawClient, Server, poll, request, until, wire};
use tokio::net::TcpStream;

const IN_RECOVERY: &str = "SELECT pg_is_in_recovery()";
const PORT: &str = "SELECT inet_server_port()";

async fn port_of(client: &Client) -> u16 {
    client.scalar(PORT).await
}

#[tokio::test]
async fn roles_are_found_and_each_endpoint_goes_by_its_own() {
    let cluster = Cluster::start(2).await;
    let proxy = Proxy::in_front_of_cluster(&cluster).start().await;
    proxy.target_is(&cluster.primary, "AVAILABLE", "READ_WRITE").await;
    for standby in &cluster.standbys {
        proxy.target_is(standby, "AVAILABLE", "READ_ONLY").await;
    }

    let (writer, reader) = (proxy.connect().await, proxy.connect_to("reader").await);
    writer.execute("CREATE TABLE made_here (n int); INSERT INTO made_here VALUES (7)").await;
    cluster.caught_up().await;
    for _ in 0..20 {
        assert_eq!(writer.scalar::<String>(IN_RECOVERY).await, "f");
        assert_eq!(reader.scalar::<String>(IN_RECOVERY).await, "t");
    }
    assert_eq!(reader.scalar::<i32>("SELECT n FROM made_here").await, 7);
    // The server's own word; the client goes on.
    assert_eq!(reader.sqlstate("INSERT INTO made_here VALUES (8)").await, "25006");
    assert_eq!(reader.scalar::<i32>("SELECT 1").await, 1);

    let metrics = proxy.metrics().await;
    for (server, role) in cluster.servers().zip(["READ_WRITE", "READ_ONLY", "READ_ONLY"]) {
        for known in ["READ_WRITE", "READ_ONLY", "UNKNOWN"] {
            let labels = [("target", server.name()), ("role", known.to_owned())];
            let labels = labels.each_ref().map(|(key, value)| (*key, value.as_str()));
            assert_eq!(metrics.sum("pinion_target_role", &labels), f64::from(u8::from(known == role)));
        }
        let labels = [("target", server.name()), ("target_role", role.to_owned())];
        let labels = labels.each_ref().map(|(key, value)| (*key, value.as_str()));
        // One is the monitor's.
        assert!(metrics.sum("pinion_database_connections", &labels) >= 1.0, "{}", server.name());
    }
}

/// Nobody listens on a standby, and a promoted one has a listener of its own.
#[tokio::test]
async fn channels_are_the_writers() {
    let mut cluster = Cluster::start(1).await;
    let proxy = Proxy::in_front_of_cluster(&cluster).start().await;
    let (writer, reader) = (proxy.connect().await, proxy.connect_to("reader").await);
    assert_eq!(reader.sqlstate("LISTEN ch").await, "25006");
    assert_eq!(reader.scalar::<i32>("SELECT 1").await, 1);
    let mut listens = proxy.raw().await;
    listens.query("LISTEN ch").await;
    writer.execute("NOTIFY ch, 'first'").await;
    assert_eq!(listens.read().await.unwrap().tag, b'A');
    cluster.primary.stop();
    // It may have missed some.
    assert_eq!(listens.expect_error().await.code, "08006");
    cluster.standbys[0].promote().await;
    proxy.target_is(&cluster.standbys[0], "AVAILABLE", "READ_WRITE").await;
    let mut again = proxy.raw().await;
    again.query("LISTEN ch").await;
    proxy.connect().await.execute("NOTIFY ch, 'second'").await;
    assert_eq!(again.read().await.unwrap().tag, b'A');
}

#[tokio::test]
async fn a_client_is_told_what_a_server_of_its_role_says_at_login() {
    let cluster = Cluster::start(1).await;
    let proxy = Proxy::in_front_of_cluster(&cluster).start().await;
    for (address, expected) in [(proxy.address(), "off"), (proxy.address_of("reader"), "on")] {
        // The second one is told what is remembered.
        for _ in 0..2 {
            let client = RawClient::connect(&address).await;
            assert_eq!(client.parameters["in_hot_standby"], expected);
        }
    }
}

#[tokio::test]
async fn targets_are_listed_with_what_they_do() {
    let cluster = Cluster::start(1).await;
    let proxy = Proxy::in_front_of_cluster(&cluster).max_connections(4).start().await;
    let client = proxy.connect().await;
    client.execute("BEGIN READ WRITE").await;
    let target = proxy.target(&cluster.primary).await;
    assert_eq!(target["proxy"], "test");
    assert_eq!(target["address"], *cluster.primary.name());
    assert_eq!(target["role"], "READ_WRITE");
    assert_eq!(target["state"], "AVAILABLE");
    assert!(target["reason"].is_null() && target["description"].is_null());
    assert_eq!(target["connections"]["borrowed"], 1);
    assert_eq!(target["connections"]["open"], 1);
    assert_eq!(target["connections"]["waiting"], 0);
    assert_eq!(target["budget"], 4);
    assert_eq!(target["capacity"], 100);
    let since = target["since"].as_str().unwrap();
    assert!(since.len() == "2026-01-01T00:00:00.000Z".len() && since.ends_with('Z'), "{since}");
    client.execute("COMMIT").await;
    assert_eq!(proxy.target(&cluster.primary).await["connections"]["idle"], 1);

    let (status, body) = proxy.admin("GET", "/nothing").await;
    assert_eq!((status, body["error"].is_string()), (404, true));
    assert_eq!(proxy.admin("POST", "/targets").await.0, 405);
    assert_eq!(proxy.http("/targets").await.unwrap().0, 404, "the metrics listener has no API");
}

#[tokio::test]
async fn the_admin_api_over_tcp_wants_its_token() {
    let pg = Server::postgres().start().await;
    let dir = tempfile::tempdir().unwrap();
    let token = dir.path().join("token");
    std::fs::write(&token, "a-token-of-some-length\n").unwrap();
    let proxy = Proxy::in_front_of(&pg)
        .admin_setting("listen = \"127.0.0.1:0\"")
        .admin_setting(&format!("token = {{ file = \"{}\" }}", token.display()))
        .start()
        .await;
    let line: serde_json::Value = serde_json::from_str(&proxy.logged("admin listener ready").await).unwrap();
    let address = line["fields"]["address"].as_str().or(line["address"].as_str()).unwrap().to_owned();
    let ask = async |headers: &str| {
        let socket = TcpStream::connect(&address).await.unwrap();
        request(socket, "GET", "/targets", headers).await.unwrap()
    };
    assert_eq!(ask("").await.0, 401);
    assert_eq!(ask("Authorization: Bearer a-token-of-some-lengtH\r\n").await.0, 401);
    let (status, body) = ask("Authorization: Bearer a-token-of-some-length\r\n").await;
    assert_eq!(status, 200);
    assert!(body.contains(&pg.name()) && !proxy.log().contains("a-token-of-some-length"));
}

#[tokio::test]
async fn readers_are_used_by_their_size() {
    let cluster = Cluster::start_with(Server::postgres(), &[103, 203]).await;
    let proxy = Proxy::in_front_of_cluster(&cluster).start().await;
    let mut clients = Vec::new();
    let mut small = 0;
    for _ in 0..60 {
        let client = proxy.connect_to("reader").await;
        client.execute("BEGIN").await;
        small += u32::from(port_of(&client).await == cluster.standbys[0].port());
        clients.push(client);
    }
    assert!((18..=22).contains(&small), "{small} of 60 went to the smaller one of two readers");
    assert_eq!(cluster.primary.backends().await, 0);
}

/// With nothing else to choose by, clients differ and each one keeps to its reader.
#[tokio::test]
async fn idle_readers_share_their_clients() {
    let cluster = Cluster::start(2).await;
    let proxy = Proxy::in_front_of_cluster(&cluster).start().await;
    let mut ports = std::collections::HashSet::new();
    for _ in 0..4 {
        let client = proxy.connect_to("reader").await;
        let first = port_of(&client).await;
        for _ in 0..5 {
            assert_eq!(port_of(&client).await, first);
        }
        ports.insert(first);
    }
    assert_eq!(ports.len(), 2);
}

#[tokio::test]
async fn a_lost_reader_is_done_without() {
    let mut cluster = Cluster::start(2).await;
    let proxy =
        Proxy::in_front_of_cluster(&cluster).pool("connection_borrow_timeout = \"10s\"").start().await;
    let clients = [proxy.connect_to("reader").await, proxy.connect_to("reader").await];
    for client in &clients {
        client.execute("SELECT 1").await;
    }
    let lost = cluster.standbys[0].port();
    cluster.standbys[0].stop();
    // A client may meet the end of a server connection; then it comes again. Nobody waits long.
    let began = Instant::now();
    for _ in 0..20 {
        let client = proxy.connect_to("reader").await;
        assert_ne!(port_of(&client).await, lost);
    }
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    proxy.target_is(&cluster.standbys[0], "UNAVAILABLE", "READ_ONLY").await;
    let target = proxy.target(&cluster.standbys[0]).await;
    assert_eq!(target["reason"], "UNREACHABLE");
    assert!(target["description"].is_string());
    assert_eq!(proxy.http("/readyz").await.unwrap().0, 200, "there is a writer and a reader");

    cluster.standbys[1].stop();
    proxy.target_is(&cluster.standbys[1], "UNAVAILABLE", "READ_ONLY").await;
    let (status, why) = proxy.http("/readyz").await.unwrap();
    assert_eq!(status, 503);
    assert!(why.contains("no READ_ONLY target"), "{why}");
    assert_eq!(proxy.connect().await.scalar::<String>(IN_RECOVERY).await, "f", "writing goes on");

    // Who asks meanwhile is served by whichever comes back, even if it waits at the other.
    let [client, _] = clients;
    let waiting = tokio::spawn(async move { port_of(&client).await });
    cluster.standbys[1].restart().await;
    assert_eq!(waiting.await.unwrap(), cluster.standbys[1].port());
}

/// A client in the line of a server that dies does not stay there.
#[tokio::test]
async fn a_client_waiting_for_a_lost_reader_goes_to_another() {
    let mut cluster = Cluster::start(2).await;
    let proxy = Proxy::in_front_of_cluster(&cluster)
        .max_connections(1)
        .pool("connection_borrow_timeout = \"10m\"")
        .start()
        .await;
    let holders = [proxy.connect_to("reader").await, proxy.connect_to("reader").await];
    let waiter = proxy.connect_to("reader").await;
    let mut held = Vec::new();
    for holder in &holders {
        holder.execute("BEGIN").await;
        held.push(port_of(holder).await);
    }
    assert_ne!(held[0], held[1]);
    let waiting = tokio::spawn(async move { waiter.scalar::<u16>(PORT).await });
    let at = poll("the third waits", async || {
        for (index, standby) in cluster.standbys.iter().enumerate() {
            if proxy.target(standby).await["connections"]["waiting"] == 1 {
                return Some(index);
            }
        }
        None
    })
    .await;
    cluster.standbys[at].stop();
    let other = cluster.standbys[1 - at].port();
    poll("it waits at the other", async || {
        (proxy.target(&cluster.standbys[1 - at]).await["connections"]["waiting"] == 1).then_some(())
    })
    .await;
    let holder = held.iter().position(|port| *port == other).unwrap();
    holders[holder].execute("COMMIT").await;
    assert_eq!(waiting.await.unwrap(), other);
}

#[tokio::test]
async fn without_a_reader_a_read_only_endpoint_says_so_at_once() {
    let pg = Server::postgres().start().await;
    let proxy = Proxy::in_front_of(&pg).endpoint("reader", "READ_ONLY").admin().start_without_target().await;
    proxy.target_is(&pg, "AVAILABLE", "READ_WRITE").await;
    let began = Instant::now();
    let error = Client::connect(&proxy.address_of("reader")).await.unwrap_err();
    let error = error.as_db_error().unwrap().clone();
    assert_eq!((error.code().code(), error.severity()), ("08000", "FATAL"));
    assert_eq!(error.message(), "No usable target with the role READ_ONLY.");
    assert!(began.elapsed() < Duration::from_secs(10));
    assert_eq!(proxy.connect().await.scalar::<i32>("SELECT 1").await, 1);
}

#[tokio::test]
async fn without_a_writer_a_read_write_endpoint_waits_and_then_says_so() {
    let cluster = Cluster::start(1).await;
    let proxy = Proxy::in_front_of(&cluster.standbys[0])
        .admin()
        .pool("connection_borrow_timeout = \"300ms\"")
        .start_without_target()
        .await;
    proxy.target_is(&cluster.standbys[0], "AVAILABLE", "READ_ONLY").await;
    let error = Client::connect(&proxy.address()).await.unwrap_err();
    assert_eq!(error.as_db_error().unwrap().message(), "No usable target with the role READ_WRITE.");
    // Once it is promoted it is the writer.
    cluster.standbys[0].promote().await;
    proxy.target_is(&cluster.standbys[0], "AVAILABLE", "READ_WRITE").await;
    proxy.connect().await.execute("INSERT INTO t (v) VALUES ('x')").await;
}

#[tokio::test]
async fn a_promoted_standby_takes_the_writes() {
    let mut cluster = Cluster::start(2).await;
    let proxy = Proxy::in_front_of_cluster(&cluster).start().await;
    let client = proxy.connect().await;
    client.execute("CREATE TABLE kept (n int); INSERT INTO kept VALUES (1)").await;
    let reader = proxy.connect_to("reader").await;
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
    let newcomer = RawClient::connect(&proxy.address()).await;
    assert_eq!(newcomer.parameters["in_hot_standby"], "off");
    assert_eq!(proxy.connect().await.scalar::<i32>("SELECT count(*) FROM kept").await, 2);
    proxy.target_is(&cluster.standbys[0], "AVAILABLE", "READ_WRITE").await;
    // It is no reader any more.
    for _ in 0..5 {
        assert_eq!(port_of(&reader).await, cluster.standbys[1].port());
    }
    proxy.logged("target changed its role").await;
}

#[tokio::test]
async fn of_two_writers_the_first_is_used_and_the_log_says_so_once() {
    let cluster = Cluster::start(1).await;
    let proxy = Proxy::in_front_of_cluster(&cluster).start().await;
    let client = proxy.connect().await;
    cluster.standbys[0].promote().await;
    proxy.target_is(&cluster.standbys[0], "AVAILABLE", "READ_WRITE").await;
    let said = "several targets say that they are the writer";
    proxy.logged(said).await;
    for _ in 0..20 {
        assert_eq!(port_of(&client).await, cluster.primary.port());
    }
    assert_eq!(proxy.log().matches(said).count(), 1);
}

#[tokio::test]
async fn a_cancel_finds_the_reader() {
    let cluster = Cluster::start(2).await;
    let proxy = Proxy::in_front_of_cluster(&cluster).start().await;
    for _ in 0..4 {
        let address = proxy.address_of("reader");
        let mut client = RawClient::connect(&address).await;
        let key = client.key.clone().unwrap();
        client.send_bytes(&wire::query("SELECT pg_sleep(60)")).await;
        let running = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'app' AND state = 'active'";
        let directs = [cluster.standbys[0].direct().await, cluster.standbys[1].direct().await];
        until("it runs", async || {
            directs[0].scalar::<i32>(running).await + directs[1].scalar::<i32>(running).await == 1
        })
        .await;
        let mut canceller = RawClient::open(&address).await;
        let process = i32::from_be_bytes(key[..4].try_into().unwrap());
        canceller.send_bytes(&wire::cancel_request(process, &key[4..])).await;
        assert!(canceller.read().await.is_none());
        let reply = client.read_reply().await;
        assert_eq!(reply.iter().find(|m| m.tag == b'E').unwrap().error().code, "57014");
    }
}

/// A pin holds at a reader as it does at the writer, and nothing of it reaches another client there.
#[tokio::test]
async fn a_pin_on_a_reader_keeps_that_reader() {
    let cluster = Cluster::start(2).await;
    let proxy = Proxy::in_front_of_cluster(&cluster).start().await;
    let client = proxy.connect_to("reader").await;
    client.execute("SELECT pg_advisory_lock(7)").await;
    let pid: i32 = client.scalar("SELECT pg_backend_pid()").await;
    let others = [proxy.connect_to("reader").await, proxy.connect_to("reader").await];
    for _ in 0..5 {
        for other in &others {
            let locks =
                "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()";
            assert_eq!(other.scalar::<i64>(locks).await, 0);
        }
        assert_eq!(client.scalar::<i32>("SELECT pg_backend_pid()").await, pid);
    }
    assert_eq!(proxy.metric("pinion_database_connections_currently_session_pinned", &[]).await, 1.0);
}
