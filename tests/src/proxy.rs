//! The `pinion` binary with a configuration written for it.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::OnceLock,
};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpStream, UnixStream},
};

use crate::{
    Address, Ca, Client, Cluster, Engine, MySqlClient, Plugin, RawClient, RawMySql, Target, client,
    free_port, poll, server_error, target_dir, until,
};

/// The running proxy, stopped when dropped; dropping also asserts that its log tells of no panic.
#[derive(Debug)]
pub struct Proxy {
    dir: TempDir,
    port: u16,
    /// Endpoints beside the default one.
    endpoints: Vec<(String, u16)>,
    metrics_port: u16,
    ca: Option<Ca>,
    process: Child,
    exited: Option<ExitStatus>,
}

/// How a [`Proxy`] will be started.
#[derive(Debug)]
pub struct ProxyBuilder {
    engine: Engine,
    targets: Vec<String>,
    capacity: u32,
    percent: u32,
    top: Vec<String>,
    proxy: Vec<String>,
    pool: Vec<String>,
    endpoint: Vec<String>,
    endpoints: Vec<(String, &'static str)>,
    admin: Vec<String>,
    target_settings: Vec<String>,
    target_ca: Option<Ca>,
    auth: Vec<(String, String, &'static str)>,
    env: Vec<(String, String)>,
    log_level: String,
    tls: bool,
    notify: Option<PathBuf>,
    plugins: Vec<Plugin>,
}

impl Proxy {
    /// A proxy whose only target is `server`, with the users of the harness. They log in by
    /// `POSTGRES_SCRAM_SHA_256` or `MYSQL_NATIVE_PASSWORD`; see [`ProxyBuilder::client_auth`].
    #[must_use]
    pub fn in_front_of(server: impl Into<Target>) -> ProxyBuilder {
        let Target { engine, name, capacity, .. } = server.into();
        let (fourth, fourth_method) = match engine {
            Engine::Postgres => ("md5user", "POSTGRES_MD5"),
            Engine::MySql => ("ed25519user", engine.password_auth()),
        };
        let usual = ["app", "app2", "monitor"].map(|user| (user, engine.password_auth()));
        let users = usual.into_iter().chain([(fourth, fourth_method)]);
        ProxyBuilder {
            engine,
            targets: vec![name],
            capacity,
            percent: 75,
            top: Vec::new(),
            proxy: Vec::new(),
            pool: Vec::new(),
            endpoint: Vec::new(),
            endpoints: Vec::new(),
            admin: Vec::new(),
            target_settings: Vec::new(),
            target_ca: None,
            auth: users.map(|(user, method)| (user.to_owned(), format!("{user}-password"), method)).collect(),
            env: Vec::new(),
            log_level: "info".to_owned(),
            tls: false,
            notify: None,
            plugins: Vec::new(),
        }
    }

    /// A proxy whose targets are all servers of a cluster, the primary first, with a `READ_ONLY` endpoint `reader`
    /// beside the default one and with the admin API.
    #[must_use]
    pub fn in_front_of_cluster<S>(cluster: &Cluster<S>) -> ProxyBuilder
    where
        for<'a> &'a S: Into<Target>,
    {
        let builder = Self::in_front_of(&cluster.primary).endpoint("reader", "READ_ONLY").admin();
        cluster.standbys.iter().fold(builder, ProxyBuilder::also_target)
    }

    /// Where `app` finds its database through the proxy.
    #[must_use]
    pub fn address(&self) -> Address {
        Address {
            port: self.port,
            database: "appdb".to_owned(),
            user: "app".to_owned(),
            password: "app-password".to_owned(),
            ca: self.ca.clone(),
        }
    }

    /// This proxy as a server that another one may stand in front of; `server` is what is behind it.
    #[must_use]
    pub fn as_target(&self, server: impl Into<Target>) -> Target {
        Target { name: format!("127.0.0.1:{}", self.port), ca: self.ca.clone(), ..server.into() }
    }

    /// Where `app` finds its database through another endpoint.
    #[must_use]
    pub fn address_of(&self, endpoint: &str) -> Address {
        let (_, port) = self.endpoints.iter().find(|(name, _)| name == endpoint).expect("such an endpoint");
        Address { port: *port, ..self.address() }
    }

    /// A client logged in as `app` at another endpoint.
    pub async fn connect_to(&self, endpoint: &str) -> Client {
        Client::connect(&self.address_of(endpoint)).await.unwrap_or_else(|e| panic!("connecting: {e:?}"))
    }

    /// A client logged in as `app`.
    pub async fn connect(&self) -> Client {
        Client::connect(&self.address()).await.unwrap_or_else(|e| panic!("connecting: {e:?}"))
    }

    /// A client logged in as another user of the harness.
    pub async fn connect_as(&self, user: &str) -> Client {
        let address = self.address().user(user, &format!("{user}-password"));
        Client::connect(&address).await.unwrap_or_else(|e| panic!("connecting as {user}: {e:?}"))
    }

    /// A MySQL client logged in as `app`.
    pub async fn mysql(&self) -> MySqlClient {
        MySqlClient::connect(&self.address()).await.unwrap_or_else(|e| panic!("connecting: {e:?}"))
    }

    /// A MySQL client logged in as another user of the harness.
    pub async fn mysql_as(&self, user: &str) -> MySqlClient {
        let address = self.address().user(user, &format!("{user}-password"));
        MySqlClient::connect(&address).await.unwrap_or_else(|e| panic!("connecting as {user}: {e:?}"))
    }

    /// A MySQL client logged in as `app` at another endpoint.
    pub async fn mysql_to(&self, endpoint: &str) -> MySqlClient {
        let address = self.address_of(endpoint);
        MySqlClient::connect(&address).await.unwrap_or_else(|e| panic!("connecting: {e:?}"))
    }

    /// A raw MySQL client logged in as `app`.
    pub async fn raw_mysql(&self) -> RawMySql {
        RawMySql::connect(&self.address()).await
    }

    /// Error number and SQLSTATE with which a MySQL login at `address` fails; panics if it does not.
    pub async fn mysql_refusal(&self, address: &Address) -> (u16, String) {
        match MySqlClient::connect(address).await {
            Ok(_) => panic!("{address:?} was let in"),
            Err(e) => {
                let error = server_error(&e);
                (error.code, error.state.clone())
            }
        }
    }

    /// A raw client logged in as `app`.
    pub async fn raw(&self) -> RawClient {
        RawClient::connect(&self.address()).await
    }

    /// The SQLSTATE with which a login at `address` fails; panics if it does not.
    pub async fn refusal(&self, address: &Address) -> String {
        match Client::connect(address).await {
            Ok(_) => panic!("{address:?} was let in"),
            Err(e) => client::sqlstate(&e),
        }
    }

    /// All the proxy has logged.
    #[must_use]
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.dir.path().join("log")).unwrap()).into_owned()
    }

    /// Waits until a line of the log holds `text`, and returns it.
    pub async fn logged(&self, text: &str) -> String {
        poll(&format!("the log holds {text:?}"), async || {
            self.log().lines().find(|line| line.contains(text)).map(str::to_owned)
        })
        .await
    }

    /// What Prometheus would read now.
    pub async fn metrics(&self) -> Metrics {
        let (status, body) = self.http("/metrics").await.expect("the metrics listener answers");
        assert_eq!(status, 200, "{body}");
        Metrics::parse(&body)
    }

    /// Sum over all series of `name` that carry `labels`.
    pub async fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.metrics().await.sum(name, labels)
    }

    /// Status and JSON that the admin API answers; see [`ProxyBuilder::admin`].
    pub async fn admin(&self, method: &str, path: &str) -> (u16, serde_json::Value) {
        let socket = self.dir.path().join("admin.sock");
        let socket = poll("the admin API listens", async || UnixStream::connect(&socket).await.ok()).await;
        let (status, body) = request(socket, method, path, "").await.expect("the admin API answers");
        (status, serde_json::from_str(&body).unwrap_or_else(|e| panic!("{body}: {e}")))
    }

    /// The entry of `GET /targets` for a server.
    pub async fn target(&self, server: impl Into<Target>) -> serde_json::Value {
        let name = server.into().name;
        let (status, body) = self.admin("GET", "/targets").await;
        assert_eq!(status, 200, "{body}");
        let targets = body["targets"].as_array().unwrap();
        targets.iter().find(|target| target["name"] == *name).expect("such a target").clone()
    }

    /// Waits until `GET /targets` says of a server that it is in `state` and has `role`.
    pub async fn target_is(&self, server: impl Into<Target>, state: &str, role: &str) {
        let server = server.into();
        until(&format!("{} is {state} and {role}", server.name), async || {
            let target = self.target(server.clone()).await;
            target["state"] == state && target["role"] == role
        })
        .await;
    }

    /// Status and body of a GET from the metrics listener; `None` if nothing answers.
    pub async fn http(&self, path: &str) -> Option<(u16, String)> {
        let socket = TcpStream::connect(("127.0.0.1", self.metrics_port)).await.ok()?;
        request(socket, "GET", path, "").await
    }

    /// Process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// The folder with configuration, secrets, certificate and log.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(self.pid().cast_signed()).unwrap(), signal).unwrap();
    }

    /// Asks for a drain.
    pub fn sigterm(&self) {
        self.signal(Signal::TERM);
    }

    /// Asks for a reload.
    pub fn sighup(&self) {
        self.signal(Signal::HUP);
    }

    /// Changes the configuration file; the proxy is not told.
    pub fn rewrite_config(&self, change: impl FnOnce(String) -> String) {
        let file = self.dir.path().join("pinion.toml");
        fs::write(&file, change(fs::read_to_string(&file).unwrap())).unwrap();
    }

    /// Puts another password into a user's secret file, by rename as secret managers do.
    pub fn rotate_secret(&self, user: &str, password: &str) {
        write_secret(self.dir.path(), user, password);
    }

    /// Waits until the process has ended by itself.
    pub async fn wait_exit(&mut self) -> ExitStatus {
        let status = poll("the proxy ends", async || self.process.try_wait().unwrap()).await;
        self.exited = Some(status);
        status
    }

    /// True while the process runs.
    pub fn is_running(&mut self) -> bool {
        self.process.try_wait().unwrap().is_none()
    }

    /// CPU time used so far, user and system, in seconds.
    #[must_use]
    pub fn cpu_seconds(&self) -> f64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap();
        let (_, after_name) = stat.rsplit_once(')').unwrap();
        let ticks: f64 =
            after_name.split_whitespace().skip(11).take(2).map(|field| field.parse::<f64>().unwrap()).sum();
        ticks / rustix::param::clock_ticks_per_second() as f64
    }

    /// Resident memory in KiB, as `VmRSS` or `VmHWM` (its peak) of `/proc/<pid>/status`.
    #[must_use]
    pub fn memory_kib(&self, field: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with(field)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    async fn wait_for(&mut self, path: &str) {
        poll(&format!("{path} says 200"), async || {
            if let Some(status) = self.process.try_wait().unwrap() {
                panic!("the proxy ended with {status}:\n{}", self.log());
            }
            self.http(path).await.filter(|(status, _)| *status == 200)
        })
        .await;
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if self.exited.is_none() {
            self.process.kill().ok();
            self.process.wait().ok();
        }
        let log = self.log();
        if std::thread::panicking() {
            let tail: Vec<&str> = log.lines().rev().take(25).collect();
            eprintln!("--- end of the proxy's log");
            tail.iter().rev().for_each(|line| eprintln!("{line}"));
            eprintln!("---");
        } else {
            // A plugin's panic is a line of the log; ours would be the standard library's.
            let panicked = |line: &str| line.starts_with("thread '") && line.contains("panicked at");
            assert!(!log.lines().any(panicked), "the proxy panicked:\n{log}");
        }
    }
}

