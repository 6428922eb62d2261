//! A job as whoever runs it holds it: offered, then running, ending in exactly one terminal status.

use std::fmt::Display;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use serde_json::json;

use crate::base::limits::FACILITATOR_LINK_MESSAGE_BYTES;
use crate::base::shutdown::Shutdown;
use crate::base::thread::panic_message;
use crate::identity::PublicKey;
use crate::ops::errors::ErrorClass;
use crate::protocol::{
    HordeFailureDetails, HordeFailureReason, JobParticipantType, JobRejectionReason, JobStatus, JobStatusMetadata,
    StreamingServerDetails, V0JobStatusUpdate, V0MachineSpecsUpdate, V2JobRequest, ValidatorToFacilitator,
};
use crate::transport::Utf8Bytes;
use crate::validator::authorization::Authorized;
use crate::validator::ledger::{Delivery, NotOnDisk, Ticket, UpdateError};
use crate::validator::status::{EndMessage, Outcome, empty};

/// How long a job waits for the disk before it goes on without.
pub(in crate::validator) const DISK_TIME: Duration = Duration::from_secs(5);

/// What becomes of the jobs that the facilitator sends. Called on a thread that checks signatures; while it blocks,
/// others wait there, and beyond a limit are turned away as `busy`. The connection never waits for it.
pub trait JobHandler: Send + Sync + 'static {
    /// A job, with a good signature of a signer that may sign for us.
    fn job(&self, job: Job);

    /// A job that an earlier process had begun and not ended, before the client connects. Unless somebody goes on with
    /// it, it ends as `horde_failed`.
    fn left(&self, job: LeftJob) {
        drop(job);
    }

    /// The miner of a job was reported for cheating, for the first time for this job, by a signer that may. Both the
    /// job and the trusted job that it was compared with have completed here.
    fn cheated(&self, uuid: &str, miner: PublicKey) {
        log::warn!("job {uuid}: miner {miner} cheated");
    }
}

impl<F: Fn(Job) + Send + Sync + 'static> JobHandler for F {
    fn job(&self, job: Job) {
        self(job);
    }
}

/// Runs the handler; its panic is the end of what it was called for, not of the thread. A job says so itself when
/// dropped.
pub(super) fn guarded(what: &str, call: impl FnOnce()) {
    if let Err(payload) = catch_unwind(AssertUnwindSafe(call)) {
        log::error!("the handler of a {what} panicked: {}", panic_message(payload.as_ref()));
    }
}

/// A job with a good signature that nobody has taken yet. Dropping it turns the job away as `rejected`, `busy`.
#[derive(Debug)]
pub struct Job {
    /// `None` once it was taken or turned away.
    inner: Option<JobParts>,
}

#[derive(Debug)]
struct JobParts {
    request: Authorized,
    line: Line,
    stop: Shutdown,
}

/// The way of one job's updates to the facilitator.
#[derive(Debug)]
pub(in crate::validator) struct Line {
    number: u64,
    delivery: Delivery,
    /// Dropped with the job, so that a stop can wait for all jobs.
    _alive: Sender<()>,
}

impl Line {
    fn update(&self, update: V0JobStatusUpdate, deadline: Instant) -> Result<Ticket, UpdateError> {
        let status = update.status;
        self.forward(status, ValidatorToFacilitator::from(update).encode().into(), deadline)
    }

    /// Passes an update on whose text somebody else has written; waits for room until `deadline` at most.
    pub(in crate::validator) fn forward(
        &self,
        status: JobStatus,
        text: Utf8Bytes,
        deadline: Instant,
    ) -> Result<Ticket, UpdateError> {
        self.delivery.update_by(self.number, status, text, deadline)
    }

    pub(in crate::validator) fn end(&self, uuid: &str, outcome: Outcome) -> Result<Ticket, UpdateError> {
        self.delivery
            .end(self.number, end_message(uuid, outcome, |what| self.trouble(ErrorClass::Rejected, uuid, what)))
    }

    /// The error handler is told.
    pub(in crate::validator) fn trouble(&self, class: ErrorClass, uuid: &str, what: &dyn Display) {
        self.delivery.trouble(class, uuid, what);
    }

    /// As [`Line::end`]; trouble is told.
    pub(in crate::validator) fn end_anyway(&self, uuid: &str, outcome: Outcome) {
        if let Err(error) = self.end(uuid, outcome) {
            self.trouble(ErrorClass::Rejected, uuid, &error);
        }
    }

    /// As [`Line::end`], for a message that somebody else has written.
    #[cfg(feature = "celery")]
    pub(in crate::validator) fn end_by(&self, end: EndMessage) -> Result<Ticket, UpdateError> {
        self.delivery.end(self.number, end)
    }

    pub(in crate::validator) fn runs_on(&self, miner: PublicKey) {
        self.delivery.ran_on(self.number, miner);
    }

