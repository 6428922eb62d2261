//! Connections within the process behave as those over sockets, and their faults happen where they were planned.

use crate::testkit::threads::NoThreads;
use crate::testkit::transport as kit;
use crate::testkit::wait::far;
use std::time::{Duration, Instant};

use kit::{accept, background, dial_ws, join, read_text};
use phalanx::base::shutdown::{Level, Shutdown};
use phalanx::base::thread::JoinError;
use phalanx::transport::memory::{DialFault, MemoryNet, Side, WIRE_BYTES, Wire, pair};
use phalanx::transport::{Connection, DialRequest, Dialer, Incoming, Listener, Refusal, SocketLimits, TransportError};

fn send(connection: &mut Connection, text: &str) {
    connection.writer.write(text.into()).unwrap();
    connection.writer.flush().unwrap();
}

/// A connection made through `net`, and what the listener saw of the request.
fn connect(net: &MemoryNet) -> (Connection, Connection) {
    let listener = net.listener("server");
    let server = background("t-accept", move || accept(&listener, &SocketLimits::default(), |_| Ok(())).unwrap().0);
    let client = dial_ws(&net.dialer(), "ws://server/path", &SocketLimits::default()).unwrap();
    (client, join(server))
}

#[test]
fn messages_pings_and_close_as_over_a_socket() {
    let _threads = NoThreads::expected();
    let (mut client, mut server, wire) = pair();
    client.writer.write("one".into()).unwrap();
    client.writer.write("two".into()).unwrap();
    client.writer.ping().unwrap();
    client.writer.flush().unwrap();
    assert_eq!(server.reader.read().unwrap(), Incoming::Control);
    assert_eq!(read_text(server.reader.as_mut()), "one");
    assert_eq!(read_text(server.reader.as_mut()), "two");
    assert_eq!(wire.messages(Side::Dialer), 2);
    send(&mut server, "answer");
    assert_eq!(client.reader.read().unwrap(), Incoming::Pong);
    assert_eq!(read_text(client.reader.as_mut()), "answer");

    client.writer.write("last".into()).unwrap();
    client.writer.close(1000, "done").unwrap();
    assert!(matches!(client.writer.write("late".into()), Err(TransportError::Closed)));
    assert_eq!(read_text(server.reader.as_mut()), "last");
    assert!(matches!(server.reader.read().unwrap(), Incoming::Closed(info) if info.code == Some(1000) && info.clean));
    send(&mut server, "still open this way");
    assert!(matches!(server.writer.write("late".into()), Err(TransportError::Closed)));
    assert_eq!(read_text(client.reader.as_mut()), "still open this way");
    assert!(matches!(client.reader.read().unwrap(), Incoming::Closed(info) if info.reason == "done"));
    assert!(matches!(client.reader.read(), Err(TransportError::Closed)));
}

#[test]
fn dropping_an_end_is_an_end_without_a_close() {
    let _threads = NoThreads::expected();
    let (mut client, mut server, _wire) = pair();
    send(&mut server, "before");
    drop(server);
    assert_eq!(read_text(client.reader.as_mut()), "before");
    assert!(matches!(client.reader.read().unwrap(), Incoming::Closed(info) if !info.clean));
    client.writer.write("after".into()).unwrap();
    assert!(client.writer.flush().unwrap_err().is_closed());
}

#[test]
fn a_message_over_the_limit_gets_1009() {
    let _threads = NoThreads::expected();
    let net = MemoryNet::new();
    let listener = net.listener("server");
    let limits = SocketLimits { message_bytes: 10, ..Default::default() };
    let server = background("t-accept", move || accept(&listener, &limits, |_| Ok(())).unwrap().0);
    let mut client = dial_ws(&net.dialer(), "ws://server", &SocketLimits::default()).unwrap();
    let mut server = join(server);
    send(&mut client, "eleven bytes");
    assert_eq!(server.reader.read().unwrap(), Incoming::Control);
    server.writer.flush().unwrap();
    assert!(matches!(client.reader.read().unwrap(), Incoming::Closed(info) if info.code == Some(1009)));
    drop(client);
    assert!(matches!(server.reader.read(), Err(TransportError::TooLarge { size: 12, limit: 10 })));
}

