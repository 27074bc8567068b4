//! What a client's statements leave on a server connection for the next to ask: `LAST_INSERT_ID()`, which can be set
//! elsewhere when it is known, and `FOUND_ROWS()`, `ROW_COUNT()` and the diagnostics, which cannot.
//!
//! Source: MySQL Reference Manual, "Information Functions", "The MySQL Diagnostics Area".

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::{
    classify::{GivenIds, SessionFunctions},
    server::MyServer,
};

static NEXT: AtomicU64 = AtomicU64::new(1);

/// Whose the answers of a server connection are; 0 for nobody's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Owners {
    /// `FOUND_ROWS()`, diagnostics.
    last: u64,
    row_count: u64,
    insert_id: u64,
}

impl Owners {
    const UNKNOWN: u64 = u64::MAX;

    /// A statement of our own has run.
    pub(super) fn note_own(&mut self) {
        self.last = 0;
        self.row_count = 0;
    }

    /// A command that is no statement has run: it counts no rows.
    pub(super) fn note_command(&mut self) {
        self.row_count = 0;
    }
}

/// What one client's statements have left.
#[derive(Debug)]
pub(super) struct Left {
    /// In [`Owners`].
    client: u64,
    /// A statement has run.
    ran: bool,
    insert_id: u64,
    /// `insert_id` is what `LAST_INSERT_ID()` gives, and not only what the last OK packet said.
    exact: bool,
    /// The OK packet of the statement under way had an id.
    told: bool,
    /// What the client has asked for so far.
    asked: SessionFunctions,
}

/// How a statement that asks can be run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ask {
    /// As it is.
    AsItIs,
    /// After `LAST_INSERT_ID()` was set to this.
    Set(u64),
    /// Not here: others have used this connection since, or the client was served by another.
    Lost,
}

/// What a statement is to session functions.
#[derive(Debug, Default)]
pub(super) struct Nature {
    /// What it reads.
    pub(super) asks: SessionFunctions,
    /// It runs code that may read them too, and set what `LAST_INSERT_ID()` gives.
    pub(super) taints: bool,
    /// It sets that by an expression.
    pub(super) sets_insert_id: bool,
    /// There are others in the same text, which may ask each other.
    pub(super) several: bool,
    /// It writes, so that if it fails what `LAST_INSERT_ID()` gives is anything.
    pub(super) writes: bool,
    /// What it may give as an id itself; `None` for anything.
    pub(super) given_ids: Option<GivenIds>,
}

impl Nature {
    /// The id in its OK packet may be none that `LAST_INSERT_ID()` returns.
    fn gives_ids(&self) -> bool {
        self.writes && self.given_ids.as_ref().is_none_or(|given| !given.is_empty())
    }
}

impl Left {
    pub(super) fn new() -> Self {
        let client = NEXT.fetch_add(1, Ordering::Relaxed);
        Self { client, ran: false, insert_id: 0, exact: true, told: false, asked: SessionFunctions::NONE }
    }

    /// How a statement of this nature can run on `server`. `ids_are_asked`: any client of this proxy has asked for
    /// `LAST_INSERT_ID()`.
    pub(super) fn ask(&mut self, nature: &Nature, ids_are_asked: &AtomicBool, server: &mut MyServer) -> Ask {
        let owners = server.owners;
        self.asked = self.asked.union(nature.asks);
        let wants_insert_id = nature.asks.contains(SessionFunctions::LAST_INSERT_ID);
        let wants_last = !nature.asks.without(SessionFunctions::LAST_INSERT_ID).is_empty();
        // Before its first statement a client may ask what nobody has left.
        let own = if self.ran { self.client } else { 0 };
        let counts = !nature.asks.contains(SessionFunctions::ROW_COUNT) || owners.row_count == own;
        let has_last = owners.last == own && counts;
        let has_insert_id =
            owners.insert_id == self.client || (owners.insert_id == 0 && self.insert_id == 0 && self.exact);
        if has_insert_id {
            server.owners.insert_id = self.client;
        }
        if nature.several && (wants_last || wants_insert_id) && !(has_last && has_insert_id) {
            // It is likely to ask what itself has done. What it should not is told of nobody.
            return Ask::Set(self.insert_id);
        }
        if (wants_last && !has_last) || (wants_insert_id && !has_insert_id && !self.exact) {
            return Ask::Lost;
        }
        if wants_insert_id {
            ids_are_asked.store(true, Ordering::Relaxed);
        }
        // With an id of its own it leaves what is there, which must not be another client's.
        let leaves = nature.gives_ids() && ids_are_asked.load(Ordering::Relaxed);
        match (wants_insert_id || nature.taints || nature.sets_insert_id || leaves) && !has_insert_id {
            // Setting it would be the last statement.
            true if wants_last => Ask::Lost,
            true => Ask::Set(self.insert_id),
            false => Ask::AsItIs,
        }
    }

    /// `LAST_INSERT_ID()` was set on `server`.
    pub(super) fn was_set(&self, server: &mut MyServer) {
        server.owners = Owners { last: 0, row_count: 0, insert_id: self.client };
    }

    /// A result has come, with the id in its OK packet. An id that the statement has given itself stands there too, and
    /// is no `LAST_INSERT_ID()`.
    pub(super) fn note_result(&mut self, id: u64, nature: &Nature, server: &mut MyServer) {
        if id != 0 {
            let given = nature.given_ids.as_ref();
            self.exact = given.is_some_and(|given| !given.may_be(id, self.insert_id));
            self.insert_id = id;
            self.told = true;
            match self.exact {
                true => server.owners.insert_id = self.client,
                false => self.unsettle_insert_id(server),
            }
        }
    }

    /// A statement is over. True when it left something that is likely to be asked for, and that no other connection
    /// can tell.
    pub(super) fn note_over(
        &mut self,
        nature: &Nature,
        failed: bool,
        warnings: bool,
        server: &mut MyServer,
    ) -> bool {
        self.ran = true;
        server.owners.last = self.client;
        server.owners.row_count = self.client;
        let told = std::mem::take(&mut self.told);
        if nature.taints || (nature.sets_insert_id && !told) || (failed && nature.writes) {
            self.exact = false;
            self.unsettle_insert_id(server);
        }
        let asked = |function| self.asked.contains(function);
        // What sets an id is likely to be followed by what asks for it.
        (nature.sets_insert_id && !self.exact)
            || (asked(SessionFunctions::DIAGNOSTICS) && (failed || warnings))
            || (asked(SessionFunctions::LAST_INSERT_ID) && !self.exact && nature.writes)
            || (asked(SessionFunctions::ROW_COUNT) && nature.writes)
    }

    /// `LAST_INSERT_ID()` may be something new on `server`, or what it was: another client's, if it was that.
    fn unsettle_insert_id(&self, server: &mut MyServer) {
        if server.owners.insert_id != self.client {
            server.owners.insert_id = Owners::UNKNOWN;
        }
    }

    /// The client's session is as after login.
    pub(super) fn forget(&mut self) {
        *self = Self::new();
    }
}
