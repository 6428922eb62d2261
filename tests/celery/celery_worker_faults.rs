//! Our worker while Redis is away, restarted, slow, frozen, full or cut off: nothing is lost, nothing runs twice unless
//! it is marked, each error is reported, and it recovers by itself.
//!
//! `PHALANX_REDIS_RESTARTS` says how often Redis is restarted under load.

use crate::load::{Load, Runs, Verdict, hasty, is_ready, nothing_is_held, seeded, taking, times};
use crate::testkit::celery as celery_kit;
use crate::testkit::redis as redis_kit;
use crate::testkit::threads::NoThreads;
use crate::testkit::wait::{LONG, far, until};

use std::time::{Duration, Instant, SystemTime};

use celery_kit::{Client, Feed, Gate, Ours, settings};
use phalanx::base::rng::Rng;
use phalanx::celery::Task;
use phalanx::celery::worker::{Registry, WorkerConfig};
use phalanx::ops::health::PartState;
use phalanx::redis::{RedisConfig, RedisError};
use redis_kit::{FaultyProxy, RedisServer, often};
use serde_json::json;

const SECOND: Duration = Duration::from_secs(1);
const RESTARTS: usize = 6;

#[test]
fn a_worker_that_starts_without_redis_says_so_and_works_once_it_is_there() {
    let _none = NoThreads::expected();
    let Some(mut server) = RedisServer::away() else { return };
    let runs = Runs::default();
    let worker = Ours::start(hasty(server.config()), runs.registry());
    let mut error = None;
    until("an error", || {
        error = worker.state().last_error;
        error.is_some()
    });
    assert!(matches!(&error, Some(RedisError::Dial(_))), "{error:?}");
    assert!(error.unwrap().to_string().contains("refused") && !worker.wait_ready(Duration::ZERO));
    assert_eq!(taking(&worker), PartState::Down);
    server.start_again();
    assert!(worker.wait_ready(LONG));
    assert_eq!(taking(&worker), PartState::Up);
    let client = Client::start(server.config());
    let pending = client.handle().send_by(Task::new("once"), far()).unwrap();
    assert_eq!(pending.wait(LONG), Ok(json!(pending.id())));
    nothing_is_held(&worker, &server);
}

#[test]
fn redis_is_restarted_under_load_and_nothing_is_lost_or_run_twice_unmarked() {
    let restarts = times("PHALANX_REDIS_RESTARTS", RESTARTS);
    let _none = NoThreads::expected();
    let Some(mut server) = RedisServer::start() else { return };
    let mut rng = seeded();
    let mut feed = Feed::start(&server.url());
    let mut load = Load::start(|| settings(often(server.config())), LONG);
    for _ in 0..restarts {
        load.burst(&mut feed);
        load.goes_on(&mut rng);
        match rng.next_u64() % 2 {
            0 => server.kill(),
            _ => server.stop(),
        }
        server.start_again();
        load.gather(&mut feed);
    }
    println!("{restarts} restarts: {}", load.end(&mut feed, &server, true));
}

#[test]
fn redis_that_answers_slowly_delays_tasks_and_harms_none_and_too_slowly_is_an_error_until_it_is_over() {
    let _none = NoThreads::expected();
    let Some(server) = RedisServer::start() else { return };
    let proxy = FaultyProxy::before(&server);
    let runs = Runs::default();
    let config = settings(RedisConfig { operation_time: 3 * SECOND, ..often(proxy.config()) });
    let worker = Ours::ready(WorkerConfig { concurrency: 2, ..config }, runs.registry());
    let client = Client::start(server.config());
    let send = |tasks: usize| (0..tasks).map(|_| client.handle().send(Task::new("once")).unwrap()).collect::<Vec<_>>();
    proxy.delay(Duration::from_millis(100));
    let mut sent = send(60);
    for pending in &sent {
        assert_eq!(pending.wait(LONG), Ok(json!(pending.id())));
    }
    assert!(worker.state().last_error.is_none(), "slow is no error: {:?}", worker.state());
    // Longer than it has patience for.
    proxy.delay(5 * SECOND);
    sent.extend(send(60));
    until("an error", || matches!(worker.state().last_error, Some(RedisError::Timeout { .. })));
    until("it is not ready", || taking(&worker) == PartState::Down);
    proxy.heal();
    for pending in &sent {
        assert_eq!(pending.wait(LONG), Ok(json!(pending.id())));
    }
    let ids: Vec<_> = sent.iter().map(|pending| pending.id().to_owned()).collect();
    let verdict = runs.judge(&ids);
    println!("{} sent, {verdict:?}", ids.len());
    nothing_is_held(&worker, &server);
}

