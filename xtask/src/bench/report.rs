//! The benchmark's report in Markdown: figures, ratios, and everything that makes a comparison fair or void.

use std::{fmt::Write, fs, process::Command};

use super::{
    CLIENTS, MODES, Plan, SCALE, SERVER_LIMIT, Sample,
    contender::{Bench, Kind},
    idle::Idle,
    plugins,
    syscalls::Syscalls,
    value::{MEBIBYTES, Value},
};
use crate::{cluster, error::Result, pgbench::Load, process};

pub(super) type Measured<T> = std::result::Result<T, String>;

/// All that was measured.
pub(super) struct Report {
    machine: String,
    configs: Vec<(Kind, String)>,
    /// Load, round, who.
    pub(super) loads: Vec<(Load, u32, Kind, Measured<Sample>)>,
    pub(super) idle: Vec<(Kind, Measured<Idle>)>,
    pub(super) value: Vec<(Kind, Measured<Value>)>,
    pub(super) syscalls: Vec<(Kind, Measured<Syscalls>)>,
    pub(super) plugins: Vec<plugins::Round>,
}

impl Report {
    /// Starts each proxy once, to note its config, and looks at the machine.
    pub(super) fn new(plan: &Plan, bench: &Bench<'_>) -> Result<Self> {
        let mut configs = Vec::new();
        for &kind in plan.kinds.iter().filter(|kind| **kind != Kind::Direct) {
            let text = bench.start(kind)?.config_text()?;
            // Where the files stood for this run is nobody's business.
            configs.push((kind, text.replace(&bench.directory.display().to_string(), "DIRECTORY")));
        }
        let machine = surroundings(plan, bench)?;
        Ok(Self {
            machine,
            configs,
            loads: Vec::new(),
            idle: Vec::new(),
            value: Vec::new(),
            syscalls: Vec::new(),
            plugins: Vec::new(),
        })
    }

    /// The whole report.
    pub(super) fn markdown(&self, plan: &Plan) -> String {
        let mut text = format!("## Benchmark run\n\n{}", self.machine);
        if !self.loads.is_empty() {
            text += &self.loads_markdown(plan);
        }
        text += &self.idle_markdown();
        text += &self.value_markdown();
        text += &self.syscalls_markdown();
        text += &plugins::markdown(plan, &self.plugins);
        for (kind, config) in &self.configs {
            text += &format!("\n### Config of {}\n\n```\n{}\n```\n", kind.name(), config.trim());
        }
        text
    }

    fn loads_markdown(&self, plan: &Plan) -> String {
        let mut figures = format!(
            "\n### Load\n\n`pgbench -S`, {} rounds of {} s, medians; `tps` with the least and the most. CPU is user and \
             system seconds for 1,000 queries. Connections are the most that PostgreSQL saw at once.\n\n\
             | mode | clients | who | tps | p50 ms | p99 ms | proxy CPU s | server CPU s | connections | TLS |\n\
             |---|---:|---|---:|---:|---:|---:|---:|---:|---|\n",
            plan.rounds, plan.seconds
        );
        let mut ratios = String::from(
            "\n### Ratios, Pinion to PgBouncer\n\nMedians of the rounds' own ratios. tps: more is better; the others: \
             less is better.\n\n\
             | mode | clients | tps | p50 | p99 | proxy CPU | rounds that count |\n|---|---:|---:|---:|---:|---:|---|\n",
        );
        for mode in MODES {
            for clients in CLIENTS {
                let load = Load { mode, clients, seconds: plan.seconds };
                for &kind in &plan.kinds {
                    figures += &self.figures_row(load, kind);
                }
                ratios += &self.ratios_row(load, plan.rounds);
            }
        }
        let compared = [Kind::Pgbouncer, Kind::Pinion].iter().all(|kind| plan.kinds.contains(kind));
        if compared { figures + &ratios } else { figures }
    }

