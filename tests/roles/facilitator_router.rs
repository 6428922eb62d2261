//! The facilitator's decisions, without threads, sockets or clocks.

use std::time::{Duration, Instant};

use phalanx::base::ids::SessionId;
use phalanx::base::now::Now;
use phalanx::facilitator::router::{
    Action, Change, Dispatch, Frame, Handled, Input, MessageKind, Router, RouterConfig, job_time,
};
use phalanx::identity::KeyPair;
use phalanx::protocol::{
    FacilitatorToValidator, HordeFailureReason, JobParticipantType, JobStatus, JobStatusMetadata,
    V0AuthenticationRequest, V0Heartbeat, V0JobStatusUpdate, V0MachineSpecsUpdate, ValidatorToFacilitator,
};
use phalanx::store::jobs::StatusOutcome;

const S: Duration = Duration::from_secs(1);
const CONFIG: RouterConfig = RouterConfig {
    heartbeat_limit: Duration::from_secs(180),
    received_limit: Duration::from_secs(60),
    silence_margin: Duration::from_secs(300),
    auth_limit: Duration::from_secs(30),
    ghost_limit: Duration::MAX,
};

/// What every job here may take: with the margin 1,000 s.
const JOB_TIME: Duration = Duration::from_secs(700);

struct Fixture {
    router: Router<()>,
    start: Instant,
    seconds: u32,
    alice: KeyPair,
    /// What was noted for the audit log: what happened, and its details.
    notes: Vec<String>,
    handled: Vec<(MessageKind, Handled)>,
    failures: Vec<String>,
}

impl Fixture {
    fn new() -> Self {
        Self::with(CONFIG)
    }

    fn with(config: RouterConfig) -> Self {
        let alice = KeyPair::from_uri("//Alice").unwrap();
        let router = Router::new(config, [alice.public()]);
        let (notes, handled, failures) = Default::default();
        Self { router, start: Instant::now(), seconds: 0, alice, notes, handled, failures }
    }

    fn now(&self) -> Now {
        let since = self.seconds * S;
        Now { mono: self.start + since, wall: since }
    }

    /// What it does to others; what it notes and counts is kept.
    fn handle(&mut self, input: Input<()>) -> Vec<Action> {
        let mut actions = self.router.handle(input, self.now());
        actions.retain(|action| match action {
            Action::Known(_) | Action::Error(..) => false,
            Action::Note(note) => {
                let about = note.job.as_deref().or(note.why.as_deref()).unwrap_or_default();
                self.notes.push(format!("{:?} {about}", note.event).trim_end().to_owned());
                false
            }
            Action::Handled(kind, handled) => {
                self.handled.push((*kind, *handled));
                false
            }
            Action::Poison(_, kind, why) => {
                self.failures.push(format!("{} {why}", kind.as_str()));
                false
            }
            _ => true,
        });
        actions
    }

    /// What the router asks for, in short.
    fn brief(&mut self, input: Input<()>) -> Vec<String> {
        let brief = |action: Action| match action {
            Action::Close(id, why) => format!("close {id} {}", why.code()),
            Action::Store(Change::Specs(specs)) => format!("specs {} {}", specs.miner, specs.specs),
            Action::Store(Change::Status { status, .. }) => format!("store {} {}", status.uuid, status.status),
            Action::Send(id, text) => match FacilitatorToValidator::decode(&text) {
                Ok(FacilitatorToValidator::Response(response)) => {
                    format!("{id} {}", response.errors.first().map_or("success", |error| error.kind.as_str()))
                }
                _ => format!("{id} {text}"),
            },
            other => panic!("it should have been taken out: {other:?}"),
        };
        self.handle(input).into_iter().map(brief).collect()
    }

    fn open(&mut self) -> SessionId {
        let id = SessionId::fresh();
        let opened = Input::Opened { id, peer: "peer".to_owned(), version: "v".to_owned() };
        assert_eq!(self.brief(opened), [""; 0]);
        id
    }

