//! The executor's decisions, without threads or clocks: every way a job can go, with time moved by hand.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use phalanx::base::rng::Rng;
use phalanx::executor::runner::{Captured, RunEnd, RunOutcome};
use phalanx::executor::stages::{Action, ExecutorError, Input, JobEnd, Outcome, Part, Problem, Results, Stages, Work};
use phalanx::executor::streaming::{Serving, StreamingLimits};
use phalanx::protocol::{
    ExecutorToMiner, GenericError, HordeFailureReason, InlineVolume, JobFailureReason, JobStage, MinerToExecutor,
    StreamingDetails, V0InitialJobRequest, V0JobRequest, Volume,
};

use crate::executor::{full, initial, kind};

const S: Duration = Duration::from_secs(1);
const STARTUP: Duration = Duration::from_secs(30);
const GONE: Duration = Duration::from_secs(20);

/// The initial request, which is signed, and that takes its time.
fn request() -> V0InitialJobRequest {
    static REQUEST: LazyLock<V0InitialJobRequest> = LazyLock::new(|| initial([10, 20, 5]));
    REQUEST.clone()
}

fn volume() -> Volume {
    Volume::Inline(InlineVolume { contents: "AAAA".to_owned(), relative_path: None })
}

fn ran(end: RunEnd) -> Input {
    let text = |text: &str| Captured { text: text.to_owned(), bytes: 3, ..Captured::default() };
    let ran = RunOutcome { end, stdout: text("out"), stderr: text("err") };
    Input::Done(Ok(Outcome::Ran(Box::new(ran))))
}

fn done(outcome: Outcome) -> Input {
    Input::Done(Ok(outcome))
}

fn says(message: impl Into<MinerToExecutor>) -> Input {
    Input::FromMiner(Box::new(message.into()))
}

struct Rig {
    stages: Stages,
    now: Instant,
    /// Every action since the last look, by a word each.
    steps: Vec<&'static str>,
    sent: Vec<ExecutorToMiner>,
    /// The deadline of the work that was asked for last.
    deadline: Option<Instant>,
    /// The limits of the run of a streaming job.
    streaming: Option<StreamingLimits>,
    end: Option<Result<JobEnd, ExecutorError>>,
}

impl Rig {
    fn new() -> Self {
        let now = Instant::now();
        let stages = Stages::new(STARTUP, GONE, now);
        Self { stages, now, steps: Vec::new(), sent: Vec::new(), deadline: None, streaming: None, end: None }
    }

    fn handle(&mut self, input: Input) {
        for action in self.stages.handle(input, self.now) {
            self.steps.push(match &action {
                Action::Begin(_) => "begin",
                Action::Work(Work::Prepare { .. }) => "prepare",
                Action::Work(Work::Load { .. }) => "load",
                Action::Work(Work::Run { .. }) => "run",
                Action::Work(Work::Upload { .. }) => "upload",
                Action::CancelWork => "cancel",
                Action::Finish => "finish",
                Action::Send(message) => kind(message),
                // The error handler's.
                Action::Error(..) => continue,
                Action::End(_) => "end",
            });
            if let Action::Work(Work::Run { streaming, .. }) = &action {
                self.streaming = *streaming;
            }
            match action {
                Action::Work(
                    Work::Prepare { deadline, .. }
                    | Work::Load { deadline, .. }
                    | Work::Run { deadline, .. }
                    | Work::Upload { deadline, .. },
                ) => self.deadline = Some(deadline),
                Action::Send(message) => self.sent.push(*message),
                Action::End(end) => assert!(self.end.replace(end).is_none(), "a second end"),
                Action::Begin(_) | Action::CancelWork | Action::Finish | Action::Error(..) => {}
            }
        }
        if let Some(wake) = self.stages.next_wake() {
            assert!(wake > self.now, "the stages would be woken for ever");
        }
    }