    fn figures_row(&self, load: Load, kind: Kind) -> String {
        let start = format!("| {} | {} | {} |", load.mode, load.clients, kind.name());
        let rounds: Vec<&Measured<Sample>> = self
            .loads
            .iter()
            .filter(|(of, _, who, _)| (*of, *who) == (load, kind))
            .map(|(.., sample)| sample)
            .collect();
        let samples: Vec<&Sample> = rounds.iter().filter_map(|sample| sample.as_ref().ok()).collect();
        let failures: Vec<&String> = rounds.iter().filter_map(|sample| sample.as_ref().err()).collect();
        if samples.is_empty() {
            let why = failures.first().map_or("not run", |why| why.lines().next().unwrap_or_default());
            return format!("{start} **failed**: {why} | | | | | | |\n");
        }
        let of =
            |figure: &dyn Fn(&Sample) -> f64| median(samples.iter().map(|sample| figure(sample)).collect());
        let tps = samples.iter().map(|sample| sample.outcome.tps);
        let least = tps.clone().fold(f64::INFINITY, f64::min);
        let most = tps.fold(0.0, f64::max);
        let proxy = match samples.iter().filter_map(|sample| sample.proxy_cpu_per_1000()).collect::<Vec<_>>()
        {
            none if none.is_empty() => "-".to_owned(),
            some => format!("{:.4}", median(some)),
        };
        let peak = samples.iter().map(|sample| sample.seen.peak).max().unwrap_or_default();
        let tls = if samples.iter().any(|sample| sample.seen.peak_tls > 0) { "on" } else { "off" };
        let failed =
            if failures.is_empty() { String::new() } else { format!(" ({} failed)", failures.len()) };
        format!(
            "{start} {:.0} ({least:.0} to {most:.0}){failed} | {:.3} | {:.3} | {proxy} | {:.4} | {peak} | {tls} |\n",
            of(&|sample| sample.outcome.tps),
            of(&|sample| sample.outcome.p50_ms),
            of(&|sample| sample.outcome.p99_ms),
            of(&Sample::server_cpu_per_1000),
        )
    }

    fn ratios_row(&self, load: Load, rounds: u32) -> String {
        let start = format!("| {} | {} |", load.mode, load.clients);
        let sample = |round: u32, kind: Kind| {
            let mut found =
                self.loads.iter().filter(|(of, at, who, _)| (*of, *at, *who) == (load, round, kind));
            found.next().and_then(|(.., sample)| sample.as_ref().ok())
        };
        let pairs: Vec<(&Sample, &Sample)> = (1..=rounds)
            .filter_map(|round| sample(round, Kind::Pinion).zip(sample(round, Kind::Pgbouncer)))
            .collect();
        let differing = pairs.iter().find(|(pinion, pgbouncer)| !comparable(pinion, pgbouncer));
        let fair: Vec<&(&Sample, &Sample)> =
            pairs.iter().filter(|(pinion, pgbouncer)| comparable(pinion, pgbouncer)).collect();
        let void = differing.map_or(String::new(), |(pinion, pgbouncer)| {
            format!(
                ", others **VOID**: {} connections ({} with TLS) against {} ({})",
                pinion.seen.peak, pinion.seen.peak_tls, pgbouncer.seen.peak, pgbouncer.seen.peak_tls
            )
        });
        let count = format!("{} of {rounds}{void}", fair.len());
        if fair.is_empty() {
            return format!("{start} | | | | {count} |\n");
        }
        let ratio = |figure: &dyn Fn(&Sample) -> f64| {
            let ratios = fair.iter().map(|(pinion, pgbouncer)| figure(pinion) / figure(pgbouncer));
            median(ratios.collect())
        };
        format!(
            "{start} {:.2} | {:.2} | {:.2} | {:.2} | {count} |\n",
            ratio(&|sample| sample.outcome.tps),
            ratio(&|sample| sample.outcome.p50_ms),
            ratio(&|sample| sample.outcome.p99_ms),
            ratio(&|sample| sample.proxy_cpu_per_1000().unwrap_or(f64::NAN)),
        )
    }

    fn idle_markdown(&self) -> String {
        let mut text = String::from(
            "\n### Idle clients\n\nResident memory of the proxy, a fresh process each. KiB for each client is the growth \
             shared among them.\n\n\
             | who | clients | before MiB | all logged in MiB | KiB for each client | after one query each MiB | KiB for \
             each client |\n|---|---:|---:|---:|---:|---:|---:|\n",
        );
        for (kind, measured) in &self.idle {
            text += &match measured {
                Ok(idle) => {
                    let each = |before: u64, after: u64| {
                        after.saturating_sub(before) as f64 / f64::from(idle.clients)
                    };
                    format!(
                        "| {} | {} | {:.1} | {:.1} | {:.2} | {:.1} | {:.2} |\n",
                        kind.name(),
                        idle.clients,
                        mebibytes(idle.before),
                        mebibytes(idle.logged_in),
                        each(idle.before, idle.logged_in),
                        mebibytes(idle.after_query),
                        each(idle.before_query, idle.after_query),
                    )
                }
                Err(why) => format!("| {} | **failed**: {} | | | | | |\n", kind.name(), one_line(why)),
            };
        }
        if let (Some(pinion), Some(pgbouncer)) =
            (of(&self.idle, Kind::Pinion), of(&self.idle, Kind::Pgbouncer))
        {
            let grown = |idle: &Idle| idle.logged_in.saturating_sub(idle.before) as f64;
            let grown_query = |idle: &Idle| idle.after_query.saturating_sub(idle.before_query) as f64;
            let _ = writeln!(
                text,
                "| Pinion to PgBouncer | | | | {:.2} | | {:.2} |",
                grown(pinion) / grown(pgbouncer),
                grown_query(pinion) / grown_query(pgbouncer)
            );
        }
        if self.idle.is_empty() { String::new() } else { text }
    }

