//! Scripted facilitator and miner over the in-memory network, for tests of the validator.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crossbeam_channel::{Receiver, bounded};
use phalanx::base::clock::Clock;
use phalanx::base::ids::SessionId;
use phalanx::base::stop::{StopReport, Stopping};
use phalanx::base::timer::Timer;
use phalanx::identity::KeyPair;
use phalanx::link::server::{Server, ServerConfig, ServerEvent};
use phalanx::link::{Outgoing, SessionHandle};
use phalanx::protocol::{
    FacilitatorToValidator, Int, JobStatus, MinerToValidator, Response, ResponseStatus, SignedRequest,
    V0ExecutorManifestRequest, V0JobStatusUpdate, V2JobRequest, ValidatorToFacilitator, ValidatorToMiner,
};
use phalanx::transport::Listener;
use phalanx::transport::memory::MemoryNet;

use super::threads::NoThreads;
use super::wait::{LONG, until};

/// A network, a timer, and the promise that every thread ends.
pub struct World {
    pub net: MemoryNet,
    timer: Option<Timer>,
    /// Dropped last.
    _threads: NoThreads,
}

impl World {
    pub fn new() -> Self {
        Self::by(Clock::system())
    }

    /// A world whose time is that of `clock`.
    pub fn by(clock: Clock) -> Self {
        let threads = NoThreads::expected();
        Self { net: MemoryNet::with_clock(clock.clone()), timer: Some(Timer::start_with(clock)), _threads: threads }
    }

    pub fn timer(&self) -> phalanx::base::timer::TimerHandle {
        self.timer.as_ref().unwrap().handle()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let timer = self.timer.take().unwrap();
        let report = stop(LONG, |step| timer.stop_in(step));
        if !std::thread::panicking() {
            assert!(report.is_clean());
        }
    }
}

pub fn stop(budget: Duration, work: impl FnOnce(&mut phalanx::base::stop::Step)) -> StopReport {
    let mut stopping = Stopping::alone();
    stopping.step("test", budget, work);
    stopping.finish()
}

/// A facilitator that accepts every validator, acknowledges every update and hands it to the test.
pub struct FakeFacilitator {
    server: Option<Server>,
    sessions: Arc<Mutex<Vec<(SessionId, SessionHandle)>>>,
    pub updates: Receiver<V0JobStatusUpdate>,
}

impl FakeFacilitator {
    pub fn start(world: &World) -> Self {
        Self::start_on(world, Box::new(world.net.listener("facilitator")))
    }

    pub fn start_on(world: &World, listener: Box<dyn Listener>) -> Self {
        let (tx, updates) = bounded(100_000);
        let handles: Arc<Mutex<HashMap<SessionId, SessionHandle>>> = Arc::default();
        let sessions: Arc<Mutex<Vec<(SessionId, SessionHandle)>>> = Arc::default();
        let ready = sessions.clone();
        let sink = Arc::new(move |event| match event {
            ServerEvent::Opened { id, handle, .. } => drop(handles.lock().unwrap().insert(id, handle)),
            ServerEvent::Closed { id, .. } => {
                handles.lock().unwrap().remove(&id);
                ready.lock().unwrap().retain(|(other, _)| *other != id);
            }
            ServerEvent::Text { id, text } => {
                let handle = handles.lock().unwrap()[&id].clone();
                match ValidatorToFacilitator::decode(&text).unwrap() {
                    ValidatorToFacilitator::V0AuthenticationRequest(auth) => {
                        auth.verify().unwrap();
                        respond(&handle);
                        ready.lock().unwrap().push((id, handle));
                    }
                    ValidatorToFacilitator::V0JobStatusUpdate(update) => {
                        respond(&handle);
                        drop(tx.send(update));
                    }
                    _ => {}
                }
            }
        });
        let server = Server::start(ServerConfig::new("fac"), listener, world.timer(), Arc::new(|_| Ok(())), sink);
        Self { server: Some(server), sessions, updates }
    }

    /// Sends a frame to the newest session; waits for one to be there.
    pub fn push(&self, message: impl Into<FacilitatorToValidator>) {
        let text = message.into().encode();
        until("a session that takes the message", || match self.sessions.lock().unwrap().last() {
            Some((_, session)) => session.send(Outgoing::once(text.clone())).is_ok(),
            None => false,
        });
    }

