//! The MySQL half of the benchmark: sysbench straight at MariaDB, through HAProxy in TCP mode and through Pinion, in turn.

use std::{
    fmt::Write,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use rustix::process::Signal;

use super::{
    PERCENT, Plan, SERVER_LIMIT, USER, listed,
    report::{Measured, machine, median, one_line},
    settle,
};
use crate::{
    apt::{self, Need},
    error::{Result, failed},
    interrupt,
    mariadb::{self, MariaDb},
    mysqlwire::Client,
    pgbench::Outcome,
    pinion::{Pinion, Settings},
    process::{self, Service},
    sysbench::{self, Load, Server},
    temporary,
};

/// Client connections at once that each proxy is told to allow.
const MAX_CLIENTS: u32 = 1000;

/// What is measured: script, prepared, clients.
const LOADS: [(&str, bool, u32); 6] = [
    ("oltp_point_select", false, 1),
    ("oltp_point_select", false, 32),
    ("oltp_point_select", true, 1),
    ("oltp_point_select", true, 32),
    ("oltp_read_write", false, 32),
    ("oltp_read_write", true, 32),
];

/// Who is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Straight to MariaDB.
    Direct,
    /// Through HAProxy, which passes bytes on and knows nothing of them.
    Haproxy,
    /// Through Pinion.
    Pinion,
}

impl Kind {
    const ALL: [Self; 3] = [Self::Direct, Self::Haproxy, Self::Pinion];

    fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Haproxy => "HAProxy",
            Self::Pinion => "Pinion",
        }
    }

    /// Those that a comma-separated list names.
    pub(super) fn listed(list: Option<&str>) -> Vec<Self> {
        Self::ALL.into_iter().filter(|kind| listed(list, kind.name())).collect()
    }
}

/// One run of sysbench with what the server and `/proc` saw of it.
#[derive(Debug, Clone, Copy)]
struct Sample {
    outcome: Outcome,
    /// CPU seconds of the proxy during the run; `None` for a direct connection.
    proxy_cpu: Option<f64>,
    /// CPU seconds of MariaDB during the run.
    server_cpu: f64,
    /// Most server connections at once.
    connections: u64,
}

impl Sample {
    fn proxy_cpu_per_1000(&self) -> Option<f64> {
        Some(self.proxy_cpu? * 1000.0 / self.outcome.transactions as f64)
    }

    fn server_cpu_per_1000(&self) -> f64 {
        self.server_cpu * 1000.0 / self.outcome.transactions as f64
    }
}

/// Round, load, who, and what came of it.
type Run = (u32, Load, Kind, Measured<Sample>);

/// What all measurements share.
struct Bench<'a> {
    server: MariaDb,
    directory: &'a Path,
    password: &'a str,
    /// Pinion's binary.
    binary: Option<&'a Path>,
}

/// Runs all loads in turn and gives the report, in Markdown.
pub(super) fn measure(
    plan: &Plan,
    directory: &Path,
    password: &str,
    binary: Option<&PathBuf>,
) -> Result<String> {
    apt::provide(&[Need::Mariadb, Need::Sysbench])?;
    if plan.mysql_kinds.contains(&Kind::Haproxy) {
        apt::provide(&[Need::Haproxy])?;
    }
    let options = [format!("--max-connections={SERVER_LIMIT}"), "--innodb-buffer-pool-size=256M".to_owned()];
    let server = MariaDb::start(directory, &options)?;
    server.create_user(USER, password, "")?;
    let bench = Bench { server, directory, password, binary: binary.map(PathBuf::as_path) };
    bench.sysbench(bench.server.port()).fill(directory)?;
    let machine = machine();
    let mut runs = Vec::new();
    let mut turn = 0;
    for round in 1..=plan.rounds {
        for (script, prepared, clients) in LOADS {
            let load = Load { script, prepared, clients, seconds: plan.seconds };
            let mut order = plan.mysql_kinds.clone();
            order.rotate_left(turn % plan.mysql_kinds.len());
            turn += 1;
            for kind in order {
                let sample = settle(bench.measure(kind, load))?;
                let said = match &sample {
                    Ok(sample) => {
                        format!("{:.0} tps, {} connections", sample.outcome.tps, sample.connections)
                    }
                    Err(why) => format!("FAILED: {why}"),
                };
                println!(
                    "round {round}  {script:<17}  {:<8}  {clients:>3} clients  {:<7}  {said}",
                    mode(load),
                    kind.name()
                );
                runs.push((round, load, kind, sample));
            }
        }
    }
    let mut text = format!("## MySQL\n\n{machine}");
    let _ = writeln!(
        text,
        "- Server: {}, `max_connections` {SERVER_LIMIT}, TLS off, {} tables of {} rows.",
        mariadb::version()?,
        sysbench::TABLES,
        sysbench::ROWS
    );
    for (kind, program, argument) in
        [(Kind::Haproxy, "haproxy", "-v"), (Kind::Direct, "sysbench", "--version")]
    {
        if plan.mysql_kinds.contains(&kind) {
            let version = process::run(Command::new(on_path(program)?).arg(argument))?;
            let _ = writeln!(text, "- {program}: {}.", version.lines().next().unwrap_or_default().trim());
        }
    }
    text += &figures(plan, &runs);
    Ok(text + &ratios(plan, &runs))
}

