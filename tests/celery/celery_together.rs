//! Workers of Celery and of ours side by side: they share a queue, the steps of a chain and remote control. And our
//! client with a worker of Celery that has settings of its own.

use crate::example;
use crate::testkit::celery as celery_kit;
use crate::testkit::redis as redis_kit;
use crate::testkit::threads::NoThreads;
use crate::testkit::wait::{LONG, far, until};

use std::collections::{BTreeMap, BTreeSet};

use celery_kit::{Client, Feed, Ours, Worker, celery, settings};
use phalanx::celery::worker::WorkerConfig;
use phalanx::celery::{AppConfig, Canvas, CeleryConfig, Task, TaskError, Terminate, meta_key};
use redis_kit::RedisServer;
use serde_json::{Value, json};

/// A queue of the worker of Celery alone.
const THEIRS: &str = "python";

/// Tasks that either may take.
const SHARED: usize = 24;

#[test]
fn workers_of_both_kinds_share_a_queue_the_steps_of_a_chain_and_remote_control() {
    let _none = NoThreads::expected();
    let Some(server) = RedisServer::start() else { return };
    let Some(mut feed) = Feed::start(&server.url()) else { return };
    let Some(command) = celery("celery_feed", &server.url()) else { return };
    let queues = format!("celery,{THEIRS}");
    let Some(theirs) = Worker::start_from(command, &["--pool", "threads", "-c", "1", "-Q", &queues]) else { return };
    // Neither takes more than it runs and one, so that both have a share.
    let config = WorkerConfig { concurrency: 1, prefetch_multiplier: 2, ..settings(server.config()) };
    let ours = Ours::ready(
        WorkerConfig { queues: vec!["celery".to_owned(), "ours".to_owned()], ..config },
        example::registry(),
    );
    let client = Client::start(server.config());
    let names: BTreeSet<String> = [ours.hostname().to_owned(), theirs.name().to_owned()].into();

    both_take_from_one_queue(&mut feed);
    a_chain_goes_through_both(&mut feed, &client);
    both_answer_and_obey(&mut feed, &client, &names);

    until("ours has settled everything", || ours.state().counts.total() == 0);
    drop(client);
    assert_eq!(ours.stop(LONG).left, 0);
    theirs.stop();
    assert_eq!(server.cli::<usize>(&["HLEN", "unacked"]), 0);
}

/// Each task is run once, some by the one and some by the other.
fn both_take_from_one_queue(feed: &mut Feed) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notes");
    let spec = json!({"task": "record", "kwargs": {"path": path, "seconds": 0.1}});
    let sent = feed.ask("send_many", json!({"specs": vec![spec; SHARED]}));
    let ended = feed.ask("wait_many", json!({"ids": sent["ids"]}));
    assert_eq!(ended["states"], json!({"SUCCESS": SHARED}));
    let notes = std::fs::read_to_string(path).unwrap();
    let mut begun: BTreeMap<String, usize> = BTreeMap::new();
    let mut by: BTreeMap<u64, usize> = BTreeMap::new();
    for line in notes.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()) {
        if line["what"] == "begin" {
            *begun.entry(line["id"].as_str().unwrap().to_owned()).or_default() += 1;
            *by.entry(line["pid"].as_u64().unwrap()).or_default() += 1;
        }
    }
    assert_eq!((begun.len(), begun.values().max()), (SHARED, Some(&1)), "{begun:?}");
    assert!(by.len() == 2 && by.contains_key(&u64::from(std::process::id())), "both have a share: {by:?}");
}

/// From ours to theirs and back to ours, whoever sends it.
fn a_chain_goes_through_both(feed: &mut Feed, client: &Client) {
    let step = |task: &str, args: Value, queue: &str| json!({"task": task, "args": args, "options": {"queue": queue}});
    let steps = json!([
        step("add", json!([1, 2]), "ours"),
        step("python_add", json!([10]), THEIRS),
        step("add", json!([100]), "ours"),
    ]);
    let sent = feed.ask("send_chain", json!({"specs": steps}));
    assert_eq!(feed.wait(sent["ids"][2].as_str().unwrap())["result"], 113);
    let canvas = Canvas::chain([
        Task::new("python_add").args(json!([1, 2])).queue(THEIRS),
        Task::new("add").args(json!([10])).queue("ours"),
        Task::new("python_add").args(json!([100])).queue(THEIRS),
    ]);
    assert_eq!(client.handle().send_canvas(canvas).unwrap().wait(LONG), Ok(json!(113)));
}

