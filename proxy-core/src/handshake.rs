//! A client from accept to its first request: TLS, who it is, what it is told.

use std::{
    future::poll_fn,
    io,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tracing::{debug, info};

use crate::{
    buffer::{Buffer, Pipe},
    protocol::{
        Accept, AcceptOptions, AcceptStep, Arrival, CancelKey, Compression, Fault, FaultKind, Greeting,
        Login, PoolKey, Protocol, ServerState, Severity, Tracker,
    },
    proxy::{Endpoint, Proxy, SessionHandle, Who},
    router::Route,
    session::{Returning, Session, SessionError, borrow::Borrower, place::Places},
    stream::{Stream, tune},
};

/// After our last word, for a client that goes on sending.
const LINGER: Duration = Duration::from_secs(1);
/// Read and thrown away meanwhile, at most.
const LINGER_BYTES: usize = 1 << 20;

/// How a handshake ended without a session.
enum Ended {
    /// The client is told this.
    Fault(Fault),
    /// Nobody is left to tell, or nothing to say.
    Silent,
    /// It was a cancel request.
    Cancel(CancelKey),
}

impl From<io::Error> for Ended {
    fn from(_: io::Error) -> Self {
        Self::Silent
    }
}

impl From<Fault> for Ended {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

/// Counts one client for as long as it is connected.
struct Counted<P: Protocol> {
    endpoint: Arc<Endpoint<P>>,
    tls: bool,
}

impl<P: Protocol> Drop for Counted<P> {
    fn drop(&mut self) {
        self.endpoint.metrics.client_closed(self.tls);
        self.endpoint.proxy.sessions.left();
    }
}

/// Names a client among the sessions from its arrival; gone when this is dropped, unless its session has begun.
struct Registered<P: Protocol> {
    proxy: Option<Arc<Proxy<P>>>,
    handle: Arc<SessionHandle>,
}

impl<P: Protocol> Registered<P> {
    fn new(proxy: &Arc<Proxy<P>>) -> Result<Self, Fault> {
        let handle = proxy
            .sessions
            .register(Instant::now())
            .ok_or_else(|| Fault::fatal(FaultKind::Internal, "Unknown error."))?;
        Ok(Self { proxy: Some(proxy.clone()), handle })
    }

    /// From now on it is the session that ends it.
    fn into_handle(mut self) -> Arc<SessionHandle> {
        self.proxy = None;
        self.handle.clone()
    }
}

impl<P: Protocol> Drop for Registered<P> {
    fn drop(&mut self) {
        if let Some(proxy) = &self.proxy {
            proxy.sessions.unregister(&self.handle);
        }
    }
}

/// Serves one accepted client to its end.
pub async fn serve_client<P: Protocol>(endpoint: Arc<Endpoint<P>>, tcp: TcpStream, peer: IpAddr) {
    endpoint.metrics.client_connected();
    let max = endpoint.proxy.settings().max_client_connections;
    let within = endpoint.proxy.sessions.entered(max);
    let mut counted = Counted { endpoint: endpoint.clone(), tls: false };
    // Boxed, and gone before the session begins: what a login needs should not weigh on an idle client. So is the
    // session, of which the task would otherwise have a copy for each function that takes it.
    let mut welcomed = Box::pin(welcome(&mut counted, tcp, peer, (!within).then_some(max))).await;
    while let Some(session) = welcomed {
        let Some(returning) = session.run().await else { return };
        welcomed = Box::pin(welcome_again(&mut counted, returning)).await;
    }
}

async fn welcome<P: Protocol>(
    counted: &mut Counted<P>,
    tcp: TcpStream,
    peer: IpAddr,
    too_many: Option<usize>,
) -> Option<Box<Session<P>>> {
    let endpoint = counted.endpoint.clone();
    let proxy = &endpoint.proxy;
    tune(&tcp).ok()?;
    let mut guest = Guest::<P> {
        stream: Some(Stream::Plain(tcp)),
        input: Buffer::default(),
        out: Vec::new(),
        accept: None,
    };
    let patience = proxy.settings().handshake_timeout;
    let outcome = match proxy.unauthenticated() {
        None => Err(Ended::Fault(Fault::fatal(
            FaultKind::TooManyClients,
            format!(
                "The maximum number of client connections to the proxy exceeded {}.",
                proxy.settings().max_unauthenticated
            ),
        ))),
        Some(_unauthenticated) => match timeout(patience, guest.log_in(counted, peer, too_many)).await {
            Ok(outcome) => outcome,
            Err(_) if guest.accept.is_none() => {
                Err(Ended::Fault(Fault::fatal(FaultKind::NoTarget, "No database server was reached yet.")))
            }
            Err(_) => Err(Ended::Fault(Fault::fatal(
                FaultKind::HandshakeTimeout,
                "canceling authentication due to timeout",
            ))),
        },
    };
    guest.be_seated(&endpoint, outcome, peer).await
}

/// A client that has had a session logs in anew, on the same connection and under the same number.
async fn welcome_again<P: Protocol>(
    counted: &mut Counted<P>,
    returning: Box<Returning<P>>,
) -> Option<Box<Session<P>>> {
    let endpoint = counted.endpoint.clone();
    let Returning { stream, input, handle, key, client, request } = *returning;
    let registered = Registered { proxy: Some(endpoint.proxy.clone()), handle };
    let peer = stream.peer()?.ip();
    let mut guest = Guest::<P> { stream: Some(stream), input, out: Vec::new(), accept: None };
    let patience = endpoint.proxy.settings().handshake_timeout;
    let login = guest.log_in_again(counted, peer, &registered, (client, &key, &request));
    let outcome = match timeout(patience, login).await {
        Ok(outcome) => outcome.map(|login| (login, registered)),
        Err(_) => Err(Ended::Fault(Fault::fatal(
            FaultKind::HandshakeTimeout,
            "canceling authentication due to timeout",
        ))),
    };
    guest.be_seated(&endpoint, outcome, peer).await
}

impl<P: Protocol> Guest<P> {
    /// A session for who is logged in; a last word for who is not.
    async fn be_seated(
        mut self,
        endpoint: &Arc<Endpoint<P>>,
        outcome: Result<(Login<P::Client>, Registered<P>), Ended>,
        peer: IpAddr,
    ) -> Option<Box<Session<P>>> {
        let outcome = match outcome {
            Ok((login, registered)) => {
                endpoint.metrics.login_succeeded();
                self.settle_in(endpoint, login, registered).await
            }
            Err(ended) => Err(ended),
        };
        match outcome {
            Ok(session) => Some(Box::new(session)),
            Err(Ended::Cancel(key)) => {
                // The answer to a cancel is the close of the connection, once it has been dealt with.
                endpoint.proxy.cancel(key).await;
                None
            }
            Err(Ended::Silent) => None,
            Err(Ended::Fault(fault)) => {
                self.refuse(endpoint, &fault, peer).await;
                None
            }
        }
    }

    async fn log_in_again(
        &mut self,
        counted: &mut Counted<P>,
        peer: IpAddr,
        registered: &Registered<P>,
        (client, before, request): (P::Client, &PoolKey, &[u8]),
    ) -> Result<Login<P::Client>, Ended> {
        let proxy = counted.endpoint.proxy.clone();
        let hello = said_by_servers(&proxy).await?;
        let arrival = Arrival {
            hello,
            key: registered.handle.key,
            peer,
            method: proxy.usual_method(),
            force_full_authentication: proxy.settings().force_full_authentication,
        };
        let (accept, first) = P::Accept::again(arrival, client, before, request)?;
        self.accept = Some(accept);
        self.converse(counted, peer, None, Some(first)).await
    }
}

/// A client that is not a session yet.
struct Guest<P: Protocol> {
    /// `None` once handed on, or lost in a TLS handshake.
    stream: Option<Stream>,
    input: Buffer,
    out: Vec<u8>,
    /// Its login, once that could begin.
    accept: Option<P::Accept>,
}

impl<P: Protocol> Guest<P> {
    /// From the first byte to "authenticated".
    async fn log_in(
        &mut self,
        counted: &mut Counted<P>,
        peer: IpAddr,
        too_many: Option<usize>,
    ) -> Result<(Login<P::Client>, Registered<P>), Ended> {
        let endpoint = counted.endpoint.clone();
        let proxy = &endpoint.proxy;
        let registered = Registered::new(proxy)?;
        let hello = said_by_servers(proxy).await?;
        let offered = proxy.tls.load_full();
        let settings = proxy.settings();
        let options = AcceptOptions { offer_tls: offered.is_some(), require_tls: settings.require_tls };
        let arrival = Arrival {
            hello,
            key: registered.handle.key,
            peer,
            method: proxy.usual_method(),
            force_full_authentication: settings.force_full_authentication,
        };
        drop(settings);
        self.accept = Some(P::Accept::begin(options, arrival));
        let first = if P::DIRECT_TLS && self.begins_with_tls().await? {
            let Some(accept) = &mut self.accept else { return Err(Ended::Silent) };
            accept.direct_tls()?;
            Some(AcceptStep::StartTls)
        } else {
            None
        };
        let login = self.converse(counted, peer, too_many, first).await?;
        Ok((login, registered))
    }

    /// Does what the login wants, `first` to begin with, to its end.
    async fn converse(
        &mut self,
        counted: &mut Counted<P>,
        peer: IpAddr,
        too_many: Option<usize>,
        mut first: Option<AcceptStep<P::Client>>,
    ) -> Result<Login<P::Client>, Ended> {
        let endpoint = counted.endpoint.clone();
        let proxy = &endpoint.proxy;
        let offered = proxy.tls.load_full();
        loop {
            let Some(accept) = &mut self.accept else { return Err(Ended::Silent) };
            let step = match first.take() {
                Some(step) => step,
                None => accept.advance(&mut self.input, &mut self.out)?,
            };
            match step {
                AcceptStep::NeedBytes => {
                    self.flush().await?;
                    self.fill(usize::MAX).await?;
                }
                AcceptStep::NeedAtMost(n) => {
                    self.flush().await?;
                    self.fill(n).await?;
                }
                AcceptStep::NeedWork(work) => {
                    let done = tokio::task::spawn_blocking(work).await;
                    done.map_err(|_| Fault::fatal(FaultKind::Internal, "Unknown error."))?;
                }
                AcceptStep::StartTls => {
                    let Some(tls) = &offered else { return Err(Ended::Silent) };
                    let state = tls.current();
                    self.flush().await?;
                    let Some(Stream::Plain(tcp)) = self.stream.take() else { return Err(Ended::Silent) };
                    let acceptor = tokio_rustls::TlsAcceptor::from(state.config.clone());
                    let stream = match acceptor.accept(tcp).await {
                        Ok(stream) => stream,
                        Err(error) => {
                            debug!(%peer, %error, "TLS handshake failed");
                            endpoint.metrics.login_failed();
                            return Err(Ended::Silent);
                        }
                    };
                    let protocol = stream.get_ref().1.alpn_protocol().map(<[u8]>::to_vec);
                    self.stream = Some(Stream::ClientTls(Box::new(stream)));
                    counted.tls = true;
                    endpoint.metrics.client_tls();
                    let Some(accept) = &mut self.accept else { return Err(Ended::Silent) };
                    accept.tls_started(state.end_point.as_deref(), protocol.as_deref())?;
                }
                AcceptStep::NeedCredentials(name) => {
                    if let Some(max) = too_many {
                        return Err(Ended::Fault(Fault::fatal(
                            FaultKind::TooManyClients,
                            format!("The maximum number of client connections to the proxy exceeded {max}."),
                        )));
                    }
                    if let Some(limit) = proxy.login_rate_exceeded(peer, Instant::now()) {
                        return Err(Ended::Fault(Fault::fatal(
                            FaultKind::LoginRate,
                            format!("Rate of connection to proxy exceeded {limit}."),
                        )));
                    }
                    let user = proxy.user(&name);
                    // A user without an entry is asked as most are, so that the question tells nothing.
                    let method = user.as_ref().map_or_else(|| proxy.usual_method(), |user| user.method);
                    let secret = match user.map(|user| user.secret.current()) {
                        Some(Ok(secret)) => Some(secret),
                        Some(Err(error)) => {
                            info!(user = %name, %error, "no usable secret");
                            None
                        }
                        None => None,
                    };
                    accept.credentials(method, secret, &proxy.mock, &mut self.out)?;
                }
                AcceptStep::Login(login) => return Ok(login),
                AcceptStep::Cancel(key) => return Err(Ended::Cancel(key)),
                AcceptStep::Quit => return Err(Ended::Silent),
            }
        }
    }

    /// From "authenticated" to "ready": what the server says at login must be known, from an earlier login or from
    /// one now.
    async fn settle_in(
        &mut self,
        endpoint: &Arc<Endpoint<P>>,
        login: Login<P::Client>,
        registered: Registered<P>,
    ) -> Result<Session<P>, Ended> {
        let proxy = &endpoint.proxy;
        let Login { key, application, compression, client } = login;
        let key = Arc::new(key);
        let (mut places, session_functions) = Places::join(proxy, &key);
        let mut up = Pipe::with_input(std::mem::take(&mut self.input));
        let welcomed = async {
            let handle = &registered.handle;
            let greeting = self.greeting(endpoint, handle, &key, &mut places, &mut up).await?;
            let Some(accept) = &mut self.accept else { return Err(Ended::Silent) };
            accept.write_welcome(&greeting, handle.key, &mut self.out);
            if compression != Compression::None {
                // The welcome itself is not compressed.
                timeout(LINGER, self.flush()).await.map_err(|_| Ended::Silent)??;
            }
            Ok((greeting, self.stream.take().ok_or(Ended::Silent)?))
        };
        let (greeting, stream) = match welcomed.await {
            Ok(welcomed) => welcomed,
            Err(ended) => {
                places.leave(proxy);
                return Err(ended);
            }
        };
        let stream = stream.compressed(compression, up.input_mut());
        let handle = registered.into_handle();
        handle.touch(Instant::now());
        let mut down = Pipe::default();
        down.emit(&std::mem::take(&mut self.out));
        debug!(proxy = %proxy.name, endpoint = %endpoint.name, user = %key.user, client = handle.number, "client logged in");
        let tracker = P::Tracker::new(&key, &greeting, client);
        let client = stream.peer().map(|peer| peer.ip().to_string()).unwrap_or_default();
        let names = proxy.plugins.names(
            handle.number,
            &key.user,
            P::database(&key),
            &endpoint.name,
            &application,
            &client,
        );
        handle.belongs_to(Who {
            user: key.user.clone(),
            database: P::database(&key).into(),
            application,
            endpoint: endpoint.name.as_str().into(),
            address: client.into(),
        });
        Ok(Session::new(
            endpoint.clone(),
            handle,
            stream,
            up,
            down,
            tracker,
            key,
            places,
            session_functions,
            names,
        ))
    }

    /// What a target of the endpoint's role says at login: a writer and a reader say different things.
    async fn greeting(
        &mut self,
        endpoint: &Arc<Endpoint<P>>,
        handle: &Arc<SessionHandle>,
        key: &Arc<PoolKey>,
        places: &mut Places,
        up: &mut Pipe,
    ) -> Result<Arc<Greeting>, Ended> {
        let targets = &endpoint.proxy.targets;
        let began = Instant::now();
        let Some(client) = &mut self.stream else { return Err(Ended::Silent) };
        let route = &Route::Endpoint;
        let mut borrower = Borrower {
            endpoint,
            handle,
            key,
            places,
            route,
            client,
            up,
            prefer_own: false,
            bare: false,
            settings: None,
            least: None,
        };
        let first = match borrower.place() {
            Ok(place) => {
                if let Some(greeting) = targets[place.target].pool.greeting(place.pool) {
                    return Ok(greeting);
                }
                Some((place, borrower.acquire(place, began)))
            }
            Err(_) => None,
        };
        match Box::pin(borrower.wait(first, began)).await {
            Ok(Ok(connection)) => {
                let place = places.at(&endpoint.proxy, key, connection.target().index);
                let pool = &targets[place.target].pool;
                let greeting = connection.state.greeting();
                pool.set_greeting(place.pool, greeting.clone());
                pool.give_back(place.pool, connection, Instant::now());
                Ok(greeting)
            }
            Ok(Err(mut fault)) => {
                fault.severity = Severity::Fatal;
                Err(Ended::Fault(fault))
            }
            Err(error @ SessionError::ClientGone(_)) => {
                debug!(%error, "client left before it was logged in");
                Err(Ended::Silent)
            }
            Err(error) => Err(error.fault().map_or(Ended::Silent, Ended::Fault)),
        }
    }

    async fn refuse(mut self, endpoint: &Endpoint<P>, fault: &Fault, peer: IpAddr) {
        match fault.kind {
            FaultKind::BadPassword => {
                endpoint.proxy.note_failed_login(peer, Instant::now());
                endpoint.metrics.login_failed();
            }
            FaultKind::TlsRequired | FaultKind::UserMissing => endpoint.metrics.login_failed(),
            _ => {}
        }
        info!(
            proxy = %endpoint.proxy.name, endpoint = %endpoint.name, %peer, reason = %fault.message, "client refused"
        );
        match &mut self.accept {
            Some(accept) => accept.write_fault(fault, &mut self.out),
            None => P::write_refusal(fault, &mut self.out),
        }
        if timeout(LINGER, self.flush()).await.is_ok_and(|flushed| flushed.is_ok())
            && let Some(stream) = self.stream
        {
            linger(stream).await;
        }
    }

    /// Looks at the first byte without taking it: TLS may begin at once, and its bytes belong to the TLS layer.
    async fn begins_with_tls(&mut self) -> io::Result<bool> {
        const HANDSHAKE_RECORD: u8 = 0x16;
        let mut first = [0];
        let Some(stream) = &self.stream else { return Ok(false) };
        Ok(stream.tcp().peek(&mut first).await? == 1 && first[0] == HANDSHAKE_RECORD)
    }

    /// Reads once, at most `n` bytes.
    async fn fill(&mut self, n: usize) -> io::Result<()> {
        let Some(stream) = &mut self.stream else { return Err(io::ErrorKind::NotConnected.into()) };
        let mut stream = stream.take(n as u64);
        let input = &mut self.input;
        match poll_fn(|cx| input.poll_read_from(&mut stream, cx)).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }

    async fn flush(&mut self) -> io::Result<()> {
        let Some(stream) = &mut self.stream else { return Err(io::ErrorKind::NotConnected.into()) };
        if !self.out.is_empty() {
            stream.write_all(&self.out).await?;
            stream.flush().await?;
            self.out.clear();
        }
        Ok(())
    }
}

/// What clients may be told of the servers, as soon as one was reached.
async fn said_by_servers<P: Protocol>(proxy: &Proxy<P>) -> Result<P::Hello, Ended> {
    let mut changes = proxy.changes();
    loop {
        if let Some(hello) = proxy.hello() {
            return Ok(hello);
        }
        changes.changed().await.map_err(|_| Ended::Silent)?;
    }
}

/// Refuses a client before a single byte of it was read.
pub async fn refuse_at_once<P: Protocol>(mut tcp: TcpStream, fault: &Fault) {
    let mut out = Vec::new();
    P::write_refusal(fault, &mut out);
    if timeout(LINGER, tcp.write_all(&out)).await.is_ok_and(|written| written.is_ok()) {
        linger(Stream::Plain(tcp)).await;
    }
}

/// Ends a connection so that our last word arrives: a close with unread bytes would reset it, and the client might
/// never see what was written.
pub async fn linger(mut stream: Stream) {
    let _ = timeout(LINGER, async {
        stream.shutdown().await?;
        let mut left = LINGER_BYTES;
        let mut rest = Buffer::default();
        while left > 0 {
            match poll_fn(|cx| rest.poll_read_from(&mut stream, cx)).await? {
                0 => break,
                n => left = left.saturating_sub(n),
            }
            rest.consume(rest.len());
        }
        io::Result::Ok(())
    })
    .await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::postgres::Postgres;

    fn size<A, B, C, F>(_: fn(A, B, C) -> F) -> usize {
        size_of::<F>()
    }

    /// What an idle client costs in its task and its session, buffers and sockets aside: each byte counts ten thousand times.
    #[test]
    fn a_session_is_small() {
        let task = size(serve_client::<Postgres>);
        let session = size_of::<Session<Postgres>>();
        let tracker = size_of::<<Postgres as Protocol>::Tracker>();
        println!("task {task}, session {session}, tracker {tracker}, pipe {}", size_of::<Pipe>());
        assert!(task + session <= 1280, "task {task}, session {session}, tracker {tracker}");
    }
}
