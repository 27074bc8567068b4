//! MySQL's protocol, command by command, as a connection of one's own would speak it.
#![allow(clippy::unwrap_used)]

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use pinion_tests::{
    Address, MariaDb, Proxy, RawMySql, Server, foreign,
    raw_mysql::{Login, Reply, Rows, capability, command, status},
    until,
};
use tokio::task::JoinHandle;

async fn pool_of(n: u32) -> (MariaDb, Proxy) {
    let db = Server::mariadb().start().await;
    let proxy = Proxy::in_front_of(&db).max_connections(n).start().await;
    (db, proxy)
}

/// What drivers ask for, those that clients leave out one after the other.
const FLAGS: [(&str, u64); 6] = [
    ("old", capability::OLD),
    ("new", capability::NEW),
    ("old, several statements", capability::OLD | capability::MULTI_STATEMENTS | capability::LOCAL_FILES),
    ("new, several statements", capability::NEW | capability::MULTI_STATEMENTS | capability::LOCAL_FILES),
    ("new, no tracking", capability::NEW & !capability::SESSION_TRACK),
    ("MariaDB's own", capability::NEW | capability::MARIADB_BULK | capability::MARIADB_EXTENDED_METADATA),
];

/// Another client of the same pool, until it is told to stop: what it holds for a moment others have to do without.
fn neighbour(address: Address, flags: u64, stop: Arc<AtomicBool>) -> JoinHandle<()> {
    tokio::spawn(async move {
        let mut client = RawMySql::connect_with(&address, flags).await;
        let prepared = client.prepare("SELECT ?").await.unwrap();
        for n in 0_u32.. {
            if stop.load(Ordering::Relaxed) {
                return;
            }
            client.ok("BEGIN").await;
            let n = n.to_string();
            let replies = client.execute(prepared.id, 0, &[Some(&n)]).await;
            let [Reply::Rows(rows)] = replies.as_slice() else { panic!("{replies:?}") };
            assert_eq!(rows.values(), [[Some(n)]]);
            client.ok("COMMIT").await;
        }
    })
}

/// The same script on a connection of one's own, through a pool of two that others use, and through a proxy in front of
/// a proxy, for clients of each kind: every payload must be the same. Sequence numbers are looked at by the raw client.
async fn same_as_direct(extra: u64, script: impl AsyncFn(&mut RawMySql)) {
    same_as_direct_for(&FLAGS, extra, script).await;
}

async fn same_as_direct_for(kinds: &[(&str, u64)], extra: u64, script: impl AsyncFn(&mut RawMySql)) {
    let (db, proxy) = pool_of(2).await;
    // What the outer one asks of each session pins a connection of the inner one.
    let inner = Proxy::in_front_of(&db).start().await;
    let outer = Proxy::in_front_of(inner.as_target(&db)).max_connections(1).start().await;
    for (kind, flags) in kinds {
        let mut heard = Vec::new();
        let stop = Arc::new(AtomicBool::new(false));
        let neighbours = [(); 2].map(|()| neighbour(proxy.address(), flags | extra, Arc::clone(&stop)));
        for address in [db.address(), proxy.address(), outer.address()] {
            let mut client = RawMySql::connect_with(&address, flags | extra).await;
            client
                .ok("CREATE OR REPLACE TABLE w (id int AUTO_INCREMENT PRIMARY KEY, v varchar(50) UNIQUE)")
                .await;
            client.record();
            script(&mut client).await;
            let welcome = format!("{:?}", client.welcome);
            heard.push([vec![welcome], client.recorded()].concat());
        }
        stop.store(true, Ordering::Relaxed);
        for neighbour in neighbours {
            neighbour.await.unwrap();
        }
        for (through, place) in heard[1..].iter().zip(["through the proxy", "through two"]) {
            let mut label = "";
            for (direct, through) in heard[0].iter().zip(through) {
                if direct.starts_with("---") {
                    label = direct;
                }
                assert_eq!(direct, through, "{kind} {label} (direct, {place})");
            }
            assert_eq!(heard[0].len(), through.len(), "{kind}, {place}: {:#?}", through.last());
        }
    }
}

async fn queries(client: &mut RawMySql, texts: &[&str]) {
    for text in texts {
        client.note(text);
        let mut replies = client.query(text).await;
        if let [Reply::Done(done)] = replies.as_mut_slice() {
            // A server tells these in any order.
            done.changes.sort_by_key(|change| format!("{change:?}"));
            client.record_instead(format!("{done:?}"));
        }
    }
}

// ---- commands

#[tokio::test]
async fn queries_are_answered_as_by_the_server() {
    same_as_direct(0, async |client| {
        queries(
            client,
            &[
                "",
                ";",
                "-- only a comment",
                "SELECT 1",
                "SELECT 1;",
                "SELECT NULL, '', 1.5, true, '\u{e4}\u{1f600}', x'00ff'",
                "SELECT 1 FROM w WHERE false",
                "INSERT INTO w (v) VALUES ('a'), ('b'), ('c')",
                "INSERT INTO w (v) VALUES ('a')",
                "INSERT IGNORE INTO w (v) VALUES ('a')",
                "UPDATE w SET v = 'A' WHERE v = 'a'",
                "UPDATE w SET v = 'A' WHERE v = 'A'",
                "REPLACE INTO w (v) VALUES ('b')",
                "DELETE FROM w WHERE v = 'nothing'",
                "SELECT nonsense",
                "SELEC 1",
                "BEGIN",
                "INSERT INTO w (v) VALUES ('in') RETURNING v",
                "SELECT nonsense",
                "SELECT v FROM w ORDER BY v",
                "ROLLBACK",
                "START TRANSACTION READ ONLY",
                "INSERT INTO w (v) VALUES ('no')",
                "COMMIT",
                "SAVEPOINT outside",
                "DO 1",
                "SET @x = 1",
                "SELECT @x + 1",
                "SET autocommit = 0",
                "SELECT count(*) FROM w",
                "SET autocommit = 1",
                "SET NAMES latin1",
                "SELECT '\u{e4}'",
                "SET NAMES utf8mb4",
                "SET time_zone = '+02:00'",
                "SET sql_mode = ''",
                "SELECT 1 / 0, cast('x' AS int)",
                "SHOW WARNINGS",
                "SELECT seq FROM seq_1_to_3000",
                "SHOW TABLES LIKE 'w'",
                "EXPLAIN SELECT 1",
                "USE otherdb",
                "SELECT database()",
                "USE nowhere",
                "USE appdb",
                "CALL nothing()",
                "HANDLER w OPEN",
                "HANDLER w READ FIRST",
                "HANDLER w CLOSE",
                "CREATE TEMPORARY TABLE tt AS SELECT 1 AS n",
                "SELECT * FROM tt",
                "DROP TABLE tt",
                "SELECT 1; SELECT 2",
                "SELECT SQL_CALC_FOUND_ROWS v FROM w LIMIT 1",
                "SELECT FOUND_ROWS()",
                "INSERT INTO w (v) VALUES ('last')",
                "SELECT LAST_INSERT_ID() > 0",
                "PREPARE p FROM 'SELECT ?'",
                "EXECUTE p USING @x",
                "DEALLOCATE PREPARE p",
                "EXECUTE p",
            ],
        )
        .await;
    })
    .await;
}

