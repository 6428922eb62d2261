//! The stages' thread: it takes events one by one, asks the stages, and does what they say.
//!
//! Owner: the caller of [`super::run`], on whose thread it runs. Blocks in: the miner's events and the work that is
//! being done, until the stages' next deadline. Kick: the shutdown signal. Ends: when the stages say so.

use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, never, select};

use super::config::ExecutorConfig;
use super::miner_client::{MinerEvent, report, send};
use super::stages::{Action, ExecutorError, Input, JobEnd, Stages};
use super::work::Worker;
use crate::base::scope;
use crate::base::shutdown::Shutdown;
use crate::base::waits::waiting;
use crate::link::LinkHandle;
use crate::ops::errors::ErrorClass;
use crate::protocol::{JsonMap, MinerToExecutor};

/// Runs until the job has ended, or the wait for one.
pub(super) fn run(
    config: &ExecutorConfig,
    link: &LinkHandle,
    events: &Receiver<MinerEvent>,
    specs: &Receiver<JsonMap>,
    shutdown: &Shutdown,
) -> Result<JobEnd, ExecutorError> {
    let stages = Stages::new(config.startup_time_limit, config.miner_gone_after, Instant::now());
    let mut stages = stages.within(config.max_job_time);
    let mut events = events.clone();
    let (mut drain, mut cancel) = (shutdown.drain_receiver().clone(), shutdown.cancel_receiver().clone());
    let mut worker: Option<Worker> = None;
    let mut _scope = None;
    loop {
        let wake = stages.next_wake();
        let wait = wake.map_or(Duration::MAX, |at| at.saturating_duration_since(Instant::now()));
        let done = Worker::done(worker.as_ref());
        let waits = waiting("the miner, or the job's present stage", wake);
        let input = select! {
            recv(events) -> event => match event {
                Ok(MinerEvent::Ready) => Input::Connected,
                Ok(MinerEvent::Trouble { why, cut }) => {
                    config.board.errors.report(ErrorClass::Reconnect, "miner-link", &why);
                    Input::Disconnected { why, cut }
                }
                Ok(MinerEvent::Message(message)) => {
                    if let MinerToExecutor::GenericError(error) = &*message {
                        let details = error.details.as_deref().unwrap_or_default();
                        config.board.errors.report(ErrorClass::Rejected, "miner-report", &details);
                    }
                    Input::FromMiner(message)
                }
                Err(_) => {
                    events = never();
                    Input::ClosedForGood
                }
            },
            recv(done) -> done => match done {
                Ok(done) => Input::Done(done),
                Err(_) => Input::Crashed(worker.as_mut().map(Worker::crash).unwrap_or_default()),
            },
            recv(drain) -> _ => {
                drain = never();
                Input::Drain
            }
            recv(cancel) -> _ => {
                cancel = never();
                Input::Cancel
            }
            default(wait) => Input::Tick,
        };
        drop(waits);
        // Wanted only at the end of the job, so nothing waits for them.
        let described = specs.try_recv().map(Input::Specs);
        let actions = described.into_iter().chain([input]).flat_map(|input| stages.handle(input, Instant::now()));
        for action in actions {
            match action {
                Action::Begin(uuid) => {
                    worker = Some(Worker::start(config, uuid.clone(), shutdown));
                    _scope = Some(scope::job(uuid));
                }
                Action::Work(work) => {
                    if let Some(worker) = &worker {
                        worker.work(work);
                    }
                }
                Action::CancelWork => worker.iter().for_each(Worker::cancel),
                Action::Finish => worker.take().into_iter().for_each(Worker::finish),
                Action::Send(message) => report(&config.board.errors, send(link, *message)),
                Action::Error(class, place, what) => config.board.errors.report(class, place, &what),
                Action::End(end) => return end,
            }
        }
    }
}