    /// Hands in one thing and gives what it leads to.
    fn after(&mut self, input: Input) -> Vec<&'static str> {
        self.handle(input);
        std::mem::take(&mut self.steps)
    }

    /// Moves time on, stopping wherever the stages want to look; gives what that leads to.
    fn pass(&mut self, by: Duration) -> Vec<&'static str> {
        let end = self.now + by;
        while let Some(wake) = self.stages.next_wake().filter(|wake| *wake <= end) {
            self.now = wake;
            self.handle(Input::Tick);
        }
        self.now = end;
        std::mem::take(&mut self.steps)
    }

    /// A job whose work has come as far as `phase`.
    fn at(phase: &str) -> Self {
        let mut rig = Self::new();
        rig.handle(Input::Connected);
        rig.handle(says(V0InitialJobRequest { volume: Some(volume()), ..request() }));
        let way = [
            ("prepare", done(Outcome::Prepared)),
            ("request", says(full("true"))),
            ("load", done(Outcome::Loaded(None))),
            ("run", ran(RunEnd::Exited(0))),
        ];
        for (_, input) in way.into_iter().take_while(|(at, _)| *at != phase) {
            rig.handle(input);
        }
        rig.steps.clear();
        rig
    }

    fn ended(&self) -> JobEnd {
        *self.end.as_ref().expect("it has not ended").as_ref().unwrap()
    }

    fn refused(&mut self, input: Input) -> ExecutorError {
        assert_eq!(self.after(input), ["end"]);
        self.end.take().unwrap().unwrap_err()
    }
}

#[test]
fn a_whole_job_goes_through_its_stages_in_order() {
    let mut rig = Rig::new();
    assert_eq!(rig.after(Input::Connected), [""; 0]);
    let with_volume = V0InitialJobRequest { volume: Some(volume()), ..request() };
    assert_eq!(rig.after(says(with_volume)), ["begin", "prepare"]);
    assert_eq!(rig.after(done(Outcome::Prepared)), ["ready"]);
    assert_eq!(rig.after(says(full("true"))), ["load"]);
    assert_eq!(rig.after(done(Outcome::Loaded(None))), ["volumes", "run"]);
    assert_eq!(rig.after(ran(RunEnd::Exited(0))), ["done", "upload"]);
    let results = Results { artifacts: [("a".to_owned(), "b".to_owned())].into_iter().collect(), ..Results::default() };
    assert_eq!(rig.after(Input::Specs(Default::default())), [""; 0], "the result is not there yet");
    // No limit of the job may run while what is left of it is removed.
    let last = rig.after(done(Outcome::Uploaded(Box::new(results))));
    assert_eq!(last, ["specs", "finished", "finish", "end"]);
    let Some(ExecutorToMiner::V0JobFinishedRequest(finished)) = rig.sent.last() else { panic!("{:?}", rig.sent) };
    assert_eq!((finished.docker_process_stdout.as_str(), finished.docker_process_stderr.as_str()), ("out", "err"));
    assert_eq!(finished.artifacts.as_ref().unwrap()["a"], "b");
    assert_eq!((rig.ended(), rig.stages.next_wake()), (JobEnd::Finished, None));
}

#[test]
fn a_request_may_come_early_and_a_volume_with_it_or_not_at_all() {
    let mut rig = Rig::new();
    rig.handle(says(request()));
    rig.steps.clear();
    assert_eq!(rig.after(says(full("true"))), [""; 0]);
    assert_eq!(rig.after(done(Outcome::Prepared)), ["ready", "load"], "the image, at least");
    assert_eq!(rig.after(done(Outcome::Loaded(None))), ["volumes", "run"]);

    let mut rig = Rig::new();
    rig.handle(says(request()));
    rig.handle(done(Outcome::Prepared));
    rig.steps.clear();
    assert_eq!(rig.after(says(V0JobRequest { volume: Some(volume()), ..full("true") })), ["load"]);
}

