//! `cargo xtask test`: every test of the workspace.

use std::process::Command;

use crate::{apt, arguments::Arguments, error::Result, interrupt, plugins, process, setup, workspace_root};

/// Installs what is missing, builds the plugins and the proxy, runs `cargo test` on the workspace.
pub(crate) fn run(arguments: Arguments) -> Result<()> {
    interrupt::catch()?;
    apt::provide(setup::TEST)?;
    let files = process::raise_file_limit()?;
    println!("Up to {files} files may be open at once in the tests.");
    plugins::build()?;
    // The tests of the `tests` crate start the binary, which `cargo test` alone would not build for them.
    cargo(&["build", "--locked", "--package", "pinion", "--bin", "pinion"], &[])?;
    cargo(&["test", "--locked", "--workspace"], &arguments.rest())
}

fn cargo(arguments: &[&str], more: &[String]) -> Result<()> {
    println!("+ cargo {} {}", arguments.join(" "), more.join(" "));
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    process::run_shown(cargo.args(arguments).args(more).current_dir(workspace_root()?))
}
