//! The accepting side: one thread that accepts, two for each connection as long as they are few, one poll thread for
//! all further ones, and an owner that closes them all.
//!
//! Owner: the [`Server`]. Blocks in: `accept`; each connection's thread in its handshake, then in `read`.
//! Kick: the listener's event; a connection's thread has its connection's kick, and before that the signal
//! that the handshake listens to. Ends: [`Server::stop_accepting`], then [`Server::stop`]; or its drop.

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

pub use super::events::{HandshakeCheck, ServerEvent, ServerSink};
use super::heartbeat::LivenessConfig;
use super::outbox::OutboxLimits;
use super::poll::{Arrival as PolledArrival, Poll, PollConfig};
use super::recorder::{Listed, Recorder};
use super::session::{self, Arrival, SessionConfig, SessionEnd, SessionHandle};
use crate::base::ids::SessionId;
use crate::base::limits::{
    HANDSHAKE_TIME, HANDSHAKES, SERVER_CONNECTIONS, STRANGER_OUTBOX_BYTES, STRANGER_TIME, STRANGERS,
    STRANGERS_OF_ADDRESS,
};
use crate::base::lock::lock;
use crate::base::rng::Rng;
use crate::base::shutdown::{Level, Shutdown};
use crate::base::stop::{Step, StopReport, stop_alone};
use crate::base::thread::Kick;
use crate::base::timer::TimerHandle;
pub use crate::net::accept::{AcceptState, ServerPlaces};
use crate::net::accept::{Acceptor, Admitted, HandedOver, Leaving, Opened, Place, Service, Standing};
use crate::net::admission::{NoPlace, Origin};
pub use crate::net::admission::{PlaceCounts, PlaceLimits};
use crate::net::rate::Rate;
use crate::ops::errors::{ErrorClass, ErrorHandler};
use crate::ops::health::Health;
use crate::ops::metrics::Metrics;
use crate::transport::{
    Connection, HandshakeRequest, IntakeLimits, Listener, Pending, ReceivingMemory, Refusal, SocketLimits,
    TransportError,
};

/// Connections over the limit that are answered with HTTP 503, each by a thread; still further ones are just closed.
const REFUSALS: usize = 16;

/// When a connection that found no place may be tried again: the strangers that have the places now are served, or
/// closed, within seconds.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// The memory for messages that peers have begun, in largest ones: two of honest peers, and as many that do not end.
const RECEIVING_MESSAGES: usize = 4;

/// How much later than its role a server itself closes who has not said who it is.
const ROLE_TIME: Duration = Duration::from_secs(2);

/// A server that stops closes its connections one by one, so that not all of its peers dial again at once: this much
/// time for each of them, and at most so much in all.
const CLOSE_EACH: Duration = Duration::from_millis(2);
const CLOSE_SPREAD: Duration = Duration::from_secs(1);

/// Connections of a server that have two threads each. Those beyond are polled.
pub const THREADED_CONNECTIONS: usize = 64;

/// Threads that call the role with what polled connections have sent: more than most machines that serve many have
/// processors for it, so that some may wait for the role.
pub const POLL_WORKERS: usize = 4;

/// Close code of a server that stops (RFC 6455, section 7.4.1).
const GOING_AWAY: u16 = 1001;

/// What a server needs besides its listener.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// Prefix of the thread names, at most 3 bytes, as `fac`.
    pub name: &'static str,
    /// Limits of each socket.
    pub socket: SocketLimits,
    /// Connections at a time, for all, strangers and those of one address; more are refused with HTTP 503 or 429.
    pub places: PlaceLimits,
    /// Connections at a time that have two threads each, which spares each message the way through another thread;
    /// further ones share a poll thread and its workers. Over a transport that cannot be polled, all have threads.
    pub threaded: usize,
    /// Threads that call the role for polled connections.
    pub workers: usize,
    /// Time for one handshake.
    pub handshake_time: Duration,
    /// What a connection may until the role calls [`SessionHandle::known`]; `None` if the server trusts everybody, or
    /// if its peers have said in their handshake who they are.
    pub strangers: Option<StrangerLimits>,
    /// Bytes of the messages that all peers have begun and not ended, beside 64 KiB of each; who needs more makes the
    /// connection of the oldest such message go, with Close 1013.
    pub receiving_bytes: usize,
    /// When to ping and when to give up.
    pub liveness: LivenessConfig,
    /// Bounds of each connection's outbox.
    pub outbox: OutboxLimits,
    /// Where the threads that accept and poll promise progress, as the parts `accept` and `poll`.
    pub health: Health,
    /// Is told of connections that are not served, and of what is wrong with accepting them.
    pub errors: ErrorHandler,
}

