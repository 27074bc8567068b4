//! One database server: its pool, what it allows, whether it answers, whether it is the writer.

use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use arc_swap::{ArcSwap, ArcSwapOption};
use tokio::{
    sync::Notify,
    time::{MissedTickBehavior, interval, sleep},
};
use tracing::{error, info, warn};

use crate::{
    channels::Listeners,
    config::{PoolConfig, TargetConfig},
    metrics::{Availability, TargetGauges, TargetMetrics},
    pool::{Pool, Pooled},
    protocol::{ConnectError, Protocol, Role},
    proxy::Proxy,
    router::Snapshot,
    server::{ServerConnection, ServerError},
    tls::{TargetTls, TlsError},
};

/// How often a target is asked what it is.
const HEALTH_INTERVAL: Duration = Duration::from_secs(1);
/// How often at most, while clients cannot reach it.
const DOUBT_INTERVAL: Duration = Duration::from_millis(100);
/// How often it is asked what it allows, in checks; changes there need a restart of the server anyway.
const LIMITS_EVERY: u32 = 30;

/// One database server.
pub struct Target<P: Protocol> {
    /// `host:port`, an IPv6 address in brackets; a metric label.
    pub name: Arc<str>,
    /// Its place in the configuration.
    pub index: usize,
    /// Host name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Its connections.
    pub pool: Arc<Pool<ServerConnection<P>>>,
    /// Connections beside the pool that hear notifications for clients.
    pub listeners: Listeners,
    /// Its metrics.
    pub metrics: TargetMetrics,
    /// What all connections of the proxy share.
    pub shared: Arc<P::Shared>,
    tls: ArcSwap<TargetTls>,
    settings: ArcSwap<PoolConfig>,
    /// What it said of itself when last connected to.
    hello: ArcSwapOption<P::Hello>,
    /// `max_connections` less the reserved ones, as last read; 0 before.
    capacity: AtomicUsize,
    /// A [`Role`], as last found.
    role: AtomicU8,
    usable: AtomicBool,
    /// Sessions pinned to its connections.
    pinned: AtomicUsize,
    doubted: Notify,
    health: Mutex<Health>,
}

/// A session that is pinned, until dropped.
#[derive(Debug)]
pub struct Pinned<P: Protocol> {
    target: Arc<Target<P>>,
}

impl<P: Protocol> Drop for Pinned<P> {
    fn drop(&mut self) {
        self.target.pinned.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What the last check came to, for people.
#[derive(Debug, Clone)]
pub struct Health {
    /// RDS Proxy's word: `REGISTERING`, `AVAILABLE` or `UNAVAILABLE`.
    pub state: &'static str,
    /// RDS Proxy's word for why it cannot be used: `UNREACHABLE`, `CONNECTION_FAILED` or `AUTH_FAILURE`.
    pub reason: Option<&'static str>,
    /// The same in full.
    pub description: Option<String>,
    /// Of state and role.
    pub since: SystemTime,
}

impl Health {
    fn is(&self, error: &ServerError) -> bool {
        self.reason == Some(reason(error)) && self.description.as_deref() == Some(&error.to_string())
    }
}

fn reason(error: &ServerError) -> &'static str {
    match error {
        ServerError::Io(_) | ServerError::Timeout => "UNREACHABLE",
        ServerError::Secret(_) | ServerError::Connect(ConnectError::Refused { bad_secret: true, .. }) => {
            "AUTH_FAILURE"
        }
        ServerError::Protocol(_) | ServerError::Connect(_) | ServerError::Statement { .. } => {
            "CONNECTION_FAILED"
        }
    }
}

impl<P: Protocol> fmt::Debug for Target<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Target").field("name", &self.name).finish_non_exhaustive()
    }
}

