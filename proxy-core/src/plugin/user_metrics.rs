//! Metrics that plugins register, rendered beside ours.
//!
//! They have a registry of their own because they come and go with plugins, and because their names and buckets are
//! known only when a plugin says them.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

/// Series that one plugin may have.
const MAX_SERIES: usize = 64;
/// Labels of one series, beside ours.
const MAX_LABELS: usize = 8;
/// Longest label value, name and help.
const MAX_TEXT: usize = 256;
/// Buckets of a histogram, the last one not counted.
const MAX_BOUNDS: usize = 32;

/// What a series does.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum SeriesKind {
    Counter,
    Gauge,
    /// With the upper bounds of its buckets.
    Histogram(Arc<[f64]>),
}

impl SeriesKind {
    const fn name(&self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram(_) => "histogram",
        }
    }
}

/// One series' value.
#[derive(Debug)]
enum Series {
    Counter(AtomicU64),
    /// The bits of an `f64`.
    Gauge(AtomicU64),
    Histogram {
        bounds: Arc<[f64]>,
        counts: Box<[AtomicU64]>,
        sum: AtomicU64,
    },
}

/// A series as an instance holds it.
#[derive(Debug, Clone)]
pub(super) struct SeriesOf(Arc<Series>);

impl SeriesOf {
    fn new(kind: &SeriesKind) -> Self {
        Self(Arc::new(match kind {
            SeriesKind::Counter => Series::Counter(AtomicU64::new(0)),
            SeriesKind::Gauge => Series::Gauge(AtomicU64::new(0)),
            SeriesKind::Histogram(bounds) => Series::Histogram {
                bounds: bounds.clone(),
                counts: (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect(),
                sum: AtomicU64::new(0),
            },
        }))
    }

    /// Adds to a counter; false when it is none.
    pub(super) fn add(&self, value: u64) -> bool {
        let Series::Counter(counter) = &*self.0 else { return false };
        counter.fetch_add(value, Relaxed);
        true
    }

    /// Sets a gauge; false when it is none.
    pub(super) fn set(&self, value: f64) -> bool {
        let Series::Gauge(gauge) = &*self.0 else { return false };
        gauge.store(value.to_bits(), Relaxed);
        true
    }

    /// Adds an observation to a histogram; false when it is none.
    pub(super) fn observe(&self, value: f64) -> bool {
        let Series::Histogram { bounds, counts, sum } = &*self.0 else { return false };
        if value.is_finite() {
            counts[bounds.partition_point(|bound| *bound < value)].fetch_add(1, Relaxed);
            let _ = sum.fetch_update(Relaxed, Relaxed, |sum| Some((f64::from_bits(sum) + value).to_bits()));
        }
        true
    }
}

/// All series of all plugins.
#[derive(Debug, Default)]
pub struct UserMetrics(Mutex<BTreeMap<String, Family>>);

#[derive(Debug)]
struct Family {
    kind: SeriesKind,
    help: String,
    /// By labels as they are rendered.
    series: BTreeMap<String, SeriesOf>,
}

impl UserMetrics {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Family>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn register(&self, name: &str, help: &str, kind: &SeriesKind, labels: &str) -> Result<SeriesOf, String> {
        let mut families = self.lock();
        let family = families.entry(name.to_owned()).or_insert_with(|| Family {
            kind: kind.clone(),
            help: help.to_owned(),
            series: BTreeMap::new(),
        });
        if family.kind != *kind {
            let kind = family.kind.name();
            return Err(format!("{name} is a {kind} already, or a histogram with other bounds"));
        }
        Ok(family.series.entry(labels.to_owned()).or_insert_with(|| SeriesOf::new(kind)).clone())
    }

    fn forget(&self, name: &str, labels: &str) {
        let mut families = self.lock();
        if let Some(family) = families.get_mut(name) {
            family.series.remove(labels);
            if family.series.is_empty() {
                families.remove(name);
            }
        }
    }

