//! What is known of functions by name.

use std::sync::LazyLock;

use crate::protocol::PinReason;

/// What calling a function does beyond giving a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    /// Nothing.
    None,
    /// Writes, or acts on the server; keeps nothing in the session.
    Acts,
    /// `nextval`, `setval`.
    Sequence,
    /// `currval`, `lastval`.
    SequenceRead,
    /// Takes a session-level advisory lock.
    Lock,
    /// Gives up one such lock, or all.
    Unlock,
    /// `set_config`.
    Setting,
    /// Keeps state in the session in a way that only the end of the session surely ends.
    Holds,
    /// Runs SQL text, or leaves state that its name does not show.
    Hidden,
    /// Code of the database's own.
    Code,
}

impl Effect {
    /// What pins in every profile.
    pub(super) const fn pin(self) -> Option<PinReason> {
        match self {
            Self::Sequence | Self::SequenceRead => Some(PinReason::SessionFunction),
            Self::Lock => Some(PinReason::AdvisoryLock),
            Self::Holds => Some(PinReason::Unknown),
            Self::None | Self::Acts | Self::Unlock | Self::Setting | Self::Hidden | Self::Code => None,
        }
    }
}

/// Functions with an effect of their own, whatever schema they are called by, sorted by name. None of them is in
/// `builtin_functions.txt`.
const STATEFUL: &[(&str, Effect)] = &[
    ("currval", Effect::SequenceRead),
    // Read from a cursor that the session holds.
    ("cursor_to_xml", Effect::Hidden),
    ("cursor_to_xmlschema", Effect::Hidden),
    // Run the queries that make up a table's, schema's or database's content.
    ("database_to_xml", Effect::Hidden),
    ("database_to_xml_and_xmlschema", Effect::Hidden),
    ("database_to_xmlschema", Effect::Hidden),
    // A connection of the session's own to another server.
    ("dblink_connect", Effect::Holds),
    ("dblink_connect_u", Effect::Holds),
    ("lastval", Effect::SequenceRead),
    ("nextval", Effect::Sequence),
    ("pg_advisory_lock", Effect::Lock),
    ("pg_advisory_lock_shared", Effect::Lock),
    ("pg_advisory_unlock", Effect::Unlock),
    ("pg_advisory_unlock_all", Effect::Unlock),
    ("pg_advisory_unlock_shared", Effect::Unlock),
    // A backup that ends with its session.
    ("pg_backup_start", Effect::Holds),
    // May make temporary slots, which belong to the session.
    ("pg_copy_logical_replication_slot", Effect::Holds),
    ("pg_copy_physical_replication_slot", Effect::Holds),
    ("pg_create_logical_replication_slot", Effect::Holds),
    ("pg_create_physical_replication_slot", Effect::Holds),
    // The session's replication origin.
    ("pg_replication_origin_session_reset", Effect::Holds),
    ("pg_replication_origin_session_setup", Effect::Holds),
    // Before PostgreSQL 15.
    ("pg_start_backup", Effect::Holds),
    ("pg_try_advisory_lock", Effect::Lock),
    ("pg_try_advisory_lock_shared", Effect::Lock),
    // Run SQL text.
    ("query_to_xml", Effect::Hidden),
    ("query_to_xml_and_xmlschema", Effect::Hidden),
    ("query_to_xmlschema", Effect::Hidden),
    ("schema_to_xml", Effect::Hidden),
    ("schema_to_xml_and_xmlschema", Effect::Hidden),
    ("schema_to_xmlschema", Effect::Hidden),
    ("set_config", Effect::Setting),
    // Later random() values follow from it, in this session alone.
    ("setseed", Effect::Hidden),
    ("setval", Effect::Sequence),
    ("table_to_xml", Effect::Hidden),
    ("table_to_xml_and_xmlschema", Effect::Hidden),
    ("table_to_xmlschema", Effect::Hidden),
    // Run SQL text.
    ("ts_rewrite", Effect::Hidden),
    ("ts_stat", Effect::Hidden),
];

/// Built in since PostgreSQL 15, sorted; none of them writes.
const NEWER: &[&str] = &[
    "any_value",
    "array_reverse",
    "array_sample",
    "array_shuffle",
    "array_sort",
    "casefold",
    "crc32",
    "crc32c",
    "date_add",
    "date_subtract",
    "erf",
    "erfc",
    "gamma",
    "lgamma",
    "pg_basetype",
    "pg_input_error_info",
    "pg_input_is_valid",
    "random_normal",
    "system_user",
    "to_bin",
    "to_oct",
    "uuid_extract_timestamp",
    "uuid_extract_version",
    "uuidv4",
    "uuidv7",
    "xmltext",
];

/// What calling `name` in `schema` (none given: wherever the `search_path` finds it) does. Names are as the parse
/// tree has them. A user's function that bears the name of a built-in one cannot be told from it.
pub(super) fn effect(schema: Option<&str>, name: &str) -> Effect {
    if let Ok(index) = STATEFUL.binary_search_by_key(&name, |entry| entry.0) {
        return STATEFUL[index].1;
    }
    if schema.is_some_and(|schema| schema != "pg_catalog") {
        return Effect::Code;
    }
    if let Ok(index) = BUILT_IN.binary_search_by_key(&name, |entry| entry.0) {
        return if BUILT_IN[index].1 { Effect::Acts } else { Effect::None };
    }
    if NEWER.binary_search(&name).is_ok() { Effect::None } else { Effect::Code }
}

/// Name, and whether it acts.
static BUILT_IN: LazyLock<Vec<(&str, bool)>> = LazyLock::new(|| {
    include_str!("../builtin_functions.txt")
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| line.strip_suffix(" w").map_or((line, false), |name| (name, true)))
        .collect()
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_sorted_and_apart() {
        assert!(STATEFUL.is_sorted_by(|a, b| a.0 < b.0));
        assert!(NEWER.is_sorted_by(|a, b| a < b));
        assert!(BUILT_IN.is_sorted_by(|a, b| a.0 < b.0));
        assert!(BUILT_IN.len() > 2500);
        for (name, _) in BUILT_IN.iter() {
            assert!(STATEFUL.binary_search_by_key(name, |entry| entry.0).is_err(), "{name} is in both lists");
            assert!(NEWER.binary_search(name).is_err(), "{name} is in both lists");
        }
    }

    #[test]
    fn names_are_told_apart() {
        assert_eq!(effect(None, "lower"), Effect::None);
        assert_eq!(effect(Some("pg_catalog"), "lower"), Effect::None);
        assert_eq!(effect(Some("app"), "lower"), Effect::Code);
        assert_eq!(effect(None, "pg_notify"), Effect::Acts);
        assert_eq!(effect(Some("app"), "pg_advisory_lock"), Effect::Lock);
        assert_eq!(effect(None, "pg_advisory_xact_lock"), Effect::Acts);
        assert_eq!(effect(None, "Lower"), Effect::Code);
        assert_eq!(effect(None, "query_to_xml"), Effect::Hidden);
    }
}
