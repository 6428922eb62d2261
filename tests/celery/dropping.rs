//! Owners of threads that are merely dropped: each ends within a bounded time and leaves no thread behind.

use crate::testkit::{celery, redis as redis_kit, roles, scripted_facilitator as scripted};
use std::sync::Arc;
use std::time::Duration;

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
