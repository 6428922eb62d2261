//! The settings of a batch. Pure.

use std::path::PathBuf;
use std::time::Duration;

use crate::identity::{KeyPair, PublicKey};
use crate::validator::JobTimes;

/// Miners of one batch: each has a connection with two threads, and 8,000 threads are 32,000 of the 65,530 memory maps
/// that a process may have.
pub const BATCH_MINERS: usize = 4000;

/// The settings of a batch.
#[derive(Debug, Clone)]
pub struct BatchConfig {
    /// The validator's hotkey.
    pub key: KeyPair,
    /// Decides which miner gets which jobs, and every order.
    pub seed: u64,
    /// Jobs of each miner; `None` for as many as it declares.
    pub per_miner: Option<usize>,
    /// What miners and executors may take beside the limits of the jobs.
    pub times: JobTimes,
    /// How long a job that is ready may wait at the gate for others, once the last attempt to connect has begun. If
    /// that is less than such an attempt may take, a miner whose time it cuts ends as `horde_failed`, without blame.
    pub gate: Duration,
    /// How long the batch may take; what has not ended then is late.
    pub limit: Duration,
    /// How long after the limit late answers are waited for at most; then everything ends.
    pub grace: Duration,
    /// How long after its time the answer of a job is waited for, to be noted.
    pub late: Duration,
    /// Connections that are being made at a time.
    pub connects: usize,
    /// How often a failure of the network or the horde is tried again: an attempt to connect, and a job before the
    /// gate.
    pub retries: u32,
    /// Per cent of the miners that may fail; when one more does, the batch is aborted. A miner has failed when most of
    /// its lines are other than `completed`; a refusal that is excused is no failure, nor
    /// is a miner that had less than its time to connect.
    pub max_fail: Option<u8>,
    /// Validators whose organic jobs excuse a miner that is busy, besides this one.
    pub known: Vec<PublicKey>,
    /// How far apart the first and the last job request may be sent; beyond it the batch is flagged.
    pub max_spread: Duration,
    /// How late the batch itself may be; beyond it the batch is flagged.
    pub max_lag: Duration,
    /// Whether manifests are fetched and jobs planned, and none is asked for.
    pub dry_run: bool,
    /// The folder in which results are kept as they arrive.
    pub state_dir: Option<PathBuf>,
    /// What the jobs are made of, as a hash of all that decides about them: a batch goes on only with the same.
    pub made_of: String,
    /// Whether the batch in the folder goes on.
    pub resume: bool,
}

impl BatchConfig {
    /// How late a batch may be unless it is configured otherwise.
    pub const MAX_LAG: Duration = Duration::from_millis(500);

    /// A batch with the defaults: a gate of 30 s, 20 minutes and 10 s in all, late answers for two minutes, 64
    /// connections at a time, one retry; flagged beyond 250 ms of spread or half a second of lag.
    pub fn new(key: KeyPair, seed: u64) -> Self {
        Self {
            key,
            seed,
            per_miner: None,
            times: JobTimes::default(),
            gate: Duration::from_secs(30),
            limit: Duration::from_secs(20 * 60),
            grace: Duration::from_secs(10),
            late: Duration::from_secs(120),
            connects: 64,
            retries: 1,
            max_fail: None,
            known: Vec::new(),
            max_spread: Duration::from_millis(250),
            max_lag: Self::MAX_LAG,
            dry_run: false,
            state_dir: None,
            made_of: String::new(),
            resume: false,
        }
    }

    /// All problems at once, each with what would be right; `miners` is their number.
    pub fn validate(&self, miners: usize) -> Vec<String> {
        let mut problems = Vec::new();
        if miners == 0 || miners > BATCH_MINERS {
            problems.push(format!("a batch has from 1 to {BATCH_MINERS} miners, not {miners}"));
        }
        if self.connects == 0 {
            problems.push("no connection may be made at a time; it should be at least 1, as 64".to_owned());
        }
        if self.per_miner == Some(0) {
            problems.push("0 jobs for each miner; it should be at least 1".to_owned());
        }
        if self.max_fail.is_some_and(|percent| percent > 100) {
            problems.push("more than 100 per cent may fail; it should be from 0 to 100".to_owned());
        }
        if self.limit.is_zero() {
            problems.push("the batch has no time; its limit should be more than 0, as 20m".to_owned());
        }
        if self.resume && self.state_dir.is_none() {
            problems.push("a batch can go on only from its state folder; name that".to_owned());
        }
        if self.dry_run && self.state_dir.is_some() {
            problems.push("a dry run keeps nothing; give no state folder with it".to_owned());
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_problems_are_told_at_once() {
        let key = KeyPair::from_uri("//Alice").unwrap();
        let good = BatchConfig::new(key, 1);
        assert_eq!(good.validate(1), [""; 0]);
        let bad = BatchConfig {
            connects: 0,
            per_miner: Some(0),
            max_fail: Some(101),
            limit: Duration::ZERO,
            resume: true,
            ..good.clone()
        };
        assert_eq!(bad.validate(0).len(), 6, "{:?}", bad.validate(0));
        let dry = BatchConfig { dry_run: true, state_dir: Some("x".into()), ..good };
        assert_eq!(dry.validate(BATCH_MINERS + 1).len(), 2);
    }
}
