//! A miner with several hosts: where jobs go, what becomes of a host that is down, hangs, fails or is removed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use phalanx::base::ids::SessionId;
use phalanx::base::shutdown::Shutdown;
use phalanx::miner::check::CheckPolicy;
use phalanx::miner::executor_manager::{
    DockerBackend, ExecutorBackend, ExecutorEnd, ExecutorError, ExecutorExit, ExecutorSpec, Marked, Owner,
};
use phalanx::miner::host::HostName;
use phalanx::miner::placement::{Strategy, listed_name};
use phalanx::miner::router::Input;
use phalanx::miner::{HostConfig, HostState, HostStatus, MinerConfig};
use phalanx::proc::docker::{EngineAddress, SshPlace};
use phalanx::protocol::{ExecutorToMiner, HordeFailureReason, JobParticipantType, V0HordeFailedRequest};

use crate::miner::{FakeBackend, Fixture as Running};
use crate::miner_fixture::{Fixture, GONE, Unused, owner};
use crate::testkit::engine;
use crate::testkit::miner::{CLASS, SECOND, Says, kind, uuid};
use crate::testkit::wait::{LONG, far};

const LOCAL: HostName = HostName::LOCAL;

fn name(text: &str) -> HostName {
    text.parse().unwrap()
}

fn engine_at(text: &str) -> EngineAddress {
    EngineAddress::parse(&format!("unix:///nonexistent/{text}.sock"), None, &SshPlace::below("/nonexistent")).unwrap()
}

fn host(text: &str, slots: u32) -> HostConfig {
    HostConfig {
        name: name(text),
        address: text.to_owned(),
        engine: engine_at(text),
        executors: vec![(CLASS, slots)],
        backend: Arc::new(Unused),
    }
}

/// A router with `local` and these hosts, which are up.
fn hosts(local: u32, others: &[(&str, u32)]) -> Fixture {
    Fixture::with(local, |config| {
        config.hosts = others.iter().map(|(name, slots)| host(name, *slots)).collect();
    })
}

impl Fixture {
    fn host(&self, of: HostName) -> HostStatus {
        self.router.status().hosts.into_iter().find(|host| host.name == of).unwrap()
    }

    /// How many executors run on each host.
    fn running_on(&self) -> BTreeMap<String, usize> {
        let taken = |host: &HostStatus| host.executors.iter().map(|(_, slots)| slots.leased()).sum();
        self.router.status().hosts.iter().map(|host| (host.name.to_string(), taken(host))).collect()
    }

    /// What a validator that connects now is offered.
    fn offered(&mut self) -> serde_json::Value {
        let pen = self.alice.clone();
        let id = self.dial(&pen);
        self.says(id, &pen.auth(self.unix));
        let manifest: serde_json::Value = serde_json::from_str(&self.texts(id)[0]).unwrap();
        self.handle(Input::Closed(id));
        manifest["manifest"].clone()
    }

    /// The host of the executor that was started last.
    fn last_host(&self) -> String {
        self.leases[&self.started.last().unwrap().token].slot().host().to_string()
    }

    /// A job whose executor does not even start.
    fn fails_to_start(&mut self, session: SessionId) {
        let token = self.accepted(session, &uuid());
        self.ended(&token, Err(ExecutorError::Other("no disk".to_owned())));
        assert_eq!(self.got(session), ["HordeFailed executor_spinup_failed"]);
    }
}

#[test]
fn jobs_spread_over_the_hosts_that_are_up_and_have_room() {
    let mut f = hosts(2, &[("big", 4), ("down", 9)]);
    f.checked(name("down"), Err("no answer"));
    assert_eq!(f.offered(), serde_json::json!({"always_on.test": 6}));
    let alice = f.alice.clone();
    let session = f.validator(&alice);
    for _ in 0..3 {
        f.accepted(session, &uuid());
    }
    let spread = |pairs: [(&str, usize); 3]| pairs.map(|(name, jobs)| (name.to_owned(), jobs)).into();
    assert_eq!(f.running_on(), spread([("big", 2), ("local", 1), ("down", 0)]), "by the part of their slots");
    for _ in 0..3 {
        f.accepted(session, &uuid());
    }
    assert_eq!(f.running_on(), spread([("big", 4), ("local", 2), ("down", 0)]));
    f.says(session, &alice.ask(&uuid()));
    assert_eq!(f.got(session), ["DeclineJob busy"], "not on the one that is down");
    // It is back, with all its slots.
    f.checked(name("down"), Ok("in boxes"));
    f.accepted(session, &uuid());
    assert_eq!(f.last_host(), "down");
    assert_eq!(f.router.status().jobs_run, "big: ; down: in boxes; local: ");
}

