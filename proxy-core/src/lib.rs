//! Pinion, a database proxy.
pub mod config;
pub mod protocol;
pub mod secrets;
pub mod tls;
