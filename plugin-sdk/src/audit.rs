//! Records for the host's audit sink (`[audit]` of the proxy's configuration). Needs the grant `audit`.
//!
//! ```
//! # fn main() -> Result<(), pinion_plugin::audit::AuditError> {
//! use pinion_plugin::{audit, serde_json::json};
//!
//! let number = audit::append(&json!({ "event": "export", "user": "app" }))?;
//! # assert_eq!(number, 1);
//! # Ok(()) }
//! ```

use std::fmt;

use crate::host;

/// Why a record was not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AuditError {
    /// The grant `audit` is missing, or no sink is configured.
    NotGranted,
    /// The queue is full and the sink is configured to drop: the record is counted and lost, its number too.
    Dropped,
    /// The record is not one JSON object, or over 64 KiB.
    Malformed,
    /// Anything else, as a sentence.
    Other(String),
}

impl fmt::Display for AuditError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotGranted => "the grant `audit` is missing, or no sink is configured",
            Self::Dropped => "the queue of the audit sink is full",
            Self::Malformed => "the record is not one JSON object, or over 64 KiB",
            Self::Other(sentence) => sentence,
        })
    }
}

impl std::error::Error for AuditError {}

/// Queues one record: anything that serde makes a JSON object of. The host adds a number that rises by one with each
/// record, so that a missing one is noticed, and gives it back. Where the sink is configured to block, the record is
/// always taken, and the session waits after the hook, never in here. A verdict that used it is not cached by the host.
pub fn append(record: &impl serde::Serialize) -> Result<u64, AuditError> {
    let fields = serde_json::to_string(record).map_err(|_| AuditError::Malformed)?;
    host::audit_append(&fields)
}
