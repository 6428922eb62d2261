//! What a server lets through of connections whose peers it does not know yet, and of messages that do not end.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, bounded};
use phalanx::base::stop::Stopping;
use phalanx::base::timer::Timer;
use phalanx::link::server::{PlaceCounts, Server, ServerConfig, ServerEvent, StrangerLimits};
use phalanx::link::{Full, Outgoing, SessionHandle};
use phalanx::transport::CLOSE_DRAIN_TIME;
use phalanx::transport::ws::WsListener;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::testkit::transport::{REQUEST, frame, raw_client, read_frame, read_head};
use crate::testkit::wait::{LONG, until};

struct Fixture {
    server: Option<Server>,
    timer: Option<Timer>,
    address: std::net::SocketAddr,
    handles: Receiver<SessionHandle>,
    texts: Receiver<usize>,
}

impl Fixture {
    fn start(change: impl FnOnce(&mut ServerConfig)) -> Self {
        let listener = WsListener::bind("127.0.0.1:0", None).unwrap();
        let address = listener.local_addr();
        let timer = Timer::start();
        let mut config = ServerConfig::new("tst");
        config.strangers = Some(StrangerLimits::default());
        change(&mut config);
        let (opened, handles) = bounded(100);
        let (said, texts) = bounded(100);
        let sink = Arc::new(move |event| match event {
            ServerEvent::Opened { handle, .. } => opened.send(handle).unwrap(),
            ServerEvent::Text { text, .. } => said.send(text.len()).unwrap(),
            ServerEvent::Closed { .. } => {}
        });
        let server = Server::start(config, Box::new(listener), timer.handle(), Arc::new(|_| Ok(())), sink);
        Self { server: Some(server), timer: Some(timer), address, handles, texts }
    }

    fn connect(&self) -> (TcpStream, SessionHandle) {
        let mut client = raw_client(self.address);
        client.write_all(REQUEST.as_bytes()).unwrap();
        assert!(read_head(&mut client).starts_with("HTTP/1.1 101 "));
        (client, self.handles.recv_timeout(LONG).unwrap())
    }

    fn counts(&self) -> PlaceCounts {
        self.server.as_ref().unwrap().places().counts()
    }

    fn refused(&self, why: &str) -> u64 {
        self.counts().refused.iter().filter(|(reason, _)| reason.as_str() == why).map(|(_, count)| count).sum()
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        drop(self.server.take());
        let (timer, mut stopping) = (self.timer.take().unwrap(), Stopping::alone());
        stopping.step("timer", LONG, |step| timer.stop_in(step));
    }
}

/// The beginning of a text of so many bytes, up to `sent` of them.
fn begun(bytes: usize, sent: usize) -> Vec<u8> {
    let mut frame = vec![0x81, 0x80 | 127];
    frame.extend_from_slice(&(bytes as u64).to_be_bytes());
    frame.extend_from_slice(&[0; 4]);
    frame.extend(vec![b'x'; sent]);
    frame
}

/// The code of the Close that comes next.
fn close_code(client: &mut TcpStream) -> u16 {
    let (first, payload) = read_frame(client);
    assert_eq!(first, 0x88, "{}", String::from_utf8_lossy(&payload));
    u16::from_be_bytes([payload[0], payload[1]])
}

#[test]
fn what_is_large_behind_a_first_message_waits_until_the_peer_is_known() {
    let fixture = Fixture::start(|_| {});
    let (mut client, handle) = fixture.connect();
    client.write_all(&frame(0x81, true, b"password")).unwrap();
    client.write_all(&begun(100_000, 100_000)).unwrap();
    assert_eq!(fixture.texts.recv_timeout(LONG).unwrap(), 8);
    assert!(!handle.is_known() && fixture.counts().strangers == 1);
    // Nothing that comes is passed on until this.
    assert!(fixture.texts.is_empty());
    handle.known();
    assert_eq!(fixture.texts.recv_timeout(LONG).unwrap(), 100_000);
    assert!(handle.is_known() && fixture.counts().strangers == 0 && fixture.counts().taken == 1);
}

#[test]
fn a_first_message_over_four_kibibytes_is_closed_with_1009() {
    let fixture = Fixture::start(|_| {});
    let (mut client, _handle) = fixture.connect();
    client.write_all(&begun(4097, 0)).unwrap();
    assert_eq!(close_code(&mut client), 1009);
    let (mut other, _handle) = fixture.connect();
    other.write_all(&begun(4096, 4096)).unwrap();
    assert_eq!(fixture.texts.recv_timeout(LONG).unwrap(), 4096);
}

#[test]
fn who_is_not_known_in_time_is_closed_with_1008_and_counted() {
    let fixture = Fixture::start(|config| {
        config.strangers = Some(StrangerLimits { time: Duration::from_millis(50), ..StrangerLimits::default() });
    });
    let (mut client, _handle) = fixture.connect();
    assert_eq!(close_code(&mut client), 1008);
    assert_eq!(fixture.refused("late"), 1);
    // The answer to it ends the connection.
    client.write_all(&frame(0x88, true, &1008_u16.to_be_bytes())).unwrap();
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
    until("its place is free", || fixture.counts().taken == 0);
}

