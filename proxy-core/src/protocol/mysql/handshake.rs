//! The login on both sides: [`MyAccept`] plays the server, [`MyConnect`] the client.
//! Source: MySQL Source Documentation, "Connection Phase", "Protocol::HandshakeV10", "Protocol::HandshakeResponse41";
//! MariaDB knowledge base, "Connecting".

use std::{net::IpAddr, sync::Arc};

use super::{
    super::{
        Accept, AcceptOptions, AcceptStep, Arrival, CancelKey, Compression, Connect, ConnectError,
        ConnectStep, Fault, FaultKind, Greeting, Hello, Login, MockKey, PoolKey, Protocol, Purpose,
    },
    MySql,
    auth::{self, AuthError, AuthStep, ClientAuth, FirstAnswer, NATIVE, NONCE_BYTES, Nonce, ServerAuth},
    codec::{
        self, Capabilities, Command, ERR, ErrPacket, Extended, HEADER_BYTES, Header, OkPacket, Reader,
        Status, put_lenenc_bytes, put_null_bytes, whole_packet, write_packet,
    },
    error::{BAD_HANDSHAKE, OLD_CLIENT, OUT_OF_ORDER, with_code, write_error},
    key::{self, pool_key},
    query::{Answer, Answered},
};
use crate::{
    buffer::Buffer,
    config::{ClientAuthType, TlsMode},
    secrets::Secret,
};

/// Longest packet of a login: 64 KiB of attributes, which is the server's own limit, and the rest.
const MAX_LOGIN_BYTES: usize = 0x1_2000;
/// Bytes of an SSLRequest: a HandshakeResponse41 up to the user.
const SSL_REQUEST_BYTES: usize = 32;
/// Bytes that have had no meaning since 4.1; the last four are MariaDB's.
const FILLER_BYTES: usize = 19;
/// The longest payload that we take from servers, as we tell them: 1 GiB, which is the protocol's own limit.
const MAX_PACKET: u32 = 1 << 30;

const fn all(flags: &[Capabilities]) -> Capabilities {
    let mut all = Capabilities::NONE;
    let mut rest = flags;
    while let [first, after @ ..] = rest {
        all = all.union(*first);
        rest = after;
    }
    all
}

/// What clients may have when the servers have it.
pub const CARRIED: Capabilities = all(&[
    Capabilities::LONG_PASSWORD,
    Capabilities::FOUND_ROWS,
    Capabilities::LONG_FLAG,
    Capabilities::LOCAL_FILES,
    Capabilities::IGNORE_SPACE,
    Capabilities::INTERACTIVE,
    Capabilities::MULTI_STATEMENTS,
    Capabilities::MULTI_RESULTS,
    Capabilities::PS_MULTI_RESULTS,
    Capabilities::SESSION_TRACK,
    Capabilities::DEPRECATE_EOF,
    Capabilities::OPTIONAL_RESULTSET_METADATA,
    Capabilities::QUERY_ATTRIBUTES,
]);

/// What clients may have because we have it. TLS comes to it where there is a certificate.
const OURS: Capabilities = all(&[
    Capabilities::CONNECT_WITH_DB,
    Capabilities::COMPRESS,
    Capabilities::PROTOCOL_41,
    Capabilities::IGNORE_SIGPIPE,
    Capabilities::TRANSACTIONS,
    Capabilities::SECURE_CONNECTION,
    Capabilities::PLUGIN_AUTH,
    Capabilities::CONNECT_ATTRS,
    Capabilities::PLUGIN_AUTH_LENENC,
    Capabilities::ZSTD_COMPRESSION_ALGORITHM,
]);

/// As [`CARRIED`], of MariaDB's own.
pub const CARRIED_EXTENDED: Extended = Extended(
    Extended::EXTENDED_METADATA.0
        | Extended::STMT_BULK_OPERATIONS.0
        | Extended::CACHE_METADATA.0
        | Extended::BULK_UNIT_RESULTS.0,
);

/// What we ask of every server, besides what is part of the pool's key.
const WANTED: Capabilities = all(&[
    Capabilities::LONG_PASSWORD,
    Capabilities::LONG_FLAG,
    Capabilities::PROTOCOL_41,
    Capabilities::TRANSACTIONS,
    Capabilities::SECURE_CONNECTION,
    Capabilities::MULTI_STATEMENTS,
    Capabilities::MULTI_RESULTS,
    Capabilities::PS_MULTI_RESULTS,
    Capabilities::PLUGIN_AUTH,
    Capabilities::CONNECT_ATTRS,
    Capabilities::PLUGIN_AUTH_LENENC,
    Capabilities::SESSION_TRACK,
    Capabilities::DEPRECATE_EOF,
]);

/// What servers say of themselves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MyHello {
    /// As told to clients, a MariaDB server's `5.5.5-` included.
    pub version: Box<str>,
    /// What they announce.
    pub capabilities: Capabilities,
    /// MariaDB's own.
    pub extended: Extended,
    /// Id of the default collation.
    pub collation: u8,
}

impl Hello for MyHello {
    fn meet(self, other: &Self) -> Self {
        Self {
            capabilities: self.capabilities.intersection(other.capabilities),
            extended: self.extended.intersection(other.extended),
            ..self
        }
    }

    fn with_version(self, version: &str) -> Self {
        Self { version: version.into(), ..self }
    }
}

