//! The wire between two ends: two bounded lanes, a lock and a condition variable.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tungstenite::error::CapacityError;
use tungstenite::protocol::CloseFrame;
use tungstenite::{Error, Message};

use crate::base::clock::Clock;
use crate::base::lock::lock;
use crate::base::waits::waiting_unless_noted;
use crate::net::wake::Wake;
use crate::transport::control::Control;
use crate::transport::reader::{Reader, Receive};
use crate::transport::writer::{Transmit, Writer};
use crate::transport::{CLOSE_DRAIN_TIME, Connection, ConnectionKick, Intake, SocketLimits, Traffic};

/// Bytes under way in one direction before its writer blocks, about what a loopback socket holds; one larger message
/// passes alone.
pub const WIRE_BYTES: usize = 256 << 10;

/// What a frame counts beside its payload, so that empty ones are bounded as well.
const FRAME_BYTES: usize = 16;

/// One end of a wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The one that dialled.
    Dialer,
    /// The one that accepted.
    Listener,
}

impl Side {
    fn other(self) -> Self {
        match self {
            Self::Dialer => Self::Listener,
            Self::Listener => Self::Dialer,
        }
    }
}

/// A test's hand on one connection; clones are the same wire. No method blocks.
///
/// A direction is named by the side that sends in it.
#[derive(Clone, Default)]
pub struct Wire(Arc<WireShared>);

#[derive(Default)]
struct WireShared {
    lanes: Mutex<[Lane; 2]>,
    changed: Condvar,
    /// For the drain at the end.
    clock: Clock,
}

fn wire_bytes(frame: &Message) -> usize {
    frame.len() + FRAME_BYTES
}

/// One direction.
#[derive(Default)]
struct Lane {
    frames: VecDeque<Message>,
    bytes: usize,
    /// Nothing more gets in; what is in still arrives, and then the end.
    ended: bool,
    /// The side that reads has gone.
    unread: bool,
    /// The side that reads was kicked: it does not even get what has arrived.
    reader_kicked: bool,
    withheld: bool,
    stalled: bool,
    /// Raised while the side that reads has something to read, for whoever polls that.
    readable: Option<Wake>,
    /// Messages let in so far, and how many may get in before the wire is disconnected.
    messages: usize,
    disconnect_after: Option<usize>,
}

impl Lane {
    fn put(&mut self, frame: Message) {
        self.bytes += wire_bytes(&frame);
        self.frames.push_back(frame);
    }

    fn take(&mut self) -> Option<Message> {
        let frame = self.frames.pop_front()?;
        self.bytes -= wire_bytes(&frame);
        Some(frame)
    }

    /// Tells whoever polls, if there is something to read.
    fn tell(&self) {
        if let Some(readable) = &self.readable
            && (self.reader_kicked || (!self.withheld && (self.ended || !self.frames.is_empty())))
        {
            readable.raise();
        }
    }

    fn has_room_for(&self, frame: &Message) -> bool {
        !self.stalled && (self.frames.is_empty() || self.bytes + wire_bytes(frame) <= WIRE_BYTES)
    }
}

fn disconnect(lanes: &mut [Lane; 2]) {
    lanes.iter_mut().for_each(|lane| {
        lane.ended = true;
        lane.unread = true;
    });
}

impl Wire {
    /// A wire on whose ends time passes by that clock.
    pub(super) fn new(clock: Clock) -> Self {
        Self(Arc::new(WireShared { clock, ..WireShared::default() }))
    }

    /// Both ends; `limits` and the names of their peers are the dialer's and the listener's.
    pub(super) fn ends(&self, limits: [&SocketLimits; 2], peers: [&str; 2]) -> [Connection; 2] {
        let end = |side: Side| {
            let limits = limits[side as usize];
            let control = Arc::new(Control::default());
            let end = Arc::new(End { wire: self.clone(), side, control: control.clone(), traffic: Arc::default() });
            let kicked = Arc::downgrade(&end);
            let traffic = end.traffic.clone();
            let peer = peers[side as usize].to_owned();
            let source = Source { end: end.clone(), limit: limits.message_bytes };
            let sink = Sink { end, queued: [VecDeque::new(), VecDeque::new()], data_bytes: 0 };
            Connection {
                intake: Intake::new(|| {}),
                reader: Box::new(Reader::new(source, control.clone(), peer.clone())),
                writer: Box::new(Writer::new(sink, control, limits.write_buffer_bytes)),
                kick: ConnectionKick::new(move || {
                    if let Some(end) = kicked.upgrade() {
                        end.control.set_kicked();
                        end.shut(true);
                    }
                }),
                traffic,
                peer,
            }
        };
        [end(Side::Dialer), end(Side::Listener)]
    }

