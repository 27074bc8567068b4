//! Records who ran what, where, and how it ended, in the host's audit sink.
//!
//! The configuration and the records are described in the plugin's README.

mod time;

use std::time::Duration;

use pinion_plugin::{
    Completion, Decision, Event, Needs, Patterns, Plugin, Query, SessionEvent, StatementKind, Subscription,
    audit::{self, AuditError},
    log,
    metrics::{self, Counter},
};

/// The plugin's configuration; all of it has defaults.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// What is recorded of a statement's text.
    pub text: Text,
    /// Where a full text is cut, in bytes.
    pub max_text_bytes: usize,
    /// Whether logins and their ends are recorded.
    pub sessions: bool,
    /// Only these database users.
    pub users: Patterns,
    /// But not these.
    pub except_users: Patterns,
    /// Only these databases.
    pub databases: Patterns,
    /// Only statements that name one of these tables.
    pub tables: Patterns,
    /// Only statements of these kinds.
    pub kinds: Vec<StatementKind>,
    /// Only statements that took this long.
    #[serde(deserialize_with = "pinion_plugin::duration::deserialize")]
    pub slower_than: Duration,
    /// The part of statements that is recorded, from 0 to 1.
    pub sample: f64,
    /// Whether the part is drawn by sessions, all of whose statements are then recorded, or by statements.
    pub sample_by: SampleBy,
    /// Whether statements that failed, or that a plugin rejected, are recorded in any case: neither `sample` nor
    /// `slower_than` leaves them out.
    pub errors_always: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            text: Text::Normalised,
            max_text_bytes: 8192,
            sessions: true,
            users: Patterns::default(),
            except_users: Patterns::default(),
            databases: Patterns::default(),
            tables: Patterns::default(),
            kinds: Vec::new(),
            slower_than: Duration::ZERO,
            sample: 1.0,
            sample_by: SampleBy::Session,
            errors_always: true,
        }
    }
}

/// What is recorded of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Text {
    /// Nothing.
    None,
    /// The text without its literals, which may be anybody's secret.
    Normalised,
    /// The text as the client sent it.
    Full,
}

/// By what a sample is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SampleBy {
    /// By sessions.
    Session,
    /// By statements.
    Statement,
}

/// One record. What is empty or does not apply is left out.
#[derive(Debug, serde::Serialize)]
struct Record<'a> {
    event: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    at: Option<String>,
    #[serde(flatten)]
    who: Option<Who<'a>>,
    #[serde(flatten)]
    what: Option<What<'a>>,
    #[serde(skip_serializing_if = "str::is_empty")]
    reason: &'a str,
    /// For `lost`: how many events.
    #[serde(skip_serializing_if = "Option::is_none")]
    count: Option<u64>,
    /// For an event that this version has no name for.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    words: &'a [(String, String)],
}

#[derive(Debug, serde::Serialize)]
struct Who<'a> {
    session: u64,
    user: &'a str,
    database: &'a str,
    application: &'a str,
    client: &'a str,
    endpoint: &'a str,
}

#[derive(Debug, serde::Serialize)]
struct What<'a> {
    kind: StatementKind,
    digest: String,
    #[serde(skip_serializing_if = "str::is_empty")]
    text: &'a str,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    text_cut: bool,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    tables: &'a [String],
    #[serde(skip_serializing_if = "str::is_empty")]
    target: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    role: &'a str,
    duration_us: u64,
    database_us: u64,
    rows: u64,
    #[serde(skip_serializing_if = "str::is_empty")]
    error: &'a str,
    pinned: bool,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    decisions: &'a [Decision],
}

impl<'a> Record<'a> {
    const fn new(event: &'static str) -> Self {
        Self { event, at: None, who: None, what: None, reason: "", count: None, words: &[] }
    }

    fn session(event: &'static str, of: &'a SessionEvent) -> Self {
        let who = Who {
            session: of.session,
            user: of.user(),
            database: of.database(),
            application: of.application(),
            client: of.client(),
            endpoint: of.endpoint(),
        };
        Self { at: Some(time::rfc3339(of.at_ms)), who: Some(who), reason: &of.reason, ..Self::new(event) }
    }

