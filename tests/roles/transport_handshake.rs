//! The upgrade, from both sides: what is refused, with what answer, and that nobody is waited for beyond the deadline.

use crate::testkit::threads::NoThreads;
use crate::testkit::transport as kit;
use crate::testkit::wait::far;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use kit::{Certificates, REQUEST, Site, accept, background, dial_ws, join, raw_client, raw_server, read_head};
use phalanx::base::shutdown::{Level, Shutdown};
use phalanx::net::http::HostNames;
use phalanx::ops::errors::ErrorClass;
use phalanx::transport::ws::{WsDialer, WsListener};
use phalanx::transport::{ClientTls, DialRequest, Dialer, Listener, Refusal, ServerTls, SocketLimits, TransportError};

fn soon() -> Instant {
    Instant::now() + Duration::from_millis(400)
}

/// A listener that handles one connection until the given deadline, and how that ended.
fn one_handshake(
    deadline: Instant,
    client: impl FnOnce(TcpStream),
) -> Result<phalanx::transport::HandshakeRequest, TransportError> {
    let listener = WsListener::bind("127.0.0.1:0", None).unwrap();
    let address = listener.local_addr();
    let server = background("t-accept", move || {
        let pending = listener.accept().unwrap();
        let limits = SocketLimits::default();
        pending
            .handshake(&limits, deadline, &Shutdown::new(), Level::Drain, &mut |_| Ok(()))
            .map(|(_, request)| request)
    });
    client(raw_client(address));
    join(server)
}

/// What the server answers to `request`, and how the handshake ended for itself.
fn answer_to(request: &[u8]) -> (String, TransportError) {
    let mut answer = String::new();
    let error = one_handshake(far(), |mut client| {
        client.write_all(request).unwrap();
        client.read_to_string(&mut answer).unwrap();
    })
    .unwrap_err();
    (answer, error)
}

#[test]
fn a_page_of_another_site_is_refused_and_a_program_is_not() {
    let names = HostNames::of_websockets(vec!["own.example".to_owned()]);
    for (host, origin, status) in [
        ("any.example", "", 101),
        ("127.0.0.1", "Origin: http://127.0.0.1\r\n", 101),
        ("own.example", "Origin: https://own.example\r\n", 101),
        ("own.example", "Origin: https://evil.example\r\n", 403),
        ("own.example", "Origin: null\r\n", 403),
        ("evil.example", "Origin: http://evil.example\r\n", 421),
    ] {
        let listener = WsListener::bind("127.0.0.1:0", None).unwrap().with_names(names.clone());
        let address = listener.local_addr();
        let server = background("t-accept", move || accept(&listener, &SocketLimits::default(), |_| Ok(())));
        let mut client = raw_client(address);
        let request = REQUEST.replace("Host: h\r\n", &format!("Host: {host}\r\n{origin}"));
        client.write_all(request.as_bytes()).unwrap();
        let head = read_head(&mut client);
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{host} {origin}: {head}");
        drop(client);
        assert_eq!(join(server).is_ok(), status == 101, "{host} {origin}");
    }
}

#[test]
fn path_headers_and_query_reach_the_route_and_its_refusal_reaches_the_client() {
    let _threads = NoThreads::expected();
    for tls in [false, true] {
        let Site { listener, dialer } = Site::new(tls);
        let url = format!("{}/ws/v0/?token=1", listener.url());
        let server = background("t-accept", move || {
            accept(&listener, &SocketLimits::default(), |request| {
                assert_eq!(request.path, "/ws/v0/?token=1");
                assert_eq!(request.header("x-who"), Some("me"));
                assert_eq!(request.header("no-such"), None);
                Err(Refusal { status: 403, body: "not you".to_owned(), retry_after: None })
            })
        });
        let headers = [("X-Who".to_owned(), "me".to_owned())];
        let request = DialRequest { url: &url, headers: &headers, limits: SocketLimits::default(), deadline: far() };
        let error = dialer.dial(&request, &Shutdown::new(), Level::Drain).unwrap_err();
        assert_eq!(error.to_string(), "upgrade refused with status 403: not you");
        assert_eq!(error.status(), Some(403));
        assert_eq!(join(server).unwrap_err().status(), Some(403));
    }
}