    /// Breaks the wire: no Close for either end, and what was under way still arrives.
    pub fn disconnect(&self) {
        self.change(disconnect);
    }

    /// Breaks the wire when so many more messages (not control frames) from that side are under way.
    pub fn disconnect_after(&self, from: Side, messages: usize) {
        if messages == 0 {
            return self.disconnect();
        }
        self.change(|lanes| {
            let lane = &mut lanes[from as usize];
            lane.disconnect_after = Some(lane.messages + messages);
        });
    }

    /// From now on nothing from that side arrives, not even its end, as on a network that drops every packet.
    pub fn withhold(&self, from: Side) {
        self.change(|lanes| lanes[from as usize].withheld = true);
    }

    /// What was withheld arrives, and what follows too.
    pub fn release(&self, from: Side) {
        self.change(|lanes| lanes[from as usize].withheld = false);
    }

    /// From now on that side's writer blocks, as if the peer had stopped reading long ago.
    pub fn stall(&self, from: Side) {
        self.change(|lanes| lanes[from as usize].stalled = true);
    }

    /// That side's writer goes on.
    pub fn resume(&self, from: Side) {
        self.change(|lanes| lanes[from as usize].stalled = false);
    }

    /// The other side receives a Close that this side never sent; `None` is a Close without a code.
    pub fn send_close(&self, from: Side, code: Option<u16>, reason: &str) {
        let frame = code.map(|code| CloseFrame { code: code.into(), reason: reason.into() });
        self.change(|lanes| lanes[from as usize].put(Message::Close(frame)));
    }

    /// Messages (not control frames) that side has put on the wire so far.
    pub fn messages(&self, from: Side) -> usize {
        lock(&self.0.lanes)[from as usize].messages
    }

    fn change(&self, change: impl FnOnce(&mut [Lane; 2])) {
        let mut lanes = lock(&self.0.lanes);
        change(&mut lanes);
        lanes.iter().for_each(Lane::tell);
        drop(lanes);
        self.0.changed.notify_all();
    }

    fn wait<'l>(&self, lanes: MutexGuard<'l, [Lane; 2]>, until: Option<Instant>) -> MutexGuard<'l, [Lane; 2]> {
        let _waiting = waiting_unless_noted("the peer", until);
        match until {
            None => self.0.changed.wait(lanes).unwrap_or_else(PoisonError::into_inner),
            // Whoever advances the clock wakes it, see `drain`.
            Some(until) if self.0.clock.is_manual() => {
                let _planned = self.0.clock.plan(until);
                self.0.changed.wait(lanes).unwrap_or_else(PoisonError::into_inner)
            }
            Some(until) => {
                let left = until.saturating_duration_since(self.0.clock.now());
                self.0.changed.wait_timeout(lanes, left).unwrap_or_else(PoisonError::into_inner).0
            }
        }
    }
}

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Wire")
    }
}

/// What both halves of one side hold, as a socket: gone when both are.
struct End {
    wire: Wire,
    side: Side,
    control: Arc<Control>,
    traffic: Arc<Traffic>,
}

impl End {
    fn shut(&self, kicked: bool) {
        self.wire.change(|lanes| {
            lanes[self.side as usize].ended = true;
            let received = &mut lanes[self.side.other() as usize];
            received.unread = true;
            received.reader_kicked |= kicked;
        });
    }

    /// The next frame from the peer, or `None` at the end or at `until`.
    fn next(&self, until: Option<Instant>) -> Option<Message> {
        let mut lanes = lock(&self.wire.0.lanes);
        loop {
            let lane = &mut lanes[self.side.other() as usize];
            let late = until.is_some_and(|until| until <= self.wire.0.clock.now());
            if lane.reader_kicked || late {
                return None;
            }
            if !lane.withheld {
                let frame = lane.take();
                if frame.is_some() || lane.ended {
                    self.wire.0.changed.notify_all();
                    return frame;
                }
            }
            lanes = self.wire.wait(lanes, until);
        }
    }
}

