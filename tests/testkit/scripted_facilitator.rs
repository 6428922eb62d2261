//! A facilitator that keeps the history of each job as the real one does, and misbehaves by plan.
//!
//! A status is stored once for each job; a repeat is answered with `job.integrity_error`. Answers carry no id and come
//! in order, so one that is withheld withholds all later ones of its connection, as on a wire that is about to break.
//! Jobs that have not ended are asked for again on every new connection, so that requests get lost and doubled, too.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Instant;

use phalanx::base::ids::SessionId;
use phalanx::base::stop::Stopping;
use phalanx::base::timer::TimerHandle;
use phalanx::identity::KeyPair;
use phalanx::link::server::{Server, ServerConfig, ServerEvent};
use phalanx::link::{OutboxLimits, Outgoing, SessionHandle};
use phalanx::protocol::{
    ErrorItem, FacilitatorToValidator, JobStatus, JobStatusMetadata, Response, ResponseStatus, V0JobStatusUpdate,
    V2JobRequest, ValidatorToFacilitator,
};
use phalanx::transport::{Listener, Refusal};

use JobStatus as S;

use super::wait::LONG;

/// The statuses of a good job.
pub const GOOD: [JobStatus; 6] =
    [S::Received, S::Accepted, S::ExecutorReady, S::VolumesReady, S::ExecutionDone, S::Completed];

static KEYS: Mutex<BTreeMap<String, KeyPair>> = Mutex::new(BTreeMap::new());

/// The key of a name as `//Alice`; each is derived once, which takes longer than most tests.
pub fn key(uri: &str) -> KeyPair {
    let mut keys = KEYS.lock().unwrap();
    keys.entry(uri.to_owned()).or_insert_with(|| KeyPair::from_uri(uri).unwrap()).clone()
}

/// What becomes of an authentication.
pub enum Welcome {
    Accept,
    /// No answer ever.
    Silent,
    /// An error of this type, then a Close with this code.
    Error(&'static str, u16),
    /// Only a Close with this code.
    Close(u16),
}

/// What becomes of a status update.
pub enum Reply {
    /// Stored and answered; a repeat is answered with the error for it.
    Store,
    /// Not stored; answered with an error of this type.
    Refuse(&'static str),
    /// Stored; this and all that follows on the connection is not answered.
    Mute,
    /// Lost with its connection.
    DisconnectBefore,
    /// Stored, then the connection is lost with the answer.
    DisconnectAfter,
}

type Rule<A, R> = Box<dyn Fn(A) -> R + Send + Sync>;

/// Says what becomes of an update that has come so many times.
type Judge = Box<dyn Fn(&V0JobStatusUpdate, usize) -> Reply + Send + Sync>;

/// How the facilitator behaves; by default well. The rules run on the thread that reads the connection, so one that
/// blocks is a facilitator that does not read.
pub struct Plan {
    /// The HTTP status that refuses the upgrade of this connection, counted from 1.
    pub upgrade: Rule<usize, Option<u16>>,
    /// The answer to the authentication of this connection, counted from 1.
    pub welcome: Rule<usize, Welcome>,
    /// The reply to an update that arrived so many times before.
    pub update: Judge,
    /// Type of the error that answers the machine specs that came on this connection.
    pub specs: Rule<usize, Option<&'static str>>,
    /// Keep the frames, for tests that look at their order.
    pub keeps_frames: bool,
    /// Ended jobs that are remembered.
    pub remembers: usize,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            upgrade: Box::new(|_| None),
            welcome: Box::new(|_| Welcome::Accept),
            update: Box::new(|_, _| Reply::Store),
            specs: Box::new(|_| None),
            keeps_frames: false,
            remembers: usize::MAX,
        }
    }
}

/// A frame that came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    Authentication,
    Beat,
    Update(String, JobStatus),
    /// Which machine specs, by their batch.
    Specs(String),
}

/// What is stored of a job.
#[derive(Debug, Default)]
pub struct History {
    pub statuses: Vec<JobStatus>,
    /// The details of the end.
    pub end: Option<JobStatusMetadata>,
    arrived: Vec<(JobStatus, usize)>,
}

