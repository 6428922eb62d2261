//! Our client and real Celery workers: what is sent is run once and its result comes back, through faults as well.

use crate::testkit::celery as celery_kit;
use crate::testkit::redis as redis_kit;
use crate::testkit::threads::NoThreads;
use crate::testkit::wait::{LONG, far};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use celery_kit::{Client, Worker};
use crossbeam_channel::bounded;
use phalanx::base::lock::lock;
use phalanx::base::rng::Rng;
use phalanx::base::thread::{Kick, Thread, spawn};
use phalanx::celery::client::{CeleryHandle, PendingResult, SendError, TaskError, Terminate};
use phalanx::celery::{Meta, Moment, ResultState, Task, meta_key};
use phalanx::ops::errors::ErrorClass;
use phalanx::redis::{Connection, RedisConfig, RedisError, Waited, Wake};
use redis_kit::{FaultyProxy, RedisServer, often};
use serde_json::{Value, json};

const SECOND: Duration = Duration::from_secs(1);

/// Waits until the result has been heard to be in a state that passes.
fn until(pending: &PendingResult, wanted: ResultState) {
    let (report, notified) = bounded(64);
    pending.on_update(move |meta| {
        // Only the first one counts.
        let _ = report.try_send(meta.state.clone());
    });
    let deadline = far();
    while notified.recv_deadline(deadline).unwrap_or_else(|_| panic!("{pending:?} is not {wanted}")) != wanted {}
}

fn open(server: &RedisServer, gate: &str) {
    server.cli::<i64>(&["RPUSH", &format!("gate.{gate}"), "go"]);
}

/// The trace that a task leaves, when it has left it.
fn note(server: &RedisServer) -> String {
    let mut connection = server.connection();
    connection.set_deadline(far());
    let (_, text): (String, String) = connection.query(redis::cmd("BLPOP").arg("notes").arg(30)).unwrap();
    text
}

/// Listens for a result beside the client, over a connection of its own.
fn watch(server: &RedisServer, id: &str) -> Connection {
    let mut connection = server.connection();
    connection.request(redis::cmd("CLIENT").arg(&["TRACKING", "ON"])).unwrap();
    assert!(connection.query::<bool>(redis::cmd("EXISTS").arg(meta_key(id))).unwrap(), "it has begun");
    connection
}

/// Waits until a result that is watched is stored.
fn stored(connection: &mut Connection, id: &str) {
    loop {
        let key = meta_key(id);
        connection.set_deadline(far());
        let meta: Option<Vec<u8>> = connection.query(redis::cmd("GET").arg(key)).unwrap();
        if meta.is_some_and(|meta| Meta::read(&meta).unwrap().state.is_ready()) {
            return;
        }
        let waited = connection.wait_push(&Wake::new().unwrap(), far()).unwrap();
        assert!(matches!(waited, Waited::Push(..)), "{waited:?}");
    }
}

fn joined<T: std::fmt::Debug>(threads: Vec<Thread<T>>) -> Vec<T> {
    threads.into_iter().map(|thread| thread.join_by(far()).unwrap()).collect()
}

#[test]
fn a_real_worker_runs_our_tasks_and_we_get_what_became_of_each() {
    let _none = NoThreads::expected();
    let Some(server) = RedisServer::start() else { return };
    let Some(worker) = Worker::start(&server.url(), &["--pool", "prefork", "-c", "2"]) else { return };
    let client = Client::start(server.config());
    let celery = client.handle();

    values_and_failures(&celery);
    times_and_queues(&celery);
    retries_are_followed(&celery);
    progress_is_reported_in_order(&celery, &server);
    what_nobody_wants_is_not_stored(&celery, &server);
    revoked(&celery, &server, &worker);
    // Nothing is followed any more.
    assert_eq!(celery.waiting(), 0);
    drop(client);
    worker.stop();
    let keys: Vec<String> = server.cli(&["KEYS", "*reply*"]);
    assert!(keys.is_empty(), "{keys:?}");
}

