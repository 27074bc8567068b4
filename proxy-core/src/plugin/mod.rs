//! The plugin host as the session sees it: a chain of policy plugins, asked before a statement is sent.
//!
//! Sync by design: a hook call costs a fraction of a microsecond, and its deadline bounds it.
//!
//! [`PluginHost`] is what all proxies of the process share: the machine, the names, the audit sink. [`Plugins`] is one
//! proxy's chain. A call takes the chain as it is at that moment; a reload puts another one in its place.

mod audit;
mod breaker;
mod cache;
pub mod cli;
mod engine;
mod events;
mod filter;
mod generation;
mod imports;
mod instance;
mod load;
mod manage;
mod names;
mod shared;
mod slot;
mod store;
#[cfg(test)]
mod tests;
mod user_metrics;
mod vectors;
mod wit;

use std::{
    fmt,
    path::PathBuf,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
};

use arc_swap::ArcSwap;

use self::{
    audit::Audit,
    engine::Machine,
    events::Queue,
    manage::Inbox,
    names::{Name, Names},
    slot::{Member, Observer, Verdict},
    wit::Needs,
};
pub use self::{
    events::{Completion, Emitted, Event, SessionEvent},
    load::LoadError,
    manage::{PluginStatus, ReloadError, ReloadOutcome},
    user_metrics::UserMetrics,
};
pub(crate) use engine::MAX_MEMORY_BYTES;

use crate::{
    config::{AuditConfig, PluginConfig, PluginsConfig},
    metrics::{PluginMetrics, PluginsMetrics},
    protocol::{Dialect, Facts, Fault, FaultKind, Know, PinReason, know},
};
/// The hooks, by family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Hook {
    /// Before a statement goes to a server.
    Query,
    /// Before a server connection is borrowed.
    Route,
    /// Before a statement pins.
    Pin,
    /// After the answer.
    Events,
}

impl Hook {
    /// As the contract and metrics call it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        PluginMetrics::HOOKS[self as usize]
    }

    const fn bit(self) -> u32 {
        1 << self as u32
    }
}

/// A session's names as plugins know them: resolved once, at login, and valid while this lives.
#[derive(Debug, Clone)]
pub struct SessionNames {
    /// The session's number.
    pub session: u64,
    /// Database user.
    pub user: u32,
    /// Database.
    pub database: u32,
    /// Endpoint.
    pub endpoint: u32,
    /// `application_name`.
    pub application: u32,
    /// Client address.
    pub client: u32,
    /// What keeps the numbers valid.
    #[expect(dead_code, reason = "held for its lifetime")]
    held: Option<Arc<[Name; 5]>>,
}

impl SessionNames {
    /// A session that no plugin will know by name.
    #[must_use]
    pub const fn none(session: u64) -> Self {
        Self { session, user: 0, database: 0, endpoint: 0, application: 0, client: 0, held: None }
    }
}

/// One statement, as the chain is asked about it.
#[derive(Debug, Clone, Copy)]
pub struct Ask<'a> {
    /// Whose.
    pub names: &'a SessionNames,
    /// Its language.
    pub dialect: Dialect,
    /// Keyed hash of the normalised text.
    pub digest: u128,
    /// What the grammar says.
    pub facts: &'a Facts,
    /// As sent; may be no UTF-8.
    pub text: &'a [u8],
    /// The word after `pinion:` in a comment; empty for none.
    pub hint: &'a str,
    /// In a transaction that was open before this statement.
    pub in_transaction: bool,
    /// It is prepared now and does not run yet.
    pub prepares: bool,
}

/// What the chain says about a statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum QueryVerdict {
    /// Go on.
    Pass,
    /// Know this text anew and ask on with [`Plugins::on_query`] from plugin number `next`.
    Rewrite {
        /// The new statement.
        text: String,
        /// Where in the chain to go on.
        next: usize,
    },
    /// Answer with this error.
    Reject(Fault),
}

