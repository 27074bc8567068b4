//! One plugin file at work with one configuration. A reload makes a new one; calls under way finish on the old.

use std::{
    cell::Cell,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, TryLockError,
        atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
    },
    time::Instant,
};

use tracing::warn;

use super::{
    Ask, Hook,
    cache::{Asked, Cache, Found, Kept, Key},
    engine::Ticking,
    filter::Filter,
    instance::{Exports, Failure, Instance, Template, Told, TrapKind},
    load::{Compiled, LoadError},
    names::Names,
    shared::Shared,
    wit::{
        self, CacheField, Event, Needs, PinVerdict, QueryVerdict, Registration, RouteVerdict, Statement,
        StatementFacts,
    },
};
use crate::protocol::{Dialect, PinReason, StatementKind};

/// Of so many calls one is timed.
const TIMED: u32 = 16;

/// See the module.
pub(super) struct Generation {
    pub(super) shared: Arc<Shared>,
    pub(super) sha256: [u8; 32],
    /// The plugin's own word.
    pub(super) version: String,
    pub(super) needs: Needs,
    /// What it cannot have of WASI.
    pub(super) trapping: Vec<String>,
    template: Template,
    config: String,
    /// By hook.
    filters: [Vec<Filter>; 4],
    lanes: Box<[Mutex<Lane>]>,
    /// For the thread that hands out events.
    events: Mutex<Lane>,
    /// It gave two verdicts for one key.
    cache_off: AtomicBool,
    _ticking: Ticking,
}

/// An instance and what belongs to it. Usually always the same thread's, so that nobody waits for another.
#[derive(Default)]
struct Lane {
    instance: Option<Instance>,
    cache: Cache,
    /// Calls so far.
    calls: u32,
    counts: Counts,
}

/// What one generation did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) calls: u64,
    pub(super) cache_hits: u64,
    pub(super) traps: u64,
}

impl std::fmt::Debug for Generation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Generation").field("plugin", &self.shared.name).finish_non_exhaustive()
    }
}

impl Generation {
    /// Makes the first instance and asks it what it wants.
    pub(super) fn start(
        compiled: Compiled,
        sha256: [u8; 32],
        config: &crate::config::PluginConfig,
        shared: Arc<Shared>,
        lanes: usize,
        ticking: Ticking,
    ) -> Result<Self, LoadError> {
        let template = Template {
            pre: compiled.pre,
            exports: compiled.exports,
            grants: config.grants,
            memory_bytes: usize::try_from(config.memory_bytes).unwrap_or(usize::MAX),
            deadline: super::instance::ticks(config.deadline),
            events_deadline: super::instance::ticks(config.events_deadline),
        };
        let failed = |failure: Failure| LoadError::new("instantiate", failure.why);
        let mut instance = Instance::new(&template, &shared).map_err(failed)?;
        let init = instance.init(&config.config);
        let in_init = |failure: Failure| {
            let why = format!("{} ({}) in init", failure.why, failure.kind.name());
            LoadError::new("init", why)
        };
        let registration = init
            .map_err(in_init)?
            .map_err(|why| LoadError::new("init", format!("it refused its configuration: {why}")))?;
        let filters = filters(&registration, &template.exports, &shared.names)?;
        let lane = |instance| Mutex::new(Lane { instance, ..Lane::default() });
        let first = lane(Some(instance));
        let rest = (1..lanes.max(1)).map(|_| lane(None));
        Ok(Self {
            shared,
            sha256,
            version: cut(&registration.version, 64),
            needs: registration.needs,
            trapping: compiled.trapping,
            template,
            config: config.config.clone(),
            filters,
            lanes: std::iter::once(first).chain(rest).collect(),
            events: Mutex::default(),
            cache_off: AtomicBool::new(false),
            _ticking: ticking,
        })
    }

    /// Whether it subscribed to `hook` at all.
    pub(super) fn asks(&self, hook: Hook) -> bool {
        !self.filters[hook as usize].is_empty()
    }

