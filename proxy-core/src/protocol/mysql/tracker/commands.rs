//! What a client asks for, command by command.

use std::sync::Arc;

use super::{
    super::{
        super::{ClientEvent, Facts, Kill, ProtocolError, StateChange, StatementKind, Tracker as _},
        Shared,
        classify::{self, Details, NamedStatement, NamedVerb, Sequences, SessionFunctions},
        codec::{self, Command, Header, OkPacket},
        left::{Ask, Nature, Touch},
        parameters,
        query::write_query,
        server::{FORGET, MAX_HELD_BYTES, MyServer, Reply, write_command},
    },
    MAX_TEXT_BYTES, MyTracker, Text,
    changes::{Asks, Explained, is_untold},
    held::Names,
    of_command, submitted,
};
use crate::buffer::Pipe;

/// One row at most, and no table: what it leaves for session functions is what any such query leaves.
fn is_row(facts: &Facts) -> bool {
    facts.statements == 1
        && facts.kind == StatementKind::Select
        && facts.tables.is_empty()
        && facts.digest_text.starts_with("select")
        && !facts.digest_text.contains(" from ")
        && !facts.digest_text.contains("union")
        && !facts.digest_text.contains("where")
        && !facts.digest_text.contains("limit")
        && !facts.digest_text.contains("having")
}

impl MyTracker {
    pub(super) fn nature(&self, facts: &Facts, details: &Details, text: &[u8]) -> Nature {
        let writes = facts.kind == StatementKind::Write;
        let one = facts.statements == 1;
        let selects = one && facts.kind == StatementKind::Select && facts.digest_text.starts_with("select");
        // `SET`, `USE`, transaction control.
        let is_plain = one
            && matches!(facts.kind, StatementKind::Session | StatementKind::Transaction)
            && !details.has_query
            && !details.sets_for_statement
            && facts.tables.is_empty();
        let asks_sequences = details.session_functions.contains(SessionFunctions::SEQUENCE);
        // A sequence is a table.
        let uses_none = selects && !details.has_from && !asks_sequences;
        let draws = facts.functions.iter().any(|function| function == "nextval");
        let sequences = if asks_sequences || draws {
            classify::sequences(text, self.mode)
        } else {
            Some(Sequences::default())
        };
        let asks_itself = |known: &Sequences| known.asks && known.asked.is_empty();
        let none = match sequences.as_ref().is_some_and(asks_itself) {
            true => SessionFunctions::SEQUENCE,
            false => SessionFunctions::NONE,
        };
        Nature {
            asks: details.session_functions.without(none),
            taints: facts.taints || facts.kind == StatementKind::Unknown,
            sets_insert_id: details.sets_last_insert_id,
            several: !one,
            writes,
            found_rows: match () {
                () if selects => Touch::Changes,
                () if is_plain => Touch::Leaves,
                () => Touch::MayChange,
            },
            diagnostics: match () {
                () if details.keeps_diagnostics || is_plain || uses_none => Touch::Leaves,
                () if one && !facts.tables.is_empty() => Touch::Changes,
                () => Touch::MayChange,
            },
            hides_ids: matches!(facts.kind, StatementKind::Copy | StatementKind::Ddl),
            sequences,
            renames: details.uses_schema || facts.kind == StatementKind::Unknown,
            given_ids: if writes { classify::given_ids(text, self.mode) } else { None },
        }
    }

    /// Has `server` answer what a statement asks of those before it; false where it cannot.
    pub(super) fn make_askable(
        &mut self,
        nature: &Nature,
        shared: &Shared,
        up: &mut Pipe,
        server: &mut MyServer,
    ) -> bool {
        match self.left.ask(nature, &shared.ids_are_asked, server) {
            Ask::AsItIs => true,
            Ask::Lost => {
                self.left.note_refused();
                false
            }
            Ask::Set(id) => {
                if !self.left.has_lasting(server) {
                    write_query(FORGET, server.agreed, up.output());
                    server.expect(Reply::Results, true, false);
                }
                write_query(format!("SET last_insert_id = {id}").as_bytes(), server.agreed, up.output());
                server.expect(Reply::Results, true, false);
                self.left.was_set(server);
                true
            }
        }
    }

    /// Whether this may be what gives a prepared statement a name.
    pub(super) fn note_named(&mut self, facts: &Facts, details: &Details) {
        let names = |one: &NamedStatement| !matches!(one.verb, NamedVerb::Execute | NamedVerb::Deallocate);
        self.may_have_named |= facts.statements != 1
            || matches!(facts.kind, StatementKind::Routine | StatementKind::Unknown)
            || details.named_statements.iter().any(names);
    }

    pub(super) fn fail_lost(&mut self, up: &mut Pipe, header: Header, down: &mut Pipe) {
        let message = "What the statement before has left is gone with its connection, which other clients have used \
            since; ask in the same transaction, or again after the statement, whose connection is kept from now on";
        self.fail(1105, "HY000", message, up, header, down);
    }

