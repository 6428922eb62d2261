//! The HTTP client: bytes arrive exactly, limits hold, and every blocked call ends at its deadline and on cancel.

use crate::testkit::http;
use crate::testkit::job;
use crate::testkit::wait::far;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::time::{Duration, Instant};

use http::{Reply, Server};
use job::Bench;
use phalanx::base::shutdown::Shutdown;
use phalanx::base::thread::{Kick, spawn};
use phalanx::net::http::client::{ANSWER_BYTES, Content, Download, FilePart, HttpClient, HttpError};
use phalanx::net::reach::Reach;
use phalanx::net::tls::ClientTls;
use phalanx::ops::cause::Cause;

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
    assert!(matches!(error, HttpError::Shortened { .. }) && error.cause() == Cause::JOB, "{error}");
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
    let get = |which: &str, max| client().download(&server.url(which), &[], &mut Download::new(&path, max), far());
    for which in ["/chunked", "/until-close", "/length"] {
        assert_eq!(get(which, 5).unwrap(), 5, "{which}");
        assert_eq!(fs::read(&path).unwrap(), b"abcde");
        let error = get(which, 4).unwrap_err();
        assert!(matches!(error, HttpError::TooLarge { max: 4, .. }) && !error.cause().passing, "{which}: {error}");
    }
    let error = get("/cut", 10).unwrap_err();
    assert!(matches!(error, HttpError::Connection { .. }) && error.cause().passing, "{error}");
    fs::remove_file(&path).unwrap();
    let error = get("/missing", 10).unwrap_err();
    assert!(error.to_string().ends_with("/missing answered 404: no such thing") && !error.cause().passing, "{error}");
    assert!(!path.exists());
    let error =
        client().download(&server.url("/length"), &[], &mut Download::new(folder.path(), 5), far()).unwrap_err();
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
            assert!(matches!(error, HttpError::OutOfReach { .. }) && !error.cause().passing, "{host}: {error}");
            let said = error.to_string();
            assert!(said.starts_with("jobs may not reach ") && said.contains("--reach"), "{said}");
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
fn addresses_and_locations_are_as_people_write_them() {
    let bench = Bench::new();
    let server = Server::start(|request| match request.path.as_str() {
        "/my%20data.txt" | "/caf%C3%A9.txt" => Reply::ok(request.path.clone()),
        "/to-blank" => Reply::Answer(302, vec![("LOCATION", "/my data.txt".into())], vec![]),
        "/to-letter" => Reply::Answer(303, vec![("location", "/café.txt#part".into())], vec![]),
        // In Latin-1, as servers once wrote.
        "/to-latin" => Reply::Raw(b"HTTP/1.1 307 x\r\nlocation: /caf\xe9.txt\r\ncontent-length: 0\r\n\r\n".into()),
        "/query?a" => Reply::Answer(301, vec![("location", "?b".into())], vec![]),
        "/query?b" => Reply::Answer(308, vec![("location", "my data.txt".into())], b"moved".to_vec()),
        other => panic!("{other}"),
    });
    for (path, body) in [
        ("/my data.txt", "/my%20data.txt"),
        ("/my%20data.txt#part", "/my%20data.txt"),
        ("/café.txt", "/caf%C3%A9.txt"),
        ("/to-blank", "/my%20data.txt"),
        ("/to-letter", "/caf%C3%A9.txt"),
        ("/to-latin", "/caf%C3%A9.txt"),
        ("/query?a", "/my%20data.txt"),
    ] {
        let url = server.url(path).replace("http://", "HTTP://");
        assert_eq!(client().get(&url, &[], far()).unwrap().text(), body, "{path}");
    }
    drop(server);
    bench.assert_clean();
}

