//! Sends reads to a replica and everything else to the writer.
//!
//! What reads is the host's word ([`Query::read_only`]), which comes from the statement's grammar and a list of
//! built-in functions; this plugin adds what only the operator knows. When in doubt it says writer: a read there costs a
//! little, a write on a replica is an error.
//!
//! The configuration is described in the plugin's README.

mod functions;

use std::time::Duration;

use pinion_plugin::{
    CacheBy, Needs, Patterns, Plugin, Query, RouteVerdict, StatementKind, Subscription, log,
    metrics::{self, Counter},
    store,
};

/// The plugin's configuration; all of it has defaults.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// How long a session reads from the writer after it wrote; 0 for not at all.
    #[serde(deserialize_with = "pinion_plugin::duration::deserialize")]
    pub sticky_after_write: Duration,
    /// Where `BEGIN READ ONLY` goes, with its transaction.
    pub read_only_transactions: Side,
    /// Where `SHOW` goes: servers may have different settings.
    pub show: Side,
    /// Where a `SELECT` goes whose only doubt is a function that nobody knows.
    pub unknown_functions: Side,
    /// Functions of the operator's own that only read.
    pub reading_functions: Patterns,
    /// Functions that need the writer, whatever else is said of them.
    pub writing_functions: Patterns,
    /// Tables that are always read from the writer.
    pub writer_tables: Patterns,
    /// Users whose statements all go to the writer.
    pub writer_users: Patterns,
    /// Applications whose statements all go to the writer.
    pub writer_applications: Patterns,
    /// Databases whose statements all go to the writer.
    pub writer_databases: Patterns,
    /// The proxy's endpoints whose clients this is about; none for all.
    pub endpoints: Vec<String>,
    /// Whether `/* pinion:writer */` and `/* pinion:reader */` count.
    pub hints: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            sticky_after_write: Duration::ZERO,
            read_only_transactions: Side::Writer,
            show: Side::Writer,
            unknown_functions: Side::Writer,
            reading_functions: Patterns::default(),
            writing_functions: Patterns::default(),
            writer_tables: Patterns::default(),
            writer_users: Patterns::default(),
            writer_applications: Patterns::default(),
            writer_databases: Patterns::default(),
            endpoints: Vec::new(),
            hints: true,
        }
    }
}

/// One of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Side {
    /// The target that takes writes.
    Writer,
    /// A replica.
    Reader,
}

/// What a statement may do, as far as can be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Effect {
    /// Nothing but read: it may run on a replica.
    Reads,
    /// Nothing that a later read could miss, but it belongs on the writer.
    Stays,
    /// It may write, now or later in the transaction that it begins.
    Writes,
}

/// How long a write that has not been seen to end is remembered: longer than most transactions last.
const UNFINISHED: Duration = Duration::from_secs(3600);
/// A session's last write may still be running.
const RUNNING: &[u8] = b"r";
/// A session's last write is over.
const DONE: &[u8] = b"d";

/// The plugin.
#[derive(Debug)]
pub struct RwSplit {
    config: Config,
    kept: Counter,
}

impl Plugin for RwSplit {
    type Config = Config;

    fn new(config: Config) -> Result<Self, String> {
        if !config.sticky_after_write.is_zero() {
            store::get("probe").map_err(|error| {
                format!("config.sticky_after_write: {error}; sessions' writes are remembered there")
            })?;
        }
        let kept = metrics::counter(
            "sticky_reads_total",
            "Reads that went to the writer because their session had just written.",
            &[],
        );
        // The metric is a help for tuning, so the grant is not insisted on.
        Ok(Self { config, kept: kept.unwrap_or_default() })
    }

