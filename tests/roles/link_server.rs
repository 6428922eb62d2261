//! What a server promises of each of its connections, held over both ways in which it can have them: two threads for
//! each, or one poll thread for all; plain and TLS.

use crate::testkit::transport as kit;
use crate::testkit::wait::{LONG, until};
use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use kit::{Site, background, dial_ws, frame, join, read_frame, read_text, read_text_between_pings};
use phalanx::base::ids::SessionId;
use phalanx::base::rng::Rng;
use phalanx::base::stop::{StopReport, Stopping};
use phalanx::base::thread::Group;
use phalanx::base::timer::Timer;
use phalanx::link::heartbeat::LivenessConfig;
use phalanx::link::server::{HandshakeCheck, Server, ServerConfig, ServerEvent, ServerSink, StrangerLimits};
use phalanx::link::{Outgoing, SessionEnd, SessionHandle};
use phalanx::net::tls::ClientCertificates;
use phalanx::ops::health::Health;
use phalanx::transport::ws::{WsDialer, WsListener};
use phalanx::transport::{Connection, Incoming, IntakeLimits, Listener, Refusal, SocketLimits, TransportError};

/// How a server has its connections.
#[derive(Debug, Clone, Copy)]
struct Way {
    polled: bool,
    tls: bool,
}

/// All four.
fn each_way(test: impl Fn(Way)) {
    for (polled, tls) in [(false, false), (true, false), (false, true), (true, true)] {
        let way = Way { polled, tls };
        println!("{way:?}");
        test(way);
    }
}

/// The two without TLS, for peers that are bytes.
fn each_plain_way(test: impl Fn(Way)) {
    for polled in [false, true] {
        let way = Way { polled, tls: false };
        println!("{way:?}");
        test(way);
    }
}

struct Fixture {
    server: Option<Server>,
    events: Receiver<ServerEvent>,
    url: String,
    dialer: WsDialer,
    timer: Option<Timer>,
    group: Option<Group>,
}

impl Fixture {
    fn new(way: Way) -> Self {
        Self::with(way, |_| {}, None)
    }

    /// The sink, if none is given, passes the events on to the test.
    fn with(way: Way, change: impl FnOnce(&mut ServerConfig), sink: Option<ServerSink>) -> Self {
        Self::checking(way, change, sink, Arc::new(|_| Ok(())))
    }

    fn checking(
        way: Way,
        change: impl FnOnce(&mut ServerConfig),
        sink: Option<ServerSink>,
        check: HandshakeCheck,
    ) -> Self {
        let group = Group::enter();
        let timer = Timer::start();
        let Site { listener, dialer } = Site::new(way.tls);
        let mut config = ServerConfig::new("tst");
        if way.polled {
            config.threaded = 0;
        }
        change(&mut config);
        let (tx, events) = bounded(100_000);
        let sink = sink.unwrap_or_else(|| Arc::new(move |event| drop(tx.send(event))));
        let url = listener.url();
        let server = Server::start(config, Box::new(listener), timer.handle(), check, sink);
        Self { server: Some(server), events, url, dialer, timer: Some(timer), group: Some(group) }
    }

    fn dial(&self) -> Connection {
        dial_ws(&self.dialer, &self.url, &SocketLimits::default()).unwrap()
    }

    /// A client and the server's end of it.
    fn connect(&self) -> (Connection, SessionId, SessionHandle) {
        let client = self.dial();
        let (id, handle) = self.opened();
        (client, id, handle)
    }

    fn raw(&self) -> TcpStream {
        kit::raw_client(self.url.trim_start_matches("ws://").parse().unwrap())
    }

    /// A client that is bytes, after its handshake.
    fn raw_connected(&self) -> (TcpStream, SessionId, SessionHandle) {
        let mut client = self.raw();
        client.write_all(kit::REQUEST.as_bytes()).unwrap();
        assert!(kit::read_head(&mut client).starts_with("HTTP/1.1 101 "));
        let (id, handle) = self.opened();
        (client, id, handle)
    }

    fn next(&self) -> ServerEvent {
        self.events.recv_timeout(LONG).expect("an event")
    }

    fn opened(&self) -> (SessionId, SessionHandle) {
        match self.next() {
            ServerEvent::Opened { id, handle, .. } => (id, handle),
            other => panic!("{other:?}"),
        }
    }

    fn text(&self) -> (SessionId, String) {
        match self.next() {
            ServerEvent::Text { id, text } => (id, text.to_string()),
            other => panic!("{other:?}"),
        }
    }

    fn closed(&self) -> (SessionId, SessionEnd) {
        match self.next() {
            ServerEvent::Closed { id, end } => (id, end),
            other => panic!("{other:?}"),
        }
    }

