//! Cuts statement text into tokens, in one pass, the way the scanners of MySQL and MariaDB do (`sql_lex.cc`).
//!
//! Digest, text for logs and facts all come from these tokens, so what is a literal here and what is not decides
//! everything. Where servers of different versions, or settings that are not known here, would cut a text differently,
//! the text is [`Lexer::untrusted`] and nothing is said about it.

use memchr::{memchr, memchr2, memmem};

/// How a session's server reads statement text. Part of every digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct LexMode {
    /// `ANSI_QUOTES` is in `sql_mode`: `"…"` is a name.
    pub ansi_quotes: bool,
    /// `NO_BACKSLASH_ESCAPES` is in `sql_mode`: a backslash in a string stands for itself.
    pub no_backslash_escapes: bool,
    /// Of `character_set_client`.
    pub charset: Charset,
}

impl LexMode {
    /// The mode for the values of `sql_mode` and `character_set_client`. `ANSI` and the modes that stood for other
    /// products' dialects until MySQL 8.0 bring `ANSI_QUOTES` with them (manual, "Combination SQL Modes").
    #[must_use]
    pub fn from_variables(sql_mode: &str, character_set_client: &str) -> Self {
        const ANSI: [&str; 7] = ["ANSI_QUOTES", "ANSI", "DB2", "MAXDB", "MSSQL", "ORACLE", "POSTGRESQL"];
        let has = |names: &[&str]| {
            sql_mode.split(',').any(|one| names.iter().any(|name| one.trim().eq_ignore_ascii_case(name)))
        };
        Self {
            ansi_quotes: has(&ANSI),
            no_backslash_escapes: has(&["NO_BACKSLASH_ESCAPES"]),
            charset: Charset::of(character_set_client),
        }
    }

    /// One byte for the digest, under 0x80.
    pub(super) const fn bits(self) -> u8 {
        self.ansi_quotes as u8 | (self.no_backslash_escapes as u8) << 1 | (self.charset as u8) << 2
    }
}

/// What the bytes over 0x7f of a text may be part of. Families of character sets, by what matters to the scanner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[repr(u8)]
pub enum Charset {
    /// `utf8mb4`, `utf8mb3`.
    #[default]
    Utf8 = 0,
    /// `latin1` and all others of one byte a character.
    Single = 1,
    /// `sjis`, `cp932`: a character's second byte may be a backslash or a backtick.
    Sjis = 2,
    /// `gbk`, likewise.
    Gbk = 3,
    /// `big5`, likewise.
    Big5 = 4,
    /// `gb18030`, likewise, and its characters of four bytes have digits in them.
    Gb18030 = 5,
    /// `ujis`, `eucjpms`.
    Ujis = 6,
    /// `gb2312`.
    Gb2312 = 7,
    /// `euckr`.
    Euckr = 8,
    /// Any other: no text in it is understood.
    Unknown = 9,
}

impl Charset {
    /// The family of a character set's name as the server reports it (manual, "Supported Character Sets").
    #[must_use]
    pub fn of(name: &str) -> Self {
        const SINGLE: [&str; 25] = [
            "armscii8", "ascii", "binary", "cp1250", "cp1251", "cp1256", "cp1257", "cp850", "cp852", "cp866",
            "dec8", "geostd8", "greek", "hebrew", "hp8", "keybcs2", "koi8r", "koi8u", "latin1", "latin2",
            "latin5", "latin7", "macce", "macroman", "tis620",
        ];
        let name = name.to_ascii_lowercase();
        match &*name {
            "utf8" | "utf8mb3" | "utf8mb4" => Self::Utf8,
            "sjis" | "cp932" => Self::Sjis,
            "gbk" => Self::Gbk,
            "big5" => Self::Big5,
            "gb18030" => Self::Gb18030,
            "ujis" | "eucjpms" => Self::Ujis,
            "gb2312" => Self::Gb2312,
            "euckr" => Self::Euckr,
            name if SINGLE.contains(&name) => Self::Single,
            // In swe7 a letter has the code of the backslash.
            _ => Self::Unknown,
        }
    }

    /// True when a longer character may have an ASCII byte that a string's end is looked for by.
    const fn hides_quotes(self) -> bool {
        matches!(self, Self::Sjis | Self::Gbk | Self::Big5 | Self::Gb18030)
    }

