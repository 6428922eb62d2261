//! The figures of a miner and its executors in `docs/performance.md`: time from a job's initial request to its ready
//! executor, a container that does nothing beside `docker run` of the same, 64 jobs at once, memory for each executor
//! that is connected and idle.
//!
//! A validator in this process on one connection to one miner; each executor is a process of the `phalanx` binary
//! beside this example. Run it with `make bench/miner`; it needs the Docker Engine and a static busybox.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use phalanx::base::shutdown::{Level, Shutdown};
use phalanx::base::stop::Stopping;
use phalanx::base::timer::Timer;
use phalanx::identity::KeyPair;
use phalanx::miner::executor_manager::{ExecutorBackend, ExecutorEnd, ExecutorExit, ExecutorSpec};
use phalanx::miner::{ExecutorSettings, Miner, MinerConfig, ProcessBackend};
use phalanx::proc::docker::Docker;
use phalanx::protocol::{
    DateTime, DockerRunOptionsPreset, ExecutorClass, ExecutorTimingDetails, JobStartedReceiptPayload, MinerToValidator,
    StrMap, V0InitialJobRequest, V0JobRequest,
};
use phalanx::transport::ws::{WsDialer, WsListener};
use phalanx::transport::{ClientTls, DialRequest, Dialer, SocketLimits};
use phalanx::validator::MinerAddress;
use phalanx::validator::miner_client::{MinerClient, MinerEvent};

const CLASS: ExecutorClass = ExecutorClass::AlwaysOnTest;
const IMAGE: &str = "phalanx-bench-busybox:1";
/// Executors for the jobs that are run.
const SLOTS: u32 = 64;
const ROUNDS: usize = 40;
/// Executors that are connected and idle.
const IDLE: u32 = 1000;
const LONG: Duration = Duration::from_secs(120);

/// What a validator hears of one job, and when.
#[derive(Default)]
struct Heard {
    ready: Option<Duration>,
    finished: Option<Duration>,
}

/// A validator on one connection.
struct Validator {
    key: KeyPair,
    miner: KeyPair,
    client: MinerClient,
}

impl Validator {
    fn connect(miner: &str, key: KeyPair, hotkey: KeyPair, timer: &Timer) -> Self {
        let (host, port) = miner.rsplit_once(':').expect("it is host:port");
        let port = port.parse().expect("it is a number");
        let address =
            MinerAddress { hotkey: hotkey.public(), address: host.to_owned(), port, tls: false, trusted: false };
        let dialer = Arc::new(WsDialer::new(ClientTls::public()));
        let client = MinerClient::start(&address, &key, dialer, timer.handle(), 0);
        let validator = Self { key, miner: hotkey, client };
        let first = validator.client.next(Instant::now() + LONG, &Shutdown::new());
        assert!(matches!(first, Ok(MinerEvent::Ready)), "the miner takes us: {first:?}");
        validator
    }

    fn ask(&self) -> String {
        let uuid = uuid::Uuid::new_v4().to_string();
        let payload = JobStartedReceiptPayload {
            job_uuid: uuid.clone(),
            miner_hotkey: self.miner.ss58(),
            validator_hotkey: self.key.ss58(),
            timestamp: DateTime::from(SystemTime::now()),
            executor_class: CLASS,
            is_organic: true,
            ttl: 30,
        };
        let limit = || 60.into();
        let mut request = V0InitialJobRequest {
            validator_signature: None,
            job_uuid: uuid.clone(),
            executor_class: CLASS,
            docker_image: Some(IMAGE.to_owned()),
            timeout_seconds: None,
            volume: None,
            job_started_receipt_signature: payload.sign(&self.key),
            job_started_receipt_payload: payload,
            streaming_details: None,
            executor_timing: Some(ExecutorTimingDetails {
                allowed_leeway: limit(),
                download_time_limit: limit(),
                execution_time_limit: limit(),
                upload_time_limit: limit(),
                streaming_start_time_limit: limit(),
            }),
        };
        request.sign(&self.key);
        self.client.send(request).expect("there is room");
        uuid
    }

    fn request(&self, uuid: &str) {
        let mut request = V0JobRequest {
            validator_signature: None,
            job_uuid: uuid.to_owned(),
            executor_class: CLASS,
            docker_image: IMAGE.to_owned(),
            raw_script: None,
            docker_run_options_preset: DockerRunOptionsPreset::None,
            docker_run_cmd: vec!["true".to_owned()],
            env: StrMap::new(),
            volume: None,
            output_upload: None,
            artifacts_dir: None,
        };
        request.sign(&self.key);
        self.client.send(request).expect("there is room");
    }

