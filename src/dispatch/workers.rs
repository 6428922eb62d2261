//! Jobs on threads of this process: each is a task of a [`TaskManager`].
//!
//! Owner: [`Workers`]; the threads are the manager's, see [`crate::tasks`].

use std::collections::HashMap;
use std::convert::Infallible;
use std::fmt;
use std::sync::{Arc, Mutex};

use super::{Backend, Busy, Work};
use crate::base::lock::lock;
use crate::base::stop::Step;
use crate::tasks::{TaskConfig, TaskContext, TaskId, TaskManager, TaskOptions, Tasks, TasksStatus, WhenFull};

/// A pool that grows to `limit` threads as jobs need them, and refuses a job when all of them are at work.
pub struct Workers {
    tasks: Tasks,
    limit: usize,
    /// Taken by the stop.
    manager: Mutex<Option<TaskManager>>,
    jobs: Arc<Mutex<Jobs>>,
}

/// Jobs by name; the id comes right after the job is accepted.
type Jobs = HashMap<Arc<str>, Option<TaskId>>;

impl fmt::Debug for Workers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Workers({} of {} busy)", self.running(), self.limit)
    }
}

/// The job has its thread until this is dropped, by its end or with its work.
struct Place {
    job: Arc<str>,
    jobs: Arc<Mutex<Jobs>>,
}

impl Drop for Place {
    fn drop(&mut self) {
        lock(&self.jobs).remove(&self.job);
    }
}

impl Workers {
    /// A pool of at most `limit` threads named `name-n`; `name` has at most 10 bytes. Starts no worker yet.
    ///
    /// # Panics
    /// If the name is too long or the limit is 0: mistakes in the program.
    pub fn new(name: &'static str, limit: usize) -> Self {
        // At most `limit` jobs are in progress, so the queue is never full.
        let config = TaskConfig { queue: limit, when_full: WhenFull::Refuse, ..TaskConfig::new(name).workers(limit) };
        let manager = TaskManager::start(config).expect("the numbers of a pool are good");
        Self { tasks: manager.handle(), limit, manager: Mutex::new(Some(manager)), jobs: Arc::default() }
    }

    /// The jobs as tasks.
    pub fn status(&self) -> TasksStatus {
        self.tasks.status()
    }
}