impl<P: Protocol> Target<P> {
    /// A target not yet asked anything.
    pub fn new(
        proxy: &str,
        index: usize,
        config: &TargetConfig,
        pool: &PoolConfig,
        shared: Arc<P::Shared>,
    ) -> Result<Arc<Self>, TlsError> {
        let name = match config.host.contains(':') {
            true => format!("[{}]:{}", config.host, config.port),
            false => format!("{}:{}", config.host, config.port),
        };
        Ok(Arc::new(Self {
            metrics: TargetMetrics::new(proxy, &name, Role::Unknown),
            name: name.into(),
            index,
            host: config.host.clone(),
            port: config.port,
            pool: Pool::new(),
            listeners: Listeners::default(),
            shared,
            tls: ArcSwap::from_pointee(TargetTls::new(config)?),
            settings: ArcSwap::from_pointee(pool.clone()),
            hello: ArcSwapOption::empty(),
            capacity: AtomicUsize::new(0),
            pinned: AtomicUsize::new(0),
            role: AtomicU8::new(Role::Unknown as u8),
            usable: AtomicBool::new(false),
            doubted: Notify::new(),
            health: Mutex::new(Health {
                state: "REGISTERING",
                reason: None,
                description: Some("not asked yet".into()),
                since: SystemTime::now(),
            }),
        }))
    }

    /// TLS as configured now.
    pub fn tls(&self) -> Arc<TargetTls> {
        self.tls.load_full()
    }

    /// Pool settings as configured now.
    pub fn settings(&self) -> Arc<PoolConfig> {
        self.settings.load_full()
    }

    /// What it said of itself when last connected to; `None` before.
    pub fn hello(&self) -> Option<Arc<P::Hello>> {
        self.hello.load_full()
    }

    /// It has said this of itself.
    pub fn said(&self, hello: P::Hello) {
        self.hello.store(Some(Arc::new(hello)));
    }

    /// Takes over what can change live: the pool's settings, and TLS as [`TargetTls::new`] has made it.
    pub fn reconfigure(&self, tls: TargetTls, pool: &PoolConfig) {
        let renew = tls.mode() != self.tls().mode() || pool.init_query != self.settings().init_query;
        self.tls.store(Arc::new(tls));
        self.settings.store(Arc::new(pool.clone()));
        if renew {
            self.pool.renew();
        }
        self.apply_budget();
    }

    /// What it was when last asked.
    pub fn role(&self) -> Role {
        Role::ALL[usize::from(self.role.load(Ordering::Relaxed))]
    }

    /// True when it answered when last asked.
    pub fn is_usable(&self) -> bool {
        self.usable.load(Ordering::Relaxed)
    }

    /// Somebody could not reach it: the monitor had better look soon.
    pub fn doubt(&self) {
        if self.is_usable() {
            self.doubted.notify_one();
        }
    }

    /// Why the target cannot be used; `None` when it can.
    pub fn trouble(&self) -> Option<String> {
        if self.is_usable() { None } else { self.health().description }
    }

    /// What the last check came to.
    pub fn health(&self) -> Health {
        self.lock_health().clone()
    }

