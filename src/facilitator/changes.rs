//! Who waits for news of which job.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::base::lock::lock;

/// The waiters of all jobs; clones are the same list.
#[derive(Debug, Clone, Default)]
pub(super) struct Changes(Arc<Mutex<Waiters>>);

#[derive(Debug, Default)]
struct Waiters {
    next: u64,
    jobs: HashMap<String, Vec<(u64, Sender<()>)>>,
}

/// A place in the list; dropping it leaves the list.
#[derive(Debug)]
pub(super) struct Waiter {
    changes: Changes,
    uuid: String,
    id: u64,
    news: Receiver<()>,
}

impl Changes {
    /// Waits for news of a job from now on. To miss none, the job is read after this.
    pub(super) fn wait_for(&self, uuid: &str) -> Waiter {
        let (notify, news) = bounded(1);
        let mut waiters = lock(&self.0);
        let id = waiters.next;
        waiters.next += 1;
        waiters.jobs.entry(uuid.to_owned()).or_default().push((id, notify));
        Waiter { changes: self.clone(), uuid: uuid.to_owned(), id, news }
    }

    /// There is news of a job.
    pub(super) fn notify(&self, uuid: &str) {
        for (_, waiter) in lock(&self.0).jobs.get(uuid).into_iter().flatten() {
            // A full channel holds news already.
            let _ = waiter.try_send(());
        }
    }
}

impl Waiter {
    /// Gets a message when there is news; for an arm of `select!`.
    pub(super) fn news(&self) -> &Receiver<()> {
        &self.news
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        let mut waiters = lock(&self.changes.0);
        if let Some(of_job) = waiters.jobs.get_mut(&self.uuid) {
            of_job.retain(|(id, _)| *id != self.id);
            if of_job.is_empty() {
                waiters.jobs.remove(&self.uuid);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn news_reaches_those_who_wait_for_that_job() {
        let changes = Changes::default();
        let (one, two, other) = (changes.wait_for("a"), changes.wait_for("a"), changes.wait_for("b"));
        changes.notify("a");
        changes.notify("a");
        assert!(one.news().try_recv().is_ok() && two.news().try_recv().is_ok());
        assert!(one.news().try_recv().is_err() && other.news().try_recv().is_err());
        drop((one, two, other));
        assert!(lock(&changes.0).jobs.is_empty());
    }
}