/// Where the chain wants a statement to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RouteVerdict {
    /// As the endpoint's role says.
    Pass,
    /// The writer.
    Writer,
    /// A reader.
    Reader,
    /// This target.
    Target(String),
    /// Answer with this error.
    Reject(Fault),
}

/// What the chain says about a pin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PinVerdict {
    /// As profile and filters say.
    Pass,
    /// Keep the connection.
    Pin,
    /// Run the `SET` again where the session is served next.
    Replay,
    /// Let it be lost.
    Ignore,
    /// Answer with this error.
    Reject(Fault),
}

/// One thing a plugin decided about a statement, for observers. Only verdicts other than pass, and failures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// The plugin's configured name.
    pub plugin: Arc<str>,
    /// Which hook.
    pub hook: Hook,
    /// `rewrite`, `reject`, `writer`, `reader`, `target`, `pin`, `replay`, `ignore`, `failed`.
    pub verdict: &'static str,
}

/// Longest statement that a plugin may write.
const MAX_REWRITE: usize = 1024 * 1024;
/// Longest text of a rejection, and of its hint.
const MAX_REJECTION: usize = 2 * 1024;

/// Somebody may rewrite.
const REWRITES: u32 = 1 << 8;
/// An observer wants texts.
const TEXT_IN_EVENTS: u32 = 1 << 9;

/// What the plugins of all proxies of the process share.
pub struct PluginHost {
    names: Arc<Names>,
    audit: Option<Arc<Audit>>,
    metrics: Arc<UserMetrics>,
    cache_directory: Option<PathBuf>,
    event_queue: usize,
    /// Instances of one plugin.
    lanes: usize,
    /// Made for the first plugin.
    machine: OnceLock<Result<Machine, String>>,
    /// For test vectors, which may be of any dialect wherever a plugin is loaded. Made for the first.
    know: OnceLock<Know>,
}

impl fmt::Debug for PluginHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PluginHost").finish_non_exhaustive()
    }
}

impl PluginHost {
    /// Opens the audit sink; everything else waits for the first plugin. `workers` is the number of worker threads.
    ///
    /// # Errors
    /// When the audit sink cannot be opened.
    pub fn new(
        config: &PluginsConfig,
        audit: Option<&AuditConfig>,
        workers: usize,
        metrics: Arc<UserMetrics>,
    ) -> Result<Arc<Self>, String> {
        Ok(Arc::new(Self {
            names: Names::new(),
            audit: audit.map(Audit::open).transpose()?,
            metrics,
            cache_directory: config.cache_directory.clone(),
            event_queue: config.event_queue,
            lanes: workers.clamp(1, 64) + 1,
            machine: OnceLock::new(),
            know: OnceLock::new(),
        }))
    }

    fn machine(&self) -> Result<&Machine, String> {
        self.machine
            .get_or_init(|| Machine::new(self.cache_directory.as_deref()))
            .as_ref()
            .map_err(Clone::clone)
    }

    fn know(&self) -> &Know {
        self.know.get_or_init(know)
    }

    /// Writes the audit records that are queued. After [`Plugins::shut_down`] of all proxies.
    pub async fn shut_down(&self) {
        if let Some(audit) = self.audit.clone() {
            let _ = tokio::task::spawn_blocking(move || audit.shut_down()).await;
        }
    }
}

/// The plugins of one proxy, in configuration order. Cheap to ask when nobody subscribed.
pub struct Plugins {
    host: Option<Arc<PluginHost>>,
    proxy: Arc<str>,
    chain: ArcSwap<Chain>,
    /// [`Hook::bit`]s, [`REWRITES`], [`TEXT_IN_EVENTS`].
    asks: AtomicU32,
    generation: AtomicU64,
    events: Arc<Queue>,
    inbox: Arc<Inbox>,
    metrics: PluginsMetrics,
}

/// The plugins as they are at one moment.
#[derive(Debug, Default)]
struct Chain {
    /// Goes up when plugins come, go or change places.
    order: u32,
    members: Vec<Member>,
}

impl Chain {
    /// Where to go on after a rewrite. When plugins have changed places since, all are asked.
    fn position(&self, from: usize) -> usize {
        if from >> 16 == self.order as usize { from & 0xffff } else { 0 }
    }

