//! Prepared statements: a client's id stands for a text, which is prepared wherever the session is served next.

use std::sync::Arc;

use super::{
    super::{
        super::{ClientEvent, Facts, PinReason, ProtocolError, Statement as Submitted},
        Shared,
        codec::{self, Command, HEADER_BYTES, Header},
        parameters::Front,
        server::{MyServer, OnServer, Reply, write_command, write_front},
        statement::{Prepared, Statement, Types},
    },
    MAX_TEXT_BYTES, MyTracker, Text,
    changes::Explained,
    held::Names,
    submitted,
};
use crate::buffer::Pipe;

/// Statements of one client that are prepared at a time.
pub(super) const MAX_STATEMENTS: usize = 16 * 1024;

/// What a client says in place of an id for the statement it has prepared last (MariaDB).
pub(super) const LAST_PREPARED: u32 = u32::MAX;

/// The flag of an execution that asks for a cursor.
pub(super) const CURSOR_TYPES: u8 = 0x07;

/// ER_UNKNOWN_STMT_HANDLER.
pub(super) const UNKNOWN_STATEMENT: u16 = 1243;

impl MyTracker {
    pub(super) fn prepare(
        &mut self,
        header: Header,
        shared: &Shared,
        up: &mut Pipe,
        server: Option<&mut MyServer>,
        down: &mut Pipe,
    ) -> Result<Option<ClientEvent>, ProtocolError> {
        if header.len > MAX_TEXT_BYTES {
            self.fail(
                1105,
                "HY000",
                "The statement is too long to be prepared through this proxy",
                up,
                header,
                down,
            );
            return Ok(None);
        }
        if up.unread().len() < header.total() {
            up.expect(header.total());
            return Ok(Some(ClientEvent::NeedBytes));
        }
        if self.statements.len() >= MAX_STATEMENTS {
            self.fail(1461, "42000", "Can't create more prepared statements", up, header, down);
            return Ok(None);
        }
        let text = Self::packet(up, header).get(1..).unwrap_or_default();
        if self.current.is_none() && self.watch.prepares {
            let (statement, details) = self.read_text(shared, text);
            let statement = Submitted { prepares: true, ..statement };
            return Ok(Some(self.report((statement, details), Text::Front(1))));
        }
        if self.watch.prepares && self.admitted().is_none() {
            return Ok(Some(ClientEvent::NeedBytes));
        }
        let Some(server) = server else {
            return Ok(Some(ClientEvent::NeedServer));
        };
        server.write_closes(up.output());
        let rewritten = match self.current.take().map(|current| current.text) {
            Some(Text::Rewritten(text)) => Some(text),
            _ => None,
        };
        let text = Self::packet(up, header).get(1..).unwrap_or_default();
        let known = shared.classifier.facts(rewritten.as_deref().unwrap_or(text), self.mode);
        let text = rewritten.as_deref().unwrap_or(text);
        let mut known = known;
        let mut facts = Facts::clone(&known.facts);
        facts.rds_pins.insert(PinReason::PreparedStatement);
        known.facts = Arc::new(facts);
        let statement = Arc::new(Statement::new(text, self.mode, known));
        match rewritten {
            Some(text) => {
                self.take_packet(up, header, false);
                write_command(up.output(), Command::StmtPrepare, &text);
                server.running = 0;
                server.expect(Reply::Prepared(statement), false, false);
            }
            None => self.pass_command(up, header, server, Reply::Prepared(statement), false),
        }
        Ok(None)
    }

    /// Reads the statement id at the front of a command; `Err` is what comes of one that is too short or unknown.
    pub(super) fn named(&self, up: &Pipe, header: Header) -> Result<Option<(u32, Prepared)>, ClientEvent> {
        let front = HEADER_BYTES + 5;
        if header.len < 5 {
            return Ok(None);
        }
        let Some(id) = up.unread().get(HEADER_BYTES + 1..front).and_then(|bytes| bytes.first_chunk()) else {
            return Err(ClientEvent::NeedBytes);
        };
        let id = match u32::from_le_bytes(*id) {
            LAST_PREPARED => self.next_id,
            id => id,
        };
        Ok(self.statements.get(&id).map(|prepared| (id, prepared.clone())))
    }

