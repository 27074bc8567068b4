//! Prepared statements as Pinion knows them: one entry per distinct text, whatever clients call it.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    io::Write as _,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
};

use super::{
    super::{Facts, PinReasons, Statement as Submitted},
    classify::LexMode,
    codec::cstr,
};

/// Begins every statement name that Pinion gives. Clients may use such names too; the tracker sees to it that they
/// never reach ours.
pub const NAME_PREFIX: &[u8] = b"_pinion_";

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

/// A prepared statement: text, parameter types, facts.
#[derive(Debug)]
pub struct Statement {
    /// Unique in this process.
    pub id: u64,
    /// A Parse message's body after the statement name: `text \0 | count: i16 | type oids: i32 each`.
    pub tail: Box<[u8]>,
    /// What the grammar says of the text.
    pub facts: Arc<Facts>,
    /// Of the text.
    pub digest: u128,
    /// How the text was read; in another mode it may mean something else.
    pub mode: LexMode,
    /// The pool in which a server has accepted it last; 0 before.
    accepted_in: AtomicU64,
    /// Set for interned statements: where to sign off.
    home: Option<(Weak<StatementCache>, u64)>,
}

/// What a client's statement name stands for.
#[derive(Debug, Clone)]
pub(super) struct Prepared {
    pub(super) statement: Arc<Statement>,
    /// Policy was asked when it was prepared, or used first under another policy.
    pub(super) asked: Option<Arc<Asked>>,
}

/// What policy was asked about, and which policy.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) generation: u64,
    /// As the client prepared it, before any rewrite.
    pub(super) original: Arc<Statement>,
}

impl Statement {
    /// A statement of its own, for the unnamed ones.
    #[must_use]
    pub fn new(tail: &[u8], mode: LexMode, facts: Arc<Facts>, digest: u128) -> Self {
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        Self { id, tail: tail.into(), facts, digest, mode, accepted_in: AtomicU64::new(0), home: None }
    }

    /// Statement text.
    #[must_use]
    pub fn text(&self) -> &[u8] {
        cstr(&self.tail).map_or(&self.tail, |(text, _)| text)
    }

    /// As it is reported when it runs.
    #[must_use]
    pub fn submitted(&self, extra_pins: PinReasons) -> Submitted {
        Submitted {
            facts: self.facts.clone(),
            digest: self.digest,
            bytes: self.text().len(),
            extra_pins,
            prepares: false,
            within: false,
        }
    }

    /// Servers hold a plan of it that does not fit the schema any more: whoever prepares the text from now on gets
    /// another entry, and so a fresh plan. Who has it already keeps it, and the server's error with it.
    pub fn retire(&self) {
        if let Some((home, hash)) = &self.home
            && let Some(cache) = home.upgrade()
        {
            cache.remove(*hash, self.id);
        }
    }

    /// A server of that pool has accepted it.
    pub fn set_accepted(&self, pool: u64) {
        self.accepted_in.store(pool, Ordering::Relaxed);
    }

    /// True when a server of that pool has accepted it, so that another Parse need not ask.
    pub fn is_accepted(&self, pool: u64) -> bool {
        self.accepted_in.load(Ordering::Relaxed) == pool
    }

    /// Appends the name this statement has on a server connection. The epoch counts how often that connection has
    /// dropped all its statements, so that a name whose fate is uncertain is never used again.
    pub fn write_name(&self, epoch: u32, out: &mut Vec<u8>) {
        out.extend_from_slice(NAME_PREFIX);
        let _ = write!(out, "{:x}", self.id);
        if epoch > 0 {
            let _ = write!(out, "_{epoch:x}");
        }
    }
}

impl Drop for Statement {
    fn drop(&mut self) {
        if let Some((home, hash)) = self.home.take()
            && let Some(cache) = home.upgrade()
        {
            cache.forget(hash);
        }
    }
}

/// Finds the one entry of a text. An entry lives while a client or a server connection uses it.
#[derive(Debug, Default)]
pub struct StatementCache {
    /// Keyed by a process-random hash of the tail; entries with equal hashes are told apart by their bytes.
    entries: Mutex<HashMap<u64, Vec<Weak<Statement>>>>,
    hasher: RandomState,
}

impl StatementCache {
    /// The entry for `tail`, made by `facts` when it is new.
    pub fn intern(
        self: &Arc<Self>,
        tail: &[u8],
        mode: LexMode,
        facts: impl FnOnce() -> (Arc<Facts>, u128),
    ) -> Arc<Statement> {
        let hash = self.hasher.hash_one(tail);
        if let Some(found) = self.find(hash, tail, mode) {
            return found;
        }
        // Classifying may parse, so no lock is held meanwhile; two at once make two entries, which is harmless.
        let (facts, digest) = facts();
        let mut statement = Statement::new(tail, mode, facts, digest);
        statement.home = Some((Arc::downgrade(self), hash));
        let statement = Arc::new(statement);
        self.lock().entry(hash).or_default().push(Arc::downgrade(&statement));
        statement
    }

    fn find(&self, hash: u64, tail: &[u8], mode: LexMode) -> Option<Arc<Statement>> {
        // Upgraded outside of the lock's scope: the last owner may let go meanwhile, and dropping takes the lock.
        let candidates: Vec<_> = self.lock().get(&hash)?.iter().filter_map(Weak::upgrade).collect();
        candidates.into_iter().find(|s| *s.tail == *tail && s.mode == mode)
    }

    fn remove(&self, hash: u64, id: u64) {
        // Dropped after the lock: the last owner of an entry takes the lock to sign off.
        let gone: Vec<_> = {
            let mut entries = self.lock();
            let Some(list) = entries.get_mut(&hash) else { return };
            let alive: Vec<_> = list.iter().filter_map(Weak::upgrade).collect();
            list.retain(|weak| alive.iter().any(|s| s.id != id && Weak::as_ptr(weak) == Arc::as_ptr(s)));
            if list.is_empty() {
                entries.remove(&hash);
            }
            alive
        };
        drop(gone);
    }

    fn forget(&self, hash: u64) {
        let mut entries = self.lock();
        if let Some(list) = entries.get_mut(&hash) {
            list.retain(|s| s.strong_count() > 0);
            if list.is_empty() {
                entries.remove(&hash);
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Vec<Weak<Statement>>>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
