//! A directory that is gone when its owner is.

use std::{
    fs,
    io::{Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, chown},
    path::{Path, PathBuf},
};

use crate::error::{Context, Result};

/// A new directory under the system's temporary one, removed with all it holds on drop.
#[derive(Debug)]
pub(crate) struct TemporaryDirectory(PathBuf);

impl TemporaryDirectory {
    /// Others may pass through but not look around (mode 0711): a server that runs as another user has its own
    /// directory inside.
    pub(crate) fn new(prefix: &str) -> Result<Self> {
        let path = std::env::temp_dir().join(format!("{prefix}-{}", random_hex(6)?));
        fs::DirBuilder::new().mode(0o711).create(&path).context(format!("creating {}", path.display()))?;
        Ok(Self(path))
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TemporaryDirectory {
    fn drop(&mut self) {
        if let Err(cause) = fs::remove_dir_all(&self.0) {
            eprintln!("could not remove {}: {cause}", self.0.display());
        }
    }
}

/// Creates a directory that only `owner` (user, group; `None` is who we are) may enter.
pub(crate) fn private_directory(path: &Path, owner: Option<(u32, u32)>) -> Result<()> {
    fs::DirBuilder::new().mode(0o700).create(path).context(format!("creating {}", path.display()))?;
    give(path, owner)
}

/// Writes a new file that only `owner` may read.
pub(crate) fn private_file(path: &Path, text: &str, owner: Option<(u32, u32)>) -> Result<()> {
    let mut options = fs::OpenOptions::new();
    let opened = options.write(true).create(true).truncate(true).mode(0o600).open(path);
    opened
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .context(format!("writing {}", path.display()))?;
    give(path, owner)
}

/// Makes `owner` the owner; `None` leaves it ours.
pub(crate) fn give(path: &Path, owner: Option<(u32, u32)>) -> Result<()> {
    let Some((user, group)) = owner else { return Ok(()) };
    chown(path, Some(user), Some(group)).context(format!("giving {} to user {user}", path.display()))
}

/// `bytes` random bytes from the kernel as hexadecimal digits.
pub(crate) fn random_hex(bytes: usize) -> Result<String> {
    let mut random = vec![0; bytes];
    fs::File::open("/dev/urandom")
        .and_then(|mut source| source.read_exact(&mut random))
        .context("reading /dev/urandom")?;
    Ok(random.iter().map(|byte| format!("{byte:02x}")).collect())
}
