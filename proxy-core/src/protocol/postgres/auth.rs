//! Logins on both sides: [`ClientLogin`] checks a client, [`ServerLogin`] logs in to a server.
//!
//! Both take the bodies of the messages they are handed and append whole messages to a buffer. Source:
//! PostgreSQL manual, "Start-up" and "SASL Authentication".

use std::sync::Arc;

use md5::{Digest, Md5};
use subtle::{Choice, ConstantTimeEq};
use zeroize::Zeroizing;

use super::scram::{
    ClientBinding, Mechanism, MockKey, ScramClient, ScramClientFinal, ScramError, ScramKeys, ScramServer,
};
use crate::{config::ClientAuthType, secrets::Secret};

/// Codes of the `R` message, `AuthenticationRequest`.
mod code {
    pub(super) const OK: i32 = 0;
    pub(super) const KERBEROS_V5: i32 = 2;
    pub(super) const CLEARTEXT_PASSWORD: i32 = 3;
    pub(super) const CRYPT_PASSWORD: i32 = 4;
    pub(super) const MD5_PASSWORD: i32 = 5;
    pub(super) const SCM_CREDENTIAL: i32 = 6;
    pub(super) const GSS: i32 = 7;
    pub(super) const GSS_CONTINUE: i32 = 8;
    pub(super) const SSPI: i32 = 9;
    pub(super) const SASL: i32 = 10;
    pub(super) const SASL_CONTINUE: i32 = 11;
    pub(super) const SASL_FINAL: i32 = 12;
}

/// `md5` and 32 hexadecimal digits.
const MD5_ANSWER_BYTES: usize = 35;

/// Why a client is not let in. No variant carries what the client sent.
#[derive(Debug, thiserror::Error)]
pub enum LoginError {
    /// The password is wrong, or there is no such user; the two look the same from outside.
    #[error("wrong password, or no such user")]
    WrongPassword,
    /// The message is not what its kind must look like.
    #[error("malformed {0} message")]
    Malformed(MessageKind),
    /// The client chose a SASL mechanism that was not offered.
    #[error("the client chose a SASL mechanism that was not offered")]
    Mechanism,
    /// A SCRAM message is malformed, or does not belong to this exchange or this TLS connection.
    #[error("SCRAM: {0}")]
    Scram(#[source] ScramError),
    /// A cleartext password is asked for over TLS only.
    #[error("a cleartext password needs TLS")]
    CleartextWithoutTls,
    /// The method is another protocol's, which no configuration allows.
    #[error("the method is not PostgreSQL's")]
    Foreign,
    /// The operating system gave no random bytes.
    #[error("no random bytes: {0}")]
    Random(getrandom::Error),
}

/// The three messages a client answers with; on the wire all are tagged `p`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MessageKind {
    /// `PasswordMessage`.
    Password,
    /// `SASLInitialResponse`.
    SaslInitialResponse,
    /// `SASLResponse`.
    SaslResponse,
}

impl std::fmt::Display for MessageKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Password => "PasswordMessage",
            Self::SaslInitialResponse => "SASLInitialResponse",
            Self::SaslResponse => "SASLResponse",
        })
    }
}

impl From<ScramError> for LoginError {
    fn from(error: ScramError) -> Self {
        match error {
            ScramError::WrongProof => Self::WrongPassword,
            ScramError::Random(error) => Self::Random(error),
            error => Self::Scram(error),
        }
    }
}

/// Where a login stands after a message.
#[derive(Debug)]
pub enum LoginStep<L> {
    /// The client owes another message.
    Continue(L),
    /// The client is who it says. `AuthenticationOk` is the caller's to send.
    Done,
}

/// One client proving its password to us.
///
/// An unknown user (`secret` is `None`) takes the same steps at the same cost as a known one with a wrong
/// password, and fails at the same message.
pub struct ClientLogin(ClientState);

enum ClientState {
    Sasl(SaslOffer),
    /// The client chose a mechanism but sent nothing with it, which the protocol allows.
    SaslFirst(SaslOffer, Mechanism),
    SaslFinal(Box<ScramServer>),
    Md5 {
        expected: Zeroizing<[u8; MD5_ANSWER_BYTES]>,
        known: bool,
    },
    Cleartext {
        /// Compares by keyed hash, so that the time says nothing about lengths either.
        mock: MockKey,
        expected: Zeroizing<[u8; 32]>,
        known: bool,
    },
}

struct SaslOffer {
    keys: ScramKeys,
    known: bool,
    /// `Some` offers SCRAM-SHA-256-PLUS.
    binding: Option<Vec<u8>>,
}

