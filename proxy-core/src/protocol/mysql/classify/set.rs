//! Reads `SET` statements.

use std::ops::Range;

use super::{
    details::{Assignment, Scope},
    facts::{Tok, split},
    lexer::Kind,
    walk,
};

/// A text that is one `SET` of variables.
pub(super) fn of_text<'t, 'a>(tokens: &'t [Tok<'a>]) -> Option<(&'t [Tok<'a>], Set)> {
    let [statement] = &split(tokens)[..] else { return None };
    if statement.first()?.word() != "set" {
        return None;
    }
    match form(statement)? {
        SetForm::Assignments(set) => Some((statement, set)),
        _ => None,
    }
}

/// What a `SET` is.
pub(super) enum SetForm {
    Assignments(Set),
    /// `SET PASSWORD`, `SET DEFAULT ROLE`.
    Account,
    /// `SET ROLE`, MariaDB's `SET SESSION AUTHORIZATION`.
    Identity,
    ResourceGroup,
    /// Where the statement begins.
    ForStatement(usize),
}

/// Assignments of a `SET`.
pub(super) struct Set {
    pub(super) items: Vec<Item>,
    /// `SET LOCAL`, or `@@local`, throughout.
    pub(super) is_local: bool,
}

/// One assignment.
pub(super) struct Item {
    pub(super) assignment: Assignment,
    /// The value's tokens.
    pub(super) value: Range<usize>,
    /// The value is `DEFAULT`.
    to_default: bool,
    /// Spelt `@@name`, without a scope: MariaDB does not report it.
    pub(super) is_unreported: bool,
}

/// Variables that rows of RDS Proxy's documentation call tracked (rds-proxy.md 1.4).
const TRACKED: [&str; 24] = [
    "auto_increment_increment",
    "autocommit",
    "character set",
    "character_set_client",
    "character_set_connection",
    "character_set_database",
    "character_set_filesystem",
    "character_set_results",
    "character_set_server",
    "collation_connection",
    "collation_database",
    "collation_server",
    "interactive_timeout",
    "names",
    "net_write_timeout",
    "query_cache_type",
    "session_track_schema",
    "sql_mode",
    "time_zone",
    "transaction_isolation",
    "transaction_read_only",
    "tx_isolation",
    "tx_read_only",
    "wait_timeout",
];

/// Variables whose value, as the server tells it, does not bring back what was set: those that are used up or go on by
/// themselves.
const NOT_REPLAYABLE: [&str; 9] = [
    "gtid_next",
    "gtid_seq_no",
    "insert_id",
    "profiling",
    "pseudo_thread_id",
    "rand_seed1",
    "rand_seed2",
    "timestamp",
    "next_insert_id",
];

/// Variables that are set for the next transaction by `SET @@name`.
const OF_TRANSACTION: [&str; 4] =
    ["transaction_isolation", "transaction_read_only", "tx_isolation", "tx_read_only"];

/// Variables that change how later texts are read, and those that do more than keep a value.
const NOT_PLAIN: [&str; 10] = [
    "autocommit",
    "character set",
    "character_set_client",
    "character_set_connection",
    "collation_connection",
    "identity",
    "last_insert_id",
    "names",
    "sql_mode",
    "sql_log_bin",
];

/// True for a variable that RDS Proxy tracks.
pub(super) fn is_tracked(name: &str) -> bool {
    TRACKED.contains(&name)
}

/// True for a variable that is as it was once it is set to the value that the server tells of it.
pub(super) fn is_replayable(name: &str) -> bool {
    !NOT_REPLAYABLE.contains(&name)
}

impl Set {
    /// One system variable of the session, set to a constant, that does the same wherever it is run again.
    pub(super) fn is_plain(&self) -> bool {
        let [Item { assignment, to_default: false, is_unreported: false, .. }] = &self.items[..] else {
            return false;
        };
        let name = &*assignment.name;
        assignment.scope == Scope::Session
            && assignment.value_is_constant
            && !NOT_PLAIN.contains(&name)
            && is_replayable(name)
    }
}