#[tokio::test]
async fn small_commands_are_answered_as_by_the_server() {
    same_as_direct(0, async |client| {
        for (what, command, body) in [
            ("ping", command::PING, b"".as_slice()),
            ("ping with a tail", command::PING, b"tail"),
            ("init_db", command::INIT_DB, b"otherdb"),
            ("init_db unknown", command::INIT_DB, b"nowhere"),
            ("init_db empty", command::INIT_DB, b""),
            ("init_db back", command::INIT_DB, b"appdb"),
            ("multi statements on", command::SET_OPTION, &[0, 0]),
            ("multi statements off", command::SET_OPTION, &[1, 0]),
            ("no such option", command::SET_OPTION, &[2, 0]),
            ("reset", command::RESET_CONNECTION, b""),
            ("sleep", 0x00, b""),
            ("create db", 0x05, b"x"),
            ("drop db", 0x06, b"x"),
            ("connect", 0x0b, b""),
            ("time", 0x0f, b""),
            ("delayed insert", 0x10, b""),
            ("no command", 0x70, b"body"),
            ("kill nobody", command::PROCESS_KILL, &[0xff, 0xff, 0xff, 0x7f]),
        ] {
            client.note(what);
            let _ = client.simple(command, body).await;
        }
        queries(client, &["SELECT database(), @@autocommit, @x"]).await;
        for body in [b"w\0".as_slice(), b"w\0v%", b"nowhere\0", b""] {
            client.note(&format!("field list {}", body.escape_ascii()));
            client.command(command::FIELD_LIST, body).await;
            let (_, end) = client.read_rows().await;
            if let Ok(end) = end {
                client.record_instead(format!("{end:?}"));
            }
        }
        client.note("statistics");
        client.command(command::STATISTICS, &[]).await;
        let line = client.read().await.unwrap();
        let text = String::from_utf8_lossy(&line).into_owned();
        client.record_instead(text.split(|c: char| c.is_ascii_digit() || c == '.').collect());
        assert!(text.starts_with("Uptime: "), "{text}");
        queries(client, &["SELECT 1"]).await;
        client.command(command::QUIT, &[]).await;
        assert!(client.expect_closed().await.is_empty());
    })
    .await;
}

#[tokio::test]
async fn prepared_statements_are_answered_as_by_the_server() {
    same_as_direct(0, async |client| {
        for text in ["SELEC 1", "SELECT 1; SELECT 2", "", "HANDLER w OPEN"] {
            client.note(text);
            let _ = client.prepare(text).await;
        }
        client.note("prepare");
        let insert = client.prepare("INSERT INTO w (v) VALUES (?)").await.unwrap();
        let select =
            client.prepare("SELECT id, v FROM w WHERE v < ? OR v IS NULL ORDER BY id").await.unwrap();
        let plain = client.prepare("SELECT 1, 'x'").await.unwrap();
        client.note("execute");
        for value in [Some("one"), Some("two"), None, None, Some("one"), Some("three")] {
            client.execute(insert.id, 0, &[value]).await;
        }
        client.execute(select.id, 0, &[Some("zzz")]).await;
        client.execute(plain.id, 0, &[]).await;
        client.note("without types");
        let body = [select.id.to_le_bytes().as_slice(), &[0, 1, 0, 0, 0, 0, 0], b"\x03two"].concat();
        client.command(command::STMT_EXECUTE, &body).await;
        client.read_replies().await;

        client.note("long data");
        client.send_long_data(insert.id, 0, b"long ").await;
        client.send_long_data(insert.id, 0, b"data").await;
        let long = [insert.id.to_le_bytes().as_slice(), &[0, 1, 0, 0, 0, 0, 1, 0xfc, 0]].concat();
        client.command(command::STMT_EXECUTE, &long).await;
        client.read_replies().await;
        client.note("long data, taken back");
        client.send_long_data(insert.id, 0, b"gone").await;
        client.simple(command::STMT_RESET, &insert.id.to_le_bytes()).await.unwrap();
        client.execute(insert.id, 0, &[Some("kept")]).await;
        client.note("long data for nothing");
        client.send_long_data(1_000_000, 0, b"lost").await;
        client.send_long_data(insert.id, 9, b"lost").await;
        client.simple(command::STMT_RESET, &insert.id.to_le_bytes()).await.ok();
        queries(client, &["SELECT v FROM w ORDER BY id"]).await;

        if client.capabilities & capability::MARIADB_BULK != 0 {
            client.note("in bulk");
            // Types follow; of each value a byte that says whether it is NULL.
            let front = [insert.id.to_le_bytes().as_slice(), &[0x80, 0, 0xfd, 0]].concat();
            for rows in [b"\0\x01x\0\x01y".as_slice(), b"\x01\0\x01z", b"\0\x01x"] {
                client.command(command::STMT_BULK_EXECUTE, &[front.as_slice(), rows].concat()).await;
                client.read_replies().await;
            }
        }
        client.note("cursor");
        client.execute(select.id, 1, &[Some("zzz")]).await;
        for _ in 0..2 {
            client.fetch(select.id, 2).await.1.unwrap();
        }
        client.note("another statement while it is open");
        client.query("SELECT 'between'").await;
        client.fetch(select.id, 1).await.1.unwrap();
        client.execute(plain.id, 0, &[]).await;
        client.simple(command::STMT_RESET, &insert.id.to_le_bytes()).await.unwrap();
        client.fetch(select.id, 100).await.1.unwrap();
        client.note("past its end");
        fetch_in_vain(client, select.id).await;
        client.note("cursor, closed by reset");
        client.execute(select.id, 1, &[Some("zzz")]).await;
        client.simple(command::STMT_RESET, &select.id.to_le_bytes()).await.unwrap();
        fetch_in_vain(client, select.id).await;
        client.note("cursor over nothing");
        client.execute(select.id, 1, &[Some("")]).await;
        client.note("cursor of what has no rows");
        client.execute(insert.id, 1, &[Some("by cursor")]).await;

        client.note("unknown ids");
        client.execute(1_000_000, 0, &[]).await;
        let _ = client.fetch(1_000_000, 1).await.1;
        let _ = client.simple(command::STMT_RESET, &1_000_000_u32.to_le_bytes()).await;
        client.close_statement(1_000_000).await;
        client.note("closed");
        client.close_statement(plain.id).await;
        let gone = client.execute(plain.id, 0, &[]).await;
        client.record_instead(format!("{gone:?}").replace(&format!("({})", plain.id), "(ID)"));

        client.note("in a transaction");
        client.query("BEGIN").await;
        client.execute(insert.id, 0, &[Some("undone")]).await;
        client.execute(insert.id, 0, &[Some("undone")]).await;
        client.query("ROLLBACK").await;
        client.note("of several results");
        client
            .query("CREATE OR REPLACE PROCEDURE two() BEGIN SELECT 1; SELECT id FROM w WHERE id = 1; END")
            .await;
        let call = client.prepare("CALL two()").await.unwrap();
        client.execute(call.id, 0, &[]).await;
        client.note("the table changes");
        let star = client.prepare("SELECT * FROM w WHERE id = 1").await.unwrap();
        client.execute(star.id, 0, &[]).await;
        client.query("ALTER TABLE w ADD COLUMN more int DEFAULT 7").await;
        client.execute(star.id, 0, &[]).await;
        client.note("reset");
        client.simple(command::RESET_CONNECTION, &[]).await.unwrap();
        let gone = client.execute(star.id, 0, &[]).await;
        client.record_instead(format!("{gone:?}").replace(&format!("({})", star.id), "(ID)"));
    })
    .await;
}

