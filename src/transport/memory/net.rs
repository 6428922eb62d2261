//! Names instead of addresses: listeners, dialers, and what goes wrong between them.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, bounded, select};

use super::wire::Wire;
use crate::base::clock::Clock;
use crate::base::lock::lock;
use crate::base::shutdown::{Level, Never, Shutdown};
use crate::base::waits::waiting;
use crate::net::dial::DialError;
use crate::transport::handshake::refusal_status;
use crate::transport::url::WsUrl;
use crate::transport::{
    Connection, DialRequest, Dialer, HandshakeRequest, Listener, ListenerKick, Pending, Polled, Refusal, SocketLimits,
    TransportError,
};

/// Dials that wait for one listener's `accept`; further ones block, as with a socket whose backlog is full.
const BACKLOG: usize = 64;

/// What a planned dial meets instead of a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DialFault {
    /// A closed port.
    Refused,
    /// A server that answers the upgrade with this status.
    Status(u16),
    /// A host that never answers: the dial ends at its deadline or by the shutdown signal.
    Hang,
}

/// A network within the process; clones are the same network.
#[derive(Clone, Default)]
pub struct MemoryNet(Arc<Mutex<NetState>>);

type Plan = Box<dyn FnOnce(&Wire) + Send>;

#[derive(Default)]
struct NetState {
    clock: Clock,
    listeners: HashMap<String, Sender<MemoryPending>>,
    faults: VecDeque<DialFault>,
    plans: VecDeque<Plan>,
    wires: Vec<Wire>,
    dials: usize,
}

impl MemoryNet {
    /// A network without listeners and faults.
    pub fn new() -> Self {
        Self::default()
    }

    /// A network whose dials end at deadlines of that clock, and whose connections end by it.
    pub fn with_clock(clock: Clock) -> Self {
        Self(Arc::new(Mutex::new(NetState { clock, ..NetState::default() })))
    }

    /// A listener that is dialled as `ws://name` or `wss://name`; `name` may have a port. It takes the place of an
    /// earlier one.
    pub fn listener(&self, name: &str) -> MemoryListener {
        let (queue, incoming) = bounded(BACKLOG);
        lock(&self.0).listeners.insert(name.to_owned(), queue);
        MemoryListener { name: name.to_owned(), incoming, stopped: Shutdown::new() }
    }

    /// A dialer of this network.
    pub fn dialer(&self) -> MemoryDialer {
        MemoryDialer(self.clone())
    }

    /// The next `dials` dials meet `fault`, after those already planned.
    pub fn fail_next(&self, dials: usize, fault: DialFault) {
        lock(&self.0).faults.extend(std::iter::repeat_n(fault, dials));
    }

    /// Runs `plan` on the wire of the next connection before either end has it; several plans are for several
    /// connections.
    pub fn plan_next(&self, plan: impl FnOnce(&Wire) + Send + 'static) {
        lock(&self.0).plans.push_back(Box::new(plan));
    }

    /// The wires of all connections so far, oldest first.
    pub fn wires(&self) -> Vec<Wire> {
        lock(&self.0).wires.clone()
    }

    /// Dials so far, whatever became of them.
    pub fn dials(&self) -> usize {
        lock(&self.0).dials
    }

    fn new_wire(&self) -> Wire {
        let (wire, plan) = {
            let mut state = lock(&self.0);
            let wire = Wire::new(state.clock.clone());
            state.wires.push(wire.clone());
            (wire, state.plans.pop_front())
        };
        if let Some(plan) = plan {
            plan(&wire);
        }
        wire
    }
}

impl fmt::Debug for MemoryNet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MemoryNet")
    }
}

/// Dials the listeners of a [`MemoryNet`].
#[derive(Debug, Clone)]
pub struct MemoryDialer(MemoryNet);

