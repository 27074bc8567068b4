//! `cargo xtask bench`: Pinion, PgBouncer and a direct connection, measured in turn on the same server; and for MySQL
//! Pinion, HAProxy and a direct connection.
//!
//! Every figure is taken from a fresh process, and the order of the three changes from run to run, so that neither
//! warmth nor a neighbour's load falls on one of them alone.

mod contender;
pub(crate) mod idle;
pub(crate) mod mysql;
mod plugins;
mod report;
mod syscalls;
mod value;

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{
    apt::{self, Need},
    arguments::Arguments,
    cluster::Cluster,
    error::{Context, Error, Result},
    interrupt,
    pgbench::{Load, Outcome},
    pinion, process,
    sampler::{Sampler, Seen},
    setup,
    temporary::{self, TemporaryDirectory},
    workspace_root,
};
use contender::{Bench, Contender, Kind};
use report::Report;

/// Database user and database.
const USER: &str = "bench";
/// Server connections that each proxy may open.
const POOL: u32 = 20;
/// Pinion's share is a percentage of the server's own limit, less one for its monitor's connection: 5 % of 420 leaves
/// the same 20 that PgBouncer is given.
const SERVER_LIMIT: u32 = 420;
const PERCENT: u32 = (POOL + 1) * 100 / SERVER_LIMIT;
/// pgbench's tables: ten times 100,000 accounts, all of it in the server's memory.
const SCALE: u32 = 10;
const CLIENTS: [u32; 3] = [1, 32, 200];
const MODES: [&str; 2] = ["simple", "prepared"];

/// What to measure.
struct Plan {
    rounds: u32,
    seconds: u32,
    idle: u32,
    kinds: Vec<Kind>,
    mysql_kinds: Vec<mysql::Kind>,
    cases: Vec<Case>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Case {
    Tps,
    Idle,
    Value,
    Syscalls,
    Plugins,
    Sysbench,
}

/// One pgbench run with what the server and `/proc` saw of it.
#[derive(Debug, Clone, Copy)]
struct Sample {
    outcome: Outcome,
    /// CPU seconds of the proxy during the run; `None` for a direct connection.
    proxy_cpu: Option<f64>,
    /// CPU seconds of all of PostgreSQL's processes during the run.
    server_cpu: f64,
    seen: Seen,
}

/// A program that an option names; processes are started in directories of their own.
fn program(arguments: &mut Arguments, option: &str) -> Result<Option<PathBuf>> {
    let Some(given) = arguments.value::<PathBuf>(option)? else { return Ok(None) };
    given.canonicalize().map(Some).context(format!("{option} {}", given.display()))
}

/// Measures all that `arguments` ask for, prints the report and writes it to `target/bench/report.md`.
pub(crate) fn run(mut arguments: Arguments) -> Result<()> {
    let pgbouncer = program(&mut arguments, "--pgbouncer")?;
    let binary = program(&mut arguments, "--pinion")?;
    let plan = Plan::from(&mut arguments)?;
    arguments.end()?;
    interrupt::catch()?;
    let files = process::raise_file_limit()?;
    if plan.cases.contains(&Case::Idle) && files < u64::from(plan.idle) + 100 {
        println!("Only {files} files may be open here: fewer than {} idle clients will fit.", plan.idle);
    }
    let work = workspace_root()?.join("target/bench");
    fs::create_dir_all(&work).context(format!("creating {}", work.display()))?;
    let directory = TemporaryDirectory::new("pinion-bench")?;
    let password = temporary::random_hex(12)?;
    let mut pinion = None;
    if plan.measures_pinion() {
        if binary.is_none() {
            apt::provide(setup::BUILD)?;
        }
        pinion = Some(binary.map_or_else(pinion::build, Ok)?);
    }
    let mut text = String::new();
    if plan.measures_postgres() {
        text += &measure_postgres(&plan, directory.path(), &password, pinion.clone(), pgbouncer, &work)?;
    }
    if plan.measures_mysql() {
        let separator = if text.is_empty() { "" } else { "\n" };
        text = text + separator + &mysql::measure(&plan, directory.path(), &password, pinion.as_ref())?;
    }
    println!("\n{text}");
    let file = work.join("report.md");
    fs::write(&file, &text).context(format!("writing {}", file.display()))?;
    println!("Written to {}", file.display());
    Ok(())
}

/// All cases but sysbench; the report in Markdown.
fn measure_postgres(
    plan: &Plan,
    directory: &Path,
    password: &str,
    pinion: Option<PathBuf>,
    pgbouncer: Option<PathBuf>,
    work: &Path,
) -> Result<String> {
    apt::provide(&[Need::Postgresql])?;
    let settings = format!(
        "max_connections = {SERVER_LIMIT}\nsuperuser_reserved_connections = 0\nshared_buffers = 256MB\nssl = off\n\
         autovacuum = off\nsynchronous_commit = off"
    );
    let cluster = Cluster::start(directory, &settings)?;
    cluster.create_user(USER, password)?;
    let mut bench = Bench::new(&cluster, directory, password);
    if plan.kinds.contains(&Kind::Pgbouncer) {
        bench.find_pgbouncer(pgbouncer, work)?;
    }
    bench.pinion = pinion;
    bench.direct().fill(SCALE)?;

    let mut report = Report::new(plan, &bench)?;
    if plan.cases.contains(&Case::Tps) {
        measure_loads(plan, &bench, &mut report)?;
    }
    for &kind in plan.kinds.iter().filter(|kind| **kind != Kind::Direct) {
        if plan.cases.contains(&Case::Idle) {
            println!("{} idle clients on {}", plan.idle, kind.name());
            report.idle.push((kind, settle(idle::measure(&bench, kind, plan.idle))?));
        }
        if plan.cases.contains(&Case::Value) {
            println!("one value of {} MiB through {}", value::MEBIBYTES, kind.name());
            report.value.push((kind, settle(value::measure(&bench, kind))?));
        }
        if plan.cases.contains(&Case::Syscalls) {
            println!("system calls of {}", kind.name());
            report.syscalls.push((kind, settle(syscalls::measure(&bench, kind))?));
        }
    }
    if plan.cases.contains(&Case::Plugins) && plan.kinds.contains(&Kind::Pinion) {
        report.plugins = plugins::measure(plan, &bench)?;
    }
    Ok(report.markdown(plan))
}

impl Plan {
    fn from(arguments: &mut Arguments) -> Result<Self> {
        let only = arguments.value::<String>("--only")?;
        let cases = arguments.value::<String>("--cases")?;
        let plan = Self {
            rounds: arguments.value("--rounds")?.unwrap_or(3),
            seconds: arguments.value("--seconds")?.unwrap_or(10),
            idle: arguments.value("--idle")?.unwrap_or(5000),
            kinds: Kind::ALL.into_iter().filter(|kind| listed(only.as_deref(), kind.name())).collect(),
            mysql_kinds: mysql::Kind::listed(only.as_deref()),
            cases: Case::ALL.into_iter().filter(|case| listed(cases.as_deref(), case.name())).collect(),
        };
        if plan.rounds == 0
            || plan.seconds == 0
            || plan.idle == 0
            || !(plan.measures_postgres() || plan.measures_mysql())
        {
            return Err(Error::Usage);
        }
        Ok(plan)
    }

