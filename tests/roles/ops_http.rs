//! The HTTP server over loopback: what it understands, what it refuses, and that it always stops.

use crate::testkit::wait::{LONG, until};
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use phalanx::base::shutdown::{Level, Shutdown};
use phalanx::base::stop::{StopReport, Stopping};
use phalanx::base::thread::Group;
use phalanx::base::timer::Timer;
use phalanx::net::dial::dial;
use phalanx::net::http::pages::pages;
use phalanx::net::http::{Handler, HttpLimits, HttpResponse, HttpServer};
use phalanx::ops::errors::ErrorClass;
use phalanx::ops::health::PartState;
use phalanx::ops::status::{Board, Frame, RoleState, Snapshot};

struct Fixture {
    group: Group,
    server: Option<HttpServer>,
}

impl Fixture {
    fn new(limits: HttpLimits, handler: Handler, board: &Board) -> Self {
        let group = Group::enter();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        Self { group, server: Some(HttpServer::start("t", listener, handler, limits, board).unwrap()) }
    }

    fn echo(limits: HttpLimits) -> Self {
        let handler: Handler = Arc::new(|request| {
            assert_ne!(request.path, "/panic", "asked to panic");
            let said = format!("{} {} {:?} ", request.method, request.path, request.query);
            match request.body(usize::MAX) {
                Ok(body) => HttpResponse::text(200, said + &String::from_utf8_lossy(&body)),
                Err(error) => error.into(),
            }
        });
        Self::new(limits, handler, &Board::new())
    }

    fn connect(&self) -> TcpStream {
        let port = self.server.as_ref().unwrap().local_addr().port();
        let stream = dial("127.0.0.1", port, Instant::now() + LONG, &Shutdown::new(), Level::Cancel).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        stream
    }

