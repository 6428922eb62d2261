//! Answers that are not as they should be: what counts of them, and whose fault the rest is.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::time::{Duration, Instant};

use phalanx::base::shutdown::Shutdown;
use phalanx::base::thread::{Kick, spawn};
use phalanx::net::http::client::{ANSWER_BYTES, Content, Download, HttpClient, HttpError};
use phalanx::ops::cause::Cause;

use crate::testkit::http::{Reply, Server};
use crate::testkit::job::Bench;
use crate::testkit::wait::far;

fn client() -> HttpClient {
    HttpClient::new(Shutdown::new())
}

/// An answer that is sent so, and after which the connection is closed.
fn raw(status: &str, fields: &str, body: &[u8]) -> Reply {
    Reply::Raw([format!("HTTP/1.1 {status}\r\n{fields}\r\n\r\n").as_bytes(), body].concat())
}

#[test]
fn a_refusal_counts_whatever_becomes_of_its_text() {
    let bench = Bench::new();
    let waits = "retry-after: 2";
    let server = Server::start(move |request| match request.path.as_str() {
        "/mislabelled" => raw("503 x", &format!("{waits}\r\ncontent-encoding: gzip\r\ncontent-length: 4"), b"busy"),
        "/unknown" => raw("429 x", &format!("{waits}\r\ncontent-encoding: br\r\ncontent-length: 4"), b"busy"),
        "/transfer" => raw("429 x", &format!("{waits}\r\ntransfer-encoding: gzip, chunked"), b"4\r\nbusy\r\n0\r\n\r\n"),
        "/long" => raw("500 x", &format!("{waits}\r\ncontent-length: 20000000"), &vec![b'x'; 20_000_000]),
        "/cut" => raw("503 x", &format!("{waits}\r\ncontent-length: 100"), b"busy"),
        _ => Reply::Hang(format!("HTTP/1.1 503 x\r\n{waits}\r\ncontent-length: 100\r\n\r\nbusy").into()),
    });
    let folder = tempfile::tempdir().unwrap();
    for path in ["/mislabelled", "/unknown", "/transfer", "/long", "/cut", "/stalls"] {
        let url = server.url(path);
        let download = &mut Download::new(folder.path().join("f"), 100);
        for error in [
            client().get(&url, &[], far()).and_then(|answer| answer.ok()).map(drop).unwrap_err(),
            client().put(&url, &[], Content::Bytes(b"x"), far()).and_then(|answer| answer.ok()).map(drop).unwrap_err(),
            client().download(&url, &[], download, far()).map(drop).unwrap_err(),
        ] {
            assert!(matches!(error, HttpError::Status { .. }), "{path}: {error}");
            assert_eq!((error.cause(), error.retry_after()), (Cause::NETWORK_PASSING, Some(Duration::from_secs(2))));
        }
    }
    drop(server);
    bench.assert_clean();
}

#[test]
fn what_was_sent_and_taken_is_sent_whatever_the_server_says_to_it() {
    let bench = Bench::new();
    let server = Server::start(move |request| match request.path.as_str() {
        "/mislabelled" => raw("200 x", "content-encoding: gzip\r\ncontent-length: 4", b"good"),
        "/long" => raw("200 x", "content-length: 20000000", &vec![b'x'; 20_000_000]),
        _ => raw("201 x", "content-length: 100", b"good"),
    });
    for (path, status) in [("/mislabelled", 200), ("/long", 200), ("/cut", 201)] {
        let answer = client().put(&server.url(path), &[], Content::Bytes(b"x"), far()).unwrap();
        assert!(answer.status == status && answer.body.len() as u64 <= ANSWER_BYTES, "{path}: {answer:?}");
    }
    assert_eq!(server.seen().len(), 3);
    drop(server);
    bench.assert_clean();
}

