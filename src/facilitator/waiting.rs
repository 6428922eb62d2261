//! How many jobs may wait for their validator: the facilitator keeps their messages in memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Jobs that wait at a time.
const JOBS: usize = 4096;

/// Bytes of their messages: 256 of the largest, or all of a typical 64 KiB.
const BYTES: usize = 256 << 20;

/// The count; clones are the same.
#[derive(Debug, Clone, Default)]
pub(super) struct Waiting(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    jobs: AtomicUsize,
    bytes: AtomicUsize,
}

/// A place among the waiting jobs; dropping it gives it back.
#[derive(Debug)]
pub(super) struct Ticket {
    counts: Arc<Counts>,
    bytes: usize,
}

impl Waiting {
    /// Takes a place for a message of that size, if there is one.
    pub(super) fn enter(&self, bytes: usize) -> Option<Ticket> {
        let ticket = self.enter_anyway(bytes);
        let counts = &ticket.counts;
        let fits = counts.jobs.load(Ordering::Relaxed) <= JOBS && counts.bytes.load(Ordering::Relaxed) <= BYTES;
        fits.then_some(ticket)
    }

    /// Takes a place although there is none: for jobs that were accepted before a restart.
    pub(super) fn enter_anyway(&self, bytes: usize) -> Ticket {
        self.0.jobs.fetch_add(1, Ordering::Relaxed);
        self.0.bytes.fetch_add(bytes, Ordering::Relaxed);
        Ticket { counts: self.0.clone(), bytes }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.counts.jobs.fetch_sub(1, Ordering::Relaxed);
        self.counts.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_limited_in_number_and_bytes_and_come_back() {
        let waiting = Waiting::default();
        let all: Vec<_> = (0..JOBS).map(|_| waiting.enter(1).unwrap()).collect();
        assert!(waiting.enter(1).is_none());
        drop(all);
        let large = waiting.enter(BYTES).unwrap();
        assert!(waiting.enter(1).is_none());
        drop(large);
        drop(waiting.enter(BYTES).unwrap());
    }
}
