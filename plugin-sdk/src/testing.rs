//! A host for `cargo test`: statements to ask a plugin about, and what it logged, counted, stored and recorded.
//!
//! It is as strict as the real host where that finds mistakes: a hook that was not subscribed to is not called, what was
//! not asked for in [`Needs`] is empty, and a cached hook sees its [`CacheBy`](crate::CacheBy) fields alone. It knows no SQL, so facts and tables are what the test says; how the real grammar reads a text is a matter for
//! test vectors (`pinion plugin test`).
//!
//! ```
//! use pinion_plugin::{NoConfig, Plugin, Query, RouteVerdict, Subscription, log, testing::{self, Statement}};
//!
//! struct Reports;
//!
//! impl Plugin for Reports {
//!     type Config = NoConfig;
//!     fn new(_: NoConfig) -> Result<Self, String> {
//!         Ok(Self)
//!     }
//!     fn subscriptions(&self) -> Vec<Subscription> {
//!         vec![Subscription::on_route().users(["reports"])]
//!     }
//!     fn on_route(&mut self, query: &Query) -> RouteVerdict {
//!         log::debug!("{} reads", query.application());
//!         if query.read_only() { RouteVerdict::Reader } else { RouteVerdict::Pass }
//!     }
//! }
//!
//! let mut plugin = testing::start_toml::<Reports>("").unwrap();
//! let query = Statement::select("SELECT count(*) FROM orders").application("nightly");
//! assert_eq!(plugin.on_route(&query), RouteVerdict::Pass);
//! assert_eq!(plugin.on_route(&query.user("reports")), RouteVerdict::Reader);
//! assert_eq!(plugin.log(), ["nightly reads"]);
//! ```

use std::{
    fmt,
    hash::{DefaultHasher, Hash, Hasher},
    time::Duration,
};

use crate::{
    Completion, Decision, Dialect, Event, Hook, Needs, PinReason, PinVerdict, Plugin, Query, QueryVerdict,
    Role, RouteVerdict, SessionEvent, StatementKind, Subscription,
    host::{self, Value},
    log::Level,
    query::{Detail, Facts, Name},
};

/// Starts a plugin with a configuration given as JSON and everything granted, on a clean host.
pub fn start<P: Plugin>(config: serde_json::Value) -> Result<Tested<P>, String> {
    Setup::new().start(config)
}

/// Starts a plugin with a configuration given as the proxy's operator writes it, in TOML.
pub fn start_toml<P: Plugin>(config: &str) -> Result<Tested<P>, String> {
    Setup::new().start_toml(config)
}

/// What a host grants before a plugin starts. Making one clears the host of this thread.
#[derive(Debug)]
pub struct Setup(());

impl Setup {
    /// A clean host that grants everything, its clock at the beginning of 2025.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "it clears the thread's host, which no default should")]
    pub fn new() -> Self {
        host::reset();
        Self(())
    }

    /// Takes a grant away: `log`, `metrics`, `store`, `clock` or `audit`.
    #[must_use]
    pub fn deny(self, grant: &str) -> Self {
        host::with(|fake| fake.denied.push(grant.to_owned()));
        self
    }

    /// Starts the plugin.
    pub fn start<P: Plugin>(self, config: serde_json::Value) -> Result<Tested<P>, String> {
        Tested::start(config.to_string())
    }

    /// Starts the plugin with a configuration in TOML.
    pub fn start_toml<P: Plugin>(self, config: &str) -> Result<Tested<P>, String> {
        let table: toml::Table = toml::from_str(config).map_err(|error| error.to_string())?;
        let json = serde_json::to_string(&table).map_err(|error| error.to_string())?;
        Tested::start(json)
    }
}

/// A running plugin.
pub struct Tested<P> {
    plugin: P,
    subscriptions: Vec<Subscription>,
    needs: Needs,
    config: String,
    cacheable: bool,
}

impl<P> fmt::Debug for Tested<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the plugin, so that no author has to derive Debug for the sake of `unwrap_err`.
        f.debug_struct("Tested").field("config", &self.config).finish_non_exhaustive()
    }
}

