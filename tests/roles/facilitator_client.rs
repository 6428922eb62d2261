//! The facilitator client against a facilitator that misbehaves by plan: nothing is lost, nothing is overtaken,
//! refusals are distinguished, and nothing that a caller does can hold the client up.

use crate::testkit::roles;
use crate::testkit::scripted_facilitator as scripted;
use crate::testkit::wait::{LONG, until};
use std::collections::VecDeque;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use phalanx::base::backoff::BackoffConfig;
use phalanx::base::rng::Rng;
use phalanx::base::stop::{StopReport, Stopping};
use phalanx::base::thread::{Kick, Thread, spawn};
use phalanx::identity::{KeyPair, PublicKey};
use phalanx::ops::health::{Health, Part};
use phalanx::protocol::{
    FacilitatorToValidator, HordeFailureReason, JobRejectionReason, JobStatus, SignedRequest, V0JobCheated,
    V0MachineSpecsUpdate, V2JobRequest,
};
use phalanx::transport::Dialer;
use phalanx::transport::memory::DialFault;
use phalanx::transport::ws::{WsDialer, WsListener};
use phalanx::validator::{
    ClientConfig, ClientError, ClientEvent, ClientHandle, ClientState, Dispatch, FacilitatorClient, Job, JobHandler,
    LedgerLimits, Outcome, RetryPolicies, RetryPolicy, RunningClient, RunningJob, UpdateError, Validator,
    ValidatorConfig,
};
use roles::{World, now_ns};
use scripted::{Frame, GOOD, Plan, Reply, ScriptedFacilitator, Welcome, key};

use JobStatus as S;

fn quick() -> BackoffConfig {
    BackoffConfig {
        base: Duration::from_millis(2),
        cap: Duration::from_millis(20),
        stable_after: Duration::from_secs(60),
    }
}

fn jobs(count: usize) -> Vec<V2JobRequest> {
    (0..count).map(|_| roles::job(&key("//User"))).collect()
}

fn one_job() -> V2JobRequest {
    jobs(1).remove(0)
}

/// The facilitator `facilitator` of the memory network.
fn facilitator(world: &World, plan: Plan) -> ScriptedFacilitator {
    ScriptedFacilitator::start(world.net.listener("facilitator"), world.timer(), plan)
}

/// A client of the memory network's facilitator that is back at once after a lost connection.
fn config(world: &World) -> ClientConfig {
    ClientConfig {
        backoff: quick(),
        trusted_signers: vec![key("//User").public()],
        check_threads: 2,
        dialer: Arc::new(world.net.dialer()),
        ..ClientConfig::new("ws://facilitator/ws/v0/", key("//Validator"))
    }
}

fn start(config: ClientConfig, handler: impl JobHandler) -> RunningClient {
    FacilitatorClient::new(config).unwrap().start(handler).unwrap()
}

/// Does a job in no time.
fn do_at_once(job: Job) {
    let job = job.receive();
    GOOD[1..5].iter().for_each(|status| job.report(*status));
    job.end(Outcome::completed("", "")).unwrap();
}

fn stop_clean(client: RunningClient) {
    let report = client.stop(LONG);
    assert!(report.is_clean() && report.cancelled_jobs == 0, "{report}");
}

fn stop_validator(validator: Validator) -> StopReport {
    let mut stopping = Stopping::alone();
    validator.stop_in(&mut stopping);
    stopping.finish()
}

/// A validator whose jobs are done in no time.
fn stub(world: &World, url: &str, dialer: Arc<dyn Dialer>, state: Option<&Path>) -> Validator {
    let config = ValidatorConfig {
        backoff: quick(),
        trusted_signers: vec![key("//User").public()],
        state_dir: state.map(Path::to_owned),
        dispatch: Dispatch::Stub { stage_time: Duration::ZERO },
        ..ValidatorConfig::new(url, key("//Validator"), Vec::new())
    };
    Validator::start(config, dialer, world.timer()).unwrap()
}

fn assert_good(facilitator: &ScriptedFacilitator, jobs: &[V2JobRequest]) {
    let state = facilitator.state();
    for job in jobs {
        assert_eq!(state.histories[&job.uuid].statuses, GOOD, "job {}", job.uuid);
    }
    assert_eq!(state.histories.len(), jobs.len());
}

/// What its page of health says against a client.
fn problems(handle: &ClientHandle) -> Vec<String> {
    let health = Health::new();
    handle.measure(&health);
    health.parts(Instant::now()).iter().filter(|part| part.why.is_some()).map(Part::to_string).collect()
}

fn events_until(events: &Receiver<ClientEvent>, found: impl Fn(&ClientEvent) -> bool) -> ClientEvent {
    loop {
        let event = events.recv_timeout(LONG).expect("an event");
        if found(&event) {
            return event;
        }
    }
}

/// The pause after a refusal that waits for a person; at random, half of it to all of it.
const PAUSE: Duration = Duration::from_secs(1800);

/// The pause before the next attempt, as a failed one announces it.
fn next_attempt_in(why: &str) -> Duration {
    let (_, pause) = why.rsplit_once("; next attempt in ").unwrap_or_else(|| panic!("no pause in {why:?}"));
    Duration::from_secs_f64(pause.strip_suffix('s').unwrap().parse().unwrap())
}

/// A plan whose updates get what the sender gives, in its order; the facilitator does not read while there is none.
fn by_hand() -> (Sender<Reply>, Plan) {
    let (tx, rx) = bounded(1000);
    // The last replies of a test need no saying.
    (tx, Plan { update: Box::new(move |_, _| rx.recv_timeout(LONG).unwrap_or(Reply::Store)), ..Plan::default() })
}

// Load, and connections that break.

#[test]
fn two_thousand_jobs_at_full_speed_leave_whole_histories_in_order_and_once() {
    let folder = tempfile::tempdir().unwrap();
    for state in [None, Some(folder.path())] {
        let world = World::new();
        let facilitator = facilitator(&world, Plan::default());
        let validator = stub(&world, &facilitator.url, Arc::new(world.net.dialer()), state);
        let jobs = jobs(2000);
        jobs.iter().for_each(|job| facilitator.submit(job.clone()));
        facilitator.wait("all have ended", |state| state.ended == jobs.len());
        assert_good(&facilitator, &jobs);
        let came = facilitator.state().updates;
        assert_eq!(came, 6 * jobs.len(), "each update came once");
        let observer = validator.observer();
        let report = stop_validator(validator);
        assert!(report.is_clean(), "{report}");
        let totals = observer.client().totals();
        assert_eq!([totals.accepted.get(), totals.stored.get()], [6 * jobs.len() as u64; 2]);
        assert_eq!([totals.repeated.get(), totals.refused.get(), totals.dead.get()], [0; 3]);
        facilitator.stop();
    }
}

