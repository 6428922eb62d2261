//! The validator's process is killed at random moments while jobs come in; the facilitator outlives it. Nothing is
//! lost, nothing is overtaken, nothing runs twice. Also what the process says with its exit code.
//!
//! `PHALANX_TEST_KILLS` says how often it is killed.

use crate::testkit::process;
use crate::testkit::roles;
use crate::testkit::scripted_facilitator as scripted;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use phalanx::base::rng::Rng;
use phalanx::protocol::{JobStatus, V2JobRequest};
use phalanx::transport::ws::WsListener;
use process::{Running, nothing_left, phalanx, run};
use roles::World;
use rustix::process::Signal;
use scripted::{FacilitatorState, GOOD, Plan, Reply, ScriptedFacilitator, key};

use JobStatus as S;

const KILLS: usize = 25;

fn facilitator(world: &World, plan: Plan) -> ScriptedFacilitator {
    ScriptedFacilitator::start(WsListener::bind("127.0.0.1:0", None).unwrap(), world.timer(), plan)
}

/// A validator of stub jobs, with its state in `folder`.
fn validator(scratch: &Path, folder: &Path, url: &str, stub_time: &str) -> Command {
    let mut command = phalanx(scratch);
    command.args(["validator", "--dispatch", "stub", "--stub-time", stub_time, "--facilitator", url]);
    command.args(["--trusted-signer", &key("//User").ss58(), "--state-dir"]).arg(folder);
    command.env("PHALANX_KEY", "//Validator");
    command
}

fn jobs(count: usize) -> Vec<V2JobRequest> {
    (0..count).map(|_| roles::job(&key("//User"))).collect()
}

/// The errors in a log.
fn troubles(stderr: &str) -> Vec<&str> {
    stderr.lines().filter(|line| line.contains("ERROR") || line.contains("panicked")).collect()
}

#[test]
fn killed_at_random_moments_it_loses_nothing_reorders_nothing_and_runs_nothing_twice() {
    let kills = std::env::var("PHALANX_TEST_KILLS").map_or(KILLS, |n| n.parse().expect("PHALANX_TEST_KILLS: a number"));
    let seed = Rng::from_entropy().next_u64();
    println!("seed {seed}");
    let mut rng = Rng::new(seed);
    let world = World::new();
    let scratch = tempfile::tempdir().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let facilitator = facilitator(&world, Plan::default());
    let start = |time| Running::start(&mut validator(scratch.path(), folder.path(), &facilitator.url, time));
    let mut asked = Vec::new();
    for n in 1..=kills {
        // The last kill surely hits jobs that run.
        let running = start(if n < kills { "5ms" } else { "1h" });
        let batch = jobs(10 + (rng.next_u64() % 40) as usize);
        let updates = 6 * batch.len();
        batch.iter().for_each(|job| facilitator.submit(job.clone()));
        let before = asked.len();
        asked.extend(batch);
        // Between the first new update after the start and the time when all may have ended; after the repeats, because
        // one that is killed while it repeats repeats as much the next time.
        let new = |state: &FacilitatorState| state.updates - state.repeats;
        let moment = new(&facilitator.state()) + 1 + rng.next_u64() as usize % updates;
        let begun =
            |state: &FacilitatorState| asked[before..].iter().any(|job| state.histories.contains_key(&job.uuid));
        facilitator.wait("the moment of a kill", |state| match n < kills {
            true => new(state) >= moment || state.ended == asked.len(),
            false => begun(state),
        });
        let finished = {
            running.signal(Signal::KILL);
            running.finish()
        };
        assert_eq!((finished.code, troubles(&finished.stderr)), (None, Vec::new()), "kill {n}");
    }
    let running = start("5ms");
    facilitator.wait("all have ended", |state| state.ended == asked.len());
    facilitator.assert_sound();

    // Every request comes once more, and then one that ends after they were looked at.
    let before = facilitator.state().updates;
    asked.iter().for_each(|job| facilitator.submit(job.clone()));
    let last = jobs(1).remove(0);
    facilitator.submit(last.clone());
    assert_eq!(facilitator.history(&last.uuid), GOOD);
    let after = facilitator.state().updates;
    let finished = running.stop(Signal::TERM);
    assert_eq!((finished.code, troubles(&finished.stderr)), (Some(0), Vec::new()));

    let state = facilitator.state();
    let (mut completed, mut broken) = (0, 0);
    for job in &asked {
        let statuses = &state.histories[&job.uuid].statuses;
        match statuses.last() {
            Some(S::Completed) => {
                assert_eq!(*statuses, GOOD);
                completed += 1;
            }
            Some(S::HordeFailed) => {
                let (_, steps) = statuses.split_last().unwrap();
                // None at all if the kill came between its check and its first step.
                assert!(GOOD.starts_with(steps), "{statuses:?}");
                let end = state.histories[&job.uuid].end.clone().unwrap().horde_failure_details.unwrap();
                assert!(end.message.contains("the validator ended while the job ran"), "{}", end.message);
                broken += 1;
            }
            other => panic!("job {}: {other:?}, {:?}", job.uuid, state.histories[&job.uuid].end),
        }
    }
    println!(
        "{kills} kills: {} jobs, {completed} completed, {broken} cut short, {} updates, {} of them repeats",
        asked.len(),
        state.updates,
        state.repeats
    );
    // The repeats of what was known to have arrived would be in here, too.
    assert!(after - before <= GOOD.len() + 6 * 50, "{} updates for one job", after - before);
    assert!(broken > 0 && (kills < 10 || state.repeats > 0), "no kill hit anything");
    drop(state);
    facilitator.stop();
    nothing_left(scratch.path());
}

