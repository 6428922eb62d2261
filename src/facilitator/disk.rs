//! The thread that owns the database: takes what is queued, does it in one transaction, and only then reports the
//! results.
//!
//! Owner: [`super::Facilitator`]. Blocks in: its queue, on the disk, and on the router's queue of results.
//! Kick: the stop signal at cancel. Ends: when that is raised, after what was queued is done.

use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, select};
use serde::Deserialize;

use super::changes::Changes;
use super::router::{Change, Dispatch, Input};
use super::waiting::Ticket;
use crate::base::clock::now;
use crate::base::ids::SessionId;
use crate::base::limits::{LONGEST_TIME, ROLE_EVENTS};
use crate::base::shutdown::{Never, Shutdown};
use crate::base::thread::{Kick, Thread, spawn};
use crate::base::waits::waiting;
use crate::ops::errors::{ErrorClass, ErrorHandler};
use crate::ops::health::Health;
use crate::ops::jobs::Jobs;
use crate::ops::metrics::{Counter, Histogram, SECONDS};
use crate::ops::status::Board;
use crate::protocol::{HordeFailureReason, JobFailureReason, JobRejectionReason, JobStatus};
use crate::store::StoreError;
use crate::store::jobs::{
    Batch, Forgotten, InsertOutcome, JobHead, JobList, JobQuery, JobRow, JobStore, Keep, NewJob, NewStatus, Quota,
    SpecsRow, StatusOutcome,
};

/// Requests that become durable together: one commit costs some milliseconds, each further request in it next to
/// nothing.
const BATCH: usize = 256;

/// Longest that a batch may take; a disk that takes longer hangs.
const BATCH_TIME: Duration = Duration::from_secs(10);

/// How long an HTTP request waits for the store; a disk that takes longer is down.
const CALL_TIME: Duration = Duration::from_secs(10);

/// After the end of a job, the time in which others may end before jobs that are not to be kept are looked for.
const FORGET_AFTER: Duration = Duration::from_secs(2);

/// The store gave no answer. Whether the request was done is unknown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CallError {
    /// No answer in time: the disk is too slow.
    #[error("the database does not answer in time; what was asked may still be done")]
    Late,
    /// The database failed (the log says why), or the facilitator is stopping.
    #[error("the database is not available")]
    Unavailable,
}

/// What the store can be asked.
#[derive(Debug)]
pub(super) enum Request {
    Change(Change),
    Insert { job: NewJob, dispatch: Dispatch<Ticket>, reply: Sender<InsertOutcome> },
    Cheat { uuid: String, trusted: String, at: i64, reply: Sender<bool> },
    Head { user: String, uuid: String, reply: Sender<Option<JobHead>> },
    Job { user: String, uuid: String, details: bool, reply: Sender<Option<JobRow>> },
    Jobs { query: JobQuery, reply: Sender<JobList> },
    Specs { reply: Sender<Vec<SpecsRow>> },
}

/// What others hold of the store; clones are the same store.
#[derive(Debug, Clone)]
pub(super) struct StoreHandle {
    queue: Sender<Request>,
    /// Disconnects when the thread looks at its queue no more. What lies in the queue then is never answered, and never
    /// dropped either while a caller has the queue.
    ended: Receiver<Never>,
}

impl StoreHandle {
    /// For an arm of `select!`.
    pub(super) fn queue(&self) -> &Sender<Request> {
        &self.queue
    }

    /// Adds a job, if its user's quota allows it; then it is durable when this returns, and the router sends it. Blocks
    /// on the disk, at most ten seconds.
    ///
    /// # Errors
    /// See [`CallError`].
    pub(super) fn insert(
        &self,
        job: NewJob,
        dispatch: Dispatch<Ticket>,
        stop: &Shutdown,
    ) -> Result<InsertOutcome, CallError> {
        self.call(stop, |reply| Request::Insert { job, dispatch, reply })
    }

    /// Notes a report of cheating; `false` if the job was reported already. Blocks on the disk, at most ten seconds.
    ///
    /// # Errors
    /// See [`CallError`].
    pub(super) fn report_cheat(&self, uuid: &str, trusted: &str, at: i64, stop: &Shutdown) -> Result<bool, CallError> {
        let (uuid, trusted) = (uuid.to_owned(), trusted.to_owned());
        self.call(stop, |reply| Request::Cheat { uuid, trusted, at, reply })
    }

