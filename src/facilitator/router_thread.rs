//! The router's thread: it takes events one by one, asks the router, and does what it says.
//!
//! Owner: [`super::Facilitator`]. Blocks in: its queues, until the router's next deadline; never on a peer, a job or
//! the disk. Kick: the stop signal at cancel. Ends: when that is raised.
//!
//! While changes wait for room in the store's queue it takes no new events, so that the peers are slowed by TCP and
//! nothing piles up.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, SendError, Sender, bounded, select};

use super::audit::Audit;
use super::disk::{Request, StoreHandle};
use super::meters::Meters;
use super::router::{Action, AuditEvent, Change, CloseWhy, Frame, Input, MessageKind, Note, Router, RouterStatus};
use super::waiting::Ticket;
use crate::base::clock::now;
use crate::base::ids::SessionId;
use crate::base::limits::ROLE_EVENTS;
use crate::base::lock::lock;
use crate::base::now::Now;
use crate::base::panics::contained;
use crate::base::shutdown::{Never, Shutdown};
use crate::base::thread::{Kick, Thread, spawn};
use crate::base::waits::{send, waiting};
use crate::identity::PublicKey;
use crate::link::said::{CLOSE_OVER_RATE, OverRate, PeerRates, Said};
use crate::link::server::{ServerEvent, ServerSink};
use crate::link::{Full, Outgoing, SessionHandle};
use crate::net::admission::Origin;
use crate::ops::errors::{ErrorClass, ErrorHandler};
use crate::ops::health::Health;
use crate::ops::redact::OneLine;
use crate::ops::status::Board;

/// Longest that an event may take: nothing here waits for a peer, a job or the disk.
const EVENT_TIME: Duration = Duration::from_secs(10);

/// How long a session that is closed may take to read what is queued for it.
const CLOSE_TIME: Duration = Duration::from_secs(5);

/// What happened, for the router's thread.
#[derive(Debug)]
pub(super) enum Event {
    /// For the router.
    Input(Input<Ticket>),
    /// A text has come, and was read in that time.
    Frame(SessionId, Frame, Duration),
    /// A connection, how to send to it, its address, and what it says of its release.
    Opened(SessionId, SessionHandle, String, String),
    /// Send a text to the live session of a validator; the reply says whether there is one.
    SendOnce { validator: PublicKey, text: String, reply: Sender<bool> },
    /// There are [`NewValidators`].
    Reloaded,
    /// Take no more frames, and drop the sender when every answer that is owed has been given to its session.
    WhenSettled(Sender<Never>),
}

/// The validators that are to be known from now on, until the thread has taken them; clones are the same.
pub(super) type NewValidators = Arc<Mutex<Option<Vec<PublicKey>>>>;

/// Reads frames and checks their signatures on the threads of their connections, so that a large one holds up nobody
/// else. A full queue makes them wait. Once the router has ended, nobody wants events any more.
///
/// A connection whose peer says too much is closed with 4029, and not heard any more.
pub(super) fn sink(events: Sender<Event>, rates: PeerRates, board: Board) -> ServerSink {
    let connections: Mutex<HashMap<SessionId, Arc<Known>>> = Mutex::default();
    let said = Mutex::new(Said::new(rates));
    Arc::new(move |event| {
        let event = match event {
            ServerEvent::Opened { id, handle, request, peer } => {
                let known = Known {
                    handle: handle.clone(),
                    origin: Origin::of(&peer),
                    key: OnceLock::new(),
                    over: AtomicBool::new(false),
                };
                lock(&connections).insert(id, Arc::new(known));
                let header = |name| request.header(name).unwrap_or("-");
                let version = format!("{} {}", header("X-Validator-Version"), header("X-Validator-Runner-Version"));
                Event::Opened(id, handle, peer, version)
            }
            ServerEvent::Text { id, text } => {
                let Some(known) = lock(&connections).get(&id).cloned() else { return };
                if known.over.load(Ordering::Relaxed) {
                    return;
                }
                let begun = Instant::now();
                match read(&known, &said, &text) {
                    Ok(frame) => Event::Frame(id, frame, begun.elapsed()),
                    Err(over) => {
                        known.over.store(true, Ordering::Relaxed);
                        let origin = &known.origin;
                        let line = format_args!("{id}: a peer at {origin} is turned away: {over}");
                        board.errors.report(ErrorClass::Rejected, "over-rate", &line);
                        let help = "Connections that were closed because their peer said too much, by what it was.";
                        board
                            .metrics
                            .counter("phalanx_facilitator_over_rate_total", help, &[("kind", over.what)])
                            .inc();
                        known.handle.close(CLOSE_OVER_RATE, "you say too much", CLOSE_TIME);
                        return;
                    }
                }
            }
            ServerEvent::Closed { id, end } => {
                lock(&connections).remove(&id);
                log::debug!("{id}: {end}");
                Event::Input(Input::Closed(id))
            }
        };
        let _ = send(&events, event, "room in the router's queue");
    })
}

