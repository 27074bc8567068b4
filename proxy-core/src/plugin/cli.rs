//! `pinion plugin`: what authors and operators do with a plugin's file when no proxy runs.
//!
//! A file meets the same machine, the same limits and the same grammar here as in a proxy.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::Value;

use super::{
    Ask, Hook, SessionNames,
    engine::Machine,
    generation::Generation,
    load::{self, LoadError, hex},
    names::{Name, Names},
    shared::{RateLimit, Shared},
    store::Store,
    user_metrics::Table,
    vectors::{self, Vectors},
    wit::{CacheField, Needs},
};
use crate::{
    config::{FailureMode, Grants, OnFailure, PluginConfig},
    metrics::PluginMetrics,
    protocol::{Dialect, Know, PinReason},
};

/// The target that plugins are built for.
const TARGET: &str = "wasm32-unknown-unknown";
/// How long a hook is called for to see what a call costs.
const MEASURE: Duration = Duration::from_millis(200);

/// What is said, and whether all is well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Lines for a person.
    pub text: String,
    /// Nothing is wrong.
    pub ok: bool,
}

/// A file at work by itself.
struct Bench {
    machine: Machine,
    names: Arc<Names>,
    know: Know,
}

impl Bench {
    fn new(know: &Know) -> Result<Self, String> {
        Ok(Self { machine: Machine::new(None)?, names: Names::new(), know: know.clone() })
    }

    fn start(&self, path: &Path, json: &str) -> Result<(Generation, load::Compiled), LoadError> {
        let file = load::read(path)?;
        let compiled = load::compile(&self.machine, &file.bytes)?;
        let config = config(path, json);
        let shared = Arc::new(Shared {
            proxy: "none".into(),
            name: config.name.as_str().into(),
            store: Store::new(config.store_bytes),
            log: RateLimit::new(config.log_lines_per_second),
            table: Table::new(None, "none", &config.name),
            audit: None,
            names: self.names.clone(),
            metrics: Arc::new(PluginMetrics::new("none", &config.name)),
            muted: false,
        });
        let ticking = self.machine.keep_ticking();
        let generation = Generation::start(compiled.clone(), file.sha256, &config, shared, 1, ticking)?;
        Ok((generation, compiled))
    }

    fn vectors(&self, generation: &Generation, vectors: &Vectors) -> (String, bool) {
        let results = vectors::run(vectors, generation, &self.names, &self.know);
        let wrong: Vec<_> = results.iter().filter_map(|result| result.as_ref().err()).collect();
        let mut text = String::new();
        for why in &wrong {
            text.push_str(&format!("FAILED {why}\n"));
        }
        text.push_str(&format!("{} of {} vectors passed", results.len() - wrong.len(), results.len()));
        (text, wrong.is_empty())
    }
}

/// Limits and grants as a configuration that says nothing of limits would have them, and everything granted.
fn config(path: &Path, json: &str) -> PluginConfig {
    PluginConfig {
        name: path.file_stem().map_or_else(String::new, |stem| stem.to_string_lossy().into_owned()),
        wasm: path.to_owned(),
        sha256: None,
        grants: Grants { log: true, metrics: true, store: true, clock: true, audit: true },
        on_failure: OnFailure::all(FailureMode::Open),
        config: json.to_owned(),
        deadline: Duration::from_millis(5),
        events_deadline: Duration::from_secs(1),
        memory_bytes: 16 << 20,
        store_bytes: 1 << 20,
        log_lines_per_second: 100,
        retry_after: Duration::from_secs(60),
        vectors: None,
        shadow: None,
    }
}

/// A plugin's configuration as given by hand: JSON itself, or the path of a file with JSON or TOML.
///
/// # Errors
/// A sentence when it is neither.
pub fn read_config(given: &str) -> Result<String, String> {
    if given.trim_start().starts_with('{') {
        let value: Value = serde_json::from_str(given).map_err(|error| format!("not JSON: {error}"))?;
        return Ok(value.to_string());
    }
    let text = fs::read_to_string(given).map_err(|error| format!("{given} cannot be read: {error}"))?;
    if let Ok(Value::Object(object)) = serde_json::from_str(&text) {
        return Ok(Value::Object(object).to_string());
    }
    let table: toml::Table =
        toml::from_str(&text).map_err(|error| format!("{given}: {}", error.message()))?;
    serde_json::to_string(&table).map_err(|error| format!("{given}: {error}"))
}

