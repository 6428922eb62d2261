//! A peer that we did not write: the Python package `websockets`, which the real network uses, as server and as client.
//!
//! It is looked for in the virtual environment `$PHALANX_TEST_VENV` (default `target/venv`). Without it these tests say
//! so and pass, unless `PHALANX_TEST_REQUIRE_ALL=1`.

use crate::testkit::threads::NoThreads;
use crate::testkit::transport as kit;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use kit::{Certificates, accept, background, dial_ws, join, read_text};
use phalanx::transport::ws::{WsDialer, WsListener};
use phalanx::transport::{Connection, Incoming, Listener, Refusal, SocketLimits, TransportError};

fn python() -> Option<PathBuf> {
    let venv = std::env::var_os("PHALANX_TEST_VENV").map_or_else(|| PathBuf::from("target/venv"), PathBuf::from);
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join(venv).join("bin/python");
    let found = Command::new(&python).args(["-c", "import websockets.asyncio.server"]).stderr(Stdio::null()).status();
    if found.is_ok_and(|status| status.success()) {
        return Some(python);
    }
    let missing = format!("{} does not run or has no package websockets", python.display());
    assert_ne!(std::env::var("PHALANX_TEST_REQUIRE_ALL").as_deref(), Ok("1"), "{missing}");
    eprintln!("SKIPPED: {missing}");
    None
}

/// The script; it ends when this is dropped, because its standard input does.
struct Peer {
    child: Child,
    stdout: BufReader<ChildStdout>,
}

impl Peer {
    fn start(python: &Path, arguments: &[String]) -> Self {
        let mut child = Command::new(python)
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/python/ws_peer.py"))
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        Self { child, stdout }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let status = self.child.wait().unwrap();
        if !std::thread::panicking() {
            assert!(status.success(), "the Python peer failed with {status}; its trace is above");
        }
    }
}

fn our_client_with_its_server(tls: bool) {
    let Some(python) = python() else { return };
    let _threads = NoThreads::expected();
    let certificates = Certificates::new();
    let mut arguments = vec!["server".to_owned()];
    if tls {
        arguments.extend(["cert.pem", "key.pem"].map(|name| certificates.path(name).display().to_string()));
    }
    let mut peer = Peer::start(&python, &arguments);
    let scheme = if tls { "wss" } else { "ws" };
    let base = format!("{scheme}://127.0.0.1:{}", peer.line());
    let dialer = WsDialer::new(certificates.client());
    let dial = |path: &str| dial_ws(&dialer, &format!("{base}{path}"), &SocketLimits::default());

    echoes(dial("/echo").unwrap(), tls);
    assert_eq!(peer.line(), "1009");
    pings_between_fragments(dial("/fragments").unwrap());
    the_peer_closes(dial("/closes").unwrap());
    we_close(dial("/closed").unwrap());
    assert_eq!(peer.line(), "4321 ours");
    assert_eq!(dial("/refused").unwrap_err().to_string(), "upgrade refused with status 403: not you");
}

#[test]
fn our_client_shows_its_certificate_to_its_server() {
    let Some(python) = python() else { return };
    let _threads = NoThreads::expected();
    let certificates = Certificates::new();
    let files = ["cert.pem", "key.pem", "ca.pem"].map(|name| certificates.path(name).display().to_string());
    let mut peer = Peer::start(&python, &[vec!["server".to_owned()], files.to_vec()].concat());
    let url = format!("wss://127.0.0.1:{}/who", peer.line());
    let known = WsDialer::new(certificates.known_client());
    let mut connection = dial_ws(&known, &url, &SocketLimits::default()).unwrap();
    let expected = concat!("client.example with phalanx/", env!("CARGO_PKG_VERSION"));
    assert_eq!(read_text(connection.reader.as_mut()), expected);
    connection.kick.kick();
    let error = dial_ws(&WsDialer::new(certificates.client()), &url, &SocketLimits::default()).unwrap_err();
    // Its server closes at once, which may overtake its alert.
    assert!(matches!(&error, TransportError::Tls { .. } | TransportError::Io { .. }), "{error}");
}