    /// Appends everything in Prometheus' text format.
    pub(crate) fn render(&self, out: &mut String) {
        for (name, family) in &*self.lock() {
            let (kind, help) = (family.kind.name(), &family.help);
            let name = format!("pinion_plugin_user_{name}");
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
            for (labels, series) in &family.series {
                render(&name, labels, &series.0, out);
            }
            out.push('\n');
        }
    }
}

fn render(name: &str, labels: &str, series: &Series, out: &mut String) {
    let _ = match series {
        Series::Counter(value) => writeln!(out, "{name}{{{labels}}} {}", value.load(Relaxed)),
        Series::Gauge(value) => {
            writeln!(out, "{name}{{{labels}}} {}", f64::from_bits(value.load(Relaxed)))
        }
        Series::Histogram { bounds, counts, sum } => {
            let mut count = 0;
            for (bound, bucket) in bounds.iter().zip(counts) {
                count += bucket.load(Relaxed);
                let _ = writeln!(out, "{name}_bucket{{{labels},le=\"{bound}\"}} {count}");
            }
            count += counts.last().map_or(0, |last| last.load(Relaxed));
            let sum = f64::from_bits(sum.load(Relaxed));
            writeln!(
                out,
                "{name}_bucket{{{labels},le=\"+Inf\"}} {count}\n{name}_sum{{{labels}}} {sum}\n{name}_count{{{labels}}} {count}"
            )
        }
    };
}

/// The series of one plugin, by id; ids begin at 1.
#[derive(Debug)]
pub(super) struct Table {
    /// `None` for a plugin on trial, whose metrics nobody sees.
    registry: Option<Arc<UserMetrics>>,
    ours: String,
    series: Mutex<Vec<Registered>>,
}

#[derive(Debug, Clone)]
struct Registered {
    name: String,
    labels: String,
    kind: SeriesKind,
    series: SeriesOf,
}

impl Table {
    pub(super) fn new(registry: Option<Arc<UserMetrics>>, proxy: &str, plugin: &str) -> Self {
        let ours = format!("proxy=\"{}\",plugin=\"{}\"", escape(proxy), escape(plugin));
        Self { registry, ours, series: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Registered>> {
        self.series.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The id of a series, made when it is new.
    pub(super) fn register(
        &self,
        kind: &SeriesKind,
        name: &str,
        help: &str,
        labels: &[(String, String)],
    ) -> Result<u32, String> {
        check(kind, name, help, labels)?;
        let mut all = self.ours.clone();
        for (name, value) in labels {
            let _ = write!(all, ",{name}=\"{}\"", escape(value));
        }
        let mut series = self.lock();
        if let Some(at) = series.iter().position(|known| known.name == name && known.labels == all) {
            if series[at].kind != *kind {
                return Err(format!("{name} is a {} already", series[at].kind.name()));
            }
            return Ok(at as u32 + 1);
        }
        if series.len() >= MAX_SERIES {
            return Err(format!("a plugin may have {MAX_SERIES} series, and this would be one more"));
        }
        let value = match &self.registry {
            Some(registry) => registry.register(name, &escape(help), kind, &all)?,
            None => SeriesOf::new(kind),
        };
        series.push(Registered { name: name.to_owned(), labels: all, kind: kind.clone(), series: value });
        Ok(series.len() as u32)
    }

    /// All series registered so far, in the order of their ids.
    pub(super) fn all(&self) -> Vec<SeriesOf> {
        self.lock().iter().map(|registered| registered.series.clone()).collect()
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        let Some(registry) = &self.registry else { return };
        for registered in self.series.get_mut().unwrap_or_else(PoisonError::into_inner) {
            registry.forget(&registered.name, &registered.labels);
        }
    }
}

fn check(kind: &SeriesKind, name: &str, help: &str, labels: &[(String, String)]) -> Result<(), String> {
    let word = |text: &str| {
        text.len() <= MAX_TEXT
            && text.starts_with(|first: char| first.is_ascii_lowercase())
            && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
    };
    if !word(name) {
        return Err(format!(
            "{name:?} is no name for a metric: lower-case letters, digits and underscores, a letter first"
        ));
    }
    if help.len() > MAX_TEXT {
        return Err(format!("the help of {name} is over {MAX_TEXT} bytes"));
    }
    if labels.len() > MAX_LABELS {
        return Err(format!("{name} has more than {MAX_LABELS} labels"));
    }
    for (at, (label, value)) in labels.iter().enumerate() {
        if !word(label) || ["proxy", "plugin", "le", "quantile"].contains(&label.as_str()) {
            return Err(format!("{label:?} is no name for a label of {name}"));
        }
        if labels[..at].iter().any(|(earlier, _)| earlier == label) {
            return Err(format!("{name} has the label {label} twice"));
        }
        if value.len() > MAX_TEXT {
            return Err(format!("a label value of {name} is over {MAX_TEXT} bytes"));
        }
    }
    if let SeriesKind::Histogram(bounds) = kind {
        let rising = bounds.windows(2).all(|pair| pair[0] < pair[1]);
        if bounds.is_empty() || bounds.len() > MAX_BOUNDS || !rising || bounds.iter().any(|b| !b.is_finite())
        {
            return Err(format!("the bounds of {name} must be 1 to {MAX_BOUNDS} rising numbers"));
        }
    }
    Ok(())
}

/// As the text format wants it.
fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn rendered(registry: &UserMetrics) -> String {
        let mut out = String::new();
        registry.render(&mut out);
        out
    }

    #[test]
    fn series_keep_their_ids_and_values_and_go_with_their_plugin() {
        let registry = Arc::new(UserMetrics::default());
        let table = Table::new(Some(registry.clone()), "p", "a\"b");
        let labels = [("kind".to_owned(), "x\ny".to_owned())];
        let id = table.register(&SeriesKind::Counter, "seen_total", "Seen.", &labels).unwrap();
        assert_eq!(table.register(&SeriesKind::Counter, "seen_total", "Seen.", &labels), Ok(id));
        let other = table.register(&SeriesKind::Counter, "seen_total", "Seen.", &[]).unwrap();
        assert_ne!(id, other);
        assert!(table.all()[id as usize - 1].add(3));
        assert!(!table.all()[id as usize - 1].set(3.0));
        let bounds = SeriesKind::Histogram([0.5, 1.0].into());
        let histogram = table.register(&bounds, "took_seconds", "Took.", &[]).unwrap();
        for value in [0.5, 0.7, 9.0, f64::NAN] {
            assert!(table.all()[histogram as usize - 1].observe(value));
        }
        let text = rendered(&registry);
        let ours = r#"proxy="p",plugin="a\"b""#;
        for line in [
            "# TYPE pinion_plugin_user_seen_total counter".to_owned(),
            format!("pinion_plugin_user_seen_total{{{ours},kind=\"x\\ny\"}} 3"),
            format!("pinion_plugin_user_seen_total{{{ours}}} 0"),
            format!("pinion_plugin_user_took_seconds_bucket{{{ours},le=\"0.5\"}} 1"),
            format!("pinion_plugin_user_took_seconds_bucket{{{ours},le=\"+Inf\"}} 3"),
            format!("pinion_plugin_user_took_seconds_sum{{{ours}}} 10.2"),
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
        }
        drop(table);
        assert_eq!(rendered(&registry), "");
    }

    #[test]
    fn what_would_break_the_page_is_refused() {
        let table = Table::new(None, "p", "x");
        let counter = |name: &str, labels: &[(&str, &str)]| {
            let labels: Vec<_> = labels.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
            table.register(&SeriesKind::Counter, name, "", &labels)
        };
        for name in ["", "Upper", "1a", "a-b", "a b", "a\n"] {
            assert!(counter(name, &[]).is_err(), "{name:?}");
        }
        assert!(counter("a", &[("plugin", "x")]).is_err());
        assert!(counter("a", &[("b", "1"), ("b", "2")]).is_err());
        for bounds in [&[][..], &[1.0, 1.0], &[2.0, 1.0], &[f64::INFINITY], &[f64::NAN]] {
            assert!(table.register(&SeriesKind::Histogram(bounds.into()), "h", "", &[]).is_err());
        }
        assert_eq!(counter("a", &[]), Ok(1));
        assert!(table.register(&SeriesKind::Gauge, "a", "", &[]).is_err());
        for n in 1..MAX_SERIES {
            assert!(counter(&format!("a{n}"), &[]).is_ok());
        }
        assert!(counter("more", &[]).unwrap_err().contains("64"));
    }
}
