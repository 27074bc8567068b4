//! One `[[proxy]]` as it runs: what its endpoints share, and every client session it has.

use std::{
    cmp::Reverse,
    collections::HashMap,
    fmt,
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::{ArcSwap, ArcSwapOption, Guard};
use atomic_waker::AtomicWaker;
use ipnet::IpNet;
use subtle::ConstantTimeEq as _;
use tokio::sync::{Notify, Semaphore, watch};
use tracing::{error, info, warn};

use crate::{
    config::{AuthConfig, ClientAuthType, Profile, ProxyConfig, SecretSource, TargetRole},
    metrics::{CancelOutcome, EndpointMetrics, ProxyMetrics},
    plugin::{PluginHost, Plugins},
    protocol::{CancelKey, Facts, Hello as _, Kill, Killed, MockKey, PinReason, PinReasons, Protocol, Role},
    router::{self, NoTarget, Route},
    secrets::{SecretError, SecretHandle},
    session::{
        FUNCTION_HOLD,
        cancel::{Cancellable, UnderWay},
        carry,
    },
    target::Target,
    tls::{ClientTls, TargetTls, TlsError},
};

/// Cancel requests served at once; each is a connection to the database.
const MAX_CANCELS: usize = 64;
/// Addresses whose failed logins are remembered; beyond that the oldest minute is forgotten as a whole.
const MAX_FAILED_ADDRESSES: usize = 100_000;

/// A proxy could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// Certificates or roots.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// A secret.
    #[error("secret of {user}: {source}")]
    Secret {
        /// Database user.
        user: String,
        /// What is wrong.
        source: SecretError,
    },
    /// No randomness.
    #[error("no random bytes: {0}")]
    Random(String),
}

/// What all endpoints of one proxy share.
pub struct Proxy<P: Protocol> {
    /// Metric label.
    pub name: String,
    /// Statement facts and the like.
    pub shared: Arc<P::Shared>,
    /// The database servers, in the order of the configuration; at least one.
    pub targets: Vec<Arc<Target<P>>>,
    /// Certificate shown to clients.
    pub tls: ArcSwapOption<ClientTls>,
    /// For users that do not exist.
    pub mock: MockKey,
    /// Policy.
    pub plugins: Arc<Plugins>,
    /// Counters.
    pub metrics: ProxyMetrics,
    /// Sessions, by the id in their cancel key.
    pub sessions: Sessions,
    /// Requests that take longer are logged.
    pub slow_query: ArcSwapOption<Duration>,
    settings: ArcSwap<ProxyConfig>,
    users: ArcSwap<HashMap<String, User>>,
    cancels: Semaphore,
    failed_logins: Mutex<FailedLogins>,
    unauthenticated: AtomicUsize,
    /// Where writes go now: an index into `targets`, or `NO_WRITER`.
    writer: AtomicUsize,
    /// Whether several targets said that they are the writer; held while `writer` is found out.
    several_writers: Mutex<bool>,
    /// Goes up with each change of a target's role or usability.
    changes: watch::Sender<u64>,
}

/// No target is the writer, and none may be.
const NO_WRITER: usize = usize::MAX;

/// A database user that may log in.
#[derive(Debug, Clone)]
pub struct User {
    /// Where its password is kept.
    pub secret: Arc<SecretHandle>,
    /// How clients prove that they know it.
    pub method: ClientAuthType,
    source: SecretSource,
}

/// One listening address of a proxy.
pub struct Endpoint<P: Protocol> {
    /// Metric label.
    pub name: String,
    /// Whose.
    pub proxy: Arc<Proxy<P>>,
    /// What its clients are here for.
    pub role: TargetRole,
    /// Counters.
    pub metrics: EndpointMetrics,
    /// Networks that may connect; empty is everyone.
    pub allow: ArcSwap<Vec<IpNet>>,
}

impl<P: Protocol> fmt::Debug for Proxy<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proxy").field("name", &self.name).finish_non_exhaustive()
    }
}

