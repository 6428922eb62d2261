//! Jobs on other machines: the validator as a front and `phalanx worker`s as processes, with a real Redis between them.
//! What the facilitator stores is what counts.
//!
//! `PHALANX_TEST_KILLS` says how often something is killed.

use crate::testkit::celery;
use crate::testkit::process;
use crate::testkit::redis as redis_server;
use crate::testkit::roles;
use crate::testkit::scripted_facilitator as scripted;
use crate::testkit::threads::NoThreads;
use crate::testkit::wait::{LONG, far, until_some};
use std::collections::BTreeMap;
use std::path::Path;

use celery::Client;
use phalanx::base::rng::Rng;
use phalanx::celery::Task;
use phalanx::protocol::{FacilitatorToValidator, JobRejectionReason, JobStatus, SignedRequest, V2JobRequest};
use phalanx::store::journal::Journal;
use phalanx::transport::ws::WsListener;
use phalanx::validator::ledger::record::JobRecord;
use process::{Running, nothing_left, phalanx, run};
use redis_server::RedisServer;
use roles::World;
use rustix::process::Signal;
use scripted::{GOOD, Plan, ScriptedFacilitator, key};
use serde_json::{Value, json};

use JobStatus as S;

const KILLS: usize = 12;

/// Why a job is cut short when a front is killed before the job is with Redis, or when three workers in turn are.
const NOT_THERE: &str = "no worker has it";
const ILL_LUCK: &str = "was begun 3 times";

pub struct Scene {
    world: World,
    pub facilitator: ScriptedFacilitator,
    pub redis: RedisServer,
    pub scratch: tempfile::TempDir,
    pub state: tempfile::TempDir,
}

