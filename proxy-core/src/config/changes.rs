//! What a reload changes, and what it has to leave.

use super::{
    AdminConfig, AuditConfig, AuthConfig, ClientAuthType, Config, EndpointConfig, LogConfig, PluginConfig,
    PluginsConfig, PoolConfig, ProxyConfig, ServerTlsConfig, TargetConfig,
    reader::{join, step},
    schema::{Reload, key},
};

/// Settings that differ between two configurations, as dotted key paths with the names of proxies, users
/// and endpoints in them, such as `proxy.orders.pool.init_query`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// Can be applied while clients are connected.
    pub live: Vec<String>,
    /// Need a restart.
    pub restart: Vec<String>,
}

impl Config {
    /// Names every setting in which `new` differs. Proxies, users and endpoints are matched by name, so
    /// their order does not matter; one that comes or goes is named as a whole.
    pub fn changes(&self, new: &Self) -> Changes {
        // Taken apart in full here and below, so that a new field cannot be forgotten.
        let Self { worker_threads, drain_timeout, log, metrics, admin, plugins, audit, proxies } = self;
        let LogConfig { format, level, slow_query } = log;
        let mut changes = Changes::default();
        changes.compare("", "", "worker_threads", worker_threads, &new.worker_threads);
        changes.compare("", "", "drain_timeout", drain_timeout, &new.drain_timeout);
        changes.compare("log", "log", "format", format, &new.log.format);
        changes.compare("log", "log", "level", level, &new.log.level);
        changes.compare("log", "log", "slow_query", slow_query, &new.log.slow_query);
        changes.compare("metrics", "metrics", "listen", metrics, &new.metrics);
        changes.admin(admin.as_ref(), new.admin.as_ref());
        let PluginsConfig { cache_directory, event_queue } = plugins;
        changes.compare(
            "plugins",
            "plugins",
            "cache_directory",
            cache_directory,
            &new.plugins.cache_directory,
        );
        changes.compare("plugins", "plugins", "event_queue", event_queue, &new.plugins.event_queue);
        changes.audit(audit.as_ref(), new.audit.as_ref());
        for (path, old, new) in matched("proxy", proxies, &new.proxies, |proxy| &proxy.name) {
            match (old, new) {
                (Some(old), Some(new)) => changes.proxy(&path, old, new),
                _ => changes.note("", "proxy", path),
            }
        }
        changes
    }

    /// What runs after a reload without a restart: `new`, with everything that [`Config::changes`] puts
    /// under `restart` left as it is in `self`. Its `changes` against `self` are all live.
    pub fn reloaded(&self, new: &Self) -> Self {
        let reload = |old: &ProxyConfig| match new.proxies.iter().find(|new| new.name == old.name) {
            Some(new) => reloaded_proxy(old, new),
            None => old.clone(),
        };
        Self {
            worker_threads: self.worker_threads,
            drain_timeout: new.drain_timeout,
            log: LogConfig { format: self.log.format, ..new.log.clone() },
            metrics: self.metrics.clone(),
            admin: self.admin.clone(),
            plugins: self.plugins.clone(),
            audit: self.audit.clone(),
            proxies: self.proxies.iter().map(reload).collect(),
        }
    }
}

fn reloaded_proxy(old: &ProxyConfig, new: &ProxyConfig) -> ProxyConfig {
    if old.engine_family != new.engine_family {
        return old.clone();
    }
    let monitor = &old.auth[old.monitor];
    let mut auth = new.auth.clone();
    let position = auth.iter().position(|auth| auth.username == monitor.username);
    let position = position.unwrap_or_else(|| {
        let mut kept = monitor.clone();
        if !new.require_tls && kept.client_password_auth_type.is_clear() {
            kept.client_password_auth_type = ClientAuthType::of(old.engine_family);
        }
        auth.push(kept);
        auth.len() - 1
    });
    let endpoint = |old: &EndpointConfig| match new.endpoints.iter().find(|new| new.name == old.name) {
        Some(new) => EndpointConfig { allow: new.allow.clone(), ..old.clone() },
        None => old.clone(),
    };
    ProxyConfig {
        auth,
        targets: if same_addresses(old, new) { new.targets.clone() } else { old.targets.clone() },
        endpoints: old.endpoints.iter().map(endpoint).collect(),
        monitor: position,
        monitor_database: old.monitor_database.clone(),
        ..new.clone()
    }
}

