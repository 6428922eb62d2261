//! The only place that connects: look-up and TCP under one deadline, interruptible by the shutdown signal.
//!
//! A name with several addresses is tried as in RFC 8305: the families in turn, the next address beside the ones that
//! do not answer, and the first connection wins.

mod attempts;
mod error;
mod look_up;

use std::net::TcpStream;
use std::time::Instant;

pub use attempts::set_options;
pub use error::DialError;

use attempts::{connect, in_turn};
use look_up::look_up;

use crate::base::shutdown::{Level, Shutdown};
use crate::net::reach::Reach;

/// Connects to `host:port` by `deadline`.
///
/// Blocks in the name look-up (on a thread of its own, because nothing interrupts the resolver) and in `connect`; both
/// end at the deadline and as soon as `shutdown` reaches `level`. Sets [`set_options`].
///
/// # Errors
/// See [`DialError`].
pub fn dial(
    host: &str,
    port: u16,
    deadline: Instant,
    shutdown: &Shutdown,
    level: Level,
) -> Result<TcpStream, DialError> {
    dial_within(&Reach::Everywhere, host, port, deadline, shutdown, level)
}

/// As [`dial`], to those addresses of the host that `reach` allows.
///
/// # Errors
/// See [`DialError`].
pub fn dial_within(
    reach: &Reach,
    host: &str,
    port: u16,
    deadline: Instant,
    shutdown: &Shutdown,
    level: Level,
) -> Result<TcpStream, DialError> {
    let start = Instant::now();
    let mut addresses = look_up(host, port, deadline, shutdown, level)?;
    // After the look-up, so that what is dialled is what was judged.
    addresses.retain(|address| reach.allows(address.ip()));
    if addresses.is_empty() {
        return Err(DialError::OutOfReach { host: host.to_owned() });
    }
    connect(&in_turn(&addresses), deadline, shutdown, level)?
        .ok_or_else(|| DialError::Timeout { address: format!("{host}:{port}"), after: start.elapsed() })
}

/// Looks a host up and says whether all its addresses are within `reach`: for whoever lets another program dial it.
/// Blocks as the look-up of [`dial`].
///
/// # Errors
/// [`DialError::OutOfReach`], or why the look-up failed.
pub fn check_reach(
    reach: &Reach,
    host: &str,
    deadline: Instant,
    shutdown: &Shutdown,
    level: Level,
) -> Result<(), DialError> {
    let addresses = look_up(host, 0, deadline, shutdown, level)?;
    if addresses.iter().all(|address| reach.allows(address.ip())) {
        Ok(())
    } else {
        Err(DialError::OutOfReach { host: host.to_owned() })
    }
}

#[cfg(test)]
mod tests;
