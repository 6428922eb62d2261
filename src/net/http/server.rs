//! The threads of the HTTP server: one that accepts, one for each connection.
//!
//! Owner: the [`HttpServer`]. Blocks in: `accept`; a connection's thread in `read`, in its handler, in `write`. Kick:
//! that of the listener; for a connection first the end of its reading (a request in work is still answered), then the
//! cancel of its handler and `shutdown` of its socket. Ends: [`HttpServer::stop`] or its drop; a connection also at its
//! client's end or a deadline.

use std::cell::RefCell;
use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown as Direction, SocketAddr, TcpListener, TcpStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::date::http_date;
use super::message::{HttpRequest, HttpResponse};
use super::names::HostNames;
use super::request::{self, Framing, Refused, Request};
use super::socket::{Opened, Socket};
use super::stream::{self, Sending};
use crate::base::clock;
use crate::base::limits::HANDSHAKES;
use crate::base::shutdown::{Level, Shutdown};
use crate::base::stop::Step;
use crate::base::thread::panic_message;
use crate::net::accept::{Acceptor, Admitted, KickableListener, Place, Service};
use crate::net::admission::{Origin, PlaceLimits};
use crate::net::dial::set_options;
use crate::net::rate::Rate;
use crate::net::tls::ServerTls;

/// Bytes read at a time.
const READ_BYTES: usize = 16 << 10;

/// After an answer to a request that was not read to its end, how long and how much is still read, so that the unread
/// bytes do not reset the connection under the answer.
const LINGER: (Duration, usize) = (Duration::from_secs(1), 1 << 20);

/// Answers a request, on the connection's thread. If it waits for anything, it must listen to
/// [`HttpRequest::shutdown`].
pub type Handler = Arc<dyn Fn(&HttpRequest) -> HttpResponse + Send + Sync>;

/// The same handler for requests by one of `names`; others are answered with 421 or 403. Everybody may have `/healthz`:
/// an orchestrator ends what seems dead to it, and the page says nothing that a stranger could use.
pub fn guarded(names: HostNames, handler: Handler) -> Handler {
    Arc::new(move |request| {
        if request.path != "/healthz"
            && let Some((status, why)) = names.refusal(&request.headers)
        {
            return HttpResponse::text(status, why + "\n");
        }
        handler(request)
    })
}

/// The bounds of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HttpLimits {
    /// Connections at a time; more are answered with 503.
    pub connections: usize,
    /// Bytes of a request's head; more is answered with 431.
    pub head_bytes: usize,
    /// Bytes of a request's body; more is answered with 413.
    pub body_bytes: usize,
    /// How long a connection may wait for its next request.
    pub idle_time: Duration,
    /// From a head's first byte to its end; then 408.
    pub head_time: Duration,
    /// For a whole body; then 408.
    pub body_time: Duration,
    /// For sending a whole response; for one that is streamed, see [`HttpResponse::stream`], the beginning: then a
    /// client has to take 64 KiB in each second.
    pub write_time: Duration,
}

impl Default for HttpLimits {
    /// 32 connections, 16 KiB, 2 MiB, 60 s, 10 s, 30 s, 30 s.
    fn default() -> Self {
        Self {
            connections: 32,
            head_bytes: 16 << 10,
            body_bytes: 2 << 20,
            idle_time: Duration::from_secs(60),
            head_time: Duration::from_secs(10),
            body_time: Duration::from_secs(30),
            write_time: Duration::from_secs(30),
        }
    }
}

/// Where a server listens, plain or with TLS. Dropping it closes the address.
#[derive(Debug)]
pub struct HttpListener {
    tcp: TcpListener,
    tls: Option<ServerTls>,
}

impl HttpListener {
    /// Takes a listener over, with TLS if it is given a certificate. Clients are asked for certificates if that says
    /// so; [`ClientCertificates::Asked`](crate::net::tls::ClientCertificates) lets in those who have none.
    pub fn new(tcp: TcpListener, tls: Option<ServerTls>) -> Self {
        Self { tcp, tls }
    }
}

impl From<TcpListener> for HttpListener {
    fn from(tcp: TcpListener) -> Self {
        Self::new(tcp, None)
    }
}

/// A running server. Dropping it without [`HttpServer::stop`] breaks all connections.
pub struct HttpServer {
    address: SocketAddr,
    scheme: &'static str,
    acceptor: Acceptor<()>,
}

impl fmt::Debug for HttpServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpServer").field("address", &self.address).finish_non_exhaustive()
    }
}

