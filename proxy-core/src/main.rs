//! `pinion`: flags, configuration, run, drain on signal.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Parser, Subcommand};
use pinion::{
    admin::client,
    config::{Config, LogConfig, LogFormat},
    logging,
    plugin::cli,
    protocol, run, tls,
};

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
    /// Configuration file, `pinion.toml` unless said; of `plugin` commands, the plugin's configuration: JSON, or a file with JSON or TOML.
    #[arg(long, global = true)]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Checks the configuration and opens nothing.
    Check,
    /// Lists the clients of the Pinion that runs with this configuration: what each does, and why it is pinned.
    Sessions {
        /// As the admin API gives them.
        #[arg(long)]
        json: bool,
    },
    /// Makes, builds and tries out policy plugins.
    #[command(subcommand)]
    Plugin(PluginCommand),
}

#[derive(Subcommand)]
enum PluginCommand {
    /// Makes a crate for a new plugin, in a directory of that name.
    New {
        /// Its name.
        name: String,
        /// The directory of the SDK; without it the published one is used.
        #[arg(long)]
        sdk: Option<PathBuf>,
    },
    /// Compiles a plugin and says where the file is.
    Build {
        /// Its crate.
        #[arg(default_value = ".")]
        directory: PathBuf,
    },
    /// Says what a file is, wants and costs, and runs the test vectors in it.
    Check {
        /// The .wasm file.
        file: PathBuf,
    },
    /// Runs test vectors against a file, under a host's limits.
    Test {
        /// The .wasm file.
        file: PathBuf,
        /// The vectors.
        vectors: PathBuf,
    },
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
    if let Some(Command::Plugin(command)) = &flags.command {
        return plugin(command, flags.config.as_deref());
    }
    let path = flags.config.unwrap_or_else(|| "pinion.toml".into());
    let config = match Config::load(&path) {
        Ok(config) => config,
        Err(errors) => {
            eprintln!("{errors}");
            return EXIT_CONFIG.into();
        }
    };
    match flags.command {
        Some(Command::Check) => {
            println!("{}: no fault found", path.display());
            ExitCode::SUCCESS
        }
        Some(Command::Sessions { json }) => sessions(&config, json),
        Some(Command::Plugin(_)) | None => start(path, config),
    }
}

fn sessions(config: &Config, json: bool) -> ExitCode {
    let Some(admin) = &config.admin else {
        eprintln!("the configuration has no [admin], so nobody can be asked");
        return ExitCode::FAILURE;
    };
    match client::get(admin, "/sessions") {
        Ok(answer) if json => println!("{answer}"),
        Ok(answer) => print!("{}", client::sessions_table(&answer)),
        Err(why) => {
            eprintln!("{why}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

/// A plugin command. What a plugin logs is shown.
fn plugin(command: &PluginCommand, config: Option<&Path>) -> ExitCode {
    let log =
        LogConfig { format: LogFormat::Text, level: "warn,pinion::plugin=debug".into(), slow_query: None };
    if let Err(error) = logging::start(&log) {
        eprintln!("{error}");
        return ExitCode::FAILURE;
    }
    let know = protocol::know();
    let config = config.map(|config| cli::read_config(&config.to_string_lossy())).transpose();
    let done = config.and_then(|config| match command {
        PluginCommand::New { name, sdk } => cli::new(name, sdk.as_deref()),
        PluginCommand::Build { directory } => cli::build(directory),
        PluginCommand::Check { file } => cli::check(file, config.as_deref(), &know),
        PluginCommand::Test { file, vectors } => cli::test(file, vectors, config.as_deref(), &know),
    });
    match done {
        Ok(report) => {
            println!("{}", report.text);
            if report.ok { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(why) => {
            eprintln!("{why}");
            ExitCode::FAILURE
        }
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
