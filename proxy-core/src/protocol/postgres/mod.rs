//! PostgreSQL wire protocol 3.0, both sides.

pub mod auth;
pub mod classify;
pub mod scram;
