//! What a worker holds: which messages it has taken, how far each is, and how many more it may take. Pure.

use std::collections::{HashMap, HashSet, VecDeque};

use crate::base::limits::{CELERY_SCHEDULED, CELERY_SETTLED};

/// How far a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// Its time has not come.
    Scheduled,
    /// It waits for a worker thread.
    Waiting,
    /// Its handler runs.
    Running,
    /// What came of it is on its way to Redis.
    Settling,
}

/// One message that was taken.
#[derive(Debug)]
pub(super) struct HeldMessage<T> {
    /// The id of its task.
    pub task_id: String,
    /// How far it is.
    pub stage: Stage,
    /// What its owner keeps with it.
    pub item: T,
}

/// How many messages are in each stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Those whose time has not come.
    pub scheduled: usize,
    /// Those that wait for a thread.
    pub waiting: usize,
    /// Those whose handler runs.
    pub running: usize,
    /// Those whose outcome is on its way to Redis.
    pub settling: usize,
}

impl Counts {
    /// All of them.
    pub fn total(self) -> usize {
        self.scheduled + self.waiting + self.running + self.settling
    }

    fn of(&mut self, stage: Stage) -> &mut usize {
        match stage {
            Stage::Scheduled => &mut self.scheduled,
            Stage::Waiting => &mut self.waiting,
            Stage::Running => &mut self.running,
            Stage::Settling => &mut self.settling,
        }
    }
}

/// The table of what is held, by delivery tag. An entry's stage only rises.
#[derive(Debug)]
pub(super) struct Held<T> {
    prefetch: usize,
    entries: HashMap<String, HeldMessage<T>>,
    /// A task's id may be held more than once: a producer that was not sure has sent it again.
    by_task: HashMap<String, Vec<String>>,
    counts: Counts,
    settled: VecDeque<String>,
    settled_set: HashSet<String>,
}

impl<T> Held<T> {
    /// An empty table that has room for `prefetch` messages whose time has come.
    pub(super) fn new(prefetch: usize) -> Self {
        Self {
            prefetch,
            entries: HashMap::new(),
            by_task: HashMap::new(),
            counts: Counts::default(),
            settled: VecDeque::new(),
            settled_set: HashSet::new(),
        }
    }

    /// How many more may be taken. What is scheduled does not count until its time has come, as with Celery, but it is
    /// bounded too: when [`CELERY_SCHEDULED`] are, none is taken until the first of them is due.
    pub(super) fn room(&self) -> usize {
        let due = self.counts.total() - self.counts.scheduled;
        self.prefetch.saturating_sub(due).min(CELERY_SCHEDULED.saturating_sub(self.counts.scheduled))
    }

    /// Another number of messages whose time has come.
    pub(super) fn set_prefetch(&mut self, prefetch: usize) {
        self.prefetch = prefetch;
    }

    /// How many are in each stage.
    pub(super) fn counts(&self) -> Counts {
        self.counts
    }

    /// Notes a message that was taken; false, and nothing is noted, if it is held already.
    pub(super) fn insert(&mut self, tag: &str, task_id: &str, stage: Stage, item: T) -> bool {
        if self.entries.contains_key(tag) {
            return false;
        }
        self.entries.insert(tag.to_owned(), HeldMessage { task_id: task_id.to_owned(), stage, item });
        self.by_task.entry(task_id.to_owned()).or_default().push(tag.to_owned());
        *self.counts.of(stage) += 1;
        true
    }

    /// Raises a message from one stage to a later one; false if it is not in `from` any more: somebody else has taken
    /// it on.
    pub(super) fn advance(&mut self, tag: &str, from: Stage, to: Stage) -> bool {
        match self.entries.get_mut(tag) {
            Some(entry) if entry.stage == from => {
                entry.stage = to;
                *self.counts.of(from) -= 1;
                *self.counts.of(to) += 1;
                true
            }
            _ => false,
        }
    }