/// Cuts connections at random updates, in three ways by turns, and refuses upgrades after that.
struct Cuts {
    rng: Rng,
    /// At which updates, in their order.
    due: VecDeque<usize>,
    seen: usize,
    done: usize,
    /// Updates that are still withheld before the connection is lost.
    muted: usize,
    refusals: usize,
}

fn cutting(seed: u64, cuts: usize, among: usize) -> (Arc<Mutex<Cuts>>, Plan) {
    let mut rng = Rng::new(seed);
    // Far enough from one another that each has a connection to cut.
    let share = among / cuts;
    let due = (0..cuts).map(|n| n * share + 1 + (rng.next_u64() as usize) % (share / 2)).collect();
    let cuts = Arc::new(Mutex::new(Cuts { rng, due, seen: 0, done: 0, muted: 0, refusals: 0 }));
    let (updating, upgrading) = (cuts.clone(), cuts.clone());
    let update = move |_: &_, _| {
        let cuts = &mut *updating.lock().unwrap();
        cuts.seen += 1;
        if cuts.muted > 0 {
            cuts.muted -= 1;
            return if cuts.muted == 0 { Reply::DisconnectBefore } else { Reply::Mute };
        }
        if cuts.due.front().is_none_or(|due| cuts.seen < *due) {
            return Reply::Store;
        }
        cuts.due.pop_front();
        cuts.done += 1;
        cuts.refusals = (cuts.rng.next_u64() % 3) as usize;
        match cuts.done % 3 {
            0 => Reply::DisconnectBefore,
            1 => Reply::DisconnectAfter,
            _ => {
                cuts.muted = 1 + (cuts.rng.next_u64() % 20) as usize;
                Reply::Mute
            }
        }
    };
    let upgrade = move |_| {
        let cuts = &mut *upgrading.lock().unwrap();
        let refuse = cuts.refusals > 0;
        cuts.refusals -= usize::from(refuse);
        refuse.then_some(503)
    };
    (cuts, Plan { update: Box::new(update), upgrade: Box::new(upgrade), ..Plan::default() })
}

#[test]
fn nothing_is_lost_or_overtaken_through_resets_withheld_answers_and_refused_upgrades() {
    const CUTS: usize = 12;
    let seed = Rng::from_entropy().next_u64();
    println!("seed {seed}");
    for loopback in [false, true] {
        let world = World::new();
        let (cuts, plan) = cutting(seed, CUTS, 4000);
        let dialer: Arc<dyn Dialer> =
            if loopback { Arc::new(WsDialer::default()) } else { Arc::new(world.net.dialer()) };
        let facilitator = match loopback {
            false => facilitator(&world, plan),
            true => ScriptedFacilitator::start(WsListener::bind("127.0.0.1:0", None).unwrap(), world.timer(), plan),
        };
        let validator = stub(&world, &facilitator.url, dialer, None);
        let jobs = jobs(1000);
        jobs.iter().for_each(|job| facilitator.submit(job.clone()));
        facilitator.wait("all have ended", |state| state.ended == jobs.len());
        assert_good(&facilitator, &jobs);
        assert_eq!(cuts.lock().unwrap().done, CUTS);
        let observer = validator.observer();
        let report = stop_validator(validator);
        assert!(report.is_clean(), "{report}");
        let (totals, counted) = (observer.client().totals(), observer.client().counted());
        assert!(counted.connections.get() > CUTS as u64, "{counted:?}");
        assert!(counted.repeats.get() > 0, "open jobs are asked for again: {counted:?}");
        assert_eq!([totals.accepted.get(), totals.stored.get()], [6 * jobs.len() as u64; 2], "{totals:?}");
        assert!((1..=facilitator.state().repeats as u64).contains(&totals.repeated.get()), "{totals:?}");
        assert_eq!([totals.refused.get(), totals.dead.get()], [0; 2], "{totals:?}");
        facilitator.stop();
    }
}

// Refusals and silence.

#[test]
fn a_bad_signature_is_loud_and_tried_again_slowly_however_it_is_worded() {
    type Refuse = fn(usize) -> Welcome;
    let ways: [(Refuse, &str); 3] = [
        (|_| Welcome::Error("auth.signature_invalid", 3000), "auth.signature_invalid"),
        (|_| Welcome::Close(3000), "code 3000"),
        (|_| Welcome::Accept, "code 3000"),
    ];
    for (n, (welcome, expected)) in ways.into_iter().enumerate() {
        let world = World::new();
        let client = start(ClientConfig { refused_pause: PAUSE, ..config(&world) }, do_at_once);
        let handle = client.handle();
        let events = handle.subscribe(10_000);
        let facilitator = facilitator(&world, Plan { welcome: Box::new(welcome), ..Plan::default() });
        if n == 2 {
            events_until(&events, |event| matches!(event, ClientEvent::Ready { .. }));
            facilitator.wait("the welcome", |state| state.welcomed == 1);
            facilitator.close(3000);
        }
        let refused = events_until(&events, |event| matches!(event, ClientEvent::Lost { refused: true, .. }));
        let ClientEvent::Lost { why, .. } = refused else { unreachable!("it was just matched") };
        assert!(why.contains(expected), "{why}");
        assert_eq!(handle.state(), ClientState::Reconnecting);
        assert!(handle.last_error().unwrap().contains(expected), "{:?}", handle.last_error());
        let problem = problems(&handle).remove(0);
        assert!(problem.starts_with("facilitator: reconnecting: ") && problem.contains(expected), "{problem}");
        assert!(next_attempt_in(&why) >= PAUSE / 2, "with the usual pause it is milliseconds: {why}");
        assert_eq!(facilitator.state().dials, 1);
        stop_clean(client);
        facilitator.stop();
    }
}

#[test]
fn what_may_pass_is_tried_again_soon() {
    let ways: [fn(usize) -> Welcome; 3] =
        [|_| Welcome::Error("auth.validator_not_found", 3001), |_| Welcome::Close(3001), |_| Welcome::Close(1000)];
    for refuse in ways {
        let world = World::new();
        let welcome = Box::new(move |n| if n <= 3 { refuse(n) } else { Welcome::Accept });
        let facilitator = facilitator(&world, Plan { welcome, ..Plan::default() });
        let client = start(ClientConfig { refused_pause: PAUSE, ..config(&world) }, do_at_once);
        facilitator.wait("the welcome", |state| state.welcomed == 1);
        assert_eq!(facilitator.state().dials, 4);
        stop_clean(client);
        facilitator.stop();
    }
}

