//! A MySQL client that sends exactly what it is told, one packet at a time.
//!
//! Sources: "MySQL Source Documentation: Client/Server Protocol"; MariaDB knowledge base, "Client/Server Protocol".

use std::{
    fmt,
    io::{self, Read, Write},
    time::Duration,
};

use aws_lc_rs::{
    digest::{SHA1_FOR_LEGACY_USE_ONLY, SHA256, digest},
    rsa::{OAEP_SHA1_MGF1SHA1, OaepPublicEncryptingKey, PublicEncryptingKey},
};
use bytes::{Buf, Bytes, BytesMut};
use rustls::pki_types::{ServerName, SubjectPublicKeyInfoDer, pem::PemObject};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;

use crate::{Address, SOON};

/// Capability flags. The upper 32 bits are MariaDB's own, which travel in another place of the handshake.
pub mod capability {
    /// Set by MySQL alone, clear in MariaDB and its clients.
    pub const MYSQL: u64 = 1;
    /// Rows found, not changed, are what an UPDATE affects.
    pub const FOUND_ROWS: u64 = 1 << 1;
    /// All column flags.
    pub const LONG_FLAG: u64 = 1 << 2;
    /// The handshake names a database.
    pub const CONNECT_WITH_DB: u64 = 1 << 3;
    /// zlib compression.
    pub const COMPRESS: u64 = 1 << 5;
    /// LOAD DATA LOCAL.
    pub const LOCAL_FILES: u64 = 1 << 7;
    /// Blanks before `(`.
    pub const IGNORE_SPACE: u64 = 1 << 8;
    /// Protocol 4.1.
    pub const PROTOCOL_41: u64 = 1 << 9;
    /// `interactive_timeout` counts.
    pub const INTERACTIVE: u64 = 1 << 10;
    /// TLS.
    pub const SSL: u64 = 1 << 11;
    /// Status flags in replies.
    pub const TRANSACTIONS: u64 = 1 << 13;
    /// Native password authentication.
    pub const SECURE_CONNECTION: u64 = 1 << 15;
    /// Several statements in one COM_QUERY.
    pub const MULTI_STATEMENTS: u64 = 1 << 16;
    /// Several replies to COM_QUERY.
    pub const MULTI_RESULTS: u64 = 1 << 17;
    /// Several replies to COM_STMT_EXECUTE.
    pub const PS_MULTI_RESULTS: u64 = 1 << 18;
    /// Authentication methods by name.
    pub const PLUGIN_AUTH: u64 = 1 << 19;
    /// Connection attributes.
    pub const CONNECT_ATTRS: u64 = 1 << 20;
    /// Authentication answers over 255 bytes.
    pub const PLUGIN_AUTH_LENENC: u64 = 1 << 21;
    /// Session changes in OK packets.
    pub const SESSION_TRACK: u64 = 1 << 23;
    /// OK packets in place of EOF packets.
    pub const DEPRECATE_EOF: u64 = 1 << 24;
    /// Result sets without metadata.
    pub const OPTIONAL_RESULTSET_METADATA: u64 = 1 << 25;
    /// zstd compression.
    pub const ZSTD: u64 = 1 << 26;
    /// Query attributes.
    pub const QUERY_ATTRIBUTES: u64 = 1 << 27;
    /// MariaDB: COM_STMT_BULK_EXECUTE.
    pub const MARIADB_BULK: u64 = 1 << 34;
    /// MariaDB: more about a column's type.
    pub const MARIADB_EXTENDED_METADATA: u64 = 1 << 35;
    /// MariaDB: metadata of a prepared statement may be left out when it is known.
    pub const MARIADB_CACHE_METADATA: u64 = 1 << 36;

    /// What PyMySQL and other older drivers send: no DEPRECATE_EOF, no session tracking.
    pub const OLD: u64 = LONG_FLAG
        | CONNECT_WITH_DB
        | PROTOCOL_41
        | TRANSACTIONS
        | SECURE_CONNECTION
        | MULTI_RESULTS
        | PS_MULTI_RESULTS
        | PLUGIN_AUTH;
    /// [`OLD`] and what newer ones add.
    pub const NEW: u64 = OLD | CONNECT_ATTRS | PLUGIN_AUTH_LENENC | SESSION_TRACK | DEPRECATE_EOF;
}

/// Status flags of OK and EOF packets.
pub mod status {
    /// A transaction is open.
    pub const IN_TRANS: u16 = 0x0001;
    /// autocommit is on.
    pub const AUTOCOMMIT: u16 = 0x0002;
    /// Another reply follows.
    pub const MORE_RESULTS: u16 = 0x0008;
    /// Rows are to be fetched.
    pub const CURSOR_EXISTS: u16 = 0x0040;
    /// They have all been.
    pub const LAST_ROW_SENT: u16 = 0x0080;
    /// The OK packet has session changes.
    pub const SESSION_STATE_CHANGED: u16 = 0x4000;
}

/// Command bytes.
pub mod command {
    /// Goodbye.
    pub const QUIT: u8 = 0x01;
    /// Changes the database.
    pub const INIT_DB: u8 = 0x02;
    /// A statement as text.
    pub const QUERY: u8 = 0x03;
    /// Columns of a table.
    pub const FIELD_LIST: u8 = 0x04;
    /// A line of figures.
    pub const STATISTICS: u8 = 0x09;
    /// Ends a connection.
    pub const PROCESS_KILL: u8 = 0x0c;
    /// Are you there?
    pub const PING: u8 = 0x0e;
    /// Another login on the same connection.
    pub const CHANGE_USER: u8 = 0x11;
    /// Asks for the binary log.
    pub const BINLOG_DUMP: u8 = 0x12;
    /// Prepares.
    pub const STMT_PREPARE: u8 = 0x16;
    /// Executes what was prepared.
    pub const STMT_EXECUTE: u8 = 0x17;
    /// A piece of a parameter; has no reply.
    pub const STMT_SEND_LONG_DATA: u8 = 0x18;
    /// Forgets what was prepared; has no reply.
    pub const STMT_CLOSE: u8 = 0x19;
    /// Closes a cursor, forgets long data.
    pub const STMT_RESET: u8 = 0x1a;
    /// Turns MULTI_STATEMENTS on and off.
    pub const SET_OPTION: u8 = 0x1b;
    /// Rows of a cursor.
    pub const STMT_FETCH: u8 = 0x1c;
    /// Puts the session back as it was after login.
    pub const RESET_CONNECTION: u8 = 0x1f;
    /// MariaDB: executes once for each row of parameters.
    pub const STMT_BULK_EXECUTE: u8 = 0xfa;
}

/// Longest payload of one packet; a longer one goes on in the next.
const PACKET_MAX: usize = 0xff_ffff;