/// Ordered echoes with pings between, a large message, and one that is too large for the peer.
fn echoes(connection: Connection, tls: bool) {
    let Connection { mut reader, mut writer, .. } = connection;
    let sending = background("t-send", move || {
        for n in 0..1000 {
            if n % 20 == 0 {
                writer.ping().unwrap();
            }
            writer.write(format!("message {n}").into()).unwrap();
        }
        writer.write("x".repeat(16 << 20).into()).unwrap();
        writer.flush().unwrap();
        writer
    });
    let (mut texts, mut pongs) = (0, 0);
    while texts < 1000 || pongs < 50 {
        match reader.read().unwrap() {
            Incoming::Text(text) => {
                assert_eq!(text.as_str(), format!("message {texts}"));
                texts += 1;
            }
            Incoming::Pong => pongs += 1,
            other => panic!("unexpected {other:?}"),
        }
    }
    assert_eq!(read_text(reader.as_mut()).len(), 16 << 20);
    let mut writer = join(sending);
    // The peer need not read it to the end; and its TLS cannot end one direction alone, so there the connection may
    // break.
    let _ = writer.write("x".repeat(21 << 20).into()).and_then(|()| writer.flush());
    match reader.read() {
        Ok(Incoming::Closed(info)) if info.clean => assert_eq!(info.code, Some(1009), "{info}"),
        Ok(Incoming::Closed(_)) | Err(TransportError::Io { .. }) if tls => {}
        other => panic!("expected Close 1009, got {other:?}"),
    }
}

fn pings_between_fragments(connection: Connection) {
    let Connection { mut reader, mut writer, .. } = connection;
    let mut pings = 0;
    let whole = loop {
        match reader.read().unwrap() {
            Incoming::Control => {
                pings += 1;
                writer.flush().unwrap();
            }
            Incoming::Text(text) => break text,
            other => panic!("unexpected {other:?}"),
        }
    };
    assert_eq!(whole.as_str(), (0..256).map(|n| format!("{n} ")).collect::<String>());
    assert_eq!(pings, 256);
    assert_eq!(read_text(reader.as_mut()), "all pongs");
    writer.close(1000, "").unwrap();
    assert!(matches!(reader.read().unwrap(), Incoming::Closed(info) if info.code == Some(1000)));
}

fn the_peer_closes(mut connection: Connection) {
    connection.writer.write("go".into()).unwrap();
    connection.writer.flush().unwrap();
    assert_eq!(read_text(connection.reader.as_mut()), "last words");
    let Incoming::Closed(info) = connection.reader.read().unwrap() else { panic!("expected the Close") };
    assert_eq!((info.code, info.reason.as_str()), (Some(4000), "bye"));
    connection.writer.flush().unwrap();
    assert!(matches!(connection.reader.read(), Err(TransportError::Closed)));
}

fn we_close(mut connection: Connection) {
    connection.writer.close(4321, "ours").unwrap();
    assert!(matches!(connection.reader.read().unwrap(), Incoming::Closed(info) if info.code == Some(4321)));
}

#[test]
fn our_client_with_its_server_plain() {
    our_client_with_its_server(false);
}

#[test]
fn our_client_with_its_server_tls() {
    our_client_with_its_server(true);
}

/// Echoes until the peer closes or breaks the limit; on `/closes` answers once and closes.
fn serve(connection: Connection, path: &str) {
    let Connection { mut reader, mut writer, .. } = connection;
    loop {
        match reader.read() {
            Ok(Incoming::Text(_)) if path == "/closes" => {
                writer.write("last words".into()).unwrap();
                writer.close(4000, "bye").unwrap();
            }
            Ok(Incoming::Text(text)) => {
                writer.write(text).unwrap();
                writer.flush().unwrap();
            }
            Ok(Incoming::Control | Incoming::Closed(_)) => writer.flush().unwrap(),
            Err(TransportError::Closed | TransportError::TooLarge { .. }) => return,
            other => panic!("unexpected {other:?}"),
        }
    }
}

fn our_server_with_its_client(tls: bool) {
    let Some(python) = python() else { return };
    let _threads = NoThreads::expected();
    let certificates = Certificates::new();
    let listener = WsListener::bind("127.0.0.1:0", tls.then(|| certificates.server())).unwrap();
    let mut arguments = vec!["client".to_owned(), listener.url()];
    if tls {
        arguments.push(certificates.path("ca.pem").display().to_string());
    }
    let kick = listener.kick();
    let server = background("t-serve", move || {
        let limits = SocketLimits { message_bytes: 16 << 20, ..Default::default() };
        loop {
            let outcome = accept(&listener, &limits, |request| {
                let refusal = Refusal { status: 403, body: "not you".to_owned(), retry_after: None };
                if request.path == "/refused" { Err(refusal) } else { Ok(()) }
            });
            match outcome {
                Ok((connection, request)) => serve(connection, &request.path),
                Err(TransportError::Refused { .. }) => {}
                Err(TransportError::Stopped) => return,
                Err(other) => panic!("{other}"),
            }
        }
    });
    let mut peer = Peer::start(&python, &arguments);
    let mut reported = String::new();
    peer.stdout.read_to_string(&mut reported).unwrap();
    kick.kick();
    join(server);
    assert_eq!(reported, "ok\n");
}

#[test]
fn our_server_with_its_client_plain() {
    our_server_with_its_client(false);
}

#[test]
fn our_server_with_its_client_tls() {
    our_server_with_its_client(true);
}