#[test]
fn a_job_goes_where_its_image_is_if_that_is_the_strategy() {
    let mut f = Fixture::with(2, |config| {
        config.hosts = vec![host("other", 1)];
        config.placement = Strategy::ImageLocal;
    });
    let alice = f.alice.clone();
    let session = f.validator(&alice);
    let due = f.now + LONG;
    let images = vec!["docker.io/library/image:latest".to_owned()];
    f.handle(Input::Checked { host: name("other"), found: Ok(String::new()), images, due });
    f.accepted(session, &uuid());
    assert_eq!(f.last_host(), "other");
    f.accepted(session, &uuid());
    assert_eq!(f.last_host(), "local", "the other is full");
    // Another strategy by a reload.
    f.config.placement = Strategy::RoundRobin;
    f.config.hosts = vec![host("other", 3)];
    f.reload();
    let next: Vec<String> = (0..2).map(|_| (f.accepted(session, &uuid()), f.last_host()).1).collect();
    assert_eq!(next, ["other", "local"]);
}

#[test]
fn the_miner_is_in_trouble_only_if_no_host_is_up() {
    let mut f = hosts(1, &[("other", 1)]);
    f.checked(LOCAL, Err("no answer"));
    let status = f.router.status();
    assert_eq!((status.engine_trouble, status.machine_trouble), (None, None));
    assert_eq!((f.host(LOCAL).state, f.host(LOCAL).why.as_deref()), (HostState::Down, Some("no answer")));
    f.checked(name("other"), Err("refused"));
    let trouble = f.router.status().engine_trouble;
    assert_eq!(trouble.as_deref(), Some("local: no answer; other: refused"));
    assert_eq!(f.offered(), serde_json::json!({}));
    let alice = f.alice.clone();
    let session = f.validator(&alice);
    f.says(session, &alice.ask(&uuid()));
    let declined = f.texts(session).remove(0);
    assert!(declined.contains("this miner cannot run jobs at present"), "{declined}");
    assert!(!declined.contains("refused"), "it is the operator's business: {declined}");
}

#[test]
fn a_check_that_does_not_end_takes_its_host_down_and_an_answer_brings_it_back() {
    let mut f = hosts(1, &[("other", 1)]);
    let due = f.now + 20 * SECOND;
    for host in [LOCAL, name("other")] {
        f.handle(Input::Checked { host, found: Ok("in boxes".to_owned()), images: Vec::new(), due });
        f.handle(Input::Reaped { host, trouble: None, due });
    }
    f.pass(15 * SECOND);
    f.checked(LOCAL, Ok("in boxes"));
    f.pass(5 * SECOND);
    assert_eq!(f.host(name("other")).why.as_deref(), Some("its check does not end"));
    assert_eq!(f.host(LOCAL).state, HostState::Up);
    assert_eq!(f.offered(), serde_json::json!({"always_on.test": 1}));
    let looks = f.host(name("other")).reaper_trouble.unwrap();
    assert!(looks.contains("does not end"), "{looks}");
    f.checked(name("other"), Ok("in boxes"));
    f.handle(Input::Reaped { host: name("other"), trouble: None, due: f.now + LONG });
    let back = f.host(name("other"));
    assert_eq!((back.state, back.reaper_trouble), (HostState::Up, None));
}

