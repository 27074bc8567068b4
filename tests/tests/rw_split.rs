//! `rw-split` on a real primary with two streaming standbys: which server ran each statement.
//!
//! Every server logs every statement it is sent, and every statement here carries a number in a comment; so the log
//! that has the number tells where it ran, whether it then failed or not.
#![allow(clippy::unwrap_used)]

use pinion_tests::{Client, Cluster, Plugin, Proxy, Server, poll, wire};

const READER: &str = "reader";
const WRITER: &str = "writer";

/// Statement, where it belongs, and why.
const STATEMENTS: [(&str, &str, &str); 100] = [
    // Plain reads.
    ("SELECT 1", READER, "reads nothing at all"),
    ("SELECT * FROM orders", READER, "reads a table"),
    ("SELECT * FROM orders WHERE id = 7", READER, "reads by key"),
    ("SELECT count(*), sum(n) FROM orders GROUP BY n HAVING count(*) > 1", READER, "aggregates compute"),
    ("SELECT o.id FROM orders o JOIN items i ON i.order_id = o.id", READER, "a join of reads"),
    ("SELECT * FROM orders_view", READER, "a view over a table"),
    ("SELECT * FROM app_schema.notes", READER, "a table by its schema"),
    ("TABLE orders", READER, "short for SELECT"),
    ("VALUES (1), (2)", READER, "rows from nowhere"),
    ("(SELECT 1) UNION ALL (SELECT 2) ORDER BY 1", READER, "a set operation of reads"),
    ("SELECT id FROM orders EXCEPT SELECT order_id FROM items", READER, "a set operation of reads"),
    ("SELECT * FROM orders ORDER BY id LIMIT 5 OFFSET 1", READER, "limits change nothing"),
    ("SELECT * FROM generate_series(1, 3)", READER, "a built-in function in FROM"),
    ("SELECT lower('A'), now(), random()", READER, "volatile but without effect"),
    ("SELECT pg_catalog.lower('A')", READER, "a built-in function by its schema"),
    ("SELECT row_number() OVER (ORDER BY id) FROM orders", READER, "window functions compute"),
    ("SELECT * FROM orders WHERE id IN (SELECT order_id FROM items)", READER, "a reading subquery"),
    ("SELECT EXISTS (SELECT 1 FROM items)", READER, "a reading subquery"),
    ("SELECT CASE WHEN true THEN 1 ELSE 2 END", READER, "an expression"),
    ("SELECT array_agg(id) FROM orders", READER, "an aggregate"),
    ("SELECT to_json(o) FROM orders o", READER, "a built-in function"),
    ("SELECT ARRAY(SELECT id FROM orders)", READER, "a reading subquery"),
    ("SELECT * FROM orders, LATERAL (SELECT n + 1) AS m", READER, "a lateral read"),
    ("SELECT DISTINCT ON (n) * FROM orders", READER, "a read"),
    ("SELECT * FROM orders TABLESAMPLE system (100)", READER, "a built-in sampling method"),
    ("SELECT 'INSERT INTO orders VALUES (1)'", READER, "a write in a literal is none"),
    ("SELECT $$DELETE FROM orders$$", READER, "a write in a dollar quote is none"),
    ("SELECT 1 AS \"update\"", READER, "a name that looks like a write is none"),
    ("SELECT 1 -- DELETE FROM orders", READER, "a write in a comment is none"),
    ("SELECT 1; SELECT 2", READER, "several reads"),
    ("WITH n AS (SELECT 1 AS one) SELECT one FROM n", READER, "a reading common table expression"),
    (
        "WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM t WHERE n < 5) SELECT sum(n) FROM t",
        READER,
        "a recursive read",
    ),
    ("EXPLAIN SELECT * FROM orders", READER, "plans a read"),
    ("EXPLAIN (ANALYZE, COSTS off) SELECT * FROM orders", READER, "runs a read"),
    ("EXPLAIN (FORMAT json) SELECT 1", READER, "plans a read"),
    ("SELECT current_user, current_database(), version()", READER, "asks about the session"),
    ("SELECT * FROM pg_catalog.pg_class LIMIT 1", READER, "reads the catalogue"),
    ("SELECT reading_function()", READER, "a function of the user's on the list of reading ones"),
    ("SELECT app_schema.reading_too(1)", READER, "by a pattern on the list of reading ones"),
    ("/* pinion:reader */ SELECT * FROM orders", READER, "a hint that agrees"),
    // Writes.
    ("INSERT INTO orders (n) VALUES (1)", WRITER, "writes"),
    ("INSERT INTO orders (n) SELECT n FROM orders LIMIT 1", WRITER, "writes what it reads"),
    ("INSERT INTO orders (n) VALUES (1) RETURNING id", WRITER, "returns rows, and writes"),
    ("INSERT INTO orders (id, n) VALUES (1, 1) ON CONFLICT DO NOTHING", WRITER, "writes"),
    ("UPDATE orders SET n = 2 WHERE id = 1", WRITER, "writes"),
    ("UPDATE orders SET n = i.n FROM items i WHERE i.order_id = orders.id RETURNING *", WRITER, "writes"),
    ("DELETE FROM items WHERE false", WRITER, "writes, if only nothing"),
    (
        "MERGE INTO orders o USING items i ON i.order_id = o.id WHEN MATCHED THEN UPDATE SET n = 1",
        WRITER,
        "writes",
    ),
    ("TRUNCATE app_schema.notes", WRITER, "writes"),
    ("COPY orders TO STDOUT", WRITER, "a COPY is not told apart by direction"),
    (
        "WITH d AS (DELETE FROM items RETURNING *) SELECT * FROM d",
        WRITER,
        "a writing common table expression",
    ),
    (
        "WITH i AS (INSERT INTO items (order_id, n) VALUES (1, 1) RETURNING *) SELECT count(*) FROM i",
        WRITER,
        "a writing common table expression",
    ),
    (
        "WITH a AS (SELECT 1), u AS (UPDATE orders SET n = 3 RETURNING 1) SELECT * FROM a",
        WRITER,
        "one of several common table expressions writes",
    ),
    (
        "WITH x AS (SELECT 1) INSERT INTO orders (n) SELECT * FROM x",
        WRITER,
        "a common table expression before a write",
    ),
    ("SELECT * INTO orders_copy FROM orders", WRITER, "makes a table"),
    ("CREATE TABLE made AS SELECT 1 AS n", WRITER, "makes a table"),
    ("SELECT 1; INSERT INTO orders (n) VALUES (2)", WRITER, "one of several statements writes"),
    // Locks.
    ("SELECT * FROM orders FOR UPDATE", WRITER, "locks rows"),
    ("SELECT * FROM orders FOR SHARE", WRITER, "locks rows"),
    ("SELECT * FROM orders FOR NO KEY UPDATE SKIP LOCKED", WRITER, "locks rows"),
    ("SELECT * FROM orders FOR KEY SHARE NOWAIT", WRITER, "locks rows"),
    ("SELECT * FROM (SELECT * FROM orders FOR UPDATE) AS s", WRITER, "locks rows in a subquery"),
    (
        "WITH l AS (SELECT * FROM orders FOR UPDATE) SELECT 1 FROM l",
        WRITER,
        "locks rows in a common table expression",
    ),
    ("LOCK TABLE orders IN SHARE MODE", WRITER, "locks a table, outside of a transaction an error"),
    ("SELECT pg_advisory_lock(7)", WRITER, "takes a lock of the session"),
    ("SELECT pg_try_advisory_lock(8)", WRITER, "takes a lock of the session"),
    ("SELECT pg_advisory_xact_lock(9)", WRITER, "takes a lock of the transaction"),
    ("SELECT pg_advisory_unlock_all() AS none", WRITER, "gives locks up where they are"),
    // Functions.
    ("SELECT nextval('counter')", WRITER, "advances a sequence"),
    ("SELECT setval('counter', 100)", WRITER, "sets a sequence"),
    ("SELECT currval('counter')", WRITER, "belongs to the connection that advanced it"),
    ("SELECT lastval()", WRITER, "belongs to the connection that advanced it"),
    ("SELECT * FROM orders WHERE id = nextval('counter')", WRITER, "advances a sequence in a condition"),
    ("SELECT coalesce(nextval('counter'), 1)", WRITER, "advances a sequence in an argument"),
    ("SELECT writing_function()", WRITER, "a function of the user's that nobody vouches for"),
    ("SELECT n, writing_function() FROM orders", WRITER, "a function of the user's in a list"),
    ("SELECT * FROM writing_function()", WRITER, "a function of the user's in FROM"),
    ("SELECT lower(writing_function()::text)", WRITER, "a function of the user's in an argument"),
    ("SELECT 1 ORDER BY writing_function()", WRITER, "a function of the user's in ORDER BY"),
    ("SELECT app_schema.lower('A')", WRITER, "no built-in function, though it has the name of one"),
    ("SELECT listed_writer()", WRITER, "on the list of writing functions"),
    ("SELECT pg_notify('channel', 'x')", WRITER, "sends a message"),
    ("SELECT set_config('application_name', 'x', true)", WRITER, "changes a setting"),
    ("SELECT txid_current()", WRITER, "takes a transaction id"),
    ("SELECT pg_switch_wal()", WRITER, "acts on the server"),
    ("EXPLAIN ANALYZE INSERT INTO orders (n) VALUES (3)", WRITER, "runs a write"),
    ("EXPLAIN (ANALYZE) DELETE FROM items", WRITER, "runs a write"),
    ("EXPLAIN ANALYZE SELECT nextval('counter')", WRITER, "runs a function that writes"),
    ("EXPLAIN ANALYZE SELECT * FROM orders FOR UPDATE", WRITER, "runs a lock"),
    // Everything else.
    ("CREATE INDEX ON orders (n)", WRITER, "changes the schema"),
    ("ANALYZE orders", WRITER, "writes statistics"),
    ("VACUUM orders", WRITER, "maintenance"),
    ("DO $$BEGIN PERFORM 1; END$$", WRITER, "runs code that the text does not show"),
    ("CALL writing_procedure()", WRITER, "runs code that the text does not show"),
    ("NOTIFY channel", WRITER, "sends a message"),
    ("SELECT is not SQL at all", WRITER, "cannot be read: anything may be meant"),
    ("SELEKT 1", WRITER, "cannot be read: anything may be meant"),
    ("/* pinion:writer */ SELECT * FROM orders", WRITER, "a hint"),
    ("SELECT * FROM orders -- pinion:writer", WRITER, "a hint at the end"),
    (
        "/* pinion:reader */ UPDATE orders SET n = 5",
        WRITER,
        "a hint that would make a write fail does not count",
    ),
];

