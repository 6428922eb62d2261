//! A blocking HTTP client: one deadline over each request, and every blocked call ends when the shutdown signal
//! cancels.
//!
//! The requests are `ureq`'s. Its connections are made by [`crate::net::dial`] and register a kick with the signal, so
//! a request that waits for a name, a connection, a handshake or an answer returns at once. Connections are not kept:
//! each request has its own. A proxy is used only where [`HttpSettings`] name one.
//!
//! * `address`: addresses as people write them, and where redirects lead. Pure.
//! * `fields`: the header fields of a request. Pure.
//! * `content`: what is sent. `coding`: how what is received was coded. `resume`: where a broken download goes on.
//! * `connector`, `proxied`, `tls`, `answers`: connections, and what servers send on them. `response`: what comes.
//! * `error`: why there is no answer, and what follows.

mod address;
mod answers;
mod coding;
mod connector;
mod content;
mod error;
mod fields;
mod proxied;
mod response;
mod resume;
mod tls;

use std::fs::File;
use std::io::{self, Cursor, Read, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use ureq::config::{Config, RedirectAuthHeaders};
use ureq::http::request::Builder;
use ureq::http::{HeaderName, HeaderValue, Method, Request};
use ureq::unversioned::transport::Connector;
use ureq::{Agent, AsSendBody, Body as UreqBody, SendBody, Timeout};
use url::Url;

use self::address::{credentials, shown};
use self::answers::AnswerConnector;
use self::coding::{Coding, codings, undone};
use self::connector::{KickedConnector, NoResolver};
pub use self::content::{Content, FilePart};
use self::content::{boundary_of, form_around};
pub use self::error::HttpError;
pub use self::response::{ANSWER_BYTES, Response};
use self::response::{Below, Received, text_of};
use self::resume::{Representation, Rest};
use self::tls::TlsConnector;
use super::head::{all, first, one};
use crate::base::rng::Rng;
use crate::base::shutdown::Shutdown;
use crate::net::USER_AGENT;
use crate::net::proxy::Proxies;
use crate::net::reach::Reach;
use crate::net::tls::ClientTls;

/// Redirects that a GET follows where [`Redirects`] says so; the other methods follow none, because their body would
/// have to be sent again.
pub const REDIRECTS: u32 = 10;

/// Bytes of a refusal's text that are read.
const REFUSAL_BYTES: u64 = 64 << 10;

/// Bytes of a body between two looks at the clock.
const CHUNK: usize = 64 << 10;

/// Headers to send along. They go before the client's own of the same name. Those of the connection (`Connection`,
/// `Transfer-Encoding`, …), a `Host` other than the address's and a `Content-Length` other than the body's are refused.
pub type Headers<'a> = &'a [(String, String)];

/// A file that is received over as many tries as it takes: a try goes on where the one before broke off, if the server
/// can say that it is still the same file.
#[derive(Debug)]
pub struct Download {
    path: PathBuf,
    max_bytes: u64,
    begun: Option<Begun>,
}

#[derive(Debug)]
struct Begun {
    file: File,
    have: u64,
    of: Representation,
}

impl Download {
    /// A download into `path`, which is created or replaced, of at most `max_bytes` bytes.
    pub fn new(path: impl Into<PathBuf>, max_bytes: u64) -> Self {
        Self { path: path.into(), max_bytes, begun: None }
    }

    /// Bytes from which the next try can go on.
    pub fn received(&self) -> u64 {
        self.begun.as_ref().map_or(0, |begun| begun.have)
    }
}

/// An answer whose body is still on its way.
struct Answer {
    /// The address as errors show it.
    url: String,
    status: u16,
    headers: Vec<(String, String)>,
    body: UreqBody,
}

/// How the content of an answer was coded.
///
/// # Errors
/// [`HttpError::Answer`] with the coding that cannot be undone. Between two ends only what was asked for may be used,
/// and nothing was.
fn codings_of(answer: &Answer) -> Result<Vec<Coding>, HttpError> {
    let bad = |why| HttpError::Answer { url: answer.url.clone(), why };
    for coding in all(&answer.headers, "transfer-encoding").flat_map(|value| value.split(',')) {
        let name = coding.split(';').next().unwrap_or_default().trim();
        if !["", "chunked", "identity"].iter().any(|known| name.eq_ignore_ascii_case(known)) {
            return Err(bad(format!("its Transfer-Encoding is {name:?}, which was not asked for")));
        }
    }
    codings(all(&answer.headers, "content-encoding")).map_err(bad)
}

/// What is sent once.
struct Sent<'a> {
    method: Method,
    to: &'a Url,
    given: Headers<'a>,
    ours: &'a [(&'static str, String)],
    deadline: Instant,
}

