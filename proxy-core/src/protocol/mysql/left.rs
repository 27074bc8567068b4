//! What a client's statements leave on a server connection for the next to ask: `LAST_INSERT_ID()`, which can be set
//! elsewhere when it is known, and `FOUND_ROWS()`, `ROW_COUNT()` and the diagnostics, which cannot.
//!
//! Source: MySQL Reference Manual, "Information Functions", "The MySQL Diagnostics Area".

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::{
    classify::{GivenIds, Sequences, SessionFunctions},
    server::MyServer,
};

static NEXT: AtomicU64 = AtomicU64::new(1);

/// Most names of sequences that are remembered.
const MAX_DRAWN: usize = 16;

/// Of which statement the answers of a server connection tell, by the number that each that changes one is given; 0 is
/// nobody's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Owners {
    /// Of the last that used a table or had something to say: queries without one leave the diagnostics as they are
    /// (MariaDB).
    diagnostics: u64,
    /// Of the last query, or of one that may have had one in it.
    found_rows: u64,
    row_count: u64,
    insert_id: u64,
}

impl Owners {
    const UNKNOWN: u64 = u64::MAX;
    /// With the number of an id that nobody knows: another was set in its place.
    const STAND_IN: u64 = 1 << 63;

    /// A statement or a command of our own has run, or one that is no statement: it counts no rows.
    pub(super) fn note_own(&mut self) {
        self.row_count = 0;
    }

    /// Something of our own has run that may have emptied the diagnostics, or left some.
    pub(super) fn note_own_diagnostics(&mut self) {
        self.note_own();
        self.diagnostics = Self::UNKNOWN;
    }

    /// A query of our own has run: what it found is nobody's business.
    pub(super) fn note_own_query(&mut self) {
        self.note_own();
        self.found_rows = Self::UNKNOWN;
    }

    /// A query of our own without a table has followed a statement of the client's. What it leaves is what a `SELECT` of one
    /// row leaves.
    pub(super) fn note_question(&mut self, behind_row: bool) {
        if !behind_row {
            self.row_count = 0;
            self.found_rows = Self::UNKNOWN;
        }
    }

    /// A statement of our own is over. Diagnostics that are nobody's stay so unless it had something to say.
    pub(super) fn note_absorbed(&mut self, has_diagnostics: bool) {
        if has_diagnostics || self.diagnostics != 0 {
            self.note_own_diagnostics();
        }
    }
}

/// What one client's statements have left.
#[derive(Debug, Default)]
pub(super) struct Left {
    /// Where the answers are this client's own.
    own: Owners,
    insert_id: u64,
    /// `insert_id` is not what `LAST_INSERT_ID()` gives, but only what the last OK packet said.
    inexact: bool,
    /// The OK packet of the statement under way had an id.
    told: bool,
    /// What the client has asked for so far.
    asked: SessionFunctions,
    /// Sequences of which it has drawn values where it is served; no other client has run anything there since.
    drawn: Vec<Vec<u8>>,
    /// Where it has run what may have left something that lasts.
    lasting: Lasting,
}

/// On which server connections a client has left something.
#[derive(Debug, Clone, Copy, Default)]
enum Lasting {
    #[default]
    Nowhere,
    /// On the one that is living this life.
    In(u64),
    Scattered,
}

/// A number that was never given before.
pub(super) fn number() -> u64 {
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// A statement has changed an answer.
fn settle(own: &mut u64, owner: &mut u64) {
    *own = number();
    *owner = *own;
}

/// A statement may have changed an answer, or have left that of whoever was there before.
fn unsettle(own: &mut u64, owner: &mut u64) {
    let is_own = own == owner;
    settle(own, owner);
    if !is_own {
        *owner = Owners::UNKNOWN;
    }
}

/// What a statement does to an answer that others of the same connection may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Touch {
    /// Nothing.
    #[default]
    Leaves,
    /// No text tells: be it that servers differ.
    MayChange,
    /// It becomes this statement's own.
    Changes,
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
    /// What it does to `FOUND_ROWS()`: a query changes it.
    pub(super) found_rows: Touch,
    /// What it does to the diagnostics, beyond having something to say: a statement that uses tables begins with none.
    pub(super) diagnostics: Touch,
    /// It may generate ids that no OK packet tells: it loads a file, makes a table from rows, or returns rows.
    pub(super) hides_ids: bool,
    /// What it may give as an id itself; `None` for anything.
    pub(super) given_ids: Option<GivenIds>,
    /// The sequences that it draws values of and asks about; `None` where no text tells.
    pub(super) sequences: Option<Sequences>,
    /// The names of sequences may be others' after it.
    pub(super) renames: bool,
}

