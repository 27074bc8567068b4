//! Test vectors: statements, and what a plugin must say of them. Read from TOML, run against the real file.

use std::sync::Arc;

use serde::Deserialize;

use super::{
    Ask, SessionNames,
    cache::Asked,
    generation::Generation,
    names::Names,
    slot::Verdict as _,
    wit::{PinVerdict, QueryVerdict, Rejection, RouteVerdict},
};
use crate::protocol::{Dialect, Know, PinReason};

/// A file of vectors.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Vectors {
    /// The configuration that they are about; none is the one in use.
    pub(super) config: Option<toml::Table>,
    #[serde(default)]
    vector: Vec<Vector>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Vector {
    sql: String,
    #[serde(default)]
    dialect: VectorDialect,
    #[serde(default = "app")]
    user: String,
    #[serde(default = "app")]
    database: String,
    #[serde(default)]
    application: String,
    #[serde(default = "default_endpoint")]
    endpoint: String,
    #[serde(default = "loopback")]
    client: String,
    #[serde(default)]
    in_transaction: bool,
    #[serde(default)]
    hook: VectorHook,
    reason: Option<String>,
    #[serde(default)]
    subject: String,
    expect: Expected,
    sqlstate: Option<String>,
    code: Option<u16>,
    text: Option<String>,
    target: Option<String>,
    message_contains: Option<String>,
    why: Option<String>,
}

fn app() -> String {
    "app".into()
}

fn default_endpoint() -> String {
    "default".into()
}