#[test]
fn redis_that_is_frozen_is_found_out_and_what_runs_is_not_given_to_another_when_it_goes_on() {
    let _none = NoThreads::expected();
    let Some(server) = RedisServer::start() else { return };
    let (runs, gate) = (Runs::default(), Gate::new());
    let registry = gate.registry(runs.registry());
    let config = |n: usize| {
        let mut config = hasty(server.config());
        config.liveness = 3 * SECOND;
        // Each holds one task, and has a thread for others.
        config.queues = vec!["celery".to_owned(), format!("own-{n}")];
        config
    };
    let workers: Vec<_> = (0..3).map(|n| Ours::ready(config(n), registry.clone())).collect();
    let client = Client::start(server.config());
    let held: Vec<_> =
        (0..3).map(|n| client.handle().send(Task::new("gated").queue(format!("own-{n}"))).unwrap()).collect();
    held.iter().for_each(|_| drop(gate.begun()));
    let start = Instant::now();
    server.pause();
    // Each asks for something at least every second, to show that it lives.
    until("all have found out", || {
        let down = |worker: &Ours| worker.board.errors.last_errors().iter().any(|error| error.place == "cel-cmd");
        workers.iter().all(down)
    });
    // For Redis they are dead: what says that they live is over.
    until("their time is over", || start.elapsed() > 4 * SECOND);
    server.resume();
    let sent: Vec<_> = (0..50).map(|_| client.handle().send_by(Task::new("once"), far()).unwrap()).collect();
    for pending in &sent {
        assert_eq!(pending.wait(LONG), Ok(json!(pending.id())));
    }
    // Two looks of each at the others.
    until("they have looked at one another", || start.elapsed() > 9 * SECOND);
    gate.open(3);
    for pending in &held {
        assert_eq!(pending.wait(LONG), Ok(json!(false)), "nobody was taken for dead");
    }
    assert!(gate.is_quiet() && workers.iter().all(|worker| worker.state().restored == 0));
    let ids: Vec<_> = sent.iter().map(|pending| pending.id().to_owned()).collect();
    runs.judge(&ids);
    workers.iter().for_each(|worker| nothing_is_held(worker, &server));
}

#[test]
fn something_else_under_a_key_of_the_record_costs_no_message_and_is_named_until_it_is_gone() {
    let _none = NoThreads::expected();
    let Some(server) = RedisServer::start() else { return };
    let (runs, gate) = (Runs::default(), Gate::new());
    let worker = Ours::ready(hasty(server.config()), gate.registry(runs.registry()));
    let client = Client::start(server.config());
    let says = |place: &str, what: &str| {
        let parts = worker.board.health.parts(Instant::now());
        parts.iter().any(|part| part.name == place && part.why.as_ref().is_some_and(|why| why.contains(what)))
    };
    let mut ids = Vec::new();
    for (key, kind) in [("unacked", "hash"), ("unacked_index", "zset")] {
        let what = format!("the key \"{key}\" is a string, not a {kind}");
        let running = client.handle().send(Task::new("gated")).unwrap();
        gate.begun();
        server.cli::<()>(&["RENAME", key, "kept"]);
        server.cli::<()>(&["SET", key, "x"]);
        let waits: Vec<_> = (0..3).map(|_| client.handle().send(Task::new("once")).unwrap()).collect();
        until("it is told by what takes", || says("cel-take", &what));
        assert_eq!(server.cli::<usize>(&["LLEN", "celery"]), 3, "none was taken");
        gate.open(1);
        until("it is told by what settles", || says("cel-settle", &what));
        server.cli::<()>(&["DEL", key]);
        server.cli::<()>(&["RENAME", "kept", key]);
        assert_eq!(running.wait(LONG), Ok(json!(false)));
        for pending in &waits {
            assert_eq!(pending.wait(LONG), Ok(json!(pending.id())));
        }
        ids.extend(waits.iter().map(|pending| pending.id().to_owned()));
        nothing_is_held(&worker, &server);
    }
    // A queue that is none keeps what came from others before it.
    let list = "celery\u{6}\u{16}9";
    server.cli::<()>(&["SET", list, "x"]);
    let sent = client.handle().send(Task::new("once")).unwrap();
    until("it is told", || says("cel-take", "9\" is a string, not a list"));
    server.cli::<()>(&["DEL", list]);
    assert_eq!(sent.wait(LONG), Ok(json!(sent.id())));
    ids.push(sent.id().to_owned());
    until("it is ready again", || is_ready(&worker));
    runs.judge(&ids);
}

