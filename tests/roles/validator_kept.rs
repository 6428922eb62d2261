//! Connections to miners that are kept between jobs, and what ends them; what watches them while they are idle.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use phalanx::base::shutdown::{Level, Shutdown};
use phalanx::base::stop::Stopping;
use phalanx::base::thread::Group;
use phalanx::identity::KeyPair;
use phalanx::protocol::{
    JobStatus, V0AcceptJobRequest, V0ExecutionDoneRequest, V0ExecutorReadyRequest, V0JobFinishedRequest,
    V0VolumesReadyRequest, ValidatorToMiner,
};
use phalanx::transport::idle::IdleWatch;
use phalanx::transport::ws::WsDialer;
use phalanx::transport::{Connection, Incoming};
use phalanx::validator::connections::CONNECTIONS_MAX;
use phalanx::validator::manifests::{AskOutcome, Fetched, Fetcher, MinerDialer};
use phalanx::validator::miner_client::{MinerClient, MinerEvent};
use phalanx::validator::{
    ConnectionsStatus, JobTimes, KeptConnections, MinerAddress, MinerConnections, Validator, ValidatorConfig,
};

use crate::testkit::fleet::{self, Conduct, Fleet};
use crate::testkit::roles::{FakeFacilitator, FakeMiner, MinerSession, Script, World, job, stop};
use crate::testkit::transport::connected;
use crate::testkit::wait::{LONG, until};

fn key(uri: &str) -> KeyPair {
    KeyPair::from_uri(uri).unwrap()
}

fn miner(port: u16) -> MinerAddress {
    let hotkey = key(&format!("//Miner{port}")).public();
    MinerAddress { hotkey, address: "127.0.0.1".to_owned(), port, trusted: false, tls: false }
}

fn finish(session: &MinerSession, uuid: &str) {
    session.say(V0VolumesReadyRequest { job_uuid: uuid.to_owned() });
    session.say(V0ExecutionDoneRequest { job_uuid: uuid.to_owned() });
    session.say(V0JobFinishedRequest {
        job_uuid: uuid.to_owned(),
        docker_process_stdout: "hi\n".to_owned(),
        docker_process_stderr: String::new(),
        artifacts: None,
        upload_results: None,
    });
}

/// A miner that does everything right, and then `after` at the finished-receipt.
fn good(after: impl Fn(&MinerSession) + Send + Sync + 'static) -> Script {
    Arc::new(move |session, message| match message {
        ValidatorToMiner::V0InitialJobRequest(initial) => {
            session.say(V0AcceptJobRequest { job_uuid: initial.job_uuid.clone() });
            session.say(V0ExecutorReadyRequest { job_uuid: initial.job_uuid, executor_token: None });
        }
        ValidatorToMiner::V0JobRequest(request) => finish(session, &request.job_uuid),
        ValidatorToMiner::V0JobFinishedReceiptRequest(_) => after(session),
        _ => {}
    })
}

/// A validator with one scripted miner.
struct Site {
    facilitator: FakeFacilitator,
    peer: FakeMiner,
    validator: Validator,
    world: World,
}

impl Site {
    fn new(script: Script, change: impl FnOnce(&mut ValidatorConfig)) -> Self {
        let world = World::new();
        let facilitator = FakeFacilitator::start(&world);
        let peer = FakeMiner::start(&world, 1, 4, script);
        let mut config = ValidatorConfig {
            trusted_signers: vec![key("//User").public()],
            drain_time: LONG,
            ..ValidatorConfig::new("ws://facilitator/ws/v0/", key("//Validator"), vec![miner(1)])
        };
        change(&mut config);
        let validator = Validator::start(config, Arc::new(world.net.dialer()), world.timer()).unwrap();
        Self { facilitator, peer, validator, world }
    }

    fn run(&self) -> JobStatus {
        let request = job(&key("//User"));
        self.facilitator.push(request.clone());
        self.facilitator.history(&request.uuid).last().unwrap().status
    }

    fn connections(&self) -> ConnectionsStatus {
        self.validator.observer().asked().unwrap().connections
    }

    /// Waits until no job has a connection.
    fn settled(&self) -> ConnectionsStatus {
        until("no connection to be in use", || self.connections().leased == 0);
        self.connections()
    }

