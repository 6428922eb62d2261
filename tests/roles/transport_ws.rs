//! WebSocket connections between our own two ends: order, sizes, control frames, close. Each on plain TCP and on TLS.

use crate::testkit::threads::NoThreads;
use crate::testkit::transport as kit;
use crate::testkit::wait::until_some;
use std::io::Write;

use kit::{Site, background, connected, frame, join, raw_client_connected, read_text};
use phalanx::transport::{Connection, Incoming, SocketLimits, Traffic, TransportError};

/// Echoes until the peer closes, answers that, and says how many pings were seen.
fn echo(connection: Connection) -> usize {
    let Connection { mut reader, mut writer, .. } = connection;
    let mut pings = 0;
    loop {
        match reader.read().unwrap() {
            Incoming::Text(text) => writer.write(text).unwrap(),
            Incoming::Control => pings += 1,
            Incoming::Closed(info) => {
                assert!(info.clean, "{info}");
                writer.flush().unwrap();
                return pings;
            }
            other => panic!("unexpected {other:?}"),
        }
        writer.flush().unwrap();
    }
}

fn two_thousand_messages_each_way(tls: bool) {
    const MESSAGES: usize = 2000;
    let _threads = NoThreads::expected();
    let (client, server) = connected(tls);
    let echo = background("t-echo", move || echo(server));
    let Connection { mut reader, mut writer, .. } = client;
    let sender = background("t-send", move || {
        for n in 0..MESSAGES {
            if n % 20 == 0 {
                writer.ping().unwrap();
            }
            writer.write(format!("message {n}").into()).unwrap();
            if n % 7 == 0 {
                writer.flush().unwrap();
            }
        }
        writer.flush().unwrap();
        writer
    });
    let (mut texts, mut pongs) = (0, 0);
    while texts < MESSAGES || pongs < MESSAGES / 20 {
        match reader.read().unwrap() {
            Incoming::Text(text) => {
                assert_eq!(text.as_str(), format!("message {texts}"));
                texts += 1;
            }
            Incoming::Pong => pongs += 1,
            other => panic!("unexpected {other:?}"),
        }
    }
    let mut writer = join(sender);
    writer.close(1000, "done").unwrap();
    let Incoming::Closed(info) = reader.read().unwrap() else { panic!("expected the answer to our Close") };
    assert_eq!((info.code, info.reason.as_str(), info.clean), (Some(1000), "done", true));
    assert_eq!(join(echo), MESSAGES / 20);
    assert!(matches!(writer.write("late".into()), Err(TransportError::Closed)));
    assert!(matches!(reader.read(), Err(TransportError::Closed)));
}

#[test]
fn two_thousand_messages_each_way_plain() {
    two_thousand_messages_each_way(false);
}

#[test]
fn two_thousand_messages_each_way_tls() {
    two_thousand_messages_each_way(true);
}

fn messages_of_sixteen_mebibytes(tls: bool) {
    let _threads = NoThreads::expected();
    let (client, server) = connected(tls);
    let echo = background("t-echo", move || echo(server));
    let Connection { mut reader, mut writer, .. } = client;
    let text: String = (0..16 << 20).map(|n| char::from(b'a' + (n % 23) as u8)).collect();
    let sent = text.clone();
    let sender = background("t-send", move || {
        writer.write(sent.into()).unwrap();
        writer.flush().unwrap();
        writer
    });
    assert!(read_text(reader.as_mut()) == text, "the text changed on its way");
    join(sender).close(1000, "").unwrap();
    assert!(matches!(reader.read().unwrap(), Incoming::Closed(info) if info.clean));
    join(echo);
}

#[test]
fn messages_of_sixteen_mebibytes_plain() {
    messages_of_sixteen_mebibytes(false);
}

#[test]
fn messages_of_sixteen_mebibytes_tls() {
    messages_of_sixteen_mebibytes(true);
}

/// Both peers send more than all buffers hold, and read meanwhile; a reader that waited for its writer would hang here.
fn both_directions_at_once(tls: bool) {
    const MESSAGES: usize = 100;
    let _threads = NoThreads::expected();
    let (client, server) = connected(tls);
    let mut threads = Vec::new();
    for (connection, mark) in [(client, 'c'), (server, 's')] {
        let Connection { mut reader, mut writer, .. } = connection;
        threads.push(background("t-write", move || {
            for n in 0..MESSAGES {
                writer.write(format!("{n} {}", mark.to_string().repeat(200_000)).into()).unwrap();
                writer.ping().unwrap();
                writer.flush().unwrap();
            }
            Some(writer)
        }));
        threads.push(background("t-read", move || {
            let mut texts = 0;
            while texts < MESSAGES {
                match reader.read().unwrap() {
                    Incoming::Text(text) => {
                        assert!(text.starts_with(&format!("{texts} ")) && text.len() > 200_000);
                        texts += 1;
                    }
                    Incoming::Control | Incoming::Pong => {}
                    other => panic!("unexpected {other:?}"),
                }
            }
            None
        }));
    }
    // The halves that come back are dropped together, so that nobody's end is a surprise to the other.
    let writers: Vec<_> = threads.into_iter().map(join).collect();
    assert_eq!(writers.iter().flatten().count(), 2);
}

#[test]
fn both_directions_at_once_plain() {
    both_directions_at_once(false);
}

#[test]
fn both_directions_at_once_tls() {
    both_directions_at_once(true);
}

