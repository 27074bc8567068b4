//! What all instances of a plugin share: keys and values with expiry, bounded in bytes, kept over reloads.

use std::{
    collections::HashMap,
    hash::{BuildHasher as _, RandomState},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use super::wit::StoreError;

const SHARDS: usize = 16;
/// Longest key.
const KEY_BYTES: usize = 1024;
/// Longest value.
const VALUE_BYTES: usize = 64 * 1024;
/// What an entry costs beside its key and value.
const OVERHEAD: u64 = 96;

/// One plugin's keys and values.
#[derive(Debug)]
pub(super) struct Store {
    shards: [Mutex<HashMap<Box<str>, Entry>>; SHARDS],
    hasher: RandomState,
    bytes: AtomicU64,
    limit: AtomicU64,
}

#[derive(Debug)]
struct Entry {
    value: Value,
    expires: Option<Instant>,
}

#[derive(Debug)]
enum Value {
    Bytes(Box<[u8]>),
    /// Read as decimal text.
    Number(i64),
    Bucket {
        tokens: f64,
        at: Instant,
    },
}

impl Value {
    fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Bytes(bytes) => bytes.to_vec(),
            Self::Number(number) => number.to_string().into_bytes(),
            Self::Bucket { tokens, .. } => tokens.to_string().into_bytes(),
        }
    }

    fn len(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Number(_) | Self::Bucket { .. } => 16,
        }
    }
}

type Shard = HashMap<Box<str>, Entry>;

impl Store {
    pub(super) fn new(limit: u64) -> Self {
        Self {
            shards: std::array::from_fn(|_| Mutex::default()),
            hasher: RandomState::new(),
            bytes: AtomicU64::new(0),
            limit: AtomicU64::new(limit),
        }
    }

    /// A lower limit takes nothing away; it only lets nothing more in.
    pub(super) fn set_limit(&self, limit: u64) {
        self.limit.store(limit, Relaxed);
    }

    pub(super) fn get(&self, key: &str, now: Instant) -> Option<Vec<u8>> {
        let mut shard = self.shard(key);
        self.drop_expired(&mut shard, key, now);
        shard.get(key).map(|entry| entry.value.bytes())
    }

    pub(super) fn set(&self, key: &str, value: &[u8], ttl: u64, now: Instant) -> Result<(), StoreError> {
        check(key, value)?;
        self.put(key, Value::Bytes(value.into()), expiry(ttl, now), now)
    }

    pub(super) fn delete(&self, key: &str, now: Instant) -> bool {
        let mut shard = self.shard(key);
        self.drop_expired(&mut shard, key, now);
        self.remove(&mut shard, key)
    }

    pub(super) fn incr(&self, key: &str, by: i64, ttl: u64, now: Instant) -> Result<i64, StoreError> {
        check(key, &[])?;
        self.make_room(key, 16, now)?;
        let mut shard = self.shard(key);
        self.drop_expired(&mut shard, key, now);
        let (before, expires) = match shard.get(key) {
            None => (0, expiry(ttl, now)),
            Some(entry) => (number(&entry.value).ok_or(StoreError::NotANumber)?, entry.expires),
        };
        let sum = before.saturating_add(by);
        self.insert(&mut shard, key, Value::Number(sum), expires)?;
        Ok(sum)
    }

    pub(super) fn compare_and_set(
        &self,
        key: &str,
        expected: Option<&[u8]>,
        value: &[u8],
        ttl: u64,
        now: Instant,
    ) -> Result<bool, StoreError> {
        check(key, value)?;
        self.make_room(key, value.len() as u64, now)?;
        let mut shard = self.shard(key);
        self.drop_expired(&mut shard, key, now);
        if shard.get(key).map(|entry| entry.value.bytes()).as_deref() != expected {
            return Ok(false);
        }
        self.insert(&mut shard, key, Value::Bytes(value.into()), expiry(ttl, now))?;
        Ok(true)
    }