/// What a connection may as long as it is not known whose it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StrangerLimits {
    /// Time from its acceptance until it has to be known.
    pub time: Duration,
    /// What it may send.
    pub intake: IntakeLimits,
    /// Bytes that may wait in its outbox.
    pub outbox_bytes: usize,
}

impl Default for StrangerLimits {
    fn default() -> Self {
        Self::of_role(STRANGER_TIME)
    }
}

impl StrangerLimits {
    /// Of a server whose role itself turns away, after this time, who has not said who it is, and says why better: here
    /// it has a little longer, for a role that is busy.
    pub fn of_role(time: Duration) -> Self {
        Self { time: time + ROLE_TIME, intake: IntakeLimits::DEFAULT, outbox_bytes: STRANGER_OUTBOX_BYTES }
    }
}

impl ServerConfig {
    /// The default numbers, for a server that knows its peers by their handshakes.
    pub fn new(name: &'static str) -> Self {
        Self {
            name,
            socket: SocketLimits::default(),
            places: PlaceLimits {
                total: SERVER_CONNECTIONS,
                strangers: STRANGERS,
                address: STRANGERS_OF_ADDRESS,
                connects: Rate::new(HANDSHAKES.0, HANDSHAKES.1),
                turned_away: REFUSALS,
            },
            threaded: THREADED_CONNECTIONS,
            workers: POLL_WORKERS,
            handshake_time: HANDSHAKE_TIME,
            strangers: None,
            receiving_bytes: RECEIVING_MESSAGES * SocketLimits::default().message_bytes,
            liveness: LivenessConfig::default(),
            outbox: OutboxLimits::default(),
            health: Health::new(),
            errors: ErrorHandler::default(),
        }
    }
}

/// A running server. When dropped, it breaks all connections and joins their threads.
pub struct Server {
    acceptor: Acceptor<SessionHandle>,
    /// Behind the acceptor: when dropped, no connection comes any more.
    poll: SharedPoll,
    timer: TimerHandle,
    _recorded: Listed,
}

/// Started with the first connection that is polled.
type SharedPoll = Arc<Mutex<Option<Poll>>>;

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Server").field(&self.acceptor).finish()
    }
}

impl Server {
    /// Starts to accept.
    pub fn start(
        config: ServerConfig,
        mut listener: Box<dyn Listener>,
        timer: TimerHandle,
        check: HandshakeCheck,
        sink: ServerSink,
    ) -> Self {
        listener.watch(&config.health);
        let kick = listener.kick();
        let thread = format!("{}-accept", config.name);
        let mut places = config.places;
        if config.strangers.is_none() {
            (places.strangers, places.address) = (places.total, places.total);
        }
        let recorder = Recorder::new(&thread, |_| None);
        let (recorded_as, sink) = (recorder.begin(), recorded(recorder, sink));
        let memory = ReceivingMemory::new(config.receiving_bytes);
        let poll = SharedPoll::default();
        let accepting = Accepting { config, listener, timer: timer.clone(), check, sink, memory, poll: poll.clone() };
        let acceptor = Acceptor::start(thread, places, move || kick.kick(), accepting);
        Self { timer, poll, acceptor, _recorded: recorded_as }
    }

