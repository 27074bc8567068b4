//! Session state that moves: settings and prepared statements follow their client from one server connection to the next,
//! no client meets another's, and pins end when the server says that their reason is gone.
#![allow(clippy::unwrap_used)]

use pinion_tests::{Client, Proxy, RawClient, Server, until, wire};

struct Bench {
    pg: Server,
    proxy: Proxy,
}

async fn bench(connections: u32) -> Bench {
    let pg = Server::postgres().start().await;
    let proxy = Proxy::in_front_of(&pg)
        .max_connections(connections)
        .pool("connection_borrow_timeout = \"300ms\"")
        .start()
        .await;
    let direct = pg.direct().await;
    direct
        .execute(
            "GRANT md5user TO app;
             CREATE FUNCTION public.which() RETURNS text LANGUAGE sql AS $$ SELECT 'public' $$;
             CREATE FUNCTION other.which() RETURNS text LANGUAGE sql AS $$ SELECT 'other' $$;
             CREATE FUNCTION sets(n text, v text) RETURNS text LANGUAGE plpgsql AS
                 $$ BEGIN RETURN set_config(n, v, false); END $$;
             CREATE FUNCTION enters(v text) RETURNS text LANGUAGE sql AS $$ SELECT set_config('app.tenant', v, false) $$;
             CREATE FUNCTION locks() RETURNS void LANGUAGE sql AS $$ SELECT pg_advisory_lock(77) $$;
             CREATE FUNCTION unlocks() RETURNS void LANGUAGE sql AS $$ SELECT pg_advisory_unlock(77) $$;
             CREATE FUNCTION makes() RETURNS void LANGUAGE plpgsql AS $$ BEGIN CREATE TEMP TABLE made (n int); END $$;
             CREATE PROCEDURE listens() LANGUAGE plpgsql AS $$ BEGIN EXECUTE 'LISTEN called'; END $$;",
        )
        .await;
    Bench { pg, proxy }
}

impl Bench {
    async fn pins(&self) -> f64 {
        self.proxy.metric("pinion_pins_total", &[]).await
    }

    /// Others use every connection that is free.
    async fn spoil(&self, others: &[Client]) {
        for other in others {
            // One statement more, since a transaction begins with its first.
            other.try_execute("BEGIN").await.ok();
            other.try_execute("SELECT 1").await.ok();
        }
        for other in others {
            other.try_execute("COMMIT").await.ok();
        }
    }
}

/// What makes a setting, what reads it, and what a client reads that has made none.
const SETTINGS: &[(&str, &str, &str, &str)] = &[
    ("SET work_mem = '3MB'", "SHOW work_mem", "3MB", "4MB"),
    ("SET work_mem TO '5MB'; SELECT 1", "SHOW work_mem", "5MB", "4MB"),
    ("BEGIN; SET work_mem = '6MB'; COMMIT", "SHOW work_mem", "6MB", "4MB"),
    ("BEGIN; SET work_mem = '6MB'; ROLLBACK", "SHOW work_mem", "4MB", "4MB"),
    ("SET search_path = other, public", "SELECT which()", "other", "public"),
    ("SET TIME ZONE 'Asia/Tokyo'", "SHOW TimeZone", "Asia/Tokyo", "UTC"),
    ("SET TIME ZONE INTERVAL '+03:30' HOUR TO MINUTE", "SHOW TimeZone", "<+03:30>-03:30", "UTC"),
    ("SET NAMES 'LATIN1'", "SHOW client_encoding", "LATIN1", "UTF8"),
    ("SET ROLE md5user", "SELECT current_user::text", "md5user", "app"),
    ("SELECT set_config('role', 'md5user', false)", "SELECT current_user::text", "md5user", "app"),
    ("SET app.tenant = 'seven'", "SELECT coalesce(current_setting('app.tenant', true), '')", "seven", ""),
    (
        "SELECT set_config('app.tenant', 'back\\slash ''quoted''', false)",
        "SELECT coalesce(current_setting('app.tenant', true), '')",
        "back\\slash 'quoted'",
        "",
    ),
    ("SET standard_conforming_strings = off", "SHOW standard_conforming_strings", "off", "on"),
    ("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY", "SHOW transaction_read_only", "on", "off"),
    (
        "SET default_transaction_isolation FROM CURRENT",
        "SHOW transaction_isolation",
        "read committed",
        "read committed",
    ),
    (
        "SELECT (SELECT pg_catalog . \"set_config\"($a$work_mem$a$, $$9MB$$, 1 = 0))",
        "SHOW work_mem",
        "9MB",
        "4MB",
    ),
    ("SELECT set_config(v, '9MB', false) FROM (VALUES ('work_mem')) AS x (v)", "SHOW work_mem", "9MB", "4MB"),
    ("SELECT sets('work_mem', '7MB')", "SHOW work_mem", "7MB", "4MB"),
    ("SELECT enters('nine')", "SELECT coalesce(current_setting('app.tenant', true), '')", "nine", ""),
    ("DO $$ BEGIN SET work_mem = '8MB'; END $$", "SHOW work_mem", "8MB", "4MB"),
    ("PREPARE p (int) AS SELECT $1 + 1", "EXECUTE p (41)", "42", ""),
];