#[test]
fn a_redirect_that_leads_nowhere_fails_at_once_and_says_why() {
    let bench = Bench::new();
    for (location, why) in [
        (None, "it has no Location"),
        (Some("/a\r\nlocation: /b"), "the field location is there twice with different values"),
        (Some("ftp://h/x"), "its scheme is ftp"),
        (Some("http://[x/"), "its Location \"http://[x/\": invalid IPv6 address"),
    ] {
        let server = Server::start(move |_| {
            Reply::Answer(302, location.map(|to| ("location", to.to_owned())).into_iter().collect(), vec![])
        });
        let error = client().get(&server.url("/x?secret"), &[], far()).unwrap_err();
        let begin = format!("{} answered 302, a redirect that cannot be followed: ", server.url("/x"));
        assert!(error.to_string().starts_with(&begin) && error.to_string().contains(why), "{error}");
        assert_eq!((error.cause(), server.seen().len()), (Cause::JOB, 1));
    }
    bench.assert_clean();
}

#[test]
fn a_client_of_chosen_servers_follows_no_redirect_and_names_its_target() {
    let bench = Bench::new();
    let server = Server::start(|_| Reply::Answer(302, vec![("location", "/elsewhere".to_owned())], vec![]));
    let client = HttpClient::trusting(Shutdown::new(), ClientTls::default());
    let error = client.get(&server.url("/x"), &[], far()).unwrap().ok().unwrap_err();
    assert!(error.to_string().contains("it leads to \"/elsewhere\"; give that address"), "{error}");
    assert_eq!((error.cause(), server.seen().len()), (Cause::JOB, 1));
    drop(server);
    bench.assert_clean();
}

#[test]
fn user_and_password_of_an_address_are_a_field_and_never_shown() {
    let bench = Bench::new();
    let server = Server::start(|_| Reply::status(403));
    let url = server.url("/p").replace("http://", "http://me:p%40ss@");
    let error = client().get(&url, &[], far()).unwrap().ok().unwrap_err().to_string();
    assert_eq!(error, format!("{} answered 403", server.url("/p")));
    let seen = server.seen();
    assert_eq!(seen[0].header("authorization"), Some("Basic bWU6cEBzcw=="));
    assert_eq!((seen[0].path.as_str(), seen[0].header("host").unwrap().contains('@')), ("/p", false));
    drop(server);
    bench.assert_clean();
}