    /// What is known of a user's job before it is read. Blocks on the disk, at most ten seconds.
    ///
    /// # Errors
    /// See [`CallError`].
    pub(super) fn head(&self, user: &str, uuid: &str, stop: &Shutdown) -> Result<Option<JobHead>, CallError> {
        self.call(stop, |reply| Request::Head { user: user.to_owned(), uuid: uuid.to_owned(), reply })
    }

    /// One job of a user. Blocks on the disk, at most ten seconds.
    ///
    /// # Errors
    /// See [`CallError`].
    pub(super) fn job(
        &self,
        user: &str,
        uuid: &str,
        details: bool,
        stop: &Shutdown,
    ) -> Result<Option<JobRow>, CallError> {
        self.call(stop, |reply| Request::Job { user: user.to_owned(), uuid: uuid.to_owned(), details, reply })
    }

    /// One page of a user's jobs. Blocks on the disk, at most ten seconds.
    ///
    /// # Errors
    /// See [`CallError`].
    pub(super) fn jobs(&self, query: JobQuery, stop: &Shutdown) -> Result<JobList, CallError> {
        self.call(stop, |reply| Request::Jobs { query, reply })
    }

    /// The newest specs of all miners. Blocks on the disk, at most ten seconds.
    ///
    /// # Errors
    /// See [`CallError`].
    pub(super) fn specs(&self) -> Result<Vec<SpecsRow>, CallError> {
        self.call(&Shutdown::new(), |reply| Request::Specs { reply })
    }

    /// Asks the thread, until `stop` is cancelled.
    fn call<T>(&self, stop: &Shutdown, request: impl FnOnce(Sender<T>) -> Request) -> Result<T, CallError> {
        let deadline = Instant::now() + CALL_TIME;
        let (reply, answer) = bounded(1);
        let _waiting = waiting("the store", Some(deadline));
        select! {
            send(self.queue, request(reply)) -> sent => sent.map_err(|_| CallError::Unavailable)?,
            recv(stop.cancel_receiver()) -> _ => return Err(CallError::Unavailable),
            default(CALL_TIME) => return Err(CallError::Late),
        }
        select! {
            recv(answer) -> answer => answer.map_err(|_| CallError::Unavailable),
            // The answer may have come just before.
            recv(self.ended) -> _ => answer.try_recv().map_err(|_| CallError::Unavailable),
            recv(stop.cancel_receiver()) -> _ => answer.try_recv().map_err(|_| CallError::Unavailable),
            default(deadline.saturating_duration_since(Instant::now())) => Err(CallError::Late),
        }
    }
}

/// How much is taken and kept of users.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub quota: Quota,
    pub keep: Keep,
}

/// Starts the thread; what the router has to know goes to `stored`, in the order of the requests.
pub(super) fn start(
    store: JobStore,
    bounds: Bounds,
    stored: Sender<Input<Ticket>>,
    changes: Changes,
    stop: &Shutdown,
    board: &Board,
) -> (StoreHandle, Thread<()>) {
    let Board { health, metrics, jobs, errors, .. } = board;
    let (queue, requests) = bounded(ROLE_EVENTS);
    let (ends, ended) = bounded(0);
    let kick = stop.clone();
    let mut disk = Disk {
        store,
        bounds,
        stored,
        changes,
        stop: stop.clone(),
        health: health.clone(),
        errors: errors.clone(),
        jobs: jobs.clone(),
        commits: metrics.histogram(
            "phalanx_facilitator_commit_seconds",
            "Time of a database transaction.",
            &[],
            SECONDS,
        ),
        failures: metrics.counter("phalanx_facilitator_commit_failures_total", "Failed database transactions.", &[]),
        forgotten: metrics.counter(
            "phalanx_facilitator_jobs_forgotten_total",
            "Ended jobs that were removed because no more are kept.",
            &[],
        ),
        forget_at: Some(Instant::now()),
    };
    let thread = spawn("fac-store", Kick::new("stop signal", move || kick.cancel()), move || {
        // Whoever calls sees the end before the database is closed, and also that of a panic.
        let _ends = ends;
        disk.run(&requests);
    });
    (StoreHandle { queue, ended }, thread)
}

