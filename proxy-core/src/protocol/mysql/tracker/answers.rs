//! What a server answers, packet by packet.

use std::sync::Arc;

use super::{
    super::{
        super::{Outcome, PinReason, ProtocolError, ServerEvent},
        codec::{
            self, Capabilities, EofPacket, ErrPacket, HEADER_BYTES, Header, OkPacket, Reader, SessionChange,
            Status,
        },
        query::ResultHeader,
        server::{Definitions, MyServer, Reply, Stage},
        statement::{Prepared, Statement, Types},
    },
    MyTracker,
    changes::told_changes,
    prepared::UNKNOWN_STATEMENT,
};
use crate::buffer::Pipe;

pub(super) fn too_long(first: u8) -> ProtocolError {
    ProtocolError::BadLength { tag: char::from(first), len: i32::MAX }
}

/// What a status says of `sql_mode`.
const OF_MODES: Status = Status(Status::NO_BACKSLASH_ESCAPES.0 | Status::ANSI_QUOTES.0);

/// What a status says of the result that it ends and of no other. An older client that is told of a cursor again expects
/// no rows.
pub(super) const OF_ONE_RESULT: Status = Status(
    Status::MORE_RESULTS.0
        | Status::NO_GOOD_INDEX.0
        | Status::NO_INDEX.0
        | Status::CURSOR_EXISTS.0
        | Status::LAST_ROW_SENT.0
        | Status::DB_DROPPED.0
        | Status::METADATA_CHANGED.0
        | Status::QUERY_WAS_SLOW.0
        | Status::PS_OUT_PARAMS.0
        | Status::SESSION_STATE_CHANGED.0,
);

impl MyTracker {
    /// The end of a result, as this client expects it.
    pub(super) fn write_end(&self, end: &OkPacket<'_>, seq: u8, out: &mut Vec<u8>) {
        if self.agreed.contains(Capabilities::DEPRECATE_EOF) {
            end.write(codec::EOF, seq, self.agreed, out);
        } else {
            EofPacket { warnings: end.warnings, status: end.status }.write(seq, self.agreed, out);
        }
    }

    pub(super) fn legacy(&self) -> bool {
        !self.agreed.contains(Capabilities::DEPRECATE_EOF)
    }

    /// Moves the packet at the front, or as much of it as has come. Its sequence number becomes the client's.
    pub(super) fn relay(&self, down: &mut Pipe, server: &mut MyServer, header: Header, kept: bool) {
        server.seq = Some(header.seq);
        if header.continues() {
            server.continues = Some(kept);
        }
        let now = header.total().min(down.unread().len());
        if kept {
            if server.shift != 0 {
                down.patch(HEADER_BYTES - 1, header.seq.wrapping_add(server.shift));
            }
            down.pass(now);
        } else {
            down.skip(now);
        }
        server.owed = header.total() - now;
        server.owed_kept = kept;
    }

    /// Column definitions are through: what older clients expect there, before the server's packet of this number.
    pub(super) fn end_columns(&self, down: &mut Pipe, server: &mut MyServer, seq: u8, kept: bool) {
        if kept && self.legacy() && server.agreed.contains(Capabilities::DEPRECATE_EOF) {
            let eof = EofPacket { warnings: 0, status: self.status };
            eof.write(seq.wrapping_add(server.shift), self.agreed, down.output());
            server.shift = server.shift.wrapping_add(1);
        }
    }

