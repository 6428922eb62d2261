//! The thread that owns the database: takes what is queued, does it in one transaction, and only then reports the
//! results.
//!
//! Owner: [`super::Facilitator`]. Blocks in: its queue, on the disk, and on the router's queue of results.
//! Kick: the stop signal at cancel. Ends: when that is raised, after what was queued is done.

use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, select};

use super::changes::Changes;
use super::router::{Change, Dispatch, Input};
use super::waiting::Ticket;
use crate::base::ids::SessionId;
use crate::base::limits::ROLE_EVENTS;
use crate::base::shutdown::{Never, Shutdown};
use crate::base::thread::{Kick, Thread, spawn};
use crate::base::waits::waiting;
use crate::ops::health::Health;
use crate::ops::metrics::{Metrics, SECONDS};
use crate::store::StoreError;
use crate::store::jobs::{Batch, JobPage, JobRow, JobStore, NewJob, NewStatus, SpecsRow, StatusOutcome};

/// Requests that become durable together: one commit costs some milliseconds, each further request in it next to
/// nothing.
const BATCH: usize = 256;

/// How long an HTTP request waits for the store; a disk that takes longer is down.
const CALL_TIME: Duration = Duration::from_secs(10);

/// Bytes of job results in one page of jobs; the rest of the page comes without them.
const PAGE_BYTES: usize = 32 << 20;

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
    Insert { job: NewJob, dispatch: Dispatch<Ticket>, reply: Sender<()> },
    Job { user: String, uuid: String, reply: Sender<Option<JobRow>> },
    Jobs { user: String, page: u64, page_size: u64, reply: Sender<JobPage> },
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

    /// Adds a job, which is durable when this returns; the router then sends it. Blocks on the disk, at most ten
    /// seconds.
    ///
    /// # Errors
    /// See [`CallError`].
    pub(super) fn insert(&self, job: NewJob, dispatch: Dispatch<Ticket>, stop: &Shutdown) -> Result<(), CallError> {
        self.call(stop, |reply| Request::Insert { job, dispatch, reply })
    }

    /// One job of a user. Blocks on the disk, at most ten seconds.
    ///
    /// # Errors
    /// See [`CallError`].
    pub(super) fn job(&self, user: &str, uuid: &str, stop: &Shutdown) -> Result<Option<JobRow>, CallError> {
        self.call(stop, |reply| Request::Job { user: user.to_owned(), uuid: uuid.to_owned(), reply })
    }

    /// One page of a user's jobs; `page` counts from 0. Blocks on the disk, at most ten seconds.
    ///
    /// # Errors
    /// See [`CallError`].
    pub(super) fn jobs(&self, user: &str, page: u64, page_size: u64, stop: &Shutdown) -> Result<JobPage, CallError> {
        self.call(stop, |reply| Request::Jobs { user: user.to_owned(), page, page_size, reply })
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

/// Starts the thread; what the router has to know goes to `stored`, in the order of the requests.
pub(super) fn start(
    mut store: JobStore,
    stored: Sender<Input<Ticket>>,
    changes: Changes,
    stop: &Shutdown,
    health: &Health,
    metrics: &Metrics,
) -> (StoreHandle, Thread<()>) {
    let (queue, requests) = bounded(ROLE_EVENTS);
    let (ends, ended) = bounded(0);
    let kick = stop.clone();
    let (stop, health, metrics) = (stop.clone(), health.clone(), metrics.clone());
    let thread = spawn("fac-store", Kick::new("stop signal", move || kick.cancel()), move || {
        // Whoever calls sees the end before the database is closed, and also that of a panic.
        let _ends = ends;
        run(&mut store, &requests, &stored, &changes, &stop, &health, &metrics);
    });
    (StoreHandle { queue, ended }, thread)
}

fn run(
    store: &mut JobStore,
    requests: &Receiver<Request>,
    stored: &Sender<Input<Ticket>>,
    changes: &Changes,
    stop: &Shutdown,
    health: &Health,
    metrics: &Metrics,
) {
    let commits =
        metrics.histogram("phalanx_facilitator_commit_seconds", "Time of a database transaction.", &[], SECONDS);
    let failures = metrics.counter("phalanx_facilitator_commit_failures_total", "Failed database transactions.", &[]);
    health.up("store");
    loop {
        let waits = requests.is_empty().then(|| waiting("something to read or store", None));
        let first = select! {
            recv(requests) -> request => request.ok(),
            recv(stop.cancel_receiver()) -> _ => requests.try_recv().ok(),
        };
        drop(waits);
        let Some(first) = first else { return };
        let batch: Vec<Request> = std::iter::once(first).chain(requests.try_iter().take(BATCH - 1)).collect();
        let sessions: Vec<SessionId> = batch.iter().filter_map(Request::session).collect();
        let start = Instant::now();
        let done = commit(store, batch);
        commits.observe_time(start.elapsed());
        let results = match done {
            Ok(done) => {
                health.up("store");
                done.into_iter().filter_map(|done| done.report(changes)).collect()
            }
            Err(error) => {
                log::error!("facilitator: {error}");
                failures.inc();
                health.down("store", error.to_string());
                sessions
                    .into_iter()
                    .map(|session| Input::Stored { session: Some(session), outcome: None, ended: None })
                    .collect::<Vec<_>>()
            }
        };
        for result in results {
            let _waiting = stored.is_full().then(|| waiting("room in the router's queue", None));
            select! {
                // If the router has gone, nobody waits for answers any more.
                send(stored, result) -> _ => {}
                recv(stop.cancel_receiver()) -> _ => {}
            }
        }
    }
}

/// All or nothing. On failure the replies are dropped, which those who wait for them see.
fn commit(store: &mut JobStore, requests: Vec<Request>) -> Result<Vec<Done>, StoreError> {
    let batch = store.begin()?;
    let done = requests.into_iter().map(|request| request.apply(&batch)).collect::<Result<_, _>>()?;
    batch.commit()?;
    Ok(done)
}

/// A result that is reported after the commit.
enum Done {
    Status { session: Option<SessionId>, status: NewStatus, outcome: StatusOutcome },
    Specs,
    Inserted(Sender<()>, Dispatch<Ticket>),
    Job(Sender<Option<JobRow>>, Option<JobRow>),
    Jobs(Sender<JobPage>, JobPage),
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

    fn apply(self, batch: &Batch<'_>) -> Result<Done, StoreError> {
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
                batch.insert(&job)?;
                Done::Inserted(reply, dispatch)
            }
            Request::Job { user, uuid, reply } => Done::Job(reply, batch.job(&user, &uuid)?),
            Request::Jobs { user, page, page_size, reply } => {
                Done::Jobs(reply, batch.jobs(&user, page, page_size, PAGE_BYTES)?)
            }
            Request::Specs { reply } => Done::AllSpecs(reply, batch.specs()?),
        })
    }
}

