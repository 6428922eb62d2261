//! One connection of the server, on its thread: request after request, and what its standing is meanwhile.
//!
//! It is a stranger's while it waits for a request, and while its client does not read the answer: then it is the first
//! to go when others want its place. It is not while a request is in work. What a request is charged, its place and the
//! bytes of its body, is given back when the answer is sent.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::{Shutdown as Direction, SocketAddr, TcpStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use super::budget::{Budget, Charge, Share, Shares};
use super::date::http_date;
use super::limits::HttpLimits;
use super::message::{Behind, BodyError, Handler, HttpRequest, HttpResponse};
use super::refusals::Refusals;
use super::request::{Refused, Request};
use super::socket::{Opened, Socket};
use super::stream::{self, Sending};
use super::wire::{NoRequest, Wire};
use crate::base::clock;
use crate::base::lock::lock;
use crate::base::shutdown::{Level, Shutdown};
use crate::base::thread::panic_message;
use crate::net::accept::Standing;
use crate::net::admission::Origin;
use crate::net::dial::set_options;
use crate::net::rate::Buckets;
use crate::net::tls::ServerTls;

/// What asks whether a process is well; it is answered when nobody else is.
const PROBES: [&str; 3] = ["/healthz", "/readyz", METRICS];

/// The probe whose answer is long, so that a client can let it wait.
const METRICS: &str = "/metrics";

/// Requests for `/metrics` whose connections nobody takes while they are answered; others are answered as long as
/// nobody needs theirs. Half of the connections that are kept for probes.
const METRICS_PLACES: usize = 4;

/// What the connections of a server share.
pub(super) struct Service {
    handler: Handler,
    limits: HttpLimits,
    tls: Option<ServerTls>,
    bodies: Budget,
    /// Requests in work, by address.
    working: Shares<Origin>,
    /// Of those, the ones of users, who may have many addresses.
    users: Shares<String>,
    metrics: Shares<Origin>,
    /// By address.
    requests: Mutex<Buckets<Origin>>,
    probes: Mutex<Buckets<Origin>>,
    pub(super) refusals: Refusals,
}

impl Service {
    pub(super) fn new(handler: Handler, limits: HttpLimits, tls: Option<ServerTls>, refusals: Refusals) -> Self {
        let buckets = || Mutex::new(Buckets::new(limits.requests));
        Self {
            handler,
            limits,
            tls,
            bodies: Budget::new(limits.bodies_bytes),
            working: Shares::new(limits.connections),
            users: Shares::new(limits.connections),
            metrics: Shares::new(METRICS_PLACES),
            requests: buckets(),
            probes: buckets(),
            refusals,
        }
    }

    pub(super) fn has_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// A place for a request, or the answer that there is none. A probe needs none.
    fn enter(&self, origin: Origin, path: &str) -> Result<Option<Share<Origin>>, HttpResponse> {
        let is_probe = PROBES.contains(&path);
        let buckets = if is_probe { &self.probes } else { &self.requests };
        if !lock(buckets).take(origin.clone(), Instant::now()) {
            let count = self.limits.requests.count;
            let period = self.limits.requests.period;
            let why = format!("more than {count} requests of one address in {period:?}, try again later\n");
            return Err(HttpResponse::text(429, why).with_header("Retry-After", "1"));
        }
        if is_probe {
            return Ok(if path == METRICS { self.metrics.take(origin) } else { None });
        }
        let place = self.working.take(origin).map(Some);
        place.ok_or_else(|| {
            HttpResponse::text(503, "too many requests at a time, try again later\n").with_header("Retry-After", "1")
        })
    }
}

/// A client that has a place.
pub(super) struct Client {
    pub stream: Arc<TcpStream>,
    pub peer: SocketAddr,
    pub standing: Standing,
    pub stop: Shutdown,
}

/// How a response is to be sent.
#[derive(Debug, Clone, Copy)]
struct Form {
    keep_alive: bool,
    /// Without its body.
    head: bool,
    is_1_1: bool,
}

impl Form {
    /// After which the connection is closed.
    const LAST: Self = Self { keep_alive: false, head: false, is_1_1: true };
}

/// Today, as a header has it.
pub(super) fn date() -> String {
    http_date(clock::now().wall.as_secs())
}

/// Serves a client until its end, a deadline, or the stop.
pub(super) fn serve(client: Client, service: &Arc<Service>) {
    let Client { stream, peer, standing, stop } = client;
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
    let limits = service.limits;
    let (socket, is_plain) = match Socket::open(stream, service.tls.as_ref(), Instant::now() + limits.head_time) {
        Ok(Opened::Ready(socket)) => (socket, false),
        Ok(Opened::Plain(socket)) => (socket, true),
        Err(error) => {
            log::debug!("http client {peer}: no TLS: {error}");
            return;
        }
    };
    let connection = Rc::new(Connection {
        wire: RefCell::new(Wire::new(socket, limits)),
        service: service.clone(),
        standing,
        is_known: Cell::new(false),
        place: RefCell::default(),
        of_user: RefCell::default(),
        charges: RefCell::default(),
    });
    if is_plain {
        let response = HttpResponse::text(400, "this port has TLS: ask by https://\n");
        connection.last(response, peer);
        return;
    }
    while !stop.is_set() && connection.request(peer, &stop) {}
}

