//! The threads that run handlers.
//!
//! Owner: the [`Pool`], of the worker. Blocks in: the queue, then in whatever a handler does. Kick: the worker cancels the
//! signal of each run; the queue is closed. Ends: when the queue is closed and empty.

use std::sync::{Arc, Mutex};

use crossbeam_channel::{Receiver, Sender, bounded};

use super::run::Run;
use crate::base::limits::CELERY_SCHEDULED;
use crate::base::lock::lock;
use crate::base::stop::Step;
use crate::base::thread::{Kick, Thread, spawn};
use crate::base::waits::recv;

/// Where runs wait for a thread. It has room for all that a worker may hold, so it is never full.
pub struct Queue(Mutex<Option<Sender<Arc<Run>>>>);

impl Queue {
    /// A queue, and its other end.
    pub fn new(prefetch: usize) -> (Self, Receiver<Arc<Run>>) {
        let (sender, receiver) = bounded(prefetch + CELERY_SCHEDULED);
        (Self(Mutex::new(Some(sender))), receiver)
    }

    /// Hands a run to the threads; false once the queue is closed.
    pub fn push(&self, run: Arc<Run>) -> bool {
        lock(&self.0).as_ref().is_some_and(|queue| queue.try_send(run).is_ok())
    }

    /// Threads end when they have run what waits.
    pub fn close(&self) {
        *lock(&self.0) = None;
    }
}

/// Owns the threads.
#[derive(Debug)]
pub struct Pool(Vec<Thread<()>>);

impl Pool {
    pub fn start(threads: usize, runs: &Receiver<Arc<Run>>) -> Self {
        let thread = |n: usize| {
            let runs = runs.clone();
            spawn(format!("cel-work-{n}"), Kick::dropped("the queue and the signal of the run"), move || {
                while let Ok(run) = recv(&runs, "a task") {
                    run.execute();
                }
            })
        };
        Self((0..threads).map(thread).collect())
    }

    /// Joins the threads; the queue was closed and the runs were cancelled before.
    pub fn stop(self, step: &mut Step) {
        for thread in self.0 {
            step.join(thread);
        }
    }
}
