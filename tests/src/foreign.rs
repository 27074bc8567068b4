//! Drivers of other languages and the databases' own tools. What is missing is installed into cargo's target folder.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use tempfile::NamedTempFile;
use tokio::io::AsyncWriteExt;

use crate::{Address, Engine, server::bin_dir, target_dir};

/// What the Python programs in `clients/` import. Of mysql-connector-python this is the last whose compiled part runs
/// with Debian 12's OpenSSL.
const PYTHON_PACKAGES: fn(Engine) -> &'static [&'static str] = |engine| match engine {
    Engine::Postgres => &[
        "psycopg[binary]==3.3.9",
        "psycopg2-binary==2.9.13",
        "asyncpg==0.32.0",
        "SQLAlchemy==2.1.9",
        "Django==5.2.19",
    ],
    Engine::MySql => &[
        "PyMySQL[rsa,ed25519]==1.2.4",
        "mysqlclient==2.3.1",
        "mysql-connector-python==9.7.0",
        "asyncmy==0.2.18",
        "aiomysql==0.3.2",
        "SQLAlchemy==2.1.9",
        "Django==5.2.19",
    ],
};
/// What the Node programs in `clients/` import.
const NODE_PACKAGES: fn(Engine) -> &'static [&'static str] = |engine| match engine {
    Engine::Postgres => &["pg@8.23.1", "postgres@3.4.9", "knex@3.3.0", "sequelize@6.37.8", "typeorm@1.1.1"],
    Engine::MySql => &["mysql2@3.24.6", "mariadb@3.5.4", "knex@3.3.0", "sequelize@6.37.8", "typeorm@1.1.1"],
};

/// Runs `clients/<script>` under Python with `arguments` and the drivers for PostgreSQL; its output, once it has
/// succeeded.
pub async fn python(script: &str, arguments: &[&str]) -> String {
    finished(python_command(Engine::Postgres, script, arguments).await).await
}

/// Runs `clients/<script>` under Node with `arguments` and the drivers for PostgreSQL; its output, once it has
/// succeeded.
pub async fn node(script: &str, arguments: &[&str]) -> String {
    finished(node_command(Engine::Postgres, script, arguments).await).await
}

/// Runs the program of a Python driver in `clients/mysql_drivers.py`; what it saw.
pub async fn mysql_python(driver: &str, address: &Address) -> String {
    let (arguments, _authority) = mysql_arguments(driver, address);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    finished(python_command(Engine::MySql, "mysql_drivers.py", &arguments).await).await
}

/// Runs the program of a Node driver in `clients/mysql_drivers.js`; what it saw.
pub async fn mysql_node(driver: &str, address: &Address) -> String {
    let (arguments, _authority) = mysql_arguments(driver, address);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    finished(node_command(Engine::MySql, "mysql_drivers.js", &arguments).await).await
}

/// Runs `clients/<script>` under Node with `arguments` and the drivers for MySQL; its output, once it has succeeded.
pub async fn mysql_node_script(script: &str, arguments: &[&str]) -> String {
    finished(node_command(Engine::MySql, script, arguments).await).await
}

/// Runs `clients/<script>` under Python with `arguments`, the drivers for MySQL, and `input` as its standard input; its
/// output, once it has succeeded.
pub async fn mysql_python_fed(script: &str, arguments: &[&str], input: &str) -> String {
    fed(python_command(Engine::MySql, script, arguments).await, input).await
}

async fn python_command(engine: Engine, script: &str, arguments: &[&str]) -> tokio::process::Command {
    let packages = PYTHON_PACKAGES(engine);
    let home = target_dir().join(match engine {
        Engine::Postgres => "pinion-venv",
        Engine::MySql => "pinion-venv-mysql",
    });
    let program = home.join("bin/python");
    blocking(move || {
        once(&home, packages, |home| {
            run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(home));
            run(Command::new(home.join("bin/python"))
                .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"])
                .args(packages));
        });
    })
    .await;
    let mut command = tokio::process::Command::new(program);
    command.arg(clients().join(script)).args(arguments).env("PYTHONUNBUFFERED", "1");
    command
}

async fn node_command(engine: Engine, script: &str, arguments: &[&str]) -> tokio::process::Command {
    let packages = NODE_PACKAGES(engine);
    let home = target_dir().join(match engine {
        Engine::Postgres => "pinion-node",
        Engine::MySql => "pinion-node-mysql",
    });
    let modules = home.join("node_modules");
    blocking(move || {
        once(&home, packages, |home| {
            fs::create_dir_all(home).unwrap();
            fs::write(home.join("package.json"), "{\"private\":true}").unwrap();
            run(Command::new("npm")
                .args(["install", "--no-audit", "--no-fund", "--silent"])
                .args(packages)
                .current_dir(home));
        });
    })
    .await;
    let mut command = tokio::process::Command::new("node");
    command.arg(clients().join(script)).args(arguments).env("NODE_PATH", modules);
    command
}

