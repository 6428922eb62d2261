//! The executor as a whole against a scripted miner over the in-memory network: every stage, every way to end.

use crate::testkit::roles;
use crate::testkit::wait::{LONG, until};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use base64::Engine;
use crossbeam_channel::{Receiver, bounded};
use phalanx::base::shutdown::Shutdown;
use phalanx::base::thread::{Kick, Thread, spawn};
use phalanx::executor::{self, ExecutorConfig, ExecutorError, ExecutorReport, JobEnd, RunnerKind};
use phalanx::identity::KeyPair;
use phalanx::link::server::{Server, ServerConfig, ServerEvent};
use phalanx::link::{Outgoing, SessionHandle};
use phalanx::protocol::{
    DateTime, DockerRunOptionsPreset, ExecutorClass, ExecutorTimingDetails, ExecutorToMiner, GenericError,
    HordeFailureReason, InlineVolume, JobFailureReason, JobParticipantType, JobStage, JobStartedReceiptPayload,
    MinerToExecutor, StrMap, V0InitialJobRequest, V0JobRequest, Volume,
};
use phalanx::store::spool::{Spool, Spooled};
use phalanx::transport::memory::DialFault;
use roles::{World, stop};

const UUID: &str = "3f2504e0-4f89-41d3-9a0c-0305e82c3301";

pub(crate) fn initial(limits: [i64; 3]) -> V0InitialJobRequest {
    let key = KeyPair::from_uri("//Alice").unwrap();
    let payload = JobStartedReceiptPayload {
        job_uuid: UUID.to_owned(),
        miner_hotkey: KeyPair::from_uri("//Bob").unwrap().ss58(),
        validator_hotkey: key.ss58(),
        timestamp: DateTime::from(std::time::SystemTime::now()),
        executor_class: ExecutorClass::AlwaysOnTest,
        is_organic: true,
        ttl: 30,
    };
    let signature = payload.sign(&key);
    V0InitialJobRequest {
        validator_signature: None,
        job_uuid: UUID.to_owned(),
        executor_class: ExecutorClass::AlwaysOnTest,
        docker_image: Some("busybox".to_owned()),
        timeout_seconds: None,
        volume: None,
        job_started_receipt_payload: payload,
        job_started_receipt_signature: signature,
        streaming_details: None,
        executor_timing: Some(ExecutorTimingDetails {
            allowed_leeway: 0.into(),
            download_time_limit: limits[0].into(),
            execution_time_limit: limits[1].into(),
            upload_time_limit: limits[2].into(),
            streaming_start_time_limit: 0.into(),
        }),
    }
}

pub(crate) fn full(script: &str) -> V0JobRequest {
    V0JobRequest {
        validator_signature: None,
        job_uuid: UUID.to_owned(),
        executor_class: ExecutorClass::AlwaysOnTest,
        docker_image: "busybox".to_owned(),
        raw_script: None,
        docker_run_options_preset: DockerRunOptionsPreset::None,
        docker_run_cmd: ["sh", "-c", script].map(str::to_owned).to_vec(),
        env: StrMap::from_iter([("GREETING".to_owned(), "hello".to_owned())]),
        volume: None,
        output_upload: None,
        artifacts_dir: Some("/artifacts".to_owned()),
    }
}

fn inline_zip(files: &[(&str, &str)]) -> Volume {
    use std::io::Write;
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, text) in files {
        zip.start_file(*name, zip::write::SimpleFileOptions::default()).unwrap();
        zip.write_all(text.as_bytes()).unwrap();
    }
    let bytes = zip.finish().unwrap().into_inner();
    let contents = base64::engine::general_purpose::STANDARD.encode(bytes);
    Volume::Inline(InlineVolume { contents, relative_path: None })
}

/// A miner that sends `greeting` to each executor that connects, and the job request once the executor is ready.
pub(crate) struct FakeMiner {
    server: Option<Server>,
    pub(crate) received: Receiver<ExecutorToMiner>,
    sessions: Arc<Mutex<Vec<SessionHandle>>>,
}

