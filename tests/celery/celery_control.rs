//! Remote control of our worker by real Celery: what changes it, and what is refused.

use crate::example;
use crate::testkit::celery as celery_kit;
use crate::testkit::redis as redis_kit;
use crate::testkit::threads::NoThreads;
use crate::testkit::wait::{LONG, until};

use celery_kit::{Feed, Gate, Ours, settings};
use phalanx::base::thread::Group;
use phalanx::celery::worker::WorkerHandle;
use redis_kit::RedisServer;
use serde_json::{Value, json};

/// Sends a command to our worker and gives its answer.
fn ask(feed: &mut Feed, worker: &WorkerHandle, method: &str, arguments: Value) -> Value {
    let name = worker.hostname();
    let request = json!({"method": method, "arguments": arguments, "destination": [name]});
    let answer = feed.ask("broadcast", request);
    answer["answer"][0].get(name).unwrap_or_else(|| panic!("{method}: {answer}")).clone()
}

#[test]
fn every_command_of_celery_is_answered_and_what_is_refused_is_refused_in_words() {
    let _none = NoThreads::expected();
    let Some(server) = RedisServer::start() else { return };
    let Some(mut feed) = Feed::start(&server.url()) else { return };
    let worker = Ours::ready(settings(server.config()), example::registry());
    let listed = feed.ask("commands", json!({}))["answer"].take();
    let methods: Vec<_> = listed.as_array().unwrap().iter().map(|name| name.as_str().unwrap().to_owned()).collect();
    assert!(methods.len() >= 30 && methods.contains(&"time_limit".to_owned()), "{methods:?}");
    let refused = ["autoscale", "memdump", "objgraph", "pool_restart"];
    for method in methods.iter().filter(|method| *method != "shutdown") {
        let arguments = match method.as_str() {
            "query_task" => json!({"ids": ["x"]}),
            "revoke" | "terminate" => json!({"task_id": "x", "signal": "SIGTERM"}),
            "rate_limit" => json!({"task_name": "add", "rate_limit": "10/s"}),
            "time_limit" => json!({"task_name": "add", "soft": 100, "hard": null}),
            "add_consumer" | "cancel_consumer" => json!({"queue": "other"}),
            "revoke_by_stamped_headers" => json!({"headers": {"a": ["b"]}}),
            "election" => json!({"id": "x", "topic": "t", "action": null}),
            _ => json!({}),
        };
        let answer = ask(&mut feed, &worker, method, arguments);
        let error = answer["error"].as_str();
        assert_eq!(error.is_some(), refused.contains(&method.as_str()), "{method}: {answer}");
        assert!(error.is_none_or(|error| error.contains("not supported by phalanx")), "{method}: {answer}");
    }
    let conf = ask(&mut feed, &worker, "conf", json!({}));
    assert_eq!((&conf["worker_concurrency"], &conf["task_acks_late"]), (&json!(4), &json!(true)), "{conf}");
    assert!(ask(&mut feed, &worker, "memsample", json!({})).as_str().unwrap().ends_with("MB"));
    assert!(ask(&mut feed, &worker, "report", json!({}))["ok"].as_str().unwrap().contains("phalanx"));
    // By a pattern.
    let name = worker.hostname().to_owned();
    for (pattern, matcher) in [("ours*@*", "glob"), (r"ours\d+@", "pcre")] {
        let request = json!({"method": "ping", "pattern": pattern, "matcher": matcher, "limit": 1});
        assert_eq!(feed.ask("broadcast", request)["answer"], json!([{&name: {"ok": "pong"}}]), "{matcher}");
    }
}

