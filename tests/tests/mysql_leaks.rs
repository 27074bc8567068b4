//! What one MySQL client does by unusual means must never reach the next client of its server connection.
#![allow(clippy::unwrap_used)]

use pinion_tests::{
    MariaDb, Proxy, RawMySql, Server,
    raw_mysql::{Login, Reply, capability, command, packet},
    until,
};

struct Bench {
    db: MariaDb,
    proxy: Proxy,
}

/// One server connection for everybody.
async fn bench() -> Bench {
    let db = Server::mariadb().start().await;
    let builder = Proxy::in_front_of(&db).max_connections(1).pool("connection_borrow_timeout = \"100ms\"");
    let proxy = builder.start().await;
    Bench { db, proxy }
}

const FLAGS: u64 = capability::NEW | capability::MULTI_STATEMENTS | capability::LOCAL_FILES;

/// All that a session could find of another.
const QUESTION: &str = "SELECT concat_ws('|', @leak, @@time_zone, @@sql_mode = @@global.sql_mode, database(), \
    IS_FREE_LOCK('leak'), @@autocommit, @@in_transaction, @@character_set_client, @@collation_connection, \
    @@tx_isolation, @@sql_safe_updates, \
    (SELECT count(*) FROM information_schema.tables WHERE table_name = 'leak'), \
    (SELECT count(*) FROM appdb.t WHERE v = 'leak'))";
const CLEAN: &str = "+00:00|1|appdb|1|ON|0|utf8mb4|utf8mb4_general_ci|REPEATABLE-READ|OFF|0|0";

impl Bench {
    async fn client(&self) -> RawMySql {
        RawMySql::connect_with(&self.proxy.address(), FLAGS).await
    }

    /// Asserts that a client which is there while A is finds nothing of A, should it be served at all; true when it was.
    async fn neighbour_is_clean(&self, b: &mut RawMySql, what: &str) -> bool {
        match &b.query(QUESTION).await[..] {
            [Reply::Failed(error)] => {
                assert_eq!(error.code, 9501, "{what}: {error:?}");
                false
            }
            [Reply::Rows(rows)] => {
                assert_eq!(rows.texts(), [[Some(CLEAN.to_owned())]], "beside {what}");
                true
            }
            other => panic!("{what}: {other:?}"),
        }
    }

    /// Asserts the same of a client that comes after all others have gone.
    async fn next_is_clean(&self, what: &str) {
        let mut next = self.client().await;
        let mut seen = String::new();
        until(&format!("the next client is served after {what}"), async || {
            match &next.query(QUESTION).await[..] {
                [Reply::Rows(rows)] => seen = format!("{:?}", rows.texts()),
                other => assert!(format!("{other:?}").contains("9501"), "{what}: {other:?}"),
            }
            !seen.is_empty()
        })
        .await;
        assert_eq!(seen, format!("[[Some({CLEAN:?})]]"), "after {what}");
    }

    /// A does `attack` and stays, then vanishes: neither then nor now does another client find anything. True when the
    /// neighbour was served meanwhile.
    async fn attack(&self, what: &str, attack: impl AsyncFnOnce(&mut RawMySql)) -> bool {
        let mut b = self.client().await;
        let mut a = self.client().await;
        attack(&mut a).await;
        let served = self.neighbour_is_clean(&mut b, what).await;
        drop((a, b));
        self.next_is_clean(what).await;
        served
    }

    /// The same with statements, which may be any bytes.
    async fn statements(&self, statements: &[&[u8]]) -> bool {
        let what =
            format!("{:?}", statements.iter().map(|s| s.escape_ascii().to_string()).collect::<Vec<_>>());
        self.attack(&what[..what.len().min(300)], async |a| {
            for statement in statements {
                a.command(command::QUERY, statement).await;
                a.read_replies().await;
            }
        })
        .await
    }
}

