//! Profile `rds` pins MySQL sessions exactly as RDS Proxy does: each row of its documentation by the two-client method.
//!
//! The pool holds one server connection. A performs the row and ends its transaction; B runs `SELECT 1` with a short
//! borrow timeout. B times out: pinned. B is answered: not pinned. Tests carry the row's id.
#![allow(clippy::unwrap_used)]

use pinion_tests::{MariaDb, MySqlClient, Proxy, Server, server_error, until};

struct Bench {
    db: MariaDb,
    proxy: Proxy,
}

async fn bench() -> Bench {
    bench_with("").await
}

async fn bench_with(pool: &str) -> Bench {
    let db = Server::mariadb().start().await;
    let proxy = Proxy::in_front_of(&db)
        .profile("rds")
        .max_connections(1)
        .pool("connection_borrow_timeout = \"300ms\"")
        .pool(pool)
        .start()
        .await;
    Bench { db, proxy }
}

impl Bench {
    async fn two(&self) -> (MySqlClient, MySqlClient) {
        (self.proxy.mysql().await, self.proxy.mysql().await)
    }

    async fn pinned(&self) -> f64 {
        self.proxy.metric("pinion_database_connections_currently_session_pinned", &[]).await
    }

    /// Asserts that the `n`th pin of all is there, for `reason`, and ends with its client.
    async fn is_pinned(&self, what: &str, reason: &str, n: usize, b: MySqlClient, leave: impl AsyncFnOnce()) {
        assert_eq!(b.errno("SELECT 1").await, 9501, "{what}: B got A's connection");
        assert_eq!(self.pinned().await, 1.0, "{what}");
        let counted = self.proxy.metric("pinion_pins_total", &[("reason", reason)]).await;
        assert_eq!(counted, n as f64, "{what}: {reason}");
        leave().await;
        until("the pin ends with its client", async || self.pinned().await == 0.0).await;
        b.execute("SELECT 1").await;
        b.close().await;
    }

    /// Asserts that there has been one line a pin, with its reason.
    fn logged(&self, reason: &str, n: usize) {
        let log = self.proxy.log();
        let lines: Vec<&str> = log.lines().filter(|line| line.contains("session pinned")).collect();
        let named = lines.iter().filter(|line| line.contains(reason)).count();
        assert_eq!((named, lines.len()), (n, n), "one line a pin, with its reason: {lines:#?}");
    }
}

/// Runs each text as a session of its own and asserts that it pinned for `reason` until the client left.
async fn pins(reason: &str, texts: &[&str]) {
    let bench = bench().await;
    for (n, text) in texts.iter().enumerate() {
        let (a, b) = bench.two().await;
        a.rows(text).await;
        let leave = async || {
            a.rows("SELECT 1").await; // A itself goes on.
            a.close().await;
        };
        bench.is_pinned(text, reason, n + 1, b, leave).await;
    }
    bench.logged(reason, texts.len());
}

/// Runs each text in one session and asserts that another client gets the connection afterwards.
async fn does_not_pin(texts: &[&str]) {
    let bench = bench().await;
    let (a, b) = bench.two().await;
    for text in texts {
        a.rows(text).await;
        b.try_execute("SELECT 1").await.unwrap_or_else(|e| panic!("{text} pinned: {e}"));
    }
    assert_eq!(bench.proxy.metric("pinion_pins_total", &[]).await, 0.0);
}

#[tokio::test]
async fn pin_m_01_table_locks() {
    pins(
        "table-lock",
        &[
            "LOCK TABLE t READ",
            "LOCK TABLES t WRITE",
            "lOcK/**/tAbLeS t AS x READ LOCAL",
            "FLUSH TABLES WITH READ LOCK",
            "FLUSH TABLES t WITH READ LOCK",
            // Even once they are given up.
            "LOCK TABLES t WRITE; UNLOCK TABLES",
        ],
    )
    .await;
}

#[tokio::test]
async fn pin_m_02_named_locks() {
    pins(
        "advisory-lock",
        &[
            "SELECT GET_LOCK('a', 0)",
            "DO GET_LOCK('a', 0)",
            "SELECT v FROM t WHERE id = get_lock ( 'a', 0 )",
            "SELECT GET_LOCK('a', 0), RELEASE_LOCK('a')",
        ],
    )
    .await;
}

