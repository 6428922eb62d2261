//! The executor: one job from the miner's initial request to its result.
//!
//! ```text
//! (caller)   takes the miner's messages and what the work has brought about, asks the stages, does what they say
//! exe-mi-rd  reads from the miner, dials again after a loss; exe-mi-wr writes
//! exec-specs describes the machine, and ends
//! exec-work  image, volumes, run, artifacts, uploads; ends with the job
//! exec-clean undoes one thing that was made for the job
//! exe-st-…   with streaming jobs: exe-st-watch beside the run, exe-st-accept and exe-st-n for the job's clients
//! ```
//!
//! * `role`: start and stop, in order.
//! * [`stages`]: all decisions. Pure.
//! * `stages_thread`, `work`: the two threads around them.
//! * [`workspace`], [`runner`], `output`: the job's folders, its process or container, its streams.
//! * [`sandbox`]: what a job may do. Pure.
//! * `registry`: whether jobs may reach the registry of an image.
//! * [`streaming`]: the proxy in front of a streaming job.
//! * [`volumes`], [`uploads`], `artifacts`, `specs`: what goes in and what comes out.
//! * [`cleanup`]: what is undone when the job is over, the last first.
//! * `hooks`: the operator's programs around the job.
//! * `miner_client`: the link to the miner.

mod artifacts;
pub mod cleanup;
mod config;
mod hooks;
mod image_name;
mod miner_client;
mod output;
mod registry;
mod role;
pub mod runner;
pub mod sandbox;
mod specs;
pub mod stages;
mod stages_thread;
pub mod streaming;
mod transfer;
mod tries;
pub mod uploads;
pub mod volumes;
mod work;
pub mod workspace;

pub use config::ExecutorConfig;
pub use hooks::Hooks;
pub use image_name::check_image_name;
pub use role::{ExecutorReport, run};
pub use runner::RunnerKind;
pub use stages::{ExecutorError, JobEnd};
