//! MySQL and MariaDB.

pub mod classify;
