//! Outgoing WebSocket connections.

use std::sync::Arc;

use rustls::pki_types::ServerName;
use tungstenite::protocol::Role;

use super::sealed::Sealed;
use super::socket::Socket;
use super::split;
use crate::base::shutdown::{Level, Shutdown};
use crate::net::dial::dial;
use crate::transport::handshake::{Upgraded, bounded, upgrade_as_client};
use crate::transport::proxy::tunnel;
use crate::transport::tls::{handshake_as_client, tls_behind};
use crate::transport::url::WsUrl;
use crate::transport::{ClientTls, Connection, DialRequest, Dialer, Proxy, TransportError};

/// Dials `ws://` and `wss://`.
#[derive(Debug, Clone, Default)]
pub struct WsDialer {
    tls: ClientTls,
    proxy: Option<Proxy>,
    renamed: Option<Renamed>,
}

/// A server that has a certificate for another name than the one it is dialled by.
#[derive(Debug, Clone)]
struct Renamed {
    host: String,
    port: u16,
    name: ServerName<'static>,
}

impl WsDialer {
    /// A dialer that trusts whom `tls` trusts, when it dials `wss://`.
    pub fn new(tls: ClientTls) -> Self {
        Self { tls, ..Self::default() }
    }

    /// Makes every connection through an HTTP proxy, which also looks the names up. No variable of the environment does
    /// that, and none excepts a host from it.
    #[must_use]
    pub fn through(mut self, proxy: Proxy) -> Self {
        self.proxy = Some(proxy);
        self
    }

    /// Whom it trusts, and what it shows.
    pub fn tls(&self) -> &ClientTls {
        &self.tls
    }

    /// Asks the server of `url` (its host and port), and no other one, for a certificate of `name` instead of the URL's
    /// host. A second call replaces the first.
    ///
    /// # Errors
    /// [`TransportError::Url`] if either cannot be used.
    pub fn with_server_name(mut self, url: &str, name: &str) -> Result<Self, TransportError> {
        let WsUrl { host, port, .. } = WsUrl::parse(url)?;
        self.renamed = Some(Renamed { host, port, name: server_name(name)? });
        Ok(self)
    }

    /// The name that the certificate of the server of `url` must have.
    fn name_of(&self, url: &WsUrl) -> Result<ServerName<'static>, TransportError> {
        match &self.renamed {
            Some(server) if (&server.host, server.port) == (&url.host, url.port) => Ok(server.name.clone()),
            _ => server_name(&url.host),
        }
    }
}

fn server_name(name: &str) -> Result<ServerName<'static>, TransportError> {
    ServerName::try_from(name.to_owned()).map_err(|_| TransportError::Url {
        url: name.to_owned(),
        problem: "not a host name or address that a certificate can have".to_owned(),
    })
}

impl Dialer for WsDialer {
    fn dial(&self, request: &DialRequest<'_>, shutdown: &Shutdown, level: Level) -> Result<Connection, TransportError> {
        let DialRequest { url, headers, limits, deadline } = *request;
        let url = WsUrl::parse(url)?;
        let tcp = match &self.proxy {
            Some(proxy) => tunnel(proxy, &url, limits.handshake_bytes, deadline, shutdown, level)?,
            None => Arc::new(dial(&url.host, url.port, deadline, shutdown, level)?),
        };
        let (tls, upgraded) = bounded(&tcp, &url.authority, deadline, shutdown, level, |socket| {
            if !url.tls {
                let upgraded = upgrade_as_client(socket, &url, headers, limits.handshake_bytes)?;
                return Ok((None, upgraded));
            }
            let mut tls = handshake_as_client(&self.tls, self.name_of(&url)?, &url.authority, socket)?;
            let mut stream = rustls::Stream::new(&mut tls, socket);
            let upgraded = upgrade_as_client(&mut stream, &url, headers, limits.handshake_bytes)
                .map_err(|error| tls_behind(&url.authority, error))?;
            Ok((Some(Sealed::buffered(tls)), upgraded))
        })?;
        let Upgraded { tail, clock_skew } = upgraded;
        let connection = split(Socket::new(tcp, tls), tail, Role::Client, &limits, url.authority);
        connection.traffic.set_clock_skew(clock_skew);
        Ok(connection)
    }
}
