//! Counts what goes over the connections with one kind of peer: a [`Dialer`] and a [`Listener`] around others. Each
//! text passes here once, whoever sends it, so nobody else counts messages.

use std::fmt;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Instant;

use super::{
    Connection, DialRequest, Dialer, HandshakeRequest, Incoming, Listener, ListenerKick, Pending, Polled, ReadHalf,
    Refusal, SocketLimits, TransportError, Utf8Bytes, WriteHalf,
};
use crate::base::shutdown::{Level, Shutdown};
use crate::ops::health::Health;
use crate::ops::metrics::{Counter, Gauge, Metrics};

/// What a text is counted as whose type is none of those that are known.
const OTHER: &str = "other";

/// The types of the messages of one direction, which are the values of a label.
#[derive(Debug, Clone, Copy)]
pub struct MessageTypes {
    /// All that have one.
    pub names: &'static [&'static str],
    /// What a text without a type is.
    pub untyped: &'static str,
    /// Finds the type in a text, as it stands there.
    pub type_of: fn(&str) -> Option<&str>,
}

impl MessageTypes {
    /// These; a text without a type is `other`.
    pub const fn of(names: &'static [&'static str], type_of: fn(&str) -> Option<&str>) -> Self {
        Self { names, untyped: OTHER, type_of }
    }

    /// All labels: the names, that of a text without a type, that of all others.
    fn labels(&self) -> impl Iterator<Item = &'static str> {
        self.names.iter().copied().chain([self.untyped, OTHER])
    }

    /// The place of a text's type among the labels.
    fn place_of(&self, text: &str) -> usize {
        let Some(found) = (self.type_of)(text) else { return self.names.len() };
        self.names.iter().position(|name| *name == found).unwrap_or(self.names.len() + 1)
    }
}

/// What is counted of all connections with one kind of peer; clones are the same. It blocks on nothing.
#[derive(Clone)]
pub struct PeerMeters(Arc<PeerCounters>);

struct PeerCounters {
    peer: &'static str,
    received_types: MessageTypes,
    /// One for each label.
    received: Vec<Counter>,
    sent_types: MessageTypes,
    sent: Vec<Counter>,
    not_sent: Vec<Counter>,
    pings: Counter,
    pongs: Counter,
    dials: [Counter; DIALS.len()],
    dialling: Gauge,
    opened: Counter,
    open: Gauge,
}

/// How a dial ends, as a label.
const DIALS: [&str; 5] = ["connected", "refused", "timeout", "stopped", "failed"];

impl fmt::Debug for PeerMeters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PeerMeters({})", self.0.peer)
    }
}

impl PeerMeters {
    /// Counts under this value of the label `peer`: what is sent to peers of the kind, and what they send.
    pub fn new(metrics: &Metrics, peer: &'static str, sent: MessageTypes, received: MessageTypes) -> Self {
        let sent_by = |result: &'static str| {
            move |kind| {
                let help = "Messages that were written to peers of a kind, by type and result.";
                let labels = [("peer", peer), ("type", kind), ("result", result)];
                metrics.counter("phalanx_messages_sent_total", help, &labels)
            }
        };
        let received_by = |kind| {
            let help = "Messages that came from peers of a kind, by type.";
            metrics.counter("phalanx_messages_received_total", help, &[("peer", peer), ("type", kind)])
        };
        let pings = |result| {
            let help = "Pings to peers of a kind that were silent: sent and answered ones.";
            metrics.counter("phalanx_pings_total", help, &[("peer", peer), ("result", result)])
        };
        let state = |state| {
            let help = "Connections with peers of a kind, by state.";
            metrics.gauge("phalanx_connections", help, &[("peer", peer), ("state", state)])
        };
        let dials = |result| {
            let help = "Attempts to connect to peers of a kind, by result.";
            metrics.counter("phalanx_dials_total", help, &[("peer", peer), ("result", result)])
        };
        let help = "Connections that were opened with peers of a kind, by either side.";
        Self(Arc::new(PeerCounters {
            peer,
            received_types: received,
            received: received.labels().map(received_by).collect(),
            sent_types: sent,
            sent: sent.labels().map(sent_by("sent")).collect(),
            not_sent: sent.labels().map(sent_by("failed")).collect(),
            pings: pings("sent"),
            pongs: pings("answered"),
            dials: DIALS.map(dials),
            dialling: state("dialling"),
            opened: metrics.counter("phalanx_connections_opened_total", help, &[("peer", peer)]),
            open: state("open"),
        }))
    }

    /// What dials as `dialer` does, and counts.
    pub fn dialer(&self, dialer: Arc<dyn Dialer>) -> Arc<dyn Dialer> {
        Arc::new(CountedDialer { dialer, meters: self.clone() })
    }

    fn received(&self, text: &str) {
        self.0.received[self.0.received_types.place_of(text)].inc();
    }

    fn count(&self, connection: Connection) -> Connection {
        self.0.opened.inc();
        let Connection { reader, writer, kick, traffic, intake, peer } = connection;
        let open = Held::of(&self.0.open);
        let reader = Box::new(CountedReader { reader, meters: self.clone(), _open: open });
        let writer = Box::new(CountedWriter { writer, meters: self.clone() });
        Connection { reader, writer, kick, traffic, intake, peer }
    }
}

