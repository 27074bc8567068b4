#![allow(clippy::unwrap_used)]

use std::{collections::HashMap, thread};

use super::*;
use crate::protocol::{PinReasons, StatementKind};

/// Facts in one line; what is as usual (one statement, nothing pinned) is left out.
fn line(facts: &Facts) -> String {
    let mut out = format!("{:?}", facts.kind).to_lowercase();
    if facts.statements != 1 {
        out += &format!(" x{}", facts.statements);
    }
    let sets = [("pins", facts.pins), ("clears", facts.clears), ("rds", facts.rds_pins)];
    let flags = [
        ("ro", facts.read_only),
        ("taints", facts.taints),
        ("needs", facts.needs_session_function),
        ("drops", facts.drops_all_prepared),
        ("one", facts.is_deallocate_one),
        ("ends", facts.ends_transaction),
    ];
    for (name, set) in sets {
        if !set.is_empty() {
            out += &format!(" {name}={set}");
        }
    }
    for (name, _) in flags.iter().filter(|(_, is)| *is) {
        out += &format!(" {name}");
    }
    if !facts.given_names.is_empty() {
        out += &format!(" gives={}", facts.given_names.join(","));
    }
    if !facts.prepared_names.is_empty() {
        out += &format!(" names={}", facts.prepared_names.join(","));
    }
    out
}

fn facts_of(text: &[u8], mode: LexMode) -> (u128, String) {
    let found = Classifier::new(8).facts(text, mode);
    (found.digest, line(&found.facts))
}

#[track_caller]
fn check(text: &str, expected: &str) {
    assert_eq!(facts_of(text.as_bytes(), LexMode::default()).1, expected, "{text}");
}

const UNKNOWN: &str = "unknown pins=unknown rds=unknown taints";
const TEMP: &str = "ddl pins=temporary-table rds=temporary-table";
const SET: &str = "session pins=session-variable rds=session-variable";
const LOCK: &str = "select pins=advisory-lock rds=advisory-lock";
const NEXTVAL: &str = "select pins=session-function rds=session-function";

