//! A miner over the in-memory transport, with scripted validators and executors and a back end that starts nothing.
//!
//! Every test ends with no thread of its own left; none waits for a time to pass.

use crate::testkit::miner as miner_kit;
use crate::testkit::roles::World;
use crate::testkit::wait::{LONG, until};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, select};
use miner_kit::{CLASS, Pen, Says, kind, unix, uuid};
use phalanx::base::shutdown::{Level, Shutdown};
use phalanx::base::stop::{StopReport, Stopping};
use phalanx::base::thread::{Kick, Thread, spawn};
use phalanx::miner::check::CheckPolicy;
use phalanx::miner::executor_manager::{ExecutorBackend, ExecutorEnd, ExecutorExit, ExecutorSpec};
use phalanx::miner::{DATABASE, Miner, MinerConfig, MinerError};
use phalanx::protocol::{MinerToValidator, ValidatorToMiner, Volume};
use phalanx::store::receipts::ReceiptStore;
use phalanx::transport::ws::{WsDialer, WsListener};
use phalanx::transport::{
    CloseInfo, Connection, ConnectionKick, DialRequest, Dialer, Incoming, Listener, SocketLimits, TransportError,
    WriteHalf,
};

/// An executor that the back end was asked for.
pub struct Started {
    pub spec: ExecutorSpec,
    /// Ends it by itself.
    pub exit: Sender<ExecutorEnd>,
}

/// Starts nothing; an executor lives until the test or the miner ends it.
pub struct FakeBackend {
    pub started: Sender<Started>,
    pub living: Arc<AtomicUsize>,
    /// Does not end when it is asked to, only when it is forced to.
    pub stubborn: bool,
}

impl ExecutorBackend for FakeBackend {
    fn run(&self, spec: &ExecutorSpec, stop: &Shutdown) -> ExecutorEnd {
        self.living.fetch_add(1, Ordering::SeqCst);
        let (exit, exits) = bounded(1);
        self.started.send(Started { spec: spec.clone(), exit }).unwrap();
        let end_signal = if self.stubborn { stop.cancel_receiver() } else { stop.drain_receiver() };
        let end = select! {
            recv(end_signal) -> _ => Ok(ExecutorExit::Signal(15)),
            recv(exits) -> end => match end {
                Ok(end) => end,
                // The test is not interested in this one any more.
                Err(_) => {
                    stop.wait_for(Level::Drain, LONG);
                    Ok(ExecutorExit::Signal(15))
                }
            },
        };
        self.living.fetch_sub(1, Ordering::SeqCst);
        end
    }
}

pub struct Fixture {
    pub miner: Option<Miner>,
    started: Receiver<Started>,
    living: Arc<AtomicUsize>,
    folder: tempfile::TempDir,
    pub alice: Pen,
    dialer: Box<dyn Dialer>,
    world: World,
}

/// How a miner is reached.
type Ends = (Box<dyn Listener>, Box<dyn Dialer>);

impl Fixture {
    pub fn new(slots: u32) -> Self {
        Self::with(slots, false, |_| {})
    }

    pub fn with(slots: u32, stubborn: bool, change: impl FnOnce(&mut MinerConfig)) -> Self {
        let world = World::new();
        let ends: Ends = (Box::new(world.net.listener("miner")), Box::new(world.net.dialer()));
        Self::on(world, ends, slots, stubborn, change)
    }

    /// Over loopback instead of memory.
    pub fn over_tcp(slots: u32, change: impl FnOnce(&mut MinerConfig)) -> Self {
        let listener = WsListener::bind("127.0.0.1:0", None).unwrap();
        let ends: Ends = (Box::new(listener), Box::new(WsDialer::default()));
        Self::on(World::new(), ends, slots, false, change)
    }