    /// Runs so many jobs side by side and gives the times of each since the first was asked for.
    fn run(&self, jobs: usize) -> Vec<Heard> {
        let begun = Instant::now();
        let mut heard: HashMap<String, Heard> = (0..jobs).map(|_| (self.ask(), Heard::default())).collect();
        let mut open = jobs;
        while open > 0 {
            let event = self.client.next(begun + LONG, &Shutdown::new()).expect("every job ends");
            let MinerEvent::Message(message) = event else { panic!("the link is lost: {event:?}") };
            match *message {
                MinerToValidator::V0ExecutorReadyRequest(news) => {
                    heard.get_mut(&news.job_uuid).expect("we asked for it").ready = Some(begun.elapsed());
                    self.request(&news.job_uuid);
                }
                MinerToValidator::V0JobFinishedRequest(news) => {
                    heard.get_mut(&news.job_uuid).expect("we asked for it").finished = Some(begun.elapsed());
                    open -= 1;
                }
                MinerToValidator::V0AcceptJobRequest(_)
                | MinerToValidator::V0VolumesReadyRequest(_)
                | MinerToValidator::V0ExecutionDoneRequest(_)
                | MinerToValidator::V0MachineSpecsRequest(_)
                | MinerToValidator::V0ExecutorManifestRequest(_) => {}
                other => panic!("{}", other.encode()),
            }
        }
        heard.into_values().collect()
    }
}

fn quantile(times: &mut [Duration], q: f64) -> f64 {
    times.sort();
    times[((times.len() - 1) as f64 * q).round() as usize].as_secs_f64() * 1e3
}

fn binary() -> PathBuf {
    let example = std::env::current_exe().expect("the system knows this program");
    example.parent().and_then(Path::parent).expect("examples lie two folders down").join("phalanx")
}

/// An image of a static busybox, which goes when this is dropped.
struct Image(Docker);

impl Image {
    fn make() -> Self {
        let docker = Docker { time: LONG, ..Docker::default() };
        let files = tempfile::tempdir().expect("a temporary folder");
        let busybox = ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|path| Path::new(path).exists());
        let busybox = busybox.expect("a static busybox (apt-get install busybox-static)");
        let bin = files.path().join("bin");
        std::fs::create_dir(&bin).expect("the folder is ours");
        std::fs::copy(busybox, bin.join("true")).expect("the folder is ours");
        docker.import(files.path(), IMAGE, None, &Shutdown::new(), Instant::now() + LONG).expect("the engine takes it");
        Self(docker)
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let removed = Command::new(&self.0.program).args(["image", "rm", IMAGE]).stdout(Stdio::null()).status();
        assert!(removed.is_ok_and(|status| status.success()), "image {IMAGE} is left behind");
    }
}

fn docker_run() -> Command {
    let mut command = Command::new("docker");
    command.args(["run", "--rm", "--pull", "never", "--network", "none", IMAGE, "true"]);
    command
}

fn processes(mut children: Vec<Child>) {
    children.iter_mut().for_each(|child| assert!(child.wait().expect("it is our child").success()));
}

/// Jobs with one of the runners, on a miner of their own, beside the plain container where there is one.
fn jobs(runner: &str, timer: &Timer) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut settings = ExecutorSettings::default();
    settings.set("PHALANX_PULL", "never");
    let ours = ProcessBackend::new(runner).expect("the system knows this program");
    let backend = ProcessBackend { program: binary(), phalanx: binary(), settings, ..ours };
    let (key, hotkey) = (KeyPair::generate().0, KeyPair::generate().0);
    let mut config = MinerConfig::new(hotkey.clone(), folder.path(), Arc::new(backend));
    config.validators = vec![key.public()];
    config.executors = vec![(CLASS, SLOTS)];
    let listener = WsListener::bind("127.0.0.1:0", None).expect("loopback is there");
    let miner = Miner::start(config, Box::new(listener), timer.handle()).expect("the miner starts");
    let validator = Validator::connect(miner.ws_addr(), key, hotkey, timer);
    validator.run(1);

    let docker = runner == "docker";
    let (mut ready, mut job, mut plain, mut ratio) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let heard = validator.run(1).remove(0);
        let (at, end) = (heard.ready.expect("it came first"), heard.finished.expect("it has ended"));
        ready.push(at);
        job.push(end);
        if docker {
            let begun = Instant::now();
            processes(vec![docker_run().spawn().expect("docker is there")]);
            plain.push(begun.elapsed());
            ratio.push(end.as_secs_f64() / plain[plain.len() - 1].as_secs_f64());
        }
    }
    println!("{runner} runner, one job at a time ({ROUNDS} rounds), milliseconds:");
    let told = |what: &str, times: &mut [Duration]| {
        let (p50, p99) = (quantile(times, 0.5), quantile(times, 0.99));
        println!("  {what:<42} p50 {p50:7.1}  p99 {p99:7.1}");
    };
    told("initial request to executor ready", &mut ready);
    told("initial request to finished", &mut job);
    if docker {
        told("docker run of the same", &mut plain);
        ratio.sort_by(f64::total_cmp);
        println!(
            "  ratio in the same round: median {:.2} [{:.2}..{:.2}]",
            ratio[ROUNDS / 2],
            ratio[0],
            ratio[ROUNDS - 1]
        );
    }
    let begun = Instant::now();
    validator.run(SLOTS as usize);
    let all = begun.elapsed().as_secs_f64();
    print!("  {SLOTS} at once: {all:.2} s, {:.1} jobs/s", f64::from(SLOTS) / all);
    if docker {
        let begun = Instant::now();
        processes((0..SLOTS).map(|_| docker_run().spawn().expect("docker is there")).collect());
        let plain = begun.elapsed().as_secs_f64();
        print!("; {SLOTS} times docker run at once: {plain:.2} s, ratio {:.2}", all / plain);
    }
    println!();
    let mut stopping = Stopping::alone();
    stopping.step("validator", LONG, |step| validator.client.stop_in(step));
    miner.stop_in(&mut stopping);
    assert!(stopping.finish().is_clean());
}

