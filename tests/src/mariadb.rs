//! A private MariaDB: real binaries, a temporary directory, a free port.

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
};

use rustix::process::Signal;

use crate::{
    Address, Ca, MySqlClient, Server, free_port, poll,
    running::{Account, Running, account, certificate, copy, directory, run, template, under},
    until,
};

/// What the template holds beside MariaDB's own: the users, databases and tables of the tests.
///
/// | user | password | plugin | may |
/// |---|---|---|---|
/// | `app` | `app-password` | `mysql_native_password` | everything in the databases, FILE, RELOAD |
/// | `app2` | `app2-password` | `mysql_native_password` | likewise, and end connections of others |
/// | `monitor` | `monitor-password` | `mysql_native_password` | see the state of replication |
/// | `ed25519user` | `ed25519user-password` | `ed25519` | everything in the databases |
/// | `repl` | `repl-password` | `mysql_native_password` | replicate |
/// | `root` | none, from 127.0.0.1 | | everything |
///
/// In bootstrap mode a statement ends with its line, and grants are unknown until they are read. Source: MariaDB
/// knowledge base, "mariadbd Options", `--bootstrap`.
const CONTENTS: &str = "\
FLUSH PRIVILEGES;
INSTALL SONAME 'auth_ed25519';
CREATE USER app@'%' IDENTIFIED VIA mysql_native_password USING PASSWORD('app-password');
CREATE USER app2@'%' IDENTIFIED VIA mysql_native_password USING PASSWORD('app2-password');
CREATE USER monitor@'%' IDENTIFIED VIA mysql_native_password USING PASSWORD('monitor-password');
CREATE USER ed25519user@'%' IDENTIFIED VIA ed25519 USING PASSWORD('ed25519user-password');
CREATE USER repl@'%' IDENTIFIED VIA mysql_native_password USING PASSWORD('repl-password');
GRANT FILE, RELOAD ON *.* TO app@'%', app2@'%';
GRANT CONNECTION ADMIN ON *.* TO app2@'%';
GRANT REPLICA MONITOR ON *.* TO monitor@'%';
GRANT REPLICATION SLAVE ON *.* TO repl@'%';
";

/// What each database of the tests holds.
const PER_DATABASE: &str = "\
CREATE DATABASE DB CHARACTER SET utf8mb4 COLLATE utf8mb4_general_ci;
USE DB;
GRANT ALL ON DB.* TO app@'%', app2@'%', ed25519user@'%';
CREATE TABLE t (id int AUTO_INCREMENT PRIMARY KEY, v text);
INSERT INTO t (v) VALUES ('one'), ('two'), ('three');
CREATE SEQUENCE counter;
";

/// Settings that the template's files are made with and opened with: small, since each test copies them.
const FILES: &[&str] = &[
    "--no-defaults",
    "--innodb-log-file-size=4M",
    "--innodb-data-file-path=ibdata1:4M:autoextend",
    "--innodb-autoextend-increment=1",
];

/// Settings of every server. Without a socket file nothing can go past the TCP port. A killed server loses nothing it
/// has acknowledged, since that is with the kernel.
const SETTINGS: &[&str] = &[
    "--socket=",
    "--bind-address=127.0.0.1",
    "--skip-name-resolve",
    "--character-set-server=utf8mb4",
    "--collation-server=utf8mb4_general_ci",
    "--default-time-zone=+00:00",
    "--local-infile=1",
    "--max-allowed-packet=64M",
    "--performance-schema=0",
    "--innodb-temp-data-file-path=ibtmp1:1M:autoextend",
    "--innodb-flush-log-at-trx-commit=2",
    "--innodb-doublewrite=0",
    "--innodb-buffer-pool-size=16M",
    "--innodb-buffer-pool-dump-at-shutdown=0",
    "--innodb-buffer-pool-load-at-startup=0",
    "--innodb-use-native-aio=0",
    "--key-buffer-size=1M",
    "--aria-pagecache-buffer-size=1M",
    "--log-output=FILE",
];

/// A running MariaDB, stopped when dropped.
#[derive(Debug)]
pub struct MariaDb {
    running: Running,
    port: u16,
    max_connections: u32,
    ca: Option<Ca>,
    arguments: Vec<String>,
}

/// How a [`MariaDb`] will be started.
#[derive(Debug, Clone)]
pub struct MariaDbBuilder {
    max_connections: u32,
    settings: Vec<String>,
    general_log: bool,
    tls: bool,
}

