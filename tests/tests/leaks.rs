//! What one client does by unusual pipelines must never reach the next client of its server connection.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use pinion_tests::{Proxy, RawClient, Server, wire};

struct Bench {
    _pg: Server,
    proxy: Proxy,
}

/// One server connection for everybody.
async fn bench(pool: &str) -> Bench {
    let pg = Server::postgres().start().await;
    let builder = Proxy::in_front_of(&pg).max_connections(1).pool("connection_borrow_timeout = \"5s\"");
    let builder = if pool.is_empty() { builder } else { builder.pool(pool) };
    let proxy = builder.start().await;
    Bench { _pg: pg, proxy }
}

impl Bench {
    /// `search_path` as a client sees it that comes after all others have gone.
    async fn next_sees(&self) -> String {
        let mut next = self.proxy.raw().await;
        let reply = tokio::time::timeout(Duration::from_secs(10), next.query("SHOW search_path"));
        let reply = reply.await.expect("the next client is served");
        let row = reply.iter().find(|m| m.tag == b'D').unwrap_or_else(|| panic!("no row: {reply:?}"));
        row.columns()[0].clone().unwrap()
    }
}

const SET: &str = "SET search_path TO evil";
const CLEAN: &str = "\"$user\", public";

/// Sends each part once the answers up to the ReadyForQuery of the part before are there.
async fn send(client: &mut RawClient, parts: &[(Vec<Vec<u8>>, usize)]) {
    for (messages, ready) in parts {
        client.send_all(messages).await;
        for _ in 0..*ready {
            client.read_reply().await;
        }
    }
}

#[tokio::test]
async fn a_set_bound_behind_another_request_of_the_pipeline() {
    let bench = bench("").await;
    let mut a = bench.proxy.raw().await;
    let first = vec![wire::query("SELECT pg_sleep(0.05)"), wire::parse("", SET), wire::bind("", "", &[])];
    send(&mut a, &[(first, 1), (vec![wire::execute("", 0), wire::sync()], 1)]).await;
    drop(a);
    assert_eq!(bench.next_sees().await, CLEAN);
}

#[tokio::test]
async fn an_unnamed_statement_after_one_that_failed() {
    let bench = bench("").await;
    let mut a = bench.proxy.raw().await;
    let pipeline = vec![
        wire::describe_portal("nope"),
        wire::parse("", "SELECT 3"),
        wire::sync(),
        wire::parse("", SET),
        wire::sync(),
    ];
    let run = vec![wire::bind("", "", &[]), wire::execute("", 0), wire::sync()];
    send(&mut a, &[(vec![wire::parse("", "SELECT 1"), wire::sync()], 1), (pipeline, 2), (run, 1)]).await;
    drop(a);
    assert_eq!(bench.next_sees().await, CLEAN);
}

#[tokio::test]
async fn a_set_whose_neighbours_in_the_pipeline_fail() {
    let bench = bench("").await;
    for other in [vec![wire::parse("", "SELEC"), wire::sync()], vec![wire::query("SELEC")]] {
        let mut a = bench.proxy.raw().await;
        let before = [other.clone(), vec![wire::query(SET)]].concat();
        let after = [vec![wire::query(SET)], other].concat();
        send(&mut a, &[(before, 2), (after, 2)]).await;
        drop(a);
        assert_eq!(bench.next_sees().await, CLEAN);
    }
}

#[tokio::test]
async fn text_that_is_read_otherwise_after_a_local_setting() {
    let bench = bench("").await;
    let mut a = bench.proxy.raw().await;
    let pipeline = vec![
        wire::query("BEGIN"),
        wire::query("SET LOCAL standard_conforming_strings = off"),
        wire::query("SELECT 'a\\'', set_config($$search_path$$, $$evil$$, false) --'"),
        wire::query("COMMIT"),
    ];
    send(&mut a, &[(pipeline, 4)]).await;
    drop(a);
    assert_eq!(bench.next_sees().await, CLEAN);
}

#[tokio::test]
async fn half_a_message_behind_a_copy_that_failed() {
    let bench = bench("").await;
    let mut a = bench.proxy.raw().await;
    a.query("CREATE TEMP TABLE copied (n int); DISCARD ALL").await;
    a.query("CREATE TABLE IF NOT EXISTS pg_temp.copied (n int)").await;
    let data = wire::copy_data(&[b'x'; 40]);
    a.send_all(&[
        wire::query("COPY pg_temp.copied FROM STDIN"),
        wire::copy_data(b"bad\n"),
        data[..7].to_vec(),
    ])
    .await;
    a.read_reply().await;
    a.send_bytes(&data[7..]).await;
    drop(a);
    assert_eq!(bench.next_sees().await, CLEAN);
    let mut a = bench.proxy.raw().await;
    let flush_with_a_body = [wire::query("SELECT 1"), vec![b'H', 0, 0, 7, 208]].concat();
    a.send_bytes(&flush_with_a_body).await;
    a.read_reply().await;
    drop(a);
    assert_eq!(bench.next_sees().await, CLEAN);
}

#[tokio::test]
async fn what_the_init_query_set_is_set_again_after_a_clients_reset() {
    let bench = bench("init_query = \"SET search_path TO initial\"").await;
    for reset in
        ["DISCARD ALL", "RESET ALL", "RESET search_path", "SET search_path TO DEFAULT", "SELECT 1; RESET ALL"]
    {
        let mut a = bench.proxy.raw().await;
        a.query(reset).await;
        drop(a);
        assert_eq!(bench.next_sees().await, "initial", "{reset}");
    }
}