impl ClientLogin {
    /// Appends the request for a password to `out`.
    ///
    /// - `user`: as in the startup message.
    /// - `secret`: that user's; `None` for an unknown user.
    /// - `binding`: the `tls-server-end-point` hash of our certificate; counts only when `over_tls`.
    /// - `mock`: the process's; answers for unknown users.
    ///
    /// Errors: [`LoginError::CleartextWithoutTls`], [`LoginError::Random`]; `out` is then as it was.
    pub fn start(
        method: ClientAuthType,
        user: &str,
        secret: Option<Arc<Secret>>,
        binding: Option<&[u8]>,
        over_tls: bool,
        mock: &MockKey,
        out: &mut Vec<u8>,
    ) -> Result<Self, LoginError> {
        let known = secret.is_some();
        let state = match method {
            ClientAuthType::PostgresScramSha256 => {
                // Made for known users too: both kinds pay for it.
                let mock_keys = mock.keys_for(user);
                let keys = secret.map_or(mock_keys, |secret| secret.scram_keys().clone());
                let binding = binding.filter(|_| over_tls).map(<[u8]>::to_vec);
                write_message(out, b'R', |out| {
                    out.extend_from_slice(&code::SASL.to_be_bytes());
                    if binding.is_some() {
                        write_c_string(out, Mechanism::ScramSha256Plus.name().as_bytes());
                    }
                    write_c_string(out, Mechanism::ScramSha256.name().as_bytes());
                    out.push(0);
                });
                ClientState::Sasl(SaslOffer { keys, known, binding })
            }
            ClientAuthType::PostgresMd5 => {
                let mut salt = [0; 4];
                getrandom::fill(&mut salt).map_err(LoginError::Random)?;
                let mock_password = mock.tag(b"md5 password", user.as_bytes());
                let password =
                    secret.as_ref().map_or(&mock_password[..], |secret| secret.password().as_bytes());
                let expected = md5_answer(password, user, salt);
                write_message(out, b'R', |out| {
                    out.extend_from_slice(&code::MD5_PASSWORD.to_be_bytes());
                    out.extend_from_slice(&salt);
                });
                ClientState::Md5 { expected, known }
            }
            ClientAuthType::PostgresCleartext => {
                if !over_tls {
                    return Err(LoginError::CleartextWithoutTls);
                }
                let mock_password = mock.tag(b"cleartext password", user.as_bytes());
                let password =
                    secret.as_ref().map_or(&mock_password[..], |secret| secret.password().as_bytes());
                let expected = mock.tag(b"cleartext", password);
                write_message(out, b'R', |out| {
                    out.extend_from_slice(&code::CLEARTEXT_PASSWORD.to_be_bytes())
                });
                ClientState::Cleartext { mock: mock.clone(), expected, known }
            }
            ClientAuthType::MysqlCachingSha2Password
            | ClientAuthType::MysqlNativePassword
            | ClientAuthType::MysqlClearPassword => return Err(LoginError::Foreign),
        };
        Ok(Self(state))
    }

    /// Takes the body of the client's next `p` message, tag and length left off, and appends the answer,
    /// if there is one, to `out`. At [`LoginStep::Done`] of a SCRAM login `out` ends with
    /// `AuthenticationSASLFinal`.
    ///
    /// Errors: [`LoginError::WrongPassword`] and the ways a message can be malformed; nothing is appended.
    pub fn advance(self, message_body: &[u8], out: &mut Vec<u8>) -> Result<LoginStep<Self>, LoginError> {
        match self.0 {
            ClientState::Sasl(offer) => {
                let (mechanism, response) = parse_sasl_initial_response(message_body)
                    .ok_or(LoginError::Malformed(MessageKind::SaslInitialResponse))?;
                let mechanism = Mechanism::from_name(mechanism)
                    .filter(|&chosen| chosen == Mechanism::ScramSha256 || offer.binding.is_some())
                    .ok_or(LoginError::Mechanism)?;
                match response {
                    Some(client_first) => offer.begin(mechanism, client_first, out),
                    None => {
                        write_message(out, b'R', |out| {
                            out.extend_from_slice(&code::SASL_CONTINUE.to_be_bytes())
                        });
                        Ok(LoginStep::Continue(Self(ClientState::SaslFirst(offer, mechanism))))
                    }
                }
            }
            ClientState::SaslFirst(offer, mechanism) => offer.begin(mechanism, message_body, out),
            ClientState::SaslFinal(scram) => {
                let server_final = scram.finish(message_body)?;
                write_message(out, b'R', |out| {
                    out.extend_from_slice(&code::SASL_FINAL.to_be_bytes());
                    out.extend_from_slice(server_final.as_bytes());
                });
                Ok(LoginStep::Done)
            }
            ClientState::Md5 { expected, known } => {
                let answer = parse_password(message_body)?;
                let same = answer.ct_eq(&expected[..]) & Choice::from(u8::from(known));
                if bool::from(same) { Ok(LoginStep::Done) } else { Err(LoginError::WrongPassword) }
            }
            ClientState::Cleartext { mock, expected, known } => {
                let password = parse_password(message_body)?;
                let same = mock.tag(b"cleartext", password).ct_eq(&*expected) & Choice::from(u8::from(known));
                if bool::from(same) { Ok(LoginStep::Done) } else { Err(LoginError::WrongPassword) }
            }
        }
    }
}

impl std::fmt::Debug for ClientLogin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = match &self.0 {
            ClientState::Sasl(_) => "Sasl",
            ClientState::SaslFirst(..) => "SaslFirst",
            ClientState::SaslFinal(_) => "SaslFinal",
            ClientState::Md5 { .. } => "Md5",
            ClientState::Cleartext { .. } => "Cleartext",
        };
        f.debug_tuple("ClientLogin").field(&format_args!("{state}")).finish()
    }
}