    /// A packet that is read whole: the beginning or the end of an answer, or of a part of it.
    pub(super) fn on_packet(
        &mut self,
        body: &[u8],
        header: Header,
        kept: bool,
        down: &mut Pipe,
        server: &mut MyServer,
    ) -> Result<Option<ServerEvent>, ProtocolError> {
        let first = body.first().copied().unwrap_or_default();
        if first == codec::ERR {
            let error = ErrPacket::read(body)?;
            self.relay(down, server, header, kept);
            if kept {
                server.end_cursor();
            }
            let head = server.pop();
            server.note_error(error.code, head.as_ref().is_none_or(|head| head.moves_transaction));
            if !kept {
                server.owners.note_own_diagnostics();
                match head.map(|head| head.reply) {
                    // The client will be told in place of what it wants to run.
                    Some(Reply::Prepared(statement)) => {
                        self.unprepared = Some(Box::new((statement.id, error)))
                    }
                    Some(Reply::Named(name, _)) => {
                        server.forget_named(&name);
                        self.held.note_unprepared(&name, error);
                    }
                    // They may be held still.
                    Some(Reply::Locks) => return Ok(self.asked()),
                    // What we asked for ourselves has not come about; nobody may rely on this connection.
                    Some(Reply::Begin(deferred)) => {
                        self.deferred = Some(deferred);
                        self.unbegun = Some(Box::new(error));
                    }
                    _ => server.set_retire(),
                }
                return Ok(None);
            }
            self.running = None;
            self.note_outcome(Some(error.sqlstate.into()), 0);
            // There is nothing that `EXECUTE` could have run.
            let nothing_ran = error.code == UNKNOWN_STATEMENT && !self.may_have_named;
            if nothing_ran {
                self.explains.taints = false;
                self.explains.nature.taints = false;
            }
            self.note_left(true, false, server);
            self.settle(true, server);
            return Ok(self.or_later(ServerEvent::Answered { failed: true, nothing_ran }, server));
        }
        match (server.stage, server.head().map(|head| &head.reply)) {
            (_, Some(Reply::Line)) => {
                self.relay(down, server, header, kept);
                server.pop();
                Ok(kept.then(|| {
                    self.note_outcome(None, 0);
                    ServerEvent::Answered { failed: false, nothing_ran: false }
                }))
            }
            (Stage::Start, Some(Reply::Prepared(statement))) => {
                let statement = statement.clone();
                self.prepared(&statement, body, header, kept, down, server)
            }
            (Stage::Parameters(parameters, columns), _) => {
                self.relay(down, server, header, kept);
                server.stage = match parameters {
                    2.. => Stage::Parameters(parameters - 1, columns),
                    _ if server.agreed.contains(Capabilities::DEPRECATE_EOF) => {
                        self.end_columns(down, server, header.seq.wrapping_add(1), kept);
                        Stage::PreparedColumns(columns)
                    }
                    _ => Stage::ParametersEnd(columns),
                };
                Ok(self.prepared_is_over(server, kept))
            }
            (Stage::ParametersEnd(columns), _) => {
                self.pass_eof(down, server, header, kept);
                server.stage = Stage::PreparedColumns(columns);
                Ok(self.prepared_is_over(server, kept))
            }
            (Stage::PreparedColumns(columns), _) => {
                if server.caches_metadata {
                    self.define(down.unread().get(..header.total()).unwrap_or_default());
                }
                self.relay(down, server, header, kept);
                server.stage = match columns {
                    2.. => Stage::PreparedColumns(columns - 1),
                    _ if server.agreed.contains(Capabilities::DEPRECATE_EOF) => {
                        self.end_columns(down, server, header.seq.wrapping_add(1), kept);
                        Stage::PreparedColumns(0)
                    }
                    _ => Stage::PreparedColumnsEnd,
                };
                Ok(self.prepared_is_over(server, kept))
            }
            (Stage::PreparedColumnsEnd, _) => {
                self.pass_eof(down, server, header, kept);
                server.stage = Stage::PreparedColumns(0);
                Ok(self.prepared_is_over(server, kept))
            }
            (Stage::ColumnsEnd, _) => {
                let EofPacket { status, .. } = EofPacket::read(body, server.agreed)?;
                // With a cursor there are no rows, and no further end.
                if status.contains(Status::CURSOR_EXISTS) {
                    let end = OkPacket { status, ..OkPacket::default() };
                    if kept && !self.legacy() {
                        server.seq = Some(header.seq);
                        down.skip(header.total());
                        self.write_end(&end, header.seq.wrapping_add(server.shift), down.output());
                    } else {
                        self.relay(down, server, header, kept);
                    }
                    server.note_status(status);
                    return Ok(self.over(server, kept, &end));
                }
                self.pass_eof(down, server, header, kept);
                server.stage = Stage::Rows;
                Ok(None)
            }
            (Stage::Start, _) if first == codec::LOCAL_INFILE => {
                // Nobody sends files who has not said so at the login.
                if !kept || !server.agreed.contains(Capabilities::LOCAL_FILES) {
                    return Err(ProtocolError::Unexpected('\u{fb}'));
                }
                self.relay(down, server, header, kept);
                server.stage = Stage::Infile;
                Ok(None)
            }
            (Stage::Start, Some(Reply::Results | Reply::Locks))
                if !matches!(first, codec::OK | codec::EOF) =>
            {
                let result = ResultHeader::read(body)?;
                if kept {
                    // RETURNING
                    self.explains.nature.hides_ids |= self.explains.nature.writes;
                }
                self.definitions.clear();
                server.stage = server.after_header(result);
                let left_out = match self.running {
                    Some(id) if kept && !result.has_metadata => self.left_out(id, server),
                    _ => None,
                };
                match left_out {
                    Some(columns) => {
                        down.patch(HEADER_BYTES + body.len() - 1, 1);
                        self.relay(down, server, header, kept);
                        self.insert(&columns, result.columns, header, down, server);
                    }
                    None => self.relay(down, server, header, kept),
                }
                Ok(None)
            }
            _ => self.end(body, header, kept, down, server),
        }
    }