impl MyHello {
    /// What clients are offered.
    #[must_use]
    pub fn offer(&self, tls: bool) -> Capabilities {
        self.capabilities.intersection(CARRIED).union(OURS).with(Capabilities::SSL, tls)
    }

    /// Of MariaDB's own.
    #[must_use]
    pub fn offer_extended(&self) -> Extended {
        if self.capabilities.is_mariadb() {
            self.extended.intersection(CARRIED_EXTENDED)
        } else {
            Extended::NONE
        }
    }
}

/// What a client has negotiated, apart from what makes its pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MyClient {
    /// What both of us can do.
    pub capabilities: Capabilities,
    /// Of MariaDB's own.
    pub extended: Extended,
    /// How its bytes are packed.
    pub compression: Compression,
    /// Over TLS, for a later `COM_CHANGE_USER`.
    pub encrypted: bool,
    /// Told last, for the same.
    pub nonce: Nonce,
    /// What it was told that its connection's id is.
    pub id: u32,
}

/// A server's greeting. Shape: `10 | version: string<NUL> | connection id: u32 | nonce: 8 bytes | 0 |
/// capabilities: u16 | collation: u8 | status: u16 | capabilities, upper half: u16 | length of nonce: u8 | 6 bytes |
/// MariaDB's capabilities: u32 | nonce: rest and 0 | method: string<NUL>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handshake<'a> {
    /// Of the server.
    pub version: &'a [u8],
    /// Of this connection.
    pub connection_id: u32,
    /// The challenge, without its end.
    pub nonce: Vec<u8>,
    /// What is announced.
    pub capabilities: Capabilities,
    /// Of MariaDB's own.
    pub extended: Extended,
    /// Id of the default collation.
    pub collation: u8,
    /// Server status.
    pub status: Status,
    /// The method that the nonce is for; empty where there is none to choose.
    pub plugin: &'a [u8],
}

impl<'a> Handshake<'a> {
    /// Reads a payload; `None` for what is no greeting of this version.
    #[must_use]
    pub fn read(payload: &'a [u8]) -> Option<Self> {
        let mut reader = Reader::new(payload);
        if reader.u8()? != 10 {
            return None;
        }
        let version = reader.null_bytes()?;
        let connection_id = reader.u32()?;
        let mut nonce = reader.bytes(8)?.to_vec();
        reader.u8()?;
        let mut capabilities = u32::from(reader.u16()?);
        let mut greeting = Self {
            version,
            connection_id,
            nonce: Vec::new(),
            capabilities: Capabilities::NONE,
            extended: Extended::NONE,
            collation: 0,
            status: Status::NONE,
            plugin: &[],
        };
        if !reader.is_empty() {
            greeting.collation = reader.u8()?;
            greeting.status = Status(reader.u16()?);
            capabilities |= u32::from(reader.u16()?) << 16;
            let nonce_len = reader.u8()?;
            reader.bytes(6)?;
            let extended = Extended(reader.u32()?);
            if Capabilities(capabilities).is_mariadb() {
                greeting.extended = extended;
            }
            if Capabilities(capabilities).contains(Capabilities::SECURE_CONNECTION) {
                let rest = reader.bytes(usize::from(nonce_len).saturating_sub(8).max(13))?;
                nonce.extend_from_slice(rest.strip_suffix(b"\0").unwrap_or(rest));
            }
            if Capabilities(capabilities).contains(Capabilities::PLUGIN_AUTH) {
                // Some old servers leave out the end.
                greeting.plugin = reader.null_bytes().unwrap_or(reader.rest());
            }
        }
        greeting.capabilities = Capabilities(capabilities);
        greeting.nonce = nonce;
        Some(greeting)
    }

    /// Appends the whole packet.
    pub fn write(&self, out: &mut Vec<u8>) -> u8 {
        let (first, rest) = self.nonce.split_at(self.nonce.len().min(8));
        let [a, b, c, d] = self.capabilities.0.to_le_bytes();
        write_packet(out, 0, |body| {
            body.push(10);
            put_null_bytes(body, self.version);
            body.extend_from_slice(&self.connection_id.to_le_bytes());
            body.extend_from_slice(first);
            body.push(0);
            body.extend_from_slice(&[a, b, self.collation]);
            body.extend_from_slice(&self.status.0.to_le_bytes());
            body.extend_from_slice(&[c, d]);
            body.push(u8::try_from(self.nonce.len() + 1).unwrap_or(u8::MAX));
            body.extend_from_slice(&[0; 6]);
            body.extend_from_slice(&self.extended.0.to_le_bytes());
            put_null_bytes(body, rest);
            put_null_bytes(body, self.plugin);
        })
    }
}

/// What a client answers to the greeting. Shape: `capabilities: u32 | longest payload: u32 | collation: u8 | 19 bytes |
/// MariaDB's capabilities: u32 | user: string<NUL> | answer | [database: string<NUL>] | [method: string<NUL>] |
/// [attributes] | [zstd level: u8]`, the answer with its length before it or its end behind it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Response {
    /// As sent.
    pub capabilities: Capabilities,
    /// Of MariaDB's own.
    pub extended: Extended,
    /// Id of the collation wished for.
    pub collation: u16,
    /// Who.
    pub user: Vec<u8>,
    /// What the method answers to the nonce.
    pub answer: Vec<u8>,
    /// Empty for none.
    pub database: Vec<u8>,
    /// The method; `None` for a client that knows no other than `mysql_native_password`.
    pub plugin: Option<Vec<u8>>,
    /// The attribute `program_name`; empty for none.
    pub program: Vec<u8>,
    /// Wished for.
    pub zstd_level: u8,
}

