//! What a request asks of the server, and the borders of its chunks. Pure.

use httparse::Status;

use super::head::{HEADERS, Headers, RequestHead, all, check_host, has_token, list, one, target_parts};
use crate::net::percent;

/// Bytes of one chunk's size line with its extensions, which nobody uses.
const CHUNK_LINE_BYTES: usize = 256;

/// The only expectation that there is.
const CONTINUE: &str = "100-continue";

/// Fields beside `Host` and those of the framing that are no lists, and by which a request is judged.
const SINGLE: [&str; 2] = ["authorization", "origin"];

/// A request that cannot be served: the status and the text of the answer, after which the connection is closed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refused {
    pub status: u16,
    pub why: String,
}

impl Refused {
    pub(super) fn new(status: u16, why: impl Into<String>) -> Self {
        Self { status, why: why.into() }
    }
}

/// How the body's end is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    Length(u64),
    Chunked,
}

/// What a request's head asks of the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Request {
    pub method: String,
    pub path: String,
    pub query: Vec<(String, String)>,
    pub headers: Headers,
    pub framing: Framing,
    pub is_1_1: bool,
    pub keep_alive: bool,
    pub expects_continue: bool,
}

/// Reads a head from the beginning of `bytes`; gives it with its length, or `None` if more bytes are needed.
pub(super) fn head(bytes: &[u8]) -> Result<Option<(Request, usize)>, Refused> {
    let parsed = RequestHead::parse(bytes).map_err(|error| match error {
        httparse::Error::TooManyHeaders => Refused::new(431, format!("more than {HEADERS} headers")),
        httparse::Error::Version => Refused::new(505, "only HTTP/1.0 and HTTP/1.1 are spoken here"),
        error => Refused::new(400, format!("this is not an HTTP request: {error}")),
    })?;
    let Some((mut head, length)) = parsed else { return Ok(None) };
    check_host(&head).map_err(|why| Refused::new(400, why))?;
    let bad = || Refused::new(400, format!("{:?} is not a path with percent-encoded UTF-8", head.target));
    let (authority, target) = target_parts(&head.target).ok_or_else(bad)?;
    let (path, query) = path_and_query(&target).ok_or_else(bad)?;
    if let Some(authority) = authority.map(str::to_owned) {
        // Then that is the host, and what `Host` says does not count.
        head.headers.retain(|(name, _)| !name.eq_ignore_ascii_case("host"));
        head.headers.push(("Host".to_owned(), authority));
    }
    let RequestHead { method, is_1_1, headers, .. } = head;
    for name in SINGLE {
        one(&headers, name).map_err(|why| Refused::new(400, why))?;
    }
    // Of a client of HTTP/1.0 it is passed over (RFC 9110, section 10.1.1).
    let expects_continue = is_1_1 && has_token(&headers, "expect", CONTINUE);
    if let Some(other) = list(&headers, "expect").find(|value| is_1_1 && !value.eq_ignore_ascii_case(CONTINUE)) {
        return Err(Refused::new(417, format!("cannot do what is expected: {other}")));
    }
    let framing = framing(&headers, is_1_1)?;
    let keep_alive = is_1_1 && !has_token(&headers, "connection", "close");
    Ok(Some((Request { method, path, query, framing, is_1_1, keep_alive, expects_continue, headers }, length)))
}