    /// An EOF from a server of the old kind, to a client that may be of the new.
    pub(super) fn pass_eof(&self, down: &mut Pipe, server: &mut MyServer, header: Header, kept: bool) {
        if kept && !self.legacy() {
            server.seq = Some(header.seq);
            down.skip(header.total());
            server.shift = server.shift.wrapping_sub(1);
        } else {
            self.relay(down, server, header, kept);
        }
    }

    /// COM_STMT_PREPARE's OK. Shape: `0x00 | statement: u32 | columns: u16 | parameters: u16 | 0x00 | warnings: u16 |
    /// [definitions follow: u8]`, the last with `OPTIONAL_RESULTSET_METADATA` only.
    pub(super) fn prepared(
        &mut self,
        statement: &Arc<Statement>,
        body: &[u8],
        header: Header,
        kept: bool,
        down: &mut Pipe,
        server: &mut MyServer,
    ) -> Result<Option<ServerEvent>, ProtocolError> {
        let mut reader = Reader::new(body);
        let parts = (reader.u8(), reader.u32(), reader.u16(), reader.u16());
        let (Some(codec::OK), Some(id), Some(columns), Some(parameters)) = parts else {
            return Err(ProtocolError::Malformed("COM_STMT_PREPARE answer"));
        };
        let (_filler, warnings) = (reader.u8(), reader.u16());
        self.prepared_warnings = warnings.is_some_and(|warnings| warnings > 0);
        let left_out =
            server.agreed.contains(Capabilities::OPTIONAL_RESULTSET_METADATA) && reader.u8() == Some(0);
        server.put_prepared(statement, id);
        self.definitions.clear();
        if kept {
            // Ids are never 0, and never the one that stands for the last statement.
            self.next_id = if self.next_id >= u32::MAX / 2 { 1 } else { self.next_id + 1 };
            while self.statements.contains_key(&self.next_id) {
                self.next_id += 1;
            }
            let statement = statement.clone();
            let prepared = Prepared { statement, parameters, types: Types::default(), columns: None };
            self.statements.insert(self.next_id, prepared);
            for (at, byte) in self.next_id.to_le_bytes().into_iter().enumerate() {
                down.patch(HEADER_BYTES + 1 + at, byte);
            }
        }
        self.relay(down, server, header, kept);
        server.stage = match (parameters, columns) {
            _ if left_out => Stage::PreparedColumns(0),
            (0, columns) => Stage::PreparedColumns(columns),
            (parameters, columns) => Stage::Parameters(parameters, columns),
        };
        Ok(self.prepared_is_over(server, kept))
    }

