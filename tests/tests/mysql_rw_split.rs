//! `rw-split` on a real MariaDB primary with a GTID replica: which server ran each statement.
//!
//! Every server logs every command it is sent, and every statement here carries a number in a comment; so the log that
//! has the number tells where it ran, whether it then failed or not.
#![allow(clippy::unwrap_used)]

use mysql_async::prelude::Queryable as _;
use pinion_tests::{
    Cluster, MariaDb, MariaDbBuilder, MySqlClient, Plugin, Proxy, ProxyBuilder, RawMySql, Server, poll,
    raw_mysql::{Reply, capability, command},
};

const READER: &str = "reader";
const WRITER: &str = "writer";

/// Statement, where it belongs, and why.
const STATEMENTS: [(&str, &str, &str); 125] = [
    // Plain reads.
    ("SELECT 1", READER, "reads nothing at all"),
    ("SELECT * FROM orders", READER, "reads a table"),
    ("SELECT * FROM `orders` WHERE `id` = 7", READER, "reads by key, names in back quotes"),
    ("SELECT count(*), sum(n) FROM orders GROUP BY n HAVING count(*) > 1", READER, "aggregates compute"),
    ("SELECT o.id FROM orders o JOIN items i ON i.order_id = o.id", READER, "a join of reads"),
    ("SELECT STRAIGHT_JOIN o.id FROM orders o, items i", READER, "an option of SELECT"),
    ("SELECT * FROM orders_view", READER, "a view over a table"),
    ("SELECT * FROM app_schema.notes", READER, "a table by its schema"),
    ("VALUES (1), (2)", READER, "rows from nowhere"),
    ("(SELECT 1) UNION ALL (SELECT 2) ORDER BY 1", READER, "a set operation of reads"),
    ("SELECT id FROM orders EXCEPT SELECT order_id FROM items", READER, "a set operation of reads"),
    ("SELECT * FROM orders ORDER BY id LIMIT 1, 5", READER, "limits change nothing"),
    ("SELECT * FROM orders FORCE INDEX (PRIMARY)", READER, "an index hint"),
    ("SELECT lower('A'), now(), rand()", READER, "volatile but without effect"),
    ("SELECT IFNULL(n, 0), DATE_FORMAT(now(), '%Y') FROM orders", READER, "MySQL's own functions"),
    ("SELECT GROUP_CONCAT(n ORDER BY id SEPARATOR ',') FROM orders", READER, "a grammar of its own"),
    ("SELECT row_number() OVER (ORDER BY id) FROM orders", READER, "window functions compute"),
    ("SELECT * FROM orders WHERE id IN (SELECT order_id FROM items)", READER, "a reading subquery"),
    ("SELECT EXISTS (SELECT 1 FROM items)", READER, "a reading subquery"),
    ("SELECT CASE WHEN true THEN 1 ELSE 2 END", READER, "an expression"),
    ("SELECT IF(n > 1, 'a', 'b'), n DIV 2, n <=> NULL FROM orders", READER, "operators of MySQL's own"),
    ("SELECT JSON_OBJECT('n', n) FROM orders", READER, "a built-in function"),
    ("SELECT DISTINCT n FROM orders", READER, "a read"),
    ("SELECT SQL_NO_CACHE * FROM orders", READER, "an option of SELECT"),
    ("SELECT /*!40001 SQL_NO_CACHE */ * FROM orders", READER, "an executable comment that only reads"),
    ("SELECT /*+ MAX_EXECUTION_TIME(1000) */ * FROM orders", READER, "an optimiser hint"),
    ("SELECT 'INSERT INTO orders VALUES (1)'", READER, "a write in a literal is none"),
    ("SELECT \"DELETE FROM orders\"", READER, "double quotes make a literal, too"),
    ("SELECT 'a\\' DELETE FROM orders -- '", READER, "a backslash escapes a quote"),
    ("SELECT 1 AS `update`", READER, "a name that looks like a write is none"),
    ("SELECT 1 -- DELETE FROM orders", READER, "a write in a comment is none"),
    ("SELECT 1 # DELETE FROM orders", READER, "a comment of the other kind"),
    ("SELECT 1; SELECT 2", READER, "several reads"),
    ("WITH n AS (SELECT 1 AS one) SELECT one FROM n", READER, "a reading common table expression"),
    (
        "WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM t WHERE n < 5) SELECT sum(n) FROM t",
        READER,
        "a recursive read",
    ),
    ("EXPLAIN SELECT * FROM orders", READER, "plans a read"),
    ("EXPLAIN FORMAT=JSON SELECT 1", READER, "plans a read"),
    ("ANALYZE SELECT * FROM orders", READER, "MariaDB's: runs a read"),
    ("DESCRIBE orders", READER, "shows columns"),
    ("SELECT database(), user(), version()", READER, "asks about the session"),
    ("SELECT * FROM information_schema.tables LIMIT 1", READER, "reads the catalogue"),
    ("SELECT reading_function()", READER, "a function of the user's on the list of reading ones"),
    ("SELECT app_schema.reading_too(1)", READER, "by a pattern on the list of reading ones"),
    ("SELECT is not SQL at all", READER, "an error wherever it runs"),
    ("/* pinion:reader */ SELECT * FROM orders", READER, "a hint that agrees"),
    // Writes.
    ("INSERT INTO orders (n) VALUES (1)", WRITER, "writes"),
    ("INSERT INTO orders SET n = 1", WRITER, "MySQL's own form"),
    ("INSERT INTO orders (n) SELECT n FROM orders LIMIT 1", WRITER, "writes what it reads"),
    ("INSERT INTO orders (n) VALUES (1) RETURNING id", WRITER, "returns rows, and writes"),
    ("INSERT IGNORE INTO orders (id, n) VALUES (1, 1)", WRITER, "writes, if only nothing"),
    ("INSERT INTO orders (id, n) VALUES (1, 1) ON DUPLICATE KEY UPDATE n = n", WRITER, "writes"),
    ("REPLACE INTO orders (id, n) VALUES (1, 1)", WRITER, "writes"),
    ("UPDATE orders SET n = 2 WHERE id = 1", WRITER, "writes"),
    ("UPDATE orders o JOIN items i ON i.order_id = o.id SET o.n = i.n", WRITER, "writes"),
    ("UPDATE LOW_PRIORITY IGNORE orders SET n = 2 WHERE id = 1", WRITER, "options do not hide it"),
    ("DELETE FROM items WHERE false", WRITER, "writes, if only nothing"),
    ("DELETE FROM items WHERE false RETURNING n", WRITER, "returns rows, and writes"),
    ("DELETE items FROM items JOIN orders ON false", WRITER, "writes"),
    ("TRUNCATE app_schema.notes", WRITER, "writes"),
    ("LOAD DATA INFILE 'none' INTO TABLE orders", WRITER, "writes"),
    ("CREATE TABLE made AS SELECT 1 AS n", WRITER, "makes a table"),
    ("WITH x AS (SELECT 1) DELETE FROM items WHERE false", WRITER, "a write behind a WITH"),
    ("/*!50000 DELETE FROM items WHERE false */", WRITER, "an executable comment"),
    ("SELECT 1 /*!99999 INTO OUTFILE 'none' */", WRITER, "a comment that only other servers execute"),
    ("/*M!100100 DELETE */ FROM items WHERE false", WRITER, "MariaDB's executable comment"),
    ("SELECT 1; INSERT INTO orders (n) VALUES (2)", WRITER, "one of several statements writes"),
    ("SELECT * FROM orders INTO OUTFILE 'out-1'", WRITER, "writes a file of the server"),
    ("SELECT * INTO OUTFILE 'out-2' FROM orders", WRITER, "the same elsewhere in the text"),
    ("SELECT n INTO DUMPFILE 'out-3' FROM orders LIMIT 1", WRITER, "writes a file of the server"),
    // User variables.
    ("SELECT @x := 1", WRITER, "sets a user variable"),
    ("SELECT n, @row := @row + 1 FROM orders", WRITER, "sets a user variable"),
    ("SELECT id INTO @y FROM orders LIMIT 1", WRITER, "sets a user variable"),
    ("SELECT id FROM orders LIMIT 1 INTO @z", WRITER, "the same elsewhere in the text"),
    // Locks.
    ("SELECT * FROM orders FOR UPDATE", WRITER, "locks rows"),
    ("SELECT * FROM orders LOCK IN SHARE MODE", WRITER, "locks rows"),
    ("SELECT * FROM orders FOR SHARE", WRITER, "MySQL 8's form"),
    ("SELECT * FROM orders FOR UPDATE SKIP LOCKED", WRITER, "locks rows"),
    ("SELECT * FROM orders FOR UPDATE NOWAIT", WRITER, "locks rows"),
    ("SELECT * FROM (SELECT * FROM orders FOR UPDATE) AS s", WRITER, "locks rows in a subquery"),
    ("(SELECT 1) UNION (SELECT n FROM orders FOR UPDATE)", WRITER, "locks rows in a part of a union"),
    ("LOCK TABLES orders READ", WRITER, "locks a table"),
    ("SELECT GET_LOCK('a', 0)", WRITER, "takes a lock of the session"),
    ("SELECT RELEASE_LOCK('a')", WRITER, "gives a lock up where it is"),
    ("SELECT RELEASE_ALL_LOCKS()", WRITER, "gives locks up where they are"),
    // Functions.
    ("SELECT LAST_INSERT_ID()", WRITER, "about the session's own write"),
    ("SELECT LAST_INSERT_ID(7)", WRITER, "sets what the session has written"),
    ("SELECT SQL_CALC_FOUND_ROWS * FROM orders LIMIT 1", WRITER, "is asked about by the next statement"),
    ("SELECT FOUND_ROWS()", WRITER, "belongs to the connection of the statement before"),
    ("SELECT ROW_COUNT()", WRITER, "belongs to the connection of the statement before"),
    ("SELECT NEXT VALUE FOR counter", WRITER, "advances a sequence"),
    ("SELECT nextval(counter)", WRITER, "advances a sequence"),
    ("SELECT setval(counter, 100)", WRITER, "sets a sequence"),
    ("SELECT lastval(counter)", WRITER, "belongs to the connection that advanced it"),
    ("SELECT * FROM orders WHERE id = nextval(counter)", WRITER, "advances it in a condition"),
    ("SELECT writing_function()", WRITER, "a function of the user's that nobody vouches for"),
    ("SELECT n, writing_function() FROM orders", WRITER, "a function of the user's in a list"),
    ("SELECT lower(writing_function())", WRITER, "a function of the user's in an argument"),
    ("SELECT 1 FROM orders ORDER BY writing_function()", WRITER, "a function of the user's in ORDER BY"),
    ("SELECT app_schema.lower('A')", WRITER, "no built-in function, though it has the name of one"),
    ("SELECT listed_writer()", WRITER, "on the list of writing functions"),
    ("ANALYZE INSERT INTO orders (n) VALUES (3)", WRITER, "MariaDB's: runs a write"),
    ("ANALYZE FORMAT=JSON DELETE FROM items WHERE false", WRITER, "runs a write"),
    ("EXPLAIN SELECT * FROM orders FOR UPDATE", WRITER, "may lock"),
    // Everything else.
    ("CREATE TEMPORARY TABLE scratch (n int)", WRITER, "stays with the session that may write"),
    ("CREATE INDEX orders_n ON orders (n)", WRITER, "changes the schema"),
    ("ANALYZE TABLE orders", WRITER, "writes statistics"),
    ("OPTIMIZE TABLE orders", WRITER, "maintenance"),
    ("FLUSH STATUS", WRITER, "maintenance"),
    ("DO 1", WRITER, "for its effects alone"),
    ("CALL writing_procedure()", WRITER, "runs code that the text does not show"),
    ("BEGIN NOT ATOMIC SELECT 1; END", WRITER, "code as a text"),
    ("EXECUTE IMMEDIATE 'SELECT 1'", WRITER, "a text in a literal"),
    ("PREPARE s FROM 'SELECT 1'", WRITER, "a text in a literal"),
    ("HANDLER orders OPEN", WRITER, "opens a table for the session"),
    ("SHOW TABLES", WRITER, "as configured"),
    ("SHOW WARNINGS", WRITER, "about the statement before"),
    ("SET SESSION sort_buffer_size = 300000", WRITER, "of the session"),
    ("SET @a = 1", WRITER, "of the session"),
    ("USE appdb", WRITER, "of the session"),
    ("START TRANSACTION READ ONLY", WRITER, "as configured"),
    ("XA START 'x'", WRITER, "begins what will write"),
    ("SELEKT 1", WRITER, "cannot be read: anything may be meant"),
    ("/* pinion:writer */ SELECT * FROM orders", WRITER, "a hint"),
    ("SELECT * FROM orders # pinion:writer", WRITER, "a hint at the end"),
    (
        "/* pinion:reader */ UPDATE orders SET n = 5",
        WRITER,
        "a hint that would make a write fail does not count",
    ),
];

