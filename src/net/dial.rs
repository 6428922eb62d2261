//! The only place that connects: look-up and TCP under one deadline, interruptible by the shutdown signal.
//!
//! A name with several addresses is tried as in RFC 8305: the families in turn, the next address beside the ones that
//! do not answer, and the first connection wins.
//!
//! Owner of a thread `lookup`: the call that dials. Blocks in: the system's resolver. Kick: none, so it is left behind
//! when the call ends before it. Ends: with the resolver's own time-out.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{bounded, select};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};

use crate::base::limits::{
    ADDRESSES_TRIED, CONNECT_STAGGER, LOOKUPS_AT_ONCE, TCP_KEEPALIVE_COUNT, TCP_KEEPALIVE_IDLE, TCP_KEEPALIVE_INTERVAL,
    TCP_USER_TIMEOUT,
};
use crate::base::shutdown::{KickRegistration, Level, Shutdown};
use crate::base::thread::{JoinError, Kick, spawn};
use crate::base::waits::waiting;
use crate::net::address;
use crate::net::reach::Reach;

/// Why no connection came about. Each may be tried again, except [`DialError::Cancelled`] and
/// [`DialError::OutOfReach`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DialError {
    /// The name did not resolve.
    #[error("cannot look up {host}: {source}")]
    LookUp {
        /// The name as given.
        host: String,
        /// The error of the resolver.
        source: io::Error,
    },
    /// No address accepted the connection.
    #[error("cannot connect to {}", listed(failures))]
    Connect {
        /// Each address and its error, in the order of the answers.
        failures: Vec<(String, io::Error)>,
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
    /// The host has no address that may be dialled. The text names none, because who asks may not know them.
    #[error(
        "jobs may not reach {host}: they reach global unicast addresses, and what the operator opens by --reach CIDR"
    )]
    OutOfReach {
        /// The host as given.
        host: String,
    },
}

fn listed(failures: &[(String, io::Error)]) -> String {
    let each: Vec<_> = failures.iter().map(|(address, error)| format!("{address}: {error}")).collect();
    each.join(", nor to ")
}

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

/// The two families in turn, each in the resolver's order, so that a family that is cut off costs one stagger.
fn in_turn(addresses: &[SocketAddr]) -> Vec<SocketAddr> {
    let first_family = addresses.first().map(SocketAddr::is_ipv6);
    let (first, second): (Vec<_>, Vec<_>) = addresses.iter().partition(|a| Some(a.is_ipv6()) == first_family);
    let pairs = (0..addresses.len()).flat_map(|n| [first.get(n), second.get(n)]);
    pairs.flatten().copied().take(ADDRESSES_TRIED).collect()
}

/// Connects to whichever of the addresses is first to answer; `None` at the deadline.
fn connect(
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

/// Counts the look-ups that still run, also those whose caller has given up.
struct LookUpCount;

static RUNNING: AtomicUsize = AtomicUsize::new(0);

impl Drop for LookUpCount {
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
    if let Ok(ip) = address::without_brackets(host).parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(ip, port)]);
    }
    let name = host.to_owned();
    let resolve = move || (name.as_str(), port).to_socket_addrs().map(Iterator::collect);
    look_up_by(resolve, host, port, deadline, shutdown, level)
}

