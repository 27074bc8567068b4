//! Profile `smart` on MySQL: a session keeps its server connection exactly while it has state there that cannot be made
//! elsewhere, and leaves none behind.
#![allow(clippy::unwrap_used)]

use pinion_tests::{
    MariaDb, MySqlClient, Proxy, RawMySql, Server,
    raw_mysql::{Login, Reply, capability, command},
    until,
};

struct Bench {
    db: MariaDb,
    proxy: Proxy,
}

/// A pool of one connection and a short wait for it.
async fn bench() -> Bench {
    bench_with("300ms").await
}

async fn bench_with(borrow_timeout: &str) -> Bench {
    let db = Server::mariadb().start().await;
    let timeout = format!("connection_borrow_timeout = \"{borrow_timeout}\"");
    let proxy = Proxy::in_front_of(&db).max_connections(1).pool(&timeout).start().await;
    Bench { db, proxy }
}

impl Bench {
    async fn two(&self) -> (MySqlClient, MySqlClient) {
        (self.proxy.mysql().await, self.proxy.mysql().await)
    }

    async fn pins(&self) -> f64 {
        self.proxy.metric("pinion_pins_total", &[]).await
    }

    async fn pinned_now(&self) -> f64 {
        self.proxy.metric("pinion_database_connections_currently_session_pinned", &[]).await
    }

    /// Statements as `root` in the tests' database.
    async fn prepare(&self, statements: &[&str]) {
        let direct = self.db.direct().await;
        direct.execute("USE appdb").await;
        for statement in statements {
            direct.execute(statement).await;
        }
        direct.close().await;
    }
}

/// In a session of its own, each text pins for `reason`.
async fn pins(reason: &str, texts: &[&str]) {
    let bench = bench().await;
    for (n, text) in texts.iter().enumerate() {
        let (a, b) = bench.two().await;
        a.rows(text).await;
        assert_eq!(b.errno("SELECT 1").await, 9501, "{text}: B got A's connection");
        let counted = bench.proxy.metric("pinion_pins_total", &[("reason", reason)]).await;
        assert_eq!(counted, (n + 1) as f64, "{text}: {reason}");
        assert_eq!(bench.pins().await, counted, "{text} pins for something else, too");
        a.close().await;
        until("the connection is free", async || b.try_execute("SELECT 1").await.is_ok()).await;
        b.close().await;
    }
}

/// In one session, none of the texts pins.
async fn does_not_pin(texts: &[&str]) {
    let bench = bench().await;
    let (a, b) = bench.two().await;
    for text in texts {
        a.rows(text).await;
        b.try_execute("SELECT 1").await.unwrap_or_else(|e| panic!("{text} pinned: {e}"));
    }
    assert_eq!(bench.pins().await, 0.0);
}

/// Each `set` pins, and its `clear` ends that: another client gets the connection while A stays.
async fn unpins(pairs: &[(&str, &str)]) {
    let bench = bench().await;
    for (set, clear) in pairs {
        let (a, b) = bench.two().await;
        a.rows(set).await;
        assert_eq!(b.errno("SELECT 1").await, 9501, "{set} did not pin");
        match *clear {
            RESET => a.conn().await.reset().await.map(drop).unwrap(),
            clear => a.rows(clear).await.clear(),
        }
        b.try_execute("SELECT 1").await.unwrap_or_else(|e| panic!("{clear} did not unpin {set}: {e}"));
        assert_eq!(bench.pinned_now().await, 0.0);
        a.execute("SELECT 1").await;
        a.close().await;
        b.close().await;
    }
}

/// In place of a statement.
const RESET: &str = "COM_RESET_CONNECTION";

#[tokio::test]
async fn temp_table_keeps_its_connection() {
    let db = Server::mariadb().start().await;
    let proxy = Proxy::in_front_of(&db).max_connections(2).start().await;
    let (a, b) = (proxy.mysql().await, proxy.mysql().await);
    a.execute("CREATE TEMPORARY TABLE mine AS SELECT 7 AS n").await;
    b.execute("SELECT 1").await; // would be lent a's connection, had it gone back
    assert_eq!(a.scalar::<u32>("SELECT n FROM mine").await, 7);
    assert_eq!(b.errno("SELECT n FROM mine").await, 1146); // no such table: b never sees a's server
}

#[tokio::test]
async fn pin_m_01_table_locks_keep_their_connection() {
    pins("table-lock", &["LOCK TABLES t WRITE", "LOCK TABLE t READ", "FLUSH TABLES WITH READ LOCK"]).await;
}

#[tokio::test]
async fn pin_m_02_named_locks_keep_their_connection() {
    pins("advisory-lock", &["SELECT GET_LOCK('a', 0)", "SELECT 1 FROM t WHERE get_lock('a', 0) = 1"]).await;
}

#[tokio::test]
async fn pin_m_03_settings_that_cannot_be_followed_keep_their_connection() {
    pins(
        "session-variable",
        &[
            "SET @a = @@hostname",
            "SET @a = (SELECT count(*) FROM t)",
            "SELECT @a := 5",
            "SELECT v INTO @a FROM t WHERE id = 1",
            "SET timestamp = 1000",
            "SET insert_id = 500",
            "SET rand_seed1 = 7",
            "SET @@time_zone = '+05:00'",
        ],
    )
    .await;
}

#[tokio::test]
async fn pin_m_04_temporary_tables_keep_their_connection() {
    pins(
        "temporary-table",
        // Others do not: `mysql_carry.rs`.
        &[
            "CREATE TEMPORARY TABLE tt (n int) ENGINE=MEMORY",
            "CREATE OR REPLACE TEMPORARY TABLE tt ENGINE=Aria AS SELECT 1 AS n",
        ],
    )
    .await;
}

