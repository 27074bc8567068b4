//! Protocol-level prepared statements are virtual: names are the client's own, whatever server connection it is on.
#![allow(clippy::unwrap_used)]

use pinion_tests::{Address, Message, Proxy, RawClient, Server, wire};

async fn pool_of(n: u32) -> (Server, Proxy) {
    let pg = Server::postgres().start().await;
    let proxy = Proxy::in_front_of(&pg).max_connections(n).start().await;
    (pg, proxy)
}

/// Runs statement `name` with `parameters` and gives the first column of the first row, or the SQLSTATE.
async fn run(client: &mut RawClient, name: &str, parameters: &[&str]) -> Result<String, String> {
    client.send_all(&[wire::bind("", name, parameters), wire::execute("", 0), wire::sync()]).await;
    first_column(&client.read_reply().await)
}

async fn prepare(client: &mut RawClient, name: &str, sql: &str) -> Result<(), String> {
    client.send_all(&[wire::parse(name, sql), wire::sync()]).await;
    let reply = client.read_reply().await;
    match reply.iter().find(|m| m.tag == b'E') {
        Some(error) => Err(error.error().code),
        None => {
            let tags: Vec<u8> = reply.iter().map(|m| m.tag).collect();
            assert_eq!(tags, b"1Z", "{reply:?}");
            Ok(())
        }
    }
}

fn first_column(reply: &[Message]) -> Result<String, String> {
    if let Some(error) = reply.iter().find(|m| m.tag == b'E') {
        return Err(error.error().code);
    }
    let row = reply.iter().find(|m| m.tag == b'D').unwrap_or_else(|| panic!("no row: {reply:?}"));
    Ok(row.columns()[0].clone().unwrap())
}

#[tokio::test]
async fn one_name_means_to_each_client_what_that_client_prepared() {
    let (_pg, proxy) = pool_of(1).await;
    let (mut a, mut b) = (proxy.raw().await, proxy.raw().await);
    prepare(&mut a, "s", "SELECT 'a' || $1").await.unwrap();
    prepare(&mut b, "s", "SELECT 'b' || $1").await.unwrap();
    for i in 0..5 {
        assert_eq!(run(&mut a, "s", &[&i.to_string()]).await.unwrap(), format!("a{i}"));
        assert_eq!(run(&mut b, "s", &[&i.to_string()]).await.unwrap(), format!("b{i}"));
    }
}

#[tokio::test]
async fn a_statement_follows_its_client_to_other_connections() {
    let (_pg, proxy) = pool_of(2).await;
    let mut a = proxy.raw().await;
    prepare(&mut a, "s", "SELECT pg_backend_pid() || '/' || $1").await.unwrap();
    let mut seen = std::collections::HashSet::new();
    for i in 0..8 {
        // A neighbour's transaction holds one of the two connections, another each time. Raw clients all: server
        // connections are shared by clients with the same start-up parameters.
        let (mut neighbour, mut second) = (proxy.raw().await, proxy.raw().await);
        neighbour.query("BEGIN READ WRITE").await;
        let answer = run(&mut a, "s", &[&i.to_string()]).await.unwrap();
        let (pid, echoed) = answer.split_once('/').unwrap();
        assert_eq!(echoed, i.to_string());
        seen.insert(pid.to_owned());
        second.query("BEGIN READ WRITE").await;
        neighbour.query("COMMIT").await;
        let answer = run(&mut a, "s", &["x"]).await.unwrap();
        seen.insert(answer.split_once('/').unwrap().0.to_owned());
        second.query("COMMIT").await;
    }
    assert_eq!(seen.len(), 2, "the test saw only {seen:?}");
}

#[tokio::test]
async fn the_unnamed_statement_survives_a_change_of_connection() {
    let (_pg, proxy) = pool_of(1).await;
    let (mut a, mut b) = (proxy.raw().await, proxy.raw().await);
    prepare(&mut a, "", "SELECT 'a' || $1").await.unwrap();
    prepare(&mut b, "", "SELECT 'b' || $1").await.unwrap();
    assert_eq!(run(&mut a, "", &["1"]).await.unwrap(), "a1");
    assert_eq!(run(&mut b, "", &["1"]).await.unwrap(), "b1");
    assert_eq!(run(&mut a, "", &["2"]).await.unwrap(), "a2");
    prepare(&mut a, "", "SELECT 'new' || $1").await.unwrap();
    assert_eq!(run(&mut a, "", &["3"]).await.unwrap(), "new3");
    // A simple query ends the unnamed statement.
    a.query("SELECT 1").await;
    assert_eq!(run(&mut a, "", &["4"]).await.unwrap_err(), "26000");
    assert_eq!(run(&mut b, "", &["5"]).await.unwrap(), "b5");
}

