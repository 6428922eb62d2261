//! The figures of asking miners in `docs/performance.md`: the manifests of 256 miners on loopback, of which a tenth are
//! black holes, a tenth refuse and a twentieth send garbage, beside the Python client of the package `compute-horde`;
//! a second round on kept connections beside the first; a job that does nothing on a kept connection beside one on a
//! fresh one.
//!
//! The miners are in a process of their own, which is this example again. Run it with `make bench/validator`.

use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use phalanx::base::shutdown::{Level, Shutdown};
use phalanx::base::stop::Stopping;
use phalanx::base::timer::{Timer, TimerHandle};
use phalanx::identity::{KeyPair, PublicKey};
use phalanx::link::server::{Server, ServerConfig, ServerEvent};
use phalanx::link::{Outgoing, SessionHandle};
use phalanx::ops::errors::ErrorHandler;
use phalanx::protocol::{
    DateTime, ExecutorClass, JobFinishedReceiptPayload, JobStartedReceiptPayload, MinerToValidator, V0AcceptJobRequest,
    V0ExecutionDoneRequest, V0ExecutorManifestRequest, V0ExecutorReadyRequest, V0InitialJobRequest,
    V0JobFinishedReceiptRequest, V0JobFinishedRequest, V0VolumesReadyRequest, ValidatorToMiner,
};
use phalanx::transport::ws::{WsDialer, WsListener};
use phalanx::validator::connections::{CONNECTIONS_MAX, FRESH_TIME};
use phalanx::validator::manifests::fetch::THREADS;
use phalanx::validator::manifests::{Fetched, Fetcher, MinerDialer};
use phalanx::validator::miner_client::{MinerClient, MinerEvent};
use phalanx::validator::{KeptConnections, MinerAddress, MinerConnections};
use rustix::time::{ClockId, clock_gettime};

const MINERS: usize = 256;
/// One deadline for all.
const TIME: Duration = Duration::from_secs(5);
const JOBS: usize = 500;
const LONG: Duration = Duration::from_secs(60);

/// What a miner is by its number.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Conduct {
    Offers,
    BlackHole,
    Refuses,
    Garbage,
}

fn conduct(number: usize) -> Conduct {
    match number % 20 {
        0 | 1 => Conduct::BlackHole,
        2 | 3 => Conduct::Refuses,
        4 => Conduct::Garbage,
        _ => Conduct::Offers,
    }
}

fn hotkey(number: usize) -> KeyPair {
    KeyPair::from_uri(&format!("//Miner{number}")).expect("it is a key URI")
}

fn main() {
    match std::env::args().nth(1).as_deref() {
        Some("--serve") => serve(),
        python => compare(python),
    }
}

/// The miners: prints where they are, and serves until its input ends.
fn serve() {
    let timer = Timer::start();
    let listener = WsListener::bind(SocketAddr::from(([127, 0, 0, 1], 0)), None).expect("there is a port");
    let server_port = listener.local_addr().port();
    // Connections wait there for somebody to accept them; a refused port is one that nobody has any more.
    let hole = TcpListener::bind("127.0.0.1:0").expect("there is a port");
    let bound = TcpListener::bind("127.0.0.1:0").and_then(|nobody| nobody.local_addr()).expect("there is a port");
    let garbage: Vec<String> =
        (0..MINERS).filter(|n| conduct(*n) == Conduct::Garbage).map(|n| hotkey(n).ss58()).collect();
    let sessions: Mutex<HashMap<_, SessionHandle>> = Mutex::default();
    let sink = Arc::new(move |event| match event {
        ServerEvent::Opened { id, handle, .. } => drop(sessions.lock().expect("no panic").insert(id, handle)),
        ServerEvent::Closed { id, .. } => drop(sessions.lock().expect("no panic").remove(&id)),
        ServerEvent::Text { id, text } => {
            let session = sessions.lock().expect("no panic")[&id].clone();
            answer(&session, ValidatorToMiner::decode(&text).expect("validators are right"), &garbage);
        }
    });
    let server =
        Server::start(ServerConfig::new("min"), Box::new(listener), timer.handle(), Arc::new(|_| Ok(())), sink);
    let hole_port = hole.local_addr().expect("it is bound").port();
    println!("{server_port} {hole_port} {}", bound.port());
    // Nothing is ever read: it ends.
    let _ = std::io::stdin().lines().count();
    let mut stopping = Stopping::cancelled();
    stopping.step("server", LONG, |step| server.stop_in(step, ""));
    stopping.step("timer", LONG, |step| timer.stop_in(step));
}