    pub(super) fn take_tokens(
        &self,
        key: &str,
        tokens: u32,
        capacity: u32,
        per_second: f64,
        now: Instant,
    ) -> Result<bool, StoreError> {
        check(key, &[])?;
        self.make_room(key, 16, now)?;
        let per_second = if per_second.is_finite() { per_second.max(0.0) } else { 0.0 };
        let mut shard = self.shard(key);
        self.drop_expired(&mut shard, key, now);
        let held = match shard.get(key).map(|entry| &entry.value) {
            None => f64::from(capacity),
            Some(Value::Bucket { tokens, at }) => {
                let gained = now.saturating_duration_since(*at).as_secs_f64() * per_second;
                (tokens + gained).min(f64::from(capacity))
            }
            Some(_) => return Err(StoreError::NotANumber),
        };
        let enough = held >= f64::from(tokens);
        let left = if enough { held - f64::from(tokens) } else { held };
        // A bucket that has filled up again is as one that was never there.
        let full_after = (f64::from(capacity) - left) / per_second;
        let expires = Duration::try_from_secs_f64(full_after).ok().and_then(|after| now.checked_add(after));
        self.insert(&mut shard, key, Value::Bucket { tokens: left, at: now }, expires)?;
        Ok(enough)
    }

    fn shard(&self, key: &str) -> MutexGuard<'_, Shard> {
        let at = self.hasher.hash_one(key) as usize % SHARDS;
        self.shards[at].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, key: &str, value: Value, expires: Option<Instant>, now: Instant) -> Result<(), StoreError> {
        self.make_room(key, value.len(), now)?;
        self.insert(&mut self.shard(key), key, value, expires)
    }

    /// Drops what has expired when an entry of that size would not fit.
    fn make_room(&self, key: &str, value: u64, now: Instant) -> Result<(), StoreError> {
        let limit = self.limit.load(Relaxed);
        let wanted = OVERHEAD + key.len() as u64 + value;
        if self.bytes.load(Relaxed).saturating_add(wanted) <= limit {
            return Ok(());
        }
        for shard in &self.shards {
            let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            shard.retain(|key, entry| {
                let stays = entry.expires.is_none_or(|expires| expires > now);
                if !stays {
                    self.bytes.fetch_sub(size(key, &entry.value), Relaxed);
                }
                stays
            });
        }
        // Whether it fits now, perhaps in another's place, is found out when it is put in.
        if wanted > limit { Err(StoreError::Full) } else { Ok(()) }
    }

    fn insert(
        &self,
        shard: &mut Shard,
        key: &str,
        value: Value,
        expires: Option<Instant>,
    ) -> Result<(), StoreError> {
        let (new, old) = (size(key, &value), shard.get(key).map_or(0, |entry| size(key, &entry.value)));
        let limit = self.limit.load(Relaxed);
        // Other shards change the sum at the same time: taken first, so that it never passes the limit.
        let grow = new.saturating_sub(old);
        if self.bytes.fetch_add(grow, Relaxed).saturating_add(grow) > limit && grow > 0 {
            self.bytes.fetch_sub(grow, Relaxed);
            return Err(StoreError::Full);
        }
        self.bytes.fetch_sub(old.saturating_sub(new), Relaxed);
        match shard.get_mut(key) {
            Some(entry) => *entry = Entry { value, expires },
            None => {
                shard.insert(key.into(), Entry { value, expires });
            }
        }
        Ok(())
    }

    fn drop_expired(&self, shard: &mut Shard, key: &str, now: Instant) {
        if shard.get(key).is_some_and(|entry| entry.expires.is_some_and(|expires| expires <= now)) {
            self.remove(shard, key);
        }
    }

    fn remove(&self, shard: &mut Shard, key: &str) -> bool {
        let Some(entry) = shard.remove(key) else { return false };
        self.bytes.fetch_sub(size(key, &entry.value), Relaxed);
        true
    }
}

fn size(key: &str, value: &Value) -> u64 {
    OVERHEAD + key.len() as u64 + value.len()
}

fn check(key: &str, value: &[u8]) -> Result<(), StoreError> {
    if key.len() > KEY_BYTES || value.len() > VALUE_BYTES { Err(StoreError::TooLong) } else { Ok(()) }
}

fn expiry(ttl_ms: u64, now: Instant) -> Option<Instant> {
    if ttl_ms == 0 { None } else { now.checked_add(Duration::from_millis(ttl_ms)) }
}

