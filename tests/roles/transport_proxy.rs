//! Dialling through an HTTP proxy: the tunnel, what a proxy may answer, and that the password stays between the two.

use crate::testkit::threads::NoThreads;
use crate::testkit::transport as kit;
use std::io::{self, Read, Write};
use std::net::{Shutdown as Half, TcpListener, TcpStream};
use std::process::Command;

use base64::Engine;
use kit::{Site, accept, background, dial_ws, join, raw_client, raw_server, read_head, read_text};
use phalanx::base::thread::Thread;
use phalanx::transport::ws::WsDialer;
use phalanx::transport::{Listener, Proxy, Refusal, SocketLimits, TransportError};

const CREDENTIALS: &str = "user:s3%3Acr%65t@";

/// A proxy for one connection; gives the head of the request.
fn one_tunnel() -> (Proxy, Thread<String>) {
    let (listener, url) = raw_server("http");
    let serving = background("t-proxy", move || {
        let (mut client, _) = listener.accept().unwrap();
        let head = read_head(&mut client);
        let target = head.strip_prefix("CONNECT ").unwrap().split_once(' ').unwrap().0.to_owned();
        let server = raw_client(target.parse().unwrap());
        client.write_all(b"HTTP/1.0 200 Connection established\r\nVia: test\r\n\r\n").unwrap();
        let (back_from, back_to) = (server.try_clone().unwrap(), client.try_clone().unwrap());
        let back = background("t-back", move || copy(back_from, back_to));
        copy(client, server);
        join(back);
        head
    });
    (Proxy::parse(&url.replace("//", &format!("//{CREDENTIALS}"))).unwrap(), serving)
}

/// Until either end is gone.
fn copy(mut from: TcpStream, mut to: TcpStream) {
    let _ = io::copy(&mut from, &mut to);
    let _ = to.shutdown(Half::Write);
}

