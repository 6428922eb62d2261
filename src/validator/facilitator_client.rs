//! The client of a facilitator: a connection that comes back, jobs in, updates out, nothing lost.
//!
//! Its life is in its types: a [`FacilitatorClient`] is inert, a [`RunningClient`] runs, a [`StopReport`] is what is left
//! of it. Only a running client gives handles, so nothing can be sent by one that was never started:
//!
//! ```compile_fail,E0599
//! # use phalanx::validator::{ClientConfig, FacilitatorClient};
//! # use phalanx::identity::KeyPair;
//! let key = KeyPair::load("//Alice").unwrap();
//! let client = FacilitatorClient::new(ClientConfig::new("ws://127.0.0.1:9/ws/v0/", key)).unwrap();
//! client.handle(); // no method named `handle` found for struct `FacilitatorClient`
//! ```
//!
//! ```compile_fail,E0382
//! # use phalanx::validator::{ClientConfig, FacilitatorClient, Job};
//! # use phalanx::identity::KeyPair;
//! # use std::time::Duration;
//! # let key = KeyPair::load("//Alice").unwrap();
//! # let client = FacilitatorClient::new(ClientConfig::new("ws://127.0.0.1:9/ws/v0/", key)).unwrap();
//! let running = client.start(|job: Job| drop(job)).unwrap();
//! running.stop(Duration::from_secs(10));
//! running.handle(); // borrow of moved value: `running`
//! ```
//!
//! Owner: whoever holds the [`RunningClient`]. Threads: `val-fac-rd` reads and routes (it never blocks on a job, a
//! signature or a disk), `val-fac-wr` writes, `val-check-n` check signatures and call the handler, `val-store` keeps the
//! updates on disk, `timer`. Each ends in [`RunningClient::stop`], in that of its drop at the latest.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use tungstenite::Utf8Bytes;

use super::checks::{Checks, ChecksHandle, Limits};
use super::delivery::{Delivery, GivenUp, StoreThread, Totals, describe, update_text};
use super::job::{Job, LeftJob};
use super::ledger::{Counts, LedgerLimits, RetryPolicies};
use super::status::Outcome;
use crate::base::backoff::BackoffConfig;
use crate::base::ids::Epoch;
use crate::base::limits::{
    DIAL_TIME, FACILITATOR_LINK_MESSAGE_BYTES, JOB_REQUEST_BYTES, SPECS_MINERS, STATUS_BYTES, STATUS_MESSAGES,
    UNCHECKED_BYTES, UNCHECKED_REQUESTS,
};
use crate::base::lock::lock;
use crate::base::scope;
use crate::base::shutdown::Shutdown;
use crate::base::stop::{StopReport, Stopping};
use crate::base::thread::panic_message;
use crate::base::timer::{Timer, TimerHandle};
use crate::base::waits::waiting;
use crate::identity::{KeyPair, PublicKey};
use crate::link::session::Beat;
use crate::link::{
    Authenticate, Authenticated, Link, LinkConfig, LinkEvent, LinkHandle, LinkState, OutboxLimits, Refused,
};
use crate::ops::errors::ErrorClass;
use crate::ops::health::Health;
use crate::ops::metrics::{Counter, Metrics};
use crate::ops::status::Board;
use crate::protocol::signing::verify_job_requests;
use crate::protocol::{
    FacilitatorToValidator, JobRejectionReason, Response, ResponseStatus, SignedRequest, V0AuthenticationRequest,
    V0Heartbeat, V0JobCheated, V0MachineSpecsUpdate, V2JobRequest, ValidatorToFacilitator,
};
use crate::store::StoreError;
use crate::transport::ws::WsDialer;
use crate::transport::{ClientTls, Dialer, SocketLimits};

/// How often the facilitator hears from us, unless the configuration says otherwise; it counts us as connected for three
/// minutes after each (W-04).
const HEARTBEAT_EVERY: Duration = Duration::from_secs(60);

/// Updates that may be unanswered at a time, each of another job. The facilitator answers in order, so this is only how
/// far we run ahead of it.
const ACK_WINDOW: usize = 1024;

/// Answers that are settled in one go; they are some 60 bytes each, so a read buffer holds about as many.
const ANSWERS_AT_ONCE: usize = 128;

