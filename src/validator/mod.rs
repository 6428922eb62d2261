//! The validator: takes signed jobs from the facilitator, drives each on a miner, and reports every step.
//!
//! ```text
//! val-fac-rd   reads the facilitator's messages and routes them; never blocks on a job, a signature or a disk
//! val-fac-wr   writes what may leave
//! val-check-n  check signatures and hand the jobs out
//! val-store    writes updates to disk, all that have come in at once
//! val-work-n   one job each: picks a miner, drives it stage by stage
//! val-work-time  what is due of the jobs as tasks
//! val-events   with jobs on other machines, in place of val-work-n: what their workers say of them
//! val-mi-n-rd  the link of job n to its miner, and its writer val-mi-n-wr; they end with the job
//! ```
//!
//! * [`facilitator_client`]: the client, for embedding: inert, running, stopped.
//! * [`ledger`]: the message queue: order, priority, retries, dead letters. Pure.
//! * [`record`]: what is kept of a job on disk. Pure.
//! * [`delivery`]: the ledger with its disk and its link.
//! * [`job`]: a job in the hands of whoever runs it.
//! * [`drive`]: one job, from the choice of a miner to its end. Pure; [`organic`] is the loop around it.
//! * `jobs`: what runs them, in one trait: workers of this process, stub jobs, or [`remote`]: jobs on other machines (the
//!   front, which is part of a validator, and the job worker).
//! * [`role`]: the validator as a whole; its start and stop, all steps in order.

pub mod delivery;
pub mod drive;
pub mod facilitator_client;
pub mod job;
pub mod ledger;
pub mod miner_client;
pub mod miners;
pub mod organic;
pub mod record;
pub mod role;
pub mod routing;
pub mod status;

mod checks;
mod jobs;

pub use delivery::{GivenUp, NotOnDisk, Ticket, Totals};
pub use drive::JobTimes;
pub use facilitator_client::{
    ClientConfig, ClientError, ClientEvent, ClientHandle, ClientState, Counted, FacilitatorClient, JobHandler,
    RunningClient,
};
pub use job::{Job, LeftJob, RunningJob};
pub use jobs::FrontStatus;
pub use jobs::here::OnWorkers;
#[cfg(feature = "celery")]
pub use jobs::remote;
pub use ledger::{Counts, LedgerLimits, RetryPolicies, RetryPolicy, UpdateError};
pub use miners::{MinersFileError, load_miners};
pub use role::{Dispatch, Observer, Reloader, Validator, ValidatorConfig, ValidatorError};
pub use routing::MinerAddress;
pub use status::Outcome;
