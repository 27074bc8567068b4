//! Watches one PostgreSQL client's conversation, both ways.
//!
//! Statements of the extended protocol are virtual. A client's name stands for a text; the server connection that
//! happens to serve the client has that text under a name of ours, or gets it by a Parse put in before the message
//! that needs it, whose answer is swallowed. To know which answer belongs to what, every message sent leaves an
//! [`Expect`] with the server connection.
//!
//! Source: PostgreSQL manual, "Message Flow", and `src/backend/tcop/postgres.c` for what the server skips when.

use std::{
    collections::{BTreeSet, HashMap},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::{Arc, LazyLock, atomic::Ordering},
};

use super::{
    super::{
        ClientEvent, Facts, Fault, FaultKind, Greeting, Learned, Moves, Outcome, PinReason, PinReasons,
        PoolKey, ProtocolError, Rewritten, ServerEvent, ServerState as _, Statement as Submitted,
        StatementKind, Tracker, Tx, Upcoming, Watch,
    },
    Postgres, Shared,
    classify::{self, Classified, Classifier, LexMode},
    codec::{ErrorFields, HEADER_BYTES, Header, cstr, put_cstr, read_notification, write_message},
    description::Told,
    error::write_error,
    inquiry,
    server::{
        Expect, MAX_HELD_BYTES, PgServer, Undo, greeting_mode, greets_in_utf8, read_parameter, read_status,
    },
    statement::{Asked, NAME_PREFIX, Prepared, Scope, Statement, has_literals},
};
use crate::{buffer::Pipe, state::Settings};

mod deferred;

pub(super) use deferred::Deferred;

/// Longest Query or Parse that is read whole. What is longer is relayed unread, so its client is pinned.
pub const MAX_TEXT_BYTES: usize = 1 << 20;

/// Statements of one request whose outcome is told.
const MAX_OUTCOMES: usize = 1024;

/// Longest run of names at the front of a Bind.
const MAX_NAME_BYTES: usize = 16 * 1024;

const PARSE_COMPLETE: &[u8] = b"1\0\0\0\x04";
const CLOSE_COMPLETE: &[u8] = b"3\0\0\0\x04";
/// Description and row of `SELECT pg_advisory_unlock_all()`: one column of type `void` (2278), four bytes long.
const UNLOCKED_ALL: &[u8] =
    b"T\0\0\0\x2f\0\x01pg_advisory_unlock_all\0\0\0\0\0\0\0\0\0\x08\xe6\0\x04\xff\xff\xff\xff\0\0\
    D\0\0\0\x0a\0\x01\0\0\0\0";
const DEALLOCATED: &[u8] = b"C\0\0\0\x0fDEALLOCATE\0";

/// What no grammar takes, for making a transaction fail. The server's log shows it.
const REJECTED: &[u8] = b"rejected by a policy plugin of Pinion\0";

/// SQLSTATE of "cached plan must not change result type", among others: the text must be prepared anew.
const STALE_PLAN: &str = "0A000";

/// That error. Drivers know it by its routine and prepare anew. Source: `src/backend/utils/cache/plancache.c`.
const STALE_PLAN_FIELDS: &[u8] = b"SERROR\0VERROR\0C0A000\0Mcached plan must not change result type\0\
    Fplancache.c\0RRevalidateCachedQuery\0\0";

/// SQLSTATE of a message that says what cannot be.
const PROTOCOL_VIOLATION: &str = "08P01";

/// What no grammar takes, for making a batch fail with it. The server's log shows it.
const STALE: &[u8] = b"outdated by a change of schema, says Pinion\0";
const MISCOUNTED: &[u8] = b"bound with too few or too many parameters, says Pinion\0";

/// Where the server's grammar raises what it cannot read (`scan.l`): before anything of the text has run, unlike the
/// many other places that use the same code.
const GRAMMAR: &str = "scanner_yyerror";

/// SQLSTATE of a syntax error.
const SYNTAX_ERROR: &str = "42601";

/// Name of the statement and portal by which we run statements of our own.
const FORGET_NAME: &[u8] = b"_pinion_forget";

/// A name that no statement on a server ever has.
const NOBODY: &[u8] = b"_pinion_?";

/// A name that a statement of ours has while a client learns that its own is taken.
const TAKEN: &[u8] = b"_pinion_taken";

/// SQLSTATE of "prepared statement already exists".
const NAME_TAKEN: &str = "42P05";

/// The id of a client's unnamed statement that was too long to be read; its text is only on the server.
const OPAQUE: u64 = 0;

/// Large-object functions, by oid: what drivers call by FunctionCall. They leave nothing behind that outlives the
/// transaction. Source: `src/include/catalog/pg_proc.dat`.
const LARGE_OBJECT_OIDS: [u32; 17] =
    [715, 764, 765, 767, 952, 953, 954, 955, 956, 957, 958, 964, 1004, 3170, 3171, 3172, 6453];

/// What is remembered of one client.
#[derive(Debug)]
pub struct PgTracker {
    named: Option<Box<Named>>,
    unnamed: Option<Prepared>,
    portals: Portals,
    /// Bytes still to come of a client message that is passed on (or skipped) as it comes.
    owed: usize,
    owed_kept: bool,
    /// The statement at the front has been reported, and what was found out about it.
    current: Option<Current>,
    /// A Flush of ours has gone out since the client was made to wait.
    flushed: bool,
    /// What ran in this batch may have changed how the server reads text.
    mode_uncertain: bool,
    /// A request failed here, not at the server: everything up to the Sync is skipped.
    skip_to_sync: bool,
    /// The transaction that no server has begun.
    deferred: Option<Box<Deferred>>,
    mode: LexMode,
    /// The client reads text as UTF-8.
    reads_utf8: bool,
    standing: PinReasons,
    watch: Watch,
    /// What is at the front, while policy is asked about the statements that it names.
    outer: Option<Box<Current>>,
    /// Of those statements, as many have been asked about.
    nested: u32,
    /// While somebody wants outcomes.
    tally: Option<Box<Tally>>,
    /// Settings may have changed since the session told of them.
    unsettled: bool,
    /// What few clients have.
    rare: Option<Box<Rare>>,
    /// Tells pools apart: what one server accepts another user or database may not have.
    pool: u64,
}

/// What few clients have.
#[derive(Debug, Default)]
struct Rare {
    /// Settings that move with the client.
    settings: Option<Arc<Settings>>,
    /// There may be statements that it has prepared by SQL: they are on the server under its own names.
    by_sql: bool,
    /// Of those, what it has closed by protocol since the session asked.
    closed: Vec<Box<str>>,
    /// Whether it has made temporary objects, be they gone.
    hides: Hides,
    /// Of statements of the protocol that could not be made again elsewhere, since the session asked.
    pins: PinReasons,
    /// Channels of which the session is told elsewhere.
    elsewhere: Option<Arc<BTreeSet<Box<str>>>>,
    /// The ReadyForQuery that was held back.
    ready: bool,
}

/// Whether a session has a temporary schema: with its first temporary object, once that is committed, and from then on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Hides {
    #[default]
    Nothing,
    /// In a transaction that is not over.
    ForNow,
    Something,
}

/// How the statements of a request went.
#[derive(Debug, Default)]
struct Tally {
    outcomes: Vec<Outcome>,
    /// Rows of the statement under way, as counted here.
    rows: u64,
    /// Rows of the Query under way, as the server counted.
    query_rows: u64,
}

/// What the client's statement names stand for.
type Named = HashMap<Box<[u8]>, Prepared>;

/// Which statement a portal runs.
#[derive(Debug, Default)]
struct Portals {
    unnamed: Option<Arc<Statement>>,
    named: Vec<(Box<[u8]>, Arc<Statement>)>,
}

/// What a name of the client stands for.
struct Resolved {
    statement: Option<Arc<Statement>>,
    /// The server's name for it where that is another.
    called: Option<Vec<u8>>,
}

#[derive(Debug)]
struct Current {
    statement: Submitted,
    admitted: bool,
    /// Of a Parse, kept so that it is classified once.
    parsed: Option<Arc<Statement>>,
    /// What `parsed` was before policy rewrote it; `None` unless policy is asked.
    original: Option<Arc<Statement>>,
    /// Of the policy that is asked.
    generation: u64,
    /// Of a statement that the SQL at the front names.
    nested: bool,
    /// Policy has been asked about the statements that it names.
    asked_nested: bool,
    /// Policy failed to say anything.
    failed: bool,
    text: Text,
}

impl Current {
    fn new(statement: Submitted, text: Text) -> Self {
        Self {
            statement,
            admitted: false,
            parsed: None,
            original: None,
            generation: 0,
            nested: false,
            asked_nested: false,
            failed: false,
            text,
        }
    }

    /// A statement to be prepared.
    fn prepares(statement: Arc<Statement>, generation: u64) -> Self {
        let submitted = Submitted { prepares: true, ..statement.submitted(PinReasons::NONE) };
        Self {
            statement: submitted,
            admitted: false,
            parsed: Some(statement.clone()),
            original: Some(statement.clone()),
            generation,
            nested: false,
            asked_nested: false,
            failed: false,
            text: Text::Of(statement),
        }
    }

    /// Takes what was settled about a statement that is prepared, if it was settled by policy `generation`.
    fn settled(&mut self, generation: u64) -> Option<Prepared> {
        if !self.admitted || !self.statement.prepares || self.generation != generation {
            return None;
        }
        let statement = self.parsed.take()?;
        let original = self.original.take().filter(|_| !self.failed);
        let asked = original.map(|original| Arc::new(Asked { generation, original }));
        Some(Prepared { statement, asked, told: None })
    }
}

/// Where the text of a reported statement stands.
#[derive(Debug)]
enum Text {
    /// In the Query at the front.
    Query,
    /// Policy has put this in its place.
    Rewritten(Vec<u8>),
    /// With the statement prepared.
    Of(Arc<Statement>),
    /// It was not read.
    Unread,
}

impl Tracker<Postgres> for PgTracker {
    fn new(key: &PoolKey, greeting: &Greeting, (): ()) -> Self {
        let mut standing = PinReasons::NONE;
        // With pg_temp first in search_path, a plain CREATE TABLE makes a temporary one, and no text shows it.
        if memchr::memmem::find(&key.parameters.to_ascii_lowercase(), b"pg_temp").is_some() {
            standing.insert(PinReason::TemporaryTable);
        }
        let mut pool = DefaultHasher::new();
        key.hash(&mut pool);
        Self {
            named: None,
            unnamed: None,
            portals: Portals::default(),
            owed: 0,
            owed_kept: true,
            current: None,
            flushed: false,
            mode_uncertain: false,
            skip_to_sync: false,
            deferred: None,
            mode: greeting_mode(&greeting.bytes),
            reads_utf8: greets_in_utf8(&greeting.bytes),
            standing,
            watch: Watch::default(),
            outer: None,
            nested: 0,
            tally: None,
            unsettled: false,
            rare: None,
            pool: pool.finish().max(1),
        }
    }