    fn subscriptions(&self) -> Vec<Subscription> {
        let config = &self.config;
        let subscription = Subscription::on_route().endpoints(&config.endpoints);
        if !config.sticky_after_write.is_zero() {
            // The verdict depends on the session.
            return vec![subscription];
        }
        let mut fields = CacheBy::DIALECT | CacheBy::DIGEST | CacheBy::KIND | CacheBy::FACTS | CacheBy::HINT;
        for (patterns, field) in [
            (&config.writer_users, CacheBy::USER),
            (&config.writer_applications, CacheBy::APPLICATION),
            (&config.writer_databases, CacheBy::DATABASE),
        ] {
            if !patterns.is_empty() {
                fields |= field;
            }
        }
        vec![subscription.cache_by(fields)]
    }

    fn needs(&self) -> Needs {
        let tables = if self.config.writer_tables.is_empty() { Needs::NONE } else { Needs::TABLES };
        Needs::NORMALISED | Needs::FUNCTIONS | tables
    }

    fn on_route(&mut self, query: &Query) -> RouteVerdict {
        // Who is asked in a transaction is asked for all of it: with `autocommit=0` any statement begins one.
        let effect = if query.in_transaction() { Effect::Writes } else { self.effect(query) };
        let hint = if self.config.hints { query.hint() } else { "" };
        match (effect, hint) {
            (Effect::Writes, _) => {
                self.remember_write(query);
                RouteVerdict::Writer
            }
            (Effect::Stays, _) | (Effect::Reads, "writer") => RouteVerdict::Writer,
            // Who asks for a replica by name takes an answer that may be behind.
            (Effect::Reads, "reader") => RouteVerdict::Reader,
            (Effect::Reads, _) if self.belongs_to_writer(query) => RouteVerdict::Writer,
            (Effect::Reads, _) if self.has_just_written(query) => {
                self.kept.increment();
                RouteVerdict::Writer
            }
            (Effect::Reads, _) => RouteVerdict::Reader,
        }
    }

    fn self_test() -> &'static str {
        include_str!("../vectors.toml")
    }
}

impl RwSplit {
    fn effect(&self, query: &Query) -> Effect {
        let config = &self.config;
        let writing_function =
            || query.functions().iter().any(|name| config.writing_functions.match_any(name));
        if query.read_only() {
            return if writing_function() {
                Effect::Writes
            } else if config.show == Side::Writer && begins_with(query.normalised(), &["SHOW"]) {
                Effect::Stays
            } else {
                Effect::Reads
            };
        }
        match query.kind() {
            StatementKind::Select if self.only_doubt_is_a_function(query) && !writing_function() => {
                Effect::Reads
            }
            StatementKind::Transaction if !query.multiple() && begins_read_only(query.normalised()) => {
                match config.read_only_transactions {
                    Side::Reader => Effect::Reads,
                    Side::Writer => Effect::Stays,
                }
            }
            // Outside a transaction there is nothing for these to end, but for what was prepared before, which all of
            // `XA` may be about.
            StatementKind::Transaction
                if !query.multiple()
                    && !begins_transaction(query.normalised())
                    && !begins_with(query.normalised(), &["XA"])
                    && !words(query.normalised()).any(|word| word == "PREPARED") =>
            {
                Effect::Stays
            }
            // What it sets is needed where the session writes; and it must not pin a session to a replica.
            StatementKind::Session if !query.multiple() => Effect::Stays,
            StatementKind::Empty => Effect::Stays,
            _ => Effect::Writes,
        }
    }

    /// A `SELECT` that would be read-only but for functions of which the host knows nothing, and that the operator
    /// vouches for, by name or in general.
    fn only_doubt_is_a_function(&self, query: &Query) -> bool {
        query.calls_unknown_function()
            && !query.calls_acting_function()
            && !query.writes()
            && !query.locks_rows()
            && !query.multiple()
            && query.functions().iter().all(|name| {
                self.config.reading_functions.match_any(name)
                    || functions::only_computes(query.dialect(), name)
                    || (self.config.unknown_functions == Side::Reader
                        && !functions::acts(query.dialect(), name))
            })
            // The host stops counting at 64 names: beyond that, there may be others.
            && query.functions().len() < 64
    }

