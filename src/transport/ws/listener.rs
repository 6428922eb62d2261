//! Incoming WebSocket connections.

use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::time::Instant;

use tungstenite::protocol::Role;

use super::policy::ClientPolicy;
use super::polled::PolledSocket;
use super::sealed::Sealed;
use super::socket::Socket;
use super::split;
use crate::base::shutdown::{Level, Shutdown};
use crate::net::accept::KickableListener;
use crate::net::dial::set_options;
use crate::net::http::HostNames;
use crate::ops::health::Health;
use crate::transport::handshake::{bounded, upgrade_as_server};
use crate::transport::tls::handshake_as_server;
use crate::transport::{
    Connection, HandshakeRequest, Listener, ListenerKick, Pending, Polled, Refusal, ServerTls, SocketLimits,
    TransportError,
};

/// Listens on a TCP address for WebSocket clients, plain or TLS. Dropping it closes the address.
///
/// A page of another site, which makes its reader's browser connect here, is refused: see [`WsListener::with_names`].
#[derive(Debug)]
pub struct WsListener {
    tcp: KickableListener,
    tls: Option<ServerTls>,
    policy: Arc<ClientPolicy>,
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
        let policy = ClientPolicy { names: HostNames::of_websockets(Vec::new()), without_certificate: |_| false };
        Ok(Self { tcp, tls, policy: Arc::new(policy) })
    }

    /// Takes pages of these names, too, besides those of this server's IP address and of loopback. Who sends no
    /// `Origin` is no page.
    #[must_use]
    pub fn with_names(mut self, names: HostNames) -> Self {
        let ClientPolicy { without_certificate, .. } = *self.policy;
        self.policy = Arc::new(ClientPolicy { names, without_certificate });
        self
    }

    /// With [`ClientCertificates::Asked`](crate::net::tls::ClientCertificates): who asks for one of these paths needs
    /// none. Without a call of this, everybody needs one.
    #[must_use]
    pub fn without_certificate(mut self, paths: fn(path: &str) -> bool) -> Self {
        let names = self.policy.names.clone();
        self.policy = Arc::new(ClientPolicy { names, without_certificate: paths });
        self
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
        let (tls, policy) = (self.tls.clone(), self.policy.clone());
        Ok(Box::new(WsPending { tcp, peer: address.to_string(), tls, policy }))
    }

    fn kick(&self) -> ListenerKick {
        ListenerKick::new(self.tcp.kick())
    }

    fn url(&self) -> String {
        let scheme = if self.tls.is_some() { "wss" } else { "ws" };
        format!("{scheme}://{}", self.tcp.reachable_addr())
    }

    fn watch(&mut self, health: &Health) {
        self.tcp.watch(health, "accept");
    }
}

struct WsPending {
    tcp: TcpStream,
    peer: String,
    tls: Option<ServerTls>,
    policy: Arc<ClientPolicy>,
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
        let Self { tcp, peer, tls, policy } = *self;
        set_options(&tcp).map_err(TransportError::io("accepting"))?;
        let tcp = Arc::new(tcp);
        let (tls, request) = bounded(&tcp, &peer, deadline, shutdown, level, |socket| {
            let asks = tls.as_ref().is_some_and(|tls| tls.asks().is_some());
            let mut tls = tls.map(|tls| handshake_as_server(&tls, &peer, socket)).transpose()?;
            let certified = tls.as_ref().is_some_and(|tls| tls.peer_certificates().is_some());
            let mut check = |request: &HandshakeRequest| match policy.refusal(request, asks && !certified) {
                Some(refusal) => Err(refusal),
                None => check(request),
            };
            let request = match &mut tls {
                None => upgrade_as_server(socket, &peer, limits.handshake_bytes, &mut check)?,
                Some(tls) => {
                    let mut stream = rustls::Stream::new(tls, socket);
                    upgrade_as_server(&mut stream, &peer, limits.handshake_bytes, &mut check)?
                }
            };
            Ok((tls.map(Sealed::buffered), request))
        })?;
        Ok((split(Socket::new(tcp, tls), Vec::new(), Role::Server, limits, peer), request))
    }

    fn polled(self: Box<Self>, limits: &SocketLimits) -> Result<Box<dyn Polled>, Box<dyn Pending>> {
        Ok(Box::new(PolledSocket::new(self.tcp, self.peer, (self.tls, self.policy), limits)))
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
        let pending =
            Box::new(WsPending { tcp, peer: "client".to_owned(), tls: None, policy: listener.policy.clone() });
        let limits = SocketLimits::default();
        let ended = pending.handshake(&limits, soon, &Shutdown::new(), Level::Drain, &mut |_| Ok(()));
        assert!(matches!(ended, Err(TransportError::Closed)), "{ended:?}");
        let socket = socket2::SockRef::from(&accepted);
        assert!(socket.tcp_nodelay().unwrap() && socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), TCP_KEEPALIVE_IDLE);
    }
}
