//! An idle session whose temporary tables keep a connection that others wait for takes them along: they are read into
//! memory, and made again on whatever connection serves it next.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use tracing::{debug, warn};

use super::{Cause, Pinning, Session, SessionError, borrow::watching, settings::lost};
use crate::{
    metrics::ResetCause,
    pool::Pooled as _,
    protocol::{Errand, Fault, FaultKind, PinReason, PinReasons, Protocol, ServerState as _, Tracker as _},
    proxy::Activity,
    router::Route,
    server::{ServerConnection, ServerError},
};

/// A client that has said nothing for so long is not in the middle of using its tables.
pub(crate) const TABLE_HOLD: Duration = Duration::from_millis(100);
/// Attempts to make them again while connections break.
const MOST_ATTEMPTS: u8 = 3;
/// What all clients together may take along, in bytes.
const MOST_BYTES: usize = 256 << 20;

static BYTES: AtomicUsize = AtomicUsize::new(0);

/// What keeps a client's connection where this is all there is.
pub(crate) const PIN: PinReasons = PinReasons::only(PinReason::TemporaryTable);

/// Tables taken along.
pub(super) struct Luggage {
    errands: Vec<Errand>,
    /// Where policy wanted what made them to run.
    route: Route,
    cause: Cause,
    attempts: u8,
    _room: Room,
}

/// So many of [`MOST_BYTES`].
struct Room(usize);

impl Room {
    fn take(bytes: usize) -> Option<Self> {
        let fits = |taken: usize| taken.checked_add(bytes).filter(|all| *all <= MOST_BYTES);
        BYTES.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).ok().map(|_| Self(bytes))
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        BYTES.fetch_sub(self.0, Ordering::Relaxed);
    }
}

impl<P: Protocol> Session<P> {
    /// Others wait for the connection.
    pub(super) async fn make_way(&mut self) -> Result<(), SessionError> {
        if self.handle.idle_for(Instant::now()) < TABLE_HOLD {
            return Ok(());
        }
        if self.may_carry() {
            return self.carry().await;
        }
        // Others should be asked, until the client has had its next answer.
        self.handle.set_pin_stays(true);
        Ok(())
    }

    /// True when nothing but temporary tables keeps the connection, and the client is not using it.
    fn may_carry(&self) -> bool {
        self.endpoint.proxy.carries_tables()
            && self.pins == PIN
            && self.pending.statements == 0
            && self.question.is_none()
            && self.listening.as_ref().is_none_or(|listening| !listening.is_due())
            && self.is_at_boundary()
            && self.nothing_is_halfway()
            && self.pinning.as_ref().is_some_and(|pinning| pinning.may_carry())
    }

    /// Takes the tables along and gives the connection to others, if that can be.
    async fn carry(&mut self) -> Result<(), SessionError> {
        let most = self.endpoint.proxy.settings().pool.max_carried_table_bytes;
        let Some(connection) = &mut self.link else { return Ok(()) };
        let mut packed = None;
        if let Some(mut packing) = self.tracker.packing(&connection.state, most)
            && let Some(errands) = connection.pack(&mut *packing).await.map_err(lost)?
            && let Some(room) = Room::take(errands.iter().map(Errand::bytes).sum())
        {
            packed = Some((errands, room));
        }
        let Some((errands, room)) = packed else {
            // Not to be tried again before the client has changed something.
            if let Some(pinning) = &mut self.pinning {
                pinning.stays = true;
                self.handle.set_pin_stays(true);
            }
            return Ok(());
        };
        let cause = self.pinning.as_ref().map(|pinning| pinning.cause.clone()).unwrap_or_default();
        let route = self.route.clone();
        self.luggage = Some(Box::new(Luggage { errands, route, cause, attempts: 0, _room: room }));
        let now = Instant::now();
        let id = connection.state.key().id;
        let reset = connection.reset(ResetCause::Pinned).await;
        self.pins = PinReasons::NONE;
        self.endpoint.metrics.carried();
        self.note_unpinned(now);
        self.handle.set_activity(Activity::Other);
        debug!(client = self.handle.number, connection = id, "temporary tables taken along");
        match reset {
            Ok(()) => self.release(now),
            Err(error) => {
                debug!(%error, "reset failed; the connection is closed");
                self.handle.let_go();
                if let Some(connection) = self.link.take() {
                    connection.retire();
                }
            }
        }
        Ok(())
    }

    /// Where the next request must run, because what it may use is made again there.
    pub(super) fn carried_route(&self) -> Option<Route> {
        self.luggage.as_ref().map(|luggage| luggage.route.clone())
    }

    /// Makes on `connection`, just borrowed and without any settings, what was taken along, and then the settings. `None`
    /// when the connection broke, and another should be tried; the fault when the settings cannot be made, as without
    /// tables. Errors: the tables cannot be made; the session is not what it was and ends, as one that has lost its server.
    pub(super) async fn unpack(
        &mut self,
        mut connection: Box<ServerConnection<P>>,
    ) -> Result<Option<Result<Box<ServerConnection<P>>, Fault>>, SessionError> {
        let Some(luggage) = &mut self.luggage else { return Ok(Some(Ok(connection))) };
        let work = async {
            if connection.tainted {
                connection.reset(ResetCause::Tainted).await?;
            }
            connection.unpack(&luggage.errands).await?;
            connection.dress(self.settings.as_ref()).await
        };
        let error = match watching(&mut self.client, &mut self.up, &self.handle, work).await {
            Ok(Ok(())) => return Ok(Some(Ok(connection))),
            Ok(Err(error)) => error,
            Err(ended) => {
                connection.retire();
                return Err(ended);
            }
        };
        connection.retire();
        if let ServerError::Statement { what: "setting session state", error } = &error {
            let message = format!("The settings of this session could not be made again: {error}");
            return Ok(Some(Err(Fault::error(FaultKind::StateLost, message))));
        }
        luggage.attempts += 1;
        if !matches!(error, ServerError::Statement { .. }) && luggage.attempts < MOST_ATTEMPTS {
            return Ok(None);
        }
        warn!(
            proxy = %self.endpoint.proxy.name, user = %self.key.user, client = self.handle.number, %error,
            "temporary tables could not be made again"
        );
        Err(SessionError::TablesLost)
    }

    /// The connection that is held now has what was taken along.
    pub(super) fn note_unpacked(&mut self, now: Instant) {
        let Some(luggage) = self.luggage.take() else { return };
        self.pins = self.pins.union(PIN);
        self.pinning = Some(Pinning::new(now, luggage.cause));
        self.count_pin();
        self.show_pin();
        // Should what comes next be answered without the server, nobody else says so.
        self.handle.set_activity(Activity::Pinned);
    }
}