impl<P: Protocol> fmt::Debug for Endpoint<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint").field("name", &self.name).finish_non_exhaustive()
    }
}

impl<P: Protocol> Proxy<P> {
    /// A proxy that listens nowhere yet. Blocks while its plugins are compiled.
    pub fn new(
        config: &ProxyConfig,
        slow_query: Option<Duration>,
        plugins: &Arc<PluginHost>,
    ) -> Result<Arc<Self>, SetupError> {
        let shared = Arc::new(P::shared(config.pool.max_prepared_statements));
        let tls = config.tls.as_ref().map(ClientTls::new).transpose()?;
        let targets = config.targets.iter().enumerate();
        let targets =
            targets.map(|(at, target)| Target::new(&config.name, at, target, &config.pool, shared.clone()));
        let proxy = Arc::new(Self {
            name: config.name.clone(),
            targets: targets.collect::<Result<_, _>>()?,
            shared,
            tls: ArcSwapOption::new(tls.map(Arc::new)),
            mock: MockKey::random().map_err(|e| SetupError::Random(e.to_string()))?,
            plugins: Plugins::start(plugins, &config.name, &config.plugins),
            metrics: ProxyMetrics::new(&config.name),
            sessions: Sessions::default(),
            slow_query: ArcSwapOption::new(slow_query.map(Arc::new)),
            users: ArcSwap::from_pointee(users(&config.auth, &HashMap::new())?),
            settings: ArcSwap::from_pointee(config.clone()),
            cancels: Semaphore::new(MAX_CANCELS),
            failed_logins: Mutex::default(),
            unauthenticated: AtomicUsize::new(0),
            writer: AtomicUsize::new(NO_WRITER),
            several_writers: Mutex::new(false),
            changes: watch::channel(0).0,
        });
        proxy.targets_changed();
        Ok(proxy)
    }

    /// Chooses the target for a request. `turn` is what tells clients apart, see [`router::choose`].
    pub fn choose(&self, endpoint: TargetRole, route: &Route, turn: u64) -> Result<usize, NoTarget> {
        if endpoint == TargetRole::ReadWrite && matches!(route, Route::Endpoint | Route::Writer) {
            // The usual way, without a look at every target.
            return match self.writer.load(Ordering::Relaxed) {
                NO_WRITER => Err(NoTarget::Wait(Role::ReadWrite)),
                at => Ok(at),
            };
        }
        let several = self.targets.len() > 1;
        let snapshots: Vec<_> = self.targets.iter().map(|target| target.snapshot(several)).collect();
        router::choose(&snapshots, endpoint, route, turn)
    }

    /// To be told of every change of a target's role or usability.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// A target's role or usability has changed: finds out where writes go, and tells those who wait.
    pub fn targets_changed(&self) {
        let mut several = self.several_writers.lock().unwrap_or_else(PoisonError::into_inner);
        let snapshots: Vec<_> = self.targets.iter().map(|target| target.snapshot(false)).collect();
        let chosen = router::choose(&snapshots, TargetRole::ReadWrite, &Route::Writer, 0);
        let now = chosen.unwrap_or(NO_WRITER);
        let before = self.writer.swap(now, Ordering::Relaxed);
        if before != now
            && let Some(writer) = self.targets.get(now).filter(|writer| writer.role() == Role::ReadWrite)
        {
            info!(proxy = %self.name, target = %writer.name, "writes go to this target");
        }
        let writers = self.targets.iter().filter(|t| t.is_usable() && t.role() == Role::ReadWrite);
        let names: Vec<_> = writers.map(|target| &*target.name).collect();
        if names.len() > 1 && !*several {
            warn!(
                proxy = %self.name, targets = names.join(", "), used = names[0],
                "several targets say that they are the writer; the first is used"
            );
        }
        *several = names.len() > 1;
        drop(several);
        self.changes.send_modify(|count| *count += 1);
    }