/// In turn on every connection of the pool: two clients of which one has made a setting, each sees its own.
#[tokio::test]
async fn settings_follow_their_client_and_nobody_else() {
    let bench = bench(2).await;
    for (set, read, own, nobodys) in SETTINGS {
        let (setting, plain) = (bench.proxy.connect().await, bench.proxy.connect().await);
        let others = [bench.proxy.connect().await, bench.proxy.connect().await];
        setting.execute(set).await;
        for _ in 0..3 {
            assert_eq!(setting.scalar::<String>(read).await, *own, "{set}: A lost it");
            if !nobodys.is_empty() || !read.starts_with("EXECUTE") {
                assert_eq!(plain.scalar::<String>(read).await, *nobodys, "{set}: B has it");
            } else {
                assert_eq!(plain.sqlstate(read).await, "26000", "{set}: B has it");
            }
            bench.spoil(&others).await;
        }
        for client in [setting, plain].into_iter().chain(others) {
            client.close().await;
        }
    }
    assert_eq!(bench.pins().await, 0.0);
}

/// Each setting, and what takes it back.
#[tokio::test]
async fn settings_are_taken_back() {
    let bench = bench(2).await;
    let others = [bench.proxy.connect().await, bench.proxy.connect().await];
    for (set, reset, read, after) in [
        ("SET work_mem = '3MB'", "RESET work_mem", "SHOW work_mem", "4MB"),
        ("SET work_mem = '3MB'", "SET work_mem TO DEFAULT", "SHOW work_mem", "4MB"),
        ("SET work_mem = '3MB'", "RESET ALL", "SHOW work_mem", "4MB"),
        ("SET work_mem = '3MB'", "SELECT 1; RESET ALL", "SHOW work_mem", "4MB"),
        ("SET work_mem = '3MB'", "DISCARD ALL", "SHOW work_mem", "4MB"),
        ("SET ROLE md5user", "RESET ROLE", "SELECT current_user::text", "app"),
        ("SET ROLE md5user", "RESET ALL", "SELECT current_user::text", "md5user"),
        ("SET ROLE md5user", "DISCARD ALL", "SELECT current_user::text", "app"),
        ("SET ROLE md5user", "RESET SESSION AUTHORIZATION", "SELECT current_user::text", "app"),
    ] {
        let client = bench.proxy.connect().await;
        client.execute(set).await;
        bench.spoil(&others).await;
        client.execute(reset).await;
        bench.spoil(&others).await;
        assert_eq!(client.scalar::<String>(read).await, after, "{set}, then {reset}");
        client.close().await;
    }
    let client = bench.proxy.connect().await;
    for reset in ["DEALLOCATE p", "DEALLOCATE ALL", "DISCARD ALL", "BEGIN; DEALLOCATE p; ROLLBACK"] {
        client.execute("PREPARE p AS SELECT 1").await;
        bench.spoil(&others).await;
        client.execute(reset).await;
        bench.spoil(&others).await;
        assert_eq!(client.sqlstate("EXECUTE p").await, "26000", "{reset}");
    }
    assert_eq!(bench.pins().await, 0.0);
}