/// The facilitator closes with this when our signature is bad; trying again soon does not make it better. Its 3001, for a
/// validator that it does not know, asks to wait and retry, and gets the usual back-off.
const BAD_SIGNATURE: u16 = 3000;

/// An update that waits longer makes the client not ready: jobs that it took would not be heard of.
const OLDEST_UPDATE: Duration = Duration::from_secs(120);

/// What a drop gives the stop, since nobody said.
const DROP_BUDGET: Duration = Duration::from_secs(5);

/// What the disk gets at a stop, whatever the facilitator has left of the budget: what it has is what is not lost.
const DISK_TIME: Duration = Duration::from_secs(5);

/// The least time that the last updates have when the jobs have used up theirs: part of every stop's budget.
const FLUSH_SHARE: f64 = 0.25;

/// What a client needs.
#[derive(Clone)]
pub struct ClientConfig {
    /// The facilitator's `ws://` or `wss://` URL, as `wss://host/ws/v0/`.
    pub url: String,
    /// Our hotkey.
    pub key: KeyPair,
    /// Who may sign jobs besides ourselves.
    pub trusted_signers: Vec<PublicKey>,
    /// Where updates are kept over a restart; in memory only if `None`.
    pub state_dir: Option<PathBuf>,
    /// Threads that check signatures.
    pub check_threads: usize,
    /// One deadline over look-up, TCP, TLS, upgrade and authentication.
    pub dial_time: Duration,
    /// How often the facilitator hears from us when there is nothing to say; the network demands 60 s.
    pub heartbeat_every: Duration,
    /// When to connect again.
    pub backoff: BackoffConfig,
    /// The pause after a refusal that needs a person: a bad signature, HTTP 4xx.
    pub refused_pause: Duration,
    /// When a refused update is tried again, and when it is given up.
    pub retries: RetryPolicies,
    /// How much may wait for the facilitator.
    pub limits: LedgerLimits,
    /// Where the client counts and reports errors; several clients may share one.
    pub board: Board,
    /// How connections are made; by default WebSocket with public certificate roots.
    pub dialer: Arc<dyn Dialer>,
}

impl fmt::Debug for ClientConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientConfig").field("url", &self.url).field("hotkey", &self.key.ss58()).finish_non_exhaustive()
    }
}

impl ClientConfig {
    /// The default numbers: one check thread a core, 15 s to connect, 5 min after a refusal; nothing is kept on disk.
    pub fn new(url: impl Into<String>, key: KeyPair) -> Self {
        Self {
            url: url.into(),
            key,
            trusted_signers: Vec::new(),
            state_dir: None,
            check_threads: std::thread::available_parallelism().map_or(1, |n| n.get()).min(16),
            dial_time: DIAL_TIME,
            heartbeat_every: HEARTBEAT_EVERY,
            backoff: BackoffConfig::default(),
            refused_pause: Duration::from_secs(300),
            retries: RetryPolicies::default(),
            limits: LedgerLimits::default(),
            board: Board::new(),
            dialer: Arc::new(WsDialer::new(ClientTls::default())),
        }
    }

    /// All problems of the configuration, in words.
    pub fn validate(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if !self.url.starts_with("ws://") && !self.url.starts_with("wss://") {
            problems
                .push(format!("facilitator {:?}: it should be a URL like wss://facilitator.example/ws/v0/", self.url));
        }
        if self.check_threads == 0 || self.check_threads > 64 {
            problems.push(format!("check_threads is {}; it should be from 1 to 64", self.check_threads));
        }
        problems
    }
}

/// What went wrong with a client.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The configuration has problems; nothing was started. Mend them and make a new client.
    #[error("{}", .0.join("; "))]
    Config(Vec<String>),
    /// The state folder cannot be used; nothing was started.
    #[error("state folder: {0}")]
    State(#[from] StoreError),
    /// The client has stopped; a handle that outlived it can only look.
    #[error("the client has stopped")]
    Stopped,
    /// Updates still wait for the facilitator; they go on waiting.
    #[error("{0} updates still wait for the facilitator")]
    Unsent(usize),
}

