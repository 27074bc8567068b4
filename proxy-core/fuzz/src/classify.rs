//! Any text through the classifier, in each way of reading literals.
//!
//! Input: mode, seed of the change, text.
//!
//! Properties: no panic; the same text has the same digest and facts whether it was seen before or not; when a text
//! with other literals has the same digest and the grammar reads both, its facts are the same, found by the grammar
//! anew or remembered.

use std::sync::Arc;

use pinion::protocol::{
    Facts, StatementKind,
    postgres::classify::{Classifier, DIGEST_TEXT_LIMIT, LexMode},
};

use super::wire::{Random, split};

/// The body.
pub fn run(data: &[u8]) {
    let ([mode, seed], text) = split(data);
    let mode = LexMode { standard_conforming_strings: mode & 1 == 0, ascii_safe_encoding: mode & 2 == 0 };
    let known = Classifier::new(8);
    let first = known.facts(text, mode);
    assert_eq!(first, known.facts(text, mode), "the second time");
    assert!(first.facts.digest_text.len() <= DIGEST_TEXT_LIMIT);
    let mut random = Random::new(seed.into());
    for _ in 0..4 {
        let changed = change_literal(text, &mut random);
        let second = known.facts(&changed, mode);
        if second.digest != first.digest {
            continue;
        }
        let anew = Classifier::new(8).facts(&changed, mode).facts;
        if understood(&first.facts) && understood(&anew) {
            let shown = || format!("{} and {}", text.escape_ascii(), changed.escape_ascii());
            assert_eq!(unspaced(&first.facts), unspaced(&anew), "of {}", shown());
            assert_eq!(unspaced(&second.facts), unspaced(&anew), "remembered of {}", shown());
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

/// What may come into a literal: words that mean something to some function, and bytes that end things.
const VALUES: [&[u8]; 14] = [
    b"",
    b"pg_temp",
    b"role",
    b"search_path",
    b"session_authorization",
    b"1",
    b"x",
    b"''",
    b"\\'",
    b"\\\\",
    b"--",
    b"/*",
    b"$$",
    b"\xe9",
];

/// `text` with the inside of one literal, or one number, replaced or grown. Where a literal begins is guessed, so that
/// a wrong guess tries the scanner too.
fn change_literal(text: &[u8], random: &mut Random) -> Vec<u8> {
    let quotes: Vec<usize> = (0..text.len()).filter(|at| matches!(text[*at], b'\'' | b'$')).collect();
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
const TEXTS: [&str; 44] = [
    "",
    "SELECT 1",
    "select * from t where a = 'x' and b = 17 and c = 1.5e3",
    "INSERT INTO t (a, b) VALUES ('it''s', E'tab\\t'), ($1, $2)",
    "UPDATE t SET a = $$dollar$$ WHERE b = $tag$a $$ b$tag$",
    "DELETE FROM t WHERE a IN (1, 2, 3) RETURNING *",
    "SET search_path = 'pg_temp', public",
    "SET search_path TO app",
    "SELECT set_config('search_path', 'pg_temp', false)",
    "SELECT set_config('role', 'admin', true)",
    "SET SESSION AUTHORIZATION 'x'",
    "RESET ALL",
    "DISCARD ALL",
    "BEGIN; SET LOCAL x.y = '1'; COMMIT",
    "CREATE TEMP TABLE t (a int)",
    "CREATE TABLE pg_temp.t (a int)",
    "CREATE TEMPORARY SEQUENCE s",
    "SELECT 1 INTO TEMP t",
    "LOCK TABLE t",
    "SELECT pg_advisory_lock(1)",
    "SELECT pg_catalog.pg_advisory_xact_lock(7, 8)",
    "LISTEN channel",
    "UNLISTEN *",
    "DECLARE c CURSOR WITH HOLD FOR SELECT 1",
    "PREPARE p (int) AS SELECT $1",
    "EXECUTE p (1)",
    "DEALLOCATE p",
    "DEALLOCATE ALL",
    "DO $$ BEGIN PERFORM 1; END $$",
    "CALL p(1)",
    "SELECT currval('s'), lastval()",
    "SELECT nextval('s'::regclass)",
    "LOAD 'library'",
    "COPY t FROM STDIN",
    "COPY (SELECT 1) TO STDOUT",
    "EXPLAIN (ANALYZE) SELECT f(1)",
    "WITH x AS (INSERT INTO t VALUES (1) RETURNING a) SELECT * FROM x",
    "SELECT U&'d\\0061t' UESCAPE '!', U&\"n!0061me\" UESCAPE '!'",
    "SELECT B'0101', X'1F', N'national', 'a'\n'b' -- comment\n/* nested /* one */ */",
    "/*+ hint */ SELECT 1 /* pinion: primary */",
    "SELECT 'a\\'; DROP TABLE t; --'",
    "SELECT \"Quoted \"\" name\", a->>'b', 1!=-2, +- 3, a::int",
    "PREPARE TRANSACTION 'x'",
    "SELEC 1",
];

/// The committed corpus.
pub fn seeds() -> Vec<(String, Vec<u8>)> {
    let texts = TEXTS.iter().enumerate().map(|(at, text)| {
        let mode = if text.contains('\\') { 1 } else { (at % 4) as u8 };
        (format!("text_{at:02}"), [&[mode, at as u8], text.as_bytes()].concat())
    });
    let bytes: [(&str, &[u8]); 6] = [
        ("open_string", b"\0\x01SELECT 'never ends"),
        ("open_comment", b"\0\x01SELECT /* never ends"),
        ("open_dollar", b"\0\x01SELECT $a$ never ends $A$"),
        ("not_utf8", b"\0\x01SELECT '\xe9\xff' AS \"\xc3\x28\""),
        ("sjis", b"\x02\x01SELECT '\x95\x5c' || 'x'"),
        ("high_tag", b"\0\x01SELECT $\xe9$ a $\xe9$"),
    ];
    texts.chain(bytes.iter().map(|(name, bytes)| ((*name).to_owned(), bytes.to_vec()))).collect()
}
