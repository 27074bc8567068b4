//! Start-up on both sides, up to the first ReadyForQuery.
//! Source: PostgreSQL manual, "Message Flow: Start-up", "SSL Session Encryption", "Cancelling Requests in Progress".

use std::sync::Arc;

use super::{
    super::{
        Accept, AcceptOptions, AcceptStep, Arrival, CancelKey, Compression, Connect, ConnectError,
        ConnectStep, Fault, FaultKind, Greeting, Login, PoolKey, Purpose, ServerKey,
    },
    Postgres, Shared,
    auth::{ClientLogin, LoginError, LoginStep, ServerLogin},
    codec::{ErrorFields, HEADER_BYTES, Header, cstr, put_cstr, write_counted, write_message},
    error::write_error,
    scram::MockKey,
    server::PgServer,
};
use crate::{
    buffer::Buffer,
    config::{ClientAuthType, TlsMode},
    secrets::Secret,
};

/// Longest start-up packet, as PostgreSQL's own `MAX_STARTUP_PACKET_LENGTH`.
pub const MAX_STARTUP_BYTES: usize = 10_000;

const PROTOCOL_3_0: u32 = 3 << 16;
const CANCEL_REQUEST: u32 = 80_877_102;
const SSL_REQUEST: u32 = 80_877_103;
const GSSENC_REQUEST: u32 = 80_877_104;

/// ALPN protocol name of direct TLS.
pub const ALPN: &[u8] = b"postgresql";

/// Start-up messages that carry data are short; authentication messages are capped like the start-up packet.
const MAX_AUTH_BYTES: usize = 10_000;

/// Our side of a client's login.
#[derive(Debug)]
pub struct PgAccept {
    options: AcceptOptions,
    encrypted: bool,
    binding: Option<Vec<u8>>,
    tls_asked: bool,
    gss_asked: bool,
    state: AcceptState,
}

#[derive(Debug)]
enum AcceptState {
    Startup,
    /// TLS is being set up: because of an SSLRequest, or at once.
    Tls {
        direct: bool,
    },
    Credentials(Startup),
    Password {
        startup: Startup,
        login: Option<ClientLogin>,
    },
    Over,
}

#[derive(Debug)]
struct Startup {
    user: String,
    parameters: Box<[u8]>,
}

impl Accept<Postgres> for PgAccept {
    fn begin(options: AcceptOptions, _: Arrival<()>) -> Self {
        Self::new(options)
    }

    fn advance(&mut self, input: &mut Buffer, out: &mut Vec<u8>) -> Result<AcceptStep<()>, Fault> {
        match &mut self.state {
            AcceptState::Startup => self.startup(input, out),
            AcceptState::Password { .. } => self.password(input, out),
            AcceptState::Tls { .. } | AcceptState::Credentials(_) | AcceptState::Over => {
                Ok(AcceptStep::NeedBytes)
            }
        }
    }

    fn direct_tls(&mut self) -> Result<(), Fault> {
        if !self.options.offer_tls {
            return Err(violation("TLS is not offered here"));
        }
        self.tls_asked = true;
        self.state = AcceptState::Tls { direct: true };
        Ok(())
    }

    fn tls_started(&mut self, end_point: Option<&[u8]>, protocol: Option<&[u8]>) -> Result<(), Fault> {
        let direct = matches!(self.state, AcceptState::Tls { direct: true });
        self.encrypted = true;
        self.binding = end_point.map(<[u8]>::to_vec);
        self.state = AcceptState::Startup;
        if direct && protocol != Some(ALPN) {
            return Err(violation("direct TLS connections must negotiate the ALPN protocol \"postgresql\""));
        }
        Ok(())
    }

    fn credentials(
        &mut self,
        method: ClientAuthType,
        secret: Option<Arc<Secret>>,
        mock: &MockKey,
        out: &mut Vec<u8>,
    ) -> Result<(), Fault> {
        let AcceptState::Credentials(startup) = std::mem::replace(&mut self.state, AcceptState::Over) else {
            return Err(Fault::fatal(FaultKind::Internal, "credentials came unasked"));
        };
        let login = ClientLogin::start(
            method,
            &startup.user,
            secret,
            self.binding.as_deref(),
            self.encrypted,
            mock,
            out,
        )
        .map_err(|e| login_fault(&e, &startup.user))?;
        self.state = AcceptState::Password { startup, login: Some(login) };
        Ok(())
    }

