//! A client's connection that comes back: dial, authenticate, run a session, back off, for ever.
//!
//! [`Link::new`] gives what others hold of a link before it runs, so that the role's code on the link's thread has it,
//! too. The role gives the link its part of the authentication, and a classifier that reads each text: an answer is
//! matched here with the message that it is about, anything else goes to the role as it was read.
//!
//! Owner: the [`Link`]. Its one thread dials, authenticates and then reads; the session's writer is the second.
//! Blocks in: dial, read, the back-off wait, the role's code. Kick: the link's stop signal (dial, wait) and the
//! connection's kick (read). Ends: after [`Link::stop`], when the outbox is drained and closed or the deadline has
//! passed; at once when the [`Link`] is dropped.

mod attempt;
mod endpoints;
mod role;

use std::fmt;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

pub use attempt::authenticate;
pub use role::{Authenticate, Authenticated, LinkConfig, LinkEvent, LinkState, NoConnection, Refused, Text};

use attempt::{Disconnection, is_normal_close, is_refusal};
use endpoints::Endpoints;

use super::outbox::{About, Answered, Full, Outgoing};
use super::recorder::Recorder;
use super::session::{self, Arrival, SessionConfig, SessionEnd, SessionHandle};
use crate::base::backoff::Backoff;
use crate::base::lock::lock;
use crate::base::rng::Rng;
use crate::base::shutdown::{Level, Shutdown};
use crate::base::stop::{Step, StopReport, Stopping, stop_dropped};
use crate::base::thread::{Kick, Thread, spawn};
use crate::base::timer::{Alarm, TimerHandle};
use crate::base::waits::waiting;
use crate::ops::redact::secrets;
use crate::transport::{Connection, DialRequest, Dialer, Utf8Bytes};

/// Answers that are matched in one go; they are some 60 bytes each, so a read buffer holds about as many.
const ANSWERS_AT_ONCE: usize = 128;

/// What others hold of a link: cheap to clone, may outlive it.
#[derive(Debug, Clone)]
pub struct LinkHandle {
    session: SessionHandle,
    state: Arc<Mutex<LinkState>>,
    urls: Arc<[String]>,
    /// Which of them is in use.
    endpoint: Arc<AtomicUsize>,
}

impl LinkHandle {
    /// Puts a message into the outbox, connected or not; never blocks.
    ///
    /// # Errors
    /// [`Full`], with the message.
    pub fn send(&self, message: Outgoing) -> Result<(), Full> {
        self.session.send(message)
    }

    /// See [`SessionHandle::send_all`].
    pub fn send_all(&self, messages: impl IntoIterator<Item = Outgoing>) -> Vec<Full> {
        self.session.send_all(messages)
    }

    /// Where the link stands.
    pub fn state(&self) -> LinkState {
        lock(&self.state).clone()
    }

    /// The address that is in use, or is dialled next, and its number among those of the link, from 1.
    pub fn endpoint(&self) -> (usize, &str) {
        let at = self.endpoint.load(Ordering::Relaxed);
        (at + 1, &self.urls[at])
    }

    /// See [`SessionHandle::round_trip`].
    pub fn round_trip(&self) -> Option<Duration> {
        self.session.round_trip()
    }

    /// See [`SessionHandle::clock_skew`].
    pub fn clock_skew(&self) -> Option<i64> {
        self.session.clock_skew()
    }

    /// The texts that wait to be written: after the link's stop all that are unsent.
    pub fn queued(&self) -> Vec<Utf8Bytes> {
        self.session.queued()
    }

    /// Messages accepted from us and not yet by the peer.
    pub fn unsent(&self) -> usize {
        self.session.unsent()
    }

    /// Bytes of the messages accepted from us and not yet by the peer.
    pub fn unsent_bytes(&self) -> usize {
        self.session.unsent_bytes()
    }

    /// Breaks the present connection; the link dials again.
    pub fn kick(&self) {
        self.session.kick();
    }
}

/// A link that does not run yet. Its handle takes messages all the same.
#[must_use = "a link does nothing until it is started"]
pub struct IdleLink {
    config: LinkConfig,
    dialer: Arc<dyn Dialer>,
    timer: TimerHandle,
    handle: LinkHandle,
    recorder: Recorder,
    /// See [`IdleLink::begin_on`].
    open: Option<(Connection, Utf8Bytes)>,
}

