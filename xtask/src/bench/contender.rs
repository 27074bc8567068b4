//! The three that are compared, each started the same way.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use rustix::process::Signal;

use super::{PERCENT, POOL, USER};
use crate::{
    apt::{ForeignRelease, Origin},
    cluster::{self, Cluster},
    error::{Context, Result, failed},
    interrupt,
    pgbench::Server,
    pgwire::Client,
    pinion::{Pinion, Settings},
    process::{self, Service},
    temporary,
};

/// Client connections at once that each proxy is told to allow: more than any case opens.
const MAX_CLIENTS: u32 = 18_000;

/// Who is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Straight to PostgreSQL.
    Direct,
    /// Through PgBouncer, pooling by transaction.
    Pgbouncer,
    /// Through Pinion.
    Pinion,
}

impl Kind {
    pub(super) const ALL: [Self; 3] = [Self::Direct, Self::Pgbouncer, Self::Pinion];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Pgbouncer => "PgBouncer",
            Self::Pinion => "Pinion",
        }
    }
}

/// What all measurements share.
pub(super) struct Bench<'a> {
    pub(super) cluster: &'a Cluster,
    pub(super) directory: &'a Path,
    /// Pinion's binary.
    pub(super) pinion: Option<PathBuf>,
    password: &'a str,
    pgbouncer: Option<Pgbouncer>,
}

/// Where PgBouncer comes from.
enum Pgbouncer {
    Installed(PathBuf),
    Unpacked(ForeignRelease),
}

/// One of the three, running.
pub(super) struct Contender<'a> {
    port: u16,
    password: &'a str,
    running: Running,
    /// The file it was started with.
    pub(super) config: Option<PathBuf>,
}

enum Running {
    Direct,
    Pgbouncer(Service),
    Pinion(Pinion),
}

impl<'a> Bench<'a> {
    pub(super) fn new(cluster: &'a Cluster, directory: &'a Path, password: &'a str) -> Self {
        Self { cluster, directory, password, pinion: None, pgbouncer: None }
    }

    /// Takes the given PgBouncer, else fetches Debian trixie's: older releases have no prepared statements in
    /// transaction mode.
    pub(super) fn find_pgbouncer(&mut self, given: Option<PathBuf>, work: &Path) -> Result<()> {
        self.pgbouncer = Some(match given {
            Some(path) => Pgbouncer::Installed(path),
            None => {
                let trixie = Origin::Debian("trixie");
                Pgbouncer::Unpacked(ForeignRelease::unpack(trixie, &["pgbouncer"], &work.join("trixie"))?)
            }
        });
        Ok(())
    }

    /// The first line that `pgbouncer --version` prints.
    pub(super) fn pgbouncer_version(&self) -> Result<String> {
        let version = process::run(self.pgbouncer_command()?.arg("--version"))?;
        Ok(version.lines().next().unwrap_or_default().to_owned())
    }

