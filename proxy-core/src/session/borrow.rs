//! Getting a server connection: at once when one is idle, else by waiting, or by opening one.

use std::{
    future::poll_fn,
    io,
    sync::{Arc, atomic::Ordering},
    task::Poll,
    time::{Duration, Instant},
};

use tokio::{
    sync::{oneshot, watch},
    time::{sleep, timeout_at},
};
use tracing::{debug, warn};

use super::{
    Session, SessionError,
    place::{Place, Places, Wish},
};
use crate::{
    buffer::Pipe,
    metrics::ResetCause,
    mutant::{self, Mutant},
    pool::{Acquired, Grant, PoolId, Pooled, Slot, WORTH_MOST},
    protocol::{ConnectError, Fault, FaultKind, PoolKey, Protocol, Tracker as _},
    proxy::{CANCEL, Endpoint, STOP, SessionHandle},
    router::{NoTarget, Route},
    server::{ServerConnection, ServerError},
    state::{Settings, Worn},
    stream::Stream,
    target::Target,
};

/// Between attempts to open a connection to a target that does not answer.
const RETRY_AFTER: Duration = Duration::from_millis(250);
/// Of a client that goes on sending while it waits, as much is read.
const MAX_AHEAD_BYTES: usize = 64 * 1024;

/// A client in need of a server connection.
pub(crate) struct Borrower<'a, P: Protocol> {
    pub(crate) endpoint: &'a Arc<Endpoint<P>>,
    pub(crate) handle: &'a Arc<SessionHandle>,
    pub(crate) key: &'a Arc<PoolKey>,
    pub(crate) places: &'a mut Places,
    pub(crate) route: &'a Route,
    pub(crate) client: &'a mut Stream,
    pub(crate) up: &'a mut Pipe,
    /// An idle connection that this client used last is better than the most recent one.
    pub(crate) prefer_own: bool,
    /// Whoever else has used it since its last reset may have left what this client would read.
    pub(crate) bare: bool,
    /// What the connection must wear,
    pub(crate) settings: Option<&'a Arc<Settings>>,
    /// or else, where what runs takes the rest back anyway.
    pub(crate) least: Option<Option<Arc<Settings>>>,
}

impl<P: Protocol> Session<P> {
    /// A connection fit for this client's next request. The outer error ends the session, the inner one the request.
    pub(super) async fn borrow(
        &mut self,
        now: Instant,
    ) -> Result<Result<Box<ServerConnection<P>>, Fault>, SessionError> {
        let prefer_own = self.forget_on_borrow || self.session_functions.load(Ordering::Relaxed);
        let bare = self.tracker.reads_leftovers(&self.up);
        let least = match &self.settings {
            // Tables that were taken along come first, and are made without any.
            _ if self.luggage.is_some() => Some(None),
            Some(settings) if !self.taken_back.is_empty() => {
                Some(Settings::retain(settings, |name| !P::takes_back(self.taken_back, name)))
            }
            _ => None,
        };
        // Where servers tell settings, what takes them back tells what there is then, and needs a connection without any.
        let settings = match &least {
            Some(least) if P::TELLS_SETTINGS => least.as_ref(),
            _ => self.settings.as_ref(),
        };
        let mut borrower = Borrower {
            endpoint: &self.endpoint,
            handle: &self.handle,
            key: &self.key,
            places: &mut self.places,
            route: &self.route,
            client: &mut self.client,
            up: &mut self.up,
            prefer_own,
            bare,
            settings,
            least: least.clone(),
        };
        let first = match borrower.place() {
            Ok(place) => match borrower.acquire(place, now) {
                Acquired::Connection(connection) if !borrower.needs_work(&connection, now) => {
                    self.endpoint.metrics.borrowed(Duration::ZERO);
                    return Ok(Ok(connection));
                }
                acquired => Some((place, acquired)),
            },
            // Waiting for a target is the slow way's.
            Err(_) => None,
        };
        self.handle.wait();
        let outcome = Box::pin(borrower.wait(first, now)).await;
        self.handle.let_go();
        self.sent = Some(Instant::now());
        match outcome {
            Err(SessionError::Cancelled) => {
                Ok(Err(Fault::error(FaultKind::Cancelled, "canceling statement due to user request")))
            }
            outcome => outcome,
        }
    }
}

