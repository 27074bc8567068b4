//! A transaction takes a server connection with its first statement, and answers nothing else than a direct one does.
#![allow(clippy::unwrap_used)]

use pinion_tests::{Address, Client, Cluster, Plugin, Proxy, RawClient, Server, until, wire};

/// Tags of the answers up to the next ReadyForQuery: errors with their code, completions with their tag, ReadyForQuery
/// with its status.
async fn answers(raw: &mut RawClient) -> String {
    let mut tags = Vec::new();
    for message in raw.read_reply().await {
        let text = String::from_utf8_lossy(&message.body).trim_end_matches('\0').to_owned();
        tags.push(match message.tag {
            b'E' => message.error().code,
            b'C' | b'Z' => text,
            tag => char::from(tag).to_string(),
        });
    }
    tags.join(" ")
}

async fn ask(raw: &mut RawClient, sql: &str) -> String {
    raw.send_bytes(&wire::query(sql)).await;
    answers(raw).await
}

/// What the server has open of the application's.
async fn open_transactions(direct: &Client) -> i32 {
    direct
        .scalar(
            "SELECT count(*) FROM pg_stat_activity WHERE usename = 'app' AND pid <> pg_backend_pid() \
             AND xact_start IS NOT NULL",
        )
        .await
}

fn run(sql: &str) -> Vec<u8> {
    let (parse, bind) = (wire::parse("", sql), wire::bind("", "", &[]));
    [parse, bind, wire::describe_portal(""), wire::execute("", 0), wire::sync()].concat()
}

#[tokio::test]
async fn any_number_of_clients_begins_without_a_connection() {
    let pg = Server::postgres().start().await;
    let proxy = Proxy::in_front_of(&pg).max_connections(2).admin().start().await;
    let direct = pg.direct().await;
    let mut clients = Vec::new();
    for n in 0..50 {
        let mut client = proxy.raw().await;
        let begin =
            if n % 2 == 0 { "BEGIN" } else { "START TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY" };
        let tag = if n % 2 == 0 { "BEGIN" } else { "START TRANSACTION" };
        assert_eq!(ask(&mut client, begin).await, format!("{tag} T"));
        clients.push(client);
    }
    assert_eq!(open_transactions(&direct).await, 0);
    let (_, answer) = proxy.admin("GET", "/sessions").await;
    let sessions = answer["sessions"].as_array().unwrap();
    assert_eq!(sessions.len(), 50);
    for session in sessions {
        assert_eq!(session["state"], "IN_TRANSACTION");
        assert!(session["target"].is_null(), "{session}");
    }
    // Those that have something to do are served.
    assert_eq!(proxy.connect().await.scalar::<i32>("SELECT 7").await, 7);
    assert_eq!(clients[0].scalar("SELECT 1").await, "1");
    assert_eq!(open_transactions(&direct).await, 1);
    assert_eq!(clients[1].scalar("SHOW transaction_read_only").await, "on");
    assert_eq!(clients[1].scalar("SHOW transaction_isolation").await, "repeatable read");
    for client in &mut clients {
        assert_eq!(ask(client, "COMMIT").await, "COMMIT I");
    }
    assert_eq!(open_transactions(&direct).await, 0);
    assert!(proxy.admin("GET", "/sessions").await.1["sessions"][0]["state"] == "IDLE");
}

