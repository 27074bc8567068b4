//! What native builds have in place of the host: one set of fakes a thread, so that tests do not see each other.

use std::{cell::RefCell, collections::BTreeMap, rc::Rc, time::Duration};

use crate::{audit::AuditError, log::Level, store::StoreError};

/// The contract's bounds of the store.
const KEY_BYTES: usize = 1024;
const VALUE_BYTES: usize = 64 * 1024;
const RECORD_BYTES: usize = 64 * 1024;
const SERIES: usize = 64;

/// Everything that the host would remember of one plugin.
pub(crate) struct Fake {
    pub(crate) denied: Vec<String>,
    pub(crate) log: Vec<(Level, String)>,
    pub(crate) series: Vec<Series>,
    pub(crate) store: BTreeMap<String, Stored>,
    pub(crate) audit: Vec<serde_json::Value>,
    pub(crate) now: Duration,
    /// Whether a tainting import was used since this was last made false.
    pub(crate) tainted: bool,
}

impl Fake {
    /// 2025-01-01T00:00:00Z, a moment as good as any.
    const START: Duration = Duration::from_secs(1_735_689_600);

    const fn new() -> Self {
        Self {
            denied: Vec::new(),
            log: Vec::new(),
            series: Vec::new(),
            store: BTreeMap::new(),
            audit: Vec::new(),
            now: Self::START,
            tainted: false,
        }
    }

    fn grants(&self, grant: &str) -> bool {
        !self.denied.iter().any(|denied| denied == grant)
    }

    /// Whether the store may be used, what has expired taken out.
    fn open_store(&mut self) -> Result<&mut BTreeMap<String, Stored>, StoreError> {
        self.tainted = true;
        if !self.grants("store") {
            return Err(StoreError::NotGranted);
        }
        let now = self.now;
        self.store.retain(|_, stored| stored.until.is_none_or(|until| until > now));
        Ok(&mut self.store)
    }

    fn until(&self, ttl_ms: u64) -> Option<Duration> {
        (ttl_ms > 0).then(|| self.now + Duration::from_millis(ttl_ms))
    }
}

/// One metric with its labels.
pub(crate) struct Series {
    pub(crate) name: String,
    pub(crate) labels: Vec<(String, String)>,
    pub(crate) value: Value,
}

/// What a metric has come to.
#[derive(Debug, Clone)]
pub(crate) enum Value {
    Counter(u64),
    Gauge(f64),
    Histogram(Vec<f64>),
}

/// A value of the store.
pub(crate) struct Stored {
    pub(crate) value: Vec<u8>,
    until: Option<Duration>,
}

thread_local! {
    static FAKE: RefCell<Fake> = const { RefCell::new(Fake::new()) };
}

/// Looks at the fakes, or changes them.
pub(crate) fn with<R>(look: impl FnOnce(&mut Fake) -> R) -> R {
    FAKE.with_borrow_mut(look)
}

/// Forgets everything.
pub(crate) fn reset() {
    FAKE.set(Fake::new());
}

pub(crate) fn name(_id: u32) -> Rc<str> {
    // Native queries come with their names.
    Rc::from("")
}

pub(crate) fn log(level: Level, message: &str) {
    with(|fake| {
        if fake.grants("log") {
            fake.log.push((level, message.to_owned()));
        }
    });
}

fn register(name: &str, labels: &[(&str, &str)], value: Value) -> Result<u32, String> {
    let well_formed = name.starts_with(|first: char| first.is_ascii_lowercase())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    if !well_formed {
        return Err(format!("{name:?} is no name for a metric: lower-case letters, digits and underscores"));
    }
    let labels: Vec<(String, String)> =
        labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    with(|fake| {
        if !fake.grants("metrics") {
            return Err("the grant `metrics` is missing".to_owned());
        }
        let same = |series: &Series| series.name == name && series.labels == labels;
        let at = match fake.series.iter().position(same) {
            Some(at) if std::mem::discriminant(&fake.series[at].value) == std::mem::discriminant(&value) => {
                at
            }
            Some(_) => return Err(format!("{name} is registered as a metric of another kind")),
            None if fake.series.len() >= SERIES => return Err(format!("there are {SERIES} series already")),
            None => {
                fake.series.push(Series { name: name.to_owned(), labels, value });
                fake.series.len() - 1
            }
        };
        u32::try_from(at).map_err(|_| "too many series".to_owned())
    })
}

pub(crate) fn counter(name: &str, _help: &str, labels: &[(&str, &str)]) -> Result<u32, String> {
    register(name, labels, Value::Counter(0))
}

pub(crate) fn gauge(name: &str, _help: &str, labels: &[(&str, &str)]) -> Result<u32, String> {
    register(name, labels, Value::Gauge(0.0))
}

pub(crate) fn histogram(
    name: &str,
    _help: &str,
    labels: &[(&str, &str)],
    bounds: &[f64],
) -> Result<u32, String> {
    if bounds.is_empty() || !bounds.is_sorted_by(|a, b| a < b) {
        return Err(format!("the bounds of {name} do not rise"));
    }
    register(name, labels, Value::Histogram(Vec::new()))
}