fn values_and_failures(celery: &CeleryHandle) {
    let sum = celery.send(Task::new("t.add").args(json!([2])).kwarg("y", 3)).unwrap();
    assert_eq!(sum.wait(LONG), Ok(json!(5)));
    assert_eq!((sum.state(), sum.outcome()), (ResultState::Success, Some(Ok(json!(5)))));
    // Somebody else may ask for the same, also when it is over.
    assert_eq!(celery.result(sum.id()).unwrap().wait(LONG), Ok(json!(5)));
    let (report, notified) = bounded(1);
    sum.on_end(move |outcome| report.send(outcome.clone()).unwrap());
    assert_eq!(notified.recv_timeout(LONG).unwrap(), Ok(json!(5)));
    let meta = sum.fetch(far()).unwrap().unwrap();
    assert_eq!((meta.state, meta.children), (ResultState::Success, json!([])));
    sum.forget(far()).unwrap();
    assert_eq!(sum.fetch(far()).unwrap(), None);

    let large = json!("ü".repeat(100_000));
    let echo = Task::new("t.echo").args(json!([large, {"deep": [null, 1.5]}])).kwarg("z", true).compress();
    let echo = celery.send(echo).unwrap().wait(LONG).unwrap();
    assert_eq!(echo, json!({"args": [large, {"deep": [null, 1.5]}], "kwargs": {"z": true}}));

    let failed = celery.send(Task::new("t.fail").args(json!(["broken"]))).unwrap().wait(LONG).unwrap_err();
    let TaskError::Failed { exception, traceback } = &failed else { panic!("{failed}") };
    assert_eq!((exception.exc_type.as_str(), exception.exc_module.as_deref()), ("ValueError", Some("builtins")));
    assert_eq!(exception.exc_message, json!(["broken", 7]));
    assert!(traceback.as_ref().unwrap().contains("in fail\n"), "{traceback:?}");
    assert_eq!((failed.to_string().as_str(), failed.class()), ("ValueError: ('broken', 7)", ErrorClass::Rejected));
    for (task, kind, module) in [
        ("t.odd", "Odd", "celery_app"),
        // A worker that does not know the task says so.
        ("t.unknown", "NotRegistered", "celery.exceptions"),
    ] {
        let failed = celery.send(Task::new(task)).unwrap().wait(LONG).unwrap_err();
        let TaskError::Failed { exception, .. } = failed else { panic!("{failed}") };
        assert_eq!((exception.exc_type.as_str(), exception.exc_module.as_deref()), (kind, Some(module)));
    }
}

fn times_and_queues(celery: &CeleryHandle) {
    let now = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64();
    let earliest = now() + 0.5;
    let later = celery.send(Task::new("t.when").countdown(SECOND / 2)).unwrap();
    let eta = Moment::from(SystemTime::now()).plus(SECOND / 2);
    let at = celery.send(Task::new("t.when").eta(eta)).unwrap();
    let expired = Task::new("t.when").expires_at(Moment::from_unix_micros(eta.unix_micros() - 10_000_000));
    let expired = celery.send(expired).unwrap();
    assert_eq!(expired.wait(LONG), Err(TaskError::Revoked { reason: "expired".to_owned() }));
    for pending in [later, at] {
        let ran = pending.wait(LONG).unwrap().as_f64().unwrap();
        assert!(ran >= earliest && ran < earliest + 20.0, "{ran} is before {earliest}");
    }
    let limits = (Some(Duration::from_millis(2500)), Some(Duration::from_secs(30)));
    let about = Task::new("t.about").id("the-id").parent("p", "r").correlation_id("c").time_limits(limits.0, limits.1);
    let about = celery.send(about.priority(4)).unwrap();
    let reported = about.wait(LONG).unwrap();
    assert_eq!(
        (&reported["id"], &reported["root_id"], &reported["parent_id"]),
        (&json!("the-id"), &json!("r"), &json!("p"))
    );
    assert_eq!((&reported["correlation_id"], &reported["timelimit"]), (&json!("c"), &json!([30, 2.5])));
    assert_eq!((&reported["priority"], &reported["queue"]), (&json!(4), &json!("celery")));
    assert!(reported["origin"].as_str().unwrap().starts_with(&format!("gen{}@", std::process::id())), "{reported}");
    // Its parent is in what is stored, as Celery has it.
    assert_eq!(about.fetch(far()).unwrap().unwrap().parent_id.as_deref(), Some("p"));
}

