//! The thread that countersigns receipts and puts them on disk, with what is to be known of jobs after a restart.
//!
//! Owner: the [`Miner`](super::Miner). Blocks in: its queue, and in commits. Kick: none is needed, because the queue's
//! sender goes with the router. Ends: when the sender is gone and what was queued is stored.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, select};

use super::router::{Input, JobKey};
use crate::base::lock::lock;
use crate::base::waits::waiting;
use crate::identity::KeyPair;
use crate::ops::errors::{ErrorClass, ErrorHandler};
use crate::ops::health::{Health, Pulse};
use crate::protocol::{Receipt, ReceiptPayload};
use crate::store::miner::{JobChange, JobRow, MinerStore, NewReceipt};

/// Receipts of one transaction: what comes in during a commit is stored with the next, so none waits for more than two.
const BATCH: usize = 256;

/// Longest that a batch may take; a disk that takes longer is down.
const BATCH_TIME: Duration = Duration::from_secs(10);

/// After a failure jobs wait this long for another attempt, if no receipt comes first.
const RETRY_PAUSE: Duration = Duration::from_secs(5);

/// The part of health that is this thread.
const STORE: &str = "store";

/// A checked receipt on its way to the disk.
#[derive(Debug)]
pub(super) struct StoreOrder {
    pub job: JobKey,
    pub number: u64,
    /// The job, if it is stored with the receipt.
    pub row: Option<Box<JobRow>>,
    pub payload: ReceiptPayload,
    pub validator_signature: String,
}

/// What there is to do.
#[derive(Debug)]
pub(super) enum Order {
    /// Countersign and store a receipt.
    Receipt(Box<StoreOrder>),
    /// Look at the [`Saves`]. With a full queue it need not be sent: every order has the thread look.
    Look,
}

/// The newest state of each job that changed since the last commit. Bounded by the router's jobs: a newer state takes
/// the place of an older one.
pub(super) type Saves = Arc<Mutex<BTreeMap<JobKey, JobChange>>>;

/// Stores what comes in until nobody can send any more; `report` gets the outcome of each receipt, after its commit.
/// What was put into `saves` before an order was sent is in the same commit, or an earlier one, and counts as older
/// than the job of the order.
pub(super) fn run(
    orders: &Receiver<Order>,
    saves: &Saves,
    mut store: MinerStore,
    key: &KeyPair,
    (health, errors): (&Health, &ErrorHandler),
    report: impl Fn(Input),
) {
    let (pulse, probed) = health.pulse_and_probe(STORE, BATCH_TIME);
    let mut failed = false;
    while let Some(first) = next(orders, failed, &pulse, &probed) {
        pulse.begin(Instant::now() + BATCH_TIME);
        let batch: Vec<_> = std::iter::once(first).chain(orders.try_iter().take(BATCH - 1)).collect();
        // After the orders were taken, so that whatever was put there before them is here.
        let changed = std::mem::take(&mut *lock(saves));
        let receipts = batch.into_iter().filter_map(|order| match order {
            Order::Receipt(order) => Some(countersign(*order, key)),
            Order::Look => None,
        });
        let (signed, rows): (Vec<_>, Vec<_>) = receipts.unzip();
        let changes: Vec<JobChange> = changed.values().cloned().collect();
        let stored = match failed && changes.is_empty() && rows.is_empty() {
            // Nothing is left to store, and an empty commit would say nothing of the disk.
            true => store.try_writing().map(|()| Vec::new()),
            false => store.write(&changes, &rows),
        };
        let stored = stored.map_err(|error| error.to_string());
        failed = stored.is_err();
        match &stored {
            Ok(_) => health.up(STORE),
            Err(error) => {
                let what = format_args!("it cannot be written, which is tried again: {error}");
                errors.report(ErrorClass::Reconnect, "database", &what);
                health.down(STORE, error.clone());
                let mut saves = lock(saves);
                for (job, change) in changed {
                    saves.entry(job).or_insert(change);
                }
            }
        }
        for (at, Signed { job, number, receipt }) in signed.into_iter().enumerate() {
            let result = stored.as_ref().map(|new| (receipt, new[at])).map_err(Clone::clone);
            report(Input::Stored { job, number, result });
        }
        pulse.done();
    }
}

/// The next order; after a failure one to look again comes by itself. `None`: nobody can send any more. Whoever has
/// asked meanwhile, by `probed`, gets a sign of life.
fn next(orders: &Receiver<Order>, failed: bool, pulse: &Pulse, probed: &Receiver<()>) -> Option<Order> {
    let again_at = failed.then(|| Instant::now() + RETRY_PAUSE);
    let what = if failed { "another attempt to store" } else { "receipts and jobs to store" };
    loop {
        let wait = again_at.map_or(Duration::MAX, |at| at.saturating_duration_since(Instant::now()));
        let _waiting = orders.is_empty().then(|| waiting(what, again_at));
        select! {
            recv(orders) -> order => return order.ok(),
            recv(probed) -> _ => pulse.done(),
            default(wait) => return Some(Order::Look),
        }
    }
}

/// A receipt that is complete.
struct Signed {
    job: JobKey,
    number: u64,
    receipt: Box<Receipt>,
}

fn countersign(order: StoreOrder, key: &KeyPair) -> (Signed, NewReceipt) {
    let StoreOrder { job, number, row: of_job, payload, validator_signature } = order;
    let miner_signature = payload.sign(key);
    let receipt = Receipt { payload, validator_signature, miner_signature };
    let new = NewReceipt { receipt: (&receipt).into(), job: of_job.map(|job| *job) };
    (Signed { job, number, receipt: Box::new(receipt) }, new)
}
