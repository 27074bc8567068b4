//! A PostgreSQL client that sends exactly what it is told, one message at a time.

use std::{collections::BTreeMap, fmt, io, time::Duration};

use bytes::{Buf, Bytes, BytesMut};
use postgres_protocol::authentication::{
    md5_hash,
    sasl::{ChannelBinding, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramSha256},
};
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;

use crate::{Address, SOON, tls};

/// Messages as bytes, for [`RawClient::send_bytes`]; joined by `concat`.
pub mod wire {
    /// Any message: `tag | length | body`.
    #[must_use]
    pub fn message(tag: u8, body: &[u8]) -> Vec<u8> {
        let length = i32::try_from(body.len() + 4).expect("a message under 2 GiB");
        [&[tag], length.to_be_bytes().as_slice(), body].concat()
    }
    /// A message without a tag: start-up, `SSLRequest`, `CancelRequest`.
    #[must_use]
    pub fn untagged(body: &[u8]) -> Vec<u8> {
        let length = i32::try_from(body.len() + 4).expect("a message under 2 GiB");
        [length.to_be_bytes().as_slice(), body].concat()
    }
    /// `StartupMessage` of protocol `major.minor`.
    #[must_use]
    pub fn startup(major: u16, minor: u16, parameters: &[(&str, &str)]) -> Vec<u8> {
        let mut body = [major.to_be_bytes(), minor.to_be_bytes()].concat();
        for (key, value) in parameters {
            body.extend([key.as_bytes(), b"\0", value.as_bytes(), b"\0"].concat());
        }
        body.push(0);
        untagged(&body)
    }
    /// `SSLRequest`.
    #[must_use]
    pub fn ssl_request() -> Vec<u8> {
        untagged(&80_877_103_i32.to_be_bytes())
    }
    /// `GSSENCRequest`.
    #[must_use]
    pub fn gssenc_request() -> Vec<u8> {
        untagged(&80_877_104_i32.to_be_bytes())
    }
    /// `CancelRequest`.
    #[must_use]
    pub fn cancel_request(process: i32, secret: &[u8]) -> Vec<u8> {
        untagged(&[80_877_102_i32.to_be_bytes().as_slice(), &process.to_be_bytes(), secret].concat())
    }
    /// `Query`.
    #[must_use]
    pub fn query(sql: &str) -> Vec<u8> {
        message(b'Q', &c_string(sql))
    }
    /// `Parse` without parameter types.
    #[must_use]
    pub fn parse(name: &str, sql: &str) -> Vec<u8> {
        message(b'P', &[c_string(name), c_string(sql), vec![0, 0]].concat())
    }
    /// `Bind` with text parameters and text results.
    #[must_use]
    pub fn bind(portal: &str, statement: &str, parameters: &[&str]) -> Vec<u8> {
        let mut body = [c_string(portal), c_string(statement), vec![0, 0]].concat();
        body.extend(u16::try_from(parameters.len()).expect("few parameters").to_be_bytes());
        for parameter in parameters {
            body.extend(i32::try_from(parameter.len()).expect("a short parameter").to_be_bytes());
            body.extend(parameter.as_bytes());
        }
        body.extend([0, 0]);
        message(b'B', &body)
    }
    /// `Describe` of a statement.
    #[must_use]
    pub fn describe_statement(name: &str) -> Vec<u8> {
        message(b'D', &[b"S".to_vec(), c_string(name)].concat())
    }
    /// `Describe` of a portal.
    #[must_use]
    pub fn describe_portal(name: &str) -> Vec<u8> {
        message(b'D', &[b"P".to_vec(), c_string(name)].concat())
    }
    /// `Execute`; 0 rows is all.
    #[must_use]
    pub fn execute(portal: &str, rows: i32) -> Vec<u8> {
        message(b'E', &[c_string(portal), rows.to_be_bytes().to_vec()].concat())
    }
    /// `Close` of a statement.
    #[must_use]
    pub fn close_statement(name: &str) -> Vec<u8> {
        message(b'C', &[b"S".to_vec(), c_string(name)].concat())
    }
    /// `Close` of a portal.
    #[must_use]
    pub fn close_portal(name: &str) -> Vec<u8> {
        message(b'C', &[b"P".to_vec(), c_string(name)].concat())
    }
    /// `Sync`.
    #[must_use]
    pub fn sync() -> Vec<u8> {
        message(b'S', &[])
    }
    /// `Flush`.
    #[must_use]
    pub fn flush() -> Vec<u8> {
        message(b'H', &[])
    }
    /// `Terminate`.
    #[must_use]
    pub fn terminate() -> Vec<u8> {
        message(b'X', &[])
    }
    /// `CopyData`.
    #[must_use]
    pub fn copy_data(data: &[u8]) -> Vec<u8> {
        message(b'd', data)
    }
    /// `CopyDone`.
    #[must_use]
    pub fn copy_done() -> Vec<u8> {
        message(b'c', &[])
    }
    /// `CopyFail`.
    #[must_use]
    pub fn copy_fail(why: &str) -> Vec<u8> {
        message(b'f', &c_string(why))
    }
    /// `FunctionCall` with text arguments and result.
    #[must_use]
    pub fn function_call(oid: u32, arguments: &[&str]) -> Vec<u8> {
        let mut body = [oid.to_be_bytes().to_vec(), vec![0, 0]].concat();
        body.extend(u16::try_from(arguments.len()).expect("few arguments").to_be_bytes());
        for argument in arguments {
            body.extend(i32::try_from(argument.len()).expect("a short argument").to_be_bytes());
            body.extend(argument.as_bytes());
        }
        body.extend([0, 0]);
        message(b'F', &body)
    }
    fn c_string(text: &str) -> Vec<u8> {
        [text.as_bytes(), b"\0"].concat()
    }
}

