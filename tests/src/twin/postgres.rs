//! PostgreSQL's statements for [twins](super).

use super::{Engine, Random};
use crate::{Address, Message, RawClient, wire};

/// The engine.
#[derive(Debug)]
pub struct Postgres;

/// One thing that a client does.
#[derive(Debug, Clone)]
pub enum Action {
    /// A simple query.
    Query(String),
    /// A simple query of a `COPY … FROM STDIN`, and the data.
    Copy(String, String),
    /// Messages of the extended protocol, up to a Sync.
    Extended(Vec<Part>),
    /// Goodbye, and a new login.
    Reconnect,
    /// The socket closes without a word, then a new login.
    Vanish,
}

/// A message of the extended protocol.
#[derive(Debug, Clone)]
pub enum Part {
    /// Name and text.
    Parse(String, String),
    /// Statement's name and parameters; the portal is the unnamed one.
    Bind(String, Vec<String>),
    /// Of a statement.
    Describe(String),
    /// Of the unnamed portal, so many rows; 0 is all.
    Execute(i32),
    /// Of a statement.
    Close(String),
}

impl From<String> for Action {
    fn from(text: String) -> Self {
        Self::Query(text)
    }
}

/// Variables of a session, and values for them.
const VARIABLES: &[(&str, &[&str])] = &[
    ("work_mem", &["'2MB'", "'8MB'", "DEFAULT"]),
    ("search_path", &["other, public", "public", "DEFAULT"]),
    ("timezone", &["'Asia/Tokyo'", "'UTC'", "DEFAULT"]),
    ("datestyle", &["'German'", "'ISO, MDY'", "DEFAULT"]),
    ("intervalstyle", &["'iso_8601'", "'postgres'"]),
    ("extra_float_digits", &["0", "3"]),
    ("bytea_output", &["'escape'", "'hex'"]),
    ("standard_conforming_strings", &["off", "on"]),
    ("statement_timeout", &["'30s'", "0"]),
    ("application_name", &["'one'", "'two'"]),
    ("default_transaction_isolation", &["'serializable'", "'read committed'"]),
    ("default_transaction_read_only", &["on", "off"]),
];

/// What reads the state of a session.
const READS: &[&str] = &[
    "SHOW work_mem",
    "SELECT current_setting('search_path'), current_schema()",
    "SELECT timestamptz '2020-02-03 04:05:06+00', interval '1 day 2 hours', 1/3.0::float8, '\\x01ff'::bytea",
    "SELECT current_user, session_user, current_setting('application_name')",
    "SELECT current_setting('transaction_isolation'), current_setting('transaction_read_only')",
    "SELECT 'a\\\\b', E'a\\\\b'",
    "SELECT count(*), sum(a) FROM {t}",
    "SELECT * FROM {t} ORDER BY id",
    "SELECT * FROM {t}_temporary ORDER BY 1",
    "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()",
    "SELECT count(*) FROM pg_listening_channels()",
    "SELECT name, is_holdable FROM pg_cursors WHERE name <> '' ORDER BY name",
    "SELECT name FROM pg_prepared_statements WHERE from_sql ORDER BY name",
    "SELECT which()",
];

impl Postgres {
    fn read(random: &mut Random) -> Action {
        Action::Query(random.pick(READS).to_owned())
    }

    fn write(random: &mut Random) -> Action {
        let value = random.below(100);
        Action::Query(match random.below(4) {
            0 => format!("INSERT INTO {{t}} (a) VALUES ({value}), ({value})"),
            1 => format!("UPDATE {{t}} SET a = a + 1 WHERE a < {value}"),
            2 => format!("INSERT INTO {{t}} (id, a) VALUES (1, {value})"),
            _ => format!("DELETE FROM {{t}} WHERE a = {value} AND id > 3"),
        })
    }
}

impl Engine for Postgres {
    type Action = Action;
    type Client = RawClient;

