//! When one peer is left alone, and when it is tried again. Pure: each call takes `now`; the lock and the group around
//! it are [`super::breakers`].
//!
//! A breaker is *closed* while its peer is asked. Enough failures, or enough slow calls, *open* it: nobody asks for a
//! while, which grows with each opening that follows another. Then it is *half-open*: a few calls may try. They decide
//! whether it closes or opens again.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

pub use super::state::{BreakerState, Explanation, Refused, Transition, Why};
use super::window::{Call, Calls};
pub use super::window::{CallNumbers, WINDOW_CALLS_MAX, Window};
use crate::base::backoff::exponential;
use crate::base::limits::LONGEST_TIME;

/// Transitions that wait to be taken; beyond that the oldest is lost. One call makes two at most.
pub(super) const TRANSITIONS: usize = 8;

/// The numbers of a [`Breaker`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BreakerConfig {
    /// Which calls are judged.
    pub window: Window,
    /// With fewer calls than this in the window it does not open.
    pub least_calls: usize,
    /// The share of failures that opens it: 0.5 is half. Above 1 none does.
    pub failure_rate: f64,
    /// A call that takes as long as this is slow, also if it succeeds.
    pub slow_call: Duration,
    /// The share of slow calls that opens it. Above 1 none does.
    pub slow_rate: f64,
    /// How long it is open the first time; doubled with each opening before it has closed.
    pub open: Duration,
    /// How long it is open at most.
    pub open_max: Duration,
    /// Calls that may try while it is half-open, and that decide.
    pub half_open_calls: usize,
    /// How long the last probe may take. Without a decision by then it opens again, for as long as before.
    pub half_open_max: Duration,
}

impl Default for BreakerConfig {
    /// The last 10 calls, at least 5; half of them failed, or all slow, at 10 s; open for 30 s up to 10 min; one probe,
    /// within 60 s.
    fn default() -> Self {
        Self {
            window: Window::Calls(10),
            least_calls: 5,
            failure_rate: 0.5,
            slow_call: Duration::from_secs(10),
            slow_rate: 1.0,
            open: Duration::from_secs(30),
            open_max: Duration::from_secs(600),
            half_open_calls: 1,
            half_open_max: Duration::from_secs(60),
        }
    }
}

impl BreakerConfig {
    /// What is wrong with the numbers, all at once.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let mut must = |holds: bool, what: String| {
            if !holds {
                problems.push(what);
            }
        };
        let (least, probes) = (self.least_calls, self.half_open_calls);
        match self.window {
            Window::Calls(calls) => {
                must((1..=WINDOW_CALLS_MAX).contains(&calls), format!("window is {calls} calls, not 1 to 1024"));
                must(least <= calls, format!("least_calls is {least}, more than the window of {calls} calls"));
            }
            Window::Time(time) => must(time >= Duration::from_millis(10), format!("window is {time:?}, below 10 ms")),
        }
        must(least >= 1, "least_calls is 0, it must be at least 1".to_owned());
        for (name, rate) in [("failure_rate", self.failure_rate), ("slow_rate", self.slow_rate)] {
            must(rate > 0.0, format!("{name} is {rate}, it must be above 0"));
        }
        must(self.open <= self.open_max, format!("open is {:?}, more than open_max {:?}", self.open, self.open_max));
        must((1..=WINDOW_CALLS_MAX).contains(&probes), format!("half_open_calls is {probes}, not 1 to 1024"));
        problems
    }
}

/// One call that was let through. It counts only in the state that it was let through in: an answer that comes after
/// the breaker has opened tells nothing new.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "a probe that is never given back holds its place until the breaker is no longer half-open"]
pub struct Ticket(u64);

/// When and how a call ended.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ended {
    pub(super) now: Instant,
    pub(super) took: Duration,
    pub(super) failed: bool,
}

#[derive(Debug, Clone, Copy)]
enum Phase {
    Closed,
    Open {
        until: Instant,
        numbers: CallNumbers,
    },
    /// Probes that are out, when the last of them was let out, and those that have ended.
    HalfOpen {
        out: usize,
        last: Instant,
        numbers: CallNumbers,
    },
    ForcedOpen,
    ForcedClosed,
}

