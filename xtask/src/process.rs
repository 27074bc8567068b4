//! Programs that are run to their end, servers that run beside us, and what `/proc` says about them.

use std::{
    collections::HashMap,
    fs,
    io::Read,
    net::{Ipv4Addr, TcpListener},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    thread,
    time::Duration,
};

use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, setrlimit};

use crate::{
    error::{Context, Result, failed},
    interrupt,
};

const POLL: Duration = Duration::from_millis(20);

/// A server beside us, stopped on drop.
#[derive(Debug)]
pub(crate) struct Service {
    name: &'static str,
    child: Child,
    stop: Signal,
    log: PathBuf,
}

impl Service {
    /// Starts it in a process group of its own, so that a Ctrl-C at the terminal reaches only us and we stop things in
    /// order. Its output goes to `log`; `stop` is the signal that asks it to end.
    pub(crate) fn start(
        name: &'static str,
        command: &mut Command,
        log: PathBuf,
        stop: Signal,
    ) -> Result<Self> {
        let file = fs::File::create(&log).context(format!("creating {}", log.display()))?;
        let copy = file.try_clone().context("sharing a log file")?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file)
            .stderr(copy)
            .process_group(0)
            .spawn()
            .context(format!("starting {name}"))?;
        Ok(Self { name, child, stop, log })
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Errors with the end of its log when it has ended.
    pub(crate) fn check(&mut self) -> Result<()> {
        match self.child.try_wait().context(format!("looking after {}", self.name))? {
            None => Ok(()),
            Some(status) => {
                failed(format!("{} ended ({status}); its log ends:\n{}", self.name, self.log_end()))
            }
        }
    }

    /// The last lines that it wrote.
    pub(crate) fn log_end(&self) -> String {
        let log = fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    /// Asks it to end, and kills it when it has not after ten seconds.
    pub(crate) fn stop(&mut self) {
        if matches!(self.child.try_wait(), Ok(Some(_))) {
            return;
        }
        signal(&self.child, self.stop);
        for _ in 0..500 {
            if matches!(self.child.try_wait(), Ok(Some(_))) {
                return;
            }
            interrupt::pause(POLL);
        }
        eprintln!("{} did not stop when asked; killing it", self.name);
        if let Err(cause) = self.child.kill().and_then(|()| self.child.wait()) {
            eprintln!("killing {}: {cause}", self.name);
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.stop();
    }
}

/// User and group of a server's own account, which it runs as when we are root; `None` when we are not.
pub(crate) fn account(name: &str) -> Result<Option<(u32, u32)>> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let users = fs::read_to_string("/etc/passwd").context("reading /etc/passwd")?;
    let ids = users.lines().find_map(|line| {
        let mut fields = line.strip_prefix(name)?.strip_prefix(':')?.split(':').skip(1);
        Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    });
    ids.map_or_else(
        || failed(format!("there is no user {name} to run a server as, and root must not")),
        |ids| Ok(Some(ids)),
    )
}

/// A program that will run under an account.
pub(crate) fn under(program: &Path, account: Option<(u32, u32)>) -> Command {
    let mut command = Command::new(program);
    if let Some((user, group)) = account {
        // With the user the standard library also drops root's supplementary groups.
        command.uid(user).gid(group);
    }
    command
}

/// Runs a program to its end and keeps what it printed. Errors when it cannot be started, does not end with success, or
/// a signal comes (it is killed then).
pub(crate) fn run(command: &mut Command) -> Result<String> {
    let output = run_unchecked(command)?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(text);
    }
    let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
    failed(format!("{} ended with {}:\n{text}{complaint}", name(command), output.status))
}

/// As [`run`], but the exit status is the caller's to judge.
pub(crate) fn run_unchecked(command: &mut Command) -> Result<Output> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .context(format!("starting {}", name(command)))?;
    // Both pipes are read all the time, else a program that writes much to one of them would stand still.
    let (stdout, stderr) = (reader(child.stdout.take()), reader(child.stderr.take()));
    let status = wait(&mut child, &name(command))?;
    let collected = |thread: thread::JoinHandle<Vec<u8>>| thread.join().unwrap_or_default();
    Ok(Output { status, stdout: collected(stdout), stderr: collected(stderr) })
}

/// Runs a program whose output the user sees and whose questions the user answers.
pub(crate) fn run_shown(command: &mut Command) -> Result<()> {
    let mut child = command.spawn().context(format!("starting {}", name(command)))?;
    let status = wait(&mut child, &name(command))?;
    if status.success() { Ok(()) } else { failed(format!("{} ended with {status}", name(command))) }
}

/// A program found on the PATH, with its directory.
pub(crate) fn on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    // Where Debian keeps what an ordinary user's PATH leaves out.
    let more = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path)
        .chain(more)
        .map(|directory| directory.join(program))
        .find(|file| file.is_file())
}

/// A TCP port of the loopback address that nobody uses now.
pub(crate) fn free_port() -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("looking for a free port")?;
    Ok(listener.local_addr().context("looking for a free port")?.port())
}

