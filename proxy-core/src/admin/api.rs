//! The admin API: JSON over HTTP/1, on a Unix socket or, with a token, on loopback.
//!
//! Who may open the socket may do everything here, so it belongs to the user that Pinion runs as. Over TCP each
//! request must bring the token. To add a route, add a method to [`Control`] and a line to `router`.

use std::{
    fmt, fs, io,
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
};

use axum::{
    Router,
    extract::{self, Request, State},
    http::{HeaderValue, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use socket2::{Domain, SockAddr, Socket, Type};
use subtle::ConstantTimeEq as _;
use tokio::net::{TcpListener, UnixListener};
use tracing::warn;

use super::{CONNECTION_LIFE, Limits, MAX_CONNECTIONS, serve_router_within};
use crate::config::{AdminConfig, AdminListen};

/// Connections that the kernel keeps for us until they are accepted.
const BACKLOG: i32 = 128;

/// What the API asks of the rest of Pinion. Nothing here may block.
pub trait Control: Send + Sync {
    /// Every target of every proxy, see [`crate::target::Target::describe`].
    fn targets(&self) -> Vec<Value>;
    /// Every client of every proxy, see [`crate::proxy::SessionHandle::describe`].
    fn sessions(&self) -> Vec<Value>;
    /// Every plugin of every proxy, see [`crate::plugin::PluginStatus`].
    fn plugins(&self) -> Vec<Value>;
    /// Loads the plugins of that name anew; the answer says what came of it, by proxy.
    fn reload_plugin(
        &self,
        name: String,
    ) -> Pin<Box<dyn Future<Output = Result<Value, ApiError>> + Send + '_>>;
}

/// Why a request was not carried out. The answer is `{"error": …}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError {
    /// HTTP status.
    pub status: StatusCode,
    /// For people.
    pub message: String,
}

impl ApiError {
    /// An error with that status.
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        answer(self.status, &json!({ "error": self.message }))
    }
}

/// The API's socket, opened and not yet served.
#[derive(Debug)]
pub struct Listener {
    socket: Bound,
    token: Option<Token>,
}

#[derive(Debug)]
enum Bound {
    Tcp(TcpListener),
    Unix(UnixListener, SocketFile),
}

impl Listener {
    /// Opens what the configuration says. A socket file that nobody listens on any more is replaced.
    pub fn open(config: &AdminConfig) -> io::Result<Self> {
        let token = match &config.token {
            Some(source) => Some(Token::new(&source.read().map_err(io::Error::other)?)),
            None => None,
        };
        let socket = match &config.listen {
            AdminListen::Tcp(address) => Bound::Tcp(crate::listener::listen(*address)?),
            AdminListen::Unix(path) => {
                let (listener, file) = listen_unix(path)?;
                Bound::Unix(listener, file)
            }
        };
        Ok(Self { socket, token })
    }

    /// Where it listens.
    pub fn address(&self) -> String {
        match &self.socket {
            Bound::Tcp(listener) => {
                listener.local_addr().map_or_else(|error| error.to_string(), |address| address.to_string())
            }
            Bound::Unix(_, file) => format!("unix:{}", file.path.display()),
        }
    }

    /// Answers until `stop`, then up to a second longer for answers under way; a socket file is removed then.
    pub async fn serve(self, control: Arc<dyn Control>, stop: impl Future<Output = ()> + Send + 'static) {
        let limits = Limits { connections: MAX_CONNECTIONS, life: CONNECTION_LIFE };
        let router = router(control, self.token);
        match self.socket {
            Bound::Tcp(listener) => serve_router_within(limits, listener, router, stop).await,
            Bound::Unix(listener, _file) => serve_router_within(limits, listener, router, stop).await,
        }
    }
}

fn router(control: Arc<dyn Control>, token: Option<Token>) -> Router {
    Router::new()
        .route("/targets", get(targets))
        .route("/sessions", get(sessions))
        .route("/plugins", get(plugins))
        .route("/plugins/{name}/reload", post(reload_plugin))
        .method_not_allowed_fallback(method_not_allowed)
        .fallback(not_found)
        .with_state(control)
        .layer(middleware::from_fn_with_state(token.map(Arc::new), authorize))
}

async fn targets(State(control): State<Arc<dyn Control>>) -> Response {
    answer(StatusCode::OK, &json!({ "targets": control.targets() }))
}