    /// Gives the right to settle a message, once; the stage that it was in.
    pub(super) fn conclude(&mut self, tag: &str) -> Option<Stage> {
        let stage = self.entries.get(tag)?.stage;
        (stage != Stage::Settling && self.advance(tag, stage, Stage::Settling)).then_some(stage)
    }

    /// Forgets a message that Redis has acknowledged or that is not ours any more.
    pub(super) fn remove(&mut self, tag: &str) -> Option<HeldMessage<T>> {
        let entry = self.entries.remove(tag)?;
        *self.counts.of(entry.stage) -= 1;
        if let Some(tags) = self.by_task.get_mut(&entry.task_id) {
            tags.retain(|other| other != tag);
            if tags.is_empty() {
                self.by_task.remove(&entry.task_id);
            }
        }
        if self.settled.len() >= CELERY_SETTLED
            && let Some(oldest) = self.settled.pop_front()
        {
            self.settled_set.remove(&oldest);
        }
        if self.settled_set.insert(tag.to_owned()) {
            self.settled.push_back(tag.to_owned());
        }
        Some(entry)
    }

    /// Whether this delivery was settled not long ago: a Redis that has lost its last second delivers it again.
    pub(super) fn was_settled(&self, tag: &str) -> bool {
        self.settled_set.contains(tag)
    }

    /// The entry of a delivery tag.
    pub(super) fn get(&self, tag: &str) -> Option<&HeldMessage<T>> {
        self.entries.get(tag)
    }

    /// As [`Held::get`], to change what its owner keeps.
    pub(super) fn get_mut(&mut self, tag: &str) -> Option<&mut HeldMessage<T>> {
        self.entries.get_mut(tag)
    }

    /// The delivery tags of a task.
    pub(super) fn tags_of(&self, task_id: &str) -> &[String] {
        self.by_task.get(task_id).map_or(&[], Vec::as_slice)
    }

    /// Every entry and its delivery tag, in no order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&String, &HeldMessage<T>)> {
        self.entries.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_counts_what_is_due_and_bounds_what_is_not() {
        let mut held = Held::new(3);
        for tag in ["a", "b"] {
            assert!(held.insert(tag, "id", Stage::Waiting, ()));
        }
        assert!(!held.insert("a", "id", Stage::Waiting, ()), "it is held already");
        assert_eq!(held.room(), 1);
        for n in 0..CELERY_SCHEDULED {
            held.insert(&format!("later-{n}"), "later", Stage::Scheduled, ());
        }
        assert_eq!(held.room(), 0, "no more are scheduled");
        assert!(held.advance("later-0", Stage::Scheduled, Stage::Waiting));
        assert_eq!(held.room(), 0, "three are due");
        held.remove("a");
        assert_eq!(held.room(), 1);
        assert_eq!((held.tags_of("id"), held.tags_of("x").len()), (["b".to_owned()].as_slice(), 0));
    }

    #[test]
    fn only_one_may_settle_a_message() {
        let mut held = Held::new(1);
        held.insert("a", "id", Stage::Waiting, ());
        assert!(held.advance("a", Stage::Waiting, Stage::Running));
        assert!(!held.advance("a", Stage::Waiting, Stage::Running));
        assert_eq!(held.conclude("a"), Some(Stage::Running));
        assert_eq!(held.conclude("a"), None);
        assert_eq!(held.counts(), Counts { settling: 1, ..Counts::default() });
        assert!(!held.was_settled("a"));
        assert!(held.remove("a").is_some() && held.remove("a").is_none());
        assert!(held.was_settled("a"));
        assert_eq!(held.counts().total(), 0);
        for n in 0..CELERY_SETTLED {
            held.insert(&n.to_string(), "id", Stage::Waiting, ());
            held.remove(&n.to_string());
        }
        assert!(!held.was_settled("a") && held.was_settled("0"), "the oldest are forgotten");
    }
}
