//! The workers of a manager, as the scheduler counts them.

use crate::base::thread::Thread;
use crate::tasks::sleepers::Sleepers;

#[derive(Default)]
pub(super) struct WorkerSet {
    /// By number; taken out when they are to be joined.
    workers: Vec<Worker>,
    /// Those without a task.
    pub(super) idle: Sleepers,
    /// Those of them that are awake and look for one.
    pub(super) looking: usize,
    /// Those that take tasks.
    pub(super) active: usize,
    /// Those that were written off and still run.
    pub(super) written_off: usize,
}

struct Worker {
    thread: Thread<()>,
    written_off: bool,
}

impl WorkerSet {
    /// The number of the next worker.
    pub(super) fn next_number(&self) -> usize {
        self.workers.len()
    }

    pub(super) fn add(&mut self, thread: Thread<()>) {
        self.active += 1;
        self.workers.push(Worker { thread, written_off: false });
    }

    /// Workers that are on their way to a task.
    pub(super) fn coming(&self) -> usize {
        self.idle.woken + self.looking
    }

    /// Whether no worker can be had for another task, of `most` at a time.
    pub(super) fn is_busy(&self, most: usize) -> bool {
        self.idle.asleep == 0 && self.active >= most
    }

    /// Gives this worker's place to another.
    pub(super) fn write_off(&mut self, worker: usize) {
        if let Some(worker) = self.workers.get_mut(worker) {
            worker.written_off = true;
            self.written_off += 1;
            self.active -= 1;
        }
    }

    /// Whether this worker's place was given to another; false for all once they are about to be joined.
    pub(super) fn is_written_off(&self, worker: usize) -> bool {
        self.workers.get(worker).is_some_and(|worker| worker.written_off)
    }

    /// A worker leaves.
    pub(super) fn leave(&mut self, worker: usize) {
        if self.is_written_off(worker) {
            self.written_off -= 1;
        }
    }

    /// The threads, for whoever joins them.
    pub(super) fn take(&mut self) -> Vec<Thread<()>> {
        std::mem::take(&mut self.workers).into_iter().map(|worker| worker.thread).collect()
    }
}