    pub(in crate::validator) fn machine_specs(&self, specs: V0MachineSpecsUpdate) {
        self.delivery.machine_specs(specs);
    }

    /// The promise about everything reported so far.
    pub(in crate::validator) fn last_ticket(&self) -> Ticket {
        self.delivery.last_ticket()
    }
}

/// The message that tells how a job ended; a result that is too large for one is replaced by a failure that says so,
/// which `tell` is told too.
pub(in crate::validator) fn end_message(uuid: &str, outcome: Outcome, tell: impl FnOnce(&dyn Display)) -> EndMessage {
    let end = outcome.into_message(uuid);
    if end.text.len() <= FACILITATOR_LINK_MESSAGE_BYTES {
        return end;
    }
    let why = format!(
        "the job ended, but its result cannot be passed on: a message has at most {FACILITATOR_LINK_MESSAGE_BYTES} \
         bytes, this one has {}",
        end.text.len()
    );
    tell(&why);
    Outcome::horde_failed(HordeFailureReason::GenericError, why).into_message(uuid)
}

/// Rejects a request of which no job was made.
pub(super) fn turn_away(
    delivery: &Delivery,
    number: u64,
    uuid: &str,
    reason: JobRejectionReason,
    why: impl Into<String>,
) {
    if let Err(error) = delivery.end(number, Outcome::rejected(reason, why).into_message(uuid)) {
        delivery.trouble(ErrorClass::Rejected, uuid, &error);
    }
}

/// A job that an earlier process had begun and not ended. Dropping it ends it as `horde_failed`.
#[derive(Debug)]
pub struct LeftJob {
    uuid: Arc<str>,
    /// `None` once somebody goes on with it.
    line: Option<Line>,
}

impl LeftJob {
    pub(super) fn new(uuid: Arc<str>, number: u64, delivery: Delivery, alive: Sender<()>) -> Self {
        Self { uuid, line: Some(Line { number, delivery, _alive: alive }) }
    }

    /// Which job it is.
    pub fn uuid(&self) -> &str {
        &self.uuid
    }

    /// Reports its end. Never blocks; the ticket tells when the end is on disk.
    ///
    /// # Errors
    /// [`UpdateError`].
    pub fn end(mut self, outcome: Outcome) -> Result<Ticket, UpdateError> {
        let line = self.line.take().expect("only going on with it empties it, which consumes it");
        line.end(&self.uuid, outcome)
    }

    /// For whoever goes on with it.
    #[cfg(feature = "celery")]
    pub(in crate::validator) fn go_on(mut self) -> (Arc<str>, Line) {
        (self.uuid.clone(), self.line.take().expect("only going on with it empties it, which consumes it"))
    }
}

impl Drop for LeftJob {
    fn drop(&mut self) {
        let Some(line) = self.line.take() else { return };
        let why = "the validator ended while the job ran, and the job cannot be resumed";
        line.trouble(ErrorClass::Rejected, &self.uuid, &why);
        line.end_anyway(&self.uuid, Outcome::horde_failed(HordeFailureReason::GenericError, why));
    }
}

impl Job {
    pub(super) fn new(request: Authorized, number: u64, delivery: Delivery, stop: Shutdown, alive: Sender<()>) -> Self {
        let line = Line { number, delivery, _alive: alive };
        Self { inner: Some(JobParts { request, line, stop }) }
    }

    /// What is asked for; its signature is good and its signer may sign jobs for us.
    pub fn request(&self) -> &V2JobRequest {
        &self.inner.as_ref().expect("only taking the job empties it, which consumes it").request
    }

    /// Takes the job: the facilitator gets `received`.
    pub fn receive(mut self) -> RunningJob {
        let inner = self.inner.take().expect("only taking the job empties it, which consumes it");
        let job = RunningJob { inner, ended: false };
        job.report(JobStatus::Received);
        job
    }

    /// Takes the job for somebody else to run; the facilitator gets `received`. `None`, and the job is turned away as
    /// busy, if that is not accepted: whoever ran it would do so without it and its signature on our disk.
    #[cfg(feature = "celery")]
    pub(in crate::validator) fn hand_over(mut self) -> Option<(Arc<V2JobRequest>, Line)> {
        let JobParts { request, line, .. } =
            self.inner.as_ref().expect("only taking the job empties it, which consumes it");
        let update = V0JobStatusUpdate { uuid: request.uuid.clone(), status: JobStatus::Received, metadata: None };
        if let Err(error) = line.update(update, Instant::now()) {
            self.turn_away(JobRejectionReason::Busy, error.to_string());
            return None;
        }
        self.inner.take().map(|JobParts { request, line, .. }| (request.request().clone(), line))
    }

    /// Turns the job away.
    pub fn reject(mut self, reason: JobRejectionReason, why: impl Into<String>) {
        self.turn_away(reason, why.into());
    }

