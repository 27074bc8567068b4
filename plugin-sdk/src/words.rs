//! The contract's enumerations. Each name is the same word in the WIT package, in configuration, in logs and metrics.

macro_rules! words {
    ($(#[$about:meta])* $name:ident { $($(#[$case_about:meta])* $case:ident = $word:literal,)* }) => {
        $(#[$about])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
        pub enum $name { $($(#[$case_about])* #[serde(rename = $word)] $case,)* }

        impl $name {
            /// All of them, in the contract's order.
            pub const ALL: &'static [Self] = &[$(Self::$case,)*];

            /// The contract's word for it.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$case => $word,)* }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.as_str())
            }
        }
    };
}

words! {
    /// The language of a statement's text.
    Dialect {
        /// PostgreSQL.
        Postgresql = "postgresql",
        /// MySQL and MariaDB.
        Mysql = "mysql",
        /// One that this version has no name for; also when a cached hook does not depend on it.
        Other = "other",
    }
}

words! {
    /// What kind of statement a text is; of several in one text, the first that is not transaction control.
    StatementKind {
        /// `SELECT`, `VALUES`, `TABLE`, `SHOW`.
        Select = "select",
        /// `INSERT`, `UPDATE`, `DELETE`, `MERGE`, and a `SELECT` with a writing common table expression.
        Write = "write",
        /// Schema changes and maintenance.
        Ddl = "ddl",
        /// `BEGIN`, `COMMIT`, `ROLLBACK`, savepoints.
        Transaction = "transaction",
        /// `SET`, `RESET`, `DISCARD`.
        Session = "session",
        /// `COPY`.
        Copy = "copy",
        /// `CALL`, `DO`.
        Routine = "routine",
        /// No statement at all.
        Empty = "empty",
        /// None of these kinds; also when a cached hook does not depend on it.
        Other = "other",
        /// The host could not read the text: it may do anything.
        Unknown = "unknown",
    }
}

words! {
    /// Why a session must keep its server connection.
    PinReason {
        /// A temporary table, view or sequence.
        TemporaryTable = "temporary-table",
        /// `LOCK TABLES` and the like.
        TableLock = "table-lock",
        /// A session-level advisory lock.
        AdvisoryLock = "advisory-lock",
        /// `LISTEN`.
        Listen = "listen",
        /// A cursor that outlives its transaction.
        HeldCursor = "held-cursor",
        /// A `SET` that stays after the transaction.
        SessionVariable = "session-variable",
        /// `SET ROLE`, `SET SESSION AUTHORIZATION`.
        SessionIdentity = "session-identity",
        /// A prepared statement that lives on one server connection.
        PreparedStatement = "prepared-statement",
        /// A function whose answer depends on an earlier statement of the same connection (`currval`).
        SessionFunction = "session-function",
        /// The text is over 16 KB; profile `rds` only.
        StatementSize = "statement-size",
        /// A distributed transaction.
        Xa = "xa",
        /// MySQL's `HANDLER`.
        Handler = "handler",
        /// Several statements in one text.
        MultiStatement = "multi-statement",
        /// `LOAD`.
        Library = "library",
        /// What the statement does to the session could not be told.
        Unknown = "unknown",
        /// One that this version has no name for.
        Other = "other",
    }
}

words! {
    /// What a target is, as it says of itself.
    Role {
        /// It takes writes.
        ReadWrite = "read-write",
        /// It is a replica.
        ReadOnly = "read-only",
        /// It has not said yet.
        Unknown = "unknown",
    }
}