    fn on_client(
        &mut self,
        shared: &Shared,
        up: &mut Pipe,
        mut server: Option<&mut PgServer>,
        down: &mut Pipe,
    ) -> Result<ClientEvent, ProtocolError> {
        loop {
            if self.owed > 0 {
                let n = self.owed.min(up.unread().len());
                self.move_owed(up, n);
                if self.owed > 0 {
                    return Ok(ClientEvent::NeedBytes);
                }
            }
            let Some(header) = Header::read_from_client(up.unread())? else {
                return Ok(ClientEvent::NeedBytes);
            };
            if self.deferred.is_some()
                && let Some(server) = server.as_deref_mut()
            {
                self.begin_deferred(header.tag, server, up);
            }
            if let Some(server) = server.as_deref_mut()
                && self.must_wait(header.tag, server, up)
            {
                return Ok(ClientEvent::NeedAnswer);
            }
            let server_skips = server.as_ref().is_some_and(|s| s.skipping);
            if (self.skip_to_sync || server_skips) && !matches!(header.tag, b'S' | b'X') {
                self.take(up, header.total(), false);
                continue;
            }
            let server = server.as_deref_mut();
            let event = match header.tag {
                b'Q' => self.query(header, shared, up, server, down)?,
                b'P' => self.parse(header, shared, up, server, down)?,
                b'B' => self.bind(header, up, server, down)?,
                b'D' => self.describe(header, shared, up, server, down)?,
                b'E' => self.execute(header, up, server)?,
                b'C' => self.close(header, up, server, down)?,
                b'F' => self.function_call(header, up, server)?,
                b'S' => self.sync(header, up, server, down),
                b'H' => {
                    self.take(up, header.total(), server.is_some());
                    None
                }
                b'd' | b'c' | b'f' => self.copy(header, up, server),
                b'X' => Some(ClientEvent::Quit),
                tag => return Err(ProtocolError::Unexpected(char::from(tag))),
            };
            if let Some(event) = event {
                return Ok(event);
            }
        }
    }

    fn attach(&mut self, server: &PgServer) {
        self.reads_utf8 = server.speaks_utf8;
        if self.mode != server.mode {
            self.mode = server.mode;
            self.forget_current();
        }
    }

    fn admit(&mut self, settled: bool) {
        if let Some(current) = &mut self.current {
            current.admitted = true;
            current.failed = !settled;
        }
    }

    fn watch(&mut self, watch: Watch) {
        self.watch = watch;
        if watch.outcomes != self.tally.is_some() {
            self.tally = watch.outcomes.then(Box::default);
        }
    }

    fn text<'a>(&'a self, up: &'a Pipe) -> &'a [u8] {
        match self.current.as_ref().map(|current| &current.text) {
            Some(Text::Query) => match Header::read(up.unread()) {
                Ok(Some(header)) => {
                    up.unread().get(HEADER_BYTES..header.total()).and_then(cstr).map_or(&[], |(text, _)| text)
                }
                _ => &[],
            },
            Some(Text::Rewritten(text)) => text,
            Some(Text::Of(statement)) => statement.text(),
            Some(Text::Unread) | None => &[],
        }
    }

    fn hint<'a>(&self, text: &'a [u8]) -> &'a str {
        classify::hint(text, self.mode)
    }

    fn literal_variables(&self, text: &[u8]) -> Vec<String> {
        Classifier::literal_variables(text, self.mode)
    }

    fn rewrite(&mut self, shared: &Shared, text: String) -> Rewritten {
        let Some(current) = &self.current else { return Rewritten::Impossible };
        if text.contains('\0') {
            return Rewritten::Impossible;
        }
        match &current.text {
            Text::Query | Text::Rewritten(_) => {
                let statement = self.read_query(shared, text.as_bytes());
                self.current = Some(Current::new(statement.clone(), Text::Rewritten(text.into_bytes())));
                Rewritten::Known(statement)
            }
            Text::Of(before) if current.statement.prepares => {
                let types = cstr(&before.tail).map_or(&[][..], |(_, types)| types);
                let mut tail = text.into_bytes();
                tail.push(0);
                tail.extend_from_slice(types);
                // The name only has to say that there is one: what is shared is found again by its text.
                let statement = self.read_parse(shared, b"rewritten", &tail);
                let (original, nested) = (current.original.clone(), current.nested);
                let current =
                    Current { original, nested, ..Current::prepares(statement, current.generation) };
                let statement = current.statement.clone();
                self.current = Some(current);
                Rewritten::Known(statement)
            }
            Text::Of(_) => Rewritten::Settled,
            Text::Unread => Rewritten::Impossible,
        }
    }

    fn reject(
        &mut self,
        fault: &Fault,
        up: &mut Pipe,
        server: Option<&mut PgServer>,
        down: &mut Pipe,
    ) -> bool {
        let Some(server) = server else {
            self.refuse(fault, up, down);
            return !self.skip_to_sync;
        };
        self.forget_current();
        let Ok(Some(header)) = Header::read_from_client(up.unread()) else { return false };
        let whole_request = matches!(header.tag, b'Q' | b'F');
        let mut error = Vec::new();
        write_error(fault, &mut error);
        self.take(up, header.total(), false);
        if server.tx != Tx::Open && !server.batch_open {
            // Nothing that the server would have to undo.
            down.emit(&error);
            if whole_request {
                write_ready(down.output(), server.tx);
            } else {
                self.skip_to_sync = true;
            }
            return whole_request;
        }
        if whole_request {
            self.unnamed = None;
            self.portals.unnamed = None;
            server.unnamed = None;
            write_message(up.output(), b'Q', |body| body.extend_from_slice(REJECTED));
            server.expect(Expect::Query { rejection: Some(error) });
            server.batch_open = false;
        } else {
            self.fail_batch(error, REJECTED, server, up, down);
        }
        false
    }

    fn extent(&self, up: &Pipe) -> Upcoming {
        if self.deferred.is_some() {
            return Upcoming::Whole;
        }
        let mut rest = up.unread();
        loop {
            let Ok(Some(header)) = Header::read_from_client(rest) else { return Upcoming::Partial };
            match header.tag {
                b'Q' | b'F' | b'S' | b'X' => return Upcoming::Whole,
                b'H' => return Upcoming::OpenEnded,
                _ => {}
            }
            let Some(after) = rest.get(header.total()..) else { return Upcoming::Partial };
            rest = after;
        }
    }

    fn upcoming(&self, shared: &Shared, up: &Pipe, visit: &mut dyn FnMut(&Submitted, &[u8])) -> Upcoming {
        if let Some(deferred) = &self.deferred {
            // With it goes its whole transaction, as if it had gone there at once.
            visit(&deferred.statement, &deferred.text);
            return Upcoming::Whole;
        }
        let mut request = Request::default();
        let seen = self.look_ahead(shared, up, &mut request);
        for Mentioned { name, parsed, bound } in &request.statements {
            match parsed.clone().or_else(|| self.named_statement(name)) {
                Some(statement) => {
                    let text = statement.text();
                    let submitted = Submitted { prepares: !bound, ..statement.submitted(PinReasons::NONE) };
                    visit(&submitted, text);
                }
                None => visit(&opaque_statement(0), &[]),
            }
        }
        if let Some(whole) = request.whole {
            visit(&whole, self.text(up));
        }
        if let Some((last, text)) = request.last {
            visit(&last, &text);
        }
        seen
    }

    fn take_outcomes(&mut self) -> Vec<Outcome> {
        self.tally.as_mut().map(|tally| std::mem::take(&mut tally.outcomes)).unwrap_or_default()
    }

    fn take_learned(&mut self) -> Learned {
        let Some(rare) = &mut self.rare else { return Learned::default() };
        let (doubtful, pins) = (std::mem::take(&mut rare.closed), std::mem::take(&mut rare.pins));
        Learned { doubtful, pins, ..Learned::default() }
    }

    fn settled(&mut self, settings: Option<&Arc<Settings>>) {
        self.unsettled = false;
        if settings.is_some() || self.rare.is_some() {
            self.rare.get_or_insert_default().settings = settings.cloned();
        }
    }

    fn on_server(&mut self, down: &mut Pipe, server: &mut PgServer) -> Result<ServerEvent, ProtocolError> {
        loop {
            if server.owed > 0 {
                let n = server.owed.min(down.unread().len());
                server.owed -= n;
                if server.owed_kept {
                    down.pass(n);
                } else {
                    down.skip(n);
                }
                if server.owed > 0 {
                    return Ok(ServerEvent::NeedBytes);
                }
                settle_heads(down, server);
            }
            let Some(header) = Header::read(down.unread())? else { return Ok(ServerEvent::NeedBytes) };
            if header.tag == b'A' && header.body <= MAX_HELD_BYTES && self.elsewhere().is_some() {
                if down.unread().len() < header.total() {
                    down.expect(header.total());
                    return Ok(ServerEvent::NeedBytes);
                }
                let kept = !self.is_told_elsewhere(message_body(down)?);
                relay(down, server, header.total(), kept);
                continue;
            }
            // What is only passed on needs no more than its header.
            let described = matches!(header.tag, b't' | b'T' | b'n') && server.is_describing();
            if let b'D' | b'd' | b'T' | b't' | b'V' | b'A' | b'N' | b'n' | b'c' = header.tag
                && !described
            {
                let kept = self.on_answer(header.tag, down, server)?;
                if let Some(tally) = &mut self.tally {
                    tally.rows += u64::from(kept && header.tag == b'D');
                }
                relay(down, server, header.total(), kept);
                if header.tag != b'D' {
                    settle_heads(down, server);
                }
                continue;
            }
            if header.body > MAX_HELD_BYTES {
                return Err(ProtocolError::BadLength { tag: char::from(header.tag), len: i32::MAX });
            }
            if down.unread().len() < header.total() {
                down.expect(header.total());
                return Ok(ServerEvent::NeedBytes);
            }
            if header.tag == b'Z' {
                server.tx = read_status(&down.unread()[HEADER_BYTES..header.total()])?;
                server.settle_schema();
                if self.deferred.is_some() {
                    // Of a transaction that has failed before it began.
                    down.patch(HEADER_BYTES, b'E');
                }
                let kept = match server.pop() {
                    Some(Expect::Sync { ours }) => !ours,
                    Some(Expect::Query { .. } | Expect::FunctionCall) => {
                        if !server.failed {
                            let rows = self.tally.as_ref().map_or(0, |tally| tally.query_rows);
                            self.note_outcome(rows, None);
                        }
                        true
                    }
                    None if server.extra_ready => {
                        server.skipping = false;
                        true
                    }
                    _ => return Err(ProtocolError::Unexpected('Z')),
                };
                if let Some(rare) = self.rare.as_mut().filter(|rare| rare.hides == Hides::ForNow)
                    && kept
                    && server.tx == Tx::Idle
                    && server.expects_nothing()
                {
                    rare.hides = Hides::Something;
                }
                let held_back =
                    kept && server.tx == Tx::Idle && self.deferred.is_none() && self.elsewhere().is_some();
                relay(down, server, header.total(), kept && !held_back);
                if held_back {
                    self.rare.get_or_insert_default().ready = true;
                }
                settle_heads(down, server);
                // Portals end with their transaction, but those of a later batch may be bound already.
                if server.tx == Tx::Idle && server.is_quiet() {
                    self.portals.clear();
                }
                if kept {
                    self.mode_uncertain = false;
                    server.ignored_sync = false;
                    server.ran = false;
                    return Ok(ServerEvent::Answered {
                        failed: std::mem::take(&mut server.failed),
                        nothing_ran: std::mem::take(&mut server.nothing_ran),
                    });
                }
                continue;
            }
            let kept = self.on_answer(header.tag, down, server)?;
            relay(down, server, header.total(), kept);
            if let Some(substitute) = server.substitute.take() {
                down.emit(&substitute);
            }
            settle_heads(down, server);
            if header.tag == b'E' && server.cut_short {
                write_ready(down.output(), Tx::Failed);
                return Ok(ServerEvent::Answered {
                    failed: std::mem::take(&mut server.failed),
                    nothing_ran: true,
                });
            }
        }
    }

    fn hear_elsewhere(&mut self, channels: Option<Arc<BTreeSet<Box<str>>>>) {
        if channels.is_some() || self.rare.is_some() {
            self.rare.get_or_insert_default().elsewhere = channels;
        }
    }

    fn end_answer(&mut self, down: &mut Pipe) {
        if let Some(rare) = &mut self.rare
            && std::mem::take(&mut rare.ready)
        {
            write_ready(down.output(), Tx::Idle);
        }
    }

    fn reads_utf8(&self) -> bool {
        self.reads_utf8
    }

    fn write_question(&mut self, server: &mut PgServer, up: &mut Pipe) {
        let lent = std::mem::take(&mut server.lent);
        for name in &lent {
            write_close(up.output(), b'S', name);
            server.expect(Expect::Close { ours: true, evicts: None });
        }
        if !lent.is_empty() {
            write_own_sync(up, server);
        }
    }

    fn deferred(&self) -> Tx {
        self.deferred_tx()
    }

    fn reads_leftovers(&self, _up: &Pipe) -> bool {
        // No variable has a value that a client has not given it by name.
        false
    }

    fn is_mid_message(&self) -> bool {
        self.owed > 0 && self.owed_kept
    }

    fn standing_pins(&self) -> PinReasons {
        self.standing
    }

    fn refuse(&mut self, fault: &Fault, up: &mut Pipe, down: &mut Pipe) {
        self.forget_current();
        self.fail_deferred();
        write_error(fault, down.output());
        match Header::read(up.unread()) {
            Ok(Some(header)) if matches!(header.tag, b'Q' | b'F') => {
                self.take(up, header.total(), false);
                write_ready(down.output(), self.deferred_tx());
            }
            _ => self.skip_to_sync = true,
        }
    }

    fn write_fault(&self, fault: &Fault, server: Option<&PgServer>, out: &mut Vec<u8>) {
        let is_loss = matches!(fault.kind, FaultKind::ServerLost | FaultKind::TransactionLost);
        match server.and_then(|server| server.goodbye.as_deref()).filter(|_| is_loss) {
            Some(goodbye) => out.extend_from_slice(goodbye),
            None => write_error(fault, out),
        }
    }

    fn write_forget_session_functions(&mut self, server: &mut PgServer, up: &mut Pipe) {
        write_hidden(up, server, b"DISCARD SEQUENCES", true);
        // In a batch of its own, so that the client's is what it was: alone in its implicit transaction, and not
        // skipped should this fail.
        if !server.batch_open {
            write_own_sync(up, server);
        }
    }
}

