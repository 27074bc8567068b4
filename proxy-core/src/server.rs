//! One server connection: opening it, exchanging statements of our own, resetting, closing.

use std::{
    fmt,
    future::poll_fn,
    io,
    net::SocketAddr,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinHandle,
    time::timeout,
};
use tracing::{debug, warn};

use crate::{
    buffer::Buffer,
    config::TlsMode,
    metrics::ResetCause,
    pool::{Pool, PoolId, Pooled, Slot},
    protocol::{
        Absorbed, Connect, ConnectError, ConnectStep, Errand, Packing, PoolKey, Protocol, ProtocolError,
        Purpose, ServerState, Step, Survey,
    },
    secrets::{Secret, SecretHandle},
    session::cancel::Cancellable,
    state::{Settings, Worn},
    stream::{Stream, tune},
    target::Target,
    tls::{TargetTls, end_point_of},
};

/// From the first packet to ready for statements.
const LOGIN_TIMEOUT: Duration = Duration::from_secs(10);
/// For one exchange of our own; a server that needs longer is not worth waiting for.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(10);
/// After that no more is asked of tables that are read: their client may want to go on.
const PACKING_LASTS: Duration = Duration::from_secs(2);
/// For making them again.
const UNPACKING_LASTS: Duration = Duration::from_secs(30);
/// From our goodbye to the server's close, after which the connection is given up for lost.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(30);
/// For so long it is believed what code of the database may change; functions are made and changed meanwhile.
const SURVEY_LASTS: Duration = Duration::from_secs(60);
/// A connection idle for longer is asked whether it still lives before it is lent.
pub const PROBE_AFTER: Duration = Duration::from_secs(30);

/// Why a connection of ours does not serve.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The network, or the server hung up.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The server broke the protocol.
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
    /// It took too long.
    #[error("no answer in time")]
    Timeout,
    /// The server let us not in.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// A statement of our own failed.
    #[error("{what} failed: {error}")]
    Statement {
        /// Which.
        what: &'static str,
        /// The server's words.
        error: String,
    },
    /// No usable secret for this user.
    #[error("no credentials: {0}")]
    Secret(String),
}

/// One server connection.
pub struct ServerConnection<P: Protocol> {
    /// The socket.
    pub stream: Stream,
    /// What the protocol remembers of it.
    pub state: P::Server,
    /// Where cancels for it go.
    pub cancellable: Arc<Cancellable>,
    /// Another client must not get it before a reset.
    pub tainted: bool,
    /// Settings of the client it served last.
    pub worn: Worn,
    /// Of the settings that it has ever been given, those that nothing takes back.
    lasting: Vec<Box<str>>,
    target: Arc<Target<P>>,
    slot: Option<Slot<Self>>,
    input: Buffer,
    expires: Instant,
    last_used: Instant,
    last_client: u64,
    users: Users,
    generation: u64,
    /// What code of the database may change, and since when that is known.
    survey: Option<(Instant, Survey)>,
}

/// Who has used a connection since it was new, reset, or made to forget its sequences.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Users {
    Nobody,
    Only(u64),
    Several,
}

impl<P: Protocol> fmt::Debug for ServerConnection<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerConnection").field("state", &self.state).finish_non_exhaustive()
    }
}

