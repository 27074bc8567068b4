//! Server connections of one target, shared by all its users and databases within one budget.
//!
//! Knows no SQL and no protocol: a connection is a `C` that comes with its [`Slot`]. A slot is one server connection
//! as the server counts them, so it becomes free only when the server has closed.
//!
//! Reuse is LIFO, so that what is not needed grows idle. Those who wait are served FIFO, by direct hand-off.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicBool},
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

use crate::protocol::{Greeting, PoolKey};

mod waiters;

use waiters::{Waiter, Waiters};

/// A waiter for another user's connections is passed over in favour of one who can use this very connection, but
/// only for this long: closing and opening a connection costs more than the wait.
const PREFER_SAME_POOL: Duration = Duration::from_millis(50);

/// What no other connection is worth more than.
pub const WORTH_MOST: u8 = u8::MAX;

/// Idle connections that are looked at to find the best of them.
const MOST_LOOKED_AT: usize = 64;

/// Names one [`PoolKey`] within one [`Pool`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PoolId(usize);

/// What the pool must know of a connection.
pub trait Pooled: Send + 'static {
    /// Closes it in the background and drops its slot once the server has closed.
    fn retire(self: Box<Self>);
    /// When it was last used.
    fn last_used(&self) -> Instant;
    /// The client that used it last.
    fn last_client(&self) -> u64;
    /// Too old, broken, or opened under a configuration that no longer holds.
    fn is_stale(&mut self, now: Instant, generation: u64) -> bool;
}

/// One target's connections.
#[derive(Debug)]
pub struct Pool<C: Pooled> {
    inner: Mutex<Inner<C>>,
}

#[derive(Debug)]
struct Inner<C: Pooled> {
    keys: HashMap<Arc<PoolKey>, PoolId>,
    pools: slab::Slab<KeyPool<C>>,
    waiters: Waiters<C>,
    /// Most server connections at once; 0 until the target has said how many it takes.
    budget: usize,
    /// Slots given out: connections opening, borrowed, idle, closing.
    open: usize,
    /// Of those, connections on their way out: their slots are as good as free.
    closing: usize,
    idle: usize,
    /// Goes up when connections opened before must not be used again.
    generation: u64,
    closed: bool,
}

/// Connections that may stand in for each other.
#[derive(Debug)]
struct KeyPool<C: Pooled> {
    key: Arc<PoolKey>,
    /// Most recently used last.
    idle: Vec<Box<C>>,
    greeting: Option<Arc<Greeting>>,
    /// Sessions that know this pool's id.
    users: usize,
    /// Somebody here has used `currval` or `lastval`.
    session_functions: Arc<AtomicBool>,
}

/// The right to one server connection. Dropping it says that the server has closed.
#[derive(Debug)]
pub struct Slot<C: Pooled> {
    /// `None` once given up.
    pool: Option<Arc<Pool<C>>>,
    closing: bool,
}

/// What a waiter is handed.
#[derive(Debug)]
pub enum Grant<C: Pooled> {
    /// A connection of the right pool.
    Connection(Box<C>),
    /// Leave to open one.
    Slot(Slot<C>),
}

/// How an attempt to get a connection went.
#[derive(Debug)]
pub enum Acquired<C: Pooled> {
    /// Here it is.
    Connection(Box<C>),
    /// Leave to open one.
    Slot(Slot<C>),
    /// In line.
    Wait(Ticket<C>),
}

/// A place in the line. Dropping it leaves the line; what had been handed over meanwhile goes on to the next.
#[derive(Debug)]
pub struct Ticket<C: Pooled> {
    pool: Arc<Pool<C>>,
    id: PoolId,
    grant: oneshot::Receiver<Grant<C>>,
}

/// Numbers for metrics and logs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PoolStats {
    /// Slots given out.
    pub open: usize,
    /// Of those, idle connections.
    pub idle: usize,
    /// Clients in line.
    pub waiting: usize,
    /// Most slots at once.
    pub budget: usize,
}

