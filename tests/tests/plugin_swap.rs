//! Plugins are replaced while clients are at full speed: no query fails, every answer comes from exactly one version,
//! and nothing is kept of the versions that are gone.
#![allow(clippy::unwrap_used)]

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use pinion_tests::{Client, Plugin, Proxy, Server, long_run, poll, replace_file};

const NAME: &str = "versioned";

/// One answer: when it was asked for, when it came, and the version that it names.
type Answer = (Instant, Instant, u8);

fn plugin(answer: &str) -> Plugin {
    Plugin::fixture("versioned-v1").named(NAME).setting(&format!("config = {{ answer = \"{answer}\" }}"))
}

/// Puts version 1 or 2 into the plugin's file.
fn put(proxy: &Proxy, version: u8) {
    let file = Plugin::built(&format!("fixtures/versioned-v{version}"));
    replace_file(&file, &proxy.dir().join(format!("{NAME}.wasm")));
}

async fn reload(proxy: &Proxy) -> (u16, serde_json::Value) {
    proxy.admin("POST", &format!("/plugins/{NAME}/reload")).await
}

/// The plugin's entry in `GET /plugins`.
async fn status(proxy: &Proxy) -> serde_json::Value {
    let (code, plugins) = proxy.admin("GET", "/plugins").await;
    assert_eq!(code, 200, "{plugins}");
    let plugins = plugins["plugins"].as_array().unwrap();
    plugins.iter().find(|plugin| plugin["name"] == NAME).unwrap().clone()
}

/// Asks again and again which version answers, until told to stop.
async fn ask(client: Client, prepared: bool, stop: Arc<AtomicBool>) -> Vec<Answer> {
    let mut answers = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let asked = Instant::now();
        let version: String = if prepared {
            client.query_one("SELECT 'none'::text AS version", &[]).await.unwrap().get(0)
        } else {
            client.scalar("SELECT 'none'").await
        };
        let number = match version.as_str() {
            "v1" => 1,
            "v2" => 2,
            other => panic!("answered by {other}"),
        };
        answers.push((asked, Instant::now(), number));
    }
    answers
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_swaps_under_load_fail_no_query_and_mix_no_versions() {
    const CLIENTS: usize = 100;
    const SWAPS: u8 = 50;
    let pg = Server::postgres().start().await;
    let proxy = Proxy::in_front_of(&pg).max_connections(20).admin().plugin(plugin("rewrite")).start().await;
    let stop = Arc::new(AtomicBool::new(false));
    let mut asking = Vec::new();
    for n in 0..CLIENTS {
        asking.push(tokio::spawn(ask(proxy.connect().await, n % 2 == 0, stop.clone())));
    }
    // When each reload was asked for, and when it was said to be done.
    let mut swaps: Vec<(Instant, Instant)> = Vec::new();
    for swap in 0..SWAPS {
        let version = 2 - swap % 2;
        put(&proxy, version);
        let begun = Instant::now();
        let (code, body) = reload(&proxy).await;
        assert_eq!(code, 200, "{body}");
        swaps.push((begun, Instant::now()));
        assert_eq!(status(&proxy).await["version"], format!("{version}.0.0"));
    }
    stop.store(true, Ordering::Relaxed);
    let mut answers = Vec::new();
    for asking in asking {
        answers.extend(asking.await.unwrap());
    }
    // The file's change may have been noticed, and acted on, before the request to reload was made: so a swap may have
    // happened at any moment after the one before it was done.
    for (at, (_, done)) in swaps.iter().enumerate() {
        let new = 2 - (at % 2) as u8;
        let until = swaps.get(at + 1).map_or_else(Instant::now, |(begun, _)| *begun);
        let settled = answers.iter().filter(|(asked, came, _)| asked > done && *came < until - FILE_NOTICED);
        for (_, _, version) in settled {
            assert_eq!(*version, new, "after swap {at}");
        }
    }
    let slowest = answers.iter().map(|(asked, came, _)| *came - *asked).max().unwrap();
    let near = |(_, done): &(Instant, Instant), version: u8| {
        let times = answers.iter().filter(|(.., v)| *v == version).map(|(_, came, _)| *came);
        times
            .filter(|came| came.max(done).duration_since(*came.min(done)) < Duration::from_millis(100))
            .count()
    };
    let both = swaps.iter().filter(|swap| near(swap, 1) > 0 && near(swap, 2) > 0).count();
    let reloads: Vec<Duration> = swaps.iter().map(|(begun, done)| *done - *begun).collect();
    println!(
        "{} answers to {CLIENTS} clients over {SWAPS} swaps, none failed; slowest answer {slowest:?}; reload {:?} to {:?}; \
         both versions answered within 100 ms of the swap in {both} of {SWAPS}",
        answers.len(),
        reloads.iter().min().unwrap(),
        reloads.iter().max().unwrap(),
    );
    let metrics = proxy.metrics().await;
    assert_eq!(metrics.sum("pinion_plugin_traps_total", &[]), 0.0);
    assert!(answers.len() > CLIENTS * usize::from(SWAPS), "only {} answers", answers.len());
}

/// Before a reload that is asked for, the watcher may have swapped for the same file.
const FILE_NOTICED: Duration = Duration::from_millis(50);

