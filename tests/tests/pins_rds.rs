//! Profile `rds` pins exactly as RDS Proxy does: each row of its documentation by the two-client method.
//!
//! The pool holds one server connection. A performs the row and ends its transaction; B runs `SELECT 1` with a short
//! borrow timeout. B times out: pinned. B is answered: not pinned. Tests carry the row's id.
#![allow(clippy::unwrap_used)]

use pinion_tests::{Client, Proxy, Server, until, wire};

struct Bench {
    pg: Server,
    proxy: Proxy,
}

async fn bench() -> Bench {
    let pg = Server::postgres().start().await;
    let proxy = Proxy::in_front_of(&pg)
        .profile("rds")
        .max_connections(1)
        .pool("connection_borrow_timeout = \"300ms\"")
        .start()
        .await;
    Bench { pg, proxy }
}

/// Runs each text as a session of its own and asserts that it pinned for `reason` until the client left.
async fn pins(reason: &str, texts: &[&str]) {
    let bench = bench().await;
    let pinned_now = "pinion_database_connections_currently_session_pinned";
    for (n, text) in texts.iter().enumerate() {
        let (a, b) = (bench.proxy.connect().await, bench.proxy.connect().await);
        a.execute(text).await;
        assert_eq!(b.sqlstate("SELECT 1").await, "08000", "{text}: B got A's connection");
        assert_eq!(bench.proxy.metric(pinned_now, &[]).await, 1.0, "{text}");
        let counted = bench.proxy.metric("pinion_pins_total", &[("reason", reason)]).await;
        assert_eq!(counted, (n + 1) as f64, "{text}: {reason}");
        a.execute("SELECT 1").await; // A itself goes on.
        a.close().await;
        until("the pin ends with its client", async || bench.proxy.metric(pinned_now, &[]).await == 0.0)
            .await;
        b.execute("SELECT 1").await;
        b.close().await;
    }
    let lines: Vec<String> =
        bench.proxy.log().lines().filter(|l| l.contains("pinned")).map(str::to_owned).collect();
    let named = lines.iter().filter(|line| line.contains(reason)).count();
    assert_eq!(named, texts.len(), "one line a pin, with its reason: {lines:#?}");
}

/// Runs each text in one session and asserts that another client gets the connection afterwards.
async fn does_not_pin(texts: &[&str]) {
    let bench = bench().await;
    let (a, b) = (bench.proxy.connect().await, bench.proxy.connect().await);
    for text in texts {
        a.execute(text).await;
        b.try_execute("SELECT 1").await.unwrap_or_else(|e| panic!("{text} pinned: {e}"));
    }
    assert_eq!(bench.proxy.metric("pinion_pins_total", &[]).await, 0.0);
}

#[tokio::test]
async fn pin_p_01_set_and_reset() {
    pins(
        "session-variable",
        &[
            "SET work_mem = '2MB'",
            "RESET work_mem",
            "SET work_mem TO DEFAULT",
            "RESET ALL",
            "SET search_path = other, public",
            "SET TIME ZONE 'UTC'",
            "SET ROLE app",
            "SET SESSION AUTHORIZATION app",
            "BEGIN; SET work_mem = '3MB'; COMMIT",
            "/* a */ sEt /* b */ \"work_mem\" -- c\n = '4MB'",
        ],
    )
    .await;
}

#[tokio::test]
async fn pin_p_02_sql_prepare() {
    pins(
        "prepared-statement",
        &[
            "PREPARE s AS SELECT 1",
            "PREPARE s2(int) AS SELECT $1; EXECUTE s2(1); DEALLOCATE s2",
            "DEALLOCATE ALL",
            "/**/ pRePaRe U&\"\\0073\" AS SELECT $$x$$",
        ],
    )
    .await;
}

#[tokio::test]
async fn pin_p_02_discard() {
    let bench = bench().await;
    for text in ["DISCARD ALL", "DISCARD PLANS", "DISCARD TEMP", "discard /* all */ sequences"] {
        let (a, b) = (bench.proxy.connect().await, bench.proxy.connect().await);
        a.execute(text).await;
        assert_eq!(b.sqlstate("SELECT 1").await, "08000", "{text}: B got A's connection");
        a.close().await;
        until("the pin ends", async || b.try_execute("SELECT 1").await.is_ok()).await;
    }
    assert_eq!(bench.proxy.metric("pinion_pins_total", &[]).await, 4.0);
}

#[tokio::test]
async fn pin_p_03_temporary_objects() {
    pins(
        "temporary-table",
        &[
            "CREATE TEMP TABLE a (n int)",
            "CREATE TEMPORARY TABLE a AS SELECT 1 AS n",
            "SELECT 1 AS n INTO TEMP a",
            "CREATE TEMP VIEW w AS SELECT 1 AS n",
            "CREATE TEMP SEQUENCE s",
            "CREATE LOCAL TEMPORARY TABLE a (n int)",
            "CREATE TABLE pg_temp.a (n int)",
            "BEGIN; CREATE TEMP TABLE a (n int); COMMIT",
            "creAte/**/tEmP\ntable a (n int)",
        ],
    )
    .await;
}

