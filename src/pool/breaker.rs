//! When one peer is left alone, and when it is tried again. Pure: each call takes `now`; the lock and the group around
//! it are [`super::breakers`].
//!
//! A breaker is *closed* while its peer is asked. Enough failures, or enough slow calls, *open* it: nobody asks for a
//! while, which grows with each opening that follows another. Then it is *half-open*: a few calls may try. They decide
//! whether it closes or opens again.

use std::collections::VecDeque;
use std::fmt;
use std::time::{Duration, Instant};

use crate::base::backoff::exponential;
use crate::base::limits::LONGEST_TIME;

/// Parts of a window in time, so the most by which it is wrong: a tenth.
pub(super) const PARTS: u32 = 10;

/// Calls that a window by count may hold: a bit more than a kilobyte for each breaker.
pub const WINDOW_CALLS_MAX: usize = 1024;

/// Transitions that wait to be taken; beyond that the oldest is lost. One call makes two at most.
pub(super) const TRANSITIONS: usize = 8;

/// Which calls are judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Window {
    /// The last so many, at most [`WINDOW_CALLS_MAX`].
    Calls(usize),
    /// Those that ended within this time, less a tenth of it at most.
    Time(Duration),
}

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

/// What a breaker does with those who ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum BreakerState {
    /// They may call.
    Closed,
    /// A few may call, to find out.
    HalfOpen,
    /// Nobody may call for a while.
    Open,
    /// Nobody may call until somebody says otherwise.
    ForcedOpen,
    /// They may call, and nothing is judged, until somebody says otherwise.
    ForcedClosed,
}

impl BreakerState {
    /// All of them, for a metric of each.
    pub const ALL: [Self; 5] = [Self::Closed, Self::HalfOpen, Self::Open, Self::ForcedOpen, Self::ForcedClosed];

    /// Whether the calls of a peer keep others from calling it.
    pub(super) fn is_by_calls(self) -> bool {
        matches!(self, Self::Open | Self::HalfOpen)
    }

    /// Its name, as of a label.
    pub fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::HalfOpen => "half_open",
            Self::Open => "open",
            Self::ForcedOpen => "forced_open",
            Self::ForcedClosed => "forced_closed",
        }
    }
}

impl fmt::Display for BreakerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Calls of a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CallNumbers {
    /// Calls that ended.
    pub calls: usize,
    /// Those of them that failed.
    pub failed: usize,
    /// Those of them that were slow, failed or not.
    pub slow: usize,
}

impl CallNumbers {
    fn add(&mut self, call: Call) {
        self.calls += 1;
        self.failed += usize::from(call.failed);
        self.slow += usize::from(call.slow);
    }

    fn remove(&mut self, call: Call) {
        self.calls -= 1;
        self.failed -= usize::from(call.failed);
        self.slow -= usize::from(call.slow);
    }

    /// Which rate is reached by these of `all` calls.
    fn breach(&self, config: &BreakerConfig, all: usize) -> Option<Why> {
        let reached = |part: usize, rate: f64| part > 0 && part as f64 >= rate * all as f64;
        match () {
            () if reached(self.failed, config.failure_rate) => Some(Why::Failures),
            () if reached(self.slow, config.slow_rate) => Some(Why::SlowCalls),
            () => None,
        }
    }
}

impl fmt::Display for CallNumbers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} calls failed, {} slow", self.failed, self.calls, self.slow)
    }
}

/// Why a breaker has changed its state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Why {
    /// Too many calls failed.
    Failures,
    /// Too many calls were slow.
    SlowCalls,
    /// It was open long enough.
    Waited,
    /// The probes succeeded.
    Recovered,
    /// The probes were lost: no decision in the time for it.
    ProbesLost,
    /// Somebody said so.
    ByHand,
    /// Most peers failed at once, so this one is not to blame.
    SelfOutage,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Failures => "too many calls failed",
            Self::SlowCalls => "too many calls were slow",
            Self::Waited => "it was open long enough",
            Self::Recovered => "the probes succeeded",
            Self::ProbesLost => "the probes were lost",
            Self::ByHand => "by hand",
            Self::SelfOutage => "most peers fail at once, so it is us",
        })
    }
}

/// One change of state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transition {
    /// When.
    pub at: Instant,
    /// From which state.
    pub from: BreakerState,
    /// To which.
    pub to: BreakerState,
    /// Why.
    pub why: Why,
    /// The calls that it was decided by.
    pub numbers: CallNumbers,
    /// For how long, if it has opened.
    pub open_for: Option<Duration>,
}

impl fmt::Display for Transition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} -> {}: {} ({})", self.from, self.to, self.why, self.numbers)?;
        self.open_for.map_or(Ok(()), |time| write!(f, ", for {time:.1?}"))
    }
}

