//! The validator's link to the facilitator, and the validator as a whole.
//!
//! Owner: [`Validator`]. Its link thread `val-fac-rd` reads and routes: it acknowledges, deduplicates and hands jobs to
//! the workers, and never blocks on a job, a miner or a disk. Ends: [`Validator::stop`].

use std::collections::{HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tungstenite::Utf8Bytes;

use super::organic::{self, JobTimes};
use super::routing::{MinerAddress, Routing};
use super::status::{Outcome, Reporter};
use crate::base::backoff::BackoffConfig;
use crate::base::ids::Epoch;
use crate::base::limits::{FACILITATOR_LINK_MESSAGE_BYTES, STATUS_BYTES, STATUS_MESSAGES};
use crate::base::lock::lock;
use crate::base::stop::Stopping;
use crate::base::timer::TimerHandle;
use crate::dispatch::Backend;
use crate::dispatch::workers::Workers;
use crate::identity::{KeyPair, PublicKey};
use crate::link::session::Beat;
use crate::link::{
    Answered, Authenticate, Authenticated, Link, LinkConfig, LinkEvent, LinkHandle, LinkState, OutboxLimits, Refused,
};
use crate::protocol::{
    FacilitatorToValidator, JobRejectionReason, JobStatus, Response, ResponseStatus, SignedRequest,
    V0AuthenticationRequest, V0Heartbeat, V0JobCheated, V2JobRequest, ValidatorToFacilitator,
};
use crate::transport::{Dialer, SocketLimits};

/// How often the facilitator hears from us; it counts us as connected for three minutes after each (W-04).
const HEARTBEAT_EVERY: Duration = Duration::from_secs(60);

/// Updates that may be unacknowledged at a time. The facilitator answers in order, so this is only how far we run ahead.
const ACK_WINDOW: usize = 256;

/// Jobs whose uuid is remembered; at 36 bytes each with their set entry, some 10 MiB. The facilitator repeats a request
/// only while it is fresh (one copy for each open connection).
const SEEN_JOBS: usize = 65_536;

/// What runs a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dispatch {
    /// A worker of this process drives a miner.
    Workers,
    /// No miner: every job is answered with the statuses of a good one, each after this time. For load tests.
    Stub {
        /// The time before each status.
        stage_time: Duration,
    },
}

/// What a validator needs.
#[derive(Debug, Clone)]
pub struct ValidatorConfig {
    /// The facilitator's `ws://` or `wss://` URL, as `wss://host/ws/v0/`.
    pub facilitator_url: String,
    /// Our hotkey.
    pub key: KeyPair,
    /// The miners that we know.
    pub miners: Vec<MinerAddress>,
    /// Who may sign jobs besides ourselves.
    pub trusted_signers: Vec<PublicKey>,
    /// What runs a job.
    pub dispatch: Dispatch,
    /// Jobs at a time; each costs up to three threads.
    pub workers: usize,
    /// How long a miner that cheated gets no job.
    pub blacklist_time: Duration,
    /// How long a stop lets running jobs go on.
    pub drain_time: Duration,
    /// How long a stop lets the last updates be acknowledged.
    pub flush_time: Duration,
    /// When to connect again.
    pub backoff: BackoffConfig,
    /// What a miner and an executor may take beside the limits of the job.
    pub job_times: JobTimes,
}

impl ValidatorConfig {
    /// The default numbers: 64 jobs at a time, 24 h of blacklist, 60 s to drain, 10 s to flush.
    pub fn new(facilitator_url: impl Into<String>, key: KeyPair, miners: Vec<MinerAddress>) -> Self {
        Self {
            facilitator_url: facilitator_url.into(),
            key,
            miners,
            trusted_signers: Vec::new(),
            dispatch: Dispatch::Workers,
            workers: 64,
            blacklist_time: Duration::from_secs(24 * 3600),
            drain_time: Duration::from_secs(60),
            flush_time: Duration::from_secs(10),
            backoff: BackoffConfig::default(),
            job_times: JobTimes::default(),
        }
    }

    /// All problems of the configuration, in words.
    pub fn validate(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if !self.facilitator_url.starts_with("ws://") && !self.facilitator_url.starts_with("wss://") {
            problems.push(format!(
                "facilitator {:?}: it should be a URL like wss://facilitator.example/ws/v0/",
                self.facilitator_url
            ));
        }
        if self.workers == 0 || self.workers > 1000 {
            problems.push(format!("workers is {}; it should be from 1 to 1000", self.workers));
        }
        if self.miners.is_empty() && self.dispatch == Dispatch::Workers {
            problems.push("there is no miner; name at least one in the miners file".to_owned());
        }
        problems
    }
}