impl PgTracker {
    /// True when the server must answer before the message at the front may go.
    ///
    /// One request after the other: a pipelining client saves its own round trips, and never ours at the price of
    /// guessing how a request will end. Only what belongs to the request under way goes on: the data of a COPY.
    fn must_wait(&mut self, tag: u8, server: &PgServer, up: &mut Pipe) -> bool {
        let of_copy = matches!(tag, b'd' | b'c' | b'f');
        if server.is_request_under_way() {
            return !of_copy && tag != b'X' && !(server.copy_in && matches!(tag, b'S' | b'H'));
        }
        let wait = !matches!(tag, b'S' | b'H' | b'X')
            && !of_copy
            && (server.is_far_behind() || server.is_dropping());
        if wait && !std::mem::replace(&mut self.flushed, true) {
            // Without it the server keeps the answers that we wait for until its buffer is full.
            write_message(up.output(), b'H', |_| {});
        }
        self.flushed &= wait;
        wait
    }

    /// Starts to move one message of `total` bytes: what is there now, the rest as it comes.
    fn take(&mut self, up: &mut Pipe, total: usize, kept: bool) {
        self.owed = total;
        self.owed_kept = kept;
        let n = total.min(up.unread().len());
        self.move_owed(up, n);
    }

    fn move_owed(&mut self, up: &mut Pipe, n: usize) {
        self.owed -= n;
        if self.owed_kept {
            up.pass(n);
        } else {
            up.skip(n);
        }
    }

    /// A statement is about to run: the session decides, and then the same message is looked at again.
    fn report(&mut self, statement: Submitted, text: Text) -> ClientEvent {
        self.current = Some(Current::new(statement.clone(), text));
        ClientEvent::Statement(statement)
    }

    /// A statement is about to be prepared, or used for the first time under this policy.
    fn report_prepare(&mut self, statement: Arc<Statement>, nested: bool) -> ClientEvent {
        let current = Current { nested, ..Current::prepares(statement, self.watch.generation) };
        let submitted = current.statement.clone();
        self.current = Some(current);
        ClientEvent::Statement(submitted)
    }

    /// What policy should be asked about before `name` is used, as it was when the client prepared it.
    fn unasked(&self, name: &[u8]) -> Option<Arc<Statement>> {
        if !self.watch.prepares {
            return None;
        }
        let prepared = self.prepared(name)?;
        match &prepared.asked {
            Some(asked) if asked.generation == self.watch.generation => None,
            Some(asked) => Some(asked.original.clone()),
            None => Some(prepared.statement.clone()),
        }
    }

    /// Sees to it that policy has been asked about the statement `name`; what it says then stands for the name.
    fn ask_about(&mut self, name: &[u8], nested: bool) -> Option<ClientEvent> {
        let before = self.unasked(name)?;
        let generation = self.watch.generation;
        let current = self.current.take();
        match current.filter(|current| current.nested == nested).and_then(|mut c| c.settled(generation)) {
            Some(settled) => {
                // Where policy failed to say anything, it is asked again for the next use, but not for this one.
                if settled.asked.is_some() {
                    let told = self.prepared(name).and_then(|prepared| prepared.told.clone());
                    self.put_prepared(name, Prepared { told, ..settled });
                }
                None
            }
            None => Some(self.report_prepare(before, nested)),
        }
    }

    /// The facts of what is at the front once it may run, with all that it runs: SQL `EXECUTE` runs statements that were
    /// prepared by protocol, and policy is asked about them as about any that runs. The inner event is for the session.
    fn admitted_whole(&mut self) -> Result<Arc<Facts>, ClientEvent> {
        if self.outer.is_none() {
            let Some(facts) = self.admitted_facts() else { return Err(ClientEvent::NeedBytes) };
            let asked = self.current.as_ref().is_some_and(|current| current.asked_nested);
            if asked || !self.watch.runs || facts.is_deallocate_one || facts.prepared_names.is_empty() {
                return Ok(facts);
            }
            self.outer = self.current.take().map(Box::new);
            self.nested = 0;
        }
        let Some(facts) = self.outer.as_ref().map(|outer| outer.statement.facts.clone()) else {
            return Err(ClientEvent::NeedBytes);
        };
        while let Some(name) = facts.prepared_names.get(self.nested as usize).map(|name| name.as_bytes()) {
            let runs = |current: &Current| current.nested && current.admitted && !current.statement.prepares;
            if self.current.as_ref().is_some_and(runs) {
                self.current = None;
                self.nested += 1;
                continue;
            }
            if let Some(event) = self.ask_about(name, true) {
                return Err(event);
            }
            let Some(statement) = self.named_statement(name) else {
                self.nested += 1;
                continue;
            };
            let submitted = Submitted { within: true, ..statement.submitted(PinReasons::NONE) };
            let current = Current { nested: true, ..Current::new(submitted.clone(), Text::Of(statement)) };
            self.current = Some(current);
            return Err(ClientEvent::Statement(submitted));
        }
        self.current = self.outer.take().map(|outer| Current { asked_nested: true, ..*outer });
        Ok(facts)
    }

    /// Nothing is known of the message at the front any more.
    fn forget_current(&mut self) {
        self.current = None;
        self.outer = None;
    }

    fn prepared(&self, name: &[u8]) -> Option<&Prepared> {
        if name.is_empty() {
            return self.unnamed.as_ref();
        }
        self.named.as_ref().and_then(|named| named.get(name))
    }

    fn put_prepared(&mut self, name: &[u8], prepared: Prepared) {
        if name.is_empty() {
            self.unnamed = Some(prepared);
        } else {
            self.named.get_or_insert_default().insert(name.into(), prepared);
        }
    }

    fn named_statement(&self, name: &[u8]) -> Option<Arc<Statement>> {
        self.prepared(name).map(|prepared| prepared.statement.clone())
    }

    /// The text of a Query, or what policy put in its place.
    fn read_query(&self, shared: &Shared, text: &[u8]) -> Submitted {
        if self.mode_uncertain {
            // How the server will cut it is not known before what runs in this batch has been answered.
            return opaque_statement(text.len());
        }
        let Classified { digest, facts } = shared.classifier.facts(text, self.mode);
        Submitted {
            extra_pins: self.native_pins(&facts),
            facts,
            digest,
            bytes: text.len(),
            prepares: false,
            within: false,
        }
    }

    /// Reads the request at the front as far as it has come, without taking anything.
    fn look_ahead(&self, shared: &Shared, up: &Pipe, request: &mut Request) -> Upcoming {
        let mut rest = up.unread();
        let mut at_front = true;
        loop {
            let Ok(Some(header)) = Header::read_from_client(rest) else { return Upcoming::Partial };
            let body = rest.get(HEADER_BYTES..header.total());
            let current = self.current.as_ref().filter(|_| at_front);
            match (header.tag, body) {
                (b'Q' | b'F', _) if at_front => {
                    let known = current.map(|current| current.statement.clone());
                    request.whole = Some(known.unwrap_or_else(|| opaque_statement(header.body)));
                    return Upcoming::Whole;
                }
                (b'S' | b'X', _) => return Upcoming::Whole,
                (b'H', _) => return Upcoming::OpenEnded,
                (tag @ (b'F' | b'Q'), _) if tag == b'F' || header.body > MAX_TEXT_BYTES => {
                    request.last = Some((opaque_statement(header.body), Vec::new()));
                    return Upcoming::Whole;
                }
                (_, None) => return Upcoming::Partial,
                (b'Q', Some(body)) => {
                    // Without a Sync before it, it runs where they do.
                    let text = cstr(body).map_or(&[][..], |(text, _)| text);
                    request.last = Some((self.read_query(shared, text), text.to_vec()));
                    return Upcoming::Whole;
                }
                (b'P', Some(body)) => {
                    let Some((name, tail)) = cstr(body) else { return Upcoming::OpenEnded };
                    let parsed = match current.and_then(|current| current.parsed.clone()) {
                        Some(parsed) => parsed,
                        None => self.read_parse(shared, name, tail),
                    };
                    request.statements.push(Mentioned {
                        name: name.into(),
                        parsed: Some(parsed),
                        bound: false,
                    });
                }
                (b'B', Some(body)) => {
                    let name = cstr(body).and_then(|(_, rest)| Some(cstr(rest)?.0));
                    let Some(name) = name else { return Upcoming::OpenEnded };
                    request.bind(name);
                }
                _ => {}
            }
            at_front = false;
            rest = &rest[header.total()..];
        }
    }

    /// The statement of a Parse whose name and rest are given.
    fn read_parse(&self, shared: &Shared, name: &[u8], tail: &[u8]) -> Arc<Statement> {
        let text = cstr(tail).map_or(&[][..], |(text, _)| text);
        if self.mode_uncertain || text.len() > MAX_TEXT_BYTES {
            let opaque = opaque_statement(text.len());
            let scope = self.scope(shared, text);
            return Arc::new(Statement::new(tail, self.mode, scope, opaque.facts, opaque.digest));
        }
        let classify = || {
            let Classified { digest, facts } = shared.classifier.facts(text, self.mode);
            (facts, digest)
        };
        let scope = self.scope(shared, text);
        if name.is_empty() || self.unsettled {
            let (facts, digest) = classify();
            Arc::new(Statement::new(tail, self.mode, scope, facts, digest))
        } else {
            shared.statements.intern(tail, self.mode, scope, classify)
        }
    }

