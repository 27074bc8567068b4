//! From a file to something that can be instantiated: read, verify, make a component, check imports, compile.

use std::{
    fmt, fs,
    io::Read as _,
    panic::{self, AssertUnwindSafe},
    path::Path,
};

use sha2::{Digest as _, Sha256};
use wasmtime::{
    Engine,
    component::{Component, ComponentExportIndex},
};
use wit_component::ComponentEncoder;

use super::{
    Hook,
    engine::Machine,
    imports,
    instance::{Exports, State},
    wit::{self, interface},
};

/// Longest plugin file.
const FILE_BYTES: u64 = 64 << 20;

/// Why a plugin was not put to work: at which step, and a sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadError {
    /// `read`, `sha256`, `format`, `imports`, `compile`, `instantiate`, `init`, `self-test`.
    pub step: &'static str,
    /// For a person.
    pub why: String,
}

impl LoadError {
    pub(super) fn new(step: &'static str, why: impl Into<String>) -> Self {
        Self { step, why: why.into() }
    }
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (at {})", self.why, self.step)
    }
}

impl std::error::Error for LoadError {}

/// A file's content and its hash.
pub(super) struct File {
    pub(super) bytes: Vec<u8>,
    pub(super) sha256: [u8; 32],
}

/// Reads a plugin's file.
pub(super) fn read(path: &Path) -> Result<File, LoadError> {
    let failed =
        |error: std::io::Error| LoadError::new("read", format!("{} cannot be read: {error}", path.display()));
    let file = fs::File::open(path).map_err(failed)?;
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(LoadError::new("read", format!("{} is not a file", path.display())));
    }
    let mut bytes = Vec::new();
    file.take(FILE_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > FILE_BYTES {
        return Err(LoadError::new("read", format!("{} is over {FILE_BYTES} bytes", path.display())));
    }
    let sha256 = Sha256::digest(&bytes).into();
    Ok(File { bytes, sha256 })
}