/// Row (of docs/session.md where it has a letter and a number), text, facts.
const ROWS: &[(&str, &str, &str)] = &[
    ("PIN-P-01", "SET statement_timeout = 5000", SET),
    ("PIN-P-01", "set search_path to app, public", SET),
    ("PIN-P-01", "SET search_path = 'app'", SET),
    ("PIN-P-01", "SET SESSION x.y = 'z'", SET),
    ("PIN-P-01", "SET TIME ZONE 'UTC'", SET),
    ("PIN-P-01", "SET TIME ZONE INTERVAL '-08:00' HOUR TO MINUTE", SET),
    ("PIN-P-01", "SET TIME ZONE LOCAL", "session rds=session-variable"),
    ("PIN-P-01", "SET NAMES 'UTF8'", SET),
    ("PIN-P-01", "SET SCHEMA 'app'", SET),
    ("PIN-P-01", "SET XML OPTION DOCUMENT", SET),
    ("PIN-P-01", "SET transaction_isolation = 'serializable'", SET),
    ("PIN-P-01", "SET ROLE alice", "session pins=session-identity rds=session-variable"),
    ("PIN-P-01", "SET \"Role\" TO alice", "session pins=session-identity rds=session-variable"),
    ("PIN-P-01", "SET ROLE NONE", "session pins=session-identity rds=session-variable"),
    ("PIN-P-01", "SET SESSION AUTHORIZATION 'bob'", "session pins=session-identity rds=session-variable"),
    ("PIN-P-01", "SET SESSION AUTHORIZATION DEFAULT", "session rds=session-variable"),
    ("PIN-P-01", "RESET statement_timeout", "session rds=session-variable"),
    ("PIN-P-01", "RESET ROLE", "session rds=session-variable"),
    ("PIN-P-01", "SET statement_timeout TO DEFAULT", "session rds=session-variable"),
    ("PIN-P-01", "RESET ALL", "session clears=session-variable rds=session-variable"),
    ("setseed by SET", "SET seed = 0.5", "session pins=session-variable rds=session-variable taints"),
    (
        "temporary path",
        "SET search_path = 'pg_temp', public",
        "session pins=temporary-table,session-variable rds=temporary-table,session-variable",
    ),
    (
        "temporary path",
        "SET search_path = PG_TEMP_3",
        "session pins=temporary-table,session-variable rds=temporary-table,session-variable",
    ),
    (
        "temporary path",
        "SET LOCAL search_path = 'a,Pg_Temp'",
        "session pins=temporary-table rds=temporary-table",
    ),
    (
        "temporary path",
        "SET search_path = E'p\\x67\\137temp'",
        "session pins=temporary-table,session-variable rds=temporary-table,session-variable",
    ),
    (
        "temporary path",
        "SET search_path = 'pg_' -- more\n 'temp'",
        "session pins=temporary-table,session-variable rds=temporary-table,session-variable",
    ),
    (
        "temporary path",
        "SET search_path = U&'pg!005ftemp' UESCAPE '!'",
        "session pins=temporary-table,session-variable rds=temporary-table,session-variable",
    ),
    ("PIN-P-02", "PREPARE p AS SELECT 1", "other pins=prepared-statement rds=prepared-statement gives=p"),
    (
        "PIN-P-02",
        "prepare p (int) as insert into t values ($1)",
        "other pins=prepared-statement rds=prepared-statement gives=p",
    ),
    (
        "PIN-P-02",
        "PREPARE p AS SELECT pg_advisory_lock(1)",
        "other pins=advisory-lock,prepared-statement rds=advisory-lock,prepared-statement gives=p",
    ),
    ("PIN-P-02", "EXECUTE p", "other rds=prepared-statement taints names=p"),
    ("PIN-P-02", "EXECUTE \"P p\"(1, 'x')", "other rds=prepared-statement taints names=P p"),
    (
        "PIN-P-02",
        "EXECUTE p(nextval('s'))",
        "other pins=session-function rds=prepared-statement,session-function taints names=p",
    ),
    ("PIN-P-02", "EXPLAIN EXECUTE p", "other rds=prepared-statement ro taints names=p"),
    ("PIN-P-02", "EXPLAIN ANALYZE EXECUTE p", "other rds=prepared-statement taints names=p"),
    ("PIN-P-02", "CREATE TABLE t AS EXECUTE p", "ddl rds=prepared-statement taints names=p"),
    ("PIN-P-02", "DEALLOCATE p", "other rds=prepared-statement one names=p"),
    ("PIN-P-02", "DEALLOCATE PREPARE p", "other rds=prepared-statement one names=p"),
    ("PIN-P-02", "DEALLOCATE a; DEALLOCATE b", "other x2 rds=prepared-statement names=a,b"),
    ("PIN-P-02", "DEALLOCATE ALL", "other clears=prepared-statement rds=prepared-statement drops"),
    ("PIN-P-02", "DISCARD PLANS", "session rds=session-variable"),
    ("PIN-P-02", "DISCARD TEMP", "session clears=temporary-table rds=session-variable"),
    ("PIN-P-02", "DISCARD TEMPORARY", "session clears=temporary-table rds=session-variable"),
    ("PIN-P-02", "DISCARD SEQUENCES", "session clears=session-function rds=session-variable"),
    ("PIN-P-03", "CREATE TEMP TABLE t (a int)", TEMP),
    ("PIN-P-03", "CREATE TEMPORARY TABLE t (a int)", TEMP),
    ("PIN-P-03", "CREATE LOCAL TEMP TABLE t (a int)", TEMP),
    ("PIN-P-03", "CREATE GLOBAL TEMPORARY TABLE t (a int)", TEMP),
    ("PIN-P-03", "CREATE TEMP TABLE IF NOT EXISTS t (a int) ON COMMIT PRESERVE ROWS", TEMP),
    ("PIN-P-03", "CREATE TEMP TABLE t (a int) ON COMMIT DELETE ROWS", TEMP),
    ("PIN-P-03", "CREATE TEMP TABLE t (a int) ON COMMIT DROP", "ddl rds=temporary-table"),
    ("PIN-P-03", "CREATE TEMP TABLE t ON COMMIT DROP AS SELECT 1", "ddl rds=temporary-table"),
    ("PIN-P-03", "CREATE TEMP TABLE t AS SELECT 1", TEMP),
    ("PIN-P-03", "CREATE TEMP TABLE t AS VALUES (1)", TEMP),
    (
        "PIN-P-03",
        "EXPLAIN ANALYZE CREATE TEMP TABLE t AS SELECT 1",
        "other pins=temporary-table rds=temporary-table",
    ),
    (
        "PIN-P-03",
        "EXPLAIN ANALYZE CREATE TABLE pg_temp.t AS SELECT 1",
        "other pins=temporary-table rds=temporary-table",
    ),
    ("PIN-P-03", "SELECT 1 AS a INTO TEMP t", TEMP),
    ("PIN-P-03", "SELECT 1 INTO TEMPORARY TABLE t FROM b UNION SELECT 2", TEMP),
    ("PIN-P-03", "WITH x AS (SELECT 1) SELECT * INTO TEMP t FROM x", TEMP),
    ("PIN-P-03", "CREATE TEMP VIEW v AS SELECT 1", TEMP),
    ("PIN-P-03", "CREATE OR REPLACE TEMP RECURSIVE VIEW v (n) AS SELECT 1", TEMP),
    ("PIN-P-03", "CREATE TEMP SEQUENCE s", TEMP),
    ("PIN-P-03", "CREATE TABLE pg_temp.t (a int)", TEMP),
    ("PIN-P-03", "CREATE TABLE \"pg_temp\".t (a int)", TEMP),
    ("PIN-P-03", "CREATE TABLE U&\"pg\\005ftemp\".t (a int)", TEMP),
    ("PIN-P-03", "CREATE TABLE U&\"pg!005ftemp\" UESCAPE '!' .t (a int)", TEMP),
    ("PIN-P-03", "CREATE TABLE pg_temp_7.t AS SELECT 1", TEMP),
    ("PIN-P-03", "SELECT 1 INTO pg_temp.t", TEMP),
    ("PIN-P-03", "CREATE VIEW pg_temp.v AS SELECT 1", TEMP),
    ("PIN-P-03", "CREATE SEQUENCE pg_temp.s", TEMP),
    ("PIN-P-03", "CREATE FUNCTION pg_temp.f() RETURNS int LANGUAGE sql AS 'SELECT 1'", TEMP),
    ("PIN-P-03", "CREATE TYPE pg_temp.e AS ENUM ('a')", TEMP),
    ("PIN-P-03", "CREATE TYPE pg_temp.c AS (a int)", TEMP),
    ("PIN-P-03", "CREATE DOMAIN pg_temp.d AS int", TEMP),
    ("PIN-P-03", "CREATE AGGREGATE pg_temp.a (int) (sfunc = int4pl, stype = int)", TEMP),
    ("PIN-P-03", "ALTER TABLE t SET SCHEMA pg_temp", TEMP),
    ("PIN-P-03", "ALTER FUNCTION f() SET SCHEMA pg_temp", TEMP),
    ("PIN-P-03", "/* CREATE */ cReAtE /* nested /* */ */ tEmP -- x\n TABLE t(a int)", TEMP),
    ("not temporary", "DROP TABLE pg_temp.t", "ddl"),
    ("not temporary", "ALTER TABLE pg_temp.t ADD b int", "ddl"),
    ("not temporary", "INSERT INTO pg_temp.t VALUES ('pg_temp')", "write"),
    ("not temporary", "SELECT 'CREATE TEMP TABLE t (a int)'", "select ro"),
    ("not temporary", "SELECT $$CREATE TEMP TABLE t (a int)$$", "select ro"),
    ("not temporary", "SELECT 1 AS temp FROM temporary", "select ro"),
    ("not temporary", "CREATE TABLE temp (temp int)", "ddl"),
    ("not temporary", "CREATE UNLOGGED TABLE t (a int)", "ddl"),
    (
        "not temporary",
        "CREATE FUNCTION f() RETURNS int LANGUAGE sql SET search_path = public, pg_temp AS 'SELECT 1'",
        "ddl",
    ),
    ("PIN-P-04", "DECLARE c CURSOR FOR SELECT 1", "other rds=held-cursor"),
    ("PIN-P-04", "DECLARE c CURSOR WITH HOLD FOR SELECT 1", "other pins=held-cursor rds=held-cursor"),
    (
        "PIN-P-04",
        "DECLARE c BINARY NO SCROLL CURSOR WITH HOLD FOR VALUES (1)",
        "other pins=held-cursor rds=held-cursor",
    ),
    ("PIN-P-04", "DECLARE c CURSOR WITHOUT HOLD FOR SELECT 1", "other rds=held-cursor"),
    (
        "PIN-P-04",
        "DECLARE c CURSOR FOR SELECT pg_advisory_lock(1)",
        "other pins=advisory-lock rds=advisory-lock,held-cursor",
    ),
    ("cursor", "FETCH 5 FROM c", "other"),
    ("cursor", "CLOSE c", "other"),
    ("cursor", "CLOSE ALL", "other clears=held-cursor"),
    (
        "PIN-P-05",
        "DISCARD ALL",
        "session clears=temporary-table,advisory-lock,listen,held-cursor,session-variable,session-identity,\
         prepared-statement,session-function rds=session-variable drops",
    ),
    ("PIN-P-06", "LISTEN ch", "other pins=listen rds=listen"),
    ("PIN-P-06", "/**/listen/**/\"Ch\"", "other pins=listen rds=listen"),
    ("listen", "UNLISTEN ch", "other"),
    ("listen", "UNLISTEN *", "other clears=listen"),
    ("listen", "NOTIFY ch, 'payload'", "other"),
    ("PIN-P-07", "LOAD 'auto_explain'", "other pins=library rds=library"),
    ("PIN-P-07", "LOAD 'pg_stat_statements'", "other pins=library rds=library"),
    ("PIN-P-08", "SELECT nextval('s')", NEXTVAL),
    ("PIN-P-08", "SELECT pg_catalog.nextval('s')", NEXTVAL),
    ("PIN-P-08", "SELECT NextVal('s'::regclass)", NEXTVAL),
    ("PIN-P-08", "SELECT \"nextval\"('s')", NEXTVAL),
    ("PIN-P-08", "SELECT U&\"next\\0076al\"('s')", NEXTVAL),
    ("PIN-P-08", "SELECT U&\"next#0076al\" UESCAPE '#' ('s')", NEXTVAL),
    ("PIN-P-08", "SELECT next/* */val('s')", "unknown pins=unknown rds=unknown taints"),
    ("PIN-P-08", "SELECT nextval/* ; */\n('s')", NEXTVAL),
    ("PIN-P-08", "INSERT INTO t VALUES (nextval('s'))", "write pins=session-function rds=session-function"),
    ("PIN-P-08", "SELECT setval('s', 1)", NEXTVAL),
    ("PIN-P-08", "SELECT currval('s')", "select pins=session-function rds=session-function needs"),
    ("PIN-P-08", "SELECT lastval()", "select pins=session-function rds=session-function needs"),
    ("PIN-P-08", "SELECT nextval FROM t", "select ro"),
    ("PIN-P-09", "SELECT pg_advisory_lock(1)", LOCK),
    ("PIN-P-09", "SELECT pg_advisory_lock_shared(1, 2)", LOCK),
    ("PIN-P-09", "SELECT pg_try_advisory_lock(1)", LOCK),
    ("PIN-P-09", "SELECT pg_try_advisory_lock_shared(1)", LOCK),
    ("PIN-P-09", "SELECT \"pg_catalog\".PG_ADVISORY_LOCK(1)", LOCK),
    ("PIN-P-09", "SELECT app.pg_advisory_lock(1)", LOCK),
    ("PIN-P-09", "SELECT pg_advisory_unlock(1)", "select rds=advisory-lock"),
    ("PIN-P-09", "SELECT pg_advisory_unlock_all()", "select clears=advisory-lock rds=advisory-lock"),
    (
        "PIN-P-09",
        "SELECT pg_catalog.pg_advisory_unlock_all() AS x",
        "select clears=advisory-lock rds=advisory-lock",
    ),
    ("no clearing", "SELECT pg_advisory_unlock_all() WHERE false", "select rds=advisory-lock"),
    ("no clearing", "SELECT pg_advisory_unlock_all() FROM t", "select rds=advisory-lock"),
    ("no clearing", "SELECT pg_advisory_unlock_all() LIMIT 0", "select rds=advisory-lock"),
    ("no clearing", "SELECT pg_advisory_unlock_all(), pg_advisory_lock(1)", LOCK),
    ("no clearing", "SELECT 1 WHERE pg_advisory_unlock_all() IS NULL", "select rds=advisory-lock"),
    ("no clearing", "EXPLAIN SELECT pg_advisory_unlock_all()", "other rds=advisory-lock ro"),
    ("PIN-P-10", "SELECT set_config('a.b', 'c', false)", "select pins=session-variable rds=session-variable"),
    (
        "PIN-P-10",
        "SELECT 1, set_config('a.b', $1, $2) FROM t",
        "select pins=session-variable rds=session-variable",
    ),
    ("PIN-P-10", "SELECT set_config('a.b', 'c', 't')", "select pins=session-variable rds=session-variable"),
    (
        "PIN-P-10",
        "SELECT set_config('a.b', 'c', 't'::bool)",
        "select pins=session-variable rds=session-variable",
    ),
    (
        "PIN-P-10",
        "SELECT set_config('a.b', 'c', NOT false)",
        "select pins=session-variable rds=session-variable",
    ),
    (
        "PIN-P-10",
        "SELECT set_config('a.b', 'c', is_local => true)",
        "select pins=session-variable rds=session-variable",
    ),
    (
        "PIN-P-10",
        "SELECT set_config('ROLE', 'c', false)",
        "select pins=session-identity rds=session-variable",
    ),
    (
        "PIN-P-10",
        "SELECT set_config('session_authorization', 'c', false)",
        "select pins=session-identity rds=session-variable",
    ),
    (
        "PIN-P-10",
        "SELECT set_config(E'ro\\x6ce', 'c', false)",
        "select pins=session-identity rds=session-variable",
    ),
    (
        "PIN-P-10",
        "SELECT set_config($1, $2, false)",
        "select pins=session-variable,session-identity rds=session-variable taints",
    ),
    (
        "PIN-P-10",
        "SELECT set_config('search_path', $1, false)",
        "select pins=session-variable rds=session-variable taints",
    ),
    (
        "PIN-P-10",
        "SELECT pg_catalog.set_config('search_path', '', false)",
        "select pins=session-variable rds=session-variable",
    ),
    (
        "PIN-P-10",
        "SELECT set_config('search_path', 'a, pg_temp', true)",
        "select pins=temporary-table rds=temporary-table",
    ),
    (
        "PIN-P-10",
        "UPDATE t SET a = set_config('a.b', 'c', false)",
        "write pins=session-variable rds=session-variable",
    ),
    ("PIN-P-11", "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE", SET),
    ("PIN-P-11", "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY", SET),
    // PIN-P-12 is a length, not a fact.
    ("NOPIN-P-01", "SELECT abalance FROM pgbench_accounts WHERE aid = $1", "select ro"),
    ("NOPIN-P-01", "SELECT abalance FROM pgbench_accounts WHERE aid = 12345;", "select ro"),
    ("NOPIN-P-03", "SELECT pg_advisory_xact_lock(1)", "select"),
    ("NOPIN-P-03", "SELECT pg_advisory_xact_lock_shared(1)", "select"),
    ("NOPIN-P-03", "SELECT pg_try_advisory_xact_lock(1)", "select"),
    ("NOPIN-P-03", "SELECT pg_try_advisory_xact_lock_shared(1)", "select"),
    ("NOPIN-P-04", "CALL p(1)", "routine taints"),
    ("NOPIN-P-04", "CALL p(nextval('s'))", "routine pins=session-function rds=session-function taints"),
    ("NOPIN-P-04", "DO $$BEGIN PERFORM pg_advisory_lock(1); END$$", "routine taints"),
    ("NOPIN-P-04", "DO LANGUAGE plpgsql 'BEGIN END'", "routine taints"),
    ("NOPIN-P-04", "SELECT my_function(1)", "select taints"),
    ("AMBIG-P-01", "SET LOCAL statement_timeout = 5000", "session"),
    ("AMBIG-P-01", "SET LOCAL ROLE alice", "session"),
    ("AMBIG-P-01", "SET LOCAL x.y TO DEFAULT", "session"),
    ("AMBIG-P-01", "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE", "session"),
    ("AMBIG-P-01", "SET TRANSACTION SNAPSHOT '00000003-0000001B-1'", "session"),
    ("AMBIG-P-01", "SELECT set_config('a.b', 'c', true)", "select"),
    ("AMBIG-P-01", "SELECT set_config('a.b', $1, TRUE)", "select"),
    ("AMBIG-P-01", "SELECT set_config('search_path', $1, true)", "select taints"),
    ("everywhere: target list", "SELECT (SELECT (ARRAY[pg_advisory_lock(1)])[1])", LOCK),
    ("everywhere: WHERE", "SELECT 1 FROM t WHERE a = 1 AND (b OR pg_try_advisory_lock(c))", LOCK),
    ("everywhere: CTE", "WITH x AS (SELECT pg_advisory_lock(1)) SELECT * FROM x", LOCK),
    ("everywhere: FROM", "SELECT * FROM pg_advisory_lock(1)", LOCK),
    ("everywhere: LATERAL", "SELECT * FROM t, LATERAL ROWS FROM (pg_advisory_lock(t.a)) x", LOCK),
    ("everywhere: JOIN", "SELECT * FROM a JOIN b ON pg_try_advisory_lock(a.i)", LOCK),
    ("everywhere: VALUES", "VALUES (1), (pg_advisory_lock(1))", LOCK),
    ("everywhere: ORDER BY", "SELECT 1 FROM t ORDER BY pg_advisory_lock(a)", LOCK),
    ("everywhere: GROUP BY", "SELECT 1 FROM t GROUP BY pg_advisory_lock(a)", LOCK),
    ("everywhere: HAVING", "SELECT 1 FROM t HAVING pg_try_advisory_lock(1)", LOCK),
    ("everywhere: LIMIT", "SELECT 1 FROM t LIMIT (SELECT pg_advisory_lock(1) IS NULL)::int", LOCK),
    ("everywhere: OFFSET", "SELECT 1 FROM t OFFSET nextval('s')", NEXTVAL),
    ("everywhere: WINDOW", "SELECT sum(a) OVER w FROM t WINDOW w AS (ORDER BY pg_advisory_lock(a))", LOCK),
    ("everywhere: OVER", "SELECT sum(a) OVER (PARTITION BY pg_advisory_lock(a)) FROM t", LOCK),
    ("everywhere: FILTER", "SELECT count(*) FILTER (WHERE pg_try_advisory_lock(a)) FROM t", LOCK),
    (
        "everywhere: WITHIN GROUP",
        "SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY nextval('s')) FROM t",
        NEXTVAL,
    ),
    ("everywhere: CASE", "SELECT CASE WHEN a THEN pg_advisory_lock(1) END FROM t", LOCK),
    ("everywhere: COALESCE", "SELECT COALESCE(GREATEST(1, nextval('s')), 2)", NEXTVAL),
    ("everywhere: cast", "SELECT pg_advisory_lock(1)::text COLLATE \"C\"", LOCK),
    (
        "everywhere: field",
        "SELECT (pg_advisory_lock(1)).x[nextval('s')]",
        "select pins=advisory-lock,session-function rds=advisory-lock,session-function",
    ),
    ("everywhere: TABLESAMPLE", "SELECT * FROM t TABLESAMPLE system (nextval('s'))", NEXTVAL),
    ("everywhere: UNION", "SELECT 1 UNION ALL (SELECT 2 EXCEPT SELECT nextval('s'))", NEXTVAL),
    ("everywhere: DISTINCT ON", "SELECT DISTINCT ON (nextval('s')) a FROM t", NEXTVAL),
    ("everywhere: XML", "SELECT xmlelement(name a, nextval('s'))", NEXTVAL),
    ("everywhere: JSON", "SELECT json_object('a' : nextval('s'))", NEXTVAL),
    (
        "everywhere: RETURNING",
        "DELETE FROM t RETURNING nextval('s')",
        "write pins=session-function rds=session-function",
    ),
    (
        "everywhere: ON CONFLICT",
        "INSERT INTO t VALUES (1) ON CONFLICT (a) DO UPDATE SET b = nextval('s') WHERE t.a > 1",
        "write pins=session-function rds=session-function",
    ),
    (
        "everywhere: INSERT SELECT",
        "INSERT INTO t SELECT nextval('s')",
        "write pins=session-function rds=session-function",
    ),
    (
        "everywhere: MERGE",
        "MERGE INTO t USING s ON t.a = s.a WHEN MATCHED AND s.b THEN UPDATE SET c = nextval('s') \
         WHEN NOT MATCHED THEN INSERT VALUES (1)",
        "write pins=session-function rds=session-function",
    ),
    (
        "everywhere: COPY",
        "COPY (SELECT nextval('s')) TO STDOUT",
        "copy pins=session-function rds=session-function",
    ),
    (
        "everywhere: COPY WHERE",
        "COPY t FROM STDIN WHERE nextval('s') > 1",
        "copy pins=session-function rds=session-function",
    ),
    (
        "everywhere: CTAS",
        "CREATE TABLE t AS SELECT nextval('s')",
        "ddl pins=session-function rds=session-function",
    ),
    (
        "everywhere: DEFAULT",
        "CREATE TABLE t (a int DEFAULT nextval('s'))",
        "ddl pins=session-function rds=session-function",
    ),
    (
        "everywhere: CHECK",
        "CREATE TABLE t (a int CHECK (nextval('s') > a))",
        "ddl pins=session-function rds=session-function",
    ),
    (
        "everywhere: ALTER",
        "ALTER TABLE t ALTER a TYPE int USING nextval('s')",
        "ddl pins=session-function rds=session-function",
    ),
    (
        "everywhere: VIEW",
        "CREATE VIEW v AS SELECT nextval('s')",
        "ddl pins=session-function rds=session-function",
    ),
    ("everywhere: INDEX", "CREATE INDEX ON t (lower(a)) WHERE my(a)", "ddl taints"),
    (
        "everywhere: EXPLAIN",
        "EXPLAIN (ANALYZE, BUFFERS) SELECT nextval('s')",
        "other pins=session-function rds=session-function",
    ),
    (
        "everywhere: schema element",
        "CREATE SCHEMA s CREATE TABLE a (b int) CREATE TEMP TABLE c (d int)",
        TEMP,
    ),
    ("reads", "SELECT 1", "select ro"),
    ("reads", "TABLE t", "select ro"),
    ("reads", "VALUES (1, 'a'), (2, 'b')", "select ro"),
    ("reads", "SHOW search_path", "select ro"),
    (
        "reads",
        "SELECT now(), random(), count(*), substring('a' from 1), extract(year from now()) FROM t",
        "select ro",
    ),
    ("reads", "SELECT current_date, current_user, pg_sleep(0)", "select ro"),
    ("reads", "EXPLAIN DELETE FROM t", "other ro"),
    ("reads", "EXPLAIN ANALYZE SELECT 1", "other ro"),
    ("reads", "EXPLAIN ANALYZE DELETE FROM t", "other"),
    ("reads", "EXPLAIN (ANALYZE false) DELETE FROM t", "other"),
    ("reads", "EXPLAIN (ANALYZE 'off') DELETE FROM t", "other"),
    ("reads", "EXPLAIN (ANALYZE 0) DELETE FROM t", "other"),
    ("reads", "SELECT 1; SHOW x", "select x2 ro"),
    ("reads", "", "empty x0 ro"),
    ("reads", " ; -- nothing\n;", "empty x0 ro"),
    ("writes", "SELECT 1 FOR UPDATE", "select"),
    ("writes", "SELECT * FROM (SELECT 1 FROM t FOR KEY SHARE) x", "select"),
    ("writes", "WITH x AS (DELETE FROM t RETURNING *) SELECT * FROM x", "write"),
    ("writes", "SELECT 1 INTO t", "ddl"),
    ("writes", "SELECT pg_notify('a', 'b')", "select"),
    ("writes", "SELECT txid_current()", "select"),
    ("writes", "SELECT lo_unlink(1)", "select"),
    ("writes", "COPY t FROM STDIN", "copy"),
    ("writes", "LOCK TABLE t", "other"),
    ("writes", "VACUUM t", "ddl"),
    ("writes", "BEGIN; SELECT 1; COMMIT", "select x3"),
    ("taints", "SELECT public.lower('A')", "select taints"),
    ("taints", "SELECT 1 OPERATOR(public.+) 1", "select taints"),
    ("taints", "SELECT 1 OPERATOR(pg_catalog.+) 1", "select ro"),
    ("taints", "SELECT 1 FROM t ORDER BY a USING OPERATOR(app.<)", "select taints"),
    ("taints", "SELECT 1 OPERATOR(app.=) ANY (SELECT 2)", "select taints"),
    ("taints", "SELECT setseed(0.5)", "select taints"),
    ("taints", "SELECT query_to_xml('SELECT pg_advisory_lock(1)', true, true, '')", "select taints"),
    ("taints", "SELECT * FROM ts_stat('SELECT x')", "select taints"),
    ("taints", "SELECT dblink('a', 'b')", "select taints"),
    ("taints", "SELECT * FROM t TABLESAMPLE my (1)", "select taints"),
    ("taints", "CREATE EXTENSION pg_trgm", "ddl taints"),
    ("taints", "REFRESH MATERIALIZED VIEW v", "ddl taints"),
    ("taints", "CREATE TRIGGER a BEFORE INSERT ON t EXECUTE FUNCTION f()", "ddl"),
    ("unknown", "SELECT dblink_connect('a', 'b')", "select pins=unknown taints"),
    ("unknown", "SELECT pg_replication_origin_session_setup('a')", "select pins=unknown taints"),
    ("unknown", "SELECT pg_backup_start('a')", "select pins=unknown taints"),
    ("unknown", "SELECT pg_create_physical_replication_slot('a', false, true)", "select pins=unknown taints"),
    ("unknown", "SELEC 1", UNKNOWN),
    ("unknown", "SELECT 'never ends", UNKNOWN),
    ("unknown", "SELECT /* never ends", UNKNOWN),
    ("unknown", "SELECT $a$ never ends $b$", UNKNOWN),
    ("unknown", "SELECT \"never ends", UNKNOWN),
    ("unknown", "SELECT 123abc", UNKNOWN),
    ("unknown", "SELECT 1_", UNKNOWN),
    ("hidden", "SELECT 'a' 'LISTEN x'", UNKNOWN),
    ("hidden", "SELECT 'a;' ; LISTEN x", "select x2 pins=listen rds=listen"),
    ("hidden", "SELECT 'a\\'; LISTEN x; --'", "select x2 pins=listen rds=listen"),
    ("hidden", "SELECT E'a\\'; LISTEN x; --'", "select ro"),
    ("hidden", "SELECT $q$ $ $$ $Q$; $q$; LISTEN x", "select x2 pins=listen rds=listen"),
    ("hidden", "SELECT a$b$; LISTEN x; --$b$", "select x2 pins=listen rds=listen"),
    ("hidden", "SELECT 1 /* /* */ ; LISTEN x */", "select ro"),
    ("hidden", "SELECT 1 --\r; LISTEN x", "select x2 pins=listen rds=listen"),
    ("hidden", "SELECT 1 +-- ; x\n 2; LISTEN x", "select x2 pins=listen rds=listen"),
    ("hidden", "/*+ SeqScan(t) */ SELECT 1", "select ro"),
    ("hidden", "/* pinion: reader */ SELECT 1", "select ro"),
    ("hidden", "SELECT N'x', B'101', X'1F', U&'d\\0061t', 1_000, 0x1F, .5, 1e5, 1.5E-3", "select ro"),
    ("order", "LISTEN a; UNLISTEN *", "other x2 clears=listen rds=listen"),
    ("order", "UNLISTEN *; LISTEN a", "other x2 pins=listen clears=listen rds=listen"),
    ("order", "SET x.y = 1; RESET ALL", "session x2 clears=session-variable rds=session-variable"),
    (
        "order",
        "SET ROLE a; RESET ALL",
        "session x2 pins=session-identity clears=session-variable rds=session-variable",
    ),
    ("order", "LISTEN a; UNLISTEN *; ROLLBACK", "other x3 pins=listen rds=listen"),
    ("order", "BEGIN; RESET ALL; COMMIT", "session x3 rds=session-variable"),
    (
        "asyncpg's reset",
        "SELECT pg_advisory_unlock_all();\nCLOSE ALL;\nUNLISTEN *;\nRESET ALL;",
        "select x4 clears=advisory-lock,listen,held-cursor,session-variable rds=advisory-lock,session-variable",
    ),
    (
        "asyncpg's reset",
        "ROLLBACK;\nSELECT pg_advisory_unlock_all();\nCLOSE ALL;\nUNLISTEN *;\nRESET ALL;",
        "select x5 clears=advisory-lock,listen,held-cursor,session-variable rds=advisory-lock,session-variable",
    ),
    ("transaction", "BEGIN", "transaction"),
    ("transaction", "START TRANSACTION READ ONLY", "transaction"),
    ("transaction", "COMMIT", "transaction ends"),
    ("transaction", "END WORK", "transaction ends"),
    ("transaction", "ABORT", "transaction ends"),
    ("transaction", "ROLLBACK", "transaction ends"),
    ("transaction", "PREPARE TRANSACTION 'x'", "transaction ends"),
    ("transaction", "COMMIT PREPARED 'x'", "transaction"),
    ("transaction", "COMMIT AND CHAIN", "transaction"),
    ("transaction", "COMMIT; SELECT 1", "select x2"),
    ("transaction", "SAVEPOINT a", "transaction"),
    ("transaction", "ROLLBACK TO a", "transaction"),
    ("transaction", "RELEASE a", "transaction"),
    ("transaction", "BEGIN; LISTEN a", "other x2 pins=listen rds=listen"),
];

