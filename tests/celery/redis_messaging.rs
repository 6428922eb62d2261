//! Subscriptions and messaging over a real Redis that is ill-treated.

use crate::testkit::redis as redis_kit;
use crate::testkit::threads::NoThreads;
use crate::testkit::wait::{LONG, far};
use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, bounded};
use phalanx::base::backoff::BackoffConfig;
use phalanx::base::rng::Rng;
use phalanx::base::shutdown::Shutdown;
use phalanx::base::stop::{Step, StopReport, Stopping};
use phalanx::base::thread::{Kick, spawn};
use phalanx::ops::errors::ErrorClass;
use phalanx::ops::health::{Health, Part, PartState};
use phalanx::ops::status::Board;
use phalanx::redis::messaging::{InboxError, Messaging, RedisMessaging, RequestError, WhenFull};
use phalanx::redis::{Channel, Message, RedisConfig, RedisError, Request, Subscriber, SubscriberHandle, Subscription};
use redis::FromRedisValue;
use redis_kit::{FaultyProxy, RedisServer, often};

fn stopping<T>(budget: Duration, work: impl FnOnce(&mut Step) -> T) -> StopReport {
    let mut stopping = Stopping::alone();
    stopping.step("redis", budget, work);
    stopping.finish()
}

fn listen(handle: &SubscriberHandle, channel: Channel) -> (Subscription, Receiver<Message>) {
    let (report, notified) = bounded(10_000);
    (handle.subscribe(channel, move |message| report.send(message).unwrap()), notified)
}

fn exact(name: &str) -> Channel {
    Channel::Exact(name.to_owned())
}

/// The part of the subscriber of each test.
fn part(health: &Health) -> Part {
    health.parts(Instant::now()).into_iter().find(|part| part.name == "t-sub").unwrap()
}

fn part_state(health: &Health) -> PartState {
    part(health).state
}

