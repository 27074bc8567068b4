#![allow(clippy::unwrap_used)]

use super::*;

const OLD: Capabilities = Capabilities::PROTOCOL_41;
const NEW: Capabilities = Capabilities(Capabilities::PROTOCOL_41.0 | Capabilities::DEPRECATE_EOF.0);

/// Feeds payloads and says what came of them.
fn check(payloads: &[&[u8]], agreed: Capabilities, want: &str) {
    let mut answer = Answer::default();
    let mut got = "more".to_owned();
    for (at, payload) in payloads.iter().enumerate() {
        got = match answer.advance(payload, agreed) {
            Err(error) => error.to_string(),
            Ok(Answered::More) => "more".to_owned(),
            Ok(Answered::Done { row, status, error }) => {
                assert_eq!(at + 1, payloads.len(), "too early");
                format!("{row:?} {status:?} {}", error.map(|e| e.message).unwrap_or_default())
            }
        };
    }
    assert_eq!(got.trim_end(), want, "{payloads:?}");
}

#[test]
fn answers_are_read_to_their_end() {
    let column = b"\x03def\0\0\0\x01a\0\x0c\x21\0\x0c\0\0\0\xfd\0\0\0\0\0".as_slice();
    let (eof, ok) = (b"\xfe\0\0\x02\0".as_slice(), b"\xfe\0\0\x02\0\0\0".as_slice());
    check(&[b"\0\0\0\x02\0\0\0"], NEW, "[] Some(AUTOCOMMIT)");
    check(&[b"\xff\x10\x04#08004no"], NEW, "[] None no");
    check(&[b"\x02", column, column, b"\x01x\xfb", b"\x01y\xfb", ok], NEW, r#"["x", ""] Some(AUTOCOMMIT)"#);
    check(&[b"\x01", column, eof, b"\x01x", eof], OLD, r#"["x"] Some(AUTOCOMMIT)"#);
    check(&[b"\x01", column, eof, eof], OLD, "[] Some(AUTOCOMMIT)");
    // A row whose first column is long begins as an EOF packet does.
    check(&[b"\x01", column, eof, b"\xfe\x01\0\0\0\0\0\0\0x", eof], OLD, r#"["x"] Some(AUTOCOMMIT)"#);
    // An error in the midst of rows.
    check(&[b"\x01", column, b"\x01x", b"\xff\x2d\x05#70100stop"], NEW, r#"["x"] None stop"#);
    // Two results: the first row counts, and the last status.
    check(
        &[b"\x01", column, b"\x01x", b"\xfe\0\0\x0a\0\0\0", b"\0\0\0\x03\0\0\0"],
        NEW,
        r#"["x"] Some(IN_TRANS|AUTOCOMMIT)"#,
    );
    check(&[b"\xfb/etc/passwd"], NEW, "malformed result set message");
    check(&[b""], NEW, "malformed empty message");
    check(&[b"\xfe"], OLD, "malformed result set message");
    check(&[b"\x01", column, b"\x02x"], NEW, "malformed row message");
    // MariaDB may leave out the definitions.
    check(&[b"\x01\x01", column, b"\x01x", ok], NEW, r#"["x"] Some(AUTOCOMMIT)"#);
    check(&[b"\x01\0", b"\x01x", ok], NEW, r#"["x"] Some(AUTOCOMMIT)"#);
}

#[test]
fn statements_of_ours_carry_no_attributes() {
    let mut out = Vec::new();
    write_query(b"SELECT 1", NEW, &mut out);
    assert_eq!(out, b"\x09\0\0\0\x03SELECT 1");
    out.clear();
    write_query(b"SELECT 1", NEW | Capabilities::QUERY_ATTRIBUTES, &mut out);
    assert_eq!(out, b"\x0b\0\0\0\x03\0\x01SELECT 1");
}
