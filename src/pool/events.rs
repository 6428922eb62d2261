//! What a group of breakers tells, and what it has done. Pure.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use super::state::{BreakerState, Transition};

/// Something that happened to a group of breakers.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event<K> {
    /// A breaker has changed its state.
    Changed {
        /// Whose.
        key: K,
        /// How.
        change: Transition,
    },
    /// A breaker stays closed although its calls say otherwise, because too many are open.
    Capped {
        /// Whose.
        key: K,
        /// How many are open.
        open: usize,
    },
    /// Most peers fail at once: it is us.
    OutageBegan(Outage),
    /// Peers answer again, or are not called any more.
    OutageEnded {
        /// How long it lasted.
        lasted: Duration,
    },
}

impl<K: fmt::Debug> fmt::Display for Event<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Changed { key, change } => write!(f, "breaker of {key:?}: {change}"),
            Self::Capped { key, open } => {
                write!(f, "breaker of {key:?} stays closed: {open} are open, which is as many as may")
            }
            Self::OutageBegan(outage) => write!(f, "it is us: {outage}"),
            Self::OutageEnded { lasted } => write!(f, "it is no longer us, after {lasted:.1?}"),
        }
    }
}

/// A self-outage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outage {
    /// Since when.
    pub since: Instant,
    /// Peers whose last call had failed when it began.
    pub failing: usize,
    /// Peers that were called within the window then.
    pub called: usize,
}

impl fmt::Display for Outage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} peers fail at once", self.failing, self.called)
    }
}

/// What a group of breakers has and has done.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BreakersNumbers {
    /// Known peers by the state of their breaker.
    pub states: BTreeMap<BreakerState, usize>,
    /// Calls that were refused.
    pub refused: u64,
    /// Openings that the cap has prevented.
    pub capped: u64,
    /// Self-outages that have begun.
    pub outages: u64,
    /// Events that were lost because nobody took them.
    pub events_lost: u64,
}
