//! Packets of the MySQL and MariaDB protocol, as far as Pinion looks into them.
//!
//! Shape of a packet: `len: u24 | seq: u8 | body: len bytes`, all integers little-endian. A payload of
//! [`MAX_PAYLOAD`] bytes or more goes in several packets, of which each but the last has exactly that many; so a
//! payload of exactly [`MAX_PAYLOAD`] is followed by an empty packet. Source: MySQL Source Documentation,
//! Client/Server Protocol, "MySQL Packets"; MariaDB knowledge base, "0-packet".

use crate::protocol::ProtocolError;

/// Length and sequence number.
pub const HEADER_BYTES: usize = 4;
/// Most bytes in one packet's body.
pub const MAX_PAYLOAD: usize = 0xff_ffff;

/// First byte of an OK packet.
pub const OK: u8 = 0x00;
/// First byte of an EOF packet, and of the OK packet that stands in its place where `DEPRECATE_EOF` was agreed.
pub const EOF: u8 = 0xfe;
/// First byte of an ERR packet.
pub const ERR: u8 = 0xff;
/// First byte of a request for a local file, in answer to a `COM_QUERY`.
pub const LOCAL_INFILE: u8 = 0xfb;

/// The code of MariaDB's progress report, which looks like an ERR packet and is none.
pub const PROGRESS_REPORT: u16 = 0xffff;

