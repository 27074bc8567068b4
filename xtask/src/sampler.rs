//! Watches how many server connections there are, as the server itself sees them.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use crate::{
    cluster::Cluster,
    error::{Result, failed},
    interrupt,
    pgwire::Client,
};

/// What was seen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    /// Most server connections at once.
    pub(crate) peak: u64,
    /// Most of them at once with TLS.
    pub(crate) peak_tls: u64,
}

/// A thread that asks `pg_stat_activity` every 50 ms.
pub(crate) struct Sampler {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<Seen>>>,
}

impl Sampler {
    /// Counts connections of `user` to its own database from now on.
    pub(crate) fn start(cluster: &Cluster, user: &str) -> Result<Self> {
        let superuser = cluster.superuser("postgres")?;
        let stop = Arc::new(AtomicBool::new(false));
        let (user, flag) = (user.to_owned(), Arc::clone(&stop));
        let thread = thread::spawn(move || watch(superuser, &user, &flag));
        Ok(Self { stop, thread: Some(thread) })
    }

    /// Ends the watch.
    pub(crate) fn finish(mut self) -> Result<Seen> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().map(JoinHandle::join);
        thread
            .and_then(std::result::Result::ok)
            .unwrap_or_else(|| failed("the watch over pg_stat_activity broke"))
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn watch(mut superuser: Client, user: &str, stop: &AtomicBool) -> Result<Seen> {
    let sql = format!(
        "SELECT count(*), count(*) FILTER (WHERE ssl) FROM pg_stat_activity JOIN pg_stat_ssl USING (pid) \
         WHERE datname = '{user}' AND usename = '{user}' AND backend_type = 'client backend'"
    );
    let mut seen = Seen::default();
    loop {
        let rows = superuser.query(&sql)?;
        let mut counts = rows.iter().flatten().filter_map(|value| value.as_deref()?.parse().ok());
        let (Some(now), Some(tls)) = (counts.next(), counts.next()) else {
            return failed("pg_stat_activity answered in an unknown form");
        };
        seen = Seen { peak: seen.peak.max(now), peak_tls: seen.peak_tls.max(tls) };
        if stop.load(Ordering::Relaxed) {
            return Ok(seen);
        }
        interrupt::pause(Duration::from_millis(50));
    }
}