    /// Under what a text is prepared now.
    fn scope(&self, shared: &Shared, text: &[u8]) -> Scope {
        let settings = self.rare.as_ref().and_then(|rare| rare.settings.as_ref());
        Scope::of(self.pool, settings, has_literals(text), shared.schema.load(Ordering::Relaxed))
    }

    /// What a statement that runs may leave for those that are prepared after it.
    fn note_run(&mut self, facts: &Facts, server: &mut PgServer) {
        server.changes_schema |= facts.changes_schema;
        server.code_ran |= facts.taints;
        server.hides |= facts.pins.contains(PinReason::TemporaryTable);
        server.hides_for_now |= facts.rds_pins.contains(PinReason::TemporaryTable);
        if facts.pins.contains(PinReason::PreparedStatement) {
            self.rare.get_or_insert_default().by_sql = true;
        }
        self.unsettled |= facts.moves != Moves::Nothing || facts.changes_settings || facts.taints;
    }

    /// True when it makes what may be the session's first temporary object, while statements are prepared.
    fn hides_first(&self, facts: &Facts) -> bool {
        let hides = makes_temporary(facts);
        let prepared = self.has_by_sql() || self.named.as_ref().is_some_and(|named| !named.is_empty());
        hides && prepared && self.rare.as_ref().is_none_or(|rare| rare.hides == Hides::Nothing)
    }

    /// With its first temporary object a session looks names up anew, those of prepared statements too. A connection on
    /// which another client has made some would not, so it forgets how it has read them.
    fn forget_plans(&mut self, facts: &Facts, server: &mut PgServer, up: &mut Pipe) {
        if server.tx == Tx::Failed {
            return;
        }
        if self.hides_first(facts) {
            write_hidden(up, server, b"DISCARD PLANS", false);
            if !server.batch_open {
                write_own_sync(up, server);
            }
        }
        if makes_temporary(facts) {
            let rare = self.rare.get_or_insert_default();
            rare.hides = if rare.hides == Hides::Something { Hides::Something } else { Hides::ForNow };
        }
    }

    /// What made a temporary object may have been undone.
    fn note_undone(&mut self) {
        if let Some(rare) = self.rare.as_mut().filter(|rare| rare.hides == Hides::ForNow) {
            rare.hides = Hides::Nothing;
        }
    }

    fn rows(&self) -> u64 {
        self.tally.as_ref().map_or(0, |tally| tally.rows)
    }

    fn note_outcome(&mut self, rows: u64, error: Option<&str>) {
        let Some(tally) = &mut self.tally else { return };
        (tally.rows, tally.query_rows) = (0, 0);
        if tally.outcomes.len() < MAX_OUTCOMES {
            tally.outcomes.push(Outcome { rows, error: error.map(Into::into) });
        }
    }

    /// Passes the Query at the front on, or what policy put in its place.
    fn pass_query(&mut self, header: Header, up: &mut Pipe) {
        match self.current.take().map(|current| current.text) {
            Some(Text::Rewritten(text)) => {
                self.take(up, header.total(), false);
                write_message(up.output(), b'Q', |body| put_cstr(body, &text));
            }
            _ => self.take(up, header.total(), true),
        }
    }

    fn query(
        &mut self,
        header: Header,
        shared: &Shared,
        up: &mut Pipe,
        server: Option<&mut PgServer>,
        down: &mut Pipe,
    ) -> Result<Option<ClientEvent>, ProtocolError> {
        if self.current.is_none() && self.outer.is_none() {
            if header.body > MAX_TEXT_BYTES {
                return Ok(Some(self.report(opaque_statement(header.body), Text::Unread)));
            }
            let Some(body) = whole(header, up) else { return Ok(Some(ClientEvent::NeedBytes)) };
            let (text, _) = exact_cstr(body, "Query")?;
            let statement = self.read_query(shared, text);
            return Ok(Some(self.report(statement, Text::Query)));
        }
        let facts = match self.admitted_whole() {
            Ok(facts) => facts,
            Err(event) => return Ok(Some(event)),
        };
        if server.is_none()
            && let Some(event) = self.control_here(&facts, header, up, down)
        {
            return Ok(Some(event));
        }
        let mut server = server;
        let sends_first = !facts.prepared_names.is_empty() || self.knows_any(&facts.given_names);
        if (sends_first || self.hides_first(&facts))
            && let Some(server) = server.as_deref_mut()
            && self.awaits_begin(server, up)
        {
            return Ok(Some(ClientEvent::NeedAnswer));
        }
        if facts.is_deallocate_one && self.knows_all(&facts.prepared_names) {
            return Ok(self.deallocate(&facts, header, up, server, down));
        }
        if server.is_none()
            && !facts.resets.is_empty()
            && !self.watch.asks_for_nothing
            && self.deferred.is_none()
            && self.wears_nothing()
        {
            self.answer_resets(&facts, header, up, down);
            return Ok(None);
        }
        let Some(server) = server else { return Ok(Some(ClientEvent::NeedServer)) };
        self.forget_plans(&facts, server, up);
        self.make_named(&facts, server, up);
        self.note_run(&facts, server);
        // A simple Query drops the unnamed statement and portal.
        self.unnamed = None;
        self.portals.unnamed = None;
        server.unnamed = None;
        self.pass_query(header, up);
        server.expect(Expect::Query { rejection: None });
        server.batch_open = false;
        Ok(None)
    }

    fn parse(
        &mut self,
        header: Header,
        shared: &Shared,
        up: &mut Pipe,
        server: Option<&mut PgServer>,
        down: &mut Pipe,
    ) -> Result<Option<ClientEvent>, ProtocolError> {
        if header.body > MAX_TEXT_BYTES {
            return self.opaque_parse(header, up, server);
        }
        let Some(body) = whole(header, up) else { return Ok(Some(ClientEvent::NeedBytes)) };
        let (name, tail) = cstr(body).ok_or(ProtocolError::Malformed("Parse"))?;
        let generation = self.watch.generation;
        let mut current = self.current.take();
        // Settled under a policy that has been replaced meanwhile does not count.
        let stale = current.as_ref().is_some_and(|c| self.watch.prepares && c.generation != generation);
        let settled = current.as_mut().filter(|_| !stale).and_then(|current| current.settled(generation));
        let prepared = match settled {
            Some(prepared) => prepared,
            None => {
                let first = current.and_then(|current| current.original.or(current.parsed));
                let statement = match first {
                    Some(statement) => statement,
                    None => {
                        cstr(tail).ok_or(ProtocolError::Malformed("Parse"))?;
                        self.read_parse(shared, name, tail)
                    }
                };
                if self.watch.prepares {
                    return Ok(Some(self.report_prepare(statement, false)));
                }
                Prepared { statement, asked: None, told: None }
            }
        };
        let statement = prepared.statement.clone();
        let Some(server) = server else {
            let name: Box<[u8]> = name.into();
            if self.refuse_in_failed(Some(&statement.facts), header, up, down) {
                return Ok(None);
            }
            let is_free = !name.is_empty() && !self.knows(&name) && !self.may_be_sqls(&name);
            if is_free && statement.is_accepted() {
                up.skip(header.total());
                self.put_prepared(&name, prepared);
                down.emit(PARSE_COMPLETE);
                return Ok(None);
            }
            let original = prepared.asked.as_ref().map(|asked| asked.original.clone());
            let failed = original.is_none();
            let current = Current::prepares(statement, generation);
            let original = original.or(current.original.clone());
            self.current = Some(Current { admitted: true, original, failed, ..current });
            return Ok(Some(ClientEvent::NeedServer));
        };
        let rewritten = cstr(&statement.tail).map(|(text, _)| text) != cstr(tail).map(|(text, _)| text);
        let name: Box<[u8]> = name.into();
        server.batch_open = true;
        if name.is_empty() {
            let undo =
                Undo::Unnamed { before: self.unnamed.replace(prepared), server_before: server.unnamed };
            server.unnamed = Some(statement.id);
            if rewritten {
                self.take(up, header.total(), false);
                write_parse(up.output(), b"", &statement.tail);
            } else {
                self.take(up, header.total(), true);
            }
            server.expect(Expect::Parse { ours: false, adds: None, undo: Some(undo) });
            return Ok(None);
        }
        if self.named.as_ref().is_some_and(|named| named.contains_key(&name)) {
            // The name is taken, and the server must say so, since that fails the transaction: it gets something to
            // trip over, under a name of ours. The error then names the client's.
            up.skip(header.total());
            let out = up.output();
            write_close(out, b'S', TAKEN);
            write_parse(out, TAKEN, b"SELECT 1\0\0\0");
            write_parse(out, TAKEN, b"SELECT 1\0\0\0");
            server.expect(Expect::Close { ours: true, evicts: None });
            server.expect(Expect::Parse { ours: true, adds: None, undo: None });
            server.expect(Expect::Taken(name));
            return Ok(None);
        }
        if (self.has_by_sql() || server.native_names) && !name.starts_with(NAME_PREFIX) {
            // Where SQL has given the name, only the server knows. One like ours the server may have from us.
            write_parse(up.output(), &name, &statement.tail);
            write_close(up.output(), b'S', &name);
            server.expect(Expect::Parse { ours: true, adds: None, undo: None });
            server.expect(Expect::Close { ours: true, evicts: None });
        }
        let (mut prepared, mut statement) = (prepared, statement);
        if server.has_own_schema() {
            statement = Arc::new(statement.apart());
            prepared.statement = statement.clone();
        }
        let named = self.named.get_or_insert_default();
        named.insert(name.clone(), prepared);
        let undo = Some(Undo::Named { name: name.clone(), before: None });
        // In a failed transaction the server refuses every Parse but of what ends it; let it say so.
        let refused = server.tx == Tx::Failed && !statement.facts.ends_transaction;
        let known = server.prepared.get(&statement.id).is_some() || server.pending.contains(&statement.id);
        up.skip(header.total());
        if known && !refused {
            answer_locally(server, down, PARSE_COMPLETE, undo);
        } else if known {
            // Prepared already, and refused here: a name that is free shows the refusal.
            write_parse(up.output(), FORGET_NAME, &statement.tail);
            server.stray_names = true;
            server.expect(Expect::Parse { ours: false, adds: None, undo });
        } else {
            self.send_parse(server, up, &statement, false, undo);
            if self.unsettled && has_literals(statement.text()) {
                // Under which settings, nobody could say elsewhere.
                let rare = self.rare.get_or_insert_default();
                match std::str::from_utf8(&name) {
                    Ok(native) if !name.starts_with(NAME_PREFIX) => {
                        rare.pins.insert(PinReason::PreparedStatement);
                        self.make_native(&[native.to_owned()], server, up);
                    }
                    // No question about it would find it.
                    _ => rare.pins.insert(PinReason::Unknown),
                }
            }
        }
        Ok(None)
    }

