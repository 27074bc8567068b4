//! A tiny PostgreSQL client: log in with no password or MD5, run simple queries. Just enough to open thousands of idle
//! clients and to read one huge row without holding it. Source: PostgreSQL manual, "Frontend/Backend Protocol".

use std::{
    io::{BufReader, Read, Write, copy, sink},
    net::{Ipv4Addr, TcpStream},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use md5::{Digest, Md5};

use crate::error::{Context, Result, failed};

const PROTOCOL_3_0: i32 = 196_608;
/// Longest wait for a byte; a query of the benchmark may take a while before its first one.
const READ_TIMEOUT: Duration = Duration::from_secs(120);

trait Socket: Read + Write + Send {}
impl<T: Read + Write + Send> Socket for T {}

/// A logged-in connection.
pub(crate) struct Client {
    stream: BufReader<Box<dyn Socket>>,
}

impl Client {
    /// Connects to a port of the loopback address without TLS.
    pub(crate) fn tcp(port: u16, user: &str, password: &str, database: &str) -> Result<Self> {
        let stream =
            TcpStream::connect((Ipv4Addr::LOCALHOST, port)).context(format!("connecting to port {port}"))?;
        stream.set_read_timeout(Some(READ_TIMEOUT)).context("setting a timeout")?;
        stream.set_nodelay(true).context("setting TCP_NODELAY")?;
        Self::login(Box::new(stream), user, password, database)
    }

    /// Connects to a Unix socket.
    pub(crate) fn unix(path: &Path, user: &str, database: &str) -> Result<Self> {
        let stream = UnixStream::connect(path).context(format!("connecting to {}", path.display()))?;
        stream.set_read_timeout(Some(READ_TIMEOUT)).context("setting a timeout")?;
        Self::login(Box::new(stream), user, "", database)
    }

    /// Runs one simple query; the rows' values as text, `None` for null.
    pub(crate) fn query(&mut self, sql: &str) -> Result<Vec<Vec<Option<String>>>> {
        self.send(b'Q', &[sql.as_bytes(), b"\0"].concat())?;
        let mut rows = Vec::new();
        loop {
            match self.message()? {
                (b'D', body) => rows.push(row(&body)?),
                (b'E', body) => return failed(format!("{sql}: {}", complaint(&body))),
                (b'Z', _) => return Ok(rows),
                _ => {}
            }
        }
    }

    /// Runs one simple query and throws its rows away as they come; bytes of all row messages.
    pub(crate) fn count_row_bytes(&mut self, sql: &str) -> Result<u64> {
        self.send(b'Q', &[sql.as_bytes(), b"\0"].concat())?;
        let mut bytes = 0;
        loop {
            let (tag, length) = self.header()?;
            if tag == b'D' {
                let read =
                    copy(&mut (&mut self.stream).take(length), &mut sink()).context("reading a row")?;
                if read < length {
                    return failed("the connection ended inside a row");
                }
                bytes += length;
                continue;
            }
            let body = self.body(length)?;
            match tag {
                b'E' => return failed(format!("{sql}: {}", complaint(&body))),
                b'Z' => return Ok(bytes),
                _ => {}
            }
        }
    }

    fn login(stream: Box<dyn Socket>, user: &str, password: &str, database: &str) -> Result<Self> {
        let mut client = Self { stream: BufReader::with_capacity(16 * 1024, stream) };
        let mut startup = PROTOCOL_3_0.to_be_bytes().to_vec();
        // The name that pgbench gives: clients that differ in it may need server connections of their own.
        for text in ["user", user, "database", database, "application_name", "pgbench"] {
            startup.extend_from_slice(text.as_bytes());
            startup.push(0);
        }
        startup.push(0);
        client.send_untagged(&startup)?;
        loop {
            match client.message()? {
                (b'R', body) => client.authenticate(&body, user, password)?,
                (b'E', body) => return failed(format!("logging in as {user}: {}", complaint(&body))),
                (b'Z', _) => return Ok(client),
                _ => {}
            }
        }
    }

    fn authenticate(&mut self, body: &[u8], user: &str, password: &str) -> Result<()> {
        match body {
            [0, 0, 0, 0] => Ok(()),
            [0, 0, 0, 5, salt @ ..] => {
                let inner = hex(&Md5::digest([password, user].concat()));
                let answer = hex(&Md5::digest([inner.as_bytes(), salt].concat()));
                self.send(b'p', format!("md5{answer}\0").as_bytes())
            }
            other => failed(format!(
                "the server asks for authentication {other:?}; only MD5 and none are spoken here"
            )),
        }
    }

    fn send(&mut self, tag: u8, body: &[u8]) -> Result<()> {
        self.write(&[&[tag], &length_of(body)?[..], body].concat())
    }

    fn send_untagged(&mut self, body: &[u8]) -> Result<()> {
        self.write(&[&length_of(body)?[..], body].concat())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.get_mut().write_all(bytes).context("writing to the server")
    }

    fn message(&mut self) -> Result<(u8, Vec<u8>)> {
        let (tag, length) = self.header()?;
        Ok((tag, self.body(length)?))
    }

    fn header(&mut self) -> Result<(u8, u64)> {
        let mut header = [0; 5];
        self.stream.read_exact(&mut header).context("reading from the server")?;
        let [tag, length @ ..] = header;
        let body = u64::from(u32::from_be_bytes(length)).checked_sub(4);
        body.map_or_else(
            || failed("the server sent a message shorter than its header"),
            |body| Ok((tag, body)),
        )
    }

    fn body(&mut self, length: u64) -> Result<Vec<u8>> {
        let mut body = Vec::new();
        (&mut self.stream).take(length).read_to_end(&mut body).context("reading from the server")?;
        Ok(body)
    }
}

fn length_of(body: &[u8]) -> Result<[u8; 4]> {
    Ok(i32::try_from(body.len() + 4).context("sizing a message")?.to_be_bytes())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Shape of DataRow: `count: i16 | count * (length: i32, -1 is null | length bytes)`.
fn row(body: &[u8]) -> Result<Vec<Option<String>>> {
    parse_row(body).map_or_else(|| failed("the server sent a broken row"), Ok)
}

fn parse_row(body: &[u8]) -> Option<Vec<Option<String>>> {
    let (count, mut rest) = body.split_first_chunk()?;
    let mut values = Vec::new();
    for _ in 0..i16::from_be_bytes(*count) {
        let (length, after) = rest.split_first_chunk()?;
        let Ok(length) = usize::try_from(i32::from_be_bytes(*length)) else {
            values.push(None);
            rest = after;
            continue;
        };
        let (value, after) = after.split_at_checked(length)?;
        values.push(Some(String::from_utf8_lossy(value).into_owned()));
        rest = after;
    }
    Some(values)
}

/// The code and the text of an ErrorResponse: `(field: u8 | text | 0)* 0`.
fn complaint(body: &[u8]) -> String {
    let fields = body.split(|byte| *byte == 0).filter_map(|field| field.split_first());
    let wanted = fields.filter(|(kind, _)| matches!(kind, b'C' | b'M'));
    wanted.map(|(_, text)| String::from_utf8_lossy(text).into_owned()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_values_and_nulls() {
        let body = [0, 3, 0, 0, 0, 2, b'h', b'i', 255, 255, 255, 255, 0, 0, 0, 0];
        assert_eq!(row(&body).unwrap(), [Some("hi".to_owned()), None, Some(String::new())]);
        for cut in 0..body.len() {
            assert!(row(&body[..cut]).is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn a_complaint_is_code_and_message() {
        assert_eq!(complaint(b"SFATAL\0C28P01\0Mwrong password\0\0"), "28P01 wrong password");
    }
}
