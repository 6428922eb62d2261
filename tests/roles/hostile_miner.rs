//! A miner that says far too much, over loopback, to a validator with a state folder: it harms its own job alone.

use std::path::Path;
use std::sync::{Arc, Mutex};

use phalanx::base::stop::Stopping;
use phalanx::identity::KeyPair;
use phalanx::protocol::{
    DateTime, ExecutorClass, GenericError, HordeFailureReason, JobParticipantType, JobRejectionReason,
    JobStartedReceiptPayload, JobStatus, MachineSpecs, MinerToValidator, Receipt, SignedRequest, StreamingDetails,
    V0AcceptJobRequest, V0DeclineJobRequest, V0ExecutionDoneRequest, V0ExecutorReadyRequest, V0HordeFailedRequest,
    V0InitialJobRequest, V0JobFinishedRequest, V0JobStatusUpdate, V0MachineSpecsRequest, V0StreamingJobReadyRequest,
    V0VolumesReadyRequest, V2JobRequest, ValidatorToMiner,
};
use phalanx::store::receipts::ReceiptStore;
use phalanx::transport::Listener;
use phalanx::transport::ws::{WsDialer, WsListener};
use phalanx::validator::{MinerAddress, Validator, ValidatorConfig};

use crate::testkit::roles::{FakeFacilitator, FakeMiner, MinerSession, Script, World, job, now_ns, statuses};

use JobStatus as S;

const MIB: usize = 1 << 20;

fn key(uri: &str) -> KeyPair {
    KeyPair::from_uri(uri).unwrap()
}

/// A validator with one miner, and the facilitator that it reports to.
struct Scene {
    facilitator: FakeFacilitator,
    facilitator_url: String,
    miner: FakeMiner,
    address: MinerAddress,
    folder: tempfile::TempDir,
    // The last to go: it finds the threads that are left.
    world: World,
}

impl Scene {
    fn new(script: Script) -> Self {
        let world = World::new();
        let listener = WsListener::bind("127.0.0.1:0", None).unwrap();
        let facilitator_url = format!("{}/ws/v0/", listener.url());
        let facilitator = FakeFacilitator::start_on(&world, Box::new(listener));
        let listener = WsListener::bind("127.0.0.1:0", None).unwrap();
        let address = MinerAddress {
            hotkey: key("//Miner").public(),
            address: "127.0.0.1".to_owned(),
            port: listener.local_addr().port(),
            trusted: false,
            tls: false,
        };
        let miner = FakeMiner::start_on(&world, Box::new(listener), 1, script);
        Self { facilitator, facilitator_url, miner, address, folder: tempfile::tempdir().unwrap(), world }
    }

    fn validator(&self) -> Validator {
        let config = ValidatorConfig {
            trusted_signers: vec![key("//User").public()],
            known_validators: vec![key("//Other").public()],
            state_dir: Some(self.folder.path().to_owned()),
            ..ValidatorConfig::new(&self.facilitator_url, key("//Validator"), vec![self.address.clone()])
        };
        Validator::start(config, Arc::new(WsDialer::default()), self.world.timer()).unwrap()
    }

    fn run(&self, request: &V2JobRequest) -> Vec<V0JobStatusUpdate> {
        self.facilitator.push(request.clone());
        self.facilitator.history(&request.uuid)
    }

    /// Stops the validator, whose link to the facilitator was never cut.
    fn stop_validator(&self, validator: Validator) {
        let client = validator.observer().client().clone();
        assert_eq!(client.counted().connections.get(), 1, "the link was cut: {:?}", client.last_error());
        let mut stopping = Stopping::alone();
        validator.stop_in(&mut stopping);
        let report = stopping.finish();
        assert!(report.is_clean() && report.unsent == 0, "{report}");
    }

    fn stop(self) {
        self.miner.stop();
        self.facilitator.stop();
    }
}

