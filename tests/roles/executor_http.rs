//! The HTTP client: bytes arrive exactly, limits hold, and every blocked call ends at its deadline and on cancel.

use crate::testkit::http;
use crate::testkit::job;
use crate::testkit::wait::far;
use std::fs::{self, File};
use std::net::TcpListener;
use std::time::{Duration, Instant};

use http::{Reply, Server};
use job::Bench;
use phalanx::base::shutdown::Shutdown;
use phalanx::base::thread::{Kick, spawn};
use phalanx::net::http::client::{ANSWER_BYTES, Content, FilePart, HttpClient, HttpError};
use phalanx::net::reach::Reach;

fn client() -> HttpClient {
    HttpClient::new(Shutdown::new())
}

fn pair(name: &str, value: &str) -> (String, String) {
    (name.to_owned(), value.to_owned())
}

#[test]
fn a_get_sends_its_headers_and_gives_status_headers_and_body() {
    let bench = Bench::new();
    let server =
        Server::start(|_| Reply::Answer(404, vec![("X-One", "1".into()), ("x-one", "2".into())], b"gone".to_vec()));
    let response = client().get(&server.url("/a/b?c=d"), &[pair("X-Token", "t")], far()).unwrap();
    assert_eq!((response.status, response.text().as_str()), (404, "gone"));
    let ones: Vec<_> = response.headers.iter().filter(|(name, _)| name == "x-one").map(|(_, v)| v.as_str()).collect();
    assert_eq!(ones, ["1", "2"]);
    let error = response.ok().unwrap_err();
    assert_eq!(error.to_string(), format!("{} answered 404: gone", server.url("/a/b")), "without the query");
    let seen = server.seen();
    assert_eq!((seen[0].method.as_str(), seen[0].path.as_str()), ("GET", "/a/b?c=d"));
    assert_eq!(seen[0].header("x-token"), Some("t"));
    assert_eq!(seen[0].header("content-length"), None);
    drop(server);
    bench.assert_clean();
}

#[test]
fn json_goes_and_comes() {
    let bench = Bench::new();
    let server = Server::start(|request| Reply::ok(request.body.clone()));
    let value = serde_json::json!({"a": [1, "é"]});
    let response = client().post_json(&server.url("/"), &[], &value, far()).unwrap();
    assert_eq!(response.json::<serde_json::Value>().unwrap(), value);
    assert_eq!(server.seen()[0].header("content-type"), Some("application/json"));
    drop(server);
    bench.assert_clean();
}

#[test]
fn a_put_sends_a_file_exactly_and_again_from_the_start() {
    let bench = Bench::new();
    let server = Server::start(|_| Reply::ok(""));
    let folder = tempfile::tempdir().unwrap();
    let bytes: Vec<u8> = (0..1_000_000u32).map(|n| (n * 7) as u8).collect();
    fs::write(folder.path().join("f"), &bytes).unwrap();
    let file = File::open(folder.path().join("f")).unwrap();
    let content = Content::File { file: &file, len: bytes.len() as u64 };
    for _ in 0..2 {
        assert_eq!(client().put(&server.url("/x"), &[], content, far()).unwrap().status, 200);
    }
    client().put(&server.url("/x"), &[], Content::Bytes(b""), far()).unwrap();
    let seen = server.seen();
    assert!(seen[0].body == bytes && seen[1].body == bytes && seen[2].body.is_empty());
    assert_eq!(seen[0].header("content-length"), Some("1000000"));
    assert_eq!(seen[2].header("content-length"), Some("0"));
    assert_eq!(seen[0].header("content-type"), None, "a signed address may not cover one");
    let short = Content::File { file: &file, len: bytes.len() as u64 + 1 };
    let error = client().put(&server.url("/x"), &[], short, far()).unwrap_err();
    assert!(error.to_string().contains("became shorter") && !error.is_transient(), "{error}");
    drop(server);
    bench.assert_clean();
}

#[test]
fn a_form_has_its_fields_in_order_and_then_the_file() {
    let bench = Bench::new();
    let server = Server::start(|_| Reply::status(204));
    let fields = [pair("key", "a/b"), pair("ż\"", "x\r\ny")];
    let content = Content::Bytes(b"\x00\xff--");
    let part = FilePart { field: "file", file_name: "output.zip", content_type: "application/zip", content };
    let fields = fields.iter().map(|(name, value)| (name, value));
    client().post_multipart(&server.url("/"), &[pair("x-h", "1")], fields, part, far()).unwrap();
    let request = &server.seen()[0];
    let kind = request.header("content-type").unwrap();
    let boundary = kind.strip_prefix("multipart/form-data; boundary=").unwrap();
    let expected = [
        format!("--{boundary}\r\ncontent-disposition: form-data; name=\"key\"\r\n\r\na/b\r\n").into_bytes(),
        format!("--{boundary}\r\ncontent-disposition: form-data; name=\"ż%22\"\r\n\r\nx\r\ny\r\n").into_bytes(),
        format!("--{boundary}\r\ncontent-disposition: form-data; name=\"file\"; filename=\"output.zip\"\r\n")
            .into_bytes(),
        b"content-type: application/zip\r\n\r\n\x00\xff--\r\n".to_vec(),
        format!("--{boundary}--\r\n").into_bytes(),
    ];
    assert_eq!(request.body, expected.concat());
    assert_eq!(request.header("x-h"), Some("1"));
    drop(server);
    bench.assert_clean();
}