impl HttpServer {
    /// Starts to serve `listener`. `name`, at most 3 bytes as `fac`, begins the thread names.
    ///
    /// # Errors
    /// The listener has no local address, or the system no descriptor for what wakes it.
    pub fn start(
        name: &'static str,
        listener: impl Into<HttpListener>,
        handler: Handler,
        limits: HttpLimits,
    ) -> io::Result<Self> {
        let HttpListener { tcp, tls } = listener.into();
        let scheme = if tls.is_some() { "https" } else { "http" };
        let listener = KickableListener::new(tcp)?;
        let (address, kick) = (listener.local_addr(), listener.kick());
        let places = PlaceLimits {
            total: limits.connections,
            strangers: limits.connections,
            address: limits.connections,
            connects: Rate::new(HANDSHAKES.0, HANDSHAKES.1),
            turned_away: 0,
        };
        let service = HttpService { name, listener, tls, handler, limits };
        let acceptor = Acceptor::start(format!("{name}-http"), places, kick, service);
        Ok(Self { address, scheme, acceptor })
    }

    /// Where it listens, with the real port.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// The same with the scheme, as `https://127.0.0.1:8080`.
    pub fn url(&self) -> String {
        format!("{}://{}", self.scheme, self.address)
    }

    /// Accepts no more connections, answers the requests in work, and joins all threads.
    pub fn stop(mut self, step: &mut Step) {
        self.acceptor.stop_accepting(step);
        self.acceptor.join(step);
    }
}

struct HttpService {
    name: &'static str,
    listener: KickableListener,
    tls: Option<ServerTls>,
    handler: Handler,
    limits: HttpLimits,
}

impl Service for HttpService {
    type Incoming = (TcpStream, SocketAddr);
    type Handle = ();

    fn accept(&self) -> io::Result<Option<(TcpStream, SocketAddr)>> {
        self.listener.accept()
    }

    fn origin(&self, (_, peer): &(TcpStream, SocketAddr)) -> Origin {
        peer.ip().into()
    }

    fn admit(&self, (stream, peer): (TcpStream, SocketAddr), place: Place) -> Admitted<()> {
        let Place { number, stop, standing, .. } = place;
        standing.known();
        let stream = Arc::new(stream);
        let socket = Arc::downgrade(&stream);
        let kick = move || {
            if let Some(socket) = socket.upgrade() {
                // An error means that it is closed already.
                let _ = socket.shutdown(Direction::Both);
            }
        };
        let (tls, handler, limits) = (self.tls.clone(), self.handler.clone(), self.limits);
        Admitted {
            handle: (),
            thread_name: format!("{}-http-{number}", self.name),
            kick: Box::new(kick),
            serve: Box::new(move || serve((stream, peer), tls.as_ref(), &handler, &limits, &stop)),
        }
    }

    fn refuse(&self, (stream, _): (TcpStream, SocketAddr)) {
        // With TLS it would take a handshake.
        if self.tls.is_none() {
            refuse(&stream);
        }
    }
}

/// Tells a client that there are too many. Never blocks: an answer this small fits into a fresh socket's buffer.
fn refuse(stream: &TcpStream) {
    let response = HttpResponse::text(503, "too many connections, try again later\n").with_header("Retry-After", "1");
    let answered = stream.set_nonblocking(true).and_then(|()| {
        (&mut &*stream).write_all(&response.encode(&date(), false, false))?;
        stream.shutdown(Direction::Write)?;
        // Its request, if it has come, is taken out, because closing over unread bytes would reset the answer away.
        (&mut &*stream).read(&mut [0; READ_BYTES])
    });
    if let Err(error) = answered
        && error.kind() != ErrorKind::WouldBlock
    {
        log::debug!("a client over the limit has gone: {error}");
    }
}

fn date() -> String {
    http_date(clock::now().wall.as_secs())
}

/// Why a request could not be read.
enum NoRequest {
    /// The client has gone, was idle for too long, or the server stops: nothing to say.
    Over,
    /// The client gets the reason, and the connection is closed.
    Refused(Refused),
}

impl From<Refused> for NoRequest {
    fn from(refused: Refused) -> Self {
        Self::Refused(refused)
    }
}