#[test]
fn given_fields_go_as_they_are_and_once() {
    let bench = Bench::new();
    let server = Server::start(|_| Reply::ok(""));
    let host = server.url("").replace("http://", "");
    let content = Content::Bytes(b"12345");
    for names in [["Content-Length", "Content-Type", "Host"], ["content-length", "CONTENT-TYPE", "hOST"]] {
        let given = [pair(names[0], "5"), pair(names[1], "text/plain"), pair(names[2], &host), pair("x-amz-acl", "a")];
        client().put(&server.url("/"), &given, content, far()).unwrap();
        let form = [pair(names[1], "multipart/form-data; boundary=theirs"), pair(names[2], &host)];
        let part = FilePart { field: "file", file_name: "o", content_type: "x/y", content };
        client().post_multipart(&server.url("/"), &form, [], part, far()).unwrap();
    }
    let seen = server.seen();
    let values = |request: &http::Request, name: &str| {
        request.headers.iter().filter(|(n, _)| n == name).map(|(_, value)| value.clone()).collect::<Vec<_>>()
    };
    for put in [&seen[0], &seen[2]] {
        assert_eq!(values(put, "content-length"), ["5"]);
        assert_eq!(values(put, "content-type"), ["text/plain"]);
        assert_eq!(values(put, "host"), std::slice::from_ref(&host));
        assert_eq!((put.body.as_slice(), put.header("x-amz-acl")), (b"12345".as_slice(), Some("a")));
    }
    for post in [&seen[1], &seen[3]] {
        assert_eq!(values(post, "content-type"), ["multipart/form-data; boundary=theirs"]);
        assert!(post.body.starts_with(b"--theirs\r\n") && post.body.ends_with(b"\r\n--theirs--\r\n"));
    }
    for (name, value, says) in [
        ("Content-Length", "6", "Content-Length is given as \"6\" and the body has 5 bytes"),
        ("Transfer-Encoding", "chunked", "Transfer-Encoding may not be set"),
        ("Connection", "keep-alive", "Connection may not be set"),
        ("Host", "elsewhere.example", "Host is given as \"elsewhere.example\" and the address is at 127.0.0.1"),
        ("x", "a\r\nb: c", "cannot be sent"),
    ] {
        let error = client().put(&server.url("/"), &[pair(name, value)], content, far()).unwrap_err();
        assert!(error.to_string().contains(says) && error.cause() == Cause::JOB, "{error}");
    }
    assert_eq!(server.seen().len(), 4);
    drop(server);
    bench.assert_clean();
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn a_content_coding_is_undone_and_the_bounds_hold_for_what_comes_out() {
    let bench = Bench::new();
    let zeros = gzip(&[0; 100_000]);
    let server = Server::start(move |request| {
        let (coding, body) = match request.path.as_str() {
            "/gzip" => ("GZIP", gzip(b"hello")),
            "/identity" => ("identity", b"hello".to_vec()),
            "/cut" => ("gzip", gzip(b"hello")[..12].to_vec()),
            "/zeros" => ("gzip", zeros.clone()),
            "/chunked" => {
                let coded = gzip(b"hello");
                let head = format!(
                    "HTTP/1.1 200 x\r\ncontent-encoding: gzip\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n",
                    coded.len()
                );
                return Reply::Raw([head.as_bytes(), &coded, b"\r\n0\r\n\r\n"].concat());
            }
            "/twice" => {
                let text = "HTTP/1.1 200 x\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n";
                return Reply::Raw(text.into());
            }
            "/lost" => {
                let head = "HTTP/1.1 200 x\r\ncontent-encoding: gzip\r\ncontent-length: 1000\r\n\r\n";
                return Reply::Raw([head.as_bytes(), &gzip(b"hello")[..12]].concat());
            }
            _ => ("br", b"hello".to_vec()),
        };
        Reply::Answer(200, vec![("Content-Encoding", coding.into())], body)
    });
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("f");
    let get = |which: &str, max| client().download(&server.url(which), &[], &mut Download::new(&path, max), far());
    for which in ["/gzip", "/identity", "/chunked"] {
        assert_eq!(get(which, 5).unwrap(), 5, "{which}");
        assert_eq!(fs::read(&path).unwrap(), b"hello", "{which}");
        assert_eq!(client().get(&server.url(which), &[], far()).unwrap().text(), "hello");
        assert!(matches!(get(which, 4).unwrap_err(), HttpError::TooLarge { max: 4, .. }), "{which}");
    }
    assert_eq!(server.seen()[0].header("accept-encoding"), Some("gzip, deflate, identity"));
    for (which, says) in [("/cut", "its content coding is broken"), ("/br", "\"br\""), ("/twice", "Transfer-Encoding")]
    {
        let error = get(which, 100).unwrap_err();
        assert!(error.to_string().contains(says) && error.cause() == Cause::JOB, "{which}: {error}");
    }
    let error = get("/lost", 100).unwrap_err();
    assert!(matches!(error, HttpError::Connection { .. }) && error.cause().passing, "{error}");
    assert!(matches!(get("/zeros", 99_999).unwrap_err(), HttpError::TooLarge { max: 99_999, .. }));
    assert_eq!(get("/zeros", 100_000).unwrap(), 100_000);
    let error = client().get(&server.url("/br"), &[], far()).unwrap_err();
    assert!(error.to_string().contains("\"br\"") && error.cause() == Cause::JOB, "{error}");
    let sent = client().put(&server.url("/br"), &[], Content::Bytes(b"x"), far()).unwrap();
    assert_eq!(sent.text(), "hello", "as it came, because nobody may need it");
    drop(server);
    bench.assert_clean();
}

/// What a server has at a time: its content and how it names it.
type Version = (&'static [u8], Vec<(&'static str, String)>);

/// A server that breaks off after `cut` bytes, and answers a request for the rest as `rest` says.
fn breaking(cut: usize, version: Version, mut rest: impl FnMut(u64) -> Reply + Send + 'static) -> Server {
    Server::start(move |request| {
        if let Some(range) = request.header("range") {
            let from = range.strip_prefix("bytes=").and_then(|range| range.strip_suffix('-')).unwrap();
            return rest(from.parse().unwrap());
        }
        let (bytes, fields) = &version;
        let fields: String = fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let head = format!("HTTP/1.1 200 x\r\n{fields}content-length: {}\r\n\r\n", bytes.len());
        Reply::Raw([head.as_bytes(), &bytes[..cut]].concat())
    })
}

