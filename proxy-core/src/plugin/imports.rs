//! What plugins may call. Everything is there for every plugin; what is not granted says so.

use std::{borrow::Cow, time::Instant};

use wasmtime::{
    StoreContextMut,
    component::{Component, ComponentNamedList, Lift, Linker, Lower, WasmStr, types::ComponentItem},
};

use super::{
    instance::{State, monotonic_ns, now_ms},
    user_metrics::{SeriesKind, SeriesOf},
    wit::{self, AuditError, Level, StoreError, interface},
};

/// Of the last error that a plugin logged, as much is kept.
const LAST_WORDS_BYTES: usize = 512;
/// Longest log line.
const LOG_BYTES: usize = 8 * 1024;

type Context<'a> = StoreContextMut<'a, State>;

/// Adds our own interfaces.
pub(super) fn link(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    let mut log = linker.instance(&interface("log"))?;
    log.func_wrap("log", |mut context: Context<'_>, (level, message): (Level, WasmStr)| {
        if matches!(level, Level::Error) {
            // Whatever the grants: a panic that follows is told with it.
            let words = super::generation::cut(&message.to_str(&context)?, LAST_WORDS_BYTES);
            context.data_mut().last_words = words;
        }
        let state = context.data();
        if state.grants.log && !state.shared.muted && enabled(level) {
            if state.shared.log.allows() {
                write_log(&state.shared, level, &message.to_str(&context)?);
            } else {
                state.shared.metrics.log_dropped.increment(1);
            }
        }
        Ok(())
    })?;

    let mut names = linker.instance(&interface("names"))?;
    names.func_wrap("resolve", |context: Context<'_>, (id,): (u32,)| {
        let name = context.data().shared.names.resolve(id);
        Ok((name.map_or_else(String::new, |name| name.to_string()),))
    })?;

    link_metrics(linker)?;
    link_store(linker)?;

    let mut clock = linker.instance(&interface("clock"))?;
    clock.func_wrap("now-ms", |mut context: Context<'_>, ()| {
        Ok((if tainting_clock(&mut context) { now_ms() } else { 0 },))
    })?;
    clock.func_wrap("monotonic-ns", |mut context: Context<'_>, ()| {
        Ok((if tainting_clock(&mut context) { monotonic_ns() } else { 0 },))
    })?;

    let mut audit = linker.instance(&interface("audit"))?;
    audit.func_wrap("append", |mut context: Context<'_>, (fields,): (String,)| {
        Ok((append(context.data_mut(), &fields),))
    })
}

/// Names of our interfaces that plugins may import.
pub(super) const OURS: &[&str] = &["types", "log", "names", "metrics", "store", "clock", "audit"];

fn tainting_clock(context: &mut Context<'_>) -> bool {
    let state = context.data_mut();
    state.tainted = true;
    state.grants.clock
}

fn append(state: &mut State, fields: &str) -> Result<u64, AuditError> {
    // A cached verdict would leave no record.
    state.tainted = true;
    let shared = &*state.shared;
    if !state.grants.audit {
        return Err(AuditError::NotGranted);
    }
    if shared.muted {
        return Ok(0);
    }
    let Some(audit) = &shared.audit else { return Err(AuditError::NotGranted) };
    let Some(left) = state.records_left.checked_sub(1) else {
        return Err(AuditError::Other("too many records in one call".into()));
    };
    state.records_left = left;
    audit.append(&shared.proxy, &shared.name, fields)
}

type Labels = Vec<(String, String)>;

fn link_metrics(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    let mut metrics = linker.instance(&interface("metrics"))?;
    metrics.func_wrap(
        "counter",
        |mut context: Context<'_>, (name, help, labels): (String, String, Labels)| {
            Ok((register(&mut context, &SeriesKind::Counter, &name, &help, &labels),))
        },
    )?;
    metrics.func_wrap(
        "gauge",
        |mut context: Context<'_>, (name, help, labels): (String, String, Labels)| {
            Ok((register(&mut context, &SeriesKind::Gauge, &name, &help, &labels),))
        },
    )?;
    metrics.func_wrap(
        "histogram",
        |mut context: Context<'_>, (name, help, labels, bounds): (String, String, Labels, Vec<f64>)| {
            let kind = SeriesKind::Histogram(bounds.into());
            Ok((register(&mut context, &kind, &name, &help, &labels),))
        },
    )?;
    metrics.func_wrap("add", |mut context: Context<'_>, (id, value): (u32, u64)| {
        change(&mut context, id, |series| series.add(value));
        Ok(())
    })?;
    metrics.func_wrap("set", |mut context: Context<'_>, (id, value): (u32, f64)| {
        change(&mut context, id, |series| series.set(value));
        Ok(())
    })?;
    metrics.func_wrap("observe", |mut context: Context<'_>, (id, value): (u32, f64)| {
        change(&mut context, id, |series| series.observe(value));
        Ok(())
    })
}

