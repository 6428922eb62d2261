//! How much a ledger holds, and how often it tries. Pure.

use std::time::Duration;

use crate::base::backoff::exponential;
use crate::base::limits::{DEAD_BYTES, DEAD_LETTERS, SEEN_JOBS, SIGNED_JOBS, STATUS_BYTES, STATUS_MESSAGES};

/// When a refused update is tried again, and when it is given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryPolicy {
    /// The pause after the first refusal; it doubles with each.
    pub base: Duration,
    /// The longest pause.
    pub cap: Duration,
    /// How long after the first refusal it is given up.
    pub give_up_after: Duration,
}

impl RetryPolicy {
    pub(super) fn delay(&self, refusals: u32) -> Duration {
        exponential(self.base, self.cap, refusals.saturating_sub(1))
    }
}

/// The retry policies by kind of refusal and class of update.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryPolicies {
    /// `job.not_found`: the facilitator may not have stored its own job yet.
    pub not_found: RetryPolicy,
    /// Any other error about a step.
    pub step: RetryPolicy,
    /// Any other error about a terminal status.
    pub terminal: RetryPolicy,
}

impl Default for RetryPolicies {
    /// Not found: 0.5 s to 10 s, for 2 minutes. Steps: 1 s to 10 s, for 15 s. Terminal statuses: 1 s to 60 s, for 10
    /// minutes.
    fn default() -> Self {
        let policy = |base, cap, give_up_after| RetryPolicy {
            base: Duration::from_millis(base),
            cap: Duration::from_secs(cap),
            give_up_after: Duration::from_secs(give_up_after),
        };
        Self { not_found: policy(500, 10, 120), step: policy(1000, 10, 15), terminal: policy(1000, 60, 600) }
    }
}

/// Bounds of a ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LedgerLimits {
    /// Updates that wait.
    pub updates: usize,
    /// Bytes of their texts.
    pub bytes: usize,
    /// Jobs whose uuid is remembered after their end was accepted, those not counted whose signature is not too old.
    pub remembered: usize,
    /// Jobs that are remembered with their signature; another is turned away.
    pub signed: usize,
    /// Dead letters.
    pub dead: usize,
    /// Bytes of their texts.
    pub dead_bytes: usize,
}

impl Default for LedgerLimits {
    /// See [`crate::base::limits`].
    fn default() -> Self {
        Self {
            updates: STATUS_MESSAGES,
            bytes: STATUS_BYTES,
            remembered: SEEN_JOBS,
            signed: SIGNED_JOBS,
            dead: DEAD_LETTERS,
            dead_bytes: DEAD_BYTES,
        }
    }
}