/// One more in a gauge, until it is dropped.
struct Held(Gauge);

impl Held {
    fn of(gauge: &Gauge) -> Self {
        gauge.add(1.0);
        Self(gauge.clone())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.add(-1.0);
    }
}

struct CountedDialer {
    dialer: Arc<dyn Dialer>,
    meters: PeerMeters,
}

impl Dialer for CountedDialer {
    fn dial(&self, request: &DialRequest<'_>, shutdown: &Shutdown, level: Level) -> Result<Connection, TransportError> {
        let dialling = Held::of(&self.meters.0.dialling);
        let dialled = self.dialer.dial(request, shutdown, level);
        drop(dialling);
        let result = match &dialled {
            Ok(_) => 0,
            Err(TransportError::Refused { .. } | TransportError::Moved { .. }) => 1,
            Err(error) if error.is_timeout() => 2,
            Err(error) if error.is_stopped() => 3,
            Err(_) => 4,
        };
        self.meters.0.dials[result].inc();
        dialled.map(|connection| self.meters.count(connection))
    }
}

/// Whose connection it is, by what it asks for; `None` is not counted. It must not block.
pub type MetersOf = Arc<dyn Fn(&HandshakeRequest) -> Option<PeerMeters> + Send + Sync>;

/// What listens as `listener` does, and counts.
pub fn counted_listener(listener: Box<dyn Listener>, of: MetersOf) -> Box<dyn Listener> {
    Box::new(CountedListener { listener, of })
}

fn counted(opened: (Connection, HandshakeRequest), of: &MetersOf) -> (Connection, HandshakeRequest) {
    let (connection, request) = opened;
    match of(&request) {
        Some(meters) => (meters.count(connection), request),
        None => (connection, request),
    }
}

struct CountedListener {
    listener: Box<dyn Listener>,
    of: MetersOf,
}

impl Listener for CountedListener {
    fn accept(&self) -> Result<Box<dyn Pending>, TransportError> {
        Ok(Box::new(CountedPending { pending: self.listener.accept()?, of: self.of.clone() }))
    }

    fn kick(&self) -> ListenerKick {
        self.listener.kick()
    }

    fn url(&self) -> String {
        self.listener.url()
    }

    fn watch(&mut self, health: &Health) {
        self.listener.watch(health);
    }
}

struct CountedPending {
    pending: Box<dyn Pending>,
    of: MetersOf,
}

impl Pending for CountedPending {
    fn peer(&self) -> String {
        self.pending.peer()
    }

    fn handshake(
        self: Box<Self>,
        limits: &SocketLimits,
        deadline: Instant,
        shutdown: &Shutdown,
        level: Level,
        check: &mut dyn FnMut(&HandshakeRequest) -> Result<(), Refusal>,
    ) -> Result<(Connection, HandshakeRequest), TransportError> {
        self.pending.handshake(limits, deadline, shutdown, level, check).map(|opened| counted(opened, &self.of))
    }

    fn polled(self: Box<Self>, limits: &SocketLimits) -> Result<Box<dyn Polled>, Box<dyn Pending>> {
        let Self { pending, of } = *self;
        match pending.polled(limits) {
            Ok(polled) => Ok(Box::new(CountedPolled { polled, of })),
            Err(pending) => Err(Box::new(Self { pending, of })),
        }
    }
}

struct CountedPolled {
    polled: Box<dyn Polled>,
    of: MetersOf,
}

impl Polled for CountedPolled {
    fn descriptor(&self) -> Arc<dyn AsFd + Send + Sync> {
        self.polled.descriptor()
    }

    fn peer(&self) -> &str {
        self.polled.peer()
    }

    fn advance(
        &mut self,
        check: &mut dyn FnMut(&HandshakeRequest) -> Result<(), Refusal>,
    ) -> Result<Option<(Connection, HandshakeRequest)>, TransportError> {
        Ok(self.polled.advance(check)?.map(|opened| counted(opened, &self.of)))
    }