impl ClientError {
    /// What a loop does about it.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Config(_) | Self::State(_) => ErrorClass::Fatal,
            Self::Stopped => ErrorClass::Cancelled,
            Self::Unsent(_) => ErrorClass::Retry,
        }
    }

    /// What a person does about it.
    pub fn advice(&self) -> &'static str {
        match self {
            Self::Config(_) => "correct the named settings and call FacilitatorClient::new again",
            Self::State(_) => "free or repair the state folder, or name another, then start again",
            Self::Stopped => "make a new client with FacilitatorClient::new and call start",
            Self::Unsent(_) => {
                "wait longer, or look at the state of the connection; with a state folder nothing is lost"
            }
        }
    }
}

/// What becomes of the jobs that the facilitator sends. Called on a thread that checks signatures; while it blocks, others
/// wait there, and beyond a limit are turned away as `busy`. The connection never waits for it.
pub trait JobHandler: Send + Sync + 'static {
    /// A job, with a good signature of a signer that may sign for us.
    fn job(&self, job: Job);

    /// A job that an earlier process had begun and not ended, before the client connects. Unless somebody goes on with it, it
    /// ends as `horde_failed`.
    fn left(&self, job: LeftJob) {
        drop(job);
    }

    /// The miner of a job was reported for cheating, for the first time for this job, by a signer that may.
    fn cheated(&self, uuid: &str, miner: PublicKey) {
        log::warn!("job {uuid}: miner {miner} cheated");
    }
}

impl<F: Fn(Job) + Send + Sync + 'static> JobHandler for F {
    fn job(&self, job: Job) {
        self(job);
    }
}

/// Where a client stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientState {
    /// Dialling.
    Connecting,
    /// Connected; the facilitator has not answered our authentication yet.
    Authenticating,
    /// Authenticated: jobs come, updates leave.
    Ready,
    /// Waiting before the next attempt.
    Reconnecting,
    /// Taking no more jobs; what was taken ends and is reported.
    Draining,
    /// All threads have ended.
    Stopped,
}

impl fmt::Display for ClientState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connecting => "connecting",
            Self::Authenticating => "authenticating",
            Self::Ready => "ready",
            Self::Reconnecting => "reconnecting",
            Self::Draining => "draining",
            Self::Stopped => "stopped",
        })
    }
}

/// What a subscriber hears.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ClientEvent {
    /// Authenticated on a new connection.
    Ready {
        /// The number of the connection.
        epoch: Epoch,
    },
    /// The connection was lost, or an attempt failed; the client goes on trying.
    Lost {
        /// Why.
        why: String,
        /// The facilitator refused us.
        refused: bool,
    },
    /// An update was given up and is kept for the operator.
    GivenUp(GivenUp),
}

/// A client that does nothing yet.
#[derive(Debug)]
#[must_use = "a client does nothing until it is started"]
pub struct FacilitatorClient {
    config: ClientConfig,
}

impl FacilitatorClient {
    /// Checks the configuration. Starts no thread, touches no file.
    ///
    /// # Errors
    /// [`ClientError::Config`], with all problems at once.
    pub fn new(config: ClientConfig) -> Result<Self, ClientError> {
        let problems = config.validate();
        if problems.is_empty() { Ok(Self { config }) } else { Err(ClientError::Config(problems)) }
    }

    /// Starts the client; returns at once, connected or not. Blocks only to read the state folder.
    ///
    /// # Errors
    /// [`ClientError::State`]; then nothing was started.
    pub fn start(self, handler: impl JobHandler) -> Result<RunningClient, ClientError> {
        let timer = Timer::start();
        let mut running = self.start_with(Arc::new(handler), timer.handle())?;
        running.timer = Some(timer);
        Ok(running)
    }

