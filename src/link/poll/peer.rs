//! One polled connection, as the poll thread has it: what is read, what is written, when it ends.

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::inbox::{Inbox, Pushed};
use crate::base::ids::{Epoch, SessionId};
use crate::base::lock::lock;
use crate::link::events::ServerEvent;
use crate::link::handover::{Signal, WakeWriter, Work};
use crate::link::heartbeat::{LivenessConfig, Progress, Verdict, judge};
use crate::link::session::{CLOSE_REPLY_TIME, SessionEnd, SessionHandle};
use crate::net::poller::Interest;
use crate::transport::{
    CLOSE_DRAIN_TIME, Connection, ConnectionKick, Incoming, ReadHalf, Traffic, TransportError, WriteHalf,
};

/// Messages of one connection that are read before the others have their turn.
const TURN_MESSAGES: usize = 16;

/// What workers need of a connection.
pub(super) struct Served {
    /// The number that the poll knows it by.
    pub(super) number: u64,
    pub(super) inbox: Mutex<Inbox<ServerEvent>>,
}

/// What is to be done after a turn.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// A worker is to be given the connection.
    pub(super) schedule: bool,
    /// More may be there that no poll shows, so it has another turn.
    pub(super) again: bool,
    /// It is over.
    pub(super) end: Option<SessionEnd>,
    /// Binary messages, whose bytes were ignored.
    pub(super) ignored: VecDeque<usize>,
}

/// An open connection.
pub(super) struct Peer {
    id: SessionId,
    handle: SessionHandle,
    epoch: Epoch,
    reader: Box<dyn ReadHalf>,
    /// A sender may have it for a moment.
    writer: Arc<Mutex<Box<dyn WriteHalf>>>,
    kick: ConnectionKick,
    traffic: Arc<Traffic>,
    served: Arc<Served>,
    /// Not while too many events wait for a worker.
    reading: bool,
    /// It is not admitted to send more at present.
    shut: bool,
    /// The system takes no more at present.
    blocked: bool,
    /// Nothing is written after a Close but the answer to the peer's.
    closed: bool,
    ending: Option<Ending>,
    progress: Progress,
    look_at: Instant,
}

/// A connection that is over but for something small.
struct Ending {
    end: SessionEnd,
    until: Instant,
    /// What the peer sends is discarded until its stream ends; otherwise only our answer has to leave.
    drains: bool,
}

impl Peer {
    /// A connection after its handshake; `wake` has the poll thread call [`Peer::write`].
    pub(super) fn open(
        (id, number): (SessionId, u64),
        handle: SessionHandle,
        connection: Connection,
        wake: WakeWriter,
        now: Instant,
    ) -> Self {
        let Connection { reader, writer, kick, traffic, .. } = connection;
        let writer = Arc::new(Mutex::new(writer));
        let epoch = handle.attach_polled((kick.clone(), traffic.clone()), writer.clone(), wake);
        let progress = Progress::new(now, traffic.read_bytes(), traffic.written_bytes());
        Self {
            id,
            handle,
            epoch,
            reader,
            writer,
            kick,
            traffic,
            served: Arc::new(Served { number, inbox: Mutex::default() }),
            reading: true,
            shut: false,
            blocked: false,
            closed: false,
            ending: None,
            progress,
            look_at: now,
        }
    }

    /// For its workers.
    pub(super) fn served(&self) -> &Arc<Served> {
        &self.served
    }

    /// What its socket is to be watched for.
    pub(super) fn interest(&self) -> Interest {
        let read = match &self.ending {
            Some(ending) => ending.drains,
            None => self.reading && !self.shut,
        };
        Interest { read, write: self.blocked, once: false }
    }

    /// Until when it must be over, if it ends.
    pub(super) fn ends_by(&self) -> Option<Instant> {
        self.ending.as_ref().map(|ending| ending.until)
    }

    /// Breaks it; what is found then is its end.
    pub(super) fn kick(&self) {
        self.kick.kick();
    }

    /// Gives a worker an event.
    pub(super) fn push(&mut self, event: ServerEvent, outcome: &mut Outcome) {
        let bytes = if let ServerEvent::Text { text, .. } = &event { text.len() } else { 0 };
        let Pushed { schedule, pause } = lock(&self.served.inbox).push(event, bytes);
        outcome.schedule |= schedule;
        self.reading = !pause;
    }

    /// A worker has taken what had waited.
    pub(super) fn resume(&mut self) {
        self.reading = true;
    }

    /// It may be admitted to send more.
    pub(super) fn admit(&mut self) {
        self.shut = false;
    }

    /// Reads a turn's worth.
    pub(super) fn read(&mut self, now: Instant) -> Outcome {
        let mut outcome = Outcome::default();
        if let Some(ending) = &self.ending {
            if ending.drains && self.reader.drain_now() {
                outcome.end = self.ending.take().map(|ending| ending.end);
            }
            return outcome;
        }
        let mut control = false;
        for _ in 0..TURN_MESSAGES {
            if !self.reading {
                break;
            }
            outcome.again = false;
            match self.reader.read_now() {
                Ok(None) => {
                    self.shut = self.reader.is_shut();
                    break;
                }
                Ok(Some(Incoming::Text(text))) => self.push(ServerEvent::Text { id: self.id, text }, &mut outcome),
                Ok(Some(Incoming::Control)) => control = true,
                Ok(Some(Incoming::Pong)) => self.traffic.ponged(now),
                Ok(Some(Incoming::Binary(data))) => outcome.ignored.push_back(data.len()),
                Ok(Some(Incoming::Closed(info))) => {
                    self.peer_closed(SessionEnd::Closed(info), now, &mut outcome);
                    return outcome;
                }
                Err(error) => {
                    self.failed(error, now, &mut outcome);
                    return outcome;
                }
            }
            outcome.again = true;
        }
        if control {
            self.write(true, now, &mut outcome);
        }
        outcome
    }