    /// Whether it accepts connections.
    pub fn accept_state(&self) -> AcceptState {
        self.acceptor.state()
    }

    /// Who has a place; may outlive the server.
    pub fn places(&self) -> ServerPlaces {
        self.acceptor.places()
    }

    /// What is measured of the open connections; may outlive the server.
    pub fn connections(&self) -> ServerConnections {
        ServerConnections(self.acceptor.opened())
    }

    /// Accepts no more connections; those that are open stay.
    pub fn stop_accepting(&mut self, step: &mut Step) {
        self.acceptor.stop_accepting(step);
    }

    /// Stops it alone, within `budget`, as [`Server::stop_in`] does.
    pub fn stop(self, budget: Duration) -> StopReport {
        stop_alone("server", budget, |step| self.stop_in(step, "the server is stopping"))
    }

    /// Closes every connection with 1001 once its outbox is drained, in parallel, each a random moment later, and joins
    /// their threads.
    pub fn stop_in(mut self, step: &mut Step, reason: &str) {
        self.stop_accepting(step);
        self.acceptor.cancel();
        let poll = lock(&self.poll).take();
        if let Some(poll) = &poll {
            poll.end_handshakes();
        }
        let (now, left) = (self.timer.clock().now(), step.left());
        let mut handles = Vec::new();
        self.acceptor.opened().each(|handle| handles.push(handle.clone()));
        let mut rng = Rng::from_entropy();
        let delays = close_delays(handles.len(), &mut rng);
        let alarms: Vec<_> = handles
            .into_iter()
            .zip(delays)
            .map(|(handle, delay)| {
                let reason = reason.to_owned();
                let delay = delay.min(left);
                self.timer.at(now + delay, move || handle.close(GOING_AWAY, &reason, left - delay))
            })
            .collect();
        self.acceptor.join(step);
        if let Some(poll) = poll {
            poll.stop_in(step);
        }
        drop(alarms);
    }
}

/// The same sink, with the comings and goings of a server's connections put down.
fn recorded(recorder: Recorder, sink: ServerSink) -> ServerSink {
    Arc::new(move |event| {
        match &event {
            ServerEvent::Opened { id, peer, .. } => recorder.event(format_args!("{id} of {peer} is open")),
            ServerEvent::Closed { id, end } => recorder.event(format_args!("{id} has ended: {end}")),
            ServerEvent::Text { .. } => {}
        }
        sink(event);
    })
}

/// What is measured of the open connections of a server; clones are the same.
#[derive(Clone)]
pub struct ServerConnections(Opened<SessionHandle>);

impl fmt::Debug for ServerConnections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ServerConnections")
    }
}

impl ServerConnections {
    /// The longest time that the last ping of an open connection took; `None` if none has answered one. Connections are
    /// pinged when they are silent.
    pub fn slowest_round_trip(&self) -> Option<Duration> {
        let mut slowest = None;
        self.0.each(|handle| slowest = slowest.max(handle.round_trip()));
        slowest
    }

    /// Brings the gauge of this name up to date: 0 if nothing is known.
    ///
    /// # Panics
    /// As [`Metrics::gauge`]: if the name is wrong.
    pub fn measure(&self, metrics: &Metrics, round_trip: &'static str) {
        let help = "The longest time that the last ping of an open connection took; silent ones are pinged.";
        let slowest = self.slowest_round_trip().unwrap_or_default();
        metrics.gauge(round_trip, help, &[]).set_to(slowest.as_secs_f64());
    }
}

/// After which time each of so many connections is closed.
fn close_delays(connections: usize, rng: &mut Rng) -> impl Iterator<Item = Duration> {
    let spread = CLOSE_EACH.saturating_mul(u32::try_from(connections).unwrap_or(u32::MAX)).min(CLOSE_SPREAD);
    (0..connections).map(move |_| spread.mul_f64(rng.unit()))
}

struct Accepting {
    config: ServerConfig,
    listener: Box<dyn Listener>,
    timer: TimerHandle,
    check: HandshakeCheck,
    sink: ServerSink,
    memory: ReceivingMemory,
    poll: SharedPoll,
}

