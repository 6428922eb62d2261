//! The manifests of many miners at once: a bounded number of threads, one deadline, an outcome for each.
//!
//! Owner of the threads `val-man-n`: [`Fetcher::fetch`], which joins them before it returns. They block in: an
//! exchange, and the wait for their next turn. Kick: the caller's signal, which breaks the exchanges and wakes those
//! that wait. One ends when the others see to all that is left, at the latest at the deadline.

use std::any::Any;
use std::collections::HashMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::exchange::ExchangeError;
use super::outcome::{AskOutcome, MinerManifest};
use super::turns::{Turn, Turns};
use crate::base::backoff::exponential;
use crate::base::lock::lock;
use crate::base::rng::Rng;
use crate::base::shutdown::{Level, Shutdown};
use crate::base::stop::KICK_GRACE;
use crate::base::thread::{JoinError, Kick, Thread, panic_message, spawn};
use crate::base::waits::waiting;
use crate::identity::PublicKey;
use crate::pool::{Breakers, BreakersConfig, BudgetConfig, RetryBudget};
use crate::validator::routing::MinerAddress;

/// Exchanges at a time, unless the configuration says otherwise.
pub const THREADS: usize = 64;

/// Most exchanges at a time: each is a thread.
pub const THREADS_MAX: usize = 1024;

/// Tries of one miner in one fetch, with the first; those that their share of the time has cut short do not count.
const TRIES: u32 = 3;

/// Ceiling of the pause before the second try; it doubles with each.
const PAUSE: Duration = Duration::from_millis(200);

/// Ceiling of every pause.
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// What came of one miner.
#[derive(Debug, Clone, PartialEq)]
pub struct Fetched {
    /// The miner.
    pub miner: MinerAddress,
    /// What came of it.
    pub outcome: AskOutcome,
    /// What it offers; with [`AskOutcome::Ok`] alone.
    pub manifest: Option<MinerManifest>,
    /// Why not, as it may be shown; of the last try.
    pub error: Option<String>,
    /// From the beginning of the first try to the end of the last.
    pub took: Duration,
    /// How often it was asked.
    pub tries: u32,
}

/// Asks one miner; blocks at most until the moment or the signal's cancel.
pub type Ask = dyn Fn(&MinerAddress, Instant, &Shutdown) -> Result<MinerManifest, ExchangeError> + Send + Sync;

/// Fetches manifests, and remembers who does not answer. One fetch at a time, so no miner is asked twice at once.
pub struct Fetcher {
    ask: Arc<Ask>,
    threads: usize,
    breakers: Breakers<PublicKey>,
    budget: RetryBudget,
}

impl fmt::Debug for Fetcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fetcher").field("threads", &self.threads).finish_non_exhaustive()
    }
}

impl Fetcher {
    /// At most `threads` exchanges at a time, from 1 to [`THREADS_MAX`].
    pub fn new(
        threads: usize,
        ask: impl Fn(&MinerAddress, Instant, &Shutdown) -> Result<MinerManifest, ExchangeError> + Send + Sync + 'static,
    ) -> Self {
        Self {
            ask: Arc::new(ask),
            threads: threads.clamp(1, THREADS_MAX),
            breakers: Breakers::new(BreakersConfig::default()),
            budget: RetryBudget::new(BudgetConfig::default(), Instant::now()),
        }
    }

    /// Shares the breakers with others that call the same miners.
    #[must_use]
    pub fn with_breakers(self, breakers: Breakers<PublicKey>) -> Self {
        Self { breakers, ..self }
    }

    /// Shares the second tries with others that call the same miners.
    #[must_use]
    pub fn with_budget(self, budget: RetryBudget) -> Self {
        Self { budget, ..self }
    }

    /// Who is left alone.
    pub fn breakers(&self) -> &Breakers<PublicKey> {
        &self.breakers
    }

    /// What second tries are left.
    pub fn budget(&self) -> &RetryBudget {
        &self.budget
    }

