//! What is remembered of the newest jobs of miners. Pure.
//!
//! Finished-receipts that this validator has signed, for miners that have not got theirs: a miner keeps the outcome of
//! a job until the finished-receipt confirms it, and tells it to each later connection. A receipt that was lost with
//! its connection is sent again then. And which jobs a miner has declined, see [`excuses`](super::excuses).

use std::collections::{HashMap, VecDeque};

use crate::identity::PublicKey;
use crate::protocol::V0JobFinishedReceiptRequest;

/// Receipts that are kept, of some 700 bytes each, 11 MiB: those of ten minutes, after which miners forget an outcome,
/// at 27 jobs a second, and of the half minute in which a started-receipt excuses at 500.
const RECEIPTS: usize = 16_384;

/// Refusals that are remembered, of some 200 bytes each, 13 MiB: those of an hour at 18 a second. What the
/// started-receipt of a declined job is worth to its miner ends with the time of the job.
const DECLINES: usize = 65_536;

/// Something of the newest jobs, by miner and job.
#[derive(Debug)]
pub(super) struct Newest<T> {
    of: HashMap<(PublicKey, String), T>,
    oldest_first: VecDeque<(PublicKey, String)>,
    most: usize,
}

/// The finished-receipts that were signed.
pub(super) type FinishedReceipts = Newest<V0JobFinishedReceiptRequest>;

/// The jobs that miners have declined.
pub(super) type Declines = Newest<()>;

impl Default for FinishedReceipts {
    fn default() -> Self {
        Self::new(RECEIPTS)
    }
}

impl Default for Declines {
    fn default() -> Self {
        Self::new(DECLINES)
    }
}

impl<T: Clone> Newest<T> {
    fn new(most: usize) -> Self {
        Self { of: HashMap::new(), oldest_first: VecDeque::new(), most }
    }

    /// Keeps it, and forgets the oldest beyond the limit.
    pub(super) fn keep(&mut self, miner: PublicKey, job_uuid: &str, what: T) {
        let key = (miner, job_uuid.to_owned());
        if self.of.insert(key.clone(), what).is_none() {
            self.oldest_first.push_back(key);
        }
        if self.oldest_first.len() > self.most
            && let Some(oldest) = self.oldest_first.pop_front()
        {
            self.of.remove(&oldest);
        }
    }

    /// Keeps it no longer.
    pub(super) fn forget(&mut self, miner: PublicKey, job_uuid: &str) {
        let key = (miner, job_uuid.to_owned());
        if self.of.remove(&key).is_some() {
            self.oldest_first.retain(|other| *other != key);
        }
    }

    /// That of a job that a miner was asked for.
    pub(super) fn of(&self, miner: PublicKey, job_uuid: &str) -> Option<T> {
        self.of.get(&(miner, job_uuid.to_owned())).cloned()
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
        (0..=RECEIPTS).for_each(|n| receipts.keep(miner, &n.to_string(), receipt(n)));
        receipts.keep(miner, "1", receipt(1));
        assert_eq!(receipts.of(miner, "0"), None);
        assert_eq!(receipts.of(miner, "1"), Some(receipt(1)));
        assert_eq!(receipts.of(miner, &RECEIPTS.to_string()), Some(receipt(RECEIPTS)));
        assert_eq!(receipts.of(other, "1"), None);
        receipts.forget(miner, "1");
        receipts.forget(miner, "0");
        assert_eq!(receipts.of(miner, "1"), None);
        assert_eq!((receipts.oldest_first.len(), receipts.of.len()), (RECEIPTS - 1, RECEIPTS - 1));
    }
}