/// One message from the server.
#[derive(Clone, PartialEq, Eq)]
pub struct Message {
    /// Message type.
    pub tag: u8,
    /// What follows the length.
    pub body: Bytes,
}

/// The fields of an `ErrorResponse` or `NoticeResponse` that tests look at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerError {
    /// `ERROR`, `FATAL`, …; never translated.
    pub severity: String,
    /// SQLSTATE.
    pub code: String,
    /// Message.
    pub message: String,
}

impl Message {
    /// Reads an `ErrorResponse` or `NoticeResponse`; panics on any other message.
    #[must_use]
    pub fn error(&self) -> ServerError {
        assert!(matches!(self.tag, b'E' | b'N'), "not an error: {self:?}");
        let field = |wanted: u8| {
            let fields = self.body.split(|b| *b == 0).filter(|field| !field.is_empty());
            let mut found = fields.filter(|field| field[0] == wanted);
            found.next().map(|field| String::from_utf8_lossy(&field[1..]).into_owned()).unwrap_or_default()
        };
        ServerError { severity: field(b'V'), code: field(b'C'), message: field(b'M') }
    }

    /// Columns of a `DataRow`, in text form.
    #[must_use]
    pub fn columns(&self) -> Vec<Option<String>> {
        assert_eq!(self.tag, b'D', "not a row: {self:?}");
        let mut body = self.body.clone();
        (0..body.get_u16())
            .map(|_| {
                let length = usize::try_from(body.get_i32()).ok()?;
                Some(String::from_utf8_lossy(&body.split_to(length)).into_owned())
            })
            .collect()
    }
}

impl fmt::Debug for Message {
    /// One short line: what two transcripts are compared by.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.tag {
            b'E' | b'N' => {
                let e = self.error();
                write!(f, "{} {} {} {}", char::from(self.tag), e.severity, e.code, e.message)
            }
            tag => write!(f, "{} {}", char::from(tag), self.body[..self.body.len().min(200)].escape_ascii()),
        }
    }
}

trait Socket: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Socket for S {}

/// The connection.
pub struct RawClient {
    socket: Box<dyn Socket>,
    received: BytesMut,
    end_point: Option<Vec<u8>>,
    /// `ParameterStatus` as last reported.
    pub parameters: BTreeMap<String, String>,
    /// Body of `BackendKeyData`: process id and secret.
    pub key: Option<Bytes>,
}

impl RawClient {
    /// Opens TCP and nothing more.
    pub async fn open(address: &Address) -> Self {
        Self::on(TcpStream::connect(("127.0.0.1", address.port)).await.unwrap(), None)
    }

    /// Opens TCP from another address of the loopback network.
    pub async fn open_from(address: &Address, from: [u8; 4]) -> io::Result<Self> {
        let socket = tokio::net::TcpSocket::new_v4()?;
        socket.bind((from, 0).into())?;
        Ok(Self::on(socket.connect(([127, 0, 0, 1], address.port).into()).await?, None))
    }

    /// TLS after `SSLRequest`.
    pub async fn open_tls(address: &Address) -> io::Result<Self> {
        let mut socket = TcpStream::connect(("127.0.0.1", address.port)).await?;
        socket.write_all(&wire::ssl_request()).await?;
        let answer = timeout(SOON, socket.read_u8()).await??;
        if answer != b'S' {
            return Err(io::Error::other(format!("SSLRequest answered {:?}", char::from(answer))));
        }
        Self::handshake(socket, address, &[]).await
    }

    /// TLS from the first byte, offering `alpn`.
    pub async fn open_direct_tls(address: &Address, alpn: &[&[u8]]) -> io::Result<Self> {
        let socket = TcpStream::connect(("127.0.0.1", address.port)).await?;
        Self::handshake(socket, address, alpn).await
    }