#[tokio::test]
async fn describe_and_close_are_the_clients_own() {
    let (_pg, proxy) = pool_of(1).await;
    let (mut a, mut b) = (proxy.raw().await, proxy.raw().await);
    prepare(&mut a, "s", "SELECT 1::int4 AS one, $1::text AS two").await.unwrap();
    prepare(&mut b, "s", "SELECT now()").await.unwrap();
    for _ in 0..2 {
        a.send_all(&[wire::describe_statement("s"), wire::sync()]).await;
        let reply = a.read_reply().await;
        assert_eq!(reply.iter().map(|m| m.tag).collect::<Vec<_>>(), b"tTZ");
        assert!(reply[1].body.windows(4).any(|w| w == b"one\0"), "{reply:?}");
        b.send_all(&[wire::describe_statement("s"), wire::sync()]).await;
        let reply = b.read_reply().await;
        assert!(reply[1].body.windows(4).any(|w| w == b"now\0"), "{reply:?}");
    }
    b.send_all(&[wire::close_statement("s"), wire::sync()]).await;
    assert_eq!(b.read_reply().await.iter().map(|m| m.tag).collect::<Vec<_>>(), b"3Z");
    assert_eq!(run(&mut b, "s", &[]).await.unwrap_err(), "26000");
    assert_eq!(run(&mut a, "s", &["x"]).await.unwrap(), "1");
    // Closing what does not exist is no error.
    b.send_all(&[wire::close_statement("nothing"), wire::sync()]).await;
    assert_eq!(b.read_reply().await.iter().map(|m| m.tag).collect::<Vec<_>>(), b"3Z");
    prepare(&mut b, "s", "SELECT 'again'").await.unwrap();
    assert_eq!(run(&mut b, "s", &[]).await.unwrap(), "again");
}

#[tokio::test]
async fn a_name_that_was_not_prepared_is_unknown_even_if_the_server_has_it() {
    let (pg, proxy) = pool_of(1).await;
    let mut a = proxy.raw().await;
    prepare(&mut a, "secret", "SELECT 'a secret'").await.unwrap();
    run(&mut a, "secret", &[]).await.unwrap();
    // What the proxy calls it on the server, as a thief would read it there.
    let mut b = proxy.raw().await;
    let names = b.query("SELECT name FROM pg_prepared_statements").await;
    let mut guesses: Vec<String> =
        names.iter().filter(|m| m.tag == b'D').map(|m| m.columns()[0].clone().unwrap()).collect();
    assert!(!guesses.is_empty(), "the statement is on the server");
    guesses.extend(["secret", "s0", "s1", "p1", "pinion_1", "_p1", "pinion1", "1"].map(str::to_owned));
    for name in guesses {
        assert_eq!(run(&mut b, &name, &[]).await.unwrap_err(), "26000", "{name}");
        b.send_all(&[wire::describe_statement(&name), wire::sync()]).await;
        assert_eq!(b.expect_error().await.code, "26000", "{name}");
        b.read_reply().await;
        // A Close of the guessed name must not take it from its owner.
        b.send_all(&[wire::close_statement(&name), wire::sync()]).await;
        b.read_reply().await;
    }
    assert_eq!(run(&mut a, "secret", &[]).await.unwrap(), "a secret");
    drop(pg);
}

#[tokio::test]
async fn a_name_in_use_cannot_be_prepared_again() {
    let (_pg, proxy) = pool_of(1).await;
    let mut a = proxy.raw().await;
    prepare(&mut a, "s", "SELECT 1").await.unwrap();
    assert_eq!(prepare(&mut a, "s", "SELECT 2").await.unwrap_err(), "42P05");
    assert_eq!(run(&mut a, "s", &[]).await.unwrap(), "1");
}

#[tokio::test]
async fn a_parse_error_leaves_no_statement_and_a_usable_session() {
    let (_pg, proxy) = pool_of(1).await;
    let mut a = proxy.raw().await;
    assert_eq!(prepare(&mut a, "s", "SELEC 1").await.unwrap_err(), "42601");
    assert_eq!(run(&mut a, "s", &[]).await.unwrap_err(), "26000");
    assert_eq!(prepare(&mut a, "s", "SELECT no_such_column").await.unwrap_err(), "42703");
    prepare(&mut a, "s", "SELECT 1").await.unwrap();
    assert_eq!(run(&mut a, "s", &[]).await.unwrap(), "1");
}

/// A statement whose first Parse failed here may not be taken for prepared by the next client.
#[tokio::test]
async fn a_failed_parse_is_not_remembered_for_others() {
    let (pg, proxy) = pool_of(1).await;
    let (mut a, mut b) = (proxy.raw().await, proxy.raw().await);
    assert_eq!(prepare(&mut a, "s", "SELECT n FROM later").await.unwrap_err(), "42P01");
    pg.direct().await.execute("CREATE TABLE later AS SELECT 5 AS n; GRANT ALL ON later TO PUBLIC").await;
    prepare(&mut b, "s", "SELECT n FROM later").await.unwrap();
    assert_eq!(run(&mut b, "s", &[]).await.unwrap(), "5");
    prepare(&mut a, "s", "SELECT n FROM later").await.unwrap();
    assert_eq!(run(&mut a, "s", &[]).await.unwrap(), "5");
}

