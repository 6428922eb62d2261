//! The validator between a scripted facilitator and scripted miners: every way a job can end, and how it stops.

use crate::testkit::roles;
use crate::testkit::wait::{LONG, until};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use phalanx::base::backoff::BackoffConfig;
use phalanx::base::clock::Clock;
use phalanx::base::stop::{StopReport, Stopping};
use phalanx::identity::KeyPair;
use phalanx::protocol::{
    HordeFailureReason, JobFailureReason, JobParticipantType, JobRejectionReason, JobStage, JobStatus, Receipt,
    Signature, SignedRequest, V0AcceptJobRequest, V0DeclineJobRequest, V0ExecutionDoneRequest, V0ExecutorReadyRequest,
    V0HordeFailedRequest, V0JobCheated, V0JobFailedRequest, V0JobFinishedRequest, V0JobStatusUpdate,
    V0VolumesReadyRequest, V2JobRequest, ValidatorToMiner, verify_validator_signature,
};
use phalanx::validator::{Dispatch, JobTimes, MinerAddress, Validator, ValidatorConfig};
use roles::{FakeFacilitator, FakeMiner, MinerSession, Script, World, job, now_ns, statuses};

use JobStatus as S;

fn key(uri: &str) -> KeyPair {
    KeyPair::from_uri(uri).unwrap()
}

fn miner(port: u16) -> MinerAddress {
    let hotkey = key(&format!("//Miner{port}")).public();
    MinerAddress { hotkey, address: "127.0.0.1".to_owned(), port, trusted: false, tls: false }
}

/// One for the jobs that ask for a trusted miner.
fn trusted_miner(port: u16) -> MinerAddress {
    MinerAddress { trusted: true, ..miner(port) }
}

/// A job that asks for a trusted miner.
fn trusted_job() -> V2JobRequest {
    let mut job = V2JobRequest { on_trusted_miner: true, ..job(&key("//User")) };
    job.sign(&key("//User"), now_ns());
    job
}

fn config(miners: Vec<MinerAddress>) -> ValidatorConfig {
    let quick = BackoffConfig {
        base: Duration::from_millis(2),
        cap: Duration::from_millis(20),
        stable_after: Duration::from_secs(60),
    };
    ValidatorConfig {
        backoff: quick,
        drain_time: LONG,
        trusted_signers: vec![key("//User").public()],
        ..ValidatorConfig::new("ws://facilitator/ws/v0/", key("//Validator"), miners)
    }
}

fn start(world: &World, config: ValidatorConfig) -> Validator {
    Validator::start(config, Arc::new(world.net.dialer()), world.timer()).unwrap()
}

fn stop(validator: Validator) -> StopReport {
    let mut stopping = Stopping::alone();
    validator.stop_in(&mut stopping);
    stopping.finish()
}

fn accept(session: &MinerSession, uuid: &str) {
    session.say(V0AcceptJobRequest { job_uuid: uuid.to_owned() });
}

fn ready(session: &MinerSession, uuid: &str) {
    session.say(V0ExecutorReadyRequest { job_uuid: uuid.to_owned(), executor_token: None });
}

fn volumes(session: &MinerSession, uuid: &str) {
    session.say(V0VolumesReadyRequest { job_uuid: uuid.to_owned() });
}

fn done(session: &MinerSession, uuid: &str) {
    session.say(V0ExecutionDoneRequest { job_uuid: uuid.to_owned() });
}

fn finish(session: &MinerSession, uuid: &str) {
    session.say(V0JobFinishedRequest {
        job_uuid: uuid.to_owned(),
        docker_process_stdout: "hi\n".to_owned(),
        docker_process_stderr: String::new(),
        artifacts: None,
        upload_results: None,
    });
}

/// A miner that does everything right.
fn good() -> Script {
    Arc::new(|session, message| match message {
        ValidatorToMiner::V0InitialJobRequest(initial) => {
            accept(session, &initial.job_uuid);
            ready(session, &initial.job_uuid);
        }
        ValidatorToMiner::V0JobRequest(request) => {
            volumes(session, &request.job_uuid);
            done(session, &request.job_uuid);
            finish(session, &request.job_uuid);
        }
        _ => {}
    })
}

const GOOD: [JobStatus; 6] =
    [S::Received, S::Accepted, S::ExecutorReady, S::VolumesReady, S::ExecutionDone, S::Completed];

/// Runs one job against one scripted miner and gives its history.
fn one_job(script: Script, change: impl FnOnce(&mut ValidatorConfig)) -> Vec<V0JobStatusUpdate> {
    let world = World::new();
    let facilitator = FakeFacilitator::start(&world);
    let peer = FakeMiner::start(&world, 1, 4, script);
    let mut config = config(vec![miner(1)]);
    change(&mut config);
    let validator = start(&world, config);
    let request = job(&key("//User"));
    facilitator.push(request.clone());
    let history = facilitator.history(&request.uuid);
    assert!(stop(validator).is_clean());
    peer.stop();
    facilitator.stop();
    history
}

fn horde(history: &[V0JobStatusUpdate]) -> (HordeFailureReason, JobParticipantType, String) {
    let last = history.last().unwrap();
    assert_eq!(last.status, S::HordeFailed);
    let details = last.metadata.as_ref().unwrap().horde_failure_details.clone().unwrap();
    (details.reason, details.reported_by, details.message)
}