impl<P: Plugin> Tested<P> {
    fn start(config: String) -> Result<Self, String> {
        let plugin = P::new(crate::read_config(&config)?)?;
        let (subscriptions, needs) = (plugin.subscriptions(), plugin.needs());
        Ok(Self { plugin, subscriptions, needs, config, cacheable: false })
    }

    /// One more instance with the same configuration, as another thread of the proxy has, or as a reload or a trap
    /// makes. It shares the store, the metrics, the log and the clock, and no field.
    pub fn another(&self) -> Result<Self, String> {
        Self::start(self.config.clone())
    }

    /// Asks `on_query`; pass when no subscription fits.
    pub fn on_query(&mut self, statement: &Statement) -> QueryVerdict {
        let Some(query) = self.shown(Hook::Query, statement) else { return QueryVerdict::Pass };
        let verdict = self.plugin.on_query(&query);
        self.note_taint();
        self.cacheable &= verdict == QueryVerdict::Pass;
        assert!(
            !matches!(verdict, QueryVerdict::Rewrite(_)) || self.needs.contains(Needs::REWRITE),
            "the plugin rewrites without Needs::REWRITE; the host would refuse that"
        );
        verdict
    }

    /// Asks `on_route`; pass when no subscription fits.
    pub fn on_route(&mut self, statement: &Statement) -> RouteVerdict {
        let Some(query) = self.shown(Hook::Route, statement) else { return RouteVerdict::Pass };
        let verdict = self.plugin.on_route(&query);
        self.note_taint();
        self.cacheable &= !matches!(verdict, RouteVerdict::Target(_) | RouteVerdict::Reject(_));
        verdict
    }

    /// Asks `on_pin`; pass when no subscription fits.
    pub fn on_pin(&mut self, statement: &Statement, reason: PinReason, subject: &str) -> PinVerdict {
        let Some(query) = self.shown(Hook::Pin, statement) else { return PinVerdict::Pass };
        let verdict = self.plugin.on_pin(&query, reason, subject);
        self.note_taint();
        self.cacheable &= !verdict.is_reject();
        verdict
    }

    /// Tells `on_events` what has happened, if it is subscribed to.
    pub fn on_events(&mut self, events: impl IntoIterator<Item = Event>) {
        let subscriptions: Vec<_> =
            self.subscriptions.iter().filter(|subscription| subscription.hook == Hook::Events).collect();
        let wanted = |event: &Event| match event {
            Event::Completion(completion) => subscriptions.iter().any(|one| wants(one, &completion.query)),
            Event::SessionStart(event) | Event::SessionEnd(event) => {
                let (user, database, endpoint) = (event.user(), event.database(), event.endpoint());
                let fits = |one: &&Subscription| {
                    // A session has no kind, so a filter by kind leaves it in.
                    let mut one = (*one).clone();
                    one.kinds.clear();
                    one.wants(StatementKind::Other, user, database, endpoint)
                };
                subscriptions.iter().any(fits)
            }
            Event::Lost(_) | Event::Other(_) => !subscriptions.is_empty(),
        };
        let mut batch: Vec<Event> = events.into_iter().filter(wanted).collect();
        for event in &mut batch {
            if let Event::Completion(completion) = event {
                completion.query = completion.query.as_shown(self.needs, crate::CacheBy::NONE);
            }
        }
        if !batch.is_empty() {
            self.plugin.on_events(&batch);
        }
    }

    /// Whether the host might keep the last verdict: its subscription names cache fields, it carries no text, and the
    /// call used neither store nor clock.
    #[must_use]
    pub fn last_verdict_is_cacheable(&self) -> bool {
        self.cacheable
    }

    /// The plugin itself.
    pub fn plugin(&mut self) -> &mut P {
        &mut self.plugin
    }

    /// Lines logged so far, all levels.
    #[must_use]
    pub fn log(&self) -> Vec<String> {
        host::with(|fake| fake.log.iter().map(|(_, line)| line.clone()).collect())
    }

