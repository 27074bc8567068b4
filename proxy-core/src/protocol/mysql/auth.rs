//! Authentication on both sides: [`ClientAuth`] checks a client, [`ServerAuth`] proves our password to a server.
//!
//! Both take the payloads of the packets they are handed and make payloads; packets and their numbers are the
//! handshake's affair. Source: MySQL Source Documentation, "Authentication Methods"; MariaDB knowledge base,
//! "Connection", "Authentication plugins".

use std::sync::{Arc, OnceLock};

use aws_lc_rs::{
    digest::{self, SHA1_FOR_LEGACY_USE_ONLY},
    encoding::{AsDer, PublicKeyX509Der},
    rsa::{
        KeySize, OAEP_SHA1_MGF1SHA1, OaepPrivateDecryptingKey, OaepPublicEncryptingKey, PrivateDecryptingKey,
        PublicEncryptingKey,
    },
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use curve25519_dalek::{EdwardsPoint, Scalar, scalar::clamp_integer};
use sha2::{Digest as _, Sha256, Sha512};
use subtle::{Choice, ConstantTimeEq};
use zeroize::Zeroizing;

use super::codec::{Reader, put_null_bytes};
use crate::{config::ClientAuthType, protocol::MockKey, secrets::Secret};

/// `mysql_native_password`.
pub const NATIVE: &str = "mysql_native_password";
/// `caching_sha2_password`.
pub const CACHING_SHA2: &str = "caching_sha2_password";
/// `mysql_clear_password`.
pub const CLEAR: &str = "mysql_clear_password";
/// MariaDB's `ed25519`, as clients call it.
pub const ED25519: &str = "client_ed25519";

/// Bytes of a challenge.
pub const NONCE_BYTES: usize = 20;
/// Bytes of a challenge of [`ED25519`].
const ED25519_NONCE_BYTES: usize = 32;

/// First byte of a payload that belongs to the method in use.
pub const MORE_DATA: u8 = 0x01;
/// First byte of a request for another method.
pub const SWITCH: u8 = 0xfe;

/// `caching_sha2_password`: the answer was right.
const FAST_OK: u8 = 0x03;
/// `caching_sha2_password`: the password itself is asked for.
const FULL: u8 = 0x04;
/// `caching_sha2_password`: the client asks for the server's public key.
const KEY_PLEASE: u8 = 0x02;

/// A challenge, in printable characters without `$`, since some clients take it for text.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Nonce(pub [u8; NONCE_BYTES]);

impl std::fmt::Debug for Nonce {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Nonce")
    }
}

impl Nonce {
    /// A fresh one. Errors: no random bytes.
    pub fn random() -> Result<Self, getrandom::Error> {
        let mut bytes = [0; NONCE_BYTES];
        getrandom::fill(&mut bytes)?;
        for byte in &mut bytes {
            *byte &= 0x7f;
            if matches!(*byte, 0 | b'$') {
                *byte += 1;
            }
        }
        Ok(Self(bytes))
    }
}

/// The name of a method as the protocol has it; `None` for PostgreSQL's.
#[must_use]
pub const fn plugin(method: ClientAuthType) -> Option<&'static str> {
    match method {
        ClientAuthType::MysqlCachingSha2Password => Some(CACHING_SHA2),
        ClientAuthType::MysqlNativePassword => Some(NATIVE),
        ClientAuthType::MysqlClearPassword => Some(CLEAR),
        ClientAuthType::PostgresScramSha256
        | ClientAuthType::PostgresMd5
        | ClientAuthType::PostgresCleartext => None,
    }
}

/// `SHA1(password) XOR SHA1(nonce | SHA1(SHA1(password)))`.
#[must_use]
pub fn native_answer(password: &[u8], nonce: &[u8]) -> [u8; 20] {
    let sha1 = |parts: &[&[u8]]| -> [u8; 20] {
        let mut context = digest::Context::new(&SHA1_FOR_LEGACY_USE_ONLY);
        parts.iter().for_each(|part| context.update(part));
        let mut out = [0; 20];
        out.iter_mut().zip(context.finish().as_ref()).for_each(|(to, from)| *to = *from);
        out
    };
    let once = Zeroizing::new(sha1(&[password]));
    let twice = sha1(&[&*once]);
    let mut answer = sha1(&[nonce, &twice]);
    answer.iter_mut().zip(once.iter()).for_each(|(to, key)| *to ^= key);
    answer
}

