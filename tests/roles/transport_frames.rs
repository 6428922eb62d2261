//! Frames from peers that are not ours, right and wrong, byte by byte.

use crate::testkit::threads::NoThreads;
use crate::testkit::transport as kit;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use kit::{background, frame, join, raw_client_connected, raw_server_connected, read_frame, read_text};
use phalanx::transport::{Connection, Incoming, SocketLimits, TransportError};

const TEXT: u8 = 0x81;
const TEXT_BEGINS: u8 = 0x01;
const CONTINUES: u8 = 0x00;
const ENDS: u8 = 0x80;
const BINARY: u8 = 0x82;
const CLOSE: u8 = 0x88;
const PING: u8 = 0x89;
const PONG: u8 = 0x8a;

fn close_payload(code: u16, reason: &str) -> Vec<u8> {
    [&code.to_be_bytes(), reason.as_bytes()].concat()
}

#[test]
fn a_frame_that_arrives_with_the_answer_is_not_lost() {
    let _threads = NoThreads::expected();
    let first = [frame(TEXT, false, b"first"), frame(BINARY, false, b"second")].concat();
    let (mut client, _server) = raw_server_connected(SocketLimits::default(), &first);
    assert_eq!(read_text(client.reader.as_mut()), "first");
    assert_eq!(client.reader.read().unwrap(), Incoming::Binary(b"second".as_slice().into()));
}

#[test]
fn half_a_frame_with_the_answer_is_not_lost() {
    let _threads = NoThreads::expected();
    let bytes = frame(TEXT, false, b"in two parts");
    let (mut client, mut server) = raw_server_connected(SocketLimits::default(), &bytes[..5]);
    server.write_all(&bytes[5..]).unwrap();
    assert_eq!(read_text(client.reader.as_mut()), "in two parts");
}

#[test]
fn what_a_client_sends_is_masked_and_differently_each_time() {
    let _threads = NoThreads::expected();
    let (mut client, mut server) = raw_server_connected(SocketLimits::default(), &[]);
    for _ in 0..2 {
        client.writer.write("hi".into()).unwrap();
    }
    client.writer.flush().unwrap();
    let mut bytes = [0; 16];
    server.read_exact(&mut bytes).unwrap();
    assert_eq!((bytes[0], bytes[1], bytes[8], bytes[9]), (TEXT, 0x82, TEXT, 0x82));
    assert_ne!(bytes[2..6], bytes[10..14]);
    assert_eq!([bytes[6] ^ bytes[2], bytes[7] ^ bytes[3]], *b"hi");
}

#[test]
fn a_ping_inside_a_fragmented_message_is_answered() {
    let _threads = NoThreads::expected();
    let (mut client, mut server) = raw_client_connected(SocketLimits::default());
    client.write_all(&frame(TEXT_BEGINS, true, b"one ")).unwrap();
    client.write_all(&frame(PING, true, b"are you there")).unwrap();
    assert_eq!(server.reader.read().unwrap(), Incoming::Control);
    server.writer.flush().unwrap();
    assert_eq!(read_frame(&mut client), (PONG, b"are you there".to_vec()));
    client.write_all(&frame(CONTINUES, true, b"mess")).unwrap();
    client.write_all(&frame(ENDS, true, b"age")).unwrap();
    assert_eq!(read_text(server.reader.as_mut()), "one message");
}

#[test]
fn messages_of_each_way_to_write_a_length_arrive_as_they_were_sent() {
    let _threads = NoThreads::expected();
    let (mut client, mut server) = raw_client_connected(SocketLimits::default());
    let (mut our_client, mut raw_server) = raw_server_connected(SocketLimits::default(), &[]);
    for size in [0, 125, 126, 127, 128, 65535, 65536] {
        let payload: Vec<u8> = (0..size).map(|n| b'a' + (n % 23) as u8).collect();
        let halves = payload.split_at(size / 2);
        for (kind, first) in [(TEXT, TEXT_BEGINS), (BINARY, BINARY & !ENDS)] {
            let sent = |masked| {
                let fragments = [frame(first, masked, halves.0), frame(ENDS, masked, halves.1)];
                [frame(kind, masked, &payload), fragments.concat()].concat()
            };
            client.write_all(&sent(true)).unwrap();
            raw_server.write_all(&sent(false)).unwrap();
            for reader in [&mut server.reader, &mut our_client.reader] {
                for _ in 0..2 {
                    match reader.read().unwrap() {
                        Incoming::Text(text) => assert!(kind == TEXT && text.as_bytes() == payload, "{size}"),
                        Incoming::Binary(bytes) => assert!(kind == BINARY && bytes == payload, "{size}"),
                        other => panic!("{other:?}"),
                    }
                }
            }
        }
    }
}