/// The breaker of one peer.
///
/// ```
/// use std::time::{Duration, Instant};
///
/// use phalanx::pool::breaker::{Breaker, BreakerConfig, BreakerState, Window};
///
/// let config = BreakerConfig { window: Window::Calls(4), least_calls: 2, ..BreakerConfig::default() };
/// let (now, took) = (Instant::now(), Duration::from_millis(20));
/// let mut breaker = Breaker::new(config, now);
/// for _ in 0..2 {
///     let ticket = breaker.ask(now).unwrap();
///     breaker.failed(ticket, now, took);
/// }
/// let refused = breaker.ask(now).unwrap_err();
/// assert_eq!((refused.state, refused.until), (BreakerState::Open, Some(now + config.open)));
///
/// // Later one probe may try, and it decides.
/// let later = now + config.open;
/// let probe = breaker.ask(later).unwrap();
/// assert!(breaker.ask(later).is_err());
/// breaker.succeeded(probe, later, took);
/// assert_eq!(breaker.explain(later).state, BreakerState::Closed);
/// let changes: Vec<_> = breaker.take_transitions().map(|change| change.to.name()).collect();
/// assert_eq!(changes, ["open", "half_open", "closed"]);
/// ```
#[derive(Debug, Clone)]
pub struct Breaker {
    config: BreakerConfig,
    phase: Phase,
    pub(super) calls: Calls,
    /// Grows with each change of state; tickets of another number are of the past.
    generation: u64,
    since: Instant,
    why: Option<Why>,
    openings: u32,
    /// When the first of these openings was.
    opened: Option<Instant>,
    transitions: VecDeque<Transition>,
}

impl Breaker {
    /// A closed breaker. Its numbers should have no [`BreakerConfig::problems`].
    pub fn new(config: BreakerConfig, now: Instant) -> Self {
        Self {
            config,
            phase: Phase::Closed,
            calls: Calls::new(config.window),
            generation: 0,
            since: now,
            why: None,
            openings: 0,
            opened: None,
            transitions: VecDeque::new(),
        }
    }

    /// Whether a call may go through.
    ///
    /// # Errors
    /// [`Refused`]: not now.
    pub fn ask(&mut self, now: Instant) -> Result<Ticket, Refused> {
        self.pass_time(now);
        let (state, why) = (self.state(), self.why);
        match &mut self.phase {
            Phase::Closed | Phase::ForcedClosed => {}
            Phase::HalfOpen { out, last, numbers } if *out + numbers.calls < self.config.half_open_calls => {
                (*out, *last) = (*out + 1, now);
            }
            Phase::HalfOpen { .. } | Phase::ForcedOpen => return Err(Refused { state, until: None, why }),
            Phase::Open { until, .. } => return Err(Refused { state, until: Some(*until), why }),
        }
        Ok(Ticket(self.generation))
    }

    /// A call has succeeded; a slow one may open the breaker all the same.
    pub fn succeeded(&mut self, ticket: Ticket, now: Instant, took: Duration) {
        self.ended_with(ticket, Ended { now, took, failed: false }, true);
    }

    /// A call has failed by its peer's fault.
    pub fn failed(&mut self, ticket: Ticket, now: Instant, took: Duration) {
        self.ended_with(ticket, Ended { now, took, failed: true }, true);
    }

    /// A call was never made, or tells nothing of its peer: its place is free again.
    pub fn ignored(&mut self, ticket: Ticket) {
        if let Phase::HalfOpen { out, .. } = &mut self.phase
            && ticket.0 == self.generation
        {
            *out = out.saturating_sub(1);
        }
    }

    /// Nobody may call until [`Breaker::force_close`] or [`Breaker::reset`].
    pub fn force_open(&mut self, now: Instant) {
        self.change(now, Phase::ForcedOpen, Why::ByHand);
    }

    /// Everybody may call until [`Breaker::force_open`] or [`Breaker::reset`].
    pub fn force_close(&mut self, now: Instant) {
        self.change(now, Phase::ForcedClosed, Why::ByHand);
    }

    /// As new: closed, and nothing known of its peer.
    pub fn reset(&mut self, now: Instant) {
        self.openings = 0;
        self.forget_calls();
        self.change(now, Phase::Closed, Why::ByHand);
    }

    /// What it does, as of the last call.
    pub fn state(&self) -> BreakerState {
        state_of(&self.phase)
    }

    /// How things stand at `now`.
    pub fn explain(&mut self, now: Instant) -> Explanation {
        self.pass_time(now);
        let (until, numbers, probes_out) = match self.phase {
            Phase::Closed | Phase::ForcedOpen | Phase::ForcedClosed => (None, self.calls.numbers(now), 0),
            Phase::Open { until, numbers } => (Some(until), numbers, 0),
            Phase::HalfOpen { out, last, numbers } => {
                let lost_at = last.checked_add(self.config.half_open_max);
                (lost_at.filter(|_| out > 0), numbers, out)
            }
        };
        Explanation {
            state: self.state(),
            since: self.since,
            until,
            why: self.why,
            numbers,
            probes_out,
            openings: self.openings,
        }
    }

