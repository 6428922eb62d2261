//! The look-up of a host name, which cannot be interrupted.
//!
//! Owner of a thread `lookup`: the call that dials. Blocks in: the system's resolver. Kick: none, so it is left behind
//! when the call ends before it. Ends: with the resolver's own time-out.

use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use crossbeam_channel::{bounded, select};

use super::error::DialError;
use crate::base::limits::LOOKUPS_AT_ONCE;
use crate::base::shutdown::{Level, Shutdown};
use crate::base::thread::{JoinError, Kick, Thread, try_spawn};
use crate::base::waits::waiting;
use crate::net::address;

/// Counts the look-ups that still run, also those whose caller has given up.
struct LookUpCount;

static RUNNING: AtomicUsize = AtomicUsize::new(0);

impl Drop for LookUpCount {
    fn drop(&mut self) {
        RUNNING.fetch_sub(1, Ordering::SeqCst);
    }
}

pub(super) fn look_up(
    host: &str,
    port: u16,
    deadline: Instant,
    shutdown: &Shutdown,
    level: Level,
) -> Result<Vec<SocketAddr>, DialError> {
    if let Ok(ip) = address::without_brackets(host).parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(ip, port)]);
    }
    let name = host.to_owned();
    let resolve = move || (name.as_str(), port).to_socket_addrs().map(Iterator::collect);
    look_up_by(resolve, host, port, deadline, shutdown, level)
}

/// `resolve` cannot be interrupted, so it runs on a thread that is left behind if need be.
pub(super) fn look_up_by(
    resolve: impl FnOnce() -> io::Result<Vec<SocketAddr>> + Send + 'static,
    host: &str,
    port: u16,
    deadline: Instant,
    shutdown: &Shutdown,
    level: Level,
) -> Result<Vec<SocketAddr>, DialError> {
    let failed = |source| DialError::LookUp { host: host.to_owned(), source };
    let start = Instant::now();
    let running = LookUpCount;
    if RUNNING.fetch_add(1, Ordering::SeqCst) >= LOOKUPS_AT_ONCE {
        return Err(failed(io::Error::new(io::ErrorKind::WouldBlock, "too many look-ups hang already")));
    }
    let (tx, rx) = bounded(1);
    let thread = try_spawn("lookup", Kick::dropped("the resolver's own time-out"), move || {
        let (_running, _waiting) = (running, waiting("the system's resolver", None));
        // The receiver has gone if the caller gave up, and then nobody wants the answer.
        let _ = tx.send(resolve());
    });
    let thread = thread.map_err(|none| failed(io::Error::other(none)))?;
    let stop = if level == Level::Drain { shutdown.drain_receiver() } else { shutdown.cancel_receiver() };
    let left = deadline.saturating_duration_since(Instant::now());
    let waits = waiting("the look-up of a name", Some(deadline));
    let outcome = select! {
        recv(rx) -> found => Some(found),
        recv(stop) -> _ => return give_up(thread, DialError::Cancelled),
        default(left) => None,
    };
    drop(waits);
    match outcome {
        None => give_up(thread, DialError::Timeout { address: format!("{host}:{port}"), after: start.elapsed() }),
        Some(found) => {
            if let Err(JoinError::Late(thread)) = thread.join_by(deadline) {
                thread.abandon("its answer has arrived, only its end is late");
            }
            let found =
                found.unwrap_or_else(|_| Err(io::Error::other("the look-up thread panicked"))).map_err(failed)?;
            if found.is_empty() {
                return Err(failed(io::Error::new(io::ErrorKind::NotFound, "the name has no address")));
            }
            Ok(found)
        }
    }
}

fn give_up<T>(thread: Thread<()>, error: DialError) -> Result<T, DialError> {
    if let Err(JoinError::Late(thread)) = thread.join_by(Instant::now()) {
        thread.abandon("a name look-up cannot be interrupted");
    }
    Err(error)
}
