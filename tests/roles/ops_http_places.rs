//! Who has a place at the HTTP server: those who wait go first, probes are always answered, nobody has all of it, and
//! what a request is charged comes back when it is answered.

use crate::testkit::threads::NoThreads;
use crate::testkit::transport::connect_from;
use crate::testkit::wait::{LONG, until};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};
use phalanx::base::stop::Stopping;
use phalanx::base::thread::Group;
use phalanx::net::http::{Handler, HttpLimits, HttpRequest, HttpResponse, HttpServer};
use phalanx::net::rate::Rate;
use phalanx::ops::errors::ErrorClass;
use phalanx::ops::status::Board;

/// A server that is stopped when it is dropped.
struct Fixture(Option<HttpServer>, Board);

impl Fixture {
    fn new(limits: HttpLimits, handler: impl Fn(&HttpRequest) -> HttpResponse + Send + Sync + 'static) -> Self {
        let handler: Handler = Arc::new(handler);
        let (listener, board) = (TcpListener::bind("127.0.0.1:0").unwrap(), Board::new());
        Self(Some(HttpServer::start("t", listener, handler, limits, &board).unwrap()), board)
    }

    /// How many were refused for that reason.
    fn refused(&self, reason: &'static str) -> u64 {
        self.1.metrics.counter("phalanx_http_refused_total", "", &[("reason", reason)]).get()
    }

    fn address(&self) -> SocketAddr {
        self.0.as_ref().unwrap().local_addr()
    }

    /// A connection from 127.0.0.`last`.
    fn connect(&self, last: u8) -> TcpStream {
        connect_from(last, self.address())
    }

    /// Sends a request for `path` on a new connection.
    fn begin(&self, last: u8, path: &str) -> TcpStream {
        let mut stream = self.connect(last);
        write!(stream, "GET {path} HTTP/1.1\r\nHost: h\r\n\r\n").unwrap();
        stream
    }

    /// The head of its answer.
    fn ask(&self, last: u8, path: &str) -> String {
        head(&mut self.begin(last, path))
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        let mut stopping = Stopping::alone();
        stopping.step("http", LONG, |step| self.0.take().unwrap().stop_in(step));
        assert!(stopping.finish().is_clean() || std::thread::panicking());
    }
}

/// Reads up to the empty line; what comes before the end if there is none.
fn head(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let mut byte = [0];
    while !bytes.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|n| n > 0) {
        bytes.push(byte[0]);
    }
    String::from_utf8(bytes).unwrap()
}

/// Whether the server has closed it: waits for that.
fn is_closed(stream: &mut TcpStream) -> bool {
    match stream.read(&mut [0]) {
        Ok(n) => n == 0,
        Err(error) => error.kind() == ErrorKind::ConnectionReset,
    }
}

/// Answers at `/wait` once it may, and says when it has begun to wait.
fn waiting() -> (impl Fn(&HttpRequest) -> HttpResponse + Send + Sync, Receiver<()>, Sender<()>) {
    let (begins, begun) = bounded(0);
    let (go, may_go) = bounded::<()>(0);
    let handler = move |request: &HttpRequest| {
        if request.path == "/wait" {
            begins.send(()).unwrap();
            may_go.recv().unwrap();
        }
        HttpResponse::text(200, "fine")
    };
    (handler, begun, go)
}

#[test]
fn requests_over_the_limit_are_answered_and_a_probe_as_always() {
    let _threads = NoThreads::expected();
    let (handler, begun, go) = waiting();
    let fixture = Fixture::new(HttpLimits { connections: 1, ..HttpLimits::default() }, handler);
    let mut first = fixture.begin(1, "/wait");
    begun.recv_timeout(LONG).unwrap();
    let refused = fixture.ask(1, "/a");
    assert!(refused.starts_with("HTTP/1.1 503 ") && refused.contains("\r\nRetry-After: 1\r\n"), "{refused}");
    assert_eq!(fixture.refused("busy"), 1);
    for probe in ["/healthz", "/readyz", "/metrics"] {
        assert!(fixture.ask(1, probe).starts_with("HTTP/1.1 200 "), "{probe}");
    }
    go.send(()).unwrap();
    assert!(head(&mut first).starts_with("HTTP/1.1 200 "));
    // The first connection is still there; its request is not in work any more, which takes its thread a moment.
    until("the place is free", || fixture.ask(1, "/a").starts_with("HTTP/1.1 200 "));
}

