//! A blocking HTTP client: one deadline over each request, and every blocked call ends when the shutdown signal
//! cancels.
//!
//! The requests are `ureq`'s. Its connections are made by [`crate::net::dial`] and register a kick with the signal, so
//! a request that waits for a name, a connection, a handshake or an answer returns at once. Connections are not kept:
//! each request has its own. Proxies of the environment are not used.

mod connector;

use std::fs::File;
use std::io::{self, Cursor, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustls_pki_types::CertificateDer;
use ureq::config::{Config, RedirectAuthHeaders};
use ureq::http::request::Builder;
use ureq::http::{Method, Request, Uri};
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::unversioned::transport::{Connector, RustlsConnector};
use ureq::{Agent, AsSendBody, Body as UreqBody, SendBody, Timeout};

use self::connector::{KickedConnector, NoResolver};
use crate::base::rng::Rng;
use crate::base::shutdown::Shutdown;
use crate::net::USER_AGENT;
use crate::net::dial::DialError;
use crate::net::reach::Reach;

/// Bytes of an answer that is kept in memory: 10 MiB, the limit of the Python uploader.
pub const ANSWER_BYTES: u64 = 10 << 20;

/// Redirects that a GET follows; the other methods follow none, because their body would have to be sent again.
pub const REDIRECTS: u32 = 10;

/// Bytes of a refusal's body that go into its error's text.
const EXCERPT_BYTES: usize = 500;

/// Why a request has no answer, or not the one that was wanted. Addresses in the texts have no query, because that is
/// where signed addresses carry their secret.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HttpError {
    /// The address or a header cannot be used; trying again is of no use.
    #[error("bad request to {url}: {why}; give an address as in https://host/path and headers of plain text")]
    Request {
        /// The address.
        url: String,
        /// What is wrong.
        why: String,
    },
    /// The shutdown signal cancelled it.
    #[error("cancelled while talking to {url}")]
    Cancelled {
        /// The address.
        url: String,
    },
    /// It is no address that jobs may reach; trying again is of no use.
    #[error("{source}")]
    OutOfReach {
        /// [`DialError::OutOfReach`].
        source: DialError,
    },
    /// The deadline passed.
    #[error("no answer from {url} before the deadline")]
    TimedOut {
        /// The address.
        url: String,
    },
    /// The connection failed.
    #[error("cannot talk to {url}: {source}")]
    Connection {
        /// The address.
        url: String,
        /// The answer.
        source: Box<ureq::Error>,
    },
    /// The server refused.
    #[error("{url} answered {status}{excerpt}")]
    Status {
        /// The address.
        url: String,
        /// The HTTP status.
        status: u16,
        /// The beginning of its text, after a colon; or nothing.
        excerpt: String,
    },
    /// The answer is longer than it may be.
    #[error("the answer of {url} is larger than the allowed {max} bytes")]
    TooLarge {
        /// The address.
        url: String,
        /// The limit in bytes.
        max: u64,
    },
    /// The answer is not what it should be.
    #[error("the answer of {url} cannot be read: {why}")]
    Answer {
        /// The address.
        url: String,
        /// What is wrong with it.
        why: String,
    },
    /// The local file could not be read or written.
    #[error("cannot use file {}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
}

impl HttpError {
    /// Whether the same request may succeed later: broken connections, 5xx, 408 and 429.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Status { status, .. } => *status >= 500 || matches!(status, 408 | 429),
            // TLS reports a certificate it refuses as invalid data, and that will not change.
            Self::Connection { source, .. } => match &**source {
                ureq::Error::Io(error) => error.kind() != io::ErrorKind::InvalidData,
                ureq::Error::Protocol(_) | ureq::Error::ConnectionFailed | ureq::Error::HostNotFound => true,
                _ => false,
            },
            _ => false,
        }
    }
}

/// A whole answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// The HTTP status.
    pub status: u16,
    /// Headers in order, names in lower case; a name may occur more than once.
    pub headers: Vec<(String, String)>,
    /// The body, at most [`ANSWER_BYTES`].
    pub body: Vec<u8>,
    url: String,
}

impl Response {
    /// This answer if its status is 2xx.
    ///
    /// # Errors
    /// [`HttpError::Status`] with the beginning of the body.
    pub fn ok(self) -> Result<Self, HttpError> {
        match self.status {
            200..300 => Ok(self),
            status => Err(HttpError::Status { status, excerpt: excerpt(&self.body), url: self.url }),
        }
    }

    /// The body as text; what is not UTF-8 is replaced.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body read as JSON.
    ///
    /// # Errors
    /// [`HttpError::Answer`] if it is not.
    pub fn json<T: serde::de::DeserializeOwned>(&self) -> Result<T, HttpError> {
        serde_json::from_slice(&self.body)
            .map_err(|error| HttpError::Answer { url: self.url.clone(), why: format!("bad JSON: {error}") })
    }
}

