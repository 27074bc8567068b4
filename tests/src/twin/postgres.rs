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
    /// A simple query of a `COPY … FROM STDIN`, and the data; without them the copy fails.
    Copy(String, Option<String>),
    /// Messages of the extended protocol, up to a Sync.
    Extended(Vec<Part>),
    /// Goodbye, and a new login.
    Reconnect,
    /// The socket closes without a word; once the server has let go of the locks that this counts, a new login.
    Vanish(String),
}

/// A message of the extended protocol.
#[derive(Debug, Clone)]
pub enum Part {
    /// Name and text.
    Parse(String, String),
    /// Portal, statement's name and parameters.
    Bind(String, String, Vec<String>),
    /// Statement's name and parameters of four bytes in binary; so are the results of the unnamed portal.
    BindBinary(String, Vec<i32>),
    /// Of a statement.
    Describe(String),
    /// Of a portal, so many rows; 0 is all.
    Execute(String, i32),
    /// Of a statement.
    Close(String),
    /// The end of a batch before the last.
    Sync,
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
    ("client_min_messages", &["'warning'", "'notice'"]),
    ("plan_cache_mode", &["force_generic_plan", "auto"]),
    ("row_security", &["off", "on"]),
];

/// Texts whose values are easily misread.
const ODD_VALUES: &[&str] = &[
    r"SET application_name = 'back\slash'",
    r"SET application_name = E'quo\'te'",
    "SET application_name = 'it''s'",
    "SET application_name TO \"Mixed Case\"",
    "SET application_name = $$dollar$$",
    "SET application_name = U&'d\\0061t\\+000061'",
    "SET application_name = 'žluťoučký'",
    "SET search_path = 'žluť', \"Mixed\", \"do\"\"uble\", public",
    "SET search_path = ''",
    "SET search_path TO \"$user\", other",
    "SET app.x = 'ž\\'",
    "SET app.x TO a, b, 'c d'",
    "SET work_mem = 2048",
    "SET work_mem = 0x800",
    "SET statement_timeout = 45000.5",
    "SET extra_float_digits TO -1",
    "SET datestyle = iso, dmy",
    "SET SCHEMA 'other'",
    "SET NAMES 'UTF8'",
    "SET work_mem = '2MB', '3MB'",
    "SET XML OPTION DOCUMENT",
    "SET SEED 0.5",
];

const TIME_ZONES: &[&str] = &[
    "SET TIME ZONE 'Europe/Prague'",
    "SET TIME ZONE LOCAL",
    "SET TIME ZONE DEFAULT",
    "SET TIME ZONE -7",
    "SET TIME ZONE 3.5",
    "SET TIME ZONE INTERVAL '+05:30' HOUR TO MINUTE",
    "SET SESSION TIME ZONE 'Asia/Tokyo'",
    "SET TIME ZONE 'Nowhere/Else'",
    "RESET TIME ZONE",
];

/// What reads the state of a session.
const READS: &[&str] = &[
    "SHOW work_mem",
    "SELECT current_setting('search_path'), current_schema()",
    "SELECT timestamptz '2020-02-03 04:05:06+00', interval '1 day 2 hours', 1/3.0::float8, '\\x01ff'::bytea",
    "SELECT current_user, session_user, current_setting('application_name')",
    "SELECT current_setting('transaction_isolation'), current_setting('transaction_read_only')",
    "SELECT current_setting('client_min_messages'), current_setting('plan_cache_mode')",
    "SELECT 'a\\\\b', E'a\\\\b'",
    "SELECT count(*), sum(a) FROM {t}",
    "SELECT * FROM {t} ORDER BY id",
    "SELECT * FROM {t}_temporary ORDER BY 1",
    "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()",
    "SELECT name, is_holdable FROM pg_cursors WHERE name <> '' ORDER BY name",
    "SELECT name FROM pg_prepared_statements WHERE from_sql ORDER BY name",
    "SELECT which()",
    CUSTOM,
];

/// Reads a setting that a connection does not have before someone has made it.
const CUSTOM: &str = "SELECT current_setting('app.x', true) AS custom";

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

    fn variable(random: &mut Random) -> (&'static str, &'static str) {
        let (name, values) = VARIABLES[random.below(VARIABLES.len())];
        (name, values[random.below(values.len())])
    }
}

fn query(text: &str) -> Action {
    Action::Query(text.to_owned())
}

fn queries(texts: &[&str]) -> Vec<Action> {
    texts.iter().map(|text| query(text)).collect()
}

fn bind(statement: &str, parameters: &[usize]) -> Part {
    let parameters = parameters.iter().map(usize::to_string).collect();
    Part::Bind(String::new(), statement.to_owned(), parameters)
}

fn execute(rows: i32) -> Part {
    Part::Execute(String::new(), rows)
}

impl Engine for Postgres {
    type Action = Action;
    type Client = RawClient;

