//! The seam: what every database protocol brings, and the vocabulary that the rest of Pinion speaks.
//!
//! A protocol is sans I/O: bytes in, bytes and facts out. It never sees a socket, a clock or the pool. The listener
//! chooses one and spawns `Session<P>`; after that nobody asks which protocol is served. What is not generic speaks
//! [`Facts`], [`Tx`], [`PinReasons`] and [`Fault`].

use std::{collections::BTreeSet, fmt, net::IpAddr, sync::Arc};

use crate::{
    buffer::{Buffer, Pipe},
    channels::Notification,
    config::{ClientAuthType, TlsMode},
    secrets::Secret,
    state::Settings,
};

pub mod mysql;
pub mod postgres;

mod digest;
mod vocabulary;
mod words;

pub use postgres::scram::MockKey;
pub use vocabulary::{
    ChannelChange, Dialect, Facts, Fault, FaultKind, Moves, PinReason, PinReasons, Role, Severity,
    StatementKind, Tx,
};

/// One database protocol.
pub trait Protocol: Sized + Send + Sync + 'static {
    /// Metric label and config value.
    const NAME: &'static str;
    /// Of its statements.
    const DIALECT: Dialect;
    /// A client may begin with a TLS handshake at once.
    const DIRECT_TLS: bool;
    /// Servers report whatever changes in a session ([`Tracker::take_learned`]), so that no text need say it.
    const TELLS_SETTINGS: bool;
    /// The tracker itself sees to what statements leave for session functions: it tells what of it pins, and refuses
    /// what it can neither set again nor know.
    const KNOWS_WHAT_IS_LEFT: bool;
    /// What all connections of one proxy share: statement facts, texts of prepared statements.
    type Shared: Send + Sync + 'static;
    /// What servers say of themselves before a client may be greeted.
    type Hello: Hello;
    /// The hello of a proxy that has reached no server yet; `None` makes clients wait until it has.
    const FIRST_HELLO: Option<Self::Hello>;
    /// What one client has negotiated, apart from what makes its pool.
    type Client: Send + fmt::Debug;
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
    /// A fault for a client of which nothing was read and to which nothing was written.
    fn write_refusal(fault: &Fault, out: &mut Vec<u8>);
    /// What a text is, without a session: its digest, its facts, and the hint in its comments.
    fn know(shared: &Self::Shared, text: &[u8]) -> (u128, Arc<Facts>, String);
    /// The code that [`Tracker::write_fault`] sends.
    fn fault_code(fault: &Fault) -> Box<str>;
    /// The database that connections of `key` lead to.
    fn database(key: &PoolKey) -> &str;
    /// Where the monitor's connections come from.
    fn monitor_key(user: &str, database: &str) -> PoolKey;
    /// A statement of our own, to be sent while the connection is quiet; the answer is read by [`ServerState::absorb`].
    fn write_query(server: &mut Self::Server, sql: &str, out: &mut Vec<u8>);
    /// Takes away what a client may have left unseen, at less cost than a reset; [`Self::is_clean`] says whether that has
    /// done. False, and nothing written, where only a reset will do.
    fn write_cleanup(_server: &mut Self::Server, _out: &mut Vec<u8>) -> bool {
        false
    }
    /// By the answer to [`Self::write_cleanup`].
    fn is_clean(_row: &[String]) -> bool {
        false
    }
    /// Pins of which the server can be asked whether they still hold.
    const PROVABLE: PinReasons = PinReasons::NONE;
    /// There are servers on which [`Tracker::packing`] may be of use.
    const PACKS_TABLES: bool = false;
    /// Settings that code may change without naming them.
    const IDENTITY: &'static [&'static str] = &[];
    /// Asks how a session stands: what pins it, and its settings `names`; with `all`, any others it may have. False, and
    /// nothing written, where that cannot be asked.
    fn write_inquiry(_server: &mut Self::Server, _names: &[&str], _all: bool, _out: &mut Vec<u8>) -> bool {
        false
    }
    /// Asks which settings code of the database's own may change. False, and nothing written, where it may be any.
    fn write_survey(_server: &mut Self::Server, _out: &mut Vec<u8>) -> bool {
        false
    }
    /// The answer to [`Self::write_survey`]; `None` when it is none.
    fn read_survey(_row: &[String]) -> Option<Survey> {
        None
    }
    /// The answer to [`Self::write_inquiry`]; `None` when it is none. `user` is who logged in.
    fn read_inquiry(_row: &[String], _names: &[&str], _user: &str) -> Option<Findings> {
        None
    }
    /// True for a statement that does the same in every session, however that reads text.
    fn is_repeatable(_statement: &str) -> bool {
        true
    }
    /// True when a statement that clears these pins takes the setting `name` back.
    fn takes_back(_cleared: PinReasons, _name: &str) -> bool {
        true
    }
    /// True when nothing takes the setting `name` back while a connection lives, be it a reset.
    fn is_lasting(_name: &str) -> bool {
        false
    }
    /// What is to be run on a connection that wears `worn` so that it wears `wanted`; `None` where it must be reset first.
    fn difference(worn: &Settings, wanted: Option<&Settings>) -> Option<Vec<String>> {
        worn.continuation(wanted?)
    }
    /// The login of a connection that hears notifications for clients of `key`'s database, as UTF-8. `None` where servers
    /// notify nobody.
    fn listener_key(_key: &PoolKey) -> Option<PoolKey> {
        None
    }
    /// Has a connection hear these channels, all or none of them.
    fn write_listen(_server: &mut Self::Server, _channels: &[&str], _out: &mut Vec<u8>) {}
    /// Has it hear these no more.
    fn write_unlisten(_server: &mut Self::Server, _channels: &[&str], _out: &mut Vec<u8>) {}
    /// The notifications among what [`ServerState::take_heard`] gave, in order.
    fn notifications(_heard: &[u8]) -> Vec<Notification<'_>> {
        Vec::new()
    }
    /// Puts a server connection's session back to what it was after login.
    fn write_reset(server: &mut Self::Server, out: &mut Vec<u8>);
    /// A round trip without a statement.
    fn write_ping(out: &mut Vec<u8>);
    /// The polite end of a server connection.
    fn write_goodbye(out: &mut Vec<u8>);
    /// Asks the server, on a connection of its own, to cancel what `key`'s connection runs, and to close.
    fn write_cancel(key: &ServerKey, out: &mut Vec<u8>);
    /// Why a cancel has failed, by what the server sent until it closed; `None` when it has not.
    fn cancel_error(answer: &[u8]) -> Option<String> {
        let _ = answer;
        None
    }
    /// Reads the server's connection limits: one row of two numbers, `max_connections` and how many of those are
    /// reserved.
    const LIMITS_QUERY: &'static str;
    /// Asks the server what it is: one row with a [`Role::name`]. Sent every second, so it should be cheap.
    const ROLE_QUERY: &'static str;
}

