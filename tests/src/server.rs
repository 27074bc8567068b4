//! A private PostgreSQL: real binaries, a temporary directory, a free port.

use std::{
    fs,
    hash::{DefaultHasher, Hash, Hasher},
    io::Write,
    os::unix::{
        fs::{MetadataExt, PermissionsExt, chown},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::OnceLock,
    time::Instant,
};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio_postgres::NoTls;

use crate::{Address, Ca, Client, SOON, free_port, poll, until};

/// `superuser_reserved_connections` of every [`Server`].
pub(crate) const RESERVED: u32 = 3;

/// What every template holds beside PostgreSQL's own: the users of the tests and their passwords.
///
/// | user | password | stored as |
/// |---|---|---|
/// | `app`, `app2`, `monitor` | name and `-password` | SCRAM |
/// | `md5user` | `md5user-password` | MD5 |
/// | `postgres` | none, trusted | superuser |
const GLOBALS: &str = "\
CREATE ROLE app LOGIN PASSWORD 'app-password';
CREATE ROLE app2 LOGIN PASSWORD 'app2-password';
CREATE ROLE monitor LOGIN PASSWORD 'monitor-password';
SET password_encryption = 'md5';
CREATE ROLE md5user LOGIN PASSWORD 'md5user-password';
GRANT pg_signal_backend TO app2;
CREATE DATABASE appdb;
CREATE DATABASE otherdb;
";

/// What each database of the tests holds; PostgreSQL 15 lets nobody create in `public` by default.
const PER_DATABASE: &str = "\
GRANT CREATE ON SCHEMA public TO PUBLIC;
CREATE SCHEMA other;
GRANT ALL ON SCHEMA other TO PUBLIC;
CREATE TABLE t (id serial PRIMARY KEY, v text);
INSERT INTO t (v) VALUES ('one'), ('two'), ('three');
GRANT ALL ON t TO PUBLIC;
GRANT ALL ON SEQUENCE t_id_seq TO PUBLIC;
CREATE SEQUENCE counter;
GRANT ALL ON SEQUENCE counter TO PUBLIC;
";

/// A running PostgreSQL, stopped when dropped.
#[derive(Debug)]
pub struct Server {
    dir: TempDir,
    port: u16,
    max_connections: u32,
    ca: Option<Ca>,
    process: Child,
}

/// How a [`Server`] will be started.
#[derive(Debug)]
pub struct ServerBuilder {
    max_connections: u32,
    settings: Vec<(String, String)>,
    hba: Vec<String>,
    tls: bool,
}

impl Server {
    /// The newest PostgreSQL installed.
    #[must_use]
    pub fn postgres() -> ServerBuilder {
        ServerBuilder { max_connections: 100 + RESERVED, settings: Vec::new(), hba: Vec::new(), tls: false }
    }

    /// A standby of `primary`, which must be [`ServerBuilder::replicating`]; waits until it answers and streams.
    pub async fn standby_of(primary: &Self, max_connections: u32) -> Self {
        let dir = tempfile::Builder::new().prefix("pinion-pg-").tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        give_to_postgres(dir.path());
        let data = dir.path().join("data");
        let port = free_port();
        // By name, so that the primary can say of each one how far it is.
        let source =
            format!("host=127.0.0.1 port={} user=postgres application_name=standby-{port}", primary.port);
        let mut backup = as_postgres("pg_basebackup");
        backup.args(["--dbname", &source, "--wal-method=stream", "--checkpoint=fast", "--no-sync"]);
        run(backup.arg("--write-recovery-conf").arg("--pgdata").arg(&data));
        let conf = format!(
            "unix_socket_directories = '{}'\nmax_connections = {max_connections}\nhot_standby = on\n",
            dir.path().display()
        );
        let file = data.join("postgresql.conf");
        fs::OpenOptions::new().append(true).open(file).unwrap().write_all(conf.as_bytes()).unwrap();
        let process = spawn(dir.path(), port);
        let mut server = Self { dir, port, max_connections, ca: None, process };
        server.wait_ready().await;
        let direct = primary.direct().await;
        let streams = format!(
            "SELECT count(*) FROM pg_stat_replication WHERE application_name = 'standby-{port}' AND state = 'streaming'"
        );
        until("the standby streams", async || direct.scalar::<u32>(&streams).await == 1).await;
        server
    }

    /// Makes a standby a primary, and waits until it is one.
    pub async fn promote(&self) {
        let promoted: String = self.direct().await.scalar("SELECT pg_promote(true, 30)").await;
        assert_eq!(promoted, "t", "{}", self.log());
    }

    /// Waits until this standby has replayed all that `primary` has written so far.
    pub async fn caught_up_with(&self, primary: &Self) {
        let lsn: String = primary.direct().await.scalar("SELECT pg_current_wal_insert_lsn()").await;
        let direct = self.direct().await;
        let replayed = format!("SELECT pg_last_wal_replay_lsn() >= '{lsn}'");
        until("the standby has caught up", async || direct.scalar::<String>(&replayed).await == "t").await;
    }

    /// `host:port`, as a proxy's configuration and its metrics name this server.
    #[must_use]
    pub fn name(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// TCP port on 127.0.0.1.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The server's `max_connections`.
    #[must_use]
    pub fn max_connections(&self) -> u32 {
        self.max_connections
    }

    /// The authority behind the server's certificate, if it has one.
    #[must_use]
    pub fn ca(&self) -> Option<&Ca> {
        self.ca.as_ref()
    }

    /// Where `app` finds its database without any proxy.
    #[must_use]
    pub fn address(&self) -> Address {
        Address {
            port: self.port,
            database: "appdb".to_owned(),
            user: "app".to_owned(),
            password: "app-password".to_owned(),
            ca: None,
        }
    }

    /// A direct connection as superuser, named `direct`, for setting up and for looking on.
    pub async fn direct(&self) -> Client {
        self.direct_to("appdb").await
    }

    /// [`Self::direct`] to another database.
    pub async fn direct_to(&self, database: &str) -> Client {
        let mut config = tokio_postgres::Config::new();
        config.host("127.0.0.1").port(self.port).user("postgres").dbname(database).application_name("direct");
        Client::open(&config, NoTls).await.unwrap_or_else(|e| panic!("direct connection: {e:?}"))
    }

    /// Client backends there are, without the superuser's and the monitor's.
    pub async fn backends(&self) -> u32 {
        self.direct()
            .await
            .scalar(
                "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' \
                 AND usename NOT IN ('postgres', 'monitor')",
            )
            .await
    }

    /// All the server has logged.
    #[must_use]
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.dir.path().join("log")).unwrap()).into_owned()
    }

    /// Restarts with the same data: every connection is lost.
    pub async fn restart(&mut self) {
        self.stop();
        self.process = spawn(self.dir.path(), self.port);
        self.wait_ready().await;
    }

    /// Stops at once, as a crash would; [`Self::restart`] brings it back.
    #[expect(clippy::disallowed_methods, reason = "drop cannot await, and the server ends in milliseconds")]
    pub fn stop(&mut self) {
        if let (Ok(None), Some(pid)) =
            (self.process.try_wait(), Pid::from_raw(self.process.id().cast_signed()))
        {
            kill_process(pid, Signal::QUIT).ok();
            let deadline = Instant::now() + SOON;
            while Instant::now() < deadline {
                if matches!(self.process.try_wait(), Ok(Some(_))) {
                    return;
                }
                std::thread::sleep(std::time::Duration::from_millis(2));
            }
            self.process.kill().ok();
            self.process.wait().ok();
        }
    }

    async fn wait_ready(&mut self) {
        let mut config = tokio_postgres::Config::new();
        config.host("127.0.0.1").port(self.port).user("postgres").dbname("postgres");
        poll("PostgreSQL accepts connections", async || {
            if let Some(status) = self.process.try_wait().unwrap() {
                panic!("PostgreSQL ended with {status}:\n{}", self.log());
            }
            Client::open(&config, NoTls).await.ok()
        })
        .await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
        if std::thread::panicking() {
            let log = self.log();
            eprintln!("--- end of PostgreSQL's log\n{}---", &log[log.len().saturating_sub(2000)..]);
        }
    }
}

