//! Which task is next: three priorities, limits by key, uniqueness. Pure.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

/// How urgent a task is. A task of a higher priority goes first, but one pick in eight takes from the lowest priority
/// that waits, so that nothing starves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Priority {
    /// When nothing else waits.
    Low,
    /// The rule.
    #[default]
    Normal,
    /// Before all others.
    High,
}

/// One pick in so many goes to the lowest priority that waits.
pub(super) const FAIR: u32 = 8;

/// Tasks with the same key share a limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Key {
    pub(super) name: Arc<str>,
    /// How many of them may be ready or running at a time; at least one.
    pub(super) limit: usize,
    /// One of them runs, one more may wait; further ones are refused.
    pub(super) unique: bool,
}

/// Tasks that wait for a worker.
#[derive(Debug)]
pub(super) struct Ready<I> {
    lanes: [VecDeque<I>; 3],
    keys: HashMap<Arc<str>, Held<I>>,
    /// Keys of which a unique task waits.
    unique: HashSet<Arc<str>>,
    picks: u32,
    len: usize,
    stale: usize,
}

#[derive(Debug)]
struct Held<I> {
    /// In a lane or running.
    slots: usize,
    waiting: VecDeque<(I, Priority)>,
}

impl<I> Ready<I> {
    pub(super) fn new() -> Self {
        Self { lanes: Default::default(), keys: HashMap::new(), unique: HashSet::new(), picks: 0, len: 0, stale: 0 }
    }

    /// Items in the lanes, so that may start at once, with those that were cancelled in place.
    pub(super) fn startable(&self) -> usize {
        self.lanes.iter().map(VecDeque::len).sum()
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Whether a unique task of this key waits already.
    pub(super) fn is_duplicate(&self, key: &Key) -> bool {
        key.unique && self.unique.contains(&key.name)
    }

    /// Notes that a unique task waits, from its acceptance to its start.
    pub(super) fn note_unique(&mut self, key: &Key) {
        if key.unique {
            self.unique.insert(key.name.clone());
        }
    }

    /// The unique task of this key has started or ended.
    pub(super) fn clear_unique(&mut self, key: &Key) {
        if key.unique {
            self.unique.remove(&key.name);
        }
    }

    pub(super) fn push(&mut self, item: I, priority: Priority, key: Option<&Key>) {
        self.len += 1;
        let Some(key) = key else { return self.lanes[priority as usize].push_back(item) };
        let held = self.keys.entry(key.name.clone()).or_insert_with(|| Held { slots: 0, waiting: VecDeque::new() });
        if held.slots < key.limit.max(1) {
            held.slots += 1;
            self.lanes[priority as usize].push_back(item);
        } else {
            held.waiting.push_back((item, priority));
        }
    }

    pub(super) fn pop(&mut self) -> Option<I> {
        if self.len == 0 {
            return None;
        }
        self.picks = self.picks.wrapping_add(1);
        let lanes = &mut self.lanes;
        let lane = if self.picks.is_multiple_of(FAIR) {
            lanes.iter_mut().find(|lane| !lane.is_empty())
        } else {
            lanes.iter_mut().rev().find(|lane| !lane.is_empty())
        };
        let item = lane?.pop_front();
        self.len -= 1;
        item
    }

    /// A task of this key has ended, or was popped only to be thrown away: the next one of the key may start. Says
    /// whether one may.
    pub(super) fn release(&mut self, key: &Key) -> bool {
        let Some(held) = self.keys.get_mut(&key.name) else { return false };
        match held.waiting.pop_front() {
            Some((item, priority)) => {
                self.lanes[priority as usize].push_back(item);
                true
            }
            None => {
                held.slots -= 1;
                if held.slots == 0 {
                    self.keys.remove(&key.name);
                }
                false
            }
        }
    }

    /// One of the queue was cancelled in place; whether so many were that [`Ready::purge`] is worth its while.
    pub(super) fn note_stale(&mut self) -> bool {
        self.stale += 1;
        self.stale > 64 && self.stale * 2 > self.len
    }

    /// One that was cancelled in place was popped.
    pub(super) fn popped_stale(&mut self) {
        self.stale = self.stale.saturating_sub(1);
    }

    /// Takes out what is not `wanted`; of those, the first list held a place of its key each, for [`Ready::release`].
    pub(super) fn purge(&mut self, wanted: impl Fn(&I) -> bool) -> (Vec<I>, Vec<I>) {
        let (mut held_places, mut waited) = (Vec::new(), Vec::new());
        for lane in &mut self.lanes {
            for item in std::mem::take(lane) {
                if wanted(&item) {
                    lane.push_back(item);
                } else {
                    held_places.push(item);
                }
            }
        }
        for held in self.keys.values_mut() {
            for (item, priority) in std::mem::take(&mut held.waiting) {
                if wanted(&item) {
                    held.waiting.push_back((item, priority));
                } else {
                    waited.push(item);
                }
            }
        }
        self.stale = 0;
        self.len = self.startable() + self.keys.values().map(|held| held.waiting.len()).sum::<usize>();
        (held_places, waited)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(limit: usize) -> Key {
        Key { name: "k".into(), limit, unique: false }
    }

    fn all(ready: &mut Ready<u32>) -> Vec<u32> {
        std::iter::from_fn(|| ready.pop()).collect()
    }

    #[test]
    fn a_higher_priority_goes_first_and_nothing_starves() {
        let mut ready = Ready::new();
        ready.push(900, Priority::Low, None);
        ready.push(500, Priority::Normal, None);
        for n in 0..20 {
            ready.push(n, Priority::High, None);
        }
        let order = all(&mut ready);
        let place = |item| order.iter().position(|i| *i == item).unwrap() as u32;
        assert_eq!(order[..7], [0, 1, 2, 3, 4, 5, 6]);
        assert_eq!((place(900), place(500)), (FAIR - 1, 2 * FAIR - 1));
        assert_eq!(order.iter().filter(|i| **i < 20).copied().collect::<Vec<_>>(), (0..20).collect::<Vec<_>>());
    }

    #[test]
    fn a_key_never_has_more_than_its_limit_and_does_not_hold_up_others() {
        let (mut ready, key) = (Ready::new(), key(2));
        for n in 0..5 {
            ready.push(n, Priority::Normal, Some(&key));
        }
        ready.push(100, Priority::Normal, None);
        assert_eq!(all(&mut ready), [0, 1, 100]);
        assert!(ready.release(&key));
        assert_eq!(all(&mut ready), [2]);
        assert!(ready.release(&key) && ready.release(&key));
        assert_eq!(all(&mut ready), [3, 4]);
        assert!(!ready.release(&key) && !ready.release(&key));
        assert!(ready.keys.is_empty());
    }

    #[test]
    fn what_was_cancelled_in_place_is_purged_and_gives_its_slot_back() {
        let (mut ready, key) = (Ready::new(), key(1));
        for n in 0..4 {
            ready.push(n, Priority::Normal, Some(&key));
        }
        assert_eq!(ready.purge(|item| *item == 3), (vec![0], vec![1, 2]));
        assert!(ready.release(&key));
        assert_eq!(all(&mut ready), [3]);
        assert!(!ready.release(&key) && ready.keys.is_empty());
    }
}