fn rejection(history: &[V0JobStatusUpdate]) -> (JobRejectionReason, JobParticipantType, String) {
    let last = history.last().unwrap();
    assert_eq!(last.status, S::Rejected);
    let details = last.metadata.as_ref().unwrap().job_rejection_details.clone().unwrap();
    (details.reason, details.rejected_by, details.message)
}

#[test]
fn a_good_job_reports_every_step_in_order_and_pays_with_receipts() {
    let world = World::new();
    let facilitator = FakeFacilitator::start(&world);
    let peer = FakeMiner::start(&world, 1, 4, good());
    let validator = start(&world, config(vec![miner(1)]));
    let request = job(&key("//User"));
    facilitator.push(request.clone());
    let history = facilitator.history(&request.uuid);
    assert_eq!(statuses(&history), GOOD);
    let result = history[5].metadata.as_ref().unwrap().miner_response.as_ref().unwrap();
    assert_eq!(result.docker_process_stdout, "hi\n");
    assert!(stop(validator).is_clean());

    let hotkey = key("//Validator").ss58();
    let mut kinds = Vec::new();
    for message in peer.received.try_iter() {
        let frame = message.encode();
        match message {
            ValidatorToMiner::V0InitialJobRequest(m) => {
                assert!(verify_validator_signature(&frame, &key("//Validator").public()).unwrap());
                m.job_started_receipt_payload.verify(&hotkey, &m.job_started_receipt_signature).unwrap();
                kinds.push("initial");
            }
            ValidatorToMiner::V0JobAcceptedReceiptRequest(m) => {
                m.payload.verify(&hotkey, &m.signature).unwrap();
                kinds.push("accepted receipt");
            }
            ValidatorToMiner::V0JobRequest(m) => {
                assert!(verify_validator_signature(&frame, &key("//Validator").public()).unwrap());
                assert_eq!(m.docker_run_cmd, ["echo", "hi"]);
                kinds.push("job");
            }
            ValidatorToMiner::V0JobFinishedReceiptRequest(m) => {
                m.payload.verify(&hotkey, &m.signature).unwrap();
                assert_eq!(m.payload.score_str, "1.000000");
                kinds.push("finished receipt");
            }
            _ => {}
        }
    }
    assert_eq!(kinds, ["initial", "accepted receipt", "job", "finished receipt"]);
    peer.stop();
    facilitator.stop();
}

#[test]
fn bad_signatures_and_strangers_are_rejected_before_anything_else() {
    let world = World::new();
    let facilitator = FakeFacilitator::start(&world);
    let validator = start(&world, config(vec![miner(1)]));
    let mut forged = job(&key("//User"));
    forged.docker_image = "another".to_owned();
    let stranger = job(&key("//Stranger"));
    let mut unsigned = job(&key("//User"));
    unsigned.signature = None;
    for (request, expected) in [(forged, ""), (stranger, "may not sign jobs for this validator"), (unsigned, "")] {
        facilitator.push(request.clone());
        let history = facilitator.history(&request.uuid);
        assert_eq!(statuses(&history), [S::Rejected]);
        let (reason, by, message) = rejection(&history);
        assert_eq!((reason, by), (JobRejectionReason::InvalidSignature, JobParticipantType::Validator));
        assert!(message.contains(expected) && !message.is_empty(), "{message}");
    }
    assert!(stop(validator).is_clean());
    assert_eq!(world.net.dials(), 1, "no miner was asked");
    facilitator.stop();
}

/// The copies of a request: its signature does not cover the uuid.
fn copies(request: &V2JobRequest, count: usize) -> Vec<V2JobRequest> {
    (0..count).map(|_| V2JobRequest { uuid: uuid::Uuid::new_v4().to_string(), ..request.clone() }).collect()
}

#[test]
fn two_signatures_run_two_jobs_whatever_uuids_they_come_with_also_after_a_restart() {
    let world = World::new();
    let folder = tempfile::tempdir().unwrap();
    let facilitator = FakeFacilitator::start(&world);
    let peer = FakeMiner::start(&world, 1, 24, good());
    let begin =
        || start(&world, ValidatorConfig { state_dir: Some(folder.path().to_owned()), ..config(vec![miner(1)]) });
    let refused = |request: &V2JobRequest, first: &V2JobRequest| {
        facilitator.push(request.clone());
        let history = facilitator.history(&request.uuid);
        assert_eq!(statuses(&history), [S::Rejected]);
        let (reason, by, message) = rejection(&history);
        assert_eq!((reason, by), (JobRejectionReason::InvalidSignature, JobParticipantType::Validator));
        assert!(message.starts_with(&format!("its signature came with job {} before", first.uuid)), "{message}");
    };
    let validator = begin();
    let signed = [job(&key("//User")), job(&key("//User"))];
    for first in &signed {
        facilitator.push(first.clone());
        assert_eq!(statuses(&facilitator.history(&first.uuid)), GOOD);
    }
    for first in &signed {
        copies(first, 11).iter().for_each(|copy| refused(copy, first));
    }
    assert!(stop(validator).is_clean());
    let validator = begin();
    copies(&signed[0], 2).iter().for_each(|copy| refused(copy, &signed[0]));
    // The same job once more is a repeat, as without a restart: the next one is answered, and it is not.
    facilitator.push(signed[0].clone());
    let next = job(&key("//User"));
    facilitator.push(next.clone());
    assert_eq!(statuses(&facilitator.history(&next.uuid)), GOOD);
    assert!(stop(validator).is_clean());
    assert!(facilitator.updates.try_recv().is_err());
    let asked = peer.received.try_iter().filter(|m| matches!(m, ValidatorToMiner::V0InitialJobRequest(_))).count();
    assert_eq!(asked, 3);
    peer.stop();
    facilitator.stop();
}

