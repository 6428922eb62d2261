//! The thread that does the work of the stages, one after the other.
//!
//! Owner: [`super::stages_thread`]. Blocks in: its queue, the runner, downloads, uploads. Kick: the job's cancel
//! signal. Ends: with its queue. What was made for the job is undone by the owner then, also after a panic.

use std::io::ErrorKind;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, bounded, never};

use super::artifacts::{self, Artifacts, ArtifactsError};
use super::cleanup::Cleanup;
use super::config::ExecutorConfig;
use super::hooks::AFTER_TIME;
use super::registry;
use super::runner::{Prepared, RunEnd, RunError, RunOutcome, RunSpec, Runner};
use super::stages::{Outcome, Part, Problem, Results, Work};
use super::streaming::{StreamingError, StreamingLimits, StreamingServer, Watched};
use super::transfer::Bounds;
use super::uploads::{UploadError, Uploader};
use super::volumes::{Hub, VolumeError, VolumeLoader};
use super::workspace::{REMOVE_TIME, Workspace};
use crate::base::shutdown::Shutdown;
use crate::base::stop::{CANCEL_BUDGET, KICK_GRACE};
use crate::base::thread::{JoinError, Kick, Thread, spawn};
use crate::base::waits;
use crate::ops::cause::{Cause, Fault};
use crate::proc::docker::labels;
use crate::proc::tool::ToolError;

type Done = Result<Outcome, Problem>;

/// The owner's side of the thread. Dropping it cancels what is being done, and joins the thread.
pub(super) struct Worker {
    queue: Sender<Work>,
    done: Receiver<Done>,
    cancel: Shutdown,
    thread: Option<Thread<()>>,
    cleanup: Cleanup,
}

impl Worker {
    /// A cancel of `shutdown` shortens the clean-up.
    pub(super) fn start(config: &ExecutorConfig, uuid: String, shutdown: &Shutdown) -> Self {
        let (queue, works) = bounded::<Work>(1);
        // What the work goes on with, and its end; the owner always takes them.
        let (report, done) = bounded(2);
        let cancel = Shutdown::new();
        let (kicked, token) = (cancel.clone(), cancel.clone());
        let (config, cleanup) = (config.clone(), Cleanup::new(shutdown, &config.board.errors));
        let undone = cleanup.clone();
        let thread = spawn("exec-work", Kick::new("cancel signal", move || kicked.cancel()), move || {
            let mut job = JobWork {
                uuid,
                config,
                cancel: token,
                place: None,
                image: Prepared::default(),
                report: report.clone(),
                exit: Arc::default(),
                server: None,
                cleanup: undone,
            };
            while let Ok(work) = waits::recv(&works, "the job's next stage") {
                // The owner has gone only if it has panicked.
                if report.send(job.work(work)).is_err() {
                    break;
                }
            }
        });
        Self { queue, done, cancel, thread: Some(thread), cleanup }
    }

    /// What the work has brought about; ends when the thread has panicked.
    pub(super) fn done(worker: Option<&Self>) -> Receiver<Done> {
        worker.filter(|worker| worker.thread.is_some()).map_or_else(never, |worker| worker.done.clone())
    }

    /// Hands over work, when nothing else is being done. Does not block: there is room for one.
    pub(super) fn work(&self, work: Work) {
        // A thread that has panicked is reported by `done`.
        drop(self.queue.send(work));
    }

    /// Cancels what is being done.
    pub(super) fn cancel(&self) {
        self.cancel.cancel();
    }

    /// Undoes what was made for the job.
    pub(super) fn finish(self) {
        let Self { queue, thread, cleanup, .. } = self;
        drop(queue);
        // Nothing is being done, so it ends at once.
        if let Some(Err(JoinError::Late(thread))) = thread.map(|thread| thread.join_by(Instant::now() + CANCEL_BUDGET))
        {
            thread.abandon("it does not end after its job");
        }
        cleanup.undo_all();
    }

    /// Why the thread has ended by itself.
    pub(super) fn crash(&mut self) -> String {
        match self.thread.take().map(|thread| thread.join_by(Instant::now() + KICK_GRACE)) {
            None | Some(Ok(())) => "its thread has ended".to_owned(),
            Some(Err(JoinError::Panicked(message))) => message,
            Some(Err(JoinError::Late(thread))) => {
                thread.abandon("it does not end after a panic");
                "its thread does not end".to_owned()
            }
        }
    }
}