#[test]
fn an_upgrade_refused_with_4xx_waits_for_a_person_and_5xx_does_not() {
    for (status, lasting) in [(401, true), (404, true), (429, false), (500, false), (503, false)] {
        let world = World::new();
        let client = start(ClientConfig { refused_pause: PAUSE, ..config(&world) }, do_at_once);
        let events = client.handle().subscribe(10_000);
        let upgrade = Box::new(move |n| (n == 1).then_some(status));
        let facilitator = facilitator(&world, Plan { upgrade, ..Plan::default() });
        let notified = format!("{status}");
        let failed =
            events_until(&events, |event| matches!(event, ClientEvent::Lost { why, .. } if why.contains(&notified)));
        let ClientEvent::Lost { why, .. } = failed else { unreachable!("it was just matched") };
        assert_eq!(next_attempt_in(&why) >= PAUSE / 2, lasting, "{why}");
        match lasting {
            true => assert_eq!(facilitator.state().dials, 1),
            false => facilitator.wait("the welcome", |state| state.welcomed == 1),
        }
        stop_clean(client);
        facilitator.stop();
    }
}

#[test]
fn a_clean_close_is_followed_by_a_new_connection_also_after_a_long_life() {
    let world = World::new();
    let facilitator = facilitator(&world, Plan::default());
    // A connection counts as long-lived at once.
    let client = start(
        ClientConfig { backoff: BackoffConfig { stable_after: Duration::ZERO, ..quick() }, ..config(&world) },
        do_at_once,
    );
    for (n, code) in [1000, 1001, 3001, 1011, 1000].into_iter().enumerate() {
        facilitator.wait("the next connection", |state| state.welcomed == n + 1);
        let job = one_job();
        facilitator.submit(job.clone());
        assert_eq!(facilitator.history(&job.uuid), GOOD, "before the close with {code}");
        facilitator.close(code);
    }
    facilitator.wait("the last connection", |state| state.welcomed == 6);
    stop_clean(client);
    facilitator.stop();
}

#[test]
fn an_authentication_that_is_never_answered_ends_at_its_deadline() {
    let world = World::new();
    let welcome = Box::new(|n| if n <= 2 { Welcome::Silent } else { Welcome::Accept });
    let facilitator = facilitator(&world, Plan { welcome, ..Plan::default() });
    // Long enough for the connection that is answered, also on a busy machine.
    let client = start(ClientConfig { dial_time: Duration::from_secs(1), ..config(&world) }, do_at_once);
    let handle = client.handle();
    until("authenticating", || handle.state() == ClientState::Authenticating);
    facilitator.wait("the second attempt", |state| state.dials == 2);
    assert!(handle.last_error().unwrap().starts_with("no answer to the authentication within"));
    facilitator.wait("the welcome", |state| state.welcomed == 1);
    stop_clean(client);
    facilitator.stop();
}

// What is sent first, and on time.

#[test]
fn each_connection_begins_with_the_authentication_then_a_beat_then_what_was_queued() {
    let world = World::new();
    let (replies, plan) = by_hand();
    let facilitator = facilitator(&world, Plan { keeps_frames: true, ..plan });
    let client = start(config(&world), do_at_once);
    let jobs = jobs(20);
    jobs.iter().for_each(|job| facilitator.submit(job.clone()));
    replies.send(Reply::Mute).unwrap();
    (0..5).for_each(|_| replies.send(Reply::Store).unwrap());
    replies.send(Reply::DisconnectAfter).unwrap();
    drop(replies);
    facilitator.wait("all have ended", |state| state.ended == jobs.len());
    assert_good(&facilitator, &jobs);
    let headers = facilitator.state().headers.clone();
    let version = headers.iter().find(|(name, _)| name == "X-Validator-Version").map(|(_, value)| value.as_str());
    assert_eq!(version, Some(env!("CARGO_PKG_VERSION")));
    stop_clean(client);
    for connection in 1..=2 {
        let state = facilitator.state();
        let mut frames = state.frames.iter().filter(|(number, _)| *number == connection).map(|(_, frame)| frame);
        assert_eq!(frames.next(), Some(&Frame::Authentication));
        assert_eq!(frames.next(), Some(&Frame::Beat));
        assert!(matches!(frames.next(), Some(Frame::Update(..))));
    }
    facilitator.stop();
}

#[test]
fn beats_stay_on_time_while_all_cores_are_busy_and_until_the_last_job_is_reported() {
    const EVERY: Duration = Duration::from_millis(50);
    let world = World::new();
    let facilitator = facilitator(&world, Plan { keeps_frames: true, ..Plan::default() });
    let (taken, took) = bounded(1);
    let (go, gate) = bounded::<()>(0);
    let client = start(ClientConfig { heartbeat_every: EVERY, ..config(&world) }, move |job: Job| {
        let job = job.receive();
        taken.send(()).unwrap();
        // Ends when the test lets it.
        let _ = gate.recv_timeout(2 * LONG);
        job.end(Outcome::completed("", "")).unwrap();
    });
    let job = one_job();
    facilitator.submit(job.clone());
    took.recv_timeout(LONG).unwrap();

    let done = Arc::new(AtomicBool::new(false));
    let cores = std::thread::available_parallelism().unwrap().get();
    let spinning: Vec<Thread<()>> = (0..2 * cores)
        .map(|n| {
            let (done, kicked) = (done.clone(), done.clone());
            let kick = Kick::new("its flag", move || kicked.store(true, Ordering::Relaxed));
            spawn(format!("t-spin-{n}"), kick, move || {
                while !done.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            })
        })
        .collect();
    let before = facilitator.state().beats.len();
    facilitator.wait("beats beside the load", |state| state.beats.len() >= before + 15);

    let handle = client.handle();
    let stopping = spawn("t-stop", Kick::dropped("the job"), move || client.stop(4 * LONG));
    until("draining", || handle.state() == ClientState::Draining);
    let draining = facilitator.state().beats.len();
    facilitator.wait("beats in the drain", |state| state.beats.len() >= draining + 15);
    drop(go);
    assert_eq!(facilitator.history(&job.uuid), [S::Received, S::Completed]);
    let report = stopping.join_by(Instant::now() + LONG).unwrap();
    assert!(report.is_clean(), "{report}");
    done.store(true, Ordering::Relaxed);
    drop(spinning);

    let state = facilitator.state();
    let gap = state.beats.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap();
    assert!(gap < EVERY + Duration::from_secs(1), "{gap:?}");
    drop(state);
    facilitator.stop();
}

// What can be seen, and what a caller cannot break.

