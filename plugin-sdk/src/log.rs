//! Lines in the host's log, tagged with the plugin's name. Needs the grant `log`; without it nothing is written. The
//! host limits their rate.
//!
//! ```
//! pinion_plugin::log::warn!("{} asked for {}", "app", "everything");
//! ```

use std::fmt;

pub use crate::{__debug as debug, __error as error, __info as info, __trace as trace, __warn as warn};

/// How loud a line is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Something failed.
    Error,
    /// Something should be looked at.
    Warn,
    /// Worth knowing.
    Info,
    /// For whoever looks into the plugin.
    Debug,
    /// For whoever looks very closely.
    Trace,
}

/// Writes one line. Line breaks are escaped; beyond 8 KiB it is cut.
pub fn write(level: Level, message: fmt::Arguments<'_>) {
    match message.as_str() {
        Some(text) => crate::host::log(level, text),
        None => crate::host::log(level, &message.to_string()),
    }
}

/// Logs at level error, with the arguments of [`format!`].
#[macro_export]
#[doc(hidden)]
macro_rules! __error {
    ($($argument:tt)*) => { $crate::log::write($crate::log::Level::Error, format_args!($($argument)*)) };
}

/// Logs at level warn, with the arguments of [`format!`].
#[macro_export]
#[doc(hidden)]
macro_rules! __warn {
    ($($argument:tt)*) => { $crate::log::write($crate::log::Level::Warn, format_args!($($argument)*)) };
}

/// Logs at level info, with the arguments of [`format!`].
#[macro_export]
#[doc(hidden)]
macro_rules! __info {
    ($($argument:tt)*) => { $crate::log::write($crate::log::Level::Info, format_args!($($argument)*)) };
}

/// Logs at level debug, with the arguments of [`format!`].
#[macro_export]
#[doc(hidden)]
macro_rules! __debug {
    ($($argument:tt)*) => { $crate::log::write($crate::log::Level::Debug, format_args!($($argument)*)) };
}

/// Logs at level trace, with the arguments of [`format!`].
#[macro_export]
#[doc(hidden)]
macro_rules! __trace {
    ($($argument:tt)*) => { $crate::log::write($crate::log::Level::Trace, format_args!($($argument)*)) };
}