/// The validator cannot start.
#[derive(Debug, thiserror::Error)]
#[error("validator: {}", .0.join("; "))]
pub struct ValidatorError(pub Vec<String>);

/// What the link's thread and the workers share.
pub(super) struct Shared {
    pub(super) config: ValidatorConfig,
    pub(super) routing: Mutex<Routing>,
    pub(super) dialer: Arc<dyn Dialer>,
    pub(super) timer: TimerHandle,
    pub(super) next_job: AtomicU64,
    /// Who ran which job, so that a report of cheating finds its miner.
    pub(super) ran: Mutex<RanJobs>,
    draining: AtomicBool,
}

/// The miners of the last [`SEEN_JOBS`] jobs.
#[derive(Default)]
pub(super) struct RanJobs(VecDeque<RanJob>);

struct RanJob {
    uuid: String,
    miner: PublicKey,
    reported: bool,
}

impl RanJobs {
    pub(super) fn add(&mut self, uuid: String, miner: PublicKey) {
        if self.0.len() == SEEN_JOBS {
            self.0.pop_front();
        }
        self.0.push_back(RanJob { uuid, miner, reported: false });
    }

    /// The miner of a job that is reported for the first time, or why the report changes nothing. A report counts once,
    /// because its signature does not age and whoever has seen it could punish the miner with it for ever.
    fn report(&mut self, uuid: &str) -> Result<PublicKey, &'static str> {
        let job = self.0.iter_mut().rev().find(|job| job.uuid == uuid).ok_or("the job is not known")?;
        match std::mem::replace(&mut job.reported, true) {
            true => Err("the job was reported before"),
            false => Ok(job.miner),
        }
    }
}

/// A running validator.
pub struct Validator {
    shared: Arc<Shared>,
    link: Link,
    backend: Arc<Workers>,
}

impl std::fmt::Debug for Validator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Validator").field("link", &self.link).field("backend", &self.backend).finish_non_exhaustive()
    }
}

