//! The router's thread: it takes events one by one, asks the router, and does what it says.
//!
//! Owner: the [`Miner`](super::Miner). Blocks in: its event queue, until the router's next deadline; never on a peer,
//! an executor or the disk. Kick: the miner's stop signal. Ends: when stopped and all executors are gone, or do not go.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TrySendError, never, select};

use super::disk::{Order, Saves, StoreOrder};
use super::executor_manager::{Backends, ExecutorManager, ExecutorSpec, Report};
use super::host_threads::{Checks, HostThreads, Reports};
use super::meters::Meters;
use super::placement::Strategy;
use super::router::{
    Action, ExecutorFrame, Input, JobKey, MinerStatus, Peer, Router, Settings, TraceEvent, ValidatorFrame,
};
use super::trace::Traces;
use crate::base::clock::now;
use crate::base::ids::SessionId;
use crate::base::lock::lock;
use crate::base::shutdown::{Level, Never, Shutdown};
use crate::base::thread::Thread;
use crate::base::waits::{send, waiting};
use crate::identity::PublicKey;
use crate::link::outbox::{Full, Outgoing};
use crate::link::said::{OverRate, PeerRates, Said};
use crate::link::server::{HandshakeCheck, ServerEvent, ServerSink};
use crate::link::session::SessionHandle;
use crate::net::admission::Origin;
use crate::ops::errors::{ErrorClass, ErrorHandler};
use crate::ops::health::Health;
use crate::ops::jobs::{JobFacts, JobName, Jobs};
use crate::ops::pause::Pause;
use crate::protocol::{ExecutorClass, ValidatorToMiner};
use crate::store::miner::{JobChange, JobRow};
use crate::transport::{HandshakeRequest, Refusal};

/// Close code for a peer that does not read what it is sent (RFC 6455 leaves 4000 to 4999 to us).
const CLOSE_SLOW: u16 = 4008;

/// How long a peer that does not read has to begin, so that it finds our close: a pause of its program is shorter.
const SLOW_TIME: Duration = Duration::from_secs(5);

/// How long a peer that is turned away may take to answer our close.
const CLOSE_TIME: Duration = Duration::from_secs(2);

/// Longest that one event may take: it blocks on nothing, so this is for a busy machine.
const EVENT_TIME: Duration = Duration::from_secs(10);

/// What happened, for the router's thread.
pub(super) enum Event {
    /// For the router.
    Input(Input),
    /// The same, unless this is set by then: a check that was made by other settings tells nothing of its host.
    Checked(Input, Shutdown),
    /// A connection, and how to send to it.
    Opened(SessionId, SessionHandle, Peer, Option<String>),
    /// Settings, and where executors come from, from now on.
    Settings(Box<Settings>, Backends),
    /// Drop the sender as soon as every job has ended.
    WhenIdle(Sender<Never>),
}

/// What the router's thread leaves behind.
pub(super) struct RouterEnd {
    /// Executors that have not ended.
    pub executors: Vec<Thread<()>>,
    /// The threads of the hosts.
    pub hosts: Vec<Thread<()>>,
    /// Jobs that the stop has ended.
    pub cancelled_jobs: usize,
}

/// All that the router's thread owns.
pub(super) struct RouterThread {
    pub router: Router,
    pub executors: ExecutorManager,
    pub hosts: HostThreads,
    pub reports: Reports,
    pub orders: Sender<Order>,
    /// What the disk's thread is to write of jobs.
    pub saves: Saves,
    /// What the jobs of an earlier process need.
    pub first: Vec<Action>,
    pub status: Arc<Mutex<MinerStatus>>,
    pub traces: Arc<Mutex<Traces>>,
    pub meters: Meters,
    pub health: Health,
    pub errors: ErrorHandler,
    /// The jobs that are shown.
    pub jobs: Jobs,
    /// Whether new ones are taken.
    pub pause: Pause,
    /// How long executors have to end when the miner stops.
    pub end_time: Duration,
}

/// What a job that was not taken has come to.
pub(super) const DECLINED: &str = "declined";

/// The part of health that is this thread.
const LOOP: &str = "loop";

