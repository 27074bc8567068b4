//! Reads [`Facts`] and [`Details`] off a text's tokens.

use std::{borrow::Cow, ops::Range};

use super::{
    builtin::{self, Effect},
    details::{Assignment, Details, Kill, NamedStatement, NamedVerb, Scope, SessionFunctions, XaVerb},
    lexer::{Kind, LexMode, Lexer, executed_by_all},
    set::{self, SetForm},
    walk::{self, Call},
};
use crate::protocol::{Facts, Moves, PinReason, PinReasons, StatementKind};

/// A token that facts may depend on: of a literal, its kind and its place alone.
#[derive(Debug, Clone)]
pub(super) struct Tok<'a> {
    pub(super) kind: Kind,
    pub(super) start: usize,
    pub(super) end: usize,
    /// Words and names in lower case and without quotes, variables without their marks, symbols as they are; empty for
    /// the rest.
    pub(super) name: Cow<'a, str>,
}

impl Tok<'_> {
    /// The word in lower case; empty for anything that is no unquoted word.
    pub(super) fn word(&self) -> &str {
        if self.kind == Kind::Word { &self.name } else { "" }
    }

    /// True for this operator or other symbol.
    pub(super) fn is(&self, symbol: &str) -> bool {
        matches!(self.kind, Kind::Operator | Kind::Other) && self.name == symbol
    }

    pub(super) const fn is_name(&self) -> bool {
        matches!(self.kind, Kind::Word | Kind::QuotedName)
    }

    fn is_mark_of_comment(&self) -> bool {
        matches!(self.kind, Kind::ExecutableStart | Kind::ExecutableEnd | Kind::NeverExecuted)
    }
}

/// The tokens of `text`, hints left out; `None` when it cannot be cut surely or holds what no grammar takes.
pub(super) fn tokens(text: &[u8], mode: LexMode) -> Option<Vec<Tok<'_>>> {
    let mut lexer = Lexer::new(text, mode);
    let mut tokens = Vec::new();
    while let Some(token) = lexer.next() {
        let bytes = text.get(token.start..token.end).unwrap_or_default();
        let name = match token.kind {
            Kind::Hint => continue,
            Kind::Junk => return None,
            Kind::Word => lower_case(bytes),
            Kind::QuotedName => unquoted(bytes),
            Kind::UserVariable => variable(bytes, 1),
            Kind::SystemVariable => variable(bytes, 2),
            Kind::Operator | Kind::Other | Kind::ExecutableStart => String::from_utf8_lossy(bytes),
            _ => Cow::Borrowed(""),
        };
        tokens.push(Tok { kind: token.kind, start: token.start, end: token.end, name });
    }
    (!lexer.untrusted).then_some(tokens)
}

fn lower_case(bytes: &[u8]) -> Cow<'_, str> {
    let text = String::from_utf8_lossy(bytes);
    if text.chars().any(char::is_uppercase) { Cow::Owned(text.to_lowercase()) } else { text }
}

fn unquoted(bytes: &[u8]) -> Cow<'_, str> {
    let Cow::Owned(name) = lower_case(&super::without_quotes(bytes)) else {
        return Cow::Owned(String::from_utf8_lossy(&super::without_quotes(bytes)).into_owned());
    };
    Cow::Owned(name)
}

/// The name of a variable after `marks` bytes.
fn variable(bytes: &[u8], marks: usize) -> Cow<'_, str> {
    let name = bytes.get(marks..).unwrap_or_default();
    if matches!(name.first(), Some(b'\'' | b'"' | b'`')) { unquoted(name) } else { lower_case(name) }
}

/// The statements of a text, each with at least one token. What follows the body of a stored routine in the same text
/// is a statement of its own where the body's end can be told, which is where each `BEGIN` and `CASE` has its `END`.
pub(super) fn split<'s, 'a>(tokens: &'s [Tok<'a>]) -> Vec<&'s [Tok<'a>]> {
    let mut statements = Vec::new();
    let mut rest = tokens;
    let mut looks_for_bodies = true;
    while let Some(skip) = rest.iter().position(|token| !token.is(";")) {
        rest = rest.get(skip..).unwrap_or_default();
        let body = if looks_for_bodies && has_body(rest) { body(rest) } else { Body::None };
        // One that never ends is looked for once.
        looks_for_bodies &= body != Body::Endless;
        let length = match body {
            Body::EndsAt(length) => length,
            Body::None | Body::Endless => rest.iter().position(|token| token.is(";")).unwrap_or(rest.len()),
        };
        let (statement, after) = rest.split_at(length.min(rest.len()));
        // Ends of executable comments may stand alone behind the last semicolon.
        if statement.iter().any(|token| !token.is_mark_of_comment()) {
            statements.push(statement);
        }
        rest = after;
    }
    statements
}

