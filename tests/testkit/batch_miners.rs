//! Many scripted miners behind one listener, over any transport, told apart by the hotkey to which a validator
//! authenticates. Their pauses are of the world's clock.

use std::any::Any;
use std::collections::{HashMap, HashSet};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use phalanx::base::ids::SessionId;
use phalanx::base::rng::Rng;
use phalanx::base::timer::TimerHandle;
use phalanx::identity::{KeyPair, PublicKey};
use phalanx::link::heartbeat::LivenessConfig;
use phalanx::link::server::{Server, ServerConfig, ServerEvent};
use phalanx::link::{Outgoing, SessionHandle};
use phalanx::protocol::{
    ExecutorClass, GenericError, Int, JobFailureReason, JobRejectionReason, JobResultDetails, JobStage,
    MinerToValidator, V0AcceptJobRequest, V0DeclineJobRequest, V0ExecutorManifestRequest, V0ExecutorReadyRequest,
    V0HordeFailedRequest, V0JobFailedRequest, V0JobFinishedRequest, V0VolumesReadyRequest, V2JobRequest,
    ValidatorToMiner,
};
use phalanx::transport::Listener;
use phalanx::transport::ws::WsListener;
use phalanx::validator::MinerAddress;
use phalanx::validator::batch::{JobMaker, Judge, Verdict};

use super::roles::{World, job, stop};
use super::wait::LONG;

/// How one of them behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Answers each job.
    Good,
    /// Says its manifest and nothing more.
    Silent,
    /// Nobody listens at its port.
    Refusing,
    /// Its port is open, and nobody is there.
    Hole,
    /// Does not know the validator.
    Stranger,
    /// Its first word cannot be read.
    Babbling,
    /// Its manifest cannot be.
    Absurd,
    /// What it says of a job cannot be read.
    Garbage,
    /// Has no executor after all.
    Lying,
    /// Breaks the connection in the middle of a job, and takes no other.
    Cutting,
    /// Says that the job failed, then gives the right answer.
    Gaming,
    /// Gives the right answer, then others.
    Doubling,
    /// Its answer is wrong.
    Wrong,
    /// The first executor of each job does not start.
    Flaky,
}

/// A kind, and how many milliseconds a job runs before its miner does with it what its kind does.
pub type Scripted = (Kind, u64);

/// The right answer.
pub const RIGHT: &str = "42\n";

/// Jobs that may run so many seconds, with a second for each other stage, and a judge that knows the right answer.
pub fn maker_and_judge(run_seconds: u64) -> (Box<dyn JobMaker>, Box<dyn Judge>) {
    let second = || Int::from(1);
    let request = Arc::new(V2JobRequest {
        download_time_limit: second(),
        execution_time_limit: Int::from(run_seconds),
        upload_time_limit: second(),
        ..job(&KeyPair::from_uri("//User").unwrap())
    });
    let maker = move |_: &PublicKey, class: ExecutorClass, _: &mut Rng| {
        (class == request.executor_class).then(|| request.clone())
    };
    (Box::new(maker), judge())
}

/// Knows the right answer.
pub fn judge() -> Box<dyn Judge> {
    Box::new(|_: &V2JobRequest, answer: &JobResultDetails| match answer.docker_process_stdout.as_str() {
        RIGHT => Verdict::Right,
        other => Verdict::Wrong(format!("{other:?}")),
    })
}

/// What they have seen.
#[derive(Debug, Default)]
pub struct Seen {
    /// Messages of all kinds.
    pub messages: usize,
    /// How often each job's request came.
    pub requests: HashMap<String, usize>,
    /// Jobs that were asked for.
    pub asked: HashMap<String, usize>,
    /// Jobs for which a finished-receipt came.
    pub receipts: HashSet<String>,
    /// Connections that are open.
    pub open: usize,
    /// When the first and the last job's request came, on the system's clock.
    pub requested: Option<(Instant, Instant)>,
    cut: HashSet<String>,
}

struct Shared {
    /// With how long a job runs.
    kinds: HashMap<String, (Kind, Duration)>,
    executors: i64,
    timer: TimerHandle,
    seen: Mutex<Seen>,
}

/// The miners.
pub struct BatchMiners {
    server: Option<Server>,
    shared: Arc<Shared>,
    pub addresses: Vec<MinerAddress>,
    /// Held, so that the port of those that refuse is nobody's, and that of the holes open.
    _held: Box<dyn Any>,
}

/// Where they listen.
struct Ports {
    port: u16,
    /// Of those that refuse.
    closed: u16,
    /// Of those that accept and say nothing.
    hole: u16,
}

fn key(n: usize) -> KeyPair {
    let mut seed = [b'm'; 32];
    seed[..8].copy_from_slice(&n.to_le_bytes());
    KeyPair::from_seed(seed)
}