/// `pinion plugin test`: runs a file of vectors.
///
/// # Errors
/// A sentence when they cannot be run at all.
pub fn test(file: &Path, vectors: &Path, config: Option<&str>, know: &Know) -> Result<Report, String> {
    let text = fs::read_to_string(vectors)
        .map_err(|error| format!("{} cannot be read: {error}", vectors.display()))?;
    let parsed = vectors::parse(&text).map_err(|why| format!("{}: {why}", vectors.display()))?;
    let json = match (config, &parsed.config) {
        (Some(json), _) => json.to_owned(),
        (None, Some(table)) => serde_json::to_string(table).map_err(|error| error.to_string())?,
        (None, None) => "{}".to_owned(),
    };
    let bench = Bench::new(know)?;
    let (generation, _) = bench.start(file, &json).map_err(|error| format!("{}: {error}", file.display()))?;
    let (text, ok) = bench.vectors(&generation, &parsed);
    Ok(Report { text, ok })
}

/// `pinion plugin check`: what a file is, wants and costs.
///
/// # Errors
/// A sentence when a host would refuse it.
pub fn check(file: &Path, config: Option<&str>, know: &Know) -> Result<Report, String> {
    let refused = |error: LoadError| format!("{}: {error}", file.display());
    let bytes = fs::metadata(file).map_or(0, |metadata| metadata.len());
    let bench = Bench::new(know)?;
    let began = Instant::now();
    let (generation, compiled) =
        bench.start(file, config.unwrap_or("{}")).map_err(|error| match (error.step, config) {
            ("init", None) => format!("{}; give it a configuration with --config", refused(error)),
            _ => refused(error),
        })?;
    let took = began.elapsed();
    let own = generation.self_test().map_err(refused)?;
    let mut out = format!(
        "{}\n  version   {}\n  sha256    {}\n  size      {} KB, loaded in {} ms\n",
        file.display(),
        generation.version,
        hex(&generation.sha256),
        bytes.div_ceil(1024),
        took.as_millis(),
    );
    out.push_str(&format!("  imports   {}\n", list(&compiled.imports)));
    if !compiled.trapping.is_empty() {
        out.push_str(&format!("  traps     {} when called\n", list(&compiled.trapping)));
    }
    out.push_str(&format!("  needs     {}\n", list(&needs(generation.needs))));
    for hook in [Hook::Query, Hook::Route, Hook::Pin, Hook::Events] {
        for filter in generation.filters(hook) {
            let mut line = format!("  hook      {}, {}", hook.name(), filter.describe());
            if let Some(by) = filter.cache_by {
                line.push_str(&format!(", kept by {}", cache_fields(by).join(", ")));
            }
            if let Some(cost) = cost(&bench, &generation, hook) {
                line.push_str(&format!(", {cost}"));
            }
            out.push_str(&line);
            out.push('\n');
        }
    }
    let mut ok = true;
    if own.trim().is_empty() {
        out.push_str("  vectors   none in the file");
    } else {
        let vectors = vectors::parse(&own).map_err(|why| format!("its test vectors: {why}"))?;
        let (text, passed) = match &vectors.config {
            Some(table) => {
                let json = serde_json::to_string(table).map_err(|error| error.to_string())?;
                let (trial, _) = bench.start(file, &json).map_err(refused)?;
                bench.vectors(&trial, &vectors)
            }
            None => bench.vectors(&generation, &vectors),
        };
        ok = passed;
        out.push_str(&format!("  vectors   {}", text.replace('\n', "\n            ")));
    }
    Ok(Report { text: out, ok })
}

fn list(items: &[impl AsRef<str>]) -> String {
    if items.is_empty() {
        return "none".into();
    }
    items.iter().map(AsRef::as_ref).collect::<Vec<_>>().join(", ")
}

