//! How a pool makes, checks and ends connections: what the program that uses it says of its protocol.

use std::fmt;

use super::until::Until;

/// One blocking protocol. The pool calls it from the threads of its callers, and from its own one; never under a lock.
///
/// ```
/// use std::io::{self, Read, Write};
/// use std::net::{SocketAddr, TcpStream};
/// use std::time::Duration;
///
/// use phalanx::pool::{Connector, Until};
///
/// /// Echoes what it is sent.
/// struct Echo;
///
/// impl Connector for Echo {
///     type Key = SocketAddr;
///     type Connection = TcpStream;
///     type Error = String;
///
///     fn connect(&self, address: &SocketAddr, until: Until<'_>) -> Result<TcpStream, String> {
///         let time = until.left().max(Duration::from_millis(1));
///         # #[allow(clippy::disallowed_methods)] // The programs that read this have no `net`.
///         TcpStream::connect_timeout(address, time).map_err(|error| error.to_string())
///     }
///
///     fn validate(&self, stream: &mut TcpStream, until: Until<'_>) -> Result<(), String> {
///         let mut ping = || -> io::Result<()> {
///             stream.set_read_timeout(Some(until.left().max(Duration::from_millis(1))))?;
///             stream.write_all(b"?")?;
///             stream.read_exact(&mut [0])
///         };
///         ping().map_err(|error| error.to_string())
///     }
///
///     fn is_broken(&self, stream: &mut TcpStream) -> bool {
///         stream.take_error().is_ok_and(|error| error.is_some())
///     }
/// }
/// ```
pub trait Connector: Send + Sync + 'static {
    /// Names a peer: connections of one key are the same to their users.
    type Key: Clone + Ord + fmt::Debug + Send + 'static;
    /// What is kept.
    type Connection: Send + 'static;
    /// Why there is none. It is kept and shown, so its text should be short.
    type Error: Clone + fmt::Debug + fmt::Display + Send + 'static;

    /// Makes a connection. Blocks no longer than `until` says.
    ///
    /// # Errors
    /// Why there is none.
    fn connect(&self, key: &Self::Key, until: Until<'_>) -> Result<Self::Connection, Self::Error>;

    /// Whether the peer answers on a connection that was idle for a while. Blocks no longer than `until` says; a
    /// connection whose answer comes later than that is closed as well, because what else is late on it is not known.
    ///
    /// # Errors
    /// Why the connection is no good. It is closed.
    fn validate(&self, connection: &mut Self::Connection, until: Until<'_>) -> Result<(), Self::Error>;

    /// Whether the connection is known to be no good, when it comes back. Must not block; a look at a flag.
    fn is_broken(&self, _connection: &mut Self::Connection) -> bool {
        false
    }

    /// Ends a connection. Should not block for long: whoever returns or acquires one may have to wait for it.
    fn close(&self, connection: Self::Connection) {
        drop(connection);
    }
}
