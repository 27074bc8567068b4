//! Watches one MySQL or MariaDB client's conversation, both ways.
//!
//! The server's own word decides wherever it gives one: its status flags say whether there is a transaction, its
//! session trackers say what a statement has changed. Prepared statements are virtual: a client's id stands for a
//! text, which is prepared anew where the session is served next.
//!
//! One request is under way at a time. What a client sends before its answer has come waits.

use std::{collections::HashMap, sync::Arc};

use super::{
    super::{
        ClientEvent, Facts, Fault, Greeting, Killed, Learned, Outcome, Packing, PinReason, PinReasons,
        PoolKey, ProtocolError, Rewritten, ServerEvent, ServerState as _, Statement as Submitted, Tracker,
        Tx, Upcoming, Watch,
    },
    MySql, Shared,
    classify::{self, Details, LexMode},
    codec::{self, Capabilities, Command, ErrPacket, HEADER_BYTES, Header, OkPacket, Status},
    error::write_error,
    handshake::{MyClient, read_greeting},
    left::Left,
    query::write_query,
    server::{MAX_HELD_BYTES, MyServer, Reply, Stage, write_command},
    statement::{Prepared, Statement},
};
use crate::buffer::Pipe;

mod answers;
mod changes;
mod commands;
mod deferred;
mod held;
mod prepared;
mod variables;

use answers::too_long;
use changes::{Asks, Explained};
pub(super) use deferred::Deferred;
use held::Held;
use variables::Variables;

/// Longest request that is read whole. A longer statement is relayed unread, so its client is pinned; a longer
/// execution of a prepared statement is relayed as well, since its text is known.
pub const MAX_TEXT_BYTES: usize = 4 << 20;

/// Most bytes that the buffer for packets that are read whole keeps.
const KEPT_PACKET_BYTES: usize = 512;

/// What is remembered of one client.
#[derive(Debug)]
pub struct MyTracker {
    client: MyClient,
    agreed: Capabilities,
    /// What it was told last, for answers of our own.
    status: Status,
    mode: LexMode,
    multi_statements: bool,
    statements: HashMap<u32, Prepared>,
    next_id: u32,
    /// The statement at the front has been reported, and perhaps admitted.
    current: Option<Current>,
    /// Bytes still to come of a packet of the client that goes on (or is skipped) as it comes.
    owed: usize,
    owed_kept: bool,
    /// The next packet goes on with the payload of the last.
    continues: bool,
    /// The sequence number of the client's last packet, unless it is a file's.
    seq: u8,
    watch: Watch,
    outcomes: Vec<Outcome>,
    rows: u64,
    learned: Learned,
    /// The server said that something of the session has changed.
    state_changed: bool,
    /// `PREPARE` may have run, be it in code that no text shows.
    may_have_named: bool,
    /// The transaction was rolled back since policy refused a statement of it; the client has not ended it yet.
    aborted: bool,
    /// The transaction that no server has begun.
    deferred: Option<Box<Deferred>>,
    /// Why a server would not begin it: the next command is told.
    unbegun: Option<Box<ErrPacket>>,
    /// The session has settings by which a `BEGIN` or a `COMMIT` may do or say something else.
    settings_of_transactions: bool,
    /// Of the statement under way: what the server will report of it is known from its text.
    explains: Explained,
    left: Left,
    variables: Variables,
    held: Held,
    /// An answer to the client is over as soon as a question of ours behind it is answered.
    held_back: Option<ServerEvent>,
    /// The last `COM_STMT_PREPARE` has left warnings.
    prepared_warnings: bool,
    /// The statement under way is a query that finds one row without any table.
    of_one_row: bool,
    /// What the client has said it wants to be told.
    asks: Asks,
    /// This statement could not be prepared where the session is served now.
    unprepared: Option<Box<(u64, ErrPacket)>>,
    /// The client's id of the statement that runs, where servers may leave out definitions.
    running: Option<u32>,
    /// Definitions that come for it.
    definitions: Vec<u8>,
    /// Room for a packet that is read whole.
    packet: Vec<u8>,
}

