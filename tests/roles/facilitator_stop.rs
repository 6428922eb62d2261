//! Stopping the facilitator client: at random moments, and in each place where it can block. A stop ends within its
//! budget, leaves no thread, and accounts for what it could not deliver.

use crate::testkit::roles;
use crate::testkit::scripted_facilitator as scripted;
use crate::testkit::wait::{LONG, until};
use std::collections::HashSet;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use phalanx::base::backoff::BackoffConfig;
use phalanx::base::rng::Rng;
use phalanx::base::shutdown::Level;
use phalanx::base::shutdown::Shutdown;
use phalanx::base::stop::{KICK_GRACE, StopReport};
use phalanx::base::thread::{Group, Kick, spawn};
use phalanx::protocol::{JobStatus, V2JobRequest};
use phalanx::transport::memory::{DialFault, Side};
use phalanx::validator::{
    ClientConfig, ClientHandle, ClientState, FacilitatorClient, Job, JobHandler, Outcome, RunningClient, RunningJob,
};
use roles::World;
use scripted::{GOOD, Plan, Reply, ScriptedFacilitator, Welcome, key};

use JobStatus as S;

/// What a busy machine adds to a budget; a stop that waits for something it should not wait for takes longer.
const SLACK: Duration = Duration::from_secs(30);

fn config(world: &World) -> ClientConfig {
    ClientConfig {
        backoff: BackoffConfig {
            base: Duration::from_millis(2),
            cap: Duration::from_millis(10),
            stable_after: Duration::from_secs(60),
        },
        trusted_signers: vec![key("//User").public()],
        check_threads: 2,
        dialer: Arc::new(world.net.dialer()),
        ..ClientConfig::new("ws://facilitator/ws/v0/", key("//Validator"))
    }
}

fn facilitator(world: &World, plan: Plan) -> ScriptedFacilitator {
    ScriptedFacilitator::start(world.net.listener("facilitator"), world.timer(), plan)
}

fn start(config: ClientConfig, handler: impl JobHandler) -> RunningClient {
    FacilitatorClient::new(config).unwrap().start(handler).unwrap()
}

fn do_at_once(job: Job) {
    let job = job.receive();
    GOOD[1..5].iter().for_each(|status| job.report(*status));
    job.end(Outcome::completed("", "")).unwrap();
}

/// Stops a client and asserts that it kept to its budget.
fn stop(client: RunningClient, budget: Duration) -> (StopReport, Duration) {
    let handle = client.handle();
    let begun = Instant::now();
    let report = client.stop(budget);
    let took = begun.elapsed();
    assert!(took < budget + KICK_GRACE + SLACK, "{took:?}: {report}");
    assert_eq!(handle.state(), ClientState::Stopped);
    (report, took)
}

// At random moments.

/// What makes the moments of a round differ.
struct Chance {
    rng: Mutex<Rng>,
    /// The facilitator behaves from now on.
    calm: AtomicBool,
}

impl Chance {
    fn below(&self, n: u64) -> u64 {
        self.rng.lock().unwrap().next_u64() % n
    }

    /// As [`Chance::below`], but `n` when the facilitator behaves.
    fn mood(&self, n: u64) -> u64 {
        if self.calm.load(Ordering::Relaxed) { n } else { self.below(n) }
    }
}

/// A facilitator that misbehaves now and then in every way.
fn moody(chance: &Arc<Chance>) -> Plan {
    let [upgrading, welcoming, updating] = [chance.clone(), chance.clone(), chance.clone()];
    Plan {
        upgrade: Box::new(move |_| (upgrading.mood(10) == 0).then_some(503)),
        welcome: Box::new(move |_| match welcoming.mood(20) {
            0 => Welcome::Silent,
            1 => Welcome::Error("auth.validator_not_found", 3001),
            2 => Welcome::Close(1001),
            _ => Welcome::Accept,
        }),
        update: Box::new(move |_, _| match updating.mood(40) {
            0 => Reply::DisconnectBefore,
            1 => Reply::DisconnectAfter,
            2 => Reply::Mute,
            3 => Reply::Refuse("job.not_found"),
            _ => Reply::Store,
        }),
        ..Plan::default()
    }
}