impl ProxyBuilder {
    /// A budget of `n` server connections, by the percentage that gives it.
    #[must_use]
    pub fn max_connections(mut self, n: u32) -> Self {
        let usable = self.capacity;
        // One connection of the budget is the monitor's.
        let percent = (1..=100).find(|percent| usable * percent / 100 == n + 1);
        self.percent = percent.unwrap_or_else(|| panic!("no percentage of {usable} gives {n}"));
        self
    }

    /// `profile`.
    #[must_use]
    pub fn profile(self, name: &str) -> Self {
        self.proxy_setting(&format!("profile = \"{name}\""))
    }

    /// A line at the top of the file.
    #[must_use]
    pub fn top_setting(mut self, line: &str) -> Self {
        self.top.push(line.to_owned());
        self
    }

    /// A line of `[[proxy]]`.
    #[must_use]
    pub fn proxy_setting(mut self, line: &str) -> Self {
        self.proxy.push(line.to_owned());
        self
    }

    /// A line of `[proxy.pool]`.
    #[must_use]
    pub fn pool(mut self, line: &str) -> Self {
        self.pool.push(line.to_owned());
        self
    }

    /// A line of `[[proxy.endpoint]]`.
    #[must_use]
    pub fn endpoint_setting(mut self, line: &str) -> Self {
        self.endpoint.push(line.to_owned());
        self
    }