/// A packet as bytes: `length: u24 | sequence: u8 | payload`, cut where the payload is longer than a packet may be.
/// Gives the sequence number of the next one too.
#[must_use]
pub fn packet(mut sequence: u8, payload: &[u8]) -> (Vec<u8>, u8) {
    let mut bytes = Vec::with_capacity(payload.len() + 4);
    let mut pieces: Vec<&[u8]> = payload.chunks(PACKET_MAX).collect();
    if payload.len().is_multiple_of(PACKET_MAX) {
        pieces.push(&[]);
    }
    for piece in pieces {
        let length = u32::try_from(piece.len()).expect("under 16 MiB").to_le_bytes();
        bytes.extend_from_slice(&[length[0], length[1], length[2], sequence]);
        bytes.extend_from_slice(piece);
        sequence = sequence.wrapping_add(1);
    }
    (bytes, sequence)
}

/// A length-encoded integer.
#[must_use]
pub fn lenenc(n: u64) -> Vec<u8> {
    let bytes = n.to_le_bytes();
    match n {
        0..=250 => vec![bytes[0]],
        251..=0xffff => [&[0xfc], &bytes[..2]].concat(),
        0x1_0000..=0xff_ffff => [&[0xfd], &bytes[..3]].concat(),
        _ => [&[0xfe], &bytes[..]].concat(),
    }
}

/// A length-encoded string.
#[must_use]
pub fn lenenc_bytes(bytes: &[u8]) -> Vec<u8> {
    [&lenenc(bytes.len() as u64), bytes].concat()
}

/// What the server says first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Greeting {
    /// Version, as sent.
    pub version: String,
    /// Connection id.
    pub id: u32,
    /// What the server can, MariaDB's own flags included.
    pub capabilities: u64,
    /// Collation id of the server.
    pub collation: u8,
    /// Status flags.
    pub status: u16,
    /// Salt for the first authentication method, 20 bytes.
    pub nonce: Vec<u8>,
    /// That method.
    pub plugin: String,
}

/// An error packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MySqlError {
    /// Error number.
    pub code: u16,
    /// SQLSTATE; empty where the packet has none, as before a login.
    pub state: String,
    /// Message.
    pub message: String,
}

/// An OK packet, or the EOF packet in its place.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Done {
    /// Rows changed.
    pub affected: u64,
    /// First id generated.
    pub insert_id: u64,
    /// Status flags, see [`status`].
    pub status: u16,
    /// Warnings.
    pub warnings: u16,
    /// For people.
    pub info: String,
    /// What changed in the session, in the order told.
    pub changes: Vec<Change>,
}

/// One entry of an OK packet's session changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A system variable has this value.
    Variable(String, String),
    /// The database is this.
    Schema(String),
    /// Something of the session changed.
    State(String),
    /// Statements that would bring the transaction's characteristics back.
    Characteristics(String),
    /// The transaction in eight letters.
    Transaction(String),
    /// Another type, and its bytes.
    Other(u8, Vec<u8>),
}

/// A column of a result set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// Alias.
    pub name: String,
    /// Table alias.
    pub table: String,
    /// Database.
    pub schema: String,
    /// Collation id.
    pub collation: u16,
    /// Display width.
    pub length: u32,
    /// Type.
    pub kind: u8,
    /// Flags.
    pub flags: u16,
    /// Digits behind the point.
    pub decimals: u8,
}

/// Columns and rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rows {
    /// Columns; empty where the server left them out.
    pub columns: Vec<Column>,
    /// Rows, as sent.
    pub rows: Vec<Bytes>,
    /// How it ended.
    pub end: Result<Done, MySqlError>,
}

/// A reply to a command.
#[derive(Clone, PartialEq, Eq)]
pub enum Reply {
    /// Done.
    Done(Done),
    /// Failed.
    Failed(MySqlError),
    /// A result set.
    Rows(Rows),
    /// The server wants this file, see [`RawMySql::send_file`].
    WantsFile(String),
}

/// What `COM_STMT_PREPARE` answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prepared {
    /// Statement id.
    pub id: u32,
    /// Its parameters.
    pub parameters: Vec<Column>,
    /// The columns of its result.
    pub columns: Vec<Column>,
    /// Warnings.
    pub warnings: u16,
}

/// How to log in. Every part is sent as it stands here.
#[derive(Debug, Clone)]
pub struct Login {
    /// Capability flags, see [`capability`]. [`capability::SSL`] is added where there is TLS.
    pub capabilities: u64,
    /// User.
    pub user: String,
    /// Password, for whatever method is asked for.
    pub password: String,
    /// Database; sent only with [`capability::CONNECT_WITH_DB`].
    pub database: String,
    /// Collation id; 45 is `utf8mb4_general_ci`.
    pub collation: u8,
    /// Authentication method to begin with; `None` takes the server's.
    pub plugin: Option<String>,
    /// Connection attributes; sent only with [`capability::CONNECT_ATTRS`].
    pub attributes: Vec<(String, String)>,
}

impl Login {
    /// The user and database of `address`, with these flags.
    #[must_use]
    pub fn new(address: &Address, capabilities: u64) -> Self {
        Self {
            capabilities,
            user: address.user.clone(),
            password: address.password.clone(),
            database: address.database.clone(),
            collation: 45,
            plugin: None,
            attributes: vec![("program_name".to_owned(), "raw".to_owned())],
        }
    }

