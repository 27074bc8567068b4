//! Pins of profile `smart` on MySQL end when what they are for is gone, by the server's word, and not before; statements
//! named by SQL's `PREPARE` need none.
#![allow(clippy::unwrap_used)]

use pinion_tests::{
    MariaDb, MySqlClient, Proxy, Server,
    raw_mysql::{Login, RawMySql, Reply, capability, command},
};

const RELEASE: &str = "SELECT RELEASE_ALL_LOCKS()";

struct Bench {
    db: MariaDb,
    proxy: Proxy,
}

/// A pool of one connection and a short wait for it. Temporary tables stay where they are; `mysql_carry.rs` is about those
/// that do not.
async fn bench() -> Bench {
    let db = Server::mariadb().start().await;
    let settings = "connection_borrow_timeout = \"300ms\"\nmax_carried_table_bytes = 0";
    let proxy = Proxy::in_front_of(&db).max_connections(1).pool(settings).start().await;
    Bench { db, proxy }
}

impl Bench {
    async fn direct(&self, statements: &[&str]) {
        let direct = self.db.direct().await;
        direct.execute("USE appdb").await;
        for statement in statements {
            direct.execute(statement).await;
        }
        direct.close().await;
    }

    async fn pins(&self) -> f64 {
        self.proxy.metric("pinion_pins_total", &[]).await
    }

    /// Each text with whether its client keeps the connection from there on; a new client for the script.
    async fn script(&self, script: &[(&str, bool)]) {
        let (a, b) = (self.proxy.mysql().await, self.proxy.mysql().await);
        for (text, keeps) in script {
            let answer = a.try_rows(text).await;
            let kept = b.try_execute("SELECT 1").await.is_err();
            assert_eq!(kept, *keeps, "{text} in {script:?}, answered {answer:?}");
        }
        a.close().await;
        b.close().await;
    }
}

const KEEPS: bool = true;
const FREE: bool = false;

#[tokio::test]
async fn a_temporary_tables_pin_ends_when_all_are_dropped() {
    let bench = bench().await;
    for script in [
        &[("CREATE TEMPORARY TABLE a (n int)", KEEPS), ("DROP TABLE a", FREE)][..],
        &[("CREATE TEMPORARY TABLE a (n int)", KEEPS), ("DROP TEMPORARY TABLE IF EXISTS `a`", FREE)],
        &[
            ("CREATE TEMPORARY TABLE a (n int)", KEEPS),
            ("CREATE TEMPORARY TABLE b AS SELECT 1 AS n", KEEPS),
            ("DROP TABLE a", KEEPS),
            ("DROP TABLE nothing", KEEPS),
            ("DROP TABLE b", FREE),
        ],
        &[
            ("CREATE TEMPORARY TABLE a (n int)", KEEPS),
            ("CREATE TEMPORARY TABLE otherdb.a (n int)", KEEPS),
            ("DROP TABLE otherdb.a, appdb.a", FREE),
        ],
        // The same name in another schema is another table, and so is one with other letters.
        &[
            ("CREATE TEMPORARY TABLE a (n int)", KEEPS),
            ("USE otherdb", KEEPS),
            ("DROP TABLE IF EXISTS a", KEEPS),
            ("DROP TABLE IF EXISTS appdb.A", KEEPS),
            ("DROP TABLE appdb.a", FREE),
        ],
        &[("CREATE TEMPORARY SEQUENCE s", KEEPS), ("DROP SEQUENCE s", FREE)],
        &[
            ("CREATE TEMPORARY TABLE a (n int)", KEEPS),
            ("DROP SEQUENCE IF EXISTS a", KEEPS),
            ("DROP TABLE a", FREE),
        ],
        // Nothing was made.
        &[("CREATE TEMPORARY TABLE a AS SELECT nothing FROM t", FREE)],
        // In a transaction, too, which undoes neither.
        &[
            ("START TRANSACTION READ WRITE", KEEPS),
            ("CREATE TEMPORARY TABLE a (n int)", KEEPS),
            ("DROP TEMPORARY TABLE a", KEEPS),
            ("ROLLBACK", FREE),
        ],
        &[
            ("CREATE TEMPORARY TABLE a (n int)", KEEPS),
            ("START TRANSACTION READ WRITE", KEEPS),
            ("INSERT INTO a VALUES (1)", KEEPS),
            ("COMMIT", KEEPS),
            ("DROP TABLE a", FREE),
        ],
    ] {
        bench.script(script).await;
    }
}

