//! Time. Needs the grant `clock`; without it everything is 0. A verdict that used it is not cached by the host.

use std::time::Duration;

use crate::host;

/// Milliseconds since 1970-01-01 UTC.
#[must_use]
pub fn now_ms() -> u64 {
    host::now_ms()
}

/// Time since some moment before the host started; never goes back.
#[must_use]
pub fn monotonic() -> Duration {
    Duration::from_nanos(host::monotonic_ns())
}
