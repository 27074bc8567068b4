//! `plugin-sdk/wit/policy.wit` as Rust types, written by hand: every interface is optional but one, and only the
//! functions that a plugin needs are looked up. wasmtime compares them with a plugin's own types at load.

use wasmtime::component::{ComponentType, Lift, Lower, flags};

/// The package and the version of it that this host offers.
pub(super) const PACKAGE: &str = "pinion:policy";
/// See [`PACKAGE`].
pub(super) const VERSION: &str = "0.1.0";

/// The full name of one of our interfaces.
pub(super) fn interface(name: &str) -> String {
    format!("{PACKAGE}/{name}@{VERSION}")
}

/// `types.dialect`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, ComponentType, Lift, Lower)]
#[component(enum)]
#[repr(u8)]
pub(super) enum Dialect {
    #[component(name = "postgresql")]
    Postgresql,
    #[component(name = "mysql")]
    Mysql,
    #[component(name = "other")]
    Other,
}

/// `types.statement-kind`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, ComponentType, Lift, Lower)]
#[component(enum)]
#[repr(u8)]
pub(super) enum StatementKind {
    #[component(name = "select")]
    Select,
    #[component(name = "write")]
    Write,
    #[component(name = "ddl")]
    Ddl,
    #[component(name = "transaction")]
    Transaction,
    #[component(name = "session")]
    Session,
    #[component(name = "copy")]
    Copy,
    #[component(name = "routine")]
    Routine,
    #[component(name = "empty")]
    Empty,
    #[component(name = "other")]
    Other,
    #[component(name = "unknown")]
    Unknown,
}

flags! {
    StatementFacts {
        #[component(name = "read-only")]
        const READ_ONLY;
        #[component(name = "in-transaction")]
        const IN_TRANSACTION;
        #[component(name = "multiple")]
        const MULTIPLE;
        #[component(name = "locks-rows")]
        const LOCKS_ROWS;
        #[component(name = "writes")]
        const WRITES;
        #[component(name = "calls-acting-function")]
        const CALLS_ACTING_FUNCTION;
        #[component(name = "calls-unknown-function")]
        const CALLS_UNKNOWN_FUNCTION;
        #[component(name = "prepares")]
        const PREPARES;
    }
}

/// `types.statement`.
#[derive(Debug, Clone, Copy, PartialEq, ComponentType, Lower)]
#[component(record)]
pub(super) struct Statement {
    pub(super) session: u64,
    #[component(name = "digest-high")]
    pub(super) digest_high: u64,
    #[component(name = "digest-low")]
    pub(super) digest_low: u64,
    pub(super) user: u32,
    pub(super) database: u32,
    pub(super) endpoint: u32,
    pub(super) application: u32,
    pub(super) client: u32,
    pub(super) hint: u32,
    pub(super) dialect: Dialect,
    pub(super) kind: StatementKind,
    pub(super) facts: StatementFacts,
}

/// `types.detail`. Owned: a function's parameters outlive no call, but its type must.
#[derive(Debug, Clone, Default, ComponentType, Lower)]
#[component(record)]
pub(super) struct Detail {
    pub(super) text: String,
    pub(super) normalised: String,
    pub(super) tables: Vec<String>,
    pub(super) functions: Vec<String>,
    pub(super) variables: Vec<String>,
}

/// `types.rejection`.
#[derive(Debug, Clone, PartialEq, Eq, ComponentType, Lift)]
#[component(record)]
pub(super) struct Rejection {
    pub(super) sqlstate: String,
    pub(super) code: u16,
    pub(super) message: String,
    pub(super) hint: String,
}