/// What the threads of connections know of one.
struct Known {
    handle: SessionHandle,
    origin: Origin,
    /// Of the first authentication with a good signature.
    key: OnceLock<PublicKey>,
    /// It has said too much, and is not heard any more.
    over: AtomicBool,
}

impl Known {
    /// Who is counted: a validator once it is known as one, else all strangers of an address as one.
    fn source(&self) -> Source {
        (self.key.get().copied().filter(|_| self.handle.is_known()), self.origin.clone())
    }
}

type Source = (Option<PublicKey>, Origin);

/// Reads a text, if its peer may say that much.
fn read(known: &Known, said: &Mutex<Said<Source>>, text: &str) -> Result<Frame, OverRate> {
    let (who, now) = (known.source(), Instant::now());
    lock(said).frame(&who, now)?;
    let frame = read_contained(text, Frame::read);
    match &frame {
        Frame::Authentication(verified) => {
            lock(said).authentication(&who, now)?;
            if let Ok(key) = verified {
                // A later one changes nothing.
                let _ = known.key.set(*key);
            }
        }
        Frame::Bad(_) => lock(said).bad_frame(&who, now)?,
        _ => {}
    }
    Ok(frame)
}

/// Reads a text; one at which that panics costs that text, not the connection.
fn read_contained(text: &str, read: impl FnOnce(&str) -> Frame) -> Frame {
    contained(|| read(text)).unwrap_or_else(|why| {
        let (shown, bytes) = (OneLine(text), text.len());
        Frame::Poison(format!("reading it panicked: {why}; it has {bytes} bytes: {shown:.200}"))
    })
}

/// The queue into the thread.
pub(super) fn queue() -> (Sender<Event>, Receiver<Event>) {
    bounded(ROLE_EVENTS)
}

/// All that the thread owns.
pub(super) struct RouterThread {
    pub router: Router<Ticket>,
    pub events: Receiver<Event>,
    pub store: StoreHandle,
    /// What the store has done, for the router.
    pub stored: Receiver<Input<Ticket>>,
    /// Where others see [`Router::status`].
    pub status: Arc<Mutex<RouterStatus>>,
    pub stop: Shutdown,
    pub health: Health,
    pub errors: ErrorHandler,
    pub meters: Meters,
    pub audit: Audit,
    /// Looked at with each event, so that whoever changes them never waits for room in the queue.
    pub known: NewValidators,
}

impl RouterThread {
    /// Starts the thread.
    pub(super) fn start(self) -> Thread<()> {
        let kick = self.stop.clone();
        let running =
            RouterLoop { owned: self, sessions: HashMap::new(), changes: VecDeque::new(), settling: Vec::new() };
        spawn("fac-route", Kick::new("stop signal", move || kick.cancel()), move || running.run())
    }
}

struct RouterLoop {
    owned: RouterThread,
    sessions: HashMap<SessionId, SessionHandle>,
    /// What the store's queue has no room for yet.
    changes: VecDeque<Change>,
    settling: Vec<Sender<Never>>,
}

impl Drop for RouterLoop {
    /// A thread that ends unasked (a panic here or in the store's thread) leaves nobody in the belief that all is well.
    fn drop(&mut self) {
        if !self.owned.stop.is_cancelled() {
            let what = "it has ended, so all validators are disconnected";
            self.owned.errors.report(ErrorClass::Fatal, "loop", &what);
            self.owned.health.down("loop", "it has ended, see the log");
            self.sessions.values().for_each(SessionHandle::kick);
        }
    }
}

