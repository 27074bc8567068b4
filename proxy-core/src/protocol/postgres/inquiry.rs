//! What is asked of a server when texts do not say how they have left its session.
//!
//! One query, one row, from the server's own views: what of a session cannot move to another connection, and the
//! settings that can. Names are qualified throughout, so that a client's `search_path` puts nothing of its own between.

use std::fmt::Write as _;

use serde_json::Value;

use super::{
    super::{Findings, PinReason, PinReasons},
    classify::{self, PREPARED},
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
const IDENTITY: [&str; 2] = ["session_authorization", "role"];

/// The query: `names` are the variables asked for; with `all`, those too that the session has set without being asked
/// for. `None` when a name is not one that a variable can have.
pub(super) fn query(names: &[&str], all: bool) -> Option<String> {
    let mut variables = String::new();
    for name in names.iter().filter(|name| !name.starts_with(PREPARED)) {
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_.$".contains(&byte);
        if !name.bytes().all(plain) {
            return None;
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
    let unasked = if all {
        "UNION SELECT pg_catalog.lower(o.name) FROM pg_catalog.pg_settings AS o \
         WHERE o.source OPERATOR(pg_catalog.=) 'session'"
    } else {
        ""
    };
    write!(
        sql,
        ", (SELECT pg_catalog.json_agg(pg_catalog.json_build_array(\
             q.n, s.source, pg_catalog.current_setting(q.n, true))) \
           FROM (SELECT pg_catalog.unnest(ARRAY[{variables}]::pg_catalog.text[]) {unasked}) AS q(n) \
           LEFT JOIN pg_catalog.pg_settings AS s \
             ON pg_catalog.lower(s.name) OPERATOR(pg_catalog.=) q.n)"
    )
    .ok()?;
    Some(sql)
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
    for (name, statement) in worn.iter().filter(|(name, _)| *name != role) {
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
    if name.starts_with(PREPARED) {
        cleared.contains(PinReason::PreparedStatement)
    } else if IDENTITY.contains(&name) {
        cleared.contains(PinReason::SessionIdentity)
    } else {
        cleared.contains(PinReason::SessionVariable)
    }
}

/// A name in quotes.
fn quoted(name: &str) -> String {
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
