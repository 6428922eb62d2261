//! The head of an HTTP/1 message, for every end that speaks HTTP: found in a stream, taken apart, and written.

use std::borrow::Cow;
use std::fmt::{self, Display, Write as _};
use std::io::{self, Read};

use httparse::{EMPTY_HEADER, Error, Status};

use crate::net::address;

/// Headers of one message; a browser sends some 20, the Python clients about ten.
pub(crate) const HEADERS: usize = 100;

/// Names and values in their order; bytes that are not UTF-8 are replaced.
pub(crate) type Headers = Vec<(String, String)>;

fn owned(headers: &[httparse::Header<'_>]) -> Headers {
    headers.iter().map(|h| (h.name.to_owned(), String::from_utf8_lossy(h.value).trim().to_owned())).collect()
}

/// The values of that name, in any case.
pub(crate) fn all<'h>(headers: &'h [(String, String)], name: &str) -> impl Iterator<Item = &'h str> {
    headers.iter().filter(move |(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
}

/// The first value of that name, in any case.
pub(crate) fn first<'h>(headers: &'h [(String, String)], name: &str) -> Option<&'h str> {
    all(headers, name).next()
}

/// The elements of the comma-separated list of that name, in any case: fields of one name are one list (RFC 9110,
/// section 5.3), in which empty elements do not count. Not for lists whose elements may be quoted.
pub(crate) fn list<'h>(headers: &'h [(String, String)], name: &str) -> impl Iterator<Item = &'h str> {
    all(headers, name).flat_map(|value| value.split(',')).map(str::trim).filter(|element| !element.is_empty())
}

/// Whether the list of that name has the token.
pub(crate) fn has_token(headers: &[(String, String)], name: &str, token: &str) -> bool {
    list(headers, name).any(|element| element.eq_ignore_ascii_case(token))
}

/// The value of a field that is no list, in any case.
///
/// # Errors
/// It is there twice with different values: who reads the first and who reads the last would not agree.
pub(crate) fn one<'h>(headers: &'h [(String, String)], name: &str) -> Result<Option<&'h str>, String> {
    match first(headers, name) {
        Some(value) if all(headers, name).any(|other| other != value) => {
            Err(format!("the field {name} is there twice with different values"))
        }
        value => Ok(value),
    }
}

/// The parts of a request's target: the authority of the absolute form (RFC 9112, section 3.2.2), and the path with its
/// query. `None` if it is neither of the absolute form nor a path, or names a user.
pub(crate) fn target_parts(target: &str) -> Option<(Option<&str>, Cow<'_, str>)> {
    const SCHEMES: [&str; 4] = ["http", "https", "ws", "wss"];
    if target.starts_with('/') || target == "*" {
        return Some((None, target.into()));
    }
    let (scheme, rest) = target.split_once("://")?;
    let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    if !SCHEMES.iter().any(|known| known.eq_ignore_ascii_case(scheme)) || !is_authority(authority) {
        return None;
    }
    Some((Some(authority), if path.starts_with('/') { path.into() } else { format!("/{path}").into() }))
}

/// Whether it is `host` or `host:port`, as in `Host`.
pub(crate) fn is_authority(text: &str) -> bool {
    let is_host = |host: &str, others: &[u8]| {
        !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || others.contains(&b))
    };
    address::split(text).is_some_and(|(host, port)| {
        let others: &[u8] = if text.starts_with('[') { b":.%-_~" } else { b"-._~%!$&'()*+,;=" };
        is_host(host, others) && port.bytes().all(|b| b.is_ascii_digit())
    })
}

/// The one `Host` of a request (RFC 9112, section 3.2): in HTTP/1.1 it must be there. It may be empty.
///
/// # Errors
/// In words.
pub(crate) fn check_host(head: &RequestHead) -> Result<(), &'static str> {
    match all(&head.headers, "host").collect::<Vec<_>>()[..] {
        [] if !head.is_1_1 => Ok(()),
        [host] if host.is_empty() || is_authority(host) => Ok(()),
        [_] => Err("the Host header is no host with an optional port"),
        _ => Err("an HTTP/1.1 request has exactly one Host header"),
    }
}

/// A request's first line and headers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RequestHead {
    pub(crate) method: String,
    /// Path and query as sent, or the absolute form.
    pub(crate) target: String,
    /// Whether it is of HTTP/1.1; otherwise of HTTP/1.0.
    pub(crate) is_1_1: bool,
    pub(crate) headers: Headers,
}

impl RequestHead {
    /// Reads a head from the beginning of `bytes`; gives it with its length, or `None` if more bytes are needed.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Option<(Self, usize)>, Error> {
        let mut slots = [EMPTY_HEADER; HEADERS];
        let mut request = httparse::Request::new(&mut slots);
        let Status::Complete(length) = request.parse(bytes)? else { return Ok(None) };
        let head = Self {
            method: request.method.unwrap_or_default().to_owned(),
            target: request.path.unwrap_or_default().to_owned(),
            is_1_1: request.version == Some(1),
            headers: owned(request.headers),
        };
        Ok(Some((head, length)))
    }
}