impl<C: Pooled> Pool<C> {
    /// An empty pool without a budget.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            inner: Mutex::new(Inner {
                keys: HashMap::new(),
                pools: slab::Slab::new(),
                waiters: Waiters::default(),
                budget: 0,
                open: 0,
                closing: 0,
                idle: 0,
                generation: 0,
                closed: false,
            }),
        })
    }

    /// The pool for `key`, to be left again with [`Self::leave`]. The flag says whether `currval` or `lastval` has
    /// been seen there.
    pub fn join(&self, key: &Arc<PoolKey>) -> (PoolId, Arc<AtomicBool>) {
        let mut inner = self.lock();
        let id = match inner.keys.get(key) {
            Some(&id) => id,
            None => {
                let id = PoolId(inner.pools.insert(KeyPool {
                    key: key.clone(),
                    idle: Vec::new(),
                    greeting: None,
                    users: 0,
                    session_functions: Arc::default(),
                }));
                inner.keys.insert(key.clone(), id);
                id
            }
        };
        let pool = &mut inner.pools[id.0];
        pool.users += 1;
        (id, pool.session_functions.clone())
    }

    /// The session that joined is over.
    pub fn leave(&self, id: PoolId) {
        let mut inner = self.lock();
        inner.pools[id.0].users -= 1;
        inner.prune(id);
    }

    /// Keeps `id` valid for work that goes on after the session, until [`Self::leave`].
    pub fn hold(&self, id: PoolId) {
        self.lock().pools[id.0].users += 1;
    }

    /// What servers of this pool say at login, once known.
    pub fn greeting(&self, id: PoolId) -> Option<Arc<Greeting>> {
        self.lock().pools[id.0].greeting.clone()
    }

    /// Remembers what a server said at login.
    pub fn set_greeting(&self, id: PoolId, greeting: Arc<Greeting>) {
        self.lock().pools[id.0].greeting = Some(greeting);
    }

    /// Gets a connection, leave to open one, or a place in the line. Of the idle ones that with the highest `worth` is
    /// taken, the most recent of those.
    pub fn acquire(self: &Arc<Self>, id: PoolId, worth: impl Fn(&C) -> u8, now: Instant) -> Acquired<C> {
        let mut retired = Vec::new();
        let mut inner = self.lock();
        // Nobody overtakes those who wait for the same connections.
        let idle =
            if inner.waiters.any_for(id) { None } else { inner.take_idle(id, worth, now, &mut retired) };
        let acquired = if let Some(connection) = idle {
            Acquired::Connection(connection)
        } else if inner.waiters.is_empty() && inner.open < inner.budget && !inner.closed {
            inner.open += 1;
            Acquired::Slot(Slot { pool: Some(self.clone()), closing: false })
        } else {
            let (handover, grant) = oneshot::channel();
            inner.waiters.push(Waiter { pool: id, handover, since: now });
            if inner.open > 0 && inner.waiters.len() > inner.closing {
                retired.extend(inner.evict_other(id));
            }
            Acquired::Wait(Ticket { pool: self.clone(), id, grant })
        };
        drop(inner);
        retire_all(retired);
        acquired
    }

    /// Takes a clean connection back: to whoever waits longest, else to the idle ones.
    pub fn give_back(self: &Arc<Self>, id: PoolId, mut connection: Box<C>, now: Instant) {
        let retired = {
            let mut inner = self.lock();
            if inner.closed || inner.open > inner.budget || connection.is_stale(now, inner.generation) {
                Some(connection)
            } else {
                inner.hand_over(id, connection, now)
            }
        };
        retire_all(retired);
    }

    /// Sets how many server connections there may be. Idle ones above it close at once, others as they come back.
    pub fn set_budget(self: &Arc<Self>, budget: usize) {
        let mut inner = self.lock();
        inner.budget = budget;
        let excess = inner.open.saturating_sub(budget);
        let retired = inner.take_oldest(excess, None);
        inner.grant_slots(self);
        drop(inner);
        retire_all(retired);
    }

    /// Connections opened before this call are not used again.
    pub fn renew(&self) {
        let mut inner = self.lock();
        inner.generation += 1;
        for (_, pool) in &mut inner.pools {
            pool.greeting = None;
        }
        let all = inner.idle;
        let retired = inner.take_oldest(all, None);
        drop(inner);
        retire_all(retired);
    }

    /// The number that connections opened now should carry.
    pub fn generation(&self) -> u64 {
        self.lock().generation
    }

    /// Closes idle connections that are stale, and those above `max_idle` that nobody used for `idle_timeout`.
    pub fn reap(&self, now: Instant, max_idle: usize, idle_timeout: Duration) {
        let mut inner = self.lock();
        let generation = inner.generation;
        let mut retired = Vec::new();
        for (_, pool) in &mut inner.pools {
            for at in (0..pool.idle.len()).rev() {
                if pool.idle[at].is_stale(now, generation) {
                    retired.push(pool.idle.remove(at));
                }
            }
        }
        inner.idle -= retired.len();
        let excess = inner.idle.saturating_sub(max_idle);
        let too_long = now.checked_sub(idle_timeout);
        if excess > 0 && too_long.is_some() {
            retired.extend(inner.take_oldest(excess, too_long));
        }
        let ids: Vec<_> = inner.pools.iter().map(|(id, _)| PoolId(id)).collect();
        for id in ids {
            inner.prune(id);
        }
        drop(inner);
        retire_all(retired);
    }

    /// Takes out of the idle ones those for which `wants` says so, to be given back after some work on them; then
    /// each id must be left with [`Self::leave`].
    pub fn take_idle_where(&self, mut wants: impl FnMut(&C) -> bool) -> Vec<(PoolId, Box<C>)> {
        let mut inner = self.lock();
        let mut taken = Vec::new();
        for (id, pool) in &mut inner.pools {
            for at in (0..pool.idle.len()).rev() {
                if wants(&pool.idle[at]) {
                    taken.push((PoolId(id), pool.idle.remove(at)));
                }
            }
        }
        inner.idle -= taken.len();
        for (id, _) in &taken {
            inner.pools[id.0].users += 1;
        }
        taken
    }

    /// No connection is opened or kept any more.
    pub fn close(&self) {
        let mut inner = self.lock();
        inner.closed = true;
        inner.waiters.clear();
        let all = inner.idle;
        let retired = inner.take_oldest(all, None);
        drop(inner);
        retire_all(retired);
    }

    /// Numbers as they are now.
    pub fn stats(&self) -> PoolStats {
        let inner = self.lock();
        PoolStats { open: inner.open, idle: inner.idle, waiting: inner.waiters.len(), budget: inner.budget }
    }

    /// Connections borrowed or being opened and clients in line, and the budget: what a choice between pools goes by.
    pub fn load(&self) -> (usize, usize) {
        let inner = self.lock();
        (inner.open.saturating_sub(inner.idle) + inner.waiters.len(), inner.budget)
    }

    fn lock(&self) -> MutexGuard<'_, Inner<C>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn retire_all<C: Pooled>(connections: impl IntoIterator<Item = Box<C>>) {
    for connection in connections {
        connection.retire();
    }
}