/// A hash as people write it.
pub(super) fn hex(hash: &[u8]) -> String {
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A compiled plugin whose imports are satisfied.
#[derive(Clone)]
pub(super) struct Compiled {
    pub(super) pre: wasmtime::component::InstancePre<State>,
    pub(super) exports: Exports,
    /// Every import, as it names it.
    pub(super) imports: Vec<String>,
    /// Imports that trap when they are called.
    pub(super) trapping: Vec<String>,
}

/// Makes a file's content something that can be instantiated.
pub(super) fn compile(machine: &Machine, bytes: &[u8]) -> Result<Compiled, LoadError> {
    let component = componentize(bytes)?;
    let component = component.as_deref().unwrap_or(bytes);
    check_versions(component)?;
    let component = Component::new(&machine.engine, component)
        .map_err(|error| LoadError::new("compile", format!("it cannot be compiled: {error:#}")))?;
    let names: Vec<String> =
        component.component_type().imports(&machine.engine).map(|(name, _)| name.to_owned()).collect();
    for name in &names {
        check_import(name)?;
    }
    let mut linker = machine.linker.clone();
    let trapping = imports::link_wasi(&mut linker, &component)
        .map_err(|error| LoadError::new("imports", format!("{error:#}")))?;
    let pre = linker.instantiate_pre(&component).map_err(|error| {
        LoadError::new(
            "imports",
            format!("it wants something of the host that this version does not have: {error:#}"),
        )
    })?;
    let exports = exports(&component)?;
    Ok(Compiled { pre, exports, imports: names, trapping })
}

/// A component made of a core module; `None` when it is a component already.
fn componentize(bytes: &[u8]) -> Result<Option<Vec<u8>>, LoadError> {
    if Engine::detect_precompiled(bytes).is_some() {
        let why = "it is precompiled native code, which is never taken; give the .wasm file itself";
        return Err(LoadError::new("format", why));
    }
    if wasmparser::Parser::is_component(bytes) {
        return Ok(None);
    }
    if !wasmparser::Parser::is_core_wasm(bytes) {
        return Err(LoadError::new("format", "it is not WebAssembly"));
    }
    let sdk = "it was not built with the plugin SDK, or with a newer one than this host understands";
    if imports_of_module(bytes).iter().any(|module| module.starts_with("wasi_snapshot_preview1")) {
        let why = format!("{sdk}: it was built for wasm32-wasip1; build it for wasm32-unknown-unknown");
        return Err(LoadError::new("format", why));
    }
    // The encoder takes a sound module for granted.
    wasmparser::Validator::new()
        .validate_all(bytes)
        .map_err(|error| LoadError::new("format", format!("it is damaged: {error}")))?;
    let encode =
        || ComponentEncoder::default().module(bytes).and_then(|encoder| encoder.validate(true).encode());
    // What a sound module carries in its custom sections may still be anything.
    let encoded = panic::catch_unwind(AssertUnwindSafe(encode))
        .map_err(|_| LoadError::new("format", format!("{sdk}: its bindings cannot be read")))?
        .map_err(|error| LoadError::new("format", format!("{sdk}: {error:#}")))?;
    Ok(Some(encoded))
}

fn imports_of_module(bytes: &[u8]) -> Vec<String> {
    let mut modules = Vec::new();
    for payload in wasmparser::Parser::new(0).parse_all(bytes) {
        if let Ok(wasmparser::Payload::ImportSection(section)) = payload {
            modules.extend(section.into_imports().flatten().map(|import| import.module.to_owned()));
        }
    }
    modules
}

/// Finds a version of ours that is not this host's, before anything is compiled.
fn check_versions(component: &[u8]) -> Result<(), LoadError> {
    let mut depth = 0_u32;
    for payload in wasmparser::Parser::new(0).parse_all(component) {
        let payload = payload.map_err(|error| LoadError::new("format", format!("it is damaged: {error}")))?;
        match payload {
            wasmparser::Payload::ModuleSection { .. } | wasmparser::Payload::ComponentSection { .. } => {
                depth += 1;
            }
            wasmparser::Payload::End(_) => depth = depth.saturating_sub(1),
            wasmparser::Payload::ComponentImportSection(section) if depth == 0 => {
                for import in section.into_iter().flatten() {
                    check_version(import.name.name)?;
                }
            }
            wasmparser::Payload::ComponentExportSection(section) if depth == 0 => {
                for export in section.into_iter().flatten() {
                    check_version(export.name.name)?;
                }
            }
            _ => {}
        }
    }
    Ok(())
}

fn check_version(name: &str) -> Result<(), LoadError> {
    let Some(version) = imports::version_mismatch(name) else { return Ok(()) };
    let (package, ours) = (wit::PACKAGE, wit::VERSION);
    let series = ours.rsplit_once('.').map_or(ours, |(series, _)| series);
    let why = format!(
        "it was built for {package}@{version}, this host offers {series}.x; rebuild it with pinion-plugin {}",
        env!("CARGO_PKG_VERSION")
    );
    Err(LoadError::new("imports", why))
}

fn check_import(name: &str) -> Result<(), LoadError> {
    if name.starts_with("wasi:") {
        return Ok(());
    }
    let ours = name
        .strip_prefix(wit::PACKAGE)
        .and_then(|rest| rest.strip_prefix('/'))
        .and_then(|rest| rest.split('@').next());
    match ours {
        Some(interface) if imports::OURS.contains(&interface) => Ok(()),
        Some(interface) => {
            let why = format!("it imports {interface}, which this host does not have; it needs a newer one");
            Err(LoadError::new("imports", why))
        }
        None => Err(LoadError::new(
            "imports",
            format!("it imports {name:?}; a plugin may import only {} and wasi", wit::PACKAGE),
        )),
    }
}

fn exports(component: &Component) -> Result<Exports, LoadError> {
    let find = |interface_name: &str, function: &str| -> Option<Result<ComponentExportIndex, LoadError>> {
        let interface = component.get_export_index(None, interface(interface_name).as_str())?;
        Some(component.get_export_index(Some(&interface), function).ok_or_else(|| {
            LoadError::new("imports", format!("its export {interface_name} lacks the function {function}"))
        }))
    };
    let forms = |hook: Hook| -> Result<Option<[ComponentExportIndex; 3]>, LoadError> {
        let name = hook.name();
        let form = |suffix: &str| find(name, &format!("{name}{suffix}"));
        let (Some(plain), Some(text), Some(detailed)) = (form(""), form("-text"), form("-detailed")) else {
            return Ok(None);
        };
        Ok(Some([plain?, text?, detailed?]))
    };
    let missing = || LoadError::new("imports", "it does not export lifecycle: it is no policy plugin");
    Ok(Exports {
        init: Some(find("lifecycle", "init").ok_or_else(missing)??),
        self_test: Some(find("lifecycle", "self-test").ok_or_else(missing)??),
        query: forms(Hook::Query)?,
        route: forms(Hook::Route)?,
        pin: forms(Hook::Pin)?,
        events: find(Hook::Events.name(), Hook::Events.name()).transpose()?,
    })
}
