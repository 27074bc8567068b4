//! The audit sink: records of all plugins, numbered, one JSON object a line, to a rotated file or standard output.
//!
//! A thread of its own writes, since a disk may take its time. A record counts as queued until it is written, so that
//! where the sink blocks, nothing that was acknowledged is only in our memory for long.

use std::{
    collections::VecDeque,
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant, SystemTime},
};

use serde_json::{Map, Value};
use tokio::sync::Notify;
use tracing::{error, info, warn};

use super::wit::AuditError;
use crate::{
    config::{AuditConfig, AuditSink, WhenFull},
    metrics::AuditMetrics,
};

/// Longest `fields` of one record.
const RECORD_BYTES: usize = 64 * 1024;
/// Written at once.
const CHUNK_BYTES: usize = 256 * 1024;
/// Between two tries to write what could not be written.
const RETRY: Duration = Duration::from_secs(1);
/// How long the end of the process waits for a sink that cannot be written.
const LAST_TRIES: Duration = if cfg!(test) { Duration::from_millis(200) } else { Duration::from_secs(5) };
/// Of the end of a file, to find the last record's number.
const TAIL_BYTES: u64 = 2 * RECORD_BYTES as u64;

/// The sink that all plugins append to.
#[derive(Debug)]
pub(super) struct Audit {
    shared: Arc<Shared>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug)]
struct Shared {
    queue: Mutex<Queue>,
    /// For the writer: there is something to do.
    wake: Condvar,
    /// For sessions: there is room again.
    room: Notify,
    /// The same for threads.
    freed: Condvar,
    /// Records queued or being written.
    waiting: AtomicUsize,
    /// Nobody writes any more.
    ended: AtomicBool,
    bound: usize,
    when_full: WhenFull,
    metrics: AuditMetrics,
}

#[derive(Debug)]
struct Queue {
    lines: VecDeque<String>,
    /// The last number given.
    number: u64,
    stop: bool,
}

impl Audit {
    /// Opens the sink and starts its thread.
    pub(super) fn open(config: &AuditConfig) -> Result<Arc<Self>, String> {
        let (sink, last, label) = match &config.sink {
            AuditSink::Stdout => (Sink::Stdout, 0, "stdout"),
            AuditSink::File(path) => {
                let file = LogFile::open(path, config.rotate_bytes, config.keep)
                    .map_err(|error| format!("audit file {}: {error}", path.display()))?;
                let last = last_number(path).unwrap_or(0);
                (Sink::File(file), last, "file")
            }
        };
        let shared = Arc::new(Shared {
            queue: Mutex::new(Queue { lines: VecDeque::new(), number: last, stop: false }),
            wake: Condvar::new(),
            room: Notify::new(),
            freed: Condvar::new(),
            waiting: AtomicUsize::new(0),
            ended: AtomicBool::new(false),
            bound: config.queue,
            when_full: config.when_full,
            metrics: AuditMetrics::new(label),
        });
        let mut writer = Writer { sink, shared: shared.clone(), failing: false };
        let thread = thread::Builder::new()
            .name("pinion-audit".into())
            .spawn(move || writer.run())
            .map_err(|error| format!("no thread for the audit sink: {error}"))?;
        Ok(Arc::new(Self { shared, writer: Mutex::new(Some(thread)) }))
    }

    /// Queues one record of `plugin` and gives its number.
    pub(super) fn append(&self, proxy: &str, plugin: &str, fields: &str) -> Result<u64, AuditError> {
        if fields.len() > RECORD_BYTES {
            return Err(AuditError::Malformed);
        }
        let mut fields: Map<String, Value> =
            serde_json::from_str(fields).map_err(|_| AuditError::Malformed)?;
        // Ours cannot be forged.
        for ours in ["seq", "time", "proxy", "plugin"] {
            fields.remove(ours);
        }
        let mut rest = Value::Object(fields).to_string();
        rest.remove(0);
        let comma = if rest == "}" { "" } else { "," };
        let (proxy, plugin) = (Value::from(proxy), Value::from(plugin));
        let time = humantime::format_rfc3339_millis(SystemTime::now());

        let shared = &*self.shared;
        let mut queue = shared.lock();
        if queue.stop {
            return Err(AuditError::Other("the host is stopping".into()));
        }
        queue.number += 1;
        let number = queue.number;
        if shared.when_full == WhenFull::Drop && shared.waiting.load(Relaxed) >= shared.bound {
            shared.metrics.dropped();
            return Err(AuditError::Dropped);
        }
        queue.lines.push_back(format!(
            "{{\"seq\":{number},\"time\":\"{time}\",\"proxy\":{proxy},\"plugin\":{plugin}{comma}{rest}\n"
        ));
        shared.metrics.queued(shared.waiting.fetch_add(1, Relaxed) + 1);
        drop(queue);
        shared.wake.notify_one();
        Ok(number)
    }