/// Makes a set of flags: a number in a type of its own, with a constant for each bit.
macro_rules! flags {
    ($(#[$meta:meta])* $name:ident: $int:ty { $($(#[$doc:meta])* $flag:ident = $value:expr;)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
        pub struct $name(pub $int);

        impl $name {
            /// No bit.
            pub const NONE: Self = Self(0);
            $($(#[$doc])* pub const $flag: Self = Self($value);)*
            const NAMES: &'static [(Self, &'static str)] = &[$((Self::$flag, stringify!($flag))),*];

            /// True when every bit of `other` is set.
            #[must_use]
            pub const fn contains(self, other: Self) -> bool {
                self.0 & other.0 == other.0
            }
            /// Both together.
            #[must_use]
            pub const fn union(self, other: Self) -> Self {
                Self(self.0 | other.0)
            }
            /// What is in both.
            #[must_use]
            pub const fn intersection(self, other: Self) -> Self {
                Self(self.0 & other.0)
            }
            /// This without what is in `other`.
            #[must_use]
            pub const fn without(self, other: Self) -> Self {
                Self(self.0 & !other.0)
            }
            /// This with or without `other`.
            #[must_use]
            pub const fn with(self, other: Self, wanted: bool) -> Self {
                if wanted { self.union(other) } else { self.without(other) }
            }
        }

        impl std::ops::BitOr for $name {
            type Output = Self;
            fn bitor(self, other: Self) -> Self {
                self.union(other)
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                let mut rest = *self;
                let mut separator = "";
                for (flag, name) in Self::NAMES.iter().filter(|(flag, _)| self.contains(*flag)) {
                    write!(f, "{separator}{name}")?;
                    separator = "|";
                    rest = rest.without(*flag);
                }
                if rest.0 != 0 || self.0 == 0 {
                    write!(f, "{separator}{:#x}", rest.0)?;
                }
                Ok(())
            }
        }
    };
}

flags! {
    /// What both ends can do, agreed in the handshake. Source: MySQL Source Documentation, "Capabilities Flags".
    Capabilities: u32 {
        /// Always set by clients. A server that sets it is MySQL, and MariaDB leaves it clear (`CLIENT_MYSQL`).
        LONG_PASSWORD = 1;
        /// Count rows found, not rows changed.
        FOUND_ROWS = 1 << 1;
        /// Column flags have two bytes.
        LONG_FLAG = 1 << 2;
        /// The login names a database.
        CONNECT_WITH_DB = 1 << 3;
        /// Refuse `database.table.column`.
        NO_SCHEMA = 1 << 4;
        /// zlib.
        COMPRESS = 1 << 5;
        /// Means nothing any more.
        ODBC = 1 << 6;
        /// `LOAD DATA LOCAL`.
        LOCAL_FILES = 1 << 7;
        /// Spaces before `(` are ignored.
        IGNORE_SPACE = 1 << 8;
        /// The protocol since MySQL 4.1.
        PROTOCOL_41 = 1 << 9;
        /// `interactive_timeout` counts, not `wait_timeout`.
        INTERACTIVE = 1 << 10;
        /// TLS.
        SSL = 1 << 11;
        /// A matter of the client library.
        IGNORE_SIGPIPE = 1 << 12;
        /// Status flags tell of transactions.
        TRANSACTIONS = 1 << 13;
        /// Means nothing any more.
        RESERVED = 1 << 14;
        /// Authentication since MySQL 4.1.
        SECURE_CONNECTION = 1 << 15;
        /// Several statements in one text.
        MULTI_STATEMENTS = 1 << 16;
        /// Several results for one statement.
        MULTI_RESULTS = 1 << 17;
        /// Likewise for prepared statements.
        PS_MULTI_RESULTS = 1 << 18;
        /// Authentication by named methods.
        PLUGIN_AUTH = 1 << 19;
        /// The login carries attributes of the client.
        CONNECT_ATTRS = 1 << 20;
        /// Authentication data may be longer than 255 bytes.
        PLUGIN_AUTH_LENENC = 1 << 21;
        /// The client can live with an expired password.
        CAN_HANDLE_EXPIRED_PASSWORDS = 1 << 22;
        /// OK packets tell of changed session state.
        SESSION_TRACK = 1 << 23;
        /// An OK packet stands where an EOF packet stood.
        DEPRECATE_EOF = 1 << 24;
        /// Results may come without column definitions.
        OPTIONAL_RESULTSET_METADATA = 1 << 25;
        /// zstd.
        ZSTD_COMPRESSION_ALGORITHM = 1 << 26;
        /// Statements carry named values.
        QUERY_ATTRIBUTES = 1 << 27;
        /// Several authentications for one login.
        MULTI_FACTOR_AUTHENTICATION = 1 << 28;
        /// Kept free for a longer set.
        CAPABILITY_EXTENSION = 1 << 29;
        /// A matter of the client library.
        SSL_VERIFY_SERVER_CERT = 1 << 30;
        /// A matter of the client library.
        REMEMBER_OPTIONS = 1 << 31;
    }
}

impl Capabilities {
    /// True for what a MariaDB server announces, or a client that understands MariaDB's extensions.
    #[must_use]
    pub const fn is_mariadb(self) -> bool {
        !self.contains(Self::LONG_PASSWORD)
    }
}

flags! {
    /// MariaDB's own: bits 32 and up of its 64-bit set, here from bit 0. Source: MariaDB knowledge base,
    /// "Connecting", "Capabilities".
    Extended: u32 {
        /// Progress reports.
        PROGRESS = 1;
        /// `COM_MULTI`, never released.
        COM_MULTI = 1 << 1;
        /// `COM_STMT_BULK_EXECUTE`.
        STMT_BULK_OPERATIONS = 1 << 2;
        /// Column definitions carry the name of an extended type.
        EXTENDED_METADATA = 1 << 3;
        /// Column definitions of a prepared statement may be left out.
        CACHE_METADATA = 1 << 4;
        /// A bulk operation answers with a result for each row.
        BULK_UNIT_RESULTS = 1 << 5;
    }
}

flags! {
    /// Server status in OK and EOF packets. Source: MySQL Source Documentation, `SERVER_STATUS_flags_enum`.
    Status: u16 {
        /// In a transaction.
        IN_TRANS = 1;
        /// Autocommit is on.
        AUTOCOMMIT = 1 << 1;
        /// Another result follows.
        MORE_RESULTS = 1 << 3;
        /// No good index was used.
        NO_GOOD_INDEX = 1 << 4;
        /// No index was used.
        NO_INDEX = 1 << 5;
        /// The result is a cursor: rows come by `COM_STMT_FETCH`.
        CURSOR_EXISTS = 1 << 6;
        /// The cursor has no more rows.
        LAST_ROW_SENT = 1 << 7;
        /// A database was dropped.
        DB_DROPPED = 1 << 8;
        /// `sql_mode` has `NO_BACKSLASH_ESCAPES`.
        NO_BACKSLASH_ESCAPES = 1 << 9;
        /// A prepared statement's columns are others than before.
        METADATA_CHANGED = 1 << 10;
        /// Slower than `long_query_time`.
        QUERY_WAS_SLOW = 1 << 11;
        /// The result holds OUT parameters.
        PS_OUT_PARAMS = 1 << 12;
        /// In a read-only transaction.
        IN_TRANS_READONLY = 1 << 13;
        /// The OK packet carries session-state information.
        SESSION_STATE_CHANGED = 1 << 14;
        /// `sql_mode` has `ANSI_QUOTES` (MariaDB).
        ANSI_QUOTES = 1 << 15;
    }
}

/// Makes [`Command`] and its two ways to and from bytes.
macro_rules! commands {
    ($($(#[$doc:meta])* $name:ident = $value:literal $text:literal;)*) => {
        /// The first byte of a client's request. Source: MySQL Source Documentation, "Command Phase"; MariaDB
        /// knowledge base, "2 - Text Protocol" and "3 - Binary Protocol".
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Command { $($(#[$doc])* $name = $value,)* }

        impl Command {
            /// `None` for what no server knows.
            #[must_use]
            pub const fn from_byte(byte: u8) -> Option<Self> {
                match byte { $($value => Some(Self::$name),)* _ => None }
            }
            /// As the manual writes it.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

commands! {
    /// Inside servers only.
    Sleep = 0 "COM_SLEEP";
    /// Goodbye; no answer.
    Quit = 1 "COM_QUIT";
    /// Changes the database.
    InitDb = 2 "COM_INIT_DB";
    /// Statement text.
    Query = 3 "COM_QUERY";
    /// Columns of a table.
    FieldList = 4 "COM_FIELD_LIST";
    /// Gone.
    CreateDb = 5 "COM_CREATE_DB";
    /// Gone.
    DropDb = 6 "COM_DROP_DB";
    /// `FLUSH`.
    Refresh = 7 "COM_REFRESH";
    /// Stops the server.
    Shutdown = 8 "COM_SHUTDOWN";
    /// A line of statistics.
    Statistics = 9 "COM_STATISTICS";
    /// `SHOW PROCESSLIST`.
    ProcessInfo = 10 "COM_PROCESS_INFO";
    /// Inside servers only.
    Connect = 11 "COM_CONNECT";
    /// `KILL`.
    ProcessKill = 12 "COM_PROCESS_KILL";
    /// Writes to the server's log.
    Debug = 13 "COM_DEBUG";
    /// A round trip.
    Ping = 14 "COM_PING";
    /// Inside servers only.
    Time = 15 "COM_TIME";
    /// Inside servers only.
    DelayedInsert = 16 "COM_DELAYED_INSERT";
    /// A new login on the same connection.
    ChangeUser = 17 "COM_CHANGE_USER";
    /// Replication.
    BinlogDump = 18 "COM_BINLOG_DUMP";
    /// Gone.
    TableDump = 19 "COM_TABLE_DUMP";
    /// Inside servers only.
    ConnectOut = 20 "COM_CONNECT_OUT";
    /// Replication.
    RegisterSlave = 21 "COM_REGISTER_SLAVE";
    /// Prepares.
    StmtPrepare = 22 "COM_STMT_PREPARE";
    /// Runs a prepared statement.
    StmtExecute = 23 "COM_STMT_EXECUTE";
    /// Part of a parameter; no answer.
    StmtSendLongData = 24 "COM_STMT_SEND_LONG_DATA";
    /// Forgets a prepared statement; no answer.
    StmtClose = 25 "COM_STMT_CLOSE";
    /// Forgets long data and the cursor.
    StmtReset = 26 "COM_STMT_RESET";
    /// Several statements in one text, on or off.
    SetOption = 27 "COM_SET_OPTION";
    /// Rows of a cursor.
    StmtFetch = 28 "COM_STMT_FETCH";
    /// Inside servers only.
    Daemon = 29 "COM_DAEMON";
    /// Replication.
    BinlogDumpGtid = 30 "COM_BINLOG_DUMP_GTID";
    /// Session state back to that after login.
    ResetConnection = 31 "COM_RESET_CONNECTION";
    /// Copies a server.
    Clone = 32 "COM_CLONE";
    /// Replication.
    SubscribeGroupReplicationStream = 33 "COM_SUBSCRIBE_GROUP_REPLICATION_STREAM";
    /// Runs a prepared statement for many rows (MariaDB).
    StmtBulkExecute = 250 "COM_STMT_BULK_EXECUTE";
    /// Inside servers only (MariaDB).
    SlaveWorker = 251 "COM_SLAVE_WORKER";
    /// Inside servers only (MariaDB).
    SlaveIo = 252 "COM_SLAVE_IO";
    /// Inside servers only (MariaDB).
    SlaveSql = 253 "COM_SLAVE_SQL";
    /// Never released (MariaDB).
    Multi = 254 "COM_MULTI";
}

/// The start of one packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Bytes of body that follow.
    pub len: usize,
    /// Counts the packets of one exchange, modulo 256.
    pub seq: u8,
}

impl Header {
    /// Reads the header at the front of `bytes`; `None` means read more.
    #[must_use]
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let &[a, b, c, seq] = bytes.first_chunk()?;
        Some(Self { len: u32::from_le_bytes([a, b, c, 0]) as usize, seq })
    }

    /// Bytes of the whole packet.
    #[must_use]
    pub const fn total(self) -> usize {
        HEADER_BYTES + self.len
    }

    /// True when the payload goes on in the next packet.
    #[must_use]
    pub const fn continues(self) -> bool {
        self.len == MAX_PAYLOAD
    }

    /// Appends it.
    pub fn write(self, out: &mut Vec<u8>) {
        put_u24(out, self.len);
        out.push(self.seq);
    }
}

/// The first packet of `bytes`, whole: its header and body; `None` means read more.
/// Errors: [`ProtocolError::BadLength`] when the body would have more than `limit` bytes.
pub fn whole_packet(bytes: &[u8], limit: usize) -> Result<Option<(Header, &[u8])>, ProtocolError> {
    let Some(header) = Header::read(bytes) else { return Ok(None) };
    if header.len > limit {
        // Packets have no tag, and what comes first in this one may not be here yet.
        return Err(ProtocolError::BadLength {
            tag: '\0',
            len: i32::try_from(header.len).unwrap_or(i32::MAX),
        });
    }
    Ok(bytes.get(HEADER_BYTES..header.total()).map(|body| (header, body)))
}

/// Takes the parts of a body off its front. Every method gives `None` when there are too few bytes, and then the
/// reader is where it was.
#[derive(Debug, Clone, Copy)]
pub struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// Of `body`.
    #[must_use]
    pub const fn new(body: &'a [u8]) -> Self {
        Self(body)
    }
    /// What has not been taken.
    #[must_use]
    pub const fn rest(&self) -> &'a [u8] {
        self.0
    }
    /// True when all has been taken.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
    /// The next byte, not taken.
    #[must_use]
    pub fn peek(&self) -> Option<u8> {
        self.0.first().copied()
    }
    /// `n` bytes.
    pub fn bytes(&mut self, n: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(taken)
    }
    /// As many bytes as the array has.
    pub fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*taken)
    }
    /// `int<1>`.
    pub fn u8(&mut self) -> Option<u8> {
        self.array::<1>().map(|[byte]| byte)
    }
    /// `int<2>`.
    pub fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }
    /// `int<3>`.
    pub fn u24(&mut self) -> Option<u32> {
        self.array().map(|[a, b, c]| u32::from_le_bytes([a, b, c, 0]))
    }
    /// `int<4>`.
    pub fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }
    /// `int<8>`.
    pub fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }
    /// `int<lenenc>`: one byte below 0xfb, or 0xfc, 0xfd, 0xfe and 2, 3 or 8 bytes. `None` for NULL (0xfb) and for
    /// 0xff, too.
    pub fn lenenc(&mut self) -> Option<u64> {
        let mut ahead = *self;
        let value = match ahead.u8()? {
            small @ 0..=0xfa => u64::from(small),
            0xfc => u64::from(ahead.u16()?),
            0xfd => u64::from(ahead.u24()?),
            0xfe => ahead.u64()?,
            0xfb | 0xff => return None,
        };
        *self = ahead;
        Some(value)
    }
    /// `string<lenenc>`.
    pub fn lenenc_bytes(&mut self) -> Option<&'a [u8]> {
        let mut ahead = *self;
        let len = usize::try_from(ahead.lenenc()?).ok()?;
        let taken = ahead.bytes(len)?;
        *self = ahead;
        Some(taken)
    }
    /// A column of a text row: `string<lenenc>`, or `Some(None)` for NULL.
    pub fn column(&mut self) -> Option<Option<&'a [u8]>> {
        if self.peek()? == 0xfb {
            self.0 = self.0.get(1..)?;
            return Some(None);
        }
        self.lenenc_bytes().map(Some)
    }
    /// `string<NUL>`, without its end.
    pub fn null_bytes(&mut self) -> Option<&'a [u8]> {
        let end = memchr::memchr(0, self.0)?;
        let taken = self.bytes(end)?;
        self.0 = self.0.get(1..)?;
        Some(taken)
    }
    /// All that is left.
    pub fn take_rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }
}