/// Tables, functions and the like that the statements name.
const SCHEMA: &[&str] = &[
    "CREATE DATABASE app_schema",
    "CREATE TABLE orders (id int AUTO_INCREMENT PRIMARY KEY, n int)",
    "CREATE TABLE items (order_id int, n int)",
    "CREATE TABLE app_schema.notes (n int)",
    "CREATE VIEW orders_view AS SELECT * FROM orders",
    "CREATE FUNCTION reading_function() RETURNS int READS SQL DATA RETURN 1",
    "CREATE FUNCTION app_schema.reading_too(n int) RETURNS int READS SQL DATA RETURN n",
    "CREATE FUNCTION app_schema.lower(t text) RETURNS text DETERMINISTIC RETURN t",
    "CREATE FUNCTION writing_function() RETURNS int DETERMINISTIC MODIFIES SQL DATA \
     BEGIN INSERT INTO orders (n) VALUES (0); RETURN 1; END",
    "CREATE FUNCTION listed_writer() RETURNS int DETERMINISTIC RETURN 1",
    "CREATE PROCEDURE writing_procedure() INSERT INTO orders (n) VALUES (0)",
    "INSERT INTO orders (n) VALUES (1), (2), (3)",
    "GRANT ALL ON app_schema.* TO app@'%'",
];