    /// A user, or another password or method for one of the harness's.
    #[must_use]
    pub fn auth(mut self, user: &str, password: &str, method: &'static str) -> Self {
        self.auth.retain(|(known, ..)| known != user);
        self.auth.push((user.to_owned(), password.to_owned(), method));
        self
    }

    /// `client_password_auth_type` of every user.
    #[must_use]
    pub fn client_auth(mut self, method: &'static str) -> Self {
        self.auth.iter_mut().for_each(|(.., theirs)| *theirs = method);
        self
    }

    /// Takes a user's secret from the environment variable `PINION_TEST_SECRET` in place of a file.
    #[must_use]
    pub fn secret_in_env(mut self, secret: &str) -> Self {
        self.env.push(("PINION_TEST_SECRET".to_owned(), secret.to_owned()));
        self
    }

    /// Offers TLS and requires it, unless a later `require_tls` says otherwise.
    #[must_use]
    pub fn tls(mut self) -> Self {
        self.tls = true;
        self
    }

    /// How the target is reached: `disabled`, `preferred`, …, with the server's authority trusted.
    #[must_use]
    pub fn target_tls(mut self, mode: &str, server: impl Into<Target>) -> Self {
        self.target_settings.push(format!("tls = \"{mode}\""));
        if let Some(ca) = server.into().ca {
            self.target_ca = Some(ca);
            self.target_settings.push("ca = \"target/ca.crt\"".to_owned());
        }
        self
    }

