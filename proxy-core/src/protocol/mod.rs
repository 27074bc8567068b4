//! The seam: what every database protocol brings, and the vocabulary that the rest of Pinion speaks.
//!
//! A protocol is sans I/O: bytes in, bytes and facts out. It never sees a socket, a clock or the pool. The listener
//! chooses one and spawns `Session<P>`; after that nobody asks which protocol is served. What is not generic speaks
//! [`Facts`], [`Tx`], [`PinReasons`] and [`Fault`].

use std::{fmt, sync::Arc};

use crate::{
    buffer::{Buffer, Pipe},
    config::ClientAuthType,
    secrets::Secret,
};

pub mod mysql;
pub mod postgres;

mod digest;
mod vocabulary;

pub use postgres::scram::MockKey;
pub use vocabulary::{
    Dialect, Facts, Fault, FaultKind, PinReason, PinReasons, Role, Severity, StatementKind, Tx,
};

/// One database protocol.
pub trait Protocol: Sized + Send + Sync + 'static {
    /// Metric label and config value.
    const NAME: &'static str;
    /// Of its statements.
    const DIALECT: Dialect;
    /// A client may begin with a TLS handshake at once.
    const DIRECT_TLS: bool;
    /// What all connections of one proxy share: statement facts, texts of prepared statements.
    type Shared: Send + Sync + 'static;
    /// We play the server.
    type Accept: Accept<Self>;
    /// We play the client.
    type Connect: Connect<Self>;
    /// What is remembered of one client.
    type Tracker: Tracker<Self>;
    /// What is remembered of one server connection.
    type Server: ServerState;

    /// Made once per proxy; `max_prepared` bounds prepared statements on one server connection.
    fn shared(max_prepared: usize) -> Self::Shared;
    /// The end of a login: everything from "authentication ok" to "ready".
    fn write_welcome(greeting: &Greeting, key: CancelKey, out: &mut Vec<u8>);
    /// A fault for a client that is between requests, in its login, or not to be kept.
    fn write_fault(fault: &Fault, out: &mut Vec<u8>);
    /// What a text is, without a session: its digest, its facts, and the hint in its comments.
    fn know(shared: &Self::Shared, text: &[u8]) -> (u128, Arc<Facts>, String);
    /// The code that [`Self::write_fault`] sends.
    fn fault_code(fault: &Fault) -> Box<str>;
    /// The database that connections of `key` lead to.
    fn database(key: &PoolKey) -> &str;
    /// What clients of `key` call themselves; empty for nothing.
    fn application(key: &PoolKey) -> &str;
    /// A statement of our own, to be sent alone; the answer is read by [`ServerState::absorb`].
    fn write_query(sql: &str, out: &mut Vec<u8>);
    /// Puts a server connection's session back to what it was after login.
    fn write_reset(server: &mut Self::Server, out: &mut Vec<u8>);
    /// A round trip without a statement.
    fn write_ping(out: &mut Vec<u8>);
    /// The polite end of a server connection.
    fn write_goodbye(out: &mut Vec<u8>);
    /// Asks the server, on a connection of its own, to cancel what `key`'s connection runs.
    fn write_cancel(key: &ServerKey, out: &mut Vec<u8>);
    /// Asks the server for TLS before anything else; the answer is one byte, `S` for yes.
    fn write_tls_request(out: &mut Vec<u8>);
    /// Reads the server's connection limits: one row of two numbers, `max_connections` and how many of those are
    /// reserved.
    const LIMITS_QUERY: &'static str;
    /// Asks the server what it is: one row with a [`Role::name`]. Sent every second, so it should be cheap.
    const ROLE_QUERY: &'static str;
}

/// What tells server connections apart that may not stand in for each other: user, and everything fixed at login.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct PoolKey {
    /// Database user.
    pub user: Box<str>,
    /// Start-up parameters in the protocol's own form, database included, in one order whatever order they came in.
    pub parameters: Box<[u8]>,
}

impl fmt::Debug for PoolKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[{}]", self.user, self.parameters.escape_ascii())
    }
}

