//! When a watcher looks for what a killed miner has left, and when it has done. Pure.

use std::time::{Duration, Instant};

use crate::base::backoff::exponential;

/// Time for whoever starts the miner again at once: the new one takes its executors back, and cleans up by itself.
const FIRST: Duration = Duration::from_secs(2);

/// An engine whose client was killed may still make a container; what comes later is the next miner's.
const SETTLE: Duration = Duration::from_secs(10);

/// The pause after a look that found something to remove, and the first after one in vain.
const PAUSE: Duration = Duration::from_secs(1);

/// The pause while executors are at their work.
const LIVING: Duration = Duration::from_secs(3);

/// The longest pause after looks in vain…
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// …and how long those go on: an engine that is away for longer is for people.
const GIVE_UP: Duration = Duration::from_secs(600);

/// What a look has found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Look {
    /// Nothing that carries the miner's marks.
    Nothing,
    /// Things that are removed now.
    Removed,
    /// Executors that live, whatever else.
    Living,
    /// Something that cannot be removed, or it is not known what there is.
    Left,
}

/// The looks of one watcher.
#[derive(Debug)]
pub(super) struct Rounds {
    settled: Instant,
    last: Option<Look>,
    /// Looks in vain, and since when.
    vain: u32,
    since: Instant,
}

impl Rounds {
    /// For a miner that was killed at `now`.
    pub(super) fn new(now: Instant) -> Self {
        Self { settled: now + SETTLE, last: None, vain: 0, since: now }
    }

    /// What a look has found.
    pub(super) fn looked(&mut self, look: Look, now: Instant) {
        match look {
            Look::Left => self.vain = self.vain.saturating_add(1),
            _ => (self.vain, self.since) = (0, now),
        }
        self.last = Some(look);
    }

    /// The pause before the next look; `None` if there is none.
    pub(super) fn next(&self, now: Instant) -> Option<Duration> {
        match self.last {
            None => Some(FIRST),
            Some(Look::Nothing) if now >= self.settled => None,
            Some(Look::Left) if now.saturating_duration_since(self.since) >= GIVE_UP => None,
            Some(Look::Left) => Some(exponential(PAUSE, PAUSE_MAX, self.vain - 1)),
            Some(Look::Living) => Some(LIVING),
            Some(Look::Nothing | Look::Removed) => Some(PAUSE),
        }
    }

    /// Why there is no next look.
    pub(super) fn conclusion(&self) -> String {
        match self.last {
            Some(Look::Left) => format!("for {} minutes something could not be removed", GIVE_UP.as_secs() / 60),
            _ => "nothing is left".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watcher_ends_when_nothing_is_left_and_no_engine_is_at_work_any_more() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let mut rounds = Rounds::new(start);
        assert_eq!(rounds.next(start), Some(FIRST));
        let seen = [(Look::Removed, 2, PAUSE), (Look::Nothing, 3, PAUSE), (Look::Living, 300, LIVING)];
        for (look, now, pause) in seen {
            rounds.looked(look, at(now));
            assert_eq!(rounds.next(at(now)), Some(pause), "{look:?}");
        }
        rounds.looked(Look::Nothing, at(301));
        assert_eq!(rounds.next(at(301)), None);
        assert_eq!(rounds.conclusion(), "nothing is left");
    }

    #[test]
    fn looks_in_vain_become_rare_and_end() {
        let start = Instant::now();
        let (mut rounds, mut now, mut looks) = (Rounds::new(start), start, 0);
        rounds.looked(Look::Removed, now);
        while let Some(pause) = rounds.next(now) {
            now += pause;
            looks += 1;
            rounds.looked(Look::Left, now);
        }
        assert!((GIVE_UP..GIVE_UP + PAUSE_MAX).contains(&(now - start)), "{:?}", now - start);
        assert!((20..30).contains(&looks), "{looks}");
        assert!(rounds.conclusion().starts_with("for 10 minutes"));
        // Whatever is found or removed begins the time anew.
        rounds.looked(Look::Removed, now);
        rounds.looked(Look::Left, now);
        assert_eq!(rounds.next(now), Some(exponential(PAUSE, PAUSE_MAX, 0)));
    }
}