/// A miner that does everything right, or everything wrong.
fn answer(session: &SessionHandle, message: ValidatorToMiner, garbage: &[String]) {
    let say = |message: MinerToValidator| drop(session.send(Outgoing::once(message.encode())));
    match message {
        ValidatorToMiner::ValidatorAuthForMiner(auth) if garbage.contains(&auth.miner_hotkey) => {
            drop(session.send(Outgoing::once("}{")));
        }
        ValidatorToMiner::ValidatorAuthForMiner(_) => {
            let manifest = [(ExecutorClass::AlwaysOnTest, 4.into())].into_iter().collect();
            say(V0ExecutorManifestRequest { manifest }.into());
        }
        ValidatorToMiner::V0InitialJobRequest(initial) => {
            let job_uuid = initial.job_uuid;
            say(V0AcceptJobRequest { job_uuid: job_uuid.clone() }.into());
            say(V0ExecutorReadyRequest { job_uuid: job_uuid.clone(), executor_token: None }.into());
            say(V0VolumesReadyRequest { job_uuid: job_uuid.clone() }.into());
            say(V0ExecutionDoneRequest { job_uuid: job_uuid.clone() }.into());
            let (docker_process_stdout, docker_process_stderr) = (String::new(), String::new());
            say(V0JobFinishedRequest {
                job_uuid,
                docker_process_stdout,
                docker_process_stderr,
                artifacts: None,
                upload_results: None,
            }
            .into());
        }
        _ => {}
    }
}

/// The process with the miners.
struct Fleet {
    child: Child,
    miners: Vec<MinerAddress>,
}

