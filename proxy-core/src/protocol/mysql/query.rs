//! Statements of our own: how one is written, and how its answer is read to the end.

use super::codec::{
    Capabilities, Command, EOF, ERR, EofPacket, ErrPacket, LOCAL_INFILE, MAX_PAYLOAD, OK, OkPacket, Reader,
    Status, put_lenenc, write_packet,
};
use crate::protocol::ProtocolError;

/// Appends a `COM_QUERY` without attributes, on a connection on which `agreed` was agreed.
pub fn write_query(sql: &[u8], agreed: Capabilities, out: &mut Vec<u8>) {
    write_packet(out, 0, |body| {
        body.push(Command::Query as u8);
        if agreed.contains(Capabilities::QUERY_ATTRIBUTES) {
            // No attribute, in one set.
            put_lenenc(body, 0);
            put_lenenc(body, 1);
        }
        body.extend_from_slice(sql);
    });
}

/// A name as it stands in a statement, whatever is in it.
pub(super) fn quoted(name: &str) -> String {
    format!("`{}`", name.replace('`', "``"))
}

/// The first packet of a result set. Shape: `columns: lenenc | [metadata follows: u8]`, the second with MySQL's
/// `OPTIONAL_RESULTSET_METADATA` and MariaDB's `CACHE_METADATA` only. Source: MySQL Source Documentation, "Text
/// Resultset"; MariaDB knowledge base, "Result Set Packets".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResultHeader {
    /// Columns of each row.
    pub columns: u64,
    /// Column definitions come before the rows.
    pub has_metadata: bool,
}

impl ResultHeader {
    /// Reads a payload that is none of OK, ERR and a request for a local file.
    /// Errors: [`ProtocolError::Malformed`].
    pub fn read(payload: &[u8]) -> Result<Self, ProtocolError> {
        let parse = || {
            let mut reader = Reader::new(payload);
            Some(Self { columns: reader.lenenc()?, has_metadata: reader.u8() != Some(0) })
        };
        parse().filter(|header| header.columns > 0).ok_or(ProtocolError::Malformed("result set"))
    }
}

/// Reads the answer to one statement of our own, packet by packet: OK, ERR, or result sets, of which the first row of
/// the first is kept.
#[derive(Debug, Default)]
pub struct Answer {
    stage: Stage,
    row: Option<Vec<String>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Stage {
    #[default]
    Start,
    /// So many definitions are to come, then an EOF unless it is deprecated.
    Columns(u64),
    Rows,
}

/// What an answer came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answered {
    /// More packets belong to it.
    More,
    /// It is over.
    Done {
        /// First row, NULL as empty.
        row: Vec<String>,
        /// As reported with the last result.
        status: Option<Status>,
        /// What the server refused.
        error: Option<ErrPacket>,
    },
}

impl Answer {
    /// Takes the next payload.
    /// Errors: [`ProtocolError`], and the answer cannot be read any further.
    pub fn advance(&mut self, payload: &[u8], agreed: Capabilities) -> Result<Answered, ProtocolError> {
        let first = *payload.first().ok_or(ProtocolError::Malformed("empty"))?;
        if first == ERR {
            return Ok(self.done(None, Some(ErrPacket::read(payload)?)));
        }
        let deprecated = agreed.contains(Capabilities::DEPRECATE_EOF);
        match self.stage {
            Stage::Start if first == OK => self.ended(OkPacket::read(payload, agreed)?.status),
            Stage::Start if first == LOCAL_INFILE => Err(ProtocolError::Malformed("result set")),
            Stage::Start => {
                let header = ResultHeader::read(payload)?;
                self.stage = match header.has_metadata {
                    true => Stage::Columns(header.columns),
                    false => Stage::Rows,
                };
                Ok(Answered::More)
            }
            Stage::Columns(0) => {
                EofPacket::read(payload, agreed)?;
                self.stage = Stage::Rows;
                Ok(Answered::More)
            }
            Stage::Columns(left) => {
                self.stage = match left {
                    1 if deprecated => Stage::Rows,
                    _ => Stage::Columns(left - 1),
                };
                Ok(Answered::More)
            }
            Stage::Rows if deprecated && first == EOF && payload.len() < MAX_PAYLOAD => {
                self.ended(OkPacket::read(payload, agreed)?.status)
            }
            Stage::Rows if !deprecated && EofPacket::is(first, payload.len()) => {
                self.ended(EofPacket::read(payload, agreed)?.status)
            }
            Stage::Rows => {
                if self.row.is_none() {
                    self.row = Some(row(payload)?);
                }
                Ok(Answered::More)
            }
        }
    }

    fn ended(&mut self, status: Status) -> Result<Answered, ProtocolError> {
        if status.contains(Status::MORE_RESULTS) {
            self.stage = Stage::Start;
            return Ok(Answered::More);
        }
        Ok(self.done(Some(status), None))
    }

    fn done(&mut self, status: Option<Status>, error: Option<ErrPacket>) -> Answered {
        let row = self.row.take().unwrap_or_default();
        *self = Self::default();
        Answered::Done { row, status, error }
    }
}

/// The columns of a text row, NULL as empty.
fn row(payload: &[u8]) -> Result<Vec<String>, ProtocolError> {
    let mut reader = Reader::new(payload);
    let mut row = Vec::new();
    while !reader.is_empty() {
        let column = reader.column().ok_or(ProtocolError::Malformed("row"))?;
        row.push(String::from_utf8_lossy(column.unwrap_or_default()).into_owned());
    }
    Ok(row)
}

#[cfg(test)]
mod tests;
