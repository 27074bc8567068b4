//! The metrics listener: `/metrics`, `/healthz` and `/readyz` over HTTP/1, nothing else. The admin API is another
//! listener, in [`api`].
//!
//! It answers anyone who can reach it and changes nothing. Every connection serves one request and lives at most
//! [`CONNECTION_LIFE`], and at most [`MAX_CONNECTIONS`] are open at once, so that slow or silent clients cost a
//! bounded amount and go away by themselves.

use std::{
    fmt,
    future::Future,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpListener,
    sync::{OwnedSemaphorePermit, Semaphore, oneshot},
    time::{Sleep, sleep},
};

use crate::metrics::Recorder;

pub mod api;
pub mod client;

/// Connections served at once; more wait in the kernel's queue.
pub const MAX_CONNECTIONS: usize = 32;
/// From accept to the last byte of the answer.
pub const CONNECTION_LIFE: Duration = Duration::from_secs(10);
/// How long answers under way may take once `stop` has come.
const STOP_GRACE: Duration = Duration::from_secs(1);

/// What the listener asks of the rest of Pinion.
pub trait Readiness: Send + Sync {
    /// One line per proxy without a usable target, saying why; empty when Pinion is ready. Must not block.
    fn not_ready(&self) -> Vec<String>;

    /// Called before each scrape: sets the gauges that are read rather than counted. Must not block.
    fn before_scrape(&self);
}

/// Answers on `listener` until `stop`, then up to a second longer for answers under way.
pub async fn serve(
    listener: TcpListener,
    recorder: Arc<Recorder>,
    ready: Arc<dyn Readiness>,
    stop: impl Future<Output = ()> + Send + 'static,
) {
    serve_within(
        Limits { connections: MAX_CONNECTIONS, life: CONNECTION_LIFE },
        listener,
        recorder,
        ready,
        stop,
    )
    .await;
}

#[derive(Clone, Copy)]
struct Limits {
    connections: usize,
    life: Duration,
}

async fn serve_within(
    limits: Limits,
    listener: TcpListener,
    recorder: Arc<Recorder>,
    ready: Arc<dyn Readiness>,
    stop: impl Future<Output = ()> + Send + 'static,
) {
    serve_router_within(limits, listener, router(Answers { recorder, ready }), stop).await;
}

async fn serve_router_within<L>(
    limits: Limits,
    listener: L,
    router: Router,
    stop: impl Future<Output = ()> + Send + 'static,
) where
    L: axum::serve::Listener<Addr: fmt::Debug>,
    L::Io: Unpin,
{
    let permits = Arc::new(Semaphore::new(limits.connections));
    let bounded = Bounded { listener, permits, life: limits.life };
    let (stopped, told) = oneshot::channel();
    let serving = axum::serve(bounded, router).with_graceful_shutdown(async move {
        stop.await;
        // The receiver is gone only when `serving` ended first, and then nobody waits.
        let _ = stopped.send(());
    });
    let grace_over = async {
        if told.await.is_ok() {
            sleep(STOP_GRACE).await;
        }
    };
    tokio::select! {
        _ = serving => {}
        () = grace_over => {}
    }
}

#[derive(Clone)]
struct Answers {
    recorder: Arc<Recorder>,
    ready: Arc<dyn Readiness>,
}

fn router(answers: Answers) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .method_not_allowed_fallback(method_not_allowed)
        .fallback(not_found)
        .with_state(answers)
}