#[test]
fn a_host_whose_executors_do_not_start_is_down_and_comes_back_by_a_trial() {
    let mut f = hosts(1, &[]);
    let alice = f.alice.clone();
    let session = f.validator(&alice);
    for _ in 0..2 {
        f.fails_to_start(session);
    }
    assert_eq!((f.host(LOCAL).state, f.router.status().engine_trouble), (HostState::Up, None));
    f.fails_to_start(session);
    let trouble = f.router.status().engine_trouble.unwrap();
    assert_eq!(trouble, "3 jobs in a row could not be run there, at last: no disk");
    assert_eq!(f.offered(), serde_json::json!({}));
    // One job as a trial after a while, which fails as well.
    f.pass(10 * SECOND);
    assert_eq!(f.offered(), serde_json::json!({"always_on.test": 1}));
    f.fails_to_start(session);
    f.pass(10 * SECOND);
    assert_eq!(f.offered(), serde_json::json!({}), "the pause is longer now");
    f.pass(10 * SECOND);
    // One that goes well: it counts when it has its volumes.
    let job = uuid();
    let (executor, _) = f.running(session, &job);
    assert_eq!(f.host(LOCAL).state, HostState::Down);
    f.reports(executor, &Says(&job).volumes());
    assert_eq!((f.host(LOCAL).state, f.host(LOCAL).why), (HostState::Up, None));
}

#[test]
fn a_host_that_fails_its_jobs_fast_does_not_draw_all_of_them() {
    let mut f = hosts(2, &[("broken", 2)]);
    let alice = f.alice.clone();
    let session = f.validator(&alice);
    let mut failed = 0;
    for _ in 0..12 {
        let job = uuid();
        let token = f.accepted(session, &job);
        let executor = f.executor(&token);
        match f.last_host().as_str() {
            "broken" => {
                let fault = phalanx::protocol::executor::FAULT_OF_OPERATOR;
                let context = serde_json::json!({ phalanx::protocol::executor::FAULT: fault });
                let says = ExecutorToMiner::from(V0HordeFailedRequest {
                    job_uuid: job,
                    reported_by: JobParticipantType::Executor,
                    reason: HordeFailureReason::GenericError,
                    message: "no space left on device".to_owned(),
                    context: serde_json::from_value(context).unwrap(),
                });
                f.reports(executor, &says.encode());
                failed += 1;
            }
            _ => {
                f.reports(executor, &Says(&job).ready());
                f.reports(executor, &Says(&job).volumes());
                f.reports(executor, &Says(&job).finished(""));
            }
        }
        f.handle(Input::Closed(executor));
        f.ended(&token, GONE);
        f.got(session);
    }
    assert_eq!(failed, 3);
    let broken = f.host(name("broken"));
    assert_eq!(broken.state, HostState::Down);
    assert_eq!(broken.trouble.as_deref(), Some("no space left on device"));
    assert_eq!(f.router.status().machine_trouble, None, "a host is up, and well");
}

#[test]
fn an_executor_that_connects_shows_that_its_host_starts_executors() {
    let mut f = hosts(1, &[]);
    let alice = f.alice.clone();
    let session = f.validator(&alice);
    for _ in 0..6 {
        let job = uuid();
        let token = f.accepted(session, &job);
        let executor = f.executor(&token);
        // A slow registry, for example: it is not ready in time.
        f.pass(CLASS.spin_up_time() + f.limits.startup_time_limit);
        f.handle(Input::Closed(executor));
        f.ended(&token, GONE);
        assert_eq!(f.got(session), ["HordeFailed executor_spinup_failed"]);
    }
    assert_eq!(f.host(LOCAL).state, HostState::Up);
}