#[tokio::test]
async fn pin_m_05_sql_prepare_keeps_its_connection() {
    pins("prepared-statement", &["PREPARE s FROM 'SELECT @a := 1'", "PREPARE s FROM 'SELECT 1'; SELECT 1"])
        .await;
}

#[tokio::test]
async fn xa_and_handlers_keep_their_connection() {
    pins("xa", &["XA START 'x'"]).await;
    pins("handler", &["HANDLER t OPEN"]).await;
}

#[tokio::test]
async fn what_leaves_no_state_does_not_pin() {
    let long = format!("SELECT '{}'", "x".repeat(64 * 1024));
    does_not_pin(&[
        "SELECT 'LOCK TABLES t', \"SET @a = now()\" -- CREATE TEMPORARY TABLE x (n int)",
        "SET NAMES utf8mb4",
        "SET NAMES 'utf8mb4' COLLATE 'utf8mb4_unicode_ci'",
        "SET @a = 1, @b = 'text', @c = NULL, @d = -1.5, @e = \"quoted\", @f = x'00ff'",
        "SET sql_mode = 'ANSI', time_zone = '+01:00', sql_safe_updates = 1",
        // As sqlx does.
        "SET sql_mode=(SELECT CONCAT(@@sql_mode, ',PIPES_AS_CONCAT')), time_zone='+00:00', NAMES utf8mb4 COLLATE utf8mb4_unicode_ci",
        "SET SESSION TRANSACTION READ ONLY",
        "SET SESSION TRANSACTION READ WRITE",
        "SET foreign_key_checks = 0",
        "SET character_set_results = NULL",
        "USE otherdb",
        "USE appdb",
        "BEGIN; INSERT INTO t (v) VALUES ('x'); ROLLBACK",
        "SELECT /*!40101 1 + */ 1",
        "/*!40101 SET NAMES utf8mb4 */",
        "SELECT RELEASE_LOCK('a'), IS_FREE_LOCK('a')",
        "SET STATEMENT max_statement_time = 5 FOR SELECT 1",
        "CREATE TABLE plain (n int); DROP TABLE plain",
        &long,
    ])
    .await;
}

#[tokio::test]
async fn table_locks_end() {
    unpins(&[
        ("LOCK TABLES t WRITE", "UNLOCK TABLES"),
        ("FLUSH TABLES WITH READ LOCK", "UNLOCK TABLES"),
        ("LOCK TABLES t READ", RESET),
    ])
    .await;
}

#[tokio::test]
async fn com_reset_connection_ends_everything() {
    unpins(&[
        ("CREATE TEMPORARY TABLE tt (n int) ENGINE=MEMORY", RESET),
        ("SELECT GET_LOCK('a', 0)", RESET),
        ("SELECT @a := 1", RESET),
        ("SET TRANSACTION READ ONLY", RESET),
        ("PREPARE s FROM 'SELECT @a'", RESET),
        ("HANDLER t OPEN", RESET),
        ("START TRANSACTION READ WRITE", RESET),
        ("SET autocommit = 0; SELECT v FROM t", RESET),
        (
            "CREATE TEMPORARY TABLE tt (n int); SELECT GET_LOCK('a', 0); SET @a = 1; PREPARE s FROM 'SELECT 1'; LOCK TABLES t READ",
            RESET,
        ),
    ])
    .await;
}

/// A login anew leaves nothing of the session before, whoever logs in.
#[tokio::test]
async fn com_change_user_ends_everything() {
    let bench = bench().await;
    for user in ["app", "app2"] {
        for state in [
            "CREATE TEMPORARY TABLE tt (n int)",
            "SELECT GET_LOCK('a', 0)",
            "SELECT @a := 1",
            "LOCK TABLES t READ",
            "BEGIN",
        ] {
            let mut a = bench.proxy.raw_mysql().await;
            a.query(state).await;
            let address = bench.proxy.address().user(user, &format!("{user}-password"));
            a.change_user(&Login::new(&address, capability::NEW)).await.unwrap();
            let mut b = RawMySql::connect(&bench.proxy.address()).await;
            let free = "SELECT IS_FREE_LOCK('a')";
            assert_eq!(a.scalar(free).await, "1", "{state}");
            assert_eq!(a.rows("SELECT @a").await, [[None]], "{state}");
            assert_eq!(a.error("SELECT * FROM tt").await.code, 1146, "{state}");
            a.ok("INSERT INTO t (v) VALUES ('new')").await;
            assert_eq!(b.scalar(free).await, "1", "{state}");
        }
    }
}

/// Settings follow their client, and the other has its own, over one server connection.
#[tokio::test]
async fn settings_move_with_their_client() {
    let bench = bench().await;
    let (a, b) = bench.two().await;
    let theirs = "SELECT @@sql_mode, @@time_zone, @@collation_connection, @@autocommit, @x, database(), \
                  @@tx_isolation, @@character_set_results, @@foreign_key_checks, @@sql_select_limit, @@lc_time_names, \
                  @@group_concat_max_len, @@max_statement_time, @@optimizer_switch, @@long_query_time";
    let fresh = b.rows(theirs).await;
    for sets in [
        &[
            "SET NAMES utf8mb3 COLLATE utf8mb3_czech_ci",
            "SET sql_mode = 'ANSI_QUOTES,NO_BACKSLASH_ESCAPES'",
            "SET @x = 'it''s', @y = 0x4142, @z = 12.50, @long = 'abc'",
            "SET time_zone = 'SYSTEM'",
            "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED",
            "USE otherdb",
            "SET lc_time_names = 'cs_CZ', foreign_key_checks = OFF, sql_select_limit = 100000",
        ][..],
        &[
            "SET sql_mode = '', max_statement_time = 1.5, long_query_time = 0.25",
            "SET optimizer_switch = 'mrr=on'",
            "SET character_set_results = NULL",
            "SET group_concat_max_len = 2000000, sql_select_limit = DEFAULT",
            "SET CHARACTER SET latin2",
            "SET @x = \"two\", @X = 'three'",
            "SET time_zone = '-11:30', sql_mode=(SELECT CONCAT(@@sql_mode, ',NO_ZERO_DATE')), NAMES utf8mb4 COLLATE utf8mb4_unicode_ci",
            "SET @@session.character_set_results = NULL, @@session.lc_messages = 'de_DE'",
            "SET tx_isolation = 'SERIALIZABLE', SESSION foreign_key_checks = 1",
        ],
    ] {
        let direct = MySqlClient::connect(&bench.db.address()).await.unwrap();
        for set in sets {
            direct.execute(set).await;
            a.execute(set).await;
            assert_eq!(
                b.try_rows(theirs).await.unwrap_or_else(|e| panic!("{set} pinned: {e}")),
                fresh,
                "after {set}"
            );
            assert_eq!(a.rows(theirs).await, direct.rows(theirs).await, "after {set}");
            let more = "SELECT @y, @z, @long, @X, @@lc_messages";
            assert_eq!(a.rows(more).await, direct.rows(more).await, "after {set}");
        }
        a.conn().await.reset().await.unwrap();
        direct.close().await;
        a.execute("USE appdb").await;
        assert_eq!(a.rows(theirs).await, fresh);
    }
    assert_eq!(bench.pins().await, 0.0);
}