fn register(
    context: &mut Context<'_>,
    kind: &SeriesKind,
    name: &str,
    help: &str,
    labels: &[(String, String)],
) -> Result<u32, String> {
    let state = context.data_mut();
    if !state.grants.metrics {
        return Err("the grant \"metrics\" is missing".into());
    }
    let id = state.shared.table.register(kind, name, help, labels)?;
    state.series = state.shared.table.all();
    Ok(id)
}

fn change(context: &mut Context<'_>, id: u32, change: impl FnOnce(&SeriesOf) -> bool) {
    let state = context.data_mut();
    let series = (id as usize).checked_sub(1).and_then(|at| state.series.get(at));
    if !series.is_some_and(change) {
        state.shared.metrics.misuse.increment(1);
    }
}

fn link_store(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    let mut store = linker.instance(&interface("store"))?;
    store.func_wrap("get", |mut context: Context<'_>, (key,): (String,)| {
        Ok((granted(&mut context).map(|state| state.shared.store.get(&key, Instant::now())),))
    })?;
    store.func_wrap("set", |mut context: Context<'_>, (key, value, ttl): (String, Vec<u8>, u64)| {
        let state = granted(&mut context);
        Ok((state.and_then(|state| state.shared.store.set(&key, &value, ttl, Instant::now())),))
    })?;
    store.func_wrap("delete", |mut context: Context<'_>, (key,): (String,)| {
        Ok((granted(&mut context).map(|state| state.shared.store.delete(&key, Instant::now())),))
    })?;
    store.func_wrap("incr", |mut context: Context<'_>, (key, by, ttl): (String, i64, u64)| {
        let state = granted(&mut context);
        Ok((state.and_then(|state| state.shared.store.incr(&key, by, ttl, Instant::now())),))
    })?;
    type CompareAndSet = (String, Option<Vec<u8>>, Vec<u8>, u64);
    store.func_wrap(
        "compare-and-set",
        |mut context: Context<'_>, (key, expected, value, ttl): CompareAndSet| {
            let state = granted(&mut context);
            let swap = |state: &State| {
                let (store, now) = (&state.shared.store, Instant::now());
                store.compare_and_set(&key, expected.as_deref(), &value, ttl, now)
            };
            Ok((state.and_then(swap),))
        },
    )?;
    store.func_wrap(
        "take-tokens",
        |mut context: Context<'_>, (key, tokens, capacity, per_second): (String, u32, u32, f64)| {
            let state = granted(&mut context);
            let take = |state: &State| {
                state.shared.store.take_tokens(&key, tokens, capacity, per_second, Instant::now())
            };
            Ok((state.and_then(take),))
        },
    )
}

fn granted<'a>(context: &'a mut Context<'_>) -> Result<&'a State, StoreError> {
    let state = context.data_mut();
    state.tainted = true;
    if state.grants.store { Ok(state) } else { Err(StoreError::NotGranted) }
}

fn enabled(level: Level) -> bool {
    match level {
        Level::Error => tracing::enabled!(target: "pinion::plugin", tracing::Level::ERROR),
        Level::Warn => tracing::enabled!(target: "pinion::plugin", tracing::Level::WARN),
        Level::Info => tracing::enabled!(target: "pinion::plugin", tracing::Level::INFO),
        Level::Debug => tracing::enabled!(target: "pinion::plugin", tracing::Level::DEBUG),
        Level::Trace => tracing::enabled!(target: "pinion::plugin", tracing::Level::TRACE),
    }
}

fn write_log(shared: &super::shared::Shared, level: Level, message: &str) {
    let (proxy, plugin, message) = (&*shared.proxy, &*shared.name, one_line(message));
    match level {
        Level::Error => tracing::error!(target: "pinion::plugin", proxy, plugin, "{message}"),
        Level::Warn => tracing::warn!(target: "pinion::plugin", proxy, plugin, "{message}"),
        Level::Info => tracing::info!(target: "pinion::plugin", proxy, plugin, "{message}"),
        Level::Debug => tracing::debug!(target: "pinion::plugin", proxy, plugin, "{message}"),
        Level::Trace => tracing::trace!(target: "pinion::plugin", proxy, plugin, "{message}"),
    }
}

/// Cut to [`LOG_BYTES`], control characters escaped: one call, one line.
fn one_line(message: &str) -> Cow<'_, str> {
    let mut cut = message.len().min(LOG_BYTES);
    while !message.is_char_boundary(cut) {
        cut -= 1;
    }
    let message = &message[..cut];
    if !message.contains(char::is_control) {
        return message.into();
    }
    let escaped = message.chars().flat_map(|c| {
        let (plain, escape) = if c.is_control() { (None, Some(c.escape_default())) } else { (Some(c), None) };
        plain.into_iter().chain(escape.into_iter().flatten())
    });
    escaped.collect::<String>().into()
}

