//! What is asked of a server when texts do not say how they have left its session.
//!
//! One query, one row, from the server's own views: what of a session cannot move to another connection, and the
//! settings that can. Names are qualified throughout, so that a client's `search_path` puts nothing of its own between.

use std::fmt::Write as _;

use serde_json::Value;

use super::{
    super::{Findings, PinReason, PinReasons, Survey},
    classify::{self, LIBRARY, PREPARED},
    statement::NAME_PREFIX,
};
use crate::state::Settings;

/// What of a session this can tell.
pub(super) const PROVABLE: PinReasons = PinReasons::only(PinReason::TemporaryTable)
    .union(PinReasons::only(PinReason::AdvisoryLock))
    .union(PinReasons::only(PinReason::Listen))
    .union(PinReasons::only(PinReason::HeldCursor))
    .union(PinReasons::only(PinReason::PreparedStatement));

/// Settings that are hidden from `pg_settings`, and what they are when nobody has set them.
pub(super) const IDENTITY: [&str; 2] = ["session_authorization", "role"];

/// What the view shows as made by the session and is a transaction's, or of no value that could be set again.
const TRANSIENT: [&str; 4] =
    ["transaction_isolation", "transaction_read_only", "transaction_deferrable", "seed"];

/// The query: `names` are the variables asked for; with `all`, those too that the session has set without being asked
/// for. `None` when a name is not one that a variable can have.
pub(super) fn query(names: &[&str], all: bool) -> Option<String> {
    let mut variables = String::new();
    for name in names.iter().filter(|name| !name.starts_with(PREPARED) && !is_lasting(name)) {
        if !is_plain(name) {
            return None;
        }
        if all && IDENTITY.contains(name) {
            continue;
        }
        write!(variables, "'{name}',").ok()?;
    }
    if all {
        for name in IDENTITY {
            write!(variables, "'{name}',").ok()?;
        }
    }
    variables.pop();
    let prefix = std::str::from_utf8(NAME_PREFIX).ok()?;
    let length = prefix.len();
    let mut sql = format!(
        "SELECT (SELECT pg_catalog.count(*) FROM pg_catalog.pg_locks AS l \
          WHERE l.locktype OPERATOR(pg_catalog.=) 'advisory' \
            AND l.pid OPERATOR(pg_catalog.=) pg_catalog.pg_backend_pid()), \
         (SELECT pg_catalog.count(*) FROM pg_catalog.pg_depend AS d \
          WHERE d.refclassid OPERATOR(pg_catalog.=) 'pg_catalog.pg_namespace'::pg_catalog.regclass \
            AND d.refobjid OPERATOR(pg_catalog.=) pg_catalog.pg_my_temp_schema()), \
         (SELECT pg_catalog.count(*) FROM pg_catalog.pg_listening_channels()), \
         (SELECT pg_catalog.count(*) FROM pg_catalog.pg_cursors AS c WHERE c.is_holdable), \
         (SELECT pg_catalog.json_agg(pg_catalog.json_build_array(p.name, p.from_sql, p.statement)) \
          FROM pg_catalog.pg_prepared_statements AS p \
          WHERE p.from_sql OR pg_catalog.left(p.name, {length}) OPERATOR(pg_catalog.<>) '{prefix}'), \
         pg_catalog.current_setting('session_authorization')"
    );
    if variables.is_empty() {
        sql.push_str(", NULL");
        return Some(sql);
    }
    let asked = format!("pg_catalog.unnest(ARRAY[{variables}]::pg_catalog.text[])");
    // The view takes most of a millisecond to make up, and shows no setting of a client's own making.
    let is_hidden = |name: &&str| name.contains(['.', ' ']) || IDENTITY.contains(name);
    if !all && names.iter().all(is_hidden) {
        write!(
            sql,
            ", (SELECT pg_catalog.json_agg(pg_catalog.json_build_array(\
                 q.n, NULL, pg_catalog.current_setting(q.n, true))) FROM {asked} AS q(n))"
        )
        .ok()?;
        return Some(sql);
    }
    let unasked =
        if all { "UNION SELECT s.n FROM s WHERE s.source OPERATOR(pg_catalog.=) 'session'" } else { "" };
    write!(
        sql,
        ", (WITH s AS MATERIALIZED \
             (SELECT pg_catalog.lower(o.name) AS n, o.source FROM pg_catalog.pg_settings AS o) \
           SELECT pg_catalog.json_agg(pg_catalog.json_build_array(\
             q.n, s.source, pg_catalog.current_setting(q.n, true))) \
           FROM (SELECT {asked} {unasked}) AS q(n) \
           LEFT JOIN s ON s.n OPERATOR(pg_catalog.=) q.n)"
    )
    .ok()?;
    Some(sql)
}

