//! Several addresses beside one another, until one answers.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};

use super::error::DialError;
use crate::base::limits::{
    ADDRESSES_TRIED, CONNECT_STAGGER, TCP_KEEPALIVE_COUNT, TCP_KEEPALIVE_IDLE, TCP_KEEPALIVE_INTERVAL, TCP_USER_TIMEOUT,
};
use crate::base::shutdown::{KickRegistration, Level, Shutdown};
use crate::base::waits::waiting;

/// The two families in turn, each in the resolver's order, so that a family that is cut off costs one stagger.
pub(super) fn in_turn(addresses: &[SocketAddr]) -> Vec<SocketAddr> {
    let first_family = addresses.first().map(SocketAddr::is_ipv6);
    let (first, second): (Vec<_>, Vec<_>) = addresses.iter().partition(|a| Some(a.is_ipv6()) == first_family);
    let pairs = (0..addresses.len()).flat_map(|n| [first.get(n), second.get(n)]);
    pairs.flatten().copied().take(ADDRESSES_TRIED).collect()
}

/// Connects to whichever of the addresses is first to answer; `None` at the deadline.
pub(super) fn connect(
    addresses: &[SocketAddr],
    deadline: Instant,
    shutdown: &Shutdown,
    level: Level,
) -> Result<Option<TcpStream>, DialError> {
    let _waiting = waiting("a connection to be made", Some(deadline));
    let mut untried = addresses.iter();
    let mut under_way: Vec<Attempt> = Vec::new();
    let mut failures = Vec::new();
    let mut next_at = Instant::now();
    loop {
        let now = Instant::now();
        if shutdown.level() >= level {
            return Err(DialError::Cancelled);
        }
        if now >= deadline {
            return Ok(None);
        }
        if now >= next_at
            && let Some(&address) = untried.next()
        {
            match Attempt::begin(address, shutdown, level) {
                Ok(attempt) => {
                    under_way.push(attempt);
                    next_at = now + CONNECT_STAGGER;
                }
                Err(error) => failures.push((address.to_string(), error)),
            }
            continue;
        }
        let none_waits = untried.as_slice().is_empty();
        if under_way.is_empty() && none_waits {
            return Err(DialError::Connect { failures });
        }
        let until = if none_waits { deadline } else { deadline.min(next_at) };
        let done = match answered(&under_way, until) {
            Ok(None) => continue,
            Ok(Some(index)) => under_way.swap_remove(index),
            Err(error) => {
                failures.extend(under_way.first().map(|attempt| (attempt.address.to_string(), error)));
                return Err(DialError::Connect { failures });
            }
        };
        let address = done.address;
        match done.finish() {
            // A kick may have ended the attempt, whatever the system calls that.
            _ if shutdown.level() >= level => return Err(DialError::Cancelled),
            Ok(stream) => return Ok(Some(stream)),
            Err(error) => {
                failures.push((address.to_string(), error));
                next_at = Instant::now();
            }
        }
    }
}

/// Waits for the answer of any attempt, at most until `until`; the caller asks anew after `None`.
fn answered(attempts: &[Attempt], until: Instant) -> io::Result<Option<usize>> {
    let left = until.saturating_duration_since(Instant::now());
    let timeout = Timespec::try_from(left).map_err(io::Error::other)?;
    let mut sockets: Vec<_> = attempts.iter().map(|a| PollFd::new(&*a.socket, PollFlags::OUT)).collect();
    match rustix::event::poll(&mut sockets, Some(&timeout)) {
        Ok(_) => Ok(sockets.iter().position(|socket| !socket.revents().is_empty())),
        Err(Errno::INTR) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// A `connect` that is under way; the signal ends it.
struct Attempt {
    address: SocketAddr,
    socket: Arc<Socket>,
    kick: KickRegistration,
}

impl Attempt {
    fn begin(address: SocketAddr, shutdown: &Shutdown, level: Level) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_nonblocking(true)?;
        match socket.connect(&address.into()) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(Errno::INPROGRESS.raw_os_error()) => {}
            Err(error) => return Err(error),
        }
        let socket = Arc::new(socket);
        let kicked = socket.clone();
        // Registered only now, because `shutdown` has no effect on a socket that is not yet connecting.
        let kick = shutdown.on(level, move || {
            // An error means that the socket is not connecting any more, so there is nothing to interrupt.
            let _ = kicked.shutdown(std::net::Shutdown::Both);
        });
        Ok(Self { address, socket, kick })
    }

    /// The outcome of an attempt that was answered.
    fn finish(self) -> io::Result<TcpStream> {
        let Self { socket, kick, .. } = self;
        drop(kick);
        if let Some(error) = socket.take_error()? {
            return Err(error);
        }
        let socket = Arc::try_unwrap(socket).or_else(|shared| shared.try_clone())?;
        socket.set_nonblocking(false)?;
        let stream = TcpStream::from(socket);
        set_options(&stream)?;
        Ok(stream)
    }
}

/// The options of every TCP connection of the crate, dialled or accepted: `TCP_NODELAY`, keep-alive probes and the user
/// time-out, with the numbers in [`limits`](crate::base::limits).
///
/// # Errors
/// What the system says, for instance when the peer has already gone.
pub fn set_options(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    let probes = TcpKeepalive::new()
        .with_time(TCP_KEEPALIVE_IDLE)
        .with_interval(TCP_KEEPALIVE_INTERVAL)
        .with_retries(TCP_KEEPALIVE_COUNT);
    socket.set_tcp_keepalive(&probes)?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(TCP_USER_TIMEOUT))?;
    Ok(())
}