    /// As the choice between targets sees it, without its load where nobody asks for that.
    pub fn snapshot(&self, with_load: bool) -> Snapshot<'_> {
        let (outstanding, capacity) = if with_load { self.pool.load() } else { (0, 0) };
        Snapshot { name: &self.name, role: self.role(), usable: self.is_usable(), outstanding, capacity }
    }

    /// For `GET /targets`.
    pub fn describe(&self, proxy: &str) -> serde_json::Value {
        let health = self.health();
        let stats = self.pool.stats();
        serde_json::json!({
            "proxy": proxy,
            "name": &*self.name,
            "address": &*self.name,
            "role": self.role().name(),
            "state": health.state,
            "reason": health.reason,
            "description": health.description,
            "since": humantime::format_rfc3339_millis(health.since).to_string(),
            "connections": {
                "open": stats.open,
                "idle": stats.idle,
                "borrowed": stats.open.saturating_sub(stats.idle),
                "waiting": stats.waiting,
            },
            "budget": stats.budget,
            "capacity": self.capacity.load(Ordering::Relaxed),
        })
    }

    /// Sets the gauges that are read rather than counted.
    pub fn before_scrape(&self, in_transaction: usize, pinned: usize) {
        let stats = self.pool.stats();
        self.metrics.set(TargetGauges {
            borrowed: stats.open.saturating_sub(stats.idle),
            allowed: stats.budget,
            waiting: stats.waiting,
            listeners: self.listeners.count(),
            in_transaction,
            pinned,
        });
    }

    /// True when one more session may be pinned to its connections. `percent` is of those that the pool may open.
    pub fn may_pin(&self, percent: u8) -> bool {
        let most = (self.pool.stats().budget * usize::from(percent)).div_ceil(100).max(1);
        self.pinned.load(Ordering::Relaxed) < most
    }

    /// Counts a session that is pinned.
    pub fn pin(self: &Arc<Self>) -> Pinned<P> {
        self.pinned.fetch_add(1, Ordering::Relaxed);
        Pinned { target: self.clone() }
    }

    /// The budget: the configured share of what the target allows, less the monitor's own connection.
    fn apply_budget(&self) {
        let capacity = self.capacity.load(Ordering::Relaxed);
        if capacity > 0 {
            self.pool.set_budget(budget(capacity, self.settings().max_connections_percent));
        }
    }

    /// Takes in what a check came to; true when role or usability is another than before.
    fn note(&self, availability: &mut Availability, outcome: Result<Role, &ServerError>) -> bool {
        let mut health = self.lock_health();
        let mut changed = false;
        if let Ok(role) = outcome {
            let before = self.role();
            if role != before {
                changed = true;
                self.role.store(role as u8, Ordering::Relaxed);
                self.metrics.found(role);
                availability.shown_by(self.metrics.now().availability_percentage.clone());
                if before == Role::Unknown {
                    info!(target = %self.name, role = role.name(), "target has a role");
                } else {
                    warn!(target = %self.name, role = role.name(), before = before.name(), "target changed its role");
                    // What was said at login (`in_hot_standby`, for one) holds no more.
                    self.pool.renew();
                }
            }
        }
        availability.record(outcome.is_ok());
        self.metrics.target_up.set(f64::from(u8::from(outcome.is_ok())));
        let was_usable = self.usable.swap(outcome.is_ok(), Ordering::Relaxed);
        changed |= was_usable != outcome.is_ok();
        match outcome {
            Ok(role) if !was_usable => info!(target = %self.name, role = role.name(), "target is available"),
            Err(error) if was_usable || !health.is(error) => {
                error!(target = %self.name, reason = %error, "target is unavailable");
                health.state = "UNAVAILABLE";
                health.reason = Some(reason(error));
                health.description = Some(error.to_string());
            }
            _ => {}
        }
        if outcome.is_ok() {
            (health.state, health.reason, health.description) = ("AVAILABLE", None, None);
        }
        if changed {
            health.since = SystemTime::now();
        }
        changed
    }

    fn lock_health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Server connections allowed, at least one. Source: RDS Proxy's `MaxConnectionsPercent`, of whose connections the
/// monitor's is not part.
fn budget(capacity: usize, percent: u8) -> usize {
    (capacity * usize::from(percent) / 100).saturating_sub(1).max(1)
}

/// Asks the target every second what it is, and now and then what it allows, on a connection of its own.
pub async fn monitor<P: Protocol>(proxy: Arc<Proxy<P>>, target: Arc<Target<P>>) {
    let mut availability = Availability::new(target.metrics.now().availability_percentage.clone());
    let mut ticks = interval(HEALTH_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let outcome = watch(&proxy, &target, &mut availability, &mut ticks).await;
        if target.note(&mut availability, Err(&outcome)) {
            proxy.targets_changed();
        }
        sleep(HEALTH_INTERVAL).await;
    }
}

async fn watch<P: Protocol>(
    proxy: &Arc<Proxy<P>>,
    target: &Arc<Target<P>>,
    availability: &mut Availability,
    ticks: &mut tokio::time::Interval,
) -> ServerError {
    let (user, database) = proxy.monitor();
    let Some(secret) = proxy.secret(&user) else {
        return ServerError::Secret(format!("no secret for {user}"));
    };
    let key = P::monitor_key(&user, &database);
    let mut connection = match ServerConnection::open(target, None, &key, &secret).await {
        Ok(connection) => connection,
        Err(error) => return error,
    };
    for tick in 0_u32.. {
        let asked = ask(&mut connection, tick % LIMITS_EVERY == 0).await;
        let (role, capacity) = match asked {
            Ok(asked) => asked,
            Err(error) => {
                connection.retire();
                return error;
            }
        };
        // The role first: who waits for a connection must not get one of a server that is not what it waits for.
        if target.note(availability, Ok(role)) {
            proxy.targets_changed();
        }
        if let Some(capacity) = capacity
            && target.capacity.swap(capacity, Ordering::Relaxed) != capacity
        {
            target.apply_budget();
            let budget = target.pool.stats().budget;
            info!(target = %target.name, capacity, budget, "server connections allowed");
        }
        let doubted = async {
            sleep(DOUBT_INTERVAL).await;
            target.doubted.notified().await;
        };
        tokio::select! {
            _ = ticks.tick() => {}
            () = doubted => {}
        }
    }
    ServerError::Timeout
}

