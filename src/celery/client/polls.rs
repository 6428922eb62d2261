//! When to look for results whose notification may have been missed. Pure.
//!
//! A subscription may begin a moment after a fast worker has ended the task, and Redis tells nothing to a connection
//! that is away. So each result is also looked for: soon after it was asked for, then ever more rarely, and at once
//! after each reconnect.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

/// How long after the one before each look comes; the last one is repeated.
const LOOKS: [Duration; 6] = [
    Duration::from_millis(20),
    Duration::from_millis(100),
    Duration::from_millis(500),
    Duration::from_secs(2),
    Duration::from_secs(10),
    // With 65,536 results: some 1,100 looks a second, 1 % of what one Redis does.
    Duration::from_secs(60),
];

/// The plan of all looks.
#[derive(Debug, Default)]
pub(super) struct Polls {
    due: BTreeSet<(Instant, String)>,
    /// When each is due, and how many looks it has had.
    of: HashMap<String, (Instant, usize)>,
}

impl Polls {
    /// Plans the first look for a result, unless it is planned.
    pub(super) fn add(&mut self, now: Instant, id: &str) {
        if !self.of.contains_key(id) {
            self.plan(id.to_owned(), now + LOOKS[0], 0);
        }
    }

    /// No more looks for it.
    pub(super) fn remove(&mut self, id: &str) {
        if let Some((at, _)) = self.of.remove(id) {
            self.due.remove(&(at, id.to_owned()));
        }
    }

    /// The next look.
    pub(super) fn next(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }

    /// Everything may have been missed: each look is due now, and the next ones come as for a fresh result, because
    /// what ended meanwhile may be stored only when its worker has reconnected as well.
    pub(super) fn all(&mut self, now: Instant) {
        let ids: Vec<String> = self.of.drain().map(|(id, _)| id).collect();
        self.due.clear();
        for id in ids {
            self.plan(id, now, 0);
        }
    }

    /// Another look for a result soon, whose further looks stay as rare as they are.
    pub(super) fn soon(&mut self, now: Instant, id: &str) {
        if let Some((at, looks)) = self.of.remove(id) {
            self.due.remove(&(at, id.to_owned()));
            self.plan(id.to_owned(), at.min(now + LOOKS[0]), looks);
        }
    }

    /// Those that are due, `max` at most; the next look for each is planned.
    pub(super) fn take(&mut self, now: Instant, max: usize) -> Vec<String> {
        let mut taken = Vec::new();
        while taken.len() < max
            && let Some((at, _)) = self.due.first()
            && *at <= now
        {
            let Some((_, id)) = self.due.pop_first() else { break };
            let looks = self.of.get(&id).map_or(0, |(_, looks)| looks + 1);
            self.plan(id.clone(), now + LOOKS[looks.min(LOOKS.len() - 1)], looks);
            taken.push(id);
        }
        taken
    }

    fn plan(&mut self, id: String, at: Instant, looks: usize) {
        self.of.insert(id.clone(), (at, looks));
        self.due.insert((at, id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_come_soon_and_then_ever_more_rarely() {
        let (start, mut polls) = (Instant::now(), Polls::default());
        polls.add(start, "a");
        polls.add(start, "a");
        let mut at = start;
        for wait in LOOKS.iter().chain([&LOOKS[5], &LOOKS[5]]) {
            at += *wait;
            assert_eq!(polls.next(), Some(at));
            assert!(polls.take(at - Duration::from_millis(1), 9).is_empty());
            assert_eq!(polls.take(at, 9), ["a"]);
        }
        polls.soon(at, "a");
        assert_eq!((polls.next(), polls.take(at + LOOKS[0], 9).len()), (Some(at + LOOKS[0]), 1));
        assert_eq!(polls.next(), Some(at + LOOKS[0] + LOOKS[5]), "the further looks are as rare as before");
        polls.remove("a");
        assert_eq!((polls.next(), polls.take(at + LOOKS[5], 9).len()), (None, 0));
    }

    #[test]
    fn after_a_reconnect_all_are_due_a_few_at_a_time() {
        let (start, mut polls) = (Instant::now(), Polls::default());
        for n in 0..5 {
            polls.add(start, &format!("{n}"));
        }
        assert_eq!(polls.take(start + LOOKS[0], 9).len(), 5);
        let now = start + LOOKS[0];
        polls.all(now);
        assert_eq!((polls.take(now, 2).len(), polls.take(now, 2).len(), polls.take(now, 2).len()), (2, 2, 1));
        assert_eq!(polls.next(), Some(now + LOOKS[1]));
    }
}
