//! The facilitator's loop: it owns the sessions and the router, and handles one event at a time.
//!
//! Owner: [`super::Facilitator`]. Blocks in: its queues, until the router's next deadline. Kick: the stop signal at cancel.
//! Ends: when that is raised.
//!
//! It never waits for a peer, a job or a disk. While changes wait for room in the store's queue it takes no new events, so
//! that the peers are slowed by TCP and nothing piles up.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use crossbeam_channel::{Receiver, SendError, Sender, bounded, select};

use super::answers::{CLOSE_SIGNATURE, CLOSE_UNKNOWN};
use super::meters::Meters;
use super::router::{Action, Change, Frame, Moment, Router};
use super::storage::{Request, StoreHandle, Stored};
use super::waiting::Ticket;
use crate::base::ids::SessionId;
use crate::base::limits::ROLE_EVENTS;
use crate::base::lock::lock;
use crate::base::shutdown::Shutdown;
use crate::base::thread::{Kick, Thread, spawn};
use crate::base::waits::{send, waiting};
use crate::identity::PublicKey;
use crate::link::server::{ServerEvent, ServerSink};
use crate::link::{Full, Outgoing, SessionHandle};
use crate::ops::health::Health;
use crate::protocol::{DateTime, ValidatorToFacilitator, answer};

/// How long a session that is closed may take to read what is queued for it.
const CLOSE_TIME: Duration = Duration::from_secs(5);

/// What the loop is told.
#[derive(Debug)]
pub(super) enum Event {
    Opened {
        id: SessionId,
        handle: SessionHandle,
        peer: String,
        version: String,
    },
    Frame(SessionId, Frame),
    Closed {
        id: SessionId,
        why: String,
    },
    SendOnce {
        validator: PublicKey,
        text: String,
        reply: Sender<bool>,
    },
    SetValidators(Vec<PublicKey>),
    /// Look at no more frames; drop this when every answer that is owed has been handed to its session.
    Settle(Sender<()>),
}

/// Turns what the connections say into events. Frames are read on the connections' own threads; a full queue makes them
/// wait. Once the loop has ended, nobody wants events any more.
pub(super) fn sink(events: Sender<Event>) -> ServerSink {
    Arc::new(move |event| {
        let event = match event {
            ServerEvent::Opened { id, handle, request, peer } => {
                let header = |name| request.header(name).unwrap_or("-");
                let version = format!("{} {}", header("X-Validator-Version"), header("X-Validator-Runner-Version"));
                Event::Opened { id, handle, peer, version }
            }
            ServerEvent::Text { id, text } => Event::Frame(id, read(&text)),
            ServerEvent::Closed { id, end } => Event::Closed { id, why: end.to_string() },
        };
        let _ = send(&events, event, "room in the router's queue");
    })
}

fn read(text: &str) -> Frame {
    match ValidatorToFacilitator::decode(text) {
        Ok(message) => Frame::Message(Box::new(message)),
        Err(error) => Frame::Bad(answer::by_facilitator(&error)),
    }
}

/// What the loop stands on.
pub(super) struct Route {
    pub router: Arc<Mutex<Router<Ticket>>>,
    pub store: StoreHandle,
    pub stored: Receiver<Stored>,
    pub stop: Shutdown,
    pub health: Health,
    pub meters: Meters,
}

/// The queue into the loop.
pub(super) fn queue() -> (Sender<Event>, Receiver<Event>) {
    bounded(ROLE_EVENTS)
}

impl Route {
    /// Starts the thread.
    pub fn start(self, events: Receiver<Event>) -> Thread<()> {
        let kick = self.stop.clone();
        let running = Loop { route: self, events, sessions: HashMap::new(), changes: VecDeque::new(), settling: None };
        spawn("fac-route", Kick::new("stop signal", move || kick.cancel()), move || running.run())
    }
}

struct Loop {
    route: Route,
    events: Receiver<Event>,
    sessions: HashMap<SessionId, SessionHandle>,
    /// What the store's queue has no room for yet.
    changes: VecDeque<Change>,
    settling: Option<Sender<()>>,
}

impl Drop for Loop {
    /// A loop that ends unasked (a panic here or in the store's thread) leaves nobody in the belief that all is well.
    fn drop(&mut self) {
        if !self.route.stop.is_cancelled() {
            log::error!("facilitator: its loop has ended, so all validators are cut off");
            self.route.health.down("loop", "it has ended, see the log");
            self.sessions.values().for_each(SessionHandle::kick);
        }
    }
}

/// What the loop waited for.
enum Next {
    Event(Event),
    Stored(Stored),
    /// A change has gone to the store, or a deadline is due.
    Nothing,
    Stop,
}

