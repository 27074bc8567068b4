//! The whole process: sets everything up, runs until told to stop, drains.

use std::{
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use axum::http::StatusCode;
use tokio::{
    net::TcpListener,
    signal::unix::{Signal as Unix, SignalKind, signal},
    task::JoinHandle,
    time::{MissedTickBehavior, interval, timeout},
};
use tracing::{error, info, warn};

use crate::{
    admin::{
        self, Readiness,
        api::{self, ApiError, Control},
    },
    config::{Config, EngineFamily, LogConfig, ProxyConfig},
    listener::{accept_loop, listen},
    logging::LevelHandle,
    metrics::{self, EndpointMetrics, ProcessMetrics, Recorder, ReloadOutcome},
    plugin::{PluginHost, Plugins, ReloadError},
    protocol::{Protocol, mysql::MySql, postgres::Postgres},
    proxy::{DRAIN, Endpoint, Proxy, STOP, SetupError},
    session::carry::TABLE_HOLD,
    shutdown::{self, Giver},
    target::{monitor, reap},
};

/// For sessions to end after they were told to end now.
const STOP_GRACE: Duration = Duration::from_secs(5);
/// For observers to be told what is still queued.
const EVENTS_GRACE: Duration = Duration::from_secs(10);

/// Why the process did not start or did not go on.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A listening address is taken or not ours.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// As configured.
        address: String,
        /// The system's word.
        source: std::io::Error,
    },
    /// A proxy cannot be set up.
    #[error("proxy {proxy}: {source}")]
    Setup {
        /// Its name.
        proxy: String,
        /// Why.
        source: Box<SetupError>,
    },
    /// Signals or metrics.
    #[error("{0}")]
    System(String),
}

/// A proxy of whatever protocol, as the process sees it.
trait Running: Send + Sync {
    fn name(&self) -> &str;
    fn reconfigure(&self, config: &ProxyConfig, log: &LogConfig) -> Result<(), SetupError>;
    fn trouble(&self) -> Option<String>;
    fn before_scrape(&self);
    fn targets(&self) -> Vec<serde_json::Value>;
    fn sessions(&self) -> Vec<serde_json::Value>;
    fn every_second(&self, now: Instant);
    fn make_room(&self, now: Instant);
    fn signal_all(&self, signal: u8);
    fn clients(&self) -> usize;
    fn close(&self);
    fn emptied(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>>;
    fn plugins(&self) -> &Arc<Plugins>;
}

struct Served<P: Protocol> {
    proxy: Arc<Proxy<P>>,
    endpoints: Vec<Arc<Endpoint<P>>>,
}

impl<P: Protocol> Running for Served<P> {
    fn name(&self) -> &str {
        &self.proxy.name
    }

    fn reconfigure(&self, config: &ProxyConfig, log: &LogConfig) -> Result<(), SetupError> {
        self.proxy.reconfigure(config, log.slow_query)?;
        for endpoint in &self.endpoints {
            if let Some(config) = config.endpoints.iter().find(|e| e.name == endpoint.name) {
                endpoint.allow.store(Arc::new(config.allow.clone()));
            }
        }
        Ok(())
    }

    fn trouble(&self) -> Option<String> {
        self.proxy.trouble(self.endpoints.iter().map(|endpoint| endpoint.role))
    }

    fn before_scrape(&self) {
        self.proxy.before_scrape();
    }

    fn targets(&self) -> Vec<serde_json::Value> {
        self.proxy.targets.iter().map(|target| target.describe(&self.proxy.name)).collect()
    }

    fn sessions(&self) -> Vec<serde_json::Value> {
        self.proxy.describe_sessions()
    }

    fn every_second(&self, now: Instant) {
        self.proxy.refresh_tls();
        self.proxy.sweep(now);
    }

    fn make_room(&self, now: Instant) {
        self.proxy.make_room(now);
    }

    fn signal_all(&self, signal: u8) {
        self.proxy.sessions.signal_all(signal);
    }

    fn clients(&self) -> usize {
        self.proxy.sessions.count()
    }

    fn close(&self) {
        for target in &self.proxy.targets {
            target.pool.close();
        }
    }

    fn emptied(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(self.proxy.sessions.empty())
    }