#[test]
fn both_schemes_go_through_the_tunnel() {
    let _threads = NoThreads::expected();
    for tls in [false, true] {
        let Site { listener, dialer } = Site::new(tls);
        let (proxy, serving) = one_tunnel();
        let url = format!("{}/echo", listener.url());
        let target = listener.local_addr().to_string();
        let server = background("t-accept", move || accept(&listener, &SocketLimits::default(), |_| Ok(())).unwrap());
        let mut ours = dial_ws(&dialer.through(proxy), &url, &SocketLimits::default()).unwrap();
        let (mut theirs, request) = join(server);
        assert_eq!(request.path, "/echo");
        // The proxy's password is not the server's business.
        assert_eq!(request.header("proxy-authorization"), None);
        ours.writer.write("through".into()).unwrap();
        ours.writer.flush().unwrap();
        assert_eq!(read_text(theirs.reader.as_mut()), "through");
        theirs.writer.write("and back".into()).unwrap();
        theirs.writer.flush().unwrap();
        assert_eq!(read_text(ours.reader.as_mut()), "and back");
        drop((ours, theirs));

        let head = join(serving);
        assert!(head.starts_with(&format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n")), "{head}");
        let basic = base64::engine::general_purpose::STANDARD.encode("user:s3:cret");
        assert!(head.contains(&format!("\r\nProxy-Authorization: Basic {basic}\r\n")), "{head}");
        assert!(head.contains(concat!("\r\nUser-Agent: phalanx/", env!("CARGO_PKG_VERSION"), "\r\n")), "{head}");
    }
}

#[test]
fn a_refusal_by_the_server_behind_the_proxy_is_the_servers() {
    let _threads = NoThreads::expected();
    let Site { listener, dialer } = Site::new(false);
    let (proxy, serving) = one_tunnel();
    let url = listener.url();
    let server = background("t-accept", move || {
        accept(&listener, &SocketLimits::default(), |_| {
            Err(Refusal { status: 403, body: "not you".to_owned(), retry_after: None })
        })
    });
    let error = dial_ws(&dialer.through(proxy), &url, &SocketLimits::default()).unwrap_err();
    assert_eq!(error.status(), Some(403), "{error}");
    assert!(join(server).is_err());
    join(serving);
}

/// A proxy that answers whatever it is asked with `answer`, then closes.
fn answering(answer: Vec<u8>) -> (TcpListener, String, impl FnOnce(TcpListener) -> Thread<()>) {
    let (listener, url) = raw_server("http");
    let serve = move |listener: TcpListener| {
        background("t-proxy", move || {
            let (mut stream, _) = listener.accept().unwrap();
            read_head(&mut stream);
            // A client that has seen enough may be gone already.
            let _ = stream.write_all(&answer).and_then(|()| stream.shutdown(Half::Write));
            let _ = stream.read_to_end(&mut Vec::new());
        })
    };
    (listener, url, serve)
}

/// What our client says when the proxy answers so, and the proxy's name.
fn error_for(credentials: &str, answer: &[u8]) -> (TransportError, String) {
    let (listener, name, serve) = answering(answer.to_vec());
    let serving = serve(listener);
    let proxy = Proxy::parse(&name.replace("//", &format!("//{credentials}"))).unwrap();
    let error =
        dial_ws(&WsDialer::default().through(proxy), "ws://far.example/x", &SocketLimits::default()).unwrap_err();
    join(serving);
    (error, name)
}

#[test]
fn what_follows_the_proxys_answer_is_not_lost() {
    let _threads = NoThreads::expected();
    let answers = b"HTTP/1.1 100 Wait\r\n\r\nHTTP/1.1 200 OK\r\n\r\n\
        HTTP/1.1 503 Busy\r\nRetry-After: 7\r\nContent-Length: 5\r\n\r\nlater";
    let (error, _) = error_for("", answers);
    assert_eq!(error.to_string(), "upgrade refused with status 503: later");
    assert_eq!(error.retry_after(), Some(std::time::Duration::from_secs(7)));
}

#[test]
fn a_proxy_that_does_not_tunnel_is_named_in_one_line_without_the_password() {
    let _threads = NoThreads::expected();
    let endless = format!("HTTP/1.1 200 OK\r\nX: {}", "x".repeat(20_000)).into_bytes();
    let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "A: b\r\n".repeat(101)).into_bytes();
    let cases: [(&str, &str, &[u8]); 11] = [
        (
            "",
            "it wants a user and a password (status 407); give http://user:password@host:port",
            b"HTTP/1.1 407 A\r\n\r\n",
        ),
        (CREDENTIALS, "it refuses the user or the password (status 407)", b"HTTP/1.1 407 s3:cret\r\n\r\n"),
        (CREDENTIALS, "no tunnel to far.example:80: status 502 Bad Gateway", b"HTTP/1.1 502 s3:cret\r\n\r\ns3:cret"),
        ("", "no tunnel to far.example:80: status 302 Found", b"HTTP/1.1 302 Go\r\nLocation: http://login/\r\n\r\n"),
        ("", "no tunnel to far.example:80: status 799 (unknown)", b"HTTP/1.1 799 What\r\n\r\n"),
        ("", "its answer is not HTTP/1", b"SSH-2.0-OpenSSH\r\n"),
        ("", "its answer is not HTTP/1: invalid response status", b"HTTP/1.1 nonsense\r\n\r\n"),
        ("", "its answer is not HTTP/1: too many headers", &many),
        ("", "the head of its answer is over the limit of 16384 bytes", &endless),
        ("", "it closed the connection instead of answering", b"HTTP/1.1 200"),
        ("", "it closed the connection instead of answering", b""),
    ];
    for (credentials, says, answer) in cases {
        let (error, name) = error_for(credentials, answer);
        assert_eq!(error.to_string(), format!("proxy {name}: {says}"));
        assert!(!format!("{error:?}").contains("s3"), "{error:?}");
        // It is no word of the server, and the proxy may get better.
        assert!(error.status().is_none() && error.is_retryable());
    }
}

#[test]
fn a_proxy_that_is_not_there_is_named() {
    let _threads = NoThreads::expected();
    let (listener, url) = raw_server("http");
    drop(listener);
    let proxy = Proxy::parse(&url).unwrap();
    let error =
        dial_ws(&WsDialer::default().through(proxy), "ws://far.example/", &SocketLimits::default()).unwrap_err();
    assert!(error.to_string().starts_with(&format!("proxy {url}: cannot connect to ")), "{error}");
    let proxy = Proxy::parse("http://user:secret@no-such-host.invalid:1").unwrap();
    let error =
        dial_ws(&WsDialer::default().through(proxy), "ws://far.example/", &SocketLimits::default()).unwrap_err();
    let start = "proxy http://no-such-host.invalid:1: cannot look up no-such-host.invalid: ";
    assert!(error.to_string().starts_with(start), "{error}");
}

#[test]
fn neither_help_nor_a_usage_error_shows_the_password() {
    for arguments in [&["executor", "--help"][..], &["validator", "--help"], &["executor"]] {
        let output = Command::new(env!("CARGO_BIN_EXE_phalanx"))
            .args(arguments)
            .env("PHALANX_PROXY", "socks5://user:secret@proxy.example:1080")
            .env("MINER_ADDRESS", "ws://127.0.0.1:1")
            .env("EXECUTOR_TOKEN", "t")
            .output()
            .unwrap();
        let reported = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert!(
            reported.contains(if arguments.len() == 1 { "--proxy (PHALANX_PROXY): bad url" } else { "PHALANX_PROXY" }),
            "{reported}"
        );
        assert!(!reported.contains("secret"), "{reported}");
    }
}