impl RouterLoop {
    fn run(mut self) {
        self.owned.health.up("loop");
        self.owned.audit.note(now(), Note::new(AuditEvent::Started));
        let (pulse, probed) = self.owned.health.pulse_and_probe("loop", EVENT_TIME);
        while let Some(event) = self.next(&probed) {
            let Some(event) = event else {
                pulse.done();
                continue;
            };
            pulse.begin(Instant::now() + EVENT_TIME);
            let now = now();
            let read = match &event {
                Event::Frame(_, frame, took) => Some((frame.kind(), *took)),
                _ => None,
            };
            let known = lock(&self.owned.known).take();
            let mut actions = known.map_or_else(Vec::new, |known| self.reload(known, now));
            let input = self.input(event, now);
            actions.extend(self.owned.router.handle(input, now));
            if let Some((kind, took)) = read {
                self.owned.meters.frame(kind, took + now.mono.elapsed());
            }
            let waiting_jobs = {
                let mut status = lock(&self.owned.status);
                self.owned.router.show(&mut status);
                status.waiting_jobs
            };
            self.owned.meters.waiting.set(waiting_jobs);
            for action in actions {
                self.act(action, now);
            }
            if !self.settling.is_empty() && self.changes.is_empty() && self.owned.router.is_settled() {
                self.settling.clear();
            }
            pulse.done();
        }
    }

    fn reload(&mut self, known: Vec<PublicKey>, now: Now) -> Vec<Action> {
        let before = self.owned.router.status().validators;
        let after: HashSet<PublicKey> = known.iter().copied().collect();
        let (new, gone) = (after.difference(&before).count(), before.difference(&after).count());
        let counts = format!("{} validators: {new} new, {gone} gone", after.len());
        log::info!("facilitator: {counts}");
        self.owned.audit.note(now, Note::new(AuditEvent::Reloaded).why(counts));
        self.owned.router.handle(Input::SetValidators(known), now)
    }

    /// Waits for the next event, or for somebody to ask for a sign of life, which is `Some(None)`; `None` at the stop.
    fn next(&mut self, probed: &Receiver<()>) -> Option<Option<Event>> {
        let due = self.owned.router.next_wake();
        let left = due.map_or(Duration::MAX, |due| due.saturating_duration_since(Instant::now()));
        let RouterThread { stop, store, stored, events, .. } = &self.owned;
        let idle = events.is_empty() && stored.is_empty();
        let _waiting = idle.then(|| waiting("messages, or something due", due));
        if self.changes.is_empty() {
            select! {
                recv(stop.cancel_receiver()) -> _ => None,
                recv(stored) -> stored => stored.ok().map(Event::Input).map(Some),
                recv(events) -> event => event.ok().map(Some),
                recv(probed) -> _ => Some(None),
                default(left) => Some(Some(Event::Input(Input::Tick))),
            }
        } else {
            let changes = &mut self.changes;
            let mut first = || Request::Change(changes.pop_front().expect("found not to be empty"));
            select! {
                recv(stop.cancel_receiver()) -> _ => None,
                recv(stored) -> stored => stored.ok().map(Event::Input).map(Some),
                send(store.queue(), first()) -> sent => match sent {
                    Ok(()) => Some(Some(Event::Input(Input::Tick))),
                    Err(SendError(_)) => None,
                },
                recv(probed) -> _ => Some(None),
                default(left) => Some(Some(Event::Input(Input::Tick))),
            }
        }
    }

    /// What the event means for the router.
    fn input(&mut self, event: Event, now: Now) -> Input<Ticket> {
        match event {
            Event::Opened(id, handle, peer, version) => {
                log::debug!("{id}: {peer} connected, validator release {version}");
                self.sessions.insert(id, handle);
                self.owned.meters.sessions.set(self.sessions.len());
                Input::Opened { id, peer, version }
            }
            Event::SendOnce { validator, text, reply } => {
                let sent = self.owned.router.reaches(validator, now.mono);
                // A caller that has given up has dropped its end.
                let _ = reply.send(sent);
                Input::SendOnce { validator, text }
            }
            Event::Frame(id, frame, _) => Input::Frame(id, frame),
            Event::Reloaded => Input::Tick,
            Event::WhenSettled(sender) => {
                self.settling.push(sender);
                self.owned.audit.note(now, Note::new(AuditEvent::Stopping));
                Input::Stop
            }
            Event::Input(input) => {
                match &input {
                    Input::Stored { session: Some(_), outcome, .. } => self.owned.meters.status(*outcome),
                    Input::Unstorable { session: Some(_), .. } => self.owned.meters.status(None),
                    Input::Closed(id) => {
                        self.sessions.remove(id);
                        self.owned.meters.sessions.set(self.sessions.len());
                    }
                    _ => {}
                }
                input
            }
        }
    }