    /// Why an endpoint has no target that can be used; `None` when all have one.
    pub fn trouble(&self, endpoints: impl IntoIterator<Item = TargetRole>) -> Option<String> {
        let snapshots: Vec<_> = self.targets.iter().map(|target| target.snapshot(false)).collect();
        let lacking = endpoints
            .into_iter()
            .find(|role| !snapshots.iter().any(|target| router::is_fit(target, *role, &Route::Endpoint)))?;
        let role = match lacking {
            TargetRole::ReadWrite => Role::ReadWrite,
            TargetRole::ReadOnly => Role::ReadOnly,
        };
        let each = self.targets.iter().map(|target| {
            let why = target.trouble().unwrap_or_else(|| format!("is {}", target.role().name()));
            format!("target {}: {why}", target.name)
        });
        let each = each.collect::<Vec<_>>().join("; ");
        Some(format!("proxy {}: no {} target: {each}", self.name, role.name()))
    }

    /// What clients may be told of the servers: what all that were reached have in common. `None` before the first,
    /// where the protocol cannot do without.
    pub fn hello(&self) -> Option<P::Hello> {
        let known = self.targets.iter().filter_map(|target| target.hello());
        let common = known.fold(None, |common: Option<P::Hello>, hello| match common {
            Some(common) => Some(common.meet(&hello)),
            None => Some((*hello).clone()),
        });
        let hello = common.or(P::FIRST_HELLO)?;
        Some(match &self.settings().server_version {
            Some(version) => hello.with_version(version),
            None => hello,
        })
    }

    /// Settings as configured now.
    pub fn settings(&self) -> Guard<Arc<ProxyConfig>> {
        self.settings.load()
    }

    /// Takes over what can change live; `config` differs in nothing else.
    pub fn reconfigure(&self, config: &ProxyConfig, slow_query: Option<Duration>) -> Result<(), SetupError> {
        let tls = config.tls.as_ref().map(ClientTls::new).transpose()?;
        let users = users(&config.auth, &self.users.load())?;
        // What can fail comes first, so that a refusal changes nothing.
        let target_tls: Vec<_> = config.targets.iter().map(TargetTls::new).collect::<Result<_, _>>()?;
        for (target, tls) in self.targets.iter().zip(target_tls) {
            target.reconfigure(tls, &config.pool);
        }
        self.tls.store(tls.map(Arc::new));
        self.users.store(Arc::new(users));
        self.slow_query.store(slow_query.map(Arc::new));
        self.plugins.reconfigure(&config.plugins);
        self.settings.store(Arc::new(config.clone()));
        Ok(())
    }

    /// The user of that name, if it has a secret.
    pub fn user(&self, name: &str) -> Option<User> {
        self.users.load().get(name).cloned()
    }

    /// The secret of that user.
    pub fn secret(&self, name: &str) -> Option<Arc<SecretHandle>> {
        self.users.load().get(name).map(|user| user.secret.clone())
    }

    /// How a user without a secret is asked for a password: as the first one with a secret is.
    pub fn usual_method(&self) -> ClientAuthType {
        self.settings().auth[0].client_password_auth_type
    }

    /// User and database of the monitor.
    pub fn monitor(&self) -> (String, String) {
        let settings = self.settings();
        (settings.auth[settings.monitor].username.clone(), settings.monitor_database.clone())
    }

    /// Counts a client that has not proved who it is; `None` when there are too many.
    pub fn unauthenticated(self: &Arc<Self>) -> Option<Unauthenticated<P>> {
        let max = self.settings().max_unauthenticated;
        let guard = Unauthenticated(self.clone());
        (self.unauthenticated.fetch_add(1, Ordering::Relaxed) < max).then_some(guard)
    }