/// What a server said of itself at login, for the clients that come after.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Greeting {
    /// Messages in the protocol's own form, written to each client as they are.
    pub bytes: Vec<u8>,
}

/// A key we gave to a client, so that it can ask for a cancel.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct CancelKey {
    /// Names the session.
    pub id: u32,
    /// Proves the right to cancel.
    pub secret: u32,
}

impl fmt::Debug for CancelKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CancelKey({})", self.id)
    }
}

/// A key that a server gave to us.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct ServerKey {
    /// The server's process or thread.
    pub id: u32,
    /// Up to 256 bytes.
    pub secret: Vec<u8>,
}

impl fmt::Debug for ServerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ServerKey({})", self.id)
    }
}

/// A client that has proved who it is.
#[derive(Debug)]
pub struct Login {
    /// Where its server connections come from.
    pub key: PoolKey,
}

/// What the listener lets the handshake know.
#[derive(Debug, Clone, Copy)]
pub struct AcceptOptions {
    /// A certificate is configured.
    pub offer_tls: bool,
    /// Refuse what is not encrypted.
    pub require_tls: bool,
}

/// What a handshake wants next.
#[derive(Debug)]
pub enum AcceptStep {
    /// More bytes from the client.
    NeedBytes,
    /// Write what there is, then start TLS and call [`Accept::tls_started`].
    StartTls,
    /// Look up this user and call [`Accept::credentials`].
    NeedCredentials(String),
    /// Logged in.
    Login(Login),
    /// Not a session: cancel what the holder of this key runs, then close without a word.
    Cancel(CancelKey),
    /// The client left, politely.
    Quit,
}

/// The server's part of a login. Faults are written by the caller and end the connection.
pub trait Accept<P: Protocol>: Send + Sized {
    /// A new client.
    fn new(options: AcceptOptions) -> Self;
    /// Goes on as far as the bytes reach.
    fn advance(&mut self, input: &mut Buffer, out: &mut Vec<u8>) -> Result<AcceptStep, Fault>;
    /// The client began with a TLS handshake; [`Self::tls_started`] follows.
    fn direct_tls(&mut self) -> Result<(), Fault>;
    /// TLS is up. `end_point` is the tls-server-end-point channel binding (RFC 5929), `protocol` the agreed ALPN.
    fn tls_started(&mut self, end_point: Option<&[u8]>, protocol: Option<&[u8]>) -> Result<(), Fault>;
    /// The answer to [`AcceptStep::NeedCredentials`]; `None` for a user without a secret, who must not be told.
    fn credentials(
        &mut self,
        method: ClientAuthType,
        secret: Option<Arc<Secret>>,
        mock: &MockKey,
        out: &mut Vec<u8>,
    ) -> Result<(), Fault>;
}

/// What a login to a server wants next.
#[derive(Debug)]
pub enum ConnectStep {
    /// More bytes from the server.
    NeedBytes,
    /// Ready for statements.
    Done,
}

/// Why a server did not let us in.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The server said no; `fault` is its own word, fit for the client.
    #[error("server refused the login: {}", .fault.message)]
    Refused {
        /// For the client.
        fault: Fault,
        /// The secret may be out of date: worth one try with a fresh one.
        bad_secret: bool,
        /// It may let us in later (starting up, too many connections).
        try_again: bool,
    },
    /// The server broke the protocol or asked for what we do not do.
    #[error("server login failed: {0}")]
    Protocol(String),
}

/// The client's part of a login.
pub trait Connect<P: Protocol>: Send + Sized {
    /// Writes the first message. `tls` is the tls-server-end-point binding when encrypted (`Some(None)`: encrypted,
    /// no binding defined for that certificate).
    fn start(key: &PoolKey, secret: Arc<Secret>, tls: Option<Option<Vec<u8>>>, out: &mut Vec<u8>) -> Self;
    /// Goes on as far as the bytes reach.
    fn advance(&mut self, input: &mut Buffer, out: &mut Vec<u8>) -> Result<ConnectStep, ConnectError>;
    /// After [`ConnectStep::Done`].
    fn finish(self, shared: &P::Shared) -> P::Server;
}