impl fmt::Debug for IdleLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdleLink").field("handle", &self.handle).finish_non_exhaustive()
    }
}

impl IdleLink {
    /// Begins on a connection that has authenticated, with a text that has come there, and dials once that is lost.
    pub fn begin_on(self, connection: Connection, first: Utf8Bytes) -> Self {
        Self { open: Some((connection, first)), ..self }
    }

    /// Starts the link's thread. The role's code runs on that thread: `authenticate` for each new connection,
    /// `classify` for each text after that, `sink` for each event. While it blocks, the peer is slowed by TCP.
    ///
    /// The link lives until [`Link::stop`].
    pub fn start<M, A>(
        self,
        authenticate: Option<Box<dyn Authenticate>>,
        classify: impl FnMut(Utf8Bytes) -> Text<M, A> + Send + 'static,
        sink: impl FnMut(LinkEvent<M, A>) + Send + 'static,
    ) -> Link
    where
        M: 'static,
        A: Send + 'static,
    {
        let Self { config, dialer, timer, handle, open, recorder } = self;
        let stop = Shutdown::new();
        let alarms = timer.clone();
        let (kick_stop, kick_handle) = (stop.clone(), handle.clone());
        let kick = Kick::new("stop signal and connection", move || {
            kick_stop.cancel();
            kick_handle.kick();
        });
        let name = format!("{}-rd", config.name);
        let recorded = recorder.begin();
        let receiver = Receiver { handle: handle.clone(), classify, sink, answers: Vec::new() };
        let stopped = stop.clone();
        let runner = Runner { handle: handle.clone(), stop: stopped, dialer, authenticate, timer, receiver, recorder };
        let thread = spawn(name, kick, move || {
            let _recorded = recorded;
            runner.run(&config, open)
        });
        Link { handle, stop, thread: Some(thread), timer: alarms, stop_alarm: None }
    }
}

/// A running link. Dropping it without [`Link::stop`] breaks the connection and joins its threads.
#[derive(Debug)]
pub struct Link {
    handle: LinkHandle,
    stop: Shutdown,
    /// `None` once stopped.
    thread: Option<Thread<Option<Connection>>>,
    timer: TimerHandle,
    stop_alarm: Option<Alarm>,
}

impl Link {
    /// A link and what others hold of it. Nothing runs before [`IdleLink::start`].
    #[expect(clippy::new_ret_no_self, reason = "a link exists only while it runs")]
    pub fn new(config: LinkConfig, dialer: Arc<dyn Dialer>, timer: TimerHandle) -> (LinkHandle, IdleLink) {
        let recorder = Recorder::new(&config.name, config.kind_of);
        let session = SessionHandle::recorded(config.outbox, timer.clone(), recorder.clone());
        let urls = std::iter::once(&config.url).chain(&config.fallbacks).cloned().collect();
        let state = Arc::new(Mutex::new(LinkState::Connecting));
        let handle = LinkHandle { session, state, urls, endpoint: Arc::default() };
        (handle.clone(), IdleLink { config, dialer, timer, handle, open: None, recorder })
    }

    /// What others hold.
    pub fn handle(&self) -> LinkHandle {
        self.handle.clone()
    }

    /// Takes no more messages and returns at once.
    ///
    /// What is inside is still sent and answered, within `time` of the timer's clock, over a new connection if need be.
    /// With nothing inside, a link without a connection ends now.
    pub fn request_stop(&mut self, time: Duration) {
        self.handle.session.close(1000, "", time);
        let stop = self.stop.clone();
        if self.handle.unsent() == 0 {
            stop.drain();
        } else {
            self.stop_alarm = Some(self.timer.at(self.timer.clock().now() + time, move || stop.cancel()));
        }
    }

    /// Joins a link that was given its last text ([`Text::Last`]); gives its open connection, which has sent all that
    /// was accepted before what that text answers. `None` if it was lost at the same time.
    pub fn detach(mut self, step: &mut Step) -> Option<Connection> {
        self.thread.take().and_then(|thread| step.join(thread)).flatten()
    }

