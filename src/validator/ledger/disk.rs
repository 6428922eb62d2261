//! The disk of the ledger: what an earlier process left is read, and what changes is written.
//!
//! Owner: [`crate::validator::RunningClient`]. The thread `val-store` writes what has changed since it last looked, all
//! in one transaction (group commit), then lets those updates leave. Blocks in: its condition, and the disk. Kick:
//! closing the queue. Ends: when closed and everything is written.

use std::path::Path;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use super::delivery::{Delivery, GivenUp};
use super::queue::{Batch, Ledger};
use super::record::JobRecord;
use crate::base::clock::now;
use crate::base::lock::lock;
use crate::base::stop::{Step, StopReport, stop_alone};
use crate::base::thread::{Kick, Thread, spawn};
use crate::base::timer::TimerHandle;
use crate::base::waits::waiting;
use crate::link::{LinkHandle, Outgoing};
use crate::ops::errors::ErrorClass;
use crate::ops::health::Pulse;
use crate::ops::status::Board;
use crate::store::StoreError;
use crate::store::journal::{Change, Journal};

/// Longest that a batch may take; a disk that takes longer hangs.
const BATCH_TIME: Duration = Duration::from_secs(10);

/// The pause before a failed write to the disk is tried again.
const WRITE_RETRY: Duration = Duration::from_secs(1);

/// A ledger, empty so far and durable if there is a folder, that keeps its updates there or in memory only. What an
/// earlier process left there is taken over, and what it had not sent leaves by `link` first; what becomes of a job
/// that it had begun and not ended is the caller's to say, see [`Delivery::open_jobs`].
///
/// # Errors
/// [`StoreError`], if the folder cannot be used.
pub fn open(
    folder: Option<&Path>,
    mut ledger: Ledger,
    link: LinkHandle,
    timer: TimerHandle,
    board: &Board,
    on_dead: impl Fn(GivenUp) + Send + Sync + 'static,
) -> Result<(Delivery, StoreThread), StoreError> {
    let opened = folder.map(Journal::open).transpose()?;
    let (journal, recovered) = opened.unzip();
    let restored: Vec<Outgoing> = recovered.map_or_else(Vec::new, |recovered| {
        if let Some(damage) = &recovered.damage {
            let (what, aside) = (&damage.what, damage.kept_aside.display());
            let what = format_args!("{what}; at least {} records are lost, the files are kept: {aside}", damage.lost);
            board.errors.report(ErrorClass::Rejected, "state-folder", &what);
        }
        ledger.restore(
            recovered.records.iter().filter_map(|(number, bytes)| {
                let record = JobRecord::decode(bytes);
                if let Err(error) = &record {
                    let what = format_args!("row {number} is ignored: {error}");
                    board.errors.report(ErrorClass::Rejected, "state-folder", &what);
                }
                Some((*number, record.ok()?))
            }),
            now(),
        )
    });
    let delivery = Delivery::new(ledger, link, timer, board, on_dead);
    delivery.send(restored);
    let thread = journal.map(|journal| {
        let (disk, kick) = (Disk { delivery: delivery.clone(), journal }, delivery.clone());
        let asked = delivery.clone();
        // With the lock, so that the thread is not between its look at the ledger and its wait.
        let pulse = board.health.pulse_of_loop("store", BATCH_TIME, move |_| {
            drop(lock(&asked.0.state));
            asked.0.changed.notify_all();
        });
        spawn("val-store", Kick::new("close the queue", move || kick.close()), move || disk.run(&pulse))
    });
    Ok((delivery.clone(), StoreThread { thread, delivery }))
}

/// The store thread, to be joined by [`StoreThread::stop`].
#[derive(Debug)]
pub struct StoreThread {
    thread: Option<Thread<()>>,
    delivery: Delivery,
}

impl StoreThread {
    /// Stops it alone, within `budget`, as [`StoreThread::stop_in`] does.
    pub fn stop(self, budget: Duration) -> StopReport {
        stop_alone("state folder", budget, |step| self.stop_in(step))
    }

    /// Writes what is left, and joins.
    pub fn stop_in(self, step: &mut Step) {
        self.delivery.close();
        if let Some(thread) = self.thread {
            step.join(thread);
        }
    }
}

/// Tells the producers that the store thread has ended.
struct StoreEnded(Delivery);

impl Drop for StoreEnded {
    fn drop(&mut self) {
        lock(&self.0.0.state).store_ended = true;
        self.0.0.safe.notify_all();
    }
}

struct Disk {
    delivery: Delivery,
    journal: Journal,
}

impl Disk {
    fn run(mut self, pulse: &Pulse) {
        // Also when it panics, so that nobody waits for it.
        let _ended = StoreEnded(self.delivery.clone());
        while let Some(batch) = self.next_batch(pulse) {
            pulse.begin(Instant::now() + BATCH_TIME);
            let written = self.write(&batch);
            pulse.done();
            let Err(error) = written else { continue };
            let what = format!("{error}; updates leave without being on disk");
            let inner = &self.delivery.0;
            inner.errors.report(ErrorClass::Retry, "state-folder", &what);
            let mut state = lock(&inner.state);
            state.broken = Some(error.to_string());
            let ready = state.ledger.unwritten(&batch);
            let last_try = state.closed;
            inner.safe.notify_all();
            drop(state);
            self.delivery.send(ready);
            if last_try {
                return;
            }
            self.wait_to_retry();
        }
    }

    /// What has changed since the last look; blocks until there is something. `None` when closed and all is written.
    fn next_batch(&self, pulse: &Pulse) -> Option<Batch> {
        let inner = &self.delivery.0;
        let mut state = lock(&inner.state);
        loop {
            if state.ledger.is_dirty() {
                return Some(state.ledger.batch());
            }
            if state.closed {
                return None;
            }
            state.store_waits = true;
            // Whoever has woken it to ask gets its sign of life.
            pulse.done();
            let _waiting = waiting("updates to store", None);
            state = inner.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn wait_to_retry(&self) {
        let inner = &self.delivery.0;
        let mut state = lock(&inner.state);
        let until = Instant::now() + WRITE_RETRY;
        let _waiting = waiting("its next try of the disk", Some(until));
        while !state.closed && Instant::now() < until {
            let left = until.saturating_duration_since(Instant::now());
            state = inner.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Steps leave when the system has them, terminal statuses when the disk has them.
    fn write(&mut self, batch: &Batch) -> Result<(), StoreError> {
        let inner = &self.delivery.0;
        let changes = batch.rows.iter().map(|(id, row)| match row {
            Some(body) => Change::Put { id: *id, body },
            None => Change::Delete { id: *id },
        });
        self.journal.write(changes)?;
        self.delivery.totals().commits.inc();
        let ready = lock(&inner.state).ledger.written(batch);
        self.delivery.send(ready);
        if batch.needs_sync {
            self.journal.sync()?;
        }
        let mut state = lock(&inner.state);
        state.broken = None;
        let ready = state.ledger.synced(batch);
        let waiting = state.producers_wait > 0;
        drop(state);
        if waiting {
            inner.safe.notify_all();
        }
        self.delivery.send(ready);
        Ok(())
    }
}