#[test]
fn who_waits_goes_first_and_an_address_has_its_share() {
    let _threads = NoThreads::expected();
    let (handler, begun, go) = waiting();
    // With those that are kept, nine connections, five of one address.
    let fixture = Fixture::new(HttpLimits { connections: 1, ..HttpLimits::default() }, handler);
    let mut works = fixture.begin(1, "/wait");
    begun.recv_timeout(LONG).unwrap();
    let mut silent: Vec<_> = (0..5).map(|_| fixture.connect(2)).collect();
    let over = head(&mut fixture.connect(2));
    assert!(over.starts_with("HTTP/1.1 503 "), "a sixth of one address: {over:?}");
    assert_eq!(fixture.refused("no_place"), 1);
    let last = fixture.1.errors.last_errors();
    assert_eq!((last.len(), last[0].class, last[0].place.as_str()), (1, ErrorClass::Rejected, "accept"));
    assert!(last[0].text.contains("is turned away"), "{last:?}");
    silent.extend((0..3).map(|_| fixture.connect(3)));
    // All places are taken, and still everybody is served: the oldest of the silent ones go, one by one.
    let mut kept = Vec::new();
    for (last, oldest) in (4..9).zip(&mut silent) {
        let mut next = fixture.begin(last, "/healthz");
        assert!(head(&mut next).starts_with("HTTP/1.1 200 "), "{last}");
        kept.push(next);
        assert!(is_closed(oldest), "{last}");
    }
    go.send(()).unwrap();
    assert!(head(&mut works).starts_with("HTTP/1.1 200 "), "the one in work stays");
}

#[test]
fn who_does_not_read_the_answers_to_its_probes_takes_nobody_s_place() {
    let _threads = NoThreads::expected();
    // More than the buffers of both sockets hold. Nine connections, five of one address.
    let fixture = Fixture::new(HttpLimits { connections: 1, ..HttpLimits::default() }, |request| {
        HttpResponse::text(200, if request.path == "/metrics" { "x".repeat(16 << 20) } else { String::new() })
    });
    let mut unread = Vec::new();
    for _ in 0..12 {
        let mut next = fixture.connect(2);
        // One that is refused may be closed before it has asked.
        if next.write_all(b"GET /metrics HTTP/1.1\r\nHost: h\r\n\r\n").is_ok() {
            head(&mut next);
        }
        unread.push(next);
    }
    // Theirs go for those who come.
    for last in 3..13 {
        let answer = fixture.ask(last, "/healthz");
        assert!(answer.starts_with("HTTP/1.1 200 "), "{last}: {answer}");
    }
    assert!(fixture.refused("no_place") >= 7, "one address has five");
}