const CONFIG: &str = r#"config = { writing_functions = ["listed_writer"], reading_functions = ["reading_function", "app_schema.reading_*"], sticky_after_write = "0s" }"#;

/// What says which server runs it.
const PORT: &str = "SELECT @@port";

/// Its log has what clients send, and not what replication brings.
fn server() -> MariaDbBuilder {
    Server::mariadb().setting("log-disabled-statements", "sp,slave")
}

async fn cluster() -> Cluster<MariaDb> {
    let cluster = Cluster::mariadb_with(server(), vec![server()]).await;
    let direct = cluster.primary.direct().await;
    for statement in SCHEMA {
        direct.execute(statement).await;
    }
    cluster.caught_up().await;
    cluster
}

fn splitting(cluster: &Cluster<MariaDb>, config: &str) -> ProxyBuilder {
    let plugin = Plugin::shipped("rw-split").grants(&["log", "metrics", "store"]).setting(config);
    Proxy::in_front_of_cluster(cluster).plugin(plugin)
}

/// Whether a server was asked to run the statement with this mark; that it was asked to prepare it does not count.
fn has_run(server: &MariaDb, mark: &str) -> bool {
    server
        .general_log()
        .lines()
        .any(|line| line.contains(mark) && (line.contains(" Query\t") || line.contains(" Execute\t")))
}