impl SaslOffer {
    fn begin(
        self,
        mechanism: Mechanism,
        client_first: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<LoginStep<ClientLogin>, LoginError> {
        let (scram, server_first) =
            ScramServer::begin(mechanism, client_first, &self.keys, self.known, self.binding.as_deref())?;
        write_message(out, b'R', |out| {
            out.extend_from_slice(&code::SASL_CONTINUE.to_be_bytes());
            out.extend_from_slice(server_first.as_bytes());
        });
        Ok(LoginStep::Continue(ClientLogin(ClientState::SaslFinal(Box::new(scram)))))
    }
}

/// Why we do not log in to a server. No variant carries the password or anything made from it.
#[derive(Debug, thiserror::Error)]
pub enum ServerAuthError {
    /// The request is not what its kind must look like.
    #[error("malformed authentication request")]
    Malformed,
    /// The request does not belong here, such as a second challenge, or one before its time.
    #[error("authentication request {0} at the wrong time")]
    Unexpected(i32),
    /// The server says that all is well without having shown that it knows the password.
    #[error("the server ended the SCRAM exchange without proving that it knows the password")]
    OkBeforeProof,
    /// The server asks for the password itself, over a connection anybody can read.
    #[error(
        "the server asks for a cleartext password without TLS, which is never sent: set the target's `tls` to \
         `required` or better, or have the server ask for scram-sha-256"
    )]
    CleartextWithoutTls,
    /// The server asks for an MD5 answer, over a connection anybody can read.
    #[error(
        "the server asks for an MD5 password without TLS, which is never sent: set the target's `tls` to \
         `required` or better, or store the role's password as scram-sha-256"
    )]
    Md5WithoutTls,
    /// The server asks for a method that is not supported; its name.
    #[error(
        "the server asks for {0} authentication, which is not supported: use scram-sha-256 for this role"
    )]
    Unsupported(&'static str),
    /// A code no PostgreSQL version documents.
    #[error("the server asks for an unknown authentication method (code {0})")]
    UnknownMethod(i32),
    /// None of the server's SASL mechanisms is SCRAM-SHA-256 or -PLUS.
    #[error("the server offers no SASL mechanism that is supported (SCRAM-SHA-256, SCRAM-SHA-256-PLUS)")]
    NoMechanism,
    /// A server offers SCRAM-SHA-256-PLUS over TLS only: somebody between us and it took the TLS away.
    #[error("the server offers SCRAM-SHA-256-PLUS, yet this connection has no TLS")]
    PlusWithoutTls,
    /// The SCRAM exchange failed on our side.
    #[error("SCRAM: {0}")]
    Scram(#[from] ScramError),
}

/// One login of ours to a server.
pub struct ServerLogin {
    user: String,
    secret: Arc<Secret>,
    tls: bool,
    binding: Option<Vec<u8>>,
    state: ServerState,
}

#[derive(Debug)]
enum ServerState {
    /// Nothing asked for yet.
    Start,
    /// Password sent; `AuthenticationOk` or an error follows.
    Answered,
    SaslFirst(ScramClient),
    SaslFinal(ScramClientFinal),
    /// The server has proved itself.
    Proved,
    /// Logged in, or failed for good.
    Over,
}

impl ServerLogin {
    /// A login as `user` with the password in `secret`.
    ///
    /// - `tls`: whether the connection has TLS by now; without it nothing but SCRAM is answered.
    /// - `binding`: the `tls-server-end-point` hash of the server's certificate; counts only with `tls`.
    pub fn new(user: &str, secret: Arc<Secret>, tls: bool, binding: Option<Vec<u8>>) -> Self {
        let binding = binding.filter(|_| tls);
        Self { user: user.to_owned(), secret, tls, binding, state: ServerState::Start }
    }

    /// Takes the body of the server's next `R` message, `code: i32 | data`, and appends the answer, if one
    /// is due, to `out`. `true` is `AuthenticationOk`: we are in.
    ///
    /// A server may let us in without asking anything. Once it has begun a SCRAM exchange it must end
    /// that with a proof of its own first.
    /// Errors: as named; nothing is appended and the login cannot go on.
    pub fn advance(&mut self, body: &[u8], out: &mut Vec<u8>) -> Result<bool, ServerAuthError> {
        let (code, data) = body.split_first_chunk().ok_or(ServerAuthError::Malformed)?;
        let code = i32::from_be_bytes(*code);
        match (code, std::mem::replace(&mut self.state, ServerState::Over)) {
            (code::OK, ServerState::SaslFirst(_) | ServerState::SaslFinal(_)) => {
                Err(ServerAuthError::OkBeforeProof)
            }
            (code::OK, ServerState::Start | ServerState::Answered | ServerState::Proved) => {
                if !data.is_empty() {
                    return Err(ServerAuthError::Malformed);
                }
                Ok(true)
            }
            (code::CLEARTEXT_PASSWORD, ServerState::Start) => {
                if !data.is_empty() {
                    return Err(ServerAuthError::Malformed);
                }
                if !self.tls {
                    return Err(ServerAuthError::CleartextWithoutTls);
                }
                write_message(out, b'p', |out| write_c_string(out, self.secret.password().as_bytes()));
                self.state = ServerState::Answered;
                Ok(false)
            }
            (code::MD5_PASSWORD, ServerState::Start) => {
                let salt: [u8; 4] = data.try_into().map_err(|_| ServerAuthError::Malformed)?;
                if !self.tls {
                    return Err(ServerAuthError::Md5WithoutTls);
                }
                let answer = md5_answer(self.secret.password().as_bytes(), &self.user, salt);
                write_message(out, b'p', |out| write_c_string(out, &answer[..]));
                self.state = ServerState::Answered;
                Ok(false)
            }
            (code::SASL, ServerState::Start) => {
                let (mechanism, binding) = self.choose(parse_mechanisms(data)?)?;
                let (scram, client_first) = ScramClient::begin(&binding)?;
                write_message(out, b'p', |out| {
                    write_c_string(out, mechanism.name().as_bytes());
                    let len = i32::try_from(client_first.len()).expect("our first message is short");
                    out.extend_from_slice(&len.to_be_bytes());
                    out.extend_from_slice(client_first.as_bytes());
                });
                self.state = ServerState::SaslFirst(scram);
                Ok(false)
            }
            (code::SASL_CONTINUE, ServerState::SaslFirst(scram)) => {
                let (scram, client_final) =
                    scram.answer(data, |salt, iterations| self.secret.salted_password(salt, iterations))?;
                write_message(out, b'p', |out| out.extend_from_slice(client_final.as_bytes()));
                self.state = ServerState::SaslFinal(scram);
                Ok(false)
            }
            (code::SASL_FINAL, ServerState::SaslFinal(scram)) => {
                scram.finish(data)?;
                self.state = ServerState::Proved;
                Ok(false)
            }
            (code::KERBEROS_V5, _) => Err(ServerAuthError::Unsupported("Kerberos V5")),
            (code::CRYPT_PASSWORD, _) => Err(ServerAuthError::Unsupported("crypt password")),
            (code::SCM_CREDENTIAL, _) => Err(ServerAuthError::Unsupported("SCM credential")),
            (code::GSS | code::GSS_CONTINUE, _) => Err(ServerAuthError::Unsupported("GSSAPI")),
            (code::SSPI, _) => Err(ServerAuthError::Unsupported("SSPI")),
            (code::OK..=code::SASL_FINAL, _) => Err(ServerAuthError::Unexpected(code)),
            (unknown, _) => Err(ServerAuthError::UnknownMethod(unknown)),
        }
    }

    /// The strongest mechanism that both sides can do, and what to say about channel binding.
    fn choose(&self, offered: Vec<Mechanism>) -> Result<(Mechanism, ClientBinding), ServerAuthError> {
        let plus = offered.contains(&Mechanism::ScramSha256Plus);
        if plus && !self.tls {
            return Err(ServerAuthError::PlusWithoutTls);
        }
        match &self.binding {
            Some(hash) if plus => Ok((Mechanism::ScramSha256Plus, ClientBinding::EndPoint(hash.clone()))),
            _ if !offered.contains(&Mechanism::ScramSha256) => Err(ServerAuthError::NoMechanism),
            Some(_) => Ok((Mechanism::ScramSha256, ClientBinding::NotOffered)),
            None => Ok((Mechanism::ScramSha256, ClientBinding::Unsupported)),
        }
    }
}

impl std::fmt::Debug for ServerLogin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerLogin")
            .field("user", &self.user)
            .field("tls", &self.tls)
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}