/// Every variable of the session that can be set: it pins, or its value moves; never does another client see it.
#[tokio::test]
async fn every_session_variable_stays_with_its_client() {
    let bench = bench().await;
    let direct = bench.db.direct().await;
    let names = direct
        .rows(
            "SELECT lower(variable_name), session_value FROM information_schema.system_variables \
             WHERE variable_scope IN ('SESSION', 'SESSION ONLY') AND read_only = 'NO' \
             AND variable_name NOT LIKE 'debug%' AND variable_name NOT LIKE 'replicate%' \
             AND variable_name NOT IN ('max_relay_log_size', 'sql_slave_skip_counter') ORDER BY 1",
        )
        .await;
    assert!(names.len() > 150, "{}", names.len());
    let mut b = bench.proxy.mysql().await;
    let mut moved = 0;
    let candidates = |value: &str| match value {
        "ON" => vec!["OFF".to_owned()],
        "OFF" => vec!["ON".to_owned()],
        _ => match value.parse::<u64>() {
            Ok(n) => [n.saturating_add(1), n / 2, n.saturating_add(1024), n / 2048 * 1024]
                .iter()
                .map(u64::to_string)
                .collect(),
            Err(_) => vec![format!("'{}'", value.replace('\'', "''")), "''".to_owned()],
        },
    };
    for row in names {
        let [Some(name), Some(before)] = &row[..] else { panic!("{row:?}") };
        let read = format!("SELECT @@session.`{name}`");
        let a = bench.proxy.mysql().await;
        // Refused where it depends on the statement before.
        let Ok(fresh) = b.try_rows(&read).await else { continue };
        b.execute("DO 1").await; // some of them pin until the next statement
        let twin = MySqlClient::connect(&bench.db.address()).await.unwrap();
        for value in candidates(before) {
            let set = format!("SET SESSION `{name}` = {value}");
            match (twin.try_execute(&set).await, a.try_execute(&set).await) {
                (Ok(()), Ok(())) => {}
                (Err(one), Err(other)) => {
                    assert_eq!(one.to_string(), other.to_string());
                    continue;
                }
                other => panic!("{set}: {other:?}"),
            }
            if let Ok(seen) = b.try_rows(&read).await {
                let of_the_moment =
                    ["timestamp", "pseudo_thread_id", "last_gtid", "rand_seed1", "rand_seed2"];
                assert!(of_the_moment.contains(&name.as_str()) || seen == fresh, "{set}: B has {seen:?}");
                if !name.starts_with("session_track") {
                    assert_eq!(a.rows(&read).await, twin.rows(&read).await, "{set}");
                }
                moved += 1;
            }
            break;
        }
        a.close().await;
        twin.close().await;
        if b.try_execute("SELECT 1").await.is_err() {
            b.close().await;
            b = bench.proxy.mysql().await;
        }
        until("the connection is free", async || b.try_execute("SELECT 1").await.is_ok()).await;
    }
    assert!(moved > 120, "only {moved} variables moved");
}

#[tokio::test]
async fn autocommit_off_holds_while_a_transaction_is_open_and_moves() {
    let bench = bench().await;
    let (a, b) = bench.two().await;
    a.execute("SET autocommit = 0").await;
    b.execute("INSERT INTO t (v) VALUES ('b commits')").await;
    a.execute("INSERT INTO t (v) VALUES ('a does not')").await;
    assert_eq!(b.errno("SELECT 1").await, 9501);
    a.execute("ROLLBACK").await;
    assert_eq!(b.scalar::<u32>("SELECT @@autocommit").await, 1);
    b.execute("INSERT INTO t (v) VALUES ('b commits')").await;
    a.execute("INSERT INTO t (v) VALUES ('a does not')").await;
    a.execute("SET autocommit = 1").await; // commits
    assert_eq!(b.scalar::<u32>("SELECT count(*) FROM t WHERE v LIKE 'a %'").await, 1);
    assert_eq!(b.scalar::<u32>("SELECT count(*) FROM t WHERE v LIKE 'b %'").await, 2);
    assert_eq!(bench.pins().await, 0.0);
}

