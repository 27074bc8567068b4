//! Loads plugins, watches their files, and puts new ones in place: off the query path, on a thread of each proxy's own.
//!
//! Whatever fails leaves what runs as it is.

use std::{
    collections::{BTreeSet, HashMap},
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak},
    thread,
    time::{Duration, Instant, SystemTime},
};

use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use serde::Serialize;
use tokio::sync::oneshot;
use tracing::{error, info, warn};

use super::{
    Chain, LoadError, PluginHost, Plugins,
    breaker::Breaker,
    generation::Generation,
    load::{self, hex},
    shared::{RateLimit, Shared},
    slot::{History, Member, Slot},
    store::Store,
    user_metrics::Table,
    vectors::{self, Vectors},
};
use crate::{config::PluginConfig, metrics::PluginMetrics};

/// How long a file must have been left alone.
const DEBOUNCE: Duration = Duration::from_millis(200);
/// Files that are written to all the time are looked at after this.
const DEBOUNCE_MOST: Duration = Duration::from_secs(2);
/// Files are looked at this often whether or not a change was told of.
const LOOK: Duration = Duration::from_secs(10);
/// Reloads that may wait.
const REQUESTS: usize = 64;

/// What a reload came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReloadOutcome {
    /// The new file is at work.
    Applied,
    /// It is the one that runs.
    Unchanged,
}

/// A plugin as operators see it.
#[derive(Debug, Clone, Serialize)]
pub struct PluginStatus {
    /// Configured name.
    pub name: String,
    /// The proxy it belongs to.
    pub proxy: String,
    /// `running`, `failed` (never loaded), `broken` (switched off), `loading`.
    pub state: &'static str,
    /// The plugin's own word; empty when none runs.
    pub version: String,
    /// Of the file that runs; empty when none does.
    pub sha256: String,
    /// Seconds since 1970 since when that file runs, or since the plugin has failed.
    pub since: u64,
    /// Hooks that it subscribed to.
    pub hooks: Vec<&'static str>,
    /// Imports that trap when it calls them.
    pub trapping_imports: Vec<String>,
    /// Calls so far.
    pub calls: u64,
    /// Calls that failed.
    pub traps: u64,
    /// Verdicts that were kept and given again.
    pub cache_hits: u64,
    /// Loads that succeeded.
    pub loads_applied: u64,
    /// Loads that found nothing new.
    pub loads_unchanged: u64,
    /// Loads that were refused.
    pub loads_refused: u64,
    /// The last thing that went wrong.
    pub last_error: Option<String>,
    /// SHA-256 of the shadow that runs.
    pub shadow_sha256: Option<String>,
    /// Verdicts in which the shadow differed.
    pub shadow_differences: u64,
}

/// Why a reload was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReloadError {
    /// There is no such plugin.
    #[error("there is no plugin of that name")]
    Unknown,
    /// Too many reloads wait, or the host is stopping.
    #[error("the host is busy or stopping")]
    Busy,
    /// The file was refused; the old one runs on.
    #[error("{0}")]
    Refused(LoadError),
}

type Reply = oneshot::Sender<Result<ReloadOutcome, ReloadError>>;

/// What the thread has to do.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    inner: Mutex<Work>,
    wake: Condvar,
}

#[derive(Debug, Default)]
struct Work {
    /// Something changed in a watched directory: first and last seen.
    changed: Option<(Instant, Instant)>,
    reloads: Vec<(String, Reply)>,
    configs: Option<Vec<PluginConfig>>,
    stop: bool,
}

enum Task {
    Look,
    Reload(String, Reply),
    Configure(Vec<PluginConfig>),
}

