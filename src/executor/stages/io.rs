//! What the stages take in, and what they say is to be done. Pure.

use std::time::{Duration, Instant};

use super::timeline::Part;
use crate::executor::runner::{RunOutcome, RunSpec};
use crate::executor::streaming::{Serving, StreamingLimits};
use crate::ops::errors::ErrorClass;
use crate::protocol::{ExecutorToMiner, JsonMap, MinerToExecutor, OutputUpload, StrMap, StreamingDetails, Volume};

/// How a job ended, as its last message reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobEnd {
    /// The results were sent.
    Finished,
    /// The job itself failed.
    Failed,
    /// This side failed the job.
    HordeFailed,
}

/// Why an executor ended before it had a job.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExecutorError {
    /// The configuration is wrong; nothing was started.
    #[error("executor: {}", .0.join("; "))]
    Config(Vec<String>),
    /// The first attempt to reach the miner failed: a wrong address, port or token.
    #[error("cannot reach the miner: {0}")]
    Unreachable(String),
    /// The miner does not know our token, or says something else is wrong.
    #[error("the miner refused this executor: {0}")]
    Refused(String),
    /// No initial request came within the start-up time limit.
    #[error("no initial job request within {0:?}")]
    NoJob(Duration),
    /// The shutdown signal came first.
    #[error("a signal stopped this executor before a job came")]
    Stopped,
}

/// Something that happened.
#[derive(Debug)]
pub enum Input {
    /// The miner is there, for the first time or again.
    Connected,
    /// The miner is not there; another attempt will follow.
    Disconnected {
        /// Why.
        why: String,
        /// Whether a connection was there and broke, rather than that there is none to be had.
        cut: bool,
    },
    /// The miner has closed the connection for good.
    ClosedForGood,
    /// A message of the miner.
    FromMiner(Box<MinerToExecutor>),
    /// The present work is done, or cannot be.
    Done(Result<Outcome, Problem>),
    /// The machine is described.
    Specs(JsonMap),
    /// The thread that works has panicked.
    Crashed(String),
    /// Stop before there is a job; one that has begun is left to its miner.
    Drain,
    /// Stop now.
    Cancel,
    /// Time has passed.
    Tick,
}

/// What work has brought about.
#[derive(Debug)]
pub enum Outcome {
    /// The job's folder is there.
    Prepared,
    /// The next part of the same work begins, and the job goes on.
    Begun(Part),
    /// The image is here, and the volume in its place, which has so many bytes.
    Loaded(Option<u64>),
    /// The server of a streaming job is ready for clients; the job goes on.
    Serving(Serving),
    /// The job has run.
    Ran(Box<RunOutcome>),
    /// A streaming job was ended because its server was not ready in time, and why.
    NotServed(Box<RunOutcome>, String),
    /// The output is where it belongs.
    Uploaded(Box<Results>),
}

/// What a job leaves, apart from what it printed.
#[derive(Debug, Default)]
pub struct Results {
    /// Path to base64.
    pub artifacts: StrMap,
    /// A sentence for each thing that the job has left and that is not carried.
    pub left_out: Vec<String>,
    /// What the servers of its uploads answered.
    pub uploads: StrMap,
    /// Bytes of what was uploaded.
    pub uploaded: Option<u64>,
}

/// Why work cannot be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Problem {
    /// It was cancelled.
    Cancelled,
    /// Its deadline has passed.
    TimedOut(String),
    /// What the job asks for cannot be had.
    OfJob(String),
    /// This side cannot serve a streaming job to its clients.
    OfStreaming(String),
    /// A server or the way to it, or this side, cannot do its part.
    OfHorde(String),
    /// This machine cannot do its part until its operator has seen to it.
    OfOperator(String),
}

/// Work of one stage.
#[derive(Debug)]
pub enum Work {
    /// Make the job's folder.
    Prepare {
        /// Who may connect to it, if it is a streaming job.
        streaming: Option<Box<StreamingDetails>>,
        /// By when.
        deadline: Instant,
    },
    /// See that the image can be run, and load the volume.
    Load {
        /// The image.
        image: String,
        /// Which volume.
        volume: Option<Box<Volume>>,
        /// By when.
        deadline: Instant,
    },
    /// Run the job.
    Run {
        /// What is to be run.
        spec: Box<RunSpec>,
        /// The further limits of a streaming job.
        streaming: Option<StreamingLimits>,
        /// By when.
        deadline: Instant,
    },
    /// Collect the artifacts, upload the output.
    Upload {
        /// Where the job has left its artifacts.
        artifacts_dir: Option<String>,
        /// Where its output goes.
        upload: Option<Box<OutputUpload>>,
        /// By when.
        deadline: Instant,
    },
}

/// Something to do.
#[derive(Debug)]
pub enum Action {
    /// A job has come, by its uuid: start whatever does its work.
    Begin(String),
    /// Do this, and report it as [`Input::Done`]; nothing else is being done.
    Work(Work),
    /// Cancel the work that is being done.
    CancelWork,
    /// No work will follow: remove what is left of the job.
    Finish,
    /// Send a message to the miner.
    Send(Box<ExecutorToMiner>),
    /// The error handler is told of an error that the job lives on after, or that has ended it.
    Error(ErrorClass, &'static str, String),
    /// The executor has ended.
    End(Result<JobEnd, ExecutorError>),
}
