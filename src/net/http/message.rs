//! Requests and responses as values.

use std::fmt;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use serde_json::Value;

use super::head::{HeadText, SAFE, first};
use crate::base::shutdown::Shutdown;
use crate::ops::redact::JsonText;

/// Up to so many bytes, the body of a shared response is copied, so that it leaves with its head and has a length.
const COPIED_BYTES: usize = 32 << 10;

/// Answers a request, on the connection's thread. If it waits for anything, it must listen to
/// [`HttpRequest::shutdown`].
pub type Handler = Arc<dyn Fn(&HttpRequest) -> HttpResponse + Send + Sync>;

/// What a request still has of its connection.
pub(super) trait Behind {
    fn body(&self, limit: usize) -> Result<Vec<u8>, BodyError>;
    fn known(&self);
    fn known_as(&self, user: &str) -> bool;
}

/// The body of a request cannot be had: what the client is to be answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct BodyError {
    /// 400 to 599.
    pub status: u16,
    /// In words.
    pub why: String,
}

impl From<BodyError> for HttpResponse {
    fn from(BodyError { status, why }: BodyError) -> Self {
        let response = Self::text(status, why + "\n");
        if status == 503 { response.with_header("Retry-After", "1") } else { response }
    }
}

/// A request, whose body is read when the handler asks for it: so nobody sends much to a route that takes little, nor
/// before it is known who he is.
pub struct HttpRequest {
    /// As sent: `GET`, `POST`, …
    pub method: String,
    /// The path, percent-decoded, as `/api/v1/jobs/`.
    pub path: String,
    /// The query's pairs, percent-decoded, in order.
    pub query: Vec<(String, String)>,
    /// All headers in their order; bytes that are not UTF-8 are replaced.
    pub headers: Vec<(String, String)>,
    /// The client, or the proxy before it.
    pub peer: SocketAddr,
    /// Rises when the server stops: a handler that waits must come to its end at drain, and at once at cancel.
    pub shutdown: Shutdown,
    pub(super) behind: Rc<dyn Behind>,
}

/// Without query, headers and body, where tokens and passwords are.
impl fmt::Debug for HttpRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { method, path, peer, .. } = self;
        write!(f, "HttpRequest({method} {path:?} from {peer})")
    }
}

impl HttpRequest {
    /// The body, without any transfer coding, once; afterwards, and without one, it is empty. `limit` is what this
    /// route takes, in bytes. Blocks until the body is there, at most for the server's limits of time.
    ///
    /// # Errors
    /// [`BodyError`]: it is too large, does not come, or too many others are being read.
    pub fn body(&self, limit: usize) -> Result<Vec<u8>, BodyError> {
        self.behind.body(limit)
    }

    /// The handler knows who this is, so no stranger takes the connection's place until the request is answered, and
    /// its body may take its time.
    pub fn known(&self) {
        self.behind.known();
    }

    /// As [`HttpRequest::known`], of a user, who may come from many addresses. Whether it has a place: one user may
    /// have half of the requests in work.
    pub fn known_as(&self, user: &str) -> bool {
        self.behind.known_as(user)
    }

    /// The first header of that name, in any case.
    pub fn header(&self, name: &str) -> Option<&str> {
        first(&self.headers, name)
    }

    /// The first query parameter of that name.
    pub fn query(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }
}

/// Writes a body while it is sent. An error ends the connection, so that the client does not take what came for all.
pub type Stream = Box<dyn FnOnce(&mut dyn Write) -> io::Result<()> + Send>;

/// What a handler answers. Length, date and connection headers are the server's, and so are `X-Content-Type-Options:
/// nosniff` and `Cache-Control: no-store`.
pub struct HttpResponse {
    /// 200 to 599.
    pub status: u16,
    /// Extra headers.
    pub headers: Vec<(&'static str, String)>,
    /// The body; left out in the answer to `HEAD`.
    pub body: Vec<u8>,
    /// What writes the body in place of `body`, on the connection's thread; `HEAD` does not call it. If it waits for
    /// anything, it must listen to [`HttpRequest::shutdown`].
    pub stream: Option<Stream>,
}

/// Without the body.
impl fmt::Debug for HttpResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpResponse").field("status", &self.status).finish_non_exhaustive()
    }
}