/// Appends `tag | len: i32, itself included | body`.
fn write_message(out: &mut Vec<u8>, tag: u8, body: impl FnOnce(&mut Vec<u8>)) {
    out.push(tag);
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    body(out);
    let len = i32::try_from(out.len() - start).expect("authentication messages are short");
    out[start..start + 4].copy_from_slice(&len.to_be_bytes());
}

fn write_c_string(out: &mut Vec<u8>, text: &[u8]) {
    out.extend_from_slice(text);
    out.push(0);
}

/// Splits `text NUL rest`.
fn split_c_string(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = bytes.iter().position(|&byte| byte == 0)?;
    Some((&bytes[..end], &bytes[end + 1..]))
}

/// `mechanism: C string | len: i32, -1 for none | len bytes`; the bytes are the client's first message.
fn parse_sasl_initial_response(body: &[u8]) -> Option<(&[u8], Option<&[u8]>)> {
    let (mechanism, rest) = split_c_string(body)?;
    let (len, response) = rest.split_first_chunk()?;
    match i32::from_be_bytes(*len) {
        -1 if response.is_empty() => Some((mechanism, None)),
        len if usize::try_from(len) == Ok(response.len()) => Some((mechanism, Some(response))),
        _ => None,
    }
}

/// `password: C string` and nothing after it. An empty one is wrong, as in PostgreSQL.
fn parse_password(body: &[u8]) -> Result<&[u8], LoginError> {
    match split_c_string(body) {
        Some((b"", b"")) => Err(LoginError::WrongPassword),
        Some((password, b"")) => Ok(password),
        _ => Err(LoginError::Malformed(MessageKind::Password)),
    }
}

/// `mechanism: C string | … | NUL`; those we do not know are passed over.
fn parse_mechanisms(mut data: &[u8]) -> Result<Vec<Mechanism>, ServerAuthError> {
    let mut offered = Vec::new();
    loop {
        match split_c_string(data).ok_or(ServerAuthError::Malformed)? {
            (b"", b"") => return Ok(offered),
            (b"", _) => return Err(ServerAuthError::Malformed),
            (name, rest) => {
                offered.extend(Mechanism::from_name(name));
                data = rest;
            }
        }
    }
}

/// `"md5" + hex(md5(hex(md5(password + user)) + salt))`.
fn md5_answer(password: &[u8], user: &str, salt: [u8; 4]) -> Zeroizing<[u8; MD5_ANSWER_BYTES]> {
    let inner = hex(Md5::new().chain_update(password).chain_update(user.as_bytes()).finalize().into());
    let outer = hex(Md5::new().chain_update(&inner[..]).chain_update(salt).finalize().into());
    let mut answer = Zeroizing::new([0; MD5_ANSWER_BYTES]);
    answer[..3].copy_from_slice(b"md5");
    answer[3..].copy_from_slice(&outer[..]);
    answer
}

