//! A bounded queue, and threads that take batches of what is in it, as much at a time as has come in. Signatures are
//! checked so, and the jobs of a front wait so for its disk.
//!
//! Owner: [`WorkQueue`], of the client or the front. Blocks in: the queue, and in what is done with the batch: nothing
//! of the client's; the disk of the front's, by a deadline, and until the front closes. Kick: closing the queue. Ends:
//! when the queue is closed and empty.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use crate::base::lock::{lock, wait};
use crate::base::stop::Step;
use crate::base::thread::{Kick, Thread, spawn};
use crate::base::waits::waiting;
use crate::ops::health::{Answer, Health, Pulse};

/// Items that one thread takes in one go; larger batches are hardly cheaper, and would wait for one another.
const BATCH: usize = 64;

/// Items that must wait before another thread helps: fewer are done sooner by the one that is awake, and in their
/// order.
const HELP_FROM: usize = 16;

/// The queue and its threads.
#[derive(Debug)]
pub(in crate::validator) struct WorkQueue<T> {
    queue: Arc<Queue<T>>,
    threads: Vec<Thread<()>>,
}

/// The way into the queue.
#[derive(Debug)]
pub(in crate::validator) struct WorkQueueHandle<T>(Arc<Queue<T>>);

impl<T> Clone for WorkQueueHandle<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

#[derive(Debug)]
struct Queue<T> {
    state: Mutex<WorkState<T>>,
    changed: Condvar,
    limits: WorkLimits,
    threads: usize,
    /// For what its threads wait.
    what: &'static str,
}

/// Bounds of the queue.
#[derive(Debug, Clone, Copy)]
pub(in crate::validator) struct WorkLimits {
    pub(in crate::validator) items: usize,
    pub(in crate::validator) bytes: usize,
}

#[derive(Debug)]
struct WorkState<T> {
    items: VecDeque<(usize, T)>,
    bytes: usize,
    idle: usize,
    closed: bool,
}

impl<T: Send + 'static> WorkQueue<T> {
    /// Starts `threads` threads `<name>-n`; each waits for `what`, as the live list shows, and runs `work` on what it
    /// took. Each promises progress as that part of the health: a batch may take that time.
    pub(in crate::validator) fn start(
        (name, what): (&str, &'static str),
        threads: usize,
        limits: WorkLimits,
        (health, part, batch_time): (&Health, &'static str, Duration),
        work: impl Fn(Vec<T>) + Send + Sync + 'static,
    ) -> Self {
        let state = WorkState { items: VecDeque::new(), bytes: 0, idle: 0, closed: false };
        let queue = Arc::new(Queue { state: Mutex::new(state), changed: Condvar::new(), limits, threads, what });
        let work = Arc::new(work);
        let threads = (0..threads)
            .map(|n| {
                let (taken, kicked, work) = (queue.clone(), queue.clone(), work.clone());
                let probed = Arc::downgrade(&queue);
                let wake = move |_: &Answer| probed.upgrade().iter().for_each(|queue| queue.wake_all());
                let pulse = health.pulse_of_loop(part, batch_time, wake);
                spawn(format!("{name}-{n}"), Kick::new("close the queue", move || kicked.close()), move || {
                    while let Some(batch) = taken.next(&pulse) {
                        pulse.begin(Instant::now() + batch_time);
                        work(batch);
                    }
                })
            })
            .collect();
        Self { queue, threads }
    }

    pub(in crate::validator) fn handle(&self) -> WorkQueueHandle<T> {
        WorkQueueHandle(self.queue.clone())
    }

    /// Does what is inside, then joins.
    pub(in crate::validator) fn stop_in(self, step: &mut Step) {
        self.queue.close();
        step.join_all(self.threads);
    }
}

impl<T> WorkQueueHandle<T> {
    /// Queues an item of this many bytes, or hands it back if there is no room. Never blocks.
    pub(in crate::validator) fn push(&self, bytes: usize, item: T) -> Result<(), T> {
        let Queue { state, changed, limits, threads, .. } = &*self.0;
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
    fn next(&self, pulse: &Pulse) -> Option<Vec<T>> {
        let mut state = lock(&self.state);
        // Under the lock, so that whoever asks after this finds a thread that waits, and wakes it.
        pulse.done();
        while state.items.is_empty() {
            if state.closed {
                return None;
            }
            state.idle += 1;
            let _waiting = waiting(self.what, None);
            state = wait(&self.changed, state);
            state.idle -= 1;
            pulse.done();
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

    /// Has the idle threads come round.
    fn wake_all(&self) {
        drop(lock(&self.state));
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::base::stop::Stopping;
    use crossbeam_channel::RecvTimeoutError;

    #[test]
    fn it_refuses_beyond_its_bounds_and_does_all_that_it_took() {
        let (go, gate) = crossbeam_channel::bounded::<()>(0);
        let seen: Arc<Mutex<Vec<u32>>> = Arc::default();
        let found = seen.clone();
        let (takes, taken) = crossbeam_channel::bounded(1);
        let (health, far) = (Health::new(), Duration::from_secs(60));
        let limits = WorkLimits { items: 2, bytes: 100 };
        let queue =
            WorkQueue::start(("t-work", "numbers"), 1, limits, (&health, "work", far), move |batch: Vec<u32>| {
                // Only the first is waited for.
                let _full = takes.try_send(());
                let _closed = gate.recv();
                lock(&found).extend(batch);
            });
        let asked = health.probe(Instant::now());
        let answered = asked.recv_timeout(far).is_err_and(|error| error == RecvTimeoutError::Disconnected);
        assert!(answered, "an idle thread answers");
        let handle = queue.handle();
        handle.push(60, 1).unwrap();
        // The thread holds the first; only then is the queue empty again.
        taken.recv_timeout(Duration::from_secs(30)).unwrap();
        handle.push(60, 2).unwrap();
        assert_eq!(handle.push(60, 3), Err(3), "too many bytes");
        handle.push(1, 4).unwrap();
        assert_eq!(handle.push(1, 5), Err(5), "too many items");
        drop(go);
        let mut stopping = Stopping::alone();
        stopping.step("work", Duration::from_secs(60), |step| queue.stop_in(step));
        assert!(stopping.finish().is_clean());
        assert_eq!(*lock(&seen), [1, 2, 4]);
        assert_eq!(handle.push(1, 6), Err(6), "closed");
    }
}