#[test]
fn rows_have_their_facts() {
    assert!(ROWS.len() >= 150);
    for (_, text, expected) in ROWS {
        check(text, expected);
    }
}

#[test]
fn different_facts_never_share_a_digest() {
    let classifier = Classifier::new(1024);
    let mut seen = HashMap::new();
    for (_, text, expected) in ROWS {
        let found = classifier.facts(text.as_bytes(), LexMode::default());
        if line(&found.facts) == UNKNOWN {
            continue; // kept under its very bytes
        }
        assert_eq!(line(&found.facts), *expected, "{text}: spoilt by another row");
        let first = seen.entry(found.digest).or_insert((*text, *expected));
        assert_eq!(first.1, *expected, "{text} shares a digest with {}", first.0);
    }
}

/// Texts like `text` but for the values of literals, one at a time and all at once.
fn with_other_values(text: &str) -> Vec<String> {
    const STRINGS: [&str; 9] = [
        "''",
        "'zz'",
        "'it''s; LISTEN x; --'",
        "'true'",
        "'0'",
        "$$off$$",
        "E'\\n\\\\'",
        "'a'\n'b'",
        "'nextval'",
    ];
    const NUMBERS: [&str; 5] = ["0", "7", "99999999999", "1.5e3", "0x1F"];
    let mut literals = Vec::new();
    let mut value_counts = false;
    for_each_token(text.as_bytes(), LexMode::default(), |token| {
        let word = &text[token.start..token.end];
        match token.kind {
            Kind::Str if token.meaning == lexer::Meaning::Plain && !value_counts => {
                literals.push((token, &STRINGS[..]))
            }
            Kind::Number => literals.push((token, &NUMBERS[..])),
            _ => {}
        }
        value_counts = ["uescape", "load"].iter().any(|with| word.eq_ignore_ascii_case(with));
        true
    });
    let put = |which: &dyn Fn(usize) -> Option<usize>| {
        let mut out = String::new();
        let mut done = 0;
        for (index, (token, values)) in literals.iter().enumerate() {
            out.push_str(&text[done..token.start]);
            match which(index) {
                Some(value) => {
                    out.push(' ');
                    out.push_str(values[value % values.len()]);
                    out.push(' ');
                }
                None => out.push_str(&text[token.start..token.end]),
            }
            done = token.end;
        }
        out.push_str(&text[done..]);
        out
    };
    let mut texts = Vec::new();
    for value in 0..STRINGS.len() {
        texts.push(put(&|_| Some(value)));
        for only in 0..literals.len() {
            texts.push(put(&|index| (index == only).then_some(value)));
        }
    }
    texts
}