#[tokio::test]
async fn deallocate_works_on_protocol_level_statements() {
    let (_pg, proxy) = pool_of(2).await;
    let (mut a, mut b) = (proxy.raw().await, proxy.raw().await);
    for client in [&mut a, &mut b] {
        prepare(client, "x", "SELECT 'x'").await.unwrap();
        prepare(client, "y", "SELECT 'y'").await.unwrap();
        run(client, "x", &[]).await.unwrap();
        run(client, "y", &[]).await.unwrap();
    }
    let reply = a.query("DEALLOCATE x").await;
    assert!(reply.iter().any(|m| m.tag == b'C'), "{reply:?}");
    assert_eq!(run(&mut a, "x", &[]).await.unwrap_err(), "26000");
    assert_eq!(run(&mut a, "y", &[]).await.unwrap(), "y");
    assert_eq!(run(&mut b, "x", &[]).await.unwrap(), "x");
    for text in ["DEALLOCATE ALL", "DISCARD ALL"] {
        let reply = a.query(text).await;
        assert!(reply.iter().any(|m| m.tag == b'C'), "{reply:?}");
        assert_eq!(run(&mut a, "y", &[]).await.unwrap_err(), "26000", "{text}");
        assert_eq!(run(&mut b, "y", &[]).await.unwrap(), "y", "{text}");
        prepare(&mut a, "y", "SELECT 'y'").await.unwrap();
        assert_eq!(run(&mut a, "y", &[]).await.unwrap(), "y", "{text}");
    }
    let reply = a.query("DEALLOCATE never_prepared").await;
    assert_eq!(reply[0].error().code, "26000");
}

#[tokio::test]
async fn sql_prepare_and_protocol_statements_share_the_clients_names() {
    let (_pg, proxy) = pool_of(2).await;
    let mut a = proxy.raw().await;
    a.query("PREPARE by_sql AS SELECT 'sql'").await;
    assert_eq!(run(&mut a, "by_sql", &[]).await.unwrap(), "sql");
    prepare(&mut a, "by_protocol", "SELECT 'protocol'").await.unwrap();
    assert_eq!(a.scalar("EXECUTE by_protocol").await, "protocol");
}

#[tokio::test]
async fn a_name_that_sql_has_given_is_taken() {
    let (_pg, proxy) = pool_of(2).await;
    let (mut a, mut b) = (proxy.raw().await, proxy.raw().await);
    let code = |reply: &[Message]| reply.iter().find(|m| m.tag == b'E').map(|m| m.error().code);
    prepare(&mut b, "p", "SELECT 'known'").await.unwrap();
    a.query("PREPARE p AS SELECT 'sql'").await;
    for _ in 0..2 {
        // Of a text that needs no server, and of one that does, on whatever connection.
        assert_eq!(prepare(&mut a, "p", "SELECT 'known'").await.unwrap_err(), "42P05");
        assert_eq!(prepare(&mut a, "p", "SELECT 'new'").await.unwrap_err(), "42P05");
        assert_eq!(a.scalar("EXECUTE p").await, "sql");
        b.query("BEGIN READ WRITE").await;
    }
    b.query("COMMIT").await;
    prepare(&mut a, "q", "SELECT 'known'").await.unwrap();
    assert_eq!(run(&mut a, "q", &[]).await.unwrap(), "known");
    // What the server finds wrong first is told first, here as there.
    assert_eq!(prepare(&mut a, "p", "SELECT nothing").await.unwrap_err(), "42703");
    a.query("DEALLOCATE p").await;
    prepare(&mut a, "p", "SELECT 'known'").await.unwrap();
    assert_eq!(run(&mut a, "p", &[]).await.unwrap(), "known");
    // The other way round.
    assert_eq!(code(&a.query("PREPARE p AS SELECT 'sql'").await).unwrap(), "42P05");
    assert_eq!(code(&a.query("PREPARE p AS SELECT nothing").await).unwrap(), "42703");
    assert_eq!(run(&mut a, "p", &[]).await.unwrap(), "known");
    assert_eq!(code(&a.query("PREPARE r AS SELECT 1").await), None);
    for name in ["p", "q"] {
        close(&mut a, name).await;
        assert_eq!(code(&a.query(&format!("PREPARE {name} AS SELECT 'sql'")).await), None);
        assert_eq!(a.scalar(&format!("EXECUTE {name}")).await, "sql");
    }
    let pins = proxy.metric("pinion_pins_total", &[]).await;
    assert_eq!(pins, 0.0, "{}", proxy.log());
    prepare(&mut a, "t", "SELECT 'known'").await.unwrap();
    assert_eq!(code(&a.query("PREPARE t AS SELECT lastval()").await).unwrap(), "42P05");
}

