//! Every driver and ORM goes through its cycle of connect, begin, statements, commit and close a thousand times, over ten
//! server connections, and nothing pins.
//!
//! What pins all the same stands in [`PINS`], with the reason why.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use futures_util::future::join_all;
use mysql_async::prelude::Queryable;
use pinion_tests::{Address, Engine, Proxy, Server, foreign, until};
use sqlx::{Connection, Executor, Row};

/// Cycles of each driver.
const CYCLES: usize = 1000;
/// Clients that go through them side by side.
const CLIENTS: usize = 10;
/// Server connections for them.
const CONNECTIONS: u32 = 10;

/// Who pins, for which reason, and what it does that is the reason.
const PINS: &[(&str, &str, &str)] = &[];

/// Runs a driver's cycles through a proxy, and asserts that it pins for no other reason than its own.
async fn cycles(engine: Engine, driver: &str, run: impl AsyncFnOnce(&Address)) {
    let (proxy, _server): (Proxy, Box<dyn std::any::Any>) = match engine {
        Engine::Postgres => {
            let server = Server::postgres().start().await;
            (Proxy::in_front_of(&server).max_connections(CONNECTIONS).start().await, Box::new(server))
        }
        Engine::MySql => {
            let server = Server::mariadb().without_general_log().start().await;
            (Proxy::in_front_of(&server).max_connections(CONNECTIONS).start().await, Box::new(server))
        }
    };
    run(&proxy.address()).await;
    until("the clients are gone", async || proxy.metric("pinion_client_connections", &[]).await == 0.0).await;
    let metrics = proxy.metrics().await;
    let borrows = metrics.sum("pinion_database_connections_borrow_latency_seconds_count", &[]);
    let pins: Vec<_> = metrics
        .iter()
        .filter(|(name, _, value)| name == "pinion_pins_total" && *value > 0.0)
        .map(|(_, labels, value)| (labels["reason"].clone(), *value))
        .collect();
    println!("{driver}: {borrows} borrows, pins {pins:?}");
    let may = |reason: &str| PINS.iter().any(|(who, why, _)| *who == driver && *why == reason);
    let unexpected: Vec<_> = pins.iter().filter(|(reason, _)| !may(reason)).collect();
    let log = proxy.log();
    let first = log.lines().find(|line| line.contains("session pinned")).unwrap_or_default();
    assert!(unexpected.is_empty(), "{driver}: {unexpected:?}\n{first}");
    // Who pins borrows once.
    assert!(borrows >= CYCLES as f64 || !pins.is_empty(), "{driver} borrowed {borrows} times only");
    for (_, why, _) in PINS.iter().filter(|(who, ..)| *who == driver) {
        assert!(
            pins.iter().any(|(reason, _)| reason == why),
            "{driver} pins for {why} no more: shorten PINS"
        );
    }
}

async fn foreign_cycles(engine: Engine, driver: &str, script: &str) {
    cycles(engine, driver, async |address| {
        let numbers = [address.port.to_string(), CYCLES.to_string(), CLIENTS.to_string()];
        let arguments = [driver, &numbers[0], &numbers[1], &numbers[2]];
        let said = match (engine, Path::new(script).extension().and_then(|end| end.to_str())) {
            (Engine::Postgres, Some("py")) => foreign::python(script, &arguments).await,
            (Engine::Postgres, _) => foreign::node(script, &arguments).await,
            (Engine::MySql, Some("py")) => foreign::mysql_python_fed(script, &arguments, "").await,
            (Engine::MySql, _) => foreign::mysql_node_script(script, &arguments).await,
        };
        assert!(said.ends_with("ok\n"), "{said}");
    })
    .await;
}

/// A test for each driver.
macro_rules! drivers {
    ($engine:ident $script:literal: $($driver:ident)*) => {
        $(#[tokio::test]
        async fn $driver() {
            foreign_cycles(Engine::$engine, stringify!($driver), $script).await;
        })*
    };
}

drivers!(Postgres "cycles.py":
    psycopg2 psycopg3 psycopg3_named asyncpg asyncpg_pool sqlalchemy_psycopg2 sqlalchemy_psycopg3
    sqlalchemy_psycopg3_pool django_postgresql);
drivers!(Postgres "cycles.js": pg pg_pool postgres knex_pg sequelize_pg typeorm_pg);
drivers!(MySql "cycles.py":
    pymysql mysqlclient connector_pure connector_pure_prepared connector_c asyncmy aiomysql sqlalchemy_pymysql
    sqlalchemy_mariadb_pool sqlalchemy_isolation django_mysql);
drivers!(MySql "cycles.js":
    mysql2 mysql2_prepared mysql2_pool mariadb knex_mysql2 sequelize_mysql2 typeorm_mysql2);