/// All that the facilitator knows.
#[derive(Default)]
pub struct FacilitatorState {
    pub histories: HashMap<String, History>,
    /// Jobs that have ended.
    pub ended: usize,
    /// Updates that were stored, and repeats of them that were answered as such.
    pub stored: usize,
    pub repeats: usize,
    /// Updates that came, whatever became of them.
    pub updates: usize,
    /// Upgrades asked for, and connections authenticated.
    pub dials: usize,
    pub welcomed: usize,
    /// Headers of the newest upgrade.
    pub headers: Vec<(String, String)>,
    /// When each heartbeat came.
    pub beats: Vec<Instant>,
    /// By connection, counted from 1.
    pub frames: Vec<(usize, Frame)>,
    /// What no good validator does.
    pub violations: Vec<String>,
    /// Requests of jobs that have not ended, as text.
    open: BTreeMap<String, String>,
    over: VecDeque<String>,
    sessions: Vec<Session>,
    muted: HashSet<SessionId>,
}

struct Session {
    id: SessionId,
    number: usize,
    handle: SessionHandle,
    ready: bool,
    /// Disconnected by us: what it had sent before is lost.
    disconnected: bool,
}

struct FacilitatorShared {
    plan: Plan,
    state: Mutex<FacilitatorState>,
    changed: Condvar,
}

/// The facilitator; ends when dropped, in order with [`ScriptedFacilitator::stop`].
pub struct ScriptedFacilitator {
    server: Option<Server>,
    shared: Arc<FacilitatorShared>,
    pub url: String,
}

impl ScriptedFacilitator {
    pub fn start(listener: impl Listener + 'static, timer: TimerHandle, plan: Plan) -> Self {
        let url = format!("{}/ws/v0/", listener.url());
        let shared = Arc::new(FacilitatorShared { plan, state: Mutex::default(), changed: Condvar::new() });
        let (checking, working) = (shared.clone(), shared.clone());
        let config = ServerConfig {
            outbox: OutboxLimits { messages: 1 << 20, bytes: 1 << 30, window: 1 },
            ..ServerConfig::new("fac")
        };
        let check = Arc::new(move |request: &phalanx::transport::HandshakeRequest| {
            let dial = checking.change(|state| {
                state.dials += 1;
                state.headers.clone_from(&request.headers);
                state.dials
            });
            match (checking.plan.upgrade)(dial) {
                None => Ok(()),
                Some(status) => Err(Refusal { status, body: "by plan".to_owned(), retry_after: None }),
            }
        });
        let sink = Arc::new(move |event| working.handle(event));
        let server = Server::start(config, Box::new(listener), timer, check, sink);
        Self { server: Some(server), shared, url }
    }