/// `SHA256(password) XOR SHA256(SHA256(SHA256(password)) | nonce)`.
#[must_use]
pub fn caching_sha2_answer(password: &[u8], nonce: &[u8]) -> [u8; 32] {
    let once = Zeroizing::new(<[u8; 32]>::from(Sha256::digest(password)));
    let twice = Sha256::digest(once.as_slice());
    let mut answer = <[u8; 32]>::from(Sha256::new().chain_update(twice).chain_update(nonce).finalize());
    answer.iter_mut().zip(once.iter()).for_each(|(to, key)| *to ^= key);
    answer
}

/// An Ed25519 signature of `nonce` (RFC 8032, 5.1.6), but with the password, of any length, in place of the 32-byte
/// secret key.
#[must_use]
pub fn ed25519_answer(password: &[u8], nonce: &[u8]) -> [u8; 64] {
    let expanded = Zeroizing::new(<[u8; 64]>::from(Sha512::digest(password)));
    let mut lower = Zeroizing::new([0; 32]);
    lower.iter_mut().zip(expanded.iter()).for_each(|(to, from)| *to = *from);
    let prefix = expanded.get(32..).unwrap_or_default();
    let secret = Zeroizing::new(Scalar::from_bytes_mod_order(clamp_integer(*lower)));
    let public = EdwardsPoint::mul_base(&secret).compress();
    let wide = |hash: Sha512| Scalar::from_bytes_mod_order_wide(&hash.finalize().into());
    let once = Zeroizing::new(wide(Sha512::new().chain_update(prefix).chain_update(nonce)));
    let commitment = EdwardsPoint::mul_base(&once).compress();
    let challenge = wide(
        Sha512::new().chain_update(commitment.as_bytes()).chain_update(public.as_bytes()).chain_update(nonce),
    );
    let proof = *once + challenge * *secret;
    let mut answer = [0; 64];
    let parts = commitment.as_bytes().iter().chain(proof.as_bytes());
    answer.iter_mut().zip(parts).for_each(|(to, from)| *to = *from);
    answer
}

/// Our key for clients that send the password itself without TLS: one for the process, made when first needed.
static RSA_KEY: OnceLock<Option<RsaKey>> = OnceLock::new();

struct RsaKey {
    private: OaepPrivateDecryptingKey,
    /// The public half, PEM.
    public: String,
}

/// Makes the key that [`AuthStep::NeedKey`] asks for. It takes a good part of a second of one core.
pub fn make_rsa_key() {
    RSA_KEY.get_or_init(|| {
        let private = PrivateDecryptingKey::generate(KeySize::Rsa2048).ok()?;
        let der: PublicKeyX509Der<'_> = private.public_key().as_der().ok()?;
        let public = pem(der.as_ref());
        Some(RsaKey { private: OaepPrivateDecryptingKey::new(private).ok()?, public })
    });
}

/// A public key in PEM, as servers send it.
fn pem(der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let mut pem = String::from("-----BEGIN PUBLIC KEY-----\n");
    let mut rest = text.as_str();
    while !rest.is_empty() {
        // Base64 is ASCII, so it can be cut anywhere.
        let (line, after) = rest.split_at(rest.len().min(64));
        pem.push_str(line);
        pem.push('\n');
        rest = after;
    }
    pem.push_str("-----END PUBLIC KEY-----\n");
    pem
}

/// The key in a PEM text; `None` when there is none that can be used.
fn public_key(pem: &[u8]) -> Option<OaepPublicEncryptingKey> {
    let text = std::str::from_utf8(pem).ok()?;
    let (_, rest) = text.split_once("-----BEGIN PUBLIC KEY-----")?;
    let (body, _) = rest.split_once("-----END PUBLIC KEY-----")?;
    let base64: String = body.split_ascii_whitespace().collect();
    let der = STANDARD.decode(base64).ok()?;
    OaepPublicEncryptingKey::new(PublicEncryptingKey::from_der(&der).ok()?).ok()
}