/// How a server says that a session stands; see [`Protocol::write_inquiry`].
#[derive(Debug, Default)]
pub struct Findings {
    /// Of these pins it is known whether they hold.
    pub covers: PinReasons,
    /// What pins.
    pub pins: PinReasons,
    /// Settings with the statement that makes them; `None` for one that is as after login.
    pub settings: Vec<(Box<str>, Option<Box<str>>)>,
}

/// What code of a database's own may change of a session.
#[derive(Debug, Clone)]
pub struct Survey {
    /// These settings.
    pub names: Vec<Box<str>>,
    /// And any others.
    pub others: bool,
    /// And what pins.
    pub pins: bool,
    /// Some of it may run behind statements that write, without being named.
    pub triggers: bool,
}

impl Survey {
    /// True when a call may leave anything.
    #[must_use]
    pub fn leaves(&self) -> bool {
        self.others || self.pins || !self.names.is_empty()
    }

    /// True when a statement that writes may.
    #[must_use]
    pub fn leaves_behind_writes(&self) -> bool {
        self.triggers && self.leaves()
    }
}

/// Knows a statement text as proxies of its dialect do: its digest, its facts and its hint.
pub type Know = Arc<dyn Fn(Dialect, &[u8]) -> (u128, Arc<Facts>, String) + Send + Sync>;

