//! The only place that connects: look-up and TCP under one deadline, interruptible by the shutdown signal.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{bounded, select};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};

use super::limits::LOOKUPS_AT_ONCE;
use super::shutdown::{Level, Shutdown};
use super::thread::{JoinError, Kick, spawn};

/// How long sent bytes may stay unacknowledged before the system drops the connection.
const USER_TIMEOUT: Duration = Duration::from_secs(60);
/// Silence before the system probes a connection, and between its probes.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// Why no connection came about. Each may be tried again, except [`DialError::Cancelled`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DialError {
    /// The name did not resolve.
    #[error("cannot look up {host}: {source}")]
    LookUp {
        /// The name as given.
        host: String,
        /// What the resolver said.
        source: io::Error,
    },
    /// No address accepted the connection; the error of the last one.
    #[error("cannot connect to {address}: {source}")]
    Connect {
        /// The last address tried.
        address: String,
        /// What the system said.
        source: io::Error,
    },
    /// The deadline passed first.
    #[error("no connection to {address} within {after:.1?}")]
    Timeout {
        /// Host and port as given.
        address: String,
        /// How long it was tried.
        after: Duration,
    },
    /// The shutdown signal came first.
    #[error("cancelled while connecting")]
    Cancelled,
}

/// Connects to `host:port` by `deadline`.
///
/// Blocks in the name look-up (on a thread of its own, because nothing interrupts the resolver) and in `connect`; both end
/// at the deadline and as soon as `shutdown` reaches `level`. Sets `TCP_NODELAY`, keep-alive and the user time-out.
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
    let start = Instant::now();
    let timeout = || DialError::Timeout { address: format!("{host}:{port}"), after: start.elapsed() };
    let mut last = None;
    for address in look_up(host, port, deadline, shutdown, level)? {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(timeout());
        }
        match connect(address, left, shutdown, level) {
            Ok(stream) => return Ok(stream),
            Err(_) if shutdown.level() >= level => return Err(DialError::Cancelled),
            Err(error) if error.kind() == io::ErrorKind::TimedOut => return Err(timeout()),
            Err(source) => last = Some(DialError::Connect { address: address.to_string(), source }),
        }
    }
    Err(last.unwrap_or_else(|| DialError::LookUp {
        host: host.to_owned(),
        source: io::Error::new(io::ErrorKind::NotFound, "the name has no address"),
    }))
}

fn connect(address: SocketAddr, left: Duration, shutdown: &Shutdown, level: Level) -> io::Result<TcpStream> {
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
    let registration = shutdown.on(level, move || {
        // An error means that the socket is not connecting any more, so there is nothing to interrupt.
        let _ = kicked.shutdown(std::net::Shutdown::Both);
    });
    let timeout = Timespec::try_from(left).map_err(io::Error::other)?;
    let ready = rustix::event::poll(&mut [PollFd::new(&*socket, PollFlags::OUT)], Some(&timeout))?;
    drop(registration);
    if shutdown.level() >= level {
        return Err(io::ErrorKind::Interrupted.into());
    }
    if ready == 0 {
        return Err(io::ErrorKind::TimedOut.into());
    }
    if let Some(error) = socket.take_error()? {
        return Err(error);
    }
    let socket = Arc::try_unwrap(socket).or_else(|shared| shared.try_clone())?;
    socket.set_nonblocking(false)?;
    let stream = TcpStream::from(socket);
    set_options(&stream)?;
    Ok(stream)
}

/// The options of every TCP connection of the crate, dialled or accepted.
///
/// # Errors
/// What the system says, for instance when the peer has already gone.
pub fn set_options(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE))?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
    Ok(())
}

/// Counts the look-ups that still run, also those whose caller has given up.
struct Running;

static RUNNING: AtomicUsize = AtomicUsize::new(0);

impl Drop for Running {
    fn drop(&mut self) {
        RUNNING.fetch_sub(1, Ordering::SeqCst);
    }
}

