//! WebSocket connections over TCP and TLS.
//!
//! One connection is one socket, shared by a read half with the receiving codec and a write half that makes the frames.
//! The codec of the read half starts with whatever bytes arrived together with the handshake, so none are lost.

mod dialer;
mod frames;
#[cfg(feature = "test-util")]
pub mod fuzzed;
mod gate;
mod listener;
mod policy;
mod polled;
mod scan;
mod sealed;
mod socket;

use std::sync::Arc;

use tungstenite::protocol::Role;

use super::intake::Intake;
use super::reader::Reader;
use super::writer::Writer;
use super::{Connection, ConnectionKick, SocketLimits};
use frames::{Decoder, Encoder};
use socket::{Caller, Outbound, Socket};

pub use dialer::WsDialer;
pub use listener::WsListener;

/// Splits a socket whose handshake is done; `tail` is what the peer sent after it.
fn split(socket: Socket, tail: Vec<u8>, role: Role, limits: &SocketLimits, peer: String) -> Connection {
    let socket = Arc::new(socket);
    let intake = intake_of(&socket);
    let decoder = Decoder::new(socket.clone(), tail, role, (limits, intake.clone()));
    let encoder = Encoder::new(Outbound::new(socket.clone(), Caller::Threads), role, limits);
    halves(&socket, intake, (decoder, encoder), limits, peer)
}

/// What a connection of two threads may send, whose reading ends when it is to go.
fn intake_of(socket: &Arc<Socket>) -> Arc<Intake> {
    let going = Arc::downgrade(socket);
    Intake::new(move || {
        if let Some(socket) = going.upgrade() {
            socket.end_reading();
        }
    })
}

/// The parts of a connection over one socket.
fn halves(
    socket: &Arc<Socket>,
    intake: Arc<Intake>,
    (decoder, encoder): (Decoder, Encoder),
    limits: &SocketLimits,
    peer: String,
) -> Connection {
    let control = &socket.control;
    let (kicked, kicked_intake) = (Arc::downgrade(socket), Arc::downgrade(&intake));
    let traffic = socket.traffic.clone();
    Connection {
        reader: Box::new(Reader::new(decoder, control.clone(), peer.clone())),
        writer: Box::new(Writer::new(encoder, control.clone(), limits.write_buffer_bytes)),
        kick: ConnectionKick::new(move || {
            if let Some(socket) = kicked.upgrade() {
                socket.kick();
            }
            if let Some(intake) = kicked_intake.upgrade() {
                intake.kick();
            }
        }),
        traffic,
        intake,
        peer,
    }
}
