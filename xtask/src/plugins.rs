//! `cargo xtask plugins`: every policy plugin as WebAssembly, and the plugins that tests load.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    apt::{self, Need},
    arguments::Arguments,
    error::{Context, Result, failed},
    interrupt, process, workspace_root,
};

const TARGET: &str = "wasm32-unknown-unknown";
/// The profile in the workspace's `Cargo.toml`.
const PROFILE: &str = "plugin";
/// Where crates stand, and where their `.wasm` files go.
const SETS: &[(&str, &str)] =
    &[("plugins", "target/plugins"), ("tests/fixtures/plugins", "target/plugins/fixtures")];

/// What building plugins needs.
pub(crate) const NEEDS: &[Need] = &[Need::WasmTarget, Need::WasmLinker];

/// Installs what is missing and builds them all.
pub(crate) fn run(arguments: Arguments) -> Result<()> {
    arguments.end()?;
    interrupt::catch()?;
    apt::provide(NEEDS)?;
    for file in build()? {
        println!("{}", file.display());
    }
    Ok(())
}

/// Builds every plugin that has changed and gives the paths of all of them. [`NEEDS`] must have been met.
pub(crate) fn build() -> Result<Vec<PathBuf>> {
    let root = workspace_root()?;
    let mut crates = Vec::new();
    for (directory, output) in SETS {
        for name in crate_names(&root.join(directory))? {
            crates.push((name, root.join(output)));
        }
    }
    let toolchain = Toolchain::find()?;
    // One directory for all of them, apart from the native one: the standard library is built once.
    let target_directory = root.join("target/wasm");
    let mut cargo = toolchain.cargo();
    cargo
        .args(["build", "--locked", "--profile", PROFILE, "--target", TARGET, "--target-dir"])
        .arg(&target_directory)
        .current_dir(&root);
    for (name, _) in &crates {
        cargo.args(["--package", name]);
    }
    println!("Building {} plugins with {}.", crates.len(), toolchain.name());
    process::run_shown(&mut cargo)?;
    crates
        .into_iter()
        .map(|(name, output)| {
            let file = format!("{}.wasm", name.replace('-', "_"));
            let built = target_directory.join(TARGET).join(PROFILE).join(&file);
            let file = output.join(file);
            fs::create_dir_all(&output).context(format!("creating {}", output.display()))?;
            replace(&built, &file)?;
            Ok(file)
        })
        .collect()
}

/// Crates bear the name of their directory.
fn crate_names(directory: &Path) -> Result<Vec<String>> {
    let Ok(entries) = fs::read_dir(directory) else { return Ok(Vec::new()) };
    let mut names: Vec<String> = entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            entry.path().join("Cargo.toml").exists().then(|| entry.file_name().into_string().ok())?
        })
        .collect();
    names.sort();
    Ok(names)
}

/// Copies a file in one step when it has changed: a running proxy may watch it, and must never load half of one.
fn replace(from: &Path, to: &Path) -> Result<()> {
    let new = fs::read(from).context(format!("reading {}", from.display()))?;
    if fs::read(to).is_ok_and(|old| old == new) {
        return Ok(());
    }
    let part = to.with_extension("wasm.part");
    fs::write(&part, new).context(format!("writing {}", part.display()))?;
    fs::rename(&part, to).context(format!("renaming {}", part.display()))
}

/// What compiles for WebAssembly here.
enum Toolchain {
    /// The compiler in use has the target's standard library (`rustup target add wasm32-unknown-unknown`).
    Installed,
    /// Debian's compiler and the standard library's source. That library is built with the plugins, which only an
    /// unstable flag of cargo does, hence `RUSTC_BOOTSTRAP`.
    Debian { rustc: PathBuf, linker: PathBuf },
}

impl Toolchain {
    fn find() -> Result<Self> {
        if has_target() {
            return Ok(Self::Installed);
        }
        match (debian_rustc(), linker()) {
            (Some(rustc), Some(linker)) => Ok(Self::Debian { rustc, linker }),
            _ => failed(format!(
                "no compiler for {TARGET} is here: run `rustup target add {TARGET}`, or `cargo xtask setup` on Debian"
            )),
        }
    }

    fn name(&self) -> String {
        match self {
            Self::Installed => format!("the installed target {TARGET}"),
            Self::Debian { rustc, .. } => format!("{} and the standard library's source", rustc.display()),
        }
    }

    fn cargo(&self) -> Command {
        let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        // A wrapper or flags for the native build do not fit this one, and would build everything anew.
        cargo.env_remove("RUSTFLAGS").env_remove("CARGO_ENCODED_RUSTFLAGS");
        if let Self::Debian { rustc, linker } = self {
            cargo
                .env("RUSTC", rustc)
                .env("RUSTC_BOOTSTRAP", "1")
                .env("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER", linker)
                .arg("-Zbuild-std=std,panic_abort");
        }
        cargo
    }
}

/// Whether the compiler in use has the target's standard library.
pub(crate) fn has_target() -> bool {
    print("target-libdir").is_some_and(|directory| directory.is_dir())
}

/// Debian's compiler, with the source beside it, if it is new enough for the workspace.
pub(crate) fn debian_rustc() -> Option<PathBuf> {
    let rustc = PathBuf::from("/usr/bin/rustc");
    let source = Path::new("/usr/lib/rustlib/src/rust/library/std/Cargo.toml");
    if !rustc.is_file() || !source.exists() {
        return None;
    }
    let version = process::run(Command::new(&rustc).arg("--version")).ok()?;
    let version = minor(version.strip_prefix("rustc ")?)?;
    (version >= minor(env!("CARGO_PKG_RUST_VERSION"))?).then_some(rustc)
}

/// Major and minor number of a version that may go on.
fn minor(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// LLVM's linker: the one that comes with rustup's compiler, else one of the system.
pub(crate) fn linker() -> Option<PathBuf> {
    let own = print("sysroot").and_then(|sysroot| {
        let hosts = fs::read_dir(sysroot.join("lib/rustlib")).ok()?;
        hosts.filter_map(|host| Some(host.ok()?.path().join("bin/rust-lld"))).find(|file| file.is_file())
    });
    own.or_else(|| process::on_path("wasm-ld"))
        .or_else(|| (14..=30).rev().find_map(|version| process::on_path(&format!("wasm-ld-{version}"))))
}

/// What `rustc --print` says of the target.
fn print(what: &str) -> Option<PathBuf> {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let text = process::run(Command::new(rustc).args(["--print", what, "--target", TARGET])).ok()?;
    Some(PathBuf::from(text.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_number() {
        assert_eq!(minor("1.96.0 (ac68faa20 2026-05-25)"), Some((1, 96)));
        assert!(minor("1.100.0") > minor("1.95") && minor("2.0") > minor("1.95"));
        assert_eq!(minor("nightly"), None);
    }
}