#[test]
fn every_stage_has_its_deadline_and_saved_time_is_carried_over() {
    let mut rig = Rig::new();
    rig.pass(STARTUP - S);
    let begun = rig.now;
    rig.handle(says(V0InitialJobRequest { volume: Some(volume()), ..request() }));
    assert_eq!(rig.deadline, Some(begun + STARTUP), "the image has the whole start-up limit again");
    rig.pass(3 * S);
    let ready = rig.now;
    rig.handle(done(Outcome::Prepared));
    assert_eq!(rig.stages.next_wake(), Some(ready + 10 * S), "the wait for the request is within the download");
    rig.pass(4 * S);
    rig.handle(says(full("true")));
    assert_eq!(rig.deadline, Some(ready + 10 * S));
    rig.pass(2 * S);
    rig.handle(done(Outcome::Loaded(None)));
    assert_eq!(rig.deadline, Some(rig.now + 20 * S), "what the download has saved is not for the run");
    rig.handle(ran(RunEnd::Exited(0)));
    assert_eq!(rig.deadline, Some(ready + 35 * S), "but for the upload");

    // The leeway is for all stages, but for the part by which the executor is ahead of its validator.
    let mut rig = Rig::new();
    let mut with_leeway = V0InitialJobRequest { volume: Some(volume()), ..request() };
    with_leeway.executor_timing.as_mut().unwrap().allowed_leeway = 5.into();
    rig.handle(says(with_leeway));
    rig.handle(done(Outcome::Prepared));
    rig.handle(says(full("true")));
    assert_eq!(rig.deadline, Some(rig.now + 13 * S));
    rig.pass(12 * S);
    rig.handle(done(Outcome::Loaded(None)));
    assert_eq!(rig.deadline, Some(rig.now + 20 * S));

    // One total for all, of the request or by default.
    for (total, limit) in [(Some(10), 9 * S), (None, 3598 * S)] {
        let mut rig = Rig::new();
        let timeout_seconds = total.map(Into::into);
        rig.handle(says(V0InitialJobRequest { executor_timing: None, timeout_seconds, ..request() }));
        rig.handle(done(Outcome::Prepared));
        rig.handle(says(full("true")));
        assert_eq!(rig.deadline, Some(rig.now + limit));
    }
}

#[test]
fn a_request_that_does_not_come_is_a_timeout_of_the_download() {
    let mut rig = Rig::at("request");
    assert_eq!(rig.pass(10 * S - Duration::from_millis(1)), [""; 0]);
    assert_eq!(rig.pass(S), ["failed", "finish", "end"]);
    let Some(ExecutorToMiner::V0JobFailedRequest(failed)) = rig.sent.last() else { panic!("{:?}", rig.sent) };
    assert_eq!((failed.reason, failed.stage), (JobFailureReason::Timeout, JobStage::VolumeDownload));
}

/// A streaming job that runs, whose server is not ready yet: 10 s for volumes, 3 s for the server, 20 s for the run.
fn streaming() -> Rig {
    let details = StreamingDetails { public_key: "pem".to_owned(), executor_ip: Some("127.0.0.1".to_owned()) };
    let mut rig = Rig::new();
    let mut initial = V0InitialJobRequest { streaming_details: Some(details), ..request() };
    initial.executor_timing.as_mut().unwrap().streaming_start_time_limit = 3.into();
    assert_eq!(rig.after(says(initial)), ["begin", "prepare"]);
    rig.handle(done(Outcome::Prepared));
    assert_eq!(rig.after(says(full("true"))), ["ready", "load"]);
    assert_eq!(rig.after(done(Outcome::Loaded(None))), ["volumes", "run"]);
    rig
}

fn serving() -> Input {
    done(Outcome::Serving(Serving { certificate: "PEM".to_owned(), port: 6006 }))
}

