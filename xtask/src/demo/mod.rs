//! `cargo xtask demo`: the whole thing, seen from outside.

mod mysql;

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use crate::{
    apt::{self, Need},
    arguments::Arguments,
    cluster::Cluster,
    error::{Context, Result, failed},
    interrupt,
    pgbench::{Load, Outcome, Server},
    pinion::{self, Pinion, Settings},
    plugins, process,
    sampler::{Sampler, Seen},
    temporary::{self, TemporaryDirectory},
};

const USER: &str = "demo";
/// The two proxies' names in the configuration.
const POSTGRES: &str = "demo";
const MYSQL: &str = "demo-mysql";
const CLIENTS: u32 = 100;
/// The server allows this many connections and Pinion may use 5 % of them, one of these for its monitor: 10 are left.
const SERVER_LIMIT: u32 = 220;
const PERCENT: u32 = 5;

/// Installs what is missing, starts everything, reports, and stays until Ctrl-C unless `--once` is given.
pub(crate) fn run(mut arguments: Arguments) -> Result<()> {
    let once = arguments.flag("--once");
    arguments.end()?;
    interrupt::catch()?;
    apt::provide(&[
        Need::CompilerAndMake,
        Need::Libclang,
        Need::WasmTarget,
        Need::WasmLinker,
        Need::Postgresql,
        Need::Mariadb,
        Need::Sysbench,
        Need::Openssl,
    ])?;
    process::raise_file_limit()?;
    let built = plugins::build()?;

    println!("Building Pinion (release; some minutes the first time).");
    let binary = pinion::build()?;

    let directory = TemporaryDirectory::new("pinion-demo")?;
    println!(
        "Starting a private PostgreSQL, a private MariaDB and Pinion in {}.",
        directory.path().display()
    );
    let password = temporary::random_hex(12)?;
    let (certificate, key) = make_certificate(directory.path())?;
    let cluster = Cluster::start(directory.path(), &server_settings(&certificate, &key)?)?;
    cluster.create_user(USER, &password)?;
    let mariadb = mysql::start_server(directory.path(), &certificate, &key)?;
    mariadb.create_user(USER, &password, "REQUIRE SSL")?;
    let settings = Settings {
        name: POSTGRES,
        engine: "POSTGRESQL",
        user: USER,
        password: &password,
        client_auth: "POSTGRES_SCRAM_SHA_256",
        server_port: cluster.port(),
        percent: PERCENT,
        max_clients: 1000,
        certificate: Some((&certificate, &key)),
        more: PLUGIN.to_owned(),
    };
    let mysql_settings = Settings {
        name: MYSQL,
        engine: "MYSQL",
        client_auth: "MYSQL_CACHING_SHA2_PASSWORD",
        server_port: mariadb.port(),
        more: String::new(),
        ..settings.clone()
    };
    put_plugin(&built, 1, directory.path())?;
    let mut pinion = Pinion::start(&binary, directory.path(), &[settings, mysql_settings])?;
    let &[mysql_port] = pinion.more_ports.as_slice() else { return failed("there is no MySQL proxy") };

    let direct = Server { port: cluster.port(), user: USER, password: &password, sslmode: "require" };
    let through = Server { port: pinion.port, ..direct.clone() };
    let shown = show(&cluster, &pinion, &direct, &through, directory.path())?;
    let swap = swap(&pinion, &through, &built, directory.path())?;
    let mysql_direct = mysql::Server {
        port: mariadb.port(),
        user: USER,
        password: &password,
        certificate: Some((&certificate, &key)),
    };
    let mysql_through = mysql::Server { port: mysql_port, ..mysql_direct.clone() };
    let mysql_shown = mysql::show(&mariadb, &pinion, &mysql_direct, &mysql_through, directory.path())?;
    println!("\nWhat happened\n");
    report("PostgreSQL", &shown);
    report_swap(&swap);
    report("MariaDB", &mysql_shown);
    println!("Try it yourself (TLS, the password is in the line):\n");
    println!(
        "  psql \"host=127.0.0.1 port={} user={USER} dbname={USER} password={password} sslmode=require\"",
        pinion.port
    );
    println!(
        "  mariadb --no-defaults --protocol=TCP --host=127.0.0.1 --port={mysql_port} --user={USER} \
         --password={password} --ssl {USER}\n"
    );
    println!("Metrics:  http://127.0.0.1:{}/metrics", pinion.metrics_port);
    println!("Config:   {}", pinion.config.display());
    if once {
        return Ok(());
    }
    println!("\nEverything keeps running until Ctrl-C, which stops and removes it all.");
    loop {
        if interrupt::wait(Duration::from_millis(500)).is_err() {
            println!("\nStopping Pinion, PostgreSQL and MariaDB, removing {}.", directory.path().display());
            return Ok(());
        }
        pinion.check()?;
    }
}