    pub(super) fn prepared_is_over(&mut self, server: &mut MyServer, kept: bool) -> Option<ServerEvent> {
        if server.stage != Stage::PreparedColumns(0) {
            return None;
        }
        let head = server.pop();
        match kept {
            true => self.left.note_prepared(self.prepared_warnings, server),
            false => server.owners.note_own_diagnostics(),
        }
        if server.caches_metadata
            && let Some(Reply::Prepared(statement)) = head.map(|head| head.reply)
        {
            self.defined(statement.id, kept.then_some(self.next_id), server);
        }
        kept.then_some(ServerEvent::Answered { failed: false, nothing_ran: false })
    }

    /// One more definition of a column, of a statement whose definitions are kept.
    pub(super) fn define(&mut self, packet: &[u8]) {
        let at = self.definitions.len() + HEADER_BYTES - 1;
        self.definitions.extend_from_slice(packet);
        // The same definition has another number in another answer.
        if let Some(seq) = self.definitions.get_mut(at) {
            *seq = 0;
        }
    }

    /// All definitions of `statement` have come to `server`, and to the client if it is one of its own.
    pub(super) fn defined(&mut self, statement: u64, client_id: Option<u32>, server: &mut MyServer) {
        let columns: Definitions = std::mem::take(&mut self.definitions).into();
        if let Some(prepared) = client_id.and_then(|id| self.statements.get_mut(&id)) {
            prepared.columns = Some(columns.clone());
        }
        if let Some(there) = server.prepared.get_mut(&statement) {
            there.columns = Some(columns);
        }
    }

    /// What `server` leaves out of the answer to the client's statement `id`, since it has told it before: what the
    /// client needs, if it was told otherwise elsewhere.
    pub(super) fn left_out(&mut self, id: u32, server: &mut MyServer) -> Option<Definitions> {
        let prepared = self.statements.get_mut(&id)?;
        let there = server.prepared.get(&prepared.statement.id)?.columns.clone()?;
        if prepared.columns.as_ref() == Some(&there) {
            return None;
        }
        prepared.columns = Some(there.clone());
        Some(there)
    }

    /// Puts `columns`, of which there are `count`, behind the first packet of a result.
    pub(super) fn insert(
        &self,
        columns: &[u8],
        count: u64,
        header: Header,
        down: &mut Pipe,
        server: &mut MyServer,
    ) {
        let mut rest = columns;
        let mut seq = header.seq.wrapping_add(server.shift);
        while let Some((one, body)) = Header::read(rest).and_then(|one| Some((one, rest.get(..one.total())?)))
        {
            seq = seq.wrapping_add(1);
            let at = down.output().len() + 3;
            down.output().extend_from_slice(body);
            if let Some(byte) = down.output().get_mut(at) {
                *byte = seq;
            }
            rest = rest.get(one.total()..).unwrap_or_default();
        }
        server.shift = server.shift.wrapping_add(count as u8);
    }