#[test]
fn states_and_events_tell_each_turn_with_its_last_error() {
    let world = World::new();
    let (upgrade, upgrades) = bounded::<()>(0);
    let (welcome, welcomes) = bounded::<()>(0);
    let client = start(config(&world), do_at_once);
    let handle = client.handle();
    let events = handle.subscribe(10_000);
    events_until(&events, |event| matches!(event, ClientEvent::Lost { refused: false, .. }));
    let facilitator = facilitator(
        &world,
        Plan {
            upgrade: Box::new(move |n| {
                // At the end of the test nothing is held up any more.
                let _ = upgrades.recv_timeout(LONG);
                (n == 2).then_some(503)
            }),
            welcome: Box::new(move |_| {
                let _ = welcomes.recv_timeout(LONG);
                Welcome::Accept
            }),
            ..Plan::default()
        },
    );
    facilitator.wait("the first upgrade", |state| state.dials == 1);
    assert_eq!(handle.state(), ClientState::Connecting);
    upgrade.send(()).unwrap();
    until("authenticating", || handle.state() == ClientState::Authenticating);
    welcome.send(()).unwrap();
    events_until(&events, |event| matches!(event, ClientEvent::Ready { .. }));
    assert_eq!(handle.state(), ClientState::Ready);
    assert_eq!(problems(&handle), [] as [String; 0]);
    facilitator.wait("the welcome", |state| state.welcomed == 1);
    facilitator.close(1011);
    let lost = "closed by the peer with code 1011: by plan";
    let notified = events_until(&events, |_| true);
    assert!(matches!(&notified, ClientEvent::Lost { why, refused: false } if why.contains(lost)), "{notified:?}");
    assert!(handle.last_error().unwrap().contains(lost));
    upgrade.send(()).unwrap();
    events_until(&events, |event| matches!(event, ClientEvent::Lost { why, .. } if why.contains("503")));
    facilitator.wait("the third upgrade", |state| state.dials == 3);
    assert!(handle.last_error().unwrap().contains("503"));
    assert!(problems(&handle)[0].contains("503"), "{:?}", problems(&handle));
    drop((upgrade, welcome));
    events_until(&events, |event| matches!(event, ClientEvent::Ready { .. }));
    client.drain();
    assert_eq!(handle.state(), ClientState::Draining);
    stop_clean(client);
    assert_eq!(handle.state(), ClientState::Stopped);
    assert_eq!(handle.flush(LONG).map_err(|e| e.to_string()), Ok(()));
    facilitator.stop();
}

#[test]
fn a_subscriber_that_never_reads_holds_up_nobody() {
    let world = World::new();
    let facilitator = facilitator(&world, Plan::default());
    let client = start(config(&world), do_at_once);
    let unread = client.handle().subscribe(1);
    drop(client.handle().subscribe(1));
    for n in 1..=20 {
        facilitator.wait("the next connection", |state| state.welcomed >= n);
        let job = one_job();
        facilitator.submit(job.clone());
        assert_eq!(facilitator.history(&job.uuid), GOOD);
        facilitator.disconnect();
    }
    assert_eq!(unread.len(), 1);
    stop_clean(client);
    facilitator.stop();
}

#[test]
fn a_handler_that_panics_costs_its_job_and_nothing_else() {
    let world = World::new();
    let facilitator = facilitator(&world, Plan::default());
    let calls = AtomicUsize::new(0);
    let client = start(config(&world), move |job: Job| {
        let job = job.receive();
        assert!(calls.fetch_add(1, Ordering::Relaxed) >= 10, "by plan");
        drop(job.end(Outcome::completed("", "")));
    });
    let jobs = jobs(20);
    let mut ends = Vec::new();
    for job in &jobs {
        facilitator.submit(job.clone());
        ends.push(facilitator.history(&job.uuid).pop().unwrap());
    }
    assert_eq!(ends, [[S::HordeFailed; 10], [S::Completed; 10]].concat());
    stop_clean(client);
    facilitator.stop();
}

#[test]
fn a_handler_may_call_everything_of_its_client() {
    let world = World::new();
    let facilitator = facilitator(&world, Plan::default());
    let own: Arc<OnceLock<ClientHandle>> = Arc::default();
    let calls = Arc::new(AtomicUsize::new(0));
    let (handle, called) = (own.clone(), calls.clone());
    let client = start(config(&world), move |job: Job| {
        let handle = handle.wait();
        let job = job.receive();
        // The job's own end is missing, so it cannot be flushed.
        let _unsent = handle.flush(Duration::from_millis(5));
        let _ = (handle.state(), problems(handle), handle.counts(), handle.oldest_update(), handle.subscribe(1));
        handle.kick_link();
        job.report(S::Accepted);
        let _unsent = handle.flush(Duration::from_millis(5));
        let end = job.end_and_wait(Outcome::completed("", ""));
        assert_eq!(end, Ok(()), "without a state folder there is nothing to wait for");
        called.fetch_add(1, Ordering::Relaxed);
    });
    assert!(own.set(client.handle()).is_ok());
    let jobs = jobs(10);
    for job in &jobs {
        facilitator.submit(job.clone());
    }
    for job in &jobs {
        assert_eq!(facilitator.history(&job.uuid), [S::Received, S::Accepted, S::Completed]);
    }
    assert_eq!(calls.load(Ordering::Relaxed), jobs.len());
    stop_clean(client);
    facilitator.stop();
}

#[test]
fn two_clients_live_in_one_process_and_stop_one_by_one() {
    let world = World::new();
    let one = facilitator(&world, Plan::default());
    let two = ScriptedFacilitator::start(world.net.listener("other"), world.timer(), Plan::default());
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let state_dir = |n: usize| Some(folders[n].path().to_owned());
    let first = start(ClientConfig { state_dir: state_dir(0), ..config(&world) }, do_at_once);
    let second = ClientConfig {
        url: "ws://other/ws/v0/".to_owned(),
        key: key("//Other"),
        state_dir: state_dir(1),
        ..config(&world)
    };
    let second = start(second, do_at_once);
    let run = |facilitator: &ScriptedFacilitator| {
        let job = one_job();
        facilitator.submit(job.clone());
        assert_eq!(facilitator.history(&job.uuid), GOOD);
    };
    run(&one);
    run(&two);
    stop_clean(first);
    run(&two);
    stop_clean(second);
    one.stop();
    two.stop();
}

#[test]
fn frames_that_cannot_be_read_are_counted_and_change_nothing() {
    let world = World::new();
    let facilitator = facilitator(&world, Plan::default());
    let client = start(config(&world), do_at_once);
    let answer = r#"{"message_type":"Response","status":"error","errors":[{"msg":"m","type":"t","help":""}]}"#;
    for text in ["", "PING", "no json", "{}", r#"{"message_type":"V9"}"#, "[1]", answer] {
        facilitator.say(text);
    }
    let job = one_job();
    facilitator.submit(job.clone());
    assert_eq!(facilitator.history(&job.uuid), GOOD);
    assert_eq!(facilitator.state().welcomed, 1, "the connection stays");
    let handle = client.handle();
    assert!(handle.counted().unreadable.get() >= 4, "{:?}", handle.counted());
    stop_clean(client);
    facilitator.stop();
}

// Updates that the facilitator does not want.

fn at_once(give_up_after: Duration) -> RetryPolicy {
    RetryPolicy { base: Duration::from_micros(100), cap: Duration::from_micros(100), give_up_after }
}

