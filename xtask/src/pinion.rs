//! Builds, configures and starts the proxy.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use rustix::process::Signal;

use crate::{
    error::{Context, Result, failed},
    interrupt,
    process::{self, Service},
    temporary, workspace_root,
};

/// What one proxy in front of one server is told.
#[derive(Debug, Clone)]
pub(crate) struct Settings<'a> {
    /// What it is called in the configuration and in metrics.
    pub(crate) name: &'a str,
    /// `engine_family`.
    pub(crate) engine: &'static str,
    /// The only database user.
    pub(crate) user: &'a str,
    /// Its password.
    pub(crate) password: &'a str,
    /// `client_password_auth_type`.
    pub(crate) client_auth: &'a str,
    /// The server's port on 127.0.0.1.
    pub(crate) server_port: u16,
    /// Of the server's `max_connections`.
    pub(crate) percent: u32,
    /// Client connections at once.
    pub(crate) max_clients: u32,
    /// Certificate and key; with them clients have to use TLS, without there is no TLS on either side.
    pub(crate) certificate: Option<(&'a Path, &'a Path)>,
    /// Its last sections, such as `[[proxy.plugin]]`.
    pub(crate) more: String,
}

/// A running proxy.
#[derive(Debug)]
pub(crate) struct Pinion {
    /// Where clients of the first proxy connect, on 127.0.0.1.
    pub(crate) port: u16,
    /// Where clients of the others do.
    pub(crate) more_ports: Vec<u16>,
    /// Where `/metrics` is, on 127.0.0.1.
    pub(crate) metrics_port: u16,
    /// The file it was started with.
    pub(crate) config: PathBuf,
    service: Service,
}

/// Builds the release binary and tells where it is.
pub(crate) fn build() -> Result<PathBuf> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--release", "--locked", "--package", "pinion", "--bin", "pinion"]);
    process::run_shown(cargo.current_dir(workspace_root()?))?;
    // Beside our own build: TARGET/PROFILE/xtask, wherever the user's cargo keeps its target directory.
    let ours = std::env::current_exe().context("looking for our own program")?;
    let target = ours.ancestors().nth(2).map(Path::to_path_buf).unwrap_or_default();
    let binary = target.join("release/pinion");
    if binary.is_file() { Ok(binary) } else { failed(format!("cargo built no {}", binary.display())) }
}

impl Pinion {
    /// Writes config and secrets into `directory`, starts `binary` with them and waits until each proxy has a usable
    /// server.
    pub(crate) fn start(binary: &Path, directory: &Path, proxies: &[Settings<'_>]) -> Result<Self> {
        let metrics_port = process::free_port()?;
        let mut text = format!("[metrics]\nlisten = \"127.0.0.1:{metrics_port}\"\n");
        let mut ports = Vec::new();
        for settings in proxies {
            let Settings { name, user, password, .. } = settings;
            let secret = format!("{{\"username\": \"{user}\", \"password\": \"{password}\"}}\n");
            temporary::private_file(&directory.join(format!("secret-{name}.json")), &secret, None)?;
            let port = process::free_port()?;
            text += &proxy_text(settings, port);
            ports.push(port);
        }
        let config = directory.join("pinion.toml");
        temporary::private_file(&config, &text, None)?;
        let mut command = Command::new(binary);
        command.arg("--config").arg(&config).current_dir(directory);
        let service = Service::start("pinion", &mut command, directory.join("pinion.log"), Signal::TERM)?;
        if ports.is_empty() {
            return failed("Pinion needs a proxy to be");
        }
        let more_ports = ports.split_off(1);
        let mut pinion = Self { port: ports[0], more_ports, metrics_port, config, service };
        let ready = interrupt::poll(Duration::from_secs(20), Duration::from_millis(50), || {
            pinion.service.check()?;
            Ok(pinion.get("/readyz").ok())
        })?;
        match ready {
            Some(_) => Ok(pinion),
            None => failed(format!("Pinion was not ready within 20 s:\n{}", pinion.service.log_end())),
        }
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.service.pid()
    }

    /// Errors when it has ended.
    pub(crate) fn check(&mut self) -> Result<()> {
        self.service.check()
    }

    /// The body of a page of the metrics listener. Errors when the status is not 200.
    pub(crate) fn get(&self, path: &str) -> Result<String> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.metrics_port))
            .context("connecting to the metrics port")?;
        let timeout = Some(Duration::from_secs(5));
        stream.set_read_timeout(timeout).context("setting a timeout")?;
        // Version 1.0, so that the body comes in one piece and ends with the connection.
        let request = format!("GET {path} HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n");
        stream.write_all(request.as_bytes()).context("asking for metrics")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).context("reading metrics")?;
        match answer.split_once("\r\n\r\n") {
            Some((head, body)) if head.split(' ').nth(1) == Some("200") => Ok(body.to_owned()),
            _ => failed(format!("{path} answered: {}", answer.lines().next().unwrap_or("nothing"))),
        }
    }

    /// The sum of a counter over all label sets that `wanted` accepts; 0 when it has never counted.
    pub(crate) fn counter(&self, name: &str, wanted: impl Fn(&str) -> bool) -> Result<u64> {
        Ok(sum(&self.get("/metrics")?, name, wanted))
    }
}

/// Line of the Prometheus text format: `name{label="value",…} number`.
fn sum(page: &str, name: &str, wanted: impl Fn(&str) -> bool) -> u64 {
    let lines = page.lines().filter_map(|line| {
        let (labels, value) = line.strip_prefix(name)?.rsplit_once(' ')?;
        let whole_name = labels.is_empty() || labels.starts_with('{');
        (whole_name && wanted(labels)).then(|| value.parse::<f64>().ok())?
    });
    lines.sum::<f64>() as u64
}

fn proxy_text(settings: &Settings<'_>, port: u16) -> String {
    let Settings { name, engine, user, client_auth, server_port, percent, max_clients, .. } = settings;
    let (tls, target_tls) = match settings.certificate {
        Some((certificate, key)) => (
            format!(
                "require_tls = true\ntls = {{ certificate = \"{}\", key = \"{}\" }}\n",
                certificate.display(),
                key.display()
            ),
            "required",
        ),
        None => ("require_tls = false\n".to_owned(), "disabled"),
    };
    format!(
        r#"
[[proxy]]
name = "{name}"
engine_family = "{engine}"
max_client_connections = {max_clients}
{tls}
[[proxy.auth]]
username = "{user}"
secret = {{ file = "secret-{name}.json" }}
client_password_auth_type = "{client_auth}"

[proxy.pool]
max_connections_percent = {percent}
max_idle_connections_percent = {percent}

[[proxy.target]]
address = "127.0.0.1:{server_port}"
tls = "{target_tls}"

[[proxy.endpoint]]
name = "default"
listen = "127.0.0.1:{port}"
target_role = "READ_WRITE"

{more}"#,
        more = settings.more
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_is_summed_over_the_labels_that_are_wanted() {
        let page = "# HELP pins_total x\npins_total{reason=\"listen\"} 2\npins_total{reason=\"xa\"} 3\n\
                    pins_total_more{reason=\"xa\"} 50\n";
        assert_eq!(sum(page, "pins_total", |_| true), 5);
        assert_eq!(sum(page, "pins_total", |labels| labels.contains("\"listen\"")), 2);
        assert_eq!(sum(page, "absent", |_| true), 0);
    }
}