    /// Begins with this authentication method.
    #[must_use]
    pub fn plugin(mut self, name: &str) -> Self {
        self.plugin = Some(name.to_owned());
        self
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Packing {
    None,
    Zlib,
    Zstd,
}

trait Socket: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Socket for S {}

/// The connection.
pub struct RawMySql {
    socket: Option<Box<dyn Socket>>,
    received: BytesMut,
    /// Sequence number of the next packet, of either side.
    sequence: u8,
    secure: bool,
    /// The EOF packet behind the columns read last.
    between: Option<Done>,
    /// How bytes are packed once the login is over.
    packing: Packing,
    /// Packed and not yet unpacked.
    packed: BytesMut,
    /// Sequence number of the next packed packet, of either side.
    packed_sequence: u8,
    /// Whatever comes is taken.
    lenient: bool,
    heard: Option<Vec<String>>,
    /// What the server said first.
    pub greeting: Greeting,
    /// Flags that both sides have set.
    pub capabilities: u64,
    /// How the login went: the methods asked for, and how `caching_sha2_password` was answered: `fast`, `full over TLS`
    /// or `full by RSA`.
    pub steps: Vec<String>,
    /// The OK packet that ended the login.
    pub welcome: Done,
}

impl RawMySql {
    /// Opens TCP and reads the greeting; the error packet that may come in its place is the error.
    pub async fn open(address: &Address) -> Result<Self, MySqlError> {
        Self::greeted(TcpStream::connect(("127.0.0.1", address.port)).await.unwrap()).await
    }

    /// [`Self::open`] from another address of the loopback network.
    pub async fn open_from(address: &Address, from: [u8; 4]) -> io::Result<Self> {
        let socket = tokio::net::TcpSocket::new_v4()?;
        socket.bind((from, 0).into())?;
        let socket = socket.connect(([127, 0, 0, 1], address.port).into()).await?;
        Self::greeted(socket).await.map_err(|e| io::Error::other(format!("{e:?}")))
    }

    async fn greeted(socket: TcpStream) -> Result<Self, MySqlError> {
        socket.set_nodelay(true).unwrap();
        let mut client = Self {
            socket: Some(Box::new(socket)),
            received: BytesMut::new(),
            sequence: 0,
            secure: false,
            between: None,
            packing: Packing::None,
            packed: BytesMut::new(),
            packed_sequence: 0,
            lenient: false,
            heard: None,
            greeting: Greeting {
                version: String::new(),
                id: 0,
                capabilities: 0,
                collation: 0,
                status: 0,
                nonce: Vec::new(),
                plugin: String::new(),
            },
            capabilities: capability::PROTOCOL_41,
            steps: Vec::new(),
            welcome: Done::default(),
        };
        let Some(packet) = client.read().await else { return Err(closed()) };
        if packet.first() == Some(&0xff) {
            return Err(error(packet));
        }
        client.greeting = greeting(packet);
        Ok(client)
    }

    /// Connects, over TLS if `address` has it, and logs in with [`capability::NEW`].
    pub async fn connect(address: &Address) -> Self {
        Self::connect_with(address, capability::NEW).await
    }

    /// [`Self::connect`] with other capability flags.
    pub async fn connect_with(address: &Address, capabilities: u64) -> Self {
        let mut client = Self::open(address).await.unwrap_or_else(|e| panic!("greeting: {e:?}"));
        let login = Login::new(address, capabilities);
        client.login(address, &login).await.unwrap_or_else(|e| panic!("login: {e:?}"));
        client
    }

    /// Goes over to TLS where `address` has it, then logs in.
    pub async fn login(&mut self, address: &Address, login: &Login) -> Result<(), MySqlError> {
        if address.ca.is_some() {
            self.start_tls(address, login).await.unwrap();
        }
        self.send_login(login).await;
        self.authenticate(&login.password).await
    }

    /// Sends the SSLRequest packet and shakes hands.
    pub async fn start_tls(&mut self, address: &Address, login: &Login) -> io::Result<()> {
        let flags = login.capabilities | capability::SSL;
        self.send(&login_start(flags, login.collation)).await;
        let ca = address.ca.as_ref().expect("an address with TLS");
        let connector = TlsConnector::from(ca.client_config(&[]));
        let name = ServerName::try_from("localhost").expect("a host name");
        let plain = self.socket.take().expect("an open socket");
        let stream = timeout(SOON, connector.connect(name, plain)).await??;
        self.socket = Some(Box::new(stream));
        self.secure = true;
        Ok(())
    }

    /// Sends the HandshakeResponse41 packet.
    pub async fn send_login(&mut self, login: &Login) {
        let mut flags = login.capabilities;
        if self.secure {
            flags |= capability::SSL;
        }
        self.capabilities = flags & (self.greeting.capabilities | capability::CONNECT_WITH_DB);
        let plugin = login.plugin.clone().unwrap_or_else(|| self.greeting.plugin.clone());
        self.steps.push(plugin.clone());
        let answer = scramble(&plugin, &login.password, &self.greeting.nonce);
        let mut body = login_start(flags, login.collation);
        body.extend([login.user.as_bytes(), b"\0"].concat());
        if flags & capability::PLUGIN_AUTH_LENENC != 0 {
            body.extend(lenenc_bytes(&answer));
        } else {
            body.push(u8::try_from(answer.len()).expect("a short answer"));
            body.extend(answer);
        }
        if flags & capability::CONNECT_WITH_DB != 0 {
            body.extend([login.database.as_bytes(), b"\0"].concat());
        }
        if flags & capability::PLUGIN_AUTH != 0 {
            body.extend([plugin.as_bytes(), b"\0"].concat());
        }
        if flags & capability::CONNECT_ATTRS != 0 {
            body.extend(attributes(&login.attributes));
        }
        if flags & capability::ZSTD != 0 {
            body.push(3);
        }
        self.send(&body).await;
    }

    /// Answers whatever the server asks, up to OK or an error. The connection closing counts as an error without a
    /// number.
    pub async fn authenticate(&mut self, password: &str) -> Result<(), MySqlError> {
        let mut plugin = self.steps.last().cloned().unwrap_or_default();
        let mut nonce = self.greeting.nonce.clone();
        loop {
            let Some(mut packet) = self.read().await else { return Err(closed()) };
            match packet.first().copied() {
                Some(0x00) => {
                    self.welcome = done(packet, self.capabilities);
                    self.packing = match () {
                        () if self.has(capability::COMPRESS) => Packing::Zlib,
                        () if self.has(capability::ZSTD) => Packing::Zstd,
                        () => Packing::None,
                    };
                    return Ok(());
                }
                Some(0xff) => return Err(error(packet)),
                Some(0xfe) => {
                    packet.advance(1);
                    plugin = zero_ended(&mut packet);
                    nonce = packet.strip_suffix(b"\0").unwrap_or(&packet).to_vec();
                    self.steps.push(plugin.clone());
                    self.send(&scramble(&plugin, password, &nonce)).await;
                }
                Some(0x01) if plugin == "caching_sha2_password" => match packet.get(1) {
                    Some(3) => self.steps.push("fast".to_owned()),
                    Some(4) if self.secure => {
                        self.steps.push("full over TLS".to_owned());
                        self.send(&[password.as_bytes(), b"\0"].concat()).await;
                    }
                    Some(4) => {
                        self.steps.push("full by RSA".to_owned());
                        self.send(&[2]).await;
                    }
                    _ => {
                        let hidden = encrypt(&packet[1..], password, &nonce);
                        self.send(&hidden).await;
                    }
                },
                _ => panic!("no login goes on like this: {}", packet.escape_ascii()),
            }
        }
    }

    /// `COM_CHANGE_USER`, and whatever the server asks then.
    pub async fn change_user(&mut self, login: &Login) -> Result<(), MySqlError> {
        let plugin = login.plugin.clone().unwrap_or_else(|| self.greeting.plugin.clone());
        self.steps = vec![plugin.clone()];
        let answer = scramble(&plugin, &login.password, &self.greeting.nonce);
        let mut body = [login.user.as_bytes(), b"\0"].concat();
        body.push(u8::try_from(answer.len()).expect("a short answer"));
        body.extend(answer);
        body.extend([login.database.as_bytes(), b"\0"].concat());
        body.extend(u16::from(login.collation).to_le_bytes());
        if self.capabilities & capability::PLUGIN_AUTH != 0 {
            body.extend([plugin.as_bytes(), b"\0"].concat());
        }
        if self.capabilities & capability::CONNECT_ATTRS != 0 {
            body.extend(attributes(&login.attributes));
        }
        self.command(command::CHANGE_USER, &body).await;
        self.authenticate(&login.password).await
    }

    /// From now on every payload read is kept for [`Self::recorded`].
    pub fn record(&mut self) {
        self.heard = Some(Vec::new());
    }

    /// Puts a line into the record.
    pub fn note(&mut self, line: &str) {
        self.heard.iter_mut().for_each(|heard| heard.push(format!("--- {line}")));
    }

    /// What was read since [`Self::record`], a payload a line; the record begins anew.
    pub fn recorded(&mut self) -> Vec<String> {
        self.heard.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Puts another line in the place of the payload read last.
    pub fn record_instead(&mut self, line: String) {
        if let Some(last) = self.heard.as_mut().and_then(|heard| heard.last_mut()) {
            *last = line;
        }
    }

    /// Sends bytes as they are, or packed.
    pub async fn send_bytes(&mut self, bytes: &[u8]) {
        let packed;
        let bytes = if self.packing == Packing::None {
            bytes
        } else {
            packed = self.pack(bytes);
            &packed
        };
        self.send_packed_bytes(bytes).await;
    }

    /// Sends bytes as they are, even where bytes are packed.
    pub async fn send_packed_bytes(&mut self, bytes: &[u8]) {
        let socket = self.socket.as_mut().expect("an open socket");
        // A peer that has closed is seen when reading.
        if socket.write_all(bytes).await.is_ok() {
            socket.flush().await.ok();
        }
    }

    /// Sends a packet with the next sequence number.
    pub async fn send(&mut self, payload: &[u8]) {
        let (bytes, next) = packet(self.sequence, payload);
        self.sequence = next;
        self.send_bytes(&bytes).await;
    }

    /// Sends a command, which begins the sequence anew.
    pub async fn command(&mut self, command: u8, body: &[u8]) {
        self.sequence = 0;
        self.packed_sequence = 0;
        self.send(&[&[command], body].concat()).await;
    }

    /// The next packet read answers a command whose packet was [`Self::send_bytes`].
    pub const fn expect_answer(&mut self) {
        self.sequence = 1;
    }

    /// The next payload, put together where it came in several packets; `None` when the peer has closed. Panics on a
    /// sequence number out of turn and on a connection that ends inside a packet.
    pub async fn read(&mut self) -> Option<Bytes> {
        let mut payload = BytesMut::new();
        loop {
            while self.missing() > 0 {
                if self.fill().await == 0 {
                    assert!(
                        self.received.is_empty() && payload.is_empty(),
                        "cut inside a packet: {:?}",
                        self.received
                    );
                    return None;
                }
            }
            let length = usize::try_from(self.received.get_uint_le(3)).unwrap();
            let sequence = self.received.get_u8();
            let piece = self.received.split_to(length);
            assert_eq!(sequence, self.sequence, "sequence number of a packet: {}", piece.escape_ascii());
            self.sequence = self.sequence.wrapping_add(1);
            if payload.is_empty() {
                payload = piece;
            } else {
                payload.extend_from_slice(&piece);
            }
            if length < PACKET_MAX {
                let payload = payload.freeze();
                self.heard.iter_mut().for_each(|heard| heard.push(line(&payload)));
                return Some(payload);
            }
        }
    }

    /// All bytes up to the end, whatever they are.
    pub async fn read_bytes_to_end(&mut self) -> Bytes {
        self.lenient = true;
        while self.fill().await > 0 {}
        self.received.split().freeze()
    }

    /// The next packet, which must not come within `duration`.
    pub async fn expect_silence(&mut self, duration: Duration) {
        if let Ok(packet) = timeout(duration, self.read()).await {
            panic!("expected silence, got {packet:?}");
        }
    }

    /// Reads to the end; panics if the peer does not close.
    pub async fn expect_closed(&mut self) -> Vec<Bytes> {
        let mut last_words = Vec::new();
        while let Some(packet) = self.read().await {
            last_words.push(packet);
        }
        last_words
    }

    /// The error packet that comes without having been asked for, as when the proxy drains.
    pub async fn expect_error(&mut self) -> MySqlError {
        // As the answer to a request that crosses it.
        self.sequence = 1;
        match self.read().await {
            Some(packet) if packet.first() == Some(&0xff) => error(packet),
            other => panic!("expected an error, got {other:?}"),
        }
    }

    /// The error packet before a close, whether anything was asked or not: it is numbered as an answer is, since that is
    /// what a client takes it for.
    pub async fn expect_farewell(&mut self) -> MySqlError {
        self.sequence = 1;
        match self.read().await {
            Some(packet) if packet.first() == Some(&0xff) => error(packet),
            other => panic!("expected an error, got {other:?}"),
        }
    }

    /// The next reply to a query or an execution.
    pub async fn read_reply(&mut self) -> Reply {
        let packet = self.read().await.unwrap_or_else(|| panic!("closed in place of a reply"));
        match packet.first() {
            Some(0x00) => Reply::Done(done(packet, self.capabilities)),
            Some(0xff) => Reply::Failed(error(packet)),
            Some(0xfb) => Reply::WantsFile(String::from_utf8_lossy(&packet[1..]).into_owned()),
            _ => Reply::Rows(self.read_result_set(packet).await),
        }
    }

    /// All replies to one command: each but the last says that more follow.
    pub async fn read_replies(&mut self) -> Vec<Reply> {
        let mut replies = Vec::new();
        loop {
            let reply = self.read_reply().await;
            let more = reply.status().is_some_and(|flags| flags & status::MORE_RESULTS != 0);
            replies.push(reply);
            if !more {
                return replies;
            }
        }
    }

    async fn read_result_set(&mut self, mut head: Bytes) -> Rows {
        let count = get_lenenc(&mut head);
        let mut columns = Vec::new();
        if head.first() != Some(&0) {
            match self.read_columns(count).await {
                Ok(read) => columns = read,
                Err(error) => return Rows { columns, rows: Vec::new(), end: Err(error) },
            }
        } else if !self.has(capability::DEPRECATE_EOF) {
            self.read().await;
        }
        // Where there is no EOF packet behind the columns, rows or their end come next; a cursor has none.
        if let Some(between) = self.between.take()
            && between.status & status::CURSOR_EXISTS != 0
        {
            return Rows { columns, rows: Vec::new(), end: Ok(between) };
        }
        let (rows, end) = self.read_rows().await;
        Rows { columns, rows, end }
    }

    /// `count` column definitions and, where the server still sends it, the EOF packet behind them; or the error that comes
    /// in the place of one.
    async fn read_columns(&mut self, count: u64) -> Result<Vec<Column>, MySqlError> {
        let mut columns = Vec::new();
        for _ in 0..count {
            let packet = self.read().await.unwrap_or_else(|| panic!("closed among the columns"));
            if packet.first() == Some(&0xff) {
                return Err(error(packet));
            }
            columns.push(column(packet, self.capabilities));
        }
        if count > 0 && !self.has(capability::DEPRECATE_EOF) {
            let packet = self.read().await.unwrap_or_else(|| panic!("closed behind the columns"));
            if packet.first() == Some(&0xff) {
                return Err(error(packet));
            }
            assert_eq!((packet.first(), packet.len()), (Some(&0xfe), 5), "EOF behind the columns");
            let end = end(packet, self.capabilities);
            // What it says of status and warnings is not yet true, and no client looks.
            self.record_instead(format!("EOF {:#x}", end.status & status::CURSOR_EXISTS));
            self.between = Some(end);
        }
        Ok(columns)
    }

    /// Rows up to their end, as `COM_STMT_FETCH` has them.
    pub async fn read_rows(&mut self) -> (Vec<Bytes>, Result<Done, MySqlError>) {
        let mut rows = Vec::new();
        loop {
            let packet = self.read().await.unwrap_or_else(|| panic!("closed among the rows"));
            match packet.first() {
                Some(0xff) => return (rows, Err(error(packet))),
                // A row that begins with so long a value is longer than any end.
                Some(0xfe) if packet.len() < PACKET_MAX => {
                    return (rows, Ok(end(packet, self.capabilities)));
                }
                _ => rows.push(packet),
            }
        }
    }

    /// `COM_QUERY` and all its replies.
    pub async fn query(&mut self, sql: &str) -> Vec<Reply> {
        // Query attributes, of which there are none: their count and the number of sets.
        let head: &[u8] = if self.has(capability::QUERY_ATTRIBUTES) { &[0, 1] } else { &[] };
        self.command(command::QUERY, &[head, sql.as_bytes()].concat()).await;
        self.read_replies().await
    }

    /// `COM_QUERY` with query attributes, which have to be agreed on, and all its replies.
    pub async fn query_with(&mut self, attributes: &[(&str, &str)], sql: &str) -> Vec<Reply> {
        assert!(self.has(capability::QUERY_ATTRIBUTES));
        // How many there are, and one set of values.
        let mut body = [lenenc(attributes.len() as u64), vec![1]].concat();
        if !attributes.is_empty() {
            body.extend(vec![0; attributes.len().div_ceil(8)]);
            // New types and names follow: VAR_STRING each.
            body.push(1);
            for (name, _) in attributes {
                body.extend([&[0xfd, 0], lenenc_bytes(name.as_bytes()).as_slice()].concat());
            }
            body.extend(attributes.iter().flat_map(|(_, value)| lenenc_bytes(value.as_bytes())));
        }
        body.extend(sql.as_bytes());
        self.command(command::QUERY, &body).await;
        self.read_replies().await
    }

    /// Replies to several queries, as lines to compare.
    pub async fn transcript(&mut self, statements: &[&str]) -> Vec<String> {
        let mut lines = Vec::new();
        for sql in statements {
            lines.extend(self.query(sql).await.iter().map(|reply| format!("{reply:?}")));
        }
        lines
    }

    /// `COM_QUERY` with one reply, which must not be an error.
    pub async fn ok(&mut self, sql: &str) -> Done {
        let replies = self.query(sql).await;
        match replies.as_slice() {
            [Reply::Done(done)] => done.clone(),
            [Reply::Rows(Rows { end: Ok(done), .. })] => done.clone(),
            _ => panic!("{sql}: {replies:?}"),
        }
    }

    /// First column of the first row of a query.
    pub async fn scalar(&mut self, sql: &str) -> String {
        let rows = self.rows(sql).await;
        let value = rows.first().and_then(|row| row.first()).unwrap_or_else(|| panic!("{sql}: no row"));
        value.clone().unwrap_or_else(|| panic!("{sql}: null"))
    }

    /// All rows of a query with one result set.
    pub async fn rows(&mut self, sql: &str) -> Vec<Vec<Option<String>>> {
        let replies = self.query(sql).await;
        match replies.as_slice() {
            [Reply::Rows(rows)] if rows.end.is_ok() => rows.texts(),
            _ => panic!("{sql}: {replies:?}"),
        }
    }

    /// The error of a query; panics if it has none.
    pub async fn error(&mut self, sql: &str) -> MySqlError {
        let replies = self.query(sql).await;
        match replies.last() {
            Some(Reply::Failed(error) | Reply::Rows(Rows { end: Err(error), .. })) => error.clone(),
            _ => panic!("{sql}: {replies:?}"),
        }
    }

    /// A command whose reply is OK or an error, such as `COM_PING` or `COM_RESET_CONNECTION`. The reply to
    /// `COM_SET_OPTION` and `COM_DEBUG` may be an EOF packet.
    pub async fn simple(&mut self, command: u8, body: &[u8]) -> Result<Done, MySqlError> {
        self.command(command, body).await;
        let packet = self.read().await.unwrap_or_else(|| panic!("closed in place of a reply"));
        match packet.first() {
            Some(0x00) => Ok(done(packet, self.capabilities)),
            Some(0xfe) => Ok(end(packet, self.capabilities)),
            Some(0xff) => Err(error(packet)),
            _ => panic!("neither OK nor an error: {}", packet.escape_ascii()),
        }
    }

    /// `COM_STMT_PREPARE`.
    pub async fn prepare(&mut self, sql: &str) -> Result<Prepared, MySqlError> {
        self.command(command::STMT_PREPARE, sql.as_bytes()).await;
        let mut packet = self.read().await.unwrap_or_else(|| panic!("closed in place of a reply"));
        if packet.first() == Some(&0xff) {
            return Err(error(packet));
        }
        assert_eq!(packet.get_u8(), 0, "COM_STMT_PREPARE_OK begins with 0");
        // The id is each server's own choice.
        self.record_instead(format!("prepared {}", packet[4..].escape_ascii()));
        let (id, columns, parameters) = (packet.get_u32_le(), packet.get_u16_le(), packet.get_u16_le());
        packet.advance(1);
        let warnings = packet.get_u16_le();
        let parameters = self.read_columns(parameters.into()).await?;
        let columns = self.read_columns(columns.into()).await?;
        self.between = None;
        Ok(Prepared { id, parameters, columns, warnings })
    }

    /// `COM_STMT_EXECUTE` with all parameters as text, and all its replies. `cursor` is 1 for a read-only cursor.
    pub async fn execute(&mut self, id: u32, cursor: u8, parameters: &[Option<&str>]) -> Vec<Reply> {
        self.send_execute(id, cursor, parameters).await;
        self.read_replies().await
    }

    /// `COM_STMT_EXECUTE` without waiting for a reply.
    pub async fn send_execute(&mut self, id: u32, cursor: u8, parameters: &[Option<&str>]) {
        let mut body = [id.to_le_bytes().as_slice(), &[cursor], &1_u32.to_le_bytes()].concat();
        if !parameters.is_empty() {
            // With query attributes, these are counted, too, and all have names; parameters have empty ones.
            let named = self.has(capability::QUERY_ATTRIBUTES);
            if named {
                body.extend(lenenc(parameters.len() as u64));
            }
            let mut nulls = vec![0; parameters.len().div_ceil(8)];
            for (i, _) in parameters.iter().enumerate().filter(|(_, p)| p.is_none()) {
                nulls[i / 8] |= 1 << (i % 8);
            }
            body.extend(nulls);
            // New types follow: VAR_STRING each.
            body.push(1);
            let kind: &[u8] = if named { &[0xfd, 0, 0] } else { &[0xfd, 0] };
            body.extend(kind.repeat(parameters.len()));
            body.extend(parameters.iter().flatten().flat_map(|value| lenenc_bytes(value.as_bytes())));
        }
        self.command(command::STMT_EXECUTE, &body).await;
    }

    /// `COM_STMT_FETCH`: up to `n` rows of a cursor.
    pub async fn fetch(&mut self, id: u32, n: u32) -> (Vec<Bytes>, Result<Done, MySqlError>) {
        self.command(command::STMT_FETCH, &[id.to_le_bytes(), n.to_le_bytes()].concat()).await;
        self.read_rows().await
    }

    /// `COM_STMT_SEND_LONG_DATA`, which has no reply.
    pub async fn send_long_data(&mut self, id: u32, parameter: u16, data: &[u8]) {
        let head = [id.to_le_bytes().as_slice(), &parameter.to_le_bytes()].concat();
        self.command(command::STMT_SEND_LONG_DATA, &[head.as_slice(), data].concat()).await;
    }

    /// `COM_STMT_CLOSE`, which has no reply.
    pub async fn close_statement(&mut self, id: u32) {
        self.command(command::STMT_CLOSE, &id.to_le_bytes()).await;
    }

    /// Answers [`Reply::WantsFile`]: the pieces, then the empty packet that ends a file.
    pub async fn send_file(&mut self, pieces: &[&[u8]]) {
        for piece in pieces {
            self.send(piece).await;
        }
        self.send(&[]).await;
    }

    /// Closes our half of the connection.
    pub async fn finish_sending(&mut self) {
        if let Some(socket) = &mut self.socket {
            socket.shutdown().await.ok();
        }
    }

    fn has(&self, flag: u64) -> bool {
        self.capabilities & flag != 0
    }

    /// Bytes not yet here of the packet at the front of the buffer.
    fn missing(&self) -> usize {
        let Some(&[a, b, c, _]) = self.received.first_chunk() else { return 4 - self.received.len() };
        let length = u32::from_le_bytes([a, b, c, 0]) as usize;
        (4 + length).saturating_sub(self.received.len())
    }

    /// Reads once; 0 is the end, and so is a reset connection.
    async fn fill(&mut self) -> usize {
        self.received.reserve(self.missing().max(4096));
        let socket = self.socket.as_mut().expect("an open socket");
        let buffer = if self.packing == Packing::None { &mut self.received } else { &mut self.packed };
        let read = timeout(SOON, socket.read_buf(buffer)).await;
        let read = read.unwrap_or_else(|_| panic!("no byte in {SOON:?}")).unwrap_or(0);
        self.unpack();
        read
    }

    /// Shape: `length: u24 | sequence: u8 | unpacked length: u24 | bytes`; an unpacked length of 0 for what is not
    /// packed. Source: MySQL Source Documentation, "Compression".
    fn pack(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        for piece in bytes.chunks(PACKET_MAX) {
            let packed = match self.packing {
                _ if piece.len() < 50 => None,
                Packing::None => None,
                Packing::Zlib => {
                    let mut encoder =
                        flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
                    encoder.write_all(piece).unwrap();
                    Some(encoder.finish().unwrap())
                }
                Packing::Zstd => Some(zstd::bulk::compress(piece, 3).unwrap()),
            };
            let u24 = |n: usize| u32::try_from(n).expect("under 16 MiB").to_le_bytes();
            let unpacked = packed.as_ref().map_or(0, |_| piece.len());
            let body = packed.as_deref().unwrap_or(piece);
            out.extend_from_slice(&u24(body.len())[..3]);
            out.push(self.packed_sequence);
            out.extend_from_slice(&u24(unpacked)[..3]);
            out.extend_from_slice(body);
            self.packed_sequence = self.packed_sequence.wrapping_add(1);
        }
        out
    }

    fn unpack(&mut self) {
        while let Some(&[a, b, c, sequence, d, e, f]) = self.packed.first_chunk() {
            let length = u32::from_le_bytes([a, b, c, 0]) as usize;
            let unpacked = u32::from_le_bytes([d, e, f, 0]) as usize;
            if self.packed.len() < 7 + length {
                self.packed.reserve(7 + length);
                return;
            }
            let in_turn = sequence == self.packed_sequence || self.lenient;
            assert!(in_turn, "sequence number of a packed packet: {sequence}, not {}", self.packed_sequence);
            self.packed_sequence = self.packed_sequence.wrapping_add(1);
            self.packed.advance(7);
            let body = self.packed.split_to(length);
            if unpacked == 0 {
                self.received.extend_from_slice(&body);
                continue;
            }
            let mut plain = Vec::with_capacity(unpacked);
            match self.packing {
                Packing::Zlib => {
                    flate2::read::ZlibDecoder::new(&*body).read_to_end(&mut plain).expect("zlib");
                }
                _ => plain = zstd::bulk::decompress(&body, unpacked).expect("zstd"),
            }
            assert_eq!(plain.len(), unpacked, "unpacked length");
            self.received.extend_from_slice(&plain);
        }
    }
}

/// A payload as a line: its length, its front and, where that is not all, a hash of it.
fn line(payload: &[u8]) -> String {
    let front = payload[..payload.len().min(200)].escape_ascii();
    match payload.len() {
        0..=200 => format!("{} {front}", payload.len()),
        length => {
            let hash = digest(&SHA256, payload);
            format!("{length} {front}… {}", hash.as_ref()[..8].escape_ascii())
        }
    }
}

impl fmt::Debug for RawMySql {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RawMySql").finish_non_exhaustive()
    }
}

impl Reply {
    /// Status flags, where it has them: an error has none.
    #[must_use]
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Done(done) | Self::Rows(Rows { end: Ok(done), .. }) => Some(done.status),
            Self::Failed(_) | Self::WantsFile(_) | Self::Rows(Rows { end: Err(_), .. }) => None,
        }
    }
}