/// The client; clones share their configuration.
#[derive(Debug, Clone)]
pub struct HttpClient {
    agent: Agent,
    redirects: Redirects,
    shutdown: Shutdown,
}

/// What a GET does that a server sends on to another address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Redirects {
    /// It goes there, [`REDIRECTS`] times at most: for files of jobs, whose servers often do that.
    #[default]
    Follow,
    /// The redirect is the answer, of which [`Response::ok`] makes an error that names the other address: for servers
    /// that somebody has chosen, and to which we say who we are.
    Refuse,
}

/// Which servers a client goes to, by which way, and whom it trusts there.
#[derive(Debug, Clone, Default)]
pub struct HttpSettings {
    /// Which addresses are dialled. Through a proxy, which looks names up itself, it holds for addresses that are
    /// written as such, and for the names of loopback.
    pub reach: Reach,
    /// Whose certificates are good.
    pub tls: ClientTls,
    /// Which proxies are used.
    pub proxies: Proxies,
    /// Where redirects lead.
    pub redirects: Redirects,
}

/// With the authorities that come with the program, and without a proxy.
impl From<Reach> for HttpSettings {
    fn from(reach: Reach) -> Self {
        Self { reach, ..Self::default() }
    }
}

impl HttpSettings {
    /// For servers that somebody has chosen, wherever they are; a redirect is refused.
    pub fn of_chosen(tls: ClientTls, proxies: Proxies) -> Self {
        Self { reach: Reach::Everywhere, tls, proxies, redirects: Redirects::Refuse }
    }
}

impl HttpClient {
    /// A client that trusts the usual authorities (webpki roots) and gives up when `shutdown` cancels.
    pub fn new(shutdown: Shutdown) -> Self {
        Self::within(Reach::Everywhere, shutdown)
    }

    /// The same for addresses that a job names: it dials those within the reach of `settings`, whoever redirects it.
    pub fn within(settings: impl Into<HttpSettings>, shutdown: Shutdown) -> Self {
        let HttpSettings { reach, tls, proxies, redirects } = settings.into();
        let config = Config::builder()
            .proxy(None)
            .http_status_as_error(false)
            // We follow them ourselves.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .redirect_auth_headers(RedirectAuthHeaders::Never)
            .max_idle_connections(0)
            .user_agent(USER_AGENT)
            .build();
        let connector = KickedConnector { reach, proxies, shutdown: shutdown.clone() }
            .chain(TlsConnector(tls))
            .chain(AnswerConnector);
        Self { agent: Agent::with_parts(config, connector, NoResolver), redirects, shutdown }
    }

    /// A client for servers that somebody has chosen, as in [`HttpSettings::of_chosen`], without a proxy.
    pub fn trusting(shutdown: Shutdown, tls: ClientTls) -> Self {
        Self::within(HttpSettings::of_chosen(tls, Proxies::none()), shutdown)
    }

    /// GETs `url` and gives the answer, whatever its status. Blocks until the answer, `deadline` or cancel.
    ///
    /// # Errors
    /// See [`HttpError`]; a refusal is one only after [`Response::ok`].
    pub fn get(&self, url: &str, headers: Headers, deadline: Instant) -> Result<Response, HttpError> {
        self.get_within(url, headers, ANSWER_BYTES, deadline)
    }

    /// As [`HttpClient::get`], for an answer of at most `max_bytes`: no more is read.
    ///
    /// # Errors
    /// See [`HttpError`].
    pub fn get_within(
        &self,
        url: &str,
        headers: Headers,
        max_bytes: u64,
        deadline: Instant,
    ) -> Result<Response, HttpError> {
        let answer = self.follow(url, headers, &[], deadline)?;
        self.read_answer(answer, max_bytes, deadline)
    }

