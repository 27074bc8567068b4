//! Keys and values that all instances of the plugin share and that a reload keeps; gone when the host stops. Bounded in
//! bytes. Needs the grant `store`. A verdict that used it is not cached by the host.
//!
//! ```
//! # fn main() -> Result<(), pinion_plugin::store::StoreError> {
//! use std::time::Duration;
//! use pinion_plugin::store;
//!
//! // At most 20 exports a minute for each user, ten at once.
//! if !store::take_tokens("exports/app", 1, 10, 20.0 / 60.0)? { /* refuse */ }
//! store::set("last-writer", b"app", Some(Duration::from_secs(2)))?;
//! assert_eq!(store::get("last-writer")?.as_deref(), Some(&b"app"[..]));
//! # Ok(()) }
//! ```

use std::{fmt, time::Duration};

use crate::host;

/// Why the store did not do it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreError {
    /// The grant `store` is missing.
    NotGranted,
    /// No room; nothing was changed.
    Full,
    /// The value under the key is no 64-bit number ([`add`]).
    NotANumber,
    /// A key over 1 KiB or a value over 64 KiB.
    TooLong,
    /// Anything else, as a sentence.
    Other(String),
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotGranted => "the grant `store` is missing",
            Self::Full => "the store is full",
            Self::NotANumber => "the value is no number",
            Self::TooLong => "the key is over 1 KiB or the value over 64 KiB",
            Self::Other(sentence) => sentence,
        })
    }
}

impl std::error::Error for StoreError {}

/// The value under `key`, if there is one and it has not expired.
pub fn get(key: &str) -> Result<Option<Vec<u8>>, StoreError> {
    host::store_get(key)
}

/// Puts `value` under `key`, for `ttl` when one is given (in milliseconds, one at least).
pub fn set(key: &str, value: &[u8], ttl: Option<Duration>) -> Result<(), StoreError> {
    host::store_set(key, value, milliseconds(ttl))
}

/// Takes the value away; true when there was one.
pub fn delete(key: &str) -> Result<bool, StoreError> {
    host::store_delete(key)
}

/// Adds `by` to the number under `key` (0 when there is none) in one step and gives the sum, which stops at the ends of
/// the range. `ttl` counts from the first call.
pub fn add(key: &str, by: i64, ttl: Option<Duration>) -> Result<i64, StoreError> {
    host::store_add(key, by, milliseconds(ttl))
}

/// Puts `value` under `key` if what is there is `expected` (nothing, for none); true when it was.
pub fn compare_and_set(
    key: &str,
    expected: Option<&[u8]>,
    value: &[u8],
    ttl: Option<Duration>,
) -> Result<bool, StoreError> {
    host::store_compare_and_set(key, expected, value, milliseconds(ttl))
}

/// Takes `tokens` from the bucket under `key`, which holds up to `capacity` and gains `per_second`; true when there were
/// enough. One step.
pub fn take_tokens(key: &str, tokens: u32, capacity: u32, per_second: f64) -> Result<bool, StoreError> {
    host::store_take_tokens(key, tokens, capacity, per_second)
}

/// The contract says "for ever" by 0.
fn milliseconds(ttl: Option<Duration>) -> u64 {
    ttl.map_or(0, |ttl| u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX).max(1))
}
