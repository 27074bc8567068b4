//! A transaction takes a server connection with its first statement, and answers nothing else than a direct one does.
#![allow(clippy::unwrap_used)]

use pinion_tests::{
    Address, Cluster, MariaDb, MySqlClient, Plugin, Proxy, RawMySql, Server,
    raw_mysql::{Login, Reply, capability, command, status},
    until,
};

/// How many transactions the server was told to begin.
fn begins_at(db: &MariaDb) -> usize {
    let log = db.general_log();
    log.lines().filter(|line| line.contains("BEGIN") || line.contains("START TRANSACTION")).count()
}

#[derive(Clone, Copy)]
enum Step {
    /// A text.
    Q(&'static str),
    /// A command whose answer is OK, an error or an EOF.
    C(u8, &'static [u8]),
    /// Preparing and executing a text.
    X(&'static str),
    /// Several texts, sent at once.
    P(&'static [&'static str]),
    /// A login as the same user.
    Login,
}

use Step::{C, Login as ChangeUser, P, Q, X};

const SCRIPTS: [&[Step]; 34] = [
    &[Q("BEGIN"), Q("COMMIT"), Q("BEGIN"), Q("ROLLBACK"), Q("SELECT 1"), Q("COMMIT"), Q("ROLLBACK")],
    &[Q("begin work;"), Q("SELECT 1"), Q("COMMIT WORK"), Q("SELECT 1")],
    &[
        Q("START TRANSACTION"),
        Q("INSERT INTO w (v) VALUES ('a')"),
        Q("ROLLBACK"),
        Q("SELECT count(*) FROM w"),
    ],
    &[Q("START TRANSACTION READ ONLY"), Q("INSERT INTO w (v) VALUES ('a')"), Q("SELECT 1"), Q("COMMIT")],
    &[Q("START TRANSACTION READ ONLY"), Q("COMMIT"), Q("BEGIN"), Q("COMMIT")],
    &[Q("START TRANSACTION READ WRITE"), Q("SELECT 1"), Q("COMMIT")],
    &[Q("START TRANSACTION WITH CONSISTENT SNAPSHOT"), Q("SELECT 1"), Q("COMMIT")],
    &[Q("START TRANSACTION /*!40100 WITH CONSISTENT SNAPSHOT */"), Q("SELECT 1"), Q("COMMIT")],
    &[Q("BEGIN WORKS"), Q("COMMIT")],
    &[
        Q("BEGIN"),
        Q("BEGIN"),
        Q("INSERT INTO w (v) VALUES ('a')"),
        Q("BEGIN"),
        Q("ROLLBACK"),
        Q("DELETE FROM w"),
    ],
    &[Q("BEGIN"), Q("COMMIT AND CHAIN"), Q("SELECT 1"), Q("ROLLBACK AND NO CHAIN")],
    &[Q("BEGIN"), Q("COMMIT AND NO CHAIN NO RELEASE"), Q("SELECT 1")],
    &[Q("BEGIN"), Q("SAVEPOINT a"), Q("SELEC"), Q("ROLLBACK TO a"), Q("COMMIT")],
    &[Q("BEGIN"), Q("ROLLBACK TO a"), Q("RELEASE SAVEPOINT a"), Q("COMMIT")],
    &[Q("BEGIN"), Q("SELECT * FROM nowhere"), Q("SELECT 1"), Q("COMMIT")],
    &[
        Q("BEGIN"),
        Q("CREATE OR REPLACE TABLE made (n int)"),
        Q("SELECT 1"),
        Q("COMMIT"),
        Q("DROP TABLE made"),
    ],
    &[Q("BEGIN"), Q("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE"), Q("SELECT 1"), Q("COMMIT")],
    &[Q("SET TRANSACTION READ ONLY"), Q("BEGIN"), Q("INSERT INTO w (v) VALUES ('a')"), Q("ROLLBACK")],
    // What settings make of it.
    &[
        Q("SET autocommit = 0"),
        Q("BEGIN"),
        Q("COMMIT"),
        Q("BEGIN"),
        Q("SELECT v FROM w"),
        Q("COMMIT"),
        Q("ROLLBACK"),
    ],
    &[
        Q("SET autocommit = 0"),
        Q("SELECT v FROM w"),
        Q("BEGIN"),
        Q("SET autocommit = 1"),
        Q("COMMIT"),
        Q("SELECT 1"),
    ],
    &[Q("BEGIN"), Q("SET autocommit = 0"), Q("COMMIT"), Q("SET autocommit = 1"), Q("SELECT 1")],
    &[Q("SET completion_type = 1"), Q("BEGIN"), Q("COMMIT"), Q("COMMIT AND NO CHAIN"), Q("SELECT 1")],
    &[
        Q("SET SESSION TRANSACTION READ ONLY"),
        Q("BEGIN"),
        Q("COMMIT"),
        Q("BEGIN"),
        Q("SELECT 1"),
        Q("COMMIT"),
    ],
    &[Q("SET tx_read_only = 1"), Q("BEGIN"), Q("COMMIT"), Q("SELECT 1")],
    // What it leaves for the next to ask.
    &[
        Q("INSERT INTO w (v) VALUES ('a'), ('b')"),
        Q("BEGIN"),
        Q("SELECT ROW_COUNT(), LAST_INSERT_ID() > 0"),
        Q("COMMIT"),
        Q("SELECT ROW_COUNT()"),
        Q("DELETE FROM w"),
    ],
    &[Q("SELECT 1 / 0"), Q("BEGIN"), Q("SHOW WARNINGS"), Q("COMMIT"), Q("SHOW WARNINGS")],
    &[Q("SELECT 1 UNION SELECT 2"), Q("BEGIN"), Q("SELECT FOUND_ROWS()"), Q("COMMIT")],
    &[Q("DELETE FROM w"), Q("BEGIN"), Q("COMMIT"), Q("SELECT ROW_COUNT()")],
    // Commands.
    &[Q("BEGIN"), C(command::PING, b""), C(command::INIT_DB, b"mysql"), Q("SELECT DATABASE()"), Q("COMMIT")],
    &[Q("BEGIN"), C(command::RESET_CONNECTION, b""), C(command::PING, b""), Q("SELECT 1"), Q("COMMIT")],
    &[Q("BEGIN"), ChangeUser, C(command::PING, b""), Q("SELECT 1")],
    &[Q("BEGIN"), C(command::SET_OPTION, b"\x01\0"), Q("SELECT 1"), Q("COMMIT")],
    &[
        Q("BEGIN"),
        X("INSERT INTO w (v) VALUES ('p')"),
        C(command::PING, b""),
        Q("ROLLBACK"),
        X("BEGIN"),
        X("COMMIT"),
    ],
    &[
        P(&["BEGIN", "INSERT INTO w (v) VALUES ('a')", "COMMIT"]),
        P(&["BEGIN", "COMMIT", "BEGIN", "DELETE FROM w", "ROLLBACK"]),
        Q("DELETE FROM w"),
    ],
];

/// For clients that ask to be told how their transactions stand.
const TOLD_OF_TRANSACTIONS: &[Step] = &[Q("BEGIN"), Q("SELECT v FROM w"), Q("COMMIT")];

/// Each script on a connection of its own.
async fn transcripts(address: &Address, flags: u64) -> Vec<Vec<String>> {
    let mut all = Vec::new();
    // Older clients are told nothing.
    let told = (flags & capability::SESSION_TRACK != 0).then_some(TOLD_OF_TRANSACTIONS);
    for (at, script) in SCRIPTS.into_iter().chain(told).enumerate() {
        let mut client = RawMySql::connect_with(address, flags).await;
        client.ok("CREATE OR REPLACE TABLE w (id int AUTO_INCREMENT PRIMARY KEY, v varchar(50))").await;
        if at == SCRIPTS.len() {
            client.ok("SET session_track_transaction_info = 'STATE', session_track_state_change = 1").await;
        }
        client.record();
        for step in script {
            match step {
                Q(text) => {
                    client.note(text);
                    client.query(text).await;
                }
                C(command, body) => drop(client.simple(*command, body).await),
                X(text) => {
                    client.note(text);
                    let prepared = client.prepare(text).await.unwrap();
                    client.execute(prepared.id, 0, &[]).await;
                    client.close_statement(prepared.id).await;
                }
                P(texts) => {
                    for text in *texts {
                        client.command(command::QUERY, text.as_bytes()).await;
                    }
                    for _ in *texts {
                        client.expect_answer();
                        client.read_replies().await;
                    }
                }
                ChangeUser => {
                    client.change_user(&Login::new(address, flags)).await.unwrap();
                    client.recorded();
                }
            }
        }
        all.push(client.recorded());
    }
    all
}

#[tokio::test]
async fn every_answer_is_a_direct_connections() {
    let db = Server::mariadb().start().await;
    let smart = Proxy::in_front_of(&db).max_connections(2).start().await;
    let rds = Proxy::in_front_of(&db).profile("rds").max_connections(2).start().await;
    for flags in [capability::OLD, capability::NEW, capability::NEW | capability::MULTI_STATEMENTS] {
        let wanted = transcripts(&db.address(), flags).await;
        for (place, address) in [("smart", smart.address()), ("rds", rds.address())] {
            let through = transcripts(&address, flags).await;
            for (at, (wanted, got)) in wanted.iter().zip(&through).enumerate() {
                assert_eq!(got, wanted, "script {at}, profile {place}, {flags:#x}");
            }
            assert_eq!(wanted.len(), through.len());
        }
    }
}

#[tokio::test]
async fn any_number_of_clients_begins_without_a_connection() {
    let db = Server::mariadb().start().await;
    let proxy = Proxy::in_front_of(&db).max_connections(2).admin().start().await;
    let mut clients = Vec::new();
    for n in 0..50 {
        let mut client = proxy.raw_mysql().await;
        let begin = if n % 2 == 0 { "BEGIN" } else { "START TRANSACTION READ ONLY" };
        assert_ne!(client.ok(begin).await.status & status::IN_TRANS, 0);
        clients.push(client);
    }
    assert_eq!(begins_at(&db), 0);
    let (_, answer) = proxy.admin("GET", "/sessions").await;
    assert!(
        answer["sessions"].as_array().unwrap().iter().all(|one| one["state"] == "IN_TRANSACTION"),
        "{answer}"
    );
    // Those that have something to do are served.
    assert_eq!(proxy.mysql().await.scalar::<u32>("SELECT 7").await, 7);
    assert_eq!(clients[0].scalar("SELECT 1").await, "1");
    assert_eq!(clients[1].error("INSERT INTO t (v) VALUES ('no')").await.code, 1792);
    assert_eq!(begins_at(&db), 2);
    for client in &mut clients {
        assert_eq!(client.ok("COMMIT").await.status & status::IN_TRANS, 0);
    }
    assert_eq!(begins_at(&db), 2);
}

#[tokio::test]
async fn the_first_statement_belongs_to_the_transaction() {
    let db = Server::mariadb().start().await;
    let proxy = Proxy::in_front_of(&db).max_connections(1).start().await;
    let count = async || db.direct().await.scalar::<u32>("SELECT count(*) FROM t WHERE v = 'undone'").await;
    let mut client = proxy.raw_mysql().await;
    client.ok("BEGIN").await;
    client.ok("INSERT INTO t (v) VALUES ('undone')").await;
    client.ok("ROLLBACK").await;
    assert_eq!(count().await, 0);
    let prepared = client.prepare("INSERT INTO t (v) VALUES (?)").await.unwrap();
    client.ok("BEGIN").await;
    client.execute(prepared.id, 0, &[Some("undone")]).await;
    drop(client);
    let mut next = proxy.raw_mysql().await;
    assert_eq!(next.scalar("SELECT count(*) FROM t WHERE v = 'undone'").await, "0");
    assert_eq!(count().await, 0);
}

#[tokio::test]
async fn without_a_connection_the_transaction_is_still_to_begin() {
    let db = Server::mariadb().start().await;
    let proxy = Proxy::in_front_of(&db)
        .max_connections(1)
        .pool("connection_borrow_timeout = \"300ms\"")
        .start()
        .await;
    let (mut holder, mut client) = (proxy.raw_mysql().await, proxy.raw_mysql().await);
    holder.ok("BEGIN").await;
    holder.ok("SELECT 1").await;
    client.ok("BEGIN").await;
    assert_eq!(client.error("INSERT INTO t (v) VALUES ('a')").await.code, 9501);
    assert_ne!(client.simple(command::PING, b"").await.unwrap().status & status::IN_TRANS, 0);
    holder.ok("COMMIT").await;
    client.ok("INSERT INTO t (v) VALUES ('a')").await;
    client.ok("ROLLBACK").await;
    assert_eq!(db.direct().await.scalar::<u32>("SELECT count(*) FROM t WHERE v = 'a'").await, 0);
}

#[tokio::test]
async fn what_policy_rejects_rolls_the_transaction_back() {
    let db = Server::mariadb().start().await;
    let rules = r#"config = { hooks = ["on-query"], rewrite = false, rules = [{ hook = "on-query", contains = "secret", verdict = "reject", text = "no", sqlstate = "PN001" }] }"#;
    let plugin = Plugin::fixture("scripted").setting(rules);
    let proxy = Proxy::in_front_of(&db).max_connections(1).plugin(plugin).start().await;
    let mut client = proxy.raw_mysql().await;
    client.ok("BEGIN").await;
    assert_eq!(client.error("SELECT 'secret'").await.state, "PN001");
    assert_eq!(client.error("INSERT INTO t (v) VALUES ('a')").await.code, 1105);
    assert_eq!(client.error("COMMIT").await.code, 1213);
    client.ok("BEGIN").await;
    assert_eq!(client.error("SELECT 'secret'").await.state, "PN001");
    assert_eq!(client.ok("ROLLBACK").await.status & status::IN_TRANS, 0);
    client.ok("INSERT INTO t (v) VALUES ('b')").await;
    let direct = db.direct().await;
    assert_eq!(direct.scalar::<String>("SELECT group_concat(v) FROM t WHERE v IN ('a', 'b')").await, "b");
}

#[tokio::test]
async fn a_pinned_session_begins_where_it_is() {
    let db = Server::mariadb().start().await;
    let proxy = Proxy::in_front_of(&db).max_connections(2).start().await;
    let mut client = proxy.raw_mysql().await;
    client.ok("SELECT GET_LOCK('mine', 0)").await;
    client.ok("BEGIN").await;
    assert_eq!(begins_at(&db), 1);
    client.ok("COMMIT").await;
    assert!(db.general_log().contains("COMMIT"));
}

#[tokio::test]
async fn what_others_have_left_is_not_told_behind_a_begin() {
    let db = Server::mariadb().start().await;
    let direct = db.direct().await;
    direct.execute("CREATE SEQUENCE s START WITH 4711").await;
    direct
        .execute("CREATE TABLE w (id int AUTO_INCREMENT PRIMARY KEY, v varchar(50)) AUTO_INCREMENT = 815")
        .await;
    let proxy = Proxy::in_front_of(&db).max_connections(1).start().await;
    for (asks, wanted) in [
        ("SELECT LAST_INSERT_ID()", &["0"][..]),
        ("SELECT FOUND_ROWS()", &["1"]),
        ("SELECT ROW_COUNT()", &["0"]),
        ("SHOW WARNINGS", &[]),
        ("SELECT LASTVAL(s)", &[]),
    ] {
        let (mut other, mut client) = (proxy.raw_mysql().await, proxy.raw_mysql().await);
        other.ok("SELECT NEXTVAL(s)").await;
        other.ok("INSERT INTO w (v) VALUES ('x'), ('y')").await;
        other.ok("SELECT 1/0 UNION SELECT 2 UNION SELECT 3").await;
        client.ok("BEGIN").await;
        let told: Vec<Vec<Option<String>>> = match client.query(asks).await.as_slice() {
            [Reply::Rows(rows)] => rows.texts(),
            [Reply::Failed(error)] => {
                assert_eq!(error.code, 1105, "{asks}: {error:?}");
                Vec::new()
            }
            other => panic!("{asks}: {other:?}"),
        };
        let values: Vec<&str> = told.iter().flatten().flatten().map(String::as_str).collect();
        assert_eq!(values, wanted, "{asks}");
    }
}

#[tokio::test]
async fn a_drain_waits_for_a_transaction_without_a_statement() {
    let db = Server::mariadb().start().await;
    let mut proxy =
        Proxy::in_front_of(&db).max_connections(2).top_setting("drain_timeout = \"20s\"").start().await;
    let (mut idle, mut empty, mut full) =
        (proxy.raw_mysql().await, proxy.raw_mysql().await, proxy.raw_mysql().await);
    empty.ok("BEGIN").await;
    full.ok("BEGIN").await;
    proxy.sigterm();
    assert_eq!(idle.expect_error().await.code, 1053);
    empty.ok("COMMIT").await;
    assert_eq!(empty.expect_error().await.code, 1053);
    full.ok("INSERT INTO t (v) VALUES ('drained')").await;
    full.ok("COMMIT").await;
    assert_eq!(full.expect_error().await.code, 1053);
    assert_eq!(proxy.wait_exit().await.code(), Some(0));
    assert_eq!(db.direct().await.scalar::<u32>("SELECT count(*) FROM t WHERE v = 'drained'").await, 1);
}

#[tokio::test]
async fn a_lost_server_is_nothing_to_a_transaction_that_it_has_not_begun() {
    let mut db = Server::mariadb().start().await;
    let proxy = Proxy::in_front_of(&db).max_connections(2).start().await;
    let mut client = proxy.raw_mysql().await;
    client.ok("SELECT 1").await;
    client.ok("BEGIN").await;
    db.restart().await;
    assert_ne!(client.ok("SELECT 1").await.status & status::IN_TRANS, 0);
    client.ok("COMMIT").await;
}

#[tokio::test]
async fn a_transaction_goes_where_its_begin_would_have_gone() {
    let cluster = Cluster::mariadb(1).await;
    let plugin = Plugin::shipped("rw-split").setting("config = { read_only_transactions = \"reader\" }");
    let proxy = Proxy::in_front_of_cluster(&cluster).plugin(plugin).start().await;
    let client: MySqlClient = proxy.mysql().await;
    let is_reader = "SELECT @@global.read_only";
    until("the reader is one", async || client.scalar::<u32>(is_reader).await == 1).await;
    drop(client);
    let mut client = proxy.raw_mysql().await;
    for (begin, wanted) in [("BEGIN", "0"), ("START TRANSACTION READ ONLY", "1"), ("START TRANSACTION", "0")]
    {
        client.ok(begin).await;
        assert_eq!(client.scalar(is_reader).await, wanted, "{begin}");
        client.ok("COMMIT").await;
    }
}