#[test]
fn rates_and_time_limits_are_set_while_it_runs() {
    let _none = NoThreads::expected();
    let Some(server) = RedisServer::start() else { return };
    let Some(mut feed) = Feed::start(&server.url()) else { return };
    let worker = Ours::ready(settings(server.config()), example::registry());
    let set = |feed: &mut Feed, rate: &str| {
        ask(feed, &worker, "rate_limit", json!({"task_name": "add", "rate_limit": rate}))["ok"].clone()
    };
    assert_eq!(set(&mut feed, "1/h"), "new rate limit set successfully");
    let registered = feed.ask("inspect", json!({"method": "registered", "destination": [worker.hostname()]}));
    assert!(registered["answer"][worker.hostname()].as_array().unwrap().contains(&json!("add [rate_limit=1/h]")));
    assert_eq!(feed.run("add", json!({"args": [1, 1]}))["result"], 2, "the first may begin");
    let ids: Vec<_> = (0..3).map(|n| feed.send("add", json!({"args": [n, 1]}))).collect();
    until("the others wait for their turn", || worker.state().counts.waiting == 3);
    assert_eq!(feed.run("echo", json!({}))["state"], "SUCCESS", "other tasks do not");
    feed.ask("revoke", json!({"ids": [ids[0]]}));
    assert_eq!(feed.wait(&ids[0])["state"], "REVOKED", "one that waits is called off");
    set(&mut feed, "100/s");
    assert_eq!((&feed.wait(&ids[1])["result"], &feed.wait(&ids[2])["result"]), (&json!(2), &json!(3)));
    assert_eq!(set(&mut feed, ""), "rate limit disabled successfully");

    let limits = json!({"task_name": "sleep", "soft": null, "hard": 0.2});
    assert_eq!(ask(&mut feed, &worker, "time_limit", limits)["ok"], "time limits set successfully");
    assert_eq!(feed.run("sleep", json!({"args": [3600]}))["raised"]["type"], "TimeLimitExceeded");
    assert_eq!(worker.stop(LONG).left, 0);
}

#[test]
fn queues_are_added_and_cancelled_while_it_runs() {
    let _none = NoThreads::expected();
    let Some(server) = RedisServer::start() else { return };
    let Some(mut feed) = Feed::start(&server.url()) else { return };
    let worker = Ours::ready(settings(server.config()), example::registry());
    let elsewhere = json!({"args": [1, 2], "options": {"queue": "other"}});
    let early = feed.send("add", elsewhere.clone());
    assert_eq!(ask(&mut feed, &worker, "add_consumer", json!({"queue": "other"}))["ok"], "add consumer other");
    assert_eq!(feed.wait(&early)["result"], 3, "what lay there is taken");
    let queues = |feed: &mut Feed| -> Vec<Value> {
        let answer = feed.ask("inspect", json!({"method": "active_queues", "destination": [worker.hostname()]}));
        let queues = answer["answer"][worker.hostname()].as_array().unwrap().clone();
        queues.into_iter().map(|queue| queue["name"].clone()).collect()
    };
    assert_eq!(queues(&mut feed), ["celery", "other"]);
    let answer = ask(&mut feed, &worker, "cancel_consumer", json!({"queue": "celery"}));
    assert_eq!(
        (answer["ok"].as_str(), queues(&mut feed)),
        (Some("no longer consuming from celery"), vec![json!("other")])
    );
    let left = feed.send("add", json!({"args": [1, 1]}));
    assert_eq!(feed.run("add", elsewhere.clone())["result"], 3);
    assert_eq!(server.cli::<usize>(&["LLEN", "celery"]), 1, "nobody takes from there");
    ask(&mut feed, &worker, "cancel_consumer", json!({"queue": "other"}));
    assert_eq!(queues(&mut feed), [json!(null); 0]);
    ask(&mut feed, &worker, "add_consumer", json!({"queue": "celery"}));
    assert_eq!(feed.wait(&left)["result"], 2, "it takes again after it took from nowhere");
}