    /// True when that address has failed too often within this minute. The second value is the limit.
    pub fn login_rate_exceeded(&self, address: IpAddr, now: Instant) -> Option<u32> {
        let limit = self.settings().failed_logins_per_minute;
        let failed = self.failed_logins().count(address, now);
        (limit > 0 && failed >= limit).then_some(limit)
    }

    /// One more failed login from that address.
    pub fn note_failed_login(&self, address: IpAddr, now: Instant) {
        self.failed_logins().add(address, now);
    }

    fn failed_logins(&self) -> MutexGuard<'_, FailedLogins> {
        self.failed_logins.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Cancels what the session with this key runs.
    pub async fn cancel(&self, key: CancelKey) {
        match self.sessions.find(key) {
            Some(handle) => self.cancel_of(&handle).await,
            None => self.metrics.cancelled(CancelOutcome::UnknownKey),
        }
    }

    /// Does to another session of `user` what a kill says.
    pub async fn kill(&self, kill: Kill, user: &str) -> Killed {
        let Some(handle) = self.sessions.lock().get(&kill.id).cloned() else { return Killed::Unknown };
        if *lock(&handle.who).user != *user {
            return Killed::NotOwner;
        }
        if !kill.query_only {
            handle.signal(STOP);
        }
        self.cancel_of(&handle).await;
        Killed::Done
    }

    async fn cancel_of(&self, handle: &SessionHandle) {
        let Ok(_permit) = self.cancels.acquire().await else { return };
        let under_way = match handle.begin_cancel() {
            Cancel::UnderWay(under_way) => under_way,
            Cancel::Signalled => return self.metrics.cancelled(CancelOutcome::Forwarded),
            Cancel::NothingRunning => return self.metrics.cancelled(CancelOutcome::NothingRunning),
        };
        let cancellable = under_way.cancellable();
        let sent = match self.targets.get(cancellable.target()) {
            Some(target) => cancellable.send(target).await,
            None => false,
        };
        self.metrics.cancelled(if sent { CancelOutcome::Forwarded } else { CancelOutcome::Failed });
    }

    /// Re-reads the certificate if its files changed.
    pub fn refresh_tls(&self) {
        if let Some(tls) = self.tls.load().as_ref() {
            match tls.refresh() {
                Ok(true) => info!(proxy = %self.name, "certificate re-read"),
                Ok(false) => {}
                Err(error) => {
                    warn!(proxy = %self.name, %error, "changed certificate refused; the old one stays")
                }
            }
        }
    }

    /// Wakes the sessions that have been idle for too long, have lived long enough, or may let go of a connection.
    pub fn sweep(&self, now: Instant) {
        let settings = self.settings();
        self.sessions.for_each(|handle| {
            let idle = handle.idle_for(now);
            if idle >= settings.idle_client_timeout
                || (handle.activity() == Activity::Pinned && idle >= FUNCTION_HOLD)
                || now.saturating_duration_since(handle.since) >= settings.max_client_lifetime
            {
                handle.signal(CHECK);
            }
        });
    }

    /// True when idle clients may be asked to take their temporary tables along.
    pub fn carries_tables(&self) -> bool {
        let settings = self.settings();
        let pool = &settings.pool;
        // What an init query does to a session is not known.
        let wanted = pool.max_carried_table_bytes > 0 && pool.init_query.is_empty();
        P::PACKS_TABLES && settings.profile == Profile::Smart && wanted
    }

    /// Where clients wait for a connection, asks as many of those whose connection only temporary tables keep to take these
    /// along: those that have been idle for longest.
    pub fn make_room(&self, now: Instant) {
        if !self.carries_tables() {
            return;
        }
        for target in &self.targets {
            let waiting = target.pool.stats().waiting;
            if waiting == 0 {
                continue;
            }
            let mut idle = Vec::new();
            self.sessions.for_each(|handle| {
                let quiet = handle.idle_for(now);
                if handle.activity() == Activity::Pinned
                    && quiet >= carry::TABLE_HOLD
                    && handle.target() == Some(target.index)
                    && lock(&handle.pin).as_ref().is_some_and(|pin| pin.reasons == carry::PIN && !pin.stays)
                {
                    idle.push((quiet, handle.clone()));
                }
            });
            idle.sort_unstable_by_key(|(quiet, _)| Reverse(*quiet));
            idle.iter().take(waiting).for_each(|(_, handle)| handle.signal(YIELD));
        }
    }