/// The clients of a Rust driver: each does its share of the cycles.
async fn rust_cycles(engine: Engine, driver: &str, cycle: impl AsyncFn(&Address, String)) {
    cycles(engine, driver, async |address| {
        let clients = (0..CLIENTS).map(async |client| {
            for n in (client..CYCLES).step_by(CLIENTS) {
                cycle(address, format!("{driver} {n}")).await;
            }
        });
        join_all(clients).await;
    })
    .await;
}

#[tokio::test]
async fn rust_tokio_postgres() {
    rust_cycles(Engine::Postgres, "rust_tokio_postgres", async |address, name| {
        let mut config = tokio_postgres::Config::new();
        config.host("127.0.0.1").port(address.port).user(&address.user).password(&address.password);
        let (mut client, connection) =
            config.dbname(&address.database).connect(tokio_postgres::NoTls).await.unwrap();
        let driven = tokio::spawn(connection);
        let transaction = client.transaction().await.unwrap();
        let row = transaction.query_one("SELECT v FROM t WHERE id = $1", &[&1_i32]).await.unwrap();
        assert_eq!(row.get::<_, String>(0), "one");
        transaction.execute("INSERT INTO t (v) VALUES ($1)", &[&name]).await.unwrap();
        let again = "SELECT count(*) FROM t WHERE v = $1";
        assert_eq!(transaction.query_one(again, &[&name]).await.unwrap().get::<_, i64>(0), 1);
        transaction.commit().await.unwrap();
        drop(client);
        driven.await.unwrap().unwrap();
    })
    .await;
}

#[tokio::test]
async fn rust_sqlx_postgres() {
    rust_cycles(Engine::Postgres, "rust_sqlx_postgres", async |address, name| {
        let Address { port, user, password, database, .. } = address;
        let url = format!("postgres://{user}:{password}@127.0.0.1:{port}/{database}");
        let mut connection = sqlx::PgConnection::connect(&url).await.unwrap();
        let mut transaction = connection.begin().await.unwrap();
        let row = sqlx::query("SELECT v FROM t WHERE id = $1").bind(1_i32);
        assert_eq!(row.fetch_one(&mut *transaction).await.unwrap().get::<String, _>(0), "one");
        sqlx::query("INSERT INTO t (v) VALUES ($1)").bind(&name).execute(&mut *transaction).await.unwrap();
        let again = sqlx::query("SELECT count(*) FROM t WHERE v = $1").bind(&name);
        assert_eq!(again.fetch_one(&mut *transaction).await.unwrap().get::<i64, _>(0), 1);
        transaction.commit().await.unwrap();
        connection.close().await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn rust_sqlx_mysql() {
    rust_cycles(Engine::MySql, "rust_sqlx_mysql", async |address, name| {
        let Address { port, user, password, database, .. } = address;
        let url = format!("mysql://{user}:{password}@127.0.0.1:{port}/{database}?ssl-mode=DISABLED");
        let mut connection = sqlx::MySqlConnection::connect(&url).await.unwrap();
        let mut transaction = connection.begin().await.unwrap();
        let row = transaction.fetch_one(sqlx::query("SELECT v FROM t WHERE id = ?").bind(1)).await.unwrap();
        assert_eq!(row.get::<String, _>(0), "one");
        sqlx::query("INSERT INTO t (v) VALUES (?)").bind(&name).execute(&mut *transaction).await.unwrap();
        let again = sqlx::query("SELECT count(*) FROM t WHERE v = ?").bind(&name);
        assert_eq!(again.fetch_one(&mut *transaction).await.unwrap().get::<i64, _>(0), 1);
        transaction.commit().await.unwrap();
        connection.close().await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn rust_mysql_async() {
    rust_cycles(Engine::MySql, "rust_mysql_async", async |address, name| {
        let options = mysql_async::OptsBuilder::default()
            .ip_or_hostname("127.0.0.1")
            .tcp_port(address.port)
            .user(Some(&address.user))
            .pass(Some(&address.password))
            .db_name(Some(&address.database))
            .prefer_socket(false);
        let mut connection = mysql_async::Conn::new(options).await.unwrap();
        let mut transaction = connection.start_transaction(mysql_async::TxOpts::default()).await.unwrap();
        let one: Option<String> = transaction.exec_first("SELECT v FROM t WHERE id = ?", (1,)).await.unwrap();
        assert_eq!(one.as_deref(), Some("one"));
        transaction.exec_drop("INSERT INTO t (v) VALUES (?)", (&name,)).await.unwrap();
        let again = "SELECT count(*) FROM t WHERE v = ?";
        assert_eq!(transaction.exec_first::<u64, _, _>(again, (&name,)).await.unwrap(), Some(1));
        transaction.commit().await.unwrap();
        connection.disconnect().await.unwrap();
    })
    .await;
}
