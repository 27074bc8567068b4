//! Transactions that no server has begun yet.
//!
//! A `BEGIN` that cannot fail anywhere is answered here and goes to the server that the first statement after it needs.
//! That one waits for its answer: had the `BEGIN` failed (killed, say), it would run outside of the transaction.

use super::{
    super::{
        super::{ClientEvent, Facts, Fault, FaultKind, StatementKind, Tracker as _, words::plain_words},
        codec::{Command, ErrPacket, Header, Status},
        query::write_query,
        server::{MyServer, Reply},
    },
    MyTracker, Submitted,
};
use crate::buffer::Pipe;

/// A transaction that the client was told of.
#[derive(Debug)]
pub(in super::super) struct Deferred {
    /// What begins it.
    pub(super) statement: Submitted,
    pub(super) text: Vec<u8>,
}

/// What a text does that is nothing but transaction control.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Control {
    /// Begins a transaction on every server alike.
    Begin { read_only: bool },
    /// Ends one.
    End,
}

impl Control {
    fn read(text: &[u8]) -> Option<Self> {
        let words = plain_words(text)?;
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let rest = match words.as_slice() {
            ["begin"] | ["begin", "work"] | ["start", "transaction"] => {
                return Some(Self::Begin { read_only: false });
            }
            ["start", "transaction", "read", "only"] => return Some(Self::Begin { read_only: true }),
            ["commit" | "rollback", "work", rest @ ..] | ["commit" | "rollback", rest @ ..] => rest,
            _ => return None,
        };
        let rest = rest.strip_prefix(&["and", "no", "chain"]).unwrap_or(rest);
        matches!(rest, [] | ["no", "release"]).then_some(Self::End)
    }
}

/// Variables that make a `BEGIN` or a `COMMIT` do or say something else.
pub(super) const OF_TRANSACTIONS: [&str; 3] = ["completion_type", "transaction_read_only", "tx_read_only"];

const IN_TRANSACTION: Status = Status(Status::IN_TRANS.0 | Status::IN_TRANS_READONLY.0);

impl MyTracker {
    /// Answers the statement at the front if it is control of a transaction of which no server need know.
    pub(super) fn control_here(
        &mut self,
        facts: &Facts,
        header: Header,
        up: &mut Pipe,
        down: &mut Pipe,
    ) -> Option<ClientEvent> {
        if facts.kind != StatementKind::Transaction || facts.statements != 1 || self.aborted {
            return None;
        }
        match (Control::read(self.text(up))?, &self.deferred) {
            // What servers report of a transaction is not told here.
            (Control::Begin { read_only }, None)
                if !self.settings_of_transactions && !self.asks.transactions && !self.asks.state =>
            {
                let text = self.text(up).to_vec();
                let statement = self.current.take()?.statement;
                self.deferred = Some(Box::new(Deferred { statement, text }));
                self.status = self.status.without(IN_TRANSACTION) | Status::IN_TRANS;
                if read_only {
                    self.status = self.status | Status::IN_TRANS_READONLY;
                }
            }
            (Control::End, Some(_)) => self.forget_deferred(),
            _ => return None,
        }
        self.current = None;
        self.left.note_here();
        self.note_outcome(None, 0);
        self.take_packet(up, header, false);
        self.ok(down, 1);
        Some(ClientEvent::AnsweredHere)
    }

    /// There is no such transaction any more.
    pub(super) fn forget_deferred(&mut self) {
        if self.deferred.take().is_some() {
            self.status = self.status.without(IN_TRANSACTION);
        }
    }

    /// A statement of it was refused, by policy or since it would pin.
    pub(super) fn refuse_deferred(&mut self, fault: &Fault) {
        let kinds = [FaultKind::PluginRejected, FaultKind::PluginFailed, FaultKind::TooManyPins];
        if kinds.contains(&fault.kind) && self.deferred.take().is_some() {
            self.aborted = true;
        }
    }

    /// Begins the transaction on `server`, before the command at the front goes there. `None` when that may go on.
    pub(super) fn begin_deferred(
        &mut self,
        command: u8,
        header: Header,
        up: &mut Pipe,
        server: &mut MyServer,
        down: &mut Pipe,
    ) -> Option<ClientEvent> {
        let command = Command::from_byte(command);
        match command {
            // They concern no transaction, or are answered here.
            Some(
                Command::Quit
                | Command::Ping
                | Command::SetOption
                | Command::ProcessKill
                | Command::StmtClose
                | Command::ChangeUser,
            ) => return None,
            Some(Command::ResetConnection) => {
                self.forget_deferred();
                return None;
            }
            _ => {}
        }
        if let Some(error) = self.unbegun.take() {
            if command == Some(Command::StmtSendLongData) {
                // There is no answer to it in which to tell.
                self.unbegun = Some(error);
                self.take_packet(up, header, false);
            } else {
                let ErrPacket { code, sqlstate, message } = *error;
                self.fail(code, &sqlstate, &message, up, header, down);
            }
            return Some(ClientEvent::AnsweredHere);
        }
        if self.deferred.is_some()
            && self.status.contains(Status::IN_TRANS_READONLY)
            && self.bring_all_names(up, server)
        {
            // In the transaction it would be too late for those that write.
            return Some(ClientEvent::NeedAnswer);
        }
        let deferred = self.deferred.take()?;
        write_query(&deferred.text, server.agreed, up.output());
        server.status = server.status | Status::IN_TRANS;
        server.expect(Reply::Begin(deferred), true, true);
        Some(ClientEvent::NeedAnswer)
    }
}
