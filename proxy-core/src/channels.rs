//! Notification channels: one connection to each database listens for all clients there.
//!
//! A client that listens would otherwise have to keep a server connection for as long as it does. A listener is a task
//! with a connection of its own, beside the pool: it hears the channels of all its clients and lays what comes for each into
//! that client's [`Ear`], in the order in which the server has told it. It opens with the first client and closes
//! some time after the last. When it is lost so are its clients: none of them could know what it has missed.

use std::{
    collections::HashMap,
    future::pending,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{mpsc, oneshot},
    time::{sleep, timeout},
};
use tracing::{debug, info, warn};

use crate::{
    pool::Pooled as _,
    protocol::{PoolKey, Protocol, ServerState},
    proxy::{HEARD, SessionHandle},
    secrets::SecretHandle,
    server::{ServerConnection, ServerError},
    target::Target,
};

/// Notifications of one client that nobody has read yet; then it is given up, since it would miss some.
const MOST_UNREAD_BYTES: usize = 1 << 20;
/// How long a connection without clients is kept for the next.
const LINGER: Duration = Duration::from_secs(10);
/// Orders that may wait for a listener; it takes all there are at once.
const MOST_ORDERS: usize = 1024;
/// For whatever a client has to wait for here.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// What one client hears.
#[derive(Debug)]
pub struct Ear {
    handle: Arc<SessionHandle>,
    /// Its session has left.
    is_gone: AtomicBool,
    heard: Mutex<Heard>,
}

/// What has come since it was taken last.
#[derive(Debug, Default)]
pub struct Heard {
    /// Messages in the protocol's own form.
    pub bytes: Vec<u8>,
    /// Letters beyond ASCII are among them, in UTF-8.
    pub is_wide: bool,
    /// More is missing.
    pub lost: Option<Lost>,
}

/// Why a client misses notifications.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lost {
    /// The server connection that heard them.
    Server,
    /// It has not read those that came before.
    TooMany,
}

impl Ear {
    /// Of the session that `handle` wakes.
    pub fn new(handle: &Arc<SessionHandle>) -> Arc<Self> {
        Arc::new(Self { handle: handle.clone(), is_gone: AtomicBool::new(false), heard: Mutex::default() })
    }

    /// Takes what has come.
    pub fn take(&self) -> Heard {
        std::mem::take(&mut *self.lock())
    }

    fn tell(&self, message: &[u8], is_wide: bool) {
        let mut heard = self.lock();
        if heard.lost.is_some() {
            return;
        }
        if heard.bytes.len() + message.len() > MOST_UNREAD_BYTES {
            *heard = Heard { lost: Some(Lost::TooMany), ..Heard::default() };
        } else {
            heard.bytes.extend_from_slice(message);
            heard.is_wide |= is_wide;
        }
        drop(heard);
        self.handle.signal(HEARD);
    }

    fn lose(&self) {
        self.lock().lost.get_or_insert(Lost::Server);
        self.handle.signal(HEARD);
    }

    fn lock(&self) -> MutexGuard<'_, Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A message that a server sent to whoever listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Notification<'a> {
    /// The channel.
    pub channel: &'a str,
    /// All of the message, in the protocol's own form.
    pub message: &'a [u8],
    /// Letters beyond ASCII are in it.
    pub is_wide: bool,
}

/// What a client wants of a listener.
enum Order {
    /// To hear these channels too. Answered once whatever is notified from now on will be heard.
    Join { ear: Arc<Ear>, channels: Vec<Box<str>>, done: oneshot::Sender<()> },
    /// To have heard what has been notified by now.
    CatchUp { done: oneshot::Sender<()> },
    /// Not to hear these channels any more.
    Leave { ear: Arc<Ear>, channels: Vec<Box<str>> },
    /// To look for those who are gone.
    Sweep,
}

/// The way to a listener.
#[derive(Debug, Clone)]
pub struct Listener {
    orders: mpsc::Sender<Order>,
    /// Somebody has gone whose order found no room.
    must_sweep: Arc<AtomicBool>,
}

impl Listener {
    /// Comes back when all that was notified before this call lies in its clients' ears; false when the listener is lost.
    pub async fn catch_up(&self) -> bool {
        let (done, caught_up) = oneshot::channel();
        let caught_up =
            async { self.orders.send(Order::CatchUp { done }).await.is_ok() && caught_up.await.is_ok() };
        timeout(ANSWER_TIMEOUT, caught_up).await.unwrap_or(false)
    }

