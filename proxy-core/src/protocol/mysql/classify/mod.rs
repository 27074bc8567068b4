//! What a statement text does, in the dialects of MySQL and MariaDB.
//!
//! A text is cut into tokens once and hashed to a digest in which literals' values do not show. On a digest never seen
//! before the same tokens, literals' values not among them, are read for what becomes [`Facts`] and [`Details`], kept
//! by digest. So no value can change what is known of a text, and nothing that is known can be another text's. A text
//! that changes how the rest of it is read is looked at each time: one whose meaning depends on that is not understood.
//!
//! The dialects have no grammar that could be used as a library and that both servers would agree on. In them every
//! statement says by its first words what it is, and whatever a statement does to its session stands in it as a token:
//! `facts` reads those. `sqlparser` reads the statement too, where it can, for the names in it and as a second opinion:
//! what either sees counts. What neither knows is [`Facts::unknown`].

mod builtin;
mod details;
mod facts;
mod held;
mod insert;
mod lexer;
mod set;
mod walk;

use std::{fmt, ops::Range, sync::Arc};

use memchr::{memchr, memmem};
use siphasher::sip128::SipHasher24;

use crate::protocol::{
    Facts,
    digest::{self, Cache, Sink, keyed_hasher},
};

pub use details::{Assignment, Details, Kill, NamedStatement, NamedVerb, Scope, SessionFunctions, XaVerb};
pub use facts::of_command;
pub use held::{Locks, Made, Temporary, handler, locks, prepared_text, temporary};
pub use insert::{GivenIds, given_ids};
pub use lexer::{Charset, LexMode};

use facts::tokens;
use lexer::{Kind, Lexer, Token};

/// Longer text is not read: its facts are those of a text that nobody understands. In bytes.
pub const PARSE_LIMIT: usize = 1024 * 1024;

/// Most bytes of [`Facts::digest_text`].
pub const DIGEST_TEXT_LIMIT: usize = 1024;

/// A statement text's name and what it does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Classified {
    /// Keyed hash of the text without literals' values, white space, comments and the case of unquoted words;
    /// differs from process to process. Of a text that cannot be cut surely: of its very bytes.
    pub digest: u128,
    /// Shared by all texts of the digest.
    pub facts: Arc<Facts>,
    /// What this protocol alone asks, likewise.
    pub details: Arc<Details>,
}

/// Turns statement text into [`Facts`]; one per process, shared by all sessions.
pub struct Classifier {
    /// Holds the random key.
    hasher: SipHasher24,
    cache: Cache<(Arc<Facts>, Arc<Details>)>,
}

impl Classifier {
    /// A classifier with a random key that remembers the facts of up to `capacity` digests.
    ///
    /// # Panics
    /// When the operating system has no random numbers to give.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self { hasher: keyed_hasher(), cache: digest::cache(capacity) }
    }

    /// The digest and the facts of `text`, one `COM_QUERY` or `COM_STMT_PREPARE` command's statement text.
    ///
    /// Cheap when the digest is known; else it reads, which takes tens of microseconds for common texts and some
    /// tens of milliseconds for the largest. No lock is held meanwhile; two threads may read the same text.
    pub fn facts(&self, text: &[u8], mode: LexMode) -> Classified {
        let (digest, trusted) = self.digest(text, mode);
        if !trusted || text.len() > PARSE_LIMIT {
            let facts = Arc::new(Facts::unknown(digest_text(text, mode, trusted)));
            return Classified { digest, facts, details: Arc::new(Details::unknown()) };
        }
        if let Some((facts, details)) = self.cache.get(&digest) {
            return known(text, mode, Classified { digest, facts, details });
        }
        let (facts, details) = match facts::of_text(text, mode) {
            Some((facts, details)) => {
                (Facts { digest_text: digest_text(text, mode, true), ..facts }, details)
            }
            None => (Facts::unknown(digest_text(text, mode, true)), Details::unknown()),
        };
        let (facts, details) = (Arc::new(facts), Arc::new(details));
        self.cache.insert(digest, (Arc::clone(&facts), Arc::clone(&details)));
        known(text, mode, Classified { digest, facts, details })
    }

    /// The digest, and whether every server cuts the text as it was cut here.
    fn digest(&self, text: &[u8], mode: LexMode) -> (u128, bool) {
        let mut sink = Sink::new(self.hasher);
        sink.byte(mode.bits());
        let mut lexer = Lexer::new(text, mode);
        let folds = folds(mode.charset);
        let mut trusted = true;
        while let Some(token) = lexer.next() {
            sink.byte(token.kind as u8);
            if token.kind.is_literal() {
                continue;
            }
            let bytes = text.get(token.start..token.end).unwrap_or_default();
            if token.kind == Kind::Word && (folds || bytes.is_ascii()) {
                sink.lower_case(bytes);
            } else {
                sink.bytes(bytes);
            }
            // The zero that ends the bytes must not stand among them.
            trusted &= memchr(0, bytes).is_none();
            sink.byte(0);
        }
        if trusted && !lexer.untrusted { (sink.finish(), true) } else { (self.exact(text, mode), false) }
    }

    /// A key of the same space as digests for the very bytes.
    fn exact(&self, text: &[u8], mode: LexMode) -> u128 {
        let mut sink = Sink::new(self.hasher);
        sink.byte(EXACT | mode.bits());
        sink.bytes(text);
        sink.finish()
    }
}

