//! The life of an executor: its start and its stop, all steps in order.

use std::sync::Arc;
use std::time::Duration;

use super::config::ExecutorConfig;
use super::miner_client;
use super::specs::SpecsThread;
use super::stages::{ExecutorError, JobEnd};
use super::stages_thread;
use crate::base::shutdown::Shutdown;
use crate::base::stop::{StopReport, Stopping};
use crate::base::timer::TimerHandle;
use crate::link::LinkHandle;
use crate::ops::errors::ErrorClass;
use crate::protocol::{ExecutorToMiner, MinerToExecutor, kind_of};
use crate::store::spool::Spooled;
use crate::transport::{Dialer, MessageTypes, PeerMeters};

/// How long the last message of a cancelled job may take to leave.
const CANCELLED_FLUSH_TIME: Duration = Duration::from_secs(1);

/// How long the description of the machine may take to end once it is cancelled.
const SPECS_TIME: Duration = Duration::from_secs(2);

/// How an executor ended.
#[derive(Debug)]
pub struct ExecutorReport {
    /// How the job ended.
    pub end: JobEnd,
    /// What the stop did; `unsent` counts messages that the miner has not got, as far as is known.
    pub stop: StopReport,
    /// Whether those are in the spool, for the next contact.
    pub kept: bool,
}

/// Runs one job for the miner. Blocks until its last message has left, or until the shutdown signal has ended it.
///
/// A drain lets the job end; a cancel ends it and reports that to the miner.
///
/// # Errors
/// [`ExecutorError`], if there was no job.
pub fn run(
    config: ExecutorConfig,
    dialer: Arc<dyn Dialer>,
    timer: TimerHandle,
    shutdown: &Shutdown,
) -> Result<ExecutorReport, ExecutorError> {
    let problems = config.validate();
    if !problems.is_empty() {
        return Err(ExecutorError::Config(problems));
    }
    let (describing, specs) = SpecsThread::start();
    let (sent, received) = (ExecutorToMiner::TYPES, MinerToExecutor::TYPES);
    let (sent, received) = (MessageTypes::of(sent, kind_of), MessageTypes::of(received, kind_of));
    let dialer = PeerMeters::new(&config.board.metrics, "miner", sent, received).dialer(dialer);
    let errors = config.board.errors.clone();
    let (link, events) = miner_client::start(&config.miner_address, &config.token, dialer, timer, errors);
    // The thread that does the job's work starts with the job and ends with it, after the job's last message.
    let outcome = stages_thread::run(&config, &link.handle(), &events, &specs, shutdown);
    // Dropped before the stop, so that a reader that waits for room in the queue is freed.
    drop(events);
    // Whoever ended the job knows its outcome: the last message is a courtesy then, and a lost link is not dialled for
    // long.
    let flush_time =
        if shutdown.is_cancelled() { config.flush_time.min(CANCELLED_FLUSH_TIME) } else { config.flush_time };
    let mut stopping = Stopping::new(shutdown);
    let handle = link.handle();
    let unsent = stopping.step("link", flush_time, |step| link.stop_in(step));
    stopping.unsent(unsent);
    let kept = outcome.is_ok() && unsent > 0 && keep(&config, &handle);
    stopping.step("machine specs", SPECS_TIME, |step| describing.stop_in(step));
    config.board.metrics.log();
    outcome.map(|end| ExecutorReport { end, stop: stopping.finish(), kept })
}

/// Keeps what the miner has not got; false if nobody keeps it.
fn keep(config: &ExecutorConfig, link: &LinkHandle) -> bool {
    let Some(spool) = &config.spool else { return false };
    let messages: Vec<_> = link.queued().iter().map(ToString::to_string).collect();
    if messages.is_empty() {
        let what = "what was sent to the miner and not answered is not kept";
        config.board.errors.report(ErrorClass::Fatal, "spool", &what);
        return false;
    }
    let kept = spool.keep(&Spooled { token: config.token.clone(), messages });
    if let Err(error) = &kept {
        let what = format_args!("what the miner has not got is lost: {error}");
        config.board.errors.report(ErrorClass::Fatal, "spool", &what);
    }
    kept.is_ok()
}