/// One check: the role, and the capacity where wanted.
async fn ask<P: Protocol>(
    connection: &mut ServerConnection<P>,
    limits: bool,
) -> Result<(Role, Option<usize>), ServerError> {
    let mut request = Vec::new();
    P::write_query(&mut connection.state, P::ROLE_QUERY, &mut request);
    let role = connection.exchange(&request).await.and_then(|answer| read_role(&answer))?;
    if !limits {
        return Ok((role, None));
    }
    request.clear();
    P::write_query(&mut connection.state, P::LIMITS_QUERY, &mut request);
    let capacity = connection.exchange(&request).await.and_then(|answer| read_limits(&answer))?;
    Ok((role, Some(capacity)))
}

fn read_role((row, error): &(Vec<String>, Option<String>)) -> Result<Role, ServerError> {
    let what = "reading the role";
    if let Some(error) = error {
        return Err(ServerError::Statement { what, error: error.clone() });
    }
    let named = |role: &Role| matches!(row.as_slice(), [name] if name == role.name());
    Role::ALL
        .into_iter()
        .find(named)
        .ok_or_else(|| ServerError::Statement { what, error: format!("{row:?} is no role") })
}

fn read_limits((row, error): &(Vec<String>, Option<String>)) -> Result<usize, ServerError> {
    let what = "reading the connection limits";
    if let Some(error) = error {
        return Err(ServerError::Statement { what, error: error.clone() });
    }
    match row.as_slice() {
        [max, reserved] => match (max.parse::<usize>(), reserved.parse::<usize>()) {
            (Ok(max), Ok(reserved)) => Ok(max.saturating_sub(reserved).max(1)),
            _ => Err(ServerError::Statement { what, error: format!("{row:?} are no numbers") }),
        },
        _ => Err(ServerError::Statement { what, error: "no row".into() }),
    }
}

/// Closes what is too old or idle for too long, and resets what lies about tainted.
pub async fn reap<P: Protocol>(target: Arc<Target<P>>) {
    let mut ticks = interval(HEALTH_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let now = Instant::now();
        let settings = target.settings();
        let capacity = target.capacity.load(Ordering::Relaxed);
        let max_idle = capacity * usize::from(settings.max_idle_connections_percent) / 100;
        target.pool.reap(now, max_idle, settings.idle_server_timeout);
        let tainted = target.pool.take_idle_where(|c| {
            c.tainted && now.saturating_duration_since(Pooled::last_used(c)) > HEALTH_INTERVAL
        });
        for (id, mut connection) in tainted {
            crate::server::give_back_after(&target.pool, id, async move {
                match connection.reset(crate::metrics::ResetCause::Tainted).await {
                    Ok(()) => Ok(connection),
                    Err(error) => {
                        warn!(%error, "reset failed; the connection is closed");
                        Err(connection)
                    }
                }
            });
            target.pool.leave(id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_is_read_by_its_name_and_nothing_else() {
        let read = |row: &[&str]| read_role(&(row.iter().map(ToString::to_string).collect(), None));
        assert_eq!(read(&["READ_WRITE"]).ok(), Some(Role::ReadWrite));
        assert_eq!(read(&["READ_ONLY"]).ok(), Some(Role::ReadOnly));
        for row in [&["t"][..], &[], &["READ_ONLY", "READ_ONLY"]] {
            assert!(read(row).is_err(), "{row:?}");
        }
        assert!(read_role(&(vec!["READ_WRITE".into()], Some("no".into()))).is_err());
    }

    #[test]
    fn the_budget_is_a_share_less_the_monitor_and_never_none() {
        assert_eq!(budget(97, 100), 96);
        assert_eq!(budget(1000, 95), 949);
        assert_eq!(budget(10, 10), 1);
        assert_eq!(budget(1, 1), 1);
    }
}