#[test]
fn literals_values_change_neither_digest_nor_facts() {
    let mut compared = 0;
    for (_, text, expected) in ROWS {
        if *expected == UNKNOWN {
            continue;
        }
        let kept = Classifier::new(1024);
        let digest = kept.facts(text.as_bytes(), LexMode::default()).digest;
        for other in with_other_values(text) {
            let found = kept.facts(other.as_bytes(), LexMode::default());
            assert_eq!(found.digest, digest, "{text} and {other}");
            let fresh = facts_of(other.as_bytes(), LexMode::default()).1;
            // What the grammar refuses the server refuses.
            if fresh != UNKNOWN {
                assert_eq!(fresh, *expected, "{text} became {other}");
                compared += 1;
            }
        }
    }
    assert!(compared > 1000, "{compared}");
}

#[test]
fn a_text_that_does_not_parse_spoils_nothing() {
    let classifier = Classifier::new(16);
    let bad = classifier.facts(b"FETCH 99999999999999 FROM c", LexMode::default());
    assert_eq!(line(&bad.facts), UNKNOWN);
    let good = classifier.facts(b"FETCH 5 FROM c", LexMode::default());
    assert_eq!((line(&good.facts), good.digest), ("other".to_owned(), bad.digest));
}

#[test]
fn facts_are_kept_by_digest() {
    let classifier = Classifier::new(16);
    let one = classifier.facts(b"SELECT a FROM t WHERE b = 1 AND c = 'x'", LexMode::default());
    let two =
        classifier.facts(b"select  a from T /* c */ where b=-- d\n 2.5 and C = $$y$$;", LexMode::default());
    let three = classifier.facts(b"select a from T where b=2.5 and C = E'y'", LexMode::default());
    assert_ne!(one.digest, two.digest, "a semicolon more");
    assert!(Arc::ptr_eq(&one.facts, &three.facts));
    assert_eq!(one.facts.digest_text, "select a from t where b = $1 and c = $2");
    let other = Classifier::new(16).facts(b"SELECT a FROM t WHERE b = 1 AND c = 'x'", LexMode::default());
    assert_ne!(one.digest, other.digest, "each classifier has a key of its own");
}

