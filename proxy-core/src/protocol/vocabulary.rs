//! Words that both protocols share.

use std::{borrow::Cow, fmt};

/// Transaction state as the server last reported it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Tx {
    /// No transaction.
    Idle,
    /// In a transaction.
    Open,
    /// In a transaction that can only be rolled back.
    Failed,
}

/// What a database server is, as it says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Role {
    /// It takes writes.
    ReadWrite = 0,
    /// It follows another and takes reads only.
    ReadOnly = 1,
    /// Not found out yet.
    Unknown = 2,
}

impl Role {
    /// All roles, in declaration order.
    pub const ALL: [Self; 3] = [Self::ReadWrite, Self::ReadOnly, Self::Unknown];

    /// The stable name: metric label, log field, and what a server's answer is read from.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::ReadWrite => "READ_WRITE",
            Self::ReadOnly => "READ_ONLY",
            Self::Unknown => "UNKNOWN",
        }
    }
}

/// Why a session must keep its server connection. Names are stable: metric labels and log fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum PinReason {
    /// A temporary table, view or sequence exists.
    TemporaryTable,
    /// `LOCK TABLES` and the like.
    TableLock,
    /// A session-level advisory lock may be held.
    AdvisoryLock,
    /// `LISTEN`.
    Listen,
    /// A cursor that outlives its transaction.
    HeldCursor,
    /// A session setting that is not tracked.
    SessionVariable,
    /// `SET ROLE`, `SET SESSION AUTHORIZATION`: apart from other settings, since `RESET ALL` leaves them.
    SessionIdentity,
    /// A prepared statement that is not virtual.
    PreparedStatement,
    /// A function whose answer depends on the connection of an earlier statement.
    SessionFunction,
    /// Statement text over 16 KB, profile `rds` only.
    StatementSize,
    /// An `XA` transaction.
    Xa,
    /// `HANDLER … OPEN`.
    Handler,
    /// Several statements in one text, of which it cannot be told what each has left.
    MultiStatement,
    /// A library was loaded.
    Library,
    /// What the statement does to the session could not be told.
    Unknown,
}

impl PinReason {
    /// All reasons, in declaration order.
    pub const ALL: [Self; 15] = [
        Self::TemporaryTable,
        Self::TableLock,
        Self::AdvisoryLock,
        Self::Listen,
        Self::HeldCursor,
        Self::SessionVariable,
        Self::SessionIdentity,
        Self::PreparedStatement,
        Self::SessionFunction,
        Self::StatementSize,
        Self::Xa,
        Self::Handler,
        Self::MultiStatement,
        Self::Library,
        Self::Unknown,
    ];

    /// The stable name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::TemporaryTable => "temporary-table",
            Self::TableLock => "table-lock",
            Self::AdvisoryLock => "advisory-lock",
            Self::Listen => "listen",
            Self::HeldCursor => "held-cursor",
            Self::SessionVariable => "session-variable",
            Self::SessionIdentity => "session-identity",
            Self::PreparedStatement => "prepared-statement",
            Self::SessionFunction => "session-function",
            Self::StatementSize => "statement-size",
            Self::Xa => "xa",
            Self::Handler => "handler",
            Self::MultiStatement => "multi-statement",
            Self::Library => "library",
            Self::Unknown => "unknown",
        }
    }
}

/// A set of [`PinReason`]s; empty means any server connection would do.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct PinReasons(u16);

impl PinReasons {
    /// No reason.
    pub const NONE: Self = Self(0);
    /// Every reason.
    pub const ALL: Self = Self((1 << PinReason::ALL.len()) - 1);

    /// What a rollback undoes, and what a statement that failed alone has not begun.
    pub const ROLLED_BACK: Self = Self::only(PinReason::TemporaryTable)
        .union(Self::only(PinReason::Listen))
        .union(Self::only(PinReason::HeldCursor))
        .union(Self::only(PinReason::SessionVariable))
        .union(Self::only(PinReason::SessionIdentity))
        .union(Self::only(PinReason::StatementSize))
        .union(Self::only(PinReason::Xa))
        .union(Self::only(PinReason::Handler));