    fn setup(client: usize) -> Vec<String> {
        let t = table(client);
        [
            "CREATE SCHEMA IF NOT EXISTS other".to_owned(),
            "CREATE OR REPLACE FUNCTION public.which() RETURNS text LANGUAGE sql AS $$ SELECT 'public' $$"
                .to_owned(),
            "CREATE OR REPLACE FUNCTION other.which() RETURNS text LANGUAGE sql AS $$ SELECT 'other' $$"
                .to_owned(),
            format!("DROP TABLE IF EXISTS {t}, {t}_more"),
            format!("CREATE TABLE {t} (id serial PRIMARY KEY, a int, b text)"),
            format!("INSERT INTO {t} (a, b) VALUES (1, 'one'), (2, 'two'), (3, NULL)"),
            format!("CREATE TABLE {t}_more AS SELECT n AS a FROM generate_series(1, 20) n"),
        ]
        .to_vec()
    }

    fn produce(random: &mut Random, client: usize) -> (&'static str, Vec<Action>) {
        let query = |text: &str| Action::Query(text.to_owned());
        let (production, mut actions) = match random.below(24) {
            0..=3 => {
                let (name, values) = VARIABLES[random.below(VARIABLES.len())];
                let value = random.pick(values);
                let text = match random.below(5) {
                    0 => format!("SET {name} TO {value}"),
                    1 => format!("SET SESSION {name} = {value}"),
                    2 => format!("/* x */ set {name} = {value} -- y"),
                    3 if *value != *"DEFAULT" && !value.contains(',') => {
                        let value = value.trim_matches('\'');
                        format!("SELECT set_config('{name}', '{value}', false)")
                    }
                    _ => format!("RESET {name}"),
                };
                ("set variable", vec![Action::Query(text), Self::read(random)])
            }
            4 => {
                let (name, values) = VARIABLES[random.below(VARIABLES.len())];
                let value = random.pick(values);
                (
                    "set local",
                    vec![
                        query("BEGIN"),
                        Action::Query(format!("SET LOCAL {name} = {value}")),
                        Self::read(random),
                        query(random.pick(&["COMMIT", "ROLLBACK"])),
                        Self::read(random),
                    ],
                )
            }
            5 => {
                let (name, values) = VARIABLES[random.below(VARIABLES.len())];
                let value = random.pick(values);
                (
                    "set undone",
                    vec![
                        query("BEGIN"),
                        query("SAVEPOINT s"),
                        Action::Query(format!("SET {name} = {value}")),
                        query(random.pick(&["ROLLBACK TO s", "RELEASE s", "SELECT nothing FROM nowhere"])),
                        Self::read(random),
                        query(random.pick(&["COMMIT", "ROLLBACK"])),
                        Self::read(random),
                    ],
                )
            }
            6 | 7 => {
                let mut actions = vec![query(random.pick(&[
                    "BEGIN",
                    "START TRANSACTION READ ONLY",
                    "BEGIN ISOLATION LEVEL SERIALIZABLE",
                ]))];
                for _ in 0..random.below(3) {
                    actions.push(Self::write(random));
                    actions.push(Self::read(random));
                }
                actions.push(query(random.pick(&["COMMIT", "ROLLBACK", "END", "COMMIT"])));
                ("transaction", actions)
            }
            8 => {
                let mut actions = vec![
                    query("CREATE TEMP TABLE {t}_temporary (a int)"),
                    query("INSERT INTO {t}_temporary VALUES (1), (2)"),
                    query("SELECT * FROM {t}_temporary"),
                ];
                match random.below(3) {
                    0 => actions.push(query("DROP TABLE {t}_temporary")),
                    1 => actions.push(query("DISCARD TEMP")),
                    _ => {}
                }
                ("temporary table", actions)
            }
            9 | 10 => {
                let name = random.pick(&["", "s1", "s2"]);
                let text = random.pick(&[
                    "SELECT * FROM {t} WHERE id > $1::int ORDER BY id",
                    "INSERT INTO {t} (a) VALUES ($1::int)",
                    "SELECT current_setting('work_mem'), $1::text",
                    "SELECT nothing FROM nowhere WHERE a = $1",
                ]);
                let parts = vec![
                    Part::Close(name.to_owned()),
                    Part::Parse(name.to_owned(), text.to_owned()),
                    Part::Describe(name.to_owned()),
                    Part::Bind(name.to_owned(), vec![random.below(9).to_string()]),
                    Part::Execute(0),
                ];
                ("prepared statement", vec![Action::Extended(parts)])
            }
            11 => {
                let name = random.pick(&["s1", "s2"]);
                let bind = Part::Bind(name.to_owned(), vec![random.below(9).to_string()]);
                ("execution later", vec![Action::Extended(vec![bind, Part::Execute(0)])])
            }
            12 => {
                let name = random.pick(&["s1", "s2"]).to_owned();
                ("statement closed", vec![Action::Extended(vec![Part::Close(name)])])
            }
            13 => {
                let parts = vec![
                    Part::Parse(String::new(), "SELECT a FROM {t}_more ORDER BY a".to_owned()),
                    Part::Bind(String::new(), Vec::new()),
                    Part::Execute(3),
                    Part::Execute(2),
                ];
                ("portal", vec![Action::Extended(parts)])
            }
            14 => (
                "prepared by SQL",
                vec![
                    query("PREPARE p(int) AS SELECT $1 + 1"),
                    query("EXECUTE p(41)"),
                    query(random.pick(&["DEALLOCATE p", "DEALLOCATE ALL", "SELECT 1"])),
                    query("EXECUTE p(1)"),
                ],
            ),
            15 => {
                let key = client * 10 + random.below(3);
                (
                    "advisory lock",
                    vec![
                        Action::Query(format!("SELECT pg_advisory_lock({key})")),
                        Self::read(random),
                        match random.below(3) {
                            0 => Action::Query(format!("SELECT pg_advisory_unlock({key})")),
                            1 => query("SELECT pg_advisory_unlock_all()"),
                            _ => query("SELECT 1"),
                        },
                        Self::read(random),
                    ],
                )
            }
            16 => (
                "cursor",
                vec![
                    query("BEGIN"),
                    query(random.pick(&[
                        "DECLARE c CURSOR FOR SELECT a FROM {t}_more ORDER BY a",
                        "DECLARE c CURSOR WITH HOLD FOR SELECT a FROM {t}_more ORDER BY a",
                    ])),
                    query("FETCH 2 FROM c"),
                    query(random.pick(&["COMMIT", "ROLLBACK"])),
                    query("FETCH 2 FROM c"),
                    query(random.pick(&["CLOSE c", "CLOSE ALL", "SELECT 1"])),
                ],
            ),
            17 => (
                "listen",
                vec![
                    query("LISTEN {t}"),
                    query("NOTIFY {t}, 'hello'"),
                    query(random.pick(&["UNLISTEN {t}", "UNLISTEN *", "SELECT 1"])),
                    Self::read(random),
                ],
            ),
            18 => (
                "role",
                vec![
                    query(random.pick(&[
                        "SET ROLE app",
                        "SET SESSION AUTHORIZATION app",
                        "RESET ROLE",
                        "SET ROLE nobody",
                    ])),
                    query("SELECT current_user, session_user"),
                ],
            ),
            19 => (
                "sequence",
                vec![
                    query("INSERT INTO {t} (a) VALUES (0)"),
                    query("SELECT lastval(), currval('{t}_id_seq')"),
                ],
            ),
            20 => match random.below(2) {
                0 => (
                    "copy",
                    vec![Action::Copy(
                        "COPY {t} (a) FROM STDIN".to_owned(),
                        random.pick(&["5\n6\n", "", "oops\n"]).to_owned(),
                    )],
                ),
                _ => ("copy", vec![query("COPY {t}_more TO STDOUT")]),
            },
            21 => {
                let text = random.pick(&[
                    "SELECT 1; SELECT 2",
                    "SET work_mem = '3MB'; SELECT nothing FROM nowhere",
                    "INSERT INTO {t} (a) VALUES (1); INSERT INTO {t} (id) VALUES (1)",
                    "BEGIN; SET work_mem = '5MB'; ROLLBACK",
                    "SET timezone = 'UTC'; SELECT 1/0; SET timezone = 'Asia/Tokyo'",
                ]);
                ("several statements", vec![query(text), Self::read(random)])
            }
            22 => match random.below(6) {
                0 => ("reset", vec![query("DISCARD ALL"), Self::read(random)]),
                1 => ("reset", vec![query("RESET ALL"), Self::read(random)]),
                2 => ("reset", vec![query("DISCARD SEQUENCES"), Self::read(random)]),
                3 => ("reconnect", vec![Action::Reconnect, Self::read(random)]),
                4 => ("vanish", vec![Action::Vanish, Self::read(random)]),
                _ => (
                    "session characteristics",
                    vec![
                        query(random.pick(&[
                            "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL REPEATABLE READ",
                            "SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE",
                        ])),
                        Self::read(random),
                    ],
                ),
            },
            _ => {
                let text = random.pick(&[
                    "SELEC 1",
                    "SELECT * FROM nowhere",
                    "SELECT 1/0",
                    "SET no_such_variable = 1",
                    "SELECT",
                    "",
                ]);
                ("odds and errors", vec![query(text), Self::read(random)])
            }
        };
        let t = table(client);
        for action in &mut actions {
            match action {
                Action::Query(text) | Action::Copy(text, _) => *text = text.replace("{t}", &t),
                Action::Extended(parts) => {
                    for part in parts {
                        if let Part::Parse(_, text) = part {
                            *text = text.replace("{t}", &t);
                        }
                    }
                }
                Action::Reconnect | Action::Vanish => {}
            }
        }
        (production, actions)
    }