#[test]
fn a_download_is_exact_and_bounded_with_and_without_an_announced_length() {
    let bench = Bench::new();
    let server = Server::start(|request| match request.path.as_str() {
        "/chunked" => {
            Reply::Raw(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n".into())
        }
        "/until-close" => Reply::Raw(b"HTTP/1.1 200 OK\r\n\r\nabcde".into()),
        "/cut" => Reply::Raw(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabcde".into()),
        "/missing" => Reply::Answer(404, vec![], b"no such thing".to_vec()),
        _ => Reply::ok("abcde"),
    });
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("f");
    let get = |which: &str, max| client().get_to_file(&server.url(which), &[], &path, max, far());
    for which in ["/chunked", "/until-close", "/length"] {
        assert_eq!(get(which, 5).unwrap(), 5, "{which}");
        assert_eq!(fs::read(&path).unwrap(), b"abcde");
        let error = get(which, 4).unwrap_err();
        assert!(matches!(error, HttpError::TooLarge { max: 4, .. }) && !error.is_transient(), "{which}: {error}");
    }
    let error = get("/cut", 10).unwrap_err();
    assert!(matches!(error, HttpError::Connection { .. }) && error.is_transient(), "{error}");
    fs::remove_file(&path).unwrap();
    let error = get("/missing", 10).unwrap_err();
    assert!(error.to_string().ends_with("/missing answered 404: no such thing") && !error.is_transient(), "{error}");
    assert!(!path.exists());
    let error = client().get_to_file(&server.url("/length"), &[], folder.path(), 5, far()).unwrap_err();
    assert!(matches!(error, HttpError::File { .. }), "{error}");
    drop(server);
    bench.assert_clean();
}

#[test]
fn an_answer_in_memory_is_bounded() {
    let bench = Bench::new();
    let server = Server::start(|_| Reply::ok(vec![b'x'; ANSWER_BYTES as usize + 1]));
    let error = client().get(&server.url("/"), &[], far()).unwrap_err();
    assert!(matches!(error, HttpError::TooLarge { max: ANSWER_BYTES, .. }), "{error}");
    drop(server);
    bench.assert_clean();
}

#[test]
fn a_get_follows_redirects_up_to_a_limit_and_gives_no_other_host_its_secret() {
    let bench = Bench::new();
    let other = Server::start(|_| Reply::ok("there"));
    let target = other.url("/there").replace("127.0.0.1", "localhost");
    let server = Server::start(move |request| match request.path.as_str() {
        "/away" => Reply::Answer(302, vec![("location", target.clone())], vec![]),
        "/for-ever" => Reply::Answer(302, vec![("location", "/for-ever".into())], vec![]),
        _ => Reply::Answer(307, vec![("location", "/elsewhere".into())], vec![]),
    });
    let secret = [pair("authorization", "Bearer hf_secret")];
    assert_eq!(client().get(&server.url("/away"), &secret, far()).unwrap().text(), "there");
    assert_eq!(other.seen()[0].header("authorization"), None, "another host, by its name");
    assert_eq!(server.seen()[0].header("authorization"), Some("Bearer hf_secret"));
    let error = client().get(&server.url("/for-ever"), &[], far()).unwrap_err();
    assert!(error.to_string().contains("redirect"), "{error}");
    assert_eq!(client().put(&server.url("/put"), &[], Content::Bytes(b"x"), far()).unwrap().status, 307);
    drop((server, other));
    bench.assert_clean();
}

#[test]
fn a_client_for_jobs_goes_nowhere_else_whoever_sends_it_there() {
    let bench = Bench::new();
    let inside = Server::start(|_| Reply::ok("a secret"));
    let port = inside.url("").rsplit_once(':').unwrap().1.to_owned();
    let client = HttpClient::within(Reach::default(), Shutdown::new());
    for host in ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "[::ffff:127.0.0.1]", "0.0.0.0", "[::1]", "127.1"] {
        let url = format!("http://{host}:{port}/x");
        for answer in [client.get(&url, &[], far()), client.put(&url, &[], Content::Bytes(b"x"), far())] {
            let error = answer.unwrap_err();
            assert!(matches!(error, HttpError::OutOfReach { .. }) && !error.is_transient(), "{host}: {error}");
            let host = host.trim_matches(['[', ']']);
            let said = error.to_string().replace(['[', ']'], "");
            assert!(said.starts_with(&format!("jobs may not reach {host}: ")) && said.contains("--reach"), "{said}");
        }
    }
    assert!(inside.seen().is_empty());

    // Open is one address, and the redirect leads to another.
    let target = inside.url("/x").replace("127.0.0.1", "127.0.0.2");
    let redirect = Server::start(move |_| Reply::Answer(302, vec![("location", target.clone())], vec![]));
    let open = Reach::Global(vec!["127.0.0.1".parse().unwrap()]);
    let error = HttpClient::within(open, Shutdown::new()).get(&redirect.url("/"), &[], far()).unwrap_err();
    assert!(error.to_string().starts_with("jobs may not reach 127.0.0.2: "), "{error}");
    assert_eq!(redirect.seen().len(), 1);
    drop((inside, redirect));
    bench.assert_clean();
}

#[test]
fn transient_errors_are_distinguished_from_permanent_ones() {
    let bench = Bench::new();
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = client().get(&format!("http://{closed}/"), &[], far()).unwrap_err();
    assert!(matches!(error, HttpError::Connection { .. }) && error.is_transient(), "{error}");
    for (status, transient) in [(400, false), (403, false), (408, true), (429, true), (500, true), (503, true)] {
        let server = Server::start(move |_| Reply::status(status));
        let error = client().get(&server.url("/"), &[], far()).unwrap().ok().unwrap_err();
        assert_eq!(error.is_transient(), transient, "{error}");
    }
    let server = Server::start(|_| Reply::Raw(vec![]));
    let error = client().get(&server.url("/"), &[], far()).unwrap_err();
    assert!(error.is_transient(), "{error}");
    drop(server);
    bench.assert_clean();
}

#[test]
fn https_works_with_a_trusted_certificate_and_only_then() {
    let bench = Bench::new();
    let server = Server::start_tls(|request| Reply::ok(request.body.clone()));
    let trusting = HttpClient::trusting(Shutdown::new(), &[server.root()]);
    let big: Vec<u8> = (0..300_000u32).map(|n| n as u8).collect();
    let response = trusting.put(&server.url("/"), &[], Content::Bytes(&big), far()).unwrap();
    assert!(response.body == big);
    let error = client().get(&server.url("/"), &[], far()).unwrap_err();
    assert!(!error.is_transient(), "{error}");
    drop(server);
    bench.assert_clean();
}

/// Where a request can hang: what the server has sent by then.
const HANGS: [&[u8]; 3] = [b"", b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc", b"HTTP/1.1 200 OK\r\n\r\nabc"];

#[test]
fn the_deadline_ends_a_hanging_request_wherever_it_hangs() {
    let bench = Bench::new();
    for sent in HANGS {
        let server = Server::start(|_| Reply::Hang(sent.to_vec()));
        let deadline = Instant::now() + Duration::from_millis(300);
        let error = client().get(&server.url("/"), &[], deadline).unwrap_err();
        assert!(matches!(error, HttpError::TimedOut { .. }), "{error}");
        assert!(Instant::now() >= deadline, "ended before its deadline");
    }
    bench.assert_clean();
}

#[test]
fn cancel_ends_a_hanging_request_wherever_it_hangs() {
    let bench = Bench::new();
    for tls in [false, true] {
        for sent in HANGS {
            let reply = move |_: &http::Request| Reply::Hang(sent.to_vec());
            let server = if tls { Server::start_tls(reply) } else { Server::start(reply) };
            let token = Shutdown::new();
            let client = match tls {
                true => HttpClient::trusting(token.clone(), &[server.root()]),
                false => HttpClient::new(token.clone()),
            };
            let (arrivals, canceller) = (server.arrivals(), token.clone());
            let thread = spawn("t-cancel", Kick::dropped("the server"), move || {
                arrivals.recv().unwrap();
                canceller.cancel();
            });
            let error = client.get(&server.url("/"), &[], far()).unwrap_err();
            assert!(matches!(error, HttpError::Cancelled { .. }), "{error}");
            thread.join_by(far()).unwrap();
        }
    }
    bench.assert_clean();
}

#[test]
fn cancel_ends_a_handshake_that_gets_no_answer() {
    let bench = Bench::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://localhost:{}/", listener.local_addr().unwrap().port());
    let token = Shutdown::new();
    let canceller = token.clone();
    let thread = spawn("t-cancel", Kick::dropped("the client connects"), move || {
        let connection = listener.accept().unwrap();
        canceller.cancel();
        connection
    });
    let error = HttpClient::new(token).get(&url, &[], far()).unwrap_err();
    assert!(matches!(error, HttpError::Cancelled { .. }), "{error}");
    drop(thread.join_by(far()).unwrap());
    bench.assert_clean();
}

#[test]
fn cancel_ends_an_upload_that_the_server_does_not_read() {
    let bench = Bench::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let token = Shutdown::new();
    let canceller = token.clone();
    let thread = spawn("t-cancel", Kick::dropped("the client connects"), move || {
        let connection = listener.accept().unwrap();
        canceller.cancel();
        connection
    });
    let big = vec![0; 64 << 20];
    let error = HttpClient::new(token).put(&url, &[], Content::Bytes(&big), far()).unwrap_err();
    assert!(matches!(error, HttpError::Cancelled { .. }), "{error}");
    drop(thread.join_by(far()).unwrap());

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let deadline = Instant::now() + Duration::from_millis(300);
    let error = client().put(&url, &[], Content::Bytes(&big), deadline).unwrap_err();
    assert!(matches!(error, HttpError::TimedOut { .. }), "{error}");
    bench.assert_clean();
}