    /// Lines logged so far at this level.
    #[must_use]
    pub fn log_at(&self, level: Level) -> Vec<String> {
        let at = |(found, line): &(Level, String)| (*found == level).then(|| line.clone());
        host::with(|fake| fake.log.iter().filter_map(at).collect())
    }

    /// A counter's sum over all its labels; 0 when nobody registered it.
    #[must_use]
    pub fn counter(&self, name: &str) -> u64 {
        self.counter_with(name, &[])
    }

    /// A counter's sum over the series that have all these labels.
    #[must_use]
    pub fn counter_with(&self, name: &str, labels: &[(&str, &str)]) -> u64 {
        let values = series(name, labels).into_iter();
        values.map(|value| if let Value::Counter(sum) = value { sum } else { 0 }).sum()
    }

    /// A gauge's value; `None` when nobody registered it.
    #[must_use]
    pub fn gauge(&self, name: &str) -> Option<f64> {
        series(name, &[])
            .into_iter()
            .find_map(|value| if let Value::Gauge(now) = value { Some(now) } else { None })
    }

    /// A histogram's observations, in order.
    #[must_use]
    pub fn observations(&self, name: &str) -> Vec<f64> {
        let all = |value| if let Value::Histogram(all) = value { all } else { Vec::new() };
        series(name, &[]).into_iter().flat_map(all).collect()
    }

    /// Audit records so far.
    #[must_use]
    pub fn audit(&self) -> Vec<serde_json::Value> {
        host::with(|fake| fake.audit.clone())
    }

    /// What the store holds under `key` now.
    #[must_use]
    pub fn stored(&self, key: &str) -> Option<Vec<u8>> {
        host::store_get(key).ok().flatten()
    }

    /// Lets time pass.
    pub fn advance(&self, by: Duration) {
        host::with(|fake| fake.now += by);
    }

    /// What the hook is shown, by the first subscription that fits.
    fn shown(&mut self, hook: Hook, statement: &Statement) -> Option<Query> {
        self.cacheable = false;
        let query = &statement.0;
        let subscription = self.subscriptions.iter().find(|one| one.hook == hook && wants(one, query))?;
        self.cacheable = !subscription.cache_by.is_empty();
        host::with(|fake| fake.tainted = false);
        Some(query.as_shown(self.needs, subscription.cache_by))
    }

    fn note_taint(&mut self) {
        self.cacheable &= !host::with(|fake| fake.tainted);
    }
}

fn wants(subscription: &Subscription, query: &Query) -> bool {
    subscription.wants(query.kind(), query.user(), query.database(), query.endpoint())
}

fn series(name: &str, labels: &[(&str, &str)]) -> Vec<Value> {
    let has = |found: &[(String, String)]| {
        labels.iter().all(|(name, value)| found.iter().any(|(n, v)| n == name && v == value))
    };
    host::with(|fake| {
        let fits = |one: &&host::Series| one.name == name && has(&one.labels);
        fake.series.iter().filter(fits).map(|one| one.value.clone()).collect()
    })
}

/// A statement to ask a plugin about. Session 1, user `app`, database `app`, endpoint `default`, application `test`,
/// client `127.0.0.1`, PostgreSQL, outside a transaction, unless said otherwise.
#[derive(Debug, Clone)]
#[must_use]
pub struct Statement(Query);

impl Statement {
    /// A statement of this kind with no fact true of it.
    pub fn new(kind: StatementKind, text: &str) -> Self {
        let mut hasher = DefaultHasher::new();
        text.hash(&mut hasher);
        let name = Name::known;
        Self(Query {
            session: 1,
            digest: u128::from(hasher.finish()),
            dialect: Dialect::Postgresql,
            kind,
            facts: Facts::NONE,
            user: name("app"),
            database: name("app"),
            endpoint: name("default"),
            application: name("test"),
            client: name("127.0.0.1"),
            hint: name(""),
            detail: Detail { text: text.to_owned(), normalised: text.to_owned(), ..Detail::default() },
        })
    }