    fn stop(&mut self) -> StopReport {
        let server = self.server.take().unwrap();
        stop(LONG, |step| server.stop_in(step, "test ends"))
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        drop(self.server.take());
        let timer = self.timer.take().unwrap();
        let report = stop(LONG, |step| timer.stop_in(step));
        let group = self.group.take().unwrap();
        if !std::thread::panicking() {
            assert!(report.is_clean());
            let left: Vec<_> = group.live().into_iter().map(|t| t.name).collect();
            assert!(left.is_empty(), "threads left: {left:?}");
        }
    }
}

fn stop(budget: Duration, work: impl FnOnce(&mut phalanx::base::stop::Step)) -> StopReport {
    let mut stopping = Stopping::alone();
    stopping.step("test", budget, work);
    stopping.finish()
}

fn say(client: &mut Connection, text: &str) {
    client.writer.write(text.into()).unwrap();
    client.writer.flush().unwrap();
}

/// Answers each text with itself.
fn echo() -> ServerSink {
    let handles: Mutex<HashMap<SessionId, SessionHandle>> = Mutex::default();
    Arc::new(move |event| match event {
        ServerEvent::Opened { id, handle, .. } => {
            handles.lock().unwrap().insert(id, handle);
        }
        ServerEvent::Text { id, text } => {
            let handle = handles.lock().unwrap().get(&id).cloned().unwrap();
            handle.send(Outgoing::once(text)).unwrap();
        }
        ServerEvent::Closed { id, .. } => {
            handles.lock().unwrap().remove(&id);
        }
    })
}

#[test]
fn events_of_each_connection_come_in_order_and_sends_arrive_in_order() {
    each_way(|way| {
        let fixture = Fixture::with(way, |_| {}, Some(echo()));
        let clients: Vec<_> = (0..8)
            .map(|client| {
                let mut connection = fixture.dial();
                background("t-client", move || {
                    for n in 0..300 {
                        connection.writer.write(format!("{client} {n}").into()).unwrap();
                        if n % 7 == 0 {
                            connection.writer.flush().unwrap();
                        }
                    }
                    connection.writer.flush().unwrap();
                    for n in 0..300 {
                        assert_eq!(read_text(connection.reader.as_mut()), format!("{client} {n}"));
                    }
                })
            })
            .collect();
        clients.into_iter().for_each(join);
    });
}

#[test]
fn large_messages_go_both_ways_at_once() {
    each_way(|way| {
        let fixture = Fixture::with(way, |_| {}, Some(echo()));
        let Connection { mut reader, mut writer, kick, .. } = fixture.dial();
        let large = "äx".repeat(3 << 20);
        let sent = large.clone();
        let sender = background("t-sender", move || {
            for _ in 0..3 {
                writer.write(sent.clone().into()).unwrap();
                writer.flush().unwrap();
            }
        });
        for _ in 0..3 {
            assert!(read_text(reader.as_mut()) == large);
        }
        join(sender);
        kick.kick();
    });
}

#[test]
fn the_event_of_a_connection_tells_what_it_asked_for_and_from_where() {
    each_way(|way| {
        let fixture = Fixture::new(way);
        let _client = dial_ws(&fixture.dialer, &format!("{}/a?b", fixture.url), &SocketLimits::default()).unwrap();
        match fixture.next() {
            ServerEvent::Opened { request, peer, handle, .. } => {
                assert_eq!(request.path, "/a?b");
                assert!(request.header("user-agent").is_some() && peer.starts_with("127.0.0.1:"), "{peer}");
                assert!(handle.is_connected());
            }
            other => panic!("{other:?}"),
        }
    });
}

#[test]
fn pings_are_answered_before_what_is_queued_and_close_behind_it() {
    each_plain_way(|way| {
        let fixture = Fixture::new(way);
        let (mut client, id, handle) = fixture.raw_connected();
        client
            .write_all(&[frame(0x89, true, b"one"), frame(0x89, true, b"two"), frame(0x81, true, b"x")].concat())
            .unwrap();
        assert_eq!(fixture.text(), (id, "x".to_owned()));
        assert_eq!(read_frame(&mut client), (0x8a, b"one".to_vec()));
        assert_eq!(read_frame(&mut client), (0x8a, b"two".to_vec()));
        for n in 0..200 {
            handle.send(Outgoing::once(n.to_string())).unwrap();
        }
        handle.close(4007, "enough", LONG);
        assert!(handle.send(Outgoing::once("late")).is_err());
        for n in 0..200 {
            assert_eq!(read_frame(&mut client), (0x81, n.to_string().into_bytes()));
        }
        assert_eq!(read_frame(&mut client), (0x88, [&4007u16.to_be_bytes()[..], b"enough"].concat()));
        client.write_all(&frame(0x88, true, &4007u16.to_be_bytes())).unwrap();
        match fixture.closed() {
            (closed, SessionEnd::Closed(info)) => assert_eq!((closed, info.code, info.clean), (id, Some(4007), true)),
            other => panic!("{other:?}"),
        }
        assert_eq!(client.read(&mut [0]).unwrap(), 0, "and then its stream ends");
        assert!(!handle.is_connected());
    });
}