    fn measures_postgres(&self) -> bool {
        self.cases.iter().any(|case| *case != Case::Sysbench) && !self.kinds.is_empty()
    }

    fn measures_mysql(&self) -> bool {
        self.cases.contains(&Case::Sysbench) && !self.mysql_kinds.is_empty()
    }

    fn measures_pinion(&self) -> bool {
        (self.measures_postgres() && self.kinds.contains(&Kind::Pinion))
            || (self.measures_mysql() && self.mysql_kinds.contains(&mysql::Kind::Pinion))
    }
}

impl Case {
    const ALL: [Self; 6] =
        [Self::Tps, Self::Idle, Self::Value, Self::Syscalls, Self::Plugins, Self::Sysbench];

    fn name(self) -> &'static str {
        match self {
            Self::Tps => "tps",
            Self::Idle => "idle",
            Self::Value => "value",
            Self::Syscalls => "syscalls",
            Self::Plugins => "plugins",
            Self::Sysbench => "sysbench",
        }
    }
}

/// Whether a comma-separated list names it; no list names everything.
fn listed(list: Option<&str>, name: &str) -> bool {
    list.is_none_or(|list| list.split(',').any(|item| item.trim().eq_ignore_ascii_case(name)))
}

fn measure_loads(plan: &Plan, bench: &Bench<'_>, report: &mut Report) -> Result<()> {
    let mut turn = 0;
    for round in 1..=plan.rounds {
        for mode in MODES {
            for clients in CLIENTS {
                let load = Load { mode, clients, seconds: plan.seconds };
                let mut order = plan.kinds.clone();
                order.rotate_left(turn % plan.kinds.len());
                turn += 1;
                for kind in order {
                    let sample = settle(measure_load(bench, kind, load))?;
                    let said = match &sample {
                        Ok(sample) => {
                            format!("{:.0} tps, {} connections", sample.outcome.tps, sample.seen.peak)
                        }
                        Err(why) => format!("FAILED: {why}"),
                    };
                    println!("round {round}  {mode:<8}  {clients:>3} clients  {:<9}  {said}", kind.name());
                    report.loads.push((load, round, kind, sample));
                }
            }
        }
    }
    Ok(())
}

fn measure_load(bench: &Bench<'_>, kind: Kind, load: Load) -> Result<Sample> {
    measure_running(bench, bench.start(kind)?, load)
}

fn measure_running(bench: &Bench<'_>, mut contender: Contender<'_>, load: Load) -> Result<Sample> {
    let server = contender.server();
    server.warm_up(load)?;
    // The warm-up's connections of a direct client end a moment after pgbench does.
    interrupt::wait(Duration::from_millis(200))?;
    let sampler = Sampler::start(bench.cluster, USER)?;
    let proxy_before = contender.pid().map(process::cpu_seconds).transpose()?;
    let server_before = process::cpu_seconds_with_children(bench.cluster.pid())?;
    let outcome = server.run(load, bench.directory)?;
    let proxy_after = contender.pid().map(process::cpu_seconds).transpose()?;
    let server_after = process::cpu_seconds_with_children(bench.cluster.pid())?;
    let seen = sampler.finish()?;
    contender.check()?;
    let proxy_cpu = proxy_after.zip(proxy_before).map(|(after, before)| after - before);
    Ok(Sample { outcome, proxy_cpu, server_cpu: server_after - server_before, seen })
}

/// A failed measurement is a line of the report; an interruption ends the benchmark.
fn settle<T>(measured: Result<T>) -> Result<std::result::Result<T, String>> {
    match measured {
        Ok(value) => Ok(Ok(value)),
        Err(Error::Failed(why)) => Ok(Err(why)),
        Err(other) => Err(other),
    }
}