/// The error names the id, which is each server's own choice.
async fn fetch_in_vain(client: &mut RawMySql, id: u32) {
    let error = client.fetch(id, 1).await.1.unwrap_err();
    client.record_instead(format!("{} {}", error.code, error.message.replace(&format!("({id})"), "(ID)")));
}

/// What is made to be forgotten before a request runs must not be all that runs, again and again.
#[tokio::test]
async fn a_statement_is_prepared_where_sessions_ask_for_their_last_id() {
    let (_db, proxy) = pool_of(1).await;
    let (mut a, mut b) = (proxy.raw_mysql().await, proxy.raw_mysql().await);
    for _ in 0..2 {
        for client in [&mut a, &mut b] {
            client.ok("INSERT INTO t (v) VALUES ('x')").await;
            client.scalar("SELECT LAST_INSERT_ID()").await;
            client.simple(command::RESET_CONNECTION, &[]).await.unwrap();
        }
        for client in [&mut a, &mut b] {
            let prepared = client.prepare("SELECT length(?)").await.unwrap();
            client.send_long_data(prepared.id, 0, b"long").await;
            client.simple(command::STMT_RESET, &prepared.id.to_le_bytes()).await.unwrap();
        }
    }
}

#[tokio::test]
async fn several_statements_and_results_are_answered_as_by_the_server() {
    same_as_direct(capability::MULTI_STATEMENTS, async |client| {
        queries(
            client,
            &[
                "SELECT 1; SELECT 2; SELECT 3",
                "SELECT 1; DO 2; INSERT INTO w (v) VALUES ('x'), ('y'); SELECT v FROM w",
                "SELECT 1; SELECT nonsense; SELECT 3",
                "SELECT 1; SELEC 2",
                "BEGIN; INSERT INTO w (v) VALUES ('z'); SELECT 1; COMMIT; SELECT 2",
                "BEGIN; SELECT 1",
                "COMMIT; SELECT 1;",
                "SELECT 1;;",
                "INSERT INTO w (v) VALUES ('x'); SELECT 1",
                "CREATE OR REPLACE PROCEDURE p(n int) BEGIN SELECT n; INSERT INTO w (v) VALUES (n); SELECT v FROM w; END",
                "CALL p(1)",
                "CALL p(1)",
                "CALL p(2); SELECT 'after'",
                "SET @a = 1; SET @b = 2; SELECT @a + @b",
                "SET autocommit = 0; SELECT count(*) FROM w; SET autocommit = 1",
                "DROP PROCEDURE p; SELECT 1 FROM w WHERE false; SHOW WARNINGS",
            ],
        )
        .await;
        client.note("taken away and given back");
        client.simple(command::SET_OPTION, &[1, 0]).await.unwrap();
        client.query("SELECT 1; SELECT 2").await;
        client.simple(command::SET_OPTION, &[0, 0]).await.unwrap();
        client.query("SELECT 1; SELECT 2").await;
    })
    .await;
}

#[tokio::test]
async fn local_files_are_loaded_as_by_the_server() {
    same_as_direct(capability::LOCAL_FILES | capability::MULTI_STATEMENTS, async |client| {
        let load = "LOAD DATA LOCAL INFILE 'f' INTO TABLE w (v)";
        let rows: Vec<u8> = (0..5000).flat_map(|i| format!("row {i}\n").into_bytes()).collect();
        let pieces: Vec<&[u8]> = rows.chunks(777).collect();
        for (what, sql, pieces) in [
            ("one piece", load, [b"a\nb\nc\n".as_slice()].as_slice()),
            ("nothing", load, &[]),
            ("many pieces", load, &pieces),
            ("again, all there already", load, &pieces),
            (
                "an error in the middle",
                "LOAD DATA LOCAL INFILE 'f' INTO TABLE w (v) SET id = 'x' + 1 / (v <> 'row 9')",
                &pieces,
            ),
            ("no such table", "LOAD DATA LOCAL INFILE 'f' INTO TABLE nowhere (v)", &pieces),
            (
                "among others",
                "SELECT 1; LOAD DATA LOCAL INFILE 'f' INTO TABLE w (v); SELECT count(*) FROM w",
                &[b"d\n"],
            ),
            (
                "twice",
                "LOAD DATA LOCAL INFILE 'f' INTO TABLE w (v); LOAD DATA LOCAL INFILE 'f' INTO TABLE w (v)",
                &[b"e\n"],
            ),
        ] {
            client.note(what);
            client.command(command::QUERY, sql.as_bytes()).await;
            loop {
                let reply = client.read_reply().await;
                let wants = matches!(reply, Reply::WantsFile(_));
                if wants {
                    client.send_file(pieces).await;
                } else if reply.status().is_none_or(|flags| flags & status::MORE_RESULTS == 0) {
                    break;
                }
            }
        }
        queries(client, &["SELECT count(*), min(v), max(v) FROM w"]).await;
    })
    .await;
}