#[tokio::test]
async fn a_temporary_table_that_is_not_followed_keeps_its_connection() {
    let bench = bench().await;
    bench.direct(&["CREATE PROCEDURE swap() BEGIN CREATE TEMPORARY TABLE x (n int); END"]).await;
    for script in [
        &[
            ("CREATE TEMPORARY TABLE a (n int)", KEEPS),
            ("ALTER TABLE a RENAME TO c", KEEPS),
            ("DROP TABLE IF EXISTS a", KEEPS),
        ][..],
        &[("CREATE TEMPORARY TABLE a (n int)", KEEPS), ("CALL swap()", KEEPS), ("DROP TABLE a", KEEPS)],
        &[("CREATE TEMPORARY TABLE a (n int); SELECT 1", KEEPS), ("DROP TABLE a", KEEPS)],
        &[("CREATE TEMPORARY TABLE a (n int)", KEEPS), ("DROP TABLE a; SELECT 1", KEEPS)],
        &[("CREATE TEMPORARY TABLE `é` (n int)", KEEPS), ("DROP TABLE `é`", KEEPS)],
    ] {
        bench.script(script).await;
    }
}

#[tokio::test]
async fn a_locks_pin_ends_when_the_server_says_that_none_is_held() {
    let bench = bench().await;
    let other = bench.db.direct().await;
    other.execute("DO GET_LOCK('taken', 0)").await;
    for script in [
        &[("SELECT GET_LOCK('a', 0)", KEEPS), ("SELECT RELEASE_LOCK('a')", FREE)][..],
        &[("DO GET_LOCK('a', 0)", KEEPS), ("DO RELEASE_LOCK('a')", FREE)],
        // Whatever the spelling: the server is asked.
        &[("SELECT GET_LOCK('a', 0)", KEEPS), ("SELECT RELEASE_LOCK(concat('a', ''))", FREE)],
        // Twice taken is twice given up.
        &[
            ("SELECT GET_LOCK('a', 0)", KEEPS),
            ("SELECT GET_LOCK('a', 0)", KEEPS),
            ("SELECT RELEASE_LOCK('a')", KEEPS),
            ("SELECT RELEASE_LOCK('b')", KEEPS),
            ("SELECT RELEASE_LOCK('a')", FREE),
        ],
        &[
            ("SELECT GET_LOCK('a', 0), GET_LOCK('b', 0)", KEEPS),
            ("SELECT RELEASE_LOCK('a')", KEEPS),
            ("SELECT RELEASE_LOCK('b')", FREE),
        ],
        // It was not got.
        &[("SELECT GET_LOCK('taken', 0)", FREE)],
        &[("SELECT GET_LOCK('a', 0)", KEEPS), ("SELECT RELEASE_ALL_LOCKS()", FREE)],
        &[
            ("SELECT GET_LOCK('a', 0)", KEEPS),
            ("SELECT RELEASE_ALL_LOCKS(), GET_LOCK('b', 0)", KEEPS),
            ("DO RELEASE_ALL_LOCKS()", FREE),
        ],
        // A name that the text does not tell.
        &[
            ("SELECT GET_LOCK(concat('a'), 0)", KEEPS),
            ("SELECT RELEASE_LOCK('a')", KEEPS),
            ("SELECT RELEASE_ALL_LOCKS() AS n", FREE),
        ],
        &[("SELECT GET_LOCK('a', 0); SELECT 1", KEEPS), ("SELECT RELEASE_LOCK('a')", KEEPS), (RELEASE, FREE)],
        &[
            ("SELECT GET_LOCK('a', 0) FROM nowhere", FREE),
            ("START TRANSACTION READ WRITE", KEEPS),
            ("SELECT GET_LOCK('a', 0)", KEEPS),
            ("SELECT RELEASE_LOCK('a')", KEEPS),
            ("COMMIT", FREE),
        ],
    ] {
        bench.script(script).await;
    }
    // What was asked is told to nobody.
    let (a, b) = (bench.proxy.mysql().await, bench.proxy.mysql().await);
    assert_eq!(a.scalar::<u32>("SELECT GET_LOCK('a', 0)").await, 1);
    assert_eq!(a.rows("SELECT FOUND_ROWS(), ROW_COUNT()").await, [[Some("1".into()), Some("-1".into())]]);
    assert_eq!(b.errno("SELECT 1").await, 9501);
    assert_eq!(a.scalar::<u32>("SELECT RELEASE_LOCK('a')").await, 1);
    a.execute("DO 1").await; // it has asked for the rows found by the last query, and might again
    assert_eq!(b.scalar::<u32>("SELECT IS_FREE_LOCK('a')").await, 1);
}

