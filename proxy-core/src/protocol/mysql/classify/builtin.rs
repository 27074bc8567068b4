//! What is known of functions by name.

use std::sync::LazyLock;

use crate::protocol::PinReason;

/// What calling a function does beyond giving a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    /// Nothing.
    None,
    /// Acts on the server; keeps nothing in the session.
    Acts,
    /// `NEXTVAL`, `SETVAL`.
    Sequence,
    /// `LASTVAL`.
    SequenceRead,
    /// `GET_LOCK`.
    Lock,
    /// Gives up one such lock, or all.
    Unlock,
    /// `LAST_INSERT_ID()`, which tells; with an argument it sets, and then it is [`Self::Acts`].
    LastInsertId,
    /// `FOUND_ROWS()`.
    FoundRows,
    /// `ROW_COUNT()`.
    RowCount,
    /// Tells of what the session did before in some other way.
    SessionRead,
    /// Keeps state in the session in a way that only the end of the session surely ends.
    Holds,
    /// Runs code or leaves state that its name does not show.
    Hidden,
}

impl Effect {
    /// What pins in profile `smart`.
    pub(super) const fn pin(self) -> Option<PinReason> {
        match self {
            Self::Sequence
            | Self::SequenceRead
            | Self::LastInsertId
            | Self::FoundRows
            | Self::RowCount
            | Self::SessionRead => Some(PinReason::SessionFunction),
            Self::Lock => Some(PinReason::AdvisoryLock),
            Self::Holds => Some(PinReason::Unknown),
            Self::None | Self::Acts | Self::Unlock | Self::Hidden => None,
        }
    }
}

/// Functions with an effect of their own, sorted by name. None of them is in `builtin_functions.txt`.
const STATEFUL: &[(&str, Effect)] = &[
    ("asynchronous_connection_failover_add_managed", Effect::Acts),
    ("asynchronous_connection_failover_add_source", Effect::Acts),
    ("asynchronous_connection_failover_delete_managed", Effect::Acts),
    ("asynchronous_connection_failover_delete_source", Effect::Acts),
    ("asynchronous_connection_failover_reset", Effect::Acts),
    ("found_rows", Effect::FoundRows),
    ("get_lock", Effect::Lock),
    ("group_replication_disable_member_action", Effect::Acts),
    ("group_replication_enable_member_action", Effect::Acts),
    ("group_replication_reset_member_actions", Effect::Acts),
    ("group_replication_set_as_primary", Effect::Acts),
    ("group_replication_set_communication_protocol", Effect::Acts),
    ("group_replication_set_write_concurrency", Effect::Acts),
    ("group_replication_switch_to_multi_primary_mode", Effect::Acts),
    ("group_replication_switch_to_single_primary_mode", Effect::Acts),
    ("last_insert_id", Effect::LastInsertId),
    ("lastval", Effect::SequenceRead),
    // They wait for what a replica applies, or for a source: no plain reads, and of no use on a server of the proxy's
    // choice.
    ("master_gtid_wait", Effect::Acts),
    ("master_pos_wait", Effect::Acts),
    ("nextval", Effect::Sequence),
    ("release_all_locks", Effect::Unlock),
    ("release_lock", Effect::Unlock),
    ("row_count", Effect::RowCount),
    // Locks of the locking service and of version tokens end with the session.
    ("service_get_read_locks", Effect::Holds),
    ("service_get_write_locks", Effect::Holds),
    ("service_release_locks", Effect::Acts),
    ("setval", Effect::Sequence),
    ("source_pos_wait", Effect::Acts),
    ("version_tokens_lock_exclusive", Effect::Holds),
    ("version_tokens_lock_shared", Effect::Holds),
    ("wait_for_executed_gtid_set", Effect::Acts),
    ("wait_until_sql_thread_after_gtids", Effect::Acts),
    ("wsrep_last_seen_gtid", Effect::SessionRead),
    ("wsrep_last_written_gtid", Effect::SessionRead),
    ("wsrep_sync_wait_upto_gtid", Effect::Acts),
];