impl ServerBuilder {
    /// `max_connections`, 3 of which are the superuser's.
    #[must_use]
    pub fn max_connections(mut self, n: u32) -> Self {
        self.max_connections = n;
        self
    }

    /// `max_connections` as it stands.
    #[must_use]
    pub fn size(&self) -> u32 {
        self.max_connections
    }

    /// One line of `postgresql.conf`.
    #[must_use]
    pub fn setting(mut self, key: &str, value: &str) -> Self {
        self.settings.push((key.to_owned(), value.to_owned()));
        self
    }

    /// A line of `pg_hba.conf`, before all others.
    #[must_use]
    pub fn hba(mut self, line: &str) -> Self {
        self.hba.push(line.to_owned());
        self
    }

    /// One that standbys may follow.
    #[must_use]
    pub fn replicating(self) -> Self {
        self.setting("wal_level", "replica")
            .setting("max_wal_senders", "10")
            .setting("wal_keep_size", "'64MB'")
            .hba("host replication postgres 127.0.0.1/32 trust")
    }

    /// With a certificate for `localhost`, signed by an authority of its own.
    #[must_use]
    pub fn tls(mut self) -> Self {
        self.tls = true;
        self
    }

    /// Copies the template, starts, and waits until it accepts connections.
    pub async fn start(self) -> Server {
        let dir = tempfile::Builder::new().prefix("pinion-pg-").tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let data = dir.path().join("data");
        run(Command::new("cp").args(["-a", "--reflink=auto"]).arg(Template::get().data()).arg(&data));
        let port = free_port();

        let mut conf = format!(
            "listen_addresses = '127.0.0.1'\nunix_socket_directories = '{}'\nmax_connections = {}\n\
             superuser_reserved_connections = {RESERVED}\n",
            dir.path().display(),
            self.max_connections
        );
        for line in [
            "fsync = off",
            "synchronous_commit = off",
            "full_page_writes = off",
            "autovacuum = off",
            "shared_buffers = '4MB'",
            "wal_level = minimal",
            "max_wal_senders = 0",
            "log_line_prefix = '%m %p %u %a '",
            "timezone = 'UTC'",
            "log_timezone = 'UTC'",
        ] {
            conf.push_str(line);
            conf.push('\n');
        }
        let ca = self.tls.then(Ca::new);
        if let Some(ca) = &ca {
            let (certificate, key) = ca.issue_into(dir.path());
            give_to_postgres(&key);
            fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
            conf.push_str(&format!(
                "ssl = on\nssl_cert_file = '{}'\nssl_key_file = '{}'\n",
                certificate.display(),
                key.display()
            ));
        }
        for (key, value) in &self.settings {
            conf.push_str(&format!("{key} = {value}\n"));
        }
        fs::OpenOptions::new()
            .append(true)
            .open(data.join("postgresql.conf"))
            .unwrap()
            .write_all(conf.as_bytes())
            .unwrap();
        let mut hba = self.hba.join("\n");
        hba.push_str("\nlocal all postgres trust\nhost all postgres 127.0.0.1/32 trust\n");
        // Without TLS the proxy answers no MD5 challenge, so there the server asks for nothing.
        hba.push_str("hostssl all md5user 127.0.0.1/32 md5\nhostnossl all md5user 127.0.0.1/32 trust\n");
        hba.push_str("host all all 127.0.0.1/32 scram-sha-256\n");
        fs::write(data.join("pg_hba.conf"), hba).unwrap();

        let process = spawn(dir.path(), port);
        let mut server = Server { dir, port, max_connections: self.max_connections, ca, process };
        server.wait_ready().await;
        server
    }
}

