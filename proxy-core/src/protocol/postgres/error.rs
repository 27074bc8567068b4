//! The error table.
