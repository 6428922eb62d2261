//! What a process that drives miners asks of them beside jobs: their manifests, in rounds.
//!
//! Owner of the rounds' thread: [`Asking`], which ends it when it is dropped; see [`crate::validator::manifests`].

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::{AskedStatus, DISPATCH_CLOSE_TIME};
use crate::base::lock::lock;
use crate::base::stop::Stopping;
use crate::ops::status::Board;
use crate::pool::breaker::BreakerState;
use crate::validator::manifests::fetch::THREADS;
use crate::validator::manifests::{Fetcher, ManifestBoard, Refresh};
use crate::validator::organic::Miners;

/// Asks the miners of a process for their manifests, on the connections that its jobs use.
pub(in crate::validator) struct Asking {
    asked: Asked,
    /// Never if it is zero.
    interval: Duration,
    board: Board,
    /// Taken by the stop.
    rounds: Mutex<Option<Refresh>>,
}

/// What looks at what was asked; clones are the same. It may outlive the rounds.
#[derive(Clone)]
pub(in crate::validator) struct Asked {
    miners: Arc<Miners>,
    manifests: ManifestBoard,
}

impl std::fmt::Debug for Asked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Asked").field("manifests", &self.manifests).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Asking {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Asking(every {:?})", self.interval)
    }
}

impl Asking {
    /// Asks nobody before [`Asking::begin`], and never if `interval` is zero.
    pub(in crate::validator) fn new(miners: Arc<Miners>, interval: Duration, board: &Board) -> Self {
        let asked = Asked { miners, manifests: ManifestBoard::default() };
        Self { asked, interval, board: board.clone(), rounds: Mutex::default() }
    }

    /// Asks all miners again and again from now on.
    pub(in crate::validator) fn begin(&self) {
        if !self.interval.is_zero() {
            *lock(&self.rounds) = Some(self.refresh());
        }
    }

    fn refresh(&self) -> Refresh {
        let Asked { miners, manifests } = &self.asked;
        let connections = miners.connections.clone();
        let fetcher = Fetcher::new(THREADS, move |miner, until, stop| connections.ask(miner, until, stop));
        let fetcher = fetcher.with_breakers(miners.breakers.clone()).with_budget(miners.budget.clone());
        let (asked, known) = (miners.clone(), miners.clone());
        Refresh::start(
            fetcher,
            self.interval,
            &self.board,
            manifests.clone(),
            move || lock(&asked.routing).addresses(),
            move |fetched| {
                let now = Instant::now();
                known.tell_of_breakers();
                let mut routing = lock(&known.routing);
                for (miner, manifest) in fetched.iter().filter_map(|f| Some((&f.miner, f.manifest.as_ref()?))) {
                    routing.manifest(&miner.hotkey, manifest.counts(), now);
                }
            },
        )
    }

    /// What looks at it.
    pub(in crate::validator) fn asked(&self) -> &Asked {
        &self.asked
    }

    /// Ends the rounds and joins their thread. A second stop does nothing.
    pub(in crate::validator) fn stop_in(&self, stopping: &mut Stopping) {
        if let Some(rounds) = lock(&self.rounds).take() {
            stopping.step("manifests", DISPATCH_CLOSE_TIME, |step| rounds.stop_in(step));
        }
    }
}

impl Asked {
    /// What was asked of miners, and the connections to them.
    pub(in crate::validator) fn status(&self) -> AskedStatus {
        let now = Instant::now();
        let numbers = self.miners.breakers.numbers();
        AskedStatus {
            manifests: self.manifests.status(now),
            breakers: BreakerState::ALL
                .map(|state| (state.name(), numbers.states.get(&state).copied().unwrap_or(0)))
                .into(),
            left_alone: numbers.refused,
            outages: numbers.outages,
            retries: self.miners.budget.numbers(now).into(),
            outage_seconds: self.miners.breakers.outage(now).map(|outage| outage.since.elapsed().as_secs()),
            connections: self.miners.connections.status(),
        }
    }
}
