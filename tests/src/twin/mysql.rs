//! MySQL's and MariaDB's statements for [twins](super).

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
    /// `COM_RESET_CONNECTION`.
    Reset,
    /// `COM_CHANGE_USER`, to the same user.
    ChangeUser,
    /// Goodbye, and a new login.
    Reconnect,
    /// The socket closes without a word; once the server has noticed, and let go of this lock, a new login.
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

const CAPABILITIES: u64 = capability::NEW | capability::MULTI_STATEMENTS | capability::LOCAL_FILES;
const SLOTS: usize = 3;

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

impl Engine for MariaDb {
    type Action = Action;
    type Client = Client;

    fn setup(client: usize) -> Vec<String> {
        let t = table(client);
        let body = "BEGIN SET @a = n; SET SESSION sort_buffer_size = 70000; SELECT @a; END";
        [
            format!("CREATE DATABASE IF NOT EXISTS {t}_db"),
            format!("DROP TABLE IF EXISTS {t}, {t}_more, {t}_triggered"),
            format!("CREATE TABLE {t} (id INT AUTO_INCREMENT PRIMARY KEY, a INT, b TEXT)"),
            format!("INSERT INTO {t} (a, b) VALUES (1, 'one'), (2, 'two'), (3, NULL)"),
            format!("CREATE TABLE {t}_more (a INT) SELECT seq AS a FROM seq_1_to_20"),
            format!("CREATE TABLE {t}_triggered (a INT)"),
            format!("CREATE TRIGGER {t}_trigger BEFORE INSERT ON {t}_triggered FOR EACH ROW SET @c = NEW.a"),
            format!("CREATE OR REPLACE PROCEDURE {t}_procedure(IN n INT) {body}"),
            format!(
                "CREATE OR REPLACE FUNCTION {t}_function(n INT) RETURNS INT DETERMINISTIC BEGIN SET @b = n; RETURN n + 1; END"
            ),
        ]
        .to_vec()
    }