impl<C: Pooled> Inner<C> {
    fn take_idle(
        &mut self,
        id: PoolId,
        worth: impl Fn(&C) -> u8,
        now: Instant,
        stale: &mut Vec<Box<C>>,
    ) -> Option<Box<C>> {
        let generation = self.generation;
        let pool = &mut self.pools[id.0];
        let mut best: Option<(usize, u8)> = None;
        for (at, connection) in pool.idle.iter().enumerate().rev().take(MOST_LOOKED_AT) {
            let worth = worth(connection);
            if best.is_none_or(|(_, most)| worth > most) {
                best = Some((at, worth));
            }
            if worth == WORTH_MOST {
                break;
            }
        }
        if let Some((at, _)) = best
            && at + 1 < pool.idle.len()
        {
            let best = pool.idle.remove(at);
            pool.idle.push(best);
        }
        while let Some(mut connection) = pool.idle.pop() {
            self.idle -= 1;
            if !connection.is_stale(now, generation) {
                return Some(connection);
            }
            stale.push(connection);
        }
        None
    }

    /// Gives `connection` to a waiter or keeps it. Returns it when it must close so that its slot can serve a waiter
    /// who cannot use it.
    fn hand_over(&mut self, id: PoolId, connection: Box<C>, now: Instant) -> Option<Box<C>> {
        let mut grant = Grant::Connection(connection);
        while let Some(first) = self.waiters.first() {
            let may_serve = first.pool == id || now.saturating_duration_since(first.since) < PREFER_SAME_POOL;
            let Some(waiter) = may_serve.then(|| self.waiters.pop_for(id)).flatten() else { break };
            match waiter.handover.send(grant) {
                Ok(()) => return None,
                Err(back) => grant = back,
            }
        }
        let Grant::Connection(connection) = grant else { return None };
        if self.waiters.len() > self.closing {
            return Some(connection);
        }
        self.idle += 1;
        self.pools[id.0].idle.push(connection);
        None
    }

