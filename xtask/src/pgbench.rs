//! Runs pgbench and reads what it measured.

use std::{fs, path::Path, process::Command};

use crate::{
    cluster,
    error::{Context, Result, failed},
    process, temporary,
};

/// Whom pgbench logs in to, and as whom. User and database have the same name.
#[derive(Debug, Clone)]
pub(crate) struct Server<'a> {
    /// On 127.0.0.1.
    pub(crate) port: u16,
    /// User and database.
    pub(crate) user: &'a str,
    /// Its password.
    pub(crate) password: &'a str,
    /// libpq's `sslmode`.
    pub(crate) sslmode: &'a str,
}

/// The load of one run: one SELECT by primary key a transaction (`-S`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Load {
    /// `-M simple` or `-M prepared`.
    pub(crate) mode: &'static str,
    /// Client connections.
    pub(crate) clients: u32,
    /// Length, seconds.
    pub(crate) seconds: u32,
}

/// What a run measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Outcome {
    /// Transactions that succeeded.
    pub(crate) transactions: u64,
    /// Transactions a second, without the time to connect.
    pub(crate) tps: f64,
    /// Half of all transactions took at most this long, milliseconds.
    pub(crate) p50_ms: f64,
    /// 99 of 100 took at most this long, milliseconds.
    pub(crate) p99_ms: f64,
}

impl Server<'_> {
    /// A libpq program of the PostgreSQL that is installed, told to talk to this server.
    pub(crate) fn program(&self, name: &str) -> Result<Command> {
        let Some(programs) = cluster::programs() else { return failed("PostgreSQL is not installed") };
        let mut command = Command::new(programs.join(name));
        command
            .env("PGHOST", "127.0.0.1")
            .env("PGPORT", self.port.to_string())
            .env("PGUSER", self.user)
            .env("PGDATABASE", self.user)
            .env("PGPASSWORD", self.password)
            .env("PGSSLMODE", self.sslmode)
            .env("LC_ALL", "C");
        Ok(command)
    }

    /// Fills the tables: 100,000 accounts for each unit of `scale`.
    pub(crate) fn fill(&self, scale: u32) -> Result<()> {
        let mut pgbench = self.program("pgbench")?;
        process::run(pgbench.args(["--initialize", "--quiet", "--scale", &scale.to_string()])).map(drop)
    }

    /// Runs a load for a second and measures nothing, so that connections are open and memory is warm.
    pub(crate) fn warm_up(&self, load: Load) -> Result<()> {
        let mut pgbench = self.program("pgbench")?;
        load.tell(&mut pgbench).args(["--time", "1"]);
        process::run(&mut pgbench).map(drop)
    }

    /// Runs a load; `directory` takes the log that the percentiles come from: every transaction of up to ten
    /// seconds, a sample of longer runs.
    pub(crate) fn run(&self, load: Load, directory: &Path) -> Result<Outcome> {
        let logs = directory.join(format!("pgbench-{}", temporary::random_hex(6)?));
        temporary::private_directory(&logs, None)?;
        let sampling = (10.0 / f64::from(load.seconds.max(10))).min(1.0);
        let mut pgbench = self.program("pgbench")?;
        load.tell(&mut pgbench)
            .args(["--log", "--time", &load.seconds.to_string(), "--sampling-rate", &sampling.to_string()])
            .current_dir(&logs);
        let report = process::run(&mut pgbench)?;
        let latencies = read_latencies(&logs)?;
        fs::remove_dir_all(&logs).context(format!("removing {}", logs.display()))?;
        let transactions = number_after(&report, "number of transactions actually processed: ");
        let aborted = number_after(&report, "number of failed transactions: ").unwrap_or(0.0);
        let (Some(transactions), Some(tps)) = (transactions, number_after(&report, "tps = ")) else {
            return failed(format!("pgbench reported in an unknown form:\n{report}"));
        };
        if aborted > 0.0 || transactions < 1.0 {
            return failed(format!("pgbench saw failed transactions:\n{report}"));
        }
        Ok(Outcome {
            transactions: transactions as u64,
            tps,
            p50_ms: percentile(&latencies, 0.50),
            p99_ms: percentile(&latencies, 0.99),
        })
    }
}

impl Server<'_> {
    /// Runs `statement` again and again from `clients` clients: how many transactions succeeded. Errors when any failed.
    pub(crate) fn repeat(
        &self,
        statement: &str,
        clients: u32,
        seconds: u32,
        directory: &Path,
    ) -> Result<u64> {
        let script = directory.join("statement.sql");
        temporary::private_file(&script, &format!("{statement};\n"), None)?;
        let mut pgbench = self.program("pgbench")?;
        pgbench.args(["--no-vacuum", "--jobs", "2", "--client", &clients.to_string()]);
        pgbench.args(["--time", &seconds.to_string(), "--file"]).arg(&script);
        let report = process::run(&mut pgbench)?;
        let failed_ones = number_after(&report, "number of failed transactions: ").unwrap_or(0.0);
        match number_after(&report, "number of transactions actually processed: ") {
            Some(transactions) if failed_ones == 0.0 => Ok(transactions as u64),
            _ => failed(format!("pgbench saw failed transactions:\n{report}")),
        }
    }
}

impl Load {
    fn tell(self, pgbench: &mut Command) -> &mut Command {
        let threads = self.clients.min(2);
        pgbench.args(["--select-only", "--no-vacuum", "--protocol", self.mode]).args([
            "--client",
            &self.clients.to_string(),
            "--jobs",
            &threads.to_string(),
        ])
    }
}

/// The smallest of `sorted` that at least `share` of all are not above; 0 of nothing.
fn percentile(sorted: &[u32], share: f64) -> f64 {
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).map_or(0.0, |microseconds| f64::from(*microseconds) / 1000.0)
}

/// All transactions' latencies, microseconds, ascending. Line: `client transaction latency script second microsecond`.
fn read_latencies(directory: &Path) -> Result<Vec<u32>> {
    let mut latencies = Vec::new();
    for entry in fs::read_dir(directory).context(format!("reading {}", directory.display()))? {
        let path = entry.context("reading a directory")?.path();
        let text = fs::read_to_string(&path).context(format!("reading {}", path.display()))?;
        latencies.extend(text.lines().filter_map(|line| line.split(' ').nth(2)?.parse::<u32>().ok()));
    }
    latencies.sort_unstable();
    Ok(latencies)
}

fn number_after(text: &str, label: &str) -> Option<f64> {
    let rest = &text[text.find(label)? + label.len()..];
    rest.split(|letter: char| !letter.is_ascii_digit() && letter != '.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_ranks() {
        let sorted: Vec<u32> = (1..=100).map(|n| n * 1000).collect();
        assert_eq!((percentile(&sorted, 0.50), percentile(&sorted, 0.99)), (50.0, 99.0));
        assert_eq!((percentile(&[7000], 0.99), percentile(&[], 0.5)), (7.0, 0.0));
    }

    #[test]
    fn numbers_are_found_by_their_label() {
        let report =
            "number of transactions actually processed: 4711\ntps = 1234.5 (without initial connection time)";
        assert_eq!(number_after(report, "actually processed: "), Some(4711.0));
        assert_eq!(number_after(report, "tps = "), Some(1234.5));
        assert_eq!(number_after(report, "latency average = "), None);
    }
}
