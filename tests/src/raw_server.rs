//! A database that misbehaves on command: a relay to a real one, which answers chosen queries itself.

use std::{
    net::Ipv4Addr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::{
    io::{self, AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::mpsc,
    task::JoinHandle,
};

use crate::{MariaDb, Server, raw_mysql::command};

/// What happens in place of the real answer.
#[derive(Debug, Clone)]
pub enum Answer {
    /// These bytes are sent; the connection stays open.
    Bytes(Vec<u8>),
    /// These bytes are sent, then the connection is closed.
    BytesThenClose(Vec<u8>),
    /// Nothing ever comes.
    Silence,
}

type Script = dyn Fn(&[u8]) -> Option<Answer> + Send + Sync;

/// Listens in front of a [`Server`] or a [`MariaDb`]. Logins, monitoring and ordinary queries are the real server's; a client message
/// for which the script has an answer never reaches it.
#[derive(Debug)]
pub struct RawServer {
    port: u16,
    connections: Arc<AtomicUsize>,
    accepting: JoinHandle<()>,
}

impl RawServer {
    /// `script` sees the body of each `Query`, and of each `Parse`, that the proxy sends.
    pub async fn in_front_of(
        server: &Server,
        script: impl Fn(&[u8]) -> Option<Answer> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, crate::free_port())).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (script, behind): (Arc<Script>, _) = (Arc::new(script), server.port());
        let connections = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&connections);
        let accepting = tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let (script, counted) = (Arc::clone(&script), Arc::clone(&counted));
                tokio::spawn(async move {
                    counted.fetch_add(1, Ordering::Relaxed);
                    // Either side going away ends the relay, and that is all there is to it.
                    relay(socket, behind, &*script).await.ok();
                    counted.fetch_sub(1, Ordering::Relaxed);
                });
            }
        });
        Self { port, connections, accepting }
    }

    /// The same in front of a MariaDB: `script` sees the body of each `COM_QUERY` and `COM_STMT_PREPARE`.
    pub async fn in_front_of_mariadb(
        server: &MariaDb,
        script: impl Fn(&[u8]) -> Option<Answer> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, crate::free_port())).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (script, behind): (Arc<Script>, _) = (Arc::new(script), server.port());
        let connections = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&connections);
        let accepting = tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let (script, counted) = (Arc::clone(&script), Arc::clone(&counted));
                tokio::spawn(async move {
                    counted.fetch_add(1, Ordering::Relaxed);
                    relay_mysql(socket, behind, &*script).await.ok();
                    counted.fetch_sub(1, Ordering::Relaxed);
                });
            }
        });
        Self { port, connections, accepting }
    }

    /// Where the proxy connects to.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Open connections, the monitor's too.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }
}

impl Drop for RawServer {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn relay(proxy: TcpStream, behind: u16, script: &Script) -> io::Result<()> {
    let (mut from_proxy, to_proxy) = proxy.into_split();
    let server = TcpStream::connect((Ipv4Addr::LOCALHOST, behind)).await?;
    let (from_server, mut to_server) = server.into_split();
    let (answers, answered) = mpsc::channel(4);

    let requests = async {
        // Untagged messages first: SSLRequest and the like (version 1234.x), then the start-up message.
        loop {
            let length = from_proxy.read_u32().await?;
            let mut body = vec![0; (length as usize).saturating_sub(4)];
            from_proxy.read_exact(&mut body).await?;
            to_server.write_all(&[&length.to_be_bytes(), body.as_slice()].concat()).await?;
            if !body.starts_with(&1234_u16.to_be_bytes()) {
                break;
            }
        }
        loop {
            let tag = from_proxy.read_u8().await?;
            let length = from_proxy.read_u32().await?;
            let mut body = vec![0; (length as usize).saturating_sub(4)];
            from_proxy.read_exact(&mut body).await?;
            match matches!(tag, b'Q' | b'P').then(|| script(&body)).flatten() {
                Some(answer) => answers.send(answer).await.map_err(io::Error::other)?,
                None => {
                    to_server.write_all(&[&[tag], length.to_be_bytes().as_slice(), &body].concat()).await?
                }
            }
        }
    };
    tokio::select! {
        end = requests => end,
        end = replies(from_server, to_proxy, answered) => end,
    }
}

/// Only a command has the sequence number 0.
async fn relay_mysql(proxy: TcpStream, behind: u16, script: &Script) -> io::Result<()> {
    let (mut from_proxy, to_proxy) = proxy.into_split();
    let server = TcpStream::connect((Ipv4Addr::LOCALHOST, behind)).await?;
    let (from_server, mut to_server) = server.into_split();
    let (answers, answered) = mpsc::channel(4);
    let requests = async {
        loop {
            let header = from_proxy.read_u32_le().await?;
            let mut body = vec![0; (header & 0xff_ffff) as usize];
            from_proxy.read_exact(&mut body).await?;
            let is_statement =
                header >> 24 == 0 && matches!(body.first(), Some(&(command::QUERY | command::STMT_PREPARE)));
            match is_statement.then(|| script(&body)).flatten() {
                Some(answer) => answers.send(answer).await.map_err(io::Error::other)?,
                None => to_server.write_all(&[&header.to_le_bytes(), body.as_slice()].concat()).await?,
            }
        }
    };
    tokio::select! {
        end = requests => end,
        end = replies(from_server, to_proxy, answered) => end,
    }
}

async fn replies(
    mut from_server: OwnedReadHalf,
    mut to_proxy: OwnedWriteHalf,
    mut answered: mpsc::Receiver<Answer>,
) -> io::Result<()> {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        tokio::select! {
            read = from_server.read(&mut buffer) => match read? {
                0 => return Ok(()),
                n => to_proxy.write_all(&buffer[..n]).await?,
            },
            Some(answer) = answered.recv() => match answer {
                Answer::Silence => {}
                Answer::Bytes(bytes) => to_proxy.write_all(&bytes).await?,
                Answer::BytesThenClose(bytes) => {
                    to_proxy.write_all(&bytes).await?;
                    return to_proxy.shutdown().await;
                }
            },
        }
    }
}