impl<P: Protocol> ServerConnection<P> {
    /// Opens a connection and logs in. With a secret that the server refuses, once more with a fresh one.
    /// `slot` is `None` for the monitor, which is not part of the pool.
    pub async fn open(
        target: &Arc<Target<P>>,
        slot: Option<Slot<Self>>,
        key: &PoolKey,
        secrets: &SecretHandle,
    ) -> Result<Box<Self>, ServerError> {
        let generation = target.pool.generation();
        let secret = secrets.current().map_err(|e| ServerError::Secret(e.to_string()))?;
        let first = Self::log_in(target, key, &secret).await;
        let (logged_in, secret) = match first {
            Err(ServerError::Connect(ConnectError::Refused { bad_secret: true, .. })) => {
                let fresh = secrets.reread().map_err(|e| ServerError::Secret(e.to_string()))?;
                let again = !Arc::ptr_eq(&fresh, &secret);
                (if again { Self::log_in(target, key, &fresh).await } else { first }, fresh)
            }
            first => (first, secret),
        };
        let (stream, state, input) = match logged_in {
            Ok(logged_in) => logged_in,
            Err(error) => {
                target.metrics.connect_failed();
                return Err(error);
            }
        };
        target.metrics.connected(stream.is_tls());
        let now = Instant::now();
        let settings = target.settings();
        let peer = stream.peer();
        let login = (key.clone(), secret);
        let cancellable = Arc::new(Cancellable::new(state.key().clone(), login, target.index, peer));
        let mut connection = Box::new(Self {
            stream,
            state,
            cancellable,
            tainted: false,
            worn: Worn::Nothing,
            lasting: Vec::new(),
            target: target.clone(),
            slot,
            input,
            expires: now + jittered(settings.max_server_lifetime),
            last_used: now,
            last_client: 0,
            users: Users::Nobody,
            generation,
            survey: None,
        });
        debug!(target = %target.name, user = %key.user, id = connection.state.key().id, "server connection opened");
        if connection.slot.is_some()
            && let Err(error) = connection.run_init_query().await
        {
            target.metrics.connect_failed();
            connection.retire();
            return Err(error);
        }
        Ok(connection)
    }

    async fn log_in(
        target: &Arc<Target<P>>,
        key: &PoolKey,
        secret: &Arc<Secret>,
    ) -> Result<(Stream, P::Server, Buffer), ServerError> {
        timeout(LOGIN_TIMEOUT, async {
            target.metrics.connecting(target.tls().mode() != TlsMode::Disabled);
            let tcp = TcpStream::connect((target.host.as_str(), target.port)).await?;
            tune(&tcp)?;
            let (stream, login, input) = connect(target, tcp, key, secret.clone(), Purpose::Session).await?;
            target.said(login.hello());
            Ok((stream, login.finish(&target.shared), input))
        })
        .await
        .unwrap_or(Err(ServerError::Timeout))
    }

    /// Sends `request` and reads the answer to its end: first row, and the error if there was one.
    pub async fn exchange(&mut self, request: &[u8]) -> Result<(Vec<String>, Option<String>), ServerError> {
        self.exchange_several(request, 1).await
    }

    /// The same on a connection that hears notifications: more of them may be on their way.
    pub async fn exchange_while_hearing(
        &mut self,
        request: &[u8],
    ) -> Result<(Vec<String>, Option<String>), ServerError> {
        timeout(EXCHANGE_TIMEOUT, self.send_and_absorb(request, 1)).await.unwrap_or(Err(ServerError::Timeout))
    }

    /// Waits until the server says something that nobody asked for; [`ServerState::take_heard`] gives it.
    pub async fn hear(&mut self) -> Result<(), ServerError> {
        fill(&mut self.input, &mut self.stream).await?;
        Ok(self.state.absorb_idle(&mut self.input)?)
    }

    /// Sends several requests at once and reads their answers to the end: the first row of the first, and the first error
    /// there was.
    async fn exchange_several(
        &mut self,
        requests: &[u8],
        count: usize,
    ) -> Result<(Vec<String>, Option<String>), ServerError> {
        // Whomever that was for, it is not who asks now.
        drop(self.state.take_heard());
        timeout(EXCHANGE_TIMEOUT, async {
            let answer = self.send_and_absorb(requests, count).await?;
            // A session reads the socket, not this buffer: nothing may stay behind here.
            if !self.input.is_empty() {
                return Err(ProtocolError::Malformed("trailing").into());
            }
            Ok(answer)
        })
        .await
        .unwrap_or(Err(ServerError::Timeout))
    }