#[tokio::test]
async fn a_lock_in_a_prepared_statement_is_followed_likewise() {
    let bench = bench().await;
    let (a, b) = (bench.proxy.mysql().await, bench.proxy.mysql().await);
    a.exec("SELECT GET_LOCK('a', ?)", (0,)).await;
    assert_eq!(b.errno("SELECT 1").await, 9501);
    a.exec("SELECT RELEASE_LOCK(?)", ("a",)).await;
    b.execute("SELECT 1").await;
    a.exec("SELECT GET_LOCK(?, 0)", ("a",)).await;
    a.exec("SELECT RELEASE_LOCK(?)", ("a",)).await;
    assert_eq!(b.errno("SELECT 1").await, 9501, "the name is in no text");
}

#[tokio::test]
async fn a_handlers_pin_ends_when_all_are_closed() {
    let bench = bench().await;
    bench.direct(&["CREATE TABLE two (n int)"]).await;
    for script in [
        &[("HANDLER t OPEN", KEEPS), ("HANDLER t READ FIRST", KEEPS), ("HANDLER t CLOSE", FREE)][..],
        &[
            ("HANDLER t OPEN AS x", KEEPS),
            ("HANDLER appdb.two OPEN", KEEPS),
            ("HANDLER t CLOSE", KEEPS),
            ("HANDLER x CLOSE", KEEPS),
            ("HANDLER two CLOSE", FREE),
        ],
        &[("HANDLER t OPEN; SELECT 1", KEEPS), ("HANDLER t CLOSE", KEEPS)],
        &[("HANDLER nothing OPEN", FREE)],
    ] {
        bench.script(script).await;
    }
}

#[tokio::test]
async fn an_xa_transactions_pin_ends_with_it() {
    let bench = bench().await;
    for script in [
        &[
            ("XA START 'x'", KEEPS),
            ("INSERT INTO t (v) VALUES ('xa')", KEEPS),
            ("XA END 'x'", KEEPS),
            ("XA COMMIT 'x' ONE PHASE", FREE),
        ][..],
        &[("XA START 'x','y',3", KEEPS), ("XA END 'x','y',3", KEEPS), ("XA ROLLBACK 'x','y',3", FREE)],
        &[
            ("XA START 'x'", KEEPS),
            ("INSERT INTO t (v) VALUES ('xa')", KEEPS),
            ("XA END 'x'", KEEPS),
            ("XA PREPARE 'x'", KEEPS),
            ("SELECT 1", KEEPS),
            ("XA COMMIT 'other'", KEEPS),
            ("XA COMMIT 'x'", FREE),
        ],
        &[
            ("XA START 'x'", KEEPS),
            ("XA COMMIT 'x'", KEEPS),
            ("XA END 'x'", KEEPS),
            ("XA ROLLBACK 'x'", FREE),
        ],
    ] {
        bench.script(script).await;
    }
}