impl Inbox {
    fn lock(&self) -> MutexGuard<'_, Work> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn stop(&self) {
        self.lock().stop = true;
        self.wake.notify_all();
    }

    fn note_change(&self) {
        let now = Instant::now();
        let mut work = self.lock();
        work.changed = Some((work.changed.map_or(now, |(first, _)| first), now));
        drop(work);
        self.wake.notify_one();
    }

    fn ask(&self, name: &str, reply: Reply) -> Result<(), ReloadError> {
        let mut work = self.lock();
        if work.stop || work.reloads.len() >= REQUESTS {
            return Err(ReloadError::Busy);
        }
        work.reloads.push((name.to_owned(), reply));
        drop(work);
        self.wake.notify_one();
        Ok(())
    }

    /// The next thing to do; `None` at the end.
    fn next(&self) -> Option<Task> {
        let look_at = Instant::now() + LOOK;
        let mut work = self.lock();
        loop {
            if work.stop {
                return None;
            }
            if let Some(configs) = work.configs.take() {
                return Some(Task::Configure(configs));
            }
            if !work.reloads.is_empty() {
                let (name, reply) = work.reloads.remove(0);
                return Some(Task::Reload(name, reply));
            }
            let due = work
                .changed
                .map_or(look_at, |(first, last)| (last + DEBOUNCE).min(first + DEBOUNCE_MOST).min(look_at));
            let Some(left) = due.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) else {
                work.changed = None;
                return Some(Task::Look);
            };
            work = self.wake.wait_timeout(work, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// Watches the directories of files: a file that is put in another's place is a change of the directory.
struct Watched {
    watcher: Option<RecommendedWatcher>,
    directories: BTreeSet<PathBuf>,
}

impl Watched {
    fn new(inbox: &Arc<Inbox>) -> Self {
        let inbox = inbox.clone();
        let told = move |event: notify::Result<notify::Event>| {
            if event.is_ok_and(|event| !event.kind.is_access()) {
                inbox.note_change();
            }
        };
        let watcher = notify::recommended_watcher(told)
            .inspect_err(|error| {
                warn!(%error, "plugin files cannot be watched; they are looked at every 10 s");
            })
            .ok();
        Self { watcher, directories: BTreeSet::new() }
    }

    fn set(&mut self, files: &BTreeSet<PathBuf>) {
        let Some(watcher) = &mut self.watcher else { return };
        let parent = |path: &Path| {
            path.parent()
                .map(|parent| if parent.as_os_str().is_empty() { Path::new(".") } else { parent }.to_owned())
        };
        let mut wanted = BTreeSet::new();
        for file in files {
            wanted.extend(parent(file));
            // What a link leads to may change in its own place.
            wanted.extend(file.canonicalize().ok().as_deref().and_then(parent));
        }
        for gone in self.directories.difference(&wanted) {
            let _ = watcher.unwatch(gone);
        }
        let mut now = BTreeSet::new();
        for directory in wanted {
            if self.directories.contains(&directory) {
                now.insert(directory);
                continue;
            }
            match watcher.watch(&directory, RecursiveMode::NonRecursive) {
                Ok(()) => {
                    now.insert(directory);
                }
                Err(error) => {
                    warn!(directory = %directory.display(), %error, "cannot be watched; looked at every 10 s");
                }
            }
        }
        self.directories = now;
    }
}

/// A file as the system shows it: another one when this is another.
type Stamp = Option<(u64, u64, u64, i64, i64)>;

fn stamp(path: &Path) -> Stamp {
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino(), metadata.len(), metadata.mtime(), metadata.mtime_nsec()))
}

/// What was made of one configuration.
struct Loaded {
    generation: Generation,
    shadow: Option<Generation>,
}

impl Plugins {
    /// Loads everything and starts the thread.
    pub(super) fn manage(self: &Arc<Self>, configs: &[PluginConfig]) {
        let mut stamps = HashMap::new();
        note_stamps(&mut stamps, configs);
        self.configure(configs);
        let (plugins, inbox) = (Arc::downgrade(self), self.inbox.clone());
        let started = thread::Builder::new()
            .name("pinion-plugins".into())
            .spawn(move || run(&plugins, &inbox, stamps))
            .map(drop);
        if let Err(error) = started {
            error!(proxy = &*self.proxy, %error, "no thread for plugins: they cannot be reloaded");
        }
    }