impl fmt::Debug for Reply {
    /// One short line: what two transcripts are compared by.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done(done) => write!(f, "{done:?}"),
            Self::Failed(e) => write!(f, "{} ({}) {}", e.code, e.state, e.message),
            Self::Rows(Rows { columns, rows, end }) => {
                let columns: Vec<String> =
                    columns.iter().map(|c| format!("{}:{:#x}:{:#x}", c.name, c.kind, c.flags)).collect();
                let rows: Vec<String> =
                    rows.iter().map(|row| row[..row.len().min(200)].escape_ascii().to_string()).collect();
                write!(f, "[{}] {rows:?} {end:?}", columns.join(" "))
            }
            Self::WantsFile(name) => write!(f, "wants {name}"),
        }
    }
}

impl Rows {
    /// Rows of the text protocol.
    #[must_use]
    pub fn texts(&self) -> Vec<Vec<Option<String>>> {
        let row = |row: &Bytes| {
            let mut rest = row.clone();
            let mut values = Vec::new();
            while rest.has_remaining() {
                values.push(get_lenenc_bytes(&mut rest).map(|v| String::from_utf8_lossy(&v).into_owned()));
            }
            values
        };
        self.rows.iter().map(row).collect()
    }

    /// Rows of the binary protocol whose columns are integers and strings; panics on other types.
    #[must_use]
    pub fn values(&self) -> Vec<Vec<Option<String>>> {
        self.rows.iter().map(|row| binary_row(row.clone(), &self.columns)).collect()
    }
}