#[derive(Debug)]
struct Current {
    statement: Submitted,
    details: Arc<Details>,
    admitted: bool,
    text: Text,
    /// What it names by SQL's `PREPARE`, or runs by `EXECUTE`.
    named: Option<Arc<Statement>>,
}

/// Where the text of a reported statement stands.
#[derive(Debug)]
enum Text {
    /// In the packet at the front, behind so many bytes of its payload.
    Front(usize),
    /// Policy has put this in its place.
    Rewritten(Vec<u8>),
    /// With the statement prepared.
    Of(Arc<Statement>),
    /// There is none, or it was not read.
    None,
}

/// What stands for a command that is no statement.
fn of_command(command: Command, bytes: usize) -> Submitted {
    let facts = classify::of_command(command as u8);
    let facts = facts.unwrap_or_else(|| Facts::unknown(command.name().to_owned()));
    submitted(Arc::new(facts), command as u128, bytes)
}

/// A statement, and what only this protocol asks of it.
type Known = (Submitted, Arc<Details>);

fn submitted(facts: Arc<Facts>, digest: u128, bytes: usize) -> Submitted {
    Submitted { facts, digest, bytes, extra_pins: PinReasons::NONE, prepares: false, within: false }
}

impl MyTracker {
    fn packet(up: &Pipe, header: Header) -> &[u8] {
        up.unread().get(HEADER_BYTES..header.total()).unwrap_or_default()
    }

    /// Passes or drops `n` bytes of the client, some of which may be still to come.
    fn take(&mut self, up: &mut Pipe, n: usize, kept: bool) {
        let now = n.min(up.unread().len());
        if kept {
            up.pass(now);
        } else {
            up.skip(now);
        }
        self.owed = n - now;
        self.owed_kept = kept;
    }

    /// Passes or drops the packet at the front, and what goes on with it.
    fn take_packet(&mut self, up: &mut Pipe, header: Header, kept: bool) {
        self.continues = header.continues();
        self.take(up, header.total(), kept);
    }

    fn pass_command(
        &mut self,
        up: &mut Pipe,
        header: Header,
        server: &mut MyServer,
        reply: Reply,
        moves_transaction: bool,
    ) {
        // Its answer says nothing of any cursor.
        server.running = 0;
        server.expect(reply, false, moves_transaction);
        self.take_packet(up, header, true);
    }

    fn ok(&self, down: &mut Pipe, seq: u8) {
        let packet = OkPacket { status: self.status, ..OkPacket::default() };
        packet.write(codec::OK, seq, self.agreed, down.output());
    }

    /// Tells the client that the request at the front has failed, and drops it.
    fn fail(
        &mut self,
        code: u16,
        sqlstate: &str,
        message: &str,
        up: &mut Pipe,
        header: Header,
        down: &mut Pipe,
    ) {
        if self.current.take().is_some_and(|current| current.admitted && !current.statement.prepares) {
            self.note_outcome(Some(sqlstate.into()), 0);
        }
        self.take_packet(up, header, false);
        codec::write_err(code, sqlstate, message, 1, self.agreed, down.output());
    }

    fn fail_malformed(&mut self, up: &mut Pipe, header: Header, down: &mut Pipe) {
        self.fail(1835, "HY000", "Malformed communication packet", up, header, down);
    }

    fn report(&mut self, (mut statement, details): Known, text: Text) -> ClientEvent {
        if details.calculates_found_rows {
            // The statement after it is likely to ask, and no packet tells the answer.
            statement.extra_pins.insert(PinReason::SessionFunction);
        }
        let named = None;
        self.current = Some(Current { statement: statement.clone(), details, admitted: false, text, named });
        ClientEvent::Statement(statement)
    }

    /// The facts of the statement at the front, once it was admitted.
    fn admitted(&self) -> Option<(Arc<Facts>, Arc<Details>)> {
        let current = self.current.as_ref().filter(|current| current.admitted)?;
        Some((current.statement.facts.clone(), current.details.clone()))
    }

    fn read_text(&self, shared: &Shared, text: &[u8]) -> Known {
        let known = shared.classifier.facts(text, self.mode);
        (submitted(known.facts, known.digest, text.len()), known.details)
    }
}