#[test]
fn a_peers_close_is_answered_and_what_it_said_before_counts() {
    each_way(|way| {
        let fixture = Fixture::new(way);
        let (mut client, id, _) = fixture.connect();
        client.writer.write("last".into()).unwrap();
        client.writer.close(3001, "bye").unwrap();
        assert_eq!(fixture.text(), (id, "last".to_owned()));
        match fixture.closed() {
            (_, SessionEnd::Closed(info)) => assert_eq!((info.code, info.reason.as_str()), (Some(3001), "bye")),
            other => panic!("{other:?}"),
        }
        match client.reader.read().unwrap() {
            Incoming::Closed(info) => assert_eq!((info.code, info.clean), (Some(3001), true)),
            other => panic!("{other:?}"),
        }
    });
}

#[test]
fn a_peer_that_just_ends_or_resets_is_noticed() {
    each_plain_way(|way| {
        let fixture = Fixture::new(way);
        let (client, id, _) = fixture.raw_connected();
        drop(client);
        match fixture.closed() {
            (closed, SessionEnd::Closed(info)) => assert!(closed == id && !info.clean, "{info:?}"),
            other => panic!("{other:?}"),
        }
        let (client, id, _) = fixture.raw_connected();
        socket2::SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
        drop(client);
        let (closed, end) = fixture.closed();
        assert_eq!(closed, id);
        assert!(matches!(end, SessionEnd::Broken(TransportError::Io { .. }) | SessionEnd::Closed(_)), "{end:?}");
    });
}

#[test]
fn bad_input_is_answered_with_its_code_and_ends_the_connection() {
    each_plain_way(|way| {
        let fixture = Fixture::with(way, |config| config.socket.message_bytes = 1000, None);
        for (sent, code, text) in [
            (frame(0x81, false, b"unmasked"), 1002, "protocol error"),
            (frame(0x81, true, &[0xff]), 1007, "not utf-8"),
            (frame(0x81, true, &[b'x'; 1001]), 1009, "over the limit of 1000"),
            (frame(0x83, true, b"x"), 1002, "protocol error"),
        ] {
            let (mut client, id, _) = fixture.raw_connected();
            // What comes before and behind must neither be lost nor reset the answer.
            client.write_all(&[frame(0x81, true, b"good"), sent, frame(0x81, true, &[b'y'; 900])].concat()).unwrap();
            assert_eq!(fixture.text(), (id, "good".to_owned()));
            let (first, payload) = read_frame(&mut client);
            assert_eq!((first, &payload[..2]), (0x88, &u16::to_be_bytes(code)[..]));
            assert_eq!(client.read(&mut [0]).unwrap(), 0);
            drop(client);
            match fixture.closed() {
                (_, SessionEnd::Broken(error)) => assert!(error.to_string().contains(text), "{error}"),
                other => panic!("{other:?}"),
            }
        }
    });
}

#[test]
fn who_did_wrong_and_stays_is_closed_a_second_later() {
    each_plain_way(|way| {
        let fixture = Fixture::new(way);
        let (mut client, _, _) = fixture.raw_connected();
        client.write_all(&frame(0x81, false, b"unmasked")).unwrap();
        assert!(matches!(fixture.closed(), (_, SessionEnd::Broken(TransportError::Protocol { .. }))));
    });
}

#[test]
fn a_silent_peer_is_pinged_and_given_up() {
    each_plain_way(|way| {
        let liveness = LivenessConfig {
            ping_after: Duration::from_millis(40),
            dead_after: Duration::from_millis(200),
            stuck_after: LONG,
        };
        let fixture = Fixture::with(way, |config| config.liveness = liveness, None);
        let (mut client, _, _) = fixture.raw_connected();
        let start = Instant::now();
        assert_eq!(read_frame(&mut client), (0x89, Vec::new()));
        let (_, end) = fixture.closed();
        assert!(matches!(end, SessionEnd::Silent), "{end:?}");
        assert!(start.elapsed() >= Duration::from_millis(100), "not before its time");
    });
}