/// Appends `int<3>`; the value must fit.
pub fn put_u24(out: &mut Vec<u8>, value: usize) {
    debug_assert!(value <= MAX_PAYLOAD, "an int<3> holds no more");
    out.extend((value as u64).to_le_bytes().into_iter().take(3));
}

/// Appends `int<lenenc>`.
pub fn put_lenenc(out: &mut Vec<u8>, value: u64) {
    let bytes = value.to_le_bytes();
    let (mark, len) = match value {
        0..=0xfa => (None, 1),
        0xfb..=0xffff => (Some(0xfc), 2),
        0x1_0000..=0xff_ffff => (Some(0xfd), 3),
        _ => (Some(0xfe), 8),
    };
    out.extend(mark.into_iter().chain(bytes.into_iter().take(len)));
}

/// Appends `string<lenenc>`.
pub fn put_lenenc_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_lenenc(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Appends `string<NUL>`. A zero byte inside would end it early, so it is cut there.
pub fn put_null_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend(bytes.iter().take_while(|byte| **byte != 0));
    out.push(0);
}

/// Appends the payload that `fill` writes, in one packet or, when it is long, in several. Returns the sequence
/// number that comes next.
pub fn write_packet(out: &mut Vec<u8>, seq: u8, fill: impl FnOnce(&mut Vec<u8>)) -> u8 {
    let at = out.len();
    out.extend_from_slice(&[0; HEADER_BYTES]);
    fill(out);
    let len = out.len() - at - HEADER_BYTES;
    if len >= MAX_PAYLOAD {
        let payload = out.split_off(at + HEADER_BYTES);
        out.truncate(at);
        return write_payload(out, seq, &payload);
    }
    let [a, b, c, ..] = (len as u64).to_le_bytes();
    if let Some(header) = out.get_mut(at..at + HEADER_BYTES) {
        header.copy_from_slice(&[a, b, c, seq]);
    }
    seq.wrapping_add(1)
}

