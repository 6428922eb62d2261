//! Moments at which something is due, earliest first. Pure.
//!
//! What is no longer wanted stays until it is due, because looking it up would cost more than popping it; it is thrown
//! out when it outnumbers the rest.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Instant;

/// Stale entries that are never worth a sweep.
const STALE_MIN: usize = 64;

/// Things of type `K`, each due at a moment.
#[derive(Debug)]
pub(super) struct Deadlines<K> {
    heap: BinaryHeap<Reverse<(Instant, K)>>,
    stale: usize,
}

impl<K: Ord + Copy> Deadlines<K> {
    pub(super) fn new() -> Self {
        Self { heap: BinaryHeap::new(), stale: 0 }
    }

    /// Adds one; says whether it is now the earliest.
    pub(super) fn arm(&mut self, at: Instant, what: K) -> bool {
        let earliest = self.next().is_none_or(|next| at < next);
        self.heap.push(Reverse((at, what)));
        earliest
    }

    /// When the earliest is due.
    pub(super) fn next(&self) -> Option<Instant> {
        self.heap.peek().map(|Reverse((at, _))| *at)
    }

    /// Takes the earliest if it is due.
    pub(super) fn pop_due(&mut self, now: Instant) -> Option<K> {
        if self.next()? > now {
            return None;
        }
        self.heap.pop().map(|Reverse((_, what))| what)
    }

    /// One popped entry was no longer wanted.
    pub(super) fn popped_stale(&mut self) {
        self.stale = self.stale.saturating_sub(1);
    }

    /// `entries` more are no longer wanted; throws such out if they outnumber the rest.
    pub(super) fn disarm(&mut self, entries: usize, wanted: impl Fn(&K) -> bool) {
        self.stale += entries;
        if self.stale > STALE_MIN && self.stale * 2 > self.heap.len() {
            self.heap.retain(|Reverse((_, what))| wanted(what));
            self.stale = 0;
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.heap.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn what_is_due_comes_in_order_and_nothing_comes_early() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut due = Deadlines::new();
        assert!(due.arm(at(3), 3));
        assert!(due.arm(at(1), 1));
        assert!(!due.arm(at(2), 2));
        assert_eq!((due.next(), due.pop_due(start)), (Some(at(1)), None));
        assert_eq!([due.pop_due(at(2)), due.pop_due(at(2)), due.pop_due(at(2))], [Some(1), Some(2), None]);
        assert_eq!(due.pop_due(at(9)), Some(3));
        assert_eq!(due.next(), None);
    }

    #[test]
    fn stale_entries_do_not_pile_up() {
        let start = Instant::now();
        let mut due = Deadlines::new();
        for live in 0..100 {
            due.arm(start, live);
        }
        for n in 0..10_000 {
            due.arm(start, 100 + n);
            due.disarm(1, |what| *what < 100);
            assert!(due.len() <= 100 + 2 * STALE_MIN + 100, "{} entries", due.len());
        }
        assert_eq!((0..).map_while(|_| due.pop_due(start)).filter(|what| *what < 100).count(), 100);
    }
}