/// A password with its terminator, each byte mixed with one of the nonce, as it is encrypted. Its own inverse.
fn mixed(bytes: &[u8], nonce: &[u8]) -> Zeroizing<Vec<u8>> {
    Zeroizing::new(bytes.iter().zip(nonce.iter().cycle()).map(|(byte, key)| byte ^ key).collect())
}

/// Why a client is not let in. No variant carries what the client sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    /// The password is wrong, or there is no such user; the two look the same from outside.
    #[error("wrong password, or no such user")]
    WrongPassword {
        /// There was one.
        given: bool,
    },
    /// The payload is not what it must look like.
    #[error("malformed authentication packet")]
    Malformed,
    /// A password in clear is asked for over TLS only.
    #[error("a cleartext password needs TLS")]
    ClearWithoutTls,
    /// The client knows one method, and that is another than the user's.
    #[error("the client does not support authentication by plugins")]
    OldClient,
    /// The method is another protocol's, which no configuration allows.
    #[error("the method is not MySQL's")]
    Foreign,
    /// The operating system gave no random bytes, or no key could be made.
    #[error("no random bytes")]
    Random,
}

/// Where a client's authentication stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuthStep {
    /// The client owes another payload.
    Continue,
    /// Call [`make_rsa_key`] where it may take its time, then come again with the same payload.
    NeedKey,
    /// The client is who it says.
    Done,
}

/// What the client said of itself before it was asked.
#[derive(Debug, Clone, Copy)]
pub struct FirstAnswer<'a> {
    /// The method it used; `None` for a client without `PLUGIN_AUTH`.
    pub plugin: Option<&'a [u8]>,
    /// What that method answers to the greeting's nonce; `None` when it must be asked anew in any case.
    pub answer: Option<&'a [u8]>,
    /// The nonce that it was told last. Where it must be asked anew it is told the same again, as by servers: there are
    /// clients that answer that one whatever they are told (MariaDB's own library, in `COM_CHANGE_USER`).
    pub nonce: Nonce,
}

/// One client proving its password to us.
///
/// An unknown user (`secret` is `None`) takes the same steps at the same cost as a known one with a wrong password,
/// and fails at the same payload.
pub struct ClientAuth {
    method: Method,
    secret: Option<Arc<Secret>>,
    /// What an unknown user's password is.
    mock_password: Zeroizing<[u8; 32]>,
    /// Compares by keyed hash, so that the time says nothing about lengths either.
    mock: MockKey,
    nonce: Nonce,
    over_tls: bool,
    /// Ask for the password itself whatever the client answers.
    force_full: bool,
    state: ClientState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Method {
    Native,
    CachingSha2,
    Clear,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ClientState {
    /// The method's first answer is to come.
    Answer,
    /// The password itself is to come.
    Password {
        key_sent: bool,
    },
    Over,
}

impl std::fmt::Debug for ClientAuth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClientAuth")
            .field("method", &self.method)
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}

impl ClientAuth {
    /// The nonce that the client was told last.
    #[must_use]
    pub const fn nonce(&self) -> Nonce {
        self.nonce
    }

