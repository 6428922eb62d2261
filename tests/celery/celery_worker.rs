//! Our worker and real Celery: what its producers send is run as a worker of Celery runs it, what its tools ask is
//! answered, and what nobody can run is put aside.

use crate::example;
use crate::testkit::celery as celery_kit;
use crate::testkit::redis as redis_kit;
use crate::testkit::threads::NoThreads;
use crate::testkit::wait::{LONG, until};

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use celery_kit::{Client, Feed, Gate, Ours, Worker, celery, settings, worker_process};
use crossbeam_channel::bounded;
use phalanx::base::thread::Group;
use phalanx::celery::worker::{Registry, TaskError};
use phalanx::celery::{Meta, ResultState, Task, meta_key};
use redis_kit::RedisServer;
use serde_json::{Value, json};

const SECOND: Duration = Duration::from_secs(1);

fn now() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64()
}

fn ids(answer: &Value) -> Vec<&str> {
    answer.as_array().unwrap().iter().map(|one| one["id"].as_str().unwrap()).collect()
}

/// What is held of messages in Redis, by anybody.
fn unacked(server: &RedisServer) -> usize {
    let held: usize = server.cli(&["HLEN", "unacked"]);
    assert_eq!(server.cli::<usize>(&["ZCARD", "unacked_index"]), held);
    held
}

#[test]
fn a_real_producer_gets_what_became_of_its_tasks() {
    let _none = NoThreads::expected();
    let Some(server) = RedisServer::start() else { return };
    let Some(mut feed) = Feed::start(&server.url()) else { return };
    let gate = Gate::new();
    let registry = gate.registry(example::registry());
    let registry = registry.register("now", |_, _| Ok(json!(now()))).register("misleading", |cx, _| {
        cx.progress(1.0, "", &json!({"status": "SUCCESS"}));
        Err(TaskError::new("ValueError", "it is not"))
    });
    let mut config = settings(server.config());
    config.app.task_track_started = true;
    let worker = Ours::ready(config, registry);

    values_and_failures(&mut feed);
    times(&mut feed);
    retries(&mut feed);
    states_on_the_way(&mut feed, &gate);
    what_nobody_wants_is_not_stored(&mut feed, &server);
    time_limits(&mut feed, &gate);
    callbacks_and_chains(&mut feed, &server);
    until("everything is settled", || worker.state().counts.total() == 0);
    assert_eq!(unacked(&server), 0);
    assert_eq!(worker.stop(LONG).left, 0);
}

fn values_and_failures(feed: &mut Feed) {
    let done = feed.run("add", json!({"args": [2], "kwargs": {"y": 40}}));
    assert_eq!((&done["state"], &done["result"], &done["raised"]), (&json!("SUCCESS"), &json!(42), &Value::Null));
    let large = "ü".repeat(100_000);
    for compression in ["gzip", "zlib"] {
        let options = json!({"compression": compression});
        let done = feed.run("echo", json!({"args": [large, [null, 1.5]], "kwargs": {"z": true}, "options": options}));
        assert_eq!(done["result"], json!([[large, [null, 1.5]], {"z": true}]), "{compression}");
    }
    for (kind, module) in [("ValueError", "builtins"), ("KeyError", "builtins"), ("Broken", "celery.exceptions")] {
        // A class that the caller has not is made for it, as with Celery.
        let done = feed.run("fail", json!({"args": [kind, "it's off"]}));
        assert_eq!(done["raised"], json!({"type": kind, "module": module, "args": ["it's off"]}), "{done}");
        assert_eq!(done["state"], "FAILURE");
        assert!(done["traceback"].as_str().unwrap().contains(&format!("{kind}: it's off")), "{done}");
    }
    let done = feed.run("panic", json!({}));
    assert_eq!(
        done["raised"],
        json!({"type": "Panicked", "module": "celery.exceptions", "args": ["the handler fell"]})
    );
    let done = feed.run("add", json!({"args": [1]}));
    assert_eq!(
        (&done["raised"]["type"], &done["raised"]["args"]),
        (&json!("TypeError"), &json!(["missing argument: 'y'"]))
    );
    let done = feed.run("nobody", json!({}));
    assert_eq!(done["raised"], json!({"type": "NotRegistered", "module": "celery.exceptions", "args": ["nobody"]}));
    assert_eq!(feed.run("reject", json!({}))["result"], "second time", "it went back to its queue");
}