#[test]
fn signatures_that_are_too_old_or_of_the_future_run_nothing() {
    let world = World::new();
    let facilitator = FakeFacilitator::start(&world);
    let max_signature_age = Duration::from_secs(600);
    let validator = start(&world, ValidatorConfig { max_signature_age, ..config(vec![miner(1)]) });
    let second = 1_000_000_000;
    for (time, expected) in [
        (now_ns() - 700 * second, "s old, at most 600 s are allowed"),
        (1_000 * second, "s old, at most 600 s are allowed"),
        (now_ns() + 400 * second, "ahead of this validator's clock, at most 300 s are allowed"),
        (u64::MAX, "ahead of this validator's clock"),
    ] {
        let mut request = job(&key("//User"));
        request.sign(&key("//User"), time);
        facilitator.push(request.clone());
        let history = facilitator.history(&request.uuid);
        let (reason, by, message) = rejection(&history);
        assert_eq!((reason, by), (JobRejectionReason::InvalidSignature, JobParticipantType::Validator));
        assert!(message.contains(expected), "{message}");
    }
    assert!(stop(validator).is_clean());
    assert_eq!(world.net.dials(), 1, "no miner was asked");
    facilitator.stop();
}

#[test]
fn a_uuid_of_a_megabyte_is_neither_kept_nor_answered() {
    let world = World::new();
    let folder = tempfile::tempdir().unwrap();
    let facilitator = FakeFacilitator::start(&world);
    let peer = FakeMiner::start(&world, 1, 24, good());
    let state_dir = Some(folder.path().to_owned());
    let validator = start(&world, ValidatorConfig { state_dir, ..config(vec![miner(1)]) });
    for _ in 0..24 {
        facilitator.push(V2JobRequest { uuid: "u".repeat(900_000), signature: None, ..job(&key("//User")) });
    }
    let request = job(&key("//User"));
    facilitator.push(request.clone());
    assert_eq!(statuses(&facilitator.history(&request.uuid)), GOOD);
    let client = validator.observer().client().clone();
    assert_eq!((client.counted().unreadable.get(), client.counted().requests.get()), (24, 1));
    assert!(stop(validator).is_clean());
    let bytes: u64 =
        std::fs::read_dir(folder.path()).unwrap().map(|file| file.unwrap().metadata().unwrap().len()).sum();
    assert!(bytes < 100_000, "{bytes} bytes on disk");
    peer.stop();
    facilitator.stop();
}

#[test]
fn a_repeated_request_is_run_once() {
    let world = World::new();
    let facilitator = FakeFacilitator::start(&world);
    let peer = FakeMiner::start(&world, 1, 4, good());
    let validator = start(&world, config(vec![miner(1)]));
    let request = job(&key("//User"));
    for _ in 0..3 {
        facilitator.push(request.clone());
    }
    assert_eq!(statuses(&facilitator.history(&request.uuid)), GOOD);
    assert!(stop(validator).is_clean());
    assert!(facilitator.updates.try_recv().is_err(), "no update after the end");
    let asked = peer.received.try_iter().filter(|m| matches!(m, ValidatorToMiner::V0InitialJobRequest(_))).count();
    assert_eq!(asked, 1);
    peer.stop();
    facilitator.stop();
}

fn decline(reason: JobRejectionReason) -> Script {
    Arc::new(move |session, message| {
        if let ValidatorToMiner::V0InitialJobRequest(initial) = message {
            session.say(V0DeclineJobRequest {
                job_uuid: initial.job_uuid,
                message: "no room".to_owned(),
                reason,
                receipts: Vec::new(),
                context: None,
            });
        }
    })
}

#[test]
fn a_declined_job_goes_to_the_next_miner_and_is_rejected_if_there_is_none() {
    let world = World::new();
    let facilitator = FakeFacilitator::start(&world);
    let busy = FakeMiner::start(&world, 1, 9, decline(JobRejectionReason::Busy));
    let also = FakeMiner::start(&world, 2, 9, good());
    let validator = start(&world, config(vec![miner(1), miner(2)]));
    for _ in 0..4 {
        let request = job(&key("//User"));
        facilitator.push(request.clone());
        assert_eq!(statuses(&facilitator.history(&request.uuid)), GOOD);
    }
    assert!(stop(validator).is_clean());
    busy.stop();
    also.stop();
    facilitator.stop();

    let history = one_job(decline(JobRejectionReason::Busy), |_| {});
    assert_eq!(statuses(&history), [S::Received, S::Rejected]);
    assert_eq!(rejection(&history), (JobRejectionReason::Busy, JobParticipantType::Miner, "no room".to_owned()));
}

#[test]
fn a_class_that_no_miner_offers_and_a_miner_that_is_not_there() {
    let world = World::new();
    let facilitator = FakeFacilitator::start(&world);
    let empty = FakeMiner::start(&world, 1, 0, good());
    let validator = start(&world, config(vec![miner(1)]));
    let request = job(&key("//User"));
    facilitator.push(request.clone());
    let (reason, by, _) = rejection(&facilitator.history(&request.uuid));
    assert_eq!((reason, by), (JobRejectionReason::NoMinerForJob, JobParticipantType::Validator));
    empty.stop();
    assert!(stop(validator).is_clean());

    let validator = start(&world, config(vec![miner(7)]));
    facilitator.push(job(&key("//User")));
    let (reason, _, message) = horde(&facilitator.history(&request_uuid(&facilitator)));
    assert_eq!(reason, HordeFailureReason::MinerConnectionFailed);
    assert!(message.starts_with(&format!("miner {}", miner(7).hotkey)), "{message}");
    assert!(stop(validator).is_clean());
    facilitator.stop();
}