fn retries_are_followed(celery: &CeleryHandle) {
    let stubborn = celery.send(Task::new("t.stubborn").args(json!([2]))).unwrap();
    let seen: Arc<Mutex<BTreeSet<String>>> = Arc::default();
    let noted = seen.clone();
    stubborn.on_update(move |meta| {
        lock(&noted).insert(meta.state.to_string());
    });
    assert_eq!(stubborn.wait(LONG), Ok(json!(2)));
    assert!(lock(&seen).contains("RETRY"), "{seen:?}");
    let hopeless = celery.send(Task::new("t.hopeless")).unwrap().wait(LONG).unwrap_err();
    assert_eq!(hopeless.to_string(), "RuntimeError: hopeless");
}

fn progress_is_reported_in_order(celery: &CeleryHandle, server: &RedisServer) {
    let pending = celery.send(Task::new("t.progress").args(json!(["p", 10]))).unwrap();
    until(&pending, ResultState::Started);
    let news: Arc<Mutex<Vec<Meta>>> = Arc::default();
    let noted = news.clone();
    pending.on_update(move |meta| lock(&noted).push(meta.clone()));
    open(server, "p");
    assert_eq!(pending.wait(LONG), Ok(json!("done")));
    let percents: Vec<Value> =
        lock(&news).iter().filter(|m| m.state == ResultState::Progress).map(|m| m.result["percent"].clone()).collect();
    assert_eq!(percents, (1..=10).map(|n| json!(n * 10)).collect::<Vec<_>>());
}

fn what_nobody_wants_is_not_stored(celery: &CeleryHandle, server: &RedisServer) {
    let ignored = celery.send(Task::new("t.note").args(json!(["unwanted"])).ignore_result()).unwrap();
    assert_eq!(ignored.wait(LONG), Err(TaskError::Ignored));
    assert_eq!(note(server), "unwanted");
    // The next task is done by the time that this one would have stored a result.
    assert_eq!(celery.send(Task::new("t.add").args(json!([1]))).unwrap().wait(LONG), Ok(json!(1)));
    assert_eq!(ignored.fetch(far()).unwrap(), None);
}

fn revoked(celery: &CeleryHandle, server: &RedisServer, worker: &Worker) {
    assert_eq!(celery.ping(LONG).unwrap(), [worker.name()]);
    // One that has not come yet.
    assert_eq!(celery.revoke(&["early", "other"], &Terminate::No, far()).unwrap(), 1);
    let known = celery.inspect("revoked", &json!({}), &[worker.name().to_owned()], LONG).unwrap();
    let ids: BTreeSet<&str> = known[worker.name()].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    assert!(ids.contains("early") && ids.contains("other"), "{known:?}");
    let early = celery.send(Task::new("t.note").args(json!(["early"])).id("early")).unwrap();
    assert_eq!(early.wait(LONG), Err(TaskError::Revoked { reason: "revoked".to_owned() }));
    // One that runs.
    let running = celery.send(Task::new("t.gated").args(json!(["never"]))).unwrap();
    until(&running, ResultState::Started);
    let active = celery.active(LONG).unwrap();
    assert_eq!(active[worker.name()][0]["id"], running.id());
    assert_eq!(celery.revoke(&[running.id()], &Terminate::Signal("SIGKILL".to_owned()), far()).unwrap(), 1);
    assert_eq!(running.wait(LONG), Err(TaskError::Revoked { reason: "terminated".to_owned() }));
    // The next one runs as if nothing had been.
    celery.send(Task::new("t.note").args(json!(["after"]))).unwrap().wait(LONG).unwrap();
    assert_eq!(note(server), "after", "the one that was revoked has left no trace");
}

