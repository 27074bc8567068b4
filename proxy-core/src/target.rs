//! One database server: its pool, what it allows, whether it answers.

use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use tokio::time::{MissedTickBehavior, interval, sleep};
use tracing::{error, info, warn};

use crate::{
    config::{PoolConfig, TargetConfig},
    metrics::{Availability, TargetMetrics},
    pool::{Pool, Pooled},
    protocol::{PoolKey, Protocol},
    proxy::Proxy,
    server::{ServerConnection, ServerError},
    tls::{TargetTls, TlsError},
};

/// How often a target is asked whether it answers.
const HEALTH_INTERVAL: Duration = Duration::from_secs(1);
/// How often it is asked what it allows; changes there need a restart of the server anyway.
const LIMITS_EVERY: u32 = 30;

/// One database server.
pub struct Target<P: Protocol> {
    /// `host:port`; a metric label.
    pub name: String,
    /// Host name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Its connections.
    pub pool: Arc<Pool<ServerConnection<P>>>,
    /// Its metrics.
    pub metrics: TargetMetrics,
    /// What all connections of the proxy share.
    pub shared: Arc<P::Shared>,
    tls: ArcSwap<TargetTls>,
    settings: ArcSwap<PoolConfig>,
    /// `max_connections` less the reserved ones, as last read; 0 before.
    capacity: AtomicUsize,
    usable: AtomicBool,
    trouble: Mutex<String>,
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
        config: &TargetConfig,
        pool: &PoolConfig,
        shared: Arc<P::Shared>,
    ) -> Result<Arc<Self>, TlsError> {
        let name = format!("{}:{}", config.host, config.port);
        Ok(Arc::new(Self {
            metrics: TargetMetrics::new(proxy, &name, "READ_WRITE"),
            name,
            host: config.host.clone(),
            port: config.port,
            pool: Pool::new(),
            shared,
            tls: ArcSwap::from_pointee(TargetTls::new(config)?),
            settings: ArcSwap::from_pointee(pool.clone()),
            capacity: AtomicUsize::new(0),
            usable: AtomicBool::new(false),
            trouble: Mutex::new("not asked yet".into()),
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

    /// Takes over what can change live.
    pub fn reconfigure(&self, config: &TargetConfig, pool: &PoolConfig) -> Result<(), TlsError> {
        let tls = TargetTls::new(config)?;
        let renew = tls.mode() != self.tls().mode() || pool.init_query != self.settings().init_query;
        self.tls.store(Arc::new(tls));
        self.settings.store(Arc::new(pool.clone()));
        if renew {
            self.pool.renew();
        }
        self.apply_budget();
        Ok(())
    }

    /// Why the target cannot be used; `None` when it can.
    pub fn trouble(&self) -> Option<String> {
        if self.usable.load(Ordering::Relaxed) {
            return None;
        }
        Some(self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }

    /// Sets the gauges that are read rather than counted.
    pub fn before_scrape(&self) {
        let stats = self.pool.stats();
        self.metrics.pool_waiting.set(stats.waiting as f64);
        self.metrics
            .database_connections_currently_borrowed
            .set(stats.open.saturating_sub(stats.idle) as f64);
        self.metrics.max_database_connections_allowed.set(stats.budget as f64);
    }

    /// The budget: the configured share of what the target allows, less the monitor's own connection.
    fn apply_budget(&self) {
        let capacity = self.capacity.load(Ordering::Relaxed);
        if capacity > 0 {
            self.pool.set_budget(budget(capacity, self.settings().max_connections_percent));
        }
    }

    fn note(&self, health: &mut Availability, outcome: Result<(), &ServerError>) {
        health.record(outcome.is_ok());
        self.metrics.target_up.set(f64::from(u8::from(outcome.is_ok())));
        let was_usable = self.usable.swap(outcome.is_ok(), Ordering::Relaxed);
        match outcome {
            Ok(()) if !was_usable => info!(target = %self.name, "target is available"),
            Err(error) => {
                let text = error.to_string();
                let mut trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
                if was_usable || *trouble != text {
                    error!(target = %self.name, reason = %text, "target is unavailable");
                }
                *trouble = text;
            }
            Ok(()) => {}
        }
    }
}

/// Server connections allowed, at least one. Source: RDS Proxy's `MaxConnectionsPercent`, of whose connections the
/// monitor's is not part.
fn budget(capacity: usize, percent: u8) -> usize {
    (capacity * usize::from(percent) / 100).saturating_sub(1).max(1)
}

/// Asks the target every second whether it answers, and now and then what it allows, on a connection of its own.
pub async fn monitor<P: Protocol>(proxy: Arc<Proxy<P>>, target: Arc<Target<P>>) {
    let mut health = Availability::new(target.metrics.availability_percentage.clone());
    let mut ticks = interval(HEALTH_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let outcome = watch(&proxy, &target, &mut health, &mut ticks).await;
        target.note(&mut health, Err(&outcome));
        sleep(HEALTH_INTERVAL).await;
    }
}

async fn watch<P: Protocol>(
    proxy: &Arc<Proxy<P>>,
    target: &Arc<Target<P>>,
    health: &mut Availability,
    ticks: &mut tokio::time::Interval,
) -> ServerError {
    let (user, database) = proxy.monitor();
    let Some(secret) = proxy.secret(&user) else {
        return ServerError::Secret(format!("no secret for {user}"));
    };
    let mut parameters = Vec::new();
    for text in ["application_name", "pinion_monitor", "database", &database] {
        parameters.extend_from_slice(text.as_bytes());
        parameters.push(0);
    }
    let key = PoolKey { user: user.into(), parameters: parameters.into() };
    let mut connection = match ServerConnection::open(target, None, &key, &secret).await {
        Ok(connection) => connection,
        Err(error) => return error,
    };
    let mut request = Vec::new();
    P::write_query(P::LIMITS_QUERY, &mut request);
    for tick in 0_u32.. {
        let asked = if tick % LIMITS_EVERY == 0 {
            connection.exchange(&request).await.and_then(|answer| read_limits(&answer))
        } else {
            connection.probe().await.map(|()| 0)
        };
        match asked {
            Ok(capacity) => {
                if capacity > 0 && target.capacity.swap(capacity, Ordering::Relaxed) != capacity {
                    target.apply_budget();
                    let budget = target.pool.stats().budget;
                    info!(target = %target.name, capacity, budget, "server connections allowed");
                }
                target.note(health, Ok(()));
            }
            Err(error) => {
                connection.retire();
                return error;
            }
        }
        ticks.tick().await;
    }
    ServerError::Timeout
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
    fn the_budget_is_a_share_less_the_monitor_and_never_none() {
        assert_eq!(budget(97, 100), 96);
        assert_eq!(budget(1000, 95), 949);
        assert_eq!(budget(10, 10), 1);
        assert_eq!(budget(1, 1), 1);
    }
}