    /// Bytes of the character of several bytes that `rest` starts with; 0 when it starts with none.
    fn wide(self, rest: &[u8]) -> usize {
        let (Some(&one), Some(&two)) = (rest.first(), rest.get(1)) else { return 0 };
        let three = rest.get(2).copied().unwrap_or(0);
        let four = rest.get(3).copied().unwrap_or(0);
        let gbk = |byte| matches!(byte, 0x81..=0xfe);
        match self {
            Self::Utf8 => {
                let length = match one {
                    0xc2..=0xdf => 2,
                    0xe0..=0xef => 3,
                    0xf0..=0xf4 => 4,
                    _ => return 0,
                };
                let valid = rest.get(..length).is_some_and(|bytes| std::str::from_utf8(bytes).is_ok());
                if valid { length } else { 0 }
            }
            Self::Sjis => {
                usize::from(
                    matches!(one, 0x81..=0x9f | 0xe0..=0xfc) && matches!(two, 0x40..=0x7e | 0x80..=0xfc),
                ) * 2
            }
            Self::Gbk => usize::from(gbk(one) && matches!(two, 0x40..=0x7e | 0x80..=0xfe)) * 2,
            Self::Big5 => {
                usize::from(matches!(one, 0xa1..=0xf9) && matches!(two, 0x40..=0x7e | 0xa1..=0xfe)) * 2
            }
            Self::Gb18030 => match (one, two) {
                (0x81..=0xfe, 0x40..=0x7e | 0x80..=0xfe) => 2,
                (0x81..=0xfe, b'0'..=b'9') if gbk(three) && four.is_ascii_digit() => 4,
                _ => 0,
            },
            Self::Ujis => match (one, two) {
                (0x8e, 0xa1..=0xdf) | (0xa1..=0xfe, 0xa1..=0xfe) => 2,
                (0x8f, 0xa1..=0xfe) if matches!(three, 0xa1..=0xfe) => 3,
                _ => 0,
            },
            Self::Gb2312 => usize::from(matches!(one, 0xa1..=0xf7) && matches!(two, 0xa1..=0xfe)) * 2,
            Self::Euckr => {
                let second = matches!(two, 0x41..=0x5a | 0x61..=0x7a | 0x81..=0xfe);
                usize::from(gbk(one) && second) * 2
            }
            Self::Single | Self::Unknown => 0,
        }
    }
}

/// Kinds of token. The numbers stand in the digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// Keyword or unquoted identifier.
    Word = 1,
    /// `` `…` ``, or `"…"` under `ANSI_QUOTES`.
    QuotedName = 2,
    /// `'…'`, or `"…"`.
    Str = 3,
    /// `N'…'`.
    National = 4,
    /// `B'…'`, `0b…`.
    Bits = 5,
    /// `X'…'`, `0x…`.
    Hex = 6,
    /// Any other number.
    Number = 7,
    /// `?`.
    Param = 8,
    /// `@name`, its name quoted or not; also the host of an account.
    UserVariable = 9,
    /// `@@name`.
    SystemVariable = 10,
    /// Operators, and the dot.
    Operator = 11,
    /// One other character.
    Other = 12,
    /// A comment that somebody means something by: `/*+ … */`, or one with `pinion:` in it.
    Hint = 13,
    /// `/*!`, `/*!50110`, `/*M!`: what follows is executed by some servers, or by all.
    ExecutableStart = 14,
    /// The `*/` of such a comment.
    ExecutableEnd = 15,
    /// An executable comment that no server executes, whole: its version is none that can be.
    NeverExecuted = 16,
    /// What no grammar takes: something that never ends, digits that are none.
    Junk = 17,
}

impl Kind {
    /// True for what a digest replaces.
    pub(super) const fn is_literal(self) -> bool {
        matches!(self, Self::Str | Self::National | Self::Bits | Self::Hex | Self::Number)
    }
}

/// One token: `text[start..end]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Token {
    pub(super) kind: Kind,
    pub(super) start: usize,
    pub(super) end: usize,
    /// White space or a comment stood before it.
    pub(super) spaced: bool,
}

/// The tokens of one text, in order; every byte but white space and plain comments is in one of them.
pub(super) struct Lexer<'a> {
    text: &'a [u8],
    pos: usize,
    mode: LexMode,
    /// Some server may cut this text otherwise.
    pub(super) untrusted: bool,
    /// Within an executable comment: where it has to end, when some servers skip it.
    executable: Option<Option<usize>>,
    /// A name has just ended: a dot here is one between names.
    after_name: bool,
    /// Such a dot was the last token: what follows is a name, even where it starts with a digit.
    after_dot: bool,
}