fn retries(policy: RetryPolicy) -> RetryPolicies {
    RetryPolicies { not_found: policy, step: policy, terminal: policy }
}

#[test]
fn a_poisoned_update_becomes_one_dead_letter_and_holds_up_only_its_own_job() {
    let folder = tempfile::tempdir().unwrap();
    for poison in [S::Accepted, S::Completed] {
        let world = World::new();
        let state_dir = folder.path().join(poison.as_str());
        let jobs = jobs(100);
        let poisoned = jobs[7].uuid.clone();
        let (enough, go) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let (refusing, going) = (enough.clone(), go.clone());
        let update = Box::new(move |update: &phalanx::protocol::V0JobStatusUpdate, _| {
            if update.uuid != poisoned || update.status != poison {
                return Reply::Store;
            }
            refusing.fetch_add(1, Ordering::Relaxed);
            assert!(!going.load(Ordering::Relaxed), "it came again after it was given up");
            Reply::Refuse("job.something_new")
        });
        let facilitator = facilitator(&world, Plan { update, ..Plan::default() });
        let configured = |world: &World| ClientConfig {
            retries: retries(at_once(Duration::from_secs(3))),
            state_dir: Some(state_dir.clone()),
            ..config(world)
        };
        let client = start(configured(&world), do_at_once);
        let events = client.handle().subscribe(1000);
        jobs.iter().for_each(|job| facilitator.submit(job.clone()));
        // The others end while this one is refused again and again.
        facilitator.wait("the others have ended", |state| state.ended >= jobs.len() - 1);
        let dead = events_until(&events, |event| matches!(event, ClientEvent::GivenUp(_)));
        let ClientEvent::GivenUp(letter) = dead else { unreachable!("it was just matched") };
        assert!(letter.text.contains(&jobs[7].uuid) && letter.text.contains(poison.as_str()), "{letter:?}");
        assert_eq!(letter.reason, "error job.something_new: by plan");
        let refusals = enough.load(Ordering::Relaxed);
        assert!(refusals >= 100, "only {refusals} refusals");
        go.store(true, Ordering::Relaxed);

        let rest: Vec<JobStatus> = GOOD.into_iter().filter(|status| *status != poison).collect();
        facilitator.wait("the rest of its job", |state| state.histories[&jobs[7].uuid].statuses.len() == rest.len());
        for job in &jobs {
            let statuses = facilitator.state().histories[&job.uuid].statuses.clone();
            assert_eq!(statuses, if job.uuid == jobs[7].uuid { rest.clone() } else { GOOD.to_vec() });
        }
        let handle = client.handle();
        handle.flush(LONG).unwrap();
        assert_eq!((handle.counts().dead, handle.totals().dead.get()), (1, 1));
        assert!(events.try_iter().all(|event| !matches!(event, ClientEvent::GivenUp(_))));
        stop_clean(client);
        // It is kept, and not sent again.
        let client = start(configured(&world), do_at_once);
        assert_eq!(client.handle().counts().dead, 1);
        let job = one_job();
        facilitator.submit(job.clone());
        assert_eq!(facilitator.history(&job.uuid), GOOD);
        stop_clean(client);
        facilitator.stop();
    }
}

#[test]
fn a_job_that_is_not_found_at_first_is_reported_in_order_all_the_same() {
    let world = World::new();
    let update = Box::new(|update: &phalanx::protocol::V0JobStatusUpdate, times| {
        match update.status == S::Received && times < 3 {
            true => Reply::Refuse("job.not_found"),
            false => Reply::Store,
        }
    });
    let facilitator = facilitator(&world, Plan { update, ..Plan::default() });
    // Any other policy would give up at once.
    let policies = RetryPolicies { not_found: at_once(LONG), ..retries(at_once(Duration::ZERO)) };
    let client = start(ClientConfig { retries: policies, ..config(&world) }, do_at_once);
    let jobs = jobs(50);
    jobs.iter().for_each(|job| facilitator.submit(job.clone()));
    facilitator.wait("all have ended", |state| state.ended == jobs.len());
    assert_good(&facilitator, &jobs);
    let handle = client.handle();
    stop_clean(client);
    let totals = handle.totals();
    assert_eq!([totals.refused.get(), totals.dead.get()], [3 * jobs.len() as u64, 0]);
    facilitator.stop();
}

#[test]
fn an_error_about_the_authentication_makes_a_new_connection_and_loses_nothing() {
    let world = World::new();
    let update = Box::new(|update: &phalanx::protocol::V0JobStatusUpdate, times| {
        match update.status == S::VolumesReady && times == 0 {
            true => Reply::Refuse("auth.not_authenticated"),
            false => Reply::Store,
        }
    });
    let facilitator = facilitator(&world, Plan { update, ..Plan::default() });
    let client = start(config(&world), do_at_once);
    let jobs = jobs(5);
    jobs.iter().for_each(|job| facilitator.submit(job.clone()));
    facilitator.wait("all have ended", |state| state.ended == jobs.len());
    assert_good(&facilitator, &jobs);
    assert!(facilitator.state().welcomed >= 2);
    let handle = client.handle();
    stop_clean(client);
    assert_eq!(handle.totals().dead.get(), 0);
    facilitator.stop();
}

// Bounds.

/// Takes jobs and keeps them for the test.
fn keep() -> (Receiver<RunningJob>, impl JobHandler) {
    let (tx, rx) = bounded(10_000);
    (rx, move |job: Job| tx.send(job.receive()).unwrap())
}

fn rejection(facilitator: &ScriptedFacilitator, uuid: &str) -> (JobRejectionReason, String) {
    assert_eq!(facilitator.history(uuid).last(), Some(&S::Rejected));
    let end = facilitator.state().histories[uuid].end.clone().unwrap();
    let details = end.job_rejection_details.unwrap();
    (details.reason, details.message)
}