    fn write_welcome(&mut self, greeting: &Greeting, key: CancelKey, out: &mut Vec<u8>) {
        write_welcome(greeting, key, out);
    }

    fn write_fault(&mut self, fault: &Fault, out: &mut Vec<u8>) {
        write_error(fault, out);
    }
}

impl PgAccept {
    /// A new client.
    #[must_use]
    pub const fn new(options: AcceptOptions) -> Self {
        Self {
            options,
            encrypted: false,
            binding: None,
            tls_asked: false,
            gss_asked: false,
            state: AcceptState::Startup,
        }
    }

    fn startup(&mut self, input: &mut Buffer, out: &mut Vec<u8>) -> Result<AcceptStep<()>, Fault> {
        let bytes = input.filled();
        let Some(&[a, b, c, d]) = bytes.first_chunk() else { return Ok(AcceptStep::NeedBytes) };
        let len = u32::from_be_bytes([a, b, c, d]) as usize;
        if !(8..=MAX_STARTUP_BYTES).contains(&len) {
            return Err(violation("invalid length of startup packet"));
        }
        if bytes.len() < len {
            return Ok(AcceptStep::NeedBytes);
        }
        let code = u32::from_be_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
        let body = bytes[8..len].to_vec();
        match code {
            SSL_REQUEST => {
                if self.tls_asked || self.encrypted || len != 8 {
                    return Err(violation("unexpected SSLRequest"));
                }
                self.tls_asked = true;
                // Bytes behind the request were sent in clear and would be read as if they had come encrypted
                // (CVE-2021-23214).
                if bytes.len() > len {
                    return Err(violation("received unencrypted data after SSL request"));
                }
                input.consume(len);
                if self.options.offer_tls {
                    out.push(b'S');
                    self.state = AcceptState::Tls { direct: false };
                    return Ok(AcceptStep::StartTls);
                }
                out.push(b'N');
                Ok(AcceptStep::NeedBytes)
            }
            GSSENC_REQUEST => {
                if self.gss_asked || len != 8 {
                    return Err(violation("unexpected GSSENCRequest"));
                }
                self.gss_asked = true;
                if bytes.len() > len {
                    return Err(violation("received unencrypted data after GSSAPI encryption request"));
                }
                input.consume(len);
                out.push(b'N');
                Ok(AcceptStep::NeedBytes)
            }
            CANCEL_REQUEST => {
                input.consume(len);
                self.state = AcceptState::Over;
                // Keys of other lengths belong to a protocol version that we never agreed to.
                let Some((&[a, b, c, d], &[e, f, g, h])) = body
                    .split_first_chunk()
                    .and_then(|(id, rest)| Some((id, <&[u8; 4]>::try_from(rest).ok()?)))
                else {
                    return Ok(AcceptStep::Quit);
                };
                Ok(AcceptStep::Cancel(CancelKey {
                    id: u32::from_be_bytes([a, b, c, d]),
                    secret: u32::from_be_bytes([e, f, g, h]),
                }))
            }
            version => {
                input.consume(len);
                self.start_session(version, &body, out)
            }
        }
    }