/// Each gets a connection that wears its settings already: nothing is made again.
#[tokio::test]
async fn a_connection_that_wears_the_right_settings_is_preferred() {
    let bench = bench(3).await;
    let mut clients = Vec::new();
    for value in ["1MB", "2MB", "3MB"] {
        let client = bench.proxy.connect().await;
        client.execute(&format!("SET work_mem = '{value}'")).await;
        clients.push((client, value));
    }
    let all_at_once = async || {
        for (client, _) in &clients {
            client.execute("BEGIN").await;
        }
        for (client, value) in &clients {
            assert_eq!(client.scalar::<String>("SHOW work_mem").await, *value);
        }
        for (client, _) in &clients {
            client.execute("COMMIT").await;
        }
    };
    // Each has a connection of its own afterwards.
    all_at_once().await;
    let before = bench.proxy.metric("pinion_state_sync_total", &[]).await;
    for _ in 0..10 {
        for (client, value) in clients.iter().rev() {
            assert_eq!(client.scalar::<String>("SHOW work_mem").await, *value);
        }
        all_at_once().await;
    }
    assert_eq!(bench.proxy.metric("pinion_state_sync_total", &[]).await, before);
    assert_eq!(bench.pins().await, 0.0);
}

/// What cannot be made again is not left out: the request does not run.
#[tokio::test]
async fn a_setting_that_fails_lets_no_request_through() {
    let bench = bench(2).await;
    let (client, other) = (bench.proxy.connect().await, bench.proxy.connect().await);
    client.execute("CREATE TABLE ran (n int)").await;
    client.execute("SET ROLE md5user").await;
    bench.pg.direct().await.execute("GRANT INSERT ON ran TO app, md5user; REVOKE md5user FROM app").await;
    // Every connection has been somebody else's.
    bench.spoil(&[bench.proxy.connect().await, other, bench.proxy.connect().await]).await;
    assert_eq!(client.sqlstate("INSERT INTO ran VALUES (1)").await, "55000");
    assert_eq!(bench.pg.direct().await.scalar::<i64>("SELECT count(*) FROM ran").await, 0);
    client.execute("DISCARD ALL").await;
    client.execute("INSERT INTO ran VALUES (2)").await;
}

/// What pins, what looks as if it ended that, and what does.
const ENDS: &[(&str, &[&str], &str)] = &[
    ("CREATE TEMP TABLE a (n int)", &["SELECT 1", "DROP TABLE IF EXISTS nothing"], "DROP TABLE a"),
    ("CREATE TEMP TABLE a (n int); CREATE TEMP TABLE b (n int)", &["DROP TABLE a"], "DROP TABLE b"),
    ("CREATE TEMP TABLE a (n int)", &["BEGIN; DROP TABLE a; ROLLBACK"], "BEGIN; DROP TABLE a; COMMIT"),
    ("CREATE TEMP SEQUENCE a", &[], "DROP SEQUENCE a"),
    ("CREATE TEMP VIEW a AS SELECT 1", &[], "DROP VIEW a"),
    ("SELECT pg_advisory_lock(1)", &["SELECT pg_advisory_unlock(2)"], "SELECT pg_advisory_unlock(1)"),
    (
        "SELECT pg_advisory_lock(1), pg_advisory_lock(1)",
        &["SELECT pg_advisory_unlock(1)"],
        "SELECT pg_advisory_unlock(1)",
    ),
    ("SELECT pg_advisory_lock_shared(1)", &[], "SELECT pg_advisory_unlock_shared(1)"),
    ("BEGIN; LISTEN one; LISTEN two; COMMIT", &["UNLISTEN one", "UNLISTEN three"], "UNLISTEN two"),
    (
        "BEGIN; DECLARE c CURSOR WITH HOLD FOR SELECT 1; DECLARE d CURSOR WITH HOLD FOR SELECT 1; COMMIT",
        &["CLOSE c"],
        "CLOSE d",
    ),
    ("SELECT locks()", &["SELECT 1"], "SELECT unlocks()"),
    ("SELECT makes()", &["SELECT count(*) FROM made"], "DROP TABLE made"),
    ("CALL listens()", &["SELECT 1"], "UNLISTEN called"),
    ("PREPARE p AS SELECT lastval()", &["PREPARE q AS SELECT 1"], "DEALLOCATE p"),
];