    fn belongs_to_writer(&self, query: &Query) -> bool {
        let config = &self.config;
        config.writer_users.match_any(query.user())
            || config.writer_applications.match_any(query.application())
            || config.writer_databases.match_any(query.database())
            || query.tables().iter().any(|name| config.writer_tables.match_any(name))
    }

    /// When the write will be over is not known, so it is remembered as running.
    fn remember_write(&self, query: &Query) {
        if self.config.sticky_after_write.is_zero() || query.prepares() {
            return;
        }
        if let Err(error) = store::set(&key(query), RUNNING, Some(UNFINISHED)) {
            log::warn!("a write is not remembered, reads may miss it: {error}");
        }
    }

    /// Whether the session wrote within the time that the operator gave. A session that is asked where to run has no
    /// transaction open, so a write that was running is over by now, and its time begins.
    fn has_just_written(&self, query: &Query) -> bool {
        let sticky = self.config.sticky_after_write;
        if sticky.is_zero() {
            return false;
        }
        let key = key(query);
        match store::get(&key) {
            Ok(Some(state)) => {
                if state == RUNNING
                    && let Err(error) = store::set(&key, DONE, Some(sticky))
                {
                    log::warn!("a write is remembered for too long: {error}");
                }
                true
            }
            Ok(None) => false,
            Err(error) => {
                log::warn!("the last write is not known, so the writer is asked: {error}");
                true
            }
        }
    }
}

/// The store is this plugin's own, so a short key is no risk.
fn key(query: &Query) -> String {
    query.session().to_string()
}

/// Words of a normalised text, which has one blank between them, in upper case.
fn words(normalised: &str) -> impl Iterator<Item = String> {
    let separators = |c: char| c == ' ' || c == ',' || c == ';' || c == '(';
    normalised.split(separators).filter(|word| !word.is_empty()).map(str::to_ascii_uppercase)
}

fn begins_with(normalised: &str, wanted: &[&str]) -> bool {
    words(normalised).zip(wanted).filter(|(word, wanted)| word == *wanted).count() == wanted.len()
}

/// `BEGIN`, `START TRANSACTION`.
fn begins_transaction(normalised: &str) -> bool {
    // A text that is not known is taken for one that begins a transaction: it may write.
    normalised.is_empty()
        || begins_with(normalised, &["BEGIN"])
        || begins_with(normalised, &["START", "TRANSACTION"])
}

/// The same with `READ ONLY`, and without `READ WRITE`.
fn begins_read_only(normalised: &str) -> bool {
    let words: Vec<String> = words(normalised).collect();
    let has = |mode: [&str; 2]| words.windows(2).any(|pair| pair == mode);
    !normalised.is_empty()
        && begins_transaction(normalised)
        && has(["READ", "ONLY"])
        && !has(["READ", "WRITE"])
}

pinion_plugin::export!(RwSplit);

#[cfg(test)]
mod tests {
    use pinion_plugin::{
        Dialect,
        testing::{self, Setup, Statement, Tested},
    };

    use super::*;

    fn start(config: &str) -> Tested<RwSplit> {
        testing::start_toml(config).unwrap()
    }

    fn read() -> Statement {
        Statement::select("SELECT * FROM orders").table("orders")
    }

    #[track_caller]
    fn check(
        plugin: &mut Tested<RwSplit>,
        expected: &RouteVerdict,
        statements: impl IntoIterator<Item = Statement>,
    ) {
        for statement in statements {
            assert_eq!(plugin.on_route(&statement), *expected, "{statement:?}");
        }
    }