/// Requests, one after the other, in as many writes; each is answered by as many ReadyForQuery as is said.
fn scripts() -> Vec<Vec<(Vec<u8>, usize)>> {
    let q = |sql: &str| (wire::query(sql), 1);
    let x = |sql: &str| (run(sql), 1);
    let all = |parts: &[Vec<u8>], n: usize| (parts.concat(), n);
    vec![
        vec![q("BEGIN"), q("COMMIT"), q("BEGIN"), q("ROLLBACK"), q("SELECT 1")],
        vec![q("BEGIN"), q("SELECT 1"), q("COMMIT"), q("COMMIT"), q("ROLLBACK")],
        vec![
            q("begin work;"),
            q("END"),
            q("START TRANSACTION"),
            q("ABORT"),
            q("BEGIN"),
            q("COMMIT AND NO CHAIN"),
        ],
        vec![q("BEGIN"), q("BEGIN"), q("SELECT 1"), q("COMMIT")],
        vec![q("BEGIN"), q("COMMIT AND CHAIN"), q("SELECT 1"), q("ROLLBACK")],
        vec![q("BEGIN READ ONLY"), q("COMMIT AND CHAIN"), q("SHOW transaction_read_only"), q("ROLLBACK")],
        vec![q("BEGIN"), q("SAVEPOINT a"), q("SELECT 1/0"), q("ROLLBACK TO a"), q("SELECT 1"), q("COMMIT")],
        vec![q("BEGIN"), q("ROLLBACK TO a"), q("SELECT 1"), q("COMMIT")],
        vec![q("BEGIN"), q("SELECT 1/0"), q("SELECT 1"), q("COMMIT"), q("SELECT 1")],
        vec![q("BEGIN"), q("SELEC"), q("SELECT 1"), q("ROLLBACK"), q("SELECT 1")],
        vec![q("BEGIN"), q(""), q("SELECT 1"), q("ROLLBACK")],
        vec![q("BEGIN READ WRITE"), q("SELECT 1"), q("COMMIT")],
        vec![q("BEGIN ISOLATION LEVEL SERIALIZABLE, DEFERRABLE"), q("SELECT 1"), q("COMMIT")],
        vec![q("BEGIN ISOLATION"), q("COMMIT")],
        vec![q("BEGIN READ ONLY"), q("INSERT INTO t (v) VALUES ('x')"), q("ROLLBACK")],
        vec![q("BEGIN; SELECT 1"), q("COMMIT")],
        vec![q("BEGIN"), q("SELECT 1; COMMIT; SELECT 2"), q("COMMIT")],
        vec![
            q("BEGIN"),
            q("SET LOCAL work_mem = '3MB'"),
            q("SHOW work_mem"),
            q("COMMIT"),
            q("SHOW work_mem"),
        ],
        vec![q("BEGIN"), q("PREPARE TRANSACTION 'p'"), q("SELECT 1")],
        // The extended protocol.
        vec![q("BEGIN"), x("SELECT 1"), x("COMMIT"), x("SELECT 1")],
        vec![q("BEGIN"), x("SELECT 1/0"), x("SELECT 1"), x("ROLLBACK")],
        vec![q("BEGIN"), x("SELEC"), x("SELECT 1"), q("COMMIT")],
        vec![q("BEGIN"), (wire::sync(), 1), x("SELECT 1"), (wire::sync(), 1), q("COMMIT")],
        vec![q("BEGIN"), x("COMMIT"), (wire::sync(), 1)],
        vec![x("BEGIN"), x("SELECT 1"), x("COMMIT")],
        vec![
            q("BEGIN"),
            (wire::close_statement("s").into_iter().chain(wire::sync()).collect(), 1),
            q("COMMIT"),
        ],
        vec![
            all(&[wire::parse("s", "SELECT 1"), wire::sync()], 1),
            q("BEGIN"),
            all(&[wire::bind("", "s", &[]), wire::execute("", 0), wire::sync()], 1),
            all(&[wire::parse("s", "SELECT 1"), wire::sync()], 1),
            q("ROLLBACK"),
            q("BEGIN"),
            q("DEALLOCATE s"),
            q("COMMIT"),
            q("BEGIN"),
            all(&[wire::describe_statement("s"), wire::sync()], 1),
            q("ROLLBACK"),
        ],
        // Neither the unnamed statement nor its portal outlives a Query.
        vec![
            all(&[wire::parse("", "SELECT 1"), wire::sync()], 1),
            q("BEGIN"),
            all(&[wire::bind("", "", &[]), wire::sync()], 1),
            q("ROLLBACK"),
        ],
        vec![q("BEGIN"), all(&[wire::execute("", 0), wire::sync()], 1), q("ROLLBACK")],
        vec![q("BEGIN"), all(&[wire::describe_statement(""), wire::sync()], 1), q("ROLLBACK")],
        vec![
            all(&[wire::parse("s", "SELECT 5"), wire::sync()], 1),
            q("BEGIN"),
            q("EXECUTE s"),
            q("COMMIT"),
            q("DISCARD ALL"),
        ],
        vec![
            q("BEGIN"),
            all(
                &[wire::parse("", "SELECT generate_series(1, 3)"), wire::bind("c", "", &[]), wire::sync()],
                1,
            ),
            all(&[wire::execute("c", 2), wire::sync()], 1),
            all(&[wire::execute("c", 2), wire::sync()], 1),
            q("COMMIT"),
        ],
        // Several requests in one write.
        vec![all(&[wire::query("BEGIN"), wire::query("SELECT 1"), wire::query("COMMIT")], 3), q("SELECT 1")],
        vec![
            all(&[wire::query("BEGIN"), wire::query("COMMIT"), wire::query("BEGIN"), run("SELECT 1")], 4),
            q("END"),
        ],
        vec![all(
            &[wire::query("BEGIN"), wire::query("SELECT 1/0"), run("SELECT 1"), wire::query("COMMIT")],
            4,
        )],
        vec![
            q("BEGIN"),
            all(&[wire::query("COPY t (v) FROM STDIN"), wire::copy_data(b"copied\n"), wire::copy_done()], 1),
            q("COPY (SELECT count(*) FROM t WHERE v = 'copied') TO STDOUT"),
            q("ROLLBACK"),
        ],
        vec![
            q("BEGIN"),
            q("DECLARE c CURSOR FOR SELECT generate_series(1, 3)"),
            q("FETCH 2 FROM c"),
            q("COMMIT"),
            q("FETCH 1 FROM c"),
        ],
        vec![q("BEGIN"), (wire::function_call(1004, &["a", "b"]), 1), q("ROLLBACK")],
    ]
}

