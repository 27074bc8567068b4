//! Row PIN-M-04, the part that does not pin: an idle client's temporary tables do not keep a connection that others wait
//! for. They are made again where the client is served next, and nobody else sees them.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use pinion_tests::{
    MariaDb, MySqlClient, Proxy, RawMySql, Server,
    raw_mysql::{Login, capability, command},
    until,
};

struct Bench {
    db: MariaDb,
    proxy: Proxy,
}

/// A pool of one connection.
async fn bench() -> Bench {
    bench_with("connection_borrow_timeout = \"5s\"").await
}

async fn bench_with(pool: &str) -> Bench {
    let db = Server::mariadb().start().await;
    let proxy = Proxy::in_front_of(&db).max_connections(1).pool(pool).start().await;
    Bench { db, proxy }
}

impl Bench {
    /// Like a client of the proxy, with a server connection of its own.
    async fn direct(&self) -> MySqlClient {
        MySqlClient::connect(&self.db.address()).await.unwrap()
    }
}

const SERVED: &str = "SELECT 1";

/// Of every type there is a value that comes back as it was, and what follows goes on from there.
#[tokio::test]
async fn tables_come_out_as_they_went_in() {
    let bench = bench().await;
    let (a, b, direct) = (bench.proxy.mysql().await, bench.proxy.mysql().await, bench.direct().await);
    let both = async |text: &str| {
        let (here, there) = (a.try_rows(text).await, direct.try_rows(text).await);
        assert_eq!(here.map_err(|e| e.to_string()), there.map_err(|e| e.to_string()), "{text}");
    };
    for text in [
        "SET time_zone = '+05:30', sql_mode = 'ANSI_QUOTES,PIPES_AS_CONCAT'",
        r#"CREATE TEMPORARY TABLE "a""b`c" (id BIGINT UNSIGNED AUTO_INCREMENT PRIMARY KEY, a FLOAT, b DOUBLE, c VARCHAR(20)
           DEFAULT 'it''s', d BIT(64), e ENUM('x','y'), f SET('x','y'), g DATETIME(3), h TIMESTAMP NULL DEFAULT
           '2020-01-01 00:00:00', i DECIMAL(30,10) ZEROFILL, j YEAR, k LONGBLOB, l INET6, m TIME(6), n JSON, o CHAR(5)
           CHARACTER SET utf16 COMMENT 'line
one', p TINYINT CHECK (p > 0), q DATE, r UUID, s TEXT, KEY (c), UNIQUE KEY u (d))"#,
        r#"INSERT INTO "a""b`c" VALUES (0, 0.1, 1e300/3, 'é''\"', 18446744073709551615, 'y', 'x,y',
           '2020-02-02 01:02:03.456', '2020-10-25 02:30:00', -1.5, 0, x'00ff275c', '::1', '-100:00:00.5', '{"a": [1]}',
           'ab', 1, '2024-02-29', '123e4567-e89b-12d3-a456-426655440000', ''),
           (9, -0.0, 5e-324, '', 0, NULL, '', NULL, NULL, NULL, 2155, '', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL)"#,
        "SET sql_mode = ''",
        r#"INSERT INTO `a"b``c` (e, q, s) VALUES ('nothing', '0000-00-00', '\0\n\Z')"#,
        // Without a key the rows have the order in which they came.
        "CREATE TEMPORARY TABLE plain (n INT, KEY (n))",
        "INSERT INTO plain VALUES (3), (1), (2), (1)",
        "CREATE TEMPORARY TABLE otherdb.plain LIKE plain",
        "CREATE TEMPORARY TABLE t AS SELECT 'hides the other' AS what",
        "DELETE FROM `a\"b``c` WHERE id > 9",
        "SET autocommit = 0, auto_increment_increment = 5, auto_increment_offset = 3",
        "SET SESSION TRANSACTION READ ONLY",
    ] {
        both(text).await;
    }
    for round in 0..3 {
        assert!(b.try_execute(SERVED).await.is_ok(), "round {round}: {}", bench.proxy.log());
        for table in ["`a\"b``c`", "plain", "t", "otherdb.plain"] {
            both(&format!("SHOW CREATE TABLE {table}")).await;
            both(&format!("CHECKSUM TABLE {table}")).await;
            both(&format!("SELECT * FROM {table}")).await;
        }
        both("SHOW VARIABLES WHERE variable_name IN ('autocommit', 'character_set_results', 'sql_mode', 'time_zone', \
            'group_concat_max_len', 'innodb_strict_mode', 'check_constraint_checks', 'auto_increment_increment', \
            'auto_increment_offset', 'max_statement_time', 'tx_read_only', 'collation_connection')").await;
        both("INSERT INTO `a\"b``c` (c) VALUES ('next')").await;
        both("SELECT LAST_INSERT_ID()").await;
        both("INSERT INTO plain VALUES (0)").await;
        both("COMMIT").await;
    }
    assert_eq!(b.errno("SELECT * FROM plain").await, 1146);
    assert_eq!(b.errno("SELECT what FROM t").await, 1054, "another's table hides the one that is there");
    both("DROP TABLE plain, otherdb.plain, t, `a\"b``c`").await;
    b.execute(SERVED).await;
    both("SELECT COUNT(*) FROM t").await;
}

