//! The HTTP upgrade of RFC 6455, section 4, over any blocking stream. Limits on time are the stream's, see [`Bounded`].

use std::io::{self, Read, Write};
use std::net::{Shutdown as Half, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use tungstenite::handshake::client::generate_key;
use tungstenite::handshake::derive_accept_key;
use tungstenite::http::{HeaderName, HeaderValue, StatusCode};

use super::error::MOVED_BYTES;
use super::traffic::clock_skew;
use super::url::WsUrl;
use super::{HandshakeRequest, Refusal, TransportError, USER_AGENT};
use crate::base::clock;
use crate::base::clock::now;
use crate::base::shutdown::{Level, Shutdown};
use crate::base::text::truncated;
use crate::base::waits::waiting;
use crate::net::deadline::by;
use crate::net::http::date::{http_date, longest_wait, unix_seconds};
use crate::net::http::excerpt::said;
use crate::net::http::head::{
    HEADERS, HeadText, Received, RequestHead, ResponseHead, SAFE, check_host, first, has_token, list, one, receive,
    receive_answer, target_parts,
};
use crate::ops::redact::OneLine;

/// How long an end that refused keeps reading, so that unread bytes do not reset the connection under its answer or
/// alert.
const LINGER: Duration = Duration::from_secs(1);

/// Bytes of a refusal that go into an error: those of our own servers fit.
const REFUSAL_BYTES: usize = 200;

/// Bytes that are shown of an answer that is not HTTP.
const ANSWER_START: usize = 40;

/// Headers that belong to the upgrade itself, so a caller must not give them.
const OWN_HEADERS: [&str; 7] = [
    "host",
    "connection",
    "upgrade",
    "sec-websocket-key",
    "sec-websocket-version",
    "sec-websocket-extensions",
    "sec-websocket-protocol",
];

/// A socket whose every call ends at one deadline, because the system's time-outs are set anew for what is left of it.
pub(super) struct Bounded<'a> {
    tcp: &'a TcpStream,
    deadline: Instant,
}

impl Bounded<'_> {
    fn call(
        &self,
        arm: impl Fn(&TcpStream, Option<Duration>) -> io::Result<()>,
        mut call: impl FnMut(&TcpStream) -> io::Result<usize>,
    ) -> io::Result<usize> {
        by(self.deadline, |left| {
            arm(self.tcp, Some(left))?;
            let _waiting = waiting("the peer's part of the handshake", Some(self.deadline));
            call(self.tcp)
        })
    }

    /// Half-closes and reads until the peer has done the same, at most for [`LINGER`].
    fn linger(&mut self) {
        self.deadline = self.deadline.min(Instant::now() + LINGER);
        // The handshake has failed already; a further error only ends the loop.
        let _ = self.tcp.shutdown(Half::Write);
        let mut discarded = [0; 1024];
        while self.read(&mut discarded).is_ok_and(|n| n > 0) {}
    }
}

impl Read for Bounded<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.call(TcpStream::set_read_timeout, |mut tcp| tcp.read(buf))
    }
}

