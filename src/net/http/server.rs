//! The threads of the HTTP server: one that accepts, one for each connection.
//!
//! Owner: the [`HttpServer`]. Blocks in: `accept`; a connection's thread in `read`, in its handler, in `write`. Kick:
//! that of the listener; for a connection first the end of its reading (a request in work is still answered), then the
//! cancel of its handler and `shutdown` of its socket. Ends: [`HttpServer::stop`] or its drop; a connection also at its
//! client's end or a deadline.

use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown as Direction, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use super::connection::{self, Client, date};
use super::limits::HttpLimits;
use super::message::{Handler, HttpResponse};
use super::names::HostNames;
use super::refusals::Refusals;
use crate::base::stop::{Step, StopReport, stop_alone};
use crate::net::accept::{Acceptor, Admitted, KickableListener, Place, Service};
use crate::net::admission::Origin;
use crate::net::tls::ServerTls;
use crate::ops::errors::ErrorHandler;
use crate::ops::status::Board;

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

    /// How addresses here begin: `https` with TLS, else `http`.
    pub fn scheme(&self) -> &'static str {
        if self.tls.is_some() { "https" } else { "http" }
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
    /// Starts to serve `listener`. `name`, at most 3 bytes as `fac`, begins the thread names. What it refuses is
    /// counted in the metrics of `board`, as `phalanx_http_refused_total` by reason; of connections that it cannot
    /// accept or serve its error handler is told.
    ///
    /// # Errors
    /// The listener has no local address, or the system no descriptor for what wakes it.
    pub fn start(
        name: &'static str,
        listener: impl Into<HttpListener>,
        handler: Handler,
        limits: HttpLimits,
        board: &Board,
    ) -> io::Result<Self> {
        let listener = listener.into();
        let scheme = listener.scheme();
        let HttpListener { tcp, tls } = listener;
        let listener = KickableListener::new(tcp)?;
        let (address, kick) = (listener.local_addr(), listener.kick());
        let shared = Arc::new(connection::Service::new(handler, limits, tls, Refusals(board.metrics.clone())));
        let service = HttpService { name, listener, shared, errors: board.errors.clone() };
        let acceptor = Acceptor::start(format!("{name}-http"), limits.places(), kick, service);
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

    /// Stops it alone, within `budget`, as [`HttpServer::stop_in`] does.
    pub fn stop(self, budget: Duration) -> StopReport {
        stop_alone("http server", budget, |step| self.stop_in(step))
    }

    /// Accepts no more connections, answers the requests in work, and joins all threads.
    pub fn stop_in(mut self, step: &mut Step) {
        self.acceptor.stop_accepting(step);
        self.acceptor.join(step);
    }
}

struct HttpService {
    name: &'static str,
    errors: ErrorHandler,
    listener: KickableListener,
    shared: Arc<connection::Service>,
}

impl Service for HttpService {
    type Incoming = (TcpStream, SocketAddr);
    type Handle = ();

    fn accept(&self) -> io::Result<Option<(TcpStream, SocketAddr)>> {
        self.listener.accept()
    }

    fn errors(&self) -> ErrorHandler {
        self.errors.clone()
    }

    fn origin(&self, (_, peer): &(TcpStream, SocketAddr)) -> Origin {
        peer.ip().into()
    }

    fn admit(&self, (stream, peer): (TcpStream, SocketAddr), place: Place) -> Admitted<()> {
        let Place { number, stop, standing, .. } = place;
        let stream = Arc::new(stream);
        let socket = Arc::downgrade(&stream);
        let kick = move || {
            if let Some(socket) = socket.upgrade() {
                // An error means that it is closed already.
                let _ = socket.shutdown(Direction::Both);
            }
        };
        let shared = self.shared.clone();
        let client = Client { stream, peer, standing, stop };
        Admitted {
            handle: (),
            thread_name: format!("{}-http-{number}", self.name),
            kick: Box::new(kick),
            serve: Box::new(move || connection::serve(client, &shared)),
        }
    }

    fn refuse(&self, (stream, _): (TcpStream, SocketAddr)) {
        self.shared.refusals.count("no_place");
        // With TLS it would take a handshake.
        if !self.shared.has_tls() {
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
        (&mut &*stream).read(&mut [0; 4096])
    });
    if let Err(error) = answered
        && error.kind() != ErrorKind::WouldBlock
    {
        log::debug!("a client over the limit has gone: {error}");
    }
}
