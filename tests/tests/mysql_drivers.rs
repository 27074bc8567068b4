//! Real MySQL drivers and tools: each runs a short program, whose transcript is the same through the proxy as without.
#![allow(clippy::unwrap_used)]

use std::fmt::Write;

use futures_util::StreamExt;
use mysql_async::{
    BinaryProtocol, ChangeUserOpts, Conn, QueryResult, Row as MySqlRow, TxOpts, Value, params,
    prelude::Queryable,
};
use pinion_tests::{
    Address, MySqlClient, Server, foreign,
    transcript::{same, same_through_pinion},
};
use sqlx::{
    Connection, Executor, Row,
    mysql::{MySqlConnectOptions, MySqlConnection, MySqlPoolOptions, MySqlSslMode},
};

/// Runs a program straight at a server and through a proxy with two server connections, without TLS and with it, and
/// compares what it saw. Once it has ended nothing is pinned.
async fn same_everywhere(program: impl AsyncFn(&Address) -> String) {
    let db = Server::mariadb().tls().start().await;
    let secure = Address { ca: db.ca().cloned(), ..db.address() };
    let expected = program(&db.address()).await;
    assert!(expected.lines().count() > 2, "{expected}");
    same(&expected, &program(&secure).await, "direct over TLS");
    same_through_pinion(&db, &expected, program).await;
}

async fn python(driver: &str) {
    same_everywhere(async |address| foreign::mysql_python(driver, address).await).await;
}

async fn node(driver: &str) {
    same_everywhere(async |address| foreign::mysql_node(driver, address).await).await;
}

#[tokio::test]
async fn pymysql() {
    python("pymysql").await;
}

#[tokio::test]
async fn pymysql_values_over_sixteen_mebibytes() {
    python("pymysql_blob").await;
}

/// Two sessions share two server connections, and neither sees anything of the other.
#[tokio::test]
async fn what_one_session_sets_another_does_not_see() {
    python("pymysql_state").await;
}

#[tokio::test]
async fn mysqlclient() {
    python("mysqlclient").await;
}

#[tokio::test]
async fn connector_pure() {
    python("connector_pure").await;
}

#[tokio::test]
async fn connector_pure_prepared() {
    python("connector_pure_prepared").await;
}

#[tokio::test]
async fn connector_c() {
    python("connector_c").await;
}

#[tokio::test]
async fn connector_c_prepared() {
    python("connector_c_prepared").await;
}

#[tokio::test]
async fn asyncmy() {
    python("asyncmy").await;
}

#[tokio::test]
async fn sqlalchemy() {
    python("sqlalchemy").await;
}

#[tokio::test]
async fn django() {
    python("django").await;
}

#[tokio::test]
async fn node_mysql2() {
    node("mysql2").await;
}

#[tokio::test]
async fn node_mysql2_prepared() {
    node("mysql2_prepared").await;
}

#[tokio::test]
async fn node_mysql2_pool() {
    node("mysql2_pool").await;
}

