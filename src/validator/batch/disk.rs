//! The disk thread of a batch: results are on disk before anybody sees them, and so is who leaves, before the first
//! does.
//!
//! Owner: the batch's thread. Blocks in: the channel of what is to be kept, and the disk. Kick: the batch's thread
//! drops its end. Ends: when nothing more can come, and all is on disk; or at the first error of the disk.

use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};

use super::error::BatchError;
use super::lines::Lines;
use crate::base::thread::{JoinError, Kick, Thread, spawn};
use crate::base::waits::recv;
use crate::store::StoreError;
use crate::store::batch::{BatchStore, BatchWrite};

/// What may wait for the disk: beyond it the batch itself waits, and counts that as its own lag. Most are lines of half
/// a kilobyte; answers of up to four megabytes are as many as come within one commit.
const WAITING: usize = 1024;

/// What is written in one transaction at most: some 10 ms.
const AT_ONCE: usize = 512;

/// How long the last results may take to be on disk.
const DISK_TIME: Duration = Duration::from_secs(60);

/// Something to keep.
pub(super) struct Keep {
    pub(super) writes: Vec<BatchWrite>,
    pub(super) then: Then,
}

/// What follows once it is on disk.
pub(super) enum Then {
    Nothing,
    Show(Box<super::line::JobLine>),
    OpenGate,
}

/// The thread's end: the lines go back to the batch.
pub(super) type Ended = (Lines, Result<(), StoreError>);

/// The running thread, for the batch.
pub(super) struct Disk {
    /// Dropped first, so that the thread ends.
    to: Sender<Keep>,
    pub(super) gate_kept: Receiver<()>,
    thread: Thread<Ended>,
}

impl Disk {
    pub(super) fn start(store: BatchStore, lines: Lines) -> Self {
        let (to, from) = bounded(WAITING);
        let (gate, gate_kept) = bounded(1);
        let thread = spawn("val-batch-disk", Kick::dropped("the batch's end of the channel"), move || {
            run(store, lines, &from, &gate)
        });
        Self { to, gate_kept, thread }
    }

    /// Hands something over; waits for room. `false` if the disk has failed.
    pub(super) fn keep(&self, keep: Keep) -> bool {
        crate::base::waits::send(&self.to, keep, "the batch's disk").is_ok()
    }

    /// Waits until all is on disk, for [`DISK_TIME`] at most.
    pub(super) fn finish(self) -> Result<Lines, BatchError> {
        let Self { to, thread, .. } = self;
        drop(to);
        match thread.join_by(Instant::now() + DISK_TIME) {
            Ok((lines, Ok(()))) => Ok(lines),
            Ok((_, Err(error))) => Err(error.into()),
            Err(JoinError::Panicked(panic)) => Err(BatchError::Panicked(panic)),
            Err(JoinError::Late(thread)) => {
                thread.abandon("the disk does not take what is to be kept");
                Err(BatchError::SlowDisk(DISK_TIME))
            }
        }
    }
}

fn run(mut store: BatchStore, mut lines: Lines, from: &Receiver<Keep>, gate: &Sender<()>) -> Ended {
    while let Ok(first) = recv(from, "something to keep") {
        let all: Vec<Keep> = std::iter::once(first).chain(from.try_iter().take(AT_ONCE - 1)).collect();
        if let Err(error) = store.write(all.iter().flat_map(|keep| &keep.writes)) {
            return (lines, Err(error));
        }
        for keep in all {
            match keep.then {
                Then::Nothing => {}
                Then::Show(line) => lines.show(*line),
                // Nobody waits for it only when the batch has ended.
                Then::OpenGate => drop(gate.send(())),
            }
        }
    }
    (lines, Ok(()))
}