/// Appends `payload`, in one packet or several. Returns the sequence number that comes next.
pub fn write_payload(out: &mut Vec<u8>, seq: u8, payload: &[u8]) -> u8 {
    let mut seq = seq;
    let mut rest = payload;
    loop {
        let (body, after) = rest.split_at(rest.len().min(MAX_PAYLOAD));
        let header = Header { len: body.len(), seq };
        header.write(out);
        out.extend_from_slice(body);
        seq = seq.wrapping_add(1);
        if !header.continues() {
            return seq;
        }
        rest = after;
    }
}

/// An OK packet. Shape: `0x00 or 0xfe | affected rows: lenenc | last insert id: lenenc | status: u16 |
/// warnings: u16 | info | session state`, see [`OkPacket::read`]. Source: MySQL Source Documentation, "OK_Packet".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OkPacket<'a> {
    /// Rows changed, or found.
    pub affected_rows: u64,
    /// First id generated.
    pub last_insert_id: u64,
    /// Server status; none before protocol 4.1 unless `TRANSACTIONS` was agreed.
    pub status: Status,
    /// Warnings of the statement.
    pub warnings: u16,
    /// For people.
    pub info: &'a [u8],
    /// Session-state entries, for [`session_state`]; empty unless [`Status::SESSION_STATE_CHANGED`].
    pub session_state: &'a [u8],
}