/// Starts nothing, but tells the tokens of the executors that should be.
struct Silent;

impl ExecutorBackend for Silent {
    fn run(&self, spec: &ExecutorSpec, stop: &Shutdown) -> ExecutorEnd {
        writeln!(std::io::stdout().lock(), "{}", spec.token).expect("the parent reads");
        stop.wait_for(Level::Drain, Duration::MAX);
        Ok(ExecutorExit::Signal(15))
    }
}

/// A miner whose executors are nobody, until its standard input ends: what is measured in [`idle`].
fn host() {
    let timer = Timer::start();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut config = MinerConfig::new(pair("//Miner"), folder.path(), Arc::new(Silent));
    config.validators = vec![pair("//Validator").public()];
    config.executors = vec![(CLASS, IDLE)];
    config.limits.drain_time = Duration::ZERO;
    let listener = WsListener::bind("127.0.0.1:0", None).expect("loopback is there");
    let miner = Miner::start(config, Box::new(listener), timer.handle()).expect("the miner starts");
    writeln!(std::io::stdout().lock(), "{}", miner.ws_addr()).expect("the parent reads");
    let ended = std::io::stdin().lines().next();
    assert!(ended.is_none(), "nobody says anything");
    let mut stopping = Stopping::alone();
    miner.stop_in(&mut stopping);
    stopping.step("timer", LONG, |step| timer.stop_in(step));
    assert!(stopping.finish().is_clean());
}

fn pair(uri: &str) -> KeyPair {
    KeyPair::from_uri(uri).expect("it is right")
}

fn resident_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("it has memory");
    line.trim().trim_end_matches(" kB").parse().expect("it is a number")
}

/// Memory of a miner before and after so many executors have connected.
fn idle(timer: &Timer) {
    let this = std::env::current_exe().expect("the system knows this program");
    let mut host = Command::new(this);
    let mut host = host.arg("host").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it is this program");
    let mut lines =
        BufReader::new(host.stdout.take().expect("it is piped")).lines().map(|line| line.expect("it is text"));
    let address = lines.next().expect("it tells its address");
    let validator = Validator::connect(&address, pair("//Validator"), pair("//Miner"), timer);
    let before = resident_kib(host.id());
    let dialer = WsDialer::new(ClientTls::public());
    let mut connections = Vec::new();
    for _ in 0..IDLE {
        validator.ask();
        let token = lines.next().expect("the miner starts an executor");
        let url = format!("ws://{address}/v0.1/executor_interface/{token}");
        let limits = SocketLimits::default();
        let request = DialRequest { url: &url, headers: &[], limits, deadline: Instant::now() + LONG };
        let mut connection = dialer.dial(&request, &Shutdown::new(), Level::Cancel).expect("the miner knows the token");
        // Its initial request: the executor is known by then.
        connection.reader.read().expect("the miner hands it the job");
        connections.push(connection);
    }
    let after = resident_kib(host.id());
    println!("a miner with {IDLE} executors that are connected and idle, three threads each:");
    println!(
        "  {:.1} MiB resident before, {:.1} MiB with them: {:.1} KiB each",
        before as f64 / 1024.0,
        after as f64 / 1024.0,
        (after - before) as f64 / f64::from(IDLE),
    );
    drop(connections);
    let mut stopping = Stopping::cancelled();
    stopping.step("validator", LONG, |step| validator.client.stop_in(step));
    drop(host.stdin.take());
    // What it says until it ends is read, so that it is not held up.
    assert_eq!(lines.count(), 0, "no executor is started any more");
    assert!(host.wait().expect("it is our child").success());
}

fn main() {
    if std::env::args().nth(1).as_deref() == Some("host") {
        return host();
    }
    let timer = Timer::start();
    let image = Image::make();
    jobs("process", &timer);
    jobs("docker", &timer);
    drop(image);
    idle(&timer);
}