    /// The least recently used idle connection of a pool other than `id`.
    fn evict_other(&mut self, id: PoolId) -> Option<Box<C>> {
        let oldest = self
            .pools
            .iter()
            .filter(|(other, pool)| *other != id.0 && !pool.idle.is_empty())
            .min_by_key(|(_, pool)| pool.idle[0].last_used())
            .map(|(other, _)| other)?;
        self.idle -= 1;
        Some(self.pools[oldest].idle.remove(0))
    }

    /// Up to `count` idle connections, least recently used first, unused since `before` where given.
    fn take_oldest(&mut self, count: usize, before: Option<Instant>) -> Vec<Box<C>> {
        let mut taken = Vec::new();
        while taken.len() < count {
            let oldest = self
                .pools
                .iter()
                .filter_map(|(id, pool)| Some((id, pool.idle.first()?.last_used())))
                .min_by_key(|(_, last_used)| *last_used);
            let Some((id, last_used)) = oldest else { break };
            if before.is_some_and(|before| last_used > before) {
                break;
            }
            taken.push(self.pools[id].idle.remove(0));
        }
        self.idle -= taken.len();
        taken
    }

    /// Gives free slots to those in line.
    fn grant_slots(&mut self, pool: &Arc<Pool<C>>) {
        while self.open < self.budget && !self.closed {
            let Some(waiter) = self.waiters.pop() else { break };
            let slot = Slot { pool: Some(pool.clone()), closing: false };
            match waiter.handover.send(Grant::Slot(slot)) {
                Ok(()) => self.open += 1,
                // Left the line just now. The slot must not be dropped here: that takes the lock we hold.
                Err(Grant::Slot(mut slot)) => slot.pool = None,
                Err(Grant::Connection(_)) => {}
            }
        }
    }

    fn prune(&mut self, id: PoolId) {
        if self.pools.get(id.0).is_some_and(|p| p.users == 0 && p.idle.is_empty()) {
            let pool = self.pools.remove(id.0);
            self.keys.remove(&pool.key);
        }
    }
}

impl<C: Pooled> Slot<C> {
    /// The connection is on its way out: nobody else need be closed to make room.
    pub fn set_closing(&mut self) {
        if let Some(pool) = &self.pool
            && !self.closing
        {
            self.closing = true;
            pool.lock().closing += 1;
        }
    }
}

impl<C: Pooled> Drop for Slot<C> {
    fn drop(&mut self) {
        let Some(pool) = self.pool.take() else { return };
        let mut inner = pool.lock();
        inner.open -= 1;
        if self.closing {
            inner.closing -= 1;
        }
        inner.grant_slots(&pool);
    }
}

impl<C: Pooled> Ticket<C> {
    /// Waits for the turn; `None` when the pool closes.
    pub async fn turn(&mut self) -> Option<Grant<C>> {
        (&mut self.grant).await.ok()
    }
}

impl<C: Pooled> Drop for Ticket<C> {
    fn drop(&mut self) {
        self.grant.close();
        if let Ok(Grant::Connection(connection)) = self.grant.try_recv() {
            self.pool.give_back(self.id, connection, Instant::now());
        }
    }
}

#[cfg(test)]
mod tests;