impl Tracker<MySql> for MyTracker {
    fn new(_key: &PoolKey, greeting: &Greeting, client: MyClient) -> Self {
        let agreed = client.capabilities;
        let (status, baseline) = read_greeting(greeting);
        let value = |at: usize| baseline.get(at).copied().unwrap_or_default();
        Self {
            client,
            agreed,
            status,
            mode: LexMode::from_variables(value(4), value(0)),
            multi_statements: agreed.contains(Capabilities::MULTI_STATEMENTS),
            statements: HashMap::new(),
            next_id: 0,
            current: None,
            owed: 0,
            owed_kept: true,
            continues: false,
            seq: 0,
            watch: Watch::default(),
            outcomes: Vec::new(),
            rows: 0,
            learned: Learned::default(),
            state_changed: false,
            may_have_named: false,
            aborted: false,
            deferred: None,
            unbegun: None,
            settings_of_transactions: false,
            explains: Explained::default(),
            left: Left::default(),
            variables: Variables::new(),
            held: Held::default(),
            held_back: None,
            prepared_warnings: false,
            of_one_row: false,
            asks: Asks::default(),
            unprepared: None,
            running: None,
            definitions: Vec::new(),
            packet: Vec::new(),
        }
    }

    fn on_client(
        &mut self,
        shared: &Shared,
        up: &mut Pipe,
        mut server: Option<&mut MyServer>,
        down: &mut Pipe,
    ) -> Result<ClientEvent, ProtocolError> {
        loop {
            if self.owed > 0 {
                let n = self.owed;
                let kept = self.owed_kept;
                self.take(up, n, kept);
                if self.owed > 0 {
                    return Ok(ClientEvent::NeedBytes);
                }
            }
            let Some(header) = Header::read(up.unread()) else { return Ok(ClientEvent::NeedBytes) };
            if self.continues {
                self.seq = header.seq;
                let kept = self.owed_kept;
                self.take_packet(up, header, kept);
                continue;
            }
            if let Some(server) = server.as_deref_mut() {
                if server.stage == Stage::Infile {
                    // The client counts on from what it has seen.
                    let seq = header.seq.wrapping_sub(server.shift);
                    server.seq = Some(seq);
                    up.patch(3, seq);
                    // An empty packet behind one of the longest goes on with that.
                    if header.len == 0 && !server.infile_continues {
                        server.stage = Stage::Start;
                    }
                    server.infile_continues = header.continues();
                    self.continues = false;
                    self.take(up, header.total(), true);
                    continue;
                }
                if !server.expects_nothing() {
                    return Ok(ClientEvent::NeedAnswer);
                }
            }
            if header.seq != 0 {
                return Err(ProtocolError::Unexpected(char::from(header.seq)));
            }
            self.seq = 0;
            // What follows an empty packet is not a part of it.
            if header.len == 0 {
                return Err(ProtocolError::Malformed("command"));
            }
            let Some(&byte) = up.unread().get(HEADER_BYTES) else { return Ok(ClientEvent::NeedBytes) };
            if self.deferred.is_some()
                && let Some(server) = server.as_deref_mut()
                && let Some(event) = self.begin_deferred(byte, header, up, server, down)
            {
                return Ok(event);
            }
            let server = server.as_deref_mut();
            let event = match Command::from_byte(byte) {
                Some(Command::Quit) => Some(ClientEvent::Quit),
                Some(Command::Ping) => {
                    self.take_packet(up, header, false);
                    self.ok(down, 1);
                    None
                }
                Some(Command::ProcessKill) => self.process_kill(header, up, down),
                Some(command @ (Command::InitDb | Command::Debug | Command::ProcessInfo)) => {
                    self.command(command, header, up, server, Reply::Results)
                }
                Some(Command::Query) => self.query(header, shared, up, server, down)?,
                Some(Command::FieldList) => {
                    self.command(Command::FieldList, header, up, server, Reply::Fields)
                }
                Some(Command::Statistics) => {
                    self.command(Command::Statistics, header, up, server, Reply::Line)
                }
                Some(Command::StmtPrepare) => self.prepare(header, shared, up, server, down)?,
                Some(command @ (Command::StmtExecute | Command::StmtBulkExecute)) => {
                    self.execute(command, header, shared, up, server, down)?
                }
                Some(Command::StmtSendLongData) => self.long_data(header, up, server),
                Some(Command::StmtClose) => self.close_statement(header, up, server),
                Some(Command::StmtReset) => self.reset_statement(header, up, server, down),
                Some(Command::StmtFetch) => self.fetch(header, up, server, down),
                Some(Command::SetOption) => self.set_option(header, up, down),
                Some(Command::ChangeUser) if header.len > MAX_HELD_BYTES => {
                    self.fail(1047, "08S01", "Unknown command", up, header, down);
                    None
                }
                Some(Command::ChangeUser) if up.unread().len() < header.total() => {
                    Some(ClientEvent::NeedBytes)
                }
                Some(Command::ChangeUser) => Some(ClientEvent::LogIn),
                Some(Command::ResetConnection) => self.reset_connection(header, up, server),
                Some(
                    Command::Sleep
                    | Command::CreateDb
                    | Command::DropDb
                    | Command::Connect
                    | Command::Time
                    | Command::DelayedInsert
                    | Command::ConnectOut,
                )
                | None => {
                    self.fail(1047, "08S01", "Unknown command", up, header, down);
                    None
                }
                Some(command) => {
                    let message = format!("{} is not supported by this proxy", command.name());
                    self.fail(1235, "42000", &message, up, header, down);
                    None
                }
            };
            if let Some(event) = event {
                return Ok(event);
            }
        }
    }