#[test]
fn a_refusal_with_a_status_that_does_not_refuse_is_an_error_of_the_server() {
    let _threads = NoThreads::expected();
    let Site { listener, dialer } = Site::new(false);
    let url = listener.url();
    let server = background("t-accept", move || {
        accept(&listener, &SocketLimits::default(), |_| {
            Err(Refusal { status: 204, body: String::new(), retry_after: None })
        })
    });
    assert_eq!(dial_ws(&dialer, &url, &SocketLimits::default()).unwrap_err().status(), Some(500));
    assert_eq!(join(server).unwrap_err().status(), Some(500));
}

#[test]
fn a_silent_client_ends_at_the_deadline() {
    let _threads = NoThreads::expected();
    let error = one_handshake(soon(), |mut client| {
        // Ends when the server closes.
        assert_eq!(client.read(&mut [0]).unwrap(), 0);
    })
    .unwrap_err();
    assert!(error.is_timeout(), "{error}");
}

#[test]
fn a_dribbling_client_ends_at_the_deadline() {
    let _threads = NoThreads::expected();
    let pause = Shutdown::new();
    // With few bytes sent it shows nothing: on a busy machine it takes longer.
    for millis in [400, 4_000, 40_000] {
        let mut sent = 0;
        let error = one_handshake(Instant::now() + Duration::from_millis(millis), |mut client| {
            let mut endless = b"GET / HTTP/1.1\r\n".iter().chain(std::iter::repeat(&b'x'));
            while client.write_all(&[*endless.next().unwrap()]).is_ok() {
                sent += 1;
                pause.wait(Duration::from_millis(5));
            }
        })
        .unwrap_err();
        assert!(error.is_timeout(), "{error}");
        if sent > 3 {
            return;
        }
    }
    panic!("hardly any bytes were sent");
}

#[test]
fn a_silent_and_a_dribbling_server_end_at_the_deadline() {
    let _threads = NoThreads::expected();
    for (scheme, dribble) in [("ws", false), ("ws", true), ("wss", false)] {
        let (listener, url) = raw_server(scheme);
        let server = background("t-rawserver", move || {
            let (mut stream, _) = listener.accept().unwrap();
            let pause = Shutdown::new();
            if dribble {
                let mut endless = b"HTTP/1.1 101 Yes\r\nX: ".iter().chain(std::iter::repeat(&b'x'));
                while stream.write_all(&[*endless.next().unwrap()]).is_ok() {
                    pause.wait(Duration::from_millis(5));
                }
            }
            // The request is read to its end, which comes when the client gives up; a reset is as good.
            let _ = stream.read_to_end(&mut Vec::new());
        });
        let request = DialRequest { url: &url, headers: &[], limits: SocketLimits::default(), deadline: soon() };
        let error = WsDialer::default().dial(&request, &Shutdown::new(), Level::Drain).unwrap_err();
        assert!(error.is_timeout() && error.is_retryable(), "{scheme} {dribble}: {error}");
        join(server);
    }
}

#[test]
fn heads_over_the_limit_are_refused_on_both_sides() {
    let _threads = NoThreads::expected();
    let long = format!("X-Long: {}\r\n", "x".repeat(SocketLimits::default().handshake_bytes));
    let (answer, error) = answer_to(format!("GET / HTTP/1.1\r\n{long}\r\n").as_bytes());
    assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
    assert!(error.to_string().contains("over the limit of 16384 bytes"), "{error}");

    let (answer, error) = answer_to(format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(101)).as_bytes());
    assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
    assert!(error.to_string().contains("more than 100 headers"), "{error}");

    let error = dial_raw(format!("HTTP/1.1 101 Yes\r\n{long}\r\n").as_bytes());
    assert!(error.to_string().contains("over the limit of 16384 bytes"), "{error}");
}