#[tokio::test]
async fn names_given_twice_are_refused_as_by_the_server() {
    use wire::{bind, close_statement, describe_statement, execute, parse, query, sync};
    same_as_direct(&[
        vec![query("PREPARE p AS SELECT 1")],
        vec![parse("p", "SELECT 2"), describe_statement("p"), sync(), query("EXECUTE p")],
        vec![query("EXECUTE p"), query("EXECUTE nothing")],
        vec![close_statement("p"), parse("p", "SELECT 2"), bind("", "p", &[]), execute("", 0), sync()],
        vec![
            parse("p", "SELECT 3"),
            sync(),
            query("PREPARE p AS SELECT 4"),
            bind("", "p", &[]),
            execute("", 0),
            sync(),
        ],
        vec![query("PREPARE p AS SELECT nothing"), query("SELECT 1; PREPARE p AS SELECT 5; SELECT 2")],
        vec![parse("", "PREPARE p AS SELECT 6"), bind("", "", &[]), execute("", 0), sync()],
        vec![
            query("DEALLOCATE p"),
            parse("", "PREPARE p AS SELECT 7"),
            bind("", "", &[]),
            execute("", 0),
            sync(),
        ],
        vec![
            parse("p", "SELECT 8"),
            sync(),
            query("EXECUTE p"),
            query("BEGIN"),
            parse("p", "SELECT 9"),
            sync(),
        ],
        vec![parse("q", "COMMIT"), sync(), query("ROLLBACK"), query("DEALLOCATE ALL")],
        vec![parse("p", "SELECT 10"), bind("", "p", &[]), execute("", 0), sync()],
    ])
    .await;
}

#[tokio::test]
async fn few_statements_are_kept_on_a_connection_and_all_work() {
    let pg = Server::postgres().start().await;
    let proxy = Proxy::in_front_of(&pg).max_connections(1).pool("max_prepared_statements = 2").start().await;
    let (mut a, mut b) = (proxy.raw().await, proxy.raw().await);
    for i in 0..10 {
        prepare(&mut a, &format!("s{i}"), &format!("SELECT 'a{i}'")).await.unwrap();
    }
    for round in 0..3 {
        for i in [0, 9, 3, 3, 5, (round * 7) % 10] {
            assert_eq!(run(&mut a, &format!("s{i}"), &[]).await.unwrap(), format!("a{i}"));
        }
        let kept: i32 = b.scalar("SELECT count(*) FROM pg_prepared_statements").await.parse().unwrap();
        assert!(kept <= 2, "{kept} statements on the server");
    }
    // More of them in one pipeline than the connection may keep.
    let mut pipeline: Vec<Vec<u8>> =
        (0..10).flat_map(|i| [wire::bind("", &format!("s{i}"), &[]), wire::execute("", 0)]).collect();
    pipeline.push(wire::sync());
    a.send_all(&pipeline).await;
    let reply = a.read_reply().await;
    let rows: Vec<String> =
        reply.iter().filter(|m| m.tag == b'D').map(|m| m.columns()[0].clone().unwrap()).collect();
    assert_eq!(rows, (0..10).map(|i| format!("a{i}")).collect::<Vec<_>>());
}

/// Each pipeline is sent to the proxy, whose pool holds one connection shared with a neighbour, and straight to the
/// server; every message of the replies must be the same.
async fn same_as_direct(pipelines: &[Vec<Vec<u8>>]) {
    let (pg, proxy) = pool_of(1).await;
    let mut neighbour = proxy.raw().await;
    let direct = pg.address();
    let through: Address = proxy.address();
    let (mut wanted, mut found) = (RawClient::connect(&direct).await, RawClient::connect(&through).await);
    for (n, pipeline) in pipelines.iter().enumerate() {
        let requests = pipeline.iter().filter(|message| matches!(message[0], b'S' | b'Q')).count();
        wanted.send_all(pipeline).await;
        found.send_all(pipeline).await;
        assert_eq!(found.transcript(requests).await, wanted.transcript(requests).await, "pipeline {n}");
        // In between the neighbour uses the connection, under the same names.
        neighbour
            .send_all(&[wire::parse("a", "SELECT 'neighbour'"), wire::parse("", "SELECT 1"), wire::sync()])
            .await;
        neighbour.read_reply().await;
        neighbour.send_all(&[wire::bind("", "a", &[]), wire::execute("", 0), wire::sync()]).await;
        neighbour.read_reply().await;
    }
}

