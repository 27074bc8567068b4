//! The one table of keys: name, default, allowed values and what a reload does with it.
//!
//! The reader takes defaults and ranges from here, messages say what is allowed from here, `changes` sorts
//! by it, and a test holds `docs/configuration.md` against it.

use super::{ClientAuthType, EngineFamily, LogFormat, Profile, TargetRole, TlsMode, WhenFull};

/// One key of one section.
pub(super) struct Key {
    /// Dotted section, without names: `""`, `"proxy"`, `"proxy.pool"`.
    pub(super) section: &'static str,
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) default: WhenAbsent,
    pub(super) reload: Reload,
}

/// What a value must be.
pub(super) enum Kind {
    Boolean,
    /// Shortest and longest, inclusive, in the form the file has them.
    Duration(&'static str, &'static str),
    /// Least and greatest, inclusive.
    Integer(u64, u64),
    Word(fn() -> &'static str),
    /// A string, or a list of them, that `build` checks further; the text says what is allowed.
    Text(&'static str),
    /// A table of its own section; the text says what is allowed.
    Table(&'static str),
    /// A table that somebody else reads; the text says what is allowed.
    Free(&'static str),
    /// Any number of tables of their own section; the text says what is allowed.
    Tables(&'static str),
    /// Known, but not in this build; the text names the feature.
    Later(&'static str),
}

/// What holds when the key is absent.
#[derive(Clone, Copy)]
pub(super) enum WhenAbsent {
    Required,
    /// A TOML value, read as if it stood in the file.
    Value(&'static str),
    /// Something no value of the file says; the text is the manual's.
    #[cfg_attr(not(test), expect(dead_code, reason = "only the test of the manual reads the text"))]
    Said(&'static str),
}

/// What a reload does with a changed value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reload {
    Live,
    Restart,
    /// A table: each of its keys says for itself.
    Below,
}

/// An enum whose values are words in the file.
pub(super) trait Word: Copy + 'static {
    const WORDS: &'static [(&'static str, Self)];
    /// The words again, as people read them.
    const ALLOWED: &'static str;
}

impl Word for LogFormat {
    const WORDS: &'static [(&'static str, Self)] = &[("text", Self::Text), ("json", Self::Json)];
    const ALLOWED: &'static str = r#""text" or "json""#;
}

impl Word for EngineFamily {
    const WORDS: &'static [(&'static str, Self)] =
        &[("POSTGRESQL", Self::Postgresql), ("MYSQL", Self::Mysql)];
    const ALLOWED: &'static str = r#""POSTGRESQL" or "MYSQL""#;
}

impl Word for Profile {
    const WORDS: &'static [(&'static str, Self)] = &[("smart", Self::Smart), ("rds", Self::Rds)];
    const ALLOWED: &'static str = r#""smart" or "rds""#;
}

impl Word for ClientAuthType {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("POSTGRES_SCRAM_SHA_256", Self::PostgresScramSha256),
        ("POSTGRES_MD5", Self::PostgresMd5),
        ("POSTGRES_CLEARTEXT", Self::PostgresCleartext),
        ("MYSQL_CACHING_SHA2_PASSWORD", Self::MysqlCachingSha2Password),
        ("MYSQL_NATIVE_PASSWORD", Self::MysqlNativePassword),
        ("MYSQL_CLEAR_PASSWORD", Self::MysqlClearPassword),
    ];
    const ALLOWED: &'static str = r#""POSTGRES_SCRAM_SHA_256", "POSTGRES_MD5" or, with require_tls = true, "POSTGRES_CLEARTEXT"; for MySQL "MYSQL_CACHING_SHA2_PASSWORD", "MYSQL_NATIVE_PASSWORD" or, with require_tls = true, "MYSQL_CLEAR_PASSWORD""#;
}

impl Word for TlsMode {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("disabled", Self::Disabled),
        ("preferred", Self::Preferred),
        ("required", Self::Required),
        ("verify-ca", Self::VerifyCa),
        ("verify-full", Self::VerifyFull),
    ];
    const ALLOWED: &'static str = r#""disabled", "preferred", "required", "verify-ca" or "verify-full""#;
}

