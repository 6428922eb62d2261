//! Periodic tasks: those of `celery beat` run on our worker, and ours on a worker of Celery.

use crate::testkit::celery as celery_kit;
use crate::testkit::process::Running;
use crate::testkit::redis as redis_kit;
use crate::testkit::threads::NoThreads;
use crate::testkit::wait::{LONG, until};

use std::time::Duration;

use celery_kit::{Client, Ours, Worker, celery, settings};
use crossbeam_channel::bounded;
use phalanx::base::thread::Group;
use phalanx::celery::worker::Registry;
use phalanx::celery::{Beat, BeatEntry, BeatError, Crontab, Schedule, Task};
use phalanx::ops::status::Board;
use redis_kit::RedisServer;
use rustix::process::Signal;
use serde_json::{Value, json};

#[test]
fn celery_beat_feeds_our_worker_by_interval_and_by_crontab() {
    let _none = NoThreads::expected();
    let Some(server) = RedisServer::start() else { return };
    let (report, ticks) = bounded(1000);
    let registry = Registry::new().register("tick", move |_, args| {
        report.send(args.get::<String>(0, "what")?).unwrap();
        Ok(Value::Null)
    });
    let worker = Ours::ready(settings(server.config()), registry);
    let folder = tempfile::tempdir().unwrap();
    let mut beats = Vec::new();
    for entry in ["interval", "crontab"] {
        let Some(mut command) = celery("celery_beat_app", &server.url()) else { return };
        // Its usual scheduler keeps its times in a file.
        command.args(["beat", "-S", "celery.beat:Scheduler", "--pidfile="]).current_dir(folder.path());
        beats.push(Running::start(command.env("CELERY_BEAT", entry)));
    }
    let (mut interval, mut crontab) = (0, 0);
    while interval < 3 || crontab < 1 {
        match ticks.recv_timeout(LONG).expect("a tick of celery beat").as_str() {
            "interval" => interval += 1,
            _ => crontab += 1,
        }
    }
    for beat in beats {
        beat.stop(Signal::TERM);
    }
    until("all is settled", || worker.state().counts.total() == 0);
    assert_eq!(worker.stop(LONG).left, 0);
}

#[test]
fn our_periodic_tasks_feed_a_worker_of_celery() {
    let _none = NoThreads::expected();
    let Some(server) = RedisServer::start() else { return };
    let Some(worker) = Worker::start(&server.url(), &["--pool", "solo"]) else { return };
    let client = Client::start(server.config());
    let crontab = Crontab::parse("0 0 29 2 *").unwrap().in_zone("Europe/Zurich").unwrap();
    let entry = |name: &str, schedule| {
        let task = Task::new("t.note").args(json!([name]));
        BeatEntry { name: name.to_owned(), schedule, task }
    };
    let often = entry("often", Schedule::Every(Duration::from_millis(100)));
    let rare = entry("rare", Schedule::Crontab(Box::new(crontab)));
    let beat = Beat::start(client.handle(), vec![often, rare], &client.board).unwrap();
    let notes = |server: &RedisServer| server.cli::<usize>(&["LLEN", "notes"]);
    until("three runs", || notes(&server) >= 3);
    let report = beat.stop(LONG);
    assert!(report.is_clean(), "{report}");
    let help = "Periodic Celery tasks by what became of them.";
    let sent = client.board.metrics.counter("phalanx_celery_beat_total", help, &[("result", "sent")]);
    until("they are counted", || sent.get() >= 3);
    let all: Vec<String> = server.cli(&["LRANGE", "notes", "0", "-1"]);
    assert!(all.iter().all(|note| note == "often"), "29 February is far: {all:?}");
    drop(client);
    worker.stop();
}

#[test]
fn entries_of_no_use_are_refused_and_an_idle_beat_waits_for_its_next_task() {
    let _none = NoThreads::expected();
    let threads = Group::enter();
    let Some(server) = RedisServer::away() else { return };
    let client = Client::start(server.config());
    let entry = |interval| {
        let schedule = Schedule::Every(interval);
        vec![BeatEntry { name: "it".to_owned(), schedule, task: Task::new("t") }]
    };
    let refused = Beat::start(client.handle(), entry(Duration::ZERO), &Board::new()).unwrap_err();
    assert!(matches!(refused, BeatError::TooOften { .. }), "{refused}");
    let beat = Beat::start(client.handle(), entry(LONG), &Board::new()).unwrap();
    let waits = || threads.live().into_iter().find(|thread| thread.name == "cel-beat")?.activity.waits_for;
    until("it waits", || waits() == Some("the next periodic task"));
    drop(beat);
}
