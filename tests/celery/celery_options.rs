//! Options of single tasks, by Celery's names: real producers send tasks to a worker of ours that was given some.

use crate::example;
use crate::testkit::celery as celery_kit;
use crate::testkit::redis as redis_kit;
use crate::testkit::threads::NoThreads;
use crate::testkit::wait::{LONG, until};

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use celery_kit::{Client, Feed, Gate, Ours, settings, worker_process};
use crossbeam_channel::bounded;
use phalanx::celery::worker::{Registry, TaskError, TaskOptions};
use phalanx::celery::{AppConfig, PANICKED, Task, TaskError as Ended};
use redis_kit::RedisServer;
use rustix::process::Signal;
use serde_json::{Value, json};

const SOON: Duration = Duration::from_millis(50);

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// Options with which these failures are tried again soon, three times at most.
fn retrying(exceptions: &[&str]) -> TaskOptions {
    let options = TaskOptions { autoretry_for: names(exceptions), default_retry_delay: SOON, ..Default::default() };
    TaskOptions { dont_autoretry_for: names(&["KeyError"]), ..options }
}

/// Tasks that fail with what they are given until they were tried often enough; and how often they were begun.
fn failing() -> (Registry, Arc<AtomicUsize>) {
    let begun = Arc::new(AtomicUsize::new(0));
    let counted = begun.clone();
    let fail = move |retries: u32, kind: &str, times: u32| {
        counted.fetch_add(1, Ordering::SeqCst);
        match retries < times {
            true => Err(TaskError::new(kind, "away")),
            false => Ok(json!(retries)),
        }
    };
    let registry = Registry::new()
        .register_with("flaky", retrying(&["OSError", "KeyError"]), move |cx, args| {
            fail(cx.retries(), &args.get::<String>(0, "kind")?, args.get(1, "times")?)
        })
        .register_with("falling", retrying(&[PANICKED]), |cx, _| match cx.retries() {
            0 => panic!("the handler fell"),
            retries => Ok(json!(retries)),
        })
        .register_with("once", TaskOptions { max_retries: Some(1), ..retrying(&[]) }, |_, _| {
            Err(TaskError::again("OSError", "away"))
        })
        .register_with("backing_off", TaskOptions { retry_backoff: Some(1), ..retrying(&["OSError"]) }, |cx, _| {
            // What waits is none or one second.
            if cx.retries() == 0 { Err(TaskError::new("OSError", "away")) } else { Ok(json!(cx.retries())) }
        });
    (registry, begun)
}

#[test]
fn failures_that_the_options_name_are_tried_again_as_celery_does() {
    let _none = NoThreads::expected();
    let Some(server) = RedisServer::start() else { return };
    let Some(mut feed) = Feed::start(&server.url()) else { return };
    let (registry, begun) = failing();
    let worker = Ours::ready(settings(server.config()), registry);
    let id = feed.send("flaky", json!({"args": ["ConnectionError", 2]}));
    let done = feed.ask("watch", json!({"id": id}));
    assert_eq!((&done["result"], begun.swap(0, Ordering::SeqCst)), (&json!(2), 3), "it is a kind of OSError: {done}");
    let done = feed.run("flaky", json!({"args": ["TimeoutError", 9]}));
    assert_eq!((&done["raised"]["type"], begun.swap(0, Ordering::SeqCst)), (&json!("TimeoutError"), 4), "{done}");
    for kind in ["KeyError", "ValueError"] {
        let done = feed.run("flaky", json!({"args": [kind, 9]}));
        assert_eq!((&done["raised"]["type"], begun.swap(0, Ordering::SeqCst)), (&json!(kind), 1), "{done}");
    }
    assert_eq!(feed.run("falling", json!({}))["result"], 1, "a panic is tried again when it is named");
    assert_eq!(feed.run("once", json!({}))["raised"]["type"], "OSError");
    assert_eq!(feed.run("backing_off", json!({}))["result"], 1);
    assert_eq!(worker.stop(LONG).left, 0);
}