    fn statement(of: &'a Completion, text: Text, max_text_bytes: usize) -> Self {
        let query = &of.query;
        let who = Who {
            session: query.session(),
            user: query.user(),
            database: query.database(),
            application: query.application(),
            client: query.client(),
            endpoint: query.endpoint(),
        };
        let whole = match text {
            Text::None => "",
            Text::Normalised => query.normalised(),
            Text::Full if tells_a_password(query.text()) => query.normalised(),
            Text::Full => query.text(),
        };
        let text = &whole[..whole.floor_char_boundary(max_text_bytes)];
        let microseconds = |duration: Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let what = What {
            kind: query.kind(),
            digest: format!("{:032x}", query.digest()),
            text,
            text_cut: text.len() < whole.len(),
            tables: query.tables(),
            target: of.target(),
            role: if of.target().is_empty() { "" } else { of.role.as_str() },
            duration_us: microseconds(of.duration),
            database_us: microseconds(of.in_database),
            rows: of.rows,
            error: &of.error,
            pinned: of.pinned,
            decisions: &of.decisions,
        };
        Self { at: Some(time::rfc3339(of.at_ms)), who: Some(who), what: Some(what), ..Self::new("statement") }
    }
}

/// `CREATE ROLE … PASSWORD '…'`, MySQL's `CREATE USER … IDENTIFIED BY '…'` and the like: even who asked for full texts
/// did not ask for these.
fn tells_a_password(text: &str) -> bool {
    let has =
        |wanted: &[u8]| text.as_bytes().windows(wanted.len()).any(|word| word.eq_ignore_ascii_case(wanted));
    has(b"password") || has(b"identified")
}

/// The plugin. One instance is told of everything, so its fields may count.
#[derive(Debug)]
pub struct Audit {
    config: Config,
    statements: u64,
    failures: Counter,
}

impl Plugin for Audit {
    type Config = Config;

    fn new(config: Config) -> Result<Self, String> {
        if !(0.0..=1.0).contains(&config.sample) {
            return Err(format!("config.sample: {} is not between 0 and 1", config.sample));
        }
        if config.max_text_bytes > 32_768 {
            return Err("config.max_text_bytes: at most 32768, since a record has room for 64 KiB".to_owned());
        }
        let failures = metrics::counter("records_failed_total", "Records that the sink did not take.", &[]);
        // The host counts what it drops, so the grant is not insisted on.
        Ok(Self { config, statements: 0, failures: failures.unwrap_or_default() })
    }

    fn subscriptions(&self) -> Vec<Subscription> {
        let config = &self.config;
        let subscription = Subscription::on_events()
            .users(config.users.as_names())
            .databases(config.databases.as_names())
            .kinds(config.kinds.iter().copied());
        vec![subscription]
    }

    fn needs(&self) -> Needs {
        let text = match self.config.text {
            Text::None => Needs::NONE,
            Text::Normalised => Needs::NORMALISED,
            // In place of a text that tells a password.
            Text::Full => Needs::TEXT | Needs::NORMALISED,
        };
        text | Needs::TABLES
    }

    fn on_events(&mut self, events: &[Event]) {
        for event in events {
            match event {
                Event::SessionStart(session) => self.session("session-start", session),
                Event::SessionEnd(session) => self.session("session-end", session),
                Event::Completion(completion) => {
                    if self.wants(completion) {
                        self.statement(completion);
                    }
                }
                // Nobody may filter or sample these away: they say what is not here.
                Event::Lost(count) => {
                    self.append(&Record { count: Some(*count), ..Record::new("lost") });
                }
                Event::Other(words) => {
                    self.append(&Record { words, ..Record::new("other") });
                }
            }
        }
    }

    fn self_test() -> &'static str {
        include_str!("../vectors.toml")
    }
}