fn needs(needs: Needs) -> Vec<&'static str> {
    [
        (Needs::TEXT, "text"),
        (Needs::NORMALISED, "normalised"),
        (Needs::TABLES, "tables"),
        (Needs::FUNCTIONS, "functions"),
        (Needs::VARIABLES, "variables"),
        (Needs::REWRITE, "rewrite"),
    ]
    .into_iter()
    .filter_map(|(flag, name)| needs.contains(flag).then_some(name))
    .collect()
}

fn cache_fields(by: CacheField) -> Vec<&'static str> {
    [
        (CacheField::DIALECT, "dialect"),
        (CacheField::DIGEST, "digest"),
        (CacheField::KIND, "kind"),
        (CacheField::USER, "user"),
        (CacheField::DATABASE, "database"),
        (CacheField::ENDPOINT, "endpoint"),
        (CacheField::APPLICATION, "application"),
        (CacheField::HINT, "hint"),
        (CacheField::FACTS, "facts"),
    ]
    .into_iter()
    .filter_map(|(flag, name)| by.contains(flag).then_some(name))
    .collect()
}

/// What one call costs, with a statement that the plugin wants; a kept verdict costs what finding it does.
fn cost(bench: &Bench, generation: &Generation, hook: Hook) -> Option<String> {
    let held: [Name; 5] = ["app", "app", "default", "psql", "127.0.0.1"].map(|name| bench.names.hold(name));
    let [user, database, endpoint, application, client] = [0, 1, 2, 3, 4].map(|at: usize| held[at].id());
    let names = SessionNames {
        session: 1,
        user,
        database,
        endpoint,
        application,
        client,
        held: Some(Arc::new(held)),
    };
    for sql in [
        "SELECT id, name FROM accounts WHERE id = 7",
        "UPDATE accounts SET name = 'x' WHERE id = 7",
        "SET application_name = 'x'",
        "CREATE TABLE t (id int)",
        "BEGIN",
    ] {
        let (digest, facts, hint) = (bench.know)(Dialect::Postgresql, sql.as_bytes());
        let ask = Ask {
            names: &names,
            dialect: Dialect::Postgresql,
            digest,
            facts: &facts,
            text: sql.as_bytes(),
            hint: &hint,
            in_transaction: false,
            prepares: false,
        };
        if !generation.filters(hook).iter().any(|filter| filter.wants(&ask)) {
            continue;
        }
        let call = || match hook {
            Hook::Query => drop(generation.on_query(&ask, 0)),
            Hook::Route => drop(generation.on_route(&ask, 0)),
            Hook::Pin => {
                drop(generation.on_pin(&ask, 0, PinReason::SessionVariable, "application_name"));
            }
            Hook::Events => {}
        };
        if hook == Hook::Events {
            return None;
        }
        call();
        let (began, mut calls) = (Instant::now(), 0_u32);
        while began.elapsed() < MEASURE {
            for _ in 0..16 {
                call();
            }
            calls += 16;
        }
        let micros = began.elapsed().as_secs_f64() * 1e6 / f64::from(calls);
        return Some(format!("{micros:.2} µs a call ({sql})"));
    }
    None
}

/// `pinion plugin new`: a crate that builds, passes its tests, and is a plugin.
///
/// # Errors
/// A sentence when the directory exists or cannot be written.
pub fn new(name: &str, sdk: Option<&Path>) -> Result<Report, String> {
    let valid = name.starts_with(|first: char| first.is_ascii_lowercase())
        && name.split('-').all(|part| {
            !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
        });
    if !valid || name.len() > 63 {
        return Err(format!(
            "{name:?} is no name for a plugin: lower-case letters and digits with single hyphens between, a letter first"
        ));
    }
    let root = Path::new(name);
    if root.exists() {
        return Err(format!("{name} is there already"));
    }
    let sdk = match sdk {
        None => format!("{:?}", env!("CARGO_PKG_VERSION")),
        Some(path) => {
            let path = path.canonicalize().map_err(|error| format!("{}: {error}", path.display()))?;
            format!("{{ path = {:?} }}", path.display().to_string())
        }
    };
    let fill = |text: &str| {
        text.replace("{{name}}", name).replace("{{crate}}", &name.replace('-', "_")).replace("{{sdk}}", &sdk)
    };
    for (file, text) in [
        ("Cargo.toml", include_str!("template/Cargo.toml.in")),
        ("src/lib.rs", include_str!("template/lib.rs.in")),
        ("vectors.toml", include_str!("template/vectors.toml")),
        ("README.md", include_str!("template/README.md.in")),
        (".gitignore", include_str!("template/gitignore.in")),
    ] {
        let path = root.join(file);
        let made =
            path.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| fs::write(&path, fill(text)));
        made.map_err(|error| format!("{}: {error}", path.display()))?;
    }
    let text =
        format!("Made {name}/. In it: `cargo test`, then `pinion plugin build`; README.md says the rest.");
    Ok(Report { text, ok: true })
}