#[test]
fn the_outbox_of_a_stranger_is_small_until_it_is_known() {
    let fixture = Fixture::start(|_| {});
    let (_client, handle) = fixture.connect();
    let large = || Outgoing::once("x".repeat(65 << 10));
    assert!(matches!(handle.send(large()), Err(Full::Bound { .. })));
    handle.known();
    handle.send(large()).unwrap();
}

#[test]
fn the_oldest_stranger_is_closed_for_a_new_one_and_an_address_over_its_share_is_told_429() {
    let fixture = Fixture::start(|config| (config.places.strangers, config.places.address) = (2, 2));
    let (_known, handle) = fixture.connect();
    handle.known();
    let (_one, _handle_one) = fixture.connect();
    let (_two, _handle_two) = fixture.connect();
    let mut refused = raw_client(fixture.address);
    refused.write_all(REQUEST.as_bytes()).unwrap();
    let head = read_head(&mut refused);
    assert!(head.starts_with("HTTP/1.1 429 ") && head.contains("Retry-After: 1\r\n"), "{head}");
    assert_eq!(fixture.refused("address"), 1);

    let fixture = Fixture::start(|config| (config.places.strangers, config.places.address) = (1, 2));
    let (mut one, _handle_one) = fixture.connect();
    let (_two, handle_two) = fixture.connect();
    assert!(!matches!(one.read(&mut [0]), Ok(1..)), "it is closed");
    handle_two.known();
    let (_three, handle_three) = fixture.connect();
    assert!(handle_two.is_connected() && !handle_three.is_known());
    assert_eq!(fixture.refused("oldest_stranger"), 1);
}

#[test]
fn the_oldest_message_that_does_not_end_is_closed_with_1013_when_there_is_no_memory_for_another() {
    let fixture = Fixture::start(|config| {
        config.strangers = None;
        config.receiving_bytes = 1 << 20;
    });
    let (mut stuck, _handle) = fixture.connect();
    stuck.write_all(&begun(900 << 10, 800 << 10)).unwrap();
    let (mut honest, _handle) = fixture.connect();
    for _ in 0..3 {
        honest.write_all(&begun(900 << 10, 900 << 10)).unwrap();
        assert_eq!(fixture.texts.recv_timeout(LONG).unwrap(), 900 << 10);
    }
    until("it is counted", || fixture.refused("memory") == 1);
    assert_eq!(close_code(&mut stuck), 1013);
    assert_eq!(stuck.read(&mut [0]).unwrap(), 0, "its unread bytes reset nothing");
}

/// Waits until one of two is told something; whether it is the first.
fn is_closed(first: &TcpStream, second: &TcpStream) -> bool {
    let mut both = [first, second].map(|client| PollFd::new(client, PollFlags::IN));
    let limit = Timespec::try_from(LONG).unwrap();
    assert!(poll(&mut both, Some(&limit)).unwrap() > 0, "one of them is closed");
    !both[0].revents().is_empty()
}

/// Connections crowded out by the next one while they still send, as many as this.
const CROWDED: usize = 200;

#[test]
fn who_still_sends_when_it_is_closed_reads_why_and_no_reset_overtakes_it() {
    for threaded in [0, 1000] {
        let fixture = Fixture::start(|config| {
            config.strangers = None;
            config.threaded = threaded;
            config.receiving_bytes = 1 << 20;
            (config.places.total, config.places.address) = (1000, 1000);
        });
        let part = vec![b'x'; 50 << 10];
        let mut closed = Vec::new();
        let mut one = fixture.connect();
        one.0.write_all(&begun(900 << 10, 700 << 10)).unwrap();
        let mut tries = 0;
        while closed.len() < CROWDED {
            tries += 1;
            assert!(tries <= 5 * CROWDED, "this machine was in time for {} of {tries}", closed.len());
            let mut other = fixture.connect();
            let crowds = Instant::now();
            other.0.write_all(&begun(900 << 10, 700 << 10)).unwrap();
            // There is memory for one of them; what is read first is the older. Once its Close is there, nothing that
            // it sends is wanted any more.
            if is_closed(&other.0, &one.0) {
                std::mem::swap(&mut one, &mut other);
            }
            let (mut client, handle) = std::mem::replace(&mut one, other);
            let sent = client.write_all(&part).and_then(|()| client.write_all(&part));
            // A busy machine may be slower than what it has to be read.
            if crowds.elapsed() < CLOSE_DRAIN_TIME / 2 {
                sent.unwrap();
                assert_eq!(close_code(&mut client), 1013);
                client.write_all(&frame(0x88, true, &1013_u16.to_be_bytes())).unwrap();
                closed.push((client, handle));
            }
        }
        for (client, _) in &mut closed {
            assert_eq!(client.read(&mut [0]).unwrap(), 0, "an end without a reset");
        }
    }
}