#[tokio::test]
async fn a_pin_ends_when_the_server_says_that_its_reason_is_gone() {
    let bench = bench(1).await;
    for (set, not_yet, end) in ENDS {
        let (a, b) = (bench.proxy.connect().await, bench.proxy.connect().await);
        a.execute(set).await;
        assert_eq!(b.sqlstate("SELECT 1").await, "08000", "{set} does not pin");
        for text in *not_yet {
            a.execute(text).await;
            assert_eq!(b.sqlstate("SELECT 1").await, "08000", "{set}: {text} ended it");
        }
        a.execute(end).await;
        b.try_execute("SELECT 1").await.unwrap_or_else(|e| panic!("{set}: {end} did not end it: {e}"));
        a.execute("SELECT 1").await;
        a.close().await;
        b.close().await;
    }
}

/// What is rolled back has not pinned.
#[tokio::test]
async fn a_rollback_ends_the_pins_of_its_transaction() {
    let bench = bench(1).await;
    let (a, b) = (bench.proxy.connect().await, bench.proxy.connect().await);
    for text in ["CREATE TEMP TABLE a (n int)", "LISTEN ch", "DECLARE c CURSOR WITH HOLD FOR SELECT 1"] {
        for end in ["ROLLBACK", "SELECT nothing FROM nowhere; COMMIT"] {
            a.execute("BEGIN").await;
            a.execute(text).await;
            a.try_execute(end).await.ok();
            a.try_execute("ROLLBACK").await.ok();
            b.try_execute("SELECT 1").await.unwrap_or_else(|e| panic!("{text}, {end}: {e}"));
        }
    }
}

/// Notifications that arrive while the server is asked are not lost.
#[tokio::test]
async fn notifications_are_heard_while_the_server_is_asked() {
    let bench = bench(2).await;
    let mut a = bench.proxy.raw().await;
    let b = bench.proxy.connect().await;
    // Such a one is heard by the client's own connection.
    a.query("BEGIN; LISTEN one; LISTEN two; COMMIT").await;
    let mut heard = 0;
    for round in 0..50 {
        b.execute(&format!("NOTIFY one, '{round}'")).await;
        // Each asks the server.
        heard += a.query("UNLISTEN two").await.iter().filter(|message| message.tag == b'A').count();
        heard += a.query("LISTEN two").await.iter().filter(|message| message.tag == b'A').count();
    }
    until("all have come", async || {
        heard += a.query("SELECT 1").await.iter().filter(|message| message.tag == b'A').count();
        heard == 50
    })
    .await;
}

/// Settings of a client that is cut off in the middle of a transaction are nobody's.
#[tokio::test]
async fn what_a_lost_client_had_set_is_gone() {
    let bench = bench(1).await;
    let a = bench.proxy.connect().await;
    a.execute("SET work_mem = '3MB'").await;
    a.execute("BEGIN").await;
    a.execute("SET search_path = other").await;
    a.vanish();
    let b = bench.proxy.connect().await;
    until("there is a connection", async || b.try_execute("SELECT 1").await.is_ok()).await;
    assert_eq!(b.scalar::<String>("SHOW work_mem").await, "4MB");
    assert_eq!(b.scalar::<String>("SHOW search_path").await, "\"$user\", public");
}

