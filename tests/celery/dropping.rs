//! Owners of threads that are merely dropped: each ends within a bounded time and leaves no thread behind.

use crate::testkit::{celery, redis as redis_kit, roles, scripted_facilitator as scripted};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::testkit::threads::NoThreads;
use crate::testkit::wait::{LONG, far, until};
use celery::Gate;
use crossbeam_channel::bounded;
use phalanx::base::thread::{Kick, spawn};
use phalanx::celery::worker::{CeleryWorker, Registry};
use phalanx::celery::{Beat, BeatEntry, CeleryClient, CeleryConfig, Schedule, SendError, Task, TaskError};
use phalanx::ops::status::Board;
use phalanx::protocol::JobStatus;
use phalanx::redis::messaging::{RedisMessaging, RequestError, WhenFull};
use phalanx::redis::{Channel, Commander, RedisError, Request, Subscriber};
use phalanx::transport::ws::{WsDialer, WsListener};
use phalanx::validator::remote::{JobWorker, JobWorkerConfig};
use phalanx::validator::{Dispatch, Validator, ValidatorConfig};
use redis_kit::RedisServer;
use roles::World;
use scripted::{Plan, ScriptedFacilitator, key};

/// Drops a value on a thread of its own, and fails if that does not end.
fn dropped<T: Send + 'static>(value: T) {
    let (report, ended) = bounded::<()>(0);
    let dropping = spawn("t-drop", Kick::dropped("nothing: a test for it"), move || {
        let _ended = report;
        drop(value);
    });
    let what = std::any::type_name::<T>();
    assert!(ended.recv_timeout(LONG).is_err_and(|error| error.is_disconnected()), "the drop of {what} does not end");
    dropping.join_by(far()).unwrap();
}

fn get() -> Request {
    Request::idempotent(redis::cmd("GET").arg("x"), far())
}

#[test]
fn dropping_a_commander_stops_it() {
    let _none = NoThreads::expected();
    let Some(server) = RedisServer::start() else { return };
    let commander = Commander::start("t-cmd", server.config(), &Board::new()).unwrap();
    let handle = commander.handle();
    handle.call(get()).unwrap();
    // One that Redis does not answer fails.
    server.pause();
    let (report, answer) = bounded(1);
    handle.submit(get(), move |outcome| report.send(outcome).unwrap()).unwrap();
    dropped(commander);
    assert!(matches!(answer.recv_timeout(LONG).unwrap(), Err(RedisError::Stopped)));
    assert!(matches!(handle.call(get()), Err(RedisError::Stopped)));
    server.resume();
}

#[test]
fn dropping_a_subscriber_stops_it() {
    let _none = NoThreads::expected();
    let Some(server) = RedisServer::start() else { return };
    let subscriber = Subscriber::start("t-sub", server.config(), &Board::new()).unwrap();
    let handle = subscriber.handle();
    let _kept = handle.subscribe(Channel::Exact("news".to_owned()), |_| {});
    handle.prove(far()).unwrap();
    dropped(subscriber);
    assert!(matches!(handle.prove(far()), Err(RedisError::Stopped)));
}

#[test]
fn dropping_redis_messaging_stops_it_and_ends_every_wait() {
    let _none = NoThreads::expected();
    let Some(server) = RedisServer::start() else { return };
    let messaging = RedisMessaging::start(server.config(), &Board::new()).unwrap();
    let handle = messaging.handle();
    let inbox = handle.subscribe(Channel::Exact("news".to_owned()), WhenFull::DropOldest);
    let sender = handle.stream_sender("stream");
    let mut receiver = handle.stream_receiver("stream", "group", "name", LONG);
    sender.send(b"one", far()).unwrap();
    assert_eq!(receiver.recv(far()).unwrap().unwrap().payload, b"one");
    dropped(messaging);
    assert!(inbox.recv(far()).is_err());
    assert!(matches!(sender.send(b"two", far()), Err(RedisError::Stopped)));
    assert!(matches!(receiver.recv(None), Err(RedisError::Stopped)));
    assert!(matches!(handle.request("nobody", b"", far()), Err(RequestError::Redis(RedisError::Stopped))));
}