/// The uuid of the next update, which is then put aside: for tests that do not keep their request.
fn request_uuid(facilitator: &FakeFacilitator) -> String {
    let first = facilitator.updates.recv_timeout(LONG).unwrap();
    assert_eq!(first.status, S::Received);
    first.uuid
}

#[test]
fn failures_of_job_and_horde_keep_their_kind_and_details() {
    let failing: Script = Arc::new(|session, message| match message {
        ValidatorToMiner::V0InitialJobRequest(initial) => {
            accept(session, &initial.job_uuid);
            ready(session, &initial.job_uuid);
        }
        ValidatorToMiner::V0JobRequest(request) => {
            volumes(session, &request.job_uuid);
            session.say(V0JobFailedRequest {
                job_uuid: request.job_uuid,
                message: "exit 3".to_owned(),
                reason: JobFailureReason::NonzeroReturnCode,
                stage: JobStage::Execution,
                docker_process_exit_status: Some(3.into()),
                docker_process_stdout: Some("partial".to_owned()),
                docker_process_stderr: Some("boom".to_owned()),
                context: None,
            });
        }
        _ => {}
    });
    let history = one_job(failing, |_| {});
    assert_eq!(statuses(&history), [S::Received, S::Accepted, S::ExecutorReady, S::VolumesReady, S::Failed]);
    let details = history[4].metadata.as_ref().unwrap().job_failure_details.clone().unwrap();
    assert_eq!((details.reason, details.stage), (JobFailureReason::NonzeroReturnCode, JobStage::Execution));
    assert_eq!(details.docker_process_stderr.as_deref(), Some("boom"));

    let dying: Script = Arc::new(|session, message| {
        if let ValidatorToMiner::V0InitialJobRequest(initial) = message {
            accept(session, &initial.job_uuid);
            session.say(V0HordeFailedRequest {
                job_uuid: initial.job_uuid,
                reported_by: JobParticipantType::Miner,
                message: "gone".to_owned(),
                reason: HordeFailureReason::ExecutorDisconnected,
                context: None,
            });
        }
    });
    let (reason, by, message) = horde(&one_job(dying, |_| {}));
    assert_eq!((reason, by), (HordeFailureReason::ExecutorDisconnected, JobParticipantType::Miner));
    assert_eq!(message, "gone");
}

/// A miner that falls silent before the `n`-th of its steps.
fn silent_before(n: usize) -> Script {
    Arc::new(move |session, message| match message {
        ValidatorToMiner::V0InitialJobRequest(initial) => {
            for (at, step) in [accept, ready].into_iter().enumerate() {
                if at < n {
                    step(session, &initial.job_uuid);
                }
            }
        }
        ValidatorToMiner::V0JobRequest(request) => {
            for (at, step) in [volumes, done, finish].into_iter().enumerate() {
                if at + 2 < n {
                    step(session, &request.job_uuid);
                }
            }
        }
        _ => {}
    })
}

#[test]
fn silence_in_each_stage_has_its_own_reason() {
    use HordeFailureReason as R;
    let short = Duration::from_millis(80);
    for (n, reason) in [
        (0, R::InitialResponseTimedOut),
        (1, R::ExecutorReadinessResponseTimedOut),
        (2, R::VolumesTimedOut),
        (3, R::ExecutionTimedOut),
        (4, R::FinalResponseTimedOut),
    ] {
        let world = World::new();
        let facilitator = FakeFacilitator::start(&world);
        let peer = FakeMiner::start(&world, 1, 4, silent_before(n));
        let mut config = config(vec![miner(1)]);
        let none = Duration::ZERO;
        config.job_times =
            JobTimes { reservation: short, executor_startup: short, leeway: none, margin: none, connect: LONG };
        let validator = start(&world, config);
        let mut request = job(&key("//User"));
        // One second for all stages, because time saved in one is there for the next.
        (request.download_time_limit, request.execution_time_limit, request.upload_time_limit) =
            (1.into(), 0.into(), 0.into());
        request.sign(&key("//User"), now_ns());
        facilitator.push(request.clone());
        let history = facilitator.history(&request.uuid);
        assert_eq!(statuses(&history)[..=n], GOOD[..=n], "{n}");
        assert_eq!(horde(&history).0, reason, "{n}");
        assert!(stop(validator).is_clean());
        peer.stop();
        facilitator.stop();
    }
}

#[test]
fn garbage_and_strange_messages_from_a_miner_do_not_end_the_job() {
    let odd: Script = Arc::new(|session, message| match message {
        ValidatorToMiner::V0InitialJobRequest(initial) => {
            session.text("{\"message_type\":\"Nope\"}");
            session.text("not json");
            accept(session, "another-job");
            accept(session, &initial.job_uuid);
            accept(session, &initial.job_uuid);
            ready(session, &initial.job_uuid);
        }
        ValidatorToMiner::V0JobRequest(request) => {
            done(session, &request.job_uuid);
            volumes(session, &request.job_uuid);
            done(session, &request.job_uuid);
            finish(session, &request.job_uuid);
        }
        _ => {}
    });
    let world = World::new();
    let facilitator = FakeFacilitator::start(&world);
    let peer = FakeMiner::start(&world, 1, 4, odd);
    let validator = start(&world, config(vec![miner(1)]));
    let request = job(&key("//User"));
    facilitator.push(request.clone());
    assert_eq!(statuses(&facilitator.history(&request.uuid)), GOOD);
    assert!(stop(validator).is_clean());
    let notified: Vec<String> = peer
        .received
        .try_iter()
        .filter_map(|m| match m {
            ValidatorToMiner::GenericError(error) => error.details,
            _ => None,
        })
        .collect();
    assert_eq!(notified.len(), 2);
    assert!(notified.iter().all(|t| t.starts_with("Malformed message ")), "{notified:?}");
    peer.stop();
    facilitator.stop();
}

