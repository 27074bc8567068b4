//! Any text through the MySQL classifier, in each way of reading literals.
//!
//! Input: mode, seed of the change, text.
//!
//! Properties: no panic; the same text has the same digest and facts whether it was seen before or not; when a text with
//! other literals has the same digest and both are understood, its facts are the same, found anew or remembered; no
//! statement stands outside of the text, and none within another.

use std::sync::Arc;

use pinion::protocol::{
    Facts, StatementKind,
    mysql::classify::{self, Charset, Classifier, DIGEST_TEXT_LIMIT, Details, LexMode},
};

use super::wire::{Random, split};

fn mode_of(byte: u8) -> LexMode {
    let charset = match byte >> 2 & 7 {
        0..=3 => Charset::Utf8,
        4 => Charset::of("sjis"),
        5 => Charset::of("gbk"),
        6 => Charset::of("big5"),
        _ => Charset::of("latin1"),
    };
    LexMode { ansi_quotes: byte & 1 != 0, no_backslash_escapes: byte & 2 != 0, charset }
}

/// The body.
pub fn run(data: &[u8]) {
    let ([mode, seed], text) = split(data);
    let mode = mode_of(mode);
    let known = Classifier::new(8);
    let first = known.facts(text, mode);
    assert_eq!(first, known.facts(text, mode), "the second time");
    assert!(first.facts.digest_text.len() <= DIGEST_TEXT_LIMIT);
    let mut end = 0;
    for statement in classify::statements(text, mode).unwrap_or_default() {
        assert!(end <= statement.start && statement.start < statement.end && statement.end <= text.len());
        end = statement.end;
    }
    let hint = classify::hint(text, mode);
    assert!(hint.len() <= text.len());
    if let Some((_, id)) = classify::kill_target(text, mode) {
        let digits = id.to_string();
        assert!(text.windows(digits.len()).any(|bytes| bytes == digits.as_bytes()) || text.contains(&b'0'));
    }
    for (name, value) in classify::user_variable_assignments(text, mode).unwrap_or_default() {
        assert!(name.len() + value.len() <= 4 * text.len(), "{name}");
    }
    let names = [classify::used_schema(text, mode), classify::connection_id_column(text, mode)];
    assert!(names.iter().flatten().all(|name| name.len() <= text.len() + 2));

    let mut random = Random::new(seed.into());
    for _ in 0..4 {
        let changed = change_literal(text, &mut random);
        let second = known.facts(&changed, mode);
        if second.digest != first.digest {
            continue;
        }
        let anew = Classifier::new(8).facts(&changed, mode);
        if understood(&first.facts) && understood(&anew.facts) {
            let shown = || format!("{} and {}", text.escape_ascii(), changed.escape_ascii());
            let same = |one: (&Facts, &Details), other: (&Facts, &Details), how: &str| {
                assert_eq!(unspaced(one.0), unspaced(other.0), "{how} of {}", shown());
                assert_eq!(one.1, other.1, "{how} of {}", shown());
            };
            same((&first.facts, &first.details), (&anew.facts, &anew.details), "anew");
            same((&second.facts, &second.details), (&anew.facts, &anew.details), "remembered");
        }
    }
}

fn understood(facts: &Arc<Facts>) -> bool {
    facts.kind != StatementKind::Unknown
}

/// White space shows in the text for logs, and not in the digest.
fn unspaced(facts: &Facts) -> Facts {
    Facts { digest_text: facts.digest_text.replace(' ', ""), ..facts.clone() }
}

/// What may come into a literal: words that mean something somewhere, and bytes that end things.
const VALUES: [&[u8]; 14] = [
    b"",
    b"ANSI_QUOTES",
    b"ucs2",
    b"*",
    b"utf8mb4",
    b"1",
    b"x",
    b"''",
    b"\\'",
    b"\\\\",
    b"-- ",
    b"/*",
    b"\"",
    b"\x95",
];

/// `text` with the inside of one literal, or one number, replaced or grown. Where a literal begins is guessed, so that
/// a wrong guess tries the scanner too.
fn change_literal(text: &[u8], random: &mut Random) -> Vec<u8> {
    let quotes: Vec<usize> = (0..text.len()).filter(|at| matches!(text[*at], b'\'' | b'"')).collect();
    let digits: Vec<usize> = (0..text.len()).filter(|at| text[*at].is_ascii_digit()).collect();
    let mut out = text.to_vec();
    if !digits.is_empty() && (quotes.len() < 2 || random.below(4) == 0) {
        out[digits[random.below(digits.len())]] = b'0' + random.below(10) as u8;
    } else if quotes.len() > 1 {
        let at = random.below(quotes.len() - 1);
        let inside = quotes[at] + 1..quotes[at + 1];
        let value = VALUES[random.below(VALUES.len())];
        let kept = if random.below(2) == 0 { inside.len() } else { 0 };
        out.splice(inside.start + kept..inside.end, value.iter().copied());
    }
    out
}

