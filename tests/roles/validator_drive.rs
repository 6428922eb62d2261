//! The decisions about one organic job, without threads, sockets or clocks.

use std::sync::Arc;
use std::time::{Duration, Instant};

use phalanx::base::now::Now;
use phalanx::identity::{KeyPair, PublicKey};
use phalanx::protocol::{
    DateTime, ExecutorClass, HordeFailureReason, Int, JobFailureReason, JobParticipantType, JobRejectionReason,
    JobStage, JobStartedReceiptPayload, MinerToValidator, Receipt, StreamingDetails, V0AcceptJobRequest,
    V0DeclineJobRequest, V0ExecutionDoneRequest, V0ExecutorFailedRequest, V0ExecutorManifestRequest,
    V0ExecutorReadyRequest, V0HordeFailedRequest, V0JobFailedRequest, V0JobFinishedRequest, V0StreamingJobReadyRequest,
    V0VolumesReadyRequest, V2JobRequest, ValidatorToMiner,
};
use phalanx::validator::JobTimes;
use phalanx::validator::Outcome;
use phalanx::validator::drive::{Action, Drive, Input};
use phalanx::validator::routing::{MinerAddress, NoMiner};

use crate::testkit::miner::kind;
use crate::testkit::roles::job;

const S: Duration = Duration::from_secs(1);

const TIMES: JobTimes = JobTimes {
    connect: Duration::from_secs(15),
    reservation: Duration::from_secs(7),
    executor_startup: Duration::from_secs(5),
    leeway: Duration::from_secs(5),
    margin: Duration::from_secs(10),
};

struct Fixture {
    drive: Drive,
    uuid: String,
    now: Now,
}

impl Fixture {
    /// A job with limits of a minute for each stage.
    fn new() -> Self {
        Self::with(job(&user()), None)
    }

    fn with(request: V2JobRequest, begun_on: Option<PublicKey>) -> Self {
        let uuid = request.uuid.clone();
        let alice = KeyPair::from_uri("//Alice").unwrap();
        let drive = Drive::new(alice, TIMES, Arc::new(request), &[], begun_on);
        Self { drive, uuid, now: Now { mono: Instant::now(), wall: 1_700_000_000 * S } }
    }

    fn handle(&mut self, input: Input) -> Vec<String> {
        self.drive.handle(input, self.now).iter().map(brief).collect()
    }

    fn reserved(&mut self, uri: &str) -> Vec<String> {
        self.handle(Input::Reserved(Ok(address(uri))))
    }

    fn says(&mut self, message: impl Into<MinerToValidator>) -> Vec<String> {
        self.handle(Input::Message(Box::new(message.into())))
    }

    fn manifest(&mut self, executors: i64) -> Vec<String> {
        let manifest = [(ExecutorClass::AlwaysOnTest, Int::from(executors))].into_iter().collect();
        self.says(V0ExecutorManifestRequest { manifest })
    }

    fn accept(&mut self) -> Vec<String> {
        let job_uuid = self.uuid.clone();
        self.says(V0AcceptJobRequest { job_uuid })
    }

    fn decline(&mut self) -> Vec<String> {
        let job_uuid = self.uuid.clone();
        self.says(V0DeclineJobRequest {
            job_uuid,
            reason: JobRejectionReason::Busy,
            message: "all are busy".to_owned(),
            context: None,
            receipts: Vec::new(),
        })
    }

    fn ready(&mut self) -> Vec<String> {
        let job_uuid = self.uuid.clone();
        self.says(V0ExecutorReadyRequest { job_uuid, executor_token: None })
    }

    fn volumes(&mut self) -> Vec<String> {
        let job_uuid = self.uuid.clone();
        self.says(V0VolumesReadyRequest { job_uuid })
    }

    fn done(&mut self) -> Vec<String> {
        let job_uuid = self.uuid.clone();
        self.says(V0ExecutionDoneRequest { job_uuid })
    }

    fn finished(&mut self, stdout: &str) -> Vec<String> {
        let job_uuid = self.uuid.clone();
        self.says(V0JobFinishedRequest {
            job_uuid,
            docker_process_stdout: stdout.to_owned(),
            docker_process_stderr: String::new(),
            artifacts: None,
            upload_results: None,
        })
    }

    /// As far as the reservation on `//Bob`.
    fn asked() -> Self {
        let mut f = Self::new();
        f.handle(Input::Start);
        f.reserved("//Bob");
        f.manifest(1);
        f
    }

