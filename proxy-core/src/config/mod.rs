//! All configuration: one TOML file, checked whole before anything is opened.
//!
//! `schema` is the one table of keys, defaults and allowed values; `reader` reads a TOML tree by that
//! table; `build` makes a [`Config`] of it and finds clashes; `files` checks what the file points to;
//! `changes` compares two configurations for a reload.

mod build;
mod changes;
mod files;
mod reader;
mod schema;
#[cfg(test)]
mod tests;

use std::{
    ffi::OsString,
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

pub use changes::Changes;

/// A checked configuration: every value is in range and every file it names was readable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Worker threads; `None` is one per core.
    pub worker_threads: Option<usize>,
    /// How long a drain waits for open transactions before it closes what is left.
    pub drain_timeout: Duration,
    /// What is logged and how.
    pub log: LogConfig,
    /// Where Prometheus reads; `None` switches the listener off.
    pub metrics: Option<MetricsConfig>,
    /// The admin API; `None` switches it off.
    pub admin: Option<AdminConfig>,
    /// What all plugins share.
    pub plugins: PluginsConfig,
    /// Where audit records of plugins go; `None` is nowhere.
    pub audit: Option<AuditConfig>,
    /// One per `[[proxy]]`.
    pub proxies: Vec<ProxyConfig>,
}

/// `[log]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogConfig {
    /// Text for people, JSON for collectors.
    pub format: LogFormat,
    /// A `tracing` filter such as `info` or `pinion=debug`.
    pub level: String,
    /// Requests that took longer are logged with their digest; `None` logs none.
    pub slow_query: Option<Duration>,
}

/// Shape of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// One readable line.
    Text,
    /// One JSON object a line.
    Json,
}

/// `[metrics]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetricsConfig {
    /// `/metrics`, `/healthz`, `/readyz`.
    pub listen: SocketAddr,
}

/// `[admin]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdminConfig {
    /// Where the API listens.
    pub listen: AdminListen,
    /// What callers must show; always there with a TCP address.
    pub token: Option<TokenSource>,
}

/// An address of the admin API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AdminListen {
    /// A Unix socket, for the user that Pinion runs as.
    Unix(PathBuf),
    /// On loopback.
    Tcp(SocketAddr),
}

impl fmt::Display for AdminListen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(address) => address.fmt(f),
        }
    }
}

/// Where the admin API's token is kept: text, white space around it ignored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenSource {
    /// A file.
    File(PathBuf),
    /// An environment variable.
    Env(String),
}

impl TokenSource {
    /// Reads the token. The error never shows it.
    pub fn read(&self) -> Result<zeroize::Zeroizing<String>, String> {
        match self {
            Self::File(path) => files::read_token_file(path),
            Self::Env(name) => match std::env::var_os(name) {
                Some(value) => files::read_token(value.as_encoded_bytes()),
                None => Err("is not set".to_owned()),
            },
        }
    }
}

/// The database protocol spoken on both sides of one proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EngineFamily {
    /// PostgreSQL wire protocol 3.0.
    Postgresql,
    /// MySQL and MariaDB.
    Mysql,
}

/// Which pin rules hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// Pins only where it must, and unpins.
    Smart,
    /// Pins exactly as RDS Proxy does.
    Rds,
}

/// One `[[proxy]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxyConfig {
    /// Unique name; a metric label.
    pub name: String,
    /// Protocol.
    pub engine_family: EngineFamily,
    /// Refuse clients without TLS.
    pub require_tls: bool,
    /// A client that sends nothing for this long is closed. 1 s to 8 h.
    pub idle_client_timeout: Duration,
    /// A client connection lives at most this long and is cut at a transaction boundary.
    pub max_client_lifetime: Duration,
    /// From accept to the end of authentication.
    pub handshake_timeout: Duration,
    /// Client connections at once, all endpoints together.
    pub max_client_connections: usize,
    /// Of those, how many may be unauthenticated at once.
    pub max_unauthenticated: usize,
    /// Failed logins allowed per minute from one address before it is refused unheard; 0 is no limit.
    pub failed_logins_per_minute: u32,
    /// Pin rules.
    pub profile: Profile,
    /// The version told to MySQL clients; `None` is the server's own.
    pub server_version: Option<String>,
    /// Ask clients of `caching_sha2_password` for the password itself each time, as a server with an empty cache does.
    pub force_full_authentication: bool,
    /// Certificate shown to clients; `None` offers no TLS.
    pub tls: Option<ServerTlsConfig>,
    /// One per database user.
    pub auth: Vec<AuthConfig>,
    /// `[proxy.pool]`.
    pub pool: PoolConfig,
    /// At least one.
    pub targets: Vec<TargetConfig>,
    /// At least one.
    pub endpoints: Vec<EndpointConfig>,
    /// Index into `auth` of the user that reads `max_connections` and health.
    pub monitor: usize,
    /// Database the monitor connects to.
    pub monitor_database: String,
    /// Policy plugins, in the order in which they are asked.
    pub plugins: Vec<PluginConfig>,
}