    /// Looks at what the facilitator knows.
    pub fn state(&self) -> MutexGuard<'_, FacilitatorState> {
        self.shared.state.lock().unwrap()
    }

    /// Waits until it knows something.
    pub fn wait(&self, what: &str, done: impl Fn(&FacilitatorState) -> bool) {
        let limit = Instant::now() + LONG;
        let mut state = self.state();
        while !done(&state) {
            let left = limit.saturating_duration_since(Instant::now());
            assert!(
                !left.is_zero(),
                "never: {what}; {} dials, {} updates, {} ended, {} open: {:?}",
                state.dials,
                state.updates,
                state.ended,
                state.open.len(),
                state.violations
            );
            state = self.shared.changed.wait_timeout(state, left).unwrap().0;
        }
    }

    /// Waits until a job has ended and gives its statuses.
    pub fn history(&self, uuid: &str) -> Vec<JobStatus> {
        self.wait(uuid, |state| state.histories.get(uuid).is_some_and(|history| history.end.is_some()));
        self.state().histories[uuid].statuses.clone()
    }

    /// Asks for a job, on every connection that there is and will be until it has ended.
    pub fn submit(&self, job: V2JobRequest) {
        let uuid = job.uuid.clone();
        let text = FacilitatorToValidator::from(job).encode();
        self.shared.change(|state| {
            state.say(&text);
            state.open.insert(uuid, text);
        });
    }

    /// Asks no more for jobs.
    pub fn withdraw(&self, jobs: &[String]) {
        self.shared.change(|state| jobs.iter().for_each(|uuid| drop(state.open.remove(uuid))));
    }

    /// Sends a text on every connection; waits for one to be there.
    pub fn say(&self, text: &str) {
        self.wait("a connection", |state| state.sessions.iter().any(|session| session.ready));
        self.state().say(text);
    }

    /// Closes every connection with a code.
    pub fn close(&self, code: u16) {
        let handles: Vec<_> = self.state().sessions.iter().map(|session| session.handle.clone()).collect();
        handles.iter().for_each(|handle| handle.close(code, "by plan", LONG));
    }

    /// Breaks every connection.
    pub fn disconnect(&self) {
        let handles: Vec<_> = self.state().sessions.iter().map(|session| session.handle.clone()).collect();
        handles.iter().for_each(SessionHandle::kick);
    }

    /// Asserts that no status moved a job backwards or came after its end, and no frame came out of turn.
    pub fn assert_sound(&self) {
        assert_eq!(self.state().violations, [] as [String; 0]);
    }

    /// Asserts that all is sound, and ends all threads.
    pub fn stop(mut self) {
        self.assert_sound();
        let server = self.server.take().unwrap();
        let mut stopping = Stopping::alone();
        stopping.step("facilitator", LONG, |step| server.stop_in(step, "test ends"));
        let report = stopping.finish();
        assert!(report.is_clean(), "{report}");
    }
}

impl FacilitatorState {
    fn say(&self, text: &str) {
        for session in self.sessions.iter().filter(|session| session.ready) {
            // The validator may have gone in the meantime.
            drop(session.handle.send(Outgoing::once(text.to_owned())));
        }
    }

    fn answer(&self, id: SessionId, errors: Vec<ErrorItem>) {
        let status = if errors.is_empty() { ResponseStatus::Success } else { ResponseStatus::Error };
        let text = FacilitatorToValidator::from(Response { status, errors }).encode();
        if let Some(session) = self.sessions.iter().find(|session| session.id == id)
            && !self.muted.contains(&id)
        {
            drop(session.handle.send(Outgoing::once(text)));
        }
    }

    fn disconnect(&mut self, id: SessionId) {
        let session = self.sessions.iter_mut().find(|session| session.id == id).expect("texts come before the end");
        session.disconnected = true;
        session.handle.kick();
    }

    /// Stores a status; says whether it was there.
    fn store(&mut self, update: &V0JobStatusUpdate) -> bool {
        let history = self.histories.entry(update.uuid.clone()).or_default();
        if history.statuses.contains(&update.status) {
            self.repeats += 1;
            return true;
        }
        if let Some(last) = history.statuses.last().filter(|last| !last.may_become(update.status)) {
            self.violations.push(format!("job {}: {} after {last}", update.uuid, update.status));
        }
        self.stored += 1;
        history.statuses.push(update.status);
        if update.status.is_terminal() && history.end.is_none() {
            history.end = Some(update.metadata.clone().expect("an end has details"));
            self.ended += 1;
            self.open.remove(&update.uuid);
            self.over.push_back(update.uuid.clone());
        }
        false
    }
}

impl FacilitatorShared {
    fn change<T>(&self, change: impl FnOnce(&mut FacilitatorState) -> T) -> T {
        let result = change(&mut self.state.lock().unwrap());
        self.changed.notify_all();
        result
    }

    fn handle(&self, event: ServerEvent) {
        match event {
            ServerEvent::Opened { id, handle, .. } => self.change(|state| {
                let number = state.dials;
                state.sessions.push(Session { id, number, handle, ready: false, disconnected: false });
            }),
            ServerEvent::Closed { id, .. } => self.change(|state| {
                state.sessions.retain(|session| session.id != id);
                state.muted.remove(&id);
            }),
            ServerEvent::Text { id, text } => match ValidatorToFacilitator::decode(&text) {
                Ok(message) => self.message(id, message),
                Err(error) => self.change(|state| state.violations.push(format!("{error}: {text}"))),
            },
        }
    }