    fn packing(&self, server: &MyServer, most_bytes: usize) -> Option<Box<dyn Packing>> {
        if !server.is_mariadb {
            return None;
        }
        let tables = self.held.packing(server.made_tables?, most_bytes)?;
        Some(Box::new(tables))
    }

    fn attach(&mut self, server: &MyServer) {
        self.variables.forget_met();
        if self.mode != server.mode {
            self.mode = server.mode;
            self.current = None;
        }
    }

    fn admit(&mut self, _settled: bool) {
        if let Some(current) = &mut self.current {
            current.admitted = true;
        }
    }

    fn watch(&mut self, watch: Watch) {
        self.watch = watch;
    }

    fn text<'a>(&'a self, up: &'a Pipe) -> &'a [u8] {
        match self.current.as_ref().map(|current| &current.text) {
            Some(Text::Front(at)) => Header::read(up.unread())
                .and_then(|header| up.unread().get(HEADER_BYTES + at..header.total()))
                .unwrap_or_default(),
            Some(Text::Rewritten(text)) => text,
            Some(Text::Of(statement)) => &statement.text,
            Some(Text::None) | None => &[],
        }
    }

    fn hint<'a>(&self, text: &'a [u8]) -> &'a str {
        classify::hint(text, self.mode)
    }

    fn literal_variables(&self, _text: &[u8]) -> Vec<String> {
        Vec::new()
    }

    fn rewrite(&mut self, shared: &Shared, text: String) -> Rewritten {
        let Some(current) = &self.current else { return Rewritten::Impossible };
        let prepares = current.statement.prepares;
        match &current.text {
            Text::Front(_) | Text::Rewritten(_) => {
                let mut known = self.read_text(shared, text.as_bytes());
                self.follow_next_transaction(&mut known);
                let named = self.follow_named(shared, text.as_bytes(), &mut known);
                let (statement, details) = known;
                let statement = Submitted { prepares, ..statement };
                self.current = Some(Current {
                    statement: statement.clone(),
                    details,
                    admitted: false,
                    text: Text::Rewritten(text.into_bytes()),
                    named,
                });
                Rewritten::Known(statement)
            }
            Text::Of(_) => Rewritten::Settled,
            Text::None => Rewritten::Impossible,
        }
    }

    fn reject(
        &mut self,
        fault: &Fault,
        up: &mut Pipe,
        server: Option<&mut MyServer>,
        down: &mut Pipe,
    ) -> bool {
        self.refuse(fault, up, down);
        if let Some(server) = server
            && server.tx() == Tx::Open
            && !self.aborted
        {
            // A transaction of which a statement was refused must not be committed without it.
            write_query(b"ROLLBACK", server.agreed, up.output());
            server.expect(Reply::Results, true, true);
            self.aborted = true;
        }
        true
    }

    fn extent(&self, up: &Pipe) -> Upcoming {
        if self.deferred.is_some() {
            return Upcoming::Whole;
        }
        match Header::read(up.unread()) {
            Some(header) if up.unread().len() >= header.total().min(MAX_TEXT_BYTES) => Upcoming::Whole,
            _ => Upcoming::Partial,
        }
    }

    fn upcoming(&self, _shared: &Shared, up: &Pipe, visit: &mut dyn FnMut(&Submitted, &[u8])) -> Upcoming {
        if let Some(deferred) = &self.deferred {
            // With it goes its whole transaction, as if it had gone there at once.
            visit(&deferred.statement, &deferred.text);
        } else if let Some(current) = &self.current {
            visit(&current.statement, self.text(up));
        }
        self.extent(up)
    }

    fn take_outcomes(&mut self) -> Vec<Outcome> {
        std::mem::take(&mut self.outcomes)
    }

    fn take_login(&mut self, up: &mut Pipe) -> Option<(MyClient, Vec<u8>)> {
        up.discard_output();
        let header = Header::read(up.unread())?;
        let request = up.unread().get(HEADER_BYTES..header.total())?.to_vec();
        up.skip(header.total());
        Some((self.client, request))
    }

    fn killed(&mut self, outcome: Killed, up: &mut Pipe, down: &mut Pipe) {
        let Some(header) = Header::read(up.unread()) else { return };
        let id = match up.unread().get(HEADER_BYTES) {
            Some(command) if *command == Command::ProcessKill as u8 => Self::packet(up, header)
                .get(1..)
                .and_then(|bytes| bytes.first_chunk())
                .map(|bytes| u64::from(u32::from_le_bytes(*bytes))),
            _ => classify::kill_target(self.text(up), self.mode).map(|(_, id)| id),
        };
        let id = id.unwrap_or_default();
        match outcome {
            Killed::Done => {
                self.current = None;
                self.take_packet(up, header, false);
                self.ok(down, 1);
            }
            Killed::Unknown => {
                self.fail(1094, "HY000", &format!("Unknown thread id: {id}"), up, header, down);
            }
            Killed::NotOwner => {
                self.fail(1095, "HY000", &format!("You are not owner of thread {id}"), up, header, down);
            }
        }
    }

    fn take_learned(&mut self) -> Learned {
        std::mem::take(&mut self.learned)
    }

    fn on_server(&mut self, down: &mut Pipe, server: &mut MyServer) -> Result<ServerEvent, ProtocolError> {
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
            }
            let Some(header) = Header::read(down.unread()) else { return Ok(ServerEvent::NeedBytes) };
            if let Some(kept) = server.continues.take() {
                server.continues = header.continues().then_some(kept);
                self.relay(down, server, header, kept);
                continue;
            }
            let Some(head) = server.head() else { return Err(ProtocolError::Malformed("unasked")) };
            let kept = !head.ours;
            if header.len == 0 {
                return Err(ProtocolError::Malformed("answer"));
            }
            let Some(&first) = down.unread().get(HEADER_BYTES) else { return Ok(ServerEvent::NeedBytes) };
            // Rows and definitions need no more than their first byte.
            let is_end = match first {
                codec::ERR => true,
                codec::EOF => header.len < codec::MAX_PAYLOAD,
                _ => false,
            };
            match server.stage {
                Stage::Rows | Stage::FirstRow if !is_end => {
                    let gets_locks = kept && self.explains.holds.asks_if_missed;
                    if matches!(head.reply, Reply::Locks) || gets_locks {
                        if down.unread().len() < header.total() && header.len <= MAX_HELD_BYTES {
                            down.expect(header.total());
                            return Ok(ServerEvent::NeedBytes);
                        }
                        let row = down.unread().get(HEADER_BYTES..header.total()).unwrap_or_default();
                        match gets_locks {
                            true => self.note_row(row),
                            false => self.held.note_locked(row != b"\x010"),
                        }
                    }
                    if server.stage == Stage::FirstRow {
                        self.end_columns(down, server, header.seq, kept);
                    }
                    self.rows += u64::from(kept);
                    server.stage = Stage::Rows;
                    self.relay(down, server, header, kept);
                    continue;
                }
                Stage::Columns(left) if first != codec::ERR => {
                    if let Some(id) = self.running.filter(|_| kept) {
                        if header.len > MAX_HELD_BYTES {
                            return Err(too_long(first));
                        }
                        if down.unread().len() < header.total() {
                            down.expect(header.total());
                            return Ok(ServerEvent::NeedBytes);
                        }
                        self.define(down.unread().get(..header.total()).unwrap_or_default());
                        if left == 1
                            && let Some(prepared) = self.statements.get(&id)
                        {
                            self.defined(prepared.statement.id, Some(id), server);
                        }
                    }
                    self.relay(down, server, header, kept);
                    server.stage = match left {
                        2.. => Stage::Columns(left - 1),
                        _ if server.agreed.contains(Capabilities::DEPRECATE_EOF) => Stage::FirstRow,
                        _ => Stage::ColumnsEnd,
                    };
                    continue;
                }
                _ => {}
            }
            if matches!(head.reply, Reply::Fields | Reply::Rows) && !is_end {
                self.rows += u64::from(kept && matches!(head.reply, Reply::Rows));
                self.relay(down, server, header, kept);
                continue;
            }
            if header.len > MAX_HELD_BYTES {
                return Err(too_long(first));
            }
            if down.unread().len() < header.total() {
                down.expect(header.total());
                return Ok(ServerEvent::NeedBytes);
            }
            let mut packet = std::mem::take(&mut self.packet);
            packet.clear();
            packet.extend_from_slice(down.unread().get(HEADER_BYTES..header.total()).unwrap_or_default());
            let event = self.on_packet(&packet, header, kept, down, server);
            if packet.capacity() <= KEPT_PACKET_BYTES {
                self.packet = packet;
            }
            if let Some(event) = event? {
                return Ok(event);
            }
        }
    }

    fn deferred(&self) -> Tx {
        if self.deferred.is_some() { Tx::Open } else { Tx::Idle }
    }

    fn opens_transactions(&self) -> bool {
        !self.status.contains(Status::AUTOCOMMIT)
    }

    fn reads_leftovers(&self, up: &Pipe) -> bool {
        let Some(current) = &self.current else { return false };
        current.details.names_user_variables
            && self
                .named_variables(&current.statement.facts, &current.details, self.text(up))
                .may_be_others(&self.variables)
    }

    fn is_mid_message(&self) -> bool {
        self.owed > 0 || self.continues
    }

    fn standing_pins(&self) -> PinReasons {
        PinReasons::NONE
    }

    fn refuse(&mut self, fault: &Fault, up: &mut Pipe, down: &mut Pipe) {
        self.current = None;
        self.refuse_deferred(fault);
        let Some(header) = Header::read(up.unread()) else { return };
        self.take_packet(up, header, false);
        write_error(fault, 1, self.agreed, down.output());
    }

    fn is_deaf(&self, server: &MyServer) -> bool {
        server.stage == Stage::Infile || self.continues
    }

    fn write_fault(&self, fault: &Fault, server: Option<&MyServer>, out: &mut Vec<u8>) {
        let seq = match server.and_then(|server| Some((server, server.head()?))) {
            Some((server, head)) if !head.ours => server.next_number().unwrap_or(self.seq.wrapping_add(1)),
            // What nobody has asked for is taken for the answer to what is asked next.
            _ => 1,
        };
        write_error(fault, seq, self.agreed, out);
    }

    fn write_question(&mut self, server: &mut MyServer, up: &mut Pipe) {
        if !server.expects_nothing() {
            return;
        }
        if server.doubtful {
            write_command(up.output(), Command::Ping, &[]);
            server.expect(Reply::Command, true, false);
        }
        self.ask_for_missed_locks(up, server);
    }

    fn write_forget_session_functions(&mut self, _server: &mut MyServer, _up: &mut Pipe) {
        // Seen to with each statement that asks.
    }
}

#[cfg(test)]
mod tests;