#[test]
fn a_peer_that_answers_pings_lives_on() {
    each_way(|way| {
        let liveness = LivenessConfig {
            ping_after: Duration::from_millis(50),
            dead_after: Duration::from_secs(30),
            stuck_after: LONG,
        };
        let fixture = Fixture::with(way, |config| config.liveness = liveness, None);
        let (mut client, id, _) = fixture.connect();
        for _ in 0..5 {
            assert_eq!(client.reader.read().unwrap(), Incoming::Control, "a ping");
            client.writer.flush().unwrap();
        }
        say(&mut client, "still here");
        assert_eq!(fixture.text(), (id, "still here".to_owned()));
    });
}

#[test]
fn a_peer_that_never_reads_is_given_up_although_it_talks_and_the_others_are_served() {
    each_way(|way| {
        let liveness = LivenessConfig {
            ping_after: Duration::from_millis(100),
            dead_after: LONG,
            stuck_after: Duration::from_millis(300),
        };
        let fixture = Fixture::with(way, |config| config.liveness = liveness, None);
        let (mut deaf, deaf_id, deaf_handle) = fixture.connect();
        let (mut other, other_id, other_handle) = fixture.connect();
        let large = "x".repeat(1 << 20);
        for _ in 0..32 {
            deaf_handle.send(Outgoing::once(large.clone())).unwrap();
        }
        let mut ended = None;
        while ended.is_none() {
            // It may be gone when it talks.
            let _ = deaf.writer.write("noise".into()).and_then(|()| deaf.writer.flush());
            say(&mut other, "hello");
            loop {
                match fixture.next() {
                    ServerEvent::Closed { id, end } => ended = Some((id, end)),
                    ServerEvent::Text { id, .. } if id == other_id => break,
                    _ => {}
                }
            }
            other_handle.send(Outgoing::once("answer")).unwrap();
            // It is asked whether it is alive when a busy machine lets it rest for as long as the deaf one.
            assert_eq!(read_text_between_pings(&mut other), "answer");
        }
        assert!(matches!(ended, Some((id, SessionEnd::Stuck)) if id == deaf_id), "{ended:?}");
    });
}

#[test]
fn a_peer_that_reads_slowly_gets_everything() {
    each_way(|way| {
        let fixture = Fixture::new(way);
        let (mut client, _, handle) = fixture.connect();
        let large = "x".repeat(1 << 20);
        for n in 0..40 {
            handle.send(Outgoing::once(format!("{n} {large}"))).unwrap();
        }
        for n in 0..40 {
            let text = read_text(client.reader.as_mut());
            assert!(text.starts_with(&format!("{n} ")) && text.len() > large.len());
        }
        until("all has left", || handle.unsent() == 0);
    });
}

/// A gate in the role, for one connection.
struct Gated {
    sink: ServerSink,
    opened: Receiver<(SessionId, SessionHandle)>,
    texts: Receiver<(SessionId, String)>,
    /// Lets one text through whose first letter is `g`.
    go: Sender<()>,
}

fn gated() -> Gated {
    let (opened_tx, opened) = bounded(1000);
    let (texts_tx, texts) = bounded(100_000);
    let (go, gate) = bounded::<()>(1000);
    let sink: ServerSink = Arc::new(move |event| match event {
        ServerEvent::Opened { id, handle, .. } => drop(opened_tx.send((id, handle))),
        ServerEvent::Text { id, text } => {
            if text.starts_with('g') {
                // Without a sender the test is over.
                let _ = gate.recv();
            }
            drop(texts_tx.send((id, text.to_string())));
        }
        ServerEvent::Closed { .. } => {}
    });
    Gated { sink, opened, texts, go }
}

#[test]
fn a_role_that_is_slow_for_one_connection_slows_that_one_alone() {
    each_way(|way| {
        let Gated { sink, opened, texts, go } = gated();
        let fixture = Fixture::with(way, |_| {}, Some(sink));
        let slow = fixture.dial();
        let (slow_id, slow_handle) = opened.recv_timeout(LONG).unwrap();
        let mut quick = fixture.dial();
        let (quick_id, _) = opened.recv_timeout(LONG).unwrap();
        let Connection { mut reader, mut writer, kick, .. } = slow;
        // Far more than the server may hold of it: TCP slows it.
        let sender = background("t-sender", move || {
            let filler = "x".repeat(64 << 10);
            for n in 0..1000 {
                writer.write(format!("g{n} {filler}").into()).unwrap();
                writer.flush().unwrap();
            }
        });
        for n in 0..200 {
            say(&mut quick, &n.to_string());
            assert_eq!(texts.recv_timeout(LONG).unwrap(), (quick_id, n.to_string()));
        }
        // It is slow only in what it says.
        slow_handle.send(Outgoing::once("to the slow one")).unwrap();
        assert_eq!(read_text(reader.as_mut()), "to the slow one");
        assert!(!sender.is_finished(), "64 MiB are nowhere in between");
        for n in 0..1000 {
            go.send(()).unwrap();
            let (id, text) = texts.recv_timeout(LONG).unwrap();
            assert!(id == slow_id && text.starts_with(&format!("g{n} ")), "{n}: {}", &text[..10]);
        }
        join(sender);
        kick.kick();
    });
}