    const PRODUCTIONS: &'static [(&'static str, usize)] = &[
        ("set variable", 4),
        ("set odd value", 1),
        ("set time zone", 1),
        ("set local", 1),
        ("set undone", 1),
        ("set from current", 1),
        ("custom setting", 1),
        ("transaction", 2),
        ("transaction mode", 1),
        ("savepoints", 1),
        ("temporary table", 1),
        ("temporary tables", 1),
        ("prepared statement", 2),
        ("execution later", 2),
        ("described ahead", 2),
        ("statement closed", 1),
        ("binary parameters", 1),
        ("prepared along the path", 1),
        ("parameters miscounted", 1),
        ("batches", 1),
        ("shape changed", 1),
        ("portal", 1),
        ("portal with a name", 1),
        ("prepared by SQL", 1),
        ("prepared by SQL and kept", 1),
        ("executed by SQL", 2),
        ("executed across", 1),
        ("name given twice", 1),
        ("advisory lock", 1),
        ("advisory locks", 1),
        ("cursor", 1),
        ("cursors", 1),
        ("listen", 1),
        ("unlisten", 1),
        ("role", 1),
        ("sequence", 1),
        ("copy", 1),
        ("several statements", 1),
        ("notices", 1),
        ("routine", 1),
        ("routine undone", 1),
        ("routine left behind", 1),
        ("trigger", 1),
        ("trigger left behind", 1),
        ("reset", 2),
        ("reconnect", 1),
        ("vanish", 1),
        ("session characteristics", 1),
        ("odds and errors", 1),
    ];

    const PENDING: &'static [&'static str] = &[];

    fn create(client: usize) -> Vec<String> {
        let t = table(client);
        let plpgsql = |name: &str, body: &str| {
            format!("CREATE FUNCTION {t}_{name} RETURNS void LANGUAGE plpgsql AS $$ BEGIN {body} END $$")
        };
        let mut all = vec![
            format!("CREATE TABLE {t} (id serial PRIMARY KEY, a int, b text)"),
            format!("CREATE TABLE {t}_more AS SELECT n AS a FROM generate_series(1, 20) n"),
            format!("CREATE TABLE {t}_hidden AS SELECT n AS a FROM generate_series(1, 20) n"),
            format!("CREATE TABLE {t}_shape AS SELECT n AS a FROM generate_series(1, 3) n"),
            format!("CREATE TABLE {t}_triggered (a int)"),
            plpgsql("sets(v text)", "PERFORM set_config('work_mem', v, false);"),
            plpgsql("locks(k int)", "PERFORM pg_advisory_lock(k);"),
            plpgsql("makes()", &format!("CREATE TEMP TABLE {t}_temporary (a int);")),
            plpgsql("listens()", &format!("LISTEN {t};")),
            format!(
                "CREATE PROCEDURE {t}_procedure() LANGUAGE plpgsql AS $$ BEGIN SET work_mem = '7MB'; COMMIT; \
                 PERFORM set_config('datestyle', 'German', false); END $$"
            ),
            format!(
                "CREATE FUNCTION {t}_on_insert() RETURNS trigger LANGUAGE plpgsql AS \
                 $$ BEGIN PERFORM set_config('work_mem', '6MB', false); RETURN NEW; END $$"
            ),
            format!(
                "CREATE TRIGGER {t}_trigger BEFORE INSERT ON {t}_triggered FOR EACH ROW \
                 EXECUTE FUNCTION {t}_on_insert()"
            ),
        ];
        if client == 0 {
            for schema in ["public", "other"] {
                let what = format!("{schema}.which() RETURNS text LANGUAGE sql");
                all.push(format!("CREATE FUNCTION {what} AS $$ SELECT '{schema}' $$"));
            }
        }
        all
    }

    fn renew(client: usize) -> String {
        let t = table(client);
        format!(
            "DELETE FROM {t}; SELECT setval('{t}_id_seq', 1, false); DELETE FROM {t}_triggered; \
             INSERT INTO {t} (a, b) VALUES (1, 'one'), (2, 'two'), (3, NULL); \
             ALTER TABLE {t}_shape ALTER a TYPE int"
        )
    }

    fn produce(production: &str, random: &mut Random, client: usize) -> Vec<Action> {
        let key = client * 10 + random.below(3);
        let mut actions = match production {
            "set variable" => {
                let (name, value) = Self::variable(random);
                let text = match random.below(5) {
                    0 => format!("SET {name} TO {value}"),
                    1 => format!("SET SESSION {name} = {value}"),
                    2 => format!("/* x */ set {name} = {value} -- y"),
                    3 if value != "DEFAULT" && !value.contains(',') => {
                        let value = value.trim_matches('\'');
                        format!("SELECT set_config('{name}', '{value}', false)")
                    }
                    _ => format!("RESET {name}"),
                };
                vec![Action::Query(text), Self::read(random)]
            }
            "set odd value" => {
                let read = random.pick(&[
                    "SELECT current_setting('application_name'), current_setting('search_path')",
                    "SELECT current_setting('work_mem'), current_setting('statement_timeout')",
                    "SELECT current_setting('extra_float_digits'), current_setting('datestyle'), 1/3.0::float8",
                    CUSTOM,
                ]);
                vec![query(random.pick(ODD_VALUES)), query(read)]
            }
            "set time zone" => vec![
                query(random.pick(TIME_ZONES)),
                query("SELECT timestamptz '2020-02-03 04:05:06+00', current_setting('timezone')"),
            ],
            "set local" => {
                let (name, value) = Self::variable(random);
                vec![
                    query("BEGIN"),
                    Action::Query(format!("SET LOCAL {name} = {value}")),
                    Self::read(random),
                    query(random.pick(&["COMMIT", "ROLLBACK"])),
                    Self::read(random),
                ]
            }
            "set undone" => {
                let (name, value) = Self::variable(random);
                vec![
                    query("BEGIN"),
                    query("SAVEPOINT s"),
                    Action::Query(format!("SET {name} = {value}")),
                    query(random.pick(&["ROLLBACK TO s", "RELEASE s", "SELECT nothing FROM nowhere"])),
                    Self::read(random),
                    query(random.pick(&["COMMIT", "ROLLBACK"])),
                    Self::read(random),
                ]
            }
            "set from current" => queries(&[
                "BEGIN",
                random.pick(&["SET LOCAL work_mem = '9MB'", "SET LOCAL timezone = 'Asia/Tokyo'"]),
                random.pick(&["SET work_mem FROM CURRENT", "SET timezone FROM CURRENT"]),
                random.pick(&["COMMIT", "ROLLBACK"]),
                "SELECT current_setting('work_mem'), current_setting('timezone')",
            ]),
            "custom setting" => {
                let text = random.pick(&[
                    "SET app.x = 'one'",
                    "SET app.x TO two",
                    "SELECT set_config('app.x', 'three', false)",
                    "BEGIN; SET LOCAL app.x = 'four'; COMMIT",
                    "BEGIN; SET app.x = 'five'; ROLLBACK",
                    "RESET app.x",
                    "SET app.x TO DEFAULT",
                ]);
                queries(&[text, CUSTOM])
            }
            "transaction" => {
                let mut actions = vec![query(random.pick(&[
                    "BEGIN",
                    "START TRANSACTION READ ONLY",
                    "BEGIN ISOLATION LEVEL SERIALIZABLE",
                ]))];
                for _ in 0..random.below(3) {
                    actions.push(Self::write(random));
                    actions.push(Self::read(random));
                }
                actions.push(query(random.pick(&["COMMIT", "ROLLBACK", "END", "COMMIT AND CHAIN; COMMIT"])));
                actions
            }
            "transaction mode" => vec![
                query(random.pick(&["BEGIN", "SELECT 1"])),
                query(random.pick(&[
                    "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ",
                    "SET TRANSACTION READ ONLY",
                    "SET TRANSACTION READ WRITE, DEFERRABLE",
                    "SET transaction_isolation = 'serializable'",
                    "SET LOCAL transaction_read_only = on",
                ])),
                Self::read(random),
                Self::write(random),
                query(random.pick(&["COMMIT", "ROLLBACK"])),
                Self::read(random),
            ],
            "savepoints" => {
                let mut actions = vec![query("BEGIN")];
                for _ in 0..2 + random.below(5) {
                    let (name, value) = Self::variable(random);
                    actions.push(match random.below(7) {
                        0 | 1 => query(random.pick(&["SAVEPOINT s", "SAVEPOINT u"])),
                        2 => query(random.pick(&["ROLLBACK TO s", "ROLLBACK TO u"])),
                        3 => query(random.pick(&["RELEASE s", "RELEASE u"])),
                        4 => Action::Query(format!("SET {name} = {value}")),
                        5 => Action::Query(format!("SET LOCAL {name} = {value}")),
                        _ => Self::write(random),
                    });
                }
                actions.extend([
                    query(random.pick(&["COMMIT", "ROLLBACK"])),
                    Self::read(random),
                    Self::read(random),
                ]);
                actions
            }
            "temporary table" => {
                let mut actions = queries(&[
                    "CREATE TEMP TABLE {t}_temporary (a int)",
                    "INSERT INTO {t}_temporary VALUES (1), (2)",
                    "SELECT * FROM {t}_temporary",
                ]);
                match random.below(4) {
                    0 => {}
                    1 => actions.push(query("DISCARD TEMP")),
                    _ => actions.push(query("DROP TABLE {t}_temporary")),
                }
                actions
            }
            "temporary tables" => {
                let mut actions = queries(&[
                    random.pick(&[
                        "CREATE TEMP TABLE {t}_temporary (a int)",
                        "SELECT 1 AS a INTO TEMP {t}_temporary",
                    ]),
                    random.pick(&["CREATE TEMP SEQUENCE {t}_two", "CREATE TEMP VIEW {t}_two AS SELECT 2"]),
                    // What is prepared reads no such table: docs/session.md.
                    "CREATE TEMP TABLE {t}_hidden AS SELECT 7 AS a",
                    "DROP TABLE {t}_temporary",
                    "SELECT count(*) FROM {t}_hidden",
                ]);
                if !random.once_in(3) {
                    actions.extend(queries(&["DROP TABLE {t}_hidden", "DROP SEQUENCE IF EXISTS {t}_two"]));
                }
                actions.push(query("SELECT count(*) FROM {t}_hidden"));
                actions
            }
            "prepared statement" => {
                let name = random.pick(&["", "s1", "s2"]);
                let text = random.pick(&[
                    "SELECT * FROM public.{t} WHERE id > $1::int ORDER BY id",
                    "INSERT INTO public.{t} (a) VALUES ($1::int)",
                    "SELECT current_setting('work_mem'), $1::text",
                    "SELECT nothing FROM nowhere WHERE a = $1",
                ]);
                let parts = vec![
                    Part::Close(name.to_owned()),
                    Part::Parse(name.to_owned(), text.to_owned()),
                    Part::Describe(name.to_owned()),
                    bind(name, &[random.below(9)]),
                    execute(0),
                ];
                vec![Action::Extended(parts)]
            }
            "execution later" => {
                let name = random.pick(&["s1", "s2"]);
                vec![Action::Extended(vec![bind(name, &[random.below(9)]), execute(0)])]
            }
            "described ahead" => {
                let name = "ahead";
                let text = random.pick(&[
                    "SELECT * FROM public.{t} WHERE id > $1::int ORDER BY id",
                    "SELECT *, $1::text FROM {t}_hidden ORDER BY 1 LIMIT 3",
                    "SELECT {t}_shape.*, $1::int8 FROM {t}_shape ORDER BY 1",
                    "SELECT a AS \"ž\", $1::int FROM public.{t}_more ORDER BY 1 LIMIT 1",
                    "DELETE FROM public.{t} WHERE a = $1",
                    "COMMIT",
                ]);
                let describe = vec![
                    Part::Close(name.to_owned()),
                    Part::Parse(name.to_owned(), text.to_owned()),
                    Part::Describe(name.to_owned()),
                ];
                let run = Action::Extended(vec![bind(name, &[random.below(9)]), execute(0)]);
                let (describe, end) = (Action::Extended(describe), query("ROLLBACK"));
                let kind = random.below(6);
                let between = match kind {
                    0 => query("BEGIN"),
                    // Whether what was prepared before reads the new table is a matter of older ones.
                    1 => query("CREATE TEMP TABLE {t}_hidden AS SELECT 7::bigint AS a"),
                    2 => query("BEGIN; ALTER TABLE {t}_shape ADD b text"),
                    3 => describe.clone(),
                    _ => Self::read(random),
                };
                let mut actions = vec![describe.clone(), between, run.clone(), describe, run, end];
                if kind == 1 {
                    actions.remove(2);
                }
                actions
            }
            "statement closed" => {
                let name = random.pick(&["s1", "s2"]).to_owned();
                vec![Action::Extended(vec![Part::Close(name)])]
            }
            "binary parameters" => {
                let text = random.pick(&[
                    "SELECT $1::int4 + 1, $2::int4, current_setting('work_mem')",
                    "SELECT $1::float4, $2::int4 FROM public.{t}_more ORDER BY a LIMIT 2",
                    "INSERT INTO public.{t} (a) SELECT $1::int4 + $2::int4 RETURNING a",
                ]);
                let bind = Part::BindBinary("binary".to_owned(), vec![7, -1]);
                let parse = vec![
                    Part::Close("binary".to_owned()),
                    Part::Parse("binary".to_owned(), text.to_owned()),
                    bind.clone(),
                    execute(0),
                ];
                vec![Action::Extended(parse), Self::read(random), Action::Extended(vec![bind, execute(0)])]
            }
            "prepared along the path" => vec![
                query(random.pick(&["SET search_path = other", "SET search_path = public"])),
                Action::Extended(vec![
                    Part::Close("s2".to_owned()),
                    Part::Parse("s2".to_owned(), "SELECT count(*) FROM {t}_more".to_owned()),
                    Part::Describe("s2".to_owned()),
                    bind("s2", &[]),
                    execute(0),
                ]),
                query("SET search_path TO DEFAULT"),
                Action::Extended(vec![bind("s2", &[]), execute(0)]),
            ],
            "parameters miscounted" => vec![Action::Extended(vec![
                Part::Close("s2".to_owned()),
                Part::Parse("s2".to_owned(), "SELECT $1::int".to_owned()),
                bind("s2", &[1, 2]),
            ])],
            "batches" => {
                let mut parts = Vec::new();
                for _ in 0..2 + random.below(3) {
                    let text = random.pick(&[
                        "SELECT current_setting('work_mem')",
                        "SELECT 1/0",
                        "INSERT INTO public.{t} (a) VALUES (4)",
                        "INSERT INTO public.{t} (id) VALUES (1)",
                        "BEGIN",
                        "SET LOCAL work_mem = '3MB'",
                        "SELECT nothing FROM nowhere",
                    ]);
                    parts.extend([Part::Parse(String::new(), text.to_owned()), bind("", &[]), execute(0)]);
                    if random.once_in(2) {
                        parts.push(Part::Sync);
                    }
                }
                vec![Action::Extended(parts), query("ROLLBACK"), Self::read(random)]
            }
            "shape changed" => {
                let run = Action::Extended(vec![bind("shape", &[]), execute(0)]);
                vec![
                    Action::Extended(vec![
                        Part::Close("shape".to_owned()),
                        Part::Parse(
                            "shape".to_owned(),
                            "SELECT * FROM public.{t}_shape ORDER BY a".to_owned(),
                        ),
                        Part::Describe("shape".to_owned()),
                    ]),
                    run.clone(),
                    query(random.pick(&[
                        "ALTER TABLE {t}_shape ALTER a TYPE bigint",
                        "ALTER TABLE {t}_shape ALTER a TYPE int",
                    ])),
                    run,
                    Action::Extended(vec![Part::Close("shape".to_owned())]),
                ]
            }
            "portal" => {
                let parts = vec![
                    Part::Parse(String::new(), "SELECT a FROM public.{t}_more ORDER BY a".to_owned()),
                    bind("", &[]),
                    execute(3),
                    execute(2),
                ];
                vec![Action::Extended(parts)]
            }
            "portal with a name" => {
                let parts = vec![
                    Part::Parse(String::new(), "SELECT a FROM public.{t}_more ORDER BY a".to_owned()),
                    Part::Bind("portal".to_owned(), String::new(), Vec::new()),
                    Part::Execute("portal".to_owned(), 3),
                ];
                vec![
                    query("BEGIN"),
                    Action::Extended(parts),
                    Action::Extended(vec![Part::Execute("portal".to_owned(), 2)]),
                    query("FETCH 2 FROM portal"),
                    query(random.pick(&["COMMIT", "ROLLBACK"])),
                    Action::Extended(vec![Part::Execute("portal".to_owned(), 2)]),
                ]
            }
            "prepared by SQL" => queries(&[
                "PREPARE p(int) AS SELECT $1 + 1",
                "EXECUTE p(41)",
                random.pick(&["DEALLOCATE p", "DEALLOCATE ALL", "SELECT 1"]),
                "EXECUTE p(1)",
            ]),
            "prepared by SQL and kept" => queries(&[random.pick(&[
                "PREPARE p1(int) AS SELECT $1 + 1",
                "PREPARE p1 AS SELECT current_setting('work_mem'), $1::text",
                "PREPARE p2(int) AS INSERT INTO {t} (a) VALUES ($1) RETURNING a",
                "PREPARE p2 (int) AS SELECT a FROM {t}_more WHERE a < $1 ORDER BY a",
                "PREPARE \"P 3\"(int) AS SELECT 'it''s', $1, which()",
                "PREPARE p1(int) AS SELECT nothing FROM nowhere",
                "BEGIN; PREPARE p1(int) AS SELECT $1 + 2; ROLLBACK",
            ])]),
            "executed by SQL" => {
                let text = random.pick(&[
                    "EXECUTE p1(1)",
                    "EXECUTE p2(3)",
                    "EXECUTE \"P 3\"(1 + 2)",
                    "EXPLAIN (COSTS OFF) EXECUTE p2(3)",
                    "CREATE TEMP TABLE {t}_temporary ON COMMIT DROP AS EXECUTE p1(2)",
                    "DEALLOCATE p1",
                    "DEALLOCATE PREPARE p2",
                    "DEALLOCATE ALL",
                    "EXECUTE p1",
                    "EXECUTE p2('x')",
                    "BEGIN; EXECUTE p1(5); COMMIT",
                ]);
                queries(&[text])
            }
            "executed across" => {
                let parts = |name: &str| vec![bind(name, &[3]), execute(0)];
                vec![
                    query("PREPARE p1(int) AS SELECT $1 + 1"),
                    match random.below(4) {
                        0 => Action::Extended(parts("p1")),
                        1 => Action::Extended(vec![Part::Describe("p1".to_owned())]),
                        2 => query("EXECUTE s1(3)"),
                        _ => query("DEALLOCATE s1"),
                    },
                    query("DEALLOCATE ALL"),
                    Action::Extended(parts("p1")),
                ]
            }
            "name given twice" => {
                let name = random.pick(&["p1", "s1"]);
                let by_sql = Action::Query(format!("PREPARE {name} AS SELECT 1 WHERE $1::int > 0"));
                let parse = Part::Parse(name.to_owned(), "SELECT 2 WHERE $1::int > 0".to_owned());
                let by_protocol = Action::Extended(vec![parse, bind(name, &[3]), execute(0)]);
                let mut actions = match random.below(3) {
                    0 => vec![by_sql, by_protocol],
                    1 => vec![by_protocol, by_sql],
                    _ => vec![by_sql.clone(), by_protocol.clone(), by_sql, by_protocol],
                };
                actions.push(Self::read(random));
                actions.push(Action::Extended(vec![bind(name, &[3]), execute(0)]));
                if !random.once_in(4) {
                    actions.push(query(random.pick(&["DEALLOCATE p1", "DEALLOCATE s1", "DEALLOCATE ALL"])));
                }
                actions
            }
            "advisory lock" => vec![
                Action::Query(format!("SELECT pg_advisory_lock({key})")),
                Self::read(random),
                match random.below(3) {
                    0 => Action::Query(format!("SELECT pg_advisory_unlock({key})")),
                    1 => query("SELECT pg_advisory_unlock_all()"),
                    _ => query("SELECT 1"),
                },
                Self::read(random),
            ],
            "advisory locks" => {
                let count =
                    "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()";
                let lock =
                    random.pick(&["pg_advisory_lock", "pg_try_advisory_lock", "pg_advisory_lock_shared"]);
                let unlock = match lock {
                    "pg_advisory_lock_shared" => "pg_advisory_unlock_shared",
                    _ => "pg_advisory_unlock",
                };
                let one = format!("{unlock}({key})");
                vec![
                    Action::Query(format!("SELECT {lock}({key}), {lock}({key}, 1)")),
                    Action::Query(format!("SELECT {lock}({key})")),
                    query(count),
                    Action::Query(format!("SELECT {one}")),
                    Action::Query(format!("SELECT {one}, {unlock}({key}, 1)")),
                    query(count),
                    Action::Query(format!("SELECT {one}")),
                ]
            }
            "cursor" => queries(&[
                "BEGIN",
                random.pick(&[
                    "DECLARE c CURSOR FOR SELECT a FROM {t}_more ORDER BY a",
                    "DECLARE c CURSOR WITH HOLD FOR SELECT a FROM {t}_more ORDER BY a",
                ]),
                "FETCH 2 FROM c",
                random.pick(&["COMMIT", "ROLLBACK"]),
                "FETCH 2 FROM c",
                random.pick(&["CLOSE c", "CLOSE ALL", "SELECT 1"]),
            ]),
            "cursors" => queries(&[
                "DECLARE c1 CURSOR WITH HOLD FOR SELECT a FROM {t}_more ORDER BY a",
                "DECLARE \"C 2\" SCROLL CURSOR WITH HOLD FOR SELECT 1",
                random.pick(&["FETCH 2 FROM c1", "MOVE 3 IN c1", "SELECT 1"]),
                random.pick(&["CLOSE c1", "CLOSE \"C 2\""]),
                "FETCH 2 FROM c1",
                "SELECT name FROM pg_cursors WHERE name <> '' ORDER BY name",
                random.pick(&["CLOSE c1", "CLOSE \"C 2\""]),
                random.pick(&["CLOSE ALL", "SELECT 1"]),
            ]),
            "listen" => vec![
                query("LISTEN {t}"),
                query("NOTIFY {t}, 'hello'"),
                query(random.pick(&["UNLISTEN {t}", "UNLISTEN *", "SELECT 1", "BEGIN"])),
                query("SELECT count(*) FROM pg_listening_channels()"),
                query(random.pick(&["COMMIT", "UNLISTEN {t}; COMMIT", "ROLLBACK"])),
                Self::read(random),
            ],
            "unlisten" => {
                let mut actions = queries(&[
                    "LISTEN {t}_a",
                    random.pick(&["LISTEN {t}_b", "BEGIN; LISTEN {t}_b; ROLLBACK"]),
                    "UNLISTEN {t}_a",
                    "SELECT * FROM pg_listening_channels() c WHERE c LIKE '%_a' OR c LIKE '%_b'",
                    "NOTIFY {t}_b, 'b'",
                    "NOTIFY {t}_a, 'a'",
                ]);
                if !random.once_in(4) {
                    actions.push(query("UNLISTEN {t}_b"));
                }
                actions
            }
            "role" => {
                let mut actions = vec![
                    query(random.pick(&[
                        "SET ROLE app",
                        "SET ROLE app2",
                        "SET LOCAL ROLE app2",
                        "SET SESSION AUTHORIZATION app",
                        "SET ROLE NONE",
                        "RESET ROLE",
                        "SET ROLE nobody",
                        "SELECT set_config('role', 'app2', false)",
                    ])),
                    query("SELECT current_user, session_user"),
                    Self::write(random),
                ];
                if !random.once_in(4) {
                    let back = random.pick(&[
                        "RESET ROLE",
                        "SET ROLE NONE",
                        "RESET SESSION AUTHORIZATION; RESET ROLE",
                    ]);
                    actions.push(query(back));
                }
                actions
            }
            "sequence" => {
                queries(&["INSERT INTO {t} (a) VALUES (0)", "SELECT lastval(), currval('{t}_id_seq')"])
            }
            "copy" => match random.below(4) {
                0 => vec![query("COPY {t}_more TO STDOUT")],
                1 => vec![Action::Copy("COPY {t} (a) FROM STDIN".to_owned(), None)],
                _ => vec![Action::Copy(
                    "COPY {t} (a) FROM STDIN".to_owned(),
                    Some(random.pick(&["5\n6\n", "", "oops\n", "7\n\\.\n"]).to_owned()),
                )],
            },
            "several statements" => {
                let text = random.pick(&[
                    "SELECT 1; SELECT 2",
                    "SET work_mem = '3MB'; SELECT nothing FROM nowhere",
                    "SET work_mem = '3MB'; SET datestyle = 'German'",
                    "INSERT INTO {t} (a) VALUES (1); INSERT INTO {t} (id) VALUES (1)",
                    "BEGIN; SET work_mem = '5MB'; ROLLBACK",
                    "BEGIN; SET work_mem = '5MB'; COMMIT; SELECT 1/0",
                    "SET timezone = 'UTC'; SELECT 1/0; SET timezone = 'Asia/Tokyo'",
                    "RESET ALL; SET work_mem = '6MB'",
                    "SELECT setseed(0.3); SELECT random()",
                    "CREATE TEMP TABLE {t}_temporary (a int); DROP TABLE {t}_temporary",
                ]);
                vec![query(text), Self::read(random)]
            }
            "notices" => queries(&[random.pick(&[
                "DO $$ BEGIN RAISE NOTICE 'well'; RAISE WARNING 'hm'; END $$",
                "DROP TABLE IF EXISTS nowhere",
                "COMMIT",
                "DO $$ BEGIN RAISE 'no' USING ERRCODE = 'P1234', HINT = 'none'; END $$",
            ])]),
            "routine" => vec![
                query(random.pick(&[
                    "SELECT {t}_sets('9MB')",
                    "CALL {t}_procedure()",
                    "DO $$ BEGIN PERFORM set_config('work_mem', '4MB', false); END $$",
                    "SELECT {t}_makes()",
                    "SELECT {t}_listens()",
                    "SELECT {t}_locks({key})",
                ])),
                Self::read(random),
                Self::read(random),
            ],
            "routine undone" => vec![
                query("BEGIN"),
                query(random.pick(&[
                    "SELECT {t}_sets('9MB')",
                    "DO $$ BEGIN PERFORM set_config('work_mem', '4MB', false); END $$",
                    "SELECT {t}_makes()",
                    "SELECT {t}_listens()",
                    "SELECT pg_advisory_xact_lock({key})",
                    "SET LOCAL search_path = other; SELECT which()",
                ])),
                Self::read(random),
                query("ROLLBACK"),
                Self::read(random),
            ],
            "routine left behind" => vec![
                query(random.pick(&[
                    "SELECT {t}_sets('9MB')",
                    "CALL {t}_procedure()",
                    "DO $$ BEGIN PERFORM set_config('work_mem', '4MB', false); END $$",
                    "SELECT {t}_makes()",
                    "SELECT {t}_listens()",
                    "SELECT {t}_locks({key})",
                ])),
                Action::Reconnect,
                Self::read(random),
            ],
            "trigger" => queries(&["INSERT INTO {t}_triggered VALUES (1)", "SHOW work_mem"]),
            "trigger left behind" => {
                vec![query("INSERT INTO {t}_triggered VALUES (1)"), Action::Reconnect, query("SHOW work_mem")]
            }
            "reset" => {
                let text = random.pick(&[
                    "DISCARD ALL",
                    "DISCARD ALL",
                    "RESET ALL",
                    "DISCARD SEQUENCES",
                    "DISCARD PLANS",
                    "DISCARD TEMP",
                    "RESET SESSION AUTHORIZATION",
                    "SELECT pg_advisory_unlock_all(); CLOSE ALL; UNLISTEN *; RESET ALL;",
                    "CLOSE ALL; UNLISTEN *; DEALLOCATE ALL; DISCARD TEMP",
                ]);
                vec![query(text), Self::read(random)]
            }
            "reconnect" => vec![Action::Reconnect, Self::read(random)],
            "vanish" => {
                let (first, last) = (client * 10, client * 10 + 9);
                let held = format!(
                    "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' \
                     AND (CASE classid::int8 WHEN 0 THEN objid ELSE classid END)::int8 BETWEEN {first} AND {last}"
                );
                vec![Action::Vanish(held), Self::read(random)]
            }
            "session characteristics" => vec![
                query(random.pick(&[
                    "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL REPEATABLE READ",
                    "SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE",
                    "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY, ISOLATION LEVEL SERIALIZABLE",
                ])),
                Self::read(random),
            ],
            "odds and errors" => {
                let text = random.pick(&[
                    "SELEC 1",
                    "SELECT * FROM nowhere",
                    "SELECT 1/0",
                    "SET no_such_variable = 1",
                    "SELECT",
                    "",
                    ";",
                    "PREPARE TRANSACTION 'x'",
                    "LOCK TABLE {t}",
                    "SAVEPOINT outside",
                    "FETCH 1 FROM nowhere",
                    "LOAD 'no/such/library'",
                    "VACUUM {t}_shape",
                ]);
                vec![query(text), Self::read(random)]
            }
            other => unreachable!("{other} is not in the list"),
        };
        let t = table(client);
        let fill = |text: &mut String| *text = text.replace("{t}", &t).replace("{key}", &key.to_string());
        for action in &mut actions {
            match action {
                Action::Query(text) | Action::Copy(text, _) => fill(text),
                Action::Extended(parts) => {
                    for part in parts {
                        if let Part::Parse(_, text) = part {
                            fill(text);
                        }
                    }
                }
                Action::Reconnect | Action::Vanish(_) => {}
            }
        }
        actions
    }

    fn identity() -> Action {
        query("SELECT pg_backend_pid()")
    }

    async fn connect(address: &Address) -> RawClient {
        RawClient::connect(address).await
    }

    async fn run(client: &mut RawClient, address: &Address, action: &Action) -> String {
        match action {
            Action::Query(text) => lines(&client.query(text).await, 1),
            Action::Copy(text, data) => {
                client.send_bytes(&wire::query(text)).await;
                let mut messages = Vec::new();
                loop {
                    let Some(message) = client.read().await else { break };
                    let tag = message.tag;
                    messages.push(message);
                    match (tag, data) {
                        (b'G', Some(data)) => {
                            client.send_all(&[wire::copy_data(data.as_bytes()), wire::copy_done()]).await;
                        }
                        (b'G', None) => client.send_bytes(&wire::copy_fail("no more")).await,
                        (b'Z', _) => break,
                        _ => {}
                    }
                }
                lines(&messages, 1)
            }
            Action::Extended(parts) => {
                let mut bytes: Vec<u8> = parts.iter().flat_map(message).collect();
                bytes.extend(wire::sync());
                client.send_bytes(&bytes).await;
                let batches = 1 + parts.iter().filter(|part| matches!(part, Part::Sync)).count();
                let mut messages = Vec::new();
                for _ in 0..batches {
                    messages.extend(client.read_reply().await);
                }
                lines(&messages, batches)
            }
            Action::Reconnect => {
                client.send_bytes(&wire::terminate()).await;
                let last_words = client.expect_closed().await;
                *client = Self::connect(address).await;
                match last_words.is_empty() {
                    true => String::new(),
                    false => lines(&last_words, 0),
                }
            }
            Action::Vanish(held) => {
                *client = Self::connect(address).await;
                crate::until("the locks of who has vanished are free", async || {
                    let reply = client.query(held).await;
                    // None where the connection has died of a fault.
                    let row = reply.iter().find(|message| message.tag == b'D');
                    row.is_none_or(|row| row.columns()[0].as_deref() == Some("0"))
                })
                .await;
                Self::leave(std::mem::replace(client, Self::connect(address).await)).await;
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
        if forgotten && !direct.contains("55000") {
            return true;
        }
        // A setting of one's own that was taken back is empty where it was made, and not there elsewhere.
        let (null, empty) = (r"D \x00\x01\xff\xff\xff\xff", r"D \x00\x01\x00\x00\x00\x00");
        if direct.contains("T custom ") && through.contains("T custom ") {
            let same = |text: &str| text.replace(&format!("{null:?}"), &format!("{empty:?}"));
            return same(direct) == same(through);
        }
        // Statements survive what gives their results other columns.
        direct.contains("0A000 cached plan must not change result type") && !through.contains("\"E ")
    }

    fn is_loss(reply: &str) -> bool {
        // The server's own last word where there is one, else Pinion's.
        let words = [
            r#""E FATAL 08006 The connection to the database server was lost.""#,
            r#""E FATAL 57P01 terminating connection due to administrator command""#,
        ];
        // Alone where it crosses a goodbye.
        words.iter().any(|words| {
            (reply.contains(words) && reply.ends_with("\"closed\"]")) || reply == format!("[{words}]")
        })
    }

    async fn kill(setter: &mut RawClient, number: u64) -> bool {
        let others = "FROM pg_stat_activity WHERE usename = 'app' AND pid <> pg_backend_pid()";
        let count: u64 = setter.scalar(&format!("SELECT count(*) {others}")).await.parse().unwrap_or(0);
        if count == 0 {
            return false;
        }
        let one = format!("SELECT pid {others} ORDER BY pid OFFSET {} LIMIT 1", number % count);
        let killed = setter.query(&format!("SELECT pg_terminate_backend(pid) FROM ({one}) one")).await;
        killed.iter().any(|message| message.tag == b'D' && message.columns()[0].as_deref() == Some("t"))
    }

    async fn is_quiet(setter: &mut RawClient) -> bool {
        let busy = "SELECT count(*) FROM pg_stat_activity \
                    WHERE usename = 'app' AND pid <> pg_backend_pid() AND state <> 'idle'";
        setter.scalar(busy).await == "0"
    }
}

fn table(client: usize) -> String {
    format!("twin{client}")
}

fn message(part: &Part) -> Vec<u8> {
    match part {
        Part::Parse(name, text) => wire::parse(name, text),
        Part::Bind(portal, name, parameters) => {
            let parameters: Vec<&str> = parameters.iter().map(String::as_str).collect();
            wire::bind(portal, name, &parameters)
        }
        Part::BindBinary(name, parameters) => {
            let count = u16::try_from(parameters.len()).expect("few").to_be_bytes();
            // Portal, statement, one format for all: binary.
            let mut body = [b"\0", name.as_bytes(), b"\0\0\x01\0\x01", &count].concat();
            for parameter in parameters {
                body.extend(4_i32.to_be_bytes());
                body.extend(parameter.to_be_bytes());
            }
            body.extend(b"\0\x01\0\x01");
            wire::message(b'B', &body)
        }
        Part::Describe(name) => wire::describe_statement(name),
        Part::Execute(portal, rows) => wire::execute(portal, *rows),
        Part::Close(name) => wire::close_statement(name),
        Part::Sync => wire::sync(),
    }
}

/// Without what servers report of themselves, and with numbers of processes and tables struck out. Told if the
/// connection closes before so many batches have been answered.
fn lines(messages: &[Message], batches: usize) -> String {
    let mut lines: Vec<String> = messages
        .iter()
        .filter(|message| message.tag != b'S')
        .map(|message| match message.tag {
            // A notification begins with the process that sent it, a row's description tells the table's number.
            b'A' => format!("A {}", message.body[4..].escape_ascii()),
            b'T' => format!("T {}", description(&message.body)),
            _ => format!("{message:?}"),
        })
        .collect();
    if messages.iter().filter(|message| message.tag == b'Z').count() < batches {
        lines.push("closed".to_owned());
    }
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