    fn say(&mut self, id: SessionId, message: impl Into<ValidatorToFacilitator>) -> Vec<String> {
        self.text(id, &message.into().encode())
    }

    fn text(&mut self, id: SessionId, text: &str) -> Vec<String> {
        self.brief(Input::Frame(id, Frame::read(text)))
    }

    fn stored(&mut self, id: SessionId, outcome: Option<StatusOutcome>) -> Vec<String> {
        self.brief(Input::Stored { session: Some(id), outcome, ended: None })
    }

    fn ended(&mut self, uuid: &str) {
        let ended = Input::Stored { session: None, outcome: None, ended: Some(uuid.to_owned()) };
        assert_eq!(self.brief(ended), [""; 0]);
    }

    fn validators(&mut self, known: &[&KeyPair]) -> Vec<String> {
        self.brief(Input::SetValidators(known.iter().map(|key| key.public()).collect()))
    }

    fn authenticated(&mut self) -> (SessionId, Vec<String>) {
        let id = self.open();
        let hello = V0AuthenticationRequest::sign(&self.alice);
        (id, self.say(id, hello))
    }

    fn update(&mut self, id: SessionId, uuid: &str, status: JobStatus) -> Vec<String> {
        self.say(id, V0JobStatusUpdate { uuid: uuid.to_owned(), status, metadata: None })
    }

    fn dispatch(&mut self, uuid: &str) -> Vec<String> {
        let text = format!("job {uuid}");
        let validator = self.alice.public();
        let uuid = uuid.to_owned();
        self.brief(Input::Dispatch(Dispatch { uuid, validator, text, job_time: JOB_TIME, ticket: () }))
    }

    fn resume(&mut self, job_time: Duration, silent_for: Duration) {
        let (uuid, validator) = ("1".to_owned(), self.alice.public());
        assert_eq!(self.brief(Input::Resume { uuid, validator, job_time, silent_for }), [""; 0]);
    }

    fn close(&mut self, id: SessionId) -> Vec<String> {
        self.brief(Input::Closed(id))
    }

    fn after(&mut self, seconds: u32) -> Vec<String> {
        self.seconds += seconds;
        self.brief(Input::Tick)
    }

    fn waiting_jobs(&mut self) -> usize {
        self.router.status().waiting_jobs
    }
}

#[test]
fn answers_wait_for_the_store_and_keep_their_order() {
    let mut f = Fixture::new();
    let (id, _) = f.authenticated();
    assert_eq!(f.update(id, "a", JobStatus::Received), ["store a received"]);
    assert_eq!(f.update(id, "b", JobStatus::Received), ["store b received"]);
    assert_eq!(f.text(id, "no message"), [""; 0]);
    assert_eq!(f.say(id, V0AuthenticationRequest::sign(&f.alice.clone())), [""; 0]);
    assert!(!f.router.is_settled());
    assert_eq!(f.stored(id, Some(StatusOutcome::Stored)), [format!("{id} success")]);
    let rest = ["job.integrity_error", "json_invalid", "auth.already_authenticated"];
    assert_eq!(f.stored(id, Some(StatusOutcome::Duplicate)), rest.map(|kind| format!("{id} {kind}")));
    assert!(f.router.is_settled());
    assert_eq!(f.say(id, V0Heartbeat), [""; 0]);
}

#[test]
fn a_status_that_cannot_be_stored_is_not_answered() {
    let mut f = Fixture::new();
    let (id, _) = f.authenticated();
    f.update(id, "a", JobStatus::Received);
    f.update(id, "b", JobStatus::Received);
    assert_eq!(f.stored(id, None), [format!("close {id} 1011")]);
    assert_eq!(f.stored(id, Some(StatusOutcome::Stored)), [""; 0]);
    assert_eq!(f.update(id, "c", JobStatus::Received), [""; 0], "a closing session is not looked at");
}

