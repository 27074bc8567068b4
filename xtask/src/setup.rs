//! `cargo xtask setup`: everything that building and testing need.

use crate::{
    apt::{self, Need},
    arguments::Arguments,
    error::Result,
    interrupt,
};

/// What compiling the workspace needs.
pub(crate) const BUILD: &[Need] = &[Need::CompilerAndMake, Need::Libclang];

/// What the tests need beside that: plugins, servers and drivers in other languages.
pub(crate) const TEST: &[Need] = &[
    Need::CompilerAndMake,
    Need::Libclang,
    Need::WasmTarget,
    Need::WasmLinker,
    Need::Postgresql,
    Need::Mariadb,
    Need::MariadbHeaders,
    Need::Openssl,
    Need::PythonVenv,
    Need::PythonHeaders,
    Need::Node,
];

/// Installs what is missing and says so.
pub(crate) fn run(arguments: Arguments) -> Result<()> {
    arguments.end()?;
    interrupt::catch()?;
    apt::provide(TEST)?;
    println!("Everything that building and testing need is installed.");
    Ok(())
}