    fn start_session(
        &mut self,
        version: u32,
        body: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<AcceptStep<()>, Fault> {
        if version >> 16 != 3 {
            return Err(Fault::fatal(
                FaultKind::NotSupported,
                format!(
                    "Feature not supported: only version 3.0 of the PostgreSQL messaging protocol, not {}.{}.",
                    version >> 16,
                    version & 0xffff
                ),
            ));
        }
        if self.options.require_tls && !self.encrypted {
            return Err(Fault::fatal(FaultKind::TlsRequired, "This proxy requires TLS connections."));
        }
        let Parsed { user, parameters, unknown } = parse_parameters(body)?;
        if version != PROTOCOL_3_0 || !unknown.is_empty() {
            write_message(out, b'v', |body| {
                // The newest minor version that we speak, then the options we do not know.
                body.extend_from_slice(&PROTOCOL_3_0.to_be_bytes());
                body.extend_from_slice(&u32::try_from(unknown.len()).unwrap_or(u32::MAX).to_be_bytes());
                for name in &unknown {
                    put_cstr(body, name);
                }
            });
        }
        self.state = AcceptState::Credentials(Startup { user: user.clone(), parameters });
        Ok(AcceptStep::NeedCredentials(user))
    }

    fn password(&mut self, input: &mut Buffer, out: &mut Vec<u8>) -> Result<AcceptStep<()>, Fault> {
        let bytes = input.filled();
        match bytes.first() {
            None => return Ok(AcceptStep::NeedBytes),
            Some(b'p') => {}
            Some(b'X') => return Ok(AcceptStep::Quit),
            Some(_) => return Err(violation("expected password response")),
        }
        let header = match Header::read(bytes) {
            Ok(Some(header)) if header.body <= MAX_AUTH_BYTES => header,
            Ok(None) => return Ok(AcceptStep::NeedBytes),
            _ => return Err(violation("invalid password packet size")),
        };
        if bytes.len() < header.total() {
            return Ok(AcceptStep::NeedBytes);
        }
        let AcceptState::Password { startup, login } = &mut self.state else {
            return Ok(AcceptStep::NeedBytes);
        };
        let Some(current) = login.take() else { return Err(violation("unexpected password response")) };
        let step = current
            .advance(&bytes[HEADER_BYTES..header.total()], out)
            .map_err(|e| login_fault(&e, &startup.user));
        let user = startup.user.clone();
        let parameters = startup.parameters.clone();
        match step? {
            LoginStep::Continue(next) => {
                *login = Some(next);
                input.consume(header.total());
                self.password(input, out)
            }
            LoginStep::Done => {
                input.consume(header.total());
                self.state = AcceptState::Over;
                let key = PoolKey { user: user.into(), parameters };
                let application = parameter(&key, "application_name").unwrap_or_default().into();
                let compression = Compression::None;
                Ok(AcceptStep::Login(Login { key, application, compression, client: () }))
            }
        }
    }
}

fn violation(message: &'static str) -> Fault {
    Fault::fatal(FaultKind::ProtocolViolation, message)
}

fn login_fault(error: &LoginError, user: &str) -> Fault {
    match error {
        LoginError::WrongPassword => Fault::fatal(
            FaultKind::BadPassword,
            format!("The password that was provided for the role {user} is wrong."),
        ),
        other => Fault::fatal(FaultKind::ProtocolViolation, other.to_string()),
    }
}

struct Parsed {
    user: String,
    /// `name \0 value \0` pairs sorted by name, `database` among them.
    parameters: Box<[u8]>,
    /// `_pq_.` options, in the order they came.
    unknown: Vec<Vec<u8>>,
}

/// Reads the name-value pairs of a start-up packet.
fn parse_parameters(mut body: &[u8]) -> Result<Parsed, Fault> {
    let malformed = || violation("invalid startup packet layout: expected terminator as last byte");
    let mut user = None;
    let mut pairs: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    let mut unknown = Vec::new();
    loop {
        let (name, rest) = cstr(body).ok_or_else(malformed)?;
        if name.is_empty() {
            if !rest.is_empty() {
                return Err(malformed());
            }
            break;
        }
        let (value, rest) = cstr(rest).ok_or_else(malformed)?;
        body = rest;
        match name {
            b"user" => user = Some(value.to_vec()),
            b"replication" => {
                if !is_false(value) {
                    return Err(Fault::fatal(
                        FaultKind::NotSupported,
                        "Feature not supported: streaming replication mode.",
                    ));
                }
            }
            _ if name.starts_with(b"_pq_.") => unknown.push(name.to_vec()),
            _ => {
                // As in the server, the last of several wins, and names do not distinguish case.
                let name = if name == b"database" { name.to_vec() } else { name.to_ascii_lowercase() };
                pairs.retain(|(n, _)| *n != name);
                pairs.push((name, value.to_vec()));
            }
        }
    }
    let user = match user {
        Some(user) if !user.is_empty() => {
            String::from_utf8(user).map_err(|_| violation("the user name is not valid UTF-8"))?
        }
        _ => {
            return Err(Fault::fatal(
                FaultKind::UserMissing,
                "A user name is missing from the connection startup packet. Provide a user name for this connection.",
            ));
        }
    };
    if !pairs.iter().any(|(name, value)| name == b"database" && !value.is_empty()) {
        pairs.retain(|(name, _)| name != b"database");
        pairs.push((b"database".to_vec(), user.clone().into_bytes()));
    }
    pairs.sort();
    let mut parameters = Vec::new();
    for (name, value) in &pairs {
        put_cstr(&mut parameters, name);
        put_cstr(&mut parameters, value);
    }
    Ok(Parsed { user, parameters: parameters.into(), unknown })
}

/// What PostgreSQL's `parse_bool` takes for false.
fn is_false(value: &[u8]) -> bool {
    let value = value.to_ascii_lowercase();
    matches!(value.as_slice(), b"0" | b"off" | b"of")
        || (!value.is_empty() && (b"false".starts_with(&value) || b"no".starts_with(&value)))
}

/// Our login to a server.
#[derive(Debug)]
pub struct PgConnect {
    stage: Stage,
    authenticated: bool,
    greeting: Greeting,
    key: ServerKey,
}

/// How far a login to a server has come.
#[derive(Debug)]
enum Stage {
    /// Whether there will be TLS is open.
    Opening(Opening),
    /// The start-up message is sent.
    Login(ServerLogin),
}

/// What is kept for the start-up message.
#[derive(Debug)]
struct Opening {
    key: PoolKey,
    secret: Arc<Secret>,
    tls: TlsMode,
    purpose: Purpose,
    asked: bool,
    /// Over TLS, with the channel binding where one is defined.
    encrypted: Option<Option<Vec<u8>>>,
}

impl Connect<Postgres> for PgConnect {
    fn begin(key: &PoolKey, secret: Arc<Secret>, tls: TlsMode, purpose: Purpose) -> Self {
        Self::at(Stage::Opening(Opening {
            key: key.clone(),
            secret,
            tls,
            purpose,
            asked: false,
            encrypted: None,
        }))
    }