/// `SET TRANSACTION` counts for the next transaction: for this client's.
#[tokio::test]
async fn the_next_transaction_is_the_clients_own() {
    let bench = bench().await;
    let (a, b) = bench.two().await;
    for _ in 0..2 {
        a.execute("SET TRANSACTION READ ONLY").await;
        assert_eq!(b.errno("SELECT 1").await, 9501);
        a.execute("BEGIN").await;
        assert_eq!(a.errno("INSERT INTO t (v) VALUES ('x')").await, 1792);
        a.execute("COMMIT").await;
        a.execute("INSERT INTO t (v) VALUES ('x')").await;
        a.conn().await.reset().await.unwrap();
        b.execute("INSERT INTO t (v) VALUES ('x')").await;
    }
    a.execute("SET TRANSACTION READ ONLY").await;
    a.close().await;
    until("the connection is free", async || b.try_execute("SELECT 1").await.is_ok()).await;
    b.execute("INSERT INTO t (v) VALUES ('x')").await;
}

/// What A leaves on a server connection, how B would notice, and what it finds instead.
const STATE: &[(&str, &str, &str)] = &[
    (
        "CREATE TEMPORARY TABLE leak (n int)",
        "SELECT count(*) FROM information_schema.tables WHERE table_name = 'leak'",
        "0",
    ),
    ("CREATE TEMPORARY TABLE t AS SELECT 'fake' AS v", "SELECT count(*) FROM t WHERE v = 'one'", "1"),
    ("SET @leak = 1", "SELECT coalesce(@leak, 'none')", "none"),
    ("SELECT @leak := 1", "SELECT coalesce(@leak, 'none')", "none"),
    ("SELECT 1 INTO @leak", "SELECT coalesce(@leak, 'none')", "none"),
    ("SET @leak = now()", "SELECT coalesce(@leak, 'none')", "none"),
    ("SET sql_mode = 'ANSI_QUOTES'", "SELECT \"x\"", "x"),
    ("SET sql_mode = 'NO_BACKSLASH_ESCAPES'", "SELECT '\\''", "'"),
    ("SET SESSION sql_mode = 'NO_UNSIGNED_SUBTRACTION'", "SELECT @@sql_mode LIKE '%UNSIGNED%'", "0"),
    ("SET time_zone = '+07:00'", "SELECT @@time_zone", "+00:00"),
    ("SET sql_safe_updates = 1", "SELECT @@sql_safe_updates", "0"),
    ("SET sql_select_limit = 1", "SELECT count(*) FROM (SELECT 1 UNION SELECT 2) u", "2"),
    ("SET NAMES latin1", "SELECT @@character_set_client", "utf8mb4"),
    ("SET NAMES utf8mb4 COLLATE utf8mb4_bin", "SELECT 'a' = 'A'", "1"),
    ("SET timestamp = 1", "SELECT now() > '2020-01-01'", "1"),
    ("SET insert_id = 4000", "SELECT @@insert_id", "0"),
    ("SET SESSION TRANSACTION READ ONLY", "SELECT @@tx_read_only", "0"),
    ("SET SESSION TRANSACTION ISOLATION LEVEL READ UNCOMMITTED", "SELECT @@tx_isolation", "REPEATABLE-READ"),
    ("SET autocommit = 0", "SELECT @@autocommit", "1"),
    ("USE otherdb", "SELECT database()", "appdb"),
    ("SELECT GET_LOCK('leak', 0)", "SELECT IS_FREE_LOCK('leak')", "1"),
    ("DO GET_LOCK('leak', 0)", "SELECT IS_FREE_LOCK('leak')", "1"),
    ("LOCK TABLES t READ", "SELECT @@in_transaction FROM otherdb.t WHERE id = 1", "0"),
    ("BEGIN; INSERT INTO t (v) VALUES ('leak')", "SELECT count(*) FROM t WHERE v = 'leak'", "0"),
    ("SET autocommit = 0; INSERT INTO t (v) VALUES ('leak')", "SELECT count(*) FROM t WHERE v = 'leak'", "0"),
    ("XA START 'leak'; INSERT INTO t (v) VALUES ('leak')", "SELECT count(*) FROM t WHERE v = 'leak'", "0"),
    ("INSERT INTO t (v) VALUES ('mine')", "SELECT LAST_INSERT_ID()", "0"),
    ("SELECT LAST_INSERT_ID(77)", "SELECT LAST_INSERT_ID()", "0"),
    ("SELECT * FROM t", "SELECT FOUND_ROWS() IN (0, 1)", "1"),
    (
        "UPDATE t SET v = concat(v, '') WHERE id < 3; UPDATE t SET v = concat(v, 'x') WHERE id = 3",
        "SELECT ROW_COUNT() IN (0, -1)",
        "1",
    ),
    (
        "CALL hidden_table()",
        "SELECT count(*) FROM information_schema.tables WHERE table_name = 'hidden'",
        "0",
    ),
    ("CALL hidden_variable()", "SELECT coalesce(@hidden, 'none')", "none"),
    ("CALL hidden_mode()", "SELECT @@time_zone", "+00:00"),
    ("CALL hidden_lock()", "SELECT IS_FREE_LOCK('hidden')", "1"),
    ("SELECT hidden_function()", "SELECT coalesce(@hidden, 'none')", "none"),
    ("SELECT f FROM hidden_view", "SELECT coalesce(@hidden, 'none')", "none"),
    ("INSERT INTO hidden_trigger VALUES (1)", "SELECT coalesce(@hidden, 'none')", "none"),
    ("EXECUTE IMMEDIATE 'SET @leak = 1'", "SELECT coalesce(@leak, 'none')", "none"),
    (
        "EXECUTE IMMEDIATE 'CREATE TEMPORARY TABLE leak (n int)'",
        "SELECT count(*) FROM information_schema.tables WHERE table_name = 'leak'",
        "0",
    ),
    ("PREPARE s FROM 'SET time_zone = \"+09:00\"'; EXECUTE s", "SELECT @@time_zone", "+00:00"),
    ("BEGIN NOT ATOMIC SET @leak = 1; END", "SELECT coalesce(@leak, 'none')", "none"),
    ("BEGIN NOT ATOMIC SET time_zone = '+08:00'; END", "SELECT @@time_zone", "+00:00"),
    ("SELECT nextval(counter)", "SELECT coalesce(lastval(counter), 'none')", "none"),
    ("SET ROLE NONE", "SELECT coalesce(current_role(), 'none')", "none"),
    ("SET PASSWORD = PASSWORD('app-password')", "SELECT 1", "1"),
    ("SET profiling = 1", "SELECT @@profiling", "0"),
];

