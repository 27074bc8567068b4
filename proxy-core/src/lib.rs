//! Pinion, a database proxy.
pub mod admin;
pub mod config;
pub mod metrics;
pub mod protocol;