    /// The set of one.
    #[must_use]
    pub const fn only(reason: PinReason) -> Self {
        Self(1 << reason as u8)
    }
    /// True when nothing pins.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
    /// True when `reason` is in the set.
    #[must_use]
    pub const fn contains(self, reason: PinReason) -> bool {
        self.0 & (1 << reason as u8) != 0
    }
    /// Both sets together.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
    /// What is in both sets.
    #[must_use]
    pub const fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
    /// This set without what is in `other`.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
    /// Adds one reason.
    pub const fn insert(&mut self, reason: PinReason) {
        self.0 |= 1 << reason as u8;
    }
    /// The reasons, in declaration order.
    pub fn iter(self) -> impl Iterator<Item = PinReason> {
        PinReason::ALL.into_iter().filter(move |r| self.contains(*r))
    }
}

impl fmt::Display for PinReasons {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, reason) in self.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            f.write_str(reason.name())?;
        }
        Ok(())
    }
}

impl fmt::Debug for PinReasons {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{self}]")
    }
}

/// What kind of statement a text is; of several, the first that is not transaction control.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StatementKind {
    /// `SELECT`, `VALUES`, `TABLE`, `SHOW`.
    Select,
    /// `INSERT`, `UPDATE`, `DELETE`, `MERGE`, and a `SELECT` with a writing CTE.
    Write,
    /// Schema changes and maintenance.
    Ddl,
    /// `BEGIN`, `COMMIT`, savepoints.
    Transaction,
    /// `SET`, `RESET`, `DISCARD`, `USE`.
    Session,
    /// `COPY`, `LOAD DATA`.
    Copy,
    /// `CALL`, `DO`.
    Routine,
    /// No statement at all.
    Empty,
    /// Everything else.
    Other,
    /// The grammar could not read it.
    Unknown,
}

/// The language of a statement text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dialect {
    /// PostgreSQL's.
    Postgresql,
    /// MySQL's and MariaDB's.
    Mysql,
}

/// How what a text changes of a session's settings comes to stand on another server connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Moves {
    /// Not by anything that this text says: it changes none, or pins, or takes all of them back.
    #[default]
    Nothing,
    /// The same text does the same there.
    ByText,
    /// What it names is as after login.
    Back,
    /// By the value that the server gives when it is asked.
    ByValue,
    /// Likewise, and any of them may have changed.
    Unseen,
}

/// What a statement does to the notification channels that its session hears.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChannelChange {
    /// This one too.
    Listen(Box<str>),
    /// This one no more.
    Unlisten(Box<str>),
    /// None any more.
    UnlistenAll,
}