    fn has_left(&self) -> bool {
        self.polled.has_left()
    }

    fn linger(&mut self) -> bool {
        self.polled.linger()
    }
}

struct CountedReader {
    reader: Box<dyn ReadHalf>,
    meters: PeerMeters,
    _open: Held,
}

impl CountedReader {
    fn count(&self, incoming: &Incoming) {
        match incoming {
            Incoming::Text(text) => self.meters.received(text),
            Incoming::Pong => self.meters.0.pongs.inc(),
            _ => {}
        }
    }
}

impl ReadHalf for CountedReader {
    fn read(&mut self) -> Result<Incoming, TransportError> {
        self.reader.read().inspect(|incoming| self.count(incoming))
    }

    fn read_ready(&mut self) -> Result<Option<Incoming>, TransportError> {
        let incoming = self.reader.read_ready()?;
        Ok(incoming.inspect(|incoming| self.count(incoming)))
    }

    fn read_now(&mut self) -> Result<Option<Incoming>, TransportError> {
        let incoming = self.reader.read_now()?;
        Ok(incoming.inspect(|incoming| self.count(incoming)))
    }

    fn is_shut(&self) -> bool {
        self.reader.is_shut()
    }

    fn drain_now(&mut self) -> bool {
        self.reader.drain_now()
    }

    fn descriptor(&self) -> Option<Arc<dyn AsFd + Send + Sync>> {
        self.reader.descriptor()
    }
}

struct CountedWriter {
    writer: Box<dyn WriteHalf>,
    meters: PeerMeters,
}

impl WriteHalf for CountedWriter {
    fn write(&mut self, text: Utf8Bytes) -> Result<(), TransportError> {
        let PeerCounters { sent_types, sent, not_sent, .. } = &*self.meters.0;
        let place = sent_types.place_of(&text);
        let written = self.writer.write(text);
        let by_result = if written.is_ok() { sent } else { not_sent };
        by_result[place].inc();
        written
    }

    fn flush(&mut self) -> Result<(), TransportError> {
        self.writer.flush()
    }

    fn try_flush(&mut self) -> Result<bool, TransportError> {
        self.writer.try_flush()
    }

    fn flush_rest(&mut self) -> Result<bool, TransportError> {
        self.writer.flush_rest()
    }

    fn ping(&mut self) -> Result<(), TransportError> {
        self.meters.0.pings.inc();
        self.writer.ping()
    }

    fn close(&mut self, code: u16, reason: &str) -> Result<(), TransportError> {
        self.writer.close(code, reason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::kind_of;

    const TYPES: MessageTypes =
        MessageTypes { names: &["V0Heartbeat", "V0Job"], untyped: "Response", type_of: kind_of };

    fn label(text: &str) -> &'static str {
        TYPES.labels().nth(TYPES.place_of(text)).unwrap()
    }

    #[test]
    fn a_text_is_counted_by_its_type_and_one_of_no_known_type_as_another() {
        for (text, kind) in [
            (r#"{"message_type":"V0Heartbeat"}"#, "V0Heartbeat"),
            (r#"{"signature":{},"message_type":"V0Job"}"#, "V0Job"),
            (r#"{"status":"success"}"#, "Response"),
            (r#"{"message_type":"V0JobX"}"#, OTHER),
            ("", "Response"),
        ] {
            assert_eq!(label(text), kind, "{text}");
        }
    }

    #[test]
    fn each_direction_has_its_own_counters_and_an_open_connection_is_one_until_it_is_dropped() {
        let metrics = Metrics::new();
        let meters = PeerMeters::new(&metrics, "miner", TYPES, MessageTypes::of(&["V0Job"], kind_of));
        meters.0.sent[TYPES.place_of(r#"{"message_type":"V0Heartbeat"}"#)].inc();
        meters.received("{}");
        let open = [Held::of(&meters.0.open), Held::of(&meters.0.open)];
        let rendered = metrics.render();
        for line in [
            r#"phalanx_messages_sent_total{peer="miner",type="V0Heartbeat",result="sent"} 1"#,
            r#"phalanx_messages_sent_total{peer="miner",type="V0Heartbeat",result="failed"} 0"#,
            r#"phalanx_messages_received_total{peer="miner",type="other"} 1"#,
            r#"phalanx_connections{peer="miner",state="open"} 2"#,
        ] {
            assert!(rendered.lines().any(|found| found == line), "{line} in:\n{rendered}");
        }
        drop(open);
        assert_eq!(meters.0.open.get().to_bits(), 0f64.to_bits());
    }
}
