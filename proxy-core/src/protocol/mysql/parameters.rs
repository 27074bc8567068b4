//! Where values stand in requests: the attributes before the text of a `COM_QUERY`, and what comes before the values
//! of an execution.
//!
//! Source: MySQL Source Documentation, "COM_QUERY", "COM_STMT_EXECUTE", "Binary Protocol Value"; MariaDB knowledge
//! base, "COM_STMT_BULK_EXECUTE".

use std::ops::Range;

use super::codec::{Capabilities, Reader};

/// The flag of an execution that says that the number of its parameters follows (MySQL).
const PARAMETER_COUNT_AVAILABLE: u8 = 0x08;

/// The flag of an execution in bulk that says that types follow (MariaDB).
const BULK_TYPES: u8 = 0x80;

/// Where the text begins in the payload of a `COM_QUERY`. Shape with `QUERY_ATTRIBUTES`: `command: u8 | count: lenenc |
/// sets: lenenc | [a bit for each that is NULL | 1: u8 | type: u16, name: lenenc string, of each | values] | text`, the
/// bracket only when there are any. `None` for what does not parse.
#[must_use]
pub fn text_at(payload: &[u8], agreed: Capabilities) -> Option<usize> {
    let mut reader = Reader::new(payload);
    reader.u8()?;
    if agreed.contains(Capabilities::QUERY_ATTRIBUTES) {
        let count = reader.lenenc()?;
        if reader.lenenc()? != 1 {
            return None;
        }
        if count > 0 {
            skip_attributes(&mut reader, usize::try_from(count).ok()?)?;
        }
    }
    Some(payload.len() - reader.rest().len())
}

fn skip_attributes(reader: &mut Reader<'_>, count: usize) -> Option<()> {
    let nulls = reader.bytes(count.div_ceil(8))?;
    if reader.u8()? != 1 {
        return None;
    }
    // A count that lies ends with the bytes: nothing is set aside for it.
    let mut types = Vec::new();
    for _ in 0..count {
        let [kind, _signed] = reader.array()?;
        types.push(kind);
        reader.lenenc_bytes()?;
    }
    for (at, kind) in types.into_iter().enumerate() {
        let is_null = nulls.get(at / 8).is_some_and(|byte| byte >> (at % 8) & 1 == 1);
        if !is_null {
            skip_value(reader, kind)?;
        }
    }
    Some(())
}

fn skip_value(reader: &mut Reader<'_>, kind: u8) -> Option<()> {
    let len = match kind {
        // NULL
        6 => 0,
        // TINY
        1 => 1,
        // SHORT, YEAR
        2 | 13 => 2,
        // LONG, FLOAT, INT24
        3 | 4 | 9 => 4,
        // DOUBLE, LONGLONG
        5 | 8 => 8,
        // TIMESTAMP, DATE, TIME, DATETIME
        7 | 10..=12 => usize::from(reader.u8()?),
        _ => return reader.lenenc_bytes().map(drop),
    };
    reader.bytes(len).map(drop)
}

/// What comes before the values of an execution.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Front {
    /// Parameters, attributes included.
    pub count: u64,
    /// The byte that says whether types follow, and the bit in it; `None` when there are no parameters.
    pub flag: Option<(usize, u8)>,
    /// The types, with their names if they have any; empty where they would stand when there are none.
    pub types: Range<usize>,
}

