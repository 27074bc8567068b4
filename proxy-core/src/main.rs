//! `pinion`: flags, configuration, run, drain on signal.

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};
use pinion::{config::Config, logging, run, tls};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// The configuration has a fault; nothing was opened.
const EXIT_CONFIG: u8 = 2;
/// Something the configuration names cannot be had: an address in use, a certificate gone.
const EXIT_SETUP: u8 = 3;

/// A database proxy that multiplexes many clients over few server connections.
#[derive(Parser)]
#[command(
    version,
    about,
    after_help = "Exit codes: 0 stopped as asked, 1 wrong usage, 2 faulty configuration, 3 cannot start."
)]
struct Flags {
    /// Configuration file.
    #[arg(long, global = true, default_value = "pinion.toml")]
    config: PathBuf,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Checks the configuration and opens nothing.
    Check,
}

fn main() -> ExitCode {
    let flags = match Flags::try_parse() {
        Ok(flags) => flags,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { ExitCode::FAILURE } else { ExitCode::SUCCESS };
        }
    };
    tls::install_provider();
    let config = match Config::load(&flags.config) {
        Ok(config) => config,
        Err(errors) => {
            eprintln!("{errors}");
            return EXIT_CONFIG.into();
        }
    };
    match flags.command {
        Some(Command::Check) => {
            println!("{}: no fault found", flags.config.display());
            ExitCode::SUCCESS
        }
        None => start(flags.config, config),
    }
}

fn start(path: PathBuf, config: Config) -> ExitCode {
    let level = match logging::start(&config.log) {
        Ok(level) => level,
        Err(error) => {
            eprintln!("{error}");
            return EXIT_SETUP.into();
        }
    };
    if let Err(error) = rlimit::increase_nofile_limit(u64::MAX) {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    if let Some(threads) = config.worker_threads {
        runtime.worker_threads(threads);
    }
    let runtime = match runtime.enable_all().thread_name("pinion").build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "cannot start");
            return EXIT_SETUP.into();
        }
    };
    match runtime.block_on(run::run(path, config, level)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "cannot start");
            EXIT_SETUP.into()
        }
    }
}