fn the_server_closes_with_a_code(tls: bool) {
    let _threads = NoThreads::expected();
    let (mut client, mut server) = connected(tls);
    server.writer.write("last words".into()).unwrap();
    server.writer.close(4001, "enough").unwrap();
    assert_eq!(read_text(client.reader.as_mut()), "last words");
    let Incoming::Closed(info) = client.reader.read().unwrap() else { panic!("expected the Close") };
    assert_eq!((info.code, info.reason.as_str(), info.clean), (Some(4001), "enough", true));
    assert_eq!(info.to_string(), "closed by the peer with code 4001: enough");

    // What the client still had to say arrives before its answer.
    client.writer.write("and mine".into()).unwrap();
    client.writer.flush().unwrap();
    assert!(matches!(client.writer.write("too late".into()), Err(TransportError::Closed)));
    client.writer.flush().unwrap();
    assert_eq!(read_text(server.reader.as_mut()), "and mine");
    assert!(matches!(server.reader.read().unwrap(), Incoming::Closed(info) if info.code == Some(4001)));
    drop(client);
    assert!(matches!(server.reader.read(), Err(TransportError::Closed)));
}

#[test]
fn the_server_closes_with_a_code_plain() {
    the_server_closes_with_a_code(false);
}

#[test]
fn the_server_closes_with_a_code_tls() {
    the_server_closes_with_a_code(true);
}

fn an_end_without_a_close_is_distinguished(tls: bool) {
    let _threads = NoThreads::expected();
    let (mut client, server) = connected(tls);
    drop(server);
    let Incoming::Closed(info) = client.reader.read().unwrap() else { panic!("expected the end") };
    assert_eq!((info.code, info.clean), (None, false));
    assert_eq!(info.to_string(), "the stream ended without a Close");
    assert!(matches!(client.reader.read(), Err(TransportError::Closed)));
}

#[test]
fn an_end_without_a_close_is_distinguished_plain() {
    an_end_without_a_close_is_distinguished(false);
}

#[test]
fn an_end_without_a_close_is_distinguished_tls() {
    an_end_without_a_close_is_distinguished(true);
}

#[test]
fn a_full_write_buffer_is_sent_without_a_flush() {
    let _threads = NoThreads::expected();
    let (mut client, mut server) =
        Site::new(false).connect(SocketLimits { write_buffer_bytes: 100, ..Default::default() });
    client.writer.write("x".repeat(101).into()).unwrap();
    assert_eq!(read_text(server.reader.as_mut()).len(), 101);
}

#[test]
fn a_close_code_that_must_not_be_sent_is_refused() {
    let _threads = NoThreads::expected();
    let (mut client, mut server) = connected(false);
    for code in [0, 999, 1005, 1006, 1015, 5000] {
        assert!(matches!(client.writer.close(code, ""), Err(TransportError::CloseCode { .. })), "{code}");
    }
    client.writer.close(1000, &"long ".repeat(100)).unwrap();
    let Incoming::Closed(info) = server.reader.read().unwrap() else { panic!("expected the Close") };
    assert_eq!(info.reason.len(), 123);
}

/// Waits until `count` has passed `bytes`, which has no event, and gives where it is then.
fn passes(traffic: &Traffic, count: fn(&Traffic) -> u64, bytes: u64) -> u64 {
    until_some("more bytes", || Some(count(traffic)).filter(|now| *now > bytes))
}

fn a_large_write_is_counted_as_it_goes(tls: bool) {
    /// Far more than both sockets' buffers hold, so that the write must wait for the reader.
    const TEXT_BYTES: usize = 45 << 20;
    let _threads = NoThreads::expected();
    let (client, server) = connected(tls);
    let (sent, received) = (client.traffic.clone(), server.traffic.clone());
    assert_eq!((sent.read_bytes(), received.written_bytes()), (0, 0));
    let Connection { reader: _reader, mut writer, .. } = client;
    let sender = background("t-send", move || {
        writer.write("x".repeat(TEXT_BYTES).into()).unwrap();
        writer
    });
    // The peer reads nothing yet, so the write cannot have returned.
    passes(&sent, Traffic::written_bytes, 0);
    assert!(!sender.is_finished());
    assert_eq!(received.read_bytes(), 0);
    let mut reader = server.reader;
    assert_eq!(read_text(reader.as_mut()).len(), TEXT_BYTES);
    let _writer = join(sender);
    assert!(sent.written_bytes() > TEXT_BYTES as u64);
    assert_eq!(received.read_bytes(), sent.written_bytes());
}

#[test]
fn a_large_write_is_counted_as_it_goes_plain() {
    a_large_write_is_counted_as_it_goes(false);
}

#[test]
fn a_large_write_is_counted_as_it_goes_tls() {
    a_large_write_is_counted_as_it_goes(true);
}

#[test]
fn part_of_a_message_is_counted_as_it_comes() {
    let _threads = NoThreads::expected();
    let (mut client, server) = raw_client_connected(SocketLimits::default());
    let traffic = server.traffic.clone();
    let mut reader = server.reader;
    let reading = background("t-read", move || read_text(reader.as_mut()));
    let bytes = frame(0x81, true, &[b'x'; 1000]);
    let (first, rest) = bytes.split_at(500);
    client.write_all(first).unwrap();
    assert_eq!(passes(&traffic, Traffic::read_bytes, 499), 500);
    assert!(!reading.is_finished());
    client.write_all(rest).unwrap();
    assert_eq!(join(reading).len(), 1000);
    assert_eq!(traffic.read_bytes(), bytes.len() as u64);
}