#[test]
fn a_removed_host_drains_and_an_added_one_comes_when_it_answers() {
    let mut f = hosts(1, &[("old", 2)]);
    let (alice, job) = (f.alice.clone(), uuid());
    let session = f.validator(&alice);
    f.config.placement = Strategy::RoundRobin;
    f.reload();
    f.accepted(session, &uuid());
    assert_eq!(f.last_host(), "local");
    let (executor, token) = f.running(session, &job);
    assert_eq!(f.last_host(), "old");

    f.config.hosts = vec![host("new", 3)];
    f.reload();
    let old = f.host(name("old"));
    assert_eq!((old.state, old.executors[0].1.draining, old.executors[0].1.free), (HostState::Draining, 1, 0));
    assert_eq!(f.host(name("new")).why.as_deref(), Some("it has not answered yet"));
    assert_eq!(f.offered(), serde_json::json!({"always_on.test": 1}));
    f.says(session, &alice.ask(&uuid()));
    assert_eq!(f.got(session), ["DeclineJob busy"]);
    f.checked(name("new"), Ok("in boxes"));
    assert_eq!(f.offered(), serde_json::json!({"always_on.test": 4}));
    f.accepted(session, &uuid());
    assert_eq!(f.last_host(), "new");

    // What ran on the old one goes on to its end, and then the host is gone.
    f.reports(executor, &Says(&job).volumes());
    f.reports(executor, &Says(&job).done());
    f.reports(executor, &Says(&job).finished("x"));
    assert_eq!(f.got(session), ["VolumesReady", "ExecutionDone", "JobFinished"]);
    assert!(f.released.is_empty());
    f.handle(Input::Closed(executor));
    f.ended(&token, GONE);
    assert_eq!(f.released, [name("old")]);
    let names: Vec<_> = f.router.status().hosts.iter().map(|host| host.name.to_string()).collect();
    assert_eq!((names, f.router.status().breach), (vec!["local".to_owned(), "new".to_owned()], None));
}

#[test]
fn a_host_with_another_engine_is_another_host_until_it_answers() {
    let mut f = hosts(1, &[("moves", 2)]);
    f.config.placement = Strategy::ImageLocal;
    f.reload();
    assert_eq!(f.offered(), serde_json::json!({"always_on.test": 3}), "other settings are not another engine");
    f.config.hosts[0].engine = engine_at("elsewhere");
    f.reload();
    assert_eq!(f.host(name("moves")).why.as_deref(), Some("it has not answered yet"));
    assert_eq!(f.offered(), serde_json::json!({"always_on.test": 1}));
    assert_eq!(f.router.answering().into_keys().collect::<Vec<_>>(), [LOCAL]);
    f.checked(name("moves"), Ok("in boxes"));
    assert_eq!(f.offered(), serde_json::json!({"always_on.test": 3}));
}

#[test]
fn after_a_restart_a_job_is_looked_for_on_its_host() {
    let mut f = hosts(1, &[("kept", 1), ("gone", 1)]);
    f.config.placement = Strategy::RoundRobin;
    f.reload();
    let alice = f.alice.clone();
    let session = f.validator(&alice);
    let jobs = [uuid(), uuid(), uuid()];
    let mut on = BTreeMap::new();
    for job in &jobs {
        f.running(session, job);
        on.insert(f.last_host(), job.clone());
    }
    f.config.hosts.retain(|host| host.name == name("kept"));
    // As rows of a release that knew one host only.
    let old = f.disk.get_mut(&on["local"]).unwrap();
    let mut state: serde_json::Value = serde_json::from_str(&old.state).unwrap();
    assert_eq!(state.as_object_mut().unwrap().remove("host"), Some("local".into()));
    old.state = state.to_string();

    f.restart(SECOND, Owner { epoch: 2, ..owner() });
    let adopted: BTreeMap<_, _> =
        f.adopted.iter().map(|spec| (f.leases[&spec.token].slot().host().to_string(), spec.job_uuid.clone())).collect();
    let expected: BTreeMap<_, _> = on.clone().into_iter().filter(|(host, _)| host != "gone").collect();
    assert_eq!(adopted, expected);
    let back = f.validator(&alice);
    let texts = f.texts(back);
    assert!(texts.len() == 1 && texts[0].contains(&on["gone"]), "{texts:?}");
    assert_eq!(kind(&texts[0]), "HordeFailed executor_disconnected");
    assert!(texts[0].contains("without the host of the executor"), "{texts:?}");
}

#[test]
fn the_images_of_a_real_engine_are_known_by_the_names_that_jobs_use() {
    if !engine::ready() {
        return;
    }
    let backend = DockerBackend::new("unused", "docker");
    let images = backend.images(&Shutdown::new(), far()).unwrap();
    assert!(images.iter().any(|image| listed_name(image) == listed_name(engine::IMAGE)), "{images:?}");
}