    /// As far as the start of the executor on `//Bob`.
    fn accepted() -> Self {
        let mut f = Self::asked();
        f.accept();
        f
    }

    fn left(&self) -> Option<Duration> {
        self.drive.next_wake().map(|at| at - self.now.mono)
    }

    /// The deadline of the present stage passes.
    fn expire(&mut self) -> Vec<String> {
        self.now = self.now + self.left().expect("a stage has a deadline");
        self.handle(Input::Tick)
    }
}

fn user() -> KeyPair {
    KeyPair::from_uri("//Dave").unwrap()
}

fn public(uri: &str) -> PublicKey {
    KeyPair::from_uri(uri).unwrap().public()
}

fn address(uri: &str) -> MinerAddress {
    MinerAddress { hotkey: public(uri), address: "127.0.0.1".to_owned(), port: 1, trusted: false, tls: false }
}

/// For the start of an executor of the jobs' class.
fn start_up() -> Duration {
    ExecutorClass::AlwaysOnTest.spin_up_time() + TIMES.executor_startup
}

/// The name of a development key.
fn name(key: &PublicKey) -> &'static str {
    let names = ["//Bob", "//Charlie", "//Eve", "//Ferdie"];
    names.into_iter().find(|uri| public(uri) == *key).expect("one of the test's miners")
}

fn brief(action: &Action) -> String {
    match action {
        Action::WaitUntilKnown => "wait".to_owned(),
        Action::Reserve { same, avoid } => {
            let same = same.as_ref().map(|key| format!(" same {}", name(key))).unwrap_or_default();
            let avoid: Vec<_> = avoid.iter().map(name).collect();
            format!("reserve{same} not [{}]", avoid.join(" "))
        }
        Action::Connect(miner) => format!("connect {}", name(&miner.hotkey)),
        Action::Send(message) => match message.as_ref() {
            ValidatorToMiner::V0JobFinishedReceiptRequest(receipt) => format!("receipt {}", receipt.payload.score_str),
            message => format!("send {}", kind(&message.encode())),
        },
        Action::Manifest(miner, manifest) => format!("manifest {} {}", name(miner), manifest.len()),
        Action::Report(status) => format!("report {status}"),
        Action::StreamingReady(_) => "report streaming_ready".to_owned(),
        Action::RunsOn(miner) => format!("runs on {}", name(miner)),
        Action::MachineSpecs(specs) => format!("specs {}", specs.batch_id),
        Action::Confirm(miner, uuid) => format!("confirm {uuid} to {}", name(miner)),
        Action::Excused(miner, receipts) => format!("{} excused by {}", name(miner), receipts.len()),
        Action::CoolDown(miner) => format!("cool down {}", name(miner)),
        Action::Completed(miner) => format!("completed by {}", name(miner)),
        Action::Incident(miner, incident, _) => format!("{} {}", incident.name(), name(miner)),
        Action::Error(place, _) => format!("{place} error"),
        Action::Release => "release".to_owned(),
        Action::End(outcome) => format!("end {}", end(outcome)),
        Action::Cancelled => "cancelled".to_owned(),
        Action::Close => "close".to_owned(),
    }
}

fn lost() -> Input {
    Input::Lost { why: "reset".to_owned() }
}

fn not_connected(why: &str, refused: bool, cut: bool) -> Input {
    Input::ConnectFailed { why: why.to_owned(), refused, cut }
}

fn end(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Completed(result) => format!("completed {}", result.docker_process_stdout),
        Outcome::Rejected(details) => {
            format!("rejected {} by {}", details.reason.as_str(), details.rejected_by.as_str())
        }
        Outcome::Failed(details) => format!("failed {}", details.message),
        Outcome::HordeFailed(details) => format!("horde_failed {}: {}", details.reason.as_str(), details.message),
    }
}

