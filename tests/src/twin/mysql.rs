//! MySQL's and MariaDB's statements for [twins](super).

use std::time::Duration;

use tokio::time::sleep;

use super::{Engine, Random};
use crate::{
    Address, RawMySql,
    raw_mysql::{Login, Prepared, Reply, Rows, capability, command},
};

/// The engine.
#[derive(Debug)]
pub struct MariaDb;

/// One thing that a client does.
#[derive(Debug, Clone)]
pub enum Action {
    /// `COM_QUERY`.
    Query(String),
    /// `COM_QUERY` of a `LOAD DATA LOCAL`, and the file.
    Load(String, String),
    /// `COM_STMT_PREPARE`, kept under a number.
    Prepare(usize, String),
    /// `COM_STMT_EXECUTE` with parameters; a cursor if so wanted.
    Execute(usize, Vec<Option<String>>, bool),
    /// `COM_STMT_SEND_LONG_DATA` for the first parameter.
    LongData(usize, String),
    /// `COM_STMT_FETCH`.
    Fetch(usize, u32),
    /// `COM_STMT_RESET`.
    ResetStatement(usize),
    /// `COM_STMT_CLOSE`.
    Close(usize),
    /// `COM_INIT_DB`.
    InitDb(String),
    /// Nothing, for as long as it takes others to ask for the connection.
    Rest,
    /// `COM_RESET_CONNECTION`.
    Reset,
    /// `COM_CHANGE_USER`, to the same user.
    ChangeUser,
    /// Goodbye; once the server has let go of this lock, a new login.
    Reconnect(String),
    /// The socket closes without a word; once the server has noticed, and let go of these locks, a new login.
    Vanish(String),
}

impl From<String> for Action {
    fn from(text: String) -> Self {
        Self::Query(text)
    }
}

/// A client and its prepared statements.
#[derive(Debug)]
pub struct Client {
    raw: RawMySql,
    prepared: Vec<Option<Prepared>>,
}

const REST: Duration = Duration::from_millis(250);
const CAPABILITIES: u64 = capability::NEW | capability::MULTI_STATEMENTS | capability::LOCAL_FILES;
const SLOTS: usize = 3;
/// A status flag.
const METADATA_CHANGED: u16 = 0x0400;

/// Variables of a session, and values for them.
const VARIABLES: &[(&str, &[&str])] = &[
    ("sql_mode", &["''", "'ANSI_QUOTES'", "'PIPES_AS_CONCAT'", "'NO_BACKSLASH_ESCAPES'", "DEFAULT"]),
    ("time_zone", &["'+03:00'", "'-05:30'", "'SYSTEM'"]),
    ("group_concat_max_len", &["4", "1024"]),
    ("div_precision_increment", &["2", "9", "DEFAULT"]),
    ("lc_time_names", &["'de_DE'", "'fr_FR'", "'en_US'"]),
    ("sql_select_limit", &["1", "DEFAULT"]),
    ("max_error_count", &["1", "64"]),
    ("sort_buffer_size", &["65536", "DEFAULT"]),
    ("character_set_results", &["latin1", "utf8mb4", "NULL"]),
    ("collation_connection", &["utf8mb4_bin", "utf8mb4_general_ci"]),
    ("sql_safe_updates", &["1", "0"]),
    ("foreign_key_checks", &["0", "1"]),
    ("auto_increment_increment", &["5", "1"]),
    ("default_week_format", &["3", "0"]),
];

/// What reads the state of a session.
const READS: &[&str] = &[
    "SELECT @@sql_mode, @@time_zone, @@group_concat_max_len, @@div_precision_increment, @@lc_time_names",
    "SELECT @@sql_select_limit, @@max_error_count, @@sort_buffer_size, @@auto_increment_increment",
    "SELECT @@character_set_client, @@character_set_results, @@collation_connection, @@autocommit",
    "SELECT @@tx_isolation, @@tx_read_only, @@in_transaction, @@sql_safe_updates, @@foreign_key_checks",
    "SELECT 1/3, 'a' || 'b', DATE_FORMAT('2020-02-03', '%W %M'), FROM_UNIXTIME(0), WEEK('2021-01-01')",
    "SELECT GROUP_CONCAT(id ORDER BY id), COUNT(*) FROM {t}",
    "SELECT 'a' = 'A', CHAR_LENGTH('\\\\'), COLLATION('x')",
    "SELECT @a, @b, @c",
    "SELECT DATABASE(), USER()",
    "SELECT * FROM {t} ORDER BY id",
    "SELECT IS_USED_LOCK('{t}') IS NOT NULL, IS_FREE_LOCK('{t}')",
    "SELECT * FROM {t}_temporary ORDER BY 1",
    "SHOW SESSION VARIABLES LIKE 'tx_isolation'",
];

impl MariaDb {
    fn read(random: &mut Random) -> Action {
        Action::Query(random.pick(READS).to_owned())
    }

    fn write(random: &mut Random) -> Action {
        let value = random.below(100);
        Action::Query(match random.below(5) {
            0 => format!("INSERT INTO {{t}} (a) VALUES ({value}), ({value})"),
            1 => format!("UPDATE {{t}} SET a = a + 1 WHERE a < {value} AND id > 0"),
            2 => format!("INSERT INTO {{t}} (id, a) VALUES (1, {value})"),
            3 => format!("DELETE FROM {{t}} WHERE a = {value} AND id > 1"),
            _ => format!("REPLACE INTO {{t}} (id, a) VALUES (2, {value})"),
        })
    }
}