async fn transcripts(address: &Address) -> Vec<Vec<String>> {
    let mut all = Vec::new();
    for script in scripts() {
        let mut client = RawClient::connect(address).await;
        let mut lines = Vec::new();
        for (bytes, answers) in script {
            client.send_bytes(&bytes).await;
            lines.extend(client.transcript(answers).await);
        }
        all.push(lines);
    }
    all
}

#[tokio::test]
async fn every_answer_is_a_direct_connections() {
    let pg = Server::postgres().start().await;
    let proxy = Proxy::in_front_of(&pg).max_connections(2).start().await;
    let rds = Proxy::in_front_of(&pg).profile("rds").max_connections(2).start().await;
    let wanted = transcripts(&pg.address()).await;
    for (place, through) in
        [("smart", transcripts(&proxy.address()).await), ("rds", transcripts(&rds.address()).await)]
    {
        for (at, (wanted, got)) in wanted.iter().zip(&through).enumerate() {
            assert_eq!(got, wanted, "script {at}, profile {place}");
        }
        assert_eq!(wanted.len(), through.len());
    }
}

#[tokio::test]
async fn the_first_statement_begins_the_transaction_and_belongs_to_it() {
    let pg = Server::postgres().start().await;
    let proxy = Proxy::in_front_of(&pg).max_connections(1).start().await;
    let direct = pg.direct().await;
    let mut client = proxy.raw().await;
    ask(&mut client, "BEGIN").await;
    assert_eq!(ask(&mut client, "INSERT INTO t (v) VALUES ('undone')").await, "INSERT 0 1 T");
    assert_eq!(ask(&mut client, "ROLLBACK").await, "ROLLBACK I");
    ask(&mut client, "BEGIN").await;
    client.send_bytes(&run("INSERT INTO t (v) VALUES ('undone')")).await;
    assert_eq!(answers(&mut client).await, "1 2 n INSERT 0 1 T");
    drop(client);
    until("it is rolled back", async || open_transactions(&direct).await == 0).await;
    assert_eq!(direct.scalar::<i32>("SELECT count(*) FROM t WHERE v = 'undone'").await, 0);
    // It went out with the statement: nobody waited for its answer alone.
    let mut client = proxy.raw().await;
    client
        .send_all(&[
            wire::query("BEGIN"),
            wire::query("INSERT INTO t (v) VALUES ('done')"),
            wire::query("COMMIT"),
        ])
        .await;
    assert_eq!(answers(&mut client).await, "BEGIN T");
    assert_eq!(answers(&mut client).await, "INSERT 0 1 T");
    assert_eq!(answers(&mut client).await, "COMMIT I");
    assert_eq!(direct.scalar::<i32>("SELECT count(*) FROM t WHERE v = 'done'").await, 1);
}