#[test]
fn dropping_a_responder_stops_it_even_if_its_handler_goes_on() {
    let Some(server) = RedisServer::start() else { return };
    let messaging = RedisMessaging::start(server.config(), &Board::new()).unwrap();
    let (begun, handling) = bounded(1);
    let (open, gate) = bounded::<()>(0);
    let (left, ended) = bounded::<()>(0);
    let (left, gate) = (std::sync::Mutex::new(Some(left)), gate);
    let responder = messaging.handle().respond("stuck", 1, move |_| {
        let _left = left.lock().unwrap().take();
        begun.send(()).unwrap();
        Err(format!("{:?}", gate.recv()))
    });
    messaging.handle().prove(far()).unwrap();
    let (asking, deadline) = (messaging.handle(), far());
    let asker = spawn("t-ask", Kick::dropped("the messaging"), move || asking.request("stuck", b"", deadline));
    handling.recv_timeout(LONG).unwrap();
    dropped(responder);
    dropped(messaging);
    assert!(matches!(asker.join_by(far()).unwrap(), Err(RequestError::Redis(RedisError::Stopped))));
    // Its thread was left behind in the handler, and ends with it.
    drop(open);
    assert!(ended.recv_timeout(LONG).is_err_and(|error| error.is_disconnected()));
}

#[test]
fn dropping_a_celery_client_stops_it_and_ends_every_wait() {
    let _none = NoThreads::expected();
    let Some(server) = RedisServer::start() else { return };
    let client = CeleryClient::start(CeleryConfig::new(server.config()), &Board::new()).unwrap();
    let handle = client.handle();
    let pending = handle.send(Task::new("nobody.runs")).unwrap();
    let (report, notified) = bounded(1);
    pending.on_end(move |outcome| report.send(outcome.clone()).unwrap());
    dropped(client);
    assert_eq!(notified.recv_timeout(LONG).unwrap(), Err(TaskError::Stopped));
    assert!(matches!(handle.send(Task::new("nobody.runs")), Err(SendError::Stopped)));
}

#[test]
fn dropping_a_beat_stops_it() {
    let _none = NoThreads::expected();
    let Some(server) = RedisServer::start() else { return };
    let client = CeleryClient::start(CeleryConfig::new(server.config()), &Board::new()).unwrap();
    let entry = BeatEntry {
        name: "often".to_owned(),
        schedule: Schedule::Every(Duration::from_millis(100)),
        task: Task::new("nobody.runs"),
    };
    let beat = Beat::start(client.handle(), vec![entry], &Board::new()).unwrap();
    until("it sends", || server.cli::<usize>(&["LLEN", "celery"]) > 0);
    dropped(beat);
    dropped(client);
}

#[test]
fn dropping_a_celery_worker_stops_it_and_gives_its_task_back() {
    let _none = NoThreads::expected();
    let Some(server) = RedisServer::start() else { return };
    let gate = Gate::new();
    let config = celery::settings(server.config());
    let worker = CeleryWorker::start(config, gate.registry(Registry::new()), &Board::new()).unwrap();
    let client = celery::Client::start(server.config());
    let pending = client.handle().send(Task::new("gated")).unwrap();
    assert_eq!(gate.begun(), pending.id());
    dropped(worker);
    assert_eq!(server.cli::<usize>(&["LLEN", "celery"]), 1, "its task is there for others");
    drop(pending);
    client.stop();
}

#[test]
fn dropping_an_idle_celery_worker_without_redis_stops_it() {
    let _none = NoThreads::expected();
    let Some(server) = RedisServer::away() else { return };
    let worker = CeleryWorker::start(celery::settings(server.config()), Registry::new(), &Board::new()).unwrap();
    dropped(worker);
}

