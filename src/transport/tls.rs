//! The TLS handshakes of both ends. How one TLS connection is split is in [`ws`](super::ws).

use std::io;

use rustls::pki_types::ServerName;
use rustls::{ClientConnection, ServerConnection};

use super::handshake::Bounded;
use super::{ClientTls, ServerTls, TransportError};
use crate::net::tls::shake_hands;

/// Shakes hands on a connected socket with a server of that name; ends with the socket's deadline.
pub(super) fn handshake_as_client(
    tls: &ClientTls,
    name: ServerName<'static>,
    peer: &str,
    socket: &mut Bounded<'_>,
) -> Result<ClientConnection, TransportError> {
    let mut connection = tls.connection(name).map_err(|e| failed(peer, e))?;
    shake_hands(&mut connection, socket).map_err(|error| io_failed(peer, error))?;
    Ok(connection)
}

/// Shakes hands on an accepted socket; ends with the socket's deadline.
pub(super) fn handshake_as_server(
    tls: &ServerTls,
    peer: &str,
    socket: &mut Bounded<'_>,
) -> Result<ServerConnection, TransportError> {
    let mut connection = tls.connection().map_err(|e| failed(peer, e))?;
    shake_hands(&mut connection, socket).map_err(|error| io_failed(peer, error))?;
    Ok(connection)
}

pub(super) fn failed(peer: &str, source: rustls::Error) -> TransportError {
    TransportError::Tls { peer: peer.to_owned(), source }
}

/// rustls wraps its own errors into those of I/O.
pub(super) fn io_failed(peer: &str, error: io::Error) -> TransportError {
    tls_behind(peer, TransportError::Io { doing: "tls", source: error })
}

/// The error of rustls, if that is what is behind one of I/O; so a server that does not like the client's certificate
/// is heard of, after the client's handshake.
pub(super) fn tls_behind(peer: &str, error: TransportError) -> TransportError {
    let TransportError::Io { doing, source } = error else { return error };
    match source.downcast::<rustls::Error>() {
        Ok(source) => failed(peer, source),
        Err(source) => TransportError::Io { doing, source },
    }
}
