//! The only owner of sockets: plain TCP or TLS over it.

use std::{
    io::{self, IoSlice},
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use crate::{buffer::Buffer, compress::Compressed, protocol::Compression};

/// One connection to a client or to a server.
#[derive(Debug)]
pub enum Stream {
    /// No encryption.
    Plain(TcpStream),
    /// We are the TLS server; boxed, since it is large and plain clients should stay small.
    ClientTls(Box<tokio_rustls::server::TlsStream<TcpStream>>),
    /// We are the TLS client.
    ServerTls(Box<tokio_rustls::client::TlsStream<TcpStream>>),
    /// To a client that compresses.
    Compressed(Box<Compressed>),
}

impl Stream {
    /// True over TLS.
    #[must_use]
    pub fn is_tls(&self) -> bool {
        match self {
            Self::Plain(_) => false,
            Self::ClientTls(_) | Self::ServerTls(_) => true,
            Self::Compressed(compressed) => compressed.stream().is_tls(),
        }
    }

    /// The socket underneath.
    #[must_use]
    pub fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(tcp) => tcp,
            Self::ClientTls(tls) => tls.get_ref().0,
            Self::ServerTls(tls) => tls.get_ref().0,
            Self::Compressed(compressed) => compressed.stream().tcp(),
        }
    }

    /// From now on packed as `compression` says. What has been read already and was packed by the peer is moved from
    /// `ahead` into the stream.
    #[must_use]
    pub fn compressed(self, compression: Compression, ahead: &mut Buffer) -> Self {
        if compression == Compression::None {
            return self;
        }
        Self::Compressed(Box::new(Compressed::new(self, compression, ahead)))
    }

    /// Address of the peer, when it still has one.
    #[must_use]
    pub fn peer(&self) -> Option<SocketAddr> {
        self.tcp().peer_addr().ok()
    }
}

/// Options that every database connection wants: no delay, and keep-alive so that a vanished peer is noticed.
pub fn tune(tcp: &TcpStream) -> io::Result<()> {
    tcp.set_nodelay(true)?;
    let keepalive = socket2::TcpKeepalive::new()
        .with_time(Duration::from_secs(60))
        .with_interval(Duration::from_secs(10))
        .with_retries(6);
    socket2::SockRef::from(tcp).set_tcp_keepalive(&keepalive)
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(s) => Pin::new(s).poll_read(cx, buf),
            Self::ClientTls(s) => Pin::new(s.as_mut()).poll_read(cx, buf),
            Self::ServerTls(s) => Pin::new(s.as_mut()).poll_read(cx, buf),
            Self::Compressed(s) => Pin::new(s.as_mut()).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(s) => Pin::new(s).poll_write(cx, buf),
            Self::ClientTls(s) => Pin::new(s.as_mut()).poll_write(cx, buf),
            Self::ServerTls(s) => Pin::new(s.as_mut()).poll_write(cx, buf),
            Self::Compressed(s) => Pin::new(s.as_mut()).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(s) => Pin::new(s).poll_write_vectored(cx, bufs),
            Self::ClientTls(s) => Pin::new(s.as_mut()).poll_write_vectored(cx, bufs),
            Self::ServerTls(s) => Pin::new(s.as_mut()).poll_write_vectored(cx, bufs),
            Self::Compressed(s) => Pin::new(s.as_mut()).poll_write_vectored(cx, bufs),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(s) => Pin::new(s).poll_flush(cx),
            Self::ClientTls(s) => Pin::new(s.as_mut()).poll_flush(cx),
            Self::ServerTls(s) => Pin::new(s.as_mut()).poll_flush(cx),
            Self::Compressed(s) => Pin::new(s.as_mut()).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(s) => Pin::new(s).poll_shutdown(cx),
            Self::ClientTls(s) => Pin::new(s.as_mut()).poll_shutdown(cx),
            Self::ServerTls(s) => Pin::new(s.as_mut()).poll_shutdown(cx),
            Self::Compressed(s) => Pin::new(s.as_mut()).poll_shutdown(cx),
        }
    }
}