impl Validator {
    /// Starts the link and the workers; returns at once, connected or not.
    ///
    /// # Errors
    /// [`ValidatorError`] with every problem of the configuration; then nothing was started.
    pub fn start(config: ValidatorConfig, dialer: Arc<dyn Dialer>, timer: TimerHandle) -> Result<Self, ValidatorError> {
        let problems = config.validate();
        if !problems.is_empty() {
            return Err(ValidatorError(problems));
        }
        let mut link_config = LinkConfig::new("val-fac", &config.facilitator_url);
        link_config.headers = vec![
            ("X-Validator-Version".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
            ("X-Validator-Runner-Version".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
        ];
        link_config.socket = SocketLimits {
            message_bytes: FACILITATOR_LINK_MESSAGE_BYTES,
            frame_bytes: FACILITATOR_LINK_MESSAGE_BYTES,
            ..SocketLimits::default()
        };
        link_config.backoff = config.backoff;
        link_config.beat =
            Some(Beat { every: HEARTBEAT_EVERY, text: ValidatorToFacilitator::from(V0Heartbeat).encode().into() });
        link_config.outbox = OutboxLimits { messages: STATUS_MESSAGES, bytes: STATUS_BYTES, window: ACK_WINDOW };
        let authenticate = FacilitatorAuthentication { key: config.key.clone() };

        let backend = Arc::new(Workers::new("val-work", config.workers));
        let shared = Arc::new(Shared {
            routing: Mutex::new(Routing::new(config.miners.clone())),
            dialer: dialer.clone(),
            timer: timer.clone(),
            next_job: AtomicU64::new(0),
            ran: Mutex::default(),
            draining: AtomicBool::new(false),
            config,
        });
        let mut intake = Intake { shared: shared.clone(), backend: backend.clone(), link: None, seen: Seen::default() };
        let (handle_tx, handle_rx) = crossbeam_channel::bounded(1);
        let link = Link::start(link_config, dialer, Some(Box::new(authenticate)), timer, move |event| {
            if intake.link.is_none() {
                intake.link = handle_rx.recv().ok();
            }
            intake.handle(event);
        });
        handle_tx.send(link.handle()).expect("the receiver lives in the link's closure, and there is room for one");
        Ok(Self { shared, link, backend })
    }

    /// What looks at this validator; may outlive it.
    pub fn observer(&self) -> Observer {
        Observer { link: self.link.handle(), backend: self.backend.clone() }
    }

    /// Stops in order: no new jobs, running jobs end (or are cancelled when their time is up), the last updates are
    /// acknowledged, the link closes. Blocks for at most the configured drain and flush times and the kicks' grace.
    pub fn stop(self, stopping: &mut Stopping) {
        let Self { shared, link, backend } = self;
        shared.draining.store(true, Ordering::SeqCst);
        let cancelled = stopping.step("validator jobs", shared.config.drain_time, |step| backend.stop(step));
        stopping.cancelled_jobs(cancelled);
        let unsent = stopping.step("validator link", shared.config.flush_time, |step| link.stop(step));
        stopping.unsent(unsent);
    }
}

/// Looks at a validator, also after it has stopped; cheap to clone.
#[derive(Debug, Clone)]
pub struct Observer {
    link: LinkHandle,
    backend: Arc<Workers>,
}

impl Observer {
    /// Where the link to the facilitator stands.
    pub fn link_state(&self) -> LinkState {
        self.link.state()
    }

    /// Updates that the facilitator has not acknowledged.
    pub fn unsent(&self) -> usize {
        self.link.unsent()
    }

    /// Jobs that run now.
    pub fn running_jobs(&self) -> usize {
        self.backend.running()
    }

    /// Breaks the link to the facilitator; it comes back by itself.
    pub fn kick_link(&self) {
        self.link.kick();
    }
}

/// Recognises requests that came before: the facilitator may send one copy for each open connection, and one signature
/// serves any uuid, so a repeated uuid is a repeat whatever else it says.
#[derive(Default)]
struct Seen {
    set: HashSet<String>,
    order: VecDeque<String>,
}

impl Seen {
    fn first_time(&mut self, uuid: &str) -> bool {
        if !self.set.insert(uuid.to_owned()) {
            return false;
        }
        self.order.push_back(uuid.to_owned());
        if self.order.len() > SEEN_JOBS
            && let Some(oldest) = self.order.pop_front()
        {
            self.set.remove(&oldest);
        }
        true
    }
}

/// The routing of what the facilitator says; lives on the link's thread.
struct Intake {
    shared: Arc<Shared>,
    backend: Arc<Workers>,
    link: Option<LinkHandle>,
    seen: Seen,
}

impl Intake {
    fn handle(&mut self, event: LinkEvent) {
        match event {
            LinkEvent::Ready { epoch } => log::info!("facilitator: authenticated ({epoch})"),
            LinkEvent::Lost { why, .. } if self.shared.draining.load(Ordering::SeqCst) => {
                log::debug!("facilitator: connection ended: {why}");
            }
            LinkEvent::Lost { why, .. } => log::warn!("facilitator: connection lost: {why}"),
            LinkEvent::Failed { why, next_in, .. } => {
                log::warn!("facilitator: {why}; next attempt in {:.1}s", next_in.as_secs_f64());
            }
            LinkEvent::Text { epoch, text } => self.text(epoch, &text),
        }
    }

    fn text(&mut self, epoch: Epoch, text: &Utf8Bytes) {
        if text.as_str() == "PING" {
            return;
        }
        match FacilitatorToValidator::decode(text) {
            Ok(FacilitatorToValidator::Response(response)) => self.response(epoch, &response),
            Ok(FacilitatorToValidator::V2JobRequest(request)) => self.job(request),
            Ok(FacilitatorToValidator::V0JobCheated(report)) => self.cheated(&report),
            // Nothing is sent back for a frame that cannot be read, as the Python validator does.
            Err(error) => log::warn!("facilitator: ignored a message that cannot be read: {error}"),
        }
    }

    fn response(&self, epoch: Epoch, response: &Response) {
        let Some(link) = &self.link else { return };
        let Answered::Message(update) = link.answered(epoch, true) else {
            log::warn!("facilitator: an answer without a question: {}", describe(response));
            return;
        };
        let stored = response.errors.iter().all(|e| e.kind == "job.integrity_error");
        if response.status == ResponseStatus::Error && !stored {
            log::error!("facilitator: refused {}: {}", update.text, describe(response));
        }
    }

    fn job(&mut self, request: V2JobRequest) {
        let Some(link) = self.link.clone() else { return };
        if !self.seen.first_time(&request.uuid) {
            log::info!("job {}: requested again, ignored", request.uuid);
            return;
        }
        let uuid = request.uuid.clone();
        if let Some(why) = self.full(&link) {
            Reporter::new(uuid, link).end(Outcome::rejected(JobRejectionReason::Busy, why));
            return;
        }
        let (shared, job_link) = (self.shared.clone(), link.clone());
        let work = Box::new(move |cancel: &crate::base::shutdown::Shutdown| {
            let reporter = Reporter::new(request.uuid.clone(), job_link);
            match shared.config.dispatch {
                Dispatch::Workers => organic::run(&shared, request, reporter, cancel),
                Dispatch::Stub { stage_time } => stub(&shared, &request, reporter, stage_time, cancel),
            }
        });
        if self.backend.submit(work).is_err() {
            Reporter::new(uuid, link).end(Outcome::rejected(JobRejectionReason::Busy, "all workers are busy"));
        }
    }

    /// Why no job can be taken now. Half of the outbox is kept for the updates of jobs that were taken.
    fn full(&self, link: &LinkHandle) -> Option<&'static str> {
        if self.shared.draining.load(Ordering::SeqCst) {
            return Some("the validator is stopping");
        }
        let much = link.unsent() > STATUS_MESSAGES / 2 || link.unsent_bytes() > STATUS_BYTES / 2;
        much.then_some("too many updates wait for the facilitator")
    }

    fn cheated(&self, report: &V0JobCheated) {
        let signer = match report.verify() {
            Ok(signer) => signer,
            Err(error) => {
                log::warn!("job {}: a report of cheating with a bad signature: {error}", report.job_uuid);
                return;
            }
        };
        if !self.shared.may_sign(&signer) {
            log::warn!("job {}: a report of cheating by {signer}, who may not", report.job_uuid);
            return;
        }
        let miner = lock(&self.shared.ran).report(&report.job_uuid);
        match miner {
            Ok(miner) => {
                log::warn!("job {}: miner {miner} cheated, it gets no jobs for a while", report.job_uuid);
                let time = self.shared.config.blacklist_time;
                lock(&self.shared.routing).blacklist(&miner, Instant::now(), time);
            }
            Err(why) => log::warn!("job {}: a report of cheating is ignored: {why}", report.job_uuid),
        }
    }
}

impl Shared {
    /// Whether jobs of this signer are run.
    pub(super) fn may_sign(&self, signer: &PublicKey) -> bool {
        *signer == self.config.key.public() || self.config.trusted_signers.contains(signer)
    }

