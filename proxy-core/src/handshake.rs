//! A client from accept to its first request: TLS, who it is, what it is told.

use std::{
    future::poll_fn,
    io,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{io::AsyncWriteExt, net::TcpStream, time::timeout};
use tracing::{debug, info};

use crate::{
    buffer::{Buffer, Pipe},
    protocol::{
        Accept, AcceptOptions, AcceptStep, CancelKey, Fault, FaultKind, Greeting, PoolKey, Protocol,
        ServerState, Severity, Tracker,
    },
    proxy::{Endpoint, SessionHandle},
    router::Route,
    session::{Session, SessionError, borrow::Borrower, place::Places},
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

/// Serves one accepted client to its end.
pub async fn serve_client<P: Protocol>(endpoint: Arc<Endpoint<P>>, tcp: TcpStream, peer: IpAddr) {
    endpoint.metrics.client_connected();
    let max = endpoint.proxy.settings().max_client_connections;
    let within = endpoint.proxy.sessions.entered(max);
    let mut counted = Counted { endpoint: endpoint.clone(), tls: false };
    // Boxed, and gone before the session begins: what a login needs should not weigh on an idle client. So is the
    // session, of which the task would otherwise have a copy for each function that takes it.
    let welcomed = Box::pin(welcome(&mut counted, tcp, peer, (!within).then_some(max))).await;
    if let Some(session) = welcomed {
        session.run().await;
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
    let mut guest = Guest { stream: Some(Stream::Plain(tcp)), input: Buffer::default(), out: Vec::new() };
    let patience = proxy.settings().handshake_timeout;
    let outcome = match proxy.unauthenticated() {
        None => Err(Ended::Fault(Fault::fatal(
            FaultKind::TooManyClients,
            format!(
                "The maximum number of client connections to the proxy exceeded {}.",
                proxy.settings().max_unauthenticated
            ),
        ))),
        Some(_unauthenticated) => {
            let handshake = guest.log_in(counted, peer, too_many);
            timeout(patience, handshake).await.unwrap_or_else(|_| {
                Err(Ended::Fault(Fault::fatal(
                    FaultKind::HandshakeTimeout,
                    "canceling authentication due to timeout",
                )))
            })
        }
    };
    let outcome = match outcome {
        Ok(key) => {
            endpoint.metrics.login_succeeded();
            guest.settle_in(&endpoint, key).await
        }
        Err(ended) => Err(ended),
    };
    match outcome {
        Ok(session) => Some(Box::new(session)),
        Err(Ended::Cancel(key)) => {
            // The answer to a cancel is the close of the connection, once it has been dealt with.
            proxy.cancel(key).await;
            None
        }
        Err(Ended::Silent) => None,
        Err(Ended::Fault(fault)) => {
            guest.refuse(&endpoint, &fault, peer).await;
            None
        }
    }
}

/// A client that is not a session yet.
struct Guest {
    /// `None` once handed on, or lost in a TLS handshake.
    stream: Option<Stream>,
    input: Buffer,
    out: Vec<u8>,
}

impl Guest {
    /// From the first byte to "authenticated".
    async fn log_in<P: Protocol>(
        &mut self,
        counted: &mut Counted<P>,
        peer: IpAddr,
        too_many: Option<usize>,
    ) -> Result<PoolKey, Ended> {
        let endpoint = counted.endpoint.clone();
        let proxy = &endpoint.proxy;
        let offered = proxy.tls.load_full();
        let options =
            AcceptOptions { offer_tls: offered.is_some(), require_tls: proxy.settings().require_tls };
        let mut accept = P::Accept::new(options);
        let mut direct_tls = P::DIRECT_TLS && self.begins_with_tls().await?;
        loop {
            let step = if std::mem::take(&mut direct_tls) {
                accept.direct_tls()?;
                AcceptStep::StartTls
            } else {
                accept.advance(&mut self.input, &mut self.out)?
            };
            match step {
                AcceptStep::NeedBytes => {
                    self.flush().await?;
                    self.fill().await?;
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
                AcceptStep::Login(login) => return Ok(login.key),
                AcceptStep::Cancel(key) => return Err(Ended::Cancel(key)),
                AcceptStep::Quit => return Err(Ended::Silent),
            }
        }
    }

    /// From "authenticated" to "ready": what the server says at login must be known, from an earlier login or from
    /// one now.
    async fn settle_in<P: Protocol>(
        &mut self,
        endpoint: &Arc<Endpoint<P>>,
        key: PoolKey,
    ) -> Result<Session<P>, Ended> {
        let proxy = &endpoint.proxy;
        let now = Instant::now();
        let Some(handle) = proxy.sessions.register(now) else {
            return Err(Ended::Fault(Fault::fatal(FaultKind::Internal, "Unknown error.")));
        };
        let key = Arc::new(key);
        let (mut places, session_functions) = Places::join(proxy, &key);
        let mut up = Pipe::with_input(std::mem::take(&mut self.input));
        let greeting = self.greeting(endpoint, &handle, &key, &mut places, &mut up).await;
        let greeting = match greeting {
            Ok(greeting) => greeting,
            Err(ended) => {
                places.leave(proxy);
                proxy.sessions.unregister(&handle);
                return Err(ended);
            }
        };
        let mut down = Pipe::default();
        down.emit(&std::mem::take(&mut self.out));
        P::write_welcome(&greeting, handle.key, down.output());
        debug!(proxy = %proxy.name, endpoint = %endpoint.name, user = %key.user, client = handle.number, "client logged in");
        let Some(stream) = self.stream.take() else { return Err(Ended::Silent) };
        let tracker = P::Tracker::new(&key, &greeting);
        let client = stream.peer().map(|peer| peer.ip().to_string()).unwrap_or_default();
        let names = proxy.plugins.names(
            handle.number,
            &key.user,
            P::database(&key),
            &endpoint.name,
            P::application(&key),
            &client,
        );
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
    async fn greeting<P: Protocol>(
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
        let mut borrower =
            Borrower { endpoint, handle, key, places, route, client, up, prefer_own: false, settings: None };
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

    async fn refuse<P: Protocol>(mut self, endpoint: &Endpoint<P>, fault: &Fault, peer: IpAddr) {
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
        P::write_fault(fault, &mut self.out);
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

    async fn fill(&mut self) -> io::Result<()> {
        let Some(stream) = &mut self.stream else { return Err(io::ErrorKind::NotConnected.into()) };
        let input = &mut self.input;
        match poll_fn(|cx| input.poll_read_from(stream, cx)).await? {
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

/// Refuses a client before a single byte of it was read.
pub async fn refuse_at_once<P: Protocol>(mut tcp: TcpStream, fault: &Fault) {
    let mut out = Vec::new();
    P::write_fault(fault, &mut out);
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