#[test]
fn the_example_of_redis_runs_and_leaves_no_thread() {
    let group = phalanx::base::thread::Group::enter();
    let Some(server) = RedisServer::start() else { return };
    let lines = crate::redis_example::run(&server.url()).unwrap();
    assert_eq!(lines, ["news: it rains", "answer: HELLO", "2 + 3 = 5; 0 left"]);
    drop(server);
    let left: Vec<_> = group.live().into_iter().map(|thread| thread.name).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn messages_reach_every_sink_until_it_is_dropped() {
    let _none = NoThreads::expected();
    let Some(server) = RedisServer::start() else { return };
    let subscriber = Subscriber::start("t-sub", server.config(), &Board::new()).unwrap();
    let handle = subscriber.handle();
    let (first, notified) = listen(&handle, exact("news"));
    let (_second, told_too) = listen(&handle, exact("news"));
    let (_pattern, told_by_pattern) = listen(&handle, Channel::Pattern("ne?s".to_owned()));
    handle.prove(far()).unwrap();
    assert_eq!(server.cli::<i64>(&["PUBLISH", "news", "one"]), 2, "one connection for all sinks");
    let message = Message { channel: "news".to_owned(), pattern: None, payload: b"one".to_vec() };
    assert_eq!(notified.recv_timeout(LONG).unwrap(), message);
    assert_eq!(told_too.recv_timeout(LONG).unwrap(), message);
    assert_eq!(told_by_pattern.recv_timeout(LONG).unwrap().pattern.as_deref(), Some("ne?s"));
    drop(first);
    handle.prove(far()).unwrap();
    server.cli::<i64>(&["PUBLISH", "news", "two"]);
    assert_eq!(told_too.recv_timeout(LONG).unwrap().payload, b"two");
    assert!(notified.try_recv().is_err());
    drop((_second, _pattern));
    handle.prove(far()).unwrap();
    assert_eq!(server.cli::<i64>(&["PUBLISH", "news", "three"]), 0);
    assert!(stopping(LONG, |step| subscriber.stop_in(step)).is_clean());
    assert!(matches!(handle.prove(far()), Err(RedisError::Stopped)));
}

#[test]
fn a_subscription_that_was_made_while_redis_was_away_works_once_it_is_there() {
    let _none = NoThreads::expected();
    let Some(mut server) = RedisServer::away() else { return };
    let board = Board::new();
    let subscriber = Subscriber::start("t-sub", server.config(), &board).unwrap();
    let handle = subscriber.handle();
    let (report, notified) = bounded(10);
    handle.on_connected(move |epoch| report.send(epoch).unwrap());
    let (_kept, messages) = listen(&handle, exact("news"));
    let (start, limit) = (Instant::now(), Duration::from_millis(200));
    let error = handle.prove(start + limit).unwrap_err();
    assert!(start.elapsed() < LONG && error.to_string().contains("cannot connect to"), "{error}");
    assert_eq!(part_state(&board.health), PartState::Down);
    server.start_again();
    assert_eq!(notified.recv_timeout(LONG).unwrap(), 1);
    // Whoever is notified of a connection may rely on its subscriptions.
    assert_eq!(server.cli::<i64>(&["PUBLISH", "news", "x"]), 1);
    messages.recv_timeout(LONG).unwrap();
    server.kill();
    server.start_again();
    assert_eq!(notified.recv_timeout(LONG).unwrap(), 2);
    assert_eq!(server.cli::<i64>(&["PUBLISH", "news", "x"]), 1);
    messages.recv_timeout(LONG).unwrap();
    assert!(stopping(LONG, |step| subscriber.stop_in(step)).is_clean());
}

#[test]
fn a_subscription_that_stalls_is_down_within_its_limit_and_up_again_after() {
    let _none = NoThreads::expected();
    let Some(server) = RedisServer::start() else { return };
    let proxy = FaultyProxy::before(&server);
    let mut config = proxy.config();
    config.stall_after = Duration::from_millis(600);
    config.operation_time = Duration::from_millis(400);
    let board = Board::new();
    let subscriber = Subscriber::start("t-sub", config, &board).unwrap();
    let handle = subscriber.handle();
    let (_kept, messages) = listen(&handle, exact("news"));
    handle.prove(far()).unwrap();
    assert_eq!(part_state(&board.health), PartState::Up);
    // It proves itself while nothing happens.
    let (report, notified) = bounded(10);
    handle.on_connected(move |epoch| report.send(epoch).unwrap());
    assert_eq!(notified.recv_timeout(LONG).unwrap(), 1);
    // Several proofs later it is still the same connection.
    let proofs = board.metrics.counter("phalanx_redis_proofs_total", "", &[("place", "t-sub")]);
    let (seen, end) = (proofs.get(), far());
    while proofs.get() < seen + 4 {
        assert!(Instant::now() < end, "no proofs");
        Shutdown::new().wait(Duration::from_millis(1));
    }
    assert!(notified.try_recv().is_err(), "an idle subscription is not a stalled one");
    let start = Instant::now();
    proxy.black_hole();
    let down = wait_for(&board.health, PartState::Down);
    let why = part(&board.health).why.unwrap();
    assert!(why.contains("a proof of the subscriptions took longer than"), "{why}");
    proxy.heal();
    assert_eq!(notified.recv_timeout(LONG).unwrap(), 2);
    assert_eq!(part_state(&board.health), PartState::Up);
    server.cli::<i64>(&["PUBLISH", "news", "x"]);
    messages.recv_timeout(LONG).unwrap();
    println!("down after {:?}", down - start);
    assert!(board.metrics.render().contains("phalanx_redis_stalls_total{place=\"t-sub\"} 1"));
    assert!(stopping(LONG, |step| subscriber.stop_in(step)).is_clean());
}

/// Looks at the health each millisecond, as a prober does, until the one part is so.
fn wait_for(health: &Health, state: PartState) -> Instant {
    let (end, never) = (far(), Shutdown::new());
    while part_state(health) != state {
        assert!(Instant::now() < end, "the part does not become {state}");
        never.wait(Duration::from_millis(1));
    }
    Instant::now()
}

#[test]
fn a_channel_that_is_refused_is_named_and_the_others_work() {
    let _none = NoThreads::expected();
    let Some(server) = RedisServer::start() else { return };
    server.cli::<()>(&["ACL", "SETUSER", "me", "on", ">pw", "+@all", "resetchannels", "&news", "&phalanx.proof.*"]);
    let url = server.url().replace("redis://", "redis://me:pw@");
    let board = Board::new();
    let config = phalanx::redis::RedisConfig::parse(&url).unwrap();
    let subscriber = Subscriber::start("t-sub", config, &board).unwrap();
    let handle = subscriber.handle();
    let (_news, messages) = listen(&handle, exact("news"));
    let (secret, _) = listen(&handle, exact("secret"));
    handle.prove(far()).unwrap();
    let refused = part(&board.health);
    assert!(refused.to_string().contains("not subscribed to Exact(\"secret\"): Redis says NOPERM"), "{refused}");
    server.cli::<i64>(&["PUBLISH", "news", "x"]);
    messages.recv_timeout(LONG).unwrap();
    drop(secret);
    handle.prove(far()).unwrap();
    assert_eq!(part_state(&board.health), PartState::Up);
    assert!(stopping(LONG, |step| subscriber.stop_in(step)).is_clean());
}

#[test]
fn who_waits_for_a_proof_waits_over_a_lost_connection() {
    let _none = NoThreads::expected();
    let Some(server) = RedisServer::start() else { return };
    let proxy = FaultyProxy::before(&server);
    let subscriber = Subscriber::start("t-sub", proxy.config(), &Board::new()).unwrap();
    let handle = subscriber.handle();
    handle.prove(far()).unwrap();
    for bytes in [1, 20, 60] {
        proxy.disconnect_after(bytes);
        handle.prove(far()).unwrap();
        assert!(!proxy.is_armed());
    }
    assert_eq!(handle.state().epoch, 4);
    assert!(stopping(LONG, |step| subscriber.stop_in(step)).is_clean());
}

/// One that finds a Redis that is back at once, so that a hundred restarts take no hour.
fn quick(mut config: RedisConfig) -> RedisConfig {
    let millis = Duration::from_millis;
    config.backoff = BackoffConfig { base: millis(20), cap: millis(100), stable_after: millis(50) };
    config
}

fn start(config: RedisConfig) -> (RedisMessaging, Messaging) {
    let messaging = RedisMessaging::start(config, &Board::new()).unwrap();
    let handle = messaging.handle();
    (messaging, handle)
}

fn soon(millis: u64) -> Instant {
    Instant::now() + Duration::from_millis(millis)
}

#[test]
fn what_is_published_reaches_who_has_subscribed() {
    let _none = NoThreads::expected();
    let Some(server) = RedisServer::start() else { return };
    let (messaging, handle) = start(server.config());
    let inbox = handle.subscribe(exact("news"), WhenFull::DropOldest);
    handle.prove(far()).unwrap();
    let payload = b"\0 any bytes \xff";
    assert_eq!(handle.publish("news", payload, far()).unwrap(), 1);
    assert_eq!(inbox.recv(far()).unwrap().payload, payload);
    assert_eq!(inbox.recv(soon(10)), Err(InboxError::Timeout));
    assert_eq!(handle.publish("nobody", b"", far()).unwrap(), 0);
    for n in 0..1100 {
        handle.publish("news", format!("{n}").as_bytes(), far()).unwrap();
    }
    handle.prove(far()).unwrap();
    assert_eq!((inbox.dropped(), inbox.recv(far()).unwrap().payload), (76, b"76".to_vec()));
    assert!(stopping(LONG, |step| messaging.stop_in(step)).is_clean());
    let left = std::iter::from_fn(|| inbox.recv(far()).ok()).count();
    assert_eq!((left, inbox.recv(far())), (1023, Err(InboxError::Stopped)));
    assert!(matches!(handle.publish("news", b"", far()), Err(RedisError::Stopped)));
    assert!(matches!(handle.request("news", b"", far()), Err(RequestError::Redis(RedisError::Stopped))));
}

#[test]
fn a_request_gets_its_answer_or_says_why_not() {
    let _none = NoThreads::expected();
    let Some(server) = RedisServer::start() else { return };
    let ((asking, asker), (answering, answerer)) = (start(server.config()), start(server.config()));
    let error = asker.request("echo", b"x", far()).unwrap_err();
    assert!(matches!(error, RequestError::NoResponder(_)) && error.class() == ErrorClass::Retry, "{error}");
    let (enter, entered) = bounded(10_000);
    let (leave, left) = bounded::<()>(10_000);
    let responder = answerer.respond("echo", 2, move |request| match request.payload {
        b"fail" => Err("not today".to_owned()),
        b"panic" => panic!("boom"),
        b"wait" => {
            enter.send(request.deadline).unwrap();
            // Until the test lets it.
            left.recv().map(|()| b"waited".to_vec()).map_err(|e| e.to_string())
        }
        other => Ok(other.to_vec()),
    });
    answerer.prove(far()).unwrap();
    for size in [0, 1, 100_000, 3_000_000] {
        let payload = vec![size as u8; size];
        assert!(asker.request("echo", &payload, far()).unwrap() == payload);
    }
    let failed = asker.request("echo", b"fail", far()).unwrap_err();
    assert!(failed.to_string() == "not today" && failed.class() == ErrorClass::Rejected);
    assert_eq!(asker.request("echo", b"panic", far()).unwrap_err().to_string(), "the handler panicked: boom");
    // Both threads are in the handler, and 1,024 wait: the next one is answered so.
    let (begun, limit) = (Instant::now(), Duration::from_millis(400));
    let late = asker.request("echo", b"wait", begun + limit).unwrap_err();
    assert!(matches!(late, RequestError::Timeout { .. }) && begun.elapsed() < LONG, "{late}");
    let second = asker.clone();
    let second = spawn("t-second", Kick::dropped("its answer"), move || second.request("echo", b"wait", far()));
    entered.recv_timeout(LONG).unwrap();
    entered.recv_timeout(LONG).unwrap();
    for _ in 0..1024 {
        assert_eq!(asker.publish("echo", b"no request", far()).unwrap(), 1);
    }
    let busy = asker.request("echo", b"x", far()).unwrap_err();
    assert_eq!(busy.to_string(), "who answers requests on echo is busy");
    for _ in 0..2 {
        leave.send(()).unwrap();
    }
    assert_eq!(second.join_by(far()).unwrap().unwrap(), b"waited");
    assert_eq!(asker.request("echo", b"after", far()).unwrap(), b"after");
    assert!(stopping(LONG, |step| (responder.stop_in(step), answering.stop_in(step), asking.stop_in(step))).is_clean());
}

#[test]
fn a_redis_that_is_away_at_the_start_is_an_error_in_time_and_no_reason_to_start_again() {
    let _none = NoThreads::expected();
    let Some(mut server) = RedisServer::away() else { return };
    let (messaging, handle) = start(quick(server.config()));
    let responder = handle.respond("echo", 1, |request| Ok(request.payload.to_vec()));
    let (begun, limit) = (Instant::now(), Duration::from_millis(300));
    let publish = handle.publish("x", b"", begun + limit).unwrap_err();
    assert!(begun.elapsed() < LONG && publish.to_string().contains("cannot connect to"), "{publish}");
    let request = handle.request("echo", b"", soon(300)).unwrap_err();
    assert!(request.to_string().contains("cannot connect to") && request.class().is_retryable(), "{request}");
    server.start_again();
    handle.prove(far()).unwrap();
    assert_eq!(handle.request("echo", b"now", far()).unwrap(), b"now");
    assert!(stopping(LONG, |step| (responder.stop_in(step), messaging.stop_in(step))).is_clean());
}

#[test]
fn every_request_is_answered_or_fails_in_time_while_redis_is_restarted_a_hundred_times() {
    const RESTARTS: usize = 100;
    const LIMIT: Duration = Duration::from_secs(2);
    let _none = NoThreads::expected();
    let Some(mut server) = RedisServer::start() else { return };
    let ((asking, asker), (answering, answerer)) = (start(quick(server.config())), start(quick(server.config())));
    let responder = answerer.respond("echo", 2, |request| Ok(request.payload.to_vec()));
    answerer.prove(far()).unwrap();
    let end = Shutdown::new();
    let callers: Vec<_> = (0..4u32)
        .map(|caller| {
            let (asker, end, kicked) = (asker.clone(), end.clone(), end.clone());
            spawn(format!("t-ask-{caller}"), Kick::new("its end", move || kicked.cancel()), move || {
                let mut outcomes = BTreeMap::<String, usize>::new();
                let mut longest = Duration::ZERO;
                let mut n = 0u64;
                while !end.is_set() {
                    n += 1;
                    let (question, begun) = (format!("{caller}-{n}"), Instant::now());
                    let outcome = match asker.request("echo", question.as_bytes(), begun + LIMIT) {
                        Ok(answer) => {
                            assert_eq!(answer, question.as_bytes(), "another request's answer");
                            "answered".to_owned()
                        }
                        Err(RequestError::NoResponder(_)) => "nobody listened".to_owned(),
                        Err(RequestError::Timeout { .. }) => "no answer in time".to_owned(),
                        Err(RequestError::Redis(RedisError::Closed { unknown, .. })) => {
                            format!("lost, unknown {unknown}")
                        }
                        Err(RequestError::Redis(RedisError::Timeout { .. })) => "Redis silent or away".to_owned(),
                        Err(other) => panic!("{other}"),
                    };
                    longest = longest.max(begun.elapsed());
                    *outcomes.entry(outcome).or_default() += 1;
                }
                (outcomes, longest)
            })
        })
        .collect();
    let begun = Instant::now();
    let mut slowest = Duration::ZERO;
    for n in 0..RESTARTS {
        if n % 2 == 0 {
            server.restart();
        } else {
            server.kill();
            server.start_again();
        }
        let back = Instant::now();
        answerer.prove(far()).unwrap();
        asker.prove(far()).unwrap();
        slowest = slowest.max(back.elapsed());
        assert_eq!(asker.request("echo", b"proved", far()).unwrap(), b"proved", "after restart {n}");
    }
    let took = begun.elapsed();
    end.drain();
    let (mut outcomes, mut longest) = (BTreeMap::<String, usize>::new(), Duration::ZERO);
    for caller in callers {
        let (each, longest_of) = caller.join_by(far()).unwrap();
        each.into_iter().for_each(|(outcome, n)| *outcomes.entry(outcome).or_default() += n);
        longest = longest.max(longest_of);
    }
    println!(
        "{RESTARTS} restarts in {took:.1?}: {outcomes:?}; longest request {longest:.2?}; proved again \
         {slowest:.2?} after the start at the latest"
    );
    assert!(longest < LONG / 2, "{longest:?}");
    assert!(outcomes["answered"] > RESTARTS);
    assert_eq!(asker.commander().state().epoch as usize, RESTARTS + 1);
    assert!(stopping(LONG, |step| (responder.stop_in(step), answering.stop_in(step), asking.stop_in(step))).is_clean());
}

#[test]
fn a_slow_redis_costs_only_the_requests_that_cannot_wait() {
    let _none = NoThreads::expected();
    let Some(server) = RedisServer::start() else { return };
    let proxy = FaultyProxy::before(&server);
    let (messaging, handle) = start(proxy.config());
    let responder = handle.respond("echo", 1, |request| Ok(request.payload.to_vec()));
    handle.prove(far()).unwrap();
    proxy.delay(Duration::from_millis(150));
    let (begun, limit) = (Instant::now(), Duration::from_millis(100));
    let late = handle.request("echo", b"hasty", begun + limit).unwrap_err();
    assert!(late.class().is_retryable() && begun.elapsed() < LONG, "{late}");
    for n in 0..5 {
        let question = format!("patient {n}");
        assert_eq!(handle.request("echo", question.as_bytes(), far()).unwrap(), question.as_bytes());
    }
    assert_eq!(handle.commander().state().epoch, 1, "slow is not lost");
    assert!(stopping(LONG, |step| (responder.stop_in(step), messaging.stop_in(step))).is_clean());
}

#[test]
fn a_redis_that_is_full_says_so_and_takes_the_next_message_when_it_has_room() {
    let _none = NoThreads::expected();
    let Some(server) = RedisServer::start_with(&["--maxmemory", "4mb", "--maxmemory-policy", "noeviction"]) else {
        return;
    };
    let (messaging, handle) = start(server.config());
    let sender = handle.stream_sender("jobs");
    let (payload, mut sent) = (vec![b'x'; 100_000], 0);
    let full = loop {
        match sender.send(&payload, far()) {
            Ok(()) => sent += 1,
            Err(error) => break error,
        }
        assert!(sent < 100, "it takes more than it may");
    };
    assert!(full.is_server("OOM") && full.class() == ErrorClass::Retry && full.advice().is_some(), "{full}");
    assert_eq!(server.cli::<i64>(&["XLEN", "jobs"]), sent);
    server.cli::<()>(&["CONFIG", "SET", "maxmemory", "0"]);
    sender.send(&payload, far()).unwrap();
    assert_eq!(server.cli::<i64>(&["XLEN", "jobs"]), sent + 1);
    let limited = handle.stream_sender("jobs").limited(3).send(b"", far()).unwrap_err();
    assert!(limited.to_string().contains("the stream holds 3 messages"), "{limited}");
    assert!(stopping(LONG, |step| messaging.stop_in(step)).is_clean());
}

#[test]
fn no_answer_reaches_another_request_wherever_replies_are_truncated() {
    let _none = NoThreads::expected();
    let Some(server) = RedisServer::start() else { return };
    for key in 0..50 {
        server.cli::<()>(&["SET", &format!("k{key}"), &format!("{key} ").repeat(40 * key)]);
    }
    let seed = Rng::from_entropy().next_u64();
    println!("seed {seed}");
    let mut rng = Rng::new(seed);
    let proxy = FaultyProxy::before(&server);
    let (messaging, handle) = start(quick(proxy.config()));
    let end = Shutdown::new();
    let callers: Vec<_> = (0..4u64)
        .map(|caller| {
            let (handle, end, mut rng) = (handle.clone(), end.clone(), Rng::new(seed ^ caller));
            let kicked = end.clone();
            spawn(format!("t-get-{caller}"), Kick::new("its end", move || kicked.cancel()), move || {
                let (mut right, mut lost) = (0, 0);
                while !end.is_set() {
                    let key = rng.next_u64() as usize % 50;
                    let mut get = redis::cmd("GET");
                    get.arg(format!("k{key}"));
                    let once = rng.one_in(2);
                    let request = if once { Request::once(&get, far()) } else { Request::idempotent(&get, far()) };
                    match handle.commander().call(request) {
                        Ok(values) => {
                            let value = String::from_redis_value(values.into_iter().next().unwrap()).unwrap();
                            assert!(value == format!("{key} ").repeat(40 * key), "k{key} is {value:.20}…, seed {seed}");
                            right += 1;
                        }
                        Err(error) => {
                            assert!(once && matches!(error, RedisError::Closed { unknown: true, .. }), "{error}");
                            lost += 1;
                        }
                    }
                }
                (right, lost)
            })
        })
        .collect();
    for _ in 0..60 {
        proxy.disconnect_after(1 + rng.next_u64() as usize % 20_000);
        let until = far();
        while proxy.is_armed() {
            assert!(Instant::now() < until);
            end.wait(Duration::from_millis(1));
        }
    }
    end.drain();
    let (right, lost) =
        callers.into_iter().map(|c| c.join_by(far()).unwrap()).fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1));
    println!("60 cuts, {} connections: {right} right answers, {lost} lost", proxy.accepted());
    assert!(right > 0 && proxy.accepted() > 50);
    assert!(stopping(LONG, |step| messaging.stop_in(step)).is_clean());
}

