//! Pinion, a database proxy.
pub mod config;
pub mod metrics;
pub mod protocol;