#[test]
fn control_frames_overtake_what_was_written() {
    let _threads = NoThreads::expected();
    let (mut client, mut server) = raw_client_connected(SocketLimits::default());
    server.writer.write("written first".into()).unwrap();
    server.writer.ping().unwrap();
    client.write_all(&frame(PING, true, b"p")).unwrap();
    assert_eq!(server.reader.read().unwrap(), Incoming::Control);
    server.writer.flush().unwrap();
    assert_eq!(read_frame(&mut client), (PING, vec![]));
    assert_eq!(read_frame(&mut client), (PONG, b"p".to_vec()));
    assert_eq!(read_frame(&mut client), (TEXT, b"written first".to_vec()));
}

#[test]
fn two_hundred_pings_behind_a_large_message_do_not_wait_for_the_writer() {
    let _threads = NoThreads::expected();
    let (mut client, server) = raw_client_connected(SocketLimits::default());
    let Connection { mut reader, mut writer, .. } = server;
    const LARGE: usize = 32 << 20;
    let writing = background("t-write", move || {
        writer.write("x".repeat(LARGE).into()).unwrap();
        writer.flush().unwrap();
        writer
    });
    // The message has begun and the client does not read on, so the writer is in its middle and stays there.
    assert_eq!(client.peek(&mut [0]).unwrap(), 1);
    for n in 0..200u8 {
        client.write_all(&frame(PING, true, &[n])).unwrap();
        assert_eq!(reader.read().unwrap(), Incoming::Control);
    }
    let mut message = vec![0; 10 + LARGE];
    client.read_exact(&mut message).unwrap();
    assert_eq!(message[..2], [TEXT, 127]);
    join(writing).flush().unwrap();
    for n in 184..200u8 {
        assert_eq!(read_frame(&mut client), (PONG, vec![n]));
    }
}

#[test]
fn a_close_with_and_without_a_code_is_answered_in_kind() {
    let _threads = NoThreads::expected();
    for (payload, code, reason) in
        [(vec![], None, ""), (close_payload(1000, ""), Some(1000), ""), (close_payload(3999, "why"), Some(3999), "why")]
    {
        let (mut client, mut server) = raw_client_connected(SocketLimits::default());
        client.write_all(&frame(CLOSE, true, &payload)).unwrap();
        let Incoming::Closed(info) = server.reader.read().unwrap() else { panic!("expected the Close") };
        assert_eq!((info.code, info.reason.as_str(), info.clean), (code, reason, true));
        server.writer.flush().unwrap();
        assert_eq!(read_frame(&mut client), (CLOSE, payload));
        assert_eq!(client.read(&mut [0]).unwrap(), 0, "the answer to a Close is the last thing");
    }
}

#[test]
fn a_reset_is_an_error_and_an_end_without_close_is_not_clean() {
    let _threads = NoThreads::expected();
    let (client, mut server) = raw_client_connected(SocketLimits::default());
    socket2::SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
    drop(client);
    let error = server.reader.read().unwrap_err();
    assert!(matches!(error, TransportError::Io { .. }) && error.is_closed(), "{error}");

    let (client, mut server) = raw_client_connected(SocketLimits::default());
    client.shutdown(std::net::Shutdown::Write).unwrap();
    let Incoming::Closed(info) = server.reader.read().unwrap() else { panic!("expected the end") };
    assert!(!info.clean && info.code.is_none());
}

#[test]
fn writing_to_a_peer_that_is_gone_fails() {
    let _threads = NoThreads::expected();
    let (client, mut server) = raw_client_connected(SocketLimits::default());
    socket2::SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
    drop(client);
    server.reader.read().unwrap_err();
    server.writer.write("anyone?".into()).unwrap();
    let error = server.writer.flush().unwrap_err();
    assert!(matches!(error, TransportError::Io { .. }), "{error}");
    assert!(matches!(server.writer.flush(), Err(TransportError::Closed)));
}

