//! What all instances of one plugin have in common, whatever generation they are of.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Instant,
};

use super::{audit::Audit, names::Names, store::Store, user_metrics::Table};
use crate::metrics::PluginMetrics;

/// One plugin's side of the host.
pub(super) struct Shared {
    /// The proxy's configured name.
    pub(super) proxy: Arc<str>,
    /// The plugin's configured name.
    pub(super) name: Arc<str>,
    pub(super) store: Store,
    pub(super) log: RateLimit,
    pub(super) table: Table,
    pub(super) audit: Option<Arc<Audit>>,
    pub(super) names: Arc<Names>,
    pub(super) metrics: Arc<PluginMetrics>,
    /// A candidate on trial: what it says is neither logged nor recorded.
    pub(super) muted: bool,
}

/// So many a second, and the rest is counted.
#[derive(Debug)]
pub(super) struct RateLimit {
    start: Instant,
    per_second: AtomicU64,
    /// The second in the upper half, what was let through in it in the lower.
    window: AtomicU64,
}

impl RateLimit {
    pub(super) fn new(per_second: u32) -> Self {
        Self {
            start: Instant::now(),
            per_second: AtomicU64::new(per_second.into()),
            window: AtomicU64::new(0),
        }
    }

    pub(super) fn set(&self, per_second: u32) {
        self.per_second.store(per_second.into(), Relaxed);
    }

    /// Whether one more may pass.
    pub(super) fn allows(&self) -> bool {
        self.allows_at(self.start.elapsed().as_secs())
    }

    fn allows_at(&self, second: u64) -> bool {
        let (second, limit) = (second & 0xffff_ffff, self.per_second.load(Relaxed));
        let taken = self.window.fetch_update(Relaxed, Relaxed, |window| {
            let passed = if window >> 32 == second { window & 0xffff_ffff } else { 0 };
            (passed < limit).then_some(second << 32 | (passed + 1))
        });
        taken.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_second_has_its_own_allowance() {
        let limit = RateLimit::new(3);
        let passed = |second| (0..10).filter(|_| limit.allows_at(second)).count();
        assert_eq!([passed(0), passed(0), passed(1), passed(7)], [3, 0, 3, 3]);
        limit.set(0);
        assert_eq!(passed(8), 0);
    }
}