/// How a target is trusted belongs to its address: the default depends on it.
fn same_addresses(old: &ProxyConfig, new: &ProxyConfig) -> bool {
    let address = |target: &TargetConfig| (target.host.clone(), target.port);
    old.targets.iter().map(address).eq(new.targets.iter().map(address))
}

impl Changes {
    fn proxy(&mut self, path: &str, old: &ProxyConfig, new: &ProxyConfig) {
        let ProxyConfig {
            name: _,
            engine_family,
            require_tls,
            idle_client_timeout,
            max_client_lifetime,
            handshake_timeout,
            max_client_connections,
            max_unauthenticated,
            failed_logins_per_minute,
            profile,
            server_version,
            force_full_authentication,
            tls,
            auth,
            pool,
            targets,
            endpoints,
            monitor,
            monitor_database,
            plugins,
        } = old;
        let section = "proxy";
        self.compare(section, path, "engine_family", engine_family, &new.engine_family);
        if *engine_family != new.engine_family {
            // Nothing else of it can be applied before the restart.
            return;
        }
        self.compare(section, path, "require_tls", require_tls, &new.require_tls);
        self.compare(section, path, "idle_client_timeout", idle_client_timeout, &new.idle_client_timeout);
        self.compare(section, path, "max_client_lifetime", max_client_lifetime, &new.max_client_lifetime);
        self.compare(section, path, "handshake_timeout", handshake_timeout, &new.handshake_timeout);
        self.compare(
            section,
            path,
            "max_client_connections",
            max_client_connections,
            &new.max_client_connections,
        );
        self.compare(section, path, "max_unauthenticated", max_unauthenticated, &new.max_unauthenticated);
        self.compare(
            section,
            path,
            "failed_logins_per_minute",
            failed_logins_per_minute,
            &new.failed_logins_per_minute,
        );
        self.compare(section, path, "profile", profile, &new.profile);
        self.compare(section, path, "server_version", server_version, &new.server_version);
        self.compare(
            section,
            path,
            "force_full_authentication",
            force_full_authentication,
            &new.force_full_authentication,
        );
        match (tls, &new.tls) {
            (Some(ServerTlsConfig { certificate, key }), Some(new)) => {
                let path = join(path, "tls");
                self.compare("proxy.tls", &path, "certificate", certificate, &new.certificate);
                self.compare("proxy.tls", &path, "key", key, &new.key);
            }
            (old, new) => self.compare(section, path, "tls", old, new),
        }
        let old_monitor = &auth[*monitor].username;
        for (path, old, new) in matched(&join(path, "auth"), auth, &new.auth, |auth| &auth.username) {
            match (old, new) {
                (Some(AuthConfig { username: _, secret, client_password_auth_type }), Some(new)) => {
                    let (section, client) = ("proxy.auth", "client_password_auth_type");
                    self.compare(section, &path, "secret", secret, &new.secret);
                    self.compare(
                        section,
                        &path,
                        client,
                        client_password_auth_type,
                        &new.client_password_auth_type,
                    );
                }
                // The monitor goes on as this user until the restart.
                (Some(old), None) if old.username == *old_monitor => self.restart.push(path),
                _ => self.note("proxy", "auth", path),
            }
        }
        self.pool(&join(path, "pool"), pool, &new.pool);
        self.targets(path, targets, new, same_addresses(old, new));
        for (path, old, new) in
            matched(&join(path, "endpoint"), endpoints, &new.endpoints, |endpoint| &endpoint.name)
        {
            match (old, new) {
                (Some(EndpointConfig { name: _, listen, target_role, allow }), Some(new)) => {
                    let section = "proxy.endpoint";
                    self.compare(section, &path, "listen", listen, &new.listen);
                    self.compare(section, &path, "target_role", target_role, &new.target_role);
                    self.compare(section, &path, "allow", allow, &new.allow);
                }
                _ => self.note("proxy", "endpoint", path),
            }
        }
        self.plugins(&join(path, "plugin"), plugins, &new.plugins);
        let path = join(path, "monitor");
        self.compare("proxy.monitor", &path, "username", old_monitor, &new.auth[new.monitor].username);
        self.compare("proxy.monitor", &path, "database", monitor_database, &new.monitor_database);
    }

