//! What observers are told: a bounded queue from all sessions to one thread a proxy.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use tokio::sync::Notify;

use super::{
    Ask, Decision, Hook, Plugins, SessionNames,
    filter::Filter,
    generation::{Generation, statement},
    instance::detail,
    names::{Name, Names},
    wit,
};
use crate::protocol::{Dialect, Facts, Role};

/// Events in one call.
const BATCH: usize = 256;
/// Bytes of all events that are queued, about; texts are as long as clients make them.
const QUEUED_BYTES: usize = 64 * 1024 * 1024;
/// How long a batch that is not full waits for more.
const LINGER: Duration = Duration::from_millis(10);
/// Names of targets that the thread holds.
const TARGETS: usize = 256;

/// Something that happened to a client.
#[derive(Debug, Clone)]
pub enum Event {
    /// A client has logged in.
    SessionStart(SessionEvent),
    /// A client is gone.
    SessionEnd(SessionEvent),
    /// A statement is over.
    Completion(Box<Completion>),
}

impl Event {
    /// Bytes that it holds, about.
    fn size(&self) -> usize {
        match self {
            Self::SessionStart(event) | Self::SessionEnd(event) => size_of::<Self>() + event.reason.len(),
            Self::Completion(event) => {
                size_of::<Completion>()
                    + event.text.as_ref().map_or(0, |text| text.len())
                    + event.hint.len()
                    + size_of_val(&*event.decisions)
            }
        }
    }
}

/// See [`Event`].
#[derive(Debug, Clone)]
pub struct SessionEvent {
    /// Milliseconds since 1970.
    pub at_ms: u64,
    /// Whose.
    pub names: SessionNames,
    /// For an end: why, empty when the client said goodbye.
    pub reason: String,
}

/// A statement that is over.
#[derive(Debug, Clone)]
pub struct Completion {
    /// When it came, milliseconds since 1970.
    pub at_ms: u64,
    /// Whose.
    pub names: SessionNames,
    /// Its language.
    pub dialect: Dialect,
    /// Keyed hash of the normalised text.
    pub digest: u128,
    /// What the grammar says.
    pub facts: Arc<Facts>,
    /// As sent; wanted only when [`Plugins::wants_text_in_events`].
    pub text: Option<Box<[u8]>>,
    /// The word after `pinion:` in a comment; empty for none.
    pub hint: Box<str>,
    /// In a transaction that was open before it.
    pub in_transaction: bool,
    /// From its arrival to the end of its answer.
    pub duration: Duration,
    /// Of that, from its going to the server on.
    pub database: Duration,
    /// Rows returned or changed.
    pub rows: u64,
    /// SQLSTATE; empty when it went well.
    pub error: String,
    /// The target's address as configured; `None` when it went to no server.
    pub target: Option<Arc<str>>,
    /// That target's role then.
    pub role: Role,
    /// Whether the session keeps its connection afterwards.
    pub pinned: bool,
    /// What plugins decided about it.
    pub decisions: Vec<Decision>,
}

/// What became of an event.
#[derive(Debug)]
#[must_use]
pub enum Emitted {
    /// Queued, or nobody wants it.
    Done,
    /// There is no room, and the audit sink is configured to block: give it to [`Plugins::emit_when_room`].
    Full(Event),
    /// There was no room: counted and lost.
    Lost,
}

/// The queue.
#[derive(Debug)]
pub(super) struct Queue {
    inner: Mutex<Inner>,
    wake: Condvar,
    /// A batch was taken out.
    room: Notify,
    /// Nothing is queued or under way.
    idle: Notify,
    bound: usize,
    started: AtomicBool,
}

#[derive(Debug, Default)]
struct Inner {
    events: VecDeque<Queued>,
    /// Sum of [`Event::size`].
    bytes: usize,
    lost: u64,
    busy: bool,
    stop: bool,
}

#[derive(Debug)]
enum Queued {
    Event(Event),
    Lost(u64),
}

impl Queued {
    fn size(&self) -> usize {
        match self {
            Self::Event(event) => event.size(),
            Self::Lost(_) => 0,
        }
    }
}

