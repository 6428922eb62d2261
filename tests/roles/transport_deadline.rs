//! One deadline over every step of a dial, and a stop that frees each at once. The look-up, which cannot be made to hang from
//! outside, has its test in `net::dial`.

use crate::testkit::threads::NoThreads;
use crate::testkit::transport as kit;
use crate::testkit::wait::far;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::time::{Duration, Instant};

use kit::{BlackHole, background, join, raw_server, read_head};
use phalanx::base::shutdown::{Level, Shutdown};
use phalanx::base::thread::{JoinError, Thread};
use phalanx::transport::ws::WsDialer;
use phalanx::transport::{DialRequest, Dialer, Proxy, SocketLimits, TransportError};

/// A step in which the dial hangs, because the peer says nothing.
struct Step {
    name: &'static str,
    dialer: WsDialer,
    url: String,
    /// Whom the time-out names.
    culprit: String,
    /// Ends when the dialer does; gives the number of bytes that came after those that were answered.
    peer: Option<Thread<usize>>,
    _hole: Option<BlackHole>,
}

/// Takes one connection, answers what it asks of a proxy if it is one, and then only listens.
fn silent(listener: TcpListener, proxy: bool) -> Thread<usize> {
    background("t-silent", move || {
        let (mut stream, _) = listener.accept().unwrap();
        if proxy {
            read_head(&mut stream);
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
        }
        let mut heard = 0;
        let mut chunk = [0; 1024];
        // A reset is as good an end as any.
        while let Ok(n @ 1..) = stream.read(&mut chunk) {
            heard += n;
        }
        heard
    })
}

fn through(proxy: &str) -> WsDialer {
    WsDialer::default().through(Proxy::parse(proxy).unwrap())
}

fn steps() -> Vec<Step> {
    let mut steps = Vec::new();
    for proxied in [false, true] {
        let hole = BlackHole::new();
        let address = hole.address.to_string();
        steps.push(Step {
            name: "connect",
            dialer: if proxied { through(&format!("http://{address}")) } else { WsDialer::default() },
            url: if proxied { "ws://far.example".to_owned() } else { format!("ws://{address}") },
            culprit: if proxied { format!("proxy http://{address}") } else { address },
            peer: None,
            _hole: Some(hole),
        });
    }
    let (listener, proxy) = raw_server("http");
    steps.push(Step {
        name: "proxy's answer",
        dialer: through(&proxy),
        url: "wss://far.example".to_owned(),
        culprit: format!("proxy {proxy}"),
        peer: Some(silent(listener, false)),
        _hole: None,
    });
    for (name, scheme) in [("tls", "wss"), ("upgrade", "ws")] {
        let (listener, url) = raw_server(scheme);
        let culprit = url.split_once("//").unwrap().1.to_owned();
        let peer = Some(silent(listener, false));
        steps.push(Step { name, dialer: WsDialer::default(), url, culprit, peer, _hole: None });
        let (listener, proxy) = raw_server("http");
        steps.push(Step {
            name,
            dialer: through(&proxy),
            url: format!("{scheme}://far.example"),
            culprit: "far.example".to_owned(),
            peer: Some(silent(listener, true)),
            _hole: None,
        });
    }
    assert_eq!(steps.len(), 7);
    steps
}

fn dial(dialer: &WsDialer, url: &str, deadline: Instant, shutdown: &Shutdown) -> TransportError {
    let request = DialRequest { url, headers: &[], limits: SocketLimits::default(), deadline };
    dialer.dial(&request, shutdown, Level::Drain).unwrap_err()
}

/// What the silent peer heard shows that the dial had come to the step it was to hang in.
fn check_peer(name: &str, peer: Option<Thread<usize>>) {
    if let Some(peer) = peer {
        assert!(join(peer) > 50, "{name}: the dial did not get that far");
    }
}

#[test]
fn the_deadline_ends_every_step() {
    let _threads = NoThreads::expected();
    for Step { name, dialer, url, culprit, peer, _hole } in steps() {
        let start = Instant::now();
        let error = dial(&dialer, &url, start + Duration::from_millis(300), &Shutdown::new());
        let took = start.elapsed();
        assert!(error.is_timeout() && error.is_retryable(), "{name}, {culprit}: {error}");
        assert!(error.to_string().contains(&format!("{culprit} ")), "{name}: {error}");
        assert!((Duration::from_millis(300)..Duration::from_secs(3)).contains(&took), "{name}, {culprit}: {took:?}");
        check_peer(name, peer);
    }
}

#[test]
fn a_stop_ends_every_step_at_once() {
    let _threads = NoThreads::expected();
    for Step { name, dialer, url, culprit, peer, _hole } in steps() {
        let shutdown = Shutdown::new();
        let stop = shutdown.clone();
        let dialling = background("t-dial", move || dial(&dialer, &url, far(), &shutdown));
        let Err(JoinError::Late(dialling)) = dialling.join_by(Instant::now() + Duration::from_millis(100)) else {
            panic!("{name}, {culprit}: it did not hang");
        };
        stop.drain();
        let error = dialling.join_by(Instant::now() + Duration::from_secs(3)).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(error.is_stopped(), "{name}, {culprit}: {error}");
        check_peer(name, peer);
    }
}
