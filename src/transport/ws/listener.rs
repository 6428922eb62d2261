//! Incoming WebSocket connections.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use socket2::{Domain, Protocol, Socket as RawSocket, Type};
use tungstenite::protocol::Role;

use super::socket::Socket;
use super::split;
use crate::base::shutdown::{Level, Shutdown};
use crate::base::waits::waiting;
use crate::net::dial::set_options;
use crate::transport::handshake::{bounded, upgrade_as_server};
use crate::transport::{
    Connection, HandshakeRequest, Listener, ListenerKick, Pending, Refusal, ServerTls, SocketLimits, TransportError,
};

/// Listens on a TCP address for WebSocket clients, plain or TLS. Dropping it closes the address.
#[derive(Debug)]
pub struct WsListener {
    tcp: TcpListener,
    address: SocketAddr,
    tls: Option<ServerTls>,
    stopped: Arc<AtomicBool>,
    /// Its connecting to the listener wakes `accept`. Made with the listener, because a kick must work also when the process
    /// has no descriptor left.
    waker: Arc<RawSocket>,
}

impl WsListener {
    /// Listens on `address` (port 0: one that is free), with TLS if it is given a certificate. Blocks only if `address` is a
    /// name that must be looked up.
    ///
    /// # Errors
    /// [`TransportError::Bind`] with what the system says.
    pub fn bind(address: impl ToSocketAddrs + std::fmt::Debug, tls: Option<ServerTls>) -> Result<Self, TransportError> {
        let open = || {
            let tcp = TcpListener::bind(&address)?;
            let bound = tcp.local_addr()?;
            let waker = RawSocket::new(Domain::for_address(bound), Type::STREAM, Some(Protocol::TCP))?;
            waker.set_nonblocking(true)?;
            Ok((tcp, bound, waker))
        };
        let (tcp, bound, waker) =
            open().map_err(|source| TransportError::Bind { address: format!("{address:?}"), source })?;
        Ok(Self { tcp, address: bound, tls, stopped: Arc::default(), waker: Arc::new(waker) })
    }

    /// Where it listens, with the port that the system chose.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }
}

/// An address bound to every interface is reached over loopback.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V4(v4) if v4.ip().is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        SocketAddr::V6(v6) if v6.ip().is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    address
}

impl Listener for WsListener {
    fn accept(&self) -> Result<Box<dyn Pending>, TransportError> {
        loop {
            if self.stopped.load(Ordering::SeqCst) {
                return Err(TransportError::Stopped);
            }
            let waits = waiting("a connection", None);
            let accepted = self.tcp.accept();
            drop(waits);
            if self.stopped.load(Ordering::SeqCst) {
                return Err(TransportError::Stopped);
            }
            match accepted {
                Ok((tcp, address)) => {
                    return Ok(Box::new(WsPending { tcp, peer: address.to_string(), tls: self.tls.clone() }));
                }
                // A client that gave up while it waited is not the listener's trouble.
                Err(e) if e.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(source) => return Err(TransportError::Io { doing: "accepting", source }),
            }
        }
    }

    fn kick(&self) -> ListenerKick {
        let (stopped, address) = (self.stopped.clone(), reachable(self.address).into());
        let waker = Arc::downgrade(&self.waker);
        ListenerKick::new(move || {
            stopped.store(true, Ordering::SeqCst);
            if let Some(waker) = waker.upgrade() {
                // Connecting to itself is the only portable way to interrupt `accept`. The error says that it is under way
                // (the socket does not block) or was done by an earlier kick.
                let _ = waker.connect(&address);
            }
        })
    }

    fn url(&self) -> String {
        let scheme = if self.tls.is_some() { "wss" } else { "ws" };
        format!("{scheme}://{}", reachable(self.address))
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
        route: &mut dyn FnMut(&HandshakeRequest) -> Result<(), Refusal>,
    ) -> Result<(Connection, HandshakeRequest), TransportError> {
        let Self { tcp, peer, tls } = *self;
        set_options(&tcp).map_err(TransportError::io("accepting"))?;
        let tcp = Arc::new(tcp);
        let (tls, request) = bounded(&tcp, &peer, deadline, shutdown, level, |socket| {
            let Some(tls) = tls else {
                return Ok((None, upgrade_as_server(socket, &peer, limits.handshake_bytes, route)?));
            };
            let mut tls = tls.handshake(&peer, socket)?;
            let mut stream = rustls::Stream::new(&mut tls, socket);
            let request = upgrade_as_server(&mut stream, &peer, limits.handshake_bytes, route)?;
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
        let client = dial("127.0.0.1", listener.address.port(), soon, &Shutdown::new(), Level::Drain).unwrap();
        let (tcp, _) = listener.tcp.accept().unwrap();
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
