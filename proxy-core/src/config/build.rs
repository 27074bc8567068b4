//! Makes a [`Config`] of the TOML tree and finds the clashes that no single key shows.

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

use ipnet::IpNet;
use rustls::pki_types::ServerName;
use toml::de::{DeTable, DeValue};
use tracing_subscriber::filter::{EnvFilter, LevelFilter};

use super::{
    AdminConfig, AdminListen, AuditConfig, AuditSink, AuthConfig, ClientAuthType, Config, ConfigErrors,
    EndpointConfig, EngineFamily, Env, FailureMode, Grants, LogConfig, LogFormat, MetricsConfig, OnFailure,
    PluginConfig, PluginsConfig, PoolConfig, Profile, ProxyConfig, SecretSource, ServerTlsConfig,
    TargetConfig, TargetRole, TlsMode, TokenSource, WhenFull,
    files::{self, TlsFault},
    reader::{Document, Section, boolean, duration, integer, integer_in, json, refuse_repeats, text, word},
    schema::Key,
};

/// Checks `text` whole.
///
/// Each reading function returns `None` after it has noted a refusal, so that the others still run: values
/// are read first, all of them, and the struct is put together last.
pub(super) fn config(text: &str, file: &Path, base_dir: &Path, env: Env<'_>) -> Result<Config, ConfigErrors> {
    let document = Document::new(text, file, base_dir, env);
    let table = DeTable::parse(text).map_err(|error| document.syntax_error(&error))?;
    let config = whole(&Section::root(&document, table.get_ref()));
    let errors = document.errors();
    match config {
        Some(config) if errors.messages.is_empty() => Ok(config),
        _ => Err(errors),
    }
}

fn whole(root: &Section<'_>) -> Option<Config> {
    let worker_threads = root.optional("worker_threads", integer);
    let drain_timeout = root.get("drain_timeout", duration);
    let log = root.table("log").and_then(|section| log(&section));
    let metrics = if root.has("metrics") {
        root.table("metrics").and_then(|section| metrics(&section)).map(Some)
    } else {
        Some(None)
    };
    let admin = if root.has("admin") {
        root.table("admin").and_then(|section| admin(&section)).map(Some)
    } else {
        Some(None)
    };
    let plugins = root.table("plugins").and_then(|section| plugins(&section));
    let audit = if root.has("audit") {
        root.table("audit").and_then(|section| audit(&section)).map(Some)
    } else {
        Some(None)
    };
    let sections = root.tables("proxy");
    refuse_repeats(&sections, "name");
    let proxies = all(&sections, |section| proxy(section, root.has("audit")));
    Some(Config {
        worker_threads: worker_threads?,
        drain_timeout: drain_timeout?,
        log: log?,
        metrics: metrics?,
        admin: admin?,
        plugins: plugins?,
        audit: audit?,
        proxies: proxies?,
    })
}

fn log(section: &Section<'_>) -> Option<LogConfig> {
    let format = section.get("format", word::<LogFormat>);
    let level = section.get("level", |key, value| level(text(key, value)?));
    let slow_query = section.optional("slow_query", duration);
    Some(LogConfig { format: format?, level: level?, slow_query: slow_query? })
}

fn metrics(section: &Section<'_>) -> Option<MetricsConfig> {
    let listen = listen(section);
    Some(MetricsConfig { listen: listen? })
}

fn admin(section: &Section<'_>) -> Option<AdminConfig> {
    let listen = section.get("listen", |key, value| admin_address(section, &text(key, value)?));
    let token = if section.has("token") {
        section.table("token").and_then(|section| token(&section)).map(Some)
    } else {
        Some(None)
    };
    if let Some(AdminListen::Tcp(address)) = listen {
        section.claim("listen", address);
        if !section.has("token") {
            let allowed = "token = { file = \"…\" } or { env = \"…\" }, or a Unix socket";
            section.refuse("listen", "would let in anyone on this machine, since there is no token", allowed);
        }
    }
    Some(AdminConfig { listen: listen?, token: token? })
}