    /// The fields by which a hook's verdicts may be kept, for each subscription.
    pub(super) fn filters(&self, hook: Hook) -> &[Filter] {
        &self.filters[hook as usize]
    }

    /// Calls, hits and traps of all instances.
    pub(super) fn counts(&self) -> Counts {
        let mut sum = Counts::default();
        for lane in self.lanes.iter().chain([&self.events]) {
            let counts = lane.lock().unwrap_or_else(PoisonError::into_inner).counts;
            sum.calls += counts.calls;
            sum.cache_hits += counts.cache_hits;
            sum.traps += counts.traps;
        }
        sum
    }

    /// The vectors that came with the plugin; empty for none.
    pub(super) fn self_test(&self) -> Result<String, LoadError> {
        let mut lane = self.lane();
        self.with_instance(&mut lane, Instance::self_test).map_err(|failure| {
            let why = format!("{} ({}) in self-test", failure.why, failure.kind.name());
            LoadError::new("self-test", why)
        })
    }

    /// `on-query`.
    pub(super) fn on_query(&self, ask: &Ask<'_>, hint: u32) -> Asked<QueryVerdict> {
        // Only who may rewrite has anything to say before a statement runs.
        if ask.prepares && !self.needs.contains(Needs::REWRITE) {
            return Asked::Unwanted;
        }
        self.ask(Hook::Query, ask, hint, (0, "", true), |instance, statement, told| {
            let verdict = instance.on_query(statement, told)?;
            match &verdict {
                QueryVerdict::Rewrite(_) if !self.needs.contains(Needs::REWRITE) => {
                    Err(Failure::other("it answered rewrite without having asked for it"))
                }
                QueryVerdict::Rewrite(text) if text.contains('\0') || text.len() > super::MAX_REWRITE => {
                    Err(Failure::other("it answered rewrite with a text that no statement can have"))
                }
                _ => Ok(verdict),
            }
        })
    }

    /// `on-route`.
    pub(super) fn on_route(&self, ask: &Ask<'_>, hint: u32) -> Asked<RouteVerdict> {
        self.ask(Hook::Route, ask, hint, (0, "", true), Instance::on_route)
    }

    /// `on-pin`.
    pub(super) fn on_pin(
        &self,
        ask: &Ask<'_>,
        hint: u32,
        reason: PinReason,
        subject: &str,
    ) -> Asked<PinVerdict> {
        let given = pin_reason(reason);
        // Which variables those are stands in literals, and no digest shows them.
        let may_keep = !(ask.facts.changes_settings && ask.facts.variables.is_empty());
        self.ask(Hook::Pin, ask, hint, (given as u8, subject, may_keep), |instance, statement, told| {
            instance.on_pin(statement, given, subject, told)
        })
    }

    /// `on-events`; for one thread.
    pub(super) fn on_events(&self, batch: Vec<Event>) -> Result<(), Failure> {
        let mut lane = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        let begun = Instant::now();
        let answered = self.with_instance(&mut lane, |instance| instance.on_events(batch));
        if !self.shared.muted {
            self.shared.metrics.called(Hook::Events as usize, begun.elapsed());
        }
        lane.counts.calls += 1;
        lane.counts.traps += u64::from(answered.is_err());
        answered
    }

