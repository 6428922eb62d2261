//! The life of an executor: one job, from the miner's initial request to the acknowledged end.
//!
//! Owner: the caller of [`run`], whose thread routes the miner's messages. The job itself runs on `exec-work`.
//! `exec-work` blocks in: the runner, downloads, uploads, the wait for the full request. Kick: the job's cancel signal.
//! Ends: with the job's last message; the link then drains and closes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, never, select};

use super::job::{self, JobEnd};
use super::miner_client::{self, MinerEvent, report, send};
use super::runner::RunnerKind;
use crate::base::scope;
use crate::base::shutdown::{Level, Shutdown};
use crate::base::stop::{StopReport, Stopping};
use crate::base::thread::{Kick, Thread, spawn};
use crate::base::timer::TimerHandle;
use crate::base::waits::waiting;
use crate::link::{Link, LinkHandle};
use crate::protocol::{GenericError, MinerToExecutor, V0InitialJobRequest, V0JobRequest};
use crate::transport::Dialer;

/// How long the last message of a cancelled job may take to leave.
const COURTESY_TIME: Duration = Duration::from_secs(1);

/// What an executor is started with.
#[derive(Clone)]
pub struct ExecutorConfig {
    /// `ws://host:port` of the miner (`MINER_ADDRESS`).
    pub miner_address: String,
    /// Our token (`EXECUTOR_TOKEN`); a secret.
    pub token: String,
    /// How long the part before the initial request may take, and then the preparation of the image.
    pub startup_time_limit: Duration,
    /// How the job's command is run.
    pub runner: RunnerKind,
    /// Without a connection for this long, the miner is given up and the job is cancelled.
    pub miner_gone_after: Duration,
    /// How long the last messages may take to leave.
    pub flush_time: Duration,
}

/// Without the token.
impl std::fmt::Debug for ExecutorConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { miner_address, runner, .. } = self;
        let mut shown = f.debug_struct("ExecutorConfig");
        shown.field("miner_address", miner_address).field("runner", runner).finish_non_exhaustive()
    }
}

impl ExecutorConfig {
    /// The default numbers: 30 s for the start, 30 s without the miner, 10 s to flush.
    pub fn new(miner_address: impl Into<String>, token: impl Into<String>) -> Self {
        Self {
            miner_address: miner_address.into(),
            token: token.into(),
            startup_time_limit: Duration::from_secs(30),
            runner: RunnerKind::Auto,
            miner_gone_after: Duration::from_secs(30),
            flush_time: Duration::from_secs(10),
        }
    }

    /// All problems of the configuration, in words.
    pub fn validate(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if !self.miner_address.starts_with("ws://") && !self.miner_address.starts_with("wss://") {
            problems.push(format!(
                "MINER_ADDRESS is {:?}; it should be a URL like ws://127.0.0.1:9101",
                self.miner_address
            ));
        }
        if self.token.is_empty() || self.token.contains(['/', '?', '#', ' ']) {
            problems.push("EXECUTOR_TOKEN should be the token that the miner made for this executor".to_owned());
        }
        if self.startup_time_limit.is_zero() {
            problems.push("the startup time limit is 0; it should be some seconds".to_owned());
        }
        problems
    }
}

/// How an executor ended.
#[derive(Debug)]
pub struct ExecutorReport {
    /// How the job ended.
    pub end: JobEnd,
    /// What the stop did; `unsent` counts messages that the miner has not got.
    pub stop: StopReport,
}

/// Why an executor ended before it had a job.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExecutorError {
    /// The configuration is wrong; nothing was started.
    #[error("executor: {}", .0.join("; "))]
    Config(Vec<String>),
    /// The first attempt to reach the miner failed: a wrong address, port or token.
    #[error("cannot reach the miner: {0}")]
    Unreachable(String),
    /// The miner does not know our token, or says something else is wrong.
    #[error("the miner refused this executor: {0}")]
    Refused(String),
    /// No initial request came within the start-up time limit.
    #[error("no initial job request within {0:?}")]
    NoJob(Duration),
    /// The shutdown signal came first.
    #[error("stopped before a job came")]
    Stopped,
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
    let (link, events) = miner_client::start(&config.miner_address, &config.token, dialer, timer);
    let outcome = match wait_for_initial(&config, &events, shutdown) {
        Ok(initial) => {
            let _job = scope::job(initial.job_uuid.as_str());
            Ok(drive(&config, *initial, &link, &events, shutdown))
        }
        Err(error) => Err(error),
    };
    // Dropped before the stop, so that a reader that waits for room in the queue is freed.
    drop(events);
    // Whoever ended the job knows its outcome: the last message is a courtesy then, and a lost link is not dialled for long.
    let flush_time = if shutdown.is_cancelled() { config.flush_time.min(COURTESY_TIME) } else { config.flush_time };
    let mut stopping = Stopping::new(shutdown);
    let unsent = stopping.step("link", flush_time, |step| link.stop(step));
    stopping.unsent(unsent);
    outcome.map(|end| ExecutorReport { end, stop: stopping.finish() })
}

