//! The accepting side of every server: a listener whose `accept` can be interrupted, and the one loop that admits
//! connections, gives each a thread, and joins it.
//!
//! Owner: the [`Acceptor`]. Blocks in: `accept`; what a connection's thread blocks in is the service's. Kick: the stop
//! signal and the listener's event; for a connection its own stop signal and whatever its service names.
//! Ends: [`Acceptor::stop_accepting`], then [`Acceptor::join`]; when dropped, it cancels and kicks all and joins them.

use std::collections::HashMap;
use std::fmt;
use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use crate::base::lock::lock;
use crate::base::shutdown::Shutdown;
use crate::base::stop::{Step, stop_dropped};
use crate::base::thread::{Kick, Thread, spawn, try_spawn};
use crate::base::waits::waiting;
use crate::net::admission::{Entry, NoPlace, Origin, PlaceCounts, PlaceLimits, Places};
use crate::net::wake::Wake;
use crate::ops::errors::{ErrorClass, ErrorHandler};
use crate::ops::health::{Health, Pulse};
use crate::ops::metrics::Metrics;

/// After a failed `accept`, the time in which open connections may end: out of descriptors, most likely.
const AFTER_FAILURE: Duration = Duration::from_millis(100);

/// Connections that wait to be accepted. The library's 128 are there in a tenth of a second of a flood, and then the
/// system drops who belongs for a second; these are accepted within that tenth, at some 100 µs each.
const BACKLOG: i32 = 1024;

/// Longest that a connection may take to be admitted: nothing there waits for anything but locks.
const ADMIT_TIME: Duration = Duration::from_secs(10);

/// A TCP listener whose `accept` ends when it is kicked. Dropping it closes the address.
#[derive(Debug)]
pub(crate) struct KickableListener {
    tcp: TcpListener,
    address: SocketAddr,
    stopped: Arc<AtomicBool>,
    /// Wakes `accept`. Made with the listener, because a kick must work also when the process has no descriptor left.
    wake: Wake,
    /// Of the thread that accepts, if anybody watches over it.
    pulse: Option<Pulse>,
}

impl KickableListener {
    /// Takes a listener over.
    pub(crate) fn new(tcp: TcpListener) -> io::Result<Self> {
        let address = tcp.local_addr()?;
        // What listens already gets another length of its queue by that.
        rustix::net::listen(&tcp, BACKLOG)?;
        // It waits for the listener and for its event together.
        tcp.set_nonblocking(true)?;
        Ok(Self { tcp, address, stopped: Arc::default(), wake: Wake::new()?, pulse: None })
    }

    /// Has the thread that accepts promise progress from now on, as this part of the health.
    pub(crate) fn watch(&mut self, health: &Health, part: &'static str) {
        let wake = self.wake.raiser();
        self.pulse = Some(health.pulse_of_loop(part, ADMIT_TIME, move |_| wake()));
    }

    /// Where it listens, with the port that the system chose.
    pub(crate) fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Where this machine reaches it: over loopback if it is bound to every interface.
    pub(crate) fn reachable_addr(&self) -> SocketAddr {
        let mut address = self.address;
        match address {
            SocketAddr::V4(v4) if v4.ip().is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
            SocketAddr::V6(v6) if v6.ip().is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
            _ => {}
        }
        address
    }

    /// The next connection; `None` after a kick, for ever. Blocks; the kick interrupts it. Until the next call the
    /// caller is taken to be at work.
    pub(crate) fn accept(&self) -> io::Result<Option<(TcpStream, SocketAddr)>> {
        loop {
            self.wake.lower();
            if self.stopped.load(Ordering::SeqCst) {
                return Ok(None);
            }
            if let Some(pulse) = &self.pulse {
                pulse.done();
            }
            let waits = waiting("a connection", None);
            let mut wanted = [PollFd::new(&self.tcp, PollFlags::IN), PollFd::new(&self.wake, PollFlags::IN)];
            let ready = poll(&mut wanted, None);
            drop(waits);
            match ready {
                Err(Errno::INTR) => continue,
                other => other?,
            };
            if wanted[0].revents().is_empty() {
                continue;
            }
            if let Some(pulse) = &self.pulse {
                pulse.begin(Instant::now() + ADMIT_TIME);
            }
            match self.tcp.accept() {
                // A client that gave up while it waited is not the listener's trouble.
                Err(error) if matches!(error.kind(), ErrorKind::ConnectionAborted | ErrorKind::WouldBlock) => {}
                accepted => return accepted.map(Some),
            }
        }
    }

    /// What interrupts [`KickableListener::accept`], now and later. It does not block, and keeps neither the address
    /// nor a descriptor.
    pub(crate) fn kick(&self) -> impl Fn() + Send + Sync + 'static {
        let (stopped, wake) = (self.stopped.clone(), self.wake.raiser());
        move || {
            stopped.store(true, Ordering::SeqCst);
            wake();
        }
    }
}