impl Service for Accepting {
    type Incoming = Box<dyn Pending>;
    type Handle = SessionHandle;

    fn accept(&self) -> io::Result<Option<Box<dyn Pending>>> {
        match self.listener.accept() {
            Ok(pending) => Ok(Some(pending)),
            Err(error) if error.is_stopped() => Ok(None),
            Err(error) => Err(io::Error::other(error)),
        }
    }

    fn errors(&self) -> ErrorHandler {
        self.config.errors.clone()
    }

    fn origin(&self, pending: &Box<dyn Pending>) -> Origin {
        Origin::of(&pending.peer())
    }

    fn now(&self) -> Instant {
        self.timer.clock().now()
    }

    fn admit(&self, pending: Box<dyn Pending>, place: Place) -> Admitted<SessionHandle> {
        let Place { number, refused, standing, stop } = place;
        let name = self.config.name;
        let refusal = refused.map(|why| self.refusal(why));
        let handle = self.handle(standing.clone());
        let broken = Shutdown::new();
        let serve = Serve {
            id: SessionId::fresh(),
            handle: handle.clone(),
            config: self.config.clone(),
            session: SessionConfig {
                writer_name: format!("{name}-wr-{number}"),
                liveness: self.config.liveness,
                beat: None,
            },
            check: self.check.clone(),
            sink: self.sink.clone(),
            stop,
            broken: broken.clone(),
            refusal,
            accepted: self.now(),
            memory: self.memory.clone(),
            standing,
        };
        Admitted {
            handle,
            thread_name: format!("{name}-rd-{number}"),
            kick: Box::new(move || broken.cancel()),
            serve: Box::new(move || serve.run(pending)),
        }
    }

    fn refuse(&self, _: Box<dyn Pending>) {}

    fn hand_over(
        &self,
        pending: Box<dyn Pending>,
        open: usize,
        leaving: Leaving,
    ) -> Result<HandedOver<SessionHandle>, (Box<dyn Pending>, Leaving)> {
        if open < self.config.threaded {
            return Err((pending, leaving));
        }
        let polled = match pending.polled(&self.config.socket) {
            Ok(polled) => polled,
            Err(pending) => return Err((pending, leaving)),
        };
        let standing = Standing::of(&leaving);
        let (id, handle) = (SessionId::fresh(), self.handle(standing.clone()));
        let (meant, accepted, memory, strangers) =
            (handle.clone(), self.now(), self.memory.clone(), self.config.strangers);
        let opened = Box::new(move |connection: &Connection| {
            opened(connection, &meant, (strangers, accepted), &memory);
        });
        let mut poll = lock(&self.poll);
        let running = match poll.take() {
            Some(running) => Ok(running),
            None => self.start_poll(),
        };
        let kick = match running {
            Ok(running) => {
                let kick = running.kick_of(id);
                let place = Box::new(move |end: &SessionEnd| {
                    // Kept until the connection is over.
                    let _ = &leaving;
                    if let SessionEnd::Broken(TransportError::Crowded) = end {
                        standing.closed(NoPlace::Memory);
                    }
                });
                running.add(PolledArrival { id, handle: handle.clone(), polled, refusal: None, opened, place });
                *poll = Some(running);
                Kick::new("its poll's event", kick)
            }
            Err(error) => {
                let what = format_args!("{}: a connection is closed, it cannot be polled: {error}", self.config.name);
                self.config.errors.report_of(ErrorClass::Reconnect, "poll", self.config.name, &what);
                Kick::dropped("nothing")
            }
        };
        Ok(HandedOver { handle, kick })
    }
}

/// A connection of a server begins: what it may is limited until the role knows whose it is.
fn opened(
    connection: &Connection,
    handle: &SessionHandle,
    (strangers, accepted): (Option<StrangerLimits>, Instant),
    memory: &ReceivingMemory,
) {
    match strangers {
        Some(StrangerLimits { time, intake, .. }) => {
            connection.intake.stranger(intake);
            handle.known_by(accepted + time, connection.intake.clone());
        }
        None => handle.known(),
    }
    connection.intake.take_from(memory);
}