    fn message(&self, id: SessionId, message: ValidatorToFacilitator) {
        let (number, ready, handle) = {
            let state = self.state.lock().unwrap();
            let session = state.sessions.iter().find(|session| session.id == id).expect("texts come before the end");
            if session.disconnected {
                return;
            }
            (session.number, session.ready, session.handle.clone())
        };
        let frame = match &message {
            ValidatorToFacilitator::V0AuthenticationRequest(_) => Frame::Authentication,
            ValidatorToFacilitator::V0Heartbeat(_) => Frame::Beat,
            ValidatorToFacilitator::V0JobStatusUpdate(update) => Frame::Update(update.uuid.clone(), update.status),
            ValidatorToFacilitator::V0MachineSpecsUpdate(specs) => Frame::Specs(specs.batch_id.clone()),
        };
        self.change(|state| {
            if (frame == Frame::Authentication) == ready {
                state.violations.push(format!("connection {number}: {frame:?} out of turn"));
            }
            if self.plan.keeps_frames {
                state.frames.push((number, frame));
            }
        });
        match message {
            ValidatorToFacilitator::V0AuthenticationRequest(auth) => {
                if auth.verify().is_err() {
                    self.change(|state| state.violations.push("a bad signature".to_owned()));
                }
                self.welcome(id, number, &handle);
            }
            ValidatorToFacilitator::V0Heartbeat(_) => self.change(|state| state.beats.push(Instant::now())),
            ValidatorToFacilitator::V0MachineSpecsUpdate(_) => {
                if let Some(kind) = (self.plan.specs)(number) {
                    self.change(|state| state.answer(id, vec![error(kind)]));
                }
            }
            ValidatorToFacilitator::V0JobStatusUpdate(update) => self.update(id, &update),
        }
    }

    fn welcome(&self, id: SessionId, number: usize, handle: &SessionHandle) {
        match (self.plan.welcome)(number) {
            Welcome::Silent => {}
            Welcome::Close(code) => handle.close(code, "by plan", LONG),
            Welcome::Error(kind, code) => {
                self.change(|state| state.answer(id, vec![error(kind)]));
                handle.close(code, "by plan", LONG);
            }
            Welcome::Accept => self.change(|state| {
                state.welcomed += 1;
                state.answer(id, Vec::new());
                for text in state.open.values() {
                    drop(handle.send(Outgoing::once(text.clone())));
                }
                let session = state.sessions.iter_mut().find(|session| session.id == id);
                session.expect("texts come before the end").ready = true;
            }),
        }
    }

    fn update(&self, id: SessionId, update: &V0JobStatusUpdate) {
        let before = self.change(|state| {
            state.updates += 1;
            let arrived = &mut state.histories.entry(update.uuid.clone()).or_default().arrived;
            match arrived.iter_mut().find(|(status, _)| *status == update.status) {
                Some((_, times)) => {
                    *times += 1;
                    *times - 1
                }
                None => {
                    arrived.push((update.status, 1));
                    0
                }
            }
        });
        let reply = (self.plan.update)(update, before);
        self.change(|state| match reply {
            Reply::Store => {
                let errors = if state.store(update) { vec![error("job.integrity_error")] } else { Vec::new() };
                state.answer(id, errors);
            }
            Reply::Refuse(kind) => state.answer(id, vec![error(kind)]),
            Reply::Mute => {
                state.store(update);
                state.muted.insert(id);
            }
            Reply::DisconnectBefore => state.disconnect(id),
            Reply::DisconnectAfter => {
                state.store(update);
                state.disconnect(id);
            }
        });
        self.change(|state| {
            while state.over.len() > self.plan.remembers {
                let oldest = state.over.pop_front().expect("it is not empty");
                state.histories.remove(&oldest);
            }
        });
    }
}

fn error(kind: &str) -> ErrorItem {
    ErrorItem { msg: "by plan".to_owned(), kind: kind.to_owned(), help: String::new(), extra: Default::default() }
}
