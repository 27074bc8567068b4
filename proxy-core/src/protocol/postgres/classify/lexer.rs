//! Cuts statement text into tokens, in one pass, the way PostgreSQL's scanner does (`scan.l`).
//!
//! The tokens serve the digest and the text for logs, never the facts: those come from the grammar. So the one
//! promise here is that two texts with the same tokens, literals' values aside, mean the same to the server. Where
//! that would take more knowledge than is worth having, a token keeps its text and the digests simply differ.

use memchr::{memchr, memchr_iter, memmem};

/// How a session's server reads statement text. Part of every digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LexMode {
    /// `standard_conforming_strings`: when off, a backslash escapes in plain strings too.
    pub standard_conforming_strings: bool,
    /// True when `client_encoding` never uses an ASCII byte inside a longer character.
    pub ascii_safe_encoding: bool,
}

impl Default for LexMode {
    /// What a new session has: standard strings, UTF-8.
    fn default() -> Self {
        Self { standard_conforming_strings: true, ascii_safe_encoding: true }
    }
}

impl LexMode {
    /// The mode for two parameter values as `ParameterStatus` reports them. An encoding that is not known counts as
    /// unsafe; names are compared as the server does, without case and punctuation (manual, "Character Set Support").
    #[must_use]
    pub fn from_params(standard_conforming_strings: &str, client_encoding: &str) -> Self {
        let name: String = client_encoding
            .chars()
            .filter(char::is_ascii_alphanumeric)
            .map(|c| c.to_ascii_lowercase())
            .collect();
        const SAFE: &[&str] =
            &["utf8", "unicode", "sqlascii", "abc", "alt", "tcvn", "tcvn5712", "vscii", "win"];
        const SAFE_FAMILIES: &[&str] = &["latin", "iso8859", "koi8", "euc", "win125", "windows125", "mule"];
        const SAFE_PAGES: &[&str] = &["win866", "windows866", "win874", "windows874"];
        let ascii_safe_encoding = SAFE.contains(&name.as_str())
            || SAFE_PAGES.contains(&name.as_str())
            || SAFE_FAMILIES.iter().any(|family| name.starts_with(family));
        Self {
            standard_conforming_strings: !standard_conforming_strings.eq_ignore_ascii_case("off"),
            ascii_safe_encoding,
        }
    }

    /// One byte for the digest.
    pub(super) const fn bits(self) -> u8 {
        self.standard_conforming_strings as u8 | (self.ascii_safe_encoding as u8) << 1
    }
}

/// What a literal's value may mean to the session; the only thing about a value that a digest shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u8)]
pub(super) enum Meaning {
    /// Nothing.
    #[default]
    Plain = 0,
    /// `role` or `session_authorization` and nothing else: names for `set_config`.
    Identity = 1,
    /// Has `pg_temp` in it: a `search_path` may put new tables there.
    Temp = 2,
    /// `search_path` and nothing else.
    SearchPath = 3,
}

/// Kinds of token. The numbers stand in the digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// Keyword or unquoted identifier.
    Word = 1,
    /// `"…"` or `U&"…"`.
    QuotedName = 2,
    /// `'…'`, `E'…'`, `$tag$…$tag$`, with all its continuations.
    Str = 3,
    /// `U&'…'`.
    UnicodeStr = 4,
    /// `B'…'`.
    Bits = 5,
    /// `X'…'`.
    Hex = 6,
    /// `N'…'`.
    National = 7,
    /// Any number.
    Number = 8,
    /// `$1`.
    Param = 9,
    /// A run of operator characters, or of `.` and `:`.
    Operator = 10,
    /// One other character.
    Other = 11,
    /// A comment that somebody means something by: `/*+ … */`, or one with `pinion:` in it.
    Hint = 12,
    /// What no grammar takes: a number run together with a word, something that never ends.
    Junk = 13,
}

/// One token: `text[start..end]`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Token {
    pub(super) kind: Kind,
    pub(super) start: usize,
    pub(super) end: usize,
    /// White space or a comment stood before it.
    pub(super) spaced: bool,
    /// Of string literals.
    pub(super) meaning: Meaning,
}