    pub(super) fn unknown(&mut self, command: &str, up: &mut Pipe, header: Header, down: &mut Pipe) {
        let id = up.unread().get(HEADER_BYTES + 1..HEADER_BYTES + header.len.min(5));
        let id = id.and_then(|bytes| bytes.first_chunk()).map_or(0, |bytes| u32::from_le_bytes(*bytes));
        let message = format!("Unknown prepared statement handler ({id}) given to {command}");
        self.fail(1243, "HY000", &message, up, header, down);
    }

    /// Has the statement prepared on `server` in order to be used there; `None` while it is not.
    pub(super) fn on_server_as(
        statement: &Arc<Statement>,
        server: &mut MyServer,
        up: &mut Pipe,
    ) -> Option<OnServer> {
        if let Some(there) = server.prepared.get(&statement.id) {
            return Some(there.clone());
        }
        if server.expects_nothing() {
            server.write_closes(up.output());
            write_command(up.output(), Command::StmtPrepare, &statement.text);
            server.expect(Reply::Prepared(statement.clone()), true, false);
        }
        None
    }

    pub(super) fn execute(
        &mut self,
        command: Command,
        header: Header,
        shared: &Shared,
        up: &mut Pipe,
        server: Option<&mut MyServer>,
        down: &mut Pipe,
    ) -> Result<Option<ClientEvent>, ProtocolError> {
        let (client_id, prepared) = match self.named(up, header) {
            Ok(Some(named)) => named,
            Ok(None) => {
                self.unknown("mysqld_stmt_execute", up, header, down);
                return Ok(None);
            }
            Err(event) => return Ok(Some(event)),
        };
        let statement = prepared.statement.clone();
        if self.current.is_none() {
            let known = (
                submitted(statement.facts.clone(), statement.digest, statement.text.len()),
                statement.details.clone(),
            );
            return Ok(Some(self.report(known, Text::Of(statement))));
        }
        let Some((facts, details)) = self.admitted() else { return Ok(Some(ClientEvent::NeedBytes)) };
        let Some(server) = server else {
            return Ok(Some(ClientEvent::NeedServer));
        };
        if let Some((code, sqlstate, message)) = self.stopped(&facts) {
            self.aborted &= !facts.ends_transaction;
            Self::drop_what_waits(&statement, server, up);
            self.fail(code, sqlstate, message, up, header, down);
            return Ok(None);
        }
        if matches!(self.bring_names(&facts, &details, None, up, server), Names::Wait) {
            return Ok(Some(ClientEvent::NeedAnswer));
        }
        self.aborted = false;
        if details.kill.is_some() {
            let message = "This proxy does not follow KILL in a prepared statement";
            self.fail(1235, "42000", message, up, header, down);
            return Ok(None);
        }
        let bulk = command == Command::StmtBulkExecute;
        let so_far = up.unread().get(HEADER_BYTES..).unwrap_or_default();
        let so_far = so_far.get(..header.len).unwrap_or(so_far);
        let front = Front::read(so_far, prepared.parameters, bulk, self.agreed);
        if front.is_none() && so_far.len() < header.len.min(MAX_TEXT_BYTES) {
            let next = (2 * so_far.len()).max(256).min(header.len);
            up.expect(HEADER_BYTES + next);
            return Ok(Some(ClientEvent::NeedBytes));
        }
        let Some(front) = front else {
            Self::drop_what_waits(&statement, server, up);
            self.fail(1210, "HY000", "Incorrect arguments to mysqld_stmt_execute", up, header, down);
            return Ok(None);
        };
        if let Some(unprepared) = self.unprepared.take_if(|unprepared| unprepared.0 == statement.id) {
            let (_, error) = *unprepared;
            self.fail(error.code, &error.sqlstate, &error.message, up, header, down);
            return Ok(None);
        }
        let Some(there) = Self::on_server_as(&statement, server, up) else {
            return Ok(Some(ClientEvent::NeedAnswer));
        };
        // Once it is prepared, which leaves something itself.
        self.unset_variables(self.named_variables(&facts, &details, &statement.text), up, server);
        let nature = self.nature(&facts, &details, &statement.text);
        if !self.make_askable(&nature, shared, up, server) {
            self.fail_lost(up, header, down);
            return Ok(None);
        }
        let head = up.unread().get(HEADER_BYTES..HEADER_BYTES + front.types.end).unwrap_or_default();
        let mut head = head.to_vec();
        let flags = head.get(5).copied().unwrap_or_default();
        let taken = head.len();
        let mut typed = there.typed;
        if !front.types.is_empty() {
            if let Some(known) = self.statements.get_mut(&client_id) {
                let bytes = head.get(front.types.clone()).unwrap_or_default().into();
                known.types = Types { count: front.count, bytes };
            }
            typed = true;
        } else if let Some((at, bit)) = front.flag
            && !there.typed
            && prepared.types.count == front.count
        {
            // They were sent on another connection.
            if header.len + prepared.types.bytes.len() >= codec::MAX_PAYLOAD {
                let message = "The execution is too long to be moved to another server connection";
                Self::drop_what_waits(&statement, server, up);
                self.fail(1105, "HY000", message, up, header, down);
                return Ok(None);
            }
            if let Some(flag) = head.get_mut(at) {
                *flag |= bit;
            }
            head.extend_from_slice(&prepared.types.bytes);
            typed = true;
        }
        if let Some(id) = head.get_mut(1..5) {
            id.copy_from_slice(&there.id.to_le_bytes());
        }
        server.prepared.put(statement.id, OnServer { typed, ..there.clone() });
        server.write_closes(up.output());
        if !bulk && flags & CURSOR_TYPES != 0 && !server.cursors.contains(&there.id) {
            // Until the answer shows that there is none.
            server.cursors.push(there.id);
        }
        self.explains = Explained { nature, ..self.explain(&facts, &details, &statement.text, server) };
        self.note_names(&facts, &details, None, &statement.text, server);
        self.note_named(&facts, &details);
        self.current = None;
        server.running = there.id;
        server.long_data.retain(|id| *id != there.id);
        server.expect(Reply::Results, false, facts.moves_transaction);
        self.running = server.caches_metadata.then_some(client_id);
        up.skip(HEADER_BYTES + taken);
        write_front(up.output(), header.len - taken + head.len(), &head);
        self.continues = header.continues();
        self.take(up, header.len - taken, true);
        self.of_one_row = false;
        // Its rows are of another form.
        self.explains.holds.asks_if_missed = false;
        if self.owed == 0 && !self.continues {
            self.ask_for_locks(up, server);
        }
        Ok(None)
    }