#[tokio::test]
async fn errors_in_the_middle_of_what_changed_state() {
    let bench = bench().await;
    let direct = bench.db.direct().await;
    for sql in [
        "USE appdb",
        "CREATE TABLE fires (n int PRIMARY KEY)",
        "CREATE TRIGGER fires_one BEFORE INSERT ON fires FOR EACH ROW SET @leak = NEW.n",
        "CREATE FUNCTION fails() RETURNS int BEGIN SET @leak = 1; SIGNAL SQLSTATE '45000'; RETURN 1; END",
        "CREATE PROCEDURE fails_late() BEGIN SET time_zone = '+05:00'; SIGNAL SQLSTATE '45000'; END",
        "CREATE VIEW fails_too AS SELECT fails() AS f",
        "GRANT ALL ON appdb.* TO app@'%'",
        "INSERT INTO fires VALUES (1)",
    ] {
        direct.execute(sql).await;
    }
    let mut served = 0;
    for texts in [
        &["SET @leak = 1; SELEC"][..],
        &["SET time_zone = '+05:00'; SELECT no_such_column; SELECT 1"],
        &["USE otherdb; SELECT * FROM no_such_table"],
        &["SET sql_mode = 'ANSI_QUOTES'; INSERT INTO t (id) VALUES (1)"],
        &["SET NAMES latin1; SELEC"],
        &["BEGIN; INSERT INTO t (v) VALUES ('leak'); SELEC"],
        &["SET autocommit = 0; INSERT INTO t (v) VALUES ('leak'); SELEC"],
        &["CREATE TEMPORARY TABLE leak (n int); INSERT INTO leak VALUES (no_such_column)"],
        &["SELECT GET_LOCK('leak', 0); SELECT (SELECT 1 UNION SELECT 2)"],
        &["SET TRANSACTION ISOLATION LEVEL SERIALIZABLE; SELEC"],
        // Half of it may be done.
        &["SET @leak = 1, no_such = 2"],
        &["SET time_zone = '+05:00', no_such = 2"],
        &["SET @leak = 1, sql_mode = 'no such mode'"],
        &["SET time_zone = '+05:00', @leak = fails()"],
        &["SET NAMES latin1, character_set_client = ucs2"],
        // Code that no text shows, and an error in place of the server's report.
        &["INSERT INTO fires VALUES (1)"],
        &["INSERT INTO fires VALUES (2), (3), (2)"],
        &["SELECT fails()"],
        &["SELECT f FROM fails_too"],
        &["CALL fails_late()"],
        &["UPDATE t SET v = fails() WHERE id = 1"],
        &["SELECT 1", "CALL no_such_procedure()"],
    ] {
        let texts: Vec<&[u8]> = texts.iter().map(|text| text.as_bytes()).collect();
        served += usize::from(bench.statements(&texts).await);
    }
    assert!(served >= 6, "{served}");
}

/// Trail bytes that look like a backslash or a quote hide one, or do not.
#[tokio::test]
async fn texts_in_character_sets_with_trail_bytes() {
    let bench = bench().await;
    let lock: &[u8] = b", GET_LOCK('leak', 0)";
    for (charset, letter) in [
        ("sjis", b"\x83\\"),
        ("cp932", b"\x95\\"),
        ("gbk", b"\xbf\\"),
        ("big5", b"\xa4\\"),
        ("gb2312", b"\xb0\xa1"),
    ] {
        for set in [
            format!("SET NAMES {charset}"),
            format!("SET NAMES '{charset}', @x = 1"),
            format!("SET CHARACTER SET {charset}"),
            format!("SET character_set_client = {charset}"),
            format!("SET @@session.character_set_client = {charset}"),
            format!("SET @@character_set_client = {charset}"),
            format!("/*!40101 SET NAMES {charset} */"),
            format!("SELECT 1; SET NAMES {charset}"),
            format!("SET STATEMENT max_statement_time = 0 FOR SET NAMES {charset}"),
        ] {
            // Whoever takes the letter for two reads one string here, and a call where there is none there.
            let hidden = [b"SELECT '", &letter[..], b"'", lock, b" -- '"].concat();
            let escaped = [b"SELECT '\\\\", &letter[..], b"'", lock, b" -- '"].concat();
            let not_escaped = [b"SELECT '", &letter[..], b"\\'", lock, b" -- '"].concat();
            bench.statements(&[set.as_bytes(), &hidden]).await;
            bench.statements(&[set.as_bytes(), &escaped]).await;
            bench.statements(&[set.as_bytes(), &not_escaped]).await;
            // In the same text the server reads on in the new way.
            let together = [set.as_bytes(), b"; ", &hidden].concat();
            bench.statements(&[&together]).await;
        }
        // Prepared, and by the login.
        let set = format!("SET NAMES {charset}");
        let hidden = [b"SELECT '", &letter[..], b"'", lock, b" -- '"].concat();
        bench
            .attack(&format!("{set}, prepared"), async |a| {
                let prepared = a.prepare(&set).await.unwrap();
                a.execute(prepared.id, 0, &[]).await;
                a.command(command::QUERY, &hidden).await;
                a.read_replies().await;
            })
            .await;
    }
    // Most of them did take the lock.
    let seen = bench.proxy.metric("pinion_pins_total", &[("reason", "advisory-lock")]).await;
    assert!(seen > 40.0, "{seen}");
}