#[test]
fn a_streaming_job_is_reported_when_its_server_is_ready_and_its_run_counts_from_then_on() {
    let mut rig = streaming();
    let limits = rig.streaming.unwrap();
    let by = rig.deadline.unwrap();
    assert_eq!((by - limits.start_by, limits.run_time), (20 * S, 20 * S));
    assert_eq!(limits.start_by, rig.now + 13 * S, "the time of the volumes is saved");
    rig.pass(2 * S);
    assert_eq!(rig.after(serving()), ["streaming"]);
    let Some(ExecutorToMiner::V0StreamingJobReadyRequest(ready)) = rig.sent.last() else { panic!("{:?}", rig.sent) };
    assert_eq!((ready.public_key.as_str(), ready.port.clone()), ("PEM", 6006.into()));
    assert_eq!((&ready.ip, &ready.miner_signature), (&None, &None), "these are the miner's");
    assert_eq!(rig.after(ran(RunEnd::Exited(0))), ["done", "upload"]);
    assert_eq!(rig.deadline.unwrap() - by, 5 * S, "the stages' clock has gone on");
    assert_eq!(rig.after(done(Outcome::Uploaded(Box::default()))), ["finished", "finish", "end"]);
}

#[test]
fn a_streaming_job_whose_server_is_never_ready_has_failed_by_itself() {
    let out = || Captured { text: "out".to_owned(), ..Captured::default() };
    let not_served = |end| {
        let ran = RunOutcome { end, stdout: out(), stderr: out() };
        done(Outcome::NotServed(Box::new(ran), "it answers 500".to_owned()))
    };
    for (input, reason, message) in [
        (not_served(RunEnd::Cancelled), JobFailureReason::Timeout, "health check failed: it answers 500"),
        (ran(RunEnd::Exited(0)), JobFailureReason::Timeout, "the job ended before its server was ready"),
        (ran(RunEnd::Exited(3)), JobFailureReason::NonzeroReturnCode, "non-zero exit code: 3"),
    ] {
        let mut rig = streaming();
        assert_eq!(rig.after(input), ["failed", "finish", "end"]);
        let Some(ExecutorToMiner::V0JobFailedRequest(failed)) = rig.sent.last() else { panic!("{:?}", rig.sent) };
        assert_eq!((failed.reason, failed.stage), (reason, JobStage::StreamingStartup), "{message}");
        assert!(failed.message.contains(message), "{}", failed.message);
        assert_eq!(failed.docker_process_stdout.as_deref(), Some("out"));
    }
    // After its server was ready it is a run like another.
    let mut rig = streaming();
    rig.handle(serving());
    rig.steps.clear();
    assert_eq!(rig.after(ran(RunEnd::TimedOut)), ["upload"]);
    assert_eq!(rig.after(done(Outcome::Uploaded(Box::default()))), ["failed", "finish", "end"]);
    let Some(ExecutorToMiner::V0JobFailedRequest(failed)) = rig.sent.last() else { panic!("{:?}", rig.sent) };
    assert_eq!((failed.reason, failed.stage), (JobFailureReason::Timeout, JobStage::Execution));
}

#[test]
fn an_executor_that_cannot_serve_a_streaming_job_says_so_as_the_horde_s_failure() {
    let mut rig = streaming();
    assert_eq!(
        rig.after(Input::Done(Err(Problem::OfStreaming("no port".to_owned())))),
        ["horde failed", "finish", "end"]
    );
    let Some(ExecutorToMiner::V0HordeFailedRequest(failed)) = rig.sent.last() else { panic!("{:?}", rig.sent) };
    assert_eq!((failed.reason, failed.message.as_str()), (HordeFailureReason::StreamingFailed, "no port"));
}

