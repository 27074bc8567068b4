//! One statement, as a hook sees it.

use std::{cell::OnceCell, rc::Rc};

#[cfg(not(target_arch = "wasm32"))]
use crate::{CacheBy, Needs};
use crate::{Dialect, StatementKind, flags::flags, host};

flags! {
    /// Facts that are true of a statement.
    pub(crate) Facts: u8 {
        /// See [`Query::read_only`].
        READ_ONLY = 0,
        /// See [`Query::in_transaction`].
        IN_TRANSACTION = 1,
        /// See [`Query::multiple`].
        MULTIPLE = 2,
        /// See [`Query::locks_rows`].
        LOCKS_ROWS = 3,
        /// See [`Query::writes`].
        WRITES = 4,
        /// See [`Query::calls_acting_function`].
        CALLS_ACTING_FUNCTION = 5,
        /// See [`Query::calls_unknown_function`].
        CALLS_UNKNOWN_FUNCTION = 6,
        /// See [`Query::prepares`].
        PREPARES = 7,
    }
}

/// A name of the host's catalogue: its number, and its text once somebody asked.
#[derive(Debug, Clone, Default)]
pub(crate) struct Name {
    id: u32,
    text: OnceCell<Rc<str>>,
}

impl Name {
    #[cfg(target_arch = "wasm32")]
    /// The name with this number; 0 is the empty one.
    pub(crate) fn of(id: u32) -> Self {
        Self { id, text: OnceCell::new() }
    }

    #[cfg(not(target_arch = "wasm32"))]
    pub(crate) fn known(text: &str) -> Self {
        // The number only has to differ from 0, which stands for the empty name.
        Self { id: u32::from(!text.is_empty()), text: OnceCell::from(Rc::from(text)) }
    }

    pub(crate) fn text(&self) -> &str {
        if self.id == 0 {
            return "";
        }
        self.text.get_or_init(|| host::name(self.id))
    }
}

/// What a plugin asked for with [`Needs`]; the rest is empty.
#[derive(Debug, Clone, Default)]
pub(crate) struct Detail {
    pub(crate) text: String,
    pub(crate) normalised: String,
    pub(crate) tables: Vec<String>,
    pub(crate) functions: Vec<String>,
    pub(crate) variables: Vec<String>,
}

/// One statement that is about to run (or has run), as far as the host knows it.
///
/// Names come from the host when they are first asked for and are remembered. In a subscription with
/// [`cache_by`](crate::Subscription::cache_by), what was not named there is empty, false or `other`.
#[derive(Debug, Clone)]
pub struct Query {
    pub(crate) session: u64,
    pub(crate) digest: u128,
    pub(crate) dialect: Dialect,
    pub(crate) kind: StatementKind,
    pub(crate) facts: Facts,
    pub(crate) user: Name,
    pub(crate) database: Name,
    pub(crate) endpoint: Name,
    pub(crate) application: Name,
    pub(crate) client: Name,
    pub(crate) hint: Name,
    pub(crate) detail: Detail,
}

impl Query {
    /// Number of the client's session, never used again while the host runs.
    #[must_use]
    pub fn session(&self) -> u64 {
        self.session
    }

    /// A keyed hash of the text without literals, comments and white space. It means nothing after the host's end.
    #[must_use]
    pub fn digest(&self) -> u128 {
        self.digest
    }

    /// The language of the text.
    #[must_use]
    pub fn dialect(&self) -> Dialect {
        self.dialect
    }

    /// What kind of statement it is.
    #[must_use]
    pub fn kind(&self) -> StatementKind {
        self.kind
    }

    /// The database user.
    #[must_use]
    pub fn user(&self) -> &str {
        self.user.text()
    }

    /// The database, or schema in MySQL's sense.
    #[must_use]
    pub fn database(&self) -> &str {
        self.database.text()
    }

    /// The proxy's endpoint by which the client came in.
    #[must_use]
    pub fn endpoint(&self) -> &str {
        self.endpoint.text()
    }

    /// What the client calls itself (`application_name`, `program_name`). The client's word, not proved.
    #[must_use]
    pub fn application(&self) -> &str {
        self.application.text()
    }

    /// The client's network address without its port.
    #[must_use]
    pub fn client(&self) -> &str {
        self.client.text()
    }

    /// The word after `pinion:` in a comment of the text, such as `writer` in `/* pinion:writer */`.
    #[must_use]
    pub fn hint(&self) -> &str {
        self.hint.text()
    }

    /// It provably writes nothing: it reads, takes no row locks, and calls only built-in functions that do nothing but
    /// compute.
    #[must_use]
    pub fn read_only(&self) -> bool {
        self.facts.contains(Facts::READ_ONLY)
    }