impl Server {
    /// The MariaDB installed.
    #[must_use]
    pub fn mariadb() -> MariaDbBuilder {
        MariaDbBuilder { max_connections: 100, settings: Vec::new(), general_log: true, tls: false }
    }
}

impl MariaDb {
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

    /// The server's `max_connections`. It lets one more in, who may end others.
    #[must_use]
    pub fn max_connections(&self) -> u32 {
        self.max_connections
    }

    /// The authority behind the server's certificate, if it has one.
    #[must_use]
    pub fn ca(&self) -> Option<&Ca> {
        self.ca.as_ref()
    }

    /// Where `app` finds its database without any proxy and without TLS.
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

    /// A direct connection as `root`, for setting up and for looking on.
    pub async fn direct(&self) -> MySqlClient {
        let root = self.address().user("root", "");
        MySqlClient::connect(&root).await.unwrap_or_else(|e| panic!("direct connection: {e:?}"))
    }

    /// Client connections there are, without those of `root`, the monitor and replication.
    pub async fn backends(&self) -> u32 {
        self.direct()
            .await
            .scalar(
                "SELECT count(*) FROM information_schema.processlist \
                 WHERE user NOT IN ('root', 'monitor', 'repl', 'system user', 'event_scheduler')",
            )
            .await
    }

    /// `SHOW GLOBAL STATUS` of one variable.
    pub async fn status(&self, variable: &str) -> u64 {
        let sql = format!(
            "SELECT variable_value FROM information_schema.global_status WHERE variable_name = '{variable}'"
        );
        self.direct().await.scalar(&sql).await
    }

    /// All the server has logged.
    #[must_use]
    pub fn log(&self) -> String {
        self.running.read("log")
    }

    /// Every command of every client so far, one a line: time, connection id, command and text. A column that did not
    /// change is blank. Source: MariaDB knowledge base, "General Query Log".
    #[must_use]
    pub fn general_log(&self) -> String {
        self.running.read("general.log")
    }

    /// Restarts with the same data: every connection is lost.
    pub async fn restart(&mut self) {
        self.stop();
        self.running.start_again(&command(&self.arguments));
        self.wait_ready().await;
    }

    /// Stops at once, as a crash would; [`Self::restart`] brings it back.
    pub fn stop(&mut self) {
        self.running.stop();
    }

    /// A replica of `primary`, which must be [`MariaDbBuilder::replicating`]; waits until it replicates. Both begin with
    /// the same template, so the replica needs no dump of what the primary has written since, only its log.
    pub async fn replica_of(primary: &Self, builder: MariaDbBuilder) -> Self {
        let replica = builder.replicating().setting("read-only", "1").start().await;
        replica.follow(primary).await;
        replica
    }

    /// Replicates from `primary` from now on, from where its own history ends, and waits until it does.
    pub async fn follow(&self, primary: &Self) {
        let direct = self.direct().await;
        // What it has written itself counts too if it was a primary before.
        direct
            .execute(&format!(
                "SET GLOBAL read_only = 1; SET GLOBAL gtid_slave_pos = @@gtid_current_pos; \
                 CHANGE MASTER TO master_host = '127.0.0.1', master_port = {}, master_user = 'repl', \
                 master_password = 'repl-password', master_connect_retry = 1, master_use_gtid = slave_pos; \
                 START SLAVE",
                primary.port
            ))
            .await;
        let running = "SELECT (SELECT count(*) FROM information_schema.processlist WHERE user = 'system user' \
                       AND command IN ('Slave_IO', 'Slave_SQL')) = 2 \
                       AND variable_value = 'ON' FROM information_schema.global_status \
                       WHERE variable_name = 'slave_running'";
        until("the replica replicates", async || direct.scalar::<u8>(running).await == 1).await;
    }

    /// Makes a replica a primary: it has applied all that it has received before it takes writes.
    pub async fn promote(&self) {
        self.direct().await.execute("STOP SLAVE; RESET SLAVE ALL; SET GLOBAL read_only = 0").await;
    }

    /// Waits until this replica has applied all that `primary` has written so far. `@@gtid_binlog_pos` would not do: it
    /// leaves out what the primary has applied while it was a replica.
    pub async fn caught_up_with(&self, primary: &Self) {
        let position: String = primary.direct().await.scalar("SELECT @@gtid_current_pos").await;
        let waited: i32 =
            self.direct().await.scalar(&format!("SELECT master_gtid_wait('{position}', 30)")).await;
        assert_eq!(waited, 0, "the replica is not at {position}:\n{}", self.log());
    }

