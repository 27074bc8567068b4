//! PostgreSQL's own programs through the proxy: `pgbench` in its modes, and dumps that are the same as without.
#![allow(clippy::unwrap_used)]

use std::{fs, path::Path};

use pinion_tests::{Address, Proxy, Server, foreign, until};
use tempfile::TempDir;

/// A server with pgbench's tables, and a proxy with two server connections.
struct Bench {
    pg: Server,
    proxy: Proxy,
    scripts: TempDir,
}

impl Bench {
    async fn start() -> Self {
        let pg = Server::postgres().start().await;
        let proxy = Proxy::in_front_of(&pg).max_connections(2).start().await;
        // Straight: that is what pgbench does to a server before, not what is tried here.
        foreign::pgbench(&pg.address(), &["-i", "-q", "-s", "1", "--no-vacuum"]).await;
        Self { pg, proxy, scripts: TempDir::new().unwrap() }
    }

    fn script(&self, name: &str, text: &str) -> String {
        let file = self.scripts.path().join(name);
        fs::write(&file, text).unwrap();
        file.display().to_string()
    }

    /// Runs pgbench with eight clients over the two server connections: every transaction has to succeed. A thread for
    /// each client, since some of what pgbench does waits with its whole thread, and must not stop who holds a
    /// connection.
    async fn run(&self, mode: &str, transactions: u32, arguments: &[&str]) {
        let count = transactions.to_string();
        let usual = ["-n", "-M", mode, "-c", "8", "-j", "8", "-t", &count];
        let report = foreign::pgbench(&self.proxy.address(), &[&usual, arguments].concat()).await;
        let all = transactions * 8;
        let processed = format!("number of transactions actually processed: {all}/{all}");
        assert!(report.contains(&processed), "{mode} {arguments:?}: {report}");
        assert!(report.contains("number of failed transactions: 0"), "{mode} {arguments:?}: {report}");
        assert!(!report.contains("ERROR") && !report.contains("WARNING"), "{mode} {arguments:?}: {report}");
    }

    /// Nobody's transaction was lost, or counted twice; and nothing pinned.
    async fn expect_balanced(&self, transactions: u32) {
        let direct = self.pg.direct().await;
        let row: String = direct
            .scalar(
                "SELECT concat_ws(' ', (SELECT sum(abalance) FROM pgbench_accounts) = sum(delta), \
                 (SELECT sum(tbalance) FROM pgbench_tellers) = sum(delta), \
                 (SELECT sum(bbalance) FROM pgbench_branches) = sum(delta), count(*)) FROM pgbench_history",
            )
            .await;
        assert_eq!(row, format!("t t t {transactions}"));
        until("the clients are gone", async || {
            self.proxy.metric("pinion_client_connections", &[]).await == 0.0
        })
        .await;
        assert_eq!(self.proxy.metric("pinion_pins_total", &[]).await, 0.0, "{}", self.proxy.log());
        assert!(self.pg.backends().await <= 2);
    }
}

/// A transaction by hand, with what it reads used for what it writes.
const TRANSACTION: &str = "\
\\set aid random(1, 100000)
\\set delta random(-5000, 5000)
BEGIN;
SELECT abalance FROM pgbench_accounts WHERE aid = :aid FOR UPDATE \\gset
SAVEPOINT s;
UPDATE pgbench_accounts SET abalance = abalance + 1 WHERE aid = :aid;
ROLLBACK TO SAVEPOINT s;
UPDATE pgbench_accounts SET abalance = CAST(:abalance AS int) + CAST(:delta AS int) WHERE aid = :aid;
UPDATE pgbench_tellers SET tbalance = tbalance + :delta WHERE tid = 1;
UPDATE pgbench_branches SET bbalance = bbalance + :delta WHERE bid = 1;
INSERT INTO pgbench_history (tid, bid, aid, delta, mtime) VALUES (1, 1, :aid, :delta, now());
COMMIT;
";

/// Statements sent without waiting, in and out of a transaction.
const PIPELINE: &str = "\
\\set aid random(1, 100000)
\\startpipeline
SELECT abalance FROM pgbench_accounts WHERE aid = :aid;
BEGIN;
UPDATE pgbench_accounts SET abalance = abalance + 7 WHERE aid = :aid;
UPDATE pgbench_tellers SET tbalance = tbalance + 7 WHERE tid = 1;
UPDATE pgbench_branches SET bbalance = bbalance + 7 WHERE bid = 1;
INSERT INTO pgbench_history (tid, bid, aid, delta, mtime) VALUES (1, 1, :aid, 7, now());
COMMIT;
SELECT abalance FROM pgbench_accounts WHERE aid = :aid;
\\endpipeline
";