/// Nothing of a version that is gone stays in memory.
#[tokio::test]
async fn five_hundred_reloads_do_not_grow() {
    let reloads: u32 = if long_run() { 5000 } else { 500 };
    let pg = Server::postgres().start().await;
    let proxy = Proxy::in_front_of(&pg).max_connections(2).admin().plugin(plugin("rewrite")).start().await;
    let client = proxy.connect().await;
    let mut resident = Vec::new();
    for n in 0..reloads {
        let version = 2 - (n % 2) as u8;
        put(&proxy, version);
        let (code, body) = reload(&proxy).await;
        assert_eq!(code, 200, "{body}");
        assert_eq!(client.scalar::<String>("SELECT 'none'").await, format!("v{version}"));
        if n % (reloads / 10) == 0 {
            resident.push(proxy.memory_kib("VmRSS"));
        }
    }
    resident.push(proxy.memory_kib("VmRSS"));
    println!("resident KiB at each tenth of {reloads} reloads: {resident:?}");
    // The first hundred fill caches and spare memory.
    let (early, last) = (resident[2], *resident.last().unwrap());
    assert!(last < early + 8 * 1024, "grown from {early} to {last} KiB");
}

/// A file that no plugin is in leaves the old one at work, however it came; a good one then takes over.
#[tokio::test]
async fn a_bad_file_changes_nothing() {
    let pg = Server::postgres().start().await;
    let proxy = Proxy::in_front_of(&pg).admin().plugin(plugin("reject")).start().await;
    let client = proxy.connect().await;
    let answer = async || {
        client.try_execute("SELECT 1").await.unwrap_err().as_db_error().unwrap().message().to_owned()
    };
    assert_eq!(answer().await, "v1");
    let file = proxy.dir().join(format!("{NAME}.wasm"));
    let bad = tempfile::NamedTempFile::new().unwrap();
    let whole = std::fs::read(&file).unwrap();
    for (what, bytes) in [
        ("truncated", &whole[..whole.len() / 2]),
        ("text", b"this is no plugin at all".as_slice()),
        ("empty", b"".as_slice()),
    ] {
        std::fs::write(bad.path(), bytes).unwrap();
        replace_file(bad.path(), &file);
        let (code, body) = reload(&proxy).await;
        assert!((400..=599).contains(&code), "{what}: {code} {body}");
        assert_eq!(answer().await, "v1", "{what}");
        // The watcher may be looking at the same file.
        let status = poll("the plugin is at rest", async || {
            Some(status(&proxy).await).filter(|status| status["state"] == "running")
        })
        .await;
        assert!(status["last_error"].as_str().is_some_and(|error| !error.is_empty()), "{what}: {status}");
    }
    std::fs::remove_file(&file).unwrap();
    assert_eq!(answer().await, "v1");
    put(&proxy, 2);
    // Nobody asks for this reload: the file is watched.
    poll("version 2 answers", async || (answer().await == "v2").then_some(())).await;
    assert!(proxy.metric("pinion_plugin_reloads_total", &[("outcome", "refused")]).await >= 3.0);
}

/// A file whose digest is pinned is taken only when it is that very file.
#[tokio::test]
async fn a_pinned_digest_refuses_another_file() {
    use sha2::Digest as _;
    let bytes = std::fs::read(Plugin::built("fixtures/versioned-v1")).unwrap();
    let digest: String = sha2::Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    let pg = Server::postgres().start().await;
    let pinned = plugin("reject").setting(&format!("sha256 = \"{digest}\""));
    let proxy = Proxy::in_front_of(&pg).admin().plugin(pinned).start().await;
    let client = proxy.connect().await;
    let answer = async || {
        client.try_execute("SELECT 1").await.unwrap_err().as_db_error().unwrap().message().to_owned()
    };
    assert_eq!(answer().await, "v1");
    put(&proxy, 2);
    let (code, body) = reload(&proxy).await;
    assert!((400..=599).contains(&code), "{code} {body}");
    assert!(body.to_string().contains("sha256"), "{body}");
    assert_eq!(answer().await, "v1");
    assert_eq!(status(&proxy).await["sha256"], digest);
}

/// SIGHUP reloads too, and the configuration with it; one that the plugin refuses leaves the old one at work.
#[tokio::test]
async fn a_configuration_that_the_plugin_refuses_changes_nothing() {
    let pg = Server::postgres().start().await;
    let proxy = Proxy::in_front_of(&pg).admin().plugin(plugin("reject")).start().await;
    let client = proxy.connect().await;
    proxy.rewrite_config(|config| config.replace("answer = \"reject\"", "anwser = \"reject\""));
    proxy.sighup();
    proxy.logged("unknown field `anwser`").await;
    let error = client.try_execute("SELECT 1").await.unwrap_err();
    assert_eq!(error.as_db_error().unwrap().message(), "v1");
    proxy.rewrite_config(|config| config.replace("anwser = \"reject\"", "answer = \"pass\""));
    proxy.sighup();
    poll("the new configuration rules", async || client.try_execute("SELECT 1").await.ok()).await;
}

/// A candidate runs beside the plugin in charge: only its differing verdicts are told.
#[tokio::test]
async fn a_shadow_changes_nothing_and_its_differences_are_counted() {
    let pg = Server::postgres().start().await;
    let builder = Proxy::in_front_of(&pg).admin();
    let shadow = Plugin::built("fixtures/versioned-v2");
    let shadowed = plugin("reject").setting(&format!("shadow = \"{}\"", shadow.display()));
    let proxy = builder.plugin(shadowed).start().await;
    let client = proxy.connect().await;
    for _ in 0..5 {
        let error = client.try_execute("SELECT 1").await.unwrap_err();
        assert_eq!(error.as_db_error().unwrap().message(), "v1");
    }
    poll("differences are counted", async || {
        (proxy.metric("pinion_plugin_shadow_differences_total", &[("plugin", NAME)]).await >= 5.0)
            .then_some(())
    })
    .await;
}