    /// Takes over another list of plugins: added, removed, changed. What cannot be loaded stays as it was.
    pub fn reconfigure(&self, configs: &[PluginConfig]) {
        if self.host.is_some() {
            self.inbox.lock().configs = Some(configs.to_vec());
            self.inbox.wake.notify_one();
        }
    }

    /// Loads a plugin's file again.
    ///
    /// # Errors
    /// When there is no such plugin, or its file is refused: then the old one runs on.
    pub async fn reload(&self, name: &str) -> Result<ReloadOutcome, ReloadError> {
        let (reply, answer) = oneshot::channel();
        self.inbox.ask(name, reply)?;
        answer.await.unwrap_or(Err(ReloadError::Busy))
    }

    /// Every plugin, in configuration order.
    pub fn status(&self) -> Vec<PluginStatus> {
        self.chain.load().members.iter().map(status).collect()
    }

    fn configure(self: &Arc<Self>, configs: &[PluginConfig]) {
        let Some(host) = self.host.clone() else { return };
        let old = self.chain.load_full();
        let same_order = old
            .members
            .iter()
            .map(|member| &*member.slot.shared.name)
            .eq(configs.iter().map(|config| config.name.as_str()));
        let mut members = Vec::new();
        for config in configs {
            let found = old.members.iter().find(|member| *member.slot.shared.name == *config.name);
            let mut member = found.cloned().unwrap_or_else(|| self.member(&host, config));
            // What was refused before is tried again: what it failed for may have been mended elsewhere.
            let force = {
                let mut history = member.slot.history();
                let force = found.is_none() || history.wanted != *config || !history.settled;
                history.wanted = config.clone();
                force
            };
            if self.load(&host, &mut member, force).is_err() && member.generation.is_none() {
                // Nothing of its own to keep: what was configured holds.
                member.on_failure = config.on_failure;
            }
            members.push(member);
        }
        for gone in &old.members {
            if !members.iter().any(|member| Arc::ptr_eq(&member.slot, &gone.slot)) {
                gone.slot.shared.metrics.in_state(None);
                info!(proxy = &*self.proxy, plugin = &*gone.slot.shared.name, "plugin removed");
            }
        }
        if members.is_empty() && old.members.is_empty() {
            return;
        }
        let order = if same_order { old.order } else { old.order + 1 };
        self.set_chain(Chain { order, members });
        self.start_events();
    }

    fn start_events(self: &Arc<Self>) {
        if self.asks(super::Hook::Events)
            && let Err(error) = super::events::start(self, &self.events)
        {
            error!(proxy = &*self.proxy, %error, "observers get no events");
        }
    }

    fn member(&self, host: &PluginHost, config: &PluginConfig) -> Member {
        let metrics = Arc::new(PluginMetrics::new(&self.proxy, &config.name));
        let shared = self.shared(host, config, &metrics, false);
        let history = History {
            wanted: config.clone(),
            since: SystemTime::now(),
            last_error: None,
            applied: 0,
            unchanged: 0,
            refused: 0,
            tried: Vec::new(),
            settled: false,
            loading: false,
            shadow_differences: 0,
            before: Default::default(),
        };
        let slot = Slot { shared, breaker: Breaker::new(config.retry_after), history: Mutex::new(history) };
        Member { slot: Arc::new(slot), generation: None, shadow: None, on_failure: config.on_failure }
    }

    /// Its side of the host; a muted one for what is on trial.
    fn shared(
        &self,
        host: &PluginHost,
        config: &PluginConfig,
        metrics: &Arc<PluginMetrics>,
        muted: bool,
    ) -> Arc<Shared> {
        let registry = (!muted).then(|| host.metrics.clone());
        Arc::new(Shared {
            proxy: self.proxy.clone(),
            name: config.name.as_str().into(),
            store: Store::new(config.store_bytes),
            log: RateLimit::new(config.log_lines_per_second),
            table: Table::new(registry, &self.proxy, &config.name),
            audit: host.audit.clone(),
            names: host.names.clone(),
            metrics: metrics.clone(),
            muted,
        })
    }

