#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::{collections::HashMap, thread, time::Instant};

use super::*;

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
    if !facts.prepared_names.is_empty() {
        out += &format!(" names={}", facts.prepared_names.join(","));
    }
    out
}

const UTF8: LexMode = LexMode { ansi_quotes: false, no_backslash_escapes: false, charset: Charset::Utf8 };

fn in_charset(charset: Charset) -> LexMode {
    LexMode { charset, ..UTF8 }
}

fn facts_of(text: &[u8], mode: LexMode) -> (u128, String) {
    let found = Classifier::new(8).facts(text, mode);
    (found.digest, line(&found.facts))
}

const UNKNOWN: &str = "unknown pins=unknown rds=unknown taints";
const TEMP: &str = "ddl pins=temporary-table rds=temporary-table";
const TABLES: &str = "other pins=table-lock rds=table-lock";
const FLUSHED: &str = "ddl pins=table-lock rds=table-lock";
const LOCK: &str = "select pins=advisory-lock rds=advisory-lock";
const USER: &str = "session rds=session-variable";
const EXPRESSION: &str = "session pins=session-variable rds=session-variable";
const UNTRACKED: &str = "session rds=session-variable";
const TRACKED: &str = "session";
const FUNCTION: &str = "select pins=session-function needs";
const FUNCTION_IN_RDS: &str = "select pins=session-function rds=session-function needs";
const PREPARED: &str = "other pins=prepared-statement rds=prepared-statement";