    /// As [`FacilitatorClient::start`], with a timer of the caller's.
    pub(super) fn start_with(
        self,
        handler: Arc<dyn JobHandler>,
        timer: TimerHandle,
    ) -> Result<RunningClient, ClientError> {
        let Self { config } = self;
        let board = config.board.clone();
        let events = Arc::new(Events::default());
        let on_dead = {
            let events = events.clone();
            move |given_up| events.tell(&ClientEvent::GivenUp(given_up))
        };
        let folder = config.state_dir.as_deref();
        let (delivery, store) = Delivery::open(folder, config.limits, config.retries, timer.clone(), &board, on_dead)?;
        let (alive, all_gone) = bounded(0);
        let stop = Shutdown::new();
        for (number, uuid) in delivery.open_jobs() {
            let left = LeftJob::new(uuid, number, delivery.clone(), alive.clone());
            guarded("left", || handler.left(left));
        }
        let signers = Arc::new(Signers { key: config.key.public(), trusted: config.trusted_signers.clone() });
        let checker = Checker { delivery: delivery.clone(), handler, signers, stop: stop.clone() };
        let limits = Limits { items: UNCHECKED_REQUESTS, bytes: UNCHECKED_BYTES };
        let checks = Checks::start(config.check_threads, limits, move |batch| checker.check(batch));
        let shared = Arc::new(Shared {
            delivery: delivery.clone(),
            draining: Shutdown::new(),
            alive: Mutex::new(Some(alive)),
            events,
            last_error: Mutex::default(),
            counted: Counted::new(&board.metrics),
            board,
        });
        let mut intake = Intake {
            shared: shared.clone(),
            checks: checks.handle(),
            limits: config.limits,
            answers: Vec::new(),
            unclear: None,
        };
        let authenticate = FacilitatorAuthentication { key: config.key.clone() };
        let link =
            Link::start(link_config(&config), config.dialer, Some(Box::new(authenticate)), timer, move |event| {
                intake.handle(event);
            });
        let handle = ClientHandle { shared: shared.clone(), link: link.handle() };
        delivery.attach(link.handle());
        Ok(RunningClient { parts: Some(Parts { link, checks, store, stop, all_gone }), handle, timer: None })
    }
}

fn link_config(config: &ClientConfig) -> LinkConfig {
    let version = env!("CARGO_PKG_VERSION").to_owned();
    LinkConfig {
        headers: vec![
            ("X-Validator-Version".to_owned(), version.clone()),
            ("X-Validator-Runner-Version".to_owned(), version),
        ],
        socket: SocketLimits {
            message_bytes: FACILITATOR_LINK_MESSAGE_BYTES,
            frame_bytes: FACILITATOR_LINK_MESSAGE_BYTES,
            ..SocketLimits::default()
        },
        dial_time: config.dial_time,
        backoff: config.backoff,
        refused_pause: config.refused_pause,
        refusal_codes: &[BAD_SIGNATURE],
        beat: Some(Beat {
            every: config.heartbeat_every,
            text: ValidatorToFacilitator::from(V0Heartbeat).encode().into(),
        }),
        // One update of each job at most, and the ledger bounds the jobs; twice that, since ends are always taken.
        outbox: OutboxLimits {
            messages: 2 * STATUS_MESSAGES + SPECS_MINERS,
            bytes: 2 * STATUS_BYTES,
            window: ACK_WINDOW,
        },
        ..LinkConfig::new("val-fac", &config.url)
    }
}

/// A running client. Dropping it stops it with a budget of 5 seconds.
#[must_use = "dropping a running client stops it"]
pub struct RunningClient {
    /// `None` once stopped.
    parts: Option<Parts>,
    handle: ClientHandle,
    /// `None` if the timer is somebody else's.
    timer: Option<Timer>,
}

struct Parts {
    link: Link,
    checks: Checks<Check>,
    store: StoreThread,
    /// Reaches cancel when running jobs are to end.
    stop: Shutdown,
    /// Disconnects when no job is left in anybody's hands.
    all_gone: Receiver<()>,
}

impl fmt::Debug for RunningClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RunningClient").field("handle", &self.handle).finish_non_exhaustive()
    }
}

impl RunningClient {
    /// What may be cloned, shared, and kept longer than the client.
    pub fn handle(&self) -> ClientHandle {
        self.handle.clone()
    }

    /// Takes no more jobs from now on: the facilitator is told `rejected`, `busy`. Returns at once.
    pub fn drain(&self) {
        self.handle.shared.draining.drain();
        drop(lock(&self.handle.shared.alive).take());
    }

    /// Stops in order: no new jobs, running jobs end (at three quarters of the budget their stop signal is raised), the
    /// last updates are answered, the connection closes, all threads are joined. Blocks for the budget, the kicks' grace
    /// and 5 s for a slow disk at most. Updates that nobody answered are counted, and with a state folder kept for the
    /// next start.
    pub fn stop(mut self, budget: Duration) -> StopReport {
        let mut stopping = Stopping::new(&Shutdown::new());
        self.stop_all(&mut stopping, budget);
        stopping.finish()
    }