/// Gives a component what it wants of WASI: harmless answers where there are any, and a trap everywhere else. Returns
/// what will trap.
pub(super) fn link_wasi(linker: &mut Linker<State>, component: &Component) -> wasmtime::Result<Vec<String>> {
    let engine = component.engine();
    let kind = component.component_type();
    let mut traps = Vec::new();
    for (import, item) in kind.imports(engine) {
        if !import.starts_with("wasi:") {
            continue;
        }
        let ComponentItem::ComponentInstance(instance) = item.ty else {
            traps.push(import.to_owned());
            continue;
        };
        let interface = import.split('@').next().unwrap_or(import);
        for (name, item) in instance.exports(engine) {
            if !matches!(item.ty, ComponentItem::ComponentFunc(_)) {
                continue;
            }
            if !harmless(linker, import, interface, name)? {
                traps.push(format!("{import}#{name}"));
            }
        }
    }
    linker.define_unknown_imports_as_traps(component)?;
    Ok(traps)
}

fn harmless(linker: &mut Linker<State>, import: &str, interface: &str, name: &str) -> wasmtime::Result<bool> {
    match (interface, name) {
        ("wasi:random/random", "get-random-u64") | ("wasi:random/insecure", "get-insecure-random-u64") => {
            tainting(linker, import, name, |_, ()| Ok((random(8)?.try_into().map_or(0, u64::from_le_bytes),)))
        }
        ("wasi:random/random", "get-random-bytes")
        | ("wasi:random/insecure", "get-insecure-random-bytes") => {
            tainting(linker, import, name, |_, (bytes,): (u64,)| Ok((random(bytes)?,)))
        }
        ("wasi:random/insecure-seed", "insecure-seed") => tainting(linker, import, name, |_, ()| {
            let half = || random(8).map(|bytes| bytes.try_into().map_or(0, u64::from_le_bytes));
            Ok(((half()?, half()?),))
        }),
        ("wasi:clocks/monotonic-clock", "now") => tainting(linker, import, name, |state, ()| {
            Ok((if state.grants.clock { monotonic_ns() } else { 0 },))
        }),
        ("wasi:clocks/monotonic-clock" | "wasi:clocks/wall-clock", "resolution")
            if interface.ends_with("monotonic-clock") =>
        {
            tainting(linker, import, name, |_, ()| Ok((1_000_000_u64,)))
        }
        ("wasi:cli/environment", "get-environment") => {
            tainting(linker, import, name, |_, ()| Ok((Vec::<(String, String)>::new(),)))
        }
        ("wasi:cli/environment", "get-arguments") => {
            tainting(linker, import, name, |_, ()| Ok((Vec::<String>::new(),)))
        }
        ("wasi:cli/environment", "initial-cwd") => {
            tainting(linker, import, name, |_, ()| Ok((None::<String>,)))
        }
        _ => return Ok(false),
    }?;
    Ok(true)
}

fn tainting<P, R>(
    linker: &mut Linker<State>,
    import: &str,
    name: &str,
    function: impl Fn(&State, P) -> wasmtime::Result<R> + Send + Sync + 'static,
) -> wasmtime::Result<()>
where
    P: ComponentNamedList + Lift + 'static,
    R: ComponentNamedList + Lower + 'static,
{
    linker.instance(import)?.func_wrap(name, move |mut context: Context<'_>, parameters: P| {
        let state = context.data_mut();
        state.tainted = true;
        function(state, parameters)
    })
}

/// Random bytes, as many as fit a page at most.
fn random(bytes: u64) -> wasmtime::Result<Vec<u8>> {
    let length = usize::try_from(bytes).unwrap_or(usize::MAX);
    if length > 64 * 1024 {
        return Err(wasmtime::Error::msg("too many random bytes at once"));
    }
    let mut random = vec![0; length];
    getrandom::fill(&mut random).map_err(|error| wasmtime::Error::msg(error.to_string()))?;
    Ok(random)
}

/// What is wrong with the version in the name of one of our interfaces, if anything.
pub(super) fn version_mismatch(name: &str) -> Option<String> {
    let rest = name.strip_prefix(wit::PACKAGE)?.strip_prefix('/')?;
    let version = rest.split_once('@').map_or("none", |(_, version)| version);
    let same = |at| version.split('.').nth(at) == wit::VERSION.split('.').nth(at);
    (!same(0) || !same(1)).then(|| version.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_message_is_one_line_and_not_too_long() {
        assert_eq!(one_line("plain"), "plain");
        assert_eq!(one_line("a\r\nb\u{1b}[31m"), "a\\r\\nb\\u{1b}[31m");
        assert_eq!(one_line(&"ä".repeat(8_000)).len(), LOG_BYTES);
        assert_eq!(one_line(&format!("x{}", "ä".repeat(8_000))).len(), LOG_BYTES - 1);
    }

    #[test]
    fn versions_are_compatible_up_to_the_minor_number() {
        assert_eq!(version_mismatch("pinion:policy/log@0.1.0"), None);
        assert_eq!(version_mismatch("pinion:policy/log@0.1.7"), None);
        assert_eq!(version_mismatch("pinion:policy/log@0.2.0").as_deref(), Some("0.2.0"));
        assert_eq!(version_mismatch("pinion:policy/log@1.1.0").as_deref(), Some("1.1.0"));
        assert_eq!(version_mismatch("pinion:policy/log").as_deref(), Some("none"));
        assert_eq!(version_mismatch("wasi:random/random@0.2.0"), None);
    }
}
