//! Drivers of other languages and PostgreSQL's own tools. What is missing is installed into cargo's target folder.

use std::{
    ffi::OsStr,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Output},
};

use crate::{Address, server::bin_dir, target_dir};

/// What the Python programs in `clients/` import.
const PYTHON_PACKAGES: &[&str] = &["psycopg[binary]==3.3.9", "psycopg2-binary==2.9.13", "asyncpg==0.32.0"];
/// What the Node programs in `clients/` import.
const NODE_PACKAGES: &[&str] = &["pg@8.23.1"];

/// Runs `clients/<script>` under Python with `arguments`; its output, once it has succeeded.
pub async fn python(script: &str, arguments: &[&str]) -> String {
    let home = target_dir().join("pinion-venv");
    let program = home.join("bin/python");
    let installed = home.clone();
    blocking(move || {
        once(&installed, PYTHON_PACKAGES, |home| {
            run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(home));
            run(Command::new(home.join("bin/python"))
                .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"])
                .args(PYTHON_PACKAGES));
        });
    })
    .await;
    let mut command = tokio::process::Command::new(program);
    command.arg(clients().join(script)).args(arguments).env("PYTHONUNBUFFERED", "1");
    finished(command).await
}

/// Runs `clients/<script>` under Node with `arguments`; its output, once it has succeeded.
pub async fn node(script: &str, arguments: &[&str]) -> String {
    let home = target_dir().join("pinion-node");
    let installed = home.clone();
    blocking(move || {
        once(&installed, NODE_PACKAGES, |home| {
            fs::create_dir_all(home).unwrap();
            fs::write(home.join("package.json"), "{\"private\":true}").unwrap();
            run(Command::new("npm")
                .args(["install", "--no-audit", "--no-fund", "--silent"])
                .args(NODE_PACKAGES)
                .current_dir(home));
        });
    })
    .await;
    let mut command = tokio::process::Command::new("node");
    command.arg(clients().join(script)).args(arguments).env("NODE_PATH", home.join("node_modules"));
    finished(command).await
}

/// Runs `psql` on `script`, stopping at the first error; its unaligned output without headers.
pub async fn psql(address: &Address, script: &str) -> String {
    let arguments = ["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", script];
    tool("psql", address, &arguments).await.trim().to_owned()
}

/// Runs `pgbench`; its report.
pub async fn pgbench(address: &Address, arguments: &[&str]) -> String {
    tool("pgbench", address, arguments).await
}

async fn tool(name: &str, address: &Address, arguments: &[&str]) -> String {
    let mut command = tokio::process::Command::new(bin_dir().join(name));
    command
        .args(arguments)
        .env("PGHOST", "127.0.0.1")
        .env("PGPORT", address.port.to_string())
        .env("PGUSER", &address.user)
        .env("PGPASSWORD", &address.password)
        .env("PGDATABASE", &address.database)
        .env("PGSSLMODE", if address.ca.is_some() { "require" } else { "disable" });
    finished(command).await
}

async fn finished(mut command: tokio::process::Command) -> String {
    let output = command.kill_on_drop(true).output().await.unwrap_or_else(|e| panic!("{command:?}: {e}"));
    text(command.as_std().get_program(), &output)
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    text(command.get_program(), &output);
}

/// Standard output and error together; panics with them unless the program succeeded.
fn text(program: &OsStr, output: &Output) -> String {
    let both = [output.stdout.as_slice(), output.stderr.as_slice()].concat();
    let both = String::from_utf8_lossy(&both).into_owned();
    assert!(output.status.success(), "{} ended with {}:\n{both}", program.display(), output.status);
    both
}

/// Runs `install` unless `home` already holds just `packages`; tests of any process wait for the one that installs.
fn once(home: &Path, packages: &[&str], install: impl FnOnce(&Path)) {
    let lock = File::create(home.with_extension("lock")).unwrap();
    lock.lock().unwrap();
    let (stamp, wanted) = (home.join("installed"), packages.join("\n"));
    if fs::read_to_string(&stamp).is_ok_and(|have| have == wanted) {
        return;
    }
    install(home);
    fs::write(stamp, wanted).unwrap();
}

async fn blocking(work: impl FnOnce() + Send + 'static) {
    tokio::task::spawn_blocking(work).await.unwrap();
}

fn clients() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("clients")
}