/// A piece of exactly the longest payload is followed by an empty packet that does not end the file.
#[tokio::test]
async fn a_piece_of_a_local_file_may_be_as_long_as_a_packet() {
    same_as_direct_for(&FLAGS[..2], capability::LOCAL_FILES, async |client| {
        client.command(command::QUERY, b"LOAD DATA LOCAL INFILE 'f' INTO TABLE w LINES TERMINATED BY '|' (@line) SET v = length(@line)").await;
        client.read_reply().await;
        let long = vec![b'x'; 0xff_ffff];
        client.send_file(&[&long, b"xx|", b"y|"]).await;
        client.read_reply().await;
        queries(client, &["SELECT v FROM w ORDER BY id", "SELECT 1"]).await;
        client.note("done");
    })
    .await;
}

#[tokio::test]
async fn a_client_that_does_not_send_files_is_not_asked_for_one() {
    let (_db, proxy) = pool_of(2).await;
    let load = "LOAD DATA LOCAL INFILE '/etc/hostname' INTO TABLE t (v)";
    let mut with = RawMySql::connect_with(&proxy.address(), capability::NEW | capability::LOCAL_FILES).await;
    let mut without = RawMySql::connect_with(&proxy.address(), capability::NEW).await;
    for _ in 0..3 {
        with.command(command::QUERY, load.as_bytes()).await;
        assert!(matches!(with.read_reply().await, Reply::WantsFile(_)));
        with.send_file(&[]).await;
        assert!(matches!(with.read_reply().await, Reply::Done(_)));
        assert_eq!(without.error(load).await.code, 4166);
    }
}

#[tokio::test]
async fn a_change_of_user_is_answered_as_by_the_server() {
    let (db, proxy) = pool_of(2).await;
    for (_, flags) in FLAGS {
        let mut heard = Vec::new();
        for address in [db.address(), proxy.address()] {
            let mut client = RawMySql::connect_with(&address, flags).await;
            client.ok("SET @mine = 1").await;
            let prepared = client.prepare("SELECT 1").await.unwrap();
            let mut seen = Vec::new();
            let other = address.clone().user("app2", "app2-password");
            for to in [other.database("otherdb"), address.clone(), address.clone().database("")] {
                client.change_user(&Login::new(&to, flags)).await.unwrap();
                seen.push(format!("{:?}", client.welcome));
                seen.extend(
                    client
                        .transcript(&["SELECT current_user(), database(), @mine", "SELECT @@autocommit"])
                        .await,
                );
                let gone = client.execute(prepared.id, 0, &[]).await;
                assert!(matches!(gone.as_slice(), [Reply::Failed(error)] if error.code == 1243), "{gone:?}");
            }
            let nowhere = client.change_user(&Login::new(&address.clone().database("nowhere"), flags)).await;
            seen.push(format!("{nowhere:?}"));
            heard.push(seen);
        }
        assert_eq!(heard[0], heard[1], "direct, through the proxy");
    }
}

#[tokio::test]
async fn a_wrong_password_in_a_change_of_user_ends_the_connection() {
    let (_db, proxy) = pool_of(1).await;
    let address = proxy.address();
    for user in ["app2", "stranger"] {
        let mut client = RawMySql::connect(&address).await;
        client.ok("SET @mine = 1").await;
        let wrong = Login::new(&address.clone().user(user, "wrong"), capability::NEW);
        let error = client.change_user(&wrong).await.unwrap_err();
        assert_eq!((error.code, error.state.as_str()), (1045, "28000"), "{error:?}");
        let said = format!("Access denied for user '{user}'@'127.0.0.1' (using password: YES)");
        assert_eq!(error.message, said);
        assert!(client.read().await.is_none());
    }
    // What it left behind is nobody's.
    assert_eq!(proxy.raw_mysql().await.rows("SELECT @mine").await, [[None]]);
}

#[tokio::test]
async fn replication_is_refused_and_the_client_goes_on() {
    let (_db, proxy) = pool_of(1).await;
    let mut client = proxy.raw_mysql().await;
    for (code, name) in [
        (command::BINLOG_DUMP, "COM_BINLOG_DUMP"),
        (0x13, "COM_TABLE_DUMP"),
        (0x15, "COM_REGISTER_SLAVE"),
        (0x1e, "COM_BINLOG_DUMP_GTID"),
        (0x07, "COM_REFRESH"),
        (0x08, "COM_SHUTDOWN"),
    ] {
        let error = client.simple(code, &[0; 16]).await.unwrap_err();
        assert_eq!((error.code, error.state.as_str()), (1235, "42000"), "{name}: {error:?}");
        assert_eq!(error.message, format!("{name} is not supported by this proxy"));
    }
    assert_eq!(client.scalar("SELECT 1").await, "1");
}

// ---- connection ids

const SLEEPING: &str = "SELECT count(*) FROM information_schema.processlist WHERE info LIKE 'SELECT sleep%'";

#[tokio::test]
async fn a_session_knows_the_id_it_was_greeted_with() {
    let (_db, proxy) = pool_of(2).await;
    let mut clients = [proxy.raw_mysql().await, proxy.raw_mysql().await, proxy.raw_mysql().await];
    for client in &mut clients {
        let id = client.greeting.id.to_string();
        assert_eq!(client.scalar("SELECT CONNECTION_ID()").await, id);
        let replies = client.query(" select connection_id() as `me`;").await;
        let [Reply::Rows(rows)] = replies.as_slice() else { panic!("{replies:?}") };
        assert_eq!((rows.columns[0].name.as_str(), rows.texts()[0][0].as_ref()), ("me", Some(&id)));
        // Among the server's own numbers a connection finds itself.
        let sql = "SELECT count(*) FROM information_schema.processlist WHERE id = CONNECTION_ID()";
        assert_eq!(client.scalar(sql).await, "1");
        client.ok("BEGIN").await;
        assert_eq!(client.scalar("SELECT CONNECTION_ID()").await, id);
        client.ok("COMMIT").await;
    }
    assert_ne!(clients[0].greeting.id, clients[1].greeting.id);
}