/// What keeps a statement from running outside of a transaction whose BEGIN has failed.
#[tokio::test]
async fn a_server_skips_the_query_behind_a_failed_batch_without_a_sync() {
    let pg = Server::postgres().start().await;
    let mut raw = RawClient::connect(&pg.address()).await;
    let begin = [wire::parse("", "BEGIN NONSENSE"), wire::bind("", "", &[]), wire::execute("", 0)].concat();
    let insert = wire::query("INSERT INTO t (v) VALUES ('outside')");
    raw.send_all(&[begin, insert, wire::sync()]).await;
    assert_eq!(answers(&mut raw).await, "42601 I");
    assert_eq!(raw.scalar("SELECT count(*) FROM t WHERE v = 'outside'").await, "0");
}

#[tokio::test]
async fn who_leaves_before_the_first_statement_leaves_nothing() {
    let pg = Server::postgres().start().await;
    let proxy = Proxy::in_front_of(&pg).max_connections(1).start().await;
    let mut client = proxy.raw().await;
    ask(&mut client, "BEGIN").await;
    client.send_bytes(&wire::terminate()).await;
    assert!(client.expect_closed().await.is_empty());
    let mut next = proxy.raw().await;
    assert_eq!(ask(&mut next, "SELECT 1").await, "T D SELECT 1 I");
}

#[tokio::test]
async fn without_a_connection_the_transaction_has_failed() {
    let pg = Server::postgres().start().await;
    let proxy = Proxy::in_front_of(&pg)
        .max_connections(1)
        .pool("connection_borrow_timeout = \"300ms\"")
        .start()
        .await;
    let mut holder = proxy.raw().await;
    ask(&mut holder, "BEGIN; SELECT 1").await;
    let mut client = proxy.raw().await;
    for end in ["ROLLBACK", "COMMIT"] {
        assert_eq!(ask(&mut client, "BEGIN").await, "BEGIN T");
        assert_eq!(ask(&mut client, "INSERT INTO t (v) VALUES ('a')").await, "08000 E");
        client.send_bytes(&wire::query("INSERT INTO t (v) VALUES ('b')")).await;
        let reply = client.read_reply().await;
        let error = reply[0].error();
        assert_eq!(error.code, "25P02");
        assert_eq!(
            error.message,
            "current transaction is aborted, commands ignored until end of transaction block"
        );
        assert_eq!(&*reply[1].body, b"E");
        assert_eq!(ask(&mut client, "").await, "I E");
        client.send_bytes(&run("INSERT INTO t (v) VALUES ('c')")).await;
        assert_eq!(answers(&mut client).await, "25P02 E");
        client.send_bytes(&wire::sync()).await;
        assert_eq!(answers(&mut client).await, "E");
        assert_eq!(ask(&mut client, end).await, "ROLLBACK I");
    }
    // By the extended protocol.
    ask(&mut client, "BEGIN").await;
    client.send_bytes(&run("INSERT INTO t (v) VALUES ('d')")).await;
    assert_eq!(answers(&mut client).await, "08000 E");
    client.send_bytes(&run("ROLLBACK")).await;
    assert_eq!(answers(&mut client).await, "08000 E");
    // With a connection at last the server itself says what a failed transaction says.
    ask(&mut holder, "COMMIT").await;
    client.send_bytes(&run("COMMIT")).await;
    assert_eq!(answers(&mut client).await, "1 2 n ROLLBACK I");
    for (first, wanted) in [
        ("ROLLBACK TO a", "3B001 E"),
        ("SELECT 1; SELECT 2", "25P02 E"),
        ("SELEC", "42601 E"),
        ("SAVEPOINT a", "25P02 E"),
        ("COMMIT AND CHAIN", "ROLLBACK T"),
    ] {
        ask(&mut holder, "BEGIN; SELECT 1").await;
        ask(&mut client, "BEGIN").await;
        assert_eq!(ask(&mut client, "SELECT 1").await, "08000 E");
        ask(&mut holder, "COMMIT").await;
        assert_eq!(ask(&mut client, first).await, wanted, "{first}");
        assert_eq!(ask(&mut client, "ROLLBACK").await, "ROLLBACK I");
    }
    assert_eq!(
        pg.direct().await.scalar::<i32>("SELECT count(*) FROM t WHERE v IN ('a', 'b', 'c', 'd')").await,
        0
    );
}