    /// The changes since this was last asked, the oldest first; of more than a few, the last ones.
    pub fn take_transitions(&mut self) -> impl Iterator<Item = Transition> + '_ {
        self.transitions.drain(..)
    }

    /// As the calls' outcome, where somebody else decides whether it may open; says whether it would have.
    pub(super) fn ended_with(&mut self, ticket: Ticket, ended: Ended, may_open: bool) -> bool {
        let Ended { now, took, failed } = ended;
        self.ended(ticket, now, Call { failed, slow: took >= self.config.slow_call }, may_open)
    }

    /// When its calls have opened it, if it has not closed since; a breaker that is half-open has not.
    pub(super) fn opened_by_calls(&self) -> Option<Instant> {
        self.opened.filter(|_| self.state().is_by_calls())
    }

    /// Takes back what was held against its peer: it is closed, if its calls have opened it, and the calls of the
    /// window are forgotten.
    pub(super) fn forgive(&mut self, now: Instant) {
        self.forget_calls();
        if self.opened_by_calls().is_some() {
            self.openings = self.openings.saturating_sub(1);
            self.change(now, Phase::Closed, Why::SelfOutage);
        }
    }

    fn forget_calls(&mut self) {
        self.calls = Calls::new(self.config.window);
    }

    fn ended(&mut self, ticket: Ticket, now: Instant, call: Call, may_open: bool) -> bool {
        self.pass_time(now);
        if ticket.0 != self.generation {
            return false;
        }
        match &mut self.phase {
            Phase::Closed => {
                self.calls.add(now, call);
                let numbers = self.calls.numbers(now);
                let breached = breach(&numbers, &self.config, numbers.calls);
                let Some(why) = breached.filter(|_| numbers.calls >= self.config.least_calls) else { return false };
                if may_open {
                    self.open(now, numbers, why);
                }
                true
            }
            Phase::HalfOpen { out, numbers, .. } => {
                *out = out.saturating_sub(1);
                numbers.add(call);
                // As soon as the rest cannot change it any more.
                let (numbers, all) = (*numbers, self.config.half_open_calls);
                match breach(&numbers, &self.config, all) {
                    Some(why) => {
                        self.open(now, numbers, why);
                        return true;
                    }
                    None if numbers.calls >= all => {
                        self.openings = 0;
                        self.forget_calls();
                        self.change_with(now, Phase::Closed, Why::Recovered, numbers);
                    }
                    None => {}
                }
                false
            }
            Phase::Open { .. } | Phase::ForcedOpen | Phase::ForcedClosed => false,
        }
    }

    /// What time alone does.
    fn pass_time(&mut self, now: Instant) {
        match self.phase {
            Phase::Open { until, .. } if now >= until => {
                let half_open = Phase::HalfOpen { out: 0, last: now, numbers: CallNumbers::default() };
                self.change(now, half_open, Why::Waited);
            }
            // Only where a probe was made and lost: nobody asks a peer only to keep its breaker from opening.
            Phase::HalfOpen { out, last, numbers }
                if out > 0 && now.saturating_duration_since(last) >= self.config.half_open_max =>
            {
                self.openings = self.openings.saturating_sub(1);
                self.open(now, numbers, Why::ProbesLost);
            }
            _ => {}
        }
    }

    fn open(&mut self, now: Instant, numbers: CallNumbers, why: Why) {
        let time = exponential(self.config.open, self.config.open_max, self.openings);
        self.openings = self.openings.saturating_add(1);
        self.forget_calls();
        let until = now + time.min(LONGEST_TIME);
        self.change_with(now, Phase::Open { until, numbers }, why, numbers);
    }

    fn change(&mut self, now: Instant, to: Phase, why: Why) {
        let numbers = self.calls.numbers(now);
        self.change_with(now, to, why, numbers);
    }

    fn change_with(&mut self, now: Instant, to: Phase, why: Why, numbers: CallNumbers) {
        let from = self.state();
        let open_for = match to {
            Phase::Open { until, .. } => Some(until.saturating_duration_since(now)),
            _ => None,
        };
        self.phase = to;
        self.opened = if self.state().is_by_calls() { self.opened.or(Some(now)) } else { None };
        self.generation += 1;
        (self.since, self.why) = (now, Some(why));
        if self.transitions.len() == TRANSITIONS {
            self.transitions.pop_front();
        }
        self.transitions.push_back(Transition { at: now, from, to: self.state(), why, numbers, open_for });
    }
}

/// Which rate is reached by these of `all` calls.
fn breach(numbers: &CallNumbers, config: &BreakerConfig, all: usize) -> Option<Why> {
    let reached = |part: usize, rate: f64| part > 0 && part as f64 >= rate * all as f64;
    match () {
        () if reached(numbers.failed, config.failure_rate) => Some(Why::Failures),
        () if reached(numbers.slow, config.slow_rate) => Some(Why::SlowCalls),
        () => None,
    }
}

fn state_of(phase: &Phase) -> BreakerState {
    match phase {
        Phase::Closed => BreakerState::Closed,
        Phase::Open { .. } => BreakerState::Open,
        Phase::HalfOpen { .. } => BreakerState::HalfOpen,
        Phase::ForcedOpen => BreakerState::ForcedOpen,
        Phase::ForcedClosed => BreakerState::ForcedClosed,
    }
}