/// Versions of executable comments under this are executed by all servers. MariaDB skips those from here to 99999
/// (MariaDB Knowledge Base, "Comment Syntax").
const EXECUTED_BY_ALL_BELOW: &[u8] = b"50700";
/// No server will have a version of this or more: dumps mark with it what only their own client reads.
const EXECUTED_BY_NONE_FROM: &[u8] = b"900000";

const SPACE: u8 = 1;
const LETTER: u8 = 2;
const DIGIT: u8 = 3;
const HIGH: u8 = 4;

/// What a token can start with; 0 is anything else.
static CLASSES: [u8; 256] = {
    let mut classes = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        classes[byte] = match byte as u8 {
            b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c => SPACE,
            b'a'..=b'z' | b'A'..=b'Z' | b'_' | b'$' => LETTER,
            b'0'..=b'9' => DIGIT,
            0x80..=0xff => HIGH,
            _ => 0,
        };
        byte += 1;
    }
    classes
};

const fn class(byte: u8) -> u8 {
    CLASSES[byte as usize]
}

const fn continues_name(byte: u8) -> bool {
    matches!(class(byte), LETTER | DIGIT | HIGH)
}

impl<'a> Lexer<'a> {
    pub(super) fn new(text: &'a [u8], mode: LexMode) -> Self {
        Self {
            text,
            pos: 0,
            mode,
            untrusted: mode.charset == Charset::Unknown,
            executable: None,
            after_name: false,
            after_dot: false,
        }
    }

    fn at(&self, index: usize) -> Option<u8> {
        self.text.get(index).copied()
    }