impl Done {
    /// Reports to whoever waits, and gives what the router has to know. A caller that has given up gets nothing.
    fn report(self, changes: &Changes) -> Option<Input<Ticket>> {
        match self {
            Done::Status { session, status: NewStatus { uuid, status, validator, terminal, .. }, outcome } => {
                if outcome == StatusOutcome::Stored {
                    changes.notify(&uuid);
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
            Done::Specs => {}
            Done::Inserted(reply, dispatch) => {
                let _ = reply.send(());
                return Some(Input::Dispatch(dispatch));
            }
            Done::Job(reply, job) => drop(reply.send(job).ok()),
            Done::Jobs(reply, page) => drop(reply.send(page).ok()),
            Done::AllSpecs(reply, specs) => drop(reply.send(specs).ok()),
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::wait::far;
    use crate::ops::status::Board;

    #[test]
    fn a_call_that_the_thread_has_not_seen_ends_with_the_thread() {
        let folder = tempfile::tempdir().unwrap();
        let store = JobStore::open(folder.path()).unwrap();
        let (stop, Board { health, metrics, .. }) = (Shutdown::new(), Board::new());
        let (stored, _router) = bounded(1);
        let (handle, thread) = start(store, stored, Changes::default(), &stop, &health, &metrics);
        assert!(handle.job("user", "uuid", &Shutdown::new()).unwrap().is_none());
        // What comes between the thread's last look and the end of its queue; here the queue is another's.
        let (queue, _unread) = bounded(1);
        let late = StoreHandle { queue, ..handle };
        let caller = spawn("t-caller", Kick::dropped("the thread"), move || late.job("user", "uuid", &Shutdown::new()));
        stop.cancel();
        thread.join_by(far()).unwrap();
        assert_eq!(caller.join_by(far()).unwrap().unwrap_err(), CallError::Unavailable);
    }
}