#[test]
fn a_stop_ends_within_its_budget_while_redis_is_frozen() {
    let _none = NoThreads::expected();
    let Some(server) = RedisServer::start() else { return };
    let (messaging, handle) = start(server.config());
    let responder = handle.respond("echo", 1, |request| Ok(request.payload.to_vec()));
    handle.prove(far()).unwrap();
    server.pause();
    let asker = handle.clone();
    let (report, notified) = bounded(1);
    let waiting = spawn("t-wait", Kick::dropped("its answer"), move || {
        report.send(()).unwrap();
        asker.request("echo", b"x", far())
    });
    notified.recv_timeout(LONG).unwrap();
    let begun = Instant::now();
    let report = stopping(Duration::from_millis(300), |step| {
        responder.stop_in(step);
        messaging.stop_in(step);
    });
    assert!(report.is_clean() && begun.elapsed() < LONG / 2, "{report}");
    let error = waiting.join_by(far()).unwrap().unwrap_err();
    assert_eq!(error.class(), ErrorClass::Cancelled, "{error}");
}

#[test]
fn a_stream_loses_nothing_through_restarts_and_disconnections() {
    const MESSAGES: usize = 1500;
    let _none = NoThreads::expected();
    let Some(mut server) = RedisServer::start() else { return };
    let proxy = FaultyProxy::before(&server);
    let ((sending, sender), (receiving, receiver)) = (start(quick(proxy.config())), start(quick(proxy.config())));
    let senders: Vec<_> = (0..2)
        .map(|n| {
            let sender = sender.stream_sender("jobs");
            spawn(format!("t-send-{n}"), Kick::dropped("its work"), move || {
                for message in 0..MESSAGES {
                    sender.send(format!("{n}-{message}").as_bytes(), far()).unwrap();
                }
            })
        })
        .collect();
    let (report, notified) = bounded(2 * MESSAGES);
    let reader = spawn("t-read", Kick::dropped("its work"), move || {
        let mut receiver = receiver.stream_receiver("jobs", "workers", "one", LONG);
        let (mut seen, mut twice, mut marked) = (HashSet::new(), 0, 0);
        while seen.len() < 2 * MESSAGES {
            let delivery = receiver.recv(far()).unwrap().expect("a message");
            let payload = String::from_utf8(delivery.payload.clone()).unwrap();
            marked += usize::from(delivery.redelivered);
            if !seen.insert(payload) {
                assert!(delivery.redelivered, "twice, and not marked");
                twice += 1;
            }
            receiver.acknowledge(&delivery, far()).unwrap();
            // The test counts them.
            let _ = report.try_send(());
        }
        (receiver, twice, marked)
    });
    let (mut rng, mut restarts, mut cuts) = (Rng::new(7), 0, 0);
    let mut arrived = 0;
    while arrived < 2 * MESSAGES {
        notified.recv_timeout(LONG).unwrap();
        arrived += 1;
        if arrived % 300 == 0 {
            server.kill();
            server.start_again();
            restarts += 1;
        } else if arrived % 40 == 0 && !proxy.is_armed() {
            proxy.disconnect_after(1 + rng.next_u64() as usize % 400);
            cuts += 1;
        }
    }
    for sender in senders {
        sender.join_by(far()).unwrap();
    }
    let (mut receiver, twice, marked) = reader.join_by(far()).unwrap();
    proxy.heal();
    // Redis may have been started again just now; once it is found, there is nothing left.
    receiving.handle().prove(far()).unwrap();
    receiving.handle().commander().call(Request::once(&redis::cmd("PING"), far())).unwrap();
    assert_eq!(receiver.recv(soon(1000)).unwrap(), None);
    println!(
        "{arrived} messages through {restarts} restarts and {cuts} cuts: {marked} marked as redelivered, \
         {twice} came twice"
    );
    assert_eq!((server.cli::<i64>(&["XLEN", "jobs"]), restarts), (0, 10));
    assert!(stopping(LONG, |step| (sending.stop_in(step), receiving.stop_in(step))).is_clean());
}