    /// The OK or EOF packet at the end of a result.
    pub(super) fn end(
        &mut self,
        body: &[u8],
        header: Header,
        kept: bool,
        down: &mut Pipe,
        server: &mut MyServer,
    ) -> Result<Option<ServerEvent>, ProtocolError> {
        let of_rows =
            server.stage != Stage::Start || !matches!(server.head().map(|h| &h.reply), Some(Reply::Results));
        let mut changes = Vec::new();
        let mode = server.mode;
        let end = server.read_end(body, |change| changes.push(change))?;
        let first = body.first().copied().unwrap_or_default();
        if kept {
            let put_back = self.explains.passing;
            if put_back {
                // The next answer tells what is again as it was.
                server.mode = mode;
                self.explains.state = true;
                changes.retain(|change| !matches!(change, SessionChange::Variable { .. }));
            }
            for change in &changes {
                self.learn(change);
            }
            let before = self.status;
            self.status = end.status.without(OF_ONE_RESULT);
            if put_back {
                self.status = self.status.without(OF_MODES) | Status(before.0 & OF_MODES.0);
            }
            self.mode = server.mode;
            let id = end.last_insert_id;
            self.left.note_result(id, &self.explains.nature, server);
            // A result with a cursor has no rows and, for older clients, one EOF only.
            let cursor = end.status.contains(Status::CURSOR_EXISTS) && server.stage == Stage::FirstRow;
            if server.stage == Stage::FirstRow && !cursor {
                self.end_columns(down, server, header.seq, kept);
            }
            let seq = header.seq.wrapping_add(server.shift);
            let as_it_is = if self.legacy() {
                first == codec::OK || !server.agreed.contains(Capabilities::DEPRECATE_EOF)
            } else {
                first == codec::OK || server.agreed.contains(Capabilities::DEPRECATE_EOF)
            };
            let hides = end.status.contains(Status::SESSION_STATE_CHANGED);
            let told = if hides && self.agreed.contains(Capabilities::SESSION_TRACK) {
                told_changes(&changes, self.asks)
            } else {
                Vec::new()
            };
            let end = OkPacket { session_state: &told, ..end };
            if as_it_is && !hides {
                self.relay(down, server, header, kept);
            } else {
                server.seq = Some(header.seq);
                down.skip(header.total());
                if first == codec::OK && !of_rows {
                    end.write(codec::OK, seq, self.agreed, down.output());
                } else {
                    self.write_end(&end, seq, down.output());
                }
            }
        } else {
            self.relay(down, server, header, kept);
        }
        let affected = if of_rows { 0 } else { end.affected_rows };
        if end.status.contains(Status::MORE_RESULTS) {
            server.stage = Stage::Start;
            self.rows += affected;
            return Ok(None);
        }
        let end = OkPacket {
            affected_rows: affected,
            status: end.status,
            warnings: end.warnings,
            ..OkPacket::default()
        };
        Ok(self.over(server, kept, &end))
    }

    /// The answer at the head is through.
    pub(super) fn over(
        &mut self,
        server: &mut MyServer,
        kept: bool,
        end: &OkPacket<'_>,
    ) -> Option<ServerEvent> {
        let head = server.pop();
        if !kept {
            match head.map(|head| head.reply) {
                Some(Reply::Named(name, id)) => {
                    server.put_named(&name, id);
                    server.owners.note_own_diagnostics();
                }
                Some(Reply::Locks) => {
                    if self.held.settle_locks() {
                        self.learned.ended.insert(PinReason::AdvisoryLock);
                    }
                    return self.asked();
                }
                _ => server.owners.note_own(),
            }
            return None;
        }
        let fetched = matches!(head.map(|head| head.reply), Some(Reply::Rows));
        if !end.status.contains(Status::CURSOR_EXISTS)
            && (!fetched || end.status.contains(Status::LAST_ROW_SENT))
        {
            server.end_cursor();
        }
        self.running = None;
        self.note_outcome(None, end.affected_rows);
        self.note_left(false, end.warnings > 0, server);
        self.settle(false, server);
        self.or_later(ServerEvent::Answered { failed: false, nothing_ran: false }, server)
    }

    /// A question of ours is answered, and with it the request before it.
    fn asked(&mut self) -> Option<ServerEvent> {
        let nothing_more = ServerEvent::Answered { failed: false, nothing_ran: false };
        Some(self.held_back.take().unwrap_or(nothing_more))
    }

    /// An answer to the client is over, once a question of ours that follows is answered.
    fn or_later(&mut self, event: ServerEvent, server: &mut MyServer) -> Option<ServerEvent> {
        if !matches!(server.head().map(|head| &head.reply), Some(Reply::Locks)) {
            return Some(event);
        }
        let failed = matches!(event, ServerEvent::Answered { failed: true, .. });
        server.owners.note_question(self.of_one_row && !failed);
        self.held.note_locked(true);
        self.held_back = Some(event);
        None
    }

    /// A statement of the client is over, and has left something for the next to ask.
    pub(super) fn note_left(&mut self, failed: bool, warnings: bool, server: &mut MyServer) {
        if self.left.note_over(&self.explains.nature, failed, warnings, server) {
            self.learned.pins.insert(PinReason::SessionFunction);
        }
    }

    pub(super) fn note_outcome(&mut self, error: Option<Box<str>>, affected: u64) {
        let rows = std::mem::take(&mut self.rows) + affected;
        if self.watch.outcomes {
            self.outcomes.push(Outcome { rows, error });
        }
    }
}
