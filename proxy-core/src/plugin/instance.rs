//! One instance of a plugin: its memory, its limits, the calls into it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use wasmtime::{
    ResourceLimiter, Store, Trap, UpdateDeadline,
    component::{
        ComponentExportIndex, ComponentNamedList, Instance as Component, InstancePre, Lift, Lower, TypedFunc,
    },
};

use super::{
    Hook,
    engine::TICK,
    shared::Shared,
    user_metrics::SeriesOf,
    wit::{Detail, Event, Needs, PinReason, PinVerdict, QueryVerdict, Registration, RouteVerdict, Statement},
};
use crate::{config::Grants, protocol::Facts};

/// The most that a plugin's tables may hold; functions, mostly.
const TABLE_ELEMENTS: usize = 20_000;
/// Audit records that one call may append: what a session can add before it is made to wait.
pub(super) const RECORDS_PER_CALL: u32 = 1_024;

/// What imports see of the instance that calls them.
pub(super) struct State {
    pub(super) shared: Arc<Shared>,
    pub(super) grants: Grants,
    /// An import was called whose answer may differ the next time.
    pub(super) tainted: bool,
    /// In `init`, where metrics may be registered.
    pub(super) series: Vec<SeriesOf>,
    /// Audit records that this call may still append.
    pub(super) records_left: u32,
    pub(super) memory: MemoryLimit,
    /// The last error that it logged: of a panic, its message, by the SDK's panic hook.
    pub(super) last_words: String,
    time: CallTime,
}

/// What a call may still take once the first half of its deadline has passed.
///
/// A deadline in wall time alone would blame a plugin for what the system does: on a busy machine a thread may be
/// taken away for longer than that in the midst of a short call. So the first half is counted in wall time, which
/// costs nothing, and the second in the thread's own time, up to a bound.
#[derive(Debug, Clone, Copy, Default)]
struct CallTime {
    /// Of the deadline, in ticks.
    deadline: u64,
    /// Of the thread, when the first half had passed.
    half_time: Option<Duration>,
    /// Ticks since then.
    late: u64,
}

/// A call that waits for the processor is stopped after so many deadlines all the same.
const MOST_DEADLINES: u64 = 20;

impl CallTime {
    fn first_half(self) -> u64 {
        self.deadline.div_ceil(2)
    }

    /// At each tick after the first half.
    fn tick(&mut self) -> UpdateDeadline {
        let now = thread_time();
        let half_time = *self.half_time.get_or_insert(now);
        self.late += 1;
        let used = now.saturating_sub(half_time);
        let left = Duration::from_millis(self.deadline - self.first_half()).saturating_sub(used);
        if left.is_zero() || self.late > self.deadline.saturating_mul(MOST_DEADLINES) {
            UpdateDeadline::Interrupt
        } else {
            UpdateDeadline::Continue(1)
        }
    }
}

/// Processor time of this thread.
fn thread_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// Bounds memory and tables, and remembers that it was memory that ended a call.
pub(super) struct MemoryLimit {
    most: usize,
    hit: bool,
}

impl ResourceLimiter for MemoryLimit {
    fn memory_growing(
        &mut self,
        _current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        if desired <= self.most {
            return Ok(true);
        }
        self.hit = true;
        Err(wasmtime::Error::msg(format!("it wanted {desired} bytes of memory; its limit is {}", self.most)))
    }

    fn memory_grow_failed(&mut self, error: wasmtime::Error) -> wasmtime::Result<()> {
        self.hit = true;
        Err(error.context("its memory cannot grow"))
    }

    fn table_growing(
        &mut self,
        _current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        if desired <= TABLE_ELEMENTS {
            return Ok(true);
        }
        self.hit = true;
        Err(wasmtime::Error::msg(format!("it wanted a table of {desired}; the limit is {TABLE_ELEMENTS}")))
    }
}

/// Why a call did not come to its end. Names are stable: a metric's label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TrapKind {
    /// It took too long.
    Deadline,
    /// It wanted too much memory.
    Memory,
    /// It gave up by itself: a Rust panic.
    Panic,
    /// It called itself too deep.
    Stack,
    /// Anything else, an answer that it may not give included.
    Other,
}

impl TrapKind {
    pub(super) const ALL: [Self; 5] = [Self::Deadline, Self::Memory, Self::Panic, Self::Stack, Self::Other];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Deadline => "deadline",
            Self::Memory => "memory",
            Self::Panic => "panic",
            Self::Stack => "stack",
            Self::Other => "other",
        }
    }
}