#[test]
fn the_authentication_table() {
    let mut f = Fixture::new();
    let id = f.open();
    assert_eq!(f.say(id, V0Heartbeat), [format!("{id} auth.not_authenticated")]);
    assert_eq!(f.update(id, "a", JobStatus::Received), [format!("{id} auth.not_authenticated")]);
    let bob = KeyPair::from_uri("//Bob").unwrap();
    let refused = f.say(id, V0AuthenticationRequest::sign(&bob));
    assert_eq!(refused, [format!("{id} auth.validator_not_found"), format!("close {id} 3001")]);
    let good = V0AuthenticationRequest::sign(&f.alice);
    for request in [
        V0AuthenticationRequest { signature: V0AuthenticationRequest::sign(&bob).signature, ..good.clone() },
        V0AuthenticationRequest { signature: "zz".to_owned(), ..good.clone() },
        V0AuthenticationRequest { signature: "0x12".to_owned(), ..good.clone() },
        V0AuthenticationRequest { public_key: format!("0x{}", good.public_key), ..good.clone() },
        V0AuthenticationRequest { public_key: "zz".to_owned(), ..good.clone() },
    ] {
        let id = f.open();
        let refused = f.say(id, request);
        assert_eq!(refused, [format!("{id} auth.signature_invalid"), format!("close {id} 3000")]);
    }
    let (id, reported) = f.authenticated();
    assert_eq!(reported, [format!("{id} success")]);
    assert_eq!(f.say(id, good), [format!("{id} auth.already_authenticated")]);
}

#[test]
fn a_silent_connection_is_closed_in_time_and_an_authenticated_one_is_not() {
    let mut f = Fixture::new();
    let silent = f.open();
    f.authenticated();
    assert_eq!(f.router.next_wake(), Some(f.start + 30 * S));
    assert_eq!(f.after(29), [""; 0]);
    assert_eq!(f.after(1), [format!("{silent} auth.not_authenticated"), format!("close {silent} 3000")]);
    assert_eq!(f.router.next_wake(), None);
}

#[test]
fn a_newer_session_takes_over_and_gets_what_was_not_received() {
    let mut f = Fixture::new();
    assert_eq!(f.dispatch("1"), [""; 0], "nobody is there");
    assert_eq!(f.dispatch("2"), [""; 0]);
    let (old, reported) = f.authenticated();
    assert_eq!(reported, [format!("{old} success"), format!("{old} job 1"), format!("{old} job 2")]);
    f.update(old, "1", JobStatus::Received);
    let (new, reported) = f.authenticated();
    let expected = [format!("close {old} 4001"), format!("{new} success"), format!("{new} job 2")];
    assert_eq!(reported, expected, "the old one may be a ghost");
    // What was on its way from the old one counts when it is sent again on the new one.
    assert_eq!(f.update(old, "2", JobStatus::Received), [""; 0]);
    assert_eq!(f.stored(old, Some(StatusOutcome::Stored)), [""; 0], "and no answer goes to the old one");
    assert!(f.router.is_settled());
    assert_eq!(f.dispatch("3"), [format!("{new} job 3")]);
    assert_eq!(f.close(old), [""; 0]);
    assert_eq!(f.dispatch("4"), [format!("{new} job 4")], "the end of the old one takes nothing from the new one");
    f.update(new, "2", JobStatus::Rejected);
    assert_eq!(f.close(new), [""; 0]);
    let (next, reported) = f.authenticated();
    assert_eq!(reported, [format!("{next} success"), format!("{next} job 3"), format!("{next} job 4")]);
    f.update(next, "3", JobStatus::Received);
    f.update(next, "4", JobStatus::Received);
    assert_eq!(f.close(next), [""; 0]);
    assert_eq!(f.waiting_jobs(), 0);
    assert_eq!(f.after(60), [""; 0], "no received job is given up");
    let noted = [
        "Authenticated",
        "JobSent 1",
        "JobSent 2",
        "JobTakenUp 1",
        "Authenticated",
        "Closed taken_over",
        "JobSentAgain 2",
        "JobSent 3",
        "Disconnected",
        "JobSent 4",
        "JobTakenUp 2",
        "Disconnected",
        "Authenticated",
        "JobSentAgain 3",
        "JobSentAgain 4",
        "JobTakenUp 3",
        "JobTakenUp 4",
        "Disconnected",
    ];
    assert_eq!(f.notes, noted);
}

