//! The receipts that miners have shown as excuses, countersigned by both sides, on disk.
//!
//! Owner: [`KeptReceipts`]. Blocks in: the queue, and the disk. Kick: its stop signal. Ends: with that, when what
//! waited is on disk.

use std::path::Path;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, TrySendError, bounded, select};

use crate::base::clock::now;
use crate::base::shutdown::Shutdown;
use crate::base::stop::{Step, stop_dropped};
use crate::base::thread::{Kick, Thread, spawn};
use crate::base::waits::waiting;
use crate::ops::errors::{ErrorClass, ErrorHandler};
use crate::ops::status::Board;
use crate::protocol::Receipt;
use crate::store::StoreError;
use crate::store::receipts::{ReceiptRow, ReceiptStore};

/// The file in the state folder.
pub(super) const DATABASE: &str = "receipts.db";

/// Receipts that are kept, of some 1 KiB each: 100 MiB, of the last 31 days.
const RECEIPTS: usize = 100_000;

/// Refusals that may wait for the disk, each with as many receipts as one has: some MiB. More are not kept.
const WAITING: usize = 64;

/// Where trouble with them is reported.
const PLACE: &str = "receipts";

/// Longest that those of one refusal may take; a disk that takes longer hangs.
const BATCH_TIME: Duration = Duration::from_secs(10);

/// Takes the receipts of one refusal; never blocks.
pub(super) type OnExcused = Box<dyn Fn(Vec<Receipt>) + Send + Sync>;

/// Owns the thread that stores them. Dropping it stops it.
#[derive(Debug)]
pub(super) struct KeptReceipts {
    stop: Shutdown,
    /// Taken by the stop.
    thread: Option<Thread<()>>,
}

impl KeptReceipts {
    /// Opens the file in `folder`, or makes it, and starts the thread. Blocks on the disk. The second value takes what
    /// is to be kept; what is not is told on the board.
    ///
    /// # Errors
    /// [`StoreError`], naming the file.
    pub(super) fn open(folder: &Path, board: &Board) -> Result<(Self, OnExcused), StoreError> {
        let store = ReceiptStore::open(&folder.join(DATABASE), now().unix_micros())?;
        let (to, from) = bounded(WAITING);
        let stop = Shutdown::new();
        let (running, kicked) = (stop.clone(), stop.clone());
        let kick = Kick::new("stop signal of the receipts", move || kicked.cancel());
        let (of_thread, errors) = (board.clone(), board.errors.clone());
        let thread = spawn("val-receipts", kick, move || run(store, &from, &running, &of_thread));
        let take = move |receipts| match to.try_send(receipts) {
            // After the stop nobody keeps any.
            Ok(()) | Err(TrySendError::Disconnected(_)) => {}
            Err(TrySendError::Full(_)) => {
                errors.report(ErrorClass::Rejected, PLACE, &"too many wait for the disk; some are not stored");
            }
        };
        Ok((Self { stop, thread: Some(thread) }, Box::new(take)))
    }

    /// Stores what waits, and joins the thread.
    pub(super) fn stop_in(mut self, step: &mut Step) {
        self.stop.drain();
        if let Some(thread) = self.thread.take() {
            step.join(thread);
        }
    }
}

impl Drop for KeptReceipts {
    fn drop(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        self.stop.drain();
        stop_dropped(|step| {
            step.join(thread);
        });
    }
}

fn run(mut store: ReceiptStore, from: &Receiver<Vec<Receipt>>, stop: &Shutdown, board: &Board) {
    let (pulse, probed) = board.health.pulse_and_probe("receipts", BATCH_TIME);
    let mut keep = |receipts: &[Receipt]| {
        pulse.begin(Instant::now() + BATCH_TIME);
        keep(&mut store, receipts, &board.errors);
        pulse.done();
    };
    loop {
        let waits = from.is_empty().then(|| waiting("receipts to keep", None));
        select! {
            recv(from) -> receipts => match receipts {
                Ok(receipts) => keep(&receipts),
                Err(_) => return,
            },
            recv(probed) -> _ => pulse.done(),
            recv(stop.drain_receiver()) -> _ => break,
        }
        drop(waits);
    }
    for receipts in from.try_iter().take_while(|_| !stop.is_cancelled()) {
        keep(&receipts);
    }
}

/// Stores those that the miner has signed too. Trouble is logged: no job depends on it.
fn keep(store: &mut ReceiptStore, receipts: &[Receipt], errors: &ErrorHandler) {
    let rows: Vec<_> = receipts.iter().filter(|receipt| receipt.verify_miner().is_ok()).map(ReceiptRow::from).collect();
    if let Err(error) = store.keep(&rows, RECEIPTS, now().unix_micros()) {
        let what = format_args!("{} of other validators are not stored: {error}", rows.len());
        errors.report(ErrorClass::Rejected, PLACE, &what);
    }
}
