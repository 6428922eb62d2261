//! Many scripted miners on loopback for those that only ask for their manifests: one server, which knows by its hotkey
//! who is meant, a port where nobody answers, and one where nobody is.

use std::collections::HashMap;
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use phalanx::base::ids::SessionId;
use phalanx::base::timer::{Alarm, TimerHandle};
use phalanx::identity::{KeyPair, PublicKey};
use phalanx::link::server::{Server, ServerConfig, ServerEvent};
use phalanx::link::{Outgoing, SessionHandle};
use phalanx::protocol::{ExecutorClass, GenericError, MinerToValidator, V0ExecutorManifestRequest, ValidatorToMiner};
use phalanx::transport::ServerTls;
use phalanx::transport::ws::WsListener;
use phalanx::validator::MinerAddress;

use super::roles::stop;
use super::wait::LONG;

/// What a miner does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Conduct {
    /// It offers so many executors.
    Offers(u32),
    /// The same after a while.
    Slow(Duration, u32),
    /// The system takes the connection, and nobody ever accepts it.
    BlackHole,
    /// It accepts, and says nothing to the authentication.
    Silent,
    /// Nobody listens.
    Refuses,
    /// What it says is no message.
    Garbage,
    /// It says another message first.
    Wrong,
    /// Its manifest cannot be.
    Absurd,
    /// What it says is a message, and too long.
    Large,
    /// It does not know us.
    Unknown,
    /// It breaks each connection at the authentication.
    Cuts,
    /// It breaks the first so many connections, and offers an executor then.
    CutsFirst(usize),
}

/// The miners. Dropping it without a stop is a test that has failed.
pub struct Fleet {
    server: Option<Server>,
    server_address: SocketAddr,
    /// Open, and never accepted from.
    hole: TcpListener,
    nobody: SocketAddr,
    conducts: Arc<Mutex<HashMap<PublicKey, (Conduct, usize)>>>,
    /// Connections that were ever opened.
    pub opened: Arc<AtomicUsize>,
    handles: Arc<Mutex<HashMap<SessionId, SessionHandle>>>,
}

impl Fleet {
    pub fn start(timer: TimerHandle) -> Self {
        let listener = WsListener::bind(SocketAddr::from(([127, 0, 0, 1], 0)), None::<ServerTls>).unwrap();
        let server_address = listener.local_addr();
        let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let conducts: Arc<Mutex<HashMap<PublicKey, (Conduct, usize)>>> = Arc::default();
        let handles: Arc<Mutex<HashMap<SessionId, SessionHandle>>> = Arc::default();
        let opened: Arc<AtomicUsize> = Arc::default();
        let late: Arc<Mutex<Vec<Alarm>>> = Arc::default();
        let (known, open, count, alarms) = (conducts.clone(), handles.clone(), opened.clone(), timer.clone());
        let sink = Arc::new(move |event| match event {
            ServerEvent::Opened { id, handle, .. } => {
                count.fetch_add(1, Ordering::SeqCst);
                open.lock().unwrap().insert(id, handle);
            }
            ServerEvent::Closed { id, .. } => drop(open.lock().unwrap().remove(&id)),
            ServerEvent::Text { id, text } => {
                let Ok(ValidatorToMiner::ValidatorAuthForMiner(auth)) = ValidatorToMiner::decode(&text) else { return };
                let handle = open.lock().unwrap()[&id].clone();
                let miner: PublicKey = auth.miner_hotkey.parse().unwrap();
                let conduct = {
                    let mut known = known.lock().unwrap();
                    let (conduct, asked) = known.get_mut(&miner).unwrap();
                    *asked += 1;
                    match *conduct {
                        Conduct::CutsFirst(n) if *asked <= n => Conduct::Cuts,
                        Conduct::CutsFirst(_) => Conduct::Offers(1),
                        other => other,
                    }
                };
                match conduct {
                    Conduct::Offers(count) => say(&handle, manifest(i64::from(count))),
                    Conduct::Slow(after, count) => {
                        let alarm = alarms.at(Instant::now() + after, move || {
                            say(&handle, manifest(i64::from(count)));
                        });
                        late.lock().unwrap().push(alarm);
                    }
                    Conduct::Garbage => drop(handle.send(Outgoing::once("}{"))),
                    Conduct::Wrong => {
                        say(&handle, phalanx::protocol::V0AcceptJobRequest { job_uuid: "none".to_owned() });
                    }
                    Conduct::Large => {
                        let details = Some("x".repeat(64 << 10));
                        say(&handle, phalanx::protocol::GenericError { details });
                    }
                    Conduct::Absurd => say(&handle, manifest(-1)),
                    Conduct::Unknown => {
                        say(&handle, GenericError { details: Some("Unknown\nvalidator".to_owned()) });
                        handle.close(1000, "", LONG);
                    }
                    Conduct::Cuts => handle.kick(),
                    _ => {}
                }
            }
        });
        let server = Server::start(ServerConfig::new("t-fl"), Box::new(listener), timer, Arc::new(|_| Ok(())), sink);
        let hole = TcpListener::bind("127.0.0.1:0").unwrap();
        Self { server: Some(server), server_address, hole, nobody, conducts, opened, handles }
    }

    /// Another miner.
    pub fn add(&self, conduct: Conduct) -> MinerAddress {
        let mut conducts = self.conducts.lock().unwrap();
        let number = conducts.len() as u32;
        let mut bytes = [0; 32];
        bytes[..4].copy_from_slice(&number.to_le_bytes());
        let hotkey = PublicKey::from_bytes(bytes);
        conducts.insert(hotkey, (conduct, 0));
        let address = match conduct {
            Conduct::BlackHole => self.hole.local_addr().unwrap(),
            Conduct::Refuses => self.nobody,
            _ => self.server_address,
        };
        MinerAddress { hotkey, address: "127.0.0.1".to_owned(), port: address.port(), trusted: false, tls: false }
    }

    /// How often it was asked.
    pub fn asked(&self, miner: &MinerAddress) -> usize {
        self.conducts.lock().unwrap()[&miner.hotkey].1
    }

    /// Connections that are open now.
    pub fn open(&self) -> usize {
        self.handles.lock().unwrap().len()
    }

    pub fn stop(mut self) {
        let server = self.server.take().unwrap();
        assert!(stop(LONG, |step| server.stop_in(step, "")).is_clean());
    }
}

/// The validator that asks.
pub fn validator() -> KeyPair {
    KeyPair::from_uri("//Validator").unwrap()
}

fn manifest(count: i64) -> V0ExecutorManifestRequest {
    V0ExecutorManifestRequest { manifest: [(ExecutorClass::AlwaysOnTest, count.into())].into_iter().collect() }
}

fn say(handle: &SessionHandle, message: impl Into<MinerToValidator>) {
    // The peer may have gone.
    drop(handle.send(Outgoing::once(message.into().encode())));
}