    /// A Parse too long to be read whole: it keeps the client's own name, and the client its connection.
    fn opaque_parse(
        &mut self,
        header: Header,
        up: &mut Pipe,
        server: Option<&mut PgServer>,
    ) -> Result<Option<ClientEvent>, ProtocolError> {
        let Some(name) = front_cstr(header, up, HEADER_BYTES, "Parse")? else {
            return Ok(Some(ClientEvent::NeedBytes));
        };
        if self.current.is_none() {
            let statement = opaque_statement(header.body);
            return Ok(Some(self.report(statement, Text::Unread)));
        }
        if self.admitted_facts().is_none() {
            return Ok(Some(ClientEvent::NeedBytes));
        }
        let Some(server) = server else { return Ok(Some(ClientEvent::NeedServer)) };
        if name.starts_with(NAME_PREFIX) {
            return Err(ProtocolError::Malformed("Parse"));
        }
        self.current = None;
        if name.is_empty() {
            self.unnamed = None;
            server.unnamed = Some(OPAQUE);
        } else if let Some(named) = &mut self.named {
            named.remove(&name);
        }
        server.native_names = true;
        server.batch_open = true;
        self.take(up, header.total(), true);
        server.expect(Expect::Parse { ours: false, adds: None, undo: None });
        Ok(None)
    }

    fn bind(
        &mut self,
        header: Header,
        up: &mut Pipe,
        server: Option<&mut PgServer>,
        down: &mut Pipe,
    ) -> Result<Option<ClientEvent>, ProtocolError> {
        let Some(portal) = front_cstr(header, up, HEADER_BYTES, "Bind")? else {
            return Ok(Some(ClientEvent::NeedBytes));
        };
        let at = HEADER_BYTES + portal.len() + 1;
        let Some(name) = front_cstr(header, up, at, "Bind")? else { return Ok(Some(ClientEvent::NeedBytes)) };
        if let Some(event) = self.ask_about(&name, false) {
            return Ok(Some(event));
        }
        let Some(server) = server else {
            let facts = self.facts_of(&name);
            if self.refuse_in_failed(facts.as_deref(), header, up, down) {
                return Ok(None);
            }
            return Ok(Some(ClientEvent::NeedServer));
        };
        if let Some(wanted) = self.counts_here(&name, server) {
            let at = at + name.len() + 1;
            let Some(given) = bound_parameters(header, up, at)? else {
                return Ok(Some(ClientEvent::NeedBytes));
            };
            if given != wanted {
                if !server.batch_open && !server.expects_nothing() {
                    return Ok(Some(ClientEvent::NeedAnswer));
                }
                let name = String::from_utf8_lossy(&name);
                let mut error = Vec::new();
                let message = format!(
                    "bind message supplies {given} parameters, but prepared statement \"{name}\" requires {wanted}"
                );
                let mut fault = Fault::error(FaultKind::ProtocolViolation, message);
                fault.native_code = Some(PROTOCOL_VIOLATION.to_owned());
                write_error(&fault, &mut error);
                self.take(up, header.total(), false);
                self.fail_batch(error, MISCOUNTED, server, up, down);
                self.skip_to_sync = true;
                return Ok(None);
            }
        }
        self.current = None;
        let Resolved { statement, called } = self.resolve(&name, server, up);
        if let Some(statement) = &statement {
            match self.is_as_told(&name, statement, server, up) {
                Some(true) => {}
                Some(false) => {
                    statement.retire();
                    self.fail_stale(header, server, up, down);
                    return Ok(None);
                }
                None => return Ok(Some(ClientEvent::NeedAnswer)),
            }
        }
        server.batch_open = true;
        self.portals.put(&portal, statement.clone());
        let front = at + name.len() + 1;
        let of = statement.filter(|_| !name.is_empty()).map(|statement| (statement, name));
        server.expect(Expect::Bind { ours: false, of });
        let Some(called) = called else {
            self.take(up, header.total(), true);
            return Ok(None);
        };
        let rest = header.total() - front;
        up.skip(front);
        let out = up.output();
        out.push(b'B');
        let length_at = out.len();
        out.extend_from_slice(&[0; 4]);
        put_cstr(out, &portal);
        put_cstr(out, &called);
        let len =
            u32::try_from(out.len() - length_at + rest).map_err(|_| ProtocolError::Malformed("Bind"))?;
        out[length_at..length_at + 4].copy_from_slice(&len.to_be_bytes());
        self.take(up, rest, true);
        Ok(None)
    }

    /// How many parameters the statement `name` has, where that server cannot say: it would have to prepare it first,
    /// which may fail for other reasons, but counts first.
    fn counts_here(&mut self, name: &[u8], server: &PgServer) -> Option<u16> {
        let wanted = self.named.as_ref()?.get(name)?.told.as_ref()?.description()?.parameters();
        let id = self.named_here(name)?.id;
        let there = server.prepared.contains(&id) || server.tx != Tx::Failed && server.pending.contains(&id);
        (!there).then_some(wanted)
    }

    fn describe(
        &mut self,
        header: Header,
        shared: &Shared,
        up: &mut Pipe,
        server: Option<&mut PgServer>,
        down: &mut Pipe,
    ) -> Result<Option<ClientEvent>, ProtocolError> {
        let Some(body) = whole(header, up) else { return Ok(Some(ClientEvent::NeedBytes)) };
        let (&kind, rest) = body.split_first().ok_or(ProtocolError::Malformed("Describe"))?;
        let (name, _) = exact_cstr(rest, "Describe")?;
        let name: Box<[u8]> = name.into();
        let Some(server) = server else {
            if kind == b'S' && self.describe_here(&name, shared, down) {
                up.skip(header.total());
                return Ok(None);
            }
            return Ok(Some(ClientEvent::NeedServer));
        };
        let Resolved { statement, called } = match kind {
            b'S' => self.resolve(&name, server, up),
            _ => Resolved { statement: None, called: None },
        };
        match called {
            Some(called) => {
                up.skip(header.total());
                write_message(up.output(), b'D', |body| {
                    body.push(b'S');
                    put_cstr(body, &called);
                });
            }
            None => self.take(up, header.total(), true),
        }
        server.batch_open = true;
        let prepared = self.named.as_mut().and_then(|named| named.get_mut(&name));
        let of = statement.zip(prepared).map(|(statement, prepared)| {
            let told = Arc::new(Told::after(prepared.told.as_deref()));
            prepared.told = Some(told.clone());
            (statement, told)
        });
        server.expect(Expect::Describe { of });
        Ok(None)
    }

    /// Tells the client of its statement `name` what a server of its pool has said of it. False when one has to be asked:
    /// it alone knows, or would refuse.
    fn describe_here(&mut self, name: &[u8], shared: &Shared, down: &mut Pipe) -> bool {
        if self.unsettled || !self.standing.is_empty() || self.deferred_tx() == Tx::Failed {
            return false;
        }
        let Some(statement) = self.named_here(name) else { return false };
        if statement.mode != self.mode || statement.scope.schema != shared.schema.load(Ordering::Relaxed) {
            return false;
        }
        let Some(told) = statement.described() else { return false };
        let Some(said) = told.description().and_then(|description| description.said()) else { return false };
        down.emit(said);
        if let Some(prepared) = self.named.as_mut().and_then(|named| named.get_mut(name)) {
            prepared.told = Some(told);
        }
        true
    }

    /// True when the server will run the statement `name` as the client was told of it, so that rows are read by the
    /// description that they have. Where the server has not said yet how it reads it, it is asked; `None` until it has
    /// answered. What was prepared stays as it is: from then on the server itself refuses where the schema has changed.
    fn is_as_told(
        &self,
        name: &[u8],
        statement: &Arc<Statement>,
        server: &mut PgServer,
        up: &mut Pipe,
    ) -> Option<bool> {
        let told = self.named.as_ref().and_then(|named| named.get(name)).and_then(|p| p.told.as_ref());
        let Some(told) = told.and_then(|told| told.description()) else { return Some(true) };
        // A failed transaction refuses what would return anything.
        if server.tx == Tx::Failed {
            return Some(true);
        }
        if let Some(here) = server.description_of(statement.id) {
            return Some(here.reads_like(told));
        }
        if !server.is_checking(statement.id) {
            let mut called = Vec::new();
            statement.write_name(server.epoch, &mut called);
            write_message(up.output(), b'D', |body| {
                body.push(b'S');
                put_cstr(body, &called);
            });
            write_message(up.output(), b'H', |_| {});
            server.batch_open = true;
            server.expect(Expect::Check(statement.clone()));
        }
        None
    }

    /// Fails the message at the front, and its batch, as the server does where a statement returns other columns than it
    /// did when it was prepared.
    fn fail_stale(&mut self, header: Header, server: &mut PgServer, up: &mut Pipe, down: &mut Pipe) {
        let mut error = Vec::new();
        write_message(&mut error, b'E', |body| body.extend_from_slice(STALE_PLAN_FIELDS));
        self.take(up, header.total(), false);
        self.fail_batch(error, STALE, server, up, down);
        self.skip_to_sync = true;
    }

    /// Fails the batch under way with `error`, at the server too where there is something that it has to undo: `text` is
    /// what it is given to fail with.
    fn fail_batch(
        &mut self,
        error: Vec<u8>,
        text: &[u8],
        server: &mut PgServer,
        up: &mut Pipe,
        down: &mut Pipe,
    ) {
        if server.tx != Tx::Open && !server.batch_open {
            down.emit(&error);
            self.skip_to_sync = true;
            return;
        }
        write_message(up.output(), b'P', |body| {
            put_cstr(body, FORGET_NAME);
            body.extend_from_slice(text);
            body.extend_from_slice(&[0; 2]);
        });
        server.expect(Expect::Rejected(error));
        server.batch_open = true;
    }

    fn execute(
        &mut self,
        header: Header,
        up: &mut Pipe,
        server: Option<&mut PgServer>,
    ) -> Result<Option<ClientEvent>, ProtocolError> {
        let Some(body) = whole(header, up) else { return Ok(Some(ClientEvent::NeedBytes)) };
        let (portal, _) = cstr(body).ok_or(ProtocolError::Malformed("Execute"))?;
        let Some(server) = server else { return Ok(Some(ClientEvent::NeedServer)) };
        if self.current.is_none() && self.outer.is_none() {
            let event = match self.portals.get(portal).cloned() {
                Some(statement) if statement.mode == self.mode => {
                    let submitted = statement.submitted(self.native_pins(&statement.facts));
                    self.report(submitted, Text::Of(statement))
                }
                // Read in another mode than the server's, or known to the server only, as cursors are.
                _ => self.report(opaque_statement(0), Text::Unread),
            };
            return Ok(Some(event));
        }
        let facts = match self.admitted_whole() {
            Ok(facts) => facts,
            Err(event) => return Ok(Some(event)),
        };
        self.forget_plans(&facts, server, up);
        self.make_named(&facts, server, up);
        if facts.is_deallocate_one && server.tx != Tx::Failed {
            server.native.retain(|n| !facts.prepared_names.iter().any(|p| p.as_bytes() == &**n));
            self.forget_named(&facts.prepared_names);
        }
        self.note_run(&facts, server);
        self.current = None;
        // The end of a transaction takes back what was set in it, or for it, and nothing else.
        let takes_back = facts.kind == StatementKind::Transaction && self.unsettled;
        self.mode_uncertain |= facts.changes_settings || facts.taints || takes_back;
        self.take(up, header.total(), true);
        server.batch_open = true;
        server.expect(Expect::Execute { drops: facts.drops_all_prepared });
        Ok(None)
    }

