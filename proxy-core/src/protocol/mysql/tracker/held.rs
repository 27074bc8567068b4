//! What a session holds on its server connection, thing by thing, so that a pin ends when the last of them is gone.
//!
//! Whatever is not followed exactly keeps its connection until the session is reset.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use super::{
    super::{
        super::{Facts, PinReason, PinReasons, StatementKind},
        Shared,
        carry::Tables,
        classify::{self, Assignment, Details, Made, NamedStatement, NamedVerb, Scope, Temporary, XaVerb},
        codec::ErrPacket,
        query::{quoted, write_query},
        server::{MyServer, Reply},
        statement::Statement,
    },
    Known, MyTracker,
};
use crate::buffer::Pipe;

/// Most things that are followed at a time, of all sorts together.
const MOST: usize = 256;
/// Most named statements that need no connection of their own, and the longest text of one.
const MOST_NAMED: usize = 64;
const MOST_NAMED_BYTES: usize = 16 * 1024;

static NEXT: AtomicU64 = AtomicU64::new(1);

/// One thing: of which reason, and which.
type Thing = (u8, Box<[u8]>);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Held {
    things: BTreeSet<Thing>,
    /// Reasons of which something may be held that is not among `things`.
    unfollowed: PinReasons,
    /// Statements that the client has named by `PREPARE`.
    named: BTreeMap<Box<str>, Named>,
    /// Changes with whatever may change what a text means when it is prepared.
    context: u64,
    /// The server said that the session holds locks.
    locked: bool,
    /// Asks for locks, as soon as that can be done.
    question: Option<String>,
}

/// A statement that the client has named.
#[derive(Debug, Clone)]
pub(super) struct Named {
    /// Unique in this process.
    id: u64,
    /// What it runs; `None` where that is not known, and the connection that has it is kept.
    pub(super) statement: Option<Arc<Statement>>,
    /// The `PREPARE`, as the client sent it.
    prepare: Box<[u8]>,
    context: u64,
    /// Why it could not be prepared where the session is served now.
    error: Option<ErrPacket>,
}

impl Named {
    /// Prepares it on `server`; the answer is swallowed.
    fn bring(&self, name: &str, up: &mut Pipe, server: &mut MyServer) {
        write_query(&self.prepare, server.agreed, up.output());
        server.expect(Reply::Named(name.into(), self.id), true, false);
    }
}

/// What a statement under way does to what is held.
#[derive(Debug, Default)]
pub(super) struct Holds {
    makes: Vec<Thing>,
    drops: Vec<Thing>,
    /// `makes` may be there though the statement fails.
    surely: bool,
    /// Reasons that nothing of may be left, once it is over.
    touches: PinReasons,
    /// Reasons that it makes things of which are not followed.
    loses: PinReasons,
    releases_all: bool,
    /// The server is to be asked whether any of the session's locks is left.
    asks: bool,
    /// Likewise if a row says that one was not got.
    pub(super) asks_if_missed: bool,
    missed: bool,
    /// The server may count anew what it has run.
    uncounts: bool,
    /// It is about the next transaction, and pins where the server does not tell of that.
    next_transaction: bool,
    named: Step,
}

/// What a statement under way does to a name.
#[derive(Debug, Default)]
enum Step {
    #[default]
    None,
    Prepares(Box<str>, Named),
    Deallocates(Box<str>),
}

fn thing(reason: PinReason, what: &[u8]) -> Thing {
    (reason as u8, what.into())
}

/// What stands before the names of temporary tables, and of what is not quite one.
const TABLE: &[u8] = b"t";
const SEQUENCE: &[u8] = b"s";

/// A temporary table by all that tells it from others. Whether case counts is the server's matter: one that is not spelt
/// as it was made is not taken for it.
fn table(table: &Temporary, schema: &[u8]) -> Thing {
    let sort = if table.is_sequence { SEQUENCE } else { TABLE };
    let schema = table.schema.as_deref().unwrap_or(schema);
    thing(PinReason::TemporaryTable, &[sort, schema, b"\0", &table.name].concat())
}

impl Held {
    fn holds(&self, reason: PinReason) -> bool {
        self.unfollowed.contains(reason) || self.things.iter().any(|(one, _)| *one == reason as u8)
    }

    fn of(&self, reason: PinReason) -> impl Iterator<Item = &[u8]> {
        self.things.iter().filter(move |(one, _)| *one == reason as u8).map(|(_, what)| &**what)
    }