    /// Whether sessions must wait when there is no room.
    pub(super) fn blocks(&self) -> bool {
        self.shared.when_full == WhenFull::Block
    }

    /// Whether more is queued than may be.
    pub(super) fn is_over(&self) -> bool {
        let shared = &self.shared;
        self.blocks() && shared.waiting.load(Relaxed) > shared.bound && !shared.ended.load(Relaxed)
    }

    /// Waits until there is room, where the sink blocks.
    pub(super) async fn relieve(&self) {
        while self.is_over() {
            let room = self.shared.room.notified();
            if !self.is_over() {
                return;
            }
            room.await;
        }
    }

    /// The same for a thread that is nobody's worker; gives up when the sink is shut down.
    pub(super) fn wait_for_room(&self) {
        let mut queue = self.shared.lock();
        while self.is_over() && !queue.stop {
            // Looked at now and then, since who makes room holds no lock.
            let waited = self.shared.freed.wait_timeout(queue, Duration::from_millis(20));
            queue = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Writes what is queued and ends the thread. Blocks; later records are refused.
    pub(super) fn shut_down(&self) {
        self.shared.lock().stop = true;
        self.shared.wake.notify_all();
        let thread = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            error!("the audit sink's thread failed");
        }
        self.shared.ended.store(true, Relaxed);
        self.shared.room.notify_waiters();
    }
}

impl Drop for Audit {
    fn drop(&mut self) {
        self.shut_down();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `count` records are off our hands.
    fn done(&self, count: usize) {
        let left = self.waiting.fetch_sub(count, Relaxed) - count;
        self.metrics.queued(left);
        if left <= self.bound {
            self.room.notify_waiters();
            self.freed.notify_all();
        }
    }
}

struct Writer {
    sink: Sink,
    shared: Arc<Shared>,
    /// The last write failed and said so.
    failing: bool,
}

impl Writer {
    fn run(&mut self) {
        loop {
            let (lines, stop) = self.next();
            if lines.is_empty() {
                self.sink.sync();
                if stop {
                    return;
                }
                continue;
            }
            let count = lines.len();
            if self.write(&lines) {
                self.shared.metrics.written(count);
            } else {
                self.shared.metrics.lost(count);
                error!(
                    records = count,
                    "the audit sink could not be written to the end; these records are lost"
                );
            }
            self.shared.done(count);
        }
    }

