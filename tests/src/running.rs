//! What the private servers of every engine have in common: a temporary directory, a process under the account of its
//! package that ends with the test, and a template of the data.

use std::{
    fs,
    hash::{DefaultHasher, Hash, Hasher},
    io,
    os::unix::{
        fs::{MetadataExt, PermissionsExt, chown},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{LazyLock, mpsc},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::{Ca, SOON};

/// uid and gid that a server and its files belong to; `None` is ourselves.
pub(crate) type Account = Option<(u32, u32)>;

/// The account `name`, needed only by root: servers refuse to run as root.
pub(crate) fn account(name: &str) -> Account {
    if !rustix::process::getuid().is_root() {
        return None;
    }
    let passwd = fs::read_to_string("/etc/passwd").unwrap();
    let line = passwd.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let line = line.unwrap_or_else(|| panic!("no user `{name}` to run as"));
    let mut fields = line.split(':').skip(1).map(|id| id.parse().unwrap());
    Some((fields.next().unwrap(), fields.next().unwrap()))
}

/// A temporary directory that others may enter.
pub(crate) fn directory(prefix: &str) -> TempDir {
    let dir = tempfile::Builder::new().prefix(prefix).tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    dir
}

/// Makes `account` the owner.
pub(crate) fn give(path: &Path, account: Account) {
    if let Some((uid, gid)) = account {
        chown(path, Some(uid), Some(gid)).unwrap();
    }
}

/// A program under an account.
pub(crate) fn under(account: Account, program: impl AsRef<Path>) -> Command {
    let mut command = Command::new(program.as_ref());
    command.current_dir("/").env("LC_ALL", "C");
    if let Some((uid, gid)) = account {
        command.uid(uid).gid(gid);
    }
    command
}

/// Certificate and key of a new authority, the key readable by `account` alone.
pub(crate) fn certificate(dir: &Path, account: Account) -> (Ca, PathBuf, PathBuf) {
    let ca = Ca::new();
    let (certificate, key) = ca.issue_into(dir);
    give(&key, account);
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    (ca, certificate, key)
}

/// Runs to the end; panics with what it said unless it succeeded.
pub(crate) fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A data directory made by `make` in the directory it is given, and kept beside other temporary files for later runs.
/// Its name holds a hash of `contents`: all that decides what is in it.
pub(crate) fn template(account: Account, contents: &impl Hash, make: impl FnOnce(&Path)) -> PathBuf {
    let owner = account.map_or_else(|| rustix::process::getuid().as_raw(), |(uid, _)| uid);
    let mut hasher = DefaultHasher::new();
    contents.hash(&mut hasher);
    let home = std::env::temp_dir().join(format!("pinion-template-{owner}-{:016x}", hasher.finish()));
    // Another's directory of that name is not trusted.
    if fs::metadata(home.join("data")).is_ok_and(|found| found.uid() == owner) {
        return home.join("data");
    }
    let fresh = directory("pinion-template-");
    give(fresh.path(), account);
    make(&fresh.path().join("data"));
    // If a neighbour was faster its template is as good.
    if fs::rename(fresh.path(), &home).is_ok() {
        let _moved_away = fresh.keep();
    }
    home.join("data")
}

/// Copies a template to `data`.
pub(crate) fn copy(template: &Path, data: &Path) {
    run(Command::new("cp").args(["-a", "--reflink=auto"]).arg(template).arg(data));
}

/// A server's directory and its process.
#[derive(Debug)]
pub(crate) struct Running {
    dir: TempDir,
    account: Account,
    quit: Signal,
    process: Child,
}

impl Running {
    /// Starts `server` in `dir`, where its output goes to `log`. `quit` is the signal that ends it at once, and is also
    /// what the kernel sends should this process be killed.
    pub(crate) fn start(dir: TempDir, account: Account, server: &Command, quit: Signal) -> Self {
        let process = spawn(dir.path(), account, server, quit);
        Self { dir, account, quit, process }
    }

    /// Starts `server` again after a [`Self::stop`].
    pub(crate) fn start_again(&mut self, server: &Command) {
        self.process = spawn(self.dir.path(), self.account, server, self.quit);
    }

    /// The server's directory.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// How the process ended, if it has.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.process.try_wait().unwrap()
    }

    /// All that `file` of the server's directory holds; nothing if it is not there.
    pub(crate) fn read(&self, file: &str) -> String {
        String::from_utf8_lossy(&fs::read(self.dir.path().join(file)).unwrap_or_default()).into_owned()
    }

    /// Ends the process at once, as a crash would.
    #[expect(clippy::disallowed_methods, reason = "drop cannot await, and the server ends in milliseconds")]
    pub(crate) fn stop(&mut self) {
        if let (Ok(None), Some(pid)) =
            (self.process.try_wait(), Pid::from_raw(self.process.id().cast_signed()))
        {
            kill_process(pid, self.quit).ok();
            let deadline = Instant::now() + SOON;
            while Instant::now() < deadline {
                if matches!(self.process.try_wait(), Ok(Some(_))) {
                    return;
                }
                std::thread::sleep(Duration::from_millis(2));
            }
            self.process.kill().ok();
            self.process.wait().ok();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop();
        if std::thread::panicking() {
            let log = self.read("log");
            let mut start = log.len().saturating_sub(2000);
            while !log.is_char_boundary(start) {
                start += 1;
            }
            eprintln!("--- end of the server's log\n{}---", &log[start..]);
        }
    }
}

/// Starts `server` from a thread that lives as long as this process: `setpriv` has the kernel end the server with the
/// thread it was started from, which must not be a test's.
fn spawn(dir: &Path, account: Account, server: &Command, quit: Signal) -> Child {
    type Order = (Command, mpsc::SyncSender<io::Result<Child>>);
    static SPAWNER: LazyLock<mpsc::SyncSender<Order>> = LazyLock::new(|| {
        let (sender, orders) = mpsc::sync_channel::<Order>(0);
        std::thread::spawn(move || {
            for (mut command, reply) in orders {
                reply.send(command.spawn()).ok();
            }
        });
        sender
    });
    give(dir, account);
    let log = fs::OpenOptions::new().create(true).append(true).open(dir.join("log")).unwrap();
    let mut command = under(account, "setpriv");
    command.args(["--pdeathsig", if quit == Signal::QUIT { "QUIT" } else { "KILL" }, "--"]);
    command.arg(server.get_program()).args(server.get_args());
    command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
    let (reply, answer) = mpsc::sync_channel(1);
    SPAWNER.send((command, reply)).expect("the spawning thread never ends");
    answer.recv().expect("the spawning thread never ends").unwrap()
}