    async fn handshake(socket: TcpStream, address: &Address, alpn: &[&[u8]]) -> io::Result<Self> {
        let ca = address.ca.as_ref().expect("an address with TLS");
        let connector = TlsConnector::from(ca.client_config(alpn));
        let name = ServerName::try_from("localhost").expect("a host name");
        let stream = timeout(SOON, connector.connect(name, socket)).await??;
        let end_point = tls::end_point(&stream);
        Ok(Self::on(stream, end_point))
    }

    fn on(socket: impl Socket + 'static, end_point: Option<Vec<u8>>) -> Self {
        let received = BytesMut::new();
        Self { socket: Box::new(socket), received, end_point, parameters: BTreeMap::new(), key: None }
    }

    /// Connects, over TLS if `address` has it, and logs in.
    pub async fn connect(address: &Address) -> Self {
        Self::connect_with(address, &[]).await
    }

    /// [`Self::connect`] with more start-up parameters.
    pub async fn connect_with(address: &Address, parameters: &[(&str, &str)]) -> Self {
        let mut client = match address.ca {
            Some(_) => Self::open_tls(address).await.unwrap(),
            None => Self::open(address).await,
        };
        client.login(address, parameters).await.unwrap_or_else(|e| panic!("login: {e:?}"));
        client
    }

    /// Sends protocol 3.0's start-up message and authenticates up to the first `ReadyForQuery`.
    pub async fn login(&mut self, address: &Address, parameters: &[(&str, &str)]) -> Result<(), ServerError> {
        let known = [("user", address.user.as_str()), ("database", address.database.as_str())];
        let all = [known.as_slice(), parameters].concat();
        self.send_bytes(&wire::startup(3, 0, &all)).await;
        self.authenticate(&address.user, &address.password).await
    }

    /// Answers whatever the server asks, up to the first `ReadyForQuery`. The connection closing counts as an error
    /// without a code.
    pub async fn authenticate(&mut self, user: &str, password: &str) -> Result<(), ServerError> {
        let mut scram = None;
        loop {
            let Some(mut message) = self.read().await else {
                let message = "closed".to_owned();
                return Err(ServerError { severity: String::new(), code: String::new(), message });
            };
            match message.tag {
                b'E' => return Err(message.error()),
                b'R' => match message.body.get_i32() {
                    0 => {}
                    3 => self.send(b'p', &[password.as_bytes(), b"\0"].concat()).await,
                    5 => {
                        let salt = message.body[..4].try_into().unwrap();
                        let answer = md5_hash(user.as_bytes(), password.as_bytes(), salt);
                        self.send(b'p', &[answer.as_bytes(), b"\0"].concat()).await;
                    }
                    10 => {
                        let offered = String::from_utf8_lossy(&message.body).into_owned();
                        let plus = offered.split('\0').any(|name| name == SCRAM_SHA_256_PLUS);
                        let (name, binding) = match (&self.end_point, plus) {
                            (Some(hash), true) => {
                                (SCRAM_SHA_256_PLUS, ChannelBinding::tls_server_end_point(hash.clone()))
                            }
                            (Some(_), false) => (SCRAM_SHA_256, ChannelBinding::unrequested()),
                            (None, _) => (SCRAM_SHA_256, ChannelBinding::unsupported()),
                        };
                        let state = ScramSha256::new(password.as_bytes(), binding);
                        let first = state.message();
                        let length = i32::try_from(first.len()).unwrap().to_be_bytes();
                        let body = [name.as_bytes(), b"\0", length.as_slice(), first].concat();
                        self.send(b'p', &body).await;
                        scram = Some(state);
                    }
                    11 => {
                        let state = scram.as_mut().expect("SASL was begun");
                        state.update(&message.body).unwrap();
                        let answer = state.message().to_vec();
                        self.send(b'p', &answer).await;
                    }
                    12 => scram.as_mut().expect("SASL was begun").finish(&message.body).unwrap(),
                    other => panic!("authentication request {other}"),
                },
                b'Z' => return Ok(()),
                b'K' | b'S' | b'N' | b'v' => {}
                _ => panic!("during login: {message:?}"),
            }
        }
    }

    /// Sends bytes as they are; a peer that has closed is left to [`Self::read`] to find out.
    pub async fn send_bytes(&mut self, bytes: &[u8]) {
        self.try_send(bytes).await.ok();
    }