impl<'a> Bench<'a> {
    fn sysbench(&self, port: u16) -> Server<'a> {
        Server { port, user: USER, password: self.password, certificate: None }
    }

    /// One run through a fresh process.
    fn measure(&self, kind: Kind, load: Load) -> Result<Sample> {
        match kind {
            Kind::Direct => self.run(load, self.server.port(), None),
            Kind::Haproxy => {
                let port = process::free_port()?;
                let mut haproxy = self.start_haproxy(port)?;
                let sample = self.run(load, port, Some(haproxy.pid()))?;
                haproxy.check()?;
                Ok(sample)
            }
            Kind::Pinion => {
                let Some(binary) = self.binary else { return failed("there is no Pinion") };
                let settings = Settings {
                    name: USER,
                    engine: "MYSQL",
                    user: USER,
                    password: self.password,
                    client_auth: "MYSQL_NATIVE_PASSWORD",
                    server_port: self.server.port(),
                    percent: PERCENT,
                    max_clients: MAX_CLIENTS,
                    certificate: None,
                    more: String::new(),
                };
                let mut pinion = Pinion::start(binary, self.directory, &[settings])?;
                let sample = self.run(load, pinion.port, Some(pinion.pid()))?;
                pinion.check()?;
                Ok(sample)
            }
        }
    }

    fn start_haproxy(&self, port: u16) -> Result<Service> {
        let directory = self.directory.join(format!("haproxy-{}", temporary::random_hex(6)?));
        temporary::private_directory(&directory, None)?;
        let config = directory.join("haproxy.cfg");
        let text = format!(
            "global\n    maxconn {MAX_CLIENTS}\n\
             defaults\n    mode tcp\n    timeout connect 5s\n    timeout client 5m\n    timeout server 5m\n\
             listen mysql\n    bind 127.0.0.1:{port}\n    server mariadb 127.0.0.1:{}\n",
            self.server.port()
        );
        temporary::private_file(&config, &text, None)?;
        let mut command = Command::new(on_path("haproxy")?);
        command.arg("-db").arg("-f").arg(&config);
        let log = self.directory.join("haproxy.log");
        // SIGUSR1 would wait for clients to leave.
        let mut service = Service::start("haproxy", &mut command, log, Signal::TERM)?;
        let ready = interrupt::poll(Duration::from_secs(20), Duration::from_millis(20), || {
            service.check()?;
            Ok(std::net::TcpStream::connect((std::net::Ipv4Addr::LOCALHOST, port)).ok())
        })?;
        if ready.is_some() { Ok(service) } else { failed("HAProxy did not listen within 20 s") }
    }

    fn run(&self, load: Load, port: u16, proxy: Option<u32>) -> Result<Sample> {
        let server = self.sysbench(port);
        server.warm_up(load, self.directory)?;
        // The warm-up's connections end a moment after sysbench does.
        interrupt::wait(Duration::from_millis(200))?;
        let watch = Watch::start(self.server.root()?);
        let proxy_before = proxy.map(process::cpu_seconds).transpose()?;
        let server_before = process::cpu_seconds(self.server.pid())?;
        let outcome = server.run(load, self.directory)?;
        let proxy_after = proxy.map(process::cpu_seconds).transpose()?;
        let server_cpu = process::cpu_seconds(self.server.pid())? - server_before;
        let proxy_cpu = proxy_after.zip(proxy_before).map(|(after, before)| after - before);
        Ok(Sample { outcome, proxy_cpu, server_cpu, connections: watch.finish()? })
    }
}

/// Counts the benchmark user's connections every 50 ms.
pub(crate) struct Watch {
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<Result<u64>>>,
}

impl Watch {
    fn start(root: Client) -> Self {
        Self::of(root, USER)
    }

    /// Counts connections of `user` from now on.
    pub(crate) fn of(mut root: Client, user: &str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&stop);
        let sql = format!("SELECT count(*) FROM information_schema.processlist WHERE user = '{user}'");
        let thread = thread::spawn(move || {
            let mut most = 0;
            loop {
                let rows = root.query(&sql)?;
                let now = rows.first().and_then(|row| row.first()?.as_deref()?.parse().ok());
                let Some(now) = now else { return failed("the process list answered in an unknown form") };
                most = most.max(now);
                if flag.load(Ordering::Relaxed) {
                    return Ok(most);
                }
                interrupt::pause(Duration::from_millis(50));
            }
        });
        Self { stop, thread: Some(thread) }
    }

    /// Ends the watch; the most connections at once.
    pub(crate) fn finish(mut self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.take().map(thread::JoinHandle::join);
        ended
            .and_then(std::result::Result::ok)
            .unwrap_or_else(|| failed("the watch over the process list broke"))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn on_path(program: &str) -> Result<PathBuf> {
    process::on_path(program).map_or_else(|| failed(format!("{program} is not installed")), Ok)
}

fn mode(load: Load) -> &'static str {
    if load.prepared { "prepared" } else { "text" }
}