fn admin_address(section: &Section<'_>, given: &str) -> Result<AdminListen, String> {
    match given.strip_prefix("unix:") {
        Some("") => Err("names no socket".to_owned()),
        Some(path) if path.contains('\0') => Err("has a NUL".to_owned()),
        Some(path) => Ok(AdminListen::Unix(section.document.base_dir.join(path))),
        None => match given.parse::<SocketAddr>() {
            Ok(address) if address.ip().is_loopback() => Ok(AdminListen::Tcp(address)),
            Ok(_) => Err(format!(
                "{given:?} is beyond loopback, and TLS for this listener is not in this build yet"
            )),
            Err(_) => Err(format!("{given:?} is not an address")),
        },
    }
}

fn token(section: &Section<'_>) -> Option<TokenSource> {
    match (section.has("file"), section.has("env")) {
        (true, false) => {
            let file = path(section, "file")?;
            if let Err(what) = files::read_token_file(&file) {
                refuse_file(section, "file", &what);
            }
            Some(TokenSource::File(file))
        }
        (false, true) => {
            let variable = section.get("env", |key, value| variable(text(key, value)?))?;
            let found = (section.document.env)(&variable);
            let read = found
                .map_or(Err("is not set".to_owned()), |value| files::read_token(value.as_encoded_bytes()));
            if let Err(what) = read {
                refuse_file(section, "env", &what);
            }
            Some(TokenSource::Env(variable))
        }
        (some, _) => {
            let what = if some { "names more than one token" } else { "names no token" };
            section.refuse_table(what, "{ file = \"…\" } or { env = \"…\" }");
            None
        }
    }
}

fn plugins(section: &Section<'_>) -> Option<PluginsConfig> {
    let cache_directory = optional_path(section, "cache_directory");
    let event_queue = section.get("event_queue", integer);
    Some(PluginsConfig { cache_directory: cache_directory?, event_queue: event_queue? })
}

fn audit(section: &Section<'_>) -> Option<AuditConfig> {
    let file = section.get("file", text);
    let sink = match file.as_deref() {
        Some("stdout") => Some(AuditSink::Stdout),
        Some(_) => path(section, "file").map(AuditSink::File),
        None => None,
    };
    let rotate_bytes = section.get("rotate_bytes", integer);
    let keep = section.get("keep", integer);
    let queue = section.get("queue", integer);
    let when_full = section.get("when_full", word::<WhenFull>);
    Some(AuditConfig {
        sink: sink?,
        rotate_bytes: rotate_bytes?,
        keep: keep?,
        queue: queue?,
        when_full: when_full?,
    })
}

fn plugin(section: &Section<'_>, has_audit: bool) -> Option<PluginConfig> {
    let name = section.get("name", name);
    let wasm = plugin_file(section, "wasm");
    let sha256 = section.optional("sha256", |key, value| sha256(&text(key, value)?));
    let grants = grants(section, has_audit);
    let on_failure = section.get("on_failure", |_, value| on_failure(value));
    let config = section.get("config", json);
    let deadline = section.get("deadline", duration);
    let events_deadline = section.get("events_deadline", duration);
    let memory_bytes = section.get("memory_bytes", integer);
    let store_bytes = section.get("store_bytes", integer);
    let log_lines_per_second = section.get("log_lines_per_second", integer);
    let retry_after = section.get("retry_after", duration);
    let file = |key| if section.has(key) { plugin_file(section, key).map(Some) } else { Some(None) };
    let (vectors, shadow) = (file("vectors"), file("shadow"));
    Some(PluginConfig {
        name: name?,
        wasm: wasm?,
        sha256: sha256?,
        grants: grants?,
        on_failure: on_failure?,
        config: config?,
        deadline: deadline?,
        events_deadline: events_deadline?,
        memory_bytes: memory_bytes?,
        store_bytes: store_bytes?,
        log_lines_per_second: log_lines_per_second?,
        retry_after: retry_after?,
        vectors: vectors?,
        shadow: shadow?,
    })
}

/// A path that leads to a file that can be read. What is in it is found out when it is loaded.
fn plugin_file(section: &Section<'_>, key: &str) -> Option<PathBuf> {
    let path = path(section, key)?;
    if let Err(what) = files::check_readable(&path) {
        refuse_file(section, key, &what);
    }
    Some(path)
}