/// What the real grammar says of one statement text. Cached by digest and shared.
///
/// Two sets of pins, since the profile decides which counts: `pins` is what profile `smart` needs,
/// `rds_pins` is what RDS Proxy would do (docs/session.md).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Kind.
    pub kind: StatementKind,
    /// Statements in the text.
    pub statements: u16,
    /// True when it provably writes nothing (a `SELECT` of built-in, non-writing functions, without `FOR UPDATE`).
    pub read_only: bool,
    /// State that stays on the server connection and cannot be moved to another.
    pub pins: PinReasons,
    /// Pins whose state is gone once this text has run to its end outside a transaction. Applied before `pins`
    /// of statements after the clearing one: `pins` holds only what is left at the end of the text.
    pub clears: PinReasons,
    /// Pins in profile `rds`.
    pub rds_pins: PinReasons,
    /// May leave state that no text shows (user-defined functions, `DO`, `CALL`): reset before another client.
    pub taints: bool,
    /// Reads `currval`, `LAST_INSERT_ID()` and their like: the answer depends on what ran before on the same connection.
    pub needs_session_function: bool,
    /// Sets or resets a setting in any way, for the transaction too.
    pub changes_settings: bool,
    /// Drops protocol-level prepared statements too (`DEALLOCATE ALL`, `DISCARD ALL`).
    pub drops_all_prepared: bool,
    /// Names in SQL-level `EXECUTE` and `DEALLOCATE`, in order.
    pub prepared_names: Vec<String>,
    /// Names that SQL-level `PREPARE` gives.
    pub given_names: Vec<String>,
    /// The text is exactly one `DEALLOCATE name`.
    pub is_deallocate_one: bool,
    /// The text ends a transaction block (`COMMIT`, `ROLLBACK`, `END`, `PREPARE TRANSACTION`) and does nothing else,
    /// so a failed transaction accepts it.
    pub ends_transaction: bool,
    /// It takes row locks (`FOR UPDATE` and the like).
    pub locks_rows: bool,
    /// It writes, anywhere in it.
    pub writes: bool,
    /// It calls a built-in function that does more than compute.
    pub calls_acting_function: bool,
    /// It calls a function that is not built in.
    pub calls_unknown_function: bool,
    /// Tables and views named, `schema.name` or `name`; at most [`Self::MAX_NAMES`], sorted, each once. MySQL's in lower
    /// case, in quotes or not: whether case counts is a matter of the server.
    pub tables: Vec<String>,
    /// Functions called, likewise.
    pub functions: Vec<String>,
    /// Variables that `SET` and `RESET` name, in lower case, likewise; user variables with their `@`.
    pub variables: Vec<String>,
    /// The names of further variables stand in literals (`set_config`), so they are not known by digest.
    pub variables_in_literals: bool,
    /// The text is one `SET` of one variable to a value, for the session, that does the same wherever it is run again.
    pub is_plain_set: bool,
    /// How what it changes of a session's settings comes to stand on another server connection.
    pub moves: Moves,
    /// What those are called among a session's settings, but for those whose names stand in literals.
    pub moved: Vec<String>,
    /// Of a text that does nothing but take state back: what a server answers to each of its statements, whether or not
    /// there is any.
    pub resets: Vec<&'static str>,
    /// What taints is nothing but calls of code of the database's own: what that may leave, its source tells.
    pub taints_by_calls: bool,
    /// It changes what names stand for or what they give, in statements that are prepared.
    pub changes_schema: bool,
    /// Pins of which it may have ended some part: whether any is left, the server must be asked.
    pub may_end: PinReasons,
    /// It begins or ends transactions, or runs code that may: what is around it in its request may have been undone.
    pub moves_transaction: bool,
    /// What it does to the session's notification channels, in order, once it is committed.
    pub channels: Vec<ChannelChange>,
    /// It reads which channels those are.
    pub reads_channels: bool,
    /// It commits the transaction if that can be, and does nothing else.
    pub commits: bool,
    /// Statement text with literals replaced by `$n`, or by `?` in MySQL, at most 1,024 bytes, for logs.
    pub digest_text: String,
}

impl Facts {
    /// Most tables, functions and variables kept of one text.
    pub const MAX_NAMES: usize = 64;

    /// The session has neither statements nor objects of its own after it: it is as after login.
    #[must_use]
    pub fn resets_all(&self) -> bool {
        self.drops_all_prepared && self.clears.contains(PinReason::TemporaryTable)
    }

    /// The facts of a text without a statement, from which those of others are made.
    #[must_use]
    pub const fn nothing() -> Self {
        Self {
            kind: StatementKind::Empty,
            statements: 0,
            read_only: true,
            pins: PinReasons::NONE,
            clears: PinReasons::NONE,
            rds_pins: PinReasons::NONE,
            taints: false,
            needs_session_function: false,
            changes_settings: false,
            drops_all_prepared: false,
            prepared_names: Vec::new(),
            given_names: Vec::new(),
            is_deallocate_one: false,
            ends_transaction: false,
            locks_rows: false,
            writes: false,
            calls_acting_function: false,
            calls_unknown_function: false,
            tables: Vec::new(),
            functions: Vec::new(),
            variables: Vec::new(),
            variables_in_literals: false,
            is_plain_set: false,
            moves: Moves::Nothing,
            moved: Vec::new(),
            may_end: PinReasons::NONE,
            resets: Vec::new(),
            taints_by_calls: false,
            changes_schema: false,
            moves_transaction: false,
            channels: Vec::new(),
            reads_channels: false,
            commits: false,
            digest_text: String::new(),
        }
    }

    /// The facts of a text that nobody understands: it may do anything.
    #[must_use]
    pub const fn unknown(digest_text: String) -> Self {
        Self {
            kind: StatementKind::Unknown,
            statements: 1,
            read_only: false,
            pins: PinReasons::only(PinReason::Unknown),
            clears: PinReasons::NONE,
            rds_pins: PinReasons::only(PinReason::Unknown),
            taints: true,
            needs_session_function: false,
            changes_settings: true,
            drops_all_prepared: false,
            prepared_names: Vec::new(),
            given_names: Vec::new(),
            is_deallocate_one: false,
            ends_transaction: false,
            locks_rows: false,
            writes: true,
            calls_acting_function: true,
            calls_unknown_function: true,
            tables: Vec::new(),
            functions: Vec::new(),
            variables: Vec::new(),
            variables_in_literals: false,
            is_plain_set: false,
            moves: Moves::Nothing,
            moved: Vec::new(),
            may_end: PinReasons::NONE,
            resets: Vec::new(),
            taints_by_calls: false,
            changes_schema: true,
            moves_transaction: true,
            channels: Vec::new(),
            reads_channels: false,
            commits: false,
            digest_text,
        }
    }