/// Says so when the thread ends unasked, as by a panic: then nothing of the miner works.
struct Ending {
    health: Health,
    stop: Shutdown,
}

impl Drop for Ending {
    fn drop(&mut self) {
        if !self.stop.is_set() {
            self.health.down(LOOP, "it has ended, see the log");
        }
    }
}

/// Paths that are not ours are refused in the handshake; who a peer is, the router judges. The Python facilitator asks
/// for the version by plain HTTP.
pub(super) fn accept_path() -> HandshakeCheck {
    Arc::new(|request: &HandshakeRequest| match Peer::from_path(&request.path) {
        Some(_) => Ok(()),
        None if request.path.split('?').next().is_some_and(|path| path.trim_end_matches('/') == "/version") => {
            let version = env!("CARGO_PKG_VERSION");
            let body = serde_json::json!({"miner_version": version, "runner_version": version}).to_string();
            Err(Refusal { status: 200, body, retry_after: None })
        }
        None => Err(Refusal { status: 404, body: format!("no such path: {}", request.path), retry_after: None }),
    })
}

/// Who is counted: whoever connects with another's name takes nothing from that one.
type Source = Arc<(Peer, Origin)>;

/// What the threads of connections know of one.
struct Known {
    peer: Source,
    /// Of a validator.
    key: Option<PublicKey>,
    /// It has said too much, and is not heard any more.
    over: AtomicBool,
}

/// Reads and checks texts on the threads of their connections, so that a large one, or one too many, holds up nobody
/// else.
pub(super) fn sink(events: Sender<Event>, rates: PeerRates) -> ServerSink {
    let connections: Mutex<HashMap<SessionId, Arc<Known>>> = Mutex::default();
    let said = Mutex::new(Said::new(rates));
    Arc::new(move |event| {
        let event = match event {
            ServerEvent::Opened { id, handle, request, peer: address } => {
                let Some(peer) = Peer::from_path(&request.path) else { return };
                // A name that is no address belongs to no validator we know, so its signatures need no key.
                let key = match &peer {
                    Peer::Validator(hotkey) => PublicKey::from_ss58(hotkey).ok(),
                    Peer::Executor(_) => None,
                };
                let known =
                    Known { peer: Arc::new((peer.clone(), Origin::of(&address))), key, over: AtomicBool::new(false) };
                lock(&connections).insert(id, Arc::new(known));
                let host = address.parse().ok().map(|address: std::net::SocketAddr| address.ip().to_string());
                Event::Opened(id, handle, peer, host)
            }
            ServerEvent::Text { id, text } => {
                let Some(known) = lock(&connections).get(&id).cloned() else { return };
                if known.over.load(Ordering::Relaxed) {
                    return;
                }
                Event::Input(match read(&known, &said, id, &text) {
                    Ok(input) => input,
                    Err(over) => {
                        known.over.store(true, Ordering::Relaxed);
                        Input::OverRate(id, over)
                    }
                })
            }
            ServerEvent::Closed { id, end } => {
                log::debug!("{id}: {end}");
                lock(&connections).remove(&id);
                Event::Input(Input::Closed(id))
            }
        };
        // Once the router has ended, nobody wants events any more.
        drop(send(&events, event, "room in the miner's queue"));
    })
}

/// Reads a text, if its peer may say that much.
fn read(known: &Known, said: &Mutex<Said<Source>>, id: SessionId, text: &str) -> Result<Input, OverRate> {
    let (who, now) = (&known.peer, Instant::now());
    lock(said).frame(who, now)?;
    match &known.peer.0 {
        Peer::Validator(_) => {
            let frame = ValidatorFrame::read(text, known.key);
            match &frame.message {
                Ok(ValidatorToMiner::ValidatorAuthForMiner(_)) => lock(said).authentication(who, now)?,
                Ok(_) => {}
                Err(_) => lock(said).bad_frame(who, now)?,
            }
            Ok(Input::FromValidator(id, Box::new(frame)))
        }
        Peer::Executor(_) => {
            let frame = ExecutorFrame::read(text);
            if frame.message.is_err() {
                lock(said).bad_frame(who, now)?;
            }
            Ok(Input::FromExecutor(id, Box::new(frame)))
        }
    }
}