fn sha256(given: &str) -> Result<[u8; 32], String> {
    let mut hash = [0; 32];
    let digits = given.len() == 64 && given.bytes().all(|byte| byte.is_ascii_hexdigit());
    if !digits {
        return Err(format!("{given:?} is not a SHA-256"));
    }
    for (at, byte) in hash.iter_mut().enumerate() {
        *byte =
            u8::from_str_radix(&given[2 * at..2 * at + 2], 16).expect("hexadecimal digits, looked at above");
    }
    Ok(hash)
}

fn grants(section: &Section<'_>, has_audit: bool) -> Option<Grants> {
    let mut grants = Grants::default();
    for grant in section.list("grants", |grant| match grant {
        "audit" if !has_audit => Err("\"audit\" has no use without [audit]".to_owned()),
        "log" | "metrics" | "store" | "clock" | "audit" => Ok(grant.to_owned()),
        other => Err(format!("{other:?} is not known")),
    })? {
        match grant.as_str() {
            "log" => grants.log = true,
            "metrics" => grants.metrics = true,
            "store" => grants.store = true,
            "clock" => grants.clock = true,
            _ => grants.audit = true,
        }
    }
    Some(grants)
}

fn on_failure(value: &DeValue<'_>) -> Result<OnFailure, String> {
    let mode = |value: &DeValue<'_>| match value.as_str() {
        Some("open") => Ok(FailureMode::Open),
        Some("closed") => Ok(FailureMode::Closed),
        Some(other) => Err(format!("{other:?} is not known")),
        None => Err(format!("is a {}, not a string or a table of strings", value.type_str())),
    };
    let Some(table) = value.as_table() else { return mode(value).map(OnFailure::all) };
    let mut modes = OnFailure::all(FailureMode::Open);
    for (hook, value) in table.iter() {
        let of_hook = match hook.get_ref().as_ref() {
            "on-query" => &mut modes.query,
            "on-route" => &mut modes.route,
            "on-pin" => &mut modes.pin,
            other => return Err(format!("{other:?} is not a hook that can fail")),
        };
        *of_hook = mode(value.get_ref())?;
    }
    Ok(modes)
}

fn proxy(section: &Section<'_>, has_audit: bool) -> Option<ProxyConfig> {
    let name = section.get("name", name);
    let engine_family = section.get("engine_family", word::<EngineFamily>);
    let require_tls = section.get("require_tls", boolean);
    let idle_client_timeout = section.get("idle_client_timeout", duration);
    let max_client_lifetime = section.get("max_client_lifetime", duration);
    let handshake_timeout = section.get("handshake_timeout", duration);
    let max_client_connections = section.get("max_client_connections", integer);
    let max_unauthenticated = section.get("max_unauthenticated", integer);
    let failed_logins_per_minute = section.get("failed_logins_per_minute", integer);
    let profile = section.get("profile", word::<Profile>);
    let server_version = section.optional("server_version", |key, value| version(text(key, value)?));
    let force_full_authentication = section.get("force_full_authentication", boolean);
    if engine_family == Some(EngineFamily::Postgresql) {
        for key in ["server_version", "force_full_authentication"].into_iter().filter(|key| section.has(key))
        {
            section.refuse(key, "is for engine_family = \"MYSQL\" only", "leave it out");
        }
    }
    let tls = if section.has("tls") {
        section.table("tls").and_then(|section| server_tls(&section)).map(Some)
    } else {
        Some(None)
    };
    if require_tls == Some(true) && !section.has("tls") {
        let allowed = "false, or a certificate in tls = { certificate = \"…\", key = \"…\" }";
        section.refuse("require_tls", "is true, but without tls no client could connect", allowed);
    }
    let auth_sections = section.tables("auth");
    refuse_repeats(&auth_sections, "username");
    let auth = all(&auth_sections, |section| auth(section, engine_family, require_tls));
    let pool = section.table("pool").and_then(|section| pool(&section));
    let target_sections = section.tables("target");
    refuse_repeats(&target_sections, "address");
    let targets = all(&target_sections, target);
    let endpoint_sections = section.tables("endpoint");
    refuse_repeats(&endpoint_sections, "name");
    let endpoints = all(&endpoint_sections, endpoint);
    let monitor =
        section.table("monitor").and_then(|section| monitor(&section, engine_family, &auth_sections));
    let (monitor, monitor_database) = monitor.unzip();
    let plugin_sections = if section.has("plugin") { section.tables("plugin") } else { Vec::new() };
    refuse_repeats(&plugin_sections, "name");
    let plugins = all(&plugin_sections, |section| plugin(section, has_audit));
    Some(ProxyConfig {
        name: name?,
        engine_family: engine_family?,
        require_tls: require_tls?,
        idle_client_timeout: idle_client_timeout?,
        max_client_lifetime: max_client_lifetime?,
        handshake_timeout: handshake_timeout?,
        max_client_connections: max_client_connections?,
        max_unauthenticated: max_unauthenticated?,
        failed_logins_per_minute: failed_logins_per_minute?,
        profile: profile?,
        server_version: server_version?,
        force_full_authentication: force_full_authentication?,
        tls: tls?,
        auth: auth?,
        pool: pool?,
        targets: targets?,
        endpoints: endpoints?,
        monitor: monitor?,
        monitor_database: monitor_database?,
        plugins: plugins?,
    })
}