#[test]
fn a_session_that_beats_no_more_is_dropped_in_time_and_one_that_beats_is_not() {
    let mut f = Fixture::with(RouterConfig { ghost_limit: 600 * S, ..CONFIG });
    let bob = KeyPair::from_uri("//Bob").unwrap();
    let alice = f.alice.clone();
    f.validators(&[&alice, &bob]);
    let (ghost, _) = f.authenticated();
    let other = f.open();
    f.say(other, V0AuthenticationRequest::sign(&bob));
    f.after(599);
    f.say(other, V0Heartbeat);
    assert_eq!(f.after(1), [format!("close {ghost} 4002")]);
    let seen = f.router.status().seen;
    assert_eq!(seen.get(&alice.public()), Some(&f.start), "it is known when it was last heard of");
    assert_eq!(f.say(ghost, V0Heartbeat), [""; 0], "too late");
    assert_eq!(f.close(ghost), [""; 0]);
    assert_eq!(f.router.next_wake(), Some(f.start + 1199 * S));
    let (back, _) = f.authenticated();
    assert!(f.router.status().seen.is_empty());
    assert_eq!(f.after(599), [format!("close {other} 4002")]);
    assert_eq!(f.after(1), [format!("close {back} 4002")]);
}

#[test]
fn what_became_of_each_message_is_told() {
    use Handled as H;
    use MessageKind as K;
    let mut f = Fixture::new();
    let id = f.open();
    f.say(id, V0Heartbeat);
    f.say(id, V0AuthenticationRequest::sign(&f.alice.clone()));
    f.say(id, V0Heartbeat);
    f.text(id, "no message");
    let outcomes =
        [StatusOutcome::Stored, StatusOutcome::StoredLate, StatusOutcome::Duplicate, StatusOutcome::NotFound];
    for outcome in outcomes {
        f.update(id, "a", JobStatus::Received);
        f.stored(id, Some(outcome));
    }
    f.update(id, "a", JobStatus::Received);
    f.stored(id, None);
    f.say(id, V0Heartbeat);
    f.brief(Input::Stop);
    f.say(id, V0Heartbeat);
    let status = [H::Taken, H::Taken, H::Refused, H::Refused, H::Failed].map(|handled| (K::Status, handled));
    let first = [(K::Heartbeat, H::Refused), (K::Authentication, H::Taken), (K::Heartbeat, H::Taken)];
    let last = [(K::Heartbeat, H::Ignored), (K::Heartbeat, H::Ignored)];
    let all: Vec<_> = first.into_iter().chain([(K::Unread, H::Refused)]).chain(status).chain(last).collect();
    assert_eq!(f.handled, all);
}

/// The place of a waiting job, which makes the router panic when the job is taken up.
struct Poison(bool);

impl Drop for Poison {
    fn drop(&mut self) {
        assert!(!self.0, "boom");
    }
}

