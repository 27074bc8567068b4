//! What a statement leaves for the next to ask: `LAST_INSERT_ID()`, `FOUND_ROWS()`, `ROW_COUNT()`, warnings. Other clients
//! use every connection of the pool between any two statements; the answers must be those of a connection of one's own.
#![allow(clippy::unwrap_used)]

use pinion_tests::raw_mysql::{Reply, capability};
use pinion_tests::{MariaDb, MySqlClient, Proxy, RawMySql, Server, server_error, until};

const CONNECTIONS: u32 = 2;

struct Bench {
    db: MariaDb,
    proxy: Proxy,
    neighbours: Vec<MySqlClient>,
}

async fn bench() -> Bench {
    let db = Server::mariadb().start().await;
    let proxy = Proxy::in_front_of(&db)
        .max_connections(CONNECTIONS)
        .pool("connection_borrow_timeout = \"200ms\"")
        .start()
        .await;
    let mut neighbours = Vec::new();
    for _ in 0..CONNECTIONS {
        neighbours.push(proxy.mysql().await);
    }
    let direct = db.direct().await;
    for table in ["others", "own", "twin"] {
        direct
            .execute(&format!(
                "CREATE TABLE {table} (id INT AUTO_INCREMENT PRIMARY KEY, a INT) AUTO_INCREMENT = 50"
            ))
            .await;
    }
    direct.execute("ALTER TABLE others AUTO_INCREMENT = 1000").await;
    direct.execute("CREATE PROCEDURE adds(IN name TEXT) EXECUTE IMMEDIATE CONCAT('INSERT INTO ', name, ' (a) VALUES (1)')").await;
    direct
        .execute("CREATE FUNCTION last_id() RETURNS INT NOT DETERMINISTIC NO SQL RETURN LAST_INSERT_ID()")
        .await;
    Bench { db, proxy, neighbours }
}

impl Bench {
    /// Others run statements on every connection that is free, at the same time, and leave values of their own on each.
    async fn spoil(&self) {
        for neighbour in &self.neighbours {
            // Where a connection is kept, one of them waits in vain.
            if neighbour.try_execute("START TRANSACTION READ WRITE").await.is_ok() {
                neighbour.execute("INSERT INTO others (a) VALUES (1), (2), (3)").await;
                neighbour.execute("SELECT * FROM others LIMIT 5").await;
                neighbour.execute("SELECT 1/0").await;
            }
        }
        for neighbour in &self.neighbours {
            neighbour.try_execute("COMMIT").await.ok();
        }
    }
}

/// What a client sees of each statement: rows, or the error's number.
async fn transcript(
    client: &MySqlClient,
    script: &[&str],
    table: &str,
    between: impl AsyncFn(),
) -> Vec<String> {
    let mut seen = Vec::new();
    for text in script {
        let text = text.replace("TABLE", table);
        seen.push(match client.try_rows(&text).await {
            Ok(rows) => format!("{rows:?}").replace(table, "TABLE"),
            Err(error) => format!("{}", server_error(&error).code),
        });
        between().await;
    }
    seen
}

/// Runs `script` twice, directly and through Pinion with neighbours. Where `exact`, no answer may differ; elsewhere one
/// may be refused, and what comes after the refusal is right.
async fn same(bench: &Bench, script: &[&str], exact: bool) {
    let direct = transcript(&bench.db.direct().await, script, "twin", async || ()).await;
    let client = bench.proxy.mysql().await;
    let through = transcript(&client, script, "own", async || bench.spoil().await).await;
    for ((text, direct), through) in script.iter().zip(&direct).zip(&through) {
        let refused = through == "1105" && !exact;
        assert!(
            direct == through || refused,
            "{text}: {through} instead of {direct}\n{script:?}: {through:?}"
        );
    }
    client.close().await;
}