impl<'a> OkPacket<'a> {
    /// Reads a payload that begins with 0x00 or 0xfe. Where `SESSION_TRACK` was agreed, `info` is a lenenc string
    /// (or nothing at all), and the entries follow as another when the status says so; otherwise `info` is what is
    /// left, which servers write as a lenenc string, too, though the manual says otherwise.
    /// Errors: [`ProtocolError::Malformed`].
    pub fn read(payload: &'a [u8], agreed: Capabilities) -> Result<Self, ProtocolError> {
        Self::parse(payload, agreed).ok_or(ProtocolError::Malformed("OK"))
    }

    fn parse(payload: &'a [u8], agreed: Capabilities) -> Option<Self> {
        let mut reader = Reader::new(payload);
        if !matches!(reader.u8()?, OK | EOF) {
            return None;
        }
        let mut ok =
            Self { affected_rows: reader.lenenc()?, last_insert_id: reader.lenenc()?, ..Self::default() };
        if agreed.contains(Capabilities::PROTOCOL_41) {
            ok.status = Status(reader.u16()?);
            ok.warnings = reader.u16()?;
        } else if agreed.contains(Capabilities::TRANSACTIONS) {
            ok.status = Status(reader.u16()?);
        }
        if !agreed.contains(Capabilities::SESSION_TRACK) {
            let mut text = reader;
            ok.info = match text.lenenc_bytes() {
                Some(info) if text.is_empty() => info,
                _ => reader.take_rest(),
            };
        } else if !reader.is_empty() {
            ok.info = reader.lenenc_bytes()?;
            if ok.status.contains(Status::SESSION_STATE_CHANGED) {
                ok.session_state = reader.lenenc_bytes()?;
            }
        }
        Some(ok)
    }