#[test]
fn dropping_a_front_and_its_job_worker_stops_them() {
    // A handle that outlives its worker keeps none of its threads.
    let _outlives;
    let _none = NoThreads::expected();
    let Some(server) = RedisServer::start() else { return };
    let world = World::new();
    let listener = WsListener::bind("127.0.0.1:0", None).unwrap();
    let facilitator = ScriptedFacilitator::start(listener, world.timer(), Plan::default());
    let validator = Validator::start(
        ValidatorConfig {
            dispatch: Dispatch::celery(server.config()),
            trusted_signers: vec![key("//User").public()],
            ..ValidatorConfig::new(&facilitator.url, key("//Validator"), Vec::new())
        },
        Arc::new(WsDialer::default()),
        world.timer(),
    )
    .unwrap();
    let mut config = JobWorkerConfig::new(server.config(), key("//Validator"), Vec::new());
    config.stub = Some(Duration::from_millis(500));
    config.manifest_interval = Duration::from_secs(3600);
    config.trusted_signers = vec![key("//User").public()];
    let worker = JobWorker::start(config, Arc::new(WsDialer::default()), world.timer(), &Board::new()).unwrap();
    _outlives = worker.handle();
    let job = roles::job(&key("//User"));
    facilitator.submit(job.clone());
    let observer = validator.observer();
    let accepted = |state: &scripted::FacilitatorState| {
        state.histories.get(&job.uuid).is_some_and(|history| history.statuses.contains(&JobStatus::Accepted))
    };
    facilitator.wait("the job has begun", accepted);
    dropped(worker);
    dropped(validator);
    assert_eq!(observer.running_jobs(), 0);
    facilitator.stop();
    drop(world);
}

/// What Redis is like when owners are dropped.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Redis {
    There,
    /// Connections are refused.
    Away,
    /// Connections stay, or are made, and nothing is answered.
    Hung,
    /// It lets nobody in.
    LogsNobodyIn,
}

const PASSWORD: [&str; 4] = ["CONFIG", "SET", "requirepass", "secret"];

impl Redis {
    fn begin(self, server: &mut RedisServer) {
        match self {
            Self::There => {}
            Self::Away => server.kill(),
            Self::Hung => server.pause(),
            Self::LogsNobodyIn => {
                let mut operator = server.connection();
                let mut say = |words: &[&str]| -> redis::Value {
                    operator.set_deadline(far());
                    operator.query(redis::cmd(words[0]).arg(&words[1..])).unwrap()
                };
                say(&PASSWORD);
                for kind in ["normal", "pubsub"] {
                    say(&["CLIENT", "KILL", "TYPE", kind]);
                }
            }
        }
    }
}