impl Response {
    /// Reads a payload; `None` for what does not parse, or is of a protocol before 4.1.
    #[must_use]
    pub fn read(payload: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(payload);
        let capabilities = Capabilities(reader.u32()?);
        if !capabilities.contains(Capabilities::PROTOCOL_41) {
            return None;
        }
        reader.u32()?;
        let collation = u16::from(reader.u8()?);
        reader.bytes(FILLER_BYTES)?;
        let extended = Extended(reader.u32()?);
        let user = reader.null_bytes()?.to_vec();
        let answer = if capabilities.contains(Capabilities::PLUGIN_AUTH_LENENC) {
            reader.lenenc_bytes()?
        } else if capabilities.contains(Capabilities::SECURE_CONNECTION) {
            let len = reader.u8()?;
            reader.bytes(usize::from(len))?
        } else {
            reader.null_bytes()?
        };
        let mut response = Self {
            capabilities,
            extended: if capabilities.is_mariadb() { extended } else { Extended::NONE },
            collation,
            user,
            answer: answer.to_vec(),
            ..Self::default()
        };
        if capabilities.contains(Capabilities::CONNECT_WITH_DB) {
            response.database = reader.null_bytes()?.to_vec();
        }
        response.read_tail(&mut reader)?;
        if capabilities.contains(Capabilities::ZSTD_COMPRESSION_ALGORITHM) {
            response.zstd_level = reader.u8().unwrap_or_default();
        }
        Some(response)
    }

    /// Method and attributes, which end a `COM_CHANGE_USER`, too.
    fn read_tail(&mut self, reader: &mut Reader<'_>) -> Option<()> {
        if self.capabilities.contains(Capabilities::PLUGIN_AUTH) {
            // Some clients leave out the end.
            self.plugin = Some(match reader.null_bytes() {
                Some(plugin) => plugin.to_vec(),
                None => reader.take_rest().to_vec(),
            });
        }
        if self.capabilities.contains(Capabilities::CONNECT_ATTRS) && !reader.is_empty() {
            let mut attributes = Reader::new(reader.lenenc_bytes()?);
            while !attributes.is_empty() {
                let (name, value) = (attributes.lenenc_bytes()?, attributes.lenenc_bytes()?);
                if name == b"program_name" {
                    self.program = value.to_vec();
                }
            }
        }
        Some(())
    }

    /// Reads the payload of a `COM_CHANGE_USER` of a client that has negotiated `agreed`. Shape: `0x11 |
    /// user: string<NUL> | answer: u8 and bytes | database: string<NUL> | [collation: u16 | [method: string<NUL>] |
    /// [attributes]]`.
    #[must_use]
    pub fn read_change_user(payload: &[u8], agreed: Capabilities, collation: u16) -> Option<Self> {
        let mut reader = Reader::new(payload);
        if reader.u8()? != Command::ChangeUser as u8 {
            return None;
        }
        let user = reader.null_bytes()?.to_vec();
        let answer = if agreed.contains(Capabilities::SECURE_CONNECTION) {
            let len = reader.u8()?;
            reader.bytes(usize::from(len))?
        } else {
            reader.null_bytes()?
        };
        let mut response =
            Self { capabilities: agreed, collation, user, answer: answer.to_vec(), ..Self::default() };
        // Old clients leave out everything from here on.
        if reader.is_empty() {
            return Some(response);
        }
        response.database = reader.null_bytes()?.to_vec();
        if !reader.is_empty() {
            response.collation = reader.u16()?;
            response.read_tail(&mut reader)?;
        }
        Some(response)
    }
}

/// Our side of a client's login, or of its `COM_CHANGE_USER`.
#[derive(Debug)]
pub struct MyAccept {
    offer: Capabilities,
    offer_extended: Extended,
    require_tls: bool,
    force_full: bool,
    peer: IpAddr,
    /// What the greeting says; `None` once it is written, or where there is none.
    greeting: Option<Box<(MyHello, CancelKey, ClientAuthType)>>,
    nonce: Nonce,
    encrypted: bool,
    /// Of the next packet, whoever sends it.
    seq: u8,
    state: AcceptState,
    /// Where the client lands, if it follows its session.
    schema: Vec<u8>,
    id: u32,
}

#[derive(Debug)]
enum AcceptState {
    Greeting,
    Response,
    Tls,
    Credentials(Box<Response>, FirstSaid),
    Auth(Box<Response>, ClientAuth, AuthStep),
    Over,
}

/// Whether what the client said first answers a nonce of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FirstSaid {
    Answers,
    MustBeAsked,
}

impl Accept<MySql> for MyAccept {
    fn again(
        arrival: Arrival<MyHello>,
        client: MyClient,
        before: &PoolKey,
        request: &[u8],
    ) -> Result<(Self, AcceptStep<MyClient>), Fault> {
        Self::change_user(&arrival, client, key::collation(before), request, 0)
    }

