//! The thread that countersigns receipts and puts them on disk.
//!
//! Owner: the [`Miner`](super::Miner). Blocks in: its queue, and in commits. Kick: none is needed, because the queue's
//! sender goes with the router. Ends: when the sender is gone and what was queued is stored.

use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;

use super::router::{Input, JobKey};
use crate::base::waits::recv;
use crate::identity::KeyPair;
use crate::ops::health::Health;
use crate::protocol::{Receipt, ReceiptPayload, ReceiptType};
use crate::store::miner::MinerStore;
use crate::store::receipts::ReceiptRow;

/// Receipts of one transaction: what comes in during a commit is stored with the next, so none waits for more than two.
const BATCH: usize = 256;

/// Longest that a batch may take; a disk that takes longer is down.
const BATCH_TIME: Duration = Duration::from_secs(10);

/// The part of health that is this thread.
const STORE: &str = "store";

/// A checked receipt on its way to the disk.
#[derive(Debug)]
pub(super) struct StoreOrder {
    pub job: JobKey,
    pub payload: ReceiptPayload,
    pub validator_signature: String,
}

/// Stores what comes in until nobody can send any more; `report` gets the outcome of each, after its commit.
pub(super) fn run(
    orders: &Receiver<StoreOrder>,
    mut store: MinerStore,
    key: &KeyPair,
    health: &Health,
    report: impl Fn(Input),
) {
    let pulse = health.pulse(STORE);
    while let Ok(first) = recv(orders, "receipts to store") {
        pulse.begin(Instant::now() + BATCH_TIME);
        let batch: Vec<_> = std::iter::once(first).chain(orders.try_iter().take(BATCH - 1)).collect();
        let signed: Vec<(JobKey, Receipt)> = batch.into_iter().map(|order| countersign(order, key)).collect();
        let rows: Vec<ReceiptRow> = signed.iter().map(|(_, receipt)| row(receipt)).collect();
        let stored = store.write(&rows, &[]).map_err(|error| error.to_string());
        match &stored {
            Ok(_) => health.up(STORE),
            Err(error) => health.down(STORE, error.clone()),
        }
        for (at, (job, receipt)) in signed.into_iter().enumerate() {
            let result = stored.as_ref().map(|new| (Box::new(receipt), new[at])).map_err(Clone::clone);
            report(Input::Stored { job, result });
        }
        pulse.done();
    }
}

fn countersign(order: StoreOrder, key: &KeyPair) -> (JobKey, Receipt) {
    let StoreOrder { job, payload, validator_signature } = order;
    let miner_signature = payload.sign(key);
    (job, Receipt { payload, validator_signature, miner_signature })
}

fn row(receipt: &Receipt) -> ReceiptRow {
    let (kind, written) = match &receipt.payload {
        ReceiptPayload::JobStarted(payload) => (ReceiptType::JobStartedReceipt, &payload.timestamp),
        ReceiptPayload::JobAccepted(payload) => (ReceiptType::JobAcceptedReceipt, &payload.timestamp),
        ReceiptPayload::JobFinished(payload) => (ReceiptType::JobFinishedReceipt, &payload.timestamp),
    };
    ReceiptRow {
        validator_hotkey: receipt.payload.validator_hotkey().to_owned(),
        job_uuid: receipt.payload.job_uuid().to_owned(),
        kind: kind.as_str().to_owned(),
        written_us: written.unix_micros(),
        payload: receipt.payload.blob_for_signing(),
        validator_signature: receipt.validator_signature.clone(),
        miner_signature: receipt.miner_signature.clone(),
    }
}