#[test]
fn a_file_in_a_transfer_coding_that_nobody_asked_for_is_no_file() {
    let bench = Bench::new();
    let server = Server::start(move |request| {
        let coding = request.path.trim_start_matches('/').replace('_', " ");
        raw("200 x", &format!("transfer-encoding: {coding}, chunked"), b"4\r\nbusy\r\n0\r\n\r\n")
    });
    let folder = tempfile::tempdir().unwrap();
    for coding in ["zstd", "br", "x-foo", "GZIP;q=1", "deflate"] {
        let download = &mut Download::new(folder.path().join("f"), 100);
        let error = client().download(&server.url(&format!("/{coding}")), &[], download, far()).unwrap_err();
        let name = coding.split(';').next().unwrap();
        assert!(error.to_string().contains(&format!("its Transfer-Encoding is {name:?}")), "{coding}: {error}");
        assert!(!folder.path().join("f").exists());
    }
    client().download(&server.url("/identity"), &[], &mut Download::new(folder.path().join("f"), 100), far()).unwrap();
    assert_eq!(fs::read(folder.path().join("f")).unwrap(), b"busy");
    drop(server);
    bench.assert_clean();
}

/// Accepted is not there; a wait may be longer than asked for, and not shorter; a refusal with a wait is no last word.
#[test]
fn who_asks_to_come_again_is_asked_again() {
    let bench = Bench::new();
    let server = Server::start(move |request| match request.path.as_str() {
        "/later" => Reply::Answer(202, vec![("retry-after", "3".into())], b"wait".to_vec()),
        "/accepted" => Reply::Answer(202, vec![], b"it".to_vec()),
        "/twice" => Reply::Answer(503, vec![("retry-after", "1".into()), ("retry-after", "3".into())], b"".to_vec()),
        _ => Reply::Answer(413, vec![("retry-after", "3".into())], b"".to_vec()),
    });
    let folder = tempfile::tempdir().unwrap();
    let download =
        |path: &str| client().download(&server.url(path), &[], &mut Download::new(folder.path().join("f"), 100), far());
    for path in ["/later", "/twice", "/large"] {
        let error = download(path).unwrap_err();
        assert_eq!((error.cause(), error.retry_after()), (Cause::NETWORK_PASSING, Some(Duration::from_secs(3))));
    }
    assert_eq!(download("/accepted").unwrap(), 2);
    drop(server);
    bench.assert_clean();
}

#[test]
fn a_body_that_only_the_end_of_its_connection_ends_may_have_been_cut() {
    let bench = Bench::new();
    let server = Server::start(move |_| raw("200 x", "content-encoding: gzip", &[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3]));
    let folder = tempfile::tempdir().unwrap();
    let download = &mut Download::new(folder.path().join("f"), 100);
    let error = client().download(&server.url("/"), &[], download, far()).unwrap_err();
    assert_eq!(error.cause(), Cause::NETWORK_PASSING, "{error}");
    drop(server);
    bench.assert_clean();
}

/// A server that takes the body only after its word to go on, which may follow another interim answer.
#[test]
fn a_body_that_is_announced_is_sent_when_the_server_says_so() {
    let bench = Bench::new();
    for before in ["", "HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n"] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let thread = spawn("t-expect", Kick::dropped("the client connects"), move || {
            let (mut stream, _) = listener.accept().unwrap();
            let (mut head, mut byte) = (Vec::new(), [0]);
            while !head.ends_with(b"\r\n\r\n") {
                stream.read_exact(&mut byte).unwrap();
                head.push(byte[0]);
            }
            write!(stream, "{before}HTTP/1.1 100 Continue\r\n\r\n").unwrap();
            let mut body = [0; 5];
            stream.read_exact(&mut body).unwrap();
            write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n").unwrap();
            stream.write_all(&body).unwrap();
        });
        let fields = [("Expect".to_owned(), "100-continue".to_owned())];
        let begun = Instant::now();
        let answer = client().put(&url, &fields, Content::Bytes(b"hello"), far()).unwrap();
        assert_eq!((answer.status, answer.text().as_str()), (200, "hello"));
        // Without the word a client goes on by itself after a second.
        println!("{:?}", begun.elapsed());
        thread.join_by(far()).unwrap();
    }
    bench.assert_clean();
}