#[tokio::test]
async fn a_login_in_a_character_set_with_trail_bytes() {
    let bench = bench().await;
    for (collation, letter) in [(1, b"\xa4\\"), (13, b"\x83\\"), (28, b"\xbf\\"), (95, b"\x95\\")] {
        let mut a = RawMySql::open(&bench.proxy.address()).await.unwrap();
        let login = Login { collation, ..Login::new(&bench.proxy.address(), FLAGS) };
        a.login(&bench.proxy.address(), &login).await.unwrap();
        let hidden = [b"SELECT '", &letter[..], b"', GET_LOCK('leak', 0) -- '"].concat();
        a.command(command::QUERY, &hidden).await;
        let replies = a.read_replies().await;
        let [Reply::Rows(rows)] = &replies[..] else { panic!("{replies:?}") };
        assert_eq!(rows.columns.len(), 2);
        let pinned = bench.proxy.metric("pinion_pins_total", &[("reason", "advisory-lock")]).await;
        assert!(pinned > 0.0, "{collation}: the lock was not seen");
        drop(a);
        bench.next_is_clean("a login in another character set").await;
    }
}

#[tokio::test]
async fn modes_that_change_within_a_text() {
    let bench = bench().await;
    for texts in [
        &[r"SET sql_mode = 'NO_BACKSLASH_ESCAPES'; SELECT '\', GET_LOCK('leak', 0) -- '"][..],
        &[r"SET sql_mode = 'NO_BACKSLASH_ESCAPES'; SELECT '\', @leak := 1 -- '"],
        &["SET sql_mode = 'NO_BACKSLASH_ESCAPES'; SELECT '\\', @leak := 1 -- '\n; SET sql_mode = DEFAULT"],
        &[
            "SET @@sql_mode = 'NO_BACKSLASH_ESCAPES'; SELECT '\\', @leak := 1 -- '\n; SET @@sql_mode = DEFAULT",
        ],
        &["SET @@sql_mode = 'NO_BACKSLASH_ESCAPES'", r"SELECT '\', @leak := 1 -- '"],
        &["SET @@session.sql_mode = 'NO_BACKSLASH_ESCAPES'", r"SELECT '\', @leak := 1 -- '"],
        &["SET sql_mode = 'NO_BACKSLASH_ESCAPES'", r"SELECT '\', @leak := 1 -- '", "SET sql_mode = DEFAULT"],
        &[r#"SET sql_mode = 'ANSI_QUOTES'; SELECT 1 AS "'", @leak := 1, 2 AS "'""#],
        &["SET sql_mode = 'ANSI_QUOTES'", r#"SELECT 1 AS "'", @leak := 1, 2 AS "'""#],
        &["SET sql_mode = 'ANSI_QUOTES'", r#"SELECT 1 AS "\", @leak := 1, 2 AS "\""#],
        &["SET STATEMENT sql_mode = 'NO_BACKSLASH_ESCAPES' FOR SELECT 1", r"SELECT '\'', @leak := 1, '\''"],
        &["SET STATEMENT sql_mode = 'ANSI_QUOTES' FOR SELECT 1; SELECT 1", r#"SELECT "'", @leak := 1, "'""#],
        &[
            "SET sql_mode = (SELECT concat(@@sql_mode, ',NO_BACKSLASH_ESCAPES'))",
            r"SELECT '\', @leak := 1 -- '",
        ],
        &["EXECUTE IMMEDIATE 'SET sql_mode = \"NO_BACKSLASH_ESCAPES\"'", r"SELECT '\', @leak := 1 -- '"],
        &["/*!50000 SET sql_mode = 'NO_BACKSLASH_ESCAPES' */", r"SELECT '\', @leak := 1 -- '"],
        &["SET sql_mode = 'NO_BACKSLASH_ESCAPES'; SELEC", r"SELECT '\', @leak := 1 -- '"],
        &["SET sql_mode = 'NO_BACKSLASH_ESCAPES'", r"SET @a = '\'", "SET sql_mode = ''"],
        &["SET sql_mode = 'NO_BACKSLASH_ESCAPES'", r"SET @a = '\' ', @leak := 1 -- '", "SET sql_mode = ''"],
        &["SET sql_mode = 'IGNORE_SPACE'", "SELECT GET_LOCK  ('leak', 0)"],
        &["SET sql_mode = 'ORACLE'", "SELECT GET_LOCK('leak', 0)", "BEGIN SELECT 1 INTO @leak; END"],
        &["SET sql_mode = 'MSSQL'", "SELECT 1 AS [a], @leak := 1"],
    ] {
        let texts: Vec<&[u8]> = texts.iter().map(|text| text.as_bytes()).collect();
        bench.statements(&texts).await;
    }
}

/// The victim wears what the attacker does, so that it gets the connection as it is.
#[tokio::test]
async fn modes_that_change_within_a_text_beside_one_who_has_them_too() {
    let bench = bench().await;
    for (mode, attack) in [
        ("SET sql_mode = 'NO_BACKSLASH_ESCAPES'", r"; SELECT '\', @leak := 1 -- '"),
        ("SET sql_mode = 'NO_BACKSLASH_ESCAPES'", r"; SELECT '\', GET_LOCK('leak', 0) -- '"),
        ("SET sql_mode = 'ANSI_QUOTES'", r#"; SELECT 1 AS "'", @leak := 1, 2 AS "'""#),
        ("SET NAMES sjis", "; SELECT 'ﾃ\\', @leak := 1 -- '"),
    ] {
        let (mut a, mut b) = (bench.client().await, bench.client().await);
        b.query(mode).await;
        a.query(&[mode, attack].concat()).await;
        match &b.query("SELECT @leak IS NULL, IS_FREE_LOCK('leak')").await[..] {
            [Reply::Failed(error)] => assert_eq!(error.code, 9501, "{attack}: {error:?}"),
            [Reply::Rows(rows)] => {
                assert_eq!(rows.texts(), [["1", "1"].map(|one| Some(one.to_owned()))], "{attack}")
            }
            other => panic!("{attack}: {other:?}"),
        }
        drop((a, b));
        bench.next_is_clean(attack).await;
    }
}

/// No server reports this form, and no text shows it.
#[tokio::test]
async fn a_user_variable_that_a_trigger_has_set() {
    let bench = bench().await;
    let direct = bench.db.direct().await;
    direct.execute("CREATE TABLE traps (n int)").await;
    direct.execute("CREATE TRIGGER trap BEFORE INSERT ON traps FOR EACH ROW SELECT NEW.n INTO @leak").await;
    let (mut a, mut b) = (bench.client().await, bench.client().await);
    for ask in ["", "BEGIN", "BEGIN"] {
        a.ok("INSERT INTO traps VALUES (7)").await;
        if !ask.is_empty() {
            b.ok(ask).await;
        }
        assert_eq!(b.rows("SELECT @leak, @LEAK + 1").await, [[None, None]], "{ask}");
        let prepared = b.prepare("SELECT @leak").await.unwrap();
        let [Reply::Rows(rows)] = &b.execute(prepared.id, 0, &[]).await[..] else { panic!("rows") };
        assert_eq!(rows.values(), [[None]], "{ask}, prepared");
        b.ok("ROLLBACK").await;
        // Its own stays.
        b.ok("SET @leak = 'own'").await;
        a.ok("INSERT INTO traps VALUES (8)").await;
        assert_eq!(b.scalar("SELECT @leak").await, "own");
        b.simple(command::RESET_CONNECTION, &[]).await.unwrap();
    }
}

/// One client's constants are made again on another connection in whatever mode it has by then.
#[tokio::test]
async fn constants_mean_the_same_wherever_they_are_made_again() {
    let bench = bench().await;
    for script in [
        &["SET sql_mode = 'NO_BACKSLASH_ESCAPES'", r"SET @a = '\'", "SET sql_mode = ''"][..],
        &["SET sql_mode = 'NO_BACKSLASH_ESCAPES'", r"SET @a = '\' ' , @leak := 1 -- '", "SET sql_mode = ''"],
        &[r"SET @a = 'tab\t', @b = '\\'", "SET sql_mode = 'NO_BACKSLASH_ESCAPES'"],
        &["SET @a = \"it's\"", "SET sql_mode = 'ANSI_QUOTES'", "SET sql_mode = ''"],
        &["SET @a = \"plain\", @b = 'it''s'", "SET sql_mode = 'ANSI_QUOTES'", "SET @a = 'again'"],
        &["SET sql_mode = 'ANSI_QUOTES'", "SET @a = 'say \"x\"'", "SET sql_mode = ''"],
        &["SET NAMES latin2", "SET @a = 'ab', @b = 'a' 'b', @c = _latin1'abc'", "SET NAMES utf8mb4"],
        &["SET NAMES latin1", "SET @a = '\u{e9}'", "SET NAMES utf8mb4", "SET @b = 'žluť'"],
    ] {
        let mut direct = RawMySql::connect_with(&bench.db.address(), FLAGS).await;
        let (mut a, mut b) = (bench.client().await, bench.client().await);
        for set in script {
            direct.ok(set).await;
            a.ok(set).await;
            bench.neighbour_is_clean(&mut b, set).await;
            let values = "SELECT hex(@a), hex(@b), hex(@c), @leak";
            assert_eq!(a.rows(values).await, direct.rows(values).await, "{script:?} after {set}");
        }
        drop((a, b));
        bench.next_is_clean(&format!("{script:?}")).await;
    }
}

/// Longer than what is read of a statement.
#[tokio::test]
async fn long_statements_that_set_state() {
    let bench = bench().await;
    let long = "x".repeat(5 << 20);
    for text in [
        format!("SET @leak = 1 /* {long} */"),
        format!("/* {long} */ SET time_zone = '+05:00'"),
        format!("SELECT '{long}', @leak := 1"),
        format!("SELECT GET_LOCK('leak', 0), '{long}'"),
        format!("CREATE TEMPORARY TABLE leak (n int) COMMENT '{}' /* {long} */", "c"),
        format!("USE otherdb /* {long} */"),
        format!("BEGIN; INSERT INTO t (v) VALUES ('leak'), ('{long}')"),
        format!("SET sql_mode = 'NO_BACKSLASH_ESCAPES' /* {long} */; SELECT '\\', @leak := 1 -- '"),
        format!("SELECT /*! @leak := 1, */ '{}'", "x".repeat(2 << 20)),
        format!("SET @leak = '{}'", "x".repeat(64 << 10)),
    ] {
        bench.statements(&[text.as_bytes()]).await;
    }
}

#[tokio::test]
async fn prepared_statements_that_set_state() {
    let bench = bench().await;
    for (text, parameters) in [
        ("SET @leak = 1", &[][..]),
        ("SET @leak = ?", &[Some("1")]),
        ("SET @leak := ?, @other = ?", &[Some("1"), None]),
        ("SET time_zone = ?", &[Some("+05:00")]),
        ("SET @@time_zone = ?", &[Some("+05:00")]),
        ("SET SESSION sql_safe_updates = ?", &[Some("1")]),
        ("SET sql_mode = ?", &[Some("NO_BACKSLASH_ESCAPES")]),
        ("SET NAMES latin1", &[]),
        ("SET autocommit = 0", &[]),
        ("SELECT ? INTO @leak", &[Some("1")]),
        ("SELECT @leak := ?", &[Some("1")]),
        ("SELECT GET_LOCK(?, 0)", &[Some("leak")]),
        ("DO GET_LOCK(?, 0)", &[Some("leak")]),
        ("CREATE TEMPORARY TABLE leak (n int)", &[]),
        ("CREATE TEMPORARY TABLE leak AS SELECT ? AS n", &[Some("1")]),
        ("CREATE TEMPORARY TABLE t AS SELECT 'leak' AS v", &[]),
        ("LOCK TABLES t WRITE", &[]),
        ("FLUSH TABLES WITH READ LOCK", &[]),
        ("BEGIN", &[]),
        ("START TRANSACTION READ ONLY", &[]),
        ("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE", &[]),
        ("SET STATEMENT time_zone = '+05:00' FOR SELECT @leak := ?", &[Some("1")]),
        ("EXECUTE IMMEDIATE ?", &[Some("SET @leak = 1")]),
        ("CALL no_such_procedure(?)", &[Some("1")]),
        ("USE otherdb", &[]),
    ] {
        bench
            .attack(text, async |a| {
                // Some cannot be prepared; then there is nothing to leak.
                if let Ok(prepared) = a.prepare(text).await {
                    a.execute(prepared.id, 0, parameters).await;
                    a.execute(prepared.id, 0, parameters).await;
                }
            })
            .await;
    }
}

#[tokio::test]
async fn statements_of_others_cannot_be_used() {
    let bench = bench().await;
    let (mut a, mut b) = (bench.client().await, bench.client().await);
    let mine = a.prepare("SELECT 'secret', ?").await.unwrap();
    a.execute(mine.id, 0, &[Some("1")]).await;
    a.send_long_data(mine.id, 0, b"secret").await;
    a.simple(command::STMT_RESET, &mine.id.to_le_bytes()).await.unwrap();
    for id in (0..20).chain([u32::MAX]) {
        let replies = b.execute(id, 0, &[Some("1")]).await;
        assert!(matches!(&replies[..], [Reply::Failed(error)] if error.code == 1243), "{id}: {replies:?}");
        let (rows, end) = b.fetch(id, 1).await;
        assert!(rows.is_empty() && end.is_err(), "{id}");
        b.send_long_data(id, 0, b"from b").await;
        b.close_statement(id).await;
    }
    let replies = a.execute(mine.id, 0, &[Some("1")]).await;
    let [Reply::Rows(rows)] = &replies[..] else { panic!("{replies:?}") };
    assert_eq!(rows.values(), [[Some("secret".to_owned()), Some("1".to_owned())]]);
}

#[tokio::test]
async fn databases_that_are_not_there() {
    let bench = bench().await;
    let direct = bench.db.direct().await;
    bench
        .attack("COM_INIT_DB to nowhere", async |a| {
            assert_eq!(a.simple(command::INIT_DB, b"nowhere").await.unwrap_err().code, 1044);
        })
        .await;
    bench
        .attack("COM_INIT_DB to another", async |a| {
            a.simple(command::INIT_DB, b"otherdb").await.unwrap();
        })
        .await;
    bench
        .attack("COM_INIT_DB to another in a transaction", async |a| {
            a.ok("BEGIN").await;
            a.simple(command::INIT_DB, b"otherdb").await.unwrap();
            a.simple(command::INIT_DB, b"nowhere").await.unwrap_err();
            a.ok("ROLLBACK").await;
        })
        .await;
    for drop in
        ["DROP DATABASE passing", "DROP/**/SCHEMA IF EXISTS passing", "DO 1; DROP DATABASE passing; DO 2"]
    {
        direct.execute("CREATE DATABASE passing; GRANT ALL ON passing.* TO app@'%'").await;
        bench
            .attack(drop, async |a| {
                a.ok("USE passing").await;
                a.query(drop).await;
                assert_eq!(a.rows("SELECT database()").await, [[None]]);
            })
            .await;
    }
    // Dropped by somebody else while A is not on a connection.
    direct.execute("CREATE DATABASE passing; GRANT ALL ON passing.* TO app@'%'").await;
    bench
        .attack("a database dropped by another", async |a| {
            a.ok("USE passing").await;
            bench.next_is_clean("A uses another database").await;
            direct.execute("DROP DATABASE passing").await;
            a.error("SELECT * FROM u").await;
            a.error("SELECT * FROM t").await;
        })
        .await;
}

#[tokio::test]
async fn packets_that_end_half_way() {
    let bench = bench().await;
    let query = |sql: &str| packet(0, &[&[command::QUERY], sql.as_bytes()].concat()).0;
    let begun: &[&str] = &["BEGIN", "INSERT INTO t (v) VALUES ('leak')"];
    for before in
        [&[][..], begun, &["SET @leak = 1"], &["SET time_zone = '+05:00'"], &["SELECT GET_LOCK('leak', 0)"]]
    {
        for half in [
            query("SET @leak = 1")[..9].to_vec(),
            query("SET @leak = 1")[..2].to_vec(),
            query(&format!("SET @leak = '{}'", "x".repeat(6 << 20)))[..5 << 20].to_vec(),
            query("COMMIT")[..8].to_vec(),
            [query("SET time_zone = '+05:00'"), query("SET @leak = 1")[..9].to_vec()].concat(),
            [query("SELECT SLEEP(0.05), @leak := 1"), query("SELECT 2"), query("COMMIT")[..8].to_vec()]
                .concat(),
            [query("SET @leak = 1"), vec![1, 0, 0, 0, command::QUIT]].concat(),
            [query("SET time_zone = '+05:00'"), vec![1, 0, 0, 7, command::PING]].concat(),
            vec![1, 0, 0, 9, command::PING],
            vec![0, 0, 0, 0],
            vec![0xff, 0xff, 0xff, 0, command::QUERY],
        ] {
            let what = format!("{} after {before:?}", half[..half.len().min(40)].escape_ascii());
            let mut a = bench.client().await;
            for sql in before {
                a.query(sql).await;
            }
            a.send_bytes(&half).await;
            drop(a);
            bench.next_is_clean(&what).await;
        }
    }
}

#[tokio::test]
async fn results_that_nobody_reads() {
    let bench = bench().await;
    for sql in
        ["SELECT repeat('x', 1000000), seq FROM seq_1_to_200", "SELECT @leak := seq FROM seq_1_to_1000000"]
    {
        let mut a = bench.client().await;
        a.command(command::QUERY, sql.as_bytes()).await;
        a.read().await.unwrap();
        drop(a);
        bench.next_is_clean(sql).await;
    }
}

#[tokio::test]
async fn cursors_and_long_data_left_behind() {
    let bench = bench().await;
    bench
        .attack("a cursor left open", async |a| {
            let cursor = a.prepare("SELECT id, v FROM t").await.unwrap();
            a.execute(cursor.id, 1, &[]).await;
            a.fetch(cursor.id, 1).await.1.unwrap();
        })
        .await;
    bench
        .attack("a cursor within a transaction", async |a| {
            a.ok("BEGIN").await;
            let cursor = a.prepare("SELECT id FROM t FOR UPDATE").await.unwrap();
            a.execute(cursor.id, 1, &[]).await;
            a.ok("COMMIT").await;
        })
        .await;
    bench
        .attack("long data left unsent", async |a| {
            let long = a.prepare("SET @leak = ?").await.unwrap();
            a.send_long_data(long.id, 0, &[b'x'; 100_000]).await;
        })
        .await;
    bench
        .attack("long data cut off", async |a| {
            let long = a.prepare("SET @leak = ?").await.unwrap();
            let body = [&[command::STMT_SEND_LONG_DATA], &long.id.to_le_bytes()[..], &[0, 0], &[b'x'; 1000]]
                .concat();
            a.send_bytes(&packet(0, &body).0[..500]).await;
        })
        .await;
    bench
        .attack("long data that becomes state", async |a| {
            let long = a.prepare("SET @leak = ?").await.unwrap();
            a.send_long_data(long.id, 0, b"leak").await;
            // A value sent before is left out of the execution.
            let body = [&long.id.to_le_bytes()[..], &[0, 1, 0, 0, 0, 0, 1, 0xfd, 0]].concat();
            a.command(command::STMT_EXECUTE, &body).await;
            a.read_replies().await;
            assert_eq!(a.scalar("SELECT @leak").await, "leak");
        })
        .await;
}

#[tokio::test]
async fn a_local_file_broken_off() {
    let bench = bench().await;
    let load = "LOAD DATA LOCAL INFILE 'lines' INTO TABLE t (v)";
    let into_variable = "LOAD DATA LOCAL INFILE 'lines' INTO TABLE t (@leak) SET v = 'loaded'";
    for (text, cut) in [(load, 0), (load, 1), (load, 2), (into_variable, 0), (into_variable, 2)] {
        let mut a = bench.client().await;
        a.ok("BEGIN").await;
        a.command(command::QUERY, text.as_bytes()).await;
        assert!(matches!(a.read_reply().await, Reply::WantsFile(_)));
        match cut {
            0 => {}
            1 => a.send(b"leak\nleak\n").await,
            _ => a.send_bytes(&packet(2, b"leak\nleak\nleak\n").0[..10]).await,
        }
        drop(a);
        bench.next_is_clean(text).await;
    }
    bench
        .attack("a whole file into a variable", async |a| {
            a.command(command::QUERY, into_variable.as_bytes()).await;
            assert!(matches!(a.read_reply().await, Reply::WantsFile(_)));
            a.send_file(&[b"one\n"]).await;
            assert!(matches!(a.read_reply().await, Reply::Done(_)));
        })
        .await;
    bench
        .attack("an empty file", async |a| {
            a.command(command::QUERY, load.as_bytes()).await;
            a.read_reply().await;
            a.send_file(&[]).await;
            a.read_reply().await;
            assert_eq!(a.scalar("SELECT 1").await, "1");
        })
        .await;
}

/// Several statements in one text are for those who asked for them, whatever others did with the connection.
#[tokio::test]
async fn several_statements_are_for_who_asked_for_them() {
    let bench = bench().await;
    let mut many = RawMySql::connect_with(&bench.proxy.address(), FLAGS).await;
    let mut one = RawMySql::connect_with(&bench.proxy.address(), FLAGS & !capability::MULTI_STATEMENTS).await;
    for _ in 0..2 {
        assert_eq!(many.query("SELECT 1; SELECT 2").await.len(), 2);
        assert_eq!(one.error("SELECT 1; SELECT 2").await.code, 1064);
    }
    one.simple(command::SET_OPTION, &[0, 0]).await.unwrap();
    assert_eq!(one.query("SELECT 1; SELECT 2").await.len(), 2);
    many.simple(command::SET_OPTION, &[1, 0]).await.unwrap();
    assert_eq!(many.error("SELECT 1; SELECT 2").await.code, 1064);
    one.simple(command::SET_OPTION, &[1, 0]).await.unwrap();
    assert_eq!(one.error("DO 1; SET @leak = 1").await.code, 1064);
    drop((one, many));
    bench.next_is_clean("SET_OPTION").await;
}

/// A login anew that fails leaves the client without a session, and its state with nobody.
#[tokio::test]
async fn a_change_of_user_that_fails() {
    let bench = bench().await;
    for state in [
        "SET @leak = 1",
        "SELECT @leak := 1",
        "BEGIN; INSERT INTO t (v) VALUES ('leak')",
        "SELECT GET_LOCK('leak', 0)",
    ] {
        for (user, password, database) in
            [("app", "wrong", "appdb"), ("nobody", "x", "appdb"), ("app2", "app2-password", "nowhere")]
        {
            bench
                .attack(&format!("{state}, then {user}"), async |a| {
                    a.query(state).await;
                    let address = bench.proxy.address().user(user, password).database(database);
                    assert!(a.change_user(&Login::new(&address, FLAGS)).await.is_err());
                })
                .await;
        }
    }
}

/// Commands that go in one write are answered one by one, and what they leave is the client's own.
#[tokio::test]
async fn commands_sent_before_the_answers() {
    let bench = bench().await;
    let query = |sql: &str| packet(0, &[&[command::QUERY], sql.as_bytes()].concat()).0;
    bench
        .attack("a pipeline of settings", async |a| {
            let all = ["SET time_zone = '+05:00'", "SET @leak = 1", "SELEC", "USE otherdb", "SELECT @leak"];
            a.send_bytes(&all.map(query).concat()).await;
            let mut failed = 0;
            for _ in all {
                // Each begins with a sequence of its own.
                a.expect_answer();
                failed += usize::from(matches!(a.read_reply().await, Reply::Failed(_)));
            }
            assert_eq!(failed, 1);
        })
        .await;
}