/// `DRIVER PORT [CA]`, and the file of the authority, which has to stay until the program has ended.
fn mysql_arguments(driver: &str, address: &Address) -> (Vec<String>, Option<NamedTempFile>) {
    let authority = authority(address);
    let mut arguments = vec![driver.to_owned(), address.port.to_string()];
    arguments.extend(authority.as_ref().map(|file| file.path().display().to_string()));
    (arguments, authority)
}

fn authority(address: &Address) -> Option<NamedTempFile> {
    let ca = address.ca.as_ref()?;
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(ca.pem().as_bytes()).unwrap();
    Some(file)
}

/// Runs `script` by the `mariadb` program, stopping at the first error; tab-separated rows with headers.
pub async fn mariadb(address: &Address, arguments: &[&str], script: &str) -> String {
    mysql_tool("mariadb", address, &[arguments, &[&address.database]].concat(), script).await
}

/// Runs `mariadb-dump` on the database of `address`; the dump, without comments that tell time and place.
pub async fn mariadb_dump(address: &Address, arguments: &[&str]) -> String {
    let arguments = [&["--skip-comments"], arguments, &[&address.database]].concat();
    mysql_tool("mariadb-dump", address, &arguments, "").await
}

async fn mysql_tool(name: &str, address: &Address, arguments: &[&str], input: &str) -> String {
    let authority = authority(address);
    let mut command = tokio::process::Command::new(name);
    // Not to be guessed from the host: `localhost` is the socket file, which there is none of.
    command.args(["--no-defaults", "--protocol=TCP", "--host=localhost", "--default-character-set=utf8mb4"]);
    command.args([format!("--port={}", address.port), format!("--user={}", address.user)]);
    match &authority {
        Some(file) => {
            command.args(["--ssl", "--ssl-verify-server-cert"]).arg("--ssl-ca").arg(file.path());
        }
        None => {
            command.arg("--skip-ssl");
        }
    }
    command.args(arguments).env("MYSQL_PWD", &address.password);
    fed(command, input).await
}

async fn fed(mut command: tokio::process::Command, input: &str) -> String {
    command.kill_on_drop(true).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let mut stdin = child.stdin.take().expect("a pipe");
    let feed = async {
        // A program that ends early says why itself.
        stdin.write_all(input.as_bytes()).await.ok();
        drop(stdin);
    };
    let (output, ()) = tokio::join!(child.wait_with_output(), feed);
    text(command.as_std().get_program(), &output.unwrap())
}

/// Runs `psql` on `script`, stopping at the first error; its unaligned output without headers.
pub async fn psql(address: &Address, script: &str) -> String {
    let arguments = ["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", script];
    tool("psql", address, &arguments).await.trim().to_owned()
}

/// Runs `psql` on a script as it would come from a file, stopping at the first error.
pub async fn psql_fed(address: &Address, script: &str) -> String {
    fed(tool_command("psql", address, &["-X", "-q", "-v", "ON_ERROR_STOP=1"]), script).await
}

/// Runs `pgbench`; its report.
pub async fn pgbench(address: &Address, arguments: &[&str]) -> String {
    tool("pgbench", address, arguments).await
}

/// Runs `pg_dump` on the database of `address`; what it says, which is the dump unless that goes to a file.
pub async fn pg_dump(address: &Address, arguments: &[&str]) -> String {
    tool("pg_dump", address, arguments).await
}

/// Runs `pg_restore` into the database of `address`, stopping at the first error.
pub async fn pg_restore(address: &Address, arguments: &[&str]) -> String {
    let database = ["--exit-on-error", "--dbname", &address.database];
    tool("pg_restore", address, &[database.as_slice(), arguments].concat()).await
}

async fn tool(name: &str, address: &Address, arguments: &[&str]) -> String {
    finished(tool_command(name, address, arguments)).await
}

fn tool_command(name: &str, address: &Address, arguments: &[&str]) -> tokio::process::Command {
    let mut command = tokio::process::Command::new(bin_dir().join(name));
    command
        .args(arguments)
        .env("PGHOST", "127.0.0.1")
        .env("PGPORT", address.port.to_string())
        .env("PGUSER", &address.user)
        .env("PGPASSWORD", &address.password)
        .env("PGDATABASE", &address.database)
        .env("PGSSLMODE", if address.ca.is_some() { "require" } else { "disable" });
    command
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