    fn plugins(&self) -> &Arc<Plugins> {
        &self.proxy.plugins
    }
}

/// All proxies of the process.
struct Fleet {
    proxies: Vec<Box<dyn Running>>,
    draining: AtomicBool,
}

impl fmt::Debug for Fleet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.proxies.iter().map(|p| p.name())).finish()
    }
}

impl Readiness for Fleet {
    fn not_ready(&self) -> Vec<String> {
        if self.draining.load(Ordering::Relaxed) {
            return vec!["draining".into()];
        }
        self.proxies.iter().filter_map(|p| p.trouble()).collect()
    }

    fn before_scrape(&self) {
        for proxy in &self.proxies {
            proxy.before_scrape();
        }
    }
}

impl Control for Fleet {
    fn targets(&self) -> Vec<serde_json::Value> {
        self.proxies.iter().flat_map(|proxy| proxy.targets()).collect()
    }

    fn sessions(&self) -> Vec<serde_json::Value> {
        self.proxies.iter().flat_map(|proxy| proxy.sessions()).collect()
    }

    fn plugins(&self) -> Vec<serde_json::Value> {
        let all = self.proxies.iter().flat_map(|proxy| proxy.plugins().status());
        all.map(|status| serde_json::json!(status)).collect()
    }

    fn reload_plugin(
        &self,
        name: String,
    ) -> Pin<Box<dyn Future<Output = Result<serde_json::Value, ApiError>> + Send + '_>> {
        Box::pin(async move {
            let mut reloaded = Vec::new();
            for proxy in &self.proxies {
                match proxy.plugins().reload(&name).await {
                    Ok(outcome) => {
                        reloaded.push(serde_json::json!({ "proxy": proxy.name(), "outcome": outcome }));
                    }
                    Err(ReloadError::Unknown) => {}
                    Err(error @ ReloadError::Busy) => {
                        return Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string()));
                    }
                    Err(ReloadError::Refused(error)) => {
                        let message = format!("proxy {}: {error}; the old one runs on", proxy.name());
                        return Err(ApiError::new(StatusCode::CONFLICT, message));
                    }
                }
            }
            if reloaded.is_empty() {
                return Err(ApiError::new(StatusCode::NOT_FOUND, ReloadError::Unknown.to_string()));
            }
            Ok(serde_json::json!({ "reloaded": reloaded }))
        })
    }
}

/// Runs until SIGTERM or SIGINT, then drains; a second signal stops at once. SIGHUP reads the configuration again.
pub async fn run(path: PathBuf, config: Config, level: LevelHandle) -> Result<(), RunError> {
    // Before anybody is told that it runs: until then a signal ends the process.
    let signals = Signals::listen()?;
    let recorder = Arc::new(metrics::install().map_err(|e| RunError::System(e.to_string()))?);
    let process = ProcessMetrics::new();
    let (accepting, stop_accepting) = shutdown::signal();
    let (serving, stop_serving) = shutdown::signal();
    let mut inherited = Inherited::take();
    let mut tasks: Vec<JoinHandle<()>> = Vec::new();
    let mut fleet: Vec<Box<dyn Running>> = Vec::new();
    let workers = config
        .worker_threads
        .or_else(|| std::thread::available_parallelism().ok().map(Into::into))
        .unwrap_or(1);
    let plugins = PluginHost::new(&config.plugins, config.audit.as_ref(), workers, recorder.plugins())
        .map_err(RunError::System)?;
    for proxy in &config.proxies {
        let served = match proxy.engine_family {
            EngineFamily::Postgresql => {
                serve::<Postgres>(proxy, &config.log, &plugins, &mut inherited, &stop_accepting, &mut tasks)?
            }
            EngineFamily::Mysql => {
                serve::<MySql>(proxy, &config.log, &plugins, &mut inherited, &stop_accepting, &mut tasks)?
            }
        };
        fleet.push(served);
    }
    let fleet = Arc::new(Fleet { proxies: fleet, draining: AtomicBool::new(false) });
    let mut metrics_task = None;
    if let Some(metrics) = &config.metrics {
        let address = metrics.listen;
        let listener =
            listen(address).map_err(|source| RunError::Listen { address: address.to_string(), source })?;
        info!(address = %listener.local_addr().unwrap_or(address), "metrics listener ready");
        let mut stop = stop_serving.clone();
        let stopped = async move { stop.given().await };
        metrics_task = Some(tokio::spawn(admin::serve(
            listener,
            recorder.clone(),
            fleet.clone() as Arc<dyn Readiness>,
            stopped,
        )));
    }
    let mut admin_task = None;
    if let Some(admin) = &config.admin {
        let listener = api::Listener::open(admin)
            .map_err(|source| RunError::Listen { address: admin.listen.to_string(), source })?;
        info!(address = listener.address(), "admin listener ready");
        let mut stop = stop_serving.clone();
        let stopped = async move { stop.given().await };
        admin_task = Some(tokio::spawn(listener.serve(fleet.clone() as Arc<dyn Control>, stopped)));
    }
    tasks.push(tokio::spawn(housekeeping(fleet.clone(), recorder)));
    tasks.push(tokio::spawn(room_making(fleet.clone())));
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    info!(version = env!("CARGO_PKG_VERSION"), "pinion is ready");

    wait_for_stop(signals, &path, config, &fleet, &process, &level, &accepting).await;

    // Sessions have ended: what they told observers goes to plugins, and what those recorded to the audit sink.
    for proxy in &fleet.proxies {
        if timeout(EVENTS_GRACE, proxy.plugins().shut_down()).await.is_err() {
            warn!(proxy = proxy.name(), "observers were not told of everything");
        }
    }
    plugins.shut_down().await;

    for task in tasks {
        task.abort();
        let _ = task.await;
    }
    serving.give();
    for task in [metrics_task, admin_task].into_iter().flatten() {
        let _ = task.await;
    }
    Ok(())
}