    /// The session is as after login. A prepared XA transaction may outlive that.
    pub(super) fn forget(&mut self) {
        self.things.retain(|(reason, _)| *reason == PinReason::Xa as u8);
        self.unfollowed = self.unfollowed.intersection(PinReasons::only(PinReason::Xa));
        self.named.clear();
        self.question = None;
    }

    /// Something has changed that may change what a text means.
    pub(super) const fn note_context(&mut self) {
        self.context += 1;
    }

    /// What a named statement runs, where that is known.
    pub(super) fn statement(&self, name: &str) -> Option<&Arc<Statement>> {
        self.named.get(name)?.statement.as_ref()
    }

    /// A connection of ours has not taken the statement of this name.
    pub(super) fn note_unprepared(&mut self, name: &str, error: ErrPacket) {
        if let Some(named) = self.named.get_mut(name) {
            named.error = Some(error);
        }
    }

    /// What the server says of the session's locks.
    pub(super) const fn note_locked(&mut self, locked: bool) {
        self.locked = locked;
    }

    /// Packs the temporary tables, if it is known which there are, of which texts have made so many.
    pub(super) fn packing(&self, made: u64, most_bytes: usize) -> Option<Tables> {
        if self.unfollowed.contains(PinReason::TemporaryTable) {
            return None;
        }
        let tables: Option<Vec<_>> = self
            .of(PinReason::TemporaryTable)
            .map(|table| {
                let path = table.strip_prefix(TABLE)?;
                let end = path.iter().position(|byte| *byte == 0)?;
                Some((&path[..end], &path[end + 1..]))
            })
            .collect();
        Tables::new(&tables?, made, most_bytes)
    }

    /// The server has been asked for locks; true when none of them is held.
    pub(super) fn settle_locks(&mut self) -> bool {
        if std::mem::replace(&mut self.locked, true) {
            return false;
        }
        self.things.retain(|(reason, _)| *reason != PinReason::AdvisoryLock as u8);
        !self.unfollowed.contains(PinReason::AdvisoryLock)
    }

    /// Asks for every lock that may be held.
    fn lock_question(&self, new: &[Thing]) -> Option<String> {
        let new = new.iter().filter(|(reason, _)| *reason == PinReason::AdvisoryLock as u8);
        let names: BTreeSet<&[u8]> =
            self.of(PinReason::AdvisoryLock).chain(new.map(|(_, what)| &**what)).collect();
        let asked: Vec<String> = names
            .into_iter()
            .map(|name| format!("IS_USED_LOCK({}) <=> CONNECTION_ID()", String::from_utf8_lossy(name)))
            .collect();
        let follows = !self.unfollowed.contains(PinReason::AdvisoryLock);
        (follows && !asked.is_empty()).then(|| format!("SELECT {}", asked.join(" OR ")))
    }

    /// A statement is over. What of its reasons nothing is held any more.
    fn settle(&mut self, holds: Holds, failed: bool) -> PinReasons {
        if !failed {
            for dropped in &holds.drops {
                self.things.remove(dropped);
            }
            if holds.releases_all {
                self.things.retain(|(reason, _)| *reason != PinReason::AdvisoryLock as u8);
                self.unfollowed = self.unfollowed.without(PinReasons::only(PinReason::AdvisoryLock));
            }
        }
        if !failed || holds.surely {
            for made in holds.makes {
                self.things.insert(made);
            }
        }
        self.unfollowed = self.unfollowed.union(holds.loses);
        if self.things.len() > MOST {
            let all: Vec<PinReason> =
                PinReason::ALL.into_iter().filter(|reason| self.holds(*reason)).collect();
            all.into_iter().for_each(|reason| self.unfollowed.insert(reason));
            self.things.clear();
        }
        holds.touches.iter().filter(|reason| !self.holds(*reason)).fold(PinReasons::NONE, |mut ended, one| {
            ended.insert(one);
            ended
        })
    }
}

/// Is about the next transaction alone.
fn is_next_transaction(facts: &Facts, details: &Details) -> bool {
    facts.statements == 1
        && !details.has_executable_comment
        && !details.sets_more
        && !details.sets.is_empty()
        && details.sets.iter().all(|one| one.scope == Scope::NextTransaction && one.value_is_constant)
        && facts.pins.without(PinReasons::only(PinReason::SessionVariable)).is_empty()
}

