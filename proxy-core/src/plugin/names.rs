//! Names as plugins know them: numbers, resolved once.
//!
//! A name keeps its number while anyone holds it, and no number is ever given twice, so that a verdict cached for one
//! user can never be taken for another's. What nobody holds is forgotten, so clients cannot fill the memory with names.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

/// Hints that get a number; others are told as none. They come out of statement texts, which clients choose.
const MAX_HINTS: usize = 256;

/// All names in use.
#[derive(Debug)]
pub(super) struct Names {
    inner: Mutex<Inner>,
    hints: Mutex<HashMap<Box<str>, Name>>,
}

#[derive(Debug)]
struct Inner {
    by_name: HashMap<Arc<str>, Weak<Entry>>,
    by_id: HashMap<u32, Weak<Entry>>,
    /// The last one given; 0 is the empty name.
    last: u32,
}

/// A name that is held.
#[derive(Debug, Clone, Default)]
pub(super) struct Name(Option<Arc<Entry>>);

#[derive(Debug)]
struct Entry {
    id: u32,
    name: Arc<str>,
    names: Weak<Names>,
}

impl Name {
    /// 0 for the empty name, and for one that came after all numbers were used up.
    pub(super) fn id(&self) -> u32 {
        self.0.as_ref().map_or(0, |entry| entry.id)
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let Some(names) = self.names.upgrade() else { return };
        let mut inner = names.lock();
        inner.by_id.remove(&self.id);
        // The same name may have been taken anew in the meantime, under another number.
        if inner.by_name.get(&self.name).is_some_and(|entry| entry.strong_count() == 0) {
            inner.by_name.remove(&self.name);
        }
    }
}

impl Names {
    pub(super) fn new() -> Arc<Self> {
        let inner = Inner { by_name: HashMap::new(), by_id: HashMap::new(), last: 0 };
        Arc::new(Self { inner: Mutex::new(inner), hints: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The number of `name`, held by what is returned.
    pub(super) fn hold(self: &Arc<Self>, name: &str) -> Name {
        if name.is_empty() {
            return Name(None);
        }
        let mut inner = self.lock();
        if let Some(entry) = inner.by_name.get(name).and_then(Weak::upgrade) {
            return Name(Some(entry));
        }
        let Some(id) = inner.last.checked_add(1) else { return Name(None) };
        inner.last = id;
        let name: Arc<str> = name.into();
        let entry = Arc::new(Entry { id, name: name.clone(), names: Arc::downgrade(self) });
        inner.by_id.insert(id, Arc::downgrade(&entry));
        inner.by_name.insert(name, Arc::downgrade(&entry));
        Name(Some(entry))
    }

    /// The number of a hint, kept for good; 0 beyond the first [`MAX_HINTS`].
    pub(super) fn hint(self: &Arc<Self>, hint: &str) -> u32 {
        if hint.is_empty() {
            return 0;
        }
        let mut hints = self.hints.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(name) = hints.get(hint) {
            return name.id();
        }
        if hints.len() >= MAX_HINTS {
            return 0;
        }
        let name = self.hold(hint);
        let id = name.id();
        hints.insert(hint.into(), name);
        id
    }

    /// The name behind a number, while anyone holds it.
    pub(super) fn resolve(&self, id: u32) -> Option<Arc<str>> {
        let entry = self.lock().by_id.get(&id)?.upgrade()?;
        Some(entry.name.clone())
    }

    #[cfg(test)]
    fn len(&self) -> (usize, usize) {
        let inner = self.lock();
        (inner.by_name.len(), inner.by_id.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_one_number_while_it_is_held_and_never_the_same_again() {
        let names = Names::new();
        let (first, second) = (names.hold("app"), names.hold("app"));
        assert_eq!(first.id(), second.id());
        assert_ne!(first.id(), names.hold("other").id());
        assert_eq!(names.resolve(first.id()).as_deref(), Some("app"));
        let old = first.id();
        drop(first);
        assert_eq!(names.resolve(old).as_deref(), Some("app"));
        drop(second);
        assert_eq!(names.resolve(old), None);
        assert_ne!(names.hold("app").id(), old);
        assert_eq!(names.len(), (0, 0));
    }

    #[test]
    fn the_empty_name_is_number_0_and_so_are_names_beyond_the_last_number() {
        let names = Names::new();
        assert_eq!(names.hold("").id(), 0);
        assert_eq!(names.resolve(0), None);
        names.lock().last = u32::MAX - 1;
        let last = names.hold("last");
        assert_eq!(last.id(), u32::MAX);
        assert_eq!(names.hold("late").id(), 0);
        assert_eq!(names.hold("last").id(), u32::MAX);
    }

    #[test]
    fn hints_are_kept_up_to_a_bound() {
        let names = Names::new();
        let first = names.hint("writer");
        assert_ne!(first, 0);
        for n in 0..2 * MAX_HINTS {
            names.hint(&n.to_string());
        }
        assert_eq!(names.hint("writer"), first);
        assert_eq!(names.hint("one-more"), 0);
        assert_eq!(names.resolve(first).as_deref(), Some("writer"));
        assert_eq!(names.len().0, MAX_HINTS);
    }
}