#[test]
fn redis_that_is_full_is_reported_and_results_wait_until_there_is_room() {
    let _none = NoThreads::expected();
    let Some(server) = RedisServer::start() else { return };
    let full = |is_full: bool| server.cli::<()>(&["CONFIG", "SET", "maxmemory", if is_full { "1" } else { "0" }]);
    let (runs, gate) = (Runs::default(), Gate::new());
    let client = Client::start(server.config());
    full(true);
    let worker = Ours::start(hasty(server.config()), gate.registry(runs.registry()));
    until("it is reported at the start", || worker.state().last_error.is_some_and(|error| error.is_server("OOM")));
    assert!(!worker.state().consuming);
    full(false);
    assert!(worker.wait_ready(LONG));
    let gated: Vec<_> = (0..2).map(|_| client.handle().send(Task::new("gated")).unwrap()).collect();
    gated.iter().for_each(|_| drop(gate.begun()));
    let sent: Vec<_> = (0..50).map(|_| client.handle().send(Task::new("once")).unwrap()).collect();
    full(true);
    gate.open(2);
    until("it is reported while it works", || {
        let errors = worker.board.errors.last_errors();
        errors.iter().any(|error| error.place == "cel-settle" && error.text.contains("OOM"))
    });
    assert!(gated.iter().all(|pending| pending.outcome().is_none()));
    full(false);
    for pending in &gated {
        assert_eq!(pending.wait(LONG), Ok(json!(false)));
    }
    for pending in &sent {
        assert_eq!(pending.wait(LONG), Ok(json!(pending.id())));
    }
    let ids: Vec<_> = sent.iter().map(|pending| pending.id().to_owned()).collect();
    assert_eq!(runs.judge(&ids), Verdict { once: 50, ..Verdict::default() });
    nothing_is_held(&worker, &server);
}

#[test]
fn replies_are_truncated_at_random_places_and_each_task_runs_once() {
    let _none = NoThreads::expected();
    let Some(server) = RedisServer::start() else { return };
    let seed = Rng::from_entropy().next_u64();
    println!("seed {seed}");
    let mut rng = Rng::new(seed);
    let proxy = FaultyProxy::before(&server);
    let runs = Runs::default();
    let worker = Ours::ready(settings(often(proxy.config())), runs.registry());
    let client = Client::start(server.config());
    let (mut sent, mut cuts) = (Vec::new(), 0);
    while cuts < 25 {
        proxy.disconnect_after(1 + (rng.next_u64() % 4000) as usize);
        while proxy.is_armed() {
            let burst: Vec<_> = (0..10).map(|_| client.handle().send(Task::new("once")).unwrap()).collect();
            burst[9].wait(LONG).unwrap();
            sent.extend(burst);
        }
        cuts += 1;
    }
    for pending in &sent {
        assert_eq!(pending.wait(LONG), Ok(json!(pending.id())));
    }
    let ids: Vec<_> = sent.iter().map(|pending| pending.id().to_owned()).collect();
    let verdict = runs.judge(&ids);
    println!("{cuts} cuts, {} connections: {} sent, {verdict:?}", proxy.accepted(), ids.len());
    nothing_is_held(&worker, &server);
}

#[test]
fn a_message_that_was_taken_after_its_request_was_given_up_is_found() {
    let _none = NoThreads::expected();
    let Some(server) = RedisServer::start() else { return };
    let runs = Runs::default();
    let mut config = settings(server.config());
    config.liveness = SECOND;
    let worker = Ours::ready(config, runs.registry());
    let message = Task::new("once").id("late").message(SystemTime::now().into(), "t", || "tag-late".to_owned());
    let entry = format!("[{}, \"\", \"celery\"]", message.write().write());
    // As a request does that was on its way all the time that its sender waited, and over another connection goes on.
    server.cli::<()>(&["HSET", "unacked", "tag-late", &entry]);
    server.cli::<()>(&["ZADD", "unacked_index", "4000000000", "tag-late"]);
    server.cli::<()>(&["HSET", &format!("phalanx.worker.{}.held", worker.id()), "tag-late", "celery"]);
    let client = Client::start(server.config());
    assert_eq!(client.handle().result("late").unwrap().wait(LONG), Ok(json!("late")));
    assert_eq!(runs.judge(&["late".to_owned()]), Verdict { once: 1, marked: 1, ..Verdict::default() });
    nothing_is_held(&worker, &server);
}

#[test]
fn a_stop_without_redis_ends_in_time_and_others_find_what_it_held() {
    let _none = NoThreads::expected();
    let Some(mut server) = RedisServer::start() else { return };
    let gate = Gate::new();
    let mut config = hasty(server.config());
    config.liveness = SECOND;
    let worker = Ours::ready(config.clone(), gate.registry(Registry::new()));
    let client = Client::start(server.config());
    let sent: Vec<_> = (0..4).map(|_| client.handle().send(Task::new("gated")).unwrap()).collect();
    (0..2).for_each(|_| drop(gate.begun()));
    until("the rest is held", || worker.state().counts.waiting == 2);
    server.kill();
    let start = Instant::now();
    let report = worker.stop(3 * SECOND);
    assert!(start.elapsed() < LONG, "{:?}", start.elapsed());
    assert_eq!((report.cancelled, report.given_back, report.left), (2, 0, 4));
    server.start_again();
    gate.open(4);
    let second = Ours::ready(config, gate.registry(Registry::new()));
    for pending in &sent {
        assert_eq!(pending.wait(LONG), Ok(json!(true)));
    }
    assert_eq!(second.state().restored, 4);
    nothing_is_held(&second, &server);
}
