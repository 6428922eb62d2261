//! The executor: one job from the miner's initial request to its result.
//!
//! ```text
//! (caller)   driver: routes the miner's messages, waits for the job
//! exe-mi-rd  reads from the miner, dials again after a loss; exe-mi-wr writes
//! exec-work  job: image, volumes, run, artifacts, uploads; ends with the job
//! ```
//!
//! * [`driver`]: the executor as a whole. * [`miner_client`]: its link. * `job`: the stages in order.
//! * [`workspace`], [`runner`], [`output`]: the job's folders, its process or container, its streams.
//! * [`volumes`], [`uploads`], [`artifacts`], [`specs`]: what goes in and what comes out.

pub mod artifacts;
pub mod driver;
mod job;
pub mod miner_client;
pub mod output;
pub mod run;
pub mod runner;
pub mod specs;
mod transfer;
pub mod uploads;
pub mod volumes;
pub mod workspace;

pub use driver::{ExecutorConfig, ExecutorError, ExecutorReport};
pub use job::JobEnd;
pub use runner::RunnerKind;