#[test]
fn what_a_receiver_did_not_acknowledge_is_given_again_and_marked() {
    let _none = NoThreads::expected();
    let Some(server) = RedisServer::start() else { return };
    let (messaging, handle) = start(server.config());
    let sender = handle.stream_sender("jobs");
    for n in 0..3 {
        sender.send(&[n], far()).unwrap();
    }
    let receiver = |name: &str, claim_after| handle.stream_receiver("jobs", "workers", name, claim_after);
    let mut first = receiver("one", LONG);
    let taken = first.recv(far()).unwrap().unwrap();
    assert_eq!((taken.payload.as_slice(), taken.redelivered), (&[0][..], false));
    first.acknowledge(&taken, far()).unwrap();
    drop(first);
    // It had read all three, and acknowledged one.
    let mut again = receiver("one", LONG);
    let second = again.recv(far()).unwrap().unwrap();
    assert_eq!((second.payload.as_slice(), second.redelivered), (&[1][..], true));
    again.acknowledge(&second, far()).unwrap();
    again.acknowledge(&second, far()).unwrap();
    drop(again);
    let mut other = receiver("two", Duration::from_millis(200));
    let third = other.recv(far()).unwrap().unwrap();
    assert_eq!((third.payload.as_slice(), third.redelivered), (&[2][..], true));
    other.acknowledge(&third, far()).unwrap();
    assert_eq!(other.recv(soon(100)).unwrap(), None);
    let late = sender.clone();
    let late = spawn("t-late", Kick::dropped("its answer"), move || late.send(b"late", far()).unwrap());
    assert_eq!(other.recv(far()).unwrap().unwrap().payload, b"late");
    late.join_by(far()).unwrap();
    assert!(stopping(LONG, |step| messaging.stop_in(step)).is_clean());
}