/// A policy plugin that answers in place of the server, with its own version, what has the hint.
const PLUGIN: &str = "[[proxy.plugin]]\nname = \"demo\"\nwasm = \"demo.wasm\"\n\
                      config = { answer = \"rewrite\", hint = \"version\" }\n";

/// A statement that asks for it.
const ASK_VERSION: &str = "SELECT /* pinion:version */ 'no plugin'";

/// What clients saw of a plugin being replaced.
struct Swap {
    before: String,
    after: String,
    /// Statements that 100 clients ran meanwhile; none failed.
    statements: u64,
    /// Of those, answered by either version.
    rewritten: u64,
    /// From the new file's being there to the first answer by it.
    took: Duration,
}

/// Puts a version of the plugin where the configuration has it, by rename.
fn put_plugin(built: &[PathBuf], version: u8, directory: &Path) -> Result<()> {
    let name = format!("versioned_v{version}.wasm");
    let Some(file) = built.iter().find(|file| file.ends_with(&name)) else {
        return failed(format!("{name} was not built"));
    };
    let fresh = directory.join("demo.wasm.new");
    std::fs::copy(file, &fresh).context(format!("copying {}", file.display()))?;
    std::fs::rename(&fresh, directory.join("demo.wasm")).context("putting a plugin in its place")
}

/// Replaces the plugin's file while 100 clients ask which version answers.
fn swap(pinion: &Pinion, through: &Server<'_>, built: &[PathBuf], directory: &Path) -> Result<Swap> {
    println!("Replacing a policy plugin while {CLIENTS} clients run.");
    let rewrites = || pinion.counter("pinion_plugin_calls_total", |labels| labels.contains("\"rewrite\""));
    let ask = || {
        let mut psql = through.program("psql")?;
        psql.args(["--no-psqlrc", "--tuples-only", "--no-align", "--command", ASK_VERSION]);
        Ok(process::run(&mut psql)?.trim().to_owned())
    };
    let before = ask()?;
    let rewritten_before = rewrites()?;
    std::thread::scope(|scope| {
        let load = scope.spawn(|| through.repeat(ASK_VERSION, CLIENTS, 4, directory));
        let begun = interrupt::poll(Duration::from_secs(10), Duration::from_millis(20), || {
            Ok((rewrites()? > rewritten_before + 1000).then_some(()))
        })?;
        if begun.is_none() {
            return failed("the clients did not get going");
        }
        put_plugin(built, 2, directory)?;
        let placed = Instant::now();
        let answered = interrupt::poll(Duration::from_secs(10), Duration::from_millis(10), || {
            let after = ask()?;
            Ok((after != before).then_some((after, placed.elapsed())))
        })?;
        let Some((after, took)) = answered else { return failed("the new plugin never answered") };
        let statements = match load.join() {
            Ok(load) => load?,
            Err(_) => return failed("the load ended in a panic"),
        };
        Ok(Swap { before, after, statements, rewritten: rewrites()? - rewritten_before, took })
    })
}

fn report_swap(swap: &Swap) {
    println!(
        "  Plugin       a WebAssembly plugin that answers with its version said \"{}\"; its file was replaced while",
        swap.before
    );
    println!(
        "               {CLIENTS} clients ran {} statements, of which none failed and the two versions answered {};",
        swap.statements, swap.rewritten
    );
    println!(
        "               {:.0} ms later (the file watcher waits a moment) the answer was \"{}\".\n",
        swap.took.as_secs_f64() * 1000.0,
        swap.after
    );
}

/// What the demonstration saw.
struct Shown {
    crowd: Outcome,
    crowd_seen: Seen,
    crowd_direct: Outcome,
    crowd_direct_seen: Seen,
    alone: Outcome,
    alone_direct: Outcome,
    pins_by_load: u64,
    pin_example: PinExample,
}

/// One session that makes a temporary table, uses it and drops it.
struct PinExample {
    /// Begun for a temporary table.
    pins: u64,
    /// Still there when the session had ended.
    left: u64,
    answer: String,
}