fn query(text: &str) -> Action {
    Action::Query(text.to_owned())
}

fn queries(texts: &[&str]) -> Vec<Action> {
    texts.iter().map(|text| query(text)).collect()
}

impl Engine for MariaDb {
    type Action = Action;
    type Client = Client;

    const PRODUCTIONS: &'static [(&'static str, usize)] = &[
        ("set variable", 4),
        ("set names", 1),
        ("set by expression", 1),
        ("set together", 1),
        ("set for one statement", 1),
        ("used up", 1),
        ("user variable", 2),
        ("transaction", 2),
        ("savepoint", 1),
        ("autocommit", 1),
        ("isolation", 1),
        ("next transaction", 1),
        ("temporary table", 2),
        ("temporary tables", 1),
        ("tables at rest", 1),
        ("prepared statement", 2),
        ("execution later", 1),
        ("statement closed", 1),
        ("shape changed", 1),
        ("long data", 1),
        ("cursor", 1),
        ("cursors", 1),
        ("prepared by SQL", 1),
        ("prepared by SQL and kept", 1),
        ("executed by SQL", 1),
        ("executed at once", 1),
        ("named lock", 1),
        ("named locks", 1),
        ("table lock", 1),
        ("warnings", 1),
        ("warnings counted", 1),
        ("diagnostics", 1),
        ("rows diagnosed", 1),
        ("last insert id", 1),
        ("rows counted", 1),
        ("sequence", 1),
        ("several statements", 1),
        ("compound", 1),
        ("database", 1),
        ("routine", 1),
        ("routine left behind", 1),
        ("table left behind", 1),
        ("trigger", 1),
        ("trigger left behind", 1),
        ("handler", 1),
        ("xa", 1),
        ("file", 1),
        ("reset", 2),
        ("change of user", 1),
        ("reconnect", 1),
        ("vanish", 1),
        ("odds and errors", 1),
    ];

    const RESTING: &'static [&'static str] = &["tables at rest"];

    const PENDING: &'static [&'static str] = &[
        // Of an error that is answered here (a fetch without a cursor, say) no server counts a warning.
        "warnings counted",
        // A `LASTVAL` that is refused has not used up the `SET TRANSACTION` before it.
        "sequence",
        // A variable that may be another client's is unset before `GET DIAGNOSTICS` sets it: ROW_COUNT is that statement's.
        "rows diagnosed",
    ];

    fn create(client: usize) -> Vec<String> {
        let t = table(client);
        let body = "BEGIN SET @a = n; SET SESSION sort_buffer_size = 70000; SELECT @a; END";
        vec![
            format!("CREATE DATABASE {t}_db"),
            format!("CREATE TABLE {t} (id INT AUTO_INCREMENT PRIMARY KEY, a INT, b TEXT)"),
            format!("CREATE TABLE {t}_more (a INT) SELECT seq AS a FROM seq_1_to_20"),
            format!("CREATE TABLE {t}_shape (a INT) SELECT seq AS a FROM seq_1_to_3"),
            format!("CREATE TABLE {t}_triggered (a INT)"),
            format!("CREATE SEQUENCE {t}_sequence"),
            format!("CREATE TRIGGER {t}_trigger BEFORE INSERT ON {t}_triggered FOR EACH ROW SET @c = NEW.a"),
            format!("CREATE PROCEDURE {t}_procedure(IN n INT) {body}"),
            format!("CREATE PROCEDURE {t}_makes() CREATE TEMPORARY TABLE {t}_made SELECT 5 AS a"),
            format!(
                "CREATE FUNCTION {t}_function(n INT) RETURNS INT DETERMINISTIC BEGIN SET @b = n; RETURN n + 1; END"
            ),
        ]
    }

    fn renew(client: usize) -> String {
        let t = table(client);
        format!(
            "DELETE FROM {t}; ALTER TABLE {t} AUTO_INCREMENT = 1; DELETE FROM {t}_triggered; \
             ALTER SEQUENCE {t}_sequence RESTART 1; ALTER TABLE {t}_shape DROP COLUMN IF EXISTS c; \
             INSERT INTO {t} (a, b) VALUES (1, 'one'), (2, 'two'), (3, NULL)"
        )
    }

    fn produce(production: &str, random: &mut Random, client: usize) -> Vec<Action> {
        let mut actions = match production {
            "set variable" => {
                let (name, values) = VARIABLES[random.below(VARIABLES.len())];
                let value = random.pick(values);
                let form = random.pick(&[
                    "SET ",
                    "SET SESSION ",
                    "set local ",
                    "SET @@",
                    "SET @@session.",
                    "/* x */ SET /*!50000 SESSION*/ ",
                ]);
                vec![Action::Query(format!("{form}{name} = {value}")), Self::read(random)]
            }
            "set names" => {
                let text = random.pick(&[
                    "SET NAMES utf8mb4 COLLATE utf8mb4_bin",
                    "SET NAMES latin1",
                    "SET NAMES utf8mb4, @a = 3",
                    "SET CHARACTER SET utf8mb4",
                    "SET NAMES DEFAULT",
                    "SET NAMES 'no_such_set'",
                ]);
                vec![query(text), Self::read(random), query("SELECT 'ž', HEX('ž'), CHARSET('ž')")]
            }
            "set by expression" => {
                let text = random.pick(&[
                    "SET sql_mode = CONCAT(@@sql_mode, ',ANSI_QUOTES')",
                    "SET group_concat_max_len = @@group_concat_max_len * 2",
                    "SET @a = 1 + 1, @b = (SELECT MAX(id) FROM {t})",
                    "SET time_zone = IF(1 = 1, '+02:00', '-02:00')",
                    "SET @b = @@sql_mode, sql_mode = 'PIPES_AS_CONCAT'",
                    "SET @a = 0x41, @b = b'101', @c = _latin1'x' COLLATE latin1_bin",
                    "SET @a = -1.5e3, @b = TRUE, @c = 'it''s'",
                    "SET lc_time_names = @c",
                    "SET sql_select_limit = @a",
                ]);
                vec![query(text), query("SELECT @a, @b, @c, @@sql_mode"), Self::read(random)]
            }
            "set together" => {
                let text = random.pick(&[
                    "SET sql_mode = '', time_zone = '+04:00'",
                    "SET time_zone = '+04:00', time_zone = 'nowhere'",
                    "SET @a = 1, SESSION div_precision_increment = 3, @b = 'two'",
                    "SET @a = 1; SET no_such_variable = 1; SET @b = 2",
                ]);
                vec![query(text), Self::read(random), query("SELECT @a, @b, @c")]
            }
            "set for one statement" => vec![
                query(random.pick(&[
                    "SET STATEMENT group_concat_max_len = 4 FOR SELECT GROUP_CONCAT(id) FROM {t}",
                    "SET STATEMENT sql_mode = 'ANSI_QUOTES' FOR SELECT @@sql_mode",
                    "SET STATEMENT max_statement_time = 5 FOR SELECT @@max_statement_time",
                ])),
                Self::read(random),
            ],
            "used up" => match random.below(3) {
                0 => queries(&[
                    "SET timestamp = 1000",
                    "SELECT UNIX_TIMESTAMP(NOW())",
                    random.pick(&["SET timestamp = DEFAULT", "SET timestamp = 2000"]),
                    "SELECT UNIX_TIMESTAMP(NOW()) < 3000",
                ]),
                1 => queries(&[
                    "SET insert_id = 100",
                    "INSERT INTO {t} (a) VALUES (1)",
                    "INSERT INTO {t} (a) VALUES (2)",
                    "SELECT MAX(id) FROM {t}",
                ]),
                _ => queries(&[
                    "SET last_insert_id = 77",
                    "SELECT LAST_INSERT_ID()",
                    "SELECT @@last_insert_id",
                ]),
            },
            "user variable" => {
                let text = random.pick(&[
                    "SET @a = 1",
                    "SET @a = 'text', @b = 2.5",
                    "SET @c = NULL",
                    "SET @a = @a + 1",
                    "SELECT @b := COUNT(*) FROM {t}",
                    "SELECT MAX(a) INTO @c FROM {t}",
                    "SET @a = 5, sql_mode = '', no_such_variable = 1",
                    "SET @b = \"quoted\"",
                    "SET @b = 'back\\\\slash'",
                    "SET @a = 'žluť'",
                    "SET @a = 1; SET @b = 2; SELECT @a",
                ]);
                queries(&[text, "SELECT @a, @b, @c"])
            }
            "transaction" => {
                let mut actions =
                    vec![query(random.pick(&["BEGIN", "START TRANSACTION", "START TRANSACTION READ ONLY"]))];
                for _ in 0..random.below(3) {
                    actions.push(Self::write(random));
                    actions.push(Self::read(random));
                }
                actions.push(query(random.pick(&["COMMIT", "ROLLBACK", "COMMIT AND CHAIN", "ROLLBACK"])));
                actions
            }
            "savepoint" => vec![
                query("BEGIN"),
                Self::write(random),
                query("SAVEPOINT s"),
                Self::write(random),
                query(random.pick(&["ROLLBACK TO SAVEPOINT s", "RELEASE SAVEPOINT s", "SAVEPOINT u"])),
                Self::read(random),
                query("ROLLBACK TO s"),
                query(random.pick(&["COMMIT", "ROLLBACK"])),
            ],
            "autocommit" => {
                let mut actions = vec![query("SET autocommit = 0"), Self::write(random), Self::read(random)];
                actions.push(query(random.pick(&["COMMIT", "ROLLBACK"])));
                actions.push(query("SET autocommit = 1"));
                actions
            }
            "isolation" => {
                let text = random.pick(&[
                    "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED",
                    "SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ",
                    "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE",
                    "SET TRANSACTION READ ONLY",
                ]);
                vec![query(text), Self::write(random), Self::read(random)]
            }
            "next transaction" => vec![
                query(random.pick(&[
                    "SET TRANSACTION READ ONLY",
                    "SET TRANSACTION ISOLATION LEVEL READ UNCOMMITTED, READ ONLY",
                    "SET @@tx_isolation = 'SERIALIZABLE'",
                ])),
                query(random.pick(&["BEGIN", "SELECT 1", "SET @a = 1"])),
                Self::write(random),
                query("COMMIT"),
                Self::write(random),
                Self::read(random),
            ],
            "temporary table" => {
                let mut actions = queries(&[
                    "CREATE TEMPORARY TABLE {t}_temporary (a INT)",
                    "INSERT INTO {t}_temporary VALUES (1), (2)",
                    "SELECT * FROM {t}_temporary",
                ]);
                if !random.once_in(4) {
                    actions.push(query("DROP TEMPORARY TABLE {t}_temporary"));
                }
                actions
            }
            "temporary tables" => {
                let mut actions = queries(&[
                    "CREATE TEMPORARY TABLE {t}_more SELECT 7 AS a",
                    "CREATE TEMPORARY TABLE {t}_db.{t}_temporary (a INT)",
                    "SELECT COUNT(*) FROM {t}_more",
                    "DROP TABLE {t}_db.{t}_temporary",
                    "SELECT COUNT(*) FROM {t}_more",
                ]);
                if !random.once_in(3) {
                    actions.push(query("DROP TEMPORARY TABLE IF EXISTS {t}_more"));
                }
                actions.push(query("SELECT COUNT(*) FROM {t}_more"));
                actions
            }
            "tables at rest" => {
                let mut actions = vec![
                    query(random.pick(&[
                        "CREATE TEMPORARY TABLE {t}_resting (id INT AUTO_INCREMENT PRIMARY KEY, a INT, b TEXT, KEY (a))",
                        "CREATE TEMPORARY TABLE {t}_resting (id INT AUTO_INCREMENT, a FLOAT, b TEXT, KEY (id))",
                        "CREATE TEMPORARY TABLE {t}_resting (id INT DEFAULT 5, a TIMESTAMP NULL, b ENUM('b', 'c'))",
                        "CREATE TEMPORARY TABLE {t}_resting LIKE {t}",
                    ])),
                    query("INSERT INTO {t}_resting (a, b) VALUES (1, 'b'), (0.1, 'c'), (20200229102030, NULL)"),
                    query("DELETE FROM {t}_resting WHERE id = 2"),
                ];
                let reads = &[
                    "SELECT * FROM {t}_resting",
                    "SELECT COUNT(*), SUM(a) FROM {t}_resting",
                    "INSERT INTO {t}_resting (a) VALUES (7)",
                    "INSERT IGNORE INTO {t}_resting (b) VALUES ('no such')",
                    "INSERT INTO {t}_resting VALUES (1, 2, 3, 4, 5)",
                    "UPDATE {t}_resting SET a = a + 1",
                    "SHOW CREATE TABLE {t}_resting",
                    "ALTER TABLE {t}_resting ADD more INT DEFAULT 3",
                    "CREATE OR REPLACE TEMPORARY TABLE {t}_resting SELECT 'b' AS b, 2 AS a",
                    "CREATE TEMPORARY TABLE {t}_more SELECT 8 AS a",
                    "DROP TEMPORARY TABLE {t}_more",
                    "SELECT LAST_INSERT_ID()",
                    "SELECT ROW_COUNT()",
                    "BEGIN",
                    "COMMIT",
                    "ROLLBACK",
                    "SELECT * FROM {t}_more",
                ];
                let prepares = random.once_in(2);
                if prepares {
                    actions.push(Action::Prepare(0, "SELECT a, b FROM {t}_resting".to_owned()));
                }
                for _ in 0..=random.below(2) {
                    actions.push(Action::Rest);
                    for _ in 0..2 {
                        actions.push(match random.below(6) {
                            0 if prepares => Action::Execute(0, Vec::new(), false),
                            1 => Self::read(random),
                            _ => query(random.pick(reads)),
                        });
                    }
                }
                if !random.once_in(3) {
                    actions.push(query("DROP TEMPORARY TABLE IF EXISTS {t}_resting"));
                }
                actions
            }
            "prepared statement" => {
                let slot = random.below(SLOTS);
                let text = random.pick(&[
                    "SELECT * FROM {t} WHERE id > ? ORDER BY id",
                    "INSERT INTO {t} (a) VALUES (?)",
                    "SELECT @a, ?",
                    "UPDATE {t} SET b = ? WHERE id = 1",
                    "SELECT nothing FROM nowhere WHERE a = ?",
                    "SET @a = ?",
                ]);
                let mut actions = vec![Action::Prepare(slot, text.to_owned())];
                for _ in 0..=random.below(2) {
                    let value = (!random.once_in(5)).then(|| random.below(9).to_string());
                    actions.push(Action::Execute(slot, vec![value], false));
                }
                actions
            }
            "execution later" => {
                let slot = random.below(SLOTS);
                let value = Some(random.below(9).to_string());
                vec![Action::Execute(slot, vec![value], false)]
            }
            "statement closed" => {
                let slot = random.below(SLOTS);
                vec![Action::Close(slot), Action::Execute(slot, vec![None], false)]
            }
            "shape changed" => {
                let run = || Action::Execute(2, Vec::new(), false);
                vec![
                    Action::Prepare(2, "SELECT * FROM {t}_shape ORDER BY a".to_owned()),
                    run(),
                    query(random.pick(&[
                        "ALTER TABLE {t}_shape ADD COLUMN IF NOT EXISTS c INT",
                        "ALTER TABLE {t}_shape DROP COLUMN IF EXISTS c",
                    ])),
                    run(),
                    run(),
                ]
            }
            "long data" => vec![
                Action::Prepare(0, "UPDATE {t} SET b = ? WHERE id = 1".to_owned()),
                Action::LongData(0, "long ".to_owned()),
                Action::LongData(0, "data".to_owned()),
                Action::Execute(0, vec![Some(String::new())], false),
                query("SELECT b FROM {t} WHERE id = 1"),
            ],
            "cursor" => {
                let mut actions = vec![
                    Action::Prepare(1, "SELECT a FROM {t}_more WHERE a > ? ORDER BY a".to_owned()),
                    Action::Execute(1, vec![Some("2".to_owned())], true),
                    Action::Fetch(1, 3),
                ];
                match random.below(3) {
                    0 => actions.push(Action::ResetStatement(1)),
                    1 => actions.push(Action::Fetch(1, 100)),
                    _ => actions.push(Action::Close(1)),
                }
                actions
            }
            "cursors" => vec![
                Action::Prepare(0, "SELECT a FROM {t}_more ORDER BY a".to_owned()),
                Action::Prepare(1, "SELECT a FROM {t}_more WHERE a > ? ORDER BY a DESC".to_owned()),
                Action::Execute(0, Vec::new(), true),
                Action::Execute(1, vec![Some("5".to_owned())], true),
                Action::Fetch(0, 2),
                Action::Fetch(1, 2),
                query("SELECT COUNT(*) FROM {t}"),
                Action::Fetch(0, 2),
                Action::ResetStatement(0),
                Action::Fetch(1, 100),
                Action::Close(0),
            ],
            "prepared by SQL" => queries(&[
                "PREPARE s FROM 'SELECT ? + 1'",
                "SET @a = 41",
                "EXECUTE s USING @a",
                random.pick(&["DEALLOCATE PREPARE s", "SELECT 1"]),
                "EXECUTE s USING @a",
            ]),
            "prepared by SQL and kept" => queries(&[random.pick(&[
                "PREPARE p1 FROM 'SELECT ? + 1, @a'",
                "PREPARE p1 FROM \"INSERT INTO {t} (a) VALUES (?)\"",
                "PREPARE p2 FROM CONCAT('SELECT a FROM {t}_more WHERE a < ', '? ORDER BY a')",
                "PREPARE `P 3` FROM 'SET @b = ?'",
                "SET @c = 'SELECT 3 + ?'; PREPARE p2 FROM @c",
                "PREPARE p1 FROM 'SELECT nothing FROM nowhere'",
            ])]),
            "executed by SQL" => queries(&[random.pick(&[
                "EXECUTE p1 USING 1",
                "EXECUTE P1 USING @a",
                "EXECUTE p2 USING 3 + 1",
                "EXECUTE `P 3` USING 'x'",
                "DEALLOCATE PREPARE p1",
                "DROP PREPARE p2",
                "EXECUTE p1",
            ])]),
            "executed at once" => queries(&[
                random.pick(&[
                    "EXECUTE IMMEDIATE 'SET @a = 5'",
                    "EXECUTE IMMEDIATE 'SELECT ? + 1' USING 4",
                    "EXECUTE IMMEDIATE 'SET sql_mode = ?' USING 'ANSI_QUOTES'",
                ]),
                "SELECT @a, @@sql_mode",
            ]),
            "named lock" => vec![
                query("SELECT GET_LOCK('{t}', 0)"),
                Self::read(random),
                query(random.pick(&["SELECT RELEASE_LOCK('{t}')", "SELECT RELEASE_ALL_LOCKS()", "DO 0"])),
                query("SELECT IS_USED_LOCK('{t}') IS NOT NULL"),
            ],
            "named locks" => queries(&[
                "SELECT GET_LOCK('{t}', 0), GET_LOCK('{t}_b', 0)",
                random.pick(&["SELECT GET_LOCK('{t}', 1)", "DO GET_LOCK('{t}_c', 0)"]),
                "SELECT RELEASE_LOCK('{t}')",
                "SELECT IS_FREE_LOCK('{t}'), IS_FREE_LOCK('{t}_b'), IS_FREE_LOCK('{t}_c')",
                random.pick(&["SELECT RELEASE_LOCK('{t}_b')", "SELECT RELEASE_ALL_LOCKS()"]),
                "SELECT IS_FREE_LOCK('{t}'), IS_FREE_LOCK('{t}_b'), IS_FREE_LOCK('{t}_c')",
                random.pick(&["SELECT RELEASE_ALL_LOCKS()", "DO RELEASE_LOCK('{t}')"]),
            ]),
            "table lock" => vec![
                query(random.pick(&[
                    "LOCK TABLES {t} WRITE",
                    "LOCK TABLES {t} READ",
                    "LOCK TABLE {t} WRITE",
                ])),
                Self::write(random),
                query("SELECT COUNT(*) FROM {t}_more"),
                query("UNLOCK TABLES"),
                query("SELECT COUNT(*) FROM {t}_more"),
            ],
            "warnings" => queries(&[
                random.pick(&[
                    "SELECT 1/0",
                    "SELECT CAST('x' AS INT)",
                    "SELECT 1",
                    "SELECT nothing FROM nowhere",
                ]),
                random.pick(&["SHOW WARNINGS", "SHOW ERRORS"]),
            ]),
            "warnings counted" => queries(&[
                random.pick(&["SELECT 1/0", "SELECT COUNT(*) FROM {t}", "SELECT nothing FROM nowhere"]),
                random.pick(&["SHOW COUNT(*) WARNINGS", "SELECT @@warning_count", "SELECT @@error_count"]),
            ]),
            "rows diagnosed" => queries(&[
                "BEGIN",
                random.pick(&["INSERT INTO {t} (id) VALUES (1)", "UPDATE {t} SET a = 1"]),
                "GET DIAGNOSTICS @b = ROW_COUNT",
                "SELECT @b",
                "COMMIT",
            ]),
            // In a transaction, which keeps the connection: elsewhere it may be refused, and then sets nothing.
            "diagnostics" => queries(&[
                "BEGIN",
                random.pick(&[
                    "SELECT CAST('x' AS INT)",
                    "SELECT COUNT(*) FROM {t}",
                    "INSERT INTO {t} (id) VALUES (1)",
                ]),
                "GET DIAGNOSTICS @a = NUMBER",
                "GET DIAGNOSTICS CONDITION 1 @c = MESSAGE_TEXT",
                "SELECT @a, @b, @c",
                "COMMIT",
            ]),
            "last insert id" => vec![
                query(random.pick(&[
                    "INSERT INTO {t} (a) VALUES (NULL)",
                    "INSERT INTO {t} (b) VALUES ('x'), ('y')",
                    "UPDATE {t} SET a = LAST_INSERT_ID(55) WHERE id = 1",
                ])),
                query("SELECT LAST_INSERT_ID()"),
                Self::read(random),
                query("SELECT LAST_INSERT_ID()"),
            ],
            "rows counted" => queries(&[
                "SELECT SQL_CALC_FOUND_ROWS a FROM {t}_more LIMIT 2",
                "SELECT FOUND_ROWS()",
                "UPDATE {t} SET a = a + 1 WHERE id > 0; SELECT ROW_COUNT()",
            ]),
            "sequence" => queries(&["SELECT NEXTVAL({t}_sequence)", "SELECT LASTVAL({t}_sequence)"]),
            "several statements" => {
                let text = random.pick(&[
                    "SELECT 1; SELECT 2",
                    "INSERT INTO {t} (a) VALUES (1); INSERT INTO {t} (id) VALUES (1); SET @a = 9",
                    "SET sql_mode = 'ANSI_QUOTES'; SELECT \"a\" FROM {t} LIMIT 1",
                    "BEGIN; SELECT COUNT(*) FROM {t}; COMMIT",
                    "SET time_zone = '+01:00'; SELECT nothing FROM nowhere; SET time_zone = '+02:00'",
                    "CALL {t}_procedure(3); SELECT @a; SELECT 1/0",
                ]);
                vec![query(text), Self::read(random)]
            }
            "compound" => vec![
                query(random.pick(&[
                    "BEGIN NOT ATOMIC SET @a = 8; SELECT @a; END",
                    "BEGIN NOT ATOMIC DECLARE x INT DEFAULT 3; SET time_zone = '+06:00'; SET @b = x; END",
                    "IF 1 THEN SET @c = 'if'; END IF",
                ])),
                Self::read(random),
                query("SELECT @a, @b, @c"),
            ],
            "database" => match random.below(3) {
                0 => queries(&["USE {t}_db", "SELECT DATABASE()", "USE appdb"]),
                1 => {
                    vec![Action::InitDb("{t}_db".to_owned()), query("SELECT DATABASE()"), query("USE appdb")]
                }
                _ => vec![Action::InitDb("no_such_database".to_owned()), query("SELECT DATABASE()")],
            },
            "routine" | "routine left behind" | "trigger" | "trigger left behind" => {
                let text = random.pick(match production {
                    "routine" | "routine left behind" => {
                        &["CALL {t}_procedure(5)", "SELECT {t}_function(6)", "DO {t}_function(8)"]
                    }
                    _ => &["INSERT INTO {t}_triggered VALUES (7)"],
                });
                let mut actions = vec![query(text)];
                if production.ends_with("left behind") {
                    actions.push(match random.below(3) {
                        0 => Action::Reset,
                        1 => Action::ChangeUser,
                        _ => Action::Reconnect("{t}".to_owned()),
                    });
                }
                actions.extend([query("SELECT @a, @b, @c, @@sort_buffer_size"), Self::read(random)]);
                actions
            }
            "table left behind" => vec![
                query("CALL {t}_makes()"),
                // Or a reset would leave FOUND_ROWS as the procedure did, and what follows may leave it, too.
                query("SELECT 5"),
                match random.below(3) {
                    0 => Action::Reset,
                    1 => Action::ChangeUser,
                    _ => Action::Reconnect("{t}".to_owned()),
                },
                query("SELECT a FROM {t}_made"),
            ],
            "handler" => queries(&[
                "HANDLER {t}_more OPEN",
                "HANDLER {t}_more READ FIRST LIMIT 2",
                "HANDLER {t}_more READ NEXT LIMIT 2",
                random.pick(&["HANDLER {t}_more CLOSE", "SELECT 1"]),
            ]),
            "xa" => vec![
                query("XA START '{t}'"),
                Self::write(random),
                query("XA END '{t}'"),
                query(random.pick(&["XA ROLLBACK '{t}'", "XA COMMIT '{t}' ONE PHASE"])),
                Self::read(random),
            ],
            "file" => vec![
                Action::Load(
                    "LOAD DATA LOCAL INFILE 'x' INTO TABLE {t} (a)".to_owned(),
                    random.pick(&["5\n6\n", "", "oops\n"]).to_owned(),
                ),
                Self::read(random),
            ],
            "reset" => vec![Action::Reset, Self::read(random)],
            "change of user" => vec![Action::ChangeUser, Self::read(random)],
            "reconnect" => vec![Action::Reconnect("{t}".to_owned()), Self::read(random)],
            "vanish" => vec![Action::Vanish("{t}".to_owned()), Self::read(random)],
            "odds and errors" => {
                let text = random.pick(&[
                    "SELEC 1",
                    "SELECT * FROM nowhere",
                    "INSERT INTO {t} (id) VALUES (1)",
                    "SET no_such_variable = 1",
                    "SET sql_mode = 'NO_SUCH_MODE'",
                    "",
                    ";",
                    "ROLLBACK TO SAVEPOINT nowhere",
                    "XA COMMIT 'nowhere'",
                ]);
                vec![query(text), Self::read(random)]
            }
            other => unreachable!("{other} is not in the list"),
        };
        let t = table(client);
        for action in &mut actions {
            if let Action::Query(text)
            | Action::Load(text, _)
            | Action::Prepare(_, text)
            | Action::InitDb(text)
            | Action::Reconnect(text)
            | Action::Vanish(text) = action
            {
                *text = text.replace("{t}", &t);
            }
        }
        actions
    }

    fn identity() -> Action {
        Action::Query("SELECT CONNECTION_ID() + 0".to_owned())
    }

    async fn connect(address: &Address) -> Client {
        let raw = RawMySql::connect_with(address, CAPABILITIES).await;
        Client { raw, prepared: (0..SLOTS).map(|_| None).collect() }
    }

    async fn run(client: &mut Client, address: &Address, action: &Action) -> String {
        let raw = &mut client.raw;
        let id = |slot: usize| client.prepared[slot].as_ref().map_or(999, |prepared| prepared.id);
        match action {
            Action::Query(text) => lines(raw.query(text).await),
            Action::Load(text, file) => {
                let mut replies = raw.query(text).await;
                if let Some(Reply::WantsFile(_)) = replies.last() {
                    // An empty piece would end the file by itself.
                    let pieces = [file.as_bytes()];
                    raw.send_file(if file.is_empty() { &[] } else { &pieces }).await;
                    replies.extend(raw.read_replies().await);
                }
                lines(replies)
            }
            Action::Prepare(slot, text) => {
                if let Some(before) = client.prepared[*slot].take() {
                    raw.close_statement(before.id).await;
                }
                match raw.prepare(text).await {
                    Ok(mut prepared) => {
                        for column in
                            prepared.columns.iter_mut().filter(|column| column.name.starts_with('@'))
                        {
                            // One that was unset has another than one that was never set.
                            column.length = 0;
                        }
                        let line = format!("{:?} {:?}", prepared.parameters, prepared.columns);
                        client.prepared[*slot] = Some(prepared);
                        line
                    }
                    Err(error) => format!("{error:?}"),
                }
            }
            Action::Execute(slot, parameters, cursor) => {
                let Some(prepared) = &client.prepared[*slot] else {
                    return "nothing prepared".to_owned();
                };
                let count = prepared.parameters.len();
                let parameters: Vec<Option<&str>> =
                    parameters.iter().map(Option::as_deref).cycle().take(count).collect();
                lines(raw.execute(prepared.id, u8::from(*cursor), &parameters).await)
            }
            Action::LongData(slot, data) => {
                if client.prepared[*slot].is_some() {
                    raw.send_long_data(id(*slot), 0, data.as_bytes()).await;
                }
                String::new()
            }
            Action::Fetch(slot, rows) => match client.prepared[*slot].is_some() {
                true => {
                    let id = id(*slot);
                    let (rows, end) = raw.fetch(id, *rows).await;
                    // Each server counts its own.
                    format!("{rows:?} {end:?}").replace(&format!("({id})"), "(#)")
                }
                false => String::new(),
            },
            Action::ResetStatement(slot) => match client.prepared[*slot].is_some() {
                true => {
                    let id = id(*slot);
                    format!("{:?}", raw.simple(command::STMT_RESET, &id.to_le_bytes()).await)
                }
                false => String::new(),
            },
            Action::Close(slot) => {
                if let Some(prepared) = client.prepared[*slot].take() {
                    raw.close_statement(prepared.id).await;
                }
                String::new()
            }
            Action::InitDb(name) => format!("{:?}", raw.simple(command::INIT_DB, name.as_bytes()).await),
            Action::Rest => {
                sleep(REST).await;
                "rested".to_owned()
            }
            Action::Reset => {
                client.prepared.fill_with(|| None);
                format!("{:?}", raw.simple(command::RESET_CONNECTION, &[]).await)
            }
            Action::ChangeUser => {
                client.prepared.fill_with(|| None);
                let login = Login::new(address, raw.capabilities);
                format!("{:?}", raw.change_user(&login).await)
            }
            Action::Reconnect(lock) => {
                raw.command(command::QUIT, &[]).await;
                raw.expect_closed().await;
                *client = Self::connect(address).await;
                // A server closes first and frees then.
                let free = format!("SELECT IS_FREE_LOCK('{lock}')");
                crate::until("the lock of who has left is free", async || {
                    client.raw.scalar(&free).await == "1"
                })
                .await;
                Self::leave(std::mem::replace(client, Self::connect(address).await)).await;
                String::new()
            }
            Action::Vanish(lock) => {
                *client = Self::connect(address).await;
                let all = ["", "_b", "_c"].map(|more| format!("IS_FREE_LOCK('{lock}{more}')"));
                let free = format!("SELECT {}", all.join(" + "));
                crate::until("the locks of who has vanished are free", async || {
                    client.raw.scalar(&free).await == "3"
                })
                .await;
                Self::leave(std::mem::replace(client, Self::connect(address).await)).await;
                String::new()
            }
        }
    }

    async fn leave(mut client: Client) {
        client.raw.command(command::QUIT, &[]).await;
        client.raw.expect_closed().await;
    }

    fn may_differ(direct: &str, through: &str) -> bool {
        // What nobody can answer any more is refused, see docs/mysql.md.
        through.contains("What the statement before has left is gone")
            // An error that Pinion answers itself is not among the server's warnings.
            || (direct.contains("Level:") && direct.contains("has no open cursor"))
    }

    fn is_loss(reply: &str) -> bool {
        // The server's own last word where there is one, else Pinion's.
        [
            (1105, "08S01", "The connection to the database server was lost."),
            (
                1213,
                "40001",
                "The connection to the database server was lost. (The transaction was rolled back.)",
            ),
            (1927, "70100", "Connection was killed"),
            (1317, "70100", "Query execution was interrupted"),
        ]
        .iter()
        .any(|(code, state, message)| {
            // As a reply, and at the end of one.
            reply.contains(&format!("{code} ({state}) {message}"))
                || reply.contains(&format!("code: {code}, state: {state:?}, message: \"{message}"))
        })
    }

    async fn kill(setter: &mut Client, number: u64) -> bool {
        let others = "FROM information_schema.processlist WHERE user = 'app' AND id <> CONNECTION_ID()";
        let count: u64 = setter.raw.scalar(&format!("SELECT COUNT(*) {others}")).await.parse().unwrap_or(0);
        if count == 0 {
            return false;
        }
        let one = format!("SELECT id {others} ORDER BY id LIMIT {}, 1", number % count);
        let rows = setter.raw.rows(&one).await;
        let Some(Some(id)) = rows.into_iter().next().and_then(|row| row.into_iter().next()) else {
            return false;
        };
        matches!(setter.raw.query(&format!("KILL {id}")).await.last(), Some(Reply::Done(_)))
    }

    async fn is_quiet(setter: &mut Client) -> bool {
        let busy = "SELECT COUNT(*) FROM information_schema.processlist \
                    WHERE user = 'app' AND id <> CONNECTION_ID() AND command <> 'Sleep'";
        setter.raw.scalar(busy).await == "0"
    }
}