/// Stored code that touches the session.
const HIDDEN: &[&str] = &[
    "CREATE PROCEDURE hidden_table() CREATE TEMPORARY TABLE hidden (n int)",
    "CREATE PROCEDURE hidden_variable() SET @hidden = 1",
    "CREATE PROCEDURE hidden_mode() SET time_zone = '+09:00'",
    "CREATE PROCEDURE hidden_lock() DO GET_LOCK('hidden', 0)",
    "CREATE FUNCTION hidden_function() RETURNS int BEGIN SET @hidden = 1; RETURN 1; END",
    "CREATE VIEW hidden_view AS SELECT hidden_function() AS f",
    "CREATE TABLE hidden_trigger (n int PRIMARY KEY)",
    "CREATE TRIGGER hidden_one BEFORE INSERT ON hidden_trigger FOR EACH ROW SET @hidden = NEW.n",
    "GRANT ALL ON appdb.* TO app@'%'",
];

async fn nothing_is_left(ends: impl Fn(&str) -> bool, leave: impl AsyncFn(RawMySql)) {
    let bench = bench().await;
    bench.prepare(HIDDEN).await;
    let flags = capability::NEW | capability::MULTI_STATEMENTS;
    for (state, question, answer) in STATE.iter().filter(|(state, ..)| ends(state)) {
        let mut a = RawMySql::connect_with(&bench.proxy.address(), flags).await;
        for reply in a.query(state).await {
            assert!(!matches!(reply, Reply::Failed(_)), "{state}: {reply:?}");
        }
        leave(a).await;
        let mut b = bench.next(flags).await;
        assert_eq!(b.scalar(question).await, *answer, "after {state}");
        b.command(command::QUIT, &[]).await;
        b.expect_closed().await;
    }
}

impl Bench {
    /// A client that is served: whoever was before it has left its connection.
    async fn next(&self, flags: u64) -> RawMySql {
        let mut next = RawMySql::connect_with(&self.proxy.address(), flags).await;
        until("the connection is free", async || !matches!(next.query("DO 0").await[..], [Reply::Failed(_)]))
            .await;
        next
    }
}

#[tokio::test]
async fn a_client_that_says_goodbye_leaves_no_state_behind() {
    nothing_is_left(
        |_| true,
        async |mut a| {
            a.command(command::QUIT, &[]).await;
            a.expect_closed().await;
        },
    )
    .await;
}

#[tokio::test]
async fn a_client_that_vanishes_leaves_no_state_behind() {
    nothing_is_left(|_| true, async |a| drop(a)).await;
}

#[tokio::test]
async fn a_client_that_resets_its_connection_leaves_no_state_behind() {
    let kept = std::sync::Mutex::new(Vec::new());
    // These last until the session ends.
    let ends = |state: &str| {
        !state.starts_with("XA") && !state.contains("IMMEDIATE") && !state.contains("NOT ATOMIC")
    };
    nothing_is_left(ends, async |mut a| {
        a.simple(command::RESET_CONNECTION, &[]).await.unwrap();
        kept.lock().unwrap().push(a);
    })
    .await;
}

/// A stays connected: B is served by the same connection or waits, and sees nothing of A.
#[tokio::test]
async fn hidden_state_does_not_reach_a_neighbour() {
    let bench = bench().await;
    bench.prepare(HIDDEN).await;
    let flags = capability::NEW | capability::MULTI_STATEMENTS;
    let mut served = 0;
    for (state, question, answer) in STATE {
        let mut b = RawMySql::connect_with(&bench.proxy.address(), flags).await;
        let mut a = RawMySql::connect_with(&bench.proxy.address(), flags).await;
        a.query(state).await;
        let told = b.query(question).await;
        match &told[..] {
            // Busy, or another's answers are not told.
            [Reply::Failed(error)] => assert!(matches!(error.code, 9501 | 1105), "{state}: {error:?}"),
            [Reply::Rows(rows)] => {
                assert_eq!(rows.texts(), [[Some((*answer).to_owned())]], "after {state}");
                served += 1;
            }
            other => panic!("{state}: {other:?}"),
        }
        drop((a, b));
        bench.next(flags).await;
    }
    assert!(served >= 15, "{served}");
}