/// A call that failed.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) kind: TrapKind,
    pub(super) why: String,
}

impl Failure {
    pub(super) fn other(why: impl Into<String>) -> Self {
        Self { kind: TrapKind::Other, why: why.into() }
    }
}

/// Where a plugin's functions are found; what it does not export is `None`.
#[derive(Debug, Clone, Default)]
pub(super) struct Exports {
    pub(super) init: Option<ComponentExportIndex>,
    pub(super) self_test: Option<ComponentExportIndex>,
    pub(super) query: Option<[ComponentExportIndex; 3]>,
    pub(super) route: Option<[ComponentExportIndex; 3]>,
    pub(super) pin: Option<[ComponentExportIndex; 3]>,
    pub(super) events: Option<ComponentExportIndex>,
}

impl Exports {
    pub(super) fn has(&self, hook: Hook) -> bool {
        match hook {
            Hook::Query => self.query.is_some(),
            Hook::Route => self.route.is_some(),
            Hook::Pin => self.pin.is_some(),
            Hook::Events => self.events.is_some(),
        }
    }
}

/// What an instance is made of.
#[derive(Clone)]
pub(super) struct Template {
    pub(super) pre: InstancePre<State>,
    pub(super) exports: Exports,
    pub(super) grants: Grants,
    pub(super) memory_bytes: usize,
    /// In ticks.
    pub(super) deadline: u64,
    /// In ticks; for `on-events`.
    pub(super) events_deadline: u64,
}

/// In ticks; for what is called once, outside of any session.
const SLOW_DEADLINE: u64 = 1_000;

/// Whole ticks; one more, since the first may come at once.
pub(super) fn ticks(deadline: Duration) -> u64 {
    u64::try_from(deadline.as_millis() / TICK.as_millis()).unwrap_or(u64::MAX / 2).saturating_add(1)
}

/// The three forms of one hook: with ids alone, with the text, with a whole detail.
struct Forms<P, T, D, V> {
    plain: TypedFunc<P, (V,)>,
    text: TypedFunc<T, (V,)>,
    detailed: TypedFunc<D, (V,)>,
}

type Query = Forms<(Statement,), (Statement, String), (Statement, Detail), QueryVerdict>;
type Route = Forms<(Statement,), (Statement, String), (Statement, Detail), RouteVerdict>;
type Pin = Forms<
    (Statement, PinReason, String),
    (Statement, PinReason, String, String),
    (Statement, PinReason, String, Detail),
    PinVerdict,
>;
type Events = TypedFunc<(Vec<Event>,), ()>;

/// What an instance exports.
struct Functions {
    init: TypedFunc<(String,), (Result<Registration, String>,)>,
    self_test: TypedFunc<(), (String,)>,
    query: Option<Query>,
    route: Option<Route>,
    pin: Option<Pin>,
    events: Option<Events>,
}

impl Functions {
    fn find(template: &Template, store: &mut Store<State>) -> wasmtime::Result<Self> {
        let instance = template.pre.instantiate(&mut *store)?;
        let exports = &template.exports;
        let compulsory = || wasmtime::Error::msg("it does not export `lifecycle`");
        let init = exports.init.as_ref().ok_or_else(compulsory)?;
        let self_test = exports.self_test.as_ref().ok_or_else(compulsory)?;
        Ok(Self {
            init: instance.get_typed_func(&mut *store, init)?,
            self_test: instance.get_typed_func(&mut *store, self_test)?,
            query: forms(&instance, store, exports.query.as_ref())?,
            route: forms(&instance, store, exports.route.as_ref())?,
            pin: forms(&instance, store, exports.pin.as_ref())?,
            events: match &exports.events {
                Some(index) => Some(instance.get_typed_func(&mut *store, index)?),
                None => None,
            },
        })
    }
}

/// A living instance. After a failure it is dead and must be dropped.
pub(super) struct Instance {
    store: Store<State>,
    functions: Functions,
    deadline: u64,
    events_deadline: u64,
}

