//! The host's imports.

use std::{cell::RefCell, collections::BTreeMap, rc::Rc};

use crate::{
    audit::AuditError,
    bindings::pinion::policy::{audit, clock, log, metrics, names, store},
    log::Level,
    store::StoreError,
};

/// So many names an instance remembers. Users and databases are few; client addresses may not be.
const NAMES: usize = 1024;

thread_local! {
    static KNOWN: RefCell<BTreeMap<u32, Rc<str>>> = const { RefCell::new(BTreeMap::new()) };
}

pub(crate) fn name(id: u32) -> Rc<str> {
    KNOWN.with_borrow_mut(|known| {
        if let Some(name) = known.get(&id) {
            return Rc::clone(name);
        }
        if known.len() >= NAMES {
            known.clear();
        }
        let name: Rc<str> = names::resolve(id).into();
        known.insert(id, Rc::clone(&name));
        name
    })
}

pub(crate) fn log(level: Level, message: &str) {
    let level = match level {
        Level::Error => log::Level::Error,
        Level::Warn => log::Level::Warn,
        Level::Info => log::Level::Info,
        Level::Debug => log::Level::Debug,
        Level::Trace => log::Level::Trace,
    };
    log::log(level, message);
}

fn owned(labels: &[(&str, &str)]) -> Vec<(String, String)> {
    labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

pub(crate) fn counter(name: &str, help: &str, labels: &[(&str, &str)]) -> Result<u32, String> {
    metrics::counter(name, help, &owned(labels))
}

pub(crate) fn gauge(name: &str, help: &str, labels: &[(&str, &str)]) -> Result<u32, String> {
    metrics::gauge(name, help, &owned(labels))
}

pub(crate) fn histogram(
    name: &str,
    help: &str,
    labels: &[(&str, &str)],
    bounds: &[f64],
) -> Result<u32, String> {
    metrics::histogram(name, help, &owned(labels), bounds)
}

pub(crate) fn metric_add(id: u32, value: u64) {
    metrics::add(id, value);
}

pub(crate) fn metric_set(id: u32, value: f64) {
    metrics::set(id, value);
}

pub(crate) fn metric_observe(id: u32, value: f64) {
    metrics::observe(id, value);
}

impl From<store::StoreError> for StoreError {
    fn from(error: store::StoreError) -> Self {
        match error {
            store::StoreError::NotGranted => Self::NotGranted,
            store::StoreError::Full => Self::Full,
            store::StoreError::NotANumber => Self::NotANumber,
            store::StoreError::TooLong => Self::TooLong,
            store::StoreError::Other(sentence) => Self::Other(sentence),
        }
    }
}

pub(crate) fn store_get(key: &str) -> Result<Option<Vec<u8>>, StoreError> {
    Ok(store::get(key)?)
}

pub(crate) fn store_set(key: &str, value: &[u8], ttl_ms: u64) -> Result<(), StoreError> {
    Ok(store::set(key, value, ttl_ms)?)
}

pub(crate) fn store_delete(key: &str) -> Result<bool, StoreError> {
    Ok(store::delete(key)?)
}

pub(crate) fn store_add(key: &str, by: i64, ttl_ms: u64) -> Result<i64, StoreError> {
    Ok(store::incr(key, by, ttl_ms)?)
}

pub(crate) fn store_compare_and_set(
    key: &str,
    expected: Option<&[u8]>,
    value: &[u8],
    ttl_ms: u64,
) -> Result<bool, StoreError> {
    Ok(store::compare_and_set(key, expected, value, ttl_ms)?)
}

pub(crate) fn store_take_tokens(
    key: &str,
    tokens: u32,
    capacity: u32,
    per_second: f64,
) -> Result<bool, StoreError> {
    Ok(store::take_tokens(key, tokens, capacity, per_second)?)
}

pub(crate) fn now_ms() -> u64 {
    clock::now_ms()
}

pub(crate) fn monotonic_ns() -> u64 {
    clock::monotonic_ns()
}

pub(crate) fn audit_append(fields: &str) -> Result<u64, AuditError> {
    audit::append(fields).map_err(|error| match error {
        audit::AuditError::NotGranted => AuditError::NotGranted,
        audit::AuditError::Dropped => AuditError::Dropped,
        audit::AuditError::Malformed => AuditError::Malformed,
        audit::AuditError::Other(sentence) => AuditError::Other(sentence),
    })
}