impl BatchMiners {
    /// Starts them with so many executors each, over sockets.
    pub fn start(world: &World, kinds: &[Scripted], executors: i64) -> Self {
        let listener = WsListener::bind("127.0.0.1:0", None).unwrap();
        let port = listener.local_addr().port();
        let refusing = TcpListener::bind("127.0.0.2:0").unwrap();
        // That port is taken at another address of the loopback, so nobody is given it here by chance.
        let closed = refusing.local_addr().unwrap().port();
        let hole = TcpListener::bind("127.0.0.1:0").unwrap();
        let ports = Ports { port, closed, hole: hole.local_addr().unwrap().port() };
        let held = Box::new((refusing, hole));
        Self::start_on(world, Box::new(listener), ServerConfig::new("bat"), (ports, held), kinds, executors)
    }

    /// As [`BatchMiners::start`], in memory. They leave the pings to the validator.
    pub fn start_in_memory(world: &World, kinds: &[Scripted], executors: i64) -> Self {
        let (listener, hole) = (world.net.listener("127.0.0.1:1"), world.net.listener("127.0.0.1:3"));
        let day = Duration::from_secs(24 * 3600);
        let liveness = LivenessConfig { ping_after: day, dead_after: day, stuck_after: day };
        let mut config = ServerConfig { liveness, ..ServerConfig::new("bat") };
        config.places.total = kinds.len();
        let ports = Ports { port: 1, closed: 2, hole: 3 };
        Self::start_on(world, Box::new(listener), config, (ports, Box::new(hole)), kinds, executors)
    }

    fn start_on(
        world: &World,
        listener: Box<dyn Listener>,
        config: ServerConfig,
        (ports, held): (Ports, Box<dyn Any>),
        kinds: &[Scripted],
        executors: i64,
    ) -> Self {
        let addresses: Vec<MinerAddress> = kinds
            .iter()
            .enumerate()
            .map(|(n, (kind, _))| MinerAddress {
                hotkey: key(n).public(),
                address: "127.0.0.1".to_owned(),
                port: match kind {
                    Kind::Refusing => ports.closed,
                    Kind::Hole => ports.hole,
                    _ => ports.port,
                },
                trusted: false,
                tls: false,
            })
            .collect();
        let kinds = kinds.iter().map(|(kind, millis)| (*kind, Duration::from_millis(*millis)));
        let kinds = addresses.iter().map(|miner| miner.hotkey.to_ss58()).zip(kinds).collect();
        let shared = Arc::new(Shared { kinds, executors, timer: world.timer(), seen: Mutex::default() });
        let sessions: Mutex<HashMap<SessionId, (SessionHandle, Option<String>)>> = Mutex::default();
        let sink = shared.clone();
        let server = Server::start(
            config,
            listener,
            world.timer(),
            Arc::new(|_| Ok(())),
            Arc::new(move |event| match event {
                ServerEvent::Opened { id, handle, .. } => {
                    sink.seen.lock().unwrap().open += 1;
                    sessions.lock().unwrap().insert(id, (handle, None));
                }
                ServerEvent::Closed { id, .. } => {
                    sink.seen.lock().unwrap().open -= 1;
                    sessions.lock().unwrap().remove(&id);
                }
                ServerEvent::Text { id, text } => {
                    let mut sessions = sessions.lock().unwrap();
                    let (handle, miner) = sessions.get_mut(&id).unwrap();
                    hears(&sink, handle, miner, ValidatorToMiner::decode(&text).unwrap());
                }
            }),
        );
        Self { server: Some(server), shared, addresses, _held: held }
    }

    /// The text of a miners file.
    pub fn file(&self) -> String {
        let table = |miner: &MinerAddress| {
            format!(
                "[[miner]]\nhotkey = \"{}\"\naddress = \"{}\"\nport = {}\n",
                miner.hotkey, miner.address, miner.port
            )
        };
        self.addresses.iter().map(table).collect()
    }

    /// Looks at what they have seen.
    pub fn seen<T>(&self, look: impl FnOnce(&Seen) -> T) -> T {
        look(&self.shared.seen.lock().unwrap())
    }

    pub fn stop(mut self) {
        let server = self.server.take().unwrap();
        assert!(stop(LONG, |step| server.stop_in(step, "")).is_clean());
    }
}

fn say(handle: &SessionHandle, message: impl Into<MinerToValidator>) {
    text(handle, message.into().encode());
}

fn text(handle: &SessionHandle, text: String) {
    // The validator may have gone in the meantime.
    drop(handle.send(Outgoing::once(text)));
}

