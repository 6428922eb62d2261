//! The head of an HTTP/1 message, for every end that speaks HTTP: found in a stream, taken apart, and written.

use std::fmt::{self, Display, Write as _};
use std::io::{self, Read};

use httparse::{EMPTY_HEADER, Error, Status};

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

/// Whether the comma-separated lists of that name have the token.
pub(crate) fn has_token(headers: &[(String, String)], name: &str, token: &str) -> bool {
    all(headers, name).flat_map(|value| value.split(',')).any(|value| value.trim().eq_ignore_ascii_case(token))
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
    /// The peer speaks something else.
    NotHttp,
}

/// Reads up to and including the empty line. `is_http` judges the first bytes (at least one), so that a peer which
/// speaks something else is noticed at once rather than at the deadline. Blocks in `stream`, whose errors end it.
pub(crate) fn receive(stream: &mut impl Read, limit: usize, is_http: fn(&[u8]) -> bool) -> io::Result<Received> {
    let mut head = Vec::new();
    let mut chunk = [0; 4096];
    while head.len() < limit {
        let room = (limit - head.len()).min(chunk.len());
        let n = stream.read(&mut chunk[..room])?;
        if n == 0 {
            return Ok(Received::Ended);
        }
        let searched = head.len().saturating_sub(3);
        head.extend_from_slice(&chunk[..n]);
        if !is_http(&head) {
            return Ok(Received::NotHttp);
        }
        if let Some(at) = head[searched..].windows(4).position(|w| w == b"\r\n\r\n") {
            let tail = head.split_off(searched + at + 4);
            return Ok(Received::Whole { head, tail });
        }
    }
    Ok(Received::TooLong)
}

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
    fn a_head_is_found_however_it_comes_and_nothing_behind_it_is_lost() {
        struct Parts<'p>(std::slice::Iter<'p, &'p str>);
        impl Read for Parts<'_> {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                self.0.next().map_or(Ok(0), |part| part.as_bytes().read(buffer))
            }
        }
        let receive = |parts: &[&str], limit| {
            let is_http = |start: &[u8]| start[0].is_ascii_uppercase();
            match receive(&mut Parts(parts.iter()), limit, is_http).unwrap() {
                Received::Whole { head, tail } => {
                    format!("{:?} {:?}", String::from_utf8_lossy(&head), String::from_utf8_lossy(&tail))
                }
                Received::TooLong => "too long".to_owned(),
                Received::Ended => "ended".to_owned(),
                Received::NotHttp => "not http".to_owned(),
            }
        };
        assert_eq!(receive(&["GET /\r", "\n\r", "\ntail"], 100), r#""GET /\r\n\r\n" "tail""#);
        assert_eq!(receive(&["GET /\r\n"], 100), "ended");
        assert_eq!(receive(&["GET /", "12345"], 10), "too long");
        assert_eq!(receive(&["\u{16}"], 100), "not http");
    }
}
