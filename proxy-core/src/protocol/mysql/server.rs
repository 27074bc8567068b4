//! What is remembered of one MySQL or MariaDB server connection: what it still has to answer, and what is prepared
//! on it.

use std::{collections::VecDeque, fmt, sync::Arc};

use lru::LruCache;

use super::{
    super::{Absorbed, Greeting, ProtocolError, ServerKey, ServerState, Tx},
    classify::{Charset, LexMode},
    codec::{
        self, Capabilities, Command, EofPacket, ErrPacket, Extended, HEADER_BYTES, Header, OkPacket, Reader,
        SessionChange, Status, put_u24, session_state, write_packet,
    },
    handshake::{ServerLogin, TRACK, write_greeting},
    left::{self, Owners},
    query::{ResultHeader, write_query},
    statement::Statement,
    tracker::Deferred,
};
use crate::buffer::Buffer;

/// Longest packet that is held whole on the way from the server; rows and column definitions are not.
pub(super) const MAX_HELD_BYTES: usize = 1 << 20;

/// Finds one row, as `FOUND_ROWS()` has it on a new connection, and warns of nothing, so that nobody is told of another's
/// statements. Without a table it would leave the diagnostics as they are (MariaDB).
pub(super) const FORGET: &[u8] = b"SELECT 1 FROM (SELECT 1) AS one";

/// Errors that are found above the storage engine or are a duplicate key's: they undo their statement and nothing else.
/// In order: NULL where there may be none, no such column, duplicate key, syntax, another number of columns, no such
/// table, `sql_safe_updates`, no default, too long, parent and child of a foreign key, read-only transaction. Source:
/// MySQL Reference Manual, "InnoDB Error Handling".
const OF_ONE_STATEMENT: [u16; 12] = [1048, 1054, 1062, 1064, 1136, 1146, 1175, 1364, 1406, 1451, 1452, 1792];

/// What a request is answered with.
#[derive(Debug)]
pub(super) enum Reply {
    /// OK, ERR, EOF, or results.
    Results,
    /// One of the first three, to a command that is no statement.
    Command,
    /// OK or ERR, to a `BEGIN` that was answered before it was sent.
    Begin(Box<Deferred>),
    /// COM_STMT_PREPARE's OK and definitions.
    Prepared(Arc<Statement>),
    /// Column definitions up to an EOF.
    Fields,
    /// Rows of a cursor up to an EOF.
    Rows,
    /// One packet of text.
    Line,
    /// To a `PREPARE` of ours: the name, and the number of the statement that gets it.
    Named(Box<str>, u64),
    /// One row that says whether a session holds locks.
    Locks,
}

/// One request that the server has not answered.
#[derive(Debug)]
pub(super) struct Expect {
    pub(super) reply: Reply,
    /// The client gets nothing of the answer.
    pub(super) ours: bool,
    /// The statement may have begun or ended a transaction, even if it failed.
    pub(super) moves_transaction: bool,
}

/// Where in the answer at the head the server is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Stage {
    /// Its first packet, or that of a further result.
    #[default]
    Start,
    /// So many column definitions are to come.
    Columns(u64),
    /// The EOF after them, from a server without DEPRECATE_EOF.
    ColumnsEnd,
    /// The first row, or the end of a result without rows.
    FirstRow,
    /// More rows.
    Rows,
    /// Of a prepared statement: so many parameters, then so many columns.
    Parameters(u16, u16),
    /// The EOF after the parameters.
    ParametersEnd(u16),
    /// So many columns.
    PreparedColumns(u16),
    /// The EOF after them.
    PreparedColumnsEnd,
    /// The client sends a file.
    Infile,
}

/// A prepared statement as the server has it.
#[derive(Debug, Clone)]
pub(super) struct OnServer {
    /// The server's id.
    pub(super) id: u32,
    /// The server knows the types of its parameters.
    pub(super) typed: bool,
    /// The definitions it has sent last, where it may leave them out.
    pub(super) columns: Option<Definitions>,
}

