//! SCRAM-SHA-256 and SCRAM-SHA-256-PLUS, both sides, as values in and values out.
//!
//! [`ScramServer`] checks a client, [`ScramClient`] logs in to a server. Neither knows the PostgreSQL
//! messages that carry the exchange, nor where a password comes from. Channel binding is
//! `tls-server-end-point` (RFC 5929) alone, the one type PostgreSQL has.
//! Sources: RFC 5802, RFC 7677, PostgreSQL manual "SASL Authentication".

use std::borrow::Cow;

use base64::{Engine, prelude::BASE64_STANDARD};
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};
use zeroize::Zeroizing;

/// PBKDF2 rounds of the keys that clients are checked against: RFC 7677's least, PostgreSQL's default
/// and what RDS Proxy always asks for.
pub const ITERATIONS: u32 = 4096;

/// The most PBKDF2 rounds a server may ask of us. One derivation runs on the thread of the session that
/// logs in, so this bounds how long a hostile or misconfigured server can hold it (tens of milliseconds).
pub const MAX_ITERATIONS: u32 = 100_000;

/// A longer SCRAM message is refused unread; real ones stay under a few hundred bytes.
pub const MAX_MESSAGE_BYTES: usize = 4096;

/// Bytes of a SHA-256 digest, and so of every SCRAM key.
const KEY_BYTES: usize = 32;
/// Bytes of a salt made here, as many as PostgreSQL makes.
const SALT_BYTES: usize = 16;
/// Random bytes in a nonce made here, before base64; as many as PostgreSQL uses.
const NONCE_BYTES: usize = 18;
/// How the channel binding flag starts when a binding is used.
const BINDING_FLAG: &str = "p=tls-server-end-point";

type Key = Zeroizing<[u8; KEY_BYTES]>;

/// What can go wrong in an exchange. No variant carries key material.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScramError {
    /// Over [`MAX_MESSAGE_BYTES`].
    #[error("the message is longer than {MAX_MESSAGE_BYTES} bytes")]
    TooLong,
    /// SCRAM messages are UTF-8.
    #[error("the message is not UTF-8")]
    NotUtf8,
    /// The attribute that belongs here is not here.
    #[error("attribute `{0}` is missing")]
    MissingAttribute(char),
    /// The attribute is here, but its value is none.
    #[error("attribute `{0}` has a malformed value")]
    BadValue(char),
    /// Something that is no `letter=value` where an optional extension may stand.
    #[error("malformed extension")]
    BadExtension,
    /// Attribute `m`: the peer insists on an extension, and there is none we know.
    #[error("a mandatory extension is not supported")]
    MandatoryExtension,
    /// The client's first message does not start with `n,`, `y,` or `p=…,` and an empty `authzid`.
    #[error("malformed GS2 header")]
    BadGs2Header,
    /// The client wants to act as somebody else.
    #[error("an authorization identity is not supported")]
    AuthorizationIdentity,
    /// A channel binding other than `tls-server-end-point`.
    #[error("only tls-server-end-point channel binding is supported")]
    UnsupportedBinding,
    /// The client binds the channel although it chose SCRAM-SHA-256, or binding was never offered.
    #[error("channel binding without SCRAM-SHA-256-PLUS")]
    BindingNotNegotiated,
    /// The client chose SCRAM-SHA-256-PLUS and then does not bind.
    #[error("SCRAM-SHA-256-PLUS without channel binding")]
    BindingMissing,
    /// The client would have bound the channel, and believes we cannot: somebody cut our offer.
    #[error("the client did not see that channel binding was offered")]
    Downgrade,
    /// The client sees another certificate than ours, or changed its GS2 header.
    #[error("channel binding check failed")]
    BindingMismatch,
    /// The nonce is not the one of this exchange.
    #[error("the nonce does not belong to this exchange")]
    NonceMismatch,
    /// Zero, or over [`MAX_ITERATIONS`].
    #[error("{0} iterations asked for; 1 to {MAX_ITERATIONS} are accepted")]
    Iterations(u64),
    /// The client does not know the password.
    #[error("wrong proof")]
    WrongProof,
    /// The server does not know the password either.
    #[error("wrong server signature")]
    WrongServerSignature,
    /// The server ended the exchange with an error of its own (`e=`).
    #[error("the server reports `{0}`")]
    ServerError(String),
    /// The operating system gave no random bytes.
    #[error("no random bytes: {0}")]
    Random(getrandom::Error),
}

/// Which of the two mechanisms an exchange runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mechanism {
    /// `SCRAM-SHA-256`.
    ScramSha256,
    /// `SCRAM-SHA-256-PLUS`: the same, bound to the TLS channel.
    ScramSha256Plus,
}

impl Mechanism {
    /// The mechanism's name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::ScramSha256 => "SCRAM-SHA-256",
            Self::ScramSha256Plus => "SCRAM-SHA-256-PLUS",
        }
    }

    /// The mechanism of that name; `None` for any other.
    pub fn from_name(name: &[u8]) -> Option<Self> {
        [Self::ScramSha256, Self::ScramSha256Plus]
            .into_iter()
            .find(|mechanism| mechanism.name().as_bytes() == name)
    }
}

/// What a server keeps of a password: enough to check a client's proof, not enough to make one.
#[derive(Clone)]
pub struct ScramKeys {
    salt: [u8; SALT_BYTES],
    iterations: u32,
    stored_key: Key,
    server_key: Key,
}

