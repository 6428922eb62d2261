//! Every place that a connection can block in, and what ends it.

use crate::testkit::threads::NoThreads;
use crate::testkit::transport as kit;
use crate::testkit::wait::far;
use std::io::Read;
use std::time::{Duration, Instant};

use kit::{Site, background, connected, join, raw_client, raw_client_connected, raw_server};
use phalanx::base::shutdown::{Level, Shutdown};
use phalanx::base::thread::{JoinError, Thread};
use phalanx::transport::ws::{WsDialer, WsListener};
use phalanx::transport::{Connection, DialRequest, Dialer, Incoming, Listener, SocketLimits, TransportError, memory};

/// Joins a thread that must be blocked now, after `end` was called.
fn ends<T>(thread: Thread<T>, end: impl FnOnce()) -> T {
    let Err(JoinError::Late(thread)) = thread.join_by(Instant::now() + Duration::from_millis(50)) else {
        panic!("it did not block");
    };
    end();
    thread.join_by(far()).unwrap_or_else(|e| panic!("the kick did not end it: {e}"))
}

/// One of each kind, with both ends.
fn connections() -> [(Connection, Connection); 3] {
    let (dialer, listener, _wire) = memory::pair();
    [connected(false), connected(true), (dialer, listener)]
}

fn write_for_ever(mut writer: Box<dyn phalanx::transport::WriteHalf>) -> TransportError {
    let text = phalanx::transport::Utf8Bytes::from("x".repeat(100_000));
    loop {
        if let Err(error) = writer.write(text.clone()).and_then(|()| writer.flush()) {
            return error;
        }
    }
}

#[test]
fn an_idle_reader() {
    let _threads = NoThreads::expected();
    for (connection, mut peer) in connections() {
        let Connection { mut reader, kick, writer, .. } = connection;
        let error = ends(background("t-read", move || reader.read().unwrap_err()), || kick.kick());
        assert!(error.is_stopped(), "{error}");
        kick.kick();
        // The peer sees an end without a Close.
        assert!(matches!(peer.reader.read().unwrap(), Incoming::Closed(info) if !info.clean));
        drop(writer);
        kick.kick();
    }
}

#[test]
fn a_writer_whose_peer_never_reads() {
    let _threads = NoThreads::expected();
    for (connection, _peer) in connections() {
        let Connection { reader: _reader, writer, kick, .. } = connection;
        let error = ends(background("t-write", move || write_for_ever(writer)), || kick.kick());
        assert!(error.is_stopped(), "{error}");
    }
}

#[test]
fn a_writer_whose_peer_went_away_is_freed_by_the_reader() {
    let _threads = NoThreads::expected();
    for (connection, peer) in connections() {
        let Connection { mut reader, writer, .. } = connection;
        let error = ends(background("t-write", move || write_for_ever(writer)), || {
            peer.kick.kick();
            match reader.read() {
                Ok(Incoming::Closed(info)) => assert!(!info.clean),
                other => assert!(other.unwrap_err().is_closed()),
            }
        });
        assert!(error.is_closed(), "{error}");
    }
}

#[test]
fn both_halves_at_once() {
    let _threads = NoThreads::expected();
    for (connection, _peer) in connections() {
        let Connection { mut reader, writer, kick, .. } = connection;
        let write = background("t-write", move || write_for_ever(writer));
        let read = background("t-read", move || reader.read().unwrap_err());
        let error = ends(read, || kick.kick());
        assert!(error.is_stopped(), "{error}");
        let error = join(write);
        assert!(error.is_stopped(), "{error}");
    }
}

#[test]
fn a_kick_before_the_call_counts() {
    let _threads = NoThreads::expected();
    for (mut connection, _peer) in connections() {
        connection.kick.kick();
        assert!(connection.reader.read().unwrap_err().is_stopped());
        assert!(connection.reader.read().unwrap_err().is_stopped());
        connection.writer.write("x".into()).unwrap();
        assert!(connection.writer.flush().unwrap_err().is_stopped());
        assert!(connection.writer.flush().unwrap_err().is_stopped());
    }
}

#[test]
fn a_reader_that_waits_for_the_end_of_a_failed_connection() {
    let _threads = NoThreads::expected();
    let (mut client, server) = raw_client_connected(SocketLimits::default());
    let Connection { mut reader, mut writer, kick, .. } = server;
    std::io::Write::write_all(&mut client, &[0xff; 16]).unwrap();
    assert_eq!(reader.read().unwrap(), Incoming::Control);
    writer.flush().unwrap();
    let error = ends(background("t-read", move || reader.read().unwrap_err()), || kick.kick());
    assert!(error.is_stopped(), "{error}");
}

#[test]
fn a_listener_that_nobody_dials() {
    let _threads = NoThreads::expected();
    let net = memory::MemoryNet::new();
    for address in ["127.0.0.1:0", "0.0.0.0:0", "[::1]:0", "[::]:0"] {
        let listener = WsListener::bind(address, None).unwrap();
        ends_and_stays_ended(listener);
    }
    ends_and_stays_ended(net.listener("nobody"));
}