    /// What is queued, at most a chunk; empty when nothing came for a second.
    fn next(&self) -> (Vec<String>, bool) {
        let mut queue = self.shared.lock();
        if queue.lines.is_empty() && !queue.stop {
            let waited = self.shared.wake.wait_timeout(queue, Duration::from_secs(1));
            queue = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        let (mut lines, mut bytes) = (Vec::new(), 0);
        while bytes < CHUNK_BYTES
            && let Some(line) = queue.lines.pop_front()
        {
            bytes += line.len();
            lines.push(line);
        }
        (lines, queue.stop)
    }

    /// Tries until it is written; false when the process ends before that.
    fn write(&mut self, lines: &[String]) -> bool {
        let mut pieces = self.sink.pieces(lines);
        let mut stopping: Option<Instant> = None;
        while let Some(piece) = pieces.front_mut() {
            let result = self.sink.write(piece);
            match result {
                Ok(()) => {
                    pieces.pop_front();
                    if std::mem::take(&mut self.failing) {
                        info!("the audit sink can be written again");
                    }
                    continue;
                }
                Err(error) => {
                    self.shared.metrics.failed();
                    if !std::mem::replace(&mut self.failing, true) {
                        error!(%error, "the audit sink cannot be written; trying on");
                    }
                }
            }
            let queue = self.shared.lock();
            if queue.stop {
                let since = *stopping.get_or_insert_with(Instant::now);
                if since.elapsed() >= LAST_TRIES {
                    return false;
                }
            }
            let wait = if queue.stop { RETRY / 10 } else { RETRY };
            // Woken by each new record as well: the time that was asked for is what counts.
            let until = Instant::now() + wait;
            let mut queue = queue;
            while let Some(left) = until.checked_duration_since(Instant::now())
                && !(queue.stop && stopping.is_none())
            {
                let waited = self.shared.wake.wait_timeout(queue, left);
                queue = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
        }
        true
    }
}

enum Sink {
    Stdout,
    File(LogFile),
}

/// Bytes to write, how many of them are written, and whether they begin a new file.
struct Piece {
    bytes: Vec<u8>,
    written: usize,
    rotate: bool,
}

impl Sink {
    /// Cuts lines where the file would grow too long.
    fn pieces(&self, lines: &[String]) -> VecDeque<Piece> {
        let (mut size, most) = match self {
            Self::Stdout => (0, u64::MAX),
            Self::File(file) => (file.size, if file.regular { file.rotate_bytes } else { u64::MAX }),
        };
        let mut pieces = VecDeque::from([Piece { bytes: Vec::new(), written: 0, rotate: false }]);
        for line in lines {
            let bytes = line.len() as u64;
            if size > 0 && size + bytes > most {
                pieces.push_back(Piece { bytes: Vec::new(), written: 0, rotate: true });
                size = 0;
            }
            size += bytes;
            if let Some(last) = pieces.back_mut() {
                last.bytes.extend_from_slice(line.as_bytes());
            }
        }
        pieces
    }

    /// Goes on where an earlier try stopped.
    fn write(&mut self, piece: &mut Piece) -> io::Result<()> {
        if piece.rotate
            && let Self::File(file) = self
        {
            file.rotate()?;
            piece.rotate = false;
        }
        while piece.written < piece.bytes.len() {
            let left = &piece.bytes[piece.written..];
            let written = match self {
                Self::Stdout => io::stdout().lock().write(left),
                Self::File(file) => file.file.write(left),
            };
            match written {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    piece.written += written;
                    if let Self::File(file) = self {
                        file.size += written as u64;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if let Self::Stdout = self {
            io::stdout().lock().flush()?;
        }
        Ok(())
    }

    /// Puts what is written where it survives a power cut, and follows a file that was moved away.
    fn sync(&mut self) {
        let Self::File(file) = self else { return };
        if !file.regular {
            return;
        }
        if std::mem::replace(&mut file.synced, file.size) != file.size
            && let Err(error) = file.file.sync_data()
        {
            warn!(%error, "the audit file could not be synced");
        }
        let here = fs::metadata(&file.path).map(|metadata| (metadata.dev(), metadata.ino()));
        if here.ok() != Some(file.identity)
            && let Err(error) = file.reopen()
        {
            warn!(%error, "the audit file was moved away and cannot be made again");
        }
    }
}

struct LogFile {
    path: PathBuf,
    file: File,
    identity: (u64, u64),
    /// A device or a pipe is not rotated.
    regular: bool,
    size: u64,
    synced: u64,
    rotate_bytes: u64,
    keep: u32,
}

impl LogFile {
    fn open(path: &Path, rotate_bytes: u64, keep: u32) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
        let metadata = file.metadata()?;
        Ok(Self {
            path: path.to_owned(),
            file,
            identity: (metadata.dev(), metadata.ino()),
            regular: metadata.is_file(),
            size: metadata.len(),
            synced: metadata.len(),
            rotate_bytes,
            keep,
        })
    }

    fn reopen(&mut self) -> io::Result<()> {
        *self = Self::open(&self.path, self.rotate_bytes, self.keep)?;
        Ok(())
    }

    fn numbered(&self, number: u32) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(format!(".{number}"));
        name.into()
    }

    /// `audit.log` becomes `audit.log.1`, that `.2` and so on; what would be beyond `keep` goes.
    fn rotate(&mut self) -> io::Result<()> {
        if !self.regular {
            return Ok(());
        }
        let _ = self.file.sync_data();
        let gone = |result: io::Result<()>| match result {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        };
        if self.keep == 0 {
            gone(fs::remove_file(&self.path))?;
        }
        for number in (0..self.keep).rev() {
            let from = if number == 0 { self.path.clone() } else { self.numbered(number) };
            gone(fs::rename(from, self.numbered(number + 1)))?;
        }
        self.reopen()
    }
}

/// The number of the last whole record in a file.
fn last_number(path: &Path) -> Option<u64> {
    let mut file = File::open(path).ok()?;
    let length = file.metadata().ok().filter(fs::Metadata::is_file)?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES))).ok()?;
    let mut tail = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut tail).ok()?;
    let text = String::from_utf8_lossy(&tail);
    text.lines().rev().find_map(|line| serde_json::from_str::<Value>(line).ok()?.get("seq")?.as_u64())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn config(sink: AuditSink, queue: usize, when_full: WhenFull) -> AuditConfig {
        AuditConfig { sink, rotate_bytes: 1 << 20, keep: 2, queue, when_full }
    }

