//! Profile `smart`: a session keeps its server connection exactly while it has state there, and leaves none behind.
#![allow(clippy::unwrap_used)]

use pinion_tests::{Client, Proxy, Server, until, wire};

struct Bench {
    /// Lives as long as the proxy in front of it.
    _pg: Server,
    proxy: Proxy,
}

/// A pool of one connection and a short wait for it.
async fn bench() -> Bench {
    let pg = Server::postgres().start().await;
    let builder = Proxy::in_front_of(&pg).max_connections(1).pool("connection_borrow_timeout = \"300ms\"");
    let proxy = builder.start().await;
    Bench { _pg: pg, proxy }
}

impl Bench {
    async fn two(&self) -> (Client, Client) {
        (self.proxy.connect().await, self.proxy.connect().await)
    }
}

/// In a session of its own, each text pins for `reason`.
async fn pins(reason: &str, texts: &[&str]) {
    let bench = bench().await;
    for (n, text) in texts.iter().enumerate() {
        let (a, b) = bench.two().await;
        a.execute(text).await;
        assert_eq!(b.sqlstate("SELECT 1").await, "08000", "{text}: B got A's connection");
        let counted = bench.proxy.metric("pinion_pins_total", &[("reason", reason)]).await;
        assert_eq!(counted, (n + 1) as f64, "{text}: {reason}");
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
        a.execute(text).await;
        b.try_execute("SELECT 1").await.unwrap_or_else(|e| panic!("{text} pinned: {e}"));
    }
    assert_eq!(bench.proxy.metric("pinion_pins_total", &[]).await, 0.0);
}

/// `set` pins, and `clear` ends that: another client gets the connection while A stays.
async fn unpins(set: &str, clear: &str) {
    let bench = bench().await;
    let (a, b) = bench.two().await;
    a.execute(set).await;
    assert_eq!(b.sqlstate("SELECT 1").await, "08000", "{set} did not pin");
    a.execute(clear).await;
    b.try_execute("SELECT 1").await.unwrap_or_else(|e| panic!("{clear} did not unpin {set}: {e}"));
    assert_eq!(bench.proxy.metric("pinion_database_connections_currently_session_pinned", &[]).await, 0.0);
    a.execute("SELECT 1").await;
}

#[tokio::test]
async fn temp_table_keeps_its_connection() {
    let pg = Server::postgres().start().await;
    let proxy = Proxy::in_front_of(&pg).max_connections(2).start().await;
    let (a, b) = (proxy.connect().await, proxy.connect().await);
    a.execute("CREATE TEMP TABLE mine AS SELECT 7 AS n").await;
    b.execute("SELECT 1").await; // would be lent a's connection, had it gone back
    assert_eq!(a.scalar::<i32>("SELECT n FROM mine").await, 7);
    assert_eq!(b.sqlstate("SELECT n FROM mine").await, "42P01"); // undefined_table: b never sees a's server
}

#[tokio::test]
async fn pin_p_01_settings_move_with_their_client() {
    does_not_pin(&[
        "SET work_mem = '2MB'",
        "SET search_path = other, public",
        "SELECT set_config('work_mem', '2MB', false)",
        "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
        "BEGIN; SET work_mem = '3MB'; COMMIT",
        "RESET work_mem",
        "SET work_mem TO DEFAULT",
    ])
    .await;
}

/// A value in letters that depend on the session's encoding is not made again elsewhere.
#[tokio::test]
async fn pin_p_01_settings_that_cannot_move_keep_their_connection() {
    pins("session-variable", &["SET app.name = 'é'", "SELECT set_config('app.name', 'é', false)"]).await;
}

#[tokio::test]
async fn pin_p_02_sql_prepare_moves_with_its_client() {
    does_not_pin(&["PREPARE s AS SELECT 1", "EXECUTE s", "DEALLOCATE s"]).await;
}

/// What such a statement leaves when it is executed, its `EXECUTE` does not tell.
#[tokio::test]
async fn pin_p_02_sql_prepare_of_session_functions_keeps_its_connection() {
    pins("prepared-statement", &["PREPARE s AS SELECT lastval()"]).await;
}

#[tokio::test]
async fn pin_p_03_temporary_objects_keep_their_connection() {
    pins(
        "temporary-table",
        &[
            "CREATE TEMP TABLE a (n int)",
            "SELECT 1 AS n INTO TEMP a",
            "CREATE TEMP VIEW w AS SELECT 1 AS n",
            "CREATE TEMP SEQUENCE s",
            "CREATE TABLE pg_temp.a (n int)",
        ],
    )
    .await;
}

#[tokio::test]
async fn pin_p_04_held_cursors_keep_their_connection() {
    pins("held-cursor", &["BEGIN; DECLARE c CURSOR WITH HOLD FOR SELECT 1; COMMIT"]).await;
}