/// True for what makes a stored routine, a trigger or an event.
fn has_body(tokens: &[Tok<'_>]) -> bool {
    matches!(tokens.first().map(Tok::word), Some("create" | "alter"))
        && matches!(created(tokens), "procedure" | "function" | "trigger" | "event" | "package")
}

/// What sort of thing a `CREATE`, `ALTER` or `DROP` is about; empty when it cannot be told.
fn created<'t>(tokens: &'t [Tok<'_>]) -> &'t str {
    const SORTS: [&str; 22] = [
        "procedure",
        "function",
        "trigger",
        "event",
        "package",
        "table",
        "view",
        "index",
        "database",
        "schema",
        "user",
        "role",
        "server",
        "tablespace",
        "sequence",
        "logfile",
        "prepare",
        "resource",
        "spatial",
        "instance",
        "undo",
        "library",
    ];
    // Far enough for `CREATE OR REPLACE DEFINER = 'a'@'b' SQL SECURITY …`.
    let words = tokens.iter().skip(1).take(16).map(Tok::word);
    words.filter_map(|word| SORTS.iter().find(|sort| **sort == word)).next().map_or("", |sort| *sort)
}

/// The body of a stored routine, as far as it can be told. What is not sure is left to be cut at each semicolon: then more
/// is seen than there is, and never less.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Body {
    /// No `BEGIN` surely opens it, or there is no semicolon in it.
    None,
    /// The statement ends with it.
    EndsAt(usize),
    /// Nothing surely ends it.
    Endless,
}

fn body(tokens: &[Tok<'_>]) -> Body {
    let Some(begin) = body_begin(tokens) else { return Body::None };
    let word = |index: usize| tokens.get(index).map_or("", Tok::word);
    let mut open = vec!["begin"];
    let mut index = begin + 1;
    while let Some(token) = tokens.get(index) {
        let before = tokens.get(index - 1);
        match token.word() {
            "case" => open.push("case"),
            "begin" if before.is_some_and(begins_block) => open.push("begin"),
            "end" => match word(index + 1) {
                "if" | "loop" | "repeat" | "while" => index += 1,
                "for" if ends_statement(tokens, index + 2) => index += 1,
                after => {
                    index += usize::from(after == "case");
                    open.pop();
                }
            },
            _ if token.is(";") && open.is_empty() => return Body::EndsAt(index),
            _ => {}
        }
        index += 1;
    }
    if open.is_empty() { Body::EndsAt(tokens.len()) } else { Body::Endless }
}

/// Where the `BEGIN` of a body stands.
fn body_begin(tokens: &[Tok<'_>]) -> Option<usize> {
    let word = |index: usize| tokens.get(index).map_or("", Tok::word);
    let first_semicolon = tokens.iter().position(|token| token.is(";"))?;
    let mut parentheses = 0_usize;
    let begin = tokens.get(..first_semicolon)?.iter().enumerate().position(|(index, token)| {
        if token.is("(") {
            parentheses += 1;
        } else if token.is(")") {
            parentheses = parentheses.saturating_sub(1);
        }
        let before = index.checked_sub(1).map_or("", word);
        let names =
            matches!(before, "procedure" | "function" | "trigger" | "event" | "exists" | "package" | "body");
        let dot =
            index.checked_sub(1).and_then(|before| tokens.get(before)).is_some_and(|token| token.is("."));
        token.word() == "begin" && parentheses == 0 && !names && !dot
    })?;
    // A body of one statement may use the word as a name.
    let is_statement = (0..begin).any(|index| match word(index) {
        "insert" | "update" | "delete" => !matches!(word(index.wrapping_sub(1)), "before" | "after" | "or"),
        "select" | "replace" | "set" | "call" | "return" | "with" | "values" | "if" | "while" | "loop"
        | "repeat" | "case" => word(index) != "replace" || word(index.wrapping_sub(1)) != "or",
        _ => false,
    });
    // `IF NOT EXISTS` stands before the name.
    let conditional = (0..begin).any(|index| word(index) == "if" && word(index + 1) == "not");
    if is_statement && !conditional {
        return None;
    }
    Some(begin)
}

/// True for what a `BEGIN` after it makes a block of, and not a name.
fn begins_block(before: &Tok<'_>) -> bool {
    before.is(";")
        || before.is(":")
        || matches!(
            before.word(),
            "begin" | "then" | "else" | "do" | "loop" | "repeat" | "sqlexception" | "sqlwarning" | "found"
        )
}

/// True when nothing but a label stands before the next semicolon.
fn ends_statement(tokens: &[Tok<'_>], index: usize) -> bool {
    let at = |index: usize| tokens.get(index);
    let is_label = |token: &Tok<'_>| token.is_name() && !matches!(token.word(), "update" | "share");
    let label = usize::from(at(index).is_some_and(is_label));
    at(index + label).is_none_or(|token| token.is(";"))
}

/// Most sorts of executable comments, by what decides whether they are executed, that all ways to read a text are
/// looked at.
const MAX_SORTS: usize = 3;

/// What is known of a text; `None` when something in it is not known here. Without the text for logs.
pub(super) fn of_text(text: &[u8], mode: LexMode) -> Option<(Facts, Details)> {
    let tokens = tokens(text, mode)?;
    if !tokens.iter().any(Tok::is_mark_of_comment) {
        return of_reading(&tokens, false);
    }
    let sorts = uncertain_sorts(&tokens);
    if sorts.len() > MAX_SORTS {
        return None;
    }
    // All of the comments executed comes first.
    let mut readings = (0..1_usize << sorts.len()).rev().map(|executed| {
        let reading = reading(&tokens, |sort| sorts.iter().position(|one| *one == sort), executed);
        of_reading(&reading, true)
    });
    let mut whole = readings.next()??;
    for other in readings {
        whole = either(whole, other?)?;
    }
    Some(whole)
}

/// The starts of executable comments that not every server executes, each once.
fn uncertain_sorts<'t>(tokens: &'t [Tok<'_>]) -> Vec<&'t str> {
    let mut sorts: Vec<&str> = tokens
        .iter()
        .filter(|token| token.kind == Kind::ExecutableStart && !executed_by_all(token.name.as_bytes()))
        .map(|token| &*token.name)
        .collect();
    sorts.sort_unstable();
    sorts.dedup();
    sorts
}

/// The tokens that a server reads which executes the sorts whose bits are set in `executed`.
fn reading<'a>(tokens: &[Tok<'a>], sort_of: impl Fn(&str) -> Option<usize>, executed: usize) -> Vec<Tok<'a>> {
    let mut skips = false;
    let mut reading = Vec::with_capacity(tokens.len());
    for token in tokens {
        match token.kind {
            Kind::ExecutableStart => {
                skips = sort_of(&token.name).is_some_and(|sort| executed & (1 << sort) == 0);
            }
            Kind::ExecutableEnd => skips = false,
            Kind::NeverExecuted => {}
            _ if skips => {}
            _ => reading.push(token.clone()),
        }
    }
    reading
}

/// The facts of a text that some servers read one way and some another; `None` when the two have too little in common.
fn either(one: (Facts, Details), other: (Facts, Details)) -> Option<(Facts, Details)> {
    let ((one, one_details), (other, other_details)) = (one, other);
    let kind = match (one.kind, other.kind) {
        (kind, StatementKind::Empty) | (StatementKind::Empty, kind) => kind,
        (kind, same) if kind == same => kind,
        _ => return None,
    };
    let facts = Facts {
        kind,
        statements: one.statements.max(other.statements),
        read_only: one.read_only && other.read_only,
        pins: one.pins.union(other.pins),
        clears: one.clears.intersection(other.clears),
        rds_pins: one.rds_pins.union(other.rds_pins),
        taints: one.taints || other.taints,
        needs_session_function: one.needs_session_function || other.needs_session_function,
        changes_settings: one.changes_settings || other.changes_settings,
        drops_all_prepared: false,
        prepared_names: one.prepared_names,
        given_names: Vec::new(),
        is_deallocate_one: one.is_deallocate_one && other.is_deallocate_one,
        ends_transaction: one.ends_transaction && other.ends_transaction,
        locks_rows: one.locks_rows || other.locks_rows,
        writes: one.writes || other.writes,
        calls_acting_function: one.calls_acting_function || other.calls_acting_function,
        calls_unknown_function: one.calls_unknown_function || other.calls_unknown_function,
        tables: joined(one.tables, other.tables),
        functions: joined(one.functions, other.functions),
        variables: joined(one.variables, other.variables),
        variables_in_literals: false,
        is_plain_set: false,
        moves: Moves::Nothing,
        moved: Vec::new(),
        may_end: PinReasons::NONE,
        resets: Vec::new(),
        taints_by_calls: false,
        changes_schema: false,
        moves_transaction: one.moves_transaction || other.moves_transaction,
        channels: Vec::new(),
        reads_channels: false,
        commits: false,
        digest_text: String::new(),
    };
    let details = Details {
        sets: one_details.sets,
        sets_more: one_details.sets_more || other_details.sets_more,
        rereads: one_details.rereads || other_details.rereads,
        sets_for_statement: one_details.sets_for_statement || other_details.sets_for_statement,
        uses_schema: one_details.uses_schema || other_details.uses_schema,
        kill: one_details.kill.filter(|kill| other_details.kill == Some(*kill)),
        named_statements: one_details.named_statements,
        xa: one_details.xa.filter(|xa| other_details.xa == Some(*xa)),
        is_load_data_local: one_details.is_load_data_local || other_details.is_load_data_local,
        session_functions: one_details.session_functions.union(other_details.session_functions),
        keeps_diagnostics: one_details.keeps_diagnostics && other_details.keeps_diagnostics,
        has_query: one_details.has_query || other_details.has_query,
        has_from: one_details.has_from || other_details.has_from,
        calculates_found_rows: one_details.calculates_found_rows || other_details.calculates_found_rows,
        sets_last_insert_id: one_details.sets_last_insert_id || other_details.sets_last_insert_id,
        reads_connection_id: one_details.reads_connection_id || other_details.reads_connection_id,
        may_change_schema: one_details.may_change_schema || other_details.may_change_schema,
        names_user_variables: one_details.names_user_variables || other_details.names_user_variables,
        has_executable_comment: true,
    };
    Some((facts, details))
}

fn joined(mut one: Vec<String>, other: Vec<String>) -> Vec<String> {
    one.extend(other);
    in_order(&mut one);
    one
}

fn in_order(names: &mut Vec<String>) {
    names.sort_unstable();
    names.dedup();
    names.truncate(Facts::MAX_NAMES);
    names.shrink_to_fit();
}
fn of_reading(tokens: &[Tok<'_>], has_executable_comment: bool) -> Option<(Facts, Details)> {
    let statements = split(tokens);
    let mut facts = Facts {
        statements: u16::try_from(statements.len()).unwrap_or(u16::MAX),
        ends_transaction: !statements.is_empty(),
        ..Facts::nothing()
    };
    let mut details = Details {
        has_executable_comment,
        keeps_diagnostics: !statements.is_empty(),
        has_query: tokens.iter().any(|token| matches!(token.word(), "select" | "values" | "table" | "with")),
        has_from: tokens.iter().any(|token| token.word() == "from"),
        names_user_variables: tokens.iter().any(|token| token.kind == Kind::UserVariable),
        ..Details::default()
    };
    let alone = statements.len() == 1;
    let mut assigns_user_variables = false;
    let mut rereads = false;
    for statement in statements {
        let one = Statement::read(statement)?;
        if matches!(facts.kind, StatementKind::Empty | StatementKind::Transaction) {
            facts.kind = one.kind;
        }
        details.rereads |= rereads;
        rereads |= one.details.sets.iter().any(changes_reading);
        let seen = one.seen;
        facts.pins = facts.pins.without(one.clears).union(seen.pins);
        facts.clears = facts.clears.union(one.clears);
        facts.rds_pins = facts.rds_pins.union(seen.rds_pins);
        facts.read_only &= one.read_only;
        facts.taints |= seen.taints;
        facts.needs_session_function |= !seen.session_functions.is_empty();
        facts.changes_settings |= seen.changes_settings;
        let names = one
            .details
            .named_statements
            .iter()
            .filter(|named| matches!(named.verb, NamedVerb::Execute | NamedVerb::Deallocate));
        facts.prepared_names.extend(names.map(|named| named.name.clone()));
        facts.is_deallocate_one |=
            alone && matches!(&one.details.named_statements[..], [one] if one.verb == NamedVerb::Deallocate);
        facts.ends_transaction &= one.ends_transaction;
        facts.locks_rows |= seen.locks_rows;
        facts.writes |= seen.writes;
        facts.calls_acting_function |= seen.calls_acting_function;
        facts.calls_unknown_function |= seen.calls_unknown_function;
        facts.tables.extend(seen.tables);
        facts.functions.extend(seen.functions);
        facts.variables.extend(seen.variables);
        facts.is_plain_set |= alone && !has_executable_comment && one.is_plain_set;
        facts.moves_transaction |= one.moves_transaction;
        assigns_user_variables |= seen.assigns_constants;
        details.sets.extend(one.details.sets);
        details.sets_more |= details.sets.len() > Details::MAX_ITEMS;
        details.sets.truncate(Details::MAX_ITEMS);
        details.sets_for_statement |= one.details.sets_for_statement;
        details.uses_schema |= one.details.uses_schema;
        details.kill = one.details.kill.filter(|_| alone);
        details.named_statements.extend(one.details.named_statements);
        details.named_statements.truncate(Details::MAX_ITEMS);
        details.xa = one.details.xa.filter(|_| alone);
        details.is_load_data_local |= one.details.is_load_data_local;
        details.session_functions = details.session_functions.union(seen.session_functions);
        details.keeps_diagnostics &= one.details.keeps_diagnostics;
        details.calculates_found_rows |= seen.calculates_found_rows;
        details.sets_last_insert_id |= seen.sets_last_insert_id;
        details.reads_connection_id |= seen.reads_connection_id;
        details.may_change_schema |= one.details.may_change_schema;
    }
    if assigns_user_variables && (!alone || has_executable_comment) {
        // Which of the statements have run cannot be told when one fails, so neither can what to replay.
        facts.pins.insert(if alone { PinReason::SessionVariable } else { PinReason::MultiStatement });
    }
    if has_executable_comment {
        // PIN-M-09: RDS Proxy does not look into them.
        facts.rds_pins.insert(PinReason::Unknown);
    }
    for names in [&mut facts.tables, &mut facts.functions, &mut facts.variables] {
        in_order(names);
    }
    Some((facts, details))
}

/// True for what makes a session's later statements be read in another way.
fn changes_reading(assignment: &Assignment) -> bool {
    matches!(&*assignment.name, "sql_mode" | "character_set_client" | "names" | "character set")
        && matches!(assignment.scope, Scope::Session)
}

/// What was found anywhere in one statement, however deep.
#[derive(Default)]
struct Seen {
    pins: PinReasons,
    rds_pins: PinReasons,
    taints: bool,
    session_functions: SessionFunctions,
    changes_settings: bool,
    /// User variables are set to constants, which whoever keeps the session's state can read from the text.
    assigns_constants: bool,
    writes: bool,
    /// A function that acts, `FOR UPDATE`, `:=`, and the like.
    acts: bool,
    locks_rows: bool,
    calls_acting_function: bool,
    calls_unknown_function: bool,
    calculates_found_rows: bool,
    sets_last_insert_id: bool,
    reads_connection_id: bool,
    tables: Vec<String>,
    functions: Vec<String>,
    variables: Vec<String>,
}

/// What one statement of a text does.
struct Statement {
    kind: StatementKind,
    read_only: bool,
    clears: PinReasons,
    ends_transaction: bool,
    moves_transaction: bool,
    is_plain_set: bool,
    seen: Seen,
    /// What is not in `seen`.
    details: Details,
}

impl Statement {
    fn new(kind: StatementKind) -> Self {
        Self {
            kind,
            read_only: false,
            clears: PinReasons::NONE,
            ends_transaction: false,
            moves_transaction: matches!(kind, StatementKind::Transaction | StatementKind::Routine),
            is_plain_set: false,
            seen: Seen::default(),
            details: Details {
                may_change_schema: matches!(kind, StatementKind::Ddl | StatementKind::Routine),
                ..Details::default()
            },
        }
    }

    /// `None` for what is not known here.
    fn read(tokens: &[Tok<'_>]) -> Option<Self> {
        let word = |index: usize| tokens.get(index).map_or("", Tok::word);
        let first = tokens.iter().find(|token| !token.is("("))?;
        match first.word() {
            "select" | "values" | "table" | "with" => Some(Self::query(tokens)),
            _ if tokens.first().is_some_and(|token| token.is("(")) => None,
            "insert" | "replace" | "update" | "delete" => Some(Self::query(tokens)),
            "load" => Self::load(tokens),
            "call" | "do" => Some(Self::routine(tokens)),
            "set" => Self::set(tokens),
            "show" => Some(Self::show(tokens)),
            "explain" | "describe" | "desc" => Some(Self::explain(tokens)),
            "analyze" if !matches!(word(1), "table" | "tables" | "local" | "no_write_to_binlog") => {
                Some(Self::explain(tokens))
            }
            "begin" if tokens.len() == 1 || tokens.len() == 2 && word(1) == "work" => {
                Some(Self::new(StatementKind::Transaction))
            }
            "start" if word(1) == "transaction" => Some(Self::new(StatementKind::Transaction)),
            "savepoint" => Some(Self::new(StatementKind::Transaction)),
            "release" if word(1) == "savepoint" => Some(Self::new(StatementKind::Transaction)),
            "commit" | "rollback" => Some(Self::end(tokens)),
            "xa" => Self::xa(word(1)),
            "lock" | "unlock" | "flush" | "backup" => Self::lock(tokens),
            "use" => {
                let mut one = Self::new(StatementKind::Session);
                one.seen.changes_settings = true;
                one.details.uses_schema = true;
                Some(one)
            }
            "kill" => {
                let mut one = Self::new(StatementKind::Other);
                one.seen.scan(tokens);
                one.details.kill = Some(kill_kind(tokens));
                Some(one)
            }
            "prepare" | "execute" | "deallocate" => Self::named(tokens),
            "drop" if word(1) == "prepare" => Self::named(tokens),
            "handler" => {
                let mut one = Self::new(StatementKind::Other);
                one.seen.scan(tokens.get(1..)?);
                let (table, end) = walk::chain(tokens, 1)?;
                one.seen.tables.push(table.join("."));
                one.seen.taints = true;
                if word(end) == "open" {
                    one.seen.pins.insert(PinReason::Handler);
                }
                Some(one)
            }
            "get" if tokens.iter().take(3).any(|token| token.word() == "diagnostics") => {
                let mut one = Self::new(StatementKind::Other);
                one.seen.read_session(SessionFunctions::DIAGNOSTICS, false);
                one.seen.scan(tokens);
                one.seen.assigns_user_variable();
                one.details.keeps_diagnostics = true;
                Some(one)
            }
            "signal" | "resignal" => Some(Self::new(StatementKind::Other)),
            "help" => Some(Self { read_only: true, ..Self::new(StatementKind::Other) }),
            "binlog" => {
                // Rows to apply, in code, and a format that the session keeps.
                let mut one = Self::new(StatementKind::Other);
                one.seen.pins.insert(PinReason::Unknown);
                one.seen.taints = true;
                one.seen.writes = true;
                one.moves_transaction = true;
                Some(one)
            }
            "create" | "alter" | "drop" | "rename" | "truncate" | "grant" | "revoke" | "analyze"
            | "optimize" | "check" | "checksum" | "repair" | "reset" | "purge" | "change" | "start"
            | "stop" | "install" | "uninstall" | "cache" | "import" | "shutdown" | "restart" | "clone" => {
                Some(Self::ddl(tokens))
            }
            _ => None,
        }
    }

    /// `SELECT` and its like, `INSERT`, `REPLACE`, `UPDATE`, `DELETE`, all with a `WITH` before them or without.
    fn query(tokens: &[Tok<'_>]) -> Self {
        let writes = matches!(verb(tokens), "insert" | "replace" | "update" | "delete");
        let mut one = Self::new(if writes { StatementKind::Write } else { StatementKind::Select });
        one.seen.writes = writes;
        one.seen.scan(tokens);
        let tree = walk::tree(tokens);
        if let Some(tree) = tree {
            one.seen.writes |= tree.writes;
            one.seen.locks_rows |= tree.locks_rows;
            one.seen.acts |= tree.locks_rows || tree.is_query == writes;
            one.seen.tables.extend(tree.found.tables);
            tree.found.calls.iter().for_each(|call| one.seen.call(call));
        }
        one.read_only = !writes && one.seen.only_reads();
        one
    }

    /// `LOAD DATA`, `LOAD XML`, `LOAD INDEX INTO CACHE`.
    fn load(tokens: &[Tok<'_>]) -> Option<Self> {
        match tokens.get(1)?.word() {
            "index" => return Some(Self::ddl(tokens)),
            "data" | "xml" => {}
            _ => return None,
        }
        let mut one = Self::new(StatementKind::Copy);
        let table = tokens.iter().position(|token| token.word() == "table")?;
        let (name, end) = walk::chain(tokens, table + 1)?;
        one.seen.tables.push(name.join("."));
        one.seen.writes = true;
        one.seen.scan(tokens.get(end..)?);
        if tokens.iter().any(|token| token.kind == Kind::UserVariable) {
            // Fields may be read into them.
            one.seen.assigns_user_variable();
        }
        one.details.is_load_data_local = tokens.get(..table)?.iter().any(|token| token.word() == "local");
        Some(one)
    }

    /// `CALL`, `DO`.
    fn routine(tokens: &[Tok<'_>]) -> Self {
        let mut one = Self::new(StatementKind::Routine);
        one.seen.taints = true;
        if tokens.first().is_some_and(|token| token.word() == "call") {
            let name = walk::chain(tokens, 1).map(|(parts, end)| (parts.join("."), end));
            let rest = name.as_ref().map_or(1, |(_, end)| *end);
            one.seen.functions.extend(name.map(|(name, _)| name));
            one.seen.calls_unknown_function = true;
            one.seen.acts = true;
            one.seen.scan(tokens.get(rest..).unwrap_or_default());
            if tokens.iter().any(|token| token.kind == Kind::UserVariable) {
                // It may be set, as the argument for an OUT parameter. RDS Proxy does not see that (NOPIN-M-03).
                one.seen.pins.insert(PinReason::SessionVariable);
            }
        } else {
            one.seen.scan(tokens);
        }
        one
    }

    fn show(tokens: &[Tok<'_>]) -> Self {
        let mut one = Self::new(StatementKind::Select);
        one.seen.scan(tokens);
        let words: Vec<&str> = tokens.iter().map(Tok::word).collect();
        let counts = tokens.get(1).is_some_and(|token| token.word() == "count");
        if matches!(words[..], [_, "warnings" | "errors", ..]) || counts {
            one.seen.read_session(SessionFunctions::DIAGNOSTICS, false);
            one.details.keeps_diagnostics = true;
        }
        match words[..] {
            [_, "create", "table" | "view", ..] => one.seen.table_at(tokens, 3),
            _ => {
                let about_columns = words
                    .iter()
                    .take(4)
                    .any(|word| matches!(*word, "columns" | "fields" | "index" | "indexes" | "keys"));
                if about_columns
                    && let Some(from) = words.iter().position(|word| matches!(*word, "from" | "in"))
                {
                    one.seen.table_at(tokens, from + 1);
                }
            }
        }
        one.read_only = one.seen.only_reads();
        one
    }

    /// `EXPLAIN`, `DESCRIBE`, MariaDB's `ANALYZE` of a statement.
    fn explain(tokens: &[Tok<'_>]) -> Self {
        let mut one = Self::new(StatementKind::Other);
        let is_verb = |token: &Tok<'_>| {
            token.is("(")
                || matches!(
                    token.word(),
                    "select" | "insert" | "replace" | "update" | "delete" | "with" | "values" | "table"
                )
        };
        let verb = tokens.iter().position(is_verb);
        let explained = verb.and_then(|verb| tokens.get(verb..));
        let analyzes = tokens.iter().take(verb.unwrap_or(1)).any(|token| token.word() == "analyze");
        match explained {
            Some(explained) => {
                let inner = Self::query(explained);
                one.read_only = inner.read_only;
                one.seen = inner.seen;
                one.moves_transaction = analyzes && inner.moves_transaction;
                // `EXPLAIN … INTO @v`.
                one.seen.scan(tokens.get(..verb.unwrap_or(0)).unwrap_or_default());
                one.read_only &= one.seen.only_reads();
            }
            None => {
                let options = ["for", "format", "extended", "partitions"];
                if !tokens.get(1).is_some_and(|token| options.contains(&token.word())) {
                    one.seen.table_at(tokens, 1);
                }
                one.read_only = true;
            }
        }
        one
    }

    /// `COMMIT`, `ROLLBACK`.
    fn end(tokens: &[Tok<'_>]) -> Self {
        let words: Vec<&str> = tokens.iter().map(Tok::word).collect();
        let without = |word| {
            words.iter().zip(words.iter().skip(1)).all(|(before, one)| *one != word || *before == "no")
        };
        let ends = without("chain") && without("release") && !words.contains(&"to");
        Self { ends_transaction: ends, ..Self::new(StatementKind::Transaction) }
    }

    fn xa(verb: &str) -> Option<Self> {
        let mut one = Self::new(StatementKind::Transaction);
        one.seen.taints = true;
        let verb = match verb {
            "start" | "begin" => XaVerb::Start,
            "end" => XaVerb::End,
            "prepare" => XaVerb::Prepare,
            "commit" => XaVerb::Commit,
            "rollback" => XaVerb::Rollback,
            "recover" => XaVerb::Recover,
            _ => return None,
        };
        if matches!(verb, XaVerb::Start | XaVerb::End | XaVerb::Prepare) {
            one.seen.pins.insert(PinReason::Xa);
        }
        one.details.xa = Some(verb);
        Some(one)
    }

    /// `LOCK`, `UNLOCK`, `FLUSH`, MariaDB's `BACKUP`.
    fn lock(tokens: &[Tok<'_>]) -> Option<Self> {
        let words: Vec<&str> = tokens.iter().map(Tok::word).collect();
        let has = |word| words.contains(&word);
        let mut one = Self::new(StatementKind::Other);
        one.moves_transaction = true;
        match words[..] {
            ["lock", "table" | "tables", ..] => {
                one.seen.pin(PinReason::TableLock);
                one.seen.tables.extend(walk::listed(tokens, 2));
            }
            ["unlock", "table" | "tables"] => one.clears.insert(PinReason::TableLock),
            // Locks that `UNLOCK TABLES` does not end.
            ["lock", "instance", ..] | ["backup", ..] => {
                one.seen.pins.insert(PinReason::TableLock);
                one.seen.pins.insert(PinReason::Unknown);
            }
            ["unlock", "instance"] => {}
            ["flush", ..] => {
                one.kind = StatementKind::Ddl;
                if has("table") || has("tables") {
                    let named = words.iter().position(|word| matches!(*word, "table" | "tables"))?;
                    let names =
                        tokens.get(named + 1).is_some_and(|token| !matches!(token.word(), "with" | "for"));
                    if names {
                        one.seen.tables.extend(walk::listed(tokens, named + 1));
                    }
                    if has("lock") || has("export") {
                        one.seen.pin(PinReason::TableLock);
                    }
                }
            }
            _ => return None,
        }
        Some(one)
    }

    /// `PREPARE`, `EXECUTE`, `DEALLOCATE PREPARE`, `DROP PREPARE`.
    fn named(tokens: &[Tok<'_>]) -> Option<Self> {
        let word = |index: usize| tokens.get(index).map_or("", Tok::word);
        let mut one = Self::new(StatementKind::Other);
        let (verb, name) = match word(0) {
            "prepare" => (NamedVerb::Prepare, 1),
            "execute" if word(1) == "immediate" => (NamedVerb::ExecuteImmediate, 1),
            "execute" => (NamedVerb::Execute, 1),
            _ if word(1) == "prepare" => (NamedVerb::Deallocate, 2),
            _ => return None,
        };
        let name = tokens.get(name).filter(|token| token.is_name())?;
        one.seen.scan(tokens.get(2..)?);
        one.seen.rds_pins.insert(PinReason::PreparedStatement);
        match verb {
            NamedVerb::Prepare => one.seen.pins.insert(PinReason::PreparedStatement),
            NamedVerb::Deallocate => {}
            NamedVerb::Execute | NamedVerb::ExecuteImmediate => {
                // What it runs was said in another text, or in a literal.
                one.seen.taints = true;
                one.seen.calls_unknown_function = true;
                one.moves_transaction = true;
                one.details.may_change_schema = true;
            }
        }
        let name = if verb == NamedVerb::ExecuteImmediate {
            one.seen.pins.insert(PinReason::Unknown);
            String::new()
        } else {
            name.name.clone().into_owned()
        };
        one.details.named_statements.push(NamedStatement { verb, name });
        Some(one)
    }

    /// Schema changes and maintenance. All of it commits what is open before (manual, "Statements That Cause an Implicit
    /// Commit"), but for what concerns temporary tables alone.
    fn ddl(tokens: &[Tok<'_>]) -> Self {
        let words: Vec<&str> = tokens.iter().map(Tok::word).collect();
        let sort = created(tokens);
        let mut one = Self::new(StatementKind::Ddl);
        one.moves_transaction = true;
        let temporary = matches!(
            words[..],
            ["create" | "drop", "temporary", ..] | ["create", "or", "replace", "temporary", ..]
        );
        if temporary {
            one.moves_transaction = false;
            if words.first() == Some(&"create") {
                one.seen.pin(PinReason::TemporaryTable);
            }
        }
        if matches!(words[..], ["drop", "database" | "schema", ..]) {
            // The default schema may be gone.
            one.seen.changes_settings = true;
        }
        if has_body(tokens) {
            // The body runs later, and elsewhere.
            if let Some(on) = words.iter().position(|word| *word == "on").filter(|_| sort == "trigger") {
                one.seen.table_at(tokens, on + 1);
            }
            return one;
        }
        one.seen.tables.extend(ddl_tables(tokens, &words, sort));
        // What a new table is filled with, and what a view shows. Other expressions cannot call stored functions.
        let query = words.iter().enumerate().position(|(at, word)| match *word {
            "select" => true,
            "with" => words.get(at + 1) != Some(&"system"),
            "values" => words.get(at + 1) == Some(&"row"),
            _ => false,
        });
        if matches!(words.first(), Some(&("create" | "alter")))
            && let Some(query) = query.and_then(|query| tokens.get(query..))
        {
            one.seen.scan(query);
        }
        one
    }

    fn set(tokens: &[Tok<'_>]) -> Option<Self> {
        let form = set::form(tokens)?;
        let mut one = Self::new(StatementKind::Session);
        let set = match form {
            SetForm::Assignments(set) => set,
            SetForm::Account => {
                one = Self::new(StatementKind::Ddl);
                one.moves_transaction = true;
                return Some(one);
            }
            SetForm::Identity => {
                one.seen.changes_settings = true;
                one.seen.pins.insert(PinReason::SessionIdentity);
                one.seen.rds_pins.insert(PinReason::SessionVariable);
                return Some(one);
            }
            SetForm::ResourceGroup => {
                one.seen.changes_settings = true;
                one.seen.pin(PinReason::SessionVariable);
                return Some(one);
            }
            // MariaDB's `SET STATEMENT … FOR …`: the settings end with the statement.
            SetForm::ForStatement(inner) => {
                let settings = tokens.get(..inner)?;
                let statement = tokens.get(inner..)?;
                if statement.first()?.word() == "set" {
                    return None;
                }
                let mut one = Self::read(statement)?;
                one.seen.changes_settings = true;
                one.seen.rds_pins.insert(PinReason::SessionVariable);
                one.seen.scan(settings);
                one.read_only &= one.seen.only_reads();
                one.is_plain_set = false;
                one.details.sets_for_statement = true;
                // Its assignments are not where they are looked for.
                if std::mem::take(&mut one.seen.assigns_constants) {
                    one.seen.pins.insert(PinReason::SessionVariable);
                }
                return Some(one);
            }
        };
        one.is_plain_set = set.is_plain();
        for item in &set.items {
            one.seen.assign(&item.assignment, set.is_local);
            if item.is_unreported {
                one.seen.pins.insert(PinReason::SessionVariable);
                if changes_reading(&item.assignment) {
                    // What comes after it is read in a way that is not known here.
                    one.seen.pins.insert(PinReason::Unknown);
                }
            }
            one.moves_transaction |= item.assignment.name == "autocommit";
            one.seen.scan(tokens.get(item.value.clone())?);
        }
        one.details.sets = set.items.into_iter().map(|item| item.assignment).collect();
        Some(one)
    }
}

/// The word that says what a query or a change of rows is, behind a `WITH` and parentheses.
fn verb<'t>(tokens: &'t [Tok<'_>]) -> &'t str {
    let mut depth = 0_usize;
    let open = tokens.iter().position(|token| !token.is("(")).unwrap_or(0);
    let tokens = tokens.get(open..).unwrap_or_default();
    if tokens.first().is_some_and(|token| token.word() != "with") {
        return tokens.first().map_or("", Tok::word);
    }
    for token in tokens.iter().skip(1) {
        if token.is("(") {
            depth += 1;
        } else if token.is(")") {
            depth = depth.saturating_sub(1);
        } else if depth == 0
            && matches!(
                token.word(),
                "select" | "insert" | "replace" | "update" | "delete" | "values" | "table"
            )
        {
            return token.word();
        }
    }
    "select"
}

/// Tables that schema changes and maintenance name.
fn ddl_tables(tokens: &[Tok<'_>], words: &[&str], sort: &str) -> Vec<String> {
    let skip = |from: usize| {
        let optional = ["if", "not", "exists", "ignore", "only"];
        let skipped = words.iter().skip(from).take_while(|word| optional.contains(*word)).count();
        from + skipped
    };
    let name_at = |index: usize| walk::chain(tokens, skip(index)).map(|(parts, _)| parts.join("."));
    let after = |wanted: &str| words.iter().position(|word| *word == wanted).map(|at| at + 1);
    let mut tables = Vec::new();
    match (words.first().copied().unwrap_or(""), sort) {
        ("create" | "alter", "table" | "view" | "sequence") => {
            tables.extend(after(sort).and_then(name_at));
            // Its foreign keys, its model, its new name; a query's tables are found with the query.
            for (at, word) in words.iter().enumerate() {
                let names_another = match *word {
                    "references" => true,
                    "like" => words.first() == Some(&"create"),
                    "to" => words.get(at.wrapping_sub(1)) == Some(&"rename"),
                    _ => false,
                };
                if names_another {
                    tables.extend(name_at(at + 1));
                }
            }
        }
        ("create" | "drop", "index" | "spatial") => tables.extend(after("on").and_then(name_at)),
        ("drop", "table" | "view" | "sequence") => {
            tables.extend(after(sort).map(|at| walk::listed(tokens, skip(at))).unwrap_or_default());
        }
        ("rename", _) => {
            let list = after("table").or_else(|| after("tables")).unwrap_or(words.len());
            tables.extend(walk::listed(tokens, skip(list)));
            let targets = words.iter().enumerate().filter(|(_, word)| **word == "to");
            tables.extend(targets.filter_map(|(at, _)| name_at(at + 1)));
        }
        ("truncate", _) => tables.extend(name_at(after("table").unwrap_or(1))),
        ("analyze" | "optimize" | "check" | "checksum" | "repair", _) => {
            let list = after("table").or_else(|| after("tables"));
            tables.extend(list.map(|at| walk::listed(tokens, skip(at))).unwrap_or_default());
        }
        ("cache" | "load", _) => {
            let list = after("index").map(|at| if words.get(at) == Some(&"into") { at + 2 } else { at });
            tables.extend(list.map(|at| walk::listed(tokens, skip(at))).unwrap_or_default());
        }
        ("grant" | "revoke", _) => {
            if let Some(on) = after("on") {
                let on = on + usize::from(words.get(on) == Some(&"table"));
                let all = walk::chain(tokens, on)
                    .is_none_or(|(_, end)| tokens.get(end).is_some_and(|token| token.is(".")));
                if !all {
                    tables.extend(name_at(on));
                }
            }
        }
        _ => {}
    }
    tables
}

/// A `KILL`'s target, by its tokens.
fn kill_kind(tokens: &[Tok<'_>]) -> Kill {
    let words: Vec<&str> = tokens.iter().map(Tok::word).collect();
    let query_only = words.contains(&"query");
    // `KILL QUERY ID` of MariaDB names a statement, `KILL USER` a user.
    let of_connection =
        words.iter().skip(1).all(|word| matches!(*word, "" | "hard" | "soft" | "connection" | "query"));
    let numbers = tokens.iter().filter(|token| token.kind != Kind::Word).count();
    let id_is_literal =
        of_connection && numbers == 1 && tokens.last().is_some_and(|token| token.kind == Kind::Number);
    Kill { query_only, id_is_literal }
}

/// A `KILL` of a connection that a number names, and that number.
pub(super) fn kill<'t, 'a>(tokens: &'t [Tok<'a>]) -> Option<(Kill, &'t Tok<'a>)> {
    let kill = (tokens.first()?.word() == "kill").then(|| kill_kind(tokens))?;
    Some((kill, tokens.last().filter(|_| kill.id_is_literal)?))
}

impl Seen {
    /// A reason in both profiles.
    fn pin(&mut self, reason: PinReason) {
        self.pins.insert(reason);
        self.rds_pins.insert(reason);
    }

    fn only_reads(&self) -> bool {
        !self.writes && !self.acts && !self.taints && !self.locks_rows
    }

    /// The answer depends on the connection of an earlier statement; `rds` pins for some of these.
    fn read_session(&mut self, functions: SessionFunctions, in_rds: bool) {
        self.session_functions = self.session_functions.union(functions);
        self.acts = true;
        self.pins.insert(PinReason::SessionFunction);
        if in_rds {
            self.rds_pins.insert(PinReason::SessionFunction);
        }
    }

    /// A user variable gets a value that the text does not tell.
    fn assigns_user_variable(&mut self) {
        self.acts = true;
        self.changes_settings = true;
        self.pin(PinReason::SessionVariable);
    }

    fn table_at(&mut self, tokens: &[Tok<'_>], index: usize) {
        self.tables.extend(walk::chain(tokens, index).map(|(parts, _)| parts.join(".")));
    }

    /// One assignment of a `SET`.
    fn assign(&mut self, assignment: &Assignment, is_local: bool) {
        let Assignment { scope, name, value_is_constant } = assignment;
        let tracked = set::is_tracked(name);
        match scope {
            Scope::User => {
                self.changes_settings = true;
                self.rds_pins.insert(PinReason::SessionVariable);
                if *value_is_constant {
                    self.assigns_constants = true;
                } else {
                    self.pins.insert(PinReason::SessionVariable);
                }
                self.variables.push(format!("@{name}"));
                return;
            }
            // They are the session's alone, whatever is said.
            _ if !set::is_replayable(name) => {
                self.changes_settings = true;
                self.pins.insert(PinReason::SessionVariable);
                if !is_local {
                    self.rds_pins.insert(PinReason::SessionVariable);
                }
            }
            Scope::Session => {
                self.changes_settings = true;
                // NOPIN-M-02.
                if !tracked && !is_local {
                    self.rds_pins.insert(PinReason::SessionVariable);
                }
            }
            // PIN-M-08.
            Scope::NextTransaction => {
                self.changes_settings = true;
                self.pin(PinReason::SessionVariable);
            }
            Scope::Global | Scope::Persist => {
                if !tracked {
                    self.rds_pins.insert(PinReason::SessionVariable);
                }
            }
        }
        self.sets_last_insert_id |= matches!(&**name, "last_insert_id" | "identity");
        self.variables.push(name.clone());
    }

    /// Goes over tokens that may hold expressions, queries, or changes of rows.
    fn scan(&mut self, tokens: &[Tok<'_>]) {
        let found = walk::tokens(tokens);
        self.tables.extend(found.tables);
        found.calls.iter().for_each(|call| self.call(call));
        for (index, token) in tokens.iter().enumerate() {
            let next = tokens.get(index + 1);
            let next_word = next.map_or("", Tok::word);
            match token.kind {
                // An assignment in an expression. `SET`'s own are not scanned.
                Kind::Operator if token.is(":=") => self.assigns_user_variable(),
                Kind::SystemVariable => self.read_variable(&following_scope(tokens, index)),
                Kind::Word => match token.word() {
                    "into" if next.is_some_and(|next| next.kind == Kind::UserVariable) => {
                        self.assigns_user_variable();
                    }
                    "into" if matches!(next_word, "outfile" | "dumpfile") => {
                        self.acts = true;
                        self.writes = true;
                    }
                    "into" => self.acts = true,
                    "for" if matches!(next_word, "update" | "share") => {
                        self.locks_rows = true;
                        self.acts = true;
                    }
                    "lock" if next_word == "in" => {
                        self.locks_rows = true;
                        self.acts = true;
                    }
                    "sql_calc_found_rows" => {
                        self.calculates_found_rows = true;
                        // FOUND_ROWS() will follow, and wants the same connection.
                        self.acts = true;
                        self.pins.insert(PinReason::SessionFunction);
                    }
                    _ => {}
                },
                _ => {}
            }
        }
    }

    /// A system variable is read.
    fn read_variable(&mut self, name: &str) {
        match name {
            "last_insert_id" | "identity" => self.read_session(SessionFunctions::LAST_INSERT_ID, false),
            "warning_count" | "error_count" => self.read_session(SessionFunctions::DIAGNOSTICS, false),
            "last_gtid" => self.read_session(SessionFunctions::LAST_GTID, false),
            "pseudo_thread_id" => self.reads_connection_id = true,
            _ => {}
        }
    }

    fn call(&mut self, call: &Call) {
        let effect = builtin::effect(call);
        self.functions.push(match &call.schema {
            Some(schema) => format!("{schema}.{}", call.name),
            None => call.name.clone(),
        });
        match effect {
            Effect::None => {}
            Effect::Hidden => self.calls_unknown_function = true,
            _ => self.calls_acting_function = true,
        }
        self.acts |= effect != Effect::None;
        if let Some(reason) = effect.pin() {
            self.pins.insert(reason);
        }
        match effect {
            Effect::None | Effect::Unlock => {}
            // `LASTVAL` would tell of it.
            Effect::Sequence => self.taints = true,
            Effect::Acts => self.sets_last_insert_id |= call.name == "last_insert_id",
            // PIN-M-02.
            Effect::Lock => self.rds_pins.insert(PinReason::AdvisoryLock),
            // PIN-M-07: not any more.
            Effect::LastInsertId => self.read_session(SessionFunctions::LAST_INSERT_ID, false),
            // PIN-M-06.
            Effect::FoundRows => self.read_session(SessionFunctions::FOUND_ROWS, true),
            Effect::RowCount => self.read_session(SessionFunctions::ROW_COUNT, true),
            Effect::SequenceRead => self.read_session(SessionFunctions::SEQUENCE, false),
            Effect::SessionRead => self.read_session(SessionFunctions::LAST_GTID, false),
            Effect::Holds | Effect::Hidden => self.taints = true,
        }
        self.reads_connection_id |= call.schema.is_none() && call.name == "connection_id";
    }
}

/// Where the name stands of the sequence of which a statement does nothing but draw a value: what else it did, it might
/// have drawn none.
pub(super) fn drawn_sequence(statement: &[Tok<'_>]) -> Option<Range<usize>> {
    let words: Vec<&str> = statement.iter().take(4).map(Tok::word).collect();
    let (at, closes) = match words[..] {
        ["select", "nextval", ..] if statement.get(2)?.is("(") => (3, true),
        ["select", "next", "value", "for"] => (4, false),
        _ => return None,
    };
    let (name, end) = name_at(statement, at)?;
    let rest = statement.get(end..)?;
    match rest.split_first() {
        Some((close, [])) if closes && close.is(")") => Some(name),
        None if !closes => Some(name),
        _ => None,
    }
}

/// Where the names stand of the sequences that a statement asks for their last value; `None` where that cannot be told.
pub(super) fn asked_sequences(statement: &[Tok<'_>]) -> Option<Vec<Range<usize>>> {
    let mut asked = Vec::new();
    for (index, token) in statement.iter().enumerate() {
        let next = |offset: usize| statement.get(index + offset);
        let word = |offset: usize| next(offset).map_or("", Tok::word);
        match &*token.name {
            _ if token.is_mark_of_comment() => return None,
            "lastval" if token.is_name() && next(1).is_some_and(|open| open.is("(")) => {
                let (name, end) = name_at(statement, index + 2)?;
                statement.get(end).filter(|close| close.is(")"))?;
                asked.push(name);
            }
            "previous" | "prev" if word(1) == "value" && word(2) == "for" => {
                asked.push(name_at(statement, index + 3)?.0);
            }
            "currval" => return None,
            _ => {}
        }
    }
    Some(asked)
}

/// Where the name at `index` stands in the text, and which token is behind it.
fn name_at(tokens: &[Tok<'_>], index: usize) -> Option<(Range<usize>, usize)> {
    let (_, end) = walk::chain(tokens, index)?;
    Some((tokens.get(index)?.start..tokens.get(end - 1)?.end, end))
}

/// The name of a system variable that is read, without its scope.
fn following_scope<'t>(tokens: &'t [Tok<'_>], index: usize) -> Cow<'t, str> {
    let name = tokens.get(index).map_or("", |token| &*token.name);
    match (name, tokens.get(index + 1), tokens.get(index + 2)) {
        ("session" | "local" | "global", Some(dot), Some(variable)) if dot.is(".") => {
            Cow::Borrowed(&*variable.name)
        }
        _ => Cow::Borrowed(name),
    }
}

/// The facts of a command that carries no statement text, by its number (MySQL Source Documentation, "Command Phase");
/// `None` for those that belong to a statement told before (`COM_STMT_FETCH` and the like) or are statements themselves,
/// and for numbers that mean nothing.
#[must_use]
pub fn of_command(command: u8) -> Option<Facts> {
    let known = |kind, name: &str| Facts {
        kind,
        statements: 1,
        read_only: false,
        digest_text: name.to_owned(),
        ..Facts::nothing()
    };
    let reads = |kind, name| Facts { read_only: true, ..known(kind, name) };
    let changes = |kind, name| Facts { moves_transaction: true, ..known(kind, name) };
    Some(match command {
        0x02 => Facts { changes_settings: true, ..known(StatementKind::Session, "COM_INIT_DB") },
        0x04 => reads(StatementKind::Select, "COM_FIELD_LIST"),
        0x05 => changes(StatementKind::Ddl, "COM_CREATE_DB"),
        0x06 => Facts { changes_settings: true, ..changes(StatementKind::Ddl, "COM_DROP_DB") },
        0x07 => changes(StatementKind::Ddl, "COM_REFRESH"),
        0x08 => changes(StatementKind::Ddl, "COM_SHUTDOWN"),
        0x09 => reads(StatementKind::Other, "COM_STATISTICS"),
        0x0a => reads(StatementKind::Select, "COM_PROCESS_INFO"),
        0x0c => known(StatementKind::Other, "COM_PROCESS_KILL"),
        0x0d => known(StatementKind::Other, "COM_DEBUG"),
        0x0e => reads(StatementKind::Other, "COM_PING"),
        0x11 => reset("COM_CHANGE_USER"),
        0x1b => Facts { changes_settings: true, ..known(StatementKind::Session, "COM_SET_OPTION") },
        0x1f => reset("COM_RESET_CONNECTION"),
        _ => return None,
    })
}

/// Of the commands that put a session back to what it was after login (MySQL Source Documentation,
/// "COM_RESET_CONNECTION"). A prepared XA transaction may outlive them.
fn reset(name: &str) -> Facts {
    let kept = PinReasons::only(PinReason::Xa).union(PinReasons::only(PinReason::StatementSize));
    Facts {
        kind: StatementKind::Session,
        statements: 1,
        read_only: false,
        clears: PinReasons::ALL.without(kept).without(PinReasons::only(PinReason::Unknown)),
        rds_pins: PinReasons::NONE,
        changes_settings: true,
        drops_all_prepared: true,
        moves_transaction: true,
        digest_text: name.to_owned(),
        ..Facts::nothing()
    }
}
