//! Switches a plugin off that fails too often, so that it costs its deadline a few times and not for every statement.

use std::{
    collections::VecDeque,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU8, Ordering},
    },
    time::{Duration, Instant},
};

use super::instance::TrapKind;

/// Within this time failures add up.
const WINDOW: Duration = Duration::from_secs(10);
/// So many calls that took too long switch it off: each held up a worker thread.
const DEADLINES: usize = 3;
/// So many failures of any kind do.
const FAILURES: usize = 10;

const CLOSED: u8 = 0;
const OPEN: u8 = 1;
const PROBING: u8 = 2;

/// Whether a call may be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Leave {
    /// Yes.
    Yes,
    /// Yes, to see whether it works again; what becomes of it must be told.
    Probe,
    /// No.
    No,
}

/// One plugin's breaker.
#[derive(Debug)]
pub(super) struct Breaker {
    state: AtomicU8,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    failures: VecDeque<(Instant, bool)>,
    retry_at: Instant,
    retry_after: Duration,
}

impl Breaker {
    pub(super) fn new(retry_after: Duration) -> Self {
        let inner = Inner { failures: VecDeque::new(), retry_at: Instant::now(), retry_after };
        Self { state: AtomicU8::new(CLOSED), inner: Mutex::new(inner) }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the plugin is switched off, or on probation.
    pub(super) fn is_open(&self) -> bool {
        self.state.load(Ordering::Relaxed) != CLOSED
    }

    /// Asks for leave; one relaxed load when all is well.
    pub(super) fn leave(&self) -> Leave {
        if self.state.load(Ordering::Relaxed) == CLOSED { Leave::Yes } else { self.leave_at(Instant::now()) }
    }

    fn leave_at(&self, now: Instant) -> Leave {
        let inner = self.lock();
        match self.state.load(Ordering::Relaxed) {
            CLOSED => Leave::Yes,
            OPEN if now >= inner.retry_at => {
                self.state.store(PROBING, Ordering::Relaxed);
                Leave::Probe
            }
            _ => Leave::No,
        }
    }

    /// A probe was not asked after all, or (`well`) answered; true when that switched the plugin on again.
    pub(super) fn probed(&self, well: bool) -> bool {
        let mut inner = self.lock();
        if self.state.load(Ordering::Relaxed) != PROBING {
            return false;
        }
        if well {
            inner.failures.clear();
        }
        self.state.store(if well { CLOSED } else { OPEN }, Ordering::Relaxed);
        well
    }

    /// A call failed; true when that switched the plugin off.
    pub(super) fn failed(&self, kind: TrapKind) -> bool {
        self.failed_at(kind, Instant::now())
    }

    fn failed_at(&self, kind: TrapKind, now: Instant) -> bool {
        let mut inner = self.lock();
        match self.state.load(Ordering::Relaxed) {
            OPEN => return false, // a call that began before
            PROBING => {}
            _ => {
                inner.failures.retain(|(at, _)| now.saturating_duration_since(*at) < WINDOW);
                inner.failures.push_back((now, kind == TrapKind::Deadline));
                let late = inner.failures.iter().filter(|(_, deadline)| *deadline).count();
                if inner.failures.len() < FAILURES && late < DEADLINES {
                    return false;
                }
            }
        }
        inner.retry_at = now + inner.retry_after;
        self.state.swap(OPEN, Ordering::Relaxed) == CLOSED
    }

    /// A new file or configuration begins anew.
    pub(super) fn reset(&self, retry_after: Duration) {
        let mut inner = self.lock();
        inner.failures.clear();
        inner.retry_after = retry_after;
        self.state.store(CLOSED, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RETRY: Duration = Duration::from_secs(60);

    #[test]
    fn three_deadlines_or_ten_failures_within_the_window_switch_off() {
        for (kind, count) in [(TrapKind::Deadline, 3), (TrapKind::Panic, 10)] {
            let breaker = Breaker::new(RETRY);
            let now = Instant::now();
            for n in 1..count {
                assert!(!breaker.failed_at(kind, now), "{n}");
            }
            assert_eq!(breaker.leave(), Leave::Yes);
            assert!(breaker.failed_at(kind, now));
            assert!(!breaker.failed_at(kind, now), "it says so once");
            assert_eq!(breaker.leave_at(now + RETRY / 2), Leave::No);
        }
    }

    #[test]
    fn failures_that_are_far_apart_do_not_add_up() {
        let breaker = Breaker::new(RETRY);
        let now = Instant::now();
        for n in 0..100 {
            assert!(!breaker.failed_at(TrapKind::Deadline, now + n * WINDOW / 2));
        }
    }

    #[test]
    fn one_call_is_let_through_to_see_whether_it_works_again() {
        let breaker = Breaker::new(RETRY);
        let now = Instant::now();
        let trip = || (0..3).any(|_| breaker.failed_at(TrapKind::Deadline, now));
        assert!(trip());
        assert_eq!(breaker.leave_at(now + RETRY), Leave::Probe);
        assert_eq!(breaker.leave_at(now + RETRY), Leave::No);
        assert!(!breaker.failed_at(TrapKind::Panic, now + RETRY), "it was off before");
        assert_eq!(breaker.leave_at(now + RETRY), Leave::No);
        assert_eq!(breaker.leave_at(now + 2 * RETRY), Leave::Probe);
        assert!(!breaker.probed(false), "not asked after all");
        assert_eq!(breaker.leave_at(now + 2 * RETRY), Leave::Probe);
        assert!(breaker.probed(true));
        assert_eq!(breaker.leave(), Leave::Yes);
        assert!(trip(), "earlier failures are forgotten, new ones count");
        breaker.reset(RETRY);
        assert_eq!(breaker.leave(), Leave::Yes);
    }
}