    fn stop(self) -> Vec<&'static str> {
        let mut stopping = Stopping::alone();
        self.validator.stop_in(&mut stopping);
        assert!(stopping.finish().is_clean());
        let kinds = self.peer.received.try_iter().map(|message| match message {
            ValidatorToMiner::ValidatorAuthForMiner(_) => "auth",
            ValidatorToMiner::V0InitialJobRequest(_) => "initial",
            ValidatorToMiner::V0JobAcceptedReceiptRequest(_) => "accepted",
            ValidatorToMiner::V0JobRequest(_) => "job",
            ValidatorToMiner::V0JobFinishedReceiptRequest(_) => "finished",
            _ => "other",
        });
        let kinds = kinds.collect();
        self.peer.stop();
        self.facilitator.stop();
        drop(self.world);
        kinds
    }
}

const JOB: [&str; 4] = ["initial", "accepted", "job", "finished"];

#[test]
fn jobs_that_follow_one_another_share_a_connection() {
    let site = Site::new(good(|_| {}), |_| {});
    for _ in 0..3 {
        assert_eq!(site.run(), JobStatus::Completed);
        assert_eq!(site.settled().idle, 1);
    }
    let numbers = site.connections();
    assert_eq!((numbers.dialled, numbers.reused, numbers.ended), (1, 2, 0));
    // One to the facilitator.
    assert_eq!(site.world.net.dials(), 2);
    let kinds = site.stop();
    // The manifest answers each job's last authentication behind its receipt, and serves the next job.
    let of_jobs: Vec<_> = kinds.iter().copied().filter(|kind| *kind != "auth").collect();
    assert_eq!(of_jobs, [JOB, JOB, JOB].concat());
    let ends = kinds.windows(2).filter(|pair| pair[0] == "finished");
    assert!(ends.clone().count() == 3 && ends.clone().all(|pair| pair[1] == "auth"), "{kinds:?}");
}

#[test]
fn a_miner_that_goes_on_talking_is_dialled_anew() {
    let site = Site::new(good(|session| session.say(V0AcceptJobRequest { job_uuid: "another".to_owned() })), |_| {});
    for jobs in 1..=2 {
        assert_eq!(site.run(), JobStatus::Completed);
        let numbers = site.settled();
        assert_eq!((numbers.idle, numbers.dialled, numbers.reused), (0, jobs, 0));
    }
    site.stop();
}

#[test]
fn what_ends_uncleanly_is_not_kept() {
    // The miner says nothing to the request, and the job's time is over.
    let silent: Script = Arc::new(|_, _| {});
    let short = Duration::from_millis(50);
    let site = Site::new(silent, |config| {
        config.job_times = JobTimes { reservation: short, ..JobTimes::default() };
    });
    assert_eq!(site.run(), JobStatus::HordeFailed);
    assert_eq!((site.settled().idle, site.connections().dialled), (0, 1));
    site.stop();
    // A connection that was cut in the middle is another one at the end, and that one is not kept either.
    let cuts = AtomicUsize::new(0);
    let cutting: Script = Arc::new(move |session, message| match message {
        ValidatorToMiner::V0InitialJobRequest(_) if cuts.fetch_add(1, Ordering::SeqCst) == 0 => session.handle.kick(),
        message => good(|_| {})(session, message),
    });
    let site = Site::new(cutting, |_| {});
    assert_eq!(site.run(), JobStatus::Completed);
    assert_eq!((site.settled().idle, site.connections().dialled), (0, 1));
    assert!(site.stop().contains(&"finished"));
}

#[test]
fn a_miner_that_stops_is_let_go_and_found_again() {
    let mut site = Site::new(good(|_| {}), |_| {});
    assert_eq!(site.run(), JobStatus::Completed);
    assert_eq!(site.settled().idle, 1);
    // Its stop waits for the answer to its Close, which nobody but the watch can give.
    site.peer.stop();
    site.peer = FakeMiner::start(&site.world, 1, 4, good(|_| {}));
    assert_eq!(site.run(), JobStatus::Completed);
    let numbers = site.settled();
    assert_eq!((numbers.dialled, numbers.reused, numbers.ended), (2, 0, 1));
    site.stop();
}

#[test]
fn manifests_are_learnt_in_rounds_and_on_kept_connections() {
    let site = Site::new(good(|_| {}), |config| config.manifest_interval = Duration::from_millis(20));
    let asked = || site.validator.observer().asked().unwrap();
    until("three rounds", || asked().manifests.rounds >= 3);
    let status = asked();
    assert_eq!((status.manifests.outcomes["ok"], status.manifests.unknown, status.connections.dialled), (1, 0, 1));
    assert_eq!(site.run(), JobStatus::Completed);
    site.stop();
}