/// A row of the binary protocol whose columns are integers and strings; panics on other types.
#[must_use]
pub fn binary_row(mut row: Bytes, columns: &[Column]) -> Vec<Option<String>> {
    row.advance(1);
    let nulls = row.split_to((columns.len() + 9) / 8);
    let value = |(i, column): (usize, &Column)| {
        if nulls[(i + 2) / 8] & (1 << ((i + 2) % 8)) != 0 {
            return None;
        }
        let unsigned = column.flags & 0x20 != 0;
        Some(match column.kind {
            0x01 if unsigned => row.get_u8().to_string(),
            0x01 => row.get_i8().to_string(),
            0x02 | 0x0d if unsigned => row.get_u16_le().to_string(),
            0x02 | 0x0d => row.get_i16_le().to_string(),
            0x03 | 0x09 if unsigned => row.get_u32_le().to_string(),
            0x03 | 0x09 => row.get_i32_le().to_string(),
            0x08 if unsigned => row.get_u64_le().to_string(),
            0x08 => row.get_i64_le().to_string(),
            0x00 | 0x0f | 0xf6..=0xff => {
                let bytes = get_lenenc_bytes(&mut row).unwrap_or_default();
                String::from_utf8_lossy(&bytes).into_owned()
            }
            other => panic!("a value of type {other:#x}"),
        })
    };
    columns.iter().enumerate().map(value).collect()
}