    /// [`Self::target_tls`] for the modes that verify nothing.
    #[must_use]
    pub fn target_tls_unverified(self, mode: &str) -> Self {
        self.target_setting(&format!("tls = \"{mode}\""))
    }

    /// A line of every `[[proxy.target]]`.
    #[must_use]
    pub fn target_setting(mut self, line: &str) -> Self {
        self.target_settings.push(line.to_owned());
        self
    }

    /// One more policy plugin, behind those before it.
    #[must_use]
    pub fn plugin(mut self, plugin: Plugin) -> Self {
        self.plugins.push(plugin);
        self
    }

    /// `log.level`.
    #[must_use]
    pub fn log_level(mut self, level: &str) -> Self {
        level.clone_into(&mut self.log_level);
        self
    }

    /// Started as systemd would: the endpoint's socket is opened before and handed over, and `notify` is told how
    /// far the start is.
    #[must_use]
    pub fn activated(mut self, notify: &Path) -> Self {
        self.notify = Some(notify.to_owned());
        self
    }

    /// One more target.
    #[must_use]
    pub fn also_target(mut self, server: impl Into<Target>) -> Self {
        self.targets.push(server.into().name);
        self
    }

    /// One more endpoint, see [`Proxy::address_of`].
    #[must_use]
    pub fn endpoint(mut self, name: &str, role: &'static str) -> Self {
        self.endpoints.push((name.to_owned(), role));
        self
    }

    /// With the admin API on a Unix socket, see [`Proxy::admin`].
    #[must_use]
    pub fn admin(self) -> Self {
        self.admin_setting("listen = \"unix:admin.sock\"")
    }

    /// A line of `[admin]`.
    #[must_use]
    pub fn admin_setting(mut self, line: &str) -> Self {
        self.admin.push(line.to_owned());
        self
    }

    /// Another target port on loopback, such as a [`crate::RawServer`]'s.
    #[must_use]
    pub fn target_port(mut self, port: u16) -> Self {
        self.targets = vec![format!("127.0.0.1:{port}")];
        self
    }

    /// Starts the proxy and waits until `/readyz` says that the target is usable.
    pub async fn start(self) -> Proxy {
        let mut proxy = self.spawn();
        proxy.wait_for("/readyz").await;
        proxy
    }