/// In each way of asking the statement that is meant ends, and no other.
#[tokio::test]
async fn kill_reaches_the_session_that_is_meant() {
    let (db, proxy) = pool_of(4).await;
    let direct = db.direct().await;
    let (mut bystander, mut killer) = (proxy.raw_mysql().await, proxy.raw_mysql().await);
    bystander.command(command::QUERY, b"SELECT sleep(600)").await;
    for kill in ["KILL QUERY {}", "kill query {};", "/* x */ KILL HARD QUERY {}"] {
        let mut client = proxy.raw_mysql().await;
        client.command(command::QUERY, b"SELECT sleep(600)").await;
        until("both sleep", async || direct.scalar::<u8>(SLEEPING).await == 2).await;
        killer.ok(&kill.replace("{}", &client.greeting.id.to_string())).await;
        client.read_replies().await;
        assert_eq!(client.scalar("SELECT 1").await, "1", "{kill}: the session goes on");
        assert_eq!(direct.scalar::<u8>(SLEEPING).await, 1, "{kill}: the other sleeps on");
    }
    for kill in ["KILL {}", "KILL CONNECTION {}", "by command"] {
        let mut client = proxy.raw_mysql().await;
        client.command(command::QUERY, b"SELECT sleep(600)").await;
        until("both sleep", async || direct.scalar::<u8>(SLEEPING).await == 2).await;
        if kill == "by command" {
            killer.simple(command::PROCESS_KILL, &client.greeting.id.to_le_bytes()).await.unwrap();
        } else {
            killer.ok(&kill.replace("{}", &client.greeting.id.to_string())).await;
        }
        client.expect_closed().await;
        until("the statement has ended", async || direct.scalar::<u8>(SLEEPING).await == 1).await;
    }
    // One that is idle, and one in a transaction.
    for begin in ["SELECT 1", "BEGIN"] {
        let mut client = proxy.raw_mysql().await;
        client.ok(begin).await;
        killer.ok(&format!("KILL {}", client.greeting.id)).await;
        assert_eq!(client.expect_error().await.code, 1053);
        assert!(client.read().await.is_none());
    }
    killer.ok(&format!("KILL {}", bystander.greeting.id)).await;
    bystander.expect_closed().await;
    assert_eq!(killer.scalar("SELECT 1").await, "1");
    until("nothing is borrowed", async || {
        proxy.metric("pinion_database_connections_currently_borrowed", &[]).await == 0.0
    })
    .await;
}

#[tokio::test]
async fn sessions_of_others_and_of_nobody_are_not_killed() {
    let (db, proxy) = pool_of(4).await;
    let direct = db.direct().await;
    let mut client = proxy.raw_mysql().await;
    client.command(command::QUERY, b"SELECT sleep(600)").await;
    until("it sleeps", async || direct.scalar::<u8>(SLEEPING).await == 1).await;
    // Of a user who may end the sessions of others at the server.
    let address = proxy.address().user("app2", "app2-password");
    let mut stranger = RawMySql::connect(&address).await;
    let (id, servers_id) = (client.greeting.id, {
        let sql = "SELECT id FROM information_schema.processlist WHERE info LIKE 'SELECT sleep%'";
        direct.scalar::<u32>(sql).await
    });
    for kill in ["KILL QUERY", "KILL", "KILL CONNECTION"] {
        let error = stranger.error(&format!("{kill} {id}")).await;
        assert_eq!((error.code, error.state.as_str()), (1095, "HY000"), "{kill}: {error:?}");
        assert_eq!(error.message, format!("You are not owner of thread {id}"));
        // The server's own ids mean nothing here, or somebody else.
        let nobody = if servers_id == id { u32::MAX } else { servers_id };
        assert!([1094, 1095].contains(&stranger.error(&format!("{kill} {nobody}")).await.code));
        let unknown = stranger.error(&format!("{kill} 4294967000")).await;
        assert_eq!((unknown.code, unknown.message.as_str()), (1094, "Unknown thread id: 4294967000"));
    }
    assert_eq!(stranger.simple(command::PROCESS_KILL, &id.to_le_bytes()).await.unwrap_err().code, 1095);
    // What does not name a session by its number is not carried out.
    for kill in ["KILL USER app", "KILL QUERY ID 7", "KILL @x", "KILL QUERY 1 + 1"] {
        let error = stranger.error(kill).await;
        assert!([1064, 1235].contains(&error.code), "{kill}: {error:?}");
    }
    let prepared = stranger.prepare(&format!("KILL QUERY {servers_id}")).await;
    if let Ok(prepared) = prepared {
        let replies = stranger.execute(prepared.id, 0, &[]).await;
        assert!(matches!(replies.as_slice(), [Reply::Failed(_)]), "{replies:?}");
    }
    assert_eq!(direct.scalar::<u8>(SLEEPING).await, 1);
}

// ---- what a client negotiates

#[tokio::test]
async fn rows_found_or_changed_are_counted_as_the_client_asked() {
    let (_db, proxy) = pool_of(2).await;
    let mut found = RawMySql::connect_with(&proxy.address(), capability::NEW | capability::FOUND_ROWS).await;
    let mut changed = RawMySql::connect_with(&proxy.address(), capability::NEW).await;
    let same = "UPDATE t SET v = v WHERE id <= 2";
    for _ in 0..3 {
        assert_eq!(found.ok(same).await.affected, 2);
        assert_eq!(changed.ok(same).await.affected, 0);
    }
    let prepared = found.prepare(same).await.unwrap();
    let Reply::Done(done) = &found.execute(prepared.id, 0, &[]).await[0] else { panic!("an update") };
    assert_eq!(done.affected, 2);
    let prepared = changed.prepare(same).await.unwrap();
    let Reply::Done(done) = &changed.execute(prepared.id, 0, &[]).await[0] else { panic!("an update") };
    assert_eq!(done.affected, 0);
}