fn number(value: &Value) -> Option<i64> {
    match value {
        Value::Number(number) => Some(*number),
        Value::Bytes(bytes) => std::str::from_utf8(bytes).ok()?.parse().ok(),
        Value::Bucket { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::thread;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn values_expire_and_the_room_they_took_comes_back() {
        let store = Store::new(1_000);
        let now = Instant::now();
        store.set("a", b"one", 10, now).unwrap();
        store.set("b", &[0; 700], 10, now).unwrap();
        assert_eq!(store.get("a", now + 9 * MS).as_deref(), Some(&b"one"[..]));
        assert_eq!(store.set("c", &[0; 700], 0, now), Err(StoreError::Full));
        assert_eq!(store.get("a", now + 10 * MS), None);
        store.set("c", &[0; 700], 0, now + 10 * MS).unwrap();
        assert_eq!(store.get("c", now + Duration::from_secs(86_400)).unwrap().len(), 700);
        assert!(store.delete("c", now));
        assert!(!store.delete("c", now));
        assert_eq!(store.bytes.load(Relaxed), 0);
    }

    #[test]
    fn keys_and_values_have_a_longest() {
        let store = Store::new(1 << 30);
        let now = Instant::now();
        assert_eq!(store.set(&"k".repeat(1025), b"", 0, now), Err(StoreError::TooLong));
        assert_eq!(store.set("k", &[0; 65_537], 0, now), Err(StoreError::TooLong));
        assert_eq!(store.set(&"k".repeat(1024), &[0; 65_536], 0, now), Ok(()));
        assert_eq!(store.incr(&"k".repeat(1025), 1, 0, now), Err(StoreError::TooLong));
    }

    #[test]
    fn numbers_stop_at_the_ends_and_expire_from_the_first_call() {
        let store = Store::new(1 << 20);
        let now = Instant::now();
        assert_eq!(store.incr("n", 2, 10, now), Ok(2));
        assert_eq!(store.incr("n", 3, 10, now + 9 * MS), Ok(5));
        assert_eq!(store.get("n", now).as_deref(), Some(&b"5"[..]));
        assert_eq!(store.incr("n", 1, 10, now + 10 * MS), Ok(1));
        assert_eq!(store.incr("n", i64::MAX, 0, now), Ok(i64::MAX));
        store.set("text", b"seven", 0, now).unwrap();
        assert_eq!(store.incr("text", 1, 0, now), Err(StoreError::NotANumber));
        store.set("text", b"-7", 0, now).unwrap();
        assert_eq!(store.incr("text", 1, 0, now), Ok(-6));
    }

    #[test]
    fn a_value_is_put_only_over_the_one_expected() {
        let store = Store::new(1 << 20);
        let now = Instant::now();
        assert_eq!(store.compare_and_set("k", Some(b"x"), b"y", 0, now), Ok(false));
        assert_eq!(store.compare_and_set("k", None, b"x", 0, now), Ok(true));
        assert_eq!(store.compare_and_set("k", None, b"y", 0, now), Ok(false));
        assert_eq!(store.compare_and_set("k", Some(b"x"), b"y", 0, now), Ok(true));
        assert_eq!(store.get("k", now).as_deref(), Some(&b"y"[..]));
    }

    #[test]
    fn a_bucket_gives_what_it_holds_and_fills_up() {
        let store = Store::new(1 << 20);
        let now = Instant::now();
        let take = |tokens, at| store.take_tokens("b", tokens, 10, 2.0, at).unwrap();
        assert!(take(10, now));
        assert!(!take(1, now));
        assert!(!take(2, now + 500 * MS));
        assert!(take(1, now + 501 * MS));
        assert!(take(10, now + Duration::from_secs(60)));
        assert!(!store.take_tokens("none", 11, 10, f64::NAN, now).unwrap());
        assert!(store.take_tokens("none", 10, 10, f64::NAN, now).unwrap());
    }

    #[test]
    fn no_count_is_lost_between_threads_and_the_limit_holds() {
        let store = Store::new(4_000);
        let now = Instant::now();
        thread::scope(|scope| {
            for t in 0..4 {
                let store = &store;
                scope.spawn(move || {
                    for n in 0..1_000 {
                        store.incr("sum", 1, 0, now).unwrap();
                        let _ = store.set(&format!("{t}-{n}"), b"value", 0, now);
                        assert!(store.bytes.load(Relaxed) <= 4_000 + 4 * 200);
                    }
                });
            }
        });
        assert_eq!(store.incr("sum", 0, 0, now), Ok(4_000));
        assert!(store.bytes.load(Relaxed) <= 4_000);
    }
}