#[test]
fn a_job_runs_on_a_miner_from_its_choice_to_its_end() {
    let mut f = Fixture::new();
    assert_eq!(f.handle(Input::Start), ["wait", "reserve not []"]);
    assert_eq!(f.drive.next_wake(), None, "it has no miner yet");
    assert_eq!(f.reserved("//Bob"), ["connect //Bob"]);
    assert_eq!(f.left(), Some(15 * S));
    assert_eq!(f.manifest(2), ["manifest //Bob 1", "send InitialJob"]);
    assert_eq!(f.left(), Some(7 * S));
    assert_eq!(f.accept(), ["report accepted", "runs on //Bob", "send JobAcceptedReceipt"]);
    assert_eq!(f.left(), Some(start_up()));
    assert_eq!(f.ready(), ["report executor_ready", "send Job"]);
    assert_eq!(f.left(), Some((65 + 10) * S), "the leeway, the first stage, and what the miner's report may take");
    assert_eq!(f.volumes(), ["report volumes_ready"]);
    assert_eq!(f.left(), Some((125 + 10) * S), "time that is saved is there for the next stage");
    assert_eq!(f.done(), ["report execution_done"]);
    assert_eq!(f.finished("out"), ["receipt 1.000000", "completed by //Bob", "release", "end completed out", "close"]);
    assert_eq!(f.drive.next_wake(), None);
    assert_eq!(f.finished("again"), [""; 0], "what comes after the end changes nothing");
}

/// A streaming job whose volumes are there, and what its miner then says of the server.
fn streaming() -> (Fixture, V0StreamingJobReadyRequest) {
    let mut request = job(&user());
    request.streaming_details = Some(StreamingDetails { public_key: "PEM".to_owned(), executor_ip: None });
    let mut f = Fixture::with(request, None);
    f.handle(Input::Start);
    f.reserved("//Bob");
    f.manifest(1);
    f.accept();
    f.ready();
    assert_eq!(f.volumes(), ["report volumes_ready"]);
    let ready = V0StreamingJobReadyRequest {
        job_uuid: f.uuid.clone(),
        executor_token: None,
        public_key: "-----BEGIN CERTIFICATE-----".to_owned(),
        ip: Some("203.0.113.7".to_owned()),
        port: 6006.into(),
        miner_signature: None,
    };
    (f, ready)
}

#[test]
fn a_streaming_server_is_reported_if_its_miner_has_signed_it() {
    let bob = KeyPair::from_uri("//Bob").unwrap();
    let (mut f, mut ready) = streaming();
    assert_eq!(f.left(), Some(135 * S), "leeway, download, start of the server, and what it lets its miner");
    ready.sign(&bob);
    let actions = f.drive.handle(Input::Message(Box::new(ready.clone().into())), f.now);
    let [Action::StreamingReady(details)] = actions.as_slice() else { panic!("{actions:?}") };
    assert_eq!(details.streaming_server_cert.as_deref(), Some("-----BEGIN CERTIFICATE-----"));
    assert_eq!(details.streaming_server_address.as_deref(), Some("203.0.113.7"));
    assert_eq!(details.streaming_server_port, Some(6006.into()));
    assert_eq!(f.left(), Some(195 * S));
    assert_eq!(f.says(ready), [""; 0], "once");
    assert_eq!(f.done(), ["report execution_done"]);
    assert_eq!(f.finished("out"), ["receipt 1.000000", "completed by //Bob", "release", "end completed out", "close"]);
}

#[test]
fn a_streaming_server_that_is_not_signed_or_has_no_size_of_one_fails_the_job_as_the_miner_s_fault() {
    type Change = fn(&mut V0StreamingJobReadyRequest);
    let cases: [(&str, &str, Change); 7] = [
        ("no signature", "not signed by the miner", |ready| ready.miner_signature = None),
        ("another's", "not signed by the miner", |ready| ready.sign(&KeyPair::from_uri("//Eve").unwrap())),
        ("changed after it", "not signed by the miner", |ready| ready.ip = Some("198.51.100.1".to_owned())),
        ("34 MiB", "certificate has 35651584 bytes, not at most 16384", |ready| {
            ready.public_key = "x".repeat(34 << 20)
        }),
        ("long address", "address has 257 bytes, not at most 256", |ready| ready.ip = Some("x".repeat(257))),
        ("no port", "port is none", |ready| ready.port = 0.into()),
        ("too high a port", "port is none", |ready| ready.port = 65_536.into()),
    ];
    for (case, expected, change) in cases {
        let (mut f, mut ready) = streaming();
        ready.sign(&KeyPair::from_uri("//Bob").unwrap());
        change(&mut ready);
        let actions = f.says(ready);
        assert!(!actions.iter().any(|action| action.starts_with("report")), "{case}: {actions:?}");
        let end = actions.iter().find(|action| action.starts_with("end ")).unwrap();
        assert!(end.starts_with("end horde_failed streaming_failed: ") && end.contains(expected), "{case}: {end}");
        assert!(end.len() < 300, "{case}: {end:.300}");
    }
}