    pub(super) fn query(
        &mut self,
        header: Header,
        shared: &Shared,
        up: &mut Pipe,
        server: Option<&mut MyServer>,
        down: &mut Pipe,
    ) -> Result<Option<ClientEvent>, ProtocolError> {
        if self.current.is_none() {
            if header.len > MAX_TEXT_BYTES {
                let unread = submitted(Arc::new(Facts::unknown("<not read>".to_owned())), 0, header.len);
                return Ok(Some(self.report((unread, Arc::new(Details::unknown())), Text::None)));
            }
            if up.unread().len() < header.total() {
                up.expect(header.total());
                return Ok(Some(ClientEvent::NeedBytes));
            }
            let payload = Self::packet(up, header);
            let Some(at) = parameters::text_at(payload, self.agreed) else {
                self.fail_malformed(up, header, down);
                return Ok(None);
            };
            let text = payload.get(at..).unwrap_or_default();
            let mut known = self.read_text(shared, text);
            self.follow_next_transaction(&mut known);
            let named = self.follow_named(shared, text, &mut known);
            let event = self.report(known, Text::Front(at));
            if let Some(current) = &mut self.current {
                current.named = named;
            }
            return Ok(Some(event));
        }
        let Some((facts, details)) = self.admitted() else { return Ok(Some(ClientEvent::NeedBytes)) };
        if details.kill.is_some() {
            let Some((kill, id)) = classify::kill_target(self.text(up), self.mode) else {
                let message = "This proxy follows KILL with the number of a session only";
                self.fail(1235, "42000", message, up, header, down);
                return Ok(None);
            };
            let id = u32::try_from(id).unwrap_or(0);
            return Ok(Some(ClientEvent::Kill(Kill { id, query_only: kill.query_only })));
        }
        let Some(server) = server else {
            let here = self.control_here(&facts, header, up, down);
            return Ok(Some(here.unwrap_or(ClientEvent::NeedServer)));
        };
        if let Some((code, sqlstate, message)) = self.stopped(&facts) {
            self.aborted &= !facts.ends_transaction;
            self.fail(code, sqlstate, message, up, header, down);
            return Ok(None);
        }
        let inner = self.current.as_ref().and_then(|current| current.named.clone());
        let executes = details.named_statements.iter().any(|one| one.verb == NamedVerb::Execute);
        let runs = inner.clone().filter(|_| executes);
        match self.bring_names(&facts, &details, runs.as_deref(), up, server) {
            Names::Ready => {}
            Names::Wait => return Ok(Some(ClientEvent::NeedAnswer)),
            Names::Fail(error) => {
                self.fail(error.code, &error.sqlstate, &error.message, up, header, down);
                return Ok(None);
            }
        }
        self.aborted = false;
        let wants = self.multi_statements;
        if server.multi_statements != wants && memchr::memchr(b';', self.text(up)).is_some() {
            let option = u16::from(!wants);
            write_command(up.output(), Command::SetOption, &option.to_le_bytes());
            server.expect(Reply::Command, true, false);
            server.multi_statements = wants;
        }
        self.unset_variables(self.named_variables(&facts, &details, self.text(up)), up, server);
        let (nature, holds_row) = match &runs {
            Some(inner) => (self.nature(&inner.facts, &inner.details, &inner.text), is_row(&inner.facts)),
            None => (self.nature(&facts, &details, self.text(up)), is_row(&facts)),
        };
        self.of_one_row = holds_row;
        if !self.make_askable(&nature, shared, up, server) {
            self.fail_lost(up, header, down);
            return Ok(None);
        }
        server.write_closes(up.output());
        let explained = match &runs {
            Some(inner) => self.explain(&inner.facts, &inner.details, &inner.text, server),
            None => self.explain(&facts, &details, self.text(up), server),
        };
        self.explains = Explained { nature, ..explained };
        let text = self.text(up).to_vec();
        self.note_names(&facts, &details, inner, &text, server);
        self.note_named(&facts, &details);
        if self.drops_elsewhere(&facts, &details, server)
            && let Some(current) = &mut self.current
        {
            // It is nowhere where the server could drop it; this leaves what that would leave.
            current.text = Text::Rewritten(b"DO 0".to_vec());
        }
        if details.reads_connection_id
            && let Some(column) = classify::connection_id_column(self.text(up), self.mode)
            && let Some(current) = &mut self.current
        {
            // What KILL takes here, which is not the server's own number.
            let front = format!("SELECT {} AS ", self.client.id);
            current.text = Text::Rewritten([front.as_bytes(), &column].concat());
        }
        let moves = facts.moves_transaction;
        match self.current.take().map(|current| current.text) {
            Some(Text::Rewritten(text)) => {
                // What the client has said beside the text goes on as it is.
                let payload = Self::packet(up, header);
                let at = parameters::text_at(payload, self.agreed).unwrap_or(1);
                let front = payload.get(..at).unwrap_or_default().to_vec();
                self.take_packet(up, header, false);
                codec::write_packet(up.output(), 0, |packet| {
                    packet.extend_from_slice(&front);
                    packet.extend_from_slice(&text);
                });
                server.running = 0;
                server.expect(Reply::Results, false, moves);
            }
            _ => self.pass_command(up, header, server, Reply::Results, moves),
        }
        self.ask_for_locks(up, server);
        Ok(None)
    }

