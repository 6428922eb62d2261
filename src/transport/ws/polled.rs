//! The handshake of an accepted connection without blocking: TLS, then the upgrade. What comes is kept until the
//! request is whole.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::sync::Arc;

use tungstenite::protocol::Role;

use super::frames::{Decoder, Encoder};
use super::halves;
use super::policy::ClientPolicy;
use super::sealed::Sealed;
use super::socket::{Caller, Inbound, Outbound, Socket};
use crate::net::dial::set_options;
use crate::transport::handshake::upgrade_as_server;
use crate::transport::tls::{failed, io_failed};
use crate::transport::{
    Connection, HandshakeRequest, Intake, Polled, Refusal, ServerTls, SocketLimits, TransportError,
};

/// A connection that was accepted and is polled from then on.
pub(super) struct PolledSocket {
    tcp: Arc<TcpStream>,
    peer: String,
    tls: Option<ServerTls>,
    policy: Arc<ClientPolicy>,
    limits: SocketLimits,
    /// Made when the peer says something, and taken by the connection.
    parts: Option<Parts>,
    /// What has come of the request.
    request: Vec<u8>,
    /// The request was taken, and its answer is on its way.
    accepted: Option<HandshakeRequest>,
    has_left: bool,
}

/// The two directions of a socket.
struct Parts {
    socket: Arc<Socket>,
    inbound: Inbound,
    outbound: Outbound,
}

impl Parts {
    /// Sends what is to be sent; says whether all has left.
    fn send(&mut self, bytes: &[u8]) -> Result<bool, TransportError> {
        let sent = self.outbound.send(bytes).and_then(|()| self.outbound.send_rest());
        sent.map_err(TransportError::io("handshake"))
    }
}

impl PolledSocket {
    pub(super) fn new(
        tcp: TcpStream,
        peer: String,
        (tls, policy): (Option<ServerTls>, Arc<ClientPolicy>),
        limits: &SocketLimits,
    ) -> Self {
        let (tcp, limits, request) = (Arc::new(tcp), *limits, Vec::new());
        Self { tcp, peer, tls, policy, limits, parts: None, request, accepted: None, has_left: false }
    }

    fn begin(&self) -> Result<Parts, TransportError> {
        set_options(&self.tcp).map_err(TransportError::io("accepting"))?;
        let tls = self.tls.as_ref().map(ServerTls::unbuffered).transpose();
        let tls = tls.map_err(|error| failed(&self.peer, error))?.map(Sealed::lean);
        let socket = Arc::new(Socket::new(self.tcp.clone(), tls));
        let inbound = Inbound::new(socket.clone(), Caller::Poll, 0);
        let outbound = Outbound::new(socket.clone(), Caller::Poll);
        Ok(Parts { socket, inbound, outbound })
    }

    /// Receives until the request is whole, or nothing more is there.
    fn receive(
        &mut self,
        parts: &mut Parts,
        check: &mut dyn FnMut(&HandshakeRequest) -> Result<(), Refusal>,
    ) -> Result<Option<HandshakeRequest>, TransportError> {
        let asks = self.tls.as_ref().is_some_and(|tls| tls.asks().is_some());
        let mut chunk = [0; 4096];
        loop {
            match parts.inbound.read(&mut chunk) {
                Ok(0) => return Err(TransportError::Closed),
                Ok(received) => self.request.extend_from_slice(&chunk[..received]),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    let dry = parts.inbound.is_dry();
                    self.has_left = !parts.send(&[])?;
                    if dry {
                        return Ok(None);
                    }
                    continue;
                }
                Err(e) if e.kind() == io::ErrorKind::InvalidData => {
                    // The alert that tells the peer why; the first error is the one that matters.
                    let _ = parts.send(&[]);
                    return Err(io_failed(&self.peer, e));
                }
                Err(e) => return Err(TransportError::io("handshake")(e)),
            }
            let lacks_certificate = asks && !parts.socket.peer_is_certified();
            let mut check = |request: &HandshakeRequest| match self.policy.refusal(request, lacks_certificate) {
                Some(refusal) => Err(refusal),
                None => check(request),
            };
            let mut exchange = Exchange { request: &self.request, answer: Vec::new(), wants_more: false };
            let outcome = upgrade_as_server(&mut exchange, &self.peer, self.limits.handshake_bytes, &mut check);
            let Exchange { answer, wants_more, .. } = exchange;
            if wants_more {
                continue;
            }
            self.request = Vec::new();
            self.has_left = !parts.send(&answer)?;
            return outcome.map(Some);
        }
    }

    /// Goes on; whether the connection is open.
    fn go_on(
        &mut self,
        parts: &mut Parts,
        check: &mut dyn FnMut(&HandshakeRequest) -> Result<(), Refusal>,
    ) -> Result<bool, TransportError> {
        match self.accepted {
            Some(_) => self.has_left = !parts.send(&[])?,
            None => self.accepted = self.receive(parts, check)?,
        }
        Ok(self.accepted.is_some() && !self.has_left)
    }
}

impl Polled for PolledSocket {
    fn descriptor(&self) -> Arc<dyn AsFd + Send + Sync> {
        self.tcp.clone()
    }

    fn peer(&self) -> &str {
        &self.peer
    }

    fn advance(
        &mut self,
        check: &mut dyn FnMut(&HandshakeRequest) -> Result<(), Refusal>,
    ) -> Result<Option<(Connection, HandshakeRequest)>, TransportError> {
        let mut parts = match self.parts.take() {
            Some(parts) => parts,
            None => self.begin()?,
        };
        let is_open = self.go_on(&mut parts, check);
        if let (Ok(true), Some(request)) = (&is_open, self.accepted.take_if(|_| !self.has_left)) {
            let Parts { socket, inbound, outbound } = parts;
            // Nobody blocks in reading it; whoever polls it is told by its change.
            let intake = Intake::new(|| {});
            let decoder = Decoder::polled(inbound, socket.clone(), (&self.limits, intake.clone()));
            let encoder = Encoder::new(outbound, Role::Server, &self.limits);
            let connection = halves(&socket, intake, (decoder, encoder), &self.limits, self.peer.clone());
            return Ok(Some((connection, request)));
        }
        self.parts = Some(parts);
        is_open.map(|_| None)
    }

    fn has_left(&self) -> bool {
        self.has_left
    }

    fn linger(&mut self) -> bool {
        let Some(Parts { socket, outbound, .. }) = &mut self.parts else { return true };
        let left = outbound.half_close().and_then(|()| outbound.send_rest());
        self.has_left = matches!(left, Ok(false));
        left.is_err() || socket.drain_now()
    }
}

/// What has come, as a stream that blocks behind it, and what is answered.
struct Exchange<'a> {
    request: &'a [u8],
    answer: Vec<u8>,
    /// The request is not whole.
    wants_more: bool,
}

impl Read for Exchange<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.request.is_empty() {
            self.wants_more = true;
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.request.read(buf)
    }
}

impl Write for Exchange<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.answer.write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