    fn stop_all(&mut self, stopping: &mut Stopping, budget: Duration) {
        let until = Instant::now() + budget;
        self.stop_jobs(stopping, budget);
        self.stop_link(stopping, until.saturating_duration_since(Instant::now()));
        if let Some(timer) = self.timer.take() {
            stopping.step("timer", DROP_BUDGET, |step| timer.stop(step));
        }
    }

    /// Waits for the jobs in the handler's hands.
    fn stop_jobs(&self, stopping: &mut Stopping, budget: Duration) {
        let share = budget.mul_f64(1.0 - FLUSH_SHARE);
        self.drain();
        let Some(parts) = &self.parts else { return };
        let ended = stopping.step("jobs", share, |step| step.wait(&parts.all_gone));
        let running = self.handle.counts().open_jobs;
        parts.stop.cancel();
        self.handle.shared.delivery.hurry();
        if !ended {
            stopping.cancelled_jobs(running);
            stopping.step("cancelled jobs", (budget - share) / 2, |step| step.wait(&parts.all_gone));
        }
    }

    /// The rest of a stop, when the jobs have ended.
    pub(super) fn stop_link(&mut self, stopping: &mut Stopping, flush: Duration) {
        self.drain();
        let Some(Parts { link, checks, store, stop, .. }) = self.parts.take() else { return };
        let until = Instant::now() + flush;
        let left = || until.saturating_duration_since(Instant::now());
        stopping.step("signature checks", left(), |step| checks.stop(step));
        stop.cancel();
        self.handle.shared.delivery.hurry();
        let drained = self.handle.shared.delivery.drained();
        stopping.step("updates", left(), |step| step.wait(&drained));
        stopping.step("facilitator link", left(), |step| link.stop(step));
        stopping.step("state folder", DISK_TIME, |step| store.stop(step));
        stopping.unsent(self.handle.counts().unsent);
    }
}

impl Drop for RunningClient {
    fn drop(&mut self) {
        if self.parts.is_some() {
            let mut stopping = Stopping::new(&Shutdown::new());
            self.stop_all(&mut stopping, DROP_BUDGET);
            log::info!("facilitator: {}", stopping.finish());
        }
    }
}

/// What others hold of a client; cheap to clone, may outlive it. Nothing here blocks but [`ClientHandle::flush`].
#[derive(Clone)]
pub struct ClientHandle {
    shared: Arc<Shared>,
    link: LinkHandle,
}

impl fmt::Debug for ClientHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientHandle").field("state", &self.state()).field("counts", &self.counts()).finish()
    }
}

impl ClientHandle {
    /// Where the client stands.
    pub fn state(&self) -> ClientState {
        match self.link.state() {
            LinkState::Stopped => ClientState::Stopped,
            _ if self.shared.draining.is_set() => ClientState::Draining,
            LinkState::Connecting => ClientState::Connecting,
            LinkState::Authenticating => ClientState::Authenticating,
            LinkState::Ready { .. } => ClientState::Ready,
            LinkState::Reconnecting { .. } => ClientState::Reconnecting,
        }
    }

    /// Why the last connection was lost or the last attempt failed.
    pub fn last_error(&self) -> Option<String> {
        lock(&self.shared.last_error).clone()
    }

    /// Says on a page of health whether the client is authenticated, its updates go to disk, and none waits too long.
    pub fn measure(&self, health: &Health) {
        match (self.state(), self.last_error()) {
            (ClientState::Ready, _) => health.up("facilitator"),
            (state, Some(why)) => health.down("facilitator", format!("{state}: {why}")),
            (state, None) => health.down("facilitator", state.to_string()),
        }
        match self.shared.delivery.broken() {
            None => health.up("state folder"),
            Some(why) => health.down("state folder", why),
        }
        match self.oldest_update().filter(|age| *age > OLDEST_UPDATE) {
            None => health.up("updates"),
            Some(age) => health.down("updates", format!("the oldest has waited for {} s", age.as_secs())),
        }
    }

    /// Where the client counts and reports errors.
    pub fn board(&self) -> &Board {
        &self.shared.board
    }

    /// How much waits for the facilitator.
    pub fn counts(&self) -> Counts {
        self.shared.delivery.counts()
    }