    fn begin(options: AcceptOptions, arrival: Arrival<MyHello>) -> Self {
        Self {
            offer: arrival.hello.offer(options.offer_tls),
            offer_extended: arrival.hello.offer_extended(),
            require_tls: options.require_tls,
            force_full: arrival.force_full_authentication,
            peer: arrival.peer,
            id: arrival.key.id,
            greeting: Some(Box::new((arrival.hello, arrival.key, arrival.method))),
            nonce: Nonce([0; NONCE_BYTES]),
            encrypted: false,
            seq: 0,
            state: AcceptState::Greeting,
            schema: Vec::new(),
        }
    }

    fn advance(&mut self, input: &mut Buffer, out: &mut Vec<u8>) -> Result<AcceptStep<MyClient>, Fault> {
        loop {
            match &mut self.state {
                AcceptState::Greeting => self.greet(out)?,
                AcceptState::Response => return self.response(input),
                AcceptState::Auth(response, auth, AuthStep::Done) => {
                    let response = std::mem::take(&mut **response);
                    if response.capabilities.intersection(self.offer).contains(Capabilities::SESSION_TRACK) {
                        self.schema.clone_from(&response.database);
                    }
                    self.nonce = auth.nonce();
                    self.state = AcceptState::Over;
                    return Ok(AcceptStep::Login(self.login(response)));
                }
                AcceptState::Auth(_, _, step @ AuthStep::NeedKey) => {
                    *step = AuthStep::Continue;
                    return Ok(AcceptStep::NeedWork(auth::make_rsa_key));
                }
                AcceptState::Auth(..) => {
                    if !self.authenticate(input, out)? {
                        return Ok(AcceptStep::NeedBytes);
                    }
                }
                AcceptState::Tls | AcceptState::Credentials(..) | AcceptState::Over => {
                    return Ok(AcceptStep::NeedBytes);
                }
            }
        }
    }

    fn direct_tls(&mut self) -> Result<(), Fault> {
        Err(bad_handshake())
    }

    fn tls_started(&mut self, _: Option<&[u8]>, _: Option<&[u8]>) -> Result<(), Fault> {
        self.encrypted = true;
        self.state = AcceptState::Response;
        Ok(())
    }

    fn credentials(
        &mut self,
        method: ClientAuthType,
        secret: Option<Arc<Secret>>,
        mock: &MockKey,
        out: &mut Vec<u8>,
    ) -> Result<(), Fault> {
        let AcceptState::Credentials(response, said) = std::mem::replace(&mut self.state, AcceptState::Over)
        else {
            return Err(Fault::fatal(FaultKind::Internal, "credentials came unasked"));
        };
        let first = FirstAnswer {
            plugin: response.plugin.as_deref(),
            answer: (said == FirstSaid::Answers).then_some(&response.answer),
            nonce: self.nonce,
        };
        let mut payloads = Vec::new();
        let user = user_name(&response);
        let (auth, step) = ClientAuth::start(
            method,
            &user,
            secret,
            first,
            self.encrypted,
            self.force_full,
            mock,
            &mut payloads,
        )
        .map_err(|error| self.auth_fault(error, &user))?;
        self.send(&payloads, out);
        self.state = AcceptState::Auth(response, auth, step);
        Ok(())
    }

    fn write_welcome(&mut self, greeting: &Greeting, _: CancelKey, out: &mut Vec<u8>) {
        let (status, _) = read_greeting(greeting);
        let mut changes = Vec::new();
        if !self.schema.is_empty() {
            let mut entry = Vec::new();
            put_lenenc_bytes(&mut entry, &self.schema);
            changes.push(codec::track::SCHEMA);
            put_lenenc_bytes(&mut changes, &entry);
        }
        let ok = OkPacket { status, session_state: &changes, ..OkPacket::default() };
        self.seq = ok.write(codec::OK, self.seq, WANTED, out);
    }

    fn write_fault(&mut self, fault: &Fault, out: &mut Vec<u8>) {
        // A client that was told nothing yet takes the SQLSTATE for a part of the message.
        let agreed = match self.state {
            AcceptState::Greeting => Capabilities::NONE,
            _ => Capabilities::PROTOCOL_41,
        };
        self.seq = write_error(fault, self.seq, agreed, out);
    }
}

impl MyAccept {
    /// A client that has negotiated `client` asks to be somebody else: `payload` is its `COM_CHANGE_USER`, `seq` the
    /// number of that packet, `collation` the one it has now. It is always asked for a new answer. Goes on as a login does: [`AcceptStep::NeedCredentials`] comes first.
    /// Errors: the packet does not parse.
    pub fn change_user(
        arrival: &Arrival<MyHello>,
        client: MyClient,
        collation: u16,
        payload: &[u8],
        seq: u8,
    ) -> Result<(Self, AcceptStep<MyClient>), Fault> {
        let mut response =
            Response::read_change_user(payload, client.capabilities, collation).ok_or_else(bad_handshake)?;
        response.extended = client.extended;
        let user = user_name(&response);
        let accept = Self {
            offer: client.capabilities,
            offer_extended: client.extended,
            require_tls: false,
            force_full: arrival.force_full_authentication,
            peer: arrival.peer,
            id: client.id,
            greeting: None,
            nonce: client.nonce,
            encrypted: client.encrypted,
            seq: seq.wrapping_add(1),
            state: AcceptState::Credentials(Box::new(response), FirstSaid::MustBeAsked),
            schema: Vec::new(),
        };
        Ok((accept, AcceptStep::NeedCredentials(user)))
    }