impl Audit {
    fn session(&self, event: &'static str, session: &SessionEvent) {
        if self.config.sessions && self.concerns(session.user(), session.database()) {
            self.append(&Record::session(event, session));
        }
    }

    fn statement(&self, completion: &Completion) {
        let Config { text, max_text_bytes, .. } = self.config;
        match audit::append(&Record::statement(completion, text, max_text_bytes)) {
            Ok(_) => {}
            // Escaped, a text of control characters is six times as long; the record is worth more than its text.
            Err(AuditError::Malformed) if text != Text::None => {
                self.append(&Record::statement(completion, Text::None, 0));
            }
            Err(error) => self.lost("statement", &error),
        }
    }

    fn concerns(&self, user: &str, database: &str) -> bool {
        let config = &self.config;
        config.users.allow(user) && !config.except_users.match_any(user) && config.databases.allow(database)
    }

    fn wants(&mut self, completion: &Completion) -> bool {
        let (config, query) = (&self.config, &completion.query);
        let named = |name: &String| config.tables.match_any(name);
        if !self.concerns(query.user(), query.database())
            || !(config.kinds.is_empty() || config.kinds.contains(&query.kind()))
            || !(config.tables.is_empty() || query.tables().iter().any(named))
        {
            return false;
        }
        if config.errors_always && went_wrong(completion) {
            return true;
        }
        completion.duration >= config.slower_than && self.draws(query)
    }

    /// Whether a statement is in the sample.
    fn draws(&mut self, query: &Query) -> bool {
        self.statements = self.statements.wrapping_add(1);
        let ticket = match self.config.sample_by {
            SampleBy::Session => mix(query.session()),
            SampleBy::Statement => mix(query.session() ^ self.statements.rotate_left(32)),
        };
        // The upper 53 bits are what a float can tell apart; they make a number below 1.
        let ticket = (ticket >> 11) as f64 / (1_u64 << 53) as f64;
        ticket < self.config.sample
    }

    fn append(&self, record: &Record<'_>) {
        if let Err(error) = audit::append(record) {
            self.lost(record.event, &error);
        }
    }

    fn lost(&self, event: &str, error: &AuditError) {
        self.failures.increment();
        log::error!("a record of a {event} is lost: {error}");
    }
}

fn went_wrong(completion: &Completion) -> bool {
    let stopped = |decision: &Decision| matches!(&*decision.verdict, "reject" | "failed");
    !completion.error.is_empty() || completion.decisions.iter().any(stopped)
}