#[tokio::test]
async fn the_next_transaction_is_held_until_it_is_over() {
    let bench = bench().await;
    bench
        .script(&[
            ("SET TRANSACTION READ ONLY", KEEPS),
            ("SELECT 1", KEEPS),
            ("START TRANSACTION READ WRITE", KEEPS),
            ("INSERT INTO t (v) VALUES ('no')", KEEPS),
            ("COMMIT", FREE),
            ("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE", KEEPS),
            ("SELECT v FROM t", FREE),
        ])
        .await;
    assert_eq!(bench.pins().await, 0.0);
}

/// A name stands for what its client prepared under it, wherever that is served, and for nobody else's.
#[tokio::test]
async fn named_statements_need_no_pin() {
    let bench = bench().await;
    let (a, b) = (bench.proxy.mysql().await, bench.proxy.mysql().await);
    a.execute("PREPARE s FROM 'SELECT concat(''a'', ?)'").await;
    assert_eq!(b.errno("EXECUTE s USING @x").await, 1243);
    assert_eq!(b.errno("DEALLOCATE PREPARE s").await, 1243);
    b.execute("PREPARE S FROM \"SELECT 'b', ?\"").await;
    for n in 0..3 {
        a.execute(&format!("SET @x = 'a{n}'")).await;
        b.execute(&format!("SET @x = 'b{n}'")).await;
        assert_eq!(a.scalar::<String>("EXECUTE s USING @x").await, format!("aa{n}"));
        assert_eq!(b.rows("EXECUTE s USING @x").await, [[Some("b".to_owned()), Some(format!("b{n}"))]]);
    }
    a.execute("DEALLOCATE PREPARE s").await;
    assert_eq!(a.errno("EXECUTE s USING @x").await, 1243);
    assert_eq!(b.rows("EXECUTE s USING @x").await.len(), 1);
    b.execute("DO 1").await;
    assert_eq!(a.errno("DEALLOCATE PREPARE s").await, 1243);
    // Whoever prepares anew and fails has lost the old one.
    assert_eq!(b.errno("PREPARE s FROM 'SELECT nothing FROM nowhere'").await, 1146);
    assert_eq!(b.errno("EXECUTE s").await, 1243);
    assert_eq!(bench.pins().await, 0.0);
}

/// One that is dropped while another connection has it is gone, and so is one of a session that is reset.
#[tokio::test]
async fn a_named_statement_ends_with_its_name() {
    let bench = bench().await;
    let (a, b) = (bench.proxy.mysql().await, bench.proxy.mysql().await);
    a.execute("PREPARE s FROM 'SELECT 1'").await;
    b.execute("PREPARE s FROM 'SELECT 2'").await;
    a.execute("DEALLOCATE PREPARE s").await;
    assert_eq!(a.scalar::<i64>("SELECT ROW_COUNT()").await, 0);
    assert_eq!(a.errno("EXECUTE s").await, 1243);
    assert_eq!(b.scalar::<u32>("EXECUTE s").await, 2);
    b.conn().await.reset().await.unwrap();
    assert_eq!(b.errno("EXECUTE s").await, 1243);
    assert_eq!(bench.pins().await, 0.0);
}