    fn greet(&mut self, out: &mut Vec<u8>) -> Result<(), Fault> {
        self.nonce = Nonce::random().map_err(|_| internal())?;
        let Some((hello, key, method)) = self.greeting.take().map(|greeting| *greeting) else {
            return Err(internal());
        };
        self.seq = Handshake {
            version: hello.version.as_bytes(),
            connection_id: key.id,
            nonce: self.nonce.0.to_vec(),
            capabilities: self.offer,
            extended: self.offer_extended,
            collation: hello.collation,
            status: Status::AUTOCOMMIT,
            plugin: auth::plugin(method).unwrap_or(NATIVE).as_bytes(),
        }
        .write(out);
        self.state = AcceptState::Response;
        Ok(())
    }

    fn response(&mut self, input: &mut Buffer) -> Result<AcceptStep<MyClient>, Fault> {
        // Clients begin with TLS behind their request at once, so nothing may be read beyond that.
        let may_ask = !self.encrypted && self.offer.contains(Capabilities::SSL);
        let have = input.len();
        let Some((header, payload)) = self.packet(input.filled())? else {
            let wanted = Header::read(input.filled()).map_or(HEADER_BYTES, Header::total);
            return Ok(match may_ask {
                true => AcceptStep::NeedAtMost(wanted.saturating_sub(have).max(1)),
                false => AcceptStep::NeedBytes,
            });
        };
        let asked = Reader::new(payload).u32().map_or(Capabilities::NONE, Capabilities);
        if !self.encrypted && asked.contains(Capabilities::SSL) {
            // Bytes behind the request were sent in clear and would be read as if they had come encrypted.
            if !may_ask || payload.len() != SSL_REQUEST_BYTES || have > header.total() {
                self.took(header, input);
                return Err(bad_handshake());
            }
            self.took(header, input);
            self.state = AcceptState::Tls;
            return Ok(AcceptStep::StartTls);
        }
        let response = Response::read(payload);
        self.took(header, input);
        let response = response.ok_or_else(bad_handshake)?;
        if self.require_tls && !self.encrypted {
            return Err(Fault::fatal(FaultKind::TlsRequired, "This proxy requires TLS connections."));
        }
        let user = user_name(&response);
        self.state = AcceptState::Credentials(Box::new(response), FirstSaid::Answers);
        Ok(AcceptStep::NeedCredentials(user))
    }

    /// False when more bytes are needed.
    fn authenticate(&mut self, input: &mut Buffer, out: &mut Vec<u8>) -> Result<bool, Fault> {
        let Some((header, payload)) = self.packet(input.filled())? else { return Ok(false) };
        let AcceptState::Auth(response, auth, step) = &mut self.state else { return Ok(false) };
        let mut payloads = Vec::new();
        let advanced = auth.advance(payload, &mut payloads);
        if advanced == Ok(AuthStep::NeedKey) {
            // The same packet is read again.
            *step = AuthStep::NeedKey;
            return Ok(true);
        }
        let user = user_name(response);
        if let Ok(next) = advanced {
            *step = next;
        }
        self.took(header, input);
        advanced.map_err(|error| self.auth_fault(error, &user))?;
        self.send(&payloads, out);
        Ok(true)
    }

    /// The next packet, whole and in its turn.
    fn packet<'a>(&mut self, bytes: &'a [u8]) -> Result<Option<(Header, &'a [u8])>, Fault> {
        let Some(header) = Header::read(bytes) else { return Ok(None) };
        if header.seq != self.seq {
            self.seq = header.seq.wrapping_add(1);
            let fault = Fault::fatal(FaultKind::ProtocolViolation, "Got packets out of order");
            return Err(with_code(fault, OUT_OF_ORDER));
        }
        whole_packet(bytes, MAX_LOGIN_BYTES).map_err(|_| {
            self.seq = header.seq.wrapping_add(1);
            bad_handshake()
        })
    }

    fn took(&mut self, header: Header, input: &mut Buffer) {
        input.consume(header.total());
        self.seq = header.seq.wrapping_add(1);
    }

    fn send(&mut self, payloads: &[Vec<u8>], out: &mut Vec<u8>) {
        for payload in payloads {
            self.seq = codec::write_payload(out, self.seq, payload);
        }
    }

    fn login(&self, response: Response) -> Login<MyClient> {
        let capabilities = response.capabilities.intersection(self.offer);
        let extended = response.extended.intersection(self.offer_extended);
        let key =
            pool_key(&user_name(&response), &response.database, response.collation, capabilities, extended);
        // The first of the two that a client names is used, as the server does by default.
        let compression = if capabilities.contains(Capabilities::COMPRESS) {
            Compression::Zlib
        } else if capabilities.contains(Capabilities::ZSTD_COMPRESSION_ALGORITHM) {
            Compression::Zstd(response.zstd_level)
        } else {
            Compression::None
        };
        Login {
            key,
            application: String::from_utf8_lossy(&response.program).into(),
            compression,
            client: MyClient {
                capabilities,
                extended,
                compression,
                encrypted: self.encrypted,
                nonce: self.nonce,
                id: self.id,
            },
        }
    }

    fn auth_fault(&self, error: AuthError, user: &str) -> Fault {
        match error {
            AuthError::WrongPassword { given } => {
                let using = if given { "YES" } else { "NO" };
                Fault::fatal(
                    FaultKind::BadPassword,
                    format!("Access denied for user '{user}'@'{}' (using password: {using})", self.peer),
                )
            }
            AuthError::Malformed => bad_handshake(),
            AuthError::ClearWithoutTls => {
                Fault::fatal(FaultKind::TlsRequired, "A cleartext password needs TLS.")
            }
            AuthError::OldClient => with_code(
                Fault::fatal(
                    FaultKind::NotSupported,
                    "Client does not support authentication protocol requested by server; consider upgrading \
                     MySQL client",
                ),
                OLD_CLIENT,
            ),
            AuthError::Foreign | AuthError::Random => internal(),
        }
    }
}