#[test]
fn the_pool_grows_and_shrinks_while_it_runs() {
    let _none = NoThreads::expected();
    let Some(server) = RedisServer::start() else { return };
    let Some(mut feed) = Feed::start(&server.url()) else { return };
    let (threads, gate) = (Group::enter(), Gate::new());
    let mut config = settings(server.config());
    (config.concurrency, config.prefetch_multiplier) = (1, 1);
    let worker = Ours::ready(config, gate.registry(example::registry()));
    let of_pool = || threads.live().iter().filter(|thread| thread.name.starts_with("cel-work-")).count();
    let first = feed.send("gated", json!({}));
    assert_eq!(gate.begun(), first);
    let more: Vec<_> = (0..2).map(|_| feed.send("gated", json!({}))).collect();
    assert_eq!(ask(&mut feed, &worker, "pool_grow", json!({"n": 2}))["ok"], "pool will grow");
    let mut begun = [gate.begun(), gate.begun()];
    begun.sort();
    let mut expected = more.clone();
    expected.sort();
    assert_eq!((begun.to_vec(), of_pool()), (expected, 3), "more run at a time");
    assert_eq!(ask(&mut feed, &worker, "pool_shrink", json!({"n": 2}))["ok"], "pool will shrink");
    assert_eq!(of_pool(), 3, "what runs goes on");
    gate.open(3);
    for id in more.iter().chain([&first]) {
        assert_eq!(feed.wait(id)["state"], "SUCCESS");
    }
    until("two threads have left", || of_pool() == 1);
    let stats = feed.ask("inspect", json!({"method": "stats", "destination": [worker.hostname()]}));
    let stats = &stats["answer"][worker.hostname()];
    assert_eq!((&stats["pool"]["max-concurrency"], &stats["prefetch_count"]), (&json!(1), &json!(1)));
    let last = feed.send("gated", json!({}));
    assert_eq!(gate.begun(), last);
    assert_eq!(worker.stop(std::time::Duration::ZERO).given_back, 1);
}

#[test]
fn tasks_are_revoked_by_their_stamps() {
    let _none = NoThreads::expected();
    let Some(server) = RedisServer::start() else { return };
    let Some(mut feed) = Feed::start(&server.url()) else { return };
    let gate = Gate::new();
    let mut config = settings(server.config());
    config.concurrency = 1;
    let worker = Ours::ready(config, gate.registry(example::registry()));
    let stamped = |stamp: &str| json!({"options": {"stamped_headers": ["batch"], "batch": stamp}});
    let (running, waiting) = (feed.send("gated", stamped("b1")), feed.send("gated", stamped("b1")));
    let other = feed.send("gated", stamped("b2"));
    assert_eq!(gate.begun(), running);
    until("the others wait", || worker.state().counts.waiting == 2);
    let answer = ask(&mut feed, &worker, "revoke_by_stamped_headers", json!({"headers": {"batch": ["b1"]}}));
    assert_eq!(answer["ok"], "headers {'batch': ['b1']} flagged as revoked, but not terminated");
    assert_eq!(feed.wait(&waiting)["state"], "REVOKED");
    assert_eq!(worker.state().counts.running, 1, "what runs goes on");
    let hard = json!({"headers": ["batch=b1"], "terminate": true});
    let answer = ask(&mut feed, &worker, "revoke_by_stamped_headers", hard);
    assert_eq!(answer["ok"], "headers {'batch': 'b1'} revoked");
    assert_eq!(feed.wait(&running)["state"], "REVOKED");
    assert_eq!(gate.begun(), other);
    let late = feed.send("gated", stamped("b1"));
    assert_eq!(feed.wait(&late)["state"], "REVOKED", "what comes later is not begun");
    gate.open(1);
    assert_eq!(feed.wait(&other)["state"], "SUCCESS");
    assert!(gate.is_quiet());
}

#[test]
fn workers_of_one_name_say_so_and_both_work() {
    let _none = NoThreads::expected();
    let Some(server) = RedisServer::start() else { return };
    let Some(mut feed) = Feed::start(&server.url()) else { return };
    let mut config = settings(server.config());
    (config.liveness, config.prefetch_multiplier) = (std::time::Duration::from_millis(600), 1);
    let gate = Gate::new();
    let start = || Ours::ready(config.clone(), gate.registry(example::registry()));
    let (first, second) = (start(), start());
    until("each sees the other", || {
        let told = [first.state().namesakes, second.state().namesakes];
        told == [[second.id().to_owned()], [first.id().to_owned()]]
    });
    let ids: Vec<_> = (0..8).map(|_| feed.send("gated", json!({}))).collect();
    (0..8).for_each(|_| drop(gate.begun()));
    assert_eq!((first.state().counts.running, second.state().counts.running), (4, 4));
    gate.open(8);
    assert!(ids.iter().all(|id| feed.wait(id)["state"] == "SUCCESS"));
    assert_eq!(second.stop(LONG).left, 0);
    until("it is alone", || first.state().namesakes.is_empty());
}
