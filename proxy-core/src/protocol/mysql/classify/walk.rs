//! Finds the names in a statement: tables that it uses, functions that it calls.
//!
//! Twice: over the tokens, which never fails, and over `sqlparser`'s tree where that understands the statement. The
//! first is written for these dialects, the second by others; what either finds counts.

use std::ops::ControlFlow;

use sqlparser::{
    ast::{Expr, FunctionArguments, ObjectName, Query, SetExpr, Statement, Visit, Visitor},
    dialect::MySqlDialect,
    parser::Parser,
    tokenizer::{Token, Word},
};

use super::{builtin, facts::Tok, lexer::Kind};

/// What was found in one statement.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// `schema.name` or `name`.
    pub(super) tables: Vec<String>,
    pub(super) calls: Vec<Call>,
}

/// One call.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Call {
    pub(super) schema: Option<String>,
    pub(super) name: String,
    pub(super) with_arguments: bool,
}

impl Call {
    fn own(name: &str) -> Self {
        Self { schema: None, name: name.to_owned(), with_arguments: true }
    }
}

/// `name`, or `schema.name`, at `index`, and where it ends; `None` when there is none.
pub(super) fn chain<'t>(tokens: &'t [Tok<'_>], index: usize) -> Option<(Vec<&'t str>, usize)> {
    let first = tokens.get(index).filter(|token| token.is_name())?;
    let mut parts = vec![&*first.name];
    let mut end = index + 1;
    while let (Some(dot), Some(part)) = (tokens.get(end), tokens.get(end + 1))
        && dot.is(".")
        && part.is_name()
    {
        parts.push(&part.name);
        end += 2;
    }
    Some((parts, end))
}

/// The names that begin at `index` and after each comma outside parentheses.
pub(super) fn listed(tokens: &[Tok<'_>], index: usize) -> Vec<String> {
    let mut names = Vec::new();
    let mut depth = 0_usize;
    let mut expected = true;
    let mut index = index;
    while let Some(token) = tokens.get(index) {
        if expected && let Some((parts, end)) = chain(tokens, index) {
            names.push(parts.join("."));
            index = end;
            expected = false;
            continue;
        }
        match &*token.name {
            "(" if token.is("(") => depth += 1,
            ")" if token.is(")") => depth = depth.saturating_sub(1),
            "," if token.is(",") && depth == 0 => expected = true,
            _ => {}
        }
        index += 1;
    }
    names
}

/// What is between two parentheses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Inside {
    /// Not known yet: nothing has been read of it.
    Start,
    /// `WITH`, up to the statement's verb.
    Prelude,
    /// A statement from its verb on.
    Statement,
    /// Tables and joins.
    Tables,
    /// Anything else.
    Expression,
}

struct Frame {
    inside: Inside,
    /// A table's name is to come.
    expects_table: bool,
    /// A comma here stands between tables.
    in_tables: bool,
    /// The table to come is one that is inserted into: parentheses after it hold columns.
    inserts: bool,
    deletes: bool,
    /// The statement changes rows.
    changes: bool,
    /// Of a prelude: `RECURSIVE`.
    recursive: bool,
    /// Of a prelude: commas stand between the columns of a `CYCLE`.
    cycles: bool,
    /// Of a prelude: a name is to come.
    expects_common: bool,
    /// Of a prelude: what comes in parentheses is the definition.
    defines: bool,
}

impl Frame {
    const fn new(inside: Inside) -> Self {
        Self {
            inside,
            expects_table: false,
            in_tables: false,
            inserts: false,
            deletes: false,
            changes: false,
            recursive: false,
            cycles: false,
            expects_common: false,
            defines: false,
        }
    }

    fn expect_tables(&mut self) {
        self.in_tables = true;
        self.expects_table = true;
    }

    /// The statement's verb, with which a frame begins that is more than an expression. False when it is none.
    fn begin(&mut self, verb: &str, called: bool) -> bool {
        match verb {
            "select" | "values" => {}
            "insert" | "replace" if called => return false,
            "table" => self.expects_table = true,
            "update" => {
                self.changes = true;
                self.expect_tables();
            }
            "delete" => {
                self.changes = true;
                self.deletes = true;
            }
            "insert" | "replace" => {
                self.changes = true;
                self.expects_table = true;
                self.inserts = true;
            }
            _ => return false,
        }
        self.inside = Inside::Statement;
        true
    }
}