#[test]
fn what_counts_is_the_message_then_the_task_then_the_settings() {
    let _none = NoThreads::expected();
    let Some(server) = RedisServer::start() else { return };
    let Some(mut feed) = Feed::start(&server.url()) else { return };
    let gate = Gate::new();
    let registry = gate.registry(example::registry());
    let wait = |cx: &phalanx::celery::worker::TaskCx, _| cx.sleep(LONG).map(|()| Value::Null);
    let hard = |seconds: f64| TaskOptions { time_limit: Some(Duration::from_secs_f64(seconds)), ..Default::default() };
    let soft = TaskOptions { soft_time_limit: Some(SOON), ..Default::default() };
    // One that is to succeed has time for it.
    let own_time = TaskOptions { soft_time_limit: Some(Duration::from_secs(600)), ..hard(600.0) };
    let registry = registry
        .register_with("short", hard(0.1), wait)
        .register_with("long", hard(600.0), wait)
        .register_with("soft", soft.clone(), wait)
        .register("plain", wait)
        .register_with("silent", TaskOptions { ignore_result: Some(true), ..soft }, |_, _| Ok(json!(1)))
        .with_options("gated", TaskOptions { track_started: Some(true), acks_late: Some(false), ..Default::default() })
        .with_options("noop", TaskOptions { rate_limit: Some("1/h".to_owned()), ..own_time })
        .with_options("fail", TaskOptions { acks_on_failure: Some(false), ..Default::default() });
    let mut config = settings(server.config());
    config.app.task_time_limit = Some(Duration::from_millis(100));
    let worker = Ours::ready(config, registry);

    for task in ["short", "plain"] {
        assert_eq!(feed.run(task, json!({}))["raised"]["type"], "TimeLimitExceeded", "{task}");
    }
    assert_eq!(feed.run("long", json!({"options": {"time_limit": 0.1}}))["raised"]["type"], "TimeLimitExceeded");
    let limited = json!({"options": {"soft_time_limit": 0.05, "time_limit": 600}});
    assert_eq!(feed.run("short", limited)["raised"]["type"], "SoftTimeLimitExceeded");
    assert_eq!(feed.run("soft", json!({}))["raised"]["type"], "SoftTimeLimitExceeded");

    let id = feed.send("gated", json!({"options": {"time_limit": 600}}));
    assert_eq!(gate.begun(), id);
    until("STARTED", || feed.ask("state", json!({"id": id}))["state"] == "STARTED");
    assert_eq!(server.cli::<usize>(&["EXISTS", "unacked"]), 0, "it is acknowledged already");
    gate.open(1);
    assert_eq!(feed.wait(&id)["state"], "SUCCESS");

    let id = feed.send("silent", json!({}));
    assert_eq!(feed.run("fail", json!({"args": ["ValueError", "x"]}))["state"], "FAILURE");
    assert_eq!(server.cli::<usize>(&["LLEN", "phalanx.aside"]), 1, "its message is kept");
    assert_eq!(feed.run("noop", json!({}))["state"], "SUCCESS");
    feed.send("noop", json!({}));
    until("the second one waits for its turn", || worker.state().counts.waiting == 1);
    assert_eq!(server.cli::<usize>(&["EXISTS", &format!("celery-task-meta-{id}")]), 0, "nobody wants it");

    let asked = json!(["rate_limit", "acks_late", "time_limit", "soft_time_limit", "max_retries"]);
    let request = json!({"method": "registered", "destination": [worker.hostname()], "args": asked});
    let shown = feed.ask("inspect", request)["answer"][worker.hostname()].clone();
    for line in [
        "noop [rate_limit=1/h acks_late=True time_limit=600 soft_time_limit=600 max_retries=3]",
        "gated [acks_late=False time_limit=0.1 max_retries=3]",
        "long [acks_late=True time_limit=600 max_retries=3]",
    ] {
        assert!(shown.as_array().unwrap().contains(&json!(line)), "{line}: {shown}");
    }
}

#[test]
fn a_handler_that_runs_on_after_its_time_limit_is_named_until_it_ends() {
    let _none = NoThreads::expected();
    let Some(server) = RedisServer::start() else { return };
    let (go, wait) = bounded::<()>(1);
    let options = TaskOptions { time_limit: Some(SOON), ..Default::default() };
    let registry = example::registry().register_with("deaf", options, move |_, _| {
        wait.recv().unwrap();
        Ok(json!("too late"))
    });
    let mut config = settings(server.config());
    config.concurrency = 2;
    let (worker, client) = (Ours::ready(config, registry), Client::start(server.config()));
    let late = client.handle().send(Task::new("deaf")).unwrap();
    let Err(Ended::Failed { exception, .. }) = late.wait(LONG) else { panic!("it is over its time limit") };
    assert_eq!(exception.exc_type, "TimeLimitExceeded");
    until("it is named", || worker.state().overdue.len() == 1);
    let overdue = worker.state().overdue.remove(0);
    assert_eq!((overdue.id.as_str(), overdue.name.as_str()), (late.id(), "deaf"));
    until("its message is settled", || worker.state().counts.total() == 0);
    // The other thread goes on.
    assert_eq!(client.handle().send(Task::new("add").args(json!([1, 2]))).unwrap().wait(LONG), Ok(json!(3)));
    go.send(()).unwrap();
    until("it has ended", || worker.state().overdue.is_empty());
    let meta = late.fetch(crate::testkit::wait::far()).unwrap().unwrap();
    assert_eq!(meta.exception().unwrap().exc_type, "TimeLimitExceeded", "what it returned does not count");
}