#[test]
fn a_job_whose_uuid_no_receipt_can_hold_is_rejected_before_anybody_is_asked() {
    for uuid in ["nonsense", "7F0E1C1C-5A5B-4C5D-8E8F-0123456789AB", "{7f0e1c1c-5a5b-4c5d-8e8f-0123456789ab}"] {
        let mut request = job(&user());
        request.uuid = uuid.to_owned();
        let mut f = Fixture::with(request, None);
        assert_eq!(f.handle(Input::Start), ["end rejected unknown by validator"]);
    }
}

#[test]
fn miners_are_asked_in_turn_and_the_last_refusal_counts() {
    let mut f = Fixture::new();
    f.handle(Input::Start);
    f.reserved("//Bob");
    f.manifest(1);
    let refused = ["receipt 0.000000", "declined //Bob", "cool down //Bob", "close", "release", "reserve not [//Bob]"];
    assert_eq!(f.decline(), refused);
    // One that cannot be reached got no request, so it gets no receipt.
    f.reserved("//Charlie");
    let failed = f.handle(not_connected("refused", false, false));
    assert_eq!(
        failed,
        ["unreachable //Charlie", "cool down //Charlie", "close", "release", "reserve not [//Bob //Charlie]"]
    );
    // One without the class does not count.
    f.reserved("//Eve");
    assert_eq!(f.manifest(0), ["manifest //Eve 1", "close", "release", "reserve not [//Bob //Charlie //Eve]"]);
    f.reserved("//Ferdie");
    let last = f.expire();
    assert_eq!(last[..4], ["unreachable //Ferdie", "cool down //Ferdie", "close", "release"]);
    assert!(
        last[4].starts_with("end horde_failed miner_connection_failed") && last[4].ends_with("no connection in time")
    );
    assert_eq!(last.len(), 5);
}

#[test]
fn a_miner_that_is_busy_is_excused_by_as_many_receipts_as_its_first_manifest_has_executors() {
    let decline = |later: &[i64], declined_before: bool| {
        let mut f = Fixture::new();
        f.handle(Input::Start);
        f.reserved("//Bob");
        f.manifest(2);
        later.iter().for_each(|executors| drop(f.manifest(*executors)));
        let asked = i64::try_from(f.now.wall.as_micros()).unwrap();
        let payload = |job: u8| JobStartedReceiptPayload {
            job_uuid: format!("00000000-0000-4000-8000-0000000000{job:02}"),
            miner_hotkey: public("//Bob").to_ss58(),
            validator_hotkey: public("//Alice").to_ss58(),
            timestamp: DateTime::from_unix_micros(asked - 5_000_000),
            executor_class: ExecutorClass::AlwaysOnTest,
            is_organic: true,
            ttl: 30,
        };
        let receipt = |job: u8| {
            let [validator_signature, miner_signature] =
                ["//Alice", "//Bob"].map(|uri| payload(job).sign(&KeyPair::from_uri(uri).unwrap()));
            Receipt { payload: payload(job).into(), validator_signature, miner_signature }
        };
        if declined_before {
            f.drive.not_running(vec![payload(1).job_uuid]);
        }
        let receipts = if later.is_empty() { vec![receipt(1), receipt(2)] } else { vec![receipt(1)] };
        let job_uuid = f.uuid.clone();
        let (message, reason) = ("all are busy".to_owned(), JobRejectionReason::Busy);
        let says = f.says(V0DeclineJobRequest { job_uuid, reason, message, context: None, receipts });
        (says[0].clone(), says.contains(&"declined //Bob".to_owned()))
    };
    assert_eq!(decline(&[], false), ("//Bob excused by 2".to_owned(), false));
    assert!(decline(&[1], false).1, "one receipt for two executors, whatever it says later");
    assert!(decline(&[], true).1, "one of them tells of a job that does not run there");
}