/// One question is answered by both, and one command is obeyed by both, whoever asks.
fn both_answer_and_obey(feed: &mut Feed, client: &Client, names: &BTreeSet<String>) {
    let celery = client.handle();
    assert_eq!(celery.ping(LONG).unwrap().into_iter().collect::<BTreeSet<_>>(), *names);
    let all: Vec<&String> = names.iter().collect();
    let queues = feed.ask("inspect", json!({"method": "active_queues", "destination": all}))["answer"].take();
    let first = |name: &String| queues[name][0]["name"].clone();
    assert!(names.iter().all(|name| first(name) == "celery"), "{queues}");
    let ids = ["early-1", "early-2", "early-3"];
    let arguments = json!({"task_id": ids, "terminate": false});
    let answers = feed.ask("broadcast", json!({"method": "revoke", "arguments": arguments}));
    assert_eq!(answers["answer"].as_array().map(Vec::len), Some(2), "{answers}");
    for id in ids {
        let revoked = celery.send(Task::new("noop").id(id)).unwrap().wait(LONG);
        assert_eq!(revoked, Err(TaskError::Revoked { reason: "revoked".to_owned() }), "whoever takes it");
    }
    let arguments = json!({"task_name": "noop", "rate_limit": "1000/s"});
    let limited = celery.inspect("rate_limit", &arguments, &[], LONG).unwrap();
    let said = json!({"ok": "new rate limit set successfully"});
    assert!(limited.len() == 2 && limited.values().all(|answer| *answer == said), "{limited:?}");
}

#[test]
fn our_client_and_a_worker_of_celery_agree_on_settings_and_control() {
    let _none = NoThreads::expected();
    let Some(server) = RedisServer::start() else { return };
    let app = json!({
        "broker_transport_options": {"priority_steps": [0, 1, 2, 3, 4, 5, 6, 7, 8, 9], "sep": ":",
            "global_keyprefix": "x:"},
        "result_backend": server.url().replace("/0", "/1"),
        "result_backend_transport_options": {"global_keyprefix": "mine_"},
        "task_default_queue": "d", "task_ignore_result": false,
    });
    let Some(mut command) = celery("celery_feed", &server.url()) else { return };
    command.env("CELERY_TEST_SETTINGS", app.to_string());
    let Some(worker) = Worker::start_from(command, &["--pool", "threads", "-c", "1"]) else { return };
    let app = AppConfig::parse(&app.to_string()).unwrap();
    let client = Client::start_with(CeleryConfig { app, ..CeleryConfig::new(server.config()) });
    let celery = client.handle();
    let add = || Task::new("python_add").args(json!([20, 22]));
    for priority in [0, 5, 9] {
        assert_eq!(celery.send(add().priority(priority)).unwrap().wait(LONG), Ok(json!(42)), "{priority}");
    }
    let sent = celery.send(add()).unwrap();
    assert_eq!(sent.wait(LONG), Ok(json!(42)));
    let mut results = server.connection();
    results.request(redis::cmd("SELECT").arg(1)).unwrap();
    let key = format!("mine_{}", meta_key(sent.id()));
    assert!(results.query::<bool>(redis::cmd("EXISTS").arg(key)).unwrap());

    let name = worker.name().to_owned();
    let ask = |method: &str, arguments: Value| {
        let mut answers = celery.inspect(method, &arguments, std::slice::from_ref(&name), LONG).unwrap();
        answers.remove(&name).unwrap_or_else(|| panic!("{method}: {answers:?}"))
    };
    assert_eq!(ask("active_queues", json!({}))[0]["name"], "d");
    assert_eq!(ask("stats", json!({}))["pool"]["max-concurrency"], 1);
    assert_eq!(
        ask("rate_limit", json!({"task_name": "noop", "rate_limit": "100/s"}))["ok"],
        "new rate limit set successfully"
    );
    assert_eq!(ask("add_consumer", json!({"queue": "more"}))["ok"], "add consumer more");
    until("it takes from the queue", || {
        ask("active_queues", json!({})).as_array().unwrap().iter().any(|queue| queue["name"] == "more")
    });
    assert_eq!(celery.send(add().queue("more")).unwrap().wait(LONG), Ok(json!(42)));
    assert_eq!(celery.revoke(&["early"], &Terminate::No, far()).unwrap(), 1);
    until("it has heard of it", || ask("revoked", json!({})).as_array().unwrap().contains(&json!("early")));
    let revoked = celery.send(add().id("early")).unwrap().wait(LONG);
    assert_eq!(revoked, Err(TaskError::Revoked { reason: "revoked".to_owned() }));
    // By a stamp.
    let stamps = json!({"headers": {"team": ["red"]}});
    assert!(ask("revoke_by_stamped_headers", stamps)["ok"].as_str().unwrap().contains("flagged as revoked"));
    let canvas = Canvas::from(add()).stamp("team", "red");
    let revoked = celery.send_canvas(canvas).unwrap().wait(LONG);
    assert_eq!(revoked, Err(TaskError::Revoked { reason: "revoked".to_owned() }));
    drop(client);
    worker.stop();
}