    /// Loads what a member's configuration names and puts it into the member. `force` also when it is the same file.
    fn load(&self, host: &PluginHost, member: &mut Member, force: bool) -> Result<ReloadOutcome, LoadError> {
        let slot = member.slot.clone();
        let (proxy, plugin) = (&*self.proxy, &*slot.shared.name);
        let config = {
            let mut history = slot.history();
            history.loading = true;
            history.wanted.clone()
        };
        let began = Instant::now();
        let loaded = self.load_files(host, member, &config, force);
        let mut history = slot.history();
        history.loading = false;
        match loaded {
            Ok(None) => {
                history.unchanged += 1;
                slot.shared.metrics.reloads[1].increment(1);
                Ok(ReloadOutcome::Unchanged)
            }
            Ok(Some(loaded)) => {
                let generation = Arc::new(loaded.generation);
                info!(
                    proxy,
                    plugin,
                    version = %generation.version,
                    sha256 = %hex(&generation.sha256),
                    took_ms = began.elapsed().as_millis(),
                    shadow = loaded.shadow.is_some(),
                    "plugin loaded"
                );
                if !generation.trapping.is_empty() {
                    warn!(proxy, plugin, imports = ?generation.trapping, "these imports trap when they are called");
                }
                history.applied += 1;
                history.settled = true;
                history.since = SystemTime::now();
                history.last_error = None;
                if let Some(old) = &member.generation {
                    let counts = old.counts();
                    history.before.calls += counts.calls;
                    history.before.traps += counts.traps;
                    history.before.cache_hits += counts.cache_hits;
                }
                slot.shared.store.set_limit(config.store_bytes);
                slot.shared.log.set(config.log_lines_per_second);
                slot.breaker.reset(config.retry_after);
                slot.shared.metrics.reloads[0].increment(1);
                slot.shared.metrics.in_state(Some("running"));
                member.generation = Some(generation);
                member.shadow = loaded.shadow.map(Arc::new);
                member.on_failure = config.on_failure;
                Ok(ReloadOutcome::Applied)
            }
            Err(error) => {
                history.refused += 1;
                history.settled = false;
                history.last_error = Some(error.to_string());
                slot.shared.metrics.reloads[2].increment(1);
                if member.generation.is_some() {
                    error!(proxy, plugin, step = error.step, why = %error.why, "plugin refused; the old one runs on");
                } else {
                    slot.shared.metrics.in_state(Some("failed"));
                    error!(proxy, plugin, step = error.step, why = %error.why, "plugin refused; its on_failure holds");
                }
                Err(error)
            }
        }
    }

    /// `None` when nothing is new.
    fn load_files(
        &self,
        host: &PluginHost,
        member: &Member,
        config: &PluginConfig,
        force: bool,
    ) -> Result<Option<Loaded>, LoadError> {
        let file = load::read(&config.wasm)?;
        let shadow_file = config.shadow.as_deref().map(load::read).transpose()?;
        let vectors_file = config.vectors.as_deref().map(load::read).transpose()?;
        let mut tried = vec![file.sha256];
        tried.extend(shadow_file.iter().chain(&vectors_file).map(|file| file.sha256));
        let before = std::mem::replace(&mut member.slot.history().tried, tried.clone());
        if !force && before == tried {
            return Ok(None);
        }
        if let Some(wanted) = config.sha256
            && wanted != file.sha256
        {
            let (found, wanted) = (hex(&file.sha256), hex(&wanted));
            let why = format!("its SHA-256 is {found}, and {wanted} is configured");
            return Err(LoadError::new("sha256", why));
        }
        let vectors = vectors_file
            .map(|file| {
                String::from_utf8(file.bytes)
                    .map_err(|_| LoadError::new("self-test", "the file of test vectors is not UTF-8"))
            })
            .transpose()?;
        let shared = member.slot.shared.clone();
        let generation = self.bring_up(host, &file, config, shared, vectors.as_deref())?;
        let shadow = match &shadow_file {
            None => None,
            Some(file) => {
                let shared = self.shared(host, config, &member.slot.shared.metrics, true);
                let shadow = self.bring_up(host, file, config, shared, vectors.as_deref());
                Some(shadow.map_err(|error| {
                    LoadError::new(error.step, format!("the shadow was refused: {}", error.why))
                })?)
            }
        };
        Ok(Some(Loaded { generation, shadow }))
    }

