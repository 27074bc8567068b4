//! A private MariaDB server in a directory of its own.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::process::Signal;

use crate::{
    error::{Context, Result, failed},
    interrupt,
    mysqlwire::Client,
    process::{self, Service},
    temporary,
};

/// A running server. Its `root` may log in without a password, but only through the Unix socket in a directory that only
/// its owner may enter; over TCP everyone needs a password.
pub(crate) struct MariaDb {
    port: u16,
    socket: PathBuf,
    service: Service,
}

impl MariaDb {
    /// Makes and starts a server in `directory/mariadb` with these options beside the basic ones. As root it runs as the
    /// user `mysql`.
    pub(crate) fn start(directory: &Path, options: &[String]) -> Result<Self> {
        let (Some(server), Some(install)) =
            (process::on_path("mariadbd"), process::on_path("mariadb-install-db"))
        else {
            return failed("MariaDB is not installed");
        };
        let owner = process::account("mysql")?;
        let base = directory.join("mariadb");
        let (data, socket) = (base.join("data"), base.join("socket"));
        temporary::private_directory(&base, owner)?;
        let port = process::free_port()?;
        let data_option = format!("--datadir={}", data.display());

        let mut install = process::under(&install, owner);
        install.args([
            "--no-defaults",
            &data_option,
            "--auth-root-authentication-method=normal",
            "--skip-test-db",
        ]);
        process::run(install.current_dir(&base))?;
        let mut server = process::under(&server, owner);
        server
            .args(["--no-defaults", &data_option, "--bind-address=127.0.0.1", "--skip-name-resolve"])
            .args(["--performance-schema=0", "--skip-log-bin", "--innodb-flush-log-at-trx-commit=0"])
            .args([format!("--port={port}"), format!("--socket={}", socket.display())])
            .arg(format!("--pid-file={}", base.join("pid").display()))
            .arg(format!("--tmpdir={}", base.display()))
            .args(options)
            .current_dir(&base);
        // SIGTERM is MariaDB's orderly shutdown.
        let log = directory.join("mariadb.log");
        let service = Service::start("mariadbd", &mut server, log, Signal::TERM)?;
        let mut started = Self { port, socket, service };
        let ready = interrupt::poll(Duration::from_secs(30), Duration::from_millis(50), || {
            started.service.check()?;
            Ok(started.root().ok())
        })?;
        let Some(mut root) = ready else {
            return failed(format!("MariaDB did not start within 30 s:\n{}", started.service.log_end()));
        };
        // The accounts that would let anybody of this machine in over TCP, and those without a name.
        root.query("DELETE FROM mysql.global_priv WHERE user = '' OR user = 'root' AND host <> 'localhost'")?;
        root.query("FLUSH PRIVILEGES")?;
        Ok(started)
    }

    /// The TCP port on 127.0.0.1.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// The server's process.
    pub(crate) fn pid(&self) -> u32 {
        self.service.pid()
    }

    /// Logs in as `root`, past every proxy.
    pub(crate) fn root(&self) -> Result<Client> {
        Client::unix(&self.socket, "root")
    }

    /// Makes a user and a database of the same name that it may do anything in. `require` is empty or `REQUIRE SSL`.
    pub(crate) fn create_user(&self, name: &str, password: &str, require: &str) -> Result<()> {
        let mut root = self.root()?;
        root.query(&format!("CREATE DATABASE {name}"))?;
        root.query(&format!(
            "CREATE USER {name}@'%' IDENTIFIED VIA mysql_native_password USING PASSWORD('{password}') {require}"
        ))?;
        root.query(&format!("GRANT ALL ON {name}.* TO {name}@'%'")).context("granting")?;
        Ok(())
    }
}

/// The first line that `mariadbd --version` prints.
pub(crate) fn version() -> Result<String> {
    let Some(server) = process::on_path("mariadbd") else { return failed("MariaDB is not installed") };
    let text = process::run(std::process::Command::new(server).args(["--no-defaults", "--version"]))?;
    // The program's own path is nobody's business.
    Ok(text.lines().next().unwrap_or_default().rsplit("/").next().unwrap_or_default().trim().to_owned())
}