#[test]
fn a_peer_is_not_silent_while_its_text_is_being_handled() {
    each_way(|way| {
        let Gated { sink, opened, texts, go } = gated();
        let liveness = LivenessConfig {
            ping_after: Duration::from_millis(20),
            dead_after: Duration::from_millis(100),
            stuck_after: LONG,
        };
        let fixture = Fixture::with(way, |config| config.liveness = liveness, Some(sink));
        let mut client = fixture.dial();
        let (id, handle) = opened.recv_timeout(LONG).unwrap();
        say(&mut client, "g");
        // Read so far, and handled for ten times as long as its peer may be silent.
        let handled = Instant::now() + 10 * liveness.dead_after;
        until("it is handled for long", || Instant::now() > handled);
        assert!(handle.is_connected());
        go.send(()).unwrap();
        assert_eq!(texts.recv_timeout(LONG).unwrap(), (id, "g".to_owned()));
        until("now it is silent", || !handle.is_connected());
    });
}

#[test]
fn a_kick_ends_a_connection_whatever_it_does() {
    each_way(|way| {
        let fixture = Fixture::new(way);
        let (mut client, id, handle) = fixture.connect();
        handle.kick();
        let (closed, end) = fixture.closed();
        assert!(closed == id && matches!(end, SessionEnd::Broken(TransportError::Stopped)), "{end:?}");
        let ended = client.reader.read();
        assert!(matches!(&ended, Ok(Incoming::Closed(info)) if !info.clean) || ended.is_err(), "{ended:?}");
        // One that cannot write.
        let (_client, _, handle) = fixture.connect();
        for _ in 0..32 {
            handle.send(Outgoing::once("x".repeat(1 << 20))).unwrap();
        }
        handle.kick();
        assert!(matches!(fixture.closed(), (_, SessionEnd::Broken(TransportError::Stopped))));
    });
}

#[test]
fn a_close_that_is_not_answered_ends_at_its_time() {
    each_plain_way(|way| {
        let fixture = Fixture::new(way);
        let (mut client, _, handle) = fixture.raw_connected();
        handle.close(4000, "", Duration::from_millis(50));
        assert_eq!(read_frame(&mut client).0, 0x88);
        assert!(matches!(fixture.closed(), (_, SessionEnd::CloseTimeout)));
    });
}

#[test]
fn a_check_that_refuses_is_told_and_other_requests_are_answered_as_http() {
    each_plain_way(|way| {
        let check: HandshakeCheck = Arc::new(|request| match request.path.as_str() {
            "/" => Ok(()),
            _ => Err(Refusal { status: 404, body: "not here".to_owned(), retry_after: None }),
        });
        let fixture = Fixture::checking(way, |_| {}, None, check);
        match dial_ws(&fixture.dialer, &format!("{}/elsewhere", fixture.url), &SocketLimits::default()) {
            Err(TransportError::Refused { status, body, .. }) => assert_eq!((status, body.as_str()), (404, "not here")),
            other => panic!("{other:?}"),
        }
        for (sent, answer) in [
            ("\x16\x03\x01\x02", "HTTP/1.1 400 "),
            ("POST / HTTP/1.1\r\nHost: h\r\n\r\n", "HTTP/1.1 405 "),
            ("GET / HTTP/1.1\r\nHost: h\r\n\r\n", "HTTP/1.1 426 "),
        ] {
            let mut client = fixture.raw();
            client.write_all(sent.as_bytes()).unwrap();
            assert!(kit::read_head(&mut client).starts_with(answer), "{sent:?}");
            client.read_to_end(&mut Vec::new()).unwrap();
        }
        // Byte by byte is as good, and one that is too large is told.
        let mut client = fixture.raw();
        for byte in kit::REQUEST.as_bytes() {
            client.write_all(&[*byte]).unwrap();
        }
        assert!(kit::read_head(&mut client).starts_with("HTTP/1.1 101 "));
        fixture.opened();
        let mut client = fixture.raw();
        client.write_all(format!("GET / HTTP/1.1\r\nHost: h\r\nX: {}", "x".repeat(20_000)).as_bytes()).unwrap();
        assert!(kit::read_head(&mut client).starts_with("HTTP/1.1 431 "));
    });
}