fn times(feed: &mut Feed) {
    let earliest = now() + 0.6;
    let later = feed.send("now", json!({"options": {"countdown": 0.6}}));
    let expired = feed.send("now", json!({"options": {"countdown": 0.4, "expires": 0.2}}));
    let done = feed.wait(&later);
    let ran = done["result"].as_f64().unwrap_or_else(|| panic!("{done}"));
    assert!(ran >= earliest && ran < earliest + 20.0, "{ran} is before {earliest}");
    let done = feed.wait(&expired);
    assert_eq!((&done["state"], &done["raised"]["type"]), (&json!("REVOKED"), &json!("TaskRevokedError")), "{done}");
    assert_eq!(done["raised"]["args"], json!(["expired"]));
}

fn retries(feed: &mut Feed) {
    let id = feed.send("retry", json!({"args": [2, 5]}));
    let done = feed.ask("watch", json!({"id": id}));
    assert_eq!(done["result"], 2, "the number of the attempt that succeeds: {done}");
    let states: Vec<_> = done["states"].as_array().unwrap().iter().map(|state| state.as_str().unwrap()).collect();
    assert!(states.contains(&"RETRY") && states.last() == Some(&"SUCCESS"), "{states:?}");
    let done = feed.run("retry", json!({"args": [9, 1]}));
    assert_eq!(done["raised"], json!({"type": "OSError", "module": "builtins", "args": ["away"]}), "{done}");
    assert_eq!(done["state"], "FAILURE");
}

fn states_on_the_way(feed: &mut Feed, gate: &Gate) {
    let id = feed.send("gated", json!({}));
    assert_eq!(gate.begun(), id);
    let mut seen = Value::Null;
    until("STARTED", || {
        seen = feed.ask("state", json!({"id": id}));
        seen["state"] == "STARTED"
    });
    assert_eq!(seen["result"]["pid"], std::process::id());
    gate.open(1);
    assert_eq!(feed.wait(&id)["result"], false);
    let id = feed.send("gated", json!({"args": [40]}));
    until("PROGRESS", || {
        seen = feed.ask("state", json!({"id": id}));
        seen["state"] == "PROGRESS"
    });
    let expected = json!({"current": 40.0, "total": 100, "percent": 40.0, "message": "at the gate", "step": 3});
    assert_eq!(seen["result"], expected);
    assert_eq!(gate.begun(), id);
    gate.open(1);
    assert_eq!(feed.wait(&id)["state"], "SUCCESS");
    assert_eq!(feed.run("misleading", json!({}))["state"], "FAILURE", "whatever its progress was");
}

fn what_nobody_wants_is_not_stored(feed: &mut Feed, server: &RedisServer) {
    let unwanted = feed.send("add", json!({"args": [1, 1], "options": {"ignore_result": true}}));
    let ignored = feed.send("ignore", json!({}));
    assert_eq!(feed.run("add", json!({"args": [1, 1]}))["result"], 2);
    until("both are settled", || unacked(server) == 0);
    for id in [unwanted, ignored] {
        let stored: Option<String> = server.cli(&["GET", &meta_key(&id)]);
        assert!(stored.is_none_or(|meta| Meta::read(meta.as_bytes()).unwrap().state == ResultState::Started), "{id}");
    }
}

fn time_limits(feed: &mut Feed, gate: &Gate) {
    let soft = feed.send("gated", json!({"options": {"soft_time_limit": 0.2, "time_limit": 60}}));
    gate.begun();
    assert_eq!(feed.wait(&soft)["raised"]["type"], "SoftTimeLimitExceeded");
    let hard = feed.send("sleep", json!({"args": [60], "options": {"time_limit": 0.2}}));
    assert_eq!(feed.wait(&hard)["raised"]["type"], "TimeLimitExceeded");
}