#[test]
fn tokens_run_together_differ_from_tokens_apart() {
    let classifier = Classifier::new(16);
    let digest = |text: &str| classifier.facts(text.as_bytes(), LexMode::default()).digest;
    for (one, other) in [
        ("SELECT 1a", "SELECT 1 a"),
        ("SELECT a b", "SELECT ab"),
        ("SELECT \"a\" \"b\"", "SELECT \"a\"\"b\""),
        ("SELECT 'a' 'b'", "SELECT 'a'\n'b'"),
        ("SELECT 'a' /* */ 'b'", "SELECT 'a'\n'b'"),
        ("SELECT a::b", "SELECT a: :b"),
        ("SELECT 1..2", "SELECT 1. .2"),
        ("SELECT 1.5", "SELECT 1. 5"),
        ("SELECT a<-1", "SELECT a< -1"),
        ("SELECT $1", "SELECT $2"),
        ("SELECT \"A\"", "SELECT \"a\""),
        ("SELECT a", "SELECT \"a\""),
        ("SELECT U&\"a!\" UESCAPE '!'", "SELECT U&\"a!\" UESCAPE '#'"),
        ("SELECT B'1'", "SELECT X'1'"),
        ("SELECT '1'", "SELECT 1"),
        ("SELECT N'1'", "SELECT '1'"),
        ("SELECT 1", "/*+ hint */ SELECT 1"),
        ("/*+ hint */ SELECT 1", "/*+ tnih */ SELECT 1"),
        ("SELECT 1", "SELECT 1 -- pinion: x"),
        ("SELECT set_config('a', 'b', true)", "SELECT set_config('a', 'b', false)"),
        ("SELECT 'a'", "SELECT 'pg_temp'"),
        ("LOAD 'a'", "LOAD 'b'"),
        ("SELECT 1; load E'a'", "SELECT 1; load E'b'"),
    ] {
        assert_ne!(digest(one), digest(other), "{one} and {other}");
    }
    for (one, other) in [
        ("SELECT 1", "select/**/2"),
        ("SELECT a.b", "SELECT a . b"),
        ("SELECT 'a'", "SELECT E'\\x41' -- end"),
        ("SELECT 'a'\n'b'", "SELECT $x$ab$x$"),
        ("SELECT 1_000", "SELECT 0x1F"),
        ("SELECT A\u{c9}", "SELECT a\u{c9}"),
    ] {
        assert_eq!(digest(one), digest(other), "{one} and {other}");
    }
}

