//! Settings of an application, the same for real producers of Celery and for our worker and client.

use crate::example;
use crate::testkit::celery as celery_kit;
use crate::testkit::redis as redis_kit;
use crate::testkit::threads::NoThreads;
use crate::testkit::wait::{LONG, far, until};

use std::time::Duration;

use celery_kit::{Client, Feed, Gate, Ours, settings};
use phalanx::celery::worker::{CeleryWorker, Registry, WorkerConfig};
use phalanx::celery::{AppConfig, Canvas, CeleryConfig, Task, TaskError, Terminate};
use phalanx::ops::health::PartState;
use phalanx::ops::status::Board;
use phalanx::redis::RedisConfig;
use redis_kit::RedisServer;
use serde_json::{Value, json};

fn with(server: &RedisServer, app: &Value) -> WorkerConfig {
    WorkerConfig { app: AppConfig::parse(&app.to_string()).unwrap(), ..settings(server.config()) }
}

#[test]
fn keys_priorities_and_results_are_where_the_settings_say() {
    let _none = NoThreads::expected();
    let Some(server) = RedisServer::start() else { return };
    let app = json!({
        "broker_transport_options": {"priority_steps": [0, 1, 2, 3, 4, 5, 6, 7, 8, 9], "sep": ":",
            "queue_order_strategy": "priority", "global_keyprefix": "x:"},
        "result_backend": server.url().replace("/0", "/1"),
        "result_backend_transport_options": {"global_keyprefix": "mine"},
        "result_expires": 100, "result_extended": true, "task_track_started": true,
    });
    let Some(mut feed) = Feed::start_with(&server.url(), &app) else { return };
    let config = with(&server, &app);
    let client = CeleryConfig { app: config.app.clone(), ..CeleryConfig::new(server.config()) };
    let gate = Gate::new();
    let worker = Ours::ready(config, gate.registry(example::registry()));
    for priority in [0, 5, 9] {
        let done = feed.run("add", json!({"args": [1, 2], "options": {"priority": priority}}));
        assert_eq!(done["result"], 3, "{priority}: {done}");
    }
    let id = feed.send("gated", json!({}));
    assert_eq!(gate.begun(), id);
    until("STARTED", || feed.ask("state", json!({"id": id}))["state"] == "STARTED");
    gate.open(1);
    until("it is settled", || worker.state().counts.total() == 0);
    // Looked up when it is over, not heard of.
    assert_eq!(feed.ask("state", json!({"id": id}))["state"], "SUCCESS");
    let expected = json!({
        "name": "gated", "args": [], "kwargs": {}, "worker": worker.hostname(), "retries": 0, "queue": "celery",
    });
    assert_eq!(feed.ask("extended", json!({"id": id})), expected);
    let retried = feed.run("retry", json!({"args": [1, 3]}));
    assert_eq!(retried["result"], 1, "{retried}");
    let chain = json!([{"task": "add", "args": [1, 2]}, {"task": "add", "args": [3], "options": {"priority": 7}}]);
    let chain = feed.ask("send_chain", json!({"specs": chain}));
    assert_eq!(feed.wait(chain["ids"][1].as_str().unwrap())["result"], 6);
    let name = worker.hostname().to_owned();
    assert_eq!(feed.ask("ping", json!({"destination": [name]}))["answer"], json!([{name.clone(): {"ok": "pong"}}]));

    let ours = Client::start_with(client);
    let task = Task::new("add").args(json!([20, 22])).priority(5);
    assert_eq!(ours.handle().send(task).unwrap().wait(LONG), Ok(json!(42)));
    assert_eq!(ours.handle().ping(LONG / 4).unwrap(), [name]);
    until("everything is settled", || worker.state().counts.total() == 0);
    let keys: Vec<String> = server.cli(&["KEYS", "*"]);
    assert!(keys.iter().all(|key| key.starts_with("x:")), "{keys:?}");
    let _: () = server.cli(&["SWAPDB", "0", "1"]);
    let results: Vec<String> = server.cli(&["KEYS", "*"]);
    assert!(results.iter().all(|key| key.starts_with("mine_celery-task-meta-")), "{results:?}");
    assert!((1..=100).contains(&server.cli::<i64>(&["TTL", &results[0]])), "{results:?}");
}