#[test]
fn every_problem_of_every_stage_is_one_last_message() {
    let why = || "why".to_owned();
    for (phase, stage) in [
        ("prepare", JobStage::ExecutorStartup),
        ("load", JobStage::VolumeDownload),
        ("run", JobStage::Execution),
        ("upload", JobStage::ResultUpload),
    ] {
        let asked = match phase {
            "upload" => JobFailureReason::UploadFailed,
            "run" => JobFailureReason::Unknown,
            _ => JobFailureReason::DownloadFailed,
        };
        for (problem, reason) in [
            (Problem::TimedOut(why()), Some(JobFailureReason::Timeout)),
            (Problem::OfJob(why()), Some(asked)),
            (Problem::OfHorde(why()), None),
            (Problem::Cancelled, None),
        ] {
            let shown = format!("{phase} {problem:?}");
            let mut rig = Rig::at(phase);
            rig.handle(Input::Done(Err(problem)));
            match (rig.sent.last(), reason) {
                (Some(ExecutorToMiner::V0JobFailedRequest(failed)), Some(reason)) => {
                    assert_eq!(
                        (failed.reason, failed.stage, failed.message.as_str()),
                        (reason, stage, "why"),
                        "{shown}"
                    );
                    let output = (phase == "upload").then_some("out");
                    assert_eq!(failed.docker_process_stdout.as_deref(), output, "{shown}");
                    assert_eq!(failed.context.as_ref().unwrap()["stage"], stage.as_str(), "{shown}");
                    assert_eq!(rig.steps, ["failed", "finish", "end"], "{shown}");
                }
                (Some(ExecutorToMiner::V0HordeFailedRequest(failed)), None) => {
                    assert_eq!(failed.reason, HordeFailureReason::GenericError, "{shown}");
                    assert_eq!(failed.context.as_ref().unwrap()["stage"], stage.as_str(), "{shown}");
                    assert_eq!(rig.steps, ["horde failed", "finish", "end"], "{shown}");
                }
                (last, _) => panic!("{shown}: {last:?}"),
            }
        }
    }
}

#[test]
fn a_failure_says_how_long_each_part_took_and_what_it_moved() {
    let mut rig = Rig::at("load");
    rig.pass(S);
    rig.handle(done(Outcome::Begun(Part::Volumes)));
    rig.pass(2 * S);
    rig.handle(done(Outcome::Loaded(Some(17))));
    rig.pass(3 * S);
    rig.handle(ran(RunEnd::Exited(0)));
    rig.handle(done(Outcome::Begun(Part::Upload)));
    rig.pass(4 * S);
    rig.handle(Input::Done(Err(Problem::OfJob("why".to_owned()))));
    let Some(ExecutorToMiner::V0JobFailedRequest(failed)) = rig.sent.last() else { panic!("{:?}", rig.sent) };
    let part = |part: &str, seconds: f64| serde_json::json!({"part": part, "seconds": seconds});
    let moved =
        |part: &str, seconds: f64, bytes: u64| serde_json::json!({"part": part, "seconds": seconds, "bytes": bytes});
    let timeline = [
        part("prepare", 0.0),
        part("request", 0.0),
        part("image", 1.0),
        moved("volumes", 2.0, 17),
        moved("run", 3.0, 6),
        part("artifacts", 0.0),
        part("upload", 4.0),
    ];
    assert_eq!(failed.context.as_ref().unwrap()["timeline"], serde_json::Value::from_iter(timeline));
}

#[test]
fn a_job_has_no_more_time_than_its_operator_gives() {
    let mut rig = Rig::new();
    rig.stages = Stages::new(STARTUP, GONE, rig.now).within(Some(12 * S));
    rig.handle(Input::Connected);
    // Without a leeway, which counts beside that: 10 s, 20 s and 5 s.
    rig.handle(says(request()));
    rig.handle(done(Outcome::Prepared));
    rig.handle(says(full("true")));
    let ready = rig.now;
    assert_eq!(rig.deadline, Some(ready + 10 * S), "the download has its own limit");
    rig.pass(S);
    rig.handle(done(Outcome::Loaded(None)));
    assert_eq!(rig.deadline, Some(ready + 12 * S));
    rig.pass(11 * S);
    rig.handle(ran(RunEnd::TimedOut));
    rig.handle(done(Outcome::Uploaded(Box::default())));
    let Some(ExecutorToMiner::V0JobFailedRequest(failed)) = rig.sent.last() else { panic!("{:?}", rig.sent) };
    assert_eq!(failed.reason, JobFailureReason::Timeout);
    assert!(failed.message.ends_with("; a job may have 12 s here, which are less than its limits"), "{failed:?}");
}

