//! Jobs that run on other machines: the validator as a *front* that talks to the facilitator, and *job workers* that
//! talk to miners, with a Redis between them.
//!
//! * A job goes out as the Celery task `phalanx.execute_job`, whose id is the job's (`call`). So Celery's tools see it,
//!   and a Celery producer may send one.
//! * What becomes of it comes back through a stream in Redis that each worker appends to in order and the front deletes
//!   from only when it has what it read on disk (`outbox`, `front`). A notification only wakes the front.
//! * A hash in Redis says that a job is wanted, and which miner has it. A worker does not begin a job that is not
//!   wanted any more, and one that goes on with the job of a lost worker asks the same miner again, where the job still
//!   runs.
//! * A worker checks the user's signature again, and claims it in Redis before it begins the job (`claim`).
//! * Repeats are refused by the ledger, as steps backwards.

mod call;
mod claim;
mod front;
mod front_state;
mod outbox;
mod worker;

pub(in crate::validator) use call::LONGEST_QUEUE_TIME;
pub use call::{DEFAULT_QUEUE, EXECUTE_JOB};
pub(in crate::validator) use front::Front;
pub(in crate::validator) use front_state::FrontConfig;
pub use worker::{JobWorker, JobWorkerConfig, JobWorkerError, JobWorkerHandle};