    /// Starts the proxy and waits only until the process answers.
    pub async fn start_without_target(self) -> Proxy {
        let mut proxy = self.spawn();
        proxy.wait_for("/healthz").await;
        proxy
    }

    /// Starts the proxy and waits for nothing.
    #[must_use]
    pub fn spawn(self) -> Proxy {
        let dir = tempfile::Builder::new().prefix("pinion-proxy-").tempdir().unwrap();
        let (port, metrics_port) = (free_port(), free_port());
        let ca = self.tls.then(Ca::new);
        if let Some(ca) = &ca {
            ca.issue_into(dir.path());
        }
        if let Some(ca) = &self.target_ca {
            fs::create_dir(dir.path().join("target")).unwrap();
            ca.issue_into(&dir.path().join("target"));
        }
        let endpoints: Vec<_> = self.endpoints.iter().map(|(name, _)| (name.clone(), free_port())).collect();
        let config = self.config(dir.path(), port, &endpoints, metrics_port);
        fs::write(dir.path().join("pinion.toml"), config).unwrap();
        let log = File::create(dir.path().join("log")).unwrap();
        let mut command = if let Some(notify) = &self.notify {
            let mut python = Command::new("python3");
            python.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/clients/activate.py")).arg(port.to_string());
            python.arg(pinion_binary()).env("NOTIFY_SOCKET", notify);
            python
        } else {
            Command::new(pinion_binary())
        };
        let process = command
            .arg("--config")
            .arg(dir.path().join("pinion.toml"))
            .envs(self.env)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        Proxy { dir, port, endpoints, metrics_port, ca, process, exited: None }
    }

    fn config(&self, dir: &Path, port: u16, endpoints: &[(String, u16)], metrics_port: u16) -> String {
        let mut text = String::new();
        let mut section = |header: &str, defaults: &[String], lines: &[String]| {
            let key = |line: &str| line.split('=').next().unwrap_or_default().trim().to_owned();
            let kept = defaults.iter().filter(|default| !lines.iter().any(|line| key(line) == key(default)));
            text.push_str(header);
            for line in kept.chain(lines) {
                text.push('\n');
                text.push_str(line);
            }
            text.push_str("\n\n");
        };
        section("", &[], &self.top);
        section("[log]", &["format = \"json\"".to_owned(), format!("level = \"{}\"", self.log_level)], &[]);
        section("[metrics]", &[format!("listen = \"127.0.0.1:{metrics_port}\"")], &[]);
        if !self.admin.is_empty() {
            section("[admin]", &[], &self.admin);
        }
        let mut defaults = vec![
            "name = \"test\"".to_owned(),
            format!("engine_family = \"{}\"", self.engine.family()),
            format!("require_tls = {}", self.tls),
        ];
        if self.tls {
            defaults.push("tls = { certificate = \"server.crt\", key = \"server.key\" }".to_owned());
        }
        section("[[proxy]]", &defaults, &self.proxy);
        for (user, password, method) in &self.auth {
            let secret = if self.env.is_empty() || user != "app" {
                write_secret(dir, user, password);
                format!("secret = {{ file = \"secret-{user}.json\" }}")
            } else {
                "secret = { env = \"PINION_TEST_SECRET\" }".to_owned()
            };
            let lines = [
                format!("username = \"{user}\""),
                secret,
                format!("client_password_auth_type = \"{method}\""),
            ];
            section("[[proxy.auth]]", &lines, &[]);
        }
        let percent = self.percent;
        let pool = [
            format!("max_connections_percent = {percent}"),
            format!("max_idle_connections_percent = {percent}"),
            "connection_borrow_timeout = \"20s\"".to_owned(),
        ];
        section("[proxy.pool]", &pool, &self.pool);
        for target in &self.targets {
            section("[[proxy.target]]", &[format!("address = \"{target}\"")], &self.target_settings);
        }
        let endpoint = [
            "name = \"default\"".to_owned(),
            format!("listen = \"127.0.0.1:{port}\""),
            "target_role = \"READ_WRITE\"".to_owned(),
        ];
        section("[[proxy.endpoint]]", &endpoint, &self.endpoint);
        for ((name, role), (_, port)) in self.endpoints.iter().zip(endpoints) {
            let lines = [
                format!("name = \"{name}\""),
                format!("listen = \"127.0.0.1:{port}\""),
                format!("target_role = \"{role}\""),
            ];
            section("[[proxy.endpoint]]", &lines, &[]);
        }
        section("[proxy.monitor]", &["username = \"monitor\"".to_owned()], &[]);
        for plugin in &self.plugins {
            section("[[proxy.plugin]]", &plugin.install(dir), &[]);
        }
        text
    }
}

