//! The accepting side: one thread that accepts, two for each connection, and an owner that closes them all.
//!
//! Owner: the [`Server`]. Blocks in: `accept`; each connection's thread in its handshake, then in `read`.
//! Kick: the listener connects to itself; a connection's thread has its connection's kick, and before that the signal
//! that the handshake listens to. Ends: [`Server::stop_accepting`], then [`Server::stop`].

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tungstenite::Utf8Bytes;

use super::heartbeat::LivenessConfig;
use super::outbox::OutboxLimits;
use super::session::{self, Arrival, SessionConfig, SessionEnd, SessionHandle};
use crate::base::ids::SessionId;
use crate::base::limits::{HANDSHAKE_TIME, SERVER_CONNECTIONS};
use crate::base::lock::lock;
use crate::base::shutdown::{Level, Shutdown};
use crate::base::stop::Step;
use crate::base::thread::{Kick, Thread, spawn};
use crate::base::timer::TimerHandle;
use crate::transport::{HandshakeRequest, Listener, Pending, Refusal, SocketLimits};

/// Connections over the limit that are told so with HTTP 503, each by a thread; still further ones are just closed.
const REFUSALS: usize = 16;

/// What a server needs besides its listener.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// Prefix of the thread names, at most 3 bytes, as `fac`.
    pub name: &'static str,
    /// Limits of each socket.
    pub socket: SocketLimits,
    /// Connections at a time; more are refused with HTTP 503.
    pub connections: usize,
    /// Time for one handshake.
    pub handshake_time: Duration,
    /// When to ping and when to give up.
    pub liveness: LivenessConfig,
    /// Bounds of each connection's outbox.
    pub outbox: OutboxLimits,
}

impl ServerConfig {
    /// The default numbers.
    pub fn new(name: &'static str) -> Self {
        Self {
            name,
            socket: SocketLimits::default(),
            connections: SERVER_CONNECTIONS,
            handshake_time: HANDSHAKE_TIME,
            liveness: LivenessConfig::default(),
            outbox: OutboxLimits::default(),
        }
    }
}

/// What a role sees of its server. Events of one connection come in order, on that connection's thread.
#[derive(Debug)]
pub enum ServerEvent {
    /// A handshake is done.
    Opened {
        /// Its number.
        id: SessionId,
        /// How to send to it and how to close it.
        handle: SessionHandle,
        /// What it asked for.
        request: HandshakeRequest,
        /// Its address.
        peer: String,
    },
    /// A text arrived.
    Text {
        /// On this connection.
        id: SessionId,
        /// The text.
        text: Utf8Bytes,
    },
    /// The connection ended.
    Closed {
        /// The connection.
        id: SessionId,
        /// How.
        end: SessionEnd,
    },
}

/// Decides on a handshake by its path and headers.
pub type Route = Arc<dyn Fn(&HandshakeRequest) -> Result<(), Refusal> + Send + Sync>;

/// Takes the events of all connections, on their threads; while it blocks, that one peer is slowed by TCP.
pub type ServerSink = Arc<dyn Fn(ServerEvent) + Send + Sync>;

struct Entry {
    handle: SessionHandle,
    thread: Option<Thread<()>>,
}

type Table = Arc<Mutex<HashMap<SessionId, Entry>>>;

/// A running server.
pub struct Server {
    accept: Option<Thread<()>>,
    stop: Shutdown,
    kick: Kick,
    table: Table,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Server({} connections)", lock(&self.table).len())
    }
}

impl Server {
    /// Starts to accept.
    pub fn start(
        config: ServerConfig,
        listener: Box<dyn Listener>,
        timer: TimerHandle,
        route: Route,
        sink: ServerSink,
    ) -> Self {
        let stop = Shutdown::new();
        let table = Table::default();
        let listener_kick = listener.kick();
        let kick = Kick::new("connect to the listener", move || listener_kick.kick());
        let accepting =
            Accepting { config, timer, route, sink, stop: stop.clone(), table: table.clone(), count: Mutex::new(0) };
        let thread =
            spawn(format!("{}-accept", accepting.config.name), kick.clone(), move || accepting.run(listener.as_ref()));
        Self { accept: Some(thread), stop, kick, table }
    }

    /// Accepts no more connections; those that are open stay.
    pub fn stop_accepting(&mut self, step: &mut Step) {
        self.kick.kick();
        if let Some(thread) = self.accept.take() {
            step.join(thread);
        }
    }