/// Clients with and without the right to it share one server connection.
#[tokio::test]
async fn several_statements_are_for_those_who_asked() {
    let (_db, proxy) = pool_of(1).await;
    let mut with =
        RawMySql::connect_with(&proxy.address(), capability::NEW | capability::MULTI_STATEMENTS).await;
    let mut without = RawMySql::connect_with(&proxy.address(), capability::NEW).await;
    let both = "SELECT 1; DELETE FROM t";
    for _ in 0..3 {
        assert_eq!(with.query("SELECT 1; SELECT 2").await.len(), 2);
        assert_eq!(without.error(both).await.code, 1064);
        assert_eq!(with.query("SELECT 1; SELECT 2").await.len(), 2);
        assert_eq!(without.scalar("SELECT count(*) FROM t").await, "3");
        assert_eq!(without.scalar("SELECT ';'").await, ";");
    }
    without.simple(command::SET_OPTION, &[0, 0]).await.unwrap();
    with.simple(command::SET_OPTION, &[1, 0]).await.unwrap();
    for _ in 0..2 {
        assert_eq!(without.query("SELECT 1; SELECT 2").await.len(), 2);
        assert_eq!(with.error(both).await.code, 1064);
    }
    // A reset puts neither back to another than it had, and a new session has what it asked for.
    let mut third = RawMySql::connect_with(&proxy.address(), capability::NEW).await;
    assert_eq!(third.error(both).await.code, 1064);
    // A prepared statement is one statement, whoever asks.
    assert_eq!(without.prepare(both).await.unwrap_err().code, 1064);
    assert_eq!(without.scalar("SELECT count(*) FROM t").await, "3");
}

#[tokio::test]
async fn what_a_client_did_not_ask_for_it_is_not_sent() {
    let (_db, proxy) = pool_of(1).await;
    let mut tracking = RawMySql::connect_with(&proxy.address(), capability::NEW).await;
    let quiet = capability::NEW & !capability::SESSION_TRACK;
    let mut quiet = RawMySql::connect_with(&proxy.address(), quiet).await;
    let mut old = RawMySql::connect_with(&proxy.address(), capability::OLD).await;
    for _ in 0..2 {
        let told = tracking.ok("SET time_zone = '+03:00'").await;
        assert_eq!(told.changes.len(), 1, "{told:?}");
        // Not among those that servers tell by default.
        assert_eq!(tracking.ok("SET wait_timeout = 1000").await.changes.len(), 0);
        for client in [&mut quiet, &mut old] {
            let done = client.ok("SET time_zone = '+04:00'").await;
            assert_eq!((done.status, done.changes.len()), (status::AUTOCOMMIT, 0), "{done:?}");
        }
        assert_eq!(tracking.scalar("SELECT @@time_zone").await, "+03:00");
        assert_eq!(old.scalar("SELECT @@time_zone").await, "+04:00");
    }
}

#[tokio::test]
async fn a_client_that_asks_for_more_is_told_as_by_the_server() {
    same_as_direct(0, async |client| {
        if client.capabilities & capability::SESSION_TRACK == 0 {
            return;
        }
        queries(
            client,
            &[
                "SET session_track_state_change = 1",
                "SET @a = 1",
                "SET session_track_system_variables = '*'",
                "SET sql_mode = ''",
                "SET wait_timeout = 1000, autocommit = 1",
                "USE otherdb",
            ],
        )
        .await;
        // Here a server tells that there is no transaction; ours may have been told that before.
        client.query("SET session_track_transaction_info = 'CHARACTERISTICS'").await;
        client.record_instead(String::new());
        queries(
            client,
            &[
                "START TRANSACTION READ ONLY",
                "SELECT 1",
                "COMMIT",
                "BEGIN",
                "INSERT INTO appdb.w (v) VALUES ('x')",
                "COMMIT",
            ],
        )
        .await;
        client.note("as before");
        client.simple(command::RESET_CONNECTION, &[]).await.unwrap();
        queries(client, &["SET wait_timeout = 1000", "SET @a = 2", "BEGIN"]).await;
    })
    .await;
}

#[tokio::test]
async fn the_greeting_is_the_servers_but_for_what_is_ours() {
    let (db, proxy) = pool_of(1).await;
    let direct = RawMySql::open(&db.address()).await.unwrap().greeting;
    let through = RawMySql::open(&proxy.address()).await.unwrap().greeting;
    assert_eq!(
        (&direct.version, direct.collation, direct.status),
        (&through.version, through.collation, through.status)
    );
    let lost = direct.capabilities & !through.capabilities;
    // What is left: flags for the client library alone, expired passwords, progress reports, ODBC, and MariaDB's cache of metadata.
    let known = (1 << 14)
        | (1 << 31)
        | (1 << 4)
        | (1 << 6)
        | (1 << 22)
        | (1 << 29)
        | (1 << 32)
        | (1 << 33)
        | (1 << 36)
        | (1 << 37);
    assert_eq!(lost & !known, 0, "{lost:#x}");
    let ours = through.capabilities & !direct.capabilities;
    assert_eq!(ours, capability::ZSTD, "{ours:#x}");
}

#[tokio::test]
async fn the_version_told_is_configurable() {
    let db = Server::mariadb().start().await;
    let proxy = Proxy::in_front_of(&db).proxy_setting("server_version = \"8.0.99-shown\"").start().await;
    let client = proxy.raw_mysql().await;
    assert_eq!(client.greeting.version, "8.0.99-shown");
    proxy.rewrite_config(|text| text.replace("8.0.99-shown", "5.7.1-later"));
    proxy.sighup();
    until("the new version is told", async || proxy.raw_mysql().await.greeting.version == "5.7.1-later")
        .await;
}

// ---- size

/// Sets a bound to what relaying `work` may cost the proxy in memory.
async fn without_being_held(proxy: &Proxy, most_kib: u64, work: impl AsyncFnOnce()) {
    let before = proxy.memory_kib("VmRSS");
    work().await;
    let grown = proxy.memory_kib("VmHWM").saturating_sub(before);
    println!("grown by {grown} KiB");
    assert!(grown < most_kib, "grown by {grown} KiB");
}

const MIB: usize = 1 << 20;

#[tokio::test]
async fn a_value_of_40_mb_passes_without_being_held() {
    let (_db, proxy) = pool_of(1).await;
    for flags in [capability::OLD, capability::NEW] {
        let mut client = RawMySql::connect_with(&proxy.address(), flags).await;
        without_being_held(&proxy, 16 * 1024, async || {
            let replies = client.query("SELECT repeat('x', 40000000), 'end'").await;
            let [Reply::Rows(rows)] = replies.as_slice() else { panic!("{replies:?}") };
            let value = rows.texts().remove(0);
            assert_eq!(value[0].as_ref().unwrap().len(), 40_000_000);
            assert_eq!(value[1].as_deref(), Some("end"));
        })
        .await;
        assert_eq!(client.scalar("SELECT 1").await, "1");
    }
}