/// Definitions of columns: packets as they came.
pub(super) type Definitions = Arc<[u8]>;

/// One server connection's state.
pub struct MyServer {
    key: ServerKey,
    greeting: Arc<Greeting>,
    pub(super) agreed: Capabilities,
    /// It leaves out definitions of columns that have not changed since it last sent them for a statement (MariaDB).
    pub(super) caches_metadata: bool,
    /// It reports what statements change of the session.
    pub(super) tracks: bool,
    /// MariaDB rather than MySQL.
    pub(super) is_mariadb: bool,
    /// Whose statement it ran last, and the like.
    pub(super) owners: Owners,
    /// Who has run statements since it was as after login.
    visitors: Visitors,
    /// Since then it has this number, which no other has.
    pub(super) life: u64,
    /// As last reported.
    pub(super) status: Status,
    /// How it reads text.
    pub(super) mode: LexMode,
    /// The last error left open whether there is a transaction.
    pub(super) doubtful: bool,
    /// The next transaction is not like others (`SET TRANSACTION`).
    characteristics: bool,
    /// A `SET STATEMENT` has run: the next answer that tells of any change tells, too, what is again as it was.
    pub(super) restores: bool,
    expected: VecDeque<Expect>,
    pub(super) stage: Stage,
    /// Bytes still to come of a packet that is passed on (or swallowed) as it comes.
    pub(super) owed: usize,
    pub(super) owed_kept: bool,
    /// The next packet goes on with the payload of the last, which the client gets, or not.
    pub(super) continues: Option<bool>,
    /// The client's next packet goes on with the piece of a file before it.
    pub(super) infile_continues: bool,
    /// What the client's sequence numbers are ahead of the server's in this answer.
    pub(super) shift: u8,
    /// The last sequence number of the answer at the head, by the server's count, or of the file that the client sends
    /// in between; `None` before there is one.
    pub(super) seq: Option<u8>,
    /// Statements prepared.
    pub(super) prepared: LruCache<u64, OnServer>,
    max_prepared: usize,
    /// Names that `PREPARE` has given, each with the number of its statement.
    named: Vec<(Box<str>, u64)>,
    /// Temporary tables that texts have made since the session was as after login; `None` when the server may not have
    /// counted as long.
    pub(super) made_tables: Option<u64>,
    /// The server's ids that nobody needs any more.
    pub(super) stale: Vec<u32>,
    /// Long data was sent for statements that have not run since.
    pub(super) long_data: Vec<u32>,
    /// Cursors that have more rows.
    pub(super) cursors: Vec<u32>,
    /// The server's id of the prepared statement that runs, or whose rows are fetched; 0, which is no id, for none.
    pub(super) running: u32,
    /// Several statements in one text are allowed.
    pub(super) multi_statements: bool,
    /// Statements that make a reset connection report its session again.
    rearm: Box<str>,
    /// The database after login; empty for none.
    schema: Box<[u8]>,
    pub(super) current_schema: Box<[u8]>,
    absorbing: Absorbing,
    retire: bool,
}

/// See [`MyServer::visit`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Visitors {
    Nobody,
    Only(u64),
    Several,
}

#[derive(Debug, Default)]
struct Absorbing {
    row: Option<Vec<String>>,
    error: Option<String>,
    /// Answers to come after this one.
    more: u32,
    /// They are those to a reset, which sees to it that the session has found what a new one has.
    resets: bool,
}