#[tokio::test]
async fn pipelines_with_errors_in_the_middle_are_answered_as_by_the_server() {
    use wire::{
        bind, close_portal, close_statement, describe_portal, describe_statement, execute, flush, parse,
        query, sync,
    };
    same_as_direct(&[
        vec![
            parse("a", "SELECT $1::int"),
            bind("", "a", &["1"]),
            describe_portal(""),
            execute("", 0),
            sync(),
        ],
        // An error skips to Sync; what follows it works.
        vec![
            bind("", "a", &["x"]),
            execute("", 0),
            parse("b", "SELECT 1"),
            sync(),
            bind("", "a", &["2"]),
            execute("", 0),
            sync(),
        ],
        // Skipped: b was never prepared.
        vec![bind("", "b", &[]), execute("", 0), sync()],
        vec![
            parse("b", "SELECT 'b'"),
            describe_statement("b"),
            sync(),
            describe_statement("nothing"),
            sync(),
        ],
        // A Close that is skipped, then one that is not.
        vec![parse("", "SELEC"), close_statement("b"), sync(), bind("", "b", &[]), execute("", 0), sync()],
        vec![close_statement("b"), bind("", "b", &[]), sync(), parse("b", "SELECT 'b2'"), sync()],
        vec![bind("", "b", &[]), execute("", 0), flush(), close_portal(""), sync()],
        // An explicit transaction that fails half-way, pipelined whole.
        vec![
            parse("begin", "BEGIN"),
            bind("", "begin", &[]),
            execute("", 0),
            sync(),
            parse("bad", "SELECT 1 / $1::int"),
            bind("", "bad", &["0"]),
            execute("", 0),
            sync(),
            bind("", "a", &["1"]),
            execute("", 0),
            sync(),
            query("ROLLBACK"),
            bind("", "a", &["5"]),
            execute("", 0),
            sync(),
        ],
        // `bad` was parsed in a transaction that rolled back: PostgreSQL keeps it.
        vec![bind("", "bad", &["1"]), execute("", 0), sync()],
        // Same name twice in one pipeline.
        vec![
            parse("twice", "SELECT 1"),
            parse("twice", "SELECT 2"),
            sync(),
            bind("", "twice", &[]),
            execute("", 0),
            sync(),
        ],
        vec![
            parse("c", "SELECT 1"),
            close_statement("c"),
            parse("c", "SELECT 2"),
            bind("", "c", &[]),
            execute("", 0),
            sync(),
        ],
        // A portal read in portions.
        vec![
            query("BEGIN"),
            parse("", "SELECT generate_series(1, 5)"),
            bind("p", "", &[]),
            execute("p", 2),
            execute("p", 2),
            execute("p", 2),
            sync(),
            query("COMMIT"),
        ],
        vec![parse("", ""), bind("", "", &[]), describe_portal(""), execute("", 0), sync()],
        vec![
            sync(),
            sync(),
            query(""),
            query(";"),
            query("SELECT 1; SELECT 2"),
            query("SELECT 1; SELECT 1/0; SELECT 2"),
        ],
        vec![
            query("DEALLOCATE a"),
            bind("", "a", &["1"]),
            sync(),
            query("DEALLOCATE ALL"),
            bind("", "c", &[]),
            sync(),
        ],
    ])
    .await;
}

#[tokio::test]
async fn a_statement_whose_table_changed_is_answered_as_by_the_server() {
    let (pg, proxy) = pool_of(1).await;
    let direct = pg.direct().await;
    direct
        .execute("CREATE TABLE shape (a int); INSERT INTO shape VALUES (1); GRANT ALL ON shape TO PUBLIC")
        .await;
    let mut a = proxy.raw().await;
    prepare(&mut a, "s", "SELECT * FROM shape").await.unwrap();
    assert_eq!(run(&mut a, "s", &[]).await.unwrap(), "1");
    direct.execute("ALTER TABLE shape ADD b int").await;
    assert_eq!(run(&mut a, "s", &[]).await.unwrap_err(), "0A000"); // cached plan must not change result type
    // A driver's remedy: close and prepare again.
    a.send_all(&[wire::close_statement("s"), wire::sync()]).await;
    a.read_reply().await;
    prepare(&mut a, "s", "SELECT * FROM shape").await.unwrap();
    assert_eq!(run(&mut a, "s", &[]).await.unwrap(), "1");
}

/// Same text, other parameter types: another statement.
#[tokio::test]
async fn parameter_types_are_part_of_a_statement() {
    let (_pg, proxy) = pool_of(1).await;
    let (mut a, mut b) = (proxy.raw().await, proxy.raw().await);
    let typed = |oid: u32| {
        let body =
            [b"s\0SELECT pg_typeof($1)\0".as_slice(), &1_u16.to_be_bytes(), &oid.to_be_bytes()].concat();
        wire::message(b'P', &body)
    };
    a.send_all(&[typed(23), wire::sync()]).await;
    a.read_reply().await;
    b.send_all(&[typed(25), wire::sync()]).await;
    b.read_reply().await;
    assert_eq!(run(&mut a, "s", &["1"]).await.unwrap(), "integer");
    assert_eq!(run(&mut b, "s", &["1"]).await.unwrap(), "text");
    assert_eq!(run(&mut a, "s", &["1"]).await.unwrap(), "integer");
}

/// The usual batch of a driver that prepares: the statement, and what it takes and returns.
async fn prepare_and_describe(client: &mut RawClient, name: &str, sql: &str) -> Result<Vec<Message>, String> {
    client.send_all(&[wire::parse(name, sql), wire::describe_statement(name), wire::sync()]).await;
    let reply = client.read_reply().await;
    match reply.iter().find(|m| m.tag == b'E') {
        Some(error) => Err(error.error().code),
        None => Ok(reply),
    }
}