/// How often the thread of that name has gone to sleep or was put aside.
fn switches(name: &str) -> u64 {
    let mut found = None;
    for task in std::fs::read_dir("/proc/self/task").unwrap() {
        let status = std::fs::read_to_string(task.unwrap().path().join("status")).unwrap_or_default();
        if status.lines().next() == Some(&format!("Name:\t{name}")) {
            // Not those that a busy machine makes.
            let count = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")).unwrap();
            found = Some(count.trim().parse().unwrap());
        }
    }
    found.expect("a thread of that name")
}

#[test]
fn an_idle_connection_is_hardly_woken() {
    let _none = NoThreads::expected();
    let Some(server) = RedisServer::start() else { return };
    let mut config = server.config();
    config.stall_after = Duration::from_secs(3);
    let board = Board::new();
    let subscriber = Subscriber::start("t-idle-sub", config.clone(), &board).unwrap();
    let commander = phalanx::redis::Commander::start("t-idle-cmd", config, &board).unwrap();
    subscriber.handle().prove(far()).unwrap();
    commander.handle().call(Request::once(&redis::cmd("PING"), far())).unwrap();
    let before = (switches("t-idle-sub"), switches("t-idle-cmd"));
    // Three proofs, two seconds apart, or four.
    Shutdown::new().wait(Duration::from_millis(6500));
    let (subscribing, commanding) = (switches("t-idle-sub") - before.0, switches("t-idle-cmd") - before.1);
    println!(
        "in three or four proofs: {subscribing} context switches of the subscriber, {commanding} of the commander"
    );
    assert!(subscribing <= 4 * 4 && commanding <= 2, "{subscribing} and {commanding}");
    assert!(stopping(LONG, |step| (subscriber.stop_in(step), commander.stop_in(step))).is_clean());
}