impl Accepting {
    /// For the role.
    fn handle(&self, standing: Standing) -> SessionHandle {
        let outbox = self.config.outbox;
        let bytes = self.config.strangers.map_or(outbox.bytes, |strangers| strangers.outbox_bytes);
        SessionHandle::stranger(outbox, bytes, self.timer.clone(), standing)
    }

    fn start_poll(&self) -> io::Result<Poll> {
        let ServerConfig { name, workers, handshake_time, liveness, .. } = self.config;
        let (health, errors) = (self.config.health.clone(), self.config.errors.clone());
        let config = PollConfig { name, workers, handshake_time, liveness, health, errors };
        Poll::start(config, self.timer.clone(), self.check.clone(), self.sink.clone())
    }

    /// What a connection without a place is told.
    fn refusal(&self, why: NoPlace) -> Refusal {
        let PlaceLimits { address, connects: Rate { count, period }, .. } = self.config.places;
        let (status, body) = match why {
            NoPlace::Rate => (429, format!("more than {count} connections of one address in {period:?}")),
            NoPlace::Address => (429, format!("{address} connections of your address have not said who they are")),
            _ => (503, "too many connections".to_owned()),
        };
        Refusal { status, body, retry_after: Some(RETRY_AFTER) }
    }
}

struct Serve {
    id: SessionId,
    handle: SessionHandle,
    config: ServerConfig,
    session: SessionConfig,
    check: HandshakeCheck,
    sink: ServerSink,
    /// Ends the handshake at cancel.
    stop: Shutdown,
    /// Breaks the connection at cancel, whatever its thread does then.
    broken: Shutdown,
    /// What it is told instead.
    refusal: Option<Refusal>,
    accepted: Instant,
    memory: ReceivingMemory,
    standing: Standing,
}

impl Serve {
    fn run(self, pending: Box<dyn Pending>) {
        let peer = pending.peer().to_string();
        let deadline = Instant::now() + self.config.handshake_time;
        let mut decide = |request: &HandshakeRequest| match &self.refusal {
            Some(refusal) => Err(refusal.clone()),
            None => (self.check)(request),
        };
        let accepted = pending.handshake(&self.config.socket, deadline, &self.stop, Level::Cancel, &mut decide);
        let (connection, request) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                log::debug!("{}: no handshake with {peer}: {error}", self.config.name);
                return;
            }
        };
        let Self { id, handle, session, sink, broken, config, accepted, memory, standing, .. } = self;
        let kick = connection.kick.clone();
        let _kick = broken.on(Level::Cancel, move || kick.kick());
        opened(&connection, &handle, (config.strangers, accepted), &memory);
        sink(ServerEvent::Opened { id, handle: handle.clone(), request, peer });
        let end = session::run(connection, &handle, &session, |arrival| {
            if let Arrival::Text(text) = arrival {
                sink(ServerEvent::Text { id, text });
            }
        });
        if let SessionEnd::Broken(TransportError::Crowded) = end {
            standing.closed(NoPlace::Memory);
        }
        sink(ServerEvent::Closed { id, end });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_connections_are_closed_at_once_and_many_over_a_second() {
        let seed = Rng::from_entropy().next_u64();
        println!("seed {seed}");
        let closed = |connections| close_delays(connections, &mut Rng::new(seed)).collect::<Vec<_>>();
        assert!(closed(10).iter().all(|delay| *delay < Duration::from_millis(20)));
        let mut many = closed(10_000);
        assert!(many.iter().all(|delay| *delay < CLOSE_SPREAD));
        many.sort_unstable();
        let gaps = many.windows(2).map(|pair| pair[1] - pair[0]);
        assert!(gaps.max().unwrap() < CLOSE_SPREAD / 50, "no crowd and no pause");
    }
}