#[tokio::test]
async fn pin_p_04_a_cursor_without_hold_ends_with_its_transaction() {
    does_not_pin(&["BEGIN; DECLARE c CURSOR FOR SELECT 1; FETCH c; COMMIT"]).await;
}

#[tokio::test]
async fn pin_p_06_listen_does_not_keep_its_connection() {
    does_not_pin(&[
        "LISTEN ch",
        "LISTEN a; LISTEN b; NOTIFY a",
        "UNLISTEN a; LISTEN c",
        "NOTIFY c",
        "UNLISTEN *",
    ])
    .await;
    // Whether it counts is known when the transaction is over.
    pins("listen", &["BEGIN; LISTEN ch; COMMIT"]).await;
}

#[tokio::test]
async fn pin_p_07_load_does_not_keep_its_connection() {
    let pg = Server::postgres().start().await;
    let proxy = Proxy::in_front_of(&pg)
        .max_connections(1)
        .pool("connection_borrow_timeout = \"300ms\"")
        .auth("postgres", "trusted", "POSTGRES_SCRAM_SHA_256")
        .start()
        .await;
    let connect = async || Client::connect(&proxy.address().user("postgres", "trusted")).await.unwrap();
    let (a, b) = (connect().await, connect().await);
    let library = "SELECT coalesce(current_setting('auto_explain.log_format', true), 'none')";
    a.execute("LOAD 'auto_explain'").await;
    a.execute("LOAD 'passwordcheck'").await;
    a.execute("SET auto_explain.log_format = 'json'").await;
    for _ in 0..3 {
        // Nothing unloads it, so nobody else gets that connection.
        assert_eq!(b.scalar::<String>(library).await, "none");
        assert_eq!(a.scalar::<String>(library).await, "json");
    }
    a.execute("DISCARD ALL").await;
    assert_eq!(b.scalar::<String>(library).await, "none");
    assert_eq!(a.scalar::<String>(library).await, "text", "DISCARD ALL unloads nothing");
    assert_eq!(b.sqlstate("LOAD 'no_such_library'").await, "58P01");
    assert_eq!(a.scalar::<String>(library).await, "text");
    assert_eq!(proxy.metric("pinion_pins_total", &[]).await, 0.0);
    a.execute("BEGIN; LOAD 'auto_explain'; ROLLBACK").await;
    assert_eq!(proxy.metric("pinion_pins_total", &[("reason", "library")]).await, 1.0);
}

#[tokio::test]
async fn pin_p_09_advisory_locks_keep_their_connection() {
    pins("advisory-lock", &["SELECT pg_advisory_lock(1)", "SELECT pg_try_advisory_lock(2)"]).await;
}

#[tokio::test]
async fn what_leaves_no_state_does_not_pin() {
    let long = format!("SELECT '{}'", "x".repeat(64 * 1024));
    does_not_pin(&[
        "SELECT nextval('counter')",
        "SELECT setval('counter', 7)",
        "SELECT pg_advisory_xact_lock(1)",
        "BEGIN; SET LOCAL work_mem = '2MB'; COMMIT",
        "SELECT set_config('work_mem', '2MB', true)",
        "NOTIFY ch",
        "DEALLOCATE ALL",
        "DISCARD ALL",
        "RESET ALL",
        "SELECT pg_advisory_unlock_all(); CLOSE ALL; UNLISTEN *; RESET ALL",
        "SELECT 'LISTEN ch', $$SET work_mem = '1MB'$$ -- CREATE TEMP TABLE x (n int)",
        &long,
    ])
    .await;
}

#[tokio::test]
async fn discard_temp_unpins_a_temporary_table() {
    unpins("CREATE TEMP TABLE a (n int)", "DISCARD TEMP").await;
}

#[tokio::test]
async fn unlisten_unpins() {
    unpins("BEGIN; LISTEN ch; COMMIT", "UNLISTEN *").await;
}

#[tokio::test]
async fn reset_all_unpins_settings() {
    unpins("SET app.name = 'é'", "RESET ALL").await;
}

#[tokio::test]
async fn deallocate_unpins_a_prepared_statement() {
    unpins("PREPARE s AS SELECT lastval()", "DEALLOCATE ALL").await;
}

#[tokio::test]
async fn discard_all_unpins_everything() {
    unpins(
        "CREATE TEMP TABLE a (n int); LISTEN ch; SET app.name = 'é'; SELECT pg_advisory_lock(1); PREPARE s AS SELECT 1",

        "DISCARD ALL",
    )
    .await;
}