    fn on(
        world: World,
        (listener, dialer): Ends,
        slots: u32,
        stubborn: bool,
        change: impl FnOnce(&mut MinerConfig),
    ) -> Self {
        let (tx, started) = bounded(100);
        let living = Arc::new(AtomicUsize::new(0));
        let folder = tempfile::tempdir().unwrap();
        let alice = Pen::new("//Alice");
        let backend = Arc::new(FakeBackend { started: tx, living: living.clone(), stubborn });
        let mut config = MinerConfig::new(alice.miner.clone(), folder.path(), backend);
        config.validators = vec![alice.key.public()];
        config.executors = vec![(CLASS, slots)];
        change(&mut config);
        let miner = Miner::start(config, listener, world.timer()).unwrap();
        Self { miner: Some(miner), started, living, folder, alice, dialer, world }
    }

    pub fn dial(&self, path: &str) -> Result<Peer, TransportError> {
        self.connect(path).map(Peer::new)
    }

    /// A connection that nobody reads.
    pub fn connect(&self, path: &str) -> Result<Connection, TransportError> {
        let url = format!("{}/v0.1/{path}", self.miner.as_ref().map_or("ws://miner", Miner::url));
        let request =
            DialRequest { url: &url, headers: &[], limits: SocketLimits::default(), deadline: Instant::now() + LONG };
        self.dialer.dial(&request, &Shutdown::new(), Level::Cancel)
    }

    /// Where it is bound.
    pub fn address(&self) -> SocketAddr {
        self.miner.as_ref().unwrap().ws_addr().parse().unwrap()
    }

    pub fn metrics(&self) -> String {
        self.miner.as_ref().unwrap().observer().board().metrics.render()
    }

    /// An authenticated validator.
    pub fn validator(&self) -> Peer {
        let mut peer = self.dial(&format!("validator_interface/{}", self.alice.key.ss58())).unwrap();
        peer.say(&self.alice.auth(unix()));
        peer.expect("ExecutorManifest");
        peer
    }

    pub fn executor(&self, spec: &ExecutorSpec) -> Peer {
        self.dial(&format!("executor_interface/{}", spec.token)).unwrap()
    }

    pub fn started(&self) -> Started {
        self.started.recv_timeout(LONG).unwrap()
    }

    /// A job whose executor has the whole request.
    pub fn running(&self, validator: &mut Peer, job: &str) -> (Peer, Started) {
        validator.say(&self.alice.ask(job));
        validator.expect("AcceptJob");
        let started = self.started();
        let mut executor = self.executor(&started.spec);
        executor.expect("InitialJob");
        executor.say(&Says(job).ready());
        validator.expect("ExecutorReady");
        validator.say(&self.alice.request(job));
        executor.expect("Job");
        (executor, started)
    }

    /// Waits until the miner's numbers are as wanted; each event changes them, so each look follows an event of our
    /// own.
    pub fn until(&self, wanted: impl Fn(&phalanx::miner::MinerStatus) -> bool) {
        let miner = self.miner.as_ref().unwrap();
        until("the miner's numbers", || wanted(&miner.status()));
    }

    fn stop_with(&mut self, shutdown: &Shutdown) -> StopReport {
        let mut stopping = Stopping::new(shutdown);
        self.miner.take().unwrap().stop_in(&mut stopping);
        stopping.finish()
    }

    fn receipts(&self) -> Vec<String> {
        let store = ReceiptStore::open(&self.folder.path().join(DATABASE), 0).unwrap();
        store.since(0, 100).unwrap().into_iter().map(|row| row.kind).collect()
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        // The world, which is dropped next, finds the threads that are left.
        drop(self.miner.take());
        if !std::thread::panicking() {
            assert_eq!(self.living.load(Ordering::SeqCst), 0, "executors left behind");
        }
    }
}

/// The other end of a connection to the miner.
pub struct Peer {
    writer: Arc<Mutex<Box<dyn WriteHalf>>>,
    kick: ConnectionKick,
    inbox: Receiver<Result<String, Option<CloseInfo>>>,
    _reader: Thread<()>,
}

