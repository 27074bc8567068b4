//! What one hook call costs: `cargo xtask plugins && cargo bench --package pinion --bench hooks`.
//!
//! Plain loops, many batches; the figures are nanoseconds per call, least and median. On a machine with neighbours the
//! least is the figure to trust, and ratios within one run.

use std::{
    hint::black_box,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use pinion::{
    config::{FailureMode, Grants, OnFailure, PluginConfig, PluginsConfig},
    plugin::{Ask, Hook, PluginHost, Plugins, QueryVerdict},
    protocol::{Protocol as _, postgres::Postgres},
};

const BATCHES: usize = 200;
const CALLS: u32 = 5_000;

fn probe() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target"), PathBuf::from);
    target.join("plugins/fixtures/probe.wasm")
}

fn plugin(n: usize, mode: &str) -> PluginConfig {
    PluginConfig {
        name: format!("probe-{n}"),
        wasm: probe(),
        sha256: None,
        grants: Grants::default(),
        on_failure: OnFailure::all(FailureMode::Closed),
        config: format!("{{\"mode\": \"{mode}\"}}"),
        deadline: Duration::from_millis(100),
        events_deadline: Duration::from_secs(1),
        memory_bytes: 16 << 20,
        store_bytes: 1 << 20,
        log_lines_per_second: 100,
        retry_after: Duration::from_secs(60),
        vectors: None,
        shadow: None,
    }
}

fn main() {
    if !probe().exists() {
        eprintln!("the plugin that is measured is not built: run `cargo xtask plugins` first");
        return;
    }
    let config = PluginsConfig { cache_directory: None, event_queue: 16 };
    let host = PluginHost::new(&config, None, 1, Arc::default()).expect("no sink is opened");
    let shared = Postgres::shared(10);
    let short = "SELECT abalance FROM pgbench_accounts WHERE aid = 4711";
    let long = format!("SELECT {}", vec!["abalance"; 110].join(", "));
    println!("| case | text, bytes | least ns | median ns |\n|---|---:|---:|---:|");
    for (case, modes, text) in [
        ("no plugin", &[][..], short),
        ("not subscribed", &["unsubscribed"], short),
        ("pure, a hit", &["pure"], short),
        ("ids only", &["ids"], short),
        ("text read", &["text"], short),
        ("text read", &["text"], long.as_str()),
        ("three: not subscribed", &["unsubscribed"; 3], short),
        ("three: pure, hits", &["pure"; 3], short),
        ("three: ids only", &["ids"; 3], short),
        ("three: text read", &["text"; 3], short),
        ("three: text read", &["text"; 3], long.as_str()),
    ] {
        let configs: Vec<PluginConfig> = modes.iter().enumerate().map(|(n, mode)| plugin(n, mode)).collect();
        let plugins = Plugins::start(&host, case, &configs);
        let names = plugins.names(1, "app", "db", "default", "bench", "127.0.0.1");
        let (digest, facts, hint) = Postgres::know(&shared, text.as_bytes());
        let ask = Ask {
            names: &names,
            dialect: Postgres::DIALECT,
            digest,
            facts: &facts,
            text: text.as_bytes(),
            hint: &hint,
            in_transaction: false,
            prepares: false,
        };
        let mut decisions = Vec::new();
        let mut batches: Vec<Duration> = (0..BATCHES)
            .map(|_| {
                let begun = Instant::now();
                for _ in 0..CALLS {
                    // As the session does.
                    if black_box(&plugins).asks(Hook::Query) {
                        let verdict = plugins.on_query(black_box(&ask), 0, &mut decisions);
                        assert_eq!(verdict, QueryVerdict::Pass, "a call failed");
                    }
                }
                begun.elapsed() / CALLS
            })
            .collect();
        batches.sort_unstable();
        let (least, median) = (batches[0], batches[BATCHES / 2]);
        println!("| {case} | {} | {} | {} |", text.len(), least.as_nanos(), median.as_nanos());
    }
}