    /// How long the oldest update has waited for the facilitator.
    pub fn oldest_update(&self) -> Option<Duration> {
        self.shared.delivery.oldest()
    }

    /// What became of the updates so far.
    pub fn totals(&self) -> &Totals {
        self.shared.delivery.totals()
    }

    /// What came from the facilitator so far.
    pub fn counted(&self) -> &Counted {
        &self.shared.counted
    }

    /// Sends the specs of a miner's machine; of each miner only the newest waits for the facilitator.
    ///
    /// # Errors
    /// [`ClientError::Stopped`].
    pub fn machine_specs(&self, specs: V0MachineSpecsUpdate) -> Result<(), ClientError> {
        if self.state() == ClientState::Stopped {
            return Err(ClientError::Stopped);
        }
        self.shared.delivery.machine_specs(specs);
        Ok(())
    }

    /// Blocks until the facilitator has answered every update, the timeout is over, or the client has stopped.
    ///
    /// # Errors
    /// [`ClientError::Unsent`] with their number, [`ClientError::Stopped`] if nothing can change any more.
    pub fn flush(&self, timeout: Duration) -> Result<(), ClientError> {
        // Ended by the last answer, by a stop, or by time: the counts tell which.
        let _waiting = waiting("the facilitator's answers", Instant::now().checked_add(timeout));
        let _ended = self.shared.delivery.drained().recv_timeout(timeout);
        let unsent = self.counts().unsent;
        match (unsent, self.state()) {
            (0, _) => Ok(()),
            (_, ClientState::Stopped) => Err(ClientError::Stopped),
            (unsent, _) => Err(ClientError::Unsent(unsent)),
        }
    }

    /// A new subscription that holds this many events. A subscriber that does not keep up misses the newest; it cannot
    /// hold up the client.
    pub fn subscribe(&self, capacity: usize) -> Receiver<ClientEvent> {
        self.shared.events.subscribe(capacity)
    }

    /// Breaks the connection; it comes back by itself.
    pub fn kick_link(&self) {
        self.link.kick();
    }

    pub(super) fn delivery(&self) -> &Delivery {
        &self.shared.delivery
    }
}

/// What the parts of a client share.
struct Shared {
    delivery: Delivery,
    draining: Shutdown,
    /// Each job in anybody's hands holds a clone; `None` when there are to be no more.
    alive: Mutex<Option<Sender<()>>>,
    events: Arc<Events>,
    last_error: Mutex<Option<String>>,
    counted: Counted,
    board: Board,
}

/// What came from the facilitator, counted since the start.
#[derive(Debug)]
pub struct Counted {
    /// Authenticated connections.
    pub connections: Counter,
    /// Job requests, repeats included.
    pub requests: Counter,
    /// Job requests whose uuid came before.
    pub repeats: Counter,
    /// Job requests that were turned away because too much waited.
    pub turned_away: Counter,
    /// Messages that could not be read.
    pub unreadable: Counter,
}

impl Counted {
    fn new(metrics: &Metrics) -> Self {
        let counter = |name, help| metrics.counter(name, help, &[]);
        Self {
            connections: counter("phalanx_validator_connections_total", "Authenticated facilitator connections."),
            requests: counter("phalanx_validator_job_requests_total", "Job requests, repeats included."),
            repeats: counter("phalanx_validator_job_repeats_total", "Job requests whose uuid came before."),
            turned_away: counter("phalanx_validator_jobs_turned_away_total", "Jobs rejected as busy at the door."),
            unreadable: counter("phalanx_validator_unreadable_total", "Messages that could not be read."),
        }
    }
}

/// The subscribers. A full or gone one is never waited for.
#[derive(Default)]
struct Events(Mutex<Vec<Sender<ClientEvent>>>);

impl Events {
    fn subscribe(&self, capacity: usize) -> Receiver<ClientEvent> {
        let (sender, receiver) = bounded(capacity.max(1));
        lock(&self.0).push(sender);
        receiver
    }

    fn tell(&self, event: &ClientEvent) {
        lock(&self.0).retain(|sender| !matches!(sender.try_send(event.clone()), Err(TrySendError::Disconnected(_))));
    }
}

