//! The accept loop of one endpoint.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    time::sleep,
};
use tracing::{debug, info, warn};

use crate::{
    handshake::{refuse_at_once, serve_client},
    protocol::{Fault, FaultKind, Protocol},
    proxy::Endpoint,
    shutdown::Signal,
};

/// Connections that the kernel keeps ready for us; it cuts this down to `net.core.somaxconn`.
const BACKLOG: u32 = 4096;
/// After an accept that failed for want of descriptors or memory, so that the loop does not spin.
const PAUSE: Duration = Duration::from_millis(50);

/// Opens a listening socket.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Accepts clients until `stop`, each served by a task of its own.
pub async fn accept_loop<P: Protocol>(listener: TcpListener, endpoint: Arc<Endpoint<P>>, mut stop: Signal) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.given() => return,
        };
        match accepted {
            Ok((tcp, peer)) => take_in(tcp, peer.ip().to_canonical(), &endpoint),
            Err(error) if is_about_one_client(&error) => debug!(%error, "accept failed"),
            Err(error) => {
                warn!(proxy = %endpoint.proxy.name, endpoint = %endpoint.name, %error, "cannot accept clients");
                sleep(PAUSE).await;
            }
        }
    }
}

fn take_in<P: Protocol>(tcp: TcpStream, peer: IpAddr, endpoint: &Arc<Endpoint<P>>) {
    let allow = endpoint.allow.load();
    if !allow.is_empty() && !allow.iter().any(|network| network.contains(&peer)) {
        info!(proxy = %endpoint.proxy.name, endpoint = %endpoint.name, %peer, "client address not allowed");
        let fault = Fault::fatal(
            FaultKind::NotAllowed,
            "Connections from this address are not allowed by this endpoint.",
        );
        tokio::spawn(async move { refuse_at_once::<P>(tcp, &fault).await });
        return;
    }
    tokio::spawn(serve_client(endpoint.clone(), tcp, peer));
}

fn is_about_one_client(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted
    )
}
