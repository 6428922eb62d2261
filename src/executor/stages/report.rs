//! The last message of a job. Pure.

use super::io::{Action, JobEnd, Problem, Results};
use super::job::{Phase, StagedJob};
use super::timeline::seconds;
use crate::base::text;
use crate::executor::runner::RunEnd;
use crate::ops::errors::ErrorClass;
use crate::protocol::executor::{FAULT, FAULT_OF_OPERATOR};
use crate::protocol::stages::StageClock;
use crate::protocol::{
    ExecutorToMiner, HordeFailureReason, Int, JobFailureReason, JobParticipantType, JobStage, JsonMap, MachineSpecs,
    StrMap, V0HordeFailedRequest, V0JobFailedRequest, V0JobFinishedRequest, V0MachineSpecsRequest,
};

/// Bytes of a failure's message: more than any sentence of ours, and a tool may have said very much.
const MESSAGE_BYTES: usize = 8 << 10;

/// Sentences about what is left out; each has a name of at most 255 bytes, so that all are below 100 KB when escaped.
const TOLD: usize = 20;

/// Characters of base64 of the artifacts that a failure carries. They go into its context, which is kept by databases
/// and shown to people, so they are far fewer than those of a result.
const FAILED_ARTIFACTS_CHARS: usize = 512 << 10;

impl StagedJob {
    pub(super) fn finish(&mut self, results: Results) {
        results.uploaded.into_iter().for_each(|bytes| self.timeline.moved(bytes));
        if self.run_timed_out() {
            return self.timed_out(results.artifacts);
        }
        let Results { artifacts, left_out, uploads, .. } = results;
        let (stdout, mut stderr) = self.ran.take().map(|ran| (ran.stdout.text, ran.stderr.text)).unwrap_or_default();
        tell(&mut stderr, &left_out);
        let job_uuid = self.uuid.clone();
        if let Some(machine) = self.machine.take() {
            self.send(V0MachineSpecsRequest { job_uuid: job_uuid.clone(), specs: MachineSpecs { specs: machine } });
        }
        let finished = V0JobFinishedRequest {
            job_uuid,
            docker_process_stdout: stdout,
            docker_process_stderr: stderr,
            artifacts: Some(artifacts),
            upload_results: Some(uploads),
        };
        self.end(finished, JobEnd::Finished);
    }

    /// Whether the run was stopped at its limit.
    fn run_timed_out(&self) -> bool {
        self.ran.as_ref().is_some_and(|ran| ran.end == RunEnd::TimedOut)
    }

    /// The end of a job that ran for too long, with what it has left.
    fn timed_out(&mut self, artifacts: StrMap) {
        let (mut chars, mut left_out) = (0, 0);
        let mut kept = JsonMap::new();
        for (name, content) in artifacts {
            if chars + name.len() + content.len() > FAILED_ARTIFACTS_CHARS {
                left_out += 1;
                continue;
            }
            chars += name.len() + content.len();
            kept.insert(name, content.into());
        }
        let mut context = self.context(JobStage::Execution);
        if !kept.is_empty() {
            context.insert("artifacts".to_owned(), kept.into());
        }
        if left_out > 0 {
            context.insert("artifacts_left_out".to_owned(), left_out.into());
        }
        let message = self.late("Job container timed out during execution");
        self.send_job_failed(JobFailureReason::Timeout, JobStage::Execution, message, None, context);
    }

    /// Why a job is late, if it is not its own limits.
    fn late(&self, message: &str) -> String {
        match self.max_time.filter(|_| self.clock.as_ref().is_some_and(StageClock::is_cut)) {
            Some(most) => {
                format!("{message}; a job may have {} s here, which are less than its limits", most.as_secs_f64())
            }
            None => message.to_owned(),
        }
    }

    /// Where a failure happened, in all kinds of failures alike.
    fn context(&mut self, stage: JobStage) -> JsonMap {
        let took = self.now.saturating_duration_since(self.stage_began);
        self.timeline.end(self.now);
        JsonMap::from_iter([
            ("stage".to_owned(), stage.as_str().into()),
            ("stage_seconds".to_owned(), seconds(took).into()),
            ("timeline".to_owned(), self.timeline.to_json()),
            ("executor".to_owned(), concat!("phalanx ", env!("CARGO_PKG_VERSION")).into()),
        ])
    }

