//! Transactions that no server has begun yet.
//!
//! A `BEGIN` that cannot fail anywhere is answered here and goes to the server that the first statement after it needs.
//! It goes there by the extended protocol and without a `Sync`: should it fail after all (cancelled, say), the server
//! skips the statement behind it, which must not run outside of the transaction.

use super::{
    super::{
        super::{ClientEvent, Facts, Fault, FaultKind, StatementKind, Tracker as _, Tx, words::plain_words},
        codec::{Header, write_message},
        error::write_error,
        server::{Expect, PgServer},
    },
    FORGET_NAME, PgTracker, REJECTED, Submitted, put_cstr, write_close, write_parse, write_ready,
};
use crate::buffer::Pipe;

/// SQLSTATE of what a failed transaction refuses, and the server's words for it.
const IN_FAILED_TRANSACTION: &str = "25P02";
const ABORTED: &str = "current transaction is aborted, commands ignored until end of transaction block";

const EMPTY_QUERY: &[u8] = b"I\0\0\0\x04";

/// A transaction that the client was told of.
#[derive(Debug)]
pub(in super::super) struct Deferred {
    /// What begins it.
    pub(super) statement: Submitted,
    pub(super) text: Vec<u8>,
    /// A request of it has failed before it reached a server.
    failed: bool,
}

/// What a text does that is nothing but transaction control.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Control {
    /// Begins a transaction on every server alike, with this answer.
    Begin(&'static str),
    Commit,
    Rollback,
}

impl Control {
    fn read(text: &[u8]) -> Option<Self> {
        let words = plain_words(text)?;
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let (control, rest) = match words.as_slice() {
            ["begin", "work" | "transaction", modes @ ..] | ["begin", modes @ ..] => {
                return are_modes(modes).then_some(Self::Begin("BEGIN"));
            }
            ["start", "transaction", modes @ ..] => {
                return are_modes(modes).then_some(Self::Begin("START TRANSACTION"));
            }
            ["commit" | "end", rest @ ..] => (Self::Commit, rest),
            ["rollback" | "abort", rest @ ..] => (Self::Rollback, rest),
            _ => return None,
        };
        matches!(
            rest,
            [] | ["work" | "transaction"]
                | ["and", "no", "chain"]
                | ["work" | "transaction", "and", "no", "chain"]
        )
        .then_some(control)
    }
}

/// True for modes that standbys take as well.
fn are_modes(mut words: &[&str]) -> bool {
    loop {
        words = match words {
            [] => return true,
            ["isolation", "level", "read", "uncommitted" | "committed", rest @ ..]
            | ["isolation", "level", "repeatable", "read", rest @ ..]
            | ["read", "only", rest @ ..]
            // The grammar has seen to it that it stands between two modes.
            | [",", rest @ ..] => rest,
            _ => return false,
        };
    }
}

impl PgTracker {
    /// Of the transaction that no server has begun.
    pub(super) fn deferred_tx(&self) -> Tx {
        match &self.deferred {
            None => Tx::Idle,
            Some(deferred) if deferred.failed => Tx::Failed,
            Some(_) => Tx::Open,
        }
    }

    /// Something has gone wrong here. A transaction cannot go on from there.
    pub(super) fn fail_deferred(&mut self) {
        if let Some(deferred) = &mut self.deferred {
            deferred.failed = true;
        }
    }

    /// Answers the Query at the front if no server need be asked.
    pub(super) fn control_here(
        &mut self,
        facts: &Facts,
        header: Header,
        up: &mut Pipe,
        down: &mut Pipe,
    ) -> Option<ClientEvent> {
        let control = match facts.kind {
            StatementKind::Transaction if facts.statements == 1 => Control::read(self.text(up)),
            _ => None,
        };
        let tag = match (control, self.deferred_tx()) {
            (Some(Control::Begin(tag)), Tx::Idle) if self.standing.is_empty() => {
                let statement = self.current.as_ref().map(|current| current.statement.clone())?;
                let text = self.text(up).to_vec();
                self.deferred = Some(Box::new(Deferred { statement, text, failed: false }));
                Some(tag)
            }
            (Some(Control::Commit), Tx::Open) => {
                self.deferred = None;
                Some("COMMIT")
            }
            (Some(Control::Rollback), Tx::Open) | (Some(Control::Commit | Control::Rollback), Tx::Failed) => {
                self.deferred = None;
                Some("ROLLBACK")
            }
            (None, Tx::Failed) if facts.kind == StatementKind::Empty => {
                down.emit(EMPTY_QUERY);
                None
            }
            // Others may end it, or fail in another way.
            (None, Tx::Failed)
                if facts.statements == 1
                    && !matches!(facts.kind, StatementKind::Transaction | StatementKind::Unknown) =>
            {
                write_aborted(down);
                None
            }
            _ => return None,
        };
        if let Some(tag) = tag {
            write_message(down.output(), b'C', |body| put_cstr(body, tag.as_bytes()));
        }
        self.unnamed = None;
        self.portals.unnamed = None;
        self.current = None;
        let error = (tag.is_none() && facts.kind != StatementKind::Empty).then_some(IN_FAILED_TRANSACTION);
        self.note_outcome(0, error);
        self.take(up, header.total(), false);
        write_ready(down.output(), self.deferred_tx());
        Some(ClientEvent::AnsweredHere)
    }