#[test]
fn a_wire_is_bounded_and_a_reader_makes_room() {
    let _threads = NoThreads::expected();
    let (client, mut server, _wire) = pair();
    let Connection { mut writer, reader: _reader, .. } = client;
    let text = "x".repeat(WIRE_BYTES / 4);
    let writing = background("t-write", move || {
        for _ in 0..8 {
            writer.write(text.clone().into()).unwrap();
            writer.flush().unwrap();
        }
    });
    let Err(JoinError::Late(writing)) = writing.join_by(Instant::now() + Duration::from_millis(50)) else {
        panic!("eight quarters went into one whole");
    };
    for _ in 0..8 {
        assert_eq!(read_text(server.reader.as_mut()).len(), WIRE_BYTES / 4);
    }
    join(writing);
}

#[test]
fn a_message_larger_than_the_wire_passes_alone() {
    let _threads = NoThreads::expected();
    let (mut client, mut server, _wire) = pair();
    send(&mut client, &"x".repeat(3 * WIRE_BYTES));
    assert_eq!(read_text(server.reader.as_mut()).len(), 3 * WIRE_BYTES);
}

#[test]
fn the_request_reaches_the_route_and_its_refusal_the_dialer() {
    let _threads = NoThreads::expected();
    let net = MemoryNet::new();
    let listener = net.listener("server:8000");
    assert_eq!(listener.url(), "ws://server:8000");
    let server = background("t-accept", move || {
        let limits = SocketLimits::default();
        let refused = accept(&listener, &limits, |request| {
            assert_eq!((request.path.as_str(), request.header("x-who")), ("/a?b", Some("me")));
            Err(Refusal { status: 404, body: "no such path".to_owned(), retry_after: None })
        });
        assert_eq!(refused.unwrap_err().status(), Some(404));
        let (connection, request) = accept(&listener, &limits, |_| Ok(())).unwrap();
        assert_eq!(request.path, "/");
        connection
    });
    let headers = [("X-Who".to_owned(), "me".to_owned())];
    let request = DialRequest {
        url: "wss://server:8000/a?b",
        headers: &headers,
        limits: SocketLimits::default(),
        deadline: far(),
    };
    let error = net.dialer().dial(&request, &Shutdown::new(), Level::Drain).unwrap_err();
    assert_eq!(error.to_string(), "upgrade refused with status 404: no such path");
    dial_ws(&net.dialer(), "ws://server:8000", &SocketLimits::default()).unwrap();
    join(server);
    assert_eq!(net.dials(), 2);
}

#[test]
fn planned_dials_fail_in_their_order_and_then_succeed() {
    let _threads = NoThreads::expected();
    let net = MemoryNet::new();
    net.fail_next(2, DialFault::Refused);
    net.fail_next(1, DialFault::Status(503));
    net.fail_next(1, DialFault::Hang);
    let dial = |deadline| {
        let request = DialRequest { url: "ws://server", headers: &[], limits: SocketLimits::default(), deadline };
        net.dialer().dial(&request, &Shutdown::new(), Level::Drain).unwrap_err()
    };
    assert!(matches!(dial(far()), TransportError::Dial(_)));
    assert!(matches!(dial(far()), TransportError::Dial(_)));
    assert_eq!(dial(far()).status(), Some(503));
    assert!(dial(Instant::now() + Duration::from_millis(20)).is_timeout());
    connect(&net);
    assert_eq!(net.wires().len(), 1);
}

#[test]
fn a_name_that_nobody_listens_to_is_refused() {
    let _threads = NoThreads::expected();
    let net = MemoryNet::new();
    let dial = || dial_ws(&net.dialer(), "ws://server", &SocketLimits::default()).unwrap_err();
    assert!(matches!(dial(), TransportError::Dial(_)));
    drop(net.listener("server"));
    assert!(matches!(dial(), TransportError::Dial(_)));
    let listener = net.listener("server");
    let dropping = background("t-drop", move || drop(listener.accept().unwrap()));
    let error = dial();
    assert!(error.to_string().contains("instead of answering"), "{error}");
    join(dropping);
}

#[test]
fn a_listener_that_never_accepts_is_waited_for_until_the_deadline() {
    let _threads = NoThreads::expected();
    let net = MemoryNet::new();
    let _listener = net.listener("server");
    let deadline = Instant::now() + Duration::from_millis(20);
    let request = DialRequest { url: "ws://server", headers: &[], limits: SocketLimits::default(), deadline };
    assert!(net.dialer().dial(&request, &Shutdown::new(), Level::Drain).unwrap_err().is_timeout());
}