fn bytes_in(folder: &Path) -> u64 {
    std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().metadata().unwrap().len()).sum()
}

fn accept(session: &MinerSession, uuid: &str) {
    session.say(V0AcceptJobRequest { job_uuid: uuid.to_owned() });
    session.say(V0ExecutorReadyRequest { job_uuid: uuid.to_owned(), executor_token: None });
}

fn finish(session: &MinerSession, uuid: &str) {
    session.say(V0VolumesReadyRequest { job_uuid: uuid.to_owned() });
    session.say(V0ExecutionDoneRequest { job_uuid: uuid.to_owned() });
    session.say(V0JobFinishedRequest {
        job_uuid: uuid.to_owned(),
        docker_process_stdout: "hi".to_owned(),
        docker_process_stderr: String::new(),
        artifacts: None,
        upload_results: None,
    });
}

const GOOD: [JobStatus; 6] =
    [S::Received, S::Accepted, S::ExecutorReady, S::VolumesReady, S::ExecutionDone, S::Completed];

#[test]
fn a_streaming_status_of_34_mib_ends_its_job_and_is_not_kept() {
    let script: Script = Arc::new(|session, message| match message {
        ValidatorToMiner::V0InitialJobRequest(initial) => accept(session, &initial.job_uuid),
        ValidatorToMiner::V0JobRequest(request) if request.docker_image == "streaming" => {
            session.say(V0VolumesReadyRequest { job_uuid: request.job_uuid.clone() });
            let mut ready = V0StreamingJobReadyRequest {
                job_uuid: request.job_uuid,
                executor_token: None,
                public_key: "x".repeat(34 * MIB),
                ip: Some("127.0.0.1".to_owned()),
                port: 4433.into(),
                miner_signature: None,
            };
            ready.sign(&key("//Miner"));
            session.say(ready);
        }
        ValidatorToMiner::V0JobRequest(request) => finish(session, &request.job_uuid),
        _ => {}
    });
    let scene = Scene::new(script);
    let validator = scene.validator();
    let mut streaming = job(&key("//User"));
    streaming.docker_image = "streaming".to_owned();
    streaming.streaming_details = Some(StreamingDetails { public_key: "pem".to_owned(), executor_ip: None });
    streaming.sign(&key("//User"), now_ns());
    let history = scene.run(&streaming);
    assert_eq!(statuses(&history), [S::Received, S::Accepted, S::ExecutorReady, S::VolumesReady, S::HordeFailed]);
    let details = history[4].metadata.as_ref().unwrap().horde_failure_details.clone().unwrap();
    assert_eq!((details.reason, details.reported_by), (HordeFailureReason::StreamingFailed, JobParticipantType::Miner));
    assert_eq!(details.message, "the streaming server's certificate has 35651584 bytes, not at most 16384");
    assert_eq!(statuses(&scene.run(&job(&key("//User")))), GOOD, "others go on");
    scene.stop_validator(validator);
    assert!(bytes_in(scene.folder.path()) < MIB as u64, "{} bytes are kept", bytes_in(scene.folder.path()));
    let validator = scene.validator();
    assert_eq!(statuses(&scene.run(&job(&key("//User")))), GOOD, "also after a restart");
    scene.stop_validator(validator);
    scene.stop();
}