/// See [`Know`]; for trying out plugins, which are the same whatever proxies serve.
#[must_use]
pub fn know() -> Know {
    let (postgres, mysql) = (postgres::Postgres::shared(1), mysql::MySql::shared(1));
    Arc::new(move |dialect, text| match dialect {
        Dialect::Postgresql => postgres::Postgres::know(&postgres, text),
        Dialect::Mysql => mysql::MySql::know(&mysql, text),
    })
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

/// What servers say of themselves before anybody logs in.
pub trait Hello: Clone + fmt::Debug + Send + Sync + 'static {
    /// What may be said in the name of both.
    #[must_use]
    fn meet(self, other: &Self) -> Self;
    /// The same from a server of another version.
    #[must_use]
    fn with_version(self, version: &str) -> Self;
}

impl Hello for () {
    fn meet(self, (): &Self) -> Self {}
    fn with_version(self, _: &str) -> Self {}
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
pub struct Login<C> {
    /// Where its server connections come from.
    pub key: PoolKey,
    /// What it calls itself; empty for nothing.
    pub application: Box<str>,
    /// Of what follows the welcome, in both directions.
    pub compression: Compression,
    /// What else it has negotiated.
    pub client: C,
}

/// How a client's bytes are packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Compression {
    /// Not.
    #[default]
    None,
    /// zlib.
    Zlib,
    /// zstd, with the level that the client asked for.
    Zstd(u8),
}

/// One client at the door.
#[derive(Debug, Clone)]
pub struct Arrival<H> {
    /// What it may be told of the servers.
    pub hello: H,
    /// Of its session. Some protocols tell the id before anything else.
    pub key: CancelKey,
    /// Where it comes from.
    pub peer: IpAddr,
    /// How most users prove that they know their password.
    pub method: ClientAuthType,
    /// Skip what a client could do to have the password itself asked less often; for tests.
    pub force_full_authentication: bool,
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
pub enum AcceptStep<C> {
    /// More bytes from the client.
    NeedBytes,
    /// At most so many bytes: what follows them may be TLS's.
    NeedAtMost(usize),
    /// Call this where it may take its time, then come again.
    NeedWork(fn()),
    /// Write what there is, then start TLS and call [`Accept::tls_started`].
    StartTls,
    /// Look up this user and call [`Accept::credentials`].
    NeedCredentials(String),
    /// Logged in.
    Login(Login<C>),
    /// Not a session: cancel what the holder of this key runs, then close without a word.
    Cancel(CancelKey),
    /// The client left, politely.
    Quit,
}

/// The server's part of a login. Faults end the connection; the caller has them written.
pub trait Accept<P: Protocol>: Send + Sized {
    /// A client with a session that asks to log in anew: `request` is what [`Tracker::take_login`] took. It proves all
    /// over again who it is.
    fn again(
        _arrival: Arrival<P::Hello>,
        _client: P::Client,
        _before: &PoolKey,
        _request: &[u8],
    ) -> Result<(Self, AcceptStep<P::Client>), Fault> {
        Err(Fault::fatal(FaultKind::NotSupported, "This protocol has one login for each connection."))
    }
    /// A new client.
    fn begin(options: AcceptOptions, arrival: Arrival<P::Hello>) -> Self;
    /// Goes on as far as the bytes reach.
    fn advance(&mut self, input: &mut Buffer, out: &mut Vec<u8>) -> Result<AcceptStep<P::Client>, Fault>;
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
    /// The end of the login, after [`AcceptStep::Login`]: everything from "authentication ok" to "ready".
    fn write_welcome(&mut self, greeting: &Greeting, key: CancelKey, out: &mut Vec<u8>);
    /// The end of the login, when it failed.
    fn write_fault(&mut self, fault: &Fault, out: &mut Vec<u8>);
}

/// What a login to a server wants next.
#[derive(Debug)]
pub enum ConnectStep {
    /// More bytes from the server.
    NeedBytes,
    /// At most so many bytes: what follows them may be TLS's.
    NeedAtMost(usize),
    /// Write what there is, then start TLS and call [`Connect::tls_started`].
    StartTls,
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
    /// The target demands TLS, and the server does not do it.
    #[error("{0}")]
    Tls(String),
}

/// What a connection to a server is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To serve clients.
    Session,
    /// To send one cancel: no more of a login than that takes.
    Cancel,
}