    /// Does one thing, without blocking.
    fn act(&mut self, action: Action, now: Now) {
        match action {
            Action::Store(change) => self.changes.push_back(change),
            Action::Known(id) => {
                if let Some(handle) = self.sessions.get(&id) {
                    handle.known();
                }
            }
            Action::Send(id, text) => {
                let Some(handle) = self.sessions.get(&id) else { return };
                match handle.send(Outgoing::once(text)) {
                    Ok(()) => {}
                    Err(Full::Closed { .. }) => log::debug!("{id}: gone before it was answered"),
                    Err(full @ Full::Bound { .. }) => {
                        let what = format_args!("{id}: it is disconnected: {full}");
                        self.owned.errors.report(ErrorClass::Rejected, "slow-peer", &what);
                        self.owned.meters.not_reading.inc();
                        handle.kick();
                    }
                }
            }
            Action::Close(id, why) => self.close(id, why),
            Action::Handled(kind, handled) => self.owned.meters.handled(kind, handled),
            Action::Poison(id, kind, why) => self.failed(id, kind, &why, now),
            Action::Error(place, what) => self.owned.errors.report(ErrorClass::Rejected, place, &what),
            Action::Note(note) => self.owned.audit.note(now, note),
        }
    }

    fn close(&self, id: SessionId, why: CloseWhy) {
        self.owned.meters.closed(why);
        let Some(handle) = self.sessions.get(&id) else { return };
        let (code, reason) = (why.code(), why.reason());
        match why {
            // What waits for it is of no use to anybody: jobs have gone to the newer session, or are not taken.
            CloseWhy::TakenOver | CloseWhy::NoHeartbeat => handle.give_up(code, reason, CLOSE_TIME),
            _ => handle.close(code, reason, CLOSE_TIME),
        }
        let advice = match why {
            CloseWhy::TakenOver => {
                ": its validator has authenticated on a newer connection; if that happens again and again, two \
                 processes use one key"
            }
            _ => "",
        };
        let reason = if reason.is_empty() { why.as_str() } else { reason };
        let what = format_args!("{id} is closed ({code} {reason}){advice}");
        self.owned.errors.report(ErrorClass::Rejected, "validator-session", &what);
    }

    fn failed(&mut self, id: SessionId, kind: MessageKind, why: &str, now: Now) {
        let kind = kind.as_str();
        self.owned.audit.note(now, Note::new(AuditEvent::MessageFailed).on(id).why(format!("type {kind}: {why:.300}")));
        let told = format_args!("{id}: a message of type {kind} could not be handled, and cost only that: {why}");
        self.owned.errors.report(ErrorClass::Fatal, "validator-message", &told);
    }
}

/// Waits until every answer that is owed has been given to its session, at most until `deadline` or a cancel.
pub(super) fn settle(events: &Sender<Event>, deadline: Instant, shutdown: &Shutdown) {
    let left = || deadline.saturating_duration_since(Instant::now());
    let (sender, settled) = bounded(0);
    select! {
        send(events, Event::WhenSettled(sender)) -> _ => {}
        recv(shutdown.cancel_receiver()) -> _ => return,
        default(left()) => return,
    }
    let _waiting = waiting("the answers that are owed", Some(deadline));
    select! {
        recv(settled) -> _ => {}
        recv(shutdown.cancel_receiver()) -> _ => {}
        default(left()) => {
            log::info!("facilitator: not every status was stored in time; validators send the rest again");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_at_which_reading_panics_costs_that_text() {
        let read =
            |text| match read_contained(text, |text| if text == "{}" { Frame::Heartbeat } else { panic!("boom") }) {
                Frame::Poison(why) => why,
                frame => frame.kind().as_str().to_owned(),
            };
        assert_eq!(read("{}"), "heartbeat");
        assert_eq!(read("poison\u{1b}"), "reading it panicked: boom; it has 7 bytes: poison\\u{1b}");
    }
}