/// What may change what a text means when it is prepared.
fn changes_context(facts: &Facts, details: &Details) -> bool {
    let of_session = |one: &Assignment| one.scope != Scope::User;
    // It sets user variables, and what it tells would be gone.
    let is_diagnosis = facts.statements == 1 && facts.digest_text.starts_with("get ");
    details.uses_schema
        || details.sets_more
        || details.sets.iter().any(of_session)
        || (facts.changes_settings && details.sets.is_empty() && !is_diagnosis)
}

/// Something in it may use names of statements, unseen.
fn hides_names(facts: &Facts, details: &Details) -> bool {
    let alone = facts.statements == 1 && !details.named_statements.is_empty();
    let runs = facts.statements != 1 || matches!(facts.kind, StatementKind::Routine | StatementKind::Unknown);
    let immediate = details.named_statements.iter().any(|one| one.verb == NamedVerb::ExecuteImmediate);
    immediate
        || (runs && facts.calls_unknown_function && !alone)
        || (facts.statements != 1 && !details.named_statements.is_empty())
}

/// Whether a named statement can go on.
pub(super) enum Names {
    /// Everything it needs is there.
    Ready,
    /// When the server has answered.
    Wait,
    /// It cannot; the client is told this.
    Fail(ErrPacket),
}

impl MyTracker {
    /// What a statement under way does to what the session holds.
    pub(super) fn holds(&self, facts: &Facts, details: &Details, text: &[u8], server: &MyServer) -> Holds {
        const FOLLOWED: [PinReason; 4] =
            [PinReason::TemporaryTable, PinReason::AdvisoryLock, PinReason::Handler, PinReason::Xa];
        let mut holds = Holds { next_transaction: is_next_transaction(facts, details), ..Holds::default() };
        let followed = FOLLOWED.into_iter().filter(|reason| facts.pins.contains(*reason));
        if facts.pins.contains(PinReason::Unknown) || facts.statements != 1 || !server.tracks {
            followed.for_each(|reason| holds.loses.insert(reason));
        }
        // Code may drop one and make another.
        if facts.calls_unknown_function || facts.kind == StatementKind::Unknown {
            for reason in [PinReason::TemporaryTable, PinReason::AdvisoryLock] {
                if self.held.holds(reason) || facts.pins.contains(reason) {
                    holds.loses.insert(reason);
                }
            }
        }
        let tables = self.held.holds(PinReason::TemporaryTable);
        if tables && text.to_ascii_lowercase().windows(6).any(|word| word == b"rename") {
            holds.loses.insert(PinReason::TemporaryTable);
        }
        let plain = matches!(facts.kind, StatementKind::Select | StatementKind::Write);
        // `FLUSH STATUS`, and in whatever else there is of it.
        holds.uncounts = !plain && facts.digest_text.contains("flush");
        if facts.statements != 1 {
            return holds;
        }
        if facts.pins.contains(PinReason::TemporaryTable) || (tables && facts.kind == StatementKind::Ddl) {
            match classify::temporary(text, self.mode) {
                Some(Made::Makes(made)) => {
                    holds.touches.insert(PinReason::TemporaryTable);
                    holds.makes.push(table(&made, &server.current_schema));
                }
                Some(Made::Drops(dropped)) => {
                    holds.touches.insert(PinReason::TemporaryTable);
                    holds.drops.extend(dropped.iter().map(|one| table(one, &server.current_schema)));
                }
                None if facts.pins.contains(PinReason::TemporaryTable) => {
                    holds.loses.insert(PinReason::TemporaryTable);
                }
                None => {}
            }
        }
        if facts.pins.contains(PinReason::Handler)
            || (self.held.holds(PinReason::Handler) && facts.digest_text.starts_with("handler"))
        {
            match classify::handler(text, self.mode) {
                Some(Made::Makes(name)) => {
                    holds.touches.insert(PinReason::Handler);
                    holds.makes.push(thing(PinReason::Handler, &name));
                }
                Some(Made::Drops(names)) => {
                    holds.touches.insert(PinReason::Handler);
                    holds.drops.extend(names.iter().map(|name| thing(PinReason::Handler, name)));
                }
                None if facts.pins.contains(PinReason::Handler) => holds.loses.insert(PinReason::Handler),
                None => {}
            }
        }
        if let Some(verb) = details.xa {
            let xid = classify::xa_transaction(text, self.mode).map(|xid| thing(PinReason::Xa, &xid));
            match (verb, xid) {
                (XaVerb::Start | XaVerb::End | XaVerb::Prepare, Some(xid)) => holds.makes.push(xid),
                (XaVerb::Commit | XaVerb::Rollback, Some(xid)) => {
                    holds.touches.insert(PinReason::Xa);
                    holds.drops.push(xid);
                }
                (XaVerb::Start | XaVerb::End | XaVerb::Prepare, None) => holds.loses.insert(PinReason::Xa),
                (XaVerb::Commit | XaVerb::Rollback | XaVerb::Recover, _) => {}
            }
        }
        let calls = |name: &str| facts.functions.iter().any(|function| function == name);
        let releases = calls("release_lock") || calls("release_all_locks");
        if facts.pins.contains(PinReason::AdvisoryLock)
            || (releases && self.held.holds(PinReason::AdvisoryLock))
        {
            let locks = classify::locks(text, self.mode);
            holds.surely = !locks.names.is_empty();
            holds.makes.extend(locks.names.iter().map(|name| thing(PinReason::AdvisoryLock, name)));
            if locks.releases_all {
                holds.releases_all = true;
                holds.touches.insert(PinReason::AdvisoryLock);
            } else if locks.others && facts.pins.contains(PinReason::AdvisoryLock) {
                holds.loses.insert(PinReason::AdvisoryLock);
            } else if releases {
                holds.asks = true;
            } else {
                holds.asks_if_missed = facts.kind == StatementKind::Select;
            }
        }
        holds
    }

