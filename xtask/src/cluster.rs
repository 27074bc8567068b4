//! A private PostgreSQL server in a directory of its own.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::process::Signal;

use crate::{
    error::{Result, failed},
    interrupt,
    pgwire::Client,
    process::{self, Service},
    temporary,
};

/// A running server. Its superuser `postgres` may log in without a password, but only through the Unix socket in a
/// directory that only its owner may enter; over TCP everyone needs SCRAM.
pub(crate) struct Cluster {
    port: u16,
    sockets: PathBuf,
    service: Service,
}

impl Cluster {
    /// Makes and starts a server in `directory/postgresql` with these lines of `postgresql.conf` beside the basic ones.
    /// As root it runs as the user `postgres`, since PostgreSQL refuses to run as root.
    pub(crate) fn start(directory: &Path, settings: &str) -> Result<Self> {
        let Some(programs) = programs() else { return failed("PostgreSQL is not installed") };
        let owner = owner()?;
        let base = directory.join("postgresql");
        let (data, sockets) = (base.join("data"), base.join("sockets"));
        temporary::private_directory(&base, owner)?;
        temporary::private_directory(&sockets, owner)?;
        let port = process::free_port()?;

        let mut initdb = process::under(&programs.join("initdb"), owner);
        initdb.args([
            "--username=postgres",
            "--auth=trust",
            "--encoding=UTF8",
            "--locale=C",
            "--no-sync",
            "--pgdata",
        ]);
        process::run(initdb.arg(&data).current_dir(&base))?;
        let rules = "local all all trust\nhost all all 127.0.0.1/32 scram-sha-256\n";
        temporary::private_file(&data.join("pg_hba.conf"), rules, owner)?;
        let path = data.join("postgresql.auto.conf");
        let basic = format!(
            "port = {port}\n\
             listen_addresses = '127.0.0.1'\n\
             unix_socket_directories = '{}'\n\
             password_encryption = 'scram-sha-256'\n\
             fsync = off\n\
             {settings}\n",
            sockets.display()
        );
        temporary::private_file(&path, &basic, owner)?;

        let mut server = process::under(&programs.join("postgres"), owner);
        server.arg("-D").arg(&data).current_dir(&base);
        // SIGINT is PostgreSQL's fast shutdown: clients are cut, nothing is lost.
        let log = directory.join("postgresql.log");
        let mut cluster =
            Self { port, sockets, service: Service::start("postgres", &mut server, log, Signal::INT)? };
        let ready = interrupt::poll(Duration::from_secs(30), Duration::from_millis(50), || {
            cluster.service.check()?;
            Ok(cluster.superuser("postgres").ok())
        })?;
        match ready {
            Some(_) => Ok(cluster),
            None => failed(format!("PostgreSQL did not start within 30 s:\n{}", cluster.service.log_end())),
        }
    }

    /// The TCP port on 127.0.0.1.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// The first server process.
    pub(crate) fn pid(&self) -> u32 {
        self.service.pid()
    }

    /// Logs in as the superuser, past every proxy.
    pub(crate) fn superuser(&self, database: &str) -> Result<Client> {
        Client::unix(&self.sockets.join(format!(".s.PGSQL.{}", self.port)), "postgres", database)
    }

    /// Makes a user and a database of the same name that it owns.
    pub(crate) fn create_user(&self, name: &str, password: &str) -> Result<()> {
        let mut superuser = self.superuser("postgres")?;
        superuser.query(&format!("CREATE ROLE {name} LOGIN PASSWORD '{password}'"))?;
        superuser.query(&format!("CREATE DATABASE {name} OWNER {name}"))?;
        Ok(())
    }
}

/// The directory of PostgreSQL's programs: the newest of Debian's, else whatever the PATH has.
pub(crate) fn programs() -> Option<PathBuf> {
    const WANTED: [&str; 4] = ["initdb", "postgres", "psql", "pgbench"];
    let complete = |directory: &PathBuf| WANTED.iter().all(|program| directory.join(program).is_file());
    let entries = fs::read_dir("/usr/lib/postgresql").into_iter().flatten();
    let mut versions: Vec<(u32, PathBuf)> = entries
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            Some((path.file_name()?.to_str()?.parse().ok()?, path.join("bin")))
        })
        .filter(|(_, directory)| complete(directory))
        .collect();
    versions.sort();
    let newest = versions.pop().map(|(_, directory)| directory);
    newest.or_else(|| process::on_path("postgres")?.parent().map(Path::to_path_buf).filter(complete))
}

/// User and group that servers which refuse root run as; `None` when we are not root.
pub(crate) fn owner() -> Result<Option<(u32, u32)>> {
    process::account("postgres")
}
