//! Bytes: messages and their pieces, and numbers that look random.
//! Shapes are those of the PostgreSQL manual, "Message Formats".

use std::sync::{Arc, OnceLock};

use pinion::{protocol::MockKey, secrets::Secret};
use zeroize::Zeroizing;

/// The user whose password both sides know.
pub const USER: &str = "app";
/// That password.
pub const PASSWORD: &str = "correct horse";
/// A tls-server-end-point hash.
pub const END_POINT: &[u8] = &[7; 32];

/// Protocol version 3.0, the code in a StartupMessage.
pub const PROTOCOL_3_0: u32 = 3 << 16;
/// Code of a CancelRequest.
pub const CANCEL_REQUEST: u32 = 80_877_102;
/// Code of an SSLRequest.
pub const SSL_REQUEST: u32 = 80_877_103;
/// Code of a GSSENCRequest.
pub const GSSENC_REQUEST: u32 = 80_877_104;

/// xorshift64*: the same numbers for the same seed, everywhere.
pub struct Random(u64);

impl Random {
    /// Any seed will do.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// The next number.
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number under `n`, which is not 0.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() >> 33) as usize % n
    }

    /// So many bytes.
    pub fn bytes(&mut self, n: usize) -> Vec<u8> {
        (0..n).map(|_| (self.next() >> 56) as u8).collect()
    }
}

/// How a stream of bytes is cut into reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// Not at all.
    Whole,
    /// Before every byte.
    Bytes,
    /// At places that follow from the seed.
    Random(u64),
}

impl Cut {
    /// The pieces of `bytes`, none of them empty.
    pub fn pieces(self, bytes: &[u8]) -> Vec<&[u8]> {
        match self {
            Self::Whole if bytes.is_empty() => Vec::new(),
            Self::Whole => vec![bytes],
            Self::Bytes => bytes.chunks(1).collect(),
            Self::Random(seed) => {
                let mut random = Random::new(seed ^ bytes.len() as u64);
                let mut pieces = Vec::new();
                let mut rest = bytes;
                while !rest.is_empty() {
                    let (piece, after) = rest.split_at(rest.len().min(1 + random.below(24)));
                    pieces.push(piece);
                    rest = after;
                }
                pieces
            }
        }
    }
}

/// The first `N` bytes, zeros where there are fewer, and what follows them.
pub fn split<const N: usize>(data: &[u8]) -> ([u8; N], &[u8]) {
    let mut head = [0; N];
    let n = data.len().min(N);
    head[..n].copy_from_slice(&data[..n]);
    (head, &data[n..])
}

/// `len: u32, itself included | code: u32 | body`.
pub fn packet(code: u32, body: &[u8]) -> Vec<u8> {
    let len = u32::try_from(body.len() + 8).expect("packets made here are short");
    [&len.to_be_bytes(), &code.to_be_bytes(), body].concat()
}

/// `tag: u8 | len: u32, itself included | body`.
pub fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let len = u32::try_from(body.len() + 4).expect("messages made here are short");
    [&[tag], &len.to_be_bytes()[..], body].concat()
}

/// Each part with a zero after it.
pub fn strings(parts: &[&[u8]]) -> Vec<u8> {
    parts.iter().flat_map(|part| part.iter().copied().chain([0])).collect()
}

/// Authentication request `code` with its data.
pub fn authentication(code: i32, data: &[u8]) -> Vec<u8> {
    message(b'R', &[&code.to_be_bytes(), data].concat())
}

/// Whole messages, tag and body, and the bytes behind them.
pub type Messages<'a> = (Vec<(u8, &'a [u8])>, &'a [u8]);

/// Splits whole messages off the front: tag and body of each, and what is left. `Err` for a length no message has.
pub fn messages(mut bytes: &[u8]) -> Result<Messages<'_>, String> {
    let mut found = Vec::new();
    while let Some(&[tag, a, b, c, d]) = bytes.first_chunk() {
        let len = u32::from_be_bytes([a, b, c, d]) as usize;
        if !(4..0x4000_0003).contains(&len) {
            return Err(format!("{:?} with length {len}", char::from(tag)));
        }
        let Some(body) = bytes.get(5..=len) else { break };
        found.push((tag, body));
        bytes = &bytes[len + 1..];
    }
    Ok((found, bytes))
}

/// A zero-terminated string and what follows it.
pub fn string(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = bytes.iter().position(|byte| *byte == 0)?;
    Some((&bytes[..end], &bytes[end + 1..]))
}

/// Messages of a login in one line each; what is random in them shows as its length only.
pub fn login_messages(bytes: &[u8]) -> Vec<String> {
    let (found, rest) = messages(bytes).expect("what we write is well-formed");
    assert!(rest.is_empty(), "half a message: {}", rest.escape_ascii());
    found
        .into_iter()
        .map(|(tag, body)| {
            let shown = match (tag, body.first_chunk()) {
                (b'R', Some(code)) if matches!(i32::from_be_bytes(*code), 5 | 11 | 12) => 4,
                (b'p', _) => string(body).map_or(0, |(name, _)| if name.len() < 20 { name.len() } else { 0 }),
                _ => body.len(),
            };
            format!("{} {} {}", char::from(tag), body.len(), body[..shown].escape_ascii())
        })
        .collect()
}

/// [`USER`]'s secret.
pub fn secret() -> Arc<Secret> {
    static SECRET: OnceLock<Arc<Secret>> = OnceLock::new();
    let make = || Secret::new(USER.to_owned(), Zeroizing::new(PASSWORD.to_owned()));
    SECRET.get_or_init(|| Arc::new(make().expect("a good name and password"))).clone()
}

/// What unknown users are answered with.
pub fn mock() -> &'static MockKey {
    static MOCK: OnceLock<MockKey> = OnceLock::new();
    MOCK.get_or_init(|| MockKey::random().expect("the operating system gives random numbers"))
}
