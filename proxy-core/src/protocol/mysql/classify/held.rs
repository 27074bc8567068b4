//! Reads what a text makes and drops of things that stay on a server connection until they are dropped. Names are told as
//! the text spells them, since digests do not show their case; what cannot be told exactly is not told at all.

use super::{
    LexMode,
    facts::{Tok, split, tokens},
    lexer::Kind,
    without_quotes,
};

/// A temporary table or sequence, as its statement names it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Temporary {
    /// Is a sequence, which `DROP TABLE … IF EXISTS` may pass by.
    pub is_sequence: bool,
    /// Where it says so.
    pub schema: Option<Vec<u8>>,
    /// Without quotes.
    pub name: Vec<u8>,
}

/// What becomes of something named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Made<T> {
    /// It is there if the statement succeeds.
    Makes(T),
    /// None of these is there if the statement succeeds.
    Drops(Vec<T>),
}

/// What a text has to do with user-level locks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Locks {
    /// Names in `GET_LOCK`, each as a literal between single quotes that means the same in every `sql_mode`.
    pub names: Vec<Vec<u8>>,
    /// There are calls of it whose name is no such literal.
    pub others: bool,
    /// Is nothing but `RELEASE_ALL_LOCKS()`.
    pub releases_all: bool,
}

/// The text's only statement, if nothing in it depends on the server's version.
fn alone<R>(
    text: &[u8],
    mode: LexMode,
    read: impl FnOnce(&[Tok<'_>], &dyn Fn(&Tok<'_>) -> Option<Vec<u8>>) -> Option<R>,
) -> Option<R> {
    let tokens = tokens(text, mode)?;
    let marks = [Kind::ExecutableStart, Kind::ExecutableEnd, Kind::NeverExecuted];
    if tokens.iter().any(|token| marks.contains(&token.kind)) {
        return None;
    }
    let [statement] = &split(&tokens)[..] else { return None };
    read(statement, &|token| spelt(text, token))
}

/// A name without its quotes; `None` for one whose bytes mean another name in another character set.
fn spelt(text: &[u8], token: &Tok<'_>) -> Option<Vec<u8>> {
    let bytes = text.get(token.start..token.end).filter(|bytes| bytes.is_ascii())?;
    match token.kind {
        Kind::Word => Some(bytes.to_vec()),
        Kind::QuotedName => Some(without_quotes(bytes)),
        _ => None,
    }
}

/// The temporary table that a text makes, or the tables that it drops, be they temporary or not.
#[must_use]
pub fn temporary(text: &[u8], mode: LexMode) -> Option<Made<Temporary>> {
    alone(text, mode, |tokens, spelt| {
        let word = |at: usize| tokens.get(at).map_or("", Tok::word);
        let mut at = 1;
        let skip = |at: &mut usize, words: &[&str]| {
            let all = words.iter().enumerate().all(|(n, one)| word(*at + n) == *one);
            *at += if all { words.len() } else { 0 };
        };
        let named = |at: &mut usize, is_sequence: bool| {
            let first = spelt(tokens.get(*at)?)?;
            *at += 1;
            if !tokens.get(*at).is_some_and(|dot| dot.is(".")) {
                return Some(Temporary { is_sequence, schema: None, name: first });
            }
            let name = spelt(tokens.get(*at + 1)?)?;
            *at += 2;
            Some(Temporary { is_sequence, schema: Some(first), name })
        };
        match word(0) {
            "create" => {
                skip(&mut at, &["or", "replace"]);
                if word(at) != "temporary" || !matches!(word(at + 1), "table" | "sequence") {
                    return None;
                }
                let is_sequence = word(at + 1) == "sequence";
                at += 2;
                skip(&mut at, &["if", "not", "exists"]);
                named(&mut at, is_sequence).map(Made::Makes)
            }
            "drop" => {
                skip(&mut at, &["temporary"]);
                let is_sequence = word(at) == "sequence";
                if !matches!(word(at), "table" | "tables" | "sequence") {
                    return None;
                }
                at += 1;
                skip(&mut at, &["if", "exists"]);
                let mut dropped = vec![named(&mut at, is_sequence)?];
                while tokens.get(at).is_some_and(|comma| comma.is(",")) {
                    at += 1;
                    dropped.push(named(&mut at, is_sequence)?);
                }
                match word(at) {
                    "" if at == tokens.len() => Some(Made::Drops(dropped)),
                    "restrict" | "cascade" if at + 1 == tokens.len() => Some(Made::Drops(dropped)),
                    _ => None,
                }
            }
            _ => None,
        }
    })
}