/// What a server does with its connections; the [`Acceptor`] calls it on the accepting thread.
pub(crate) trait Service: Send + 'static {
    /// A connection that was accepted.
    type Incoming;
    /// What the owner keeps of a connection that is served.
    type Handle: Send + 'static;

    /// The next connection; `None` after the kick. Blocks; the kick interrupts it.
    fn accept(&self) -> io::Result<Option<Self::Incoming>>;

    /// Who is told of connections that are not served, and of what is wrong with accepting them.
    fn errors(&self) -> ErrorHandler;

    /// Where a connection comes from.
    fn origin(&self, incoming: &Self::Incoming) -> Origin;

    /// How a connection that has a place is served, or told that it has none.
    fn admit(&self, incoming: Self::Incoming, place: Place) -> Admitted<Self::Handle>;

    /// Ends a connection that is not even told. Must not block.
    fn refuse(&self, incoming: Self::Incoming);

    /// Has a connection that has a place served by a thread that serves many, where the service has one: it drops
    /// `leaving` when the connection is over, and what is given is for the owner. `open` connections are there already.
    ///
    /// # Errors
    /// Gives both back if the connection is to have a thread of its own; so it always is by default.
    fn hand_over(
        &self,
        incoming: Self::Incoming,
        _open: usize,
        leaving: Leaving,
    ) -> Result<HandedOver<Self::Handle>, (Self::Incoming, Leaving)> {
        Err((incoming, leaving))
    }

    /// The moment, by the clock of the service.
    fn now(&self) -> Instant {
        Instant::now()
    }
}

/// The place of a connection among the others.
pub(crate) struct Place {
    /// Its number, for the names of its threads: at most five digits.
    pub(crate) number: u32,
    /// Why it has none, and is to be told so.
    pub(crate) refused: Option<NoPlace>,
    /// What its role tells of it.
    pub(crate) standing: Standing,
    /// Drains when the server stops to accept, cancels when it ends, and cancels for this connection alone with its
    /// kick.
    pub(crate) stop: Shutdown,
}

/// The places of a server, behind a lock that is held for moments; clones are the same.
#[derive(Debug, Clone)]
pub struct ServerPlaces(Arc<Mutex<Places>>);

impl ServerPlaces {
    fn new(limits: PlaceLimits) -> Self {
        Self(Arc::new(Mutex::new(Places::new(limits))))
    }

    /// How many are taken, and who had none.
    pub fn counts(&self) -> PlaceCounts {
        lock(&self.0).counts()
    }

    /// Brings the metrics of these names up to date: a gauge of the connections by state, and a counter of those that
    /// had no place or have lost it by reason.
    ///
    /// # Panics
    /// As [`Metrics::counter`]: if a name is wrong.
    pub fn measure(&self, metrics: &Metrics, (open, refused): (&'static str, &'static str)) {
        let PlaceCounts { taken, strangers, refused: counted, .. } = self.counts();
        for (state, count) in [("known", taken - strangers), ("stranger", strangers)] {
            let help = "Connections of peers, by whether it is known whose they are.";
            metrics.gauge(open, help, &[("state", state)]).set(count);
        }
        for why in NoPlace::ALL {
            let help = "Connections that had no place or have lost it, by reason.";
            let counter = metrics.counter(refused, help, &[("reason", why.as_str())]);
            counter.raise(counted.get(&why).copied().unwrap_or(0));
        }
    }
}

/// Whether one connection is a stranger's; clones are the same.
#[derive(Debug, Clone)]
pub(crate) struct Standing {
    places: ServerPlaces,
    id: u64,
}

impl Standing {
    /// Of one that is about to be handed over.
    pub(crate) fn of(leaving: &Leaving) -> Self {
        Self { places: leaving.places.clone(), id: leaving.id }
    }

    /// Its role knows whose it is: it leaves the strangers' share, and no stranger pushes it out.
    pub(crate) fn known(&self) {
        lock(&self.places.0).known(self.id);
    }

    /// It is not known any more, as between two requests.
    pub(crate) fn stranger(&self) {
        lock(&self.places.0).stranger(self.id);
    }

    /// Whether it may wait as a stranger.
    pub(crate) fn may_wait(&self) -> bool {
        lock(&self.places.0).may_wait(self.id)
    }

    /// Counts why it is closed.
    pub(crate) fn closed(&self, why: NoPlace) {
        lock(&self.places.0).count(why);
    }
}

/// How a connection is served.
pub(crate) struct Admitted<H> {
    /// For the owner.
    pub(crate) handle: H,
    /// The name of its thread.
    pub(crate) thread_name: String,
    /// What interrupts it beside the cancel of its stop signal.
    pub(crate) kick: Box<dyn Fn() + Send + Sync>,
    /// What its thread runs.
    pub(crate) serve: Box<dyn FnOnce() + Send>,
}