    fn identity() -> Action {
        Action::Query("SELECT pg_backend_pid()".to_owned())
    }

    async fn connect(address: &Address) -> RawClient {
        RawClient::connect(address).await
    }

    async fn run(client: &mut RawClient, address: &Address, action: &Action) -> String {
        match action {
            Action::Query(text) => lines(&client.query(text).await),
            Action::Copy(text, data) => {
                client.send_bytes(&wire::query(text)).await;
                let mut messages = Vec::new();
                loop {
                    let Some(message) = client.read().await else { break };
                    let tag = message.tag;
                    messages.push(message);
                    match tag {
                        b'G' => client.send_all(&[wire::copy_data(data.as_bytes()), wire::copy_done()]).await,
                        b'Z' => break,
                        _ => {}
                    }
                }
                lines(&messages)
            }
            Action::Extended(parts) => {
                let mut bytes = Vec::new();
                for part in parts {
                    bytes.extend(match part {
                        Part::Parse(name, text) => wire::parse(name, text),
                        Part::Bind(name, parameters) => {
                            let parameters: Vec<&str> = parameters.iter().map(String::as_str).collect();
                            wire::bind("", name, &parameters)
                        }
                        Part::Describe(name) => wire::describe_statement(name),
                        Part::Execute(rows) => wire::execute("", *rows),
                        Part::Close(name) => wire::close_statement(name),
                    });
                }
                bytes.extend(wire::sync());
                client.send_bytes(&bytes).await;
                lines(&client.read_reply().await)
            }
            Action::Reconnect => {
                client.send_bytes(&wire::terminate()).await;
                client.expect_closed().await;
                *client = Self::connect(address).await;
                String::new()
            }
            Action::Vanish => {
                *client = Self::connect(address).await;
                String::new()
            }
        }
    }