impl Backend for Workers {
    fn submit(&self, job: &str, work: Work) -> Result<(), Busy> {
        let job: Arc<str> = job.into();
        {
            let mut jobs = lock(&self.jobs);
            if jobs.len() >= self.limit || jobs.contains_key(&job) {
                return Err(Busy(work));
            }
            jobs.insert(job.clone(), None);
        }
        // Shared with what hands the work back, because the task is refused with its closure.
        let work = Arc::new(Mutex::new(Some(work)));
        let place = Place { job: job.clone(), jobs: self.jobs.clone() };
        let begun = work.clone();
        let run = move |cx: &TaskContext<'_>| {
            let _place = place;
            let work = lock(&begun).take();
            if let Some(work) = work {
                work(cx.signal());
            }
            Ok::<_, Infallible>(())
        };
        match self.tasks.submit(TaskOptions::new("job").metadata("job", &*job), run) {
            Ok(task) => {
                if let Some(id) = lock(&self.jobs).get_mut(&job) {
                    *id = Some(task.id());
                }
                Ok(())
            }
            Err(refused) => {
                drop(refused);
                let work = lock(&work).take();
                Err(Busy(work.expect("work that nobody has begun is there")))
            }
        }
    }

    fn cancel(&self, job: &str) -> bool {
        let id = lock(&self.jobs).get(job).copied().flatten();
        id.is_some_and(|id| self.tasks.cancel(id))
    }

    fn running(&self) -> usize {
        lock(&self.jobs).len()
    }

    fn close(&self) {
        if let Some(manager) = &*lock(&self.manager) {
            manager.close();
        }
    }

    fn stop(&self, step: &mut Step) -> usize {
        let manager = lock(&self.manager).take();
        manager.map_or(0, |manager| manager.stop(step).cancelled)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::shutdown::{Level, Shutdown};
    use crate::base::stop::Stopping;
    use crate::base::thread::Group;
    use crossbeam_channel::bounded;
    use std::time::Duration;

    const LONG: Duration = Duration::from_secs(60);

    fn stop(workers: &Workers, budget: Duration) -> usize {
        let mut stopping = Stopping::new(&Shutdown::new());
        let cancelled = stopping.step("workers", budget, |step| workers.stop(step));
        assert!(stopping.finish().is_clean());
        cancelled
    }

    #[test]
    fn it_refuses_when_all_are_busy_and_takes_again_afterwards() {
        let group = Group::enter();
        let workers = Workers::new("t-work", 2);
        let (go, gate) = bounded::<()>(0);
        let (done_tx, done) = bounded(8);
        for job in ["a", "b"] {
            let (gate, done_tx) = (gate.clone(), done_tx.clone());
            workers.submit(job, Box::new(move |_| done_tx.send(gate.recv().is_ok()).unwrap())).unwrap();
        }
        assert!(workers.submit("c", Box::new(|_| {})).is_err());
        // And the thread that knows what is due.
        assert_eq!((workers.running(), group.live().len()), (2, 2 + 1));
        go.send(()).unwrap();
        go.send(()).unwrap();
        assert!(done.recv_timeout(LONG).unwrap() && done.recv_timeout(LONG).unwrap());
        // The count falls right after the job's last statement.
        while workers.running() > 0 {
            std::thread::yield_now();
        }
        workers.submit("c", Box::new(|_| {})).unwrap();
        assert_eq!(stop(&workers, LONG), 0);
        assert!(group.live().is_empty());
        assert!(workers.submit("d", Box::new(|_| {})).is_err());
    }

    #[test]
    fn a_panicking_job_does_not_cost_a_worker() {
        let workers = Workers::new("t-work", 1);
        workers.submit("a", Box::new(|_| panic!("boom"))).unwrap();
        while workers.running() > 0 {
            std::thread::yield_now();
        }
        let (tx, rx) = bounded(1);
        workers.submit("b", Box::new(move |_| tx.send(7).unwrap())).unwrap();
        assert_eq!(rx.recv_timeout(LONG).unwrap(), 7);
        stop(&workers, LONG);
    }

    #[test]
    fn a_job_that_outlives_the_budget_is_cancelled_and_counted() {
        let workers = Workers::new("t-work", 4);
        for job in ["a", "b", "c"] {
            workers.submit(job, Box::new(|cancel| assert!(cancel.wait_for(Level::Cancel, LONG)))).unwrap();
        }
        assert_eq!(stop(&workers, Duration::from_millis(20)), 3);
    }

    #[test]
    fn a_job_is_cancelled_by_its_name_and_others_go_on() {
        let workers = Workers::new("t-work", 2);
        let (told_tx, told) = bounded(2);
        let (open, gate) = bounded::<()>(0);
        let (begun_tx, begun) = bounded(1);
        let cancelled = told_tx.clone();
        workers
            .submit(
                "a",
                Box::new(move |cancel| {
                    begun_tx.send(()).unwrap();
                    cancelled.send(cancel.wait_for(Level::Cancel, LONG)).unwrap();
                }),
            )
            .unwrap();
        begun.recv_timeout(LONG).unwrap();
        workers
            .submit(
                "b",
                Box::new(move |cancel| {
                    gate.recv().unwrap();
                    told_tx.send(cancel.is_set()).unwrap();
                }),
            )
            .unwrap();
        assert!(workers.submit("b", Box::new(|_| {})).is_err(), "there is one of this name");
        assert!(workers.cancel("a"));
        assert!(told.recv_timeout(LONG).unwrap());
        open.send(()).unwrap();
        assert!(!told.recv_timeout(LONG).unwrap());
        stop(&workers, LONG);
        assert!(!workers.cancel("a") && !workers.cancel("never"));
    }
}