    fn tls_started(&mut self, end_point: Option<Vec<u8>>) {
        if let Stage::Opening(opening) = &mut self.stage {
            opening.encrypted = Some(end_point);
        }
    }

    fn hello(&self) {}

    fn advance(&mut self, input: &mut Buffer, out: &mut Vec<u8>) -> Result<ConnectStep, ConnectError> {
        let login = match &mut self.stage {
            Stage::Login(login) => login,
            Stage::Opening(opening) => {
                if let Some(step) = opening.advance(input, out)? {
                    return Ok(step);
                }
                if opening.purpose == Purpose::Cancel {
                    return Ok(ConnectStep::Done);
                }
                let encrypted = opening.encrypted.take();
                let (key, secret) = (opening.key.clone(), opening.secret.clone());
                *self = Self::start(&key, secret, encrypted, out);
                return Ok(ConnectStep::NeedBytes);
            }
        };
        loop {
            let bytes = input.filled();
            let header = match Header::read(bytes).map_err(|e| ConnectError::Protocol(e.to_string()))? {
                Some(header) if header.body > 65_536 => {
                    return Err(ConnectError::Protocol(format!(
                        "a {:?} message of {} bytes during login",
                        char::from(header.tag),
                        header.body
                    )));
                }
                Some(header) if bytes.len() >= header.total() => header,
                _ => return Ok(ConnectStep::NeedBytes),
            };
            let message = &bytes[..header.total()];
            let body = &message[HEADER_BYTES..];
            let mut done = false;
            match header.tag {
                b'R' if !self.authenticated => {
                    self.authenticated =
                        login.advance(body, out).map_err(|e| ConnectError::Protocol(e.to_string()))?;
                }
                b'S' if self.authenticated => self.greeting.bytes.extend_from_slice(message),
                b'K' if self.authenticated && body.len() > 4 => {
                    self.key.id = u32::from_be_bytes([body[0], body[1], body[2], body[3]]);
                    self.key.secret = body[4..].to_vec();
                }
                b'Z' if self.authenticated => done = true,
                b'E' => return Err(refused(body)),
                // Notices of a login trigger or the like belong to nobody; the negotiated version is ours anyway.
                b'N' | b'v' => {}
                tag => {
                    return Err(ConnectError::Protocol(format!("unexpected {:?} message", char::from(tag))));
                }
            }
            input.consume(header.total());
            if done {
                return Ok(ConnectStep::Done);
            }
        }
    }