/// Tables, functions and the like that the statements name.
const SCHEMA: &str = "
    CREATE SCHEMA app_schema;
    CREATE TABLE orders (id serial PRIMARY KEY, n int);
    CREATE TABLE items (order_id int, n int);
    CREATE TABLE app_schema.notes (n int);
    CREATE VIEW orders_view AS SELECT * FROM orders;
    CREATE SEQUENCE IF NOT EXISTS counter;
    CREATE FUNCTION reading_function() RETURNS int LANGUAGE sql AS 'SELECT 1';
    CREATE FUNCTION app_schema.reading_too(int) RETURNS int LANGUAGE sql AS 'SELECT 1';
    CREATE FUNCTION app_schema.lower(text) RETURNS text LANGUAGE sql AS 'SELECT $1';
    CREATE FUNCTION writing_function() RETURNS int LANGUAGE sql AS 'INSERT INTO orders (n) VALUES (0) RETURNING n';
    CREATE FUNCTION listed_writer() RETURNS int LANGUAGE sql AS 'SELECT 1';
    CREATE PROCEDURE writing_procedure() LANGUAGE sql AS 'INSERT INTO orders (n) VALUES (0)';
    INSERT INTO orders (n) VALUES (1), (2), (3);
    GRANT ALL ON SCHEMA app_schema, public TO app;
    GRANT ALL ON ALL TABLES IN SCHEMA public, app_schema TO app;
    GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO app;