/// Flags, longest packet and collation: how SSLRequest and HandshakeResponse41 begin.
fn login_start(flags: u64, collation: u8) -> Vec<u8> {
    let low = (flags & 0xffff_ffff) as u32;
    let mariadb = (flags >> 32) as u32;
    [
        low.to_le_bytes().as_slice(),
        &(1_u32 << 30).to_le_bytes(),
        &[collation],
        &[0; 19],
        &mariadb.to_le_bytes(),
    ]
    .concat()
}

fn attributes(pairs: &[(String, String)]) -> Vec<u8> {
    let each = pairs.iter().map(|(k, v)| [lenenc_bytes(k.as_bytes()), lenenc_bytes(v.as_bytes())].concat());
    lenenc_bytes(&each.collect::<Vec<_>>().concat())
}

/// The first answer to a method. Unknown methods are answered with nothing.
fn scramble(plugin: &str, password: &str, nonce: &[u8]) -> Vec<u8> {
    let xor = |one: &[u8], other: &[u8]| -> Vec<u8> { one.iter().zip(other).map(|(a, b)| a ^ b).collect() };
    match plugin {
        "mysql_clear_password" => [password.as_bytes(), b"\0"].concat(),
        _ if password.is_empty() => Vec::new(),
        "mysql_native_password" => {
            let sha1 = |bytes: &[u8]| digest(&SHA1_FOR_LEGACY_USE_ONLY, bytes);
            let once = sha1(password.as_bytes());
            let twice = sha1(once.as_ref());
            xor(once.as_ref(), sha1(&[nonce, twice.as_ref()].concat()).as_ref())
        }
        "caching_sha2_password" => {
            let sha256 = |bytes: &[u8]| digest(&SHA256, bytes);
            let once = sha256(password.as_bytes());
            let twice = sha256(once.as_ref());
            xor(once.as_ref(), sha256(&[twice.as_ref(), nonce].concat()).as_ref())
        }
        _ => Vec::new(),
    }
}

