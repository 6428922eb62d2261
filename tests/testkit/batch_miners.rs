//! Many scripted miners behind one port, told apart by the hotkey to which a validator authenticates.

use std::collections::{HashMap, HashSet};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use phalanx::base::ids::SessionId;
use phalanx::base::timer::TimerHandle;
use phalanx::identity::KeyPair;
use phalanx::link::server::{Server, ServerConfig, ServerEvent};
use phalanx::link::{Outgoing, SessionHandle};
use phalanx::protocol::{
    ExecutorClass, GenericError, Int, JobRejectionReason, MinerToValidator, V0AcceptJobRequest, V0DeclineJobRequest,
    V0ExecutorManifestRequest, V0ExecutorReadyRequest, V0HordeFailedRequest, V0JobFinishedRequest,
    V0VolumesReadyRequest, ValidatorToMiner,
};
use phalanx::transport::ws::WsListener;
use phalanx::validator::MinerAddress;

use super::roles::{World, stop};
use super::wait::LONG;

/// How one of them behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Answers each job after so many milliseconds.
    Good(u64),
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
    /// What it says of a job cannot be read.
    Garbage,
    /// Has no executor after all.
    Lying,
    /// Breaks the connection in the middle of a job, and takes no other.
    Cutting,
    /// Gives the right answer, then others.
    Doubling,
    /// Its answer is wrong.
    Wrong,
    /// The first executor of each job does not start.
    Flaky,
}

/// The right answer.
pub const RIGHT: &str = "42\n";

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
    cut: HashSet<String>,
}

struct Shared {
    kinds: HashMap<String, Kind>,
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
    _held: [TcpListener; 2],
}

fn key(n: usize) -> KeyPair {
    KeyPair::from_uri(&format!("//Batch{n}")).unwrap()
}

impl BatchMiners {
    /// Starts one for each kind, with so many executors.
    pub fn start(world: &World, kinds: &[Kind], executors: i64) -> Self {
        let listener = WsListener::bind("127.0.0.1:0", None).unwrap();
        let port = listener.local_addr().port();
        let refusing = TcpListener::bind("127.0.0.2:0").unwrap();
        let closed = refusing.local_addr().unwrap().port();
        let hole = TcpListener::bind("127.0.0.1:0").unwrap();
        let open = hole.local_addr().unwrap().port();
        let addresses: Vec<MinerAddress> = kinds
            .iter()
            .enumerate()
            .map(|(n, kind)| MinerAddress {
                hotkey: key(n).public(),
                address: "127.0.0.1".to_owned(),
                // That port is taken at another address of the loopback, so nobody is given it here by chance.
                port: match kind {
                    Kind::Refusing => closed,
                    Kind::Hole => open,
                    _ => port,
                },
                trusted: false,
                tls: false,
            })
            .collect();
        let kinds = addresses.iter().map(|miner| miner.hotkey.to_ss58()).zip(kinds.iter().copied()).collect();
        let shared = Arc::new(Shared { kinds, executors, timer: world.timer(), seen: Mutex::default() });
        let sessions: Mutex<HashMap<SessionId, (SessionHandle, Option<String>)>> = Mutex::default();
        let sink = shared.clone();
        let server = Server::start(
            ServerConfig::new("bat"),
            Box::new(listener),
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
        Self { server: Some(server), shared, addresses, _held: [refusing, hole] }
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
        assert!(stop(LONG, |step| server.stop(step, "")).is_clean());
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
        let manifest = [(ExecutorClass::AlwaysOnTest, Int::from(shared.executors))];
        return match shared.kinds[&auth.miner_hotkey] {
            Kind::Stranger => say(handle, GenericError { details: Some("Unknown validator".to_owned()) }),
            Kind::Babbling => text(handle, "%&$".to_owned()),
            Kind::Cutting if seen.cut.contains(&auth.miner_hotkey) => handle.kick(),
            _ => say(handle, V0ExecutorManifestRequest { manifest: manifest.into_iter().collect() }),
        };
    }
    let miner = miner.clone().expect("it has authenticated");
    let kind = shared.kinds[&miner];
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
            let finished = |job_uuid: &str, stdout: &str| V0JobFinishedRequest {
                job_uuid: job_uuid.to_owned(),
                docker_process_stdout: stdout.to_owned(),
                docker_process_stderr: String::new(),
                artifacts: None,
                upload_results: None,
            };
            match kind {
                Kind::Garbage => text(handle, "no message".to_owned()),
                Kind::Cutting => {
                    seen.cut.insert(miner);
                    handle.kick();
                }
                Kind::Good(after) if after > 0 => {
                    let (handle, timer) = (handle.clone(), shared.timer.clone());
                    let alarm = Arc::new(Mutex::new(None));
                    let held = alarm.clone();
                    let when = Instant::now() + Duration::from_millis(after);
                    let answer = timer.at(when, move || {
                        say(&handle, finished(&job_uuid, RIGHT));
                        drop(held);
                    });
                    // Held by its own action until that has run.
                    *alarm.lock().unwrap() = Some(answer);
                }
                _ => {
                    say(handle, V0VolumesReadyRequest { job_uuid: job_uuid.clone() });
                    say(handle, finished(&job_uuid, if kind == Kind::Wrong { "13\n" } else { RIGHT }));
                    if kind == Kind::Doubling {
                        say(handle, finished(&job_uuid, "13\n"));
                        say(handle, finished(&job_uuid, RIGHT));
                    }
                }
            }
        }
        ValidatorToMiner::V0JobFinishedReceiptRequest(receipt) => {
            seen.receipts.insert(receipt.payload.job_uuid);
        }
        _ => {}
    }
}