impl Peer {
    pub fn new(connection: Connection) -> Self {
        let Connection { mut reader, writer, kick, .. } = connection;
        let (tx, inbox) = bounded(10_000);
        let writer = Arc::new(Mutex::new(writer));
        let (kicked, answers) = (kick.clone(), writer.clone());
        let reader = spawn("t-peer", Kick::new("connection", move || kicked.kick()), move || {
            loop {
                let notified = match reader.read() {
                    Ok(Incoming::Text(text)) => Ok(text.to_string()),
                    Ok(Incoming::Closed(info)) => {
                        // The answer to a Close; the connection may be gone already.
                        drop(answers.lock().unwrap().flush());
                        Err(Some(info))
                    }
                    Ok(_) => continue,
                    Err(_) => Err(None),
                };
                let last = notified.is_err();
                // The test may have seen enough.
                if tx.send(notified).is_err() || last {
                    return;
                }
            }
        });
        Self { writer, kick, inbox, _reader: reader }
    }

    pub fn say(&mut self, text: &str) {
        self.try_say(text).unwrap();
    }

    pub fn try_say(&mut self, text: &str) -> Result<(), TransportError> {
        let mut writer = self.writer.lock().unwrap();
        writer.write(text.into()).and_then(|()| writer.flush())
    }

    pub fn next(&self) -> String {
        match self.inbox.recv_timeout(LONG) {
            Ok(Ok(text)) => text,
            other => panic!("expected a text, got {other:?}"),
        }
    }

    pub fn expect(&self, wanted: &str) {
        assert_eq!(kind(&self.next()), wanted);
    }

    /// How the miner ended the connection; texts before that are dropped.
    pub fn closed(&self) -> Option<u16> {
        loop {
            match self.inbox.recv_timeout(LONG).unwrap() {
                Ok(_) => {}
                Err(info) => return info.and_then(|info| info.code),
            }
        }
    }

    /// Ends the connection without a Close.
    pub fn disconnect(self) {
        self.kick.kick();
    }

    fn close(self) {
        // The miner may have been first.
        drop(self.writer.lock().unwrap().close(1000, ""));
        let _ = self.closed();
    }
}

#[test]
fn a_whole_job_is_run_and_its_receipts_are_on_disk() {
    let mut fixture = Fixture::new(1);
    let job = uuid();
    let mut validator = fixture.validator();
    let (mut executor, started) = fixture.running(&mut validator, &job);
    assert_eq!(started.spec.miner_address, "ws://miner");
    validator.say(&fixture.alice.accepted_receipt(&job));
    for (text, news) in [(Says(&job).volumes(), "VolumesReady"), (Says(&job).done(), "ExecutionDone")] {
        executor.say(&text);
        validator.expect(news);
    }
    let result = Says(&job).finished("hi");
    executor.say(&result);
    assert_eq!(validator.next(), result);
    validator.say(&fixture.alice.finished_receipt(&job));
    executor.close();
    started.exit.send(Ok(ExecutorExit::Code(0))).unwrap();
    fixture.until(|status| status.executors[0].1.free == 1 && status.ended == 0);
    let report = fixture.stop_with(&Shutdown::new());
    assert!(report.is_clean(), "{report}");
    assert_eq!(validator.closed(), Some(1001));
    assert_eq!(fixture.receipts(), ["JobStartedReceipt", "JobAcceptedReceipt", "JobFinishedReceipt"]);
}