#[test]
fn a_message_that_cannot_be_handled_costs_that_message_alone() {
    let alice = KeyPair::from_uri("//Alice").unwrap();
    let mut router = Router::new(CONFIG, [alice.public()]);
    let now = Now { mono: Instant::now(), wall: Duration::ZERO };
    let id = SessionId::fresh();
    router.handle(Input::Opened { id, peer: "peer".to_owned(), version: "v".to_owned() }, now);
    let read = |message: ValidatorToFacilitator| Input::Frame(id, Frame::read(&message.encode()));
    router.handle(read(V0AuthenticationRequest::sign(&alice).into()), now);
    for (uuid, poison) in [("bad", true), ("good", false)] {
        let (uuid, text, validator) = (uuid.to_owned(), "job".to_owned(), alice.public());
        let ticket = Poison(poison);
        router.handle(Input::Dispatch(Dispatch { uuid, validator, text, job_time: JOB_TIME, ticket }), now);
    }
    let update = |uuid: &str| V0JobStatusUpdate { uuid: uuid.to_owned(), status: JobStatus::Received, metadata: None };
    let stored = |router: &mut Router<Poison>| {
        router.handle(Input::Stored { session: Some(id), outcome: Some(StatusOutcome::Stored), ended: None }, now)
    };
    let stores = |actions: &[Action]| actions.iter().filter(|action| matches!(action, Action::Store(_))).count();
    // An answer is owed before it and one after it: the error stands between them.
    assert_eq!(stores(&router.handle(read(update("good").into()), now)), 1);
    let failed = router.handle(read(update("bad").into()), now);
    let expected = [
        Action::Handled(MessageKind::Status, Handled::Failed),
        Action::Poison(id, MessageKind::Status, "boom".to_owned()),
    ];
    assert_eq!(failed, expected);
    assert_eq!(stores(&router.handle(read(update("good").into()), now)), 1);
    let answers = |actions: Vec<Action>| {
        let kind = |action| match action {
            Action::Send(_, text) => match FacilitatorToValidator::decode(&text).unwrap() {
                FacilitatorToValidator::Response(response) => {
                    Some(response.errors.first().map_or("success".to_owned(), |error| error.kind.clone()))
                }
                other => panic!("{other:?}"),
            },
            _ => None,
        };
        actions.into_iter().filter_map(kind).collect::<Vec<_>>()
    };
    assert_eq!(answers(stored(&mut router)), ["success", "job.internal_error"]);
    assert_eq!(answers(stored(&mut router)), ["success"]);
    assert!(router.is_settled());
    // The job of the message is watched, as one that was taken up; the session goes on.
    assert_eq!(router.status().waiting_jobs, 0);
    assert!(router.reaches(alice.public(), now.mono));
    let failed = router.handle(Input::Frame(id, Frame::Poison("boom".to_owned())), now);
    assert_eq!(answers(failed), ["internal_error"]);
}

#[test]
fn a_status_that_cannot_be_stored_whatever_is_tried_is_answered_and_the_session_stays() {
    let mut f = Fixture::new();
    let (id, _) = f.authenticated();
    f.update(id, "a", JobStatus::Received);
    f.update(id, "b", JobStatus::Received);
    let why = || "constraint failed".to_owned();
    let answered = f.brief(Input::Unstorable { session: Some(id), uuid: "a".to_owned(), why: why() });
    assert_eq!(answered, [format!("{id} job.internal_error")]);
    assert_eq!(f.stored(id, Some(StatusOutcome::Stored)), [format!("{id} success")]);
    assert_eq!(f.failures, ["status job a: constraint failed"]);
    assert_eq!(f.brief(Input::Unstorable { session: None, uuid: "a".to_owned(), why: why() }), [""; 0]);
}

#[test]
fn only_its_own_validator_receives_a_job() {
    let mut f = Fixture::new();
    let bob = KeyPair::from_uri("//Bob").unwrap();
    let alice = f.alice.clone();
    assert_eq!(f.validators(&[&alice, &bob]), [""; 0]);
    let id = f.open();
    f.say(id, V0AuthenticationRequest::sign(&bob));
    f.dispatch("1");
    assert_eq!(f.update(id, "1", JobStatus::Received), ["store 1 received"], "the store says job.not_found");
    assert_eq!(f.waiting_jobs(), 1);
}

#[test]
fn a_job_nobody_takes_up_ends_as_horde_failed_by_the_facilitator() {
    let mut f = Fixture::new();
    f.dispatch("alone");
    let after = |f: &mut Fixture, seconds| {
        f.seconds += seconds;
        f.handle(Input::Tick)
    };
    for (uuid, reported) in [("alone", "was not connected"), ("ignored", "did not acknowledge it")] {
        let actions = after(&mut f, 60);
        let message = own_failure(&actions, uuid);
        assert!(message.contains(reported) && message.contains("60s"), "{message}");
        f.authenticated();
        f.dispatch("ignored");
    }
    assert_eq!(f.waiting_jobs(), 1, "the one that was just dispatched");
}