impl ScramKeys {
    /// Derives the keys from `password` and a random salt, at the cost of [`ITERATIONS`] PBKDF2 rounds.
    pub fn with_salt(password: &str, salt: [u8; SALT_BYTES]) -> Self {
        let salted = salted_password(password, &salt, ITERATIONS);
        let client_key = hmac(&*salted, &[b"Client Key"]);
        Self {
            salt,
            iterations: ITERATIONS,
            stored_key: sha256(&*client_key),
            server_key: hmac(&*salted, &[b"Server Key"]),
        }
    }
}

impl std::fmt::Debug for ScramKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ScramKeys").field("iterations", &self.iterations).finish_non_exhaustive()
    }
}

/// What unknown users are answered with, so that they look like known ones with a wrong password: the
/// same salt at each try, and keys that no password fits. One per process.
#[derive(Clone)]
pub struct MockKey(Key);

impl MockKey {
    /// A fresh random key. Errors: [`ScramError::Random`].
    pub fn random() -> Result<Self, ScramError> {
        let mut key = Zeroizing::new([0; KEY_BYTES]);
        getrandom::fill(&mut *key).map_err(ScramError::Random)?;
        Ok(Self(key))
    }

    /// The keys shown for `user`. They come from this key and the name alone.
    pub fn keys_for(&self, user: &str) -> ScramKeys {
        let mut salt = [0; SALT_BYTES];
        salt.copy_from_slice(&self.tag(b"salt", user.as_bytes())[..SALT_BYTES]);
        ScramKeys {
            salt,
            iterations: ITERATIONS,
            stored_key: self.tag(b"stored key", user.as_bytes()),
            server_key: self.tag(b"server key", user.as_bytes()),
        }
    }

    /// A keyed hash of `data`, of its own kind for each `label`: 32 bytes nobody outside can foretell.
    pub(in crate::protocol) fn tag(&self, label: &[u8], data: &[u8]) -> Key {
        hmac(&*self.0, &[label, &[0], data])
    }
}

impl std::fmt::Debug for MockKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MockKey(<redacted>)")
    }
}

/// PBKDF2-HMAC-SHA-256 of the prepared password, RFC 5802's `SaltedPassword`.
///
/// The password is prepared by SASLprep; one that SASLprep refuses, or leaves empty, is used as it is,
/// which is PostgreSQL's rule. `iterations` is the cost; the caller has bounded it.
pub fn salted_password(password: &str, salt: &[u8], iterations: u32) -> Zeroizing<[u8; 32]> {
    let prepared = match stringprep::saslprep(password) {
        Ok(Cow::Owned(prepared)) if !prepared.is_empty() => Some(Zeroizing::new(prepared)),
        _ => None,
    };
    let password = prepared.as_ref().map_or(password, |prepared| prepared.as_str());
    let mut salted = Zeroizing::new([0; KEY_BYTES]);
    pbkdf2::pbkdf2::<Hmac<Sha256>>(password.as_bytes(), salt, iterations, &mut *salted)
        .expect("HMAC takes a key of any length");
    salted
}

/// The server's side, waiting for the client's final message.
pub struct ScramServer {
    stored_key: Key,
    server_key: Key,
    known: bool,
    /// GS2 header and binding data: what the client's `c=` must hold.
    binding_input: Vec<u8>,
    client_first_bare: String,
    server_first: String,
    nonce: String,
}

impl ScramServer {
    /// Reads the client's first message and returns the server's first to send.
    ///
    /// - `mechanism`: what the client chose.
    /// - `keys`, `known`: the user's keys and `true`, or [`MockKey::keys_for`] and `false`: then the
    ///   exchange runs just so, and fails at the proof.
    /// - `binding`: the hash of our certificate if SCRAM-SHA-256-PLUS was offered, else `None`.
    ///
    /// Errors: any but [`ScramError::WrongProof`] and those of the client's side.
    pub fn begin(
        mechanism: Mechanism,
        client_first: &[u8],
        keys: &ScramKeys,
        known: bool,
        binding: Option<&[u8]>,
    ) -> Result<(Self, String), ScramError> {
        Self::begin_with_nonce(mechanism, client_first, keys, known, binding, &random_nonce()?)
    }

    fn begin_with_nonce(
        mechanism: Mechanism,
        client_first: &[u8],
        keys: &ScramKeys,
        known: bool,
        binding: Option<&[u8]>,
        server_nonce: &str,
    ) -> Result<(Self, String), ScramError> {
        let message = checked_text(client_first)?;
        let (flag, after_flag) = message.split_once(',').ok_or(ScramError::BadGs2Header)?;
        let (authzid, bare) = after_flag.split_once(',').ok_or(ScramError::BadGs2Header)?;
        let bound = check_binding_flag(mechanism, flag, binding)?;
        if !authzid.is_empty() {
            return Err(match authzid.strip_prefix("a=") {
                Some(_) => ScramError::AuthorizationIdentity,
                None => ScramError::BadGs2Header,
            });
        }

        let mut attributes = Attributes::new(bare);
        // The name was in the startup message; PostgreSQL's clients leave this one empty, and servers ignore it.
        attributes.expect('n')?;
        let client_nonce = attributes.expect('r')?;
        check_nonce(client_nonce)?;
        attributes.only_extensions_left()?;

        let mut binding_input = message.as_bytes()[..message.len() - bare.len()].to_vec();
        binding_input.extend_from_slice(bound.unwrap_or_default());
        let nonce = format!("{client_nonce}{server_nonce}");
        let server_first = format!("r={nonce},s={},i={}", BASE64_STANDARD.encode(keys.salt), keys.iterations);
        let state = Self {
            stored_key: keys.stored_key.clone(),
            server_key: keys.server_key.clone(),
            known,
            binding_input,
            client_first_bare: bare.to_owned(),
            server_first: server_first.clone(),
            nonce,
        };
        Ok((state, server_first))
    }

