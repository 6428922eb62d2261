//! Room in the queues of a manager, counted past the table.

use std::sync::Condvar;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crossbeam_utils::CachePadded;

use crate::tasks::options::TaskConfig;

/// Which of the two queues a task needs a place in.
#[derive(Clone, Copy)]
pub(in crate::tasks) enum Queue {
    Waiting,
    Delayed,
}

impl Queue {
    pub(super) const ALL: [Self; 2] = [Self::Waiting, Self::Delayed];
}

/// By [`Queue`]: how many places there are, and how many are taken.
pub(super) struct Places {
    most: [usize; 2],
    /// As far as was reported. More are taken only by whoever has the intake.
    used: [CachePadded<AtomicUsize>; 2],
    /// A submitter waits for room: whoever makes some is to look for it.
    pub(super) wanted: CachePadded<AtomicBool>,
    /// With the intake.
    pub(super) freed: [Condvar; 2],
}

impl Places {
    pub(super) fn new(config: &TaskConfig) -> Self {
        Self {
            most: [config.queue, config.delayed],
            used: Default::default(),
            wanted: CachePadded::new(AtomicBool::new(false)),
            freed: Default::default(),
        }
    }

    /// Whether there is a place, as far as was reported.
    #[inline]
    pub(super) fn has_room(&self, queue: Queue) -> bool {
        self.used[queue as usize].load(Ordering::SeqCst) < self.most[queue as usize]
    }

    #[inline]
    pub(super) fn take(&self, queue: Queue) {
        self.used[queue as usize].fetch_add(1, Ordering::SeqCst);
    }

    #[inline]
    pub(super) fn give_back(&self, queue: Queue, places: usize) {
        self.used[queue as usize].fetch_sub(places, Ordering::SeqCst);
    }

    /// Other numbers of places are used than before; more than there are, if what was delayed is due.
    pub(super) fn change(&self, from: [usize; 2], to: [usize; 2]) {
        for queue in 0..2 {
            self.used[queue].fetch_add(to[queue].wrapping_sub(from[queue]), Ordering::SeqCst);
        }
    }
}
