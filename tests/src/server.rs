//! A private PostgreSQL: real binaries, a temporary directory, a free port.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
};

use rustix::process::Signal;
use tokio_postgres::NoTls;

use crate::{
    Address, Ca, Client, free_port, poll,
    running::{Account, Running, account, certificate, copy, directory, give, run, template, under},
    until,
};

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
    running: Running,
    port: u16,
    max_connections: u32,
    ca: Option<Ca>,
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
        let dir = directory("pinion-pg-");
        give(dir.path(), postgres());
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
        let command = command(&data, port);
        let running = Running::start(dir, postgres(), &command, Signal::QUIT);
        let mut server = Self { running, port, max_connections, ca: None };
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
        self.running.read("log")
    }

    /// Restarts with the same data: every connection is lost.
    pub async fn restart(&mut self) {
        self.stop();
        self.running.start_again(&command(&self.running.dir().join("data"), self.port));
        self.wait_ready().await;
    }

    /// Stops at once, as a crash would; [`Self::restart`] brings it back.
    pub fn stop(&mut self) {
        self.running.stop();
    }

    async fn wait_ready(&mut self) {
        let mut config = tokio_postgres::Config::new();
        config.host("127.0.0.1").port(self.port).user("postgres").dbname("postgres");
        poll("PostgreSQL accepts connections", async || {
            if let Some(status) = self.running.ended() {
                panic!("PostgreSQL ended with {status}:\n{}", self.log());
            }
            Client::open(&config, NoTls).await.ok()
        })
        .await;
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
        let dir = directory("pinion-pg-");
        let data = dir.path().join("data");
        copy(Template::get().data(), &data);
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
        let tls = self.tls.then(|| certificate(dir.path(), postgres()));
        if let Some((_, certificate, key)) = &tls {
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

        let running = Running::start(dir, postgres(), &command(&data, port), Signal::QUIT);
        let ca = tls.map(|(ca, ..)| ca);
        let mut server = Server { running, port, max_connections: self.max_connections, ca };
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
        Self(template(postgres(), &(GLOBALS, PER_DATABASE, bin_dir()), |data| {
            run(as_postgres("initdb").arg("-D").arg(data).args([
                "--username=postgres",
                "--auth=trust",
                "--encoding=UTF8",
                "--locale=C",
                "--wal-segsize=1",
                "--no-sync",
            ]));
            single_user(data, "postgres", GLOBALS);
            single_user(data, "appdb", PER_DATABASE);
            single_user(data, "otherdb", PER_DATABASE);
        }))
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

fn command(data: &Path, port: u16) -> Command {
    let mut command = Command::new(bin_dir().join("postgres"));
    command.arg("-D").arg(data).args(["-p", &port.to_string()]);
    command
}

/// A PostgreSQL program, as user `postgres` when we are root.
fn as_postgres(program: &str) -> Command {
    let mut command = under(postgres(), bin_dir().join(program));
    command.env_remove("PGDATA");
    command
}

fn postgres() -> Account {
    account("postgres")
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