    /// Appends the whole packet, with `header` as its first byte (0x00 or 0xfe), for a peer with which `agreed` was
    /// agreed. Session state is left out, and its flag cleared, where that peer did not ask for it or there is none.
    /// Returns the sequence number that comes next.
    pub fn write(&self, header: u8, seq: u8, agreed: Capabilities, out: &mut Vec<u8>) -> u8 {
        let tracks = agreed.contains(Capabilities::SESSION_TRACK) && !self.session_state.is_empty();
        let status = self.status.with(Status::SESSION_STATE_CHANGED, tracks);
        write_packet(out, seq, |body| {
            body.push(header);
            put_lenenc(body, self.affected_rows);
            put_lenenc(body, self.last_insert_id);
            if agreed.contains(Capabilities::PROTOCOL_41) {
                body.extend_from_slice(&status.0.to_le_bytes());
                body.extend_from_slice(&self.warnings.to_le_bytes());
            } else if agreed.contains(Capabilities::TRANSACTIONS) {
                body.extend_from_slice(&status.0.to_le_bytes());
            }
            if tracks || !self.info.is_empty() {
                put_lenenc_bytes(body, self.info);
            }
            if tracks {
                put_lenenc_bytes(body, self.session_state);
            }
        })
    }
}

/// An EOF packet. Shape: `0xfe | warnings: u16 | status: u16`, the numbers in protocol 4.1 only. Source: MySQL
/// Source Documentation, "EOF_Packet".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EofPacket {
    /// Warnings of the statement.
    pub warnings: u16,
    /// Server status.
    pub status: Status,
}