    /// PostgreSQL itself.
    pub(super) fn direct(&self) -> Server<'a> {
        Server { port: self.cluster.port(), user: USER, password: self.password, sslmode: "disable" }
    }

    /// Starts a fresh process and waits until a client has logged in and had an answer through it.
    pub(super) fn start(&self, kind: Kind) -> Result<Contender<'a>> {
        self.start_with(kind, "")
    }

    /// The same with `[[proxy.plugin]]` sections, which only Pinion heeds.
    pub(super) fn start_with(&self, kind: Kind, plugins: &str) -> Result<Contender<'a>> {
        let mut contender = match kind {
            Kind::Direct => Contender {
                port: self.cluster.port(),
                password: self.password,
                running: Running::Direct,
                config: None,
            },
            Kind::Pgbouncer => self.start_pgbouncer()?,
            Kind::Pinion => self.start_pinion(plugins)?,
        };
        if kind == Kind::Direct {
            return Ok(contender);
        }
        let ready = interrupt::poll(Duration::from_secs(20), Duration::from_millis(50), || {
            contender.check()?;
            Ok(contender.client().and_then(|mut client| client.query("SELECT 1")).ok())
        })?;
        match ready {
            Some(_) => Ok(contender),
            None => failed(format!("no client could log in to {} within 20 s", kind.name())),
        }
    }

    fn start_pgbouncer(&self) -> Result<Contender<'a>> {
        let owner = cluster::owner()?;
        let directory = self.directory.join(format!("pgbouncer-{}", temporary::random_hex(6)?));
        temporary::private_directory(&directory, owner)?;
        let (port, server_port) = (process::free_port()?, self.cluster.port());
        let users = directory.join("userlist.txt");
        temporary::private_file(&users, &format!("\"{USER}\" \"{}\"\n", self.password), owner)?;
        let text = format!(
            "[databases]\n\
             {USER} = host=127.0.0.1 port={server_port} dbname={USER}\n\
             \n\
             [pgbouncer]\n\
             listen_addr = 127.0.0.1\n\
             listen_port = {port}\n\
             unix_socket_dir =\n\
             auth_type = md5\n\
             auth_file = {}\n\
             pool_mode = transaction\n\
             default_pool_size = {POOL}\n\
             max_client_conn = {MAX_CLIENTS}\n\
             max_prepared_statements = 200\n\
             client_tls_sslmode = disable\n\
             server_tls_sslmode = disable\n",
            users.display()
        );
        let config = directory.join("pgbouncer.ini");
        temporary::private_file(&config, &text, owner)?;
        let mut command = self.pgbouncer_command()?;
        if owner.is_some() {
            // It refuses to run as root, and drops to this user after it has been loaded.
            command.args(["-u", "postgres"]);
        }
        command.arg(&config).current_dir(&directory);
        // SIGQUIT is PgBouncer's immediate end.
        let log = self.directory.join("pgbouncer.log");
        let service = Service::start("pgbouncer", &mut command, log, Signal::QUIT)?;
        let running = Running::Pgbouncer(service);
        Ok(Contender { port, password: self.password, running, config: Some(config) })
    }

    fn pgbouncer_command(&self) -> Result<Command> {
        match &self.pgbouncer {
            Some(Pgbouncer::Installed(path)) => Ok(Command::new(path)),
            Some(Pgbouncer::Unpacked(release)) => release.command("usr/sbin/pgbouncer"),
            None => failed("there is no PgBouncer"),
        }
    }

    fn start_pinion(&self, plugins: &str) -> Result<Contender<'a>> {
        let Some(binary) = &self.pinion else { return failed("there is no Pinion") };
        let settings = Settings {
            name: USER,
            engine: "POSTGRESQL",
            user: USER,
            password: self.password,
            client_auth: "POSTGRES_MD5",
            server_port: self.cluster.port(),
            percent: PERCENT,
            max_clients: MAX_CLIENTS,
            certificate: None,
            more: plugins.to_owned(),
        };
        let pinion = Pinion::start(binary, self.directory, &[settings])?;
        let config = Some(pinion.config.clone());
        Ok(Contender { port: pinion.port, password: self.password, running: Running::Pinion(pinion), config })
    }
}

impl<'a> Contender<'a> {
    /// Whom pgbench shall log in to.
    pub(super) fn server(&self) -> Server<'a> {
        Server { port: self.port, user: USER, password: self.password, sslmode: "disable" }
    }

    /// Logs one client in.
    pub(super) fn client(&self) -> Result<Client> {
        Client::tcp(self.port, USER, self.password, USER)
    }

    /// The proxy's process.
    pub(super) fn pid(&self) -> Option<u32> {
        match &self.running {
            Running::Direct => None,
            Running::Pgbouncer(service) => Some(service.pid()),
            Running::Pinion(pinion) => Some(pinion.pid()),
        }
    }

    /// The proxy's process, where there has to be one.
    pub(super) fn proxy_pid(&self) -> Result<u32> {
        self.pid().map_or_else(|| failed("a direct connection has no proxy process"), Ok)
    }

    /// Errors when it has ended.
    pub(super) fn check(&mut self) -> Result<()> {
        match &mut self.running {
            Running::Direct => Ok(()),
            Running::Pgbouncer(service) => service.check(),
            Running::Pinion(pinion) => pinion.check(),
        }
    }

    /// The text of its config file; empty for a direct connection.
    pub(super) fn config_text(&self) -> Result<String> {
        let Some(config) = &self.config else { return Ok(String::new()) };
        fs::read_to_string(config).context(format!("reading {}", config.display()))
    }
}
