//! The disk thread of a batch: results are on disk before anybody sees them, and so is who leaves, before the first
//! does.
//!
//! Owner: the batch's thread. Blocks in: the channel of what is to be kept, and the disk. Kick: the batch's thread
//! drops its end. Ends: when nothing more can come, and all is on disk; or at the first error of the disk.

use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded, select};

use super::error::BatchError;
use super::lines::Lines;
use crate::base::shutdown::Shutdown;
use crate::base::thread::{JoinError, Kick, Thread, spawn};
use crate::base::waits::{recv, waiting};
use crate::store::StoreError;
use crate::store::batch::{BatchStore, BatchWrite};

/// What may wait for the disk: beyond it the batch itself waits, and counts that as its own lag. Most are lines of half
/// a kilobyte; answers of up to four megabytes are as many as come within one commit.
const WAITING: usize = 1024;

/// What is written in one transaction at most: some 10 ms.
const AT_ONCE: usize = 512;

/// How long the last results may take to be on disk.
const DISK_TIME: Duration = Duration::from_secs(60);

/// How long a disk that takes nothing is waited for after a cancel.
const HUNG_TIME: Duration = Duration::from_secs(5);

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
    cancel: Shutdown,
    /// It took nothing for [`HUNG_TIME`] after the cancel.
    hangs: bool,
}

impl Disk {
    /// A cancel bounds how long a disk that hangs is waited for.
    pub(super) fn start(store: BatchStore, lines: Lines, cancel: Shutdown) -> Self {
        let (to, from) = bounded(WAITING);
        let (gate, gate_kept) = bounded(1);
        let thread = spawn("val-batch-disk", Kick::dropped("the batch's end of the channel"), move || {
            run(store, lines, &from, &gate)
        });
        Self { to, gate_kept, thread, cancel, hangs: false }
    }

    /// Hands something over; waits for room, after a cancel for [`HUNG_TIME`] at most. `false` if the disk has failed
    /// or hangs.
    pub(super) fn keep(&mut self, keep: Keep) -> bool {
        let keep = match self.to.try_send(keep) {
            Ok(()) => return true,
            Err(TrySendError::Full(keep)) if !self.hangs => keep,
            Err(_) => return false,
        };
        let _waiting = waiting("the batch's disk", None);
        let cancel = self.cancel.cancel_receiver();
        select! {
            send(self.to, keep) -> sent => sent.is_ok(),
            recv(cancel) -> _ => {
                self.hangs = self.to.send_timeout(keep, HUNG_TIME).is_err();
                !self.hangs
            }
        }
    }

    /// Waits until all is on disk, for [`DISK_TIME`] at most, or [`HUNG_TIME`] if it hangs.
    pub(super) fn finish(self) -> Result<Lines, BatchError> {
        let Self { to, thread, hangs, .. } = self;
        drop(to);
        let time = if hangs { HUNG_TIME } else { DISK_TIME };
        match thread.join_by(Instant::now() + time) {
            Ok((lines, Ok(()))) => Ok(lines),
            Ok((_, Err(error))) => Err(error.into()),
            Err(JoinError::Panicked(panic)) => Err(BatchError::Panicked(panic)),
            Err(JoinError::Late(thread)) => {
                thread.abandon("the disk does not take what is to be kept");
                Err(BatchError::SlowDisk(time))
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