    async fn send_and_absorb(
        &mut self,
        requests: &[u8],
        count: usize,
    ) -> Result<(Vec<String>, Option<String>), ServerError> {
        self.stream.write_all(requests).await?;
        self.stream.flush().await?;
        let (mut first_row, mut first_error) = (None, None);
        for _ in 0..count {
            let (row, error) = loop {
                match self.state.absorb(&mut self.input)? {
                    Absorbed::Done { row, error } => break (row, error),
                    Absorbed::NeedBytes => fill(&mut self.input, &mut self.stream).await?,
                }
            };
            first_row.get_or_insert(row);
            first_error = first_error.or(error);
        }
        self.state.absorb_idle(&mut self.input)?;
        Ok((first_row.unwrap_or_default(), first_error))
    }

    /// Makes sure that the server still answers.
    pub async fn probe(&mut self) -> Result<(), ServerError> {
        let mut request = Vec::new();
        P::write_ping(&mut request);
        self.exchange(&request).await.map(drop)
    }

    /// What code of the database's own may change of a session.
    pub async fn survey(&mut self, now: Instant) -> Result<Survey, ServerError> {
        if let Some(survey) = self.known_survey(now) {
            return Ok(survey.clone());
        }
        let mut request = Vec::new();
        let mut found = None;
        if P::write_survey(&mut self.state, &mut request)
            && let (row, None) = self.exchange(&request).await?
        {
            found = P::read_survey(&row);
        }
        let survey = found.unwrap_or(Survey { names: Vec::new(), others: true, pins: true, triggers: true });
        self.survey = Some((now, survey.clone()));
        Ok(survey)
    }

    /// What is known of that without asking.
    pub fn known_survey(&self, now: Instant) -> Option<&Survey> {
        self.survey.as_ref().filter(|(since, _)| now < *since + SURVEY_LASTS).map(|(_, survey)| survey)
    }

    /// Puts the session back to what it was when the connection was new.
    pub async fn reset(&mut self, cause: ResetCause) -> Result<(), ServerError> {
        if !(cause == ResetCause::Tainted && self.clean_up().await?) {
            let mut request = Vec::new();
            P::write_reset(&mut self.state, &mut request);
            if let (_, Some(error)) = self.exchange(&request).await? {
                return Err(ServerError::Statement { what: "reset", error });
            }
            if self.state.must_retire() {
                let error = "it leaves something behind".to_owned();
                return Err(ServerError::Statement { what: "reset", error });
            }
        }
        self.run_init_query().await?;
        self.target.metrics.reset(cause);
        self.tainted = false;
        self.worn = Worn::Nothing;
        self.last_client = 0;
        self.users = Users::Nobody;
        Ok(())
    }

    /// Takes away what is not seen at less cost than a reset. False when that did not do.
    async fn clean_up(&mut self) -> Result<bool, ServerError> {
        let mut request = Vec::new();
        if !P::write_cleanup(&mut self.state, &mut request) {
            return Ok(false);
        }
        let (row, error) = self.exchange(&request).await?;
        Ok(error.is_none() && P::is_clean(&row))
    }

    /// Makes a connection wear `settings`: by the difference to what it wears, or else after a reset.
    pub async fn dress(&mut self, settings: Option<&Arc<Settings>>) -> Result<(), ServerError> {
        let difference = match &self.worn {
            worn if worn.fits(settings) => return Ok(()),
            Worn::Nothing => Some(settings.iter().flat_map(|s| s.statements()).map(str::to_owned).collect()),
            Worn::Settings(worn) => P::difference(worn, settings.map(|settings| &**settings))
                .filter(|_| self.target.settings().init_query.is_empty()),
            Worn::Uncertain => None,
        };
        let was_bare = matches!(self.worn, Worn::Nothing);
        if let Some(statements) = difference {
            match self.wear(settings, &statements).await {
                // Rights or order may be in the way, which they are not on the way from nothing.
                Err(ServerError::Statement { .. }) if !was_bare => {}
                outcome => return outcome,
            }
        }
        self.reset(ResetCause::Tainted).await?;
        let all: Vec<_> = settings.iter().flat_map(|s| s.statements()).map(str::to_owned).collect();
        self.wear(settings, &all).await
    }