impl Instance {
    /// Makes one and looks its functions up.
    pub(super) fn new(template: &Template, shared: &Arc<Shared>) -> Result<Self, Failure> {
        let state = State {
            shared: shared.clone(),
            grants: template.grants,
            tainted: false,
            series: Vec::new(),
            records_left: RECORDS_PER_CALL,
            memory: MemoryLimit { most: template.memory_bytes, hit: false },
            last_words: String::new(),
            time: CallTime::default(),
        };
        let mut store = Store::new(template.pre.engine(), state);
        store.limiter(|state| &mut state.memory);
        store.epoch_deadline_callback(|mut store| Ok(store.data_mut().time.tick()));
        store.set_epoch_deadline(SLOW_DEADLINE);
        let functions = Functions::find(template, &mut store).map_err(|error| Failure {
            kind: if store.data().memory.hit { TrapKind::Memory } else { kind_of(&error) },
            why: format!("no instance: {error:#}"),
        })?;
        let (deadline, events_deadline) = (template.deadline, template.events_deadline);
        Ok(Self { store, functions, deadline, events_deadline })
    }

    /// Whether the last call used an import whose answer may differ the next time.
    pub(super) fn tainted(&self) -> bool {
        self.store.data().tainted
    }

    fn begin(&mut self, ticks: u64) {
        let time = CallTime { deadline: ticks, ..CallTime::default() };
        self.store.set_epoch_deadline(time.first_half());
        let state = self.store.data_mut();
        state.time = time;
        state.tainted = false;
        state.last_words.clear();
        state.records_left = RECORDS_PER_CALL;
    }

    fn failure(&self, error: wasmtime::Error) -> Failure {
        let kind = if self.store.data().memory.hit { TrapKind::Memory } else { kind_of(&error) };
        let why = match kind {
            TrapKind::Deadline => "it did not answer in time".to_owned(),
            TrapKind::Stack => "it ran out of stack".to_owned(),
            // The SDK's hook says "panicked at" and where.
            TrapKind::Panic => match &*self.store.data().last_words {
                "" => "it panicked".to_owned(),
                words => format!("it {}", words.escape_debug()),
            },
            TrapKind::Memory | TrapKind::Other => error.root_cause().to_string(),
        };
        Failure { kind, why }
    }

    /// `lifecycle.init`; the plugin's own error is the inner one.
    pub(super) fn init(&mut self, config: &str) -> Result<Result<Registration, String>, Failure> {
        self.begin(SLOW_DEADLINE);
        match self.functions.init.call(&mut self.store, (config.to_owned(),)) {
            Ok((answer,)) => Ok(answer),
            Err(error) => Err(self.failure(error)),
        }
    }

    /// `lifecycle.self-test`.
    pub(super) fn self_test(&mut self) -> Result<String, Failure> {
        self.begin(SLOW_DEADLINE);
        match self.functions.self_test.call(&mut self.store, ()) {
            Ok((vectors,)) => Ok(vectors),
            Err(error) => Err(self.failure(error)),
        }
    }

    /// `on-query`.
    pub(super) fn on_query(&mut self, statement: &Statement, told: Told) -> Result<QueryVerdict, Failure> {
        self.begin(self.deadline);
        let Some(forms) = &self.functions.query else { return Ok(QueryVerdict::Pass) };
        let called = match told {
            Told::Ids => forms.plain.call(&mut self.store, (*statement,)),
            Told::Text(text) => forms.text.call(&mut self.store, (*statement, text)),
            Told::Detail(detail) => forms.detailed.call(&mut self.store, (*statement, detail)),
        };
        called.map(|(verdict,)| verdict).map_err(|error| self.failure(error))
    }

    /// `on-route`, likewise.
    pub(super) fn on_route(&mut self, statement: &Statement, told: Told) -> Result<RouteVerdict, Failure> {
        self.begin(self.deadline);
        let Some(forms) = &self.functions.route else { return Ok(RouteVerdict::Pass) };
        let called = match told {
            Told::Ids => forms.plain.call(&mut self.store, (*statement,)),
            Told::Text(text) => forms.text.call(&mut self.store, (*statement, text)),
            Told::Detail(detail) => forms.detailed.call(&mut self.store, (*statement, detail)),
        };
        called.map(|(verdict,)| verdict).map_err(|error| self.failure(error))
    }