fn server_tls(section: &Section<'_>) -> Option<ServerTlsConfig> {
    let certificate = path(section, "certificate");
    let key = path(section, "key");
    let (certificate, key) = (certificate?, key?);
    for fault in files::check_server_tls(&certificate, &key).err().into_iter().flatten() {
        match fault {
            TlsFault::Certificate(what) => refuse_file(section, "certificate", &what),
            TlsFault::Key(what) => refuse_file(section, "key", &what),
        }
    }
    Some(ServerTlsConfig { certificate, key })
}

fn auth(
    section: &Section<'_>,
    family: Option<EngineFamily>,
    require_tls: Option<bool>,
) -> Option<AuthConfig> {
    let username = section.get("username", pg_name);
    let secret = section.table("secret").and_then(|secret| self::secret(&secret, username.as_deref()));
    let key = "client_password_auth_type";
    let client_password_auth_type = section.optional(key, word::<ClientAuthType>);
    if let Some(Some(method)) = client_password_auth_type {
        let given = section.raw(key).unwrap_or_default();
        if family.is_some_and(|family| family != method.family()) {
            section.refuse_value(key, &format!("{given:?} is not for this engine_family"));
        } else if method.is_clear() && require_tls == Some(false) {
            let what = format!("{given:?} would send passwords unencrypted without require_tls = true");
            section.refuse_value(key, &what);
        }
    }
    Some(AuthConfig {
        username: username?,
        secret: secret?,
        client_password_auth_type: match client_password_auth_type? {
            Some(method) => method,
            None => ClientAuthType::of(family?),
        },
    })
}

fn secret(section: &Section<'_>, username: Option<&str>) -> Option<SecretSource> {
    match (section.has("file"), section.has("env"), section.has("aws")) {
        (true, false, false) => {
            let file = path(section, "file")?;
            // Without a username there is nothing to compare with, and that has been refused already.
            if let Some(Err(what)) = username.map(|username| files::check_secret_file(&file, username)) {
                refuse_file(section, "file", &what);
            }
            Some(SecretSource::File(file))
        }
        (false, true, false) => {
            let variable = section.get("env", |key, value| variable(text(key, value)?))?;
            let checked = match (section.document.env)(&variable) {
                None => Err("is not set".to_owned()),
                Some(json) => {
                    username.map_or(Ok(()), |name| files::check_secret(json.as_encoded_bytes(), name))
                }
            };
            if let Err(what) = checked {
                refuse_file(section, "env", &what);
            }
            Some(SecretSource::Env(variable))
        }
        (false, false, true) => None,
        (false, false, false) => {
            section.refuse_table("names no secret", "{ file = \"…\" } or { env = \"…\" }");
            None
        }
        _ => {
            section.refuse_table("names more than one secret", "{ file = \"…\" } or { env = \"…\" }");
            None
        }
    }
}

