//! Project commands, run as `cargo xtask COMMAND`. This crate uses no crate of the workspace, so that it can install
//! what the others need before they are compiled.

mod apt;
mod arguments;
mod bench;
mod cluster;
mod demo;
mod error;
mod interrupt;
mod mariadb;
mod mysql8;
mod mysqlwire;
mod pgbench;
mod pgwire;
mod pinion;
mod plugins;
mod process;
mod sampler;
mod setup;
mod sysbench;
mod temporary;
mod test;
mod twin;

use std::process::ExitCode;

use crate::{
    arguments::Arguments,
    error::{Error, Result},
};

const USAGE: &str = "\
cargo xtask COMMAND

  demo [--once]   start a private PostgreSQL, a private MariaDB and Pinion, run queries from many clients, say
                  what happened, and stay up until Ctrl-C (--once: leave after the report)
  test [ARGS…]    install what is missing, build, run every test; ARGS go to `cargo test`
  mysql8 [--mysqld PATH] [ARGS…]
                  run the tests with a real MySQL 8: the one given, else the system's, else one that apt can fetch,
                  unpacked to target/mysql8; where there is none, say why they are skipped. ARGS go to `cargo test`
  twin [OPTIONS] [ENGINE]
                  run scripts straight to a server and through Pinion, and compare every reply. ENGINE is mariadb or
                  postgresql; default both
      --seed N          of the first round, default 1
      --minutes N       for each engine, default 30
      --least N         times that every production has to run while its connection changes hands; default 1000 from
                        30 minutes on
      --faults LIST     of drop,kill: what goes wrong meanwhile
      --only LIST       of productions
      --with LIST       of pending productions, or all
      --mutants         run Pinions that are broken on purpose, each until it is caught
  plugins         build every plugin to target/plugins/*.wasm, and those for tests to target/plugins/fixtures
  setup           only install what is missing
  bench [OPTIONS] compare Pinion, PgBouncer and a direct connection; for MySQL Pinion, HAProxy and a direct one
      --rounds N        runs of each case, default 3
      --seconds N       length of one run, default 10
      --idle N          idle clients, default 5000
      --only LIST       of direct,pgbouncer,haproxy,pinion; default all four
      --cases LIST      of tps,idle,value,syscalls,plugins,sysbench; default all six
      --pgbouncer PATH  use this PgBouncer; default Debian trixie's, unpacked to target/bench
      --pinion PATH     use this Pinion; default a release build
  idle-clients --port N --user NAME --database NAME --clients N [--query]
                  log N clients in (password in PGPASSWORD) and hold them until standard input ends
";

fn main() -> ExitCode {
    let mut arguments = Arguments::new(std::env::args().skip(1));
    let done = match arguments.command().as_deref() {
        Some("demo") => demo::run(arguments),
        Some("test") => test::run(arguments),
        Some("mysql8") => mysql8::run(arguments),
        Some("twin") => twin::run(arguments),
        Some("plugins") => plugins::run(arguments),
        Some("setup") => setup::run(arguments),
        Some("bench") => bench::run(arguments),
        Some("idle-clients") => bench::idle::hold_clients(arguments),
        Some("help" | "--help" | "-h") => {
            print!("{USAGE}");
            Ok(())
        }
        _ => Err(Error::Usage),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(Error::Usage) => {
            eprint!("{USAGE}");
            ExitCode::from(2)
        }
        Err(Error::Interrupted) => {
            eprintln!("Interrupted; everything that was started has been stopped.");
            ExitCode::from(130)
        }
        Err(Error::Failed(why)) => {
            eprintln!("error: {why}");
            ExitCode::FAILURE
        }
    }
}

/// The directory of the workspace's `Cargo.toml`.
fn workspace_root() -> Result<std::path::PathBuf> {
    let here = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent()
        .map(std::path::Path::to_path_buf)
        .ok_or_else(|| Error::Failed("xtask does not stand in a workspace".into()))
}