    fn finish(self, shared: &Shared) -> PgServer {
        PgServer::new(self.key, Arc::new(self.greeting), shared.max_prepared, shared.schema.clone())
    }
}

impl PgConnect {
    /// Writes the start-up message. `tls` is the tls-server-end-point binding when encrypted (`Some(None)`: encrypted,
    /// no binding defined for that certificate).
    pub fn start(
        key: &PoolKey,
        secret: Arc<Secret>,
        tls: Option<Option<Vec<u8>>>,
        out: &mut Vec<u8>,
    ) -> Self {
        write_counted(out, |body| {
            body.extend_from_slice(&PROTOCOL_3_0.to_be_bytes());
            put_cstr(body, b"user");
            put_cstr(body, key.user.as_bytes());
            body.extend_from_slice(&key.parameters);
            body.push(0);
        });
        let encrypted = tls.is_some();
        Self::at(Stage::Login(ServerLogin::new(&key.user, secret, encrypted, tls.flatten())))
    }

    fn at(stage: Stage) -> Self {
        Self { stage, authenticated: false, greeting: Greeting::default(), key: ServerKey::default() }
    }
}

impl Opening {
    /// TLS as the target's mode says; `None` once that is settled.
    fn advance(
        &mut self,
        input: &mut Buffer,
        out: &mut Vec<u8>,
    ) -> Result<Option<ConnectStep>, ConnectError> {
        if self.tls == TlsMode::Disabled || self.encrypted.is_some() {
            return Ok(None);
        }
        if !self.asked {
            self.asked = true;
            write_ssl_request(out);
        }
        // Exactly one byte, so that nothing sent in clear can be taken for what came encrypted (CVE-2021-23222).
        let Some(answer) = input.filled().first().copied() else {
            return Ok(Some(ConnectStep::NeedAtMost(1)));
        };
        input.consume(1);
        match answer {
            b'S' if !input.is_empty() => Err(ConnectError::Protocol(
                "the server sent unencrypted data after its answer to SSLRequest".into(),
            )),
            b'S' => Ok(Some(ConnectStep::StartTls)),
            b'N' if self.tls == TlsMode::Preferred => {
                self.tls = TlsMode::Disabled;
                Ok(None)
            }
            b'N' => {
                Err(ConnectError::Tls("the server does not offer TLS, which this target requires".into()))
            }
            other => {
                Err(ConnectError::Tls(format!("the server answered {other:#04x} to the request for TLS")))
            }
        }
    }
}

fn refused(body: &[u8]) -> ConnectError {
    let fields = ErrorFields::read(body);
    let mut fault = Fault::fatal(FaultKind::ServerRefused, fields.message);
    let bad_secret = matches!(fields.code.as_str(), "28P01" | "28000");
    // Too many connections, starting up, shutting down, recovery: another moment may do.
    let try_again = matches!(fields.code.as_str(), "53300" | "57P03" | "57P01" | "57P02");
    fault.native_code = Some(fields.code);
    ConnectError::Refused { fault, bad_secret, try_again }
}

/// The value of a start-up parameter of `key`, where it is text.
pub fn parameter<'a>(key: &'a PoolKey, wanted: &str) -> Option<&'a str> {
    let mut rest = &*key.parameters;
    while let Some((name, after)) = cstr(rest) {
        let (value, after) = cstr(after)?;
        if name == wanted.as_bytes() {
            return std::str::from_utf8(value).ok();
        }
        rest = after;
    }
    None
}

/// Appends AuthenticationOk, the server's parameters, our own key, and ReadyForQuery.
pub fn write_welcome(greeting: &Greeting, key: CancelKey, out: &mut Vec<u8>) {
    write_message(out, b'R', |body| body.extend_from_slice(&0u32.to_be_bytes()));
    out.extend_from_slice(&greeting.bytes);
    write_message(out, b'K', |body| {
        body.extend_from_slice(&key.id.to_be_bytes());
        body.extend_from_slice(&key.secret.to_be_bytes());
    });
    write_message(out, b'Z', |body| body.push(b'I'));
}

/// Appends a CancelRequest.
pub fn write_cancel(key: &ServerKey, out: &mut Vec<u8>) {
    write_counted(out, |body| {
        body.extend_from_slice(&CANCEL_REQUEST.to_be_bytes());
        body.extend_from_slice(&key.id.to_be_bytes());
        body.extend_from_slice(&key.secret);
    });
}

/// Appends an SSLRequest.
pub fn write_ssl_request(out: &mut Vec<u8>) {
    write_counted(out, |body| body.extend_from_slice(&SSL_REQUEST.to_be_bytes()));
}

#[cfg(test)]
mod tests {
    use super::*;

    const TLS: AcceptOptions = AcceptOptions { offer_tls: true, require_tls: false };