/// Manual, "SET Syntax for Variable Assignment", "SET CHARACTER SET Statement", "SET NAMES Statement", "SET TRANSACTION
/// Statement"; MariaDB Knowledge Base, "SET STATEMENT". `None` for what is none of these.
pub(super) fn form(tokens: &[Tok<'_>]) -> Option<SetForm> {
    let word = |index: usize| tokens.get(index).map_or("", Tok::word);
    let assigns = |index: usize| tokens.get(index).is_some_and(|token| token.is("=") || token.is(":="));
    match (word(1), word(2)) {
        ("password", _) | ("default", "role") => return Some(SetForm::Account),
        ("role", _) if !assigns(2) => return Some(SetForm::Identity),
        ("session", "authorization") => return Some(SetForm::Identity),
        ("resource", "group") => return Some(SetForm::ResourceGroup),
        ("statement", _) if !assigns(2) => {
            let mut depth = 0_usize;
            for (index, token) in tokens.iter().enumerate() {
                if token.is("(") {
                    depth += 1;
                } else if token.is(")") {
                    depth = depth.saturating_sub(1);
                } else if depth == 0 && token.word() == "for" {
                    return Some(SetForm::ForStatement(index + 1));
                }
            }
            return None;
        }
        _ => {}
    }
    let mut set = Set { items: Vec::new(), is_local: true };
    let mut scope = Scope::Session;
    let mut local = false;
    let mut index = 1;
    if let (Some(given), "transaction") = (scope_of(word(1)), word(2)) {
        set.is_local = word(1) == "local";
        set.transaction(tokens, 3, given);
        return Some(SetForm::Assignments(set));
    }
    if word(1) == "transaction" && !assigns(2) {
        set.is_local = false;
        set.transaction(tokens, 2, Scope::NextTransaction);
        return Some(SetForm::Assignments(set));
    }
    loop {
        if let Some(given) = scope_of(word(index))
            && !assigns(index + 1)
        {
            // It holds for what follows, too (manual, on several assignments).
            scope = given;
            local = word(index) == "local";
            index += 1;
        }
        let token = tokens.get(index)?;
        let mut is_unreported = false;
        let (name, scope, value) = match (token.word(), word(index + 1)) {
            _ if token.kind == Kind::UserVariable => {
                (token.name.clone().into_owned(), Scope::User, index + 1)
            }
            _ if token.kind == Kind::SystemVariable => {
                let given =
                    scope_of(&token.name).filter(|_| tokens.get(index + 1).is_some_and(|dot| dot.is(".")));
                let (name, end) = match given {
                    Some(_) => walk::chain(tokens, index + 2).map(|(parts, end)| (parts.join("."), end))?,
                    None => following(tokens, index),
                };
                local = given.is_some() && token.name == "local";
                is_unreported = given.is_none();
                let next =
                    if OF_TRANSACTION.contains(&&*name) { Scope::NextTransaction } else { Scope::Session };
                (name, given.unwrap_or(next), end)
            }
            ("names", _) if !assigns(index + 1) => ("names".to_owned(), Scope::Session, index + 1),
            ("charset", _) if !assigns(index + 1) => ("character set".to_owned(), Scope::Session, index + 1),
            ("character" | "char", "set") => ("character set".to_owned(), Scope::Session, index + 2),
            _ => {
                let (parts, end) = walk::chain(tokens, index)?;
                (parts.join("."), scope, end)
            }
        };
        let is_statement = matches!(&*name, "names" | "character set");
        let value = match is_statement && !assigns(value) {
            true => value,
            false if assigns(value) => value + 1,
            false => return None,
        };
        let end = value + item_length(tokens.get(value..)?);
        let tokens_of_value = tokens.get(value..end).filter(|value| !value.is_empty())?;
        let value_is_constant = is_statement && tokens_of_value.iter().all(|token| token.kind != Kind::Param)
            || is_constant(tokens_of_value, scope == Scope::User);
        let to_default = matches!(tokens_of_value, [word] if word.word() == "default");
        set.is_local &= local;
        set.items.push(Item {
            assignment: Assignment { scope, name, value_is_constant },
            value: value..end,
            to_default,
            is_unreported,
        });
        match tokens.get(end) {
            Some(_) => index = end + 1,
            None => return Some(SetForm::Assignments(set)),
        }
    }
}

impl Set {
    /// The characteristics from `index` on.
    fn transaction(&mut self, tokens: &[Tok<'_>], index: usize, scope: Scope) {
        let mut from = index;
        while let Some(rest) = tokens.get(from..).filter(|rest| !rest.is_empty()) {
            let end = from + item_length(rest);
            let name = match rest.first().map_or("", Tok::word) {
                "isolation" => "transaction_isolation",
                _ => "transaction_read_only",
            };
            let assignment = Assignment { scope, name: name.to_owned(), value_is_constant: true };
            let value = from..end;
            self.items.push(Item { assignment, value, to_default: false, is_unreported: false });
            from = end + 1;
        }
    }
}

/// The name that a `@@name` begins, and where it ends.
fn following(tokens: &[Tok<'_>], index: usize) -> (String, usize) {
    let first = tokens.get(index).map_or("", |token| &*token.name);
    match tokens.get(index + 1).filter(|dot| dot.is(".")).and_then(|_| walk::chain(tokens, index + 2)) {
        Some((parts, end)) => (format!("{first}.{}", parts.join(".")), end),
        None => (first.to_owned(), index + 1),
    }
}

fn scope_of(word: &str) -> Option<Scope> {
    match word {
        "session" | "local" => Some(Scope::Session),
        "global" => Some(Scope::Global),
        "persist" | "persist_only" => Some(Scope::Persist),
        _ => None,
    }
}

/// Tokens up to the next comma outside parentheses.
fn item_length(tokens: &[Tok<'_>]) -> usize {
    let mut depth = 0_usize;
    for (length, token) in tokens.iter().enumerate() {
        if token.is("(") {
            depth += 1;
        } else if token.is(")") {
            depth = depth.saturating_sub(1);
        } else if token.is(",") && depth == 0 {
            return length;
        }
    }
    tokens.len()
}

/// True for a literal, signed or made of several, with a character set and a collation or without. A lone word is the
/// value of a system variable; for a user variable it is a column, and no constant unless it is one of three.
fn is_constant(value: &[Tok<'_>], of_user: bool) -> bool {
    const COMPUTED: [&str; 12] = [
        "current_date",
        "current_role",
        "current_time",
        "current_timestamp",
        "current_user",
        "localtime",
        "localtimestamp",
        "session_user",
        "sysdate",
        "utc_date",
        "utc_time",
        "utc_timestamp",
    ];
    match value {
        [word] if word.is_name() => {
            let name = &*word.name;
            if of_user { matches!(word.word(), "true" | "false" | "null") } else { !COMPUTED.contains(&name) }
        }
        [sign, number] if sign.is("-") || sign.is("+") => number.kind == Kind::Number,
        [literal] => literal.kind.is_literal(),
        _ => {
            let value = match value {
                [introducer, rest @ ..] if introducer.word().starts_with('_') => rest,
                _ => value,
            };
            let value = match value {
                [rest @ .., collate, collation] if collate.word() == "collate" && collation.is_name() => rest,
                _ => value,
            };
            match value {
                [literal] => literal.kind.is_literal(),
                // Strings that stand beside each other are one.
                [_, ..] => value.iter().all(|token| matches!(token.kind, Kind::Str | Kind::National)),
                [] => false,
            }
        }
    }
}
