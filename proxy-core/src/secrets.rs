//! Database passwords: where they are read from, and what is derived from them.
//!
//! A [`SecretHandle`] belongs to one configured user and gives out the newest good [`Secret`]. One
//! [`Secret`] is one version of a password; keys derived from it live and die with it.

use std::{
    env, fs,
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use arc_swap::ArcSwap;
use serde::Deserialize;
use zeroize::Zeroizing;

use crate::{
    config::SecretSource,
    protocol::postgres::scram::{self, ScramKeys},
};

/// A user name and its password, and the keys derived from them so far.
pub struct Secret {
    username: String,
    password: Zeroizing<String>,
    scram_salt: [u8; 16],
    scram_keys: OnceLock<ScramKeys>,
    salted: Mutex<Vec<Arc<Salted>>>,
}

/// One `SaltedPassword`, by what a server asked for.
struct Salted {
    salt: Vec<u8>,
    iterations: u32,
    value: OnceLock<Zeroizing<[u8; 32]>>,
}

/// How many salts are kept of one secret. A role has one salt on its server, and the same on replicas.
const SALTS_KEPT: usize = 8;

/// A secret's document may have at most this many bytes.
const MAX_SECRET_BYTES: u64 = 64 * 1024;

/// Longest time for which a changed file goes unseen while it is asked for.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

impl Secret {
    /// A secret of one version.
    /// Errors: [`SecretError::Empty`] and [`SecretError::Nul`], since no such name or password can log
    /// in; [`SecretError::Random`].
    pub fn new(username: String, password: Zeroizing<String>) -> Result<Self, SecretError> {
        if username.is_empty() || password.is_empty() {
            return Err(SecretError::Empty);
        }
        if username.contains('\0') || password.contains('\0') {
            return Err(SecretError::Nul);
        }
        let mut scram_salt = [0; 16];
        getrandom::fill(&mut scram_salt).map_err(SecretError::Random)?;
        Ok(Self { username, password, scram_salt, scram_keys: OnceLock::new(), salted: Mutex::default() })
    }

    /// Reads the JSON object of an RDS secret: string members `username` and `password`; others are
    /// ignored. Errors: [`SecretError::Json`], and those of [`Secret::new`].
    pub fn from_json(document: &[u8]) -> Result<Self, SecretError> {
        /// Wiped also when a later member is malformed.
        struct Password(Zeroizing<String>);
        impl<'de> Deserialize<'de> for Password {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer).map(|password| Self(Zeroizing::new(password)))
            }
        }
        #[derive(Deserialize)]
        struct Document {
            username: String,
            password: Password,
        }
        // serde's message would repeat what it stumbled over; the position is enough.
        let document: Document = serde_json::from_slice(document)
            .map_err(|error| SecretError::Json { line: error.line(), column: error.column() })?;
        Self::new(document.username, document.password.0)
    }

    /// The database user.
    pub fn username(&self) -> &str {
        &self.username
    }

    /// The password in clear. Only for logins: never log it, never put it into an error.
    pub fn password(&self) -> &str {
        &self.password
    }

    /// The keys clients are checked against, derived at the first call.
    pub fn scram_keys(&self) -> &ScramKeys {
        self.scram_keys.get_or_init(|| ScramKeys::with_salt(&self.password, self.scram_salt))
    }

    /// [`scram::salted_password`] of this password, remembered for the next login with the same `salt`
    /// and `iterations`. Callers at the same time wait for one derivation.
    pub fn salted_password(&self, salt: &[u8], iterations: u32) -> Zeroizing<[u8; 32]> {
        let entry = {
            let mut kept = lock(&self.salted);
            match kept.iter().find(|entry| entry.iterations == iterations && entry.salt == salt) {
                Some(entry) => Arc::clone(entry),
                None => {
                    if kept.len() == SALTS_KEPT {
                        kept.remove(0);
                    }
                    let entry = Arc::new(Salted { salt: salt.to_vec(), iterations, value: OnceLock::new() });
                    kept.push(Arc::clone(&entry));
                    entry
                }
            }
        };
        entry.value.get_or_init(|| scram::salted_password(&self.password, salt, iterations)).clone()
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Secret").field("username", &self.username).field("password", &"<redacted>").finish()
    }
}

