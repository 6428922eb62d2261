//! WebSocket connections between our own two ends: order, sizes, control frames, close. Each on plain TCP and on TLS.

#[path = "testkit/transport.rs"]
mod kit;

use kit::{NoThreads, background, connected, join, read_text};
use phalanx::transport::{Connection, Incoming, TransportError};

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

#[test]
fn hello() {
    let _threads = NoThreads::expected();
    let (mut client, mut server) = connected(false);
    client.writer.write("hello".into()).unwrap();
    client.writer.flush().unwrap();
    assert_eq!(read_text(server.reader.as_mut()), "hello");
}
