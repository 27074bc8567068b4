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
        ClientEvent, Facts, Fault, Greeting, Kill, Killed, Learned, Outcome, PinReason, PinReasons, PoolKey,
        ProtocolError, Rewritten, ServerEvent, ServerState as _, StateChange, Statement as Submitted,
        StatementKind, Tracker, Tx, Upcoming, Watch,
    },
    MySql, Shared,
    classify::{self, Assignment, Details, LexMode, NamedStatement, NamedVerb, Scope},
    codec::{
        self, Capabilities, Command, EofPacket, ErrPacket, HEADER_BYTES, Header, OkPacket, Reader,
        SessionChange, Status, put_lenenc_bytes,
    },
    error::write_error,
    handshake::{MyClient, read_greeting},
    left::{Ask, Left, Nature},
    parameters::{self, Front},
    query::{ResultHeader, write_query},
    server::{
        Definitions, FORGET, MAX_HELD_BYTES, MyServer, OnServer, Reply, Stage, write_command, write_front,
    },
    statement::{Prepared, Statement, Types},
};
use crate::buffer::Pipe;

/// Longest request that is read whole. A longer statement is relayed unread, so its client is pinned; a longer
/// execution of a prepared statement is relayed as well, since its text is known.
pub const MAX_TEXT_BYTES: usize = 4 << 20;

/// Statements of one client that are prepared at a time.
const MAX_STATEMENTS: usize = 16 * 1024;

/// What a client says in place of an id for the statement it has prepared last (MariaDB).
const LAST_PREPARED: u32 = u32::MAX;

/// The flag of an execution that asks for a cursor.
const CURSOR_TYPES: u8 = 0x07;

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
    /// Of the statement under way: what the server will report of it is known from its text.
    explains: Explained,
    left: Left,
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

/// What is known of a statement under way beside what the server says.
#[derive(Debug, Default)]
struct Explained {
    /// That something of the session changes is no surprise: pins hold it, or the text says it.
    state: bool,
    /// It runs code that no text shows.
    taints: bool,
    /// It makes settings in a way that is not followed.
    unsettles: bool,
    /// Its settings end with it, though the server reports them as if they stayed.
    passing: bool,
    /// Settings made by the text itself.
    made: Vec<(Box<str>, Box<str>)>,
    /// Variables that the server reports and `made` stands for.
    covers: &'static [&'static str],
    /// What it is to session functions.
    nature: Nature,
}

/// Of changes of its session, what a client has asked for beyond what servers tell by default.
#[derive(Debug, Default, Clone, Copy)]
struct Asks {
    variables: bool,
    state: bool,
    transactions: bool,
}

impl Asks {
    fn note(&mut self, variable: &str) {
        match variable {
            "session_track_system_variables" => self.variables = true,
            "session_track_state_change" => self.state = true,
            "session_track_transaction_info" => self.transactions = true,
            _ => {}
        }
    }
}

/// What `SET NAMES` and `SET CHARACTER SET` change, collation included, which servers do not all report.
const CHARACTER_SET: &[&str] =
    &["character_set_client", "character_set_connection", "character_set_results", "collation_connection"];

/// True where the server reports nothing of what such a statement may change.
fn is_untold(facts: &Facts, server: &MyServer) -> bool {
    let kinds =
        [StatementKind::Session, StatementKind::Routine, StatementKind::Other, StatementKind::Unknown];
    !server.tracks && (facts.changes_settings || facts.taints || kinds.contains(&facts.kind))
}

fn too_long(first: u8) -> ProtocolError {
    ProtocolError::BadLength { tag: char::from(first), len: i32::MAX }
}