#[tokio::test]
async fn pin_p_04_cursors() {
    pins(
        "held-cursor",
        &[
            "BEGIN; DECLARE c CURSOR WITH HOLD FOR SELECT 1; COMMIT",
            "BEGIN; DECLARE c CURSOR FOR SELECT 1; COMMIT",
            "DECLARE c CURSOR WITH HOLD FOR SELECT 1",
        ],
    )
    .await;
}

#[tokio::test]
async fn pin_p_05_discard_all_on_release() {
    let bench = bench().await;
    let (a, b) = (bench.proxy.connect().await, bench.proxy.connect().await);
    a.execute("BEGIN; SELECT 1; COMMIT").await;
    b.execute("SELECT 1").await; // not yet
    a.execute("DISCARD ALL").await;
    assert_eq!(b.sqlstate("SELECT 1").await, "08000");
}

#[tokio::test]
async fn pin_p_06_listen() {
    pins("listen", &["LISTEN ch", "BEGIN; LISTEN \"Ch\"; COMMIT", "/*LISTEN*/listen\tch"]).await;
}

#[tokio::test]
async fn pin_p_06_notify_does_not_pin() {
    does_not_pin(&["NOTIFY ch", "NOTIFY ch, 'payload'", "SELECT pg_notify('ch', 'payload')"]).await;
}

/// `LOAD` needs a superuser.
#[tokio::test]
async fn pin_p_07_load() {
    let pg = Server::postgres().start().await;
    let proxy = Proxy::in_front_of(&pg)
        .profile("rds")
        .max_connections(1)
        .pool("connection_borrow_timeout = \"300ms\"")
        .auth("postgres", "trusted", "POSTGRES_SCRAM_SHA_256")
        .start()
        .await;
    let a = Client::connect(&proxy.address().user("postgres", "trusted")).await.unwrap();
    let b = Client::connect(&proxy.address().user("postgres", "trusted")).await.unwrap();
    a.execute("LOAD 'auto_explain'").await;
    assert_eq!(b.sqlstate("SELECT 1").await, "08000");
    assert_eq!(proxy.metric("pinion_pins_total", &[("reason", "library")]).await, 1.0);
}

#[tokio::test]
async fn pin_p_08_sequence_functions() {
    pins(
        "session-function",
        &[
            "SELECT nextval('counter')",
            "SELECT setval('counter', 7)",
            "SELECT 1 WHERE (SELECT pg_catalog.\"nextval\"('counter')) > 0",
            "WITH n AS (SELECT NextVal('counter') AS v) SELECT v FROM n",
            "SELECT nextval('counter'); SELECT currval('counter')",
            "INSERT INTO t (v) SELECT /* \" */ nextval($a$counter$a$)::text",
        ],
    )
    .await;
}

#[tokio::test]
async fn pin_p_09_session_advisory_locks() {
    pins(
        "advisory-lock",
        &[
            "SELECT pg_advisory_lock(1)",
            "SELECT pg_try_advisory_lock(1)",
            "SELECT pg_advisory_lock_shared(1, 2)",
            "SELECT pg_try_advisory_lock_shared(1)",
            "SELECT pg_advisory_unlock_all()",
            "SELECT U&\"pg\\005fadvisory\\005flock\"(1)",
        ],
    )
    .await;
}

#[tokio::test]
async fn pin_p_10_set_config() {
    pins(
        "session-variable",
        &[
            "SELECT set_config('work_mem', '2MB', false)",
            "SELECT v FROM t, set_config('app.user', '7', false) WHERE id = 1",
            "SELECT pg_catalog . SET_CONFIG ( 'a.b' , $$c$$ , false )",
        ],
    )
    .await;
}

#[tokio::test]
async fn pin_p_11_session_characteristics() {
    pins("session-variable", &["SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL READ COMMITTED"])
        .await;
}

#[tokio::test]
async fn pin_p_12_statement_over_16_kb() {
    let long = format!("SELECT '{}'", "x".repeat(16 * 1024));
    pins("statement-size", &[&long]).await;
}

#[tokio::test]
async fn pin_p_12_statement_of_16_kb_does_not_pin() {
    let text = format!("SELECT '{}'", "x".repeat(16 * 1024 - 9));
    assert_eq!(text.len(), 16 * 1024);
    does_not_pin(&[&text]).await;
}

/// The size counts for a single statement, not for a transaction.
#[tokio::test]
async fn pin_p_12_counts_single_statements() {
    let bench = bench().await;
    let (a, b) = (bench.proxy.connect().await, bench.proxy.connect().await);
    let text = format!("SELECT '{}'", "x".repeat(9 * 1024));
    a.execute("BEGIN").await;
    for _ in 0..3 {
        a.execute(&text).await;
    }
    a.execute("COMMIT").await;
    b.execute("SELECT 1").await;
}