fn look_up(
    host: &str,
    port: u16,
    deadline: Instant,
    shutdown: &Shutdown,
    level: Level,
) -> Result<Vec<SocketAddr>, DialError> {
    if let Ok(ip) = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(ip, port)]);
    }
    let failed = |source| DialError::LookUp { host: host.to_owned(), source };
    let start = Instant::now();
    let running = Running;
    if RUNNING.fetch_add(1, Ordering::SeqCst) >= LOOKUPS_AT_ONCE {
        return Err(failed(io::Error::new(io::ErrorKind::WouldBlock, "too many look-ups hang already")));
    }
    let (tx, rx) = bounded(1);
    let name = host.to_owned();
    let thread = spawn("lookup", Kick::dropped("the resolver's own time-out"), move || {
        let _running = running;
        let found = (name.as_str(), port).to_socket_addrs().map(Iterator::collect::<Vec<_>>);
        // The receiver has gone if the caller gave up, and then nobody wants the answer.
        let _ = tx.send(found);
    });
    let stop = if level == Level::Drain { shutdown.drain_receiver() } else { shutdown.cancel_receiver() };
    let left = deadline.saturating_duration_since(Instant::now());
    let outcome = select! {
        recv(rx) -> found => Some(found),
        recv(stop) -> _ => return give_up(thread, DialError::Cancelled),
        default(left) => None,
    };
    match outcome {
        None => give_up(thread, DialError::Timeout { address: format!("{host}:{port}"), after: start.elapsed() }),
        Some(found) => {
            if let Err(JoinError::Late(thread)) = thread.join_by(deadline) {
                thread.abandon("its answer has arrived, only its end is late");
            }
            found.unwrap_or_else(|_| Err(io::Error::other("the look-up thread panicked"))).map_err(failed)
        }
    }
}

fn give_up<T>(thread: super::thread::Thread<()>, error: DialError) -> Result<T, DialError> {
    if let Err(JoinError::Late(thread)) = thread.join_by(Instant::now()) {
        thread.abandon("a name look-up cannot be interrupted");
    }
    Err(error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    fn far() -> Instant {
        Instant::now() + Duration::from_secs(30)
    }

    #[test]
    fn it_connects_by_address_and_by_name() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        for host in ["127.0.0.1", "localhost"] {
            let stream = dial(host, port, far(), &Shutdown::new(), Level::Drain).unwrap();
            assert!(stream.nodelay().unwrap());
        }
    }

    #[test]
    fn a_refused_connection_and_an_unknown_name_say_which() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let refused = dial("127.0.0.1", port, far(), &Shutdown::new(), Level::Drain).unwrap_err();
        assert!(refused.to_string().starts_with(&format!("cannot connect to 127.0.0.1:{port}")), "{refused}");
        let unknown = dial("no-such-host.invalid", 1, far(), &Shutdown::new(), Level::Drain).unwrap_err();
        assert!(unknown.to_string().starts_with("cannot look up no-such-host.invalid"), "{unknown}");
    }

    /// A listener whose backlog is full, so that a further `connect` hangs.
    fn silent_listener() -> (Socket, Vec<Socket>, SocketAddr) {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).unwrap();
        listener.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
        listener.listen(0).unwrap();
        let address = listener.local_addr().unwrap().as_socket().unwrap();
        let mut fillers = Vec::new();
        loop {
            let filler = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).unwrap();
            if filler.connect_timeout(&address.into(), Duration::from_millis(200)).is_err() {
                return (listener, fillers, address);
            }
            fillers.push(filler);
        }
    }

    #[test]
    fn a_silent_peer_ends_at_the_deadline() {
        let (_listener, _fillers, address) = silent_listener();
        let deadline = Instant::now() + Duration::from_millis(100);
        let error = dial("127.0.0.1", address.port(), deadline, &Shutdown::new(), Level::Drain).unwrap_err();
        assert!(matches!(error, DialError::Timeout { .. }), "{error}");
    }

    #[test]
    fn the_signal_interrupts_a_connect_that_hangs() {
        let (_listener, _fillers, address) = silent_listener();
        let shutdown = Shutdown::new();
        let dialling = shutdown.clone();
        let thread = spawn("t-dial", Kick::dropped("shutdown"), move || {
            dial("127.0.0.1", address.port(), far(), &dialling, Level::Cancel)
        });
        shutdown.drain();
        let Err(JoinError::Late(thread)) = thread.join_by(Instant::now() + Duration::from_millis(50)) else {
            panic!("draining must not interrupt a dial that ends at cancel");
        };
        shutdown.cancel();
        let outcome = thread.join_by(Instant::now() + Duration::from_secs(10)).unwrap();
        assert!(matches!(outcome, Err(DialError::Cancelled)), "{outcome:?}");
    }
}