#[tokio::test]
async fn pin_m_03_variables() {
    pins(
        "session-variable",
        &[
            "SET @a = 1",
            "set @`a b` := 'x'",
            "SELECT @a := 5",
            "SELECT v INTO @a FROM t WHERE id = 1",
            "SET sql_safe_updates = 1",
            "SET SESSION foreign_key_checks = 0",
            "SET @@unique_checks = 0",
            "SET @@session.group_concat_max_len = 2048",
            "SET innodb_lock_wait_timeout = 7",
            // One name that is not tracked pins the whole statement.
            "SET autocommit = 1, time_zone = '+00:00', sql_select_limit = 1000",
        ],
    )
    .await;
}

/// §1.4: not tracked and commonly sent, as far as MariaDB knows them.
#[tokio::test]
async fn pin_m_03_untracked_variables_that_drivers_send() {
    pins(
        "session-variable",
        &[
            "SET session_track_system_variables = 'autocommit'",
            "SET sql_auto_is_null = 0",
            "SET sql_safe_updates = 0",
            "SET sql_select_limit = 100",
            "SET foreign_key_checks = 1",
            "SET unique_checks = 1",
            "SET innodb_lock_wait_timeout = 50",
            "SET group_concat_max_len = 1024",
            "SET net_read_timeout = 60",
            "SET max_statement_time = 5",
            "SET lc_messages = 'en_US'",
            "SET @user_var = NULL",
        ],
    )
    .await;
}

#[tokio::test]
async fn pin_m_03_variable_sets_may_be_excluded() {
    let bench = bench_with("session_pinning_filters = [\"EXCLUDE_VARIABLE_SETS\"]").await;
    let (a, b) = bench.two().await;
    for text in ["SET sql_safe_updates = 1", "SET @a = 7", "SET @b = @@hostname"] {
        a.execute(text).await;
        // What the filter lets go without a pin must still not reach another client.
        let seen = b.rows("SELECT @@sql_safe_updates, @a, @b").await;
        assert_eq!(seen, [[Some("0".to_owned()), None, None]], "{text}");
    }
    assert_eq!(bench.proxy.metric("pinion_pins_total", &[]).await, 0.0);
    a.execute("CREATE TEMPORARY TABLE tt (n int)").await;
    assert_eq!(b.errno("SELECT 1").await, 9501);
}

#[tokio::test]
async fn pin_m_04_temporary_tables() {
    pins(
        "temporary-table",
        &[
            "CREATE TEMPORARY TABLE tt (n int)",
            "CREATE TEMPORARY TABLE IF NOT EXISTS tt AS SELECT 1 AS n",
            "CREATE OR REPLACE TEMPORARY TABLE tt LIKE t",
            "creAte/* a */tEmPorary\ntable tt (n int)",
            "CREATE TEMPORARY TABLE tt (n int); DROP TEMPORARY TABLE tt",
        ],
    )
    .await;
}

#[tokio::test]
async fn pin_m_05_sql_prepare() {
    pins(
        "prepared-statement",
        &[
            "PREPARE s FROM 'SELECT 1'",
            "PREPARE s FROM 'SELECT 1'; EXECUTE s; DEALLOCATE PREPARE s",
            "EXECUTE IMMEDIATE 'SELECT 1'",
            "/**/ pRePaRe `s` FROM \"SELECT 'x'\"",
        ],
    )
    .await;
}

#[tokio::test]
async fn pin_m_05_binary_protocol() {
    let bench = bench().await;
    for (n, text) in ["SELECT v FROM t WHERE id = ?", "UPDATE t SET v = ? WHERE id = 9"].iter().enumerate() {
        let (a, b) = bench.two().await;
        a.exec(text, ("2",)).await;
        bench.is_pinned(text, "prepared-statement", n + 1, b, async || a.close().await).await;
    }
    bench.logged("prepared-statement", 2);
}

#[tokio::test]
async fn pin_m_06_session_functions() {
    pins(
        "session-function",
        &[
            "SELECT FOUND_ROWS()",
            "SELECT ROW_COUNT()",
            "SELECT v FROM t WHERE id = (SELECT row_count())",
            "SELECT SQL_CALC_FOUND_ROWS v FROM t LIMIT 1",
        ],
    )
    .await;
}

/// Not any more. The answer is right all the same.
#[tokio::test]
async fn pin_m_07_last_insert_id_does_not_pin() {
    let bench = bench().await;
    let (a, b) = bench.two().await;
    for _ in 0..3 {
        a.execute("INSERT INTO t (v) VALUES ('a')").await;
        let mine = a.conn().await.last_insert_id().unwrap();
        b.execute("INSERT INTO t (v) VALUES ('b')").await;
        let theirs = b.conn().await.last_insert_id().unwrap();
        assert_eq!(a.scalar::<u64>("SELECT LAST_INSERT_ID()").await, mine);
        assert_eq!(b.scalar::<u64>("SELECT LAST_INSERT_ID()").await, theirs);
    }
    assert_eq!(bench.proxy.metric("pinion_pins_total", &[]).await, 0.0);
}