#[test]
fn with_the_queue_full_steps_are_refused_ends_are_taken_and_new_jobs_turned_away() {
    let world = World::new();
    let (replies, plan) = by_hand();
    let facilitator = facilitator(&world, plan);
    let (kept, handler) = keep();
    let limits = LedgerLimits { updates: 10, ..LedgerLimits::default() };
    let client = start(ClientConfig { limits, ..config(&world) }, handler);
    let handle = client.handle();
    let (first, second) = (one_job(), one_job());
    facilitator.submit(first.clone());
    let job = kept.recv_timeout(LONG).unwrap();
    facilitator.submit(second.clone());
    let other = kept.recv_timeout(LONG).unwrap();
    for (job, steps) in [(&job, &GOOD[1..5]), (&other, &GOOD[1..5])] {
        steps.iter().for_each(|status| assert!(job.step(*status).is_ok()));
    }
    assert_eq!(handle.counts().unsent, 10);
    let third = one_job();
    facilitator.submit(third.clone());
    until("one turned away", || handle.counted().turned_away.get() == 1);
    // A job's own step after the last would go backwards, so this one has none yet.
    let error = other.step(S::ExecutionDone).unwrap_err();
    assert!(matches!(error, UpdateError::Backwards { .. }), "{error}");
    assert!(job.end(Outcome::completed("", "")).is_ok());
    assert!(other.end(Outcome::completed("", "")).is_ok());
    assert!(matches!(handle.flush(Duration::from_millis(10)), Err(ClientError::Unsent(13))));
    assert_eq!(handle.counts().unsent, 13);
    drop(replies);
    handle.flush(LONG).unwrap();
    assert_eq!(facilitator.history(&first.uuid), GOOD);
    assert_eq!(facilitator.history(&second.uuid), GOOD);
    let (reason, message) = rejection(&facilitator, &third.uuid);
    assert_eq!((reason, &*message), (JobRejectionReason::Busy, "too many updates wait for the facilitator"));
    stop_clean(client);
    facilitator.stop();
}

#[test]
fn with_as_many_signatures_as_can_be_remembered_new_jobs_are_turned_away_and_no_replay_gets_in() {
    let world = World::new();
    let facilitator = facilitator(&world, Plan::default());
    let limits = LedgerLimits { signed: 2, remembered: 0, ..LedgerLimits::default() };
    let config = ClientConfig { limits, ..config(&world) };
    let errors = config.board.errors.clone();
    let client = start(config, do_at_once);
    let [first, second] = [one_job(), one_job()];
    for job in [&first, &second] {
        facilitator.submit(job.clone());
        assert_eq!(facilitator.history(&job.uuid), GOOD);
    }
    for _ in 0..3 {
        let third = one_job();
        facilitator.submit(third.clone());
        let (reason, message) = rejection(&facilitator, &third.uuid);
        let full = "2 jobs have signatures that could be used again, more cannot be remembered";
        assert!(reason == JobRejectionReason::Busy && message.starts_with(full), "{reason}: {message}");
        let replay = V2JobRequest { uuid: uuid::Uuid::new_v4().to_string(), ..first.clone() };
        facilitator.submit(replay.clone());
        assert_eq!(rejection(&facilitator, &replay.uuid).0, JobRejectionReason::InvalidSignature);
    }
    let told: Vec<u64> =
        errors.last_errors().iter().filter(|error| error.place == "job-signatures").map(|error| error.count).collect();
    assert_eq!(told, [3], "one line for all");
    stop_clean(client);
    facilitator.stop();
}

#[test]
fn a_step_over_the_bounds_in_count_or_bytes_is_refused_with_both() {
    let all = LedgerLimits::default();
    for limits in [LedgerLimits { updates: 2, ..all }, LedgerLimits { bytes: 300, ..all }] {
        let world = World::new();
        let (replies, plan) = by_hand();
        let facilitator = facilitator(&world, plan);
        let (kept, handler) = keep();
        let client = start(ClientConfig { limits, ..config(&world) }, handler);
        facilitator.submit(one_job());
        let job = kept.recv_timeout(LONG).unwrap();
        let refused = GOOD[1..5].iter().find_map(|status| job.step(*status).err()).expect("a refusal");
        assert!(matches!(refused, UpdateError::Full { .. }), "{refused}");
        assert!(refused.to_string().starts_with("too many updates wait for the facilitator: "), "{refused}");
        let patient = job.step_within(S::ExecutionDone, Duration::from_millis(5)).unwrap_err();
        assert!(matches!(patient, UpdateError::Full { .. }), "{patient}");
        let kick = Kick::dropped("the replies");
        let waits = spawn("t-patient", kick, move || job.step_within(S::ExecutionDone, LONG).map(drop));
        drop(replies);
        assert_eq!(waits.join_by(Instant::now() + LONG).unwrap(), Ok(()), "there is room when others are answered");
        client.handle().flush(LONG).unwrap();
        stop_clean(client);
        facilitator.stop();
    }
}

#[test]
fn a_stop_ends_the_waits_for_room_and_for_answers() {
    let world = World::new();
    let facilitator = facilitator(&world, Plan { update: Box::new(|_, _| Reply::Mute), ..Plan::default() });
    let (kept, handler) = keep();
    let limits = LedgerLimits { updates: 2, ..LedgerLimits::default() };
    let client = start(ClientConfig { limits, ..config(&world) }, handler);
    facilitator.submit(one_job());
    let job = kept.recv_timeout(LONG).unwrap();
    job.step(S::Accepted).unwrap();
    let handle = client.handle();
    let flush = spawn("t-flush", Kick::dropped("the client"), move || handle.flush(LONG));
    let step = spawn("t-step", Kick::dropped("the client"), move || job.step_within(S::ExecutorReady, LONG).map(drop));
    let report = client.stop(Duration::from_millis(400));
    assert!(report.unsent > 0, "{report}");
    let soon = Instant::now() + Duration::from_secs(5);
    assert!(matches!(step.join_by(soon).unwrap(), Err(UpdateError::Full { .. })));
    assert!(matches!(flush.join_by(soon).unwrap(), Err(ClientError::Stopped)));
    facilitator.stop();
}

#[test]
fn requests_beyond_what_may_wait_for_its_check_are_turned_away_as_busy() {
    use phalanx::base::limits::UNCHECKED_REQUESTS;
    let world = World::new();
    let facilitator = facilitator(&world, Plan::default());
    let (taken, took) = bounded(1);
    let (go, gate) = bounded::<()>(0);
    let client = start(ClientConfig { check_threads: 1, ..config(&world) }, move |job: Job| {
        taken.send(()).unwrap();
        let _ = gate.recv_timeout(2 * LONG);
        do_at_once(job);
    });
    facilitator.submit(one_job());
    took.recv_timeout(LONG).unwrap();
    // Without a signature they are cheap to make and to check.
    let flood: Vec<V2JobRequest> =
        jobs(UNCHECKED_REQUESTS + 10).into_iter().map(|job| V2JobRequest { signature: None, ..job }).collect();
    flood.iter().for_each(|job| facilitator.submit(job.clone()));
    for job in &flood[UNCHECKED_REQUESTS..] {
        let (reason, message) = rejection(&facilitator, &job.uuid);
        assert_eq!((reason, &*message), (JobRejectionReason::Busy, "too many jobs wait for their signature check"));
    }
    assert_eq!(facilitator.state().ended, 10);
    drop(go);
    facilitator.wait("all have ended", |state| state.ended == flood.len() + 1);
    assert_eq!(rejection(&facilitator, &flood[0].uuid).0, JobRejectionReason::InvalidSignature);
    stop_clean(client);
    facilitator.stop();
}