    fn packet(code: u32, body: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        write_counted(&mut out, |b| {
            b.extend_from_slice(&code.to_be_bytes());
            b.extend_from_slice(body);
        });
        out
    }

    /// Feeds `bytes` in two pieces, cut everywhere, and says what came of it in one line.
    fn check(options: AcceptOptions, bytes: &[u8], want: &str) {
        for cut in 0..=bytes.len() {
            // What stands behind a request for TLS must be there at once to be caught.
            if bytes.get(4..8) == Some(&SSL_REQUEST.to_be_bytes()) && (8..bytes.len()).contains(&cut) {
                continue;
            }
            let mut accept = PgAccept::new(options);
            let mut input = Buffer::default();
            let mut out = Vec::new();
            let mut got = String::new();
            for piece in [&bytes[..cut], &bytes[cut..]] {
                input.extend(piece);
                got = match accept.advance(&mut input, &mut out) {
                    Ok(AcceptStep::NeedBytes) if out.is_empty() => continue,
                    Ok(AcceptStep::NeedBytes) => format!("answers {}", out.escape_ascii()),
                    Ok(AcceptStep::NeedCredentials(user)) => {
                        let AcceptState::Credentials(startup) = &accept.state else { panic!("no startup") };
                        format!("{user} {} {}", startup.parameters.escape_ascii(), out.escape_ascii())
                    }
                    Ok(step) => format!("{step:?}"),
                    Err(fault) => format!("{:?}: {}", fault.kind, fault.message),
                };
                break;
            }
            assert_eq!(got.trim_end(), want, "cut at {cut} of {}", bytes.escape_ascii());
        }
    }

    #[test]
    fn startup_packets_are_read_at_every_cut() {
        let v3 = PROTOCOL_3_0;
        check(TLS, &packet(v3, b"user\0app\0\0"), r"app database\x00app\x00");
        check(
            TLS,
            &packet(v3, b"user\0app\0database\0shop\0DateStyle\0ISO\0options\0-c a=b\0\0"),
            r"app database\x00shop\x00datestyle\x00ISO\x00options\x00-c a=b\x00",
        );
        // The order of parameters makes no other pool, the last of several counts.
        check(
            TLS,
            &packet(v3, b"b\x002\0user\0app\0a\x000\0a\x001\0\0"),
            r"app a\x001\x00b\x002\x00database\x00app\x00",
        );
        check(TLS, &packet(v3, b"user\0app\0replication\0false\0\0"), r"app database\x00app\x00");
        check(
            TLS,
            &packet(v3, b"user\0app\0replication\0database\0\0"),
            "NotSupported: Feature not supported: streaming replication mode.",
        );
        check(
            TLS,
            &packet(v3, b"database\0app\0\0"),
            "UserMissing: A user name is missing from the connection startup packet. Provide a user name for this \
             connection.",
        );
        check(
            TLS,
            &packet(2 << 16, b""),
            "NotSupported: Feature not supported: only version 3.0 of the PostgreSQL messaging protocol, not 2.0.",
        );
        check(
            AcceptOptions { offer_tls: true, require_tls: true },
            &packet(v3, b"user\0app\0\0"),
            "TlsRequired: This proxy requires TLS connections.",
        );
    }

    #[test]
    fn newer_versions_are_negotiated_down() {
        check(
            TLS,
            &packet(PROTOCOL_3_0 + 2, b"user\0app\0_pq_.x\0on\0\0"),
            r"app database\x00app\x00 v\x00\x00\x00\x13\x00\x03\x00\x00\x00\x00\x00\x01_pq_.x\x00",
        );
        check(
            TLS,
            &packet(PROTOCOL_3_0 + 9999, b"user\0app\0\0"),
            r"app database\x00app\x00 v\x00\x00\x00\x0c\x00\x03\x00\x00\x00\x00\x00\x00",
        );
    }

    #[test]
    fn requests_before_the_startup_packet_are_answered() {
        check(TLS, &packet(SSL_REQUEST, b""), "StartTls");
        check(AcceptOptions { offer_tls: false, require_tls: false }, &packet(SSL_REQUEST, b""), "answers N");
        check(TLS, &packet(GSSENC_REQUEST, b""), "answers N");
        check(TLS, &packet(CANCEL_REQUEST, &[0, 0, 0, 7, 0, 0, 0, 9]), "Cancel(CancelKey(7))");
        check(TLS, &packet(CANCEL_REQUEST, &[0; 7]), "Quit");
        check(TLS, &packet(CANCEL_REQUEST, &[0; 36]), "Quit");
    }