impl Front {
    /// Reads the payload of an execution of a statement with `parameters`, as much of it as has come. Shape:
    /// `command: u8 | statement: u32 | flags: u8 | iterations: u32 | [a bit for each that is NULL | types follow: u8 |
    /// type: u16, of each]`, the bracket only when there are any. With `QUERY_ATTRIBUTES` their count, lenenc, stands
    /// before the bits, and a name, lenenc string, behind each type. In bulk: `command: u8 | statement: u32 |
    /// flags: u16 | type: u16, of each`. `None` when it needs more bytes.
    #[must_use]
    pub fn read(payload: &[u8], parameters: u16, bulk: bool, agreed: Capabilities) -> Option<Self> {
        let mut reader = Reader::new(payload);
        reader.bytes(5)?;
        let flags = reader.u8()?;
        let mut count = u64::from(parameters);
        if bulk {
            reader.u8()?;
            let follow = flags & BULK_TYPES != 0;
            let end = 7 + if follow { 2 * usize::from(parameters) } else { 0 };
            let flag = (parameters > 0).then_some((5, BULK_TYPES));
            return (payload.len() >= end).then_some(Self { count, flag, types: 7..end });
        }
        reader.u32()?;
        let named = agreed.contains(Capabilities::QUERY_ATTRIBUTES);
        if named && (parameters > 0 || flags & PARAMETER_COUNT_AVAILABLE != 0) {
            count = reader.lenenc()?;
        }
        let at = |reader: &Reader<'_>| payload.len() - reader.rest().len();
        if count == 0 {
            let end = at(&reader);
            return Some(Self { count, flag: None, types: end..end });
        }
        reader.bytes(usize::try_from(count).ok()?.div_ceil(8))?;
        let flag = at(&reader);
        let follow = reader.u8()? == 1;
        let start = at(&reader);
        if follow {
            for _ in 0..count {
                reader.u16()?;
                if named {
                    reader.lenenc_bytes()?;
                }
            }
        }
        Some(Self { count, flag: Some((flag, 1)), types: start..at(&reader) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMED: Capabilities = Capabilities::QUERY_ATTRIBUTES;
    const PLAIN: Capabilities = Capabilities::NONE;

    #[test]
    fn the_text_of_a_query_stands_behind_its_attributes() {
        let null = b"\x03\x01\x01\x01\x01\x06\0\x01nSELECT 1";
        let many = b"\x03\x05\x01\x04\x01\x01\0\x01a\xfe\0\x01b\x08\0\0\x05\0\x01d\x0c\0\x01t\x07\x02xy\
            \0\0\0\0\0\0\xf0\x3f\x04\xe8\x07\x01\x02SELECT 2";
        for (payload, agreed, text) in [
            (b"\x03SELECT 1".as_slice(), PLAIN, Some(b"SELECT 1".as_slice())),
            (b"\x03\0\x01SELECT 1", NAMED, Some(b"SELECT 1")),
            (null, NAMED, Some(b"SELECT 1")),
            (many, NAMED, Some(b"SELECT 2")),
            (b"\x03", PLAIN, Some(b"")),
            (b"\x03", NAMED, None),
            (b"", PLAIN, None),
            // Two sets of values, which nothing sends.
            (b"\x03\0\x02SELECT 1", NAMED, None),
            // Attributes without types.
            (b"\x03\x01\x01\0\0SELECT 1", NAMED, None),
            // A count of what is not there.
            (b"\x03\xfe\xff\xff\xff\xff\xff\xff\xff\x7f\x01\0\x01S", NAMED, None),
        ] {
            assert_eq!(text_at(payload, agreed).map(|at| &payload[at..]), text, "{payload:?}");
        }
        for end in 0..many.len() - 8 {
            assert_eq!(text_at(&many[..end], NAMED), None, "cut at {end}");
        }
    }

    #[test]
    fn the_front_of_an_execution_ends_before_its_values() {
        let front = |count, flag, types| Some(Front { count, flag, types });
        for (payload, parameters, bulk, agreed, want) in [
            (b"\x17\x01\0\0\0\0\x01\0\0\0".as_slice(), 0, false, PLAIN, front(0, None, 10..10)),
            (b"\x17\x01\0\0\0\0\x01\0\0\0\0\x01\x03\0*", 1, false, PLAIN, front(1, Some((11, 1)), 12..14)),
            (b"\x17\x01\0\0\0\0\x01\0\0\0\0\0*", 1, false, PLAIN, front(1, Some((11, 1)), 12..12)),
            (b"\x17\x01\0\0\0\0\x01\0\0\0", 0, false, NAMED, front(0, None, 10..10)),
            (b"\x17\x01\0\0\0\x08\x01\0\0\0\0", 0, false, NAMED, front(0, None, 11..11)),
            // One parameter and an attribute.
            (
                b"\x17\x01\0\0\0\x08\x01\0\0\0\x02\0\x01\x03\0\0\xfe\0\x01n*",
                1,
                false,
                NAMED,
                front(2, Some((12, 1)), 13..20),
            ),
            (b"\x17\x01\0\0\0\0\x01\0\0\0\x01\0\0*", 1, false, NAMED, front(1, Some((12, 1)), 13..13)),
            (b"\xfa\x01\0\0\0\x80\0\x03\0\0*", 1, true, PLAIN, front(1, Some((5, 0x80)), 7..9)),
            (b"\xfa\x01\0\0\0\0\0\0*", 1, true, PLAIN, front(1, Some((5, 0x80)), 7..7)),
        ] {
            assert_eq!(Front::read(payload, parameters, bulk, agreed), want, "{payload:?}");
            let end = want.map_or(0, |front| front.types.end);
            for cut in 0..end {
                assert_eq!(
                    Front::read(&payload[..cut], parameters, bulk, agreed),
                    None,
                    "{payload:?} at {cut}"
                );
            }
        }
    }
}