    /// Reads the client's final message and returns the server's final to send: the client is who it says.
    /// Errors: [`ScramError::WrongProof`] for a wrong password and for an unknown user, compared in
    /// constant time; [`ScramError::BindingMismatch`] and [`ScramError::NonceMismatch`]; malformed ones.
    pub fn finish(self, client_final: &[u8]) -> Result<String, ScramError> {
        let message = checked_text(client_final)?;
        let mut attributes = Attributes::new(message);
        let binding = decode('c', attributes.expect('c')?)?;
        let nonce = attributes.expect('r')?;
        let (without_proof, proof) = loop {
            let before = attributes.taken();
            match attributes.next()? {
                Some(('p', proof)) => break (&message[..before], proof),
                Some(('m', _)) => return Err(ScramError::MandatoryExtension),
                Some(_) => {}
                None => return Err(ScramError::MissingAttribute('p')),
            }
        };
        attributes.nothing_left()?;
        let proof = Zeroizing::new(decode('p', proof)?);
        let proof: &[u8; KEY_BYTES] = proof.as_slice().try_into().map_err(|_| ScramError::BadValue('p'))?;
        if !bool::from(binding.ct_eq(&self.binding_input)) {
            return Err(ScramError::BindingMismatch);
        }
        if !bool::from(nonce.as_bytes().ct_eq(self.nonce.as_bytes())) {
            return Err(ScramError::NonceMismatch);
        }

        let auth_message = [
            self.client_first_bare.as_bytes(),
            b",",
            self.server_first.as_bytes(),
            b",",
            without_proof.as_bytes(),
        ];
        let client_key = xor(proof, &hmac(&*self.stored_key, &auth_message));
        let server_signature = hmac(&*self.server_key, &auth_message);
        let proved = sha256(&*client_key).ct_eq(&*self.stored_key) & Choice::from(u8::from(self.known));
        if !bool::from(proved) {
            return Err(ScramError::WrongProof);
        }
        Ok(format!("v={}", BASE64_STANDARD.encode(*server_signature)))
    }
}

impl std::fmt::Debug for ScramServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ScramServer").finish_non_exhaustive()
    }
}

/// What the client's side says about channel binding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientBinding {
    /// `n`: no TLS, or no end-point hash is defined for the server's certificate.
    Unsupported,
    /// `y`: we could bind, but the server offered no SCRAM-SHA-256-PLUS. A server that did finds out.
    NotOffered,
    /// `p`: the `tls-server-end-point` hash of the server's certificate.
    EndPoint(Vec<u8>),
}

/// The client's side, waiting for the server's first message.
pub struct ScramClient {
    gs2_header: String,
    binding_input: Vec<u8>,
    client_first_bare: String,
    nonce: String,
}

impl ScramClient {
    /// Starts an exchange and returns the client's first message to send. The user name in it is empty,
    /// as from PostgreSQL's own clients: the server has it from the startup message.
    /// Errors: [`ScramError::Random`].
    pub fn begin(binding: &ClientBinding) -> Result<(Self, String), ScramError> {
        Ok(Self::begin_with_nonce(binding, "", random_nonce()?))
    }

    fn begin_with_nonce(binding: &ClientBinding, user: &str, nonce: String) -> (Self, String) {
        let (flag, data): (_, &[u8]) = match binding {
            ClientBinding::Unsupported => ("n", &[]),
            ClientBinding::NotOffered => ("y", &[]),
            ClientBinding::EndPoint(hash) => (BINDING_FLAG, hash),
        };
        let gs2_header = format!("{flag},,");
        let client_first_bare = format!("n={user},r={nonce}");
        let client_first = format!("{gs2_header}{client_first_bare}");
        let binding_input = [gs2_header.as_bytes(), data].concat();
        (Self { gs2_header, binding_input, client_first_bare, nonce }, client_first)
    }

    /// Reads the server's first message and returns the client's final to send.
    ///
    /// `salted` gives [`salted_password`] for the salt and iterations it is called with; it may keep
    /// results, which is what saves the cost for the next login.
    /// Errors: [`ScramError::NonceMismatch`] when the server's nonce does not continue ours or adds
    /// nothing; [`ScramError::Iterations`], before `salted` is called; malformed ones.
    pub fn answer(
        self,
        server_first: &[u8],
        salted: impl FnOnce(&[u8], u32) -> Zeroizing<[u8; 32]>,
    ) -> Result<(ScramClientFinal, String), ScramError> {
        let message = checked_text(server_first)?;
        let mut attributes = Attributes::new(message);
        let nonce = attributes.expect('r')?;
        check_nonce(nonce)?;
        if nonce.len() <= self.nonce.len() || !nonce.starts_with(&self.nonce) {
            return Err(ScramError::NonceMismatch);
        }
        let salt = decode('s', attributes.expect('s')?)?;
        if salt.is_empty() {
            return Err(ScramError::BadValue('s'));
        }
        let iterations = parse_iterations(attributes.expect('i')?)?;
        attributes.only_extensions_left()?;

        let salted = salted(&salt, iterations);
        let client_key = hmac(&*salted, &[b"Client Key"]);
        let stored_key = sha256(&*client_key);
        let server_key = hmac(&*salted, &[b"Server Key"]);

        let without_proof = format!("c={},r={nonce}", BASE64_STANDARD.encode(&self.binding_input));
        let auth_message =
            [self.client_first_bare.as_bytes(), b",", message.as_bytes(), b",", without_proof.as_bytes()];
        let proof = xor(&client_key, &hmac(&*stored_key, &auth_message));
        let server_signature = hmac(&*server_key, &auth_message);
        let client_final = format!("{without_proof},p={}", BASE64_STANDARD.encode(*proof));
        Ok((ScramClientFinal { server_signature }, client_final))
    }
}