/// Row (of docs/session.md where it has letters and a number), text, facts.
const ROWS: &[(&str, &str, &str)] = &[
    ("PIN-M-01", "LOCK TABLES t READ", TABLES),
    ("PIN-M-01", "lock table t write, u as x read local", TABLES),
    ("PIN-M-01", "LOCK TABLES `a b`.`c` WRITE", TABLES),
    ("PIN-M-01", "FLUSH TABLES WITH READ LOCK", FLUSHED),
    ("PIN-M-01", "FLUSH LOCAL TABLES a, b WITH READ LOCK", FLUSHED),
    ("PIN-M-01", "FLUSH TABLES a FOR EXPORT", FLUSHED),
    ("PIN-M-01", "UNLOCK TABLES", "other clears=table-lock"),
    ("PIN-M-01", "unlock table", "other clears=table-lock"),
    ("locks", "FLUSH TABLES", "ddl"),
    ("locks", "FLUSH PRIVILEGES", "ddl"),
    ("locks", "LOCK INSTANCE FOR BACKUP", "other pins=table-lock,unknown"),
    ("locks", "UNLOCK INSTANCE", "other"),
    ("locks", "BACKUP STAGE START", "other pins=table-lock,unknown"),
    ("locks", "BACKUP LOCK t", "other pins=table-lock,unknown"),
    ("PIN-M-02", "SELECT GET_LOCK('a', 10)", LOCK),
    ("PIN-M-02", "select get_lock ( @a , 0 ) from dual", LOCK),
    ("PIN-M-02", "SELECT `get_lock`('a', 1)", LOCK),
    ("PIN-M-02", "SELECT get_lock/* */('a', 1)", LOCK),
    ("PIN-M-02", "SELECT 1 FROM t WHERE a = 1 AND (b OR get_lock(c, 1))", LOCK),
    ("PIN-M-02", "DO GET_LOCK('a', 1)", "routine pins=advisory-lock rds=advisory-lock taints"),
    (
        "PIN-M-02",
        "SET @a = GET_LOCK('a', 1)",
        "session pins=advisory-lock,session-variable rds=advisory-lock,session-variable",
    ),
    ("PIN-M-02", "INSERT INTO t VALUES (GET_LOCK('a', 1))", "write pins=advisory-lock rds=advisory-lock"),
    ("PIN-M-02", "SHOW TABLES WHERE get_lock('a', 1)", LOCK),
    ("locks", "SELECT RELEASE_LOCK('a')", "select"),
    ("locks", "SELECT RELEASE_ALL_LOCKS()", "select"),
    ("locks", "SELECT IS_FREE_LOCK('a'), IS_USED_LOCK('a')", "select ro"),
    ("locks", "SELECT get_lock FROM t", "select ro"),
    ("locks", "SELECT 'get_lock(1)'", "select ro"),
    ("locks", "SELECT service_get_write_locks('a', 'b', 1)", "select pins=unknown taints"),
    ("PIN-M-03", "SET @a = 1", USER),
    (
        "PIN-M-03",
        "SET @a := -1.5, @`b c` = 'x', @'d' = NULL, @e = x'00', @f = _utf8mb4'x' collate utf8mb4_bin",
        USER,
    ),
    ("PIN-M-03", "SET @a = 'x' 'y', @b = TRUE, @c = 0x1F, @d = b'01', @e = N'x', @f = 1e3, @g = +2", USER),
    ("PIN-M-03", "SET @a = @b", EXPRESSION),
    ("PIN-M-03", "SET @a = 1 + 1", EXPRESSION),
    ("PIN-M-03", "SET @a = ?", EXPRESSION),
    ("PIN-M-03", "SET @a = b", EXPRESSION),
    ("PIN-M-03", "SET @a = @@sql_mode", EXPRESSION),
    ("PIN-M-03", "SET @a = (SELECT max(b) FROM t)", EXPRESSION),
    ("PIN-M-03", "SET @a = 1, @b = @a", EXPRESSION),
    ("PIN-M-03", "SET @a = NOW()", EXPRESSION),
    ("PIN-M-03", "SET @a = (@b := 1)", EXPRESSION),
    ("PIN-M-03", "SELECT @v := 5", "select pins=session-variable rds=session-variable"),
    ("PIN-M-03", "SELECT @v:=a FROM t", "select pins=session-variable rds=session-variable"),
    ("PIN-M-03", "SELECT a INTO @v FROM t", "select pins=session-variable rds=session-variable"),
    ("PIN-M-03", "SELECT a, b FROM t INTO @v, @w", "select pins=session-variable rds=session-variable"),
    ("PIN-M-03", "UPDATE t SET a = @v := a + 1", "write pins=session-variable rds=session-variable"),
    ("PIN-M-03", "EXPLAIN FORMAT=JSON INTO @v SELECT 1", "other pins=session-variable rds=session-variable"),
    (
        "PIN-M-03",
        "LOAD DATA INFILE 'x' INTO TABLE t (a, @b) SET c = @b",
        "copy pins=session-variable rds=session-variable",
    ),
    ("PIN-M-03", "SELECT @v", "select ro"),
    ("PIN-M-03", "SELECT a AS `@v:=5` FROM t WHERE b = ':='", "select ro"),
    ("PIN-M-03", "SET sort_buffer_size = 300000", UNTRACKED),
    ("PIN-M-03", "SET SESSION foreign_key_checks = 0", UNTRACKED),
    ("PIN-M-03", "set @@session.sql_safe_updates=1", UNTRACKED),
    ("PIN-M-03", "SET @@session.unique_checks = OFF", UNTRACKED),
    // What MariaDB does not report.
    ("PIN-M-03", "SET @@unique_checks = OFF", "session pins=session-variable rds=session-variable"),
    ("unreported", "SET @@time_zone = '+00:00'", "session pins=session-variable"),
    ("unreported", "SET @@sql_mode = ''", "session pins=session-variable,unknown"),
    ("rereads", "SET sql_mode = 'ANSI'; SELECT 'a', `b`", "session x2"),
    ("rereads", "SELECT \"a\"; SET sql_mode = 'ANSI'", "select x2"),
    ("rereads", "SET sql_mode = 'ANSI'; SELECT \"a\"", UNKNOWN),
    ("rereads", "SET sql_mode = 'NO_BACKSLASH_ESCAPES'; SELECT '\\', GET_LOCK('x', 0) -- '", UNKNOWN),
    ("rereads", "SET NAMES gbk; SELECT 'ä'", UNKNOWN),
    ("rereads", "SET character_set_client = sjis; SELECT 'ä'", UNKNOWN),
    ("PIN-M-03", "SET max_execution_time = DEFAULT", UNTRACKED),
    ("PIN-M-03", "SET GLOBAL max_connections = 100", UNTRACKED),
    ("PIN-M-03", "SET PERSIST max_connections = 100", UNTRACKED),
    (
        "PIN-M-03",
        "SET autocommit=?, transaction_isolation=?, session_track_schema=?, session_track_system_variables=?",
        UNTRACKED,
    ),
    ("PIN-M-03", "SET sql_mode = 'ANSI', lc_messages = 'de_DE'", UNTRACKED),
    ("PIN-M-03", "set @@session.sort_buffer_size=300000, @w=2", USER),
    ("PIN-M-03", "SET timestamp = 5", EXPRESSION),
    ("PIN-M-03", "SET insert_id = 5", EXPRESSION),
    ("PIN-M-03", "SET SESSION gtid_next = 'AUTOMATIC'", EXPRESSION),
    ("PIN-M-03", "SET LAST_INSERT_ID = 7", UNTRACKED),
    ("PIN-M-03", "SET ROLE NONE", "session pins=session-identity rds=session-variable"),
    ("PIN-M-03", "SET ROLE 'a'@'b', c", "session pins=session-identity rds=session-variable"),
    ("PIN-M-03", "SET RESOURCE GROUP g", EXPRESSION),
    ("PIN-M-03", "SET STATEMENT max_statement_time=1 FOR SELECT a FROM t", "select rds=session-variable ro"),
    ("PIN-M-03", "SET STATEMENT sort_buffer_size=1 FOR DELETE FROM t", "write rds=session-variable"),
    ("PIN-M-04", "CREATE TEMPORARY TABLE t (a int)", TEMP),
    ("PIN-M-04", "create temporary table if not exists t (a int) engine=memory", TEMP),
    ("PIN-M-04", "CREATE OR REPLACE TEMPORARY TABLE t AS SELECT 1", TEMP),
    ("PIN-M-04", "CREATE TEMPORARY TABLE t LIKE u", TEMP),
    ("PIN-M-04", "CREATE TEMPORARY SEQUENCE s", TEMP),
    ("PIN-M-04", "CREATE/**/TEMPORARY/**/TABLE t(a int)", TEMP),
    (
        "PIN-M-04",
        "CREATE TEMPORARY TABLE t SELECT get_lock('a', 1)",
        "ddl pins=temporary-table,advisory-lock rds=temporary-table,advisory-lock",
    ),
    ("not temporary", "DROP TEMPORARY TABLE t", "ddl"),
    ("not temporary", "CREATE TABLE temporary_t (temporary int)", "ddl"),
    ("not temporary", "CREATE TABLE `temporary` (a int)", "ddl"),
    ("not temporary", "SELECT 'CREATE TEMPORARY TABLE t (a int)'", "select ro"),
    ("PIN-M-05", "PREPARE s FROM 'SELECT 1'", PREPARED),
    ("PIN-M-05", "prepare `S` from @v", PREPARED),
    ("PIN-M-05", "EXECUTE s", "other rds=prepared-statement taints names=s"),
    ("PIN-M-05", "EXECUTE S USING @a, @b", "other rds=prepared-statement taints names=s"),
    ("PIN-M-05", "DEALLOCATE PREPARE s", "other rds=prepared-statement one names=s"),
    ("PIN-M-05", "DROP PREPARE s", "other rds=prepared-statement one names=s"),
    ("PIN-M-05", "DROP PREPARE a; DROP PREPARE b", "other x2 rds=prepared-statement names=a,b"),
    ("PIN-M-05", "EXECUTE IMMEDIATE 'SELECT 1'", "other pins=unknown rds=prepared-statement taints"),
    ("PIN-M-06", "SELECT ROW_COUNT()", FUNCTION_IN_RDS),
    ("PIN-M-06", "SELECT FOUND_ROWS()", FUNCTION_IN_RDS),
    ("PIN-M-06", "select found_rows ( ) as n", FUNCTION_IN_RDS),
    ("PIN-M-06", "SELECT SQL_CALC_FOUND_ROWS * FROM t LIMIT 1", "select pins=session-function"),
    ("PIN-M-07", "SELECT LAST_INSERT_ID()", FUNCTION),
    ("PIN-M-07", "SELECT * FROM t WHERE id = last_insert_id()", FUNCTION),
    ("PIN-M-07", "INSERT INTO u (t_id) VALUES (LAST_INSERT_ID())", "write pins=session-function needs"),
    ("PIN-M-07", "SELECT @@identity", FUNCTION),
    ("PIN-M-07", "SELECT @@session.last_insert_id", FUNCTION),
    (
        "PIN-M-07",
        "SET @a = LAST_INSERT_ID()",
        "session pins=session-variable,session-function rds=session-variable needs",
    ),
    ("PIN-M-07", "SELECT LAST_INSERT_ID(5)", "select"),
    ("PIN-M-07", "UPDATE s SET id = LAST_INSERT_ID(id + 1)", "write"),
    ("PIN-M-08", "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE", EXPRESSION),
    ("PIN-M-08", "SET TRANSACTION READ ONLY", EXPRESSION),
    ("PIN-M-08", "SET TRANSACTION ISOLATION LEVEL READ COMMITTED, READ WRITE", EXPRESSION),
    ("PIN-M-08", "SET @@transaction_isolation = 'SERIALIZABLE'", EXPRESSION),
    ("PIN-M-08", "SET @@tx_read_only = 1", EXPRESSION),
    ("PIN-M-08", "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED", TRACKED),
    ("PIN-M-08", "SET LOCAL TRANSACTION READ ONLY", TRACKED),
    ("PIN-M-08", "SET transaction_isolation = 'SERIALIZABLE'", TRACKED),
    ("PIN-M-08", "SET @@session.tx_isolation = 'SERIALIZABLE'", TRACKED),
    ("PIN-M-08", "SET GLOBAL TRANSACTION READ ONLY", TRACKED),
    ("PIN-M-09", "/*!40101 SET NAMES utf8 */", "session rds=unknown"),
    ("PIN-M-09", "/*! SELECT 1 */", "select rds=unknown ro"),
    ("PIN-M-09", "SELECT /*!40001 SQL_NO_CACHE */ * FROM t", "select rds=unknown ro"),
    ("PIN-M-09", "SELECT /*M! 1 + */ 1", "select rds=unknown ro"),
    (
        "PIN-M-09",
        "/*!50717 SELECT COUNT(*) INTO @x FROM t */",
        "select pins=session-variable rds=session-variable,unknown",
    ),
    (
        "PIN-M-09",
        "/*!40014 SET @OLD_CHECKS=@@UNIQUE_CHECKS, UNIQUE_CHECKS=0 */",
        "session pins=session-variable rds=session-variable,unknown",
    ),
    ("PIN-M-09", "/*!40101 SET @saved = 1 */", "session pins=session-variable rds=session-variable,unknown"),
    ("PIN-M-09", "/*M!999999\\- enable the sandbox mode */", "empty x0 rds=unknown ro"),
    ("PIN-M-09", "CREATE TABLE t (a int) /*! ENGINE = innodb */", "ddl rds=unknown"),
    (
        "PIN-M-09",
        "CREATE TABLE t (a int /*!80023 INVISIBLE */) /*!80016 ENCRYPTION='N' */",
        "ddl rds=unknown",
    ),
    // PIN-M-10 is a length, not a fact.
    ("NOPIN-M-01", "USE app", TRACKED),
    ("NOPIN-M-01", "DROP DATABASE app", "ddl"),
    ("NOPIN-M-01", "DROP SCHEMA IF EXISTS app", "ddl"),
    ("NOPIN-M-01", "SET NAMES utf8mb4", TRACKED),
    ("NOPIN-M-01", "SET NAMES 'utf8mb4' COLLATE 'utf8mb4_general_ci'", TRACKED),
    ("NOPIN-M-01", "set names default", TRACKED),
    ("NOPIN-M-01", "SET CHARACTER SET utf8mb4", TRACKED),
    ("NOPIN-M-01", "SET CHAR SET 'latin1'", TRACKED),
    ("NOPIN-M-01", "SET CHARSET latin1", TRACKED),
    ("NOPIN-M-01", "SET autocommit=0", TRACKED),
    ("NOPIN-M-01", "SET @@session.autocommit = OFF", TRACKED),
    ("NOPIN-M-01", "SET auto_increment_increment = 2", TRACKED),
    ("NOPIN-M-01", "SET character_set_client = latin1", TRACKED),
    ("NOPIN-M-01", "SET character_set_database = latin1", TRACKED),
    ("NOPIN-M-01", "SET character_set_filesystem = latin1", TRACKED),
    ("NOPIN-M-01", "SET character_set_connection = latin1", TRACKED),
    ("NOPIN-M-01", "SET character_set_results = NULL", TRACKED),
    ("NOPIN-M-01", "SET character_set_server = latin1", TRACKED),
    ("NOPIN-M-01", "SET collation_connection = utf8mb4_bin", TRACKED),
    ("NOPIN-M-01", "SET collation_database = utf8mb4_bin", TRACKED),
    ("NOPIN-M-01", "SET collation_server = utf8mb4_bin", TRACKED),
    ("NOPIN-M-01", "SET interactive_timeout = 1, wait_timeout = 1, net_write_timeout = 1", TRACKED),
    ("NOPIN-M-01", "SET query_cache_type = 0", TRACKED),
    ("NOPIN-M-01", "SET session_track_schema = 1", TRACKED),
    ("NOPIN-M-01", "SET sql_mode = ''", TRACKED),
    ("NOPIN-M-01", "SET time_zone = '+00:00'", TRACKED),
    ("NOPIN-M-01", "SET SESSION tx_read_only = 0, transaction_read_only = 1", TRACKED),
    ("NOPIN-M-02", "SET LOCAL sort_buffer_size = 5", TRACKED),
    ("NOPIN-M-02", "SET @@local.sort_buffer_size = 5", TRACKED),
    ("NOPIN-M-02", "SET LOCAL sort_buffer_size = 5, join_buffer_size = 5", TRACKED),
    ("NOPIN-M-02", "SET LOCAL sort_buffer_size = 5, SESSION join_buffer_size = 5", UNTRACKED),
    ("NOPIN-M-02", "SET LOCAL sort_buffer_size = 5, @a = 5", USER),
    ("NOPIN-M-03", "CALL p(1)", "routine taints"),
    ("NOPIN-M-03", "CALL app.p", "routine taints"),
    ("NOPIN-M-03", "CALL p(1, @out)", "routine pins=session-variable taints"),
    ("NOPIN-M-03", "SELECT my_function(1)", "select taints"),
    ("NOPIN-M-03", "SELECT app.lower('A')", "select taints"),
    ("NOPIN-M-03", "DO my_function(1)", "routine taints"),
    ("NOPIN-M-03", "DO SLEEP(1)", "routine taints"),
    ("NOPIN-M-04", "SELECT * FROM t WHERE a = 1", "select ro"),
    ("NOPIN-M-04", "INSERT INTO t (a, b) VALUES (1, 'x'), (2, 'y')", "write"),
    ("NOPIN-M-04", "UPDATE t SET a = 1 WHERE b = 2", "write"),
    ("NOPIN-M-04", "DELETE FROM t", "write"),
    ("NOPIN-M-04", "CREATE TABLE t (a int)", "ddl"),
    ("NOPIN-M-04", "BEGIN; UPDATE t SET a = 1; COMMIT", "write x3"),
    (
        "WRONG-M-01",
        "GET DIAGNOSTICS @n = NUMBER",
        "other pins=session-variable,session-function rds=session-variable needs",
    ),
    (
        "WRONG-M-01",
        "GET CURRENT DIAGNOSTICS CONDITION 1 @s = RETURNED_SQLSTATE",
        "other pins=session-variable,session-function rds=session-variable needs",
    ),
    (
        "WRONG-M-02",
        "UPDATE t SET a = 1; SELECT ROW_COUNT()",
        "write x2 pins=session-function rds=session-function needs",
    ),
    ("diagnostics", "SHOW WARNINGS", FUNCTION),
    ("diagnostics", "SHOW ERRORS LIMIT 5", FUNCTION),
    ("diagnostics", "SHOW COUNT(*) WARNINGS", FUNCTION),
    ("diagnostics", "SELECT @@warning_count, @@error_count", FUNCTION),
    ("xa", "XA START 'x'", "transaction pins=xa taints"),
    ("xa", "XA BEGIN 'x','y',1", "transaction pins=xa taints"),
    ("xa", "XA END 'x'", "transaction pins=xa taints"),
    ("xa", "XA PREPARE 'x'", "transaction pins=xa taints"),
    ("xa", "XA COMMIT 'x' ONE PHASE", "transaction taints"),
    ("xa", "XA ROLLBACK 'x'", "transaction taints"),
    ("xa", "XA RECOVER", "transaction taints"),
    ("handler", "HANDLER t OPEN", "other pins=handler taints"),
    ("handler", "HANDLER db.t OPEN AS h", "other pins=handler taints"),
    ("handler", "HANDLER h READ FIRST WHERE a = 1", "other taints"),
    ("handler", "HANDLER h CLOSE", "other taints"),
    ("several", "SET @a = 1; SELECT @a", "session x2 pins=multi-statement rds=session-variable"),
    ("several", "SET NAMES utf8mb4; SET autocommit = 0", "session x2"),
    ("several", "SELECT 1; SELECT 2;", "select x2 ro"),
    ("several", "SELECT 1; DELETE FROM t", "select x2"),
    ("several", "LOCK TABLES t READ; UNLOCK TABLES", "other x2 clears=table-lock rds=table-lock"),
    (
        "several",
        "UNLOCK TABLES; LOCK TABLES t READ",
        "other x2 pins=table-lock clears=table-lock rds=table-lock",
    ),
    ("several", "SELECT 1; SELEC 2", UNKNOWN),
    ("reads", "SELECT 1", "select ro"),
    ("reads", "(SELECT 1) UNION (SELECT 2) ORDER BY 1", "select ro"),
    ("reads", "((SELECT 1))", "select ro"),
    ("reads", "TABLE t", "select ro"),
    ("reads", "VALUES ROW(1, 2), ROW(3, 4)", "select ro"),
    ("reads", "SHOW VARIABLES LIKE 'max%'", "select ro"),
    ("reads", "SHOW FULL COLUMNS FROM t FROM db", "select ro"),
    ("reads", "SHOW CREATE TABLE t", "select ro"),
    ("reads", "SELECT NOW(), RAND(), COUNT(*), IF(a, 1, 2), INTERVAL(1, 2), CHAR(65) FROM t", "select ro"),
    ("reads", "SELECT CURRENT_DATE, CURRENT_USER, CONNECTION_ID(), SLEEP(0)", "select ro"),
    (
        "reads",
        "SELECT CAST(a AS DECIMAL(10, 2)), CONVERT(b, CHAR(5)), CONVERT(c USING utf8mb4) FROM t",
        "select ro",
    ),
    (
        "reads",
        "SELECT a FROM t USE INDEX FOR ORDER BY (i) WHERE MATCH (b) AGAINST ('x' IN BOOLEAN MODE)",
        "select ro",
    ),
    ("reads", "SELECT STRAIGHT_JOIN a FROM t PARTITION (p0) STRAIGHT_JOIN u", "select ro"),
    (
        "reads",
        "SELECT a, ROW_NUMBER() OVER (PARTITION BY b ORDER BY c) FROM t WINDOW w AS (ORDER BY d)",
        "select ro",
    ),
    (
        "reads",
        "SELECT * FROM JSON_TABLE('[]', '$[*]' COLUMNS (a INT PATH '$.a', b VARCHAR(20) PATH '$.b')) AS j",
        "select ro",
    ),
    (
        "reads",
        "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 5) SELECT * FROM n",
        "select ro",
    ),
    ("reads", "SELECT {fn NOW()}, {d '2020-01-01'}", "select ro"),
    ("reads", "SELECT a->'$.b', a->>'$.c' FROM t WHERE a <=> NULL AND b != 1 && c || d", "select ro"),
    (
        "reads",
        "SELECT EXTRACT(YEAR FROM a), TRIM(BOTH 'x' FROM b), SUBSTRING(c FROM 2 FOR 3) FROM t",
        "select ro",
    ),
    (
        "reads",
        "SELECT DATE_ADD(a, INTERVAL 1 DAY), GROUP_CONCAT(DISTINCT b ORDER BY c SEPARATOR ',') FROM t",
        "select ro",
    ),
    ("reads", "DESCRIBE t", "other ro"),
    ("reads", "DESC t 'a%'", "other ro"),
    ("reads", "EXPLAIN SELECT 1", "other ro"),
    ("reads", "EXPLAIN FORMAT = TREE SELECT 1", "other ro"),
    ("reads", "EXPLAIN ANALYZE SELECT 1", "other ro"),
    ("reads", "EXPLAIN FOR CONNECTION 5", "other ro"),
    ("reads", "ANALYZE FORMAT=JSON SELECT 1", "other ro"),
    ("reads", "HELP 'select'", "other ro"),
    ("reads", "", "empty x0 ro"),
    ("reads", " ; -- nothing\n;", "empty x0 ro"),
    ("reads", "# nothing", "empty x0 ro"),
    ("writes", "SELECT * FROM t FOR UPDATE", "select"),
    ("writes", "SELECT * FROM t FOR UPDATE OF t SKIP LOCKED", "select"),
    ("writes", "SELECT * FROM t FOR SHARE", "select"),
    ("writes", "SELECT * FROM t LOCK IN SHARE MODE", "select"),
    ("writes", "SELECT * FROM (SELECT 1 FROM t FOR UPDATE) x", "select"),
    ("writes", "SELECT * FROM t INTO OUTFILE 'x'", "select"),
    ("writes", "SELECT a INTO DUMPFILE 'x' FROM t", "select"),
    ("writes", "TABLE t INTO OUTFILE 'x'", "select"),
    ("writes", "WITH x AS (SELECT 1) DELETE FROM t WHERE a IN (SELECT * FROM x)", "write"),
    ("writes", "WITH x (a) AS (SELECT 1) UPDATE t, x SET t.a = x.a", "write"),
    ("writes", "WITH x AS (SELECT 1) INSERT INTO t SELECT * FROM x", "write"),
    ("writes", "INSERT INTO t WITH x AS (SELECT 1) SELECT * FROM x", "write"),
    ("writes", "REPLACE INTO t VALUES (1)", "write"),
    ("writes", "INSERT t SET a = 1 ON DUPLICATE KEY UPDATE a = VALUES(a) + 1", "write"),
    ("writes", "DELETE a, b FROM a JOIN b USING (i)", "write"),
    ("writes", "DELETE FROM a USING a JOIN b ON a.i = b.i", "write"),
    ("writes", "INSERT INTO t VALUES (1) RETURNING id", "write"),
    ("writes", "LOAD DATA LOCAL INFILE 'x' INTO TABLE t FIELDS TERMINATED BY ','", "copy"),
    ("writes", "LOAD XML INFILE 'x' INTO TABLE t ROWS IDENTIFIED BY '<r>'", "copy"),
    ("writes", "EXPLAIN DELETE FROM t", "other"),
    ("writes", "EXPLAIN ANALYZE DELETE t FROM t JOIN u", "other"),
    ("writes", "ANALYZE UPDATE t SET a = 1", "other"),
    ("writes", "SELECT NEXT VALUE FOR s", "select pins=session-function taints"),
    ("writes", "SELECT NEXTVAL(s), s.nextval", "select pins=session-function taints"),
    ("writes", "SELECT PREVIOUS VALUE FOR s", FUNCTION),
    ("writes", "SELECT LASTVAL(s)", FUNCTION),
    ("writes", "SELECT MASTER_POS_WAIT('a', 1)", "select"),
    ("writes", "KILL 5", "other"),
    ("writes", "KILL QUERY 5", "other"),
    ("writes", "BINLOG 'x'", "other pins=unknown taints"),
    ("writes", "SIGNAL SQLSTATE '45000'", "other"),
    ("ddl", "ALTER TABLE t ADD COLUMN b varchar(10) DEFAULT 'x', ADD INDEX i (b(5))", "ddl"),
    ("ddl", "CREATE TABLE t (a int) PARTITION BY RANGE (a) (PARTITION p VALUES LESS THAN (5))", "ddl"),
    ("ddl", "CREATE INDEX k_1 ON sbtest1(k)", "ddl"),
    ("ddl", "CREATE TABLE t AS SELECT f(a) FROM u", "ddl taints"),
    ("ddl", "CREATE VIEW v AS SELECT a FROM t", "ddl"),
    ("ddl", "TRUNCATE t", "ddl"),
    ("ddl", "RENAME TABLE a TO b", "ddl"),
    ("ddl", "GRANT SELECT (a) ON db.* TO 'u'@'h'", "ddl"),
    ("ddl", "SET PASSWORD = 'secret'", "ddl"),
    ("ddl", "SET PASSWORD FOR 'a'@'b' = PASSWORD('secret')", "ddl"),
    ("ddl", "SET DEFAULT ROLE ALL TO u", "ddl"),
    ("ddl", "OPTIMIZE TABLE t", "ddl"),
    ("ddl", "ANALYZE TABLE t, u", "ddl"),
    ("ddl", "LOAD INDEX INTO CACHE t", "ddl"),
    ("ddl", "RESET MASTER", "ddl"),
    ("ddl", "CREATE PROCEDURE p() BEGIN DELETE FROM t; SELECT GET_LOCK('a', 1); END", "ddl"),
    ("ddl", "CREATE PROCEDURE p() BEGIN DELETE FROM t; END; SELECT 1", "ddl x2"),
    (
        "ddl",
        "CREATE DEFINER=`a`@`%` TRIGGER g BEFORE INSERT ON t FOR EACH ROW BEGIN SET NEW.a = 1; END",
        "ddl",
    ),
    ("ddl", "CREATE TRIGGER g AFTER UPDATE ON t FOR EACH ROW SET NEW.a = 1", "ddl"),
    ("ddl", "CREATE FUNCTION f(a int) RETURNS int DETERMINISTIC RETURN a + 1", "ddl"),
    ("ddl", "CREATE EVENT e ON SCHEDULE EVERY 1 DAY DO BEGIN DELETE FROM t; END", "ddl"),
    (
        "ddl",
        "CREATE PROCEDURE IF NOT EXISTS p(a int) SQL SECURITY INVOKER BEGIN IF a THEN BEGIN SELECT 1; END; END IF; \
         CASE a WHEN 1 THEN SELECT CASE a WHEN 2 THEN 3 END; ELSE SELECT 1; END CASE; \
         WHILE a DO SELECT 1; END WHILE; END",
        "ddl",
    ),
    ("transaction", "BEGIN", "transaction"),
    ("transaction", "BEGIN WORK", "transaction"),
    ("transaction", "START TRANSACTION READ ONLY", "transaction"),
    ("transaction", "START TRANSACTION WITH CONSISTENT SNAPSHOT", "transaction"),
    ("transaction", "COMMIT", "transaction ends"),
    ("transaction", "COMMIT WORK AND NO CHAIN NO RELEASE", "transaction ends"),
    ("transaction", "ROLLBACK", "transaction ends"),
    ("transaction", "COMMIT AND CHAIN", "transaction"),
    ("transaction", "ROLLBACK RELEASE", "transaction"),
    ("transaction", "ROLLBACK TO SAVEPOINT a", "transaction"),
    ("transaction", "ROLLBACK WORK TO a", "transaction"),
    ("transaction", "SAVEPOINT `s1`", "transaction"),
    ("transaction", "RELEASE SAVEPOINT a", "transaction"),
    ("transaction", "COMMIT; SELECT 1", "select x2"),
    ("unknown", "SELEC 1", UNKNOWN),
    ("unknown", "SELECT 'never ends", UNKNOWN),
    ("unknown", "SELECT \"never ends", UNKNOWN),
    ("unknown", "SELECT `never ends", UNKNOWN),
    ("unknown", "SELECT /* never ends", UNKNOWN),
    ("unknown", "SELECT /*! never ends", UNKNOWN),
    ("unknown", "SELECT /*!50000 never ends", UNKNOWN),
    ("unknown", "SELECT x'5", UNKNOWN),
    ("unknown", "SELECT b'2'", UNKNOWN),
    ("unknown", "SELECT @@", UNKNOWN),
    ("unknown", "BEGIN NOT ATOMIC SELECT 1; END", UNKNOWN),
    ("unknown", "IF 1 THEN SELECT 1; END IF", UNKNOWN),
    ("unknown", "(DELETE FROM t)", UNKNOWN),
    ("unknown", "SET", UNKNOWN),
    ("unknown", "SET a", UNKNOWN),
    ("unknown", "SET a =", UNKNOWN),
    ("unknown", "SET a = 1,", UNKNOWN),
    ("unknown", "SET STATEMENT a=1 FOR SET STATEMENT a=1 FOR SELECT 1", UNKNOWN),
    ("hidden", "/*!50000 DELETE FROM t */", "write rds=unknown"),
    ("hidden", "/*! DELETE FROM t */", "write rds=unknown"),
    ("hidden", "/*!80000 DELETE FROM t */", "write rds=unknown"),
    ("hidden", "/*M! DELETE FROM t */", "write rds=unknown"),
    ("hidden", "SELECT 1 /*!99999 INTO OUTFILE 'x' */", "select rds=unknown"),
    ("hidden", "SELECT 1 FROM t FOR /*!50000 UPDATE */", "select rds=unknown"),
    ("hidden", "SELECT 1 FROM t FOR /*!80000 INDEX */ UPDATE", "select rds=unknown"),
    ("hidden", "SELECT a /*!80000 + */ (1)", "select rds=unknown taints"),
    ("hidden", "SELECT 1 /*!80000 # */ INTO OUTFILE 'x' \n */", UNKNOWN),
    ("hidden", "SELECT 1 /*!80000 ' */ INTO OUTFILE 'x' */", UNKNOWN),
    ("hidden", "SELECT 1 /*!50000 -- */ INTO OUTFILE 'x'\n*/", "select rds=unknown ro"),
    ("hidden", "/*!50000 SELECT 1 /*!80000 INTO OUTFILE 'x' */ */", UNKNOWN),
    ("hidden", "SELECT 1 /*!80000 /* */ INTO OUTFILE 'x' -- */", UNKNOWN),
    ("hidden", "SELECT /*!80000 1; */ 2", UNKNOWN),
    ("hidden", "SELECT 1 /*!50700 a */ /*!80001 b */ /*!80002 c */ /*!80003 d */", UNKNOWN),
    ("hidden", "/*!80000 SELECT */ DELETE FROM t", UNKNOWN),
    ("hidden", "SELECT 1 /*!500 */", "select rds=unknown ro"),
    ("hidden", "SELECT 1 /* ; */ ; DELETE FROM t", "select x2"),
    ("hidden", "SELECT 'a\\'; DELETE FROM t; -- '", "select ro"),
    ("hidden", "SELECT 'a\\\\'; DELETE FROM t; -- '", "select x2"),
    ("hidden", "SELECT 'a''; DELETE FROM t; -- '", "select ro"),
    ("hidden", "SELECT \"a\\\"; DELETE FROM t; -- \"", "select ro"),
    ("hidden", "SELECT `a\\`; DELETE FROM t; -- `", "select x2"),
    ("hidden", "SELECT `a``; DELETE FROM t; -- `", "select ro"),
    ("hidden", "SELECT 1 --; DELETE FROM t", "select x2"),
    ("hidden", "SELECT 1 -- ; DELETE FROM t", "select ro"),
    ("hidden", "SELECT 1 --\t; DELETE FROM t", "select ro"),
    ("hidden", "SELECT 1 --", "select ro"),
    ("hidden", "SELECT 1 # ; DELETE FROM t", "select ro"),
    ("hidden", "SELECT 1 # \r; DELETE FROM t", "select ro"),
    ("hidden", "SELECT 1 # \n; DELETE FROM t", "select x2"),
    ("hidden", "SELECT 1 /* /* */ ; DELETE FROM t -- */", "select x2"),
    ("hidden", "SELECT /*+ SET_VAR(sort_buffer_size = 1) */ 1", "select ro"),
    ("hidden", "SELECT /*+ QB_NAME(\"*/ 1 -- \") */ INTO OUTFILE 'x'", UNKNOWN),
    ("hidden", "/* pinion: reader */ SELECT 1", "select ro"),
    ("hidden", "SELECT 1 LIMIT 1 INTO OUTFILE 'x'", "select"),
    ("hidden", "CREATE PROCEDURE begin() SELECT 1; DROP TABLE t", "ddl x2"),
    ("hidden", "CREATE PROCEDURE p() SELECT begin FROM t; DROP TABLE t", "ddl x2"),
    ("hidden", "CREATE FUNCTION f() RETURNS int RETURN begin; DROP TABLE t", "ddl x2"),
    ("hidden", "CREATE PROCEDURE p() BEGIN SELECT begin FROM t; END; DROP TABLE t", "ddl x2"),
    (
        "hidden",
        "CREATE PROCEDURE p() BEGIN SELECT CASE a WHEN 1 THEN 2 END FOR UPDATE; END; DROP TABLE t",
        "ddl x2",
    ),
    ("hidden", "CREATE FUNCTION f RETURNS STRING SONAME 'x'; DROP TABLE t", "ddl x2"),
    (
        "literals",
        "SELECT 1.5, .5, 1e5, 1.5E-3, 0x1F, 0b01, x'1F', b'01', N'x', _latin1'x', 'a' 'b', \\N",
        "select ro",
    ),
    ("literals", "SELECT 1a, 1ea, 0xg FROM 2t WHERE t.1e5 = 1", "select ro"),
    ("literals", "SELECT `a`.`b`, a.`b`, `a`.b, a.*, $a, _b FROM `a``b`", "select ro"),
];