/// Something signed that waits for its check.
enum Check {
    Job { number: u64, request: Box<V2JobRequest>, alive: Sender<()> },
    Cheated(Box<V0JobCheated>),
}

/// The routing of what the facilitator says; lives on the link's thread.
struct Intake {
    shared: Arc<Shared>,
    checks: ChecksHandle<Check>,
    limits: LedgerLimits,
    /// Answers that came together, and are settled together.
    answers: Vec<Response>,
    /// The connection whose answers count no more.
    unclear: Option<Epoch>,
}

impl Intake {
    fn handle(&mut self, event: LinkEvent) {
        let draining = self.shared.draining.is_set();
        match event {
            LinkEvent::Ready { epoch } => {
                self.answers.clear();
                log::info!("facilitator: authenticated ({epoch})");
                self.shared.counted.connections.inc();
                self.shared.events.tell(&ClientEvent::Ready { epoch });
            }
            LinkEvent::Lost { why, .. } if draining => log::debug!("facilitator: connection ended: {why}"),
            LinkEvent::Lost { why, .. } => {
                self.lost(format!("connection lost: {why}"), false);
            }
            LinkEvent::Failed { why, refused, next_in } => {
                self.lost(format!("{why}; next attempt in {:.1}s", next_in.as_secs_f64()), refused);
            }
            LinkEvent::Text { epoch, text } => self.text(epoch, &text),
            LinkEvent::Pause { epoch } => self.settle(epoch),
        }
    }

    fn lost(&self, why: String, refused: bool) {
        let class = if refused { ErrorClass::Rejected } else { ErrorClass::Reconnect };
        self.shared.board.errors.report(class, "facilitator", &why);
        *lock(&self.shared.last_error) = Some(why.clone());
        self.shared.events.tell(&ClientEvent::Lost { why, refused });
    }

    fn text(&mut self, epoch: Epoch, text: &Utf8Bytes) {
        if text.as_str() == "PING" {
            return;
        }
        match FacilitatorToValidator::decode(text) {
            Ok(FacilitatorToValidator::Response(response)) => {
                self.answers.push(response);
                if self.answers.len() >= ANSWERS_AT_ONCE {
                    self.settle(epoch);
                }
            }
            Ok(FacilitatorToValidator::V2JobRequest(request)) => self.job(text.len(), request),
            Ok(FacilitatorToValidator::V0JobCheated(report)) => {
                if self.checks.push(text.len(), Check::Cheated(Box::new(report))).is_err() {
                    log::warn!("facilitator: a report of cheating is ignored: too much waits for its check");
                }
            }
            // Nothing is sent back for a frame that cannot be read, as the Python validator does.
            Err(error) => {
                self.shared.counted.unreadable.inc();
                let what = format!("a message that cannot be read is ignored: {error}");
                self.shared.board.errors.report(ErrorClass::Rejected, "facilitator message", &what);
            }
        }
    }

    fn settle(&mut self, epoch: Epoch) {
        if !self.answers.is_empty()
            && self.unclear != Some(epoch)
            && !self.shared.delivery.answered(epoch, &self.answers)
        {
            self.unclear = Some(epoch);
        }
        self.answers.clear();
    }

    fn job(&mut self, bytes: usize, request: V2JobRequest) {
        let Shared { delivery, counted, .. } = &*self.shared;
        counted.requests.inc();
        let Some(number) = delivery.take(&request.uuid) else {
            counted.repeats.inc();
            return log::info!("job {}: requested again, ignored", request.uuid);
        };
        let request = Box::new(request);
        let full = match self.alive_or_full(bytes) {
            Err(why) => Err((why, request)),
            Ok(alive) => self.checks.push(bytes, Check::Job { number, request, alive }).map_err(|check| match check {
                Check::Job { request, .. } => ("too many jobs wait for their signature check", request),
                Check::Cheated(_) => unreachable!("what is handed back is what was pushed"),
            }),
        };
        if let Err((why, request)) = full {
            counted.turned_away.inc();
            let (status, text) = update_text(&request.uuid, Outcome::rejected(JobRejectionReason::Busy, why));
            if let Err(error) = delivery.update(number, status, text) {
                log::error!("{error}");
            }
        }
    }