impl HttpResponse {
    /// A response with a body of that media type.
    pub fn new(status: u16, content_type: &str, body: impl Into<Vec<u8>>) -> Self {
        let headers = vec![("Content-Type", content_type.to_owned())];
        Self { status, headers, body: body.into(), stream: None }
    }

    /// A response whose body is written while it is sent: one that is never in memory as a whole.
    pub fn streamed(
        status: u16,
        content_type: &str,
        stream: impl FnOnce(&mut dyn Write) -> io::Result<()> + Send + 'static,
    ) -> Self {
        Self { stream: Some(Box::new(stream)), ..Self::new(status, content_type, "") }
    }

    /// A response whose body others have, too: a large one is sent from there.
    pub fn shared(status: u16, content_type: &str, body: Arc<Vec<u8>>) -> Self {
        if body.len() < COPIED_BYTES {
            return Self::new(status, content_type, body.to_vec());
        }
        Self::streamed(status, content_type, move |out| out.write_all(&body))
    }

    /// A plain text.
    pub fn text(status: u16, body: impl Into<String>) -> Self {
        Self::new(status, "text/plain; charset=utf-8", body.into())
    }

    /// A JSON value on one line; what a terminal obeys is escaped in it.
    pub fn json(status: u16, body: &Value) -> Self {
        Self::new(status, "application/json", JsonText(&body.to_string()).to_string())
    }

    /// The same response with one more header. `value` must not contain line ends.
    #[must_use]
    pub fn with_header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// The bytes of the head, with the body's coding or length, if it has one.
    pub(super) fn head(&self, date: &str, keep_alive: bool, coding: Option<&str>, length: Option<usize>) -> Vec<u8> {
        let mut head =
            HeadText::new(format_args!("HTTP/1.1 {} {}", self.status, reason(self.status))).with("Date", date);
        for (name, value) in &self.headers {
            head = head.with(name, value);
        }
        for (name, value) in SAFE {
            head = head.with(name, value);
        }
        if let Some(coding) = coding {
            head = head.with("Transfer-Encoding", coding);
        }
        if let Some(length) = length {
            head = head.with("Content-Length", length);
        }
        if !keep_alive {
            head = head.with("Connection", "close");
        }
        head.end().into_bytes()
    }

    /// The bytes to send, of a body that is not streamed.
    pub(super) fn encode(&self, date: &str, keep_alive: bool, head_only: bool) -> Vec<u8> {
        let mut bytes = self.head(date, keep_alive, None, Some(self.body.len()));
        if !head_only {
            bytes.extend_from_slice(&self.body);
        }
        bytes
    }
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        201 => "Created",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        409 => "Conflict",
        413 => "Content Too Large",
        415 => "Unsupported Media Type",
        417 => "Expectation Failed",
        421 => "Misdirected Request",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        503 => "Service Unavailable",
        505 => "HTTP Version Not Supported",
        _ => "Status",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_cannot_break_the_message() {
        let response = HttpResponse::text(404, "gone").with_header("X-Why", "a\r\nSet-Cookie: b");
        let text = String::from_utf8(response.encode("D", false, false)).unwrap();
        assert_eq!(
            text,
            "HTTP/1.1 404 Not Found\r\nDate: D\r\nContent-Type: text/plain; charset=utf-8\r\n\
             X-Why: a  Set-Cookie: b\r\nX-Content-Type-Options: nosniff\r\nCache-Control: no-store\r\n\
             Content-Length: 4\r\nConnection: close\r\n\r\ngone"
        );
    }

    #[test]
    fn head_has_the_length_and_no_body() {
        let text = String::from_utf8(HttpResponse::text(200, "1234").encode("D", true, true)).unwrap();
        assert!(text.ends_with("Content-Length: 4\r\n\r\n"), "{text}");
    }
}