    fn close(
        &mut self,
        header: Header,
        up: &mut Pipe,
        server: Option<&mut PgServer>,
        down: &mut Pipe,
    ) -> Result<Option<ClientEvent>, ProtocolError> {
        let Some(body) = whole(header, up) else { return Ok(Some(ClientEvent::NeedBytes)) };
        let (&kind, rest) = body.split_first().ok_or(ProtocolError::Malformed("Close"))?;
        let (name, _) = exact_cstr(rest, "Close")?;
        let name: Box<[u8]> = name.into();
        let by_sql = self.has_by_sql() && !name.is_empty() && !self.knows(&name);
        let native = server.as_ref().is_some_and(|s| s.native_names && !self.knows(&name));
        if kind != b'S' || by_sql || native {
            let Some(server) = server else { return Ok(Some(ClientEvent::NeedServer)) };
            if kind == b'S' && name.starts_with(NAME_PREFIX) {
                return Err(ProtocolError::Malformed("Close"));
            }
            if kind == b'P' {
                self.portals.put(&name, None);
            } else if by_sql && let Some(rare) = &mut self.rare {
                rare.closed.push(classify::prepared(&String::from_utf8_lossy(&name)).into());
            }
            self.take(up, header.total(), true);
            server.batch_open = true;
            server.expect(Expect::Close { ours: false, evicts: None });
            return Ok(None);
        }
        up.skip(header.total());
        let undo = if name.is_empty() {
            self.unnamed.take().map(|before| Undo::Unnamed {
                before: Some(before),
                server_before: server.as_ref().and_then(|s| s.unnamed),
            })
        } else {
            let before = self.named.as_mut().and_then(|named| named.remove(&name));
            before.map(|before| Undo::Named { name, before: Some(before) })
        };
        match server {
            Some(server) => {
                if let Some(Undo::Named { name, .. }) = &undo
                    && server.native.contains(name)
                {
                    write_close(up.output(), b'S', name);
                    server.expect(Expect::Close { ours: true, evicts: None });
                    server.native.retain(|native| native != name);
                    server.batch_open = true;
                }
                answer_locally(server, down, CLOSE_COMPLETE, undo);
            }
            None => down.emit(CLOSE_COMPLETE),
        }
        Ok(None)
    }

    fn function_call(
        &mut self,
        header: Header,
        up: &mut Pipe,
        server: Option<&mut PgServer>,
    ) -> Result<Option<ClientEvent>, ProtocolError> {
        if self.current.is_none() {
            if header.body < 4 {
                return Err(ProtocolError::Malformed("FunctionCall"));
            }
            let Some(&oid) = up.unread().get(HEADER_BYTES..).and_then(|body| body.first_chunk::<4>()) else {
                return Ok(Some(ClientEvent::NeedBytes));
            };
            let statement = if LARGE_OBJECT_OIDS.contains(&u32::from_be_bytes(oid)) {
                function_statement(header.body)
            } else {
                opaque_statement(header.body)
            };
            return Ok(Some(self.report(statement, Text::Unread)));
        }
        if self.admitted_facts().is_none() {
            return Ok(Some(ClientEvent::NeedBytes));
        }
        let Some(server) = server else { return Ok(Some(ClientEvent::NeedServer)) };
        self.current = None;
        self.take(up, header.total(), true);
        server.expect(Expect::FunctionCall);
        server.batch_open = false;
        Ok(None)
    }

    fn sync(
        &mut self,
        header: Header,
        up: &mut Pipe,
        server: Option<&mut PgServer>,
        down: &mut Pipe,
    ) -> Option<ClientEvent> {
        self.forget_current();
        self.skip_to_sync = false;
        match server {
            None => {
                self.take(up, header.total(), false);
                write_ready(down.output(), self.deferred_tx());
            }
            Some(server) => {
                self.take(up, header.total(), true);
                // While it reads CopyData the server ignores Sync.
                if server.copy_in {
                    server.ignored_sync = true;
                } else {
                    server.batch_open = false;
                    server.skipping = false;
                    server.expect(Expect::Sync { ours: false });
                }
            }
        }
        None
    }

    /// CopyData, CopyDone, CopyFail. Without a COPY under way they are what a failed COPY left over, and ignored, as
    /// the server does.
    fn copy(&mut self, header: Header, up: &mut Pipe, server: Option<&mut PgServer>) -> Option<ClientEvent> {
        let Some(server) = server.filter(|s| s.copy_in || !s.expects_nothing()) else {
            self.take(up, header.total(), false);
            return None;
        };
        self.take(up, header.total(), true);
        if header.tag != b'd' {
            server.copy_in = false;
            server.expect(Expect::CopyEnd);
        }
        None
    }

    /// Makes sure that the server has what the client calls `name`, and says which statement that is and what the
    /// server calls it. What the client does not have, the server must not have either.
    fn resolve(&mut self, name: &[u8], server: &mut PgServer, up: &mut Pipe) -> Resolved {
        if name.is_empty() {
            return Resolved { statement: self.resolve_unnamed(server, up), called: None };
        }
        let Some(statement) = self.named_here(name) else {
            if name.starts_with(NAME_PREFIX) {
                return Resolved { statement: None, called: Some(NOBODY.to_vec()) };
            }
            if !server.native_names && !self.has_by_sql() {
                write_close(up.output(), b'S', name);
                server.expect(Expect::Close { ours: true, evicts: None });
            }
            return Resolved { statement: None, called: None };
        };
        if server.prepared.get(&statement.id).is_none() && !server.pending.contains(&statement.id) {
            self.send_parse(server, up, &statement, true, None);
        }
        let mut called = Vec::new();
        statement.write_name(server.epoch, &mut called);
        Resolved { statement: Some(statement), called: Some(called) }
    }

    fn resolve_unnamed(&mut self, server: &mut PgServer, up: &mut Pipe) -> Option<Arc<Statement>> {
        let Some(statement) = self.named_statement(b"") else {
            if server.unnamed != Some(OPAQUE) {
                write_close(up.output(), b'S', b"");
                server.expect(Expect::Close { ours: true, evicts: None });
                server.unnamed = None;
            }
            return None;
        };
        if server.unnamed != Some(statement.id) {
            let undo = Undo::Unnamed { before: self.unnamed.clone(), server_before: server.unnamed };
            server.unnamed = Some(statement.id);
            write_parse(up.output(), b"", &statement.tail);
            server.expect(Expect::Parse { ours: true, adds: None, undo: Some(undo) });
        }
        Some(statement)
    }

    /// What a name stands for as names are looked up now.
    fn named_here(&mut self, name: &[u8]) -> Option<Arc<Statement>> {
        let settings = self.rare.as_ref().and_then(|rare| rare.settings.as_ref());
        let prepared = self.named.as_mut()?.get_mut(name)?;
        if settings.is_some() || prepared.statement.scope.names.is_some() {
            prepared.statement = prepared.statement.under(Scope::of(self.pool, settings, false, 0).names);
        }
        Some(prepared.statement.clone())
    }

    /// Sends a Parse under our name, and before it the Close of what must make room.
    fn send_parse(
        &mut self,
        server: &mut PgServer,
        up: &mut Pipe,
        statement: &Arc<Statement>,
        ours: bool,
        undo: Option<Undo>,
    ) {
        while let Some(evicted) = server.evict() {
            let mut name = Vec::new();
            evicted.write_name(server.epoch, &mut name);
            write_close(up.output(), b'S', &name);
            server.expect(Expect::Close { ours: true, evicts: Some(evicted) });
        }
        let mut name = Vec::new();
        statement.write_name(server.epoch, &mut name);
        server.note_parse(statement.id);
        // Its literals are read as they were when the client prepared it.
        let back = self.go_back_for(statement, up, server);
        write_parse(up.output(), &name, &statement.tail);
        server.expect(Expect::Parse { ours, adds: Some(statement.clone()), undo });
        for text in back {
            write_hidden(up, server, text.as_bytes(), false);
        }
    }

    /// Makes the settings under which a text was prepared, where they are not those of the session any more; what undoes
    /// that. Should anything between fail, the server undoes it.
    fn go_back_for(&self, statement: &Statement, up: &mut Pipe, server: &mut PgServer) -> Vec<String> {
        let now = self.rare.as_ref().and_then(|rare| rare.settings.as_ref());
        let then = statement.scope.literals.as_ref();
        if !has_literals(statement.text()) || (now.is_none() && then.is_none()) || self.unsettled {
            return Vec::new();
        }
        let now = Scope::of(self.pool, now, true, 0).literals;
        let nothing = Settings::default();
        let way = |from: Option<&Arc<Settings>>, to: Option<&Arc<Settings>>| {
            let from = from.map_or(&nothing, |from| &**from);
            inquiry::difference(from, to.map(|to| &**to)).unwrap_or_default()
        };
        for text in way(now.as_ref(), then) {
            write_hidden(up, server, text.as_bytes(), false);
        }
        way(then, now.as_ref())
    }

    /// What SQL is about to name, as a statement to use or as a name to give, the server has to know.
    fn make_named(&mut self, facts: &Facts, server: &mut PgServer, up: &mut Pipe) {
        if !facts.prepared_names.is_empty() {
            self.make_native(&facts.prepared_names, server, up);
        }
        if server.tx == Tx::Failed {
            return;
        }
        let mut sent = false;
        for name in &facts.given_names {
            let name = name.as_bytes();
            if let Some(statement) = self.named_statement(name)
                && !name.starts_with(NAME_PREFIX)
                && !server.native.iter().chain(&server.lent).any(|known| **known == *name)
            {
                write_parse(up.output(), name, &statement.tail);
                server.lent.push(name.into());
                server.expect(Expect::Parse { ours: true, adds: None, undo: None });
                sent = true;
            }
        }
        if sent && !server.batch_open {
            write_own_sync(up, server);
        }
    }

    /// SQL that names protocol-level statements (`EXECUTE s1`) needs them on the server under the client's own
    /// names.
    fn make_native(&mut self, names: &[String], server: &mut PgServer, up: &mut Pipe) {
        let mut sent = false;
        if names.iter().any(|name| name.as_bytes().starts_with(NAME_PREFIX)) {
            // SQL that names ours may take one away: none of them counts any more.
            server.forget_statements();
            server.stray_names = true;
        }
        // A failed transaction refuses every Parse, and what names the statement too.
        let names = if server.tx == Tx::Failed { &[] } else { names };
        for name in names {
            let Some(statement) = self.named_statement(name.as_bytes()) else {
                continue;
            };
            if server.native.iter().any(|n| **n == *name.as_bytes()) {
                continue;
            }
            write_parse(up.output(), name.as_bytes(), &statement.tail);
            server.native.push(name.as_bytes().into());
            server.expect(Expect::Parse { ours: true, adds: None, undo: None });
            sent = true;
        }
        if sent {
            server.native_names = true;
            // In a batch of its own, but not in the midst of the client's.
            if !server.batch_open {
                write_own_sync(up, server);
            }
        }
    }

    /// `DEALLOCATE name` of a virtual statement: the server never heard that name.
    fn deallocate(
        &mut self,
        facts: &Facts,
        header: Header,
        up: &mut Pipe,
        server: Option<&mut PgServer>,
        down: &mut Pipe,
    ) -> Option<ClientEvent> {
        let tx = match server {
            None => self.deferred_tx(),
            Some(server) if !server.expects_nothing() && !server.batch_open => {
                return Some(ClientEvent::NeedAnswer);
            }
            Some(server)
                if server.tx == Tx::Failed
                    || server.native_names
                    || self.has_by_sql()
                    || server.batch_open =>
            {
                // The server's own refusal, or a name that it may well know.
                if server.tx != Tx::Failed {
                    self.make_native(&facts.prepared_names, server, up);
                    server.native.retain(|n| !facts.prepared_names.iter().any(|p| p.as_bytes() == &**n));
                    self.forget_named(&facts.prepared_names);
                }
                self.pass_query(header, up);
                server.expect(Expect::Query { rejection: None });
                return None;
            }
            Some(server) => server.tx,
        };
        self.forget_named(&facts.prepared_names);
        // As every simple Query does.
        self.unnamed = None;
        self.portals.unnamed = None;
        self.current = None;
        self.note_outcome(0, None);
        self.take(up, header.total(), false);
        down.emit(DEALLOCATED);
        write_ready(down.output(), tx);
        None
    }