/// The message of a job that the facilitator itself has ended.
fn own_failure(actions: &[Action], uuid: &str) -> String {
    let [Action::Store(Change::Status { session: None, status })] = actions else { panic!("{actions:?}") };
    assert_eq!((status.uuid.as_str(), status.status.as_str(), status.terminal), (uuid, "horde_failed", true));
    let metadata = JobStatusMetadata::decode(status.metadata.as_deref().unwrap()).unwrap();
    let details = metadata.horde_failure_details.unwrap();
    assert_eq!(details.reported_by, JobParticipantType::Facilitator);
    assert_eq!(details.reason, HordeFailureReason::GenericError);
    details.message
}

#[test]
fn a_received_job_of_which_nothing_more_comes_ends_as_horde_failed() {
    let mut f = Fixture::new();
    let (id, _) = f.authenticated();
    f.dispatch("1");
    f.update(id, "1", JobStatus::Received);
    f.close(id);
    assert_eq!(f.after(999), [""; 0]);
    // Whatever is received of it, on whatever session of its validator, gives it the whole time again.
    let (id, _) = f.authenticated();
    f.update(id, "1", JobStatus::Accepted);
    let bob = KeyPair::from_uri("//Bob").unwrap();
    let alice = f.alice.clone();
    assert_eq!(f.validators(&[&alice, &bob]), [""; 0]);
    let other = f.open();
    f.say(other, V0AuthenticationRequest::sign(&bob));
    f.after(999);
    f.update(other, "1", JobStatus::Accepted);
    assert_eq!(f.router.next_wake(), Some(f.now().mono + S), "another validator has no say in it");
    f.seconds += 1;
    let message = own_failure(&f.handle(Input::Tick), "1");
    assert_eq!(message, format!("validator {} has reported nothing of the job for 1000s", f.alice.public()));
    // Until it is known to be stored, it is tried again.
    assert_eq!(f.after(999), [""; 0]);
    assert_eq!(f.after(1), ["store 1 horde_failed"]);
    f.ended("1");
    assert_eq!(f.router.next_wake(), None);
    // Late statuses are stored (as late ones), and watch nothing.
    assert_eq!(f.update(id, "1", JobStatus::ExecutorReady), ["store 1 executor_ready"]);
    assert_eq!(f.router.next_wake(), None);
}

#[test]
fn a_job_is_watched_until_its_end_is_stored() {
    let mut f = Fixture::new();
    let (id, _) = f.authenticated();
    f.after(30);
    f.dispatch("1");
    f.update(id, "1", JobStatus::Completed);
    // The database fails; the validator sends it again, unless it is gone by then.
    f.stored(id, None);
    assert_eq!(f.after(999), [""; 0]);
    assert_eq!(f.router.next_wake(), Some(f.now().mono + S));
    f.ended("1");
    f.ended("1");
    assert_eq!(f.router.next_wake(), None);
}

#[test]
fn a_job_of_before_a_restart_has_the_rest_of_its_time_and_at_least_the_margin() {
    let mut f = Fixture::new();
    let start = f.start;
    for (silent, left) in [(0, 1000), (600, 400), (800, 300), (1_000_000, 300)] {
        f.resume(JOB_TIME, silent * S);
        assert_eq!(f.router.next_wake(), Some(start + left * S), "{silent}");
    }
    assert_eq!(f.after(299), [""; 0]);
    assert_eq!(f.after(1), ["store 1 horde_failed"]);
    f.resume(Duration::MAX, S);
    assert!(f.router.next_wake() > Some(start + 3_000_000_000 * S), "limits beyond every clock are bounded");
}