    /// The outcome for a request whose signature is not good, if it is not.
    pub(super) fn check_signature(&self, request: &V2JobRequest) -> Option<Outcome> {
        let invalid = |message: String| Some(Outcome::rejected(JobRejectionReason::InvalidSignature, message));
        match request.verify() {
            Ok(signer) if self.may_sign(&signer) => None,
            Ok(signer) => invalid(format!("{signer} may not sign jobs for this validator")),
            Err(error) => invalid(error.to_string()),
        }
    }
}

fn describe(response: &Response) -> String {
    let errors: Vec<String> = response.errors.iter().map(|e| format!("{}: {}", e.kind, e.msg)).collect();
    format!("{} {}", response.status, errors.join("; "))
}

fn stub(
    shared: &Shared,
    request: &V2JobRequest,
    reporter: Reporter,
    stage_time: Duration,
    cancel: &crate::base::shutdown::Shutdown,
) {
    use crate::base::shutdown::Level;
    if let Some(outcome) = shared.check_signature(request) {
        reporter.end(outcome);
        return;
    }
    reporter.step(JobStatus::Received);
    for status in [JobStatus::Accepted, JobStatus::ExecutorReady, JobStatus::VolumesReady, JobStatus::ExecutionDone] {
        if !stage_time.is_zero() && cancel.wait_for(Level::Cancel, stage_time) {
            reporter.end(organic::stopping());
            return;
        }
        reporter.step(status);
    }
    if !stage_time.is_zero() && cancel.wait_for(Level::Cancel, stage_time) {
        reporter.end(organic::stopping());
        return;
    }
    reporter.end(Outcome::Completed(crate::protocol::JobResultDetails {
        docker_process_stderr: String::new(),
        docker_process_stdout: String::new(),
        artifacts: None,
        upload_results: None,
        extra: Default::default(),
    }));
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
            Ok(FacilitatorToValidator::Response(response)) => Err(Refused { reason: describe(&response) }),
            // A job for an older connection of ours may overtake the answer; it will be sent again to this one.
            Ok(_) => Ok(Authenticated::NotYet),
            Err(_) if text == "PING" => Ok(Authenticated::NotYet),
            Err(error) => Err(Refused { reason: format!("its answer cannot be read: {error}") }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_of_cheating_counts_once_for_each_job() {
        let miner = PublicKey::from_bytes([1; 32]);
        let mut ran = RanJobs::default();
        ran.add("a".to_owned(), miner);
        ran.add("b".to_owned(), miner);
        assert_eq!(ran.report("a"), Ok(miner));
        assert_eq!(ran.report("a"), Err("the job was reported before"));
        assert_eq!(ran.report("b"), Ok(miner));
        assert_eq!(ran.report("c"), Err("the job is not known"));
        (0..SEEN_JOBS).for_each(|n| ran.add(n.to_string(), miner));
        assert_eq!(ran.report("b"), Err("the job is not known"), "it is too long ago");
    }
}