#[test]
fn a_miner_that_offers_nothing_at_all_is_in_trouble_and_not_the_job() {
    let mut f = Fixture::new();
    f.handle(Input::Start);
    f.reserved("//Bob");
    // It is asked all the same, because only its refusal says why.
    let nothing = f.says(V0ExecutorManifestRequest { manifest: Default::default() });
    assert!(nothing[0] == "manifest //Bob 0" && nothing.len() == 2, "{nothing:?}");
    let refused = f.decline();
    assert!(refused.iter().all(|action| !action.starts_with("incident")), "it has promised nothing: {refused:?}");
    let end = f.handle(Input::Reserved(Err(NoMiner::None)));
    assert!(end[0].starts_with("end horde_failed miner_connection_failed"), "{end:?}");
    assert!(end[0].ends_with("it offers no executors at present: all are busy"), "{end:?}");
}

#[test]
fn a_paused_miner_rejects_the_job_with_its_note_and_is_not_blamed() {
    let mut f = Fixture::new();
    f.handle(Input::Start);
    f.reserved("//Bob");
    f.says(V0ExecutorManifestRequest { manifest: Default::default() });
    let job_uuid = f.uuid.clone();
    let (reason, message) = (JobRejectionReason::Busy, "this miner is paused: new disk".to_owned());
    let context = Some(V0DeclineJobRequest::pause_context());
    let refused = f.says(V0DeclineJobRequest { job_uuid, reason, message, context, receipts: Vec::new() });
    assert!(refused.iter().all(|action| !action.starts_with("incident")), "{refused:?}");
    let end = f.handle(Input::Reserved(Err(NoMiner::None)));
    assert_eq!(end, ["end rejected busy by miner"]);
}

#[test]
fn without_a_miner_it_ends_as_the_last_one_answered_or_as_the_choice_says() {
    for (why, reported) in [(NoMiner::None, "no_miner_for_job"), (NoMiner::Busy, "busy")] {
        let mut f = Fixture::new();
        f.handle(Input::Start);
        assert_eq!(f.handle(Input::Reserved(Err(why))), [format!("end rejected {reported} by validator")]);
        let mut f = Fixture::asked();
        f.decline();
        assert_eq!(f.handle(Input::Reserved(Err(why))), ["end rejected busy by miner"]);
    }
}

/// Each stage, and how a job ends of which nothing is received in it.
#[test]
fn each_stage_has_its_own_end_when_nothing_comes() {
    type Step = fn(&mut Fixture) -> Vec<String>;
    let steps: [(Step, HordeFailureReason, &str); 4] = [
        (Fixture::accept, HordeFailureReason::ExecutorReadinessResponseTimedOut, "the executor's readiness"),
        (Fixture::ready, HordeFailureReason::VolumesTimedOut, "the volumes"),
        (Fixture::volumes, HordeFailureReason::ExecutionTimedOut, "the end of the execution"),
        (Fixture::done, HordeFailureReason::FinalResponseTimedOut, "the results"),
    ];
    let first = (0, HordeFailureReason::InitialResponseTimedOut, "the answer to the initial request");
    let rest = steps.iter().enumerate().map(|(at, (_, reason, what))| (at + 1, *reason, *what));
    for (count, reason, what) in std::iter::once(first).chain(rest) {
        let mut f = Fixture::asked();
        for (step, ..) in &steps[..count] {
            step(&mut f);
        }
        assert_eq!(f.handle(Input::Tick), [""; 0], "it is not due yet");
        let reported = format!("end horde_failed {}: waiting for {what} took too long", reason.as_str());
        assert_eq!(f.expire(), ["receipt 0.000000", "timed_out //Bob", "release", &reported, "close"]);
    }
}

#[test]
fn a_lost_connection_is_no_end_and_is_named_when_the_time_is_over() {
    let mut f = Fixture::asked();
    assert_eq!(f.handle(lost()), [""; 0]);
    assert_eq!(f.manifest(1), ["manifest //Bob 1", "send InitialJob"], "the request may have been lost");
    f.accept();
    assert_eq!(f.handle(not_connected("no route", false, false)), [""; 0]);
    assert_eq!(f.manifest(1), ["manifest //Bob 1"], "it has the job");
    assert!(f.expire()[3].ends_with("took too long (last trouble: no route)"));
    // A miner that answers and does not want us any more ends it.
    let mut f = Fixture::accepted();
    let refused = f.handle(not_connected("403", true, false));
    assert!(refused[3].starts_with("end horde_failed miner_connection_failed: miner") && refused[3].ends_with(": 403"));
}