/// A connection that is served by a thread that serves many.
pub(crate) struct HandedOver<H> {
    /// For the owner.
    pub(crate) handle: H,
    /// What interrupts it, as [`Admitted::kick`].
    pub(crate) kick: Kick,
}

/// How long a failed `accept` counts as trouble. It is tried again each [`AFTER_FAILURE`], so what lasts is known for
/// as long as it does, and the first try that waits for a connection instead ends it, whether one comes or not.
const TROUBLE_TIME: Duration = Duration::from_secs(1);

/// Whether a server accepts connections; may outlive it. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct AcceptState(Weak<LastFailure>);

/// When `accept` has failed the last time, and how; its accepting thread holds it.
type LastFailure = Mutex<Option<(Instant, String)>>;

impl AcceptState {
    /// Why nobody is accepted `now`, if that is so: each try has failed, or the thread has ended.
    pub fn trouble(&self, now: Instant) -> Option<String> {
        let Some(last) = self.0.upgrade() else { return Some("nobody accepts connections any more".to_owned()) };
        let last = lock(&last);
        let lasts = last.as_ref().filter(|(at, _)| now.saturating_duration_since(*at) < TROUBLE_TIME);
        lasts.map(|(_, why)| format!("cannot accept connections: {why}"))
    }
}

/// The threads of one server: one that accepts, one for each connection.
pub(crate) struct Acceptor<H> {
    accept: Option<Thread<()>>,
    state: AcceptState,
    kick: Kick,
    stop: Shutdown,
    open: Open<H>,
    places: ServerPlaces,
}

type Open<H> = Arc<Mutex<HashMap<u64, (H, ServedBy)>>>;

/// Who serves a connection.
enum ServedBy {
    /// A thread of its own.
    Thread(Thread<()>),
    /// One that serves others as well; this interrupts the connection alone.
    Many(Kick),
}

impl ServedBy {
    fn kick(&self) {
        match self {
            Self::Thread(thread) => thread.kick(),
            Self::Many(kick) => kick.kick(),
        }
    }

    fn thread(self) -> Option<Thread<()>> {
        match self {
            Self::Thread(thread) => Some(thread),
            Self::Many(_) => None,
        }
    }
}

impl<H> fmt::Debug for Acceptor<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Acceptor({} connections)", lock(&self.open).len())
    }
}

impl<H: Send + 'static> Acceptor<H> {
    /// Starts to accept, on a thread of that name; `kick` interrupts [`Service::accept`].
    pub(crate) fn start<S: Service<Handle = H>>(
        thread: String,
        limits: PlaceLimits,
        kick: impl Fn() + Send + Sync + 'static,
        service: S,
    ) -> Self {
        let (stop, open, places) = (Shutdown::new(), Open::default(), ServerPlaces::new(limits));
        let signal = stop.clone();
        let kick = Kick::new("the listener's event", move || {
            signal.drain();
            kick();
        });
        let failed = Arc::<LastFailure>::default();
        let state = AcceptState(Arc::downgrade(&failed));
        let accepting = Accepting {
            name: thread.clone(),
            errors: service.errors(),
            service,
            failed,
            places: places.clone(),
            ended: Arc::default(),
            stop: stop.clone(),
            open: open.clone(),
            count: 0,
        };
        let accept = spawn(thread, kick.clone(), move || accepting.run());
        Self { accept: Some(accept), state, kick, stop, open, places }
    }

    /// Whether it accepts.
    pub(crate) fn state(&self) -> AcceptState {
        self.state.clone()
    }

    /// Who has a place.
    pub(crate) fn places(&self) -> ServerPlaces {
        self.places.clone()
    }

    /// Accepts no more connections; those that are open see the drain of their stop signal.
    pub(crate) fn stop_accepting(&mut self, step: &mut Step) {
        self.kick.kick();
        if let Some(thread) = self.accept.take() {
            step.join(thread);
        }
    }

    /// Cancels the stop signal of every connection; no thread is kicked.
    pub(crate) fn cancel(&self) {
        self.stop.cancel();
    }

    /// What looks at the open connections.
    pub(crate) fn opened(&self) -> Opened<H> {
        Opened(self.open.clone())
    }

    /// Joins the thread of every connection; those that are not done within the step's budget are kicked.
    pub(crate) fn join(&mut self, step: &mut Step) {
        let open: Vec<_> = lock(&self.open).drain().filter_map(|(_, (_, by))| by.thread()).collect();
        step.join_all(open);
    }
}

/// Looks at the open connections of an acceptor; may outlive it. Clones are the same.
pub(crate) struct Opened<H>(Open<H>);

