//! Pinion, a database proxy that multiplexes many clients over few server connections.
//!
//! Data flows one way: [`listener`] accepts, [`handshake`] finds out who it is, [`session`] serves request after
//! request, borrowing from the [`pool`] of the [`target`] that the [`router`] chooses the [`server`] connection that each one
//! needs. What is
//! particular to a database protocol stands behind the seam in [`protocol`].
#![deny(unsafe_code)]

pub mod admin;
pub mod buffer;
pub mod channels;
pub mod compress;
pub mod config;
pub mod handshake;
pub mod listener;
pub mod logging;
pub mod metrics;
pub mod mutant;
pub mod plugin;
pub mod pool;
pub mod protocol;
pub mod proxy;
pub mod router;
pub mod run;
pub mod secrets;
pub mod server;
pub mod session;
pub mod shutdown;
pub mod state;
pub mod stream;
pub mod target;
pub mod tls;