#[test]
fn requests_that_are_no_upgrade_get_a_status_that_says_why() {
    let _threads = NoThreads::expected();
    let without = |line: &str| {
        assert!(REQUEST.contains(line));
        REQUEST.replace(line, "")
    };
    for (status, says, request) in [
        (405, "must be GET", REQUEST.replace("GET", "POST")),
        (505, "HTTP/1.1", REQUEST.replace("HTTP/1.1", "HTTP/1.0")),
        (426, "WebSocket port", without("Upgrade: WebSocket\r\n")),
        (426, "WebSocket port", without("Connection: keep-alive, Upgrade\r\n")),
        (426, "must be 13", REQUEST.replace("Version: 13", "Version: 8")),
        (400, "16 bytes in base64", without("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n")),
        (400, "16 bytes in base64", REQUEST.replace("dGhlIHNhbXBsZSBub25jZQ==", "c2hvcnQ=")),
        (400, "before the upgrade was answered", format!("{REQUEST}more")),
        (400, "not HTTP", "GET / HTTP/1.1\r\nbad header line\r\n\r\n".to_owned()),
        (400, "not HTTP", "\u{16}\u{3}\u{1}".to_owned()),
    ] {
        let (answer, error) = answer_to(request.as_bytes());
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{request:?}: {answer}");
        assert!(answer.contains(says), "{request:?}: {answer}");
        assert!(matches!(&error, TransportError::Handshake { problem, .. } if problem.contains(says)), "{error}");
    }
}

#[test]
fn fields_are_read_as_the_rfcs_have_them() {
    let _threads = NoThreads::expected();
    let replaced = |what: &str, by: &str| {
        assert!(REQUEST.contains(what));
        REQUEST.replace(what, by)
    };
    let key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    for request in [
        replaced("Connection: keep-alive, Upgrade", "Connection: keep-alive\r\nConnection: Upgrade"),
        replaced("Connection: keep-alive, Upgrade", "CONNECTION: , uPGRADE\r\nconnection: keep-alive"),
        replaced("Upgrade: WebSocket", "Upgrade: other/1\r\nUpgrade: websocket"),
        replaced(key, &key.repeat(2)),
        replaced("GET /", "GET http://other.example:80/"),
        replaced("GET /", "GET wss://other.example"),
        replaced("GET /", "\r\n\r\nGET /"),
    ] {
        let outcome = one_handshake(far(), |mut client| {
            client.write_all(request.as_bytes()).unwrap();
            let answer = read_head(&mut client);
            assert!(answer.starts_with("HTTP/1.1 101 "), "{request:?}: {answer}");
        });
        assert_eq!(outcome.unwrap().path, "/", "{request:?}");
    }
    for (says, request) in [
        ("exactly one Host", replaced("Host: h\r\n", "")),
        ("exactly one Host", replaced("Host: h\r\n", "Host: h\r\nHost: h\r\n")),
        ("no host with", replaced("Host: h", "Host: u@h")),
        ("sec-websocket-key is there twice", replaced(key, &format!("{key}Sec-WebSocket-Key: other\r\n"))),
        ("target is no path", replaced("GET /", "GET ftp://h/")),
    ] {
        let (answer, error) = answer_to(request.as_bytes());
        assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains(says), "{request:?}: {answer}");
        assert!(answer.contains("\r\nX-Content-Type-Options: nosniff\r\nCache-Control: no-store\r\n"), "{answer}");
        assert!(error.to_string().contains(says), "{error}");
    }
}

#[test]
fn interim_answers_come_before_an_upgrade_or_a_refusal() {
    let _threads = NoThreads::expected();
    const INTERIM: &str = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n";
    let (listener, url) = raw_server("ws");
    let server = background("t-rawserver", move || {
        let (mut stream, _) = listener.accept().unwrap();
        let head = read_head(&mut stream);
        let key = head.lines().find_map(|l| l.strip_prefix("Sec-WebSocket-Key: ")).unwrap();
        let accept = tungstenite::handshake::derive_accept_key(key.as_bytes());
        let answer = format!(
            "{INTERIM}HTTP/1.1 101 Yes\r\nconnection: keep-alive\r\nCONNECTION: upgrade\r\nupgrade: WebSocket\r\n\
             sec-websocket-accept: {accept}\r\nSec-WebSocket-Extensions:\r\n\r\n"
        );
        stream.write_all(answer.as_bytes()).unwrap();
        stream
    });
    dial_ws(&WsDialer::default(), &url, &SocketLimits::default()).unwrap();
    join(server);

    let error = dial_raw(format!("{INTERIM}HTTP/1.1 503 Busy\r\nContent-Length: 5\r\n\r\nlater").as_bytes());
    assert_eq!(error.to_string(), "upgrade refused with status 503: later");
    let error = dial_raw(INTERIM.repeat(1000).as_bytes());
    assert!(error.to_string().contains("over the limit of 16384 bytes"), "{error}");
}