#[tokio::test]
async fn pin_m_07_last_insert_id_of_generated_ids() {
    let bench = bench().await;
    for script in [
        &["SELECT LAST_INSERT_ID()"] as &[&str],
        &[
            "INSERT INTO TABLE (a) VALUES (1)",
            "SELECT LAST_INSERT_ID()",
            "SELECT 1",
            "SELECT LAST_INSERT_ID()",
        ],
        &["INSERT INTO TABLE (a) VALUES (1), (2), (3)", "SELECT @@last_insert_id, @@identity"],
        &[
            "INSERT INTO TABLE (a) VALUES (7)",
            "INSERT INTO TABLE (a) VALUES (LAST_INSERT_ID())",
            "SELECT a - id FROM TABLE WHERE id = LAST_INSERT_ID()",
        ],
        &[
            "INSERT INTO TABLE (a) VALUES (5)",
            "UPDATE TABLE SET a = LAST_INSERT_ID(a + 40) WHERE id = 50",
            "SELECT LAST_INSERT_ID()",
        ],
        &["UPDATE TABLE SET a = LAST_INSERT_ID(a + 40) WHERE id = 1", "SELECT LAST_INSERT_ID()"],
        &["INSERT INTO TABLE (a) VALUES (1); SELECT LAST_INSERT_ID()"],
        &["BEGIN", "INSERT INTO TABLE VALUES (500, 1)", "SELECT LAST_INSERT_ID()", "ROLLBACK"],
        &["INSERT INTO TABLE (a) VALUES (1)", "SELECT last_id()"],
        &["SELECT LAST_INSERT_ID()", "SELECT last_id()"],
    ] {
        same(&bench, script, true).await;
    }
    let log = bench.proxy.log();
    let pinned: Vec<&str> = log.lines().filter(|line| line.contains("session pinned")).collect();
    // Of these nobody can tell the id: an update that may have found nothing, and one of several statements.
    let unsure = |line: &&str| line.contains("last_insert_id(a + ?)") || line.contains("; select");
    assert!(pinned.iter().all(unsure), "{pinned:#?}");
}

#[tokio::test]
async fn pin_m_07_an_id_that_may_be_explicit_is_never_taken_for_a_generated_one() {
    let bench = bench().await;
    for script in [
        &["INSERT INTO TABLE (a) VALUES (1)", "INSERT INTO TABLE VALUES (600, 1)", "SELECT LAST_INSERT_ID()"]
            as &[&str],
        &["INSERT INTO TABLE SELECT 700, 1", "SELECT LAST_INSERT_ID()"],
        &["INSERT INTO TABLE VALUES (400 + 400, 1)", "SELECT LAST_INSERT_ID()"],
        &["CALL adds('TABLE')", "SELECT LAST_INSERT_ID()"],
        &["INSERT INTO TABLE (a) VALUES (1); SELECT LAST_INSERT_ID()", "SELECT LAST_INSERT_ID()"],
        // Asked once, the next time its connection is kept.
        &[
            "INSERT INTO TABLE SELECT 900, 1",
            "SELECT LAST_INSERT_ID()",
            "INSERT INTO TABLE SELECT NULL, 1",
            "SELECT LAST_INSERT_ID()",
        ],
    ] {
        same(&bench, script, false).await;
    }
}