impl<H> Clone for Opened<H> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<H> Opened<H> {
    /// Calls `visit` with the handle of each connection. No connection comes or ends meanwhile.
    pub(crate) fn each(&self, visit: impl FnMut(&H)) {
        lock(&self.0).values().map(|(handle, _)| handle).for_each(visit);
    }
}

impl<H> Drop for Acceptor<H> {
    fn drop(&mut self) {
        self.kick.kick();
        self.stop.cancel();
        stop_dropped(|step| {
            if let Some(thread) = self.accept.take() {
                step.join(thread);
            }
            let open: Vec<_> = lock(&self.open).drain().map(|(_, (_, by))| by).collect();
            open.iter().for_each(ServedBy::kick);
            step.join_all(open.into_iter().filter_map(ServedBy::thread));
        });
    }
}

struct Accepting<S: Service> {
    name: String,
    errors: ErrorHandler,
    service: S,
    failed: Arc<LastFailure>,
    places: ServerPlaces,
    ended: Ended,
    stop: Shutdown,
    open: Open<S::Handle>,
    count: u64,
}

/// The connections whose threads end and are to be joined.
type Ended = Arc<Mutex<Vec<u64>>>;

/// Says so when the thread of a connection ends, or was never there.
pub(crate) struct Leaving {
    places: ServerPlaces,
    ended: Ended,
    id: u64,
}

impl Drop for Leaving {
    fn drop(&mut self) {
        lock(&self.places.0).left(self.id);
        lock(&self.ended).push(self.id);
    }
}

impl<S: Service> Accepting<S> {
    fn run(mut self) {
        loop {
            match self.service.accept() {
                Ok(Some(incoming)) => self.admit(incoming),
                Ok(None) => return,
                Err(error) => {
                    *lock(&self.failed) = Some((Instant::now(), error.to_string()));
                    self.trouble(ErrorClass::Reconnect, &format_args!("cannot accept, tries again: {error}"));
                    if self.stop.wait(AFTER_FAILURE) {
                        return;
                    }
                }
            }
        }
    }

    fn trouble(&self, class: ErrorClass, what: &dyn fmt::Display) {
        self.errors.report_of(class, "accept", &self.name, &format_args!("{}: {what}", self.name));
    }

    /// Starts the thread of a new connection, and joins those that have ended since the last one came.
    fn admit(&mut self, incoming: S::Incoming) {
        for id in std::mem::take(&mut *lock(&self.ended)) {
            let ended = lock(&self.open).remove(&id);
            drop(ended);
        }
        self.count += 1;
        let (id, origin) = (self.count, self.service.origin(&incoming));
        let entry = lock(&self.places.0).enter(id, origin.clone(), self.service.now());
        let refused = match entry {
            Entry::Taken => None,
            Entry::InPlaceOf(oldest) => {
                let open = lock(&self.open);
                if let Some((_, by)) = open.get(&oldest) {
                    by.kick();
                }
                drop(open);
                let what = "the places of those who have not said who they are are taken: the oldest of them goes";
                self.trouble(ErrorClass::Rejected, &what);
                None
            }
            Entry::Refused(why) => {
                let what = format_args!("a connection from {origin} is turned away: {}", why.as_str());
                self.trouble(ErrorClass::Rejected, &what);
                if !lock(&self.places.0).turn_away(id) {
                    return self.service.refuse(incoming);
                }
                Some(why)
            }
        };
        let mut leaving = Leaving { places: self.places.clone(), ended: self.ended.clone(), id };
        let mut incoming = incoming;
        if refused.is_none() {
            // Before it is handed over, so that it is not found to have left before it is there.
            let mut open = lock(&self.open);
            match self.service.hand_over(incoming, open.len(), leaving) {
                Ok(HandedOver { handle, kick }) => {
                    open.insert(id, (handle, ServedBy::Many(kick)));
                    return;
                }
                Err(back) => (incoming, leaving) = back,
            }
        }
        // Its own, so that kicking one connection does not stop the server.
        let stop = self.stop.child();
        let standing = Standing { places: self.places.clone(), id };
        let place = Place { number: (id % 100_000) as u32, refused, standing, stop: stop.clone() };
        let admitted = self.service.admit(incoming, place);
        let (interrupt, serve) = (admitted.kick, admitted.serve);
        let kick = Kick::new("stop signal and connection", move || {
            stop.cancel();
            interrupt();
        });
        let mut open = lock(&self.open);
        let thread = try_spawn(admitted.thread_name, kick, move || {
            let _leaving = leaving;
            serve();
        });
        match thread {
            Ok(thread) => drop(open.insert(id, (admitted.handle, ServedBy::Thread(thread)))),
            Err(none) => {
                drop(open);
                lock(&self.places.0).count(NoPlace::Thread);
                self.trouble(ErrorClass::Rejected, &format_args!("a connection from {origin} is closed: {none}"));
            }
        }
    }
}

#[cfg(test)]
mod tests;
