//! The host with real plugins. They are built by `cargo xtask plugins`.
#![allow(clippy::unwrap_used)]

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use tempfile::TempDir;

use super::*;
use crate::{
    config::{AuditSink, FailureMode, Grants, OnFailure, WhenFull},
    protocol::Role,
};

const ALL: Grants = Grants { log: true, metrics: true, store: true, clock: true, audit: true };

fn built(name: &str) -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target"), PathBuf::from);
    let file = target.join("plugins/fixtures").join(format!("{name}.wasm"));
    assert!(file.exists(), "{} is not built: run `cargo xtask plugins`", file.display());
    file
}

fn config(name: &str, json: &str) -> PluginConfig {
    PluginConfig {
        name: name.replace('_', "-"),
        wasm: built(name),
        sha256: None,
        grants: ALL,
        on_failure: OnFailure::all(FailureMode::Open),
        config: json.into(),
        deadline: Duration::from_millis(20),
        events_deadline: Duration::from_secs(1),
        memory_bytes: 16 << 20,
        store_bytes: 1 << 20,
        log_lines_per_second: 100,
        retry_after: Duration::from_secs(60),
        vectors: None,
        shadow: None,
    }
}

struct Host {
    host: Arc<PluginHost>,
    metrics: Arc<UserMetrics>,
    know: Know,
}

fn host() -> Host {
    host_with(None, 8_192)
}

fn host_with(audit: Option<&AuditConfig>, event_queue: usize) -> Host {
    let metrics = Arc::new(UserMetrics::default());
    let config = PluginsConfig { cache_directory: None, event_queue };
    let host = PluginHost::new(&config, audit, 1, metrics.clone()).unwrap();
    Host { host, metrics, know: know() }
}

impl Host {
    fn start(&self, configs: &[PluginConfig]) -> Arc<Plugins> {
        Plugins::start(&self.host, "p", configs)
    }
}

/// Asks `on-query` as user `app`.
fn query(host: &Host, plugins: &Plugins, sql: &str) -> (QueryVerdict, Vec<Decision>) {
    query_as(host, plugins, "app", sql)
}

fn query_as(host: &Host, plugins: &Plugins, user: &str, sql: &str) -> (QueryVerdict, Vec<Decision>) {
    let names = plugins.names(1, user, "db", "default", "", "127.0.0.1");
    let (digest, facts, hint) = (host.know)(Dialect::Postgresql, sql.as_bytes());
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
    let mut decisions = Vec::new();
    (plugins.on_query(&ask, 0, &mut decisions), decisions)
}

fn message(verdict: QueryVerdict) -> String {
    match verdict {
        QueryVerdict::Reject(fault) => fault.message.into_owned(),
        other => format!("{other:?}"),
    }
}