    /// A command that begins with a statement id and goes on with the server's own.
    pub(super) fn forward_named(&mut self, header: Header, up: &mut Pipe, id: u32, command: Command) {
        up.skip(HEADER_BYTES + 5);
        let mut front = vec![command as u8];
        front.extend_from_slice(&id.to_le_bytes());
        write_front(up.output(), header.len, &front);
        self.continues = header.continues();
        self.take(up, header.len - 5, true);
    }

    pub(super) fn long_data(
        &mut self,
        header: Header,
        up: &mut Pipe,
        server: Option<&mut MyServer>,
    ) -> Option<ClientEvent> {
        let (_, prepared) = match self.named(up, header) {
            Ok(Some(named)) => named,
            Ok(None) => {
                // No answer, whatever happens.
                self.take_packet(up, header, false);
                return None;
            }
            Err(event) => return Some(event),
        };
        let Some(server) = server else { return Some(ClientEvent::NeedServer) };
        if self.unprepared.as_ref().is_some_and(|unprepared| unprepared.0 == prepared.statement.id) {
            // The execution will be told why; until then there is nothing to say.
            self.take_packet(up, header, false);
            return None;
        }
        let Some(there) = Self::on_server_as(&prepared.statement, server, up) else {
            return Some(ClientEvent::NeedAnswer);
        };
        if !server.long_data.contains(&there.id) {
            server.long_data.push(there.id);
        }
        self.forward_named(header, up, there.id, Command::StmtSendLongData);
        None
    }