/// What each stage sends again, because it may have been lost with the old connection.
#[test]
fn after_a_reconnect_what_the_miner_may_not_have_is_sent_again() {
    let mut f = Fixture::asked();
    let back = |f: &mut Fixture| {
        assert_eq!(f.handle(lost()), [""; 0]);
        assert_eq!(f.handle(not_connected("reset", false, true)), [""; 0]);
        let sent = f.manifest(1);
        assert_eq!(f.manifest(1), ["manifest //Bob 1"], "once for each connection");
        sent
    };
    assert_eq!(f.handle(lost()), [""; 0]);
    assert_eq!(f.manifest(1), ["manifest //Bob 1", "send InitialJob"]);
    f.accept();
    assert_eq!(back(&mut f), ["manifest //Bob 1", "send JobAcceptedReceipt"]);
    f.ready();
    assert_eq!(back(&mut f), ["manifest //Bob 1", "send JobAcceptedReceipt", "send Job"]);
    assert_eq!(back(&mut f), ["manifest //Bob 1", "send Job"], "a Python miner takes no receipt for ever");
    f.volumes();
    // By it the miner knows who wants the news of the job.
    assert_eq!(back(&mut f), ["manifest //Bob 1", "send Job"]);
    f.done();
    assert_eq!(back(&mut f), ["manifest //Bob 1", "send Job"]);
    assert_eq!(f.finished("out"), ["receipt 1.000000", "completed by //Bob", "release", "end completed out", "close"]);
}

#[test]
fn time_without_a_connection_counts_against_no_stage_but_is_limited_in_all() {
    let mut f = Fixture::asked();
    let left = f.left().unwrap();
    f.handle(lost());
    assert_eq!(f.left(), Some(left + 30 * S));
    f.now = f.now + 10 * S;
    assert_eq!(f.handle(not_connected("reset", false, true)), [""; 0]);
    f.manifest(1);
    assert_eq!(f.left(), Some(left), "the reservation has what it had");
    f.accept();
    f.ready();
    f.handle(lost());
    f.now = f.now + 15 * S;
    f.manifest(1);
    assert_eq!(f.left(), Some(75 * S));
    f.volumes();
    assert_eq!(f.left(), Some((75 + 60) * S), "and so have the stages after it");
    f.handle(lost());
    assert_eq!(f.left(), Some((75 + 60 + 5) * S), "of the 30 s, 5 are left");
    f.now = f.now + 7 * S;
    f.manifest(1);
    assert_eq!(f.left(), Some((75 + 60 + 5 - 7) * S));
    f.handle(lost());
    assert!(f.expire()[3].ends_with("took too long (last trouble: reset)"));
}

#[test]
fn a_miner_that_is_there_but_cut_off_is_tried_again_until_the_time_to_connect_is_over() {
    let mut f = Fixture::new();
    f.handle(Input::Start);
    f.reserved("//Bob");
    assert_eq!(f.handle(not_connected("reset", false, true)), [""; 0]);
    f.now = f.now + 10 * S;
    assert_eq!(f.manifest(1), ["manifest //Bob 1", "send InitialJob"]);
    let mut f = Fixture::new();
    f.handle(Input::Start);
    f.reserved("//Bob");
    f.handle(not_connected("reset", false, true));
    assert_eq!(f.expire()[..4], ["unreachable //Bob", "cool down //Bob", "close", "release"]);
}

#[test]
fn the_outcome_of_another_job_is_confirmed_and_changes_nothing() {
    let mut f = Fixture::accepted();
    let failed = V0ExecutorFailedRequest { job_uuid: "another".to_owned(), executor_token: None };
    assert_eq!(f.says(failed), ["confirm another to //Bob"]);
    assert_eq!(f.says(V0VolumesReadyRequest { job_uuid: "another".to_owned() }), [""; 0]);
}

#[test]
fn what_cannot_be_sent_ends_the_job_and_a_receipt_that_cannot_be_sent_does_not() {
    let mut f = Fixture::accepted();
    let reported = "end horde_failed miner_connection_failed: full";
    assert_eq!(f.handle(Input::NotSent("full".to_owned())), ["receipt 0.000000", "release", reported, "close"]);
    assert_eq!(f.handle(Input::NotSent("full".to_owned())), ["finished-receipt error"], "it is told, and no more");
}