/// Lets this process and those it starts open as many files as the machine allows.
pub(crate) fn raise_file_limit() -> Result<u64> {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })
        .context("raising the limit of open files")?;
    Ok(limit.maximum.unwrap_or(u64::MAX))
}

/// CPU time of one process so far, seconds, user and system together.
pub(crate) fn cpu_seconds(pid: u32) -> Result<f64> {
    Ok(Stat::of(pid)?.own)
}

/// CPU time of a process and all its children so far, seconds, those that have ended included. PostgreSQL's server
/// processes are all children of the first one.
pub(crate) fn cpu_seconds_with_children(pid: u32) -> Result<f64> {
    let stats = Stat::all()?;
    let Some(parent) = stats.get(&pid) else { return failed(format!("process {pid} is gone")) };
    let alive: f64 = stats.values().filter(|stat| stat.parent == pid).map(|stat| stat.own + stat.ended).sum();
    Ok(parent.own + parent.ended + alive)
}

/// Memory of a process that is in RAM now, KiB.
pub(crate) fn resident_kib(pid: u32) -> Result<u64> {
    // The roll-up is exact; `status` may lag behind by some pages a thread.
    field_kib(pid, "smaps_rollup", "Rss:")
}

/// Starts a new measurement of the peak that [`peak_resident_kib`] tells.
pub(crate) fn reset_peak(pid: u32) -> Result<()> {
    let path = format!("/proc/{pid}/clear_refs");
    fs::write(&path, "5").context(format!("writing {path}"))
}

/// The most memory that a process has had in RAM, KiB.
pub(crate) fn peak_resident_kib(pid: u32) -> Result<u64> {
    field_kib(pid, "status", "VmHWM:")
}

fn field_kib(pid: u32, file: &str, field: &str) -> Result<u64> {
    let path = format!("/proc/{pid}/{file}");
    let text = fs::read_to_string(&path).context(format!("reading {path}"))?;
    let value =
        text.lines().find_map(|line| line.strip_prefix(field)?.split_whitespace().next()?.parse().ok());
    value.map_or_else(|| failed(format!("{path} has no {field}")), Ok)
}

/// What `/proc/PID/stat` says of time. Source: proc(5).
struct Stat {
    parent: u32,
    /// Seconds of this process.
    own: f64,
    /// Seconds of its children that have ended.
    ended: f64,
}

impl Stat {
    fn of(pid: u32) -> Result<Self> {
        let path = format!("/proc/{pid}/stat");
        let text = fs::read_to_string(&path).context(format!("reading {path}"))?;
        Self::parse(&text).map_or_else(|| failed(format!("{path} has an unknown form")), Ok)
    }

    fn all() -> Result<HashMap<u32, Self>> {
        let entries = fs::read_dir("/proc").context("reading /proc")?;
        let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
        // One that ends between the listing and the reading is simply not there.
        Ok(pids.filter_map(|pid| Some((pid, Self::of(pid).ok()?))).collect())
    }

    fn parse(text: &str) -> Option<Self> {
        // The second field is the program's name in parentheses and may hold anything, so count from its end.
        let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
        let ticks = |at: usize| fields.get(at)?.parse::<f64>().ok();
        let second = rustix::param::clock_ticks_per_second() as f64;
        Some(Self {
            parent: fields.get(1)?.parse().ok()?,
            own: (ticks(11)? + ticks(12)?) / second,
            ended: (ticks(13)? + ticks(14)?) / second,
        })
    }
}

fn wait(child: &mut Child, name: &str) -> Result<ExitStatus> {
    loop {
        if let Some(status) = child.try_wait().context(format!("waiting for {name}"))? {
            return Ok(status);
        }
        if let Err(interrupted) = interrupt::check() {
            signal(child, Signal::TERM);
            child.wait().context(format!("waiting for {name}"))?;
            return Err(interrupted);
        }
        interrupt::pause(POLL);
    }
}

fn signal(child: &Child, signal: Signal) {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    if let Some(pid) = pid
        && let Err(cause) = kill_process(pid, signal)
    {
        eprintln!("signalling process {}: {cause}", child.id());
    }
}

fn reader<R: Read + Send + 'static>(pipe: Option<R>) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        // A pipe that breaks leaves what was read so far; the exit status tells the rest.
        let _ = pipe.map(|mut pipe| pipe.read_to_end(&mut bytes));
        bytes
    })
}

fn name(command: &Command) -> String {
    Path::new(command.get_program()).file_name().unwrap_or_default().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_is_read_past_a_name_with_parentheses_and_blanks() {
        let line = "42 (a) b (c)) S 7 42 42 0 -1 4194304 1 2 3 4 100 50 30 20 20 0 1 0 9 10 11";
        let stat = Stat::parse(line).unwrap();
        let second = rustix::param::clock_ticks_per_second() as f64;
        assert_eq!((stat.parent, stat.own * second, stat.ended * second), (7, 150.0, 50.0));
        assert!(Stat::parse("42 (cut").is_none());
    }

    #[test]
    fn our_own_process_has_memory_and_a_parent() {
        let pid = std::process::id();
        assert!(resident_kib(pid).unwrap() > 0);
        assert!(Stat::of(pid).unwrap().parent > 0);
    }
}