/// How things stand with one breaker, for whoever asks why a peer is not called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Explanation {
    /// What it does.
    pub state: BreakerState,
    /// Since when.
    pub since: Instant,
    /// When the present state ends, if time ends it.
    pub until: Option<Instant>,
    /// Why it came into this state; `None` for one that has never changed.
    pub why: Option<Why>,
    /// The calls of the window; while it is half-open, the probes that have ended; while it is open, what opened it.
    pub numbers: CallNumbers,
    /// Probes that are out.
    pub probes_out: usize,
    /// Openings since it was last closed.
    pub openings: u32,
}

impl Explanation {
    /// As a line, with the times that are left at `now`.
    pub fn line(&self, now: Instant) -> String {
        let since = now.saturating_duration_since(self.since);
        let mut line = format!("{} for {since:.1?}", self.state);
        if let Some(until) = self.until {
            line += &format!(", {:.1?} left", until.saturating_duration_since(now));
        }
        if let Some(why) = self.why {
            line += &format!(": {why}");
        }
        line += &format!(" ({})", self.numbers);
        if self.openings > 1 {
            line += &format!(", opened {} times in a row", self.openings);
        }
        line
    }
}

/// One call that was let through. It counts only in the state that it was let through in: an answer that comes after
/// the breaker has opened tells nothing new.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "a probe that is never given back holds its place until the breaker is no longer half-open"]
pub struct Ticket(u64);

/// The peer is not to be called now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("its breaker is {state}{}", .why.map(|why| format!(": {why}")).unwrap_or_default())]
pub struct Refused {
    /// Which state refuses.
    pub state: BreakerState,
    /// When to ask again; `None` if only a probe that is out, or somebody's hand, changes it.
    pub until: Option<Instant>,
    /// Why it came into this state.
    pub why: Option<Why>,
}

/// When and how a call ended.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ended {
    pub(super) now: Instant,
    pub(super) took: Duration,
    pub(super) failed: bool,
}

/// A call as a window keeps it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Call {
    failed: bool,
    slow: bool,
}

#[derive(Debug, Clone)]
pub(super) enum Calls {
    Last {
        most: usize,
        calls: VecDeque<Call>,
        sum: CallNumbers,
    },
    /// Parts of the window by the moment of their first call.
    Recent {
        time: Duration,
        parts: VecDeque<(Instant, CallNumbers)>,
    },
}

impl Calls {
    fn new(window: Window) -> Self {
        match window {
            Window::Calls(most) => Self::Last {
                most: most.clamp(1, WINDOW_CALLS_MAX),
                calls: VecDeque::new(),
                sum: CallNumbers::default(),
            },
            Window::Time(time) => Self::Recent { time, parts: VecDeque::new() },
        }
    }

    fn add(&mut self, now: Instant, call: Call) {
        match self {
            Self::Last { most, calls, sum } => {
                if calls.len() == *most
                    && let Some(oldest) = calls.pop_front()
                {
                    sum.remove(oldest);
                }
                calls.push_back(call);
                sum.add(call);
            }
            Self::Recent { time, parts } => {
                let part = *time / PARTS;
                if parts.back().is_none_or(|(start, _)| now.saturating_duration_since(*start) >= part) {
                    parts.push_back((now, CallNumbers::default()));
                }
                if let Some((_, sum)) = parts.back_mut() {
                    sum.add(call);
                }
            }
        }
    }

    fn numbers(&mut self, now: Instant) -> CallNumbers {
        match self {
            Self::Last { sum, .. } => *sum,
            Self::Recent { time, parts } => {
                while parts.front().is_some_and(|(start, _)| now.saturating_duration_since(*start) >= *time) {
                    parts.pop_front();
                }
                parts.iter().fold(CallNumbers::default(), |sum, (_, part)| CallNumbers {
                    calls: sum.calls + part.calls,
                    failed: sum.failed + part.failed,
                    slow: sum.slow + part.slow,
                })
            }
        }
    }
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
                let breach = numbers.breach(&self.config, numbers.calls);
                let Some(why) = breach.filter(|_| numbers.calls >= self.config.least_calls) else { return false };
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
                match numbers.breach(&self.config, all) {
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

fn state_of(phase: &Phase) -> BreakerState {
    match phase {
        Phase::Closed => BreakerState::Closed,
        Phase::Open { .. } => BreakerState::Open,
        Phase::HalfOpen { .. } => BreakerState::HalfOpen,
        Phase::ForcedOpen => BreakerState::ForcedOpen,
        Phase::ForcedClosed => BreakerState::ForcedClosed,
    }
}