/// Odd spellings of what sets state.
#[tokio::test]
async fn state_hidden_in_odd_spellings_does_not_reach_a_neighbour() {
    let bench = bench().await;
    let question = "SELECT concat_ws(' ', @leak, @`leak`, @'LEAK', @@time_zone, @@sql_safe_updates + 0, IS_FREE_LOCK('leak'), \
                    (SELECT count(*) FROM information_schema.tables WHERE table_name = 'leak'))";
    for state in [
        "/*!50000 SET @leak = 1 */",
        "/*! SET time_zone = '+05:00' */",
        "/*M! SET @leak = 1 */",
        "/*M!100000 SET sql_safe_updates = 1 */",
        "/*!99999 SET @never = 1 */",
        "SET /*!50000 @leak = */ /* + */ 1",
        "SET/**/@leak/**/=/**/1",
        "SET -- comment\n @leak -- comment\n = 1",
        "SET # comment\n time_zone = '+05:00'",
        "sEt @LeAk := 1",
        "SET @`leak` = 1",
        "SET @'leak' = 1",
        "SET @\"leak\" = 1",
        "SET @@session.time_zone = '+05:00'",
        "SET @@SESSION . time_zone = '+05:00'",
        "SET @@`session`.`time_zone` = '+05:00'",
        "SET @@local.time_zone = '+05:00'",
        "SET @@time_zone = '+05:00'",
        "SET LOCAL time_zone = '+05:00'",
        "SET SESSION time_zone = '+05:00', @leak = 1",
        "SET `time_zone` = '+05:00'",
        "SELECT @leak := 1",
        "SELECT(@leak:=1)",
        "SELECT 1 INTO @leak",
        "SELECT id INTO@leak FROM t WHERE id = 1",
        "SELECT id FROM t WHERE id = 1 INTO @leak",
        "SELECT 1 UNION SELECT 2 LIMIT 1 INTO @leak",
        "UPDATE t SET v = (@leak := v) WHERE id = 1",
        "INSERT INTO t (v) VALUES (@leak := 'x')",
        "DELETE FROM t WHERE id = 99 OR (@leak := 1) = 2",
        "DO @leak := 1",
        "SELECT * FROM t ORDER BY (@leak := id)",
        "SELECT 1 FROM DUAL WHERE (SELECT @leak := 1)",
        "WITH w AS (SELECT @leak := 1 AS n) SELECT * FROM w",
        "(SELECT @leak := 1)",
        "((SELECT 1)) UNION (SELECT @leak := 1)",
        "VALUES (@leak := 1)",
        "GET DIAGNOSTICS @leak = NUMBER",
        "ANALYZE SELECT @leak := 1 FROM t",
        "EXPLAIN EXTENDED SELECT @leak := 1 FROM t",
        "SHOW TABLES WHERE (@leak := 1)",
        "SELECT `get_lock`('leak', 0)",
        "SELECT get_lock /**/ ('leak', 0)",
        "SELECT /*!50000 get_lock('leak', 0) */",
        "SELECT 1 + /*M! get_lock('leak', 0) */",
        "SELECT CASE WHEN GET_LOCK('leak', 0) THEN 1 END",
        "INSERT INTO t (v) VALUES (GET_LOCK('leak', 0))",
        "SHOW TABLES WHERE GET_LOCK('leak', 0)",
        "CREATE/**/TEMPORARY/**/TABLE leak (n int)",
        "CREATE /*!50000 TEMPORARY */ TABLE leak (n int)",
        "CREATE OR/**/REPLACE TEMPORARY TABLE `leak` SELECT 1 AS n",
        "SET STATEMENT time_zone = '+05:00' FOR SELECT @leak := 1",
        "SET STATEMENT time_zone = '+05:00' FOR SELECT GET_LOCK('leak', 0)",
        "SET STATEMENT sql_mode = '' FOR CREATE TEMPORARY TABLE leak (n int)",
        "SET STATEMENT time_zone = '+05:00' FOR SET @leak = 1",
        "BEGIN NOT ATOMIC SET @leak = 1; END",
        "IF 1 THEN SET @leak = 1; END IF",
        "EXECUTE IMMEDIATE concat('SET @le', 'ak = 1')",
        "SELECT 1; SET @leak = 1; SELECT 2",
        "SELECT 1;;/* ; */;SELECT @leak := 1",
        "SELECT '\\'; SELECT GET_LOCK(''leak'', 0); -- ', GET_LOCK('leak', 0)",
        "PREPARE s FROM 'SELECT @leak := 1'; EXECUTE s; DEALLOCATE PREPARE s",
        "LOAD DATA INFILE '/no/such/file' INTO TABLE t (@leak)",
        "SET @leak = 1; SELECT no_such_column",
        "SET time_zone = '+05:00'; SELEC",
        "SET @leak = 1, no_such_variable = 2",
        "SET time_zone = '+05:00', @leak = (SELECT 1 UNION SELECT 2)",
        "SELECT GET_LOCK('leak', 0), (SELECT 1 UNION SELECT 2 UNION SELECT id FROM t)",
        "SELECT @leak := 1, (SELECT id FROM t)",
        "\u{a0}SET @leak = 1",
        "\x0b\x0cSET\x0b@leak\x0c=\x0b1",
    ] {
        let flags = capability::NEW | capability::MULTI_STATEMENTS;
        let mut b = RawMySql::connect_with(&bench.proxy.address(), flags).await;
        let mut a = RawMySql::connect_with(&bench.proxy.address(), flags).await;
        a.query(state).await;
        match &b.query(question).await[..] {
            [Reply::Failed(error)] => assert_eq!(error.code, 9501, "{state}: {error:?}"),
            [Reply::Rows(rows)] => {
                assert_eq!(rows.texts(), [[Some("+00:00 0 1 0".to_owned())]], "after {state}")
            }
            other => panic!("{state}: {other:?}"),
        }
        drop((a, b));
        let mut next = bench.next(flags).await;
        assert_eq!(next.scalar(question).await, "+00:00 0 1 0", "left by {state}");
    }
}

/// A statement's settings end with it, though the server reports them as if they stayed.
#[tokio::test]
async fn set_statement_leaves_the_session_as_it_was() {
    let bench = bench().await;
    let (a, b) = bench.two().await;
    let question = "SELECT @@sql_mode, @@time_zone, \"x\"";
    let fresh = a.rows(question).await;
    a.rows("SET STATEMENT sql_mode = 'ANSI_QUOTES,NO_BACKSLASH_ESCAPES', time_zone = '+03:00' FOR SELECT 1")
        .await;
    assert_eq!(b.rows(question).await, fresh);
    assert_eq!(a.rows(question).await, fresh);
    assert_eq!(bench.pins().await, 0.0);
    // Read as if the mode had stayed, this would be one string.
    a.rows("SET STATEMENT sql_mode = 'NO_BACKSLASH_ESCAPES' FOR SELECT 1").await;
    a.rows("SELECT '\\'', GET_LOCK('mode', 0), '\\''").await;
    assert_eq!(bench.proxy.metric("pinion_pins_total", &[("reason", "advisory-lock")]).await, 1.0);
}

