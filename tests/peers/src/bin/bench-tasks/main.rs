//! The task manager beside `rayon::spawn`, the `threadpool` crate, the least pool over `crossbeam-deque` and Python's
//! `ThreadPoolExecutor`; then 100,000 pending deadlines.
//!
//! As the peers do, a task is handed in without a handle; with one it is shown beside them.
//!
//! `bench-tasks [ROUNDS]`: each round runs all of them in turn, so that a noisy machine is noisy for all; ratios are to
//! the peer of the same round.

mod deque;
mod kept;

use std::fs;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::AcqRel, Ordering::Acquire};
use std::sync::mpsc::sync_channel;
use std::thread::{park_timeout, scope, yield_now};
use std::time::{Duration, Instant};

use phalanx::tasks::{TaskConfig, TaskContext, TaskManager, TaskOptions, Tasks};
use phalanx_peers::table::{Spread, markdown};

use deque::DequePool;
use kept::Kept;

/// No-op tasks of a run, and of one that waits for each.
const TASKS: usize = 300_000;
const CALLS: usize = 20_000;
const PYTHON_TASKS: usize = 30_000;
const DEADLINES: usize = 100_000;

/// Producers and workers.
const SHAPES: [(usize, usize); 6] = [(1, 1), (1, 2), (1, 4), (4, 1), (4, 2), (4, 4)];

trait Pool: Sync {
    /// Hands in a task that counts itself.
    fn submit(&self, done: Arc<AtomicUsize>);

    /// Hands in a task and waits for its result.
    fn call(&self) -> usize;
}

struct Ours {
    tasks: Tasks,
    with_handle: bool,
    _manager: TaskManager,
}

impl Ours {
    fn new(workers: usize, with_handle: bool) -> Self {
        let manager = TaskManager::start(TaskConfig::new("bench").workers(workers)).unwrap();
        Self { tasks: manager.handle(), with_handle, _manager: manager }
    }
}

impl Pool for Ours {
    fn submit(&self, done: Arc<AtomicUsize>) {
        let work = move |_: &TaskContext<'_>| {
            done.fetch_add(1, AcqRel);
            Ok::<_, String>(())
        };
        if self.with_handle {
            drop(self.tasks.submit("no-op", work).unwrap());
        } else {
            self.tasks.spawn("no-op", work).unwrap();
        }
    }

    fn call(&self) -> usize {
        self.tasks.submit("no-op", |_| Ok::<_, String>(1)).unwrap().wait().unwrap()
    }
}

impl Pool for rayon::ThreadPool {
    fn submit(&self, done: Arc<AtomicUsize>) {
        self.spawn(move || _ = done.fetch_add(1, AcqRel));
    }

    fn call(&self) -> usize {
        let (result, comes) = sync_channel(1);
        self.spawn(move || result.send(1).unwrap());
        comes.recv().unwrap()
    }
}

impl Pool for threadpool::ThreadPool {
    fn submit(&self, done: Arc<AtomicUsize>) {
        self.execute(move || _ = done.fetch_add(1, AcqRel));
    }

    fn call(&self) -> usize {
        let (result, comes) = sync_channel(1);
        self.execute(move || result.send(1).unwrap());
        comes.recv().unwrap()
    }
}

type Boxed = Box<dyn FnOnce() + Send>;

impl Pool for DequePool<Boxed> {
    fn submit(&self, done: Arc<AtomicUsize>) {
        self.spawn(Box::new(move || _ = done.fetch_add(1, AcqRel)));
    }

    fn call(&self) -> usize {
        let (result, comes) = sync_channel(1);
        self.spawn(Box::new(move || result.send(1).unwrap()));
        comes.recv().unwrap()
    }
}

impl Pool for DequePool<Kept> {
    fn submit(&self, done: Arc<AtomicUsize>) {
        self.spawn(Kept::new("no-op", move || _ = done.fetch_add(1, AcqRel)));
    }