/// `types.pin-reason`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, ComponentType, Lift, Lower)]
#[component(enum)]
#[repr(u8)]
#[expect(dead_code, reason = "reasons that no protocol of this build has")]
pub(super) enum PinReason {
    #[component(name = "temporary-table")]
    TemporaryTable,
    #[component(name = "table-lock")]
    TableLock,
    #[component(name = "advisory-lock")]
    AdvisoryLock,
    #[component(name = "listen")]
    Listen,
    #[component(name = "held-cursor")]
    HeldCursor,
    #[component(name = "session-variable")]
    SessionVariable,
    #[component(name = "session-identity")]
    SessionIdentity,
    #[component(name = "prepared-statement")]
    PreparedStatement,
    #[component(name = "session-function")]
    SessionFunction,
    #[component(name = "statement-size")]
    StatementSize,
    #[component(name = "xa")]
    Xa,
    #[component(name = "handler")]
    Handler,
    #[component(name = "multi-statement")]
    MultiStatement,
    #[component(name = "library")]
    Library,
    #[component(name = "unknown")]
    Unknown,
    #[component(name = "other")]
    Other,
}

/// `types.role`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ComponentType, Lift, Lower)]
#[component(enum)]
#[repr(u8)]
pub(super) enum Role {
    #[component(name = "read-write")]
    ReadWrite,
    #[component(name = "read-only")]
    ReadOnly,
    #[component(name = "unknown")]
    Unknown,
}

/// `log.level`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ComponentType, Lift, Lower)]
#[component(enum)]
#[repr(u8)]
#[expect(dead_code, reason = "made by plugins only")]
pub(super) enum Level {
    #[component(name = "error")]
    Error,
    #[component(name = "warn")]
    Warn,
    #[component(name = "info")]
    Info,
    #[component(name = "debug")]
    Debug,
    #[component(name = "trace")]
    Trace,
}

/// `store.store-error`.
#[derive(Debug, Clone, PartialEq, Eq, ComponentType, Lower)]
#[component(variant)]
#[expect(dead_code, reason = "nothing else goes wrong here")]
pub(super) enum StoreError {
    #[component(name = "not-granted")]
    NotGranted,
    #[component(name = "full")]
    Full,
    #[component(name = "not-a-number")]
    NotANumber,
    #[component(name = "too-long")]
    TooLong,
    #[component(name = "other")]
    Other(String),
}

/// `audit.audit-error`.
#[derive(Debug, Clone, PartialEq, Eq, ComponentType, Lower)]
#[component(variant)]
pub(super) enum AuditError {
    #[component(name = "not-granted")]
    NotGranted,
    #[component(name = "dropped")]
    Dropped,
    #[component(name = "malformed")]
    Malformed,
    #[component(name = "other")]
    Other(String),
}

/// `lifecycle.hook`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ComponentType, Lift)]
#[component(enum)]
#[repr(u8)]
#[cfg_attr(not(test), expect(dead_code, reason = "made by plugins only"))]
pub(super) enum HookName {
    #[component(name = "on-query")]
    Query,
    #[component(name = "on-route")]
    Route,
    #[component(name = "on-pin")]
    Pin,
    #[component(name = "on-events")]
    Events,
}

flags! {
    Needs {
        #[component(name = "text")]
        const TEXT;
        #[component(name = "normalised")]
        const NORMALISED;
        #[component(name = "tables")]
        const TABLES;
        #[component(name = "functions")]
        const FUNCTIONS;
        #[component(name = "variables")]
        const VARIABLES;
        #[component(name = "rewrite")]
        const REWRITE;
    }
}

flags! {
    CacheField {
        #[component(name = "dialect")]
        const DIALECT;
        #[component(name = "digest")]
        const DIGEST;
        #[component(name = "kind")]
        const KIND;
        #[component(name = "user")]
        const USER;
        #[component(name = "database")]
        const DATABASE;
        #[component(name = "endpoint")]
        const ENDPOINT;
        #[component(name = "application")]
        const APPLICATION;
        #[component(name = "hint")]
        const HINT;
        #[component(name = "facts")]
        const FACTS;
    }
}

