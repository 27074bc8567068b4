//! `tokio-postgres` with the helpers that tests read well with.

use std::{fmt::Debug, ops::Deref, str::FromStr};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    sync::{Mutex, mpsc},
    task::JoinHandle,
};
use tokio_postgres::{AsyncMessage, Config, Connection, NoTls, SimpleQueryMessage, tls::MakeTlsConnect};

use crate::{Address, SOON};

/// Notices and notifications kept for [`Client::next_message`]; what comes beyond is dropped.
const MESSAGES: usize = 10_000;

/// One connection. Its own methods use the simple protocol; those of `tokio_postgres::Client` are reached through
/// it and use the extended one.
pub struct Client {
    inner: tokio_postgres::Client,
    messages: Mutex<mpsc::Receiver<AsyncMessage>>,
    task: JoinHandle<Result<(), tokio_postgres::Error>>,
}

impl Deref for Client {
    type Target = tokio_postgres::Client;
    fn deref(&self) -> &tokio_postgres::Client {
        &self.inner
    }
}

impl Client {
    /// Connects and logs in.
    pub async fn connect(address: &Address) -> Result<Self, tokio_postgres::Error> {
        Self::connect_with(address, |_| {}).await
    }

    /// [`Self::connect`] with more settings.
    pub async fn connect_with(
        address: &Address,
        adjust: impl FnOnce(&mut Config),
    ) -> Result<Self, tokio_postgres::Error> {
        let mut config = Config::new();
        config
            .host("localhost")
            .hostaddr([127, 0, 0, 1].into())
            .port(address.port)
            .user(&address.user)
            .password(&address.password)
            .dbname(&address.database)
            .connect_timeout(SOON);
        adjust(&mut config);
        match &address.ca {
            Some(ca) => {
                config.ssl_mode(tokio_postgres::config::SslMode::Require);
                Self::open(&config, ca.pg_tls()).await
            }
            None => Self::open(&config, NoTls).await,
        }
    }

    /// Connects as `config` says.
    pub async fn open<T>(config: &Config, tls: T) -> Result<Self, tokio_postgres::Error>
    where
        T: MakeTlsConnect<tokio_postgres::Socket>,
        T::Stream: Send + 'static,
    {
        let (inner, connection) = config.connect(tls).await?;
        Ok(Self::start(inner, connection))
    }

    /// Logs in over a socket that is already open.
    pub async fn over(socket: TcpStream, config: &Config) -> Result<Self, tokio_postgres::Error> {
        let (inner, connection) = config.connect_raw(socket, NoTls).await?;
        Ok(Self::start(inner, connection))
    }

    fn start<S, T>(inner: tokio_postgres::Client, mut connection: Connection<S, T>) -> Self
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (sender, messages) = mpsc::channel(MESSAGES);
        let task = tokio::spawn(async move {
            while let Some(message) = std::future::poll_fn(|cx| connection.poll_message(cx)).await {
                // A test that looks at none of them is not held up by many.
                sender.try_send(message?).ok();
            }
            Ok(())
        });
        Self { inner, messages: Mutex::new(messages), task }
    }

    /// Runs `sql`, which may be several statements; panics on an error.
    pub async fn execute(&self, sql: &str) {
        self.try_execute(sql).await.unwrap_or_else(|e| panic!("{sql}: {e:?}"));
    }

    /// Runs `sql`, which may be several statements.
    pub async fn try_execute(&self, sql: &str) -> Result<(), tokio_postgres::Error> {
        self.inner.batch_execute(sql).await
    }

    /// First column of the only row, read from its text form.
    pub async fn scalar<T: FromStr<Err: Debug>>(&self, sql: &str) -> T {
        let rows = self.rows(sql).await;
        let [row] = rows.as_slice() else { panic!("{sql}: {} rows", rows.len()) };
        let text = row.first().cloned().flatten().unwrap_or_else(|| panic!("{sql}: null"));
        text.parse().unwrap_or_else(|e| panic!("{sql}: {text:?}: {e:?}"))
    }

    /// All rows of all result sets, in text form.
    pub async fn rows(&self, sql: &str) -> Vec<Vec<Option<String>>> {
        let messages = self.inner.simple_query(sql).await.unwrap_or_else(|e| panic!("{sql}: {e:?}"));
        let rows = messages.into_iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row),
            _ => None,
        });
        rows.map(|row| (0..row.len()).map(|i| row.get(i).map(str::to_owned)).collect()).collect()
    }

    /// The SQLSTATE with which `sql` fails; panics if it does not.
    pub async fn sqlstate(&self, sql: &str) -> String {
        match self.try_execute(sql).await {
            Ok(()) => panic!("{sql}: no error"),
            Err(e) => sqlstate(&e),
        }
    }

    /// The next notification or notice.
    pub async fn next_message(&self) -> Option<AsyncMessage> {
        tokio::time::timeout(SOON, async { self.messages.lock().await.recv().await })
            .await
            .expect("a notification or notice soon")
    }

    /// Says goodbye and waits until the connection is closed.
    pub async fn close(self) {
        let Self { inner, task, .. } = self;
        drop(inner);
        task.await.unwrap().ok();
    }

    /// Waits until the other side closes, and says how it ended.
    pub async fn closed(self) -> Result<(), tokio_postgres::Error> {
        let Self { inner, task, .. } = self;
        let end = tokio::time::timeout(SOON, task).await.expect("the connection ends soon").unwrap();
        drop(inner);
        end
    }

    /// Cuts the TCP connection without a goodbye.
    pub fn vanish(self) {
        self.task.abort();
    }
}

impl Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").finish_non_exhaustive()
    }
}

/// The SQLSTATE of an error; panics when it came from elsewhere than the server.
pub(crate) fn sqlstate(error: &tokio_postgres::Error) -> String {
    error.code().unwrap_or_else(|| panic!("not a database error: {error:?}")).code().to_owned()
}