/// The client's part of a login.
pub trait Connect<P: Protocol>: Send + Sized {
    /// A connection just opened.
    fn begin(key: &PoolKey, secret: Arc<Secret>, tls: TlsMode, purpose: Purpose) -> Self;
    /// Goes on as far as the bytes reach.
    fn advance(&mut self, input: &mut Buffer, out: &mut Vec<u8>) -> Result<ConnectStep, ConnectError>;
    /// TLS is up, with all that the mode asks for verified. `end_point` is the tls-server-end-point channel binding
    /// (RFC 5929); `None` where none is defined for the server's certificate.
    fn tls_started(&mut self, end_point: Option<Vec<u8>>);
    /// What the server said of itself, after [`ConnectStep::Done`].
    fn hello(&self) -> P::Hello;
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

/// Reads what a session has alone on its server connection so that it can be made again on another. Questions of our own,
/// each of which may depend on the answer before.
pub trait Packing: Send + fmt::Debug {
    /// `answer` is the first row of the answer to the last question, NULL as empty; `None` at first, and for an error.
    /// Without `time` nothing is asked any more but what leaves the session as it was.
    fn next(&mut self, answer: Option<&[String]>, time: bool) -> Step;
}

/// What comes next in a [`Packing`].
#[derive(Debug)]
pub enum Step {
    /// This is to be asked.
    Ask(String),
    /// So it is made again. The session is as it was, but for what its last statement had left.
    Done(Vec<Errand>),
    /// It cannot be. The session is as it was, but for that.
    Unfit,
    /// Nor is it known how the session is.
    Lost,
}

/// One thing to do where something is made again, in a session that is as after login; one that fails makes the rest
/// useless.
#[derive(Debug)]
pub enum Errand {
    /// Runs a statement.
    Run(String),
    /// Runs one whose first row must be this.
    Expect(String, Vec<String>),
    /// Asks for a statement, the first column of the answer,
    Remember(String),
    /// and runs it.
    Recall,
}

impl Errand {
    /// What it takes to keep it in mind.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match self {
            Self::Run(text) | Self::Remember(text) => text.len(),
            Self::Expect(text, row) => text.len() + row.iter().map(String::len).sum::<usize>(),
            Self::Recall => 0,
        }
    }
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
    /// True when a message has been passed to the client in part only, or it would not read one of ours.
    fn is_mid_message(&self) -> bool;
    /// True when the client has been given an error of the server and not yet the end of that answer.
    fn has_told_error(&self) -> bool;
    /// True when something is left that another client might stumble over.
    fn is_tainted(&self) -> bool;
    /// For cancels.
    fn key(&self) -> &ServerKey;
    /// What later clients of the same pool are told.
    fn greeting(&self) -> Arc<Greeting>;
    /// What was meant for the client among the answers to statements of our own, or came between them.
    fn take_heard(&mut self) -> Vec<u8> {
        Vec::new()
    }
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
    NeedServer,
    /// A statement is about to run. Decide, then call [`Tracker::admit`] and come again.
    Statement(Statement),
    /// Another session is to be killed; then call [`Tracker::killed`] and come again.
    Kill(Kill),
    /// The client wants to log in anew; take the request by [`Tracker::take_login`].
    LogIn,
    /// The statement last admitted was answered without a server. Look at what follows it by coming again.
    AnsweredHere,
    /// The client said goodbye.
    Quit,
}

/// What a client wants of another session of the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kill {
    /// The other's, as that client was told.
    pub id: u32,
    /// Only what it runs, not the session itself.
    pub query_only: bool,
}

/// What became of a [`Kill`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Killed {
    /// It is on its way.
    Done,
    /// There is no such session.
    Unknown,
    /// It is another user's.
    NotOwner,
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
    /// What takes back state of which there is none goes to a server all the same, where it pins.
    pub asks_for_nothing: bool,
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