/// The first column of the first row that executing a statement of the protocol returns, or the error's code.
async fn executed(client: &mut RawClient, name: &str) -> String {
    client.send_all(&[wire::bind("", name, &[]), wire::execute("", 0), wire::sync()]).await;
    let reply = client.read_reply().await;
    match reply.iter().find(|message| matches!(message.tag, b'D' | b'E')).unwrap() {
        row if row.tag == b'D' => row.columns()[0].clone().unwrap_or_default(),
        error => error.error().code,
    }
}

async fn prepared(client: &mut RawClient, name: &str, text: &str) {
    client.send_all(&[wire::parse(name, text), wire::sync()]).await;
    assert!(client.read_reply().await.iter().any(|message| message.tag == b'1'), "{text}");
}

/// Settings, a text that means another thing under each, and what.
const MEANINGS: &[(&str, &str, &str, &str)] = &[
    ("SET datestyle = 'ISO, DMY'", "SELECT '01/02/2020'::date::text", "2020-02-01", "2020-01-02"),
    (
        "SET timezone = 'Asia/Tokyo'",
        "SELECT extract(epoch FROM '2020-01-01 00:00'::timestamptz)::bigint::text",
        "1577804400",
        "1577836800",
    ),
    ("SET search_path = other, public", "SELECT which()", "other", "public"),
    (
        "BEGIN; SET datestyle = 'ISO, DMY'; COMMIT",
        "SELECT '01/02/2020'::date::text",
        "2020-02-01",
        "2020-01-02",
    ),
];

/// Statements are shared by those who have the same settings only: literals are read when a statement is prepared.
#[tokio::test]
async fn a_shared_statement_means_to_each_what_its_settings_say() {
    let bench = bench(2).await;
    let others = [bench.proxy.connect().await, bench.proxy.connect().await];
    for (n, (set, text, own, nobodys)) in MEANINGS.iter().enumerate() {
        let name = format!("s{n}");
        let (mut setting, mut plain) = (bench.proxy.raw().await, bench.proxy.raw().await);
        setting.query(set).await;
        // Both orders, on every connection.
        prepared(&mut plain, &name, text).await;
        prepared(&mut setting, &name, text).await;
        for _ in 0..3 {
            assert_eq!(executed(&mut setting, &name).await, *own, "{set}");
            bench.spoil(&others).await;
            assert_eq!(executed(&mut plain, &name).await, *nobodys, "{set}");
            bench.spoil(&others).await;
        }
    }
}

/// A literal means what it did when the statement was prepared, whatever its client has set since, on every connection.
#[tokio::test]
async fn literals_are_read_as_they_were_when_the_statement_was_prepared() {
    let bench = bench(2).await;
    let others = [bench.proxy.connect().await, bench.proxy.connect().await];
    let text = "SELECT '01/02/2020'::date::text";
    for set in ["SET datestyle = 'ISO, DMY'", "BEGIN; SET datestyle = 'ISO, DMY'; COMMIT"] {
        let mut client = bench.proxy.raw().await;
        prepared(&mut client, "before", text).await;
        client.query(set).await;
        prepared(&mut client, "after", text).await;
        client.query("RESET datestyle").await;
        prepared(&mut client, "again", text).await;
        client.query(set).await;
        for _ in 0..4 {
            bench.spoil(&others).await;
            assert_eq!(executed(&mut client, "before").await, "2020-01-02", "{set}");
            assert_eq!(executed(&mut client, "after").await, "2020-02-01", "{set}");
            assert_eq!(executed(&mut client, "again").await, "2020-01-02", "{set}");
        }
        assert_eq!(bench.pins().await, 0.0);
    }
    // Prepared under a setting that ends with its transaction.
    let mut client = bench.proxy.raw().await;
    client.query("BEGIN").await;
    client.query("SET LOCAL datestyle = 'ISO, DMY'").await;
    prepared(&mut client, "local", text).await;
    client.query("COMMIT").await;
    for _ in 0..4 {
        bench.spoil(&others).await;
        assert_eq!(executed(&mut client, "local").await, "2020-02-01");
        let mut other = bench.proxy.raw().await;
        prepared(&mut other, "local", text).await;
        assert_eq!(executed(&mut other, "local").await, "2020-01-02");
    }
}