#[tokio::test]
async fn pin_m_08_the_next_transaction() {
    pins(
        "session-variable",
        &[
            "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE",
            "SET TRANSACTION READ ONLY",
            "SET @@tx_isolation = 'READ-COMMITTED'",
            "SET @@tx_read_only = 1",
        ],
    )
    .await;
}

#[tokio::test]
async fn pin_m_08_session_scope_does_not_pin() {
    does_not_pin(&[
        "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED",
        "SET SESSION TRANSACTION READ ONLY",
        "SET SESSION TRANSACTION READ WRITE, ISOLATION LEVEL REPEATABLE READ",
        "SET tx_isolation = 'SERIALIZABLE'",
        "SET @@session.tx_isolation = 'REPEATABLE-READ'",
    ])
    .await;
}

#[tokio::test]
async fn pin_m_09_executable_comments() {
    pins(
        "unknown",
        &[
            "SELECT /*! 1 */ + 1",
            "/*!40101 SELECT 1 */",
            "/*M!100100 SELECT 1 */",
            "SELECT 1 /*!99999 + no_such_column */",
            "/*M! SELECT 2 */",
        ],
    )
    .await;
}

#[tokio::test]
async fn pin_m_09_other_comments_do_not_pin() {
    does_not_pin(&[
        "SELECT /* ! 1 */ 1",
        "SELECT '/*! SET @a = 1 */'",
        "SELECT 1 -- /*! SET @a = 1 */",
        "SELECT /*+ MAX_EXECUTION_TIME(1000) */ 1",
        "# /*! SET @a = 1 */\nSELECT 1",
    ])
    .await;
}

#[tokio::test]
async fn pin_m_10_statement_over_16_kb() {
    let long = format!("SELECT '{}'", "x".repeat(16 * 1024));
    pins("statement-size", &[&long]).await;
}

#[tokio::test]
async fn pin_m_10_statement_of_16_kb_does_not_pin() {
    let text = format!("SELECT '{}'", "x".repeat(16 * 1024 - 9));
    assert_eq!(text.len(), 16 * 1024);
    does_not_pin(&[&text]).await;
}

/// The size counts for a single statement, not for a transaction.
#[tokio::test]
async fn pin_m_10_counts_single_statements() {
    let bench = bench().await;
    let (a, b) = bench.two().await;
    let text = format!("SELECT '{}'", "x".repeat(9 * 1024));
    a.execute("BEGIN").await;
    for _ in 0..3 {
        a.execute(&text).await;
    }
    a.execute("COMMIT").await;
    b.execute("SELECT 1").await;
}

/// §1.4: what is tracked, spelt in several ways. Each keeps its value for its session, and the other has its own.
#[tokio::test]
async fn nopin_m_01_tracked_variables() {
    let bench = bench().await;
    let (a, b) = bench.two().await;
    for (set, read) in [
        ("SET AUTOCOMMIT = 1", "@@autocommit"),
        ("SET auto_increment_increment = 3", "@@auto_increment_increment"),
        ("SET CHARACTER SET latin1", "@@character_set_client"),
        ("SET CHARSET utf8mb4", "@@character_set_results"),
        ("SET character_set_client = latin1", "@@character_set_client"),
        ("SET character_set_database = latin1", "@@character_set_database"),
        ("SET character_set_filesystem = utf8mb4", "@@character_set_filesystem"),
        ("SET character_set_connection = latin2", "@@character_set_connection"),
        ("SET character_set_results = latin2", "@@character_set_results"),
        ("SET character_set_server = latin1", "@@character_set_server"),
        ("SET collation_connection = latin1_german2_ci", "@@collation_connection"),
        ("SET collation_database = latin1_german1_ci", "@@collation_database"),
        ("SET collation_server = latin1_german1_ci", "@@collation_server"),
        ("SET interactive_timeout = 1234", "@@interactive_timeout"),
        ("SET NAMES utf8mb4", "@@character_set_connection"),
        ("SET NAMES 'utf8mb3' COLLATE 'utf8mb3_czech_ci'", "@@collation_connection"),
        ("SET net_write_timeout = 77", "@@net_write_timeout"),
        ("SET query_cache_type = OFF", "@@query_cache_type"),
        ("SET session_track_schema = ON", "@@session_track_schema"),
        ("SET sql_mode = 'ANSI_QUOTES,NO_BACKSLASH_ESCAPES'", "@@sql_mode"),
        ("SET SESSION time_zone = '+03:00'", "@@time_zone"),
        ("SET tx_isolation = 'READ-COMMITTED'", "@@tx_isolation"),
        ("SET tx_read_only = 1", "@@tx_read_only"),
        ("SET @@session.wait_timeout = 1000", "@@wait_timeout"),
    ] {
        let read = format!("SELECT {read}");
        let before = b.rows(&read).await;
        let direct = bench.db.direct().await;
        direct.execute("USE appdb").await;
        direct.execute(set).await;
        let expected = direct.rows(&read).await;
        a.execute(set).await;
        assert_eq!(b.try_rows(&read).await.unwrap_or_else(|e| panic!("{set} pinned: {e}")), before, "{set}");
        assert_eq!(a.rows(&read).await, expected, "{set}");
        a.conn().await.reset().await.unwrap();
    }
    assert_eq!(bench.proxy.metric("pinion_pins_total", &[]).await, 0.0);
}