#[test]
fn literals_start_where_the_servers_scanner_sees_them() {
    use pg_query::protobuf::Token as Theirs;
    for (_, text, _) in ROWS {
        let Ok(scan) = pg_query::scan(text) else { continue };
        let theirs: Vec<(usize, bool)> = scan
            .tokens
            .iter()
            .filter_map(|token| match Theirs::try_from(token.token).unwrap() {
                Theirs::Sconst | Theirs::Usconst | Theirs::Bconst | Theirs::Xconst => {
                    Some((token.start, false))
                }
                Theirs::Iconst | Theirs::Fconst => Some((token.start, true)),
                _ => None,
            })
            .map(|(start, number)| (usize::try_from(start).unwrap(), number))
            .collect();
        let mut ours = Vec::new();
        for_each_token(text.as_bytes(), LexMode::default(), |token| {
            match token.kind {
                Kind::Number => ours.push((token.start, true)),
                // The scanner gives the N as a word of its own.
                Kind::National => ours.push((token.start + 1, false)),
                Kind::Str | Kind::UnicodeStr | Kind::Bits | Kind::Hex => ours.push((token.start, false)),
                _ => {}
            }
            true
        });
        assert_eq!(ours, theirs, "{text}");
    }
}

#[test]
fn logs_see_no_literal() {
    let text =
        |text: &str| Classifier::new(8).facts(text.as_bytes(), LexMode::default()).facts.digest_text.clone();
    assert_eq!(text("ALTER ROLE a PASSWORD 'secret'"), "alter role a password $1");
    assert_eq!(text("SELECT  'x',$3 , 5 -- secret\n"), "select $4,$3 , $5");
    assert_eq!(
        text("SELECT $$secret$$, E'sec\\'ret', U&'secret', N'secret', 0x5ec"),
        "select $1, $2, $3, $4, $5"
    );
    assert_eq!(text("SELECT \"Quoted\" /*+ secret */ FROM t"), "select \"Quoted\" from t");
    assert_eq!(text("SELECT 'secret"), "select $1");
    let long = text(&format!("SELECT {}", "'é', é\u{1f600}, ".repeat(1000)));
    assert!(long.len() <= DIGEST_TEXT_LIMIT && long.len() > DIGEST_TEXT_LIMIT - 8, "{}", long.len());
    let gbk = LexMode { ascii_safe_encoding: false, ..LexMode::default() };
    assert_eq!(Classifier::new(8).facts(b"SELECT '\x815c' , 'secret'", gbk).facts.digest_text, "?");
}