/// What the server itself has said of the session, or what a request did to it as a whole.
#[derive(Debug, Default)]
pub struct Learned {
    /// What a session must find on whatever connection serves it next, in order.
    pub changes: Vec<StateChange>,
    /// What keeps it on this connection.
    pub pins: PinReasons,
    /// Settings of which the server must be asked what has become of them.
    pub doubtful: Vec<Box<str>>,
    /// What does not any more, for certain, whatever the statement's text said: nothing of it is left.
    pub ended: PinReasons,
}

/// See [`Learned`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StateChange {
    /// A setting, in lower case, and the statement that makes it.
    Made(Box<str>, Box<str>),
    /// All settings are as after login, and so is everything else that pins.
    ResetAll,
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
    fn new(key: &PoolKey, greeting: &Greeting, client: P::Client) -> Self;
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
    /// Takes the request of a [`ClientEvent::LogIn`] out, and what the client has negotiated.
    fn take_login(&mut self, _up: &mut Pipe) -> Option<(P::Client, Vec<u8>)> {
        None
    }
    /// What became of the [`ClientEvent::Kill`] at the front: tells the client.
    fn killed(&mut self, _outcome: Killed, _up: &mut Pipe, _down: &mut Pipe) {}
    /// What the server has said of the session since this was asked last.
    fn take_learned(&mut self) -> Learned {
        Learned::default()
    }
    /// These are the settings that move with the client, as the session knows them after what has run.
    fn settled(&mut self, _settings: Option<&Arc<Settings>>) {}
    /// A request has been answered. Where that leaves open what the session still has there, such as a transaction after an
    /// error, asks the server. The answer is swallowed.
    fn write_question(&mut self, _server: &mut P::Server, _up: &mut Pipe) {}
    /// Judges what the server sent.
    fn on_server(&mut self, down: &mut Pipe, server: &mut P::Server) -> Result<ServerEvent, ProtocolError>;
    /// The state of a transaction that the client was told of and that no server has begun; else idle. It begins as soon
    /// as there is a server connection, before anything else of the client's runs there.
    fn deferred(&self) -> Tx {
        Tx::Idle
    }
    /// True when whatever the client runs next begins a transaction, without saying so.
    fn opens_transactions(&self) -> bool {
        false
    }
    /// True when the statement at the front may read what code that no text shows has left on a connection for others,
    /// so that only one will do that no other client has used since it was reset.
    fn reads_leftovers(&self, up: &Pipe) -> bool;
    /// The session is told elsewhere of these channels: what the server connection says of them is left out, and the end of
    /// each answer outside a transaction is held back until [`Self::end_answer`]. `None` for no such channels.
    fn hear_elsewhere(&mut self, _channels: Option<Arc<BTreeSet<Box<str>>>>) {}
    /// Gives the client the end of the answer that was held back, if one was.
    fn end_answer(&mut self, _down: &mut Pipe) {}
    /// Packs what the session has alone on its server connection, where nothing but temporary tables keeps it there;
    /// `None` where that cannot be. `most_bytes` bounds what comes of it.
    fn packing(&self, _server: &P::Server, _most_bytes: usize) -> Option<Box<dyn Packing>> {
        None
    }
    /// True when the client reads text as UTF-8.
    fn reads_utf8(&self) -> bool {
        true
    }
    /// True when a message of the client has gone to the server in part only.
    fn is_mid_message(&self) -> bool;
    /// Pins that come from the login itself.
    fn standing_pins(&self) -> PinReasons;
    /// A request failed before it reached a server: tells the client, and what belongs to the same request is
    /// skipped as the protocol says.
    fn refuse(&mut self, fault: &Fault, up: &mut Pipe, down: &mut Pipe);
    /// True while the client sends what it must have sent to its end before it listens again.
    fn is_deaf(&self, _server: &P::Server) -> bool {
        false
    }
    /// The last word to a client that is not kept. Not in the middle of a message, see [`ServerState::is_mid_message`].
    fn write_fault(&self, fault: &Fault, server: Option<&P::Server>, out: &mut Vec<u8>);
    /// Before a statement that reads session functions runs on a connection that others have used: makes the
    /// server forget what they left. The answers are swallowed.
    fn write_forget_session_functions(&mut self, server: &mut P::Server, up: &mut Pipe);
}
