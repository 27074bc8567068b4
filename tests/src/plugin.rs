//! Policy plugins, as files beside a proxy's configuration.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::target_dir;

/// One `[[proxy.plugin]]`. Its file is copied beside the configuration, so that a test may change it.
#[derive(Debug, Clone)]
pub struct Plugin {
    name: String,
    file: PathBuf,
    lines: Vec<String>,
}

impl Plugin {
    /// One of those in `plugins/`, by its name.
    #[must_use]
    pub fn shipped(name: &str) -> Self {
        Self::from_file(name, &Self::built(name))
    }

    /// One of those in `tests/fixtures/plugins/`, by its name.
    #[must_use]
    pub fn fixture(name: &str) -> Self {
        Self::from_file(name, &Self::built(&format!("fixtures/{name}")))
    }

    /// Any file.
    #[must_use]
    pub fn from_file(name: &str, file: &Path) -> Self {
        Self { name: name.to_owned(), file: file.to_owned(), lines: Vec::new() }
    }

    /// Where `cargo xtask plugins` puts what it builds.
    #[must_use]
    pub fn built(name: &str) -> PathBuf {
        let file = target_dir().join("plugins").join(format!("{}.wasm", name.replace('-', "_")));
        assert!(file.exists(), "{} is not built: run `cargo xtask plugins`", file.display());
        file
    }

    /// Another name in the configuration.
    #[must_use]
    pub fn named(mut self, name: &str) -> Self {
        name.clone_into(&mut self.name);
        self
    }

    /// A line of `[[proxy.plugin]]`.
    #[must_use]
    pub fn setting(mut self, line: &str) -> Self {
        self.lines.push(line.to_owned());
        self
    }

    /// What it may import.
    #[must_use]
    pub fn grants(self, grants: &[&str]) -> Self {
        self.setting(&format!("grants = {grants:?}"))
    }

    /// Puts the file into `dir`, by rename as deployments do, and gives the section's lines.
    pub(crate) fn install(&self, dir: &Path) -> Vec<String> {
        let name = &self.name;
        replace_file(&self.file, &dir.join(format!("{name}.wasm")));
        let mut lines = vec![format!("name = \"{name}\""), format!("wasm = \"{name}.wasm\"")];
        lines.extend(self.lines.iter().cloned());
        lines
    }
}

/// Copies `from` to `to` so that nobody ever sees half a file.
pub fn replace_file(from: &Path, to: &Path) {
    let fresh = to.with_extension("new");
    fs::copy(from, &fresh).unwrap();
    fs::rename(fresh, to).unwrap();
}