fn excerpt(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(&body[..body.len().min(EXCERPT_BYTES)]);
    match text.trim() {
        "" => String::new(),
        text => format!(": {text}"),
    }
}

/// What is sent; its length is known, so nothing is sent in chunks (object stores refuse those).
#[derive(Debug, Clone, Copy)]
pub enum Content<'a> {
    /// These bytes.
    Bytes(&'a [u8]),
    /// The first `len` bytes of a file, wherever its cursor stands.
    File {
        /// The file, open for reading.
        file: &'a File,
        /// Bytes to send; the request fails if the file has fewer by then.
        len: u64,
    },
}

impl<'a> Content<'a> {
    fn len(&self) -> u64 {
        match self {
            Content::Bytes(bytes) => bytes.len() as u64,
            Content::File { len, .. } => *len,
        }
    }

    fn reader(self) -> io::Result<Box<dyn Read + 'a>> {
        Ok(match self {
            Content::Bytes(bytes) => Box::new(bytes),
            Content::File { mut file, len } => {
                file.rewind()?;
                Box::new(Exactly { file, left: len })
            }
        })
    }
}

/// A file as long as it was announced to be.
struct Exactly<'a> {
    file: &'a File,
    left: u64,
}

impl Read for Exactly<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.file.take(self.left).read(buffer)?;
        if n == 0 && self.left > 0 && !buffer.is_empty() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the file became shorter while it was sent"));
        }
        self.left -= n as u64;
        Ok(n)
    }
}

/// The file of a form.
#[derive(Debug, Clone, Copy)]
pub struct FilePart<'a> {
    /// The name of the form's field.
    pub field: &'a str,
    /// The name of the file.
    pub file_name: &'a str,
    /// Its media type.
    pub content_type: &'a str,
    /// Its content.
    pub content: Content<'a>,
}

/// Headers to send along.
pub type Headers<'a> = &'a [(String, String)];

/// The client; clones share their configuration.
#[derive(Debug, Clone)]
pub struct HttpClient {
    agent: Agent,
    shutdown: Shutdown,
}

impl HttpClient {
    /// A client that trusts the usual authorities (webpki roots) and gives up when `shutdown` cancels.
    pub fn new(shutdown: Shutdown) -> Self {
        Self::within(Reach::Everywhere, shutdown)
    }

    /// The same for addresses that a job names: it dials those within `reach`, whoever redirects it.
    pub fn within(reach: Reach, shutdown: Shutdown) -> Self {
        Self::with(reach, shutdown, TlsConfig::default())
    }