/// Sets up one proxy and opens its endpoints.
fn serve<P: Protocol>(
    config: &ProxyConfig,
    log: &LogConfig,
    plugins: &Arc<PluginHost>,
    inherited: &mut Inherited,
    stop: &shutdown::Signal,
    tasks: &mut Vec<JoinHandle<()>>,
) -> Result<Box<dyn Running>, RunError> {
    let proxy = Proxy::<P>::new(config, log.slow_query, plugins)
        .map_err(|source| RunError::Setup { proxy: config.name.clone(), source: Box::new(source) })?;
    let mut endpoints = Vec::new();
    for endpoint in &config.endpoints {
        let address = endpoint.listen;
        let listener = match inherited.find(address) {
            Some(listener) => listener,
            None => {
                listen(address).map_err(|source| RunError::Listen { address: address.to_string(), source })?
            }
        };
        let bound = listener.local_addr().unwrap_or(address);
        info!(proxy = %config.name, endpoint = %endpoint.name, address = %bound, protocol = P::NAME, "endpoint ready");
        let endpoint = Arc::new(Endpoint {
            name: endpoint.name.clone(),
            metrics: EndpointMetrics::new(&config.name, &endpoint.name),
            proxy: proxy.clone(),
            role: endpoint.target_role,
            allow: arc_swap::ArcSwap::from_pointee(endpoint.allow.clone()),
        });
        tasks.push(tokio::spawn(accept_loop(listener, endpoint.clone(), stop.clone())));
        endpoints.push(endpoint);
    }
    for target in &proxy.targets {
        tasks.push(tokio::spawn(monitor(proxy.clone(), target.clone())));
        tasks.push(tokio::spawn(reap(target.clone())));
    }
    Ok(Box::new(Served { proxy, endpoints }))
}

async fn housekeeping(fleet: Arc<Fleet>, recorder: Arc<Recorder>) {
    let mut ticks = interval(Duration::from_secs(1));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for tick in 0_u64.. {
        ticks.tick().await;
        let now = Instant::now();
        for proxy in &fleet.proxies {
            proxy.every_second(now);
        }
        if tick % 5 == 0 {
            recorder.upkeep();
        }
    }
}

async fn room_making(fleet: Arc<Fleet>) {
    let mut ticks = interval(TABLE_HOLD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let now = Instant::now();
        fleet.proxies.iter().for_each(|proxy| proxy.make_room(now));
    }
}

/// The signals that the process listens to.
struct Signals {
    terminate: Unix,
    interrupt: Unix,
    hangup: Unix,
}

impl Signals {
    fn listen() -> Result<Self, RunError> {
        let one =
            |kind| signal(kind).map_err(|e| RunError::System(format!("cannot listen for signals: {e}")));
        Ok(Self {
            terminate: one(SignalKind::terminate())?,
            interrupt: one(SignalKind::interrupt())?,
            hangup: one(SignalKind::hangup())?,
        })
    }
}