    fn rest(&self, index: usize) -> &'a [u8] {
        self.text.get(index..).unwrap_or_default()
    }

    /// The end of the run from `index` on for which `keep` holds.
    fn run(&self, index: usize, keep: impl Fn(u8) -> bool) -> usize {
        let rest = self.rest(index);
        index + rest.iter().position(|byte| !keep(*byte)).unwrap_or(rest.len())
    }

    /// The next token; `None` at the end.
    #[inline]
    pub(super) fn next(&mut self) -> Option<Token> {
        let mut spaced = false;
        loop {
            let start = self.pos;
            let Some(first) = self.at(start) else {
                self.untrusted |= self.executable.is_some();
                return None;
            };
            let (kind, end) = match class(first) {
                SPACE => {
                    self.pos = start + 1;
                    (spaced, self.after_name, self.after_dot) = (true, false, false);
                    continue;
                }
                LETTER | HIGH => self.word(start, first),
                DIGIT => self.number_or_name(start),
                _ => {
                    let second = self.at(start + 1);
                    let comment = match (first, second) {
                        (b'#', _) => Some(self.line_comment(start)),
                        (b'-', Some(b'-')) if self.begins_comment(start + 2) => {
                            Some(self.line_comment(start))
                        }
                        (b'/', Some(b'*')) => Some(self.block_comment(start)),
                        _ => None,
                    };
                    match comment {
                        Some((None, end)) => {
                            self.pos = end;
                            (spaced, self.after_name, self.after_dot) = (true, false, false);
                            continue;
                        }
                        Some((Some(kind), end)) => (kind, end),
                        None => self.symbol(start, first, second),
                    }
                }
            };
            self.pos = end;
            self.after_name = matches!(kind, Kind::Word | Kind::QuotedName | Kind::SystemVariable);
            return Some(Token { kind, start, end, spaced });
        }
    }

    /// Anything that starts with neither a letter nor a digit and is no comment.
    fn symbol(&mut self, start: usize, first: u8, second: Option<u8>) -> (Kind, usize) {
        let after_name = self.after_name;
        self.after_dot = false;
        match first {
            b'\'' => self.string(Kind::Str, start),
            b'"' if !self.mode.ansi_quotes => self.string(Kind::Str, start),
            b'"' | b'`' => self.quoted_name(start, first),
            b'@' => self.variable(start, second),
            b'?' if !second.is_some_and(continues_name) => (Kind::Param, start + 1),
            b'.' if after_name && second.is_some_and(continues_name) => {
                self.after_dot = true;
                (Kind::Operator, start + 1)
            }
            b'.' if second.is_some_and(|byte| byte.is_ascii_digit()) => {
                (Kind::Number, self.exponent(self.digits(start + 1)))
            }
            b'*' if second == Some(b'/') && self.executable.is_some() => {
                if let Some(Some(end)) = self.executable.take() {
                    self.untrusted |= end != start;
                }
                (Kind::ExecutableEnd, start + 2)
            }
            b';' => {
                // The server reads on as if it were in no comment.
                self.untrusted |= self.executable.is_some();
                (Kind::Other, start + 1)
            }
            0 => {
                // Some comments and names end here, and the text may.
                self.untrusted = true;
                (Kind::Other, start + 1)
            }
            _ => match operator(self.rest(start)) {
                0 => (Kind::Other, start + 1),
                length => (Kind::Operator, start + length),
            },
        }
    }

    /// A word, or a literal that begins with a letter.
    #[inline]
    fn word(&mut self, start: usize, first: u8) -> (Kind, usize) {
        let after_dot = std::mem::take(&mut self.after_dot);
        if !after_dot && self.at(start + 1) == Some(b'\'') {
            match first {
                b'n' | b'N' => return self.string(Kind::National, start + 1),
                b'x' | b'X' => return self.coded(Kind::Hex, start + 2, |byte| byte.is_ascii_hexdigit()),
                b'b' | b'B' => return self.coded(Kind::Bits, start + 2, |byte| matches!(byte, b'0' | b'1')),
                _ => {}
            }
        }
        (Kind::Word, self.name_end(start))
    }

    /// The end of an unquoted name.
    #[inline]
    fn name_end(&mut self, start: usize) -> usize {
        let mut index = start;
        loop {
            index = self.run(index, |byte| matches!(class(byte), LETTER | DIGIT));
            match self.at(index) {
                Some(byte) if class(byte) == HIGH => match self.mode.charset.wide(self.rest(index)) {
                    // Whether it is a letter, white space or nothing depends on the character set.
                    0 => {
                        self.untrusted = true;
                        index += 1;
                    }
                    length => index += length,
                },
                _ => return index,
            }
        }
    }

    /// `X'…'`, `B'…'`, from after the quote.
    fn coded(&self, kind: Kind, digits: usize, keep: impl Fn(u8) -> bool) -> (Kind, usize) {
        let end = self.run(digits, keep);
        if self.at(end) == Some(b'\'') { (kind, end + 1) } else { (Kind::Junk, end) }
    }

    /// A number, or a name that begins with a digit (manual, "Schema Object Names").
    fn number_or_name(&mut self, start: usize) -> (Kind, usize) {
        if std::mem::take(&mut self.after_dot) {
            return (Kind::Word, self.name_end(start));
        }
        if self.at(start) == Some(b'0') {
            let coded = match self.at(start + 1) {
                Some(b'x') => Some((Kind::Hex, self.run(start + 2, |byte| byte.is_ascii_hexdigit()))),
                Some(b'b') => Some((Kind::Bits, self.run(start + 2, |byte| matches!(byte, b'0' | b'1')))),
                _ => None,
            };
            if let Some((kind, end)) = coded
                && end > start + 2
                && !self.at(end).is_some_and(continues_name)
            {
                return (kind, end);
            }
        }
        let end = self.digits(start);
        match self.at(end) {
            Some(b'e' | b'E') => match self.exponent(end) {
                // No exponent, so it is a name.
                after if after == end => (Kind::Word, self.name_end(end)),
                after => (Kind::Number, after),
            },
            Some(byte) if continues_name(byte) => (Kind::Word, self.name_end(end)),
            Some(b'.') => (Kind::Number, self.exponent(self.digits(end + 1))),
            _ => (Kind::Number, end),
        }
    }

    fn digits(&self, index: usize) -> usize {
        self.run(index, |byte| byte.is_ascii_digit())
    }

    /// The end of an exponent that may stand at `index`; `index` where there is none.
    fn exponent(&self, index: usize) -> usize {
        let Some(b'e' | b'E') = self.at(index) else { return index };
        let sign = usize::from(matches!(self.at(index + 1), Some(b'+' | b'-')));
        let end = self.digits(index + 1 + sign);
        if end > index + 1 + sign { end } else { index }
    }

    /// `@name`, `@'name'`, `@@name`.
    fn variable(&mut self, start: usize, second: Option<u8>) -> (Kind, usize) {
        match second {
            Some(b'@') if self.at(start + 2) == Some(b'`') => {
                let (kind, end) = self.quoted_name(start + 2, b'`');
                (if kind == Kind::QuotedName { Kind::SystemVariable } else { kind }, end)
            }
            Some(b'@') => {
                let end = self.name_end(start + 2);
                (if end > start + 2 { Kind::SystemVariable } else { Kind::Junk }, end)
            }
            Some(quote @ (b'\'' | b'"' | b'`')) => {
                let named = quote == b'`' || quote == b'"' && self.mode.ansi_quotes;
                let (kind, end) = if named {
                    self.quoted_name(start + 1, quote)
                } else {
                    self.string(Kind::Str, start + 1)
                };
                (if kind == Kind::Junk { kind } else { Kind::UserVariable }, end)
            }
            _ => {
                let end = self.run(start + 1, |byte| matches!(class(byte), LETTER | DIGIT) || byte == b'.');
                // The scanner takes letters of the character set, whichever those are.
                self.untrusted |= self.at(end).is_some_and(|byte| class(byte) == HIGH);
                (Kind::UserVariable, end)
            }
        }
    }

    /// A name in quotes whose opening one is at `quote`.
    fn quoted_name(&mut self, quote: usize, mark: u8) -> (Kind, usize) {
        let mut index = quote + 1;
        loop {
            let Some(byte) = self.at(index) else { return (Kind::Junk, self.text.len()) };
            if byte == mark {
                if self.at(index + 1) != Some(mark) {
                    return (Kind::QuotedName, index + 1);
                }
                index += 2;
            } else if class(byte) == HIGH && self.mode.charset != Charset::Single {
                match self.mode.charset.wide(self.rest(index)) {
                    // The scanner skips as many bytes as the first one announces, a quote among them.
                    0 => {
                        self.untrusted = true;
                        index += 1;
                    }
                    length => index += length,
                }
            } else {
                self.untrusted |= byte == 0;
                index += 1;
            }
        }
    }

    /// A string whose opening quote is at `quote`.
    #[inline]
    fn string(&mut self, kind: Kind, quote: usize) -> (Kind, usize) {
        let Some(mark) = self.at(quote) else { return (Kind::Junk, quote) };
        let escapes = !self.mode.no_backslash_escapes;
        if self.mode.charset.hides_quotes() {
            return self.string_by_character(kind, quote, mark, escapes);
        }
        let mut index = quote + 1;
        loop {
            let rest = self.rest(index);
            let found = if escapes { memchr2(mark, b'\\', rest) } else { memchr(mark, rest) };
            let Some(found) = found else { return (Kind::Junk, self.text.len()) };
            let place = index + found;
            if self.at(place) == Some(mark) {
                if self.at(place + 1) != Some(mark) {
                    return (kind, place + 1);
                }
                index = place + 2;
            } else if place + 1 < self.text.len() {
                index = place + 2;
            } else {
                return (Kind::Junk, self.text.len());
            }
        }
    }

    fn string_by_character(&mut self, kind: Kind, quote: usize, mark: u8, escapes: bool) -> (Kind, usize) {
        let mut index = quote + 1;
        loop {
            let Some(byte) = self.at(index) else { return (Kind::Junk, self.text.len()) };
            if class(byte) == HIGH {
                match self.mode.charset.wide(self.rest(index)) {
                    0 => {
                        // Half a character takes nothing with it, by the servers that were looked at.
                        let katakana = self.mode.charset == Charset::Sjis && matches!(byte, 0xa1..=0xdf);
                        self.untrusted |= !katakana;
                        index += 1;
                    }
                    length => index += length,
                }
            } else if byte == mark {
                if self.at(index + 1) != Some(mark) {
                    return (kind, index + 1);
                }
                index += 2;
            } else if byte == b'\\' && escapes {
                match self.at(index + 1) {
                    None => return (Kind::Junk, self.text.len()),
                    // The scanner skips one byte, and so may read the rest of a character by itself.
                    Some(escaped) => self.untrusted |= class(escaped) == HIGH,
                }
                index += 2;
            } else {
                index += 1;
            }
        }
    }

    /// After two dashes: white space, a control character or the end (manual, "'--' as the Start of a Comment").
    fn begins_comment(&self, index: usize) -> bool {
        self.at(index).is_none_or(|byte| class(byte) == SPACE || byte.is_ascii_control())
    }

    /// A comment to the line's end. `None` for what is skipped.
    fn line_comment(&mut self, start: usize) -> (Option<Kind>, usize) {
        let rest = self.rest(start);
        let end = start + memchr(b'\n', rest).unwrap_or(rest.len());
        let comment = self.text.get(start..end).unwrap_or_default();
        // There some servers take the comment to end.
        self.untrusted |= memchr(0, comment).is_some();
        (is_addressed(comment).then_some(Kind::Hint), end)
    }

    /// Anything that starts with `/*`. `None` for what is skipped.
    fn block_comment(&mut self, start: usize) -> (Option<Kind>, usize) {
        let inside = self.rest(start + 2);
        if inside.starts_with(b"!") {
            return self.executable_comment(start, start + 3);
        }
        if inside.starts_with(b"M!") {
            return self.executable_comment(start, start + 4);
        }
        let Some(length) = memmem::find(inside, b"*/") else { return (Some(Kind::Junk), self.text.len()) };
        let end = start + 2 + length + 2;
        let comment = inside.get(..length).unwrap_or_default();
        if comment.starts_with(b"+") {
            // MySQL's scanner of hints knows quotes, other scanners of comments do not.
            self.untrusted |= ends_within_quotes(comment);
            return (Some(Kind::Hint), end);
        }
        (is_addressed(comment).then_some(Kind::Hint), end)
    }

    /// The start of `/*!`, `/*!50110`, `/*M!` (manual, "Comments"; MariaDB Knowledge Base, "Comment Syntax").
    fn executable_comment(&mut self, start: usize, after_mark: usize) -> (Option<Kind>, usize) {
        self.untrusted |= self.executable.is_some();
        let digits = self.digits(after_mark).min(after_mark + 6) - after_mark;
        // Fewer than five digits are no version but part of the statement.
        let digits = if digits < 5 { 0 } else { digits };
        let content = after_mark + digits;
        let mark = self.text.get(start..content).unwrap_or_default();
        if executed_by_all(mark) {
            self.executable = Some(None);
            return (Some(Kind::ExecutableStart), content);
        }
        let rest = self.rest(content);
        let Some(length) = memmem::find(rest, b"*/") else {
            self.untrusted = true;
            return (Some(Kind::Junk), self.text.len());
        };
        // Servers that skip it differ in whether comments nest.
        let inside = rest.get(..length).unwrap_or_default();
        self.untrusted |= memmem::find(inside, b"/*").is_some();
        let version = self.text.get(after_mark..content).unwrap_or_default();
        if version.len() == 6 && version >= EXECUTED_BY_NONE_FROM {
            return (Some(Kind::NeverExecuted), content + length + 2);
        }
        self.executable = Some(Some(content + length));
        (Some(Kind::ExecutableStart), content)
    }
}