impl RouterThread {
    /// Runs until `stop` is raised and the executors are gone: at `Drain` they end with grace, at `Cancel` at once.
    pub(super) fn run(mut self, events: &Receiver<Event>, stop: &Shutdown) -> RouterEnd {
        let mut sessions: HashMap<SessionId, SessionHandle> = HashMap::new();
        let mut idle: Vec<Sender<Never>> = Vec::new();
        let mut stopping: Option<Instant> = None;
        let mut renewed = None;
        let mut paused = None;
        let mut cancelled_jobs = 0;
        let ending = Ending { health: self.health.clone(), stop: stop.clone() };
        let (pulse, probed) = self.health.pulse_and_probe(LOOP, EVENT_TIME);
        for action in std::mem::take(&mut self.first) {
            self.act(action, &sessions);
        }
        loop {
            let stopped = match stopping {
                None => stop.drain_receiver().clone(),
                Some(_) => never(),
            };
            let wake = [self.router.next_wake(), stopping].into_iter().flatten().min();
            let wait = wake.map_or(Duration::MAX, |at| at.saturating_duration_since(Instant::now()));
            let waits = events.is_empty().then(|| waiting("messages, or something due", wake));
            let input = select! {
                recv(events) -> event => match event {
                    Ok(Event::Input(input)) => input,
                    Ok(Event::Checked(_, of)) if of.is_set() => Input::Tick,
                    Ok(Event::Checked(input, _)) => input,
                    Ok(Event::Opened(id, handle, peer, address)) => {
                        sessions.insert(id, handle);
                        Input::Opened { id, peer, address }
                    }
                    Ok(Event::Settings(settings, backends)) => {
                        renewed = Some((backends.clone(), checks(&settings)));
                        self.executors.set_backends(backends);
                        Input::Settings(settings)
                    }
                    Ok(Event::WhenIdle(sender)) => {
                        idle.push(sender);
                        Input::Tick
                    }
                    // The miner holds a sender for as long as this thread runs; without one there is no more work.
                    Err(_) => break,
                },
                recv(stopped) -> _ => {
                    stopping = Some(Instant::now() + self.end_time);
                    cancelled_jobs = self.router.status().jobs;
                    Input::Stop(Level::Cancel)
                }
                recv(probed) -> _ => {
                    pulse.done();
                    continue;
                }
                default(wait) => Input::Tick,
            };
            drop(waits);
            pulse.begin(Instant::now() + EVENT_TIME);
            let closed = match &input {
                Input::Closed(id) => Some(*id),
                _ => None,
            };
            let present = self.pause.why(now().wall);
            if present != paused {
                paused.clone_from(&present);
                self.take(Input::Paused(present), &sessions);
            }
            self.take(input, &sessions);
            if let Some((backends, checks)) = renewed.take() {
                // What answered from another place is not known any more.
                self.hosts.renew(&backends, checks, self.router.answering());
            }
            if let Some(id) = closed {
                sessions.remove(&id);
            }
            if self.router.is_idle() {
                idle.clear();
            }
            *lock(&self.status) = self.router.status();
            pulse.done();
            if stopping.is_some_and(|until| self.executors.running() == 0 || until <= Instant::now()) {
                break;
            }
        }
        drop(ending);
        RouterEnd { executors: self.executors.into_threads(), hosts: self.hosts.into_threads(), cancelled_jobs }
    }