impl Word for TargetRole {
    const WORDS: &'static [(&'static str, Self)] =
        &[("READ_WRITE", Self::ReadWrite), ("READ_ONLY", Self::ReadOnly)];
    const ALLOWED: &'static str = r#""READ_WRITE" or "READ_ONLY""#;
}

impl Word for WhenFull {
    const WORDS: &'static [(&'static str, Self)] = &[("block", Self::Block), ("drop", Self::Drop)];
    const ALLOWED: &'static str = r#""block" or "drop""#;
}

fn allowed_words<W: Word>() -> &'static str {
    W::ALLOWED
}

impl Key {
    /// What a value may be, as the messages and the manual say it.
    pub(super) fn allowed(&self) -> String {
        match self.kind {
            Kind::Boolean => "true or false".into(),
            Kind::Duration(least, most) => format!(r#""{least}" to "{most}" (units ms, s, m, h, d)"#),
            Kind::Integer(least, most) => format!("{least} to {most}"),
            Kind::Word(allowed) => allowed().into(),
            Kind::Text(allowed) | Kind::Table(allowed) | Kind::Free(allowed) | Kind::Tables(allowed) => {
                allowed.into()
            }
            Kind::Later(_) => "leave it out".into(),
        }
    }
}

/// The entry for a key that the code reads.
pub(super) fn key(section: &str, name: &str) -> &'static Key {
    KEYS.iter()
        .find(|key| key.section == section && key.name == name)
        .expect("every key that the code reads stands in the table")
}

const ADDRESS: &str = r#"an IP address and a port such as "127.0.0.1:6432" or "[::1]:6432""#;
const ADMIN_ADDRESS: &str =
    r#""unix:" and the path of a socket, or a loopback address and a port such as "127.0.0.1:9931""#;
const NAME: &str = "letters and digits with single hyphens between, a letter first, 1 to 63 long";
const PG_NAME: &str = "1 to 63 bytes, no NUL";
const COUNT: Kind = Kind::Integer(1, 1_000_000);