#[tokio::test]
async fn what_policy_rejects_fails_the_transaction() {
    let pg = Server::postgres().start().await;
    let rules = r#"config = { hooks = ["on-query"], rewrite = true, rules = [
        { hook = "on-query", contains = "secret", verdict = "reject", text = "no", sqlstate = "PN001" },
        { hook = "on-query", contains = "BEGIN READ ONLY", verdict = "reject", text = "no", sqlstate = "PN002" },
        { hook = "on-query", contains = "START TRANSACTION", verdict = "rewrite", text = "BEGIN ISOLATION LEVEL REPEATABLE READ" }] }"#;
    let plugin = Plugin::fixture("scripted").setting(&rules.replace('\n', " "));
    let proxy = Proxy::in_front_of(&pg).max_connections(1).plugin(plugin).start().await;
    let mut client = proxy.raw().await;
    assert_eq!(ask(&mut client, "BEGIN READ ONLY").await, "PN002 I");
    assert_eq!(ask(&mut client, "BEGIN").await, "BEGIN T");
    assert_eq!(ask(&mut client, "SELECT 'secret'").await, "PN001 E");
    assert_eq!(ask(&mut client, "SELECT 1").await, "25P02 E");
    assert_eq!(ask(&mut client, "COMMIT").await, "ROLLBACK I");
    ask(&mut client, "BEGIN").await;
    client.send_bytes(&run("SELECT 'secret'")).await;
    assert_eq!(answers(&mut client).await, "PN001 E");
    assert_eq!(ask(&mut client, "ROLLBACK").await, "ROLLBACK I");
    // One that was rewritten begins as it was rewritten.
    assert_eq!(ask(&mut client, "START TRANSACTION").await, "BEGIN T");
    assert_eq!(client.scalar("SHOW transaction_isolation").await, "repeatable read");
    assert_eq!(ask(&mut client, "COMMIT").await, "COMMIT I");
}

#[tokio::test]
async fn a_pinned_session_begins_where_it_is() {
    let pg = Server::postgres().start().await;
    let proxy = Proxy::in_front_of(&pg).max_connections(2).start().await;
    let direct = pg.direct().await;
    let mut client = proxy.raw().await;
    ask(&mut client, "CREATE TEMP TABLE mine (n int)").await;
    assert_eq!(ask(&mut client, "BEGIN").await, "BEGIN T");
    assert_eq!(open_transactions(&direct).await, 1);
    assert_eq!(ask(&mut client, "COMMIT").await, "COMMIT I");
}

#[tokio::test]
async fn a_drain_waits_for_a_transaction_without_a_statement() {
    let pg = Server::postgres().start().await;
    let mut proxy =
        Proxy::in_front_of(&pg).max_connections(2).top_setting("drain_timeout = \"20s\"").start().await;
    let (mut idle, mut empty, mut full) = (proxy.raw().await, proxy.raw().await, proxy.raw().await);
    ask(&mut empty, "BEGIN").await;
    ask(&mut full, "BEGIN").await;
    proxy.sigterm();
    assert_eq!(idle.expect_error().await.code, "57P01");
    assert_eq!(ask(&mut empty, "COMMIT").await, "COMMIT I");
    assert_eq!(empty.expect_error().await.code, "57P01");
    assert_eq!(ask(&mut full, "INSERT INTO t (v) VALUES ('drained')").await, "INSERT 0 1 T");
    assert_eq!(ask(&mut full, "COMMIT").await, "COMMIT I");
    assert_eq!(full.expect_error().await.code, "57P01");
    assert_eq!(proxy.wait_exit().await.code(), Some(0));
    assert_eq!(pg.direct().await.scalar::<i32>("SELECT count(*) FROM t WHERE v = 'drained'").await, 1);
}