#[test]
fn texts_whose_cutting_is_uncertain_are_not_understood() {
    let unsafe_encoding = LexMode { ascii_safe_encoding: false, ..LexMode::default() };
    let escaping = LexMode { standard_conforming_strings: false, ..LexMode::default() };
    let is = |text: &[u8], mode, expected: &str| assert_eq!(facts_of(text, mode).1, expected, "{text:?}");
    is(b"SELECT 1", unsafe_encoding, "select ro");
    is(b"SELECT '\x81\x5c'", unsafe_encoding, UNKNOWN);
    is(b"SELECT \"\x81\x5c\"", unsafe_encoding, UNKNOWN);
    is(b"SELECT \x81\x5c", unsafe_encoding, UNKNOWN);
    is(b"SELECT $\x81a$x$\x81a$", unsafe_encoding, UNKNOWN);
    is(b"SELECT 1 -- \x81\x0a; LISTEN x", unsafe_encoding, UNKNOWN);
    is(b"SELECT 1 /* \x81*/ */", unsafe_encoding, UNKNOWN);
    is(b"SELECT 'a'", escaping, "select ro");
    is(b"SELECT E'a\\''", escaping, "select ro");
    is(b"SELECT 'a\\'", escaping, UNKNOWN);
    is(b"SELECT 'a\\'; LISTEN x; --'", escaping, UNKNOWN);
    is(b"SELECT '\xe9', \xe9 FROM \"\xe9\" -- \xe9", LexMode::default(), "select ro");
    is(b"SELECT ma\xe9(1)", LexMode::default(), "select taints");
    is(b"SELECT $\xe9$ $\xe8$ ; $\xe9$", LexMode::default(), UNKNOWN);
    is("SELECT $é$ $è$ ; $é$".as_bytes(), LexMode::default(), "select ro");
    is(b"SELECT 1\0; LISTEN x", LexMode::default(), UNKNOWN);
    is(b"SELECT '\0'", LexMode::default(), UNKNOWN);
    let classifier = Classifier::new(8);
    let digests = [LexMode::default(), unsafe_encoding, escaping]
        .map(|mode| classifier.facts(b"SELECT 1", mode).digest);
    assert!(digests[0] != digests[1] && digests[0] != digests[2] && digests[1] != digests[2]);
}

#[test]
fn modes_follow_the_parameters() {
    let mode = |conforming, encoding| {
        let mode = LexMode::from_params(conforming, encoding);
        (mode.standard_conforming_strings, mode.ascii_safe_encoding)
    };
    for safe in [
        "UTF8",
        "utf-8",
        "UNICODE",
        "SQL_ASCII",
        "LATIN1",
        "ISO_8859_5",
        "WIN1252",
        "KOI8R",
        "EUC_JP",
        "EUC_TW",
    ] {
        assert_eq!(mode("on", safe), (true, true), "{safe}");
    }
    let unsafe_ones = [
        "SJIS",
        "BIG5",
        "GBK",
        "UHC",
        "GB18030",
        "JOHAB",
        "SHIFT_JIS_2004",
        "Windows-932",
        "win936",
        "mskanji",
        "",
        "new",
    ];
    for not in unsafe_ones {
        assert_eq!(mode("off", not), (false, false), "{not}");
    }
    assert_eq!(LexMode::from_params("on", "UTF8"), LexMode::default());
}

#[test]
fn deep_and_long_texts_neither_crash_nor_hang() {
    let nested = |open: &str, close: &str, depth: usize| {
        format!("SELECT {}1{}", open.repeat(depth), close.repeat(depth)).into_bytes()
    };
    let texts = [
        nested("(", ")", 100_000),
        nested("(", ")", 3_000),
        nested("(SELECT ", ")", 20_000),
        nested("abs(", ")", 5_000),
        nested("ARRAY[", "]", 5_000),
        nested("NOT ", "", 100_000),
        nested("- ", "", 100_000),
        nested("/*", "*/", 100_000),
        "/**/".repeat(200_000).into_bytes(),
        format!("SELECT {}1", "+-".repeat(200_000)).into_bytes(),
        nested("CASE WHEN true THEN ", " END", 3_000),
        nested("1+", "", 100_000),
        nested("1 OR ", "", 50_000),
        nested("", "::int", 100_000),
        nested("", "[1]", 100_000),
        nested("", " UNION SELECT 1", 50_000),
        nested("EXPLAIN ", "", 10_000),
        format!("SELECT * FROM a {}", "JOIN b ON true ".repeat(50_000)).into_bytes(),
        format!("INSERT INTO t VALUES (1){}", ",(2)".repeat(200_000)).into_bytes(),
        format!(
            "SELECT {}",
            "a_identifier_that_is_much_longer_than_sixty_three_bytes_which_earns_a_notice,".repeat(10_000)
        )
        .into_bytes(),
        "CREATE GLOBAL TEMP TABLE a(); ".repeat(20_000).into_bytes(),
        vec![b'('; PARSE_LIMIT],
        vec![b'\''; PARSE_LIMIT + 1],
        format!("SELECT {}", "E'\\'' ".repeat(100_000)).into_bytes(),
    ];
    // As small as the stack of a server's worker thread may be.
    let worker = thread::Builder::new().stack_size(2 << 20).spawn(move || {
        let classifier = Classifier::new(64);
        for text in &texts {
            let facts = classifier.facts(text, LexMode::default()).facts;
            let known = facts.kind != StatementKind::Unknown || facts.pins != PinReasons::NONE;
            assert!(known && facts.digest_text.len() <= DIGEST_TEXT_LIMIT);
        }
        // Nesting as people write it is understood.
        for text in [
            nested("(", ")", 500),
            nested("abs(", ")", 20),
            nested("1 OR ", "", 10_000),
            nested("1+", "", 30),
        ] {
            assert_eq!(line(&classifier.facts(&text, LexMode::default()).facts), "select ro");
        }
    });
    worker.unwrap().join().unwrap();
}