/// `EXECUTE` does what its text does.
#[tokio::test]
async fn what_a_named_statement_runs_pins_as_its_text() {
    let bench = bench().await;
    for script in [
        &[
            ("PREPARE s FROM 'CREATE TEMPORARY TABLE a (n int)'", FREE),
            ("EXECUTE s", KEEPS),
            ("DEALLOCATE PREPARE s", KEEPS),
            ("SELECT * FROM a", KEEPS),
            ("DROP TABLE a", FREE),
        ][..],
        &[
            ("PREPARE s FROM 'SELECT GET_LOCK(''n'', 0)'", FREE),
            ("EXECUTE s", KEEPS),
            ("SELECT RELEASE_LOCK('n')", FREE),
        ],
        &[("PREPARE s FROM 'SET time_zone = ''+03:00'''", FREE), ("EXECUTE s", FREE)],
        &[("PREPARE s FROM 'INSERT INTO t (v) VALUES (?)'", FREE), ("EXECUTE s USING @v", FREE)],
        // What it runs is not in the text, or is read by itself in more than one way.
        &[
            ("SET @text = 'SELECT 1'", FREE),
            ("PREPARE s FROM @text", KEEPS),
            ("PREPARE r FROM @text", KEEPS),
            ("DEALLOCATE PREPARE s", KEEPS),
            ("DROP PREPARE r", FREE),
        ],
        &[
            ("SET @text = 'CREATE TEMPORARY TABLE a (n int)'", FREE),
            ("PREPARE s FROM @text", KEEPS),
            ("EXECUTE s", KEEPS),
            ("DEALLOCATE PREPARE s", KEEPS),
        ],
        &[("PREPARE s FROM 'SELECT @v := 1'", KEEPS), ("DEALLOCATE PREPARE s", FREE)],
        &[("PREPARE s FROM 'SELECT nothing FROM nowhere'", FREE), ("PREPARE s FROM @nothing", FREE)],
        &[("PREPARE s FROM 'SELECT 1'; SELECT 1", KEEPS), ("DEALLOCATE PREPARE s", KEEPS)],
    ] {
        bench.script(script).await;
    }
}

/// A statement means what it meant when it was prepared: in that database, in that `sql_mode`.
#[tokio::test]
async fn a_named_statement_keeps_its_meaning() {
    let bench = bench().await;
    bench
        .direct(&[
            "CREATE TABLE otherdb.m AS SELECT 'other' AS v, 7 AS x",
            "CREATE TABLE m AS SELECT 'mine' AS v, 8 AS x",
        ])
        .await;
    let (a, b) = (bench.proxy.mysql().await, bench.proxy.mysql().await);
    let direct = MySqlClient::connect(&bench.db.address()).await.unwrap();
    for prepares in ["PREPARE s FROM 'SELECT v, `x`, 1 || 0 FROM m'", "PREPARE r FROM 'SELECT database()'"] {
        a.execute(prepares).await;
        direct.execute(prepares).await;
    }
    b.execute("PREPARE s FROM 'SELECT 0'").await;
    for change in ["USE otherdb", "SET sql_mode = 'PIPES_AS_CONCAT'", "USE appdb"] {
        a.execute(change).await;
        direct.execute(change).await;
        assert_eq!(b.errno("SELECT 1").await, 9501, "{change}: it cannot be made elsewhere any more");
        for runs in ["EXECUTE s", "EXECUTE r"] {
            assert_eq!(a.rows(runs).await, direct.rows(runs).await, "{runs} after {change}");
        }
    }
    a.execute("DEALLOCATE PREPARE r").await;
    assert_eq!(b.errno("SELECT 1").await, 9501);
    a.execute("DEALLOCATE PREPARE s").await;
    assert_eq!(b.scalar::<u32>("EXECUTE s").await, 0);
}

/// A procedure finds the names of its caller, and no other's.
#[tokio::test]
async fn code_finds_the_names_of_its_own_client() {
    let bench = bench().await;
    bench.direct(&["CREATE PROCEDURE runs() EXECUTE s"]).await;
    let (a, b) = (bench.proxy.mysql().await, bench.proxy.mysql().await);
    a.execute("PREPARE s FROM 'SELECT 1'").await;
    assert_eq!(b.errno("CALL runs()").await, 1243);
    assert_eq!(a.scalar::<u32>("CALL runs()").await, 1);
    assert_eq!(b.errno("SELECT 1").await, 9501, "the procedure may have prepared something else");
}