#[test]
fn one_address_and_one_user_have_half_of_the_requests_in_work() {
    let _threads = NoThreads::expected();
    let (waits, begun, go) = waiting();
    let fixture = Fixture::new(HttpLimits { connections: 4, ..HttpLimits::default() }, move |request| {
        match request.header("User") {
            Some(user) if !request.known_as(user) => HttpResponse::text(503, ""),
            _ => waits(request),
        }
    });
    let ask = |last, path, user| {
        let mut stream = fixture.connect(last);
        write!(stream, "GET {path} HTTP/1.1\r\nHost: h\r\nUser: {user}\r\n\r\n").unwrap();
        stream
    };
    let mut slow = Vec::new();
    for (last, user) in [(1, "a"), (1, "b")] {
        slow.push(ask(last, "/wait", user));
        begun.recv_timeout(LONG).unwrap();
    }
    assert!(head(&mut ask(1, "/", "c")).starts_with("HTTP/1.1 503 "), "an address has two");
    slow.push(ask(2, "/wait", "a"));
    begun.recv_timeout(LONG).unwrap();
    assert!(head(&mut ask(3, "/", "a")).starts_with("HTTP/1.1 503 "), "a user has two");
    // The place of that request is free a moment after its answer.
    until("another user is served", || head(&mut ask(3, "/", "c")).starts_with("HTTP/1.1 200 "));
    for _ in &slow {
        go.send(()).unwrap();
    }
    for stream in &mut slow {
        assert!(head(stream).starts_with("HTTP/1.1 200 "));
    }
    until("the places are free", || head(&mut ask(1, "/", "a")).starts_with("HTTP/1.1 200 "));
}

#[test]
fn connections_between_requests_take_no_more_than_half_of_a_share() {
    let _threads = NoThreads::expected();
    let fixture = Fixture::new(HttpLimits { connections: 8, ..HttpLimits::default() }, |_| HttpResponse::text(200, ""));
    // Sixteen connections, of one address eight, of which four may be idle.
    let mut kept = Vec::new();
    let closed = |stream: &mut TcpStream| head(stream).contains("Connection: close");
    until("idle ones are closed", || {
        let mut next = fixture.begin(1, "/");
        let is_closed = closed(&mut next);
        kept.push(next);
        is_closed
    });
    // A thread may take its time from the answer to its waiting, but nine cannot wait.
    assert!((5..=9).contains(&kept.len()), "{}", kept.len());
}

#[test]
fn one_address_asks_no_more_than_its_rate() {
    let _threads = NoThreads::expected();
    let limits = HttpLimits { requests: Rate::new(3, 10 * LONG), ..HttpLimits::default() };
    let fixture = Fixture::new(limits, |_| HttpResponse::text(200, ""));
    let mut stream = fixture.connect(1);
    for status in [200, 200, 200, 429] {
        stream.write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n").unwrap();
        let answer = head(&mut stream);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
        assert_eq!(answer.contains("\r\nRetry-After: 1\r\n"), status == 429, "{answer}");
    }
    let mut why = String::new();
    stream.read_to_string(&mut why).unwrap();
    assert!(why.starts_with("more than 3 requests of one address"), "{why}");
    for (last, path, status) in [(1, "/", 429), (1, "/healthz", 200), (2, "/", 200)] {
        assert!(fixture.ask(last, path).starts_with(&format!("HTTP/1.1 {status} ")), "{last} {path}");
    }
}

#[test]
fn a_body_is_read_when_it_is_wanted_and_no_larger_than_the_route_takes() {
    let _threads = NoThreads::expected();
    let fixture = Fixture::new(HttpLimits::default(), |request| match request.path.as_str() {
        "/none" => HttpResponse::text(401, "who are you"),
        "/small" => match request.body(10) {
            Ok(body) => HttpResponse::text(200, body.len().to_string()),
            Err(error) => error.into(),
        },
        _ => {
            let (first, second) = (request.body(1 << 20).unwrap(), request.body(1 << 20).unwrap());
            HttpResponse::text(200, format!("{} {}", first.len(), second.len()))
        }
    });
    let post = |path: &str, length: usize, body: &str| {
        let mut stream = fixture.connect(1);
        // In one piece, so that the body is there with the head.
        let text = format!("POST {path} HTTP/1.1\r\nHost: h\r\nContent-Length: {length}\r\n\r\n{body}");
        stream.write_all(text.as_bytes()).unwrap();
        let head = head(&mut stream);
        let (status, closes) = (head[9..12].to_owned(), head.contains("Connection: close"));
        (status.parse::<u16>().unwrap(), closes, stream)
    };
    // Nothing of this is sent, nor waited for.
    for (path, length, expected) in [("/none", 1_000_000, 401), ("/small", 11, 413)] {
        let (status, closes, _) = post(path, length, "");
        assert_eq!((status, closes), (expected, true), "{path}");
    }
    // What came with the head is taken out, and the connection goes on.
    let (status, closes, mut stream) = post("/none", 3, "abc");
    assert_eq!((status, closes), (401, false));
    stream.write_all(b"GET /small HTTP/1.1\r\nHost: h\r\n\r\n").unwrap();
    let mut said = [0; 11];
    stream.read_exact(&mut said).unwrap();
    assert_eq!(&said, b"who are you");
    assert!(head(&mut stream).starts_with("HTTP/1.1 200 "));
    let (status, closes, mut stream) = post("/both", 4, "abcd");
    assert_eq!((status, closes), (200, false));
    let mut body = [0; 3];
    stream.read_exact(&mut body).unwrap();
    assert_eq!(&body, b"4 0");
}