#[tokio::test]
async fn a_query_of_40_mb_passes_without_being_held() {
    let (_db, proxy) = pool_of(1).await;
    for flags in [capability::OLD, capability::NEW] {
        let mut client = RawMySql::connect_with(&proxy.address(), flags).await;
        without_being_held(&proxy, 16 * 1024, async || {
            let sql = format!("SELECT length('{}')", "x".repeat(40_000_000));
            assert_eq!(client.scalar(&sql).await, "40000000");
        })
        .await;
        assert_eq!(client.scalar("SELECT 1").await, "1");
    }
}

#[tokio::test]
async fn parameters_of_40_mb_pass_without_being_held() {
    let (_db, proxy) = pool_of(1).await;
    let mut client = proxy.raw_mysql().await;
    let prepared = client.prepare("SELECT length(?), right(?, 1)").await.unwrap();
    let large = "z".repeat(40_000_000);
    without_being_held(&proxy, 16 * 1024, async || {
        let replies = client.execute(prepared.id, 0, &[Some(&large), Some("ab")]).await;
        let [Reply::Rows(rows)] = replies.as_slice() else { panic!("{replies:?}") };
        assert_eq!(rows.values()[0], [Some("40000000".to_owned()), Some("b".to_owned())]);
        // In pieces that are packets each, and in one that is split.
        for piece in large.as_bytes().chunks(7_000_000) {
            client.send_long_data(prepared.id, 0, piece).await;
        }
        client.send_long_data(prepared.id, 1, large.as_bytes()).await;
        let body = [prepared.id.to_le_bytes().as_slice(), &[0, 1, 0, 0, 0, 0, 1, 0xfc, 0, 0xfc, 0]].concat();
        client.command(command::STMT_EXECUTE, &body).await;
        let replies = client.read_replies().await;
        let [Reply::Rows(rows)] = replies.as_slice() else { panic!("{replies:?}") };
        assert_eq!(rows.values()[0], [Some("40000000".to_owned()), Some("z".to_owned())]);
    })
    .await;
    assert_eq!(client.scalar("SELECT 1").await, "1");
}

/// A payload of exactly the longest packet goes on with an empty one, and one byte more or less does not matter.
#[tokio::test]
async fn payloads_around_the_longest_packet_pass() {
    const LONGEST: usize = 0xff_ffff;
    same_as_direct_for(&FLAGS[..2], 0, async |client| {
        for length in [LONGEST - 1, LONGEST, LONGEST + 1, 2 * LONGEST] {
            client.note(&format!("a query of {length}"));
            let front = "SELECT length('')";
            let sql = format!("SELECT length('{}')", "x".repeat(length - 1 - front.len()));
            client.query(&sql).await;
            client.note(&format!("a row of {length}"));
            let head = if length > LONGEST + 4 { 9 } else { 4 };
            client.query(&format!("SELECT repeat('y', {})", length - head)).await;
            client.note(&format!("an execution of {length}"));
            let prepared = client.prepare("SELECT length(?)").await.unwrap();
            // Command, id, flags, iterations, nulls, new types, type: 14 bytes before the value and its length.
            client.execute(prepared.id, 0, &[Some(&"z".repeat(length - 14 - head))]).await;
            client.note(&format!("long data of {length}"));
            client.send_long_data(prepared.id, 0, &vec![b'l'; length - 7]).await;
            let body = [prepared.id.to_le_bytes().as_slice(), &[0, 1, 0, 0, 0, 0, 1, 0xfc, 0]].concat();
            client.command(command::STMT_EXECUTE, &body).await;
            client.read_replies().await;
            client.close_statement(prepared.id).await;
        }
        client.query("SELECT 1").await;
    })
    .await;
}

#[tokio::test]
async fn a_statement_too_long_for_the_server_is_its_own_error() {
    let db = Server::mariadb().setting("max-allowed-packet", "1M").start().await;
    let proxy = Proxy::in_front_of(&db).max_connections(2).start().await;
    for length in [2 * MIB, 8 * MIB] {
        let mut client = proxy.raw_mysql().await;
        let sql = format!("SELECT length('{}')", "x".repeat(length));
        client.command(command::QUERY, sql.as_bytes()).await;
        // The server reads it to its end, says so and closes.
        match client.read().await {
            None => {}
            Some(packet) => assert_eq!(packet[0], 0xff, "{}", packet.escape_ascii()),
        }
        let mut other = proxy.raw_mysql().await;
        assert_eq!(other.scalar("SELECT 1").await, "1");
    }
}

// ---- compression

#[tokio::test]
async fn clients_may_compress() {
    let (db, proxy) = pool_of(1).await;
    let script: &[&str] = &[
        "SELECT 1",
        "SELECT repeat('long enough to be packed ', 1000)",
        "SELECT seq, uuid() IS NULL FROM seq_1_to_5000",
        "SELECT nonsense",
        "INSERT INTO t (v) VALUES (repeat('a', 1000))",
        "DELETE FROM t WHERE id > 3",
    ];
    let wanted = RawMySql::connect(&db.address()).await.transcript(&script[..4]).await;
    for packing in [capability::COMPRESS, capability::ZSTD, capability::COMPRESS | capability::ZSTD] {
        for flags in [capability::OLD, capability::NEW] {
            let mut client = RawMySql::connect_with(&proxy.address(), flags | packing).await;
            assert_eq!(client.capabilities & packing, packing);
            let seen = client.transcript(script).await;
            if flags == capability::NEW {
                assert_eq!(seen[..4], wanted);
            }
            assert_eq!(seen.len(), script.len());
            client.simple(command::PING, &[]).await.unwrap();
        }
    }
}

#[tokio::test]
async fn compressed_packets_may_be_large() {
    let (_db, proxy) = pool_of(1).await;
    for packing in [capability::COMPRESS, capability::ZSTD] {
        let mut client = RawMySql::connect_with(&proxy.address(), capability::NEW | packing).await;
        // What does not get smaller, and what gets very small.
        for value in ["x".repeat(20_000_000), noise(20_000_000)] {
            let sql = format!("SELECT '{value}'");
            let rows = client.rows(&sql).await;
            assert!(rows[0][0].as_deref() == Some(value.as_str()), "another value came back");
        }
        assert_eq!(client.scalar("SELECT 1").await, "1");
    }
}

/// Letters in no order, the same each time.
fn noise(length: usize) -> String {
    let mut state = 88_172_645_463_325_252_u64;
    let letter = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        char::from(b'0' + (state % 64) as u8).to_ascii_lowercase()
    };
    (0..length).map(letter).map(|c| if c == '\\' || c == '\'' { '_' } else { c }).collect()
}

