//! What a role sees of its server, and what it says of a handshake.

use std::sync::Arc;

use super::session::{SessionEnd, SessionHandle};
use crate::base::ids::SessionId;
use crate::transport::{HandshakeRequest, Refusal, Utf8Bytes};

/// What a role sees of its server. Events of one connection come in order, one after the other has returned; with two
/// threads for each connection on one of those, otherwise on a worker of the poll.
#[derive(Debug)]
pub enum ServerEvent {
    /// A handshake is done.
    Opened {
        /// Its number.
        id: SessionId,
        /// How to send to it and how to close it.
        handle: SessionHandle,
        /// What it asked for.
        request: HandshakeRequest,
        /// Its address.
        peer: String,
    },
    /// A text arrived.
    Text {
        /// On this connection.
        id: SessionId,
        /// The text.
        text: Utf8Bytes,
    },
    /// The connection ended.
    Closed {
        /// The connection.
        id: SessionId,
        /// How.
        end: SessionEnd,
    },
}

/// Decides on a handshake by its path and headers. It must not block.
pub type HandshakeCheck = Arc<dyn Fn(&HandshakeRequest) -> Result<(), Refusal> + Send + Sync>;

/// Takes the events of all connections; while it blocks, that one peer is slowed by TCP, and so are the others if it
/// blocks for as many peers as there are workers.
pub type ServerSink = Arc<dyn Fn(ServerEvent) + Send + Sync>;