/// `lifecycle.subscription`.
#[derive(Debug, Clone, ComponentType, Lift)]
#[component(record)]
pub(super) struct Subscription {
    pub(super) hook: HookName,
    pub(super) kinds: Vec<StatementKind>,
    pub(super) users: Vec<String>,
    pub(super) databases: Vec<String>,
    pub(super) endpoints: Vec<String>,
    #[component(name = "cache-by")]
    pub(super) cache_by: CacheField,
}

/// `lifecycle.registration`.
#[derive(Debug, Clone, ComponentType, Lift)]
#[component(record)]
pub(super) struct Registration {
    #[expect(dead_code, reason = "the configuration's name counts")]
    pub(super) name: String,
    pub(super) version: String,
    pub(super) subscriptions: Vec<Subscription>,
    pub(super) needs: Needs,
}

/// `on-query.query-verdict`.
#[derive(Debug, Clone, PartialEq, Eq, ComponentType, Lift)]
#[component(variant)]
pub(super) enum QueryVerdict {
    #[component(name = "pass")]
    Pass,
    #[component(name = "rewrite")]
    Rewrite(String),
    #[component(name = "reject")]
    Reject(Rejection),
}

/// `on-route.route-verdict`.
#[derive(Debug, Clone, PartialEq, Eq, ComponentType, Lift)]
#[component(variant)]
pub(super) enum RouteVerdict {
    #[component(name = "pass")]
    Pass,
    #[component(name = "writer")]
    Writer,
    #[component(name = "reader")]
    Reader,
    #[component(name = "target")]
    Target(String),
    #[component(name = "reject")]
    Reject(Rejection),
}

/// `on-pin.pin-verdict`.
#[derive(Debug, Clone, PartialEq, Eq, ComponentType, Lift)]
#[component(variant)]
pub(super) enum PinVerdict {
    #[component(name = "pass")]
    Pass,
    #[component(name = "pin")]
    Pin,
    #[component(name = "replay")]
    Replay,
    #[component(name = "ignore")]
    Ignore,
    #[component(name = "reject")]
    Reject(Rejection),
}

/// `on-events.session-event`.
#[derive(Debug, Clone, ComponentType, Lower)]
#[component(record)]
pub(super) struct SessionEvent {
    #[component(name = "at-ms")]
    pub(super) at_ms: u64,
    pub(super) session: u64,
    pub(super) user: u32,
    pub(super) database: u32,
    pub(super) endpoint: u32,
    pub(super) application: u32,
    pub(super) client: u32,
    pub(super) reason: String,
}

/// `on-events.decision`.
#[derive(Debug, Clone, ComponentType, Lower)]
#[component(record)]
pub(super) struct Decision {
    pub(super) plugin: String,
    pub(super) hook: String,
    pub(super) verdict: String,
}

/// `on-events.completion`.
#[derive(Debug, Clone, ComponentType, Lower)]
#[component(record)]
pub(super) struct Completion {
    #[component(name = "at-ms")]
    pub(super) at_ms: u64,
    pub(super) statement: Statement,
    pub(super) detail: Detail,
    #[component(name = "duration-us")]
    pub(super) duration_us: u64,
    #[component(name = "database-us")]
    pub(super) database_us: u64,
    pub(super) rows: u64,
    pub(super) error: String,
    pub(super) target: u32,
    pub(super) role: Role,
    pub(super) pinned: bool,
    pub(super) decisions: Vec<Decision>,
}

/// `on-events.event`.
#[derive(Debug, Clone, ComponentType, Lower)]
#[component(variant)]
#[expect(dead_code, reason = "other is for hosts to come")]
pub(super) enum Event {
    #[component(name = "session-start")]
    SessionStart(SessionEvent),
    #[component(name = "session-end")]
    SessionEnd(SessionEvent),
    #[component(name = "completion")]
    Completion(Completion),
    #[component(name = "lost")]
    Lost(u64),
    #[component(name = "other")]
    Other(Vec<(String, String)>),
}