    pub(super) fn fetch(
        &mut self,
        header: Header,
        up: &mut Pipe,
        server: Option<&mut MyServer>,
        down: &mut Pipe,
    ) -> Option<ClientEvent> {
        let (client_id, prepared) = match self.named(up, header) {
            Ok(Some(named)) => named,
            Ok(None) => {
                self.unknown("mysqld_stmt_fetch", up, header, down);
                return None;
            }
            Err(event) => return Some(event),
        };
        // A cursor keeps its connection, so there is none where there is no connection.
        let there = server.and_then(|server| {
            let there = server.prepared.get(&prepared.statement.id).cloned()?;
            server.cursors.contains(&there.id).then_some((server, there))
        });
        match there {
            Some((server, there)) => {
                server.running = there.id;
                server.expect(Reply::Rows, false, false);
                self.forward_named(header, up, there.id, Command::StmtFetch);
            }
            None => {
                let message = format!("The statement ({client_id}) has no open cursor");
                self.fail(1421, "HY000", &message, up, header, down);
            }
        }
        None
    }

    pub(super) fn reset_statement(
        &mut self,
        header: Header,
        up: &mut Pipe,
        server: Option<&mut MyServer>,
        down: &mut Pipe,
    ) -> Option<ClientEvent> {
        let (_, prepared) = match self.named(up, header) {
            Ok(Some(named)) => named,
            Ok(None) => {
                self.unknown("mysqld_stmt_reset", up, header, down);
                return None;
            }
            Err(event) => return Some(event),
        };
        let there = server.and_then(|server| {
            let there = server.prepared.get(&prepared.statement.id).cloned()?;
            Some((server, there))
        });
        match there {
            Some((server, there)) => {
                server.long_data.retain(|id| *id != there.id);
                server.cursors.retain(|id| *id != there.id);
                server.running = there.id;
                server.expect(Reply::Results, false, false);
                self.forward_named(header, up, there.id, Command::StmtReset);
            }
            None => {
                self.take_packet(up, header, false);
                self.ok(down, 1);
            }
        }
        None
    }

    pub(super) fn close_statement(
        &mut self,
        header: Header,
        up: &mut Pipe,
        server: Option<&mut MyServer>,
    ) -> Option<ClientEvent> {
        let named = match self.named(up, header) {
            Ok(named) => named,
            Err(event) => return Some(event),
        };
        if let Some((id, prepared)) = named {
            self.statements.remove(&id);
            if let Some(server) = server {
                Self::close_there(&prepared.statement, server, up);
            }
        }
        self.take_packet(up, header, false);
        None
    }

    fn close_there(statement: &Statement, server: &mut MyServer, up: &mut Pipe) {
        let Some(there) = server.prepared.pop(&statement.id) else { return };
        server.long_data.retain(|id| *id != there.id);
        server.cursors.retain(|id| *id != there.id);
        write_command(up.output(), Command::StmtClose, &there.id.to_le_bytes());
    }

    /// An execution ends the statement's cursor and uses up its long data, whether it comes about or not; one that is
    /// refused here too.
    fn drop_what_waits(statement: &Statement, server: &mut MyServer, up: &mut Pipe) {
        let waits =
            |there: &OnServer| server.long_data.contains(&there.id) || server.cursors.contains(&there.id);
        if server.prepared.peek(&statement.id).is_some_and(waits) {
            Self::close_there(statement, server, up);
        }
    }
}