#[test]
fn bodies_share_a_budget_that_comes_back_with_the_answer() {
    let _threads = NoThreads::expected();
    let (begins, begun) = bounded(0);
    let (go, may_go) = bounded::<()>(0);
    let fixture = Fixture::new(HttpLimits { bodies_bytes: 100, ..HttpLimits::default() }, move |request| {
        request.known();
        match request.body(100) {
            Err(error) => error.into(),
            Ok(_) => {
                if request.path == "/wait" {
                    begins.send(()).unwrap();
                    may_go.recv().unwrap();
                }
                HttpResponse::text(200, "")
            }
        }
    });
    let post = |path: &str, text: &str| {
        let mut stream = fixture.connect(1);
        stream.write_all(format!("POST {path} HTTP/1.1\r\nHost: h\r\n{text}").as_bytes()).unwrap();
        stream
    };
    let large = format!("Content-Length: 60\r\n\r\n{}", "x".repeat(60));
    let mut first = post("/wait", &large);
    begun.recv_timeout(LONG).unwrap();
    let chunks = format!("Transfer-Encoding: chunked\r\n\r\n1e\r\n{0}\r\n1e\r\n{0}\r\n0\r\n\r\n", "x".repeat(30));
    for over in [&large, &chunks] {
        let answer = head(&mut post("/", over));
        assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("Retry-After: 1\r\n"), "{answer}");
    }
    go.send(()).unwrap();
    assert!(head(&mut first).starts_with("HTTP/1.1 200 "));
    // Its connection is still open, and its thread is there; the one after it has the budget.
    for more in [&large, &chunks] {
        until("the budget is back", || head(&mut post("/", more)).starts_with("HTTP/1.1 200 "));
    }
}

#[test]
fn who_does_not_read_its_answer_gives_its_place_back_and_is_closed() {
    let group = Group::enter();
    // More than the buffers of both sockets hold.
    const LARGE: usize = 32 << 20;
    let limits = HttpLimits {
        connections: 1,
        write_time: 10 * LONG,
        stall_time: Duration::from_secs(3),
        ..HttpLimits::default()
    };
    let fixture = Fixture::new(limits, |request| match request.path.as_str() {
        "/large" => HttpResponse::text(200, "x".repeat(LARGE)),
        _ => HttpResponse::text(200, "small"),
    });
    let mut stalls = fixture.begin(1, "/large");
    assert!(head(&mut stalls).starts_with("HTTP/1.1 200 "));
    until("its place is free", || fixture.ask(1, "/").starts_with("HTTP/1.1 200 "));
    // It is closed in the midst of its answer, though it has time enough for the whole.
    until("its thread ends", || group.live().iter().all(|thread| thread.name != "t-http-1"));
    let mut rest = Vec::new();
    let end = stalls.read_to_end(&mut rest);
    assert!(rest.len() < LARGE, "{end:?} after {} bytes", rest.len());
}
