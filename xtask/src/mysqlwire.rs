//! A tiny MySQL client: log in without a password, run statements of the text protocol. Just enough to set a server up and
//! to look on. Source: "MySQL Source Documentation: Client/Server Protocol".

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use crate::error::{Context, Result, failed};

/// CLIENT_LONG_FLAG, CLIENT_PROTOCOL_41, CLIENT_TRANSACTIONS, CLIENT_SECURE_CONNECTION.
const CAPABILITIES: u32 = 1 << 2 | 1 << 9 | 1 << 13 | 1 << 15;
/// utf8mb4_general_ci.
const COLLATION: u8 = 45;
const READ_TIMEOUT: Duration = Duration::from_secs(120);

/// A logged-in connection.
pub(crate) struct Client {
    stream: UnixStream,
    sequence: u8,
}

impl Client {
    /// Connects to a Unix socket and logs in as a user without a password.
    pub(crate) fn unix(path: &Path, user: &str) -> Result<Self> {
        let stream = UnixStream::connect(path).context(format!("connecting to {}", path.display()))?;
        stream.set_read_timeout(Some(READ_TIMEOUT)).context("setting a timeout")?;
        let mut client = Self { stream, sequence: 0 };
        if let [0xff, ..] = client.read()?.as_slice() {
            return failed("the server lets nobody in");
        }
        let mut login =
            [&CAPABILITIES.to_le_bytes(), &(1_u32 << 24).to_le_bytes(), &[COLLATION][..]].concat();
        login.extend([0; 23]);
        // An answer of no bytes is no password.
        login.extend([user.as_bytes(), &[0, 0]].concat());
        client.send(&login)?;
        match client.read()?.as_slice() {
            [0, ..] => Ok(client),
            // AuthSwitchRequest, for whatever method: no password.
            [0xfe, ..] => {
                client.send(&[])?;
                match client.read()?.as_slice() {
                    [0, ..] => Ok(client),
                    other => failed(format!("logging in as {user}: {}", complaint(other))),
                }
            }
            other => failed(format!("logging in as {user}: {}", complaint(other))),
        }
    }

    /// Runs one statement; the rows' values as text, `None` for null.
    pub(crate) fn query(&mut self, sql: &str) -> Result<Vec<Vec<Option<String>>>> {
        self.sequence = 0;
        self.send(&[&[3], sql.as_bytes()].concat())?;
        match self.read()?.as_slice() {
            [0, ..] => return Ok(Vec::new()),
            error @ [0xff, ..] => return failed(format!("{sql}: {}", complaint(error))),
            _ => {}
        }
        // Column definitions up to the first EOF packet, then rows up to the second.
        while !is_end(&self.read()?) {}
        let mut rows = Vec::new();
        loop {
            let packet = self.read()?;
            match packet.as_slice() {
                error @ [0xff, ..] => return failed(format!("{sql}: {}", complaint(error))),
                end if is_end(end) => return Ok(rows),
                row => match values(row) {
                    Some(values) => rows.push(values),
                    None => return failed("the server sent a broken row"),
                },
            }
        }
    }

    fn send(&mut self, payload: &[u8]) -> Result<()> {
        let length = u32::try_from(payload.len()).context("sizing a packet")?.to_le_bytes();
        let packet = [&length[..3], &[self.sequence], payload].concat();
        self.sequence = self.sequence.wrapping_add(1);
        self.stream.write_all(&packet).context("writing to the server")
    }

    fn read(&mut self) -> Result<Vec<u8>> {
        let mut header = [0; 4];
        self.stream.read_exact(&mut header).context("reading from the server")?;
        let [a, b, c, sequence] = header;
        self.sequence = sequence.wrapping_add(1);
        let mut payload = Vec::new();
        let length = u64::from(u32::from_le_bytes([a, b, c, 0]));
        (&mut self.stream).take(length).read_to_end(&mut payload).context("reading from the server")?;
        Ok(payload)
    }
}

fn is_end(packet: &[u8]) -> bool {
    packet.first() == Some(&0xfe) && packet.len() < 9
}

/// Shape of a row: for each column a length-encoded string, or 0xfb for null. Values under 64 KiB are all that is asked
/// for here.
fn values(mut row: &[u8]) -> Option<Vec<Option<String>>> {
    let mut values = Vec::new();
    while let Some((first, rest)) = row.split_first() {
        let (length, rest) = match (first, rest) {
            (0xfb, rest) => {
                values.push(None);
                row = rest;
                continue;
            }
            (0xfc, [low, high, rest @ ..]) => (usize::from(u16::from_le_bytes([*low, *high])), rest),
            (0..=250, rest) => (usize::from(*first), rest),
            _ => return None,
        };
        let (value, rest) = rest.split_at_checked(length)?;
        values.push(Some(String::from_utf8_lossy(value).into_owned()));
        row = rest;
    }
    Some(values)
}

/// Shape of an error packet: `0xff | code: u16 | '#' state: 5 bytes | message`.
fn complaint(packet: &[u8]) -> String {
    match packet {
        [0xff, low, high, message @ ..] => {
            format!("{} {}", u16::from_le_bytes([*low, *high]), String::from_utf8_lossy(message))
        }
        _ => "an answer of an unknown form".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_values_and_nulls() {
        let body = [2, b'h', b'i', 0xfb, 0, 0xfc, 1, 0, b'x'];
        let expected = [Some("hi".to_owned()), None, Some(String::new()), Some("x".to_owned())];
        assert_eq!(values(&body).unwrap(), expected);
        assert!(values(&body[..2]).is_none() && values(&body[..7]).is_none() && values(&[0xff]).is_none());
    }

    #[test]
    fn a_complaint_is_code_and_message() {
        assert_eq!(complaint(b"\xff\x15\x04#28000Access denied"), "1045 #28000Access denied");
    }
}
