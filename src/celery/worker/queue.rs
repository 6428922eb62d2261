//! Where runs wait for a thread.

use std::sync::{Arc, Mutex};

use crossbeam_channel::{Receiver, Sender, bounded};

use super::run::Run;
use crate::base::limits::{CELERY_PREFETCH, CELERY_SCHEDULED};
use crate::base::lock::lock;

/// Where runs wait for a thread. It has room for all that a worker may hold, so it is never full.
pub(super) struct RunQueue(Mutex<Option<Sender<Arc<Run>>>>);

impl RunQueue {
    /// A queue, and its other end.
    pub(super) fn new() -> (Self, Receiver<Arc<Run>>) {
        let (sender, receiver) = bounded(CELERY_PREFETCH + CELERY_SCHEDULED);
        (Self(Mutex::new(Some(sender))), receiver)
    }

    /// Gives a run to the threads; false once the queue is closed.
    pub(super) fn push(&self, run: Arc<Run>) -> bool {
        lock(&self.0).as_ref().is_some_and(|queue| queue.try_send(run).is_ok())
    }

    /// Threads end when they have run what waits.
    pub(super) fn close(&self) {
        *lock(&self.0) = None;
    }
}