impl Nature {
    /// The id in its OK packet may be none that `LAST_INSERT_ID()` returns.
    fn gives_ids(&self) -> bool {
        self.writes && self.given_ids.as_ref().is_none_or(|given| !given.is_empty())
    }
}

impl Left {
    /// How a statement of this nature can run on `server`. `ids_are_asked`: any client of this proxy has asked for
    /// `LAST_INSERT_ID()`.
    pub(super) fn ask(&mut self, nature: &Nature, ids_are_asked: &AtomicBool, server: &MyServer) -> Ask {
        let (own, owners) = (self.own, server.owners);
        self.asked = self.asked.union(nature.asks);
        let wants = |function| nature.asks.contains(function);
        let wants_insert_id = wants(SessionFunctions::LAST_INSERT_ID);
        let others = nature.asks.without(SessionFunctions::LAST_INSERT_ID);
        let lasting = SessionFunctions::FOUND_ROWS.union(SessionFunctions::DIAGNOSTICS);
        let has_found = !wants(SessionFunctions::FOUND_ROWS) || owners.found_rows == own.found_rows;
        let has_diagnostics = !wants(SessionFunctions::DIAGNOSTICS) || owners.diagnostics == own.diagnostics;
        let last = others.without(lasting);
        // What sequences and transactions leave lasts longer, and no statement makes a connection forget it.
        let lasts = last.without(SessionFunctions::ROW_COUNT);
        let is_of_own = match &nature.sequences {
            Some(sequences) if lasts == SessionFunctions::SEQUENCE && own.row_count != 0 => {
                sequences.asks && sequences.asked.iter().all(|name| self.drawn.contains(name))
            }
            _ => false,
        };
        let is_clean = !server.had_others()
            && match self.lasting {
                Lasting::Nowhere => true,
                Lasting::In(life) => life == server.life,
                Lasting::Scattered => false,
            };
        let has_lasts = lasts.is_empty() || is_of_own || is_clean;
        let has_last = last.is_empty() || (owners.row_count == own.row_count && has_lasts);
        let has_others = has_found && has_diagnostics && has_last;
        let has_insert_id = owners.insert_id == own.insert_id;
        let was_set = has_insert_id || owners.insert_id == own.insert_id | Owners::STAND_IN;
        let asks = !nature.asks.is_empty();
        // It is likely to ask what itself has done. What it should not is told of nobody.
        let asks_itself = nature.several && asks && has_lasts && !(has_others && was_set);
        // It has left nothing, and finds nothing.
        let forgettable = lasting.union(SessionFunctions::ROW_COUNT);
        let has_left = own.row_count != 0
            || (wants(SessionFunctions::FOUND_ROWS) && own.found_rows != 0)
            || (wants(SessionFunctions::DIAGNOSTICS) && own.diagnostics != 0);
        let is_first = !has_left && !has_others && others.without(forgettable).is_empty();
        if asks_itself || is_first {
            return Ask::Set(self.insert_id);
        }
        if !has_others || (wants_insert_id && !has_insert_id && self.inexact) {
            return Ask::Lost;
        }
        if wants_insert_id {
            ids_are_asked.store(true, Ordering::Relaxed);
        }
        // With an id of its own it leaves what is there, which must not be another client's.
        let leaves = (nature.gives_ids() || nature.hides_ids) && ids_are_asked.load(Ordering::Relaxed);
        let sets = (wants_insert_id || nature.taints || nature.sets_insert_id || leaves) && !was_set;
        match sets || (nature.taints && !self.has_lasting(server)) {
            // Setting it would be the last statement.
            true if !others.is_empty() => Ask::Lost,
            true => Ask::Set(self.insert_id),
            false => Ask::AsItIs,
        }
    }

    /// True when what lasts longer than a statement, on `server`, is this client's own or nobody's.
    pub(super) fn has_lasting(&self, server: &MyServer) -> bool {
        let (own, owners) = (self.own, server.owners);
        owners.found_rows == own.found_rows && owners.diagnostics == own.diagnostics
    }