#[test]
fn a_thousand_tasks_of_eight_threads_are_each_run_once_with_their_results() {
    let _none = NoThreads::expected();
    let Some(server) = RedisServer::start() else { return };
    let Some(_worker) = Worker::start(&server.url(), &["--pool", "threads", "-c", "8"]) else { return };
    let client = Client::start(server.config());
    let start = Instant::now();
    let senders = (0..8).map(|thread| {
        let celery = client.handle();
        spawn(format!("t-send-{thread}"), Kick::dropped("a deadline"), move || {
            let texts = (0..125).map(|n| format!("{thread}-{n}"));
            let task = |text: &String| Task::new("t.note").args(json!([text]));
            let sent: Vec<_> = texts.map(|text| (celery.send(task(&text)).unwrap(), text)).collect();
            sent.into_iter().map(|(pending, text)| (pending.wait(LONG), text)).collect::<Vec<_>>()
        })
    });
    let all: Vec<_> = joined(senders.collect()).into_iter().flatten().collect();
    println!("1,000 tasks through a real worker of 8 threads in {:.2?}", start.elapsed());
    for (outcome, text) in &all {
        assert_eq!(outcome.as_ref().unwrap(), text);
    }
    let notes: Vec<String> = server.cli(&["LRANGE", "notes", "0", "-1"]);
    assert_eq!((all.len(), notes.len(), notes.iter().collect::<BTreeSet<_>>().len()), (1000, 1000, 1000));
    assert_eq!(client.handle().waiting(), 0);
}

#[test]
fn the_first_priority_goes_first() {
    let _none = NoThreads::expected();
    let Some(server) = RedisServer::start() else { return };
    let client = Client::start(server.config());
    let celery = client.handle();
    let mut expected = BTreeMap::<u8, Vec<String>>::new();
    let mut last = None;
    for (n, priority) in [9, 0, 5, 3, 6, 0, 9, 2].into_iter().enumerate() {
        let text = format!("{n}-of-{priority}");
        let task = Task::new("t.note").args(json!([text])).queue("ordered").priority(priority);
        let pending = celery.send(task).unwrap();
        expected.entry(priority / 3).or_default().push(text);
        if n == 6 {
            // The last one of the last priority.
            last = Some(pending);
        }
    }
    let options = ["--pool", "solo", "-c", "1", "-Q", "ordered"];
    let Some(_worker) = Worker::start(&server.url(), &options) else { return };
    last.unwrap().wait(LONG).unwrap();
    let notes: Vec<String> = server.cli(&["LRANGE", "notes", "0", "-1"]);
    assert_eq!(notes, expected.into_values().flatten().collect::<Vec<_>>());
}

#[test]
fn a_result_is_found_although_its_notification_was_missed_or_redis_was_restarted() {
    let _none = NoThreads::expected();
    let Some(mut server) = RedisServer::start() else { return };
    let Some(_worker) = Worker::start(&server.url(), &["--pool", "threads", "-c", "2"]) else { return };
    let proxy = FaultyProxy::before(&server);
    let client = Client::start(proxy.config());
    let celery = client.handle();

    let missed = celery.send(Task::new("t.gated").args(json!(["missed"]))).unwrap();
    until(&missed, ResultState::Started);
    let mut watch = watch(&server, missed.id());
    proxy.refuse();
    proxy.disconnect_all();
    open(&server, "missed");
    stored(&mut watch, missed.id());
    assert_eq!(missed.state(), ResultState::Started);
    assert!(matches!(
        missed.wait(Duration::from_millis(10)),
        Err(TaskError::TimedOut { state: ResultState::Started, .. })
    ));
    proxy.heal();
    assert_eq!(missed.wait(LONG), Ok(json!("missed")));

    let nap = celery.send(Task::new("t.nap").args(json!([1.0]))).unwrap();
    until(&nap, ResultState::Started);
    server.restart();
    assert_eq!(nap.wait(LONG), Ok(json!(1.0)));
    // It goes on as before.
    let sum = celery.send_by(Task::new("t.add").args(json!([4])), far()).unwrap();
    assert_eq!(sum.wait(LONG), Ok(json!(4)));
}