impl MyServer {
    /// A connection that has just been logged in, to `schema`, which is empty for none.
    #[must_use]
    pub fn new(login: &ServerLogin, schema: &[u8], max_prepared: usize) -> Self {
        let value = |at: usize| login.baseline.get(at).map_or("", |value| value);
        let (client, collation, sql_mode) = (value(0), value(3), value(4));
        let mut rearm = String::new();
        if login.tracks {
            rearm.push_str(TRACK);
        }
        // Servers reset these to their own defaults, and not to what was asked for at the login.
        if !client.is_empty() && !collation.is_empty() {
            rearm.push_str(if rearm.is_empty() { "SET " } else { ", " });
            rearm.push_str(&format!("NAMES '{client}' COLLATE '{collation}'"));
        }
        if sql_mode.contains("IGNORE_SPACE") {
            // It may come from the login's own flag.
            rearm.push_str(if rearm.is_empty() { "SET " } else { ", " });
            rearm.push_str(&format!("sql_mode = '{sql_mode}'"));
        }
        Self {
            key: ServerKey { id: login.connection_id, secret: Vec::new() },
            greeting: Arc::new(write_greeting(login)),
            agreed: login.capabilities,
            caches_metadata: login.extended.contains(Extended::CACHE_METADATA),
            tracks: login.tracks,
            is_mariadb: login.is_mariadb,
            owners: Owners::default(),
            visitors: Visitors::Nobody,
            life: left::number(),
            status: login.status,
            mode: LexMode::from_variables(sql_mode, client),
            doubtful: false,
            characteristics: false,
            restores: false,
            expected: VecDeque::new(),
            stage: Stage::Start,
            owed: 0,
            owed_kept: true,
            continues: None,
            infile_continues: false,
            shift: 0,
            seq: None,
            prepared: LruCache::unbounded(),
            max_prepared,
            named: Vec::new(),
            made_tables: Some(0),
            stale: Vec::new(),
            long_data: Vec::new(),
            cursors: Vec::new(),
            running: 0,
            multi_statements: login.capabilities.contains(Capabilities::MULTI_STATEMENTS),
            rearm: rearm.into(),
            current_schema: schema.into(),
            schema: schema.into(),
            absorbing: Absorbing::default(),
            retire: false,
        }
    }

    pub(super) fn expect(&mut self, reply: Reply, ours: bool, moves_transaction: bool) {
        self.expected.push_back(Expect { reply, ours, moves_transaction });
    }

    pub(super) fn head(&self) -> Option<&Expect> {
        self.expected.front()
    }

    pub(super) fn pop(&mut self) -> Option<Expect> {
        self.stage = Stage::Start;
        self.infile_continues = false;
        self.shift = 0;
        self.seq = None;
        self.expected.pop_front()
    }

    /// The sequence number that the client expects behind what it has of the answer at the head; `None` while it has
    /// nothing of it.
    pub(super) fn next_number(&self) -> Option<u8> {
        self.seq.map(|seq| seq.wrapping_add(self.shift).wrapping_add(1))
    }

    pub(super) fn expects_nothing(&self) -> bool {
        self.expected.is_empty()
    }

    /// Takes over what an OK or EOF packet says.
    pub(super) fn note_status(&mut self, status: Status) {
        self.status = status.without(Status::MORE_RESULTS | Status::SESSION_STATE_CHANGED);
        self.mode.no_backslash_escapes = status.contains(Status::NO_BACKSLASH_ESCAPES);
        self.doubtful = false;
    }

    /// An error says nothing of the transaction. Outside of one, a statement that does not concern itself with
    /// transactions has left none; in one, some errors undo no more than their statement.
    pub(super) fn note_error(&mut self, code: u16, moves_transaction: bool) {
        let inside = self.status.contains(Status::IN_TRANS);
        let outside = !inside && self.status.contains(Status::AUTOCOMMIT);
        let known = outside || (inside && OF_ONE_STATEMENT.contains(&code));
        self.doubtful = moves_transaction || !known;
    }

    /// Takes over changes of the session that concern the connection itself.
    pub(super) fn note_change(&mut self, change: &SessionChange<'_>) {
        match change {
            SessionChange::Characteristics(statements) => {
                self.characteristics = !statements.is_empty();
            }
            SessionChange::Variable { name: b"character_set_client", value } => {
                self.mode.charset = Charset::of(&String::from_utf8_lossy(value));
            }
            SessionChange::Variable { name: b"sql_mode", value } => {
                let mode = LexMode::from_variables(&String::from_utf8_lossy(value), "utf8mb4");
                self.mode.ansi_quotes = mode.ansi_quotes;
            }
            SessionChange::Schema(name) => self.current_schema = (*name).into(),
            _ => {}
        }
    }

