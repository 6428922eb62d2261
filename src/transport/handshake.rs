//! The HTTP upgrade of RFC 6455, section 4, over any blocking stream. Limits on time are the stream's, see [`Bounded`].

use std::fmt::Write as _;
use std::io::{self, Read, Write};
use std::net::{Shutdown as Half, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use tungstenite::handshake::client::generate_key;
use tungstenite::handshake::derive_accept_key;
use tungstenite::http::{HeaderName, HeaderValue, StatusCode};

use super::url::WsUrl;
use super::{HandshakeRequest, Refusal, TransportError, USER_AGENT};
use crate::base::shutdown::{Level, Shutdown};
use crate::base::waits::waiting;

/// Header lines of a request or response. Python clients send about ten.
pub(super) const HEADERS: usize = 64;

/// How long an end that refused keeps reading, so that unread bytes do not reset the connection under its answer or alert.
const LINGER: Duration = Duration::from_secs(1);

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
    fn left(&self) -> io::Result<Option<Duration>> {
        match self.deadline.saturating_duration_since(Instant::now()) {
            Duration::ZERO => Err(io::ErrorKind::TimedOut.into()),
            left => Ok(Some(left)),
        }
    }

    /// Repeats `call` when a signal interrupted it, which the system does not do itself on a socket with a time-out.
    fn call(
        &self,
        arm: impl Fn(&TcpStream, Option<Duration>) -> io::Result<()>,
        mut call: impl FnMut(&TcpStream) -> io::Result<usize>,
    ) -> io::Result<usize> {
        loop {
            arm(self.tcp, self.left()?)?;
            let _waiting = waiting("the peer's part of the handshake", Some(self.deadline));
            match call(self.tcp) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                // So the system reports a time-out of the socket.
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Err(io::ErrorKind::TimedOut.into()),
                done => return done,
            }
        }
    }

    /// Half-closes and reads until the peer has done the same, at most for [`LINGER`].
    fn linger(&mut self) {
        self.deadline = self.deadline.min(Instant::now() + LINGER);
        // The handshake has failed already, so errors have nobody to interest; the loop ends with any of them.
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

/// Runs a handshake on `tcp`: it ends by `deadline`, and at once when `shutdown` reaches `level`. Afterwards the socket has
/// no time-outs.
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
    if let Err(TransportError::Refused { .. } | TransportError::Handshake { .. } | TransportError::Tls { .. }) = outcome
    {
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

/// Sends the request and checks the answer. Gives what the server sent after it.
///
/// Blocks in `stream`, whose errors end it.
pub(super) fn upgrade_as_client(
    stream: &mut (impl Read + Write),
    url: &WsUrl,
    headers: &[(String, String)],
    limit: usize,
) -> Result<Vec<u8>, TransportError> {
    let wrong = |problem: String| TransportError::Handshake { peer: url.authority.clone(), problem };
    let key = generate_key();
    let mut request = format!(
        "GET {} HTTP/1.1\r\nHost: {}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n",
        url.path, url.authority
    );
    if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("user-agent")) {
        write!(request, "User-Agent: {USER_AGENT}\r\n").expect("writing to a string does not fail");
    }
    for (name, value) in headers {
        check_header(name, value)?;
        write!(request, "{name}: {value}\r\n").expect("writing to a string does not fail");
    }
    request.push_str("\r\n");
    stream
        .write_all(request.as_bytes())
        .and_then(|()| stream.flush())
        .map_err(TransportError::io("sending upgrade"))?;

    let is_http = |start: &[u8]| b"HTTP/1.1 ".starts_with(&start[..start.len().min(9)]);
    let (head, tail) = match read_head(stream, limit, is_http)? {
        Head::Whole { head, tail } => (head, tail),
        Head::TooLong => return Err(wrong(format!("the answer's head is over the limit of {limit} bytes"))),
        Head::Ended => return Err(wrong("the server closed the connection instead of answering".to_owned())),
        Head::NotHttp => return Err(wrong("the answer is not HTTP/1.1 (a TLS port wants wss://)".to_owned())),
    };
    let mut lines = [httparse::EMPTY_HEADER; HEADERS];
    let mut response = httparse::Response::new(&mut lines);
    response.parse(&head).map_err(|e| wrong(format!("the answer is not HTTP/1.1: {e}")))?;
    let header = |name: &str| header_in(response.headers, name);
    let status = response.code.expect("a response whose head is whole has a status");
    if status != StatusCode::SWITCHING_PROTOCOLS.as_u16() {
        let length = header("content-length").and_then(|n| n.parse().ok()).unwrap_or(tail.len());
        // It may also be a date, which only a clock that agrees with the server's could turn into a time to wait.
        let retry_after =
            header("retry-after").and_then(|s| s.parse::<u32>().ok()).map(|s| Duration::from_secs(s.into()));
        return Err(TransportError::Refused { status, body: read_body(stream, tail, length.min(limit)), retry_after });
    }
    if !has_token(header("upgrade"), "websocket") || !has_token(header("connection"), "upgrade") {
        return Err(wrong("the answer has status 101 but no upgrade to websocket".to_owned()));
    }
    if header("sec-websocket-accept") != Some(derive_accept_key(key.as_bytes()).as_str()) {
        return Err(wrong("the answer's Sec-WebSocket-Accept does not belong to our key".to_owned()));
    }
    for name in ["sec-websocket-extensions", "sec-websocket-protocol"] {
        if let Some(value) = header(name) {
            return Err(wrong(format!("the answer has {name} {value:?}, and we offered none")));
        }
    }
    Ok(tail)
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

/// What of the body of a refusal can be had; it only explains the status, so an error ends it and no more.
fn read_body(stream: &mut impl Read, mut body: Vec<u8>, length: usize) -> String {
    if body.len() < length {
        let missing = (length - body.len()) as u64;
        let _ = stream.take(missing).read_to_end(&mut body);
    }
    body.truncate(length);
    String::from_utf8_lossy(&body).trim().to_owned()
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

/// Reads the request, asks `route`, answers.
///
/// Blocks in `stream`, whose errors end it. A peer that is refused is told why.
pub(super) fn upgrade_as_server(
    stream: &mut (impl Read + Write),
    peer: &str,
    limit: usize,
    route: &mut dyn FnMut(&HandshakeRequest) -> Result<(), Refusal>,
) -> Result<HandshakeRequest, TransportError> {
    let verdict = read_request(stream, limit)
        .and_then(|(request, accept)| route(&request).map(|()| (request, accept)).map_err(Verdict::Refused));
    let (answer, outcome) = match verdict {
        Ok((request, accept)) => {
            let answer = format!(
                "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                 Sec-WebSocket-Accept: {accept}\r\n\r\n"
            );
            (answer, Ok(request))
        }
        Err(Verdict::Wrong { status, problem }) => {
            (refusal(status, &problem), Err(TransportError::Handshake { peer: peer.to_owned(), problem }))
        }
        Err(Verdict::Refused(Refusal { status, body })) => {
            let status = refusal_status(status);
            (refusal(status, &body), Err(TransportError::refused(status.as_u16(), body)))
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
        .filter(|s| s.is_client_error() || s.is_server_error())
        .unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

fn refusal(status: StatusCode, body: &str) -> String {
    format!(
        "HTTP/1.1 {} {}\r\nConnection: close\r\nSec-WebSocket-Version: 13\r\n\
         Content-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\n\r\n{body}",
        status.as_u16(),
        status.canonical_reason().unwrap_or("Refused"),
        body.len()
    )
}

/// The request and the `Sec-WebSocket-Accept` it is to get.
fn read_request(stream: &mut impl Read, limit: usize) -> Result<(HandshakeRequest, String), Verdict> {
    let wrong = |status, problem: &str| Verdict::Wrong { status, problem: problem.to_owned() };
    let is_http = |start: &[u8]| start[0].is_ascii_uppercase();
    let (head, tail) = match read_head(stream, limit, is_http)? {
        Head::Whole { head, tail } => (head, tail),
        Head::TooLong => {
            let problem = format!("the request's head is over the limit of {limit} bytes");
            return Err(Verdict::Wrong { status: StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, problem });
        }
        Head::Ended => return Err(Verdict::Gone(TransportError::Closed)),
        Head::NotHttp => {
            return Err(wrong(StatusCode::BAD_REQUEST, "the request is not HTTP (this port has no TLS)"));
        }
    };
    let mut lines = [httparse::EMPTY_HEADER; HEADERS];
    let mut request = httparse::Request::new(&mut lines);
    request.parse(&head).map_err(|e| match e {
        httparse::Error::TooManyHeaders => Verdict::Wrong {
            status: StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            problem: format!("more than {HEADERS} headers"),
        },
        e => Verdict::Wrong { status: StatusCode::BAD_REQUEST, problem: format!("the request is not HTTP: {e}") },
    })?;
    let header = |name: &str| header_in(request.headers, name);
    if request.method != Some("GET") {
        return Err(wrong(StatusCode::METHOD_NOT_ALLOWED, "the method must be GET"));
    }
    if request.version != Some(1) {
        return Err(wrong(StatusCode::HTTP_VERSION_NOT_SUPPORTED, "the version must be HTTP/1.1"));
    }
    if !has_token(header("upgrade"), "websocket") || !has_token(header("connection"), "upgrade") {
        return Err(wrong(StatusCode::UPGRADE_REQUIRED, "this is a WebSocket port: Upgrade: websocket is missing"));
    }
    if header("sec-websocket-version") != Some("13") {
        return Err(wrong(StatusCode::UPGRADE_REQUIRED, "Sec-WebSocket-Version must be 13"));
    }
    let key = header("sec-websocket-key").unwrap_or("");
    if BASE64.decode(key).map_or(0, |bytes| bytes.len()) != 16 {
        return Err(wrong(StatusCode::BAD_REQUEST, "Sec-WebSocket-Key must be 16 bytes in base64"));
    }
    if !tail.is_empty() {
        return Err(wrong(StatusCode::BAD_REQUEST, "data before the upgrade was answered"));
    }
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok((
        HandshakeRequest {
            path: request.path.expect("a request whose head is whole has a path").to_owned(),
            headers: request.headers.iter().map(|h| (h.name.to_owned(), text(h.value))).collect(),
        },
        derive_accept_key(key.as_bytes()),
    ))
}

fn header_in<'h>(headers: &[httparse::Header<'h>], name: &str) -> Option<&'h str> {
    let header = headers.iter().find(|h| h.name.eq_ignore_ascii_case(name))?;
    std::str::from_utf8(header.value).ok().map(str::trim)
}

fn has_token(value: Option<&str>, token: &str) -> bool {
    value.is_some_and(|v| v.split(',').any(|t| t.trim().eq_ignore_ascii_case(token)))
}

/// What came before the empty line, and after it.
pub(super) enum Head {
    Whole { head: Vec<u8>, tail: Vec<u8> },
    TooLong,
    Ended,
    NotHttp,
}

/// Reads up to and including the empty line. `is_http` judges the first bytes (at least one), so that a peer which speaks
/// something else is told at once rather than at the deadline.
pub(super) fn read_head(
    stream: &mut impl Read,
    limit: usize,
    is_http: fn(&[u8]) -> bool,
) -> Result<Head, TransportError> {
    let mut head = Vec::new();
    let mut chunk = [0; 4096];
    while head.len() < limit {
        let room = (limit - head.len()).min(chunk.len());
        let n = stream.read(&mut chunk[..room]).map_err(TransportError::io("handshake"))?;
        if n == 0 {
            return Ok(Head::Ended);
        }
        let searched = head.len().saturating_sub(3);
        head.extend_from_slice(&chunk[..n]);
        if !is_http(&head) {
            return Ok(Head::NotHttp);
        }
        if let Some(at) = head[searched..].windows(4).position(|w| w == b"\r\n\r\n") {
            let tail = head.split_off(searched + at + 4);
            return Ok(Head::Whole { head, tail });
        }
    }
    Ok(Head::TooLong)
}
