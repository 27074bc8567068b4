//! Logins on both sides.