    /// Runs statements that make it wear `settings`.
    async fn wear(
        &mut self,
        settings: Option<&Arc<Settings>>,
        statements: &[String],
    ) -> Result<(), ServerError> {
        // Uncertain until all of it is done.
        self.worn = Worn::Uncertain;
        settings.iter().flat_map(|settings| settings.names()).for_each(|name| self.keep_lasting(name));
        let mut requests = Vec::new();
        for statement in statements {
            P::write_query(&mut self.state, statement, &mut requests);
        }
        if let (_, Some(error)) = self.exchange_several(&requests, statements.len()).await? {
            return Err(ServerError::Statement { what: "setting session state", error });
        }
        self.worn = Worn::from(settings.cloned());
        self.target.metrics.synced();
        Ok(())
    }

    /// The setting `name` has been made, or half made.
    pub fn keep_lasting(&mut self, name: &str) {
        if P::is_lasting(name) && !self.lasting.iter().any(|known| **known == *name) {
            self.lasting.push(name.into());
        }
    }

    /// True when nothing is here to stay that a client with `settings` should not find.
    pub fn suits(&self, settings: Option<&Arc<Settings>>) -> bool {
        self.lasting.iter().all(|name| settings.is_some_and(|settings| settings.get(name).is_some()))
    }

    /// Reads what is to be made again elsewhere; `None` where it cannot be, or takes too long, and the session is as it was
    /// but for what its last statement had left. After an error nobody knows how it is.
    pub async fn pack(&mut self, packing: &mut dyn Packing) -> Result<Option<Vec<Errand>>, ServerError> {
        let began = Instant::now();
        let mut answer = None;
        loop {
            let question = match packing.next(answer.as_deref(), began.elapsed() < PACKING_LASTS) {
                Step::Ask(question) => question,
                Step::Done(errands) => return Ok(Some(errands)),
                Step::Unfit => return Ok(None),
                Step::Lost => {
                    let error = "a setting cannot be taken back".to_owned();
                    return Err(ServerError::Statement { what: "reading tables", error });
                }
            };
            let (row, error) = self.ask(&question).await?;
            answer = error.is_none().then_some(row);
        }
    }

    /// Makes here what was packed elsewhere. After an error some of it is here.
    pub async fn unpack(&mut self, errands: &[Errand]) -> Result<(), ServerError> {
        timeout(UNPACKING_LASTS, self.run_errands(errands)).await.unwrap_or(Err(ServerError::Timeout))
    }

    async fn run_errands(&mut self, errands: &[Errand]) -> Result<(), ServerError> {
        let mut remembered = String::new();
        for errand in errands {
            let statement = match errand {
                Errand::Run(statement) | Errand::Expect(statement, _) | Errand::Remember(statement) => {
                    statement
                }
                Errand::Recall => &std::mem::take(&mut remembered),
            };
            let (mut row, error) = self.ask(statement).await?;
            let error = match errand {
                _ if error.is_some() => error,
                Errand::Expect(_, expected) if row != *expected => {
                    Some("it has come out otherwise".to_owned())
                }
                Errand::Remember(_) => {
                    remembered = if row.is_empty() { String::new() } else { row.swap_remove(0) };
                    None
                }
                _ => None,
            };
            if let Some(error) = error {
                return Err(ServerError::Statement { what: "making tables again", error });
            }
        }
        Ok(())
    }

    async fn ask(&mut self, statement: &str) -> Result<(Vec<String>, Option<String>), ServerError> {
        let mut request = Vec::new();
        P::write_query(&mut self.state, statement, &mut request);
        self.exchange(&request).await
    }

    async fn run_init_query(&mut self) -> Result<(), ServerError> {
        let settings = self.target.settings();
        if settings.init_query.is_empty() {
            return Ok(());
        }
        match self.ask(&settings.init_query).await? {
            (_, None) => Ok(()),
            (_, Some(error)) => Err(ServerError::Statement { what: "init_query", error }),
        }
    }

    /// True when another client than `client` has used it last.
    pub fn is_foreign_to(&self, client: u64) -> bool {
        self.last_client != 0 && self.last_client != client
    }