    /// The peer's Close, or the end of its stream.
    fn peer_closed(&mut self, end: SessionEnd, now: Instant, outcome: &mut Outcome) {
        let end = self.handle.detach_polled(end);
        self.closed = true;
        let flushed = {
            let mut writer = lock(&self.writer);
            writer.flush().and_then(|()| writer.flush_rest())
        };
        if let Ok(false) = flushed {
            self.blocked = true;
            self.ending = Some(Ending { end, until: now + CLOSE_REPLY_TIME, drains: false });
        } else {
            outcome.end = Some(end);
        }
    }

    /// The connection broke, or the peer did wrong and is told so.
    fn failed(&mut self, error: TransportError, now: Instant, outcome: &mut Outcome) {
        let is_told = error.close_code().is_some() || matches!(error, TransportError::Tls { .. });
        let end = SessionEnd::Broken(error);
        if !is_told {
            outcome.end = Some(end);
            return;
        }
        self.ending = Some(Ending { end, until: now + CLOSE_DRAIN_TIME, drains: true });
        self.write(true, now, outcome);
        outcome.again = true;
    }

    /// Writes what waits, as far as the system takes it; with `control`, control frames wait in the write half.
    pub(super) fn write(&mut self, control: bool, now: Instant, outcome: &mut Outcome) {
        if let Err(error) = self.write_all(control, now) {
            // The reader reports the cause: it meets the same broken connection.
            log::debug!("writer of {} ends: {error}", self.id);
            self.blocked = false;
            self.closed = true;
            self.kick.kick();
            outcome.again = true;
        }
        if !self.blocked
            && let Some(ending) = self.ending.take_if(|ending| !ending.drains)
        {
            outcome.end = Some(ending.end);
        }
    }

    fn write_all(&mut self, control: bool, now: Instant) -> Result<(), TransportError> {
        let mut control = control;
        loop {
            if self.blocked {
                if !lock(&self.writer).flush_rest()? {
                    if control {
                        self.handle.signal(Signal::Control);
                    }
                    return Ok(());
                }
                self.blocked = false;
                self.handle.write_begins(None);
            }
            let work = if self.closed { None } else { self.handle.try_work(self.epoch, control) };
            let mut writer = lock(&self.writer);
            match work {
                Some(Work::Batch { texts, ping, .. }) => {
                    texts.into_iter().try_for_each(|text| writer.write(text))?;
                    if ping {
                        self.traffic.pinged(now);
                        writer.ping()?;
                    }
                    writer.flush()?;
                }
                Some(Work::Close(code, reason)) => {
                    writer.close(code, &reason)?;
                    self.closed = true;
                }
                // After a Close only the answer to the peer's, or to what it did wrong.
                Some(Work::Over) => return Ok(()),
                None if self.closed && control => writer.flush()?,
                None => return Ok(()),
            }
            control = false;
            if !writer.flush_rest()? {
                self.blocked = true;
                drop(writer);
                self.handle.write_begins(Some(now));
                return Ok(());
            }
        }
    }

    /// Judges whether the peer is alive; asked again and again, it does nothing until it is time.
    pub(super) fn look(&mut self, now: Instant, config: &LivenessConfig) -> Option<SessionEnd> {
        if let Some(ending) = self.ending.take_if(|ending| ending.until <= now) {
            return Some(ending.end);
        }
        if now < self.look_at || self.ending.is_some() {
            return None;
        }
        self.progress.look(now, self.traffic.read_bytes(), self.traffic.written_bytes());
        if lock(&self.served.inbox).is_busy() {
            self.progress.last_read = now;
        }
        let unmoved_since = self.handle.writing_since().map(|since| since.max(self.progress.last_written));
        match judge(config, now, self.progress.last_read, unmoved_since) {
            Verdict::Wait(then) => self.look_at = then,
            Verdict::Ping(then) => {
                self.look_at = then;
                self.handle.signal(Signal::Ping);
            }
            Verdict::Silent => return Some(SessionEnd::Silent),
            Verdict::Stuck => return Some(SessionEnd::Stuck),
        }
        None
    }

    /// It is over: nobody sends on it any more, and its socket is shut. Gives the event that says so.
    pub(super) fn finish(&mut self, end: SessionEnd, outcome: &mut Outcome) {
        let end = self.handle.detach_polled(end);
        self.kick.kick();
        self.push(ServerEvent::Closed { id: self.id, end }, outcome);
    }
}

/// How often connections are looked at: those that soon must be over each quarter of a second, the others a few times
/// in the shortest of their limits.
pub(super) fn look_every(config: &LivenessConfig, is_soon: bool) -> Duration {
    let usual = config.ping_after.min(config.dead_after).min(config.stuck_after) / 4;
    let usual = usual.max(Duration::from_millis(1));
    if is_soon { usual.min(Duration::from_millis(250)) } else { usual }
}

/// What can be polled of a connection.
pub(super) type Descriptor = Arc<dyn AsFd + Send + Sync>;