#[tokio::test]
async fn nopin_p_01_extended_protocol() {
    let bench = bench().await;
    let (a, b) = (bench.proxy.connect().await, bench.proxy.connect().await);
    for _ in 0..5 {
        assert_eq!(
            a.query_typed("SELECT $1 + 1", &[(&1_i32, tokio_postgres::types::Type::INT4)])
                .await
                .unwrap()
                .len(),
            1
        );
        b.execute("SELECT 1").await;
    }
    assert_eq!(bench.proxy.metric("pinion_pins_total", &[]).await, 0.0);
}

#[tokio::test]
async fn nopin_p_02_named_protocol_statements() {
    let bench = bench().await;
    let (a, b) = (bench.proxy.connect().await, bench.proxy.connect().await);
    let (first, second) =
        (a.prepare("SELECT $1::int + 1").await.unwrap(), b.prepare("SELECT $1::int + 2").await.unwrap());
    for _ in 0..5 {
        assert_eq!(a.query_one(&first, &[&1_i32]).await.unwrap().get::<_, i32>(0), 2);
        assert_eq!(b.query_one(&second, &[&1_i32]).await.unwrap().get::<_, i32>(0), 3);
    }
    assert_eq!(bench.proxy.metric("pinion_pins_total", &[]).await, 0.0);
}

#[tokio::test]
async fn nopin_p_03_transaction_advisory_locks() {
    does_not_pin(&[
        "SELECT pg_advisory_xact_lock(1)",
        "SELECT pg_advisory_xact_lock_shared(1)",
        "SELECT pg_try_advisory_xact_lock(1)",
        "BEGIN; SELECT pg_try_advisory_xact_lock_shared(1); COMMIT",
    ])
    .await;
}

#[tokio::test]
async fn nopin_p_04_routines() {
    let bench = bench().await;
    let direct = bench.pg.direct().await;
    direct.execute("CREATE FUNCTION hidden(text) RETURNS text LANGUAGE sql AS $$ SELECT set_config('app.tenant', $1, true) $$").await;
    direct.execute("CREATE PROCEDURE nothing() LANGUAGE sql AS $$ SELECT 1 $$").await;
    let (a, b) = (bench.proxy.connect().await, bench.proxy.connect().await);
    for text in ["SELECT hidden('seven')", "CALL nothing()", "DO $$ BEGIN PERFORM 1; END $$"] {
        a.execute(text).await;
        b.try_execute("SELECT 1").await.unwrap_or_else(|e| panic!("{text} pinned: {e}"));
    }
}

/// Transaction-scoped settings are undone by the transaction's own end.
#[tokio::test]
async fn ambig_p_01_transaction_scoped_settings_do_not_pin() {
    does_not_pin(&[
        "BEGIN; SET LOCAL work_mem = '2MB'; COMMIT",
        "BEGIN; SELECT set_config('work_mem', '2MB', true); COMMIT",
        "SELECT set_config('work_mem', '2MB', true)",
        "BEGIN; SET TRANSACTION ISOLATION LEVEL SERIALIZABLE; COMMIT",
    ])
    .await;
}

#[tokio::test]
async fn ordinary_work_does_not_pin() {
    does_not_pin(&[
        "SELECT 'SET work_mem = 1; LISTEN x; nextval(1)'",
        "SELECT 1 AS \"pg_advisory_lock\" -- pg_advisory_lock(1)\n /* LISTEN a; */",
        "SELECT $$CREATE TEMP TABLE a (n int)$$",
        "BEGIN; INSERT INTO t (v) VALUES ('x'); ROLLBACK",
        "CREATE TABLE plain (n int); DROP TABLE plain",
        "SHOW work_mem",
        "EXPLAIN SELECT 1",
    ])
    .await;
}

/// A transaction holds the connection, and its end frees it: that is no pin.
#[tokio::test]
async fn tx_01_a_transaction_holds_and_then_frees() {
    let bench = bench().await;
    let (a, b) = (bench.proxy.connect().await, bench.proxy.connect().await);
    a.execute("BEGIN READ WRITE").await;
    assert_eq!(b.sqlstate("SELECT 1").await, "08000");
    assert_eq!(a.sqlstate("SELECT 1 / 0").await, "22012");
    assert_eq!(b.sqlstate("SELECT 1").await, "08000", "a failed transaction is still one");
    a.execute("ROLLBACK").await;
    b.execute("SELECT 1").await;
    assert_eq!(bench.proxy.metric("pinion_pins_total", &[]).await, 0.0);
}

/// The rule sees a statement wherever it runs: in `Parse` too, at the time of its execution.
#[tokio::test]
async fn pins_apply_to_the_extended_protocol() {
    let bench = bench().await;
    let mut a = bench.proxy.raw().await;
    let b = bench.proxy.connect().await;
    a.send_all(&[wire::parse("", "LISTEN ch"), wire::bind("", "", &[]), wire::execute("", 0), wire::sync()])
        .await;
    a.read_reply().await;
    assert_eq!(b.sqlstate("SELECT 1").await, "08000");
    assert_eq!(bench.proxy.metric("pinion_pins_total", &[("reason", "listen")]).await, 1.0);
}
