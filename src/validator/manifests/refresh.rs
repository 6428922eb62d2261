//! Asks all miners for their manifests, again and again.
//!
//! Owner: the [`Refresh`]. Blocks in: a fetch, and the pause until the next one. Kick: its stop signal, which ends
//! both. Ends: with [`Refresh::stop`], or when it is dropped.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::fetch::{Fetched, Fetcher};
use super::outcome::AskOutcome;
use crate::base::lock::lock;
use crate::base::rng::Rng;
use crate::base::shutdown::Shutdown;
use crate::base::stop::{Step, StopReport, stop_alone, stop_dropped};
use crate::base::thread::{Kick, Thread, spawn};
use crate::base::waits::waiting;
use crate::identity::PublicKey;
use crate::ops::metrics::{Counter, Metrics};
use crate::ops::status::Board;
use crate::validator::routing::MinerAddress;

/// The longest that one round may take; a shorter interval shortens it, down to [`LEAST_ROUND_TIME`].
const ROUND_TIME: Duration = Duration::from_secs(30);

/// Less would judge miners by our haste.
const LEAST_ROUND_TIME: Duration = Duration::from_secs(5);

/// How late a round may end, or begin, before its thread counts as one that hangs.
const LATE: Duration = Duration::from_secs(30);

/// How much earlier than the interval a round may begin, as a share of it, so that validators that were started
/// together do not ask together.
const JITTER: f64 = 0.1;

/// What the rounds have found; clones are the same.
#[derive(Debug, Clone, Default)]
pub struct ManifestBoard(Arc<Mutex<Known>>);

#[derive(Debug, Default)]
struct Known {
    miners: BTreeMap<PublicKey, KnownMiner>,
    rounds: u64,
    last_round: Duration,
    last_ended: Option<Instant>,
}

#[derive(Debug)]
struct KnownMiner {
    outcome: AskOutcome,
    /// When it last told its manifest.
    told: Option<Instant>,
}

/// How the manifests are, for status pages.
#[derive(Debug, Clone, PartialEq, Serialize, Default)]
pub struct ManifestsStatus {
    /// Rounds that have ended.
    pub rounds: u64,
    /// How long the last one took.
    pub last_round_seconds: f64,
    /// How long ago it ended; `None` before the first.
    pub last_round_age_seconds: Option<u64>,
    /// Miners by what came of the last round.
    pub outcomes: BTreeMap<&'static str, usize>,
    /// The age of the oldest manifest that is still known; a miner that is in trouble keeps its last one.
    pub oldest_seconds: u64,
    /// Miners that have never told one.
    pub unknown: usize,
}

impl ManifestBoard {
    /// Notes a round; miners that were not in it are forgotten.
    fn note(&self, fetched: &[Fetched], took: Duration, now: Instant) {
        let mut known = lock(&self.0);
        known.rounds += 1;
        known.last_round = took;
        known.last_ended = Some(now);
        let mut before = std::mem::take(&mut known.miners);
        known.miners = fetched
            .iter()
            .map(|fetched| {
                let hotkey = fetched.miner.hotkey;
                let told = match fetched.outcome {
                    AskOutcome::Ok => Some(now),
                    _ => before.remove(&hotkey).and_then(|before| before.told),
                };
                (hotkey, KnownMiner { outcome: fetched.outcome, told })
            })
            .collect();
    }

    /// How they are now.
    pub fn status(&self, now: Instant) -> ManifestsStatus {
        let known = lock(&self.0);
        let age = |at: Instant| now.saturating_duration_since(at).as_secs();
        let mut outcomes = BTreeMap::new();
        for miner in known.miners.values() {
            *outcomes.entry(miner.outcome.as_str()).or_insert(0) += 1;
        }
        ManifestsStatus {
            rounds: known.rounds,
            last_round_seconds: known.last_round.as_secs_f64(),
            last_round_age_seconds: known.last_ended.map(age),
            outcomes,
            oldest_seconds: known.miners.values().filter_map(|miner| miner.told).map(age).max().unwrap_or(0),
            unknown: known.miners.values().filter(|miner| miner.told.is_none()).count(),
        }
    }
}

/// The thread that asks. Dropping it stops it.
#[derive(Debug)]
pub struct Refresh {
    stop: Shutdown,
    /// Taken by the stop.
    thread: Option<Thread<()>>,
}

impl Refresh {
    /// Asks at once, and then every `interval`, less a little at random. `miners` says whom; `take` gets what came of
    /// each round, on this thread. The rounds are counted, and the thread promises progress, on the board.
    pub fn start(
        mut fetcher: Fetcher,
        interval: Duration,
        ops: &Board,
        board: ManifestBoard,
        miners: impl Fn() -> Vec<MinerAddress> + Send + 'static,
        take: impl Fn(&[Fetched]) + Send + 'static,
    ) -> Self {
        let stop = Shutdown::new();
        let (signal, kick) = (stop.clone(), stop.clone());
        let counters = counters(&ops.metrics);
        let pulse = ops.health.pulse("manifests");
        let thread = spawn("val-manifests", Kick::new("the refresh's stop signal", move || kick.cancel()), move || {
            let mut rng = Rng::from_entropy();
            loop {
                let begun = Instant::now();
                let time = interval.clamp(LEAST_ROUND_TIME, ROUND_TIME);
                pulse.done();
                pulse.begin(begun + time + LATE);
                let fetched = fetcher.fetch(&miners(), begun + time, &signal);
                if signal.is_set() {
                    return;
                }
                let now = Instant::now();
                for fetched in &fetched {
                    counters[&fetched.outcome].add(1);
                }
                board.note(&fetched, now.saturating_duration_since(begun), now);
                take(&fetched);
                let pause = interval.mul_f64(1.0 - JITTER * rng.unit()).saturating_sub(begun.elapsed());
                pulse.done();
                pulse.begin(now + pause + LATE);
                let _waiting = waiting("the next round of manifests", now.checked_add(pause));
                if signal.wait(pause) {
                    return;
                }
            }
        });
        Self { stop, thread: Some(thread) }
    }

    /// Stops it alone, within `budget`, as [`Refresh::stop_in`] does.
    pub fn stop(self, budget: Duration) -> StopReport {
        stop_alone("manifests", budget, |step| self.stop_in(step))
    }

    /// Ends the round that is under way, and joins.
    pub fn stop_in(mut self, step: &mut Step) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            step.join(thread);
        }
    }
}

impl Drop for Refresh {
    fn drop(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        self.stop.cancel();
        stop_dropped(|step| {
            step.join(thread);
        });
    }
}

fn counters(metrics: &Metrics) -> BTreeMap<AskOutcome, Counter> {
    let help = "Miners that were asked for their manifest in the rounds, by what came of it.";
    let counter = |outcome: AskOutcome| {
        metrics.counter("phalanx_validator_manifests_total", help, &[("outcome", outcome.as_str())])
    };
    AskOutcome::ALL.into_iter().map(|outcome| (outcome, counter(outcome))).collect()
}