#[test]
fn a_wire_is_disconnected_after_the_planned_message() {
    let _threads = NoThreads::expected();
    let net = MemoryNet::new();
    net.plan_next(|wire: &Wire| wire.disconnect_after(Side::Dialer, 2));
    let (mut client, mut server) = connect(&net);
    send(&mut server, "not counted");
    for text in ["one", "two", "three"] {
        client.writer.write(text.into()).unwrap();
    }
    assert!(client.writer.flush().unwrap_err().is_closed());
    assert_eq!(read_text(server.reader.as_mut()), "one");
    assert_eq!(read_text(server.reader.as_mut()), "two");
    for end in [&mut server, &mut client] {
        loop {
            match end.reader.read().unwrap() {
                Incoming::Text(text) => assert_eq!(text.as_str(), "not counted"),
                Incoming::Closed(info) => break assert!(!info.clean),
                other => panic!("unexpected {other:?}"),
            }
        }
    }
    assert_eq!(net.wires()[0].messages(Side::Dialer), 2);

    // The next connection has no plan.
    let (mut client, mut server) = connect(&net);
    for _ in 0..3 {
        send(&mut client, "fine");
        assert_eq!(read_text(server.reader.as_mut()), "fine");
    }
    net.wires()[1].disconnect();
    assert!(matches!(server.reader.read().unwrap(), Incoming::Closed(info) if !info.clean));
}

#[test]
fn withheld_messages_arrive_when_they_are_released() {
    let _threads = NoThreads::expected();
    let (mut client, server, wire) = pair();
    wire.withhold(Side::Dialer);
    send(&mut client, "withheld");
    let Connection { mut reader, mut writer, .. } = server;
    let reading = background("t-read", move || read_text(reader.as_mut()));
    let Err(JoinError::Late(reading)) = reading.join_by(Instant::now() + Duration::from_millis(50)) else {
        panic!("it arrived");
    };
    // The other direction is as it was.
    writer.write("arrives".into()).unwrap();
    writer.flush().unwrap();
    assert_eq!(read_text(client.reader.as_mut()), "arrives");
    wire.release(Side::Dialer);
    assert_eq!(join(reading), "withheld");
}

#[test]
fn a_stalled_writer_is_freed_by_its_kick_or_goes_on() {
    let _threads = NoThreads::expected();
    for kicked in [true, false] {
        let (client, mut server, wire) = pair();
        wire.stall(Side::Dialer);
        let Connection { mut writer, reader: _reader, kick, .. } = client;
        let writing = background("t-write", move || {
            writer.write("stalled".into())?;
            writer.flush()
        });
        let Err(JoinError::Late(writing)) = writing.join_by(Instant::now() + Duration::from_millis(50)) else {
            panic!("it did not stall");
        };
        if kicked {
            kick.kick();
            assert!(join(writing).unwrap_err().is_stopped());
            assert!(matches!(server.reader.read().unwrap(), Incoming::Closed(info) if !info.clean));
        } else {
            wire.resume(Side::Dialer);
            join(writing).unwrap();
            assert_eq!(read_text(server.reader.as_mut()), "stalled");
        }
    }
}

#[test]
fn a_close_can_be_put_into_a_peers_mouth() {
    let _threads = NoThreads::expected();
    for code in [Some(4000), None] {
        let (mut client, mut server, wire) = pair();
        send(&mut server, "first");
        wire.send_close(Side::Listener, code, "planned");
        assert_eq!(read_text(client.reader.as_mut()), "first");
        let Incoming::Closed(info) = client.reader.read().unwrap() else { panic!("expected the Close") };
        assert_eq!((info.code, info.clean), (code, true));
        client.writer.flush().unwrap();
        assert!(matches!(server.reader.read().unwrap(), Incoming::Closed(info) if info.code == code));
    }
}

#[test]
fn what_is_written_to_a_dialer_that_gave_up_is_an_end() {
    let _threads = NoThreads::expected();
    let net = MemoryNet::new();
    let listener = net.listener("server");
    let request = DialRequest {
        url: "ws://server",
        headers: &[],
        limits: SocketLimits::default(),
        deadline: Instant::now() + Duration::from_millis(20),
    };
    assert!(net.dialer().dial(&request, &Shutdown::new(), Level::Drain).unwrap_err().is_timeout());
    let error = accept(&listener, &SocketLimits::default(), |_| Ok(())).unwrap_err();
    assert!(matches!(error, TransportError::Closed), "{error}");
}