    /// GETs `url` into a file and gives the file's length; one try. Blocks as [`HttpClient::get`].
    ///
    /// A content coding is undone; the limit holds for what comes out.
    ///
    /// # Errors
    /// See [`HttpError`]; also for a status other than 2xx. Part of the content may then be in the file.
    pub fn download(
        &self,
        url: &str,
        headers: Headers,
        download: &mut Download,
        deadline: Instant,
    ) -> Result<u64, HttpError> {
        let ask = download.begun.as_ref().map(|begun| begun.of.ask(begun.have));
        let mut answer = self.follow(url, headers, ask.as_ref().map_or(&[], |ask| ask), deadline)?;
        if let Some(begun) = &download.begun {
            match begun.of.judge(answer.status, &answer.headers, begun.have) {
                Rest::Follows | Rest::No => {}
                Rest::Whole => download.begun = None,
                Rest::Useless => {
                    download.begun = None;
                    answer = self.follow(url, headers, &[], deadline)?;
                }
            }
        }
        if !(200..300).contains(&answer.status) {
            return self.read_answer(answer, ANSWER_BYTES, deadline)?.ok().map(|_| 0);
        }
        // Accepted, and not there yet.
        if answer.status == 202 && first(&answer.headers, "retry-after").is_some() {
            return Err(self.read_extra(answer, REFUSAL_BYTES, deadline)?.refused());
        }
        self.receive(answer, download, deadline)
    }

    /// The body of a successful answer into the file, at its end if the answer is the rest of what is there.
    fn receive(&self, mut answer: Answer, download: &mut Download, deadline: Instant) -> Result<u64, HttpError> {
        let Download { path, max_bytes, begun } = download;
        let file_error = |source| HttpError::File { path: path.clone(), source };
        let bad = |why| HttpError::Answer { url: answer.url.clone(), why };
        let coded = codings_of(&answer)?;
        let (mut file, mut have, of, coded) = match begun.take() {
            Some(Begun { file, have, of }) => (file, have, Some(of), Vec::new()),
            None if answer.status == 206 => return Err(bad("it is a part, and all was asked for".to_owned())),
            None => {
                let length = answer.body.content_length();
                let of = coded.is_empty().then(|| Representation::of(&answer.headers, length)).flatten();
                (File::create(&*path).map_err(file_error)?, 0, of, coded)
            }
        };
        let mut read = self.read_body(&mut answer, &coded, max_bytes.saturating_sub(have), deadline, |bytes| {
            file.write_all(bytes).map_err(file_error)?;
            have += bytes.len() as u64;
            Ok(())
        });
        if let Err(HttpError::TooLarge { max, .. }) = &mut read {
            *max = *max_bytes;
        }
        match (read, of) {
            // The range that came may be shorter than the one that was asked for.
            (Ok(()), Some(of)) if of.lacks(have) => {
                *begun = Some(Begun { file, have, of });
                Err(self.error(&answer.url, io::Error::from(io::ErrorKind::UnexpectedEof).into()))
            }
            (Ok(()), _) => Ok(have),
            (Err(error), of) => {
                *begun = of.filter(|_| have > 0).map(|of| Begun { file, have, of });
                Err(error)
            }
        }
    }

    /// PUTs `content` to `url` and gives the answer, whatever its status. Blocks as [`HttpClient::get`].
    ///
    /// # Errors
    /// See [`HttpError`].
    pub fn put(&self, url: &str, headers: Headers, content: Content, deadline: Instant) -> Result<Response, HttpError> {
        self.send(Method::PUT, url, headers, &[], content, deadline)
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
        self.send(Method::POST, url, headers, &[], content, deadline)
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
        let kind = [("content-type", "application/json".to_owned())];
        self.send(Method::POST, url, headers, &kind, Content::Bytes(&body), deadline)
    }

