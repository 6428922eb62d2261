//! The calls that a breaker judges: the last so many, or those of a time. Pure.

use std::collections::VecDeque;
use std::fmt;
use std::time::{Duration, Instant};

/// Parts of a window in time, so the most by which it is wrong: a tenth.
pub(super) const PARTS: u32 = 10;

/// Calls that a window by count may hold: a bit more than a kilobyte for each breaker.
pub const WINDOW_CALLS_MAX: usize = 1024;

/// Which calls are judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Window {
    /// The last so many, at most [`WINDOW_CALLS_MAX`].
    Calls(usize),
    /// Those that ended within this time, less a tenth of it at most.
    Time(Duration),
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
    pub(super) fn add(&mut self, call: Call) {
        self.calls += 1;
        self.failed += usize::from(call.failed);
        self.slow += usize::from(call.slow);
    }

    fn remove(&mut self, call: Call) {
        self.calls -= 1;
        self.failed -= usize::from(call.failed);
        self.slow -= usize::from(call.slow);
    }
}

impl fmt::Display for CallNumbers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} calls failed, {} slow", self.failed, self.calls, self.slow)
    }
}

/// A call as a window keeps it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Call {
    pub(super) failed: bool,
    pub(super) slow: bool,
}

/// The calls of a window, in bounded memory.
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
    pub(super) fn new(window: Window) -> Self {
        match window {
            Window::Calls(most) => Self::Last {
                most: most.clamp(1, WINDOW_CALLS_MAX),
                calls: VecDeque::new(),
                sum: CallNumbers::default(),
            },
            Window::Time(time) => Self::Recent { time, parts: VecDeque::new() },
        }
    }

    pub(super) fn add(&mut self, now: Instant, call: Call) {
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

    pub(super) fn numbers(&mut self, now: Instant) -> CallNumbers {
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
