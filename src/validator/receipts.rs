//! The newest finished-receipts that this validator has signed, for miners that have not got theirs. Pure.
//!
//! A miner keeps the outcome of a job until the finished-receipt confirms it, and tells it to each later connection. A
//! receipt that was lost with its connection is sent again then.

use std::collections::{HashMap, VecDeque};

use crate::identity::PublicKey;
use crate::protocol::V0JobFinishedReceiptRequest;

/// Receipts that are kept, of some 700 bytes each: those of an hour at a job every four seconds. Miners forget an
/// outcome after ten minutes.
const RECEIPTS: usize = 1024;

/// Finished-receipts by miner and job.
#[derive(Debug, Default)]
pub(super) struct FinishedReceipts {
    receipts: HashMap<(PublicKey, String), V0JobFinishedReceiptRequest>,
    oldest_first: VecDeque<(PublicKey, String)>,
}

impl FinishedReceipts {
    /// Keeps a receipt, and forgets the oldest beyond the limit.
    pub(super) fn keep(&mut self, miner: PublicKey, receipt: &V0JobFinishedReceiptRequest) {
        let key = (miner, receipt.payload.job_uuid.clone());
        if self.receipts.insert(key.clone(), receipt.clone()).is_none() {
            self.oldest_first.push_back(key);
        }
        if self.oldest_first.len() > RECEIPTS
            && let Some(oldest) = self.oldest_first.pop_front()
        {
            self.receipts.remove(&oldest);
        }
    }

    /// The receipt for a job that a miner had.
    pub(super) fn of(&self, miner: PublicKey, job_uuid: &str) -> Option<V0JobFinishedReceiptRequest> {
        self.receipts.get(&(miner, job_uuid.to_owned())).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::KeyPair;
    use crate::protocol::{DateTime, JobFinishedReceiptPayload};

    #[test]
    fn the_newest_receipts_are_found_by_miner_and_job() {
        let [miner, other] = ["//Bob", "//Eve"].map(|uri| KeyPair::from_uri(uri).unwrap().public());
        let receipt = |n: usize| V0JobFinishedReceiptRequest {
            payload: JobFinishedReceiptPayload {
                job_uuid: n.to_string(),
                miner_hotkey: miner.to_ss58(),
                validator_hotkey: other.to_ss58(),
                timestamp: DateTime::from_unix_micros(0),
                time_started: DateTime::from_unix_micros(0),
                time_took_us: 0,
                score_str: "1.000000".to_owned(),
                block_numbers: Vec::new(),
            },
            signature: String::new(),
        };
        let mut receipts = FinishedReceipts::default();
        (0..=RECEIPTS).for_each(|n| receipts.keep(miner, &receipt(n)));
        receipts.keep(miner, &receipt(1));
        assert_eq!(receipts.of(miner, "0"), None);
        assert_eq!(receipts.of(miner, "1"), Some(receipt(1)));
        assert_eq!(receipts.of(miner, &RECEIPTS.to_string()), Some(receipt(RECEIPTS)));
        assert_eq!(receipts.of(other, "1"), None);
        assert_eq!(receipts.oldest_first.len(), receipts.receipts.len());
    }
}