    /// Behind a statement that may have given up locks: asks whether any is left. The client's answer is over when this is
    /// answered.
    pub(super) fn ask_for_locks(&self, up: &mut Pipe, server: &mut MyServer) {
        let holds = &self.explains.holds;
        if !holds.asks || holds.loses.contains(PinReason::AdvisoryLock) {
            return;
        }
        if let Some(question) = self.held.lock_question(&holds.makes) {
            write_query(question.as_bytes(), server.agreed, up.output());
            server.expect(Reply::Locks, true, false);
        }
    }

    /// A row of a statement that takes locks: whether it got them.
    pub(super) fn note_row(&mut self, row: &[u8]) {
        let got = row.chunks(2).all(|column| column == b"\x011");
        self.explains.holds.missed |= !got;
    }

    /// See [`super::Tracker::write_question`].
    pub(super) fn ask_for_missed_locks(&mut self, up: &mut Pipe, server: &mut MyServer) {
        if let Some(question) = self.held.question.take() {
            write_query(question.as_bytes(), server.agreed, up.output());
            server.expect(Reply::Locks, true, false);
            server.owners.note_question(self.of_one_row);
            self.held.note_locked(true);
        }
    }

    /// A statement is over: what it did to what the session holds.
    pub(super) fn settle_held(&mut self, holds: Holds, failed: bool, server: &mut MyServer) {
        let mut holds = holds;
        let step = std::mem::take(&mut holds.named);
        let missed = holds.asks_if_missed && (holds.missed || failed);
        if holds.next_transaction && !failed && !server.has_characteristics() {
            self.learned.pins.insert(PinReason::SessionVariable);
        }
        let is_table =
            |(reason, what): &&Thing| *reason == PinReason::TemporaryTable as u8 && what.starts_with(TABLE);
        if holds.uncounts {
            server.made_tables = None;
        } else if !failed && let Some(made) = &mut server.made_tables {
            *made += holds.makes.iter().filter(is_table).count() as u64;
        }
        let ended = self.held.settle(holds, failed);
        self.learned.ended = self.learned.ended.union(ended);
        if missed {
            self.held.question = self.held.lock_question(&[]);
        }
        match step {
            // What the server could not even read has left the name to whatever had it.
            Step::Prepares(name, named)
                if failed && named.statement.is_none() && self.held.named.contains_key(&name) =>
            {
                self.held.unfollowed.insert(PinReason::PreparedStatement);
            }
            Step::Prepares(name, named) => {
                // Whatever had the name has lost it.
                server.forget_named(&name);
                self.held.named.remove(&name);
                if !failed {
                    server.put_named(&name, named.id);
                    self.held.named.insert(name, named);
                }
            }
            Step::Deallocates(name) if !failed => {
                server.forget_named(&name);
                self.held.named.remove(&name);
            }
            Step::Deallocates(_) | Step::None => {}
        }
        if self.held.named.is_empty() && !self.held.unfollowed.contains(PinReason::PreparedStatement) {
            self.learned.ended.insert(PinReason::PreparedStatement);
            return;
        }
        let context = self.held.context;
        let mut stays = self.held.unfollowed.contains(PinReason::PreparedStatement);
        for named in self.held.named.values_mut() {
            named.error = None;
            stays |= named.statement.is_none() || named.context != context;
        }
        match stays {
            true => self.learned.pins.insert(PinReason::PreparedStatement),
            false => self.learned.ended.insert(PinReason::PreparedStatement),
        }
    }

