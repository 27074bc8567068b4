//! Real drivers and tools work through the proxy, and none pins in a connect, transaction, commit, close cycle.
#![allow(clippy::unwrap_used)]

use pinion_tests::{Proxy, Server, foreign, until};
use sqlx::{Connection, Row};

/// A server, a proxy with two server connections, and what a driver's cycle did to the pins.
struct Bench {
    pg: Server,
    proxy: Proxy,
}

impl Bench {
    async fn start() -> Self {
        let pg = Server::postgres().start().await;
        let proxy = Proxy::in_front_of(&pg).max_connections(2).start().await;
        Self { pg, proxy }
    }

    /// Prints the driver's pin share: pins for every client connection it made. Asserts that it is 0.
    async fn expect_no_pins(&self, driver: &str) {
        let metrics = self.proxy.metrics().await;
        let pins = metrics.sum("pinion_pins_total", &[]);
        let clients = metrics.sum("pinion_client_connections_setup_succeeded_total", &[]);
        println!("{driver}: {pins} pins, {clients} client connections, share {:.2}", pins / clients.max(1.0));
        assert!(clients > 0.0, "the driver went past the proxy");
        assert_eq!(pins, 0.0, "{driver} pinned:\n{}", self.proxy.log());
        let beside_the_pool = metrics.sum("pinion_listener_connections", &[]);
        assert!(f64::from(self.pg.backends().await) <= 2.0 + beside_the_pool);
    }
}

async fn python_cycle(driver: &str) {
    let bench = Bench::start().await;
    let port = bench.proxy.address().port.to_string();
    assert!(foreign::python("drivers.py", &[driver, &port]).await.ends_with("ok\n"));
    bench.expect_no_pins(driver).await;
}

async fn node_cycle(driver: &str) {
    let bench = Bench::start().await;
    let port = bench.proxy.address().port.to_string();
    assert!(foreign::node("drivers.js", &[driver, &port]).await.ends_with("ok\n"));
    bench.expect_no_pins(driver).await;
}

#[tokio::test]
async fn psycopg2() {
    python_cycle("psycopg2").await;
}

#[tokio::test]
async fn psycopg3() {
    python_cycle("psycopg3").await;
}

#[tokio::test]
async fn psycopg3_named_after_repeats() {
    python_cycle("psycopg3_named").await;
}

#[tokio::test]
async fn psycopg3_pipeline() {
    python_cycle("psycopg3_pipeline").await;
}

#[tokio::test]
async fn asyncpg() {
    python_cycle("asyncpg").await;
}

/// The pool's reset query holds `pg_advisory_unlock_all` and `RESET ALL`: it clears state, so in `smart` it is no pin.
#[tokio::test]
async fn asyncpg_pool() {
    python_cycle("asyncpg_pool").await;
}

#[tokio::test]
async fn node_pg() {
    node_cycle("pg").await;
}

#[tokio::test]
async fn node_pg_pool() {
    node_cycle("pg_pool").await;
}

/// Listening, as each driver's manual has it, keeps no connection.
#[tokio::test]
async fn listening_psycopg2() {
    python_cycle("psycopg2_listen").await;
}

#[tokio::test]
async fn listening_psycopg3() {
    python_cycle("psycopg3_listen").await;
}

#[tokio::test]
async fn listening_asyncpg() {
    python_cycle("asyncpg_listen").await;
}

#[tokio::test]
async fn listening_node_pg() {
    node_cycle("pg_listen").await;
}

#[tokio::test]
async fn listening_sqlx() {
    let bench = Bench::start().await;
    let url = format!("postgres://app:app-password@127.0.0.1:{}/appdb", bench.proxy.address().port);
    let mut listener = sqlx::postgres::PgListener::connect(&url).await.unwrap();
    listener.listen_all(["one", "two"]).await.unwrap();
    let mut other = sqlx::PgConnection::connect(&url).await.unwrap();
    for channel in ["two", "one"] {
        sqlx::query("SELECT pg_notify($1, 'hello')").bind(channel).execute(&mut other).await.unwrap();
        let heard = listener.recv().await.unwrap();
        assert_eq!((heard.channel(), heard.payload()), (channel, "hello"));
    }
    bench.expect_no_pins("sqlx").await;
}