/// The connection is kept between invocations, goes away, times out, and is made again.
#[tokio::test]
async fn the_function_of_a_serverless_application() {
    same_everywhere(async |address| {
        let events = "count\nadd one\ncount\nend\ncount\nsleep 3.5\ncount\nadd two\nsleep 0.01\ncount\n";
        let port = address.port.to_string();
        MySqlClient::connect(address).await.unwrap().execute("DELETE FROM t WHERE id > 3").await;
        let answers = foreign::mysql_python_fed("lambda_mysql.py", &[&port], events).await;
        let lines: Vec<&str> = answers.lines().collect();
        assert_eq!(lines.len(), 10, "{answers}");
        // 2013 is the driver's own number for a server that does not answer in time.
        assert_eq!(lines[5], r#"{"error": 2013, "opened": 2, "tls": true}"#);
        assert_eq!(lines[9], r#"{"n": 5, "opened": 3, "tls": true}"#);
        answers
    })
    .await;
}

#[tokio::test]
async fn sqlx() {
    same_everywhere(async |address| sqlx_program(address).await.unwrap()).await;
}

async fn sqlx_program(address: &Address) -> Result<String, sqlx::Error> {
    let mut said = String::new();
    let mut options = MySqlConnectOptions::new()
        .host("localhost")
        .port(address.port)
        .username(&address.user)
        .password(&address.password)
        .database(&address.database);
    options = match &address.ca {
        Some(ca) => {
            options.ssl_mode(MySqlSslMode::VerifyIdentity).ssl_ca_from_pem(ca.pem().as_bytes().to_vec())
        }
        None => options.ssl_mode(MySqlSslMode::Disabled),
    };
    let mut connection = MySqlConnection::connect_with(&options).await?;
    connection
        .execute(
            "DROP TABLE IF EXISTS drv_sqlx; CREATE TABLE drv_sqlx (id bigint unsigned AUTO_INCREMENT PRIMARY KEY, \
             n bigint, f double, s varchar(40) UNIQUE, b longblob, yes bool)",
        )
        .await?;
    let insert = "INSERT INTO drv_sqlx (n, f, s, b, yes) VALUES (?, ?, ?, ?, ?)";
    for (n, s) in [(Some(i64::MIN), "least"), (None, "none"), (Some(i64::MAX), "žluťoučký 🐎")] {
        let done = sqlx::query(insert)
            .bind(n)
            .bind(n.map(|n| n as f64))
            .bind(s)
            .bind(n.map(i64::to_le_bytes).map(Vec::from))
            .bind(n.map(|n| n > 0))
            .execute(&mut connection)
            .await?;
        writeln!(said, "inserted {} as {}", done.rows_affected(), done.last_insert_id()).unwrap();
    }
    for id in [1, 2, 3, 1_u64] {
        let row =
            sqlx::query("SELECT * FROM drv_sqlx WHERE id = ?").bind(id).fetch_one(&mut connection).await?;
        writeln!(
            said,
            "{} {:?} {:?} {:?} {:?} {:?}",
            row.get::<u64, _>("id"),
            row.get::<Option<i64>, _>("n"),
            row.get::<Option<f64>, _>("f"),
            row.get::<String, _>("s"),
            row.get::<Option<Vec<u8>>, _>("b"),
            row.get::<Option<bool>, _>("yes")
        )
        .unwrap();
    }
    let mut transaction = connection.begin().await?;
    transaction.execute("DELETE FROM drv_sqlx").await?;
    transaction.rollback().await?;
    let mut transaction = connection.begin().await?;
    let error = sqlx::query(insert)
        .bind(1)
        .bind(1)
        .bind("least")
        .bind("")
        .bind(true)
        .execute(&mut *transaction)
        .await
        .unwrap_err();
    writeln!(said, "duplicate {:?}", error.as_database_error().unwrap().code()).unwrap();
    let mut nested = transaction.begin().await?;
    sqlx::query("UPDATE drv_sqlx SET n = ?").bind(7).execute(&mut *nested).await?;
    nested.rollback().await?;
    sqlx::query("UPDATE drv_sqlx SET f = ? WHERE id = ?")
        .bind(0.5)
        .bind(1)
        .execute(&mut *transaction)
        .await?;
    transaction.commit().await?;
    let all: Vec<(u64, Option<i64>, Option<f64>)> =
        sqlx::query_as("SELECT id, n, f FROM drv_sqlx ORDER BY id").fetch_all(&mut connection).await?;
    writeln!(said, "{all:?}").unwrap();
    for text in ["SELEC 1", "SELECT * FROM no_such_table"] {
        let error = sqlx::query(text).execute(&mut connection).await.unwrap_err();
        writeln!(said, "{text} {:?}", error.as_database_error().unwrap().code()).unwrap();
    }
    let session: (String, String) =
        sqlx::query_as("SELECT @@sql_mode, @@time_zone").fetch_one(&mut connection).await?;
    writeln!(said, "{session:?}").unwrap();
    let blob = vec![7_u8; 17 << 20];
    let length: (i64, bool) =
        sqlx::query_as("SELECT length(?), ? = 'x'").bind(&blob).bind("x").fetch_one(&mut connection).await?;
    writeln!(said, "{length:?}").unwrap();
    let mut rows =
        sqlx::query("SELECT a.id FROM drv_sqlx a, t b, t c, t d ORDER BY 1").fetch(&mut connection);
    let mut sum = 0;
    while let Some(row) = rows.next().await {
        sum += row?.get::<u64, _>(0);
    }
    drop(rows);
    writeln!(said, "streamed {sum}").unwrap();
    connection.ping().await?;
    connection.close().await?;

    let pool = MySqlPoolOptions::new().max_connections(5).connect_with(options).await?;
    let sums = futures_util::future::try_join_all((0..30_i64).map(|n| {
        let pool = pool.clone();
        async move { sqlx::query_scalar::<_, i64>("SELECT ? + 1").bind(n).fetch_one(&pool).await }
    }));
    writeln!(said, "{:?}", sums.await?).unwrap();
    pool.close().await;
    Ok(said)
}

#[tokio::test]
async fn mysql_async() {
    same_everywhere(async |address| mysql_async_program(address).await.unwrap()).await;
}

async fn mysql_async_program(address: &Address) -> Result<String, mysql_async::Error> {
    let mut said = String::new();
    let client = MySqlClient::connect(address).await?;
    let mut conn = client.conn().await;
    conn.query_drop(
        "DROP TABLE IF EXISTS drv_async; CREATE TABLE drv_async (id int AUTO_INCREMENT PRIMARY KEY, \
         n bigint, f double, s varchar(40) UNIQUE, b longblob, at datetime(6), took time); \
         DROP PROCEDURE IF EXISTS two_async",
    )
    .await?;
    conn.query_drop(
        "CREATE PROCEDURE two_async(IN n int) BEGIN SELECT n; SELECT v FROM t WHERE id <= n ORDER BY id; END",
    )
    .await?;
    let insert = "INSERT INTO drv_async (n, f, s, b, at, took) VALUES (:n, :f, :s, :b, :at, :took)";
    let rows = [(i64::MIN, "least"), (i64::MAX, "žluťoučký 🐎")].map(|(n, s)| {
        let at = Value::Date(2024, 2, 29, 23, 59, 59, 123_456);
        let took = Value::Time(true, 1, 2, 3, 4, 0);
        params! { "n" => n, "f" => n as f64, "s" => s, "b" => n.to_le_bytes().to_vec(), "at" => at, "took" => took }
    });
    conn.exec_batch(insert, rows).await?;
    writeln!(said, "inserted {} {:?}", conn.affected_rows(), conn.last_insert_id()).unwrap();
    // The server leaves the columns out of later replies, since this driver keeps them.
    for id in [1, 2, 1, 3] {
        let row: Option<MySqlRow> = conn.exec_first("SELECT * FROM drv_async WHERE id = ?", (id,)).await?;
        writeln!(said, "{:?}", row.map(MySqlRow::unwrap)).unwrap();
    }
    let mut transaction = conn.start_transaction(TxOpts::default()).await?;
    transaction.exec_drop("DELETE FROM drv_async", ()).await?;
    transaction.rollback().await?;
    let mut transaction = conn.start_transaction(TxOpts::default()).await?;
    let duplicate = transaction.exec_drop("INSERT INTO drv_async (s) VALUES (?)", ("least",)).await;
    writeln!(said, "{}", duplicate.unwrap_err()).unwrap();
    transaction.exec_drop("UPDATE drv_async SET n = ? WHERE id = ?", (5, 2)).await?;
    transaction.commit().await?;
    for text in ["SELEC 1", "SELECT * FROM no_such_table"] {
        writeln!(said, "{}", conn.query_drop(text).await.unwrap_err()).unwrap();
        writeln!(said, "{}", conn.exec_drop(text, ()).await.unwrap_err()).unwrap();
    }
    let mut results = conn.query_iter("SELECT 1 AS a, 'x' AS b; DO 1; SELECT 2").await?;
    results_of(&mut results, &mut said).await?;
    drop(results);
    let mut results: QueryResult<'_, '_, BinaryProtocol> = conn.exec_iter("CALL two_async(?)", (2,)).await?;
    results_of(&mut results, &mut said).await?;
    drop(results);
    conn.query_drop("SET @mine = 5, SESSION sql_mode = ''").await?;
    conn.query_drop("INSERT INTO drv_async (s) VALUES (repeat('y', 50))").await?;
    writeln!(said, "warnings {}", conn.get_warnings()).unwrap();
    let warnings: Vec<(String, u16, String)> = conn.query("SHOW WARNINGS").await?;
    writeln!(said, "{warnings:?}").unwrap();
    let blob = vec![7_u8; 17 << 20];
    let length: Option<u64> = conn.exec_first("SELECT length(?)", (blob,)).await?;
    writeln!(said, "{length:?}").unwrap();
    let mine = async |conn: &mut Conn| -> Result<String, mysql_async::Error> {
        let row: Option<(Option<i64>, String, String)> =
            conn.query_first("SELECT @mine, current_user(), database()").await?;
        Ok(format!("{row:?}"))
    };
    writeln!(said, "{}", mine(&mut conn).await?).unwrap();
    conn.reset().await?;
    writeln!(said, "{}", mine(&mut conn).await?).unwrap();
    conn.query_drop("SET @mine = 6").await?;
    let other = ChangeUserOpts::default()
        .with_user(Some("app2".to_owned()))
        .with_pass(Some("app2-password".to_owned()))
        .with_db_name(Some("otherdb".to_owned()));
    conn.change_user(other).await?;
    writeln!(said, "{}", mine(&mut conn).await?).unwrap();
    conn.ping().await?;
    drop(conn);
    client.close().await;
    Ok(said)
}

async fn results_of<P: mysql_async::prelude::Protocol>(
    results: &mut QueryResult<'_, '_, P>,
    said: &mut String,
) -> Result<(), mysql_async::Error> {
    while !results.is_empty() {
        let columns: Vec<String> =
            results.columns_ref().iter().map(|column| column.name_str().into_owned()).collect();
        let rows: Vec<Vec<Value>> = results.map(MySqlRow::unwrap).await?;
        writeln!(said, "{columns:?} {rows:?}").unwrap();
    }
    Ok(())
}

/// The text client, with what its options change: quick output, vertical rows, warnings, several statements, delimiters.
#[tokio::test]
async fn the_mariadb_client() {
    same_everywhere(async |address| {
        let script = "\
CREATE OR REPLACE TABLE drv_cli (id int AUTO_INCREMENT PRIMARY KEY, s varchar(10));
BEGIN; INSERT INTO drv_cli (s) VALUES ('one'), (NULL), ('žluť 🐎'); COMMIT;
SELECT * FROM drv_cli; SELECT * FROM drv_cli\\G
DELIMITER //
CREATE OR REPLACE PROCEDURE two_cli(IN n int) BEGIN SELECT n; SELECT v FROM t WHERE id <= n; END//
DELIMITER ;
CALL two_cli(2);
warnings;
SET sql_mode = ''; INSERT INTO drv_cli (s) VALUES ('much too long to fit');
SELECT last_insert_id(), row_count(), @@sql_mode;
PREPARE p FROM 'SELECT s FROM drv_cli WHERE id = ?'; SET @id = 3; EXECUTE p USING @id; DEALLOCATE PREPARE p;
CREATE TEMPORARY TABLE passing AS SELECT 1 AS n; SELECT n + 1 FROM passing; DROP TABLE passing;
LOCK TABLES drv_cli WRITE; UPDATE drv_cli SET s = 'locked' WHERE id = 1; UNLOCK TABLES;
USE otherdb; SELECT database(); USE appdb; SHOW TABLES LIKE 'drv_cli'; DESCRIBE drv_cli;
/*!40101 SET NAMES utf8mb4 */; /*M!100100 SELECT 'MariaDB' AS speaks */;
EXPLAIN SELECT * FROM drv_cli WHERE id = 1;
CHECK TABLE drv_cli;
SELECT 'end';
";
        let table = foreign::mariadb(address, &["--table", "-vv"], script).await;
        // How long each statement took.
        let said = table.lines().map(|line| line.split(" (").next().unwrap_or(line)).collect::<Vec<_>>();
        let quick = foreign::mariadb(address, &["--quick", "--batch", "--show-warnings"], script).await;
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "1000\tloaded\n1001\t\\N\n").unwrap();
        let load = format!(
            "LOAD DATA LOCAL INFILE '{}' INTO TABLE drv_cli; SELECT * FROM drv_cli WHERE id >= 1000",
            file.path().display()
        );
        let loaded = foreign::mariadb(address, &["--local-infile=1"], &load).await;
        format!("{}\n{quick}{loaded}", said.join("\n"))
    })
    .await;
}

/// A dump is the same, and so is what it restores.
#[tokio::test]
async fn mariadb_dump_and_restore() {
    let db = Server::mariadb().tls().start().await;
    let app = MySqlClient::connect(&db.address()).await.unwrap();
    app.execute(
        "CREATE TABLE kinds (id int PRIMARY KEY, d decimal(20,6), f double, b longblob, s text, at timestamp(3) NULL, \
         bits bit(9), e enum('a', 'b'), j json, g int GENERATED ALWAYS AS (id + 1) STORED); \
         INSERT INTO kinds (id, d, f, b, s, at, bits, e, j) VALUES \
         (1, -1.5, 1e-300, x'00FF275C0A', 'žluťoučký 🐎 ''quoted'' \\\\ \\n', '2024-02-29 12:00:00.123', b'100000001', 'b', \
         '{\"a\": [1]}'), (2, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL); \
         INSERT INTO kinds (id, b, s) SELECT 100 + seq, repeat(unhex(sha1(seq)), 200), repeat('long ', 10000) \
         FROM seq_1_to_40; \
         CREATE TABLE log (at int, what varchar(20)); \
         CREATE VIEW seen AS SELECT id, s FROM kinds WHERE id < 10",
    )
    .await;
    app.execute("CREATE TRIGGER noted AFTER INSERT ON t FOR EACH ROW INSERT INTO log VALUES (NEW.id, 'new')")
        .await;
    app.execute("CREATE PROCEDURE twice(INOUT n int) BEGIN SET n = n * 2; END").await;
    app.execute("CREATE FUNCTION thrice(n int) RETURNS int DETERMINISTIC RETURN n * 3").await;
    let program = async |address: &Address| {
        let options = ["--routines", "--triggers", "--hex-blob"];
        let locking = foreign::mariadb_dump(address, &options).await;
        let snapshot =
            foreign::mariadb_dump(address, &[&options[..], &["--single-transaction"]].concat()).await;
        assert!(locking.len() > 2_000_000, "{} bytes", locking.len());
        let other = address.clone().database("otherdb");
        let empty =
            "DROP TABLE IF EXISTS t, kinds, log; DROP VIEW IF EXISTS seen; DROP SEQUENCE IF EXISTS counter";
        foreign::mariadb(&other, &[], empty).await;
        foreign::mariadb(&other, &[], &snapshot).await;
        let restored = foreign::mariadb_dump(&other, &options).await;
        same(&locking, &restored.replace("`otherdb`", "`appdb`"), "restored");
        [locking, snapshot].concat()
    };
    let expected = program(&db.address()).await;
    let secure = Address { ca: db.ca().cloned(), ..db.address() };
    same(&expected, &program(&secure).await, "direct over TLS");
    same_through_pinion(&db, &expected, program).await;
}