fn loopback() -> String {
    "127.0.0.1".into()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum VectorDialect {
    #[default]
    Postgresql,
    Mysql,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
enum VectorHook {
    #[default]
    #[serde(rename = "on-query")]
    Query,
    #[serde(rename = "on-route")]
    Route,
    #[serde(rename = "on-pin")]
    Pin,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Expected {
    Pass,
    Reject,
    Rewrite,
    Writer,
    Reader,
    Target,
    Pin,
    Replay,
    Ignore,
}

impl Expected {
    const fn name(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Reject => "reject",
            Self::Rewrite => "rewrite",
            Self::Writer => "writer",
            Self::Reader => "reader",
            Self::Target => "target",
            Self::Pin => "pin",
            Self::Replay => "replay",
            Self::Ignore => "ignore",
        }
    }

    fn fits(self, hook: VectorHook) -> bool {
        match self {
            Self::Pass | Self::Reject => true,
            Self::Rewrite => hook == VectorHook::Query,
            Self::Writer | Self::Reader | Self::Target => hook == VectorHook::Route,
            Self::Pin | Self::Replay | Self::Ignore => hook == VectorHook::Pin,
        }
    }
}

/// Reads a file of vectors and finds those that make no sense.
pub(super) fn parse(text: &str) -> Result<Vectors, String> {
    let vectors: Vectors = toml::from_str(text).map_err(|error| {
        let line =
            error.span().map_or(0, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
        format!("line {line}: {}", error.message())
    })?;
    for (at, vector) in vectors.vector.iter().enumerate() {
        let wrong = |what: &str| Err(format!("vector {} ({:?}): {what}", at + 1, vector.sql));
        if !vector.expect.fits(vector.hook) {
            return wrong("what it expects is no verdict of its hook");
        }
        match (&vector.reason, vector.hook) {
            (None, VectorHook::Pin) => return wrong("on-pin needs a reason"),
            (Some(_), VectorHook::Query | VectorHook::Route) => return wrong("only on-pin has a reason"),
            (Some(reason), VectorHook::Pin) if reason_of(reason).is_none() => {
                return wrong("its reason is not known");
            }
            _ => {}
        }
        let only = |given: bool, of: Expected| given && vector.expect != of;
        if only(vector.text.is_some(), Expected::Rewrite)
            || only(vector.target.is_some(), Expected::Target)
            || only(
                vector.sqlstate.is_some() || vector.code.is_some() || vector.message_contains.is_some(),
                Expected::Reject,
            )
        {
            return wrong("it says more than what it expects can have");
        }
    }
    Ok(vectors)
}

fn reason_of(name: &str) -> Option<PinReason> {
    PinReason::ALL.into_iter().find(|reason| reason.name() == name)
}

/// Runs all vectors in their order; what is wrong with a verdict is a sentence.
pub(super) fn run(
    vectors: &Vectors,
    generation: &Generation,
    names: &Arc<Names>,
    know: &Know,
) -> Vec<Result<(), String>> {
    let run = |(at, vector): (usize, &Vector)| {
        one(vector, generation, names, know).map_err(|what| {
            let why = vector.why.as_deref().map_or_else(String::new, |why| format!(" ({why})"));
            format!("vector {} {:?}{why}: {what}", at + 1, vector.sql)
        })
    };
    vectors.vector.iter().enumerate().map(run).collect()
}

/// A verdict of whatever hook.
#[derive(Debug, Default)]
struct Got {
    name: &'static str,
    text: Option<String>,
    target: Option<String>,
    rejection: Option<Rejection>,
}

fn one(vector: &Vector, generation: &Generation, names: &Arc<Names>, know: &Know) -> Result<(), String> {
    let text = vector.sql.as_bytes();
    let dialect = match vector.dialect {
        VectorDialect::Postgresql => Dialect::Postgresql,
        VectorDialect::Mysql => Dialect::Mysql,
    };
    let (digest, facts, hint) = know(dialect, text);
    let held = [&vector.user, &vector.database, &vector.endpoint, &vector.application, &vector.client]
        .map(|name| names.hold(name));
    let [user, database, endpoint, application, client] = [0, 1, 2, 3, 4].map(|at: usize| held[at].id());
    let session = SessionNames {
        session: 1,
        user,
        database,
        endpoint,
        application,
        client,
        held: Some(Arc::new(held)),
    };
    let ask = Ask {
        names: &session,
        dialect,
        digest,
        facts: &facts,
        text: vector.sql.as_bytes(),
        hint: &hint,
        in_transaction: vector.in_transaction,
        prepares: false,
    };
    let hint = names.hint(&hint);
    let got = match vector.hook {
        VectorHook::Query => answer(generation.on_query(&ask, hint)).map(|verdict| Got {
            name: verdict.name(),
            text: if let QueryVerdict::Rewrite(text) = &verdict { Some(text.clone()) } else { None },
            rejection: if let QueryVerdict::Reject(rejection) = verdict { Some(rejection) } else { None },
            ..Got::default()
        }),
        VectorHook::Route => answer(generation.on_route(&ask, hint)).map(|verdict| Got {
            name: verdict.name(),
            target: if let RouteVerdict::Target(target) = &verdict { Some(target.clone()) } else { None },
            rejection: if let RouteVerdict::Reject(rejection) = verdict { Some(rejection) } else { None },
            ..Got::default()
        }),
        VectorHook::Pin => {
            let reason = vector.reason.as_deref().and_then(reason_of).unwrap_or(PinReason::Unknown);
            answer(generation.on_pin(&ask, hint, reason, &vector.subject)).map(|verdict| Got {
                name: verdict.name(),
                rejection: if let PinVerdict::Reject(rejection) = verdict { Some(rejection) } else { None },
                ..Got::default()
            })
        }
    }?;
    check(vector, &got)
}

fn answer<V: super::slot::Verdict>(asked: Asked<V>) -> Result<V, String> {
    match asked {
        Asked::Unwanted => Ok(V::PASS),
        Asked::Kept(verdict) | Asked::Verdict(verdict) => Ok(verdict),
        Asked::Failed(failure) => {
            Err(format!("the plugin failed: {} ({})", failure.why, failure.kind.name()))
        }
    }
}

fn check(vector: &Vector, got: &Got) -> Result<(), String> {
    if got.name != vector.expect.name() {
        let message = got.rejection.as_ref().map_or_else(String::new, |r| format!(" ({:?})", r.message));
        return Err(format!("expected {}, got {}{message}", vector.expect.name(), got.name));
    }
    for (what, expected, found) in [
        ("text", &vector.text, got.text.as_deref()),
        ("target", &vector.target, got.target.as_deref()),
        ("sqlstate", &vector.sqlstate, got.rejection.as_ref().map(|rejection| &*rejection.sqlstate)),
    ] {
        if let Some(expected) = expected
            && Some(expected.as_str()) != found
        {
            return Err(format!("expected the {what} {expected:?}, got {:?}", found.unwrap_or_default()));
        }
    }
    if let Some(expected) = vector.code {
        let found = got.rejection.as_ref().map_or(0, |rejection| rejection.code);
        if found != expected {
            return Err(format!("expected the code {expected}, got {found}"));
        }
    }
    let message = got.rejection.as_ref().map_or("", |rejection| &rejection.message);
    match &vector.message_contains {
        Some(part) if !message.contains(part.as_str()) => {
            Err(format!("expected a message with {part:?} in it, got {message:?}"))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_vector_needs_little_and_may_say_more() {
        let vectors = parse(
            r#"
            [config]
            limit = 3
            [[vector]]
            sql = "SELECT 1"
            expect = "pass"
            [[vector]]
            sql = "SET x = 1"
            hook = "on-pin"
            reason = "session-variable"
            subject = "x"
            expect = "replay"
            why = "x can be set again"
            "#,
        )
        .unwrap();
        assert_eq!(vectors.config.unwrap()["limit"].as_integer(), Some(3));
        assert_eq!(vectors.vector.len(), 2);
        assert_eq!(vectors.vector[0].user, "app");
        assert_eq!(vectors.vector[1].subject, "x");
        assert!(parse("").unwrap().vector.is_empty());
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for (wrong, expected) in [
            ("[[vector]]\nsql = 'x'", "missing field `expect`"),
            ("[[vector]]\nsql = 'x'\nexpect = 'maybe'", "line 3"),
            ("[[vector]]\nsql = 'x'\nexpect = 'pass'\ncolour = 1", "line 4"),
            ("[[vector]]\nsql = 'x'\nexpect = 'writer'", "no verdict of its hook"),
            ("[[vector]]\nsql = 'x'\nhook = 'on-pin'\nexpect = 'pin'", "needs a reason"),
            ("[[vector]]\nsql = 'x'\nhook = 'on-pin'\nreason = 'mood'\nexpect = 'pin'", "not known"),
            ("[[vector]]\nsql = 'x'\nreason = 'listen'\nexpect = 'pass'", "only on-pin"),
            ("[[vector]]\nsql = 'x'\nexpect = 'pass'\nsqlstate = '42501'", "says more"),
            ("[[vector]]\nsql = 'x'\nexpect = 'pass'\ncode = 1227", "says more"),
            ("[[vector]]\nsql = 'x'\nexpect = 'pass'\ndialect = 'oracle'", "line 4"),
        ] {
            let error = parse(wrong).unwrap_err();
            assert!(error.contains(expected), "{wrong:?}: {error}");
        }
    }
}