    /// Compiles a file, tries it out with everything muted, and makes the first instance that counts.
    fn bring_up(
        &self,
        host: &PluginHost,
        file: &load::File,
        config: &PluginConfig,
        shared: Arc<Shared>,
        vectors: Option<&str>,
    ) -> Result<Generation, LoadError> {
        let machine = host.machine().map_err(|why| LoadError::new("compile", why))?;
        let compiled = load::compile(machine, &file.bytes)?;
        {
            let try_out = |config: &PluginConfig| {
                let muted = self.shared(host, config, &shared.metrics, true);
                let (compiled, ticking) = (compiled.clone(), machine.keep_ticking());
                Generation::start(compiled, file.sha256, config, muted, 1, ticking)
            };
            let trial = try_out(config)?;
            let own = trial.self_test()?;
            for (whose, text) in [("its own", Some(own.as_str())), ("the configured", vectors)] {
                if let Some(text) = text.filter(|text| !text.trim().is_empty()) {
                    let failed = |why| LoadError::new("self-test", format!("{whose} test vectors: {why}"));
                    let vectors = vectors::parse(text).map_err(failed)?;
                    match &vectors.config {
                        // A plugin cannot know the operator's configuration, and its vectors bring their own.
                        Some(table) => {
                            let table =
                                serde_json::to_string(table).map_err(|why| failed(why.to_string()))?;
                            let trial = try_out(&PluginConfig { config: table, ..config.clone() })?;
                            self_test(whose, &vectors, &trial, host)?;
                        }
                        None => self_test(whose, &vectors, &trial, host)?,
                    }
                }
            }
        }
        let lanes = host.lanes;
        Generation::start(compiled, file.sha256, config, shared, lanes, machine.keep_ticking())
    }

    /// Looks whether files have changed and loads those.
    fn look(self: &Arc<Self>, stamps: &mut HashMap<PathBuf, Stamp>) {
        let Some(host) = self.host.clone() else { return };
        let chain = self.chain.load_full();
        for member in &chain.members {
            let files = files_of(&member.slot.history().wanted);
            let mut changed = false;
            for path in &files {
                let now = stamp(path);
                let before = stamps.insert(path.clone(), now);
                if before != Some(now) {
                    if now.is_none() {
                        let (proxy, plugin) = (&*self.proxy, &*member.slot.shared.name);
                        warn!(proxy, plugin, file = %path.display(), "the plugin's file is gone; what runs goes on");
                    } else if before.is_some() {
                        changed = true;
                    }
                }
            }
            if changed && files.iter().all(|path| stamps.get(path).is_some_and(Option::is_some)) {
                let _ = self.replace(&host, &member.slot.shared.name, false);
            }
        }
    }

    /// Loads one plugin anew and puts it in its place.
    fn replace(
        self: &Arc<Self>,
        host: &PluginHost,
        name: &str,
        force: bool,
    ) -> Result<ReloadOutcome, ReloadError> {
        let chain = self.chain.load_full();
        let at = chain.members.iter().position(|member| *member.slot.shared.name == *name);
        let at = at.ok_or(ReloadError::Unknown)?;
        let mut members = chain.members.clone();
        let outcome = self.load(host, &mut members[at], force).map_err(ReloadError::Refused)?;
        if outcome == ReloadOutcome::Applied {
            self.set_chain(Chain { order: chain.order, members });
            self.start_events();
        }
        Ok(outcome)
    }