/// What A leaves on a server connection, and how B would notice.
const STATE: &[(&str, &str, &str)] = &[
    ("CREATE TEMP TABLE leak (n int)", "SELECT to_regclass('pg_temp.leak') IS NULL", "t"),
    ("CREATE TEMP TABLE t AS SELECT 'fake' AS v", "SELECT count(*) FROM t WHERE v = 'one'", "1"),
    ("SET work_mem = '3MB'", "SHOW work_mem", "4MB"),
    (
        "SELECT set_config('app.tenant', '7', false)",
        "SELECT coalesce(current_setting('app.tenant', true), '')",
        "",
    ),
    ("SET search_path = other", "SHOW search_path", "\"$user\", public"),
    ("SET default_transaction_read_only = on", "SHOW transaction_read_only", "off"),
    ("SET ROLE md5user", "SELECT current_user", "app"),
    ("SET TimeZone = 'Asia/Tokyo'", "SHOW TimeZone", "UTC"),
    ("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY", "SHOW default_transaction_read_only", "off"),
    ("SELECT pg_advisory_lock(99)", "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'", "0"),
    ("LISTEN leak", "SELECT count(*) FROM pg_listening_channels()", "0"),
    ("BEGIN; DECLARE leak CURSOR WITH HOLD FOR SELECT 1; COMMIT", "SELECT count(*) FROM pg_cursors", "0"),
    ("PREPARE leak AS SELECT 1", "SELECT count(*) FROM pg_prepared_statements WHERE from_sql", "0"),
    ("BEGIN; INSERT INTO t (v) VALUES ('leak')", "SELECT count(*) FROM t WHERE v = 'leak'", "0"),
    ("SELECT hidden_table()", "SELECT to_regclass('pg_temp.hidden') IS NULL", "t"),
    ("SELECT hidden_setting()", "SELECT coalesce(current_setting('app.hidden', true), '')", ""),
    ("SELECT hidden_lock()", "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'", "0"),
    (
        "DO $$ BEGIN PERFORM set_config('app.by_do', 'x', false); END $$",
        "SELECT coalesce(current_setting('app.by_do', true), '')",
        "",
    ),
];

async fn nothing_is_left(leave: impl AsyncFn(Client)) {
    let pg = Server::postgres().start().await;
    let direct = pg.direct().await;
    direct
        .execute(
            "GRANT md5user TO app;
             CREATE FUNCTION hidden_table() RETURNS void LANGUAGE plpgsql AS $$ BEGIN CREATE TEMP TABLE hidden (n int); END $$;
             CREATE FUNCTION hidden_setting() RETURNS text LANGUAGE sql AS $$ SELECT set_config('app.hidden', 'x', false) $$;
             CREATE FUNCTION hidden_lock() RETURNS void LANGUAGE sql AS $$ SELECT pg_advisory_lock(98) $$;",
        )
        .await;
    let proxy = Proxy::in_front_of(&pg).max_connections(1).start().await;
    for (state, question, answer) in STATE {
        let a = proxy.connect().await;
        a.execute(state).await;
        leave(a).await;
        let b = proxy.connect().await;
        assert_eq!(b.scalar::<String>(question).await, *answer, "after {state}");
        b.close().await;
    }
}

#[tokio::test]
async fn a_client_that_says_goodbye_leaves_no_state_behind() {
    nothing_is_left(async |a| a.close().await).await;
}

#[tokio::test]
async fn a_client_that_vanishes_leaves_no_state_behind() {
    nothing_is_left(async |a| a.vanish()).await;
}

/// A stays connected: what its functions did to the connection unseen is gone before B gets it.
#[tokio::test]
async fn hidden_state_does_not_reach_a_neighbour() {
    let pg = Server::postgres().start().await;
    let proxy = Proxy::in_front_of(&pg).max_connections(1).start().await;
    let direct = pg.direct().await;
    direct
        .execute("CREATE FUNCTION hidden() RETURNS text LANGUAGE sql AS $$ SELECT set_config('app.hidden', 'x', false) $$")
        .await;
    let (a, b) = (proxy.connect().await, proxy.connect().await);
    a.execute("SELECT hidden()").await;
    assert_eq!(b.scalar::<String>("SELECT coalesce(current_setting('app.hidden', true), '')").await, "");
}

/// `lastval` and `currval` answer for the client's own sequence values or not at all.
#[tokio::test]
async fn session_functions_never_tell_of_another_client() {
    let pg = Server::postgres().start().await;
    let proxy = Proxy::in_front_of(&pg).max_connections(1).start().await;
    let (a, b) = (proxy.connect().await, proxy.connect().await);
    let mine: i64 = a.scalar("SELECT nextval('counter')").await;
    for question in ["SELECT lastval()", "SELECT currval('counter')"] {
        match b.try_execute(question).await {
            Ok(()) => panic!("{question}: B was told of A's value"),
            Err(e) => assert_eq!(e.code().unwrap().code(), "55000", "{question}"),
        }
    }
    let theirs: i64 = b.scalar("SELECT nextval('counter')").await;
    assert_ne!(mine, theirs);
    b.close().await; // it may be pinned by now, having shown what it is interested in
    match a.simple_query("SELECT lastval()").await {
        Ok(_) => assert_eq!(a.scalar::<i64>("SELECT lastval()").await, mine),
        Err(e) => assert_eq!(e.code().unwrap().code(), "55000"),
    }
}