#[test]
fn a_stop_without_answers_exits_with_3_and_a_count_and_the_next_start_delivers() {
    let world = World::new();
    let scratch = tempfile::tempdir().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let silent = Arc::new(AtomicBool::new(true));
    let hearing = silent.clone();
    let update = Box::new(move |_: &_, _| if hearing.load(Ordering::Relaxed) { Reply::Mute } else { Reply::Store });
    let facilitator = facilitator(&world, Plan { update, ..Plan::default() });
    let mut command = validator(scratch.path(), folder.path(), &facilitator.url, "0ms");
    let running = Running::start(command.env("RUST_LOG", "error"));
    let jobs = jobs(3);
    jobs.iter().for_each(|job| facilitator.submit(job.clone()));
    facilitator.wait("the first update of each", |state| state.updates == 3);
    // The second signal takes the time for the answers away.
    running.signal(Signal::TERM);
    let finished = running.stop(Signal::TERM);
    assert_eq!(finished.code, Some(3), "{}", finished.stderr);
    assert!(finished.stderr.contains("18 messages unsent"), "{}", finished.stderr);

    silent.store(false, Ordering::Relaxed);
    let running = Running::start(&mut validator(scratch.path(), folder.path(), &facilitator.url, "0ms"));
    for job in &jobs {
        assert_eq!(facilitator.history(&job.uuid), GOOD);
    }
    assert!(facilitator.state().repeats > 0);
    let finished = running.stop(Signal::TERM);
    assert_eq!((finished.code, troubles(&finished.stderr)), (Some(0), Vec::new()));
    facilitator.stop();
    nothing_left(scratch.path());
}

#[test]
fn a_state_folder_in_use_is_one_clear_line_and_exit_code_2() {
    let world = World::new();
    let scratch = tempfile::tempdir().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let facilitator = facilitator(&world, Plan::default());
    let command = || validator(scratch.path(), folder.path(), &facilitator.url, "0ms");
    let running = Running::start(&mut command());
    facilitator.wait("the first validator", |state| state.welcomed == 1);
    let second = run(&mut command());
    assert_eq!((second.code, second.stdout.as_str()), (Some(1), ""), "{}", second.stderr);
    assert_eq!(second.stderr.lines().count(), 1, "{}", second.stderr);
    let folder = folder.path().to_string_lossy().into_owned();
    for part in ["error: ", &folder, "in use by process"] {
        assert!(second.stderr.contains(part), "{}", second.stderr);
    }
    assert_eq!(running.stop(Signal::TERM).code, Some(0));
    facilitator.stop();
    nothing_left(scratch.path());
}