/// What a statement leaves for the next, with another client on the connection between any two.
const SCRIPTS: &[&[&str]] = &[
    &[
        "INSERT INTO s (v) VALUES ('a')",
        "SELECT LAST_INSERT_ID()",
        "SELECT 1",
        "SELECT LAST_INSERT_ID()",
        "INSERT INTO s (v) VALUES ('a'), ('b'), ('c')",
        "SELECT LAST_INSERT_ID(), @@identity",
        "INSERT INTO s (id, v) VALUES (77, 'x')",
        "SELECT LAST_INSERT_ID()",
        "INSERT INTO s (id, v) VALUES (90, 'x'), (NULL, 'a'), (NULL, 'b')",
        "SELECT LAST_INSERT_ID()",
        "INSERT INTO s (id, v) VALUES (NULL, 'x'), (77, 'twice')",
        "SELECT LAST_INSERT_ID()",
        "UPDATE s SET v = 'x' WHERE id = LAST_INSERT_ID(2)",
        "SELECT LAST_INSERT_ID()",
        "INSERT INTO s (id, v) VALUES (1, 'a') ON DUPLICATE KEY UPDATE id = LAST_INSERT_ID(id), v = 'q'",
        "SELECT LAST_INSERT_ID()",
        "REPLACE INTO s (id, v) VALUES (2, 'a')",
        "SELECT LAST_INSERT_ID()",
        "INSERT INTO s (v) SELECT v FROM s LIMIT 2",
        "SELECT LAST_INSERT_ID()",
        "CALL adds()",
        "SELECT LAST_INSERT_ID()",
        "BEGIN",
        "INSERT INTO s (v) VALUES ('a')",
        "SELECT LAST_INSERT_ID()",
        "ROLLBACK",
        "SELECT LAST_INSERT_ID()",
        "INSERT INTO s (v) VALUES ('z')",
        "INSERT INTO s (v) VALUES (concat('z', LAST_INSERT_ID()))",
        "SELECT v FROM s ORDER BY id DESC LIMIT 1",
    ],
    &[
        "SELECT id FROM t",
        "SELECT FOUND_ROWS()",
        "SELECT SQL_CALC_FOUND_ROWS id FROM t LIMIT 1",
        "SELECT FOUND_ROWS()",
        "SELECT id FROM t LIMIT 2",
        "DO 1",
        "SELECT FOUND_ROWS()",
        "SELECT id FROM t WHERE id > 90",
        "SELECT FOUND_ROWS()",
    ],
    &[
        "UPDATE t SET v = concat(v, 'x') WHERE id < 3",
        "SELECT ROW_COUNT()",
        "DELETE FROM t WHERE id = 3",
        "SELECT ROW_COUNT()",
        "INSERT INTO t (v) VALUES ('a'), ('b')",
        "SELECT ROW_COUNT()",
        "INSERT INTO t (id) VALUES (1)",
        "SELECT ROW_COUNT()",
    ],
    &[
        "SELECT 1 / 0, CAST('x' AS int)",
        "SHOW WARNINGS",
        "SELECT @@warning_count",
        "SELECT no_such",
        "SHOW WARNINGS",
        "SHOW COUNT(*) ERRORS",
        "INSERT INTO t (id) VALUES (1)",
        "SHOW ERRORS",
        "UPDATE t SET v = 'y' WHERE id = 1",
        "SHOW WARNINGS",
        "DROP TABLE IF EXISTS never",
        "SHOW WARNINGS LIMIT 1",
    ],
];

/// Each answer is the one of a connection of one's own, or it is refused: never another's, never an older one. By text
/// and by prepared statements.
#[tokio::test]
async fn what_a_statement_leaves_is_answered_as_on_a_connection_of_its_own() {
    let bench = bench_with("50ms").await;
    bench.prepare(&["GRANT ALL ON appdb.* TO app@'%'", "CREATE TABLE otherdb.fresh LIKE t"]).await;
    let setup: &[&str] = &[
        "CREATE OR REPLACE TABLE t (id int AUTO_INCREMENT PRIMARY KEY, v text) AS SELECT * FROM otherdb.t",
        "CREATE OR REPLACE TABLE s (id int AUTO_INCREMENT PRIMARY KEY, v text)",
        "CREATE OR REPLACE PROCEDURE adds() INSERT INTO s (v) VALUES ('p')",
    ];
    let (mut answered, mut refused) = (0, 0);
    for prepared in [false, true] {
        for script in SCRIPTS {
            bench.prepare(setup).await;
            let mut direct = RawMySql::connect(&bench.db.address()).await;
            let mut expected = Vec::new();
            for sql in *script {
                expected.push(run(&mut direct, sql, prepared).await);
            }
            bench.prepare(setup).await;
            let address = bench.proxy.address();
            let (mut a, mut b) = (RawMySql::connect(&address).await, RawMySql::connect(&address).await);
            for (sql, expected) in script.iter().zip(expected) {
                let seen = run(&mut a, sql, prepared).await;
                let is_refusal = seen.starts_with("[1105 ");
                assert!(seen == expected || is_refusal, "{sql}: {seen} instead of {expected}");
                answered += usize::from(!is_refusal);
                refused += usize::from(is_refusal);
                for other in [
                    "INSERT INTO otherdb.fresh (v) VALUES ('o'), ('p'), ('q')",
                    "SELECT 1 / 0, v FROM t LIMIT 1",
                    "DO 1",
                ] {
                    b.query(other).await;
                }
            }
        }
    }
    assert!(answered > 5 * refused, "{answered} answers and {refused} refusals");
}