/// What is known of `text`, unless a statement of it has those after it read in another way, and they depend on it.
fn known(text: &[u8], mode: LexMode, known: Classified) -> Classified {
    let depends = |byte: &u8| matches!(byte, b'\\' | b'"' | 0x80..);
    if !known.details.rereads || !text.iter().any(depends) {
        return known;
    }
    let facts = Arc::new(Facts::unknown(digest_text(text, mode, false)));
    Classified { facts, details: Arc::new(Details::unknown()), ..known }
}

impl fmt::Debug for Classifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Classifier").field("remembered", &self.cache.len()).finish_non_exhaustive()
    }
}

/// In a digest's first byte, beside the mode.
const EXACT: u8 = 0x80;

/// True when a byte that looks like an ASCII letter always is one.
const fn folds(charset: Charset) -> bool {
    matches!(charset, Charset::Utf8 | Charset::Single | Charset::Ujis | Charset::Gb2312)
}

/// Where each statement of `text` stands, without the semicolons between them; statements of nothing but white space
/// and comments are left out. The body of a stored routine is part of the statement that makes it. `None` when the
/// text cannot be cut surely.
#[must_use]
pub fn statements(text: &[u8], mode: LexMode) -> Option<Vec<Range<usize>>> {
    let tokens = tokens(text, mode)?;
    let ranges = facts::split(&tokens).into_iter().filter_map(|statement| {
        let (first, last) = (statement.first()?, statement.last()?);
        Some(first.start..last.end)
    });
    Some(ranges.collect())
}

/// What a text that is one `SET` makes of user variables: for each its name, in lower case and without quotes, and the
/// constant that it is set to, as it stands in the text. Empty when it sets none; `None` when a value is no constant or
/// the text is anything else.
///
/// A constant may mean something else to a session with another `sql_mode` or another `character_set_connection`: it is
/// to be replayed in a session that agrees in these.
#[must_use]
pub fn user_variable_assignments(text: &[u8], mode: LexMode) -> Option<Vec<(String, Vec<u8>)>> {
    let tokens = tokens(text, mode)?;
    let (statement, set) = set::of_text(&tokens)?;
    let mut assigned = Vec::new();
    for item in set.items.iter().filter(|item| item.assignment.scope == Scope::User) {
        if !item.assignment.value_is_constant {
            return None;
        }
        let value = statement.get(item.value.clone())?;
        let bytes = text.get(value.first()?.start..value.last()?.end)?;
        assigned.push((item.assignment.name.clone(), bytes.to_vec()));
    }
    Some(assigned)
}