/// The password for `caching_sha2_password` without TLS: xored with the nonce, then RSA with OAEP.
fn encrypt(pem: &[u8], password: &str, nonce: &[u8]) -> Vec<u8> {
    let plain = [password.as_bytes(), b"\0"].concat();
    let mixed: Vec<u8> = plain.iter().zip(nonce.iter().cycle()).map(|(a, b)| a ^ b).collect();
    let der = SubjectPublicKeyInfoDer::from_pem_slice(pem).expect("a public key in PEM");
    let key = PublicEncryptingKey::from_der(&der).expect("an RSA key");
    let key = OaepPublicEncryptingKey::new(key).expect("an RSA key fit for OAEP");
    let mut hidden = vec![0; key.ciphertext_size()];
    let length = key.encrypt(&OAEP_SHA1_MGF1SHA1, &mixed, &mut hidden, None).expect("room enough").len();
    hidden.truncate(length);
    hidden
}

fn greeting(mut packet: Bytes) -> Greeting {
    assert_eq!(packet.get_u8(), 10, "protocol version");
    let version = zero_ended(&mut packet);
    let id = packet.get_u32_le();
    let mut nonce = packet.split_to(8).to_vec();
    packet.advance(1);
    let low = u64::from(packet.get_u16_le());
    let (collation, status) = (packet.get_u8(), packet.get_u16_le());
    let high = u64::from(packet.get_u16_le());
    let nonce_length = usize::from(packet.get_u8());
    packet.advance(6);
    let mariadb = u64::from(packet.get_u32_le());
    let mut capabilities = low | high << 16;
    if capabilities & capability::MYSQL == 0 {
        capabilities |= mariadb << 32;
    }
    let rest = packet.split_to(nonce_length.saturating_sub(8).max(13));
    nonce.extend(rest.strip_suffix(b"\0").unwrap_or(&rest));
    let plugin = zero_ended(&mut packet);
    Greeting { version, id, capabilities, collation, status, nonce, plugin }
}

fn closed() -> MySqlError {
    MySqlError { code: 0, state: String::new(), message: "closed".to_owned() }
}

