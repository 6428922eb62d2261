//! What a drive takes in, and what it says to do. Pure.

use std::collections::HashMap;

use crate::identity::PublicKey;
use crate::protocol::{
    ExecutorClass, JobStatus, MinerToValidator, Receipt, StreamingServerDetails, V0MachineSpecsUpdate, ValidatorToMiner,
};
use crate::validator::routing::reliability::Incident;
use crate::validator::routing::{MinerAddress, NoMiner};
use crate::validator::status::Outcome;

/// Something that happened.
#[derive(Debug)]
pub enum Input {
    /// The job begins.
    Start,
    /// The answer to [`Action::Reserve`].
    Reserved(Result<MinerAddress, NoMiner>),
    /// A message of the miner.
    Message(Box<MinerToValidator>),
    /// An attempt to connect failed; another will follow.
    ConnectFailed {
        /// Why.
        why: String,
        /// Whether the miner answered and does not want us.
        refused: bool,
        /// Whether there was a connection and it broke: somebody is there.
        cut: bool,
    },
    /// The connection was lost; another will follow.
    Lost {
        /// Why.
        why: String,
    },
    /// An [`Action::Send`] could not be done, and why.
    NotSent(String),
    /// The job was cancelled.
    Cancel {
        /// Whether others go on with it, on the same miner.
        goes_on: bool,
    },
    /// Time has passed.
    Tick,
}

/// Something to do.
#[derive(Debug)]
pub enum Action {
    /// Wait until the job is known whatever happens.
    WaitUntilKnown,
    /// Reserve an executor of some miner, and report it as [`Input::Reserved`].
    Reserve {
        /// The miner to take if it still has the job.
        same: Option<PublicKey>,
        /// Those not to take.
        avoid: Vec<PublicKey>,
    },
    /// Connect to the miner that was reserved.
    Connect(MinerAddress),
    /// Send it a message.
    Send(Box<ValidatorToMiner>),
    /// It has told the outcome of another job once more: send it the finished-receipt of that, if it is known.
    Confirm(PublicKey, String),
    /// Note how many executors of each class it has.
    Manifest(PublicKey, HashMap<ExecutorClass, i64>),
    /// Report a step of the job.
    Report(JobStatus),
    /// Report its streaming server.
    StreamingReady(StreamingServerDetails),
    /// Note which miner runs it.
    RunsOn(PublicKey),
    /// Pass on the specs of the machine it runs on.
    MachineSpecs(Box<V0MachineSpecsUpdate>),
    /// It declined the job, and these receipts excuse that.
    Excused(PublicKey, Vec<Receipt>),
    /// Report what the miner did wrong: where, and what it is.
    Error(&'static str, String),
    /// Prefer other miners for a while.
    CoolDown(PublicKey),
    /// Note that it completed the job.
    Completed(PublicKey),
    /// Note what it did wrong, and why in words.
    Incident(PublicKey, Incident, String),
    /// Give the reservation back.
    Release,
    /// Report the end of the job.
    End(Box<Outcome>),
    /// The job was cancelled before it had ended.
    Cancelled,
    /// Send what is queued for the miner, and end the connection to it.
    Close,
}
