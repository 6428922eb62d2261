//! One job on one thread: image, volumes, run, artifacts, uploads, result; a deadline for each stage, and a report of
//! each step to the miner. Every way out sends exactly one last message.

use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, select};
use serde_json::json;

use super::miner_client::{report, send};
use super::runner::{RunEnd, RunError, RunOutcome, RunSpec, Runner, RunnerKind};
use super::uploads::{UploadError, Uploader};
use super::volumes::Hub;
use super::volumes::{VolumeError, VolumeLoader};
use super::workspace::Workspace;
use super::{artifacts, specs};
use crate::base::shutdown::Shutdown;
use crate::base::waits::waiting;
use crate::link::LinkHandle;
use crate::proc::tool::ToolError;
use crate::protocol::stages::{Stage, StageClock, Timing};
use crate::protocol::{
    ExecutorToMiner, HordeFailureReason, Int, JobFailureReason, JobParticipantType, JobStage, MachineSpecs,
    V0ExecutionDoneRequest, V0ExecutorReadyRequest, V0HordeFailedRequest, V0InitialJobRequest, V0JobFailedRequest,
    V0JobFinishedRequest, V0JobRequest, V0MachineSpecsRequest, V0VolumesReadyRequest,
};

/// Without any timing in the initial request, how long a job may take in all.
const DEFAULT_TOTAL: Duration = Duration::from_secs(3600);

/// How a job ended, as its last message said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobEnd {
    /// The results were sent.
    Finished,
    /// The job itself failed.
    Failed,
    /// This side failed the job.
    HordeFailed,
}

/// The last message of a job that has no results.
enum Failure {
    /// Of the job itself.
    Job(Box<V0JobFailedRequest>),
    /// Of this side.
    Horde(Box<V0HordeFailedRequest>),
}

/// Runs the job to its end and tells the miner each step; gives how it ended.
pub(super) fn run(
    initial: V0InitialJobRequest,
    full: &Receiver<Box<V0JobRequest>>,
    runner: RunnerKind,
    startup: Duration,
    link: &LinkHandle,
    cancel: &Shutdown,
) -> JobEnd {
    let uuid = initial.job_uuid.clone();
    let job = Job { uuid: &uuid, link, cancel };
    let (end, message) = match job.run(initial, full, runner, startup) {
        Ok(finished) => (JobEnd::Finished, ExecutorToMiner::from(finished)),
        Err(Failure::Job(failed)) => {
            log::info!("job {uuid}: failed: {}", failed.message);
            (JobEnd::Failed, (*failed).into())
        }
        Err(Failure::Horde(failed)) => {
            log::warn!("job {uuid}: horde failed: {}", failed.message);
            (JobEnd::HordeFailed, (*failed).into())
        }
    };
    report(send(link, message));
    end
}

/// The last message of a job whose thread panicked.
pub(super) fn crashed(uuid: &str, why: &str) -> V0HordeFailedRequest {
    horde(uuid, HordeFailureReason::UnhandledException, format!("the executor crashed: {why}"), None)
}

fn horde(uuid: &str, reason: HordeFailureReason, message: String, stage: Option<JobStage>) -> V0HordeFailedRequest {
    V0HordeFailedRequest {
        job_uuid: uuid.to_owned(),
        reported_by: JobParticipantType::Executor,
        message,
        reason,
        context: stage.and_then(|stage| json!({"stage": stage.as_str()}).as_object().cloned()),
    }
}

struct Job<'a> {
    uuid: &'a str,
    link: &'a LinkHandle,
    cancel: &'a Shutdown,
}