fn hears(shared: &Arc<Shared>, handle: &SessionHandle, miner: &mut Option<String>, message: ValidatorToMiner) {
    let mut seen = shared.seen.lock().unwrap();
    seen.messages += 1;
    if let ValidatorToMiner::ValidatorAuthForMiner(auth) = &message {
        auth.verify().unwrap();
        *miner = Some(auth.miner_hotkey.clone());
        let kind = shared.kinds[&auth.miner_hotkey].0;
        let executors = if kind == Kind::Absurd { Int::from(-1) } else { Int::from(shared.executors) };
        let manifest = [(ExecutorClass::AlwaysOnTest, executors)];
        return match kind {
            Kind::Stranger => say(handle, GenericError { details: Some("Unknown validator".to_owned()) }),
            Kind::Babbling => text(handle, "%&$".to_owned()),
            Kind::Cutting if seen.cut.contains(&auth.miner_hotkey) => handle.kick(),
            _ => say(handle, V0ExecutorManifestRequest { manifest: manifest.into_iter().collect() }),
        };
    }
    let miner = miner.clone().expect("it has authenticated");
    let (kind, runs) = shared.kinds[&miner];
    match message {
        ValidatorToMiner::V0InitialJobRequest(initial) => {
            assert!(!initial.job_started_receipt_payload.is_organic);
            let job_uuid = initial.job_uuid;
            *seen.asked.entry(job_uuid.clone()).or_default() += 1;
            match kind {
                Kind::Silent => {}
                Kind::Lying => say(
                    handle,
                    V0DeclineJobRequest {
                        job_uuid,
                        reason: JobRejectionReason::Busy,
                        message: "all are at work".to_owned(),
                        receipts: Vec::new(),
                        context: None,
                    },
                ),
                Kind::Flaky if seen.cut.insert(format!("{miner} flaky")) => {
                    say(handle, V0AcceptJobRequest { job_uuid: job_uuid.clone() });
                    say(
                        handle,
                        V0HordeFailedRequest {
                            job_uuid,
                            reported_by: phalanx::protocol::JobParticipantType::Miner,
                            reason: phalanx::protocol::HordeFailureReason::ExecutorSpinupFailed,
                            message: "no engine".to_owned(),
                            context: None,
                        },
                    );
                }
                _ => {
                    say(handle, V0AcceptJobRequest { job_uuid: job_uuid.clone() });
                    say(handle, V0ExecutorReadyRequest { job_uuid, executor_token: None });
                }
            }
        }
        ValidatorToMiner::V0JobRequest(request) => {
            let job_uuid = request.job_uuid;
            *seen.requests.entry(job_uuid.clone()).or_default() += 1;
            let now = Instant::now();
            seen.requested = Some((seen.requested.map_or(now, |(first, _)| first), now));
            drop(seen);
            say(handle, V0VolumesReadyRequest { job_uuid: job_uuid.clone() });
            if runs.is_zero() {
                return works(shared, handle, miner, kind, &job_uuid);
            }
            let (handle, working) = (handle.clone(), shared.clone());
            let alarm = Arc::new(Mutex::new(None));
            let held = alarm.clone();
            let done = shared.timer.at(shared.timer.clock().now() + runs, move || {
                works(&working, &handle, miner, kind, &job_uuid);
                drop(held);
            });
            // Held by its own action until that has run.
            *alarm.lock().unwrap() = Some(done);
        }
        ValidatorToMiner::V0JobFinishedReceiptRequest(receipt) => {
            seen.receipts.insert(receipt.payload.job_uuid);
        }
        _ => {}
    }
}

/// What a miner does at the end of a job.
fn works(shared: &Shared, handle: &SessionHandle, miner: String, kind: Kind, job_uuid: &str) {
    let finished = |stdout: &str| V0JobFinishedRequest {
        job_uuid: job_uuid.to_owned(),
        docker_process_stdout: stdout.to_owned(),
        docker_process_stderr: String::new(),
        artifacts: None,
        upload_results: None,
    };
    match kind {
        Kind::Garbage => text(handle, "no message".to_owned()),
        Kind::Cutting => {
            shared.seen.lock().unwrap().cut.insert(miner);
            handle.kick();
        }
        Kind::Wrong => say(handle, finished("13\n")),
        Kind::Doubling => {
            [RIGHT, "13\n", RIGHT].iter().for_each(|stdout| say(handle, finished(stdout)));
        }
        Kind::Gaming => {
            let failed = V0JobFailedRequest {
                job_uuid: job_uuid.to_owned(),
                stage: JobStage::Execution,
                reason: JobFailureReason::NonzeroReturnCode,
                message: "exit 1".to_owned(),
                docker_process_exit_status: Some(Int::from(1)),
                docker_process_stdout: None,
                docker_process_stderr: None,
                context: None,
            };
            say(handle, failed);
            say(handle, finished(RIGHT));
        }
        _ => say(handle, finished(RIGHT)),
    }
}