async fn run(client: &mut RawMySql, sql: &str, prepared: bool) -> String {
    if !prepared {
        return format!("{:?}", client.query(sql).await);
    }
    match client.prepare(sql).await {
        Ok(statement) => {
            let replies = client.execute(statement.id, 0, &[]).await;
            client.close_statement(statement.id).await;
            format!("{replies:?}")
        }
        Err(error) => format!("[{} ({}) {}]", error.code, error.state, error.message),
    }
}

/// What is refused without asking the server needs no connection.
#[tokio::test]
async fn a_question_that_is_refused_holds_no_connection() {
    let bench = bench().await;
    for (statement, question) in [
        ("SELECT 1 / 0, v FROM t", "SHOW WARNINGS"),
        ("SELECT v FROM t", "SELECT FOUND_ROWS()"),
        ("UPDATE t SET v = concat(v, 'x')", "SELECT ROW_COUNT()"),
    ] {
        let (a, b) = bench.two().await;
        a.rows(statement).await;
        b.rows("SELECT v FROM t LIMIT 2").await;
        assert_eq!(a.errno(question).await, 1105, "{question}");
        b.try_execute("SELECT 1").await.unwrap_or_else(|e| panic!("{question}: {e}"));
        a.execute("SELECT 1").await;
        a.close().await;
        b.close().await;
    }
}

/// Cursors and long data hold the connection as long as they are there.
#[tokio::test]
async fn cursors_and_long_data_hold_their_connection() {
    let bench = bench().await;
    let address = bench.proxy.address();
    let (mut a, mut b) = (RawMySql::connect(&address).await, RawMySql::connect(&address).await);
    let busy = async |b: &mut RawMySql| b.error("SELECT 1").await.code;

    let cursor = a.prepare("SELECT id FROM t ORDER BY id").await.unwrap();
    a.execute(cursor.id, 1, &[]).await;
    assert_eq!(busy(&mut b).await, 9501);
    assert_eq!(a.fetch(cursor.id, 1).await.0.len(), 1);
    assert_eq!(busy(&mut b).await, 9501);
    assert_eq!(a.fetch(cursor.id, 10).await.0.len(), 2);
    b.ok("SELECT 1").await; // all rows have been fetched

    a.execute(cursor.id, 1, &[]).await;
    assert_eq!(busy(&mut b).await, 9501);
    a.simple(command::STMT_RESET, &cursor.id.to_le_bytes()).await.unwrap();
    b.ok("SELECT 1").await;

    a.execute(cursor.id, 1, &[]).await;
    assert_eq!(busy(&mut b).await, 9501);
    a.close_statement(cursor.id).await;
    until("the cursor is closed", async || matches!(b.query("SELECT 1").await[..], [Reply::Rows(_)])).await;

    let long = a.prepare("SELECT length(?)").await.unwrap();
    a.send_long_data(long.id, 0, b"half of ").await;
    until("the data is there", async || matches!(b.query("SELECT 1").await[..], [Reply::Failed(_)])).await;
    a.send_long_data(long.id, 0, b"it").await;
    a.simple(command::STMT_RESET, &long.id.to_le_bytes()).await.unwrap();
    b.ok("SELECT 1").await;
    assert_eq!(bench.pins().await, 0.0);
}

/// A pin is logged once, with reason, digest and connection, and without the literals.
#[tokio::test]
async fn a_pin_is_logged_once_with_reason_and_digest() {
    let bench = bench().await;
    let (a, _b) = bench.two().await;
    a.execute("SET @a = 'a-literal'").await;
    a.execute("SET @b = concat('secret', 7531)").await;
    a.execute("SET @c = concat('secret', 7532)").await;
    a.execute("SELECT GET_LOCK('lock-literal', 0)").await;
    bench.proxy.logged("advisory-lock").await;
    let log = bench.proxy.log();
    let lines: Vec<&str> = log.lines().filter(|line| line.contains("session-variable")).collect();
    assert_eq!(lines.len(), 1, "{lines:#?}");
    assert!(lines[0].contains("set @b"), "no digest: {}", lines[0]);
    for literal in ["7531", "secret", "-literal"] {
        assert!(!log.contains(literal), "{literal} is in the log: {log}");
    }
}

/// Row `TooManyPins`: of five connections two may be pinned, and the third pin is refused before its statement runs.
#[tokio::test]
async fn only_so_many_connections_may_be_pinned() {
    let db = Server::mariadb().start().await;
    let proxy = Proxy::in_front_of(&db).max_connections(5).pool("max_pinned_percent = 40").start().await;
    let (mut one, mut two) =
        (RawMySql::connect(&proxy.address()).await, RawMySql::connect(&proxy.address()).await);
    one.ok("CREATE TEMPORARY TABLE a (n int)").await;
    two.scalar("SELECT GET_LOCK('a', 0)").await;
    let mut third = RawMySql::connect(&proxy.address()).await;
    let error = third.error("CREATE TEMPORARY TABLE a (n int)").await;
    assert_eq!((error.code, &*error.state), (1226, "42000"), "{error:?}");
    assert!(error.message.contains("max_pinned_percent is 40"), "{error:?}");
    assert_eq!(third.error("SELECT n FROM a").await.code, 1146, "it ran");
    // What comes before it in a transaction is not committed without it, whether a server has begun that or not.
    third.ok("CREATE TABLE kept (n int)").await;
    for begin in ["START TRANSACTION READ WRITE", "BEGIN"] {
        third.ok(begin).await;
        assert_eq!(third.error("CREATE TEMPORARY TABLE a (n int)").await.code, 1226);
        third.query("INSERT INTO kept VALUES (1)").await;
        third.query("COMMIT").await;
        assert_eq!(third.scalar("SELECT COUNT(*) FROM kept").await, "0", "{begin}");
    }
    assert_eq!(third.scalar("SELECT 1").await, "1");
    one.ok("DROP TEMPORARY TABLE a").await;
    third.ok("CREATE TEMPORARY TABLE a (n int)").await;
}