fn change(id: u32, change: impl FnOnce(&mut Value)) {
    with(|fake| {
        if let Some(series) = usize::try_from(id).ok().and_then(|at| fake.series.get_mut(at)) {
            change(&mut series.value);
        }
    });
}

pub(crate) fn metric_add(id: u32, more: u64) {
    change(id, |value| {
        if let Value::Counter(sum) = value {
            *sum += more;
        }
    });
}

pub(crate) fn metric_set(id: u32, new: f64) {
    change(id, |value| {
        if let Value::Gauge(old) = value {
            *old = new;
        }
    });
}

pub(crate) fn metric_observe(id: u32, one: f64) {
    change(id, |value| {
        if let Value::Histogram(all) = value {
            all.push(one);
        }
    });
}

fn check_lengths(key: &str, value: &[u8]) -> Result<(), StoreError> {
    if key.len() > KEY_BYTES || value.len() > VALUE_BYTES { Err(StoreError::TooLong) } else { Ok(()) }
}

pub(crate) fn store_get(key: &str) -> Result<Option<Vec<u8>>, StoreError> {
    with(|fake| Ok(fake.open_store()?.get(key).map(|stored| stored.value.clone())))
}

pub(crate) fn store_set(key: &str, value: &[u8], ttl_ms: u64) -> Result<(), StoreError> {
    with(|fake| {
        let until = fake.until(ttl_ms);
        let store = fake.open_store()?;
        check_lengths(key, value)?;
        store.insert(key.to_owned(), Stored { value: value.to_vec(), until });
        Ok(())
    })
}

pub(crate) fn store_delete(key: &str) -> Result<bool, StoreError> {
    with(|fake| Ok(fake.open_store()?.remove(key).is_some()))
}

pub(crate) fn store_add(key: &str, by: i64, ttl_ms: u64) -> Result<i64, StoreError> {
    with(|fake| {
        let until = fake.until(ttl_ms);
        let store = fake.open_store()?;
        check_lengths(key, &[])?;
        let Some(stored) = store.get_mut(key) else {
            store.insert(key.to_owned(), Stored { value: by.to_string().into_bytes(), until });
            return Ok(by);
        };
        let old = std::str::from_utf8(&stored.value).ok().and_then(|text| text.parse::<i64>().ok());
        let sum = old.ok_or(StoreError::NotANumber)?.saturating_add(by);
        stored.value = sum.to_string().into_bytes();
        Ok(sum)
    })
}

pub(crate) fn store_compare_and_set(
    key: &str,
    expected: Option<&[u8]>,
    value: &[u8],
    ttl_ms: u64,
) -> Result<bool, StoreError> {
    with(|fake| {
        let until = fake.until(ttl_ms);
        let store = fake.open_store()?;
        check_lengths(key, value)?;
        if store.get(key).map(|stored| stored.value.as_slice()) != expected {
            return Ok(false);
        }
        store.insert(key.to_owned(), Stored { value: value.to_vec(), until });
        Ok(true)
    })
}

pub(crate) fn store_take_tokens(
    key: &str,
    tokens: u32,
    capacity: u32,
    per_second: f64,
) -> Result<bool, StoreError> {
    with(|fake| {
        let now = fake.now.as_secs_f64();
        let store = fake.open_store()?;
        check_lengths(key, &[])?;
        // A bucket is kept as "level at-second" under its key.
        let text = store.get(key).map(|stored| String::from_utf8_lossy(&stored.value).into_owned());
        let bucket = text.as_deref().and_then(|text| {
            let (level, at) = text.split_once(' ')?;
            Some((level.parse::<f64>().ok()?, at.parse::<f64>().ok()?))
        });
        let full = f64::from(capacity);
        let level = bucket.map_or(full, |(level, at)| (level + (now - at) * per_second).min(full));
        let enough = level >= f64::from(tokens);
        let left = if enough { level - f64::from(tokens) } else { level };
        store.insert(key.to_owned(), Stored { value: format!("{left} {now}").into_bytes(), until: None });
        Ok(enough)
    })
}

pub(crate) fn now_ms() -> u64 {
    with(|fake| {
        fake.tainted = true;
        if fake.grants("clock") { u64::try_from(fake.now.as_millis()).unwrap_or(u64::MAX) } else { 0 }
    })
}

pub(crate) fn monotonic_ns() -> u64 {
    with(|fake| {
        fake.tainted = true;
        let since = fake.now.saturating_sub(Fake::START);
        // Never 0: that is what a missing grant gives.
        if fake.grants("clock") {
            u64::try_from(since.as_nanos()).unwrap_or(u64::MAX).saturating_add(1)
        } else {
            0
        }
    })
}

pub(crate) fn audit_append(fields: &str) -> Result<u64, AuditError> {
    with(|fake| {
        fake.tainted = true;
        if !fake.grants("audit") {
            return Err(AuditError::NotGranted);
        }
        let record: serde_json::Value = serde_json::from_str(fields).map_err(|_| AuditError::Malformed)?;
        if !record.is_object() || fields.len() > RECORD_BYTES {
            return Err(AuditError::Malformed);
        }
        fake.audit.push(record);
        Ok(fake.audit.len() as u64)
    })
}
