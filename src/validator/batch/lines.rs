//! The lines of a batch on their way to whoever runs it, counted.

use crossbeam_channel::{Receiver, Sender, bounded};

use super::line::JobLine;
use super::plan::JOBS_PER_BATCH;
use super::summary::Tally;

/// The end that shows lines.
pub(super) struct Lines {
    to: Sender<Box<JobLine>>,
    tally: Tally,
}

impl Lines {
    /// Has room for every line of a batch of so many miners, so that showing one never waits for a reader: a line for
    /// each job and for each miner without one, at 8 bytes each before it is there.
    pub(super) fn new(miners: usize) -> (Self, Receiver<Box<JobLine>>) {
        let (to, from) = bounded(JOBS_PER_BATCH + miners);
        (Self { to, tally: Tally::default() }, from)
    }

    pub(super) fn show(&mut self, line: JobLine) {
        self.tally.add(&line);
        // The reader may have gone; the line counts all the same.
        drop(self.to.try_send(Box::new(line)));
    }

    pub(super) fn tally(self) -> Tally {
        self.tally
    }
}