#[test]
fn a_lost_miner_comes_back_and_gets_the_authentication_first() {
    let cuts = Arc::new(AtomicUsize::new(0));
    let script: Script = {
        let cuts = cuts.clone();
        Arc::new(move |session, message| match message {
            ValidatorToMiner::V0InitialJobRequest(initial) => {
                if cuts.fetch_add(1, Ordering::SeqCst) < 2 {
                    session.handle.kick();
                } else {
                    accept(session, &initial.job_uuid);
                    ready(session, &initial.job_uuid);
                }
            }
            ValidatorToMiner::V0JobRequest(request) => {
                volumes(session, &request.job_uuid);
                done(session, &request.job_uuid);
                finish(session, &request.job_uuid);
            }
            _ => {}
        })
    };
    let world = World::new();
    let facilitator = FakeFacilitator::start(&world);
    let peer = FakeMiner::start(&world, 1, 4, script);
    let validator = start(&world, config(vec![miner(1)]));
    let request = job(&key("//User"));
    facilitator.push(request.clone());
    assert_eq!(statuses(&facilitator.history(&request.uuid)), GOOD);
    assert!(stop(validator).is_clean());
    let mut previous_was_auth = false;
    for message in peer.received.try_iter() {
        if matches!(message, ValidatorToMiner::V0InitialJobRequest(_)) {
            assert!(previous_was_auth, "the initial request came before the authentication");
        }
        previous_was_auth = matches!(message, ValidatorToMiner::ValidatorAuthForMiner(_));
    }
    peer.stop();
    facilitator.stop();
}

#[test]
fn a_result_beyond_the_limit_of_the_link_costs_the_result_not_the_link() {
    let script: Script = Arc::new(|session, message| match message {
        ValidatorToMiner::V0InitialJobRequest(initial) => {
            accept(session, &initial.job_uuid);
            ready(session, &initial.job_uuid);
        }
        ValidatorToMiner::V0JobRequest(request) => {
            volumes(session, &request.job_uuid);
            done(session, &request.job_uuid);
            session.say(V0JobFinishedRequest {
                job_uuid: request.job_uuid,
                docker_process_stdout: String::new(),
                docker_process_stderr: String::new(),
                artifacts: Some([("a".to_owned(), "x".repeat(40 << 20))].into_iter().collect()),
                upload_results: None,
            });
        }
        _ => {}
    });
    let history = one_job(script, |_| {});
    assert_eq!(statuses(&history)[..5], GOOD[..5]);
    let (reason, by, message) = horde(&history);
    assert_eq!((reason, by), (HordeFailureReason::GenericError, JobParticipantType::Validator));
    assert!(message.contains("its result cannot be passed on"), "{message}");
}

#[test]
fn a_full_intake_answers_busy_at_once() {
    let world = World::new();
    let facilitator = FakeFacilitator::start(&world);
    let peer = FakeMiner::start(&world, 1, 9, silent_before(1));
    let mut config = config(vec![miner(1)]);
    config.workers = Some(1);
    config.drain_time = Duration::ZERO;
    let validator = start(&world, config);
    let (first, second) = (job(&key("//User")), job(&key("//User")));
    facilitator.push(first.clone());
    facilitator.push(second.clone());
    let (mut begun, mut ends) = (false, Vec::new());
    while ends.is_empty() || !begun {
        let update = facilitator.updates.recv_timeout(LONG).unwrap();
        // Before that the first one would be turned away, too.
        begun |= update.uuid == first.uuid && update.status == S::Received;
        if update.status.is_terminal() {
            ends.push(update);
        }
    }
    assert_eq!(ends[0].uuid, second.uuid);
    assert_eq!(rejection(&ends).0, JobRejectionReason::Busy);
    let report = stop(validator);
    assert_eq!(report.cancelled_jobs, 1);
    assert!(report.is_clean(), "{report}");
    let end = facilitator.history(&first.uuid);
    assert_eq!(horde(&end).2, "the validator was stopped before the job had ended");
    peer.stop();
    facilitator.stop();
}

