//! The least that a pool over `crossbeam-deque` can be: an injector, a deque for each worker, threads that sleep while
//! idle, and a counter in place of a bounded queue. It keeps nothing of its tasks and catches no panic: an upper bound
//! of what that crate could give the task manager, with the same limit and the same yields before a sleep.

use std::iter::repeat_with;
use std::mem::take;
use std::sync::atomic::{AtomicBool, AtomicIsize, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{JoinHandle, spawn, yield_now};

use crossbeam_deque::{Injector, Steal, Stealer, Worker};
use crossbeam_utils::CachePadded;

/// As of the task manager.
const LIMIT: isize = 8192;
const SUBMITTER_YIELDS: usize = 64;
const WORKER_YIELDS: usize = 8;

/// Tasks that a worker takes from the injector at a time, if it has them: a block of it has 63.
const BATCH: usize = 63;

/// Threads that sleep until they are woken one by one.
#[derive(Default)]
struct Gate {
    asleep: AtomicUsize,
    woken: Mutex<usize>,
    wake: Condvar,
}

impl Gate {
    /// Sleeps unless `ready`, which is asked when wakers can see the sleeper.
    fn sleep(&self, ready: impl Fn() -> bool) {
        let mut woken = self.woken.lock().unwrap();
        self.asleep.fetch_add(1, SeqCst);
        if ready() {
            self.asleep.fetch_sub(1, SeqCst);
            return;
        }
        woken = self.wake.wait_while(woken, |woken| *woken == 0).unwrap();
        *woken -= 1;
    }

    fn wake_one(&self) {
        if self.asleep.load(SeqCst) == 0 {
            return;
        }
        let mut woken = self.woken.lock().unwrap();
        if self.asleep.load(SeqCst) > 0 {
            self.asleep.fetch_sub(1, SeqCst);
            *woken += 1;
            self.wake.notify_one();
        }
    }
}

struct PoolShared<J> {
    run: fn(J),
    injector: Injector<J>,
    stealers: Vec<Stealer<J>>,
    /// Below zero for a moment when a task is begun before its submitter has counted it.
    queued: CachePadded<AtomicIsize>,
    room: CachePadded<Gate>,
    idle: CachePadded<Gate>,
    /// A submitter is to wake a worker: none searches, and none was woken and has not run yet.
    wake: CachePadded<AtomicBool>,
    stopped: AtomicBool,
}

impl<J> PoolShared<J> {
    fn has_room(&self) -> bool {
        self.queued.load(SeqCst) < LIMIT
    }

    fn is_empty(&self) -> bool {
        self.injector.is_empty() && self.stealers.iter().all(Stealer::is_empty)
    }

    fn wait_for_room(&self) {
        for _ in 0..SUBMITTER_YIELDS {
            yield_now();
            if self.has_room() {
                return;
            }
        }
        while !self.has_room() {
            self.room.sleep(|| self.has_room());
        }
        // There may be room for another.
        self.room.wake_one();
    }

    fn wake_worker(&self) {
        if self.wake.load(SeqCst) && self.wake.swap(false, SeqCst) {
            self.idle.wake_one();
        }
    }

    fn search(&self, local: &Worker<J>) -> Option<J> {
        let steal = || {
            let taken = self.injector.steal_batch_with_limit_and_pop(local, BATCH);
            taken.or_else(|| self.stealers.iter().map(|other| other.steal_batch_and_pop(local)).collect())
        };
        repeat_with(steal).find(|taken| !taken.is_retry()).and_then(Steal::success)
    }

    /// Blocks until there is a task; `None` when the pool stops.
    fn next(&self, local: &Worker<J>) -> Option<J> {
        self.wake.store(false, SeqCst);
        let mut yields = 0;
        loop {
            if let Some(job) = self.search(local) {
                if self.idle.asleep.load(SeqCst) > 0 {
                    self.wake.store(true, SeqCst);
                }
                if !self.is_empty() {
                    self.wake_worker();
                }
                return Some(job);
            }
            if yields < WORKER_YIELDS {
                yields += 1;
                yield_now();
                continue;
            }
            if self.stopped.load(SeqCst) {
                return None;
            }
            self.idle.sleep(|| {
                self.wake.store(true, SeqCst);
                self.stopped.load(SeqCst) || !self.is_empty()
            });
        }
    }

    fn work(&self, local: &Worker<J>) {
        let mut begun = 0;
        loop {
            let job = local.pop().or_else(|| {
                self.queued.fetch_sub(take(&mut begun), SeqCst);
                self.room.wake_one();
                self.next(local)
            });
            let Some(job) = job else { break };
            begun += 1;
            (self.run)(job);
        }
    }
}

/// A pool whose tasks are run by one function.
pub struct DequePool<J> {
    shared: Arc<PoolShared<J>>,
    threads: Vec<JoinHandle<()>>,
}

impl<J: Send + 'static> DequePool<J> {
    pub fn new(workers: usize, run: fn(J)) -> Self {
        let locals: Vec<_> = (0..workers).map(|_| Worker::new_fifo()).collect();
        let shared = Arc::new(PoolShared {
            run,
            injector: Injector::new(),
            stealers: locals.iter().map(Worker::stealer).collect(),
            queued: CachePadded::default(),
            room: CachePadded::default(),
            idle: CachePadded::default(),
            wake: CachePadded::default(),
            stopped: AtomicBool::new(false),
        });
        let start = |local: Worker<J>| {
            let shared = shared.clone();
            spawn(move || shared.work(&local))
        };
        Self { threads: locals.into_iter().map(start).collect(), shared }
    }

    /// Blocks while the queue is full; so many submitters may each exceed the limit by one.
    pub fn spawn(&self, job: J) {
        if !self.shared.has_room() {
            self.shared.wait_for_room();
        }
        self.shared.injector.push(job);
        self.shared.queued.fetch_add(1, SeqCst);
        self.shared.wake_worker();
    }
}

impl<J> Drop for DequePool<J> {
    fn drop(&mut self) {
        self.shared.stopped.store(true, SeqCst);
        self.threads.iter().for_each(|_| self.shared.idle.wake_one());
        self.threads.drain(..).for_each(|thread| thread.join().unwrap());
    }
}