/// Words that may stand before a parenthesis without being called, sorted: what takes a list or an expression, and
/// types with a length.
const NOT_CALLED: &[&str] = &[
    "against",
    "all",
    "and",
    "any",
    "as",
    "asc",
    "between",
    "bigint",
    "binary",
    "bit",
    "blob",
    "by",
    "call",
    "case",
    "columns",
    "cross",
    "dec",
    "decimal",
    "desc",
    "distinct",
    "distinctrow",
    "div",
    "do",
    "double",
    "dual",
    "else",
    "end",
    "enum",
    "escape",
    "except",
    "exists",
    "explain",
    "fields",
    "fixed",
    "float",
    "for",
    "force",
    "from",
    "group",
    "having",
    "high_priority",
    "ignore",
    "in",
    "index",
    "inner",
    "int",
    "integer",
    "intersect",
    "interval",
    "into",
    "is",
    "join",
    "key",
    "kill",
    "lateral",
    "like",
    "limit",
    "lines",
    "match",
    "mediumint",
    "minus",
    "natural",
    "nchar",
    "nested",
    "not",
    "numeric",
    "nvarchar",
    "of",
    "offset",
    "on",
    "or",
    "order",
    "outer",
    "over",
    "partition",
    "partitions",
    "path",
    "precision",
    "primary",
    "procedure",
    "real",
    "recursive",
    "regexp",
    "returning",
    "returns",
    "rlike",
    "rollup",
    "row",
    "rows",
    "select",
    "separator",
    "set",
    "show",
    "signed",
    "smallint",
    "some",
    "sounds",
    "sql_big_result",
    "sql_buffer_result",
    "sql_cache",
    "sql_calc_found_rows",
    "sql_no_cache",
    "sql_small_result",
    "straight_join",
    "table",
    "text",
    "then",
    "tinyint",
    "union",
    "unique",
    "unsigned",
    "update",
    "use",
    "using",
    "value",
    "values",
    "varbinary",
    "varchar",
    "varying",
    "when",
    "where",
    "window",
    "with",
    "xor",
];

/// True for a word that stands before a parenthesis without being called.
pub(super) fn is_not_called(word: &str) -> bool {
    NOT_CALLED.binary_search(&word).is_ok()
}

/// True for a built-in function with an effect.
pub(super) fn has_effect(name: &str) -> bool {
    STATEFUL.binary_search_by_key(&name, |entry| entry.0).is_ok()
}

/// What calling `name`, in lower case, does. `in_schema`: a schema stands before it, and then it is never a built-in
/// function. `with_arguments`: the parentheses are not empty. A user's function that bears the name of a built-in one
/// cannot be told from it.
pub(super) fn effect(in_schema: bool, name: &str, with_arguments: bool) -> Effect {
    if in_schema {
        return Effect::Hidden;
    }
    match STATEFUL.binary_search_by_key(&name, |entry| entry.0).ok().and_then(|index| STATEFUL.get(index)) {
        Some((_, Effect::LastInsertId)) if with_arguments => Effect::Acts,
        Some((_, effect)) => *effect,
        None if BUILT_IN.binary_search(&name).is_ok() => Effect::None,
        None => Effect::Hidden,
    }
}

static BUILT_IN: LazyLock<Vec<&str>> = LazyLock::new(|| {
    include_str!("../builtin_functions.txt").lines().filter(|line| !line.starts_with('#')).collect()
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_sorted_and_apart() {
        assert!(STATEFUL.is_sorted_by(|a, b| a.0 < b.0));
        assert!(NOT_CALLED.is_sorted_by(|a, b| a < b));
        assert!(BUILT_IN.is_sorted_by(|a, b| a < b));
        assert!(BUILT_IN.len() > 400);
        for name in BUILT_IN.iter() {
            assert!(STATEFUL.binary_search_by_key(name, |entry| entry.0).is_err(), "{name} is in both lists");
            assert!(!is_not_called(name), "{name} is in both lists");
        }
    }

    #[test]
    fn names_are_told_apart() {
        assert_eq!(effect(false, "lower", true), Effect::None);
        assert_eq!(effect(true, "lower", true), Effect::Hidden);
        assert_eq!(effect(false, "get_lock", true), Effect::Lock);
        assert_eq!(effect(true, "get_lock", true), Effect::Hidden);
        assert_eq!(effect(false, "last_insert_id", false), Effect::LastInsertId);
        assert_eq!(effect(false, "last_insert_id", true), Effect::Acts);
        assert_eq!(effect(false, "total", true), Effect::Hidden);
    }
}
