//! Ctrl-C and SIGTERM set a flag; every wait in xtask looks at it, so that each owner of a process or a directory is
//! dropped in order and cleans up after itself.

use std::{
    sync::{
        Arc, LazyLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    flag,
};

use crate::error::{Context, Error, Result};

static INTERRUPTED: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);

/// From now on SIGINT, SIGTERM and SIGHUP no longer end the process but are seen by [`check`].
pub(crate) fn catch() -> Result<()> {
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        flag::register(signal, Arc::clone(&INTERRUPTED)).context("catching signals")?;
    }
    Ok(())
}

/// Errors with [`Error::Interrupted`] once a signal has come.
pub(crate) fn check() -> Result<()> {
    if INTERRUPTED.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) }
}

/// Looks every `interval` whether `ready` has an answer. `Ok(None)` when `patience` is over without one.
pub(crate) fn poll<T>(
    patience: Duration,
    interval: Duration,
    mut ready: impl FnMut() -> Result<Option<T>>,
) -> Result<Option<T>> {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(answer) = ready()? {
            return Ok(Some(answer));
        }
        check()?;
        if Instant::now() >= deadline {
            return Ok(None);
        }
        pause(interval);
    }
}

/// Waits `length`, or until a signal comes.
pub(crate) fn wait(length: Duration) -> Result<()> {
    poll(length, Duration::from_millis(20), || Ok(None::<()>)).map(drop)
}

/// Sleeps without looking at signals, for a clean-up that has to be finished.
#[expect(clippy::disallowed_methods, reason = "xtask has no async code; this is its one place that sleeps")]
pub(crate) fn pause(length: Duration) {
    std::thread::sleep(length);
}