#[tokio::test]
async fn nopin_m_01_tracked_statements() {
    let bench = bench().await;
    let (a, b) = bench.two().await;
    a.execute("USE otherdb").await;
    assert_eq!(b.scalar::<String>("SELECT database()").await, "appdb");
    assert_eq!(a.scalar::<String>("SELECT database()").await, "otherdb");
    let direct = bench.db.direct().await;
    direct.execute("CREATE DATABASE one; CREATE DATABASE two; GRANT ALL ON `one`.* TO app@'%'").await;
    direct.execute("GRANT ALL ON `two`.* TO app@'%'").await;
    a.execute("DROP DATABASE one").await;
    b.execute("SELECT 1").await;
    assert_eq!(bench.proxy.metric("pinion_pins_total", &[]).await, 0.0);
    // Of one's own database it leaves none, which no other connection can be brought to: so it pins here.
    a.execute("USE two").await;
    b.execute("SELECT 1").await;
    a.execute("DROP SCHEMA two").await;
    assert_eq!(a.rows("SELECT database()").await, [[None]]);
    assert_eq!(b.errno("SELECT 1").await, 9501);
    a.close().await;
    until("the connection is free", async || b.try_execute("SELECT 1").await.is_ok()).await;
    assert_eq!(b.scalar::<String>("SELECT database()").await, "appdb");
}

/// In MySQL `LOCAL` is `SESSION`: it does not pin, and it does not leak either.
#[tokio::test]
async fn nopin_m_02_set_local() {
    let bench = bench().await;
    let (a, b) = bench.two().await;
    for (set, read, mine, theirs) in [
        ("SET LOCAL sql_safe_updates = 1", "@@sql_safe_updates", "1", "0"),
        ("SET @@local.group_concat_max_len = 4096", "@@group_concat_max_len", "4096", "1048576"),
    ] {
        a.execute(set).await;
        let read = format!("SELECT {read}");
        assert_eq!(b.scalar::<String>(&read).await, theirs, "{set}");
        assert_eq!(a.scalar::<String>(&read).await, mine, "{set}");
    }
    assert_eq!(bench.proxy.metric("pinion_pins_total", &[]).await, 0.0);
}

#[tokio::test]
async fn nopin_m_03_routines() {
    let bench = bench().await;
    let direct = bench.db.direct().await;
    direct.execute("USE appdb").await;
    direct.execute("CREATE PROCEDURE nothing() BEGIN SELECT 1; SELECT 2; END").await;
    direct.execute("CREATE FUNCTION seven() RETURNS int DETERMINISTIC RETURN 7").await;
    direct.execute("CREATE PROCEDURE adds() INSERT INTO t (v) VALUES ('added')").await;
    direct.execute("GRANT EXECUTE ON appdb.* TO app@'%'").await;
    let (a, b) = bench.two().await;
    for text in ["CALL nothing()", "SELECT seven()", "CALL appdb.adds()", "DO seven()"] {
        a.rows(text).await;
        b.try_execute("SELECT 1").await.unwrap_or_else(|e| panic!("{text} pinned: {e}"));
    }
    assert_eq!(bench.proxy.metric("pinion_pins_total", &[]).await, 0.0);
}