    fn call(&self) -> usize {
        let (result, comes) = sync_channel(1);
        self.spawn(Kept::new("no-op", move || result.send(1).unwrap()));
        comes.recv().unwrap()
    }
}

fn rayon(workers: usize) -> rayon::ThreadPool {
    rayon::ThreadPoolBuilder::new().num_threads(workers).build().unwrap()
}

/// Tasks a second from the first submission to the end of the last task; then calls one at a time a second.
fn rates(pool: &impl Pool, producers: usize, measure_calls: bool) -> [f64; 2] {
    let done = Arc::new(AtomicUsize::new(0));
    let since = Instant::now();
    scope(|threads| {
        for _ in 0..producers {
            threads.spawn(|| (0..TASKS / producers).for_each(|_| pool.submit(done.clone())));
        }
    });
    while done.load(Acquire) < TASKS {
        yield_now();
    }
    let rate = TASKS as f64 / since.elapsed().as_secs_f64();
    let since = Instant::now();
    let calls = if measure_calls { (0..CALLS).map(|_| pool.call()).sum::<usize>() } else { 0 };
    [rate, calls as f64 / since.elapsed().as_secs_f64()]
}

fn python(workers: usize) -> [f64; 2] {
    let script = format!(
        "import time
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor({workers}) as pool:
    t = time.perf_counter()
    fs = [pool.submit(int) for _ in range({PYTHON_TASKS})]
    [f.result() for f in fs]
    u = time.perf_counter()
    [pool.submit(int).result() for _ in range({PYTHON_TASKS} // 5)]
    print({PYTHON_TASKS} / (u - t), {PYTHON_TASKS} // 5 / (time.perf_counter() - u))"
    );
    let output = Command::new("python3").args(["-c", &script]).output().expect("python3 runs");
    let text = String::from_utf8_lossy(&output.stdout);
    let mut rates = text.split_whitespace().map(|rate| rate.parse().expect("a rate"));
    [rates.next().expect("two rates"), rates.next().expect("two rates")]
}

const PEERS: [&str; 7] = [
    "phalanx",
    "rayon::spawn",
    "threadpool",
    "crossbeam-deque",
    "crossbeam-deque, with records",
    "phalanx, with a handle",
    "ThreadPoolExecutor",
];

/// The rates of one round, in the order of [`PEERS`]; Python in one shape only, for it takes long.
fn round((producers, workers): (usize, usize)) -> Vec<[f64; 2]> {
    let calls = producers == 1;
    let mut all = vec![
        rates(&Ours::new(workers, false), producers, calls),
        rates(&rayon(workers), producers, calls),
        rates(&threadpool::ThreadPool::new(workers), producers, calls),
        rates(&DequePool::<Boxed>::new(workers, |job| job()), producers, calls),
        rates(&DequePool::new(workers, Kept::run), producers, calls),
        rates(&Ours::new(workers, true), producers, false),
    ];
    if (producers, workers) == (1, 2) {
        all.push(python(workers));
    }
    all
}

fn row(shape: String, name: &str, which: usize, peer: usize, rounds: &[Vec<[f64; 2]>]) -> Vec<String> {
    let rate = |peer: usize| rounds.iter().map(move |round| round[peer][which]);
    let ratios = Spread::of(rate(0).zip(rate(peer)).map(|(ours, peer)| ours / peer));
    let micros = Spread::of(rate(peer).map(|rate| 1e6 / rate));
    vec![shape, name.to_owned(), Spread::of(rate(peer)).median_first(0), micros.median_first(2), ratios.median_first(2)]
}

fn beside_others(rounds: usize) {
    let mut rows = Vec::new();
    let mut all: Vec<Vec<_>> = SHAPES.iter().map(|_| Vec::new()).collect();
    for _ in 0..rounds {
        for (shape, rates) in SHAPES.into_iter().zip(&mut all) {
            rates.push(round(shape));
        }
    }
    for (which, what) in ["tasks", "one at a time"].into_iter().enumerate() {
        for ((producers, workers), rates) in SHAPES.into_iter().zip(&all).filter(|((p, _), _)| which == 0 || *p == 1) {
            for (peer, name) in PEERS.into_iter().enumerate().take(rates[0].len()) {
                if rates.iter().all(|round| round[peer][which] == 0.0) {
                    continue;
                }
                rows.push(row(format!("{what}, {producers} → {workers}"), name, which, peer, rates));
            }
        }
    }
    let head = ["producers → workers", "", "tasks/s", "µs each", "phalanx / this"];
    println!("{rounds} rounds, medians [least..most]\n\n{}", markdown(head, rows.into_iter()));
}

/// Context switches of all threads by their own will.
fn switches() -> u64 {
    let of = |status: String| -> Option<u64> {
        status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?.trim().parse().ok()
    };
    let threads = fs::read_dir("/proc/self/task").expect("Linux").flatten();
    threads.filter_map(|thread| of(fs::read_to_string(thread.path().join("status")).ok()?)).sum()
}

fn nanos_each(since: Instant) -> f64 {
    since.elapsed().as_nanos() as f64 / DEADLINES as f64
}

/// What it costs a round to submit, to leave alone, to cancel and to run as many tasks, in nanoseconds each but for the
/// switches of an idle second.
fn deadlines() -> [f64; 5] {
    let ours = Ours::new(1, true);
    let later = |delay| {
        let work = |_: &TaskContext<'_>| Ok::<_, String>(Instant::now());
        ours.tasks.submit(TaskOptions::new("later").delay(delay), work).unwrap()
    };
    assert_eq!(ours.call(), 1);
    let since = Instant::now();
    let far: Vec<_> = (0..DEADLINES).map(|_| later(Duration::from_secs(3600))).collect();
    let submit = nanos_each(since);

    let (before, since) = (switches(), Instant::now());
    let idle = Duration::from_secs(1);
    while since.elapsed() < idle {
        park_timeout(idle - since.elapsed());
    }
    // Its own is not theirs.
    let idle = (switches() - before).saturating_sub(1) as f64;

    let since = Instant::now();
    assert!(far.iter().all(|handle| handle.cancel("")));
    let cancel = nanos_each(since);
    drop(far);

    let since = Instant::now();
    let soon = Duration::from_secs(1);
    let handles: Vec<_> = (0..DEADLINES).map(|_| later(soon)).collect();
    let submitted = since.elapsed();
    assert!(submitted < soon, "the first was due before the last was submitted");
    let ran: Vec<Instant> = handles.into_iter().map(|handle| handle.wait().unwrap()).collect();
    let last = ran.into_iter().max().expect("there are some");
    // The last is due that long after the first.
    let run = (last - since - soon).as_nanos() as f64 / DEADLINES as f64;

    let since = Instant::now();
    let limited = |_| ours.tasks.submit(TaskOptions::new("limited").total_limit(soon * 60), |_| Ok::<_, String>(()));
    (0..DEADLINES).for_each(|n| drop(limited(n)));
    [submit, idle, cancel, run, nanos_each(since)]
}

fn with_deadlines(rounds: usize) {
    let all: Vec<_> = (0..rounds).map(|_| deadlines()).collect();
    let what = [
        "submit one more delayed task, ns",
        "context switches of all threads in an idle second with them",
        "cancel one, ns",
        "all due at once: start and run one, ns",
        "submit and run a task with a limit of its own, ns",
    ];
    let rows = what.into_iter().enumerate();
    let rows = rows.map(|(n, what)| vec![what.to_owned(), Spread::of(all.iter().map(|each| each[n])).median_first(0)]);
    println!("{}", markdown([&*format!("{DEADLINES} pending deadlines"), "median [least..most]"], rows));
}

fn main() {
    let rounds: usize = std::env::args().nth(1).map_or(9, |n| n.parse().expect("the number of rounds"));
    beside_others(rounds);
    println!("The last that the pool with records kept: {}\n", kept::last_ended());
    with_deadlines(rounds.min(5));
}