    fn turn_away(&mut self, reason: JobRejectionReason, why: String) {
        let Some(inner) = self.inner.take() else { return };
        inner.line.end_anyway(&inner.request.uuid, Outcome::rejected(reason, why));
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        self.turn_away(JobRejectionReason::Busy, "all workers are busy".to_owned());
    }
}

/// A job that was taken. Dropping it without [`RunningJob::end`] ends it as `horde_failed`, so that no job ends in
/// silence, not even one whose code panicked.
#[derive(Debug)]
pub struct RunningJob {
    inner: JobParts,
    ended: bool,
}

impl RunningJob {
    /// What is asked for.
    pub fn request(&self) -> &V2JobRequest {
        &self.inner.request
    }

    /// Blocks until everything reported so far is on disk, so that the job is known whatever happens; see
    /// [`Ticket::wait`].
    ///
    /// # Errors
    /// [`NotOnDisk`]; the job may go on.
    pub fn wait_until_known(&self, deadline: Instant) -> Result<(), NotOnDisk> {
        self.inner.line.last_ticket().wait(deadline)
    }

    /// Reaches cancel when the job is to end soon, because the client stops.
    pub fn stop_signal(&self) -> &Shutdown {
        &self.inner.stop
    }

    /// Reports a step on the way. Never blocks.
    ///
    /// # Errors
    /// [`UpdateError`], if the step would lead backwards or too much waits for the facilitator; the job may go on.
    pub fn step(&self, status: JobStatus) -> Result<Ticket, UpdateError> {
        self.update(status, None, Instant::now())
    }

    /// As [`RunningJob::step`], but waits for room if too much waits for the facilitator, `timeout` at most, or
    /// until the stop signal of the job is raised.
    ///
    /// # Errors
    /// As [`RunningJob::step`].
    pub fn step_within(&self, status: JobStatus, timeout: Duration) -> Result<Ticket, UpdateError> {
        self.update(status, None, Instant::now() + timeout)
    }

    /// Reports a streaming server. Never blocks.
    ///
    /// # Errors
    /// As [`RunningJob::step`].
    pub fn streaming_ready(&self, details: StreamingServerDetails) -> Result<Ticket, UpdateError> {
        let metadata = JobStatusMetadata { streaming_details: Some(details), ..empty() };
        self.update(JobStatus::StreamingReady, Some(metadata), Instant::now())
    }

    /// As [`RunningJob::step`], for a job that goes on whatever becomes of the report; trouble is logged.
    pub fn report(&self, status: JobStatus) {
        if let Err(error) = self.step(status) {
            self.trouble(ErrorClass::Rejected, &format_args!("{status} is not reported: {error}"));
        }
    }

    /// Notes which miner runs the job, so that a later report of cheating finds it.
    pub fn runs_on(&self, miner: PublicKey) {
        self.inner.line.runs_on(miner);
    }

    /// Sends the specs of the machine that the job runs on; of each miner only the newest waits for the facilitator.
    pub fn machine_specs(&self, specs: V0MachineSpecsUpdate) {
        self.inner.line.machine_specs(specs);
    }

    /// Reports the end. Never blocks; the ticket tells when the end is on disk.
    ///
    /// A result that is too large for one message is replaced by a failure that says so.
    pub fn end(mut self, outcome: Outcome) -> Result<Ticket, UpdateError> {
        self.finish(outcome)
    }

    /// Reports the end and blocks until it is on disk, 5 seconds at most.
    ///
    /// # Errors
    /// [`NotOnDisk`]; the end is reported all the same, only a crash would lose it.
    pub fn end_and_wait(mut self, outcome: Outcome) -> Result<(), NotOnDisk> {
        match self.finish(outcome) {
            Ok(ticket) => ticket.wait(Instant::now() + DISK_TIME),
            Err(error) => Err(NotOnDisk(error.to_string())),
        }
    }

    /// Reports the end, without waiting for the disk; trouble is told.
    pub(in crate::validator) fn end_anyway(mut self, outcome: Outcome) {
        self.ended = true;
        self.inner.line.end_anyway(&self.inner.request.uuid, outcome);
    }

    fn trouble(&self, class: ErrorClass, what: &dyn Display) {
        self.inner.line.trouble(class, &self.inner.request.uuid, what);
    }

    fn finish(&mut self, outcome: Outcome) -> Result<Ticket, UpdateError> {
        self.ended = true;
        self.inner.line.end(&self.inner.request.uuid, outcome)
    }

    fn update(
        &self,
        status: JobStatus,
        metadata: Option<JobStatusMetadata>,
        deadline: Instant,
    ) -> Result<Ticket, UpdateError> {
        let uuid = self.inner.request.uuid.clone();
        log::debug!("job {uuid}: {status}");
        self.inner.line.update(V0JobStatusUpdate { uuid, status, metadata }, deadline)
    }
}