impl std::fmt::Debug for ScramClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ScramClient").field("gs2_header", &self.gs2_header).finish_non_exhaustive()
    }
}

/// The client's side, waiting for the server to prove that it knows the password too.
pub struct ScramClientFinal {
    server_signature: Key,
}

impl ScramClientFinal {
    /// Reads the server's final message; `Ok` means that the server holds our keys.
    /// Errors: [`ScramError::WrongServerSignature`], [`ScramError::ServerError`]; malformed ones.
    pub fn finish(self, server_final: &[u8]) -> Result<(), ScramError> {
        let message = checked_text(server_final)?;
        let mut attributes = Attributes::new(message);
        match attributes.next()? {
            Some(('v', signature)) => {
                attributes.only_extensions_left()?;
                let signature = decode('v', signature)?;
                if !bool::from(signature.as_slice().ct_eq(&self.server_signature[..])) {
                    return Err(ScramError::WrongServerSignature);
                }
                Ok(())
            }
            // RFC 5802's error values are words such as `invalid-proof`; anything else is not repeated.
            Some(('e', error))
                if error.len() <= 64 && error.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') =>
            {
                Err(ScramError::ServerError(error.to_owned()))
            }
            Some(('e', _)) => Err(ScramError::BadValue('e')),
            Some(('m', _)) => Err(ScramError::MandatoryExtension),
            Some(_) | None => Err(ScramError::MissingAttribute('v')),
        }
    }
}

impl std::fmt::Debug for ScramClientFinal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ScramClientFinal").finish_non_exhaustive()
    }
}

/// Reads `name=value,name=value` from the front.
struct Attributes<'a> {
    text: &'a str,
    /// Bytes before this are read, the comma before the next attribute not counted; `None` at the start.
    taken: Option<usize>,
}

impl<'a> Attributes<'a> {
    fn new(text: &'a str) -> Self {
        Self { text, taken: None }
    }

    /// How many bytes of the text the attributes read so far are.
    fn taken(&self) -> usize {
        self.taken.unwrap_or(0)
    }

    /// The next attribute, or `None` at the end.
    fn next(&mut self) -> Result<Option<(char, &'a str)>, ScramError> {
        let from = match self.taken {
            None => 0,
            Some(taken) if taken == self.text.len() => return Ok(None),
            Some(taken) => taken + 1,
        };
        let rest = &self.text[from..];
        let attribute = rest.split_once(',').map_or(rest, |(attribute, _)| attribute);
        self.taken = Some(from + attribute.len());
        let name =
            attribute.chars().next().filter(char::is_ascii_alphabetic).ok_or(ScramError::BadExtension)?;
        let value = attribute[1..].strip_prefix('=').ok_or(ScramError::BadExtension)?;
        if value.contains('\0') {
            return Err(ScramError::BadValue(name));
        }
        Ok(Some((name, value)))
    }

    /// The value of the next attribute, which must be `name`.
    fn expect(&mut self, name: char) -> Result<&'a str, ScramError> {
        match self.next() {
            Ok(Some((found, value))) if found == name => Ok(value),
            Ok(Some(('m', _))) => Err(ScramError::MandatoryExtension),
            Err(ScramError::BadValue(found)) => Err(ScramError::BadValue(found)),
            _ => Err(ScramError::MissingAttribute(name)),
        }
    }

    /// Passes over optional extensions up to the end.
    fn only_extensions_left(&mut self) -> Result<(), ScramError> {
        while let Some((name, _)) = self.next()? {
            if name == 'm' {
                return Err(ScramError::MandatoryExtension);
            }
        }
        Ok(())
    }

    fn nothing_left(&mut self) -> Result<(), ScramError> {
        match self.next()? {
            None => Ok(()),
            Some(_) => Err(ScramError::BadExtension),
        }
    }
}

/// What the flag says about binding, weighed against what was offered and chosen; the data to bind to, if any.
fn check_binding_flag<'b>(
    mechanism: Mechanism,
    flag: &str,
    binding: Option<&'b [u8]>,
) -> Result<Option<&'b [u8]>, ScramError> {
    match (mechanism, flag, binding) {
        (Mechanism::ScramSha256, "n", _) | (Mechanism::ScramSha256, "y", None) => Ok(None),
        (Mechanism::ScramSha256, "y", Some(_)) => Err(ScramError::Downgrade),
        (Mechanism::ScramSha256Plus, "n" | "y", _) => Err(ScramError::BindingMissing),
        (Mechanism::ScramSha256Plus, BINDING_FLAG, Some(binding)) => Ok(Some(binding)),
        (Mechanism::ScramSha256, flag, _) if flag.starts_with("p=") => Err(ScramError::BindingNotNegotiated),
        (Mechanism::ScramSha256Plus, BINDING_FLAG, None) => Err(ScramError::BindingNotNegotiated),
        (Mechanism::ScramSha256Plus, flag, _) if flag.starts_with("p=") => {
            Err(ScramError::UnsupportedBinding)
        }
        _ => Err(ScramError::BadGs2Header),
    }
}

fn checked_text(message: &[u8]) -> Result<&str, ScramError> {
    if message.len() > MAX_MESSAGE_BYTES {
        return Err(ScramError::TooLong);
    }
    std::str::from_utf8(message).map_err(|_| ScramError::NotUtf8)
}

/// RFC 5802's `printable`: ASCII without space and comma; the comma cannot be in an attribute.
fn check_nonce(nonce: &str) -> Result<(), ScramError> {
    if nonce.is_empty() || !nonce.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(ScramError::BadValue('r'));
    }
    Ok(())
}