    /// The end of a job whose work cannot be done.
    pub(super) fn fail(&mut self, problem: Problem) {
        if self.run_timed_out() {
            let what = format!("nothing of what it has left is reported: {problem:?}");
            self.error(ErrorClass::Rejected, "job-results", &what);
            return self.timed_out(StrMap::new());
        }
        let stage = self.phase.stage();
        let (reason, message) = match problem {
            Problem::Cancelled => {
                let message = "the executor was stopped before the job had ended".to_owned();
                return self.horde_failed(HordeFailureReason::GenericError, message);
            }
            Problem::OfHorde(message) => return self.horde_failed(HordeFailureReason::GenericError, message),
            Problem::OfStreaming(message) => return self.horde_failed(HordeFailureReason::StreamingFailed, message),
            Problem::OfOperator(message) => {
                // Its miner shows that.
                let mut context = self.context(stage);
                context.insert(FAULT.to_owned(), FAULT_OF_OPERATOR.into());
                return self.end_with(HordeFailureReason::GenericError, message, context);
            }
            Problem::TimedOut(message) => (JobFailureReason::Timeout, self.late(&message)),
            Problem::OfJob(message) if self.phase == Phase::Upload => (JobFailureReason::UploadFailed, message),
            // Neither a download nor an upload: what was asked for cannot be run.
            Problem::OfJob(message) if matches!(self.phase, Phase::Start | Phase::Run) => {
                (JobFailureReason::Unknown, message)
            }
            Problem::OfJob(message) => (JobFailureReason::DownloadFailed, message),
        };
        self.job_failed(reason, stage, message, None);
    }

    /// The end of a job that did not end well.
    pub(super) fn job_exited(&mut self, message: String) {
        let code = self.ran.as_ref().and_then(|ran| ran.exit_code()).map(|code| Int::from(i64::from(code)));
        self.job_failed(JobFailureReason::NonzeroReturnCode, self.phase.stage(), message, code);
    }

    pub(super) fn job_failed(
        &mut self,
        reason: JobFailureReason,
        stage: JobStage,
        message: String,
        exit_code: Option<Int>,
    ) {
        let context = self.context(stage);
        self.send_job_failed(reason, stage, message, exit_code, context);
    }

    fn send_job_failed(
        &mut self,
        reason: JobFailureReason,
        stage: JobStage,
        message: String,
        exit_code: Option<Int>,
        context: JsonMap,
    ) {
        log::info!("job {}: failed: {message}", self.uuid);
        let (stdout, stderr) = self.ran.take().map(|ran| (ran.stdout.text, ran.stderr.text)).unzip();
        let failed = V0JobFailedRequest {
            job_uuid: self.uuid.clone(),
            message: bounded(message),
            reason,
            stage,
            docker_process_exit_status: exit_code,
            docker_process_stdout: stdout,
            docker_process_stderr: stderr,
            context: Some(context),
        };
        self.end(failed, JobEnd::Failed);
    }

    pub(super) fn horde_failed(&mut self, reason: HordeFailureReason, message: String) {
        let context = self.context(self.phase.stage());
        self.end_with(reason, message, context);
    }

    fn end_with(&mut self, reason: HordeFailureReason, message: String, context: JsonMap) {
        let class = if self.cancelled { ErrorClass::Cancelled } else { ErrorClass::Rejected };
        self.error(class, "job", &format!("horde failed: {message}"));
        let failed = V0HordeFailedRequest {
            job_uuid: self.uuid.clone(),
            reported_by: JobParticipantType::Executor,
            message: bounded(message),
            reason,
            context: Some(context),
        };
        self.end(failed, JobEnd::HordeFailed);
    }

    fn end(&mut self, last: impl Into<ExecutorToMiner>, end: JobEnd) {
        self.timeline.end(self.now);
        // A good result has no place for it, so the miner's log is where an operator finds it.
        log::info!("job {}: {}", self.uuid, self.timeline);
        // The validator waits for the message, nobody for the clean-up: where the miner ends this process in the midst
        // of it, it removes the rest itself.
        self.send(last);
        self.out.push(Action::Finish);
        self.out.push(Action::End(Ok(end)));
    }
}

/// Adds to the job's standard error what is not carried of what it has left: a result has no other place that its user
/// reads, and `completed` must not hide it.
fn tell(stderr: &mut String, left_out: &[String]) {
    if !left_out.is_empty() && !stderr.is_empty() && !stderr.ends_with('\n') {
        stderr.push('\n');
    }
    for sentence in left_out.iter().take(TOLD) {
        stderr.push_str(&format!("[phalanx: {sentence}]\n"));
    }
    if let Some(more @ 1..) = left_out.len().checked_sub(TOLD) {
        stderr.push_str(&format!("[phalanx: {more} more are left out]\n"));
    }
}

fn bounded(mut message: String) -> String {
    text::truncate(&mut message, MESSAGE_BYTES);
    message
}