    /// True when its `currval` and `lastval` may be another client's.
    pub fn has_foreign_sequences(&self, client: u64) -> bool {
        self.users != Users::Nobody && self.users != Users::Only(client)
    }

    /// The server has forgotten what sequences returned.
    pub fn forgot_sequences(&mut self) {
        self.users = Users::Nobody;
    }

    /// True when it has been idle for so long that it should be probed.
    pub fn wants_probe(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.last_used) > PROBE_AFTER
    }

    /// `client` is done with it for now.
    pub fn used_by(&mut self, client: u64, now: Instant) {
        self.last_client = client;
        self.last_used = now;
        self.users = match self.users {
            Users::Nobody => Users::Only(client),
            Users::Only(one) if one == client => Users::Only(one),
            Users::Only(_) | Users::Several => Users::Several,
        };
    }

    /// The target it leads to.
    pub fn target(&self) -> &Arc<Target<P>> {
        &self.target
    }

    /// Says goodbye and waits until the server has closed, cancelling first what it still runs for nobody.
    async fn close(mut self: Box<Self>) {
        if self.state.owes_answer() {
            self.cancellable.send::<P>(&self.target).await;
        }
        let mut goodbye = Vec::new();
        P::write_goodbye(&mut goodbye);
        let ended = timeout(CLOSE_TIMEOUT, async {
            self.stream.write_all(&goodbye).await?;
            self.stream.shutdown().await?;
            while poll_fn(|cx| self.input.poll_read_from(&mut self.stream, cx)).await? > 0 {
                self.input.consume(self.input.len());
            }
            io::Result::Ok(())
        })
        .await;
        if ended.is_err() {
            warn!(target = %self.target.name, id = self.state.key().id, "server did not close the connection in time");
        }
    }
}

impl<P: Protocol> Pooled for ServerConnection<P> {
    fn retire(mut self: Box<Self>) {
        if let Some(slot) = &mut self.slot {
            slot.set_closing();
        }
        tokio::spawn(self.close());
    }

    fn last_used(&self) -> Instant {
        self.last_used
    }

    fn last_client(&self) -> u64 {
        self.last_client
    }

    fn is_stale(&mut self, now: Instant, generation: u64) -> bool {
        if now >= self.expires || self.generation != generation {
            return true;
        }
        // The reactor already knows whether anything has come, so this costs no system call unless it has.
        let mut cx = Context::from_waker(Waker::noop());
        loop {
            match self.input.poll_read_from(&mut self.stream, &mut cx) {
                Poll::Pending => return !self.input.is_empty(),
                Poll::Ready(Ok(n)) if n > 0 => {
                    if self.state.absorb_idle(&mut self.input).is_err() {
                        return true;
                    }
                }
                Poll::Ready(_) => return true,
            }
        }
    }
}

impl<P: Protocol> Drop for ServerConnection<P> {
    fn drop(&mut self) {
        self.target.metrics.disconnected(self.stream.is_tls());
    }
}

/// Reads more, or says that the server hung up.
async fn fill(input: &mut Buffer, stream: &mut Stream) -> Result<(), ServerError> {
    match poll_fn(|cx| input.poll_read_from(stream, cx)).await? {
        0 => Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
        _ => Ok(()),
    }
}

/// Reads at most `n` bytes more, or says that the server hung up.
async fn fill_at_most(input: &mut Buffer, stream: &mut Stream, n: usize) -> Result<(), ServerError> {
    let mut limited = stream.take(n as u64);
    match poll_fn(|cx| input.poll_read_from(&mut limited, cx)).await? {
        0 => Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
        _ => Ok(()),
    }
}