#[test]
fn a_drain_lets_the_job_end_and_rejects_new_ones() {
    let world = World::new();
    let facilitator = FakeFacilitator::start(&world);
    let (go, gate) = crossbeam_channel::bounded::<()>(0);
    let script: Script = Arc::new(move |session, message| match message {
        ValidatorToMiner::V0InitialJobRequest(initial) => {
            accept(session, &initial.job_uuid);
            gate.recv().unwrap();
            ready(session, &initial.job_uuid);
        }
        ValidatorToMiner::V0JobRequest(request) => {
            volumes(session, &request.job_uuid);
            done(session, &request.job_uuid);
            finish(session, &request.job_uuid);
        }
        _ => {}
    });
    let peer = FakeMiner::start(&world, 1, 4, script);
    let validator = start(&world, config(vec![miner(1)]));
    let request = job(&key("//User"));
    facilitator.push(request.clone());
    until("the job runs", || validator.observer().running_jobs() == 1);
    for expected in [S::Received, S::Accepted] {
        assert_eq!(facilitator.updates.recv_timeout(LONG).unwrap().status, expected);
    }
    let stopping = phalanx::base::thread::spawn(
        "t-stop",
        phalanx::base::thread::Kick::dropped("the validator's own budget"),
        move || stop(validator),
    );
    let late = job(&key("//User"));
    facilitator.push(late.clone());
    // It may also come before the drain has begun, and then waits at the gate like the first.
    let update = facilitator.updates.recv_timeout(LONG).unwrap();
    assert_eq!(update.uuid, late.uuid);
    if update.status == S::Rejected {
        assert_eq!(rejection(&[update]).0, JobRejectionReason::Busy);
        go.send(()).unwrap();
    } else {
        go.send(()).unwrap();
        go.send(()).unwrap();
    }
    let report = stopping.join_by(Instant::now() + LONG).unwrap();
    assert!(report.is_clean() && report.cancelled_jobs == 0, "{report}");
    let rest: Vec<_> = facilitator.updates.try_iter().filter(|u| u.uuid == request.uuid).map(|u| u.status).collect();
    assert_eq!(rest, GOOD[2..]);
    peer.stop();
    facilitator.stop();
}

#[test]
fn the_stub_answers_with_the_statuses_of_a_good_job() {
    let world = World::new();
    let facilitator = FakeFacilitator::start(&world);
    let mut config = config(Vec::new());
    config.dispatch = Dispatch::Stub { stage_time: Duration::from_millis(1) };
    let validator = start(&world, config);
    let request = job(&key("//User"));
    facilitator.push(request.clone());
    assert_eq!(statuses(&facilitator.history(&request.uuid)), GOOD);
    assert!(stop(validator).is_clean());
    facilitator.stop();
}

#[test]
fn updates_survive_a_facilitator_that_comes_and_goes() {
    let world = World::new();
    let facilitator = FakeFacilitator::start(&world);
    let mut config = config(Vec::new());
    config.dispatch = Dispatch::Stub { stage_time: Duration::from_millis(5) };
    let validator = start(&world, config);
    let requests: Vec<_> = (0..20).map(|_| job(&key("//User"))).collect();
    for request in &requests {
        facilitator.push(request.clone());
    }
    for _ in 0..5 {
        assert!(facilitator.updates.recv_timeout(LONG).is_ok());
        validator.observer().kick_link();
    }
    // A stop without a connection ends at once and counts what is unsent; this one is about a stop with one.
    until("no job runs and all is sent", || {
        validator.observer().running_jobs() == 0 && validator.observer().unsent() == 0
    });
    let report = stop(validator);
    assert!(report.is_clean(), "{report}");
    facilitator.stop();
}

/// A report of cheating at a job, signed in one of the two ways.
fn report((job, trusted): (&str, &str), signer: &KeyPair, sign: fn(&mut V0JobCheated, &KeyPair)) -> V0JobCheated {
    let mut report = V0JobCheated {
        signature: None,
        job_uuid: job.to_owned(),
        trusted_job_uuid: trusted.to_owned(),
        details: serde_json::json!({"why": "\u{17c}", "a": 1}),
    };
    sign(&mut report, signer);
    report
}

fn over_payload(report: &mut V0JobCheated, signer: &KeyPair) {
    report.sign(signer, now_ns());
}

/// As the official SDK signs it.
fn over_text(report: &mut V0JobCheated, signer: &KeyPair) {
    let payload = String::from_utf8(report.canonical_bytes()).unwrap();
    let text = serde_json::Value::String(payload).to_string();
    report.signature = Some(Signature::over(text.as_bytes(), signer, now_ns()));
}

#[test]
fn a_report_of_cheating_takes_the_miner_out_and_only_a_good_one_does() {
    for sign in [over_payload as fn(&mut V0JobCheated, &KeyPair), over_text] {
        let world = World::new();
        let facilitator = FakeFacilitator::start(&world);
        let peer = FakeMiner::start(&world, 1, 4, good());
        let trusted_peer = FakeMiner::start(&world, 2, 4, good());
        let validator = start(&world, config(vec![miner(1), trusted_miner(2)]));
        let run_this = |request: V2JobRequest| {
            facilitator.push(request.clone());
            (facilitator.history(&request.uuid), request.uuid)
        };
        let run = || run_this(job(&key("//User")));
        let (history, cheated) = run();
        assert_eq!(statuses(&history), GOOD);
        let (history, trusted) = run_this(trusted_job());
        assert_eq!(statuses(&history), GOOD);
        let named = (&*cheated, &*trusted);

        let mut forged = report(named, &key("//User"), sign);
        forged.details = serde_json::json!("something else");
        let mut unsigned = report(named, &key("//User"), sign);
        unsigned.signature = None;
        let stranger = report(named, &key("//Stranger"), sign);
        let of = |named| report(named, &key("//User"), sign);
        let nobodys = "11111111-1111-1111-1111-111111111111";
        for (why, nothing) in [
            ("forged", forged),
            ("unsigned", unsigned),
            ("stranger", stranger),
            ("unknown", of((nobodys, &trusted))),
            ("compared with nothing", of((&cheated, nobodys))),
            ("compared with itself", of((&cheated, &cheated))),
            ("about the trusted miner", of((&trusted, &trusted))),
        ] {
            facilitator.push(nothing);
            // The link handles what comes in its order, so the report has been dealt with before the job.
            assert_eq!(statuses(&run().0), GOOD, "{why}");
        }

        for delivery in 1..=2 {
            facilitator.push(of(named));
            let (reason, by, _) = rejection(&run().0);
            let expected = (JobRejectionReason::NoMinerForJob, JobParticipantType::Validator);
            assert_eq!((reason, by), expected, "delivery {delivery}");
        }
        assert!(stop(validator).is_clean());
        assert!(facilitator.updates.try_recv().is_err(), "a report is not answered");
        let asked = peer.received.try_iter().filter(|m| matches!(m, ValidatorToMiner::V0InitialJobRequest(_))).count();
        assert_eq!(asked, 8);
        peer.stop();
        trusted_peer.stop();
        facilitator.stop();
    }
}