impl Drop for End {
    fn drop(&mut self) {
        self.shut(false);
    }
}

struct Source {
    end: Arc<End>,
    limit: usize,
}

impl Source {
    fn judge(&self, message: Message) -> Result<Message, Error> {
        self.end.traffic.count_read(wire_bytes(&message));
        let (size, max_size) = (message.len(), self.limit);
        if size > max_size {
            return Err(CapacityError::MessageTooLong { size, max_size }.into());
        }
        Ok(message)
    }
}

impl Receive for Source {
    fn receive(&mut self) -> Result<Message, Error> {
        let message = self.end.next(None).ok_or(Error::ConnectionClosed)?;
        self.judge(message)
    }

    fn receive_now(&mut self) -> Result<Option<Message>, Error> {
        let mut lanes = lock(&self.end.wire.0.lanes);
        let lane = &mut lanes[self.end.side.other() as usize];
        if let Some(readable) = &lane.readable {
            readable.lower();
        }
        if lane.reader_kicked {
            return Err(Error::ConnectionClosed);
        }
        if lane.withheld {
            return Ok(None);
        }
        let Some(message) = lane.take() else {
            return if lane.ended { Err(Error::ConnectionClosed) } else { Ok(None) };
        };
        lane.tell();
        drop(lanes);
        self.end.wire.0.changed.notify_all();
        self.judge(message).map(Some)
    }

    fn descriptor(&self) -> Option<Arc<dyn AsFd + Send + Sync>> {
        let mut lanes = lock(&self.end.wire.0.lanes);
        let lane = &mut lanes[self.end.side.other() as usize];
        let readable = match &lane.readable {
            Some(readable) => readable.clone(),
            None => lane.readable.insert(Wake::new().ok()?).clone(),
        };
        lane.tell();
        Some(Arc::new(readable))
    }

    fn drain(&mut self) {
        let (wire, drains) = (self.end.wire.clone(), Arc::new(()));
        let clock = &self.end.wire.0.clock;
        let until = clock.now() + CLOSE_DRAIN_TIME;
        // A condition variable knows nothing of a manual clock.
        let lasts = Arc::downgrade(&drains);
        clock.on_advance(move || lasts.upgrade().inspect(|_| wire.change(|_| {})).is_some());
        while self.end.next(Some(until)).is_some() {}
    }

    fn shut(&mut self) {
        self.end.shut(false);
    }
}

struct Sink {
    end: Arc<End>,
    /// Control frames, then messages.
    queued: [VecDeque<Message>; 2],
    data_bytes: usize,
}

impl Transmit for Sink {
    fn put_control(&mut self, message: Message) {
        self.queued[0].push_back(message);
    }

    fn put_data(&mut self, message: Message) -> usize {
        self.data_bytes += wire_bytes(&message);
        self.queued[1].push_back(message);
        self.data_bytes
    }

    fn transmit(&mut self) -> io::Result<()> {
        let Self { end, queued, data_bytes } = self;
        for frame in queued.iter_mut().flat_map(|queue| queue.drain(..)) {
            let mut lanes = lock(&end.wire.0.lanes);
            while !lanes[end.side as usize].has_room_for(&frame) && !is_broken(&lanes[end.side as usize]) {
                lanes = end.wire.wait(lanes, None);
            }
            let lane = &mut lanes[end.side as usize];
            if is_broken(lane) {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            lane.messages += usize::from(frame.is_text() || frame.is_binary());
            end.traffic.count_written(wire_bytes(&frame));
            lane.put(frame);
            if lane.disconnect_after.is_some_and(|n| n <= lane.messages) {
                disconnect(&mut lanes);
            }
            lanes.iter().for_each(Lane::tell);
            end.wire.0.changed.notify_all();
        }
        *data_bytes = 0;
        Ok(())
    }

    fn half_close(&mut self) -> io::Result<()> {
        self.end.wire.change(|lanes| lanes[self.end.side as usize].ended = true);
        Ok(())
    }
}

/// The writer cannot go on: its side was shut, or the other does not read any more.
fn is_broken(lane: &Lane) -> bool {
    lane.ended || lane.unread
}