#[test]
fn a_handshake_has_its_time() {
    each_way(|way| {
        let fixture = Fixture::with(way, |config| config.handshake_time = Duration::from_millis(100), None);
        let address = fixture.url.split_once("://").unwrap().1.parse().unwrap();
        let mut silent = kit::raw_client(address);
        let mut slow = kit::raw_client(address);
        slow.write_all(b"GET / HT").unwrap();
        for client in [&mut silent, &mut slow] {
            // The end, or what TLS says of such a request.
            client.read_to_end(&mut Vec::new()).unwrap();
        }
        let (mut client, id, _) = fixture.connect();
        say(&mut client, "x");
        assert_eq!(fixture.text(), (id, "x".to_owned()));
    });
}

#[test]
fn connections_over_the_limit_are_refused_without_end() {
    each_way(|way| {
        let mut fixture = Fixture::with(way, |config| config.places.total = 2, None);
        let clients: Vec<_> = (0..2).map(|_| fixture.connect()).collect();
        for _ in 0..3 {
            match dial_ws(&fixture.dialer, &fixture.url, &SocketLimits::default()) {
                Err(TransportError::Refused { status, body, .. }) => {
                    assert_eq!((status, body.as_str()), (503, "too many connections"));
                }
                other => panic!("{other:?}"),
            }
        }
        let (client, ..) = clients.into_iter().next().unwrap();
        client.kick.kick();
        until("there is room again", || dial_ws(&fixture.dialer, &fixture.url, &SocketLimits::default()).is_ok());
        assert!(fixture.stop().is_clean());
    });
}

#[test]
fn what_accepts_and_what_polls_answers_for_its_life_while_it_is_idle() {
    let (health, way) = (Health::new(), Way { polled: true, tls: false });
    let watched = health.clone();
    let mut fixture = Fixture::with(way, |config| config.health = watched, None);
    let (client, ..) = fixture.connect();
    let asked = health.probe(Instant::now());
    assert!(asked.recv_timeout(LONG).is_err_and(|error| error == RecvTimeoutError::Disconnected));
    let parts: Vec<_> = health.parts(Instant::now()).into_iter().map(|part| part.name).collect();
    assert_eq!(parts, ["accept", "poll", "workers"]);
    // Who wakes it up to ask is no connection.
    assert!(fixture.events.is_empty());
    drop(client);
    fixture.stop();
}

#[test]
fn some_have_threads_and_the_others_are_polled() {
    let way = Way { polled: false, tls: false };
    let mut fixture = Fixture::with(way, |config| config.threaded = 2, Some(echo()));
    let mut clients: Vec<_> = (0..5).map(|_| fixture.dial()).collect();
    for (n, client) in clients.iter_mut().enumerate() {
        say(client, &n.to_string());
        assert_eq!(read_text(client.reader.as_mut()), n.to_string());
    }
    let names: Vec<_> = fixture.group.as_ref().unwrap().live().into_iter().map(|thread| thread.name).collect();
    let count = |part: &str| names.iter().filter(|name| name.starts_with(part)).count();
    assert_eq!([count("tst-rd-"), count("tst-wr-"), count("tst-poll"), count("tst-work-")], [2, 2, 1, 4], "{names:?}");
    let answer = background("t-closers", move || {
        for client in &mut clients {
            match client.reader.read().unwrap() {
                Incoming::Closed(info) => assert_eq!(info.code, Some(1001)),
                other => panic!("{other:?}"),
            }
            // The server may be gone before the end of our stream.
            let _ = client.writer.flush();
        }
    });
    assert!(fixture.stop().is_clean());
    join(answer);
}

#[test]
fn a_stop_sends_what_is_queued_and_closes_with_1001() {
    each_way(|way| {
        let mut fixture = Fixture::new(way);
        let clients: Vec<_> = (0..20).map(|_| fixture.connect()).collect();
        let readers: Vec<_> = clients
            .into_iter()
            .map(|(mut client, _, handle)| {
                for n in 0..50 {
                    handle.send(Outgoing::once(n.to_string())).unwrap();
                }
                background("t-reader", move || {
                    for n in 0..50 {
                        assert_eq!(read_text(client.reader.as_mut()), n.to_string());
                    }
                    match client.reader.read().unwrap() {
                        Incoming::Closed(info) => assert_eq!((info.code, info.clean), (Some(1001), true)),
                        other => panic!("{other:?}"),
                    }
                    // The server may be gone before the end of our stream.
                    let _ = client.writer.flush();
                })
            })
            .collect();
        // One in its handshake holds nobody up.
        let _silent = kit::raw_client(fixture.url.split_once("://").unwrap().1.parse().unwrap());
        assert!(fixture.stop().is_clean());
        readers.into_iter().for_each(join);
        for _ in 0..20 {
            assert!(matches!(fixture.closed(), (_, SessionEnd::Closed(info)) if info.code == Some(1001)));
        }
        assert!(fixture.events.try_recv().is_err());
    });
}