";

const CONFIG: &str = r#"config = { writing_functions = ["listed_writer"], reading_functions = ["reading_function", "app_schema.reading_*"], sticky_after_write = "0s" }"#;

/// Every server logs every statement.
async fn cluster() -> Cluster {
    let primary = Server::postgres().setting("log_statement", "all");
    let size = primary.size();
    let cluster = Cluster::start_with(primary, &[size; 2]).await;
    cluster.primary.direct().await.execute(SCHEMA).await;
    cluster.caught_up().await;
    cluster
}

/// Which servers have been sent the statement with this mark, as far as their logs go: the primary's role or a
/// standby's.
async fn ran_on(cluster: &Cluster, mark: &str) -> &'static str {
    poll(&format!("a server's log has {mark}"), async || {
        let on_primary = cluster.primary.log().contains(mark);
        let on_standby = cluster.standbys.iter().any(|standby| standby.log().contains(mark));
        assert!(!(on_primary && on_standby), "{mark} ran twice");
        match (on_primary, on_standby) {
            (true, _) => Some(WRITER),
            (_, true) => Some(READER),
            _ => None,
        }
    })
    .await
}

#[tokio::test]
async fn a_hundred_statements_run_where_they_belong() {
    let cluster = cluster().await;
    let plugin = Plugin::shipped("rw-split").grants(&["log", "metrics", "store"]).setting(CONFIG);
    let proxy = Proxy::in_front_of_cluster(&cluster).plugin(plugin).start().await;
    let mut wrong = Vec::new();
    for extended in [false, true] {
        for (number, (sql, belongs, why)) in STATEMENTS.iter().enumerate() {
            if extended && sql.contains(';') {
                continue; // the extended protocol has no texts of several statements
            }
            let mark = format!("mark-{number}-{extended}.");
            let client = proxy.connect().await;
            let text = format!("/* {mark} */ {sql}");
            run(&client, &text, extended).await;
            let role = ran_on(&cluster, &mark).await;
            if role != *belongs {
                wrong.push(format!("{sql}: on the {role}, but belongs on the {belongs}: {why}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // Rejected nothing, pinned nobody that need not be.
    assert_eq!(proxy.metric("pinion_plugin_traps_total", &[]).await, 0.0);
}

/// Errors are the statement's own affair: some of them must fail, wherever they run.
async fn run(client: &Client, text: &str, extended: bool) {
    if extended {
        client.query(text, &[]).await.ok();
    } else {
        client.try_execute(text).await.ok();
    }
}

#[tokio::test]
async fn a_transaction_stays_on_the_writer() {
    let cluster = cluster().await;
    let plugin = Plugin::shipped("rw-split").grants(&["store"]).setting(CONFIG);
    let proxy = Proxy::in_front_of_cluster(&cluster).plugin(plugin).start().await;
    let client = proxy.connect().await;
    assert_eq!(client.scalar::<String>("SELECT pg_is_in_recovery()").await, "t");
    client.execute("BEGIN").await;
    assert_eq!(client.scalar::<String>("SELECT pg_is_in_recovery()").await, "f");
    client.execute("INSERT INTO orders (n) VALUES (77)").await;
    assert_eq!(client.scalar::<i32>("SELECT n FROM orders WHERE n = 77").await, 77);
    client.execute("COMMIT").await;
    assert_eq!(client.scalar::<String>("SELECT pg_is_in_recovery()").await, "t");
    // Prepared once, and run on readers and in a transaction on the writer.
    let statement = client.prepare("SELECT pg_is_in_recovery()").await.unwrap();
    assert!(client.query_one(&statement, &[]).await.unwrap().get::<_, bool>(0));
    client.execute("BEGIN").await;
    assert!(!client.query_one(&statement, &[]).await.unwrap().get::<_, bool>(0));
    client.execute("ROLLBACK").await;
}

/// A pipeline that only begins with a read is no read.
#[tokio::test]
async fn a_pipeline_goes_where_all_of_it_can_run() {
    let cluster = cluster().await;
    let plugin = Plugin::shipped("rw-split").grants(&["store"]).setting(CONFIG);
    let proxy = Proxy::in_front_of_cluster(&cluster).plugin(plugin).start().await;
    let mut raw = proxy.raw().await;
    let batch = |sql: &str| [wire::parse("", sql), wire::bind("", "", &[]), wire::execute("", 0)].concat();
    raw.send_all(&[batch("SELECT 1"), batch("INSERT INTO orders (n) VALUES (5)"), wire::sync()]).await;
    let reply = raw.read_reply().await;
    assert!(reply.iter().all(|message| message.tag != b'E'), "{reply:?}");
    raw.send_all(&[batch("SELECT pg_is_in_recovery()"), batch("SELECT 1"), wire::sync()]).await;
    let reply = raw.read_reply().await;
    let row = reply.iter().find(|message| message.tag == b'D').unwrap();
    assert_eq!(row.columns(), [Some("t".to_owned())]);
    // A Query that follows without a Sync runs where they do.
    raw.send_all(&[batch("SELECT 1"), wire::query("INSERT INTO orders (n) VALUES (7)")]).await;
    let reply = raw.read_reply().await;
    assert!(reply.iter().all(|message| message.tag != b'E'), "{reply:?}");
    // With Flush in place of Sync the client may still send anything.
    raw.send_all(&[batch("SELECT pg_is_in_recovery()"), wire::flush()]).await;
    let mut seen = Vec::new();
    while seen.last() != Some(&b'C') {
        seen.push(raw.read().await.unwrap().tag);
    }
    raw.send_all(&[batch("INSERT INTO orders (n) VALUES (6)"), wire::sync()]).await;
    let reply = raw.read_reply().await;
    assert!(reply.iter().all(|message| message.tag != b'E'), "{reply:?}");
}

#[tokio::test]
async fn reads_stay_on_the_writer_for_a_while_after_a_write() {
    let cluster = cluster().await;
    let sticky = r#"config = { sticky_after_write = "1h" }"#;
    let plugin = Plugin::shipped("rw-split").grants(&["store"]).setting(sticky);
    let proxy = Proxy::in_front_of_cluster(&cluster).plugin(plugin).start().await;
    let (a, b) = (proxy.connect().await, proxy.connect().await);
    let on_standby = "SELECT pg_is_in_recovery()";
    assert_eq!(a.scalar::<String>(on_standby).await, "t");
    a.execute("INSERT INTO orders (n) VALUES (8)").await;
    assert_eq!(a.scalar::<String>(on_standby).await, "f");
    assert_eq!(a.scalar::<i32>("SELECT n FROM orders WHERE n = 8").await, 8);
    // Another session is not concerned.
    assert_eq!(b.scalar::<String>(on_standby).await, "t");
}

/// Without a reader, reads are served by the writer rather than not at all.
#[tokio::test]
async fn without_a_reader_the_writer_serves_reads() {
    let mut cluster = cluster().await;
    let plugin = Plugin::shipped("rw-split").grants(&["store"]).setting(CONFIG);
    let proxy = Proxy::in_front_of_cluster(&cluster).plugin(plugin).start().await;
    let client = proxy.connect().await;
    assert_eq!(client.scalar::<String>("SELECT pg_is_in_recovery()").await, "t");
    cluster.standbys.clear();
    poll("reads come from the writer", async || {
        let rows = client.simple_query("SELECT pg_is_in_recovery()").await.ok()?;
        rows.iter()
            .any(|row| matches!(row, tokio_postgres::SimpleQueryMessage::Row(row) if row.get(0) == Some("f")))
            .then_some(())
    })
    .await;
}