impl<'a, P: Protocol> Borrower<'a, P> {
    fn wish(&self) -> Wish<'a, P> {
        Wish { endpoint: self.endpoint, route: self.route, turn: self.handle.number }
    }

    /// Where to borrow now.
    pub(crate) fn place(&mut self) -> Result<Place, NoTarget> {
        let target = self.wish().choose()?;
        Ok(self.places.at(&self.endpoint.proxy, self.key, target))
    }

    fn target(&self, place: Place) -> &'a Arc<Target<P>> {
        &self.endpoint.proxy.targets[place.target]
    }

    pub(crate) fn acquire(&self, place: Place, now: Instant) -> Acquired<ServerConnection<P>> {
        let worth = |c: &ServerConnection<P>| {
            if !c.suits(self.settings) {
                return 0;
            }
            let own = !self.prefer_own || c.last_client() == self.handle.owner();
            let fits = c.worn.fits(self.settings) && !self.needs_reset(c);
            if own && fits { WORTH_MOST } else { 1 + u8::from(fits) + 2 * u8::from(own) }
        };
        self.target(place).pool.acquire(place.pool, worth, now)
    }

    fn needs_work(&self, connection: &ServerConnection<P>, now: Instant) -> bool {
        self.needs_reset(connection)
            || !connection.suits(self.settings)
            || !connection.worn.fits(self.settings)
            || connection.wants_probe(now)
    }

    /// True when something lies on it that is not this client's, or not what this client left there.
    fn needs_reset(&self, connection: &ServerConnection<P>) -> bool {
        if mutant::is(Mutant::Reset) {
            return false;
        }
        (connection.tainted && connection.is_foreign_to(self.handle.owner()))
            || (self.bare && connection.has_foreign_sequences(self.handle.owner()))
            || matches!(connection.worn, Worn::Uncertain)
    }

    /// Waits for a connection until `connection_borrow_timeout` is over. When the target waited at is lost or changes
    /// its role, the wait goes on at another. `first` is what a first attempt came to.
    pub(crate) async fn wait(
        &mut self,
        mut first: Option<(Place, Acquired<ServerConnection<P>>)>,
        began: Instant,
    ) -> Result<Result<Box<ServerConnection<P>>, Fault>, SessionError> {
        let proxy = &self.endpoint.proxy;
        let deadline = began + proxy.settings().pool.connection_borrow_timeout;
        let mut changes = proxy.changes();
        let outcome = loop {
            let (place, acquired) = match first.take() {
                Some(first) => first,
                None => match self.place() {
                    Ok(place) => (place, self.acquire(place, Instant::now())),
                    Err(no_target) if no_target.may_pass() => {
                        let change = timeout_at(deadline.into(), changes.changed());
                        match watching(self.client, self.up, self.handle, change).await? {
                            Ok(Ok(())) => continue,
                            Ok(Err(_)) | Err(_) => break Err(no_target.fault()),
                        }
                    }
                    Err(no_target) => break Err(no_target.fault()),
                },
            };
            let fit = match self.turn(place, acquired, deadline, &mut changes).await? {
                Turn::Connection(connection) => self.make_fit(place, connection, Instant::now()).await,
                Turn::Opened(connection) => self.make_fit(place, connection, Instant::now()).await,
                Turn::Again => None,
                Turn::Over(fault) => break Err(fault),
            };
            match fit {
                Some(Ok(connection)) if self.wish().has_moved(place.target) => {
                    self.target(place).pool.give_back(place.pool, connection, Instant::now());
                }
                Some(Ok(connection)) => break Ok(connection),
                Some(Err(fault)) => break Err(fault),
                None => {}
            }
            if Instant::now() >= deadline {
                break Err(timed_out());
            }
        };
        let waited = began.elapsed();
        self.endpoint.metrics.borrowed(waited);
        if let Err(fault) = &outcome {
            debug!(user = %self.key.user, client = self.handle.number, ?waited, reason = %fault.message, "no server connection");
        }
        Ok(outcome)
    }

    /// From what an attempt came to, to a connection.
    async fn turn(
        &mut self,
        place: Place,
        acquired: Acquired<ServerConnection<P>>,
        deadline: Instant,
        changes: &mut watch::Receiver<u64>,
    ) -> Result<Turn<P>, SessionError> {
        let slot = match acquired {
            Acquired::Connection(connection) => return Ok(Turn::Connection(connection)),
            Acquired::Slot(slot) => slot,
            Acquired::Wait(mut ticket) => {
                let wish = self.wish();
                let turn = async {
                    tokio::select! {
                        biased;
                        grant = ticket.turn() => Some(grant),
                        () = moved(wish, place.target, changes) => None,
                    }
                };
                match watching(self.client, self.up, self.handle, timeout_at(deadline.into(), turn)).await? {
                    Ok(Some(Some(Grant::Connection(connection)))) => {
                        return Ok(Turn::Connection(connection));
                    }
                    Ok(Some(Some(Grant::Slot(slot)))) => slot,
                    Ok(None) => return Ok(Turn::Again),
                    Ok(Some(None)) | Err(_) => return Ok(Turn::Over(timed_out())),
                }
            }
        };
        self.open(place, slot, deadline, changes).await
    }

    /// Resets, probes and dresses a connection as needed; `None` when it turned out to be of no use. A fault when the
    /// client's own settings cannot be made.
    async fn make_fit(
        &self,
        place: Place,
        mut connection: Box<ServerConnection<P>>,
        now: Instant,
    ) -> Option<Result<Box<ServerConnection<P>>, Fault>> {
        if !connection.suits(self.settings) {
            connection.retire();
            return None;
        }
        let outcome = if self.needs_reset(&connection) {
            connection.reset(ResetCause::Tainted).await
        } else if connection.wants_probe(now) {
            connection.probe().await
        } else {
            Ok(())
        };
        let outcome = match outcome {
            Ok(()) => match (connection.dress(self.settings).await, &self.least) {
                (Err(ServerError::Statement { .. }), Some(least)) => connection.dress(least.as_ref()).await,
                (outcome, _) => outcome,
            },
            outcome => outcome,
        };
        match outcome {
            Ok(()) => Some(Ok(connection)),
            Err(ServerError::Statement { what: "setting session state", error }) => {
                // It does for others once it is reset, which whoever borrows it next sees to.
                self.target(place).pool.give_back(place.pool, connection, now);
                let message = format!("The settings of this session could not be made again: {error}");
                Some(Err(Fault::error(FaultKind::StateLost, message)))
            }
            Err(error) => {
                debug!(%error, "a server connection was not fit for use");
                connection.retire();
                None
            }
        }
    }

    /// Opens a connection in a task of its own, so that a client that goes away meanwhile leaves it to others.
    async fn open(
        &mut self,
        place: Place,
        slot: Slot<ServerConnection<P>>,
        deadline: Instant,
        changes: &mut watch::Receiver<u64>,
    ) -> Result<Turn<P>, SessionError> {
        let proxy = &self.endpoint.proxy;
        let Some(secrets) = proxy.secret(&self.key.user) else {
            return Ok(Turn::Over(Fault::fatal(
                FaultKind::ServerRefused,
                format!("This proxy has no credentials for the role {}.", self.key.user),
            )));
        };
        let (done, opened) = oneshot::channel();
        let (target, key, pool) = (self.target(place).clone(), self.key.clone(), place.pool);
        target.pool.hold(pool);
        tokio::spawn(async move {
            let outcome = ServerConnection::open(&target, Some(slot), &key, &secrets).await;
            if let Ok(connection) = &outcome {
                use crate::protocol::ServerState as _;
                target.pool.set_greeting(pool, connection.state.greeting());
            }
            if let Err(Ok(unclaimed)) = done.send(outcome) {
                target.pool.give_back(pool, unclaimed, Instant::now());
            }
            target.pool.leave(pool);
        });
        let wish = self.wish();
        let mut opened = Opening { opened, target: self.target(place).clone(), pool };
        let opened = async {
            tokio::select! {
                biased;
                opened = &mut opened.opened => Some(opened),
                () = moved(wish, place.target, changes) => None,
            }
        };
        let opened = timeout_at(deadline.into(), opened);
        let outcome = match watching(self.client, self.up, self.handle, opened).await? {
            Ok(Some(Ok(outcome))) => outcome,
            Ok(None) => return Ok(Turn::Again),
            Ok(Some(Err(_))) | Err(_) => return Ok(Turn::Over(timed_out())),
        };
        let error = match outcome {
            Ok(connection) => return Ok(Turn::Opened(connection)),
            Err(error) => error,
        };
        if matches!(error, ServerError::Io(_) | ServerError::Timeout) {
            self.target(place).doubt();
        }
        let target = &self.target(place).name;
        match error {
            ServerError::Connect(ConnectError::Refused { fault, try_again: false, .. }) => {
                Ok(Turn::Over(fault))
            }
            ServerError::Statement { .. }
            | ServerError::Connect(ConnectError::Tls(_))
            | ServerError::Secret(_) => {
                warn!(%target, user = %self.key.user, %error, "cannot open a server connection");
                Ok(Turn::Over(Fault::fatal(
                    FaultKind::ServerRefused,
                    "The database connection could not be set up.",
                )))
            }
            error => {
                debug!(%target, %error, "cannot open a server connection now");
                let pause = sleep(RETRY_AFTER.min(deadline.saturating_duration_since(Instant::now())));
                watching(self.client, self.up, self.handle, pause).await?;
                Ok(Turn::Again)
            }
        }
    }
}