    /// Goes on from what the client said first. Payloads to be sent, each one packet, are put into `out`.
    ///
    /// - `secret`: the user's; `None` for an unknown user.
    /// - `mock`: the process's; answers for unknown users.
    ///
    /// Errors: as [`Self::advance`], and [`AuthError::ClearWithoutTls`], [`AuthError::OldClient`],
    /// [`AuthError::Foreign`], [`AuthError::Random`].
    #[expect(clippy::too_many_arguments, reason = "called in one place, with what the handshake gathered")]
    pub fn start(
        method: ClientAuthType,
        user: &str,
        secret: Option<Arc<Secret>>,
        first: FirstAnswer<'_>,
        over_tls: bool,
        force_full: bool,
        mock: &MockKey,
        out: &mut Vec<Vec<u8>>,
    ) -> Result<(Self, AuthStep), AuthError> {
        let name = plugin(method).ok_or(AuthError::Foreign)?;
        let method = match method {
            ClientAuthType::MysqlNativePassword => Method::Native,
            ClientAuthType::MysqlClearPassword => Method::Clear,
            _ => Method::CachingSha2,
        };
        if method == Method::Clear && !over_tls {
            return Err(AuthError::ClearWithoutTls);
        }
        let mut auth = Self {
            method,
            secret,
            mock_password: mock.tag(b"mysql password", user.as_bytes()),
            mock: mock.clone(),
            nonce: first.nonce,
            over_tls,
            force_full,
            state: ClientState::Answer,
        };
        let spoken = first.plugin.unwrap_or(NATIVE.as_bytes());
        match first.answer {
            Some(answer) if spoken == name.as_bytes() => {
                let step = auth.advance(answer, out)?;
                Ok((auth, step))
            }
            _ if first.plugin.is_none() => Err(AuthError::OldClient),
            _ => {
                if first.answer.is_some() {
                    auth.nonce = Nonce::random().map_err(|_| AuthError::Random)?;
                }
                let mut payload = vec![SWITCH];
                put_null_bytes(&mut payload, name.as_bytes());
                put_null_bytes(&mut payload, &auth.nonce.0);
                out.push(payload);
                Ok((auth, AuthStep::Continue))
            }
        }
    }

    /// Takes the client's next payload and puts the answers, each one packet, into `out`.
    /// Errors: [`AuthError::WrongPassword`], [`AuthError::Malformed`], [`AuthError::Random`].
    pub fn advance(&mut self, payload: &[u8], out: &mut Vec<Vec<u8>>) -> Result<AuthStep, AuthError> {
        match (std::mem::replace(&mut self.state, ClientState::Over), self.method) {
            (ClientState::Answer, Method::Clear) => self.check_password(payload),
            (ClientState::Answer, _) if matches!(payload, [] | [0]) => {
                Err(AuthError::WrongPassword { given: false })
            }
            (ClientState::Answer, Method::Native) => {
                self.check_answer(payload, &native_answer(self.password(), &self.nonce.0))
            }
            (ClientState::Answer, Method::CachingSha2) if self.force_full => {
                out.push(vec![MORE_DATA, FULL]);
                self.state = ClientState::Password { key_sent: false };
                Ok(AuthStep::Continue)
            }
            (ClientState::Answer, Method::CachingSha2) => {
                let expected = caching_sha2_answer(self.password(), &self.nonce.0);
                match self.check_answer(payload, &expected) {
                    Ok(step) => {
                        out.push(vec![MORE_DATA, FAST_OK]);
                        Ok(step)
                    }
                    // As servers do whose cache does not agree; there are clients that make this answer in a way of
                    // their own and rely on it.
                    Err(AuthError::WrongPassword { .. }) => {
                        out.push(vec![MORE_DATA, FULL]);
                        self.state = ClientState::Password { key_sent: false };
                        Ok(AuthStep::Continue)
                    }
                    Err(error) => Err(error),
                }
            }
            (ClientState::Password { .. }, _) if self.over_tls => self.check_password(payload),
            (ClientState::Password { key_sent }, _) => self.encrypted(payload, key_sent, out),
            (ClientState::Over, _) => Err(AuthError::Malformed),
        }
    }

