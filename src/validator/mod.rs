//! The validator: takes signed jobs from the facilitator, drives each on a miner, and reports every step.
//!
//! ```text
//! val-fac-rd   reads the facilitator's messages, deduplicates, hands jobs to the workers; never blocks on a job
//! val-fac-wr   writes status updates, keeps them until they are acknowledged
//! val-work-n   one job each: checks the signature, picks a miner, drives it stage by stage
//! val-mi-n-rd  the link of job n to its miner, and its writer val-mi-n-wr; they end with the job
//! ```

pub mod facilitator_client;
pub mod miner_client;
pub mod miners;
pub mod organic;
pub mod routing;

mod status;

pub use facilitator_client::{Dispatch, Observer, Validator, ValidatorConfig, ValidatorError};
pub use miners::{MinersFileError, load_miners};
pub use organic::JobTimes;
pub use routing::MinerAddress;