#[test]
fn every_end_of_a_run_is_distinguished() {
    for (end, reason, code, says) in [
        (RunEnd::Exited(3), JobFailureReason::NonzeroReturnCode, Some(3), "non-zero exit code: 3"),
        (RunEnd::Signalled(9), JobFailureReason::NonzeroReturnCode, Some(137), "signal 9"),
        (
            RunEnd::OutOfMemory { limit: Some(4096) },
            JobFailureReason::NonzeroReturnCode,
            Some(137),
            "more memory than it may, which is 4 KiB",
        ),
    ] {
        let mut rig = Rig::at("run");
        assert_eq!(rig.after(ran(end)), ["failed", "finish", "end"], "{end:?}");
        let Some(ExecutorToMiner::V0JobFailedRequest(failed)) = rig.sent.last() else { panic!("{:?}", rig.sent) };
        assert_eq!((failed.reason, failed.stage), (reason, JobStage::Execution), "{end:?}");
        assert_eq!(failed.docker_process_exit_status, code.map(i64::into), "{end:?}");
        assert!(failed.message.contains(says), "{}", failed.message);
        assert_eq!(failed.docker_process_stdout.as_deref(), Some("out"), "{end:?}");
    }
    let mut rig = Rig::at("run");
    assert_eq!(rig.after(ran(RunEnd::Cancelled)), ["horde failed", "finish", "end"]);
}

#[test]
fn a_run_that_timed_out_is_reported_with_what_it_has_left() {
    let artifacts = || {
        let files = [("/a/log".to_owned(), "YQ==".to_owned()), ("/a/large".to_owned(), "A".repeat(600 << 10))];
        Box::new(Results { artifacts: files.into_iter().collect(), ..Results::default() })
    };
    for (found, named) in
        [(done(Outcome::Uploaded(artifacts())), true), (Input::Done(Err(Problem::OfHorde("disk".to_owned()))), false)]
    {
        let mut rig = Rig::at("run");
        rig.pass(20 * S);
        // No upload: its validator waits for the end of the execution, and not for longer.
        assert_eq!(rig.after(ran(RunEnd::TimedOut)), ["upload"]);
        assert!(rig.deadline.is_some_and(|at| at <= rig.now + 15 * S));
        assert_eq!(rig.after(found), ["failed", "finish", "end"]);
        let Some(ExecutorToMiner::V0JobFailedRequest(failed)) = rig.sent.last() else { panic!("{:?}", rig.sent) };
        assert_eq!((failed.reason, failed.stage), (JobFailureReason::Timeout, JobStage::Execution));
        assert_eq!(failed.docker_process_exit_status, None);
        assert_eq!(failed.docker_process_stdout.as_deref(), Some("out"));
        let context = failed.context.as_ref().unwrap();
        assert_eq!((&context["stage"], &context["stage_seconds"]), (&"execution".into(), &20.0.into()));
        assert_eq!(context.get("artifacts").is_some(), named);
        if named {
            assert_eq!(context["artifacts"], serde_json::json!({"/a/log": "YQ=="}));
            assert_eq!(context["artifacts_left_out"], 1);
        }
        assert_eq!(rig.ended(), JobEnd::Failed);
    }
}

#[test]
fn a_message_of_a_failure_is_bounded() {
    let mut rig = Rig::at("load");
    rig.handle(Input::Done(Err(Problem::OfJob("ä".repeat(1 << 20)))));
    let Some(ExecutorToMiner::V0JobFailedRequest(failed)) = rig.sent.last() else { panic!("{:?}", rig.sent) };
    assert_eq!(failed.message.len(), 8 << 10);
}