fn pool(section: &Section<'_>) -> Option<PoolConfig> {
    let max_connections_percent: Option<u8> = section.get("max_connections_percent", integer);
    let most = max_connections_percent.unwrap_or(100);
    let max_idle_connections_percent =
        section.optional("max_idle_connections_percent", |_, value| integer_in(value, 0, most.into()));
    let connection_borrow_timeout = section.get("connection_borrow_timeout", duration);
    let max_pinned_percent = section.optional("max_pinned_percent", |_, value| integer_in(value, 1, 100));
    let max_carried_table_bytes = section.get("max_carried_table_bytes", integer);
    let filters = section.list("session_pinning_filters", |filter| match filter {
        "EXCLUDE_VARIABLE_SETS" => Ok(()),
        other => Err(format!("{other:?} is not known")),
    });
    let init_query = section.get("init_query", |key, value| match text(key, value)? {
        sql if sql.contains('\0') => Err("has a NUL".to_owned()),
        sql => Ok(sql),
    });
    let max_server_lifetime = section.get("max_server_lifetime", duration);
    let idle_server_timeout = section.get("idle_server_timeout", duration);
    let max_prepared_statements = section.get("max_prepared_statements", integer);
    Some(PoolConfig {
        max_connections_percent: max_connections_percent?,
        max_idle_connections_percent: match max_idle_connections_percent? {
            Some(percent) => u8::try_from(percent).expect("a percentage fits"),
            None => most / 2,
        },
        connection_borrow_timeout: connection_borrow_timeout?,
        max_pinned_percent: max_pinned_percent?
            .map(|percent| u8::try_from(percent).expect("a percentage fits")),
        max_carried_table_bytes: max_carried_table_bytes?,
        exclude_variable_sets: !filters?.is_empty(),
        init_query: init_query?,
        max_server_lifetime: max_server_lifetime?,
        idle_server_timeout: idle_server_timeout?,
        max_prepared_statements: max_prepared_statements?,
    })
}

fn target(section: &Section<'_>) -> Option<TargetConfig> {
    let address = section.get("address", |key, value| host_and_port(&text(key, value)?));
    let tls = section.optional("tls", word::<TlsMode>);
    let ca = section.has("ca").then(|| path(section, "ca"));
    if let Some(Some(ca)) = &ca
        && let Err(what) = files::check_roots(ca)
    {
        refuse_file(section, "ca", &what);
    }
    let (host, port) = address?;
    let tls = tls?.unwrap_or(if is_loopback(&host) { TlsMode::Preferred } else { TlsMode::VerifyFull });
    if ca.is_some() && !matches!(tls, TlsMode::VerifyCa | TlsMode::VerifyFull) {
        let mode = match (section.raw("tls"), tls) {
            (Some(mode), _) => format!("{mode:?}"),
            (None, _) => "\"preferred\", its default on loopback,".to_owned(),
        };
        let what = format!("has no use, because tls = {mode} verifies nothing");
        section.refuse("ca", &what, "with tls = \"verify-ca\" or \"verify-full\" only");
    }
    let ca = match ca {
        Some(ca) => Some(ca?),
        None => None,
    };
    Some(TargetConfig { host, port, tls, ca })
}

fn endpoint(section: &Section<'_>) -> Option<EndpointConfig> {
    let name = section.get("name", name);
    let listen = listen(section);
    let target_role = section.get("target_role", word::<TargetRole>);
    let allow = section.list("allow", network);
    Some(EndpointConfig { name: name?, listen: listen?, target_role: target_role?, allow: allow? })
}

/// Index of the monitor's user among `auth`, and its database.
fn monitor(
    section: &Section<'_>,
    family: Option<EngineFamily>,
    auth: &[Section<'_>],
) -> Option<(usize, String)> {
    let username = section.optional("username", text);
    let database = section.optional("database", pg_name);
    let index = match username? {
        None => 0,
        Some(username) => {
            let found = auth.iter().position(|auth| auth.raw("username") == Some(&username));
            let known: Vec<_> =
                auth.iter().filter_map(|auth| auth.raw("username")).map(|name| format!("{name:?}")).collect();
            // With no username known at all, that has been refused and says enough.
            if found.is_none() && !known.is_empty() {
                let what = format!("no [[proxy.auth]] has the username {username:?}");
                section.refuse("username", &what, &known.join(", "));
            }
            found?
        }
    };
    let database = match (database?, family) {
        (Some(database), _) => database,
        (None, Some(EngineFamily::Mysql)) => String::new(),
        (None, _) => "postgres".to_owned(),
    };
    Some((index, database))
}

/// Reads every section, then gives all or nothing.
fn all<'a, T>(sections: &[Section<'a>], read: impl Fn(&Section<'a>) -> Option<T>) -> Option<Vec<T>> {
    sections.iter().map(read).collect::<Vec<_>>().into_iter().collect()
}