/// What the thread and the request in work have of the connection.
struct Connection {
    wire: RefCell<Wire>,
    service: Arc<Service>,
    standing: Standing,
    /// Of the request in work.
    is_known: Cell<bool>,
    place: RefCell<Option<Share<Origin>>>,
    of_user: RefCell<Option<Share<String>>>,
    charges: RefCell<Vec<Charge>>,
}

impl Connection {
    /// Waits for a request and answers it. Whether there may be another one.
    fn request(self: &Rc<Self>, peer: SocketAddr, stop: &Shutdown) -> bool {
        self.rest();
        let read = self.wire.borrow_mut().request();
        let head = match read {
            Ok(head) => head,
            Err(NoRequest::Over) => return false,
            Err(NoRequest::Refused(Refused { status, why })) => {
                return self.last(HttpResponse::text(status, why + "\n"), peer);
            }
        };
        let is_probe = PROBES.contains(&head.path.as_str());
        let may_be_closed = match self.service.enter(peer.ip().into(), &head.path) {
            Ok(place) => {
                let may_be_closed = head.path == METRICS && place.is_none();
                *self.place.borrow_mut() = place;
                may_be_closed
            }
            Err(refusal) => return self.last(refusal, peer),
        };
        if !may_be_closed && !self.wire.borrow().has_body() {
            // The handler works now, and does not wait for him.
            self.standing.known();
        }
        let Request { method, path, query, headers, keep_alive, is_1_1, .. } = head;
        let behind = self.clone();
        let request = HttpRequest { method, path, query, headers, peer, shutdown: stop.clone(), behind };
        let (response, is_sound) = answer(&self.service.handler, &request);
        // A probe's 503 is what it asked for.
        if !(is_probe && response.status == 503) {
            self.service.refusals.count_answer(response.status);
        }
        if self.wire.borrow().is_gone() {
            return false;
        }
        let is_read = self.wire.borrow_mut().end_request();
        let keep_alive = keep_alive && is_sound && is_read && !stop.is_set() && self.standing.may_wait();
        if is_probe {
            // Its place is no request's, of which an address has a share: who does not read is the first to go.
            self.rest();
        }
        let form = Form { keep_alive, head: request.method == "HEAD", is_1_1 };
        if !keep_alive {
            return self.finish(response, form, peer);
        }
        let sent = self.send(response, form);
        sent.inspect_err(|error| log::debug!("http client {peer} did not take its answer: {error}")).is_ok()
    }

    /// The last answer, in place of what was asked for.
    fn last(&self, response: HttpResponse, peer: SocketAddr) -> bool {
        self.service.refusals.count_answer(response.status);
        self.finish(response, Form::LAST, peer)
    }

    /// The same in that form; gives `false`.
    fn finish(&self, response: HttpResponse, form: Form, peer: SocketAddr) -> bool {
        match self.send(response, form) {
            Ok(()) => {
                self.rest();
                self.wire.borrow_mut().linger();
            }
            Err(error) => log::debug!("http client {peer} did not take its answer: {error}"),
        }
        false
    }

    /// No request is in work, or its client lets it wait.
    fn rest(&self) {
        self.is_known.set(false);
        self.place.take();
        self.of_user.take();
        self.charges.borrow_mut().clear();
        self.standing.stranger();
    }

    fn send(&self, mut response: HttpResponse, form: Form) -> io::Result<()> {
        let Form { keep_alive, head, is_1_1 } = form;
        let write_time = self.service.limits.write_time;
        let put = |bytes: &[u8], deadline| self.wire.borrow_mut().send(bytes, deadline, &mut || self.rest());
        let whole = |bytes: &[u8]| put(bytes, Instant::now() + write_time);
        let date = date();
        match response.stream.take() {
            None => whole(&response.encode(&date, keep_alive, head)),
            Some(_) if head => whole(&response.head(&date, keep_alive, is_1_1.then_some("chunked"), None)),
            Some(make) => {
                let sending = Sending { put: &put, date: &date, keep_alive, chunks: is_1_1, write_time };
                let made = catch_unwind(AssertUnwindSafe(|| stream::send(&response, make, &sending)));
                made.unwrap_or_else(|panic| {
                    log::error!("http: a body could not be made: {}", panic_message(panic.as_ref()));
                    Err(io::Error::other("its body panicked"))
                })
            }
        }
    }
}

impl Behind for Connection {
    fn body(&self, limit: usize) -> Result<Vec<u8>, BodyError> {
        let HttpLimits { head_time, body_time, .. } = self.service.limits;
        let time = if self.is_known.get() { body_time } else { head_time };
        let mut wire = self.wire.borrow_mut();
        let (body, charge) = wire.body(limit, Instant::now() + time, &self.service.bodies)?;
        self.charges.borrow_mut().extend(charge);
        self.standing.known();
        Ok(body)
    }

    fn known(&self) {
        self.is_known.set(true);
        self.standing.known();
    }

    fn known_as(&self, user: &str) -> bool {
        // Asked again, it keeps the place that it has.
        let mut place = self.of_user.borrow_mut();
        if place.is_none() {
            *place = self.service.users.take(user.to_owned());
        }
        let has_one = place.is_some();
        if has_one {
            self.known();
        }
        has_one
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
