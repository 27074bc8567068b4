//! The machine that runs plugins, one a process: compiler, instance pool, the clock that ends calls.

use std::{
    fs,
    num::NonZeroUsize,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    thread::{self, Thread},
    time::Duration,
};

use tracing::warn;
use wasmtime::{
    Cache, CacheConfig, Config, Engine, InstanceAllocationStrategy, PoolingAllocationConfig,
    component::Linker,
};

use super::{imports, instance::State};

/// The step in which deadlines are measured.
pub(super) const TICK: Duration = Duration::from_millis(1);
/// The most memory that the configuration can give one instance; sizes the pool's slots.
pub(crate) const MAX_MEMORY_BYTES: u64 = 256 << 20;
/// Instances that can live at once; memory is only reserved for them.
const POOL: u32 = 1_000;
/// Core instances, memories and tables that one component may be made of.
const PARTS: u32 = 8;

/// Compiler, linker and clock.
pub(super) struct Machine {
    pub(super) engine: Engine,
    pub(super) linker: Linker<State>,
    clock: Clock,
}

impl std::fmt::Debug for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Machine")
    }
}

impl Machine {
    /// `cache` is the directory for compiled code.
    pub(super) fn new(cache: Option<&Path>) -> Result<Self, String> {
        let cache = cache.and_then(|directory| match code_cache(directory) {
            Ok(cache) => Some(cache),
            Err(reason) => {
                warn!(directory = %directory.display(), %reason, "compiled plugins are not cached");
                None
            }
        });
        let engine = match Engine::new(&config(cache.clone(), true)) {
            Ok(engine) => engine,
            Err(error) => {
                warn!(%error, "no instance pool for plugins; each instance is allocated by itself");
                Engine::new(&config(cache, false))
                    .map_err(|error| format!("no engine for plugins: {error:#}"))?
            }
        };
        let mut linker = Linker::new(&engine);
        imports::link(&mut linker).map_err(|error| format!("cannot offer imports to plugins: {error:#}"))?;
        let clock = Clock::start(&engine)?;
        Ok(Self { engine, linker, clock })
    }

    /// Keeps the clock ticking while the result lives.
    pub(super) fn keep_ticking(&self) -> Ticking {
        self.clock.users.fetch_add(1, Relaxed);
        self.clock.thread.unpark();
        Ticking(self.clock.users.clone())
    }
}

fn config(cache: Option<Cache>, pooled: bool) -> Config {
    let mut config = Config::new();
    config
        .wasm_component_model(true)
        .concurrency_support(false)
        .epoch_interruption(true)
        .wasm_backtrace_max_frames(NonZeroUsize::new(8))
        .cache(cache);
    if pooled {
        let mut pool = PoolingAllocationConfig::new();
        pool.total_component_instances(POOL)
            .total_core_instances(POOL * PARTS)
            .max_core_instances_per_component(PARTS)
            .total_memories(POOL)
            .max_memories_per_component(1)
            .max_memories_per_module(1)
            .max_memory_size(MAX_MEMORY_BYTES as usize)
            .total_tables(POOL * PARTS)
            .max_tables_per_component(PARTS)
            .table_elements(20_000)
            .max_unused_warm_slots(64)
            .linear_memory_keep_resident(64 << 10)
            .table_keep_resident(4 << 10);
        config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
    }
    config
}

/// Opens the directory for compiled code, made when it is not there. A file in it is native code that will run, so it
/// must be ours alone.
fn code_cache(directory: &Path) -> Result<Cache, String> {
    check_private(directory)?;
    let directory = directory.canonicalize().map_err(|error| error.to_string())?;
    let mut config = CacheConfig::new();
    config.with_directory(directory);
    Cache::new(config).map_err(|error| format!("{error:#}"))
}

fn check_private(directory: &Path) -> Result<(), String> {
    match fs::DirBuilder::new().mode(0o700).create(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            return Err(format!("it cannot be made: {error}"));
        }
        _ => {}
    }
    let metadata = fs::symlink_metadata(directory).map_err(|error| error.to_string())?;
    if !metadata.is_dir() {
        return Err("it is no directory".into());
    }
    if metadata.mode() & 0o022 != 0 {
        return Err("its group or others may write to it".into());
    }
    // A file that we make is ours: the owner of the directory must be the same.
    let probe = directory.join(format!(".probe-{}", std::process::id()));
    let made = fs::File::create(&probe).and_then(|file| file.metadata());
    let _ = fs::remove_file(&probe);
    let made = made.map_err(|error| format!("nothing can be written there: {error}"))?;
    if made.uid() != metadata.uid() { Err("it belongs to another user".into()) } else { Ok(()) }
}

/// Ticks on a thread of its own: a worker that is held up by a plugin must not hold up what ends that plugin's call.
struct Clock {
    users: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    thread: Thread,
}

/// See [`Machine::keep_ticking`].
#[derive(Debug)]
pub(super) struct Ticking(Arc<AtomicUsize>);

impl Drop for Ticking {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl Clock {
    fn start(engine: &Engine) -> Result<Self, String> {
        let (users, stop) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let (engine, seen, stopped) = (engine.weak(), users.clone(), stop.clone());
        let ticking = move || {
            while !stopped.load(Relaxed) {
                if seen.load(Relaxed) == 0 {
                    thread::park();
                    continue;
                }
                thread::park_timeout(TICK);
                let Some(engine) = engine.upgrade() else { return };
                engine.increment_epoch();
            }
        };
        let thread = thread::Builder::new()
            .name("pinion-clock".into())
            .spawn(ticking)
            .map_err(|error| format!("no thread for the plugins' clock: {error}"))?;
        Ok(Self { users, stop, thread: thread.thread().clone() })
    }
}

impl Drop for Clock {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        self.thread.unpark();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn compiled_code_is_kept_only_where_nobody_else_can_write() {
        let dir = tempfile::tempdir().unwrap();
        let cache = dir.path().join("cache");
        assert_eq!(check_private(&cache), Ok(()));
        assert_eq!(fs::metadata(&cache).unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(check_private(&cache), Ok(()));
        assert_eq!(fs::read_dir(&cache).unwrap().count(), 0);
        for mode in [0o770, 0o702] {
            fs::set_permissions(&cache, fs::Permissions::from_mode(mode)).unwrap();
            assert!(check_private(&cache).unwrap_err().contains("may write"), "{mode:o}");
        }
        fs::set_permissions(&cache, fs::Permissions::from_mode(0o700)).unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&cache, &link).unwrap();
        assert_eq!(check_private(&link), Err("it is no directory".into()));
        assert!(check_private(&dir.path().join("none/below")).is_err());
    }
}