/// A common table expression, and from which token to which its name hides a table of that name.
struct Common<'t> {
    name: &'t str,
    depth: usize,
    from: Option<usize>,
    to: Option<usize>,
}

/// Most common table expressions that are told apart from tables.
const MAX_COMMONS: usize = 256;

/// Walks over the tokens of a statement that queries or changes rows, or of a part of any statement that has
/// expressions in it.
pub(super) fn tokens(tokens: &[Tok<'_>]) -> Found {
    let mut found = Found::default();
    let mut frames = vec![Frame::new(Inside::Start)];
    let mut commons: Vec<Common<'_>> = Vec::new();
    let mut tables: Vec<(usize, Vec<&str>)> = Vec::new();
    let mut index = 0;
    while let Some(token) = tokens.get(index) {
        let depth = frames.len();
        let Some(frame) = frames.last_mut() else { break };
        let next = tokens.get(index + 1);
        let previous = index.checked_sub(1).and_then(|before| tokens.get(before));
        let called = next.is_some_and(|next| next.is("("));
        if token.is("(") {
            let child = if frame.expects_table && !frame.inserts {
                frame.expects_table = false;
                Frame { expects_table: true, in_tables: true, ..Frame::new(Inside::Tables) }
            } else {
                Frame::new(Inside::Start)
            };
            if frame.inside == Inside::Start {
                // `(SELECT …) UNION …`: what follows is another verb, or the rest of a query.
                frame.inside = Inside::Expression;
            }
            frames.push(child);
        } else if token.is(")") {
            if depth > 1 {
                frames.pop();
                commons.iter_mut().filter(|common| common.depth == depth).for_each(|common| {
                    common.to.get_or_insert(index);
                });
                if let Some(parent) = frames.last()
                    && parent.inside == Inside::Prelude
                    && parent.defines
                    && let Some(last) = commons.iter_mut().rfind(|common| common.depth == depth - 1)
                {
                    last.from.get_or_insert(index);
                }
            }
        } else if token.is(",") {
            frame.expects_common = frame.inside == Inside::Prelude && !frame.cycles;
            frame.expects_table = frame.in_tables;
        } else if token.is_name() {
            let word = token.word();
            let begins = matches!(frame.inside, Inside::Start | Inside::Prelude)
                || frame.inside == Inside::Tables && frame.expects_table
                || matches!(word, "select" | "table") && frame.inside != Inside::Statement;
            if frame.expects_common && word != "recursive" {
                frame.expects_common = false;
                frame.defines = false;
                let from = frame.recursive.then_some(index);
                // Of too many some are taken for tables, too.
                let room = commons.len() < MAX_COMMONS;
                commons.extend(room.then(|| Common { name: &token.name, depth, from, to: None }));
            } else if begins && frame.begin(word, called) {
                if frame.inside == Inside::Statement && word != "table" && word != "update" && !frame.inserts
                {
                    frame.expects_table = false;
                    frame.in_tables = false;
                }
            } else if word == "with" && begins_prelude(next) {
                frame.inside = Inside::Prelude;
                frame.expects_table = false;
                frame.recursive = next.is_some_and(|next| next.word() == "recursive");
                frame.expects_common = true;
                frame.in_tables = false;
            } else if frame.inside == Inside::Prelude {
                frame.defines |= word == "as";
                frame.cycles = word == "cycle" || frame.cycles && word != "restrict";
            } else if frame.expects_table && !introduces_table(word) {
                match chain(tokens, index) {
                    // A table function.
                    Some((parts, end))
                        if !frame.inserts && tokens.get(end).is_some_and(|after| after.is("(")) =>
                    {
                        call(&mut found, tokens, &parts, end);
                        frame.expects_table = false;
                        index = end;
                        continue;
                    }
                    Some((parts, end)) => {
                        if parts != ["dual"] {
                            tables.push((index, parts));
                        }
                        frame.expects_table = false;
                        frame.inserts = false;
                        index = end;
                        continue;
                    }
                    None => {}
                }
            } else if let Some(skipped) = clause(frame, tokens, index, word) {
                index += skipped;
                continue;
            } else if let Some((parts, end)) = chain(tokens, index) {
                if frame.inside == Inside::Start {
                    frame.inside = Inside::Expression;
                }
                let is_alias = previous.is_some_and(|before| before.word() == "as" || before.is(")"));
                let is_keyword = parts.len() == 1 && builtin::is_not_called(word);
                let has_effect = parts.last().is_some_and(|name| builtin::has_effect(name));
                if tokens.get(end).is_some_and(|after| after.is("(")) {
                    if !is_alias && !is_keyword || has_effect {
                        call(&mut found, tokens, &parts, end);
                    }
                } else {
                    sequence(&mut found, tokens, &parts, index);
                }
                index = end;
                continue;
            }
        } else if frame.inside == Inside::Start {
            frame.inside = Inside::Expression;
        }
        index += 1;
    }
    let hidden = |index: usize, name: &str| {
        commons.iter().any(|common| {
            let from = common.from.unwrap_or(usize::MAX);
            common.name == name && index > from && index < common.to.unwrap_or(usize::MAX)
        })
    };
    found.tables.extend(
        tables
            .iter()
            .filter(|(index, parts)| !matches!(parts[..], [name] if hidden(*index, name)))
            .map(|(_, parts)| parts.join(".")),
    );
    found
}

/// After `WITH`: the name of a common table expression, and not one of the clauses that begin with it, too.
fn begins_prelude(next: Option<&Tok<'_>>) -> bool {
    next.is_some_and(|next| {
        next.is_name()
            && !matches!(
                next.word(),
                "rollup"
                    | "query"
                    | "parser"
                    | "ties"
                    | "check"
                    | "cascaded"
                    | "local"
                    | "read"
                    | "consistent"
            )
    })
}

/// Words that may stand between what announces a table and its name.
fn introduces_table(word: &str) -> bool {
    matches!(
        word,
        "into"
            | "low_priority"
            | "high_priority"
            | "delayed"
            | "quick"
            | "ignore"
            | "lateral"
            | "table"
            | "tables"
            | "if"
            | "not"
            | "exists"
            | "oj"
    )
}

/// A word that begins a clause. How many tokens to go on by; `None` when it is none.
fn clause(frame: &mut Frame, tokens: &[Tok<'_>], index: usize, word: &str) -> Option<usize> {
    let next = tokens.get(index + 1);
    let next_word = next.map_or("", Tok::word);
    let in_statement = frame.inside == Inside::Statement;
    match word {
        // Some of these words may be the name of a table in this statement.
        _ if next.is_some_and(|next| next.is(",")) => return None,
        "from" if in_statement => frame.expect_tables(),
        "join" if in_statement || frame.in_tables => frame.expect_tables(),
        "straight_join" if frame.in_tables => frame.expects_table = true,
        "using" if frame.deletes && frame.in_tables && !next.is_some_and(|next| next.is("(")) => {
            frame.expect_tables();
        }
        // `USE INDEX FOR ORDER BY (…)` stands among the tables.
        "for" if matches!(next_word, "join" | "order" | "group") => return Some(2),
        "table" if in_statement && next.is_some_and(Tok::is_name) => frame.expects_table = true,
        "except" | "intersect" | "minus"
            if !matches!(next_word, "select" | "table" | "values" | "all" | "distinct")
                && !next.is_some_and(|next| next.is("(")) =>
        {
            return None;
        }
        "returning" if !frame.changes => return None,
        "where" | "group" | "having" | "order" | "limit" | "union" | "except" | "intersect" | "minus"
        | "set" | "window" | "procedure" | "returning" | "values" | "lock" | "into" | "select"
            if in_statement && frame.in_tables =>
        {
            frame.in_tables = false;
        }
        _ => return None,
    }
    Some(1)
}

fn call(found: &mut Found, tokens: &[Tok<'_>], parts: &[&str], open: usize) {
    let (Some(name), before) = (parts.last(), parts.len().saturating_sub(2)) else { return };
    let schema = (parts.len() > 1).then(|| parts.get(before).map(|schema| (*schema).to_owned())).flatten();
    let with_arguments = !tokens.get(open + 1).is_some_and(|after| after.is(")"));
    found.calls.push(Call { schema, name: (*name).to_owned(), with_arguments });
}

/// `NEXT VALUE FOR s`, `PREVIOUS VALUE FOR s`, `s.NEXTVAL`, `s.CURRVAL` (MariaDB Knowledge Base, "SEQUENCE Functions").
fn sequence(found: &mut Found, tokens: &[Tok<'_>], parts: &[&str], index: usize) {
    let follows =
        |offset: usize, word: &str| tokens.get(index + offset).is_some_and(|token| token.word() == word);
    match parts {
        ["next"] if follows(1, "value") && follows(2, "for") => found.calls.push(Call::own("nextval")),
        ["previous" | "prev"] if follows(1, "value") && follows(2, "for") => {
            found.calls.push(Call::own("lastval"));
        }
        [_, .., "nextval"] => found.calls.push(Call::own("nextval")),
        [_, .., "currval"] => found.calls.push(Call::own("lastval")),
        _ => {}
    }
}

/// What `sqlparser` says of a statement.
#[derive(Debug, Default)]
pub(super) struct Tree {
    pub(super) found: Found,
    pub(super) writes: bool,
    pub(super) locks_rows: bool,
    /// A query, and nothing else.
    pub(super) is_query: bool,
    common: Vec<String>,
}

/// Most tokens of a statement that is parsed: what is longer is mostly values.
const MAX_TOKENS: usize = 2_000;
/// Most operators of a statement that is parsed: each may make the tree deeper by a level.
const MAX_OPERATORS: usize = 200;
/// Deepest parentheses of a statement that is parsed. The parser goes back in some places.
const MAX_DEPTH: usize = 16;
/// Deepest nesting of anything else.
const MAX_RECURSION: usize = 40;

/// The tree's view of one statement; `None` where the parser does not understand it, or might take too long to.
pub(super) fn tree(tokens: &[Tok<'_>]) -> Option<Tree> {
    if !is_for_the_parser(tokens) {
        return None;
    }
    let translated = tokens.iter().enumerate().filter_map(|(index, token)| {
        // An introducer is part of the literal after it.
        let introduces =
            token.word().starts_with('_') && tokens.get(index + 1).is_some_and(|next| next.kind.is_literal());
        (!introduces).then(|| translate(token))
    });
    let translated: Vec<Token> = translated.collect::<Option<_>>()?;
    let mut parser =
        Parser::new(&MySqlDialect {}).with_recursion_limit(MAX_RECURSION).with_tokens(translated);
    let statement = parser.parse_statement().ok()?;
    if parser.peek_token().token != Token::EOF {
        return None;
    }
    let mut tree = Tree { is_query: matches!(statement, Statement::Query(_)), ..Tree::default() };
    let _: ControlFlow<()> = statement.visit(&mut tree);
    let Tree { found, common, .. } = &mut tree;
    // Which of them a name hides is found over the tokens.
    found.tables.retain(|table| !common.contains(table) && table != "dual");
    Some(tree)
}

fn is_for_the_parser(tokens: &[Tok<'_>]) -> bool {
    let (mut operators, mut depth, mut deepest) = (0_usize, 0_usize, 0_usize);
    for token in tokens {
        match token.kind {
            Kind::Operator => operators += usize::from(!token.is(".")),
            Kind::Word => {
                let chains = matches!(
                    token.word(),
                    "and"
                        | "or"
                        | "xor"
                        | "div"
                        | "mod"
                        | "like"
                        | "in"
                        | "is"
                        | "between"
                        | "regexp"
                        | "rlike"
                        | "collate"
                        | "not"
                        | "union"
                        | "except"
                        | "intersect"
                        | "minus"
                        | "member"
                        | "sounds"
                        | "interval"
                        | "binary"
                        | "case"
                );
                operators += usize::from(chains);
            }
            Kind::Other if token.is("(") => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            Kind::Other if token.is(")") => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    tokens.len() <= MAX_TOKENS && operators <= MAX_OPERATORS && deepest <= MAX_DEPTH
}

/// The parser's token for one of ours; literals lose their values, which nothing may depend on.
fn translate(token: &Tok<'_>) -> Option<Token> {
    let name = &*token.name;
    Some(match token.kind {
        Kind::Word => Token::make_word(name, None),
        Kind::QuotedName => Token::make_word(name, Some('`')),
        Kind::UserVariable => variable("@", name),
        Kind::SystemVariable => variable("@@", name),
        Kind::Str => Token::SingleQuotedString(String::new()),
        Kind::National => Token::NationalStringLiteral(String::new()),
        Kind::Hex | Kind::Bits => Token::HexStringLiteral(String::new()),
        Kind::Number => Token::Number("1".to_owned(), false),
        Kind::Param => Token::Placeholder("?".to_owned()),
        Kind::Operator | Kind::Other => match name {
            "+" => Token::Plus,
            "-" => Token::Minus,
            "*" => Token::Mul,
            "/" => Token::Div,
            "%" => Token::Mod,
            "<" => Token::Lt,
            ">" => Token::Gt,
            "=" => Token::Eq,
            "<=" => Token::LtEq,
            ">=" => Token::GtEq,
            "<>" | "!=" => Token::Neq,
            "<=>" => Token::Spaceship,
            "<<" => Token::ShiftLeft,
            ">>" => Token::ShiftRight,
            "&&" => Token::Overlap,
            "||" => Token::StringConcat,
            "&" => Token::Ampersand,
            "|" => Token::Pipe,
            "^" => Token::Caret,
            "~" => Token::Tilde,
            "!" => Token::ExclamationMark,
            "->" => Token::Arrow,
            "->>" => Token::LongArrow,
            ":=" => Token::Assignment,
            "." => Token::Period,
            "," => Token::Comma,
            "(" => Token::LParen,
            ")" => Token::RParen,
            "{" => Token::LBrace,
            "}" => Token::RBrace,
            _ => return None,
        },
        Kind::Hint | Kind::ExecutableStart | Kind::ExecutableEnd | Kind::NeverExecuted | Kind::Junk => {
            return None;
        }
    })
}

fn variable(mark: &str, name: &str) -> Token {
    Token::Word(Word {
        value: format!("{mark}{name}"),
        quote_style: None,
        keyword: sqlparser::keywords::Keyword::NoKeyword,
    })
}

fn names(name: &ObjectName) -> Vec<&str> {
    name.0.iter().filter_map(|part| part.as_ident()).map(|part| part.value.as_str()).collect()
}

impl Visitor for Tree {
    type Break = ();

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<()> {
        self.locks_rows |= !query.locks.is_empty();
        self.writes |= matches!(
            *query.body,
            SetExpr::Insert(_) | SetExpr::Update(_) | SetExpr::Delete(_) | SetExpr::Merge(_)
        );
        let commons = query.with.iter().flat_map(|with| &with.cte_tables);
        self.common.extend(commons.map(|common| common.alias.name.value.clone()));
        ControlFlow::Continue(())
    }

    fn pre_visit_relation(&mut self, relation: &ObjectName) -> ControlFlow<()> {
        self.found.tables.push(names(relation).join("."));
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
        if let Expr::Function(function) = expr
            && let [schema @ .., name] = &names(&function.name)[..]
            && !(schema.is_empty() && builtin::is_not_called(name))
        {
            let schema = schema.last().map(|schema| (*schema).to_owned());
            let with_arguments = match &function.args {
                FunctionArguments::None => false,
                FunctionArguments::Subquery(_) => true,
                FunctionArguments::List(list) => !list.args.is_empty(),
            };
            self.found.calls.push(Call { schema, name: (*name).to_owned(), with_arguments });
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_statement(&mut self, statement: &Statement) -> ControlFlow<()> {
        self.writes |= matches!(
            statement,
            Statement::Insert(_) | Statement::Update(_) | Statement::Delete(_) | Statement::Merge(_)
        );
        ControlFlow::Continue(())
    }
}