#[test]
fn a_time_without_an_offset_is_in_the_zone_of_the_application() {
    let _none = NoThreads::expected();
    let Some(server) = RedisServer::start() else { return };
    let app = json!({"enable_utc": false, "timezone": "Asia/Tokyo"});
    let Some(mut feed) = Feed::start_with(&server.url(), &app) else { return };
    let worker = Ours::ready(with(&server, &app), example::registry());
    // Nine hours late, if it were read as UTC.
    let sent = feed.ask("send_naive", json!({"task": "who", "zone": "Asia/Tokyo", "seconds": 1}));
    assert_eq!(feed.wait(sent["id"].as_str().unwrap())["state"], "SUCCESS");
    let sent = feed.ask("send_naive", json!({"task": "who", "zone": "Asia/Tokyo", "seconds": 3600}));
    until("it waits for its time", || worker.state().counts.scheduled == 1);
    let _ = sent;
}

#[test]
fn a_task_that_is_acknowledged_early_is_begun_once_and_its_loss_is_a_failure() {
    let _none = NoThreads::expected();
    let Some(server) = RedisServer::start() else { return };
    let gate = Gate::new();
    let worker = Ours::ready(with(&server, &json!({"task_acks_late": false})), gate.registry(Registry::new()));
    let client = Client::start(server.config());
    let ended = client.handle().send(Task::new("gated")).unwrap();
    gate.begun();
    assert_eq!(server.cli::<usize>(&["EXISTS", "unacked", "unacked_index"]), 0, "nobody puts it back");
    gate.open(1);
    assert_eq!(ended.wait(LONG), Ok(json!(false)));
    let lost = client.handle().send(Task::new("gated")).unwrap();
    gate.begun();
    let report = worker.stop(Duration::ZERO);
    assert_eq!((report.cancelled, report.given_back, report.left), (1, 0, 0));
    let Err(TaskError::Failed { exception, .. }) = lost.wait(LONG) else { panic!("it was lost") };
    assert_eq!(exception.exc_type, "WorkerLostError");
    assert_eq!(server.cli::<usize>(&["LLEN", "celery"]), 0);
}

#[test]
fn failures_that_are_not_acknowledged_are_kept_and_what_nobody_wants_is_not_stored() {
    let _none = NoThreads::expected();
    let Some(server) = RedisServer::start() else { return };
    let gate = Gate::new();
    let app = json!({"task_acks_on_failure_or_timeout": false, "task_ignore_result": true});
    let worker = Ours::ready(with(&server, &app), gate.registry(example::registry()));
    let client = Client::start(server.config());
    let failed = client.handle().send(Task::new("fail").args(json!(["ValueError", "x"]))).unwrap();
    until("it is aside", || server.cli::<usize>(&["LLEN", "phalanx.aside"]) == 1);
    let aside: Vec<String> = server.cli(&["LRANGE", "phalanx.aside", "0", "-1"]);
    assert!(aside[0].contains("it failed: ValueError: x") && aside[0].contains(failed.id()), "{aside:?}");
    assert_eq!(server.cli::<usize>(&["EXISTS", &format!("celery-task-meta-{}", failed.id())]), 0);
    // What is over its time limit goes back.
    let limits = Task::new("gated").time_limits(None, Some(Duration::from_millis(200)));
    let late = client.handle().send(limits).unwrap();
    assert_eq!((gate.begun(), gate.begun()), (late.id().to_owned(), late.id().to_owned()));
    assert_eq!(worker.stop(Duration::ZERO).left, 0);
}