    /// A client that trusts these authorities only.
    pub fn trusting(shutdown: Shutdown, roots: &[CertificateDer<'static>]) -> Self {
        let roots: Vec<_> = roots.iter().map(|root| Certificate::from_der(root).to_owned()).collect();
        Self::with(
            Reach::Everywhere,
            shutdown,
            TlsConfig::builder().root_certs(RootCerts::new_with_certs(&roots)).build(),
        )
    }

    fn with(reach: Reach, shutdown: Shutdown, tls: TlsConfig) -> Self {
        let config = Config::builder()
            .tls_config(tls)
            .proxy(None)
            .http_status_as_error(false)
            .redirect_auth_headers(RedirectAuthHeaders::SameHost)
            .max_idle_connections(0)
            .user_agent(USER_AGENT)
            .build();
        let connector = KickedConnector { reach, shutdown: shutdown.clone() }.chain(RustlsConnector::default());
        Self { agent: Agent::with_parts(config, connector, NoResolver), shutdown }
    }

    /// GETs `url` and gives the answer, whatever its status. Blocks until the answer, `deadline` or cancel.
    ///
    /// # Errors
    /// See [`HttpError`]; a refusal is one only after [`Response::ok`].
    pub fn get(&self, url: &str, headers: Headers, deadline: Instant) -> Result<Response, HttpError> {
        let answer = self.send(Method::GET, url, headers, None, deadline)?;
        self.read_answer(url, answer)
    }

    /// GETs `url` into a file, which is created or replaced, and gives its length. Blocks as [`HttpClient::get`].
    ///
    /// # Errors
    /// See [`HttpError`]; also for a status other than 2xx. Part of the content may then be in the file.
    pub fn get_to_file(
        &self,
        url: &str,
        headers: Headers,
        path: &Path,
        max_bytes: u64,
        deadline: Instant,
    ) -> Result<u64, HttpError> {
        let file_error = |source| HttpError::File { path: path.to_owned(), source };
        let mut answer = self.send(Method::GET, url, headers, None, deadline)?;
        if !answer.status().is_success() {
            return self.read_answer(url, answer)?.ok().map(|_| 0);
        }
        let mut file = File::create(path).map_err(file_error)?;
        self.read_body(url, &mut answer, max_bytes, |bytes| file.write_all(bytes).map_err(file_error))
    }

    /// PUTs `content` to `url` and gives the answer, whatever its status. Blocks as [`HttpClient::get`].
    ///
    /// # Errors
    /// See [`HttpError`].
    pub fn put(&self, url: &str, headers: Headers, content: Content, deadline: Instant) -> Result<Response, HttpError> {
        let mut reader = content.reader().map_err(|error| self.error(url, error.into()))?;
        let answer = self.send(Method::PUT, url, headers, Some((&mut reader, content.len())), deadline)?;
        self.read_answer(url, answer)
    }

    /// POSTs `content` to `url` and gives the answer, whatever its status. Blocks as [`HttpClient::get`].
    ///
    /// # Errors
    /// See [`HttpError`].
    pub fn post(
        &self,
        url: &str,
        headers: Headers,
        content: Content,
        deadline: Instant,
    ) -> Result<Response, HttpError> {
        let mut reader = content.reader().map_err(|error| self.error(url, error.into()))?;
        let answer = self.send(Method::POST, url, headers, Some((&mut reader, content.len())), deadline)?;
        self.read_answer(url, answer)
    }

    /// POSTs a value as JSON and gives the answer, whatever its status. Blocks as [`HttpClient::get`].
    ///
    /// # Errors
    /// See [`HttpError`].
    pub fn post_json(
        &self,
        url: &str,
        headers: Headers,
        value: &impl serde::Serialize,
        deadline: Instant,
    ) -> Result<Response, HttpError> {
        let body = serde_json::to_vec(value)
            .map_err(|error| HttpError::Request { url: shown(url), why: format!("the body is not JSON: {error}") })?;
        let headers = [headers, &[("content-type".to_owned(), "application/json".to_owned())]].concat();
        self.post(url, &headers, Content::Bytes(&body), deadline)
    }

    /// POSTs a form (`multipart/form-data`): the fields in order, then the file. Blocks as [`HttpClient::get`].
    ///
    /// # Errors
    /// See [`HttpError`].
    pub fn post_multipart<'f>(
        &self,
        url: &str,
        headers: Headers,
        fields: impl IntoIterator<Item = (&'f String, &'f String)>,
        file: FilePart,
        deadline: Instant,
    ) -> Result<Response, HttpError> {
        let mut rng = Rng::from_entropy();
        let boundary = format!("phalanx-{:016x}{:016x}", rng.next_u64(), rng.next_u64());
        let (head, tail) = form_around(&boundary, fields, &file);
        let len = (head.len() + tail.len()) as u64 + file.content.len();
        let content = file.content.reader().map_err(|error| self.error(url, error.into()))?;
        let mut reader = Cursor::new(head).chain(content).chain(Cursor::new(tail));
        let content_type = format!("multipart/form-data; boundary={boundary}");
        let headers = [headers, &[("content-type".to_owned(), content_type)]].concat();
        let answer = self.send(Method::POST, url, &headers, Some((&mut reader, len)), deadline)?;
        self.read_answer(url, answer)
    }

    fn send(
        &self,
        method: Method,
        url: &str,
        headers: Headers,
        body: Option<(&mut dyn Read, u64)>,
        deadline: Instant,
    ) -> Result<ureq::http::Response<UreqBody>, HttpError> {
        let bad = |why: String| HttpError::Request { url: shown(url), why };
        let uri: Uri = url.parse().map_err(|error| bad(format!("{error}")))?;
        if !matches!(uri.scheme_str(), Some("http" | "https")) || uri.host().is_none_or(str::is_empty) {
            return Err(bad("it has no http or https scheme, or no host".into()));
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(self.error(url, ureq::Error::Timeout(Timeout::Global)));
        }
        let redirects = if method == Method::GET { REDIRECTS } else { 0 };
        let mut request = Request::builder().method(method).uri(uri);
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let run = Run { agent: &self.agent, left, redirects };
        let answer = match body {
            Some((reader, len)) => run.run(request.header("content-length", len), SendBody::from_reader(reader)),
            None => run.run(request, ()),
        };
        answer.map_err(|error| self.error(url, error))
    }

    fn read_answer(&self, url: &str, mut answer: ureq::http::Response<UreqBody>) -> Result<Response, HttpError> {
        let mut body = Vec::new();
        self.read_body(url, &mut answer, ANSWER_BYTES, |bytes| {
            body.extend_from_slice(bytes);
            Ok(())
        })?;
        let text = |value: &ureq::http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        let headers = answer.headers().iter().map(|(name, value)| (name.as_str().to_owned(), text(value))).collect();
        Ok(Response { status: answer.status().as_u16(), headers, body, url: shown(url) })
    }

