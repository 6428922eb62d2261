//! The least of what the task manager keeps of a task, for a pool that keeps nothing: its name, number and times, and a
//! record of its end, of which the last 10,000 can be looked up. Workers hand records in by the batch, as its do.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

const KEEP_MAX: usize = 10_000;
const BATCH: usize = 64;

static ACCEPTED: AtomicU64 = AtomicU64::new(0);
static ENDED: Mutex<VecDeque<EndRecord>> = Mutex::new(VecDeque::new());

thread_local! {
    static BUFFER: RefCell<Vec<EndRecord>> = const { RefCell::new(Vec::new()) };
}

/// A task with what is kept of it.
pub struct Kept {
    id: u64,
    name: &'static str,
    submitted: Instant,
    work: Box<dyn FnOnce() + Send>,
}

struct EndRecord {
    id: u64,
    name: &'static str,
    panicked: bool,
    submitted: Instant,
    started: Instant,
    ended: Instant,
}

impl Kept {
    pub fn new(name: &'static str, work: impl FnOnce() + Send + 'static) -> Self {
        Self { id: ACCEPTED.fetch_add(1, Relaxed), name, submitted: Instant::now(), work: Box::new(work) }
    }

    pub fn run(self) {
        let Self { id, name, submitted, work } = self;
        let panicked = catch_unwind(AssertUnwindSafe(work)).is_err();
        let ended = Instant::now();
        BUFFER.with_borrow_mut(|buffer| {
            // It began when the last one ended, or came later.
            let started = buffer.last().map_or(submitted, |last| last.ended.max(submitted));
            buffer.push(EndRecord { id, name, panicked, submitted, started, ended });
            if buffer.len() >= BATCH {
                let mut all = ENDED.lock().unwrap();
                let excess = (all.len() + buffer.len()).saturating_sub(KEEP_MAX);
                all.drain(..excess);
                all.extend(buffer.drain(..));
            }
        });
    }
}

/// The newest record, as text.
pub fn last_ended() -> String {
    let all = ENDED.lock().unwrap();
    let Some(EndRecord { id, name, panicked, submitted, started, ended }) = all.back() else { return String::new() };
    let (waited, ran) = (*started - *submitted, *ended - *started);
    format!("{name} {id} waited {waited:?}, ran {ran:?}{}", if *panicked { ", panicked" } else { "" })
}
