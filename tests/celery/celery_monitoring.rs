//! What Celery's monitors see of our worker, our client and their tasks: Celery's own receiver of events, `celery
//! events` and Flower.

use crate::testkit::browser::Browser;
use crate::testkit::celery as celery_kit;
use crate::testkit::process::Running;
use crate::testkit::python;
use crate::testkit::redis as redis_kit;
use crate::testkit::threads::NoThreads;
use crate::testkit::wait::{LONG, until, until_some};

use std::path::Path;
use std::process::Stdio;

use celery_kit::{Feed, Worker, celery, worker_process_in};
use phalanx::base::stop::Stopping;
use phalanx::celery::{CeleryClient, CeleryConfig, Task};
use phalanx::ops::status::Board;
use redis_kit::{RedisServer, free_port};
use rustix::process::Signal;
use serde_json::{Value, json};

/// Half an hour beside the full one, so that a rounded offset is seen.
const ZONE: &str = "Asia/Kolkata";

/// Celery's receiver of events (`tests/python/celery_events.py`).
struct Watcher {
    running: Running,
    behind_utc: f64,
}

impl Watcher {
    fn start(url: &str) -> Option<Self> {
        let mut command = python::script("celery_events.py", "celery, redis")?;
        command.env("CELERY_TEST_URL", url).env("TZ", ZONE).stdin(Stdio::null());
        let mut running = Running::start(&mut command);
        let first: Value = serde_json::from_str(&running.line()).unwrap();
        Some(Self { running, behind_utc: first["utcoffset"].as_f64().unwrap() })
    }

    /// The next event for which this holds.
    fn next(&mut self, wanted: impl Fn(&Value) -> bool) -> Value {
        loop {
            let line: Value = serde_json::from_str(&self.running.line()).unwrap();
            if wanted(&line["event"]) {
                return line;
            }
        }
    }

    /// The types of the events of a task up to one of this type, and the last of them.
    fn until(&mut self, id: &str, last: &str) -> (Vec<String>, Value) {
        let mut seen = Vec::new();
        loop {
            let line = self.next(|event| event["uuid"] == id);
            seen.push(line["event"]["type"].as_str().unwrap().to_owned());
            if seen.last().is_some_and(|kind| kind == last) {
                return (seen, line);
            }
        }
    }
}

#[test]
fn a_worker_tells_of_the_tasks_that_it_sends() {
    let _none = NoThreads::expected();
    let Some(server) = RedisServer::start() else { return };
    let Some(mut feed) = Feed::start(&server.url()) else { return };
    let Some(mut watcher) = Watcher::start(&server.url()) else { return };
    let mut config = celery_kit::settings(server.config());
    config.app.task_send_sent_event = true;
    let worker = celery_kit::Ours::ready(config, crate::example::registry());
    watcher.next(|event| event["type"] == "worker-heartbeat");
    let chain =
        json!([{"task": "add", "args": [1, 2]}, {"task": "retry", "args": [9], "options": {"queue": "celery"}}]);
    let chain = feed.ask("send_chain", json!({"specs": chain}));
    let second = chain["ids"][1].as_str().unwrap();
    let (seen, last) = watcher.until(second, "task-sent");
    let event = &last["event"];
    assert_eq!((seen.len(), &event["queue"], &event["name"]), (1, &json!("celery"), &json!("retry")), "{event}");
    assert_eq!((&event["hostname"], &event["retries"]), (&json!(worker.hostname()), &json!(0)));
    // A retry is sent by the worker too.
    let (_, last) = watcher.until(second, "task-sent");
    assert_eq!(last["event"]["retries"], 1, "{last}");
    feed.wait(second);
}