#[test]
fn a_repeat_or_a_message_of_another_job_changes_nothing() {
    let mut f = Fixture::accepted();
    let left = f.left();
    assert_eq!(f.accept(), [""; 0]);
    assert_eq!(f.done(), [""; 0], "the executor is not ready yet");
    assert_eq!(f.says(V0VolumesReadyRequest { job_uuid: "another".to_owned() }), [""; 0]);
    assert_eq!(f.left(), left);
    let job_uuid = f.uuid.clone();
    let failed = f.says(V0ExecutorFailedRequest { job_uuid, executor_token: None });
    assert_eq!(failed[1], "failed //Bob");
}

/// What a miner says of a job that was not requested yet.
fn job_failed(f: &Fixture, reason: JobFailureReason, stage: JobStage) -> V0JobFailedRequest {
    V0JobFailedRequest {
        job_uuid: f.uuid.clone(),
        message: "no".to_owned(),
        reason,
        stage,
        docker_process_exit_status: None,
        docker_process_stdout: None,
        docker_process_stderr: None,
        context: None,
    }
}

fn horde_failed(f: &Fixture, reason: HordeFailureReason) -> V0HordeFailedRequest {
    let reported_by = JobParticipantType::Executor;
    V0HordeFailedRequest { job_uuid: f.uuid.clone(), reported_by, message: "no".to_owned(), reason, context: None }
}

const NEXT: [&str; 4] = ["cool down //Bob", "close", "release", "reserve not [//Bob]"];

#[test]
fn a_failure_before_the_job_request_is_the_miner_s_fault_and_another_miner_gets_the_job() {
    use JobFailureReason as R;
    let says: [fn(&Fixture) -> MinerToValidator; 6] = [
        |f| job_failed(f, R::Timeout, JobStage::Execution).into(),
        |f| job_failed(f, R::Timeout, JobStage::ExecutorStartup).into(),
        |f| job_failed(f, R::NonzeroReturnCode, JobStage::ExecutorStartup).into(),
        |f| horde_failed(f, HordeFailureReason::ExecutionTimedOut).into(),
        |f| horde_failed(f, HordeFailureReason::StreamingFailed).into(),
        |f| V0ExecutorFailedRequest { job_uuid: f.uuid.clone(), executor_token: None }.into(),
    ];
    for says in says {
        let mut f = Fixture::accepted();
        let said = says(&f);
        assert_eq!(f.says(said.clone()), [["receipt 0.000000", "failed //Bob"].as_slice(), &NEXT].concat(), "{said:?}");
        f.reserved("//Charlie");
        f.manifest(1);
        assert_eq!(f.accept(), ["runs on //Charlie", "send JobAcceptedReceipt"], "it is accepted already");
        f.ready();
        f.volumes();
        f.done();
        let end = ["receipt 1.000000", "completed by //Charlie", "release", "end completed out", "close"];
        assert_eq!(f.finished("out"), end);
        // It had not even accepted it.
        let mut f = Fixture::asked();
        let said = says(&f);
        if !matches!(said, MinerToValidator::V0JobFailedRequest(_)) {
            assert_eq!(f.says(said)[1..], [["failed //Bob"].as_slice(), &NEXT].concat());
        }
    }
}

#[test]
fn a_job_that_nobody_else_takes_ends_as_the_miner_said_that_had_accepted_it() {
    let mut f = Fixture::accepted();
    f.says(job_failed(&f, JobFailureReason::DownloadFailed, JobStage::ExecutorStartup));
    f.reserved("//Charlie");
    f.manifest(1);
    f.decline();
    assert_eq!(f.handle(Input::Reserved(Err(NoMiner::Busy))), ["end failed no"]);
}