    fn after(&self, position: usize) -> usize {
        (self.order as usize) << 16 | (position + 1)
    }
}

impl fmt::Debug for Plugins {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Plugins").field("proxy", &self.proxy).finish_non_exhaustive()
    }
}

impl Drop for Plugins {
    fn drop(&mut self) {
        self.inbox.stop();
        self.events.stop();
    }
}

impl Plugins {
    /// No plugins, and none to come.
    #[must_use]
    pub fn none() -> Arc<Self> {
        Arc::new(Self::empty(None, ""))
    }

    /// Loads a proxy's plugins and keeps them up to date. Blocks while they are compiled. One that cannot be loaded is
    /// there as failed.
    #[must_use]
    pub fn start(host: &Arc<PluginHost>, proxy: &str, configs: &[PluginConfig]) -> Arc<Self> {
        let plugins = Arc::new(Self::empty(Some(host.clone()), proxy));
        plugins.manage(configs);
        plugins
    }

    fn empty(host: Option<Arc<PluginHost>>, proxy: &str) -> Self {
        let queue = host.as_ref().map_or(0, |host| host.event_queue);
        Self {
            host,
            proxy: proxy.into(),
            chain: ArcSwap::default(),
            asks: AtomicU32::new(0),
            generation: AtomicU64::new(0),
            events: Queue::new(queue),
            inbox: Arc::default(),
            metrics: PluginsMetrics::new(proxy),
        }
    }

    /// Puts another chain in place. Calls under way finish on the old one.
    fn set_chain(&self, chain: Chain) {
        let mut asks = 0;
        for member in &chain.members {
            for hook in [Hook::Query, Hook::Route, Hook::Pin, Hook::Events] {
                if member.asks(hook) {
                    asks |= hook.bit();
                }
            }
            if let Some(generation) = &member.generation {
                if generation.asks(Hook::Query) && generation.needs.contains(Needs::REWRITE) {
                    asks |= REWRITES;
                }
                if generation.asks(Hook::Events) && generation.needs.contains(Needs::TEXT) {
                    asks |= TEXT_IN_EVENTS;
                }
            }
        }
        self.chain.store(Arc::new(chain));
        self.asks.store(asks, Ordering::Relaxed);
        self.generation.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether any loaded plugin subscribed to `hook` at all; one relaxed load.
    pub fn asks(&self, hook: Hook) -> bool {
        self.asks.load(Ordering::Relaxed) & hook.bit() != 0
    }

    /// Whether any loaded plugin may rewrite and so wants to see statements when they are prepared.
    pub fn rewrites(&self) -> bool {
        self.asks.load(Ordering::Relaxed) & REWRITES != 0
    }

    /// Whether an observer wants statements' text.
    pub fn wants_text_in_events(&self) -> bool {
        self.asks.load(Ordering::Relaxed) & TEXT_IN_EVENTS != 0
    }

    /// Goes up with every change of any plugin of the chain.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Relaxed)
    }

    /// Resolves a session's names.
    pub fn names(
        &self,
        session: u64,
        user: &str,
        database: &str,
        endpoint: &str,
        application: &str,
        client: &str,
    ) -> SessionNames {
        let Some(host) = &self.host else { return SessionNames::none(session) };
        let held = [user, database, endpoint, application, client].map(|name| host.names.hold(name));
        let [user, database, endpoint, application, client] = [0, 1, 2, 3, 4].map(|at: usize| held[at].id());
        SessionNames { session, user, database, endpoint, application, client, held: Some(Arc::new(held)) }
    }

    fn hint(&self, hint: &str) -> u32 {
        if hint.is_empty() { 0 } else { self.host.as_ref().map_or(0, |host| host.names.hint(hint)) }
    }