#[test]
fn what_had_begun_on_a_lost_worker_has_failed_if_it_is_not_to_be_begun_again() {
    let _none = NoThreads::expected();
    for elsewhere in [false, true] {
        let Some(server) = RedisServer::start() else { return };
        let mut app = json!({"task_reject_on_worker_lost": false});
        if elsewhere {
            app["result_backend"] = server.url().replace("/0", "/1").into();
        }
        let options = format!("--threads 1 --liveness 0.6 --settings {}", app.to_string().replace(' ', ""));
        let lost = worker_process(&server.url(), &options);
        let app = AppConfig::parse(&app.to_string()).unwrap();
        let client =
            phalanx::celery::CeleryConfig { app: app.clone(), ..phalanx::celery::CeleryConfig::new(server.config()) };
        let client = Client::start_with(client);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notes");
        let record = |seconds: f64| {
            Task::new("record").kwarg("path", path.to_str().unwrap()).kwarg("seconds", seconds).priority(3)
        };
        let begun = client.handle().send(record(3600.0)).unwrap();
        until("it runs", || path.exists());
        let waiting = client.handle().send(Task::new("who")).unwrap();
        until("the other one is held", || server.cli::<usize>(&["HLEN", "unacked"]) == 2);
        assert_eq!(lost.stop(Signal::KILL).code, None);
        let config = phalanx::celery::worker::WorkerConfig { app, liveness: 12 * SOON, ..settings(server.config()) };
        let worker = Ours::ready(config, example::registry());
        let Err(Ended::Failed { exception, .. }) = begun.wait(LONG) else { panic!("its worker was lost") };
        assert_eq!(exception.exc_type, "WorkerLostError");
        assert_eq!(waiting.wait(LONG).unwrap()["redelivered"], true, "what had not begun is run");
        until("nothing is held", || server.cli::<usize>(&["EXISTS", "unacked", "unacked_index"]) == 0);
        assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 1, "it was begun once");
        assert_eq!(worker.stop(LONG).left, 0);
    }
}

#[test]
fn failures_that_are_to_be_expected_are_no_errors_in_the_log() {
    let _none = NoThreads::expected();
    let Some(server) = RedisServer::start() else { return };
    let app = json!({"task_annotations": {"fail": {"throws": ["LookupError"]}}});
    let worker = worker_process(&server.url(), &format!("--settings {app}"));
    let client = Client::start(server.config());
    for kind in ["KeyError", "ValueError"] {
        let failed = client.handle().send(Task::new("fail").args(json!([kind, "x"]))).unwrap();
        assert!(matches!(failed.wait(LONG), Err(Ended::Failed { .. })));
    }
    let log = worker.stop(Signal::TERM).stderr;
    assert!(log.contains("failed: ValueError: x") && !log.contains("KeyError"), "{log}");
}

#[test]
fn what_the_worker_sends_goes_where_its_options_and_routes_say() {
    let _none = NoThreads::expected();
    let Some(server) = RedisServer::start() else { return };
    let Some(mut feed) = Feed::start(&server.url()) else { return };
    let hour = Some(Duration::from_secs(3600));
    let options =
        TaskOptions { queue: Some("adds".to_owned()), priority: Some(6), expires: hour, ..Default::default() };
    let mut config = settings(server.config());
    config.app = AppConfig::parse(&json!({"task_routes": {"ec*": {"queue": "echoes"}}}).to_string()).unwrap();
    let worker = Ours::ready(config, example::registry().with_options("add", options));
    let own = json!({"task": "add", "options": {"queue": "own", "priority": 0}});
    let sent = json!({"options": {"queue": "celery", "link": [{"task": "add"}, {"task": "echo"}, own]}});
    assert_eq!(feed.run("noop", sent)["state"], "SUCCESS");
    until("they are sent", || server.cli::<usize>(&["EXISTS", "adds\x06\x166", "echoes", "own"]) == 3);
    let messages: Vec<String> = server.cli(&["LRANGE", "adds\x06\x166", "0", "-1"]);
    let message: Value = serde_json::from_str(&messages[0]).unwrap();
    assert!(message["headers"]["expires"].is_string() && message["properties"]["priority"] == 6, "{message}");
    assert_eq!(worker.stop(LONG).left, 0);
}