/// The peer sent what the protocol does not allow.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// A length outside what the message may have.
    #[error("message {tag:?} has invalid length {len}")]
    BadLength {
        /// Message type.
        tag: char,
        /// As sent.
        len: i32,
    },
    /// A message type that does not exist, or not here.
    #[error("unexpected message {0:?}")]
    Unexpected(char),
    /// A body that does not parse.
    #[error("malformed {0} message")]
    Malformed(&'static str),
}

/// What an exchange of our own with the server came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Absorbed {
    /// More bytes needed.
    NeedBytes,
    /// Over; the first row's columns as text, and the error's text if there was one.
    Done {
        /// First row, NULL as empty.
        row: Vec<String>,
        /// Code and message.
        error: Option<String>,
    },
}

/// What is remembered of one server connection.
pub trait ServerState: Send + fmt::Debug {
    /// Transaction state as last reported.
    fn tx(&self) -> Tx;
    /// True when every request sent has been answered whole and no half-sent request lies with the server.
    fn is_quiet(&self) -> bool;
    /// True while the server still owes an answer to anything.
    fn owes_answer(&self) -> bool;
    /// True while the end of a whole request of the client is to come.
    fn is_request_under_way(&self) -> bool;
    /// True when what it may still send cannot be told: never to be lent again.
    fn must_retire(&self) -> bool;
    /// True once after [`Tracker::write_forget_session_functions`] has done its work.
    fn take_forgot(&mut self) -> bool;
    /// True when a message has been passed to the client in part only.
    fn is_mid_message(&self) -> bool;
    /// True when the client has been given an error of the server and not yet the end of that answer.
    fn has_told_error(&self) -> bool;
    /// True when something is left that another client might stumble over.
    fn is_tainted(&self) -> bool;
    /// For cancels.
    fn key(&self) -> &ServerKey;
    /// What later clients of the same pool are told.
    fn greeting(&self) -> Arc<Greeting>;
    /// Reads the answer to a statement of our own.
    fn absorb(&mut self, input: &mut Buffer) -> Result<Absorbed, ProtocolError>;
    /// Anything that comes while nobody uses the connection: notices are dropped; an error, or a changed setting that
    /// the greeting no longer tells, means the connection must close (`Err`).
    fn absorb_idle(&mut self, input: &mut Buffer) -> Result<(), ProtocolError>;
}

/// What the tracker made of the client's bytes.
#[derive(Debug)]
pub enum ClientEvent {
    /// Everything whole has been dealt with; read more.
    NeedBytes,
    /// The server must answer before more of the client's bytes can be understood.
    NeedAnswer,
    /// A server connection is needed for what comes next.
    NeedServer {
        /// Of the statement that needs it, where known already.
        facts: Option<Arc<Facts>>,
    },
    /// A statement is about to run. Decide, then call [`Tracker::admit`] and come again.
    Statement(Statement),
    /// The client said goodbye.
    Quit,
}

/// A statement on its way to a server.
#[derive(Debug, Clone)]
pub struct Statement {
    /// What the grammar says.
    pub facts: Arc<Facts>,
    /// 128-bit keyed hash of the normalised text.
    pub digest: u128,
    /// Bytes of text.
    pub bytes: usize,
    /// Pins that this client's own state adds to what the text says.
    pub extra_pins: PinReasons,
    /// It is prepared now and does not run yet.
    pub prepares: bool,
    /// It runs within the statement reported before, as what SQL `EXECUTE` names.
    pub within: bool,
}

/// What policy asks of a tracker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Watch {
    /// Policy is asked about statements that run.
    pub runs: bool,
    /// Report statements when they are prepared, too, so that they may be rewritten.
    pub prepares: bool,
    /// Of the policy: what was prepared under another one is reported again before it is used.
    pub generation: u64,
    /// Keep [`Outcome`]s.
    pub outcomes: bool,
}