#[test]
fn keys_that_tell_of_producers_with_other_settings_are_told() {
    let _none = NoThreads::expected();
    let Some(server) = RedisServer::start() else { return };
    for key in ["celery:5", "celery\x06\x165", "celery\x06\x163x", "celery-beat"] {
        server.cli::<usize>(&["LPUSH", key, "x"]);
    }
    server.cli::<usize>(&["SADD", "x:_kombu.binding.celery", "x"]);
    let mut config = settings(server.config());
    config.liveness = Duration::from_millis(600);
    let worker = Ours::ready(config, Registry::new());
    until("they are seen", || worker.state().siblings.len() == 3);
    let told = worker.state().siblings.join("\n");
    for part in ["with sep \":\"", "with a priority step 5", "with global_keyprefix \"x:\""] {
        assert!(told.contains(part), "{part}: {told}");
    }
}

#[test]
fn tasks_go_where_the_routes_send_them_for_celery_and_for_us() {
    let _none = NoThreads::expected();
    let Some(server) = RedisServer::start() else { return };
    let app = json!({
        "task_routes": {"p*_add": "adds", "noop": {"queue": "one"}, "*known": {"queue": "late", "priority": 6}},
        "task_default_priority": 3, "task_default_queue": "usual",
    });
    let Some(mut feed) = Feed::start_with(&server.url(), &app) else { return };
    let config =
        CeleryConfig { app: AppConfig::parse(&app.to_string()).unwrap(), ..CeleryConfig::new(server.config()) };
    let client = Client::start_with(config);
    let take = |list: &str| -> Vec<String> { server.cli(&["LPOP", list, "9"]) };
    let lists = [
        ("noop", "one\x06\x163"),
        ("python_add", "adds\x06\x163"),
        ("record", "usual\x06\x163"),
        // To Celery a task that the sender does not know has no priority but that of its route.
        ("unknown", "late\x06\x166"),
    ];
    for (task, list) in lists {
        feed.send(task, json!({"args": [1, 2]}));
        client.handle().send(Task::new(task).ignore_result()).unwrap();
        let taken = take(list);
        assert!(
            taken.len() == 2 && taken.iter().all(|text| text.contains(&format!("\"{task}\""))),
            "{task}: {taken:?}"
        );
    }
    // What is said itself goes first.
    feed.send("noop", json!({"options": {"queue": "mine", "priority": 0}}));
    client.handle().send(Task::new("noop").queue("mine").priority(0).ignore_result()).unwrap();
    assert_eq!(take("mine").len(), 2);
}

#[test]
fn a_worker_tells_its_settings_and_does_not_start_with_what_is_of_no_use() {
    let _none = NoThreads::expected();
    let Some(server) = RedisServer::start() else { return };
    let Some(mut feed) = Feed::start(&server.url()) else { return };
    let app = json!({
        "task_soft_time_limit": 2.5, "task_default_rate_limit": "10/m", "worker_prefetch_multiplier": 2,
        "worker_send_task_events": true, "task_annotations": {"add": {"rate_limit": "1/s"}}, "worker_pool": "prefork",
        "task_routes": {"a.*": {"queue": "q"}},
    });
    let config = with(&server, &app);
    assert_eq!(config.app.without_effect, ["worker_pool"]);
    let worker = Ours::ready(config, example::registry());
    let answer = feed.ask("inspect", json!({"method": "conf", "destination": [worker.hostname()]}));
    let conf = &answer["answer"][worker.hostname()];
    for name in ["task_soft_time_limit", "task_default_rate_limit", "worker_prefetch_multiplier", "task_annotations"] {
        assert_eq!(conf[name], app[name], "{name}: {conf}");
    }
    assert_eq!(conf["task_routes"], json!([[["a.*", {"queue": "q", "priority": null}]]]));
    assert_eq!((&conf["worker_send_task_events"], &conf["task_acks_late"]), (&json!(true), &json!(true)));
    let stats = feed.ask("inspect", json!({"method": "stats", "destination": [worker.hostname()]}));
    assert_eq!(stats["answer"][worker.hostname()]["prefetch_count"], 8);
    let registered = feed.ask("inspect", json!({"method": "registered", "destination": [worker.hostname()]}));
    let registered = registered["answer"][worker.hostname()].as_array().unwrap().clone();
    assert!(
        registered.contains(&json!("add [rate_limit=1/s]")) && registered.contains(&json!("echo [rate_limit=10/m]"))
    );

    let bad = with(&server, &json!({"task_annotations": {"add": {"rate_limit": "often"}}}));
    let error = |config| CeleryWorker::start(config, example::registry(), &Board::new()).unwrap_err().to_string();
    assert_eq!(error(bad), "the task \"add\": \"often\" is no rate; use 10/s, 10/m or 10/h");
    let bad = with(&server, &json!({"task_default_rate_limit": "1/d"}));
    assert_eq!(bad.problem().unwrap(), error(bad));
}