#[test]
fn a_real_receiver_sees_our_worker_and_what_becomes_of_its_tasks() {
    let _none = NoThreads::expected();
    let Some(server) = RedisServer::start() else { return };
    let Some(mut feed) = Feed::start(&server.url()) else { return };
    let Some(mut watcher) = Watcher::start(&server.url()) else { return };
    let name = "ours@here";
    let worker = worker_process_in(ZONE, &server.url(), &format!("--threads 1 --events --name {name}"));

    let beat = watcher.next(|event| event["type"] == "worker-heartbeat");
    let event = &beat["event"];
    assert_eq!((&event["hostname"], &event["pid"], &beat["alive"]), (&json!(name), &json!(worker.id()), &json!(true)));
    assert_eq!((&event["freq"], &event["sw_ident"], &event["active"]), (&json!(2.0), &json!("phalanx"), &json!(0)));
    assert_eq!((event["utcoffset"].as_f64().unwrap(), watcher.behind_utc), (-5.5, -5.5), "as Celery counts it");
    let drift = event["local_received"].as_f64().unwrap() - event["timestamp"].as_f64().unwrap();
    assert!(drift.abs() < 60.0, "{event}");

    let id = feed.send("add", json!({"args": [2, 3]}));
    let (seen, last) = watcher.until(&id, "task-succeeded");
    assert_eq!(seen, ["task-received", "task-started", "task-succeeded"]);
    assert_eq!(
        (&last["event"]["result"], &last["state"], &last["name"]),
        (&json!("5"), &json!("SUCCESS"), &json!("add"))
    );
    assert!(last["event"]["runtime"].as_f64().unwrap() < 60.0, "{last}");

    let id = feed.send("fail", json!({"args": ["ValueError", "it's off"]}));
    let (seen, last) = watcher.until(&id, "task-failed");
    assert_eq!(seen, ["task-received", "task-started", "task-failed"]);
    assert_eq!(last["event"]["exception"], r"ValueError('it\'s off')");
    assert!(last["event"]["traceback"].as_str().unwrap().contains("it's off") && last["state"] == "FAILURE", "{last}");

    let id = feed.send("retry", json!({"args": [1, 3]}));
    let (seen, _) = watcher.until(&id, "task-succeeded");
    let twice = ["task-received", "task-started", "task-retried", "task-received", "task-started", "task-succeeded"];
    assert_eq!(seen, twice);

    let id = feed.send("reject", json!({}));
    let (seen, _) = watcher.until(&id, "task-succeeded");
    let twice = ["task-received", "task-started", "task-rejected", "task-received", "task-started", "task-succeeded"];
    assert_eq!(seen, twice);

    let id = feed.send("add", json!({"options": {"expires": -5}}));
    let (seen, last) = watcher.until(&id, "task-revoked");
    assert_eq!((seen.len(), &last["event"]["expired"], &last["state"]), (1, &json!(true), &json!("REVOKED")));

    let id = feed.send("sleep", json!({"args": [3600]}));
    watcher.until(&id, "task-started");
    feed.ask("revoke", json!({"ids": [id], "terminate": true}));
    let (_, last) = watcher.until(&id, "task-revoked");
    assert_eq!((&last["event"]["terminated"], &last["event"]["signum"]), (&json!(true), &json!(15)));

    let id = feed.send("nobody_knows", json!({}));
    let (seen, last) = watcher.until(&id, "task-failed");
    assert_eq!((seen.len(), &last["event"]["exception"]), (1, &json!("NotRegistered('nobody_knows')")));

    a_client_tells_what_it_sends(&server, &mut watcher);
    events_are_turned_off_and_on(&mut feed, &mut watcher, name);

    worker.stop(Signal::TERM);
    let last = watcher.next(|event| event["type"] == "worker-offline");
    assert_eq!((&last["event"]["hostname"], &last["alive"]), (&json!(name), &json!(false)));
}

fn a_client_tells_what_it_sends(server: &RedisServer, watcher: &mut Watcher) {
    let config = CeleryConfig { send_sent_event: true, ..CeleryConfig::new(server.config()) };
    let (origin, client) = (config.origin.clone(), CeleryClient::start(config, &Board::new()).unwrap());
    let pending = client.handle().send(Task::new("add").args(json!([1, "ü"])).queue("elsewhere")).unwrap();
    let (_, sent) = watcher.until(pending.id(), "task-sent");
    let event = &sent["event"];
    assert_eq!(
        (&event["name"], &event["args"], &event["queue"]),
        (&json!("add"), &json!("(1, 'ü')"), &json!("elsewhere"))
    );
    assert_eq!((&event["hostname"], &sent["state"]), (&json!(origin), &json!("PENDING")));
    drop(pending);
    let mut stopping = Stopping::alone();
    stopping.step("client", LONG, |step| client.stop_in(step));
    assert!(stopping.finish().is_clean());
}

fn events_are_turned_off_and_on(feed: &mut Feed, watcher: &mut Watcher, name: &str) {
    let ask = |feed: &mut Feed, method: &str| {
        let answer = feed.ask("broadcast", json!({"method": method, "destination": [name]}));
        answer["answer"][0][name]["ok"].clone()
    };
    assert_eq!(ask(feed, "disable_events"), "task events disabled");
    assert_eq!(ask(feed, "disable_events"), "task events already disabled");
    let silent = feed.send("add", json!({"args": [1, 1]}));
    assert_eq!(feed.wait(&silent)["result"], 2);
    assert_eq!(ask(feed, "enable_events"), "task events enabled");
    let told = feed.send("add", json!({"args": [1, 1]}));
    let first = watcher.next(|event| event["uuid"].is_string());
    assert_eq!(first["event"]["uuid"], told, "nothing is told of the one before");
    // A heartbeat that is asked for is answered, too.
    assert_eq!(
        feed.ask("broadcast", json!({"method": "heartbeat", "destination": [name]}))["answer"],
        json!([{name: null}])
    );
}