    #[test]
    fn reads_go_to_a_reader_and_all_else_to_the_writer() {
        let mut plugin = start("");
        check(
            &mut plugin,
            &RouteVerdict::Reader,
            [
                read(),
                Statement::new(StatementKind::Other, "EXPLAIN SELECT $1").known_to_read(),
                Statement::select("SELECT $1; SELECT $2").multiple(),
                read().hint("anything-else"),
            ],
        );
        check(
            &mut plugin,
            &RouteVerdict::Writer,
            [
                Statement::write("INSERT INTO orders VALUES ($1)"),
                Statement::write("WITH d AS (DELETE FROM t RETURNING *) SELECT * FROM d"),
                Statement::select("SELECT * FROM orders FOR UPDATE").locking_rows(),
                Statement::select("SELECT nextval($1)").acting_function("nextval"),
                Statement::select("SELECT mine()").unknown_function("mine"),
                Statement::new(StatementKind::Other, "EXPLAIN ANALYZE INSERT INTO t VALUES ($1)").writing(),
                Statement::select("SHOW work_mem"),
                Statement::ddl("CREATE TABLE t (n int)"),
                Statement::new(StatementKind::Copy, "COPY t TO STDOUT"),
                Statement::new(StatementKind::Routine, "CALL p()"),
                Statement::new(StatementKind::Empty, ""),
                Statement::set("SET work_mem = $1", "work_mem"),
                Statement::transaction("BEGIN"),
                Statement::transaction("BEGIN READ ONLY"),
                Statement::transaction("COMMIT"),
                Statement::unknown("SELEKT 1"),
            ],
        );
    }