#[test]
fn a_cancel_ends_the_job_wherever_it_is_and_a_drain_nowhere() {
    for phase in ["prepare", "request", "load", "run", "upload"] {
        let mut rig = Rig::at(phase);
        assert_eq!(rig.after(Input::Drain), [""; 0], "{phase}");
        let steps = rig.after(Input::Cancel);
        if phase == "request" {
            assert_eq!(steps, ["horde failed", "finish", "end"]);
        } else {
            assert_eq!(steps, ["cancel"], "{phase}");
            assert_eq!(rig.after(Input::Cancel), [""; 0], "{phase}: once");
            assert_eq!(rig.after(Input::Done(Err(Problem::Cancelled))), ["horde failed", "finish", "end"], "{phase}");
        }
        assert_eq!(rig.ended(), JobEnd::HordeFailed);
    }
    // The image came before the cancel did: the job is not announced any more.
    let mut rig = Rig::at("prepare");
    rig.handle(Input::Cancel);
    rig.steps.clear();
    assert_eq!(rig.after(done(Outcome::Prepared)), ["horde failed", "finish", "end"]);
}

#[test]
fn a_miner_that_is_gone_for_too_long_or_for_good_ends_the_job() {
    let mut rig = Rig::at("run");
    let lost = || Input::Disconnected { why: "reset".to_owned(), cut: true };
    rig.handle(lost());
    assert_eq!(rig.pass(GONE - S), [""; 0]);
    // A failed attempt does not begin the time anew, a connection does.
    rig.handle(lost());
    rig.handle(Input::Connected);
    assert_eq!(rig.pass(2 * GONE), [""; 0]);
    rig.handle(lost());
    rig.pass(S);
    rig.handle(lost());
    assert_eq!(rig.pass(GONE - S), ["cancel"]);
    assert_eq!(rig.stages.next_wake(), None, "the work ends it now");
    assert_eq!(rig.pass(100 * GONE), [""; 0]);

    let mut rig = Rig::at("run");
    assert_eq!(rig.after(Input::ClosedForGood), ["cancel"]);
    assert_eq!(rig.after(ran(RunEnd::Cancelled)), ["horde failed", "finish", "end"]);
}

#[test]
fn without_a_job_it_ends_with_a_diagnosis() {
    let lost = || Input::Disconnected { why: "refused".to_owned(), cut: false };
    let cut = || Input::Disconnected { why: "reset".to_owned(), cut: true };
    assert_eq!(Rig::new().after(cut()), [""; 0], "somebody is there, so it is waited for");
    assert!(matches!(Rig::new().refused(lost()), ExecutorError::Unreachable(why) if why == "refused"));
    let mut rig = Rig::new();
    rig.handle(Input::Connected);
    assert_eq!(rig.after(lost()), [""; 0], "it was reachable, so it is waited for");
    assert_eq!(rig.after(says(full("true"))), ["error"], "a full request is not a job yet");
    assert_eq!(rig.pass(STARTUP), ["end"]);
    assert!(matches!(rig.end.take(), Some(Err(ExecutorError::NoJob(STARTUP)))));
    let error = GenericError { details: Some("no such token".to_owned()) };
    assert!(matches!(Rig::new().refused(says(error)), ExecutorError::Refused(why) if why == "no such token"));
    assert!(matches!(Rig::new().refused(Input::ClosedForGood), ExecutorError::Refused(_)));
    assert!(matches!(Rig::new().refused(Input::Drain), ExecutorError::Stopped));
    assert!(matches!(Rig::new().refused(Input::Cancel), ExecutorError::Stopped));
}