fn user_name(response: &Response) -> String {
    String::from_utf8_lossy(&response.user).into_owned()
}

fn bad_handshake() -> Fault {
    with_code(Fault::fatal(FaultKind::ProtocolViolation, "Bad handshake"), BAD_HANDSHAKE)
}

fn internal() -> Fault {
    Fault::fatal(FaultKind::Internal, "Unknown error.")
}

/// What a login to a server came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerLogin {
    /// What both of us can do.
    pub capabilities: Capabilities,
    /// Of MariaDB's own.
    pub extended: Extended,
    /// The server's version, as it said it.
    pub version: Box<str>,
    /// Its id of this connection.
    pub connection_id: u32,
    /// As last reported.
    pub status: Status,
    /// MariaDB rather than MySQL.
    pub is_mariadb: bool,
    /// The server reports changes of the session's state.
    pub tracks: bool,
    /// Values of [`BASELINE`] at the end of the login, NULL as empty.
    pub baseline: Vec<String>,
    /// What it said of itself.
    pub hello: MyHello,
}

/// Makes the server report what changes in the session. To be sent again whenever the session was reset.
/// Source: MySQL Reference Manual, "Server Tracking of Client Session State"; MariaDB has the same variables.
pub const TRACK: &str = "SET SESSION session_track_system_variables='*', session_track_schema=ON, \
    session_track_state_change=ON, session_track_transaction_info='CHARACTERISTICS'";

/// What is read of every new connection, in the order of [`ServerLogin::baseline`].
pub const BASELINE: &str = "SELECT @@character_set_client, @@character_set_connection, \
    @@character_set_results, @@collation_connection, @@sql_mode, @@autocommit";
/// Columns of it.
const BASELINE_COLUMNS: usize = 6;

/// What clients of a pool are told at the end of their login. Shape: `status: u16 |` [`BASELINE`]'s values, each a
/// `string<lenenc>`.
#[must_use]
pub fn write_greeting(login: &ServerLogin) -> Greeting {
    let told = Status::AUTOCOMMIT | Status::NO_BACKSLASH_ESCAPES | Status::ANSI_QUOTES;
    let mut bytes = login.status.intersection(told).0.to_le_bytes().to_vec();
    for value in &login.baseline {
        put_lenenc_bytes(&mut bytes, value.as_bytes());
    }
    Greeting { bytes }
}

/// What [`write_greeting`] wrote: status, and [`BASELINE`]'s values.
#[must_use]
pub fn read_greeting(greeting: &Greeting) -> (Status, Vec<&str>) {
    let mut reader = Reader::new(&greeting.bytes);
    let status = reader.u16().map_or(Status::AUTOCOMMIT, Status);
    let values = std::iter::from_fn(|| reader.lenenc_bytes());
    (status, values.map(|value| std::str::from_utf8(value).unwrap_or_default()).collect())
}

/// Our login to a server.
#[derive(Debug)]
pub struct MyConnect {
    key: PoolKey,
    secret: Arc<Secret>,
    tls: TlsMode,
    purpose: Purpose,
    encrypted: bool,
    /// Of the next packet, whoever sends it.
    seq: u8,
    nonce: Vec<u8>,
    plugin: Vec<u8>,
    state: ConnectState,
    login: ServerLogin,
}

#[derive(Debug)]
enum ConnectState {
    Greeting,
    Tls,
    Respond,
    Auth(ServerAuth),
    /// The answer to [`TRACK`] is to come.
    Track(Answer),
    /// The answer to [`BASELINE`] is to come.
    Baseline(Answer),
    Over,
}

impl Connect<MySql> for MyConnect {
    fn begin(key: &PoolKey, secret: Arc<Secret>, tls: TlsMode, purpose: Purpose) -> Self {
        let hello = MyHello {
            version: Box::default(),
            capabilities: Capabilities::NONE,
            extended: Extended::NONE,
            collation: 0,
        };
        Self {
            key: key.clone(),
            secret,
            tls,
            purpose,
            encrypted: false,
            seq: 0,
            nonce: Vec::new(),
            plugin: Vec::new(),
            state: ConnectState::Greeting,
            login: ServerLogin {
                capabilities: Capabilities::NONE,
                extended: Extended::NONE,
                version: Box::default(),
                connection_id: 0,
                status: Status::NONE,
                is_mariadb: false,
                tracks: false,
                baseline: Vec::new(),
                hello,
            },
        }
    }