/// Texts that have something to them; each is tried in a mode of its own.
const TEXTS: [&str; 48] = [
    "",
    "SELECT 1",
    "select * from t where a = 'x' and b = 17 and c = 1.5e3",
    "INSERT INTO t (a, b) VALUES ('it''s', \"a\\tb\"), (?, 0x1F), (b'01', N'x'), (_latin1'y', x'ff')",
    "INSERT INTO t VALUES (1) ON DUPLICATE KEY UPDATE a = VALUES(a)",
    "UPDATE t SET a = 'b' WHERE c = \"d\" LIMIT 5",
    "DELETE FROM t WHERE a IN (1, 2, 3)",
    "SET sql_mode = 'ANSI_QUOTES'",
    "SET NAMES 'latin1' COLLATE 'latin1_bin'",
    "SET CHARACTER SET utf8mb4",
    "SET @a = 5, @`b c` = 'x', @@session.wait_timeout = 7",
    "SET @a := @b + 1",
    "SET GLOBAL read_only = 1",
    "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED",
    "SET PASSWORD = PASSWORD('x')",
    "SET autocommit = 0",
    "SELECT @x := 1",
    "SELECT GET_LOCK('a', 10), RELEASE_LOCK('a')",
    "SELECT LAST_INSERT_ID(), FOUND_ROWS(), ROW_COUNT(), CONNECTION_ID()",
    "SELECT CONNECTION_ID() AS `me`",
    "SELECT SQL_CALC_FOUND_ROWS a FROM t LIMIT 1",
    "SELECT a FROM t FOR UPDATE",
    "SELECT a FROM t LOCK IN SHARE MODE",
    "SELECT a INTO OUTFILE '/tmp/x' FROM t",
    "SELECT a INTO @v FROM t",
    "CREATE TEMPORARY TABLE t (a int)",
    "DROP TEMPORARY TABLE t",
    "LOCK TABLES t READ, u WRITE",
    "UNLOCK TABLES",
    "FLUSH TABLES WITH READ LOCK",
    "PREPARE p FROM 'SELECT ?'",
    "EXECUTE p USING @a",
    "DEALLOCATE PREPARE p",
    "HANDLER t OPEN",
    "XA START 'x'",
    "CALL p(1, @out)",
    "BEGIN; SELECT 1; COMMIT",
    "START TRANSACTION READ ONLY",
    "COMMIT AND CHAIN",
    "KILL QUERY 7",
    "KILL 0x10",
    "USE `my db`",
    "LOAD DATA LOCAL INFILE 'f' INTO TABLE t",
    "SELECT /*!40101 1 */, /*!99999 2 */ /*M! 3 */ -- comment\n # another\n 4",
    "SELECT 'a\\'; DROP TABLE t; -- '",
    "CREATE PROCEDURE p() BEGIN SELECT 1; SELECT 2; END",
    "/* pinion: primary */ SELECT `a``b` FROM `c`.`d`",
    "SELEC 1",
];

/// The committed corpus.
pub fn seeds() -> Vec<(String, Vec<u8>)> {
    let texts = TEXTS.iter().enumerate().map(|(at, text)| {
        let mode = if text.contains('\\') { 2 } else { (at % 4) as u8 };
        (format!("text_{at:02}"), [&[mode, at as u8], text.as_bytes()].concat())
    });
    let bytes: [(&str, &[u8]); 9] = [
        ("open_string", b"\0\x01SELECT 'never ends"),
        ("open_comment", b"\0\x01SELECT /* never ends"),
        ("open_executable", b"\0\x01SELECT /*!50000 never ends"),
        ("open_name", b"\0\x01SELECT `never ends"),
        ("not_utf8", b"\0\x01SELECT '\xe9\xff' AS `\xc3\x28`"),
        ("sjis", b"\x10\x01SELECT '\x95\x5c' , 'x'"),
        ("gbk", b"\x14\x01SELECT '\xbf\x27 OR 1=1"),
        ("big5", b"\x18\x01SELECT '\xa4\x5c'; SELECT 2"),
        ("zero", b"\0\x01SELECT 1\0; SELECT 2"),
    ];
    texts.chain(bytes.iter().map(|(name, bytes)| ((*name).to_owned(), bytes.to_vec()))).collect()
}
