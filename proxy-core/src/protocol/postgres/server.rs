//! What is remembered of one PostgreSQL server connection: what it still has to answer, what is prepared on it.

use std::{
    collections::VecDeque,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use lru::LruCache;

use super::{
    super::{Absorbed, Greeting, ProtocolError, ServerKey, ServerState, Tx},
    classify::LexMode,
    codec::{ErrorFields, HEADER_BYTES, Header, cstr},
    description::{Description, Told},
    statement::{Prepared, Statement},
    tracker::Deferred,
};
use crate::buffer::Buffer;

/// Longest message that is held whole on the way from the server; rows and copied data are not.
pub(super) const MAX_HELD_BYTES: usize = 1 << 20;

/// Answers that the server may owe before its client is read no further; bounds what a pipeline costs in memory.
const MAX_OWED_ANSWERS: usize = 16 * 1024;

/// One answer that the server owes, in the order of the messages sent.
#[derive(Debug)]
pub(super) enum Expect {
    /// Ends with ReadyForQuery: Query. Of one of ours, sent in place of a rejected one: the error that the client gets
    /// in place of the server's.
    Query { rejection: Option<Vec<u8>> },
    /// Ends with ReadyForQuery: FunctionCall.
    FunctionCall,
    /// ReadyForQuery; swallowed when ours.
    Sync { ours: bool },
    /// ParseComplete; swallowed when ours. `adds` is what is then prepared under our name.
    Parse { ours: bool, adds: Option<Arc<Statement>>, undo: Option<Undo> },
    /// The error that this name of the client's is taken.
    Taken(Box<[u8]>),
    /// An error that we provoked, in place of which the client gets this one.
    Rejected(Vec<u8>),
    /// BindComplete. `of` is the named statement bound, with the client's name for it.
    Bind { ours: bool, of: Option<(Arc<Statement>, Box<[u8]>)> },
    /// RowDescription or NoData, of a statement behind ParameterDescription. `of` is the named statement described, and
    /// where the client keeps what it is told.
    Describe { of: Option<(Arc<Statement>, Arc<Told>)> },
    /// Likewise, asked by us: what the server says of a statement that a client was told of elsewhere.
    Check(Arc<Statement>),
    /// CommandComplete, EmptyQueryResponse or PortalSuspended. `drops` when it takes all prepared statements away.
    Execute { drops: bool },
    /// Likewise of a statement of ours; `forgets` when it takes away what sequences returned.
    Hidden { forgets: bool },
    /// CloseComplete; swallowed when ours. `evicts` is what is then no longer prepared.
    Close { ours: bool, evicts: Option<Arc<Statement>> },
    /// CommandComplete of a `BEGIN` that was answered before it was sent; swallowed.
    Begin(Box<Deferred>),
    /// Our own answer, due when everything before it has been answered.
    Local { answer: &'static [u8], undo: Option<Undo> },
    /// The client has ended its CopyData here. Owed no answer of its own.
    CopyEnd,
}

/// What a client's statement name meant before a message that the server may never have run.
#[derive(Debug)]
pub(super) enum Undo {
    /// A named statement.
    Named { name: Box<[u8]>, before: Option<Prepared> },
    /// The unnamed one, as the client and as the server connection had it.
    Unnamed { before: Option<Prepared>, server_before: Option<u64> },
}

/// A statement on a server connection.
#[derive(Debug)]
pub(super) struct OnServer {
    pub(super) statement: Arc<Statement>,
    /// What this server has said of it. It runs the statement like this or refuses to.
    pub(super) description: Option<Arc<Description>>,
}

/// One server connection's state.
pub struct PgServer {
    key: ServerKey,
    greeting: Arc<Greeting>,
    pub(super) tx: Tx,
    /// Answers owed.
    expected: VecDeque<Expect>,
    /// Bytes still to come of a server message that is passed on (or swallowed) as it comes.
    pub(super) owed: usize,
    pub(super) owed_kept: bool,
    /// Statements prepared under our names.
    pub(super) prepared: LruCache<u64, OnServer>,
    max_prepared: usize,
    /// Sent a Parse for, not confirmed.
    pub(super) pending: Vec<u64>,
    pub(super) epoch: u32,
    /// Whose text the server's unnamed statement is.
    pub(super) unnamed: Option<u64>,
    /// Extended-protocol messages were sent and no Sync after them.
    pub(super) batch_open: bool,
    /// What `batch_open` tells of was begun by us, and a Query or FunctionCall follows in place of a Sync.
    pub(super) ends_with_query: bool,
    /// The server ignores everything up to the next Sync.
    pub(super) skipping: bool,
    /// The server reads CopyData.
    pub(super) copy_in: bool,
    /// The client has statements here under its own names (SQL-level PREPARE).
    pub(super) native_names: bool,
    /// Of those, protocol-level ones that SQL of the client named.
    pub(super) native: Vec<Box<[u8]>>,
    /// Likewise, but only for the server to refuse that SQL gives their names to others; closed when it has.
    pub(super) lent: Vec<Box<[u8]>>,
    /// Something of ours was left under a name that clients may use.
    pub(super) stray_names: bool,
    /// An error was among the answers to the request being answered.
    pub(super) failed: bool,
    /// A statement of the request has run, if only in part.
    pub(super) ran: bool,
    /// The error came before any statement of the request ran.
    pub(super) nothing_ran: bool,
    /// Goes to the client in place of the error at the front.
    pub(super) substitute: Option<Vec<u8>>,
    /// A Sync was taken for ignored, since a COPY had begun.
    pub(super) ignored_sync: bool,
    /// A COPY failed so early that the server may still answer that Sync. Never lent again.
    pub(super) extra_ready: bool,
    /// It skips, and nobody has a Sync to send. Never lent again.
    pub(super) cut_short: bool,
    /// Its last word, which is not an answer to the client. Never lent again.
    pub(super) goodbye: Option<Box<[u8]>>,
    /// Our DISCARD SEQUENCES has run.
    pub(super) forgot: bool,
    /// How this server reads text, as it last said.
    pub(super) mode: LexMode,
    /// It sends text as UTF-8.
    pub(super) speaks_utf8: bool,
    /// Something that changes schemas has run in the transaction.
    pub(super) changes_schema: bool,
    /// Counts such transactions, for all of the proxy.
    pub(super) schema: Arc<AtomicU64>,
    /// Of a description, the message that has come.
    pub(super) describing: Vec<u8>,
    /// Code whose effects nobody saw has run since the last reset.
    pub(super) code_ran: bool,
    /// Temporary objects were made since, which may hide others,
    pub(super) hides: bool,
    /// or were in the transaction.
    pub(super) hides_for_now: bool,
    /// After either something was prepared.
    prepared_after_code: bool,
    absorbing: (Option<Vec<String>>, Option<String>),
    /// Notifications that came while a statement of ours ran or none at all, as the server sent them.
    heard: Vec<u8>,
}

impl PgServer {
    pub(super) fn new(
        key: ServerKey,
        greeting: Arc<Greeting>,
        max_prepared: usize,
        schema: Arc<AtomicU64>,
    ) -> Self {
        let mode = greeting_mode(&greeting.bytes);
        Self {
            key,
            speaks_utf8: greets_in_utf8(&greeting.bytes),
            greeting,
            tx: Tx::Idle,
            expected: VecDeque::new(),
            owed: 0,
            owed_kept: true,
            prepared: LruCache::unbounded(),
            max_prepared,
            pending: Vec::new(),
            epoch: 0,
            unnamed: None,
            batch_open: false,
            ends_with_query: false,
            skipping: false,
            copy_in: false,
            native_names: false,
            native: Vec::new(),
            lent: Vec::new(),
            stray_names: false,
            failed: false,
            ran: false,
            nothing_ran: false,
            substitute: None,
            ignored_sync: false,
            extra_ready: false,
            cut_short: false,
            goodbye: None,
            forgot: false,
            mode,
            changes_schema: false,
            schema,
            describing: Vec::new(),
            code_ran: false,
            hides: false,
            hides_for_now: false,
            prepared_after_code: false,
            absorbing: (None, None),
            heard: Vec::new(),
        }
    }

    /// Everything prepared is gone, or will be as soon as what was just sent has run.
    pub fn forget_statements(&mut self) {
        self.prepared.clear();
        self.unnamed = None;
        self.native_names = false;
        self.native = Vec::new();
        self.lent = Vec::new();
        self.stray_names = false;
        self.forget_code();
        self.prepared_after_code = false;
        self.epoch = self.epoch.wrapping_add(1);
    }

    /// Takes over a ParameterStatus.
    pub(super) fn note_parameter(&mut self, name: &[u8], value: &[u8]) {
        note_parameter(&mut self.mode, name, value);
        if name == b"client_encoding" {
            self.speaks_utf8 = is_utf8(value, &self.greeting.bytes);
        }
    }

    /// What code or temporary objects have done here is undone, or will be as soon as what was just sent has run.
    pub(super) fn forget_code(&mut self) {
        (self.code_ran, self.hides) = (false, false);
    }

    pub(super) fn expect(&mut self, entry: Expect) {
        self.expected.push_back(entry);
    }

    pub(super) fn head_mut(&mut self) -> Option<&mut Expect> {
        self.expected.front_mut()
    }

    pub(super) fn head(&self) -> Option<&Expect> {
        self.expected.front()
    }

    pub(super) fn pop(&mut self) -> Option<Expect> {
        self.expected.pop_front()
    }

    pub(super) fn expects_nothing(&self) -> bool {
        self.expected.is_empty()
    }

    /// True when so much is owed that no more should be sent before some of it has come.
    pub(super) fn is_far_behind(&self) -> bool {
        self.expected.len() >= MAX_OWED_ANSWERS
    }

    /// True when a request of the client awaits its ReadyForQuery. What comes after it waits here: only then is it
    /// certain what names mean, how text is read and what pins.
    pub(super) fn is_request_under_way(&self) -> bool {
        let ends = |e: &Expect| {
            matches!(e, Expect::Query { .. } | Expect::FunctionCall | Expect::Sync { ours: false })
        };
        // The end of a request is the last that was sent of it, but for the end of a COPY's data.
        self.expected.iter().rev().find(|e| !matches!(e, Expect::CopyEnd)).is_some_and(ends)
    }

    /// True while a `BEGIN` of ours is not answered.
    pub(super) fn is_beginning(&self) -> bool {
        self.expected.iter().any(|e| matches!(e, Expect::Begin(_)))
    }

    /// True when an Execute under way takes all prepared statements away.
    pub(super) fn is_dropping(&self) -> bool {
        self.expected.iter().any(|e| matches!(e, Expect::Execute { drops: true, .. }))
    }

    /// True when the next ReadyForQuery is for a Sync of ours, so an error before it is nobody's but ours.
    pub(super) fn next_sync_is_ours(&self) -> bool {
        self.expected
            .iter()
            .find_map(|e| match e {
                Expect::Sync { ours } => Some(*ours),
                Expect::Query { .. } | Expect::FunctionCall => Some(false),
                _ => None,
            })
            .unwrap_or(false)
    }

    /// The server has begun to read CopyData for the entry at the head: it ignores every Sync sent before the end
    /// of the data. Source: PostgreSQL manual, "COPY Operations".
    pub(super) fn begin_copy_in(&mut self) {
        let end = self.expected.iter().position(|e| matches!(e, Expect::CopyEnd));
        let upto = end.unwrap_or(self.expected.len());
        let mut at = 0;
        let before = self.expected.len();
        self.expected.retain(|e| {
            let ignored = at < upto && matches!(e, Expect::Sync { .. });
            at += 1;
            !ignored
        });
        self.ignored_sync |= self.expected.len() < before;
        self.copy_in = end.is_none();
        let extended = matches!(self.expected.front(), Some(Expect::Execute { .. }));
        if extended && !self.expected.iter().any(|e| matches!(e, Expect::Sync { .. })) {
            self.batch_open = true;
        }
    }

    /// True when statements are prepared here under names that are not ours.
    pub(super) fn has_strange_names(&self) -> bool {
        self.stray_names || self.native_names || !self.lent.is_empty()
    }

    /// True when what is prepared here is as good as what would be prepared now on a new connection.
    pub(super) fn may_keep_statements(&self) -> bool {
        !self.has_strange_names() && !self.prepared_after_code
    }

    /// A statement is sent to be prepared.
    pub(super) fn note_parse(&mut self, id: u64) {
        self.pending.push(id);
        self.batch_open = true;
        self.prepared_after_code |= self.code_ran || self.hides;
    }

    /// Counts a transaction that is over if it changed schemas.
    pub(super) fn settle_schema(&mut self) {
        if self.tx != Tx::Idle {
            return;
        }
        self.hides_for_now = false;
        if std::mem::take(&mut self.changes_schema) {
            self.schema.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The statement to close so that one more can be prepared.
    pub(super) fn evict(&mut self) -> Option<Arc<Statement>> {
        if self.prepared.len() + self.pending.len() < self.max_prepared {
            return None;
        }
        self.prepared.pop_lru().map(|(_, known)| known.statement)
    }

    pub(super) fn confirm_prepared(&mut self, statement: Arc<Statement>) {
        self.pending.retain(|id| *id != statement.id);
        self.prepared.put(statement.id, OnServer { statement, description: None });
    }

    /// What this server has said of a statement that is prepared here.
    pub(super) fn description_of(&self, id: u64) -> Option<&Arc<Description>> {
        self.prepared.peek(&id)?.description.as_ref()
    }

    /// True when it has been asked about a statement by us and has not answered.
    pub(super) fn is_checking(&self, id: u64) -> bool {
        self.expected.iter().any(|e| matches!(e, Expect::Check(statement) if statement.id == id))
    }

    /// True when the answer at the front is of a statement's description, which is read.
    pub(super) fn is_describing(&self) -> bool {
        matches!(self.head(), Some(Expect::Describe { of: Some(_) } | Expect::Check(_)))
    }

    /// Takes over what it has said of a statement, whose last message is `message`.
    pub(super) fn end_description(
        &mut self,
        statement: &Statement,
        message: &[u8],
    ) -> Result<Arc<Description>, ProtocolError> {
        let mut messages = std::mem::take(&mut self.describing);
        messages.extend_from_slice(message);
        let mut description = Arc::new(Description::read(&messages)?);
        if let Some(kept) = statement.described().as_ref().and_then(|told| told.description())
            && kept.said().is_some()
            && kept.said() == description.said()
        {
            description = kept.clone();
        }
        if let Some(known) = self.prepared.peek_mut(&statement.id) {
            known.description = Some(description.clone());
        }
        Ok(description)
    }

    /// True when a text that is prepared here now may mean what it did not before, and does not elsewhere.
    pub(super) fn has_own_schema(&self) -> bool {
        self.changes_schema || self.hides || self.hides_for_now
    }

    /// True when what a text means here it means to all who prepare it.
    pub(super) fn speaks_for_all(&self) -> bool {
        !self.code_ran && !self.has_own_schema()
    }
}

impl fmt::Debug for PgServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PgServer")
            .field("key", &self.key)
            .field("tx", &self.tx)
            .field("expected", &self.expected.len())
            .field("prepared", &self.prepared.len())
            .finish_non_exhaustive()
    }
}

impl ServerState for PgServer {
    fn tx(&self) -> Tx {
        self.tx
    }

    fn is_quiet(&self) -> bool {
        self.expected.is_empty() && self.owed == 0 && !self.batch_open && !self.skipping && !self.copy_in
    }

    fn owes_answer(&self) -> bool {
        !self.expected.is_empty()
    }

    fn is_request_under_way(&self) -> bool {
        Self::is_request_under_way(self)
    }

    fn must_retire(&self) -> bool {
        self.extra_ready || self.cut_short || self.goodbye.is_some()
    }

    fn take_forgot(&mut self) -> bool {
        std::mem::take(&mut self.forgot)
    }

    fn is_mid_message(&self) -> bool {
        self.owed > 0
    }

    fn has_told_error(&self) -> bool {
        self.failed
    }

    fn is_tainted(&self) -> bool {
        self.has_strange_names()
    }

    fn take_heard(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.heard)
    }

    fn key(&self) -> &ServerKey {
        &self.key
    }

    fn greeting(&self) -> Arc<Greeting> {
        self.greeting.clone()
    }

    fn absorb(&mut self, input: &mut Buffer) -> Result<Absorbed, ProtocolError> {
        loop {
            let bytes = input.filled();
            let Some(header) = Header::read(bytes)? else { return Ok(Absorbed::NeedBytes) };
            if header.body > MAX_HELD_BYTES {
                return Err(ProtocolError::BadLength { tag: char::from(header.tag), len: i32::MAX });
            }
            if bytes.len() < header.total() {
                input.reserve_total(header.total());
                return Ok(Absorbed::NeedBytes);
            }
            let body = &bytes[HEADER_BYTES..header.total()];
            let mut done = false;
            match header.tag {
                b'D' if self.absorbing.0.is_none() => self.absorbing.0 = Some(read_row(body)?),
                b'E' => {
                    let fields = ErrorFields::read(body);
                    self.absorbing.1.get_or_insert(format!("{} {}", fields.code, fields.message));
                }
                b'Z' => {
                    self.tx = read_status(body)?;
                    done = true;
                }
                b'S' => {
                    if let Ok((name, value)) = read_parameter(body) {
                        self.note_parameter(name, value);
                    }
                }
                b'A' => self.heard.extend_from_slice(&bytes[..header.total()]),
                b'G' | b'H' | b'W' => return Err(ProtocolError::Unexpected(char::from(header.tag))),
                _ => {}
            }
            input.consume(header.total());
            if done {
                let (row, error) = std::mem::take(&mut self.absorbing);
                return Ok(Absorbed::Done { row: row.unwrap_or_default(), error });
            }
        }
    }

    fn absorb_idle(&mut self, input: &mut Buffer) -> Result<(), ProtocolError> {
        loop {
            let bytes = input.filled();
            match Header::read(bytes)? {
                Some(h) if matches!(h.tag, b'N' | b'A') && h.body <= MAX_HELD_BYTES => {
                    if bytes.len() < h.total() {
                        input.reserve_total(h.total());
                        return Ok(());
                    }
                    if h.tag == b'A' {
                        self.heard.extend_from_slice(&bytes[..h.total()]);
                    }
                    input.consume(h.total());
                }
                Some(h) => return Err(ProtocolError::Unexpected(char::from(h.tag))),
                None => return Ok(()),
            }
        }
    }
}

/// How a server with that greeting reads text.
pub(super) fn greeting_mode(greeting: &[u8]) -> LexMode {
    let mut mode = LexMode::default();
    for (name, value) in greeted(greeting) {
        note_parameter(&mut mode, name, value);
    }
    mode
}

/// Names and values of the ParameterStatus messages in a greeting.
fn greeted(mut greeting: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    let messages = std::iter::from_fn(move || {
        let header = Header::read(greeting).ok()??;
        let body = greeting.get(HEADER_BYTES..header.total())?;
        greeting = &greeting[header.total()..];
        Some(body)
    });
    messages.filter_map(|body| read_parameter(body).ok())
}

/// True when a server with that greeting sends text as UTF-8.
pub(super) fn greets_in_utf8(greeting: &[u8]) -> bool {
    greeted(greeting)
        .find(|(name, _)| *name == b"client_encoding")
        .is_some_and(|(_, value)| is_utf8(value, greeting))
}

/// True when text comes as UTF-8 with that `client_encoding`. With `SQL_ASCII` it comes as the database has it.
fn is_utf8(client_encoding: &[u8], greeting: &[u8]) -> bool {
    client_encoding == b"UTF8"
        || client_encoding == b"SQL_ASCII"
            && greeted(greeting).any(|known| known == (b"server_encoding", b"UTF8"))
}

/// Takes over a ParameterStatus that concerns how text is read.
fn note_parameter(mode: &mut LexMode, name: &[u8], value: &[u8]) {
    match name {
        b"standard_conforming_strings" => mode.standard_conforming_strings = value != b"off",
        b"client_encoding" => {
            let encoding = String::from_utf8_lossy(value);
            mode.ascii_safe_encoding = LexMode::from_params("on", &encoding).ascii_safe_encoding;
        }
        _ => {}
    }
}

/// Reads a ReadyForQuery body.
pub(super) fn read_status(body: &[u8]) -> Result<Tx, ProtocolError> {
    match body {
        b"I" => Ok(Tx::Idle),
        b"T" => Ok(Tx::Open),
        b"E" => Ok(Tx::Failed),
        _ => Err(ProtocolError::Malformed("ReadyForQuery")),
    }
}

/// Reads a ParameterStatus body: name and value.
pub(super) fn read_parameter(body: &[u8]) -> Result<(&[u8], &[u8]), ProtocolError> {
    cstr(body)
        .and_then(|(name, rest)| Some((name, cstr(rest)?.0)))
        .ok_or(ProtocolError::Malformed("ParameterStatus"))
}

/// Reads a DataRow of text columns; NULL becomes empty.
fn read_row(body: &[u8]) -> Result<Vec<String>, ProtocolError> {
    let malformed = || ProtocolError::Malformed("DataRow");
    let (count, mut rest) = body.split_first_chunk::<2>().ok_or_else(malformed)?;
    let mut row = Vec::new();
    for _ in 0..u16::from_be_bytes(*count) {
        let (len, after) = rest.split_first_chunk::<4>().ok_or_else(malformed)?;
        let len = usize::try_from(i32::from_be_bytes(*len)).unwrap_or(0);
        let (value, after) = after.split_at_checked(len).ok_or_else(malformed)?;
        row.push(String::from_utf8_lossy(value).into_owned());
        rest = after;
    }
    Ok(row)
}