    /// POSTs a form (`multipart/form-data`): the fields in order, then the file. A `Content-Type` of a form in
    /// `headers` decides the boundary. Blocks as [`HttpClient::get`].
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
        let boundary = boundary_of(headers).map_or_else(
            || {
                let mut rng = Rng::from_entropy();
                format!("phalanx-{:016x}{:016x}", rng.next_u64(), rng.next_u64())
            },
            str::to_owned,
        );
        let (head, tail) = form_around(&boundary, fields, &file);
        let length = (head.len() + tail.len()) as u64 + file.content.len();
        let content = file.content.reader().map_err(|error| self.error(&shown(url), error.into()))?;
        let mut reader = Cursor::new(head).chain(content).chain(Cursor::new(tail));
        let kind = [("content-type", format!("multipart/form-data; boundary={boundary}"))];
        self.send_reader(Method::POST, url, headers, &kind, (&mut reader, length), deadline)
    }

    fn send(
        &self,
        method: Method,
        url: &str,
        given: Headers,
        ours: &[(&'static str, String)],
        content: Content,
        deadline: Instant,
    ) -> Result<Response, HttpError> {
        let mut reader = content.reader().map_err(|error| self.error(&shown(url), error.into()))?;
        self.send_reader(method, url, given, ours, (&mut reader, content.len()), deadline)
    }

    fn send_reader(
        &self,
        method: Method,
        url: &str,
        given: Headers,
        ours: &[(&'static str, String)],
        body: (&mut dyn Read, u64),
        deadline: Instant,
    ) -> Result<Response, HttpError> {
        let to = address::read(url).map_err(|why| HttpError::Request { url: shown(url), why })?;
        let answer = self.send_once(Sent { method, to: &to, given, ours, deadline }, Some(body), url)?;
        // The server has what was sent, whatever it says to that.
        self.read_extra(answer, ANSWER_BYTES, deadline)
    }

    /// A GET with its redirects; errors name the first address.
    fn follow(
        &self,
        url: &str,
        given: Headers,
        ours: &[(&'static str, String)],
        deadline: Instant,
    ) -> Result<Answer, HttpError> {
        let mut to = address::read(url).map_err(|why| HttpError::Request { url: shown(url), why })?;
        let mut given = given.to_vec();
        for followed in 0.. {
            let sent = Sent { method: Method::GET, to: &to, given: &given, ours, deadline };
            let answer = self.send_once(sent, None, url)?;
            if !matches!(answer.status, 301 | 302 | 303 | 307 | 308) || self.redirects == Redirects::Refuse {
                return Ok(answer);
            }
            let bad = |why| HttpError::Redirect { url: shown(url), status: answer.status, why };
            let location = one(&answer.headers, "location").map_err(bad)?;
            let next = address::redirected(&to, location).map_err(bad)?;
            if followed == REDIRECTS {
                return Err(bad(format!("it is redirect {} in a row", REDIRECTS + 1)));
            }
            if !address::same_server(&to, &next) {
                given.retain(|(name, _)| !name.eq_ignore_ascii_case("authorization"));
            }
            to = next;
        }
        unreachable!("the loop ends by a return")
    }

    fn send_once(&self, sent: Sent, body: Option<(&mut dyn Read, u64)>, url: &str) -> Result<Answer, HttpError> {
        let Sent { method, to, given, ours, deadline } = sent;
        let shown_url = shown(url);
        let bad = |why: String| HttpError::Request { url: shown_url.clone(), why };
        let mut to = to.clone();
        let mut ours = ours.to_vec();
        ours.push(("accept-encoding", coding::ACCEPTED.to_owned()));
        ours.extend(credentials(&to).map(|value| ("authorization", value)));
        // Neither fails for an address with a host.
        let (_, _) = (to.set_username(""), to.set_password(None));
        let fields = fields::fields(given, &ours, &to, body.as_ref().map(|(_, length)| *length)).map_err(bad)?;
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(self.error(&shown_url, ureq::Error::Timeout(Timeout::Global)));
        }
        let mut request = Request::builder().method(method).uri(to.as_str());
        for (name, value) in &fields {
            let parsed =
                HeaderName::from_bytes(name.as_bytes()).ok().zip(HeaderValue::from_bytes(value.as_bytes()).ok());
            let (parsed, value) =
                parsed.ok_or_else(|| bad(format!("the field {name:?} cannot be sent; give plain text")))?;
            request = request.header(parsed, value);
        }
        let answer = match body {
            Some((reader, _)) => self.run(request, SendBody::from_reader(reader), left),
            None => self.run(request, (), left),
        };
        let answer = answer.map_err(|error| self.error(&shown_url, error))?;
        let headers: Vec<_> =
            answer.headers().iter().map(|(name, value)| (name.as_str().to_owned(), text_of(value))).collect();
        Ok(Answer { url: shown_url, status: answer.status().as_u16(), headers, body: answer.into_body() })
    }

    fn run(
        &self,
        request: Builder,
        body: impl AsSendBody,
        left: Duration,
    ) -> Result<ureq::http::Response<UreqBody>, ureq::Error> {
        let request = self.agent.configure_request(request.body(body)?);
        self.agent.run(request.timeout_global(Some(left)).build())
    }

    /// The whole answer. Of a refusal the status and the fields count, whatever becomes of its text.
    fn read_answer(&self, mut answer: Answer, max_bytes: u64, deadline: Instant) -> Result<Response, HttpError> {
        if !(200..300).contains(&answer.status) {
            return self.read_extra(answer, REFUSAL_BYTES, deadline);
        }
        let coded = codings_of(&answer)?;
        let mut body = Vec::new();
        self.read_body(&mut answer, &coded, max_bytes, deadline, |bytes| {
            body.extend_from_slice(bytes);
            Ok(())
        })?;
        let Answer { url, status, headers, .. } = answer;
        Ok(Response { status, headers, body, url })
    }

    /// An answer whose text is an extra: as much of it as comes and can be read.
    fn read_extra(&self, mut answer: Answer, max: u64, deadline: Instant) -> Result<Response, HttpError> {
        let mut body = Vec::new();
        let coded = codings_of(&answer).unwrap_or_default();
        let read = self.read_body(&mut answer, &coded, max, deadline, |bytes| {
            body.extend_from_slice(bytes);
            Ok(())
        });
        match read {
            Err(error @ HttpError::Cancelled { .. }) => return Err(error),
            Err(error) => log::debug!("the text of an answer {} is not whole: {error}", answer.status),
            Ok(()) => {}
        }
        let Answer { url, status, headers, .. } = answer;
        Ok(Response { status, headers, body, url })
    }

    fn read_body(
        &self,
        answer: &mut Answer,
        coded: &[Coding],
        max: u64,
        deadline: Instant,
        mut to: impl FnMut(&[u8]) -> Result<(), HttpError>,
    ) -> Result<(), HttpError> {
        let is_framed = answer.body.content_length().is_some() || first(&answer.headers, "transfer-encoding").is_some();
        let Answer { url, body, .. } = answer;
        let broken = |error: io::Error| match error.kind() {
            // Where only its end ends a body, this is how a cut shows.
            io::ErrorKind::UnexpectedEof if !is_framed => self.error(url, error.into()),
            _ => self.broken(url, error),
        };
        let too_large = || HttpError::TooLarge { url: url.clone(), max };
        if coded.is_empty() && body.content_length().is_some_and(|length| length > max) {
            return Err(too_large());
        }
        // The limit is our own, so that the error names it.
        let received = Received(body.with_config().limit(u64::MAX).reader());
        let mut reader = undone(received, coded).map_err(broken)?;
        let mut buffer = vec![0; CHUNK];
        let mut left = max;
        loop {
            let n = reader.read(&mut buffer).map_err(broken)?;
            // A kick looks like the end of a body whose length was not announced; and what is undone needs no wait.
            if self.shutdown.is_cancelled() {
                return Err(HttpError::Cancelled { url: url.clone() });
            }
            if n == 0 {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(HttpError::TimedOut { url: url.clone() });
            }
            left = left.checked_sub(n as u64).ok_or_else(too_large)?;
            to(&buffer[..n])?;
        }
    }

    /// What a failed read of a body is: of the connection, or of the coding above it.
    fn broken(&self, url: &str, error: io::Error) -> HttpError {
        match error.downcast::<Below>() {
            Ok(Below(error)) => self.error(url, error.into()),
            Err(error) => {
                HttpError::Answer { url: url.to_owned(), why: format!("its content coding is broken: {error}") }
            }
        }
    }

    fn error(&self, url: &str, error: ureq::Error) -> HttpError {
        let url = url.to_owned();
        if self.shutdown.is_cancelled() {
            return HttpError::Cancelled { url };
        }
        HttpError::of(url, error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::limits::DIAL_TIME;
    use crate::ops::cause::Cause;

    #[test]
    fn bad_addresses_are_refused_before_anything_is_dialled() {
        let client = HttpClient::new(Shutdown::new());
        for bad in ["", "host/path", "ftp://host/x", "file:///etc/passwd", "http://", "http://a b/"] {
            let error = client.get(bad, &[], Instant::now() + DIAL_TIME).unwrap_err();
            assert!(matches!(error, HttpError::Request { .. }) && error.cause() == Cause::JOB, "{bad}: {error}");
        }
        for (name, value) in [("bad name", "x"), ("x", "a\nb"), ("", "x")] {
            let headers = [(name.to_owned(), value.to_owned())];
            let error = client.get("http://127.0.0.1:1/", &headers, Instant::now() + DIAL_TIME).unwrap_err();
            assert!(matches!(error, HttpError::Request { .. }), "{error}");
        }
    }
}