#[tokio::test]
async fn statements_of_others_under_names_read_off_the_server() {
    let bench = bench("").await;
    let mut a = bench.proxy.raw().await;
    let mut b = bench.proxy.raw().await;
    send(&mut a, &[(vec![wire::parse("s", "SELECT 'mine'"), wire::sync()], 1)]).await;
    let names = b.query("SELECT name FROM pg_prepared_statements").await;
    let name = names.iter().find(|m| m.tag == b'D').unwrap().columns()[0].clone().unwrap();
    b.query(&format!("DEALLOCATE {name}")).await;
    send(&mut b, &[(vec![wire::close_statement(&name), wire::sync()], 1)]).await;
    drop(b);
    a.send_all(&[wire::bind("", "s", &[]), wire::execute("", 0), wire::sync()]).await;
    let reply = a.read_reply().await;
    assert!(reply.iter().any(|m| m.tag == b'D'), "{reply:?}");
}

#[tokio::test]
async fn an_unnamed_statement_is_never_anothers() {
    let bench = bench("").await;
    let mut x = bench.proxy.raw().await;
    let run = |sql| vec![wire::parse("", sql), wire::bind("", "", &[]), wire::execute("", 0), wire::sync()];
    send(&mut x, &[(run("SELECT 'secret'"), 1)]).await;
    let mut y = bench.proxy.raw().await;
    let prepare = [vec![wire::parse("p", "PREPARE q AS SELECT 1")], vec![wire::bind("", "p", &[])]].concat();
    send(&mut y, &[([prepare, vec![wire::execute("", 0), wire::sync()]].concat(), 1)]).await;
    y.send_all(&[wire::bind("", "", &[]), wire::execute("", 0), wire::sync()]).await;
    let reply = y.read_reply().await;
    assert!(reply.iter().all(|m| m.tag != b'D'), "{reply:?}");
    assert_eq!(reply.iter().find(|m| m.tag == b'E').unwrap().error().code, "26000");
}

#[tokio::test]
async fn a_copy_that_fails_before_it_reads() {
    let bench = bench("").await;
    let mut a = bench.proxy.raw().await;
    a.query("CREATE TEMP VIEW seen AS SELECT 1 AS n").await;
    let copy = vec![
        wire::parse("", "COPY seen FROM STDIN"),
        wire::bind("", "", &[]),
        wire::execute("", 0),
        wire::sync(),
    ];
    a.send_all(&copy).await;
    let reply = a.read_reply().await;
    assert!(reply.iter().any(|m| m.tag == b'E'), "{reply:?}");
    drop(a);
    assert_eq!(bench.next_sees().await, CLEAN);
}

#[tokio::test]
async fn a_batch_longer_than_the_server_may_fall_behind_is_answered_whole() {
    let bench = bench("").await;
    let mut a = bench.proxy.raw().await;
    let mut batch = wire::parse("", "SELECT 1");
    for _ in 0..10_000 {
        batch.extend([wire::bind("", "", &[]), wire::execute("", 0)].concat());
    }
    batch.extend(wire::sync());
    let (mut answers, ready) = (0, async {
        a.send_bytes(&batch).await;
        a.read_reply().await
    });
    let reply = tokio::time::timeout(Duration::from_secs(60), ready).await.expect("no hang");
    answers += reply.iter().filter(|m| m.tag == b'D').count();
    assert_eq!(answers, 10_000);
}

#[tokio::test]
async fn a_client_that_reads_nothing_is_read_no_further() {
    let bench = bench("").await;
    let mut a = bench.proxy.raw().await;
    let before = bench.proxy.memory_kib("VmRSS");
    let syncs = wire::sync().repeat(200_000);
    let flood = async {
        for _ in 0..100 {
            a.send_bytes(&syncs).await;
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(5), flood).await.is_err(), "100 MB were taken in");
    let grown = bench.proxy.memory_kib("VmRSS").saturating_sub(before);
    assert!(grown < 16 * 1024, "{grown} KiB");
}

/// The server says "syntax error" of more than texts that it could not read, and by then something may have run.
#[tokio::test]
async fn an_error_with_the_code_of_a_syntax_error_that_came_late() {
    let bench = bench("").await;
    for text in [
        "SET search_path TO evil; COMMIT; SELECT (SELECT 1, 2)",
        "SET search_path TO evil; COMMIT; SELECT to_tsquery('a &&& ')",
    ] {
        let mut a = bench.proxy.raw().await;
        send(&mut a, &[(vec![wire::query(text)], 1)]).await;
        drop(a);
        assert_eq!(bench.next_sees().await, CLEAN, "{text}");
    }
    for text in [
        "SELECT pg_advisory_lock(77); SELECT (SELECT 1, 2)",
        "SELECT pg_advisory_lock(78), to_tsquery(n::text || ' &&& ') FROM generate_series(1, 2) n LIMIT 1",
    ] {
        let mut a = bench.proxy.raw().await;
        send(&mut a, &[(vec![wire::query(text)], 1)]).await;
        drop(a);
        let mut next = bench.proxy.raw().await;
        let locks = next.scalar("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'").await;
        assert_eq!(locks, "0", "{text}");
    }
}

/// What runs in a batch may change how the server cuts the next text; nothing of it is believed until it is answered.
#[tokio::test]
async fn a_query_in_an_open_batch_that_changed_how_text_is_read() {
    let bench = bench("").await;
    let mut a = bench.proxy.raw().await;
    let set = "SET LOCAL standard_conforming_strings = off";
    let text = r"SELECT '\' || ', set_config($$search_path$$, $$evil$$, false) --'";
    let batch = vec![wire::parse("", set), wire::bind("", "", &[]), wire::execute("", 0), wire::query(text)];
    send(&mut a, &[(batch, 1)]).await;
    drop(a);
    assert_eq!(bench.next_sees().await, CLEAN);
}