/// Four clients with a table each and one server connection: each is served, and pinned only while others do not wait.
#[tokio::test]
async fn clients_with_tables_share_a_connection() {
    let bench = bench().await;
    let mut clients = Vec::new();
    for n in 0..4 {
        let client = bench.proxy.mysql().await;
        client.execute("CREATE TEMPORARY TABLE mine (n INT)").await;
        client.execute(&format!("INSERT INTO mine VALUES ({n})")).await;
        clients.push(client);
    }
    for round in 0..3 {
        for (n, client) in clients.iter().enumerate() {
            assert_eq!(client.scalar::<usize>("SELECT n FROM mine").await, n, "round {round}");
        }
    }
    assert_eq!(bench.proxy.metric("pinion_database_connections_currently_session_pinned", &[]).await, 1.0);
    assert_eq!(bench.db.backends().await, 1);
    let carried = bench.proxy.metric("pinion_temporary_tables_carried_total", &[]).await;
    assert_eq!(carried, (clients.len() * 4 - 1) as f64, "once for each turn of another");
    // While nobody waits there is nothing to be made again, however long the client rests.
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(150)).await;
        clients[3].scalar::<usize>("SELECT n FROM mine").await;
    }
    assert_eq!(bench.proxy.metric("pinion_temporary_tables_carried_total", &[]).await, carried);
}

/// One that is busy is passed over, however long it takes, and asked again once it is not.
#[tokio::test]
async fn others_are_asked_while_one_is_busy() {
    let db = Server::mariadb().start().await;
    let proxy = Proxy::in_front_of(&db).max_connections(2).start().await;
    let (busy, idle, b) = (proxy.mysql().await, proxy.mysql().await, proxy.mysql().await);
    for client in [&busy, &idle] {
        client.execute("CREATE TEMPORARY TABLE a (n INT)").await;
    }
    let mut sleeper = Box::pin(busy.execute("SELECT SLEEP(600)"));
    assert!(tokio::time::timeout(Duration::from_millis(150), &mut sleeper).await.is_err());
    b.execute(SERVED).await;
    assert_eq!(idle.scalar::<u32>("SELECT COUNT(*) FROM a").await, 0);
    drop(sleeper);
}

/// A statement that fails is no reason to stay.
#[tokio::test]
async fn errors_keep_no_tables() {
    let bench = bench().await;
    for fails in ["SELECT * FROM nowhere", "DROP TABLE nowhere", "INSERT INTO a VALUES (0 / 'x')"] {
        let (a, b) = (bench.proxy.mysql().await, bench.proxy.mysql().await);
        a.execute("CREATE TEMPORARY TABLE a (n INT)").await;
        assert!(a.try_execute(fails).await.is_err(), "{fails}");
        assert!(b.try_execute(SERVED).await.is_ok(), "behind {fails}");
        assert_eq!(a.scalar::<u32>("SELECT COUNT(*) FROM a").await, 0);
        a.close().await;
        b.close().await;
    }
}