    /// True when no statement of the client's would be answered otherwise on a new connection.
    fn wears_nothing(&self) -> bool {
        !self.unsettled && self.rare.as_ref().is_none_or(|rare| rare.settings.is_none())
    }

    /// `DISCARD ALL` and its like of a client that has no server connection, and so nothing there to take back.
    fn answer_resets(&mut self, facts: &Facts, header: Header, up: &mut Pipe, down: &mut Pipe) {
        self.take(up, header.total(), false);
        self.current = None;
        self.unnamed = None;
        self.portals.unnamed = None;
        if facts.drops_all_prepared {
            self.named = None;
        }
        self.note_outcome(0, None);
        for tag in &facts.resets {
            if *tag == "SELECT 1" {
                down.emit(UNLOCKED_ALL);
            }
            write_message(down.output(), b'C', |body| put_cstr(body, tag.as_bytes()));
        }
        write_ready(down.output(), Tx::Idle);
    }

    fn forget_named(&mut self, names: &[String]) {
        if let Some(named) = &mut self.named {
            for name in names {
                named.remove(name.as_bytes());
            }
        }
    }

    fn knows(&self, name: &[u8]) -> bool {
        self.named.as_ref().is_some_and(|named| named.contains_key(name))
    }

    fn knows_any(&self, names: &[String]) -> bool {
        names.iter().any(|name| self.knows(name.as_bytes()))
    }

    fn knows_all(&self, names: &[String]) -> bool {
        names.iter().all(|name| self.knows(name.as_bytes()))
    }

    /// SQL that names a protocol-level statement puts it on the server under the client's name, which pins.
    fn native_pins(&self, facts: &Facts) -> PinReasons {
        if !facts.is_deallocate_one && self.knows_any(&facts.prepared_names) {
            PinReasons::only(PinReason::PreparedStatement)
        } else {
            PinReasons::NONE
        }
    }

    /// True when SQL may have given that name. While the client has no connection, all of those move.
    fn may_be_sqls(&self, name: &[u8]) -> bool {
        let Some(rare) = self.rare.as_ref().filter(|rare| rare.by_sql) else { return false };
        let moves = |settings: &Arc<Settings>| {
            let name = classify::prepared(&String::from_utf8_lossy(name));
            settings.get(&name).is_some()
        };
        self.unsettled || rare.settings.as_ref().is_some_and(moves)
    }

    fn has_by_sql(&self) -> bool {
        self.rare.as_ref().is_some_and(|rare| rare.by_sql)
    }

    fn facts_of(&self, name: &[u8]) -> Option<Arc<Facts>> {
        self.prepared(name).map(|prepared| prepared.statement.facts.clone())
    }

    fn admitted_facts(&self) -> Option<Arc<Facts>> {
        self.current.as_ref().filter(|c| c.admitted).map(|c| c.statement.facts.clone())
    }

    fn elsewhere(&self) -> Option<&Arc<BTreeSet<Box<str>>>> {
        self.rare.as_ref()?.elsewhere.as_ref()
    }

    /// True for a notification that the client has from elsewhere.
    fn is_told_elsewhere(&self, body: &[u8]) -> bool {
        let channel = read_notification(body).and_then(|(channel, _)| std::str::from_utf8(channel).ok());
        let is_among =
            |channels: &Arc<BTreeSet<Box<str>>>| channel.is_some_and(|name| channels.contains(name));
        self.elsewhere().is_some_and(is_among)
    }

    /// Accounts for one message of the server. True when the client gets it.
    fn on_answer(&mut self, tag: u8, down: &Pipe, server: &mut PgServer) -> Result<bool, ProtocolError> {
        let unexpected = || Err(ProtocolError::Unexpected(char::from(tag)));
        match tag {
            b'D' => Ok(!matches!(server.head(), Some(Expect::Hidden { .. }))),
            b'T' | b'n' => match server.head() {
                Some(Expect::Describe { .. } | Expect::Check(_)) => self.end_describe(down, server),
                _ => {
                    server.ran = true;
                    Ok(true)
                }
            },
            b't' if server.is_describing() => {
                server.describing.clear();
                server.describing.extend_from_slice(message(down)?);
                Ok(matches!(server.head(), Some(Expect::Describe { .. })))
            }
            b't' | b'd' | b'c' | b'V' | b'A' | b'N' | b'H' => Ok(true),
            b'E' => {
                let error = ErrorFields::read(message_body(down)?);
                let unasked = server.expects_nothing();
                if error.is_fatal() {
                    // Who has asked for nothing may be served by another connection, and then need not know.
                    let kept = !unasked && !server.next_sync_is_ours();
                    if kept {
                        self.note_outcome(self.rows(), Some(&error.code));
                        server.failed = true;
                    } else {
                        server.goodbye = Some(message(down)?.into());
                    }
                    return Ok(kept);
                }
                if unasked {
                    return Err(ProtocolError::Unexpected('E'));
                }
                if let Some(
                    Expect::Bind { of: Some((statement, _)), .. }
                    | Expect::Describe { of: Some((statement, _)) }
                    | Expect::Check(statement),
                ) = server.head()
                    && error.code == STALE_PLAN
                {
                    statement.retire();
                }
                if !server.failed {
                    server.nothing_ran = match server.head() {
                        // Of the text itself, not of one that a function ran: not even its first statement ran.
                        Some(Expect::Query { .. }) => {
                            !server.ran
                                && error.code == SYNTAX_ERROR
                                && error.context.is_empty()
                                && error.routine == GRAMMAR
                        }
                        Some(
                            Expect::Parse { .. }
                            | Expect::Taken(_)
                            | Expect::Rejected(_)
                            | Expect::Bind { .. }
                            | Expect::Begin(_)
                            | Expect::Describe { .. }
                            | Expect::Check(_),
                        ) => !server.ran,
                        _ => false,
                    };
                }
                let in_place = match server.head_mut() {
                    Some(Expect::Query { rejection }) => rejection.take(),
                    Some(Expect::Rejected(error)) => Some(std::mem::take(error)),
                    _ => None,
                };
                // Of a rejected statement the session knows more than the server.
                if in_place.is_none() && !server.next_sync_is_ours() {
                    self.note_outcome(self.rows(), Some(&error.code));
                }
                if let Some(Expect::Bind { of: Some((statement, name)), .. }) = server.head()
                    && let Some(renamed) = with_name(message_body(down)?, statement, server.epoch, name)
                {
                    server.substitute = Some(renamed);
                    self.on_error(server);
                    return Ok(false);
                }
                if let Some(in_place) = in_place {
                    server.substitute = Some(in_place);
                    self.on_error(server);
                    return Ok(false);
                }
                if let Some(Expect::Taken(name)) = server.head()
                    && error.code == NAME_TAKEN
                {
                    let name = String::from_utf8_lossy(name);
                    let message = format!("prepared statement \"{name}\" already exists");
                    let mut fault = Fault::error(FaultKind::Internal, message);
                    fault.native_code = Some(NAME_TAKEN.to_owned());
                    let mut substitute = Vec::new();
                    write_error(&fault, &mut substitute);
                    server.substitute = Some(substitute);
                    self.on_error(server);
                    return Ok(false);
                }
                Ok(self.on_error(server))
            }
            b'1' => match server.pop() {
                Some(Expect::Parse { ours, adds, .. }) => {
                    if let Some(statement) = adds {
                        statement.set_accepted();
                        server.confirm_prepared(statement);
                    }
                    Ok(!ours)
                }
                _ => unexpected(),
            },
            b'2' => match server.pop() {
                Some(Expect::Bind { ours, .. }) => Ok(!ours),
                _ => unexpected(),
            },
            b'3' => match server.pop() {
                Some(Expect::Close { ours, .. }) => Ok(!ours),
                _ => unexpected(),
            },
            b'C' | b'I' | b's' => {
                let kept = match server.head() {
                    Some(Expect::Begin(_)) if tag == b'C' => {
                        server.pop();
                        false
                    }
                    Some(Expect::Hidden { forgets }) => {
                        server.forgot |= *forgets && tag == b'C';
                        server.pop();
                        false
                    }
                    Some(Expect::Execute { .. }) => {
                        server.ran = true;
                        server.pop();
                        if self.tally.is_some() {
                            let rows = counted_rows(message_body(down)?).filter(|_| tag == b'C');
                            self.note_outcome(rows.unwrap_or_else(|| self.rows()), None);
                        }
                        true
                    }
                    Some(Expect::Query { .. }) => {
                        server.ran = true;
                        if let Some(tally) = &mut self.tally {
                            tally.query_rows += counted_rows(message_body(down)?).unwrap_or(0);
                            tally.rows = 0;
                        }
                        true
                    }
                    _ => return unexpected(),
                };
                if kept && tag == b'C' && message_body(down)? == b"ROLLBACK\0" {
                    self.note_undone();
                }
                // The server's word that everything prepared is gone, whichever way it was asked.
                if kept
                    && tag == b'C'
                    && matches!(message_body(down)?, b"DISCARD ALL\0" | b"DEALLOCATE ALL\0")
                {
                    server.forget_statements();
                    self.named = None;
                }
                Ok(kept)
            }
            b'S' => {
                let (name, value) = read_parameter(message_body(down)?)?;
                server.note_parameter(name, value);
                self.mode = server.mode;
                self.reads_utf8 = server.speaks_utf8;
                Ok(true)
            }
            b'G' | b'W' => match server.head() {
                Some(Expect::Query { .. } | Expect::Execute { .. }) => {
                    server.ran = true;
                    server.begin_copy_in();
                    Ok(true)
                }
                _ => unexpected(),
            },
            _ => unexpected(),
        }
    }

    /// The last message of a description has come. True when the client gets it.
    fn end_describe(&mut self, down: &Pipe, server: &mut PgServer) -> Result<bool, ProtocolError> {
        let (statement, told) = match server.pop() {
            Some(Expect::Describe { of: Some((statement, told)) }) => (statement, Some(told)),
            Some(Expect::Check(statement)) => (statement, None),
            _ => return Ok(true),
        };
        let description = server.end_description(&statement, message(down)?)?;
        if server.speaks_for_all() && !self.unsettled && statement.mode == server.mode {
            statement.keep(&description);
        }
        if let Some(told) = &told {
            told.set(description);
        }
        Ok(told.is_some())
    }

