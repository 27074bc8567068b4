//! `cargo xtask test`: every test of the workspace.

use std::process::Command;

use crate::{
    apt, arguments::Arguments, error::Result, interrupt, mysql8, plugins, process, setup, workspace_root,
};

/// Installs what is missing, builds the plugins and the proxy, runs `cargo test` on the workspace.
pub(crate) fn run(arguments: Arguments) -> Result<()> {
    interrupt::catch()?;
    apt::provide(setup::TEST)?;
    let files = process::raise_file_limit()?;
    println!("Up to {files} files may be open at once in the tests.");
    plugins::build()?;
    // The tests of the `tests` crate start the binary, which `cargo test` alone would not build for them.
    run_cargo(&mut cargo(&["build", "--locked", "--package", "pinion", "--bin", "pinion"])?)?;
    run_cargo(cargo(&["test", "--locked", "--workspace"])?.args(arguments.rest()))?;
    if std::env::var_os(mysql8::MYSQLD).is_none() {
        println!("MySQL 8: SKIPPED here; `cargo xtask mysql8` runs its tests where that server can be had.");
    }
    Ok(())
}

/// Cargo, to be run on the workspace.
pub(crate) fn cargo(arguments: &[&str]) -> Result<Command> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(arguments).current_dir(workspace_root()?);
    Ok(cargo)
}

/// Runs it, after saying how it is called.
pub(crate) fn run_cargo(cargo: &mut Command) -> Result<()> {
    let arguments: Vec<_> = cargo.get_args().map(|argument| argument.to_string_lossy()).collect();
    println!("+ cargo {}", arguments.join(" "));
    process::run_shown(cargo)
}
