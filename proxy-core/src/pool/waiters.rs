//! The line in front of a pool: first come, first served; who has left is passed over.

use std::{collections::VecDeque, time::Instant};

use tokio::sync::oneshot;

use super::{Grant, PoolId, Pooled};

/// One client in line.
#[derive(Debug)]
pub(super) struct Waiter<C: Pooled> {
    pub(super) pool: PoolId,
    pub(super) handover: oneshot::Sender<Grant<C>>,
    pub(super) since: Instant,
}

/// Those in line, longest wait first.
#[derive(Debug)]
pub(super) struct Waiters<C: Pooled>(VecDeque<Waiter<C>>);

impl<C: Pooled> Default for Waiters<C> {
    fn default() -> Self {
        Self(VecDeque::new())
    }
}

impl<C: Pooled> Waiters<C> {
    pub(super) fn push(&mut self, waiter: Waiter<C>) {
        self.0.push_back(waiter);
    }

    pub(super) fn first(&mut self) -> Option<&Waiter<C>> {
        self.drop_gone();
        self.0.front()
    }

    pub(super) fn pop(&mut self) -> Option<Waiter<C>> {
        self.drop_gone();
        self.0.pop_front()
    }

    /// The longest waiting one who can use a connection of `pool`.
    pub(super) fn pop_for(&mut self, pool: PoolId) -> Option<Waiter<C>> {
        let at = self.0.iter().position(|w| w.pool == pool && !w.handover.is_closed())?;
        self.0.remove(at)
    }

    pub(super) fn any_for(&self, pool: PoolId) -> bool {
        self.0.iter().any(|w| w.pool == pool && !w.handover.is_closed())
    }

    pub(super) fn is_empty(&mut self) -> bool {
        self.first().is_none()
    }

    pub(super) fn len(&self) -> usize {
        self.0.iter().filter(|w| !w.handover.is_closed()).count()
    }

    /// Sends everybody away.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    fn drop_gone(&mut self) {
        while self.0.front().is_some_and(|w| w.handover.is_closed()) {
            self.0.pop_front();
        }
    }
}
