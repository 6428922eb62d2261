//! The process of a worker is killed while its tasks run: other workers run them again, marked, and nothing is lost.
//!
//! `PHALANX_TEST_KILLS` says how often it is killed.

use crate::example;
use crate::testkit::celery as celery_kit;
use crate::testkit::redis as redis_kit;
use crate::testkit::threads::NoThreads;
use crate::testkit::wait::{LONG, until};

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use celery_kit::{Client, Ours, Worker, celery, settings, worker_process};
use phalanx::base::rng::Rng;
use phalanx::celery::Task;
use phalanx::celery::worker::WorkerConfig;
use redis_kit::RedisServer;
use rustix::process::Signal;
use serde_json::{Value, json};

const KILLS: usize = 10;

/// What the tasks have noted, each with its id: whether it began or ended, and whether it was marked as delivered
/// before.
fn notes(path: &Path) -> Vec<(String, String, bool)> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    // The last line of one that was killed may be cut short.
    let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let text_of = |line: &Value, key: &str| line[key].as_str().unwrap().to_owned();
    lines.map(|line| (text_of(&line, "id"), text_of(&line, "what"), line["redelivered"] == true)).collect()
}

/// A worker that soon takes the silent for dead.
fn impatient(server: &RedisServer) -> WorkerConfig {
    let mut config = settings(server.config());
    (config.concurrency, config.liveness) = (2, Duration::from_millis(600));
    config
}

fn record(path: &Path, seconds: f64) -> Task {
    Task::new("record").kwarg("path", path.to_str().unwrap()).kwarg("seconds", seconds)
}

#[test]
fn the_task_of_a_killed_worker_is_run_by_another_and_marked() {
    let _none = NoThreads::expected();
    let Some(server) = RedisServer::start() else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notes");
    let client = Client::start(server.config());
    let first = worker_process(&server.url(), "--threads 1 --liveness 0.6");
    let pending = client.handle().send(record(&path, 3600.0)).unwrap();
    // What waits and what is scheduled comes back as well.
    let waiting = client.handle().send(Task::new("who")).unwrap();
    let later = client.handle().send(Task::new("who").countdown(Duration::from_millis(500))).unwrap();
    until("it runs", || notes(&path).len() == 1);
    until("the others are held", || server.cli::<usize>(&["HLEN", "unacked"]) == 3);
    let reported = first.stop(Signal::KILL);
    assert_eq!(reported.code, None);
    // It takes long only as long as it is not marked.
    let second = Ours::ready(impatient(&server), example::registry());
    assert_eq!(pending.wait(LONG), Ok(json!(true)));
    for pending in [waiting, later] {
        let who = pending.wait(LONG).unwrap();
        assert_eq!((&who["redelivered"], &who["pid"]), (&json!(true), &json!(std::process::id())));
    }
    assert_eq!((second.state().restored, notes(&path).len()), (3, 3));
    until("everything is settled", || second.state().counts.total() == 0);
    assert_eq!(server.cli::<usize>(&["HLEN", "unacked"]), 0);
    // Of the dead nothing is left.
    until("it is forgotten", || server.cli::<usize>(&["SCARD", "phalanx.workers"]) == 1);
}

#[test]
fn the_task_of_a_killed_worker_of_ours_is_run_by_one_of_celery_and_the_other_way_round() {
    let _none = NoThreads::expected();
    let Some(server) = RedisServer::start() else { return };
    let Some(mut command) = celery("celery_feed", &server.url()) else { return };
    command.env("CELERY_VISIBILITY", "1");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notes");
    let client = Client::start(server.config());
    let options = "--threads 1 --visibility 1 --liveness 60";
    let ours = worker_process(&server.url(), options);
    // It takes long only as long as it is not marked.
    let first = client.handle().send(record(&path, 3600.0)).unwrap();
    until("ours runs it", || notes(&path).len() == 1);
    ours.stop(Signal::KILL);
    let Some(theirs) = Worker::start_from(command, &["--pool", "solo"]) else { return };
    assert_eq!(first.wait(LONG), Ok(json!(true)), "marked");
    let second = client.handle().send(record(&path, 3600.0)).unwrap();
    until("theirs runs it", || notes(&path).last().is_some_and(|(id, ..)| id == second.id()));
    theirs.kill();
    let ours = worker_process(&server.url(), options);
    assert_eq!(second.wait(LONG), Ok(json!(true)), "marked");
    ours.stop(Signal::TERM);
    let expected =
        [(&first, "begin", false), (&first, "begin", true), (&first, "end", true), (&second, "begin", false)];
    let seen = notes(&path);
    for (note, (pending, what, marked)) in seen.iter().zip(expected) {
        assert_eq!((note.0.as_str(), note.1.as_str(), note.2), (pending.id(), what, marked), "{seen:?}");
    }
    assert_eq!(seen.len(), 6, "{seen:?}");
    assert_eq!(server.cli::<usize>(&["HLEN", "unacked"]), 0);
}

#[test]
fn killed_at_random_moments_they_lose_nothing_and_run_nothing_twice_unmarked() {
    let kills = std::env::var("PHALANX_TEST_KILLS").map_or(KILLS, |n| n.parse().expect("PHALANX_TEST_KILLS: a number"));
    let _none = NoThreads::expected();
    let Some(server) = RedisServer::start() else { return };
    let seed = Rng::from_entropy().next_u64();
    println!("seed {seed}");
    let mut rng = Rng::new(seed);
    let mut below = |n: u64| rng.next_u64() % n;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notes");
    let client = Client::start(server.config());
    let survivor = Ours::ready(impatient(&server), example::registry());
    let mut sent = Vec::new();
    for _ in 0..kills {
        let victim = worker_process(&server.url(), "--threads 2 --liveness 0.6");
        let before = notes(&path).len();
        for _ in 0..60 {
            let seconds = below(20) as f64 / 1000.0;
            sent.push(client.handle().send(record(&path, seconds)).unwrap());
        }
        let moment = before + below(100) as usize;
        until("some have run", || notes(&path).len() >= moment);
        victim.stop(Signal::KILL);
    }
    for pending in &sent {
        pending.wait(LONG).unwrap();
    }
    let mut runs = BTreeMap::<String, (usize, usize, usize)>::new();
    for (id, what, marked) in notes(&path) {
        let (plain, again, ended) = runs.entry(id).or_default();
        *match (what.as_str(), marked) {
            ("begin", false) => plain,
            ("begin", true) => again,
            _ => ended,
        } += 1;
    }
    let marked = runs.values().filter(|(_, again, _)| *again > 0).count();
    let twice = runs.values().filter(|(plain, again, _)| plain + again > 1).count();
    println!(
        "{kills} kills: {} sent, {} run, {marked} of them marked as redelivered ({twice} had begun before), {} put \
         back by the survivor",
        sent.len(),
        runs.len(),
        survivor.state().restored
    );
    for pending in &sent {
        let (plain, _, ended) = runs[pending.id()];
        assert!(plain <= 1 && ended >= 1, "{}: {:?}", pending.id(), runs[pending.id()]);
    }
    until("everything is settled", || survivor.state().counts.total() == 0);
    assert_eq!(server.cli::<usize>(&["HLEN", "unacked"]), 0);
    assert_eq!(server.cli::<usize>(&["LLEN", "celery"]), 0);
}