#[test]
fn stub_jobs_over_the_limit_are_rejected_as_busy() {
    let world = World::new();
    let facilitator = facilitator(&world, Plan::default());
    let config = ValidatorConfig {
        backoff: quick(),
        trusted_signers: vec![key("//User").public()],
        dispatch: Dispatch::Stub { stage_time: 60 * LONG },
        workers: Some(3),
        drain_time: Duration::from_millis(50),
        ..ValidatorConfig::new(&facilitator.url, key("//Validator"), Vec::new())
    };
    let validator = Validator::start(config, Arc::new(world.net.dialer()), world.timer()).unwrap();
    let jobs = jobs(5);
    jobs.iter().for_each(|job| facilitator.submit(job.clone()));
    facilitator.wait("two are turned away", |state| state.ended == 2);
    assert_eq!(validator.observer().running_jobs(), 3);
    let report = stop_validator(validator);
    assert!(report.is_clean() && report.cancelled_jobs == 3, "{report}");
    let state = facilitator.state();
    let mut ends: Vec<JobStatus> = state.histories.values().map(|history| *history.statuses.last().unwrap()).collect();
    ends.sort_unstable_by_key(|status| status.as_str());
    assert_eq!(ends, [S::HordeFailed, S::HordeFailed, S::HordeFailed, S::Rejected, S::Rejected]);
    drop(state);
    facilitator.stop();
}

#[test]
fn a_flush_waits_for_the_answers_as_long_as_it_may() {
    let world = World::new();
    let (replies, plan) = by_hand();
    let facilitator = facilitator(&world, plan);
    let client = start(config(&world), do_at_once);
    let handle = client.handle();
    handle.flush(Duration::ZERO).unwrap();
    facilitator.submit(one_job());
    until("six updates unsent", || handle.counts().unsent == 6);
    let error = handle.flush(Duration::from_millis(5)).unwrap_err();
    assert!(matches!(error, ClientError::Unsent(6)), "{error}");
    let flushing = {
        let handle = handle.clone();
        spawn("t-flush", Kick::dropped("the replies"), move || handle.flush(LONG))
    };
    (0..6).for_each(|_| replies.send(Reply::Store).unwrap());
    flushing.join_by(Instant::now() + LONG).unwrap().unwrap();
    facilitator.submit(one_job());
    facilitator.wait("its first update", |state| state.updates == 7);
    let report = client.stop(Duration::from_millis(100));
    assert_eq!(report.unsent, 6, "{report}");
    assert!(matches!(handle.flush(LONG), Err(ClientError::Stopped)));
    drop(replies);
    facilitator.stop();
}

// Machine specs and reports of cheating.

fn specs(miner: &KeyPair, batch: &str) -> V0MachineSpecsUpdate {
    V0MachineSpecsUpdate {
        miner_hotkey: miner.ss58(),
        validator_hotkey: key("//Validator").ss58(),
        specs: serde_json::json!({"cpu": {"count": 2}}).as_object().unwrap().clone(),
        batch_id: batch.to_owned(),
    }
}

#[test]
fn of_each_miner_the_newest_specs_leave_with_the_next_connection_by_themselves() {
    let world = World::new();
    let client = start(config(&world), do_at_once);
    let handle = client.handle();
    for batch in ["1", "2", "3"] {
        for miner in ["//A", "//B"] {
            let update = specs(&key(miner), &format!("{miner} {batch}"));
            handle.machine_specs(update).unwrap();
        }
    }
    assert_eq!(handle.counts().unsent, 0, "they are not counted");
    let facilitator = facilitator(&world, Plan { keeps_frames: true, ..Plan::default() });
    facilitator.wait("two specs", |state| state.frames.len() >= 4);
    let frames: Vec<Frame> = facilitator.state().frames.iter().map(|(_, frame)| frame.clone()).collect();
    let newest = |miner: &str| Frame::Specs(format!("{miner} 3"));
    assert_eq!(frames, [Frame::Authentication, Frame::Beat, newest("//A"), newest("//B")]);
    stop_clean(client);
    let update = specs(&key("//A"), "late");
    assert!(matches!(handle.machine_specs(update), Err(ClientError::Stopped)));
    assert_eq!(facilitator.state().frames.len(), 4);
    facilitator.stop();
}

#[test]
fn specs_that_wait_do_not_hold_up_a_stop_and_are_no_loss() {
    let world = World::new();
    world.net.fail_next(1_000_000, DialFault::Refused);
    let client = start(config(&world), do_at_once);
    let update = specs(&key("//A"), "1");
    client.handle().machine_specs(update).unwrap();
    let begun = Instant::now();
    stop_clean(client);
    assert!(begun.elapsed() < LONG / 2, "{:?}", begun.elapsed());
}

#[test]
fn an_error_that_may_be_about_specs_or_a_status_makes_a_new_connection_and_loses_nothing() {
    let world = World::new();
    let plan = Plan { specs: Box::new(|connection| (connection == 1).then_some("missing")), ..Plan::default() };
    let (kept, handler) = keep();
    let facilitator = facilitator(&world, plan);
    let client = start(config(&world), handler);
    let job = one_job();
    facilitator.submit(job.clone());
    let running = kept.recv_timeout(LONG).unwrap();
    let handle = client.handle();
    handle.flush(LONG).unwrap();
    let update = specs(&key("//A"), "1");
    handle.machine_specs(update).unwrap();
    facilitator.wait("the second connection", |state| state.welcomed == 2);
    GOOD[1..5].iter().for_each(|status| running.report(*status));
    running.end(Outcome::completed("", "")).unwrap();
    assert_eq!(facilitator.history(&job.uuid), GOOD);
    stop_clean(client);
    facilitator.stop();
}

/// Takes each job as run by `//Miner`, one for a trusted miner by `//Trusted`, and counts the reports that count.
struct Judge(Arc<AtomicUsize>);

impl JobHandler for Judge {
    fn job(&self, job: Job) {
        let job = job.receive();
        let miner = if job.request().on_trusted_miner { "//Trusted" } else { "//Miner" };
        job.runs_on(key(miner).public());
        job.end(Outcome::completed("", "")).unwrap();
    }