async fn ran_on(cluster: &Cluster<MariaDb>, mark: &str) -> &'static str {
    poll(&format!("a server's log has {mark}"), async || {
        match (has_run(&cluster.primary, mark), has_run(&cluster.standbys[0], mark)) {
            (true, true) => panic!("{mark} ran twice"),
            (true, false) => Some(WRITER),
            (false, true) => Some(READER),
            (false, false) => None,
        }
    })
    .await
}

#[tokio::test]
async fn a_hundred_statements_run_where_they_belong() {
    let cluster = cluster().await;
    let proxy = splitting(&cluster, CONFIG).start().await;
    let mut wrong = Vec::new();
    let mut prepared = 0;
    for binary in [false, true] {
        for (number, (sql, belongs, why)) in STATEMENTS.iter().enumerate() {
            if binary && *sql == "SHOW WARNINGS" {
                // It asks what its own preparing has left, and is refused where others have left something before.
                continue;
            }
            let mark = format!("mark-{number}-{binary}.");
            let client = proxy.mysql().await;
            let text = format!("/* {mark} */ {sql}");
            // Errors are the statement's own affair: some of them must fail, wherever they run.
            if binary {
                let mut conn = client.conn().await;
                // Not everything can be prepared.
                let Ok(statement) = conn.prep(text).await else { continue };
                conn.exec_drop(&statement, ()).await.ok();
                prepared += 1;
            } else {
                client.try_execute(&text).await.ok();
                if sql.starts_with("START TRANSACTION") {
                    // It begins with its first statement.
                    client.try_execute("SELECT 1").await.ok();
                }
            }
            let role = ran_on(&cluster, &mark).await;
            if role != *belongs {
                wrong.push(format!("{sql} ({binary}): on the {role}, belongs on the {belongs}: {why}"));
            }
            client.close().await;
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(prepared > 90, "{prepared}");
    assert_eq!(proxy.metric("pinion_plugin_traps_total", &[]).await, 0.0);
}

async fn side(cluster: &Cluster<MariaDb>, client: &MySqlClient) -> &'static str {
    match client.scalar::<u16>(PORT).await {
        port if port == cluster.primary.port() => WRITER,
        _ => READER,
    }
}

#[tokio::test]
async fn a_transaction_stays_on_the_writer() {
    let cluster = cluster().await;
    let proxy = splitting(&cluster, CONFIG).start().await;
    let client = proxy.mysql().await;
    assert_eq!(side(&cluster, &client).await, READER);
    client.execute("BEGIN").await;
    assert_eq!(side(&cluster, &client).await, WRITER);
    client.execute("INSERT INTO orders (n) VALUES (77)").await;
    assert_eq!(client.scalar::<i32>("SELECT n FROM orders WHERE n = 77").await, 77);
    client.execute("COMMIT").await;
    assert_eq!(side(&cluster, &client).await, READER);
    // Prepared once, and run on the reader and in a transaction on the writer.
    let port = async || client.exec(PORT, ()).await[0][0].clone().unwrap();
    let (writer, reader) = (cluster.primary.port().to_string(), cluster.standbys[0].port().to_string());
    assert_eq!(port().await, reader);
    client.execute("BEGIN").await;
    assert_eq!(port().await, writer);
    client.execute("ROLLBACK").await;
    assert_eq!(port().await, reader);
}

/// Whatever is run first begins a transaction there, and what is run next belongs to it.
#[tokio::test]
async fn without_autocommit_everything_runs_on_the_writer() {
    let cluster = cluster().await;
    let proxy = splitting(&cluster, CONFIG).start().await;
    let client = proxy.mysql().await;
    client.execute("SET autocommit = 0").await;
    for round in 0..2 {
        assert_eq!(side(&cluster, &client).await, WRITER, "{round}");
        client.execute("INSERT INTO orders (n) VALUES (78)").await;
        assert_eq!(client.scalar::<i32>("SELECT count(*) FROM orders WHERE n = 78").await, round + 1);
        client.execute("COMMIT").await;
    }
    // A hint for a reader does not part a transaction.
    client.execute("/* pinion:reader */ SELECT 1").await;
    client.execute("INSERT INTO orders (n) VALUES (79)").await;
    client.execute("ROLLBACK").await;
    client.execute("SET autocommit = 1").await;
    assert_eq!(side(&cluster, &client).await, READER);
}

/// What a session has set holds on both sides.
#[tokio::test]
async fn settings_and_the_database_go_along_to_the_reader() {
    let cluster = cluster().await;
    let proxy = splitting(&cluster, CONFIG).start().await;
    let client = proxy.mysql().await;
    client.execute("SET SESSION sort_buffer_size = 300032, @who = 'me'").await;
    client.execute("USE app_schema").await;
    let told = "SELECT @@port, @@sort_buffer_size, @who, database()";
    let rows = client.rows(told).await;
    let reader = cluster.standbys[0].port().to_string();
    let expected = [reader.as_str(), "300032", "me", "app_schema"].map(|text| Some(text.to_owned()));
    assert_eq!(rows, [expected.to_vec()]);
    // Another session on the same reader finds nothing of it.
    let other = proxy.mysql().await;
    assert_eq!(side(&cluster, &other).await, READER);
    assert_eq!(other.scalar::<u32>("SELECT @@sort_buffer_size = 300032").await, 0);
    assert_eq!(other.rows("SELECT @who, database()").await, [[None, Some("appdb".to_owned())]]);
}

/// What a statement leaves for the next one to ask about is answered on the writer, where it ran.
#[tokio::test]
async fn what_is_about_the_statement_before_is_answered_where_that_ran() {
    let cluster = cluster().await;
    let proxy = splitting(&cluster, CONFIG).start().await;
    let client = proxy.mysql().await;
    for _ in 0..3 {
        client.execute("INSERT INTO orders (n) VALUES (80)").await;
        let id: u64 = client.scalar("SELECT LAST_INSERT_ID()").await;
        assert_eq!(client.conn().await.last_insert_id(), None);
        client.execute("BEGIN").await;
        assert_eq!(client.scalar::<u64>("SELECT max(id) FROM orders WHERE n = 80").await, id);
        client.execute("COMMIT").await;
    }
    client.execute("UPDATE orders SET n = 81 WHERE n = 80").await;
    assert_eq!(client.scalar::<i64>("SELECT ROW_COUNT()").await, 3);
}

/// A temporary table is on the writer, and reads that name it must be, too.
#[tokio::test]
async fn a_temporary_table_keeps_its_session_on_the_writer() {
    let cluster = cluster().await;
    let proxy = splitting(&cluster, CONFIG).start().await;
    let client = proxy.mysql().await;
    assert_eq!(side(&cluster, &client).await, READER);
    client.execute("CREATE TEMPORARY TABLE scratch (n int)").await;
    client.execute("INSERT INTO scratch VALUES (5)").await;
    assert_eq!(client.scalar::<i32>("SELECT n FROM scratch").await, 5);
    assert_eq!(side(&cluster, &client).await, WRITER);
}

#[tokio::test]
async fn reads_stay_on_the_writer_for_a_while_after_a_write() {
    let cluster = cluster().await;
    let proxy = splitting(&cluster, r#"config = { sticky_after_write = "1h" }"#).start().await;
    let (a, b) = (proxy.mysql().await, proxy.mysql().await);
    assert_eq!(side(&cluster, &a).await, READER);
    a.exec("INSERT INTO orders (n) VALUES (?)", (8,)).await;
    assert_eq!(side(&cluster, &a).await, WRITER);
    assert_eq!(a.scalar::<i32>("SELECT n FROM orders WHERE n = 8").await, 8);
    // Another session is not concerned.
    assert_eq!(side(&cluster, &b).await, READER);
    assert_eq!(proxy.metric("pinion_plugin_user_sticky_reads_total", &[]).await, 2.0);
}

/// Commands without a text, and what older drivers send.
#[tokio::test]
async fn every_command_finds_a_server_that_can_run_it() {
    let cluster = cluster().await;
    let proxy = splitting(&cluster, CONFIG).start().await;
    for capabilities in [capability::OLD, capability::NEW] {
        let mut raw = RawMySql::connect_with(&proxy.address(), capabilities).await;
        raw.simple(command::PING, b"").await.unwrap();
        raw.simple(command::INIT_DB, b"app_schema").await.unwrap();
        assert_eq!(raw.scalar("SELECT database()").await, "app_schema");
        assert_eq!(raw.scalar(PORT).await, cluster.standbys[0].port().to_string());
        // A cursor is fetched from where it was opened.
        let statement = raw.prepare("SELECT n FROM appdb.orders WHERE n < ? ORDER BY n").await.unwrap();
        let opened = raw.execute(statement.id, 1, &[Some("4")]).await;
        assert!(matches!(&opened[..], [Reply::Rows(_)]), "{opened:?}");
        let (rows, end) = raw.fetch(statement.id, 2).await;
        end.unwrap();
        assert_eq!(rows.len(), 2);
        let (rows, end) = raw.fetch(statement.id, 2).await;
        end.unwrap();
        assert_eq!(rows.len(), 1);
        // A write that is prepared is prepared and run on the writer.
        let statement = raw.prepare("INSERT INTO appdb.orders (n) VALUES (?)").await.unwrap();
        let done = raw.execute(statement.id, 0, &[Some("90")]).await;
        assert!(matches!(&done[..], [Reply::Done(_)]), "{done:?}");
        raw.simple(command::RESET_CONNECTION, b"").await.unwrap();
        raw.command(command::QUIT, b"").await;
    }
    let direct = cluster.primary.direct().await;
    assert_eq!(direct.scalar::<i32>("SELECT count(*) FROM orders WHERE n = 90").await, 2);
}

/// Without a reader, reads are served by the writer rather than not at all.
#[tokio::test]
async fn without_a_reader_the_writer_serves_reads() {
    let mut cluster = cluster().await;
    let proxy = splitting(&cluster, CONFIG).start().await;
    let client = proxy.mysql().await;
    assert_eq!(side(&cluster, &client).await, READER);
    cluster.standbys[0].stop();
    let writer = cluster.primary.port().to_string();
    poll("reads come from the writer", async || {
        let client = MySqlClient::connect(&proxy.address()).await.ok()?;
        (client.try_rows(PORT).await.ok()?[0][0].as_deref() == Some(&writer)).then_some(())
    })
    .await;
}