/// A data directory with the roles and databases of the tests, made once and kept beside other temporary
/// files for later runs. Its name holds the version and what is in it.
#[derive(Debug)]
pub struct Template(PathBuf);

impl Template {
    /// Makes it at the first call.
    pub fn get() -> &'static Self {
        static TEMPLATE: OnceLock<Template> = OnceLock::new();
        TEMPLATE.get_or_init(Self::find_or_make)
    }

    /// The data directory.
    #[must_use]
    pub fn data(&self) -> &Path {
        &self.0
    }

    fn find_or_make() -> Self {
        let owner = postgres_user().map_or_else(|| rustix::process::getuid().as_raw(), |(uid, _)| uid);
        let mut hasher = DefaultHasher::new();
        (GLOBALS, PER_DATABASE, bin_dir()).hash(&mut hasher);
        let home = std::env::temp_dir().join(format!("pinion-template-{owner}-{:016x}", hasher.finish()));
        // Another's directory of that name is not trusted.
        if fs::metadata(home.join("data")).is_ok_and(|found| found.uid() == owner) {
            return Self(home.join("data"));
        }
        let fresh = tempfile::Builder::new().prefix("pinion-template-").tempdir().unwrap();
        fs::set_permissions(fresh.path(), fs::Permissions::from_mode(0o755)).unwrap();
        give_to_postgres(fresh.path());
        let data = fresh.path().join("data");
        run(as_postgres("initdb").arg("-D").arg(&data).args([
            "--username=postgres",
            "--auth=trust",
            "--encoding=UTF8",
            "--locale=C",
            "--wal-segsize=1",
            "--no-sync",
        ]));
        single_user(&data, "postgres", GLOBALS);
        single_user(&data, "appdb", PER_DATABASE);
        single_user(&data, "otherdb", PER_DATABASE);
        // If a neighbour was faster its template is as good.
        if fs::rename(fresh.path(), &home).is_ok() {
            let _moved_away = fresh.keep();
        }
        Self(home.join("data"))
    }
}