/// `resolve` cannot be interrupted, so it runs on a thread that is left behind if need be.
fn look_up_by(
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
    let thread = spawn("lookup", Kick::dropped("the resolver's own time-out"), move || {
        let (_running, _waiting) = (running, waiting("the system's resolver", None));
        // The receiver has gone if the caller gave up, and then nobody wants the answer.
        let _ = tx.send(resolve());
    });
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

fn give_up<T>(thread: crate::base::thread::Thread<()>, error: DialError) -> Result<T, DialError> {
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

    fn refusing_address() -> SocketAddr {
        TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
    }

    #[test]
    fn every_connection_has_its_options() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let stream = dial("127.0.0.1", port, far(), &Shutdown::new(), Level::Drain).unwrap();
        let socket = SockRef::from(&stream);
        assert!(socket.tcp_nodelay().unwrap() && socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), Duration::from_secs(30));
        assert_eq!(socket.tcp_keepalive_interval().unwrap(), Duration::from_secs(10));
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), 3);
        #[cfg(target_os = "linux")]
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(Duration::from_secs(60)));
        assert!(!socket.nonblocking().unwrap());
    }

    #[test]
    fn what_is_out_of_reach_is_not_dialled_however_it_is_written() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (closed, open) = (Reach::default(), Reach::Global(vec!["127.0.0.0/8".parse().unwrap()]));
        // Zero is this host too, which is why it is judged by its own network.
        for (host, may_open) in [
            ("127.0.0.1", true),
            ("localhost", true),
            ("2130706433", true),
            ("0x7f.1", true),
            ("0177.0.0.1", true),
            ("[::ffff:127.0.0.1]", true),
            ("0.0.0.0", false),
            ("0", false),
            ("[::]", false),
        ] {
            let dial = |reach| dial_within(reach, host, port, far(), &Shutdown::new(), Level::Drain);
            let error = dial(&closed).unwrap_err();
            assert!(matches!(error, DialError::OutOfReach { .. }), "{host}: {error}");
            assert!(error.to_string().starts_with(&format!("jobs may not reach {host}: ")), "{error}");
            let check = |reach| check_reach(reach, host, far(), &Shutdown::new(), Level::Drain);
            assert!(matches!(check(&closed), Err(DialError::OutOfReach { .. })), "{host}");
            if may_open {
                dial(&open).unwrap();
            } else {
                assert!(dial(&open).is_err(), "{host}");
            }
        }
    }

    #[test]
    fn families_take_turns_and_their_number_is_bounded() {
        let parse = |list: &[&str]| list.iter().map(|a| a.parse().unwrap()).collect::<Vec<SocketAddr>>();
        let found = parse(&["[::1]:1", "[::2]:1", "[::3]:1", "1.0.0.1:1", "[::4]:1"]);
        assert_eq!(in_turn(&found), parse(&["[::1]:1", "1.0.0.1:1", "[::2]:1", "[::3]:1", "[::4]:1"]));
        assert_eq!(in_turn(&found[3..4]), found[3..4]);
        assert_eq!(in_turn(&[]), []);
        assert_eq!(in_turn(&vec![found[0]; 1000]).len(), ADDRESSES_TRIED);
    }

    #[test]
    fn a_silent_address_costs_the_stagger_and_refusing_ones_nothing() {
        let (_listener, _fillers, silent) = silent_listener();
        let live = TcpListener::bind("127.0.0.1:0").unwrap();
        let live_address = live.local_addr().unwrap();
        let time_after = |mut addresses: Vec<SocketAddr>| {
            addresses.push(live_address);
            let start = Instant::now();
            let stream = connect(&addresses, far(), &Shutdown::new(), Level::Drain).unwrap().unwrap();
            assert_eq!(stream.peer_addr().unwrap(), live_address);
            start.elapsed()
        };
        let after_silence = time_after(vec![silent]);
        assert!(after_silence >= CONNECT_STAGGER, "{after_silence:?}");
        // So many that a stagger for each would be far over the deadline.
        time_after(vec![refusing_address(); 1000]);
    }

    #[test]
    fn the_slow_address_may_still_win() {
        let (listener, _fillers, slow) = silent_listener();
        let thread = spawn("t-dial", Kick::dropped("its deadline"), move || {
            connect(&[slow, refusing_address()], far(), &Shutdown::new(), Level::Drain)
        });
        let Err(JoinError::Late(thread)) = thread.join_by(Instant::now() + Duration::from_millis(50)) else {
            panic!("the first address was not silent");
        };
        // Room in the backlog, so that the system's next try of the first address succeeds.
        listener.accept().unwrap();
        let stream = thread.join_by(far()).unwrap().unwrap().unwrap();
        assert_eq!(stream.peer_addr().unwrap(), slow);
    }

    #[test]
    fn several_silent_addresses_end_at_the_deadline_and_by_the_signal() {
        let (_listener, _fillers, silent) = silent_listener();
        let addresses = [silent; 3];
        // All three are under way by then.
        let deadline = Instant::now() + 3 * CONNECT_STAGGER;
        assert!(connect(&addresses, deadline, &Shutdown::new(), Level::Drain).unwrap().is_none());
        assert!(Instant::now() >= deadline);

        let shutdown = Shutdown::new();
        let stop = shutdown.clone();
        let thread = spawn("t-dial", Kick::dropped("shutdown"), move || {
            connect(&addresses, far(), &shutdown, Level::Drain).unwrap_err()
        });
        let Err(JoinError::Late(thread)) = thread.join_by(Instant::now() + 3 * CONNECT_STAGGER) else {
            panic!("it did not wait");
        };
        stop.drain();
        let error = thread.join_by(far()).unwrap();
        assert!(matches!(error, DialError::Cancelled), "{error}");
    }

    #[test]
    fn when_all_addresses_fail_each_is_named() {
        let (first, second) = (refusing_address(), refusing_address());
        let error = connect(&[first, second], far(), &Shutdown::new(), Level::Drain).unwrap_err().to_string();
        let refused = io::Error::from_raw_os_error(Errno::CONNREFUSED.raw_os_error());
        assert_eq!(error, format!("cannot connect to {first}: {refused}, nor to {second}: {refused}"));
    }

    #[test]
    fn a_look_up_that_hangs_ends_at_the_deadline_and_by_the_signal() {
        let look_up = |deadline: Instant, shutdown: &Shutdown| {
            let (release, hang) = bounded::<()>(0);
            let resolve = move || {
                assert!(hang.recv().is_err());
                Ok(Vec::new())
            };
            let outcome = look_up_by(resolve, "slow", 1, deadline, shutdown, Level::Drain);
            drop(release);
            outcome.unwrap_err()
        };
        let error = look_up(Instant::now() + Duration::from_millis(50), &Shutdown::new());
        assert!(error.to_string().starts_with("no connection to slow:1 within"), "{error}");

        let shutdown = Shutdown::new();
        let stop = shutdown.clone();
        let thread = spawn("t-dial", Kick::dropped("shutdown"), move || look_up(far(), &shutdown));
        let Err(JoinError::Late(thread)) = thread.join_by(Instant::now() + Duration::from_millis(50)) else {
            panic!("it did not wait for the look-up");
        };
        stop.drain();
        let error = thread.join_by(far()).unwrap();
        assert!(matches!(error, DialError::Cancelled), "{error}");
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
        let outcome = thread.join_by(far()).unwrap();
        assert!(matches!(outcome, Err(DialError::Cancelled)), "{outcome:?}");
    }
}