impl Dialer for MemoryDialer {
    fn dial(&self, request: &DialRequest<'_>, shutdown: &Shutdown, level: Level) -> Result<Connection, TransportError> {
        let url = WsUrl::parse(request.url)?;
        let (fault, listener, clock) = {
            let mut state = lock(&self.0.0);
            state.dials += 1;
            (state.faults.pop_front(), state.listeners.get(&url.authority).cloned(), state.clock.clone())
        };
        let start = clock.now();
        let stop: &Receiver<Never> =
            if level == Level::Cancel { shutdown.cancel_receiver() } else { shutdown.drain_receiver() };
        let moment = clock.at(request.deadline);
        let deadline = moment.receiver();
        let late = || {
            let after = clock.now().saturating_duration_since(start);
            TransportError::Timeout { doing: "handshake", peer: url.authority.clone(), after }
        };
        let refused = || {
            let failures = vec![(url.authority.clone(), io::ErrorKind::ConnectionRefused.into())];
            TransportError::Dial(DialError::Connect { failures })
        };
        match fault {
            None => {}
            Some(DialFault::Refused) => return Err(refused()),
            Some(DialFault::Status(status)) => return Err(TransportError::refused(status, String::new())),
            Some(DialFault::Hang) => select! {
                recv(stop) -> _ => return Err(TransportError::Stopped),
                recv(deadline) -> _ => return Err(late()),
            },
        }
        if shutdown.level() >= level {
            return Err(TransportError::Stopped);
        }
        let (reply, answer) = bounded(1);
        let pending = MemoryPending {
            request: HandshakeRequest { path: url.path.clone(), headers: request.headers.to_vec() },
            limits: request.limits,
            name: url.authority.clone(),
            net: self.0.clone(),
            reply,
        };
        let listener = listener.ok_or_else(refused)?;
        select! {
            send(listener, pending) -> sent => sent.map_err(|_| refused())?,
            recv(stop) -> _ => return Err(TransportError::Stopped),
            recv(deadline) -> _ => return Err(late()),
        }
        select! {
            recv(answer) -> answer => match answer {
                Ok(Ok(connection)) => Ok(connection),
                Ok(Err(Refusal { status, body, retry_after })) => {
                    Err(TransportError::Refused { status, body, retry_after })
                }
                Err(_) => {
                    let problem = "the server closed the connection instead of answering".to_owned();
                    Err(TransportError::Handshake { peer: url.authority, problem })
                }
            },
            recv(stop) -> _ => Err(TransportError::Stopped),
            recv(deadline) -> _ => Err(late()),
        }
    }
}

/// Accepts the dials to one name of a [`MemoryNet`]. When it is dropped, dials to that name are refused.
#[derive(Debug)]
pub struct MemoryListener {
    name: String,
    incoming: Receiver<MemoryPending>,
    stopped: Shutdown,
}

impl Listener for MemoryListener {
    fn accept(&self) -> Result<Box<dyn Pending>, TransportError> {
        if self.stopped.is_set() {
            return Err(TransportError::Stopped);
        }
        let _waiting = waiting("a connection", None);
        select! {
            recv(self.stopped.drain_receiver()) -> _ => Err(TransportError::Stopped),
            // The network keeps the sender until another listener takes the name, so this one is as good as stopped.
            recv(self.incoming) -> pending => match pending {
                Ok(pending) => Ok(Box::new(pending)),
                Err(_) => Err(TransportError::Stopped),
            },
        }
    }

    fn kick(&self) -> ListenerKick {
        let stopped = self.stopped.clone();
        ListenerKick::new(move || stopped.drain())
    }

    fn url(&self) -> String {
        format!("ws://{}", self.name)
    }
}

struct MemoryPending {
    request: HandshakeRequest,
    limits: SocketLimits,
    name: String,
    net: MemoryNet,
    reply: Sender<Result<Connection, Refusal>>,
}

impl Pending for MemoryPending {
    fn peer(&self) -> String {
        format!("dialer of {}", self.name)
    }

    fn handshake(
        self: Box<Self>,
        limits: &SocketLimits,
        _deadline: Instant,
        shutdown: &Shutdown,
        level: Level,
        check: &mut dyn FnMut(&HandshakeRequest) -> Result<(), Refusal>,
    ) -> Result<(Connection, HandshakeRequest), TransportError> {
        if shutdown.level() >= level {
            return Err(TransportError::Stopped);
        }
        let peer = self.peer();
        let Self { request, limits: dialer_limits, name, net, reply } = *self;
        if let Err(Refusal { status, body, retry_after }) = check(&request) {
            let status = refusal_status(status).as_u16();
            // A dialer that has given up does not need the refusal.
            let _ = reply.send(Err(Refusal { status, body: body.clone(), retry_after }));
            return Err(TransportError::refused(status, body));
        }
        let [dialer, listener] = net.new_wire().ends([&dialer_limits, limits], [&name, &peer]);
        reply.send(Ok(dialer)).map_err(|_| TransportError::Closed)?;
        Ok((listener, request))
    }

    fn polled(self: Box<Self>, _: &SocketLimits) -> Result<Box<dyn Polled>, Box<dyn Pending>> {
        Err(self)
    }
}