/// The secret of one configured user, kept up to date. Threads may share it.
pub struct SecretHandle {
    source: SecretSource,
    username: String,
    current: ArcSwap<Secret>,
    born: Instant,
    /// Milliseconds after `born` from which the file is looked at again.
    next_check: AtomicU64,
    seen: Mutex<Seen>,
}

/// What is known of the source.
#[derive(Debug)]
struct Seen {
    /// The file as last read; `None` reads again at the next check whatever it looks like.
    stamp: Option<Stamp>,
    /// The last check failed, and was reported.
    failing: bool,
}

impl SecretHandle {
    /// Reads the secret for the first time and derives its SCRAM keys, so that no login has to.
    /// Errors: [`SecretError::WrongUser`] when it is somebody else's secret; all others too.
    pub fn new(source: SecretSource, expected_username: &str) -> Result<Self, SecretError> {
        let (secret, stamp) = read(&source, expected_username)?;
        secret.scram_keys();
        Ok(Self {
            source,
            username: expected_username.to_owned(),
            current: ArcSwap::from_pointee(secret),
            born: Instant::now(),
            next_check: AtomicU64::new(millis(CHECK_INTERVAL)),
            seen: Mutex::new(Seen { stamp, failing: false }),
        })
    }

    /// The newest good version. A file is looked at once a second at most and read only when it changed;
    /// an environment variable is not looked at. When the file is gone or malformed the last good
    /// version stays, with one warning until it is well again.
    ///
    /// The same `Arc` comes back for as long as name and password stay the same.
    /// Errors: none while there is a last good version, which files and variables always have.
    pub fn current(&self) -> Result<Arc<Secret>, SecretError> {
        self.current_at(Instant::now())
    }

    /// Reads the source now, changed or not.
    /// Errors: why it cannot be used; the last good version stays current.
    pub fn reread(&self) -> Result<Arc<Secret>, SecretError> {
        self.load(&mut lock(&self.seen))?;
        Ok(self.current.load_full())
    }

    fn current_at(&self, now: Instant) -> Result<Arc<Secret>, SecretError> {
        if let SecretSource::File(path) = &self.source {
            let age = millis(now.saturating_duration_since(self.born));
            let due = self.next_check.load(Ordering::Relaxed);
            let next = age + millis(CHECK_INTERVAL);
            // Of the threads that come at the same time one looks; the others take what there is.
            if age >= due
                && self.next_check.compare_exchange(due, next, Ordering::Relaxed, Ordering::Relaxed).is_ok()
            {
                self.check(path);
            }
        }
        Ok(self.current.load_full())
    }

    fn check(&self, path: &Path) {
        let mut seen = lock(&self.seen);
        let stamp = fs::metadata(path).ok().map(|metadata| Stamp::of(&metadata));
        if stamp.is_some() && stamp == seen.stamp {
            return;
        }
        match self.load(&mut seen) {
            Ok(()) if seen.failing => {
                tracing::info!(username = self.username, "the secret is readable again");
                seen.failing = false;
            }
            Ok(()) => {}
            Err(error) if !seen.failing => {
                tracing::warn!(username = self.username, %error, "the secret cannot be read; the last good one stays in use");
                seen.failing = true;
            }
            Err(_) => {}
        }
    }

    fn load(&self, seen: &mut Seen) -> Result<(), SecretError> {
        seen.stamp = None;
        let (secret, stamp) = read(&self.source, &self.username)?;
        seen.stamp = stamp;
        if *secret.password != *self.current.load().password {
            secret.scram_keys();
            self.current.store(Arc::new(secret));
            tracing::info!(username = self.username, "the secret has changed");
        }
        Ok(())
    }
}

