//! The exported side: from the wire's shapes to a [`Plugin`] and back.

use std::{cell::RefCell, marker::PhantomData, panic, time::Duration};

use crate::{
    CacheBy, Completion, Decision, Dialect, Event, Hook, Needs, PinReason, PinVerdict, Plugin, Query,
    QueryVerdict, Rejection, Role, RouteVerdict, SessionEvent, StatementKind, Subscription,
    bindings::{
        exports::pinion::policy::{lifecycle, on_events, on_pin, on_query, on_route},
        pinion::policy::types,
    },
    log,
    query::{Detail, Facts, Name},
};

/// What a crate is called, from its manifest.
pub trait Named {
    /// `CARGO_PKG_NAME`.
    const NAME: &'static str;
    /// `CARGO_PKG_VERSION`.
    const VERSION: &'static str;
}

/// The component that a plugin is.
pub struct Component<P>(PhantomData<P>);

/// The hooks of a plugin whose type is not known here: thread-locals cannot be generic.
trait Hooks {
    fn on_query(&mut self, query: &Query) -> QueryVerdict;
    fn on_route(&mut self, query: &Query) -> RouteVerdict;
    fn on_pin(&mut self, query: &Query, reason: PinReason, subject: &str) -> PinVerdict;
    fn on_events(&mut self, events: &[Event]);
}

impl<P: Plugin> Hooks for P {
    fn on_query(&mut self, query: &Query) -> QueryVerdict {
        Plugin::on_query(self, query)
    }
    fn on_route(&mut self, query: &Query) -> RouteVerdict {
        Plugin::on_route(self, query)
    }
    fn on_pin(&mut self, query: &Query, reason: PinReason, subject: &str) -> PinVerdict {
        Plugin::on_pin(self, query, reason, subject)
    }
    fn on_events(&mut self, events: &[Event]) {
        Plugin::on_events(self, events);
    }
}

thread_local! {
    /// This instance's plugin, there from `init` on.
    static PLUGIN: RefCell<Option<Box<dyn Hooks>>> = const { RefCell::new(None) };
}

fn with_plugin<R>(call: impl FnOnce(&mut dyn Hooks) -> R) -> R {
    PLUGIN.with_borrow_mut(|plugin| match plugin {
        Some(plugin) => call(plugin.as_mut()),
        None => panic!("a hook was called before `init`"),
    })
}

/// WebAssembly has no standard error, so without this the host would only see that the instance is dead.
fn report_panics() {
    panic::set_hook(Box::new(|info| {
        let message = info.payload_as_str().unwrap_or("(no text)");
        match info.location() {
            Some(place) => log::error!("panicked at {}:{}: {message}", place.file(), place.line()),
            None => log::error!("panicked: {message}"),
        }
    }));
}

impl<P: Plugin + Named> lifecycle::Guest for Component<P> {
    fn init(config: String) -> Result<lifecycle::Registration, String> {
        report_panics();
        let by_name = |error| format!("{}: {error}", P::NAME);
        let plugin = crate::read_config(&config).map_err(by_name).and_then(|config| {
            // What an author returns is their own sentence; the name tells whose.
            P::new(config).map_err(by_name)
        })?;
        let registration = lifecycle::Registration {
            name: P::NAME.to_owned(),
            version: P::VERSION.to_owned(),
            subscriptions: plugin.subscriptions().into_iter().map(Into::into).collect(),
            needs: plugin.needs().into(),
        };
        PLUGIN.set(Some(Box::new(plugin)));
        Ok(registration)
    }

    fn self_test() -> String {
        P::self_test().to_owned()
    }
}

impl<P: Plugin> on_query::Guest for Component<P> {
    fn on_query(statement: on_query::Statement) -> on_query::QueryVerdict {
        with_plugin(|plugin| plugin.on_query(&query(statement, Detail::default()))).into()
    }
    fn on_query_text(statement: on_query::Statement, text: String) -> on_query::QueryVerdict {
        with_plugin(|plugin| plugin.on_query(&query(statement, Detail::of_text(text)))).into()
    }
    fn on_query_detailed(statement: on_query::Statement, detail: on_query::Detail) -> on_query::QueryVerdict {
        with_plugin(|plugin| plugin.on_query(&query(statement, detail.into()))).into()
    }
}

impl<P: Plugin> on_route::Guest for Component<P> {
    fn on_route(statement: on_route::Statement) -> on_route::RouteVerdict {
        with_plugin(|plugin| plugin.on_route(&query(statement, Detail::default()))).into()
    }
    fn on_route_text(statement: on_route::Statement, text: String) -> on_route::RouteVerdict {
        with_plugin(|plugin| plugin.on_route(&query(statement, Detail::of_text(text)))).into()
    }
    fn on_route_detailed(statement: on_route::Statement, detail: on_route::Detail) -> on_route::RouteVerdict {
        with_plugin(|plugin| plugin.on_route(&query(statement, detail.into()))).into()
    }
}