impl Loop {
    fn run(mut self) {
        self.route.health.up("loop");
        loop {
            match self.next() {
                Next::Stop => return,
                Next::Nothing => {}
                Next::Stored(Stored::Status { session, outcome, ended }) => {
                    let mut router = lock(&self.route.router);
                    if let Some(session) = session {
                        self.route.meters.status(outcome);
                        router.stored(session, outcome);
                    }
                    if let Some(uuid) = ended {
                        router.ended(&uuid);
                    }
                }
                Next::Stored(Stored::Job(dispatch)) => lock(&self.route.router).dispatch(Instant::now(), dispatch),
                Next::Event(event) => self.handle(event),
            }
            let actions = {
                let mut router = lock(&self.route.router);
                router.tick(moment());
                self.route.meters.waiting.set(router.waiting_jobs());
                router.take_actions()
            };
            for action in actions {
                self.act(action);
            }
            if self.settling.is_some() && self.changes.is_empty() && lock(&self.route.router).is_settled() {
                self.settling = None;
            }
        }
    }

    fn next(&mut self) -> Next {
        let due = lock(&self.route.router).next_deadline();
        // An hour stands for ever: the loop then just looks again.
        let left = due.map_or(Duration::from_secs(3600), |due| due.saturating_duration_since(Instant::now()));
        let Route { stop, store, stored, .. } = &self.route;
        let idle = self.events.is_empty() && stored.is_empty();
        let _waiting = idle.then(|| waiting("messages, or something due", due));
        if self.changes.is_empty() {
            select! {
                recv(stop.cancel_receiver()) -> _ => Next::Stop,
                recv(stored) -> stored => stored.map_or(Next::Stop, Next::Stored),
                recv(self.events) -> event => event.map_or(Next::Stop, Next::Event),
                default(left) => Next::Nothing,
            }
        } else {
            select! {
                recv(stop.cancel_receiver()) -> _ => Next::Stop,
                recv(stored) -> stored => stored.map_or(Next::Stop, Next::Stored),
                send(store.queue(), Request::Change(self.changes.pop_front().expect("found not to be empty"))) -> sent => match sent {
                    Ok(()) => Next::Nothing,
                    Err(SendError(_)) => Next::Stop,
                },
                default(left) => Next::Nothing,
            }
        }
    }

    fn handle(&mut self, event: Event) {
        let at = moment();
        let mut router = lock(&self.route.router);
        match event {
            Event::Opened { id, handle, peer, version } => {
                log::debug!("{id}: {peer} connected, validator release {version}");
                self.sessions.insert(id, handle);
                self.route.meters.sessions.set(self.sessions.len());
                router.opened(at.now, id, peer, version);
            }
            // Whatever is not looked at any more is not answered, so the validator sends it again to the next start.
            Event::Frame(..) if self.settling.is_some() => {}
            Event::Frame(id, frame) => {
                self.route.meters.frame(&frame);
                router.frame(at, id, frame);
            }
            Event::Closed { id, why } => {
                log::debug!("{id}: {why}");
                self.sessions.remove(&id);
                self.route.meters.sessions.set(self.sessions.len());
                router.closed(at.now, id);
            }
            Event::SendOnce { validator, text, reply } => {
                let sent = router.send_once(at.now, validator, text);
                // A caller that has given up has dropped its end.
                let _ = reply.send(sent);
            }
            Event::SetValidators(validators) => router.set_validators(validators),
            Event::Settle(done) => self.settling = Some(done),
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Store(change) => self.changes.push_back(change),
            Action::Send(id, text) => {
                let Some(handle) = self.sessions.get(&id) else { return };
                match handle.send(Outgoing::once(text)) {
                    Ok(()) => {}
                    Err(Full::Closed { .. }) => log::debug!("{id}: gone before it was answered"),
                    Err(full @ Full::Bound { .. }) => {
                        log::warn!("{id}: it does not read what it is sent ({full}), so it is cut off");
                        handle.kick();
                    }
                }
            }
            Action::Close(id, code, reason) => {
                match code {
                    CLOSE_SIGNATURE => self.route.meters.bad_signature.inc(),
                    CLOSE_UNKNOWN => self.route.meters.unknown_validator.inc(),
                    _ => {}
                }
                if let Some(handle) = self.sessions.get(&id) {
                    handle.close(code, reason, Instant::now() + CLOSE_TIME);
                }
            }
        }
    }
}

fn moment() -> Moment {
    Moment { now: Instant::now(), unix_micros: DateTime::from(SystemTime::now()).unix_micros() }
}

/// Waits until every answer that is owed has been handed to its session, at most until `deadline` or a cancel.
pub(super) fn settle(events: &Sender<Event>, deadline: Instant, shutdown: &Shutdown) {
    let (done_tx, done) = bounded(0);
    select! {
        send(events, Event::Settle(done_tx)) -> _ => {}
        recv(shutdown.cancel_receiver()) -> _ => return,
        default(deadline.saturating_duration_since(Instant::now())) => return,
    }
    select! {
        recv(done) -> _ => {}
        recv(shutdown.cancel_receiver()) -> _ => {}
        default(deadline.saturating_duration_since(Instant::now())) => {
            log::warn!("facilitator: not every status was stored in time; validators send the rest again");
        }
    }
}