impl std::fmt::Debug for SecretHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SecretHandle")
            .field("source", &self.source)
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}

/// Why a secret cannot be used. No variant carries what the secret holds.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// Missing, unreadable, too large, or changing under the reader.
    #[error("secret file {}: {source}", path.display())]
    File {
        /// As configured.
        path: PathBuf,
        /// What the operating system says.
        source: io::Error,
    },
    /// The environment variable is not set, or is not UTF-8.
    #[error("environment variable {0} is not set to UTF-8 text")]
    Env(String),
    /// Not the JSON object it should be; the place is where reading stopped.
    #[error(
        "the secret is no JSON object with the strings `username` and `password` (line {line}, column {column})"
    )]
    Json {
        /// Counted from 1.
        line: usize,
        /// Counted from 1; 0 is the line's start.
        column: usize,
    },
    /// The user name or the password is empty.
    #[error("the user name or the password in the secret is empty")]
    Empty,
    /// The user name or the password holds a NUL, which no PostgreSQL message can carry.
    #[error("the user name or the password in the secret holds a NUL character")]
    Nul,
    /// The secret names another user than the configuration does.
    #[error("the secret is not for user `{expected}`")]
    WrongUser {
        /// The configured user.
        expected: String,
    },
    /// The operating system gave no random bytes.
    #[error("no random bytes: {0}")]
    Random(getrandom::Error),
}

/// What tells one state of a file from another without reading it: a rename over it changes the inode,
/// a write in place the times, and mostly the length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    device: u64,
    inode: u64,
    len: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    /// The stamp of the file that `metadata` is of, links followed.
    pub(crate) fn of(metadata: &fs::Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            len: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// Whether another write would have moved the times. A file changed within the file system's
    /// clock tick of `now` may change once more and look the same; two seconds cover the coarsest.
    fn settled(&self, now: SystemTime) -> bool {
        let now =
            now.duration_since(UNIX_EPOCH).map_or(0, |age| i64::try_from(age.as_secs()).unwrap_or(i64::MAX));
        self.changed.0.saturating_add(2) < now
    }
}

/// Reads a file of at most `max` bytes, and its stamp if that can be relied on for telling a later change.
/// Errors: those of the operating system; `InvalidData` for a longer file or one that is no regular file;
/// `Interrupted` for one that changed while it was read.
pub(crate) fn read_stamped(path: &Path, max: u64) -> io::Result<(Zeroizing<Vec<u8>>, Option<Stamp>)> {
    let mut file = fs::File::open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "not a regular file"));
    }
    if metadata.len() > max {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("larger than {max} bytes")));
    }
    let before = Stamp::of(&metadata);
    // One byte more than there should be, so that the buffer is not moved and left behind unwiped.
    let capacity = usize::try_from(metadata.len()).unwrap_or(usize::MAX).saturating_add(1);
    let mut contents = Zeroizing::new(Vec::with_capacity(capacity));
    file.by_ref().take(metadata.len() + 1).read_to_end(&mut contents)?;
    if contents.len() as u64 != metadata.len() || Stamp::of(&file.metadata()?) != before {
        return Err(io::Error::new(io::ErrorKind::Interrupted, "changed while it was read"));
    }
    Ok((contents, Some(before).filter(|stamp| stamp.settled(SystemTime::now()))))
}

fn read(source: &SecretSource, expected: &str) -> Result<(Secret, Option<Stamp>), SecretError> {
    let (secret, stamp) = match source {
        SecretSource::File(path) => {
            let (document, stamp) = read_stamped(path, MAX_SECRET_BYTES)
                .map_err(|source| SecretError::File { path: path.clone(), source })?;
            (Secret::from_json(&document)?, stamp)
        }
        SecretSource::Env(name) => {
            let document = env::var(name).map(Zeroizing::new).map_err(|_| SecretError::Env(name.clone()))?;
            (Secret::from_json(document.as_bytes())?, None)
        }
    };
    if secret.username != expected {
        return Err(SecretError::WrongUser { expected: expected.to_owned() });
    }
    Ok((secret, stamp))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX / 2)
}