    #[test]
    fn verdicts_are_cacheable_unless_sessions_stick() {
        let mut plugin = start(r#"writer_users = ["batch"]"#);
        check(&mut plugin, &RouteVerdict::Reader, [read()]);
        assert!(plugin.last_verdict_is_cacheable());
        check(&mut plugin, &RouteVerdict::Writer, [read().user("batch")]);
        let mut plugin = start(r#"sticky_after_write = "1s""#);
        check(&mut plugin, &RouteVerdict::Reader, [read()]);
        assert!(!plugin.last_verdict_is_cacheable());
    }

    #[test]
    fn functions_are_vouched_for_by_name_or_in_general() {
        let mine = || {
            Statement::select("SELECT count(*), app.total(x)").function("count").unknown_function("app.total")
        };
        let listed = r#"reading_functions = ["app.*"]"#;
        check(&mut start(listed), &RouteVerdict::Reader, [mine()]);
        check(
            &mut start(listed),
            &RouteVerdict::Writer,
            [
                mine().unknown_function("other"),
                mine().acting_function("nextval"),
                mine().locking_rows(),
                mine().writing(),
                mine().unknown_function("lower.lower"),
            ],
        );
        let general = r#"unknown_functions = "reader"
                         writing_functions = ["app.book", "lower"]"#;
        check(&mut start(general), &RouteVerdict::Reader, [mine(), mine().unknown_function("other")]);
        check(
            &mut start(general),
            &RouteVerdict::Writer,
            [
                Statement::select("SELECT app.book()").unknown_function("app.book"),
                Statement::select("SELECT lower(x)").function("lower"),
                Statement::select("SELECT setval($1, $2)").unknown_function("pg_catalog.setval"),
            ],
        );
    }

    #[test]
    fn tables_users_applications_and_databases_may_belong_to_the_writer() {
        let mut plugin = start(
            r#"
            writer_tables = ["ledger.*"]
            writer_users = ["batch"]
            writer_applications = ["admin*"]
            writer_databases = ["hot"]
            "#,
        );
        check(&mut plugin, &RouteVerdict::Reader, [read()]);
        let to_writer = [
            read().table("ledger.entries"),
            read().user("batch"),
            read().application("admin-console"),
            read().database("hot"),
        ];
        check(&mut plugin, &RouteVerdict::Writer, to_writer.clone());
        check(&mut plugin, &RouteVerdict::Reader, to_writer.map(|statement| statement.hint("reader")));
    }

    #[test]
    fn hints_choose_among_what_can_run() {
        let mut plugin = start("");
        check(&mut plugin, &RouteVerdict::Writer, [read().hint("writer")]);
        check(&mut plugin, &RouteVerdict::Reader, [read().hint("reader")]);
        check(&mut plugin, &RouteVerdict::Writer, [Statement::write("DELETE FROM t").hint("reader")]);
        check(&mut start("hints = false"), &RouteVerdict::Reader, [read().hint("writer")]);
    }

    #[test]
    fn read_only_transactions_and_show_go_where_they_are_told() {
        let mut plugin = start("read_only_transactions = \"reader\"\nshow = \"reader\"");
        let begin = Statement::transaction;
        check(
            &mut plugin,
            &RouteVerdict::Reader,
            [
                begin("BEGIN READ ONLY"),
                begin("begin transaction isolation level repeatable read, read only"),
                begin("START TRANSACTION READ ONLY"),
                Statement::select("SHOW work_mem"),
            ],
        );
        check(
            &mut plugin,
            &RouteVerdict::Writer,
            [
                begin("BEGIN"),
                begin("BEGIN READ WRITE"),
                begin("BEGIN READ ONLY, READ WRITE"),
                begin("BEGIN READ ONLY").multiple(),
                begin("SAVEPOINT read_only"),
                begin("BEGIN READ ONLY").hint("writer"),
            ],
        );
    }

    #[test]
    fn a_session_reads_from_the_writer_for_a_while_after_it_wrote() {
        let mut plugin = start(r#"sticky_after_write = "2s""#);
        let second = Duration::from_secs(1);
        check(&mut plugin, &RouteVerdict::Reader, [read()]);
        check(&mut plugin, &RouteVerdict::Writer, [Statement::write("UPDATE t SET n = $1")]);
        check(&mut plugin, &RouteVerdict::Writer, [read()]);
        check(&mut plugin, &RouteVerdict::Reader, [read().session(2), read().hint("reader")]);
        // The next request of the session may be served by another thread, and so by another instance.
        let mut other = plugin.another().unwrap();
        plugin.advance(second);
        check(&mut other, &RouteVerdict::Writer, [read()]);
        plugin.advance(second);
        check(&mut plugin, &RouteVerdict::Reader, [read()]);
        assert_eq!(plugin.counter("sticky_reads_total"), 2);
    }

    #[test]
    fn a_long_transaction_sticks_from_its_end() {
        let mut plugin = start("sticky_after_write = \"2s\"\nread_only_transactions = \"reader\"");
        check(&mut plugin, &RouteVerdict::Writer, [Statement::transaction("BEGIN")]);
        plugin.advance(Duration::from_secs(60));
        check(&mut plugin, &RouteVerdict::Writer, [read()]);
        plugin.advance(Duration::from_secs(2));
        check(&mut plugin, &RouteVerdict::Reader, [read()]);
        check(&mut plugin, &RouteVerdict::Reader, [Statement::transaction("BEGIN READ ONLY"), read()]);
        let no_write = [Statement::set("SET work_mem = $1", "work_mem"), Statement::transaction("ROLLBACK")];
        check(&mut plugin, &RouteVerdict::Writer, no_write);
        check(&mut plugin, &RouteVerdict::Reader, [read()]);
        check(&mut plugin, &RouteVerdict::Writer, [Statement::transaction("COMMIT PREPARED $1"), read()]);
    }

    #[test]
    fn mysql_reads_go_to_a_reader_and_all_else_to_the_writer() {
        let mysql = |statement: Statement| statement.dialect(Dialect::Mysql);
        let mut plugin = start("read_only_transactions = \"reader\"");
        check(
            &mut plugin,
            &RouteVerdict::Reader,
            [
                Statement::select("select * from orders where id = ?").table("orders"),
                Statement::select("/*!50000 select */ ?"),
                Statement::new(StatementKind::Other, "explain select ?").known_to_read(),
                Statement::transaction("start transaction read only, with consistent snapshot"),
            ]
            .map(mysql),
        );
        check(
            &mut plugin,
            &RouteVerdict::Writer,
            [
                Statement::write("/*!50000 delete from orders */"),
                Statement::write("with x as (select ?) delete from t where a in (select * from x)"),
                Statement::new(StatementKind::Select, "select * into outfile ? from t").writing(),
                Statement::new(StatementKind::Select, "select @x := ?"),
                Statement::new(StatementKind::Select, "select a into @x from t"),
                Statement::select("select * from t for update").locking_rows(),
                Statement::select("select * from t lock in share mode").locking_rows(),
                Statement::select("select last_insert_id()").acting_function("last_insert_id"),
                Statement::select("select get_lock(?, ?)").acting_function("get_lock"),
                Statement::select("select mine()").unknown_function("mine"),
                Statement::new(StatementKind::Routine, "call p()"),
                Statement::new(StatementKind::Copy, "load data infile ? into table t").writing(),
                Statement::new(StatementKind::Select, "select ?; delete from t").writing().multiple(),
                Statement::new(StatementKind::Other, "lock tables t read"),
                Statement::set("set autocommit = ?", "autocommit"),
                Statement::select("show tables"),
                Statement::transaction("begin"),
                Statement::transaction("xa start ?"),
                Statement::unknown("selekt 1"),
            ]
            .map(mysql),
        );
    }

    /// As with `autocommit=0`, where what comes behind the first statement belongs to the same transaction.
    #[test]
    fn a_read_that_begins_a_transaction_goes_to_the_writer() {
        let mut plugin = start(r#"sticky_after_write = "2s""#);
        let begins = || read().dialect(Dialect::Mysql).in_transaction();
        check(&mut plugin, &RouteVerdict::Writer, [begins(), begins().hint("reader"), read()]);
        let mut plugin = start("");
        check(&mut plugin, &RouteVerdict::Writer, [begins()]);
        assert!(plugin.last_verdict_is_cacheable());
        check(&mut plugin, &RouteVerdict::Reader, [read()]);
    }

    #[test]
    fn mysql_functions_are_known_by_their_own_names() {
        let call = |functions: &[&str]| {
            let start = Statement::select("select …").dialect(Dialect::Mysql).unknown_function("total");
            functions.iter().fold(start, |statement, name| statement.function(name))
        };
        let listed = r#"reading_functions = ["total"]"#;
        check(&mut start(listed), &RouteVerdict::Reader, [call(&["ifnull", "date_format", "group_concat"])]);
        // PostgreSQL's, and so in MySQL anybody's.
        check(&mut start(listed), &RouteVerdict::Writer, [call(&["array_agg"]), call(&["pg_catalog.lower"])]);
        let general = r#"unknown_functions = "reader""#;
        check(&mut start(general), &RouteVerdict::Reader, [call(&["array_agg"])]);
        check(
            &mut start(general),
            &RouteVerdict::Writer,
            [call(&["get_lock"]), call(&["last_insert_id"]), call(&["setval"])],
        );
    }

    #[test]
    fn xa_is_remembered_as_a_write() {
        for text in ["xa start ?", "xa commit ?"] {
            let mut plugin = start(r#"sticky_after_write = "2s""#);
            let statement = || Statement::transaction(text).dialect(Dialect::Mysql);
            check(&mut plugin, &RouteVerdict::Writer, [statement(), read().dialect(Dialect::Mysql)]);
        }
    }

    #[test]
    fn stickiness_needs_the_store_and_settings_are_checked() {
        let without = |config| Setup::new().deny("store").deny("metrics").start_toml::<RwSplit>(config);
        assert!(without("").is_ok());
        let error = without(r#"sticky_after_write = "2s""#).unwrap_err();
        assert!(error.contains("config.sticky_after_write: the grant `store` is missing"), "{error}");
        for (config, complaint) in [
            (r#"sticky_after_write = "2""#, "config.sticky_after_write: invalid value"),
            (r#"sticky = "2s""#, "config.sticky: unknown field"),
            (r#"show = "both""#, "config.show: unknown variant `both`, expected `writer` or `reader`"),
        ] {
            let error = testing::start_toml::<RwSplit>(config).unwrap_err();
            assert!(error.starts_with(complaint), "{error}");
        }
    }
}