/// `NAMES …` or `CHARACTER SET …` as it stands in a text that is one `SET`; the last, where there are several. `None` when
/// there is none, or the text is anything else.
#[must_use]
pub fn character_set_assignment(text: &[u8], mode: LexMode) -> Option<Vec<u8>> {
    let tokens = tokens(text, mode)?;
    let (statement, set) = set::of_text(&tokens)?;
    let item = set.items.iter().rfind(|item| matches!(&*item.assignment.name, "names" | "character set"))?;
    let value = statement.get(item.value.clone())?;
    let bytes = text.get(value.first()?.start..value.last()?.end)?;
    Some([item.assignment.name.to_uppercase().as_bytes(), b" ", bytes].concat())
}

/// The user variables that `text` names, in lower case, each once. Empty for a text that cannot be cut into words.
#[must_use]
pub fn user_variables(text: &[u8], mode: LexMode) -> Vec<String> {
    let tokens = tokens(text, mode).unwrap_or_default();
    let named = tokens.into_iter().filter(|token| token.kind == Kind::UserVariable && !token.name.is_empty());
    let mut names: Vec<String> = named.map(|token| token.name.to_lowercase()).collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// Sequences in a text, by their names as spelt.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Sequences {
    /// It asks for last values.
    pub asks: bool,
    /// Of these, but for those of which it has drawn values itself before.
    pub asked: Vec<Vec<u8>>,
    /// Those that it has surely drawn a value of when it is over.
    pub drawn: Vec<Vec<u8>>,
}

/// The sequences that `text` draws values of and asks for their last; `None` where that cannot be told.
#[must_use]
pub fn sequences(text: &[u8], mode: LexMode) -> Option<Sequences> {
    let tokens = tokens(text, mode)?;
    let mut found = Sequences::default();
    for statement in facts::split(&tokens) {
        if statement.first().is_some_and(|first| first.word() == "use") {
            return None;
        }
        for asked in facts::asked_sequences(statement)? {
            let name = text.get(asked)?;
            found.asks = true;
            if !found.drawn.iter().any(|drawn| drawn == name) {
                found.asked.push(name.to_vec());
            }
        }
        if let Some(drawn) = facts::drawn_sequence(statement) {
            found.drawn.push(text.get(drawn)?.to_vec());
        }
    }
    Some(found)
}

/// Whom a `KILL` in `text` is about, by the number that stands in it; `None` when that is anything but a number, or
/// when there is more than one statement.
#[must_use]
pub fn kill_target(text: &[u8], mode: LexMode) -> Option<(Kill, u64)> {
    let tokens = tokens(text, mode)?;
    let [statement] = &facts::split(&tokens)[..] else { return None };
    let (kill, id) = facts::kill(statement)?;
    let digits = text.get(id.start..id.end)?;
    Some((kill, std::str::from_utf8(digits).ok()?.parse().ok()?))
}

/// What the column of a text is called that is `SELECT CONNECTION_ID()` and no more, quoted where the text gives it no
/// name of its own.
#[must_use]
pub fn connection_id_column(text: &[u8], mode: LexMode) -> Option<Vec<u8>> {
    let tokens = tokens(text, mode)?;
    let [[select, function, open, close, alias @ ..]] = &facts::split(&tokens)[..] else { return None };
    let call = [select.word(), function.word()] == ["select", "connection_id"];
    let called = text.get(function.start..close.end)?;
    if !call || text.get(open.start..open.end)? != b"(" || text.get(close.start..close.end)? != b")" {
        return None;
    }
    match alias {
        [] if !called.contains(&b'`') => Some([b"`", called, b"`"].concat()),
        [word, name] if word.word() == "as" && matches!(name.kind, Kind::Word | Kind::QuotedName) => {
            text.get(name.start..name.end).map(<[u8]>::to_vec)
        }
        _ => None,
    }
}

/// The name in a `USE` that is the text's only statement, as the client spelt it and without quotes. Names of schemas
/// may differ in nothing but their letters' case, which digests do not show.
#[must_use]
pub fn used_schema(text: &[u8], mode: LexMode) -> Option<Vec<u8>> {
    let tokens = tokens(text, mode)?;
    let [[verb, name]] = &facts::split(&tokens)[..] else { return None };
    let bytes = text.get(name.start..name.end)?;
    match (verb.word(), name.kind) {
        ("use", Kind::Word) => Some(bytes.to_vec()),
        ("use", Kind::QuotedName) => Some(without_quotes(bytes)),
        _ => None,
    }
}