#[tokio::test]
async fn a_lost_server_is_nothing_to_a_transaction_that_it_has_not_begun() {
    let mut pg = Server::postgres().start().await;
    let proxy = Proxy::in_front_of(&pg).max_connections(2).start().await;
    let mut client = proxy.raw().await;
    ask(&mut client, "SELECT 1").await;
    ask(&mut client, "BEGIN").await;
    pg.restart().await;
    assert_eq!(ask(&mut client, "SELECT 1").await, "T D SELECT 1 T");
    assert_eq!(ask(&mut client, "COMMIT").await, "COMMIT I");
}

#[tokio::test]
async fn a_cancel_before_the_first_statement_meets_nothing_and_later_the_transaction() {
    let pg = Server::postgres().start().await;
    let proxy = Proxy::in_front_of(&pg).max_connections(1).start().await;
    let mut client = proxy.raw().await;
    let key = client.key.clone().unwrap();
    let cancel = async || {
        let mut other = RawClient::open(&proxy.address()).await;
        let process = i32::from_be_bytes(key[..4].try_into().unwrap());
        other.send_bytes(&wire::cancel_request(process, &key[4..])).await;
        other.expect_closed().await;
    };
    ask(&mut client, "BEGIN").await;
    cancel().await;
    assert_eq!(ask(&mut client, "SELECT 1").await, "T D SELECT 1 T");
    ask(&mut client, "COMMIT").await;
    // While it waits for a connection.
    let mut holder = proxy.raw().await;
    ask(&mut holder, "BEGIN; SELECT 1").await;
    ask(&mut client, "BEGIN").await;
    client.send_bytes(&wire::query("SELECT 1")).await;
    until("it waits", async || proxy.metric("pinion_pool_waiting", &[]).await == 1.0).await;
    cancel().await;
    assert_eq!(answers(&mut client).await, "57014 E");
    assert_eq!(ask(&mut client, "ROLLBACK").await, "ROLLBACK I");
}

#[tokio::test]
async fn a_transaction_goes_where_its_begin_would_have_gone() {
    let cluster = Cluster::<Server>::start(1).await;
    let plugin = Plugin::shipped("rw-split").setting("config = { read_only_transactions = \"reader\" }");
    let proxy = Proxy::in_front_of_cluster(&cluster).plugin(plugin).start().await;
    let mut client = proxy.raw().await;
    let is_reader = "SELECT pg_is_in_recovery()";
    for (begin, wanted) in [("BEGIN", "f"), ("BEGIN READ ONLY", "t"), ("START TRANSACTION", "f")] {
        ask(&mut client, begin).await;
        assert_eq!(client.scalar(is_reader).await, wanted, "{begin}");
        ask(&mut client, "COMMIT").await;
    }
    assert_eq!(client.scalar(is_reader).await, "t");
}

#[tokio::test]
async fn it_lives_and_ages_like_any_transaction() {
    let pg = Server::postgres().start().await;
    let proxy = Proxy::in_front_of(&pg).proxy_setting("idle_client_timeout = \"1s\"").start().await;
    let mut client = proxy.raw().await;
    ask(&mut client, "BEGIN").await;
    assert_eq!(client.expect_error().await.code, "57P05");

    let proxy = Proxy::in_front_of(&pg).proxy_setting("max_client_lifetime = \"1s\"").start().await;
    let (mut client, mut other) = (proxy.raw().await, proxy.raw().await);
    ask(&mut client, "BEGIN").await;
    assert_eq!(other.expect_error().await.code, "57P01");
    assert_eq!(ask(&mut client, "SELECT 1").await, "T D SELECT 1 T");
    assert_eq!(ask(&mut client, "COMMIT").await, "COMMIT I");
    assert_eq!(client.expect_error().await.code, "57P01");
}
