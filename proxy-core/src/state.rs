//! Session state that moves with a client from one server connection to the next.
//!
//! A client's settings are statements to run again, in the order they were made. A server connection wears the
//! settings of the client it last served; before it serves one with others the difference is made, or it is reset and dressed
//! anew.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    sync::{Arc, LazyLock, Mutex, PoisonError, Weak},
};

use crate::mutant::{self, Mutant};

/// A client's settings that are replayed. Never empty inside an [`Arc`], and there one of its kind: equal settings of any
/// clients are the same [`Arc`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Settings {
    /// Variable in lower case, and the statement that sets it.
    made: Vec<(Box<str>, Box<str>)>,
}

impl Settings {
    /// Most settings of one client. Who wants more keeps its connection.
    pub const MOST: usize = 64;
    /// Most bytes of their statements.
    pub const MOST_BYTES: usize = 16 * 1024;

    /// These settings and one more, which takes the place of an older one of the same variable; `None` when that would
    /// be too much.
    #[must_use]
    pub fn with(before: Option<&Arc<Self>>, variable: &str, statement: &str) -> Option<Arc<Self>> {
        if let Some(before) = before
            && before.made.last().is_some_and(|(name, made)| **name == *variable && **made == *statement)
        {
            return Some(before.clone());
        }
        let mut settings = before.map(|before| Self::clone(before)).unwrap_or_default();
        settings.made.push((variable.into(), statement.into()));
        settings.prune();
        let bytes: usize = settings.made.iter().map(|(_, statement)| statement.len()).sum();
        (settings.made.len() <= Settings::MOST && bytes <= Settings::MOST_BYTES).then(|| settings.interned())
    }

    /// Takes out what has been made again since. A user variable (`@…`) is read under the settings before it, so these stay
    /// before it.
    fn prune(&mut self) {
        let mut again: Vec<Box<str>> = Vec::new();
        let mut variables: Vec<Box<str>> = Vec::new();
        let mut kept = Vec::with_capacity(self.made.len());
        for (name, statement) in std::mem::take(&mut self.made).into_iter().rev() {
            let is_variable = name.starts_with('@');
            let later = if is_variable { &mut variables } else { &mut again };
            if later.contains(&name) {
                continue;
            }
            later.push(name.clone());
            if is_variable {
                again.clear();
            }
            kept.push((name, statement));
        }
        kept.reverse();
        self.made = kept;
    }

    /// These settings without that of `variable`; `None` when nothing is left.
    #[must_use]
    pub fn without(before: &Arc<Self>, variable: &str) -> Option<Arc<Self>> {
        Self::retain(before, |name| name != variable)
    }

    /// Of these settings those whose names are to stay; `None` when nothing is left.
    #[must_use]
    pub fn retain(before: &Arc<Self>, mut stays: impl FnMut(&str) -> bool) -> Option<Arc<Self>> {
        if before.names().all(&mut stays) {
            return Some(before.clone());
        }
        let mut settings = Self::clone(before);
        settings.made.retain(|(known, _)| stays(known));
        (!settings.made.is_empty()).then(|| settings.interned())
    }

    /// Names and statements, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.made.iter().map(|(name, statement)| (&**name, &**statement))
    }

    /// Names, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.made.iter().map(|(name, _)| &**name)
    }

    /// The statements, in order.
    pub fn statements(&self) -> impl Iterator<Item = &str> {
        self.made.iter().map(|(_, statement)| &**statement)
    }

    /// The statement that sets `variable`.
    #[must_use]
    pub fn get(&self, variable: &str) -> Option<&str> {
        self.iter().find(|(name, _)| *name == variable).map(|(_, statement)| statement)
    }

    /// What is to be run where `self` stands so that `wanted` does, when `wanted` is nothing but more of the same: order
    /// and all that may depend on it stay what they were. `None` when it is not.
    #[must_use]
    pub fn continuation(&self, wanted: &Self) -> Option<Vec<String>> {
        let rest = wanted.made.strip_prefix(&self.made[..])?;
        Some(rest.iter().map(|(_, statement)| statement.to_string()).collect())
    }

    /// The one [`Arc`] of these settings.
    fn interned(self) -> Arc<Self> {
        static INTERNED: LazyLock<Mutex<Interned>> = LazyLock::new(Mutex::default);
        INTERNED.lock().unwrap_or_else(PoisonError::into_inner).intern(self)
    }
}

/// Settings that somebody has.
#[derive(Debug, Default)]
struct Interned {
    hasher: RandomState,
    entries: HashMap<u64, Vec<Weak<Settings>>>,
    /// Entries after which those that nobody has any more are thrown out.
    sweep_at: usize,
}

impl Interned {
    const SMALL: usize = 1024;

    fn intern(&mut self, settings: Settings) -> Arc<Settings> {
        let hash = self.hasher.hash_one(&settings);
        if let Some(known) = self.entries.get(&hash)
            && let Some(known) = known.iter().filter_map(Weak::upgrade).find(|known| **known == settings)
        {
            return known;
        }
        if self.entries.len() >= self.sweep_at {
            self.entries.retain(|_, known| {
                known.retain(|settings| settings.strong_count() > 0);
                !known.is_empty()
            });
            self.sweep_at = (2 * self.entries.len()).max(Self::SMALL);
        }
        let settings = Arc::new(settings);
        self.entries.entry(hash).or_default().push(Arc::downgrade(&settings));
        settings
    }
}