    /// Asks all of `miners`, a miner that is named twice once; gives an outcome for each of them, in their order.
    ///
    /// Blocks until all have answered, until `deadline`, or until `stop` is at cancel: whoever was not asked by then is
    /// skipped. The breakers are asked with the hotkey.
    pub fn fetch(&mut self, miners: &[MinerAddress], deadline: Instant, stop: &Shutdown) -> Vec<Fetched> {
        let mut numbers = HashMap::new();
        let mut once = Vec::new();
        let order: Vec<usize> = miners
            .iter()
            .map(|miner| {
                *numbers.entry(miner.hotkey).or_insert_with(|| {
                    once.push(Asked::new(miner.clone()));
                    once.len() - 1
                })
            })
            .collect();
        // It reaches cancel with the caller's, and when a thread is kicked.
        let own = stop.child();
        let turns = Turns::new(once.len(), self.threads, deadline);
        let threads = turns.threads();
        let round = Arc::new(Round {
            ask: self.ask.clone(),
            breakers: self.breakers.clone(),
            budget: self.budget.clone(),
            stop: own.clone(),
            state: Mutex::new(RoundState { turns, asked: once }),
        });
        let threads: Vec<Thread<()>> = (0..threads)
            .map(|number| {
                let (round, cancel) = (round.clone(), own.clone());
                let kick = Kick::new("the fetch's stop signal", move || cancel.cancel());
                spawn(format!("val-man-{number}"), kick, move || round.run())
            })
            .collect();
        for thread in threads {
            // What breaks an exchange at the deadline needs a moment.
            match thread.join_or_kick(deadline + KICK_GRACE, KICK_GRACE) {
                Ok(()) | Err(JoinError::Panicked(_)) => {}
                Err(JoinError::Late(thread)) => thread.abandon("a kicked exchange did not return"),
            }
        }
        let state = lock(&round.state);
        let stopped = stop.is_cancelled();
        order.into_iter().map(|number| state.asked[number].fetched(stopped)).collect()
    }
}

/// One miner in a fetch.
struct Asked {
    miner: MinerAddress,
    begun: Option<Instant>,
    took: Duration,
    tries: u32,
    /// Those that were cut short by their share of the time.
    cut: u32,
    last: Option<Result<MinerManifest, (AskOutcome, String)>>,
}

impl Asked {
    fn new(miner: MinerAddress) -> Self {
        Self { miner, begun: None, took: Duration::ZERO, tries: 0, cut: 0, last: None }
    }

    fn fetched(&self, stopped: bool) -> Fetched {
        let not_asked = if stopped { "stopped before it was asked" } else { "no time was left to ask it" };
        let mut took = self.took;
        let (outcome, manifest, error) = match (&self.last, self.begun) {
            (Some(Ok(manifest)), _) => (AskOutcome::Ok, Some(manifest.clone()), None),
            (Some(Err((outcome, why))), _) => (*outcome, None, Some(why.clone())),
            // Its thread is left behind, in what the kick does not reach.
            (None, Some(begun)) if !stopped => {
                took = begun.elapsed();
                (AskOutcome::Timeout, None, Some("asking it had not ended in time".to_owned()))
            }
            (None, _) => (AskOutcome::Skipped, None, Some(not_asked.to_owned())),
        };
        Fetched { miner: self.miner.clone(), outcome, manifest, error, took, tries: self.tries }
    }
}

/// One fetch, shared by its threads.
struct Round {
    ask: Arc<Ask>,
    breakers: Breakers<PublicKey>,
    budget: RetryBudget,
    stop: Shutdown,
    state: Mutex<RoundState>,
}

struct RoundState {
    turns: Turns,
    asked: Vec<Asked>,
}