/// The tokens of one text, in order; every byte but white space and plain comments is in one of them.
pub(super) struct Lexer<'a> {
    text: &'a [u8],
    pos: usize,
    mode: LexMode,
    /// The server may cut this text elsewhere than the grammar here would, see [`LexMode`].
    pub(super) untrusted: bool,
    /// A dollar quote's tag had a byte over 0x7f in it.
    pub(super) high_dollar_tag: bool,
}

/// What a backslash does in a literal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Backslash {
    Escapes,
    Stands,
    ByMode,
}

const SPACE: u8 = 1;
const NAME_START: u8 = 2;
const DIGIT: u8 = 3;
const OPERATOR: u8 = 4;

/// What a token can start with; 0 is anything else.
static CLASSES: [u8; 256] = {
    let mut classes = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        classes[byte] = match byte as u8 {
            b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c => SPACE,
            b'a'..=b'z' | b'A'..=b'Z' | b'_' | 0x80..=0xff => NAME_START,
            b'0'..=b'9' => DIGIT,
            b'~' | b'!' | b'@' | b'#' | b'^' | b'&' | b'|' | b'`' | b'?' => OPERATOR,
            b'+' | b'-' | b'*' | b'/' | b'%' | b'<' | b'>' | b'=' => OPERATOR,
            _ => 0,
        };
        byte += 1;
    }
    classes
};

const fn class(byte: u8) -> u8 {
    CLASSES[byte as usize]
}

/// True for what an operator may be made of.
pub(super) const fn is_operator(byte: u8) -> bool {
    class(byte) == OPERATOR
}

/// True for what may follow in an unquoted identifier.
const fn continues_name(byte: u8) -> bool {
    matches!(class(byte), NAME_START | DIGIT) || byte == b'$'
}

impl<'a> Lexer<'a> {
    pub(super) fn new(text: &'a [u8], mode: LexMode) -> Self {
        // Which bytes are whole characters would have to be known to find the end of anything.
        let untrusted = !mode.ascii_safe_encoding && !text.is_ascii();
        Self { text, pos: 0, mode, untrusted, high_dollar_tag: false }
    }

    fn at(&self, index: usize) -> Option<u8> {
        self.text.get(index).copied()
    }

    /// The end of the run from `index` on for which `keep` holds.
    fn run(&self, index: usize, keep: impl Fn(u8) -> bool) -> usize {
        self.text[index..].iter().position(|byte| !keep(*byte)).map_or(self.text.len(), |n| index + n)
    }

    /// The next token; `None` at the end.
    #[inline]
    pub(super) fn next(&mut self) -> Option<Token> {
        let mut spaced = false;
        loop {
            let start = self.pos;
            let first = self.at(start)?;
            let second = self.at(start + 1);
            let (kind, end, meaning) = match class(first) {
                SPACE => {
                    self.pos = start + 1;
                    spaced = true;
                    continue;
                }
                NAME_START => self.word(start, first, second),
                DIGIT => self.number(start),
                OPERATOR => {
                    let comment = match (first, second) {
                        (b'-', Some(b'-')) => Some((self.line_end(start), true)),
                        (b'/', Some(b'*')) => Some(self.block_comment_end(start)),
                        _ => None,
                    };
                    match comment {
                        None => (Kind::Operator, self.operator_end(start), Meaning::Plain),
                        Some((end, false)) => (Kind::Junk, end, Meaning::Plain),
                        Some((end, true)) if is_hint(&self.text[start..end]) => {
                            (Kind::Hint, end, Meaning::Plain)
                        }
                        Some((end, true)) => {
                            self.pos = end;
                            spaced = true;
                            continue;
                        }
                    }
                }
                _ => match first {
                    b'\'' => self.string(Kind::Str, start, Backslash::ByMode),
                    b'"' => self.quoted_name(start),
                    b'$' => self.dollar(start, second),
                    b'.' if second.is_some_and(|byte| byte.is_ascii_digit()) => self.number(start),
                    b'.' | b':' => {
                        let end = self.run(start, |byte| byte == b'.' || byte == b':');
                        // `a..5`: the last dot belongs to the number for the server, so keep the two together.
                        let glued =
                            self.text[end - 1] == b'.' && self.at(end).is_some_and(|b| b.is_ascii_digit());
                        let end = if glued {
                            self.run(end, |byte| byte.is_ascii_alphanumeric() || byte == b'.')
                        } else {
                            end
                        };
                        (Kind::Operator, end, Meaning::Plain)
                    }
                    _ => (Kind::Other, start + 1, Meaning::Plain),
                },
            };
            self.pos = end;
            return Some(Token { kind, start, end, spaced, meaning });
        }
    }