#[test]
fn without_redis_a_send_fails_by_its_deadline_with_a_reason_and_works_again_when_redis_is_back() {
    let _none = NoThreads::expected();
    let Some(mut server) = RedisServer::away() else { return };
    let config = RedisConfig { operation_time: SECOND / 2, ..server.config() };
    let client = Client::start(config);
    let celery = client.handle();
    let start = Instant::now();
    let error = celery.send(Task::new("t.add")).unwrap_err();
    let took = start.elapsed();
    assert!(took >= SECOND / 2 && took < LONG, "{took:.1?}");
    assert!(error.to_string().contains("refused"), "{error}");
    assert_eq!(error.class(), ErrorClass::Reconnect);
    assert!(matches!(celery.ping(SECOND / 2), Err(RedisError::Dial(_))));
    // Full is an error of Redis, not of the connection.
    server.start_again();
    let pending = celery.send_by(Task::new("t.add").queue("kept"), far()).unwrap();
    assert_eq!(server.cli::<usize>(&["LLEN", "kept"]), 1);
    // Nobody runs it.
    let late = pending.wait(Duration::from_millis(50)).unwrap_err();
    assert!(matches!(&late, TaskError::TimedOut { state: ResultState::Pending, .. }), "{late}");
    assert_eq!(celery.revoke(&[pending.id()], &Terminate::No, far()).unwrap(), 0, "there are no workers");
    drop(error);
}

#[test]
fn redis_that_is_full_refuses_a_task_and_nothing_of_it_is_left() {
    let _none = NoThreads::expected();
    let Some(server) = RedisServer::start() else { return };
    let client = Client::start(server.config());
    let celery = client.handle();
    celery.send(Task::new("t.add")).unwrap();
    server.cli::<()>(&["CONFIG", "SET", "maxmemory", "1"]);
    let error = celery.send(Task::new("t.add")).unwrap_err();
    assert!(matches!(&error, SendError::NotSent { error, .. } if error.is_server("OOM")), "{error}");
    assert_eq!(error.class(), ErrorClass::Retry);
    drop(error);
    server.cli::<()>(&["CONFIG", "SET", "maxmemory", "0"]);
    celery.send(Task::new("t.add")).unwrap();
    assert_eq!(server.cli::<usize>(&["LLEN", "celery"]), 2);
    let huge = Task::new("t.add").args(json!(["x".repeat(40 << 20)]));
    assert!(matches!(celery.send(huge), Err(SendError::TooLarge { .. })));
    assert_eq!(celery.waiting(), 0);
}

#[test]
fn a_task_whose_answer_was_lost_is_in_the_queue_once() {
    let _none = NoThreads::expected();
    let Some(server) = RedisServer::start() else { return };
    let proxy = FaultyProxy::before(&server);
    let client = Client::start(often(proxy.config()));
    let celery = client.handle();
    let seed = Rng::from_entropy().next_u64();
    println!("seed {seed}");
    let mut rng = Rng::new(seed);
    celery.send(Task::new("t.add").id("first").ignore_result()).unwrap();
    let (mut ids, mut cuts) = (BTreeSet::from(["first".to_owned()]), 0);
    while cuts < 25 {
        // An answer has 4 bytes; the replies of a log-in and of subscriptions are cut as well.
        proxy.disconnect_after(1 + usize::try_from(rng.next_u64() % 12).unwrap());
        while proxy.is_armed() {
            let id = format!("task-{}", ids.len());
            celery.send_by(Task::new("t.add").id(&id).ignore_result(), far()).unwrap();
            ids.insert(id);
        }
        cuts += 1;
    }
    let messages: Vec<Vec<u8>> = server.cli(&["LRANGE", "celery", "0", "-1"]);
    let queued = messages.iter().map(|m| serde_json::from_slice::<Value>(m).unwrap()["headers"]["id"].clone());
    let queued: Vec<String> = queued.map(|id| id.as_str().unwrap().to_owned()).collect();
    println!("{} tasks, {cuts} cuts, {} connections", ids.len(), proxy.accepted());
    assert_eq!(queued.len(), ids.len());
    assert_eq!(queued.into_iter().collect::<BTreeSet<_>>(), ids);
    assert_eq!(server.cli::<Vec<String>>(&["KEYS", "phalanx.producer.*"]).len(), 1);
}