    /// Stops it alone, within `budget`, as [`Link::stop_in`] does; what the peer has not
    /// accepted is counted.
    pub fn stop(self, budget: Duration) -> StopReport {
        let mut stopping = Stopping::within(budget);
        let unsent = stopping.step("link", budget, |step| self.stop_in(step));
        stopping.unsent(unsent);
        stopping.finish()
    }

    /// Stops and joins; gives the number of messages that the peer has not accepted.
    pub fn stop_in(mut self, step: &mut Step) -> usize {
        self.request_stop(step.left());
        if let Some(thread) = self.thread.take() {
            step.join(thread);
        }
        self.handle.unsent()
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        thread.kick();
        stop_dropped(|step| {
            step.join(thread);
        });
    }
}

struct StoppedOnDrop(Arc<Mutex<LinkState>>);

impl Drop for StoppedOnDrop {
    fn drop(&mut self) {
        *lock(&self.0) = LinkState::Stopped;
    }
}

/// What reads the texts of a connection, for the role.
struct Receiver<C, F, A> {
    handle: LinkHandle,
    classify: C,
    sink: F,
    /// Those that came together, and are matched together.
    answers: Vec<(About, A)>,
}

impl<M, A, C, F> Receiver<C, F, A>
where
    C: FnMut(Utf8Bytes) -> Text<M, A>,
    F: FnMut(LinkEvent<M, A>),
{
    /// Says whether the link goes on.
    fn text(&mut self, text: Utf8Bytes) -> ControlFlow<()> {
        match (self.classify)(text) {
            Text::Message(message) => (self.sink)(LinkEvent::Message(message)),
            Text::Last(message) => {
                (self.sink)(LinkEvent::Message(message));
                return ControlFlow::Break(());
            }
            Text::Answer(about, answer) => {
                self.answers.push((about, answer));
                if self.answers.len() >= ANSWERS_AT_ONCE {
                    self.match_answers();
                }
            }
        }
        ControlFlow::Continue(())
    }

    fn match_answers(&mut self) {
        if self.answers.is_empty() {
            return;
        }
        let answered = self.handle.session.answered(self.answers.drain(..));
        if let Some(Answered::Unclear(_)) = answered.last() {
            self.handle.kick();
        }
        if !answered.is_empty() {
            (self.sink)(LinkEvent::Answered(answered));
        }
    }
}

struct Runner<C, F, A> {
    handle: LinkHandle,
    stop: Shutdown,
    dialer: Arc<dyn Dialer>,
    authenticate: Option<Box<dyn Authenticate>>,
    timer: TimerHandle,
    receiver: Receiver<C, F, A>,
    recorder: Recorder,
}

