//! Memory of a proxy for clients that are logged in and say nothing.

use std::{
    io::{BufRead, BufReader, Read},
    process::{Child, Command, Stdio},
    time::Duration,
};

use super::{
    USER,
    contender::{Bench, Kind},
};
use crate::{
    arguments::Arguments,
    error::{Context, Error, Result, failed},
    interrupt,
    pgwire::Client,
    process,
};

/// Memory in RAM, KiB.
#[derive(Debug, Clone, Copy)]
pub(super) struct Idle {
    /// Clients that were held.
    pub(super) clients: u32,
    /// After one client has come, asked and gone.
    pub(super) before: u64,
    /// With all clients logged in.
    pub(super) logged_in: u64,
    /// In another process of the proxy, with all clients logged in after one query each.
    pub(super) after_query: u64,
    /// Before that.
    pub(super) before_query: u64,
}

/// Measures two fresh processes: clients that only log in, and clients that have run a query.
pub(super) fn measure(bench: &Bench<'_>, kind: Kind, clients: u32) -> Result<Idle> {
    let (before, logged_in) = measure_once(bench, kind, clients, false)?;
    let (before_query, after_query) = measure_once(bench, kind, clients, true)?;
    Ok(Idle { clients, before, logged_in, after_query, before_query })
}

fn measure_once(bench: &Bench<'_>, kind: Kind, clients: u32, query: bool) -> Result<(u64, u64)> {
    let mut contender = bench.start(kind)?;
    let (pid, server) = (contender.proxy_pid()?, contender.server());
    let before = process::resident_kib(pid)?;
    let crowd = Crowd::start(server.port, server.password, clients, query)?;
    // Let the proxy finish what it does after a login.
    interrupt::wait(Duration::from_secs(1))?;
    contender.check()?;
    let after = process::resident_kib(pid)?;
    drop(crowd);
    Ok((before, after))
}

/// Clients in a process of their own, so that two processes share the limit of open files.
struct Crowd(Child);

impl Crowd {
    fn start(port: u16, password: &str, clients: u32, query: bool) -> Result<Self> {
        let ours = std::env::current_exe().context("looking for our own program")?;
        let mut command = Command::new(ours);
        command
            .args(["idle-clients", "--user", USER, "--database", USER])
            .args(["--port", &port.to_string(), "--clients", &clients.to_string()])
            .args(query.then_some("--query"))
            .env("PGPASSWORD", password)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut crowd = Self(command.spawn().context("starting the idle clients")?);
        let Some(stdout) = crowd.0.stdout.take() else { return failed("the idle clients have no output") };
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line).context("waiting for the idle clients")?;
        interrupt::check()?;
        if line.trim() == "ready" { Ok(crowd) } else { failed("not all idle clients could log in") }
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        // The end of its input is its sign to leave; waiting keeps it from becoming a zombie.
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// `cargo xtask idle-clients`: logs clients in one after the other, says `ready`, and holds them until standard input
/// ends.
pub(crate) fn hold_clients(mut arguments: Arguments) -> Result<()> {
    let (port, clients) = (arguments.value::<u16>("--port")?, arguments.value::<u32>("--clients")?);
    let (user, database) = (arguments.value::<String>("--user")?, arguments.value::<String>("--database")?);
    let query = arguments.flag("--query");
    arguments.end()?;
    let (Some(port), Some(clients), Some(user), Some(database)) = (port, clients, user, database) else {
        return Err(Error::Usage);
    };
    process::raise_file_limit()?;
    let password = std::env::var("PGPASSWORD").unwrap_or_default();
    let mut held = Vec::new();
    for number in 1..=clients {
        let mut client = Client::tcp(port, &user, &password, &database)
            .context(format!("client {number} of {clients}"))?;
        if query {
            client.query("SELECT 1")?;
        }
        held.push(client);
    }
    println!("ready");
    std::io::stdin().read_to_end(&mut Vec::new()).context("waiting for the end of the input")?;
    Ok(())
}