/// What a quoted name or string spells. Doubled quotes become one; no other escapes are looked at.
fn without_quotes(quoted: &[u8]) -> Vec<u8> {
    let [mark, inside @ .., _] = quoted else { return quoted.to_vec() };
    let mut name = Vec::with_capacity(inside.len());
    let mut bytes = inside.iter().peekable();
    while let Some(byte) = bytes.next() {
        name.push(*byte);
        if byte == mark {
            bytes.next_if_eq(&mark);
        }
    }
    name
}

/// The transaction that an `XA` statement, the text's only one, names: the very bytes of its literals with commas
/// between them. Two that are alike name the same.
#[must_use]
pub fn xa_transaction(text: &[u8], mode: LexMode) -> Option<Vec<u8>> {
    let tokens = tokens(text, mode)?;
    let [[xa, _, rest @ ..]] = &facts::split(&tokens)[..] else { return None };
    let xid: Vec<&[u8]> = rest
        .iter()
        .take_while(|token| token.kind.is_literal() || token.is(","))
        .filter_map(|token| text.get(token.start..token.end))
        .collect();
    (xa.word() == "xa" && !xid.is_empty()).then(|| xid.concat())
}

/// The word after `pinion:` in the first comment of `text` that has one; empty for none.
#[must_use]
pub fn hint(text: &[u8], mode: LexMode) -> &str {
    const MARK: &[u8] = b"pinion:";
    // A text without it is the rule, and no lexer is as fast as this.
    if memmem::find(text, MARK).is_none() {
        return "";
    }
    let mut found = "";
    for_each_token(text, mode, |token| {
        let bytes = text.get(token.start..token.end).unwrap_or_default();
        if token.kind == Kind::Hint
            && let Some(at) = memmem::find(bytes, MARK)
        {
            found = digest::hint_word(bytes.get(at + MARK.len()..).unwrap_or_default());
        }
        found.is_empty()
    });
    found
}

/// `text` for logs: literals become `?`; comments are left out, white space is one space. At most
/// [`DIGEST_TEXT_LIMIT`] bytes. A text whose literals cannot be told shows nothing of itself.
fn digest_text(text: &[u8], mode: LexMode, trusted: bool) -> String {
    if !trusted {
        return "?".to_owned();
    }
    let mut out = String::new();
    for_each_token(text, mode, |token| {
        let bytes = text.get(token.start..token.end).unwrap_or_default();
        if (token.spaced || token.kind == Kind::Hint) && !out.is_empty() && !out.ends_with(' ') {
            out.push(' ');
        }
        match token.kind {
            Kind::Hint | Kind::NeverExecuted => {}
            Kind::Word => out.push_str(&String::from_utf8_lossy(bytes).to_ascii_lowercase()),
            Kind::QuotedName
            | Kind::Param
            | Kind::UserVariable
            | Kind::SystemVariable
            | Kind::Operator
            | Kind::Other
            | Kind::ExecutableStart
            | Kind::ExecutableEnd => out.push_str(&String::from_utf8_lossy(bytes)),
            Kind::Str | Kind::National | Kind::Bits | Kind::Hex | Kind::Number | Kind::Junk => out.push('?'),
        }
        out.len() <= DIGEST_TEXT_LIMIT
    });
    out.truncate(out.floor_char_boundary(DIGEST_TEXT_LIMIT));
    out.truncate(out.trim_end().len());
    out
}

/// Calls `visit` with each token until it returns false.
fn for_each_token(text: &[u8], mode: LexMode, mut visit: impl FnMut(Token) -> bool) {
    let mut lexer = Lexer::new(text, mode);
    while let Some(token) = lexer.next() {
        if !visit(token) {
            break;
        }
    }
}

#[cfg(test)]
mod tests;