struct Disk {
    store: JobStore,
    bounds: Bounds,
    stored: Sender<Input<Ticket>>,
    changes: Changes,
    stop: Shutdown,
    health: Health,
    errors: ErrorHandler,
    /// Those that are shown.
    jobs: Jobs,
    commits: Histogram,
    failures: Counter,
    forgotten: Counter,
    /// When jobs that are not to be kept are looked for next.
    forget_at: Option<Instant>,
}

impl Disk {
    fn run(&mut self, requests: &Receiver<Request>) {
        self.health.up("store");
        let (pulse, probed) = self.health.pulse_and_probe("store", BATCH_TIME);
        loop {
            let left = self.forget_at.map_or(Duration::MAX, |at| at.saturating_duration_since(Instant::now()));
            let waits = requests.is_empty().then(|| waiting("something to read or store", self.forget_at));
            let first = select! {
                recv(requests) -> request => match request {
                    Ok(request) => Some(request),
                    Err(_) => return,
                },
                recv(self.stop.cancel_receiver()) -> _ => match requests.try_recv() {
                    Ok(request) => Some(request),
                    Err(_) => return,
                },
                recv(probed) -> _ => {
                    pulse.done();
                    continue;
                }
                default(left) => None,
            };
            drop(waits);
            pulse.begin(Instant::now() + BATCH_TIME);
            match first {
                Some(first) => {
                    let batch = std::iter::once(first).chain(requests.try_iter().take(BATCH - 1)).collect();
                    self.serve(batch);
                }
                None => self.forget(),
            }
            pulse.done();
        }
    }

    /// Does what was asked, and reports it.
    fn serve(&mut self, batch: Vec<Request>) {
        let sessions: Vec<SessionId> = batch.iter().filter_map(Request::session).collect();
        let start = Instant::now();
        let done = commit(&mut self.store, (&self.bounds.quota, &self.errors), batch);
        self.commits.observe_time(start.elapsed());
        let results = match done {
            Ok(done) => {
                self.health.up("store");
                if done.iter().any(Done::ends_a_job) {
                    let soon = Instant::now() + FORGET_AFTER;
                    self.forget_at = Some(self.forget_at.map_or(soon, |at| at.min(soon)));
                }
                done.into_iter().filter_map(|done| done.report(&self.changes, &self.jobs)).collect()
            }
            Err(error) => {
                self.failed(&error);
                sessions
                    .into_iter()
                    .map(|session| Input::Stored { session: Some(session), outcome: None, ended: None })
                    .collect::<Vec<_>>()
            }
        };
        for result in results {
            let _waiting = self.stored.is_full().then(|| waiting("room in the router's queue", None));
            select! {
                // If the router has gone, nobody waits for answers any more.
                send(self.stored, result) -> _ => {}
                recv(self.stop.cancel_receiver()) -> _ => {}
            }
        }
    }

    fn failed(&mut self, error: &StoreError) {
        self.errors.report(ErrorClass::Reconnect, "database", error);
        self.failures.inc();
        self.health.down("store", error.to_string());
    }

    /// Forgets some of the jobs that are not to be kept, and gives their room back to the system.
    fn forget(&mut self) {
        let now = now();
        match forget(&mut self.store, &self.bounds.keep, now.unix_micros()) {
            Ok((forgotten, is_done)) => {
                self.health.up("store");
                self.forgotten.add(forgotten.jobs as u64);
                let due = |at: i64| {
                    let left = Duration::from_micros(u64::try_from(at.saturating_sub(now.unix_micros())).unwrap_or(0));
                    now.mono.checked_add(left.min(LONGEST_TIME))
                };
                self.forget_at = if is_done { forgotten.next.and_then(due) } else { Some(now.mono) };
            }
            Err(error) => {
                self.failed(&error);
                self.forget_at = Some(now.mono + FORGET_AFTER);
            }
        }
    }
}

/// Forgets once and shrinks once; says whether that was all.
fn forget(store: &mut JobStore, keep: &Keep, now: i64) -> Result<(Forgotten, bool), StoreError> {
    let batch = store.begin()?;
    let forgotten = batch.forget(keep, now)?;
    if forgotten.jobs > 0 {
        batch.commit()?;
        return Ok((forgotten, false));
    }
    drop(batch);
    let more = store.shrink()?;
    Ok((forgotten, !more))
}