/// The data behind these locks is whole between any two statements, so a panic elsewhere spoils nothing.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::thread;

    use tempfile::TempDir;

    use super::*;

    const APP: &str = r#"{"username": "app", "password": "hunter2"}"#;
    const APP_CHANGED: &str = r#"{"username": "app", "password": "hunter3"}"#;

    fn error(document: &str) -> String {
        Secret::from_json(document.as_bytes()).unwrap_err().to_string()
    }

    /// A secret file, written in place or replaced by rename.
    struct File {
        dir: TempDir,
        path: PathBuf,
    }

    impl File {
        fn new(contents: &str) -> Self {
            let dir = TempDir::new().unwrap();
            let path = dir.path().join("app.json");
            fs::write(&path, contents).unwrap();
            Self { dir, path }
        }

        fn write(&self, contents: &str) {
            fs::write(&self.path, contents).unwrap();
        }

        fn replace(&self, contents: &str) {
            let new = self.dir.path().join("new");
            fs::write(&new, contents).unwrap();
            fs::rename(&new, &self.path).unwrap();
        }

        fn handle(&self) -> SecretHandle {
            SecretHandle::new(SecretSource::File(self.path.clone()), "app").unwrap()
        }
    }

    /// The password `seconds` after the handle was made.
    fn password_at(handle: &SecretHandle, seconds: u64) -> String {
        handle.current_at(handle.born + Duration::from_secs(seconds)).unwrap().password().to_owned()
    }

    #[test]
    fn rds_form_is_read_and_other_members_are_ignored() {
        let document = r#"{"engine":"postgres","host":"db","port":5432,"username":"app","password":"h\"\u00e9","x":[{}]}"#;
        let secret = Secret::from_json(document.as_bytes()).unwrap();
        assert_eq!((secret.username(), secret.password()), ("app", "h\"\u{e9}"));
    }

    #[test]
    fn malformed_secrets_are_refused_without_repeating_them() {
        for document in [
            "",
            "hunter2",
            "[]",
            "{}",
            r#"{"username": "app"}"#,
            r#"{"password": "hunter2"}"#,
            r#"{"username": "app", "password": 271828}"#,
            r#"{"username": "app", "password": null}"#,
            r#"{"username": ["hunter2"], "password": "hunter2"}"#,
            r#"{"username": "app", "password": "hunter2"} hunter2"#,
        ] {
            let error = error(document);
            assert!(error.contains("no JSON object"), "{document:?}: {error}");
            assert!(!error.contains("hunter2") && !error.contains("271828"), "{document:?}: {error}");
        }
        for cut in 0..APP.len() {
            assert!(error(&APP[..cut]).contains("no JSON object"), "cut after {cut} bytes");
        }
        assert!(matches!(Secret::from_json(br#"{"username":"app","password":""}"#), Err(SecretError::Empty)));
        assert!(matches!(Secret::from_json(br#"{"username":"","password":"x"}"#), Err(SecretError::Empty)));
        assert!(matches!(
            Secret::from_json(br#"{"username":"app","password":"a\u0000b"}"#),
            Err(SecretError::Nul)
        ));
        assert!(matches!(
            Secret::from_json(b"{\"username\":\"app\",\"password\":\"\xff\"}"),
            Err(SecretError::Json { .. })
        ));
    }

    #[test]
    fn debug_shows_no_password() {
        let secret = Secret::from_json(APP.as_bytes()).unwrap();
        secret.scram_keys();
        secret.salted_password(b"salt", 1);
        assert_eq!(format!("{secret:?}"), r#"Secret { username: "app", password: "<redacted>" }"#);
        let file = File::new(APP);
        assert!(!format!("{:?}", file.handle()).contains("hunter2"));
    }

    #[test]
    fn a_secret_of_another_user_is_refused() {
        let file = File::new(APP);
        let refused = SecretHandle::new(SecretSource::File(file.path.clone()), "web").unwrap_err();
        assert_eq!(refused.to_string(), "the secret is not for user `web`");
    }

    #[test]
    fn files_that_are_none_are_refused() {
        let file = File::new(APP);
        let open = |path: &Path| SecretHandle::new(SecretSource::File(path.to_owned()), "app").unwrap_err();
        assert!(matches!(open(&file.dir.path().join("absent")), SecretError::File { .. }));
        assert!(matches!(open(file.dir.path()), SecretError::File { .. }));
        file.write(&format!("{APP}{}", " ".repeat(64 * 1024)));
        assert!(open(&file.path).to_string().contains("larger than"));
    }

    #[test]
    fn a_written_file_is_seen_within_a_second() {
        let file = File::new(APP);
        let handle = file.handle();
        file.write(APP_CHANGED);
        assert_eq!(password_at(&handle, 0), "hunter2");
        assert_eq!(password_at(&handle, 1), "hunter3");
    }

    #[test]
    fn a_replaced_file_is_seen_within_a_second() {
        let file = File::new(APP);
        let handle = file.handle();
        file.replace(APP_CHANGED);
        assert_eq!(password_at(&handle, 0), "hunter2");
        assert_eq!(password_at(&handle, 1), "hunter3");
        file.replace(APP);
        assert_eq!(password_at(&handle, 1), "hunter3");
        assert_eq!(password_at(&handle, 2), "hunter2");
    }

    #[test]
    fn a_link_to_a_replaced_directory_is_followed() {
        let dir = TempDir::new().unwrap();
        for (version, contents) in [("1", APP), ("2", APP_CHANGED)] {
            fs::create_dir(dir.path().join(version)).unwrap();
            fs::write(dir.path().join(version).join("app.json"), contents).unwrap();
        }
        let link = |version: &str| {
            std::os::unix::fs::symlink(version, dir.path().join("new")).unwrap();
            fs::rename(dir.path().join("new"), dir.path().join("current")).unwrap();
        };
        link("1");
        let path = dir.path().join("current").join("app.json");
        let handle = SecretHandle::new(SecretSource::File(path), "app").unwrap();
        link("2");
        assert_eq!(password_at(&handle, 1), "hunter3");
    }

    #[test]
    fn the_last_good_secret_stays_while_the_file_is_bad() {
        let file = File::new(APP);
        let handle = file.handle();
        fs::remove_file(&file.path).unwrap();
        assert_eq!(password_at(&handle, 1), "hunter2");
        assert!(matches!(handle.reread(), Err(SecretError::File { .. })));
        for (second, bad) in
            [&APP_CHANGED[..20], "", r#"{"username": "web", "password": "x"}"#].iter().enumerate()
        {
            file.write(bad);
            assert_eq!(password_at(&handle, second as u64 + 2), "hunter2");
            assert!(handle.reread().is_err());
        }
        file.write(APP_CHANGED);
        assert_eq!(password_at(&handle, 5), "hunter3");
    }

    #[test]
    fn reread_does_not_wait() {
        let file = File::new(APP);
        let handle = file.handle();
        file.write(APP_CHANGED);
        assert_eq!(handle.reread().unwrap().password(), "hunter3");
        assert_eq!(password_at(&handle, 0), "hunter3");
    }

    #[test]
    fn the_same_password_is_the_same_version() {
        let file = File::new(APP);
        let handle = file.handle();
        let first = handle.current().unwrap();
        file.replace(r#"{"password": "hunter2", "username": "app", "host": "moved"}"#);
        assert!(Arc::ptr_eq(&first, &handle.reread().unwrap()));
        file.replace(APP_CHANGED);
        assert!(!Arc::ptr_eq(&first, &handle.reread().unwrap()));
    }

    #[test]
    fn an_unchanged_file_is_not_read_again() {
        let file = File::new(APP);
        let handle = file.handle();
        let stamp = Stamp::of(&fs::metadata(&file.path).unwrap());
        // As after a read of a file that has been as it is for a while.
        lock(&handle.seen).stamp = Some(stamp);
        handle.check(&file.path);
        assert_eq!(lock(&handle.seen).stamp, Some(stamp));
        file.replace(APP_CHANGED);
        handle.check(&file.path);
        assert_ne!(lock(&handle.seen).stamp, Some(stamp));
        assert_eq!(handle.current().unwrap().password(), "hunter3");
    }

    #[test]
    fn a_stamp_is_relied_on_when_the_clock_has_moved_on() {
        let file = File::new(APP);
        let stamp = Stamp::of(&fs::metadata(&file.path).unwrap());
        let changed = UNIX_EPOCH + Duration::from_secs(u64::try_from(stamp.changed.0).unwrap());
        assert!(!stamp.settled(changed));
        assert!(!stamp.settled(changed + Duration::from_secs(2)));
        assert!(stamp.settled(changed + Duration::from_secs(3)));
        assert!(!stamp.settled(UNIX_EPOCH));
    }

    #[test]
    fn an_environment_variable_is_read() {
        const NAME: &str = "PINION_TEST_SECRET";
        // A test cannot set its own environment safely, so it runs itself with one.
        if env::var_os(NAME).is_none() {
            let test = "secrets::tests::an_environment_variable_is_read";
            let ran = std::process::Command::new(env::current_exe().unwrap())
                .args([test, "--exact"])
                .env(NAME, APP)
                .output()
                .unwrap();
            assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stdout));
            assert!(String::from_utf8_lossy(&ran.stdout).contains("1 passed"));
            return;
        }
        let handle = SecretHandle::new(SecretSource::Env(NAME.into()), "app").unwrap();
        let first = handle.current().unwrap();
        assert_eq!(first.password(), "hunter2");
        assert!(Arc::ptr_eq(&first, &handle.reread().unwrap()));
        let wrong = SecretHandle::new(SecretSource::Env(NAME.into()), "web").unwrap_err();
        assert!(matches!(wrong, SecretError::WrongUser { .. }));
        let other = SecretHandle::new(SecretSource::Env("CARGO_MANIFEST_DIR".into()), "app").unwrap_err();
        assert!(matches!(other, SecretError::Json { .. }));
        let absent =
            SecretHandle::new(SecretSource::Env("PINION_NO_SUCH_VARIABLE".into()), "app").unwrap_err();
        assert_eq!(
            absent.to_string(),
            "environment variable PINION_NO_SUCH_VARIABLE is not set to UTF-8 text"
        );
    }

    #[test]
    fn derived_keys_are_kept() {
        let secret = Secret::from_json(APP.as_bytes()).unwrap();
        assert!(std::ptr::eq(secret.scram_keys(), secret.scram_keys()));
        let salted = secret.salted_password(b"salt", 2);
        assert_eq!(salted, scram::salted_password("hunter2", b"salt", 2));
        assert_eq!(salted, secret.salted_password(b"salt", 2));
        assert_ne!(salted, secret.salted_password(b"salt", 3));
        assert_ne!(salted, secret.salted_password(b"tlas", 2));
        assert_eq!(lock(&secret.salted).len(), 3);
        for salt in 0..20u8 {
            assert_eq!(secret.salted_password(&[salt], 1), scram::salted_password("hunter2", &[salt], 1));
        }
        assert_eq!(lock(&secret.salted).len(), SALTS_KEPT);
    }

    #[test]
    fn threads_share_a_handle_while_the_file_changes() {
        let file = File::new(APP);
        let handle = file.handle();
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for second in 0..50 {
                        let password = password_at(&handle, second);
                        assert!(password == "hunter2" || password == "hunter3");
                    }
                });
            }
            for version in 0..50 {
                file.replace(if version % 2 == 0 { APP_CHANGED } else { APP });
            }
            file.replace(APP_CHANGED);
        });
        assert_eq!(handle.reread().unwrap().password(), "hunter3");
    }
}