    fn advance(&mut self, input: &mut Buffer, out: &mut Vec<u8>) -> Result<ConnectStep, ConnectError> {
        loop {
            match &self.state {
                ConnectState::Respond => {
                    self.respond(out);
                    continue;
                }
                ConnectState::Tls => return Ok(ConnectStep::NeedBytes),
                ConnectState::Over => return Ok(ConnectStep::Done),
                _ => {}
            }
            let whole = whole_packet(input.filled(), MAX_LOGIN_BYTES).map_err(broken)?;
            let Some((header, payload)) = whole else { return Ok(ConnectStep::NeedBytes) };
            if header.seq != self.seq {
                return Err(broken("packets out of order"));
            }
            self.seq = header.seq.wrapping_add(1);
            let step = self.packet(payload, header.total() == input.len(), out)?;
            input.consume(header.total());
            if let Some(step) = step {
                return Ok(step);
            }
        }
    }

    fn tls_started(&mut self, _: Option<Vec<u8>>) {
        self.encrypted = true;
        self.state = ConnectState::Respond;
    }

    fn hello(&self) -> MyHello {
        self.login.hello.clone()
    }

    fn finish(self, shared: &<MySql as Protocol>::Shared) -> <MySql as Protocol>::Server {
        super::server::MyServer::new(&self.login, key::database_bytes(&self.key), shared.max_prepared)
    }
}

impl MyConnect {
    /// What the login came to, after [`ConnectStep::Done`].
    #[must_use]
    pub const fn login(&self) -> &ServerLogin {
        &self.login
    }

    /// `alone`: nothing has come behind this packet.
    fn packet(
        &mut self,
        payload: &[u8],
        alone: bool,
        out: &mut Vec<u8>,
    ) -> Result<Option<ConnectStep>, ConnectError> {
        if payload.first() == Some(&ERR)
            && !matches!(self.state, ConnectState::Track(_) | ConnectState::Baseline(_))
        {
            return Err(refused(&ErrPacket::read(payload).map_err(broken)?));
        }
        match &mut self.state {
            ConnectState::Greeting => return self.greeted(payload, alone, out),
            ConnectState::Auth(auth) => {
                if payload.first() == Some(&codec::OK) {
                    let ok = OkPacket::read(payload, self.login.capabilities).map_err(broken)?;
                    self.login.status = ok.status;
                    self.set_up(out);
                } else if let Some(answer) = auth.advance(payload).map_err(broken)? {
                    self.seq = codec::write_payload(out, self.seq, &answer);
                }
            }
            ConnectState::Track(answer) => {
                match answer.advance(payload, self.login.capabilities).map_err(broken)? {
                    Answered::More => {}
                    Answered::Done { error, .. } => {
                        self.login.tracks = error.is_none();
                        self.seq = 1;
                        self.state = ConnectState::Baseline(Answer::default());
                    }
                }
            }
            ConnectState::Baseline(answer) => {
                match answer.advance(payload, self.login.capabilities).map_err(broken)? {
                    Answered::More => {}
                    Answered::Done { error: Some(error), .. } => return Err(refused(&error)),
                    Answered::Done { row, status, .. } => {
                        if row.len() != BASELINE_COLUMNS {
                            return Err(broken("not the columns asked for"));
                        }
                        if let Some(status) = status {
                            self.login.status = status.without(Status::SESSION_STATE_CHANGED);
                        }
                        self.login.baseline = row;
                        self.state = ConnectState::Over;
                    }
                }
            }
            ConnectState::Tls | ConnectState::Respond | ConnectState::Over => {}
        }
        Ok(None)
    }

    fn greeted(
        &mut self,
        payload: &[u8],
        alone: bool,
        out: &mut Vec<u8>,
    ) -> Result<Option<ConnectStep>, ConnectError> {
        let greeting = Handshake::read(payload).ok_or_else(|| broken("malformed greeting"))?;
        let announced = greeting.capabilities;
        if !announced.contains(Capabilities::PROTOCOL_41 | Capabilities::SECURE_CONNECTION) {
            return Err(broken("the server is older than MySQL 4.1"));
        }
        let (flags, extended) = (key::flags(&self.key), key::extended(&self.key));
        if !announced.contains(flags) || !greeting.extended.contains(extended) {
            return Err(broken(format!(
                "the server lacks what clients of this pool were promised: {:?} {:?}",
                flags.without(announced),
                extended.without(greeting.extended)
            )));
        }
        let version = String::from_utf8_lossy(greeting.version);
        let mut wanted = WANTED.union(flags);
        if self.purpose == Purpose::Cancel {
            // What is sent here has the form without.
            wanted = wanted.without(Capabilities::QUERY_ATTRIBUTES);
        }
        if !key::database_bytes(&self.key).is_empty() {
            wanted = wanted.union(Capabilities::CONNECT_WITH_DB);
        }
        self.login = ServerLogin {
            // CONNECT_WITH_DB is as old as the protocol.
            capabilities: announced.union(Capabilities::CONNECT_WITH_DB).intersection(wanted),
            extended: extended.union(greeting.extended.intersection(Extended::STMT_BULK_OPERATIONS)),
            version: (*version).into(),
            connection_id: greeting.connection_id,
            status: greeting.status,
            is_mariadb: announced.is_mariadb(),
            tracks: false,
            baseline: Vec::new(),
            hello: MyHello {
                version: (*version).into(),
                capabilities: announced,
                extended: greeting.extended,
                collation: greeting.collation,
            },
        };
        self.nonce = greeting.nonce;
        self.plugin = greeting.plugin.to_vec();
        self.state = ConnectState::Respond;
        match (self.tls, announced.contains(Capabilities::SSL)) {
            (TlsMode::Disabled, _) | (TlsMode::Preferred, false) => Ok(None),
            (_, false) => {
                Err(ConnectError::Tls("the server does not offer TLS, which this target requires".into()))
            }
            (_, true) if !alone => Err(broken("unencrypted data behind the greeting")),
            (_, true) => {
                self.login.capabilities = self.login.capabilities.union(Capabilities::SSL);
                self.seq = write_packet(out, self.seq, |body| self.write_start(body));
                self.state = ConnectState::Tls;
                Ok(Some(ConnectStep::StartTls))
            }
        }
    }