#[tokio::test]
async fn pin_m_06_row_count_and_found_rows() {
    let bench = bench().await;
    for script in [
        &["SELECT SQL_CALC_FOUND_ROWS 1 FROM TABLE LIMIT 0", "SELECT FOUND_ROWS()"] as &[&str],
        &[
            "INSERT INTO TABLE (a) VALUES (1), (2)",
            "SELECT ROW_COUNT()",
            "UPDATE TABLE SET a = 9",
            "SELECT ROW_COUNT()",
        ],
        &["SELECT * FROM TABLE", "SELECT FOUND_ROWS()"],
        &["BEGIN", "UPDATE TABLE SET a = a + 1", "SELECT ROW_COUNT()", "SELECT ROW_COUNT()", "COMMIT"],
        // WRONG-M-02: not supported by RDS Proxy.
        &["UPDATE TABLE SET a = a + 1; SELECT ROW_COUNT()"],
        // Behind a question that was refused.
        &[
            "INSERT INTO TABLE SELECT 700, 1",
            "BEGIN",
            "COMMIT",
            "SELECT LAST_INSERT_ID()",
            "SELECT ROW_COUNT()",
        ],
        &["SELECT 1 UNION SELECT 2; SELECT FOUND_ROWS()"],
    ] {
        same(&bench, script, false).await;
    }
    // With what its texts say, no client is refused.
    same(&bench, &["SELECT SQL_CALC_FOUND_ROWS 1 FROM TABLE LIMIT 0", "SELECT FOUND_ROWS()"], true).await;
    same(&bench, &["UPDATE TABLE SET a = a + 1; SELECT ROW_COUNT()"], true).await;
}

#[tokio::test]
async fn wrong_m_01_diagnostics_are_ones_own() {
    let bench = bench().await;
    for script in [
        &["SELECT 1/0", "SHOW WARNINGS", "SHOW COUNT(*) WARNINGS", "SELECT @@warning_count"] as &[&str],
        &["SELECT * FROM nowhere", "SHOW ERRORS"],
        &["BEGIN", "SELECT * FROM nowhere", "GET DIAGNOSTICS @n = NUMBER", "SELECT @n", "ROLLBACK"],
        &["BEGIN", "SELECT * FROM nowhere", "SHOW WARNINGS", "ROLLBACK"],
        &[
            "BEGIN",
            "INSERT INTO TABLE VALUES (1, 1), (1, 1)",
            "SHOW ERRORS",
            "SELECT ROW_COUNT()",
            "ROLLBACK",
        ],
        &["SHOW WARNINGS"],
    ] {
        same(&bench, script, false).await;
    }
}

/// To prepare a statement empties the diagnostics of its connection, or leaves an error there.
#[tokio::test]
async fn wrong_m_01_statements_that_others_prepare_leave_no_diagnostics() {
    let db = Server::mariadb().start().await;
    let proxy = Proxy::in_front_of(&db).max_connections(1).start().await;
    let mut asking = RawMySql::connect(&proxy.address()).await;
    let mut preparing = RawMySql::connect(&proxy.address()).await;
    asking.ok("CREATE TABLE prepared_by_others (a INT)").await;

    asking.rows("SELECT a FROM prepared_by_others").await;
    preparing.prepare("SELECT nothing FROM prepared_by_others").await.unwrap_err();
    for reply in asking.query("SHOW WARNINGS").await {
        assert!(!format!("{reply:?}").contains("nothing"), "{reply:?}");
    }

    asking.rows("SELECT 1/0").await;
    preparing.prepare("SELECT a FROM prepared_by_others").await.unwrap();
    match &asking.query("SHOW WARNINGS").await[..] {
        [Reply::Rows(rows)] => assert!(format!("{:?}", rows.texts()).contains("Division"), "{rows:?}"),
        [Reply::Failed(error)] => assert_eq!(error.code, 1105, "{error:?}"),
        replies => panic!("{replies:?}"),
    }
}