fn callbacks_and_chains(feed: &mut Feed, server: &RedisServer) {
    let link =
        json!([{"task": "add", "args": [100]}, {"task": "python_add", "args": [1], "options": {"queue": "other"}}]);
    let done = feed.run("add", json!({"args": [1, 2], "options": {"link": link}}));
    let children = done["children"].as_array().unwrap();
    assert_eq!((&done["result"], children.len()), (&json!(3), 2), "{done}");
    assert_eq!(feed.wait(children[0].as_str().unwrap())["result"], 103);
    assert_eq!(server.cli::<usize>(&["LLEN", "other"]), 1, "what others serve is sent to them");

    let sent = feed.ask(
        "send_chain",
        json!({"specs": [
        {"task": "add", "args": [1, 2]}, {"task": "add", "args": [3]}, {"task": "echo", "args": ["last"]}]}),
    );
    let chain: Vec<_> = sent["ids"].as_array().unwrap().iter().map(|id| id.as_str().unwrap()).collect();
    assert_eq!(feed.wait(chain[2])["result"], json!([[6, "last"], {}]));
    let sent = feed.ask(
        "send_chain",
        json!({"specs": [
        {"task": "fail", "args": ["ValueError", "x"]}, {"task": "add", "args": [1]}, {"task": "add", "args": [1]}]}),
    );
    let last = sent["ids"][2].as_str().unwrap();
    assert_eq!(feed.wait(last)["raised"]["type"], "ValueError", "the end of a broken chain tells of it");

    let errback = json!([{"task": "echo", "args": ["failed"], "options": {"task_id": "errback"}}]);
    let failed = feed.send("fail", json!({"args": ["ValueError", "x"], "options": {"link_error": errback}}));
    assert_eq!(feed.wait("errback")["result"], json!([[failed, "failed"], {}]));
}

#[test]
fn revoked_tasks_do_not_run_or_end_at_once() {
    let _none = NoThreads::expected();
    let Some(server) = RedisServer::start() else { return };
    let Some(mut feed) = Feed::start(&server.url()) else { return };
    let gate = Gate::new();
    let registry = gate.registry(example::registry());
    let mut config = settings(server.config());
    (config.concurrency, config.prefetch_multiplier) = (1, 2);
    let worker = Ours::ready(config, registry);
    let inspect = |feed: &mut Feed, what: &str| {
        let answer = feed.ask("inspect", json!({"method": what, "destination": [worker.hostname()]}));
        answer["answer"][worker.hostname()].clone()
    };

    let scheduled = feed.send("gated", json!({"options": {"countdown": 3600}}));
    until("it is scheduled", || worker.state().counts.scheduled == 1);
    let running = feed.send("gated", json!({}));
    assert_eq!(gate.begun(), running);
    let waiting = feed.send("gated", json!({}));
    until("one of each is held", || {
        let counts = worker.state().counts;
        (counts.running, counts.waiting, counts.scheduled) == (1, 1, 1)
    });
    // Still in its queue, because the worker holds enough.
    let queued = feed.send("gated", json!({}));
    let early = "11111111-early".to_owned();
    feed.ask("revoke", json!({"ids": [waiting, scheduled, queued, early]}));
    for id in [&waiting, &scheduled, &queued, &early] {
        let done = feed.wait(id);
        assert_eq!((&done["state"], &done["raised"]["args"]), (&json!("REVOKED"), &json!(["revoked"])), "{done}");
    }
    let revoked = inspect(&mut feed, "revoked");
    let known: BTreeSet<_> = revoked.as_array().unwrap().iter().map(|id| id.as_str().unwrap()).collect();
    assert!([&waiting, &scheduled, &queued, &early].into_iter().all(|id| known.contains(id.as_str())), "{known:?}");
    // One that comes after it was revoked.
    feed.send("gated", json!({"options": {"task_id": early}}));
    // A task that runs is not ended unless that is asked for.
    feed.ask("revoke", json!({"ids": [running]}));
    until("the revoke is known", || inspect(&mut feed, "revoked").as_array().unwrap().contains(&json!(running)));
    assert_eq!(ids(&inspect(&mut feed, "active")), [running.as_str()]);
    gate.open(1);
    assert_eq!(feed.wait(&running)["state"], "SUCCESS");

    let terminated = feed.send("gated", json!({}));
    assert_eq!(gate.begun(), terminated, "nothing that was revoked has begun");
    feed.ask("revoke", json!({"ids": [terminated], "terminate": true}));
    let done = feed.wait(&terminated);
    assert_eq!((&done["state"], &done["raised"]["args"]), (&json!("REVOKED"), &json!(["terminated"])), "{done}");
    // The thread is free again.
    assert_eq!(feed.run("add", json!({"args": [1, 1]}))["result"], 2);
    until("everything is settled", || worker.state().counts.total() == 0);
    assert_eq!(unacked(&server), 0);
}