    /// After a refused statement nothing runs until the client has ended the transaction. Why this does not, if so.
    pub(super) fn stopped(&self, facts: &Facts) -> Option<(u16, &'static str, &'static str)> {
        if !self.aborted {
            return None;
        }
        let word = facts.digest_text.get(..8);
        let is_rollback = word.is_some_and(|word| word.eq_ignore_ascii_case("rollback"));
        if facts.ends_transaction {
            return (!is_rollback).then_some((
                1213,
                "40001",
                "The transaction was rolled back, since a policy plugin refused one of its statements",
            ));
        }
        Some((
            1105,
            "HY000",
            "The transaction was rolled back, since a policy plugin refused one of its statements; nothing runs until \
             ROLLBACK",
        ))
    }

    /// A command that is judged like a statement.
    pub(super) fn command(
        &mut self,
        command: Command,
        header: Header,
        up: &mut Pipe,
        server: Option<&mut MyServer>,
        reply: Reply,
    ) -> Option<ClientEvent> {
        if self.current.is_none() {
            let statement = of_command(command, header.len);
            return Some(self.report((statement, Arc::default()), Text::None));
        }
        let Some((facts, _)) = self.admitted() else { return Some(ClientEvent::NeedBytes) };
        let Some(server) = server else { return Some(ClientEvent::NeedServer) };
        // Another database is another context for what was named.
        if matches!(self.bring_names(&facts, &Details::default(), None, up, server), Names::Wait) {
            return Some(ClientEvent::NeedAnswer);
        }
        server.write_closes(up.output());
        self.current = None;
        let unsettles = is_untold(&facts, server);
        // Some of them empty the diagnostics.
        let nature = Nature { several: true, renames: true, ..Nature::default() };
        self.explains = Explained { state: true, unsettles, nature, ..Explained::default() };
        self.pass_command(up, header, server, reply, facts.moves_transaction);
        None
    }

    /// The client wants its session as after login.
    pub(super) fn reset_connection(
        &mut self,
        header: Header,
        up: &mut Pipe,
        server: Option<&mut MyServer>,
    ) -> Option<ClientEvent> {
        if self.current.is_none() {
            let command = Command::ResetConnection;
            let statement = of_command(command, header.len);
            return Some(self.report((statement, Arc::default()), Text::None));
        }
        if self.admitted().is_none() {
            return Some(ClientEvent::NeedBytes);
        }
        let Some(server) = server else { return Some(ClientEvent::NeedServer) };
        self.current = None;
        self.asks = Asks::default();
        self.variables.forget();
        self.held.forget();
        self.statements.clear();
        self.left.forget();
        self.aborted = false;
        self.settings_of_transactions = false;
        self.take_packet(up, header, false);
        let schema = server.current_schema.clone();
        let answers = server.write_reset(up.output());
        // The client's database stays; ours put it back, so it is taken up again.
        for _ in 0..answers {
            server.expect(Reply::Results, true, true);
        }
        if !schema.is_empty() {
            write_command(up.output(), Command::InitDb, &schema);
            server.expect(Reply::Results, true, true);
        }
        // Its answer is the client's: nothing has changed that it would be told.
        write_command(up.output(), Command::Ping, &[]);
        server.expect(Reply::Results, false, true);
        self.learned.changes.push(StateChange::ResetAll);
        self.explains = Explained { state: true, ..Explained::default() };
        None
    }

    /// COM_PROCESS_KILL. Shape: `command | id: u32`.
    pub(super) fn process_kill(
        &mut self,
        header: Header,
        up: &mut Pipe,
        down: &mut Pipe,
    ) -> Option<ClientEvent> {
        if header.len <= MAX_HELD_BYTES && up.unread().len() < header.total() {
            return Some(ClientEvent::NeedBytes);
        }
        match Self::packet(up, header).get(1..5).and_then(|bytes| bytes.first_chunk()) {
            Some(id) => Some(ClientEvent::Kill(Kill { id: u32::from_le_bytes(*id), query_only: false })),
            None => {
                self.fail(1047, "08S01", "Unknown command", up, header, down);
                None
            }
        }
    }

    pub(super) fn set_option(
        &mut self,
        header: Header,
        up: &mut Pipe,
        down: &mut Pipe,
    ) -> Option<ClientEvent> {
        if up.unread().len() < header.total() {
            return Some(ClientEvent::NeedBytes);
        }
        match Self::packet(up, header) {
            [_, option @ (0 | 1), 0] => {
                self.multi_statements = *option == 0;
                self.take_packet(up, header, false);
                let end = OkPacket { status: self.status, ..OkPacket::default() };
                self.write_end(&end, 1, down.output());
            }
            _ => self.fail(1047, "08S01", "Unknown command", up, header, down),
        }
        None
    }
}