fn loads(plan: &Plan) -> impl Iterator<Item = Load> {
    let seconds = plan.seconds;
    LOADS.into_iter().map(move |(script, prepared, clients)| Load { script, prepared, clients, seconds })
}

fn figures(plan: &Plan, runs: &[Run]) -> String {
    let mut text = format!(
        "\n### sysbench\n\n{} rounds of {} s, medians; `tps` with the least and the most. A transaction is one SELECT, or 20 \
         statements of `oltp_read_write`. CPU is user and system seconds for 1,000 transactions. Connections are the most \
         that MariaDB saw at once.\n\n\
         | script | mode | clients | who | tps | p50 ms | p99 ms | proxy CPU s | server CPU s | connections |\n\
         |---|---|---:|---|---:|---:|---:|---:|---:|---:|\n",
        plan.rounds, plan.seconds
    );
    for load in loads(plan) {
        for kind in &plan.mysql_kinds {
            let start = format!("| {} | {} | {} | {} |", load.script, mode(load), load.clients, kind.name());
            let of = || runs.iter().filter(|(_, at, who, _)| (*at, who) == (load, kind));
            let samples: Vec<&Sample> = of().filter_map(|(.., sample)| sample.as_ref().ok()).collect();
            let failures: Vec<&String> = of().filter_map(|(.., sample)| sample.as_ref().err()).collect();
            if samples.is_empty() {
                let why = failures.first().map_or("not run".to_owned(), |why| one_line(why));
                text += &format!("{start} **failed**: {why} | | | | | |\n");
                continue;
            }
            let middle = |figure: &dyn Fn(&Sample) -> f64| {
                median(samples.iter().map(|sample| figure(sample)).collect())
            };
            let tps = samples.iter().map(|sample| sample.outcome.tps);
            let (least, most) = (tps.clone().fold(f64::INFINITY, f64::min), tps.fold(0.0, f64::max));
            let proxy: Vec<f64> = samples.iter().filter_map(|sample| sample.proxy_cpu_per_1000()).collect();
            let proxy = if proxy.is_empty() { "-".to_owned() } else { format!("{:.4}", median(proxy)) };
            let failed =
                if failures.is_empty() { String::new() } else { format!(" ({} failed)", failures.len()) };
            text += &format!(
                "{start} {:.0} ({least:.0} to {most:.0}){failed} | {:.3} | {:.3} | {proxy} | {:.4} | {} |\n",
                middle(&|sample| sample.outcome.tps),
                middle(&|sample| sample.outcome.p50_ms),
                middle(&|sample| sample.outcome.p99_ms),
                middle(&Sample::server_cpu_per_1000),
                samples.iter().map(|sample| sample.connections).max().unwrap_or_default(),
            );
        }
    }
    text
}

/// Pinion to HAProxy and to a direct connection; nothing when it was not measured.
fn ratios(plan: &Plan, runs: &[Run]) -> String {
    let mut text = String::from(
        "\n### Ratios of Pinion\n\nMedians of the rounds' own ratios. tps: more is better; the others: less is better. HAProxy \
         opens a server connection for each client and reads nothing of what it passes on.\n\n\
         | script | mode | clients | to | tps | p50 | p99 | proxy CPU | rounds |\n|---|---|---:|---|---:|---:|---:|---:|---:|\n",
    );
    let mut any = false;
    for load in loads(plan) {
        for other in [Kind::Direct, Kind::Haproxy] {
            let sample = |round: u32, kind: Kind| {
                let mut found =
                    runs.iter().filter(|(at, of, who, _)| (*at, *of, *who) == (round, load, kind));
                found.next().and_then(|(.., sample)| sample.as_ref().ok())
            };
            let pairs: Vec<(&Sample, &Sample)> = (1..=plan.rounds)
                .filter_map(|round| sample(round, Kind::Pinion).zip(sample(round, other)))
                .collect();
            if pairs.is_empty() {
                continue;
            }
            any = true;
            let ratio = |figure: &dyn Fn(&Sample) -> f64| {
                median(pairs.iter().map(|(one, other)| figure(one) / figure(other)).collect())
            };
            let cpu = match other {
                Kind::Direct => "-".to_owned(),
                _ => format!("{:.2}", ratio(&|sample| sample.proxy_cpu_per_1000().unwrap_or(f64::NAN))),
            };
            text += &format!(
                "| {} | {} | {} | {} | {:.2} | {:.2} | {:.2} | {cpu} | {} of {} |\n",
                load.script,
                mode(load),
                load.clients,
                other.name(),
                ratio(&|sample| sample.outcome.tps),
                ratio(&|sample| sample.outcome.p50_ms),
                ratio(&|sample| sample.outcome.p99_ms),
                pairs.len(),
                plan.rounds
            );
        }
    }
    if any { text } else { String::new() }
}
