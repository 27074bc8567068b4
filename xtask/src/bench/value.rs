//! Memory of a proxy while one huge value passes.

use std::time::Instant;

use super::contender::{Bench, Kind};
use crate::{
    error::{Result, failed},
    process,
};

/// Size of the value; PostgreSQL's limit is just under 1,024.
pub(super) const MEBIBYTES: u64 = 1000;

/// What one passage cost.
#[derive(Debug, Clone, Copy)]
pub(super) struct Value {
    /// Memory in RAM before, KiB.
    pub(super) before: u64,
    /// Its peak meanwhile, KiB.
    pub(super) peak: u64,
    /// From the query to its end.
    pub(super) seconds: f64,
    /// CPU seconds of the proxy.
    pub(super) proxy_cpu: f64,
}

/// Reads the value through a fresh process and throws it away.
pub(super) fn measure(bench: &Bench<'_>, kind: Kind) -> Result<Value> {
    let mut contender = bench.start(kind)?;
    let pid = contender.proxy_pid()?;
    let mut client = contender.client()?;
    client.query("SELECT 1")?;
    process::reset_peak(pid)?;
    let (before, cpu) = (process::resident_kib(pid)?, process::cpu_seconds(pid)?);
    let started = Instant::now();
    let bytes = client.count_row_bytes(&format!("SELECT repeat('x', {MEBIBYTES} * 1024 * 1024)"))?;
    let seconds = started.elapsed().as_secs_f64();
    if bytes < MEBIBYTES * 1024 * 1024 {
        return failed(format!("only {bytes} bytes came through"));
    }
    contender.check()?;
    let (peak, proxy_cpu) = (process::peak_resident_kib(pid)?, process::cpu_seconds(pid)? - cpu);
    Ok(Value { before, peak, seconds, proxy_cpu })
}