/// Shape: `0xff | code: u16 | '#' state: 5 bytes | message`, without the state before a login.
fn error(mut packet: Bytes) -> MySqlError {
    packet.advance(1);
    let code = packet.get_u16_le();
    let mut state = String::new();
    if packet.first() == Some(&b'#') {
        packet.advance(1);
        state = String::from_utf8_lossy(&packet.split_to(5)).into_owned();
    }
    MySqlError { code, state, message: String::from_utf8_lossy(&packet).into_owned() }
}

/// An EOF packet, or with DEPRECATE_EOF an OK packet that begins with 0xfe.
fn end(mut packet: Bytes, capabilities: u64) -> Done {
    if capabilities & capability::DEPRECATE_EOF != 0 && packet.len() != 5 {
        return done(packet, capabilities);
    }
    packet.advance(1);
    let warnings = packet.get_u16_le();
    Done { warnings, status: packet.get_u16_le(), ..Done::default() }
}

fn done(mut packet: Bytes, capabilities: u64) -> Done {
    packet.advance(1);
    let (affected, insert_id) = (get_lenenc(&mut packet), get_lenenc(&mut packet));
    let (status, warnings) = (packet.get_u16_le(), packet.get_u16_le());
    let mut done = Done { affected, insert_id, status, warnings, ..Done::default() };
    if capabilities & capability::SESSION_TRACK == 0 {
        done.info = String::from_utf8_lossy(&packet).into_owned();
        return done;
    }
    if packet.has_remaining() {
        let info = get_lenenc_bytes(&mut packet).unwrap_or_default();
        done.info = String::from_utf8_lossy(&info).into_owned();
    }
    if status & status::SESSION_STATE_CHANGED != 0 && packet.has_remaining() {
        done.changes = changes(get_lenenc_bytes(&mut packet).unwrap_or_default());
    }
    assert!(!packet.has_remaining(), "left over in an OK packet: {}", packet.escape_ascii());
    done
}

fn changes(mut block: Bytes) -> Vec<Change> {
    let mut changes = Vec::new();
    let text = |bytes: &mut Bytes| {
        String::from_utf8_lossy(&get_lenenc_bytes(bytes).unwrap_or_default()).into_owned()
    };
    while block.has_remaining() {
        let kind = block.get_u8();
        let mut entry = get_lenenc_bytes(&mut block).unwrap_or_default();
        match kind {
            0 => {
                // MariaDB puts several variables into one entry, MySQL one.
                while entry.has_remaining() {
                    let name = text(&mut entry);
                    changes.push(Change::Variable(name, text(&mut entry)));
                }
            }
            1 => changes.push(Change::Schema(text(&mut entry))),
            // MySQL gives its length once more, MariaDB does not.
            2 if entry.len() == 1 => {
                changes.push(Change::State(String::from_utf8_lossy(&entry).into_owned()))
            }
            2 => changes.push(Change::State(text(&mut entry))),
            4 => changes.push(Change::Characteristics(text(&mut entry))),
            5 => changes.push(Change::Transaction(text(&mut entry))),
            other => changes.push(Change::Other(other, entry.to_vec())),
        }
    }
    changes
}

fn column(mut packet: Bytes, capabilities: u64) -> Column {
    let mut text =
        || String::from_utf8_lossy(&get_lenenc_bytes(&mut packet).unwrap_or_default()).into_owned();
    let [_catalog, schema, table, _original_table, name, _original_name] = std::array::from_fn(|_| text());
    if capabilities & capability::MARIADB_EXTENDED_METADATA != 0 {
        text();
    }
    get_lenenc(&mut packet);
    let (collation, length) = (packet.get_u16_le(), packet.get_u32_le());
    let (kind, flags, decimals) = (packet.get_u8(), packet.get_u16_le(), packet.get_u8());
    Column { name, table, schema, collation, length, kind, flags, decimals }
}

fn zero_ended(packet: &mut Bytes) -> String {
    let end = packet.iter().position(|byte| *byte == 0).unwrap_or(packet.len());
    let text = String::from_utf8_lossy(&packet.split_to(end)).into_owned();
    packet.advance(usize::from(packet.has_remaining()));
    text
}

/// A length-encoded integer from the front.
fn get_lenenc(packet: &mut Bytes) -> u64 {
    match packet.get_u8() {
        0xfc => packet.get_uint_le(2),
        0xfd => packet.get_uint_le(3),
        0xfe => packet.get_u64_le(),
        short => short.into(),
    }
}

/// A length-encoded string from the front; `None` is NULL.
fn get_lenenc_bytes(packet: &mut Bytes) -> Option<Bytes> {
    if packet.first() == Some(&0xfb) {
        packet.advance(1);
        return None;
    }
    let length = usize::try_from(get_lenenc(packet)).unwrap();
    Some(packet.split_to(length))
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::{
        encoding::AsDer,
        rsa::{KeySize, OaepPrivateDecryptingKey, PrivateDecryptingKey},
    };
    use base64::{Engine, prelude::BASE64_STANDARD};

    use super::*;

    #[test]
    fn a_payload_of_whole_packets_ends_with_an_empty_one() {
        for (length, packets) in [(0, 1), (5, 1), (PACKET_MAX - 1, 1), (PACKET_MAX, 2), (PACKET_MAX * 2, 3)] {
            let (bytes, next) = packet(254, &vec![7; length]);
            assert_eq!(bytes.len(), length + 4 * packets, "{length}");
            assert_eq!(usize::from(next.wrapping_sub(254)), packets, "{length}");
        }
    }

    #[test]
    fn length_encoded_integers_are_read_as_they_are_written() {
        for n in [0, 250, 251, 0xffff, 0x1_0000, 0xff_ffff, 0x100_0000, u64::MAX] {
            let mut bytes = Bytes::from(lenenc(n));
            assert_eq!((get_lenenc(&mut bytes), bytes.len()), (n, 0));
        }
        let mut null = Bytes::from_static(&[0xfb]);
        assert_eq!(get_lenenc_bytes(&mut null), None);
    }

    #[test]
    fn a_password_hidden_by_rsa_is_found_again() {
        let key = PrivateDecryptingKey::generate(KeySize::Rsa2048).unwrap();
        let der = key.public_key().as_der().unwrap();
        let pem = format!(
            "-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n",
            BASE64_STANDARD.encode(der.as_ref())
        );
        let nonce: Vec<u8> = (1..=20).collect();
        let hidden = encrypt(pem.as_bytes(), "a password longer than its nonce", &nonce);
        let key = OaepPrivateDecryptingKey::new(key).unwrap();
        let mut room = vec![0; key.min_output_size()];
        let mixed = key.decrypt(&OAEP_SHA1_MGF1SHA1, &hidden, &mut room, None).unwrap();
        let plain: Vec<u8> = mixed.iter().zip(nonce.iter().cycle()).map(|(a, b)| a ^ b).collect();
        assert_eq!(plain, b"a password longer than its nonce\0");
    }
}
