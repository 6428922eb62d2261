//! What durability costs: terminal updates a second from producers that each wait until theirs is on disk, beside the
//! same in memory, as a Markdown table.
//!
//! `cargo run --release --example durability [FOLDER]`; the folder's disk is what is measured, so it must not be in
//! memory.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use phalanx::base::stop::Stopping;
use phalanx::base::thread::{Kick, spawn};
use phalanx::base::timer::Timer;
use phalanx::link::{Link, LinkConfig, OutboxLimits};
use phalanx::ops::status::Board;
use phalanx::protocol::JobStatus;
use phalanx::transport::ws::WsDialer;
use phalanx::validator::ledger::{self, Delivery, Ledger};
use phalanx::validator::{LedgerLimits, RetryPolicies};

const PRODUCERS: [usize; 3] = [1, 8, 64];
const ROUNDS: usize = 5;
/// One measurement ends after this time, or this many updates: in memory they are many, and all are kept.
const TIME: Duration = Duration::from_secs(2);
const UPDATES: u64 = 200_000;
const LONG: Duration = Duration::from_secs(60);

/// Of one measurement: updates a second, and how long a producer waits, in microseconds.
#[derive(Clone, Copy)]
struct Measured {
    rate: f64,
    p50: f64,
    p99: f64,
    /// Updates that went to the disk together.
    group: f64,
}

/// The facilitator is away, so every update stays in the queue.
fn measure(root: &Path, durable: bool, producers: usize) -> Measured {
    let folder = tempfile::tempdir_in(root).expect("the folder can be written");
    let timer = Timer::start();
    let state_dir = durable.then_some(folder.path());
    let (limits, retries, board) = (LedgerLimits::default(), RetryPolicies::default(), Board::new());
    // Not started: its outbox takes what it is given.
    let outbox = OutboxLimits { messages: usize::MAX, bytes: usize::MAX, window: 1 };
    let config = LinkConfig { outbox, ..LinkConfig::new("durability", "ws://127.0.0.1:9/") };
    let (link, _idle) = Link::new(config, Arc::new(WsDialer::default()), timer.handle());
    let ledger = Ledger::new(limits, retries, state_dir.is_some());
    let opened = ledger::open(state_dir, ledger, link, timer.handle(), &board, |_| {});
    let (delivery, store) = opened.expect("a new state folder");
    let (begin, taken) = (Arc::new(Barrier::new(producers + 1)), Arc::new(AtomicU64::new(0)));
    let threads: Vec<_> = (0..producers)
        .map(|_| {
            let (delivery, begin, taken) = (delivery.clone(), begin.clone(), taken.clone());
            spawn("producer", Kick::dropped("the time is over"), move || produce(&delivery, &begin, &taken))
        })
        .collect();
    begin.wait();
    let started = Instant::now();
    let waits = threads.into_iter().flat_map(|thread| thread.join_by(Instant::now() + LONG).expect("a producer"));
    let mut waits: Vec<Duration> = waits.collect();
    let took = started.elapsed().as_secs_f64();
    let commits = delivery.totals().commits.get();
    let mut stopping = Stopping::alone();
    stopping.step("store", LONG, |step| store.stop_in(step));
    stopping.step("timer", LONG, |step| timer.stop_in(step));
    assert!(stopping.finish().is_clean(), "a thread is left");
    waits.sort_unstable();
    let quantile = |q: f64| waits[((waits.len() - 1) as f64 * q).round() as usize].as_secs_f64() * 1e6;
    let group = waits.len() as f64 / commits.max(1) as f64;
    Measured { rate: waits.len() as f64 / took, p50: quantile(0.5), p99: quantile(0.99), group }
}

/// Ends jobs one after the other; how long each end took to be accepted.
fn produce(delivery: &Delivery, begin: &Barrier, taken: &AtomicU64) -> Vec<Duration> {
    // A result of 300 bytes.
    let result = "x".repeat(300);
    let mut waits = Vec::new();
    begin.wait();
    let end = Instant::now() + TIME;
    loop {
        let number = taken.fetch_add(1, Ordering::Relaxed);
        let started = Instant::now();
        if started >= end || number >= UPDATES {
            return waits;
        }
        let job = delivery.take(&format!("{number:036}"), false).expect("a new job");
        let ticket = delivery.update(job, JobStatus::Completed, result.clone()).expect("a job that has not ended");
        ticket.wait(started + LONG).expect("the disk takes it");
        waits.push(started.elapsed());
    }
}

/// The median, and how far the rounds are around it.
fn spread(mut values: Vec<f64>) -> (f64, String) {
    values.sort_unstable_by(f64::total_cmp);
    let median = values[values.len() / 2];
    (median, format!("{median:.0} ({:.0} to {:.0})", values[0], values[values.len() - 1]))
}

fn main() {
    let root = std::env::args_os().nth(1).unwrap_or_else(|| "target/tmp".into());
    let root = Path::new(&root);
    std::fs::create_dir_all(root).expect("the folder can be made");
    let cells: Vec<(bool, usize)> = [false, true].iter().flat_map(|disk| PRODUCERS.map(|n| (*disk, n))).collect();
    let mut rounds: Vec<Vec<Measured>> = vec![Vec::new(); cells.len()];
    for _ in 0..ROUNDS {
        for ((durable, producers), measured) in cells.iter().zip(&mut rounds) {
            measured.push(measure(root, *durable, *producers));
        }
    }
    println!("Median of {ROUNDS} interleaved rounds (least to most); 300 bytes an update.\n");
    println!("| kept | producers | updates/s | p50 µs | p99 µs | updates a commit | of one producer |");
    println!("| --- | ---: | ---: | ---: | ---: | ---: | ---: |");
    let mut alone = 0.0;
    for ((durable, producers), measured) in cells.iter().zip(&rounds) {
        let of = |field: fn(&Measured) -> f64| spread(measured.iter().map(field).collect());
        let (rate, shown) = of(|m| m.rate);
        if *producers == 1 {
            alone = rate;
        }
        let kept = if *durable { "on disk" } else { "in memory" };
        let group = if *durable { format!("{:.1}", of(|m| m.group).0) } else { "-".to_owned() };
        let (p50, p99) = (of(|m| m.p50).1, of(|m| m.p99).1);
        println!("| {kept} | {producers} | {shown} | {p50} | {p99} | {group} | {:.1}x |", rate / alone);
    }
}