/// `LASTVAL` tells of whatever has drawn from the sequence on the same connection, be it long ago, and a default draws
/// where no text shows it.
#[tokio::test]
async fn pin_m_07_the_last_value_of_a_sequence_is_ones_own() {
    let db = Server::mariadb().start().await;
    let proxy = Proxy::in_front_of(&db).max_connections(1).start().await;
    let mut drawing = RawMySql::connect(&proxy.address()).await;
    drawing.ok("CREATE SEQUENCE elsewhere").await;
    drawing.ok("CREATE TABLE drawn (id INT DEFAULT NEXTVAL(counter), a INT)").await;
    for (script, told) in [
        (&["SELECT LASTVAL(counter)"] as &[&str], false),
        (&["SELECT 1", "SELECT LASTVAL(counter)"], false),
        (&["SELECT 1; SELECT LASTVAL(counter)"], false),
        (&["BEGIN", "SELECT 1", "SELECT PREVIOUS VALUE FOR counter"], false),
        (&["SELECT NEXTVAL(elsewhere)", "SELECT LASTVAL(counter)"], false),
        (&["SELECT NEXTVAL(elsewhere); SELECT LASTVAL(counter)"], false),
        (&["SELECT NEXTVAL(counter) FROM t WHERE id < 0", "SELECT LASTVAL(counter)"], false),
        (&["SELECT NEXTVAL(counter) FROM t WHERE id < 0; SELECT LASTVAL(counter)"], false),
        (&["SELECT NEXTVAL(counter)", "SELECT LASTVAL(counter)"], true),
        (&["SELECT NEXTVAL(counter); SELECT LASTVAL(counter)"], true),
        (&["BEGIN", "SELECT NEXT VALUE FOR counter", "SELECT 1", "SELECT PREVIOUS VALUE FOR counter"], true),
    ] {
        drawing.ok("INSERT INTO drawn (a) VALUES (1)").await;
        let others = drawing.scalar("SELECT MAX(id) FROM drawn").await;
        let capabilities = capability::NEW | capability::MULTI_STATEMENTS;
        let mut asking = RawMySql::connect_with(&proxy.address(), capabilities).await;
        let mut replies = Vec::new();
        for text in script {
            replies.extend(asking.query(text).await);
        }
        let own = others.parse::<u32>().unwrap() + 1;
        match replies.last() {
            Some(Reply::Rows(rows)) if told => {
                assert_eq!(rows.texts(), [[Some(own.to_string())]], "{script:?}");
            }
            Some(Reply::Failed(error)) if !told => assert_eq!(error.code, 1105, "{script:?}: {error:?}"),
            reply => panic!("{script:?}: {reply:?}, and others have drawn {others}"),
        }
        asking.query("ROLLBACK").await;
    }
}

/// A connection on which nobody has drawn says so, which is not the answer for who has drawn elsewhere.
#[tokio::test]
async fn pin_m_07_the_last_value_is_not_missing_where_it_was_drawn_elsewhere() {
    let db = Server::mariadb().start().await;
    let proxy = Proxy::in_front_of(&db).max_connections(2).start().await;
    for between in ["BEGIN", "START TRANSACTION READ ONLY"] {
        let (mut drawing, mut neighbour) = (proxy.raw_mysql().await, proxy.raw_mysql().await);
        let own = drawing.scalar("SELECT NEXTVAL(counter)").await;
        // The one connection is taken, the other as after login.
        neighbour.ok("BEGIN").await;
        neighbour.ok("INSERT INTO t (v) VALUES ('x')").await;
        drawing.ok(between).await;
        match &drawing.query("SELECT LASTVAL(counter)").await[..] {
            [Reply::Rows(rows)] => assert_eq!(rows.texts(), [[Some(own)]]),
            [Reply::Failed(error)] => assert_eq!(error.code, 1105, "{error:?}"),
            replies => panic!("{replies:?}"),
        }
        drawing.ok("ROLLBACK").await;
        neighbour.ok("ROLLBACK").await;
        // Who has drawn nowhere is told that there is nothing, or refused.
        let mut fresh = proxy.raw_mysql().await;
        fresh.ok(between).await;
        match &fresh.query("SELECT LASTVAL(counter)").await[..] {
            [Reply::Rows(rows)] => assert_eq!(rows.texts(), [[None]]),
            [Reply::Failed(error)] => assert_eq!(error.code, 1105, "{error:?}"),
            replies => panic!("{replies:?}"),
        }
    }
}

