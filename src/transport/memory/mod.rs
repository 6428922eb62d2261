//! Connections within the process, for tests: the same traits and the same rules as over sockets, and faults that
//! happen when and where a test plans them.
//!
//! ```
//! use phalanx::transport::{Incoming, memory};
//!
//! let (mut client, mut server, _wire) = memory::pair();
//! client.writer.write("hello".into())?;
//! client.writer.flush()?;
//! assert_eq!(server.reader.read()?, Incoming::Text("hello".into()));
//! # Ok::<(), phalanx::transport::TransportError>(())
//! ```

mod net;
mod wire;

pub use net::{DialFault, MemoryDialer, MemoryListener, MemoryNet};
pub use wire::{Side, WIRE_BYTES, Wire};

use crate::base::clock::Clock;

use super::{Connection, SocketLimits};

/// Two ends of one connection, with the default limits: the dialer's, the listener's, and the wire between them.
pub fn pair() -> (Connection, Connection, Wire) {
    let limits = SocketLimits::default();
    let wire = Wire::new(Clock::system());
    let [dialer, listener] = wire.ends([&limits, &limits], ["memory-listener", "memory-dialer"]);
    (dialer, listener, wire)
}