/// Type of the first column, as a description tells it.
fn first_type(description: &[Message]) -> u32 {
    let columns = &description.iter().find(|m| m.tag == b'T').expect("columns").body;
    let end = 2 + columns[2..].iter().position(|byte| *byte == 0).unwrap();
    u32::from_be_bytes(columns[end + 7..end + 11].try_into().unwrap())
}

const INT4: u32 = 23;
const INT8: u32 = 20;

async fn borrowed(proxy: &Proxy) -> f64 {
    proxy.metric("pinion_database_connections_borrow_latency_seconds_count", &[]).await
}

async fn close(client: &mut RawClient, name: &str) {
    client.send_all(&[wire::close_statement(name), wire::sync()]).await;
    client.read_reply().await;
}

#[tokio::test]
async fn a_statement_that_is_known_is_prepared_and_described_without_a_server() {
    let (_pg, proxy) = pool_of(1).await;
    let sql = "SELECT a::int4, $1::text AS b FROM generate_series(1, 3) a";
    let mut a = proxy.raw().await;
    let first = prepare_and_describe(&mut a, "s", sql).await.unwrap();
    assert_eq!(first.iter().map(|m| m.tag).collect::<Vec<_>>(), b"1tTZ");
    // Nobody can have a connection now.
    let (mut holder, mut b) = (proxy.raw().await, proxy.raw().await);
    holder.query("BEGIN READ WRITE").await;
    let before = borrowed(&proxy).await;
    for name in ["x", "y", "z"] {
        assert_eq!(prepare_and_describe(&mut b, name, sql).await.unwrap(), first);
        close(&mut b, name).await;
    }
    // In a transaction that waits for its first statement, too.
    b.query("BEGIN").await;
    let in_transaction = prepare_and_describe(&mut b, "x", sql).await.unwrap();
    assert_eq!(in_transaction[..3], first[..3]);
    b.query("COMMIT").await;
    assert_eq!(borrowed(&proxy).await, before);
    holder.query("COMMIT").await;
    assert_eq!(run(&mut b, "x", &["p"]).await.unwrap(), "1");
    assert_eq!(borrowed(&proxy).await, before + 1.0);
}

/// A server with table `shape (a int)`, whose client `a` has it prepared and described on a connection, and a second
/// connection.
async fn shape() -> (Server, Proxy, RawClient) {
    let (pg, proxy) = pool_of(2).await;
    let setup = "CREATE TABLE shape (a int); INSERT INTO shape VALUES (1); GRANT ALL ON shape TO PUBLIC";
    pg.direct().await.execute(setup).await;
    let mut a = proxy.raw().await;
    let told = prepare_and_describe(&mut a, "s", SHAPE).await.unwrap();
    assert_eq!(first_type(&told), INT4);
    (pg, proxy, a)
}

const SHAPE: &str = "SELECT * FROM shape";

#[tokio::test]
async fn a_first_temporary_table_hides_another_from_what_was_prepared() {
    let (pg, proxy) = pool_of(1).await;
    let setup = "CREATE TABLE shape (a int); INSERT INTO shape VALUES (1), (2); GRANT ALL ON shape TO PUBLIC";
    pg.direct().await.execute(setup).await;
    // Sessions that have had one do not look names up anew; the connection has.
    let mut a = proxy.raw().await;
    a.query("CREATE TEMP TABLE other (n int); DROP TABLE other").await;
    for in_transaction in [false, true] {
        let mut b = proxy.raw().await;
        b.query("PREPARE p AS SELECT count(*) FROM shape").await;
        prepare_and_describe(&mut b, "s", "SELECT count(*) FROM shape").await.unwrap();
        assert_eq!(b.scalar("EXECUTE p").await, "2");
        assert_eq!(run(&mut b, "s", &[]).await.unwrap(), "2");
        b.query("CREATE TEMP TABLE fails (n nosuch)").await;
        b.query("BEGIN; CREATE TEMP TABLE undone (n int); ROLLBACK").await;
        if in_transaction {
            b.query("BEGIN").await;
        }
        b.query("CREATE TEMP TABLE shape AS SELECT 5 AS a").await;
        assert_eq!(b.scalar("EXECUTE p").await, "1");
        assert_eq!(run(&mut b, "s", &[]).await.unwrap(), "1");
        b.query("DROP TABLE pg_temp.shape; COMMIT").await;
    }
}