impl FakeMiner {
    pub(crate) fn start(world: &World, greeting: Vec<MinerToExecutor>, request: Option<V0JobRequest>) -> Self {
        let (tx, received) = bounded(1000);
        let handles: Arc<Mutex<HashMap<_, SessionHandle>>> = Arc::default();
        let sessions: Arc<Mutex<Vec<SessionHandle>>> = Arc::default();
        let opened = sessions.clone();
        let sink = Arc::new(move |event| match event {
            ServerEvent::Opened { id, handle, request, .. } => {
                assert_eq!(request.path, "/v0.1/executor_interface/the-token");
                for message in &greeting {
                    handle.send(Outgoing::once(message.encode())).unwrap();
                }
                opened.lock().unwrap().push(handle.clone());
                handles.lock().unwrap().insert(id, handle);
            }
            ServerEvent::Text { id, text } => {
                let message = ExecutorToMiner::decode(&text).unwrap();
                if let (ExecutorToMiner::V0ExecutorReadyRequest(_), Some(request)) = (&message, &request) {
                    let text = MinerToExecutor::from(request.clone()).encode();
                    handles.lock().unwrap()[&id].send(Outgoing::once(text)).unwrap();
                }
                drop(tx.send(message));
            }
            ServerEvent::Closed { .. } => {}
        });
        let listener = Box::new(world.net.listener("miner"));
        let server = Server::start(ServerConfig::new("min"), listener, world.timer(), Arc::new(|_| Ok(())), sink);
        Self { server: Some(server), received, sessions }
    }

    fn push(&self, message: impl Into<MinerToExecutor>) {
        let text = message.into().encode();
        self.sessions.lock().unwrap().last().unwrap().send(Outgoing::once(text)).unwrap();
    }

    pub(crate) fn receive(&self) -> ExecutorToMiner {
        self.received.recv_timeout(LONG).expect("a message of the executor")
    }

    pub(crate) fn stop(mut self) {
        let server = self.server.take().unwrap();
        assert!(stop(LONG, |step| server.stop_in(step, "")).is_clean());
    }
}

pub(crate) type Outcome = Result<ExecutorReport, ExecutorError>;

pub(crate) fn run_executor(
    world: &World,
    shutdown: &Shutdown,
    change: impl FnOnce(&mut ExecutorConfig),
) -> Thread<Outcome> {
    let mut config = ExecutorConfig::new("ws://miner", "the-token");
    config.runner = RunnerKind::Process;
    config.flush_time = Duration::from_secs(2);
    change(&mut config);
    let (dialer, timer, running) = (Arc::new(world.net.dialer()), world.timer(), shutdown.clone());
    let kick = shutdown.clone();
    spawn("t-executor", Kick::new("shutdown", move || kick.cancel()), move || {
        executor::run(config, dialer, timer, &running)
    })
}

pub(crate) fn joined(thread: Thread<Outcome>) -> Outcome {
    thread.join_by(Instant::now() + LONG).unwrap()
}

/// Runs one job and gives what the miner received, in order, and how the executor ended.
fn one_job(initial: V0InitialJobRequest, request: V0JobRequest) -> (Vec<ExecutorToMiner>, JobEnd) {
    let world = World::new();
    let miner = FakeMiner::start(&world, vec![initial.into()], Some(request));
    let report = joined(run_executor(&world, &Shutdown::new(), |_| {})).unwrap();
    assert!(report.stop.is_clean(), "{}", report.stop);
    let received = miner.received.try_iter().collect();
    miner.stop();
    (received, report.end)
}

pub(crate) fn kind(message: &ExecutorToMiner) -> &'static str {
    match message {
        ExecutorToMiner::V0ExecutorReadyRequest(_) => "ready",
        ExecutorToMiner::V0VolumesReadyRequest(_) => "volumes",
        ExecutorToMiner::V0StreamingJobReadyRequest(_) => "streaming",
        ExecutorToMiner::V0ExecutionDoneRequest(_) => "done",
        ExecutorToMiner::V0MachineSpecsRequest(_) => "specs",
        ExecutorToMiner::V0JobFinishedRequest(_) => "finished",
        ExecutorToMiner::V0JobFailedRequest(_) => "failed",
        ExecutorToMiner::V0HordeFailedRequest(_) => "horde failed",
        ExecutorToMiner::GenericError(_) => "error",
        _ => "other",
    }
}