/// What may not come out the same, or of which not all is known, keeps its connection.
#[tokio::test]
async fn what_cannot_go_along_keeps_its_connection() {
    let bench = bench_with("connection_borrow_timeout = \"500ms\"").await;
    let direct = bench.db.direct().await;
    direct.execute("USE appdb").await;
    direct.execute("CREATE FUNCTION one() RETURNS INT RETURN 1").await;
    direct.execute("CREATE PROCEDURE makes() CREATE TEMPORARY TABLE made (n INT)").await;
    let table = "CREATE TEMPORARY TABLE a (n INT)";
    for script in [
        &["CREATE TEMPORARY TABLE a (n INT) ENGINE=MEMORY"][..],
        &["CREATE TEMPORARY TABLE a (n INT) ENGINE=Aria"],
        &["CREATE TEMPORARY TABLE a (n INT, m INT AS (n + 1))"],
        &["CREATE TEMPORARY TABLE a (p POINT)"],
        &["CREATE TEMPORARY SEQUENCE a"],
        &["CREATE TEMPORARY TABLE `é` (n INT)"],
        &[table, "ALTER TABLE a RENAME TO b"],
        &[table, "CALL makes()"],
        &[table, "SELECT one()"],
        &[table, "SELECT GET_LOCK('l', 0)"],
        &[table, "HANDLER a OPEN"],
        &[table, "LOCK TABLES a READ"],
        &[table, "START TRANSACTION READ WRITE"],
        &[table, "SET @v = RAND()"],
        &[table, "SET TRANSACTION READ ONLY"],
        &["CREATE TEMPORARY TABLE a SELECT seq FROM seq_1_to_10001"],
        &["CREATE TEMPORARY TABLE a SELECT REPEAT('x', 131072) AS x"],
        &["CREATE TEMPORARY TABLE a (n INT); SELECT 1"],
        // The server has forgotten how many were made.
        &[table, "FLUSH STATUS"],
    ] {
        let (a, b) = (bench.proxy.mysql().await, bench.proxy.mysql().await);
        for text in script {
            a.rows(text).await;
        }
        assert!(b.try_execute(SERVED).await.is_err(), "{script:?}");
        a.close().await;
        b.execute(SERVED).await;
        b.close().await;
    }
    // Once the reason is gone they do.
    let (a, b) = (bench.proxy.mysql().await, bench.proxy.mysql().await);
    a.execute("CREATE TEMPORARY TABLE a SELECT seq FROM seq_1_to_10001").await;
    assert_eq!(b.errno(SERVED).await, 9501);
    a.execute("DELETE FROM a LIMIT 1").await;
    b.execute(SERVED).await;
    assert_eq!(a.scalar::<u32>("SELECT COUNT(*) FROM a").await, 10_000);
}

/// `max_carried_table_bytes`, and profile `rds`.
#[tokio::test]
async fn the_setting_bounds_what_goes_along() {
    let wait = "connection_borrow_timeout = \"500ms\"";
    for (pool, rds, goes) in [
        (format!("{wait}\ninit_query = \"SET @a = 1\""), false, false),
        (format!("{wait}\nmax_carried_table_bytes = 0"), false, false),
        (format!("{wait}\nmax_carried_table_bytes = 2000"), false, false),
        (format!("{wait}\nmax_carried_table_bytes = 6000"), false, true),
        (wait.to_owned(), true, false),
    ] {
        let db = Server::mariadb().start().await;
        let proxy = Proxy::in_front_of(&db).max_connections(1).pool(&pool);
        let proxy = if rds { proxy.profile("rds") } else { proxy }.start().await;
        let (a, b) = (proxy.mysql().await, proxy.mysql().await);
        a.execute("CREATE TEMPORARY TABLE a AS SELECT REPEAT('x', 1000) AS x").await;
        assert_eq!(b.try_execute(SERVED).await.is_ok(), goes, "{pool}");
        assert_eq!(a.scalar::<u32>("SELECT LENGTH(x) FROM a").await, 1000);
    }
}

