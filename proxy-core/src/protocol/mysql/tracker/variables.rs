//! User variables that a session meets on a connection for the first time. Code that no text shows, such as a trigger's
//! `SELECT … INTO @v`, may have set them there for another client, and no server reports it.

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicU64, Ordering},
};

use super::{
    super::{
        super::{Facts, StatementKind},
        classify::{self, Assignment, Details, Scope},
        query::{quoted, write_query},
        server::{MyServer, Reply},
    },
    MyTracker,
};
use crate::buffer::Pipe;

static NEXT: AtomicU64 = AtomicU64::new(1);

/// Variables of a session that are known to be its own; beyond that it is pinned anyway.
const MOST: usize = 1024;

/// Which user variables are this session's own where it is served.
#[derive(Debug)]
pub(super) struct Variables {
    /// The session, in [`MyServer::visit`].
    number: u64,
    /// Made on every connection that serves it.
    made: BTreeSet<Box<str>>,
    /// Named on the connection that it has now.
    met: BTreeSet<Box<str>>,
    /// Of these, those that the statement under way gives values for the first time.
    given: Vec<String>,
    /// The session keeps this connection, and which variables it has set there is not known.
    unknown: bool,
}

/// User variables in a statement.
#[derive(Debug)]
pub(super) struct Named {
    names: Vec<String>,
    /// All it does is give them values.
    are_given: bool,
}

impl Named {
    /// True when others may have left values that the statement would see.
    pub(super) fn may_be_others(&self, variables: &Variables) -> bool {
        !self.are_given && self.names.iter().any(|name| !variables.made.contains(&**name))
    }
}

impl Variables {
    pub(super) fn new() -> Self {
        Self {
            number: NEXT.fetch_add(1, Ordering::Relaxed),
            made: BTreeSet::new(),
            met: BTreeSet::new(),
            given: Vec::new(),
            unknown: false,
        }
    }

    /// Another connection serves the session from now on.
    pub(super) fn forget_met(&mut self) {
        self.unknown = false;
        self.met.clear();
    }

    /// The session is as after login.
    pub(super) fn forget(&mut self) {
        self.made.clear();
        self.forget_met();
    }

    /// `name`, in lower case, is made wherever the session is served.
    pub(super) fn note_made(&mut self, name: &str) {
        if self.made.len() < MOST {
            self.made.insert(name.into());
        }
    }

    /// The statement under way is over. `unknown`: it may have set any variable.
    pub(super) fn settle(&mut self, failed: bool, unknown: bool) {
        self.unknown |= unknown;
        for name in std::mem::take(&mut self.given) {
            if failed {
                // It may have no value of this session yet.
                self.met.remove(&*name);
            }
        }
    }

    /// True when `name` may be another's; asked once a connection.
    fn is_new(&mut self, name: &str) -> bool {
        !self.unknown && !self.made.contains(name) && self.met.insert(name.into())
    }
}

impl MyTracker {
    /// The user variables that a statement names.
    pub(super) fn named_variables(&self, facts: &Facts, details: &Details, text: &[u8]) -> Named {
        let gives = |one: &Assignment| one.scope == Scope::User && one.value_is_constant;
        let is_set =
            facts.statements == 1 && facts.kind == StatementKind::Session && !details.sets.is_empty();
        Named {
            names: match details.names_user_variables {
                true => classify::user_variables(text, self.mode),
                false => Vec::new(),
            },
            are_given: is_set && !details.sets_more && details.sets.iter().all(gives),
        }
    }

    /// A statement that names these is about to run: those that others may have left on `server` are unset. Outside of a
    /// transaction there are none, see `reads_leftovers`.
    pub(super) fn unset_variables(&mut self, named: Named, up: &mut Pipe, server: &mut MyServer) {
        let others = server.visit(self.variables.number);
        let new: Vec<String> = named.names.into_iter().filter(|name| self.variables.is_new(name)).collect();
        if named.are_given {
            self.variables.given = new;
            return;
        }
        if !others || new.is_empty() {
            return;
        }
        let unset: Vec<String> = new.iter().map(|name| format!("@{} = NULL", quoted(name))).collect();
        write_query(format!("SET {}", unset.join(", ")).as_bytes(), server.agreed, up.output());
        server.expect(Reply::Results, true, false);
        server.owners.note_own();
    }
}