/// RFC 5802's `posit-number`, within our bounds.
fn parse_iterations(text: &str) -> Result<u32, ScramError> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits || (text.len() > 1 && text.starts_with('0')) {
        return Err(ScramError::BadValue('i'));
    }
    let asked: u64 = text.parse().unwrap_or(u64::MAX);
    match u32::try_from(asked) {
        Ok(iterations @ 1..=MAX_ITERATIONS) => Ok(iterations),
        _ => Err(ScramError::Iterations(asked)),
    }
}

fn decode(attribute: char, value: &str) -> Result<Vec<u8>, ScramError> {
    BASE64_STANDARD.decode(value).map_err(|_| ScramError::BadValue(attribute))
}

fn random_nonce() -> Result<String, ScramError> {
    let mut nonce = [0; NONCE_BYTES];
    getrandom::fill(&mut nonce).map_err(ScramError::Random)?;
    Ok(BASE64_STANDARD.encode(nonce))
}

fn hmac(key: &[u8], parts: &[&[u8]]) -> Key {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes a key of any length");
    for part in parts {
        mac.update(part);
    }
    Zeroizing::new(mac.finalize().into_bytes().into())
}

fn sha256(data: &[u8]) -> Key {
    Zeroizing::new(Sha256::digest(data).into())
}