    #[test]
    fn plaintext_behind_a_request_for_tls_is_refused() {
        let early = [packet(SSL_REQUEST, b""), packet(PROTOCOL_3_0, b"user\0app\0\0")].concat();
        check(TLS, &early, "ProtocolViolation: received unencrypted data after SSL request");
    }

    #[test]
    fn what_is_no_startup_packet_is_refused() {
        let malformed = "ProtocolViolation: invalid startup packet layout: expected terminator as last byte";
        check(TLS, &packet(PROTOCOL_3_0, b"user\0app\0"), malformed);
        check(TLS, &packet(PROTOCOL_3_0, b"user\0app"), malformed);
        check(TLS, &packet(PROTOCOL_3_0, b"user\0app\0\0more"), malformed);
        check(TLS, &packet(PROTOCOL_3_0, b""), malformed);
        for len in [0_u32, 7, 10_001, u32::MAX] {
            check(TLS, &len.to_be_bytes(), "ProtocolViolation: invalid length of startup packet");
        }
    }

    #[test]
    fn an_ssl_request_comes_once() {
        let mut accept = PgAccept::new(TLS);
        let mut input = Buffer::default();
        input.extend(&packet(SSL_REQUEST, b""));
        assert!(matches!(accept.advance(&mut input, &mut Vec::new()), Ok(AcceptStep::StartTls)));
        accept.tls_started(None, None).unwrap();
        input.extend(&packet(SSL_REQUEST, b""));
        assert!(accept.advance(&mut input, &mut Vec::new()).is_err());
    }

    #[test]
    fn direct_tls_needs_its_alpn() {
        for (protocol, fine) in [(Some(ALPN), true), (Some(b"http/1.1".as_slice()), false), (None, false)] {
            let mut accept = PgAccept::new(TLS);
            accept.direct_tls().unwrap();
            assert_eq!(accept.tls_started(None, protocol).is_ok(), fine, "{protocol:?}");
        }
    }

    #[test]
    fn false_is_what_the_server_takes_for_false() {
        for value in ["0", "off", "OFF", "of", "f", "false", "n", "no"] {
            assert!(is_false(value.as_bytes()), "{value}");
        }
        for value in ["", "1", "on", "true", "database", "o", "falsehood"] {
            assert!(!is_false(value.as_bytes()), "{value}");
        }
    }

    #[test]
    fn a_server_that_breaks_the_login_is_refused() {
        let secret = || Arc::new(Secret::from_json(br#"{"username":"app","password":"x"}"#).unwrap());
        let key = PoolKey { user: "app".into(), parameters: (*b"database\0app\0").into() };
        let auth_ok = [b'R', 0, 0, 0, 8, 0, 0, 0, 0];
        let ready = [b'Z', 0, 0, 0, 5, b'I'];
        let key_data = [b'K', 0, 0, 0, 12, 0, 0, 0, 7, 0, 0, 0, 9];
        let whole = [&auth_ok[..], b"S\0\0\0\x08a\0b\0", &key_data, &ready].concat();
        for cut in 0..=whole.len() {
            let mut out = Vec::new();
            let mut login = PgConnect::start(&key, secret(), None, &mut out);
            let mut input = Buffer::default();
            let mut done = false;
            for piece in [&whole[..cut], &whole[cut..]] {
                input.extend(piece);
                done |= matches!(login.advance(&mut input, &mut out).unwrap(), ConnectStep::Done);
            }
            assert!(done, "cut at {cut}");
            assert_eq!((login.key.id, login.greeting.bytes.as_slice()), (7, &whole[9..18]));
        }
        for bad in [
            &ready[..],
            &key_data,
            b"S\0\0\0\x08a\0b\0",
            b"R\0\0\0\x03",
            b"x\0\0\0\x04",
            b"D\x7f\xff\xff\xff",
        ] {
            let mut login = PgConnect::start(&key, secret(), None, &mut Vec::new());
            let mut input = Buffer::default();
            input.extend(bad);
            let got = login.advance(&mut input, &mut Vec::new());
            assert!(matches!(got, Err(ConnectError::Protocol(_))), "{}", bad.escape_ascii());
        }
    }
}