fn show(
    cluster: &Cluster,
    pinion: &Pinion,
    direct: &Server<'_>,
    through: &Server<'_>,
    directory: &Path,
) -> Result<Shown> {
    println!("Filling pgbench's tables through Pinion.");
    through.fill(5)?;
    let load = |clients, seconds| Load { mode: "simple", clients, seconds };
    let pins_before = pins(pinion, POSTGRES)?;

    println!("Running {CLIENTS} clients for 5 s through Pinion, then 5 s straight to PostgreSQL.");
    let sampler = Sampler::start(cluster, USER)?;
    let crowd = through.run(load(CLIENTS, 5), directory)?;
    let crowd_seen = sampler.finish()?;
    let pins_by_load = pins(pinion, POSTGRES)? - pins_before;
    let sampler = Sampler::start(cluster, USER)?;
    let crowd_direct = direct.run(load(CLIENTS, 5), directory)?;
    // Pinion's own connections stay open meanwhile; they are not the direct clients'.
    let mut crowd_direct_seen = sampler.finish()?;
    crowd_direct_seen.peak = crowd_direct_seen.peak.saturating_sub(crowd_seen.peak);

    println!("Running 1 client for 3 s both ways, for the latency that Pinion adds.");
    let alone = through.run(load(1, 3), directory)?;
    let alone_direct = direct.run(load(1, 3), directory)?;
    let mut psql = through.program("psql")?;
    psql.args(["--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--set", "ON_ERROR_STOP=1"]);
    for statement in [
        "CREATE TEMPORARY TABLE basket AS SELECT n FROM generate_series(1, 7) AS n",
        "SELECT count(*) FROM basket",
        "DROP TABLE basket",
    ] {
        psql.args(["--command", statement]);
    }
    let pin_example = pin(pinion, POSTGRES, &mut psql)?;
    Ok(Shown {
        crowd,
        crowd_seen,
        crowd_direct,
        crowd_direct_seen,
        alone,
        alone_direct,
        pins_by_load,
        pin_example,
    })
}

fn report(server: &str, shown: &Shown) {
    let Shown { crowd, crowd_direct, alone, alone_direct, pin_example, .. } = shown;
    println!("{server}");
    println!(
        "  Clients      {CLIENTS} clients ran {} queries through Pinion, {:.0} a second, all over TLS.",
        crowd.transactions, crowd.tps
    );
    println!(
        "  Connections  {server} saw at most {} connections from Pinion ({} of them with TLS).",
        shown.crowd_seen.peak, shown.crowd_seen.peak_tls
    );
    println!(
        "               Straight to {server} the same {CLIENTS} clients took {} connections: {:.0} queries a second.",
        shown.crowd_direct_seen.peak, crowd_direct.tps
    );
    println!(
        "  Latency      half of the queries within (p50): {:.2} ms through Pinion, {:.2} ms direct, with {CLIENTS} clients.",
        crowd.p50_ms, crowd_direct.p50_ms
    );
    println!(
        "               99 of 100 within (p99): {:.2} ms through Pinion, {:.2} ms direct.",
        crowd.p99_ms, crowd_direct.p99_ms
    );
    println!(
        "               One client alone: {:.3} ms through Pinion, {:.3} ms direct, so Pinion adds {:.3} ms",
        alone.p50_ms,
        alone_direct.p50_ms,
        alone.p50_ms - alone_direct.p50_ms
    );
    println!(
        "               to a query (another TLS hop and its own work; client, proxy and server share this machine)."
    );
    println!(
        "  Pins         the load above: {}. A session that made a temporary table, read",
        shown.pins_by_load
    );
    println!(
        "               {} rows from it and dropped it: {} (reason temporary-table); pinned now: {}.\n",
        pin_example.answer, pin_example.pins, pin_example.left
    );
}

fn pins(pinion: &Pinion, proxy: &str) -> Result<u64> {
    let label = format!("proxy=\"{proxy}\"");
    pinion.counter("pinion_pins_total", |labels| labels.contains(&label))
}

/// A session's temporary table, made, read and dropped by `client`, which prints the number of rows.
fn pin(pinion: &Pinion, proxy: &str, client: &mut Command) -> Result<PinExample> {
    let label = format!("proxy=\"{proxy}\"");
    let temporary_table =
        |labels: &str| labels.contains("reason=\"temporary-table\"") && labels.contains(&label);
    let before = pinion.counter("pinion_pins_total", temporary_table)?;
    let answer = process::run(client)?.trim().to_owned();
    let pins = pinion.counter("pinion_pins_total", temporary_table)? - before;
    let pinned = "pinion_database_connections_currently_session_pinned";
    let left = pinion.counter(pinned, |labels| labels.contains(&label))?;
    Ok(PinExample { pins, left, answer })
}

/// A key and a certificate for localhost that nobody has signed but itself, good for one day.
fn make_certificate(directory: &Path) -> Result<(PathBuf, PathBuf)> {
    let (certificate, key) = (directory.join("server.crt"), directory.join("server.key"));
    let mut openssl = Command::new("openssl");
    openssl
        .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"])
        .args(["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"])
        .arg("-keyout")
        .arg(&key)
        .arg("-out")
        .arg(&certificate);
    process::run(&mut openssl)?;
    Ok((certificate, key))
}

fn server_settings(certificate: &Path, key: &Path) -> Result<String> {
    // PostgreSQL wants a key file of its own, or one of root's that its group may read.
    let copy = key.with_file_name("postgresql.key");
    let text = std::fs::read_to_string(key).context("reading the key that was just made")?;
    temporary::private_file(&copy, &text, crate::cluster::owner()?)?;
    Ok(format!(
        "max_connections = {SERVER_LIMIT}\n\
         superuser_reserved_connections = 0\n\
         ssl = on\n\
         ssl_cert_file = '{}'\n\
         ssl_key_file = '{}'",
        certificate.display(),
        copy.display()
    ))
}
