//! The seam: what every database protocol brings, and the vocabulary that the rest of Pinion speaks.
//!
//! Nothing here knows a socket, a clock or the pool.

pub mod postgres;

mod vocabulary;

pub use vocabulary::{Facts, Fault, FaultKind, PinReason, PinReasons, Severity, StatementKind, Tx};
