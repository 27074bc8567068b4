//! Metrics of the plugin's own, shown by the host as `pinion_plugin_user_NAME` with the label `plugin`. Needs the grant
//! `metrics`; without it registering fails.
//!
//! Register in [`Plugin::new`](crate::Plugin::new) and keep the handle. A plugin that can do without its metrics says
//! `.unwrap_or_default()`: the default handle counts nothing.
//!
//! ```
//! # fn main() -> Result<(), String> {
//! use pinion_plugin::metrics::{self, Counter};
//!
//! let refused: Counter = metrics::counter("refused_total", "Statements refused.", &[("reason", "no-where")])?;
//! refused.increment();
//! # Ok(()) }
//! ```

use crate::host;

/// A number that only goes up.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counter(Option<u32>);

impl Counter {
    /// Adds one.
    pub fn increment(self) {
        self.add(1);
    }

    /// Adds `value`.
    pub fn add(self, value: u64) {
        if let Some(id) = self.0 {
            host::metric_add(id, value);
        }
    }
}

/// A number that goes up and down.
#[derive(Debug, Clone, Copy, Default)]
pub struct Gauge(Option<u32>);

impl Gauge {
    /// Makes it `value`.
    pub fn set(self, value: f64) {
        if let Some(id) = self.0 {
            host::metric_set(id, value);
        }
    }
}

/// Observations in buckets.
#[derive(Debug, Clone, Copy, Default)]
pub struct Histogram(Option<u32>);

impl Histogram {
    /// Adds an observation.
    pub fn observe(self, value: f64) {
        if let Some(id) = self.0 {
            host::metric_observe(id, value);
        }
    }
}

/// Registers a counter. `name`: lower-case letters, digits and underscores, a letter first; `labels` are fixed for the
/// series, and the same name and labels give the same series. At most 64 series a plugin. The error is a sentence.
pub fn counter(name: &str, help: &str, labels: &[(&str, &str)]) -> Result<Counter, String> {
    host::counter(name, help, labels).map(|id| Counter(Some(id)))
}

/// Registers a gauge, as [`counter`].
pub fn gauge(name: &str, help: &str, labels: &[(&str, &str)]) -> Result<Gauge, String> {
    host::gauge(name, help, labels).map(|id| Gauge(Some(id)))
}

/// Registers a histogram, as [`counter`]; `bounds` are the upper bounds of its buckets, rising.
pub fn histogram(
    name: &str,
    help: &str,
    labels: &[(&str, &str)],
    bounds: &[f64],
) -> Result<Histogram, String> {
    host::histogram(name, help, labels, bounds).map(|id| Histogram(Some(id)))
}