#[test]
fn a_broken_download_goes_on_with_the_same_file_or_begins_anew() {
    let bench = Bench::new();
    let tag = |tag: &str| vec![("etag", tag.to_owned())];
    let part = |range: &str, body: &[u8]| {
        Reply::Answer(206, vec![("content-range", range.to_owned()), ("etag", "\"1\"".into())], body.to_vec())
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("f");
    let fetch = |server: &Server, tries: usize| {
        let mut download = Download::new(&path, 100);
        let mut outcome = Ok(0);
        let mut received = Vec::new();
        for _ in 0..tries {
            outcome = client().download(&server.url("/f"), &[], &mut download, far());
            received.push(download.received());
        }
        (outcome, received)
    };

    let server = breaking(4, (b"0123456789", tag("\"1\"")), move |from| {
        assert_eq!(from, 4);
        part("bytes 4-9/10", b"456789")
    });
    let (outcome, received) = fetch(&server, 2);
    assert_eq!((outcome.unwrap(), received), (10, vec![4, 0]));
    assert_eq!(fs::read(&path).unwrap(), b"0123456789");
    let asked = &server.seen()[1];
    assert_eq!((asked.header("range"), asked.header("if-range")), (Some("bytes=4-"), Some("\"1\"")));
    assert_eq!(asked.header("accept-encoding"), Some("identity"));
    drop(server);

    // The file has changed: the server sends the new one, whole.
    let server = breaking(4, (b"0123456789", tag("\"1\"")), |_| {
        Reply::Answer(200, vec![("etag", "\"2\"".into())], b"abc".to_vec())
    });
    assert_eq!(fetch(&server, 2).0.unwrap(), 3);
    assert_eq!(fs::read(&path).unwrap(), b"abc");
    drop(server);

    // The server sends a part of something else, or nothing: asked anew, it breaks at the same place.
    for rest in [
        || Reply::Answer(206, vec![("content-range", "bytes 3-9/10".into())], b"3456789".to_vec()),
        || Reply::Answer(206, vec![("content-range", "bytes 4-9/11".into())], b"456789".to_vec()),
        || Reply::Answer(206, vec![("content-range", "bytes 4-9/10".into()), ("etag", "\"2\"".into())], vec![b'x'; 6]),
        || Reply::status(416),
    ] {
        let server = breaking(4, (b"0123456789", tag("\"1\"")), move |_| rest());
        let (outcome, received) = fetch(&server, 2);
        assert!(matches!(outcome.unwrap_err(), HttpError::Connection { .. }));
        assert_eq!((received, server.seen().len()), (vec![4, 4], 3));
        assert_eq!(fs::read(&path).unwrap(), b"0123");
    }

    // A refusal in between loses nothing, and the rest may come in parts.
    let mut asked = 0;
    let server = breaking(4, (b"0123456789", tag("\"1\"")), move |from| {
        asked += 1;
        match asked {
            1 => Reply::status(503),
            2 => part("bytes 4-6/10", b"456"),
            _ => {
                assert_eq!(from, 7);
                part("bytes 7-9/10", b"789")
            }
        }
    });
    let (outcome, received) = fetch(&server, 4);
    assert_eq!((outcome.unwrap(), received), (10, vec![4, 4, 7, 0]));
    assert_eq!(fs::read(&path).unwrap(), b"0123456789");
    drop(server);

    // Without a strong name, or under a coding, there is nothing to go on from.
    for fields in [tag("W/\"1\""), vec![], [tag("\"1\""), vec![("content-encoding", "gzip".to_owned())]].concat()] {
        let server = breaking(4, (b"0123456789", fields), |_| panic!("asked for a range"));
        let (outcome, received) = fetch(&server, 2);
        assert!(outcome.is_err());
        assert_eq!((received, server.seen().len()), (vec![0, 0], 2));
    }
    bench.assert_clean();
}

#[test]
fn a_wait_that_a_server_asks_for_is_told() {
    let bench = Bench::new();
    for (value, seconds) in [("6", Some(6)), ("soon", None)] {
        let server =
            Server::start(move |_| Reply::Answer(429, vec![("Retry-After", value.into())], b"slowly".to_vec()));
        let error = client().get(&server.url("/"), &[], far()).unwrap().ok().unwrap_err();
        assert_eq!(error.retry_after(), seconds.map(Duration::from_secs));
        let asks = seconds.map(|seconds| format!(" and asks to come again after {seconds} s")).unwrap_or_default();
        assert_eq!(error.to_string(), format!("{} answered 429{asks}: slowly", server.url("/")));
    }
    bench.assert_clean();
}

#[test]
fn a_refusal_that_comes_before_the_body_is_read_is_told_and_a_consent_does_not_count() {
    let bench = Bench::new();
    let big = vec![0; 64 << 20];
    for (status, is_told) in [("403 Forbidden", true), ("200 OK", false)] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let thread = spawn("t-refuse", Kick::dropped("the client connects"), move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.read_exact(&mut [0; 100]).unwrap();
            // Closed with bytes unread, which the system makes a reset.
            write!(stream, "HTTP/1.1 {status}\r\ncontent-length: 7\r\n\r\nexpired").unwrap();
        });
        match client().put(&url, &[], Content::Bytes(&big), far()) {
            Ok(answer) => assert!(is_told && (answer.status, answer.text().as_str()) == (403, "expired")),
            Err(error) => assert!(!is_told && error.cause().passing, "{error}"),
        }
        thread.join_by(far()).unwrap();
    }
    bench.assert_clean();
}