/// Statements that name no table may use some all the same, or have a query in them.
#[tokio::test]
async fn wrong_m_01_statements_of_others_without_a_table_are_told_of_to_nobody() {
    let db = Server::mariadb().start().await;
    let proxy = Proxy::in_front_of(&db).max_connections(1).start().await;
    for text in [
        "SHOW SESSION VARIABLES LIKE 'tx_isolation'",
        "SHOW DATABASES",
        "SELECT * FROM (SELECT 1) AS one",
        "WITH one AS (SELECT 1) SELECT * FROM one",
        "SET group_concat_max_len = (SELECT 2000 FROM (SELECT 1) AS one)",
        "EXPLAIN SELECT 1",
        "SELECT 1",
        "VALUES (1)",
        "INSERT INTO t (v) SELECT 'more' FROM (SELECT 1 UNION SELECT 2) AS two",
    ] {
        // Who has asked before would keep its connection.
        let (mut asking, mut other) = (proxy.raw_mysql().await, proxy.raw_mysql().await);
        asking.rows("SELECT 1/0").await;
        other.ok(text).await;
        match &asking.query("SHOW WARNINGS").await[..] {
            [Reply::Rows(rows)] => {
                assert!(format!("{:?}", rows.texts()).contains("Division"), "{text}: {rows:?}")
            }
            [Reply::Failed(error)] => assert_eq!(error.code, 1105, "{text}: {error:?}"),
            replies => panic!("{text}: {replies:?}"),
        }

        let (mut asking, mut other) = (proxy.raw_mysql().await, proxy.raw_mysql().await);
        asking.rows("SELECT 1 UNION SELECT 2 UNION SELECT 3 UNION SELECT 4").await;
        other.ok(text).await;
        for (who, may_be) in [(&mut other, false), (&mut asking, true)] {
            match &who.query("SELECT FOUND_ROWS()").await[..] {
                [Reply::Rows(rows)] => {
                    assert_eq!(rows.texts()[0][0].as_deref() == Some("4"), may_be, "{text}")
                }
                [Reply::Failed(error)] => assert_eq!(error.code, 1105, "{text}: {error:?}"),
                replies => panic!("{text}: {replies:?}"),
            }
        }
    }
}

#[tokio::test]
async fn a_client_that_has_asked_keeps_its_connection_for_a_moment() {
    let bench = bench().await;
    let client = bench.proxy.mysql().await;
    client.execute("SHOW WARNINGS").await;
    for _ in 0..3 {
        client.execute("SELECT 1/0").await;
        bench.spoil().await;
        let warnings = client.rows("SHOW WARNINGS").await;
        assert_eq!(warnings.len(), 1, "{warnings:?}");
    }
    let pins = bench.proxy.metric("pinion_pins_total", &[("reason", "session-function")]).await;
    assert!(pins >= 1.0, "{pins}");
    // It says no more; others get the connection.
    client.execute("SELECT 1/0").await;
    until("the connection is free", async || {
        let mut all = true;
        for neighbour in &bench.neighbours {
            all &= neighbour.try_execute("START TRANSACTION READ WRITE").await.is_ok();
        }
        for neighbour in &bench.neighbours {
            neighbour.try_execute("ROLLBACK").await.ok();
        }
        all
    })
    .await;
}

/// What it needs there, a statement that runs code which no text shows and the text itself, is not made anew for ever.
#[tokio::test]
async fn a_prepared_statement_with_hidden_code_moves_to_another_connection() {
    let bench = bench().await;
    let mut client = bench.proxy.raw_mysql().await;
    let prepared = client.prepare("SELECT last_id() >= 0").await.unwrap();
    for _ in 0..3 {
        // The connection used last is lent first.
        let mut neighbour = bench.proxy.raw_mysql().await;
        neighbour.ok("START TRANSACTION READ WRITE").await;
        let replies = client.execute(prepared.id, 0, &[]).await;
        let [Reply::Rows(rows)] = replies.as_slice() else { panic!("{replies:?}") };
        assert_eq!(rows.values(), [[Some("1".to_owned())]]);
        neighbour.ok("COMMIT").await;
    }
}
