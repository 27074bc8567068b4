//! Runs sysbench and reads what it measured.

use std::{fs, path::Path, process::Command};

use crate::{
    error::{Context, Result, failed},
    pgbench::Outcome,
    process, temporary,
};

/// Tables of the load, and rows of each: all of it in the server's memory.
pub(crate) const TABLES: u32 = 4;
pub(crate) const ROWS: u32 = 25_000;

/// Whom sysbench logs in to, and as whom. User and database have the same name.
#[derive(Debug, Clone)]
pub(crate) struct Server<'a> {
    /// On 127.0.0.1.
    pub(crate) port: u16,
    /// User and database.
    pub(crate) user: &'a str,
    /// Its password.
    pub(crate) password: &'a str,
    /// A certificate that has signed itself, and its key: the server's, for TLS.
    pub(crate) certificate: Option<(&'a Path, &'a Path)>,
}

/// The load of one run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Load {
    /// `oltp_point_select`: one SELECT by primary key a transaction. `oltp_read_write`: 20 statements between BEGIN and
    /// COMMIT.
    pub(crate) script: &'static str,
    /// Whether statements are prepared; else they are sent as text.
    pub(crate) prepared: bool,
    /// Client connections.
    pub(crate) clients: u32,
    /// Length, seconds.
    pub(crate) seconds: u32,
}

impl Server<'_> {
    /// Makes and fills the tables.
    pub(crate) fn fill(&self, directory: &Path) -> Result<()> {
        let arguments = ["--threads=1".to_owned(), "prepare".to_owned()];
        self.sysbench("oltp_read_write", &arguments, directory).map(drop)
    }

    /// Runs a load for a second and measures nothing, so that connections are open and memory is warm.
    pub(crate) fn warm_up(&self, load: Load, directory: &Path) -> Result<()> {
        self.run(Load { seconds: 1, ..load }, directory).map(drop)
    }

    /// Runs a load. Errors when a client met an error that is not a deadlock, which sysbench tries again.
    pub(crate) fn run(&self, load: Load, directory: &Path) -> Result<Outcome> {
        let arguments = [
            format!("--threads={}", load.clients),
            format!("--time={}", load.seconds),
            format!("--db-ps-mode={}", if load.prepared { "auto" } else { "disable" }),
            "--histogram=on".to_owned(),
            "run".to_owned(),
        ];
        let report = self.sysbench(load.script, &arguments, directory)?;
        outcome(&report)
            .map_or_else(|| failed(format!("sysbench reported in an unknown form:\n{report}")), Ok)
    }

    fn sysbench(&self, script: &str, arguments: &[String], directory: &Path) -> Result<String> {
        let home = directory.join(format!("sysbench-{}", temporary::random_hex(6)?));
        temporary::private_directory(&home, None)?;
        // In a file, since everybody sees a program's arguments.
        let config = home.join("config");
        let Self { port, user, password, .. } = self;
        let text = format!(
            "db-driver=mysql\nmysql-host=127.0.0.1\nmysql-port={port}\nmysql-user={user}\nmysql-password={password}\n\
             mysql-db={user}\nmysql-ssl={}\n",
            if self.certificate.is_some() { "on" } else { "off" }
        );
        temporary::private_file(&config, &text, None)?;
        if let Some((certificate, key)) = self.certificate {
            // Where sysbench 1.0 looks for its authority, and for a certificate and a key of its own, which it must have.
            let copies =
                [(certificate, "cacert.pem"), (certificate, "client-cert.pem"), (key, "client-key.pem")];
            for (from, to) in copies {
                fs::copy(from, home.join(to)).context(format!("copying {}", from.display()))?;
            }
        }
        let mut sysbench = Command::new("sysbench");
        let tables = [format!("--tables={TABLES}"), format!("--table-size={ROWS}")];
        sysbench.arg(script).arg("--config-file=config").args(tables).args(arguments).current_dir(&home);
        let report = process::run(sysbench.env("LC_ALL", "C"))?;
        fs::remove_dir_all(&home).context(format!("removing {}", home.display()))?;
        Ok(report)
    }
}

/// Lines `transactions: N (N per sec.)` and, of the histogram, `milliseconds |stars count`.
fn outcome(report: &str) -> Option<Outcome> {
    let line = report.lines().find_map(|line| line.trim().strip_prefix("transactions:"))?;
    let (transactions, rate) = line.trim().split_once('(')?;
    let transactions: u64 = transactions.trim().parse().ok()?;
    let tps = rate.split(' ').next()?.parse().ok()?;
    let buckets: Vec<(f64, u64)> = report
        .lines()
        .filter_map(|line| {
            let (value, bar) = line.split_once('|')?;
            Some((value.trim().parse().ok()?, bar.trim_start_matches('*').trim().parse().ok()?))
        })
        .collect();
    let percentile = |share: f64| {
        let total: u64 = buckets.iter().map(|(_, count)| count).sum();
        let rank = (total as f64 * share).ceil() as u64;
        let mut seen = 0;
        let mut values = buckets.iter().filter_map(|(value, count)| {
            seen += count;
            (seen >= rank).then_some(*value)
        });
        values.next()
    };
    let (p50_ms, p99_ms) = (percentile(0.5)?, percentile(0.99)?);
    (transactions > 0).then_some(Outcome { transactions, tps, p50_ms, p99_ms })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_read_with_its_histogram() {
        let report = "\
Latency histogram (values are in milliseconds)
       value  ------------- distribution ------------- count
       0.021 |****                                     49
       0.050 |*****                                    50
       1.500 |                                         1

SQL statistics:
    transactions:                        100    (20.00 per sec.)
    queries:                             100    (20.00 per sec.)
";
        let expected = Outcome { transactions: 100, tps: 20.0, p50_ms: 0.05, p99_ms: 0.05 };
        assert_eq!(outcome(report), Some(expected));
        assert_eq!(outcome("nothing"), None);
    }
}