    /// A word, or what a one-letter prefix makes of the quote after it.
    #[inline]
    fn word(&mut self, start: usize, first: u8, second: Option<u8>) -> (Kind, usize, Meaning) {
        match (first, second) {
            (b'e' | b'E', Some(b'\'')) => {
                return self.string(Kind::Str, start + 1, Backslash::Escapes);
            }
            (b'b' | b'B', Some(b'\'')) => {
                return self.string(Kind::Bits, start + 1, Backslash::Stands);
            }
            (b'x' | b'X', Some(b'\'')) => return self.string(Kind::Hex, start + 1, Backslash::Stands),
            (b'n' | b'N', Some(b'\'')) => {
                return self.string(Kind::National, start + 1, Backslash::ByMode);
            }
            (b'u' | b'U', Some(b'&')) => match self.at(start + 2) {
                Some(b'\'') => return self.string(Kind::UnicodeStr, start + 2, Backslash::ByMode),
                Some(b'"') => return self.quoted_name(start + 2),
                _ => {}
            },
            _ => {}
        }
        let end = self.run(start + 1, continues_name);
        (Kind::Word, end, Meaning::Plain)
    }

    /// A number, by the newest server's rules (`1_000`, `0x1F`); older ones refuse those or read two tokens.
    fn number(&self, start: usize) -> (Kind, usize, Meaning) {
        let junk_or = |kind, end: usize| {
            if self.at(end).is_some_and(|byte| class(byte) == NAME_START) {
                (Kind::Junk, self.run(end, continues_name), Meaning::Plain)
            } else {
                (kind, end, Meaning::Plain)
            }
        };
        if self.at(start) == Some(b'0')
            && let Some(b'x' | b'X' | b'o' | b'O' | b'b' | b'B') = self.at(start + 1)
        {
            let end = self.run(start, continues_name);
            let digits = &self.text[start + 2..end];
            let base = match self.text[start + 1] {
                b'x' | b'X' => 16,
                b'o' | b'O' => 8,
                _ => 2,
            };
            let good = !digits.is_empty()
                && digits.last() != Some(&b'_')
                && !digits.windows(2).any(|pair| pair == b"__")
                && digits.iter().all(|byte| *byte == b'_' || char::from(*byte).is_digit(base));
            return (if good { Kind::Number } else { Kind::Junk }, end, Meaning::Plain);
        }
        let mut end = self.decimal(start);
        if self.at(end) == Some(b'.') && self.at(end + 1) != Some(b'.') {
            end = self.decimal(end + 1);
        }
        if let Some(b'e' | b'E') = self.at(end) {
            let digits = match self.at(end + 1) {
                Some(b'+' | b'-') => end + 2,
                _ => end + 1,
            };
            if self.at(digits).is_some_and(|byte| byte.is_ascii_digit()) {
                return junk_or(Kind::Number, self.decimal(digits));
            }
            return (Kind::Junk, self.run(digits, continues_name), Meaning::Plain);
        }
        junk_or(Kind::Number, end)
    }

    /// The end of `digit(_?digit)*` at `index`.
    fn decimal(&self, index: usize) -> usize {
        let mut end = self.run(index, |byte| byte.is_ascii_digit());
        while end > index
            && self.at(end) == Some(b'_')
            && self.at(end + 1).is_some_and(|byte| byte.is_ascii_digit())
        {
            end = self.run(end + 1, |byte| byte.is_ascii_digit());
        }
        end
    }

    fn operator_end(&self, start: usize) -> usize {
        let mut end = start + 1;
        while let Some(byte) = self.at(end)
            && class(byte) == OPERATOR
            && !matches!((byte, self.at(end + 1)), (b'-', Some(b'-')) | (b'/', Some(b'*')))
        {
            end += 1;
        }
        end
    }

    fn line_end(&self, start: usize) -> usize {
        self.run(start, |byte| byte != b'\n' && byte != b'\r')
    }