fn fetch(connections: &MinerConnections, miners: &[MinerAddress]) -> Vec<Fetched> {
    let connections = connections.clone();
    let mut fetcher = Fetcher::new(16, move |miner, until, stop| connections.ask(miner, until, stop));
    fetcher.fetch(miners, Instant::now() + LONG, &Shutdown::new())
}

#[test]
fn a_second_round_of_manifests_dials_nobody() {
    let world = World::new();
    let fleet = Fleet::start(world.timer());
    let miners: Vec<_> = (1..=40).map(|n| fleet.add(Conduct::Offers(n))).collect();
    let dialer = MinerDialer { key: fleet::validator(), dialer: Arc::new(WsDialer::default()), timer: world.timer() };
    let kept = KeptConnections::start(dialer, CONNECTIONS_MAX, &Default::default());
    for round in 1..=3 {
        let fetched = fetch(&kept.handle(), &miners);
        assert!(fetched.iter().all(|fetched| fetched.outcome == AskOutcome::Ok), "{fetched:#?}");
        assert_eq!(fleet.opened.load(Ordering::SeqCst), 40, "round {round}");
    }
    assert_eq!(kept.handle().status().idle, 40);
    assert!(stop(LONG, |step| kept.stop_in(step)).is_clean());
    until("the fleet to see that all have gone", || fleet.open() == 0);
    fleet.stop();
}

#[test]
fn no_more_connections_are_kept_than_the_limit() {
    let world = World::new();
    let fleet = Fleet::start(world.timer());
    let miners: Vec<_> = (1..=8).map(|n| fleet.add(Conduct::Offers(n))).collect();
    let dialer =
        || MinerDialer { key: fleet::validator(), dialer: Arc::new(WsDialer::default()), timer: world.timer() };
    for limit in [1, 3] {
        let kept = KeptConnections::start(dialer(), limit, &Default::default());
        fetch(&kept.handle(), &miners);
        let status = kept.handle().status();
        assert_eq!((status.idle, status.leased), (limit, 0));
        assert!(stop(LONG, |step| kept.stop_in(step)).is_clean());
    }
    fleet.stop();
}

/// The answer to the last question may come before the thread that asked has returned from its write.
#[test]
fn a_quick_answer_costs_no_connection() {
    let world = World::new();
    let fleet = Fleet::start(world.timer());
    let miner = fleet.add(Conduct::Offers(1));
    let dialer = MinerDialer { key: fleet::validator(), dialer: Arc::new(WsDialer::default()), timer: world.timer() };
    let kept = KeptConnections::start(dialer.clone(), CONNECTIONS_MAX, &Default::default());
    for number in 0..1000 {
        let mut lease = kept.handle().acquire(&miner, Instant::now() + LONG, &Shutdown::new()).unwrap();
        let client = MinerClient::start_on(&miner, &dialer, number, lease.take().unwrap());
        let next = || client.next(Instant::now() + LONG, &Shutdown::new()).unwrap();
        assert!(matches!((next(), next()), (MinerEvent::Ready, MinerEvent::Message(_))));
        let report = stop(LONG, |step| {
            let open = client.give_back(&miner, &dialer.key, step).unwrap_or_else(|| panic!("{number}: it is lost"));
            lease.give_back(open);
        });
        assert!(report.is_clean());
    }
    let numbers = kept.handle().status();
    assert_eq!((numbers.dialled, numbers.reused, numbers.ended), (1, 999, 0));
    assert!(stop(LONG, |step| kept.stop_in(step)).is_clean());
    fleet.stop();
}

/// An idle connection, watched, and its other end.
fn idle(tls: bool, world: &World) -> (IdleWatch, phalanx::transport::idle::IdleConnection, Connection) {
    let (client, server) = connected(tls);
    let watch = IdleWatch::start("t-idle", world.timer()).unwrap();
    let idle = watch.handle().keep(client);
    (watch, idle, server)
}