    fn records(path: &Path) -> Vec<Value> {
        fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn records_are_numbered_tagged_and_cannot_be_forged() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.log");
        let open = || Audit::open(&config(AuditSink::File(path.clone()), 10, WhenFull::Block)).unwrap();
        let audit = open();
        assert_eq!(audit.append("p", "x", r#"{"seq": 99, "plugin": "root", "a": "\n"}"#), Ok(1));
        assert_eq!(audit.append("p", "x", "{}"), Ok(2));
        for wrong in ["", "[]", "7", r#"{"a": 1} {}"#] {
            assert_eq!(audit.append("p", "x", wrong), Err(AuditError::Malformed), "{wrong}");
        }
        let long = format!("{{\"a\": \"{}\"}}", "b".repeat(RECORD_BYTES));
        assert_eq!(audit.append("p", "x", &long), Err(AuditError::Malformed));
        audit.shut_down();
        assert!(matches!(audit.append("p", "x", "{}"), Err(AuditError::Other(_))));
        let found = records(&path);
        assert_eq!(found.len(), 2);
        assert_eq!(
            (&found[0]["seq"], &found[0]["plugin"], &found[0]["a"]),
            (&1.into(), &"x".into(), &"\n".into())
        );
        assert!(humantime::parse_rfc3339(found[0]["time"].as_str().unwrap()).is_ok());
        // Another run goes on with the numbers.
        let audit = open();
        assert_eq!(audit.append("p", "x", "{}"), Ok(3));
        audit.shut_down();
        assert_eq!(records(&path).len(), 3);
    }

    #[test]
    fn files_are_rotated_between_records() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.log");
        let config = AuditConfig {
            rotate_bytes: 300,
            ..config(AuditSink::File(path.clone()), 10_000, WhenFull::Block)
        };
        let audit = Audit::open(&config).unwrap();
        for n in 0..40 {
            audit.append("p", "x", &format!("{{\"n\":{n}}}")).unwrap();
        }
        audit.shut_down();
        let name = |number: u32| dir.path().join(format!("audit.log.{number}"));
        let mut numbers: Vec<u64> = Vec::new();
        for path in [name(2), name(1), path] {
            assert!(fs::metadata(&path).unwrap().len() <= 300);
            numbers.extend(records(&path).iter().map(|record| record["seq"].as_u64().unwrap()));
        }
        assert!(!name(3).exists());
        assert_eq!(numbers.last(), Some(&40));
        assert!(numbers.windows(2).all(|pair| pair[0] + 1 == pair[1]), "{numbers:?}");
        assert!(numbers.len() >= 6, "{numbers:?}");
    }

    #[test]
    fn a_sink_that_drops_leaves_a_gap_in_the_numbers() {
        // Nothing can be written to it, so the queue fills up.
        let audit = Audit::open(&config(AuditSink::File("/dev/full".into()), 3, WhenFull::Drop)).unwrap();
        let given: Vec<_> = (0..5).map(|_| audit.append("p", "x", "{}")).collect();
        assert_eq!(given[..3], [Ok(1), Ok(2), Ok(3)]);
        assert_eq!(given[3..], [Err(AuditError::Dropped), Err(AuditError::Dropped)]);
        assert!(!audit.is_over());
        assert_eq!(audit.shared.lock().number, 5);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_full_disk_makes_sessions_wait_where_the_sink_blocks() {
        let audit = Audit::open(&config(AuditSink::File("/dev/full".into()), 3, WhenFull::Block)).unwrap();
        for n in 1..=3 {
            assert_eq!(audit.append("p", "x", "{}"), Ok(n));
        }
        audit.relieve().await;
        assert_eq!(audit.append("p", "x", "{}"), Ok(4));
        assert!(audit.is_over());
        assert!(tokio::time::timeout(Duration::from_millis(50), audit.relieve()).await.is_err());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn waiting_sessions_go_on_when_there_is_room() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.log");
        let audit = Audit::open(&config(AuditSink::File(path.clone()), 1, WhenFull::Block)).unwrap();
        for _ in 0..200 {
            audit.append("p", "x", "{}").unwrap();
            tokio::time::timeout(Duration::from_secs(10), audit.relieve()).await.unwrap();
        }
        audit.shut_down();
        assert_eq!(records(&path).len(), 200);
    }

    #[test]
    fn a_file_that_is_moved_away_is_made_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.log");
        let audit = Audit::open(&config(AuditSink::File(path.clone()), 10, WhenFull::Block)).unwrap();
        audit.append("p", "x", "{}").unwrap();
        let until = Instant::now() + Duration::from_secs(10);
        while audit.shared.waiting.load(Relaxed) > 0 {
            assert!(Instant::now() < until);
            thread::yield_now();
        }
        fs::rename(&path, dir.path().join("moved")).unwrap();
        while !path.exists() {
            assert!(Instant::now() < until, "not made again");
            thread::yield_now();
        }
        audit.append("p", "x", "{}").unwrap();
        audit.shut_down();
        assert_eq!(records(&path)[0]["seq"], 2);
    }
}