#[test]
fn interim_answers_are_passed_over() {
    let bench = Bench::new();
    let answer = |_: &http::Request| {
        let interim = "HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\nHTTP/1.1 100 Continue\r\nserver: x\r\n\r\n";
        Reply::Raw(format!("{interim}HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").into())
    };
    for server in [Server::start(answer), Server::start_tls(answer)] {
        let client = match server.url("").starts_with("https") {
            true => HttpClient::trusting(Shutdown::new(), server.trusted()),
            false => client(),
        };
        assert_eq!(client.get(&server.url("/"), &[], far()).unwrap().text(), "ok");
        assert_eq!(client.put(&server.url("/"), &[], Content::Bytes(b"x"), far()).unwrap().text(), "ok");
        let expecting = [pair("expect", "100-continue")];
        assert_eq!(client.put(&server.url("/"), &expecting, Content::Bytes(b"x"), far()).unwrap().text(), "ok");
    }
    bench.assert_clean();
}

#[test]
fn transient_errors_are_distinguished_from_permanent_ones() {
    let bench = Bench::new();
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = client().get(&format!("http://{closed}/"), &[], far()).unwrap_err();
    assert!(matches!(error, HttpError::Connection { .. }) && error.cause().passing, "{error}");
    for (status, transient) in [(400, false), (403, false), (408, true), (429, true), (500, true), (503, true)] {
        let server = Server::start(move |_| Reply::status(status));
        let error = client().get(&server.url("/"), &[], far()).unwrap().ok().unwrap_err();
        assert_eq!(error.cause().passing, transient, "{error}");
    }
    let server = Server::start(|_| Reply::Raw(vec![]));
    let error = client().get(&server.url("/"), &[], far()).unwrap_err();
    assert!(error.cause().passing, "{error}");
    drop(server);
    bench.assert_clean();
}

#[test]
fn https_works_with_a_trusted_certificate_and_only_then() {
    let bench = Bench::new();
    let server = Server::start_tls(|request| Reply::ok(request.body.clone()));
    let trusting = HttpClient::trusting(Shutdown::new(), server.trusted());
    let big: Vec<u8> = (0..300_000u32).map(|n| n as u8).collect();
    let response = trusting.put(&server.url("/"), &[], Content::Bytes(&big), far()).unwrap();
    assert!(response.body == big);
    let error = client().get(&server.url("/"), &[], far()).unwrap_err();
    // As an engine says it of a registry.
    assert_eq!(error.cause(), Cause::of_engine("x509: certificate signed by unknown authority"), "{error}");
    assert_eq!(error.cause(), Cause::CERTIFICATE);
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
                true => HttpClient::trusting(token.clone(), server.trusted()),
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
