//! What the poll thread, its workers and those who tell it something have in common.

use std::sync::Arc;

use super::news::News;
use super::peer::Served;
use super::runs::Runs;
use crate::base::ids::SessionId;
use crate::link::session::{SessionEnd, SessionHandle};
use crate::transport::{Connection, HandshakeRequest, Polled, Refusal, TransportError};

/// A connection that was accepted.
pub(in crate::link) struct Arrival {
    /// Its number.
    pub(in crate::link) id: SessionId,
    /// For the role.
    pub(in crate::link) handle: SessionHandle,
    /// Its socket.
    pub(in crate::link) polled: Box<dyn Polled>,
    /// What it is told instead of being served.
    pub(in crate::link) refusal: Option<Refusal>,
    /// Called with the connection once its handshake is done.
    pub(in crate::link) opened: Opened,
    /// Called with the end of a connection whose handshake was done; dropped when it is over in any case.
    pub(in crate::link) place: Box<dyn Fn(&SessionEnd) + Send>,
}

/// What a server does with a new connection.
pub(in crate::link) type Opened = Box<dyn FnOnce(&Connection) + Send>;

/// What the poll thread has in common with those who tell it something.
pub(super) struct PollShared {
    pub(super) news: News<PollNews, Box<dyn Fn() + Send + Sync>>,
    pub(super) runs: Runs<Run>,
}

/// What the poll thread is told.
#[derive(Default)]
pub(super) struct PollNews {
    pub(super) arrivals: Vec<Arrival>,
    /// Connections that have something to write.
    pub(super) to_write: Vec<u64>,
    /// Connections whose events have been handled, to be read again.
    pub(super) resumed: Vec<u64>,
    /// Connections that may be admitted to send more.
    pub(super) admitted: Vec<u64>,
    /// Handshakes that a worker has taken on.
    pub(super) advanced: Vec<(u64, Shaking, Advanced)>,
    /// Connections whose worker has panicked.
    pub(super) panicked: Vec<u64>,
    /// Connections to break.
    pub(super) kicked: Vec<u64>,
    /// It is time to look who is alive.
    pub(super) look: bool,
    /// Handshakes end now.
    pub(super) no_handshakes: bool,
    /// No connection comes any more.
    pub(super) finish: bool,
    /// All connections end now.
    pub(super) break_all: bool,
}

/// What has become of a handshake.
pub(super) type Advanced = Result<Option<(Connection, HandshakeRequest)>, TransportError>;

/// A connection in its handshake.
pub(super) struct Shaking {
    pub(super) polled: Box<dyn Polled>,
    pub(super) refusal: Option<Refusal>,
    pub(super) opened: Opened,
}

/// Something for a worker.
pub(super) enum Run {
    /// The events of a connection.
    Events(Arc<Served>),
    /// A handshake whose peer has done something.
    Shake(u64, Shaking),
}

impl Run {
    /// Of its connection.
    pub(super) fn number(&self) -> u64 {
        match self {
            Self::Events(served) => served.number,
            Self::Shake(number, _) => *number,
        }
    }
}
