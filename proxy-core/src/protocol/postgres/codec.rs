//! Framing: message headers, and writing messages.
//!
//! Shape: `tag: u8 | len: i32 big-endian, counting itself but not the tag | body: len - 4 bytes`.
//! Source: PostgreSQL manual, "Message Formats".

use super::super::ProtocolError;
use crate::channels::Notification;

/// Bytes of tag and length.
pub const HEADER_BYTES: usize = 5;

/// Longest message of a kind that carries no data, as PostgreSQL's own `PQ_SMALL_MESSAGE_LIMIT`.
const SMALL_MESSAGE_BYTES: usize = 10_000;

/// Longest message at all: `PQ_LARGE_MESSAGE_LIMIT`, one byte less than `MaxAllocSize`.
const LARGE_MESSAGE_BYTES: usize = 0x3fff_fffe;

/// The front of one message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Message type.
    pub tag: u8,
    /// Bytes of the body, after tag and length.
    pub body: usize,
}

impl Header {
    /// Reads the header at the front of `bytes`; `None` when it is not whole yet.
    /// Errors: [`ProtocolError::BadLength`] when the length is under 4 or over what any message may have.
    pub fn read(bytes: &[u8]) -> Result<Option<Self>, ProtocolError> {
        let Some(&[tag, a, b, c, d]) = bytes.first_chunk() else { return Ok(None) };
        let len = i32::from_be_bytes([a, b, c, d]);
        let bad = ProtocolError::BadLength { tag: char::from(tag), len };
        let Some(body) = usize::try_from(len).ok().and_then(|n| n.checked_sub(4)) else { return Err(bad) };
        if body > LARGE_MESSAGE_BYTES { Err(bad) } else { Ok(Some(Self { tag, body })) }
    }

    /// Reads a header that a client sent: kinds that carry no data must be short, unknown kinds are refused.
    pub fn read_from_client(bytes: &[u8]) -> Result<Option<Self>, ProtocolError> {
        let Some(&tag) = bytes.first() else { return Ok(None) };
        let limit = match tag {
            b'Q' | b'P' | b'B' | b'F' | b'd' | b'p' => LARGE_MESSAGE_BYTES,
            b'C' | b'D' | b'E' | b'H' | b'S' | b'X' | b'c' | b'f' => SMALL_MESSAGE_BYTES,
            _ => return Err(ProtocolError::Unexpected(char::from(tag))),
        };
        match Self::read(bytes)? {
            Some(header) if header.body > limit => Err(ProtocolError::BadLength {
                tag: char::from(tag),
                len: i32::try_from(header.body + 4).unwrap_or(i32::MAX),
            }),
            header => Ok(header),
        }
    }

    /// Bytes of the whole message.
    #[must_use]
    pub fn total(self) -> usize {
        HEADER_BYTES + self.body
    }
}

/// Splits a zero-terminated string off the front of `body`; `None` when the terminator is not there.
#[must_use]
pub fn cstr(body: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = memchr::memchr(0, body)?;
    Some((&body[..end], &body[end + 1..]))
}

/// Appends one message whose body `fill` writes.
pub fn write_message(out: &mut Vec<u8>, tag: u8, fill: impl FnOnce(&mut Vec<u8>)) {
    out.push(tag);
    write_counted(out, fill);
}

/// Appends a length that counts itself, and the body that `fill` writes.
pub fn write_counted(out: &mut Vec<u8>, fill: impl FnOnce(&mut Vec<u8>)) {
    let at = out.len();
    out.extend_from_slice(&[0; 4]);
    fill(out);
    let len = u32::try_from(out.len() - at).expect("messages of our own are short");
    out[at..at + 4].copy_from_slice(&len.to_be_bytes());
}

/// Appends a zero-terminated string. A zero byte inside would end it early, so it is cut there.
pub fn put_cstr(out: &mut Vec<u8>, text: &[u8]) {
    let text = cstr(text).map_or(text, |(text, _)| text);
    out.extend_from_slice(text);
    out.push(0);
}

/// The channel of a NotificationResponse, by its body, and the payload.
/// Shape: `process: i32 | channel: cstr | payload: cstr`.
#[must_use]
pub fn read_notification(body: &[u8]) -> Option<(&[u8], &[u8])> {
    let (_, rest) = body.split_first_chunk::<4>()?;
    let (channel, rest) = cstr(rest)?;
    Some((channel, cstr(rest)?.0))
}

/// The NotificationResponses in `bytes`, which are whole messages.
#[must_use]
pub fn notifications(mut bytes: &[u8]) -> Vec<Notification<'_>> {
    let mut found = Vec::new();
    while let Ok(Some(header)) = Header::read(bytes)
        && let Some((message, rest)) = bytes.split_at_checked(header.total())
    {
        if header.tag == b'A'
            && let Some((channel, payload)) = read_notification(&message[HEADER_BYTES..])
            && let Ok(name) = std::str::from_utf8(channel)
        {
            let is_wide = !channel.is_ascii() || !payload.is_ascii();
            found.push(Notification { channel: name, message, is_wide });
        }
        bytes = rest;
    }
    found
}