/// All or nothing, but that a request that cannot be done costs itself alone. On failure the replies are dropped, which
/// those who wait for them see.
fn commit(
    store: &mut JobStore,
    (quota, errors): (&Quota, &ErrorHandler),
    requests: Vec<Request>,
) -> Result<Vec<Done>, StoreError> {
    let batch = store.begin()?;
    let mut done = Vec::with_capacity(requests.len());
    for request in requests {
        let status = request.status();
        match (batch.alone(|batch| request.apply(batch, quota))?, status) {
            (Ok(result), _) => done.push(result),
            (Err(why), Some((session, uuid))) => done.push(Done::Unstorable { session, uuid, why }),
            (Err(why), None) => {
                let what = format_args!("a request cannot be done: {why}");
                errors.report(ErrorClass::Rejected, "database", &what);
            }
        }
    }
    batch.commit()?;
    Ok(done)
}

/// A result that is reported after the commit.
enum Done {
    Status { session: Option<SessionId>, status: NewStatus, outcome: StatusOutcome },
    Unstorable { session: Option<SessionId>, uuid: String, why: String },
    Specs,
    Inserted(Sender<InsertOutcome>, InsertOutcome, Dispatch<Ticket>),
    Cheat(Sender<bool>, bool),
    Head(Sender<Option<JobHead>>, Option<JobHead>),
    Job(Sender<Option<JobRow>>, Option<JobRow>),
    Jobs(Sender<JobList>, JobList),
    AllSpecs(Sender<Vec<SpecsRow>>, Vec<SpecsRow>),
}

impl Request {
    /// The session that waits for the result, if any.
    fn session(&self) -> Option<SessionId> {
        match self {
            Request::Change(Change::Status { session, .. }) => *session,
            _ => None,
        }
    }

    /// If it is a status: the session that waits for its result, and the job.
    fn status(&self) -> Option<(Option<SessionId>, String)> {
        match self {
            Request::Change(Change::Status { session, status }) => Some((*session, status.uuid.clone())),
            _ => None,
        }
    }

    fn apply(self, batch: &Batch<'_>, quota: &Quota) -> Result<Done, StoreError> {
        Ok(match self {
            Request::Change(Change::Status { session, status }) => {
                let outcome = batch.add_status(&status)?;
                Done::Status { session, status, outcome }
            }
            Request::Change(Change::Specs(specs)) => {
                batch.put_specs(&specs)?;
                Done::Specs
            }
            Request::Insert { job, dispatch, reply } => {
                let outcome = batch.insert(&job, *quota)?;
                Done::Inserted(reply, outcome, dispatch)
            }
            Request::Cheat { uuid, trusted, at, reply } => Done::Cheat(reply, batch.report_cheat(&uuid, &trusted, at)?),
            Request::Head { user, uuid, reply } => Done::Head(reply, batch.head(&user, &uuid)?),
            Request::Job { user, uuid, details, reply } => Done::Job(reply, batch.job(&user, &uuid, details)?),
            Request::Jobs { query, reply } => Done::Jobs(reply, batch.jobs(&query)?),
            Request::Specs { reply } => Done::AllSpecs(reply, batch.specs()?),
        })
    }
}

impl Done {
    /// Whether a job has ended by it.
    fn ends_a_job(&self) -> bool {
        matches!(self, Done::Status { status: NewStatus { terminal: true, .. }, outcome: StatusOutcome::Stored, .. })
    }