    /// The one use of a statement's name that a text is.
    fn named_use<'d>(facts: &Facts, details: &'d Details) -> Option<&'d NamedStatement> {
        match &details.named_statements[..] {
            [one] => {
                let plain = facts.statements == 1 && !details.has_executable_comment && one.name.is_ascii();
                (plain && one.verb != NamedVerb::ExecuteImmediate).then_some(one)
            }
            _ => None,
        }
    }

    /// A `SET TRANSACTION` is no pin where the server tells how long it lasts: until then it says that there is a
    /// transaction.
    pub(super) fn follow_next_transaction(&self, (statement, details): &mut Known) {
        if is_next_transaction(&statement.facts, details) {
            let mut facts = Facts::clone(&statement.facts);
            facts.pins = PinReasons::NONE;
            statement.facts = Arc::new(facts);
        }
    }

    /// What a text names or runs that is one `PREPARE` or `EXECUTE`; it is known by that from now on.
    pub(super) fn follow_named(
        &self,
        shared: &Shared,
        text: &[u8],
        (statement, details): &mut Known,
    ) -> Option<Arc<Statement>> {
        let one = Self::named_use(&statement.facts, details)?;
        match one.verb {
            NamedVerb::Prepare => {
                let followed = self.held.named.len() < MOST_NAMED && text.len() <= MOST_NAMED_BYTES;
                let inner = classify::prepared_text(text, self.mode).filter(|_| followed)?;
                let known = shared.classifier.facts(&inner, self.mode);
                let (inside, more) = (&known.facts, &known.details);
                let plain = inside.statements == 1
                    && inside.kind != StatementKind::Unknown
                    && !inside.pins.contains(PinReason::Unknown)
                    && !more.has_executable_comment
                    && !more.names_user_variables
                    && !more.sets_for_statement
                    && !more.reads_connection_id
                    && more.kill.is_none()
                    && more.named_statements.is_empty();
                if !plain {
                    return None;
                }
                let mut facts = Facts::clone(&statement.facts);
                facts.pins = facts.pins.without(PinReasons::only(PinReason::PreparedStatement));
                statement.facts = Arc::new(facts);
                Some(Arc::new(Statement::new(&inner, self.mode, known)))
            }
            NamedVerb::Execute => {
                // Its arguments may be expressions (MariaDB).
                let plain = statement.facts.pins.is_empty() && statement.facts.functions.is_empty();
                let followed = |inner: &&Arc<Statement>| plain && inner.mode == self.mode;
                let inner = self.held.statement(&one.name).filter(followed)?;
                if inner.details.calculates_found_rows {
                    statement.extra_pins.insert(PinReason::SessionFunction);
                }
                let (outside, inside) = (&statement.facts, &inner.facts);
                statement.facts = Arc::new(Facts {
                    pins: outside.pins.union(inside.pins),
                    clears: inside.clears,
                    rds_pins: outside.rds_pins.union(inside.rds_pins),
                    taints: inside.taints,
                    needs_session_function: outside.needs_session_function || inside.needs_session_function,
                    changes_settings: outside.changes_settings || inside.changes_settings,
                    locks_rows: inside.locks_rows,
                    writes: inside.writes,
                    moves_transaction: inside.moves_transaction,
                    ..Facts::clone(outside)
                });
                Some(inner.clone())
            }
            NamedVerb::ExecuteImmediate | NamedVerb::Deallocate => None,
        }
    }

    /// Notes what the statement under way does to names; `inner` is what it names or runs.
    pub(super) fn note_names(
        &mut self,
        facts: &Facts,
        details: &Details,
        inner: Option<Arc<Statement>>,
        text: &[u8],
        server: &MyServer,
    ) {
        let prepares = |one: &NamedStatement| matches!(one.verb, NamedVerb::Prepare);
        let Some(one) = Self::named_use(facts, details) else {
            let named = details.named_statements.iter().any(prepares);
            if named
                || facts.pins.contains(PinReason::PreparedStatement)
                || (hides_names(facts, details) && !self.held.named.is_empty())
            {
                self.explains.holds.loses.insert(PinReason::PreparedStatement);
            }
            return;
        };
        let name: Box<str> = one.name.as_str().into();
        self.explains.holds.named = match one.verb {
            NamedVerb::Prepare => {
                let named = Named {
                    id: NEXT.fetch_add(1, Ordering::Relaxed),
                    statement: inner.filter(|_| server.tracks),
                    prepare: text.into(),
                    context: self.held.context,
                    error: None,
                };
                Step::Prepares(name, named)
            }
            NamedVerb::Deallocate => Step::Deallocates(name),
            NamedVerb::Execute | NamedVerb::ExecuteImmediate => {
                let followed = inner.is_some_and(|inner| !hides_names(&inner.facts, &inner.details));
                if !followed && self.held.named.contains_key(&name) {
                    // It may have done anything.
                    self.explains.holds.loses.insert(PinReason::PreparedStatement);
                }
                Step::None
            }
        };
    }

    /// Sees to it that a statement finds on `server` the names that this client has given, and no other's.
    pub(super) fn bring_names(
        &mut self,
        facts: &Facts,
        details: &Details,
        inner: Option<&Statement>,
        up: &mut Pipe,
        server: &mut MyServer,
    ) -> Names {
        let uses = !details.named_statements.is_empty() || hides_names(facts, details);
        let runs_code = inner.is_some_and(|inner| hides_names(&inner.facts, &inner.details));
        // What is reported as put back may look like a change of this client's, which is then kept here.
        let changes = server.restores || changes_context(facts, details);
        let fixes = runs_code || (!self.held.named.is_empty() && changes);
        if !uses && !fixes {
            return Names::Ready;
        }
        let held = &mut self.held;
        for name in server.named_but(|name, id| held.named.get(name).is_some_and(|named| named.id == id)) {
            let statement = format!("DEALLOCATE PREPARE {}", quoted(&name));
            write_query(statement.as_bytes(), server.agreed, up.output());
            server.expect(Reply::Results, true, false);
            // What follows in the same breath finds none.
            server.owners.note_own_diagnostics();
        }
        let one = Self::named_use(facts, details);
        let context = held.context;
        // One that is not read here may fail and leave the name as it was.
        let unread = self.current.as_ref().is_some_and(|current| current.named.is_none());
        let may_leave =
            |one: &NamedStatement, name: &str| unread && one.verb == NamedVerb::Prepare && *one.name == *name;
        let mut waits = false;
        for (name, named) in &mut held.named {
            if named.statement.is_none() || server.has_named(named.id) {
                continue;
            }
            if one.is_some_and(|one| one.verb == NamedVerb::Execute && *one.name == **name) {
                if let Some(error) = named.error.take() {
                    return Names::Fail(error);
                }
                if named.context != context {
                    let message = format!("Unknown prepared statement handler ({name}) given to EXECUTE");
                    return Names::Fail(ErrPacket { code: 1243, sqlstate: "HY000".into(), message });
                }
            } else if one.is_some_and(|one| !fixes && !may_leave(one, name))
                || named.error.is_some()
                || named.context != context
            {
                // What cannot be prepared any more is told to who asks for it.
                continue;
            }
            named.bring(name, up, server);
            waits = true;
        }
        if waits { Names::Wait } else { Names::Ready }
    }

    /// Prepares on `server` whatever this client has named. True when that has to be waited for.
    pub(super) fn bring_all_names(&mut self, up: &mut Pipe, server: &mut MyServer) -> bool {
        let context = self.held.context;
        let mut waits = false;
        for (name, named) in &self.held.named {
            if named.statement.is_some()
                && !server.has_named(named.id)
                && named.error.is_none()
                && named.context == context
            {
                named.bring(name, up, server);
                waits = true;
            }
        }
        waits
    }

    /// True for a `DEALLOCATE` of a name that this client has given and `server` has not: it need not be told.
    pub(super) fn drops_elsewhere(&self, facts: &Facts, details: &Details, server: &MyServer) -> bool {
        Self::named_use(facts, details).is_some_and(|one| {
            let named = self.held.named.get(&*one.name);
            one.verb == NamedVerb::Deallocate
                && named.is_some_and(|named| named.statement.is_some() && !server.has_named(named.id))
        })
    }
}