/// Fields of an ErrorResponse or NoticeResponse that Pinion reads.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ErrorFields {
    /// `V` where sent, else `S`.
    pub severity: String,
    /// SQLSTATE.
    pub code: String,
    /// Primary message.
    pub message: String,
    /// Where it happened, for errors inside functions.
    pub context: String,
    /// The server's own function that raised it.
    pub routine: String,
}

impl ErrorFields {
    /// True when the server closes the connection behind it.
    #[must_use]
    pub fn is_fatal(&self) -> bool {
        matches!(&*self.severity, "FATAL" | "PANIC")
    }

    /// Reads the body of an `E` or `N` message; unknown fields are skipped, a cut-off body gives what was whole.
    #[must_use]
    pub fn read(mut body: &[u8]) -> Self {
        let mut fields = Self::default();
        while let Some((&kind, rest)) = body.split_first() {
            if kind == 0 {
                break;
            }
            let Some((text, rest)) = cstr(rest) else { break };
            let text = || String::from_utf8_lossy(text).into_owned();
            match kind {
                b'S' if fields.severity.is_empty() => fields.severity = text(),
                b'V' => fields.severity = text(),
                b'C' => fields.code = text(),
                b'M' => fields.message = text(),
                b'W' => fields.context = text(),
                b'R' => fields.routine = text(),
                _ => {}
            }
            body = rest;
        }
        fields
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(bytes: &[u8], want: &str) {
        let got = match Header::read_from_client(bytes) {
            Ok(None) => "more".to_owned(),
            Ok(Some(h)) => format!("{} {}", char::from(h.tag), h.body),
            Err(e) => e.to_string(),
        };
        assert_eq!(got, want, "{bytes:?}");
    }

    #[test]
    fn headers_are_read_at_every_cut() {
        let whole = b"Q\0\0\0\x0dSELECT 1\0";
        for cut in 0..HEADER_BYTES {
            check(&whole[..cut], "more");
        }
        for cut in HEADER_BYTES..=whole.len() {
            check(&whole[..cut], "Q 9");
        }
    }

    #[test]
    fn lengths_that_no_message_may_have_are_refused() {
        check(b"Q\0\0\0\x03", "message 'Q' has invalid length 3");
        check(b"Q\0\0\0\0", "message 'Q' has invalid length 0");
        check(b"Q\xff\xff\xff\xff", "message 'Q' has invalid length -1");
        check(b"Q\x7f\xff\xff\xff", "message 'Q' has invalid length 2147483647");
        check(b"S\0\0\x27\x15", "message 'S' has invalid length 10005");
        check(b"S\0\0\x27\x14", "S 10000");
        check(b"z\0\0\0\x04", "unexpected message 'z'");
        check(b"\0", "unexpected message '\\0'");
    }

    #[test]
    fn written_messages_count_themselves() {
        let mut out = Vec::new();
        write_message(&mut out, b'Q', |b| put_cstr(b, b"a\0hidden"));
        assert_eq!(out, b"Q\0\0\0\x06a\0");
    }

    #[test]
    fn notifications_are_cut_out_whole() {
        let mut bytes = Vec::new();
        for (channel, payload) in [("jobs", ""), ("j\u{f6}bs", "1"), ("jobs", "\u{f6}")] {
            write_message(&mut bytes, b'A', |body| {
                body.extend_from_slice(&[0, 0, 0xff, 0xff]);
                put_cstr(body, channel.as_bytes());
                put_cstr(body, payload.as_bytes());
            });
        }
        let found = notifications(&bytes);
        let told: Vec<_> = found.iter().map(|n| (n.channel, n.is_wide)).collect();
        assert_eq!(told, [("jobs", false), ("j\u{f6}bs", true), ("jobs", true)]);
        let messages: Vec<u8> = found.iter().flat_map(|n| n.message.to_vec()).collect();
        assert_eq!(messages, bytes);
        for cut in 0..bytes.len() {
            assert!(notifications(&bytes[..cut]).len() < 3, "{cut}");
        }
    }

    #[test]
    fn error_fields_prefer_the_untranslated_severity() {
        let body = b"SFEHLER\0VERROR\0C42601\0Mno\0Xextra\0\0";
        let want = ErrorFields {
            severity: "ERROR".into(),
            code: "42601".into(),
            message: "no".into(),
            ..Default::default()
        };
        assert_eq!(ErrorFields::read(body), want);
        for cut in 0..body.len() {
            let _ = ErrorFields::read(&body[..cut]);
        }
    }
}