    fn cheated(&self, _uuid: &str, miner: PublicKey) {
        assert_eq!(miner, key("//Miner").public());
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

fn report(job: &str, trusted: &str) -> String {
    report_of(job, trusted, now_ns())
}

fn report_of(job: &str, trusted: &str, signed_at_ns: u64) -> String {
    let mut report = V0JobCheated {
        signature: None,
        job_uuid: job.to_owned(),
        trusted_job_uuid: trusted.to_owned(),
        details: serde_json::json!({"why": "it is too fast"}),
    };
    report.sign(&key("//User"), signed_at_ns);
    FacilitatorToValidator::from(report).encode()
}

#[test]
fn a_report_of_cheating_counts_once_also_after_a_restart() {
    let (world, before) = (World::new(), now_ns() - 1_000_000_000);
    let folder = tempfile::tempdir().unwrap();
    let facilitator = facilitator(&world, Plan::default());
    let reports = Arc::new(AtomicUsize::new(0));
    let begin = || {
        let state_dir = Some(folder.path().to_owned());
        start(ClientConfig { state_dir, check_threads: 1, ..config(&world) }, Judge(reports.clone()))
    };
    // With one thread that checks, a job that has ended comes after the reports before it.
    let run = |job: V2JobRequest| {
        facilitator.submit(job.clone());
        assert_eq!(facilitator.history(&job.uuid), [S::Received, S::Completed]);
        job.uuid
    };
    let pass = || run(one_job());
    let client = begin();
    let (one, two) = (pass(), pass());
    let mut trusted = V2JobRequest { on_trusted_miner: true, ..one_job() };
    trusted.sign(&key("//User"), now_ns());
    let trusted = run(trusted);
    for (job, compared) in [(&one, &two), (&trusted, &trusted), (&one, &one)] {
        facilitator.say(&report(job, compared));
        pass();
        assert_eq!(reports.load(Ordering::Relaxed), 0, "not compared with a job on a trusted miner, or about that");
    }
    let (day, now) = (24 * 3600 * 1_000_000_000, now_ns());
    for (signed_at, what) in [(0, "of 1970"), (now - day, "old"), (now + 365 * day, "of the future"), (before, "early")]
    {
        facilitator.say(&report_of(&one, &trusted, signed_at));
        pass();
        assert_eq!(reports.load(Ordering::Relaxed), 0, "a report {what}");
    }
    facilitator.say(&report(&one, &trusted));
    facilitator.say(&report(&one, &trusted));
    pass();
    assert_eq!(reports.load(Ordering::Relaxed), 1);
    stop_clean(client);
    let client = begin();
    facilitator.wait("the second connection", |state| state.welcomed == 2);
    facilitator.say(&report(&one, &trusted));
    pass();
    assert_eq!(reports.load(Ordering::Relaxed), 1, "it was reported before the restart");
    facilitator.say(&report(&two, &trusted));
    pass();
    assert_eq!(reports.load(Ordering::Relaxed), 2, "another job is another report");
    stop_clean(client);
    facilitator.stop();
}

// What outlives the client.

#[test]
fn a_stop_during_an_outage_counts_what_is_unsent_and_the_next_start_delivers_it() {
    let world = World::new();
    let folder = tempfile::tempdir().unwrap();
    let (replies, plan) = by_hand();
    let facilitator = facilitator(&world, plan);
    let configured = || ClientConfig { state_dir: Some(folder.path().to_owned()), ..config(&world) };
    let (kept, handler) = keep();
    let client = start(configured(), handler);
    let (done, open) = (one_job(), one_job());
    facilitator.submit(done.clone());
    let running = kept.recv_timeout(LONG).unwrap();
    facilitator.submit(open.clone());
    let lost = kept.recv_timeout(LONG).unwrap();
    facilitator.wait("the first update", |state| state.updates == 1);
    world.net.fail_next(1_000_000, DialFault::Refused);
    replies.send(Reply::DisconnectBefore).unwrap();
    until("an error", || client.handle().last_error().is_some());
    GOOD[1..5].iter().for_each(|status| running.report(*status));
    running.end_and_wait(Outcome::completed("", "")).unwrap();
    let report = client.stop(Duration::from_millis(400));
    assert!(report.stragglers().is_empty(), "{report}");
    assert_eq!((report.unsent, report.cancelled_jobs), (7, 1), "{report}");
    assert!(report.to_string().contains("7 messages unsent"), "{report}");
    drop(lost);
    drop(replies);
    facilitator.stop();

    let world = World::new();
    let facilitator = ScriptedFacilitator::start(world.net.listener("facilitator"), world.timer(), Plan::default());
    let client = start(ClientConfig { state_dir: Some(folder.path().to_owned()), ..config(&world) }, |job: Job| {
        panic!("{} was asked for again", job.request().uuid);
    });
    assert_eq!(facilitator.history(&done.uuid), GOOD);
    assert_eq!(facilitator.history(&open.uuid), [S::Received, S::HordeFailed]);
    let end = facilitator.state().histories[&open.uuid].end.clone().unwrap().horde_failure_details.unwrap();
    assert_eq!(end.reason, HordeFailureReason::GenericError);
    assert!(end.message.contains("the validator ended while the job ran"), "{}", end.message);
    // Their uuids are known: nothing runs twice.
    facilitator.submit(done);
    facilitator.submit(open);
    until("two repeats", || client.handle().counted().repeats.get() == 2);
    stop_clean(client);
    facilitator.stop();
}

#[test]
fn a_state_folder_belongs_to_one_client_at_a_time() {
    let world = World::new();
    let folder = tempfile::tempdir().unwrap();
    let configured = || ClientConfig { state_dir: Some(folder.path().to_owned()), ..config(&world) };
    let client = start(configured(), do_at_once);
    let error = FacilitatorClient::new(configured()).unwrap().start(do_at_once).unwrap_err();
    let notified = error.to_string();
    assert!(matches!(error, ClientError::State(_)), "{notified}");
    assert!(notified.contains("in use by process") && notified.lines().count() == 1, "{notified}");
    assert!(!error.advice().is_empty());
    stop_clean(client);
    stop_clean(start(configured(), do_at_once));
}

#[test]
fn a_result_that_the_disk_does_not_take_arrives_all_the_same_and_harms_no_other() {
    let world = World::new();
    let folder = tempfile::tempdir().unwrap();
    let facilitator = facilitator(&world, Plan::default());
    let configured = || ClientConfig { state_dir: Some(folder.path().to_owned()), ..config(&world) };
    let client = start(configured(), |job: Job| {
        let job = job.receive();
        let stdout = if job.request().docker_image == "large" { "x".repeat(20 << 20) } else { String::new() };
        job.end(Outcome::completed(stdout, "")).unwrap();
    });
    let large = V2JobRequest { docker_image: "large".to_owned(), signature: None, ..one_job() };
    let large = {
        let mut job = large;
        job.sign(&key("//User"), now_ns());
        job
    };
    let others = jobs(20);
    facilitator.submit(large.clone());
    others.iter().for_each(|job| facilitator.submit(job.clone()));
    for job in others.iter().chain([&large]) {
        assert_eq!(facilitator.history(&job.uuid), [S::Received, S::Completed]);
    }
    let handle = client.handle();
    handle.flush(LONG).unwrap();
    until("no problem left", || problems(&handle).is_empty());
    stop_clean(client);
    let client = start(configured(), do_at_once);
    assert_eq!(client.handle().counts().unsent, 0);
    stop_clean(client);
    facilitator.stop();
}