    async fn wait_ready(&mut self) {
        let root = self.address().user("root", "");
        poll("MariaDB accepts connections", async || {
            if let Some(status) = self.running.ended() {
                panic!("MariaDB ended with {status}:\n{}", self.log());
            }
            MySqlClient::connect(&root).await.ok()
        })
        .await;
    }
}

impl MariaDbBuilder {
    /// `max_connections`.
    #[must_use]
    pub fn max_connections(mut self, n: u32) -> Self {
        self.max_connections = n;
        self
    }

    /// One server option, without its dashes.
    #[must_use]
    pub fn setting(mut self, key: &str, value: &str) -> Self {
        self.settings.push(format!("--{key}={value}"));
        self
    }

    /// Without the log of every command, see [`MariaDb::general_log`]: for loads.
    #[must_use]
    pub fn without_general_log(mut self) -> Self {
        self.general_log = false;
        self
    }

    /// One that replicas may follow, and that may itself become one.
    #[must_use]
    pub fn replicating(self) -> Self {
        self.setting("log-bin", "binlog")
            .setting("log-slave-updates", "1")
            .setting("gtid-strict-mode", "1")
            .setting("sync-binlog", "0")
    }

    /// With a certificate for `localhost`, signed by an authority of its own. Plain connections stay possible.
    #[must_use]
    pub fn tls(mut self) -> Self {
        self.tls = true;
        self
    }

    /// Copies the template, starts, and waits until it accepts connections.
    pub async fn start(self) -> MariaDb {
        let dir = directory("pinion-mariadb-");
        copy(mariadb_template(), &dir.path().join("data"));
        let port = free_port();
        let path = |name: &str| dir.path().join(name).display().to_string();
        let mut arguments: Vec<String> = FILES.iter().chain(SETTINGS).map(|s| (*s).to_owned()).collect();
        arguments.extend([
            format!("--datadir={}", path("data")),
            // Servers delete what they find of others in a shared one.
            format!("--tmpdir={}", dir.path().display()),
            format!("--pid-file={}", path("pid")),
            format!("--port={port}"),
            format!("--server-id={port}"),
            format!("--max-connections={}", self.max_connections),
        ]);
        if self.general_log {
            arguments
                .extend(["--general-log".to_owned(), format!("--general-log-file={}", path("general.log"))]);
        }
        let tls = self.tls.then(|| certificate(dir.path(), mysql()));
        if let Some((_, certificate, key)) = &tls {
            arguments.extend([
                format!("--ssl-cert={}", certificate.display()),
                format!("--ssl-key={}", key.display()),
            ]);
        }
        arguments.extend(self.settings);
        let running = Running::start(dir, mysql(), &command(&arguments), Signal::KILL);
        let ca = tls.map(|(ca, ..)| ca);
        let mut server = MariaDb { running, port, max_connections: self.max_connections, ca, arguments };
        server.wait_ready().await;
        server
    }
}

/// A data directory with the users and databases of the tests, made once and kept for later runs.
fn mariadb_template() -> &'static Path {
    static TEMPLATE: OnceLock<PathBuf> = OnceLock::new();
    TEMPLATE.get_or_init(|| {
        let version = under(mysql(), mariadbd()).arg("--version").output().unwrap().stdout;
        template(mysql(), &(CONTENTS, PER_DATABASE, FILES, version), |data| {
            let mut install = under(mysql(), "mariadb-install-db");
            install.args(FILES).arg(format!("--datadir={}", data.display()));
            run(install.args([
                "--auth-root-authentication-method=normal",
                "--skip-test-db",
                "--skip-name-resolve",
            ]));
            let mut child = under(mysql(), mariadbd())
                .args(FILES)
                .arg(format!("--datadir={}", data.display()))
                .arg("--bootstrap")
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            let per_database = ["appdb", "otherdb"].map(|name| PER_DATABASE.replace("DB", name));
            let sql = [CONTENTS, &per_database.concat()].concat();
            child.stdin.take().unwrap().write_all(sql.as_bytes()).unwrap();
            let output = child.wait_with_output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success() && !said.contains("ERROR"), "template: {said}");
        })
    })
}

fn command(arguments: &[String]) -> Command {
    let mut command = Command::new(mariadbd());
    command.args(arguments);
    command
}

fn mysql() -> Account {
    account("mysql")
}

/// Debian keeps it where an ordinary user's PATH does not look.
fn mariadbd() -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&path).chain(["/usr/sbin", "/usr/local/sbin"].map(PathBuf::from));
    places
        .map(|place| place.join("mariadbd"))
        .find(|file| file.is_file())
        .expect("MariaDB is installed (Debian: apt-get install mariadb-server)")
}
