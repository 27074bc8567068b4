//! `cargo xtask twin`: long runs of the twin tests, and the proof that they see what they are there for.

use std::{fs, time::Duration};

use crate::{
    apt,
    arguments::Arguments,
    error::{Context, Result, failed},
    interrupt, process, setup, test, workspace_root,
};

/// What is broken in a Pinion built with the feature `twin-mutants`, and in front of which engines it must show.
const MUTANTS: &[(&str, &[&str])] = &[
    ("labels", &["mariadb", "postgresql"]),
    // With PostgreSQL all that twins can see is found by asking; the clean-up is for the rest.
    ("reset", &["mariadb"]),
    ("probe", &["postgresql"]),
];
/// Seconds in which a mutant must be caught.
const MUTANT_SECONDS: &str = "60";

/// Runs `tests/tests/twin.rs` from `--seed` on for `--minutes` per engine, or each mutant until it is caught.
pub(crate) fn run(mut arguments: Arguments) -> Result<()> {
    interrupt::catch()?;
    let mutants = arguments.flag("--mutants");
    let seed = arguments.value::<u64>("--seed")?.unwrap_or(1);
    let minutes = arguments.value::<u64>("--minutes")?.unwrap_or(30);
    let least = arguments.value::<u64>("--least")?.unwrap_or(if minutes < 30 { 0 } else { 1000 });
    let texts = [("--faults", "FAULTS"), ("--only", "ONLY"), ("--with", "WITH")];
    let mut environment = vec![
        ("SEED", seed.to_string()),
        ("SECONDS", Duration::from_secs(60 * minutes).as_secs().to_string()),
        ("LEAST", least.to_string()),
    ];
    for (flag, variable) in texts {
        environment.extend(arguments.value::<String>(flag)?.map(|text| (variable, text)));
    }
    apt::provide(setup::TEST)?;
    process::raise_file_limit()?;
    let engines = arguments.rest();
    if mutants {
        return run_mutants(seed);
    }
    twin(&engines.iter().map(String::as_str).collect::<Vec<_>>(), &environment, &[])
}

/// Every mutant must differ. Errors when one does not.
fn run_mutants(seed: u64) -> Result<()> {
    let build = ["build", "--locked", "--package", "pinion", "--bin", "pinion"];
    test::run_cargo(test::cargo(&build)?.args(["--features", "twin-mutants"]))?;
    let directory = workspace_root()?.join("target");
    let binary = directory.join("pinion-mutants");
    fs::copy(directory.join("debug/pinion"), &binary).context("keeping the binary with mutants")?;
    test::run_cargo(&mut test::cargo(&build)?)?;
    let Some(binary) = binary.to_str() else { return failed("the path of the workspace is no text") };
    let environment =
        [("SEED", seed.to_string()), ("SECONDS", MUTANT_SECONDS.to_owned()), ("MUST_DIFFER", "1".to_owned())];
    for (mutant, engines) in MUTANTS {
        for engine in *engines {
            println!("mutant {mutant}, {engine}");
            twin(&[engine], &environment, &[("PINION_MUTANT", mutant), ("PINION_BIN", binary)])?;
        }
    }
    println!("All mutants were caught.");
    Ok(())
}

fn twin(engines: &[&str], environment: &[(&str, String)], more: &[(&str, &str)]) -> Result<()> {
    let mut cargo = test::cargo(&["test", "--locked", "--package", "pinion-tests", "--test", "twin"])?;
    cargo.args(["--", "--nocapture", "--test-threads=1"]).args(engines).envs(more.iter().copied());
    cargo.envs(environment.iter().map(|(name, value)| (format!("PINION_TWIN_{name}"), value)));
    test::run_cargo(&mut cargo)
}