impl Round {
    fn run(&self) {
        let mut rng = Rng::from_entropy();
        let mut state = lock(&self.state);
        loop {
            let now = Instant::now();
            if self.stop.is_cancelled() {
                return;
            }
            match state.turns.next(now) {
                Turn::Ask { peer, until, cut } => {
                    let asked = &mut state.asked[peer];
                    asked.begun.get_or_insert(now);
                    let miner = asked.miner.clone();
                    drop(state);
                    let attempt = self.attempt(&miner, until, cut);
                    state = lock(&self.state);
                    let again = state.asked[peer].take(attempt, &self.budget, &mut rng);
                    state.turns.ended(peer, again);
                }
                Turn::Wait(until) => {
                    drop(state);
                    let waiting = waiting("its next turn", Some(until));
                    self.stop.wait_for(Level::Cancel, until.saturating_duration_since(now));
                    drop(waiting);
                    state = lock(&self.state);
                }
                Turn::Over => return,
            }
        }
    }

    /// Asks once, if the miner's breaker lets it.
    fn attempt(&self, miner: &MinerAddress, until: Instant, cut: bool) -> Attempt {
        let begun = Instant::now();
        let permit = match self.breakers.ask(&miner.hotkey, begun) {
            Ok(permit) => permit,
            Err(refused) => return Attempt::LeftAlone(refused.to_string()),
        };
        // A panic is ours and says nothing of the miner; its turn ends all the same.
        let asked = catch_unwind(AssertUnwindSafe(|| (self.ask)(miner, until, &self.stop)));
        let result = asked.unwrap_or_else(|payload| Err(panicked(miner, payload.as_ref())));
        let took = begun.elapsed();
        match result {
            Ok(manifest) => {
                permit.succeeded(took);
                self.budget.succeeded(Instant::now());
                Attempt::Ended(Ok(manifest))
            }
            Err(error) => {
                let cut = cut && error.outcome == AskOutcome::Timeout;
                // A miner that does not want us is there; our stop and our haste say nothing of it.
                if error.stopped || cut || error.outcome == AskOutcome::Unauthorized {
                    permit.ignored();
                } else {
                    permit.failed(took);
                }
                if cut { Attempt::CutShort(error.why) } else { Attempt::Ended(Err(error)) }
            }
        }
    }
}

fn panicked(miner: &MinerAddress, payload: &(dyn Any + Send)) -> ExchangeError {
    let why = format!("asking it panicked: {}", panic_message(payload));
    log::error!("miner {}: {why}", miner.hotkey);
    ExchangeError { outcome: AskOutcome::Skipped, why, refused: false, cut: false, stopped: true }
}

/// What came of one try.
enum Attempt {
    Ended(Result<MinerManifest, ExchangeError>),
    /// Its share of the time was over.
    CutShort(String),
    /// Its breaker is open.
    LeftAlone(String),
}

impl Asked {
    /// Notes what came of a try; gives when the miner is to be asked once more, if it is.
    fn take(&mut self, attempt: Attempt, budget: &RetryBudget, rng: &mut Rng) -> Option<Instant> {
        let now = Instant::now();
        self.took = self.begun.map_or(Duration::ZERO, |begun| now.saturating_duration_since(begun));
        match attempt {
            Attempt::Ended(Ok(manifest)) => {
                self.tries += 1;
                self.last = Some(Ok(manifest));
                None
            }
            Attempt::CutShort(why) => {
                self.tries += 1;
                self.cut += 1;
                self.last = Some(Err((AskOutcome::Timeout, why)));
                Some(now)
            }
            Attempt::LeftAlone(why) => {
                // What an earlier try in this fetch has found says more.
                self.last.get_or_insert(Err((AskOutcome::Skipped, why)));
                None
            }
            Attempt::Ended(Err(error)) => {
                self.tries += 1;
                // A try that our own stop has ended says less than the one before.
                if !error.stopped || self.last.is_none() {
                    self.last = Some(Err((error.outcome, error.why)));
                }
                let counted = self.tries - self.cut;
                let wanted = error.outcome.passes() && !error.stopped && counted < TRIES;
                let pause = exponential(PAUSE, PAUSE_MAX, counted.saturating_sub(1)).mul_f64(rng.unit());
                (wanted && budget.withdraw(now)).then(|| now + pause)
            }
        }
    }
}