/// What cannot be prepared any more fails when it is run, with the server's own error, and nothing else does.
#[tokio::test]
async fn a_named_statement_of_a_table_that_is_gone_fails_alone() {
    let bench = bench().await;
    let (a, b) = (bench.proxy.mysql().await, bench.proxy.mysql().await);
    a.execute("CREATE TABLE goes (n int)").await;
    a.execute("PREPARE s FROM 'SELECT * FROM goes'").await;
    b.execute("PREPARE s FROM 'SELECT 3'").await;
    b.execute("DROP TABLE goes").await;
    assert_eq!(a.errno("EXECUTE s").await, 1146);
    assert_eq!(a.scalar::<u32>("SELECT 5").await, 5);
    assert_eq!(b.scalar::<u32>("EXECUTE s").await, 3);
    b.execute("CREATE TABLE goes AS SELECT 4 AS n").await;
    assert_eq!(a.scalar::<u32>("EXECUTE s").await, 4);
    a.execute("DEALLOCATE PREPARE s").await;
    assert_eq!(bench.pins().await, 0.0);
}

/// What a `SET STATEMENT` has put back is told with the next answer that tells of a change, be it another client's.
#[tokio::test]
async fn a_named_statement_is_found_behind_a_set_statement_of_another() {
    let bench = bench().await;
    // An answer in between tells of none.
    for between in [None, Some("SELECT * FROM t")] {
        let (a, b) = (bench.proxy.mysql().await, bench.proxy.mysql().await);
        a.execute("PREPARE s FROM 'SELECT ? + 1'").await;
        b.execute("PREPARE s FROM 'SELECT 2'").await;
        b.rows("SET STATEMENT max_statement_time = 5 FOR SELECT 1").await;
        if let Some(between) = between {
            b.rows(between).await;
        }
        a.execute("SET @a = 41").await;
        assert_eq!(a.scalar::<u32>("EXECUTE s USING @a").await, 42, "{between:?}");
    }
}

/// A `PREPARE` that the server cannot read leaves the name as it was, to this client alone.
#[tokio::test]
async fn a_name_outlives_a_prepare_that_is_no_statement() {
    let bench = bench().await;
    let (a, b) = (bench.proxy.mysql().await, bench.proxy.mysql().await);
    a.execute("PREPARE s FROM 'SELECT 1'").await;
    b.execute("PREPARE s FROM 'SELECT 2'").await;
    assert_eq!(a.errno("PREPARE s FROM").await, 1064);
    assert_eq!(b.errno("EXECUTE s").await, 9501);
    assert_eq!(a.scalar::<u32>("EXECUTE s").await, 1);
}

/// A server refuses to prepare what writes in a transaction that only reads; what was prepared before is there.
#[tokio::test]
async fn a_name_is_found_in_a_transaction_that_only_reads() {
    let bench = bench().await;
    let (a, b) = (bench.proxy.mysql().await, bench.proxy.mysql().await);
    a.execute("PREPARE s FROM 'INSERT INTO t (v) VALUES (''x'')'").await;
    b.execute("PREPARE s FROM 'SELECT 2'").await;
    a.execute("START TRANSACTION READ ONLY").await;
    a.execute("SET SESSION sql_safe_updates = 0").await;
    assert_eq!(a.errno("EXECUTE s").await, 1792);
    a.execute("ROLLBACK").await;
    a.execute("EXECUTE s").await;
    assert_eq!(a.scalar::<u32>("SELECT COUNT(*) FROM t WHERE v = 'x'").await, 1);
}

#[tokio::test]
async fn what_code_has_left_is_gone_when_the_client_begins_anew() {
    let bench = bench().await;
    bench.direct(&["CREATE PROCEDURE makes() CREATE TEMPORARY TABLE made SELECT 5 AS a"]).await;
    let address = bench.proxy.address();
    let login = Login::new(&address, capability::NEW);
    let mut client = RawMySql::connect(&address).await;
    for anew in ["COM_CHANGE_USER", "COM_RESET_CONNECTION"] {
        client.ok("CALL makes()").await;
        match anew {
            "COM_CHANGE_USER" => client.change_user(&login).await.unwrap(),
            _ => drop(client.simple(command::RESET_CONNECTION, &[]).await),
        }
        match &client.query("SELECT a FROM made").await[..] {
            [Reply::Failed(error)] => assert_eq!(error.code, 1146, "{anew}: {error:?}"),
            replies => panic!("{anew}: {replies:?}"),
        }
    }
}
