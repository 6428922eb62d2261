//! One synthetic batch: many miners are asked for jobs, whoever is ready waits at a gate, and all job requests leave at
//! once, so that the answers can be compared.
//!
//! ```text
//! val-batch       decides; gets all that happens from one channel
//! val-batch-disk  with a state folder: results are on disk before they are shown
//! val-mi-n-rd     the link to miner n, and its writer val-mi-n-wr, as for organic jobs
//! ```
//!
//! * `state`: the batch as a state machine, with `job`, `plan` and `deadlines`. Pure; a test runs hours of 1,000 miners
//!   through it.
//! * `run`, `disk`: the threads around it. `keep` is what they keep, as rows and back.
//! * [`JobLine`], [`Summary`]: how each job ended, and what the batch comes to. Pure.
//!
//! A program gives the miners, what makes their jobs, and what judges their answers:
//!
//! ```
//! use std::sync::Arc;
//! use std::time::Duration;
//!
//! use phalanx::base::rng::Rng;
//! use phalanx::base::timer::Timer;
//! use phalanx::identity::PublicKey;
//! use phalanx::protocol::{ExecutorClass, JobResultDetails, V2JobRequest};
//! use phalanx::transport::{ClientTls, ws::WsDialer};
//! use phalanx::validator::batch::{BatchConfig, BatchError, NoLine, RunningBatch, Summary, Verdict};
//! use phalanx::validator::MinerAddress;
//!
//! fn batch(config: BatchConfig, miners: Vec<MinerAddress>, job: V2JobRequest) -> Result<Summary, BatchError> {
//!     let (timer, job) = (Timer::start(), Arc::new(job));
//!     let maker = move |_: &PublicKey, class: ExecutorClass, _: &mut Rng| {
//!         (class == job.executor_class).then(|| job.clone())
//!     };
//!     let judge = |_: &V2JobRequest, answer: &JobResultDetails| match answer.docker_process_stdout.as_str() {
//!         "42\n" => Verdict::Right,
//!         other => Verdict::Wrong(format!("{other:?} is not 42")),
//!     };
//!     let dialer = Arc::new(WsDialer::new(ClientTls::default()));
//!     let running = RunningBatch::start(config, miners, (Box::new(maker), Box::new(judge)), dialer, timer.handle())?;
//!     loop {
//!         match running.next_line(Duration::from_secs(10)) {
//!             Ok(line) => println!("{}", line.to_json()),
//!             Err(NoLine::NotYet) => println!("{:?}", running.progress()),
//!             Err(NoLine::Over) => return running.finish(),
//!         }
//!     }
//! }
//! ```

mod config;
mod deadlines;
mod disk;
mod error;
mod job;
mod keep;
mod kept;
mod line;
mod lines;
mod plan;
mod run;
mod state;
mod summary;
#[cfg(test)]
mod tests;

pub use config::{BATCH_MINERS, BatchConfig};
pub use error::BatchError;
pub use job::{Judge, Verdict};
pub use keep::{ANSWER_BYTES, kept_seed, replay};
pub use line::{BatchOutcome, JobLine};
pub use plan::{JOBS_PER_BATCH, JOBS_PER_MINER, JobMaker};
pub use run::{NoLine, RunningBatch};
pub use state::{BatchProgress, Ending};
pub use summary::{Summary, Tally};