    /// Every client that has logged in, see [`SessionHandle::describe`].
    pub fn describe_sessions(&self) -> Vec<serde_json::Value> {
        let now = Instant::now();
        let targets: Vec<&str> = self.targets.iter().map(|target| &*target.name).collect();
        let mut sessions = Vec::new();
        self.sessions.for_each(|handle| {
            if !lock(&handle.who).user.is_empty() {
                sessions.push((handle.number, handle.describe(&self.name, now, &targets)));
            }
        });
        sessions.sort_unstable_by_key(|(number, _)| *number);
        sessions.into_iter().map(|(_, session)| session).collect()
    }

    /// Sets the gauges that are read rather than counted.
    pub fn before_scrape(&self) {
        let mut in_transaction = vec![0; self.targets.len()];
        let mut pinned = vec![0; self.targets.len()];
        self.sessions.for_each(|handle| {
            let counts = match handle.activity() {
                Activity::InTransaction => &mut in_transaction,
                Activity::Pinned => &mut pinned,
                Activity::Other => return,
            };
            if let Some(count) = handle.target().and_then(|target| counts.get_mut(target)) {
                *count += 1;
            }
        });
        for ((target, in_transaction), pinned) in self.targets.iter().zip(in_transaction).zip(pinned) {
            target.before_scrape(in_transaction, pinned);
        }
    }
}

fn users(auth: &[AuthConfig], before: &HashMap<String, User>) -> Result<HashMap<String, User>, SetupError> {
    auth.iter()
        .map(|auth| {
            let method = auth.client_password_auth_type;
            // An unchanged source keeps its handle, and with it the keys already derived.
            let kept = before.get(&auth.username).filter(|user| user.source == auth.secret);
            let secret = match kept {
                Some(user) => user.secret.clone(),
                None => SecretHandle::new(auth.secret.clone(), &auth.username)
                    .map(Arc::new)
                    .map_err(|source| SetupError::Secret { user: auth.username.clone(), source })?,
            };
            Ok((auth.username.clone(), User { secret, method, source: auth.secret.clone() }))
        })
        .collect()
}

/// One client that has not proved who it is.
#[derive(Debug)]
pub struct Unauthenticated<P: Protocol>(Arc<Proxy<P>>);