/// What a status says of the result that it ends and of no other. An older client that is told of a cursor again expects
/// no rows.
const OF_ONE_RESULT: Status = Status(
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

/// What a session changes without anybody having to make it again.
const UNTRACKED: &[&str] = &["last_gtid", "warning_count", "error_count", "rand_seed1", "rand_seed2"];

/// Variables that count for the next statement only, or whose value is a moment: not to be made again elsewhere.
const MOMENTARY: &[&str] =
    &["timestamp", "insert_id", "last_insert_id", "identity", "pseudo_thread_id", "gtid_seq_no"];

/// ER_UNKNOWN_STMT_HANDLER.
const UNKNOWN_STATEMENT: u16 = 1243;

/// What is set on every connection, so that who sets it too changes nothing.
const OURS: &[(&str, &str)] = &[
    ("session_track_schema", "ON"),
    ("session_track_state_change", "ON"),
    ("session_track_system_variables", "*"),
    ("session_track_transaction_info", "CHARACTERISTICS"),
];

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

    fn nature(&self, facts: &Facts, details: &Details, text: &[u8]) -> Nature {
        let writes = facts.kind == StatementKind::Write;
        Nature {
            asks: details.session_functions,
            taints: facts.taints || facts.kind == StatementKind::Unknown,
            sets_insert_id: details.sets_last_insert_id,
            several: facts.statements != 1,
            writes,
            finds: facts.statements == 1
                && facts.kind == StatementKind::Select
                && !facts.digest_text.starts_with("show"),
            uses_tables: facts.statements == 1 && !facts.tables.is_empty() && !details.keeps_diagnostics,
            hides_ids: matches!(facts.kind, StatementKind::Copy | StatementKind::Ddl),
            given_ids: if writes { classify::given_ids(text, self.mode) } else { None },
        }
    }

    /// Has `server` answer what a statement asks of those before it; false where it cannot.
    fn make_askable(
        &mut self,
        nature: &Nature,
        shared: &Shared,
        up: &mut Pipe,
        server: &mut MyServer,
    ) -> bool {
        match self.left.ask(nature, &shared.ids_are_asked, server) {
            Ask::AsItIs => true,
            Ask::Lost => false,
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
    fn note_named(&mut self, facts: &Facts, details: &Details) {
        let names = |one: &NamedStatement| !matches!(one.verb, NamedVerb::Execute | NamedVerb::Deallocate);
        self.may_have_named |= facts.statements != 1
            || matches!(facts.kind, StatementKind::Routine | StatementKind::Unknown)
            || details.named_statements.iter().any(names);
    }

    fn fail_lost(&mut self, up: &mut Pipe, header: Header, down: &mut Pipe) {
        let message = "What the statement before has left is gone with its connection, which other clients have used \
            since; ask in the same transaction, or again after the statement, whose connection is kept from now on";
        self.fail(1105, "HY000", message, up, header, down);
    }

    fn fail_malformed(&mut self, up: &mut Pipe, header: Header, down: &mut Pipe) {
        self.fail(1835, "HY000", "Malformed communication packet", up, header, down);
    }

    fn report(&mut self, (mut statement, details): Known, text: Text) -> ClientEvent {
        if details.calculates_found_rows {
            // The statement after it is likely to ask, and no packet tells the answer.
            statement.extra_pins.insert(PinReason::SessionFunction);
        }
        self.current = Some(Current { statement: statement.clone(), details, admitted: false, text });
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

    fn query(
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
            let statement = self.read_text(shared, payload.get(at..).unwrap_or_default());
            return Ok(Some(self.report(statement, Text::Front(at))));
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
            return Ok(Some(ClientEvent::NeedServer { facts: Some(facts) }));
        };
        if let Some((code, sqlstate, message)) = self.stopped(&facts) {
            self.aborted &= !facts.ends_transaction;
            self.fail(code, sqlstate, message, up, header, down);
            return Ok(None);
        }
        self.aborted = false;
        let wants = self.multi_statements;
        if server.multi_statements != wants && memchr::memchr(b';', self.text(up)).is_some() {
            let option = u16::from(!wants);
            write_command(up.output(), Command::SetOption, &option.to_le_bytes());
            server.expect(Reply::Command, true, false);
            server.multi_statements = wants;
        }
        let nature = self.nature(&facts, &details, self.text(up));
        if !self.make_askable(&nature, shared, up, server) {
            self.fail_lost(up, header, down);
            return Ok(None);
        }
        server.write_closes(up.output());
        self.explains = Explained { nature, ..self.explain(&facts, &details, self.text(up), server) };
        self.note_named(&facts, &details);
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
        Ok(None)
    }

    /// After a refused statement nothing runs until the client has ended the transaction. Why this does not, if so.
    fn stopped(&self, facts: &Facts) -> Option<(u16, &'static str, &'static str)> {
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

    /// What the text says of the session changes that the server will report.
    fn explain(&self, facts: &Facts, details: &Details, text: &[u8], server: &MyServer) -> Explained {
        let mut explained = Explained {
            unsettles: is_untold(facts, server),
            state: !facts.pins.is_empty()
                || facts.kind == StatementKind::Ddl
                || !details.named_statements.is_empty(),
            taints: facts.taints,
            passing: details.sets_for_statement,
            ..Explained::default()
        };
        let sets = |wanted: fn(&Assignment) -> bool| details.sets_more || details.sets.iter().any(wanted);
        let sets_user = sets(|one| one.scope == Scope::User);
        // Servers do not report a collation that is not the character set's own.
        let collates = || text.to_ascii_lowercase().windows(7).any(|word| word == b"collate");
        let sets_collation =
            sets(|one| &*one.name == "character set") || (sets(|one| &*one.name == "names") && collates());
        if facts.statements != 1 {
            explained.unsettles |= sets_user || explained.passing || sets_collation;
            return explained;
        }
        if sets_collation {
            // So it is made again by its own words.
            explained.state = true;
            match classify::character_set_assignment(text, self.mode).and_then(|value| in_any_mode(&value)) {
                Some(words) if !sets(|one| CHARACTER_SET.contains(&&*one.name)) => {
                    explained.covers = CHARACTER_SET;
                    explained.made.push(("names".into(), format!("SET {words}").into()));
                }
                _ => explained.unsettles = true,
            }
        }
        if sets_user {
            explained.state = true;
            let assignments = classify::user_variable_assignments(text, self.mode);
            explained.unsettles |= assignments.is_none();
            for (name, value) in assignments.unwrap_or_default() {
                match in_any_mode(&value) {
                    Some(value) => {
                        let statement = format!("SET @`{}` = {value}", name.replace('`', "``"));
                        explained.made.push((format!("@{name}").into(), statement.into()));
                    }
                    None => explained.unsettles = true,
                }
            }
        }
        explained
    }

    fn prepare(
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
            let facts = self.current.as_ref().map(|current| current.statement.facts.clone());
            return Ok(Some(ClientEvent::NeedServer { facts }));
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
    fn named(&self, up: &Pipe, header: Header) -> Result<Option<(u32, Prepared)>, ClientEvent> {
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

    fn unknown(&mut self, command: &str, up: &mut Pipe, header: Header, down: &mut Pipe) {
        let id = up.unread().get(HEADER_BYTES + 1..HEADER_BYTES + header.len.min(5));
        let id = id.and_then(|bytes| bytes.first_chunk()).map_or(0, |bytes| u32::from_le_bytes(*bytes));
        let message = format!("Unknown prepared statement handler ({id}) given to {command}");
        self.fail(1243, "HY000", &message, up, header, down);
    }

    /// Has the statement prepared on `server` in order to be used there; `None` while it is not.
    fn on_server_as(statement: &Arc<Statement>, server: &mut MyServer, up: &mut Pipe) -> Option<OnServer> {
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

    fn execute(
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
            return Ok(Some(ClientEvent::NeedServer { facts: Some(facts) }));
        };
        if let Some((code, sqlstate, message)) = self.stopped(&facts) {
            self.aborted &= !facts.ends_transaction;
            self.fail(code, sqlstate, message, up, header, down);
            return Ok(None);
        }
        self.aborted = false;
        let nature = self.nature(&facts, &details, &statement.text);
        if !self.make_askable(&nature, shared, up, server) {
            self.fail_lost(up, header, down);
            return Ok(None);
        }
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
        Ok(None)
    }

    /// A command that begins with a statement id and goes on with the server's own.
    fn forward_named(&mut self, header: Header, up: &mut Pipe, id: u32, command: Command) {
        up.skip(HEADER_BYTES + 5);
        let mut front = vec![command as u8];
        front.extend_from_slice(&id.to_le_bytes());
        write_front(up.output(), header.len, &front);
        self.continues = header.continues();
        self.take(up, header.len - 5, true);
    }

    fn long_data(
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
        let facts = prepared.statement.facts.clone();
        let Some(server) = server else { return Some(ClientEvent::NeedServer { facts: Some(facts) }) };
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

    fn fetch(
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

    fn reset_statement(
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

    fn close_statement(
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
            if let Some(server) = server
                && let Some(there) = server.prepared.pop(&prepared.statement.id)
            {
                server.long_data.retain(|id| *id != there.id);
                server.cursors.retain(|id| *id != there.id);
                write_command(up.output(), Command::StmtClose, &there.id.to_le_bytes());
            }
        }
        self.take_packet(up, header, false);
        None
    }

    /// A command that is judged like a statement.
    fn command(
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
        let Some(server) = server else { return Some(ClientEvent::NeedServer { facts: Some(facts) }) };
        server.write_closes(up.output());
        self.current = None;
        let unsettles = is_untold(&facts, server);
        self.explains = Explained { state: true, unsettles, ..Explained::default() };
        self.pass_command(up, header, server, reply, facts.moves_transaction);
        None
    }

    /// The client wants its session as after login.
    fn reset_connection(
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
        let Some((facts, _)) = self.admitted() else { return Some(ClientEvent::NeedBytes) };
        let Some(server) = server else { return Some(ClientEvent::NeedServer { facts: Some(facts) }) };
        self.current = None;
        self.asks = Asks::default();
        self.statements.clear();
        self.left.forget();
        self.aborted = false;
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
    fn process_kill(&mut self, header: Header, up: &mut Pipe, down: &mut Pipe) -> Option<ClientEvent> {
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

    fn set_option(&mut self, header: Header, up: &mut Pipe, down: &mut Pipe) -> Option<ClientEvent> {
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

    /// The end of a result, as this client expects it.
    fn write_end(&self, end: &OkPacket<'_>, seq: u8, out: &mut Vec<u8>) {
        if self.agreed.contains(Capabilities::DEPRECATE_EOF) {
            end.write(codec::EOF, seq, self.agreed, out);
        } else {
            EofPacket { warnings: end.warnings, status: end.status }.write(seq, self.agreed, out);
        }
    }

    fn legacy(&self) -> bool {
        !self.agreed.contains(Capabilities::DEPRECATE_EOF)
    }

    /// A change of the session that the server reports while a statement of the client runs.
    fn learn(&mut self, change: &SessionChange<'_>) {
        match change {
            SessionChange::Variable { name, value } => {
                let (Ok(name), Ok(value)) = (std::str::from_utf8(name), std::str::from_utf8(value)) else {
                    self.learned.pins.insert(PinReason::SessionVariable);
                    return;
                };
                let name = name.to_lowercase();
                self.explains.state = true;
                if UNTRACKED.contains(&&*name) || self.explains.covers.contains(&&*name) {
                    return;
                }
                self.asks.note(&name);
                if OURS.contains(&(&*name, value)) {
                    return;
                }
                if MOMENTARY.contains(&&*name) || name.starts_with("session_track") {
                    self.learned.pins.insert(PinReason::SessionVariable);
                    return;
                }
                let value = match value {
                    // No name of a character set.
                    "" if name == "character_set_results" => "NULL".to_owned(),
                    value => literal(value),
                };
                let statement = format!("SET SESSION `{name}` = {value}");
                self.learned.changes.push(StateChange::Made(name.into(), statement.into()));
            }
            SessionChange::Schema(name) => {
                self.explains.state = true;
                match std::str::from_utf8(name) {
                    Ok(name) if !name.is_empty() => {
                        let statement = format!("USE `{}`", name.replace('`', "``"));
                        self.learned.changes.push(StateChange::Made("database".into(), statement.into()));
                    }
                    _ => self.learned.pins.insert(PinReason::SessionVariable),
                }
            }
            SessionChange::State(b"1") => self.state_changed = true,
            _ => {}
        }
    }

    /// All that a statement has changed is known now. What an error keeps back, or what no text and no report
    /// explains, makes the session keep this connection.
    fn settle(&mut self, failed: bool) {
        let explains = std::mem::take(&mut self.explains);
        let changed = std::mem::take(&mut self.state_changed);
        let surprise = changed && (explains.taints || !explains.state);
        if surprise || explains.unsettles || (failed && explains.taints) {
            self.learned.pins.insert(PinReason::SessionVariable);
        }
        if !failed {
            for (variable, statement) in explains.made {
                self.learned.changes.push(StateChange::Made(variable, statement));
            }
        }
    }

    /// Moves the packet at the front, or as much of it as has come. Its sequence number becomes the client's.
    fn relay(&self, down: &mut Pipe, server: &mut MyServer, header: Header, kept: bool) {
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

    /// Column definitions are through: what older clients expect there.
    fn end_columns(&self, down: &mut Pipe, server: &mut MyServer, kept: bool) {
        if kept && self.legacy() && server.agreed.contains(Capabilities::DEPRECATE_EOF) {
            let eof = EofPacket { warnings: 0, status: self.status };
            eof.write(server.seq.wrapping_add(server.shift), self.agreed, down.output());
            server.shift = server.shift.wrapping_add(1);
        }
    }

    /// A packet that is read whole: the beginning or the end of an answer, or of a part of it.
    fn on_packet(
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
            server.note_error(head.as_ref().is_none_or(|head| head.moves_transaction));
            if !kept {
                match head.map(|head| head.reply) {
                    // The client will be told in place of what it wants to run.
                    Some(Reply::Prepared(statement)) => {
                        self.unprepared = Some(Box::new((statement.id, error)))
                    }
                    // What we asked for ourselves has not come about; nobody may rely on this connection.
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
            self.settle(true);
            return Ok(Some(ServerEvent::Answered { failed: true, nothing_ran }));
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
                        server.seq = header.seq.wrapping_add(1);
                        self.end_columns(down, server, kept);
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
                        server.seq = header.seq.wrapping_add(1);
                        self.end_columns(down, server, kept);
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
            (Stage::Start, Some(Reply::Results)) if !matches!(first, codec::OK | codec::EOF) => {
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
    fn pass_eof(&self, down: &mut Pipe, server: &mut MyServer, header: Header, kept: bool) {
        if kept && !self.legacy() {
            down.skip(header.total());
            server.shift = server.shift.wrapping_sub(1);
        } else {
            self.relay(down, server, header, kept);
        }
    }

    /// COM_STMT_PREPARE's OK. Shape: `0x00 | statement: u32 | columns: u16 | parameters: u16 | 0x00 | warnings: u16 |
    /// [definitions follow: u8]`, the last with `OPTIONAL_RESULTSET_METADATA` only.
    fn prepared(
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
        let (_filler, _warnings) = (reader.u8(), reader.u16());
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

    fn prepared_is_over(&mut self, server: &mut MyServer, kept: bool) -> Option<ServerEvent> {
        if server.stage != Stage::PreparedColumns(0) {
            return None;
        }
        let head = server.pop();
        if !kept {
            server.owners.note_own();
        }
        if server.caches_metadata
            && let Some(Reply::Prepared(statement)) = head.map(|head| head.reply)
        {
            self.defined(statement.id, kept.then_some(self.next_id), server);
        }
        kept.then_some(ServerEvent::Answered { failed: false, nothing_ran: false })
    }

    /// One more definition of a column, of a statement whose definitions are kept.
    fn define(&mut self, packet: &[u8]) {
        let at = self.definitions.len() + HEADER_BYTES - 1;
        self.definitions.extend_from_slice(packet);
        // The same definition has another number in another answer.
        if let Some(seq) = self.definitions.get_mut(at) {
            *seq = 0;
        }
    }

    /// All definitions of `statement` have come to `server`, and to the client if it is one of its own.
    fn defined(&mut self, statement: u64, client_id: Option<u32>, server: &mut MyServer) {
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
    fn left_out(&mut self, id: u32, server: &mut MyServer) -> Option<Definitions> {
        let prepared = self.statements.get_mut(&id)?;
        let there = server.prepared.get(&prepared.statement.id)?.columns.clone()?;
        if prepared.columns.as_ref() == Some(&there) {
            return None;
        }
        prepared.columns = Some(there.clone());
        Some(there)
    }

    /// Puts `columns`, of which there are `count`, behind the first packet of a result.
    fn insert(&self, columns: &[u8], count: u64, header: Header, down: &mut Pipe, server: &mut MyServer) {
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
    fn end(
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
            if self.explains.passing {
                // The next answer tells what is again as it was.
                server.mode = mode;
                self.explains.state = true;
                changes.retain(|change| !matches!(change, SessionChange::Variable { .. }));
            }
            for change in &changes {
                self.learn(change);
            }
            self.status = end.status.without(OF_ONE_RESULT);
            self.mode = server.mode;
            let id = end.last_insert_id;
            self.left.note_result(id, &self.explains.nature, server);
            // A result with a cursor has no rows and, for older clients, one EOF only.
            let cursor = end.status.contains(Status::CURSOR_EXISTS) && server.stage == Stage::FirstRow;
            if server.stage == Stage::FirstRow && !cursor {
                self.end_columns(down, server, kept);
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
    fn over(&mut self, server: &mut MyServer, kept: bool, end: &OkPacket<'_>) -> Option<ServerEvent> {
        let head = server.pop();
        if !kept {
            server.owners.note_own();
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
        self.settle(false);
        Some(ServerEvent::Answered { failed: false, nothing_ran: false })
    }

    /// A statement of the client is over, and has left something for the next to ask.
    fn note_left(&mut self, failed: bool, warnings: bool, server: &mut MyServer) {
        if self.left.note_over(&self.explains.nature, failed, warnings, server) {
            self.learned.pins.insert(PinReason::SessionFunction);
        }
    }

    fn note_outcome(&mut self, error: Option<Box<str>>, affected: u64) {
        let rows = std::mem::take(&mut self.rows) + affected;
        if self.watch.outcomes {
            self.outcomes.push(Outcome { rows, error });
        }
    }
}

/// Of changes of a session, what a client is told that has asked for no more: what servers report by default.
const USUAL: [&[u8]; 5] = [
    b"autocommit",
    b"character_set_client",
    b"character_set_connection",
    b"character_set_results",
    b"time_zone",
];

/// See [`USUAL`]; the database too, and what the client asks for.
fn told_changes(changes: &[SessionChange<'_>], asks: Asks) -> Vec<u8> {
    let mut told = Vec::new();
    for change in changes {
        let mut entry = Vec::new();
        let kind = match change {
            SessionChange::Variable { name, value } if asks.variables || USUAL.contains(name) => {
                put_lenenc_bytes(&mut entry, name);
                put_lenenc_bytes(&mut entry, value);
                codec::track::SYSTEM_VARIABLES
            }
            SessionChange::Schema(name) => {
                put_lenenc_bytes(&mut entry, name);
                codec::track::SCHEMA
            }
            SessionChange::State(changed) if asks.state => {
                // With no length of its own before it, as servers have it.
                entry.extend_from_slice(changed);
                codec::track::STATE_CHANGE
            }
            SessionChange::Characteristics(statements) if asks.transactions => {
                put_lenenc_bytes(&mut entry, statements);
                codec::track::TRANSACTION_CHARACTERISTICS
            }
            SessionChange::Transaction(state) if asks.transactions => {
                put_lenenc_bytes(&mut entry, state);
                codec::track::TRANSACTION_STATE
            }
            _ => continue,
        };
        told.push(kind);
        put_lenenc_bytes(&mut told, &entry);
    }
    told
}

/// A constant of a client's text, to be read alike in every `sql_mode` and character set; `None` when it is not.
fn in_any_mode(value: &[u8]) -> Option<String> {
    let value = std::str::from_utf8(value).ok().filter(|value| value.is_ascii() && !value.contains('\\'))?;
    match value.strip_prefix('"').and_then(|value| value.strip_suffix('"')) {
        _ if !value.contains('"') => Some(value.to_owned()),
        Some(inside) if !inside.contains(['"', '\'']) => Some(format!("'{inside}'")),
        _ => None,
    }
}

/// A value as the server reports it, as a literal.
fn literal(value: &str) -> String {
    let is_number = !value.is_empty()
        && value.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'-' | b'.'))
        && value.bytes().any(|byte| byte.is_ascii_digit());
    if is_number && value.parse::<f64>().is_ok() {
        return value.to_owned();
    }
    // Without a backslash it means the same in every sql_mode.
    if !value.contains('\\') {
        return format!("'{}'", value.replace('\'', "''"));
    }
    let mut hex = String::from("x'");
    for byte in value.bytes() {
        hex.push_str(&format!("{byte:02x}"));
    }
    hex.push('\'');
    hex
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
            watch: Watch::default(),
            outcomes: Vec::new(),
            rows: 0,
            learned: Learned::default(),
            state_changed: false,
            may_have_named: false,
            aborted: false,
            explains: Explained::default(),
            left: Left::default(),
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
                let kept = self.owed_kept;
                self.take_packet(up, header, kept);
                continue;
            }
            if let Some(server) = server.as_deref_mut() {
                if server.stage == Stage::Infile {
                    // The client counts on from what it has seen.
                    up.patch(3, header.seq.wrapping_sub(server.shift));
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
            // What follows an empty packet is not a part of it.
            if header.len == 0 {
                return Err(ProtocolError::Malformed("command"));
            }
            let Some(&byte) = up.unread().get(HEADER_BYTES) else { return Ok(ClientEvent::NeedBytes) };
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

    fn attach(&mut self, server: &MyServer) {
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
                let (statement, details) = self.read_text(shared, text.as_bytes());
                let statement = Submitted { prepares, ..statement };
                self.current = Some(Current {
                    statement: statement.clone(),
                    details,
                    admitted: false,
                    text: Text::Rewritten(text.into_bytes()),
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
        match Header::read(up.unread()) {
            Some(header) if up.unread().len() >= header.total().min(MAX_TEXT_BYTES) => Upcoming::Whole,
            _ => Upcoming::Partial,
        }
    }

    fn upcoming(&self, _shared: &Shared, up: &Pipe, visit: &mut dyn FnMut(&Submitted, &[u8])) -> Upcoming {
        if let Some(current) = &self.current {
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
            server.seq = header.seq;
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
                    if server.stage == Stage::FirstRow {
                        self.end_columns(down, server, kept);
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

    fn opens_transactions(&self) -> bool {
        !self.status.contains(Status::AUTOCOMMIT)
    }

    fn is_mid_message(&self) -> bool {
        self.owed > 0 || self.continues
    }

    fn standing_pins(&self) -> PinReasons {
        PinReasons::NONE
    }

    fn refuse(&mut self, fault: &Fault, up: &mut Pipe, down: &mut Pipe) {
        self.current = None;
        let Some(header) = Header::read(up.unread()) else { return };
        self.take_packet(up, header, false);
        write_error(fault, 1, self.agreed, down.output());
    }

    fn write_question(&mut self, server: &mut MyServer, up: &mut Pipe) {
        if server.doubtful && server.expects_nothing() {
            write_command(up.output(), Command::Ping, &[]);
            server.expect(Reply::Command, true, false);
        }
    }

    fn write_forget_session_functions(&mut self, _server: &mut MyServer, _up: &mut Pipe) {
        // Seen to with each statement that asks.
    }
}

#[cfg(test)]
mod tests;
