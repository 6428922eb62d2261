//! What a batch is told and what it says is to be done. Pure.

use super::super::kept::{Place, PlannedRow};
use super::super::line::JobLine;
use crate::base::now::Now;
use crate::protocol::{MinerToValidator, ValidatorToMiner};
use crate::validator::manifests::AskOutcome;
use crate::validator::status::Outcome;

/// Something that happened; each comes with its own moment.
#[derive(Debug)]
pub(in super::super) enum Input {
    /// The batch begins.
    Start,
    /// Something of a miner.
    Miner(usize, MinerInput),
    /// What was to be kept before the gate opens is on disk.
    GateKept,
    /// A job request was handed to the connection, between these moments, or could not be.
    Sent { job: usize, before: Now, after: Now, error: Option<String> },
    /// Time has passed.
    Tick,
    /// The batch is to end now.
    Cancel,
}

/// Something of a miner.
#[derive(Debug)]
pub(in super::super) enum MinerInput {
    Message(Box<MinerToValidator>),
    /// An attempt to connect failed; another will follow.
    Failed {
        why: String,
        refused: bool,
        outcome: AskOutcome,
    },
    /// The connection was lost; another will follow.
    Lost(String),
    /// A message that cannot be read.
    Unreadable,
    /// A message of ours could not be queued.
    NotSent(String),
}

/// A job request that leaves when the gate opens.
#[derive(Debug)]
pub(in super::super) struct GateSend {
    pub(in super::super) job: usize,
    pub(in super::super) miner: usize,
    pub(in super::super) text: String,
}

/// Something to do.
#[derive(Debug)]
pub(in super::super) enum Action {
    Connect(usize),
    Send(usize, Box<ValidatorToMiner>),
    /// Keep what is to be asked for.
    Plan(Vec<PlannedRow>),
    /// Keep that these are to be asked for, although they were about to leave: none has.
    PlanAnew(Vec<PlannedRow>),
    /// Keep that these leave, with what they end as if nothing is heard of them; then [`Input::GateKept`].
    KeepGate(Vec<(Place, JobLine)>),
    /// Send all of these at once, in this order; an [`Input::Sent`] for each.
    OpenGate(Vec<GateSend>),
    /// Keep and show an end; with the answer, if there is one.
    End(Place, Box<JobLine>, Option<Box<Outcome>>),
    /// Show what was kept before.
    Show(Box<JobLine>),
    /// Send what is queued, and end the connection.
    Close(usize),
    /// All has been said.
    Done(Ending),
}

/// How a batch ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Everything has its outcome.
    Complete,
    /// Somebody cancelled it.
    Cancelled,
    /// More failed than is allowed.
    Aborted,
}

impl Ending {
    /// In lower case, as in the summary.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::Cancelled => "cancelled",
            Self::Aborted => "aborted",
        }
    }
}

/// Where a batch stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BatchProgress {
    /// Miners of the batch.
    pub miners: usize,
    /// Those that have answered with a manifest, or have ended.
    pub answered: usize,
    /// Jobs that were planned so far.
    pub jobs: usize,
    /// Lines that there will be of the miners that have answered: their jobs, and one for each that gets none.
    pub lines: usize,
    /// Jobs that wait at the gate.
    pub ready: usize,
    /// Jobs that have been sent.
    pub sent: usize,
    /// Lines: jobs that have ended, and miners that got none.
    pub ended: usize,
    /// Lines that are not `completed`, and not excused.
    pub failed: usize,
    /// Messages that came twice, or out of step.
    pub repeats: u64,
}
