//! What servers say of prepared statements: the types of their parameters, and the columns of their rows.
//!
//! A client reads rows by what it was told when it prepared the statement, on whatever connection that was. So what it
//! was told is remembered, and held against what the server says on whose connection the statement is to run.

use std::{
    hash::Hasher as _,
    sync::{Arc, LazyLock, OnceLock},
};

use siphasher::sip128::{Hasher128 as _, SipHasher24};

use super::{
    super::{ProtocolError, digest::keyed_hasher},
    codec::{HEADER_BYTES, Header, cstr},
};

/// Longest description that is kept for other clients.
const MAX_KEPT_BYTES: usize = 16 * 1024;

/// A column behind its name: `table: i32 | column: i16 | type: i32 | length: i16 | modifier: i32 | format: i16`.
const FIELD_BYTES: usize = 18;
/// Of these, the table and where in it the column stands.
const ORIGIN_BYTES: usize = 6;

/// A server's answer to Describe of a statement: ParameterDescription, then RowDescription or NoData. Source: PostgreSQL
/// manual, "Message Formats".
#[derive(Debug)]
pub(super) struct Description {
    /// As it came; `None` where it is too long, or has letters that other clients may encode otherwise.
    said: Option<Box<[u8]>>,
    /// How many parameters there are.
    parameters: u16,
    /// Of all that parameters and rows are read by; which table a column comes from is not part of that.
    digest: u128,
}

impl Description {
    /// Reads both messages, headers included.
    pub(super) fn read(messages: &[u8]) -> Result<Self, ProtocolError> {
        static HASHER: LazyLock<SipHasher24> = LazyLock::new(keyed_hasher);
        let mut hasher = *HASHER;
        let mut is_ascii = true;
        let mut parameters = 0;
        let mut rest = messages;
        while let Some(header) = Header::read(rest)? {
            let malformed = || ProtocolError::Malformed("description");
            let body = rest.get(HEADER_BYTES..header.total()).ok_or_else(malformed)?;
            hasher.write_u8(header.tag);
            if header.tag == b'T' {
                let (count, mut columns) = body.split_first_chunk::<2>().ok_or_else(malformed)?;
                hasher.write(count);
                for _ in 0..u16::from_be_bytes(*count) {
                    let (name, field) = cstr(columns).ok_or_else(malformed)?;
                    let (field, after) = field.split_at_checked(FIELD_BYTES).ok_or_else(malformed)?;
                    is_ascii &= name.is_ascii();
                    hasher.write(name);
                    hasher.write_u8(0);
                    hasher.write(&field[ORIGIN_BYTES..]);
                    columns = after;
                }
            } else {
                hasher.write(body);
                if let (b't', Some(count)) = (header.tag, body.first_chunk::<2>()) {
                    parameters = u16::from_be_bytes(*count);
                }
            }
            rest = &rest[header.total()..];
        }
        let is_kept = is_ascii && messages.len() <= MAX_KEPT_BYTES;
        let said = is_kept.then(|| messages.into());
        Ok(Self { said, parameters, digest: hasher.finish128().as_u128() })
    }

    /// What a client is told, if it may be told without a server.
    pub(super) fn said(&self) -> Option<&[u8]> {
        self.said.as_deref()
    }

    /// How many parameters there are.
    pub(super) fn parameters(&self) -> u16 {
        self.parameters
    }

    /// True when parameters and rows are read alike by both.
    pub(super) fn reads_like(&self, other: &Self) -> bool {
        self.digest == other.digest
    }
}

/// What a client was told of a statement; empty while the server's answer is to come.
#[derive(Debug, Default)]
pub(super) struct Told {
    said: OnceLock<Arc<Description>>,
    /// What it was told before, which stands if that answer never comes.
    before: Option<Arc<Description>>,
}

impl Told {
    /// This.
    pub(super) fn now(description: Arc<Description>) -> Self {
        Self { said: description.into(), before: None }
    }