    /// What a new job holds, or why none can be taken now. Half of the queue is kept for the updates of jobs that were
    /// taken.
    fn alive_or_full(&self, bytes: usize) -> Result<Sender<()>, &'static str> {
        let alive = lock(&self.shared.alive).clone().ok_or("the validator is stopping")?;
        if bytes > JOB_REQUEST_BYTES {
            return Err("the request is too large");
        }
        let Counts { unsent, unsent_bytes, open_jobs, .. } = self.shared.delivery.counts();
        let much = unsent > self.limits.updates / 2 || unsent_bytes > self.limits.bytes / 2;
        if much || open_jobs > self.limits.updates / 2 {
            return Err("too many updates wait for the facilitator");
        }
        Ok(alive)
    }
}

/// Who may sign for us.
struct Signers {
    key: PublicKey,
    trusted: Vec<PublicKey>,
}

impl Signers {
    fn check(&self, signer: PublicKey, what: &str) -> Result<PublicKey, String> {
        match signer == self.key || self.trusted.contains(&signer) {
            true => Ok(signer),
            false => Err(format!("{signer} may not sign {what} for this validator")),
        }
    }
}

/// What runs on the threads that check signatures.
struct Checker {
    delivery: Delivery,
    handler: Arc<dyn JobHandler>,
    signers: Arc<Signers>,
    stop: Shutdown,
}

impl Checker {
    fn check(&self, batch: Vec<Check>) {
        let mut jobs = Vec::with_capacity(batch.len());
        for check in batch {
            match check {
                Check::Job { number, request, alive } => jobs.push((number, request, alive)),
                Check::Cheated(report) => self.cheated(&report),
            }
        }
        let signers = verify_job_requests(jobs.iter().map(|(_, request, _)| &**request));
        for ((number, request, alive), signer) in jobs.into_iter().zip(signers) {
            let _job = scope::job(request.uuid.as_str());
            let signer = signer.map_err(|e| e.to_string()).and_then(|signer| self.signers.check(signer, "jobs"));
            let job = Job::new(*request, number, self.delivery.clone(), self.stop.clone(), alive);
            match signer {
                Ok(_) => guarded("job", || self.handler.job(job)),
                Err(why) => job.reject(JobRejectionReason::InvalidSignature, why),
            }
        }
    }

    fn cheated(&self, report: &V0JobCheated) {
        let uuid = &report.job_uuid;
        let signer = report.verify().map_err(|e| e.to_string());
        let signer = signer.and_then(|signer| self.signers.check(signer, "reports of cheating"));
        match signer.and_then(|_| self.delivery.cheated(uuid).map_err(str::to_owned)) {
            Ok(miner) => guarded("report of cheating", || self.handler.cheated(uuid, miner)),
            Err(why) => log::warn!("job {uuid}: a report of cheating is ignored: {why}"),
        }
    }
}

/// Runs the handler; its panic is the end of what it was called for, not of the thread. A job says so itself when dropped.
fn guarded(what: &str, call: impl FnOnce()) {
    if let Err(payload) = catch_unwind(AssertUnwindSafe(call)) {
        log::error!("the handler of a {what} panicked: {}", panic_message(payload.as_ref()));
    }
}

struct FacilitatorAuthentication {
    key: KeyPair,
}

impl Authenticate for FacilitatorAuthentication {
    fn hello(&mut self) -> Vec<Utf8Bytes> {
        vec![ValidatorToFacilitator::from(V0AuthenticationRequest::sign(&self.key)).encode().into()]
    }

    fn answer(&mut self, text: &str) -> Result<Authenticated, Refused> {
        match FacilitatorToValidator::decode(text) {
            Ok(FacilitatorToValidator::Response(response)) if response.status == ResponseStatus::Success => {
                Ok(Authenticated::Yes)
            }
            Ok(FacilitatorToValidator::Response(response)) => {
                Err(Refused { passing: !is_bad_signature(&response), reason: describe(&response) })
            }
            // A job for an older connection of ours may overtake the answer; it will be sent again to this one.
            Ok(_) => Ok(Authenticated::NotYet),
            Err(_) if text == "PING" => Ok(Authenticated::NotYet),
            Err(error) => Err(Refused { reason: format!("its answer cannot be read: {error}"), passing: true }),
        }
    }
}

fn is_bad_signature(response: &Response) -> bool {
    response.errors.iter().any(|error| error.kind == "auth.signature_invalid")
}