/// Does most jobs at once; the rest end when the client says so, or not at all.
fn mixed(chance: Arc<Chance>, held: Sender<RunningJob>) -> impl JobHandler {
    move |job: Job| match chance.below(12) {
        0 => drop(job),
        1 => {
            let job = job.receive();
            job.stop_signal().wait_for(Level::Cancel, LONG);
        }
        2 => held.send(job.receive()).unwrap(),
        _ => do_at_once(job),
    }
}

/// Runs a client for a moment with some jobs, and stops it; gives the jobs.
fn round(world: &World, facilitator: &ScriptedFacilitator, chance: &Arc<Chance>, state: Option<&Path>) -> Vec<String> {
    let group = Group::enter();
    if chance.below(20) == 0 {
        world.net.fail_next(1, DialFault::Hang);
    }
    let (hold, held) = bounded(100);
    let config = ClientConfig {
        dial_time: Duration::from_millis(20 + chance.below(100)),
        state_dir: state.map(Path::to_owned),
        ..config(world)
    };
    let client = start(config, mixed(chance.clone(), hold));
    let handle = client.handle();
    let jobs: Vec<String> = (0..chance.below(5))
        .map(|_| {
            let job = one_job();
            let uuid = job.uuid.clone();
            facilitator.submit(job);
            uuid
        })
        .collect();
    // Some moments are early in the life of a client, some late.
    let patience = Instant::now() + Duration::from_micros(1 << chance.below(16));
    let seen = || {
        let state = facilitator.state();
        state.updates + state.dials
    };
    let (enough, pause) = (seen() + chance.below(30) as usize, Shutdown::new());
    while Instant::now() < patience && seen() < enough {
        pause.wait(Duration::from_micros(50));
    }
    let budget = Duration::from_millis(chance.below(30));
    let (report, _) = stop(client, budget);
    assert_eq!(report.stragglers(), [] as [&str; 0], "{report}");
    assert_eq!(report.unsent, handle.counts().unsent, "{report}");
    assert_eq!(report.is_clean(), report.unsent == 0);
    let names: Vec<&str> = report.steps.iter().map(|step| step.name.as_str()).collect();
    let order = ["jobs", "cancelled jobs", "signature checks", "updates", "facilitator link", "state folder", "timer"];
    let expected = order.into_iter().filter(|name| *name != "cancelled jobs" || names.contains(name));
    assert_eq!(names, expected.collect::<Vec<_>>());
    let left: Vec<_> = group.live().into_iter().map(|thread| thread.name).collect();
    assert_eq!(left, [] as [String; 0]);
    if report.unsent == 0 && report.cancelled_jobs == 0 && held.is_empty() {
        let state = facilitator.state();
        for uuid in &jobs {
            let history = state.histories.get(uuid);
            assert!(history.is_none_or(|history| history.end.is_some()), "job {uuid} has no end, and nobody says so");
        }
    }
    facilitator.withdraw(&jobs);
    jobs
}

fn one_job() -> V2JobRequest {
    roles::job(&key("//User"))
}

