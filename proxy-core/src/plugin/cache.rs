//! Verdicts that are kept, one table an instance.

use std::collections::HashMap;

use foldhash::fast::RandomState;

use super::instance::Failure;

/// Verdicts kept by one instance; when there are more, all are forgotten.
const ENTRIES: usize = 16 * 1024;
/// Variables of `on-pin` that have a number.
const SUBJECTS: usize = 1_024;
/// One in so many hits is asked again.
const RECHECK: u32 = 1_024;

/// All that a kept verdict depends on. Compared in full, so that a hash that collides shows nobody another's verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) digest: u128,
    pub(super) user: u32,
    pub(super) database: u32,
    pub(super) endpoint: u32,
    pub(super) application: u32,
    pub(super) hint: u32,
    pub(super) subject: u32,
    pub(super) hook: u8,
    pub(super) dialect: u8,
    pub(super) kind: u8,
    pub(super) facts: u8,
    pub(super) reason: u8,
}

/// A verdict that may be one without text, and then can be kept.
pub(super) trait Kept: Sized + PartialEq {
    /// A small number for it; `None` when it carries text.
    fn code(&self) -> Option<u8>;
    /// The verdict of that number.
    fn of(code: u8) -> Self;
}

/// What the cache says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// Use this.
    Hit(u8),
    /// Ask, and see whether it is still this.
    Recheck(u8),
    /// Ask.
    Miss,
}

/// The verdicts of one instance.
#[derive(Debug, Default)]
pub(super) struct Cache {
    // Seeded at random, since what decides a key comes from clients; the standard hasher takes longer than all the rest
    // of a hit.
    verdicts: HashMap<Key, u8, RandomState>,
    subjects: HashMap<Box<str>, u32>,
    hits: u32,
}

impl Cache {
    pub(super) fn find(&mut self, key: &Key) -> Found {
        let Some(&code) = self.verdicts.get(key) else { return Found::Miss };
        self.hits = self.hits.wrapping_add(1);
        if self.hits.is_multiple_of(RECHECK) { Found::Recheck(code) } else { Found::Hit(code) }
    }

    pub(super) fn keep(&mut self, key: Key, code: u8) {
        if self.verdicts.len() >= ENTRIES {
            self.verdicts.clear();
        }
        self.verdicts.insert(key, code);
    }

    pub(super) fn clear(&mut self) {
        self.verdicts = HashMap::default();
    }

    /// A number for a variable's name; `None` when there are too many.
    pub(super) fn subject(&mut self, subject: &str) -> Option<u32> {
        if subject.is_empty() {
            return Some(0);
        }
        if let Some(&number) = self.subjects.get(subject) {
            return Some(number);
        }
        if self.subjects.len() >= SUBJECTS {
            return None;
        }
        let number = self.subjects.len() as u32 + 1;
        self.subjects.insert(subject.into(), number);
        Some(number)
    }
}

/// What came of asking one plugin.
#[derive(Debug)]
pub(super) enum Asked<V> {
    /// It did not subscribe to this.
    Unwanted,
    /// A verdict that it gave earlier.
    Kept(V),
    /// Its verdict.
    Verdict(V),
    /// It failed.
    Failed(Failure),
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: Key = Key {
        digest: 1,
        user: 0,
        database: 0,
        endpoint: 0,
        application: 0,
        hint: 0,
        subject: 0,
        hook: 0,
        dialect: 0,
        kind: 0,
        facts: 0,
        reason: 0,
    };

    #[test]
    fn every_field_of_the_key_tells_verdicts_apart() {
        let mut cache = Cache::default();
        cache.keep(KEY, 7);
        assert_eq!(cache.find(&KEY), Found::Hit(7));
        for other in [
            Key { digest: 1 << 64 | 1, ..KEY },
            Key { user: 1, ..KEY },
            Key { database: 1, ..KEY },
            Key { endpoint: 1, ..KEY },
            Key { application: 1, ..KEY },
            Key { hint: 1, ..KEY },
            Key { subject: 1, ..KEY },
            Key { hook: 1, ..KEY },
            Key { dialect: 1, ..KEY },
            Key { kind: 1, ..KEY },
            Key { facts: 1, ..KEY },
            Key { reason: 1, ..KEY },
        ] {
            assert_eq!(cache.find(&other), Found::Miss, "{other:?}");
        }
        cache.clear();
        assert_eq!(cache.find(&KEY), Found::Miss);
    }

    #[test]
    fn one_hit_in_1024_is_asked_again() {
        let mut cache = Cache::default();
        cache.keep(KEY, 0);
        let again = (0..10 * RECHECK).filter(|_| cache.find(&KEY) == Found::Recheck(0)).count();
        assert_eq!(again, 10);
    }

    #[test]
    fn it_is_bounded() {
        let mut cache = Cache::default();
        for digest in 0..3 * ENTRIES as u128 {
            cache.keep(Key { digest, ..KEY }, 0);
            assert!(cache.verdicts.len() <= ENTRIES);
        }
        let numbers: Vec<_> = (0..SUBJECTS + 1).map(|n| cache.subject(&n.to_string())).collect();
        assert!(numbers[..SUBJECTS].iter().all(Option::is_some));
        assert_eq!(numbers[SUBJECTS], None);
        assert_eq!(cache.subject("0"), Some(1));
    }
}