#[tokio::test]
async fn parameters_are_counted_before_a_statement_is_prepared_anew() {
    let (pg, _proxy, mut a) = shape().await;
    let miscounted = async |client: &mut RawClient| run(client, "s", &["1"]).await.unwrap_err();
    a.query("SET search_path TO nowhere").await;
    assert_eq!(miscounted(&mut a).await, "08P01");
    assert_eq!(run(&mut a, "s", &[]).await.unwrap_err(), "42P01");
    // Behind a request that is not answered yet, and within a batch.
    a.send_all(&[wire::query("BEGIN"), wire::bind("", "s", &["1"]), wire::sync()]).await;
    assert_eq!(a.read_reply().await.last().unwrap().body, &b"T"[..]);
    let refused = a.read_reply().await;
    assert_eq!((refused[0].error().code, &*refused[1].body), ("08P01".to_owned(), &b"E"[..]));
    a.query("ROLLBACK").await;
    a.send_all(&[
        wire::parse("", "INSERT INTO public.shape VALUES (2)"),
        wire::bind("", "", &[]),
        wire::execute("", 0),
        wire::bind("", "s", &["1"]),
        wire::execute("", 0),
        wire::sync(),
    ])
    .await;
    let tags: Vec<u8> = a.read_reply().await.iter().map(|m| m.tag).collect();
    assert_eq!(tags, b"12CEZ");
    assert_eq!(pg.direct().await.scalar::<i64>("SELECT count(*) FROM shape").await, 1, "undone");
}

#[tokio::test]
async fn a_table_that_changed_behind_the_proxy_is_never_read_by_an_old_description() {
    let (pg, proxy, mut a) = shape().await;
    let before = borrowed(&proxy).await;
    pg.direct().await.execute("ALTER TABLE shape ALTER a TYPE bigint").await;
    let mut b = proxy.raw().await;
    // Nobody has told the proxy.
    let told = prepare_and_describe(&mut b, "s", SHAPE).await.unwrap();
    assert_eq!((first_type(&told), borrowed(&proxy).await), (INT4, before));
    // Where it is prepared only now: a neighbour has the other connection.
    let mut neighbour = proxy.raw().await;
    neighbour.query("BEGIN READ WRITE").await;
    b.send_all(&[
        wire::parse("", "INSERT INTO shape VALUES (2)"),
        wire::bind("", "", &[]),
        wire::execute("", 0),
        wire::bind("", "s", &[]),
        wire::execute("", 0),
        wire::sync(),
    ])
    .await;
    let reply = b.read_reply().await;
    let tags: Vec<u8> = reply.iter().map(|m| m.tag).collect();
    assert_eq!(tags, b"12CEZ", "{reply:?}");
    let error = &reply[3];
    assert_eq!(error.error().code, "0A000");
    // What drivers know it by.
    assert!(error.body.windows(23).any(|w| w == b"RRevalidateCachedQuery\0"), "{error:?}");
    assert_eq!(b.scalar("SELECT count(*) FROM shape").await, "1", "what came before it is undone");
    assert_eq!(run(&mut b, "s", &[]).await.unwrap_err(), "0A000", "until it is prepared anew");
    neighbour.query("COMMIT").await;
    // In a transaction, which has failed then.
    b.query("BEGIN").await;
    assert_eq!(run(&mut b, "s", &[]).await.unwrap_err(), "0A000");
    assert_eq!(run(&mut b, "s", &[]).await.unwrap_err(), "25P02");
    assert_eq!(run(&mut b, "s", &["1"]).await.unwrap_err(), "08P01", "parameters are counted first");
    b.query("ROLLBACK").await;
    close(&mut b, "s").await;
    let told = prepare_and_describe(&mut b, "s", SHAPE).await.unwrap();
    assert_eq!(first_type(&told), INT8);
    assert_eq!(run(&mut b, "s", &[]).await.unwrap(), "1");
    // Who was told by a server is no worse off.
    assert_eq!(run(&mut a, "s", &[]).await.unwrap_err(), "0A000");
    assert_eq!(proxy.metric("pinion_pins_total", &[]).await, 0.0, "{}", proxy.log());
}

#[tokio::test]
async fn a_table_that_took_the_place_of_its_like_is_read_on() {
    let (pg, proxy, mut a) = shape().await;
    let direct = pg.direct().await;
    direct
        .execute(
            "CREATE TABLE next AS SELECT 7 AS a; GRANT ALL ON next TO PUBLIC; \
             ALTER TABLE shape RENAME TO last; ALTER TABLE next RENAME TO shape",
        )
        .await;
    let mut neighbour = proxy.raw().await;
    neighbour.query("BEGIN READ WRITE").await;
    assert_eq!(run(&mut a, "s", &[]).await.unwrap(), "7");
    neighbour.query("COMMIT").await;
    assert_eq!(run(&mut a, "s", &[]).await.unwrap(), "7");
}

#[tokio::test]
async fn a_temporary_table_is_described_to_its_own_client_alone() {
    let (_pg, proxy, _a) = shape().await;
    let (mut b, mut c) = (proxy.raw().await, proxy.raw().await);
    b.query("CREATE TEMP TABLE shape AS SELECT 5::bigint AS a").await;
    let told = prepare_and_describe(&mut b, "s", SHAPE).await.unwrap();
    assert_eq!((first_type(&told), run(&mut b, "s", &[]).await.unwrap().as_str()), (INT8, "5"));
    let told = prepare_and_describe(&mut c, "s", SHAPE).await.unwrap();
    assert_eq!((first_type(&told), run(&mut c, "s", &[]).await.unwrap().as_str()), (INT4, "1"));
    b.query("DROP TABLE pg_temp.shape").await;
    close(&mut b, "s").await;
    let told = prepare_and_describe(&mut b, "s", SHAPE).await.unwrap();
    assert_eq!((first_type(&told), run(&mut b, "s", &[]).await.unwrap().as_str()), (INT4, "1"));
}