impl<P: Plugin> on_pin::Guest for Component<P> {
    fn on_pin(
        statement: on_pin::Statement,
        reason: on_pin::PinReason,
        subject: String,
    ) -> on_pin::PinVerdict {
        let query = query(statement, Detail::default());
        with_plugin(|plugin| plugin.on_pin(&query, reason.into(), &subject)).into()
    }
    fn on_pin_text(
        statement: on_pin::Statement,
        reason: on_pin::PinReason,
        subject: String,
        text: String,
    ) -> on_pin::PinVerdict {
        let query = query(statement, Detail::of_text(text));
        with_plugin(|plugin| plugin.on_pin(&query, reason.into(), &subject)).into()
    }
    fn on_pin_detailed(
        statement: on_pin::Statement,
        reason: on_pin::PinReason,
        subject: String,
        detail: on_pin::Detail,
    ) -> on_pin::PinVerdict {
        let query = query(statement, detail.into());
        with_plugin(|plugin| plugin.on_pin(&query, reason.into(), &subject)).into()
    }
}

impl<P: Plugin> on_events::Guest for Component<P> {
    fn on_events(batch: Vec<on_events::Event>) {
        let events: Vec<Event> = batch.into_iter().map(Into::into).collect();
        with_plugin(|plugin| plugin.on_events(&events));
    }
}

fn query(statement: types::Statement, detail: Detail) -> Query {
    Query {
        session: statement.session,
        digest: u128::from(statement.digest_high) << 64 | u128::from(statement.digest_low),
        dialect: statement.dialect.into(),
        kind: statement.kind.into(),
        facts: statement.facts.into(),
        user: Name::of(statement.user),
        database: Name::of(statement.database),
        endpoint: Name::of(statement.endpoint),
        application: Name::of(statement.application),
        client: Name::of(statement.client),
        hint: Name::of(statement.hint),
        detail,
    }
}

/// Enumerations with the same cases on both sides.
macro_rules! same_cases {
    ($from:path => $to:ident { $($case:ident),* $(,)? }) => {
        impl From<$from> for $to {
            fn from(value: $from) -> Self {
                match value { $(<$from>::$case => Self::$case,)* }
            }
        }
    };
}

same_cases!(types::Dialect => Dialect { Postgresql, Mysql, Other });
same_cases!(types::Role => Role { ReadWrite, ReadOnly, Unknown });
same_cases!(types::StatementKind => StatementKind {
    Select, Write, Ddl, Transaction, Session, Copy, Routine, Empty, Other, Unknown,
});
same_cases!(types::PinReason => PinReason {
    TemporaryTable, TableLock, AdvisoryLock, Listen, HeldCursor, SessionVariable, SessionIdentity,
    PreparedStatement, SessionFunction, StatementSize, Xa, Handler, MultiStatement, Library, Unknown, Other,
});

impl From<StatementKind> for types::StatementKind {
    fn from(kind: StatementKind) -> Self {
        match kind {
            StatementKind::Select => Self::Select,
            StatementKind::Write => Self::Write,
            StatementKind::Ddl => Self::Ddl,
            StatementKind::Transaction => Self::Transaction,
            StatementKind::Session => Self::Session,
            StatementKind::Copy => Self::Copy,
            StatementKind::Routine => Self::Routine,
            StatementKind::Empty => Self::Empty,
            StatementKind::Other => Self::Other,
            StatementKind::Unknown => Self::Unknown,
        }
    }
}

/// The contract numbers facts as [`Facts`] does, so no call has to sort them.
const _: () = {
    use types::StatementFacts as Wire;
    let pairs = [
        (Wire::READ_ONLY, Facts::READ_ONLY),
        (Wire::IN_TRANSACTION, Facts::IN_TRANSACTION),
        (Wire::MULTIPLE, Facts::MULTIPLE),
        (Wire::LOCKS_ROWS, Facts::LOCKS_ROWS),
        (Wire::WRITES, Facts::WRITES),
        (Wire::CALLS_ACTING_FUNCTION, Facts::CALLS_ACTING_FUNCTION),
        (Wire::CALLS_UNKNOWN_FUNCTION, Facts::CALLS_UNKNOWN_FUNCTION),
        (Wire::PREPARES, Facts::PREPARES),
    ];
    let mut at = 0;
    while at < pairs.len() {
        assert!(pairs[at].0.bits() == pairs[at].1.bits());
        at += 1;
    }
};

impl From<types::StatementFacts> for Facts {
    fn from(facts: types::StatementFacts) -> Self {
        Self::from_bits(facts.bits())
    }
}

impl From<Needs> for lifecycle::Needs {
    fn from(needs: Needs) -> Self {
        let pairs = [
            (Needs::TEXT, Self::TEXT),
            (Needs::NORMALISED, Self::NORMALISED),
            (Needs::TABLES, Self::TABLES),
            (Needs::FUNCTIONS, Self::FUNCTIONS),
            (Needs::VARIABLES, Self::VARIABLES),
            (Needs::REWRITE, Self::REWRITE),
        ];
        let wanted = pairs.into_iter().filter(|(need, _)| needs.contains(*need));
        wanted.fold(Self::empty(), |all, (_, need)| all | need)
    }
}