    /// Closes every connection with `code` once its outbox is drained, all in parallel, and joins their threads.
    pub fn stop(mut self, step: &mut Step, code: u16, reason: &str) {
        self.stop_accepting(step);
        self.stop.drain();
        let entries: Vec<Entry> = lock(&self.table).drain().map(|(_, entry)| entry).collect();
        for entry in &entries {
            entry.handle.close(code, reason, step.deadline());
        }
        for entry in entries {
            if let Some(thread) = entry.thread {
                step.join(thread);
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kick.kick();
        self.stop.cancel();
        for entry in lock(&self.table).values() {
            entry.handle.kick();
        }
    }
}

struct Accepting {
    config: ServerConfig,
    timer: TimerHandle,
    route: Route,
    sink: ServerSink,
    stop: Shutdown,
    table: Table,
    count: Mutex<u64>,
}

impl Accepting {
    fn run(&self, listener: &dyn Listener) {
        loop {
            match listener.accept() {
                Ok(pending) => self.admit(pending),
                Err(error) if error.is_stopped() => return,
                Err(error) => {
                    log::warn!("{}: cannot accept: {error}", self.config.name);
                    // Out of descriptors, most likely: give the open connections a moment to end.
                    if self.stop.wait(Duration::from_millis(100)) {
                        return;
                    }
                }
            }
        }
    }

    /// Starts the thread of a new connection, and joins those that have ended since the last one came.
    fn admit(&self, pending: Box<dyn Pending>) {
        let ended: Vec<Entry> = {
            let mut table = lock(&self.table);
            let ids: Vec<SessionId> = table
                .iter()
                .filter(|(_, entry)| entry.thread.as_ref().is_some_and(Thread::is_finished))
                .map(|(id, _)| *id)
                .collect();
            ids.iter().filter_map(|id| table.remove(id)).collect()
        };
        drop(ended);
        let open = lock(&self.table).len();
        if open >= self.config.connections + REFUSALS {
            log::warn!("{}: {open} connections are open, a further one is dropped", self.config.name);
            return;
        }
        let full = open >= self.config.connections;
        let id = SessionId::fresh();
        let handle = SessionHandle::new(self.config.outbox, self.timer.clone());
        let number = {
            let mut count = lock(&self.count);
            *count = (*count + 1) % 100_000;
            *count
        };
        let name = self.config.name;
        let serve = Serve {
            id,
            handle: handle.clone(),
            config: self.config.clone(),
            session: SessionConfig {
                writer_name: format!("{name}-wr-{number}"),
                liveness: self.config.liveness,
                beat: None,
            },
            route: self.route.clone(),
            sink: self.sink.clone(),
            stop: self.stop.child(),
            full,
        };
        let (kick_stop, kick_handle) = (serve.stop.clone(), handle.clone());
        let kick = Kick::new("handshake signal and connection", move || {
            kick_stop.cancel();
            kick_handle.kick();
        });
        let mut table = lock(&self.table);
        let thread = spawn(format!("{name}-rd-{number}"), kick, move || serve.run(pending));
        table.insert(id, Entry { handle, thread: Some(thread) });
    }
}

struct Serve {
    id: SessionId,
    handle: SessionHandle,
    config: ServerConfig,
    session: SessionConfig,
    route: Route,
    sink: ServerSink,
    stop: Shutdown,
    full: bool,
}

impl Serve {
    fn run(self, pending: Box<dyn Pending>) {
        let peer = pending.peer().to_string();
        let deadline = Instant::now() + self.config.handshake_time;
        let mut decide = |request: &HandshakeRequest| {
            if self.full {
                return Err(Refusal { status: 503, body: "too many connections".to_owned() });
            }
            (self.route)(request)
        };
        let accepted = pending.handshake(&self.config.socket, deadline, &self.stop, Level::Drain, &mut decide);
        let (connection, request) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                log::debug!("{}: no handshake with {peer}: {error}", self.config.name);
                return;
            }
        };
        let Self { id, handle, session, sink, stop, .. } = self;
        sink(ServerEvent::Opened { id, handle: handle.clone(), request, peer });
        // Registered before the session begins: a kick before that finds no connection.
        let kick = connection.kick.clone();
        let _stop = stop.on(Level::Cancel, move || kick.kick());
        let end = session::run(connection, &handle, &session, |arrival| {
            if let Arrival::Text(text) = arrival {
                sink(ServerEvent::Text { id, text });
            }
        });
        sink(ServerEvent::Closed { id, end });
    }
}