/// `pinion plugin build`: compiles the crate in `directory`.
///
/// # Errors
/// A sentence when there is no compiler for it, or cargo fails.
pub fn build(directory: &Path) -> Result<Report, String> {
    if !directory.join("Cargo.toml").is_file() {
        return Err(format!("{} has no Cargo.toml", directory.display()));
    }
    let mut cargo = cargo()?;
    cargo
        .args(["build", "--release", "--target", TARGET, "--message-format", "json-render-diagnostics"])
        .current_dir(directory)
        .stderr(std::process::Stdio::inherit());
    let output = cargo.output().map_err(|error| format!("cargo cannot be run: {error}"))?;
    if !output.status.success() {
        return Err("cargo could not build it".into());
    }
    let mut made: Vec<String> = Vec::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let Ok(message) = serde_json::from_str::<Value>(line) else { continue };
        let files = message["filenames"].as_array().into_iter().flatten().filter_map(Value::as_str);
        made.extend(files.filter(|file| file.ends_with(".wasm")).map(str::to_owned));
    }
    match made.last() {
        None => {
            Err("cargo made no .wasm file; does Cargo.toml say crate-type = [\"cdylib\", \"rlib\"]?".into())
        }
        Some(file) => {
            let size = fs::metadata(file).map_or(0, |metadata| metadata.len()).div_ceil(1024);
            Ok(Report { text: format!("{file} ({size} KB)"), ok: true })
        }
    }
}

/// cargo with a compiler that has the target's standard library, or the source of it.
fn cargo() -> Result<Command, String> {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.env_remove("RUSTFLAGS").env_remove("CARGO_ENCODED_RUSTFLAGS");
    if print("target-libdir").is_some_and(|directory| directory.is_dir()) {
        return Ok(cargo);
    }
    let rustc = Path::new("/usr/bin/rustc");
    let source = Path::new("/usr/lib/rustlib/src/rust/library/std/Cargo.toml");
    let advice = format!(
        "there is no standard library for {TARGET}. With rustup: `rustup target add {TARGET}`. On Debian: \
         `apt-get install rustc-web rust-web-src lld`"
    );
    if !rustc.is_file() || !source.is_file() {
        return Err(advice);
    }
    let linker = linker().ok_or_else(|| format!("{advice}. The linker is missing: rust-lld or wasm-ld"))?;
    cargo
        .env("RUSTC", rustc)
        // Building the standard library with the plugin is an unstable flag of cargo.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER", linker)
        .arg("-Zbuild-std=std,panic_abort");
    Ok(cargo)
}

fn print(what: &str) -> Option<PathBuf> {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc).args(["--print", what, "--target", TARGET]).output().ok()?;
    output.status.success().then(|| PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()))
}

/// LLVM's linker: the one that comes with rustup's compiler, else one of the system.
fn linker() -> Option<PathBuf> {
    let own = print("sysroot").and_then(|sysroot| {
        let hosts = fs::read_dir(sysroot.join("lib/rustlib")).ok()?;
        hosts.filter_map(|host| Some(host.ok()?.path().join("bin/rust-lld"))).find(|file| file.is_file())
    });
    let on_path = || {
        let path = env::var_os("PATH")?;
        env::split_paths(&path).map(|directory| directory.join("wasm-ld")).find(|file| file.is_file())
    };
    own.or_else(on_path)
}
