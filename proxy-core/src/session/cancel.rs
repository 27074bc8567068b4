//! Cancelling: from a key that we gave to a client to the server connection that runs its statement, and to no
//! other.
//!
//! The danger is time. A cancel takes a while to reach its server, and the connection may serve somebody else by
//! then. So a connection with a cancel under way is not lent on until the cancel is over and one more round trip has
//! flushed what it may have left (see `Session::release`).

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use tokio::sync::Notify;
use tracing::debug;

use crate::{
    protocol::{PoolKey, Protocol, ServerKey},
    secrets::Secret,
    server::send_cancel,
    target::Target,
};

/// A server connection as cancels see it.
#[derive(Debug)]
pub struct Cancellable {
    key: ServerKey,
    /// For protocols in which a cancel has to log in.
    login: (PoolKey, Arc<Secret>),
    /// Index of its target.
    target: usize,
    peer: Option<SocketAddr>,
    under_way: AtomicUsize,
    over: Notify,
    /// A cancel was sent, and nobody knows what became of it.
    doubtful: AtomicBool,
}

impl Cancellable {
    /// For a connection just opened.
    pub fn new(
        key: ServerKey,
        login: (PoolKey, Arc<Secret>),
        target: usize,
        peer: Option<SocketAddr>,
    ) -> Self {
        Self {
            key,
            login,
            target,
            peer,
            under_way: AtomicUsize::new(0),
            over: Notify::new(),
            doubtful: AtomicBool::new(false),
        }
    }

    /// Which of the proxy's targets it leads to.
    pub fn target(&self) -> usize {
        self.target
    }

    /// One more cancel is on its way. Call this while the connection cannot change hands, then [`Self::send`].
    pub fn begin(self: &Arc<Self>) -> UnderWay {
        self.under_way.fetch_add(1, Ordering::SeqCst);
        UnderWay(self.clone())
    }

    /// True while a cancel may still hit.
    pub fn is_under_way(&self) -> bool {
        self.under_way.load(Ordering::SeqCst) > 0
    }

    /// True when a cancel may hit at any time to come: the connection must not be lent again.
    pub fn is_doubtful(&self) -> bool {
        self.doubtful.load(Ordering::SeqCst)
    }

    /// Waits until no cancel is under way.
    pub async fn over(&self) {
        loop {
            let notified = self.over.notified();
            if !self.is_under_way() {
                return;
            }
            notified.await;
        }
    }

    /// Sends the cancel and waits until the server has dealt with it.
    pub async fn send<P: Protocol>(&self, target: &Target<P>) -> bool {
        let mut request = Vec::new();
        P::write_cancel(&self.key, &mut request);
        match send_cancel(target, self.peer, &self.login, &request).await {
            Ok(()) => true,
            Err(error) => {
                debug!(%error, "cancel request failed");
                self.doubtful.store(true, Ordering::SeqCst);
                false
            }
        }
    }
}

/// A cancel on its way; it is over when this is dropped.
#[derive(Debug)]
pub struct UnderWay(Arc<Cancellable>);

impl UnderWay {
    /// Whose.
    pub fn cancellable(&self) -> &Cancellable {
        &self.0
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::SeqCst);
        self.0.over.notify_waiters();
    }
}