#[test]
fn the_time_of_a_job_is_the_sum_of_its_limits_and_its_spin_up() {
    let text = r#"{"message_type":"V2JobRequest","uuid":"u","executor_class":"spin_up-4min.gpu-24gb","docker_image":"i",
        "args":[],"env":{},"use_gpu":false,"job_namespace":"n","download_time_limit":1,"execution_time_limit":20,
        "upload_time_limit":300,"streaming_start_time_limit":4000}"#;
    let FacilitatorToValidator::V2JobRequest(mut request) = FacilitatorToValidator::decode(text).unwrap() else {
        panic!("no job");
    };
    assert_eq!(job_time(&request), (240 + 4321) * S);
    request.upload_time_limit = u64::MAX.into();
    assert!(job_time(&request) >= Duration::from_secs(i64::MAX as u64));
}

#[test]
fn a_ghost_gets_nothing_until_it_beats_again() {
    let mut f = Fixture::new();
    let (id, _) = f.authenticated();
    f.after(180);
    assert_eq!(f.dispatch("1"), [format!("{id} job 1")], "three minutes are still live");
    f.update(id, "1", JobStatus::Received);
    f.after(1);
    assert_eq!(f.dispatch("2"), [""; 0]);
    let (now, validator) = (f.now().mono, f.alice.public());
    let cheat = || Input::SendOnce { validator, text: "cheat".to_owned() };
    assert!(!f.router.reaches(validator, now));
    assert_eq!(f.brief(cheat()), [""; 0]);
    assert!(!f.router.status().sessions[0].is_live(now));
    assert_eq!(f.say(id, V0Heartbeat), [format!("{id} job 2")]);
    assert!(f.router.reaches(validator, now));
    assert!(f.router.status().sessions[0].is_live(now));
    assert_eq!(f.brief(cheat()), [format!("{id} cheat")]);
}

#[test]
fn a_removed_validator_is_disconnected() {
    let mut f = Fixture::new();
    let (id, _) = f.authenticated();
    assert_eq!(f.validators(&[]), [format!("close {id} 3001")]);
    assert_eq!(f.notes, ["Authenticated", "Closed removed"]);
    assert!(f.router.status().validators.is_empty());
    assert_eq!(f.dispatch("1"), [""; 0]);
}

#[test]
fn specs_are_filed_and_not_answered() {
    let mut f = Fixture::new();
    let (id, _) = f.authenticated();
    let specs = V0MachineSpecsUpdate {
        miner_hotkey: "miner".to_owned(),
        validator_hotkey: "whoever".to_owned(),
        specs: serde_json::from_str(r#"{"cpu":1}"#).unwrap(),
        batch_id: "b".to_owned(),
    };
    assert_eq!(f.say(id, specs), [r#"specs miner {"cpu":1}"#]);
}

#[test]
fn after_a_stop_no_frame_is_taken_and_what_was_taken_is_answered() {
    let mut f = Fixture::new();
    let (id, _) = f.authenticated();
    f.update(id, "a", JobStatus::Received);
    assert_eq!(f.brief(Input::Stop), [""; 0]);
    assert_eq!(f.update(id, "b", JobStatus::Received), [""; 0]);
    assert!(!f.router.is_settled());
    assert_eq!(f.stored(id, Some(StatusOutcome::Stored)), [format!("{id} success")]);
    assert!(f.router.is_settled());
}

#[test]
fn the_status_names_all_sessions_the_oldest_first() {
    let mut f = Fixture::new();
    let (old, _) = f.authenticated();
    f.seconds += 5;
    let new = f.open();
    let status = f.router.status();
    let now = f.now().mono;
    let seen: Vec<_> = status.sessions.iter().map(|s| (s.id, s.validator, s.is_live(now), now - s.opened)).collect();
    assert_eq!(seen, [(old, Some(f.alice.public()), true, 5 * S), (new, None, false, Duration::ZERO)]);
    f.close(old);
    f.close(new);
    assert!(f.router.status().sessions.is_empty());
}