async fn sessions(State(control): State<Arc<dyn Control>>) -> Response {
    answer(StatusCode::OK, &json!({ "sessions": control.sessions() }))
}

async fn plugins(State(control): State<Arc<dyn Control>>) -> Response {
    answer(StatusCode::OK, &json!({ "plugins": control.plugins() }))
}

async fn reload_plugin(
    State(control): State<Arc<dyn Control>>,
    extract::Path(name): extract::Path<String>,
) -> Result<Response, ApiError> {
    control.reload_plugin(name).await.map(|done| answer(StatusCode::OK, &done))
}

async fn not_found() -> ApiError {
    ApiError::new(StatusCode::NOT_FOUND, "there is no such path")
}

async fn method_not_allowed() -> ApiError {
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "this path does not take that method")
}

async fn authorize(State(token): State<Option<Arc<Token>>>, request: Request, next: Next) -> Response {
    let given = request.headers().get(header::AUTHORIZATION).map(HeaderValue::as_bytes).unwrap_or_default();
    if token.is_none_or(|token| token.is(given)) {
        return next.run(request).await;
    }
    let refused = ApiError::new(StatusCode::UNAUTHORIZED, "the token is missing or wrong");
    let mut response = refused.into_response();
    response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    response
}

/// A JSON answer.
fn answer(status: StatusCode, body: &Value) -> Response {
    let headers = [
        (header::CONTENT_TYPE, "application/json"),
        (header::CACHE_CONTROL, "no-store"),
        (header::CONNECTION, "close"),
    ];
    (status, headers, format!("{body}\n")).into_response()
}

/// The hash of the token that callers must bring: comparing hashes tells nothing of the token's length either.
struct Token([u8; 32]);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token")
    }
}

impl Token {
    fn new(token: &str) -> Self {
        Self(Sha256::digest(token.as_bytes()).into())
    }

    /// Whether an `Authorization` header's value is this token. RFC 6750, section 2.1; the scheme's case does not
    /// count (RFC 9110, section 11.1).
    fn is(&self, header: &[u8]) -> bool {
        let Some((scheme, token)) = header.split_at_checked(b"Bearer ".len()) else { return false };
        let given: [u8; 32] = Sha256::digest(token.trim_ascii()).into();
        scheme.eq_ignore_ascii_case(b"Bearer ") && bool::from(given.ct_eq(&self.0))
    }
}

/// A socket in the file system, removed when dropped unless another has taken its place.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path)
            .is_ok_and(|found| (found.dev(), found.ino()) == (self.device, self.inode))
            && let Err(error) = fs::remove_file(&self.path)
        {
            warn!(path = %self.path.display(), %error, "cannot remove the admin socket");
        }
    }
}