#[tokio::test]
async fn a_description_is_that_of_the_clients_path_and_role() {
    let (pg, proxy, mut a) = shape().await;
    let setup = "CREATE SCHEMA side; CREATE TABLE side.shape AS SELECT 8::bigint AS a; \
                 GRANT USAGE ON SCHEMA side TO PUBLIC; GRANT ALL ON side.shape TO PUBLIC";
    pg.direct().await.execute(setup).await;
    let mut b = proxy.raw().await;
    b.query("SET search_path = side").await;
    for _ in 0..2 {
        let told = prepare_and_describe(&mut b, "s", SHAPE).await.unwrap();
        assert_eq!((first_type(&told), run(&mut b, "s", &[]).await.unwrap().as_str()), (INT8, "8"));
        close(&mut b, "s").await;
        assert_eq!(run(&mut a, "s", &[]).await.unwrap(), "1");
    }
    // What was told under one path is not read under another.
    a.query("SET search_path = side").await;
    for _ in 0..3 {
        assert_eq!(run(&mut a, "s", &[]).await.unwrap_err(), "0A000");
    }
    a.query("RESET search_path").await;
    assert_eq!(run(&mut a, "s", &[]).await.unwrap(), "1");
}

#[tokio::test]
async fn descriptions_come_where_the_server_would_send_them() {
    use wire::{bind, close_statement, describe_statement, execute, parse, query, sync};
    let select = || parse("a", "SELECT 1::int8 AS n, $1::date");
    let insert = || parse("b", "INSERT INTO pg_temp.nowhere VALUES ($1)");
    same_as_direct(&[
        vec![select(), describe_statement("a"), sync()],
        vec![
            close_statement("a"),
            select(),
            describe_statement("a"),
            sync(),
            describe_statement("a"),
            sync(),
        ],
        vec![bind("", "a", &["2020-02-02"]), execute("", 0), describe_statement("a"), sync()],
        vec![close_statement("a"), sync(), query("BEGIN"), select(), describe_statement("a"), sync()],
        vec![bind("", "a", &["2020-02-02"]), execute("", 0), sync(), query("COMMIT")],
        vec![insert(), describe_statement("b"), sync()],
        // A failed transaction describes what returns nothing.
        vec![parse("c", "COMMIT"), describe_statement("c"), sync(), query("BEGIN"), query("SELECT 1/0")],
        vec![describe_statement("c"), sync(), describe_statement("a"), sync(), query("ROLLBACK")],
        vec![describe_statement("a"), describe_statement("nosuch"), describe_statement("a"), sync()],
        vec![query("DEALLOCATE a"), describe_statement("a"), sync()],
    ])
    .await;
}

/// Clients prepare, describe and run while the table's column changes its type to and fro behind the proxy: no value ever
/// comes in another form than its client was told.
#[tokio::test]
async fn no_row_is_read_by_a_wrong_description_while_a_table_changes() {
    let (pg, proxy, _a) = shape().await;
    let binary =
        |name: &str| wire::message(b'B', &[b"\0", name.as_bytes(), b"\0\0\0\0\0\0\x01\0\x01"].concat());
    let client = async |number: usize| {
        let mut client = proxy.raw().await;
        let (mut rows, mut refused) = (0, 0);
        for round in 0..50 {
            let name = format!("s{}", round % 3);
            let Ok(told) = prepare_and_describe(&mut client, &name, SHAPE).await else {
                refused += 1;
                close(&mut client, &name).await;
                continue;
            };
            let bytes = if first_type(&told) == INT4 { 4 } else { 8 };
            for _ in 0..=number {
                client.send_all(&[binary(&name), wire::execute("", 0), wire::sync()]).await;
                let reply = client.read_reply().await;
                if let Some(error) = reply.iter().find(|m| m.tag == b'E') {
                    assert_eq!(error.error().code, "0A000");
                    refused += 1;
                    continue;
                }
                let row = &reply.iter().find(|m| m.tag == b'D').unwrap().body;
                assert_eq!(row[2..6], i32::to_be_bytes(bytes), "{row:?} in round {round}");
                rows += 1;
            }
            close(&mut client, &name).await;
        }
        (rows, refused)
    };
    let direct = pg.direct().await;
    let change = async {
        loop {
            for to in ["bigint", "int"] {
                direct.execute(&format!("ALTER TABLE shape ALTER a TYPE {to}")).await;
            }
        }
    };
    let clients = async { tokio::join!(client(0), client(1), client(2), client(3)) };
    let counts = tokio::select! {
        counts = clients => counts,
        () = change => unreachable!("it goes on for ever"),
    };
    println!("rows and refusals of each client: {counts:?}");
    assert!(counts.0.0 + counts.1.0 + counts.2.0 + counts.3.0 > 0, "{counts:?}");
}