#[test]
fn machine_specs_of_33_mib_error_texts_of_20_mib_and_deep_brackets_change_nothing() {
    let script: Script = Arc::new(|session, message| match message {
        ValidatorToMiner::V0InitialJobRequest(initial) => accept(session, &initial.job_uuid),
        ValidatorToMiner::V0JobRequest(request) if request.docker_image == "failing" => {
            session.say(V0HordeFailedRequest {
                job_uuid: request.job_uuid,
                reported_by: JobParticipantType::Miner,
                message: "no\n".repeat(7 * MIB),
                reason: HordeFailureReason::GenericError,
                context: serde_json::json!({"c": "x".repeat(10 * MIB)}).as_object().cloned(),
            });
        }
        ValidatorToMiner::V0JobRequest(request) => {
            let specs = serde_json::json!({"cpu": "x".repeat(33 * MIB)}).as_object().cloned().unwrap();
            let job_uuid = request.job_uuid.clone();
            session.say(V0MachineSpecsRequest { job_uuid, specs: MachineSpecs { specs } });
            session.say(GenericError { details: Some("e\n".repeat(10 * MIB)) });
            for open in ["[", "{\"a\":"] {
                session.text(open.repeat(10 * MIB / open.len()));
            }
            session.say(V0VolumesReadyRequest { job_uuid: "u".repeat(MIB) });
            finish(session, &request.job_uuid);
        }
        _ => {}
    });
    let scene = Scene::new(script);
    let validator = scene.validator();
    assert_eq!(statuses(&scene.run(&job(&key("//User")))), GOOD);
    let mut failing = job(&key("//User"));
    failing.docker_image = "failing".to_owned();
    failing.sign(&key("//User"), now_ns());
    let history = scene.run(&failing);
    assert_eq!(statuses(&history), [S::Received, S::Accepted, S::ExecutorReady, S::HordeFailed]);
    let details = history[3].metadata.as_ref().unwrap().horde_failure_details.clone().unwrap();
    let whole = 21 * MIB;
    assert!(details.message.ends_with(&format!("(cut, {whole} bytes in all)")) && details.message.len() < 10_000);
    assert!(details.context.unwrap().contains_key("left_out_by_validator"));
    let metrics = validator.observer().client().board().metrics.render();
    for line in [
        "phalanx_errors_total{class=\"rejected\",place=\"miner-message\"} 3\n",
        "phalanx_errors_total{class=\"rejected\",place=\"miner-report\"} 1\n",
        "phalanx_messages_received_total{peer=\"miner\",type=\"other\"} 2\n",
    ] {
        assert!(metrics.contains(line), "{line}{metrics}");
    }
    scene.stop_validator(validator);
    assert!(bytes_in(scene.folder.path()) < MIB as u64, "{} bytes are kept", bytes_in(scene.folder.path()));
    scene.stop();
}

/// A refusal as busy, with one receipt.
fn busy_with(job_uuid: String, receipt: Receipt) -> MinerToValidator {
    MinerToValidator::from(V0DeclineJobRequest {
        job_uuid,
        message: "all are busy".to_owned(),
        reason: JobRejectionReason::Busy,
        receipts: vec![receipt],
        context: None,
    })
}

/// The started-receipt of a job that it is asked for.
fn receipt_of(initial: &V0InitialJobRequest) -> Receipt {
    let payload = initial.job_started_receipt_payload.clone();
    let miner_signature = payload.sign(&key("//Miner"));
    let validator_signature = initial.job_started_receipt_signature.clone();
    Receipt { payload: payload.into(), validator_signature, miner_signature }
}

/// Declines as busy, with a receipt of a job that another validator has there.
fn busy(by: &'static str) -> Script {
    Arc::new(move |session, message| {
        let ValidatorToMiner::V0InitialJobRequest(initial) = message else { return };
        let earlier = DateTime::from_unix_micros(i64::try_from(now_ns() / 1000).unwrap() - 5_000_000);
        let payload = JobStartedReceiptPayload {
            job_uuid: uuid::Uuid::new_v4().to_string(),
            miner_hotkey: key("//Miner").ss58(),
            validator_hotkey: key(by).ss58(),
            timestamp: earlier,
            executor_class: ExecutorClass::AlwaysOnTest,
            is_organic: true,
            ttl: 30,
        };
        let (validator_signature, miner_signature) = (payload.sign(&key(by)), payload.sign(&key("//Miner")));
        let receipt = Receipt { payload: payload.into(), validator_signature, miner_signature };
        session.say(busy_with(initial.job_uuid, receipt));
    })
}