/// A request with two contradicting lengths is refused, never guessed at: a proxy before us may have guessed otherwise.
fn framing(headers: &Headers, is_1_1: bool) -> Result<Framing, Refused> {
    let codings = all(headers, "transfer-encoding").next().map(|_| list(headers, "transfer-encoding"));
    let lengths: Vec<_> = all(headers, "content-length").flat_map(|value| value.split(',')).map(str::trim).collect();
    match (codings.map(Iterator::collect::<Vec<_>>).as_deref(), lengths.as_slice()) {
        (None, []) => Ok(Framing::Length(0)),
        // Repeated it is as good as once (RFC 9110, section 8.6).
        (None, [first, rest @ ..]) => {
            let digits = !first.is_empty() && first.bytes().all(|b| b.is_ascii_digit());
            let length = first.parse().ok().filter(|_| digits && rest.iter().all(|other| other == first));
            length.map(Framing::Length).ok_or_else(|| Refused::new(400, "Content-Length must be one number of bytes"))
        }
        (Some(_), [_, ..]) => Err(Refused::new(400, "a request has Transfer-Encoding or Content-Length, not both")),
        (Some(_), []) if !is_1_1 => Err(Refused::new(400, "HTTP/1.0 has no Transfer-Encoding")),
        (Some([coding]), []) if coding.eq_ignore_ascii_case("chunked") => Ok(Framing::Chunked),
        (Some(_), []) => Err(Refused::new(501, "the only known Transfer-Encoding is chunked")),
    }
}

/// A path and its query's pairs, decoded; `None` if they cannot be.
fn path_and_query(target: &str) -> Option<(String, Vec<(String, String)>)> {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let path = percent::decode_text(path)?;
    // In a query, as in a form, + is a space.
    let decode = |text: &str| percent::decode_text(&text.replace('+', " "));
    let query = query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        Some((decode(name)?, decode(value)?))
    });
    Some((path, query.collect::<Option<_>>()?))
}