#[test]
fn sequences_drawn_of_and_asked_about() {
    let check = |text: &str, expected: &str| {
        let names = |names: Vec<Vec<u8>>| {
            names.iter().map(|name| String::from_utf8_lossy(name).into_owned()).collect::<Vec<_>>().join(",")
        };
        let found = sequences(text.as_bytes(), UTF8);
        let found = found.map(|one| format!("{} {} {}", one.asks, names(one.asked), names(one.drawn)));
        assert_eq!(found.as_deref().unwrap_or("?"), expected, "{text}");
    };
    for (text, expected) in [
        ("select nextval(s)", "false  s"),
        ("SELECT NEXT VALUE FOR `A`.s", "false  `A`.s"),
        ("select lastval(s), previous value for a . `b`", "true s,a . `b` "),
        ("insert into t values (lastval(S))", "true S "),
        ("select nextval(s); select lastval(s)", "true  s"),
        ("select lastval(s); select nextval(s)", "true s s"),
        ("select nextval(s); select lastval(u)", "true u s"),
        // It may have drawn none.
        ("select nextval(s) from t", "false  "),
        ("select if(a, nextval(s), 1)", "false  "),
        ("select next value for s limit 0", "false  "),
        // What is another sequence then.
        ("select nextval(s); use a; select lastval(s)", "?"),
        ("select s.currval", "?"),
        ("select lastval(s /*! , u */)", "?"),
        ("select lastval(?)", "?"),
    ] {
        check(text, expected);
    }
}

