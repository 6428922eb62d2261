//! The validator: takes signed jobs from the facilitator, drives each on a miner, and reports every step.
//!
//! ```text
//! val-fac-rd   reads the facilitator's messages and routes them; never blocks on a job, a signature or a disk
//! val-fac-wr   writes what may leave
//! val-check-n  check signatures and hand the jobs out
//! val-store    writes updates to disk, all that have come in at once
//! val-receipts stores the receipts by which miners were excused
//! val-work-n   one job each: picks a miner, drives it stage by stage
//! val-work-time  what is due of the jobs as tasks
//! val-events   with jobs on other machines, in place of val-work-n: what their workers say of them
//! val-hand-n   likewise, gives the jobs to Redis once they are on disk
//! val-mi-n-rd  the link of job n to its miner, and its writer val-mi-n-wr; they end with the job
//! val-man-n    ask miners for their manifests, one each; they end with the fetch
//! ```
//!
//! * [`client`]: the facilitator client, for embedding: inert, running, stopped; and a job as it is held by whoever
//!   runs it.
//! * [`authorization`]: which job requests may run, by their signature and its age. Pure.
//! * [`ledger`]: the status updates until they are answered: order, retries, dead letters, disk.
//! * [`drive`]: one job, from the choice of a miner to its end. Pure; `organic` is the loop around it.
//! * [`excuses`]: whether a miner that declines a job is excused. Pure.
//! * [`from_miner`]: what a miner says, with a bound on each of its texts. Pure.
//! * [`manifests`]: what miners offer, asked of many at once.
//! * [`connections`]: connections to miners that are kept between jobs.
//! * `jobs`: what runs them, in one trait: workers of this process, stub jobs, or [`remote`]: jobs on other machines
//!   (the front, which is part of a validator, and the job worker).
//! * `batch`: one synthetic batch: many miners are asked for jobs at once, and their answers judged.
//! * [`role`]: the validator as a whole; its start and stop, all steps in order.

pub mod authorization;
#[cfg(feature = "roles")]
pub mod batch;
pub mod client;
pub mod connections;
pub mod drive;
pub mod excuses;
pub mod from_miner;
mod job_messages;
pub mod ledger;
pub mod manifests;
pub mod miner_client;
#[cfg(feature = "roles")]
pub mod miners;
#[cfg(feature = "roles")]
mod organic;
#[cfg(feature = "roles")]
mod receipt_store;
mod receipts;
#[cfg(feature = "roles")]
pub mod role;
pub mod routing;
pub mod status;
mod streaming;
mod workers;

#[cfg(feature = "roles")]
mod jobs;

pub use client::{
    ClientConfig, ClientError, ClientEvent, ClientHandle, ClientState, Counted, FacilitatorClient, Job, JobHandler,
    LeftJob, RunningClient, RunningJob,
};
pub use connections::{ConnectionsStatus, KeptConnections, MinerConnections};
pub use job_messages::JobTimes;
#[cfg(all(feature = "celery", feature = "roles"))]
pub use jobs::remote;
#[cfg(feature = "roles")]
pub use jobs::{AskedStatus, FrontStatus};
pub use ledger::{Counts, GivenUp, LedgerLimits, NotOnDisk, RetryPolicies, RetryPolicy, Ticket, Totals, UpdateError};
#[cfg(feature = "roles")]
pub use miners::{MinersError, load_miners};
#[cfg(feature = "roles")]
pub use role::{Dispatch, Observer, Reloader, Validator, ValidatorConfig, ValidatorError};
pub use routing::MinerAddress;
pub use status::Outcome;
pub use workers::OnWorkers;