impl Scene {
    pub fn set() -> Option<Self> {
        let redis = RedisServer::start()?;
        let world = World::new();
        let listener = WsListener::bind("127.0.0.1:0", None).unwrap();
        let facilitator = ScriptedFacilitator::start(listener, world.timer(), Plan::default());
        let (scratch, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        Some(Self { world, facilitator, redis, scratch, state })
    }

    pub fn front(&self, arguments: &[&str]) -> Running {
        let mut command = phalanx(self.scratch.path());
        command.args(["validator", "--dispatch", "celery", "--facilitator", &self.facilitator.url]);
        command.args(["--trusted-signer", &key("//User").ss58(), "--state-dir"]).arg(self.state.path());
        command.args(arguments).env("PHALANX_KEY", "//Validator").env("PHALANX_REDIS", self.redis.url());
        Running::start(&mut command)
    }

    pub fn worker(&self, name: &str, arguments: &[&str]) -> Running {
        let mut command = phalanx(self.scratch.path());
        command.args(["worker", "--name", name, "--liveness", "600ms"]).args(arguments);
        if !arguments.contains(&"--http") {
            command.args(["--http", "127.0.0.1:0"]);
        }
        command.env("PHALANX_KEY", "//Validator").env("PHALANX_REDIS", self.redis.url());
        command.env("PHALANX_TRUSTED_SIGNER", key("//User").ss58());
        let mut running = Running::start(&mut command);
        // It has its signal handlers by then.
        pages(&mut running);
        running
    }

    /// Asks for the status of a role until it answers as wished; gives it.
    pub fn status(&self, pages: &str, done: impl Fn(&Value) -> bool) -> Value {
        until(self.scratch.path(), pages, done)
    }

    pub fn end(self) {
        let Self { world, facilitator, redis, scratch, state: _state } = self;
        facilitator.stop();
        // Its threads may be those of the world.
        drop(redis);
        drop(world);
        nothing_left(scratch.path());
    }
}

/// Stops a process as an operator would; gives what it has logged.
pub fn stopped(running: Running) -> String {
    let finished = running.stop(Signal::TERM);
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    finished.stderr
}

pub fn jobs(count: usize) -> Vec<V2JobRequest> {
    (0..count).map(|_| roles::job(&key("//User"))).collect()
}

fn pages(running: &mut Running) -> String {
    let line: Value = serde_json::from_str(&running.line()).unwrap();
    line["http"].as_str().unwrap().to_owned()
}

/// Asks for the status of a role until it answers as wished; gives it.
pub fn until(scratch: &Path, pages: &str, done: impl Fn(&Value) -> bool) -> Value {
    until_some("the status", || {
        let finished = run(phalanx(scratch).args(["status", "--json", "--http", pages]));
        serde_json::from_str(&finished.stdout).ok().filter(|status| done(status))
    })
}

/// A miner with one executor, and the file that says where it is.
fn miner(scene: &Scene, folder: &Path) -> (Running, String) {
    let mut command = phalanx(scene.scratch.path());
    command.args(["miner", "--listen", "127.0.0.1:0", "--validator", &key("//Validator").ss58()]);
    command.args(["--executors", "always_on.test=1", "--runner", "process", "--drain-time", "1s", "--state-dir"]);
    let mut running = Running::start(command.arg(folder.join("miner")).env("PHALANX_KEY", "//Miner"));
    let line: Value = serde_json::from_str(&running.line()).unwrap();
    let port = line["listening"].as_str().unwrap().rsplit(':').next().unwrap().to_owned();
    let text = format!("[[miner]]\nhotkey = \"{}\"\naddress = \"127.0.0.1\"\nport = {port}\n", key("//Miner").ss58());
    let file = folder.join("miners.toml");
    std::fs::write(&file, text).unwrap();
    (running, file.to_str().unwrap().to_owned())
}

/// A job that says that it runs, and ends when a file is there.
fn waiting_job(folder: &Path) -> V2JobRequest {
    let folder = folder.display();
    let script = format!("echo run >>{folder}/runs; while [ ! -e {folder}/go ]; do sleep 0.02; done; echo done");
    let args = ["sh".to_owned(), "-c".to_owned(), script];
    let mut job = V2JobRequest { args: args.to_vec(), ..roles::job(&key("//User")) };
    job.sign(&key("//User"), roles::now_ns());
    job
}

#[test]
fn a_worker_that_is_killed_in_mid_job_is_replaced_and_the_job_runs_once() {
    let _none = NoThreads::expected();
    let Some(scene) = Scene::set() else { return };
    let folder = tempfile::tempdir().unwrap();
    let (miner, miners) = miner(&scene, folder.path());
    let front = scene.front(&[]);
    let first = scene.worker("first@here", &["--miners", &miners]);
    let job = waiting_job(folder.path());
    scene.facilitator.submit(job.clone());
    let at = |state: &scripted::FacilitatorState, status| {
        state.histories.get(&job.uuid).is_some_and(|history| history.statuses.contains(&status))
    };
    scene.facilitator.wait("the job runs", |state| at(state, S::VolumesReady));
    first.signal(Signal::KILL);
    first.finish();
    let address = format!("127.0.0.1:{}", redis_server::free_port());
    let second = scene.worker("second@here", &["--miners", &miners, "--http", &address]);
    let status = until(scene.scratch.path(), &address, |status| status["details"]["jobs"] == 1);
    assert_eq!((&status["role"], &status["details"]["restored"]), (&json!("worker"), &json!(1)), "{status:#}");
    std::fs::write(folder.path().join("go"), "").unwrap();
    assert_eq!(scene.facilitator.history(&job.uuid), GOOD);
    let end = scene.facilitator.state().histories[&job.uuid].end.clone().unwrap();
    assert_eq!(end.miner_response.unwrap().docker_process_stdout, "done\n");
    assert_eq!(std::fs::read_to_string(folder.path().join("runs")).unwrap(), "run\n", "it ran once");

    // A worker that is stopped hands its jobs over as well.
    std::fs::remove_file(folder.path().join("go")).unwrap();
    let job = waiting_job(folder.path());
    scene.facilitator.submit(job.clone());
    let at = |state: &scripted::FacilitatorState, status| {
        state.histories.get(&job.uuid).is_some_and(|history| history.statuses.contains(&status))
    };
    scene.facilitator.wait("the job runs", |state| at(state, S::VolumesReady));
    // The second signal takes the time to drain away.
    second.signal(Signal::TERM);
    let third = scene.worker("third@here", &["--miners", &miners]);
    assert!(stopped(second).contains("1 jobs go on elsewhere"));
    std::fs::write(folder.path().join("go"), "").unwrap();
    assert_eq!(scene.facilitator.history(&job.uuid), GOOD);
    assert_eq!(std::fs::read_to_string(folder.path().join("runs")).unwrap(), "run\nrun\n", "each ran once");
    for running in [front, third, miner] {
        stopped(running);
    }
    scene.end();
}

#[test]
fn whatever_is_killed_each_job_ends_once_and_in_order() {
    let _none = NoThreads::expected();
    let Some(mut scene) = Scene::set() else { return };
    let kills = std::env::var("PHALANX_TEST_KILLS").map_or(KILLS, |n| n.parse().expect("PHALANX_TEST_KILLS: a number"));
    let seed = Rng::from_entropy().next_u64();
    println!("seed {seed}");
    let mut rng = Rng::new(seed);
    let stub = ["--stub-time", "5ms"];
    let start_front = |scene: &Scene| scene.front(&["--queue-time", "10s"]);
    let mut front = start_front(&scene);
    let mut workers = [scene.worker("a@here", &stub), scene.worker("b@here", &stub)];
    let mut asked = Vec::new();
    let mut killed = [0; 4];
    for _ in 0..kills {
        let batch = jobs(5 + (rng.next_u64() % 30) as usize);
        let updates = 6 * batch.len();
        batch.iter().for_each(|job| scene.facilitator.submit(job.clone()));
        asked.extend(batch);
        let moment = scene.facilitator.state().updates + 1 + rng.next_u64() as usize % updates;
        let all = asked.len();
        scene.facilitator.wait("the moment", |state| state.updates >= moment || state.ended == all);
        let what = rng.next_u64() as usize % 4;
        killed[what] += 1;
        match what {
            0 => {
                front.signal(Signal::KILL);
                front.finish();
                front = start_front(&scene);
            }
            1 => {
                scene.redis.kill();
                scene.redis.start_again();
            }
            _ => {
                let which = rng.next_u64() as usize % 2;
                let (name, signal) = (["a@here", "b@here"][which], [Signal::KILL, Signal::TERM][what - 2]);
                let fresh = scene.worker(name, &stub);
                let old = std::mem::replace(&mut workers[which], fresh);
                old.signal(signal);
                let finished = old.finish();
                assert_eq!(finished.code, if what == 2 { None } else { Some(0) }, "{}", finished.stderr);
            }
        }
    }
    scene.facilitator.wait("all have ended", |state| state.ended == asked.len());
    scene.facilitator.assert_sound();
    let mut completed = 0;
    let mut broken: BTreeMap<&str, usize> = BTreeMap::new();
    {
        let state = scene.facilitator.state();
        for job in &asked {
            let history = &state.histories[&job.uuid];
            let Some((end, steps)) = history.statuses.split_last() else { panic!("nothing of {}", job.uuid) };
            if *end == S::Completed {
                assert_eq!(history.statuses, GOOD);
                completed += 1;
                continue;
            }
            assert!(GOOD.starts_with(steps), "{:?}", history.statuses);
            let details = history.end.clone().unwrap();
            let rejected = details.job_rejection_details.map(|details| details.message);
            let failed = details.horde_failure_details.map(|details| details.message);
            let why = rejected.or(failed).unwrap();
            let known = [NOT_THERE, ILL_LUCK].into_iter().find(|known| why.contains(known));
            *broken.entry(known.unwrap_or_else(|| panic!("{why}"))).or_default() += 1;
        }
        println!(
            "kill -9 of the front {}, of Redis {}, of a worker {}, stops of a worker {}: {} jobs, {completed} \
             completed, cut short {broken:?}, {} updates, {} of them repeats",
            killed[0],
            killed[1],
            killed[2],
            killed[3],
            asked.len(),
            state.updates,
            state.repeats
        );
    }
    // A kill hits what a front has just received.
    assert!(killed[0] > 0 || !broken.contains_key(NOT_THERE), "{broken:?}");
    assert!(killed[2] >= 3 || !broken.contains_key(ILL_LUCK), "{broken:?}");
    // The facilitator may have the last end a moment before Redis forgets the event.
    let events = format!("phalanx.events.{}", key("//Validator").ss58());
    crate::testkit::wait::until("what is over is gone from Redis", || {
        scene.redis.cli::<usize>(&["XLEN", &events]) == 0
    });
    // What was reported of a job once more, because the answer was lost with Redis, goes by itself.
    let wanted: Vec<String> = scene.redis.cli(&["KEYS", "phalanx.job.*"]);
    for key in &wanted {
        assert!(scene.redis.cli::<i64>(&["PTTL", key]) > 0, "{key} stays for ever");
    }
    assert!(killed[1] > 0 || wanted.is_empty(), "{wanted:?}");
    stopped(front);
    workers.into_iter().for_each(|worker| drop(stopped(worker)));
    scene.end();
}

#[test]
fn without_a_worker_a_job_is_rejected_and_a_late_worker_leaves_it_alone() {
    let _none = NoThreads::expected();
    let Some(scene) = Scene::set() else { return };
    let front = scene.front(&["--queue-time", "1s"]);
    let job = jobs(1).remove(0);
    scene.facilitator.submit(job.clone());
    assert_eq!(scene.facilitator.history(&job.uuid), [S::Received, S::Rejected]);
    let end = scene.facilitator.state().histories[&job.uuid].end.clone().unwrap();
    let details = end.job_rejection_details.unwrap();
    assert_eq!((details.reason.as_str(), details.message.as_str()), ("busy", "no worker took the job within 1s"));
    // It is still in the queue, as Celery's tools would see.
    assert_eq!(scene.redis.cli::<usize>(&["LLEN", "phalanx"]), 1);
    let client = Client::start(scene.redis.config());
    let result = client.handle().result(&job.uuid).unwrap();
    let worker = scene.worker("late@here", &["--stub-time", "0s"]);
    assert_eq!(result.wait(LONG), Ok(json!({"uuid": job.uuid, "status": null})));
    drop(result);
    // The next one is run.
    let next = jobs(1).remove(0);
    scene.facilitator.submit(next.clone());
    assert_eq!(scene.facilitator.history(&next.uuid), GOOD);
    client.stop();
    for running in [front, worker] {
        stopped(running);
    }
    scene.end();
}

#[test]
fn a_front_and_its_workers_meet_where_their_settings_of_celery_say() {
    let _none = NoThreads::expected();
    let Some(scene) = Scene::set() else { return };
    let settings = json!({"broker_transport_options": {"global_keyprefix": "shop:", "sep": ":"},
        "result_backend": scene.redis.url().replace("/0", "/1")})
    .to_string();
    let front = scene.front(&["--celery", &settings]);
    let worker = scene.worker("w@here", &["--stub-time", "0s", "--celery", &settings]);
    let job = jobs(1).remove(0);
    scene.facilitator.submit(job.clone());
    assert_eq!(scene.facilitator.history(&job.uuid), GOOD);
    assert_eq!(scene.redis.cli::<usize>(&["EXISTS", "shop:phalanx.workers"]), 1);
    let result = format!("celery-task-meta-{}", job.uuid);
    assert_eq!(scene.redis.cli::<usize>(&["EXISTS", "phalanx.workers", "phalanx", "unacked", &result]), 0);
    for running in [front, worker] {
        stopped(running);
    }
    scene.end();
}

#[test]
fn any_celery_producer_may_send_a_job_and_gets_its_end_as_the_result() {
    let _none = NoThreads::expected();
    let Some(scene) = Scene::set() else { return };
    let worker = scene.worker("w@here", &["--stub-time", "0s"]);
    let client = Client::start(scene.redis.config());
    let celery = client.handle();
    let job = jobs(1).remove(0);
    let request: Value = serde_json::from_str(&FacilitatorToValidator::from(job.clone()).encode()).unwrap();
    let send = |request: Value| {
        let task = Task::new("phalanx.execute_job").queue("phalanx").kwarg("request", request);
        celery.send(task).unwrap().wait(LONG)
    };
    let end = send(request).unwrap();
    assert_eq!((&end["uuid"], &end["status"]), (&json!(job.uuid), &json!("completed")), "{end}");
    assert!(end["metadata"]["miner_response"].is_object(), "{end}");
    let wrong = send(json!({"uuid": 7})).unwrap_err().to_string();
    assert!(wrong.starts_with("ValueError: request: "), "{wrong}");
    let seen = celery.inspect("registered", &json!({}), &[], LONG).unwrap();
    assert_eq!(seen, [("w@here".to_owned(), json!(["phalanx.execute_job"]))].into());
    // As `celery control shutdown`.
    assert_eq!(celery.broadcast("shutdown", &json!({}), &[], far()).unwrap(), 1);
    let finished = worker.finish();
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    assert!(finished.stderr.contains("asked to stop by remote control"), "{}", finished.stderr);
    client.stop();
    scene.end();
}

#[test]
fn a_worker_checks_the_users_signature_itself_and_runs_one_job_by_each() {
    let _none = NoThreads::expected();
    let Some(scene) = Scene::set() else { return };
    let front = scene.front(&[]);
    // It trusts somebody else than its front does.
    let other = scene.worker("o@here", &["--stub-time", "0s", "--trusted-signer", &key("//Other").ss58()]);
    let job = jobs(1).remove(0);
    scene.facilitator.submit(job.clone());
    assert_eq!(scene.facilitator.history(&job.uuid), [S::Received, S::Rejected]);
    let end = scene.facilitator.state().histories[&job.uuid].end.clone().unwrap().job_rejection_details.unwrap();
    assert_eq!(end.reason, JobRejectionReason::InvalidSignature);
    assert!(end.message.ends_with("may not sign jobs for this validator"), "{}", end.message);
    stopped(other);

    // Whoever writes to Redis has no signature of his own, and cannot use another's once more.
    let worker = scene.worker("w@here", &["--stub-time", "0s"]);
    let client = Client::start(scene.redis.config());
    let send = |job: &V2JobRequest| {
        let request: Value = serde_json::from_str(&FacilitatorToValidator::from(job.clone()).encode()).unwrap();
        let task = Task::new("phalanx.execute_job").queue("phalanx").kwarg("request", request);
        client.handle().send(task).unwrap().wait(LONG)
    };
    let job = jobs(1).remove(0);
    assert_eq!(send(&job).unwrap()["status"], "completed");
    let ended = format!("RuntimeError: job {} has ended, its result is lost", job.uuid);
    assert_eq!(send(&job).unwrap_err().to_string(), ended);
    let copy = V2JobRequest { uuid: uuid::Uuid::new_v4().to_string(), ..job.clone() };
    let refused = send(&copy).unwrap();
    let why = refused["metadata"]["job_rejection_details"]["message"].as_str().unwrap();
    assert_eq!(
        (&refused["status"], why),
        (&json!("rejected"), &*format!("its signature came with job {} before", job.uuid))
    );
    // Nor on another worker, or on one that was started again.
    stopped(worker);
    let worker = scene.worker("w2@here", &["--stub-time", "0s"]);
    assert_eq!(send(&copy).unwrap()["status"], "rejected");
    assert_eq!(send(&job).unwrap_err().to_string(), ended);
    let claims: Vec<String> = scene.redis.cli(&["KEYS", "phalanx.signature.*"]);
    assert_eq!(claims.len(), 1, "{claims:?}");
    let left: i64 = scene.redis.cli(&["PTTL", &claims[0]]);
    assert!((1..=24 * 3_600_000).contains(&left), "{left}");
    let changed = V2JobRequest { docker_image: "another".to_owned(), ..copy };
    assert_eq!(send(&changed).unwrap()["metadata"]["job_rejection_details"]["reason"], "invalid_signature");
    client.stop();
    for running in [front, worker] {
        stopped(running);
    }
    scene.end();
}

#[test]
fn of_jobs_by_one_signature_that_many_workers_take_at_once_one_runs() {
    let _none = NoThreads::expected();
    let Some(scene) = Scene::set() else { return };
    let workers: Vec<Running> = (0..3).map(|n| scene.worker(&format!("w{n}@here"), &["--stub-time", "20ms"])).collect();
    let client = Client::start(scene.redis.config());
    for _ in 0..5 {
        let signed = jobs(1).remove(0);
        let copies = (0..8).map(|_| V2JobRequest { uuid: uuid::Uuid::new_v4().to_string(), ..signed.clone() });
        let sent: Vec<_> = copies
            .map(|copy| {
                let request: Value = serde_json::from_str(&FacilitatorToValidator::from(copy).encode()).unwrap();
                let task = Task::new("phalanx.execute_job").queue("phalanx").kwarg("request", request);
                client.handle().send(task).unwrap()
            })
            .collect();
        let ends: Vec<Value> = sent.into_iter().map(|sent| sent.wait(LONG).unwrap()["status"].clone()).collect();
        assert_eq!(ends.iter().filter(|end| **end == "completed").count(), 1, "{ends:?}");
        assert_eq!(ends.iter().filter(|end| **end == "rejected").count(), 7, "{ends:?}");
    }
    client.stop();
    workers.into_iter().for_each(|worker| drop(stopped(worker)));
    scene.end();
}

#[test]
fn a_signature_that_is_older_than_the_worker_takes_runs_nothing() {
    let _none = NoThreads::expected();
    let Some(scene) = Scene::set() else { return };
    let worker = scene.worker("w@here", &["--stub-time", "0s", "--max-signature-age", "10m"]);
    let client = Client::start(scene.redis.config());
    let send = |age: u64| {
        let mut job = jobs(1).remove(0);
        job.sign(&key("//User"), roles::now_ns() - age * 1_000_000_000);
        let request: Value = serde_json::from_str(&FacilitatorToValidator::from(job).encode()).unwrap();
        let task = Task::new("phalanx.execute_job").queue("phalanx").kwarg("request", request);
        client.handle().send(task).unwrap().wait(LONG).unwrap()
    };
    // Fresh when it was put into the queue, and has waited since.
    assert_eq!(send(10 * 60 + 20 * 60)["status"], "completed");
    // Longer than it can have waited and run, in seconds.
    let old = send(12 * 3600);
    let why = old["metadata"]["job_rejection_details"]["message"].as_str().unwrap();
    assert!(why.starts_with("the signature is 4320") && why.contains("are allowed"), "{why}");
    client.stop();
    stopped(worker);
    scene.end();
}

/// A front that is killed knows each job that it has put into the queue, and its signature.
#[test]
fn what_is_in_the_queue_is_on_the_fronts_disk_with_its_signature() {
    let _none = NoThreads::expected();
    let Some(scene) = Scene::set() else { return };
    let seed = Rng::from_entropy().next_u64();
    println!("seed {seed}");
    let mut rng = Rng::new(seed);
    for round in 0..6 {
        let front = scene.front(&["--queue-time", "60s"]);
        jobs(300).into_iter().for_each(|job| scene.facilitator.submit(job));
        let enough = 1 + rng.next_u64() as usize % 150;
        crate::testkit::wait::until("jobs are in the queue", || {
            scene.redis.cli::<usize>(&["LLEN", "phalanx"]) >= enough
        });
        front.signal(Signal::KILL);
        front.finish();
        let queue: Vec<String> = scene.redis.cli(&["LRANGE", "phalanx", "0", "-1"]);
        let (journal, recovered) = Journal::open(scene.state.path()).unwrap();
        let records = recovered.records.iter().map(|(_, bytes)| JobRecord::decode(bytes).unwrap());
        let known: BTreeMap<String, bool> =
            records.map(|record| (record.uuid.to_string(), record.signed.is_some())).collect();
        for message in &queue {
            let message: Value = serde_json::from_str(message).unwrap();
            let uuid = message["headers"]["id"].as_str().unwrap();
            assert_eq!(known.get(uuid), Some(&true), "round {round}: job {uuid} of {}", queue.len());
        }
        drop(journal);
        let _: i64 = scene.redis.cli(&["DEL", "phalanx"]);
    }
    scene.end();
}

#[test]
fn a_worker_asks_its_miners_in_rounds_and_shows_them_as_a_validator_does() {
    let _none = NoThreads::expected();
    let Some(scene) = Scene::set() else { return };
    let folder = tempfile::tempdir().unwrap();
    let (miner, miners) = miner(&scene, folder.path());
    let scratch = scene.scratch.path();
    let address = || format!("127.0.0.1:{}", redis_server::free_port());
    let (worker_pages, front_pages) = (address(), address());
    let front = scene.front(&["--http", &front_pages]);
    let worker = scene.worker("w@here", &["--miners", &miners, "--manifest-interval", "1s", "--http", &worker_pages]);
    let show = |pages: &str, more: &[&str]| run(phalanx(scratch).args(["miners", "--http", pages]).args(more));
    // No job has asked it.
    let hotkey = key("//Miner").ss58();
    let listed = until_some("the manifest", || {
        let answer: Value = serde_json::from_str(&show(&worker_pages, &["--json"]).stdout).unwrap();
        (!answer["miners"][0]["manifest"].is_null()).then_some(answer)
    });
    let shown = &listed["miners"][0];
    assert_eq!((&shown["hotkey"], &shown["manifest"]), (&json!(hotkey), &json!({"always_on.test": 1})));
    assert_eq!(listed["source"]["miners"], 1, "{listed}");
    let asked = until(scratch, &worker_pages, |status| status["details"]["asked"]["manifests"]["rounds"] != 0);
    assert_eq!(asked["details"]["asked"]["manifests"]["outcomes"]["ok"], 1, "{asked:#}");
    let table = show(&worker_pages, &[]);
    assert!(table.code == Some(0) && table.stdout.contains("always_on.test 1"), "{table:?}");
    let explained = show(&worker_pages, &["--explain", &hotkey]);
    assert!(explained.stdout.contains("always_on.test           asked first, of 1 ["), "{explained:?}");
    let elsewhere = show(&front_pages, &[]);
    assert!(elsewhere.code == Some(1) && elsewhere.stderr.contains("ask the workers"), "{elsewhere:?}");
    for running in [front, worker, miner] {
        stopped(running);
    }
    scene.end();
}

#[test]
fn an_event_of_one_job_says_nothing_of_another() {
    let _none = NoThreads::expected();
    let Some(scene) = Scene::set() else { return };
    let pages = format!("127.0.0.1:{}", redis_server::free_port());
    let front = scene.front(&["--http", &pages]);
    let worker = scene.worker("w@here", &["--stub-time", "300ms"]);
    let jobs = jobs(2);
    jobs.iter().for_each(|job| scene.facilitator.submit(job.clone()));
    let [one, other] = [&jobs[0].uuid, &jobs[1].uuid];
    for uuid in [one, other] {
        scene.facilitator.wait("both are known", |state| state.histories.contains_key(uuid));
    }
    // In the stream of the front, as somebody who writes to its Redis would: the end of the other job, by this one's.
    let update = json!({"message_type": "V0JobStatusUpdate", "uuid": other, "status": "failed", "metadata": null});
    let specs = json!({"message_type": "V0MachineSpecsUpdate", "miner_hotkey": "m", "validator_hotkey": "v",
        "batch_id": one, "specs": {}});
    let stream = format!("phalanx.events.{}", key("//Validator").ss58());
    for text in [update, specs] {
        let event = json!({"job": one, "news": "said", "text": text.to_string()}).to_string();
        let _id: String = scene.redis.cli(&["XADD", &stream, "*", "m", &event]);
    }
    for uuid in [one, other] {
        assert_eq!(scene.facilitator.history(uuid), GOOD);
    }
    // Both are counted, and one is logged in ten seconds.
    let counted = |error: &Value| error["place"] == "val-events" && error["class"] == "rejected" && error["count"] == 2;
    until(scene.scratch.path(), &pages, |status| status["errors"].as_array().unwrap().iter().any(counted));
    let log = stopped(front);
    assert_eq!(log.matches("sent a message that is not about this job").count(), 1, "{log}");
    stopped(worker);
    scene.end();
}

#[test]
fn a_stop_of_the_front_lets_jobs_end_and_calls_off_what_does_not() {
    let _none = NoThreads::expected();
    let Some(scene) = Scene::set() else { return };
    let front = scene.front(&["--drain-time", "30s"]);
    let slow = scene.worker("w@here", &["--stub-time", "200ms"]);
    let job = jobs(1).remove(0);
    scene.facilitator.submit(job.clone());
    let accepted = |uuid: &str, state: &scripted::FacilitatorState| {
        state.histories.get(uuid).is_some_and(|history| history.statuses.contains(&S::Accepted))
    };
    scene.facilitator.wait("the job runs", |state| accepted(&job.uuid, state));
    stopped(front);
    assert_eq!(scene.facilitator.state().histories[&job.uuid].statuses, GOOD);

    let front = scene.front(&["--drain-time", "100ms"]);
    let job = jobs(1).remove(0);
    scene.facilitator.submit(job.clone());
    scene.facilitator.wait("the job runs", |state| accepted(&job.uuid, state));
    let finished = front.stop(Signal::TERM);
    assert!(finished.stderr.contains("1 jobs cancelled"), "{}", finished.stderr);
    assert_eq!(scene.facilitator.state().histories[&job.uuid].statuses.last(), Some(&S::HordeFailed));
    let client = Client::start(scene.redis.config());
    let result = client.handle().result(&job.uuid).unwrap();
    assert_eq!(result.wait(LONG).unwrap_err().to_string(), "it was revoked: terminated");
    drop(result);
    client.stop();
    stopped(slow);
    scene.end();
}

#[test]
fn a_job_outlives_any_number_of_workers_that_are_stopped() {
    let _none = NoThreads::expected();
    let Some(scene) = Scene::set() else { return };
    let front = scene.front(&[]);
    let job = jobs(1).remove(0);
    scene.facilitator.submit(job.clone());
    for n in 0..5 {
        let pages = format!("127.0.0.1:{}", redis_server::free_port());
        let name = format!("w{n}@here");
        let worker = scene.worker(&name, &["--stub-time", "1h", "--drain-time", "0s", "--http", &pages]);
        until(scene.scratch.path(), &pages, |status| status["details"]["jobs"] == 1);
        assert!(stopped(worker).contains("1 jobs go on elsewhere"));
    }
    let worker = scene.worker("last@here", &["--stub-time", "0s"]);
    assert_eq!(scene.facilitator.history(&job.uuid), GOOD);
    for running in [front, worker] {
        stopped(running);
    }
    scene.end();
}