/// A response's status and headers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ResponseHead {
    pub(crate) status: u16,
    pub(crate) headers: Headers,
}

impl ResponseHead {
    /// Reads a whole head.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, Error> {
        let mut slots = [EMPTY_HEADER; HEADERS];
        let mut response = httparse::Response::new(&mut slots);
        response.parse(bytes)?;
        Ok(Self { status: response.code.ok_or(Error::Status)?, headers: owned(response.headers) })
    }
}

/// What came before the empty line, and after it.
pub(crate) enum Received {
    /// The head with its empty line, and what followed it.
    Whole { head: Vec<u8>, tail: Vec<u8> },
    /// There is no empty line within the limit.
    TooLong,
    /// The stream ended first.
    Ended,
    /// The peer speaks something else, which begins so.
    NotHttp(Vec<u8>),
}

/// Reads up to and including the empty line; empty lines before the first are passed over (RFC 9112, section 2.2).
/// `is_http` judges the first bytes (at least one), so that a peer which speaks something else is noticed at once
/// rather than at the deadline. Blocks in `stream`, whose errors end it.
pub(crate) fn receive(stream: &mut impl Read, limit: usize, is_http: fn(&[u8]) -> bool) -> io::Result<Received> {
    receive_behind(Vec::new(), stream, limit, is_http)
}

/// As [`receive`], for an answer: interim ones before it (RFC 9110, section 15.2) are passed over. The limit is that of
/// all of them together.
pub(crate) fn receive_answer(
    stream: &mut impl Read,
    mut limit: usize,
    is_http: fn(&[u8]) -> bool,
) -> io::Result<Received> {
    let mut begun = Vec::new();
    loop {
        match receive_behind(begun, stream, limit, is_http)? {
            Received::Whole { head, tail } if is_interim(&head) => {
                limit = limit.saturating_sub(head.len());
                begun = tail;
            }
            received => return Ok(received),
        }
    }
}

/// Whether an answer begins with the status of an interim one. 101 is none: another protocol follows it.
pub(crate) fn is_interim(answer: &[u8]) -> bool {
    matches!(answer.get(9..12), Some([b'1', rest @ ..]) if rest != b"01")
}

/// As [`receive`], where `head` was read before.
fn receive_behind(
    mut head: Vec<u8>,
    stream: &mut impl Read,
    mut limit: usize,
    is_http: fn(&[u8]) -> bool,
) -> io::Result<Received> {
    let mut chunk = [0; 4096];
    let mut searched = 0;
    loop {
        let empty = 2 * head.chunks(2).take_while(|line| line == b"\r\n").count();
        if empty > 0 {
            head.drain(..empty);
            limit = limit.saturating_sub(empty);
            searched = 0;
        }
        if !head.is_empty() && head != b"\r" && !is_http(&head) {
            return Ok(Received::NotHttp(head));
        }
        if let Some(at) = head[searched..].windows(4).position(|w| w == b"\r\n\r\n") {
            let tail = head.split_off(searched + at + 4);
            return Ok(Received::Whole { head, tail });
        }
        if head.len() >= limit {
            return Ok(Received::TooLong);
        }
        searched = head.len().saturating_sub(3);
        let room = (limit - head.len()).min(chunk.len());
        let n = stream.read(&mut chunk[..room])?;
        if n == 0 {
            return Ok(Received::Ended);
        }
        head.extend_from_slice(&chunk[..n]);
    }
}

/// What every answer of ours says to browsers and caches: it is what its `Content-Type` says, and nobody's to keep.
pub(crate) const SAFE: [(&str, &str); 2] = [("X-Content-Type-Options", "nosniff"), ("Cache-Control", "no-store")];

/// A head to be sent.
pub(crate) struct HeadText(String);

impl HeadText {
    /// Begins with the first line.
    pub(crate) fn new(first_line: fmt::Arguments<'_>) -> Self {
        Self(format!("{first_line}\r\n"))
    }

    /// One header more; line ends in its value become spaces.
    #[must_use]
    pub(crate) fn with(mut self, name: &str, value: impl Display) -> Self {
        let start = self.0.len();
        write!(self.0, "{name}: {value}").expect("writing to a string does not fail");
        if self.0[start..].contains(['\r', '\n']) {
            let line = self.0[start..].replace(['\r', '\n'], " ");
            self.0.replace_range(start.., &line);
        }
        self.0.push_str("\r\n");
        self
    }