    fn files(&self) -> BTreeSet<PathBuf> {
        self.chain.load().members.iter().flat_map(|member| files_of(&member.slot.history().wanted)).collect()
    }
}

fn files_of(config: &PluginConfig) -> Vec<PathBuf> {
    let more = [&config.shadow, &config.vectors].into_iter().flatten().cloned();
    std::iter::once(config.wasm.clone()).chain(more).collect()
}

fn self_test(whose: &str, vectors: &Vectors, trial: &Generation, host: &PluginHost) -> Result<(), LoadError> {
    let failed = |why: String| LoadError::new("self-test", format!("{whose} test vectors: {why}"));
    let results = vectors::run(vectors, trial, &host.names, host.know());
    let wrong: Vec<_> = results.iter().filter_map(|result| result.as_ref().err()).collect();
    match wrong.first() {
        None => Ok(()),
        Some(first) => Err(failed(format!("{} of {} fail; first: {first}", wrong.len(), results.len()))),
    }
}

/// Notes what the files are like before they are read: what changes from then on is read again.
fn note_stamps(stamps: &mut HashMap<PathBuf, Stamp>, configs: &[PluginConfig]) {
    for path in configs.iter().flat_map(files_of) {
        let now = stamp(&path);
        stamps.entry(path).or_insert(now);
    }
}

fn run(plugins: &Weak<Plugins>, inbox: &Arc<Inbox>, mut stamps: HashMap<PathBuf, Stamp>) {
    let mut watched = Watched::new(inbox);
    // For what has changed before it was watched.
    inbox.note_change();
    loop {
        {
            let Some(plugins) = plugins.upgrade() else { return };
            let files = plugins.files();
            watched.set(&files);
            stamps.retain(|path, _| files.contains(path));
        }
        let Some(task) = inbox.next() else { return };
        let Some(plugins) = plugins.upgrade() else { return };
        let Some(host) = plugins.host.clone() else { return };
        match task {
            Task::Look => plugins.look(&mut stamps),
            Task::Configure(configs) => {
                note_stamps(&mut stamps, &configs);
                plugins.configure(&configs);
                plugins.look(&mut stamps);
            }
            Task::Reload(name, reply) => {
                let _ = reply.send(plugins.replace(&host, &name, true));
            }
        }
    }
}

fn status(member: &Member) -> PluginStatus {
    let slot = &member.slot;
    let (generation, history) = (member.generation.as_ref(), slot.history());
    let counts = generation.map(|generation| generation.counts()).unwrap_or_default();
    let state = match generation {
        _ if history.loading => "loading",
        None => "failed",
        Some(_) if slot.breaker.is_open() => "broken",
        Some(_) => "running",
    };
    let hooks = [super::Hook::Query, super::Hook::Route, super::Hook::Pin, super::Hook::Events];
    PluginStatus {
        name: slot.shared.name.to_string(),
        proxy: slot.shared.proxy.to_string(),
        state,
        version: generation.map(|generation| generation.version.clone()).unwrap_or_default(),
        sha256: generation.map(|generation| hex(&generation.sha256)).unwrap_or_default(),
        since: history.since.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs(),
        hooks: hooks
            .into_iter()
            .filter(|hook| generation.is_some_and(|generation| generation.asks(*hook)))
            .map(super::Hook::name)
            .collect(),
        trapping_imports: generation.map(|generation| generation.trapping.clone()).unwrap_or_default(),
        calls: history.before.calls + counts.calls,
        traps: history.before.traps + counts.traps,
        cache_hits: history.before.cache_hits + counts.cache_hits,
        loads_applied: history.applied,
        loads_unchanged: history.unchanged,
        loads_refused: history.refused,
        last_error: history.last_error.clone(),
        shadow_sha256: member.shadow.as_ref().map(|shadow| hex(&shadow.sha256)),
        shadow_differences: history.shadow_differences,
    }
}