async fn metrics(State(answers): State<Answers>) -> Response {
    answers.ready.before_scrape();
    // The type Prometheus knows the text format by.
    plain(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", answers.recorder.render())
}

async fn healthz() -> Response {
    text(StatusCode::OK, "ok\n".to_owned())
}

async fn readyz(State(answers): State<Answers>) -> Response {
    let mut lines = answers.ready.not_ready();
    if lines.is_empty() {
        return text(StatusCode::OK, "ready\n".to_owned());
    }
    lines.push(String::new());
    text(StatusCode::SERVICE_UNAVAILABLE, lines.join("\n"))
}

async fn not_found() -> Response {
    text(StatusCode::NOT_FOUND, "not found: there are /metrics, /healthz and /readyz\n".to_owned())
}

async fn method_not_allowed() -> Response {
    text(StatusCode::METHOD_NOT_ALLOWED, "method not allowed: use GET\n".to_owned())
}

fn text(status: StatusCode, body: String) -> Response {
    plain(status, "text/plain; charset=utf-8", body)
}

fn plain(status: StatusCode, content_type: &'static str, body: String) -> Response {
    let headers = [
        (header::CONTENT_TYPE, content_type),
        (header::CACHE_CONTROL, "no-store"),
        (header::CONNECTION, "close"),
    ];
    (status, headers, body).into_response()
}

/// A listener that accepts only when it has room.
struct Bounded<L> {
    listener: L,
    permits: Arc<Semaphore>,
    life: Duration,
}

impl<L: axum::serve::Listener> axum::serve::Listener for Bounded<L>
where
    L::Io: Unpin,
{
    type Io = Mortal<L::Io>;
    type Addr = L::Addr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        let room = Arc::clone(&self.permits).acquire_owned().await.expect("the semaphore is never closed");
        // axum's own accept waits a moment and tries again when descriptors run out.
        let (stream, peer) = self.listener.accept().await;
        (Mortal { stream, end: Box::pin(sleep(self.life)), _room: room }, peer)
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}

/// A connection that fails every read and write once its time is over.
struct Mortal<S> {
    stream: S,
    end: Pin<Box<Sleep>>,
    _room: OwnedSemaphorePermit,
}

impl<S> Mortal<S> {
    /// Also asks to be woken at the end, which is what ends a wait for a silent peer.
    fn alive(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.end.as_mut().poll(cx) {
            Poll::Ready(()) => Err(io::ErrorKind::TimedOut.into()),
            Poll::Pending => Ok(()),
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Mortal<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.alive(cx)?;
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Mortal<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.alive(cx)?;
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.alive(cx)?;
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::{
        net::SocketAddr,
        sync::atomic::{AtomicUsize, Ordering},
    };

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
        task::JoinHandle,
        time::timeout,
    };

    use super::*;
    use crate::metrics::{self, EndpointMetrics};

    #[derive(Default)]
    struct Fake {
        reasons: Vec<String>,
        scrapes: AtomicUsize,
    }

    impl Readiness for Fake {
        fn not_ready(&self) -> Vec<String> {
            self.reasons.clone()
        }
        fn before_scrape(&self) {
            self.scrapes.fetch_add(1, Ordering::Relaxed);
        }
    }

    struct Running {
        address: SocketAddr,
        fake: Arc<Fake>,
        stop: oneshot::Sender<()>,
        task: JoinHandle<()>,
    }

    async fn start(limits: Limits, reasons: &[&str]) -> Running {
        let (recorder, ()) = metrics::tests::recorded(|| EndpointMetrics::new("p", "e").client_connected());
        let fake =
            Arc::new(Fake { reasons: reasons.iter().map(ToString::to_string).collect(), ..Fake::default() });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let ready: Arc<dyn Readiness> = Arc::clone(&fake) as _;
        let stopping = async { stopped.await.unwrap_or(()) };
        let task = tokio::spawn(serve_within(limits, listener, Arc::new(recorder), ready, stopping));
        Running { address, fake, stop, task }
    }

    const ROOMY: Limits = Limits { connections: 4, life: Duration::from_secs(30) };

    /// Sends one request and reads until the server closes; a hang is a failure.
    async fn ask(address: SocketAddr, request: &str) -> String {
        try_ask(address, request).await.unwrap()
    }

    async fn try_ask(address: SocketAddr, request: &str) -> io::Result<String> {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(format!("{request} HTTP/1.1\r\nHost: pinion\r\n\r\n").as_bytes()).await?;
        let mut answer = String::new();
        timeout(Duration::from_secs(20), stream.read_to_string(&mut answer)).await??;
        Ok(answer)
    }

    #[tokio::test]
    async fn answers_three_paths_and_refuses_the_rest() {
        let running = start(ROOMY, &[]).await;
        for (request, status, body) in [
            ("GET /healthz", "200 OK", "ok\n"),
            ("GET /readyz", "200 OK", "ready\n"),
            ("GET /", "404 Not Found", "not found: there are /metrics, /healthz and /readyz\n"),
            ("POST /elsewhere", "404 Not Found", "not found: there are /metrics, /healthz and /readyz\n"),
            ("POST /metrics", "405 Method Not Allowed", "method not allowed: use GET\n"),
            ("DELETE /readyz", "405 Method Not Allowed", "method not allowed: use GET\n"),
        ] {
            let answer = ask(running.address, request).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{request}: {answer}");
            assert_eq!(answer.split_once("\r\n\r\n").unwrap().1, body, "{request}");
        }
        assert_eq!(running.fake.scrapes.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn a_scrape_sets_the_gauges_first_and_is_in_prometheus_form() {
        let running = start(ROOMY, &[]).await;
        let answer = ask(running.address, "GET /metrics").await;
        assert!(answer.contains("content-type: text/plain; version=0.0.4; charset=utf-8\r\n"), "{answer}");
        assert!(answer.contains("\npinion_client_connections{proxy=\"p\",endpoint=\"e\"} 1\n"), "{answer}");
        assert_eq!(running.fake.scrapes.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn not_ready_says_why_one_line_per_proxy() {
        let running =
            start(ROOMY, &["orders: db1:5432 refuses connections", "users: no target answered yet"]).await;
        let answer = ask(running.address, "GET /readyz").await;
        assert!(answer.starts_with("HTTP/1.1 503 Service Unavailable\r\n"), "{answer}");
        let body = answer.split_once("\r\n\r\n").unwrap().1;
        assert_eq!(body, "orders: db1:5432 refuses connections\nusers: no target answered yet\n");
        assert!(ask(running.address, "GET /healthz").await.starts_with("HTTP/1.1 200 OK"));
    }

    #[tokio::test]
    async fn silent_clients_are_closed_and_make_room() {
        let running = start(Limits { connections: 1, life: Duration::from_millis(200) }, &[]).await;
        let mut silent = TcpStream::connect(running.address).await.unwrap();
        let mut half = TcpStream::connect(running.address).await.unwrap();
        half.write_all(b"GET /healthz HT").await.unwrap();
        // Served only after both of the above were cut, since there is room for one. On a busy machine it may itself
        // be cut, and asks again.
        let answered = async {
            while !try_ask(running.address, "GET /healthz").await.is_ok_and(|answer| answer.ends_with("ok\n"))
            {
            }
        };
        timeout(Duration::from_secs(60), answered).await.unwrap();
        for stream in [&mut silent, &mut half] {
            let mut rest = Vec::new();
            // An orderly close or a reset: either way it is over.
            let _ = timeout(Duration::from_secs(20), stream.read_to_end(&mut rest)).await.unwrap();
            assert_eq!(rest, b"");
        }
    }

    #[tokio::test]
    async fn stops_when_told_though_a_client_is_silent() {
        let running = start(ROOMY, &[]).await;
        let _silent = TcpStream::connect(running.address).await.unwrap();
        assert!(ask(running.address, "GET /healthz").await.ends_with("ok\n"));
        running.stop.send(()).unwrap();
        timeout(Duration::from_secs(20), running.task).await.unwrap().unwrap();
        assert!(TcpStream::connect(running.address).await.is_err());
    }
}
