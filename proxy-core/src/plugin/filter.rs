//! Which statements a plugin wants to be asked about; looked at before anything enters it.

use std::sync::Arc;

use super::{
    Ask, SessionNames,
    generation::kind,
    names::{Name, Names},
    wit::{CacheField, HookName, StatementKind, Subscription},
};

/// One subscription.
#[derive(Debug)]
pub(super) struct Filter {
    /// A bit for each kind that passes; all of them when none was named.
    kinds: u16,
    /// How many were named.
    named_kinds: u32,
    // Empty wants everyone.
    users: Box<[Name]>,
    databases: Box<[Name]>,
    endpoints: Box<[Name]>,
    /// By what a verdict may be kept.
    pub(super) cache_by: Option<CacheField>,
}

impl Filter {
    pub(super) fn new(subscription: &Subscription, names: &Arc<Names>) -> Self {
        let bit = |kind: StatementKind| 1_u16 << kind as u16;
        let named = subscription.kinds.iter().fold(0, |bits, kind| bits | bit(*kind));
        // A text that could not be read may be of any kind: a plugin that decides by kind must not be got round with
        // one. What is over is told as what it was.
        let unread = if subscription.hook == HookName::Events { 0 } else { bit(StatementKind::Unknown) };
        let hold = |wanted: &[String]| wanted.iter().map(|name| names.hold(name)).collect();
        let by = subscription.cache_by;
        Self {
            kinds: if named == 0 { u16::MAX } else { named | unread },
            named_kinds: named.count_ones(),
            users: hold(&subscription.users),
            databases: hold(&subscription.databases),
            endpoints: hold(&subscription.endpoints),
            cache_by: (by.as_array()[0] != 0).then_some(by),
        }
    }

    /// In words, for a person.
    pub(super) fn describe(&self) -> String {
        let mut parts = Vec::new();
        if self.named_kinds != 0 {
            parts.push(format!("{} kinds of statements", self.named_kinds));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        plugin::wit::CacheField,
        protocol::{Dialect, Facts, StatementKind as Kind},
    };

    fn passes(hook: HookName, kinds: &[StatementKind], users: &[&str], kind: Kind) -> bool {
        let names = Names::new();
        let subscription = Subscription {
            hook,
            kinds: kinds.to_vec(),
            users: users.iter().map(|user| (*user).to_owned()).collect(),
            databases: Vec::new(),
            endpoints: Vec::new(),
            cache_by: CacheField::empty(),
        };
        let filter = Filter::new(&subscription, &names);
        let user = names.hold("app");
        let facts = Facts { kind, ..Facts::unknown(String::new()) };
        filter.wants(&Ask {
            names: &SessionNames { user: user.id(), ..SessionNames::none(1) },
            dialect: Dialect::Postgresql,
            digest: 0,
            facts: &facts,
            text: b"",
            hint: "",
            in_transaction: false,
            prepares: false,
        })
    }

    #[test]
    fn what_could_not_be_read_passes_every_filter_by_kind_before_it_runs() {
        let ddl = &[StatementKind::Ddl];
        for hook in [HookName::Query, HookName::Route, HookName::Pin] {
            assert!(passes(hook, ddl, &[], Kind::Ddl));
            assert!(passes(hook, ddl, &[], Kind::Unknown));
            assert!(passes(hook, ddl, &["app"], Kind::Unknown));
            assert!(!passes(hook, ddl, &["other"], Kind::Unknown), "users filter all the same");
            assert!(!passes(hook, ddl, &[], Kind::Select));
            assert!(!passes(hook, ddl, &[], Kind::Other));
        }
        assert!(!passes(HookName::Events, ddl, &[], Kind::Unknown));
        assert!(passes(HookName::Events, &[StatementKind::Unknown], &[], Kind::Unknown));
        assert!(passes(HookName::Events, &[], &[], Kind::Unknown));
    }
}