/// Whatever begins the session anew, or ends it, ends the tables, wherever they are.
#[tokio::test]
async fn tables_end_with_their_session() {
    let bench = bench().await;
    let b = bench.proxy.mysql().await;
    for login in [false, true] {
        let mut a = RawMySql::connect(&bench.proxy.address()).await;
        a.ok("CREATE TEMPORARY TABLE mine (n INT)").await;
        b.execute(SERVED).await;
        match login {
            true => {
                let address = bench.proxy.address();
                a.change_user(&Login::new(&address, capability::NEW)).await.unwrap();
            }
            false => drop(a.simple(command::RESET_CONNECTION, b"").await.unwrap()),
        }
        assert_eq!(a.error("SELECT * FROM mine").await.code, 1146);
        b.execute(SERVED).await;
    }
    let a = bench.proxy.mysql().await;
    a.execute("CREATE TEMPORARY TABLE mine (n INT)").await;
    b.execute(SERVED).await;
    a.close().await;
    assert_eq!(b.errno("SELECT * FROM mine").await, 1146);
    assert_eq!(bench.proxy.metric("pinion_database_connections_currently_session_pinned", &[]).await, 0.0);
}

/// Tables that are nowhere survive the loss of every server connection.
#[tokio::test]
async fn tables_on_the_way_survive_the_server() {
    let mut bench = bench_with("connection_borrow_timeout = \"20s\"").await;
    let (a, b) = (bench.proxy.mysql().await, bench.proxy.mysql().await);
    a.execute("CREATE TEMPORARY TABLE mine AS SELECT 7 AS n").await;
    b.execute(SERVED).await;
    bench.db.restart().await;
    until("the proxy has found the server again", async || b.try_execute(SERVED).await.is_ok()).await;
    assert_eq!(a.scalar::<u32>("SELECT n FROM mine").await, 7);
}

/// Row `StateLost`: what cannot be made again is not taken for made: the session ends, as one that has lost its server.
#[tokio::test]
async fn tables_that_cannot_be_made_again_end_the_session() {
    let bench = bench().await;
    let b = bench.proxy.mysql().await;
    let direct = bench.db.direct().await;
    for begins_anew in [true, false] {
        let mut a = RawMySql::connect(&bench.proxy.address()).await;
        a.ok("CREATE TEMPORARY TABLE otherdb.mine (n INT)").await;
        b.execute(SERVED).await;
        direct.execute("REVOKE ALL ON otherdb.* FROM app@'%'").await;
        if begins_anew {
            // Behind a transaction that no server has begun, too.
            a.ok("BEGIN").await;
            a.simple(command::RESET_CONNECTION, b"").await.unwrap();
            assert_eq!(a.scalar("SELECT 5").await, "5");
        } else {
            let error = a.error("SELECT 5").await;
            assert_eq!((error.code, error.state.as_str()), (1105, "HY000"), "{error:?}");
            assert_eq!(error.message, "The temporary tables of this session could not be made again.");
            assert!(a.read().await.is_none(), "the connection stays open");
        }
        b.execute(SERVED).await;
        direct.execute("GRANT ALL ON otherdb.* TO app@'%'").await;
    }
}

