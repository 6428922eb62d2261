//! Jobs on threads of this process: each is a task of a [`TaskManager`].
//!
//! Owner: [`Workers`]; the threads are the manager's, see [`crate::tasks`].

use std::convert::Infallible;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use super::client::job::Reports;
use super::client::{Job, JobHandler, RunningJob};
use super::status::Outcome;
use crate::base::lock::lock;
use crate::base::scope;
use crate::base::shutdown::Shutdown;
use crate::base::stop::Step;
use crate::tasks::{TaskConfig, TaskContext, TaskManager, TaskOptions, Tasks, TasksStatus, WhenFull};

/// A pool that grows to `limit` threads as jobs need them, and refuses a job when all of them are at work.
pub(super) struct Workers {
    tasks: Tasks,
    limit: usize,
    /// Jobs that have a thread.
    running: Arc<AtomicUsize>,
    /// Taken by the stop.
    manager: Mutex<Option<TaskManager>>,
}

impl fmt::Debug for Workers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Workers({} of {} busy)", self.running(), self.limit)
    }
}

/// The job has its thread until this is dropped, by its end or with its work.
struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Workers {
    /// A pool of at most `limit` threads named `name-n`; `name` has at most 10 bytes. Starts no worker yet.
    ///
    /// # Panics
    /// If the name is too long or the limit is 0: mistakes in the program.
    pub(super) fn new(name: &'static str, limit: usize) -> Self {
        // At most `limit` jobs are in progress, so the queue is never full.
        let config = TaskConfig { queue: limit, when_full: WhenFull::Refuse, ..TaskConfig::new(name).workers(limit) };
        let manager = TaskManager::start(config).expect("the numbers of a pool are good");
        Self { tasks: manager.handle(), limit, running: Arc::default(), manager: Mutex::new(Some(manager)) }
    }

    /// Runs a job of this name to its end on a thread; its signal reaches cancel when it is to end soon. False, and the
    /// work is dropped, if all threads are at work or the pool stops. Never blocks.
    pub(super) fn submit(&self, job: &str, work: impl FnOnce(&Shutdown) + Send + 'static) -> bool {
        let free = |running| (running < self.limit).then_some(running + 1);
        if self.running.fetch_update(Ordering::SeqCst, Ordering::SeqCst, free).is_err() {
            return false;
        }
        let place = Place(self.running.clone());
        let run = move |cx: &TaskContext<'_>| {
            let _place = place;
            work(cx.signal());
            Ok::<_, Infallible>(())
        };
        self.tasks.spawn(TaskOptions::new("job").metadata("job", job), run).is_ok()
    }

    /// Its threads and tasks in numbers.
    pub(super) fn status(&self) -> TasksStatus {
        self.tasks.status()
    }

    /// Jobs taken and not yet ended.
    pub(super) fn running(&self) -> usize {
        self.running.load(Ordering::SeqCst)
    }

    /// Takes no more jobs, lets those that run end within the step's budget, cancels the rest, and joins every thread;
    /// gives the number of jobs that were cancelled.
    pub(super) fn stop_in(&self, step: &mut Step) -> usize {
        let manager = lock(&self.manager).take();
        manager.map_or(0, |manager| manager.stop_in(step).cancelled)
    }
}

/// Runs each job on a thread of a pool; a job for which no thread is free is turned away as busy.
///
/// A stop of the client waits for the jobs, see [`RunningJob::stop_signal`]; the pool's threads end with the client.
pub struct OnWorkers<F> {
    pool: Workers,
    work: Arc<F>,
}

impl<F: Fn(&RunningJob) -> Outcome + Send + Sync + 'static> OnWorkers<F> {
    /// At most `threads` jobs at a time; `work` runs one and says how it ended. A panic ends its job as `horde_failed`.
    pub fn new(threads: usize, work: F) -> Self {
        Self { pool: Workers::new("val-work", threads), work: Arc::new(work) }
    }
}

impl<F: Fn(&RunningJob) -> Outcome + Send + Sync + 'static> JobHandler for OnWorkers<F> {
    fn job(&self, job: Job) {
        let work = self.work.clone();
        let uuid = job.request().uuid.clone();
        // A job that the pool does not take is dropped, which turns it away.
        self.pool.submit(&uuid, move |_| {
            let job = job.receive();
            let _job = scope::job(job.request().uuid.as_str());
            let outcome = work(&job);
            Reports::end(job, outcome);
        });
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::base::shutdown::Level;
    use crate::base::stop::Stopping;
    use crate::base::thread::Group;
    use crate::tasks::Filter;
    use crossbeam_channel::bounded;

    const LONG: Duration = Duration::from_secs(60);

    fn stop(workers: &Workers, budget: Duration) -> usize {
        let mut stopping = Stopping::alone();
        let cancelled = stopping.step("workers", budget, |step| workers.stop_in(step));
        assert!(stopping.finish().is_clean());
        cancelled
    }

    /// Waits until every job so far has left its thread.
    fn wait_ended(workers: &Workers) {
        for task in workers.tasks.list(&Filter::default()) {
            workers.tasks.wait_for(task.id, LONG);
        }
        assert_eq!(workers.running(), 0);
    }

    #[test]
    fn it_refuses_when_all_are_busy_and_takes_again_afterwards() {
        let group = Group::enter();
        let workers = Workers::new("t-work", 2);
        let (go, gate) = bounded::<()>(0);
        let (done_tx, done) = bounded(8);
        for job in ["a", "b"] {
            let (gate, done_tx) = (gate.clone(), done_tx.clone());
            assert!(workers.submit(job, move |_| done_tx.send(gate.recv().is_ok()).unwrap()));
        }
        assert!(!workers.submit("c", |_| {}));
        // And the thread that knows what is due.
        assert_eq!((workers.running(), group.live().len()), (2, 2 + 1));
        go.send(()).unwrap();
        go.send(()).unwrap();
        assert!(done.recv_timeout(LONG).unwrap() && done.recv_timeout(LONG).unwrap());
        wait_ended(&workers);
        assert!(workers.submit("c", |_| {}));
        assert_eq!(stop(&workers, LONG), 0);
        assert!(group.live().is_empty());
        assert!(!workers.submit("d", |_| {}));
        assert_eq!(workers.running(), 0);
    }

    #[test]
    fn a_panicking_job_does_not_cost_a_worker() {
        let workers = Workers::new("t-work", 1);
        assert!(workers.submit("a", |_| panic!("boom")));
        wait_ended(&workers);
        let (tx, rx) = bounded(1);
        assert!(workers.submit("b", move |_| tx.send(7).unwrap()));
        assert_eq!(rx.recv_timeout(LONG).unwrap(), 7);
        stop(&workers, LONG);
    }

    #[test]
    fn a_job_that_outlives_the_budget_is_cancelled_and_counted() {
        let workers = Workers::new("t-work", 4);
        for job in ["a", "b", "c"] {
            assert!(workers.submit(job, |cancel| assert!(cancel.wait_for(Level::Cancel, LONG))));
        }
        assert_eq!(stop(&workers, Duration::from_millis(20)), 3);
    }
}
