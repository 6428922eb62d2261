//! Whole jobs over connections that are cut at any byte, on either leg: a cut costs nothing. Validator, miner and
//! executor are real, over TCP; the proxies between them cut.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use phalanx::base::rng::Rng;
use phalanx::base::shutdown::Shutdown;
use phalanx::base::stop::Stopping;
use phalanx::base::thread::{Kick, spawn};
use phalanx::base::timer::TimerHandle;
use phalanx::executor::{self, ExecutorConfig, JobEnd, RunnerKind};
use phalanx::identity::KeyPair;
use phalanx::miner::executor_manager::{ExecutorBackend, ExecutorEnd, ExecutorExit, ExecutorSpec};
use phalanx::miner::{DATABASE, Miner, MinerConfig};
use phalanx::protocol::{ExecutorClass, JobStatus, SignedRequest};
use phalanx::store::receipts::ReceiptStore;
use phalanx::transport::Listener;
use phalanx::transport::ws::{WsDialer, WsListener};
use phalanx::validator::{MinerAddress, Validator, ValidatorConfig};

use crate::testkit::cutting::CuttingProxy;
use crate::testkit::roles::{FakeFacilitator, World, job, now_ns, statuses};
use crate::testkit::wait::{far, until};

/// Cuts of an everyday run; `PHALANX_TEST_CUTS` asks for more.
const CUTS: usize = 30;

/// Executors in this process. What each told of its end is kept.
struct HereBackend {
    timer: TimerHandle,
    ended: Arc<Mutex<Vec<(JobEnd, usize)>>>,
}