#[test]
fn a_message_that_is_too_large_for_a_reply_is_dropped_and_holds_up_no_other() {
    let _none = NoThreads::expected();
    let Some(server) = RedisServer::start() else { return };
    let config = RedisConfig { reply_bytes: 1 << 20, ..often(server.config()) };
    let messaging = RedisMessaging::start(config, &Board::new()).unwrap();
    let handle = messaging.handle();
    let mut receiver = handle.stream_receiver("jobs", "workers", "one", LONG);
    // Each alone is small enough, but not all together; two among them are not.
    let (small, large) = ("s".repeat(200 << 10), "l".repeat(2 << 20));
    for n in 0..20 {
        let text = if n % 9 == 5 { large.clone() } else { format!("{n} {small}") };
        let _: String = server.cli(&["XADD", "jobs", "*", "m", &text]);
    }
    let mut seen = Vec::new();
    while seen.len() < 18 {
        let delivery = receiver.recv(far()).unwrap().expect("one more");
        let text = String::from_utf8(delivery.payload.clone()).unwrap();
        seen.push(text.split(' ').next().unwrap().parse::<usize>().unwrap());
        // Every second one, so that some are held meanwhile.
        if seen.len() % 2 == 0 {
            receiver.acknowledge(&delivery, far()).unwrap();
        }
    }
    assert_eq!(seen, (0..20).filter(|n| n % 9 != 5).collect::<Vec<_>>());
    assert_eq!(server.cli::<usize>(&["XLEN", "jobs"]), 9, "the large ones are gone");
    drop(receiver);
    drop(messaging);
}