#[tokio::test]
async fn a_compressing_client_of_mariadb_is_served_with_and_without_tls() {
    let db = Server::mariadb().start().await;
    let proxy =
        Proxy::in_front_of(&db).max_connections(1).tls().proxy_setting("require_tls = false").start().await;
    for address in [proxy.address(), proxy.address().plain()] {
        let script = "SELECT length(repeat('x', 3000000)); SELECT repeat('ab', 100000)";
        let said = foreign::mariadb(&address, &["--compress", "-N"], script).await;
        assert_eq!(said, format!("3000000\n{}\n", "ab".repeat(100_000)));
    }
}

/// Packed bytes that do not unpack end the connection, and only that.
#[tokio::test]
async fn malformed_compression_ends_the_connection() {
    let (_db, proxy) = pool_of(1).await;
    for bytes in [
        b"\x05\0\0\0\x20\0\0noise".as_slice(),
        b"\xff\xff\xff\0\xff\xff\xff",
        b"\x05\0\0\0\xff\xff\xffnoise",
        b"\x01\0\0\0\0\0\0x",
    ] {
        for packing in [capability::COMPRESS, capability::ZSTD] {
            let address = proxy.address();
            let mut client = RawMySql::connect_with(&address, capability::NEW | packing).await;
            client.send_packed_bytes(bytes).await;
            client.finish_sending().await;
            client.expect_closed().await;
        }
    }
    assert_eq!(proxy.raw_mysql().await.scalar("SELECT 1").await, "1");
}

// ---- drivers' flags

/// What each driver's login says, as seen on the wire: both ends must agree on what every reply looks like.
#[tokio::test]
async fn clients_with_each_drivers_flags_are_served() {
    let (db, proxy) = pool_of(2).await;
    let usual = capability::LONG_FLAG
        | capability::PROTOCOL_41
        | capability::TRANSACTIONS
        | capability::SECURE_CONNECTION
        | capability::PLUGIN_AUTH
        | capability::CONNECT_WITH_DB;
    let attributes = capability::CONNECT_ATTRS | capability::PLUGIN_AUTH_LENENC;
    let results = capability::MULTI_RESULTS | capability::PS_MULTI_RESULTS;
    let several = capability::MULTI_STATEMENTS;
    for (driver, flags) in [
        ("PyMySQL, asyncmy", usual | results | capability::CONNECT_ATTRS | capability::PLUGIN_AUTH_LENENC),
        (
            "PyMySQL, several statements",
            usual | results | several | capability::CONNECT_ATTRS | capability::PLUGIN_AUTH_LENENC,
        ),
        (
            "libmariadb",
            usual
                | results
                | several
                | attributes
                | capability::SESSION_TRACK
                | capability::MARIADB_BULK
                | capability::MARIADB_EXTENDED_METADATA,
        ),
        (
            "mariadb client",
            usual
                | results
                | several
                | attributes
                | capability::SESSION_TRACK
                | capability::LOCAL_FILES
                | capability::INTERACTIVE
                | capability::MARIADB_BULK
                | capability::MARIADB_EXTENDED_METADATA,
        ),
        (
            "libmysqlclient 8",
            usual
                | results
                | several
                | attributes
                | capability::SESSION_TRACK
                | capability::DEPRECATE_EOF
                | capability::LOCAL_FILES
                | capability::MYSQL
                | capability::QUERY_ATTRIBUTES
                | capability::OPTIONAL_RESULTSET_METADATA,
        ),
        (
            "Connector/J",
            usual
                | results
                | attributes
                | capability::DEPRECATE_EOF
                | capability::FOUND_ROWS
                | capability::MYSQL,
        ),
        (
            "mysql2 for Node",
            usual
                | results
                | attributes
                | capability::IGNORE_SPACE
                | capability::FOUND_ROWS
                | capability::DEPRECATE_EOF
                | capability::MYSQL,
        ),
        (
            "go-sql-driver",
            usual
                | capability::MULTI_RESULTS
                | capability::PLUGIN_AUTH_LENENC
                | capability::CONNECT_ATTRS
                | capability::LOCAL_FILES
                | capability::MYSQL,
        ),
        (
            "sqlx",
            usual
                | results
                | several
                | capability::PLUGIN_AUTH_LENENC
                | capability::DEPRECATE_EOF
                | capability::FOUND_ROWS
                | capability::IGNORE_SPACE,
        ),
        (
            "mysql_async",
            usual
                | results
                | several
                | attributes
                | capability::DEPRECATE_EOF
                | capability::LOCAL_FILES
                | capability::MYSQL,
        ),
        ("nothing but what there must be", capability::PROTOCOL_41 | capability::SECURE_CONNECTION),
        ("no authentication by name", usual & !capability::PLUGIN_AUTH),
    ] {
        let script = [
            "SELECT 1, 'x'",
            "USE appdb",
            "SELECT id, v FROM t ORDER BY id",
            "SELECT nonsense",
            "SET time_zone = '+01:00'",
            "BEGIN",
            "UPDATE t SET v = v",
            "ROLLBACK",
            "SELECT max(id) FROM t",
            "SELECT 1; SELECT 2",
        ];
        let mut seen = Vec::new();
        for address in [db.address(), proxy.address()] {
            let mut client = RawMySql::open(&address).await.unwrap();
            let mut login = Login::new(&address, flags);
            if flags & capability::PLUGIN_AUTH == 0 {
                login = login.plugin("mysql_native_password");
            }
            client.login(&address, &login).await.unwrap_or_else(|e| panic!("{driver}: {e:?}"));
            let mut lines = client.transcript(&script).await;
            let prepared = client.prepare("SELECT id FROM t WHERE v = ?").await.unwrap();
            lines.push(format!("{:?}", client.execute(prepared.id, 0, &[Some("two")]).await));
            seen.push(lines);
        }
        assert_eq!(seen[0], seen[1], "{driver}: direct, through the proxy");
    }
}

#[tokio::test]
async fn both_protocols_agree_on_values() {
    let (_db, proxy) = pool_of(1).await;
    let mut client = proxy.raw_mysql().await;
    let text = client.rows("SELECT id, v FROM t ORDER BY id").await;
    let prepared = client.prepare("SELECT id, v FROM t ORDER BY id").await.unwrap();
    let replies = client.execute(prepared.id, 0, &[]).await;
    let [Reply::Rows(rows @ Rows { end: Ok(_), .. })] = replies.as_slice() else { panic!("{replies:?}") };
    assert_eq!(rows.values(), text);
}