    /// The session is inside a transaction that it opened before this statement.
    #[must_use]
    pub fn in_transaction(&self) -> bool {
        self.facts.contains(Facts::IN_TRANSACTION)
    }

    /// The text holds several statements.
    #[must_use]
    pub fn multiple(&self) -> bool {
        self.facts.contains(Facts::MULTIPLE)
    }

    /// It takes row locks: `FOR UPDATE`, `FOR SHARE` and the like.
    #[must_use]
    pub fn locks_rows(&self) -> bool {
        self.facts.contains(Facts::LOCKS_ROWS)
    }

    /// It writes: `INSERT` and the like anywhere in it, also inside a common table expression.
    #[must_use]
    pub fn writes(&self) -> bool {
        self.facts.contains(Facts::WRITES)
    }

    /// It calls a function that the host knows to act beyond computing (`nextval`, `pg_advisory_lock`).
    #[must_use]
    pub fn calls_acting_function(&self) -> bool {
        self.facts.contains(Facts::CALLS_ACTING_FUNCTION)
    }

    /// It calls a function that the host does not know, a user's own for one.
    #[must_use]
    pub fn calls_unknown_function(&self) -> bool {
        self.facts.contains(Facts::CALLS_UNKNOWN_FUNCTION)
    }

    /// It is only prepared now and does not run yet. Seen by plugins with [`Needs::REWRITE`] alone.
    #[must_use]
    pub fn prepares(&self) -> bool {
        self.facts.contains(Facts::PREPARES)
    }

    /// The text as the client sent it, bytes that are no UTF-8 replaced. Needs [`Needs::TEXT`].
    #[must_use]
    pub fn text(&self) -> &str {
        &self.detail.text
    }

    /// The text with literals as `$n`, comments left out, white space made one space; at most 1,024 bytes. Needs
    /// [`Needs::NORMALISED`].
    #[must_use]
    pub fn normalised(&self) -> &str {
        &self.detail.normalised
    }

    /// Tables and views named in it, `schema.name` or `name`, in the case the database would look for. Needs
    /// [`Needs::TABLES`].
    #[must_use]
    pub fn tables(&self) -> &[String] {
        &self.detail.tables
    }

    /// Functions called, `schema.name` or `name`. Needs [`Needs::FUNCTIONS`].
    #[must_use]
    pub fn functions(&self) -> &[String] {
        &self.detail.functions
    }

    /// Session variables set, in lower case. Needs [`Needs::VARIABLES`].
    #[must_use]
    pub fn variables(&self) -> &[String] {
        &self.detail.variables
    }

    /// What a plugin with these needs is shown of it, in a hook that is cached by `cache_by` (if by anything).
    #[cfg(not(target_arch = "wasm32"))]
    pub(crate) fn as_shown(&self, needs: Needs, cache_by: CacheBy) -> Self {
        let mut shown = self.clone();
        let cached = !cache_by.is_empty();
        let hide = |field| cached && !cache_by.contains(field);
        for (field, name) in [
            (CacheBy::USER, &mut shown.user),
            (CacheBy::DATABASE, &mut shown.database),
            (CacheBy::ENDPOINT, &mut shown.endpoint),
            (CacheBy::APPLICATION, &mut shown.application),
            (CacheBy::HINT, &mut shown.hint),
        ] {
            if hide(field) {
                *name = Name::default();
            }
        }
        if cached {
            (shown.session, shown.client) = (0, Name::default());
        }
        if hide(CacheBy::DIGEST) {
            shown.digest = 0;
        }
        if hide(CacheBy::DIALECT) {
            shown.dialect = Dialect::Other;
        }
        if hide(CacheBy::KIND) {
            shown.kind = StatementKind::Other;
        }
        if hide(CacheBy::FACTS) {
            shown.facts = Facts::NONE;
        }
        // What follows from the digest is shown with it; the text itself holds the literals, which no cache knows.
        let detail = &mut shown.detail;
        if cached || !needs.contains(Needs::TEXT) {
            detail.text.clear();
        }
        if hide(CacheBy::DIGEST) || !needs.contains(Needs::NORMALISED) {
            detail.normalised.clear();
        }
        for (need, list) in [
            (Needs::TABLES, &mut detail.tables),
            (Needs::FUNCTIONS, &mut detail.functions),
            (Needs::VARIABLES, &mut detail.variables),
        ] {
            if hide(CacheBy::DIGEST) || !needs.contains(need) {
                list.clear();
            }
        }
        shown
    }
}