#[test]
fn a_stop_at_a_thousand_random_moments_ends_in_time_leaves_nothing_and_says_what_it_could_not_deliver() {
    const ROUNDS: usize = 1000;
    let seed = Rng::from_entropy().next_u64();
    println!("seed {seed}");
    let chance = Arc::new(Chance { rng: Mutex::new(Rng::new(seed)), calm: AtomicBool::new(false) });
    let world = World::new();
    let folder = tempfile::tempdir().unwrap();
    let facilitator = facilitator(&world, moody(&chance));
    let mut kept = HashSet::new();
    for n in 0..ROUNDS {
        // Each tenth client goes on with what the one before it left on disk.
        let state = (n % 10 == 0).then_some(folder.path());
        let jobs = round(&world, &facilitator, &chance, state);
        if state.is_some() {
            kept.extend(jobs);
        }
        facilitator.assert_sound();
    }
    chance.calm.store(true, Ordering::Relaxed);
    // What is left on disk is delivered by the next client that has the time.
    let client = start(ClientConfig { state_dir: Some(folder.path().to_owned()), ..config(&world) }, do_at_once);
    client.handle().flush(LONG).unwrap();
    let report = client.stop(LONG);
    assert!(report.is_clean(), "{report}");
    let state = facilitator.state();
    let begun: Vec<_> = kept.iter().filter_map(|uuid| state.histories.get(uuid)).collect();
    assert!(!begun.is_empty());
    for history in begun.iter().filter(|history| history.statuses.contains(&S::Received)) {
        assert_eq!(history.statuses.iter().filter(|status| status.is_terminal()).count(), 1, "{:?}", history.statuses);
    }
    drop(state);
    facilitator.stop();
}

// In each place where a client can block.

/// A client whose place is reached when `there` says so, is stopped; gives the report and the time.
fn stop_in(
    world: &World,
    change: impl FnOnce(&mut ClientConfig),
    budget: Duration,
    there: impl Fn(&ClientHandle) -> bool,
) -> (StopReport, Duration) {
    let mut config = config(world);
    change(&mut config);
    let client = start(config, do_at_once);
    let handle = client.handle();
    until("the moment to stop", || there(&handle));
    stop(client, budget)
}

fn assert_at_once((report, took): &(StopReport, Duration)) {
    assert!(report.is_clean() && report.cancelled_jobs == 0, "{report}");
    assert!(*took < SLACK, "{took:?}: {report}");
}

#[test]
fn stop_while_the_reader_is_idle() {
    let world = World::new();
    let facilitator = facilitator(&world, Plan::default());
    assert_at_once(&stop_in(&world, |_| {}, LONG, |handle| handle.state() == ClientState::Ready));
    facilitator.stop();
}

#[test]
fn stop_while_dialling_a_silent_peer() {
    let world = World::new();
    world.net.fail_next(1000, DialFault::Hang);
    let net = world.net.clone();
    assert_at_once(&stop_in(
        &world,
        |_| {},
        LONG,
        |handle| net.dials() == 1 && handle.state() == ClientState::Connecting,
    ));
}

#[test]
fn stop_while_the_authentication_is_not_answered() {
    let world = World::new();
    let facilitator = facilitator(&world, Plan { welcome: Box::new(|_| Welcome::Silent), ..Plan::default() });
    assert_at_once(&stop_in(&world, |_| {}, LONG, |handle| handle.state() == ClientState::Authenticating));
    facilitator.stop();
}

#[test]
fn stop_while_the_upgrade_is_not_answered() {
    let world = World::new();
    let (go, gate) = bounded::<()>(0);
    let upgrade = Box::new(move |_| {
        // Ends with the test.
        let _ = gate.recv_timeout(LONG);
        None
    });
    let facilitator = facilitator(&world, Plan { upgrade, ..Plan::default() });
    assert_at_once(&stop_in(&world, |_| {}, LONG, |_| facilitator.state().dials == 1));
    drop(go);
    facilitator.stop();
}

#[test]
fn stop_while_waiting_to_try_again_after_a_failure_or_a_refusal() {
    let hour = Duration::from_secs(3600);
    let slow = |config: &mut ClientConfig| {
        config.backoff = BackoffConfig { base: 1000 * hour, cap: 1000 * hour, stable_after: hour };
    };
    let world = World::new();
    assert_at_once(&stop_in(&world, slow, LONG, |handle| handle.state() == ClientState::Reconnecting));
    let plan = Plan { welcome: Box::new(|_| Welcome::Error("auth.signature_invalid", 3000)), ..Plan::default() };
    let facilitator = facilitator(&world, plan);
    let refused = |config: &mut ClientConfig| config.refused_pause = hour;
    assert_at_once(&stop_in(&world, refused, LONG, |handle| handle.state() == ClientState::Reconnecting));
    facilitator.stop();
}