/// It has a started-receipt of each job that it was asked for, also of those that it has just declined.
#[test]
fn the_jobs_that_a_miner_has_declined_excuse_no_other() {
    let first: Arc<Mutex<Option<Receipt>>> = Arc::default();
    let script: Script = Arc::new(move |session, message| {
        let ValidatorToMiner::V0InitialJobRequest(initial) = message else { return };
        let receipt = first.lock().unwrap().get_or_insert_with(|| receipt_of(&initial)).clone();
        session.say(busy_with(initial.job_uuid, receipt));
    });
    let scene = Scene::new(script);
    let validator = scene.validator();
    for _ in 0..3 {
        assert_eq!(statuses(&scene.run(&job(&key("//User")))), [S::Received, S::Rejected]);
    }
    let explained = validator.observer().explain_miner(&key("//Miner").public()).unwrap();
    let kinds: Vec<_> = explained.incidents.iter().map(|incident| incident.kind).collect();
    assert_eq!(kinds, ["declined"; 3]);
    scene.stop_validator(validator);
    // Nor after a restart: the ledger knows that nobody took the first one.
    let validator = scene.validator();
    assert_eq!(statuses(&scene.run(&job(&key("//User")))), [S::Received, S::Rejected]);
    scene.stop_validator(validator);
    let store = ReceiptStore::open(&scene.folder.path().join("receipts.db"), 0).unwrap();
    assert!(store.since(0, 10).unwrap().is_empty());
    scene.stop();
}

#[test]
fn a_job_that_runs_excuses_its_miner_although_it_declines_that_later() {
    let first: Arc<Mutex<Option<Receipt>>> = Arc::default();
    let script: Script = Arc::new(move |session, message| match message {
        ValidatorToMiner::V0InitialJobRequest(initial) => {
            let known = first.lock().unwrap().replace(receipt_of(&initial));
            if known.is_none() {
                accept(session, &initial.job_uuid);
            }
            // Of the first job it is a word out of step.
            session.say(busy_with(initial.job_uuid.clone(), known.unwrap_or_else(|| receipt_of(&initial))));
        }
        ValidatorToMiner::V0JobRequest(request) => finish(session, &request.job_uuid),
        _ => {}
    });
    let scene = Scene::new(script);
    let validator = scene.validator();
    assert_eq!(statuses(&scene.run(&job(&key("//User")))), GOOD);
    assert_eq!(statuses(&scene.run(&job(&key("//User")))), [S::Received, S::Rejected]);
    let explained = validator.observer().explain_miner(&key("//Miner").public()).unwrap();
    assert!(explained.incidents.is_empty(), "{:?}", explained.incidents);
    scene.stop_validator(validator);
    let store = ReceiptStore::open(&scene.folder.path().join("receipts.db"), 0).unwrap();
    assert_eq!(store.since(0, 10).unwrap().len(), 1, "the receipt that excuses is kept");
    scene.stop();
}

#[test]
fn receipts_that_excuse_a_busy_miner_are_kept_and_others_are_not() {
    for (by, kept) in [("//Other", 1), ("//Eve", 0)] {
        let scene = Scene::new(busy(by));
        let validator = scene.validator();
        let history = scene.run(&job(&key("//User")));
        let details = history.last().unwrap().metadata.as_ref().unwrap().job_rejection_details.clone().unwrap();
        assert_eq!((details.reason, details.rejected_by), (JobRejectionReason::Busy, JobParticipantType::Miner));
        scene.stop_validator(validator);
        let store = ReceiptStore::open(&scene.folder.path().join("receipts.db"), 0).unwrap();
        let rows = store.since(0, 10).unwrap();
        assert_eq!(rows.len(), kept, "{by}: {rows:?}");
        assert!(rows.iter().all(|row| row.validator_hotkey == key(by).ss58()));
        scene.stop();
    }
}