#[test]
fn the_bound_address_of_a_real_listener_is_known_and_serves() {
    let mut fixture = Fixture::over_tcp(1, |_| {});
    let bound = fixture.address();
    let job = uuid();
    let mut validator = fixture.validator();
    validator.say(&fixture.alice.ask_streaming(&job));
    validator.expect("AcceptJob");
    let spec = fixture.started().spec;
    assert_eq!(spec.miner_address, format!("ws://{bound}"));
    let executor = fixture.executor(&spec);
    assert!(executor.next().contains(r#""executor_ip":"127.0.0.1""#));
    let shutdown = Shutdown::new();
    shutdown.cancel();
    assert!(fixture.stop_with(&shutdown).is_clean());
    validator.expect("HordeFailed generic_error");
    assert_eq!(validator.closed(), Some(1001));
}

#[test]
fn many_jobs_one_after_the_other_and_at_a_time() {
    let fixture = Fixture::new(4);
    let mut validator = fixture.validator();
    for _ in 0..8 {
        let jobs = [uuid(), uuid(), uuid(), uuid()];
        let mut running: Vec<_> = jobs.iter().map(|job| fixture.running(&mut validator, job)).collect();
        validator.say(&fixture.alice.ask(&uuid()));
        validator.expect("DeclineJob busy");
        for (job, (executor, _)) in jobs.iter().zip(&mut running) {
            executor.say(&Says(job).finished("x"));
            validator.expect("JobFinished");
            validator.say(&fixture.alice.finished_receipt(job));
        }
        for (executor, started) in running {
            executor.close();
            started.exit.send(Ok(ExecutorExit::Code(0))).unwrap();
        }
    }
    fixture.until(|status| status.executors[0].1.free == 4);
}

#[test]
fn a_large_volume_passes_to_the_executor_unchanged() {
    let fixture = Fixture::new(1);
    let job = uuid();
    let mut validator = fixture.validator();
    let mut initial = fixture.alice.initial(&job);
    let contents = "A".repeat(8 << 20);
    initial.volume = Some(Volume::Inline(phalanx::protocol::InlineVolume { contents, relative_path: None }));
    initial.sign(&fixture.alice.key);
    let text = ValidatorToMiner::from(initial).encode();
    validator.say(&text);
    validator.expect("AcceptJob");
    let executor = fixture.executor(&fixture.started().spec);
    assert!(executor.next() == text, "the request was changed on its way");
}

#[test]
fn other_paths_are_refused_in_the_handshake() {
    let fixture = Fixture::new(1);
    for path in ["nope/x", "validator_interface/", "validator_interface", "executor_interface/a/b"] {
        match fixture.dial(path) {
            Err(error) => assert_eq!(error.status(), Some(404), "{path}: {error}"),
            Ok(_) => panic!("{path} was accepted"),
        }
    }
    let peer = fixture.dial("executor_interface/nope").unwrap();
    peer.expect("! No job waiting for token nope");
    assert_eq!(peer.closed(), Some(1000));
    let peer = fixture.dial("validator_interface/5HGjWAeFDfFCWPsjFQdVV2Msvz2XtMktvgocEZcCj68kUMaw").unwrap();
    peer.expect("! Unknown validator: 5HGjWAeFDfFCWPsjFQdVV2Msvz2XtMktvgocEZcCj68kUMaw");
    assert_eq!(peer.closed(), Some(1000));
}

#[test]
fn a_validator_that_was_disconnected_gets_the_result_when_it_is_back() {
    let fixture = Fixture::new(1);
    let job = uuid();
    let mut validator = fixture.validator();
    let (mut executor, started) = fixture.running(&mut validator, &job);
    validator.disconnect();
    fixture.until(|status| status.validators == 0);
    executor.say(&Says(&job).volumes());
    executor.say(&Says(&job).finished("late"));
    executor.close();
    started.exit.send(Ok(ExecutorExit::Code(0))).unwrap();
    fixture.until(|status| status.executors[0].1.free == 1);
    let mut back = fixture.validator();
    back.expect("VolumesReady");
    assert_eq!(back.next(), Says(&job).finished("late"));
    back.say(&fixture.alice.finished_receipt(&job));
    fixture.until(|status| status.ended == 0);
}

#[test]
fn an_executor_that_was_disconnected_resumes_its_job() {
    let fixture = Fixture::new(1);
    let job = uuid();
    let mut validator = fixture.validator();
    let (mut executor, started) = fixture.running(&mut validator, &job);
    executor.say(&Says(&job).volumes());
    validator.expect("VolumesReady");
    executor.disconnect();
    fixture.until(|status| status.connected_executors == 0);
    let half_open = fixture.executor(&started.spec);
    fixture.until(|status| status.connected_executors == 1);
    // It comes back once more, before anybody has noticed the end of its connection.
    let mut executor = fixture.executor(&started.spec);
    assert_eq!(half_open.closed(), Some(1000));
    executor.say(&Says(&job).finished("after all"));
    validator.expect("JobFinished");
    // It may come to learn that its last message has arrived, and is closed once its time to exit is over.
    let late = fixture.executor(&started.spec);
    assert_eq!(late.closed(), Some(1000));
}

#[test]
fn an_executor_that_ends_at_any_stage_is_reported() {
    let fixture = Fixture::new(1);
    let mut validator = fixture.validator();
    // Before it connected, connected, ready, running, after a stage.
    for stage in 0..5 {
        let job = uuid();
        validator.say(&fixture.alice.ask(&job));
        validator.expect("AcceptJob");
        let started = fixture.started();
        let mut executor = (stage > 0).then(|| fixture.executor(&started.spec));
        if let Some(executor) = &mut executor {
            executor.expect("InitialJob");
        }
        if let Some(executor) = executor.as_mut().filter(|_| stage > 1) {
            executor.say(&Says(&job).ready());
            validator.expect("ExecutorReady");
        }
        if let Some(executor) = executor.as_mut().filter(|_| stage > 2) {
            validator.say(&fixture.alice.request(&job));
            executor.expect("Job");
        }
        if let Some(executor) = executor.as_mut().filter(|_| stage > 3) {
            executor.say(&Says(&job).volumes());
            validator.expect("VolumesReady");
        }
        started.exit.send(Ok(ExecutorExit::Code(7))).unwrap();
        if let Some(executor) = executor {
            executor.disconnect();
        }
        let text = validator.next();
        let reason = if stage < 2 { "executor_spinup_failed" } else { "executor_disconnected" };
        assert_eq!(kind(&text), format!("HordeFailed {reason}"), "stage {stage}");
        assert!(text.contains("exit code 7") && text.contains(r#""reported_by":"miner""#), "{text}");
        validator.say(&fixture.alice.finished_receipt(&job));
        fixture.until(|status| status.executors[0].1.free == 1 && status.ended == 0);
    }
}

#[test]
fn a_back_end_that_panics_fails_the_job_and_frees_the_slot() {
    struct Panics;
    impl ExecutorBackend for Panics {
        fn run(&self, _: &ExecutorSpec, _: &Shutdown) -> ExecutorEnd {
            panic!("no executors today");
        }
    }
    let fixture = Fixture::with(1, false, |config| config.backend = Arc::new(Panics));
    let mut validator = fixture.validator();
    for _ in 0..2 {
        validator.say(&fixture.alice.ask(&uuid()));
        validator.expect("AcceptJob");
        let text = validator.next();
        assert_eq!(kind(&text), "HordeFailed executor_spinup_failed");
        assert!(text.contains("no executors today"), "{text}");
    }
}

#[test]
fn receipts_survive_a_restart_and_their_jobs_are_not_started_again() {
    let mut fixture = Fixture::new(1);
    let job = uuid();
    let mut validator = fixture.validator();
    validator.say(&fixture.alice.ask(&job));
    validator.expect("AcceptJob");
    // Dropped without a stop, as after a crash.
    drop(fixture.miner.take());
    let (tx, started) = bounded(1);
    let backend = Arc::new(FakeBackend { started: tx, living: fixture.living.clone(), stubborn: false });
    let mut config = MinerConfig::new(fixture.alice.miner.clone(), fixture.folder.path(), backend);
    config.validators = vec![fixture.alice.key.public()];
    config.executors = vec![(CLASS, 1)];
    let timer = fixture.world.timer();
    fixture.miner = Some(Miner::start(config, Box::new(fixture.world.net.listener("miner")), timer).unwrap());
    let mut validator = fixture.validator();
    // What became of it is told to whoever comes back, and again to whoever asks again.
    for again in [false, true] {
        if again {
            validator.say(&fixture.alice.ask(&job));
        }
        validator.expect("AcceptJob");
        validator.expect("HordeFailed generic_error");
    }
    validator.say(&fixture.alice.finished_receipt(&job));
    fixture.until(|status| status.ended == 0 && status.epoch == 2);
    let another = fixture.validator();
    another.kick.kick();
    assert_eq!(fixture.receipts(), ["JobStartedReceipt", "JobFinishedReceipt"]);
    assert!(matches!(started.recv_timeout(Duration::ZERO), Err(RecvTimeoutError::Timeout)));
}

#[test]
fn an_idle_miner_stops_at_once() {
    let mut fixture = Fixture::new(1);
    let validator = fixture.validator();
    let report = fixture.stop_with(&Shutdown::new());
    assert!(report.is_clean(), "{report}");
    assert_eq!(report.cancelled_jobs, 0);
    assert_eq!(validator.closed(), Some(1001));
    assert!(fixture.dial("executor_interface/x").is_err(), "it still accepts");
}

#[test]
fn a_stop_waits_for_running_jobs_and_takes_no_new_ones() {
    let mut fixture = Fixture::new(2);
    let job = uuid();
    let mut validator = fixture.validator();
    let (mut executor, started) = fixture.running(&mut validator, &job);
    let miner = fixture.miner.take().unwrap();
    let stopping = spawn("t-stop", Kick::dropped("the end of the job"), move || {
        let mut stopping = Stopping::alone();
        miner.stop_in(&mut stopping);
        stopping.finish()
    });
    // Which of the two comes first, the request or the stop, is not ours to say; in the end it is declined.
    loop {
        validator.say(&fixture.alice.ask(&uuid()));
        match kind(&validator.next()).as_str() {
            "AcceptJob" => {
                let started = fixture.started();
                started.exit.send(Ok(ExecutorExit::Code(1))).unwrap();
                validator.expect("HordeFailed executor_spinup_failed");
            }
            other => {
                assert_eq!(other, "DeclineJob busy");
                break;
            }
        }
    }
    assert!(!stopping.is_finished());
    executor.say(&Says(&job).finished("in time"));
    validator.expect("JobFinished");
    executor.close();
    // Without a job left, the stop may have ended it already.
    drop(started.exit.send(Ok(ExecutorExit::Code(0))));
    let report = stopping.join_by(Instant::now() + LONG).unwrap();
    assert!(report.is_clean(), "{report}");
    assert_eq!(report.cancelled_jobs, 0);
}

#[test]
fn a_cancelled_stop_ends_executors_and_notifies_validators() {
    for stubborn in [false, true] {
        let mut fixture = Fixture::with(2, stubborn, |_| {});
        let mut validator = fixture.validator();
        let (executor, _started) = fixture.running(&mut validator, &uuid());
        let shutdown = Shutdown::new();
        shutdown.cancel();
        let report = fixture.stop_with(&shutdown);
        assert!(report.is_clean(), "{report}");
        assert_eq!(report.cancelled_jobs, 1);
        assert_eq!(fixture.living.load(Ordering::SeqCst), 0);
        let text = validator.next();
        assert_eq!(kind(&text), "HordeFailed generic_error");
        assert!(text.contains("the miner is stopping"), "{text}");
        assert_eq!(validator.closed(), Some(1001));
        drop(executor);
    }
}

#[test]
fn dropping_a_miner_stops_it() {
    let mut fixture = Fixture::with(1, true, |_| {});
    let mut validator = fixture.validator();
    let (_executor, _started) = fixture.running(&mut validator, &uuid());
    drop(fixture.miner.take());
    assert_eq!(fixture.living.load(Ordering::SeqCst), 0);
}

#[test]
fn a_wrong_configuration_says_all_that_is_wrong() {
    let fixture = Fixture::new(1);
    let (tx, _started) = bounded(1);
    let backend = Arc::new(FakeBackend { started: tx, living: fixture.living.clone(), stubborn: false });
    let mut config = MinerConfig::new(fixture.alice.miner.clone(), fixture.folder.path(), backend);
    config.blacklist = vec![fixture.alice.key.public()];
    config.executor_address = Some("10.0.0.5:9101".to_owned());
    let timer = fixture.world.timer();
    let error = Miner::start(config, Box::new(fixture.world.net.listener("other")), timer).unwrap_err();
    let MinerError::Config(problems) = &error else { panic!("{error}") };
    assert_eq!(problems.len(), 4, "{problems:?}");
    let shown = error.to_string();
    for part in ["validators is empty", "blacklist: 5Grwva", "executors is empty", "should be like ws://"] {
        assert!(shown.contains(part), "{shown}");
    }
}

#[test]
fn a_manifest_names_every_class_on_offer() {
    let fixture = Fixture::with(2, false, |config| {
        config.executors.push((phalanx::protocol::ExecutorClass::AlwaysOnGpu24gb, 1));
        config.executors.push((CLASS, 1));
    });
    let mut peer = fixture.dial(&format!("validator_interface/{}", fixture.alice.key.ss58())).unwrap();
    peer.say(&fixture.alice.auth(unix()));
    let text = peer.next();
    let MinerToValidator::V0ExecutorManifestRequest(manifest) = MinerToValidator::decode(&text).unwrap() else {
        panic!("{text}");
    };
    let counts: Vec<_> =
        manifest.manifest.iter().map(|(class, count)| (class.as_str(), count.saturating_i64())).collect();
    assert_eq!(counts, [("always_on.gpu-24gb", 1), ("always_on.test", 3)]);
}

/// Starts executors as another back end, whose engine is what the test says.
struct Sick {
    backend: Arc<dyn ExecutorBackend>,
    engine: Mutex<Result<String, String>>,
    asked: AtomicUsize,
}

impl ExecutorBackend for Sick {
    fn run(&self, spec: &ExecutorSpec, stop: &Shutdown) -> ExecutorEnd {
        self.backend.run(spec, stop)
    }

    fn check(&self, _stop: &Shutdown, _deadline: Instant) -> Result<String, String> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        self.engine.lock().unwrap().clone()
    }
}

#[test]
fn without_an_engine_nothing_is_offered_and_no_job_is_taken_until_it_is_back() {
    let mut sick = None;
    let fixture = Fixture::with(1, false, |config| {
        let engine = Mutex::new(Err("no engine answers".to_owned()));
        let backend = Arc::new(Sick { backend: config.backend.clone(), engine, asked: AtomicUsize::new(0) });
        sick = Some(backend.clone());
        config.backend = backend;
        let moment = Duration::from_millis(5);
        config.limits.checks = CheckPolicy { interval: moment, retry: moment, failures: 2, ..CheckPolicy::default() };
    });
    let sick = sick.unwrap();
    let say = |engine: Result<&str, &str>| {
        *sick.engine.lock().unwrap() = engine.map(str::to_owned).map_err(str::to_owned);
    };
    let offered = || {
        let mut peer = fixture.dial(&format!("validator_interface/{}", fixture.alice.key.ss58())).unwrap();
        peer.say(&fixture.alice.auth(unix()));
        let text = peer.next();
        match MinerToValidator::decode(&text).unwrap() {
            MinerToValidator::V0ExecutorManifestRequest(manifest) => (manifest.manifest.len(), peer),
            _ => panic!("{text}"),
        }
    };
    let status = fixture.miner.as_ref().unwrap().status();
    assert_eq!(status.engine_trouble.as_deref(), Some("no engine answers"), "asked before anybody connects");
    let (classes, mut early) = offered();
    assert_eq!(classes, 0);
    early.say(&fixture.alice.ask(&uuid()));
    early.expect("DeclineJob busy");

    say(Ok("in boxes"));
    fixture.until(|status| status.engine_trouble.is_none() && status.jobs_run == "in boxes");
    assert_eq!(offered().0, 1);
    let (_executor, _started) = fixture.running(&mut early, &uuid());

    // A job that runs is not touched.
    say(Err("gone"));
    fixture.until(|status| status.engine_trouble.as_deref() == Some("gone"));
    assert_eq!(offered().0, 0);
    assert_eq!(fixture.miner.as_ref().unwrap().status().jobs, 1);
    let asked = sick.asked.load(Ordering::SeqCst);
    until("it is asked again", || sick.asked.load(Ordering::SeqCst) > asked);
}

/// An engine that never answers: what asks it waits until it is stopped.
struct Silent;

impl ExecutorBackend for Silent {
    fn run(&self, _spec: &ExecutorSpec, _stop: &Shutdown) -> ExecutorEnd {
        Ok(ExecutorExit::Unknown)
    }

    fn check(&self, stop: &Shutdown, deadline: Instant) -> Result<String, String> {
        stop.wait_for(Level::Cancel, deadline.saturating_duration_since(Instant::now()));
        Err("no answer".to_owned())
    }
}

#[test]
fn an_engine_that_does_not_answer_holds_up_neither_the_start_nor_the_stop() {
    let fixture = Fixture::with(1, false, |config| {
        config.backend = Arc::new(Silent);
        let (moment, long) = (Duration::from_millis(5), 100 * LONG);
        config.limits.checks = CheckPolicy { interval: moment, retry: moment, limit: moment, ..CheckPolicy::default() };
        config.limits.drain_time = long;
    });
    fixture.until(|status| status.engine_trouble.as_deref() == Some("no answer"));
    // The fixture's drop stops the miner and finds the threads that are left.
}

#[test]
fn the_version_is_told_by_plain_http_on_the_same_port() {
    use crate::testkit::transport::{raw_client, read_head};
    use std::io::{Read, Write};
    let fixture = Fixture::over_tcp(1, |_| {});
    for (path, status) in [("/version", 200), ("/version/?x", 200), ("/versions", 426), ("/v0.1/x/y", 426)] {
        let mut client = raw_client(fixture.address());
        write!(client, "GET {path} HTTP/1.1\r\nHost: h\r\n\r\n").unwrap();
        let head = read_head(&mut client);
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{path}: {head}");
        let mut body = String::new();
        client.read_to_string(&mut body).unwrap();
        if status == 200 {
            assert!(head.contains("application/json"), "{head}");
            let version = env!("CARGO_PKG_VERSION");
            let page: serde_json::Value = serde_json::from_str(&body).unwrap();
            assert_eq!(page, serde_json::json!({"miner_version": version, "runner_version": version}));
        }
    }
}

#[test]
fn what_an_executor_left_in_the_spool_is_delivered_when_it_ends() {
    let fixture = Fixture::new(1);
    let job = uuid();
    let mut validator = fixture.validator();
    let (mut executor, started) = fixture.running(&mut validator, &job);
    executor.say(&Says(&job).volumes());
    validator.expect("VolumesReady");
    executor.disconnect();
    fixture.until(|status| status.connected_executors == 0);
    let spool = phalanx::store::spool::Spool::new(fixture.folder.path().join(phalanx::miner::SPOOL));
    let said = [Says(&job).ready(), Says(&job).volumes(), Says(&job).done(), Says(&job).finished("kept")];
    let token = started.spec.token.clone();
    spool.keep(&phalanx::store::spool::Spooled { token, messages: said.to_vec() }).unwrap();
    started.exit.send(Ok(ExecutorExit::Code(5))).unwrap();
    validator.expect("ExecutionDone");
    validator.expect("JobFinished");
    spool.take(|left| panic!("{left:?}")).unwrap();
}