/// Values as wide as their types, defaults and conditions that are read under the settings of who wrote them, settings
/// under which a table is hard to read: each goes along or keeps its connection, and nothing is lost or changed.
#[tokio::test]
async fn odd_tables_are_as_they_were() {
    let bench = bench_with("connection_borrow_timeout = \"500ms\"").await;
    for (goes, script) in [
        (
            true,
            &["CREATE TEMPORARY TABLE a (n DOUBLE)", "INSERT INTO a VALUES (-1.1102230246251565e-16)"][..],
        ),
        (true, &["CREATE TEMPORARY TABLE a (n FLOAT)", "INSERT INTO a VALUES (-1.1e-10)"]),
        (true, &["CREATE TEMPORARY TABLE a (n DOUBLE(10,2))", "INSERT INTO a VALUES (-99999999.99)"]),
        (
            true,
            &[
                "CREATE TEMPORARY TABLE a (n INT(3), m DOUBLE)",
                "INSERT INTO a VALUES (-2147483648, -2.5e-300)",
            ],
        ),
        (
            true,
            &[
                "CREATE TEMPORARY TABLE a (n TIME(6), m DATETIME(6))",
                "INSERT INTO a VALUES ('-838:59:59.999999', '9999-12-31 23:59:59.999999')",
            ],
        ),
        (
            true,
            &[
                "CREATE TEMPORARY TABLE a (n INT DEFAULT -5 COMMENT 'é', m TIMESTAMP DEFAULT NOW() ON UPDATE NOW())",
            ],
        ),
        (true, &["CREATE TEMPORARY TABLE a (n VARCHAR(9) DEFAULT 'é', m JSON, CHECK (n <> m))"]),
        (true, &["CREATE TEMPORARY TABLE a (n INT)", "SET NAMES utf8mb4 COLLATE utf8mb4_bin"]),
        (true, &["CREATE TEMPORARY TABLE a (n INT)", "SET max_statement_time = 0.5, sql_safe_updates = 1"]),
        (true, &["CREATE TEMPORARY TABLE a (n INT)", "SELECT * FROM nowhere", "SET sql_mode = 'ORACLE'"]),
        (false, &["CREATE TEMPORARY TABLE a (n VARBINARY(4) DEFAULT x'FF00')"]),
        (false, &["CREATE TEMPORARY TABLE a (n ENUM('é', x'ff') CHARACTER SET binary)"]),
        (false, &["CREATE TEMPORARY TABLE a (n VARBINARY(4) DEFAULT (CONCAT('é')))"]),
        (false, &["CREATE TEMPORARY TABLE a (n VARCHAR(4) CHECK (n <> 'é'))"]),
        (false, &["CREATE TEMPORARY TABLE a (n INT)", "SET character_set_results = ucs2"]),
        (false, &["CREATE TEMPORARY TABLE a (n INT)", "SET collation_connection = ucs2_general_ci"]),
        (false, &["CREATE TEMPORARY TABLE a (n INT)", "SET NAMES latin1"]),
        (false, &["CREATE TEMPORARY TABLE a (n INT)", "SET sql_select_limit = 0"]),
    ] {
        let (a, b, direct) = (bench.proxy.mysql().await, bench.proxy.mysql().await, bench.direct().await);
        for text in script {
            assert_eq!(a.try_execute(text).await.is_ok(), direct.try_execute(text).await.is_ok(), "{text}");
        }
        assert_eq!(b.try_execute(SERVED).await.is_ok(), goes, "{script:?}");
        for reads in [
            "SET character_set_results = utf8mb4, sql_select_limit = DEFAULT",
            "SHOW CREATE TABLE a",
            "SELECT * FROM a",
            "SELECT @@collation_connection, @@sql_mode, @@max_statement_time",
            "CHECKSUM TABLE a",
        ] {
            assert_eq!(a.rows(reads).await, direct.rows(reads).await, "{reads} behind {script:?}");
        }
        a.close().await;
        b.execute(SERVED).await;
        b.close().await;
        direct.close().await;
    }
}

/// A trigger of a table that the client writes to makes a temporary table of its own: the client keeps both.
#[tokio::test]
async fn tables_of_triggers_are_not_left_behind() {
    let bench = bench_with("connection_borrow_timeout = \"500ms\"").await;
    let direct = bench.db.direct().await;
    direct.execute("USE appdb").await;
    direct.execute("CREATE TABLE watched (n INT)").await;
    let makes = "BEGIN CREATE TEMPORARY TABLE made SELECT 5 AS n; END";
    direct.execute(&format!("CREATE TRIGGER makes AFTER INSERT ON watched FOR EACH ROW {makes}")).await;
    let (a, b) = (bench.proxy.mysql().await, bench.proxy.mysql().await);
    a.execute("CREATE TEMPORARY TABLE mine (n INT)").await;
    a.execute("INSERT INTO watched VALUES (1)").await;
    assert_eq!(b.errno(SERVED).await, 9501, "it went and left one behind");
    assert_eq!(a.scalar::<u32>("SELECT n FROM made").await, 5);
}