    /// Reports to whoever waits, and gives what the router has to know. A caller that has given up gets nothing.
    fn report(self, changes: &Changes, jobs: &Jobs) -> Option<Input<Ticket>> {
        match self {
            Done::Status {
                session,
                status: NewStatus { uuid, status, validator, terminal, metadata, .. },
                outcome,
            } => {
                if outcome == StatusOutcome::Stored {
                    changes.notify(&uuid);
                    let why = || reason(metadata.as_deref().filter(|_| status != JobStatus::Completed.as_str())?);
                    show(jobs, &uuid, &status, terminal.then(why));
                    if terminal {
                        log::info!("job {uuid}: ended as {status}, validator {validator}");
                    }
                }
                let ended = match outcome {
                    StatusOutcome::Stored | StatusOutcome::Duplicate => terminal,
                    StatusOutcome::StoredLate => true,
                    StatusOutcome::NotFound => false,
                };
                return Some(Input::Stored { session, outcome: Some(outcome), ended: ended.then_some(uuid) });
            }
            Done::Unstorable { session, uuid, why } => return Some(Input::Unstorable { session, uuid, why }),
            Done::Specs => {}
            Done::Inserted(reply, outcome, dispatch) => {
                let _ = reply.send(outcome);
                return (outcome == InsertOutcome::Stored).then_some(Input::Dispatch(dispatch));
            }
            Done::Cheat(reply, is_new) => drop(reply.send(is_new).ok()),
            Done::Head(reply, head) => drop(reply.send(head).ok()),
            Done::Job(reply, job) => drop(reply.send(job).ok()),
            Done::Jobs(reply, page) => drop(reply.send(page).ok()),
            Done::AllSpecs(reply, specs) => drop(reply.send(specs).ok()),
        }
        None
    }
}

/// Takes a status that is stored into the jobs that are shown.
fn show(jobs: &Jobs, uuid: &str, status: &str, ended: Option<Option<&'static str>>) {
    let Some(status) = JobStatus::ALL.iter().find(|known| known.as_str() == status) else { return };
    match ended {
        Some(reason) => jobs.end(uuid, status.as_str(), reason),
        None => jobs.step(uuid, status.as_str()),
    }
}

/// Why a job has not ended well, by what its validator says in the details of its last status.
fn reason(details: &str) -> Option<&'static str> {
    #[derive(Deserialize)]
    struct Why {
        reason: String,
    }
    #[derive(Deserialize)]
    struct Details {
        job_rejection_details: Option<Why>,
        job_failure_details: Option<Why>,
        horde_failure_details: Option<Why>,
    }
    let details: Details = serde_json::from_str(details).ok()?;
    fn known(why: Option<Why>, mut all: impl Iterator<Item = &'static str>) -> Option<&'static str> {
        let why = why?.reason;
        all.find(|known| *known == why)
    }
    let Details { job_rejection_details, job_failure_details, horde_failure_details } = details;
    known(job_rejection_details, JobRejectionReason::ALL.iter().map(|reason| reason.as_str()))
        .or_else(|| known(job_failure_details, JobFailureReason::ALL.iter().map(|reason| reason.as_str())))
        .or_else(|| known(horde_failure_details, HordeFailureReason::ALL.iter().map(|reason| reason.as_str())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn why_a_job_has_not_ended_well_is_in_the_details_of_its_last_status() {
        for (details, expected) in [
            (r#"{"job_rejection_details": {"reason": "busy", "message": "m"}}"#, Some("busy")),
            (r#"{"job_failure_details": {"reason": "timeout"}, "job_rejection_details": null}"#, Some("timeout")),
            (r#"{"horde_failure_details": {"reason": "generic_error"}}"#, Some("generic_error")),
            (r#"{"job_rejection_details": {"reason": "of another release"}}"#, None),
            ("{}", None),
            ("null", None),
        ] {
            assert_eq!(reason(details), expected, "{details}");
        }
    }

    use crate::base::wait::far;

    #[test]
    fn a_call_that_the_thread_has_not_seen_ends_with_the_thread() {
        let folder = tempfile::tempdir().unwrap();
        let store = JobStore::open(folder.path()).unwrap();
        let stop = Shutdown::new();
        let (stored, _router) = bounded(1);
        let keep = Keep { jobs: 0, time: Duration::ZERO, bytes: 0 };
        let bounds = Bounds { quota: Quota::NONE, keep };
        let (handle, thread) = start(store, bounds, stored, Changes::default(), &stop, &Board::new());
        assert!(handle.job("user", "uuid", true, &Shutdown::new()).unwrap().is_none());
        // What comes between the thread's last look and the end of its queue; here the queue is another's.
        let (queue, _unread) = bounded(1);
        let late = StoreHandle { queue, ..handle };
        let caller =
            spawn("t-caller", Kick::dropped("the thread"), move || late.job("user", "uuid", true, &Shutdown::new()));
        stop.cancel();
        thread.join_by(far()).unwrap();
        assert_eq!(caller.join_by(far()).unwrap().unwrap_err(), CallError::Unavailable);
    }
}