    fn admin(&mut self, old: Option<&AdminConfig>, new: Option<&AdminConfig>) {
        let listen = |admin: &AdminConfig| admin.listen.clone();
        self.compare("admin", "admin", "listen", &old.map(listen), &new.map(listen));
        if let (Some(AdminConfig { listen: _, token }), Some(new)) = (old, new) {
            self.compare("admin", "admin", "token", token, &new.token);
        }
    }

    fn pool(&mut self, path: &str, old: &PoolConfig, new: &PoolConfig) {
        let PoolConfig {
            max_connections_percent,
            max_idle_connections_percent,
            connection_borrow_timeout,
            max_pinned_percent,
            max_carried_table_bytes,
            exclude_variable_sets,
            init_query,
            max_server_lifetime,
            idle_server_timeout,
            max_prepared_statements,
        } = old;
        let section = "proxy.pool";
        self.compare(
            section,
            path,
            "max_connections_percent",
            max_connections_percent,
            &new.max_connections_percent,
        );
        let idle = "max_idle_connections_percent";
        self.compare(section, path, idle, max_idle_connections_percent, &new.max_idle_connections_percent);
        let borrow = "connection_borrow_timeout";
        self.compare(section, path, borrow, connection_borrow_timeout, &new.connection_borrow_timeout);
        let pinned = "max_pinned_percent";
        self.compare(section, path, pinned, max_pinned_percent, &new.max_pinned_percent);
        let carried = "max_carried_table_bytes";
        self.compare(section, path, carried, max_carried_table_bytes, &new.max_carried_table_bytes);
        self.compare(
            section,
            path,
            "session_pinning_filters",
            exclude_variable_sets,
            &new.exclude_variable_sets,
        );
        self.compare(section, path, "init_query", init_query, &new.init_query);
        self.compare(section, path, "max_server_lifetime", max_server_lifetime, &new.max_server_lifetime);
        self.compare(section, path, "idle_server_timeout", idle_server_timeout, &new.idle_server_timeout);
        self.compare(
            section,
            path,
            "max_prepared_statements",
            max_prepared_statements,
            &new.max_prepared_statements,
        );
    }

    fn audit(&mut self, old: Option<&AuditConfig>, new: Option<&AuditConfig>) {
        let (old, new) = match (old, new) {
            (None, None) => return,
            (Some(old), Some(new)) => (old, new),
            _ => return self.note("audit", "file", "audit".to_owned()),
        };
        let AuditConfig { sink, rotate_bytes, keep, queue, when_full } = old;
        self.compare("audit", "audit", "file", sink, &new.sink);
        self.compare("audit", "audit", "rotate_bytes", rotate_bytes, &new.rotate_bytes);
        self.compare("audit", "audit", "keep", keep, &new.keep);
        self.compare("audit", "audit", "queue", queue, &new.queue);
        self.compare("audit", "audit", "when_full", when_full, &new.when_full);
    }