    /// Asks the chain from plugin number `from` on, 0 or what a rewrite said. What was decided is added to `decisions`
    /// for observers.
    pub fn on_query(&self, ask: &Ask<'_>, from: usize, decisions: &mut Vec<Decision>) -> QueryVerdict {
        let chain = self.chain.load();
        let hint = self.hint(ask.hint);
        for (at, member) in chain.members.iter().enumerate().skip(chain.position(from)) {
            let asked = member.ask(Hook::Query, ask, |generation| generation.on_query(ask, hint));
            let verdict = match self.noted(member, Hook::Query, asked, decisions) {
                Ok(wit::QueryVerdict::Pass) => continue,
                Ok(wit::QueryVerdict::Rewrite(text)) => QueryVerdict::Rewrite { text, next: chain.after(at) },
                Ok(wit::QueryVerdict::Reject(rejection)) => QueryVerdict::Reject(fault(rejection)),
                Err(None) => continue,
                Err(Some(fault)) => QueryVerdict::Reject(fault),
            };
            return verdict;
        }
        QueryVerdict::Pass
    }

    /// Where it should run.
    pub fn on_route(&self, ask: &Ask<'_>, decisions: &mut Vec<Decision>) -> RouteVerdict {
        let chain = self.chain.load();
        let hint = self.hint(ask.hint);
        for member in &chain.members {
            let asked = member.ask(Hook::Route, ask, |generation| generation.on_route(ask, hint));
            let verdict = match self.noted(member, Hook::Route, asked, decisions) {
                Ok(wit::RouteVerdict::Pass) => continue,
                Ok(wit::RouteVerdict::Writer) => RouteVerdict::Writer,
                Ok(wit::RouteVerdict::Reader) => RouteVerdict::Reader,
                Ok(wit::RouteVerdict::Target(name)) => RouteVerdict::Target(name),
                Ok(wit::RouteVerdict::Reject(rejection)) => RouteVerdict::Reject(fault(rejection)),
                Err(None) => continue,
                Err(Some(fault)) => RouteVerdict::Reject(fault),
            };
            return verdict;
        }
        RouteVerdict::Pass
    }

    /// Whether the session must keep its connection for `reason`; `subject` is the variable or empty.
    pub fn on_pin(
        &self,
        ask: &Ask<'_>,
        reason: PinReason,
        subject: &str,
        decisions: &mut Vec<Decision>,
    ) -> PinVerdict {
        let chain = self.chain.load();
        let hint = self.hint(ask.hint);
        for member in &chain.members {
            let asked =
                member.ask(Hook::Pin, ask, |generation| generation.on_pin(ask, hint, reason, subject));
            let verdict = match self.noted(member, Hook::Pin, asked, decisions) {
                Ok(wit::PinVerdict::Pass) => continue,
                Ok(wit::PinVerdict::Pin) => PinVerdict::Pin,
                Ok(wit::PinVerdict::Replay)
                    if reason == PinReason::SessionVariable && !ask.in_transaction =>
                {
                    PinVerdict::Replay
                }
                Ok(wit::PinVerdict::Ignore) if reason == PinReason::SessionVariable => PinVerdict::Ignore,
                Ok(wit::PinVerdict::Replay | wit::PinVerdict::Ignore) => PinVerdict::Pin,
                Ok(wit::PinVerdict::Reject(rejection)) => PinVerdict::Reject(fault(rejection)),
                Err(None) => continue,
                Err(Some(fault)) => PinVerdict::Reject(fault),
            };
            return verdict;
        }
        PinVerdict::Pass
    }

    /// Takes an answer down for observers. A failure is an error: for the client, or none.
    fn noted<V: Verdict>(
        &self,
        member: &Member,
        hook: Hook,
        answered: Option<V>,
        decisions: &mut Vec<Decision>,
    ) -> Result<V, Option<Fault>> {
        let plugin = || member.slot.shared.name.clone();
        match answered {
            Some(verdict) => {
                if verdict != V::PASS {
                    decisions.push(Decision { plugin: plugin(), hook, verdict: verdict.name() });
                }
                Ok(verdict)
            }
            None => {
                decisions.push(Decision { plugin: plugin(), hook, verdict: "failed" });
                Err(member.closes(hook).then(|| {
                    let message = format!(
                        "The policy plugin \"{}\" failed, and its on_failure is \"closed\".",
                        member.slot.shared.name
                    );
                    Fault::error(FaultKind::PluginFailed, message)
                }))
            }
        }
    }