    /// Leaves some channels.
    pub async fn leave(&self, ear: &Arc<Ear>, channels: Vec<Box<str>>) {
        // A listener that is gone is left.
        let order = self.orders.send(Order::Leave { ear: ear.clone(), channels });
        let _ = timeout(ANSWER_TIMEOUT, order).await;
    }

    /// Leaves all channels, for good.
    pub fn leave_all(&self, ear: &Ear) {
        ear.is_gone.store(true, Ordering::Release);
        if self.orders.try_send(Order::Sweep).is_err() {
            // There are orders enough to look behind.
            self.must_sweep.store(true, Ordering::Release);
        }
    }
}

/// The listeners of a target, by database.
#[derive(Debug, Default)]
pub struct Listeners {
    open: Mutex<HashMap<Box<str>, Listener>>,
}

impl Listeners {
    /// Databases listened to.
    pub fn count(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Box<str>, Listener>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Has `ear` hear `channels` in the database of `key` from now on. The listener is opened, with that user's rights, where there
/// is none: who listens needs no rights but to connect. `None` when that is not possible.
pub async fn join<P: Protocol>(
    target: &Arc<Target<P>>,
    key: &PoolKey,
    secrets: &Arc<SecretHandle>,
    ear: &Arc<Ear>,
    channels: Vec<Box<str>>,
) -> Option<Listener> {
    let login = P::listener_key(key)?;
    let (done, joined) = oneshot::channel();
    let mut order = Order::Join { ear: ear.clone(), channels, done };
    let database: Box<str> = P::database(key).into();
    let joined = async {
        loop {
            let sent = {
                let mut open = target.listeners.lock();
                let listener = open.entry(database.clone()).or_insert_with(|| {
                    let (orders, received) = mpsc::channel(MOST_ORDERS);
                    let must_sweep = Arc::<AtomicBool>::default();
                    let listener = Listener { orders, must_sweep: must_sweep.clone() };
                    tokio::spawn(serve(target.clone(), login.clone(), secrets.clone(), received, must_sweep));
                    listener
                });
                // Under the lock, which a listener that ends takes first.
                listener.orders.try_send(order).map(|()| listener.clone())
            };
            match sent {
                Ok(listener) => return joined.await.ok().map(|()| listener),
                Err(mpsc::error::TrySendError::Closed(_)) => return None,
                Err(mpsc::error::TrySendError::Full(back)) => order = back,
            }
            tokio::task::yield_now().await;
        }
    };
    timeout(ANSWER_TIMEOUT, joined).await.ok().flatten()
}

/// The task of one listener.
async fn serve<P: Protocol>(
    target: Arc<Target<P>>,
    login: PoolKey,
    secrets: Arc<SecretHandle>,
    mut orders: mpsc::Receiver<Order>,
    must_sweep: Arc<AtomicBool>,
) {
    let database = P::database(&login).to_owned();
    let mut ears = Ears { must_sweep, ..Ears::default() };
    let outcome = match ServerConnection::open(&target, None, &login, &secrets).await {
        Ok(mut connection) => {
            info!(target = %target.name, database, user = %login.user, "listening for clients");
            let outcome = listen(&target, &database, &mut connection, &mut orders, &mut ears).await;
            connection.retire();
            outcome
        }
        Err(error) => Err(error),
    };
    if let Err(error) = outcome {
        target.listeners.lock().remove(&*database);
        let clients = ears.all().count();
        warn!(target = %target.name, database, clients, %error, "cannot listen any more");
        ears.all().for_each(|ear| ear.lose());
    }
}

async fn listen<P: Protocol>(
    target: &Target<P>,
    database: &str,
    connection: &mut ServerConnection<P>,
    orders: &mut mpsc::Receiver<Order>,
    ears: &mut Ears,
) -> Result<(), ServerError> {
    let mut batch = Vec::new();
    loop {
        let nobody_listens = ears.is_empty();
        let done = async move { if nobody_listens { sleep(LINGER).await } else { pending().await } };
        tokio::select! {
            // Orders wait for what they need themselves, so nothing that comes is kept from anybody for long.
            count = orders.recv_many(&mut batch, MOST_ORDERS) => if count == 0 { return Ok(()) },
            heard = connection.hear() => heard?,
            () = done => {
                let mut open = target.listeners.lock();
                if orders.is_empty() {
                    open.remove(database);
                    debug!(target = %target.name, database, "nobody listens any more");
                    return Ok(());
                }
            }
        }
        target.metrics.heard(ears.tell::<P>(&connection.state.take_heard()));
        let mut catching_up = Vec::new();
        for order in batch.drain(..) {
            match order {
                Order::Join { ear, channels, done } => {
                    let new: Vec<_> =
                        channels.iter().filter(|name| !ears.hear(name)).map(|name| &**name).collect();
                    let refused = exchange(connection, ears, |state, out| match new.is_empty() {
                        true => P::write_ping(out),
                        false => P::write_listen(state, &new, out),
                    });
                    if let Some(error) = refused.await? {
                        debug!(target = %target.name, database, error, "the server does not let us listen");
                        continue;
                    }
                    ears.join(&ear, &channels);
                    if done.send(()).is_err() {
                        // It waits no more, and will hear by itself.
                        let silent = ears.leave(&ear, &channels);
                        silence(connection, ears, &silent).await?;
                    }
                }
                Order::CatchUp { done } => catching_up.push(done),
                Order::Leave { ear, channels } => {
                    let silent = ears.leave(&ear, &channels);
                    silence(connection, ears, &silent).await?;
                }
                Order::Sweep => ears.must_sweep.store(true, Ordering::Release),
            }
        }
        if ears.must_sweep.swap(false, Ordering::AcqRel) {
            let silent = ears.leave_where(|_, ear| ear.is_gone.load(Ordering::Acquire));
            silence(connection, ears, &silent).await?;
        }
        if !catching_up.is_empty() {
            // By the end of a round trip the server has told what was committed before it.
            exchange(connection, ears, |_, out| P::write_ping(out)).await?;
            for done in catching_up {
                let _ = done.send(());
            }
        }
    }
}

/// Nobody hears these channels any more.
async fn silence<P: Protocol>(
    connection: &mut ServerConnection<P>,
    ears: &Ears,
    channels: &[Box<str>],
) -> Result<(), ServerError> {
    if channels.is_empty() {
        return Ok(());
    }
    let names: Vec<_> = channels.iter().map(|name| &**name).collect();
    match exchange(connection, ears, |state, out| P::write_unlisten(state, &names, out)).await? {
        None => Ok(()),
        Some(error) => Err(ServerError::Statement { what: "leaving channels", error }),
    }
}

/// Runs a statement of our own; the server's error if it has one.
async fn exchange<P: Protocol>(
    connection: &mut ServerConnection<P>,
    ears: &Ears,
    write: impl FnOnce(&mut P::Server, &mut Vec<u8>),
) -> Result<Option<String>, ServerError> {
    let mut request = Vec::new();
    write(&mut connection.state, &mut request);
    let (_, error) = connection.exchange_while_hearing(&request).await?;
    let count = ears.tell::<P>(&connection.state.take_heard());
    connection.target().metrics.heard(count);
    Ok(error)
}

/// Who hears what.
#[derive(Debug, Default)]
struct Ears {
    by_channel: HashMap<Box<str>, Vec<Arc<Ear>>>,
    /// Some of them are gone.
    must_sweep: Arc<AtomicBool>,
}

impl Ears {
    fn is_empty(&self) -> bool {
        self.by_channel.is_empty()
    }

    fn hear(&self, channel: &str) -> bool {
        self.by_channel.contains_key(channel)
    }

    fn all(&self) -> impl Iterator<Item = &Arc<Ear>> {
        self.by_channel.values().flatten()
    }

    fn join(&mut self, ear: &Arc<Ear>, channels: &[Box<str>]) {
        for channel in channels {
            let ears = self.by_channel.entry(channel.clone()).or_default();
            if !ears.iter().any(|known| Arc::ptr_eq(known, ear)) {
                ears.push(ear.clone());
            }
        }
    }

    /// The channels that nobody hears any more.
    fn leave(&mut self, ear: &Arc<Ear>, channels: &[Box<str>]) -> Vec<Box<str>> {
        self.leave_where(|channel, known| {
            Arc::ptr_eq(known, ear) && channels.iter().any(|left| **left == *channel)
        })
    }

    /// Likewise.
    fn leave_where(&mut self, leaves: impl Fn(&str, &Arc<Ear>) -> bool) -> Vec<Box<str>> {
        let mut silent = Vec::new();
        self.by_channel.retain(|channel, ears| {
            ears.retain(|ear| !leaves(channel, ear));
            if ears.is_empty() {
                silent.push(channel.clone());
            }
            !ears.is_empty()
        });
        silent
    }

    /// Tells each what is for it; how many notifications there were.
    fn tell<P: Protocol>(&self, heard: &[u8]) -> usize {
        let notifications = P::notifications(heard);
        for notification in &notifications {
            for ear in self.by_channel.get(notification.channel).into_iter().flatten() {
                ear.tell(notification.message, notification.is_wide);
            }
        }
        notifications.len()
    }
}