impl Drop for RunningJob {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        let outcome = Outcome::HordeFailed(HordeFailureDetails {
            reported_by: JobParticipantType::Validator,
            reason: HordeFailureReason::UnhandledException,
            message: "the validator's job driver ended without an outcome".to_owned(),
            context: json!({"panicking": std::thread::panicking()}).as_object().cloned(),
        });
        self.inner.line.end_anyway(&self.inner.request.uuid, outcome);
    }
}

/// Takes the reports of a job; whoever runs it never waits for the one who asked, but for its end.
pub(in crate::validator) trait Reports {
    /// What is asked for.
    fn authorized(&self) -> &Authorized;
    /// Miners that are not to have it.
    fn avoid(&self) -> &[PublicKey] {
        &[]
    }
    /// The miner that had it when it was begun before: it has it still, if it is what we think.
    fn begun_on(&self) -> Option<PublicKey> {
        None
    }
    /// Blocks until the job is known whatever happens, 5 seconds at most.
    fn wait_until_known(&self) -> Result<(), NotOnDisk>;
    /// A step on the way.
    fn report(&self, status: JobStatus);
    fn streaming_ready(&self, details: StreamingServerDetails);
    fn runs_on(&self, miner: PublicKey);
    fn machine_specs(&self, specs: V0MachineSpecsUpdate);
    /// Its end; blocks until it is kept.
    fn end(self, outcome: Outcome);
    /// It was cancelled before it had ended.
    fn cancelled(self);
    /// Whether another job of this validator is known not to have run on a miner.
    fn did_not_run_on(&self, _uuid: &str, _miner: &PublicKey) -> bool {
        false
    }
    /// Whether others go on with it, on the same miner, when it was cancelled.
    fn goes_on(&self) -> bool {
        false
    }
}

impl Reports for RunningJob {
    fn authorized(&self) -> &Authorized {
        &self.inner.request
    }

    fn wait_until_known(&self) -> Result<(), NotOnDisk> {
        RunningJob::wait_until_known(self, Instant::now() + DISK_TIME)
    }

    fn report(&self, status: JobStatus) {
        RunningJob::report(self, status);
    }

    fn streaming_ready(&self, details: StreamingServerDetails) {
        if let Err(error) = RunningJob::streaming_ready(self, details) {
            self.trouble(ErrorClass::Rejected, &error);
        }
    }

    fn runs_on(&self, miner: PublicKey) {
        RunningJob::runs_on(self, miner);
    }

    fn machine_specs(&self, specs: V0MachineSpecsUpdate) {
        RunningJob::machine_specs(self, specs);
    }

    fn did_not_run_on(&self, uuid: &str, miner: &PublicKey) -> bool {
        self.inner.line.delivery.did_not_run_on(uuid, miner)
    }

    fn end(self, outcome: Outcome) {
        let (uuid, delivery) = (self.inner.request.uuid.clone(), self.inner.line.delivery.clone());
        if let Err(error) = self.end_and_wait(outcome) {
            delivery.trouble(ErrorClass::Retry, &uuid, &error);
        }
    }

    fn cancelled(self) {
        Reports::end(self, Outcome::stopping());
    }
}

#[cfg(all(test, feature = "celery"))]
mod tests {
    use super::*;
    use crate::base::timer::Timer;
    use crate::link::{Link, LinkConfig};
    use crate::ops::status::Board;
    use crate::transport::ws::WsDialer;
    use crate::validator::ledger::{self, Ledger, LedgerLimits, RetryPolicies};

    #[test]
    fn a_job_is_handed_over_only_when_its_first_update_is_accepted() {
        let timer = Timer::start();
        let handed_over = |limits| {
            let (link, _idle) =
                Link::new(LinkConfig::new("t", "ws://nobody"), Arc::new(WsDialer::default()), timer.handle());
            let ledger = Ledger::new(limits, RetryPolicies::default(), false);
            let (delivery, _store) = ledger::open(None, ledger, link, timer.handle(), &Board::new(), drop).unwrap();
            let number = delivery.take("a", false).unwrap();
            let request = Authorized::sample("a", PublicKey::from_bytes([1; 32]), [2; 64], 3);
            let (alive, _gone) = crossbeam_channel::bounded(0);
            let job = Job::new(request, number, delivery.clone(), Shutdown::new(), alive);
            let handed_over = job.hand_over().is_some();
            (handed_over, delivery.totals().ended.rejected.get(), delivery.counts().open_jobs)
        };
        assert_eq!(handed_over(LedgerLimits::default()), (true, 0, 1));
        assert_eq!(handed_over(LedgerLimits { bytes: 1, ..LedgerLimits::default() }), (false, 1, 0));
    }
}