/// The peer sends `bytes`: the reader asks for the writer, the peer gets Close with `code` and the end, and the reader
/// then has the error.
fn is_failed(mut peer: TcpStream, ours: Connection, bytes: &[u8], code: u16) -> TransportError {
    let Connection { mut reader, mut writer, .. } = ours;
    writer.write("queued before".into()).unwrap();
    peer.write_all(bytes).unwrap();
    assert_eq!(reader.read().unwrap(), Incoming::Control);
    writer.flush().unwrap();
    assert_eq!(read_frame(&mut peer), (TEXT, b"queued before".to_vec()));
    let (first_byte, payload) = read_frame(&mut peer);
    assert_eq!((first_byte, u16::from_be_bytes([payload[0], payload[1]])), (CLOSE, code));
    assert_eq!(peer.read(&mut [0]).unwrap(), 0);
    // More from the peer must not disturb the end.
    peer.write_all(&[0; 100_000]).unwrap();
    drop(peer);
    let error = reader.read().unwrap_err();
    assert_eq!(error.close_code(), Some(code), "{error}");
    assert!(matches!(reader.read(), Err(TransportError::Closed)));
    error
}

#[test]
fn a_message_over_the_limit_gets_1009() {
    let _threads = NoThreads::expected();
    let limits = SocketLimits { message_bytes: 1000, frame_bytes: 1000, ..Default::default() };
    let one_frame = frame(TEXT, true, &[b'x'; 1001]);
    let fragments = [frame(TEXT_BEGINS, true, &[b'x'; 600]), frame(ENDS, true, &[b'x'; 401])].concat();
    for bytes in [&one_frame, &fragments] {
        let (client, server) = raw_client_connected(limits);
        let error = is_failed(client, server, bytes, 1009);
        assert!(matches!(error, TransportError::TooLarge { size: 1001, limit: 1000 }), "{error}");
    }
    let (mut client, mut server) = raw_client_connected(limits);
    client.write_all(&frame(TEXT, true, &[b'x'; 1000])).unwrap();
    assert_eq!(read_text(server.reader.as_mut()).len(), 1000);
}

#[test]
fn a_frame_that_announces_too_much_is_refused_before_it_is_received() {
    let _threads = NoThreads::expected();
    let (client, server) = raw_client_connected(SocketLimits::default());
    let mut announced = vec![BINARY, 0xff];
    announced.extend_from_slice(&(1u64 << 40).to_be_bytes());
    announced.extend_from_slice(&[0; 4]);
    let error = is_failed(client, server, &announced, 1009);
    assert!(matches!(error, TransportError::TooLarge { .. }), "{error}");
}

#[test]
fn broken_frames_get_1002() {
    let _threads = NoThreads::expected();
    for (what, bytes) in [
        ("noise", vec![0xff; 16]),
        ("reserved bit", frame(TEXT | 0x40, true, b"x")),
        ("unknown opcode", frame(0x83, true, b"x")),
        ("long ping", frame(PING, true, &[0; 126])),
        ("fragmented ping", frame(0x09, true, b"x")),
        ("continuation of nothing", frame(ENDS, true, b"x")),
        ("message inside a message", [frame(TEXT_BEGINS, true, b"x"), frame(TEXT, true, b"x")].concat()),
        ("unmasked frame from a client", frame(TEXT, false, b"xyzw")),
        ("close with half a code", frame(CLOSE, true, &[3])),
    ] {
        let (client, server) = raw_client_connected(SocketLimits::default());
        let error = is_failed(client, server, &bytes, 1002);
        assert!(matches!(error, TransportError::Protocol { .. }), "{what}: {error}");
    }
}

#[test]
fn a_masked_frame_from_a_server_gets_1002() {
    let _threads = NoThreads::expected();
    let (client, server) = raw_server_connected(SocketLimits::default(), &[]);
    let error = is_failed(server, client, &frame(TEXT, true, b"x"), 1002);
    assert!(error.to_string().contains("masked"), "{error}");
}

#[test]
fn text_that_is_not_utf8_gets_1007() {
    let _threads = NoThreads::expected();
    let whole = frame(TEXT, true, b"caf\xe9");
    let in_fragments = [frame(TEXT_BEGINS, true, b"caf\xc3"), frame(ENDS, true, b"(")].concat();
    let in_a_close = frame(CLOSE, true, &[3, 232, 0xff]);
    for bytes in [&whole, &in_fragments, &in_a_close] {
        let (client, server) = raw_client_connected(SocketLimits::default());
        let error = is_failed(client, server, bytes, 1007);
        assert!(matches!(error, TransportError::Utf8 { .. }), "{error}");
    }
}

#[test]
fn a_peer_that_ignores_the_close_holds_the_reader_only_for_a_while() {
    let _threads = NoThreads::expected();
    let (mut client, mut server) = raw_client_connected(SocketLimits::default());
    client.write_all(&[0xff; 16]).unwrap();
    assert_eq!(server.reader.read().unwrap(), Incoming::Control);
    server.writer.flush().unwrap();
    // The client neither reads nor closes.
    assert!(matches!(server.reader.read(), Err(TransportError::Protocol { .. })));
    drop(client);
}