impl Fleet {
    fn start() -> Self {
        let program = std::env::current_exe().expect("the system knows this program");
        let piped = Command::new(program).arg("--serve").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = piped.expect("this program starts");
        let mut line = String::new();
        let out = child.stdout.take().expect("it is piped");
        BufReader::new(out).read_line(&mut line).expect("it says where it is");
        let ports: Vec<u16> = line.split_whitespace().map(|port| port.parse().expect("a port")).collect();
        let miners = (0..MINERS).map(|number| {
            let port = match conduct(number) {
                Conduct::Offers | Conduct::Garbage => ports[0],
                Conduct::BlackHole => ports[1],
                Conduct::Refuses => ports[2],
            };
            let hotkey = hotkey(number).public();
            MinerAddress { hotkey, address: "127.0.0.1".to_owned(), port, trusted: false, tls: false }
        });
        Self { miners: miners.collect(), child }
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// CPU time of this process.
fn cpu() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

fn round(name: &str, fetcher: &mut Fetcher, miners: &[MinerAddress]) -> (Duration, Duration) {
    let (begun, before) = (Instant::now(), cpu());
    let fetched = fetcher.fetch(miners, begun + TIME, &Shutdown::new());
    let (wall, spent) = (begun.elapsed(), cpu() - before);
    let mut outcomes: BTreeMap<&str, usize> = BTreeMap::new();
    fetched.iter().for_each(|fetched: &Fetched| *outcomes.entry(fetched.outcome.as_str()).or_default() += 1);
    println!("{name:<38} wall {wall:>8.3?}  CPU {spent:>9.3?}  {outcomes:?}");
    (wall, spent)
}

fn compare(python: Option<&str>) {
    let timer = Timer::start();
    let fleet = Fleet::start();
    let key = KeyPair::from_uri("//Validator").expect("it is a key URI");
    let dialer = MinerDialer { key, dialer: Arc::new(WsDialer::default()), timer: timer.handle() };
    println!("{MINERS} miners, {THREADS} threads, a deadline of {TIME:?}");
    let direct = dialer.clone();
    let mut fresh = Fetcher::new(THREADS, move |miner, until, stop| direct.manifest(miner, until, stop, Level::Cancel));
    let (_, ours) = round("phalanx", &mut fresh, &fleet.miners);
    match python.map(|python| python_round(python, &fleet.miners)) {
        Some(theirs) => println!("the Python client spends {:.1} times the CPU", theirs / ours.as_secs_f64()),
        None => println!("SKIPPED: no Python client; give its interpreter as the argument"),
    }
    let good: Vec<_> = fleet
        .miners
        .iter()
        .enumerate()
        .filter(|(n, _)| conduct(*n) == Conduct::Offers)
        .map(|(_, m)| m.clone())
        .collect();
    println!("\n{} miners that answer", good.len());
    let kept = KeptConnections::start(dialer.clone(), CONNECTIONS_MAX, &ErrorHandler::default());
    let connections = kept.handle();
    let mut reusing = Fetcher::new(THREADS, move |miner, until, stop| connections.ask(miner, until, stop));
    round("first round, each is dialled", &mut reusing, &good);
    for _ in 0..3 {
        // Until a proof of life is asked for again.
        Shutdown::new().wait(2 * FRESH_TIME);
        round("another round, on kept connections", &mut reusing, &good);
    }
    assert_eq!(kept.handle().status().dialled, good.len() as u64, "nobody was dialled again");
    jobs(&kept.handle(), &dialer, &good[0]);
    let mut stopping = Stopping::alone();
    stopping.step("connections", LONG, |step| kept.stop_in(step));
    stopping.step("timer", LONG, |step| timer.stop_in(step));
}

/// The Python client does the same; gives its CPU time in seconds.
fn python_round(python: &str, miners: &[MinerAddress]) -> f64 {
    let list: Vec<String> =
        miners.iter().map(|miner| format!("{} {} {}", miner.hotkey, miner.address, miner.port)).collect();
    let file = std::env::temp_dir().join(format!("phalanx-miners-{}", std::process::id()));
    std::fs::write(&file, list.join("\n")).expect("there is room for a list");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/python/manifests.py");
    let seconds = TIME.as_secs_f64().to_string();
    let output =
        Command::new(python).args([script, "//Validator", &seconds]).arg(&file).output().expect("Python starts");
    let _ = std::fs::remove_file(&file);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let told: serde_json::Value = serde_json::from_str(&text).expect("it prints JSON");
    let number = |name: &str| told[name].as_f64().expect("it is a number");
    let (wall, cpu) = (number("wall"), number("cpu"));
    println!("{:<38} wall {wall:>7.3}s  CPU {cpu:>8.3}s  {}", "Python, OrganicMinerClient", told["outcomes"]);
    cpu
}

/// One job after the other, on fresh connections and on a kept one.
fn jobs(connections: &MinerConnections, dialer: &MinerDialer, miner: &MinerAddress) {
    println!("\n{JOBS} jobs that do nothing, one at a time");
    let miner_key: PublicKey = miner.hotkey;
    for kept in [false, true] {
        let stop = Shutdown::new();
        let (mut ends, mut wholes) = (Vec::new(), Vec::new());
        let before = cpu();
        for number in 0..JOBS as u64 {
            let begun = Instant::now();
            let mut stopping = Stopping::alone();
            if kept {
                let mut lease = connections.acquire(miner, begun + LONG, &stop).expect("the miner answers");
                let open = lease.take().expect("it is open");
                let client = MinerClient::start_on(miner, dialer, number, open);
                run(&client, &dialer.key, &miner_key, &stop);
                ends.push(begun.elapsed());
                stopping.step("give back", LONG, |step| {
                    let open = client.give_back(miner, &dialer.key, step).expect("the miner answers");
                    lease.give_back(open);
                });
            } else {
                let (key, dial, timer): (_, _, TimerHandle) =
                    (&dialer.key, dialer.dialer.clone(), dialer.timer.clone());
                let client = MinerClient::start(miner, key, dial, timer, number);
                run(&client, key, &miner_key, &stop);
                ends.push(begun.elapsed());
                stopping.step("close", LONG, |step| client.stop_in(step));
            }
            wholes.push(begun.elapsed());
        }
        let spent = (cpu() - before) / JOBS as u32;
        ends.sort();
        wholes.sort();
        let half = JOBS / 2;
        let (p99, name) = (JOBS * 99 / 100, if kept { "a kept connection" } else { "fresh connections" });
        println!(
            "on {name:<18} to its end: median {:>8.1?}, p99 {:>8.1?}; with the connection closed or returned: median \
             {:>8.1?}; CPU {spent:.1?} each",
            ends[half], ends[p99], wholes[half],
        );
    }
}

/// Runs a job to its end and pays for it.
fn run(client: &MinerClient, key: &KeyPair, miner: &PublicKey, stop: &Shutdown) {
    let uuid = uuid::Uuid::new_v4().to_string();
    loop {
        match client.next(Instant::now() + LONG, stop).expect("the miner answers") {
            MinerEvent::Message(message) => match *message {
                MinerToValidator::V0ExecutorManifestRequest(_) => {
                    client.send(initial(&uuid, key, miner)).expect("there is room");
                }
                MinerToValidator::V0JobFinishedRequest(_) => {
                    client.send(receipt(&uuid, key, miner)).expect("there is room");
                    return;
                }
                _ => {}
            },
            MinerEvent::Ready => {}
            other => panic!("the link is lost: {other:?}"),
        }
    }
}

fn initial(uuid: &str, key: &KeyPair, miner: &PublicKey) -> V0InitialJobRequest {
    let payload = JobStartedReceiptPayload {
        job_uuid: uuid.to_owned(),
        miner_hotkey: miner.to_ss58(),
        validator_hotkey: key.ss58(),
        timestamp: DateTime::from(SystemTime::now()),
        executor_class: ExecutorClass::AlwaysOnTest,
        is_organic: true,
        ttl: 30,
    };
    let mut request = V0InitialJobRequest {
        validator_signature: None,
        job_uuid: uuid.to_owned(),
        executor_class: ExecutorClass::AlwaysOnTest,
        docker_image: Some("none".to_owned()),
        timeout_seconds: None,
        volume: None,
        job_started_receipt_signature: payload.sign(key),
        job_started_receipt_payload: payload,
        streaming_details: None,
        executor_timing: None,
    };
    request.sign(key);
    request
}

fn receipt(uuid: &str, key: &KeyPair, miner: &PublicKey) -> V0JobFinishedReceiptRequest {
    let now = DateTime::from(SystemTime::now());
    let payload = JobFinishedReceiptPayload {
        job_uuid: uuid.to_owned(),
        miner_hotkey: miner.to_ss58(),
        validator_hotkey: key.ss58(),
        timestamp: now,
        time_started: now,
        time_took_us: 1,
        score_str: "1.000000".to_owned(),
        block_numbers: Vec::new(),
    };
    let signature = payload.sign(key);
    V0JobFinishedReceiptRequest { payload, signature }
}