/// What a server connection wears.
#[derive(Debug, Clone, Default)]
pub enum Worn {
    /// What a new or reset connection has.
    #[default]
    Nothing,
    /// These settings.
    Settings(Arc<Settings>),
    /// Settings, but something has changed them in a way that was not followed.
    Uncertain,
}

impl Worn {
    /// True when a client with `settings` finds here what it expects.
    #[must_use]
    pub fn fits(&self, settings: Option<&Arc<Settings>>) -> bool {
        if mutant::is(Mutant::Labels) {
            return true;
        }
        match (self, settings) {
            (Self::Nothing, None) => true,
            (Self::Settings(worn), Some(settings)) => Arc::ptr_eq(worn, settings),
            (Self::Nothing | Self::Settings(_) | Self::Uncertain, _) => false,
        }
    }
}

impl From<Option<Arc<Settings>>> for Worn {
    fn from(settings: Option<Arc<Settings>>) -> Self {
        settings.map_or(Self::Nothing, Self::Settings)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn statements(settings: &Settings) -> Vec<&str> {
        settings.statements().collect()
    }

    #[test]
    fn the_last_setting_of_a_variable_counts_and_comes_last() {
        let a = Settings::with(None, "a", "set a = 1").expect("small");
        let ab = Settings::with(Some(&a), "b", "set b = 1").expect("small");
        let ba = Settings::with(Some(&ab), "a", "set a = 2").expect("small");
        assert_eq!(statements(&ba), ["set b = 1", "set a = 2"]);
        assert_eq!(statements(&Settings::without(&ba, "b").expect("one is left")), ["set a = 2"]);
        assert!(Settings::without(&a, "a").is_none());
    }

    #[test]
    fn too_much_is_not_kept() {
        assert!(Settings::with(None, "a", &"x".repeat(Settings::MOST_BYTES + 1)).is_none());
        let many = (0..Settings::MOST).try_fold(None, |before: Option<Arc<Settings>>, n| {
            Settings::with(before.as_ref(), &n.to_string(), "x").map(Some)
        });
        let many = many.flatten().expect("just enough");
        assert!(Settings::with(Some(&many), "one more", "x").is_none());
        assert!(Settings::with(Some(&many), "0", "y").is_some());
    }

    #[test]
    fn user_variables_keep_the_settings_under_which_they_were_read() {
        let make = |made: &[(&str, &str)]| {
            made.iter().fold(None, |before: Option<Arc<Settings>>, (name, statement)| {
                Settings::with(before.as_ref(), name, statement)
            })
        };
        let of = |made: &[(&str, &str)]| statements(&make(made).expect("small")).join(", ");
        assert_eq!(of(&[("c", "c = 1"), ("@a", "@a = 1"), ("c", "c = 2")]), "c = 1, @a = 1, c = 2");
        assert_eq!(of(&[("c", "c = 1"), ("@a", "@a"), ("c", "c = 2"), ("c", "c = 3")]), "c = 1, @a, c = 3");
        assert_eq!(of(&[("c", "c = 1"), ("@a", "@a"), ("c", "c = 2"), ("@a", "@a = 2")]), "c = 2, @a = 2");
        assert_eq!(of(&[("c", "c = 1"), ("d", "d = 1"), ("c", "c = 2")]), "d = 1, c = 2");
    }

    #[test]
    fn equal_settings_are_one() {
        let one =
            Settings::with(None, "a", "set a = 1").and_then(|a| Settings::with(Some(&a), "b", "set b = 1"));
        let more = Settings::with(one.as_ref(), "c", "set c = 1").expect("small");
        let less = Settings::without(&more, "c").expect("two are left");
        assert!(Arc::ptr_eq(&one.expect("small"), &less));
        assert!(Arc::ptr_eq(&more, &Settings::with(Some(&more), "c", "set c = 1").expect("small")));
    }

    #[test]
    fn settings_that_nobody_has_are_forgotten() {
        let mut interned = Interned::default();
        for n in 0..10 * Interned::SMALL {
            interned.intern(Settings { made: vec![("a".into(), n.to_string().into())] });
        }
        assert!(interned.entries.len() <= 2 * Interned::SMALL, "{}", interned.entries.len());
    }

    #[test]
    fn only_more_of_the_same_continues() {
        let a = Settings::with(None, "a", "set a = 1").expect("small");
        let ab = Settings::with(Some(&a), "b", "set b = 1").expect("small");
        assert_eq!(a.continuation(&ab), Some(vec!["set b = 1".to_owned()]));
        assert_eq!(ab.continuation(&a), None);
        let other = Settings::with(Some(&ab), "a", "set a = 2").expect("small");
        assert_eq!(a.continuation(&other), None);
    }

    #[test]
    fn only_equal_settings_fit() {
        let one = Settings::with(None, "a", "set a = 1");
        let same = Settings::with(None, "a", "set a = 1");
        let other = Settings::with(None, "a", "set a = 2");
        assert!(Worn::from(one.clone()).fits(same.as_ref()));
        assert!(!Worn::from(one.clone()).fits(other.as_ref()));
        assert!(!Worn::from(one.clone()).fits(None));
        assert!(!Worn::Nothing.fits(one.as_ref()));
        assert!(Worn::Nothing.fits(None));
        assert!(!Worn::Uncertain.fits(one.as_ref()) && !Worn::Uncertain.fits(None));
    }
}