    fn ask<V: Kept>(
        &self,
        hook: Hook,
        ask: &Ask<'_>,
        hint: u32,
        (reason, subject, may_keep): (u8, &str, bool),
        call: impl FnOnce(&mut Instance, &Statement, Told) -> Result<V, Failure>,
    ) -> Asked<V> {
        let Some(filter) = self.filters[hook as usize].iter().find(|filter| filter.wants(ask)) else {
            return Asked::Unwanted;
        };
        let mut statement = statement(ask, hint);
        let mut text = Some(ask.text);
        let mut tells = true;
        if let Some(by) = filter.cache_by {
            only(by, &mut statement);
            text = None;
            tells = by.contains(CacheField::DIGEST);
        }
        let mut lane = self.lane();
        let mut expected = None;
        let mut key = None;
        if filter.cache_by.is_some() && may_keep && !self.cache_off.load(Relaxed) {
            key = lane.cache.subject(subject).map(|subject| Key {
                digest: u128::from(statement.digest_high) << 64 | u128::from(statement.digest_low),
                user: statement.user,
                database: statement.database,
                endpoint: statement.endpoint,
                application: statement.application,
                hint: statement.hint,
                subject,
                hook: hook as u8,
                dialect: statement.dialect as u8,
                kind: statement.kind as u8,
                facts: bits(statement.facts),
                reason,
            });
            match key.map_or(Found::Miss, |key| lane.cache.find(&key)) {
                Found::Hit(code) => {
                    lane.counts.cache_hits += 1;
                    if !self.shared.muted {
                        self.shared.metrics.cache_hits[hook as usize].increment(1);
                    }
                    return Asked::Kept(V::of(code));
                }
                Found::Recheck(code) => expected = Some(code),
                Found::Miss => {}
            }
        }
        let told = Told::new(self.needs, text, tells.then_some(ask.facts));
        lane.calls = lane.calls.wrapping_add(1);
        lane.counts.calls += 1;
        let begun = lane.calls.is_multiple_of(TIMED).then(Instant::now);
        let answered = self.with_instance(&mut lane, |instance| call(instance, &statement, told));
        if let Some(begun) = begun
            && !self.shared.muted
        {
            self.shared.metrics.called(hook as usize, begun.elapsed());
        }
        let verdict = match answered {
            Ok(verdict) => verdict,
            Err(failure) => {
                lane.counts.traps += 1;
                return Asked::Failed(failure);
            }
        };
        if let Some(key) = key
            && !lane.instance.as_ref().is_none_or(Instance::tainted)
        {
            match (verdict.code(), expected) {
                (code, Some(before)) if code != Some(before) => {
                    drop(lane);
                    self.stop_caching(hook);
                }
                (Some(code), None) => lane.cache.keep(key, code),
                _ => {}
            }
        }
        Asked::Verdict(verdict)
    }

    /// Two verdicts for one key: what it keeps in its memory shows through, so nothing may be kept of it.
    fn stop_caching(&self, hook: Hook) {
        if self.cache_off.swap(true, Relaxed) {
            return;
        }
        for lane in &self.lanes {
            lane.lock().unwrap_or_else(PoisonError::into_inner).cache.clear();
        }
        if !self.shared.muted {
            self.shared.metrics.cache_disagreements.increment(1);
        }
        let (proxy, plugin) = (&*self.shared.proxy, &*self.shared.name);
        warn!(
            proxy,
            plugin,
            hook = hook.name(),
            "the plugin gave two verdicts for the same cache-by fields; its verdicts are no longer kept"
        );
    }

    /// This thread's lane, or another that is free.
    fn lane(&self) -> MutexGuard<'_, Lane> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        thread_local!(static LANE: Cell<u32> = const { Cell::new(u32::MAX) });
        let mine = LANE.with(|lane| {
            if lane.get() == u32::MAX {
                lane.set(NEXT.fetch_add(1, Relaxed));
            }
            lane.get()
        });
        let (before, from_mine) = self.lanes.split_at((mine % self.lanes.len() as u32) as usize);
        for lane in from_mine.iter().chain(before) {
            match lane.try_lock() {
                Ok(lane) => return lane,
                Err(TryLockError::Poisoned(poisoned)) => return poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => {}
            }
        }
        from_mine[0].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls the lane's instance, made when there is none, and drops it after a failure: what is left in its memory
    /// is worth nothing.
    fn with_instance<R>(
        &self,
        lane: &mut Lane,
        call: impl FnOnce(&mut Instance) -> Result<R, Failure>,
    ) -> Result<R, Failure> {
        // Used where it lies: it is some hundred bytes, and this is every call.
        let instance = match &mut lane.instance {
            Some(instance) => instance,
            none => none.insert(self.instance()?),
        };
        let answered = call(instance);
        if answered.is_err() {
            lane.instance = None;
        }
        answered
    }