#[test]
fn a_job_that_fails_by_its_own_fault_counts_against_nobody() {
    use JobFailureReason as R;
    // Its image may be what is wrong: another miner may tell.
    for (reason, after) in [(R::DownloadFailed, 0), (R::Unknown, 0), (R::Timeout, 5)] {
        let mut f = Fixture::accepted();
        f.now = f.now + after * S;
        let failed = job_failed(&f, reason, JobStage::ExecutorStartup);
        assert_eq!(f.says(failed), [["receipt 0.000000"].as_slice(), &NEXT].concat());
        f.reserved("//Charlie");
        f.manifest(1);
        f.accept();
        let failed = job_failed(&f, R::DownloadFailed, JobStage::ExecutorStartup);
        assert_eq!(f.says(failed)[..2], ["receipt 0.000000", "cool down //Charlie"]);
        assert_eq!(f.handle(Input::Reserved(Err(NoMiner::None))), ["end failed no"]);
    }
    // Where another miner completes it, that was not so.
    let mut f = Fixture::accepted();
    f.says(job_failed(&f, R::DownloadFailed, JobStage::ExecutorStartup));
    f.reserved("//Charlie");
    f.manifest(1);
    f.accept();
    f.ready();
    let end = ["receipt 1.000000", "completed by //Charlie", "failed //Bob", "release", "end completed out", "close"];
    assert_eq!(f.finished("out"), end);
    // And while it runs.
    for (reason, stage, after) in [
        (R::NonzeroReturnCode, JobStage::Execution, 0),
        (R::DownloadFailed, JobStage::VolumeDownload, 0),
        (R::UploadFailed, JobStage::ResultUpload, 0),
        (R::Timeout, JobStage::Execution, 60),
    ] {
        let mut f = Fixture::accepted();
        f.ready();
        f.now = f.now + after * S;
        let failed = job_failed(&f, reason, stage);
        assert_eq!(f.says(failed), ["receipt 0.000000", "release", "end failed no", "close"], "{reason}");
    }
}

#[test]
fn a_limit_that_is_over_long_before_it_can_be_is_not_believed() {
    let ended = |after: Duration, said: fn(&Fixture) -> MinerToValidator| {
        let mut f = Fixture::accepted();
        f.ready();
        f.volumes();
        f.now = f.now + after;
        let says = f.says(said(&f));
        assert!(says.iter().any(|action| action.starts_with("end ")), "{says:?}");
        says.contains(&"failed //Bob".to_owned())
    };
    let says: [fn(&Fixture) -> MinerToValidator; 4] = [
        |f| horde_failed(f, HordeFailureReason::ExecutionTimedOut).into(),
        |f| horde_failed(f, HordeFailureReason::VolumesTimedOut).into(),
        |f| horde_failed(f, HordeFailureReason::FinalResponseTimedOut).into(),
        |f| job_failed(f, JobFailureReason::Timeout, JobStage::Execution).into(),
    ];
    for says in says {
        assert!(ended(Duration::from_millis(18), says) && ended(29 * S, says) && !ended(60 * S, says));
    }
    // Of a job that it has had since before nobody here knows how far it is.
    let mut f = Fixture::with(job(&user()), Some(public("//Bob")));
    f.handle(Input::Start);
    f.reserved("//Bob");
    f.manifest(1);
    f.accept();
    f.ready();
    let late = horde_failed(&f, HordeFailureReason::ExecutionTimedOut);
    assert_eq!(f.says(late)[..2], ["receipt 0.000000", "release"]);
}

#[test]
fn a_cancelled_job_gets_no_receipt_where_others_go_on_with_it() {
    let mut f = Fixture::accepted();
    let cancelled = f.handle(Input::Cancel { goes_on: false });
    assert_eq!(cancelled, ["receipt 0.000000", "release", "cancelled", "close"]);
    let mut f = Fixture::accepted();
    assert_eq!(f.handle(Input::Cancel { goes_on: true }), ["release", "cancelled", "close"]);
    let mut f = Fixture::new();
    f.handle(Input::Start);
    f.reserved("//Bob");
    assert_eq!(f.handle(Input::Cancel { goes_on: false }), ["release", "cancelled", "close"], "it was not asked yet");
}

#[test]
fn a_job_that_was_begun_before_goes_on_where_it_was_and_catches_up() {
    let mut f = Fixture::with(job(&user()), Some(public("//Bob")));
    assert_eq!(f.handle(Input::Start), ["wait", "reserve same //Bob not []"]);
    f.reserved("//Bob");
    f.manifest(1);
    f.accept();
    assert_eq!(f.left(), Some(start_up() + (5 + 4 * 60 + 10) * S), "all its stages count");
    // Where it is, only the miner knows.
    assert_eq!(f.done(), ["report execution_done"]);
    assert_eq!(f.finished("out"), ["receipt 1.000000", "completed by //Bob", "release", "end completed out", "close"]);
    // Another miner begins from the start.
    let mut f = Fixture::with(job(&user()), Some(public("//Bob")));
    f.handle(Input::Start);
    f.reserved("//Charlie");
    f.manifest(1);
    f.accept();
    assert_eq!(f.left(), Some(start_up()));
    assert_eq!(f.done(), [""; 0]);
}