impl EofPacket {
    /// Longest payload; a longer one that begins with 0xfe is a row, or an OK packet.
    pub const MAX_BYTES: usize = 8;

    /// True when a payload of `len` bytes that begins with `first` is an EOF packet, in a result for which
    /// `DEPRECATE_EOF` was not agreed.
    #[must_use]
    pub const fn is(first: u8, len: usize) -> bool {
        first == EOF && len <= Self::MAX_BYTES
    }

    /// Reads a payload. Errors: [`ProtocolError::Malformed`].
    pub fn read(payload: &[u8], agreed: Capabilities) -> Result<Self, ProtocolError> {
        let parse = || {
            let mut reader = Reader::new(payload);
            let first = reader.u8()?;
            if !Self::is(first, payload.len()) {
                return None;
            }
            if !agreed.contains(Capabilities::PROTOCOL_41) {
                return Some(Self::default());
            }
            Some(Self { warnings: reader.u16()?, status: Status(reader.u16()?) })
        };
        parse().ok_or(ProtocolError::Malformed("EOF"))
    }

    /// Appends the whole packet. Returns the sequence number that comes next.
    pub fn write(self, seq: u8, agreed: Capabilities, out: &mut Vec<u8>) -> u8 {
        // Without an OK packet there is no room for session state.
        let status = self.status.without(Status::SESSION_STATE_CHANGED);
        write_packet(out, seq, |body| {
            body.push(EOF);
            if agreed.contains(Capabilities::PROTOCOL_41) {
                body.extend_from_slice(&self.warnings.to_le_bytes());
                body.extend_from_slice(&status.0.to_le_bytes());
            }
        })
    }
}

/// An ERR packet. Shape: `0xff | code: u16 | '#' and 5 bytes of SQLSTATE | message`; before protocol 4.1, and in
/// place of a greeting, the SQLSTATE may be missing. Source: MySQL Source Documentation, "ERR_Packet".
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ErrPacket {
    /// The server's own error number.
    pub code: u16,
    /// `HY000` where none was sent.
    pub sqlstate: String,
    /// For people.
    pub message: String,
}

impl ErrPacket {
    /// What a server says where nothing more precise fits.
    pub const GENERAL: &'static str = "HY000";

    /// Reads a payload. Errors: [`ProtocolError::Malformed`].
    pub fn read(payload: &[u8]) -> Result<Self, ProtocolError> {
        let parse = || {
            let mut reader = Reader::new(payload);
            if reader.u8()? != ERR {
                return None;
            }
            let code = reader.u16()?;
            let mut ahead = reader;
            let sqlstate = match (ahead.u8(), ahead.bytes(5)) {
                (Some(b'#'), Some(sqlstate)) => {
                    reader = ahead;
                    String::from_utf8_lossy(sqlstate).into_owned()
                }
                _ => Self::GENERAL.to_owned(),
            };
            Some(Self { code, sqlstate, message: String::from_utf8_lossy(reader.rest()).into_owned() })
        };
        parse().ok_or(ProtocolError::Malformed("ERR"))
    }

    /// Appends the whole packet. Returns the sequence number that comes next.
    pub fn write(&self, seq: u8, agreed: Capabilities, out: &mut Vec<u8>) -> u8 {
        write_err(self.code, &self.sqlstate, &self.message, seq, agreed, out)
    }
}

/// Appends an ERR packet. Returns the sequence number that comes next.
pub fn write_err(
    code: u16,
    sqlstate: &str,
    message: &str,
    seq: u8,
    agreed: Capabilities,
    out: &mut Vec<u8>,
) -> u8 {
    write_packet(out, seq, |body| {
        body.push(ERR);
        body.extend_from_slice(&code.to_le_bytes());
        if agreed.contains(Capabilities::PROTOCOL_41) {
            body.push(b'#');
            body.extend((sqlstate.bytes().chain(std::iter::repeat(b'0'))).take(5));
        }
        body.extend_from_slice(message.as_bytes());
    })
}

