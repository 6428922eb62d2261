//! What the validator runs its jobs by: [`JobRunner`], and who implements it.
//!
//! * `asking`: what a process that drives miners asks of them beside jobs.
//! * `here`: a thread of this process drives a miner.
//! * `stub`: no miner; each job is answered with the statuses of a good one.
//! * `remote`: workers on other machines, with Celery over a Redis between them.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use super::client::{Job, LeftJob};
use super::connections::ConnectionsStatus;
use super::manifests::ManifestsStatus;
use super::organic::Miners;
use super::routing::MinerAddress;
use crate::base::stop::Stopping;
use crate::identity::PublicKey;
use crate::pool::budget::BudgetNumbers;
use crate::tasks::TasksStatus;

mod asking;
pub(super) mod here;
#[cfg(all(feature = "celery", feature = "roles"))]
pub mod remote;
pub(super) mod stub;

/// After the jobs, how long the connections to others that run them may take to close.
pub(super) const DISPATCH_CLOSE_TIME: Duration = Duration::from_secs(2);

/// Runs the jobs of a validator. Nothing here blocks but the stop.
pub(super) trait JobRunner: Send + Sync {
    /// Runs a job. One too many is dropped, which turns it away as busy.
    fn run(&self, job: Job);

    /// A job that an earlier process had begun; before [`JobRunner::begin`]. Unless somebody goes on with it, it is
    /// dropped, which ends it as `horde_failed`.
    fn left(&self, job: LeftJob) {
        drop(job);
    }

    /// All jobs of an earlier process are known.
    fn begin(&self) {}

    /// A miner cheated and gets no new job for so long.
    fn blacklist(&self, miner: PublicKey, time: Duration);

    /// The miners that the jobs of this process run on; `None` if they run elsewhere.
    fn miners(&self) -> Option<&Miners> {
        None
    }

    /// New jobs go to these miners.
    fn set_miners(&self, _miners: Vec<MinerAddress>) {}

    /// Jobs that have begun and not ended.
    fn running(&self) -> usize;

    /// The jobs as tasks of this process.
    fn tasks(&self) -> Option<TasksStatus> {
        None
    }

    /// What was asked of miners, and the connections to them.
    fn asked(&self) -> Option<AskedStatus> {
        None
    }

    /// The jobs on other machines.
    fn front(&self) -> Option<FrontStatus> {
        None
    }

    /// Takes no more jobs, lets those that run end within `drain`, cancels the rest, joins every thread; gives the
    /// number of those cancelled. A second stop does nothing.
    fn stop_in(&self, stopping: &mut Stopping, drain: Duration) -> usize;
}

/// What a validator asks its miners beside jobs, and over what.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AskedStatus {
    /// Their manifests.
    pub manifests: ManifestsStatus,
    /// Miners by the state of their breaker.
    pub breakers: BTreeMap<&'static str, usize>,
    /// Calls that a breaker has refused.
    pub left_alone: u64,
    /// How often most miners failed at once.
    pub outages: u64,
    /// Second tries.
    pub retries: RetriesStatus,
    /// Since when most miners fail at once, which is our own trouble; `None` if they do not.
    pub outage_seconds: Option<u64>,
    /// The connections.
    pub connections: ConnectionsStatus,
}

/// The budget of second tries that the rounds of manifests and the jobs share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct RetriesStatus {
    /// Second tries that it would grant now.
    pub left: usize,
    /// Second tries that it has granted.
    pub granted: u64,
    /// Second tries that it has refused.
    pub refused: u64,
}

impl From<BudgetNumbers> for RetriesStatus {
    fn from(BudgetNumbers { left, granted, refused }: BudgetNumbers) -> Self {
        Self { left: left as usize, granted, refused }
    }
}

/// How the jobs on other machines are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct FrontStatus {
    /// Jobs that no worker has begun.
    pub waiting: usize,
    /// Jobs that a worker has begun.
    pub begun: usize,
}