#[test]
fn a_stop_whose_peers_do_not_answer_ends_with_its_budget() {
    each_way(|way| {
        let mut fixture = Fixture::new(way);
        let _clients: Vec<_> = (0..3).map(|_| fixture.connect()).collect();
        let server = fixture.server.take().unwrap();
        let start = Instant::now();
        let report = stop(Duration::from_millis(200), |step| server.stop_in(step, "test ends"));
        assert!(report.stragglers().is_empty() && start.elapsed() < LONG / 2, "{report}");
        for _ in 0..3 {
            let (_, end) = fixture.closed();
            assert!(matches!(end, SessionEnd::CloseTimeout | SessionEnd::Broken(TransportError::Stopped)), "{end:?}");
        }
    });
}

/// The fixture finds a thread that is left.
#[test]
fn dropping_a_server_stops_it_whatever_its_connections_do() {
    each_way(|way| {
        let mut fixture = Fixture::new(way);
        let (mut idle, ..) = fixture.connect();
        let (_deaf, _, handle) = fixture.connect();
        for _ in 0..32 {
            handle.send(Outgoing::once("x".repeat(1 << 20))).unwrap();
        }
        let _silent = kit::raw_client(fixture.url.split_once("://").unwrap().1.parse().unwrap());
        drop(fixture.server.take());
        let ended = idle.reader.read();
        assert!(matches!(&ended, Ok(Incoming::Closed(info)) if !info.clean) || ended.is_err(), "{ended:?}");
        assert!(matches!([fixture.closed().1, fixture.closed().1], [SessionEnd::Broken(_), SessionEnd::Broken(_)]));
    });
}

#[test]
fn a_role_that_panics_costs_that_connection_alone() {
    each_way(|way| {
        let sink: ServerSink = {
            let echo = echo();
            Arc::new(move |event| {
                if matches!(&event, ServerEvent::Text { text, .. } if text.as_str() == "by plan") {
                    panic!("by plan");
                }
                echo(event);
            })
        };
        let fixture = Fixture::with(way, |_| {}, Some(sink));
        let mut other = fixture.dial();
        // More often than there are workers.
        for _ in 0..6 {
            let mut client = fixture.dial();
            say(&mut client, "by plan");
            let ended = client.reader.read();
            assert!(matches!(&ended, Ok(Incoming::Closed(info)) if !info.clean) || ended.is_err(), "{ended:?}");
            say(&mut other, "hello");
            assert_eq!(read_text(other.reader.as_mut()), "hello");
        }
    });
}

/// Peers that do anything at any time: each connection has one beginning and one end, and its texts in order between.
#[test]
fn whatever_peers_do_each_connection_has_one_beginning_its_texts_in_order_and_one_end() {
    let seed = Rng::from_entropy().next_u64();
    println!("seed {seed}");
    each_way(|way| {
        let liveness = LivenessConfig {
            ping_after: Duration::from_millis(5),
            dead_after: Duration::from_secs(20),
            stuck_after: Duration::from_secs(20),
        };
        let mut fixture = Fixture::with(way, |config| config.liveness = liveness, None);
        let clients: Vec<_> = (0..6)
            .map(|client| {
                let (dialer, url) = (fixture.dialer.clone(), fixture.url.clone());
                background("t-client", move || {
                    let mut rng = Rng::new(seed ^ client);
                    for _ in 0..8 {
                        let mut connection = dial_ws(&dialer, &url, &SocketLimits::default()).unwrap();
                        let texts = rng.next_u64() % 40;
                        for n in 0..texts {
                            let text = format!("{n} {}", "x".repeat((rng.next_u64() % 20_000) as usize));
                            connection.writer.write(text.into()).unwrap();
                            if rng.one_in(3) {
                                connection.writer.ping().unwrap();
                            }
                            if rng.one_in(2) && connection.writer.flush().is_err() {
                                break;
                            }
                        }
                        if rng.one_in(2) {
                            // What was not flushed is lost with it.
                            connection.kick.kick();
                        } else {
                            connection.writer.close(1000, "").unwrap();
                            while !matches!(connection.reader.read(), Ok(Incoming::Closed(_)) | Err(_)) {}
                        }
                    }
                })
            })
            .collect();
        let mut open: HashMap<SessionId, (u64, SessionHandle)> = HashMap::new();
        let (mut begun, mut ended) = (0, 0);
        while ended < 6 * 8 {
            match fixture.next() {
                ServerEvent::Opened { id, handle, .. } => {
                    assert!(open.insert(id, (0, handle)).is_none());
                    begun += 1;
                }
                ServerEvent::Text { id, text } => {
                    let (next, handle) = open.get_mut(&id).expect("it is open");
                    assert!(text.starts_with(&format!("{next} ")), "seed {seed}: {}", &text[..10]);
                    *next += 1;
                    // It may be gone.
                    let _ = handle.send(Outgoing::once(text));
                }
                ServerEvent::Closed { id, .. } => {
                    assert!(open.remove(&id).is_some());
                    ended += 1;
                }
            }
        }
        assert_eq!(begun, 6 * 8);
        clients.into_iter().for_each(join);
        assert!(fixture.stop().is_clean());
    });
}