#[tokio::test]
async fn nopin_m_04_ordinary_work() {
    does_not_pin(&[
        "SELECT 'SET @a = 1; LOCK TABLES t WRITE; GET_LOCK(1, 1)'",
        "SELECT 1 AS `get_lock` -- GET_LOCK('a', 0)\n /* SET @a = 1; */",
        "INSERT INTO t (v) VALUES ('x')",
        "UPDATE t SET v = 'y' WHERE id = 1; DELETE FROM t WHERE v = 'x'",
        "BEGIN; INSERT INTO t (v) VALUES ('x'); SELECT v FROM t FOR UPDATE; ROLLBACK",
        "START TRANSACTION READ ONLY; SELECT 1; COMMIT",
        "CREATE TABLE plain (n int); ALTER TABLE plain ADD m int; DROP TABLE plain",
        "SHOW VARIABLES LIKE 'sql_mode'",
        "EXPLAIN SELECT 1",
        "SELECT @@sql_mode, @never_set",
    ])
    .await;
}

/// A transaction holds the connection, and its end frees it: that is no pin.
#[tokio::test]
async fn tx_01_a_transaction_holds_and_then_frees() {
    let bench = bench().await;
    let (a, b) = bench.two().await;
    for begin in ["BEGIN", "START TRANSACTION", "SET autocommit = 0; SELECT v FROM t"] {
        a.rows(begin).await;
        a.execute("INSERT INTO t (v) VALUES ('x')").await;
        assert_eq!(b.errno("SELECT 1").await, 9501, "{begin}");
        assert_eq!(a.errno("SELECT no_such_column").await, 1054);
        assert_eq!(b.errno("SELECT 1").await, 9501, "{begin}: a failed statement ends no transaction");
        a.execute("ROLLBACK").await;
        b.execute("SELECT 1").await;
    }
    a.execute("SET autocommit = 1; BEGIN").await;
    assert_eq!(b.errno("SELECT 1").await, 9501);
    a.execute("CREATE TABLE ends_it (n int)").await; // TX-05
    b.execute("SELECT 1").await;
    assert_eq!(bench.proxy.metric("pinion_pins_total", &[]).await, 0.0);
}

/// `GET DIAGNOSTICS` and `SHOW WARNINGS` never tell of another session.
#[tokio::test]
async fn wrong_m_01_diagnostics_are_never_anothers() {
    let bench = bench().await;
    let (a, b) = bench.two().await;
    for question in ["SHOW WARNINGS", "SHOW ERRORS", "SHOW COUNT(*) WARNINGS", "SELECT @@error_count"] {
        for before in ["DO 1", "SELECT 1", "SELECT v FROM t"] {
            assert_eq!(a.errno("INSERT INTO t (id, v) VALUES (1, 'secret of a')").await, 1062);
            b.rows(before).await;
            match b.try_rows(question).await {
                Ok(told) => {
                    let text = format!("{told:?}");
                    assert!(told.is_empty() || text == r#"[[Some("0")]]"#, "{before}, {question}: {text}");
                }
                // Nobody knows the answer any more.
                Err(error) => assert_eq!(server_error(&error).code, 1105, "{before}, {question}"),
            }
            b.execute("DO 1").await;
        }
    }
    assert_eq!(a.errno("INSERT INTO t (id, v) VALUES (1, 'secret of a')").await, 1062);
    let c = bench.proxy.mysql().await;
    c.execute("GET DIAGNOSTICS @n = NUMBER").await;
    assert_eq!(c.scalar::<String>("SELECT @n").await, "0");
}

/// `ROW_COUNT()` within one text.
#[tokio::test]
async fn wrong_m_02_row_count_in_a_text_of_several_statements() {
    let bench = bench().await;
    let text = "UPDATE t SET v = 'changed' WHERE id <= 2; SELECT ROW_COUNT(); SELECT 1; SELECT ROW_COUNT()";
    let a = bench.proxy.mysql().await;
    let answers: Vec<String> = a.rows(text).await.into_iter().flatten().flatten().collect();
    assert_eq!(answers, ["2", "1", "-1"]);
}

/// The rule sees a statement in the binary protocol, too, at the time of its execution.
#[tokio::test]
async fn pins_apply_to_prepared_statements_with_their_own_reason() {
    let bench = bench().await;
    let a = bench.proxy.mysql().await;
    a.exec("SELECT GET_LOCK(?, 0)", ("a",)).await;
    let b = bench.proxy.mysql().await;
    assert_eq!(b.errno("SELECT 1").await, 9501);
    assert_eq!(bench.proxy.metric("pinion_pins_total", &[("reason", "advisory-lock")]).await, 1.0);
}