    /// A `SELECT` that provably only reads.
    pub fn select(text: &str) -> Self {
        Self::new(StatementKind::Select, text).fact(Facts::READ_ONLY)
    }

    /// An `INSERT`, `UPDATE`, `DELETE` or `MERGE`.
    pub fn write(text: &str) -> Self {
        Self::new(StatementKind::Write, text).fact(Facts::WRITES)
    }

    /// A schema change.
    pub fn ddl(text: &str) -> Self {
        Self::new(StatementKind::Ddl, text)
    }

    /// A `SET` of this variable.
    pub fn set(text: &str, variable: &str) -> Self {
        Self::new(StatementKind::Session, text).variable(variable)
    }

    /// Transaction control.
    pub fn transaction(text: &str) -> Self {
        Self::new(StatementKind::Transaction, text)
    }

    /// A text that the host could not read.
    pub fn unknown(text: &str) -> Self {
        Self::new(StatementKind::Unknown, text)
    }

    /// Of this session.
    pub fn session(mut self, session: u64) -> Self {
        self.0.session = session;
        self
    }

    /// In this language.
    pub fn dialect(mut self, dialect: Dialect) -> Self {
        self.0.dialect = dialect;
        self
    }

    /// By this database user.
    pub fn user(mut self, name: &str) -> Self {
        self.0.user = Name::known(name);
        self
    }

    /// In this database.
    pub fn database(mut self, name: &str) -> Self {
        self.0.database = Name::known(name);
        self
    }

    /// Through this endpoint.
    pub fn endpoint(mut self, name: &str) -> Self {
        self.0.endpoint = Name::known(name);
        self
    }

    /// Of a client that calls itself this.
    pub fn application(mut self, name: &str) -> Self {
        self.0.application = Name::known(name);
        self
    }

    /// From this address.
    pub fn client(mut self, address: &str) -> Self {
        self.0.client = Name::known(address);
        self
    }

    /// With the comment `/* pinion:WORD */`.
    pub fn hint(mut self, word: &str) -> Self {
        self.0.hint = Name::known(word);
        self
    }

    /// With this normalised text in place of the text itself.
    pub fn normalised(mut self, text: &str) -> Self {
        text.clone_into(&mut self.0.detail.normalised);
        self
    }

    /// Naming this table.
    pub fn table(mut self, name: &str) -> Self {
        self.0.detail.tables.push(name.to_owned());
        self
    }

    /// Calling this function, which computes and no more.
    pub fn function(mut self, name: &str) -> Self {
        self.0.detail.functions.push(name.to_owned());
        self
    }

    /// Calling this function, which the host knows to act (`nextval`).
    pub fn acting_function(self, name: &str) -> Self {
        self.function(name).fact(Facts::CALLS_ACTING_FUNCTION).may_write()
    }

    /// Calling this function, which the host does not know.
    pub fn unknown_function(self, name: &str) -> Self {
        self.function(name).fact(Facts::CALLS_UNKNOWN_FUNCTION).may_write()
    }

    /// Setting this session variable.
    pub fn variable(mut self, name: &str) -> Self {
        self.0.detail.variables.push(name.to_owned());
        self
    }

    /// Inside a transaction that was opened before it.
    pub fn in_transaction(self) -> Self {
        self.fact(Facts::IN_TRANSACTION)
    }

    /// One of several in its text.
    pub fn multiple(self) -> Self {
        self.fact(Facts::MULTIPLE)
    }

    /// Taking row locks.
    pub fn locking_rows(self) -> Self {
        self.fact(Facts::LOCKS_ROWS).may_write()
    }

    /// Writing, whatever its kind.
    pub fn writing(self) -> Self {
        self.fact(Facts::WRITES).may_write()
    }

    /// Only being prepared.
    pub fn preparing(self) -> Self {
        self.fact(Facts::PREPARES)
    }

    /// Known to read only, whatever its kind, as an `EXPLAIN` may be.
    pub fn known_to_read(self) -> Self {
        self.fact(Facts::READ_ONLY)
    }

    /// Not known to read only.
    pub fn may_write(mut self) -> Self {
        self.0.facts = self.0.facts.without(Facts::READ_ONLY);
        self
    }