impl<P: Protocol> Drop for Unauthenticated<P> {
    fn drop(&mut self) {
        self.0.unauthenticated.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Failed logins by address, within one minute.
#[derive(Debug, Default)]
struct FailedLogins {
    minute: Option<Instant>,
    by_address: HashMap<IpAddr, u32>,
}

impl FailedLogins {
    fn count(&mut self, address: IpAddr, now: Instant) -> u32 {
        self.turn(now);
        self.by_address.get(&address).copied().unwrap_or(0)
    }

    fn add(&mut self, address: IpAddr, now: Instant) {
        self.turn(now);
        if self.by_address.len() >= MAX_FAILED_ADDRESSES {
            self.by_address.clear();
        }
        *self.by_address.entry(address).or_default() += 1;
    }

    fn turn(&mut self, now: Instant) {
        if self.minute.is_none_or(|minute| now.saturating_duration_since(minute) >= Duration::from_secs(60)) {
            self.minute = Some(now);
            self.by_address.clear();
        }
    }
}

/// Signal: look whether you have been idle for too long or lived long enough.
pub const CHECK: u8 = 1;
/// Signal: end at the next transaction boundary.
pub const DRAIN: u8 = 2;
/// Signal: end now.
pub const STOP: u8 = 4;
/// Signal: give up waiting for a server connection, the client has cancelled its request.
pub const CANCEL: u8 = 8;
/// Signal: there are notifications for it.
pub const HEARD: u8 = 16;
/// Signal: others wait for the connection that its tables keep.
pub const YIELD: u8 = 32;

/// What a session is doing, for gauges.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Activity {
    /// Anything else.
    Other = 0,
    /// In a transaction, be it one that no server has begun.
    InTransaction = 1,
    /// Keeps its server connection.
    Pinned = 2,
}

/// One session as others see it.
#[derive(Debug)]
pub struct SessionHandle {
    /// Never 0; unlike the key's id never used again.
    pub number: u64,
    /// Server connections know whose they were by this.
    owner: AtomicU64,
    /// Given to the client.
    pub key: CancelKey,
    /// Logged in at.
    pub since: Instant,
    /// Milliseconds after `since`.
    last_active: AtomicU32,
    signals: AtomicU8,
    activity: AtomicU8,
    waker: AtomicWaker,
    request: Mutex<Request>,
    /// Whose session it is, once logged in.
    who: Mutex<Who>,
    /// Why it keeps its server connection, while it does.
    pin: Mutex<Option<Box<PinNote>>>,
}

/// Whose a session is. Empty before the login.
#[derive(Debug, Default)]
pub struct Who {
    /// Database user.
    pub user: Box<str>,
    /// Database.
    pub database: Box<str>,
    /// What the client calls itself.
    pub application: Box<str>,
    /// Endpoint it came by.
    pub endpoint: Box<str>,
    /// Where it comes from, without the port.
    pub address: Box<str>,
}

/// Why a session is pinned.
#[derive(Debug)]
pub struct PinNote {
    /// All reasons.
    pub reasons: PinReasons,
    /// Since the first of them.
    pub since: Instant,
    /// Of the statement that brought the last reason.
    pub digest: u128,
    /// What is known of it; `None` for a command.
    pub facts: Option<Arc<Facts>>,
    /// The plugin that decided it, if one did.
    pub plugin: Option<Arc<str>>,
    /// Whoever waits for the connection, it will not be given up before the client's next answer.
    pub stays: bool,
}

/// Where a session's request is, as far as a cancel must know.
#[derive(Debug, Default)]
enum Request {
    /// Nowhere.
    #[default]
    None,
    /// In line for a server connection.
    Waiting,
    /// At a server, or between requests of one transaction.
    Held(Arc<Cancellable>),
}

/// What has become of a cancel.
enum Cancel {
    /// To be sent to the server.
    UnderWay(UnderWay),
    /// The session knows and deals with it.
    Signalled,
    /// The session does nothing that could be cancelled.
    NothingRunning,
}

impl SessionHandle {
    /// What connections are marked with that were last used by the client as it is now: like `number` never 0 and never
    /// used again.
    pub fn owner(&self) -> u64 {
        self.owner.load(Ordering::Relaxed)
    }

    /// The client did something.
    pub fn touch(&self, now: Instant) {
        let millis = now.saturating_duration_since(self.since).as_millis();
        // Forty-nine days; lives are shorter, and a wrapped value only delays an idle timeout.
        self.last_active.store(millis as u32, Ordering::Relaxed);
    }

    /// Since the client last did something.
    pub fn idle_for(&self, now: Instant) -> Duration {
        let active = Duration::from_millis(u64::from(self.last_active.load(Ordering::Relaxed)));
        now.saturating_duration_since(self.since).saturating_sub(active)
    }

    /// Tells the session something and wakes it.
    pub fn signal(&self, signal: u8) {
        self.signals.fetch_or(signal, Ordering::Release);
        self.waker.wake();
    }

    /// Where signals wake the session.
    pub fn waker(&self) -> &AtomicWaker {
        &self.waker
    }

    /// What others have told.
    pub fn signals(&self) -> u8 {
        self.signals.load(Ordering::Acquire)
    }