    /// Refuses a message of the extended protocol about a statement that a failed transaction does not run. True when
    /// it did.
    pub(super) fn refuse_in_failed(
        &mut self,
        facts: Option<&Facts>,
        header: Header,
        up: &mut Pipe,
        down: &mut Pipe,
    ) -> bool {
        let refuses = self.deferred_tx() == Tx::Failed && facts.is_some_and(|facts| !facts.ends_transaction);
        if refuses {
            self.forget_current();
            write_aborted(down);
            self.skip_to_sync = true;
            self.take(up, header.total(), false);
        }
        refuses
    }

    /// Begins the transaction on `server`, before the message at the front goes there.
    pub(super) fn begin_deferred(&mut self, tag: u8, server: &mut PgServer, up: &mut Pipe) {
        // What an earlier attempt has left is for a Sync to clear away.
        if server.skipping || server.batch_open || server.is_request_under_way() {
            return;
        }
        let Some(deferred) = self.deferred.take() else { return };
        let out = up.output();
        write_message(out, b'P', |body| {
            put_cstr(body, b"");
            put_cstr(body, &deferred.text);
            body.extend_from_slice(&[0; 2]);
        });
        write_message(out, b'B', |body| body.extend_from_slice(&[0; 8]));
        write_message(out, b'E', |body| body.extend_from_slice(&[0; 5]));
        // Its portal is no more to be executed than after a Query.
        write_close(out, b'P', b"");
        let failed = deferred.failed;
        server.expect(Expect::Parse { ours: true, adds: None, undo: None });
        server.expect(Expect::Bind { ours: true, of: None });
        server.expect(Expect::Begin(deferred));
        server.expect(Expect::Close { ours: true, evicts: None });
        server.unnamed = None;
        server.batch_open = true;
        server.ends_with_query = matches!(tag, b'Q' | b'F');
        server.tx = Tx::Open;
        if failed {
            // From here on the server itself refuses what a failed transaction refuses.
            let tail = [REJECTED, &[0; 2]].concat();
            write_parse(out, FORGET_NAME, &tail);
            server.expect(Expect::Parse { ours: true, adds: None, undo: None });
            self.end_our_batch(server, up);
            server.tx = Tx::Failed;
        }
    }

    /// Before something of ours that may fail: a `BEGIN` that is not known to have run must not be followed by it
    /// without a Sync. True while its answer is to come.
    pub(super) fn awaits_begin(&self, server: &mut PgServer, up: &mut Pipe) -> bool {
        let awaits = server.is_beginning();
        if awaits && server.batch_open {
            self.end_our_batch(server, up);
        }
        awaits
    }

    fn end_our_batch(&self, server: &mut PgServer, up: &mut Pipe) {
        write_message(up.output(), b'S', |_| {});
        server.expect(Expect::Sync { ours: true });
        server.batch_open = false;
        server.ends_with_query = false;
    }

    /// A `BEGIN` has failed where it should have begun the client's transaction. To the client that is a transaction
    /// whose first statement has failed.
    pub(super) fn take_back(&mut self, mut deferred: Box<Deferred>, server: &mut PgServer) {
        server.tx = Tx::Idle;
        deferred.failed = true;
        self.deferred = Some(deferred);
    }
}

fn write_aborted(down: &mut Pipe) {
    let mut fault = Fault::error(FaultKind::Internal, ABORTED);
    fault.native_code = Some(IN_FAILED_TRANSACTION.to_owned());
    write_error(&fault, down.output());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manual_has_the_error_that_is_told_here() {
        let manual = include_str!("../../../../../docs/errors.md");
        let row = manual.lines().find(|line| line.starts_with(&format!("| `{IN_FAILED_TRANSACTION}` |")));
        assert!(row.is_some_and(|row| row.contains("Pinion itself")), "{row:?}");
    }

    #[test]
    fn only_control_that_no_server_refuses_is_answered_here() {
        let check =
            |text: &str, want: Option<Control>| assert_eq!(Control::read(text.as_bytes()), want, "{text}");
        for text in [
            "BEGIN",
            "begin;",
            "BEGIN WORK",
            "/* x */ Begin Transaction",
            "BEGIN ISOLATION LEVEL READ COMMITTED",
            "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
            "BEGIN READ ONLY, ISOLATION LEVEL READ UNCOMMITTED",
        ] {
            check(text, Some(Control::Begin("BEGIN")));
        }
        check("START TRANSACTION READ ONLY", Some(Control::Begin("START TRANSACTION")));
        for text in ["COMMIT", "END", "commit work", "END TRANSACTION AND NO CHAIN", "COMMIT AND NO CHAIN;"] {
            check(text, Some(Control::Commit));
        }
        for text in ["ROLLBACK", "ABORT", "ROLLBACK WORK AND NO CHAIN"] {
            check(text, Some(Control::Rollback));
        }
        for text in [
            "BEGIN READ WRITE",
            "BEGIN ISOLATION LEVEL SERIALIZABLE",
            "BEGIN DEFERRABLE",
            "BEGIN NOT DEFERRABLE",
            "BEGIN ISOLATION LEVEL",
            "COMMIT AND CHAIN",
            "ROLLBACK AND CHAIN",
            "ROLLBACK TO SAVEPOINT a",
            "ROLLBACK TO a",
            "COMMIT PREPARED 'a'",
            "PREPARE TRANSACTION 'a'",
            "SAVEPOINT a",
            "BEGIN; COMMIT",
        ] {
            check(text, None);
        }
    }
}
