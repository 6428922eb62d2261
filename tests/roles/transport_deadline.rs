//! One deadline over every step of a dial, and a stop that frees each at once. The look-up, which cannot be made to
//! hang from outside, has its test in `net::dial`.

use crate::testkit::threads::NoThreads;
use crate::testkit::transport as kit;
use crate::testkit::wait::far;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, bounded};
use kit::{BlackHole, background, join, raw_server, read_head};
use phalanx::base::shutdown::{Level, Shutdown};
use phalanx::base::thread::{JoinError, Thread};
use phalanx::transport::ws::WsDialer;
use phalanx::transport::{DialRequest, Dialer, Proxy, SocketLimits, TransportError};

/// Bytes of a client's part of a step that show that the dial has come to it: a TLS hello, or the head of a request.
const REACHED_BYTES: usize = 50;

/// A step in which the dial hangs, because the peer says nothing.
struct Step {
    name: &'static str,
    dialer: WsDialer,
    url: String,
    /// Whom the time-out names.
    culprit: String,
    /// None where the peer does not even accept.
    peer: Option<Peer>,
    _hole: Option<BlackHole>,
}

struct Peer {
    /// Ends when the dialer does.
    thread: Thread<()>,
    /// A message once the dial has come to the step that it is to hang in.
    reached: Receiver<()>,
}

/// Takes one connection, answers what it asks of a proxy if it is one, and then only listens.
fn silent(listener: TcpListener, proxy: bool) -> Peer {
    let (reach, reached) = bounded(1);
    let thread = background("t-silent", move || {
        let (mut stream, _) = listener.accept().unwrap();
        if proxy {
            read_head(&mut stream);
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
        }
        let mut received = 0;
        let mut chunk = [0; 1024];
        // A reset is as good an end as any.
        while let Ok(n @ 1..) = stream.read(&mut chunk) {
            received += n;
            if received > REACHED_BYTES {
                // Once is enough.
                let _ = reach.try_send(());
            }
        }
    });
    Peer { thread, reached }
}

fn through(proxy: &str) -> WsDialer {
    WsDialer::default().through(Proxy::parse(proxy).unwrap())
}

const STEPS: usize = 7;

/// One of the steps, with a peer of its own.
fn step(number: usize) -> Step {
    let tunnelled = |name, scheme: &str| {
        let (listener, proxy) = raw_server("http");
        let culprit = "far.example".to_owned();
        let url = format!("{scheme}://{culprit}");
        Step { name, dialer: through(&proxy), url, culprit, peer: Some(silent(listener, true)), _hole: None }
    };
    let direct = |name, scheme| {
        let (listener, url) = raw_server(scheme);
        let culprit = url.split_once("//").unwrap().1.to_owned();
        Step { name, dialer: WsDialer::default(), url, culprit, peer: Some(silent(listener, false)), _hole: None }
    };
    match number {
        0 | 1 => {
            let hole = BlackHole::new();
            let address = hole.address.to_string();
            let (dialer, url, culprit) = match number {
                0 => (WsDialer::default(), format!("ws://{address}"), address),
                _ => {
                    let proxy = format!("http://{address}");
                    (through(&proxy), "ws://far.example".to_owned(), format!("proxy {proxy}"))
                }
            };
            Step { name: "connect", dialer, url, culprit, peer: None, _hole: Some(hole) }
        }
        2 => {
            let (listener, proxy) = raw_server("http");
            Step {
                name: "proxy's answer",
                dialer: through(&proxy),
                url: "wss://far.example".to_owned(),
                culprit: format!("proxy {proxy}"),
                peer: Some(silent(listener, false)),
                _hole: None,
            }
        }
        3 => direct("tls", "wss"),
        4 => direct("upgrade", "ws"),
        5 => tunnelled("tls", "wss"),
        6 => tunnelled("upgrade", "ws"),
        _ => unreachable!("there are {STEPS} steps"),
    }
}

fn dial(dialer: &WsDialer, url: &str, deadline: Instant, shutdown: &Shutdown) -> TransportError {
    let request = DialRequest { url, headers: &[], limits: SocketLimits::default(), deadline };
    dialer.dial(&request, shutdown, Level::Drain).unwrap_err()
}

#[test]
fn the_deadline_ends_every_step() {
    let _threads = NoThreads::expected();
    for number in 0..STEPS {
        // A busy machine may not come to the step within the first of these.
        let times = [300, 3_000, 30_000].map(Duration::from_millis);
        let in_step = times.into_iter().any(|time| {
            let Step { name, dialer, url, culprit, peer, _hole } = step(number);
            let deadline = Instant::now() + time;
            let error = dial(&dialer, &url, deadline, &Shutdown::new());
            assert!(Instant::now() >= deadline, "{name}, {culprit}: {error}");
            assert!(error.is_timeout() && error.is_retryable(), "{name}, {culprit}: {error}");
            assert!(error.to_string().contains(&format!("{culprit} ")), "{name}: {error}");
            peer.is_none_or(|Peer { thread, reached }| {
                join(thread);
                reached.try_recv().is_ok()
            })
        });
        assert!(in_step, "the dial never got as far as step {number}");
    }
}

#[test]
fn a_stop_ends_every_step_at_once() {
    let _threads = NoThreads::expected();
    for number in 0..STEPS {
        let Step { name, dialer, url, culprit, peer, _hole } = step(number);
        let shutdown = Shutdown::new();
        let stop = shutdown.clone();
        let dialling = background("t-dial", move || dial(&dialer, &url, far(), &shutdown));
        if let Some(Peer { reached, .. }) = &peer {
            reached.recv_deadline(far()).unwrap_or_else(|_| panic!("{name}: the dial did not get that far"));
        }
        let Err(JoinError::Late(dialling)) = dialling.join_by(Instant::now() + Duration::from_millis(50)) else {
            panic!("{name}, {culprit}: it did not hang");
        };
        stop.drain();
        // Half of the time that its own deadline has left: only the stop ends it that soon.
        let error = dialling.join_by(Instant::now() + Duration::from_secs(30));
        let error = error.unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(error.is_stopped(), "{name}, {culprit}: {error}");
        if let Some(Peer { thread, .. }) = peer {
            join(thread);
        }
    }
}