    /// What an SSLRequest is, and a response begins with.
    fn write_start(&self, body: &mut Vec<u8>) {
        let login = &self.login;
        body.extend_from_slice(&login.capabilities.0.to_le_bytes());
        body.extend_from_slice(&MAX_PACKET.to_le_bytes());
        let collation = key::collation(&self.key);
        // Only the change of a user can name one that does not fit here.
        body.push(u8::try_from(collation).unwrap_or(key::UTF8MB4_GENERAL_CI as u8));
        body.extend_from_slice(&[0; FILLER_BYTES]);
        body.extend_from_slice(&login.extended.0.to_le_bytes());
    }

    fn respond(&mut self, out: &mut Vec<u8>) {
        let (auth, plugin, answer) =
            ServerAuth::start(self.secret.clone(), &self.plugin, &self.nonce, self.encrypted);
        let agreed = self.login.capabilities;
        self.seq = write_packet(out, self.seq, |body| {
            self.write_start(body);
            put_null_bytes(body, self.key.user.as_bytes());
            // An answer is short, so that its length is the same in either form.
            put_lenenc_bytes(body, &answer);
            if agreed.contains(Capabilities::CONNECT_WITH_DB) {
                put_null_bytes(body, key::database_bytes(&self.key));
            }
            if agreed.contains(Capabilities::PLUGIN_AUTH) {
                put_null_bytes(body, plugin.as_bytes());
            }
            if agreed.contains(Capabilities::CONNECT_ATTRS) {
                let mut attributes = Vec::new();
                for text in ["_client_name", "pinion", "_client_version", env!("CARGO_PKG_VERSION")] {
                    put_lenenc_bytes(&mut attributes, text.as_bytes());
                }
                put_lenenc_bytes(body, &attributes);
            }
        });
        self.state = ConnectState::Auth(auth);
    }

    /// Sends the statements of ours, both at once.
    fn set_up(&mut self, out: &mut Vec<u8>) {
        let agreed = self.login.capabilities;
        self.seq = 1;
        if self.purpose == Purpose::Cancel {
            self.state = ConnectState::Over;
            return;
        }
        self.state = ConnectState::Baseline(Answer::default());
        if agreed.contains(Capabilities::SESSION_TRACK) {
            super::query::write_query(TRACK.as_bytes(), agreed, out);
            self.state = ConnectState::Track(Answer::default());
        }
        super::query::write_query(BASELINE.as_bytes(), agreed, out);
    }
}

fn broken(why: impl ToString) -> ConnectError {
    ConnectError::Protocol(why.to_string())
}

/// `ER_ACCESS_DENIED_ERROR`, `ER_ACCESS_DENIED_NO_PASSWORD_ERROR`.
const BAD_SECRET: [u16; 2] = [1045, 1698];
/// `ER_CON_COUNT_ERROR`, `ER_SERVER_SHUTDOWN`, `ER_TOO_MANY_USER_CONNECTIONS`, `ER_SERVER_OFFLINE_MODE`.
const TRY_AGAIN: [u16; 4] = [1040, 1053, 1203, 3032];

fn refused(error: &ErrPacket) -> ConnectError {
    let fault = Fault::fatal(FaultKind::ServerRefused, error.message.clone());
    let fault = with_code(fault, (error.code, &error.sqlstate));
    ConnectError::Refused {
        fault,
        bad_secret: BAD_SECRET.contains(&error.code),
        try_again: TRY_AGAIN.contains(&error.code),
    }
}

/// Appends a request to kill what connection `id` runs, and a goodbye.
pub fn write_cancel(id: u32, out: &mut Vec<u8>) {
    super::query::write_query(format!("KILL QUERY {id}").as_bytes(), Capabilities::NONE, out);
    write_packet(out, 0, |body| body.push(Command::Quit as u8));
}

/// Why a cancel has failed, by the server's answer. A connection that is gone (1094) runs nothing.
#[must_use]
pub fn cancel_error(answer: &[u8]) -> Option<String> {
    const NO_SUCH_THREAD: u16 = 1094;
    let (_, payload) = whole_packet(answer, MAX_LOGIN_BYTES).ok().flatten()?;
    let error = ErrPacket::read(payload).ok()?;
    (error.code != NO_SUCH_THREAD).then_some(error.message)
}

#[cfg(test)]
mod tests;