async fn wait_for_stop(
    signals: Signals,
    path: &Path,
    mut config: Config,
    fleet: &Fleet,
    process: &ProcessMetrics,
    level: &LevelHandle,
    accepting: &Giver,
) {
    let Signals { mut terminate, mut interrupt, mut hangup } = signals;
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = hangup.recv() => {
                let _ = sd_notify::notify(&[sd_notify::NotifyState::Reloading]);
                config = reload(path, config, fleet, process, level);
                let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
            }
        }
    }
    let clients: usize = fleet.proxies.iter().map(|p| p.clients()).sum();
    info!(clients, timeout_seconds = config.drain_timeout.as_secs_f64(), "draining");
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    fleet.draining.store(true, Ordering::Relaxed);
    accepting.give();
    for proxy in &fleet.proxies {
        proxy.signal_all(DRAIN);
    }
    let drained = tokio::select! {
        drained = timeout(config.drain_timeout, all_gone(fleet)) => drained.is_ok(),
        _ = terminate.recv() => false,
        _ = interrupt.recv() => false,
    };
    if !drained {
        let clients: usize = fleet.proxies.iter().map(|p| p.clients()).sum();
        warn!(clients, "closing the clients that are left");
        for proxy in &fleet.proxies {
            proxy.signal_all(STOP);
        }
        let _ = timeout(STOP_GRACE, all_gone(fleet)).await;
    }
    for proxy in &fleet.proxies {
        proxy.close();
    }
    info!(drained, "stopped");
}

async fn all_gone(fleet: &Fleet) {
    for proxy in &fleet.proxies {
        proxy.emptied().await;
    }
}

/// Applies what can change live; a configuration with a fault changes nothing.
fn reload(path: &Path, old: Config, fleet: &Fleet, process: &ProcessMetrics, level: &LevelHandle) -> Config {
    let new = match Config::load(path) {
        Ok(new) => new,
        Err(errors) => {
            for message in errors.messages() {
                error!(%message, "configuration refused; nothing changed");
            }
            process.reloaded(ReloadOutcome::Refused);
            return old;
        }
    };
    let changes = old.changes(&new);
    let new = old.reloaded(&new);
    for proxy in &fleet.proxies {
        let Some(config) = new.proxies.iter().find(|p| p.name == proxy.name()) else { continue };
        if let Err(error) = proxy.reconfigure(config, &new.log) {
            error!(proxy = proxy.name(), %error, "configuration refused for this proxy; it keeps the old one");
            process.reloaded(ReloadOutcome::Refused);
            return old;
        }
    }
    if let Err(reason) = level.set(&new.log.level) {
        warn!(%reason, "log level not changed");
    }
    info!(changed = ?changes.live, "configuration reloaded");
    if changes.restart.is_empty() {
        process.reloaded(ReloadOutcome::Applied);
    } else {
        warn!(settings = ?changes.restart, "these settings need a restart and were left as they are");
        process.reloaded(ReloadOutcome::Partial);
    }
    new
}

/// Sockets that systemd opened for us.
struct Inherited(Mutex<Vec<TcpListener>>);

impl Inherited {
    fn take() -> Self {
        let mut fds = listenfd::ListenFd::from_env();
        let mut listeners = Vec::new();
        for at in 0..fds.len() {
            match fds.take_tcp_listener(at) {
                Ok(Some(listener)) => {
                    let ready = listener.set_nonblocking(true).and_then(|()| TcpListener::from_std(listener));
                    match ready {
                        Ok(listener) => listeners.push(listener),
                        Err(error) => warn!(%error, "inherited socket cannot be used"),
                    }
                }
                Ok(None) => {}
                Err(error) => warn!(%error, "inherited socket is not a TCP listener"),
            }
        }
        Self(Mutex::new(listeners))
    }

    /// The inherited socket that listens on `address`.
    fn find(&mut self, address: SocketAddr) -> Option<TcpListener> {
        let listeners = self.0.get_mut().unwrap_or_else(PoisonError::into_inner);
        let at = listeners.iter().position(|l| l.local_addr().is_ok_and(|bound| bound == address))?;
        Some(listeners.remove(at))
    }
}