fn hex(digest: [u8; 16]) -> Zeroizing<[u8; 32]> {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = Zeroizing::new([0; 32]);
    for (pair, byte) in text.chunks_exact_mut(2).zip(digest) {
        pair[0] = DIGITS[usize::from(byte >> 4)];
        pair[1] = DIGITS[usize::from(byte & 15)];
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const HASH: &[u8] = &[7; 32];
    const SCRAM: ClientAuthType = ClientAuthType::PostgresScramSha256;
    const MD5: ClientAuthType = ClientAuthType::PostgresMd5;
    const CLEARTEXT: ClientAuthType = ClientAuthType::PostgresCleartext;

    /// What md5sum makes of `hunter2app`, and of that and the salt 1, 2, 3, 4.
    const MD5_EXAMPLE: &str = "md56c756f9baaf93d46b93b7ca862c00383";

    fn secret(password: &str) -> Arc<Secret> {
        Arc::new(Secret::new("app".to_owned(), Zeroizing::new(password.to_owned())).unwrap())
    }

    fn start(
        method: ClientAuthType,
        secret: Option<Arc<Secret>>,
        binding: Option<&[u8]>,
        over_tls: bool,
    ) -> (ClientLogin, Vec<u8>) {
        let mut out = Vec::new();
        let mock = MockKey::random().unwrap();
        let login = ClientLogin::start(method, "app", secret, binding, over_tls, &mock, &mut out).unwrap();
        (login, out)
    }

    /// Splits one whole message off the front; its tag and body.
    fn one_message(out: &mut Vec<u8>) -> (u8, Vec<u8>) {
        let tag = out[0];
        let len = usize::try_from(i32::from_be_bytes(out[1..5].try_into().unwrap())).unwrap();
        let body = out[5..=len].to_vec();
        out.drain(..=len);
        (tag, body)
    }

    /// The one message in `out`.
    fn only_message(mut out: Vec<u8>) -> (u8, Vec<u8>) {
        let message = one_message(&mut out);
        assert!(out.is_empty());
        message
    }

    fn request(code: i32, data: &[u8]) -> Vec<u8> {
        [&code.to_be_bytes(), data].concat()
    }

    /// `server` logs in at a proxy that has `asked` and waits as `login` does. What the proxy says in the end,
    /// and what went over: tags and lengths of bodies.
    fn log_in(
        login: ClientLogin,
        mut asked: Vec<u8>,
        mut server: ServerLogin,
    ) -> (Result<(), LoginError>, Vec<(u8, usize)>) {
        let mut seen = Vec::new();
        let mut login = Some(login);
        while !asked.is_empty() {
            let (tag, body) = one_message(&mut asked);
            seen.push((tag, body.len()));
            let mut answer = Vec::new();
            if server.advance(&body, &mut answer).unwrap() {
                assert!(login.is_none() && asked.is_empty() && answer.is_empty());
                return (Ok(()), seen);
            }
            let Some(waiting) = login.take() else {
                assert!(answer.is_empty(), "the final message needs no answer");
                continue;
            };
            let (tag, body) = only_message(answer);
            seen.push((tag, body.len()));
            match waiting.advance(&body, &mut asked) {
                Ok(LoginStep::Continue(next)) => login = Some(next),
                Ok(LoginStep::Done) => write_message(&mut asked, b'R', |out| out.extend_from_slice(&[0; 4])),
                Err(error) => {
                    assert!(asked.is_empty());
                    return (Err(error), seen);
                }
            }
        }
        panic!("neither side has anything to say");
    }

    #[test]
    fn both_sides_log_in_to_each_other() {
        for (method, tls) in [(SCRAM, false), (SCRAM, true), (MD5, true), (CLEARTEXT, true)] {
            for binding in [None, Some(HASH)] {
                for password in ["hunter2", "p\u{e4}ssword", "I\u{ad}X", "a b,c=d"] {
                    let (login, asked) = start(method, Some(secret(password)), binding, tls);
                    let server = ServerLogin::new("app", secret(password), tls, binding.map(<[u8]>::to_vec));
                    let (ended, _) = log_in(login, asked, server);
                    assert!(ended.is_ok(), "{method:?}, TLS {tls}, {binding:?}: {ended:?}");
                }
            }
        }
    }

    #[test]
    fn wrong_password_and_unknown_user_fail_alike() {
        for (method, tls) in [(SCRAM, false), (SCRAM, true), (MD5, true), (CLEARTEXT, true)] {
            let attempt = |known: Option<Arc<Secret>>| {
                let (login, asked) = start(method, known, Some(HASH), tls);
                log_in(login, asked, ServerLogin::new("app", secret("wrong"), tls, Some(HASH.to_vec())))
            };
            let (wrong, wrong_messages) = attempt(Some(secret("hunter2")));
            let (unknown, unknown_messages) = attempt(None);
            assert!(matches!(wrong, Err(LoginError::WrongPassword)), "{method:?}: {wrong:?}");
            assert!(matches!(unknown, Err(LoginError::WrongPassword)), "{method:?}: {unknown:?}");
            assert_eq!(wrong_messages, unknown_messages, "{method:?}");
        }
    }

    #[test]
    fn requests_are_those_of_the_manual() {
        let body = |method, binding, tls| only_message(start(method, Some(secret("x")), binding, tls).1).1;
        assert_eq!(body(SCRAM, None, false), request(10, b"SCRAM-SHA-256\0\0"));
        assert_eq!(body(SCRAM, Some(HASH), false), request(10, b"SCRAM-SHA-256\0\0"));
        assert_eq!(body(SCRAM, None, true), request(10, b"SCRAM-SHA-256\0\0"));
        assert_eq!(body(SCRAM, Some(HASH), true), request(10, b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0"));
        assert_eq!(body(CLEARTEXT, None, true), request(3, b""));
        assert_eq!(body(MD5, None, false)[..4], 5i32.to_be_bytes());
        assert_eq!(body(MD5, None, false).len(), 8);
        assert_ne!(body(MD5, None, false), body(MD5, None, false), "the salt is random");
    }

    #[test]
    fn cleartext_is_not_asked_for_without_tls() {
        let mut out = Vec::new();
        let mock = MockKey::random().unwrap();
        let refused = ClientLogin::start(CLEARTEXT, "app", Some(secret("x")), None, false, &mock, &mut out);
        assert!(matches!(refused, Err(LoginError::CleartextWithoutTls)));
        assert!(out.is_empty());
    }

    #[test]
    fn md5_answer_is_postgresqls() {
        assert_eq!(
            std::str::from_utf8(&md5_answer(b"hunter2", "app", [1, 2, 3, 4])[..]).unwrap(),
            MD5_EXAMPLE
        );
    }

    #[test]
    fn password_messages() {
        let check = |method, body: &[u8], expected: &str| {
            let (login, _) = start(method, Some(secret("hunter2")), None, true);
            let mut out = Vec::new();
            let ended = match login.advance(body, &mut out) {
                Ok(LoginStep::Done) => "in".to_owned(),
                Ok(LoginStep::Continue(_)) => "more".to_owned(),
                Err(error) => error.to_string(),
            };
            assert_eq!(ended, expected, "{body:?}");
            assert!(out.is_empty());
        };
        let wrong = "wrong password, or no such user";
        let malformed = "malformed PasswordMessage message";
        check(CLEARTEXT, b"hunter2\0", "in");
        for body in [&b"\0"[..], b"h\0", b"hunter\0", b"hunter22\0", b"Hunter2\0", b"\xff\0"] {
            check(CLEARTEXT, body, wrong);
            check(MD5, body, wrong);
        }
        check(MD5, b"md5\0", wrong);
        check(MD5, b"md500000000000000000000000000000000\0", wrong);
        for body in [&b""[..], b"hunter2", b"hunter2\0\0", b"hunter2\0x", b"\0\0", b"\0hunter2\0"] {
            check(CLEARTEXT, body, malformed);
            check(MD5, body, malformed);
        }
    }

    fn initial_response(mechanism: &[u8], len: i32, response: &[u8]) -> Vec<u8> {
        [mechanism, b"\0", &len.to_be_bytes(), response].concat()
    }

    #[test]
    fn sasl_initial_responses() {
        let check = |binding: Option<&[u8]>, body: &[u8], expected: &str| {
            let (login, _) = start(SCRAM, Some(secret("hunter2")), binding, true);
            let mut out = Vec::new();
            let ended = match login.advance(body, &mut out) {
                Ok(LoginStep::Done) => "in".to_owned(),
                Ok(LoginStep::Continue(_)) => "more".to_owned(),
                Err(error) => error.to_string(),
            };
            assert_eq!(ended, expected, "{body:?}");
            assert_eq!(out.is_empty(), expected != "more");
        };
        let first = b"n,,n=,r=abc";
        let len = i32::try_from(first.len()).unwrap();
        let malformed = "malformed SASLInitialResponse message";
        let unoffered = "the client chose a SASL mechanism that was not offered";
        let whole = initial_response(b"SCRAM-SHA-256", len, first);
        check(None, &whole, "more");
        for cut in 0..whole.len() {
            check(None, &whole[..cut], malformed);
        }
        check(None, &initial_response(b"SCRAM-SHA-256", -1, b""), "more");
        check(None, &initial_response(b"SCRAM-SHA-256", -1, b"x"), malformed);
        check(None, &initial_response(b"SCRAM-SHA-256", -2, b""), malformed);
        check(None, &initial_response(b"SCRAM-SHA-256", i32::MIN, first), malformed);
        check(None, &initial_response(b"SCRAM-SHA-256", i32::MAX, first), malformed);
        check(None, &initial_response(b"SCRAM-SHA-256", len - 1, first), malformed);
        check(None, &initial_response(b"SCRAM-SHA-256", len + 1, first), malformed);
        check(None, &initial_response(b"SCRAM-SHA-256", 0, b""), "SCRAM: malformed GS2 header");
        check(None, &initial_response(b"", len, first), unoffered);
        check(None, &initial_response(b"SCRAM-SHA-1", len, first), unoffered);
        check(None, &initial_response(b"scram-sha-256", len, first), unoffered);
        check(None, &initial_response(b"SCRAM-SHA-256-PLUS", len, first), unoffered);
        let missing = "SCRAM: SCRAM-SHA-256-PLUS without channel binding";
        check(Some(HASH), &initial_response(b"SCRAM-SHA-256-PLUS", len, first), missing);
        check(Some(HASH), &whole, "more");
        let cut_off = "SCRAM: the client did not see that channel binding was offered";
        check(Some(HASH), &initial_response(b"SCRAM-SHA-256", len, b"y,,n=,r=abc"), cut_off);
        check(None, &initial_response(b"SCRAM-SHA-256", len, b"y,,n=,r=abc"), "more");
    }

    #[test]
    fn a_client_may_send_its_first_message_after_choosing() {
        let (login, _) = start(SCRAM, Some(secret("hunter2")), None, false);
        let mut out = Vec::new();
        let Ok(LoginStep::Continue(login)) =
            login.advance(&initial_response(b"SCRAM-SHA-256", -1, b""), &mut out)
        else {
            panic!("an empty challenge is due")
        };
        assert_eq!(only_message(std::mem::take(&mut out)), (b'R', request(11, b"")));

        let (scram, client_first) = ScramClient::begin(&ClientBinding::Unsupported).unwrap();
        let Ok(LoginStep::Continue(login)) = login.advance(client_first.as_bytes(), &mut out) else {
            panic!("a challenge is due")
        };
        let (_, challenge) = only_message(std::mem::take(&mut out));
        let secret = secret("hunter2");
        let (scram, client_final) = scram
            .answer(&challenge[4..], |salt, iterations| secret.salted_password(salt, iterations))
            .unwrap();
        assert!(matches!(login.advance(client_final.as_bytes(), &mut out).unwrap(), LoginStep::Done));
        scram.finish(&only_message(out).1[4..]).unwrap();
    }

    #[test]
    fn another_certificate_between_us_is_noticed() {
        let (login, asked) = start(SCRAM, Some(secret("hunter2")), Some(HASH), true);
        let (ended, _) =
            log_in(login, asked, ServerLogin::new("app", secret("hunter2"), true, Some(vec![8; 32])));
        assert!(matches!(ended, Err(LoginError::Scram(ScramError::BindingMismatch))), "{ended:?}");

        // The offer of -PLUS is cut out on the way.
        let (login, _) = start(SCRAM, Some(secret("hunter2")), Some(HASH), true);
        let (_, asked) = start(SCRAM, Some(secret("hunter2")), None, true);
        let (ended, _) =
            log_in(login, asked, ServerLogin::new("app", secret("hunter2"), true, Some(HASH.to_vec())));
        assert!(matches!(ended, Err(LoginError::Scram(ScramError::Downgrade))), "{ended:?}");
    }

    /// What one request does to a fresh login.
    fn first_answer(tls: bool, binding: Option<&[u8]>, body: &[u8]) -> Result<(bool, Vec<u8>), String> {
        let mut login = ServerLogin::new("app", secret("hunter2"), tls, binding.map(<[u8]>::to_vec));
        let mut out = Vec::new();
        match login.advance(body, &mut out) {
            Ok(done) => Ok((done, out)),
            Err(error) => {
                assert!(out.is_empty());
                Err(error.to_string())
            }
        }
    }

    #[test]
    fn passwords_are_not_sent_without_tls() {
        let cleartext = first_answer(false, None, &request(3, b"")).unwrap_err();
        assert!(cleartext.contains("`required`"), "{cleartext}");
        let md5 = first_answer(false, None, &request(5, &[1, 2, 3, 4])).unwrap_err();
        assert!(md5.contains("`required`"), "{md5}");

        let (_, out) = first_answer(true, None, &request(3, b"")).unwrap();
        assert_eq!(only_message(out), (b'p', b"hunter2\0".to_vec()));
        let (_, out) = first_answer(true, None, &request(5, &[1, 2, 3, 4])).unwrap();
        assert_eq!(only_message(out), (b'p', format!("{MD5_EXAMPLE}\0").into_bytes()));
    }

    #[test]
    fn a_server_may_ask_nothing() {
        assert_eq!(first_answer(false, None, &request(0, b"")), Ok((true, Vec::new())));
        assert_eq!(
            first_answer(false, None, &request(0, b"x")),
            Err("malformed authentication request".to_owned())
        );
    }

    #[test]
    fn the_strongest_mechanism_is_chosen() {
        let check = |tls, binding: Option<&[u8]>, offered: &[u8], expected: &str| {
            let got = match first_answer(tls, binding, &request(10, offered)) {
                Ok((false, out)) => {
                    let (_, body) = only_message(out);
                    let (mechanism, response) = parse_sasl_initial_response(&body).unwrap();
                    let response = String::from_utf8(response.unwrap().to_vec()).unwrap();
                    let flag = response.split_once(",,n=,r=").unwrap().0;
                    format!("{} {flag}", String::from_utf8_lossy(mechanism))
                }
                Ok((true, _)) => "in".to_owned(),
                Err(error) => error,
            };
            assert_eq!(got, expected, "TLS {tls}, binding {}, {offered:?}", binding.is_some());
        };
        let both = b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0";
        let plain = b"SCRAM-SHA-256\0\0";
        let plus = b"SCRAM-SHA-256-PLUS\0\0";
        let none = ServerAuthError::NoMechanism.to_string();
        check(true, Some(HASH), both, "SCRAM-SHA-256-PLUS p=tls-server-end-point");
        check(
            true,
            Some(HASH),
            b"X\0SCRAM-SHA-256\0SCRAM-SHA-256-PLUS\0\0",
            "SCRAM-SHA-256-PLUS p=tls-server-end-point",
        );
        check(true, Some(HASH), plus, "SCRAM-SHA-256-PLUS p=tls-server-end-point");
        check(true, Some(HASH), plain, "SCRAM-SHA-256 y");
        check(true, None, both, "SCRAM-SHA-256 n");
        check(true, None, plain, "SCRAM-SHA-256 n");
        check(false, None, plain, "SCRAM-SHA-256 n");
        check(false, Some(HASH), plain, "SCRAM-SHA-256 n");
        check(false, Some(HASH), both, &ServerAuthError::PlusWithoutTls.to_string());
        check(true, None, plus, &none);
        check(true, Some(HASH), b"SCRAM-SHA-1\0OAUTHBEARER\0\0", &none);
        check(true, Some(HASH), b"\0", &none);
        for malformed in [&b""[..], b"SCRAM-SHA-256", b"SCRAM-SHA-256\0", b"\0\0", b"SCRAM-SHA-256\0\0\0"] {
            check(true, Some(HASH), malformed, "malformed authentication request");
        }
    }

    #[test]
    fn other_methods_are_refused_by_name() {
        let check = |code: i32, expected: &str| {
            let error = first_answer(true, None, &request(code, b"")).unwrap_err();
            assert!(error.contains(expected), "{code}: {error}");
            assert!(!error.contains("hunter2"));
        };
        check(2, "Kerberos V5");
        check(4, "crypt password");
        check(6, "SCM credential");
        check(7, "GSSAPI");
        check(8, "GSSAPI");
        check(9, "SSPI");
        check(1, "at the wrong time");
        check(11, "at the wrong time");
        check(12, "at the wrong time");
        check(13, "code 13");
        check(-1, "code -1");
        check(i32::MAX, "unknown authentication method");
    }

    #[test]
    fn requests_cut_short_are_malformed() {
        for body in
            [&b""[..], b"\0", b"\0\0\0", b"\0\0\0\x05", b"\0\0\0\x05abc", b"\0\0\0\x05abcde", b"\0\0\0\x03x"]
        {
            assert_eq!(
                first_answer(true, None, body),
                Err("malformed authentication request".to_owned()),
                "{body:?}"
            );
        }
    }

    /// A login that has sent its SCRAM proof, and the server's final message it would accept.
    fn before_final() -> (ServerLogin, Vec<u8>) {
        let (login, asked) = start(SCRAM, Some(secret("hunter2")), None, false);
        let mut server = ServerLogin::new("app", secret("hunter2"), false, None);
        let mut out = Vec::new();
        server.advance(&only_message(asked).1, &mut out).unwrap();
        let mut challenge = Vec::new();
        let body = only_message(std::mem::take(&mut out)).1;
        let Ok(LoginStep::Continue(login)) = login.advance(&body, &mut challenge) else {
            panic!("a challenge is due")
        };
        server.advance(&only_message(challenge).1, &mut out).unwrap();
        let mut last = Vec::new();
        assert!(matches!(login.advance(&only_message(out).1, &mut last).unwrap(), LoginStep::Done));
        (server, only_message(last).1)
    }

    #[test]
    fn ok_counts_only_after_the_servers_proof() {
        let mut out = Vec::new();
        let ok = request(0, b"");

        let (mut server, last) = before_final();
        assert!(!server.advance(&last, &mut out).unwrap());
        assert!(server.advance(&ok, &mut out).unwrap());
        assert!(out.is_empty());
        assert!(matches!(server.advance(&ok, &mut out), Err(ServerAuthError::Unexpected(0))));

        let (mut server, last) = before_final();
        assert!(matches!(server.advance(&ok, &mut out), Err(ServerAuthError::OkBeforeProof)));
        assert!(matches!(server.advance(&last, &mut out), Err(ServerAuthError::Unexpected(12))));

        let mut server = ServerLogin::new("app", secret("hunter2"), false, None);
        server.advance(&request(10, b"SCRAM-SHA-256\0\0"), &mut out).unwrap();
        assert!(matches!(server.advance(&ok, &mut Vec::new()), Err(ServerAuthError::OkBeforeProof)));
    }

    #[test]
    fn a_changed_server_proof_is_refused() {
        let whole = before_final().1;
        for position in 4..whole.len() {
            let (mut server, mut last) = before_final();
            last[position] ^= 1;
            assert!(
                matches!(server.advance(&last, &mut Vec::new()), Err(ServerAuthError::Scram(_))),
                "byte {position}"
            );
            let refused = server.advance(&request(0, b""), &mut Vec::new());
            assert!(matches!(refused, Err(ServerAuthError::Unexpected(0))));
        }
    }

    #[test]
    fn a_second_challenge_is_refused() {
        for second in [request(3, b""), request(5, &[1, 2, 3, 4]), request(10, b"SCRAM-SHA-256\0\0")] {
            for first in [request(3, b""), request(5, &[1, 2, 3, 4]), request(10, b"SCRAM-SHA-256\0\0")] {
                let mut server = ServerLogin::new("app", secret("hunter2"), true, None);
                server.advance(&first, &mut Vec::new()).unwrap();
                let mut out = Vec::new();
                assert!(matches!(server.advance(&second, &mut out), Err(ServerAuthError::Unexpected(_))));
                assert!(out.is_empty());
            }
        }
    }

    #[test]
    fn debug_and_errors_show_no_password() {
        let mut shown = String::new();
        for method in [SCRAM, MD5, CLEARTEXT] {
            shown += &format!("{:?}", start(method, Some(secret("hunter2")), None, true).0);
        }
        let (server, _) = before_final();
        shown += &format!("{server:?}");
        assert!(!shown.contains("hunter2"), "{shown}");
        assert!(shown.contains("SaslFinal"), "{shown}");
    }
}