#[test]
fn a_client_that_leaves_before_its_request_is_done_is_no_bad_request() {
    let _threads = NoThreads::expected();
    let error = one_handshake(far(), |mut client| client.write_all(b"GET / HT").unwrap()).unwrap_err();
    assert!(matches!(error, TransportError::Closed), "{error}");
}

/// What our client says to a server that answers with `answer` and closes.
fn dial_raw(answer: &[u8]) -> TransportError {
    let (listener, url) = raw_server("ws");
    let answer = answer.to_vec();
    let server = background("t-rawserver", move || {
        let (mut stream, _) = listener.accept().unwrap();
        read_head(&mut stream);
        // A client that has seen enough may be gone already.
        let _ = stream.write_all(&answer);
    });
    let error = dial_ws(&WsDialer::default(), &url, &SocketLimits::default()).unwrap_err();
    join(server);
    error
}

#[test]
fn answers_that_are_no_upgrade_say_what_is_wrong() {
    let _threads = NoThreads::expected();
    const ACCEPTED: &str = "HTTP/1.1 101 Yes\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n";
    for (says, answer) in [
        ("it begins with \"SSH-2.0-OpenSSH\"", "SSH-2.0-OpenSSH\r\n"),
        ("it begins with \"HTTP/1.0 200 OK\"", "HTTP/1.0 200 OK\r\nContent-Type: text/html\r\n\r\n"),
        ("not HTTP/1.1", "HTTP/1.1 nonsense\r\n\r\n"),
        ("no upgrade to websocket", "HTTP/1.1 101 Yes\r\n\r\n"),
        ("does not belong to our key", &format!("{ACCEPTED}\r\n")),
        (
            "does not belong to our key",
            &format!("{ACCEPTED}Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"),
        ),
    ] {
        let error = dial_raw(answer.as_bytes());
        assert!(matches!(&error, TransportError::Handshake { problem, .. } if problem.contains(says)), "{error}");
    }
    // Somebody is there: it may be a connection that was cut.
    for answer in ["", "HTTP/1.1 101 Y"] {
        let error = dial_raw(answer.as_bytes());
        assert!(error.is_closed() && error.to_string().ends_with("instead of answering"), "{error}");
    }
    let error = dial_raw(b"HTTP/1.1 503 Busy\r\nContent-Length: 9\r\n\r\ntry laterAND MORE");
    assert_eq!(error.to_string(), "upgrade refused with status 503: try later");
    assert!(error.is_retryable());
    assert_eq!(error.retry_after(), None);
    for (body, says) in [
        (
            format!("<!doctype html><html>{}", "x".repeat(13_000)),
            "upgrade refused with status 404: a page for people, as HTML",
        ),
        ("{\"detail\": \"not here\"}".to_owned(), "upgrade refused with status 404: not here"),
        (String::new(), "upgrade refused with status 404"),
    ] {
        let answer = format!("HTTP/1.1 404 No\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        assert_eq!(dial_raw(answer.as_bytes()).to_string(), says);
    }
}

#[test]
fn a_refusal_has_its_status_and_when_to_come_back() {
    let _threads = NoThreads::expected();
    for (value, seconds) in [
        ("120", Some(120)),
        ("0", Some(0)),
        ("4294967296", Some(4_294_967_296)),
        ("-1", None),
        ("soon", None),
        ("Wed, 21 Oct 2015 07:28:00 GMT", Some(0)),
        // By the server's own time.
        ("Wed, 21 Oct 2015 07:28:00 GMT\r\nDate: Wed, 21 Oct 2015 07:27:30 GMT", Some(30)),
        ("7\r\nRetry-After: 9", Some(9)),
    ] {
        let error = dial_raw(format!("HTTP/1.1 429 Slow\r\nRetry-After: {value}\r\n\r\n").as_bytes());
        assert_eq!((error.status(), error.retry_after()), (Some(429), seconds.map(Duration::from_secs)), "{value}");
    }
    let other = dial_raw(b"");
    assert_eq!((other.status(), other.retry_after()), (None, None));
}

#[test]
fn a_redirect_is_not_followed_and_its_target_is_named() {
    let _threads = NoThreads::expected();
    for status in [301, 302, 303, 307, 308] {
        let answer = format!("HTTP/1.1 {status} Moved\r\nLocation: wss://new.example/\u{202e}ws\r\n\r\n");
        let error = dial_raw(answer.as_bytes());
        assert!(matches!(error, TransportError::Moved { .. }), "{error:?}");
        assert_eq!((error.status(), error.class()), (Some(status), ErrorClass::Rejected));
        let named = format!("status {status}: it has moved to \"wss://new.example/\\u{{202e}}ws\"");
        assert!(error.to_string().contains(&named), "{error}");
    }
    let long = "x".repeat(4000);
    let error = dial_raw(format!("HTTP/1.1 301 Moved\r\nLocation: /{long}\r\n\r\n").as_bytes());
    assert!(matches!(&error, TransportError::Moved { to, .. } if to.len() == 300), "{error}");
    for answer in ["301 Moved\r\n", "304 Same\r\nLocation: wss://new.example/\r\n"] {
        let error = dial_raw(format!("HTTP/1.1 {answer}\r\n").as_bytes());
        assert!(matches!(error, TransportError::Refused { .. }), "{error:?}");
    }
}

#[test]
fn a_client_says_who_it_is_unless_its_caller_does() {
    let _threads = NoThreads::expected();
    let ours = concat!("phalanx/", env!("CARGO_PKG_VERSION"));
    for (headers, expected) in [(vec![], ours), (vec![("user-agent".to_owned(), "other/1".to_owned())], "other/1")] {
        let Site { listener, dialer } = Site::new(false);
        let url = listener.url();
        let server = background("t-accept", move || accept(&listener, &SocketLimits::default(), |_| Ok(())).unwrap().1);
        let request = DialRequest { url: &url, headers: &headers, limits: SocketLimits::default(), deadline: far() };
        dialer.dial(&request, &Shutdown::new(), Level::Drain).unwrap();
        let request = join(server);
        let notified: Vec<_> =
            request.headers.iter().filter(|(name, _)| name.eq_ignore_ascii_case("user-agent")).collect();
        assert!(matches!(notified[..], [(_, value)] if value == expected), "{notified:?}");
    }
}

#[test]
fn an_extension_that_nobody_offered_is_refused() {
    let _threads = NoThreads::expected();
    let (listener, url) = raw_server("ws");
    let server = background("t-rawserver", move || {
        let (mut stream, _) = listener.accept().unwrap();
        let head = read_head(&mut stream);
        assert!(!head.to_ascii_lowercase().contains("extensions"), "{head}");
        let key = head.lines().find_map(|l| l.strip_prefix("Sec-WebSocket-Key: ")).unwrap();
        let accept = tungstenite::handshake::derive_accept_key(key.as_bytes());
        let answer = format!(
            "HTTP/1.1 101 Yes\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: {accept}\r\n\
             Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n"
        );
        stream.write_all(answer.as_bytes()).unwrap();
    });
    let error = dial_ws(&WsDialer::default(), &url, &SocketLimits::default()).unwrap_err();
    assert!(error.to_string().contains("permessage-deflate"), "{error}");
    join(server);
}

#[test]
fn bad_urls_and_headers_are_refused_before_anything_is_dialled() {
    let _threads = NoThreads::expected();
    let dialer = WsDialer::default();
    let error = dial_ws(&dialer, "http://127.0.0.1:1/", &SocketLimits::default()).unwrap_err();
    assert_eq!(error.to_string(), "bad url \"http://127.0.0.1:1/\": scheme http, expected ws or wss");
    assert!(!error.is_retryable());

    for (name, value) in [("X-Bad", "a\r\nX-Smuggled: b"), ("X Bad", "a"), ("host", "other"), ("Upgrade", "h2c")] {
        let Site { listener, dialer } = Site::new(false);
        let url = listener.url();
        let headers = [(name.to_owned(), value.to_owned())];
        let request = DialRequest { url: &url, headers: &headers, limits: SocketLimits::default(), deadline: far() };
        let error = dialer.dial(&request, &Shutdown::new(), Level::Drain).unwrap_err();
        assert!(matches!(error, TransportError::Header { .. }) && !error.is_retryable(), "{error}");
    }
}

#[test]
fn a_closed_port_is_an_error_of_the_dial() {
    let _threads = NoThreads::expected();
    let (listener, url) = raw_server("ws");
    drop(listener);
    let error = dial_ws(&WsDialer::default(), &url, &SocketLimits::default()).unwrap_err();
    assert!(matches!(error, TransportError::Dial(_)) && error.is_retryable(), "{error}");
}

#[test]
fn an_address_in_use_is_named() {
    let taken = WsListener::bind("127.0.0.1:0", None).unwrap();
    let error = WsListener::bind(taken.local_addr(), None).unwrap_err();
    assert!(error.to_string().starts_with(&format!("cannot listen on {}: ", taken.local_addr())), "{error}");
}

/// Both outcomes of a dial of `url` to `listener`.
fn both_errors(listener: WsListener, dialer: &WsDialer, url: &str) -> (TransportError, TransportError) {
    let server = background("t-accept", move || accept(&listener, &SocketLimits::default(), |_| Ok(())).unwrap_err());
    let client = dial_ws(dialer, url, &SocketLimits::default()).unwrap_err();
    (client, join(server))
}

#[test]
fn tls_to_a_plain_port_and_plain_to_a_tls_port_say_so() {
    let _threads = NoThreads::expected();
    let Site { listener, dialer } = Site::new(false);
    let url = listener.url().replace("ws://", "wss://");
    let (client, server) = both_errors(listener, &dialer, &url);
    assert!(matches!(client, TransportError::Tls { .. }), "{client}");
    assert!(client.to_string().contains("does not speak TLS"), "{client}");
    assert!(server.to_string().contains("this port has no TLS"), "{server}");

    let Site { listener, dialer } = Site::new(true);
    let url = listener.url().replace("wss://", "ws://");
    let (client, server) = both_errors(listener, &dialer, &url);
    assert!(client.to_string().contains("not HTTP/1.1 but TLS: its address begins with wss://"), "{client}");
    assert!(matches!(server, TransportError::Tls { .. }), "{server}");
}

#[test]
fn a_certificate_of_another_authority_or_name_is_refused() {
    let _threads = NoThreads::expected();
    let strangers = Certificates::new();
    let cases = [
        (ClientTls::public(), "\"test authority\", which is not trusted here"),
        // One of the same name.
        (strangers.client(), "its certificate is not signed by the authority that it names"),
    ];
    for (tls, why) in cases {
        let Site { listener, .. } = Site::new(true);
        let url = listener.url();
        let (client, server) = both_errors(listener, &WsDialer::new(tls), &url);
        assert!(client.to_string().contains(why), "{client}");
        assert!(matches!(server, TransportError::Tls { .. }), "{server}");
    }
    let own = Certificates::new();
    let listener = WsListener::bind("127.0.0.2:0", Some(own.server())).unwrap();
    let url = listener.url();
    let (client, _) = both_errors(listener, &WsDialer::new(own.client()), &url);
    assert!(client.to_string().contains("not for 127.0.0.2; a good one names 127.0.0.2"), "{client}");
}

#[test]
fn certificate_files_that_do_not_serve_are_named() {
    let own = Certificates::new();
    let other = Certificates::new();
    std::fs::write(own.path("empty.pem"), "").unwrap();
    std::fs::write(own.path("broken.pem"), "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n").unwrap();
    let client = |name: &str| ClientTls::from_ca_file(&own.path(name)).unwrap_err().to_string();
    assert!(
        client("absent.pem").contains("absent.pem: cannot read the certificate: No such file"),
        "{}",
        client("absent.pem")
    );
    assert!(client("empty.pem").contains("empty.pem: has no certificate; expected"), "{}", client("empty.pem"));
    assert!(client("broken.pem").contains("broken.pem: is not a PEM file"), "{}", client("broken.pem"));
    let server = |cert: PathBuf, key: PathBuf| ServerTls::from_files(&cert, &key).unwrap_err().to_string();
    let no_key = server(own.path("cert.pem"), own.path("ca.pem"));
    assert!(no_key.contains("ca.pem: has no private key; expected"), "{no_key}");
    let mixed = server(own.path("cert.pem"), other.path("key.pem"));
    assert!(mixed.contains("key.pem: does not fit the certificate"), "{mixed}");
}
