//! What a statement text does, by PostgreSQL's own grammar.
//!
//! A text is cut into tokens once and hashed to a digest in which literals' values do not show. On a digest never
//! seen before the real grammar parses the text, and what the tree says becomes [`Facts`], kept by digest.
//!
//! The danger of that is a value that changes what a text means, hidden behind the digest of another text. Three
//! things stand against it: facts are read from the tree in ways that no literal's value can change (whatever a
//! value might decide is decided on the safe side); the few values that must count (`pg_temp` in a `search_path`,
//! `role` in `set_config`) show in the digest as a class of their own, or by themselves (what `LOAD` loads); and a
//! text that does not parse is kept under the hash of its very bytes, so that it cannot spoil the entry of a good
//! one.

mod builtin;
mod facts;
mod lexer;
mod walk;

use std::{borrow::Cow, fmt, sync::Arc};

use memchr::{memchr, memchr2_iter, memmem};
use pg_query::ParserOptions;
use siphasher::sip128::SipHasher24;

use crate::protocol::{
    Facts, Moves,
    digest::{self, Cache, Sink, keyed_hasher},
};

pub(super) use facts::{LIBRARY, PREPARED, prepared};
pub use lexer::LexMode;

use lexer::{Kind, Lexer, Token};

/// Longer text is not parsed: its facts are those of a text that nobody understands. In bytes.
pub const PARSE_LIMIT: usize = 1024 * 1024;

/// Most bytes of [`Facts::digest_text`].
pub const DIGEST_TEXT_LIMIT: usize = 1024;

/// A statement text's name and what it does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Classified {
    /// Keyed hash of the text without literals' values, white space, comments and the case of unquoted words;
    /// differs from process to process.
    pub digest: u128,
    /// Shared by all texts of the digest that the grammar can read.
    pub facts: Arc<Facts>,
}

/// Turns statement text into [`Facts`]; one per process, shared by all sessions.
pub struct Classifier {
    /// Holds the random key.
    hasher: SipHasher24,
    cache: Cache<Arc<Facts>>,
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

    /// The digest and the facts of `text`, one `Query` or `Parse` message's statement text without its final zero.
    ///
    /// Cheap when the digest is known; else it parses, which takes tens of microseconds for common texts and some
    /// tens of milliseconds for the largest. No lock is held meanwhile; two threads may parse the same text.
    pub fn facts(&self, text: &[u8], mode: LexMode) -> Classified {
        let Digest { digest, trusted } = self.digest(text, mode);
        let not_for_the_grammar = !trusted || text.len() > PARSE_LIMIT;
        if not_for_the_grammar {
            return Classified { digest, facts: Arc::new(Facts::unknown(digest_text(text, mode, trusted))) };
        }
        if let Some(facts) = self.cache.get(&digest) {
            return Classified { digest, facts };
        }
        let exact = self.exact(text, mode);
        if let Some(facts) = self.cache.get(&exact) {
            return Classified { digest, facts };
        }
        let text_for_logs = || digest_text(text, mode, true);
        let understood = parse(text, mode).and_then(|tree| facts::from_tree(&tree, text_for_logs));
        let (key, facts) = match understood {
            Some(facts) => (digest, facts),
            None => (exact, Facts::unknown(text_for_logs())),
        };
        let facts = Arc::new(facts);
        self.cache.insert(key, Arc::clone(&facts));
        Classified { digest, facts }
    }

    /// Variables whose names stand in literals of `text`; see [`Facts::variables_in_literals`]. Parses.
    #[must_use]
    pub fn literal_variables(text: &[u8], mode: LexMode) -> Vec<String> {
        parse(text, mode).map(|tree| facts::literal_variables(&tree)).unwrap_or_default()
    }

    fn digest(&self, text: &[u8], mode: LexMode) -> Digest {
        let mut sink = Sink::new(self.hasher);
        sink.byte(mode.bits());
        let mut lexer = Lexer::new(text, mode);
        let mut value_counts = false;
        let mut trusted = true;
        while let Some(token) = lexer.next() {
            let bytes = &text[token.start..token.end];
            sink.byte(token.kind as u8);
            match token.kind {
                Kind::Word => sink.lower_case(bytes),
                Kind::Str | Kind::National if !value_counts => {
                    sink.byte(token.meaning as u8);
                    continue;
                }
                Kind::Bits | Kind::Hex | Kind::Number => {}
                _ => {
                    // The zero that ends the bytes must not stand among them; no message can carry one.
                    trusted &= memchr(0, bytes).is_none();
                    sink.bytes(bytes);
                }
            }
            sink.byte(0);
            // After UESCAPE a literal's value decides what a name is called, after LOAD which library is loaded.
            let words: [&[u8]; 2] = [b"uescape", b"load"];
            value_counts =
                token.kind == Kind::Word && words.iter().any(|word| bytes.eq_ignore_ascii_case(word));
        }
        trusted &= !lexer.untrusted;
        // Tags that differ in such bytes alone would be made one when the text is brought to UTF-8.
        trusted &= !lexer.high_dollar_tag || std::str::from_utf8(text).is_ok();
        if !trusted {
            sink.byte(UNTRUSTED);
        }
        Digest { digest: sink.finish(), trusted }
    }