impl<M, A, C, F> Runner<C, F, A>
where
    C: FnMut(Utf8Bytes) -> Text<M, A>,
    F: FnMut(LinkEvent<M, A>),
{
    /// Gives the connection that it was to be left open, see [`Text::Last`].
    fn run(mut self, config: &LinkConfig, mut open: Option<(Connection, Utf8Bytes)>) -> Option<Connection> {
        // Also when the role's code panics, so that nobody takes the link for alive.
        let _stopped = StoppedOnDrop(self.handle.state.clone());
        let session_config = SessionConfig {
            writer_name: format!("{}-wr", config.name),
            liveness: config.liveness,
            beat: config.beat.clone(),
        };
        let mut backoff = Backoff::new(config.backoff);
        let mut endpoints = Endpoints::new(self.handle.urls.len());
        let mut rng = Rng::from_entropy();
        let clock = self.timer.clock().clone();
        while !self.is_done() {
            self.set(LinkState::Connecting);
            let connected = match open.take() {
                Some((connection, first)) => Ok((connection, Some(first))),
                None => self.connect(config),
            };
            let ended = match connected {
                Ok((connection, first)) => {
                    if self.stop.is_set() {
                        connection.kick.kick();
                        break;
                    }
                    backoff.connected(clock.now());
                    let end = match self.session(connection, first, &session_config) {
                        SessionEnd::Detached(connection) => return Some(*connection),
                        end => end,
                    };
                    if (config.ends_on_normal_close || self.handle.session.is_closing()) && is_normal_close(&end) {
                        break;
                    }
                    let lasting = is_refusal(&end, config.refusal_codes);
                    Disconnection { why: end.to_string(), lasting, refused: None, cut: true, code: None, error: None }
                }
                Err(attempt) => attempt,
            };
            if self.is_done() {
                break;
            }
            let usual = backoff.next_delay(clock.now(), rng.unit());
            let its_own = ended.pause(usual, config.refused_pause, rng.unit());
            let next_in = endpoints.next(clock.now(), usual, its_own);
            self.turn_to(&endpoints, &config.name);
            let Disconnection { why, lasting, refused, cut, error, .. } = ended;
            self.set(LinkState::Reconnecting { last_error: why.clone(), refused: lasting });
            if lasting || refused.is_some() {
                let refused = lasting || refused == Some(true);
                (self.receiver.sink)(LinkEvent::Failed { why, refused, cut: cut && !refused, error, next_in });
            }
            let _waiting = waiting("its next try to connect", Instant::now().checked_add(next_in));
            clock.wait(&self.stop, Level::Drain, next_in);
        }
        None
    }

    /// Whether the link is to stop and has nothing to stay for.
    fn is_done(&self) -> bool {
        let session = &self.handle.session;
        self.stop.is_set() || (session.is_closing() && session.unsent() == 0)
    }

    fn set(&self, state: LinkState) {
        match &state {
            LinkState::Connecting => self.recorder.event(format_args!("connecting to {}", self.handle.endpoint().1)),
            LinkState::Ready { epoch } => self.recorder.event(format_args!("ready, {epoch}")),
            state => self.recorder.event(format_args!("{state}")),
        }
        *lock(&self.handle.state) = state;
    }

    /// From now on this address is dialled.
    fn turn_to(&self, endpoints: &Endpoints, name: &str) {
        let LinkHandle { urls, endpoint, .. } = &self.handle;
        let next = endpoints.current();
        if endpoint.swap(next, Ordering::Relaxed) != next {
            log::info!("{name}: the next try goes to {} ({} of {})", secrets(&urls[next]), next + 1, urls.len());
        }
    }

    /// One attempt: a connection that has authenticated, and a text that came with the answer.
    fn connect(&mut self, config: &LinkConfig) -> Result<(Connection, Option<Utf8Bytes>), Disconnection> {
        let deadline = self.timer.clock().now() + config.dial_time;
        let (_, url) = self.handle.endpoint();
        let request = DialRequest { url, headers: &config.headers, limits: config.socket, deadline };
        let connection = self.dialer.dial(&request, &self.stop, Level::Drain).map_err(NoConnection::from)?;
        if self.authenticate.is_some() {
            self.set(LinkState::Authenticating);
        }
        let Some(role) = &mut self.authenticate else { return Ok((connection, None)) };
        let mut connection = connection;
        let stop = (&self.stop, Level::Drain);
        match authenticate(&mut connection, role.as_mut(), deadline, &self.timer, stop) {
            Ok(first) => Ok((connection, first)),
            Err(error) => {
                let mut ended = Disconnection::from(error);
                // A server may refuse us by its close code alone.
                ended.lasting |= ended.code.is_some_and(|code| config.refusal_codes.contains(&code));
                Err(ended)
            }
        }
    }

    fn session(&mut self, connection: Connection, first: Option<Utf8Bytes>, config: &SessionConfig) -> SessionEnd {
        // Registered before the session begins: a stop whose time is up before that would find no connection to kick.
        let kick = connection.kick.clone();
        let _stop = self.stop.on(Level::Cancel, move || kick.kick());
        // The session numbers its connection when it begins, on this same thread.
        let epoch = self.handle.session.epoch().next();
        self.set(LinkState::Ready { epoch });
        let receiver = &mut self.receiver;
        (receiver.sink)(LinkEvent::Ready { epoch });
        if let Some(text) = first {
            // It came before the session, so it answers nothing that was sent there.
            let _ = receiver.text(text);
        }
        let end = session::run_until(connection, &self.handle.session, config, |arrival| match arrival {
            Arrival::Text(text) => receiver.text(text),
            Arrival::Pause => {
                receiver.match_answers();
                ControlFlow::Continue(())
            }
        });
        self.recorder.event(format_args!("{epoch} has ended: {end}"));
        if !matches!(end, SessionEnd::Detached(_)) {
            (receiver.sink)(LinkEvent::Lost { why: end.to_string() });
        }
        end
    }
}