fn listen_unix(path: &Path) -> io::Result<(UnixListener, SocketFile)> {
    let address = SockAddr::unix(path)?;
    let new_socket = || Socket::new(Domain::UNIX, Type::STREAM, None);
    if let Ok(found) = fs::symlink_metadata(path) {
        if !found.file_type().is_socket() {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "there is a file that is no socket"));
        }
        let probe = new_socket()?;
        // A listener with a full queue must not hold up the start.
        probe.set_nonblocking(true)?;
        match probe.connect(&address) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
            Ok(()) => return Err(io::ErrorKind::AddrInUse.into()),
        }
    }
    let socket = new_socket()?;
    socket.bind(&address)?;
    let found = fs::symlink_metadata(path)?;
    let file = SocketFile { path: path.to_owned(), device: found.dev(), inode: found.ino() };
    // Nobody can connect before it listens, whatever mode the file was made with.
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok((UnixListener::from_std(std::os::unix::net::UnixListener::from(socket))?, file))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{TcpStream, UnixStream},
        sync::oneshot,
        task::JoinHandle,
        time::{Duration, timeout},
    };

    use super::*;
    use crate::config::TokenSource;

    const TOKEN: &str = "0123456789abcdef";

    struct Fake;

    impl Control for Fake {
        fn targets(&self) -> Vec<Value> {
            vec![json!({ "name": "db1:5432" })]
        }

        fn sessions(&self) -> Vec<Value> {
            vec![json!({ "client": 7 })]
        }

        fn plugins(&self) -> Vec<Value> {
            vec![json!({ "name": "audit" })]
        }

        fn reload_plugin(
            &self,
            name: String,
        ) -> Pin<Box<dyn Future<Output = Result<Value, ApiError>> + Send + '_>> {
            Box::pin(async move {
                match name.as_str() {
                    "audit" => Ok(json!({ "reloaded": [{ "proxy": "p", "outcome": "applied" }] })),
                    _ => Err(ApiError::new(StatusCode::NOT_FOUND, "there is no plugin of that name")),
                }
            })
        }
    }

    fn start(listener: Listener) -> (oneshot::Sender<()>, JoinHandle<()>) {
        let (stop, stopped) = oneshot::channel();
        let serving = listener.serve(Arc::new(Fake), async { stopped.await.unwrap_or(()) });
        (stop, tokio::spawn(serving))
    }

    async fn ask(mut socket: impl AsyncReadExt + AsyncWriteExt + Unpin, request: &str) -> String {
        socket.write_all(format!("{request}\r\nHost: pinion\r\n\r\n").as_bytes()).await.unwrap();
        let mut answer = String::new();
        timeout(Duration::from_secs(20), socket.read_to_string(&mut answer)).await.unwrap().unwrap();
        answer
    }

    #[tokio::test]
    async fn a_unix_socket_is_private_answers_in_json_and_goes_with_its_listener() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin.sock");
        let config = AdminConfig { listen: AdminListen::Unix(path.clone()), token: None };
        // One that a process left behind.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let (stop, task) = start(Listener::open(&config).unwrap());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(Listener::open(&config).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        for (request, status, body) in [
            ("GET /targets HTTP/1.1", "200 OK", "{\"targets\":[{\"name\":\"db1:5432\"}]}\n"),
            ("GET /metrics HTTP/1.1", "404 Not Found", "{\"error\":\"there is no such path\"}\n"),
            (
                "POST /targets HTTP/1.1",
                "405 Method Not Allowed",
                "{\"error\":\"this path does not take that method\"}\n",
            ),
        ] {
            let answer = ask(UnixStream::connect(&path).await.unwrap(), request).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{answer}");
            assert!(answer.to_ascii_lowercase().contains("content-type: application/json"), "{answer}");
            assert_eq!(answer.split_once("\r\n\r\n").unwrap().1, body);
        }
        stop.send(()).unwrap();
        timeout(Duration::from_secs(20), task).await.unwrap().unwrap();
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_file_that_is_no_socket_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("precious");
        fs::write(&path, "text").unwrap();
        let config = AdminConfig { listen: AdminListen::Unix(path.clone()), token: None };
        assert!(Listener::open(&config).is_err());
        assert_eq!(fs::read(&path).unwrap(), b"text");
    }

    #[tokio::test]
    async fn a_tcp_caller_must_bring_the_token() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("token");
        fs::write(&file, format!("{TOKEN}\n")).unwrap();
        let config = AdminConfig {
            listen: AdminListen::Tcp("127.0.0.1:0".parse().unwrap()),
            token: Some(TokenSource::File(file)),
        };
        let listener = Listener::open(&config).unwrap();
        let Bound::Tcp(socket) = &listener.socket else { panic!("a TCP listener") };
        let address = socket.local_addr().unwrap();
        let (_stop, _task) = start(listener);
        for (headers, status) in [
            ("".to_owned(), "401 Unauthorized"),
            (format!("\r\nAuthorization: {TOKEN}"), "401 Unauthorized"),
            (format!("\r\nAuthorization: Basic {TOKEN}"), "401 Unauthorized"),
            (format!("\r\nAuthorization: Bearer {}", &TOKEN[1..]), "401 Unauthorized"),
            (format!("\r\nAuthorization: Bearer {TOKEN}0"), "401 Unauthorized"),
            (format!("\r\nAuthorization: Bearer {TOKEN}"), "200 OK"),
            (format!("\r\nAuthorization: bearer {TOKEN}"), "200 OK"),
        ] {
            let socket = TcpStream::connect(address).await.unwrap();
            let answer = ask(socket, &format!("GET /targets HTTP/1.1{headers}")).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{headers}: {answer}");
        }
        // Without the token one does not learn which paths there are.
        let answer = ask(TcpStream::connect(address).await.unwrap(), "GET /nothing HTTP/1.1").await;
        assert!(answer.starts_with("HTTP/1.1 401 "), "{answer}");
    }
}