/// What code of the database's own may change of a session, by its source: whether that cannot be told; whether it may
/// leave what pins; whether there are triggers, which run it behind statements that do not name it; and the variables that
/// it names. A name too many costs little; one too few, as of a function made since, is not found on the connection of the
/// client that called it, and cleaned up before another's turn like anything unseen.
pub(super) const SURVEY: &str = r"
SELECT coalesce(pg_catalog.bool_or(
    l.lanname OPERATOR(pg_catalog.<>) ALL (ARRAY['sql', 'plpgsql'])
    OR p.prosrc OPERATOR(pg_catalog.=) ''
    OR p.prosrc OPERATOR(pg_catalog.~*) E'\\m(reset|discard)\\M'
    OR p.prosrc OPERATOR(pg_catalog.~*) E'\\mexecute\\s+(?!format|''|\\$|quote)'
    OR p.prosrc OPERATOR(pg_catalog.~*) E'\\mexecute\\M'
      AND p.prosrc OPERATOR(pg_catalog.~*) E'\\m(set|set_config)\\M'
    OR p.prosrc OPERATOR(pg_catalog.~*) E'\\mset\\s+(session\\s+)?(time\\s+zone|names|schema|session|xml)\\M'
    OR p.prosrc OPERATOR(pg_catalog.~*) E'set_config\\s*\\(\\s*[^''\\s]'), false),
  coalesce(pg_catalog.bool_or(
    p.prosrc OPERATOR(pg_catalog.~*) E'advisory|\\m(listen|temp|temporary|pg_temp|prepare|hold|load|dblink\\w*)\\M'),
    false),
  EXISTS (SELECT FROM pg_catalog.pg_trigger AS t WHERE NOT t.tgisinternal),
  (SELECT pg_catalog.json_agg(DISTINCT pg_catalog.lower(m.n[1]))
   FROM pg_catalog.pg_proc AS q
   JOIN pg_catalog.pg_language AS k ON k.oid OPERATOR(pg_catalog.=) q.prolang,
   LATERAL (
     SELECT pg_catalog.regexp_matches(q.prosrc, E'set_config\\s*\\(\\s*''([^'']+)''', 'gi')
     UNION ALL
     SELECT pg_catalog.regexp_matches(
       q.prosrc, E'\\mset\\s+(?:session\\s+)?([a-z_][a-z_0-9.]*)\\s*(?:=|to\\M)', 'gi')) AS m(n)
   WHERE k.lanname OPERATOR(pg_catalog.=) ANY (ARRAY['sql', 'plpgsql'])
     AND q.oid OPERATOR(pg_catalog.>=) 16384::pg_catalog.oid
     AND (pg_catalog.strpos(m.n[1], '.') OPERATOR(pg_catalog.>) 0
       OR pg_catalog.lower(m.n[1]) OPERATOR(pg_catalog.=) ANY (
         ARRAY(SELECT pg_catalog.lower(s.name) FROM pg_catalog.pg_settings AS s))))
FROM pg_catalog.pg_proc AS p
JOIN pg_catalog.pg_language AS l ON l.oid OPERATOR(pg_catalog.=) p.prolang
WHERE l.lanname OPERATOR(pg_catalog.<>) ALL (ARRAY['internal', 'c'])
  AND p.oid OPERATOR(pg_catalog.>=) 16384::pg_catalog.oid";

/// Most variables that are asked for by name after code has run.
const MOST_SURVEYED: usize = 64;

/// Reads the answer to [`SURVEY`].
pub(super) fn read_survey(row: &[String]) -> Option<Survey> {
    let [untold, pins, triggers, names] = row else { return None };
    let names: Vec<Box<str>> = list(names)?.iter().filter_map(|name| Some(name.as_str()?.into())).collect();
    let names: Vec<_> = names.into_iter().filter(|name| is_plain(name)).take(MOST_SURVEYED + 1).collect();
    let others = untold != "f" || names.len() > MOST_SURVEYED;
    Some(Survey { names, others, pins: pins != "f", triggers: triggers != "f" })
}

/// True for a name that can be asked about.
fn is_plain(name: &str) -> bool {
    name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_.$".contains(&byte))
}