    fn plugins(&mut self, path: &str, old: &[PluginConfig], new: &[PluginConfig]) {
        let pairs = matched(path, old, new, |plugin| &plugin.name);
        let came_or_went = pairs.iter().any(|(_, old, new)| old.is_none() || new.is_none());
        for (path, old, new) in pairs {
            let (Some(old), Some(new)) = (old, new) else {
                self.note("proxy", "plugin", path);
                continue;
            };
            let PluginConfig {
                name: _,
                wasm,
                sha256,
                grants,
                on_failure,
                config,
                deadline,
                events_deadline,
                memory_bytes,
                store_bytes,
                log_lines_per_second,
                retry_after,
                vectors,
                shadow,
            } = old;
            let section = "proxy.plugin";
            self.compare(section, &path, "wasm", wasm, &new.wasm);
            self.compare(section, &path, "sha256", sha256, &new.sha256);
            self.compare(section, &path, "grants", grants, &new.grants);
            self.compare(section, &path, "on_failure", on_failure, &new.on_failure);
            self.compare(section, &path, "config", config, &new.config);
            self.compare(section, &path, "deadline", deadline, &new.deadline);
            self.compare(section, &path, "events_deadline", events_deadline, &new.events_deadline);
            self.compare(section, &path, "memory_bytes", memory_bytes, &new.memory_bytes);
            self.compare(section, &path, "store_bytes", store_bytes, &new.store_bytes);
            let lines = "log_lines_per_second";
            self.compare(section, &path, lines, log_lines_per_second, &new.log_lines_per_second);
            self.compare(section, &path, "retry_after", retry_after, &new.retry_after);
            self.compare(section, &path, "vectors", vectors, &new.vectors);
            self.compare(section, &path, "shadow", shadow, &new.shadow);
        }
        // Unlike users and endpoints, plugins are asked in their order.
        let names = |plugins: &[PluginConfig]| plugins.iter().map(|p| p.name.clone()).collect::<Vec<_>>();
        if !came_or_went && names(old) != names(new) {
            self.note("proxy", "plugin", path.to_owned());
        }
    }

    fn targets(&mut self, path: &str, old: &[TargetConfig], new: &ProxyConfig, same_addresses: bool) {
        let path = join(path, "target");
        if !same_addresses {
            return self.note("proxy.target", "address", join(&path, "address"));
        }
        for (at, (TargetConfig { host: _, port: _, tls, ca }, new)) in
            old.iter().zip(&new.targets).enumerate()
        {
            // Counted as the reader's messages do.
            let path = if at == 0 { path.clone() } else { format!("{path}[{}]", at + 1) };
            self.compare("proxy.target", &path, "tls", tls, &new.tls);
            self.compare("proxy.target", &path, "ca", ca, &new.ca);
        }
    }

    fn compare<T: PartialEq>(&mut self, section: &str, path: &str, name: &str, old: &T, new: &T) {
        if old != new {
            self.note(section, name, join(path, name));
        }
    }

    /// Puts `path` where the key's entry in the table says.
    fn note(&mut self, section: &str, name: &str, path: String) {
        match key(section, name).reload {
            Reload::Live => self.live.push(path),
            Reload::Restart => self.restart.push(path),
            Reload::Below => unreachable!("{section}.{name} is compared key by key"),
        }
    }
}

/// Pairs two lists by name: first what `old` has, in its order, then what only `new` has.
fn matched<'a, T>(
    path: &str,
    old: &'a [T],
    new: &'a [T],
    name: impl Fn(&T) -> &String,
) -> Vec<(String, Option<&'a T>, Option<&'a T>)> {
    let find = |list: &'a [T], wanted: &T| list.iter().find(|item| name(item) == name(wanted));
    let kept = old.iter().map(|item| (join(path, &step(name(item))), Some(item), find(new, item)));
    let added = new.iter().filter(|item| find(old, item).is_none());
    kept.chain(added.map(|item| (join(path, &step(name(item))), None, Some(item)))).collect()
}