fn single_user(data: &Path, database: &str, sql: &str) {
    let mut child = as_postgres("postgres")
        .args(["--single", "-F", "-D"])
        .arg(data)
        .arg(database)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(sql.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && !errors.contains("ERROR"), "template: {errors}");
}

fn spawn(dir: &Path, port: u16) -> Child {
    let log = fs::OpenOptions::new().create(true).append(true).open(dir.join("log")).unwrap();
    give_to_postgres(dir);
    as_postgres("postgres")
        .arg("-D")
        .arg(dir.join("data"))
        .args(["-p", &port.to_string()])
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap()
}

/// A PostgreSQL program, as user `postgres` when we are root: the server refuses to run as root.
fn as_postgres(program: &str) -> Command {
    let mut command = Command::new(bin_dir().join(program));
    command.current_dir("/").env("LC_ALL", "C").env_remove("PGDATA");
    if let Some((uid, gid)) = postgres_user() {
        command.uid(uid).gid(gid);
    }
    command
}

fn give_to_postgres(path: &Path) {
    if let Some((uid, gid)) = postgres_user() {
        chown(path, Some(uid), Some(gid)).unwrap();
    }
}

/// uid and gid of `postgres`, needed only by root.
fn postgres_user() -> Option<(u32, u32)> {
    if !rustix::process::getuid().is_root() {
        return None;
    }
    let passwd = fs::read_to_string("/etc/passwd").unwrap();
    let line =
        passwd.lines().find(|line| line.starts_with("postgres:")).expect("a user `postgres` to run as");
    let mut fields = line.split(':').skip(2).map(|id| id.parse().unwrap());
    Some((fields.next().unwrap(), fields.next().unwrap()))
}

/// The newest version under Debian's directory, else wherever `pg_config` says.
pub(crate) fn bin_dir() -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    versions
        .filter_map(|entry| {
            Some((entry.file_name().to_str()?.parse::<u32>().ok()?, entry.path().join("bin")))
        })
        .filter(|(_, bin)| bin.join("initdb").exists())
        .max()
        .map(|(_, bin)| bin)
        .or_else(|| {
            let output = Command::new("pg_config").arg("--bindir").output().ok()?;
            Some(PathBuf::from(String::from_utf8(output.stdout).ok()?.trim()))
        })
        .expect("PostgreSQL is installed (Debian: apt-get install postgresql)")
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
