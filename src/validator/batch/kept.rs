//! What a batch keeps on disk, as its state machine sees it. Pure.

use std::sync::Arc;

use super::line::JobLine;
use crate::protocol::{ExecutorClass, V2JobRequest};

/// A job's place in a batch: its miner by number, and its number among the miner's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) miner: usize,
    pub(super) job: usize,
}

impl Place {
    /// For the line of a miner that gets no job.
    pub(super) const NO_JOB: usize = usize::MAX;
}

/// A job that is to be asked for.
#[derive(Debug, Clone)]
pub(super) struct PlannedRow {
    pub(super) place: Place,
    pub(super) uuid: String,
    pub(super) class: ExecutorClass,
    pub(super) request: Arc<V2JobRequest>,
    pub(super) attempts: u32,
}

/// How far something was that was kept.
#[derive(Debug, Clone)]
pub(super) enum KeptState {
    /// Nothing has left that could count.
    Planned(Box<PlannedRow>),
    /// Its job request was about to leave or has left; what it ends as if nothing more is heard of it.
    Sent(Box<JobLine>),
    /// It has its outcome.
    Ended(Box<JobLine>),
}

/// Something that was kept.
#[derive(Debug, Clone)]
pub(super) struct KeptJob {
    pub(super) place: Place,
    pub(super) state: KeptState,
}