impl ExecutorBackend for HereBackend {
    fn run(&self, spec: &ExecutorSpec, stop: &Shutdown) -> ExecutorEnd {
        let mut config = ExecutorConfig::new(&spec.miner_address, &spec.token);
        config.runner = RunnerKind::Process;
        let dialer = Arc::new(WsDialer::default());
        match executor::run(config, dialer, self.timer.clone(), stop) {
            Ok(report) => {
                self.ended.lock().unwrap().push((report.end, report.stop.unsent));
                Ok(ExecutorExit::Code(0))
            }
            Err(error) => panic!("job {}: {error}", spec.job_uuid),
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Leg {
    Validator,
    Executor,
}

/// All four roles, with a proxy before the miner on each leg.
struct Scene {
    to_miner: CuttingProxy,
    to_executor: CuttingProxy,
    validator: Validator,
    miner: Miner,
    facilitator: FakeFacilitator,
    user: KeyPair,
    folder: tempfile::TempDir,
    ended: Arc<Mutex<Vec<(JobEnd, usize)>>>,
    // The last to go: it finds the threads that are left.
    _world: World,
}

impl Scene {
    fn new() -> Self {
        let world = World::new();
        let facilitator_listener = WsListener::bind("127.0.0.1:0", None).unwrap();
        let facilitator_url = format!("{}/ws/v0/", facilitator_listener.url());
        let facilitator = FakeFacilitator::start_on(&world, Box::new(facilitator_listener));
        let [user, validator_key, miner_key] =
            ["//User", "//Alice", "//Bob"].map(|uri| KeyPair::from_uri(uri).unwrap());

        let listener = WsListener::bind("127.0.0.1:0", None).unwrap();
        let to_miner = CuttingProxy::start(listener.local_addr());
        let to_executor = CuttingProxy::start(listener.local_addr());
        let folder = tempfile::tempdir().unwrap();
        let ended = Arc::new(Mutex::new(Vec::new()));
        let backend = HereBackend { timer: world.timer(), ended: ended.clone() };
        let config = MinerConfig {
            validators: vec![validator_key.public()],
            // The one of the job before may still be ending.
            executors: vec![(ExecutorClass::AlwaysOnTest, 2)],
            executor_address: Some(format!("ws://{}", to_executor.address)),
            ..MinerConfig::new(miner_key.clone(), folder.path(), Arc::new(backend))
        };
        let miner = Miner::start(config, Box::new(listener), world.timer()).unwrap();

        let SocketAddr::V4(address) = to_miner.address else { unreachable!() };
        let miner_address = MinerAddress {
            hotkey: miner_key.public(),
            address: address.ip().to_string(),
            port: address.port(),
            trusted: false,
            tls: false,
        };
        let config = ValidatorConfig {
            trusted_signers: vec![user.public()],
            ..ValidatorConfig::new(&facilitator_url, validator_key, vec![miner_address])
        };
        let validator = Validator::start(config, Arc::new(WsDialer::default()), world.timer()).unwrap();
        Self { to_miner, to_executor, validator, miner, facilitator, user, folder, ended, _world: world }
    }

    fn proxy(&self, leg: Leg) -> &CuttingProxy {
        match leg {
            Leg::Validator => &self.to_miner,
            Leg::Executor => &self.to_executor,
        }
    }

    /// Runs a job, which has to end well, each message of it once, with nothing left of it; gives the bytes that it
    /// took on each leg.
    fn job(&self, shown: &str) -> [u64; 2] {
        let bytes = || [self.to_miner.bytes(), self.to_executor.bytes()];
        let before = bytes();
        let mut request = job(&self.user);
        request.args = ["sh", "-c", "echo out; echo a > artifacts/x"].map(str::to_owned).to_vec();
        request.artifacts_dir = Some("/artifacts".to_owned());
        request.sign(&self.user, now_ns());
        let uuid = request.uuid.clone();
        self.facilitator.push(request);
        let history = self.facilitator.history(&uuid);
        let last = history.last().unwrap();
        assert_eq!(last.status, JobStatus::Completed, "{shown}: {last:?}");
        use JobStatus as S;
        let all = [S::Received, S::Accepted, S::ExecutorReady, S::VolumesReady, S::ExecutionDone, S::Completed];
        assert_eq!(statuses(&history), all, "{shown}");
        // Neither the miner's receipts nor the executor's word of the end are lost, and nothing is kept for nobody.
        until("the miner has let go of the job", || {
            let status = self.miner.status();
            status.jobs == 0 && status.ended == 0
        });
        let ended = std::mem::take(&mut *self.ended.lock().unwrap());
        assert_eq!(ended, [(JobEnd::Finished, 0)], "{shown}");
        let store = ReceiptStore::open(&self.folder.path().join(DATABASE), 0).unwrap();
        until(&format!("{shown}: three receipts"), || {
            store.since(0, 100_000).unwrap().iter().filter(|row| row.job_uuid == uuid).count() == 3
        });
        let after = bytes();
        [after[0] - before[0], after[1] - before[1]]
    }

    fn cuts(&self) -> usize {
        self.to_miner.cuts() + self.to_executor.cuts()
    }

    fn stop(self) {
        let Self { to_miner, to_executor, validator, miner, facilitator, .. } = self;
        let mut stopping = Stopping::alone();
        validator.stop_in(&mut stopping);
        miner.stop_in(&mut stopping);
        let report = stopping.finish();
        assert!(report.is_clean(), "{report}");
        drop((to_miner, to_executor));
        facilitator.stop();
    }
}

#[test]
fn a_cut_at_any_byte_of_either_leg_costs_nothing() {
    let cuts = std::env::var("PHALANX_TEST_CUTS").map_or(CUTS, |n| n.parse().expect("PHALANX_TEST_CUTS: a number"));
    let seed = std::env::var("PHALANX_TEST_SEED")
        .map_or_else(|_| Rng::from_entropy().next_u64(), |n| n.parse().expect("PHALANX_TEST_SEED: a number"));
    println!("seed {seed}");
    let mut rng = Rng::new(seed);
    let scene = Scene::new();
    // How many bytes a job has on each leg, where its validator does not dial.
    scene.job("that dials");
    let sizes = scene.job("without a cut");
    println!("bytes of a job: {} to the validator, {} to the executor", sizes[0], sizes[1]);
    for run in 1..=cuts {
        let leg = if rng.one_in(2) { Leg::Validator } else { Leg::Executor };
        let size = sizes[leg as usize];
        let outage = Duration::from_millis([0, 50, 400][(rng.next_u64() % 3) as usize]);
        let at = rng.next_u64() % size;
        scene.proxy(leg).cut_after(at, outage);
        scene.job(&format!("seed {seed}, run {run}: {leg:?} cut at byte {at} of {size} for {outage:?}"));
        scene.proxy(leg).leave();
    }
    let happened = scene.cuts();
    println!("{happened} cuts in {cuts} jobs");
    assert!(happened * 2 > cuts, "of {cuts} cuts only {happened} came before the end of their job, seed {seed}");
    scene.stop();
}

#[test]
fn ten_seconds_without_a_leg_cost_nothing() {
    let outage = Duration::from_secs(10);
    // Where, in hundredths of the bytes of a job. The last of them on the validator's leg are the question by which it
    // keeps its connection, which no job needs. An executor has 5 s to be ready, by a limit of validators, so its leg
    // is cut only once it is.
    let cuts = [(Leg::Validator, &[0, 30, 60, 70][..]), (Leg::Executor, &[60, 75, 90])];
    let cuts = cuts.into_iter().flat_map(|(leg, parts)| parts.iter().map(move |part| (leg, *part)));
    let scenes: Vec<_> = cuts
        .map(|(leg, part)| {
            spawn(format!("t-out-{part}"), Kick::dropped("the outage"), move || {
                let scene = Scene::new();
                scene.job("that dials");
                let size = scene.job("without a cut")[leg as usize];
                let (at, began) = (size * part / 100, Instant::now());
                scene.proxy(leg).cut_after(at, outage);
                scene.job(&format!("{leg:?} cut at byte {at} of {size} for {outage:?}"));
                assert_eq!(scene.cuts(), 1);
                assert!(began.elapsed() >= outage, "{leg:?}, byte {at}: it did not need what was cut");
                scene.stop();
            })
        })
        .collect();
    scenes.into_iter().for_each(|scene| scene.join_by(far()).unwrap());
}