    /// After an error the server ignores everything up to the next Sync, so nothing before it will be answered, and
    /// what those messages would have changed did not happen. True when the client gets the error.
    fn on_error(&mut self, server: &mut PgServer) -> bool {
        if std::mem::take(&mut server.ignored_sync) || server.copy_in && server.batch_open {
            server.extra_ready = true;
        }
        server.copy_in = false;
        server.describing.clear();
        // What was bound may or may not be what the portals then run.
        self.portals.clear();
        self.note_undone();
        match server.head() {
            None | Some(Expect::Query { .. } | Expect::FunctionCall | Expect::Sync { ours: false }) => {
                server.failed = true;
                return true;
            }
            Some(Expect::Sync { ours: true }) => return false,
            Some(_) => {}
        }
        let hidden = server.next_sync_is_ours();
        server.failed |= !hidden;
        let mut skipped = Vec::new();
        while server.head().is_some_and(|e| !matches!(e, Expect::Sync { .. })) {
            skipped.extend(server.pop());
        }
        if server.expects_nothing() {
            server.skipping = true;
        }
        let begins = skipped.iter().any(|entry| matches!(entry, Expect::Begin(_)));
        if begins && std::mem::take(&mut server.ends_with_query) {
            server.cut_short = true;
            server.skipping = false;
            server.batch_open = false;
        }
        for (at, entry) in skipped.into_iter().enumerate().rev() {
            let undo = match entry {
                Expect::Parse { adds, undo, .. } => {
                    if let Some(statement) = adds {
                        server.pending.retain(|id| *id != statement.id);
                    }
                    undo
                }
                Expect::Close { evicts, .. } => {
                    if let Some(statement) = evicts {
                        server.confirm_prepared(statement);
                    }
                    None
                }
                Expect::Local { undo, .. } => undo,
                Expect::Begin(deferred) => {
                    self.take_back(deferred, server);
                    None
                }
                _ => None,
            };
            match undo {
                Some(Undo::Named { name, before: Some(before) }) => {
                    self.named.get_or_insert_default().insert(name, before);
                }
                Some(Undo::Named { name, before: None }) => {
                    if let Some(named) = &mut self.named {
                        named.remove(&name);
                    }
                }
                // A Parse of the unnamed statement drops the old one before it can fail.
                Some(Undo::Unnamed { .. }) if at == 0 => {
                    self.unnamed = None;
                    server.unnamed = None;
                }
                Some(Undo::Unnamed { before, server_before }) => {
                    self.unnamed = before;
                    server.unnamed = server_before;
                }
                None => {}
            }
        }
        !hidden
    }
}

/// A statement that a request names.
struct Mentioned {
    name: Box<[u8]>,
    /// Its Parse stands in the request.
    parsed: Option<Arc<Statement>>,
    bound: bool,
}

/// The statements of one request.
#[derive(Default)]
struct Request {
    statements: Vec<Mentioned>,
    /// A Query or FunctionCall.
    whole: Option<Submitted>,
    /// One that follows on `statements`, with its text.
    last: Option<(Submitted, Vec<u8>)>,
}

impl Request {
    fn bind(&mut self, name: &[u8]) {
        // The last of that name: the unnamed statement may be parsed several times.
        match self.statements.iter_mut().rev().find(|known| *known.name == *name) {
            Some(known) => known.bound = true,
            None => self.statements.push(Mentioned { name: name.into(), parsed: None, bound: true }),
        }
    }
}

/// How many parameters a Bind brings, of which `at` bytes are read; `None` until they have come.
/// Shape there: `formats: i16 | format: i16 each | parameters: i16 | …`.
fn bound_parameters(header: Header, up: &mut Pipe, at: usize) -> Result<Option<u16>, ProtocolError> {
    let count_at = |up: &Pipe, at: usize| {
        let bytes = up.unread().get(at..)?.first_chunk::<2>()?;
        Some(u16::from_be_bytes(*bytes))
    };
    let formats = count_at(up, at);
    let count_ends = at + 2 + 2 * usize::from(formats.unwrap_or(0)) + 2;
    if count_ends > header.total() {
        return Err(ProtocolError::Malformed("Bind"));
    }
    match formats.and_then(|_| count_at(up, count_ends - 2)) {
        Some(count) => Ok(Some(count)),
        None => {
            up.expect(count_ends);
            Ok(None)
        }
    }
}

/// An error in which a statement has the client's name in place of ours; `None` where it is not named.
fn with_name(body: &[u8], statement: &Statement, epoch: u32, name: &[u8]) -> Option<Vec<u8>> {
    let mut ours = vec![b'"'];
    statement.write_name(epoch, &mut ours);
    ours.push(b'"');
    let at = memchr::memmem::find(body, &ours)?;
    let mut error = Vec::new();
    write_message(&mut error, b'E', |renamed| {
        renamed.extend_from_slice(&body[..=at]);
        renamed.extend_from_slice(name);
        renamed.extend_from_slice(&body[at + ours.len() - 1..]);
    });
    Some(error)
}

/// True when it makes a temporary object, be it one that its transaction's end drops, which pins in profile `rds` alone.
fn makes_temporary(facts: &Facts) -> bool {
    facts.rds_pins.union(facts.pins).contains(PinReason::TemporaryTable)
}

/// Rows by a CommandComplete's tag: the number at its end.
fn counted_rows(tag: &[u8]) -> Option<u64> {
    let (tag, _) = cstr(tag)?;
    std::str::from_utf8(tag).ok()?.rsplit_once(' ')?.1.parse().ok()
}

impl Portals {
    fn put(&mut self, name: &[u8], statement: Option<Arc<Statement>>) {
        if name.is_empty() {
            self.unnamed = statement;
            return;
        }
        self.named.retain(|(n, _)| **n != *name);
        if let Some(statement) = statement {
            self.named.push((name.into(), statement));
        }
    }

    fn get(&self, name: &[u8]) -> Option<&Arc<Statement>> {
        if name.is_empty() {
            return self.unnamed.as_ref();
        }
        self.named.iter().find(|(n, _)| **n == *name).map(|(_, statement)| statement)
    }

    fn clear(&mut self) {
        self.unnamed = None;
        self.named = Vec::new();
    }
}

/// Starts to move one message of `total` bytes from the server.
fn relay(down: &mut Pipe, server: &mut PgServer, total: usize, kept: bool) {
    let n = total.min(down.unread().len());
    server.owed = total - n;
    server.owed_kept = kept;
    if kept {
        down.pass(n);
    } else {
        down.skip(n);
    }
}

/// Gives an answer of our own: at once, or behind what the server still owes.
fn answer_locally(server: &mut PgServer, down: &mut Pipe, answer: &'static [u8], undo: Option<Undo>) {
    if server.expects_nothing() && server.owed == 0 {
        down.emit(answer);
    } else {
        server.expect(Expect::Local { answer, undo });
    }
}

/// Gives the answers of our own whose turn it is.
fn settle_heads(down: &mut Pipe, server: &mut PgServer) {
    if server.owed > 0 {
        return;
    }
    while let Some(Expect::Local { .. } | Expect::CopyEnd) = server.head() {
        if let Some(Expect::Local { answer, .. }) = server.pop() {
            down.emit(answer);
        }
    }
}

/// The message at the front, which is known to be whole.
fn message(down: &Pipe) -> Result<&[u8], ProtocolError> {
    let bytes = down.unread();
    let header = Header::read(bytes)?.ok_or(ProtocolError::Malformed("header"))?;
    bytes.get(..header.total()).ok_or(ProtocolError::Malformed("length"))
}

/// Its body.
fn message_body(down: &Pipe) -> Result<&[u8], ProtocolError> {
    message(down)?.get(HEADER_BYTES..).ok_or(ProtocolError::Malformed("length"))
}

/// The body of the message at the front once it is there whole; else room is made for it.
fn whole(header: Header, up: &mut Pipe) -> Option<&[u8]> {
    if up.unread().len() < header.total() {
        up.expect(header.total());
        return None;
    }
    Some(&up.unread()[HEADER_BYTES..header.total()])
}

/// The zero-terminated string at offset `at` of the message at the front; `None` when more must be read.
fn front_cstr(
    header: Header,
    up: &mut Pipe,
    at: usize,
    what: &'static str,
) -> Result<Option<Box<[u8]>>, ProtocolError> {
    let have = up.unread().len().min(header.total());
    if let Some((name, _)) = up.unread().get(at..have).and_then(cstr) {
        return Ok(Some(name.into()));
    }
    if have == header.total() || have >= at + MAX_NAME_BYTES {
        return Err(ProtocolError::Malformed(what));
    }
    up.expect(header.total().min(at + MAX_NAME_BYTES));
    Ok(None)
}

/// A body that is one zero-terminated string and nothing else.
fn exact_cstr<'a>(body: &'a [u8], what: &'static str) -> Result<(&'a [u8], &'a [u8]), ProtocolError> {
    cstr(body).filter(|(_, rest)| rest.is_empty()).ok_or(ProtocolError::Malformed(what))
}

fn write_parse(out: &mut Vec<u8>, name: &[u8], tail: &[u8]) {
    write_message(out, b'P', |body| {
        put_cstr(body, name);
        body.extend_from_slice(tail);
    });
}

/// Ends a batch of ours. The client hears nothing of it.
fn write_own_sync(up: &mut Pipe, server: &mut PgServer) {
    write_message(up.output(), b'S', |_| {});
    server.expect(Expect::Sync { ours: true });
}

/// Runs a statement of ours within the client's batch; its answers are swallowed.
fn write_hidden(up: &mut Pipe, server: &mut PgServer, text: &[u8], forgets: bool) {
    let out = up.output();
    // Whatever an earlier attempt, cut short by an error, may have left under these names.
    write_close(out, b'S', FORGET_NAME);
    write_close(out, b'P', FORGET_NAME);
    let mut tail = text.to_vec();
    tail.extend_from_slice(&[0; 3]);
    write_parse(out, FORGET_NAME, &tail);
    write_message(out, b'B', |body| {
        put_cstr(body, FORGET_NAME);
        put_cstr(body, FORGET_NAME);
        body.extend_from_slice(&[0; 6]);
    });
    write_message(out, b'E', |body| {
        put_cstr(body, FORGET_NAME);
        body.extend_from_slice(&[0; 4]);
    });
    write_close(out, b'S', FORGET_NAME);
    server.expect(Expect::Close { ours: true, evicts: None });
    server.expect(Expect::Close { ours: true, evicts: None });
    server.expect(Expect::Parse { ours: true, adds: None, undo: None });
    server.expect(Expect::Bind { ours: true, of: None });
    server.expect(Expect::Hidden { forgets });
    server.expect(Expect::Close { ours: true, evicts: None });
}

fn write_close(out: &mut Vec<u8>, kind: u8, name: &[u8]) {
    write_message(out, b'C', |body| {
        body.push(kind);
        put_cstr(body, name);
    });
}

fn write_ready(out: &mut Vec<u8>, tx: Tx) {
    let status = match tx {
        Tx::Idle => b'I',
        Tx::Open => b'T',
        Tx::Failed => b'E',
    };
    write_message(out, b'Z', |body| body.push(status));
}

fn facts_without_text(kind: StatementKind, pins: PinReasons, taints: bool, what: &str) -> Arc<Facts> {
    Arc::new(Facts {
        kind,
        statements: 1,
        read_only: false,
        pins,
        rds_pins: pins,
        taints,
        changes_settings: taints,
        moves_transaction: taints,
        digest_text: what.to_owned(),
        ..Facts::nothing()
    })
}

/// A text that was not read, or a function known only by number: anything may have happened.
fn opaque_statement(bytes: usize) -> Submitted {
    static FACTS: LazyLock<Arc<Facts>> = LazyLock::new(|| Arc::new(Facts::unknown("<not read>".to_owned())));
    Submitted {
        facts: FACTS.clone(),
        digest: 0,
        bytes,
        extra_pins: PinReasons::NONE,
        prepares: false,
        within: false,
    }
}

/// A FunctionCall known to leave nothing behind.
fn function_statement(bytes: usize) -> Submitted {
    static FACTS: LazyLock<Arc<Facts>> = LazyLock::new(|| {
        facts_without_text(StatementKind::Other, PinReasons::NONE, false, "<large object call>")
    });
    Submitted {
        facts: FACTS.clone(),
        digest: 0,
        bytes,
        extra_pins: PinReasons::NONE,
        prepares: false,
        within: false,
    }
}

#[cfg(test)]
mod tests;