    /// True when the server has said that the next transaction, or the one that is open, is not like others.
    pub(super) const fn has_characteristics(&self) -> bool {
        self.characteristics
    }

    /// Everything prepared is gone.
    pub(super) fn forget_statements(&mut self) {
        self.prepared.clear();
        self.named.clear();
        self.stale.clear();
        self.long_data.clear();
        self.cursors.clear();
    }

    /// A statement has this id on the server; what had to go for it goes.
    pub(super) fn put_prepared(&mut self, statement: &Statement, id: u32) {
        if let Some(before) = self.prepared.put(statement.id, OnServer { id, typed: false, columns: None }) {
            self.stale.push(before.id);
        }
        while self.prepared.len() > self.max_prepared.max(1) {
            // One with a cursor or with long data would lose them.
            let unused =
                |there: &OnServer| !self.cursors.contains(&there.id) && !self.long_data.contains(&there.id);
            let oldest = self.prepared.iter().rev().find(|(_, there)| unused(there)).map(|(key, _)| *key);
            let Some(evicted) =
                oldest.filter(|key| *key != statement.id).and_then(|key| self.prepared.pop(&key))
            else {
                break;
            };
            self.stale.push(evicted.id);
        }
    }

    /// The statement of this number is the one that `name` stands for.
    pub(super) fn put_named(&mut self, name: &str, id: u64) {
        self.forget_named(name);
        self.named.push((name.into(), id));
    }

    /// `name` stands for nothing any more.
    pub(super) fn forget_named(&mut self, name: &str) {
        self.named.retain(|(known, _)| **known != *name);
    }

    /// True while a name stands for the statement of this number.
    pub(super) fn has_named(&self, id: u64) -> bool {
        self.named.iter().any(|(_, known)| *known == id)
    }

    /// Takes out all names but those that are to be kept.
    pub(super) fn named_but(&mut self, kept: impl Fn(&str, u64) -> bool) -> Vec<Box<str>> {
        let gone = self.named.extract_if(.., |(name, id)| !kept(name, *id));
        gone.map(|(name, _)| name).collect()
    }

    /// Closes what nobody needs any more. The server says nothing to that.
    pub(super) fn write_closes(&mut self, out: &mut Vec<u8>) {
        for id in self.stale.drain(..) {
            write_command(out, Command::StmtClose, &id.to_le_bytes());
        }
    }

    /// Puts the session back to what it was after login; as many answers come as is returned.
    pub(super) fn write_reset(&mut self, out: &mut Vec<u8>) -> u32 {
        self.forget_statements();
        self.owners = Owners::default();
        self.visitors = Visitors::Nobody;
        self.life = left::number();
        self.made_tables = Some(0);
        self.characteristics = false;
        self.restores = false;
        let mut answers = 2;
        write_command(out, Command::ResetConnection, &[]);
        // It leaves these as they were (MariaDB).
        write_query(FORGET, self.agreed, out);
        if !self.rearm.is_empty() {
            write_query(self.rearm.as_bytes(), self.agreed, out);
            answers += 1;
        }
        if self.current_schema != self.schema {
            if self.schema.is_empty() {
                // Nothing short of a new login leaves a database for none.
                self.retire = true;
            } else {
                write_command(out, Command::InitDb, &self.schema.clone());
                answers += 1;
            }
        }
        answers
    }

    /// So many answers follow on what was just written, for [`ServerState::absorb`].
    pub(super) fn absorb_answers(&mut self, answers: u32) {
        self.absorbing.more = answers.saturating_sub(1);
        self.absorbing.resets = true;
    }

    /// Where an answer is after the first packet of a result.
    pub(super) fn after_header(&self, header: ResultHeader) -> Stage {
        match (header.has_metadata, self.agreed.contains(Capabilities::DEPRECATE_EOF)) {
            (true, _) => Stage::Columns(header.columns),
            (false, true) => Stage::FirstRow,
            (false, false) => Stage::ColumnsEnd,
        }
    }