    /// What a server has been asked, by a client that was told `before`.
    pub(super) fn after(before: Option<&Self>) -> Self {
        Self { said: OnceLock::new(), before: before.and_then(Self::description).cloned() }
    }

    /// The server has answered.
    pub(super) fn set(&self, description: Arc<Description>) {
        let _ = self.said.set(description);
    }

    /// The last that the client knows of.
    pub(super) fn description(&self) -> Option<&Arc<Description>> {
        self.said.get().or(self.before.as_ref())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::{
        super::codec::{put_cstr, write_message},
        *,
    };

    /// Parameters' types, and columns as name, table and type.
    fn description(parameters: &[u32], columns: &[(&str, u32, u32)]) -> Vec<u8> {
        let mut out = Vec::new();
        write_message(&mut out, b't', |body| {
            body.extend(u16::try_from(parameters.len()).unwrap().to_be_bytes());
            body.extend(parameters.iter().flat_map(|oid| oid.to_be_bytes()));
        });
        write_message(&mut out, b'T', |body| {
            body.extend(u16::try_from(columns.len()).unwrap().to_be_bytes());
            for (name, table, oid) in columns {
                put_cstr(body, name.as_bytes());
                body.extend(table.to_be_bytes());
                body.extend([0, 1]);
                body.extend(oid.to_be_bytes());
                body.extend([0, 4, 0xff, 0xff, 0xff, 0xff, 0, 0]);
            }
        });
        out
    }

    #[test]
    fn what_rows_are_read_by_counts_and_where_they_come_from_does_not() {
        let read = |bytes: &[u8]| Description::read(bytes).unwrap();
        let one = read(&description(&[23], &[("a", 7, 23), ("b", 7, 25)]));
        let like = |parameters: &[u32], columns: &[(&str, u32, u32)]| {
            one.reads_like(&read(&description(parameters, columns)))
        };
        assert!(like(&[23], &[("a", 7, 23), ("b", 7, 25)]));
        assert!(like(&[23], &[("a", 8, 23), ("b", 9, 25)]), "another table with the same columns");
        assert!(!like(&[25], &[("a", 7, 23), ("b", 7, 25)]));
        assert!(!like(&[], &[("a", 7, 23), ("b", 7, 25)]));
        assert!(!like(&[23], &[("a", 7, 20), ("b", 7, 25)]));
        assert!(!like(&[23], &[("a", 7, 23), ("c", 7, 25)]));
        assert!(!like(&[23], &[("a", 7, 23)]));
        let nothing = [&description(&[23], &[])[..11], b"n\0\0\0\x04"].concat();
        assert!(
            !one.reads_like(&read(&nothing)) && !read(&nothing).reads_like(&read(&description(&[23], &[])))
        );
    }

    #[test]
    fn what_is_long_or_depends_on_an_encoding_is_not_told_to_others() {
        let told = |bytes: &[u8]| Description::read(bytes).unwrap().said().map(<[u8]>::to_vec);
        let short = description(&[], &[("a", 7, 23)]);
        assert_eq!(told(&short), Some(short.clone()));
        assert_eq!(told(&description(&[], &[("\u{e4}", 7, 23)])), None);
        assert_eq!(told(&description(&[], &[("a", 7, 23); 1000])), None);
    }

    #[test]
    fn half_a_description_is_none() {
        let whole = description(&[23], &[("a", 7, 23)]);
        let shortened = [&whole[..11], b"T\0\0\0\x08\0\x01a\0"].concat();
        assert!(Description::read(&shortened).is_err());
        assert!(Description::read(&whole[..whole.len() - 1]).is_err());
    }

    #[test]
    fn what_was_told_stands_until_there_is_an_answer() {
        let some = |oid| Arc::new(Description::read(&description(&[], &[("a", 7, oid)])).unwrap());
        let (old, new) = (Told::now(some(23)), some(20));
        let next = Told::after(Some(&old));
        assert!(next.description().unwrap().reads_like(&some(23)));
        next.set(new.clone());
        assert!(next.description().unwrap().reads_like(&new));
        assert!(Told::after(None).description().is_none());
    }
}