#[test]
fn stop_while_the_writer_is_stuck_with_a_peer_that_never_reads() {
    let world = World::new();
    let facilitator = facilitator(&world, Plan::default());
    world.net.plan_next(|wire| wire.stall(Side::Dialer));
    // The authentication would not get through a wire that is stalled from the start.
    let client = start(ClientConfig { dial_time: Duration::from_millis(200), ..config(&world) }, do_at_once);
    facilitator.wait("the second connection", |state| state.welcomed == 1);
    facilitator.submit(one_job());
    facilitator.wait("its end", |state| state.ended == 1);
    world.net.wires().last().unwrap().stall(Side::Dialer);
    let job = one_job();
    facilitator.submit(job);
    let handle = client.handle();
    until("six updates unsent", || handle.counts().unsent == 6);
    let budget = Duration::from_millis(300);
    let (report, took) = stop(client, budget);
    assert_eq!((report.stragglers().len(), report.unsent, report.cancelled_jobs), (0, 6, 0), "{report}");
    assert!(took >= budget / 2, "it did not wait for the peer: {took:?}");
    facilitator.stop();
}

#[test]
fn stop_while_the_facilitator_does_not_read_or_answer() {
    for reply in [|| Reply::Mute, || Reply::DisconnectBefore] {
        let world = World::new();
        let (go, gate) = bounded::<()>(0);
        let update = Box::new(move |_: &_, _| {
            // Ends with the test.
            let _ = gate.recv_timeout(LONG);
            reply()
        });
        let facilitator = facilitator(&world, Plan { update, ..Plan::default() });
        facilitator.submit(one_job());
        let budget = Duration::from_millis(300);
        let (report, took) = stop_in(&world, |_| {}, budget, |handle| handle.counts().unsent == 6);
        assert_eq!((report.stragglers().len(), report.unsent, report.cancelled_jobs), (0, 6, 0), "{report}");
        assert!(took >= budget / 2, "it did not wait for the peer: {took:?}");
        drop(go);
        facilitator.stop();
    }
}

/// A handler that blocks until the test lets it, and the number of jobs that wait for their check behind it.
fn blocking() -> (Receiver<()>, Sender<()>, impl JobHandler) {
    let (taken, took) = bounded(10_000);
    let (go, gate) = bounded::<()>(0);
    let handler = move |job: Job| {
        taken.send(()).unwrap();
        let _ = gate.recv_timeout(2 * LONG);
        do_at_once(job);
    };
    (took, go, handler)
}

#[test]
fn stop_while_checks_wait_behind_a_handler_that_blocks_waits_for_it_and_loses_none() {
    let world = World::new();
    let facilitator = facilitator(&world, Plan::default());
    let (took, go, handler) = blocking();
    let client = start(ClientConfig { check_threads: 1, ..config(&world) }, handler);
    for _ in 0..50 {
        let job = one_job();
        facilitator.submit(job);
    }
    took.recv_timeout(LONG).unwrap();
    until("fifty requests", || client.handle().counted().requests.get() == 50);
    client.drain();
    drop(go);
    let (report, _) = stop(client, LONG);
    assert!(report.is_clean() && report.cancelled_jobs == 0, "{report}");
    let ended = facilitator.state().ended;
    assert_eq!(ended, 50);
    facilitator.stop();
}

#[test]
fn stop_while_a_handler_never_returns_names_its_thread() {
    let world = World::new();
    let facilitator = facilitator(&world, Plan::default());
    let (took, go, handler) = blocking();
    let group = Group::enter();
    let client = start(ClientConfig { check_threads: 1, ..config(&world) }, handler);
    facilitator.submit(one_job());
    took.recv_timeout(LONG).unwrap();
    let (report, _) = stop(client, Duration::from_millis(200));
    assert_eq!((report.stragglers(), report.cancelled_jobs), (vec!["val-check-0"], 1), "{report}");
    assert!(!report.is_clean());
    drop(go);
    until("no thread left", || group.live().is_empty());
    facilitator.stop();
}