#[tokio::test]
async fn tokio_postgres() {
    let bench = Bench::start().await;
    let mut config = tokio_postgres::Config::new();
    let address = bench.proxy.address();
    config.host("127.0.0.1").port(address.port).user("app").password("app-password").dbname("appdb");
    for _ in 0..3 {
        let (mut client, connection) = config.connect(tokio_postgres::NoTls).await.unwrap();
        let driven = tokio::spawn(connection);
        let row = client.query_one("SELECT v FROM t WHERE id = $1", &[&1_i32]).await.unwrap();
        assert_eq!(row.get::<_, String>(0), "one");
        let transaction = client.transaction().await.unwrap();
        let insert = transaction.prepare("INSERT INTO t (v) VALUES ($1)").await.unwrap();
        assert_eq!(transaction.execute(&insert, &[&"tokio-postgres"]).await.unwrap(), 1);
        transaction.commit().await.unwrap();
        assert_eq!(client.execute(&insert, &[&"tokio-postgres again"]).await.unwrap(), 1);
        let transaction = client.transaction().await.unwrap();
        transaction.execute(&insert, &[&"rolled back"]).await.unwrap();
        transaction.rollback().await.unwrap();
        let count = "SELECT count(*) FROM t WHERE v = 'rolled back'";
        assert_eq!(client.query_one(count, &[]).await.unwrap().get::<_, i64>(0), 0);
        drop((insert, client));
        driven.await.unwrap().unwrap();
    }
    bench.expect_no_pins("tokio-postgres").await;
}

#[tokio::test]
async fn sqlx() {
    let bench = Bench::start().await;
    let url = format!("postgres://app:app-password@127.0.0.1:{}/appdb", bench.proxy.address().port);
    for _ in 0..3 {
        let mut connection = sqlx::PgConnection::connect(&url).await.unwrap();
        for (id, v) in [(1, "one"), (2, "two"), (1, "one")] {
            let row = sqlx::query("SELECT v FROM t WHERE id = $1")
                .bind(id)
                .fetch_one(&mut connection)
                .await
                .unwrap();
            assert_eq!(row.get::<String, _>(0), v);
        }
        let mut transaction = connection.begin().await.unwrap();
        sqlx::query("INSERT INTO t (v) VALUES ($1)").bind("sqlx").execute(&mut *transaction).await.unwrap();
        transaction.commit().await.unwrap();
        let error = sqlx::query("SELECT 1 / $1").bind(0).fetch_one(&mut connection).await.unwrap_err();
        assert_eq!(error.as_database_error().unwrap().code().unwrap(), "22012");
        connection.close().await.unwrap();
    }
    let pool = sqlx::postgres::PgPoolOptions::new().max_connections(5).connect(&url).await.unwrap();
    for n in 0..30_i32 {
        let row = sqlx::query("SELECT $1 + 1").bind(n).fetch_one(&pool).await.unwrap();
        assert_eq!(row.get::<i32, _>(0), n + 1);
    }
    pool.close().await;
    bench.expect_no_pins("sqlx").await;
}

#[tokio::test]
async fn psql() {
    let bench = Bench::start().await;
    let address = bench.proxy.address();
    assert_eq!(foreign::psql(&address, "SELECT v FROM t ORDER BY id LIMIT 1").await, "one");
    let transaction =
        "BEGIN; INSERT INTO t (v) VALUES ('psql'); COMMIT; SELECT count(*) FROM t WHERE v = 'psql'";
    assert_eq!(foreign::psql(&address, transaction).await, "1");
    assert!(foreign::psql(&address, "\\d t").await.contains("nextval"));
    assert!(foreign::psql(&address, "\\copy t TO STDOUT").await.contains("three"));
    bench.expect_no_pins("psql").await;
}

async fn pgbench(mode: &str) {
    let bench = Bench::start().await;
    // pgbench's own tables need the reset that VACUUM and TRUNCATE do not.
    let mut direct = bench.pg.address();
    "postgres".clone_into(&mut direct.user);
    foreign::pgbench(&direct, &["-i", "-q", "-s", "1", "--no-vacuum"]).await;
    bench.pg.direct().await.execute("GRANT ALL ON ALL TABLES IN SCHEMA public TO PUBLIC").await;
    let address = bench.proxy.address();
    // A thread for each client: `-M prepared` waits for each Parse with its whole thread, and a client that waits for a
    // connection must not stop the one that holds it.
    let report = foreign::pgbench(&address, &["-n", "-M", mode, "-c", "8", "-j", "8", "-t", "50"]).await;
    assert!(report.contains("number of transactions actually processed: 400/400"), "{report}");
    assert!(report.contains("number of failed transactions: 0"), "{report}");
    let report = foreign::pgbench(&address, &["-n", "-S", "-M", mode, "-c", "8", "-t", "100"]).await;
    assert!(report.contains("number of transactions actually processed: 800/800"), "{report}");
    until("the clients are gone", async || bench.proxy.metric("pinion_client_connections", &[]).await == 0.0)
        .await;
    bench.expect_no_pins(&format!("pgbench -M {mode}")).await;
}

#[tokio::test]
async fn pgbench_simple() {
    pgbench("simple").await;
}

#[tokio::test]
async fn pgbench_extended() {
    pgbench("extended").await;
}

#[tokio::test]
async fn pgbench_prepared() {
    pgbench("prepared").await;
}