fn wait_for_initial(
    config: &ExecutorConfig,
    events: &Receiver<MinerEvent>,
    shutdown: &Shutdown,
) -> Result<Box<V0InitialJobRequest>, ExecutorError> {
    let deadline = Instant::now() + config.startup_time_limit;
    let mut connected = false;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let waits = waiting("the miner's job", Some(deadline));
        let event = select! {
            recv(events) -> event => {
                event.map_err(|_| ExecutorError::Refused("it closed the connection before a job came".to_owned()))?
            }
            recv(shutdown.drain_receiver()) -> _ => return Err(ExecutorError::Stopped),
            default(left) => return Err(ExecutorError::NoJob(config.startup_time_limit)),
        };
        drop(waits);
        match event {
            MinerEvent::Ready => connected = true,
            // Fails at once, so that a miner's operator notices a wrong address (XC-05).
            MinerEvent::Trouble { why } if !connected => return Err(ExecutorError::Unreachable(why)),
            MinerEvent::Trouble { why } => log::warn!("connection lost before the job came: {why}"),
            MinerEvent::Message(message) => match *message {
                MinerToExecutor::V0InitialJobRequest(initial) => return Ok(Box::new(initial)),
                MinerToExecutor::GenericError(error) => {
                    return Err(ExecutorError::Refused(error.details.unwrap_or_default()));
                }
                MinerToExecutor::V0JobRequest(_) => log::warn!("a full job request came before the initial one"),
            },
        }
    }
}

/// Runs the job on its thread and routes the miner's messages until it ends.
fn drive(
    config: &ExecutorConfig,
    initial: V0InitialJobRequest,
    link: &Link,
    events: &Receiver<MinerEvent>,
    shutdown: &Shutdown,
) -> JobEnd {
    let cancel = Shutdown::new();
    let _cancelled = {
        let cancel = cancel.clone();
        shutdown.on(Level::Cancel, move || cancel.cancel())
    };
    let uuid = initial.job_uuid.clone();
    let (full_tx, full_rx) = bounded(1);
    let work = start_work(config, initial, full_rx, link.handle(), &cancel);
    let mut routing =
        Routing { uuid, full: Some(full_tx), link: link.handle(), alone_since: None, cancel: cancel.clone() };
    let mut events = events.clone();
    loop {
        let left = routing.patience(config.miner_gone_after);
        let _waiting = waiting("the job to end", None);
        select! {
            recv(events) -> event => match event {
                Ok(event) => routing.event(event),
                Err(_) => {
                    log::info!("job {}: the miner has closed, so the job is over for it", routing.uuid);
                    cancel.cancel();
                    events = never();
                }
            },
            recv(work.done_receiver()) -> _ => break,
            default(left) => routing.give_up(config.miner_gone_after),
        }
    }
    match work.join_by(Instant::now() + Duration::from_secs(1)) {
        Ok(end) => end,
        Err(error) => {
            report(send(&routing.link, job::crashed(&routing.uuid, &error.to_string())));
            JobEnd::HordeFailed
        }
    }
}

fn start_work(
    config: &ExecutorConfig,
    initial: V0InitialJobRequest,
    full: Receiver<Box<V0JobRequest>>,
    link: LinkHandle,
    cancel: &Shutdown,
) -> Thread<JobEnd> {
    let kick_cancel = cancel.clone();
    let cancel = cancel.clone();
    let (runner, startup) = (config.runner, config.startup_time_limit);
    spawn("exec-work", Kick::new("cancel signal", move || kick_cancel.cancel()), move || {
        job::run(initial, &full, runner, startup, &link, &cancel)
    })
}

struct Routing {
    uuid: String,
    /// Taken by the first full request, which is the one that counts.
    full: Option<Sender<Box<V0JobRequest>>>,
    link: LinkHandle,
    alone_since: Option<Instant>,
    cancel: Shutdown,
}

impl Routing {
    fn event(&mut self, event: MinerEvent) {
        match event {
            MinerEvent::Ready => self.alone_since = None,
            MinerEvent::Trouble { why } => {
                log::warn!("job {}: no miner: {why}", self.uuid);
                self.alone_since.get_or_insert_with(Instant::now);
            }
            MinerEvent::Message(message) => match *message {
                MinerToExecutor::V0JobRequest(request) if request.job_uuid != self.uuid => {
                    self.complain(format!("this executor runs job {}, not {}", self.uuid, request.job_uuid));
                }
                MinerToExecutor::V0JobRequest(request) => match self.full.take() {
                    // The job may have ended already, and then its end has been reported.
                    Some(full) => drop(full.send(Box::new(request))),
                    None => self.complain("this executor already has its job request".to_owned()),
                },
                // A miner pushes it again after a reconnect.
                MinerToExecutor::V0InitialJobRequest(initial) if initial.job_uuid == self.uuid => {}
                MinerToExecutor::V0InitialJobRequest(_) => {
                    self.complain("this executor already has its initial job request".to_owned());
                }
                MinerToExecutor::GenericError(error) => {
                    log::warn!("job {}: the miner reports: {}", self.uuid, error.details.unwrap_or_default());
                }
            },
        }
    }

    fn complain(&self, details: String) {
        log::warn!("job {}: {details}", self.uuid);
        report(send(&self.link, GenericError { details: Some(details) }));
    }

    /// How long to wait for the next event.
    fn patience(&self, limit: Duration) -> Duration {
        match self.alone_since {
            Some(since) if !self.cancel.is_cancelled() => limit.saturating_sub(since.elapsed()),
            // Nothing to give up: the job's own deadlines end it.
            _ => Duration::from_secs(3600),
        }
    }

    fn give_up(&self, limit: Duration) {
        if self.alone_since.is_some_and(|since| since.elapsed() >= limit) {
            log::error!("job {}: no miner for {limit:?}, the job is cancelled", self.uuid);
            self.cancel.cancel();
        }
    }
}