fn wait_until(what: &str, mut is: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(20);
    while !is() {
        assert!(Instant::now() < until, "{what}: not within 20 s");
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

fn put(from: &Path, to: &Path) {
    let part = to.with_extension("part");
    fs::copy(from, &part).unwrap();
    fs::rename(part, to).unwrap();
}

#[test]
fn a_plugin_is_asked_what_it_subscribed_to_and_answers() {
    let host = host();
    let plugins = host.start(&[config("versioned_v1", "{}")]);
    assert!(plugins.asks(Hook::Query) && !plugins.asks(Hook::Route) && !plugins.rewrites());
    let (verdict, decisions) = query(&host, &plugins, "SELECT 1");
    let QueryVerdict::Reject(fault) = verdict else { panic!("{verdict:?}") };
    assert_eq!((&*fault.message, fault.kind, fault.native_code), ("v1", FaultKind::PluginRejected, None));
    let decision = Decision { plugin: "versioned-v1".into(), hook: Hook::Query, verdict: "reject" };
    assert_eq!(decisions, [decision]);
    assert_eq!(query(&host, &plugins, "INSERT INTO t VALUES (1)"), (QueryVerdict::Pass, vec![]));
    let status = &plugins.status()[0];
    assert_eq!((status.state, status.calls, status.traps, &*status.version), ("running", 1, 0, "1.0.0"));
    assert_eq!(status.hooks, ["on-query"]);
}

#[test]
fn a_rejection_keeps_the_codes_that_are_codes() {
    let of = |sqlstate: &str, code| {
        let text = String::new;
        let rejection = wit::Rejection { sqlstate: sqlstate.to_owned(), code, message: text(), hint: text() };
        let fault = fault(rejection);
        (fault.native_code, fault.native_number)
    };
    assert_eq!(of("PN001", 3950), (Some("PN001".to_owned()), Some(3950)));
    assert_eq!(of("", 0), (None, None));
    assert_eq!(of("pn001", 1), (None, Some(1)));
}

#[test]
fn a_rewrite_goes_on_behind_its_plugin() {
    let host = host();
    let first = config("versioned_v1", r#"{"answer": "rewrite"}"#);
    let second = config("versioned_v2", "{}");
    let plugins = host.start(&[first, second]);
    assert!(plugins.rewrites());
    let QueryVerdict::Rewrite { text, next } = query(&host, &plugins, "SELECT 1").0 else { panic!() };
    assert_eq!(text, "SELECT 'v1' AS version");
    let names = plugins.names(1, "app", "db", "default", "", "");
    let (digest, facts, _) = (host.know)(Dialect::Postgresql, text.as_bytes());
    let ask = Ask {
        names: &names,
        dialect: Dialect::Postgresql,
        digest,
        facts: &facts,
        text: text.as_bytes(),
        hint: "",
        in_transaction: false,
        prepares: false,
    };
    assert_eq!(message(plugins.on_query(&ask, next, &mut Vec::new())), "v2");
}

#[test]
fn what_a_misbehaving_plugin_costs_is_bounded_and_counted() {
    for (misdeed, kind) in
        [("loop", "deadline"), ("memory", "memory"), ("panic", "panic"), ("recursion", "stack")]
    {
        let host = host();
        let json = format!(r#"{{"do": "{misdeed}", "hooks": ["on-query"], "hint": "now"}}"#);
        let mut config = config("hostile", &json);
        config.on_failure.query = FailureMode::Closed;
        // Whole seconds for a debug build on a busy machine, save where the deadline is meant.
        config.deadline = Duration::from_millis(if misdeed == "loop" { 20 } else { 900 });
        let plugins = host.start(&[config]);
        let started = Instant::now();
        let (verdict, decisions) = query(&host, &plugins, "/* pinion:now */ SELECT 1");
        assert!(started.elapsed() < Duration::from_secs(5), "{misdeed}");
        let QueryVerdict::Reject(fault) = verdict else { panic!("{misdeed}: {verdict:?}") };
        assert_eq!(fault.kind, FaultKind::PluginFailed);
        assert_eq!(fault.message, "The policy plugin \"hostile\" failed, and its on_failure is \"closed\".");
        assert_eq!(decisions[0].verdict, "failed");
        // A fresh instance serves the next call.
        assert_eq!(query(&host, &plugins, "SELECT 1").0, QueryVerdict::Pass, "{misdeed}");
        let status = &plugins.status()[0];
        assert_eq!((status.state, status.traps), ("running", 1), "{misdeed}");
        let error = status.last_error.clone().unwrap();
        assert!(error.ends_with(&format!("({kind})")), "{misdeed}: {error}");
    }
}

#[test]
fn one_that_fails_too_often_is_switched_off_and_tried_again() {
    let host = host();
    let mut config = config("hostile", r#"{"do": "panic", "hooks": ["on-query"], "hint": "now"}"#);
    config.deadline = Duration::from_millis(900);
    config.retry_after = Duration::from_secs(1);
    let plugins = host.start(&[config]);
    for _ in 0..10 {
        assert_eq!(query(&host, &plugins, "/* pinion:now */ SELECT 1").0, QueryVerdict::Pass);
    }
    assert_eq!(plugins.status()[0].state, "broken");
    let (verdict, decisions) = query(&host, &plugins, "SELECT 1");
    assert_eq!((verdict, decisions[0].verdict), (QueryVerdict::Pass, "failed"));
    assert_eq!(plugins.status()[0].traps, 10);
    wait_until("half open", || query(&host, &plugins, "SELECT 1").1.is_empty());
    assert_eq!(plugins.status()[0].state, "running");
}

#[test]
fn files_that_are_no_plugin_are_refused_in_words_that_help() {
    let dir = TempDir::new().unwrap();
    let text = dir.path().join("text.wasm");
    fs::write(&text, "hello").unwrap();
    let bare = dir.path().join("bare.wasm");
    fs::write(&bare, b"\0asm\x01\0\0\0").unwrap();
    for (file, json, step, words) in [
        (text, "{}", "format", "not WebAssembly"),
        (bare, "{}", "", ""),
        (dir.path().join("none.wasm"), "{}", "read", "cannot be read"),
        (built("unknown_import"), "{}", "imports", "acme:thing"),
        (
            built("newer_break"),
            "{}",
            "imports",
            "it was built for pinion:policy@0.2.0, this host offers 0.1.x; rebuild it with pinion-plugin",
        ),
        (built("failing_self_test"), "{}", "self-test", "expected reject, got pass"),
        (built("versioned_v1"), r#"{"colour": 1}"#, "init", "colour"),
        (built("versioned_v1"), r#"{"refuse": "v1"}"#, "init", "was told to refuse"),
        (built("hostile"), r#"{"do": "trap-in-init"}"#, "init", "panic"),
    ] {
        let host = host();
        let config = PluginConfig { wasm: file.clone(), ..config("versioned_v1", json) };
        let closed = PluginConfig {
            name: "closed".into(),
            on_failure: OnFailure::all(FailureMode::Closed),
            ..config.clone()
        };
        let plugins = host.start(&[config]);
        let status = &plugins.status()[0];
        let error = status.last_error.clone().unwrap();
        assert!(error.contains(words) && error.contains(step), "{}: {error}", file.display());
        assert_eq!((status.state, plugins.asks(Hook::Query)), ("failed", false));
        assert_eq!(query(&host, &plugins, "SELECT 1").0, QueryVerdict::Pass);
        let plugins = host.start(&[closed]);
        assert!(plugins.asks(Hook::Query));
        assert!(message(query(&host, &plugins, "SELECT 1").0).contains("\"closed\""));
    }
}

#[test]
fn old_plugins_load_and_foreign_imports_trap_when_called() {
    let host = host();
    let plugins = host.start(&[config("older", "{}")]);
    assert_eq!(message(query(&host, &plugins, "SELECT 1").0), "older");
    let plugins = host.start(&[config("wasi_user", r#"{"call": "random"}"#)]);
    let random = message(query(&host, &plugins, "SELECT 1").0);
    assert!(random.parse::<u64>().is_ok(), "{random}");
    let status = plugins.status();
    assert_eq!(status[0].trapping_imports, ["wasi:sockets/instance-network@0.2.0#instance-network"]);
    let plugins = host.start(&[config("wasi_user", r#"{"call": "network"}"#)]);
    assert_eq!(query(&host, &plugins, "SELECT 1").1[0].verdict, "failed");
    assert!(plugins.status()[0].last_error.clone().unwrap().contains("instance-network"));
}

#[test]
fn a_pinned_hash_refuses_every_other_file() {
    let host = host();
    let hash: [u8; 32] = {
        use sha2::Digest as _;
        sha2::Sha256::digest(fs::read(built("versioned_v1")).unwrap()).into()
    };
    let right = PluginConfig { sha256: Some(hash), ..config("versioned_v1", "{}") };
    let wrong = PluginConfig { wasm: built("versioned_v2"), ..right.clone() };
    assert_eq!(host.start(&[right]).status()[0].state, "running");
    let status = &host.start(&[wrong]).status()[0];
    assert!(status.last_error.clone().unwrap().contains("SHA-256"), "{status:?}");
}

#[test]
fn a_changed_file_is_put_to_work_and_a_bad_one_leaves_the_old() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("plugin.wasm");
    put(&built("versioned_v1"), &file);
    let host = host();
    let plugins = host.start(&[PluginConfig { wasm: file.clone(), ..config("versioned_v1", "{}") }]);
    let answer = || message(query(&host, &plugins, "SELECT 1").0);
    assert_eq!(answer(), "v1");
    let generation = plugins.generation();
    put(&built("versioned_v2"), &file);
    wait_until("the new file", || answer() == "v2");
    assert!(plugins.generation() > generation);
    put(&built("failing_self_test"), &file);
    wait_until("the refusal", || plugins.status()[0].loads_refused == 1);
    assert_eq!((answer(), plugins.status()[0].state), ("v2".into(), "running"));
    // In its own place, as some editors write.
    fs::write(&file, fs::read(built("versioned_v1")).unwrap()).unwrap();
    wait_until("the old file", || answer() == "v1");
    // The same content again changes nothing.
    let applied = plugins.status()[0].loads_applied;
    put(&built("versioned_v1"), &file);
    wait_until("a look", || plugins.status()[0].loads_unchanged > 0);
    assert_eq!(plugins.status()[0].loads_applied, applied);
    // Gone, it runs on.
    fs::remove_file(&file).unwrap();
    assert_eq!(answer(), "v1");
    // Behind a link that is turned, as Kubernetes mounts files.
    let link = dir.path().join("link");
    std::os::unix::fs::symlink(built("versioned_v2"), &link).unwrap();
    fs::rename(&link, &file).unwrap();
    wait_until("the link", || answer() == "v2");
}

#[tokio::test(flavor = "multi_thread")]
async fn plugins_come_go_and_change_with_the_configuration() {
    let host = host();
    let plugins = host.start(&[]);
    assert!(!plugins.asks(Hook::Query));
    let settle = |generation: u64| {
        let plugins = plugins.clone();
        tokio::task::spawn_blocking(move || {
            wait_until("the configuration", || plugins.generation() > generation);
        })
    };
    let v1 = config("versioned_v1", "{}");
    let before = plugins.generation();
    plugins.reconfigure(std::slice::from_ref(&v1));
    settle(before).await.unwrap();
    assert_eq!(message(query(&host, &plugins, "SELECT 1").0), "v1");
    let before = plugins.generation();
    plugins.reconfigure(&[PluginConfig { config: r#"{"answer": "pass"}"#.into(), ..v1.clone() }]);
    settle(before).await.unwrap();
    assert_eq!(query(&host, &plugins, "SELECT 1").0, QueryVerdict::Pass);
    let before = plugins.generation();
    plugins.reconfigure(&[PluginConfig { config: r#"{"refuse": "v1"}"#.into(), ..v1 }]);
    settle(before).await.unwrap();
    assert_eq!(query(&host, &plugins, "SELECT 1").0, QueryVerdict::Pass, "the old configuration holds");
    assert!(matches!(plugins.reload("versioned-v1").await, Err(ReloadError::Refused(_))));
    assert_eq!(plugins.reload("none").await, Err(ReloadError::Unknown));
    let before = plugins.generation();
    plugins.reconfigure(&[]);
    settle(before).await.unwrap();
    assert!(!plugins.asks(Hook::Query) && plugins.status().is_empty());
}

#[test]
fn kept_verdicts_cost_no_call_and_a_reload_forgets_them() {
    let host = host();
    let plugins = host.start(&[config("probe", r#"{"mode": "pure"}"#)]);
    // A name has one number while a session holds it.
    let _held = plugins.names(2, "app", "db", "default", "", "127.0.0.1");
    for _ in 0..100 {
        assert_eq!(query(&host, &plugins, "SELECT 1").0, QueryVerdict::Pass);
    }
    query_as(&host, &plugins, "other", "SELECT 1");
    query(&host, &plugins, "SELECT 1, 2");
    let status = &plugins.status()[0];
    assert_eq!((status.calls, status.cache_hits), (3, 99));
}

#[test]
fn a_shadow_decides_nothing_and_its_differences_are_counted() {
    let host = host();
    let config = PluginConfig { shadow: Some(built("versioned_v2")), ..config("versioned_v1", "{}") };
    let plugins = host.start(&[config]);
    for _ in 0..5 {
        assert_eq!(message(query(&host, &plugins, "SELECT 1").0), "v1");
    }
    query(&host, &plugins, "INSERT INTO t VALUES (1)");
    let status = &plugins.status()[0];
    assert_eq!(status.shadow_differences, 5);
    assert!(status.shadow_sha256.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn reloads_leave_nothing_behind() {
    let host = host();
    let plugins = host.start(&[config("versioned_v1", "{}")]);
    let machine = host.host.machine().unwrap();
    let instances = || machine.engine.pooling_allocator_metrics().unwrap().component_instances();
    query(&host, &plugins, "SELECT 1");
    let before = instances();
    for _ in 0..20 {
        assert_eq!(plugins.reload("versioned-v1").await, Ok(ReloadOutcome::Applied));
        query(&host, &plugins, "SELECT 1");
    }
    assert_eq!(instances(), before);
    let mut rendered = String::new();
    host.metrics.render(&mut rendered);
    assert_eq!(rendered, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn observers_are_told_in_order_and_a_full_queue_is_felt_or_counted() {
    let dir = TempDir::new().unwrap();
    let audit = AuditConfig {
        sink: AuditSink::File(dir.path().join("audit.log")),
        rotate_bytes: 1 << 20,
        keep: 1,
        queue: 10,
        when_full: WhenFull::Block,
    };
    let host = host_with(Some(&audit), 16);
    let plugins = host.start(&[config("hostile", r#"{"do": "nothing", "hooks": ["on-events"]}"#)]);
    assert!(plugins.asks(Hook::Events));
    for n in 0..100 {
        let (_, facts, _) = (host.know)(Dialect::Postgresql, b"SELECT 1");
        let completion = Completion {
            at_ms: 1,
            names: plugins.names(n, "app", "db", "default", "", ""),
            dialect: Dialect::Postgresql,
            digest: 7,
            facts,
            text: None,
            hint: "".into(),
            in_transaction: false,
            duration: Duration::from_millis(1),
            database: Duration::ZERO,
            rows: 1,
            error: String::new(),
            target: Some("db1:5432".into()),
            role: Role::ReadWrite,
            pinned: false,
            decisions: Vec::new(),
        };
        match plugins.emit(Event::Completion(Box::new(completion))) {
            Emitted::Done => {}
            Emitted::Full(event) => plugins.emit_when_room(event).await,
            Emitted::Lost => panic!("nothing is lost where the sink blocks"),
        }
    }
    tokio::time::timeout(Duration::from_secs(20), plugins.shut_down()).await.unwrap();
    host.host.shut_down().await;
    let status = &plugins.status()[0];
    assert!(status.calls >= 1 && status.traps == 0, "{status:?}");
}

/// Resident memory of this process, in MB.
fn resident() -> u64 {
    let statm = fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4 / 1024
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_go_on_while_files_change_and_memory_does_not_grow() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("plugin.wasm");
    let cache = dir.path().join("cache");
    put(&built("versioned_v1"), &file);
    let metrics = Arc::new(UserMetrics::default());
    let plugins_config = PluginsConfig { cache_directory: Some(cache.clone()), event_queue: 16 };
    let host = Host {
        host: PluginHost::new(&plugins_config, None, 2, metrics.clone()).unwrap(),
        metrics,
        know: know(),
    };
    let plugins = host.start(&[PluginConfig { wasm: file.clone(), ..config("versioned_v1", "{}") }]);
    let stop = std::sync::atomic::AtomicBool::new(false);
    let mut before = 0;
    let reloads = async {
        for n in 0..200 {
            if n == 20 {
                before = resident();
            }
            put(&built(if n % 2 == 0 { "versioned_v2" } else { "versioned_v1" }), &file);
            let reloaded = plugins.reload("versioned-v1").await;
            assert!(reloaded.is_ok(), "{reloaded:?}");
        }
    };
    let handle = tokio::runtime::Handle::current();
    let asked = std::thread::scope(|scope| {
        let asking: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let mut asked = 0_u64;
                    while !stop.load(Ordering::Relaxed) {
                        let answer = message(query(&host, &plugins, "SELECT 1").0);
                        let status = || plugins.status()[0].last_error.clone();
                        assert!(answer == "v1" || answer == "v2", "{answer}: {:?}", status());
                        asked += 1;
                    }
                    asked
                })
            })
            .collect();
        let reloading = scope.spawn(|| handle.block_on(reloads));
        let reloaded = reloading.join();
        stop.store(true, Ordering::Relaxed);
        reloaded.unwrap();
        asking.into_iter().map(|thread| thread.join().unwrap()).sum::<u64>()
    });
    assert!(asked > 1_000, "{asked}");
    let status = &plugins.status()[0];
    assert_eq!((status.state, status.traps), ("running", 0), "{status:?}");
    let grown = resident().saturating_sub(before);
    assert!(grown < 64, "{grown} MB more after 180 reloads");
    assert!(fs::read_dir(cache).unwrap().count() > 0);
}