    /// A key of the same space as digests for the very bytes.
    fn exact(&self, text: &[u8], mode: LexMode) -> u128 {
        let mut sink = Sink::new(self.hasher);
        sink.byte(EXACT | mode.bits());
        sink.bytes(text);
        sink.finish()
    }
}

impl fmt::Debug for Classifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Classifier").field("remembered", &self.cache.len()).finish_non_exhaustive()
    }
}

/// In a digest's first byte, beside the mode.
const EXACT: u8 = 0x80;
/// At a digest's end; no [`Kind`] has this number.
const UNTRUSTED: u8 = 0xff;

struct Digest {
    digest: u128,
    trusted: bool,
}

/// The tree of `text`; `None` when the grammar refuses it, when the tree is too deep to be handed over (pg_query's
/// decoder stops at 100 levels, two of which make one level of an expression), or when it would take too long.
fn parse(text: &[u8], mode: LexMode) -> Option<pg_query::protobuf::ParseResult> {
    if scan_steps(text) > SCAN_LIMIT {
        return None;
    }
    // Bytes over 0x7f are letters to the scanner in every encoding that gets here, and so is what replaces them.
    let text: Cow<'_, str> = String::from_utf8_lossy(text);
    let options = if mode.standard_conforming_strings {
        ParserOptions::DEFAULT
    } else {
        ParserOptions::DISABLE_STANDARD_CONFORMING_STRINGS
    };
    // Warnings are nobody's to read here.
    let options = options | ParserOptions::DISABLE_ESCAPE_STRING_WARNING;
    pg_query::parse(&text, options).ok().map(|parsed| parsed.protobuf)
}

/// True for a text that is one `PREPARE` and nothing else, of a statement that leaves nothing when it runs that its
/// `EXECUTE` would have to tell.
pub(super) fn is_plain_prepare(text: &str) -> bool {
    let Some(tree) = parse(text.as_bytes(), LexMode::default()) else { return false };
    let [one] = &tree.stmts[..] else { return false };
    let prepares = matches!(
        one.stmt.as_ref().and_then(|node| node.node.as_ref()),
        Some(pg_query::NodeEnum::PrepareStmt(_))
    );
    prepares && facts::from_tree(&tree, String::new).is_some_and(|facts| facts.moves == Moves::ByText)
}

/// Most steps that the scanner may need more than a text has bytes: some tens of milliseconds.
const SCAN_LIMIT: usize = 20_000_000;

/// About how many steps PostgreSQL's scanner takes in going over the same bytes again, a bound from above. It reads a
/// whole run of operator characters to take two of it at the start of a comment, or one when the rest ends in plus or
/// minus; and it counts from the start of the text to place its warning of each `GLOBAL`.
fn scan_steps(text: &[u8]) -> usize {
    let mut steps = 0_usize;
    let mut rest = text;
    while let Some(start) = rest.iter().position(|byte| lexer::is_operator(*byte)) {
        rest = &rest[start..];
        let length = rest.iter().position(|byte| !lexer::is_operator(*byte)).unwrap_or(rest.len());
        let (run, after) = rest.split_at(length);
        if length > 2 {
            let again = run
                .iter()
                .zip(&run[1..])
                .filter(|(one, next)| matches!((one, next), (b'+' | b'-', _) | (b'/', b'*')))
                .count();
            steps = steps.saturating_add(again.saturating_mul(length));
        }
        rest = after;
    }
    let globals = memchr2_iter(b'g', b'G', text)
        .filter(|start| text[*start..].get(..6).is_some_and(|word| word.eq_ignore_ascii_case(b"global")))
        .count();
    steps.saturating_add(globals.saturating_mul(text.len()))
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
        let bytes = &text[token.start..token.end];
        if token.kind == Kind::Hint
            && let Some(at) = memmem::find(bytes, MARK)
        {
            found = digest::hint_word(&bytes[at + MARK.len()..]);
        }
        found.is_empty()
    });
    found
}

/// `text` for logs: literals become `$n`, counted on from the highest parameter; comments are left out, white space
/// is one space. At most [`DIGEST_TEXT_LIMIT`] bytes. A text whose literals cannot be told shows nothing of itself.
fn digest_text(text: &[u8], mode: LexMode, trusted: bool) -> String {
    if !trusted {
        return "?".to_owned();
    }
    let mut highest: u32 = 0;
    for_each_token(text, mode, |token| {
        if token.kind == Kind::Param
            && let Ok(digits) = std::str::from_utf8(&text[token.start + 1..token.end])
            && let Ok(number) = digits.parse::<u32>()
        {
            highest = highest.max(number);
        }
        true
    });
    let mut out = String::new();
    for_each_token(text, mode, |token| {
        let bytes = &text[token.start..token.end];
        if (token.spaced || token.kind == Kind::Hint) && !out.is_empty() && !out.ends_with(' ') {
            out.push(' ');
        }
        match token.kind {
            Kind::Hint => {}
            Kind::Word => out.push_str(&String::from_utf8_lossy(bytes).to_ascii_lowercase()),
            Kind::QuotedName | Kind::Param | Kind::Operator | Kind::Other => {
                out.push_str(&String::from_utf8_lossy(bytes));
            }
            Kind::Str
            | Kind::UnicodeStr
            | Kind::Bits
            | Kind::Hex
            | Kind::National
            | Kind::Number
            | Kind::Junk => {
                highest = highest.saturating_add(1);
                out.push_str(&format!("${highest}"));
            }
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