    /// Client `number` runs a statement. True when others have been here before it.
    pub(super) fn visit(&mut self, number: u64) -> bool {
        self.visitors = match self.visitors {
            Visitors::Nobody => Visitors::Only(number),
            Visitors::Only(one) if one == number => Visitors::Only(one),
            Visitors::Only(_) | Visitors::Several => Visitors::Several,
        };
        self.visitors == Visitors::Several
    }

    /// Others than the client that runs a statement have been here.
    pub(super) fn had_others(&self) -> bool {
        self.visitors == Visitors::Several
    }

    /// Something of ours went wrong here.
    pub(super) fn set_retire(&mut self) {
        self.retire = true;
    }

    /// The statement under way has no cursor, or has none any more.
    pub(super) fn end_cursor(&mut self) {
        let id = self.running;
        self.cursors.retain(|open| *open != id);
    }
}

/// Appends a command, the first packet of an exchange.
pub(super) fn write_command(out: &mut Vec<u8>, command: Command, body: &[u8]) {
    write_packet(out, 0, |packet| {
        packet.push(command as u8);
        packet.extend_from_slice(body);
    });
}

/// Appends only the front of a command whose body is `len` bytes long and follows.
pub(super) fn write_front(out: &mut Vec<u8>, len: usize, front: &[u8]) {
    put_u24(out, len);
    out.push(0);
    out.extend_from_slice(front);
}

impl fmt::Debug for MyServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MyServer")
            .field("key", &self.key)
            .field("status", &self.status)
            .field("expected", &self.expected.len())
            .field("stage", &self.stage)
            .field("prepared", &self.prepared.len())
            .finish_non_exhaustive()
    }
}

impl ServerState for MyServer {
    fn tx(&self) -> Tx {
        let open = self.status.contains(Status::IN_TRANS) || self.characteristics || self.doubtful;
        if open { Tx::Open } else { Tx::Idle }
    }

    fn is_quiet(&self) -> bool {
        self.expected.is_empty()
            && self.owed == 0
            && self.continues.is_none()
            && self.long_data.is_empty()
            && self.cursors.is_empty()
    }

    fn owes_answer(&self) -> bool {
        !self.expected.is_empty()
    }

    fn is_request_under_way(&self) -> bool {
        self.expected.iter().any(|expect| !expect.ours)
    }

    fn must_retire(&self) -> bool {
        self.retire
    }

    fn take_forgot(&mut self) -> bool {
        false
    }

    fn is_mid_message(&self) -> bool {
        // Who sends a file does not listen before its end.
        (self.owed > 0 && self.owed_kept) || self.continues == Some(true) || self.stage == Stage::Infile
    }

    fn has_told_error(&self) -> bool {
        false
    }

    fn is_tainted(&self) -> bool {
        false
    }

    fn key(&self) -> &ServerKey {
        &self.key
    }

    fn greeting(&self) -> Arc<Greeting> {
        self.greeting.clone()
    }

    fn absorb(&mut self, input: &mut Buffer) -> Result<Absorbed, ProtocolError> {
        self.owners.note_own();
        loop {
            let bytes = input.filled();
            let Some((header, body)) = codec::whole_packet(bytes, MAX_HELD_BYTES)? else {
                if let Some(header) = Header::read(bytes) {
                    input.reserve_total(header.total());
                }
                return Ok(Absorbed::NeedBytes);
            };
            let more = self.absorb_packet(body)?;
            input.consume(HEADER_BYTES + header.len);
            if !more {
                self.stage = Stage::Start;
                if self.absorbing.more > 0 {
                    self.absorbing.more -= 1;
                    continue;
                }
                let Absorbing { row, error, .. } = std::mem::take(&mut self.absorbing);
                return Ok(Absorbed::Done { row: row.unwrap_or_default(), error });
            }
        }
    }

