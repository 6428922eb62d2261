//! A way through an HTTP proxy: a `CONNECT` tunnel, in which the connection is made as if there were none.

use std::io;
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Instant;

use super::TransportError;
use super::handshake::bounded;
use super::url::WsUrl;
use crate::base::shutdown::{Level, Shutdown};
use crate::net::dial::{DialError, dial};
use crate::net::proxy::{Proxy, TunnelError};

/// A connection to the server of `url` by way of the proxy; `limit` bounds the proxy's answer, in bytes.
pub(super) fn tunnel(
    proxy: &Proxy,
    url: &WsUrl,
    limit: usize,
    deadline: Instant,
    shutdown: &Shutdown,
    level: Level,
) -> Result<Arc<TcpStream>, TransportError> {
    let peer = format!("proxy {}", proxy.name);
    let wrong = |problem: String| TransportError::Proxy { proxy: proxy.name.clone(), problem };
    let tcp = dial(&proxy.host, proxy.port, deadline, shutdown, level).map_err(|error| match error {
        DialError::Cancelled => TransportError::Stopped,
        DialError::Timeout { after, .. } => TransportError::Timeout { doing: "connecting", peer: peer.clone(), after },
        error => wrong(error.to_string()),
    })?;
    let tcp = Arc::new(tcp);
    bounded(&tcp, &peer, deadline, shutdown, level, |socket| {
        proxy.open_tunnel(socket, &url.host_and_port(), limit).map_err(|error| match error {
            // A time-out stays one, because `bounded` tells of it.
            TunnelError::Io(source) if source.kind() == io::ErrorKind::TimedOut => {
                TransportError::Io { doing: "proxy", source }
            }
            TunnelError::Io(source) => wrong(source.to_string()),
            TunnelError::Answer(problem) => wrong(problem),
        })
    })?;
    Ok(tcp)
}