    /// The password, encrypted with our public key, or the request for that.
    fn encrypted(
        &mut self,
        payload: &[u8],
        key_sent: bool,
        out: &mut Vec<Vec<u8>>,
    ) -> Result<AuthStep, AuthError> {
        let Some(key) = RSA_KEY.get() else {
            self.state = ClientState::Password { key_sent };
            return Ok(AuthStep::NeedKey);
        };
        let Some(key) = key else { return Err(AuthError::Random) };
        match payload {
            [KEY_PLEASE] if !key_sent => {
                out.push([&[MORE_DATA], key.public.as_bytes()].concat());
                self.state = ClientState::Password { key_sent: true };
                return Ok(AuthStep::Continue);
            }
            [KEY_PLEASE] => return Err(AuthError::Malformed),
            [] | [0] => return Err(AuthError::WrongPassword { given: false }),
            _ => {}
        }
        let mut room = Zeroizing::new(vec![0; key.private.min_output_size()]);
        let decrypted = key.private.decrypt(&OAEP_SHA1_MGF1SHA1, payload, &mut room, None);
        // One that was encrypted with another key looks like a wrong one.
        let Ok(decrypted) = decrypted else { return Err(AuthError::WrongPassword { given: true }) };
        let password = mixed(decrypted, &self.nonce.0);
        self.check_password(&password)
    }

    fn check_answer(&self, answer: &[u8], expected: &[u8]) -> Result<AuthStep, AuthError> {
        if answer.len() != expected.len() {
            return Err(AuthError::Malformed);
        }
        self.verdict(answer.ct_eq(expected))
    }

    /// `payload` is the password with its terminator.
    fn check_password(&self, payload: &[u8]) -> Result<AuthStep, AuthError> {
        let Some((0, password)) = payload.split_last() else { return Err(AuthError::Malformed) };
        if password.is_empty() {
            return Err(AuthError::WrongPassword { given: false });
        }
        let tag = |password: &[u8]| self.mock.tag(b"cleartext", password);
        self.verdict(tag(password).ct_eq(&*tag(self.password())))
    }

    fn verdict(&self, same: Choice) -> Result<AuthStep, AuthError> {
        let known = Choice::from(u8::from(self.secret.is_some()));
        if bool::from(same & known) {
            Ok(AuthStep::Done)
        } else {
            Err(AuthError::WrongPassword { given: true })
        }
    }

    fn password(&self) -> &[u8] {
        self.secret.as_ref().map_or(&self.mock_password[..], |secret| secret.password().as_bytes())
    }
}

/// Why we do not log in to a server. No variant carries the password or anything made from it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ServerAuthError {
    /// The request is not what it must look like.
    #[error("malformed authentication packet")]
    Malformed,
    /// The request does not belong here.
    #[error("authentication packet at the wrong time")]
    Unexpected,
    /// The server asks for the password itself, over a connection anybody can read.
    #[error(
        "the server asks for a cleartext password without TLS, which is never sent: set the target's `tls` to \
         `required` or better, or give the account another method"
    )]
    ClearWithoutTls,
    /// The server asks for a method that is not supported; its name.
    #[error(
        "the server asks for {0:?} authentication, which is not supported: use caching_sha2_password, \
         mysql_native_password or ed25519 for this account"
    )]
    Unsupported(String),
    /// The method of servers before 4.1.
    #[error("the server asks for the authentication of servers before 4.1, which is not supported")]
    TooOld,
    /// The server's public key cannot be used, or not for a password of this length.
    #[error(
        "the password cannot be encrypted with the server's public key: set the target's `tls` to `required` or better"
    )]
    Key,
}

/// One login of ours to a server.
pub struct ServerAuth {
    secret: Arc<Secret>,
    over_tls: bool,
    nonce: Vec<u8>,
    state: ServerState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ServerState {
    /// Answered by a method that has one answer.
    Answered,
    /// Answered by `caching_sha2_password`, whose verdict is to come.
    Fast,
    /// The server's public key is to come.
    Key,
}

impl std::fmt::Debug for ServerAuth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerAuth").field("state", &self.state).finish_non_exhaustive()
    }
}

impl ServerAuth {
    /// Answers the greeting: gives the method that we use, and its answer. The server may ask for another one then.
    ///
    /// - `plugin`, `nonce`: as the greeting has them.
    /// - `over_tls`: whether the connection has TLS by now.
    #[must_use]
    pub fn start(
        secret: Arc<Secret>,
        plugin: &[u8],
        nonce: &[u8],
        over_tls: bool,
    ) -> (Self, &'static str, Vec<u8>) {
        let mut auth = Self { secret, over_tls, nonce: Vec::new(), state: ServerState::Answered };
        let plugin = if plugin == CACHING_SHA2.as_bytes() { CACHING_SHA2 } else { NATIVE };
        // A nonce that is none is answered with nothing; the server will not like it.
        let answer = auth.answer(plugin.as_bytes(), nonce).unwrap_or_default();
        (auth, plugin, answer)
    }