/// The rule of the document, word for word.
pub fn rule() -> Vec<&'static str> {
    let document = include_str!("../../docs/celery-and-redis.md");
    let rule = &document[document.find("ACL SETUSER app").unwrap()..];
    rule[..rule.find("```").unwrap()].split_whitespace().collect()
}

#[test]
fn a_user_with_the_rights_of_the_document_lacks_none_and_a_missing_one_is_named() {
    let _none = NoThreads::expected();
    let Some(server) = RedisServer::start() else { return };
    let _: () = server.cli(&rule());
    let config = RedisConfig::parse(&format!("redis://app:PASSWORD@127.0.0.1:{}/0", server.port())).unwrap();
    let gate = Gate::new();
    let settings = WorkerConfig { liveness: Duration::from_millis(600), ..settings(config.clone()) };
    let worker = Ours::ready(settings, gate.registry(example::registry()));
    let client = Client::start(config);
    let handle = client.handle();
    let run = |task: Task| handle.send(task).unwrap().wait(LONG);
    assert_eq!(run(Task::new("add").args(json!([1, 2])).priority(9)), Ok(json!(3)));
    assert_eq!(run(Task::new("retry").args(json!([1, 3]))), Ok(json!(1)));
    let add = || Task::new("add").args(json!([1, 2]));
    let chord = Canvas::chord(
        Canvas::group([Canvas::from(add()).then(Canvas::group([Task::new("echo")])), add().into()]),
        Task::new("noop"),
    );
    assert_eq!(handle.send_canvas(chord).unwrap().wait(LONG), Ok(Value::Null));
    assert!(run(Task::new("nobody")).is_err() && server.cli::<usize>(&["LLEN", "phalanx.aside"]) == 1);
    assert_eq!(handle.ping(LONG / 4).unwrap(), [worker.hostname()]);
    let revoked = handle.send(Task::new("gated")).unwrap();
    assert_eq!(gate.begun(), revoked.id());
    handle.revoke(&[revoked.id()], &Terminate::Term, far()).unwrap();
    assert!(matches!(revoked.wait(LONG), Err(TaskError::Revoked { .. })));
    // Looks for what was left, and beside its queues.
    server.cli::<usize>(&["LPUSH", "celery:5", "x"]);
    until("it has looked", || !worker.state().siblings.is_empty());
    for board in [&worker.board, &client.board] {
        let parts = board.health.parts(std::time::Instant::now());
        assert!(parts.iter().all(|part| part.state == PartState::Up), "{parts:?}");
        let metrics = board.metrics.render();
        let mut refused = metrics.lines().filter(|line| line.contains("\"refused\""));
        assert!(refused.all(|line| line.ends_with(" 0")), "{metrics}");
    }
    let _: () = server.cli(&["ACL", "SETUSER", "app", "-hset"]);
    let waits = handle.send(Task::new("noop")).unwrap();
    until("it is refused", || worker.state().last_error.is_some());
    let error = worker.state().last_error.unwrap().to_string();
    assert!(error.contains("NOPERM") && error.contains("command HSET in a script, on \"unacked\""), "{error}");
    // What was to be taken without that right is still there.
    let _: () = server.cli(&["ACL", "SETUSER", "app", "+hset"]);
    assert_eq!(waits.wait(LONG), Ok(Value::Null));
}