/// Logs in over a connection just opened, with TLS as the target's mode says. The buffer holds what the server sent
/// after that.
async fn connect<P: Protocol>(
    target: &Target<P>,
    tcp: TcpStream,
    key: &PoolKey,
    secret: Arc<Secret>,
    purpose: Purpose,
) -> Result<(Stream, P::Connect, Buffer), ServerError> {
    let tls = target.tls();
    let mut stream = Stream::Plain(tcp);
    let mut login = P::Connect::begin(key, secret, tls.mode(), purpose);
    let mut input = Buffer::default();
    let mut out = Vec::new();
    loop {
        let step = login.advance(&mut input, &mut out)?;
        if !out.is_empty() {
            stream.write_all(&out).await?;
            stream.flush().await?;
            out.clear();
        }
        match step {
            ConnectStep::NeedBytes => fill(&mut input, &mut stream).await?,
            ConnectStep::NeedAtMost(n) => fill_at_most(&mut input, &mut stream, n).await?,
            ConnectStep::StartTls => {
                let end_point;
                (stream, end_point) = start_tls(stream, &tls).await?;
                login.tls_started(end_point);
            }
            ConnectStep::Done => return Ok((stream, login, input)),
        }
    }
}

/// TLS over a plain connection, with the channel binding where one is defined.
async fn start_tls(stream: Stream, tls: &TargetTls) -> Result<(Stream, Option<Vec<u8>>), ServerError> {
    let Stream::Plain(tcp) = stream else {
        return Err(ConnectError::Protocol("TLS is to start twice".into()).into());
    };
    let stream = tokio_rustls::TlsConnector::from(tls.config()).connect(tls.server_name(), tcp).await?;
    let end_point = stream.get_ref().1.peer_certificates().and_then(|chain| end_point_of(chain.first()?));
    Ok((Stream::ServerTls(Box::new(stream)), end_point))
}

/// Bytes of the answer to a cancel that are kept.
const MAX_CANCEL_ANSWER: usize = 4096;

/// Sends a cancel on a connection of its own and waits until the server has dealt with it.
pub async fn send_cancel<P: Protocol>(
    target: &Target<P>,
    peer: Option<SocketAddr>,
    (key, secret): &(PoolKey, Arc<Secret>),
    request: &[u8],
) -> Result<(), ServerError> {
    timeout(EXCHANGE_TIMEOUT, async {
        // The very host that the connection leads to, however the name resolves by now.
        let tcp = match peer {
            Some(peer) => TcpStream::connect(peer).await?,
            None => TcpStream::connect((target.host.as_str(), target.port)).await?,
        };
        let (mut stream, _, input) = connect(target, tcp, key, secret.clone(), Purpose::Cancel).await?;
        stream.write_all(request).await?;
        stream.flush().await?;
        let mut answer = input.filled().to_vec();
        let mut more = [0; 256];
        loop {
            let n = stream.read(&mut more).await?;
            if n == 0 {
                break;
            }
            let room = MAX_CANCEL_ANSWER.saturating_sub(answer.len());
            answer.extend(more.iter().take(n.min(room)));
        }
        match P::cancel_error(&answer) {
            None => Ok(()),
            Some(error) => Err(ServerError::Statement { what: "cancel", error }),
        }
    })
    .await
    .unwrap_or(Err(ServerError::Timeout))
}

/// Up to 10 % less than `life`, so that connections opened together do not all end together.
fn jittered(life: Duration) -> Duration {
    let mut random = [0; 2];
    // Without randomness they end together, which is no harm.
    let _ = getrandom::fill(&mut random);
    life - life.mul_f64(f64::from(u16::from_le_bytes(random)) / f64::from(u16::MAX) / 10.0)
}

/// Runs work on a connection that nobody need wait for, then gives it back, or retires it when the work fails.
pub fn give_back_after<P, F>(pool: &Arc<Pool<ServerConnection<P>>>, id: PoolId, work: F) -> JoinHandle<()>
where
    P: Protocol,
    F: Future<Output = Result<Box<ServerConnection<P>>, Box<ServerConnection<P>>>> + Send + 'static,
{
    pool.hold(id);
    let pool = pool.clone();
    tokio::spawn(async move {
        match work.await {
            Ok(connection) => pool.give_back(id, connection, Instant::now()),
            Err(connection) => connection.retire(),
        }
        pool.leave(id);
    })
}
