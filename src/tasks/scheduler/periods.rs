//! The periodic tasks of a manager.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::tasks::guard::tolerated;
use crate::tasks::store::TaskId;
use crate::tasks::task::TaskRef;

/// Makes one more task of a periodic one.
pub(in crate::tasks) type MakeTask = Arc<dyn Fn() -> TaskRef + Send + Sync>;

/// By number.
#[derive(Default)]
pub(super) struct Periods {
    all: HashMap<u64, Period>,
    added: u64,
}

/// A task that is submitted again and again.
pub(super) struct Period {
    every: Duration,
    next: Instant,
    pub(super) make: MakeTask,
    pub(super) last: Option<TaskId>,
    /// Times at which the one before still ran, or the queue had no room.
    pub(super) skipped: u64,
}

impl Periods {
    /// For the first time after one period.
    pub(super) fn add(&mut self, every: Duration, make: MakeTask, now: Instant) -> u64 {
        let number = self.added;
        self.added += 1;
        self.all.insert(number, Period { every, next: now, make, last: None, skipped: 0 });
        number
    }

    pub(super) fn get(&self, number: u64) -> Option<&Period> {
        self.all.get(&number)
    }

    pub(super) fn get_mut(&mut self, number: u64) -> Option<&mut Period> {
        self.all.get_mut(&number)
    }

    pub(super) fn remove(&mut self, number: u64) -> Option<Period> {
        self.all.remove(&number)
    }

    /// How long until it is due once more: missed times are not made up for, and the beat is kept.
    pub(super) fn next_after(&mut self, number: u64, now: Instant) -> Option<Duration> {
        let period = self.all.get_mut(&number)?;
        while period.next <= now {
            period.next = period.next.checked_add(period.every)?;
        }
        Some(period.next - now)
    }

    /// Drops all; not under the lock, because the work is the user's.
    pub(super) fn drop_all(self) {
        self.all.into_values().for_each(|period| drop_make(period.make));
    }
}

pub(super) fn drop_make(make: MakeTask) {
    tolerated("dropping the work of a periodic task", || drop(make));
}