impl From<CacheBy> for lifecycle::CacheField {
    fn from(fields: CacheBy) -> Self {
        let pairs = [
            (CacheBy::DIALECT, Self::DIALECT),
            (CacheBy::DIGEST, Self::DIGEST),
            (CacheBy::KIND, Self::KIND),
            (CacheBy::USER, Self::USER),
            (CacheBy::DATABASE, Self::DATABASE),
            (CacheBy::ENDPOINT, Self::ENDPOINT),
            (CacheBy::APPLICATION, Self::APPLICATION),
            (CacheBy::HINT, Self::HINT),
            (CacheBy::FACTS, Self::FACTS),
        ];
        let named = pairs.into_iter().filter(|(field, _)| fields.contains(*field));
        named.fold(Self::empty(), |all, (_, field)| all | field)
    }
}

impl From<Subscription> for lifecycle::Subscription {
    fn from(subscription: Subscription) -> Self {
        Self {
            hook: match subscription.hook {
                Hook::Query => lifecycle::Hook::OnQuery,
                Hook::Route => lifecycle::Hook::OnRoute,
                Hook::Pin => lifecycle::Hook::OnPin,
                Hook::Events => lifecycle::Hook::OnEvents,
            },
            kinds: subscription.kinds.into_iter().map(Into::into).collect(),
            users: subscription.users,
            databases: subscription.databases,
            endpoints: subscription.endpoints,
            cache_by: subscription.cache_by.into(),
        }
    }
}

impl Detail {
    fn of_text(text: String) -> Self {
        Self { text, ..Self::default() }
    }
}

impl From<types::Detail> for Detail {
    fn from(detail: types::Detail) -> Self {
        let types::Detail { text, normalised, tables, functions, variables } = detail;
        Self { text, normalised, tables, functions, variables }
    }
}

impl From<Rejection> for types::Rejection {
    fn from(rejection: Rejection) -> Self {
        let Rejection { sqlstate, code, message, hint } = rejection;
        Self { sqlstate, code, message, hint }
    }
}

impl From<QueryVerdict> for on_query::QueryVerdict {
    fn from(verdict: QueryVerdict) -> Self {
        match verdict {
            QueryVerdict::Pass => Self::Pass,
            QueryVerdict::Rewrite(text) => Self::Rewrite(text),
            QueryVerdict::Reject(rejection) => Self::Reject(rejection.into()),
        }
    }
}

impl From<RouteVerdict> for on_route::RouteVerdict {
    fn from(verdict: RouteVerdict) -> Self {
        match verdict {
            RouteVerdict::Pass => Self::Pass,
            RouteVerdict::Writer => Self::Writer,
            RouteVerdict::Reader => Self::Reader,
            RouteVerdict::Target(address) => Self::Target(address),
            RouteVerdict::Reject(rejection) => Self::Reject(rejection.into()),
        }
    }
}

impl From<PinVerdict> for on_pin::PinVerdict {
    fn from(verdict: PinVerdict) -> Self {
        match verdict {
            PinVerdict::Pass => Self::Pass,
            PinVerdict::Pin => Self::Pin,
            PinVerdict::Replay => Self::Replay,
            PinVerdict::Ignore => Self::Ignore,
            PinVerdict::Reject(rejection) => Self::Reject(rejection.into()),
        }
    }
}

impl From<on_events::SessionEvent> for SessionEvent {
    fn from(event: on_events::SessionEvent) -> Self {
        Self {
            at_ms: event.at_ms,
            session: event.session,
            reason: event.reason,
            user: Name::of(event.user),
            database: Name::of(event.database),
            endpoint: Name::of(event.endpoint),
            application: Name::of(event.application),
            client: Name::of(event.client),
        }
    }
}

impl From<on_events::Completion> for Completion {
    fn from(completion: on_events::Completion) -> Self {
        let decisions = completion.decisions.into_iter().map(|decision| {
            let on_events::Decision { plugin, hook, verdict } = decision;
            Decision { plugin, hook, verdict }
        });
        Self {
            at_ms: completion.at_ms,
            query: query(completion.statement, completion.detail.into()),
            duration: Duration::from_micros(completion.duration_us),
            in_database: Duration::from_micros(completion.database_us),
            rows: completion.rows,
            error: completion.error,
            role: completion.role.into(),
            pinned: completion.pinned,
            decisions: decisions.collect(),
            target: Name::of(completion.target),
        }
    }
}

impl From<on_events::Event> for Event {
    fn from(event: on_events::Event) -> Self {
        match event {
            on_events::Event::SessionStart(event) => Self::SessionStart(event.into()),
            on_events::Event::SessionEnd(event) => Self::SessionEnd(event.into()),
            on_events::Event::Completion(completion) => Self::Completion(Box::new(completion.into())),
            on_events::Event::Lost(count) => Self::Lost(count),
            on_events::Event::Other(words) => Self::Other(words),
        }
    }
}
