//! What is due when in a batch. Pure.

use std::collections::{BTreeSet, HashMap};
use std::time::Instant;

/// What may be due.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Due {
    /// The batch takes nothing more.
    SoftLimit,
    /// The batch ends.
    HardLimit,
    /// The gate opens, whoever is not ready.
    Gate,
    /// A miner's connection.
    Miner(usize),
    /// The present stage of a job.
    Job(usize),
    /// More jobs are asked for.
    Ask,
}

/// At most one moment for each.
#[derive(Debug, Default)]
pub(super) struct Deadlines {
    by_time: BTreeSet<(Instant, Due)>,
    times: HashMap<Due, Instant>,
}

impl Deadlines {
    /// From now on it is due then, or never.
    pub(super) fn set(&mut self, due: Due, at: Option<Instant>) {
        let old = match at {
            Some(at) => self.times.insert(due, at),
            None => self.times.remove(&due),
        };
        if let Some(old) = old {
            self.by_time.remove(&(old, due));
        }
        if let Some(at) = at {
            self.by_time.insert((at, due));
        }
    }

    /// Whether it has a moment.
    pub(super) fn has(&self, due: Due) -> bool {
        self.times.contains_key(&due)
    }

    /// The earliest.
    pub(super) fn first(&self) -> Option<Instant> {
        self.by_time.first().map(|(at, _)| *at)
    }

    /// Takes out what is due first, if that is `now` or before, with its moment.
    pub(super) fn take(&mut self, now: Instant) -> Option<Due> {
        let (at, due) = *self.by_time.first()?;
        if at > now {
            return None;
        }
        self.set(due, None);
        Some(due)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn each_has_one_moment_and_the_earliest_comes_first() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut deadlines = Deadlines::default();
        deadlines.set(Due::Job(1), Some(at(1)));
        deadlines.set(Due::Job(1), Some(at(3)));
        deadlines.set(Due::Gate, Some(at(2)));
        deadlines.set(Due::Miner(0), Some(at(1)));
        deadlines.set(Due::Miner(0), None);
        assert_eq!((deadlines.first(), deadlines.take(at(1))), (Some(at(2)), None));
        assert_eq!(deadlines.take(at(5)), Some(Due::Gate));
        assert_eq!((deadlines.take(at(5)), deadlines.take(at(5))), (Some(Due::Job(1)), None));
    }
}