#[test]
fn texts_over_the_limit_are_not_understood() {
    let mut text = b"SELECT 1 ".to_vec();
    text.resize(PARSE_LIMIT, b' ');
    assert_eq!(facts_of(&text, LexMode::default()).1, "select ro");
    text.push(b' ');
    assert_eq!(facts_of(&text, LexMode::default()).1, UNKNOWN);
}

#[test]
fn threads_agree() {
    let classifier = Classifier::new(1024);
    let lines: Vec<Vec<String>> = thread::scope(|scope| {
        let workers: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    ROWS.iter()
                        .map(|row| line(&classifier.facts(row.1.as_bytes(), LexMode::default()).facts))
                        .collect()
                })
            })
            .collect();
        workers.into_iter().map(|worker| worker.join().unwrap()).collect()
    });
    for found in lines {
        let expected: Vec<&str> = ROWS.iter().map(|row| row.2).collect();
        assert_eq!(found, expected);
    }
}

#[test]
fn texts_cut_at_every_byte_are_survived() {
    let classifier = Classifier::new(64);
    for (_, text, _) in ROWS {
        for end in 0..text.len() {
            for mode in [
                LexMode::default(),
                LexMode { standard_conforming_strings: false, ascii_safe_encoding: false },
            ] {
                let found = classifier.facts(&text.as_bytes()[..end], mode);
                assert!(found.facts.digest_text.len() <= DIGEST_TEXT_LIMIT);
            }
        }
    }
}

#[test]
fn random_bytes_are_survived() {
    let mut state: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut random = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    };
    const PIECES: [&[u8]; 24] = [
        b"'", b"\"", b"\\", b"$", b"$$", b"$a$", b"/*", b"*/", b"--", b"\n", b"E'", b"U&'", b"U&\"",
        b"UESCAPE", b";", b"(", b")", b"::", b"..", b"1e", b"0x", b"\xff", b"\0", b" ",
    ];
    let classifier = Classifier::new(256);
    let mut by_digest: HashMap<u128, (Vec<u8>, String)> = HashMap::new();
    for _ in 0..20_000 {
        let mut text = ROWS[random(ROWS.len())].1.as_bytes().to_vec();
        for _ in 0..=random(4) {
            let place = random(text.len() + 1);
            match random(5) {
                0 => text.insert(place, random(256) as u8),
                1 => text.truncate(place),
                2 => {
                    text.splice(place..place, PIECES[random(PIECES.len())].iter().copied());
                }
                3 if place < text.len() => text[place] = PIECES[random(PIECES.len())][0],
                _ => {
                    let other = ROWS[random(ROWS.len())].1.as_bytes();
                    text.extend_from_slice(&other[random(other.len() + 1)..]);
                }
            }
        }
        let mode = LexMode { standard_conforming_strings: random(4) > 0, ascii_safe_encoding: random(4) > 0 };
        let digest = classifier.facts(&text, mode).digest;
        let fresh = facts_of(&text, mode).1;
        if fresh != UNKNOWN {
            let first = by_digest.entry(digest).or_insert_with(|| (text.clone(), fresh.clone()));
            let (one, other) = (String::from_utf8_lossy(&first.0), String::from_utf8_lossy(&text));
            assert_eq!(first.1, fresh, "one digest: {one:?} and {other:?}");
        }
    }
}

/// Tables, functions and variables in one line, with the flags that are set.
fn named(text: &str) -> String {
    let facts = Classifier::new(10).facts(text.as_bytes(), LexMode::default()).facts;
    let flags = [
        (facts.locks_rows, "locks-rows"),
        (facts.writes, "writes"),
        (facts.calls_acting_function, "acting"),
        (facts.calls_unknown_function, "unknown"),
        (facts.variables_in_literals, "literals"),
        (facts.read_only, "read-only"),
    ];
    let flags: Vec<_> = flags.into_iter().filter(|(set, _)| *set).map(|(_, name)| name).collect();
    let lists = [&facts.tables, &facts.functions, &facts.variables].map(|names| names.join(","));
    format!("{}|{}", lists.join("|"), flags.join(" "))
}

#[test]
fn names_in_a_statement_are_told() {
    for (text, expected) in [
        ("select 1", "|||read-only"),
        ("select * from a join s.b on true, a", "a,s.b|||read-only"),
        ("select lower(x), app.f(y) from t", "t|app.f,lower||unknown"),
        ("select nextval('s')", "|nextval||acting"),
        ("select * from t for update", "t|||locks-rows"),
        ("with n as (select 1 from t) select * from n", "t|||read-only"),
        ("with d as (delete from t returning *) select * from d", "t|||writes"),
        ("insert into T select * from \"U\"", "U,t|||writes"),
        ("select * into n from t", "n,t|||writes"),
        ("set TimeZone = 'x'", "||timezone|"),
        ("set local work_mem = 1", "||work_mem|"),
        ("reset all", "|||"),
        ("reset Work_Mem", "||work_mem|"),
        ("select set_config('a.b', 'c', false)", "|set_config||acting literals"),
        ("explain analyze delete from t", "t|||writes"),
        ("not sql", "|||writes acting unknown"),
    ] {
        assert_eq!(named(text), expected, "{text}");
    }
}

#[test]
fn names_of_variables_in_literals_are_read_from_the_text() {
    let names = |text: &str| Classifier::literal_variables(text.as_bytes(), LexMode::default());
    assert_eq!(names("select set_config('B', 'x', false), set_config('a.c', 'y', true)"), ["a.c", "b"]);
    assert_eq!(names("select set_config($1, 'x', false)"), Vec::<String>::new());
}

#[test]
fn a_hint_is_read_from_comments_only() {
    for (text, expected) in [
        ("select 1", ""),
        ("/* pinion:writer */ select 1", "writer"),
        ("select 1 -- pinion:reader", "reader"),
        ("select /*pinion:shard-7 please*/ 1", "shard-7"),
        ("select '/* pinion:writer */'", ""),
        ("select \"pinion:writer\"", ""),
        ("select $$ /* pinion:writer */ $$ /* x pinion:reader */", "reader"),
        ("/* pinion: */ select 1", ""),
    ] {
        assert_eq!(hint(text.as_bytes(), LexMode::default()), expected, "{text}");
    }
}
