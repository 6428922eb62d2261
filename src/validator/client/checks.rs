//! Signatures are checked on threads of their own, as many at a time as have come in. The jobs of a front wait for its
//! disk in the same way.
//!
//! Owner: [`Checks`], of the client or the front. Blocks in: the queue, and in what is done with the batch: nothing of
//! the client's, the disk of the front's, which has a deadline. Kick: closing the queue. Ends: when the queue is closed
//! and empty.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex};

use crate::base::lock::{lock, wait};
use crate::base::stop::Step;
use crate::base::thread::{Kick, Thread, spawn};
use crate::base::waits::waiting;

/// Items that one thread checks in one go; larger batches are hardly cheaper, and would wait for one another.
const BATCH: usize = 64;

/// Items that must wait before another thread helps: fewer are checked sooner by the one that is awake, and in their
/// order.
const HELP_FROM: usize = 16;

/// A bounded queue of signed things and the threads that check them.
#[derive(Debug)]
pub(in crate::validator) struct Checks<T> {
    queue: Arc<Queue<T>>,
    threads: Vec<Thread<()>>,
}

/// The way into the queue.
#[derive(Debug)]
pub(in crate::validator) struct ChecksHandle<T>(Arc<Queue<T>>);

impl<T> Clone for ChecksHandle<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

#[derive(Debug)]
struct Queue<T> {
    state: Mutex<ChecksState<T>>,
    changed: Condvar,
    limits: ChecksLimits,
    threads: usize,
}

/// Bounds of the queue.
#[derive(Debug, Clone, Copy)]
pub(in crate::validator) struct ChecksLimits {
    pub(in crate::validator) items: usize,
    pub(in crate::validator) bytes: usize,
}

#[derive(Debug)]
struct ChecksState<T> {
    items: VecDeque<(usize, T)>,
    bytes: usize,
    idle: usize,
    closed: bool,
}

impl<T: Send + 'static> Checks<T> {
    /// Starts `threads` threads `<name>-n`; each runs `check` on what it took.
    pub(in crate::validator) fn start(
        name: &str,
        threads: usize,
        limits: ChecksLimits,
        check: impl Fn(Vec<T>) + Send + Sync + 'static,
    ) -> Self {
        let state = ChecksState { items: VecDeque::new(), bytes: 0, idle: 0, closed: false };
        let queue = Arc::new(Queue { state: Mutex::new(state), changed: Condvar::new(), limits, threads });
        let check = Arc::new(check);
        let threads = (0..threads)
            .map(|n| {
                let (work, kicked, check) = (queue.clone(), queue.clone(), check.clone());
                spawn(format!("{name}-{n}"), Kick::new("close the queue", move || kicked.close()), move || {
                    while let Some(batch) = work.next() {
                        check(batch);
                    }
                })
            })
            .collect();
        Self { queue, threads }
    }

    pub(in crate::validator) fn handle(&self) -> ChecksHandle<T> {
        ChecksHandle(self.queue.clone())
    }

    /// Checks what is inside, then joins.
    pub(in crate::validator) fn stop(self, step: &mut Step) {
        self.queue.close();
        step.join_all(self.threads);
    }
}

impl<T> ChecksHandle<T> {
    /// Queues an item of this many bytes, or hands it back if there is no room. Never blocks.
    pub(in crate::validator) fn push(&self, bytes: usize, item: T) -> Result<(), T> {
        let Queue { state, changed, limits, threads } = &*self.0;
        let mut state = lock(state);
        if state.closed || state.items.len() >= limits.items || state.bytes + bytes > limits.bytes {
            return Err(item);
        }
        state.items.push_back((bytes, item));
        state.bytes += bytes;
        let wake = state.idle > 0 && (state.idle == *threads || state.items.len() >= HELP_FROM);
        drop(state);
        if wake {
            changed.notify_one();
        }
        Ok(())
    }
}

impl<T> Queue<T> {
    /// A fair share of what is inside; `None` at the end.
    fn next(&self) -> Option<Vec<T>> {
        let mut state = lock(&self.state);
        while state.items.is_empty() {
            if state.closed {
                return None;
            }
            state.idle += 1;
            let _waiting = waiting("job requests to check", None);
            state = wait(&self.changed, state);
            state.idle -= 1;
        }
        let share = state.items.len().div_ceil(self.threads - state.idle).min(BATCH);
        let taken: Vec<(usize, T)> = state.items.drain(..share).collect();
        state.bytes -= taken.iter().map(|(bytes, _)| bytes).sum::<usize>();
        Some(taken.into_iter().map(|(_, item)| item).collect())
    }

    fn close(&self) {
        lock(&self.state).closed = true;
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::base::stop::Stopping;
    use std::time::Duration;

    #[test]
    fn it_refuses_beyond_its_bounds_and_checks_all_that_it_took() {
        let (go, gate) = crossbeam_channel::bounded::<()>(0);
        let seen: Arc<Mutex<Vec<u32>>> = Arc::default();
        let found = seen.clone();
        let (takes, taken) = crossbeam_channel::bounded(1);
        let checks = Checks::start("t-check", 1, ChecksLimits { items: 2, bytes: 100 }, move |batch: Vec<u32>| {
            // Only the first is waited for.
            let _full = takes.try_send(());
            let _closed = gate.recv();
            lock(&found).extend(batch);
        });
        let handle = checks.handle();
        handle.push(60, 1).unwrap();
        // The thread holds the first; only then is the queue empty again.
        taken.recv_timeout(Duration::from_secs(30)).unwrap();
        handle.push(60, 2).unwrap();
        assert_eq!(handle.push(60, 3), Err(3), "too many bytes");
        handle.push(1, 4).unwrap();
        assert_eq!(handle.push(1, 5), Err(5), "too many items");
        drop(go);
        let mut stopping = Stopping::alone();
        stopping.step("checks", Duration::from_secs(60), |step| checks.stop(step));
        assert!(stopping.finish().is_clean());
        assert_eq!(*lock(&seen), [1, 2, 4]);
        assert_eq!(handle.push(1, 6), Err(6), "closed");
    }
}