    /// Sends `text` and reads until the server closes.
    fn ask(&self, text: &str) -> String {
        let mut stream = self.connect();
        stream.write_all(text.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    fn stop(&mut self, budget: Duration) -> StopReport {
        let mut stopping = Stopping::alone();
        stopping.step("http", budget, |step| self.server.take().unwrap().stop_in(step));
        stopping.finish()
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        if self.server.is_some() {
            let report = self.stop(LONG);
            if !std::thread::panicking() {
                assert!(report.is_clean(), "{report}");
            }
        }
        if !std::thread::panicking() {
            assert!(self.group.live().is_empty(), "{:?}", self.group.live());
        }
    }
}

/// Reads until the text so far ends with `end`.
fn read_until(stream: &mut TcpStream, end: &str) -> String {
    let mut bytes = Vec::new();
    let mut byte = [0];
    while !bytes.ends_with(end.as_bytes()) {
        assert_eq!(stream.read(&mut byte).unwrap(), 1, "closed after {:?}", String::from_utf8_lossy(&bytes));
        bytes.push(byte[0]);
    }
    String::from_utf8(bytes).unwrap()
}

#[test]
fn pipelined_requests_are_answered_in_order_on_one_connection() {
    let fixture = Fixture::echo(HttpLimits::default());
    let answer = fixture.ask(
        "GET /one?a=b HTTP/1.1\r\nHost: h\r\n\r\n\
         POST /two HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nxyz\
         HEAD /three HTTP/1.1\r\nHost: h\r\n\r\n\
         POST /four HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n\
         5;x=y\r\nhello\r\n1\r\n!\r\n0\r\nTrailer: t\r\n\r\n",
    );
    assert_eq!(answer.matches("HTTP/1.1 200 OK\r\n").count(), 4, "{answer}");
    let at = |text: &str| answer.find(text).unwrap_or_else(|| panic!("no {text:?} in {answer}"));
    assert!(at("GET /one [(\"a\", \"b\")] ") < at("POST /two [] xyz"));
    assert!(at("POST /two [] xyz") < at("POST /four [] hello!"));
    assert!(!answer.contains("HEAD /three"), "{answer}");
    assert_eq!(answer.matches("Connection: close").count(), 1, "{answer}");
}

#[test]
fn a_body_that_waits_for_permission_gets_it() {
    let fixture = Fixture::echo(HttpLimits::default());
    let mut stream = fixture.connect();
    stream.write_all(b"POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n").unwrap();
    assert_eq!(read_until(&mut stream, "\r\n\r\n"), "HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"ok").unwrap();
    assert!(read_until(&mut stream, "[] ok").starts_with("HTTP/1.1 200 OK\r\n"));
    stream
        .write_all(b"POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 99999999\r\n\r\n")
        .unwrap();
    assert!(read_until(&mut stream, "\r\n").starts_with("HTTP/1.1 413 "));
}

#[test]
fn empty_lines_between_requests_are_no_request() {
    // Had the last ones begun a head, there would be a 408 in place of the end.
    let fixture = Fixture::echo(HttpLimits { idle_time: Duration::from_secs(1), ..HttpLimits::default() });
    let answer = fixture.ask(
        "\r\nPOST /a HTTP/1.1\r\nhost: h\r\ncontent-length: 2\r\n\r\nok\r\n\
         GET http://other/b HTTP/1.1\r\nHost: h\r\n\r\n\r\n\r\n",
    );
    assert_eq!(answer.matches("HTTP/1.1 ").count(), 2, "{answer}");
    let safe = "\r\nX-Content-Type-Options: nosniff\r\nCache-Control: no-store\r\n";
    assert_eq!(answer.matches(safe).count(), 2, "{answer}");
    assert!(answer.contains("POST /a [] ok") && answer.ends_with("GET /b [] "), "{answer}");
}

#[test]
fn limits_are_answered_and_never_exceeded() {
    let limits = HttpLimits {
        head_bytes: 1000,
        body_bytes: 10,
        head_time: Duration::from_millis(50),
        body_time: Duration::from_millis(50),
        ..HttpLimits::default()
    };
    let fixture = Fixture::echo(limits);
    let big = "x".repeat(20_000);
    for (status, request) in [
        (431, format!("GET / HTTP/1.1\r\nHost: h\r\nX: {big}")),
        (413, format!("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 11\r\n\r\n{big}")),
        (413, format!("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nabcd\r\n7\r\n{big}")),
        (413, "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n".to_owned()),
        (431, format!("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: {big}")),
        (400, "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n".to_owned()),
        (408, "GET / HTTP/1.1\r\nHost".to_owned()),
        (408, "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\nabc".to_owned()),
        (400, "\0\0\0\0".to_owned()),
    ] {
        let answer = fixture.ask(&request);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{status}: {answer}");
        assert!(answer.contains("Connection: close\r\n"), "{answer}");
    }
    assert!(fixture.ask("GET /fine HTTP/1.0\r\n\r\n").contains("GET /fine"));
}

#[test]
fn a_panic_of_the_handler_costs_one_request() {
    let fixture = Fixture::echo(HttpLimits::default());
    assert!(fixture.ask("GET /panic HTTP/1.1\r\nHost: h\r\n\r\n").starts_with("HTTP/1.1 500 "));
    assert!(fixture.ask("GET /after HTTP/1.0\r\n\r\n").starts_with("HTTP/1.1 200 "));
}

#[test]
fn a_body_is_sent_while_it_is_made() {
    const PART: usize = 100_000;
    let fixture = Fixture::new(
        HttpLimits::default(),
        Arc::new(|request| {
            let path = request.path.clone();
            HttpResponse::streamed(200, "text/plain", move |out| {
                out.write_all(&[b'x'; PART])?;
                match path.as_str() {
                    "/fails" => Err(ErrorKind::TimedOut.into()),
                    "/panics" => panic!("asked to panic"),
                    _ => out.write_all(b"end"),
                }
            })
        }),
        &Board::new(),
    );
    let ask = |line: &str| fixture.ask(&format!("{line}\r\nHost: h\r\nConnection: close\r\n\r\n"));
    let answer = ask("GET /a HTTP/1.1");
    assert!(answer.contains("\r\nTransfer-Encoding: chunked\r\n"), "{}", &answer[..300]);
    assert!(answer.ends_with("xend\r\n0\r\n\r\n") && !answer.contains("Content-Length"), "{}", &answer[..300]);
    let old = ask("GET /a HTTP/1.0");
    assert!(old.ends_with("xend") && old.split_once("\r\n\r\n").unwrap().1.len() == PART + 3, "{}", &old[..300]);
    assert!(ask("HEAD /a HTTP/1.1").ends_with("Connection: close\r\n\r\n"));
    // What is not whole has no end that says so.
    for path in ["/fails", "/panics"] {
        assert!(ask(&format!("GET {path} HTTP/1.1")).ends_with("x\r\n"), "{path}");
    }
    assert!(ask("GET /a HTTP/1.1").ends_with("0\r\n\r\n"));
}

#[test]
fn idle_and_half_open_clients_do_not_delay_a_stop() {
    let mut fixture = Fixture::echo(HttpLimits::default());
    let mut idle = fixture.connect();
    idle.write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n").unwrap();
    read_until(&mut idle, "[] ");
    let silent = fixture.connect();
    let mut half_head = fixture.connect();
    half_head.write_all(b"GET / HTT").unwrap();
    let mut half_body = fixture.connect();
    half_body.write_all(b"POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 9\r\n\r\n").unwrap();
    read_until(&mut half_body, "\r\n\r\n");
    let report = fixture.stop(LONG);
    assert!(report.is_clean(), "{report}");
    assert!(report.steps[0].took < LONG, "nobody was waited for until the end of the budget: {report}");
    for mut client in [idle, silent, half_head, half_body] {
        assert_eq!(client.read(&mut [0]).unwrap_or(0), 0, "the server must close");
    }
}

#[test]
fn a_request_in_work_is_answered_while_the_server_stops() {
    let (began_tx, began) = crossbeam_channel::bounded(1);
    let handler: Handler = Arc::new(move |request| {
        began_tx.send(()).unwrap();
        assert!(request.shutdown.wait(LONG), "the stop must reach a waiting handler");
        HttpResponse::text(200, "last words")
    });
    let mut fixture = Fixture::new(HttpLimits::default(), handler, &Board::new());
    let mut client = fixture.connect();
    client.write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n").unwrap();
    began.recv_timeout(LONG).unwrap();
    assert!(fixture.stop(LONG).is_clean());
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("Connection: close\r\n") && answer.ends_with("last words"), "{answer}");
}

#[test]
fn a_client_that_does_not_read_is_disconnected_at_the_end_of_the_budget() {
    // More than the buffers of both sockets hold.
    let handler: Handler = Arc::new(|_| HttpResponse::text(200, "x".repeat(16 << 20)));
    let mut fixture = Fixture::new(HttpLimits { write_time: LONG, ..HttpLimits::default() }, handler, &Board::new());
    let mut client = fixture.connect();
    client.write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n").unwrap();
    // From here on its thread is in `write`: making an answer this large may take longer than the kick's grace.
    read_until(&mut client, "\r\n\r\n");
    // Its time to take the answer is not waited for, or it would not be clean.
    let report = fixture.stop(Duration::from_millis(200));
    assert!(report.is_clean(), "{report}");
}

#[test]
fn dropping_an_http_server_stops_it() {
    let (began_tx, began) = crossbeam_channel::bounded(1);
    let handler: Handler = Arc::new(move |request| {
        if request.path == "/wait" {
            began_tx.send(()).unwrap();
            assert!(request.shutdown.wait_for(Level::Cancel, Duration::MAX));
        }
        HttpResponse::text(200, "[] ")
    });
    let mut fixture = Fixture::new(HttpLimits::default(), handler, &Board::new());
    let (mut idle, mut waits) = (fixture.connect(), fixture.connect());
    idle.write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n").unwrap();
    read_until(&mut idle, "[] ");
    waits.write_all(b"GET /wait HTTP/1.1\r\nHost: h\r\n\r\n").unwrap();
    began.recv_timeout(LONG).unwrap();
    drop(fixture.server.take());
    assert!(fixture.group.live().is_empty(), "{:?}", fixture.group.live());
    for mut client in [idle, waits] {
        // Closed or reset, perhaps after the answer that the cancel brought about; not silent.
        let end = client.read_to_end(&mut Vec::new());
        assert!(end.as_ref().err().is_none_or(|error| error.kind() == ErrorKind::ConnectionReset), "{end:?}");
    }
}

/// The pages of a role that is not there.
struct Pages {
    board: Board,
    stop: Shutdown,
    timer: Option<Timer>,
    fixture: Fixture,
}

impl Pages {
    fn new() -> Self {
        let (board, stop, timer) = (Board::new(), Shutdown::new(), Timer::start());
        let frame = Frame {
            role: "test",
            since: Instant::now(),
            board: board.clone(),
            stop: stop.clone(),
            timer: timer.handle(),
            look: Box::new(|health, _| {
                health.up("looked");
                serde_json::json!({"jobs": 7, "links": [{"why": "bad url \"ws://u:pass-word@h\""}]})
            }),
        };
        let pages = pages(frame);
        let handler: Handler =
            Arc::new(move |request| pages(request).unwrap_or_else(|| HttpResponse::text(404, "no page\n")));
        let fixture = Fixture::new(HttpLimits::default(), handler, &board);
        Self { board, stop, timer: Some(timer), fixture }
    }

    /// The status and the body of a page.
    fn get(&self, path: &str) -> (u16, String) {
        let answer = self.fixture.ask(&format!("GET {path} HTTP/1.0\r\n\r\n"));
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head["HTTP/1.1 ".len()..][..3].parse().unwrap(), body.to_owned())
    }

    fn snapshot(&self) -> Snapshot {
        serde_json::from_str(&self.get("/status.json").1).unwrap()
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        let mut stopping = Stopping::alone();
        stopping.step("timer", LONG, |step| self.timer.take().unwrap().stop_in(step));
    }
}

#[test]
fn the_pages_of_every_role() {
    let pages = Pages::new();
    pages.board.metrics.counter("phalanx_things_total", "Things.", &[]).inc();
    assert_eq!(pages.get("/healthz"), (200, "ok\n".to_owned()));
    assert_eq!(pages.get("/readyz"), (200, "ready\n".to_owned()));
    let metrics = pages.get("/metrics").1;
    for expected in
        ["phalanx_things_total 1\n", "phalanx_ready 1\n", "phalanx_build_info{version=\"", "phalanx_uptime_seconds 0\n"]
    {
        assert!(metrics.contains(expected), "{expected} is not in {metrics}");
    }
    let (status, page) = pages.get("/");
    assert!(
        status == 200 && page.starts_with("<!doctype html>") && page.contains("<title>test: ready</title>"),
        "{page}"
    );
    let head = pages.fixture.ask("HEAD / HTTP/1.0\r\n\r\n");
    assert!(
        head.contains("\r\nContent-Security-Policy: default-src 'none'; script-src 'self'; style-src 'self'; "),
        "{head}"
    );
    assert!(head.contains("\r\nContent-Type: text/html; charset=utf-8\r\n") && head.ends_with("\r\n\r\n"), "{head}");
    for file in ["/page.css", "/page.js", "/page.svg"] {
        assert!(page.contains(&format!("\"{}\"", &file[1..])) && pages.get(file).0 == 200, "{file}: {page}");
    }
    assert_eq!(pages.get("/other").0, 404);
    assert!(pages.fixture.ask("POST /metrics HTTP/1.0\r\n\r\n").starts_with("HTTP/1.1 405 "));
    let now = pages.snapshot();
    assert_eq!((now.role.as_str(), now.state, now.ready), ("test", RoleState::Running, true));
    let shown = serde_json::json!({"jobs": 7, "links": [{"why": "bad url \"ws://…@h\""}]});
    assert_eq!(now.details, shown);
    assert!(now.threads.iter().any(|thread| thread.name == "t-http"), "{:?}", now.threads);
    assert_eq!(now.errors, []);
}

#[test]
fn what_is_refused_is_counted_by_reason_and_a_probe_that_says_no_is_not() {
    let pages = Pages::new();
    pages.board.health.down("store", "disk full");
    assert_eq!(pages.get("/readyz").0, 503);
    let asked = [
        ("GET /other HTTP/1.0\r\n\r\n", "404", "not_found"),
        ("POST / HTTP/1.0\r\n\r\n", "405", "method"),
        ("\0\0\0\0", "400", "malformed"),
        (&format!("GET / HTTP/1.1\r\nHost: h\r\nX: {}", "x".repeat(30 << 10)), "431", "too_large"),
    ];
    for (request, status, _) in asked {
        let answer = pages.fixture.ask(request);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
    }
    let metrics = pages.get("/metrics").1;
    let counted: Vec<_> = metrics.lines().filter(|line| line.starts_with("phalanx_http_refused_total")).collect();
    let line = |reason| format!("phalanx_http_refused_total{{reason=\"{reason}\"}} 1");
    let mut expected: Vec<_> = asked.iter().map(|(_, _, reason)| line(reason)).collect();
    expected.sort();
    assert_eq!(counted, expected);
}

#[test]
fn a_role_that_is_not_ready_says_why_on_every_page() {
    let pages = Pages::new();
    pages.board.health.down("store", "disk full");
    pages.board.errors.report(ErrorClass::Retry, "t-store", &"disk full");
    assert_eq!(pages.snapshot().state, RoleState::Starting);
    pages.board.health.up("store");
    assert!(pages.snapshot().ready);
    pages.board.health.down("store", "disk full");
    assert_eq!(pages.get("/readyz"), (503, "store: disk full\n".to_owned()));
    assert_eq!(pages.get("/healthz").0, 200, "it lives, and goes on trying");
    let metrics = pages.get("/metrics").1;
    assert!(metrics.contains("phalanx_ready 0\n"), "{metrics}");
    assert!(metrics.contains("phalanx_errors_total{class=\"retry\",place=\"t-store\"} 1\n"), "{metrics}");
    let now = pages.snapshot();
    assert_eq!((now.state, now.ready, now.errors[0].text.as_str()), (RoleState::Running, false, "disk full"));
    pages.board.health.up("store");
    pages.stop.drain();
    let (status, why) = pages.get("/readyz");
    assert!(status == 503 && why == "the test takes no new work: it is draining\n", "{status} {why}");
    pages.stop.cancel();
    assert_eq!(pages.snapshot().state, RoleState::Stopped);
}

#[test]
fn a_timer_that_is_stuck_is_not_alive() {
    let pages = Pages::new();
    let (free, stuck) = crossbeam_channel::bounded::<()>(0);
    let (began_tx, began) = crossbeam_channel::bounded(1);
    let handle = pages.timer.as_ref().unwrap().handle();
    let _alarm = handle.at(Instant::now(), move || {
        began_tx.send(()).unwrap();
        assert!(stuck.recv().is_err());
    });
    began.recv_timeout(LONG).unwrap();
    let (status, why) = pages.get("/healthz");
    assert!(status == 503 && why.starts_with("timer: should have made progress "), "{status} {why}");
    // Once it is known, every page says so.
    assert_eq!(pages.get("/readyz").0, 503);
    assert_eq!(pages.snapshot().parts.iter().find(|part| part.name == "timer").unwrap().state, PartState::Stuck);
    drop(free);
    assert_eq!(pages.get("/healthz"), (200, "ok\n".to_owned()));
}

#[test]
fn a_question_to_a_stuck_timer_does_not_hold_the_stop() {
    let mut pages = Pages::new();
    let (free, stuck) = crossbeam_channel::bounded::<()>(0);
    let (began_tx, began) = crossbeam_channel::bounded(1);
    let handle = pages.timer.as_ref().unwrap().handle();
    let _alarm = handle.at(Instant::now(), move || {
        began_tx.send(()).unwrap();
        assert!(stuck.recv().is_err());
    });
    began.recv_timeout(LONG).unwrap();
    let mut client = pages.fixture.connect();
    client.write_all(b"GET /healthz HTTP/1.0\r\n\r\n").unwrap();
    // The timer is asked once there is a promise that will be broken some day.
    let limit = Instant::now() + LONG;
    let asked = || pages.board.health.parts(limit).iter().any(|part| part.state == PartState::Stuck);
    until("the timer was asked", asked);
    assert!(pages.fixture.stop(LONG).is_clean());
    // Had it waited for the timer, the timer would be stuck.
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    drop(free);
}