#[test]
fn rows_have_their_facts() {
    assert!(ROWS.len() >= 250);
    let found = |text: &str| facts_of(text.as_bytes(), UTF8).1;
    let wrong: Vec<_> = ROWS
        .iter()
        .map(|row| (row.1, found(row.1), row.2))
        .filter(|(_, found, expected)| found != expected)
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// What drivers, frameworks and tools were seen to send to a MariaDB server, with what its trackers were tried on.
const CHATTER: &[(&str, &str)] = &[
    ("SET AUTOCOMMIT = 0", TRACKED),
    ("SET autocommit=1", TRACKED),
    ("SET NAMES utf8mb4", TRACKED),
    ("SET NAMES 'utf8mb4' COLLATE 'utf8mb4_general_ci'", TRACKED),
    ("SET @@session.autocommit = OFF", TRACKED),
    ("SET time_zone = '+00:00'", TRACKED),
    ("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED", TRACKED),
    ("SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ", TRACKED),
    (
        "SET sql_mode=(SELECT CONCAT(@@sql_mode, ',PIPES_AS_CONCAT,NO_ENGINE_SUBSTITUTION')),time_zone='+00:00',\
         NAMES utf8mb4 COLLATE utf8mb4_unicode_ci",
        TRACKED,
    ),
    ("SELECT VERSION()", "select ro"),
    ("SELECT version() as version", "select ro"),
    ("SELECT VERSION() as `version`", "select ro"),
    ("SELECT DATABASE()", "select ro"),
    ("SELECT @@tx_isolation", "select ro"),
    ("SELECT @@session.sql_mode", "select ro"),
    ("SELECT @@lower_case_table_names", "select ro"),
    ("SELECT @@max_allowed_packet,@@wait_timeout,@@socket", "select ro"),
    (
        "SELECT VERSION(),\n                       @@sql_mode,\n                       @@default_storage_engine,\n\
                                @@sql_auto_is_null,\n                       @@lower_case_table_names,\n\
                                CONVERT_TZ('2001-01-01 01:00:00', 'UTC', 'UTC') IS NOT NULL",
        "select ro",
    ),
    ("select id from t where id=?", "select ro"),
    ("select * from `t` where `id` = 1", "select ro"),
    ("insert into `t` (`v`) values ('k')", "write"),
    ("insert into t(v) values(?)", "write"),
    ("begin", "transaction"),
    ("START TRANSACTION", "transaction"),
    ("COMMIT", "transaction ends"),
    ("ROLLBACK", "transaction ends"),
    ("SAVEPOINT `s140074532473728_x1`", "transaction"),
    ("RELEASE SAVEPOINT `s140074532473728_x1`", "transaction"),
    (
        "CREATE TABLE sbtest1(\n  id INTEGER NOT NULL AUTO_INCREMENT,\n  k INTEGER DEFAULT '0' NOT NULL,\n  \
         c CHAR(120) DEFAULT '' NOT NULL,\n  pad CHAR(60) DEFAULT '' NOT NULL,\n  PRIMARY KEY (id)\n) \
         /*! ENGINE = innodb */",
        "ddl rds=unknown",
    ),
    ("INSERT INTO sbtest1(k, c, pad) VALUES(9, '3-7', '7-2'),(11, '4-9', '3-0')", "write"),
    ("CREATE INDEX k_1 ON sbtest1(k)", "ddl"),
    ("SELECT c FROM sbtest1 WHERE id BETWEEN ? AND ?", "select ro"),
    ("SELECT SUM(k) FROM sbtest1 WHERE id BETWEEN ? AND ?", "select ro"),
    ("SELECT DISTINCT c FROM sbtest1 WHERE id BETWEEN ? AND ? ORDER BY c", "select ro"),
    ("UPDATE sbtest1 SET k=k+1 WHERE id=?", "write"),
    ("DELETE FROM sbtest1 WHERE id=?", "write"),
    ("select count(*) from t", "select ro"),
    ("select @@session.session_track_system_variables", "select ro"),
    ("set names latin1", TRACKED),
    ("set character set utf8mb4", TRACKED),
    ("set sql_mode='ANSI_QUOTES'", TRACKED),
    ("set session wait_timeout=300", TRACKED),
    ("set @u=1", USER),
    ("select @v:=5", "select pins=session-variable rds=session-variable"),
    ("set @@session.sort_buffer_size=300000, @w=2", USER),
    ("set global general_log=general_log", UNTRACKED),
    ("use appdb", TRACKED),
    ("start transaction read only", "transaction"),
    ("start transaction with consistent snapshot", "transaction"),
    ("set transaction isolation level serializable", EXPRESSION),
    ("set transaction read only", EXPRESSION),
    ("create temporary table tt(a int)", TEMP),
    ("insert into tt values(1)", "write"),
    ("drop temporary table tt", "ddl"),
    ("prepare ps from 'select 1'", PREPARED),
    ("execute ps", "other rds=prepared-statement taints names=ps"),
    ("deallocate prepare ps", "other rds=prepared-statement one names=ps"),
    ("select get_lock('l1',0)", LOCK),
    ("select release_lock('l1')", "select"),
    ("lock tables t read", TABLES),
    ("unlock tables", "other clears=table-lock"),
    ("select sql_calc_found_rows * from t limit 1", "select pins=session-function"),
    ("select found_rows()", FUNCTION_IN_RDS),
    ("select last_insert_id()", FUNCTION),
    ("set last_insert_id=7", UNTRACKED),
    ("select * from t where id=1 for update", "select"),
    ("create table if not exists ddl1(a int)", "ddl"),
    ("flush tables", "ddl"),
    ("set role none", "session pins=session-identity rds=session-variable"),
    ("handler t open", "other pins=handler taints"),
    ("handler t close", "other taints"),
    ("show warnings", FUNCTION),
    ("select @@session.session_track_system_variables, @u, @@autocommit", "select ro"),
    ("select current_user(), @@session_track_state_change", "select ro"),
];

#[test]
fn what_drivers_send_has_its_facts() {
    let found = |text: &str| facts_of(text.as_bytes(), UTF8).1;
    let wrong: Vec<_> =
        CHATTER.iter().map(|row| (row.0, found(row.0), row.1)).filter(|row| row.1 != row.2).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn different_facts_never_share_a_digest() {
    let classifier = Classifier::new(1024);
    let mut seen = HashMap::new();
    for (_, text, expected) in ROWS {
        let found = classifier.facts(text.as_bytes(), UTF8);
        assert_eq!(line(&found.facts), *expected, "{text}: spoilt by another row");
        let first = seen.entry(found.digest).or_insert((*text, *expected));
        assert_eq!(first.1, *expected, "{text} shares a digest with {}", first.0);
    }
}

/// Texts like `text` but for the values of literals, one at a time and all at once.
fn with_other_values(text: &str) -> Vec<String> {
    const STRINGS: [&str; 8] =
        ["''", "'zz'", "'it''s; XA START x; -- '", "\"0\"", "'\\'\\\\'", "'@a:=1'", "'nextval'", "'é'"];
    const NUMBERS: [&str; 4] = ["0", "7", "99999999999", "1.5e3"];
    let mut literals = Vec::new();
    for_each_token(text.as_bytes(), UTF8, |token| {
        match token.kind {
            Kind::Str => literals.push((token, &STRINGS[..])),
            Kind::Number => literals.push((token, &NUMBERS[..])),
            _ => {}
        }
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
    for (_, text, expected) in ROWS.iter().filter(|(row, ..)| *row != "rereads") {
        let kept = Classifier::new(1024);
        let first = kept.facts(text.as_bytes(), UTF8);
        if first.digest == kept.exact(text.as_bytes(), UTF8) {
            continue; // kept under its very bytes
        }
        for other in with_other_values(text) {
            let found = kept.facts(other.as_bytes(), UTF8);
            assert_eq!(found.digest, first.digest, "{text} and {other}");
            let fresh = Classifier::new(8).facts(other.as_bytes(), UTF8);
            assert_eq!(line(&fresh.facts), *expected, "{text} became {other}");
            assert_eq!(fresh.details, first.details, "{text} became {other}");
            compared += 1;
        }
    }
    assert!(compared > 1000, "{compared}");
}

#[test]
fn facts_are_kept_by_digest() {
    let classifier = Classifier::new(16);
    let one = classifier.facts(b"SELECT a FROM t WHERE b = 1 AND c = 'x'", UTF8);
    let two = classifier.facts(b"select  a from T /* c */ where b=-- d\n 2.5 and C = \"y\";", UTF8);
    let three = classifier.facts(b"select a from T where b=2.5 and C = 'it''s'", UTF8);
    assert_ne!(one.digest, two.digest, "a semicolon more");
    assert!(Arc::ptr_eq(&one.facts, &three.facts) && Arc::ptr_eq(&one.details, &three.details));
    assert_eq!(one.facts.digest_text, "select a from t where b = ? and c = ?");
    let other = Classifier::new(16).facts(b"SELECT a FROM t WHERE b = 1 AND c = 'x'", UTF8);
    assert_ne!(one.digest, other.digest, "each classifier has a key of its own");
}

#[test]
fn tokens_run_together_differ_from_tokens_apart() {
    let classifier = Classifier::new(16);
    let digest = |text: &str| classifier.facts(text.as_bytes(), UTF8).digest;
    for (one, other) in [
        ("SELECT 1a", "SELECT 1 a"),
        ("SELECT a b", "SELECT ab"),
        ("SELECT a.1", "SELECT a .1"),
        ("SELECT a.1", "SELECT a.2"),
        ("SELECT `a` `b`", "SELECT `a``b`"),
        ("SELECT `a`", "SELECT `A`"),
        ("SELECT a", "SELECT `a`"),
        ("SELECT @a:=1", "SELECT @a: =1"),
        ("SELECT @a", "SELECT @@a"),
        ("SELECT @a", "SELECT @ a"),
        ("SELECT 'a'", "SELECT N'a'"),
        ("SELECT '1'", "SELECT 1"),
        ("SELECT x'1F'", "SELECT x '1F'"),
        ("SELECT ?", "SELECT 1"),
        ("SELECT a<=b", "SELECT a< =b"),
        ("SELECT a<=>b", "SELECT a<= >b"),
        ("SELECT a->b", "SELECT a- >b"),
        ("SELECT 1 -- x\n, 2", "SELECT 1 --x\n, 2"),
        ("SELECT 1", "/*+ hint */ SELECT 1"),
        ("/*+ hint */ SELECT 1", "/*+ tnih */ SELECT 1"),
        ("SELECT 1", "SELECT 1 -- pinion: x"),
        ("SELECT 1", "/*! SELECT 1 */"),
        ("/*!50000 SELECT 1 */", "/*!50001 SELECT 1 */"),
        ("/*!80000 SELECT 1 */", "/*M!80000 SELECT 1 */"),
        ("SELECT 1", "SELECT 1 /*M!999999 x */"),
    ] {
        assert_ne!(digest(one), digest(other), "{one} and {other}");
    }
    for (one, other) in [
        ("SELECT 1", "select/**/2"),
        ("SELECT a.b", "SELECT a . b"),
        ("SELECT 'a'", "SELECT \"b\" # end"),
        ("SELECT 0x1F", "SELECT x'00'"),
        ("SELECT 0b1", "SELECT b'0'"),
        ("SELECT 1.5", "SELECT .5e-7"),
        ("SELECT A\u{c9}", "SELECT a\u{c9}"),
    ] {
        assert_eq!(digest(one), digest(other), "{one} and {other}");
    }
}

#[test]
fn logs_see_no_literal() {
    let text = |text: &str| Classifier::new(8).facts(text.as_bytes(), UTF8).facts.digest_text.clone();
    assert_eq!(text("CREATE USER a IDENTIFIED BY 'secret'"), "create user a identified by ?");
    assert_eq!(text("SELECT  'x',? , 5 -- secret\n"), "select ?,? , ?");
    assert_eq!(
        text("SELECT \"secret\", 'sec\\'ret', 'sec''ret', N'secret', x'5ec4', 0x5ec, _utf8'secret'"),
        "select ?, ?, ?, ?, ?, ?, _utf8?"
    );
    assert_eq!(text("SELECT `Quoted` /*+ secret */ FROM t"), "select `Quoted` from t");
    assert_eq!(text("/*!50000 SELECT */ 'secret'"), "/*!50000 select */ ?");
    assert_eq!(text("/*M!999999 secret */ SELECT 1"), "select ?");
    assert_eq!(text("SELECT 'secret"), "select ?");
    let long = text(&format!("SELECT {}", "'é', é\u{1f600}, ".repeat(1000)));
    assert!(long.len() <= DIGEST_TEXT_LIMIT && long.len() > DIGEST_TEXT_LIMIT - 8, "{}", long.len());
    let unsure = Classifier::new(8).facts(b"SELECT `\x81` , 'secret'", UTF8);
    assert_eq!(unsure.facts.digest_text, "?");
}

#[test]
fn quotes_are_found_in_every_character_set() {
    let is =
        |text: &[u8], mode, expected: &str| assert_eq!(facts_of(text, mode).1, expected, "{text:?} {mode:?}");
    // A character whose second byte is a backslash does not escape the quote after it.
    for charset in [Charset::Sjis, Charset::Gbk, Charset::Gb18030] {
        is(b"SELECT '\x95\x5c', 1", in_charset(charset), "select ro");
        is(b"SELECT '\x95\x5c'; DELETE FROM t -- '", in_charset(charset), "select x2");
        is(b"SELECT `\x95\x60`", in_charset(charset), "select ro");
        is(b"SELECT `\x95\x60`; DELETE FROM t", in_charset(charset), "select x2");
        is(b"SELECT '\x95'; DELETE FROM t", in_charset(charset), UNKNOWN);
        is(b"SELECT '\\\x95\x5c'", in_charset(charset), UNKNOWN);
        is(b"SELECT \x95\x5c FROM t", in_charset(charset), "select ro");
    }
    is(b"SELECT '\xa5\x5c'; DELETE FROM t", in_charset(Charset::Big5), "select x2");
    is(b"SELECT '\xb1\x5c'", in_charset(Charset::Sjis), UNKNOWN);
    is(b"SELECT '\xb1\xb2'", in_charset(Charset::Sjis), "select ro");
    is(b"SELECT '\x81\x30\x81\x30'", in_charset(Charset::Gb18030), "select ro");
    is(b"SELECT '\x81\x30\x81'", in_charset(Charset::Gb18030), UNKNOWN);
    // Elsewhere the backslash escapes, and strings may hold any bytes.
    for charset in [Charset::Utf8, Charset::Single, Charset::Ujis, Charset::Gb2312, Charset::Euckr] {
        is(b"SELECT '\x95\x5c'; DELETE FROM t -- '", in_charset(charset), "select ro");
        is(b"SELECT '\xff\x00\xfe\x81'", in_charset(charset), "select ro");
        is(b"SELECT a\xff FROM t", in_charset(charset), UNKNOWN);
    }
    // In latin1 the first of these is white space to the server.
    is(b"SELECT 1\xa0INTO\xa0OUTFILE 'x'", in_charset(Charset::Single), UNKNOWN);
    is(b"SELECT `caf\xe9`", in_charset(Charset::Single), "select ro");
    is("SELECT é, `é`, 'é' FROM é".as_bytes(), UTF8, "select ro");
    is(b"SELECT `\xe9`; DELETE FROM t -- `", UTF8, UNKNOWN);
    is(b"SELECT @\xc3\xa9", UTF8, UNKNOWN);
    is(b"SELECT `\xa4\xa2`, \xa4\xa2, \x8e\xb1", in_charset(Charset::Ujis), "select ro");
    is(b"SELECT `\xa4\xa2`, \xa4\xa2", in_charset(Charset::Gb2312), "select ro");
    is(b"SELECT \x81\x41, \x81\x61", in_charset(Charset::Euckr), "select ro");
    is(b"SELECT 1", in_charset(Charset::Unknown), UNKNOWN);
    is(b"SELECT 1\0; DELETE FROM t", UTF8, UNKNOWN);
    is(b"SELECT 1 # \0; DELETE FROM t", UTF8, UNKNOWN);
    is(b"SELECT `\0`", UTF8, UNKNOWN);
    is(b"SELECT '\0'", UTF8, "select ro");
    is(b"SELECT @'\0'", UTF8, UNKNOWN);
}

#[test]
fn sql_mode_decides_what_quotes_and_backslashes_are() {
    let ansi = LexMode { ansi_quotes: true, ..UTF8 };
    let plain = LexMode { no_backslash_escapes: true, ..UTF8 };
    let is =
        |text: &str, mode, expected: &str| assert_eq!(facts_of(text.as_bytes(), mode).1, expected, "{text}");
    is("SELECT \"a\\\"; DELETE FROM t; -- \"", ansi, "select x2");
    is("SELECT \"a\"\"; DELETE FROM t; -- \"", ansi, "select ro");
    is("SELECT \"get_lock\"('a', 1)", ansi, LOCK);
    is("SELECT \"get_lock\"('a', 1)", UTF8, "select ro");
    is("SET @\"a\" = 1", ansi, USER);
    is("SELECT 'a\\'; DELETE FROM t; -- '", plain, "select x2");
    is("SELECT 'a\\'", UTF8, UNKNOWN);
    let classifier = Classifier::new(8);
    let modes = [UTF8, ansi, plain, in_charset(Charset::Gbk), in_charset(Charset::Single)];
    let mut digests = modes.map(|mode| classifier.facts(b"SELECT 1", mode).digest).to_vec();
    digests.sort_unstable();
    digests.dedup();
    assert_eq!(digests.len(), modes.len());
}

#[test]
fn modes_follow_the_variables() {
    let mode = LexMode::from_variables;
    assert_eq!(mode("STRICT_TRANS_TABLES,NO_ENGINE_SUBSTITUTION", "utf8mb4"), LexMode::default());
    assert!(mode("REAL_AS_FLOAT,ansi_quotes", "utf8mb4").ansi_quotes);
    assert!(mode("ANSI", "utf8mb4").ansi_quotes && mode("ORACLE", "utf8").ansi_quotes);
    assert!(!mode("REAL_AS_FLOAT,PIPES_AS_CONCAT", "utf8mb4").ansi_quotes);
    assert!(mode("NO_BACKSLASH_ESCAPES", "utf8mb4").no_backslash_escapes);
    for (name, charset) in [
        ("UTF8MB3", Charset::Utf8),
        ("latin1", Charset::Single),
        ("binary", Charset::Single),
        ("cp932", Charset::Sjis),
        ("gbk", Charset::Gbk),
        ("big5", Charset::Big5),
        ("gb18030", Charset::Gb18030),
        ("eucjpms", Charset::Ujis),
        ("swe7", Charset::Unknown),
        ("utf16", Charset::Unknown),
        ("", Charset::Unknown),
    ] {
        assert_eq!(mode("", name).charset, charset, "{name}");
    }
}

#[test]
fn deep_and_long_texts_neither_crash_nor_hang() {
    let nested = |open: &str, close: &str, depth: usize| {
        format!("SELECT {}1{}", open.repeat(depth), close.repeat(depth)).into_bytes()
    };
    let mut texts = vec![
        nested("(", ")", 100_000),
        nested("(SELECT ", ")", 20_000),
        nested("abs(", ")", 50_000),
        nested("NOT ", "", 100_000),
        nested("- ", "", 100_000),
        nested("/*!", "*/", 100_000),
        nested("/*!80000", "*/", 100_000),
        "/*!80000*/".repeat(80_000).into_bytes(),
        (50_700..90_000).map(|version| format!("/*!{version}*/")).collect::<String>().into_bytes(),
        nested("CASE WHEN true THEN ", " END", 3_000),
        nested("1+", "", 100_000),
        nested("1 OR ", "", 50_000),
        nested("", " UNION SELECT 1", 50_000),
        nested("EXPLAIN ", "", 10_000),
        "EXPLAIN ".repeat(100_000).into_bytes(),
        "SET STATEMENT a=1 FOR ".repeat(40_000).into_bytes(),
        format!("SET @a = {}'x'", "_a ".repeat(300_000)).into_bytes(),
        format!("SET @a = 'x' {}", "collate b ".repeat(100_000)).into_bytes(),
        format!("SET @a = 1{}", ", @b = 2".repeat(100_000)).into_bytes(),
        "CREATE PROCEDURE p() ;".repeat(40_000).into_bytes(),
        "CREATE PROCEDURE p() BEGIN ;".repeat(30_000).into_bytes(),
        "CREATE TABLE ".repeat(80_000).into_bytes(),
        format!("WITH {} SELECT 1", "a AS (TABLE b),".repeat(60_000)).into_bytes(),
        format!("SELECT * FROM a {}", "JOIN b ON true ".repeat(60_000)).into_bytes(),
        format!("SELECT * FROM {}a", "(".repeat(400_000)).into_bytes(),
        format!("INSERT INTO t VALUES (1){}", ",(2)".repeat(200_000)).into_bytes(),
        vec![b'('; PARSE_LIMIT],
        vec![b';'; PARSE_LIMIT],
        vec![b'@'; PARSE_LIMIT],
        vec![b'\''; PARSE_LIMIT + 1],
        format!("SELECT {}", "'\\'' ".repeat(100_000)).into_bytes(),
    ];
    // What the parser may be given, at its worst: it goes back and tries again in many places.
    for (open, close) in [
        ("(", ")"),
        ("((", "))"),
        ("(SELECT ", ")"),
        ("abs(", ")"),
        ("CAST(", " AS CHAR)"),
        ("CONVERT(", ", CHAR)"),
        ("EXTRACT(DAY FROM ", ")"),
        ("SUBSTRING(", " FROM 1 FOR 2)"),
        ("TRIM(BOTH 'x' FROM ", ")"),
        ("EXISTS (SELECT ", ")"),
        ("1 IN (", ")"),
        ("1 BETWEEN (", ") AND 2"),
        ("CASE WHEN ", " THEN 1 END"),
        ("CASE (", ") WHEN 1 THEN 2 END"),
        ("INTERVAL ", " DAY"),
        ("NOT ", ""),
        ("- ", ""),
        ("! ~ ", ""),
        ("BINARY ", ""),
        ("DATE ", ""),
        ("a.", ""),
        ("1 LIKE ", ""),
        ("(1, ", ")"),
        ("ROW(", ")"),
        ("* FROM (", ") x"),
        ("* FROM (SELECT ", ") x"),
        ("* FROM a JOIN (", ")"),
        ("1 + (", ")"),
        ("COUNT(DISTINCT ", ")"),
        ("GROUP_CONCAT(a ORDER BY ", " SEPARATOR ',')"),
        ("SUM(1) OVER (PARTITION BY ", ")"),
        ("IF(", ", 1, 2)"),
        ("MATCH (a) AGAINST (", ")"),
        ("{fn abs(", ")}"),
    ] {
        for depth in [2, 7, 8, 15, 16, 39, 64] {
            texts.push(nested(open, close, depth));
            texts.push(nested(open, "", depth));
            texts.push(nested(&format!("{open}a.b AND "), close, depth));
        }
    }
    // As small as the stack of a server's worker thread may be.
    let worker = thread::Builder::new().stack_size(2 << 20).spawn(move || {
        let classifier = Classifier::new(64);
        let mut slowest = (0, String::new());
        for text in &texts {
            let began = Instant::now();
            let facts = classifier.facts(text, UTF8).facts;
            let took = began.elapsed().as_millis();
            if took > slowest.0 {
                slowest = (took, String::from_utf8_lossy(&text[..text.len().min(60)]).into_owned());
            }
            assert!(facts.digest_text.len() <= DIGEST_TEXT_LIMIT);
        }
        println!("slowest: {} ms for {}…", slowest.0, slowest.1);
        // Nesting as people write it is understood, and so are long lists.
        for text in [
            nested("(", ")", 500),
            nested("abs(", ")", 20),
            nested("1 OR ", "", 10_000),
            nested("", " UNION SELECT 1", 1_000),
        ] {
            assert_eq!(line(&classifier.facts(&text, UTF8).facts), "select ro");
        }
    });
    worker.unwrap().join().unwrap();
}

#[test]
fn texts_over_the_limit_are_not_understood() {
    let mut text = b"SELECT 1 ".to_vec();
    text.resize(PARSE_LIMIT, b' ');
    assert_eq!(facts_of(&text, UTF8).1, "select ro");
    text.push(b' ');
    assert_eq!(facts_of(&text, UTF8).1, UNKNOWN);
}

#[test]
fn threads_agree() {
    let classifier = Classifier::new(1024);
    let read = |row: &(&str, &str, &str)| line(&classifier.facts(row.1.as_bytes(), UTF8).facts);
    let lines: Vec<Vec<String>> = thread::scope(|scope| {
        let workers: Vec<_> = (0..4).map(|_| scope.spawn(|| ROWS.iter().map(read).collect())).collect();
        workers.into_iter().map(|worker| worker.join().unwrap()).collect()
    });
    for found in lines {
        let expected: Vec<&str> = ROWS.iter().map(|row| row.2).collect();
        assert_eq!(found, expected);
    }
}

const MODES: [LexMode; 6] = [
    UTF8,
    LexMode { ansi_quotes: true, no_backslash_escapes: true, charset: Charset::Single },
    LexMode { ansi_quotes: false, no_backslash_escapes: false, charset: Charset::Gbk },
    LexMode { ansi_quotes: true, no_backslash_escapes: false, charset: Charset::Sjis },
    LexMode { ansi_quotes: false, no_backslash_escapes: true, charset: Charset::Gb18030 },
    LexMode { ansi_quotes: false, no_backslash_escapes: false, charset: Charset::Ujis },
];

/// Everything that reads a text.
fn read_all(classifier: &Classifier, text: &[u8], mode: LexMode) {
    let found = classifier.facts(text, mode);
    assert!(found.facts.digest_text.len() <= DIGEST_TEXT_LIMIT);
    assert!(!found.facts.read_only || !found.facts.writes && !found.facts.locks_rows);
    for range in statements(text, mode).unwrap_or_default() {
        assert!(!text[range].is_empty());
    }
    let _ = user_variable_assignments(text, mode);
    let _ = kill_target(text, mode);
    let _ = used_schema(text, mode);
    let _ = connection_id_column(text, mode);
    let _ = xa_transaction(text, mode);
    let _ = hint(text, mode);
}

#[test]
fn texts_cut_at_every_byte_are_survived() {
    let classifier = Classifier::new(64);
    for (_, text, _) in ROWS {
        for end in 0..text.len() {
            for mode in MODES {
                read_all(&classifier, &text.as_bytes()[..end], mode);
            }
        }
    }
}

/// Numbers below a bound, the same in every run.
fn numbers(mut state: u64) -> impl FnMut(usize) -> usize {
    move |below| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    }
}

#[test]
fn random_bytes_are_survived() {
    const PIECES: [&[u8]; 34] = [
        b"'",
        b"\"",
        b"`",
        b"\\",
        b"/*",
        b"*/",
        b"/*!",
        b"/*!50000",
        b"/*!80000",
        b"/*M!",
        b"/*+",
        b"-- ",
        b"#",
        b"\n",
        b"N'",
        b"x'",
        b"@",
        b"@@",
        b":=",
        b";",
        b"(",
        b")",
        b",",
        b".",
        b"1e",
        b"0x",
        b"\xff",
        b"\x81\x5c",
        b"\0",
        b" ",
        b" begin ",
        b" end ",
        b" with ",
        b" set statement ",
    ];
    let mut random = numbers(0x9e37_79b9_7f4a_7c15);
    let classifier = Classifier::new(256);
    let mut by_digest: HashMap<u128, (Vec<u8>, String)> = HashMap::new();
    for round in 0..20_000 {
        let mut text = ROWS[random(ROWS.len())].1.as_bytes().to_vec();
        if round % 10 == 0 {
            text = (0..random(60)).map(|_| random(256) as u8).collect();
        }
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
        let mode = MODES[random(MODES.len())];
        read_all(&classifier, &text, mode);
        let digest = classifier.facts(&text, mode).digest;
        let fresh = facts_of(&text, mode).1;
        let first = by_digest.entry(digest).or_insert_with(|| (text.clone(), fresh.clone()));
        let (one, other) = (String::from_utf8_lossy(&first.0), String::from_utf8_lossy(&text));
        assert_eq!(first.1, fresh, "one digest: {one:?} and {other:?}");
    }
}

/// Tables, functions and variables in one line, with the flags that are set.
fn named(text: &str) -> String {
    let facts = Classifier::new(10).facts(text.as_bytes(), UTF8).facts;
    let flags = [
        (facts.locks_rows, "locks-rows"),
        (facts.writes, "writes"),
        (facts.calls_acting_function, "acting"),
        (facts.calls_unknown_function, "unknown"),
        (facts.read_only, "read-only"),
        (facts.changes_settings, "settings"),
        (facts.is_plain_set, "plain"),
        (facts.moves_transaction, "moves"),
    ];
    let flags: Vec<_> = flags.into_iter().filter(|(set, _)| *set).map(|(_, name)| name).collect();
    let lists = [&facts.tables, &facts.functions, &facts.variables].map(|names| names.join(","));
    format!("{}|{}", lists.join("|"), flags.join(" "))
}

#[test]
fn names_in_a_statement_are_told() {
    let rows = [
        ("select 1", "|||read-only"),
        ("select 1 from dual", "|||read-only"),
        ("select * from a join s.b on true, C", "a,c,s.b|||read-only"),
        ("select * from `a b`.`c``d` as x, (e, f) left join g using (h)", "a b.c`d,e,f,g|||read-only"),
        (
            "select * from a, lateral (select * from b) c, json_table(d, '$' columns (e int path '$')) f",
            "a,b|json_table||read-only",
        ),
        ("select * from ((select 1 from a) union (select 2 from b)) x", "a,b|||read-only"),
        (
            "select a from t use index (i, j), u where b in (select c from v) order by d, e",
            "t,u,v|||read-only",
        ),
        ("select a from t use index for order by (i), u", "t,u|||read-only"),
        ("select a from t offset, u", "t,u|||read-only"),
        ("select a from t window, u", "t,u|||read-only"),
        ("table a union table b", "a,b|||read-only"),
        ("select extract(day from a), trim(both 'x' from b) from t", "t|extract,trim||read-only"),
        ("select lower(x), app.f(y), `now`() from t", "t|app.f,lower,now||unknown"),
        ("select get_lock('a', 1), nextval(s)", "|get_lock,nextval||acting"),
        ("select * from t for update", "t|||locks-rows"),
        ("with n as (select 1 from t) select * from n", "t|||read-only"),
        ("with secrets as (select * from secrets) select * from secrets", "secrets|||read-only"),
        (
            "with recursive n as (select 1 union all select i from n) select * from n, db.n",
            "db.n|||read-only",
        ),
        ("with recursive n as (select 1 as i) cycle i, t restrict select * from n, t", "t|||read-only"),
        ("select * from (with n as (select 1) select * from n) x, n", "n|||read-only"),
        ("insert into T (a, b) select * from `U`", "t,u|||writes"),
        ("insert t values (1) on duplicate key update a = values(a)", "t|||writes"),
        ("replace into t partition (p) set a = f(1)", "t|f||writes unknown"),
        ("update a, b set a.c = b.c where a.d = b.d", "a,b|||writes"),
        ("delete x from a as x join b", "a,b|||writes"),
        ("delete from a using a join b", "a,b|||writes"),
        ("delete from a returning b, c", "a|||writes"),
        ("with n as (select 1) update t, n set a = 1", "t|||writes"),
        ("load data infile 'x' into table db.t", "db.t|||writes"),
        ("select a into outfile 'x' from t", "t|||writes"),
        ("call app.p(f(1), (select max(a) from t))", "t|app.p,f,max||unknown moves"),
        ("do sleep(1)", "|sleep||moves"),
        ("create table a like b", "a,b|||moves"),
        ("create table if not exists a (b int, foreign key (b) references c (d))", "a,c|||moves"),
        ("create table a as select f(b) from c", "a,c|f||unknown moves"),
        ("create temporary table a (b int)", "a|||"),
        ("create or replace view v as select * from t", "t,v|||moves"),
        ("create unique index i on t (a)", "t|||moves"),
        ("alter table a rename to b", "a,b|||moves"),
        ("rename table a to b, c.d to e", "a,b,c.d,e|||moves"),
        ("drop table if exists a, b.c", "a,b.c|||moves"),
        ("drop view v", "v|||moves"),
        ("truncate table a", "a|||moves"),
        ("truncate b", "b|||moves"),
        ("optimize table a, b", "a,b|||moves"),
        ("create trigger g before insert on t for each row set new.a = f()", "t|||moves"),
        ("create procedure p() begin delete from t; end", "|||moves"),
        ("grant select, insert on a.b to 'c'@'d'", "a.b|||moves"),
        ("grant all on *.* to c", "|||moves"),
        ("grant all on a.* to c", "|||moves"),
        ("lock tables a read, b as c write", "a,b|||moves"),
        ("flush tables a, b with read lock", "a,b|||moves"),
        ("handler a.b open", "a.b|||"),
        ("show columns from a.b", "a.b|||read-only"),
        ("show create table a", "a|||read-only"),
        ("show tables from db", "|||read-only"),
        ("describe a b", "a|||read-only"),
        ("explain select * from a", "a|||read-only"),
        ("explain delete from a", "a|||writes"),
        ("set Time_Zone = 'x'", "||time_zone|settings plain"),
        ("set session sort_buffer_size = 1", "||sort_buffer_size|settings plain"),
        ("set @@session.sort_buffer_size := 1", "||sort_buffer_size|settings plain"),
        ("set sort_buffer_size = default", "||sort_buffer_size|settings"),
        ("set sort_buffer_size = @@global.sort_buffer_size", "||sort_buffer_size|settings"),
        ("set sql_mode = 'ANSI'", "||sql_mode|settings"),
        ("set autocommit = 0", "||autocommit|settings moves"),
        ("set global a = 1", "||a|"),
        ("set @A = 1, `b` = 2, @@session.c = 3, names latin1", "||@a,b,c,names|settings"),
        (
            "set session transaction isolation level serializable, read only",
            "||transaction_isolation,transaction_read_only|settings",
        ),
        ("set statement a = f(1) for select 1 from t", "t|f||unknown settings"),
        ("use a", "|||settings"),
        ("begin", "|||moves"),
        ("xa start 'x'", "|||moves"),
        ("execute s", "|||unknown moves"),
        ("not sql", "|||writes acting unknown settings moves"),
    ];
    let wrong: Vec<_> = rows
        .into_iter()
        .map(|(text, expected)| (text, named(text), expected))
        .filter(|row| row.1 != row.2)
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_two_readers_of_names_agree() {
    let mut compared = 0;
    for (_, text, _) in ROWS {
        let Some(tokens) = tokens(text.as_bytes(), UTF8) else { continue };
        for statement in facts::split(&tokens) {
            let of_interest = ["select", "with", "insert", "replace", "update", "delete", "table", "values"];
            let Some(tree) = statement
                .first()
                .filter(|first| of_interest.contains(&first.word()))
                .and_then(|_| walk::tree(statement))
            else {
                continue;
            };
            let own = walk::tokens(statement);
            let sorted = |mut names: Vec<String>| {
                names.sort_unstable();
                names.dedup();
                names
            };
            assert_eq!(sorted(tree.found.tables), sorted(own.tables), "{text}");
            for call in tree.found.calls {
                assert!(own.calls.contains(&call), "{text}: {call:?}");
            }
            compared += 1;
        }
    }
    assert!(compared > 60, "{compared}");
}

#[test]
fn details_are_told() {
    let details = |text: &str| Classifier::new(8).facts(text.as_bytes(), UTF8).details;
    let set = |text: &str| {
        let details = details(text);
        let sets = details.sets.iter().map(|set| {
            format!("{:?} {}{}", set.scope, set.name, if set.value_is_constant { "" } else { " ?" })
        });
        sets.collect::<Vec<_>>().join(", ")
    };
    for (text, expected) in [
        ("set names utf8mb4 collate utf8mb4_bin", "Session names"),
        ("set character set 'latin1'", "Session character set"),
        ("set autocommit = @@global.autocommit", "Session autocommit ?"),
        ("set @a = 1, @B := 'x', @`c` = now()", "User a, User b, User c ?"),
        ("set global a = 1, b = 2, session c = 3", "Global a, Global b, Session c"),
        ("set @@global.a = 1, b = 2, @@persist.c = 3", "Global a, Session b, Persist c"),
        ("set persist_only a.b = 1", "Persist a.b"),
        (
            "set transaction isolation level read committed, read only",
            "NextTransaction transaction_isolation, NextTransaction transaction_read_only",
        ),
        ("set session transaction read write", "Session transaction_read_only"),
        ("set global transaction read write", "Global transaction_read_only"),
        ("set @@tx_isolation = 'x'", "NextTransaction tx_isolation"),
        ("set tx_isolation = 'x'", "Session tx_isolation"),
        (
            "set a = ?, b = current_timestamp, c = on, d = -1",
            "Session a ?, Session b ?, Session c, Session d",
        ),
        ("set a = (select 1, 2), b = f(1, 2)", "Session a ?, Session b ?"),
        ("set a = 1; set @b = 2", "Session a, User b"),
        ("select 1", ""),
    ] {
        assert_eq!(set(text), expected, "{text}");
    }
    let many = format!("set {}", (0..70).map(|n| format!("a{n} = 1")).collect::<Vec<_>>().join(", "));
    assert!(details(&many).sets.len() == Details::MAX_ITEMS && details(&many).sets_more);
    assert!(details("use a").uses_schema && !details("select 1").uses_schema);
    assert_eq!(details("kill 5").kill, Some(Kill { query_only: false, id_is_literal: true }));
    assert_eq!(details("kill query @a").kill, Some(Kill { query_only: true, id_is_literal: false }));
    assert_eq!(details("kill 5; kill 6").kill, None);
    let named = |text: &str| {
        let named = details(text).named_statements.clone();
        named.into_iter().map(|one| format!("{:?} {}", one.verb, one.name)).collect::<Vec<_>>().join(", ")
    };
    assert_eq!(
        named("prepare A from 'x'; execute a using @b; deallocate prepare `A`"),
        "Prepare a, Execute a, Deallocate a"
    );
    assert_eq!(named("execute immediate 'x'"), "ExecuteImmediate ");
    assert_eq!(details("xa prepare 'x'").xa, Some(XaVerb::Prepare));
    assert!(details("load data local infile 'x' into table t").is_load_data_local);
    assert!(!details("load data infile 'x' into table t (local)").is_load_data_local);
    for (text, expected) in [
        ("select last_insert_id(), found_rows(), row_count()", "last-insert-id,found-rows,row-count"),
        ("select @@identity, @@warning_count", "last-insert-id,diagnostics"),
        ("show warnings", "diagnostics"),
        ("select lastval(s), @@last_gtid", "sequence,last-gtid"),
        ("select last_insert_id(5)", ""),
        ("select last_insert_id from t", ""),
    ] {
        assert_eq!(details(text).session_functions.to_string(), expected, "{text}");
    }
    assert!(
        details("show errors").keeps_diagnostics && details("get diagnostics @a = number").keeps_diagnostics
    );
    assert!(!details("select @@error_count").keeps_diagnostics && !details("").keeps_diagnostics);
    assert!(details("set @a = (select 1)").has_query && !details("set @a = 1").has_query);
    assert!(details("select 1 from(select 1) a").has_from && !details("select 'from', `from`").has_from);
    assert!(details("select sql_calc_found_rows 1").calculates_found_rows);
    assert!(
        details("select last_insert_id(1)").sets_last_insert_id
            && details("set identity = 1").sets_last_insert_id
    );
    assert!(!details("select last_insert_id()").sets_last_insert_id);
    assert!(
        details("select connection_id()").reads_connection_id
            && details("select @@pseudo_thread_id").reads_connection_id
    );
    for text in ["create table t (a int)", "call p()", "execute s", "not sql", "drop table t"] {
        assert!(details(text).may_change_schema, "{text}");
    }
    for text in ["select 1", "insert into t values (1)", "set a = 1", "commit"] {
        assert!(!details(text).may_change_schema, "{text}");
    }
    assert!(
        details("select /*! 1 */").has_executable_comment
            && !details("select /* 1 */ 1").has_executable_comment
    );
}

#[test]
fn statements_are_found_in_their_text() {
    let found = |text: &str| {
        statements(text.as_bytes(), UTF8)
            .map(|ranges| ranges.into_iter().map(|range| text[range].to_owned()).collect::<Vec<_>>())
    };
    assert_eq!(
        found(" select 1 ; ; select ';' -- ;\n;"),
        Some(vec!["select 1".to_owned(), "select ';'".to_owned()])
    );
    assert_eq!(found("select `;`; /* ; */ x"), Some(vec!["select `;`".to_owned(), "x".to_owned()]));
    assert_eq!(found("-- nothing"), Some(vec![]));
    assert_eq!(
        found("/*! select 1 */; select 2"),
        Some(vec!["/*! select 1 */".to_owned(), "select 2".to_owned()])
    );
    assert_eq!(found("select 'x"), None);
    let body = "create procedure p() begin select 1; if a then select 2; end if; end";
    assert_eq!(found(&format!("{body}; select 3")), Some(vec![body.to_owned(), "select 3".to_owned()]));
}

#[test]
fn user_variables_and_their_constants_are_read_from_the_text() {
    let read = |text: &str| {
        user_variable_assignments(text.as_bytes(), UTF8).map(|assigned| {
            let one =
                |(name, value): (String, Vec<u8>)| format!("{name}={}", String::from_utf8(value).unwrap());
            assigned.into_iter().map(one).collect::<Vec<_>>().join(" | ")
        })
    };
    for (text, expected) in [
        ("SET @a = 1, @`B c` := 'x,y', @'d''e' = -1.5", Some("a=1 | b c='x,y' | d'e=-1.5")),
        (
            "set @a = _utf8mb4'x' collate utf8mb4_bin, time_zone = 'x';",
            Some("a=_utf8mb4'x' collate utf8mb4_bin"),
        ),
        ("set @a = 'x' /* c */ 'y', @b = null", Some("a='x' /* c */ 'y' | b=null")),
        ("set time_zone = 'x'", Some("")),
        ("set @a = 1, @b = @a", None),
        ("set @a = now()", None),
        ("set @a = ?", None),
        ("set @a = 1; set @b = 2", None),
        ("/*! set @a = 1 */", None),
        ("set password = 'x'", None),
        ("select @a := 1", None),
        ("set @a = 'x", None),
    ] {
        assert_eq!(read(text).as_deref(), expected, "{text}");
    }
    // What pins by its text is not replayed, and what is replayed does not pin.
    for (_, text, _) in ROWS.iter().filter(|row| row.1.starts_with("SET @") && !row.1.starts_with("SET @@")) {
        let pins = Classifier::new(8).facts(text.as_bytes(), UTF8).facts.pins;
        assert_eq!(pins.is_empty(), user_variable_assignments(text.as_bytes(), UTF8).is_some(), "{text}");
    }
}

#[test]
fn targets_are_read_from_the_text() {
    let kill = |text: &str| kill_target(text.as_bytes(), UTF8).map(|(kill, id)| (kill.query_only, id));
    for (text, expected) in [
        ("KILL 5", Some((false, 5))),
        ("kill connection 18446744073709551615;", Some((false, u64::MAX))),
        ("KILL QUERY 7", Some((true, 7))),
        ("kill hard query 7", Some((true, 7))),
        ("kill query id 7", None),
        ("kill user 'a'", None),
        ("kill @a", None),
        ("kill 5 + 1", None),
        ("kill 1.5", None),
        ("kill 18446744073709551616", None),
        ("kill 5; kill 6", None),
        ("select 5", None),
    ] {
        assert_eq!(kill(text), expected, "{text}");
    }
    let column =
        |text: &str| connection_id_column(text.as_bytes(), UTF8).map(|name| String::from_utf8(name).unwrap());
    for (text, expected) in [
        ("SELECT CONNECTION_ID()", Some("`CONNECTION_ID()`")),
        ("select connection_id ( ) ;", Some("`connection_id ( )`")),
        ("/* who? */ SELECT Connection_Id() AS me", Some("me")),
        ("SELECT CONNECTION_ID() AS `a``b`", Some("`a``b`")),
        ("SELECT CONNECTION_ID(/*`*/)", None),
        ("SELECT CONNECTION_ID() me", None),
        ("SELECT CONNECTION_ID() AS 'me'", None),
        ("SELECT CONNECTION_ID() + 1", None),
        ("SELECT CONNECTION_ID(1)", None),
        ("SELECT a.CONNECTION_ID()", None),
        ("SELECT CONNECTION_ID(), 1", None),
        ("SELECT CONNECTION_ID() FROM t", None),
        ("SELECT CONNECTION_ID(); SELECT 1", None),
    ] {
        assert_eq!(column(text).as_deref(), expected, "{text}");
    }
    let schema = |text: &str| used_schema(text.as_bytes(), UTF8).map(|name| String::from_utf8(name).unwrap());
    assert_eq!(schema("USE App;").as_deref(), Some("App"));
    assert_eq!(schema("use `a``B`").as_deref(), Some("a`B"));
    assert_eq!(schema("use a; use b"), None);
    let xid = |text: &str| xa_transaction(text.as_bytes(), UTF8).map(|xid| String::from_utf8(xid).unwrap());
    assert_eq!(xid("XA START 'a' , 'b', 1 JOIN").as_deref(), Some("'a','b',1"));
    assert_eq!(xid("xa commit 'a','b',1 one phase").as_deref(), Some("'a','b',1"));
    assert_eq!(xid("xa recover"), None);
    assert_eq!(xid("select 'a'"), None);
}

#[test]
fn a_hint_is_read_from_comments_only() {
    for (text, expected) in [
        ("select 1", ""),
        ("/* pinion:writer */ select 1", "writer"),
        ("select 1 -- pinion:reader", "reader"),
        ("select 1 # pinion:reader", "reader"),
        ("select /*pinion:shard-7 please*/ 1", "shard-7"),
        ("select '/* pinion:writer */'", ""),
        ("select `pinion:writer`", ""),
        ("/*! select 'pinion:writer' */", ""),
        ("/* pinion: */ select 1", ""),
    ] {
        assert_eq!(hint(text.as_bytes(), UTF8), expected, "{text}");
    }
}

#[test]
fn commands_without_text_have_facts() {
    for (command, expected) in [
        (0x02, "session"),
        (0x04, "select ro"),
        (0x06, "ddl"),
        (0x09, "other ro"),
        (0x0c, "other"),
        (0x1b, "session"),
        (
            0x1f,
            "session clears=temporary-table,table-lock,advisory-lock,listen,held-cursor,session-variable,\
             session-identity,prepared-statement,session-function,handler,multi-statement,library",
        ),
    ] {
        assert_eq!(line(&of_command(command).unwrap()), expected, "{command}");
    }
    for command in [0x00, 0x01, 0x03, 0x16, 0x17, 0x18, 0x19, 0x1a, 0x1c, 0x20, 0xff] {
        assert!(of_command(command).is_none(), "{command}");
    }
}

#[test]
fn what_it_costs_is_printed() {
    let understood = ROWS.iter().filter(|row| row.2 != UNKNOWN);
    let texts: Vec<&[u8]> = understood.map(|row| row.1.as_bytes()).collect();
    let average = |what: &dyn Fn(&[u8])| {
        let began = Instant::now();
        let rounds = 20;
        (0..rounds).for_each(|_| texts.iter().for_each(|text| what(text)));
        began.elapsed().as_secs_f64() * 1e6 / f64::from(rounds) / texts.len() as f64
    };
    let classifier = Classifier::new(1024);
    let digest = average(&|text| {
        std::hint::black_box(classifier.digest(text, UTF8));
    });
    let known = average(&|text| drop(classifier.facts(text, UTF8)));
    let read = average(&|text| drop(facts::of_text(text, UTF8)));
    println!("{digest:.2} µs a digest, {known:.2} µs with known facts, {read:.2} µs to read the facts");
}

#[test]
fn what_is_held_is_read_from_the_text() {
    let string = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let table = |table: &Temporary| {
        let schema = table.schema.as_ref().map_or(String::new(), |schema| string(schema) + ".");
        format!("{}{schema}{}", if table.is_sequence { "sequence " } else { "" }, string(&table.name))
    };
    let tables = |text: &str| match temporary(text.as_bytes(), UTF8)? {
        Made::Makes(made) => Some(format!("+ {}", table(&made))),
        Made::Drops(dropped) => {
            Some(format!("- {}", dropped.iter().map(table).collect::<Vec<_>>().join(" ")))
        }
    };
    for (text, expected) in [
        ("CREATE TEMPORARY TABLE Abc (n int)", Some("+ Abc")),
        ("create or replace temporary table if not exists `d``b`.t select 1", Some("+ d`b.t")),
        ("CREATE TEMPORARY SEQUENCE s", Some("+ sequence s")),
        ("DROP TABLE a", Some("- a")),
        ("drop temporary tables if exists a, B.`c` cascade;", Some("- a B.c")),
        ("DROP SEQUENCE IF EXISTS d.s", Some("- sequence d.s")),
        ("CREATE TABLE a (n int)", None),
        ("CREATE TEMPORARY TABLE `é` (n int)", None),
        ("CREATE /*!50000 TEMPORARY */ TABLE a (n int)", None),
        ("CREATE TEMPORARY TABLE a (n int); SELECT 1", None),
        ("DROP TABLE a b", None),
        ("DROP VIEW a", None),
        ("DROP TABLE", None),
    ] {
        assert_eq!(tables(text).as_deref(), expected, "{text}");
    }
    let handlers = |text: &str| match handler(text.as_bytes(), UTF8)? {
        Made::Makes(name) => Some(format!("+ {}", string(&name))),
        Made::Drops(names) => Some(format!("- {}", string(&names.concat()))),
    };
    for (text, expected) in [
        ("HANDLER t OPEN", Some("+ t")),
        ("handler d.t open as `X`", Some("+ X")),
        ("HANDLER t OPEN x", Some("+ x")),
        ("HANDLER t CLOSE", Some("- t")),
        ("HANDLER t READ FIRST", None),
        ("HANDLER `é` CLOSE", None),
    ] {
        assert_eq!(handlers(text).as_deref(), expected, "{text}");
    }
    let found = |text: &str| {
        let locks = locks(text.as_bytes(), UTF8);
        let names: Vec<String> = locks.names.iter().map(|name| string(name)).collect();
        format!("{} {} {}", names.join(","), locks.others, locks.releases_all)
    };
    for (text, expected) in [
        ("SELECT GET_LOCK('a', 0), get_lock(\"b\", 1)", "'a','b' false false"),
        ("SELECT GET_LOCK('a' 'b', 0)", " true false"),
        ("SELECT GET_LOCK('it''s', 0)", " true false"),
        ("SELECT GET_LOCK('a\\'', 0)", " true false"),
        ("SELECT GET_LOCK(@a, 0), GET_LOCK('c', 0)", "'c' true false"),
        ("SELECT GET_LOCK('a', 0); SELECT 1", " true false"),
        ("SELECT RELEASE_LOCK('a')", " false false"),
        ("SELECT RELEASE_ALL_LOCKS()", " false true"),
        ("do release_all_locks ( );", " false true"),
        ("SELECT RELEASE_ALL_LOCKS() AS n", " false true"),
        ("SELECT RELEASE_ALL_LOCKS(), GET_LOCK('a', 0)", "'a' false false"),
        ("SELECT RELEASE_ALL_LOCKS() FROM t", " false false"),
    ] {
        assert_eq!(found(text), expected, "{text}");
    }
    let read = |text: &str, mode| prepared_text(text.as_bytes(), mode).map(|text| string(&text));
    for (text, expected) in [
        ("PREPARE s FROM 'SELECT 1'", Some("SELECT 1")),
        ("prepare s from \"SELECT 'it''s'\";", Some("SELECT 'it''s'")),
        ("PREPARE s FROM 'SELECT ''a'''", Some("SELECT 'a'")),
        (r"PREPARE s FROM 'SELECT \'a\\b\''", Some(r"SELECT 'a\b'")),
        (r"PREPARE s FROM 'SELECT \%'", None),
        ("PREPARE s FROM 'SELECT' ' 1'", None),
        ("PREPARE s FROM @a", None),
        ("PREPARE s FROM 'é'", None),
        ("EXECUTE s", None),
    ] {
        assert_eq!(read(text, UTF8).as_deref(), expected, "{text}");
    }
    let as_it_is = LexMode { no_backslash_escapes: true, ..UTF8 };
    assert_eq!(read(r"PREPARE s FROM '\n'", as_it_is).as_deref(), Some(r"\n"));
}
