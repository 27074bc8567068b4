//! What a plugin asks for.

use crate::{StatementKind, flags::flags};

flags! {
    /// What a plugin wants to see of a statement, and to be able to do. What is not asked for is empty in [`Query`](crate::Query).
    pub Needs: u8 {
        /// The text as the client sent it.
        TEXT = 0,
        /// The text with literals as `$n`.
        NORMALISED = 1,
        /// Tables and views named in it.
        TABLES = 2,
        /// Functions called.
        FUNCTIONS = 3,
        /// Session variables set.
        VARIABLES = 4,
        /// To answer [`QueryVerdict::Rewrite`](crate::QueryVerdict::Rewrite). Such a plugin is asked when a statement
        /// is prepared, too.
        REWRITE = 5,
    }
}

flags! {
    /// What a verdict depends on. The host then keeps it and does not ask again for the same values; it passes these
    /// alone, and the rest of [`Query`](crate::Query) is empty, false or `other`.
    ///
    /// Never kept are rewrites, verdicts that carry text (a rejection, a target's name), and those of a call that used
    /// [`store`](crate::store), [`clock`](crate::clock) or [`audit`](crate::audit). Fields of the plugin are invisible
    /// to the host: a plugin that counts in them must not cache.
    pub CacheBy: u16 {
        /// The language.
        DIALECT = 0,
        /// The text without its literals, and with it all that follows from that: tables, functions, variables,
        /// normalised text. The text itself is not passed.
        DIGEST = 1,
        /// The kind of statement.
        KIND = 2,
        /// The database user.
        USER = 3,
        /// The database.
        DATABASE = 4,
        /// The proxy's endpoint.
        ENDPOINT = 5,
        /// What the client calls itself.
        APPLICATION = 6,
        /// The hint comment.
        HINT = 7,
        /// All facts that are true or false, [`in_transaction`](crate::Query::in_transaction) among them.
        FACTS = 8,
    }
}

/// The hooks, to subscribe to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Hook {
    /// [`Plugin::on_query`](crate::Plugin::on_query).
    Query,
    /// [`Plugin::on_route`](crate::Plugin::on_route).
    Route,
    /// [`Plugin::on_pin`](crate::Plugin::on_pin).
    Pin,
    /// [`Plugin::on_events`](crate::Plugin::on_events).
    Events,
}

/// Which calls of one hook are wanted. The host filters before it calls; what nobody subscribed to costs nothing.
///
/// ```
/// use pinion_plugin::{CacheBy, StatementKind, Subscription};
///
/// let writes_of_app = Subscription::on_query()
///     .kinds([StatementKind::Write, StatementKind::Copy])
///     .users(["app"])
///     .cache_by(CacheBy::DIGEST | CacheBy::DATABASE);
/// assert!(writes_of_app.wants(StatementKind::Copy, "app", "orders", "default"));
/// assert!(!writes_of_app.wants(StatementKind::Select, "app", "orders", "default"));
/// // It could not be read, so it may be a write.
/// assert!(writes_of_app.wants(StatementKind::Unknown, "app", "orders", "default"));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "a subscription counts only when it is returned from `subscriptions`"]
pub struct Subscription {
    pub(crate) hook: Hook,
    pub(crate) kinds: Vec<StatementKind>,
    pub(crate) users: Vec<String>,
    pub(crate) databases: Vec<String>,
    pub(crate) endpoints: Vec<String>,
    pub(crate) cache_by: CacheBy,
}

impl Subscription {
    const fn to(hook: Hook) -> Self {
        Self {
            hook,
            kinds: Vec::new(),
            users: Vec::new(),
            databases: Vec::new(),
            endpoints: Vec::new(),
            cache_by: CacheBy::NONE,
        }
    }

    /// Every statement before it goes to a server.
    pub const fn on_query() -> Self {
        Self::to(Hook::Query)
    }

    /// Every borrow of a server connection.
    pub const fn on_route() -> Self {
        Self::to(Hook::Route)
    }

    /// Every pin.
    pub const fn on_pin() -> Self {
        Self::to(Hook::Pin)
    }

    /// Everything that has happened.
    pub const fn on_events() -> Self {
        Self::to(Hook::Events)
    }

    /// Only for statements of these kinds; none for all. Before it runs, one of kind
    /// [`Unknown`](StatementKind::Unknown) always comes as well, since it may be anything: see
    /// [`Query::kind`](crate::Query::kind) where that makes a difference.
    pub fn kinds(mut self, kinds: impl IntoIterator<Item = StatementKind>) -> Self {
        self.kinds.extend(kinds);
        self
    }

    /// Only for these database users; none for all.
    pub fn users(mut self, users: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.users.extend(users.into_iter().map(Into::into));
        self
    }

    /// Only in these databases; none for all.
    pub fn databases(mut self, databases: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.databases.extend(databases.into_iter().map(Into::into));
        self
    }

    /// Only for clients of these endpoints of the proxy; none for all.
    pub fn endpoints(mut self, endpoints: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.endpoints.extend(endpoints.into_iter().map(Into::into));
        self
    }

    /// The verdict depends on these alone, so that the host may keep it. See [`CacheBy`].
    pub const fn cache_by(mut self, fields: CacheBy) -> Self {
        self.cache_by = fields;
        self
    }

    /// The hook.
    #[must_use]
    pub const fn hook(&self) -> Hook {
        self.hook
    }

    /// Whether a statement like this would be passed to the hook.
    #[must_use]
    pub fn wants(&self, kind: StatementKind, user: &str, database: &str, endpoint: &str) -> bool {
        let among = |list: &[String], name: &str| list.is_empty() || list.iter().any(|one| one == name);
        let unread = kind == StatementKind::Unknown && self.hook != Hook::Events;
        (self.kinds.is_empty() || unread || self.kinds.contains(&kind))
            && among(&self.users, user)
            && among(&self.databases, database)
            && among(&self.endpoints, endpoint)
    }
}