/// Reads a chunk's size line from the beginning of `bytes`: the line's length and the chunk's, or `None` for more
/// bytes.
pub(super) fn chunk_size(bytes: &[u8]) -> Result<Option<(usize, u64)>, Refused> {
    match httparse::parse_chunk_size(bytes) {
        Ok(Status::Complete((length, size))) => Ok(Some((length, size))),
        Ok(Status::Partial) if bytes.len() < CHUNK_LINE_BYTES => Ok(None),
        Ok(Status::Partial) => Err(Refused::new(400, "the size line of a chunk is too long")),
        Err(_) => Err(Refused::new(400, "a chunk begins with its size in hex")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Request {
        let (head, length) = head(text.as_bytes()).unwrap().unwrap();
        assert_eq!(length, text.len());
        head
    }

    #[test]
    fn a_head_in_all_its_parts() {
        let text = "POST /a%20b/?x=1&y=%C5%BC+z&flag HTTP/1.1\r\nHost: h\r\nX-A:  v \r\n\
                    Content-Length: 12\r\nContent-Length: 12\r\n\
                    Connection: keep-alive, Close\r\nExpect: 100-Continue\r\n\r\n";
        let head = parsed(text);
        assert_eq!((head.method.as_str(), head.path.as_str()), ("POST", "/a b/"));
        let query: Vec<(&str, &str)> = head.query.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        assert_eq!(query, [("x", "1"), ("y", "ż z"), ("flag", "")]);
        assert_eq!(head.headers[1], ("X-A".to_owned(), "v".to_owned()));
        assert_eq!(head.framing, Framing::Length(12));
        assert!(!head.keep_alive && head.expects_continue);
        for length in 0..text.len() {
            assert_eq!(super::head(&text.as_bytes()[..length]).unwrap(), None, "truncated at {length}");
        }
    }

    #[test]
    fn the_absolute_form_and_the_older_version() {
        let head = parsed("GET http://h:1/p?q=1 HTTP/1.0\r\n\r\n");
        assert_eq!((head.path.as_str(), head.query.len(), head.keep_alive), ("/p", 1, false));
        assert_eq!(parsed("GET http://h HTTP/1.1\r\nHost: h\r\n\r\n").path, "/");
        let head = parsed("GET HTTPS://h:1?q=/a HTTP/1.1\r\nhost: other\r\nA: b\r\n\r\n");
        assert_eq!((head.path.as_str(), head.query[0].1.as_str()), ("/", "/a"));
        // The target's host is the one that counts.
        let hosts: Vec<_> = all(&head.headers, "host").collect();
        assert_eq!(hosts, ["h:1"]);
        assert_eq!(parsed("OPTIONS * HTTP/1.1\r\nHost:\r\n\r\n").path, "*");
        assert!(!parsed("GET / HTTP/1.0\r\nExpect: 100-continue\r\n\r\n").expects_continue);
    }

    #[test]
    fn fields_of_one_name_are_one_list() {
        let with = |fields: &str| parsed(&format!("\r\n\r\nPOST / HTTP/1.1\r\nHOST: h\r\n{fields}\r\n"));
        assert!(!with("Connection: keep-alive\r\nconnection: , CLOSE\r\n").keep_alive);
        for length in ["content-length: 5\r\nContent-Length: 5\r\n", "Content-Length: 5, 5\r\n"] {
            assert_eq!(with(length).framing, Framing::Length(5), "{length}");
        }
        for coding in ["chunked\r\nTransfer-Encoding: ", "\r\ntransfer-encoding: Chunked"] {
            assert_eq!(with(&format!("Transfer-Encoding: {coding}\r\n")).framing, Framing::Chunked, "{coding}");
        }
        let twice = with("Expect: 100-continue\r\nExpect: 100-Continue\r\nOrigin: a\r\nOrigin: a\r\n");
        assert!(twice.expects_continue);
    }

    #[test]
    fn what_is_refused() {
        let many = "A: b\r\n".repeat(HEADERS + 1);
        for (status, text) in [
            (400, "GET / HTTP/1.1\r\n\r\n"),
            (400, "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"),
            (400, "\0\0\0"),
            (400, "GET /%zz HTTP/1.1\r\nHost: h\r\n\r\n"),
            (400, "GET /%ff HTTP/1.1\r\nHost: h\r\n\r\n"),
            (400, "GET / HTTP/1.1\r\nHost: h\r\nContent-Length: +5\r\n\r\n"),
            (400, "GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 5, 6\r\n\r\n"),
            (400, "GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 5,\r\n\r\n"),
            (400, "GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nTransfer-Encoding: ,\r\n\r\n"),
            (400, "GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n"),
            (400, "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n"),
            (400, "GET / HTTP/1.0\r\nHost: a\r\nHost: a\r\n\r\n"),
            (400, "GET / HTTP/1.1\r\nHost: a b\r\n\r\n"),
            (400, "GET / HTTP/1.1\r\nHost: u@h\r\n\r\n"),
            (400, "GET / HTTP/1.1\r\nHost: h:x\r\n\r\n"),
            (400, "GET / HTTP/1.1\r\nHost: h/x\r\n\r\n"),
            (400, "GET path HTTP/1.1\r\nHost: h\r\n\r\n"),
            (400, "GET ftp://h/ HTTP/1.1\r\nHost: h\r\n\r\n"),
            (400, "GET http://u:p@h/ HTTP/1.1\r\nHost: h\r\n\r\n"),
            (400, "CONNECT h:1 HTTP/1.1\r\nHost: h\r\n\r\n"),
            (400, "GET / HTTP/1.1\r\nHost: h\r\nAuthorization: a\r\nauthorization: b\r\n\r\n"),
            (417, "GET / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nExpect: more\r\n\r\n"),
            (501, "GET / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n"),
            (501, "GET / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding:\r\n\r\n"),
            (400, "GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n"),
            (400, "GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 99999999999999999999\r\n\r\n"),
            (400, "GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"),
            (501, "GET / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip, chunked\r\n\r\n"),
            (417, "GET / HTTP/1.1\r\nHost: h\r\nExpect: miracles\r\n\r\n"),
            (505, "GET / HTTP/2.0\r\nHost: h\r\n\r\n"),
            (431, &format!("GET / HTTP/1.1\r\nHost: h\r\n{many}\r\n")),
        ] {
            assert_eq!(head(text.as_bytes()).unwrap_err().status, status, "{text:?}");
        }
    }

    #[test]
    fn chunk_lines() {
        assert_eq!(chunk_size(b"1a;x=y\r\nrest").unwrap(), Some((8, 26)));
        assert_eq!(chunk_size(b"1a").unwrap(), None);
        assert_eq!(chunk_size(b"zz\r\n").unwrap_err().status, 400);
        assert_eq!(chunk_size(&[b'0'; 300]).unwrap_err().status, 400);
    }
}