fn serve(
    (stream, peer): (Arc<TcpStream>, SocketAddr),
    tls: Option<&ServerTls>,
    handler: &Handler,
    limits: &HttpLimits,
    stop: &Shutdown,
) {
    if let Err(error) = set_options(&stream) {
        log::debug!("http client {peer} has gone already: {error}");
        return;
    }
    let socket = Arc::downgrade(&stream);
    // Only reading ends when the server drains: a request in work is still answered.
    let _reading = stop.on(Level::Drain, move || {
        if let Some(socket) = socket.upgrade() {
            // An error means that the client has gone already.
            let _ = socket.shutdown(Direction::Read);
        }
    });
    let socket = match Socket::open(&stream, tls, Instant::now() + limits.head_time) {
        Ok(Opened::Ready(socket)) => socket,
        Ok(Opened::Plain(socket)) => {
            let mut wire = Wire { socket, buffer: Vec::new(), limits };
            let answer = HttpResponse::text(400, "this port has TLS: ask by https://\n");
            if wire.write(&answer.encode(&date(), false, false)).is_ok() {
                wire.linger();
            }
            return;
        }
        Err(error) => {
            log::debug!("http client {peer}: no TLS: {error}");
            return;
        }
    };
    let mut wire = Wire { socket, buffer: Vec::new(), limits };
    while !stop.is_set() {
        let refusal = |refused: Refused| HttpResponse::text(refused.status, refused.why + "\n");
        let (response, form) = match wire.request() {
            Err(NoRequest::Over) => break,
            Err(NoRequest::Refused(refused)) => {
                (refusal(refused), Form { keep_alive: false, head: false, is_1_1: true })
            }
            Ok((head, body)) => {
                let Request { method, path, query, headers, keep_alive, is_1_1, .. } = head;
                let request = HttpRequest { method, path, query, headers, body, peer, shutdown: stop.clone() };
                let (response, sound) = answer(handler, &request);
                let keep_alive = keep_alive && sound && !stop.is_set();
                (response, Form { keep_alive, head: request.method == "HEAD", is_1_1 })
            }
        };
        if let Err(error) = wire.send(response, form) {
            log::debug!("http client {peer} did not take its answer: {error}");
            break;
        }
        if !form.keep_alive {
            wire.linger();
            break;
        }
    }
}

/// The handler's response; `false` if it panicked, which costs this request and its connection, not the server.
fn answer(handler: &Handler, request: &HttpRequest) -> (HttpResponse, bool) {
    let start = Instant::now();
    match catch_unwind(AssertUnwindSafe(|| handler(request))) {
        Ok(response) => {
            let (took, peer) = (start.elapsed(), request.peer);
            log::debug!("http {} {} from {peer}: {} in {took:.1?}", request.method, request.path, response.status);
            (response, true)
        }
        Err(panic) => {
            log::error!("http {} {} panicked: {}", request.method, request.path, panic_message(panic.as_ref()));
            (HttpResponse::text(500, "internal error, see the server's log\n"), false)
        }
    }
}

/// How a response is to be sent.
#[derive(Debug, Clone, Copy)]
struct Form {
    keep_alive: bool,
    /// Without its body.
    head: bool,
    is_1_1: bool,
}

/// One connection's socket, and what was read from it and not yet used.
struct Wire<'a> {
    socket: Socket<'a>,
    buffer: Vec<u8>,
    limits: &'a HttpLimits,
}