impl Write for Bounded<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.call(TcpStream::set_write_timeout, |mut tcp| tcp.write(buf))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Runs a handshake on `tcp`: it ends by `deadline`, and at once when `shutdown` reaches `level`. Afterwards the socket
/// has no time-outs.
pub(super) fn bounded<T>(
    tcp: &Arc<TcpStream>,
    peer: &str,
    deadline: Instant,
    shutdown: &Shutdown,
    level: Level,
    run: impl FnOnce(&mut Bounded<'_>) -> Result<T, TransportError>,
) -> Result<T, TransportError> {
    let start = Instant::now();
    let kicked = Arc::downgrade(tcp);
    let registration = shutdown.on(level, move || {
        if let Some(tcp) = kicked.upgrade() {
            // An error means that the connection is gone already.
            let _ = tcp.shutdown(Half::Both);
        }
    });
    let mut socket = Bounded { tcp, deadline };
    let outcome = run(&mut socket);
    use TransportError as E;
    if let Err(E::Refused { .. } | E::Moved { .. } | E::Handshake { .. } | E::Tls { .. }) = outcome {
        socket.linger();
    }
    drop(registration);
    if shutdown.level() >= level {
        return Err(TransportError::Stopped);
    }
    let value = outcome.map_err(|error| match error {
        TransportError::Io { source, .. } if source.kind() == io::ErrorKind::TimedOut => {
            TransportError::Timeout { doing: "handshake", peer: peer.to_owned(), after: start.elapsed() }
        }
        other => other,
    })?;
    tcp.set_read_timeout(None).and_then(|()| tcp.set_write_timeout(None)).map_err(TransportError::io("handshake"))?;
    Ok(value)
}

/// What a server has answered an upgrade with.
pub(super) struct Upgraded {
    /// What it sent after its answer.
    pub(super) tail: Vec<u8>,
    /// By how much its clock is ahead of ours, see [`Traffic::clock_skew`](super::Traffic::clock_skew).
    pub(super) clock_skew: Option<i64>,
}

/// Sends the request and checks the answer.
///
/// Blocks in `stream`, whose errors end it.
pub(super) fn upgrade_as_client(
    stream: &mut (impl Read + Write),
    url: &WsUrl,
    headers: &[(String, String)],
    limit: usize,
) -> Result<Upgraded, TransportError> {
    let wrong = |problem: String| TransportError::Handshake { peer: url.authority.clone(), problem };
    let key = generate_key();
    let mut request = HeadText::new(format_args!("GET {} HTTP/1.1", url.path))
        .with("Host", &url.authority)
        .with("Connection", "Upgrade")
        .with("Upgrade", "websocket")
        .with("Sec-WebSocket-Version", 13)
        .with("Sec-WebSocket-Key", &key);
    if first(headers, "user-agent").is_none() {
        request = request.with("User-Agent", USER_AGENT);
    }
    for (name, value) in headers {
        check_header(name, value)?;
        request = request.with(name, value);
    }
    let asked = now().wall;
    stream
        .write_all(request.end().as_bytes())
        .and_then(|()| stream.flush())
        .map_err(TransportError::io("sending upgrade"))?;

    let is_http = |start: &[u8]| b"HTTP/1.1 ".starts_with(&start[..start.len().min(9)]);
    let received = receive_answer(stream, limit, is_http).map_err(TransportError::io("handshake"))?;
    let (head, tail) = match received {
        Received::Whole { head, tail } => (head, tail),
        Received::TooLong => return Err(wrong(format!("the answer's head is over the limit of {limit} bytes"))),
        Received::Ended => {
            let why = "the server closed the connection instead of answering";
            return Err(TransportError::io("handshake")(io::Error::new(io::ErrorKind::UnexpectedEof, why)));
        }
        Received::NotHttp(start) => return Err(wrong(not_http(&start))),
    };
    let ResponseHead { status, headers } =
        ResponseHead::parse(&head).map_err(|e| wrong(format!("the answer is not HTTP/1.1: {e}")))?;
    let header = |name: &str| first(&headers, name);
    if status != StatusCode::SWITCHING_PROTOCOLS.as_u16() {
        if let (301 | 302 | 303 | 307 | 308, Some(to)) = (status, header("location")) {
            return Err(TransportError::Moved { status, to: OneLine(truncated(to, MOVED_BYTES)).to_string() });
        }
        let length = header("content-length").and_then(|n| n.parse().ok()).unwrap_or(tail.len());
        let retry_after = longest_wait(&headers, now().wall.as_secs());
        return Err(TransportError::Refused { status, body: read_body(stream, tail, length.min(limit)), retry_after });
    }
    if !is_upgrade(&headers) {
        return Err(wrong("the answer has status 101 but no upgrade to websocket".to_owned()));
    }
    if one(&headers, "sec-websocket-accept").map_err(wrong)? != Some(derive_accept_key(key.as_bytes()).as_str()) {
        return Err(wrong("the answer's Sec-WebSocket-Accept does not belong to our key".to_owned()));
    }
    for name in ["sec-websocket-extensions", "sec-websocket-protocol"] {
        if let Some(value) = list(&headers, name).next() {
            return Err(wrong(format!("the answer has {name} {value:?}, and we offered none")));
        }
    }
    let clock_skew = header("date").and_then(unix_seconds).map(|theirs| clock_skew(theirs, asked, now().wall));
    Ok(Upgraded { tail, clock_skew })
}

fn check_header(name: &str, value: &str) -> Result<(), TransportError> {
    let bad = |problem: &str| TransportError::Header { name: name.to_owned(), problem: problem.to_owned() };
    HeaderName::from_bytes(name.as_bytes()).map_err(|_| bad("the name has characters that headers cannot have"))?;
    HeaderValue::from_str(value).map_err(|_| bad("the value has characters that headers cannot have"))?;
    if OWN_HEADERS.iter().any(|own| own.eq_ignore_ascii_case(name)) {
        return Err(bad("the upgrade sets it itself"));
    }
    Ok(())
}

/// What answers, if it is no HTTP/1.1.
fn not_http(start: &[u8]) -> String {
    match start {
        // An alert, or a handshake, of TLS.
        [0x15 | 0x16, 3, ..] => "the answer is not HTTP/1.1 but TLS: its address begins with wss://".to_owned(),
        start => {
            let start = String::from_utf8_lossy(&start[..start.len().min(ANSWER_START)]);
            let line = start.lines().next().unwrap_or_default();
            format!("the answer is not HTTP/1.1, which WebSockets need; it begins with \"{}\"", OneLine(line))
        }
    }
}

/// What of the body of a refusal can be had, and only so much of it as explains the status; an error ends it and no
/// more.
fn read_body(stream: &mut impl Read, mut body: Vec<u8>, length: usize) -> String {
    if body.len() < length {
        let missing = (length - body.len()) as u64;
        let _ = stream.take(missing).read_to_end(&mut body);
    }
    body.truncate(length);
    said(&body, REFUSAL_BYTES)
}

/// Why a server answers with something else than 101.
enum Verdict {
    Wrong {
        status: StatusCode,
        problem: String,
    },
    Refused(Refusal),
    /// Nobody is there to be answered.
    Gone(TransportError),
}

impl From<TransportError> for Verdict {
    fn from(error: TransportError) -> Self {
        Self::Gone(error)
    }
}

/// Reads the request, asks `check`, answers.
///
/// Blocks in `stream`, whose errors end it. A peer that is refused gets the reason.
pub(super) fn upgrade_as_server(
    stream: &mut (impl Read + Write),
    peer: &str,
    limit: usize,
    check: &mut dyn FnMut(&HandshakeRequest) -> Result<(), Refusal>,
) -> Result<HandshakeRequest, TransportError> {
    let verdict = read_request(stream, limit, check);
    let (answer, outcome) = match verdict {
        Ok((request, accept)) => {
            let answer = HeadText::new(format_args!("HTTP/1.1 101 Switching Protocols"))
                .with("Date", http_date(clock::now().wall.as_secs()))
                .with("Connection", "Upgrade")
                .with("Upgrade", "websocket")
                .with("Sec-WebSocket-Accept", accept);
            (answer.end(), Ok(request))
        }
        Err(Verdict::Wrong { status, problem }) => {
            (refusal(status, &problem, None), Err(TransportError::Handshake { peer: peer.to_owned(), problem }))
        }
        Err(Verdict::Refused(Refusal { status, body, retry_after })) => {
            let status = refusal_status(status);
            (refusal(status, &body, retry_after), Err(TransportError::refused(status.as_u16(), body)))
        }
        Err(Verdict::Gone(error)) => return Err(error),
    };
    stream
        .write_all(answer.as_bytes())
        .and_then(|()| stream.flush())
        .map_err(TransportError::io("answering upgrade"))?;
    outcome
}

/// A status that does not refuse would mislead the client.
pub(super) fn refusal_status(status: u16) -> StatusCode {
    StatusCode::from_u16(status)
        .ok()
        .filter(|s| *s == StatusCode::OK || s.is_client_error() || s.is_server_error())
        .unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

fn refusal(status: StatusCode, body: &str, retry_after: Option<Duration>) -> String {
    let reason = status.canonical_reason().unwrap_or("Refused");
    let kind = if status == StatusCode::OK { "application/json" } else { "text/plain; charset=utf-8" };
    let mut head = HeadText::new(format_args!("HTTP/1.1 {} {reason}", status.as_u16()))
        .with("Connection", "close")
        // By it a validator's operator sees how the clocks differ.
        .with("Date", http_date(clock::now().wall.as_secs()))
        .with("Sec-WebSocket-Version", 13)
        .with("Content-Type", kind)
        .with("Content-Length", body.len());
    if let Some(after) = retry_after {
        head = head.with("Retry-After", after.as_secs().max(1));
    }
    for (name, value) in SAFE {
        head = head.with(name, value);
    }
    head.end() + body
}

/// A request that `check` takes, and the `Sec-WebSocket-Accept` it is to get. What wants no upgrade is checked, too:
/// the answer may be a page.
fn read_request(
    stream: &mut impl Read,
    limit: usize,
    check: &mut dyn FnMut(&HandshakeRequest) -> Result<(), Refusal>,
) -> Result<(HandshakeRequest, String), Verdict> {
    let (head, tail) = read_request_head(stream, limit)?;
    let (_, path) = target_parts(&head.target)
        .ok_or_else(|| wrong(StatusCode::BAD_REQUEST, "the request's target is no path, nor http://host/path"))?;
    let path = path.into_owned();
    let RequestHead { method, is_1_1, headers, .. } = head;
    let header = |name: &str| one(&headers, name).map_err(|why| wrong(StatusCode::BAD_REQUEST, &why));
    if method != "GET" {
        return Err(wrong(StatusCode::METHOD_NOT_ALLOWED, "the method must be GET"));
    }
    if !is_1_1 {
        return Err(wrong(StatusCode::HTTP_VERSION_NOT_SUPPORTED, "the version must be HTTP/1.1"));
    }
    if !is_upgrade(&headers) {
        if let Err(page @ Refusal { status: 200, .. }) = check(&HandshakeRequest { path, headers }) {
            return Err(Verdict::Refused(page));
        }
        return Err(wrong(StatusCode::UPGRADE_REQUIRED, "this is a WebSocket port: Upgrade: websocket is missing"));
    }
    if header("sec-websocket-version")? != Some("13") {
        return Err(wrong(StatusCode::UPGRADE_REQUIRED, "Sec-WebSocket-Version must be 13"));
    }
    let key = header("sec-websocket-key")?.unwrap_or("");
    if BASE64.decode(key).map_or(0, |bytes| bytes.len()) != 16 {
        return Err(wrong(StatusCode::BAD_REQUEST, "Sec-WebSocket-Key must be 16 bytes in base64"));
    }
    if !tail.is_empty() {
        return Err(wrong(StatusCode::BAD_REQUEST, "data before the upgrade was answered"));
    }
    let accept = derive_accept_key(key.as_bytes());
    let request = HandshakeRequest { path, headers };
    check(&request).map_err(Verdict::Refused)?;
    Ok((request, accept))
}

fn wrong(status: StatusCode, problem: &str) -> Verdict {
    Verdict::Wrong { status, problem: problem.to_owned() }
}

/// A request's head and what came after it.
fn read_request_head(stream: &mut impl Read, limit: usize) -> Result<(RequestHead, Vec<u8>), Verdict> {
    let is_http = |start: &[u8]| start[0].is_ascii_uppercase();
    let received = receive(stream, limit, is_http).map_err(TransportError::io("handshake"))?;
    let (head, tail) = match received {
        Received::Whole { head, tail } => (head, tail),
        Received::TooLong => {
            let problem = format!("the request's head is over the limit of {limit} bytes");
            return Err(Verdict::Wrong { status: StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, problem });
        }
        Received::Ended => return Err(Verdict::Gone(TransportError::Closed)),
        Received::NotHttp(_) => {
            return Err(wrong(StatusCode::BAD_REQUEST, "the request is not HTTP (this port has no TLS)"));
        }
    };
    let parsed = RequestHead::parse(&head).map_err(|e| match e {
        httparse::Error::TooManyHeaders => Verdict::Wrong {
            status: StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            problem: format!("more than {HEADERS} headers"),
        },
        e => Verdict::Wrong { status: StatusCode::BAD_REQUEST, problem: format!("the request is not HTTP: {e}") },
    })?;
    let Some((head, _)) = parsed else {
        return Err(wrong(StatusCode::BAD_REQUEST, "the request is not HTTP: its head is not whole"));
    };
    check_host(&head).map_err(|why| wrong(StatusCode::BAD_REQUEST, why))?;
    Ok((head, tail))
}

fn is_upgrade(headers: &[(String, String)]) -> bool {
    has_token(headers, "upgrade", "websocket") && has_token(headers, "connection", "upgrade")
}