fn ends_and_stays_ended(listener: impl Listener + 'static) {
    let kick = listener.kick();
    let accepting = background("t-accept", move || (listener.accept().err().unwrap(), listener));
    let (error, listener) = ends(accepting, || kick.kick());
    assert!(error.is_stopped(), "{error}");
    kick.kick();
    assert!(listener.accept().err().unwrap().is_stopped());
    drop(listener);
    kick.kick();
}

#[test]
fn a_kicked_listener_does_not_accept_who_waits() {
    let _threads = NoThreads::expected();
    let listener = WsListener::bind("127.0.0.1:0", None).unwrap();
    let mut client = raw_client(listener.local_addr());
    listener.kick().kick();
    assert!(listener.accept().err().unwrap().is_stopped());
    drop(listener);
    // The address is closed with the listener, and whoever waited in its queue is notified.
    assert!(client.read(&mut [0]).map_or(true, |n| n == 0));
}

#[test]
fn a_handshake_with_a_silent_client() {
    let _threads = NoThreads::expected();
    for tls in [false, true] {
        let Site { listener, .. } = Site::new(tls);
        let _client = raw_client(listener.local_addr());
        let shutdown = Shutdown::new();
        let stop = shutdown.clone();
        let shaking = background("t-shake", move || {
            let pending = listener.accept().unwrap();
            pending.handshake(&SocketLimits::default(), far(), &shutdown, Level::Drain, &mut |_| Ok(())).unwrap_err()
        });
        let error = ends(shaking, || stop.drain());
        assert!(error.is_stopped(), "{error}");
    }
}

#[test]
fn a_dial_of_a_silent_server() {
    let _threads = NoThreads::expected();
    let net = memory::MemoryNet::new();
    net.fail_next(1, memory::DialFault::Hang);
    let (_plain, ws) = raw_server("ws");
    let (_secret, wss) = raw_server("wss");
    let dials: [(Box<dyn Dialer>, String); 3] = [
        (Box::new(WsDialer::default()), ws),
        (Box::new(WsDialer::default()), wss),
        (Box::new(net.dialer()), "ws://anywhere".to_owned()),
    ];
    for (dialer, url) in dials {
        let shutdown = Shutdown::new();
        let stop = shutdown.clone();
        let dialling = background("t-dial", move || {
            let request = DialRequest { url: &url, headers: &[], limits: SocketLimits::default(), deadline: far() };
            dialer.dial(&request, &shutdown, Level::Cancel).unwrap_err()
        });
        stop.drain();
        let error = ends(dialling, || stop.cancel());
        assert!(error.is_stopped() && !error.is_retryable(), "{error}");
    }
}

#[test]
fn a_shutdown_before_the_call_counts() {
    let _threads = NoThreads::expected();
    let Site { listener, dialer } = Site::new(false);
    let shutdown = Shutdown::new();
    shutdown.drain();
    let url = listener.url();
    let request = DialRequest { url: &url, headers: &[], limits: SocketLimits::default(), deadline: far() };
    assert!(dialer.dial(&request, &shutdown, Level::Drain).unwrap_err().is_stopped());

    let Site { listener, .. } = Site::new(false);
    let _client = raw_client(listener.local_addr());
    let pending = listener.accept().unwrap();
    let outcome = pending.handshake(&SocketLimits::default(), far(), &shutdown, Level::Drain, &mut |_| Ok(()));
    assert!(outcome.unwrap_err().is_stopped());
}

/// Both directions are busy with messages and pings, and one end is kicked at whatever moment that is.
#[test]
fn a_busy_connection_at_any_moment() {
    let _threads = NoThreads::expected();
    for round in 0..20 {
        for (ours, theirs) in connections() {
            let kick = ours.kick.clone();
            let mut threads = Vec::new();
            for connection in [ours, theirs] {
                let Connection { mut reader, mut writer, .. } = connection;
                let write = background("t-write", move || -> TransportError {
                    loop {
                        let sent = writer.ping().and_then(|()| writer.write("x".repeat(3000).into()));
                        if let Err(error) = sent.and_then(|()| writer.flush()) {
                            return error;
                        }
                    }
                });
                let kick = kick.clone();
                let read = background("t-read", move || {
                    let mut texts = 0;
                    loop {
                        match reader.read() {
                            Ok(Incoming::Text(_)) => texts += 1,
                            // The writer flushes all the time, so it need not be woken.
                            Ok(Incoming::Control | Incoming::Pong) => {}
                            Ok(Incoming::Closed(info)) => return assert!(!info.clean),
                            Err(error) => return assert!(error.is_stopped() || error.is_closed(), "{error}"),
                            other => panic!("unexpected {other:?}"),
                        }
                        if texts == 1 + round * 3 {
                            kick.kick();
                        }
                    }
                });
                threads.push((write, read));
            }
            for (write, read) in threads {
                let error = join(write);
                assert!(error.is_stopped() || error.is_closed(), "{error}");
                join(read);
            }
        }
    }
}