/// Jobs that it was asked to run since the last look.
fn asked(peer: &FakeMiner) -> usize {
    let messages = peer.received.try_iter();
    messages.filter(|message| matches!(message, ValidatorToMiner::V0InitialJobRequest(_))).count()
}

#[test]
fn a_trusted_miner_gets_the_jobs_that_ask_for_one_and_no_others() {
    let world = World::new();
    let facilitator = FakeFacilitator::start(&world);
    let peers = [1, 2].map(|port| FakeMiner::start(&world, port, 4, good()));
    let [ordinary, trusted] = [miner(1), trusted_miner(2)];
    let run = |miners: Vec<MinerAddress>, request: V2JobRequest| {
        let validator = start(&world, config(miners));
        facilitator.push(request.clone());
        let history = facilitator.history(&request.uuid);
        assert!(stop(validator).is_clean());
        history
    };
    let both = || vec![ordinary.clone(), trusted.clone()];
    for (request, expected) in [(job(&key("//User")), [1, 0]), (trusted_job(), [0, 1])] {
        assert_eq!(statuses(&run(both(), request)), GOOD);
        assert_eq!([asked(&peers[0]), asked(&peers[1])], expected);
    }
    for (miners, request, why) in [
        (vec![ordinary.clone()], trusted_job(), "the job asks for a trusted miner, and this validator knows none"),
        (vec![trusted.clone()], job(&key("//User")), "no miner that can be asked has executors of class"),
    ] {
        let (reason, by, message) = rejection(&run(miners, request));
        assert_eq!((reason, by), (JobRejectionReason::NoMinerForJob, JobParticipantType::Validator));
        assert!(message.contains(why), "{message}");
    }
    assert_eq!([asked(&peers[0]), asked(&peers[1])], [0, 0]);
    peers.into_iter().for_each(FakeMiner::stop);
    facilitator.stop();
}

#[test]
fn a_miner_that_does_not_answer_opens_its_breaker_and_stays_the_last_choice() {
    let world = World::new();
    let facilitator = FakeFacilitator::start(&world);
    let validator = start(&world, config(vec![miner(1)]));
    let run = || {
        let request = job(&key("//User"));
        facilitator.push(request.clone());
        facilitator.history(&request.uuid)
    };
    let shown = || validator.observer().miners().unwrap().remove(0);
    assert_eq!((shown().breaker, shown().numbers.reliability), (None, 1.0));
    for _ in 0..6 {
        assert_eq!(horde(&run()).0, HordeFailureReason::MinerConnectionFailed);
    }
    let miner_1 = shown();
    assert!(miner_1.breaker.as_ref().is_some_and(|line| line.starts_with("open for ")), "{miner_1:?}");
    assert_eq!(miner_1.last_error.as_ref().map(|incident| incident.kind), Some("unreachable"));
    assert!((5.9..=6.0).contains(&miner_1.numbers.incidents) && miner_1.manifest.is_none(), "{miner_1:?}");
    let explained = validator.observer().explain_miner(&miner(1).hotkey).unwrap();
    assert_eq!(explained.incidents.len(), 6);

    // It is asked all the same, because there is no other, and it answers again.
    let peer = FakeMiner::start(&world, 1, 4, good());
    assert_eq!(statuses(&run()), GOOD);
    let miner_1 = shown();
    assert!(miner_1.manifest.is_some() && miner_1.numbers.completed > 0.9, "{miner_1:?}");
    assert!(stop(validator).is_clean());
    peer.stop();
    facilitator.stop();
}

#[test]
fn a_miner_that_is_left_alone_by_hand_gets_no_job_while_there_is_another() {
    let world = World::new();
    let facilitator = FakeFacilitator::start(&world);
    let peers = [1, 2].map(|number| FakeMiner::start(&world, number, 4, good()));
    let validator = start(&world, config(vec![miner(1), miner(2)]));
    let breakers = validator.observer().breakers().unwrap();
    for (left_alone, expected) in [(1, [0, 4]), (2, [4, 0])] {
        breakers.force_open(&miner(left_alone).hotkey, Instant::now());
        for _ in 0..4 {
            let request = job(&key("//User"));
            facilitator.push(request.clone());
            assert_eq!(statuses(&facilitator.history(&request.uuid)), GOOD);
        }
        assert_eq!([asked(&peers[0]), asked(&peers[1])], expected);
        breakers.reset(&miner(left_alone).hotkey, Instant::now());
    }
    assert!(stop(validator).is_clean());
    peers.into_iter().for_each(FakeMiner::stop);
    facilitator.stop();
}