/// `[plugins]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PluginsConfig {
    /// Where compiled code is kept; `None` compiles at each start.
    pub cache_directory: Option<PathBuf>,
    /// Events that may wait for a proxy's observers.
    pub event_queue: usize,
}

/// `[audit]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditConfig {
    /// Where records go.
    pub sink: AuditSink,
    /// A file that would grow beyond this is rotated.
    pub rotate_bytes: u64,
    /// Rotated files that are kept.
    pub keep: u32,
    /// Records that may wait to be written.
    pub queue: usize,
    /// What happens when more would wait.
    pub when_full: WhenFull,
}

/// Where audit records go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AuditSink {
    /// Standard output.
    Stdout,
    /// A file.
    File(PathBuf),
}

/// What becomes of an audit record that finds no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenFull {
    /// It is taken, and the session waits until there is room.
    Block,
    /// It is counted and lost.
    Drop,
}

/// One `[[proxy.plugin]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PluginConfig {
    /// Unique within the proxy; a metric label.
    pub name: String,
    /// The plugin's file.
    pub wasm: PathBuf,
    /// What the file's SHA-256 must be; `None` takes any.
    pub sha256: Option<[u8; 32]>,
    /// Imports that it may use.
    pub grants: Grants,
    /// What becomes of a statement when the plugin fails, by hook.
    pub on_failure: OnFailure,
    /// The plugin's own configuration, a JSON object.
    pub config: String,
    /// Longest call.
    pub deadline: Duration,
    /// Longest call of `on-events`.
    pub events_deadline: Duration,
    /// Of one instance; there is one a worker thread.
    pub memory_bytes: u64,
    /// Of its store, shared by all instances.
    pub store_bytes: u64,
    /// Lines that it may log in a second.
    pub log_lines_per_second: u32,
    /// How long it stays switched off after it failed too often.
    pub retry_after: Duration,
    /// Test vectors that a file must pass before it is put to work.
    pub vectors: Option<PathBuf>,
    /// A candidate that is asked beside it and decides nothing.
    pub shadow: Option<PathBuf>,
}

/// Imports that a plugin may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Grants {
    /// `log`.
    pub log: bool,
    /// `metrics`.
    pub metrics: bool,
    /// `store`.
    pub store: bool,
    /// `clock`.
    pub clock: bool,
    /// `audit`.
    pub audit: bool,
}

/// What becomes of a statement when a plugin fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureMode {
    /// As if it had said `pass`.
    Open,
    /// The client gets an error.
    Closed,
}

/// [`FailureMode`] by hook.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OnFailure {
    /// `on-query`.
    pub query: FailureMode,
    /// `on-route`.
    pub route: FailureMode,
    /// `on-pin`.
    pub pin: FailureMode,
}

impl OnFailure {
    /// The same for all hooks.
    #[must_use]
    pub const fn all(mode: FailureMode) -> Self {
        Self { query: mode, route: mode, pin: mode }
    }
}

/// Certificate chain and key, PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerTlsConfig {
    /// Chain, leaf first.
    pub certificate: PathBuf,
    /// Private key.
    pub key: PathBuf,
}

/// How a client proves its password to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientAuthType {
    /// SCRAM-SHA-256, and -PLUS over TLS.
    PostgresScramSha256,
    /// MD5 challenge.
    PostgresMd5,
    /// Cleartext password; needs `require_tls`.
    PostgresCleartext,
    /// `caching_sha2_password`.
    MysqlCachingSha2Password,
    /// `mysql_native_password`.
    MysqlNativePassword,
    /// `mysql_clear_password`; needs `require_tls`.
    MysqlClearPassword,
}

impl ClientAuthType {
    /// What users of a family are asked for when the configuration does not say.
    #[must_use]
    pub const fn of(family: EngineFamily) -> Self {
        match family {
            EngineFamily::Postgresql => Self::PostgresScramSha256,
            EngineFamily::Mysql => Self::MysqlCachingSha2Password,
        }
    }

    /// Whose it is.
    #[must_use]
    pub const fn family(self) -> EngineFamily {
        match self {
            Self::PostgresScramSha256 | Self::PostgresMd5 | Self::PostgresCleartext => {
                EngineFamily::Postgresql
            }
            Self::MysqlCachingSha2Password | Self::MysqlNativePassword | Self::MysqlClearPassword => {
                EngineFamily::Mysql
            }
        }
    }

    /// The password itself goes over the network.
    #[must_use]
    pub const fn is_clear(self) -> bool {
        matches!(self, Self::PostgresCleartext | Self::MysqlClearPassword)
    }
}

