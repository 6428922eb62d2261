//! Which address a link dials next, when it has several. Pure: `now` is an argument.

use std::time::{Duration, Instant};

/// The addresses of a link in their order, and from when on each may be dialled again.
#[derive(Debug)]
pub(super) struct Endpoints {
    not_before: Vec<Option<Instant>>,
    current: usize,
}

impl Endpoints {
    /// So many addresses, at least one; the first is dialled first.
    pub(super) fn new(count: usize) -> Self {
        Self { not_before: vec![None; count.max(1)], current: 0 }
    }

    /// Which one is dialled now, from 0.
    pub(super) fn current(&self) -> usize {
        self.current
    }

    /// The present one was lost, or an attempt there has failed: turns to the next in order, and after the last to the
    /// first; gives the pause before that is dialled.
    ///
    /// That is the `usual` pause, unless none may be dialled by then: each is left alone for as long as it has asked
    /// for, `its_own` for the present one.
    pub(super) fn next(&mut self, now: Instant, usual: Duration, its_own: Duration) -> Duration {
        self.not_before[self.current] = now.checked_add(its_own);
        let count = self.not_before.len();
        let left = |at: &usize| {
            self.not_before[*at].map_or(Duration::ZERO, |then| then.saturating_duration_since(now)).max(usual)
        };
        // The first of those that are due first.
        let next = (1..=count).map(|step| (self.current + step) % count).min_by_key(left).unwrap_or(0);
        let pause = left(&next);
        self.current = next;
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn each_loss_turns_to_the_next_address_and_the_last_to_the_first() {
        let (mut endpoints, now) = (Endpoints::new(3), Instant::now());
        let turns: Vec<_> = (0..4).map(|_| (endpoints.next(now, S, S), endpoints.current())).collect();
        assert_eq!(turns, [(S, 1), (S, 2), (S, 0), (S, 1)]);
    }

    #[test]
    fn one_that_refuses_for_long_is_left_out_until_it_may_be_asked_again() {
        let (mut endpoints, start) = (Endpoints::new(2), Instant::now());
        assert_eq!((endpoints.next(start, S, 300 * S), endpoints.current()), (S, 1));
        for second in 1..299 {
            assert_eq!((endpoints.next(start + second * S, S, S), endpoints.current()), (S, 1), "at {second}");
        }
        assert_eq!((endpoints.next(start + 299 * S, S, S), endpoints.current()), (S, 0));
        // Both refuse: the one that is due first, at its time.
        assert_eq!((endpoints.next(start + 300 * S, S, 300 * S), endpoints.current()), (S, 1));
        assert_eq!((endpoints.next(start + 301 * S, S, 300 * S), endpoints.current()), (299 * S, 0));
    }

    #[test]
    fn the_only_address_has_its_own_pause() {
        let (mut endpoints, now) = (Endpoints::new(1), Instant::now());
        assert_eq!((endpoints.next(now, S, 7 * S), endpoints.current()), (7 * S, 0));
    }
}
