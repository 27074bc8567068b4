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
        query::write_query,
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
}

impl Variables {
    pub(super) fn new() -> Self {
        Self { number: NEXT.fetch_add(1, Ordering::Relaxed), made: BTreeSet::new(), met: BTreeSet::new() }
    }

    /// Another connection serves the session from now on.
    pub(super) fn forget_met(&mut self) {
        self.met.clear();
    }

    /// The session is as after login.
    pub(super) fn forget(&mut self) {
        self.made.clear();
        self.met.clear();
    }

    /// `name`, in lower case, is made wherever the session is served.
    pub(super) fn note_made(&mut self, name: &str) {
        if self.made.len() < MOST {
            self.made.insert(name.into());
        }
    }

    /// True when `name` may be another's; asked once a connection.
    fn is_new(&mut self, name: &str) -> bool {
        !self.made.contains(name) && self.met.insert(name.into())
    }
}

impl MyTracker {
    /// The user variables that a statement names, unless all it does is give them values.
    pub(super) fn named_variables(&self, facts: &Facts, details: &Details, text: &[u8]) -> Vec<String> {
        let gives = |one: &Assignment| one.scope == Scope::User && one.value_is_constant;
        let is_set =
            facts.statements == 1 && facts.kind == StatementKind::Session && !details.sets.is_empty();
        let only_gives = is_set && !details.sets_more && details.sets.iter().all(gives);
        match details.names_user_variables && !only_gives {
            true => classify::user_variables(text, self.mode),
            false => Vec::new(),
        }
    }

    /// A statement that names these is about to run: those that others may have left on `server` are unset.
    pub(super) fn unset_variables(&mut self, named: Vec<String>, up: &mut Pipe, server: &mut MyServer) {
        let others = server.visit(self.variables.number);
        let new: Vec<String> = named.into_iter().filter(|name| self.variables.is_new(name)).collect();
        if !others || new.is_empty() {
            return;
        }
        let unset: Vec<String> =
            new.iter().map(|name| format!("@`{}` = NULL", name.replace('`', "``"))).collect();
        write_query(format!("SET {}", unset.join(", ")).as_bytes(), server.agreed, up.output());
        server.expect(Reply::Results, true, false);
        server.owners.note_own();
    }
}