#[test]
fn a_result_that_has_expired_is_distinguished_from_one_that_is_late() {
    let _none = NoThreads::expected();
    let Some(server) = RedisServer::start() else { return };
    let client = Client::start(server.config());
    let celery = client.handle();
    let pending = celery.result("brief").unwrap();
    let meta = Meta::started("brief", 1, "w@h").write();
    server.cli::<()>(&["SET", &meta_key("brief"), &meta, "PX", "1500"]);
    until(&pending, ResultState::Started);
    assert!(matches!(pending.wait(Duration::ZERO), Err(TaskError::TimedOut { state: ResultState::Started, .. })));
    let expired = pending.wait(5 * SECOND);
    assert_eq!(expired, Err(TaskError::Expired { state: ResultState::Started }));
    // A worker that stores it all the same is believed.
    let done = Meta::success("brief", json!(1), Moment::from_unix_micros(0)).write();
    server.cli::<()>(&["SET", &meta_key("brief"), &done]);
    server.cli::<()>(&["PUBLISH", &meta_key("brief"), &done]);
    assert_eq!(pending.wait(LONG), Ok(json!(1)));
    // What is no result is an error at once.
    let broken = celery.result("broken").unwrap();
    server.cli::<()>(&["SET", &meta_key("broken"), "{}"]);
    assert!(matches!(broken.wait(LONG), Err(TaskError::Unreadable(_))));
}

#[test]
fn a_stop_ends_every_wait_at_once_and_refuses_what_comes_later() {
    let _none = NoThreads::expected();
    let Some(server) = RedisServer::start() else { return };
    let client = Client::start(server.config());
    let celery = client.handle();
    let pending: Vec<_> = (0..4).map(|_| celery.send(Task::new("t.add").queue("nobody")).unwrap()).collect();
    let (report, notified) = bounded(1);
    pending[0].on_end(move |outcome| report.send(outcome.clone()).unwrap());
    let (ready, waiting) = bounded(8);
    let waiters = pending.iter().enumerate().map(|(n, pending)| {
        let (pending, ready) = (pending.clone(), ready.clone());
        spawn(format!("t-wait-{n}"), Kick::dropped("the client"), move || {
            ready.send(()).unwrap();
            (pending.wait(LONG), Instant::now())
        })
    });
    let waiters: Vec<_> = waiters.collect();
    for _ in &waiters {
        waiting.recv_timeout(LONG).unwrap();
    }
    let start = Instant::now();
    let report = client.stop();
    assert!(report.is_clean(), "{report}");
    for (outcome, at) in joined(waiters) {
        assert_eq!(outcome, Err(TaskError::Stopped));
        assert!(at.saturating_duration_since(start) < 5 * SECOND);
    }
    assert_eq!(notified.recv_timeout(LONG).unwrap(), Err(TaskError::Stopped));
    assert!(matches!(celery.send(Task::new("t.add")), Err(SendError::Stopped)));
    assert!(matches!(celery.result("x"), Err(SendError::Stopped)));
    assert!(matches!(celery.ping(SECOND), Err(RedisError::Stopped | RedisError::Dial(_))));
    assert_eq!(server.cli::<usize>(&["LLEN", "nobody"]), 4, "what was accepted was sent");
}
