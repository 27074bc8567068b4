//! Prepared statements as Pinion knows them: one entry per distinct text in a pool, whatever clients call it.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    io::Write as _,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use super::{
    super::{Facts, PinReasons, Statement as Submitted},
    classify::LexMode,
    codec::cstr,
    description::{Description, Told},
};
use crate::state::Settings;

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
    /// Under which settings.
    pub(super) scope: Scope,
    /// A server has accepted it.
    accepted: AtomicBool,
    /// What a server has said of it, for whoever asks.
    described: Mutex<Option<Arc<Told>>>,
    /// Nobody who prepares the text from now on gets this entry.
    retired: AtomicBool,
    /// Set for interned statements: where to sign off.
    home: Option<(Weak<StatementCache>, u64)>,
}

/// What decides, beside the text, what it means when it is prepared: the pool, and settings as far as a client has set
/// them.
#[derive(Debug, Clone, Default)]
pub(super) struct Scope {
    /// User, database and start-up parameters, as a number.
    pub(super) pool: u64,
    /// Those by which its literals are read, when it is prepared and never again; not kept of a text without literals.
    pub(super) literals: Option<Arc<Settings>>,
    /// Those by which its names are looked up, which servers do again when they have changed.
    pub(super) names: Option<Arc<Settings>>,
    /// Schemas have changed since there were statements of an earlier number.
    pub(super) schema: u64,
}

impl Scope {
    /// Settings of a session, as far as they count for a text.
    pub(super) fn of(pool: u64, settings: Option<&Arc<Settings>>, has_literals: bool, schema: u64) -> Self {
        let some = |names: &[&str]| {
            settings.and_then(|settings| Settings::retain(settings, |name| names.contains(&name)))
        };
        let literals = if has_literals { some(&LITERALS) } else { None };
        Self { pool, literals, names: some(&NAMES), schema }
    }
}

impl PartialEq for Scope {
    fn eq(&self, other: &Self) -> bool {
        // Equal settings are one.
        let same = |one: &Option<Arc<Settings>>, other: &Option<Arc<Settings>>| {
            one.as_ref().map(Arc::as_ptr) == other.as_ref().map(Arc::as_ptr)
        };
        self.pool == other.pool
            && self.schema == other.schema
            && same(&self.literals, &other.literals)
            && same(&self.names, &other.names)
    }
}

/// Variables that change how literals are read.
pub(super) const LITERALS: [&str; 10] = [
    "array_nulls",
    "backslash_quote",
    "client_encoding",
    "datestyle",
    "intervalstyle",
    "lc_monetary",
    "standard_conforming_strings",
    "timezone",
    "transform_null_equals",
    "xmloption",
];

/// Variables that change what names stand for.
const NAMES: [&str; 3] = ["search_path", "role", "session_authorization"];

/// True when there may be a literal in a text whose meaning depends on more than the text.
pub(super) fn has_literals(text: &[u8]) -> bool {
    let dollar_quote =
        || memchr::memchr_iter(b'$', text).any(|at| !text.get(at + 1).is_some_and(u8::is_ascii_digit));
    memchr::memchr(b'\'', text).is_some() || !text.is_ascii() || dollar_quote()
}

/// What a client's statement name stands for.
#[derive(Debug, Clone)]
pub(super) struct Prepared {
    pub(super) statement: Arc<Statement>,
    /// Policy was asked when it was prepared, or used first under another policy.
    pub(super) asked: Option<Arc<Asked>>,
    /// What the client was told of it, once it has asked.
    pub(super) told: Option<Arc<Told>>,
}

/// What policy was asked about, and which policy.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) generation: u64,
    /// As the client prepared it, before any rewrite.
    pub(super) original: Arc<Statement>,
}

impl Statement {
    /// A statement of its own, for what is not shared.
    #[must_use]
    pub(super) fn new(tail: &[u8], mode: LexMode, scope: Scope, facts: Arc<Facts>, digest: u128) -> Self {
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        Self {
            id,
            tail: tail.into(),
            facts,
            digest,
            mode,
            scope,
            accepted: AtomicBool::new(false),
            described: Mutex::new(None),
            retired: AtomicBool::new(false),
            home: None,
        }
    }

    /// The same text where names stand for what they do under `names`.
    pub(super) fn under(self: &Arc<Self>, names: Option<Arc<Settings>>) -> Arc<Self> {
        let scope = Scope { names, ..self.scope.clone() };
        match self.home.as_ref().and_then(|(home, _)| home.upgrade()) {
            Some(home) if scope != self.scope => {
                home.intern(&self.tail, self.mode, scope, || (self.facts.clone(), self.digest))
            }
            _ => self.clone(),
        }
    }

    /// The same text, prepared for one client alone.
    pub(super) fn apart(&self) -> Self {
        Self::new(&self.tail, self.mode, self.scope.clone(), self.facts.clone(), self.digest)
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
        self.retired.store(true, Ordering::Relaxed);
        if let Some((home, hash)) = &self.home
            && let Some(cache) = home.upgrade()
        {
            cache.remove(*hash, self.id);
        }
    }

    /// A server has accepted it.
    pub fn set_accepted(&self) {
        self.accepted.store(true, Ordering::Relaxed);
    }

    /// True when a server has accepted it, so that another Parse need not ask.
    pub fn is_accepted(&self) -> bool {
        self.accepted.load(Ordering::Relaxed)
    }

    /// A server has said this of it, which holds for all who have prepared the text. Other than before means that the
    /// schema has changed.
    pub(super) fn keep(&self, description: &Arc<Description>) {
        let mut kept = self.described.lock().unwrap_or_else(PoisonError::into_inner);
        let before = kept.as_ref().and_then(|told| told.description());
        if before.is_some_and(|before| !before.reads_like(description)) {
            drop(kept);
            self.retire();
        } else if before.is_none_or(|before| before.said() != description.said()) {
            *kept = Some(Arc::new(Told::now(description.clone())));
        }
    }

    /// What a server would say of it; `None` when one has to be asked.
    pub(super) fn described(&self) -> Option<Arc<Told>> {
        if self.retired.load(Ordering::Relaxed) {
            return None;
        }
        self.described.lock().unwrap_or_else(PoisonError::into_inner).clone()
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
    pub(super) fn intern(
        self: &Arc<Self>,
        tail: &[u8],
        mode: LexMode,
        scope: Scope,
        facts: impl FnOnce() -> (Arc<Facts>, u128),
    ) -> Arc<Statement> {
        let hash = self.hasher.hash_one(tail);
        if let Some(found) = self.find(hash, tail, mode, &scope) {
            return found;
        }
        // Classifying may parse, so no lock is held meanwhile; two at once make two entries, which is harmless.
        let (facts, digest) = facts();
        let mut statement = Statement::new(tail, mode, scope, facts, digest);
        statement.home = Some((Arc::downgrade(self), hash));
        let statement = Arc::new(statement);
        self.lock().entry(hash).or_default().push(Arc::downgrade(&statement));
        statement
    }

    fn find(&self, hash: u64, tail: &[u8], mode: LexMode, scope: &Scope) -> Option<Arc<Statement>> {
        // Upgraded outside of the lock's scope: the last owner may let go meanwhile, and dropping takes the lock.
        let candidates: Vec<_> = self.lock().get(&hash)?.iter().filter_map(Weak::upgrade).collect();
        candidates.into_iter().find(|s| *s.tail == *tail && s.mode == mode && s.scope == *scope)
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