/// Every key there is.
pub(super) const KEYS: &[Key] = {
    use Kind::{Boolean, Duration, Free, Integer, Later, Table, Tables, Text, Word};
    use Reload::{Below, Live, Restart};
    use WhenAbsent::{Required, Said, Value};
    const fn key(
        section: &'static str,
        name: &'static str,
        kind: Kind,
        default: WhenAbsent,
        reload: Reload,
    ) -> Key {
        Key { section, name, kind, default, reload }
    }
    #[rustfmt::skip]
    const ALL: &[Key] = &[
        key("", "worker_threads", Integer(1, 1024), Said("one per core"), Restart),
        key("", "drain_timeout", Duration("0s", "1h"), Value(r#""30s""#), Live),
        key("", "log", Table("a table with format, level, slow_query"), Said("its defaults"), Below),
        key("", "metrics", Table("a table with listen"), Said("no metrics listener"), Below),
        key("", "admin", Table("a table with listen and token"), Said("no admin API"), Below),
        key("", "plugins", Table("a table with cache_directory, event_queue"), Said("its defaults"), Below),
        key("", "audit", Table("a table with file, rotate_bytes, keep, queue, when_full"), Said("no audit sink"), Below),
        key("", "proxy", Tables("one or more [[proxy]]"), Required, Restart),

        key("log", "format", Word(allowed_words::<LogFormat>), Value(r#""text""#), Restart),
        key("log", "level", Text("off, error, warn, info, debug or trace, or a list such as \"info,pinion=debug\""), Value(r#""info""#), Live),
        key("log", "slow_query", Duration("0s", "1h"), Said("none is logged"), Live),

        key("metrics", "listen", Text(ADDRESS), Required, Restart),

        key("admin", "listen", Text(ADMIN_ADDRESS), Required, Restart),
        key("admin", "token", Table("{ file = \"…\" } or { env = \"…\" }"), Said("none; a TCP address needs one"), Restart),

        key("admin.token", "file", Text("the path of a file with 16 to 512 printable ASCII characters"), Said("none"), Restart),
        key("admin.token", "env", Text("the name of an environment variable with 16 to 512 printable ASCII characters"), Said("none"), Restart),

        key("plugins", "cache_directory", Text("the path of a directory that is ours alone; made when its parent is there"), Said("plugins are compiled at each start"), Restart),
        key("plugins", "event_queue", Integer(16, 1_000_000), Value("8192"), Restart),

        key("audit", "file", Text("the path of a file, or \"stdout\""), Required, Restart),
        key("audit", "rotate_bytes", Integer(65_536, 1 << 40), Value("104857600"), Restart),
        key("audit", "keep", Integer(0, 1_000), Value("10"), Restart),
        key("audit", "queue", Integer(1, 1_000_000), Value("10000"), Restart),
        key("audit", "when_full", Word(allowed_words::<WhenFull>), Value(r#""block""#), Restart),

        key("proxy", "name", Text(NAME), Required, Restart),
        key("proxy", "engine_family", Word(allowed_words::<EngineFamily>), Required, Restart),
        key("proxy", "require_tls", Boolean, Value("false"), Live),
        key("proxy", "idle_client_timeout", Duration("1s", "8h"), Value(r#""30m""#), Live),
        key("proxy", "max_client_lifetime", Duration("1s", "365d"), Value(r#""24h""#), Live),
        key("proxy", "handshake_timeout", Duration("100ms", "10m"), Value(r#""10s""#), Live),
        key("proxy", "max_client_connections", COUNT, Value("10000"), Live),
        key("proxy", "max_unauthenticated", COUNT, Value("1000"), Live),
        key("proxy", "failed_logins_per_minute", Integer(0, 1_000_000), Value("60"), Live),
        key("proxy", "profile", Word(allowed_words::<Profile>), Value(r#""smart""#), Live),
        key("proxy", "server_version", Text("1 to 64 printable ASCII characters, for MySQL only"), Said("the server's own"), Live),
        key("proxy", "force_full_authentication", Boolean, Value("false"), Live),
        key("proxy", "tls", Table("{ certificate = \"…\", key = \"…\" }"), Said("no TLS is offered"), Live),
        key("proxy", "auth", Tables("one or more [[proxy.auth]]"), Required, Live),
        key("proxy", "pool", Table("a table [proxy.pool]"), Said("its defaults"), Below),
        key("proxy", "target", Tables("one or more [[proxy.target]]"), Required, Restart),
        key("proxy", "endpoint", Tables("one or more [[proxy.endpoint]]"), Required, Restart),
        key("proxy", "monitor", Table("{ username = \"…\", database = \"…\" }"), Said("its defaults"), Below),
        key("proxy", "default_auth_scheme", Later("IAM authentication"), Said("none"), Restart),
        key("proxy", "plugin", Tables("any number of [[proxy.plugin]]"), Said("none"), Live),

        key("proxy.tls", "certificate", Text("the path of a PEM file with the chain, leaf first"), Required, Live),
        key("proxy.tls", "key", Text("the path of a PEM file with the certificate's private key"), Required, Live),

        key("proxy.auth", "username", Text(PG_NAME), Required, Live),
        key("proxy.auth", "secret", Table("{ file = \"…\" } or { env = \"…\" }"), Required, Live),
        key("proxy.auth", "client_password_auth_type", Word(allowed_words::<ClientAuthType>), Said("`\"POSTGRES_SCRAM_SHA_256\"`, for MySQL `\"MYSQL_CACHING_SHA2_PASSWORD\"`"), Live),
        key("proxy.auth", "iam_auth", Later("IAM authentication"), Said("none"), Restart),

        key("proxy.auth.secret", "file", Text("the path of a file with JSON: { \"username\": \"…\", \"password\": \"…\" }"), Said("none"), Live),
        key("proxy.auth.secret", "env", Text("the name of an environment variable with JSON: { \"username\": \"…\", \"password\": \"…\" }"), Said("none"), Live),
        key("proxy.auth.secret", "aws", Later("AWS Secrets Manager"), Said("none"), Live),

        key("proxy.pool", "max_connections_percent", Integer(1, 100), Value("100"), Live),
        key("proxy.pool", "max_idle_connections_percent", Text("0 to max_connections_percent"), Said("half of max_connections_percent"), Live),
        key("proxy.pool", "connection_borrow_timeout", Duration("0s", "1h"), Value(r#""120s""#), Live),
        key("proxy.pool", "max_pinned_percent", Integer(1, 100), Said("80, in profile rds 100"), Live),
        key("proxy.pool", "max_carried_table_bytes", Integer(0, 524_288), Value("262144"), Live),
        key("proxy.pool", "session_pinning_filters", Text("a list that is empty or has \"EXCLUDE_VARIABLE_SETS\""), Value("[]"), Live),
        key("proxy.pool", "init_query", Text("SQL text, no NUL; empty is none"), Value(r#""""#), Live),
        key("proxy.pool", "max_server_lifetime", Duration("1s", "365d"), Value(r#""24h""#), Live),
        key("proxy.pool", "idle_server_timeout", Duration("1s", "365d"), Value(r#""5m""#), Live),
        key("proxy.pool", "max_prepared_statements", Integer(1, 10_000), Value("500"), Live),

        key("proxy.target", "address", Text("a host and a port such as \"db1.internal:5432\" or \"[::1]:5432\""), Required, Restart),
        key("proxy.target", "tls", Word(allowed_words::<TlsMode>), Said("`\"verify-full\"`, on loopback `\"preferred\"`"), Live),
        key("proxy.target", "ca", Text("the path of a PEM file with the trusted roots"), Said("the system's roots"), Live),

        key("proxy.endpoint", "name", Text(NAME), Required, Restart),
        key("proxy.endpoint", "listen", Text(ADDRESS), Required, Restart),
        key("proxy.endpoint", "target_role", Word(allowed_words::<TargetRole>), Value(r#""READ_WRITE""#), Restart),
        key("proxy.endpoint", "allow", Text("a list of networks or addresses such as \"10.0.0.0/8\", \"2001:db8::1\""), Value("[]"), Live),

        key("proxy.plugin", "name", Text(NAME), Required, Live),
        key("proxy.plugin", "wasm", Text("the path of a WebAssembly file"), Required, Live),
        key("proxy.plugin", "sha256", Text("64 hexadecimal digits"), Said("any file is taken"), Live),
        key("proxy.plugin", "grants", Text("a list of \"log\", \"metrics\", \"store\", \"clock\" and, with [audit], \"audit\""), Value("[]"), Live),
        key("proxy.plugin", "on_failure", Text("\"open\" or \"closed\", or a table of those by hook such as { on-query = \"closed\" }"), Value(r#""open""#), Live),
        key("proxy.plugin", "config", Free("a table; what may stand in it is the plugin's affair"), Value("{}"), Live),
        key("proxy.plugin", "deadline", Duration("1ms", "10s"), Value(r#""5ms""#), Live),
        key("proxy.plugin", "events_deadline", Duration("10ms", "1m"), Value(r#""1s""#), Live),
        key("proxy.plugin", "memory_bytes", Integer(1 << 20, crate::plugin::MAX_MEMORY_BYTES), Value("16777216"), Live),
        key("proxy.plugin", "store_bytes", Integer(1_024, 1 << 30), Value("1048576"), Live),
        key("proxy.plugin", "log_lines_per_second", Integer(0, 100_000), Value("100"), Live),
        key("proxy.plugin", "retry_after", Duration("1s", "1d"), Value(r#""60s""#), Live),
        key("proxy.plugin", "vectors", Text("the path of a TOML file with test vectors"), Said("the plugin's own alone"), Live),
        key("proxy.plugin", "shadow", Text("the path of a WebAssembly file"), Said("none"), Live),

        key("proxy.monitor", "username", Text("the username of one [[proxy.auth]]"), Said("the first [[proxy.auth]]"), Restart),
        key("proxy.monitor", "database", Text(PG_NAME), Said("`\"postgres\"`, for MySQL none"), Restart),
    ];
    ALL
};