#[test]
fn what_does_not_belong_to_the_job_is_answered_and_changes_nothing() {
    let mut rig = Rig::at("run");
    let other = || "00000000-0000-4000-8000-000000000000".to_owned();
    assert_eq!(rig.after(says(request())), ["error"], "it was not lost, so this is a second one");
    let Some(ExecutorToMiner::GenericError(error)) = rig.sent.last() else { panic!("{:?}", rig.sent) };
    let uuid = request().job_uuid;
    let expected =
        format!("Received duplicate initial job request: first self.job_uuid='{uuid}' and then msg.job_uuid='{uuid}'");
    assert_eq!(error.details.as_ref(), Some(&expected));
    // After a reconnect, each may come once more: the miner does not know what the old connection has lost.
    rig.handle(Input::Disconnected { why: "reset".to_owned(), cut: true });
    rig.handle(Input::Connected);
    for again in [[""; 0].as_slice(), &["error"]] {
        assert_eq!(rig.after(says(request())), again);
        assert_eq!(rig.after(says(full("true"))), again);
    }
    assert_eq!(rig.after(says(V0InitialJobRequest { job_uuid: other(), ..request() })), ["error"]);
    assert_eq!(rig.after(says(full("second"))), ["error"]);
    assert_eq!(rig.after(says(V0JobRequest { job_uuid: other(), ..full("true") })), ["error"]);
    assert_eq!(rig.after(says(GenericError { details: None })), [""; 0], "an error is not answered with an error");
    assert_eq!(rig.after(ran(RunEnd::Exited(0))), ["done", "upload"]);
}

#[test]
fn a_crash_is_a_horde_failure() {
    let mut rig = Rig::at("run");
    assert_eq!(rig.after(Input::Crashed("boom".to_owned())), ["horde failed", "finish", "end"]);
    let Some(ExecutorToMiner::V0HordeFailedRequest(failed)) = rig.sent.last() else { panic!("{:?}", rig.sent) };
    assert_eq!(failed.reason, HordeFailureReason::UnhandledException);
    assert!(failed.message.contains("boom"), "{}", failed.message);
}

#[test]
fn whatever_happens_there_is_one_work_at_a_time_and_one_end() {
    let seed = Rng::from_entropy().next_u64();
    println!("seed {seed}");
    let mut rng = Rng::new(seed);
    for _ in 0..500 {
        let mut rig = Rig::new();
        rig.handle(Input::Connected);
        let mut working = None;
        for _ in 0..60 {
            let input = match rng.next_u64() % 12 {
                0 => Input::Connected,
                1 => Input::Disconnected { why: "lost".to_owned(), cut: rng.one_in(2) },
                2 => says(V0InitialJobRequest { volume: Some(volume()), ..request() }),
                3 | 4 => says(full("true")),
                5 => Input::Drain,
                6 if rng.one_in(10) => Input::Cancel,
                7 if rng.one_in(10) => Input::ClosedForGood,
                8 => {
                    rig.now += S;
                    Input::Tick
                }
                _ => match working.take() {
                    Some(_) if rng.one_in(10) => Input::Done(Err(Problem::OfHorde("disk".to_owned()))),
                    Some("prepare") => done(Outcome::Prepared),
                    Some("load") => done(Outcome::Loaded(None)),
                    Some("run") => ran(RunEnd::Exited(0)),
                    Some("upload") => done(Outcome::Uploaded(Box::default())),
                    _ => Input::Tick,
                },
            };
            let over = rig.end.is_some();
            for step in rig.after(input) {
                assert!(!over, "{step} after the end");
                match step {
                    "prepare" | "load" | "run" | "upload" => assert_eq!(working.replace(step), None, "two at once"),
                    "finish" => working = None,
                    _ => {}
                }
            }
        }
        let last = ["finished", "failed", "horde failed"];
        let lasts = rig.sent.iter().filter(|message| last.contains(&kind(message))).count();
        assert_eq!(lasts, usize::from(matches!(rig.end, Some(Ok(_)))), "{:?}", rig.sent);
    }
}