impl Queue {
    pub(super) fn new(bound: usize) -> Arc<Self> {
        Arc::new(Self {
            inner: Mutex::default(),
            wake: Condvar::new(),
            room: Notify::new(),
            idle: Notify::new(),
            bound,
            started: AtomicBool::new(false),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues an event; gives it back when there is no room.
    fn push(&self, event: Event) -> Result<(), Event> {
        let mut inner = self.lock();
        if inner.stop {
            return Ok(());
        }
        // One that is larger than the bound by itself has to get through all the same.
        let bytes = inner.bytes.saturating_add(event.size());
        if inner.events.len() >= self.bound || (bytes > QUEUED_BYTES && !inner.events.is_empty()) {
            return Err(event);
        }
        inner.bytes = bytes;
        let lost = std::mem::take(&mut inner.lost);
        if lost > 0 {
            inner.events.push_back(Queued::Lost(lost));
        }
        inner.events.push_back(Queued::Event(event));
        let first = inner.events.len() == 1;
        let full = inner.events.len() == BATCH;
        drop(inner);
        if first || full {
            self.wake.notify_one();
        }
        Ok(())
    }

    /// Queues an event, or counts it as lost; false then.
    pub(super) fn push_or_lose(&self, event: Event) -> bool {
        let pushed = self.push(event).is_ok();
        if !pushed {
            self.lock().lost += 1;
        }
        pushed
    }

    /// Counts events that were lost elsewhere.
    pub(super) fn lose(&self, count: u64) {
        self.lock().lost += count;
    }

    pub(super) fn emit(&self, event: Event) -> Emitted {
        match self.push(event) {
            Ok(()) => Emitted::Done,
            Err(event) => Emitted::Full(event),
        }
    }

    pub(super) async fn push_when_room(&self, mut event: Event) {
        loop {
            let room = self.room.notified();
            match self.push(event) {
                Ok(()) => return,
                Err(back) => event = back,
            }
            room.await;
        }
    }

    /// Waits until everything queued so far has been handed out.
    pub(super) async fn drained(&self) {
        loop {
            let idle = self.idle.notified();
            {
                let inner = self.lock();
                if !self.started.load(Relaxed) || inner.stop || (inner.events.is_empty() && !inner.busy) {
                    return;
                }
            }
            self.wake.notify_one();
            idle.await;
        }
    }

    /// Ends the thread; what is queued is handed out first.
    pub(super) fn stop(&self) {
        self.lock().stop = true;
        self.wake.notify_all();
        self.room.notify_waiters();
    }

    /// The next batch; `None` at the end.
    fn next(&self) -> Option<Vec<Queued>> {
        let mut inner = self.lock();
        inner.busy = false;
        if inner.events.is_empty() {
            self.idle.notify_waiters();
        }
        while inner.events.is_empty() {
            if inner.stop {
                return None;
            }
            inner = self.wake.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
        let until = Instant::now() + LINGER;
        while inner.events.len() < BATCH
            && !inner.stop
            && let Some(left) = until.checked_duration_since(Instant::now())
        {
            inner = self.wake.wait_timeout(inner, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        inner.busy = true;
        let count = inner.events.len().min(BATCH);
        let batch: Vec<_> = inner.events.drain(..count).collect();
        let bytes: usize = batch.iter().map(Queued::size).sum();
        inner.bytes = inner.bytes.saturating_sub(bytes);
        drop(inner);
        self.room.notify_waiters();
        Some(batch)
    }
}

/// Starts the thread that hands events out, once.
pub(super) fn start(plugins: &Arc<Plugins>, queue: &Arc<Queue>) -> Result<(), String> {
    if queue.started.swap(true, Relaxed) {
        return Ok(());
    }
    let (plugins, queue) = (Arc::downgrade(plugins), queue.clone());
    thread::Builder::new()
        .name("pinion-events".into())
        .spawn(move || hand_out(&plugins, &queue))
        .map(drop)
        .map_err(|error| format!("no thread for events: {error}"))
}

fn hand_out(plugins: &Weak<Plugins>, queue: &Queue) {
    let mut targets: Vec<Name> = Vec::new();
    while let Some(batch) = queue.next() {
        let Some(plugins) = plugins.upgrade() else { return };
        if targets.len() > TARGETS {
            targets.clear();
        }
        for observer in plugins.observers() {
            let events = batch
                .iter()
                .filter_map(|event| {
                    event_for(observer.generation(), event, plugins.catalogue(), &mut targets)
                })
                .collect::<Vec<_>>();
            if !events.is_empty() {
                observer.tell(events);
            }
        }
        plugins.wait_for_audit();
    }
}

/// The event as one plugin sees it; `None` when it does not want it.
fn event_for(
    generation: &Generation,
    event: &Queued,
    names: &Arc<Names>,
    targets: &mut Vec<Name>,
) -> Option<wit::Event> {
    let filters = generation.filters(Hook::Events);
    let wanted = |session: &SessionNames| filters.iter().any(|filter| filter.wants_session(session));
    Some(match event {
        Queued::Lost(count) => wit::Event::Lost(*count),
        Queued::Event(Event::SessionStart(event)) => {
            wit::Event::SessionStart(wanted(&event.names).then(|| session_event(event))?)
        }
        Queued::Event(Event::SessionEnd(event)) => {
            wit::Event::SessionEnd(wanted(&event.names).then(|| session_event(event))?)
        }
        Queued::Event(Event::Completion(event)) => {
            wit::Event::Completion(completion(generation, filters, event, names, targets)?)
        }
    })
}

fn session_event(event: &SessionEvent) -> wit::SessionEvent {
    let names = &event.names;
    wit::SessionEvent {
        at_ms: event.at_ms,
        session: names.session,
        user: names.user,
        database: names.database,
        endpoint: names.endpoint,
        application: names.application,
        client: names.client,
        reason: event.reason.clone(),
    }
}

fn completion(
    generation: &Generation,
    filters: &[Filter],
    event: &Completion,
    names: &Arc<Names>,
    targets: &mut Vec<Name>,
) -> Option<wit::Completion> {
    let ask = Ask {
        names: &event.names,
        dialect: event.dialect,
        digest: event.digest,
        facts: &event.facts,
        text: event.text.as_deref().unwrap_or_default(),
        hint: &event.hint,
        in_transaction: event.in_transaction,
        prepares: false,
    };
    if !filters.iter().any(|filter| filter.wants(&ask)) {
        return None;
    }
    // Held on to, so that the plugin can ask for the name in this call and the next ones.
    let target = event.target.as_deref().map_or(0, |target| {
        let name = names.hold(target);
        let id = name.id();
        if !targets.iter().any(|held| held.id() == id) {
            targets.push(name);
        }
        id
    });
    let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    let decision = |decision: &Decision| wit::Decision {
        plugin: decision.plugin.to_string(),
        hook: decision.hook.name().into(),
        verdict: decision.verdict.into(),
    };
    Some(wit::Completion {
        at_ms: event.at_ms,
        statement: statement(&ask, names.hint(&event.hint)),
        detail: detail(generation.needs, event.text.as_deref(), &event.facts),
        duration_us: micros(event.duration),
        database_us: micros(event.database),
        rows: event.rows,
        error: event.error.clone(),
        target,
        role: match event.role {
            Role::ReadWrite => wit::Role::ReadWrite,
            Role::ReadOnly => wit::Role::ReadOnly,
            Role::Unknown => wit::Role::Unknown,
        },
        pinned: event.pinned,
        decisions: event.decisions.iter().map(decision).collect(),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn event(number: u64) -> Event {
        let names = SessionNames::none(number);
        Event::SessionStart(SessionEvent { at_ms: 0, names, reason: String::new() })
    }

    fn shown(batch: &[Queued]) -> Vec<String> {
        let one = |queued: &Queued| match queued {
            Queued::Lost(count) => format!("lost {count}"),
            Queued::Event(Event::SessionStart(event)) => event.names.session.to_string(),
            Queued::Event(_) => unreachable!(),
        };
        batch.iter().map(one).collect()
    }

    #[test]
    fn what_is_lost_is_told_before_what_came_after() {
        let queue = Queue::new(2);
        assert!(queue.push_or_lose(event(1)));
        assert!(queue.push_or_lose(event(2)));
        assert!(!queue.push_or_lose(event(3)));
        assert!(!queue.push_or_lose(event(4)));
        assert_eq!(shown(&queue.next().unwrap()), ["1", "2"]);
        assert!(queue.push_or_lose(event(5)));
        assert_eq!(shown(&queue.next().unwrap()), ["lost 2", "5"]);
    }

    #[test]
    fn long_texts_fill_the_queue_as_well() {
        let queue = Queue::new(1_000);
        let long = |length: usize| {
            let (at_ms, names, reason) = (0, SessionNames::none(1), "x".repeat(length));
            Event::SessionStart(SessionEvent { at_ms, names, reason })
        };
        assert!(queue.push_or_lose(long(QUEUED_BYTES + 1)), "nothing else is queued");
        assert!(!queue.push_or_lose(event(2)));
        assert_eq!(queue.next().unwrap().len(), 1);
        assert!(queue.push_or_lose(long(QUEUED_BYTES / 2)));
        assert!(!queue.push_or_lose(long(QUEUED_BYTES / 2)));
        assert!(queue.push_or_lose(event(3)));
        // Lost, long, lost, short.
        assert_eq!(queue.next().unwrap().len(), 4);
        assert_eq!(queue.lock().bytes, 0);
    }

    #[test]
    fn batches_have_a_greatest_size_and_the_end_comes_after_all_events() {
        let queue = Queue::new(1_000);
        for n in 0..600 {
            assert!(queue.push_or_lose(event(n)));
        }
        queue.stop();
        let sizes: Vec<_> = std::iter::from_fn(|| queue.next()).map(|batch| batch.len()).collect();
        assert_eq!(sizes, [256, 256, 88]);
    }

    #[tokio::test]
    async fn who_waits_for_room_gets_it() {
        let queue = Queue::new(1);
        assert!(matches!(queue.emit(event(1)), Emitted::Done));
        let Emitted::Full(second) = queue.emit(event(2)) else { panic!("there is no room") };
        let waiting = tokio::spawn({
            let queue = queue.clone();
            async move { queue.push_when_room(second).await }
        });
        tokio::task::yield_now().await;
        assert_eq!(shown(&queue.next().unwrap()), ["1"]);
        tokio::time::timeout(Duration::from_secs(10), waiting).await.unwrap().unwrap();
        assert_eq!(shown(&queue.next().unwrap()), ["2"]);
    }
}