/// Types of session-state entries. Source: MySQL Source Documentation, `enum_session_state_type`.
pub mod track {
    /// A system variable changed.
    pub const SYSTEM_VARIABLES: u8 = 0;
    /// The database changed.
    pub const SCHEMA: u8 = 1;
    /// Something of the session changed.
    pub const STATE_CHANGE: u8 = 2;
    /// Global transaction ids.
    pub const GTIDS: u8 = 3;
    /// The statements that would start the same transaction.
    pub const TRANSACTION_CHARACTERISTICS: u8 = 4;
    /// What the transaction has done.
    pub const TRANSACTION_STATE: u8 = 5;
}

/// One change of the session's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionChange<'a> {
    /// A system variable has this value now.
    Variable {
        /// As the server writes it.
        name: &'a [u8],
        /// As text.
        value: &'a [u8],
    },
    /// The current database; empty for none.
    Schema(&'a [u8]),
    /// Something changed: `b"1"`, or `b"0"` for nothing.
    State(&'a [u8]),
    /// Global transaction ids, as text (MySQL).
    Gtids(&'a [u8]),
    /// Statements that would start the same transaction; empty outside of one.
    Characteristics(&'a [u8]),
    /// Eight letters or underscores: explicit or implicit, reads, writes, unsafe statements, result sets, locked
    /// tables.
    Transaction(&'a [u8]),
    /// A type that no manual names.
    Other {
        /// Type.
        kind: u8,
        /// As sent.
        data: &'a [u8],
    },
}

/// The entries of [`OkPacket::session_state`], in order. Shape of each: `type: u8 | data: string<lenenc>`. An entry
/// that does not parse comes out as an error and ends them.
#[must_use]
pub const fn session_state(entries: &[u8]) -> SessionState<'_> {
    SessionState { entries: Reader::new(entries), variables: Reader::new(&[]) }
}

/// See [`session_state`].
#[derive(Debug, Clone)]
pub struct SessionState<'a> {
    entries: Reader<'a>,
    /// What is left of an entry of variables.
    variables: Reader<'a>,
}

impl<'a> SessionState<'a> {
    fn take(&mut self) -> Option<SessionChange<'a>> {
        if self.variables.is_empty() {
            let kind = self.entries.u8()?;
            let data = self.entries.lenenc_bytes()?;
            let mut inner = Reader::new(data);
            match kind {
                track::SYSTEM_VARIABLES => self.variables = inner,
                track::SCHEMA => return inner.lenenc_bytes().map(SessionChange::Schema),
                // One character, with no length of its own before it, whatever the manual says.
                track::STATE_CHANGE => return Some(SessionChange::State(data)),
                track::GTIDS => {
                    // The first byte says how they are written; there is one way so far.
                    inner.u8()?;
                    return inner.lenenc_bytes().map(SessionChange::Gtids);
                }
                track::TRANSACTION_CHARACTERISTICS => {
                    return inner.lenenc_bytes().map(SessionChange::Characteristics);
                }
                track::TRANSACTION_STATE => return inner.lenenc_bytes().map(SessionChange::Transaction),
                _ => return Some(SessionChange::Other { kind, data }),
            }
        }
        let name = self.variables.lenenc_bytes()?;
        let value = self.variables.lenenc_bytes()?;
        Some(SessionChange::Variable { name, value })
    }
}

impl<'a> Iterator for SessionState<'a> {
    type Item = Result<SessionChange<'a>, ProtocolError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.entries.is_empty() && self.variables.is_empty() {
            return None;
        }
        let change = self.take();
        if change.is_none() {
            *self = session_state(&[]);
        }
        Some(change.ok_or(ProtocolError::Malformed("session state")))
    }
}

#[cfg(test)]
mod tests;