fn xor(a: &[u8; KEY_BYTES], b: &[u8; KEY_BYTES]) -> Key {
    let mut out = Zeroizing::new(*a);
    out.iter_mut().zip(b).for_each(|(out, b)| *out ^= b);
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::{cell::RefCell, collections::HashMap};

    use super::*;

    const PASSWORD: &str = "pencil";
    const HASH: &[u8] = &[7; 32];

    fn keys(password: &str) -> ScramKeys {
        ScramKeys::with_salt(password, *b"sixteen byte sal")
    }

    /// Where an exchange ended: the number of the message that was refused, from 0, and why.
    type Ended = Result<(), (usize, ScramError)>;

    /// Both sides against each other; `wire` sees every message, by its number, and may change it.
    struct Exchange<'a> {
        keys: ScramKeys,
        known: bool,
        mechanism: Mechanism,
        offered: Option<&'a [u8]>,
        client: ClientBinding,
        password: &'a str,
        /// What the client has derived so far, since these tests run thousands of exchanges.
        salted: RefCell<HashMap<(Vec<u8>, u32), Key>>,
    }

    impl Exchange<'_> {
        fn plain() -> Self {
            Self {
                keys: keys(PASSWORD),
                known: true,
                mechanism: Mechanism::ScramSha256,
                offered: None,
                client: ClientBinding::Unsupported,
                password: PASSWORD,
                salted: RefCell::default(),
            }
        }

        fn plus() -> Self {
            Self {
                mechanism: Mechanism::ScramSha256Plus,
                offered: Some(HASH),
                client: ClientBinding::EndPoint(HASH.to_vec()),
                ..Self::plain()
            }
        }

        fn run(&self) -> Ended {
            self.run_over(|_, message| message)
        }

        fn run_over(&self, mut wire: impl FnMut(usize, Vec<u8>) -> Vec<u8>) -> Ended {
            let (client, client_first) =
                ScramClient::begin_with_nonce(&self.client, "", "clientnonceclientnonce".to_owned());
            let client_first = wire(0, client_first.into_bytes());
            let (server, server_first) = ScramServer::begin_with_nonce(
                self.mechanism,
                &client_first,
                &self.keys,
                self.known,
                self.offered,
                "servernonceservernonce",
            )
            .map_err(|error| (0, error))?;
            let server_first = wire(1, server_first.into_bytes());
            let (client, client_final) = client
                .answer(&server_first, |salt, iterations| {
                    let mut salted = self.salted.borrow_mut();
                    let derive = || salted_password(self.password, salt, iterations);
                    salted.entry((salt.to_vec(), iterations)).or_insert_with(derive).clone()
                })
                .map_err(|error| (1, error))?;
            let client_final = wire(2, client_final.into_bytes());
            let server_final = server.finish(&client_final).map_err(|error| (2, error))?;
            let server_final = wire(3, server_final.into_bytes());
            client.finish(&server_final).map_err(|error| (3, error))
        }

        fn messages(&self) -> Vec<Vec<u8>> {
            let mut messages = Vec::new();
            let ended = self.run_over(|_, message| {
                messages.push(message.clone());
                message
            });
            assert_eq!(ended, Ok(()));
            messages
        }
    }

    #[test]
    fn rfc_7677_example_holds_on_both_sides() {
        let salt = BASE64_STANDARD.decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
        let keys = ScramKeys::with_salt("pencil", salt.try_into().unwrap());
        let server_nonce = "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";

        let (client, client_first) = ScramClient::begin_with_nonce(
            &ClientBinding::Unsupported,
            "user",
            "rOprNGfwEbeRWgbNEkqO".to_owned(),
        );
        assert_eq!(client_first, "n,,n=user,r=rOprNGfwEbeRWgbNEkqO");
        let (server, server_first) = ScramServer::begin_with_nonce(
            Mechanism::ScramSha256,
            client_first.as_bytes(),
            &keys,
            true,
            None,
            server_nonce,
        )
        .unwrap();
        assert_eq!(
            server_first,
            "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
        );
        let (client, client_final) = client
            .answer(server_first.as_bytes(), |salt, iterations| salted_password("pencil", salt, iterations))
            .unwrap();
        assert_eq!(
            client_final,
            "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
             p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
        );
        let server_final = server.finish(client_final.as_bytes()).unwrap();
        assert_eq!(server_final, "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=");
        client.finish(server_final.as_bytes()).unwrap();
    }

    #[test]
    fn both_sides_agree_and_only_on_the_same_password() {
        assert_eq!(Exchange::plain().run(), Ok(()));
        assert_eq!(Exchange::plus().run(), Ok(()));
        for password in ["Pencil", "pencil ", "", "p"] {
            let wrong = (2, ScramError::WrongProof);
            assert_eq!(Exchange { password, ..Exchange::plain() }.run(), Err(wrong.clone()));
            assert_eq!(Exchange { password, ..Exchange::plus() }.run(), Err(wrong));
        }
    }

    #[test]
    fn nonces_and_salts_differ_from_one_exchange_to_the_next() {
        let first = |(_, message): (ScramClient, String)| message;
        let begin = || ScramClient::begin(&ClientBinding::Unsupported).unwrap();
        assert_ne!(first(begin()), first(begin()));
        let answer = || {
            ScramServer::begin(Mechanism::ScramSha256, b"n,,n=,r=abc", &keys(PASSWORD), true, None).unwrap().1
        };
        assert_ne!(answer(), answer());
    }

    #[test]
    fn unknown_users_look_like_wrong_passwords() {
        let mock = MockKey::random().unwrap();
        let unknown = Exchange { keys: mock.keys_for("nobody"), known: false, ..Exchange::plain() };
        let wrong = Exchange { password: "wrong", ..Exchange::plain() };
        let lengths = |exchange: &Exchange<'_>| {
            let mut lengths = Vec::new();
            let ended = exchange.run_over(|_, message| {
                lengths.push(message.len());
                message
            });
            (lengths, ended)
        };
        assert_eq!(lengths(&unknown), lengths(&wrong));
        assert_eq!(unknown.run(), Err((2, ScramError::WrongProof)));

        assert_eq!(mock.keys_for("nobody").salt, mock.keys_for("nobody").salt);
        assert_ne!(mock.keys_for("nobody").salt, mock.keys_for("noone").salt);
        assert_ne!(mock.keys_for("nobody").salt, MockKey::random().unwrap().keys_for("nobody").salt);
    }

    #[test]
    fn unknown_users_fail_even_with_the_right_proof() {
        let exchange = Exchange { known: false, ..Exchange::plain() };
        assert_eq!(exchange.run(), Err((2, ScramError::WrongProof)));
    }

    #[test]
    fn passwords_are_prepared_as_postgresql_does() {
        let same = |a: &str, b: &str| salted_password(a, b"salt", 1) == salted_password(b, b"salt", 1);
        // Mapped to nothing, to a space, and to their compatible forms: RFC 4013 and its examples.
        assert!(same("I\u{ad}X", "IX"));
        assert!(same("a\u{a0}b", "a b"));
        assert!(same("\u{2168}", "IX"));
        assert!(same("\u{aa}", "a"));
        assert!(!same("USER", "user"));
        // What SASLprep refuses or leaves empty is used as it is.
        let raw = |password: &str| {
            let mut salted = [0; 32];
            pbkdf2::pbkdf2::<Hmac<Sha256>>(password.as_bytes(), b"salt", 1, &mut salted).unwrap();
            *salted_password(password, b"salt", 1) == salted
        };
        assert!(raw("plain"));
        assert!(raw("\u{7}bell"));
        assert!(raw("\u{627}1"));
        assert!(raw("\u{ad}"));
        assert!(raw("\u{e000}\u{ad}"));
        assert!(!raw("I\u{ad}X"));
    }

    #[test]
    fn no_exchange_survives_a_message_cut_short() {
        for exchange in [Exchange::plain(), Exchange::plus()] {
            for (number, whole) in exchange.messages().iter().enumerate() {
                for cut in 0..whole.len() {
                    let ended = exchange.run_over(|n, message| match n == number {
                        true => message[..cut].to_vec(),
                        false => message,
                    });
                    assert!(ended.is_err(), "message {number} cut after {cut} bytes");
                }
            }
        }
    }

    #[test]
    fn no_exchange_survives_a_changed_byte() {
        for exchange in [Exchange::plain(), Exchange::plus()] {
            for (number, whole) in exchange.messages().iter().enumerate() {
                for position in 0..whole.len() {
                    for change in [1, 0x20, 0x80, whole[position], whole[position] ^ b','] {
                        let ended = exchange.run_over(|n, mut message| {
                            if n == number {
                                message[position] ^= change;
                            }
                            message
                        });
                        let changed = change != 0;
                        assert_eq!(
                            ended.is_err(),
                            changed,
                            "message {number}, byte {position} ^ {change:#x}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn no_exchange_survives_bytes_put_in_or_doubled() {
        let exchange = Exchange::plus();
        for (number, whole) in exchange.messages().iter().enumerate() {
            for position in 0..=whole.len() {
                for extra in [&b","[..], b"=", b"\0", b"A", b",x=1", b"m=1,", b"\xff"] {
                    let ended = exchange.run_over(|n, mut message| {
                        if n == number {
                            message.splice(position..position, extra.iter().copied());
                        }
                        message
                    });
                    // The one message nothing follows, and so nothing signs, may carry extensions at its end.
                    let allowed = number == 3 && position == whole.len() && extra == b",x=1";
                    assert_eq!(ended.is_ok(), allowed, "message {number}, {extra:?} at {position}");
                }
            }
        }
    }

    #[test]
    fn client_first_messages() {
        use Mechanism::{ScramSha256 as Plain, ScramSha256Plus as Plus};
        let check = |mechanism, offered: Option<&[u8]>, message: &str, expected: Result<(), ScramError>| {
            let begun = ScramServer::begin(mechanism, message.as_bytes(), &keys(PASSWORD), true, offered);
            assert_eq!(begun.map(|_| ()), expected, "{mechanism:?} {message:?}");
        };
        check(Plain, None, "n,,n=,r=abc", Ok(()));
        check(Plain, None, "y,,n=,r=abc", Ok(()));
        check(Plain, Some(HASH), "n,,n=,r=abc", Ok(()));
        check(Plain, None, "n,,n=us=2Cer,r=abc,x=optional", Ok(()));
        check(Plain, Some(HASH), "y,,n=,r=abc", Err(ScramError::Downgrade));
        check(Plain, None, "p=tls-server-end-point,,n=,r=abc", Err(ScramError::BindingNotNegotiated));
        check(Plain, Some(HASH), "p=tls-server-end-point,,n=,r=abc", Err(ScramError::BindingNotNegotiated));
        check(Plus, None, "p=tls-server-end-point,,n=,r=abc", Err(ScramError::BindingNotNegotiated));
        check(Plus, Some(HASH), "p=tls-server-end-point,,n=,r=abc", Ok(()));
        check(Plus, Some(HASH), "p=tls-unique,,n=,r=abc", Err(ScramError::UnsupportedBinding));
        check(Plus, Some(HASH), "p=,,n=,r=abc", Err(ScramError::UnsupportedBinding));
        check(Plus, Some(HASH), "n,,n=,r=abc", Err(ScramError::BindingMissing));
        check(Plus, Some(HASH), "y,,n=,r=abc", Err(ScramError::BindingMissing));
        check(Plain, None, "n,a=admin,n=,r=abc", Err(ScramError::AuthorizationIdentity));
        check(Plain, None, "n,admin,n=,r=abc", Err(ScramError::BadGs2Header));
        check(Plain, None, "F,,n=,r=abc", Err(ScramError::BadGs2Header));
        check(Plain, None, "nn,,n=,r=abc", Err(ScramError::BadGs2Header));
        check(Plain, None, "", Err(ScramError::BadGs2Header));
        check(Plain, None, "n", Err(ScramError::BadGs2Header));
        check(Plain, None, "n,", Err(ScramError::BadGs2Header));
        check(Plain, None, "n,,", Err(ScramError::MissingAttribute('n')));
        check(Plain, None, "n,,m=1,n=,r=abc", Err(ScramError::MandatoryExtension));
        check(Plain, None, "n,,n=,m=1,r=abc", Err(ScramError::MandatoryExtension));
        check(Plain, None, "n,,n=,r=abc,m=1", Err(ScramError::MandatoryExtension));
        check(Plain, None, "n,,r=abc,n=", Err(ScramError::MissingAttribute('n')));
        check(Plain, None, "n,,n=", Err(ScramError::MissingAttribute('r')));
        check(Plain, None, "n,,n=,r=", Err(ScramError::BadValue('r')));
        check(Plain, None, "n,,n=,r=a b", Err(ScramError::BadValue('r')));
        check(Plain, None, "n,,n=,r=a\u{e9}", Err(ScramError::BadValue('r')));
        check(Plain, None, "n,,n=,r=abc,", Err(ScramError::BadExtension));
        check(Plain, None, "n,,n=,r=abc,x", Err(ScramError::BadExtension));
        check(Plain, None, "n,,n=,r=abc,1=2", Err(ScramError::BadExtension));
        check(Plain, None, "n,,n=,r=abc,\u{e9}=2", Err(ScramError::BadExtension));
        check(Plain, None, "n,,n=a\0,r=abc", Err(ScramError::BadValue('n')));
        check(Plain, None, &format!("n,,n=,r={}", "a".repeat(MAX_MESSAGE_BYTES)), Err(ScramError::TooLong));
        let not_text = ScramServer::begin(Plain, b"n,,n=\xff,r=abc", &keys(PASSWORD), true, None);
        assert_eq!(not_text.map(|_| ()), Err(ScramError::NotUtf8));
    }

    #[test]
    fn client_final_messages() {
        let proof = BASE64_STANDARD.encode([0; 32]);
        let check = |message: &str, expected: ScramError| {
            let message = message.replace("{p}", &format!("p={proof}"));
            let begun = ScramServer::begin_with_nonce(
                Mechanism::ScramSha256,
                b"n,,n=,r=abc",
                &keys(PASSWORD),
                true,
                None,
                "def",
            );
            let finished = begun.unwrap().0.finish(message.as_bytes());
            assert_eq!(finished, Err(expected), "{message:?}");
        };
        check("c=biws,r=abcdef,{p}", ScramError::WrongProof);
        check("c=biws,r=abcdef,x=optional,{p}", ScramError::WrongProof);
        check("c=eSws,r=abcdef,{p}", ScramError::BindingMismatch);
        check("c=,r=abcdef,{p}", ScramError::BindingMismatch);
        check("c=biws,r=abc,{p}", ScramError::NonceMismatch);
        check("c=biws,r=,{p}", ScramError::NonceMismatch);
        check("c=biws,r=abcdef0,{p}", ScramError::NonceMismatch);
        check("c=biws,r=abcdef", ScramError::MissingAttribute('p'));
        check("c=biws,r=abcdef,{p},x=1", ScramError::BadExtension);
        check("c=biws,r=abcdef,{p},", ScramError::BadExtension);
        check("c=biws,r=abcdef,m=1,{p}", ScramError::MandatoryExtension);
        check("c=biws,r=abcdef,p=", ScramError::BadValue('p'));
        check("c=biws,r=abcdef,p=AAAA", ScramError::BadValue('p'));
        check("c=biws,r=abcdef,p=!", ScramError::BadValue('p'));
        check("c=bi ws,r=abcdef,{p}", ScramError::BadValue('c'));
        check("r=abcdef,{p}", ScramError::MissingAttribute('c'));
        check("", ScramError::MissingAttribute('c'));
        check(",", ScramError::MissingAttribute('c'));
        check(&format!("c={},r=abcdef,{{p}}", "A".repeat(MAX_MESSAGE_BYTES)), ScramError::TooLong);
    }

    #[test]
    fn server_first_messages() {
        let check = |message: &str, expected: Result<(), ScramError>| {
            let (client, _) =
                ScramClient::begin_with_nonce(&ClientBinding::Unsupported, "", "abc".to_owned());
            let mut derived = false;
            let answered = client.answer(message.as_bytes(), |_, _| {
                derived = true;
                Zeroizing::new([0; 32])
            });
            assert_eq!(answered.map(|_| ()), expected, "{message:?}");
            assert_eq!(derived, expected.is_ok(), "{message:?}");
        };
        check("r=abcdef,s=c2FsdA==,i=1", Ok(()));
        check("r=abcdef,s=c2FsdA==,i=4096,x=optional", Ok(()));
        check(&format!("r=abcdef,s=c2FsdA==,i={MAX_ITERATIONS}"), Ok(()));
        let above = u64::from(MAX_ITERATIONS) + 1;
        check(&format!("r=abcdef,s=c2FsdA==,i={above}"), Err(ScramError::Iterations(above)));
        check("r=abcdef,s=c2FsdA==,i=4294967297", Err(ScramError::Iterations(4_294_967_297)));
        check(&format!("r=abcdef,s=c2FsdA==,i={}", "9".repeat(40)), Err(ScramError::Iterations(u64::MAX)));
        check("r=abcdef,s=c2FsdA==,i=0", Err(ScramError::Iterations(0)));
        check("r=abcdef,s=c2FsdA==,i=-1", Err(ScramError::BadValue('i')));
        check("r=abcdef,s=c2FsdA==,i=+1", Err(ScramError::BadValue('i')));
        check("r=abcdef,s=c2FsdA==,i=04096", Err(ScramError::BadValue('i')));
        check("r=abcdef,s=c2FsdA==,i=", Err(ScramError::BadValue('i')));
        check("r=abcdef,s=c2FsdA==", Err(ScramError::MissingAttribute('i')));
        check("r=abcdef,s=c2FsdA,i=1", Err(ScramError::BadValue('s')));
        check("r=abcdef,s=,i=1", Err(ScramError::BadValue('s')));
        check("r=abcdef,i=1", Err(ScramError::MissingAttribute('s')));
        check("r=abc,s=c2FsdA==,i=1", Err(ScramError::NonceMismatch));
        check("r=abdef,s=c2FsdA==,i=1", Err(ScramError::NonceMismatch));
        check("r=,s=c2FsdA==,i=1", Err(ScramError::BadValue('r')));
        check("r=abc\u{7f},s=c2FsdA==,i=1", Err(ScramError::BadValue('r')));
        check("m=1,r=abcdef,s=c2FsdA==,i=1", Err(ScramError::MandatoryExtension));
        check("r=abcdef,s=c2FsdA==,i=1,m=1", Err(ScramError::MandatoryExtension));
        check("r=abcdef,s=c2FsdA==,i=1,", Err(ScramError::BadExtension));
        check("e=other-error", Err(ScramError::MissingAttribute('r')));
        check("", Err(ScramError::MissingAttribute('r')));
    }

    #[test]
    fn server_final_messages() {
        let signature = BASE64_STANDARD.encode([9; 32]);
        let check = |message: &str, expected: Result<(), ScramError>| {
            let client = ScramClientFinal { server_signature: Zeroizing::new([9; 32]) };
            assert_eq!(client.finish(message.as_bytes()), expected, "{message:?}");
        };
        check(&format!("v={signature}"), Ok(()));
        check(&format!("v={signature},x=optional"), Ok(()));
        check(&format!("v={signature},"), Err(ScramError::BadExtension));
        check(&format!("v={}", BASE64_STANDARD.encode([8; 32])), Err(ScramError::WrongServerSignature));
        check("v=", Err(ScramError::WrongServerSignature));
        check("v=CQkJ", Err(ScramError::WrongServerSignature));
        check("v=!", Err(ScramError::BadValue('v')));
        check("e=invalid-proof", Err(ScramError::ServerError("invalid-proof".to_owned())));
        check("e=\u{1b}[2J", Err(ScramError::BadValue('e')));
        check(&format!("e={}", "a".repeat(65)), Err(ScramError::BadValue('e')));
        check("m=1", Err(ScramError::MandatoryExtension));
        check("x=1", Err(ScramError::MissingAttribute('v')));
        check("v", Err(ScramError::BadExtension));
        check("", Err(ScramError::BadExtension));
    }

    #[test]
    fn another_certificate_fails_the_binding_check() {
        let middle = Exchange { client: ClientBinding::EndPoint(vec![8; 32]), ..Exchange::plus() };
        assert_eq!(middle.run(), Err((2, ScramError::BindingMismatch)));
        let shorter = Exchange { client: ClientBinding::EndPoint(vec![7; 31]), ..Exchange::plus() };
        assert_eq!(shorter.run(), Err((2, ScramError::BindingMismatch)));
    }

    #[test]
    fn a_server_without_the_password_is_found_out() {
        let mut exchange = Exchange::plain();
        exchange.keys.server_key = Zeroizing::new([0; 32]);
        assert_eq!(exchange.run(), Err((3, ScramError::WrongServerSignature)));
    }

    #[test]
    fn debug_shows_no_key() {
        let shown = format!("{:?} {:?}", keys(PASSWORD), MockKey(Zeroizing::new([1; 32])));
        assert_eq!(shown, "ScramKeys { iterations: 4096, .. } MockKey(<redacted>)");
    }
}
