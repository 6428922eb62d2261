use std::io;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use crossbeam_channel::bounded;
use rustix::io::Errno;
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::look_up::look_up_by;
use super::*;
use crate::base::limits::{ADDRESSES_TRIED, CONNECT_STAGGER};
use crate::base::thread::{JoinError, Kick, spawn};

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