/// Who prepares a text after a schema has changed is not told that somebody's plan does not fit any more.
#[tokio::test]
async fn a_schema_change_concerns_only_those_who_prepared_before_it() {
    let bench = bench(2).await;
    let ddl = bench.proxy.connect().await;
    ddl.execute("CREATE TABLE changing (n int); INSERT INTO changing VALUES (1)").await;
    for round in 0..5 {
        let mut before = [bench.proxy.raw().await, bench.proxy.raw().await];
        for client in &mut before {
            prepared(client, "s", "SELECT * FROM changing").await;
            assert_eq!(executed(client, "s").await, "1");
        }
        ddl.execute("BEGIN").await;
        ddl.execute(&format!("ALTER TABLE changing ADD COLUMN c{round} int")).await;
        ddl.execute("COMMIT").await;
        let mut after = bench.proxy.raw().await;
        prepared(&mut after, "s", "SELECT * FROM changing").await;
        for _ in 0..3 {
            assert_eq!(executed(&mut after, "s").await, "1");
        }
        // Who had prepared it is told, as directly, or is served.
        for client in &mut before {
            let told = executed(client, "s").await;
            assert!(told == "0A000" || told == "1", "{told}");
            client.send_all(&[wire::close_statement("s"), wire::sync()]).await;
            client.read_reply().await;
            prepared(client, "s", "SELECT * FROM changing").await;
            assert_eq!(executed(client, "s").await, "1");
        }
    }
}

/// What takes state back is answered as a server does, and needs none when there is nothing to take back.
#[tokio::test]
async fn resets_of_clients_without_state_need_no_server() {
    let bench = bench(1).await;
    let mut direct = RawClient::connect(&bench.pg.address()).await;
    let mut client = bench.proxy.raw().await;
    prepared(&mut client, "mine", "SELECT 1").await;
    let holder = bench.proxy.connect().await;
    holder.execute("BEGIN").await;
    holder.execute("SELECT 1").await;
    for text in [
        "DISCARD ALL",
        "RESET ALL",
        "DEALLOCATE ALL",
        "UNLISTEN *",
        "CLOSE ALL",
        "DISCARD TEMP; DISCARD PLANS",
        "RESET ROLE; SET SESSION AUTHORIZATION DEFAULT",
        "SELECT pg_advisory_unlock_all(); CLOSE ALL; UNLISTEN *; RESET ALL;",
        "SET SESSION AUTHORIZATION DEFAULT;RESET ALL;CLOSE ALL;UNLISTEN *;SELECT pg_advisory_unlock_all();DISCARD TEMP",
    ] {
        assert_eq!(client.query(text).await, direct.query(text).await, "{text}");
    }
    // What is not quite that asks the server.
    for text in ["SELECT pg_advisory_unlock_all() AS n", "DISCARD ALL; RESET ALL", "RESET work_mem"] {
        assert!(
            client.query(text).await.iter().any(|m| m.tag == b'E' && m.error().code == "08000"),
            "{text}"
        );
    }
    holder.execute("COMMIT").await;
    // The statement is gone, and a setting is truly taken back.
    assert_eq!(executed(&mut client, "mine").await, "26000");
    client.query("SET timezone = 'Asia/Tokyo'").await;
    let told: Vec<_> = client.query("RESET ALL").await;
    assert!(told.iter().any(|message| message.tag == b'S'), "{told:?}");
}