    /// The updates of one job until its end.
    pub fn history(&self, uuid: &str) -> Vec<V0JobStatusUpdate> {
        let mut history = Vec::new();
        loop {
            let update = self.updates.recv_timeout(LONG).expect("an update");
            assert_eq!(update.uuid, uuid);
            let end = update.status.is_terminal();
            history.push(update);
            if end {
                return history;
            }
        }
    }

    pub fn stop(mut self) {
        let server = self.server.take().unwrap();
        assert!(stop(LONG, |step| server.stop_in(step, "")).is_clean());
    }
}

fn respond(handle: &SessionHandle) {
    let response = Response { status: ResponseStatus::Success, errors: Vec::new() };
    // The validator may have gone in the meantime.
    drop(handle.send(Outgoing::once(FacilitatorToValidator::from(response).encode())));
}

pub fn statuses(history: &[V0JobStatusUpdate]) -> Vec<JobStatus> {
    history.iter().map(|u| u.status).collect()
}

/// What a scripted miner does with one message after the authentication.
pub type Script = Arc<dyn Fn(&MinerSession, ValidatorToMiner) + Send + Sync>;

pub struct MinerSession {
    pub id: SessionId,
    pub handle: SessionHandle,
}

impl MinerSession {
    pub fn say(&self, message: impl Into<MinerToValidator>) {
        self.text(message.into().encode());
    }

    pub fn text(&self, text: impl Into<tungstenite::Utf8Bytes>) {
        drop(self.handle.send(Outgoing::once(text)));
    }
}

/// A miner that checks the authentication, sends a manifest, and then follows its script.
pub struct FakeMiner {
    server: Option<Server>,
    pub received: Receiver<ValidatorToMiner>,
}

impl FakeMiner {
    pub fn start(world: &World, port: u16, executors: i64, script: Script) -> Self {
        Self::start_on(world, Box::new(world.net.listener(&format!("127.0.0.1:{port}"))), executors, script)
    }

    pub fn start_on(world: &World, listener: Box<dyn Listener>, executors: i64, script: Script) -> Self {
        let (tx, received) = bounded(100_000);
        let handles: Arc<Mutex<HashMap<SessionId, SessionHandle>>> = Arc::default();
        let sink = Arc::new(move |event| match event {
            ServerEvent::Opened { id, handle, .. } => drop(handles.lock().unwrap().insert(id, handle)),
            ServerEvent::Closed { id, .. } => drop(handles.lock().unwrap().remove(&id)),
            ServerEvent::Text { id, text } => {
                let session = MinerSession { id, handle: handles.lock().unwrap()[&id].clone() };
                let message = ValidatorToMiner::decode(&text).unwrap();
                drop(tx.send(message.clone()));
                if let ValidatorToMiner::ValidatorAuthForMiner(auth) = &message {
                    auth.verify().unwrap();
                    let manifest = [(phalanx::protocol::ExecutorClass::AlwaysOnTest, Int::from(executors))];
                    session.say(V0ExecutorManifestRequest { manifest: manifest.into_iter().collect() });
                } else {
                    script(&session, message);
                }
            }
        });
        let server = Server::start(ServerConfig::new("min"), listener, world.timer(), Arc::new(|_| Ok(())), sink);
        Self { server: Some(server), received }
    }

    pub fn stop(mut self) {
        let server = self.server.take().unwrap();
        assert!(stop(LONG, |step| server.stop_in(step, "")).is_clean());
    }
}

/// A job signed by `user`, with limits of a minute each.
pub fn job(user: &KeyPair) -> V2JobRequest {
    let text = include_str!("../fixtures/job_request.json");
    let Ok(FacilitatorToValidator::V2JobRequest(mut job)) = FacilitatorToValidator::decode(text) else {
        panic!("no job: {text}")
    };
    job.uuid = uuid::Uuid::new_v4().to_string();
    job.sign(user, now_ns());
    job
}

/// The time of a signature of now: validators take no old one.
pub fn now_ns() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    u64::try_from(now.as_nanos()).unwrap()
}
