//! One client from its first statement to its goodbye.
//!
//! One task owns the client's socket and, while it holds one, the server's: nothing is handed to another task
//! between a request and its reply. The protocol judges bytes ([`Tracker`]); this module moves them, borrows server
//! connections and gives them back, and keeps the pins.

use std::{
    future::poll_fn,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use tokio::task::JoinHandle;
use tracing::{debug, info, warn};

use crate::{
    config::Profile,
    metrics::ResetCause,
    plugin::{Decision, SessionNames},
    pool::Pooled,
    protocol::{
        ChannelChange, ClientEvent, Facts, Fault, FaultKind, PinReason, PinReasons, PoolKey, Protocol,
        ProtocolError, ServerEvent, ServerState, Severity, Statement, StatementKind, Tracker, Tx,
    },
    proxy::{Activity, CHECK, DRAIN, Endpoint, HEARD, PinNote, STOP, SessionHandle, YIELD},
    router::Route,
    server::{ServerConnection, give_back_after},
    state::Settings,
    stream::Stream,
    target::{Pinned, Target},
};

pub mod borrow;
pub mod cancel;
pub(crate) mod carry;
mod channels;
pub(crate) mod place;
mod policy;
mod settings;

use crate::buffer::{Buffer, Pipe};
use carry::Luggage;
use channels::Listening;
pub use channels::Missed;
use place::Places;
use settings::{Change, Question};

/// Answers that may wait for a client to read them before it is read no further.
const MAX_UNHEARD_BYTES: usize = 64 * 1024;
/// For a last message to a client that does not read.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(2);
/// For the requests under way of a client that said goodbye; then they are cancelled.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(60);
/// Statement text over this pins in profile `rds` (row PIN-A-01 of docs/session.md).
const RDS_STATEMENT_BYTES: usize = 16 * 1024;
/// For so long a connection is kept for a client that may ask what its last statement left.
pub(crate) const FUNCTION_HOLD: Duration = Duration::from_secs(1);

/// Why a session ended other than by the client's goodbye. `Display` is for our log; [`Self::fault`] is for the
/// client.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// Its socket failed or closed.
    #[error("client went away")]
    ClientGone(#[source] io::Error),
    /// It broke the protocol.
    #[error("client broke the protocol: {0}")]
    Client(#[source] ProtocolError),
    /// The server broke the protocol.
    #[error("server broke the protocol: {0}")]
    Server(#[source] ProtocolError),
    /// The server's socket failed or closed while this client held it.
    #[error("server connection lost")]
    ServerLost(#[source] io::Error),
    /// No request for longer than `idle_client_timeout`.
    #[error("idle for too long")]
    Idle,
    /// Connected for longer than `max_client_lifetime`.
    #[error("connected for too long")]
    LifetimeOver,
    /// Its client cancelled the request while it waited for a server connection; the session goes on.
    #[error("cancelled while waiting")]
    Cancelled,
    /// Its client logs in anew.
    #[error("logs in anew")]
    LogsIn,
    /// It has missed notifications, or would.
    #[error("missed notifications")]
    Missed(#[source] Missed),
    /// Its temporary tables, which it had taken along, cannot be made again.
    #[error("temporary tables lost")]
    TablesLost,
    /// Drain or stop.
    #[error("shutting down")]
    ShuttingDown,
}

/// A client that leaves its session in order to log in anew.
pub(crate) struct Returning<P: Protocol> {
    pub(crate) stream: Stream,
    pub(crate) input: Buffer,
    pub(crate) handle: Arc<SessionHandle>,
    pub(crate) key: Arc<PoolKey>,
    pub(crate) client: P::Client,
    pub(crate) request: Vec<u8>,
}

impl SessionError {
    /// What the client is told; `None` when nobody is left to tell. No `_` arm: a new error must choose.
    #[must_use]
    pub fn fault(&self) -> Option<Fault> {
        match self {
            Self::ClientGone(_) | Self::Cancelled | Self::LogsIn => None,
            Self::Client(error) => Some(Fault::fatal(FaultKind::ProtocolViolation, error.to_string())),
            Self::Server(_) | Self::ServerLost(_) => {
                Some(Fault::fatal(FaultKind::ServerLost, "The connection to the database server was lost."))
            }
            Self::Idle => Some(Fault::fatal(
                FaultKind::IdleTimeout,
                "terminating connection due to idle-session timeout",
            )),
            Self::LifetimeOver => Some(Fault::fatal(
                FaultKind::LifetimeOver,
                "terminating connection because it reached its maximum lifetime",
            )),
            Self::Missed(missed) => Some(missed.fault()),
            Self::TablesLost => Some(Fault::fatal(
                FaultKind::StateLost,
                "The temporary tables of this session could not be made again.",
            )),
            Self::ShuttingDown => Some(Fault::fatal(
                FaultKind::ShuttingDown,
                "terminating connection due to administrator command",
            )),
        }
    }
}

/// One logged-in client.
pub struct Session<P: Protocol> {
    pub(crate) endpoint: Arc<Endpoint<P>>,
    pub(crate) handle: Arc<SessionHandle>,
    pub(crate) client: Stream,
    /// From the client to the server.
    pub(crate) up: Pipe,
    /// From the server to the client.
    pub(crate) down: Pipe,
    pub(crate) tracker: P::Tracker,
    pub(crate) key: Arc<PoolKey>,
    /// The pools joined so far, one a target.
    pub(crate) places: Places,
    /// Where policy wants the next request to run.
    pub(crate) route: Route,
    /// `currval` and `lastval` have been seen in this pool.
    pub(crate) session_functions: Arc<AtomicBool>,
    /// The server connection held, be it for a request, a transaction or a pin.
    link: Option<Box<ServerConnection<P>>>,
    /// The held connection was told to forget what sequences returned to others; not yet answered.
    forgetting: bool,
    /// To be forgotten as soon as there is a connection.
    forget_on_borrow: bool,
    pins: PinReasons,
    /// Set while there is a pin.
    pinning: Option<Box<Pinning<P>>>,
    pending: Pending,
    /// The request under way: when it came, and when it went to the server.
    received: Option<Instant>,
    sent: Option<Instant>,
    /// The client must wait for the server before more of its bytes are understood.
    wants_answer: bool,
    /// As plugins know it.
    names: Box<SessionNames>,
    /// For observers; `None` while there are none.
    notes: Option<Box<policy::Notes>>,
    /// Events that there was no room for, where observers may hold up clients.
    backlog: Option<Box<policy::Backlog>>,
    /// What is set again on each connection that serves this client.
    settings: Option<Arc<Settings>>,
    /// Those that a statement takes back which clears these need not be made for what is borrowed now, should that fail.
    taken_back: PinReasons,
    /// What the server is to be asked before the held connection may serve others.
    question: Option<Box<Question>>,
    /// The notification channels that it hears by the target's listener.
    listening: Option<Box<Listening>>,
    /// Temporary tables that are on no connection now.
    luggage: Option<Box<Luggage>>,
}

/// What the statements under way will have done once they are through.
#[derive(Debug, Default)]
struct Pending {
    sets: PinReasons,
    clears: PinReasons,
    /// By the server's word nothing of these is left.
    ended: PinReasons,
    statements: u32,
    /// Not all of them began outside a transaction.
    in_transaction: bool,
    /// The connection they get is tainted.
    taints: bool,
    /// They run code that no text shows, or may.
    hides: bool,
    /// What few statements do.
    rare: Option<Box<Rare>>,
    /// Statements reported; a text of several is one.
    reported: u16,
    /// One of them begins or ends transactions, or may.
    moves_transaction: bool,
    /// One of them writes.
    writes: bool,
    /// Of the last statement.
    digest: u128,
    text: Option<Arc<Facts>>,
}

/// Of what statements under way will have done, that which few do: an idle client should not pay for it.
#[derive(Debug, Default)]
struct Rare {
    /// What they do to the settings that are replayed, in order.
    settings: Vec<Change>,
    /// They change settings in a way that is not followed.
    unsettles: bool,
    /// What has become of these settings may have to be asked.
    touched: Vec<Box<str>>,
    /// It must be asked.
    asks: bool,
    /// About any setting there may be.
    asks_all: bool,
    /// About those that code of the database may change.
    ran_code: bool,
    /// Such code was called by name, which leaves nothing where its source shows nothing of the kind.
    calls: bool,
    /// Of these pins some part may have ended.
    may_end: PinReasons,
    /// What they do to the channels that are heard, in order.
    channels: Vec<ChannelChange>,
    /// They may read which channels those are, so the connection must hear them too.
    wears_channels: bool,
    /// What does not pin, be it that the server says so: filter or policy lets it go.
    lets_go: PinReasons,
    /// The plugin by whose word one of them pins.
    plugin: Option<Arc<str>>,
}

/// A session while it is pinned.
struct Pinning<P: Protocol> {
    since: Instant,
    /// Against what may be pinned.
    counts: Option<Pinned<P>>,
    /// The statement that brought the last reason.
    cause: Cause,
    /// Its tables cannot be taken along, as they are.
    stays: bool,
    /// There may be more than is known of: code that no text shows has run.
    hides: bool,
    /// A plugin wanted one of the pins.
    by_plugin: bool,
}

impl<P: Protocol> Pinning<P> {
    /// True when what is known of it, and who wanted it, lets its tables be taken along.
    fn may_carry(&self) -> bool {
        !self.stays && !self.hides && !self.by_plugin
    }

    fn new(since: Instant, cause: Cause) -> Box<Self> {
        Box::new(Self { since, counts: None, cause, stays: false, hides: false, by_plugin: false })
    }
}

/// The statement behind a pin.
#[derive(Debug, Default, Clone)]
struct Cause {
    digest: u128,
    /// What is known of it; `None` for a command.
    text: Option<Arc<Facts>>,
    /// The plugin that decided it.
    plugin: Option<Arc<str>>,
}

impl Pending {
    fn rare(&mut self) -> &mut Rare {
        self.rare.get_or_insert_default()
    }

    /// True when what its statements did, each by itself, may have been undone or kept by others of them.
    fn is_entangled(&self) -> bool {
        self.moves_transaction && self.reported > 1
    }
}

/// Why [`Session::turn`] came back.
enum Turn {
    /// The client sent something.
    Client,
    /// The server has answered a request whole.
    Answered { failed: bool, nothing_ran: bool },
    /// The server connection is not needed any more.
    Free,
    /// What could not be asked when the request was answered can be asked now.
    Question,
    /// Somebody signalled.
    Signal,
}

impl<P: Protocol> Session<P> {
    /// A session that holds nothing yet.
    #[expect(clippy::too_many_arguments, reason = "made in one place, from what the handshake gathered")]
    pub(crate) fn new(
        endpoint: Arc<Endpoint<P>>,
        handle: Arc<SessionHandle>,
        client: Stream,
        up: Pipe,
        down: Pipe,
        tracker: P::Tracker,
        key: Arc<PoolKey>,
        places: Places,
        session_functions: Arc<AtomicBool>,
        names: SessionNames,
    ) -> Self {
        let pins = tracker.standing_pins();
        Self {
            endpoint,
            handle,
            client,
            up,
            down,
            tracker,
            key,
            places,
            route: Route::Endpoint,
            session_functions,
            link: None,
            forgetting: false,
            forget_on_borrow: false,
            pins,
            pinning: (!pins.is_empty()).then(|| Pinning::new(Instant::now(), Cause::default())),
            pending: Pending::default(),
            received: None,
            sent: None,
            wants_answer: false,
            names: Box::new(names),
            notes: None,
            backlog: None,
            settings: None,
            taken_back: PinReasons::NONE,
            question: None,
            listening: None,
            luggage: None,
        }
    }

    /// Serves the client to its end, or until it logs in anew.
    pub(crate) async fn run(mut self: Box<Self>) -> Option<Box<Returning<P>>> {
        self.observe_start();
        let ended = self.serve().await;
        // Boxed, as are other rare ways below: what they need should not weigh on an idle client.
        Box::pin(self.finish(ended)).await
    }

    /// Request after request. What concerns one request is answered and the client stays; `Err` ends the session.
    async fn serve(&mut self) -> Result<(), SessionError> {
        loop {
            if self.is_pressed() || self.must_wear_channels() {
                Box::pin(self.prepare()).await?;
            }
            self.watch();
            let server = self.link.as_deref_mut().map(|c| &mut c.state);
            let event = self
                .tracker
                .on_client(&self.endpoint.proxy.shared, &mut self.up, server, &mut self.down)
                .map_err(SessionError::Client)?;
            match event {
                ClientEvent::Statement(statement) => {
                    self.consult(statement);
                    continue;
                }
                ClientEvent::NeedServer => {
                    self.wants_answer = false;
                    self.take_server().await?;
                    continue;
                }
                ClientEvent::AnsweredHere => {
                    self.answered_here(None);
                    continue;
                }
                ClientEvent::Kill(kill) => {
                    let outcome = Box::pin(self.endpoint.proxy.kill(kill, &self.key.user)).await;
                    self.tracker.killed(outcome, &mut self.up, &mut self.down);
                    self.answered_here(None);
                    continue;
                }
                ClientEvent::LogIn => {
                    self.flush_client().await?;
                    return Err(SessionError::LogsIn);
                }
                ClientEvent::Quit => return Box::pin(self.see_off()).await,
                ClientEvent::NeedAnswer => self.wants_answer = true,
                ClientEvent::NeedBytes => {
                    self.wants_answer = false;
                    if self.link.is_none() || self.has_nothing_under_way() {
                        self.answered_here(None);
                    }
                }
            }
            let answered = match self.turn().await? {
                Turn::Answered { failed, nothing_ran } => {
                    self.answered(failed, nothing_ran);
                    true
                }
                Turn::Question => true,
                Turn::Client => false,
                Turn::Free => {
                    self.release(Instant::now());
                    false
                }
                Turn::Signal => {
                    let wanted = self.handle.signals() & YIELD != 0;
                    self.on_signal()?;
                    if wanted {
                        Box::pin(self.make_way()).await?;
                    }
                    false
                }
            };
            if answered && (self.listening.is_some() || self.must_ask()) {
                Box::pin(self.follow_up()).await?;
            }
        }
    }

    /// Before more of the client's bytes are looked at, where something has to be done first.
    async fn prepare(&mut self) -> Result<(), SessionError> {
        if self.is_pressed() {
            self.relieve().await;
        }
        if self.must_wear_channels() {
            self.wear_channels().await?;
            self.forget_on_borrowing();
        }
        Ok(())
    }

    /// After an answer, where it leaves something to be done.
    async fn follow_up(&mut self) -> Result<(), SessionError> {
        self.settle_channels().await?;
        if self.must_ask() {
            self.ask_server().await?;
        }
        Ok(())
    }

    /// Before a statement runs: what it will pin, and whether it leaves the connection tainted. Errors: policy refuses
    /// the statement for what it would pin.
    fn decide(&mut self, statement: &Statement, decisions: &mut Vec<Decision>) -> Result<(), Fault> {
        let now = *self.received.get_or_insert_with(Instant::now);
        self.handle.touch(now);
        let facts = &statement.facts;
        if facts.resets_all() {
            self.endpoint.proxy.sessions.disown(&self.handle);
        }
        let settings = self.endpoint.proxy.settings();
        let excluded = if settings.pool.exclude_variable_sets {
            PinReasons::only(PinReason::SessionVariable).union(PinReasons::only(PinReason::SessionIdentity))
        } else {
            PinReasons::NONE
        };
        let wanted = match settings.profile {
            Profile::Smart => facts.pins,
            Profile::Rds if statement.bytes > RDS_STATEMENT_BYTES => {
                facts.rds_pins.union(PinReasons::only(PinReason::StatementSize))
            }
            Profile::Rds => facts.rds_pins,
        };
        let smart = settings.profile == Profile::Smart;
        // What the init query has set may be reset by a client; it must be set again for the next.
        let undoes_init = !settings.pool.init_query.is_empty()
            && (facts.changes_settings || facts.statements > 1 || !facts.clears.is_empty());
        drop(settings);
        let mut sets = wanted.union(statement.extra_pins);
        let mut clears = PinReasons::NONE;
        let in_transaction = self.in_transaction();
        if smart && !in_transaction {
            clears = facts.clears;
        }
        let function = PinReasons::only(PinReason::SessionFunction);
        if smart && !facts.needs_session_function {
            let known = self.session_functions.load(Ordering::Relaxed);
            if known && (facts.kind == StatementKind::Write || sets.contains(PinReason::SessionFunction)) {
                sets = sets.union(function);
            } else {
                sets = sets.without(function);
                if facts.kind != StatementKind::Transaction {
                    clears = clears.union(function);
                }
            }
        }
        if smart && P::KNOWS_WHAT_IS_LEFT {
            sets = sets.without(function);
        }
        let policy = self.ask_pins(statement, sets, decisions)?;
        if !policy.pin.is_empty() {
            let by = decisions.iter().rfind(|decision| decision.verdict == "pin");
            self.pending.rare().plugin = by.map(|decision| decision.plugin.clone());
        }
        let replayed = match &policy.replay {
            Some(_) => PinReasons::only(PinReason::SessionVariable),
            None => PinReasons::NONE,
        };
        let moved = self
            .moved(facts, smart, in_transaction)
            .union(self.heard_elsewhere(facts, smart, in_transaction))
            .without(policy.pin)
            .without(policy.ignore);
        let lets_go = excluded.without(policy.pin).union(policy.ignore);
        if facts.kind == StatementKind::Session || !sets.intersection(lets_go).is_empty() {
            let rare = self.pending.rare();
            rare.lets_go = rare.lets_go.union(lets_go);
        }
        sets = sets.without(lets_go).without(policy.follow).without(replayed).without(moved);
        sets = sets.union(statement.extra_pins);
        if let Some(connection) = &self.link
            && let Some(fault) = self.pin_fault(connection.target(), sets)
        {
            return Err(fault);
        }
        if smart && facts.needs_session_function && !P::KNOWS_WHAT_IS_LEFT {
            self.session_functions.store(true, Ordering::Relaxed);
        }
        if facts.needs_session_function {
            match self.link {
                Some(_) => self.forget_foreign_sequences(),
                None => self.forget_on_borrow = true,
            }
        }
        if smart && !P::PROVABLE.is_empty() {
            let ignored = policy.ignore.contains(PinReason::SessionVariable);
            self.follow(statement, policy.replay, ignored, &mut sets, in_transaction);
        } else {
            self.follow_replayed(statement, policy.replay, &mut sets, in_transaction);
        }
        // What profile, filter or policy lets go without a pin must still not reach another client.
        let unpinned = facts.pins.without(sets).without(function).without(replayed).without(moved);
        let taints = facts.taints || undoes_init || !unpinned.is_empty();
        if taints {
            self.pending.hides = true;
            match &mut self.link {
                Some(connection) => connection.tainted = true,
                None => self.pending.taints = true,
            }
        }
        self.note_channels(facts, moved);
        self.pending.sets = self.pending.sets.union(sets);
        self.pending.clears = self.pending.clears.union(clears);
        self.pending.statements += u32::from(facts.statements.max(1));
        self.pending.reported = self.pending.reported.saturating_add(1);
        self.pending.moves_transaction |= facts.moves_transaction;
        self.pending.in_transaction |= in_transaction;
        self.pending.digest = statement.digest;
        self.pending.text = Some(facts.clone());
        Ok(())
    }

    /// Gets a server connection for the request at the front, or refuses that request.
    async fn take_server(&mut self) -> Result<(), SessionError> {
        // What takes settings back need not have them made first, which may be what fails.
        self.taken_back = match &self.pending.text {
            Some(text) if self.pending.reported == 1 && text.statements == 1 && !self.in_transaction() => {
                text.clears
            }
            _ => PinReasons::NONE,
        };
        let now = *self.received.get_or_insert_with(Instant::now);
        let routed = match self.carried_route() {
            Some(route) => {
                self.route = route;
                Ok(true)
            }
            None => self.route().await?,
        };
        let borrowed = match routed {
            Ok(true) => self.borrow(now).await?,
            // The same bytes and some more are looked at again.
            Ok(false) => return Ok(()),
            Err(fault) => Err(fault),
        };
        let borrowed = match borrowed {
            Ok(connection) => match self.pin_fault(connection.target(), self.pending.sets) {
                Some(fault) => {
                    let (pool, id) = self.home_of(&connection);
                    pool.give_back(id, connection, now);
                    Err(fault)
                }
                None => Ok(connection),
            },
            refused => refused,
        };
        let ends =
            |text: &Arc<Facts>| text.statements == 1 && text.clears.contains(PinReason::TemporaryTable);
        if borrowed.is_ok() && self.pending.reported == 1 && self.pending.text.as_ref().is_some_and(ends) {
            // Even behind a `BEGIN` that no server has run.
            self.luggage = None;
        }
        let borrowed = match borrowed {
            Ok(connection) if self.luggage.is_some() => match Box::pin(self.unpack(connection)).await? {
                Some(outcome) => outcome,
                // The same bytes are looked at again.
                None => return Ok(()),
            },
            borrowed => borrowed,
        };
        match borrowed {
            Ok(mut connection) => {
                self.handle.hold(connection.cancellable.clone());
                connection.tainted |= std::mem::take(&mut self.pending.taints);
                self.tracker.attach(&connection.state);
                self.link = Some(connection);
                self.note_unpacked(now);
                if !self.must_wear_channels() {
                    self.forget_on_borrowing();
                }
            }
            Err(mut fault) => {
                // One request failed; the client stays, whatever the server thought of our login.
                fault.severity = Severity::Error;
                self.tracker.refuse(&fault, &mut self.up, &mut self.down);
                self.answered_here(Some(&fault));
            }
        }
        Ok(())
    }

    fn forget_on_borrowing(&mut self) {
        if std::mem::take(&mut self.forget_on_borrow) || self.session_functions.load(Ordering::Relaxed) {
            self.forget_foreign_sequences();
        }
    }

    /// What sequences returned to others on the held connection must not be told to this client. In a failed
    /// transaction nothing runs, this included.
    fn forget_foreign_sequences(&mut self) {
        if let Some(connection) = &mut self.link
            && !self.forgetting
            && connection.state.tx() != Tx::Failed
            && connection.has_foreign_sequences(self.handle.owner())
        {
            self.tracker.write_forget_session_functions(&mut connection.state, &mut self.up);
            self.forgetting = true;
        }
    }

    /// Moves bytes until there is something to decide. Both directions at once, each bounded: a side that does not
    /// read is not read from either, but never keeps the other from flowing.
    async fn turn(&mut self) -> Result<Turn, SessionError> {
        poll_fn(|cx| self.poll_turn(cx)).await
    }

    fn poll_turn(&mut self, cx: &mut Context<'_>) -> Poll<Result<Turn, SessionError>> {
        self.handle.waker().register(cx.waker());
        if self.must_heed(self.handle.signals()) {
            return Poll::Ready(Ok(Turn::Signal));
        }
        let mut fed = false;
        loop {
            if self.down.has_output()
                && let Poll::Ready(flushed) = self.down.poll_flush(&mut self.client, cx)
            {
                flushed.map_err(SessionError::ClientGone)?;
                // There may be room for more now.
                if self.listening.is_some() && self.must_heed(self.handle.signals()) {
                    return Poll::Ready(Ok(Turn::Signal));
                }
            }
            if let Some(server) = &mut self.link {
                if self.up.has_output()
                    && let Poll::Ready(Err(e)) = self.up.poll_flush(&mut server.stream, cx)
                {
                    return Poll::Ready(Err(SessionError::ServerLost(e)));
                }
                // What was read is judged before more is read; what was judged is written first.
                match self
                    .tracker
                    .on_server(&mut self.down, &mut server.state)
                    .map_err(SessionError::Server)?
                {
                    ServerEvent::Answered { failed, nothing_ran } => {
                        if let Poll::Ready(Err(e)) = self.down.poll_flush(&mut self.client, cx) {
                            return Poll::Ready(Err(SessionError::ClientGone(e)));
                        }
                        return Poll::Ready(Ok(Turn::Answered { failed, nothing_ran }));
                    }
                    ServerEvent::NeedBytes => {}
                }
                if fed && self.wants_answer {
                    // Some answer came; perhaps it is the one that the client's bytes wait for. Before the connection
                    // is given back for want of work, or what was made ready for them would be made ready for ever.
                    return Poll::Ready(Ok(Turn::Client));
                }
                if self.is_free() {
                    return Poll::Ready(Ok(Turn::Free));
                }
                if self.must_ask() {
                    return Poll::Ready(Ok(Turn::Question));
                }
                let Some(server) = &mut self.link else { continue };
                if self.down.has_output()
                    && let Poll::Ready(Err(e)) = self.down.poll_flush(&mut self.client, cx)
                {
                    return Poll::Ready(Err(SessionError::ClientGone(e)));
                }
                if !self.down.has_output() {
                    match self.down.poll_fill(&mut server.stream, cx) {
                        Poll::Ready(Ok(0)) => {
                            return Poll::Ready(Err(SessionError::ServerLost(
                                io::ErrorKind::UnexpectedEof.into(),
                            )));
                        }
                        Poll::Ready(Ok(_)) => {
                            fed = true;
                            continue;
                        }
                        Poll::Ready(Err(e)) => return Poll::Ready(Err(SessionError::ServerLost(e))),
                        Poll::Pending => {}
                    }
                }
            }
            // What passes is written from the buffer it was read into, so all of it goes before more is read.
            let heard = self.down.waiting() < MAX_UNHEARD_BYTES;
            if !self.up.has_output() && !self.wants_answer && heard {
                match self.up.poll_fill(&mut self.client, cx) {
                    Poll::Ready(Ok(0)) => {
                        return Poll::Ready(Err(SessionError::ClientGone(
                            io::ErrorKind::UnexpectedEof.into(),
                        )));
                    }
                    Poll::Ready(Ok(_)) => return Poll::Ready(Ok(Turn::Client)),
                    Poll::Ready(Err(e)) => return Poll::Ready(Err(SessionError::ClientGone(e))),
                    Poll::Pending => {}
                }
            }
            if self.link.is_none() {
                // An idle client owns no buffer: no read would find the one of its last answer empty.
                self.up.release();
                self.down.release();
            }
            return Poll::Pending;
        }
    }

    /// A request has been answered whole.
    fn answered(&mut self, failed: bool, nothing_ran: bool) {
        let now = Instant::now();
        self.handle.touch(now);
        let (received, sent) = (self.received, self.sent);
        self.account(now);
        let Some(connection) = &mut self.link else { return };
        if connection.state.take_forgot() {
            connection.forgot_sequences();
        }
        self.forgetting = false;
        let tx = connection.state.tx();
        let id = connection.state.key().id;
        let mut pending = std::mem::take(&mut self.pending);
        self.settle_settings(&mut pending, failed, nothing_ran);
        self.settle_channel_changes(&mut pending, failed, nothing_ran);
        self.take_over(&mut pending, failed && !nothing_ran);
        let question = self.question_about(&pending, failed, nothing_ran);
        self.settle_pins(pending, failed, nothing_ran, now, id);
        self.raise(question);
        if self.question.is_none() && tx == Tx::Idle {
            self.tracker.settled(self.settings.as_ref());
        }
        match received {
            Some(received) => self.observe(received, sent, now, None),
            // Nothing was reported that could have an outcome.
            None => drop(self.tracker.take_outcomes()),
        }
        self.handle.set_activity(match () {
            () if !self.pins.is_empty() => Activity::Pinned,
            () if tx == Tx::Idle && self.tracker.deferred() == Tx::Idle => Activity::Other,
            () => Activity::InTransaction,
        });
        if let Some(connection) = &mut self.link {
            self.tracker.write_question(&mut connection.state, &mut self.up);
        }
        if self.is_free() {
            self.release(now);
        }
    }

    /// True when the held connection is clean as far as this session can tell: quiet, nothing of it half-read or
    /// half-written, outside a transaction, not pinned, and no statement decided for it that has not run.
    fn is_free(&self) -> bool {
        self.link.as_ref().is_some_and(|c| c.state.tx() == Tx::Idle && c.state.is_quiet())
            && self.pins.is_empty()
            && self.pending.statements == 0
            && self.question.is_none()
            && self.listening.as_ref().is_none_or(|listening| !listening.is_due())
            && self.nothing_is_halfway()
    }

    /// True when nothing of the client's lies with the server, nor is on its way there or still to be looked at.
    fn has_nothing_under_way(&self) -> bool {
        self.link.as_ref().is_some_and(|c| c.state.is_quiet())
            && self.nothing_is_halfway()
            && self.up.unread().is_empty()
    }

    fn is_pinned(&self) -> bool {
        !self.pins.is_empty()
    }

    /// True when no message of either side is half-read or half-written.
    fn nothing_is_halfway(&self) -> bool {
        !self.tracker.is_mid_message() && !self.up.has_output() && self.down.unread().is_empty()
    }

    /// What came was answered without a server.
    fn answered_here(&mut self, fault: Option<&Fault>) {
        if let Some(received) = self.received.take() {
            self.forgo_channels(fault);
            self.pending = Pending::default();
            self.forget_on_borrow = false;
            self.sent = None;
            self.observe(received, None, Instant::now(), fault);
            self.endpoint.metrics.query_refused(self.client.is_tls(), received.elapsed());
            if self.link.is_none() {
                self.handle.set_activity(match self.tracker.deferred() {
                    Tx::Idle => Activity::Other,
                    Tx::Open | Tx::Failed => Activity::InTransaction,
                });
            }
        }
    }

    fn account(&mut self, now: Instant) {
        let Some(received) = self.received.take() else { return };
        let sent = self.sent.take().unwrap_or(received);
        let total = now.saturating_duration_since(received);
        let database = now.saturating_duration_since(sent);
        self.endpoint.metrics.query_finished(self.client.is_tls(), total, database);
        if let Some(connection) = &self.link {
            connection.target().metrics.responded(database);
        }
        if let Some(slow) = self.endpoint.proxy.slow_query.load().as_deref()
            && total >= *slow
        {
            let text = self.pending.text.as_ref().map_or("", |facts| facts.digest_text.as_str());
            warn!(
                proxy = %self.endpoint.proxy.name, endpoint = %self.endpoint.name, user = %self.key.user,
                client = self.handle.number, seconds = total.as_secs_f64(), database_seconds = database.as_secs_f64(),
                digest = %format_args!("{:032x}", self.pending.digest), text, "slow query"
            );
        }
    }

    /// Takes over what the statements just answered have done to the pins.
    fn settle_pins(
        &mut self,
        pending: Pending,
        failed: bool,
        nothing_ran: bool,
        now: Instant,
        connection: u32,
    ) {
        let before = self.pins;
        let mut sets = pending.sets;
        if nothing_ran {
            sets = PinReasons::NONE;
            if let Some(connection) = &mut self.link
                && !pending.sets.is_empty()
            {
                // By the server's word alone.
                connection.tainted = true;
            }
        } else if failed && pending.statements <= 1 && !pending.in_transaction {
            // A lone statement that failed is rolled back, and with it what a rollback undoes.
            sets = sets.without(PinReasons::ROLLED_BACK);
            if let Some(connection) = &mut self.link
                && sets != pending.sets
            {
                connection.tainted = true;
            }
        }
        // What a transaction still open has cleared may come back.
        let open = self.link.as_ref().is_some_and(|c| c.state.tx() != Tx::Idle);
        if !failed && !open && !pending.is_entangled() {
            self.pins = self.pins.without(pending.clears).union(self.tracker.standing_pins());
        }
        self.pins = self.pins.union(sets).without(pending.ended);
        if !before.is_empty()
            && self.pins.is_empty()
            && let Some(connection) = &mut self.link
        {
            // What functions return is nobody else's business, and told to nobody else.
            connection.tainted |= !before.without(PinReasons::only(PinReason::SessionFunction)).is_empty();
        }
        let Pending { digest, text, rare, hides, .. } = pending;
        let plugin = rare.and_then(|rare| rare.plugin);
        let by_plugin = plugin.is_some();
        let reads = text.as_ref().is_none_or(|text| text.kind == StatementKind::Select);
        self.note_pins(before, Cause { digest, text, plugin }, now, connection);
        if let Some(pinning) = &mut self.pinning {
            pinning.hides |= hides;
            pinning.by_plugin |= by_plugin;
            pinning.stays &= reads;
            self.handle.set_pin_stays(!pinning.may_carry());
        }
    }

    /// The session counts as pinned while anything but what functions return keeps its connection.
    fn count_pin(&mut self) {
        let lasts = !self.pins.without(PinReasons::only(PinReason::SessionFunction)).is_empty();
        if let (Some(pinning), Some(connection)) = (&mut self.pinning, &self.link) {
            match lasts {
                true => {
                    pinning.counts.get_or_insert_with(|| connection.target().pin());
                }
                false => pinning.counts = None,
            }
        }
    }

    /// What a statement is refused with that would pin one session too many on `target`.
    fn pin_fault(&self, target: &Arc<Target<P>>, sets: PinReasons) -> Option<Fault> {
        let function = PinReasons::only(PinReason::SessionFunction);
        let sets = sets.without(function);
        // Tables taken along are a pin that waits.
        if sets.is_empty()
            || self.luggage.is_some()
            || !self.pins.without(function).is_empty()
            || self.pinning.as_ref().is_some_and(|pinning| pinning.counts.is_some())
        {
            return None;
        }
        let settings = self.endpoint.proxy.settings();
        let percent = settings.pool.max_pinned_percent.unwrap_or(match settings.profile {
            Profile::Smart => 80,
            Profile::Rds => 100,
        });
        if percent == 100 || target.may_pin(percent) {
            return None;
        }
        let message = format!(
            "This statement would keep a server connection ({sets}), and no more of them may be kept."
        );
        let mut fault = Fault::error(FaultKind::TooManyPins, message);
        fault.hint = Some(format!("max_pinned_percent is {percent}."));
        Some(fault)
    }

    /// Tells log, metrics and the list of sessions what has become of the pins.
    fn note_pins(&mut self, before: PinReasons, cause: Cause, now: Instant, connection: u32) {
        let new = self.pins.without(before);
        if !new.is_empty() {
            self.endpoint.metrics.pinned(new);
            let text = cause.text.as_ref().map_or("", |facts| facts.digest_text.as_str());
            info!(
                proxy = %self.endpoint.proxy.name, endpoint = %self.endpoint.name, user = %self.key.user,
                client = self.handle.number, connection, reason = %new,
                digest = %format_args!("{:032x}", cause.digest), text, "session pinned"
            );
        }
        if before.is_empty() && !self.pins.is_empty() {
            self.pinning = Some(Pinning::new(now, cause));
        } else if !new.is_empty()
            && let Some(pinning) = &mut self.pinning
        {
            pinning.cause = cause;
        }
        self.count_pin();
        if !new.is_empty() {
            self.show_pin();
        } else if !before.is_empty() && !self.pins.is_empty() {
            self.handle.set_pin_reasons(self.pins);
        } else if !before.is_empty() {
            self.note_unpinned(now);
            debug!(client = self.handle.number, connection, "session unpinned");
        }
    }

    /// Tells the list of sessions why this one is pinned.
    fn show_pin(&self) {
        let Some(pinning) = &self.pinning else { return };
        let Cause { digest, text, plugin } = pinning.cause.clone();
        let (reasons, since, stays) = (self.pins, pinning.since, !pinning.may_carry());
        self.handle.note_pin(Some(Box::new(PinNote { reasons, since, digest, facts: text, plugin, stays })));
    }

    /// True when a transaction is open and nothing under way may end it: without its connection it is rolled back.
    fn has_lost_transaction(&self) -> bool {
        self.link.as_ref().is_some_and(|c| c.state.tx() != Tx::Idle) && !self.pending.moves_transaction
    }

    fn note_unpinned(&mut self, now: Instant) {
        self.handle.note_pin(None);
        if let Some(pinning) = self.pinning.take() {
            self.endpoint.metrics.unpinned(now.saturating_duration_since(pinning.since));
        }
    }

    /// Gives the held connection back. It is quiet, outside a transaction, and nothing pins it.
    fn release(&mut self, now: Instant) {
        let Some(mut connection) = self.link.take() else { return };
        self.handle.let_go();
        self.forgetting = false;
        connection.used_by(self.handle.owner(), now);
        connection.tainted |= connection.state.is_tainted();
        if connection.state.must_retire() || connection.cancellable.is_doubtful() {
            connection.retire();
        } else if connection.cancellable.is_under_way() {
            self.release_after_cancel(connection);
        } else {
            let (pool, id) = self.home_of(&connection);
            pool.give_back(id, connection, now);
        }
    }

    /// A cancel is on its way to this connection and might hit whoever uses it next: wait for it, then make one
    /// round trip, in which the server drops a cancel that found nothing to cancel.
    fn release_after_cancel(&mut self, mut connection: Box<ServerConnection<P>>) {
        let (pool, id) = self.home_of(&connection);
        give_back_after(pool, id, async move {
            connection.cancellable.clone().over().await;
            match connection.probe().await {
                Ok(()) if !connection.cancellable.is_doubtful() => Ok(connection),
                _ => Err(connection),
            }
        });
    }

    /// True for signals that the session can act on now.
    fn must_heed(&self, signals: u8) -> bool {
        if signals == 0 {
            return false;
        }
        signals & STOP != 0
            || signals & (CHECK | YIELD) != 0
            || (signals & DRAIN != 0 && self.is_at_boundary())
            || (signals & HEARD != 0 && self.may_be_told())
    }

    /// Between transactions, with no request under way.
    fn is_at_boundary(&self) -> bool {
        match &self.link {
            None => self.up.unread().is_empty() && self.tracker.deferred() == Tx::Idle,
            Some(connection) => {
                connection.state.is_quiet()
                    && connection.state.tx() == Tx::Idle
                    && self.up.unread().is_empty()
            }
        }
    }

    fn on_signal(&mut self) -> Result<(), SessionError> {
        let signals = self.handle.signals();
        if signals & STOP != 0 {
            return Err(SessionError::ShuttingDown);
        }
        if signals & DRAIN != 0 && self.is_at_boundary() {
            return Err(SessionError::ShuttingDown);
        }
        if signals & HEARD != 0 && self.may_be_told() {
            self.tell_heard()?;
        }
        self.handle.clear(YIELD);
        if signals & CHECK != 0 {
            self.handle.clear(CHECK);
            let now = Instant::now();
            let settings = self.endpoint.proxy.settings();
            let busy = self.link.as_ref().is_some_and(|c| c.state.owes_answer());
            if !busy && self.handle.idle_for(now) >= settings.idle_client_timeout {
                return Err(SessionError::Idle);
            }
            self.forgo_functions(now);
            let age = now.saturating_duration_since(self.handle.since);
            if age >= settings.max_client_lifetime && self.is_at_boundary() {
                return Err(SessionError::LifetimeOver);
            }
        }
        Ok(())
    }

    /// A client that has not asked what its last statement left will hardly ask any more: others may have the
    /// connection. It is still asked first if it is free then.
    fn forgo_functions(&mut self, now: Instant) {
        let only = PinReasons::only(PinReason::SessionFunction);
        let smart = self.endpoint.proxy.settings().profile == Profile::Smart;
        if smart && self.pins == only && self.is_at_boundary() && self.handle.idle_for(now) >= FUNCTION_HOLD {
            self.pins = PinReasons::NONE;
            self.note_unpinned(now);
            self.handle.set_activity(Activity::Other);
            if self.is_free() {
                self.release(now);
            }
        }
    }

    /// The client said goodbye. What it sent before is still carried out, as the server itself would; the answers
    /// have no reader any more.
    async fn see_off(&mut self) -> Result<(), SessionError> {
        if let Some(connection) = &mut self.link {
            let (tracker, up, down) = (&mut self.tracker, &mut self.up, &mut self.down);
            let answers = async {
                while connection.state.is_request_under_way() {
                    poll_fn(|cx| {
                        if up.has_output() {
                            let _ = up.poll_flush(&mut connection.stream, cx)?;
                        }
                        while let ServerEvent::Answered { .. } = tracker
                            .on_server(down, &mut connection.state)
                            .map_err(|_| io::ErrorKind::InvalidData)?
                        {}
                        down.discard_output();
                        if !connection.state.is_request_under_way() {
                            return Poll::Ready(Ok(()));
                        }
                        match ready!(down.poll_fill(&mut connection.stream, cx))? {
                            0 => Poll::Ready(Err(io::Error::from(io::ErrorKind::UnexpectedEof))),
                            _ => Poll::Ready(Ok(())),
                        }
                    })
                    .await?;
                }
                io::Result::Ok(())
            };
            match tokio::time::timeout(GOODBYE_TIMEOUT, answers).await {
                Ok(answered) => answered.map_err(SessionError::ServerLost)?,
                Err(_) => debug!(client = self.handle.number, "request of a client that left takes too long"),
            }
            return Ok(());
        }
        self.flush_client().await
    }

    async fn flush_client(&mut self) -> Result<(), SessionError> {
        let (down, client) = (&mut self.down, &mut self.client);
        match tokio::time::timeout(FAREWELL_TIMEOUT, poll_fn(|cx| down.poll_flush(client, cx))).await {
            Ok(flushed) => flushed.map_err(SessionError::ClientGone),
            Err(_) => Err(SessionError::ClientGone(io::ErrorKind::TimedOut.into())),
        }
    }

    /// Parts with the server connection, then with the client.
    async fn finish(mut self, ended: Result<(), SessionError>) -> Option<Box<Returning<P>>> {
        let now = Instant::now();
        self.note_unpinned(now);
        self.stop_listening();
        self.handle.let_go();
        let lost = matches!(ended, Err(SessionError::Server(_) | SessionError::ServerLost(_)));
        if lost && self.link.as_ref().is_some_and(|c| self.tracker.is_deaf(&c.state)) {
            let _ = tokio::time::timeout(FAREWELL_TIMEOUT, self.hear_out()).await;
        }
        // Nothing may be written into the middle of a message, nor after the server's own last word.
        let lost_transaction = self.has_lost_transaction();
        let under_way = self.received.is_some();
        let fault_of = |error: &SessionError| {
            let mut fault = error.fault()?;
            if fault.kind == FaultKind::ServerLost && lost_transaction {
                fault.kind = FaultKind::TransactionLost;
                fault.hint = Some("The transaction was rolled back.".to_owned());
            } else if fault.kind == FaultKind::ServerLost && under_way {
                fault.hint = Some("Whether what was under way took effect is not known.".to_owned());
            }
            Some(fault)
        };
        let may_speak =
            self.link.as_ref().is_none_or(|c| !c.state.is_mid_message() && !c.state.has_told_error());
        if let Some(received) = self.received.take() {
            let fault = ended.as_ref().err().map(|error| {
                // A client that is gone has its request cancelled.
                fault_of(error).unwrap_or_else(|| Fault::error(FaultKind::Cancelled, "client went away"))
            });
            self.observe(received, self.sent, now, fault.as_ref());
        }
        let fault = ended.as_ref().err().and_then(fault_of).filter(|_| may_speak);
        if let Some(fault) = &fault {
            let server = self.link.as_ref().map(|c| &c.state);
            self.tracker.write_fault(fault, server, self.down.output());
        }
        if let Some(connection) = self.link.take() {
            let cleaned = self.part_with(connection, !lost, now);
            if let Some(cleaned) = cleaned
                && matches!(ended, Ok(()) | Err(SessionError::LogsIn))
            {
                // What the client held is free when it sees the close, as on a connection of its own.
                let _ = tokio::time::timeout(FAREWELL_TIMEOUT, cleaned).await;
            }
        }
        self.places.leave(&self.endpoint.proxy);
        if matches!(ended, Err(SessionError::LogsIn)) {
            self.observe_end(&ended).await;
            if let Some((client, request)) = self.tracker.take_login(&mut self.up) {
                self.endpoint.proxy.sessions.disown(&self.handle);
                let input = std::mem::take(self.up.input_mut());
                let (stream, handle, key) = (self.client, self.handle, self.key);
                return Some(Box::new(Returning { stream, input, handle, key, client, request }));
            }
            self.endpoint.proxy.sessions.unregister(&self.handle);
            return None;
        }
        self.endpoint.proxy.sessions.unregister(&self.handle);
        if let Err(error) = &ended {
            debug!(
                proxy = %self.endpoint.proxy.name, endpoint = %self.endpoint.name, user = %self.key.user,
                client = self.handle.number, reason = %error, "client connection closed"
            );
            if fault.is_some() {
                let _ = self.flush_client().await;
            }
        }
        self.observe_end(&ended).await;
        crate::handshake::linger(self.client).await;
        None
    }

    /// Reads what a client must have sent before it listens, though no server takes it any more.
    async fn hear_out(&mut self) -> Result<(), SessionError> {
        while let Some(connection) = &mut self.link
            && self.tracker.is_deaf(&connection.state)
        {
            let (shared, server) = (&self.endpoint.proxy.shared, Some(&mut connection.state));
            self.tracker
                .on_client(shared, &mut self.up, server, &mut self.down)
                .map_err(SessionError::Client)?;
            self.up.discard_output();
            if self.tracker.is_deaf(&connection.state) {
                let (up, client) = (&mut self.up, &mut self.client);
                match poll_fn(|cx| up.poll_fill(client, cx)).await {
                    Ok(1..) => {}
                    Ok(0) => return Err(SessionError::ClientGone(io::ErrorKind::UnexpectedEof.into())),
                    Err(e) => return Err(SessionError::ClientGone(e)),
                }
            }
        }
        Ok(())
    }

    /// The client is gone and its connection with whatever it left there. Only one that is quiet and outside a
    /// transaction is worth cleaning, which goes on behind this; any other closes.
    fn part_with(
        &mut self,
        mut connection: Box<ServerConnection<P>>,
        healthy: bool,
        now: Instant,
    ) -> Option<JoinHandle<()>> {
        let clean = healthy
            && connection.state.is_quiet()
            && connection.state.tx() == Tx::Idle
            && !connection.state.must_retire()
            && !connection.cancellable.is_doubtful()
            && self.nothing_is_halfway();
        // No reset unloads a library, or undoes what nobody could tell.
        let lasting = PinReasons::only(PinReason::Library).union(PinReasons::only(PinReason::Unknown));
        if !clean || !self.pins.union(self.pending.sets).intersection(lasting).is_empty() {
            connection.retire();
            return None;
        }
        connection.used_by(self.handle.owner(), now);
        let (pool, id) = self.home_of(&connection);
        Some(give_back_after(pool, id, async move {
            connection.cancellable.clone().over().await;
            match connection.reset(ResetCause::Pinned).await {
                Ok(()) => Ok(connection),
                Err(error) => {
                    warn!(%error, "reset failed; the connection is closed");
                    Err(connection)
                }
            }
        }))
    }
}