    fn value_markdown(&self) -> String {
        let mut text = format!(
            "\n### One value of {MEBIBYTES} MiB\n\nRead by a client that throws it away; the proxy's resident memory.\n\n\
             | who | before MiB | peak MiB | growth MiB | seconds | proxy CPU s |\n|---|---:|---:|---:|---:|---:|\n"
        );
        for (kind, measured) in &self.value {
            text += &match measured {
                Ok(value) => format!(
                    "| {} | {:.1} | {:.1} | {:.1} | {:.2} | {:.2} |\n",
                    kind.name(),
                    mebibytes(value.before),
                    mebibytes(value.peak),
                    mebibytes(value.peak.saturating_sub(value.before)),
                    value.seconds,
                    value.proxy_cpu
                ),
                Err(why) => format!("| {} | **failed**: {} | | | | |\n", kind.name(), one_line(why)),
            };
        }
        if self.value.is_empty() { String::new() } else { text }
    }

    fn syscalls_markdown(&self) -> String {
        let mut text = String::from(
            "\n### System calls\n\nOf the proxy for one simple query, one client, counted by `strace -c -f`. Data calls \
             move bytes through a socket.\n\n| who | data calls | all calls | which |\n|---|---:|---:|---|\n",
        );
        for (kind, measured) in &self.syscalls {
            text += &match measured {
                Ok(calls) => {
                    let each: Vec<String> =
                        calls.each.iter().map(|(name, count)| format!("{name} {count:.2}")).collect();
                    format!(
                        "| {} | {:.2} | {:.2} | {} |\n",
                        kind.name(),
                        calls.data,
                        calls.all,
                        each.join(", ")
                    )
                }
                Err(why) => format!("| {} | **failed**: {} | | |\n", kind.name(), one_line(why)),
            };
        }
        if self.syscalls.is_empty() { String::new() } else { text }
    }
}

impl Sample {
    pub(super) fn proxy_cpu_per_1000(&self) -> Option<f64> {
        Some(self.proxy_cpu? * 1000.0 / self.outcome.transactions as f64)
    }

    fn server_cpu_per_1000(&self) -> f64 {
        self.server_cpu * 1000.0 / self.outcome.transactions as f64
    }
}

/// A comparison counts only when both proxies used as many server connections and neither had TLS alone.
fn comparable(pinion: &Sample, pgbouncer: &Sample) -> bool {
    pinion.seen == pgbouncer.seen
}

fn of<T>(measured: &[(Kind, Measured<T>)], kind: Kind) -> Option<&T> {
    measured.iter().find(|(who, _)| *who == kind).and_then(|(_, value)| value.as_ref().ok())
}

pub(super) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match (values.get(values.len() / 2), values.len()) {
        (None, _) => f64::NAN,
        (Some(middle), length) if length % 2 == 1 => *middle,
        (Some(upper), length) => (values[length / 2 - 1] + upper) / 2.0,
    }
}

fn mebibytes(kibibytes: u64) -> f64 {
    kibibytes as f64 / 1024.0
}

/// A failure's first line, fit for a table's cell.
pub(super) fn one_line(why: &str) -> String {
    why.lines().next().unwrap_or_default().replace('|', "/")
}

/// What everything ran on.
pub(super) fn machine() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZeroUsize::get);
    let processor = read("/proc/cpuinfo");
    let processor = processor.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or(": unknown");
    let load = read("/proc/loadavg");
    format!(
        "- Machine: {cores} cores, {}, Linux {}; load average before the run {}. Client, proxy and server share it.\n",
        processor.trim_start_matches([':', ' ', '\t']),
        read("/proc/sys/kernel/osrelease").trim(),
        load.split(' ').next().unwrap_or_default(),
    )
}

fn surroundings(plan: &Plan, bench: &Bench<'_>) -> Result<String> {
    let postgres = cluster::programs().unwrap_or_default().join("postgres");
    let postgres = process::run(Command::new(postgres).arg("--version"))?;
    let mut text = machine();
    let _ = writeln!(
        text,
        "- Server: {}, `max_connections` {SERVER_LIMIT}, TLS off, pgbench scale {SCALE}.",
        postgres.trim()
    );
    if plan.kinds.contains(&Kind::Pgbouncer) {
        let _ = writeln!(text, "- PgBouncer: {}.", bench.pgbouncer_version()?);
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_count_lies_between() {
        assert_eq!((median(vec![3.0, 1.0, 2.0]), median(vec![4.0, 1.0, 2.0, 3.0])), (2.0, 2.5));
        assert!(median(vec![]).is_nan());
    }
}