/// Spreads numbers that rise by one over all 64 bits (the finaliser of SplitMix64), so that a sample of sessions is no
/// matter of when they came.
fn mix(mut number: u64) -> u64 {
    number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

pinion_plugin::export!(Audit);

#[cfg(test)]
mod tests {
    use pinion_plugin::{
        Dialect, Role,
        serde_json::{Value, json},
        testing::{self, Setup, Statement, Tested},
    };

    use super::*;

    fn start(config: &str) -> Tested<Audit> {
        testing::start_toml(config).unwrap()
    }

    fn read() -> Statement {
        let text = "SELECT * FROM orders WHERE email = 'a@b.c'";
        Statement::select(text).normalised("SELECT * FROM orders WHERE email = $1").table("orders")
    }

    fn texts(plugin: &Tested<Audit>) -> Vec<Value> {
        plugin.audit().iter().map(|record| record["text"].clone()).collect()
    }

    #[test]
    fn a_statement_is_recorded_with_who_what_where_and_how() {
        let mut plugin = start("");
        let rejected = Statement::write("DELETE FROM orders").session(9).user("bob").completed();
        plugin.on_events([
            read()
                .completed()
                .took(Duration::from_millis(3))
                .rows(7)
                .on_target("db2:5432", Role::ReadOnly)
                .event(),
            rejected
                .on_target("", Role::Unknown)
                .error("42501")
                .decided("guard", "on-query", "reject")
                .event(),
        ]);
        let mut records = plugin.audit();
        for record in &mut records {
            let digest = record.as_object_mut().unwrap().remove("digest").unwrap();
            assert_eq!(digest.as_str().unwrap().len(), 32);
        }
        assert_eq!(
            records,
            [
                json!({
                    "event": "statement", "at": "2025-01-01T00:00:00.000Z",
                    "session": 1, "user": "app", "database": "app", "application": "test", "client": "127.0.0.1",
                    "endpoint": "default", "kind": "select", "text": "SELECT * FROM orders WHERE email = $1",
                    "tables": ["orders"], "target": "db2:5432", "role": "read-only",
                    "duration_us": 3000, "database_us": 3000, "rows": 7, "pinned": false,
                }),
                json!({
                    "event": "statement", "at": "2025-01-01T00:00:00.000Z",
                    "session": 9, "user": "bob", "database": "app", "application": "test", "client": "127.0.0.1",
                    "endpoint": "default", "kind": "write", "text": "DELETE FROM orders",
                    "duration_us": 1000, "database_us": 800, "rows": 1, "error": "42501", "pinned": false,
                    "decisions": [{ "plugin": "guard", "hook": "on-query", "verdict": "reject" }],
                }),
            ]
        );
    }

    #[test]
    fn sessions_and_lost_events_are_recorded() {
        let mut plugin = start(
            r#"tables = ["nothing"]
            sample = 0.0"#,
        );
        plugin.on_events([read().session_starts(), Event::Lost(12), read().session_ends("idle timeout")]);
        let records = plugin.audit();
        assert_eq!((&records[0]["event"], &records[0]["user"]), (&json!("session-start"), &json!("app")));
        assert_eq!(records[0].get("reason"), None);
        assert_eq!(records[1], json!({ "event": "lost", "count": 12 }));
        assert_eq!(
            (&records[2]["event"], &records[2]["reason"]),
            (&json!("session-end"), &json!("idle timeout"))
        );
        let mut plugin = start("sessions = false");
        plugin.on_events([read().session_starts(), Event::Other(vec![("what".into(), "new".into())])]);
        assert_eq!(plugin.audit(), [json!({ "event": "other", "words": [["what", "new"]] })]);
    }

    #[test]
    fn texts_are_recorded_as_asked_and_passwords_never() {
        let password =
            || Statement::ddl("ALTER ROLE x Password 'secret'").normalised("ALTER ROLE x PASSWORD $1");
        let mut plugin = start("text = \"full\"\nmax_text_bytes = 16");
        plugin.on_events([read().completed().event(), password().completed().event()]);
        assert_eq!(texts(&plugin), [json!("SELECT * FROM or"), json!("ALTER ROLE x PAS")]);
        assert_eq!(plugin.audit()[0]["text_cut"], json!(true));
        let mut plugin = start(r#"text = "none""#);
        plugin.on_events([read().completed().event()]);
        assert_eq!(texts(&plugin), [Value::Null]);
        let identified = "CREATE USER x@'%' /* */ identified WITH p AS 'secret'";
        let identified = Statement::ddl(identified)
            .normalised("create user x@'%' identified with p as ?")
            .dialect(Dialect::Mysql);
        let mut plugin = start(r#"text = "full""#);
        plugin.on_events([identified.completed().event()]);
        assert_eq!(texts(&plugin), [json!("create user x@'%' identified with p as ?")]);
        // Cut between characters, and left out where no record could hold it.
        let mut plugin = start("text = \"full\"\nmax_text_bytes = 30000");
        plugin.on_events([Statement::select(&"ä".repeat(20_000)).completed().event()]);
        plugin.on_events([Statement::select(&"\u{1}".repeat(20_000)).completed().event()]);
        assert_eq!(plugin.audit()[0]["text"].as_str().unwrap().len(), 30_000);
        assert_eq!(texts(&plugin)[1], Value::Null);
        assert_eq!(plugin.counter("records_failed_total"), 0);
    }

    #[test]
    fn filters_leave_out_what_nobody_asked_for() {
        let mut plugin = start(
            r#"
            users = ["app", "adm*"]
            except_users = ["adm-robot"]
            databases = ["shop"]
            tables = ["orders", "pay.*"]
            kinds = ["select", "write"]
            slower_than = "10ms"
            "#,
        );
        let fitting = || read().database("shop");
        let slow = |statement: Statement| statement.completed().took(Duration::from_millis(10)).event();
        plugin.on_events([
            slow(fitting().user("nobody")),
            slow(fitting().user("adm-robot")),
            slow(read()),
            slow(Statement::select("SELECT 1").database("shop")),
            slow(Statement::ddl("DROP TABLE orders").database("shop").table("orders")),
            fitting().completed().event(),
        ]);
        assert!(plugin.audit().is_empty(), "{:?}", plugin.audit());
        plugin.on_events([
            slow(fitting()),
            slow(Statement::write("UPDATE pay.x").database("shop").user("admin").table("pay.x")),
            fitting().completed().error("57014").event(),
        ]);
        assert_eq!(plugin.audit().len(), 3);
    }

    #[test]
    fn mysql_statements_are_recorded_and_filtered_like_others() {
        let mut plugin = start("kinds = [\"write\", \"copy\", \"unknown\"]\ntables = [\"orders\"]");
        let mysql =
            |statement: Statement| statement.dialect(Dialect::Mysql).table("orders").completed().event();
        plugin.on_events([
            mysql(
                Statement::write("/*!50000 DELETE FROM Orders */")
                    .normalised("/*!50000 delete from orders */"),
            ),
            mysql(
                Statement::new(StatementKind::Copy, "LOAD DATA LOCAL INFILE 'x' INTO TABLE orders")
                    .normalised("load data local infile ? into table orders"),
            ),
            mysql(Statement::select("SELECT * FROM orders FOR UPDATE").locking_rows()),
        ]);
        let expected = ["/*!50000 delete from orders */", "load data local infile ? into table orders"];
        assert_eq!(texts(&plugin), expected.map(|text| json!(text)));
    }

    #[test]
    fn a_sample_is_of_the_size_asked_for_and_keeps_errors() {
        let count = |by: &str, errors: bool| {
            let mut plugin = start(&format!("sample = 0.25\nsample_by = \"{by}\""));
            for session in 0..2000 {
                let completed = read().session(session / 2).completed();
                let completed = if errors { completed.error("22012") } else { completed };
                plugin.on_events([completed.event()]);
            }
            plugin.audit()
        };
        let by_statement = count("statement", false).len();
        assert!((400..600).contains(&by_statement), "{by_statement}");
        let by_session = count("session", false);
        assert!((400..600).contains(&by_session.len()), "{}", by_session.len());
        // A session that is in the sample is in it with all its statements.
        assert!(by_session.chunks(2).all(|pair| pair[0]["session"] == pair[1]["session"]));
        assert_eq!(count("session", true).len(), 2000);
    }

    #[test]
    fn what_the_sink_does_not_take_is_counted_and_logged() {
        let mut plugin = Setup::new().deny("audit").start_toml::<Audit>("").unwrap();
        plugin.on_events([read().completed().event()]);
        assert_eq!(plugin.counter("records_failed_total"), 1);
        assert!(plugin.log()[0].contains("the grant `audit` is missing"), "{:?}", plugin.log());
    }

    #[test]
    fn settings_are_checked() {
        for (config, complaint) in [
            ("sample = 1.5", "config.sample: 1.5 is not between 0 and 1"),
            ("sample = nan", "config.sample"),
            ("max_text_bytes = 70000", "config.max_text_bytes"),
            (
                r#"text = "all""#,
                "config.text: unknown variant `all`, expected one of `none`, `normalised`, `full`",
            ),
            (r#"kinds = ["insert"]"#, "config.kinds[0]: unknown variant `insert`"),
            ("user = []", "config.user: unknown field"),
        ] {
            let error = testing::start_toml::<Audit>(config).unwrap_err();
            assert!(error.contains(complaint), "{error}");
        }
    }
}