/// What became of a rewrite.
#[derive(Debug)]
pub enum Rewritten {
    /// Known anew as this statement.
    Known(Statement),
    /// The statement was prepared, and settled, before: it runs as it is.
    Settled,
    /// There is no text that could be another.
    Impossible,
}

/// How much of a request there is to see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Upcoming {
    /// All of it.
    Whole,
    /// More of it is on its way.
    Partial,
    /// The client wants answers before it says what comes next.
    OpenEnded,
}

/// How one statement went, as the server counted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Outcome {
    /// Rows returned or changed.
    pub rows: u64,
    /// The database's error code.
    pub error: Option<Box<str>>,
}

/// What the tracker made of the server's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServerEvent {
    /// Read more.
    NeedBytes,
    /// One request has been answered whole; `failed` when the answer held an error.
    Answered {
        /// An error was among the answers.
        failed: bool,
        /// The error came before any statement of the request ran.
        nothing_ran: bool,
    },
}

/// Watches both directions of one client's conversation and turns protocol detail into the shared vocabulary.
pub trait Tracker<P: Protocol>: Send {
    /// A logged-in client.
    fn new(key: &PoolKey, greeting: &Greeting) -> Self;
    /// Judges what the client sent. Answers of our own go to `down` when no server is held, otherwise behind the
    /// answers that the server still owes.
    fn on_client(
        &mut self,
        shared: &P::Shared,
        up: &mut Pipe,
        server: Option<&mut P::Server>,
        down: &mut Pipe,
    ) -> Result<ClientEvent, ProtocolError>;
    /// A server connection was borrowed. What was found out about the statement at the front may not hold there; then
    /// it is reported anew.
    fn attach(&mut self, server: &P::Server);
    /// The statement last reported may run. Unless it is `settled`, policy failed to say anything about it and is asked
    /// again when it is used next.
    fn admit(&mut self, settled: bool);
    /// What policy asks from now on.
    fn watch(&mut self, watch: Watch);
    /// Text of the statement last reported, empty where it was not read. `up` is unchanged since.
    fn text<'a>(&'a self, up: &'a Pipe) -> &'a [u8];
    /// The word after `pinion:` in a comment of `text`; empty for none.
    fn hint<'a>(&self, text: &'a [u8]) -> &'a str;
    /// Variables whose names stand in literals of `text`; see [`Facts::variables_in_literals`].
    fn literal_variables(&self, text: &[u8]) -> Vec<String>;
    /// Another text in place of that of the statement last reported.
    fn rewrite(&mut self, shared: &P::Shared, text: String) -> Rewritten;
    /// The statement last reported must not run: tells the client, and makes an open transaction of the server fail,
    /// so that a later commit cannot commit the rest. True when all of the request has been answered here.
    fn reject(
        &mut self,
        fault: &Fault,
        up: &mut Pipe,
        server: Option<&mut P::Server>,
        down: &mut Pipe,
    ) -> bool;
    /// How much of the request at the front has come.
    fn extent(&self, up: &Pipe) -> Upcoming;
    /// Shows the statements of the request at the front, each with its text, as far as they have come.
    fn upcoming(&self, shared: &P::Shared, up: &Pipe, visit: &mut dyn FnMut(&Statement, &[u8])) -> Upcoming;
    /// How the statements of the request just answered went, in the order they ran.
    fn take_outcomes(&mut self) -> Vec<Outcome>;
    /// Judges what the server sent.
    fn on_server(&mut self, down: &mut Pipe, server: &mut P::Server) -> Result<ServerEvent, ProtocolError>;
    /// True when a message of the client has gone to the server in part only.
    fn is_mid_message(&self) -> bool;
    /// Pins that come from the login itself.
    fn standing_pins(&self) -> PinReasons;
    /// A request failed before it reached a server: tells the client, and what belongs to the same request is
    /// skipped as the protocol says.
    fn refuse(&mut self, fault: &Fault, up: &mut Pipe, down: &mut Pipe);
    /// Before a statement that reads session functions runs on a connection that others have used: makes the
    /// server forget what they left. The answers are swallowed.
    fn write_forget_session_functions(&mut self, server: &mut P::Server, up: &mut Pipe);
}
