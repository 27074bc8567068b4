//! `cargo xtask twin`: long runs of the twin tests.

use std::time::Duration;

use crate::{apt, arguments::Arguments, error::Result, interrupt, process, setup, test};

/// Runs `tests/tests/twin.rs` from `--seed` on for `--minutes` per engine.
pub(crate) fn run(mut arguments: Arguments) -> Result<()> {
    interrupt::catch()?;
    let seed = arguments.value::<u64>("--seed")?.unwrap_or(1);
    let minutes = arguments.value::<u64>("--minutes")?.unwrap_or(30);
    let seconds = Duration::from_secs(60 * minutes).as_secs();
    apt::provide(setup::TEST)?;
    process::raise_file_limit()?;
    let mut cargo = test::cargo(&["test", "--locked", "--package", "pinion-tests", "--test", "twin"])?;
    cargo.args(arguments.rest()).args(["--", "--nocapture", "--test-threads=1"]);
    cargo.env("PINION_TWIN_SEED", seed.to_string()).env("PINION_TWIN_SECONDS", seconds.to_string());
    test::run_cargo(&mut cargo)
}
