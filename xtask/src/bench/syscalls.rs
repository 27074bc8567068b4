//! System calls of a proxy for one simple query, counted by strace.

use std::{fs, process::Command, time::Duration};

use rustix::process::Signal;

use super::contender::{Bench, Kind};
use crate::{
    apt::{self, Need},
    error::{Context, Result, failed},
    interrupt,
    pgbench::Load,
    process::Service,
};

/// Calls that move data through a socket. Two reads and two writes are what a simple query needs.
const DATA: [&str; 8] = ["read", "write", "readv", "writev", "recvfrom", "sendto", "recvmsg", "sendmsg"];

/// Calls for one transaction.
#[derive(Debug, Clone)]
pub(super) struct Syscalls {
    /// Those that move data.
    pub(super) data: f64,
    /// All.
    pub(super) all: f64,
    /// Each call that comes more often than in one transaction of a hundred, most frequent first.
    pub(super) each: Vec<(String, f64)>,
}

/// Counts while one pgbench client runs simple queries for three seconds.
pub(super) fn measure(bench: &Bench<'_>, kind: Kind) -> Result<Syscalls> {
    apt::provide(&[Need::Strace]).context("skipped, strace is not here and could not be installed")?;
    let contender = bench.start(kind)?;
    let load = Load { mode: "simple", clients: 1, seconds: 3 };
    contender.server().warm_up(load)?;
    let (counts, log) = (bench.directory.join("strace.counts"), bench.directory.join("strace.log"));
    let mut strace = Command::new("strace");
    strace.args(["-c", "-f", "-p", &contender.proxy_pid()?.to_string(), "-o"]).arg(&counts);
    let mut tracing = Service::start("strace", &mut strace, log.clone(), Signal::INT)?;
    let attached = interrupt::poll(Duration::from_secs(10), Duration::from_millis(20), || {
        tracing.check()?;
        Ok(fs::read_to_string(&log).is_ok_and(|text| text.contains("attached")).then_some(()))
    })?;
    if attached.is_none() {
        return failed("strace did not attach within 10 s");
    }
    let outcome = contender.server().run(load, bench.directory)?;
    tracing.stop();
    let table = fs::read_to_string(&counts).context("reading strace's counts")?;
    Ok(parse(&table, outcome.transactions as f64))
}

/// Line of `strace -c`: `% time, seconds, usecs/call, calls, [errors], name`.
fn parse(table: &str, transactions: f64) -> Syscalls {
    let lines = table.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (calls, name) = (fields.get(3)?.parse::<f64>().ok()?, *fields.last()?);
        (fields.len() >= 5 && name != "total").then(|| (name.to_owned(), calls / transactions))
    });
    let mut each: Vec<(String, f64)> = lines.collect();
    each.sort_by(|(_, one), (_, other)| other.total_cmp(one));
    let data = each.iter().filter(|(name, _)| DATA.contains(&name.as_str())).map(|(_, calls)| calls).sum();
    let all = each.iter().map(|(_, calls)| calls).sum();
    each.retain(|(_, calls)| *calls >= 0.01);
    Syscalls { data, all, each }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_strace_is_read_with_and_without_errors() {
        let table = "\
% time     seconds  usecs/call     calls    errors syscall
------ ----------- ----------- --------- --------- ----------------
 60.00    0.060000           3       400        20 recvfrom
 40.00    0.040000           4       200           epoll_wait
------ ----------- ----------- --------- --------- ----------------
100.00    0.100000           3       600        20 total
";
        let counted = parse(table, 100.0);
        assert_eq!((counted.data, counted.all), (4.0, 6.0));
        assert_eq!(counted.each[0], ("recvfrom".to_owned(), 4.0));
    }
}