/// Executors as of another back end, on a host that hangs in all that is asked of it, until it is told to go on.
struct Hangs {
    asked: Sender<&'static str>,
    go_on: Receiver<()>,
}

impl ExecutorBackend for Hangs {
    fn run(&self, _: &ExecutorSpec, _: &Shutdown) -> ExecutorEnd {
        unreachable!("it is never up")
    }

    fn check(&self, _: &Shutdown, _: Instant) -> Result<String, String> {
        let _ = self.asked.send("check");
        // Neither the deadline nor the stop is heeded.
        let _ = self.go_on.recv();
        Ok("at last".to_owned())
    }

    fn find(&self, _: &Owner, _: &Shutdown) -> Result<Vec<Marked>, String> {
        let _ = self.asked.send("find");
        let _ = self.go_on.recv();
        Ok(Vec::new())
    }
}

#[test]
fn a_host_that_hangs_holds_up_neither_the_start_nor_the_others() {
    let ((asked, asks), (go_on, wait)) = (bounded(10), bounded::<()>(0));
    let mut hangs = Some(Arc::new(Hangs { asked, go_on: wait }));
    let mut f = Running::with(1, false, |config: &mut MinerConfig| {
        let backend = hangs.take().unwrap();
        config.hosts = vec![HostConfig { backend, ..host("hangs", 5) }];
        let moment = Duration::from_millis(5);
        config.limits.checks = CheckPolicy { interval: moment, retry: moment, limit: moment, ..CheckPolicy::default() };
    });
    let said: Vec<_> = (0..2).map(|_| asks.recv_timeout(LONG).unwrap()).collect();
    assert!(said.contains(&"check") && said.contains(&"find"), "{said:?}");
    let status = f.miner.as_ref().unwrap().status();
    let of = |name: &str| status.hosts.iter().find(|host| host.name.as_str() == name).unwrap();
    assert_eq!((of("local").state, of("hangs").state), (HostState::Up, HostState::Down));
    assert_eq!((of("hangs").why.as_deref(), &status.engine_trouble), (Some("it has not answered yet"), &None));
    let mut validator = f.validator();
    let (_executor, started) = f.running(&mut validator, &uuid());
    drop(started);
    // It counts as soon as it answers.
    drop(go_on);
    f.until(|status| status.hosts.iter().all(|host| host.state == HostState::Up));
    drop(f.miner.take());
}

#[test]
fn a_reload_takes_hosts_in_and_lets_them_go_with_their_threads() {
    let mut config = None;
    let mut f = Running::with(1, false, |made| config = Some(made.clone()));
    let mut config = config.unwrap();
    let (started, starts) = bounded(10);
    let living = Arc::new(AtomicUsize::new(0));
    let backend = Arc::new(FakeBackend { started, living, stubborn: false });
    config.hosts = vec![HostConfig { backend, ..host("far", 2) }];
    config.executors.clear();
    let reloader = f.miner.as_ref().unwrap().reloader();
    reloader.reload(config.clone()).unwrap();
    f.until(|status| {
        status.hosts.len() == 1 && status.hosts[0].state == HostState::Up && status.hosts[0].name == name("far")
    });
    let mut validator = f.validator();
    let job = uuid();
    validator.say(&f.alice.ask(&job));
    validator.expect("AcceptJob");
    let on_far = starts.recv_timeout(LONG).unwrap();
    assert_eq!(on_far.spec.job_uuid, job, "the local back end starts nothing any more");

    // It is removed while its job runs, which goes on.
    let mut executor = f.executor(&on_far.spec);
    executor.expect("InitialJob");
    config.executors = vec![(CLASS, 1)];
    config.hosts.clear();
    reloader.reload(config).unwrap();
    f.until(|status| status.hosts.iter().any(|host| host.state == HostState::Draining));
    executor.say(&Says(&job).ready());
    validator.expect("ExecutorReady");
    executor.say(&Says(&job).finished("x"));
    validator.expect("JobFinished");
    on_far.exit.send(Ok(ExecutorExit::Code(0))).unwrap();
    f.until(|status| status.hosts.len() == 1 && status.hosts[0].name == LOCAL && status.breach.is_none());
    drop(f.miner.take());
}