    fn instance(&self) -> Result<Instance, Failure> {
        let mut instance = Instance::new(&self.template, &self.shared)?;
        match instance.init(&self.config)? {
            Ok(_) => Ok(instance),
            Err(why) => {
                Err(Failure { kind: TrapKind::Other, why: format!("it refused its configuration: {why}") })
            }
        }
    }
}

fn filters(
    registration: &Registration,
    exports: &Exports,
    names: &Arc<Names>,
) -> Result<[Vec<Filter>; 4], LoadError> {
    let mut filters: [Vec<Filter>; 4] = Default::default();
    for subscription in &registration.subscriptions {
        let hook = match subscription.hook {
            wit::HookName::Query => Hook::Query,
            wit::HookName::Route => Hook::Route,
            wit::HookName::Pin => Hook::Pin,
            wit::HookName::Events => Hook::Events,
        };
        if !exports.has(hook) {
            let why = format!("it subscribed to {} and does not export it", hook.name());
            return Err(LoadError::new("init", why));
        }
        let filter = Filter::new(subscription, names);
        if hook == Hook::Events && filter.cache_by.is_some() {
            return Err(LoadError::new("init", "it asked for on-events to be cached"));
        }
        filters[hook as usize].push(filter);
    }
    Ok(filters)
}

/// `text`, at most so many bytes of it.
pub(super) fn cut(text: &str, most: usize) -> String {
    let mut end = text.len().min(most);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

/// A statement as plugins see it.
pub(super) fn statement(ask: &Ask<'_>, hint: u32) -> Statement {
    let facts = ask.facts;
    let mut flags = StatementFacts::empty();
    let mut note = |is: bool, flag: StatementFacts| flags |= if is { flag } else { StatementFacts::empty() };
    note(facts.read_only, StatementFacts::READ_ONLY);
    note(ask.in_transaction, StatementFacts::IN_TRANSACTION);
    note(facts.statements > 1, StatementFacts::MULTIPLE);
    note(facts.locks_rows, StatementFacts::LOCKS_ROWS);
    note(facts.writes, StatementFacts::WRITES);
    note(facts.calls_acting_function, StatementFacts::CALLS_ACTING_FUNCTION);
    note(facts.calls_unknown_function, StatementFacts::CALLS_UNKNOWN_FUNCTION);
    note(ask.prepares, StatementFacts::PREPARES);
    Statement {
        session: ask.names.session,
        digest_high: (ask.digest >> 64) as u64,
        digest_low: ask.digest as u64,
        user: ask.names.user,
        database: ask.names.database,
        endpoint: ask.names.endpoint,
        application: ask.names.application,
        client: ask.names.client,
        hint,
        dialect: match ask.dialect {
            Dialect::Postgresql => wit::Dialect::Postgresql,
            Dialect::Mysql => wit::Dialect::Mysql,
        },
        kind: kind(facts.kind),
        facts: flags,
    }
}

/// Facts as a number.
fn bits(facts: StatementFacts) -> u8 {
    facts.as_array()[0] as u8
}

/// Leaves nothing in `statement` but the fields `by` which a verdict may be kept.
fn only(by: CacheField, statement: &mut Statement) {
    statement.session = 0;
    statement.client = 0;
    if !by.contains(CacheField::DIGEST) {
        (statement.digest_high, statement.digest_low) = (0, 0);
    }
    for (flag, field) in [
        (CacheField::USER, &mut statement.user),
        (CacheField::DATABASE, &mut statement.database),
        (CacheField::ENDPOINT, &mut statement.endpoint),
        (CacheField::APPLICATION, &mut statement.application),
        (CacheField::HINT, &mut statement.hint),
    ] {
        if !by.contains(flag) {
            *field = 0;
        }
    }
    if !by.contains(CacheField::DIALECT) {
        statement.dialect = wit::Dialect::Other;
    }
    if !by.contains(CacheField::KIND) {
        statement.kind = wit::StatementKind::Other;
    }
    if !by.contains(CacheField::FACTS) {
        statement.facts = StatementFacts::empty();
    }
}

/// The contract's word for a kind.
pub(super) const fn kind(kind: StatementKind) -> wit::StatementKind {
    match kind {
        StatementKind::Select => wit::StatementKind::Select,
        StatementKind::Write => wit::StatementKind::Write,
        StatementKind::Ddl => wit::StatementKind::Ddl,
        StatementKind::Transaction => wit::StatementKind::Transaction,
        StatementKind::Session => wit::StatementKind::Session,
        StatementKind::Copy => wit::StatementKind::Copy,
        StatementKind::Routine => wit::StatementKind::Routine,
        StatementKind::Empty => wit::StatementKind::Empty,
        StatementKind::Other => wit::StatementKind::Other,
        StatementKind::Unknown => wit::StatementKind::Unknown,
    }
}

/// The contract's word for a reason.
const fn pin_reason(reason: PinReason) -> wit::PinReason {
    match reason {
        PinReason::TemporaryTable => wit::PinReason::TemporaryTable,
        PinReason::TableLock => wit::PinReason::TableLock,
        PinReason::AdvisoryLock => wit::PinReason::AdvisoryLock,
        PinReason::Listen => wit::PinReason::Listen,
        PinReason::HeldCursor => wit::PinReason::HeldCursor,
        PinReason::SessionVariable => wit::PinReason::SessionVariable,
        PinReason::SessionIdentity => wit::PinReason::SessionIdentity,
        PinReason::PreparedStatement => wit::PinReason::PreparedStatement,
        PinReason::SessionFunction => wit::PinReason::SessionFunction,
        PinReason::StatementSize => wit::PinReason::StatementSize,
        PinReason::Xa => wit::PinReason::Xa,
        PinReason::Handler => wit::PinReason::Handler,
        PinReason::MultiStatement => wit::PinReason::MultiStatement,
        PinReason::Library => wit::PinReason::Library,
        PinReason::Unknown => wit::PinReason::Unknown,
    }
}

impl Kept for QueryVerdict {
    fn code(&self) -> Option<u8> {
        matches!(self, Self::Pass).then_some(0)
    }

    fn of(_code: u8) -> Self {
        Self::Pass
    }
}

impl Kept for RouteVerdict {
    fn code(&self) -> Option<u8> {
        match self {
            Self::Pass => Some(0),
            Self::Writer => Some(1),
            Self::Reader => Some(2),
            Self::Target(_) | Self::Reject(_) => None,
        }
    }

    fn of(code: u8) -> Self {
        match code {
            1 => Self::Writer,
            2 => Self::Reader,
            _ => Self::Pass,
        }
    }
}

impl Kept for PinVerdict {
    fn code(&self) -> Option<u8> {
        match self {
            Self::Pass => Some(0),
            Self::Pin => Some(1),
            Self::Replay => Some(2),
            Self::Ignore => Some(3),
            Self::Reject(_) => None,
        }
    }

    fn of(code: u8) -> Self {
        match code {
            1 => Self::Pin,
            2 => Self::Replay,
            3 => Self::Ignore,
            _ => Self::Pass,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kept_verdicts_come_back_as_they_were() {
        for verdict in [PinVerdict::Pass, PinVerdict::Pin, PinVerdict::Replay, PinVerdict::Ignore] {
            assert_eq!(verdict.code().map(PinVerdict::of), Some(verdict));
        }
        for verdict in [RouteVerdict::Pass, RouteVerdict::Writer, RouteVerdict::Reader] {
            assert_eq!(verdict.code().map(RouteVerdict::of), Some(verdict));
        }
        assert_eq!(QueryVerdict::Pass.code().map(QueryVerdict::of), Some(QueryVerdict::Pass));
        assert_eq!(QueryVerdict::Rewrite(String::new()).code(), None);
        assert_eq!(RouteVerdict::Target(String::new()).code(), None);
    }
}