/// Prometheus text, parsed.
#[derive(Debug, Clone)]
pub struct Metrics(Vec<(String, BTreeMap<String, String>, f64)>);

impl Metrics {
    /// Reads the text format; label values hold no escaped quotes in what the proxy exports.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let series = text.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty());
        let parsed = series.map(|line| {
            let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("no value: {line}"));
            let (name, labels) = series.split_once('{').unwrap_or((series, ""));
            let pairs = labels.trim_end_matches('}').split("\",").filter_map(|pair| pair.split_once("=\""));
            let labels = pairs.map(|(key, value)| {
                (key.trim_start_matches(',').to_owned(), value.trim_end_matches('"').to_owned())
            });
            let value = value.parse().unwrap_or_else(|_| panic!("not a number: {line}"));
            (name.to_owned(), labels.collect(), value)
        });
        Self(parsed.collect())
    }

    /// Sum over all series of `name` that carry `labels`; 0 when there is none.
    #[must_use]
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let matching = self.0.iter().filter(|(found, have, _)| {
            found == name && labels.iter().all(|(key, value)| have.get(*key).is_some_and(|v| v == value))
        });
        matching.map(|(.., value)| value).sum()
    }

    /// True when at least one series is called `name`.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(found, ..)| found == name)
    }

    /// Every series: name, labels, value.
    pub fn iter(&self) -> impl Iterator<Item = &(String, BTreeMap<String, String>, f64)> {
        self.0.iter()
    }
}

/// The binary under test: `PINION_BIN`, else what cargo builds now for the profile of this test.
fn pinion_binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        if let Some(given) = std::env::var_os("PINION_BIN") {
            return given.into();
        }
        let exe = std::env::current_exe().unwrap();
        let folder = exe.parent().and_then(Path::parent).expect("target/<profile>/deps/<test>").to_owned();
        let mut build = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        build.args(["build", "--quiet", "--package", "pinion", "--bin", "pinion"]);
        build.arg("--target-dir").arg(target_dir()).current_dir(env!("CARGO_MANIFEST_DIR"));
        if folder.ends_with("release") {
            build.arg("--release");
        }
        assert!(build.status().unwrap().success(), "cargo could not build the proxy");
        folder.join("pinion")
    })
}

/// Runs `pinion` with arguments, for commands that end by themselves; status and all output.
#[must_use]
pub fn run_pinion(arguments: &[&str]) -> (ExitStatus, String) {
    let output = Command::new(pinion_binary()).args(arguments).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status, String::from_utf8_lossy(&text).into_owned())
}

fn write_secret(dir: &Path, user: &str, password: &str) {
    let secret = serde_json::json!({ "username": user, "password": password });
    let file = dir.join(format!("secret-{user}.json"));
    let fresh = file.with_extension("new");
    fs::write(&fresh, secret.to_string()).unwrap();
    fs::rename(fresh, file).unwrap();
}

/// Status and body of an HTTP request without a body; `headers` are whole lines.
pub async fn request(
    mut socket: impl AsyncRead + AsyncWrite + Unpin,
    method: &str,
    path: &str,
    headers: &str,
) -> Option<(u16, String)> {
    let request =
        format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}\r\n");
    socket.write_all(request.as_bytes()).await.ok()?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.ok()?;
    let status = answer.split(' ').nth(1)?.parse().ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
    Some((status, if chunked { dechunk(body) } else { body.to_owned() }))
}

fn dechunk(body: &str) -> String {
    let mut whole = Vec::new();
    let mut rest = body.as_bytes();
    while let Some(end) = rest.windows(2).position(|pair| pair == b"\r\n") {
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..end]).unwrap().trim(), 16).unwrap();
        rest = &rest[end + 2..];
        whole.extend_from_slice(&rest[..size]);
        rest = &rest[(size + 2).min(rest.len())..];
        if size == 0 {
            break;
        }
    }
    String::from_utf8(whole).unwrap()
}