    /// The end of a comment that may hold others, and whether it ends at all.
    fn block_comment_end(&self, start: usize) -> (usize, bool) {
        let mut depth = 1_usize;
        let mut index = start + 2;
        while let Some(found) = memchr(b'/', &self.text[index..]) {
            let slash = index + found;
            // A star is half of one mark only: `/*/` opens and does not close.
            if slash > index && self.text[slash - 1] == b'*' {
                depth -= 1;
                index = slash + 1;
                if depth == 0 {
                    return (index, true);
                }
            } else if self.at(slash + 1) == Some(b'*') {
                depth += 1;
                index = slash + 2;
            } else {
                index = slash + 1;
            }
        }
        (self.text.len(), false)
    }

    /// `"…"` whose opening quote is at `quote`.
    fn quoted_name(&self, quote: usize) -> (Kind, usize, Meaning) {
        let mut index = quote + 1;
        let (kind, end) = loop {
            match memchr(b'"', &self.text[index..]) {
                None => break (Kind::Junk, self.text.len()),
                Some(found) if self.at(index + found + 1) == Some(b'"') => index += found + 2,
                Some(found) => break (Kind::QuotedName, index + found + 1),
            }
        };
        (kind, end, Meaning::Plain)
    }

    /// A quoted literal whose opening quote is at `quote`, with its continuations on later lines, which are part of
    /// the same literal (manual, "String Constants").
    fn string(&mut self, kind: Kind, quote: usize, rule: Backslash) -> (Kind, usize, Meaning) {
        let escapes = match rule {
            Backslash::Escapes => true,
            Backslash::Stands => false,
            Backslash::ByMode => !self.mode.standard_conforming_strings,
        };
        let mut pieces = 0_usize;
        let mut watch = Watch::default();
        let mut open = quote;
        let mut end;
        loop {
            let Some(close) = self.string_end(open + 1, escapes) else {
                return (Kind::Junk, self.text.len(), Meaning::Plain);
            };
            let piece = &self.text[open + 1..close];
            end = close + 1;
            pieces += 1;
            let backslash = escapes && memchr(b'\\', piece).is_some();
            self.untrusted |= backslash && rule == Backslash::ByMode;
            let next = self.continuation(end);
            if pieces == 1 && next.is_none() && !backslash {
                return (kind, end, meaning_of(piece));
            }
            watch.feed(piece, escapes);
            match next {
                Some(quote) => open = quote,
                None => break,
            }
        }
        (kind, end, watch.meaning())
    }

    /// The place of the closing quote.
    fn string_end(&self, mut index: usize, escapes: bool) -> Option<usize> {
        loop {
            let rest = self.text.get(index..)?;
            let found = if escapes { memchr::memchr2(b'\'', b'\\', rest)? } else { memchr(b'\'', rest)? };
            let place = index + found;
            if self.text[place] == b'\\' || self.at(place + 1) == Some(b'\'') {
                index = place + 2;
            } else {
                return Some(place);
            }
        }
    }

    /// The opening quote that continues a literal which ended before `index`: white space with a line end in it,
    /// and `--` comments, may stand between.
    fn continuation(&self, mut index: usize) -> Option<usize> {
        let mut line_ended = false;
        loop {
            match self.at(index)? {
                b'\n' | b'\r' => line_ended = true,
                b'-' if self.at(index + 1) == Some(b'-') => {
                    index = self.line_end(index);
                    self.at(index)?;
                    continue;
                }
                b'\'' if line_ended => return Some(index),
                byte if class(byte) == SPACE => {}
                _ => return None,
            }
            index += 1;
        }
    }