    /// `on-pin`, likewise.
    pub(super) fn on_pin(
        &mut self,
        statement: &Statement,
        reason: PinReason,
        subject: &str,
        told: Told,
    ) -> Result<PinVerdict, Failure> {
        self.begin(self.deadline);
        let Some(forms) = &self.functions.pin else { return Ok(PinVerdict::Pass) };
        let subject = subject.to_owned();
        let called = match told {
            Told::Ids => forms.plain.call(&mut self.store, (*statement, reason, subject)),
            Told::Text(text) => forms.text.call(&mut self.store, (*statement, reason, subject, text)),
            Told::Detail(detail) => {
                forms.detailed.call(&mut self.store, (*statement, reason, subject, detail))
            }
        };
        called.map(|(verdict,)| verdict).map_err(|error| self.failure(error))
    }

    /// `on-events`.
    pub(super) fn on_events(&mut self, batch: Vec<Event>) -> Result<(), Failure> {
        self.begin(self.events_deadline);
        let Some(events) = &self.functions.events else { return Ok(()) };
        events.call(&mut self.store, (batch,)).map_err(|error| self.failure(error))
    }
}

/// Looks the functions of one hook up.
fn forms<P, T, D, V>(
    instance: &Component,
    store: &mut Store<State>,
    indices: Option<&[ComponentExportIndex; 3]>,
) -> wasmtime::Result<Option<Forms<P, T, D, V>>>
where
    P: ComponentNamedList + Lower,
    T: ComponentNamedList + Lower,
    D: ComponentNamedList + Lower,
    (V,): ComponentNamedList + Lift,
{
    let Some([plain, text, detailed]) = indices else { return Ok(None) };
    Ok(Some(Forms {
        plain: instance.get_typed_func(&mut *store, plain)?,
        text: instance.get_typed_func(&mut *store, text)?,
        detailed: instance.get_typed_func(&mut *store, detailed)?,
    }))
}

fn kind_of(error: &wasmtime::Error) -> TrapKind {
    match error.downcast_ref::<Trap>() {
        Some(Trap::Interrupt) => TrapKind::Deadline,
        Some(Trap::UnreachableCodeReached) => TrapKind::Panic,
        // A Rust guest's own stack lies at the bottom of its memory: what runs out of it leaves the memory.
        Some(Trap::StackOverflow | Trap::MemoryOutOfBounds) => TrapKind::Stack,
        _ => TrapKind::Other,
    }
}

/// What a plugin is told of a statement beside its record.
#[derive(Debug)]
pub(super) enum Told {
    Ids,
    Text(String),
    Detail(Detail),
}

impl Told {
    /// What a plugin with `needs` is told. `text` is `None` where it is kept back, `facts` likewise.
    pub(super) fn new(needs: Needs, text: Option<&[u8]>, facts: Option<&Facts>) -> Self {
        let told = Needs::TEXT | Needs::NORMALISED | Needs::TABLES | Needs::FUNCTIONS | Needs::VARIABLES;
        let wanted = needs & told;
        if wanted == Needs::empty() {
            Self::Ids
        } else if wanted == Needs::TEXT {
            Self::Text(text.map(as_utf8).unwrap_or_default())
        } else {
            Self::Detail(facts.map(|facts| detail(needs, text, facts)).unwrap_or_default())
        }
    }
}

/// What a plugin asked for, from what is known.
pub(super) fn detail(needs: Needs, text: Option<&[u8]>, facts: &Facts) -> Detail {
    let names = |flag, names: &Vec<String>| if needs.contains(flag) { names.clone() } else { Vec::new() };
    Detail {
        text: text.filter(|_| needs.contains(Needs::TEXT)).map(as_utf8).unwrap_or_default(),
        normalised: if needs.contains(Needs::NORMALISED) { facts.digest_text.clone() } else { String::new() },
        tables: names(Needs::TABLES, &facts.tables),
        functions: names(Needs::FUNCTIONS, &facts.functions),
        variables: names(Needs::VARIABLES, &facts.variables),
    }
}

fn as_utf8(text: &[u8]) -> String {
    // Looks at many bytes at once, which replacing does not.
    match std::str::from_utf8(text) {
        Ok(text) => text.to_owned(),
        Err(_) => String::from_utf8_lossy(text).into_owned(),
    }
}

/// Milliseconds since 1970.
pub(super) fn now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Nanoseconds since some moment before the first call.
pub(super) fn monotonic_ns() -> u64 {
    static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    u64::try_from(START.get_or_init(Instant::now).elapsed().as_nanos()).unwrap_or(u64::MAX)
}
