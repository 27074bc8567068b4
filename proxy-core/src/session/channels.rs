//! Notification channels that a client hears without a server connection of its own.
//!
//! A client's `LISTEN` runs like any other statement, and the server's answer is the client's. What then keeps its
//! connection is moved: the target's listener takes the channels over before the client learns that its request is
//! done, and the connection is made to hear nothing. From then on each answer ends only when the listener has caught up with
//! what was committed before, so that notifications come as they would directly: its own before the end of the answer
//! that they belong to, and none in a transaction.

use std::{
    collections::BTreeSet,
    future::poll_fn,
    io, mem,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::time::timeout;
use tracing::debug;

use super::{MAX_UNHEARD_BYTES, Pending, Session, SessionError, settings::lost};
use crate::{
    buffer::Pipe,
    channels::{self, Ear, Listener, Lost},
    pool::Pooled as _,
    protocol::{
        ChannelChange, Facts, Fault, FaultKind, PinReason, PinReasons, Protocol, ServerState, Tracker, Tx,
    },
    proxy::HEARD,
};

/// Most channels of one client that are heard for it. Who wants more keeps its connection.
const MOST_CHANNELS: usize = 256;
/// Longer names are cut by the server, at a letter of its own encoding (`NAMEDATALEN`).
const MOST_NAME_BYTES: usize = 63;

/// For what the server connection still has to say when all of a request has been answered.
const QUIET_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a client that listens cannot go on. `Display` is for the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Missed {
    /// The connection that heard for it.
    #[error("The connection to the database server was lost.")]
    Listener,
    /// They came faster than it reads.
    #[error("More notifications came than this client has read.")]
    TooMany,
    /// It reads another encoding than it did when it began to listen.
    #[error("A notification cannot be told in this session's client_encoding.")]
    Encoding,
}

impl Missed {
    /// For the client.
    pub(super) fn fault(self) -> Fault {
        let kind = match self {
            Self::Listener => FaultKind::ServerLost,
            Self::TooMany | Self::Encoding => FaultKind::NotificationsLost,
        };
        Fault::fatal(kind, self.to_string())
    }
}

/// The channels of one client.
#[derive(Debug)]
pub(super) struct Listening {
    ear: Arc<Ear>,
    /// Who hears them, and for which target; `None` before the first.
    listener: Option<(Listener, usize)>,
    /// What is heard for it.
    channels: BTreeSet<Box<str>>,
    /// Committed, and still to be done.
    due: Vec<ChannelChange>,
    /// Of the transaction that is open.
    uncommitted: Vec<ChannelChange>,
    /// In that transaction something may have been rolled back.
    is_murky: bool,
    /// The held connection hears some or all of them, too.
    is_worn: bool,
}

impl Listening {
    /// True when the held connection hears what the listener is to hear.
    pub(super) fn is_due(&self) -> bool {
        !self.due.is_empty() || self.is_worn
    }
}

impl<P: Protocol> Session<P> {
    /// The pin that a text need not set, since the channels that it listens to can be heard without its connection.
    pub(super) fn heard_elsewhere(&self, facts: &Facts, smart: bool, in_transaction: bool) -> PinReasons {
        if facts.channels.is_empty() {
            return PinReasons::NONE;
        }
        let mut listens = false;
        let all_fit = facts.channels.iter().all(|change| match change {
            ChannelChange::Listen(name) => {
                listens = true;
                name.len() <= MOST_NAME_BYTES
            }
            ChannelChange::Unlisten(_) | ChannelChange::UnlistenAll => true,
        });
        let count = self.listening.as_ref().map_or(0, |listening| listening.channels.len());
        let fits = all_fit && count + facts.channels.len() <= MOST_CHANNELS;
        let can = smart && fits && !in_transaction && !facts.moves_transaction && self.tracker.reads_utf8();
        // What the connection hears already is found by asking it.
        let hears_itself = self.pins.contains(PinReason::Listen);
        match listens && can && !hears_itself && P::listener_key(&self.key).is_some() {
            true => PinReasons::only(PinReason::Listen),
            false => PinReasons::NONE,
        }
    }

    /// Notes what a statement will have done to the channels; `moved` are the pins that it need not set.
    pub(super) fn note_channels(&mut self, facts: &Facts, moved: PinReasons) {
        if moved.contains(PinReason::Listen) {
            self.listening.get_or_insert_with(|| {
                Box::new(Listening {
                    ear: Ear::new(&self.handle),
                    listener: None,
                    channels: BTreeSet::new(),
                    due: Vec::new(),
                    uncommitted: Vec::new(),
                    is_murky: false,
                    is_worn: false,
                })
            });
        }
        let Some(listening) = &mut self.listening else { return };
        // What counts in a transaction was committed before it: in one that the server has begun it is too late.
        if (facts.reads_channels || facts.moves_transaction) && !listening.channels.is_empty() {
            self.pending.rare().wears_channels = true;
        }
        if facts.moves_transaction {
            let changes = !listening.uncommitted.is_empty()
                || self.pending.rare.as_ref().is_some_and(|rare| !rare.channels.is_empty());
            listening.is_murky |= changes && !facts.commits;
            return;
        }
        if facts.channels.is_empty() {
            return;
        }
        if moved.contains(PinReason::Listen)
            || facts.channels.iter().all(|c| !matches!(c, ChannelChange::Listen(_)))
        {
            let rare = self.pending.rare();
            rare.channels.extend_from_slice(&facts.channels);
        }
        self.show_channels();
    }

    /// Tells the tracker which channels the connection is not to be heard of.
    fn show_channels(&mut self) {
        let Some(listening) = &self.listening else { return };
        let mut channels = listening.channels.clone();
        let pending = self.pending.rare.iter().flat_map(|rare| &rare.channels);
        for change in listening.due.iter().chain(pending) {
            if let ChannelChange::Listen(name) = change {
                channels.insert(name.clone());
            }
        }
        self.tracker.hear_elsewhere(Some(Arc::new(channels)));
    }

    /// What the statements just answered have done to the channels, once it is certain.
    pub(super) fn settle_channel_changes(&mut self, pending: &mut Pending, failed: bool, nothing_ran: bool) {
        let Some(listening) = &mut self.listening else { return };
        let changes = pending.rare.as_mut().map(|rare| mem::take(&mut rare.channels)).unwrap_or_default();
        let listens = changes.iter().any(|change| matches!(change, ChannelChange::Listen(_)));
        let open = self.link.as_ref().is_some_and(|c| c.state.tx() != Tx::Idle);
        let entangled = pending.is_entangled() || open;
        if !(failed || entangled || pending.in_transaction) {
            listening.due.extend(changes);
        } else if listens && !(failed && (nothing_ran || pending.statements <= 1)) {
            // Perhaps they were rolled back, perhaps not: the server is asked.
            pending.sets.insert(PinReason::Listen);
        } else if !failed {
            listening.uncommitted.extend(changes);
        }
        if open {
            listening.is_murky |= failed && !listening.uncommitted.is_empty();
            return;
        }
        let commits = pending.text.as_ref().is_some_and(|text| text.commits) && pending.reported == 1;
        let committed = mem::take(&mut listening.uncommitted);
        if commits && !failed && !mem::take(&mut listening.is_murky) {
            listening.due.extend(committed);
        }
        listening.is_murky = false;
    }

    /// What was answered here, without a fault, was nothing but what takes state back.
    pub(super) fn forgo_channels(&mut self, fault: Option<&Fault>) {
        if fault.is_none() && self.pending.clears.contains(PinReason::Listen) {
            self.stop_listening();
        }
    }

    /// Nothing is heard for this client any more.
    pub(super) fn stop_listening(&mut self) {
        if let Some(listening) = self.listening.take() {
            if let Some((listener, _)) = &listening.listener {
                listener.leave_all(&listening.ear);
            }
            self.tracker.hear_elsewhere(None);
        }
    }

    /// Carries out what has been committed, catches up with what others have notified, and ends the answer.
    pub(super) async fn settle_channels(&mut self) -> Result<(), SessionError> {
        if self.link.as_ref().is_some_and(|c| c.state.tx() != Tx::Idle) {
            return Ok(());
        }
        let Some(listening) = &mut self.listening else { return Ok(()) };
        let mut wanted = listening.channels.clone();
        for change in mem::take(&mut listening.due) {
            match change {
                ChannelChange::Listen(name) => {
                    listening.is_worn = true;
                    wanted.insert(name);
                }
                ChannelChange::Unlisten(name) => {
                    wanted.remove(&name);
                }
                ChannelChange::UnlistenAll => wanted.clear(),
            }
        }
        let left: Vec<_> = listening.channels.difference(&wanted).cloned().collect();
        let new: Vec<_> = wanted.difference(&listening.channels).cloned().collect();
        if !left.is_empty()
            && let Some((listener, _)) = &listening.listener
        {
            listening.channels.retain(|name| wanted.contains(name));
            listener.leave(&listening.ear, left).await;
        }
        let is_worn = mem::take(&mut listening.is_worn);
        if !new.is_empty() {
            if !self.hand_over(new).await {
                debug!(client = self.handle.number, "its channels cannot be heard for it");
                self.keep_for_channels();
            }
        } else if let Some((listener, _)) = &listening.listener
            && !listener.catch_up().await
        {
            return Err(SessionError::Missed(Missed::Listener));
        }
        if is_worn {
            self.make_deaf().await?;
        }
        self.tell_heard()?;
        self.tracker.end_answer(&mut self.down);
        if self.listening.as_ref().is_some_and(|listening| listening.channels.is_empty()) {
            self.stop_listening();
        } else {
            self.show_channels();
        }
        if self.is_free() {
            self.release(Instant::now());
        }
        Ok(())
    }

    /// Has the listener hear these channels too. False where that cannot be.
    async fn hand_over(&mut self, new: Vec<Box<str>>) -> bool {
        let (Some(listening), Some(connection)) = (&mut self.listening, &self.link) else { return false };
        let target = connection.target().clone();
        if listening.listener.as_ref().is_some_and(|(_, at)| *at != target.index) {
            return false;
        }
        let Some(secrets) = self.endpoint.proxy.secret(&self.key.user) else { return false };
        match channels::join(&target, &self.key, &secrets, &listening.ear, new.clone()).await {
            Some(listener) => {
                listening.listener = Some((listener, target.index));
                listening.channels.extend(new);
                true
            }
            None => false,
        }
    }

    /// True when a statement is about to run that reads what channels the session hears, or begins a transaction in which
    /// one may.
    pub(super) fn must_wear_channels(&self) -> bool {
        self.pending.rare.as_ref().is_some_and(|rare| rare.wears_channels)
            && self.listening.as_ref().is_some_and(|listening| !listening.is_worn)
            && self.link.as_ref().is_some_and(|c| c.state.tx() == Tx::Idle && c.state.is_quiet())
            && self.nothing_is_halfway()
    }

    /// The held connection hears the client's channels for as long as a statement or transaction runs that may read what they
    /// are.
    pub(super) async fn wear_channels(&mut self) -> Result<(), SessionError> {
        self.pending.rare().wears_channels = false;
        let (Some(listening), Some(connection)) = (&mut self.listening, &mut self.link) else {
            return Ok(());
        };
        let names: Vec<&str> = listening.channels.iter().map(|name| &**name).collect();
        let mut request = Vec::new();
        P::write_listen(&mut connection.state, &names, &mut request);
        let (_, error) = connection.exchange(&request).await.map_err(lost)?;
        // A standby refuses: nobody listens there, and it says so.
        listening.is_worn = error.is_none();
        pass_on::<P>(&connection.state.take_heard(), &self.listening, &mut self.down);
        Ok(())
    }

    /// The held connection hears nothing any more of what the listener hears.
    async fn make_deaf(&mut self) -> Result<(), SessionError> {
        let (Some(listening), Some(connection)) = (&mut self.listening, &mut self.link) else {
            return Ok(());
        };
        // What it has said of them by now the listener has said, or was said before the answer.
        let (tracker, up, down) = (&mut self.tracker, &mut self.up, &mut self.down);
        let quiet = async {
            loop {
                if up.has_output() {
                    let flushed = poll_fn(|cx| up.poll_flush(&mut connection.stream, cx)).await;
                    flushed.map_err(SessionError::ServerLost)?;
                }
                tracker.on_server(down, &mut connection.state).map_err(SessionError::Server)?;
                if connection.state.is_quiet() && down.unread().is_empty() {
                    return Ok(());
                }
                let read = poll_fn(|cx| down.poll_fill(&mut connection.stream, cx)).await;
                if read.map_err(SessionError::ServerLost)? == 0 {
                    return Err(SessionError::ServerLost(io::ErrorKind::UnexpectedEof.into()));
                }
            }
        };
        let late = |_| Err(SessionError::ServerLost(io::ErrorKind::TimedOut.into()));
        timeout(QUIET_TIMEOUT, quiet).await.unwrap_or_else(late)?;
        let names: Vec<&str> = listening.channels.iter().map(|name| &**name).collect();
        let mut request = Vec::new();
        P::write_unlisten(&mut connection.state, &names, &mut request);
        let outcome = connection.exchange(&request).await;
        pass_on::<P>(&connection.state.take_heard(), &self.listening, &mut self.down);
        match outcome {
            Ok((_, None)) => Ok(()),
            // The client's own request is done, and nothing of the client is there, nor is the server to be asked for it.
            _ if self.pins.is_empty() && self.question.is_none() => {
                if let Some(connection) = self.link.take() {
                    self.handle.let_go();
                    connection.retire();
                }
                Ok(())
            }
            Ok((_, Some(error))) => Err(SessionError::ServerLost(io::Error::other(error))),
            Err(error) => Err(lost(error)),
        }
    }

    /// The held connection hears what nobody else can hear for this client.
    fn keep_for_channels(&mut self) {
        let before = self.pins;
        self.pins.insert(PinReason::Listen);
        let id = self.link.as_ref().map_or(0, |c| c.state.key().id);
        self.note_pins(before, super::Cause::default(), Instant::now(), id);
        self.handle.set_activity(crate::proxy::Activity::Pinned);
    }

    /// True when notifications may be written now: between requests, outside a transaction, to a client that reads.
    pub(super) fn may_be_told(&self) -> bool {
        self.down.waiting() < MAX_UNHEARD_BYTES
            && self.tracker.deferred() == Tx::Idle
            && match &self.link {
                None => true,
                Some(connection) => {
                    connection.state.tx() == Tx::Idle
                        && connection.state.is_quiet()
                        && self.nothing_is_halfway()
                }
            }
    }

    /// Writes what has been heard. Errors: something was missed.
    pub(super) fn tell_heard(&mut self) -> Result<(), SessionError> {
        self.handle.clear(HEARD);
        let Some(listening) = &self.listening else { return Ok(()) };
        let heard = listening.ear.take();
        match heard.lost {
            Some(Lost::Server) => return Err(SessionError::Missed(Missed::Listener)),
            Some(Lost::TooMany) => return Err(SessionError::Missed(Missed::TooMany)),
            None => {}
        }
        if heard.is_wide && !self.tracker.reads_utf8() {
            return Err(SessionError::Missed(Missed::Encoding));
        }
        self.down.emit(&heard.bytes);
        Ok(())
    }
}

/// Of what the server connection has heard, gives the client what it does not hear by `listening`.
pub(super) fn pass_on<P: Protocol>(heard: &[u8], listening: &Option<Box<Listening>>, down: &mut Pipe) {
    let Some(listening) = listening else { return down.emit(heard) };
    for notification in P::notifications(heard) {
        if !listening.channels.contains(notification.channel) {
            down.emit(notification.message);
        }
    }
}
