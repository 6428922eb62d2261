//! What a breaker does and why, for whoever asks or looks on. Pure.

use std::fmt;
use std::time::{Duration, Instant};

use super::window::CallNumbers;

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