/// Reads the answer to a question about `names`. `user` is who logged in. `None` when it is not such an answer.
pub(super) fn read(row: &[String], names: &[&str], user: &str) -> Option<Findings> {
    let [locks, temporary, channels, cursors, prepared, authorization, variables] = row else { return None };
    let mut findings = Findings { covers: PROVABLE, ..Findings::default() };
    let counts = [
        (locks, PinReason::AdvisoryLock),
        (temporary, PinReason::TemporaryTable),
        (channels, PinReason::Listen),
        (cursors, PinReason::HeldCursor),
    ];
    for (count, reason) in counts {
        if count != "0" {
            findings.pins.insert(reason);
        }
    }
    for statement in list(prepared)? {
        let [Value::String(name), Value::Bool(from_sql), Value::String(text)] = &statement.as_array()?[..]
        else {
            return None;
        };
        if *from_sql && is_replayable(text) && classify::is_plain_prepare(text) {
            findings.settings.push((classify::prepared(name).into(), Some(text.as_str().into())));
        } else {
            findings.pins.insert(PinReason::PreparedStatement);
        }
    }
    for name in names.iter().filter(|name| name.starts_with(PREPARED)) {
        if !findings.settings.iter().any(|(known, _)| **known == **name) {
            findings.settings.push(((*name).into(), None));
        }
    }
    for variable in list(variables)? {
        let [Value::String(name), source, value] = &variable.as_array()?[..] else { return None };
        let value = value.as_str();
        if TRANSIENT.contains(&&**name) {
            continue;
        }
        let is_made = match &**name {
            "session_authorization" => authorization != user,
            "role" => value.is_some_and(|role| role != "none"),
            // A setting of the client's own making is hidden from the view, and is there or not.
            _ if source.is_null() => value.is_some(),
            _ => source == "session",
        };
        let made = match value.filter(|_| is_made) {
            None => None,
            Some(value) if value.is_ascii() => Some(set_config(name, value).into()),
            Some(_) => {
                findings.pins.insert(PinReason::SessionVariable);
                continue;
            }
        };
        findings.settings.push((name.as_str().into(), made));
    }
    // Whoever sets what only some may set, does it before giving up the right to.
    findings.settings.sort_by_key(|(name, _)| IDENTITY.iter().position(|identity| *identity == &**name));
    Some(findings)
}

/// What is run where `worn` stands to make it `wanted`. `None` where order or rights are in the way of that: then all of
/// it is made anew.
pub(super) fn difference(worn: &Settings, wanted: Option<&Settings>) -> Option<Vec<String>> {
    let wanted_of = |name: &str| wanted.and_then(|wanted| wanted.get(name));
    let [authorization, role] = IDENTITY;
    // Its change takes the role away, and with the rights of whoever it is others may not be set.
    if worn.get(authorization) != wanted_of(authorization) {
        return None;
    }
    let mut statements = Vec::new();
    if worn.get(role).is_some() && worn.get(role) != wanted_of(role) {
        statements.push("RESET ROLE".to_owned());
    }
    for (name, statement) in worn.iter().filter(|(name, _)| *name != role && !is_lasting(name)) {
        match (wanted_of(name), name.strip_prefix(PREPARED)) {
            (Some(same), _) if same == statement => {}
            (_, Some(prepared)) => statements.push(format!("DEALLOCATE {}", quoted(prepared))),
            (None, None) => statements.push(format!("RESET {}", quoted(name))),
            (Some(_), None) => {}
        }
    }
    let missing =
        wanted.into_iter().flat_map(Settings::iter).filter(|(name, made)| worn.get(name) != Some(made));
    statements.extend(missing.map(|(_, statement)| statement.to_owned()));
    Some(statements)
}

/// True when a statement that clears these pins takes the setting `name` back.
pub(super) fn takes_back(cleared: PinReasons, name: &str) -> bool {
    if is_lasting(name) {
        false
    } else if name.starts_with(PREPARED) {
        cleared.contains(PinReason::PreparedStatement)
    } else if IDENTITY.contains(&name) {
        cleared.contains(PinReason::SessionIdentity)
    } else {
        cleared.contains(PinReason::SessionVariable)
    }
}

/// True for what nothing takes back while the connection lives.
pub(super) fn is_lasting(name: &str) -> bool {
    name.starts_with(LIBRARY)
}

/// A name in quotes.
pub(super) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// True for a text that means the same however a server reads strings, in every encoding.
pub(super) fn is_replayable(text: &str) -> bool {
    text.is_ascii() && !text.contains(['\\', '\0'])
}

/// Sets a variable for the session, whatever way the server reads strings.
fn set_config(name: &str, value: &str) -> String {
    let quoted = value.replace('\'', "''");
    if quoted.contains('\\') {
        format!("SELECT pg_catalog.set_config('{name}', E'{}', false)", quoted.replace('\\', "\\\\"))
    } else {
        format!("SELECT pg_catalog.set_config('{name}', '{quoted}', false)")
    }
}

/// A JSON list; empty for NULL.
fn list(text: &str) -> Option<Vec<Value>> {
    if text.is_empty() { Some(Vec::new()) } else { serde_json::from_str(text).ok() }
}