    /// Tells observers. Never waits.
    pub fn emit(&self, event: Event) -> Emitted {
        if !self.asks(Hook::Events) {
            return Emitted::Done;
        }
        if self.audit_blocks() {
            return self.events.emit(event);
        }
        if self.events.push_or_lose(event) {
            Emitted::Done
        } else {
            self.metrics.events_lost.increment(1);
            Emitted::Lost
        }
    }

    /// Tells observers once there is room.
    pub async fn emit_when_room(&self, event: Event) {
        self.events.push_when_room(event).await;
    }

    /// Says that so many events were lost elsewhere.
    pub fn lost_events(&self, count: u64) {
        self.metrics.events_lost.increment(count);
        self.events.lose(count);
    }

    fn audit(&self) -> Option<&Arc<Audit>> {
        self.host.as_ref()?.audit.as_ref()
    }

    fn audit_blocks(&self) -> bool {
        self.audit().is_some_and(|audit| audit.blocks())
    }

    /// Whether [`Self::relieve`] would wait.
    pub fn is_pressed(&self) -> bool {
        self.audit().is_some_and(|audit| audit.is_over())
    }

    /// After a hook: waits until the audit sink has room again, where it is configured to block. Returns at once
    /// otherwise.
    pub async fn relieve(&self) {
        if let Some(audit) = self.audit()
            && audit.is_over()
        {
            audit.relieve().await;
        }
    }

    fn wait_for_audit(&self) {
        if let Some(audit) = self.audit() {
            audit.wait_for_room();
        }
    }

    fn catalogue(&self) -> &Arc<Names> {
        // Only who has a host has observers.
        static NONE: OnceLock<Arc<Names>> = OnceLock::new();
        self.host.as_ref().map_or_else(|| NONE.get_or_init(Names::new), |host| &host.names)
    }

    fn observers(&self) -> Vec<Observer> {
        self.chain.load().members.iter().filter_map(Observer::of).collect()
    }

    /// Waits until every event emitted so far has been handed out.
    pub async fn drain(&self) {
        self.events.drained().await;
    }

    /// The end: events are handed out, nothing is watched any more. The audit sink is the host's.
    pub async fn shut_down(&self) {
        self.inbox.stop();
        self.drain().await;
        self.events.stop();
    }
}

/// A rejection as a client may see it.
fn fault(rejection: wit::Rejection) -> Fault {
    let clean = |text: String| {
        let text = generation::cut(&text, MAX_REJECTION);
        if text.contains('\0') { text.replace('\0', "") } else { text }
    };
    let code = rejection.sqlstate;
    let valid =
        code.len() == 5 && code.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit());
    let message = match clean(rejection.message) {
        empty if empty.is_empty() => "A policy plugin rejected the statement.".to_owned(),
        message => message,
    };
    Fault {
        native_code: valid.then_some(code),
        native_number: Some(rejection.code).filter(|number| *number != 0),
        hint: Some(clean(rejection.hint)).filter(|hint| !hint.is_empty()),
        ..Fault::error(FaultKind::PluginRejected, message)
    }
}

impl Verdict for wit::QueryVerdict {
    const PASS: Self = Self::Pass;

    fn name(&self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Rewrite(_) => "rewrite",
            Self::Reject(_) => "reject",
        }
    }
}

impl Verdict for wit::RouteVerdict {
    const PASS: Self = Self::Pass;

    fn name(&self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Writer => "writer",
            Self::Reader => "reader",
            Self::Target(_) => "target",
            Self::Reject(_) => "reject",
        }
    }
}

impl Verdict for wit::PinVerdict {
    const PASS: Self = Self::Pass;

    fn name(&self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Pin => "pin",
            Self::Replay => "replay",
            Self::Ignore => "ignore",
            Self::Reject(_) => "reject",
        }
    }
}
