//! What is known of one miner, and what a job asks of it. Pure.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::reliability::Reliability;
use crate::identity::PublicKey;
use crate::protocol::ExecutorClass;

/// Where a miner listens, as the miners file says.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MinerAddress {
    /// Its hotkey.
    pub hotkey: PublicKey,
    /// Host name or IP address.
    pub address: String,
    /// TCP port.
    pub port: u16,
    /// Whether it runs the jobs that ask for a trusted miner, and no others.
    pub trusted: bool,
    /// Whether it is dialled as `wss://`.
    pub tls: bool,
}

impl MinerAddress {
    /// A miner of which no list has said where it is.
    pub(super) fn unknown(hotkey: PublicKey) -> Self {
        Self { hotkey, address: String::new(), port: 0, trusted: false, tls: false }
    }

    /// Where a validator connects to it.
    pub fn url(&self, validator: &PublicKey) -> String {
        let Self { address, port, .. } = self;
        let scheme = if self.tls { "wss" } else { "ws" };
        let brackets = address.contains(':') && !address.starts_with('[');
        let (open, close) = if brackets { ("[", "]") } else { ("", "") };
        format!("{scheme}://{open}{address}{close}:{port}/v0.1/validator_interface/{validator}")
    }
}

/// After a miner declined as busy or could not be reached, how long others are preferred. After it offered no executor
/// of a class, how long it is not asked for one: then it may have some again.
pub const COOL_DOWN: Duration = Duration::from_secs(10);

/// What is known of one miner.
#[derive(Debug)]
pub(super) struct MinerState {
    pub(super) address: MinerAddress,
    /// The last good one, with the time when it came.
    pub(super) manifest: Option<(HashMap<ExecutorClass, i64>, Instant)>,
    pub(super) running: HashMap<ExecutorClass, i64>,
    /// Which of all jobs it got last, counted from 1.
    pub(super) picked: u64,
    pub(super) cooling_until: Option<Instant>,
    pub(super) blacklisted_until: Option<Instant>,
    pub(super) reliability: Reliability,
}

impl MinerState {
    pub(super) fn new(address: MinerAddress) -> Self {
        Self {
            address,
            manifest: None,
            running: HashMap::new(),
            picked: 0,
            cooling_until: None,
            blacklisted_until: None,
            reliability: Reliability::default(),
        }
    }

    /// For how long it still gets no job because it cheated.
    pub(super) fn blacklisted(&self, now: Instant) -> Option<Duration> {
        self.blacklisted_until?.checked_duration_since(now).filter(|left| !left.is_zero() && !self.address.trusted)
    }

    /// Whether there is something about it that still counts when it comes back.
    pub(super) fn is_remembered(&self, half_life: Duration, now: Instant) -> bool {
        self.weight_of_memory(half_life, now) > (false, 0, 0)
    }

    /// The greater, the worse it would be to forget it: it cheated, its jobs, how far its reliability is from full.
    pub(super) fn weight_of_memory(&self, half_life: Duration, now: Instant) -> (bool, i64, u8) {
        let lost = 10_u8.saturating_sub(self.reliability.numbers(now, half_life).tenths());
        (self.blacklisted(now).is_some(), self.running.values().sum(), lost)
    }

    pub(super) fn running(&self, class: ExecutorClass) -> i64 {
        self.running.get(&class).copied().unwrap_or(0)
    }
}

/// What a job asks of a miner.
#[derive(Clone, Copy)]
pub struct Ask<'a> {
    /// The class of its executor.
    pub class: ExecutorClass,
    /// Whether it asks for a trusted miner.
    pub trusted: bool,
    /// Miners not to ask.
    pub tried: &'a [PublicKey],
    /// Whether a miner is left alone for now, because it did not answer.
    pub is_open: &'a dyn Fn(&PublicKey) -> bool,
}

impl std::fmt::Debug for Ask<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { class, trusted, tried, .. } = self;
        f.debug_struct("Ask").field("class", class).field("trusted", trusted).field("tried", tried).finish()
    }
}