    /// It has run: 1 ms for 1 row on the target `db:5432`, without error, unless said otherwise.
    pub fn completed(self) -> Completed {
        Completed(Completion {
            at_ms: host::with(|fake| u64::try_from(fake.now.as_millis()).unwrap_or(u64::MAX)),
            query: self.0,
            duration: Duration::from_millis(1),
            in_database: Duration::from_micros(800),
            rows: 1,
            error: String::new(),
            role: Role::ReadWrite,
            pinned: false,
            decisions: Vec::new(),
            target: Name::known("db:5432"),
        })
    }

    /// Its session has begun.
    #[must_use]
    pub fn session_starts(&self) -> Event {
        Event::SessionStart(self.session_event(""))
    }

    /// Its session is over; `reason` is empty when the client said goodbye.
    #[must_use]
    pub fn session_ends(&self, reason: &str) -> Event {
        Event::SessionEnd(self.session_event(reason))
    }

    fn session_event(&self, reason: &str) -> SessionEvent {
        let query = self.0.clone();
        SessionEvent {
            at_ms: host::with(|fake| u64::try_from(fake.now.as_millis()).unwrap_or(u64::MAX)),
            session: query.session,
            reason: reason.to_owned(),
            user: query.user,
            database: query.database,
            endpoint: query.endpoint,
            application: query.application,
            client: query.client,
        }
    }

    fn fact(mut self, fact: Facts) -> Self {
        self.0.facts |= fact;
        self
    }
}

/// The end of a statement, to tell `on_events` about.
#[derive(Debug, Clone)]
#[must_use]
pub struct Completed(Completion);

impl Completed {
    /// It took this long, all of it in the database.
    pub fn took(mut self, duration: Duration) -> Self {
        (self.0.duration, self.0.in_database) = (duration, duration);
        self
    }

    /// It returned or changed so many rows.
    pub fn rows(mut self, rows: u64) -> Self {
        self.0.rows = rows;
        self
    }

    /// It ended with this SQLSTATE.
    pub fn error(mut self, sqlstate: &str) -> Self {
        sqlstate.clone_into(&mut self.0.error);
        self
    }

    /// It ran there; on no server for an empty address.
    pub fn on_target(mut self, address: &str, role: Role) -> Self {
        (self.0.target, self.0.role) = (Name::known(address), role);
        self
    }

    /// The session keeps its connection afterwards.
    pub fn pinned(mut self) -> Self {
        self.0.pinned = true;
        self
    }

    /// A plugin decided this about it.
    pub fn decided(mut self, plugin: &str, hook: &str, verdict: &str) -> Self {
        let [plugin, hook, verdict] = [plugin, hook, verdict].map(str::to_owned);
        self.0.decisions.push(Decision { plugin, hook, verdict });
        self
    }

    /// As an event.
    #[must_use]
    pub fn event(self) -> Event {
        Event::Completion(Box::new(self.0))
    }
}

impl From<Completed> for Event {
    fn from(completed: Completed) -> Self {
        completed.event()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CacheBy, NoConfig, clock, metrics, store};

    /// Reports what it sees, in its rejection.
    struct Mirror {
        calls: metrics::Counter,
    }

    #[derive(serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Config {}

    impl Plugin for Mirror {
        type Config = Config;
        fn new(_: Config) -> Result<Self, String> {
            Ok(Self { calls: metrics::counter("calls_total", "Calls.", &[]).unwrap_or_default() })
        }
        fn subscriptions(&self) -> Vec<Subscription> {
            vec![
                Subscription::on_query().databases(["shown"]),
                Subscription::on_route().cache_by(CacheBy::USER | CacheBy::FACTS),
            ]
        }
        fn needs(&self) -> Needs {
            Needs::TABLES
        }
        fn on_query(&mut self, query: &Query) -> QueryVerdict {
            self.calls.increment();
            QueryVerdict::reject(format!("{:?} {:?} {:?}", query.user(), query.tables(), query.text()))
        }
        fn on_route(&mut self, query: &Query) -> RouteVerdict {
            assert_eq!((query.session(), query.client(), query.tables().len()), (0, "", 0));
            match query.user() {
                "store" => store::set("k", b"v", None).map_or(RouteVerdict::Pass, |()| RouteVerdict::Writer),
                "clock" if clock::now_ms() > 0 => RouteVerdict::Reader,
                _ => RouteVerdict::Writer,
            }
        }
    }