struct JobWork {
    uuid: String,
    config: ExecutorConfig,
    cancel: Shutdown,
    report: Sender<Done>,
    place: Option<(Box<dyn Runner>, Workspace)>,
    /// Keeps the image here until the job has ended.
    image: Prepared,
    /// The exit code of the run, if it has one.
    exit: Arc<OnceLock<i32>>,
    /// What the clients of a streaming job will reach.
    server: Option<StreamingServer>,
    cleanup: Cleanup,
}

impl JobWork {
    fn work(&mut self, work: Work) -> Done {
        match work {
            Work::Prepare { streaming, deadline } => {
                let ExecutorConfig { sandbox, images, board, .. } = &self.config;
                let runner = self.config.runner.open(sandbox, images, &self.cleanup, &board.errors)?;
                if let Some(details) = streaming {
                    if runner.docker().is_none() {
                        let message = format!(
                            "the {} runner gives a job no network, so it runs no streaming jobs; --runner docker does",
                            runner.name()
                        );
                        return Err(Problem::OfStreaming(message));
                    }
                    self.server =
                        Some(StreamingServer::open(&details, self.config.streaming_ports, board.errors.clone())?);
                }
                let mut workspace = Workspace::create().map_err(|error| {
                    Problem::by_cause(Cause::of_io(&error), format!("cannot make a folder for the job: {error}"))
                })?;
                self.undo_later(&mut workspace);
                let (_, workspace) = self.place.insert((runner, workspace));
                self.config.hooks.before(&self.uuid, workspace.job(), &self.cancel, deadline)?;
                Ok(Outcome::Prepared)
            }
            Work::Load { image, volume, deadline } => {
                let (runner, workspace) = self.place()?;
                // The other runner ignores images.
                if runner.name() == "docker" {
                    registry::check(&image, &self.config.reach, &self.cancel, deadline)?;
                }
                let prepared = runner.prepare(&image, &self.cancel, deadline)?;
                let mut loaded = None;
                if let Some(volume) = volume {
                    self.begin(Part::Volumes);
                    let hub = Hub::from_env(self.config.hugging_face_token_for_jobs);
                    let loader = VolumeLoader::new(self.cancel.clone(), hub, self.config.http());
                    let loader = loader.with_errors(self.config.board.errors.clone());
                    let loader = match self.config.sandbox.disk_bytes {
                        Some(bytes) => loader.with_space(bytes),
                        None => loader,
                    };
                    loaded = Some(loader.load(&volume, workspace, deadline)?);
                }
                self.image = prepared;
                Ok(Outcome::Loaded(loaded))
            }
            Work::Run { mut spec, streaming, deadline } => {
                spec.labels.extend_from_slice(&self.config.labels);
                if let Some(limits) = streaming {
                    return self.serve(*spec, limits, deadline);
                }
                let (runner, workspace) = self.place()?;
                let ran = runner.run(&spec, workspace, &self.cancel, deadline)?;
                self.has_run(&ran);
                Ok(Outcome::Ran(Box::new(ran)))
            }
            Work::Upload { artifacts_dir, upload, deadline } => {
                let (_, workspace) = self.place()?;
                let bounds = Bounds { token: &self.cancel, deadline, errors: &self.config.board.errors };
                let Artifacts { files, mut left_out } =
                    artifacts::collect(workspace, artifacts_dir.as_deref(), &bounds)?;
                let mut results = Results { artifacts: files, ..Results::default() };
                if let Some(upload) = upload {
                    self.begin(Part::Upload);
                    let uploader = Uploader::new(self.cancel.clone(), self.config.http());
                    let uploader = uploader.with_errors(self.config.board.errors.clone());
                    let uploaded = uploader.upload(&upload, workspace, deadline)?;
                    left_out.extend(uploaded.left_out);
                    (results.uploads, results.uploaded) = (uploaded.results, Some(uploaded.bytes));
                }
                Ok(Outcome::Uploaded(Box::new(Results { left_out, ..results })))
            }
        }
    }