fn kinds(received: &[ExecutorToMiner]) -> Vec<&'static str> {
    received.iter().map(kind).collect()
}

fn failure(received: &[ExecutorToMiner]) -> (JobFailureReason, JobStage, String) {
    match received.last().unwrap() {
        ExecutorToMiner::V0JobFailedRequest(failed) => (failed.reason, failed.stage, failed.message.clone()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_good_job_reports_every_stage_and_its_results() {
    let mut initial = initial([10, 10, 10]);
    initial.volume = Some(inline_zip(&[("a/b.txt", "one two three")]));
    let script = "wc -w < $PHALANX_VOLUME_DIR/a/b.txt; echo $GREETING >&2; echo art > $PHALANX_ARTIFACTS_DIR/x";
    let (received, end) = one_job(initial, full(script));
    assert_eq!(kinds(&received), ["ready", "volumes", "done", "specs", "finished"]);
    assert_eq!(end, JobEnd::Finished);
    let ExecutorToMiner::V0JobFinishedRequest(finished) = &received[4] else { unreachable!() };
    assert_eq!(finished.docker_process_stdout.trim(), "3");
    assert_eq!(finished.docker_process_stderr, "hello\n");
    assert_eq!(finished.artifacts.as_ref().unwrap()["/artifacts/x"], "YXJ0Cg==");
}

#[test]
fn a_job_that_exits_with_an_error_is_a_failure_with_its_output() {
    let mut initial = initial([10, 10, 10]);
    initial.volume = Some(inline_zip(&[("a", "one two three")]));
    let (received, end) = one_job(initial, full("echo partial; echo boom >&2; exit 3"));
    assert_eq!(kinds(&received), ["ready", "volumes", "failed"]);
    assert_eq!(end, JobEnd::Failed);
    let ExecutorToMiner::V0JobFailedRequest(failed) = &received[2] else { unreachable!() };
    assert_eq!((failed.reason, failed.stage), (JobFailureReason::NonzeroReturnCode, JobStage::Execution));
    assert_eq!(failed.docker_process_exit_status, Some(3.into()));
    assert_eq!(failed.docker_process_stdout.as_deref(), Some("partial\n"));
    assert_eq!(failed.docker_process_stderr.as_deref(), Some("boom\n"));
    let timeline = failed.context.as_ref().unwrap()["timeline"].as_array().unwrap();
    let parts: Vec<_> = timeline.iter().map(|part| (part["part"].as_str().unwrap(), part["bytes"].as_u64())).collect();
    let (volume, output) = (Some("one two three".len() as u64), Some("partial\nboom\n".len() as u64));
    let expected = [("prepare", None), ("request", None), ("image", None), ("volumes", volume), ("run", output)];
    assert_eq!(parts, expected);
}

#[test]
fn a_job_that_takes_too_long_is_ended_at_its_deadline() {
    let script = "echo begun; echo art > $PHALANX_ARTIFACTS_DIR/x; sleep 60";
    let began = Instant::now();
    let (received, _) = one_job(initial([3600, 1, 0]), full(script));
    assert!(began.elapsed() < Duration::from_secs(60), "the time of the download is not for the run");
    assert_eq!(kinds(&received), ["ready", "volumes", "failed"]);
    let ExecutorToMiner::V0JobFailedRequest(failed) = &received[2] else { unreachable!() };
    assert_eq!((failed.reason, failed.stage), (JobFailureReason::Timeout, JobStage::Execution));
    assert_eq!(failed.docker_process_stdout.as_deref(), Some("begun\n"));
    assert_eq!(failed.context.as_ref().unwrap()["artifacts"], serde_json::json!({"/artifacts/x": "YXJ0Cg=="}));
}

#[test]
fn volumes_that_cannot_be_had_are_failed_downloads() {
    let mut climbing = initial([10, 10, 10]);
    climbing.volume = Some(inline_zip(&[("../outside.txt", "x")]));
    let mut garbage = initial([10, 10, 10]);
    garbage.volume = Some(Volume::Inline(InlineVolume { contents: "AAAA".to_owned(), relative_path: None }));
    for (initial, expected) in [(climbing, "../outside.txt"), (garbage, "")] {
        let (received, _) = one_job(initial, full("echo never"));
        assert_eq!(kinds(&received), ["ready", "failed"]);
        let (reason, stage, message) = failure(&received);
        assert_eq!((reason, stage), (JobFailureReason::DownloadFailed, JobStage::VolumeDownload));
        assert!(message.contains(expected) && !message.is_empty(), "{message}");
    }
}

#[test]
fn the_process_runner_refuses_a_streaming_job_in_words() {
    let mut initial = initial([10, 10, 10]);
    initial.streaming_details =
        Some(phalanx::protocol::StreamingDetails { public_key: "pem".to_owned(), executor_ip: None });
    let (received, end) = one_job(initial, full("true"));
    assert_eq!((kinds(&received), end), (vec!["horde failed"], JobEnd::HordeFailed));
    let ExecutorToMiner::V0HordeFailedRequest(failed) = &received[0] else { unreachable!() };
    assert_eq!(failed.reason, HordeFailureReason::StreamingFailed);
    assert_eq!(failed.reported_by, JobParticipantType::Executor);
    assert!(failed.message.starts_with("the process runner gives a job no network"), "{}", failed.message);
}

#[test]
fn second_requests_are_answered_and_the_first_ones_kept() {
    let world = World::new();
    let miner = FakeMiner::start(&world, vec![initial([10, 30, 10]).into()], None);
    let executor = run_executor(&world, &Shutdown::new(), |_| {});
    assert!(matches!(miner.receive(), ExecutorToMiner::V0ExecutorReadyRequest(_)));
    let marker = tempfile::NamedTempFile::new().unwrap();
    let path = marker.path().to_owned();
    marker.close().unwrap();
    let waits = format!("while [ ! -e {} ]; do sleep 0.05; done; echo first", path.display());
    miner.push(full(&waits));
    assert!(matches!(miner.receive(), ExecutorToMiner::V0VolumesReadyRequest(_)));
    let mut other = initial([1, 1, 1]);
    other.job_uuid = "00000000-0000-4000-8000-000000000000".to_owned();
    miner.push(other);
    miner.push(full("echo second"));
    let mut stranger = full("echo stranger");
    stranger.job_uuid = "another".to_owned();
    miner.push(stranger);
    for _ in 0..3 {
        assert!(matches!(miner.receive(), ExecutorToMiner::GenericError(_)));
    }
    std::fs::write(&path, "").unwrap();
    let report = joined(executor).unwrap();
    std::fs::remove_file(&path).unwrap();
    assert_eq!(report.end, JobEnd::Finished);
    let rest: Vec<_> = miner.received.try_iter().collect();
    let Some(ExecutorToMiner::V0JobFinishedRequest(finished)) = rest.last() else { panic!("{rest:?}") };
    assert_eq!(finished.docker_process_stdout, "first\n");
    miner.stop();
}

#[test]
fn a_lost_connection_in_mid_job_costs_nothing() {
    let world = World::new();
    let miner = FakeMiner::start(&world, vec![initial([10, 30, 10]).into()], Some(full("sleep 0.5; echo survived")));
    let executor = run_executor(&world, &Shutdown::new(), |_| {});
    loop {
        if let ExecutorToMiner::V0VolumesReadyRequest(_) = miner.receive() {
            break;
        }
    }
    world.net.wires().last().unwrap().disconnect();
    let report = joined(executor).unwrap();
    assert_eq!(report.end, JobEnd::Finished);
    assert!(report.stop.is_clean(), "{}", report.stop);
    assert!(world.net.dials() >= 2);
    let received: Vec<_> = miner.received.try_iter().collect();
    // What was said before is said again, because nobody knows what the old connection has lost.
    assert_eq!(kinds(&received), ["ready", "volumes", "done", "specs", "finished"]);
    miner.stop();
}

#[test]
fn a_miner_that_is_gone_ends_the_job() {
    let world = World::new();
    let folder = tempfile::NamedTempFile::new().unwrap();
    let script = format!("pwd > {}; sleep 60", folder.path().display());
    let miner = FakeMiner::start(&world, vec![initial([10, 60, 10]).into()], Some(full(&script)));
    let executor = run_executor(&world, &Shutdown::new(), |config| {
        config.miner_gone_after = Duration::from_millis(200);
        config.flush_time = Duration::from_millis(100);
    });
    loop {
        if let ExecutorToMiner::V0VolumesReadyRequest(_) = miner.receive() {
            break;
        }
    }
    let job_folder = || std::fs::read_to_string(folder.path()).unwrap().trim().to_owned();
    until("the job has a folder", || !job_folder().is_empty());
    world.net.fail_next(100_000, DialFault::Refused);
    world.net.wires().last().unwrap().disconnect();
    let report = joined(executor).unwrap();
    assert_eq!(report.end, JobEnd::HordeFailed);
    assert_eq!(report.stop.unsent, 3, "whether the miner has got the first two is not known, and the last it has not");
    miner.stop();
    assert!(!std::path::Path::new(&job_folder()).exists(), "the job's folder is left");
}

#[test]
fn what_the_miner_cannot_be_told_is_spooled_whole() {
    let world = World::new();
    let folder = tempfile::tempdir().unwrap();
    let spool = Spool::new(folder.path());
    let miner = FakeMiner::start(&world, vec![initial([10, 60, 10]).into()], Some(full("sleep 0.2; echo late")));
    let kept = spool.clone();
    let executor = run_executor(&world, &Shutdown::new(), |config| {
        config.flush_time = Duration::from_millis(200);
        config.spool = Some(kept);
    });
    while !matches!(miner.receive(), ExecutorToMiner::V0VolumesReadyRequest(_)) {}
    world.net.fail_next(100_000, DialFault::Refused);
    world.net.wires().last().unwrap().disconnect();
    let report = joined(executor).unwrap();
    assert_eq!((report.end, report.kept), (JobEnd::Finished, true));
    let mut taken = Vec::new();
    spool.take(|spooled| taken.push(spooled)).unwrap();
    let [Spooled { token, messages }] = &taken[..] else { panic!("{taken:?}") };
    assert_eq!(token, "the-token");
    let messages: Vec<_> = messages.iter().map(|text| ExecutorToMiner::decode(text).unwrap()).collect();
    assert_eq!(kinds(&messages), ["ready", "volumes", "done", "specs", "finished"]);
    miner.stop();

    // A miner that has it all leaves nothing to keep.
    let world = World::new();
    let miner = FakeMiner::start(&world, vec![initial([10, 60, 10]).into()], Some(full("true")));
    let kept = spool.clone();
    let report = joined(run_executor(&world, &Shutdown::new(), |config| config.spool = Some(kept))).unwrap();
    assert!(!report.kept);
    spool.take(|spooled| panic!("{spooled:?}")).unwrap();
    miner.stop();
}

#[test]
fn a_miner_that_closes_for_good_ends_the_job_at_once() {
    let world = World::new();
    let miner = FakeMiner::start(&world, vec![initial([10, 60, 10]).into()], Some(full("sleep 60")));
    let executor = run_executor(&world, &Shutdown::new(), |_| {});
    loop {
        if let ExecutorToMiner::V0VolumesReadyRequest(_) = miner.receive() {
            break;
        }
    }
    let session = miner.sessions.lock().unwrap().last().unwrap().clone();
    session.close(1000, "the job is over", LONG);
    let report = joined(executor).unwrap();
    assert_eq!(report.end, JobEnd::HordeFailed);
    assert_eq!(world.net.dials(), 1, "it did not dial again");
    miner.stop();
}

#[test]
fn a_cancel_in_mid_job_ends_it_and_is_reported() {
    let world = World::new();
    let miner = FakeMiner::start(&world, vec![initial([10, 60, 10]).into()], Some(full("sleep 60")));
    let shutdown = Shutdown::new();
    let executor = run_executor(&world, &shutdown, |_| {});
    loop {
        if let ExecutorToMiner::V0VolumesReadyRequest(_) = miner.receive() {
            break;
        }
    }
    shutdown.cancel();
    let report = joined(executor).unwrap();
    assert_eq!(report.end, JobEnd::HordeFailed);
    assert_eq!(kinds(&[miner.receive()]), ["horde failed"]);
    miner.stop();
}

#[test]
fn the_operator_s_hooks_run_around_the_job_and_a_failing_one_before_it_is_the_horde_s_failure() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let hook = |script: &str| ["sh", "-c", script].map(str::to_owned).to_vec();
    let run = |before: &str, request: V0JobRequest| {
        let world = World::new();
        let miner = FakeMiner::start(&world, vec![initial([10, 10, 10]).into()], Some(request));
        let report = joined(run_executor(&world, &Shutdown::new(), |config| {
            config.hooks.before_job = hook(before);
            let path = log.display();
            let after =
                format!("echo $PHALANX_JOB_UUID ${{PHALANX_JOB_EXIT-none}} $(ls $PHALANX_JOB_FOLDER) >> {path}; false");
            config.hooks.after_job = hook(&after);
        }));
        let received: Vec<_> = miner.received.try_iter().collect();
        miner.stop();
        (received, report.unwrap().end)
    };
    let (received, end) = run("echo found > $PHALANX_JOB_FOLDER/output/before", full("cat output/before; exit 3"));
    assert_eq!((kinds(&received), end), (vec!["ready", "volumes", "failed"], JobEnd::Failed));
    let ExecutorToMiner::V0JobFailedRequest(failed) = &received[2] else { unreachable!() };
    assert_eq!(failed.docker_process_stdout.as_deref(), Some("found\n"));
    assert_eq!(std::fs::read_to_string(&log).unwrap(), format!("{UUID} 3 artifacts output specs volume\n"));

    std::fs::remove_file(&log).unwrap();
    let (received, end) = run("echo no GPU >&2; exit 1", full("true"));
    assert_eq!((kinds(&received), end), (vec!["horde failed"], JobEnd::HordeFailed));
    let ExecutorToMiner::V0HordeFailedRequest(failed) = &received[0] else { unreachable!() };
    assert_eq!(failed.message, "cannot run the hook before the job: no GPU");
    assert_eq!(std::fs::read_to_string(&log).unwrap(), format!("{UUID} none artifacts output specs volume\n"));
}

#[test]
fn without_a_job_it_ends_with_a_diagnosis() {
    // Nobody listens.
    let world = World::new();
    let error = joined(run_executor(&world, &Shutdown::new(), |_| {})).unwrap_err();
    assert!(matches!(error, ExecutorError::Unreachable(_)), "{error}");
    assert!(!error.to_string().contains("the-token"), "the token is a secret: {error}");

    // The miner does not know the token.
    let refusal = GenericError { details: Some("No job waiting for token the-token".to_owned()) };
    let miner = FakeMiner::start(&world, vec![refusal.into()], None);
    let error = joined(run_executor(&world, &Shutdown::new(), |_| {})).unwrap_err();
    assert_eq!(error.to_string(), "the miner refused this executor: No job waiting for token (our token)");
    miner.stop();

    // The miner says nothing.
    let miner = FakeMiner::start(&world, Vec::new(), None);
    let quick = |config: &mut ExecutorConfig| config.startup_time_limit = Duration::from_millis(100);
    let error = joined(run_executor(&world, &Shutdown::new(), quick)).unwrap_err();
    assert!(matches!(error, ExecutorError::NoJob(_)), "{error}");

    // Stopped before a job came.
    let shutdown = Shutdown::new();
    let executor = run_executor(&world, &shutdown, |_| {});
    shutdown.drain();
    assert!(matches!(joined(executor).unwrap_err(), ExecutorError::Stopped));
    miner.stop();

    let config = ExecutorConfig::new("http://x", "");
    assert_eq!(config.validate().len(), 2);
}