/// As long as nobody knows whose a connection is: a time, and small messages.
#[test]
fn a_stranger_has_small_messages_and_a_time() {
    each_plain_way(|way| {
        let strangers = |time| StrangerLimits { time, intake: IntakeLimits::DEFAULT, outbox_bytes: 1000 };
        let fixture = Fixture::with(way, |config| config.strangers = Some(strangers(2 * LONG)), None);
        let (mut client, id, handle) = fixture.raw_connected();
        let large = vec![b'x'; 50_000];
        client.write_all(&[frame(0x81, true, b"small"), frame(0x81, true, &large)].concat()).unwrap();
        assert_eq!(fixture.text(), (id, "small".to_owned()));
        assert!(handle.send(Outgoing::once("y".repeat(1001))).is_err(), "its outbox is small");
        // Another one is served meanwhile, and then it is this one's turn.
        let (mut other, other_id, _) = fixture.raw_connected();
        other.write_all(&frame(0x81, true, b"hello")).unwrap();
        assert_eq!(fixture.text(), (other_id, "hello".to_owned()));
        handle.known();
        assert_eq!(fixture.text(), (id, "x".repeat(50_000)));
        handle.send(Outgoing::once("y".repeat(1001))).unwrap();
        assert_eq!(read_frame(&mut client).1.len(), 1001);
        // One whose first message is too large, and one that is kicked while it waits.
        let (mut client, _, _) = fixture.raw_connected();
        client.write_all(&frame(0x81, true, &large)).unwrap();
        assert_eq!(read_frame(&mut client).1[..2], 1009u16.to_be_bytes());
        drop(client);
        assert!(matches!(fixture.closed(), (_, SessionEnd::Broken(_))));
        let (mut client, id, handle) = fixture.raw_connected();
        client.write_all(&[frame(0x81, true, b"small"), frame(0x81, true, &large)].concat()).unwrap();
        assert_eq!(fixture.text(), (id, "small".to_owned()));
        handle.kick();
        assert!(matches!(fixture.closed(), (closed, SessionEnd::Broken(_)) if closed == id));

        let fixture = Fixture::with(way, |config| config.strangers = Some(strangers(Duration::from_millis(50))), None);
        let (mut client, _, _) = fixture.raw_connected();
        assert_eq!(read_frame(&mut client).1[..2], 1008u16.to_be_bytes());
    });
}

/// A new stranger takes the place of the oldest one, and nobody who is known goes for it.
#[test]
fn the_oldest_stranger_goes_for_a_new_one() {
    each_plain_way(|way| {
        let limits = StrangerLimits { time: 2 * LONG, intake: IntakeLimits::DEFAULT, outbox_bytes: 1000 };
        let change = |config: &mut ServerConfig| {
            config.strangers = Some(limits);
            (config.places.strangers, config.places.address) = (2, 3);
        };
        let fixture = Fixture::with(way, change, None);
        let (_known, _, handle) = fixture.raw_connected();
        handle.known();
        let (_first, first_id, _) = fixture.raw_connected();
        let _second = fixture.raw_connected();
        let _third = fixture.raw();
        match fixture.next() {
            ServerEvent::Closed { id, .. } => assert_eq!(id, first_id),
            other => panic!("{other:?}"),
        }
        assert!(handle.is_connected());
    });
}

#[test]
fn a_client_without_the_certificate_that_is_asked_for_is_refused() {
    for polled in [false, true] {
        let certificates = kit::Certificates::new();
        let tls = certificates.server_for_clients(ClientCertificates::Required);
        let listener = WsListener::bind("127.0.0.1:0", Some(tls)).unwrap();
        let url = listener.url();
        let timer = Timer::start();
        let mut config = ServerConfig::new("tst");
        config.threaded = if polled { 0 } else { 64 };
        let server = Server::start(config, Box::new(listener), timer.handle(), Arc::new(|_| Ok(())), echo());
        let mut known = dial_ws(&WsDialer::new(certificates.known_client()), &url, &SocketLimits::default()).unwrap();
        say(&mut known, "hello");
        assert_eq!(read_text(known.reader.as_mut()), "hello");
        // With TLS 1.3 the client hears of it after its own handshake.
        let refused = dial_ws(&WsDialer::new(certificates.client()), &url, &SocketLimits::default());
        assert!(matches!(&refused, Err(TransportError::Tls { .. })), "{refused:?}");
        drop(server);
    }
}