    /// Takes the server's next payload, one that is neither OK nor ERR, and gives the answer, if one is due.
    /// Errors: as named; the login cannot go on.
    pub fn advance(&mut self, payload: &[u8]) -> Result<Option<Vec<u8>>, ServerAuthError> {
        let mut reader = Reader::new(payload);
        match reader.u8() {
            Some(SWITCH) if reader.is_empty() => Err(ServerAuthError::TooOld),
            Some(SWITCH) => {
                let plugin = reader.null_bytes().ok_or(ServerAuthError::Malformed)?;
                self.answer(plugin, reader.rest()).map(Some)
            }
            Some(MORE_DATA) => self.more(reader.rest()),
            _ => Err(ServerAuthError::Malformed),
        }
    }

    fn more(&mut self, data: &[u8]) -> Result<Option<Vec<u8>>, ServerAuthError> {
        match (self.state, data) {
            (ServerState::Fast, [FAST_OK]) => {
                self.state = ServerState::Answered;
                Ok(None)
            }
            (ServerState::Fast, [FULL]) if self.over_tls => {
                self.state = ServerState::Answered;
                Ok(Some(self.terminated().to_vec()))
            }
            (ServerState::Fast, [FULL]) => {
                self.state = ServerState::Key;
                Ok(Some(vec![KEY_PLEASE]))
            }
            (ServerState::Key, pem) => {
                self.state = ServerState::Answered;
                let key = public_key(pem).ok_or(ServerAuthError::Key)?;
                let plain = mixed(&self.terminated(), &self.nonce);
                let mut encrypted = vec![0; key.ciphertext_size()];
                let len = key
                    .encrypt(&OAEP_SHA1_MGF1SHA1, &plain, &mut encrypted, None)
                    .map_err(|_| ServerAuthError::Key)?
                    .len();
                encrypted.truncate(len);
                Ok(Some(encrypted))
            }
            (ServerState::Answered | ServerState::Fast, _) => Err(ServerAuthError::Unexpected),
        }
    }

    fn answer(&mut self, plugin: &[u8], nonce: &[u8]) -> Result<Vec<u8>, ServerAuthError> {
        self.state = ServerState::Answered;
        // Servers end the nonce with a zero byte that is not part of it.
        let nonce = match nonce.split_last() {
            Some((0, nonce)) => nonce,
            _ => nonce,
        };
        let password = self.secret.password().as_bytes();
        let expect = |bytes: usize| (nonce.len() == bytes).then_some(nonce).ok_or(ServerAuthError::Malformed);
        if plugin == NATIVE.as_bytes() {
            Ok(native_answer(password, expect(NONCE_BYTES)?).to_vec())
        } else if plugin == CACHING_SHA2.as_bytes() {
            let answer = caching_sha2_answer(password, expect(NONCE_BYTES)?).to_vec();
            self.nonce = nonce.to_vec();
            self.state = ServerState::Fast;
            Ok(answer)
        } else if plugin == ED25519.as_bytes() {
            Ok(ed25519_answer(password, expect(ED25519_NONCE_BYTES)?).to_vec())
        } else if plugin == CLEAR.as_bytes() {
            if !self.over_tls {
                return Err(ServerAuthError::ClearWithoutTls);
            }
            Ok(self.terminated().to_vec())
        } else {
            Err(ServerAuthError::Unsupported(String::from_utf8_lossy(plugin).into_owned()))
        }
    }

    /// The password as text with its end.
    fn terminated(&self) -> Zeroizing<Vec<u8>> {
        let mut text = Zeroizing::new(Vec::with_capacity(self.secret.password().len() + 1));
        text.extend_from_slice(self.secret.password().as_bytes());
        text.push(0);
        text
    }
}

#[cfg(test)]
mod tests;
