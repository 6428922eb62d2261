//! The process of a worker is killed between the parts of a chord: each part is counted once, and the body is called
//! once.

use crate::example;
use crate::testkit::celery as celery_kit;
use crate::testkit::redis as redis_kit;
use crate::testkit::threads::NoThreads;
use crate::testkit::wait::{LONG, until};

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use celery_kit::{Client, Gate, Ours, settings, worker_process};
use phalanx::base::rng::Rng;
use phalanx::celery::worker::{Registry, WorkerConfig};
use phalanx::celery::{Canvas, Keyspace, Task};
use redis_kit::RedisServer;
use rustix::process::Signal;
use serde_json::{Value, json};

/// A worker that soon takes the silent for dead, and its own queue for bodies.
fn impatient(server: &RedisServer) -> WorkerConfig {
    let mut config = settings(server.config());
    (config.concurrency, config.liveness) = (2, Duration::from_millis(600));
    config.queues = vec!["celery".to_owned(), "bodies".to_owned()];
    config
}

/// `body` gives how many results it got, and counts how often it is run.
fn bodies(registry: Registry) -> (Registry, Arc<AtomicUsize>) {
    let runs = Arc::new(AtomicUsize::new(0));
    let counted = runs.clone();
    let registry = registry.register("body", move |_, args| {
        counted.fetch_add(1, Ordering::SeqCst);
        Ok(json!(args.get::<Vec<Value>>(0, "results")?.len()))
    });
    (registry, runs)
}

#[test]
fn killed_between_the_parts_of_a_chord_each_counts_once() {
    let _none = NoThreads::expected();
    let Some(server) = RedisServer::start() else { return };
    let seed = Rng::from_entropy().next_u64();
    println!("seed {seed}");
    let mut rng = Rng::new(seed);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notes");
    let lines = || std::fs::read_to_string(&path).unwrap_or_default().lines().count();
    let (registry, runs) = bodies(example::registry());
    let survivor = Ours::ready(impatient(&server), registry);
    let client = Client::start(server.config());
    let record = |n: u64| {
        let task = Task::new("record").kwarg("path", path.to_str().unwrap());
        task.kwarg("seconds", (n % 20) as f64 / 1000.0)
    };
    let (rounds, parts) = (3, 40);
    let mut chords = Vec::new();
    for _ in 0..rounds {
        let victim = worker_process(&server.url(), "--threads 2 --liveness 0.6");
        let before = lines();
        let header = Canvas::group((0..parts).map(record));
        chords.push(client.handle().send_canvas(Canvas::chord(header, Task::new("body").queue("bodies"))).unwrap());
        let moment = before + 2 + (rng.next_u64() % 60) as usize;
        until("some have run", || lines() >= moment);
        victim.stop(Signal::KILL);
    }
    for chord in &chords {
        assert_eq!(chord.wait(LONG), Ok(json!(parts)));
    }
    until("everything is settled", || survivor.state().counts.total() == 0);
    assert_eq!((runs.load(Ordering::SeqCst), server.cli::<usize>(&["HLEN", "unacked"])), (rounds, 0));
    println!("{} put back by the survivor", survivor.state().restored);
    let left: Vec<String> = server.cli(&["KEYS", "celery-taskset-meta-*"]);
    assert!(left.len() == rounds && left.iter().all(|key| key.ends_with(".c")), "{left:?}");
}

#[test]
fn the_last_part_of_a_killed_worker_calls_the_body_when_it_is_run_again() {
    let _none = NoThreads::expected();
    let Some(server) = RedisServer::start() else { return };
    let gate = Gate::new();
    let (registry, runs) = bodies(gate.registry(Registry::new()));
    let worker = Ours::ready(impatient(&server), registry);
    let client = Client::start(server.config());
    let names = Keyspace::default();
    let send = || {
        let chord = Canvas::chord(Canvas::group([Task::new("gated")]), Task::new("body"));
        let chord = client.handle().send_canvas(chord).unwrap();
        let part = gate.begun();
        let keys: Vec<String> = server.cli(&["KEYS", &format!("{}.s", names.group("*"))]);
        assert_eq!(keys.len(), 1, "{keys:?}");
        (chord, part, keys[0].trim_end_matches(".s").to_owned())
    };
    // It was killed when the part was recorded, and before the body was called.
    let recorded = |key: &str, part: &str| {
        let entry = json!([1, part, "SUCCESS", "before"]).to_string();
        server.cli::<i64>(&["ZADD", &format!("{key}.j"), "0", &entry]);
        server.cli::<i64>(&["SADD", &format!("{key}.d"), &format!("{part}:0")]);
    };
    let (chord, part, key) = send();
    recorded(&key, &part);
    let _: () = server.cli(&["SET", &format!("{key}.c"), &format!("phalanx:{part}:0"), "EX", "100"]);
    gate.open(1);
    assert_eq!((chord.wait(LONG), runs.load(Ordering::SeqCst)), (Ok(json!(1)), 1));
    // Somebody else is about to call the body, or has called it.
    for claim in ["somebody", "done"] {
        let (chord, part, key) = send();
        recorded(&key, &part);
        let _: () = server.cli(&["SET", &format!("{key}.c"), claim, "EX", "100"]);
        gate.open(1);
        until("it is settled", || worker.state().counts.total() == 0);
        assert_eq!((chord.ended(), server.cli::<usize>(&["HLEN", "unacked"])), ((0, 1), 0), "{claim}");
        assert_eq!(server.cli::<i64>(&["DEL", &format!("{key}.s")]), 1);
    }
    assert_eq!(runs.load(Ordering::SeqCst), 1);
}