type Owners = Vec<(&'static str, Box<dyn Send>)>;

/// One of each kind, at work as far as Redis lets them: the workers run a task, the front waits for a job.
fn one_of_each(server: &RedisServer, world: &World, facilitator: &ScriptedFacilitator, gate: &Gate) -> Owners {
    let (board, redis) = (Board::new(), server.config());
    let mut owners: Owners = Vec::new();
    let commander = Commander::start("t-cmd", redis.clone(), &board).unwrap();
    commander.handle().submit(get(), drop).unwrap();
    owners.push(("Commander", Box::new(commander)));
    let subscriber = Subscriber::start("t-sub", redis.clone(), &board).unwrap();
    let subscription = subscriber.handle().subscribe(Channel::Exact("news".to_owned()), |_| {});
    owners.push(("Subscriber", Box::new((subscriber, subscription))));
    let messaging = RedisMessaging::start(redis.clone(), &board).unwrap();
    let inbox = messaging.handle().subscribe(Channel::Exact("news".to_owned()), WhenFull::DropOldest);
    owners.push(("RedisMessaging", Box::new((messaging, inbox))));
    let messaging = RedisMessaging::start(redis.clone(), &board).unwrap();
    let responder = messaging.handle().respond("asked", 1, |_| Ok(Vec::new()));
    owners.push(("Responder", Box::new((responder, messaging))));
    let client = CeleryClient::start(CeleryConfig::new(redis.clone()), &board).unwrap();
    let pending = client.handle().submit(Task::new("gated"), far(), |_| {}).unwrap();
    owners.push(("CeleryClient", Box::new((client, pending))));
    let client = CeleryClient::start(CeleryConfig::new(redis.clone()), &board).unwrap();
    let schedule = Schedule::Every(Duration::from_millis(100));
    let entry = BeatEntry { name: "often".to_owned(), schedule, task: Task::new("nobody.runs").queue("nobody") };
    let beat = Beat::start(client.handle(), vec![entry], &Board::new()).unwrap();
    owners.push(("Beat", Box::new((beat, client))));
    let worker = CeleryWorker::start(celery::settings(redis.clone()), gate.registry(Registry::new()), &board).unwrap();
    owners.push(("CeleryWorker", Box::new(worker)));
    let mut config = JobWorkerConfig::new(redis.clone(), key("//Validator"), Vec::new());
    config.name = "jobs@here".to_owned();
    config.stub = Some(LONG);
    config.trusted_signers = vec![key("//User").public()];
    let worker = JobWorker::start(config, Arc::new(WsDialer::default()), world.timer(), &Board::new()).unwrap();
    owners.push(("JobWorker", Box::new(worker)));
    let config = ValidatorConfig {
        dispatch: Dispatch::celery(redis),
        trusted_signers: vec![key("//User").public()],
        ..ValidatorConfig::new(&facilitator.url, key("//Validator"), Vec::new())
    };
    let front = Validator::start(config, Arc::new(WsDialer::default()), world.timer()).unwrap();
    owners.push(("Validator as a front", Box::new(front)));
    owners
}

/// Drops all at once, each on a thread of its own, in a Redis that becomes so before they start, or when they are at
/// work; gives how long the longest took.
fn all_dropped(redis: Redis, from_the_start: bool) {
    let _none = NoThreads::expected();
    let Some(mut server) = RedisServer::start() else { return };
    let world = World::new();
    let listener = WsListener::bind("127.0.0.1:0", None).unwrap();
    let facilitator = ScriptedFacilitator::start(listener, world.timer(), Plan::default());
    let gate = Gate::new();
    if from_the_start {
        redis.begin(&mut server);
    }
    let owners = one_of_each(&server, &world, &facilitator, &gate);
    if !from_the_start {
        gate.begun();
        facilitator.submit(roles::job(&key("//User")));
        let accepted = |state: &scripted::FacilitatorState| {
            state.histories.values().any(|history| history.statuses.contains(&JobStatus::Received))
        };
        facilitator.wait("the job is known", accepted);
        until("its worker has it", || server.cli::<usize>(&["HLEN", "unacked"]) == 2);
        redis.begin(&mut server);
    }
    let (report, ended) = bounded(owners.len());
    let count = owners.len();
    let dropping: Vec<_> = owners
        .into_iter()
        .map(|(name, owner)| {
            let report = report.clone();
            spawn("t-drop", Kick::dropped("nothing: a test for it"), move || {
                let since = Instant::now();
                drop(owner);
                report.send((name, since.elapsed())).unwrap();
            })
        })
        .collect();
    for _ in 0..count {
        let (name, took) = ended.recv_timeout(LONG).expect("each drop ends");
        println!("{redis:?}, from the start: {from_the_start}: {name} {:.1} s", took.as_secs_f64());
    }
    dropping.into_iter().for_each(|thread| thread.join_by(far()).unwrap());
    if redis == Redis::Hung {
        server.resume();
    }
    facilitator.stop();
    drop(world);
}

fn in_each(from_the_start: bool, all: &[Redis]) {
    let case = |redis: Redis| {
        spawn("t-case", Kick::dropped("nothing: a test for it"), move || all_dropped(redis, from_the_start))
    };
    let cases: Vec<_> = all.iter().map(|redis| case(*redis)).collect();
    cases.into_iter().for_each(|thread| thread.join_by(far()).unwrap());
}

#[test]
fn dropping_any_owner_at_work_stops_it_whatever_redis_is_like() {
    in_each(false, &[Redis::There, Redis::Away, Redis::Hung, Redis::LogsNobodyIn]);
}

#[test]
fn dropping_any_owner_that_never_reached_redis_stops_it() {
    in_each(true, &[Redis::Away, Redis::Hung, Redis::LogsNobodyIn]);
}