impl Job<'_> {
    fn run(
        &self,
        initial: V0InitialJobRequest,
        full: &Receiver<Box<V0JobRequest>>,
        runner: RunnerKind,
        startup: Duration,
    ) -> Result<V0JobFinishedRequest, Failure> {
        let starting = Instant::now() + startup;
        if initial.streaming_details.is_some() {
            let message = "this executor does not run streaming jobs".to_owned();
            return Err(self.horde(HordeFailureReason::StreamingFailed, message, JobStage::ExecutorStartup));
        }
        let timing = match (&initial.executor_timing, &initial.timeout_seconds) {
            (Some(details), _) => Timing::from(details),
            (None, Some(total)) => Timing::Total(total.saturating_seconds()),
            (None, None) => Timing::Total(DEFAULT_TOTAL),
        };
        let runner = runner.open(self.cancel).map_err(|e| self.run_error(e, JobStage::ExecutorStartup))?;
        let workspace = Workspace::create().map_err(|e| {
            let message = format!("cannot make a folder for the job: {e}");
            self.horde(HordeFailureReason::GenericError, message, JobStage::ExecutorStartup)
        })?;
        if let Some(image) = &initial.docker_image {
            let prepared = runner.prepare(image, self.cancel, starting);
            prepared.map_err(|e| self.run_error(e, JobStage::ExecutorStartup))?;
        }
        self.say(V0ExecutorReadyRequest { job_uuid: self.uuid.to_owned(), executor_token: None });

        let mut clock = StageClock::new(timing, Instant::now());
        let request = self.full_request(full, &clock)?;
        let result = self.stages(&initial, &request, runner.as_ref(), &workspace, &mut clock);
        if let Err(error) = workspace.remove() {
            log::warn!("job {}: its folder is not removed: {error}", self.uuid);
        }
        result
    }

    fn full_request(
        &self,
        full: &Receiver<Box<V0JobRequest>>,
        clock: &StageClock,
    ) -> Result<Box<V0JobRequest>, Failure> {
        // The volumes' limit counts from here on, so that the wait for the request is within leeway and download.
        let deadline = clock.clone().begin(Stage::Download);
        let left = deadline.saturating_duration_since(Instant::now());
        let _waiting = waiting("the full job request", Some(deadline));
        let outcome = select! {
            recv(full) -> request => request.map_err(|_| RecvTimeoutError::Disconnected),
            recv(self.cancel.cancel_receiver()) -> _ => Err(RecvTimeoutError::Disconnected),
            default(left) => Err(RecvTimeoutError::Timeout),
        };
        outcome.map_err(|error| match error {
            RecvTimeoutError::Disconnected => self.cancelled(JobStage::ExecutorStartup),
            RecvTimeoutError::Timeout => {
                self.timed_out(JobStage::VolumeDownload, "no full job request came in time".to_owned(), None)
            }
        })
    }

    fn stages(
        &self,
        initial: &V0InitialJobRequest,
        request: &V0JobRequest,
        runner: &dyn Runner,
        workspace: &Workspace,
        clock: &mut StageClock,
    ) -> Result<V0JobFinishedRequest, Failure> {
        let deadline = clock.begin(Stage::Download);
        if let Some(volume) = request.volume.as_ref().or(initial.volume.as_ref()) {
            let loader = VolumeLoader::new(self.cancel.clone(), Hub::from_env());
            loader.load(volume, workspace, deadline).map_err(|e| self.volume_error(&e))?;
        }
        self.say(V0VolumesReadyRequest { job_uuid: self.uuid.to_owned() });

        let deadline = clock.begin(Stage::Execution);
        let spec = RunSpec::from_request(self.uuid, request);
        let outcome =
            runner.run(&spec, workspace, self.cancel, deadline).map_err(|e| self.run_error(e, JobStage::Execution))?;
        self.check(&outcome)?;
        self.say(V0ExecutionDoneRequest { job_uuid: self.uuid.to_owned() });

        let deadline = clock.begin(Stage::Upload);
        let artifacts = artifacts::collect(workspace, request.artifacts_dir.as_deref()).map_err(|e| {
            let message = format!("cannot read the job's artifacts: {e}");
            self.horde(HordeFailureReason::GenericError, message, JobStage::ResultUpload)
        })?;
        let results = match &request.output_upload {
            Some(upload) => Uploader::new(self.cancel.clone())
                .upload(upload, workspace, deadline)
                .map_err(|e| self.upload_error(&e, &outcome))?,
            None => Default::default(),
        };
        let machine = MachineSpecs { specs: specs::machine_specs(self.cancel) };
        self.say(V0MachineSpecsRequest { job_uuid: self.uuid.to_owned(), specs: machine });
        Ok(V0JobFinishedRequest {
            job_uuid: self.uuid.to_owned(),
            docker_process_stdout: outcome.stdout.text,
            docker_process_stderr: outcome.stderr.text,
            artifacts: Some(artifacts.files),
            upload_results: Some(results),
        })
    }

    /// The failure that the run's end means, if it means one.
    fn check(&self, outcome: &RunOutcome) -> Result<(), Failure> {
        let failed = |message: String| {
            let mut failed =
                self.failure(JobFailureReason::NonzeroReturnCode, JobStage::Execution, message, Some(outcome));
            failed.docker_process_exit_status = outcome.exit_code().map(|code| Int::from(i64::from(code)));
            Err(Failure::Job(Box::new(failed)))
        };
        match outcome.end {
            RunEnd::Exited(0) => Ok(()),
            RunEnd::Exited(code) => failed(format!("Job container exited with non-zero exit code: {code}")),
            RunEnd::Signalled(signal) => failed(format!("the job was ended by signal {signal}")),
            RunEnd::OutOfMemory => failed("the job used more memory than it may".to_owned()),
            RunEnd::TimedOut => Err(self.timed_out(
                JobStage::Execution,
                "Job container timed out during execution".to_owned(),
                Some(outcome),
            )),
            RunEnd::Cancelled => Err(self.cancelled(JobStage::Execution)),
        }
    }

    fn say(&self, message: impl Into<ExecutorToMiner>) {
        report(send(self.link, message));
    }

    fn horde(&self, reason: HordeFailureReason, message: String, stage: JobStage) -> Failure {
        Failure::Horde(Box::new(horde(self.uuid, reason, message, Some(stage))))
    }

    fn cancelled(&self, stage: JobStage) -> Failure {
        let message = "the executor was stopped before the job had ended".to_owned();
        self.horde(HordeFailureReason::GenericError, message, stage)
    }

    fn failure(
        &self,
        reason: JobFailureReason,
        stage: JobStage,
        message: String,
        outcome: Option<&RunOutcome>,
    ) -> V0JobFailedRequest {
        V0JobFailedRequest {
            job_uuid: self.uuid.to_owned(),
            message,
            reason,
            stage,
            docker_process_exit_status: None,
            docker_process_stdout: outcome.map(|o| o.stdout.text.clone()),
            docker_process_stderr: outcome.map(|o| o.stderr.text.clone()),
            context: None,
        }
    }

    fn timed_out(&self, stage: JobStage, message: String, outcome: Option<&RunOutcome>) -> Failure {
        Failure::Job(Box::new(self.failure(JobFailureReason::Timeout, stage, message, outcome)))
    }

    fn run_error(&self, error: RunError, stage: JobStage) -> Failure {
        match error {
            RunError::Tool(ToolError::Cancelled(_)) => self.cancelled(stage),
            RunError::Tool(ToolError::TimedOut(_)) => self.timed_out(stage, error.to_string(), None),
            // What the user asked for cannot be had: the job's failure, not the horde's.
            RunError::Spec(_) | RunError::Image { .. } => {
                Failure::Job(Box::new(self.failure(JobFailureReason::DownloadFailed, stage, error.to_string(), None)))
            }
            error => self.horde(HordeFailureReason::GenericError, error.to_string(), stage),
        }
    }

    fn volume_error(&self, error: &VolumeError) -> Failure {
        let (stage, message) = (JobStage::VolumeDownload, error.to_string());
        if error.is_cancelled() {
            self.cancelled(stage)
        } else if error.is_timeout() {
            self.timed_out(stage, message, None)
        } else {
            Failure::Job(Box::new(self.failure(JobFailureReason::DownloadFailed, stage, message, None)))
        }
    }

    fn upload_error(&self, error: &UploadError, outcome: &RunOutcome) -> Failure {
        let (stage, message) = (JobStage::ResultUpload, error.to_string());
        if error.is_cancelled() {
            self.cancelled(stage)
        } else if error.is_timeout() {
            self.timed_out(stage, message, Some(outcome))
        } else {
            Failure::Job(Box::new(self.failure(JobFailureReason::UploadFailed, stage, message, Some(outcome))))
        }
    }
}
