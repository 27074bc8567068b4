//! Getting a server connection: at once when one is idle, else by waiting, or by opening one.

use std::{
    future::poll_fn,
    io,
    sync::{Arc, atomic::Ordering},
    task::Poll,
    time::{Duration, Instant},
};

use tokio::{
    sync::oneshot,
    time::{sleep, timeout_at},
};
use tracing::{debug, warn};

use super::{Session, SessionError};
use crate::{
    buffer::Pipe,
    metrics::ResetCause,
    pool::{Acquired, Grant, PoolId, Pooled, Slot},
    protocol::{ConnectError, Fault, FaultKind, PoolKey, Protocol},
    proxy::{CANCEL, Endpoint, STOP, SessionHandle},
    server::{ServerConnection, ServerError},
    state::{Settings, Worn},
    stream::Stream,
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
    pub(crate) pool: PoolId,
    pub(crate) client: &'a mut Stream,
    pub(crate) up: &'a mut Pipe,
    /// An idle connection that this client used last is better than the most recent one.
    pub(crate) prefer_own: bool,
    /// What the connection must wear.
    pub(crate) settings: Option<&'a Arc<Settings>>,
}

impl<P: Protocol> Session<P> {
    /// A connection fit for this client's next request. The outer error ends the session, the inner one the request.
    pub(super) async fn borrow(
        &mut self,
        now: Instant,
    ) -> Result<Result<Box<ServerConnection<P>>, Fault>, SessionError> {
        let prefer_own = self.forget_on_borrow || self.session_functions.load(Ordering::Relaxed);
        let mut borrower = Borrower {
            endpoint: &self.endpoint,
            handle: &self.handle,
            key: &self.key,
            pool: self.pool,
            client: &mut self.client,
            up: &mut self.up,
            prefer_own,
            settings: self.settings.as_ref(),
        };
        let mut acquired = borrower.acquire(now);
        if let Acquired::Connection(connection) = acquired {
            if !borrower.needs_work(&connection, now) {
                self.endpoint.metrics.borrowed(Duration::ZERO);
                return Ok(Ok(connection));
            }
            acquired = Acquired::Connection(connection);
        }
        self.handle.wait();
        let outcome = Box::pin(borrower.wait(acquired, now)).await;
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

impl<P: Protocol> Borrower<'_, P> {
    fn acquire(&self, now: Instant) -> Acquired<ServerConnection<P>> {
        let prefer = self.prefer_own.then_some(self.handle.number);
        self.endpoint.proxy.target.pool.acquire(self.pool, prefer, now)
    }

    fn needs_work(&self, connection: &ServerConnection<P>, now: Instant) -> bool {
        self.needs_reset(connection) || !connection.worn.fits(self.settings) || connection.wants_probe(now)
    }

    /// True when something lies on it that is not this client's, or not what this client left there.
    fn needs_reset(&self, connection: &ServerConnection<P>) -> bool {
        let bare = matches!(connection.worn, Worn::Nothing);
        (connection.tainted && connection.is_foreign_to(self.handle.number))
            || (!bare && !connection.worn.fits(self.settings))
    }

    /// Waits for a connection until `connection_borrow_timeout` is over.
    pub(crate) async fn wait(
        &mut self,
        mut acquired: Acquired<ServerConnection<P>>,
        began: Instant,
    ) -> Result<Result<Box<ServerConnection<P>>, Fault>, SessionError> {
        let patience = self.endpoint.proxy.settings().pool.connection_borrow_timeout;
        let deadline = began + patience;
        let outcome = loop {
            let now = Instant::now();
            let fit = match acquired {
                Acquired::Connection(connection) => self.make_fit(connection, now).await,
                Acquired::Slot(slot) => match self.open(slot, deadline).await? {
                    Some(Ok(connection)) => self.make_fit(connection, now).await,
                    Some(Err(fault)) => break Err(fault),
                    None => None,
                },
                Acquired::Wait(mut ticket) => {
                    let turn = timeout_at(deadline.into(), ticket.turn());
                    match watching(self.client, self.up, self.handle, turn).await? {
                        Ok(Some(Grant::Connection(connection))) => self.make_fit(connection, now).await,
                        Ok(Some(Grant::Slot(slot))) => {
                            acquired = Acquired::Slot(slot);
                            continue;
                        }
                        Ok(None) | Err(_) => break Err(timed_out()),
                    }
                }
            };
            match fit {
                Some(Ok(connection)) => break Ok(connection),
                Some(Err(fault)) => break Err(fault),
                None if Instant::now() >= deadline => break Err(timed_out()),
                None => acquired = self.acquire(Instant::now()),
            }
        };
        let waited = began.elapsed();
        self.endpoint.metrics.borrowed(waited);
        if outcome.is_err() {
            debug!(user = %self.key.user, client = self.handle.number, ?waited, "no server connection");
        }
        Ok(outcome)
    }

    /// Resets, probes and dresses a connection as needed; `None` when it turned out to be of no use. A fault when the
    /// client's own settings cannot be made.
    async fn make_fit(
        &self,
        mut connection: Box<ServerConnection<P>>,
        now: Instant,
    ) -> Option<Result<Box<ServerConnection<P>>, Fault>> {
        let outcome = if self.needs_reset(&connection) {
            connection.reset(ResetCause::Tainted).await
        } else if connection.wants_probe(now) {
            connection.probe().await
        } else {
            Ok(())
        };
        let outcome = match (outcome, self.settings) {
            (Ok(()), Some(settings)) if !connection.worn.fits(Some(settings)) => {
                connection.dress(settings).await
            }
            (outcome, _) => outcome,
        };
        match outcome {
            Ok(()) => Some(Ok(connection)),
            Err(ServerError::Statement { what: "setting session state", error }) => {
                connection.retire();
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
    /// `None`: not now, perhaps later.
    async fn open(
        &mut self,
        slot: Slot<ServerConnection<P>>,
        deadline: Instant,
    ) -> Result<Option<Result<Box<ServerConnection<P>>, Fault>>, SessionError> {
        let proxy = &self.endpoint.proxy;
        let Some(secrets) = proxy.secret(&self.key.user) else {
            return Ok(Some(Err(Fault::fatal(
                FaultKind::ServerRefused,
                format!("This proxy has no credentials for the role {}.", self.key.user),
            ))));
        };
        let (done, opened) = oneshot::channel();
        let (target, key, pool) = (proxy.target.clone(), self.key.clone(), self.pool);
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
        let opened = timeout_at(deadline.into(), opened);
        let outcome = match watching(self.client, self.up, self.handle, opened).await? {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) | Err(_) => return Ok(Some(Err(timed_out()))),
        };
        let error = match outcome {
            Ok(connection) => return Ok(Some(Ok(connection))),
            Err(error) => error,
        };
        match error {
            ServerError::Connect(ConnectError::Refused { fault, try_again: false, .. }) => {
                Ok(Some(Err(fault)))
            }
            ServerError::Statement { .. } | ServerError::Tls(_) | ServerError::Secret(_) => {
                warn!(target = %self.endpoint.proxy.target.name, user = %self.key.user, %error, "cannot open a server connection");
                Ok(Some(Err(Fault::fatal(
                    FaultKind::ServerRefused,
                    "The database connection could not be set up.",
                ))))
            }
            error => {
                debug!(target = %self.endpoint.proxy.target.name, %error, "cannot open a server connection now");
                let pause = sleep(RETRY_AFTER.min(deadline.saturating_duration_since(Instant::now())));
                watching(self.client, self.up, self.handle, pause).await?;
                Ok(None)
            }
        }
    }
}

fn timed_out() -> Fault {
    Fault::error(FaultKind::BorrowTimeout, "Timed-out waiting to acquire database connection.")
}

/// Waits for `what`, and meanwhile notices when the client leaves or the proxy stops.
async fn watching<F: Future>(
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
