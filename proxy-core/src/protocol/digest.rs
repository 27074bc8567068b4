//! What digests of statement texts are made with, in both dialects.

use std::hash::{BuildHasher, Hasher};

use quick_cache::{UnitWeighter, sync::DefaultLifecycle};
use siphasher::sip128::{Hasher128, SipHasher24};

/// What is known by digest, within bounds.
pub(super) type Cache<T> = quick_cache::sync::Cache<u128, T, UnitWeighter, DigestBits>;

/// A cache of up to `capacity` digests, one at least.
pub(super) fn cache<T: Clone>(capacity: usize) -> Cache<T> {
    let capacity = capacity.max(1);
    Cache::with(capacity, capacity as u64, UnitWeighter, DigestBits, DefaultLifecycle::default())
}

/// A hasher with a random key of its own, so that no client can foresee a digest.
///
/// # Panics
/// When the operating system has no random numbers to give.
pub(super) fn keyed_hasher() -> SipHasher24 {
    let mut key = [0; 16];
    getrandom::fill(&mut key).expect("the operating system gives random numbers");
    SipHasher24::new_with_key(&key)
}

/// Longest hint.
const MAX_HINT_BYTES: usize = 64;

/// The word that `text` starts with, the rest of a comment after `pinion:`.
pub(super) fn hint_word(text: &[u8]) -> &str {
    let end = text
        .iter()
        .position(|byte| !matches!(byte, b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'-'))
        .unwrap_or(text.len());
    std::str::from_utf8(&text[..end.min(MAX_HINT_BYTES)]).unwrap_or("")
}

/// Gathers small pieces before they are hashed: the hash is at its best with many bytes at once.
pub(super) struct Sink {
    hasher: SipHasher24,
    buffer: [u8; 256],
    filled: usize,
}

impl Sink {
    pub(super) fn new(hasher: SipHasher24) -> Self {
        Self { hasher, buffer: [0; 256], filled: 0 }
    }

    #[inline]
    pub(super) fn byte(&mut self, byte: u8) {
        if self.filled == self.buffer.len() {
            self.flush();
        }
        self.buffer[self.filled] = byte;
        self.filled += 1;
    }

    #[inline]
    pub(super) fn lower_case(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        loop {
            let room = &mut self.buffer[self.filled..];
            let now = rest.len().min(room.len());
            for (to, from) in room.iter_mut().zip(rest) {
                *to = from.to_ascii_lowercase();
            }
            self.filled += now;
            rest = &rest[now..];
            if rest.is_empty() {
                return;
            }
            self.flush();
        }
    }

    #[inline]
    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        if bytes.len() > self.buffer.len() - self.filled {
            self.flush();
        }
        match self.buffer.get_mut(self.filled..self.filled + bytes.len()) {
            Some(room) => {
                room.copy_from_slice(bytes);
                self.filled += bytes.len();
            }
            None => self.hasher.write(bytes),
        }
    }

    fn flush(&mut self) {
        self.hasher.write(&self.buffer[..self.filled]);
        self.filled = 0;
    }

    pub(super) fn finish(mut self) -> u128 {
        self.flush();
        self.hasher.finish128().as_u128()
    }
}

/// Digests are keyed hashes already: their low half is taken as it is.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct DigestBits;

impl BuildHasher for DigestBits {
    type Hasher = LowHalf;

    fn build_hasher(&self) -> LowHalf {
        LowHalf(0)
    }
}

pub(super) struct LowHalf(u64);

impl Hasher for LowHalf {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u128(&mut self, digest: u128) {
        self.0 = digest as u64;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