    fn read_body(
        &self,
        url: &str,
        answer: &mut ureq::http::Response<UreqBody>,
        max: u64,
        mut to: impl FnMut(&[u8]) -> Result<(), HttpError>,
    ) -> Result<u64, HttpError> {
        let too_large = || HttpError::TooLarge { url: shown(url), max };
        if answer.body().content_length().is_some_and(|len| len > max) {
            return Err(too_large());
        }
        // The limit is our own, so that the error names it.
        let mut reader = answer.body_mut().with_config().limit(u64::MAX).reader();
        let mut buffer = vec![0; 64 << 10];
        let mut total = 0;
        loop {
            let n = reader.read(&mut buffer).map_err(|error| self.error(url, ureq::Error::from(error)))?;
            if n == 0 {
                break;
            }
            total += n as u64;
            if total > max {
                return Err(too_large());
            }
            to(&buffer[..n])?;
        }
        // A kick looks like the end of a body whose length was not announced.
        if self.shutdown.is_cancelled() { Err(HttpError::Cancelled { url: shown(url) }) } else { Ok(total) }
    }

    fn error(&self, url: &str, error: ureq::Error) -> HttpError {
        let url = shown(url);
        if self.shutdown.is_cancelled() {
            return HttpError::Cancelled { url };
        }
        match error {
            ureq::Error::Timeout(_) => HttpError::TimedOut { url },
            ureq::Error::BadUri(why) => HttpError::Request { url, why },
            ureq::Error::Http(why) => HttpError::Request { url, why: why.to_string() },
            ureq::Error::Io(error) if is_out_of_reach(&error) => match error.downcast() {
                Ok(source) => HttpError::OutOfReach { source },
                Err(error) => HttpError::Connection { url, source: Box::new(error.into()) },
            },
            source => HttpError::Connection { url, source: Box::new(source) },
        }
    }
}

fn is_out_of_reach(error: &io::Error) -> bool {
    let dial = error.get_ref().and_then(|error| error.downcast_ref());
    matches!(dial, Some(DialError::OutOfReach { .. }))
}

/// How one request is made; apart because requests with and without a body are of different types.
struct Run<'a> {
    agent: &'a Agent,
    left: Duration,
    redirects: u32,
}

impl Run<'_> {
    fn run(&self, request: Builder, body: impl AsSendBody) -> Result<ureq::http::Response<UreqBody>, ureq::Error> {
        let request = self.agent.configure_request(request.body(body)?);
        self.agent.run(request.timeout_global(Some(self.left)).max_redirects(self.redirects).build())
    }
}

/// An address without query and fragment.
fn shown(url: &str) -> String {
    let end = url.find(['?', '#']).unwrap_or(url.len());
    url[..end].to_owned()
}

/// What stands before and after the file's content in a form (RFC 7578).
fn form_around<'f>(
    boundary: &str,
    fields: impl IntoIterator<Item = (&'f String, &'f String)>,
    file: &FilePart,
) -> (Vec<u8>, Vec<u8>) {
    let mut head = String::new();
    for (name, value) in fields {
        let name = quoted(name);
        head += &format!("--{boundary}\r\ncontent-disposition: form-data; name={name}\r\n\r\n{value}\r\n");
    }
    let (field, name, kind) = (quoted(file.field), quoted(file.file_name), file.content_type);
    head += &format!("--{boundary}\r\ncontent-disposition: form-data; name={field}; filename={name}\r\n");
    head += &format!("content-type: {kind}\r\n\r\n");
    (head.into_bytes(), format!("\r\n--{boundary}--\r\n").into_bytes())
}

/// A name in a form, with what would end it escaped as browsers do.
fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "%22").replace('\r', "%0D").replace('\n', "%0A"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::limits::DIAL_TIME;

    #[test]
    fn secrets_of_an_address_are_not_shown() {
        assert_eq!(shown("https://h/p?X-Amz-Signature=1#f"), "https://h/p");
        assert_eq!(shown("https://h/p"), "https://h/p");
    }

    #[test]
    fn bad_addresses_are_refused_before_anything_is_dialled() {
        let client = HttpClient::new(Shutdown::new());
        for bad in ["", "host/path", "ftp://host/x", "file:///etc/passwd", "http://", "http://a b/"] {
            let error = client.get(bad, &[], Instant::now() + DIAL_TIME).unwrap_err();
            assert!(matches!(error, HttpError::Request { .. }) && !error.is_transient(), "{bad}: {error}");
        }
        let headers = [("bad name".to_owned(), "x".to_owned())];
        let error = client.get("http://127.0.0.1:1/", &headers, Instant::now() + DIAL_TIME).unwrap_err();
        assert!(matches!(error, HttpError::Request { .. }), "{error}");
    }

    #[test]
    fn names_in_a_form_cannot_end_their_line() {
        assert_eq!(quoted("a\"b\r\nc: d"), "\"a%22b%0D%0Ac: d\"");
    }
}