/// Takes jobs and keeps them for the test.
fn keep() -> (Receiver<RunningJob>, impl JobHandler) {
    let (tx, rx) = bounded(100);
    (rx, move |job: Job| tx.send(job.receive()).unwrap())
}

#[test]
fn stop_while_a_job_runs_waits_until_it_has_ended_and_is_reported() {
    let world = World::new();
    let facilitator = facilitator(&world, Plan::default());
    let (kept, handler) = keep();
    let client = start(config(&world), handler);
    let (job, late) = (one_job(), one_job());
    facilitator.submit(job.clone());
    let running = kept.recv_timeout(LONG).unwrap();
    let handle = client.handle();
    let stopping = spawn("t-stop", Kick::dropped("the job"), move || stop(client, 2 * LONG));
    until("draining", || handle.state() == ClientState::Draining);
    facilitator.submit(late.clone());
    assert_eq!(facilitator.history(&late.uuid), [S::Rejected], "a draining client takes no job");
    assert!(!running.stop_signal().is_set());
    running.end(Outcome::completed("", "")).unwrap();
    let (report, _) = stopping.join_by(Instant::now() + LONG).unwrap();
    assert!(report.is_clean() && report.cancelled_jobs == 0, "{report}");
    assert_eq!(facilitator.history(&job.uuid), [S::Received, S::Completed]);
    facilitator.stop();
}

#[test]
fn stop_while_a_job_runs_too_long_raises_its_signal_and_reports_its_end() {
    let world = World::new();
    let facilitator = facilitator(&world, Plan::default());
    let (taken, took) = bounded(1);
    let client = start(config(&world), move |job: Job| {
        let job = job.receive();
        taken.send(()).unwrap();
        assert!(job.stop_signal().wait_for(Level::Cancel, LONG));
    });
    let job = one_job();
    facilitator.submit(job.clone());
    took.recv_timeout(LONG).unwrap();
    let budget = Duration::from_secs(1);
    let (report, took) = stop(client, budget);
    assert!(report.is_clean() && report.cancelled_jobs == 1, "{report}");
    assert!(took >= budget / 2, "it was not given its time: {took:?}");
    assert_eq!(facilitator.history(&job.uuid), [S::Received, S::HordeFailed]);
    facilitator.stop();
}

#[test]
fn stop_while_a_job_is_stuck_and_ignores_its_signal_goes_on_without_it() {
    let world = World::new();
    let facilitator = facilitator(&world, Plan::default());
    let (kept, handler) = keep();
    let client = start(config(&world), handler);
    let job = one_job();
    facilitator.submit(job.clone());
    let stuck = kept.recv_timeout(LONG).unwrap();
    client.handle().flush(LONG).unwrap();
    let (report, _) = stop(client, Duration::from_millis(200));
    assert_eq!((report.stragglers().len(), report.unsent, report.cancelled_jobs), (0, 0, 1), "{report}");
    assert!(stuck.stop_signal().is_cancelled());
    drop(stuck);
    assert_eq!(facilitator.state().histories[&job.uuid].statuses, [S::Received]);
    facilitator.stop();
}

#[test]
fn dropping_a_running_client_stops_it() {
    let group = Group::enter();
    let world = World::new();
    let facilitator = facilitator(&world, Plan::default());
    let client = start(config(&world), do_at_once);
    let job = one_job();
    facilitator.submit(job.clone());
    assert_eq!(facilitator.history(&job.uuid), GOOD);
    let handle = client.handle();
    drop(client);
    assert_eq!((handle.state(), handle.counts().unsent), (ClientState::Stopped, 0));
    facilitator.stop();
    drop(world);
    let left: Vec<_> = group.live().into_iter().map(|thread| thread.name).collect();
    assert_eq!(left, [] as [String; 0]);
}
