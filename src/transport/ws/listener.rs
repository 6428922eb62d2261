//! Incoming WebSocket connections.

use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::time::Instant;

use tungstenite::protocol::Role;

use super::socket::Socket;
use super::split;
use crate::base::shutdown::{Level, Shutdown};
use crate::net::accept::KickableListener;
use crate::net::dial::set_options;
use crate::transport::handshake::{bounded, upgrade_as_server};
use crate::transport::tls::handshake_as_server;
use crate::transport::{
    Connection, HandshakeRequest, Listener, ListenerKick, Pending, Refusal, ServerTls, SocketLimits, TransportError,
};

/// Listens on a TCP address for WebSocket clients, plain or TLS. Dropping it closes the address.
#[derive(Debug)]
pub struct WsListener {
    tcp: KickableListener,
    tls: Option<ServerTls>,
}

impl WsListener {
    /// Listens on `address` (port 0: one that is free), with TLS if it is given a certificate. Blocks only if `address`
    /// is a name that must be looked up.
    ///
    /// # Errors
    /// [`TransportError::Bind`] with what the system says.
    pub fn bind(address: impl ToSocketAddrs + std::fmt::Debug, tls: Option<ServerTls>) -> Result<Self, TransportError> {
        let tcp = TcpListener::bind(&address)
            .and_then(KickableListener::new)
            .map_err(|source| TransportError::Bind { address: format!("{address:?}"), source })?;
        Ok(Self { tcp, tls })
    }

    /// Where it listens, with the port that the system chose.
    pub fn local_addr(&self) -> SocketAddr {
        self.tcp.local_addr()
    }
}

impl Listener for WsListener {
    fn accept(&self) -> Result<Box<dyn Pending>, TransportError> {
        let (tcp, address) =
            self.tcp.accept().map_err(TransportError::io("accepting"))?.ok_or(TransportError::Stopped)?;
        Ok(Box::new(WsPending { tcp, peer: address.to_string(), tls: self.tls.clone() }))
    }

    fn kick(&self) -> ListenerKick {
        ListenerKick::new(self.tcp.kick())
    }

    fn url(&self) -> String {
        let scheme = if self.tls.is_some() { "wss" } else { "ws" };
        format!("{scheme}://{}", self.tcp.reachable_addr())
    }
}

struct WsPending {
    tcp: TcpStream,
    peer: String,
    tls: Option<ServerTls>,
}

impl Pending for WsPending {
    fn peer(&self) -> String {
        self.peer.clone()
    }

    fn handshake(
        self: Box<Self>,
        limits: &SocketLimits,
        deadline: Instant,
        shutdown: &Shutdown,
        level: Level,
        check: &mut dyn FnMut(&HandshakeRequest) -> Result<(), Refusal>,
    ) -> Result<(Connection, HandshakeRequest), TransportError> {
        let Self { tcp, peer, tls } = *self;
        set_options(&tcp).map_err(TransportError::io("accepting"))?;
        let tcp = Arc::new(tcp);
        let (tls, request) = bounded(&tcp, &peer, deadline, shutdown, level, |socket| {
            let Some(tls) = tls else {
                return Ok((None, upgrade_as_server(socket, &peer, limits.handshake_bytes, check)?));
            };
            let mut tls = handshake_as_server(&tls, &peer, socket)?;
            let mut stream = rustls::Stream::new(&mut tls, socket);
            let request = upgrade_as_server(&mut stream, &peer, limits.handshake_bytes, check)?;
            Ok((Some(tls.into()), request))
        })?;
        Ok((split(Socket::new(tcp, tls), Vec::new(), Role::Server, limits, peer), request))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::limits::TCP_KEEPALIVE_IDLE;
    use crate::net::dial::dial;
    use std::time::Duration;

    #[test]
    fn an_accepted_connection_has_the_options_of_a_dialled_one() {
        let listener = WsListener::bind("127.0.0.1:0", None).unwrap();
        let soon = Instant::now() + Duration::from_secs(30);
        let client = dial("127.0.0.1", listener.local_addr().port(), soon, &Shutdown::new(), Level::Drain).unwrap();
        let (tcp, _) = listener.tcp.accept().unwrap().unwrap();
        let accepted = tcp.try_clone().unwrap();
        drop(client);
        let pending = Box::new(WsPending { tcp, peer: "client".to_owned(), tls: None });
        let limits = SocketLimits::default();
        let ended = pending.handshake(&limits, soon, &Shutdown::new(), Level::Drain, &mut |_| Ok(()));
        assert!(matches!(ended, Err(TransportError::Closed)), "{ended:?}");
        let socket = socket2::SockRef::from(&accepted);
        assert!(socket.tcp_nodelay().unwrap() && socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), TCP_KEEPALIVE_IDLE);
    }
}