    /// Runs a job on a network of its own, with its clients let through to it.
    fn serve(&mut self, mut spec: RunSpec, limits: StreamingLimits, deadline: Instant) -> Done {
        let server =
            self.server.take().ok_or_else(|| Problem::OfStreaming("nothing is prepared for clients".to_owned()))?;
        let (runner, workspace) = self.place()?;
        let docker = runner.docker().ok_or_else(|| Problem::OfStreaming("the job has no network".to_owned()))?;
        let labels = spec.labels.iter().map(|(key, value)| (key.as_str(), value.as_str()));
        let labels: Vec<_> = labels.chain([(labels::JOB, spec.id.as_str())]).collect();
        let mut network = docker
            .network(format!("phalanx-job-{}-{}", spec.id, uuid::Uuid::new_v4().simple()), &labels)
            .map_err(|error| Problem::OfStreaming(format!("the job gets no network: {error}")))?;
        let removal = network.removal();
        let removed = self.cleanup.push("network", docker.time * 2, move |stop, by| removal.run(stop, by));
        spec.network = Some(network.name().to_owned());
        let (engine, name, report) = (docker.clone(), network.name().to_owned(), self.report.clone());
        let (ran, watched) = server.run(
            limits,
            &self.cancel,
            move |stop, by| engine.address_on(&name, stop, by).map_err(|error| error.to_string()),
            // The owner has gone only if it has panicked.
            move |serving| drop(report.send(Ok(Outcome::Serving(serving)))),
            |stop| runner.run(&spec, workspace, stop, deadline),
        );
        // Its container has gone.
        self.cleanup.undo(removed);
        let ran: RunOutcome = ran?;
        self.has_run(&ran);
        let watched = watched.map_err(|why| Problem::OfHorde(format!("the proxy of the job failed: {why}")))?;
        Ok(match (watched, ran.end) {
            (Watched::NotReady(why), RunEnd::Cancelled) => Outcome::NotServed(Box::new(ran), why),
            (Watched::TooLong, RunEnd::Cancelled) => {
                Outcome::Ran(Box::new(RunOutcome { end: RunEnd::TimedOut, ..ran }))
            }
            _ => Outcome::Ran(Box::new(ran)),
        })
    }

    /// The next part of the same work begins.
    fn begin(&self, part: Part) {
        // The owner has gone only if it has panicked.
        drop(self.report.send(Ok(Outcome::Begun(part))));
    }

    fn place(&self) -> Result<&(Box<dyn Runner>, Workspace), Problem> {
        self.place.as_ref().ok_or_else(|| Problem::OfHorde("the job has no folder".to_owned()))
    }

    /// The operator's program after the job, and then the removal of its folder.
    fn undo_later(&self, workspace: &mut Workspace) {
        let removal = workspace.removal();
        self.cleanup.push("folder", REMOVE_TIME, move |stop, by| removal(stop, by).map_err(|error| error.to_string()));
        let (hooks, uuid, exit) = (self.config.hooks.clone(), self.uuid.clone(), self.exit.clone());
        let folder = workspace.job().to_owned();
        self.cleanup.push("hook", AFTER_TIME, move |stop, by| {
            hooks.after(&uuid, &folder, exit.get().copied(), stop, by).map_err(|error| error.to_string())
        });
    }

    fn has_run(&self, ran: &RunOutcome) {
        if let Some(code) = ran.exit_code() {
            // It runs once.
            self.exit.get_or_init(|| code);
        }
    }
}

/// A hook has failed.
impl From<ToolError> for Problem {
    fn from(error: ToolError) -> Self {
        match error {
            ToolError::Cancelled(_) => Problem::Cancelled,
            error => Problem::OfHorde(error.to_string()),
        }
    }
}

impl From<StreamingError> for Problem {
    fn from(error: StreamingError) -> Self {
        match error {
            StreamingError::ClientCertificate(_) => Problem::OfJob(error.to_string()),
            error => Problem::OfStreaming(error.to_string()),
        }
    }
}