    /// The whole head with its empty line.
    pub(crate) fn end(self) -> String {
        self.0 + "\r\n"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_written_head_is_read_again_and_no_value_can_break_it() {
        let text =
            HeadText::new(format_args!("GET /a?b HTTP/1.1")).with("Host", "h").with("X", "a\r\nSet-Cookie: b").end();
        assert_eq!(text, "GET /a?b HTTP/1.1\r\nHost: h\r\nX: a  Set-Cookie: b\r\n\r\n");
        let (head, length) = RequestHead::parse(text.as_bytes()).unwrap().unwrap();
        assert_eq!(
            (head.method.as_str(), head.target.as_str(), head.is_1_1, length),
            ("GET", "/a?b", true, text.len())
        );
        assert_eq!((first(&head.headers, "HOST"), head.headers.len()), (Some("h"), 2));
        for length in 0..text.len() {
            assert_eq!(RequestHead::parse(&text.as_bytes()[..length]).unwrap(), None, "truncated at {length}");
        }
        let response = ResponseHead::parse(b"HTTP/1.1 426 No\r\nUpgrade: a, WebSocket\r\nUpgrade: b\r\n\r\n").unwrap();
        assert!(response.status == 426 && has_token(&response.headers, "upgrade", "websocket"));
        assert!(has_token(&response.headers, "upgrade", "b") && !has_token(&response.headers, "upgrade", "c"));
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(HEADERS + 1));
        assert_eq!(RequestHead::parse(many.as_bytes()), Err(Error::TooManyHeaders));
    }

    #[test]
    fn interim_answers_are_passed_over_within_one_limit() {
        const ANSWERS: &str =
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nLink: x\r\n\r\nHTTP/1.1 101 Yes\r\n\r\n";
        let whole = format!("{ANSWERS}HTTP/1.1 100 no answer");
        for size in 1..whole.len() {
            let mut parts = Parts(whole.as_bytes().chunks(size));
            let received = receive_answer(&mut parts, whole.len(), |_| true).unwrap();
            let Received::Whole { head, mut tail } = received else { panic!("no answer in parts of {size}") };
            assert_eq!(head, b"HTTP/1.1 101 Yes\r\n\r\n", "in parts of {size}");
            parts.read_to_end(&mut tail).unwrap();
            assert_eq!(tail, b"HTTP/1.1 100 no answer", "in parts of {size}");
        }
        let endless = "HTTP/1.1 100 Continue\r\n\r\n".repeat(10);
        let received = receive_answer(&mut Parts(endless.as_bytes().chunks(7)), 100, |_| true).unwrap();
        assert!(matches!(received, Received::TooLong));
    }

    #[test]
    fn targets_and_hosts() {
        for (target, authority, path) in [
            ("/a?b", None, "/a?b"),
            ("/http://h/", None, "/http://h/"),
            ("*", None, "*"),
            ("http://h/a?b", Some("h"), "/a?b"),
            ("WS://[::1]:80/a", Some("[::1]:80"), "/a"),
            ("https://h.example:1?b=/", Some("h.example:1"), "/?b=/"),
        ] {
            let (found, rest) = target_parts(target).unwrap();
            assert_eq!((found, rest.as_ref()), (authority, path), "{target}");
        }
        for target in ["", "a", "h:1", "ftp://h/", "http:///a", "http://u@h/", "http://h:x/", "http://[::1/"] {
            assert_eq!(target_parts(target), None, "{target}");
        }
    }

    /// Gives its parts one by one.
    struct Parts<P>(P);

    impl<'p, P: Iterator<Item = &'p [u8]>> Read for Parts<P> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.0.next().map_or(Ok(0), |mut part| part.read(buffer))
        }
    }

    #[test]
    fn a_head_is_found_however_it_comes_and_nothing_behind_it_is_lost() {
        let receive = |parts: &[&str], limit| {
            let is_http = |start: &[u8]| start[0].is_ascii_uppercase();
            match receive(&mut Parts(parts.iter().map(|part| part.as_bytes())), limit, is_http).unwrap() {
                Received::Whole { head, tail } => {
                    format!("{:?} {:?}", String::from_utf8_lossy(&head), String::from_utf8_lossy(&tail))
                }
                Received::TooLong => "too long".to_owned(),
                Received::Ended => "ended".to_owned(),
                Received::NotHttp(_) => "not http".to_owned(),
            }
        };
        assert_eq!(receive(&["GET /\r", "\n\r", "\ntail"], 100), r#""GET /\r\n\r\n" "tail""#);
        assert_eq!(receive(&["GET /\r\n"], 100), "ended");
        assert_eq!(receive(&["GET /", "12345"], 10), "too long");
        assert_eq!(receive(&["\u{16}"], 100), "not http");
        // Empty lines before it are passed over, within the limit.
        assert_eq!(receive(&["\r", "\n\r\n\r", "\nGET /\r\n\r", "\ntail"], 100), r#""GET /\r\n\r\n" "tail""#);
        assert_eq!(receive(&["\r", "x"], 100), "not http");
        assert_eq!(receive(&["\r\n\r\n", "\r\n\r\n", "\r\n", "\r\n"], 10), "too long");
    }
}