    fn absorb_idle(&mut self, input: &mut Buffer) -> Result<(), ProtocolError> {
        // A server says nothing unasked but goodbye.
        if input.is_empty() { Ok(()) } else { Err(ProtocolError::Malformed("unasked")) }
    }
}

impl MyServer {
    /// One packet of the answer to a statement of our own; false at its end.
    fn absorb_packet(&mut self, body: &[u8]) -> Result<bool, ProtocolError> {
        let &first = body.first().ok_or(ProtocolError::Malformed("answer"))?;
        let deprecated = self.agreed.contains(Capabilities::DEPRECATE_EOF);
        Ok(match (self.stage, first) {
            (_, codec::ERR) => {
                let error = ErrPacket::read(body)?;
                self.absorbing.error.get_or_insert_with(|| format!("{} {}", error.code, error.message));
                self.owners.note_absorbed(true);
                self.note_error(error.code, true);
                false
            }
            (Stage::Start, codec::OK) => self.absorb_end(body)?,
            (Stage::Start, codec::EOF) => self.absorb_end(body)?,
            (Stage::Start, codec::LOCAL_INFILE) => return Err(ProtocolError::Unexpected('\u{fb}')),
            (Stage::Start, _) => {
                if !self.absorbing.resets {
                    self.owners.note_own_query();
                }
                self.stage = self.after_header(ResultHeader::read(body)?);
                true
            }
            (Stage::Columns(left), _) => {
                self.stage = match left {
                    2.. => Stage::Columns(left - 1),
                    _ if deprecated => Stage::Rows,
                    _ => Stage::ColumnsEnd,
                };
                true
            }
            (Stage::ColumnsEnd, codec::EOF) => {
                self.stage = Stage::Rows;
                true
            }
            (Stage::FirstRow | Stage::Rows, codec::EOF) => self.absorb_end(body)?,
            (Stage::FirstRow | Stage::Rows, _) => {
                if self.absorbing.row.is_none() {
                    let mut reader = Reader::new(body);
                    let mut row = Vec::new();
                    while !reader.is_empty() {
                        let column = reader.column().ok_or(ProtocolError::Malformed("row"))?;
                        row.push(column.map(String::from_utf8_lossy).unwrap_or_default().into_owned());
                    }
                    self.absorbing.row = Some(row);
                }
                true
            }
            _ => return Err(ProtocolError::Unexpected(char::from(first))),
        })
    }

    fn absorb_end(&mut self, body: &[u8]) -> Result<bool, ProtocolError> {
        let OkPacket { status, warnings, .. } = self.read_end(body, |_| {})?;
        self.owners.note_absorbed(warnings > 0);
        self.stage = Stage::Start;
        Ok(status.contains(Status::MORE_RESULTS))
    }

    /// Reads the OK or EOF packet at the end of a result, takes over what it says, and shows `visit` what it says of
    /// the session.
    pub(super) fn read_end<'a>(
        &mut self,
        body: &'a [u8],
        mut visit: impl FnMut(SessionChange<'a>),
    ) -> Result<OkPacket<'a>, ProtocolError> {
        let legacy = !self.agreed.contains(Capabilities::DEPRECATE_EOF);
        let first = body.first().copied().unwrap_or_default();
        let packet = if legacy && EofPacket::is(first, body.len()) {
            let EofPacket { warnings, status } = EofPacket::read(body, self.agreed)?;
            OkPacket { warnings, status, ..OkPacket::default() }
        } else if EofPacket::is(first, body.len()) && body.len() < 7 {
            // What has no OK packet in any version: `COM_SET_OPTION`, `COM_DEBUG`.
            let EofPacket { warnings, status } = EofPacket::read(body, self.agreed)?;
            OkPacket { warnings, status, ..OkPacket::default() }
        } else {
            OkPacket::read(body, self.agreed)?
        };
        self.note_status(packet.status);
        self.restores &= !packet.status.contains(Status::SESSION_STATE_CHANGED);
        for change in session_state(packet.session_state) {
            let change = change?;
            self.note_change(&change);
            visit(change);
        }
        Ok(packet)
    }
}