impl From<RunError> for Problem {
    fn from(error: RunError) -> Self {
        match error {
            RunError::Tool(ToolError::Cancelled(_)) => Problem::Cancelled,
            RunError::PullTimedOut(_) | RunError::Late(_) => Problem::TimedOut(error.to_string()),
            // What the user asked for cannot be had: the job's failure, not the horde's.
            RunError::Spec(_) => Problem::OfJob(error.to_string()),
            RunError::Engine { cause, .. } => Problem::by_cause(cause, error.to_string()),
            RunError::Io { ref source, .. } => Problem::by_cause(Cause::of_io(source), error.to_string()),
            // An engine that is too late or gone, or somebody else's hand on it.
            RunError::Tool(_) | RunError::Removed { .. } | RunError::EngineLost { .. } => {
                Problem::OfOperator(error.to_string())
            }
        }
    }
}

impl Problem {
    /// The job's own, or somebody else's.
    fn by_cause(cause: Cause, text: String) -> Self {
        match cause.fault {
            Fault::Job => Problem::OfJob(text),
            Fault::Network => Problem::OfHorde(text),
            Fault::Operator => Problem::OfOperator(text),
        }
    }
}

impl From<ArtifactsError> for Problem {
    fn from(error: ArtifactsError) -> Self {
        match error {
            ArtifactsError::OfJob(_) => Problem::OfJob(error.to_string()),
            ArtifactsError::Unreadable(_) => Problem::OfHorde(error.to_string()),
            ArtifactsError::Ended(ref why) if why.kind() == ErrorKind::Interrupted => Problem::Cancelled,
            ArtifactsError::Ended(_) => Problem::TimedOut(error.to_string()),
        }
    }
}

impl From<VolumeError> for Problem {
    fn from(error: VolumeError) -> Self {
        match error {
            error if error.is_cancelled() => Problem::Cancelled,
            error if error.is_timeout() => Problem::TimedOut(error.to_string()),
            error => Problem::by_cause(error.cause(), error.to_string()),
        }
    }
}

impl From<UploadError> for Problem {
    fn from(error: UploadError) -> Self {
        match error {
            error if error.is_cancelled() => Problem::Cancelled,
            error if error.is_timeout() => Problem::TimedOut(error.to_string()),
            error => Problem::by_cause(error.cause(), error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn a_full_disk_is_the_operator_s_and_a_file_that_the_job_has_closed_is_the_job_s() {
        let volume = |kind: ErrorKind| VolumeError::File { path: "a".into(), source: io::Error::from(kind) };
        assert!(matches!(volume(ErrorKind::StorageFull).into(), Problem::OfOperator(_)));
        assert!(matches!(volume(ErrorKind::InvalidData).into(), Problem::OfJob(_)));
        let upload = |kind: ErrorKind| UploadError::File { path: "a".into(), source: io::Error::from(kind) };
        assert!(matches!(upload(ErrorKind::StorageFull).into(), Problem::OfOperator(_)));
        assert!(matches!(upload(ErrorKind::PermissionDenied).into(), Problem::OfJob(_)));
        assert!(matches!(UploadError::Pack(ErrorKind::PermissionDenied.into()).into(), Problem::OfJob(_)));
    }

    #[test]
    fn what_was_made_is_undone_after_a_panic_of_the_thread_too() {
        let (config, shutdown) = (ExecutorConfig::new("ws://miner", "token"), Shutdown::new());
        let mut worker = Worker::start(&config, "job".to_owned(), &shutdown);
        let (undone, steps) = bounded(1);
        worker.cleanup.push("container", crate::base::limits::LONGEST_TIME, move |_, _| {
            undone.send("container").map_err(|error| error.to_string())
        });
        // In place of a thread that has panicked in the midst of its work.
        let panics = spawn("exec-work", Kick::dropped("nothing"), || panic!("boom"));
        drop(worker.thread.replace(panics));
        assert_eq!(worker.crash(), "boom");
        assert!(Worker::done(Some(&worker)).is_empty(), "it is not reported twice");
        assert!(steps.is_empty());
        worker.finish();
        assert_eq!(steps.try_recv(), Ok("container"));
    }

    #[test]
    fn the_job_s_own_deadline_is_not_the_engine_s_failure() {
        assert!(matches!(RunError::Late("open the job's folders").into(), Problem::TimedOut(_)));
        assert!(matches!(RunError::PullTimedOut("a".into()).into(), Problem::TimedOut(_)));
        assert!(matches!(RunError::Tool(ToolError::TimedOut("create the container")).into(), Problem::OfOperator(_)));
    }
}