    /// `$1`, `$tag$…$tag$`, or a lone dollar.
    fn dollar(&mut self, start: usize, second: Option<u8>) -> (Kind, usize, Meaning) {
        if second.is_some_and(|byte| byte.is_ascii_digit()) {
            let end = self.run(start + 1, |byte| byte.is_ascii_digit());
            if self.at(end).is_some_and(|byte| class(byte) == NAME_START) {
                return (Kind::Junk, self.run(end, continues_name), Meaning::Plain);
            }
            return (Kind::Param, end, Meaning::Plain);
        }
        let tag_end = self.run(start + 1, |byte| matches!(class(byte), NAME_START | DIGIT));
        if self.at(tag_end) != Some(b'$') {
            return (Kind::Other, start + 1, Meaning::Plain);
        }
        let tag = &self.text[start..=tag_end];
        self.high_dollar_tag |= !tag.is_ascii();
        let body = tag_end + 1;
        let (kind, end, meaning) = match memmem::find(&self.text[body..], tag) {
            None => (Kind::Junk, self.text.len(), Meaning::Plain),
            Some(length) => {
                (Kind::Str, body + length + tag.len(), meaning_of(&self.text[body..body + length]))
            }
        };
        (kind, end, meaning)
    }
}

/// True for comments that stay in the digest.
fn is_hint(comment: &[u8]) -> bool {
    comment.starts_with(b"/*+") || memmem::find(comment, b"pinion:").is_some()
}

/// Values that mean something as a whole.
const SETTINGS: [(&[u8], Meaning); 3] = [
    (b"role", Meaning::Identity),
    (b"session_authorization", Meaning::Identity),
    (b"search_path", Meaning::SearchPath),
];
const TEMP: &[u8] = b"pg_temp";

/// Of a literal in one piece, without backslash escapes.
#[inline]
fn meaning_of(value: &[u8]) -> Meaning {
    if let Some((_, meaning)) = SETTINGS.iter().find(|(name, _)| value.eq_ignore_ascii_case(name)) {
        return *meaning;
    }
    let underscore = TEMP.len() - b"_temp".len();
    let temp = memchr_iter(b'_', value).any(|place| {
        place >= underscore
            && value
                .get(place - underscore..)
                .and_then(|from| from.get(..TEMP.len()))
                .is_some_and(|word| word.eq_ignore_ascii_case(TEMP))
    });
    if temp { Meaning::Temp } else { Meaning::Plain }
}

/// [`meaning_of`] for a literal that comes in pieces or with escapes, byte by byte as the server would read it.
#[derive(Default)]
struct Watch {
    /// How much of `pg_temp` the last bytes were.
    matched: usize,
    temp: bool,
    head: [u8; 24],
    length: usize,
}

impl Watch {
    fn feed(&mut self, piece: &[u8], escapes: bool) {
        let mut bytes = piece.iter().copied().peekable();
        while let Some(byte) = bytes.next() {
            if byte == b'\'' {
                bytes.next_if_eq(&b'\'');
            }
            if byte != b'\\' || !escapes {
                self.push(u32::from(byte));
                continue;
            }
            let escaped = bytes.next().unwrap_or(b' ');
            let (radix, most, first) = match escaped {
                b'0'..=b'7' => (8, 2, u32::from(escaped - b'0')),
                b'x' => (16, 2, 0),
                b'u' => (16, 4, 0),
                b'U' => (16, 8, 0),
                b'b' | b'f' | b'n' | b'r' | b't' => (0, 0, 0x20),
                other => (0, 0, u32::from(other)),
            };
            let mut value = first;
            let mut digits = 0;
            while digits < most
                && let Some(digit) = bytes.peek().and_then(|byte| char::from(*byte).to_digit(radix))
            {
                value = value.wrapping_mul(radix).wrapping_add(digit);
                digits += 1;
                bytes.next();
            }
            if radix == 16 && digits == 0 {
                value = u32::from(escaped);
            } else if radix == 8 {
                value &= 0xff;
            }
            self.push(value);
        }
    }

    fn push(&mut self, value: u32) {
        let byte = u8::try_from(value).unwrap_or(0xff).to_ascii_lowercase();
        self.matched =
            if byte == TEMP[self.matched] { self.matched + 1 } else { usize::from(byte == TEMP[0]) };
        if self.matched == TEMP.len() {
            self.temp = true;
            self.matched = 0;
        }
        if let Some(slot) = self.head.get_mut(self.length) {
            *slot = byte;
        }
        self.length += 1;
    }

    fn meaning(&self) -> Meaning {
        if self.temp {
            return Meaning::Temp;
        }
        let whole = self.head.get(..self.length).unwrap_or_default();
        SETTINGS.iter().find(|(name, _)| *name == whole).map_or(Meaning::Plain, |(_, meaning)| *meaning)
    }
}
