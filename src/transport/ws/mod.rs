//! WebSocket connections over TCP and TLS.
//!
//! One connection is one socket, shared by a read half with the receiving codec and a write half that makes the frames. The
//! codec of the read half starts with whatever bytes arrived together with the handshake, so none are lost.

mod dialer;
mod listener;
mod reader;
mod socket;
mod writer;

use std::sync::Arc;

use tungstenite::protocol::Role;

use super::{Connection, ConnectionKick, SocketLimits};
use socket::Socket;

pub use dialer::WsDialer;
pub use listener::WsListener;

/// Splits a socket whose handshake is done; `tail` is what the peer sent after it.
fn split(socket: Socket, tail: Vec<u8>, role: Role, limits: &SocketLimits, peer: String) -> Connection {
    let socket = Arc::new(socket);
    let kicked = Arc::downgrade(&socket);
    Connection {
        reader: Box::new(reader::WsReader::new(socket.clone(), tail, role, limits, peer.clone())),
        writer: Box::new(writer::WsWriter::new(socket, role, limits)),
        kick: ConnectionKick::new(move || {
            if let Some(socket) = kicked.upgrade() {
                socket.kick();
            }
        }),
        peer,
    }
}