    /// Takes back a signal that was dealt with.
    pub fn clear(&self, signal: u8) {
        self.signals.fetch_and(!signal, Ordering::AcqRel);
    }

    /// For gauges.
    pub fn set_activity(&self, activity: Activity) {
        self.activity.store(activity as u8, Ordering::Relaxed);
    }

    /// For gauges.
    pub fn activity(&self) -> Activity {
        match self.activity.load(Ordering::Relaxed) {
            1 => Activity::InTransaction,
            2 => Activity::Pinned,
            _ => Activity::Other,
        }
    }

    /// From now on cancels of this session go to that connection.
    pub fn hold(&self, cancellable: Arc<Cancellable>) {
        *self.request() = Request::Held(cancellable);
    }

    /// From now on a cancel ends this session's wait for a connection.
    pub fn wait(&self) {
        *self.request() = Request::Waiting;
    }

    /// From now on cancels of this session go nowhere.
    pub fn let_go(&self) {
        *self.request() = Request::None;
        self.clear(CANCEL);
    }

    /// The target whose connection it holds.
    fn target(&self) -> Option<usize> {
        match &*self.request() {
            Request::Held(cancellable) => Some(cancellable.target()),
            Request::Waiting | Request::None => None,
        }
    }

    /// It is theirs.
    pub fn belongs_to(&self, who: Who) {
        *lock(&self.who) = who;
    }

    /// These reasons are left of those why it is pinned.
    pub fn set_pin_reasons(&self, reasons: PinReasons) {
        if let Some(note) = lock(&self.pin).as_mut() {
            note.reasons = reasons;
        }
    }

    /// Whether it could do without its connection for a while is another matter now.
    pub fn set_pin_stays(&self, stays: bool) {
        if let Some(note) = lock(&self.pin).as_mut() {
            note.stays = stays;
        }
    }

    /// Why it is pinned now, if it is.
    pub fn note_pin(&self, note: Option<Box<PinNote>>) {
        *lock(&self.pin) = note;
    }

    /// For the admin API. Shape: see `docs/admin.md`, "GET /sessions".
    pub fn describe(&self, proxy: &str, now: Instant, targets: &[impl AsRef<str>]) -> serde_json::Value {
        let ago = |since: Instant| now.saturating_duration_since(since).as_secs_f64();
        let target = self.target().and_then(|target| targets.get(target)).map(AsRef::as_ref);
        let state = match (&*self.request(), self.activity()) {
            (Request::Waiting, _) => "WAITING",
            // Of a transaction that waits for its first statement there is no connection.
            (Request::None, Activity::InTransaction) => "IN_TRANSACTION",
            (Request::None, _) => "IDLE",
            (Request::Held(_), Activity::Pinned) => "PINNED",
            (Request::Held(_), Activity::InTransaction) => "IN_TRANSACTION",
            (Request::Held(_), Activity::Other) => "ACTIVE",
        };
        let pin = lock(&self.pin).as_ref().map(|pin| {
            serde_json::json!({
                "reasons": pin.reasons.iter().map(PinReason::name).collect::<Vec<_>>(),
                "for_seconds": ago(pin.since),
                "digest": format!("{:032x}", pin.digest),
                "text": pin.facts.as_ref().map(|facts| facts.digest_text.as_str()),
                "plugin": pin.plugin.as_deref(),
            })
        });
        let who = lock(&self.who);
        serde_json::json!({
            "proxy": proxy,
            "endpoint": who.endpoint,
            "id": self.key.id,
            "client": self.number,
            "user": who.user,
            "database": who.database,
            "application": who.application,
            "address": who.address,
            "connected_seconds": ago(self.since),
            "state": state,
            "quiet_seconds": self.idle_for(now).as_secs_f64(),
            "target": target,
            "pin": pin,
        })
    }