#[test]
fn celery_events_dumps_what_our_worker_tells() {
    let _none = NoThreads::expected();
    let Some(server) = RedisServer::start() else { return };
    let Some(mut feed) = Feed::start(&server.url()) else { return };
    let Some(mut command) = celery("celery_feed", &server.url()) else { return };
    let mut dump = Running::start(command.args(["events", "--dump"]).env("PYTHONUNBUFFERED", "1"));
    let worker = worker_process_in("UTC", &server.url(), "--events --name ours@here");
    let mut line_with = |words: &[&str]| {
        until_some("a line of the dump", || {
            let line = dump.line();
            words.iter().all(|word| line.contains(word)).then_some(line)
        })
    };
    line_with(&["ours@here", "heartbeat"]);
    let id = feed.send("add", json!({"args": [2, 3]}));
    for what in ["received", "started", "succeeded"] {
        line_with(&["ours@here", what, &id]);
    }
    worker.stop(Signal::TERM);
    line_with(&["ours@here", "shutdown"]);
    dump.stop(Signal::KILL);
}

#[test]
fn flower_shows_our_worker_and_its_tasks() {
    let _none = NoThreads::expected();
    if python::script("celery_feed.py", "celery, redis, flower").is_none() {
        return;
    }
    let Some(server) = RedisServer::start() else { return };
    let Some(mut feed) = Feed::start(&server.url()) else { return };
    let Some(mut command) = celery("celery_feed", &server.url()) else { return };
    let folder = tempfile::tempdir().unwrap();
    let port = free_port();
    command.args(["flower", "--address=127.0.0.1", &format!("--port={port}")]);
    command.env("FLOWER_UNAUTHENTICATED_API", "true").env("TMPDIR", folder.path()).current_dir(folder.path());
    let flower = Running::start(&mut command);
    let worker = worker_process_in("UTC", &server.url(), "--threads 3 --events --name ours@here");
    let ask = |feed: &mut Feed, path: &str| {
        feed.ask("fetch", json!({"url": format!("http://127.0.0.1:{port}/api/{path}")}))["answer"].take()
    };
    let seen = until_some("the worker", || {
        let workers = ask(&mut feed, "workers?refresh=1");
        workers.get("ours@here").cloned()
    });
    assert_eq!((&seen["stats"]["pool"]["max-concurrency"], &seen["stats"]["pid"]), (&json!(3), &json!(worker.id())));
    assert_eq!(seen["active_queues"][0]["name"], "celery");
    assert!(seen["registered"].as_array().unwrap().contains(&json!("add")), "{seen}");
    // It has to have heard a heartbeat for this.
    until("the worker is up", || ask(&mut feed, "workers?status=1")["ours@here"] == true);
    let id = feed.send("add", json!({"args": [2, 3]}));
    let task = until_some("the task", || {
        let task = ask(&mut feed, "tasks").get(&id).cloned()?;
        (task["state"] == "SUCCESS").then_some(task)
    });
    assert_eq!((&task["name"], &task["args"], &task["result"]), (&json!("add"), &json!("(2, 3)"), &json!("5")));
    assert_eq!(task["worker"], "ours@here");
    flower_pages_name_both_workers(&server, &mut feed, port, &id);
    worker.stop(Signal::TERM);
    flower.stop(Signal::TERM);
}

/// Its pages in a browser, with a worker of Celery beside ours.
fn flower_pages_name_both_workers(server: &RedisServer, feed: &mut Feed, port: u16, ours: &str) {
    let command = celery("celery_feed", &server.url()).unwrap();
    let worker = Worker::start_from(command, &["--pool", "solo", "-Q", "python", "-E"]).unwrap();
    let theirs = feed.send("python_add", json!({"args": [2, 3], "options": {"queue": "python"}}));
    assert_eq!(feed.wait(&theirs)["result"], 5);
    let Some(mut browser) = Browser::start() else { return };
    browser.resize(1280, 800);
    // Each page is filled by its scripts.
    let mut page = |path: &str, words: &[&str]| {
        browser.open(&format!("http://127.0.0.1:{port}/{path}"));
        let text = until_some(path, || {
            let text = browser.eval("document.body.innerText").as_str().unwrap().to_owned();
            words.iter().all(|word| text.contains(word)).then_some(text)
        });
        if let Some(folder) = std::env::var_os("PHALANX_TEST_FLOWER") {
            std::fs::write(Path::new(&folder).join(format!("flower-{path}.png")), browser.picture(false)).unwrap();
        }
        text
    };
    let text = page("workers", &["ours@here", worker.name(), "Online"]);
    assert!(!text.contains("Offline"), "{text}");
    page("tasks", &[ours, &theirs, "python_add"]);
    drop(browser);
    worker.stop();
}