    /// Sends bytes as they are.
    pub async fn try_send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.socket.write_all(bytes).await?;
        self.socket.flush().await
    }

    /// Sends one message.
    pub async fn send(&mut self, tag: u8, body: &[u8]) {
        self.send_bytes(&wire::message(tag, body)).await;
    }

    /// Sends all of `parts` in one write.
    pub async fn send_all(&mut self, parts: &[Vec<u8>]) {
        self.send_bytes(&parts.concat()).await;
    }

    /// One byte outside any message, such as the answer to `SSLRequest`; `None` when the peer closed.
    pub async fn read_byte(&mut self) -> Option<u8> {
        if self.received.is_empty() && self.fill().await == 0 {
            return None;
        }
        Some(self.received.get_u8())
    }

    /// The next message; `None` when the peer closed. `ParameterStatus` and `BackendKeyData` are also kept.
    pub async fn read(&mut self) -> Option<Message> {
        while self.missing() > 0 {
            if self.fill().await == 0 {
                assert!(self.received.is_empty(), "closed inside a message: {:?}", self.received);
                return None;
            }
        }
        let tag = self.received.get_u8();
        let length = usize::try_from(self.received.get_i32()).unwrap();
        let body = self.received.split_to(length - 4).freeze();
        match tag {
            b'S' => {
                let mut parts =
                    body.split(|b| *b == 0).map(|part| String::from_utf8_lossy(part).into_owned());
                self.parameters.insert(parts.next().unwrap(), parts.next().unwrap());
            }
            b'K' => self.key = Some(body.clone()),
            _ => {}
        }
        Some(Message { tag, body })
    }

    /// The next message, which must not come within `duration`.
    pub async fn expect_silence(&mut self, duration: Duration) {
        if let Ok(message) = timeout(duration, self.read()).await {
            panic!("expected silence, got {message:?}");
        }
    }

    /// [`Self::read`] from a peer that may stop inside a message, which ends the stream like a close.
    pub async fn read_or_cut(&mut self) -> Option<Message> {
        while self.missing() > 0 {
            if self.fill().await == 0 {
                return None;
            }
        }
        self.read().await
    }

    /// Closes our half of the connection.
    pub async fn finish_sending(&mut self) {
        self.socket.shutdown().await.ok();
    }

    /// Everything up to and with the next `ReadyForQuery`, or up to the peer's close.
    pub async fn read_reply(&mut self) -> Vec<Message> {
        let mut reply = Vec::new();
        while let Some(message) = self.read().await {
            let tag = message.tag;
            reply.push(message);
            if tag == b'Z' {
                break;
            }
        }
        reply
    }

    /// Replies to `n` requests, as lines to compare, without the `ParameterStatus` that a pooled connection may
    /// send at another moment.
    pub async fn transcript(&mut self, n: usize) -> Vec<String> {
        let mut lines = Vec::new();
        for _ in 0..n {
            let reply = self.read_reply().await;
            lines.extend(reply.iter().filter(|m| m.tag != b'S').map(|m| format!("{m:?}")));
        }
        lines
    }

    /// A simple query and its whole reply.
    pub async fn query(&mut self, sql: &str) -> Vec<Message> {
        self.send_bytes(&wire::query(sql)).await;
        self.read_reply().await
    }

    /// First column of the first row of a simple query.
    pub async fn scalar(&mut self, sql: &str) -> String {
        let reply = self.query(sql).await;
        let row = reply.iter().find(|m| m.tag == b'D').unwrap_or_else(|| panic!("{sql}: {reply:?}"));
        row.columns()[0].clone().unwrap_or_else(|| panic!("{sql}: null"))
    }

    /// The first error to come, skipping other messages; panics if the peer closes or is ready without one.
    pub async fn expect_error(&mut self) -> ServerError {
        loop {
            match self.read().await {
                Some(message) if message.tag == b'E' => return message.error(),
                Some(message) if message.tag != b'Z' => {}
                other => panic!("expected an error, got {other:?}"),
            }
        }
    }

    /// Reads to the end; panics if the peer does not close.
    pub async fn expect_closed(&mut self) -> Vec<Message> {
        let mut last_words = Vec::new();
        while let Some(message) = self.read().await {
            last_words.push(message);
        }
        last_words
    }

    /// Bytes not yet here of the message at the front of the buffer.
    fn missing(&self) -> usize {
        let Some(&[_, a, b, c, d]) = self.received.first_chunk() else { return 5 - self.received.len() };
        let length = usize::try_from(i32::from_be_bytes([a, b, c, d])).expect("a length from a sound server");
        (1 + length).saturating_sub(self.received.len())
    }

    /// Reads once; 0 is the end, and so is a reset connection.
    async fn fill(&mut self) -> usize {
        self.received.reserve(self.missing().max(4096));
        let read = timeout(SOON, self.socket.read_buf(&mut self.received)).await;
        read.unwrap_or_else(|_| panic!("no byte in {SOON:?}")).unwrap_or(0)
    }
}

impl fmt::Debug for RawClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RawClient").finish_non_exhaustive()
    }
}