    /// Begins a cancel while the request cannot move on.
    fn begin_cancel(&self) -> Cancel {
        match &*self.request() {
            Request::Held(cancellable) => Cancel::UnderWay(cancellable.begin()),
            Request::Waiting => {
                self.signal(CANCEL);
                Cancel::Signalled
            }
            Request::None => Cancel::NothingRunning,
        }
    }

    fn request(&self) -> MutexGuard<'_, Request> {
        lock(&self.request)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// All sessions of one proxy.
#[derive(Debug, Default)]
pub struct Sessions {
    by_id: Mutex<HashMap<u32, Arc<SessionHandle>>>,
    /// Logged in or logging in.
    count: AtomicUsize,
    next_number: AtomicU64,
    draining: AtomicBool,
    changed: Notify,
}

impl Sessions {
    /// Counts a client; false when that makes more than `max`. To be followed by [`Self::left`] either way.
    pub fn entered(&self, max: usize) -> bool {
        self.count.fetch_add(1, Ordering::Relaxed) < max
    }

    /// A client that had entered is gone.
    pub fn left(&self) {
        self.count.fetch_sub(1, Ordering::AcqRel);
        self.changed.notify_waiters();
    }

    /// Gives a session its key. `None` without randomness.
    pub fn register(&self, now: Instant) -> Option<Arc<SessionHandle>> {
        loop {
            let mut random = [0; 8];
            getrandom::fill(&mut random).inspect_err(|e| error!(error = %e, "no random bytes")).ok()?;
            let [a, b, c, d, e, f, g, h] = random;
            let key =
                CancelKey { id: u32::from_be_bytes([a, b, c, d]), secret: u32::from_be_bytes([e, f, g, h]) };
            let mut by_id = self.lock();
            if key.id == 0 || by_id.contains_key(&key.id) {
                continue;
            }
            let number = self.next_number();
            let handle = Arc::new(SessionHandle {
                number,
                owner: AtomicU64::new(number),
                key,
                since: now,
                last_active: AtomicU32::new(0),
                signals: AtomicU8::new(if self.draining.load(Ordering::Acquire) { DRAIN } else { 0 }),
                activity: AtomicU8::new(0),
                waker: AtomicWaker::new(),
                request: Mutex::default(),
                who: Mutex::default(),
                pin: Mutex::default(),
            });
            by_id.insert(key.id, handle.clone());
            return Some(handle);
        }
    }

    fn next_number(&self) -> u64 {
        self.next_number.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// The session is to be as after login: what it has left on server connections, however it came there, is from now on
    /// as if another had left it.
    pub fn disown(&self, handle: &SessionHandle) {
        handle.owner.store(self.next_number(), Ordering::Relaxed);
    }

    /// The session is over.
    pub fn unregister(&self, handle: &SessionHandle) {
        self.lock().remove(&handle.key.id);
    }

    /// The session with this key; the secret is compared in constant time.
    pub fn find(&self, key: CancelKey) -> Option<Arc<SessionHandle>> {
        let handle = self.lock().get(&key.id).cloned()?;
        bool::from(handle.key.secret.ct_eq(&key.secret)).then_some(handle)
    }

    /// Tells every session, and with [`DRAIN`] those to come.
    pub fn signal_all(&self, signal: u8) {
        if signal == DRAIN {
            self.draining.store(true, Ordering::Release);
        }
        self.for_each(|handle| handle.signal(signal));
    }

    /// Looks at every session.
    pub fn for_each(&self, mut look: impl FnMut(&Arc<SessionHandle>)) {
        for handle in self.lock().values() {
            look(handle);
        }
    }

    /// Waits until every client is gone.
    pub async fn empty(&self) {
        loop {
            let changed = self.changed.notified();
            if self.count.load(Ordering::Acquire) == 0 {
                return;
            }
            changed.await;
        }
    }

    /// Clients now.
    pub fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u32, Arc<SessionHandle>>> {
        self.by_id.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