/// A connection that is being opened for this session. What comes after it has given up goes to the pool.
struct Opening<P: Protocol> {
    opened: oneshot::Receiver<Result<Box<ServerConnection<P>>, ServerError>>,
    target: Arc<Target<P>>,
    pool: PoolId,
}

impl<P: Protocol> Drop for Opening<P> {
    fn drop(&mut self) {
        self.opened.close();
        if let Ok(Ok(connection)) = self.opened.try_recv() {
            self.target.pool.give_back(self.pool, connection, Instant::now());
        }
    }
}

/// What one attempt to get a connection came to.
enum Turn<P: Protocol> {
    /// One that others have used.
    Connection(Box<ServerConnection<P>>),
    /// A new one.
    Opened(Box<ServerConnection<P>>),
    /// Not now, or not there.
    Again,
    /// The end of the wait.
    Over(Fault),
}

/// Comes back when it is better to wait at another target than at `target`.
async fn moved<P: Protocol>(wish: Wish<'_, P>, target: usize, changes: &mut watch::Receiver<u64>) {
    while !wish.has_moved(target) {
        if changes.changed().await.is_err() {
            // The proxy is gone, and with it whoever waits here.
            return std::future::pending().await;
        }
    }
}

fn timed_out() -> Fault {
    Fault::error(FaultKind::BorrowTimeout, "Timed-out waiting to acquire database connection.")
}

/// Waits for `what`, and meanwhile notices when the client leaves or the proxy stops.
pub(super) async fn watching<F: Future>(
    client: &mut Stream,
    up: &mut Pipe,
    handle: &SessionHandle,
    what: F,
) -> Result<F::Output, SessionError> {
    let mut what = std::pin::pin!(what);
    poll_fn(|cx| {
        if let Poll::Ready(output) = what.as_mut().poll(cx) {
            return Poll::Ready(Ok(output));
        }
        handle.waker().register(cx.waker());
        let signals = handle.signals();
        if signals & STOP != 0 {
            return Poll::Ready(Err(SessionError::ShuttingDown));
        }
        if signals & CANCEL != 0 {
            return Poll::Ready(Err(SessionError::Cancelled));
        }
        while up.unread().len() < MAX_AHEAD_BYTES {
            match up.poll_fill(client, cx) {
                Poll::Ready(Ok(0)) => {
                    let gone = io::ErrorKind::UnexpectedEof.into();
                    return Poll::Ready(Err(SessionError::ClientGone(gone)));
                }
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(e)) => {
                    return Poll::Ready(Err(SessionError::ClientGone(e)));
                }
                Poll::Pending => break,
            }
        }
        Poll::Pending
    })
    .await
}