fn table(client: usize) -> String {
    format!("twin{client}")
}

fn lines(mut replies: Vec<Reply>) -> String {
    for reply in &mut replies {
        if let Reply::Done(done) | Reply::Rows(Rows { end: Ok(done), .. }) = reply {
            // In whatever order the server's hash has them.
            done.changes.sort_by_key(|change| format!("{change:?}"));
            // Other columns than when it was prepared, which here may have been just now.
            done.status &= !METADATA_CHANGED;
        }
        if let Reply::Rows(Rows { columns, rows, .. }) = reply {
            // A variable that is NULL has the type of what it was before, which is not known where it was not before.
            let variables = columns.iter_mut().enumerate().filter(|(_, c)| is_user_variable(&c.name));
            for (at, column) in variables {
                if rows.iter().all(|row| is_null(row, at)) {
                    (column.kind, column.flags) = (0, 0);
                }
            }
        }
    }
    format!("{replies:?}")
}

fn is_user_variable(name: &str) -> bool {
    name.starts_with('@') && !name.starts_with("@@")
}

/// True of a row of texts whose value there is NULL; the values before it are short.
fn is_null(row: &[u8], at: usize) -> bool {
    let mut rest = row;
    for _ in 0..at {
        let length = match rest.first() {
            Some(&0xfb) => 0,
            Some(&length) => usize::from(length),
            None => return false,
        };
        rest = rest.get(1 + length..).unwrap_or_default();
    }
    rest.first() == Some(&0xfb)
}