    /// True when it changes settings for longer than the transaction.
    #[must_use]
    pub const fn changes_session_settings(&self) -> bool {
        self.rds_pins.contains(PinReason::SessionVariable)
    }
}

/// What went wrong, in words that both protocols can map to a code of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FaultKind {
    /// No server connection became free in time.
    BorrowTimeout,
    /// The client must use TLS.
    TlsRequired,
    /// Wrong password, or no secret for that user: the two look the same.
    BadPassword,
    /// No user name was sent.
    UserMissing,
    /// Client connection limit.
    TooManyClients,
    /// Too many failed logins from that address.
    LoginRate,
    /// The address is not in the endpoint's `allow`.
    NotAllowed,
    /// The protocol has it, Pinion does not.
    NotSupported,
    /// The peer broke the protocol.
    ProtocolViolation,
    /// The handshake took too long.
    HandshakeTimeout,
    /// Pinion is draining or stopping.
    ShuttingDown,
    /// The client was idle too long.
    IdleTimeout,
    /// The client connection reached its maximum life.
    LifetimeOver,
    /// The client cancelled a request that had not reached a server.
    Cancelled,
    /// The server connection was lost.
    ServerLost,
    /// It was lost in a transaction that nothing under way could have ended, so all of it was rolled back.
    TransactionLost,
    /// The server refused our login, or sent what we could not follow.
    ServerRefused,
    /// A policy plugin said no; its own codes stand in [`Fault::native_code`] and [`Fault::native_number`].
    PluginRejected,
    /// A policy plugin failed, and its failures close.
    PluginFailed,
    /// The target that a policy plugin named, or a target of the endpoint's role, cannot be used.
    NoTarget,
    /// As many connections are pinned as may be.
    TooManyPins,
    /// Notifications could not be told to a client that listens.
    NotificationsLost,
    /// Replayed settings could not be made again on another server connection.
    StateLost,
    /// A bug or an exhausted resource of ours.
    Internal,
}

impl FaultKind {
    /// All kinds, in declaration order.
    pub const ALL: [Self; 24] = [
        Self::BorrowTimeout,
        Self::TlsRequired,
        Self::BadPassword,
        Self::UserMissing,
        Self::TooManyClients,
        Self::LoginRate,
        Self::NotAllowed,
        Self::NotSupported,
        Self::ProtocolViolation,
        Self::HandshakeTimeout,
        Self::ShuttingDown,
        Self::IdleTimeout,
        Self::LifetimeOver,
        Self::Cancelled,
        Self::ServerLost,
        Self::TransactionLost,
        Self::ServerRefused,
        Self::PluginRejected,
        Self::PluginFailed,
        Self::NoTarget,
        Self::TooManyPins,
        Self::NotificationsLost,
        Self::StateLost,
        Self::Internal,
    ];
}

/// Whether the connection survives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Severity {
    /// The request failed; the client stays.
    Error,
    /// The client connection ends.
    Fatal,
}

/// An error on its way to a client. Holds text that the client may see and nothing else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Which.
    pub kind: FaultKind,
    /// How bad.
    pub severity: Severity,
    /// For the client; without secrets.
    pub message: Cow<'static, str>,
    /// An SQLSTATE in place of the kind's: the database's own, or a policy plugin's.
    pub native_code: Option<String>,
    /// Likewise a number, for protocols whose errors have one beside the SQLSTATE.
    pub native_number: Option<u16>,
    /// What the client could do instead.
    pub hint: Option<String>,
}

impl Fault {
    /// A failed request.
    pub fn error(kind: FaultKind, message: impl Into<Cow<'static, str>>) -> Self {
        Self { severity: Severity::Error, ..Self::fatal(kind, message) }
    }
    /// The end of the connection.
    pub fn fatal(kind: FaultKind, message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            kind,
            severity: Severity::Fatal,
            message: message.into(),
            native_code: None,
            native_number: None,
            hint: None,
        }
    }
}