/// The name that a `HANDLER … OPEN` gives to its table, or that of the table a `HANDLER … CLOSE` is about.
#[must_use]
pub fn handler(text: &[u8], mode: LexMode) -> Option<Made<Vec<u8>>> {
    alone(text, mode, |tokens, spelt| {
        let [handler, rest @ ..] = tokens else { return None };
        if handler.word() != "handler" {
            return None;
        }
        match rest {
            [table, close] if close.word() == "close" => Some(Made::Drops(vec![spelt(table)?])),
            [table, open, alias @ ..] | [_, _, table, open, alias @ ..] if open.word() == "open" => {
                match alias {
                    [] => spelt(table).map(Made::Makes),
                    [alias] => spelt(alias).map(Made::Makes),
                    [word, alias] if word.word() == "as" => spelt(alias).map(Made::Makes),
                    _ => None,
                }
            }
            _ => None,
        }
    })
}

/// What a text has to do with user-level locks; anything for one that cannot be told.
#[must_use]
pub fn locks(text: &[u8], mode: LexMode) -> Locks {
    let found = alone(text, mode, |tokens, _| {
        let mut locks = Locks::default();
        for (at, token) in tokens.iter().enumerate() {
            if !token.is_name() || token.name != "get_lock" {
                continue;
            }
            match tokens.get(at + 1..) {
                Some([open, name, comma, ..])
                    if open.is("(") && comma.is(",") && name.kind == Kind::Str && locks.names.len() < 16 =>
                {
                    let bytes = text.get(name.start..name.end).unwrap_or_default();
                    match plain_literal(bytes) {
                        Some(name) => locks.names.push(name),
                        None => locks.others = true,
                    }
                }
                // A column of that name, or a call that is not understood.
                _ => locks.others = true,
            }
        }
        let is_call = |call: &[Tok<'_>]| match call {
            [function, open, close] => {
                function.word() == "release_all_locks" && open.is("(") && close.is(")")
            }
            _ => false,
        };
        locks.releases_all = match tokens {
            [verb, call @ .., word, alias] if verb.word() == "select" && word.word() == "as" => {
                alias.is_name() && is_call(call)
            }
            [verb, call @ ..] => matches!(verb.word(), "select" | "do") && is_call(call),
            [] => false,
        };
        Some(locks)
    });
    found.unwrap_or(Locks { others: true, ..Locks::default() })
}

/// A string that is the same whatever the `sql_mode` and the character set, between single quotes.
fn plain_literal(bytes: &[u8]) -> Option<Vec<u8>> {
    let [_, inside @ .., _] = bytes else { return None };
    let plain =
        inside.iter().all(|byte| matches!(byte, b' '..=b'~') && !matches!(byte, b'\'' | b'"' | b'\\'));
    plain.then(|| [b"'", inside, b"'"].concat())
}

/// The text that a `PREPARE … FROM 'text'` names. `None` for a variable, and for what may be read in more than one way.
#[must_use]
pub fn prepared_text(text: &[u8], mode: LexMode) -> Option<Vec<u8>> {
    alone(text, mode, |tokens, _| {
        let [prepare, _, from, literal] = tokens else { return None };
        if prepare.word() != "prepare" || from.word() != "from" || literal.kind != Kind::Str {
            return None;
        }
        let bytes = text.get(literal.start..literal.end).filter(|bytes| bytes.is_ascii())?;
        if mode.no_backslash_escapes || !bytes.contains(&b'\\') {
            return Some(without_quotes(bytes));
        }
        let [mark, inside @ .., _] = bytes else { return None };
        let mut decoded = Vec::with_capacity(inside.len());
        let mut bytes = inside.iter();
        while let Some(byte) = bytes.next() {
            match byte {
                b'\\' => decoded.push(match bytes.next()? {
                    quoted @ (b'\'' | b'"' | b'\\') => *quoted,
                    b'n' => b'\n',
                    b't' => b'\t',
                    b'r' => b'\r',
                    _ => return None,
                }),
                byte if byte == mark => {
                    bytes.next();
                    decoded.push(*byte);
                }
                byte => decoded.push(*byte),
            }
        }
        Some(decoded)
    })
}