    #[test]
    fn only_what_was_asked_for_is_shown() {
        let mut plugin = start::<Mirror>(serde_json::json!({})).unwrap();
        let query = Statement::select("SELECT 1").table("t");
        assert_eq!(plugin.on_query(&query), QueryVerdict::Pass);
        let verdict = plugin.on_query(&query.database("shown"));
        assert_eq!(verdict.rejection().unwrap().message, r#""app" ["t"] """#);
        assert_eq!(plugin.counter("calls_total"), 1);
    }

    #[test]
    fn a_cached_hook_sees_its_fields_alone_and_taints_are_noticed() {
        let mut plugin = start_toml::<Mirror>("").unwrap();
        let query = Statement::select("SELECT 1").table("t");
        assert_eq!(plugin.on_route(&query), RouteVerdict::Writer);
        assert!(plugin.last_verdict_is_cacheable());
        assert_eq!(plugin.on_route(&query.clone().user("clock")), RouteVerdict::Reader);
        assert!(!plugin.last_verdict_is_cacheable());
        assert_eq!(plugin.on_route(&query.user("store")), RouteVerdict::Writer);
        assert!(!plugin.last_verdict_is_cacheable());
        assert_eq!(plugin.another().unwrap().stored("k").as_deref(), Some(&b"v"[..]));
    }

    #[test]
    fn denied_grants_fail_as_the_contract_says() {
        let setup = || Setup::new().deny("store").deny("metrics").deny("clock").deny("audit").deny("log");
        let mut plugin = setup().start_toml::<Mirror>("").unwrap();
        let query = Statement::select("SELECT 1");
        assert_eq!(plugin.on_route(&query.clone().user("store")), RouteVerdict::Pass);
        assert_eq!(plugin.on_route(&query.user("clock")), RouteVerdict::Writer);
        assert_eq!(crate::audit::append(&NoRecord {}), Err(crate::audit::AuditError::NotGranted));
        crate::log::error!("nobody hears this");
        assert!(plugin.log().is_empty());
    }

    #[derive(serde::Serialize)]
    struct NoRecord {}

    #[test]
    fn the_store_expires_counts_and_limits() {
        let plugin = start_toml::<Mirror>("").unwrap();
        let second = Some(Duration::from_secs(1));
        store::set("a", b"1", second).unwrap();
        assert_eq!(store::add("n", 2, second), Ok(2));
        assert_eq!(store::add("n", i64::MAX, second), Ok(i64::MAX));
        assert_eq!(store::compare_and_set("a", Some(b"2"), b"3", None), Ok(false));
        assert_eq!(store::compare_and_set("a", Some(b"1"), b"x", second), Ok(true));
        assert_eq!(store::add("a", 1, None), Err(store::StoreError::NotANumber));
        assert_eq!(store::take_tokens("b", 2, 2, 1.0), Ok(true));
        assert_eq!(store::take_tokens("b", 1, 2, 1.0), Ok(false));
        plugin.advance(Duration::from_secs(1));
        assert_eq!(store::take_tokens("b", 1, 2, 1.0), Ok(true));
        assert_eq!((store::get("a"), plugin.stored("n")), (Ok(None), None));
        assert_eq!(store::delete("a"), Ok(false));
        assert_eq!(store::set("big", &[0; 65_537], None), Err(store::StoreError::TooLong));
    }

    #[test]
    fn a_config_that_does_not_fit_is_refused() {
        assert!(start_toml::<Mirror>("a = 1").unwrap_err().contains("unknown field `a`"));
        assert!(crate::read_config::<NoConfig>(r#"{"a": 1}"#).is_err());
    }
}