impl Wire<'_> {
    /// The next request. Blocks until it is there, or a deadline.
    fn request(&mut self) -> Result<(Request, Vec<u8>), NoRequest> {
        let limits = self.limits;
        let idle_until = Instant::now() + limits.idle_time;
        loop {
            // An empty line after a body is not the beginning of a request (RFC 9112, section 2.2).
            let empty = 2 * self.buffer.chunks(2).take_while(|line| line == b"\r\n").count();
            self.buffer.drain(..empty);
            if !self.buffer.is_empty() {
                break;
            }
            if !matches!(self.fill(idle_until), Ok(true)) {
                return Err(NoRequest::Over);
            }
        }
        let deadline = Instant::now() + limits.head_time;
        let head = loop {
            if let Some((head, length)) = request::head(&self.buffer)? {
                self.buffer.drain(..length);
                break head;
            }
            if self.buffer.len() > limits.head_bytes {
                return Err(
                    Refused::new(431, format!("a request's head has at most {} bytes", limits.head_bytes)).into()
                );
            }
            self.more(deadline, "head")?;
        };
        if let Framing::Length(length) = head.framing
            && length > limits.body_bytes as u64
        {
            return Err(too_large(limits).into());
        }
        // A client that has begun to send its body does not wait for this.
        if head.expects_continue && self.buffer.is_empty() {
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n").map_err(|_| NoRequest::Over)?;
        }
        let deadline = Instant::now() + limits.body_time;
        let body = match head.framing {
            Framing::Length(length) => self.take(length as usize, deadline)?,
            Framing::Chunked => self.chunks(deadline)?,
        };
        Ok((head, body))
    }

    fn take(&mut self, length: usize, deadline: Instant) -> Result<Vec<u8>, NoRequest> {
        while self.buffer.len() < length {
            self.more(deadline, "body")?;
        }
        let rest = self.buffer.split_off(length);
        Ok(std::mem::replace(&mut self.buffer, rest))
    }

    fn chunks(&mut self, deadline: Instant) -> Result<Vec<u8>, NoRequest> {
        let mut body = Vec::new();
        loop {
            let (line, size) = loop {
                match request::chunk_size(&self.buffer)? {
                    Some(found) => break found,
                    None => self.more(deadline, "body")?,
                }
            };
            self.buffer.drain(..line);
            if size == 0 {
                break;
            }
            if size > (self.limits.body_bytes - body.len()) as u64 {
                return Err(too_large(self.limits).into());
            }
            body.extend_from_slice(&self.take(size as usize, deadline)?);
            if self.take(2, deadline)? != b"\r\n" {
                return Err(Refused::new(400, "a chunk ends with CR LF").into());
            }
        }
        // Trailers, which nobody uses, up to the empty line.
        let mut trailers = 0;
        loop {
            match self.buffer.iter().position(|b| *b == b'\n') {
                Some(at) => {
                    let line = self.take(at + 1, deadline)?;
                    if line == b"\r\n" || line == b"\n" {
                        return Ok(body);
                    }
                    trailers += line.len();
                }
                None => self.more(deadline, "body")?,
            }
            if trailers + self.buffer.len() > self.limits.head_bytes {
                return Err(Refused::new(431, "too many trailers").into());
            }
        }
    }

    /// Reads more of a request that has begun.
    fn more(&mut self, deadline: Instant, what: &str) -> Result<(), NoRequest> {
        match self.fill(deadline) {
            Ok(true) => Ok(()),
            Ok(false) => Err(NoRequest::Over),
            Err(error) if error.kind() == ErrorKind::TimedOut => {
                Err(Refused::new(408, format!("the request's {what} did not come in time")).into())
            }
            Err(_) => Err(NoRequest::Over),
        }
    }

    /// Reads once; `false` at the end of the stream, [`ErrorKind::TimedOut`] at the deadline.
    fn fill(&mut self, deadline: Instant) -> io::Result<bool> {
        let old = self.buffer.len();
        self.buffer.resize(old + READ_BYTES, 0);
        let outcome = self.socket.read(&mut self.buffer[old..], deadline);
        self.buffer.truncate(old + outcome.as_ref().copied().unwrap_or(0));
        Ok(outcome? > 0)
    }

    fn send(&mut self, mut response: HttpResponse, form: Form) -> io::Result<()> {
        let Form { keep_alive, head, is_1_1 } = form;
        match response.stream.take() {
            None => self.write(&response.encode(&date(), keep_alive, head)),
            Some(_) if head => self.write(&response.head(&date(), keep_alive, is_1_1.then_some("chunked"), None)),
            Some(make) => {
                let write_time = self.limits.write_time;
                let wire = RefCell::new(self);
                let put = |bytes: &[u8], deadline| wire.borrow_mut().write_by(bytes, deadline);
                let sending = Sending { put: &put, date: &date(), keep_alive, chunks: is_1_1, write_time };
                let made = catch_unwind(AssertUnwindSafe(|| stream::send(&response, make, &sending)));
                made.unwrap_or_else(|panic| {
                    log::error!("http: a body could not be made: {}", panic_message(panic.as_ref()));
                    Err(io::Error::other("its body panicked"))
                })
            }
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write_by(bytes, Instant::now() + self.limits.write_time)
    }

    fn write_by(&mut self, mut bytes: &[u8], deadline: Instant) -> io::Result<()> {
        while !bytes.is_empty() {
            let written = self.socket.write(bytes, deadline)?;
            bytes = &bytes[written..];
        }
        Ok(())
    }

    /// Lets the client read its last answer.
    fn linger(&mut self) {
        let (time, bytes) = LINGER;
        let deadline = Instant::now() + time;
        let mut seen = 0;
        if self.socket.half_close(deadline).is_err() {
            return;
        }
        while seen < bytes {
            self.buffer.clear();
            match self.fill(deadline) {
                Ok(true) => seen += self.buffer.len(),
                Ok(false) | Err(_) => return,
            }
        }
    }
}

fn too_large(limits: &HttpLimits) -> Refused {
    Refused::new(413, format!("a request's body has at most {} bytes", limits.body_bytes))
}