/// `listen`, claimed so that nothing else takes it.
fn listen(section: &Section<'_>) -> Option<SocketAddr> {
    let address = section.get("listen", |key, value| {
        let given = text(key, value)?;
        given.parse().map_err(|_| format!("{given:?} is not an address"))
    })?;
    section.claim("listen", address);
    Some(address)
}

/// A path that may be left out.
fn optional_path(section: &Section<'_>, key: &str) -> Option<Option<PathBuf>> {
    if section.has(key) { path(section, key).map(Some) } else { Some(None) }
}

/// A path, made relative to the file's directory.
fn path(section: &Section<'_>, key: &str) -> Option<PathBuf> {
    section.get(key, |key, value| match text(key, value)? {
        given if given.is_empty() => Err("is empty".to_owned()),
        given if given.contains('\0') => Err("has a NUL".to_owned()),
        given => Ok(section.document.base_dir.join(given)),
    })
}

/// Refuses what a path or a variable leads to, and shows the path as the file has it.
fn refuse_file(section: &Section<'_>, key: &str, what: &str) {
    let given = section.raw(key).unwrap_or_default();
    section.refuse_value(key, &format!("{given:?} {what}"));
}

/// RDS Proxy's names: `[a-zA-Z](?:-?[a-zA-Z0-9]+)*`, 1 to 63 long.
fn name(key: &Key, value: &DeValue<'_>) -> Result<String, String> {
    let given = text(key, value)?;
    let parts = given
        .split('-')
        .all(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric()));
    let letter_first = given.starts_with(|first: char| first.is_ascii_alphabetic());
    if parts && letter_first && given.len() <= 63 {
        Ok(given)
    } else {
        Err(format!("{given:?} is not a name"))
    }
}

/// A version that fits into a greeting.
fn version(given: String) -> Result<String, String> {
    match given.len() {
        1..=64 if given.bytes().all(|byte| (b' '..=b'~').contains(&byte)) => Ok(given),
        _ => Err(format!("{given:?} is no version")),
    }
}

/// A user or database: the server cuts longer names off, so that they would never match.
fn pg_name(key: &Key, value: &DeValue<'_>) -> Result<String, String> {
    match text(key, value)? {
        given if given.is_empty() => Err("is empty".to_owned()),
        given if given.len() > 63 => Err(format!("is {} bytes long", given.len())),
        given if given.contains('\0') => Err("has a NUL".to_owned()),
        given => Ok(given),
    }
}

fn variable(given: String) -> Result<String, String> {
    if given.is_empty() || given.contains(['=', '\0']) {
        return Err(format!("{given:?} cannot be the name of a variable"));
    }
    Ok(given)
}

/// A `tracing` filter. A word alone must be a level: `tracing` would take it as a target at its most talkative.
fn level(given: String) -> Result<String, String> {
    let wrong = |part: &str| {
        (part.is_empty() || part.parse::<LevelFilter>().is_err()) && !part.contains(['=', '[', ']', '{', '}'])
    };
    if let Some(part) = given.split(',').find(|part| wrong(part)) {
        return Err(format!("{part:?} is not a level"));
    }
    match EnvFilter::builder().parse(&given) {
        Ok(_) => Ok(given),
        Err(_) => Err(format!("{given:?} is not a filter")),
    }
}

/// Host without brackets, and port.
fn host_and_port(given: &str) -> Result<(String, u16), String> {
    let (host, port) = given.rsplit_once(':').ok_or_else(|| format!("{given:?} has no port"))?;
    let port =
        port.parse().ok().filter(|port| *port != 0).ok_or_else(|| format!("{given:?} has no valid port"))?;
    let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let valid = match bracketed {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !host.contains(':') && ServerName::try_from(host).is_ok(),
    };
    if !valid {
        return Err(format!("{given:?} has no valid host"));
    }
    Ok((bracketed.unwrap_or(host).to_owned(), port))
}

fn is_loopback(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost")
        || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// A network, or an address alone as the network of just that address.
fn network(given: &str) -> Result<IpNet, String> {
    let address = given.parse::<IpAddr>().map(IpNet::from);
    address.or_else(|_| given.parse::<IpNet>()).map_err(|_| format!("{given:?} is not a network"))
}