#[test]
fn a_wrong_configuration_starts_nothing_and_names_every_problem() {
    let world = World::new();
    let config =
        ValidatorConfig { workers: Some(0), ..ValidatorConfig::new("http://x", key("//Validator"), Vec::new()) };
    let error = Validator::start(config, Arc::new(world.net.dialer()), world.timer()).unwrap_err().to_string();
    assert!(error.contains("http://x") && error.contains("workers is 0") && error.contains("no miner"), "{error}");
}

#[test]
fn dropping_a_validator_stops_it() {
    let world = World::new();
    let facilitator = FakeFacilitator::start(&world);
    // It accepts a job and says nothing more.
    let script: Script = Arc::new(|session, message| {
        if let ValidatorToMiner::V0InitialJobRequest(initial) = message {
            accept(session, &initial.job_uuid);
        }
    });
    let peer = FakeMiner::start(&world, 1, 4, script);
    let validator = start(&world, config(vec![miner(1)]));
    facilitator.push(job(&key("//User")));
    while facilitator.updates.recv_timeout(LONG).expect("an update").status != S::Accepted {}
    drop(validator);
    peer.stop();
    facilitator.stop();
    // The world now finds no thread left.
}

/// Accepts each job, and ends it at once, before it began or long before its limit is over.
fn killer(began: bool) -> Script {
    Arc::new(move |session, message| match message {
        ValidatorToMiner::V0InitialJobRequest(initial) => {
            accept(session, &initial.job_uuid);
            if began {
                return ready(session, &initial.job_uuid);
            }
            session.say(V0JobFailedRequest {
                job_uuid: initial.job_uuid,
                message: "Job container timed out during execution".to_owned(),
                reason: JobFailureReason::Timeout,
                stage: JobStage::Execution,
                docker_process_exit_status: None,
                docker_process_stdout: None,
                docker_process_stderr: None,
                context: None,
            });
        }
        ValidatorToMiner::V0JobRequest(request) => session.say(V0HordeFailedRequest {
            job_uuid: request.job_uuid,
            reported_by: JobParticipantType::Executor,
            message: "too late".to_owned(),
            reason: HordeFailureReason::ExecutionTimedOut,
            context: None,
        }),
        _ => {}
    })
}

#[test]
fn a_miner_that_claims_to_have_much_and_kills_each_job_gets_one() {
    for began in [false, true] {
        let world = World::new();
        let facilitator = FakeFacilitator::start(&world);
        let hostile = FakeMiner::start(&world, 1, 10_000, killer(began));
        let honest = FakeMiner::start(&world, 2, 2, good());
        let validator = start(&world, config(vec![miner(1), miner(2)]));
        let ends: Vec<_> = (0..6)
            .map(|_| {
                let request = job(&key("//User"));
                facilitator.push(request.clone());
                statuses(&facilitator.history(&request.uuid))
            })
            .collect();
        let killed = ends.iter().filter(|statuses| **statuses != GOOD).count();
        assert_eq!(killed, usize::from(began), "a job that has not begun goes to the other miner: {ends:?}");
        let explained = validator.observer().explain_miner(&miner(1).hotkey).unwrap();
        let kinds: Vec<_> = explained.incidents.iter().map(|incident| incident.kind).collect();
        assert_eq!((kinds, explained.miner.numbers.reliability < 0.6), (vec!["failed"], true));
        assert!(stop(validator).is_clean());
        hostile.stop();
        honest.stop();
        facilitator.stop();
    }
}

/// A miner shows the started-receipt of a job that has ended, as if it still kept it busy.
#[test]
fn a_job_that_has_ended_excuses_a_miner_for_a_few_seconds_only() {
    for (after, expected) in [(Duration::from_secs(1), 0), (Duration::from_secs(12), 1)] {
        let clock = Clock::manual();
        let world = World::by(clock.clone());
        let facilitator = FakeFacilitator::start(&world);
        let first: Arc<Mutex<Option<Receipt>>> = Arc::default();
        let script: Script = Arc::new(move |session, message| match message {
            ValidatorToMiner::V0InitialJobRequest(initial) => {
                let mut first = first.lock().unwrap();
                let Some(receipt) = &*first else {
                    let payload = initial.job_started_receipt_payload;
                    let miner_signature = payload.sign(&key("//Miner1"));
                    let validator_signature = initial.job_started_receipt_signature;
                    *first = Some(Receipt { payload: payload.into(), validator_signature, miner_signature });
                    accept(session, &initial.job_uuid);
                    return ready(session, &initial.job_uuid);
                };
                session.say(V0DeclineJobRequest {
                    job_uuid: initial.job_uuid,
                    message: "busy".to_owned(),
                    reason: JobRejectionReason::Busy,
                    receipts: vec![receipt.clone()],
                    context: None,
                });
            }
            ValidatorToMiner::V0JobRequest(request) => {
                volumes(session, &request.job_uuid);
                done(session, &request.job_uuid);
                finish(session, &request.job_uuid);
            }
            _ => {}
        });
        let peer = FakeMiner::start(&world, 1, 1, script);
        let validator = start(&world, config(vec![miner(1)]));
        let run = || {
            let request = job(&key("//User"));
            facilitator.push(request.clone());
            statuses(&facilitator.history(&request.uuid))
        };
        assert_eq!(run(), GOOD);
        clock.advance(after);
        assert_eq!(run(), [S::Received, S::Rejected]);
        let explained = validator.observer().explain_miner(&miner(1).hotkey).unwrap();
        assert_eq!(explained.incidents.len(), expected, "{after:?}: {:?}", explained.incidents);
        assert!(stop(validator).is_clean());
        peer.stop();
        facilitator.stop();
    }
}