    fn produce(random: &mut Random, client: usize) -> (&'static str, Vec<Action>) {
        let query = |text: &str| Action::Query(text.to_owned());
        let (production, mut actions) = match random.below(33) {
            0..=3 => {
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
                ("set variable", vec![Action::Query(format!("{form}{name} = {value}")), Self::read(random)])
            }
            4 => {
                let text = random.pick(&[
                    "SET NAMES utf8mb4 COLLATE utf8mb4_bin",
                    "SET NAMES latin1",
                    "SET NAMES utf8mb4, @a = 3",
                    "SET CHARACTER SET utf8mb4",
                    "SET NAMES DEFAULT",
                ]);
                ("set names", vec![query(text), Self::read(random)])
            }
            5 | 6 => {
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
                    "SET @a = 1; SET @b = 2; SELECT @a",
                ]);
                ("user variable", vec![query(text), query("SELECT @a, @b, @c")])
            }
            7 | 8 => {
                let mut actions =
                    vec![query(random.pick(&["BEGIN", "START TRANSACTION", "START TRANSACTION READ ONLY"]))];
                for _ in 0..random.below(3) {
                    actions.push(Self::write(random));
                    actions.push(Self::read(random));
                }
                actions.push(query(random.pick(&["COMMIT", "ROLLBACK", "COMMIT AND CHAIN", "ROLLBACK"])));
                ("transaction", actions)
            }
            9 => (
                "savepoint",
                vec![
                    query("BEGIN"),
                    Self::write(random),
                    query("SAVEPOINT s"),
                    Self::write(random),
                    query("ROLLBACK TO SAVEPOINT s"),
                    Self::read(random),
                    query("COMMIT"),
                ],
            ),
            10 => {
                let mut actions = vec![query("SET autocommit = 0"), Self::write(random), Self::read(random)];
                actions.push(query(random.pick(&["COMMIT", "ROLLBACK"])));
                actions.push(query("SET autocommit = 1"));
                ("autocommit", actions)
            }
            11 => {
                let text = random.pick(&[
                    "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED",
                    "SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ",
                    "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE",
                    "SET TRANSACTION READ ONLY",
                ]);
                ("isolation", vec![query(text), Self::write(random), Self::read(random)])
            }
            12 | 13 => {
                let mut actions = vec![
                    query("CREATE TEMPORARY TABLE {t}_temporary (a INT)"),
                    query("INSERT INTO {t}_temporary VALUES (1), (2)"),
                    query("SELECT * FROM {t}_temporary"),
                ];
                if !random.once_in(4) {
                    actions.push(query("DROP TEMPORARY TABLE {t}_temporary"));
                }
                ("temporary table", actions)
            }
            14 | 15 => {
                let slot = random.below(SLOTS);
                let text = random.pick(&[
                    "SELECT * FROM {t} WHERE id > ? ORDER BY id",
                    "INSERT INTO {t} (a) VALUES (?)",
                    "SELECT @a, ?",
                    "UPDATE {t} SET b = ? WHERE id = 1",
                    "SELECT nothing FROM nowhere WHERE a = ?",
                ]);
                let mut actions = vec![Action::Prepare(slot, text.to_owned())];
                for _ in 0..=random.below(2) {
                    let value = (!random.once_in(5)).then(|| random.below(9).to_string());
                    actions.push(Action::Execute(slot, vec![value], false));
                }
                ("prepared statement", actions)
            }
            16 => {
                let slot = random.below(SLOTS);
                let value = Some(random.below(9).to_string());
                ("execution later", vec![Action::Execute(slot, vec![value], false)])
            }
            17 => {
                let slot = random.below(SLOTS);
                ("statement closed", vec![Action::Close(slot), Action::Execute(slot, vec![None], false)])
            }
            18 => (
                "long data",
                vec![
                    Action::Prepare(0, "UPDATE {t} SET b = ? WHERE id = 1".to_owned()),
                    Action::LongData(0, "long ".to_owned()),
                    Action::LongData(0, "data".to_owned()),
                    Action::Execute(0, vec![Some(String::new())], false),
                    query("SELECT b FROM {t} WHERE id = 1"),
                ],
            ),
            19 => {
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
                ("cursor", actions)
            }
            20 => (
                "prepared by SQL",
                vec![
                    query("PREPARE s FROM 'SELECT ? + 1'"),
                    query("SET @a = 41"),
                    query("EXECUTE s USING @a"),
                    query(random.pick(&["DEALLOCATE PREPARE s", "SELECT 1"])),
                    query("EXECUTE s USING @a"),
                ],
            ),
            21 => (
                "named lock",
                vec![
                    query("SELECT GET_LOCK('{t}', 0)"),
                    Self::read(random),
                    query(random.pick(&["SELECT RELEASE_LOCK('{t}')", "SELECT RELEASE_ALL_LOCKS()", "DO 0"])),
                    query("SELECT IS_USED_LOCK('{t}') IS NOT NULL"),
                ],
            ),
            22 => (
                "table lock",
                vec![
                    query("LOCK TABLES {t} WRITE"),
                    Self::write(random),
                    query("SELECT COUNT(*) FROM {t}_more"),
                    query("UNLOCK TABLES"),
                    query("SELECT COUNT(*) FROM {t}_more"),
                ],
            ),
            23 => (
                "warnings",
                vec![
                    query(random.pick(&["SELECT 1/0", "SELECT CAST('x' AS INT)", "SELECT 1"])),
                    query("SHOW WARNINGS"),
                ],
            ),
            24 => (
                "last insert id",
                vec![
                    query(random.pick(&[
                        "INSERT INTO {t} (a) VALUES (NULL)",
                        "INSERT INTO {t} (b) VALUES ('x'), ('y')",
                    ])),
                    query("SELECT LAST_INSERT_ID()"),
                    Self::read(random),
                    query("SELECT LAST_INSERT_ID()"),
                ],
            ),
            25 => (
                "rows counted",
                vec![
                    query("SELECT SQL_CALC_FOUND_ROWS a FROM {t}_more LIMIT 2"),
                    query("SELECT FOUND_ROWS()"),
                    query("UPDATE {t} SET a = a + 1 WHERE id > 0; SELECT ROW_COUNT()"),
                ],
            ),
            26 => {
                let text = random.pick(&[
                    "SELECT 1; SELECT 2",
                    "INSERT INTO {t} (a) VALUES (1); INSERT INTO {t} (id) VALUES (1); SET @a = 9",
                    "SET sql_mode = 'ANSI_QUOTES'; SELECT \"a\" FROM {t} LIMIT 1",
                    "BEGIN; SELECT COUNT(*) FROM {t}; COMMIT",
                    "SET time_zone = '+01:00'; SELECT nothing FROM nowhere; SET time_zone = '+02:00'",
                ]);
                ("several statements", vec![query(text), Self::read(random)])
            }
            27 => match random.below(3) {
                0 => ("database", vec![query("USE {t}_db"), query("SELECT DATABASE()"), query("USE appdb")]),
                1 => (
                    "database",
                    vec![Action::InitDb("{t}_db".to_owned()), query("SELECT DATABASE()"), query("USE appdb")],
                ),
                _ => (
                    "database",
                    vec![Action::InitDb("no_such_database".to_owned()), query("SELECT DATABASE()")],
                ),
            },
            28 => {
                let text = random.pick(&[
                    "CALL {t}_procedure(5)",
                    "SELECT {t}_function(6)",
                    "INSERT INTO {t}_triggered VALUES (7)",
                    "DO {t}_function(8)",
                ]);
                (
                    "routine",
                    vec![query(text), query("SELECT @a, @b, @c, @@sort_buffer_size"), Self::read(random)],
                )
            }
            29 => match random.below(2) {
                0 => (
                    "handler",
                    vec![
                        query("HANDLER {t}_more OPEN"),
                        query("HANDLER {t}_more READ FIRST LIMIT 2"),
                        query("HANDLER {t}_more READ NEXT LIMIT 2"),
                        query(random.pick(&["HANDLER {t}_more CLOSE", "SELECT 1"])),
                    ],
                ),
                _ => (
                    "xa",
                    vec![
                        query("XA START '{t}'"),
                        Self::write(random),
                        query("XA END '{t}'"),
                        query(random.pick(&["XA ROLLBACK '{t}'", "XA COMMIT '{t}' ONE PHASE"])),
                    ],
                ),
            },
            30 => (
                "file",
                vec![
                    Action::Load(
                        "LOAD DATA LOCAL INFILE 'x' INTO TABLE {t} (a)".to_owned(),
                        random.pick(&["5\n6\n", "", "oops\n"]).to_owned(),
                    ),
                    Self::read(random),
                ],
            ),
            31 => match random.below(4) {
                0 => ("reset", vec![Action::Reset, Self::read(random)]),
                1 => ("change of user", vec![Action::ChangeUser, Self::read(random)]),
                2 => ("reconnect", vec![Action::Reconnect, Self::read(random)]),
                _ => ("vanish", vec![Action::Vanish("{t}".to_owned()), Self::read(random)]),
            },
            _ => {
                let text = random.pick(&[
                    "SELEC 1",
                    "SELECT * FROM nowhere",
                    "INSERT INTO {t} (id) VALUES (1)",
                    "ALTER TABLE {t} ADD COLUMN IF NOT EXISTS c INT",
                    "SET STATEMENT max_statement_time = 5 FOR SELECT 1",
                    "SET no_such_variable = 1",
                    "SET sql_mode = 'NO_SUCH_MODE'",
                ]);
                ("odds and errors", vec![query(text), Self::read(random)])
            }
        };
        let t = table(client);
        for action in &mut actions {
            if let Action::Query(text)
            | Action::Load(text, _)
            | Action::Prepare(_, text)
            | Action::InitDb(text)
            | Action::Vanish(text) = action
            {
                *text = text.replace("{t}", &t);
            }
        }
        (production, actions)
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
            Action::Reset => {
                client.prepared.fill_with(|| None);
                format!("{:?}", raw.simple(command::RESET_CONNECTION, &[]).await)
            }
            Action::ChangeUser => {
                client.prepared.fill_with(|| None);
                let login = Login::new(address, raw.capabilities);
                format!("{:?}", raw.change_user(&login).await)
            }
            Action::Reconnect => {
                raw.command(command::QUIT, &[]).await;
                raw.expect_closed().await;
                *client = Self::connect(address).await;
                String::new()
            }
            Action::Vanish(lock) => {
                *client = Self::connect(address).await;
                let free = format!("SELECT IS_FREE_LOCK('{lock}')");
                crate::until("the lock of who has vanished is free", async || {
                    client.raw.scalar(&free).await == "1"
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
}

fn table(client: usize) -> String {
    format!("twin{client}")
}

fn lines(mut replies: Vec<Reply>) -> String {
    for reply in &mut replies {
        if let Reply::Done(done) | Reply::Rows(Rows { end: Ok(done), .. }) = reply {
            // In whatever order the server's hash has them.
            done.changes.sort_by_key(|change| format!("{change:?}"));
        }
    }
    format!("{replies:?}")
}