    fn take(&mut self, input: Input, sessions: &HashMap<SessionId, SessionHandle>) {
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            for action in self.router.handle(input, now()) {
                inputs.extend(self.act(action, sessions));
            }
        }
    }

    /// What reports of this executor become.
    fn reporting(&self, spec: &ExecutorSpec) -> impl Fn(Report) + Send + 'static {
        let (reports, of) = (self.reports.clone(), spec.token.clone());
        move |report| {
            let token = of.clone();
            reports(match report {
                Report::Ended(end) => Input::ExecutorEnded { token, end },
                Report::Left(left) => Input::ExecutorLeft { token, left },
                Report::Returned { clean } => Input::SlotReturned { token, clean },
            });
        }
    }

    /// Does one thing, without blocking; gives what the router has to know of it at once.
    fn act(&mut self, action: Action, sessions: &HashMap<SessionId, SessionHandle>) -> Option<Input> {
        match action {
            Action::Send(id, text) => match sessions.get(&id)?.send(Outgoing::once(text)) {
                Ok(()) => {}
                Err(Full::Closed { .. }) => log::debug!("{id}: a message came too late for it"),
                Err(full @ Full::Bound { .. }) => {
                    let what = format_args!("{id}: its connection is ended: {full}");
                    self.errors.report(ErrorClass::Rejected, "slow-peer", &what);
                    sessions.get(&id)?.give_up(CLOSE_SLOW, "what you are sent is not read", SLOW_TIME);
                }
            },
            Action::Known(id) => sessions.get(&id)?.known(),
            Action::Close(id, code, reason) => sessions.get(&id)?.close(code, reason, CLOSE_TIME),
            Action::Store { job, number, row, payload, validator_signature } => {
                let order = StoreOrder { job: job.clone(), number, row, payload, validator_signature };
                let why = match self.orders.try_send(Order::Receipt(Box::new(order))) {
                    Ok(()) => return None,
                    Err(TrySendError::Full(_)) => "too many receipts wait for the disk",
                    Err(TrySendError::Disconnected(_)) => "the receipt store has failed",
                };
                return Some(Input::Stored { job, number, result: Err(why.to_owned()) });
            }
            Action::Save(change) => {
                lock(&self.saves).insert(key_of(&change), change);
                // A full queue has the disk's thread look anyway; a thread that has failed is down in health.
                let _ = self.orders.try_send(Order::Look);
            }
            Action::Start(spec, lease) => {
                let report = self.reporting(&spec);
                self.executors.start(spec, lease, report);
            }
            Action::Adopt(spec, lease) => {
                let report = self.reporting(&spec);
                self.executors.adopt(spec, lease, report);
            }
            Action::End(token) => self.executors.end(&token),
            Action::Reap(token) => self.executors.reap(&token),
            Action::Release(host) => {
                self.executors.release(host);
                self.hosts.release(host);
            }
            Action::Note(key, class, event, detail) => {
                let over = lock(&self.traces).note(&key, class, event, &detail, now());
                if let Some((stage, took)) = over {
                    self.meters.stage_over(stage, took);
                }
                show(&self.jobs, &key, class, event);
            }
            Action::Ended(key, outcome, reason) => self.jobs.end(name(&key), outcome, reason),
            Action::Count(counted) => self.meters.count(counted),
            Action::Error(class, place, host, what) => {
                let host = host.map(|host| host.to_string()).unwrap_or_default();
                self.errors.report_of(class, place, &host, &what);
            }
        }
        None
    }
}

fn name(key: &JobKey) -> JobName<'_> {
    JobName { uuid: &key.uuid, of: &key.validator }
}

/// Takes what happened to a job into the jobs that are shown; one of before a restart is shown from then on.
fn show(jobs: &Jobs, key: &JobKey, class: Option<ExecutorClass>, event: TraceEvent) {
    use TraceEvent as E;
    let stage = match event {
        E::Asked | E::Declined => "asked",
        E::Accepted => "accepted",
        E::ExecutorReady => "executor_ready",
        E::Requested => "requested",
        E::VolumesReady => "volumes_ready",
        E::StreamingReady => "streaming_ready",
        E::ExecutionDone => "execution_done",
        _ => return,
    };
    let class = class.map_or("", ExecutorClass::as_str);
    jobs.begin(name(key), JobFacts { peer: &key.validator, class, ..JobFacts::default() }, stage);
    match event {
        E::Declined => jobs.end(name(key), DECLINED, None),
        _ => jobs.step(name(key), stage),
    }
}

/// How hosts are checked by these settings.
pub(super) fn checks(settings: &Settings) -> Checks {
    Checks { policy: settings.limits.checks, images: settings.placement == Strategy::ImageLocal }
}

fn key_of(change: &JobChange) -> JobKey {
    let (JobChange::Put(JobRow { validator, uuid, .. }) | JobChange::Forget { validator, uuid }) = change;
    JobKey { validator: validator.clone(), uuid: uuid.clone() }
}