#[test]
fn an_idle_connection_answers_pings_and_serves_again() {
    for tls in [false, true] {
        let world = World::new();
        let (watch, idle, mut server) = idle(tls, &world);
        for _ in 0..3 {
            server.writer.ping().unwrap();
            server.writer.flush().unwrap();
            assert_eq!(server.reader.read().unwrap(), Incoming::Pong);
        }
        assert!(idle.is_open());
        let mut client = idle.take().unwrap();
        assert!(watch.handle().is_empty());
        client.writer.write("to".into()).unwrap();
        client.writer.flush().unwrap();
        assert_eq!(server.reader.read().unwrap(), Incoming::Text("to".into()));
        server.writer.write("fro".into()).unwrap();
        server.writer.flush().unwrap();
        assert_eq!(client.reader.read().unwrap(), Incoming::Text("fro".into()));
        assert!(stop(LONG, |step| watch.stop_in(step)).is_clean());
    }
}

#[test]
fn an_idle_connection_ends_with_its_peer_and_at_a_word_that_nobody_asked_for() {
    for tls in [false, true] {
        for word in [None, Some("news")] {
            let world = World::new();
            let (watch, idle, mut server) = idle(tls, &world);
            match word {
                Some(word) => {
                    server.writer.write(word.into()).unwrap();
                    server.writer.flush().unwrap();
                }
                None => server.writer.close(1000, "").unwrap(),
            }
            // In either case a Close comes, without anybody looking at the connection.
            assert!(matches!(server.reader.read().unwrap(), Incoming::Closed(info) if info.code == Some(1000)));
            until("it to be found", || !idle.is_open());
            assert!(idle.take().is_none() && watch.handle().is_empty());
            assert!(stop(LONG, |step| watch.stop_in(step)).is_clean());
        }
    }
}

/// No poll shows what a connection has read already.
#[test]
fn a_word_that_was_read_before_a_connection_was_idle_is_seen_too() {
    for tls in [false, true] {
        let world = World::new();
        let (mut client, mut server) = connected(tls);
        server.writer.write("asked".into()).unwrap();
        server.writer.write("unasked".into()).unwrap();
        server.writer.flush().unwrap();
        assert_eq!(client.reader.read().unwrap(), Incoming::Text("asked".into()));
        let watch = IdleWatch::start("t-idle", world.timer()).unwrap();
        let idle = watch.handle().keep(client);
        until("it to be found", || !idle.is_open());
        assert!(idle.take().is_none() && watch.handle().is_empty());
        assert!(stop(LONG, |step| watch.stop_in(step)).is_clean());
    }
}

/// One that pings without end holds up the others.
#[test]
fn a_peer_that_says_too_much_on_an_idle_connection_is_let_go() {
    let world = World::new();
    let (client, mut server) = connected(false);
    for _ in 0..100 {
        server.writer.ping().unwrap();
        server.writer.flush().unwrap();
    }
    let watch = IdleWatch::start("t-idle", world.timer()).unwrap();
    let idle = watch.handle().keep(client);
    assert!(!idle.is_open() && watch.handle().is_empty());
    assert!(stop(LONG, |step| watch.stop_in(step)).is_clean());
}

#[test]
fn dropping_an_idle_watch_stops_it_and_leaves_the_connections() {
    let group = Group::enter();
    let world = World::new();
    let (watch, idle, mut server) = idle(false, &world);
    drop(watch);
    assert!(!group.live().iter().any(|thread| thread.name == "t-idle"));
    idle.close();
    assert!(matches!(server.reader.read().unwrap(), Incoming::Closed(info) if info.code == Some(1000)));
}

#[test]
fn a_kept_connection_that_hangs_costs_the_proof_and_not_the_job() {
    let world = World::new();
    let peer = FakeMiner::start(&world, 1, 4, good(|_| {}));
    let dialer = MinerDialer { key: key("//Validator"), dialer: Arc::new(world.net.dialer()), timer: world.timer() };
    let kept = KeptConnections::start(dialer, CONNECTIONS_MAX, &Default::default());
    let (handle, stop_signal) = (kept.handle(), Shutdown::new());
    handle.ask(&miner(1), Instant::now() + LONG, &stop_signal).unwrap();
    // From now on nothing comes over it, not even its end.
    world.net.wires()[0].withhold(phalanx::transport::memory::Side::Listener);
    until("its last word to be old", || {
        let again = handle.ask(&miner(1), Instant::now() + LONG, &stop_signal);
        again.is_ok() && handle.status().dialled == 2
    });
    assert_eq!(handle.status().ended, 1);
    assert!(stop(LONG, |step| kept.stop_in(step)).is_clean());
    peer.stop();
    assert_eq!(stop_signal.level(), Level::Run);
}
