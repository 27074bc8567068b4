//! Where a session borrows: the pools that it has joined, one a target at most, and which target comes next.

use std::sync::{Arc, atomic::AtomicBool};

use super::Session;
use crate::{
    pool::{Pool, PoolId},
    protocol::{PoolKey, Protocol},
    proxy::{Endpoint, Proxy},
    router::{self, NoTarget, Route},
    server::ServerConnection,
};

/// A pool of one target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    /// Index into the proxy's targets.
    pub(crate) target: usize,
    /// Valid in that target's pool only.
    pub(crate) pool: PoolId,
}

/// The pools that a session has joined, to be left again with [`Places::leave`].
#[derive(Debug)]
pub(crate) struct Places(Vec<Place>);

impl Places {
    /// Joins the first target's pool, wherever the session will borrow: the flag that comes with it says for all
    /// targets whether `currval` or `lastval` has been seen among those who log in alike.
    pub(crate) fn join<P: Protocol>(proxy: &Proxy<P>, key: &Arc<PoolKey>) -> (Self, Arc<AtomicBool>) {
        let (pool, session_functions) = proxy.targets[0].pool.join(key);
        (Self(vec![Place { target: 0, pool }]), session_functions)
    }

    /// The session's pool at a target, joined now if it has not been yet.
    pub(crate) fn at<P: Protocol>(&mut self, proxy: &Proxy<P>, key: &Arc<PoolKey>, target: usize) -> Place {
        if let Some(place) = self.0.iter().find(|place| place.target == target) {
            return *place;
        }
        let place = Place { target, pool: proxy.targets[target].pool.join(key).0 };
        self.0.push(place);
        place
    }

    /// The session is over.
    pub(crate) fn leave<P: Protocol>(&mut self, proxy: &Proxy<P>) {
        for place in self.0.drain(..) {
            proxy.targets[place.target].pool.leave(place.pool);
        }
    }
}

/// What a session wants of a target: all that a choice needs to know of it.
#[derive(Debug)]
pub(crate) struct Wish<'a, P: Protocol> {
    pub(crate) endpoint: &'a Arc<Endpoint<P>>,
    pub(crate) route: &'a Route,
    /// The session's number, so that it stays with one of several equal readers.
    pub(crate) turn: u64,
}

impl<P: Protocol> Clone for Wish<'_, P> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<P: Protocol> Copy for Wish<'_, P> {}

impl<P: Protocol> Wish<'_, P> {
    /// Index of the target to borrow from now.
    pub(crate) fn choose(self) -> Result<usize, NoTarget> {
        self.endpoint.proxy.choose(self.endpoint.role, self.route, self.turn)
    }

    /// True when who waits at `target` had better wait elsewhere: the target does not answer or has changed its role,
    /// and a choice made now would be another.
    pub(crate) fn has_moved(self, target: usize) -> bool {
        let snapshot = self.endpoint.proxy.targets[target].snapshot(false);
        !router::is_fit(&snapshot, self.endpoint.role, self.route) && self.choose() != Ok(target)
    }
}

impl<P: Protocol> Session<P> {
    /// The pool that `connection` goes back to.
    pub(super) fn home_of(
        &mut self,
        connection: &ServerConnection<P>,
    ) -> (&Arc<Pool<ServerConnection<P>>>, PoolId) {
        let proxy = &self.endpoint.proxy;
        let place = self.places.at(proxy, &self.key, connection.target().index);
        (&proxy.targets[place.target].pool, place.pool)
    }
}