    /// `LAST_INSERT_ID()` was set on `server`, and the rest forgotten if any of it was another's.
    pub(super) fn was_set(&self, server: &mut MyServer) {
        let kept = if self.has_lasting(server) { server.owners } else { Owners::default() };
        // What was set in place of an id that nobody knows is not the answer.
        let insert_id = self.own.insert_id | if self.inexact { Owners::STAND_IN } else { 0 };
        server.owners = Owners { row_count: 0, insert_id, ..kept };
    }

    /// A result has come, with the id in its OK packet. An id that the statement has given itself stands there too, and
    /// is no `LAST_INSERT_ID()`.
    pub(super) fn note_result(&mut self, id: u64, nature: &Nature, server: &mut MyServer) {
        if id != 0 {
            let given = nature.given_ids.as_ref();
            self.inexact = given.is_none_or(|given| given.may_be(id, self.insert_id));
            self.insert_id = id;
            self.told = true;
            let change = if self.inexact { unsettle } else { settle };
            change(&mut self.own.insert_id, &mut server.owners.insert_id);
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
        let (own, owners) = (&mut self.own, &mut server.owners);
        if own.row_count == 0 || own.row_count != owners.row_count || nature.renames {
            self.drawn.clear();
        }
        if let Some(sequences) = nature.sequences.as_ref().filter(|_| !failed && !nature.renames) {
            let new = sequences.drawn.iter().filter(|name| !self.drawn.contains(name));
            let new: Vec<_> = new.take(MAX_DRAWN.saturating_sub(self.drawn.len())).cloned().collect();
            self.drawn.extend(new);
        }
        if nature.writes
            || nature.taints
            || nature.hides_ids
            || nature.sequences.as_ref().is_none_or(|sequences| !sequences.drawn.is_empty())
        {
            self.lasting = match self.lasting {
                Lasting::Nowhere => Lasting::In(server.life),
                Lasting::In(life) if life == server.life => self.lasting,
                _ => Lasting::Scattered,
            };
        }
        settle(&mut own.row_count, &mut owners.row_count);
        let hidden = nature.taints || nature.several;
        let found = nature.found_rows == Touch::Changes;
        if found && !failed {
            settle(&mut own.found_rows, &mut owners.found_rows);
        } else if nature.found_rows != Touch::Leaves || hidden {
            unsettle(&mut own.found_rows, &mut owners.found_rows);
        }
        if failed || warnings || nature.diagnostics == Touch::Changes {
            settle(&mut own.diagnostics, &mut owners.diagnostics);
        } else if nature.diagnostics == Touch::MayChange || hidden {
            unsettle(&mut own.diagnostics, &mut owners.diagnostics);
        }
        let told = std::mem::take(&mut self.told);
        if nature.taints || nature.hides_ids || (nature.sets_insert_id && !told) || (failed && nature.writes)
        {
            self.inexact = true;
            unsettle(&mut own.insert_id, &mut owners.insert_id);
        }
        let asked = |function| self.asked.contains(function);
        // What sets an id is likely to be followed by what asks for it.
        (nature.sets_insert_id && self.inexact)
            || (asked(SessionFunctions::DIAGNOSTICS) && (failed || warnings))
            || (asked(SessionFunctions::LAST_INSERT_ID) && self.inexact && nature.writes)
            || (asked(SessionFunctions::ROW_COUNT) && nature.writes)
            || (asked(SessionFunctions::FOUND_ROWS) && found)
    }

    /// A statement of the client's was answered without a server. It counts no rows.
    pub(super) fn note_here(&mut self) {
        self.own.row_count = 0;
    }

    /// A statement that asks was refused. What it would have left itself, no connection can tell.
    pub(super) fn note_refused(&mut self) {
        self.own.row_count = number();
    }

    /// A statement of the client's was prepared, which empties the diagnostics if it uses tables, and may leave some.
    pub(super) fn note_prepared(&mut self, warnings: bool, server: &mut MyServer) {
        if self.own.row_count == 0 && self.own.diagnostics == 0 && !warnings {
            // It has still left nothing.
            server.owners.note_own();
            server.owners.note_absorbed(false);
            return;
        }
        unsettle(&mut self.own.diagnostics, &mut server.owners.diagnostics);
        unsettle(&mut self.own.row_count, &mut server.owners.row_count);
    }

    /// The client's session is as after login.
    pub(super) fn forget(&mut self) {
        *self = Self::default();
    }
}
