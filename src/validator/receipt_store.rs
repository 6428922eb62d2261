//! The receipts that miners have shown as excuses, countersigned by both sides, on disk.
//!
//! No thread of its own: whoever drives the job stores them, and blocks on the disk for some milliseconds.

use std::path::Path;
use std::sync::Mutex;

use crate::base::clock::now;
use crate::base::lock::lock;
use crate::protocol::Receipt;
use crate::store::StoreError;
use crate::store::receipts::{ReceiptRow, ReceiptStore};

/// The file in the state folder.
pub(super) const DATABASE: &str = "receipts.db";

/// Receipts that are kept, of some 1 KiB each: 100 MiB, of the last 31 days.
const RECEIPTS: usize = 100_000;

/// The receipts of one validator.
#[derive(Debug)]
pub(super) struct KeptReceipts(Mutex<ReceiptStore>);

impl KeptReceipts {
    /// Opens the file in `folder`, or makes it. Blocks on the disk.
    ///
    /// # Errors
    /// [`StoreError`], naming the file.
    pub(super) fn open(folder: &Path) -> Result<Self, StoreError> {
        let store = ReceiptStore::open(&folder.join(DATABASE), now().unix_micros())?;
        Ok(Self(Mutex::new(store)))
    }

    /// Stores those that the miner has signed too. Trouble is logged: no job depends on it.
    pub(super) fn keep(&self, receipts: &[Receipt]) {
        let rows: Vec<_> = receipts.iter().filter(|receipt| receipt.verify_miner().is_ok()).map(row).collect();
        if let Err(error) = lock(&self.0).keep(&rows, RECEIPTS, now().unix_micros()) {
            log::warn!("{} receipts of other validators are not stored: {error}", rows.len());
        }
    }
}

fn row(receipt: &Receipt) -> ReceiptRow {
    ReceiptRow {
        validator_hotkey: receipt.payload.validator_hotkey().to_owned(),
        job_uuid: receipt.payload.job_uuid().to_owned(),
        kind: receipt.payload.kind().as_str().to_owned(),
        written_us: receipt.payload.timestamp().unix_micros(),
        payload: receipt.payload.blob_for_signing(),
        validator_signature: receipt.validator_signature.clone(),
        miner_signature: receipt.miner_signature.clone(),
    }
}