#[tokio::test]
async fn pgbench_connects_anew_for_each_transaction() {
    let bench = Bench::start().await;
    for mode in ["simple", "extended", "prepared"] {
        bench.run(mode, 5, &["-C"]).await;
        bench.run(mode, 5, &["-C", "-S"]).await;
    }
    bench.expect_balanced(3 * 5 * 8).await;
}

#[tokio::test]
async fn pgbench_runs_transactions_of_a_script() {
    let bench = Bench::start().await;
    let script = bench.script("transaction.sql", TRANSACTION);
    for mode in ["simple", "extended", "prepared"] {
        bench.run(mode, 30, &["-f", &script]).await;
    }
    bench.expect_balanced(3 * 30 * 8).await;
}

#[tokio::test]
async fn pgbench_runs_pipelines() {
    let bench = Bench::start().await;
    let script = bench.script("pipeline.sql", PIPELINE);
    for mode in ["extended", "prepared"] {
        bench.run(mode, 30, &["-f", &script]).await;
    }
    bench.expect_balanced(2 * 30 * 8).await;
}

/// One of each kind of object that an application has.
const OBJECTS: &str = r#"
CREATE SCHEMA shop AUTHORIZATION app;
CREATE TYPE shop.mood AS ENUM ('glad', 'so so', 'žluťoučký');
CREATE DOMAIN shop.positive AS int CHECK (VALUE > 0);
CREATE TYPE shop.pair AS (a int, b text);
CREATE SEQUENCE shop.numbers START 10 INCREMENT 5;
CREATE TABLE shop.customers (
    id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text NOT NULL UNIQUE,
    mood shop.mood DEFAULT 'glad',
    born date, seen timestamptz, score numeric(10, 3), ratio float8, raw bytea, tags text[], doc jsonb,
    pair shop.pair, upper_name text GENERATED ALWAYS AS (upper(name)) STORED
);
CREATE TABLE shop.orders (
    id bigint DEFAULT nextval('shop.numbers'), customer int REFERENCES shop.customers ON DELETE CASCADE,
    amount shop.positive, day date NOT NULL, PRIMARY KEY (id, day)
) PARTITION BY RANGE (day);
CREATE TABLE shop.orders_2024 PARTITION OF shop.orders FOR VALUES FROM ('2024-01-01') TO ('2025-01-01');
CREATE TABLE shop.orders_rest PARTITION OF shop.orders DEFAULT;
CREATE TABLE shop.log (said text, at int);
CREATE INDEX ON shop.customers (lower(name)) WHERE score > 1;
CREATE INDEX ON shop.customers USING gin (doc);
CREATE VIEW shop.rich AS SELECT name, score FROM shop.customers WHERE score > 100;
CREATE FUNCTION shop.note() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN INSERT INTO shop.log VALUES (TG_OP || ' "it''s" \', NEW.id); RETURN NEW; END $$;
CREATE PROCEDURE shop.clear() LANGUAGE sql AS $$ DELETE FROM shop.log $$;
CREATE AGGREGATE shop.total(int) (SFUNC = int4pl, STYPE = int, INITCOND = '0');
INSERT INTO shop.customers (name, mood, born, seen, score, ratio, raw, tags, doc, pair)
SELECT 'name ' || n, 'so so', date '2000-01-01' + n, timestamptz '2024-01-01 12:00+00' + n * interval '1 s', n / 7.0, n / 3.0,
    decode(lpad(to_hex(n), 8, '0'), 'hex'), ARRAY['a', NULL, 'b"c\d'], jsonb_build_object('n', n, 'ž', 'tab	'), (n, 'x,"y"'::text)::shop.pair
FROM generate_series(1, 2000) n;
INSERT INTO shop.orders (customer, amount, day)
SELECT 1 + n % 2000, n, date '2023-10-01' + n FROM generate_series(1, 500) n;
CREATE TRIGGER noted AFTER INSERT ON shop.customers FOR EACH ROW EXECUTE FUNCTION shop.note();
CREATE MATERIALIZED VIEW shop.per_day AS SELECT day, count(*) FROM shop.orders GROUP BY day ORDER BY day;
CREATE RULE quiet AS ON UPDATE TO shop.rich DO INSTEAD NOTHING;
ALTER TABLE shop.customers ENABLE ROW LEVEL SECURITY;
CREATE POLICY all_of_them ON shop.customers USING (true);
GRANT SELECT, UPDATE (mood) ON shop.customers TO app2;
GRANT USAGE ON SCHEMA shop TO app2;
ALTER DEFAULT PRIVILEGES IN SCHEMA shop GRANT SELECT ON TABLES TO app2;
COMMENT ON TABLE shop.customers IS 'who buys; "quoted", it''s \ odd';
COMMENT ON COLUMN shop.customers.mood IS 'žluť';
SELECT lo_from_bytea(4711, decode(repeat('00ff10', 3000), 'hex'));
COMMENT ON LARGE OBJECT 4711 IS 'large';
"#;

/// A server with a database full of objects and two empty ones, and a proxy.
struct Dumps {
    pg: Server,
    proxy: Proxy,
}

impl Dumps {
    async fn start() -> Self {
        let pg = Server::postgres().start().await;
        let proxy = Proxy::in_front_of(&pg).max_connections(6).start().await;
        let direct = pg.direct().await;
        for database in ["source", "copy"] {
            direct.execute(&format!("CREATE DATABASE {database} OWNER app")).await;
        }
        foreign::psql_fed(&pg.address().database("source"), OBJECTS).await;
        Self { pg, proxy }
    }

    fn direct(&self, database: &str) -> Address {
        self.pg.address().database(database)
    }

    fn through(&self, database: &str) -> Address {
        self.proxy.address().database(database)
    }

    async fn expect_equal_copy(&self) {
        let source = plain(&foreign::pg_dump(&self.direct("source"), &[]).await);
        assert!(source.lines().count() > 2500, "{} lines", source.lines().count());
        same(&source, &plain(&foreign::pg_dump(&self.direct("copy"), &[]).await));
    }
}

/// Without the key against injection, which is a random one for each dump (from 15.14 on).
fn plain(dump: &str) -> String {
    let lines =
        dump.lines().filter(|line| !line.starts_with("\\restrict ") && !line.starts_with("\\unrestrict "));
    lines.collect::<Vec<_>>().join("\n")
}

/// Like `assert_eq`, with the first line that differs in place of two whole dumps.
fn same(one: &str, other: &str) {
    if let Some((number, (one, other))) =
        one.lines().zip(other.lines()).enumerate().find(|(_, (one, other))| one != other)
    {
        panic!("line {}:\n{one}\n{other}", number + 1);
    }
    assert_eq!(one.lines().count(), other.lines().count());
}

#[tokio::test]
async fn a_dump_through_the_proxy_is_the_same() {
    let dumps = Dumps::start().await;
    for arguments in
        [&[][..], &["--inserts", "--rows-per-insert=50"], &["--schema-only", "--clean", "--if-exists"]]
    {
        let direct = plain(&foreign::pg_dump(&dumps.direct("source"), arguments).await);
        let through = plain(&foreign::pg_dump(&dumps.through("source"), arguments).await);
        assert!(direct.contains("CREATE MATERIALIZED VIEW shop.per_day"), "{direct}");
        same(&direct, &through);
    }
}

#[tokio::test]
async fn a_dump_piped_into_psql_makes_an_equal_database() {
    let dumps = Dumps::start().await;
    let dump = foreign::pg_dump(&dumps.through("source"), &[]).await;
    foreign::psql_fed(&dumps.through("copy"), &dump).await;
    dumps.expect_equal_copy().await;
}

#[tokio::test]
async fn four_jobs_restore_an_equal_database() {
    let dumps = Dumps::start().await;
    let directory = TempDir::new().unwrap();
    let file = |name: &str| Path::new(directory.path()).join(name).display().to_string();
    // Two jobs share a snapshot.
    foreign::pg_dump(&dumps.through("source"), &["-Fd", "-j2", "-f", &file("dump")]).await;
    foreign::pg_restore(&dumps.through("copy"), &["-j4", &file("dump")]).await;
    dumps.expect_equal_copy().await;
}