    async fn leave(mut client: RawClient) {
        client.send_bytes(&wire::terminate()).await;
        client.expect_closed().await;
    }

    fn may_differ(direct: &str, through: &str) -> bool {
        // What sequences returned is forgotten where others used the connection: docs/session.md.
        let forgotten = through.contains("55000") && through.contains("is not yet defined in this session");
        forgotten && !direct.contains("55000")
    }
}

fn table(client: usize) -> String {
    format!("twin{client}")
}

/// Without what servers report of themselves, and with numbers of processes and tables struck out.
fn lines(messages: &[Message]) -> String {
    let lines: Vec<String> = messages
        .iter()
        .filter(|message| message.tag != b'S')
        .map(|message| match message.tag {
            // A notification begins with the process that sent it, a row's description tells the table's number.
            b'A' => format!("A {}", message.body[4..].escape_ascii()),
            b'T' => format!("T {}", description(&message.body)),
            _ => format!("{message:?}"),
        })
        .collect();
    format!("{lines:?}")
}

/// Names and types of a `RowDescription`.
fn description(body: &[u8]) -> String {
    let mut rest = &body[2..];
    let mut out = Vec::new();
    while let Some(end) = rest.iter().position(|byte| *byte == 0) {
        let (name, fields) = (&rest[..end], &rest[end + 1..]);
        // Table, column: not compared. Type, length, modifier, format.
        out.push(format!("{} {}", name.escape_ascii(), fields[6..18].escape_ascii()));
        rest = &fields[18..];
    }
    out.join(", ")
}