/// True for the start of an executable comment that every server executes: one with no version, or an old one.
pub(super) fn executed_by_all(mark: &[u8]) -> bool {
    let version = mark.strip_prefix(b"/*!");
    version.is_some_and(|version| version.is_empty() || version.len() == 5 && version < EXECUTED_BY_ALL_BELOW)
}

/// Bytes of the operator that `rest` starts with, the longest there is; 0 for none.
fn operator(rest: &[u8]) -> usize {
    const LONG: [&[u8]; 12] =
        [b"->>", b"<=>", b":=", b"->", b"<=", b">=", b"<>", b"!=", b"<<", b">>", b"&&", b"||"];
    if let Some(long) = LONG.iter().find(|long| rest.starts_with(long)) {
        return long.len();
    }
    usize::from(matches!(
        rest.first(),
        Some(b'+' | b'-' | b'*' | b'/' | b'%' | b'<' | b'>' | b'=' | b'!' | b'~' | b'^' | b'&' | b'|' | b'.')
    ))
}

/// True for comments that are meant for Pinion.
fn is_addressed(comment: &[u8]) -> bool {
    memmem::find(comment, b"pinion:").is_some()
}

/// True when a quote is open at the end.
fn ends_within_quotes(text: &[u8]) -> bool {
    let mut open = None;
    for byte in text {
        match open {
            Some(mark) if mark == byte => open = None,
            None if matches!(byte, b'"' | b'\'' | b'`') => open = Some(byte),
            _ => {}
        }
    }
    open.is_some()
}