#[tokio::test]
async fn currval_in_the_transaction_of_its_nextval_is_right() {
    let pg = Server::postgres().start().await;
    let proxy = Proxy::in_front_of(&pg).max_connections(1).start().await;
    let a = proxy.connect().await;
    a.execute("BEGIN").await;
    let mine: i64 = a.scalar("SELECT nextval('counter')").await;
    assert_eq!(a.scalar::<i64>("SELECT currval('counter')").await, mine);
    assert_eq!(a.scalar::<i64>("SELECT lastval()").await, mine);
    a.execute("COMMIT").await;
}

/// A pin is logged once, with reason, digest and connection, and without the literals.
#[tokio::test]
async fn a_pin_is_logged_once_with_reason_and_digest() {
    let bench = bench().await;
    let (a, _b) = bench.two().await;
    a.execute("SET app.name = 'é-literal'").await;
    a.execute("SET app.other = 'é-7531'").await;
    a.execute("SELECT pg_advisory_lock(1)").await;
    bench.proxy.logged("advisory-lock").await;
    let log = bench.proxy.log();
    let lines: Vec<&str> = log.lines().filter(|line| line.contains("session-variable")).collect();
    assert_eq!(lines.len(), 1, "{lines:#?}");
    assert!(lines[0].to_lowercase().contains("set "), "no digest: {}", lines[0]);
    assert!(!log.contains("7531") && !log.contains("-literal"), "a literal is in the log: {log}");
}

/// The facts come from the grammar, in every protocol: `Parse`, `EXECUTE`, several statements in one text.
#[tokio::test]
async fn pins_hidden_in_odd_spellings_are_found() {
    let bench = bench().await;
    let b = bench.proxy.connect().await;
    for text in [
        "WITH x AS (SELECT pg_advisory_lock(5)) SELECT * FROM x",
        "BEGIN; /* ; */ LISTEN ch; COMMIT",
        "/* LISTEN */ cReAtE /**/ tEmP tAbLe odd (n int)",
        "SELECT U&\"pg\\005fadvisory\\005flock\"(5)",
    ] {
        let mut a = bench.proxy.raw().await;
        if text.contains(';') {
            a.query(text).await;
        } else {
            a.send_all(&[wire::parse("", text), wire::bind("", "", &[]), wire::execute("", 0), wire::sync()])
                .await;
            a.read_reply().await;
        }
        assert_eq!(b.sqlstate("SELECT 1").await, "08000", "{text}");
        a.send_bytes(&wire::terminate()).await;
        a.expect_closed().await;
        until("the connection is free", async || b.try_execute("SELECT 1").await.is_ok()).await;
    }
}

/// Row `TooManyPins`: of five connections two may be pinned, and the third pin is refused before its statement runs.
#[tokio::test]
async fn only_so_many_connections_may_be_pinned() {
    let pg = Server::postgres().start().await;
    let proxy = Proxy::in_front_of(&pg).max_connections(5).pool("max_pinned_percent = 40").start().await;
    let (one, two) = (proxy.connect().await, proxy.connect().await);
    one.execute("SELECT pg_advisory_lock(2)").await;
    two.execute("SELECT pg_advisory_lock(1)").await;
    // Pinned already, so this is no pin more.
    two.execute("CREATE TEMP TABLE a (n int)").await;
    let third = proxy.connect().await;
    assert_eq!(third.sqlstate("CREATE TEMP TABLE a (n int)").await, "53400");
    assert_eq!(third.sqlstate("SELECT count(*) FROM a").await, "42P01", "it ran");
    third.execute("BEGIN").await;
    third.execute("SELECT 1").await;
    assert_eq!(third.sqlstate("LISTEN ch").await, "53400");
    assert_eq!(third.sqlstate("SELECT 1").await, "25P02");
    third.execute("ROLLBACK").await;
    // Others are served, and settings move as ever.
    third.execute("SET work_mem = '3MB'").await;
    proxy.connect().await.execute("SELECT 1").await;
    one.execute("SELECT pg_advisory_unlock(2)").await;
    until("the pin has ended", async || third.try_execute("SELECT pg_advisory_lock(3)").await.is_ok()).await;
    two.vanish();
    until("its pin is gone", async || one.try_execute("SELECT pg_advisory_lock(4)").await.is_ok()).await;
}