/// One `[[proxy.auth]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthConfig {
    /// Database user; unique within the proxy.
    pub username: String,
    /// Where the password is kept.
    pub secret: SecretSource,
    /// Method asked of clients.
    pub client_password_auth_type: ClientAuthType,
}

/// Where a secret in RDS JSON form is read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretSource {
    /// A file, re-read when it changes.
    File(PathBuf),
    /// An environment variable, by name.
    Env(String),
}

/// `[proxy.pool]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolConfig {
    /// Of the target's own `max_connections`, 1 to 100.
    pub max_connections_percent: u8,
    /// Of the target's own `max_connections`, 0 to `max_connections_percent`.
    pub max_idle_connections_percent: u8,
    /// Longest wait for a server connection, 0 to 1 h. With 0 a request that finds none idle fails at once.
    pub connection_borrow_timeout: Duration,
    /// Of the connections that the pool may open, as many may be pinned, 1 to 100; `None` for what the profile says.
    pub max_pinned_percent: Option<u8>,
    /// Bytes of temporary tables that an idle client takes along to another connection, 0 to 512 KiB.
    pub max_carried_table_bytes: usize,
    /// `EXCLUDE_VARIABLE_SETS` present.
    pub exclude_variable_sets: bool,
    /// Run once on each new server connection and after each reset; empty is none.
    pub init_query: String,
    /// A server connection older than this (less up to 10 % jitter) is closed when it comes back.
    pub max_server_lifetime: Duration,
    /// An idle server connection above the idle ceiling is closed after this long.
    pub idle_server_timeout: Duration,
    /// Protocol-level prepared statements kept on one server connection.
    pub max_prepared_statements: usize,
}

/// TLS towards a target, the names libpq uses plus `disabled`, `preferred`, `required`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsMode {
    /// Never.
    Disabled,
    /// If the server offers it; nothing is verified.
    Preferred,
    /// Always; nothing is verified.
    Required,
    /// Always; the chain is verified.
    VerifyCa,
    /// Always; chain and host name are verified.
    VerifyFull,
}

/// One `[[proxy.target]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetConfig {
    /// Host name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Default `verify-full` except on loopback, where it is `preferred`.
    pub tls: TlsMode,
    /// Trusted roots, PEM; `None` is the system's.
    pub ca: Option<PathBuf>,
}

/// What an endpoint is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TargetRole {
    /// The writer.
    ReadWrite,
    /// A reader.
    ReadOnly,
}

/// One `[[proxy.endpoint]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointConfig {
    /// Unique within the proxy; a metric label.
    pub name: String,
    /// Listening address.
    pub listen: SocketAddr,
    /// Role of the targets behind it.
    pub target_role: TargetRole,
    /// Networks that may connect; empty is everyone.
    pub allow: Vec<ipnet::IpNet>,
}

impl Config {
    /// Reads and checks the file at `path`. Relative paths in it are relative to its directory.
    ///
    /// Nothing is opened but the file itself and the secrets, certificates and keys it names.
    /// Errors: every refusal that could be found in one pass, see [`ConfigErrors`].
    pub fn load(path: &Path) -> Result<Self, ConfigErrors> {
        let bytes = std::fs::read(path).map_err(|error| ConfigErrors::whole_file(path, &error))?;
        let text = match std::str::from_utf8(&bytes) {
            Ok(text) => text,
            Err(error) => {
                let valid = String::from_utf8_lossy(&bytes[..error.valid_up_to()]);
                let (line, column) = reader::position(&valid, valid.len());
                let message =
                    format!("{}:{line}:{column}: is not UTF-8; allowed: UTF-8 text", path.display());
                return Err(ConfigErrors { messages: vec![message] });
            }
        };
        Self::parse(text, path, path.parent().unwrap_or(Path::new("")))
    }

    /// Checks `text` as [`Config::load`] does: `path_for_messages` is only shown, relative paths are
    /// relative to `base_dir`.
    pub fn parse(text: &str, path_for_messages: &Path, base_dir: &Path) -> Result<Self, ConfigErrors> {
        build::config(text, path_for_messages, base_dir, &|name| std::env::var_os(name))
    }
}

/// Looks up an environment variable; tests bring their own.
type Env<'a> = &'a dyn Fn(&str) -> Option<OsString>;

/// Why a configuration was refused: one message per refusal, in the order of the file, each
/// `file:line:column: key.path: what is wrong; allowed: …`. Secrets never stand in a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors {
    messages: Vec<String>,
}

impl ConfigErrors {
    /// The messages, at least one, without line ends.
    pub fn messages(&self) -> &[String] {
        &self.messages
    }

    fn whole_file(path: &Path, error: &std::io::Error) -> Self {
        Self {
            messages: vec![format!("{}: cannot be read: {error}; allowed: a readable file", path.display())],
        }
    }
}

/// One message a line, no line end after the last.
impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.messages.join("\n"))
    }
}

impl std::error::Error for ConfigErrors {}
