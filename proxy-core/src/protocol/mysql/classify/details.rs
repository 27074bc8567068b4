//! What MySQL's side asks of a statement text beyond [`Facts`](crate::protocol::Facts).

use std::fmt;

/// Known of one text, cached with its facts. Names are in lower case and without quotes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Details {
    /// What `SET` assigns, in order; at most [`Self::MAX_ITEMS`].
    pub sets: Vec<Assignment>,
    /// There was more in `SET` than `sets` holds.
    pub sets_more: bool,
    /// A statement of it changes how those after it are read, so that they may be others than it seems.
    pub rereads: bool,
    /// Is MariaDB's `SET STATEMENT`, whose settings end with it; `sets` does not hold them.
    pub sets_for_statement: bool,
    /// Has a `USE`; the name is read by [`used_schema`](super::used_schema).
    pub uses_schema: bool,
    /// Is one `KILL`; the number is read by [`kill_target`](super::kill_target).
    pub kill: Option<Kill>,
    /// `PREPARE`, `EXECUTE`, `DEALLOCATE` of SQL, in order; at most [`Self::MAX_ITEMS`].
    pub named_statements: Vec<NamedStatement>,
    /// Is one `XA` statement; whose, is read by [`xa_transaction`](super::xa_transaction).
    pub xa: Option<XaVerb>,
    /// The server will ask the client for a file (`LOAD DATA LOCAL`, `LOAD XML LOCAL`).
    pub is_load_data_local: bool,
    /// What it reads of what the same connection ran before.
    pub session_functions: SessionFunctions,
    /// Is nothing but `SHOW WARNINGS`, `SHOW ERRORS` or `GET DIAGNOSTICS`, which leave the diagnostics as they are
    /// (manual, "The MySQL Diagnostics Area"); every other statement makes them its own.
    pub keeps_diagnostics: bool,
    /// Has a query in it, however deep.
    pub has_query: bool,
    /// Has a `FROM` in it, however deep: without one a query uses no table, not even one that it makes itself.
    pub has_from: bool,
    /// Has `SQL_CALC_FOUND_ROWS` in it: a `FOUND_ROWS()` is likely to follow.
    pub calculates_found_rows: bool,
    /// Sets `LAST_INSERT_ID()` to what an expression says, so that the value may not stand in the OK packet.
    pub sets_last_insert_id: bool,
    /// Reads the connection's own number (`CONNECTION_ID()`, `@@pseudo_thread_id`).
    pub reads_connection_id: bool,
    /// May change what prepared statements were prepared against: DDL, and whatever runs code.
    pub may_change_schema: bool,
    /// Names user variables; which, is read by [`user_variables`](super::user_variables).
    pub names_user_variables: bool,
    /// Has an executable comment in it.
    pub has_executable_comment: bool,
}

impl Details {
    /// Most assignments and most named statements kept of one text.
    pub const MAX_ITEMS: usize = 64;

    /// Of a text that nobody understands.
    #[must_use]
    pub fn unknown() -> Self {
        Self {
            may_change_schema: true,
            names_user_variables: true,
            has_query: true,
            has_from: true,
            ..Self::default()
        }
    }
}

/// One assignment of a `SET`. `SET NAMES`, `SET CHARACTER SET` and `SET TRANSACTION` are told as assignments to
/// `names`, `character set`, `transaction_isolation` and `transaction_read_only`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assignment {
    /// For whom.
    pub scope: Scope,
    /// Of a system variable, or of a user variable without its `@`.
    pub name: String,
    /// The value stands in the text: a literal, a word, `DEFAULT`. Not for placeholders.
    pub value_is_constant: bool,
}

/// For whom an assignment is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scope {
    /// A user variable.
    User,
    /// The session, by `SESSION`, `LOCAL` or nothing.
    Session,
    /// The server.
    Global,
    /// The server, over restarts too.
    Persist,
    /// The session's next transaction: `SET TRANSACTION`, `SET @@transaction_isolation` and their like.
    NextTransaction,
}

/// Of a `KILL`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Kill {
    /// The statement that runs, not the connection.
    pub query_only: bool,
    /// What it is about is a number in the text, of a connection.
    pub id_is_literal: bool,
}

/// One SQL-level use of a prepared statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedStatement {
    /// What is done.
    pub verb: NamedVerb,
    /// Its name; empty for `EXECUTE IMMEDIATE`.
    pub name: String,
}

/// What is done to a named statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NamedVerb {
    /// `PREPARE`.
    Prepare,
    /// `EXECUTE`.
    Execute,
    /// MariaDB's `EXECUTE IMMEDIATE`.
    ExecuteImmediate,
    /// `DEALLOCATE PREPARE`, `DROP PREPARE`.
    Deallocate,
}

/// Which `XA` statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum XaVerb {
    /// `XA START`, `XA BEGIN`.
    Start,
    /// `XA END`.
    End,
    /// `XA PREPARE`.
    Prepare,
    /// `XA COMMIT`, with `ONE PHASE` or without.
    Commit,
    /// `XA ROLLBACK`.
    Rollback,
    /// `XA RECOVER`, which concerns no transaction of the session's own.
    Recover,
}

/// A set of what a statement may read of the statements before it on the same connection.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct SessionFunctions(u8);

impl SessionFunctions {
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// `LAST_INSERT_ID()`, `@@last_insert_id`, `@@identity`.
    pub const LAST_INSERT_ID: Self = Self(1);
    /// `FOUND_ROWS()`.
    pub const FOUND_ROWS: Self = Self(2);
    /// `ROW_COUNT()`.
    pub const ROW_COUNT: Self = Self(4);
    /// `SHOW WARNINGS`, `SHOW ERRORS`, `GET DIAGNOSTICS`, `@@warning_count`, `@@error_count`.
    pub const DIAGNOSTICS: Self = Self(8);
    /// `LASTVAL()`, `PREVIOUS VALUE FOR`.
    pub const SEQUENCE: Self = Self(16);
    /// `@@last_gtid` and its like.
    pub const LAST_GTID: Self = Self(32);

    const NAMES: [(Self, &'static str); 6] = [
        (Self::LAST_INSERT_ID, "last-insert-id"),
        (Self::FOUND_ROWS, "found-rows"),
        (Self::ROW_COUNT, "row-count"),
        (Self::DIAGNOSTICS, "diagnostics"),
        (Self::SEQUENCE, "sequence"),
        (Self::LAST_GTID, "last-gtid"),
    ];

    /// True for none.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
    /// True when all of `other` are in it.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
    /// This without what is in `other`.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
    /// Both sets together.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl fmt::Display for SessionFunctions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = Self::NAMES.iter().filter(|(one, _)| self.contains(*one));
        for (index, (_, name)) in names.enumerate() {
            f.write_str(if index > 0 { "," } else { "" })?;
            f.write_str(name)?;
        }
        Ok(())
    }
}

impl fmt::Debug for SessionFunctions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{self}]")
    }
}
