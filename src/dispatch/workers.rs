//! Jobs on threads of this process.
//!
//! Owner: [`Workers`]. Blocks in: the job queue, then in whatever the job does. Kick: closing the queue; for a job, its
//! cancel signal. Ends: when the queue is closed and empty.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};

use crossbeam_channel::{Receiver, Sender, bounded};

use super::{Backend, Busy, Work};
use crate::base::lock::lock;
use crate::base::shutdown::{Level, Shutdown};
use crate::base::stop::Step;
use crate::base::thread::{Kick, Thread, panic_message, spawn};

/// A pool that grows to `limit` threads as jobs need them, and refuses a job when all of them are at work.
pub struct Workers {
    name: &'static str,
    limit: usize,
    cancel: Shutdown,
    /// The pool keeps the receiver's clone only to give it to new threads; each thread ends when the sender is gone.
    state: Mutex<State>,
}

struct State {
    jobs: Option<Sender<Work>>,
    queue: Receiver<Work>,
    running: Arc<Mutex<usize>>,
    threads: Vec<Thread<()>>,
}

impl fmt::Debug for Workers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Workers({} of {} busy)", self.running(), self.limit)
    }
}

impl Workers {
    /// A pool of at most `limit` threads named `name-n`; `name` has at most 11 bytes. Starts none yet.
    pub fn new(name: &'static str, limit: usize) -> Self {
        // At most `limit` jobs are in progress, so a send into this queue never blocks.
        let (jobs, queue) = bounded(limit.max(1));
        let state = State { jobs: Some(jobs), queue, running: Arc::default(), threads: Vec::new() };
        Self { name, limit, cancel: Shutdown::new(), state: Mutex::new(state) }
    }
}

impl Backend for Workers {
    fn submit(&self, work: Work) -> Result<(), Busy> {
        let mut state = lock(&self.state);
        let running = {
            let mut running = lock(&state.running);
            if state.jobs.is_none() || *running >= self.limit {
                return Err(Busy(work));
            }
            *running += 1;
            *running
        };
        if running > state.threads.len() {
            let (queue, count, cancel) = (state.queue.clone(), state.running.clone(), self.cancel.clone());
            let kick_cancel = self.cancel.clone();
            let name = format!("{}-{}", self.name, state.threads.len());
            let kick = Kick::new("job queue and cancel signal", move || kick_cancel.cancel());
            state.threads.push(spawn(name, kick, move || work_loop(&queue, &count, &cancel)));
        }
        let jobs = state.jobs.as_ref().expect("checked above under the same lock");
        jobs.try_send(work).map_err(|error| {
            *lock(&state.running) -= 1;
            Busy(error.into_inner())
        })
    }

    fn running(&self) -> usize {
        let running = lock(&self.state).running.clone();
        let running = lock(&running);
        *running
    }

    fn close(&self) {
        lock(&self.state).jobs = None;
    }

    fn stop(&self, step: &mut Step) -> usize {
        self.close();
        let threads = std::mem::take(&mut lock(&self.state).threads);
        let cancel = self.cancel.clone();
        let _cancel = step.shutdown().on(Level::Cancel, move || cancel.cancel());
        let mut cancelled = 0;
        for thread in threads {
            if !step.wait(thread.done_receiver()) && cancelled == 0 {
                cancelled = self.running();
                self.cancel.cancel();
                step.extend_for_cancel();
            }
            step.join(thread);
        }
        cancelled
    }
}

fn work_loop(queue: &Receiver<Work>, running: &Mutex<usize>, cancel: &Shutdown) {
    while let Ok(work) = queue.recv() {
        // A panic is the job's end, not the worker's; the job's own guard has reported it.
        if let Err(payload) = catch_unwind(AssertUnwindSafe(|| work(cancel))) {
            log::error!("a job panicked: {}", panic_message(payload.as_ref()));
        }
        *lock(running) -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::stop::Stopping;
    use crate::base::thread::Group;
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
        for _ in 0..2 {
            let (gate, done_tx) = (gate.clone(), done_tx.clone());
            workers.submit(Box::new(move |_| done_tx.send(gate.recv().is_ok()).unwrap())).unwrap();
        }
        assert!(workers.submit(Box::new(|_| {})).is_err());
        assert_eq!((workers.running(), group.live().len()), (2, 2));
        go.send(()).unwrap();
        go.send(()).unwrap();
        assert!(done.recv_timeout(LONG).unwrap() && done.recv_timeout(LONG).unwrap());
        // The count falls right after the job's last statement.
        while workers.running() > 0 {
            std::thread::yield_now();
        }
        workers.submit(Box::new(|_| {})).unwrap();
        assert_eq!(stop(&workers, LONG), 0);
        assert!(group.live().is_empty());
        assert!(workers.submit(Box::new(|_| {})).is_err());
    }

    #[test]
    fn a_panicking_job_does_not_cost_a_worker() {
        let workers = Workers::new("t-work", 1);
        workers.submit(Box::new(|_| panic!("boom"))).unwrap();
        while workers.running() > 0 {
            std::thread::yield_now();
        }
        let (tx, rx) = bounded(1);
        workers.submit(Box::new(move |_| tx.send(7).unwrap())).unwrap();
        assert_eq!(rx.recv_timeout(LONG).unwrap(), 7);
        stop(&workers, LONG);
    }

    #[test]
    fn a_job_that_outlives_the_budget_is_cancelled_and_counted() {
        let workers = Workers::new("t-work", 4);
        for _ in 0..3 {
            workers.submit(Box::new(|cancel| assert!(cancel.wait_for(Level::Cancel, LONG)))).unwrap();
        }
        assert_eq!(stop(&workers, Duration::from_millis(20)), 3);
    }
}