#[test]
fn the_first_priority_goes_first_and_the_rest_in_order() {
    let _none = NoThreads::expected();
    let Some(server) = RedisServer::start() else { return };
    let Some(mut feed) = Feed::start(&server.url()) else { return };
    let mut expected: [Vec<String>; 4] = Default::default();
    for (n, priority) in [9, 0, 5, 3, 6, 0, 9, 2].into_iter().enumerate() {
        let id = format!("{n}-of-{priority}");
        feed.send("note", json!({"options": {"priority": priority, "queue": "ordered", "task_id": id}}));
        expected[priority / 3].push(id);
    }
    let (report, notified) = bounded(10);
    let registry = Registry::new().register("note", move |cx, _| {
        report.send(cx.id().to_owned()).unwrap();
        Ok(Value::Null)
    });
    let mut config = settings(server.config());
    (config.concurrency, config.queues) = (1, vec!["ordered".to_owned()]);
    let _worker = Ours::ready(config, registry);
    let ran: Vec<_> = (0..8).map(|_| notified.recv_timeout(LONG).unwrap()).collect();
    assert_eq!(ran, expected.concat());
}

#[test]
fn what_nobody_can_run_is_put_aside_with_its_id_and_the_queue_flows_on() {
    let _none = NoThreads::expected();
    let Some(server) = RedisServer::start() else { return };
    let Some(mut feed) = Feed::start(&server.url()) else { return };
    let worker = worker_process(&server.url(), "--threads 2");
    for text in ["not JSON", "[]", "{}", r#"{"body": "x", "properties": {"delivery_tag": "tag-1"}}"#] {
        feed.ask("raw", json!({"queue": "celery", "text": text}));
    }
    for (id, body, content_type) in [
        ("no-json", "{not JSON", "application/json"),
        ("no-task", "{\"a\": 1}", "application/json"),
        ("pickled", "cos", "application/x-python-serialize"),
    ] {
        feed.ask("body", json!({"id": id, "body": body, "content_type": content_type}));
        let done = feed.wait(id);
        assert_eq!((&done["state"], &done["raised"]["type"]), (&json!("FAILURE"), &json!("DecodeError")), "{done}");
    }
    let unknown = feed.send("nobody", json!({}));
    assert_eq!(feed.wait(&unknown)["raised"]["type"], "NotRegistered");
    assert_eq!(feed.run("add", json!({"args": [1, 1]}))["result"], 2, "the queue flows on");
    until("everything is settled", || unacked(&server) == 0);

    let aside: Vec<String> = server.cli(&["LRANGE", "phalanx.aside", "0", "-1"]);
    let aside: Vec<Value> = aside.iter().rev().map(|entry| serde_json::from_str(entry).unwrap()).collect();
    let shown: Vec<_> =
        aside.iter().map(|entry| (entry["id"].as_str().unwrap_or("-"), entry["message"].as_str().unwrap())).collect();
    assert_eq!(aside.len(), 8, "{shown:?}");
    assert_eq!(shown[..3], [("-", "not JSON"), ("-", "[]"), ("-", "{}")]);
    assert_eq!(shown[3].1, r#"{"body": "x", "properties": {"delivery_tag": "tag-1"}}"#, "as it came");
    assert_eq!(shown[4..].iter().map(|entry| entry.0).collect::<Vec<_>>(), ["no-json", "no-task", "pickled", &unknown]);
    for (entry, reason) in aside.iter().zip([
        "no JSON object with a delivery tag",
        "no JSON object with a delivery tag",
        "no JSON object with a delivery tag",
        "not a task",
        "does not decode",
        "not a list",
        "application/x-python-serialize",
        "no task of the name",
    ]) {
        assert!(entry["reason"].as_str().unwrap().contains(reason) && entry["queue"] == "celery", "{reason}: {entry}");
    }
    let reported = worker.stop(rustix::process::Signal::TERM);
    for named in ["not JSON", "tag-1", "no-json", "no-task", "pickled", &unknown] {
        assert!(
            reported.stderr.lines().any(|line| line.contains("aside") && line.contains(named)),
            "{named}: {}",
            reported.stderr
        );
    }
    assert_eq!(reported.code, Some(0), "{reported:?}");
}

#[test]
fn the_tools_of_celery_see_what_they_expect() {
    let _none = NoThreads::expected();
    let Some(server) = RedisServer::start() else { return };
    let Some(mut feed) = Feed::start(&server.url()) else { return };
    let name = "ours@here";
    let worker = worker_process(&server.url(), &format!("--threads 1 --name {name}"));
    let inspect = |feed: &mut Feed, what: &str, args: Value| {
        let request = json!({"method": what, "destination": [name], "args": args});
        let answer = feed.ask("inspect", request)["answer"].take();
        assert_eq!(answer.as_object().map(serde_json::Map::len), Some(1), "{what}: {answer}");
        answer[name].clone()
    };
    let none = json!([]);
    let running = feed.send("sleep", json!({"args": [3600]}));
    let waiting = feed.send("echo", json!({"args": [1, "a"], "kwargs": {"b": [null]}}));
    let scheduled = feed.send("add", json!({"options": {"eta": null, "countdown": 3600}}));
    until("it runs", || ids(&inspect(&mut feed, "active", none.clone())) == [running.as_str()]);
    until("it waits", || ids(&inspect(&mut feed, "reserved", none.clone())) == [waiting.as_str()]);
    let active = inspect(&mut feed, "active", none.clone())[0].clone();
    assert_eq!((&active["name"], &active["type"], &active["args"]), (&json!("sleep"), &json!("sleep"), &json!([3600])));
    assert_eq!((&active["hostname"], &active["acknowledged"]), (&json!(name), &json!(false)));
    assert_eq!(
        (&active["worker_pid"], &active["delivery_info"]["routing_key"]),
        (&json!(worker.id()), &json!("celery"))
    );
    assert!((now() - active["time_start"].as_f64().unwrap()).abs() < 100.0, "{active}");
    let reserved = inspect(&mut feed, "reserved", none.clone())[0].clone();
    assert_eq!((&reserved["args"], &reserved["kwargs"]), (&json!([1, "a"]), &json!({"b": [null]})));
    assert_eq!((&reserved["time_start"], &reserved["worker_pid"]), (&Value::Null, &Value::Null));
    let later = inspect(&mut feed, "scheduled", none.clone())[0].clone();
    assert_eq!((&later["request"]["id"], &later["priority"]), (&json!(scheduled), &json!(6)));
    assert!(later["eta"].as_str().unwrap().ends_with("+00:00"), "{later}");
    let found = inspect(&mut feed, "query_task", json!([running, scheduled, "x"]));
    assert_eq!(
        (&found[&running][0], &found[&scheduled][0], &found["x"]),
        (&json!("active"), &json!("scheduled"), &Value::Null)
    );
    let registered = inspect(&mut feed, "registered", none.clone());
    assert!(registered.as_array().unwrap().contains(&json!("add")), "{registered}");
    let stats = inspect(&mut feed, "stats", none.clone());
    assert_eq!((&stats["pid"], &stats["pool"]["max-concurrency"]), (&json!(worker.id()), &json!(1)));
    assert_eq!((&stats["prefetch_count"], &stats["broker"]["transport"]), (&json!(4), &json!("redis")));
    assert_eq!(stats["total"], json!({"sleep": 1}), "what has begun, as with Celery");
    assert_eq!(inspect(&mut feed, "active_queues", none.clone())[0]["name"], "celery");
    assert_eq!(inspect(&mut feed, "revoked", none.clone()), json!([]));
    assert!(inspect(&mut feed, "clock", none.clone())["clock"].is_u64());
    assert!(inspect(&mut feed, "report", none.clone())["ok"].as_str().unwrap().contains("phalanx"));
    let here = json!([name]);
    assert_eq!(feed.ask("ping", json!({"destination": here}))["answer"], json!([{name: {"ok": "pong"}}]));
    let unknown = feed.ask("broadcast", json!({"method": "nonsense", "destination": here}));
    assert_eq!(unknown["answer"][0][name]["error"], "KeyError('nonsense')", "as Celery says it");

    let status =
        celery("celery_feed", &server.url()).unwrap().args(["status", "-d", name, "-t", "20"]).output().unwrap();
    let text = String::from_utf8_lossy(&status.stdout).into_owned();
    assert!(
        status.status.success() && text.contains(&format!("{name}: OK")) && text.contains("1 node online"),
        "{text}"
    );
    let ask = ["inspect", "active", "-d", name, "-t", "20", "--json"];
    let active = celery("celery_feed", &server.url()).unwrap().args(ask).output().unwrap();
    let active: Value = serde_json::from_slice(&active.stdout).unwrap();
    assert_eq!(ids(&active[name]), [running.as_str()]);

    feed.ask("revoke", json!({"ids": [running], "terminate": true}));
    assert_eq!(feed.wait(&waiting)["state"], "SUCCESS");
    let answer = feed.ask("broadcast", json!({"method": "shutdown", "destination": here}));
    assert!(answer["answer"][0][name]["ok"].is_string(), "{answer}");
    let reported = worker.finish();
    assert!(
        reported.code == Some(0) && reported.stdout.contains("stopped: 1 given back, 0 cancelled, 0 left"),
        "{reported:?}"
    );
    assert_eq!((unacked(&server), server.cli::<usize>(&["LLEN", "celery"])), (0, 1), "what was scheduled is back");
}

#[test]
fn what_runs_for_long_is_not_taken_for_lost_by_a_real_worker_beside_ours() {
    let _none = NoThreads::expected();
    let Some(server) = RedisServer::start() else { return };
    let gate = Gate::new();
    let registry = gate.registry(example::registry());
    let mut config = settings(server.config());
    // What runs takes all its room, so that it leaves the rest to the other.
    (config.concurrency, config.prefetch_multiplier) = (1, 1);
    config.app.broker_transport_options.visibility_timeout = 2 * SECOND;
    let ours = Ours::ready(config, registry);
    let client = Client::start(server.config());
    let celery_handle = client.handle();
    let later = celery_handle.send(Task::new("gated").countdown(LONG)).unwrap();
    until("it is held", || ours.state().counts.scheduled == 1);
    let long = celery_handle.send(Task::new("gated")).unwrap();
    assert_eq!(gate.begun(), long.id());
    let mut command = match celery("celery_feed", &server.url()) {
        Some(command) => command,
        None => return,
    };
    command.env("CELERY_VISIBILITY", "2");
    let Some(theirs) = Worker::start_from(command, &["--pool", "threads", "-c", "1"]) else { return };
    // What a worker of Celery that died has left comes back when it is old, whoever finds it. When that has happened
    // twice, all the time that ours had was over twice.
    for round in 0..2 {
        let id = format!("left-{round}");
        let message = Task::new("noop").id(&id).message(SystemTime::now().into(), "t", || format!("tag-{round}"));
        let entry = format!("[{}, \"\", \"celery\"]", message.write().write());
        server.cli::<()>(&["HSET", "unacked", &format!("tag-{round}"), &entry]);
        server.cli::<()>(&["ZADD", "unacked_index", &format!("{:.6}", now()), &format!("tag-{round}")]);
        assert_eq!(celery_handle.result(&id).unwrap().wait(LONG), Ok(Value::Null));
    }
    assert_eq!((ours.state().counts.running, ours.state().counts.scheduled), (1, 1));
    gate.open(1);
    assert_eq!(long.wait(LONG), Ok(json!(false)), "it was not delivered again");
    assert!(gate.is_quiet());
    drop(later);
    theirs.stop();
}

#[test]
fn a_stop_gives_back_what_has_not_ended_and_loses_nothing() {
    let _none = NoThreads::expected();
    let Some(server) = RedisServer::start() else { return };
    let client = Client::start(server.config());
    let handle = client.handle();
    let gate = Gate::new();
    let registry = gate.registry(example::registry());
    let mut config = settings(server.config());
    (config.concurrency, config.prefetch_multiplier) = (2, 2);
    let first = Ours::ready(config.clone(), registry.clone());
    let mut sent: Vec<_> = (0..10).map(|_| handle.send(Task::new("gated")).unwrap()).collect();
    let held: BTreeSet<String> = (0..2).map(|_| gate.begun()).collect();
    // It takes no more than it may hold, and goes on to fill what it may.
    until("what it may hold is held", || first.state().counts.waiting == 2);
    sent.push(handle.send(Task::new("gated").countdown(SECOND).priority(0).queue("celery")).unwrap());
    assert_eq!(server.cli::<usize>(&["LLEN", "celery"]), 7);
    gate.open(1);
    let ended = gate.begun();
    until("one has ended and one more was taken", || first.state().counts.waiting == 2);
    assert!(!held.contains(&ended));
    let (report, mut marked) = (first.stop(Duration::ZERO), 0);
    assert_eq!((report.cancelled, report.given_back, report.left), (2, 4, 0));
    assert_eq!((unacked(&server), server.cli::<usize>(&["LLEN", "celery"])), (0, 10));
    for message in server.cli::<Vec<String>>(&["LRANGE", "celery", "0", "-1"]) {
        marked += usize::from(serde_json::from_str::<Value>(&message).unwrap()["headers"]["redelivered"] == true);
    }
    assert_eq!(marked, 4, "what may have begun is marked");
    config.hostname = "second@here".to_owned();
    let second = Ours::ready(config, registry);
    gate.open(10);
    let outcomes: Vec<_> = sent.iter().map(|pending| pending.wait(LONG).unwrap()).collect();
    assert_eq!(outcomes.iter().filter(|redelivered| **redelivered == json!(true)).count(), 4, "{outcomes:?}");
    assert_eq!(second.stop(LONG).left, 0);
    assert_eq!(server.cli::<Vec<String>>(&["KEYS", "phalanx.worker*"]), Vec::<String>::new());
}

#[test]
fn each_thread_says_what_it_waits_for() {
    let _none = NoThreads::expected();
    let Some(server) = RedisServer::start() else { return };
    let threads = Group::enter();
    let gate = Gate::new();
    let registry = gate.registry(example::registry());
    let mut config = settings(server.config());
    (config.concurrency, config.prefetch_multiplier) = (1, 1);
    let worker = Ours::ready(config, registry);
    let client = Client::start(server.config());
    let waits = |name: &str, what: &str| {
        let reported = || threads.live().into_iter().find(|thread| thread.name == name).unwrap().activity.waits_for;
        until(&format!("{name} waits for {what}"), || reported() == Some(what));
    };
    for (name, what) in [
        ("cel-take", "a task in its queues"),
        ("cel-work-0", "a task"),
        ("cel-cmd", "a request"),
        ("cel-control", "a remote command"),
        ("timer", "its next alarm"),
    ] {
        waits(name, what);
    }
    let pending = client.handle().send(Task::new("gated")).unwrap();
    gate.begun();
    waits("cel-take", "room for more tasks");
    gate.open(1);
    assert_eq!(pending.wait(LONG), Ok(json!(false)));
    waits("cel-take", "a task in its queues");
    drop(worker);
}

#[test]
fn a_handler_that_does_not_listen_holds_up_no_stop_and_its_task_goes_back() {
    let _none = NoThreads::expected();
    let Some(server) = RedisServer::start() else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notes");
    let client = Client::start(server.config());
    let worker = worker_process(&server.url(), "--threads 1 --stop-time 1");
    let stubborn =
        Task::new("record").kwarg("path", path.to_str().unwrap()).kwarg("seconds", 3600).kwarg("ignores_stop", true);
    let pending = client.handle().send(stubborn).unwrap();
    until("it runs", || path.exists());
    let reported = worker.stop(rustix::process::Signal::TERM);
    let report =
        reported.stdout.lines().find(|line| line.starts_with("stopped: ")).unwrap_or_else(|| panic!("{reported:?}"));
    assert!(
        report.starts_with("stopped: 1 given back, 1 cancelled, 0 left") && report.contains("cel-work-0"),
        "{report}"
    );
    assert_eq!((unacked(&server), server.cli::<usize>(&["LLEN", "celery"])), (0, 1));
    let _second = Ours::ready(settings(server.config()), example::registry());
    assert_eq!(pending.wait(LONG), Ok(json!(true)), "marked");
}
