//! Which statements a plugin wants to be asked about; looked at before anything enters it.

use std::sync::Arc;

use super::{
    Ask, SessionNames,
    generation::kind,
    names::{Name, Names},
    wit::{CacheField, Subscription},
};

/// One subscription.
#[derive(Debug)]
pub(super) struct Filter {
    /// A bit for each kind; all of them when none was named.
    kinds: u16,
    // Empty wants everyone.
    users: Box<[Name]>,
    databases: Box<[Name]>,
    endpoints: Box<[Name]>,
    /// By what a verdict may be kept.
    pub(super) cache_by: Option<CacheField>,
}

impl Filter {
    pub(super) fn new(subscription: &Subscription, names: &Arc<Names>) -> Self {
        let kinds = subscription.kinds.iter().fold(0, |bits, kind| bits | 1 << *kind as u16);
        let hold = |wanted: &[String]| wanted.iter().map(|name| names.hold(name)).collect();
        let by = subscription.cache_by;
        Self {
            kinds: if kinds == 0 { u16::MAX } else { kinds },
            users: hold(&subscription.users),
            databases: hold(&subscription.databases),
            endpoints: hold(&subscription.endpoints),
            cache_by: (by.as_array()[0] != 0).then_some(by),
        }
    }

    /// In words, for a person.
    pub(super) fn describe(&self) -> String {
        let mut parts = Vec::new();
        if self.kinds != u16::MAX {
            parts.push(format!("{} kinds of statements", self.kinds.count_ones()));
        }
        for (what, names) in
            [("users", &self.users), ("databases", &self.databases), ("endpoints", &self.endpoints)]
        {
            if !names.is_empty() {
                parts.push(format!("{} {what}", names.len()));
            }
        }
        if parts.is_empty() { "everything".into() } else { parts.join(", ") }
    }

    /// Whether this subscription covers a statement.
    pub(super) fn wants(&self, ask: &Ask<'_>) -> bool {
        self.kinds & 1 << kind(ask.facts.kind) as u16 != 0 && self.wants_session(ask.names)
    }

    /// Whether it covers a session's statements at all.
    pub(super) fn wants_session(&self, names: &SessionNames) -> bool {
        let among = |wanted: &[Name], id: u32| wanted.is_empty() || wanted.iter().any(|name| name.id() == id);
        among(&self.users, names.user)
            && among(&self.databases, names.database)
            && among(&self.endpoints, names.endpoint)
    }
}
