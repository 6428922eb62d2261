//! Outgoing WebSocket connections.

use std::sync::Arc;

use tungstenite::protocol::Role;

use super::socket::Socket;
use super::split;
use crate::base::dial::dial;
use crate::base::shutdown::{Level, Shutdown};
use crate::transport::handshake::{bounded, upgrade_as_client};
use crate::transport::url::WsUrl;
use crate::transport::{ClientTls, Connection, DialRequest, Dialer, TransportError};

/// Dials `ws://` and `wss://`.
#[derive(Debug, Clone, Default)]
pub struct WsDialer {
    tls: ClientTls,
}

impl WsDialer {
    /// A dialer that trusts whom `tls` trusts, when it dials `wss://`.
    pub fn new(tls: ClientTls) -> Self {
        Self { tls }
    }
}

impl Dialer for WsDialer {
    fn dial(&self, request: &DialRequest<'_>, shutdown: &Shutdown, level: Level) -> Result<Connection, TransportError> {
        let DialRequest { url, headers, limits, deadline } = *request;
        let url = WsUrl::parse(url)?;
        let tcp = Arc::new(dial(&url.host, url.port, deadline, shutdown, level)?);
        let (tls, tail) = bounded(&tcp, &url.authority, deadline, shutdown, level, |socket| {
            if !url.tls {
                let tail = upgrade_as_client(socket, &url, headers, limits.handshake_bytes)?;
                return Ok((None, tail));
            }
            let mut tls = self.tls.handshake(&url.host, socket)?;
            let mut stream = rustls::Stream::new(&mut tls, socket);
            let tail = upgrade_as_client(&mut stream, &url, headers, limits.handshake_bytes)?;
            Ok((Some(tls.into()), tail))
        })?;
        Ok(split(Socket::new(tcp, tls), tail, Role::Client, &limits, url.authority))
    }
}
