//! One connection, from its first message to its end.
//!
//! Owner: whoever calls [`run`]; the reader is the caller's thread, the writer a thread of its own that `run` joins.
//! Blocks in: the reader in `read`, the writer on the outbox and in `write`. Kick: the connection's, which frees both.
//! Ends: when the peer closes or is lost, when the liveness verdict is final, or when [`SessionHandle::close`] was
//! asked for and the outbox is drained (or its deadline has passed).

use std::fmt;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::handover::{Handover, Signal, WakeWriter, Work};
use super::heartbeat::{LivenessConfig, Progress, Verdict, judge};
use super::outbox::{About, Answered, Full, OutboxLimits, Outgoing};
use super::recorder::{FrameWay, Recorder};
use crate::base::ids::Epoch;
use crate::base::lock::lock;
use crate::base::stop::KICK_GRACE;
use crate::base::thread::{JoinError, Kick, try_spawn};
use crate::base::timer::{Alarm, TimerHandle};
use crate::base::waits::waiting;
use crate::net::accept::Standing;
use crate::net::admission::NoPlace;
use crate::ops::throttle::Throttle;
use crate::transport::{
    CloseInfo, Connection, ConnectionKick, Incoming, Intake, Traffic, TransportError, Utf8Bytes, WriteHalf,
};

/// After the peer's Close, how long our answer to it may take to leave.
pub(super) const CLOSE_REPLY_TIME: Duration = Duration::from_secs(1);

/// Close code for a stranger that does not say in time who it is (RFC 6455, section 7.4.1).
const CLOSE_POLICY: u16 = 1008;

/// A text that is sent at once when the session begins and then at a fixed period, and is never queued.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Beat {
    /// The period.
    pub every: Duration,
    /// The text.
    pub text: Utf8Bytes,
}

/// What a session needs besides its connection.
#[derive(Debug, Clone)]
pub struct SessionConfig {
    /// Name of the writer thread, at most 15 bytes.
    pub writer_name: String,
    /// When to ping and when to give up.
    pub liveness: LivenessConfig,
    /// The heartbeat of the protocol, if it has one.
    pub beat: Option<Beat>,
}

/// How a session ended.
#[derive(Debug)]
pub enum SessionEnd {
    /// The peer closed, or answered our close.
    Closed(CloseInfo),
    /// The connection broke.
    Broken(TransportError),
    /// No byte came from the peer for longer than [`LivenessConfig::dead_after`].
    Silent,
    /// A write moved no byte for longer than [`LivenessConfig::stuck_after`].
    Stuck,
    /// Our close was not answered by its deadline.
    CloseTimeout,
    /// It was left open, for whoever goes on with it; only [`run_until`] ends like this.
    Detached(Box<Connection>),
}

impl fmt::Display for SessionEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SessionEnd::Closed(info) => write!(f, "{info}"),
            SessionEnd::Broken(error) => write!(f, "{error}"),
            SessionEnd::Silent => f.write_str("the peer was silent for too long"),
            SessionEnd::Stuck => f.write_str("the peer did not read for too long"),
            SessionEnd::CloseTimeout => f.write_str("the peer did not answer our close in time"),
            SessionEnd::Detached(_) => f.write_str("left open"),
        }
    }
}

/// What others hold of a session, or of the sessions that follow one another on a managed link: its outbox and its end.
#[derive(Clone)]
pub struct SessionHandle(Arc<SessionShared>);

struct SessionShared {
    handover: Handover<PresentConnection>,
    close_alarm: Mutex<Option<Alarm>>,
    timer: TimerHandle,
    /// Of a managed link; a server's connections have none.
    recorder: Option<Recorder>,
    /// Of a server's connection, as long as nobody knows whose it is.
    stranger: Mutex<Option<Stranger>>,
}

/// What ends when it is known whose a connection is.
struct Stranger {
    standing: Standing,
    intake: Option<Arc<Intake>>,
    /// Of its outbox, from then on.
    outbox: OutboxLimits,
    /// Closes it, if that does not come to be known in time.
    late: Option<Alarm>,
}

/// What senders and timers need of the present connection.
struct PresentConnection {
    kick: ConnectionKick,
    traffic: Arc<Traffic>,
    /// Locked by the writer thread for each of its writes, or by a sender that has its turn.
    writer: Arc<Mutex<Box<dyn WriteHalf>>>,
    /// Why it is about to be kicked, so that this is reported as the cause, not "reset".
    verdict: Option<SessionEnd>,
    /// Since when a write is under way.
    writing_since: Option<Instant>,
}

/// A loan of the writer's turn, given back on drop.
struct Turn<'a> {
    handover: &'a Handover<PresentConnection>,
    all_left: bool,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.handover.give_back(self.all_left);
    }
}

impl fmt::Debug for SessionHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionHandle")
            .field("epoch", &self.epoch())
            .field("connected", &self.is_connected())
            .field("unsent", &self.unsent())
            .finish()
    }
}

impl SessionHandle {
    /// An outbox that waits for its first connection.
    pub fn new(limits: OutboxLimits, timer: TimerHandle) -> Self {
        Self::with(limits, timer, None, None)
    }

    /// The same, with what it sends and receives put down.
    pub(super) fn recorded(limits: OutboxLimits, timer: TimerHandle, recorder: Recorder) -> Self {
        Self::with(limits, timer, None, Some(recorder))
    }

    /// The connection of a stranger, whose outbox has `limits` once it is known, and until then at most
    /// `stranger_bytes`.
    pub(super) fn stranger(
        limits: OutboxLimits,
        stranger_bytes: usize,
        timer: TimerHandle,
        standing: Standing,
    ) -> Self {
        let now = OutboxLimits { bytes: limits.bytes.min(stranger_bytes), ..limits };
        Self::with(now, timer, Some(Stranger { standing, intake: None, outbox: limits, late: None }), None)
    }

    fn with(limits: OutboxLimits, timer: TimerHandle, stranger: Option<Stranger>, recorder: Option<Recorder>) -> Self {
        let (handover, close_alarm, stranger) = (Handover::new(limits), Mutex::new(None), Mutex::new(stranger));
        Self(Arc::new(SessionShared { handover, close_alarm, timer, recorder, stranger }))
    }

    /// A text comes or goes.
    fn note_text(&self, way: FrameWay, text: &str) {
        if let Some(recorder) = &self.0.recorder {
            recorder.text(way, text);
        }
    }

    /// Another frame comes or goes.
    fn note(&self, way: FrameWay, bytes: usize) {
        if let Some(recorder) = &self.0.recorder {
            recorder.frame(way, bytes);
        }
    }

    /// It is known whose this connection of a server is: it leaves the strangers' places, and the limits of strangers
    /// end. The role says so as soon as its peer has authenticated; once is enough. Returns at once.
    pub fn known(&self) {
        let stranger = lock(&self.0.stranger).take();
        if let Some(Stranger { standing, intake, outbox, late }) = stranger {
            standing.known();
            self.0.handover.set_limits(outbox);
            if let Some(intake) = intake {
                intake.known();
            }
            drop(late);
        }
    }

    /// Whether it is known whose it is.
    pub fn is_known(&self) -> bool {
        lock(&self.0.stranger).is_none()
    }

    /// Its connection is open: until it is known it may send what its intake says, and it is closed with 1008 unless
    /// it is known by then.
    pub(super) fn known_by(&self, then: Instant, intake: Arc<Intake>) {
        let weak = Arc::downgrade(&self.0);
        let alarm = self.0.timer.at(then, move || {
            let Some(shared) = weak.upgrade() else { return };
            let stranger = lock(&shared.stranger);
            let Some(Stranger { standing, .. }) = stranger.as_ref() else { return };
            standing.closed(NoPlace::Late);
            drop(stranger);
            Self(shared).close(CLOSE_POLICY, "you have not said in time who you are", CLOSE_REPLY_TIME);
        });
        let mut stranger = lock(&self.0.stranger);
        let unused = match stranger.as_mut() {
            Some(stranger) => {
                stranger.intake = Some(intake);
                stranger.late.replace(alarm)
            }
            None => Some(alarm),
        };
        drop(stranger);
        drop(unused);
    }

    /// Puts a message into the outbox; never blocks.
    ///
    /// # Errors
    /// [`Full`], with the message.
    pub fn send(&self, message: Outgoing) -> Result<(), Full> {
        self.send_all([message]).pop().map_or(Ok(()), Err)
    }

    /// Puts messages into the outbox; gives back those that were refused. Never blocks: on an idle connection the
    /// caller itself writes as much as the system takes at once.
    pub fn send_all(&self, messages: impl IntoIterator<Item = Outgoing>) -> Vec<Full> {
        let (refused, loan) = self.0.handover.offer(messages, |present| present.writer.clone());
        if let Some((texts, writer)) = loan {
            let mut turn = Turn { handover: &self.0.handover, all_left: false };
            // Let go of before the turn is given back: whoever goes on with the connection needs it alone.
            let left = {
                let lent = writer;
                let mut writer = lock(&lent);
                let write = |text: Utf8Bytes| {
                    self.note_text(FrameWay::Sent, &text);
                    writer.write(text)
                };
                texts.into_iter().try_for_each(write).and_then(|()| writer.try_flush())
            };
            // The writer meets an error again, and reports it.
            turn.all_left = left.unwrap_or(false);
        }
        refused
    }

    /// See [`Handover::answered`]; only for the receiver of [`run`], on its thread.
    pub(super) fn answered<A>(&self, answers: impl IntoIterator<Item = (About, A)>) -> Vec<Answered<A>> {
        self.0.handover.answered(answers)
    }

    /// Takes no more messages, sends those inside and waits for their answers, then closes; whatever is not done within
    /// `time` of the timer's clock is given up with a kick. Returns at once.
    pub fn close(&self, code: u16, reason: &str, time: Duration) {
        let weak = Arc::downgrade(&self.0);
        let alarm =
            self.0.timer.at(self.0.timer.clock().now() + time, move || kick_with(&weak, SessionEnd::CloseTimeout));
        let old = lock(&self.0.close_alarm).replace(alarm);
        drop(old);
        self.0.handover.close(code, reason);
    }

    /// Ends a connection whose peer does not read: drops what waits, so that Close is what comes next, and breaks the
    /// connection after `time`. Returns at once.
    pub fn give_up(&self, code: u16, reason: &str, time: Duration) {
        self.close(code, reason, time);
        self.0.handover.give_up(code, reason);
    }

    /// Breaks the present connection at once, if there is one.
    pub fn kick(&self) {
        let kick = self.0.handover.with(|present| present.map(|present| present.kick.clone()));
        if let Some(kick) = kick {
            kick.kick();
        }
    }

    /// The texts that wait to be written: all that are unsent, when there is no connection.
    pub fn queued(&self) -> Vec<Utf8Bytes> {
        self.0.handover.queued()
    }

    /// Messages that were accepted by [`SessionHandle::send`] and not yet by the peer.
    pub fn unsent(&self) -> usize {
        self.0.handover.unsent()
    }

    /// Bytes of the messages that were accepted and not yet by the peer.
    pub fn unsent_bytes(&self) -> usize {
        self.0.handover.unsent_bytes()
    }

    /// The number of the present or last connection.
    pub fn epoch(&self) -> Epoch {
        self.0.handover.epoch()
    }

    /// How long the last ping took that was answered on the present connection.
    pub fn round_trip(&self) -> Option<Duration> {
        self.0.handover.with(|present| present?.traffic.round_trip())
    }

    /// Seconds by which the peer's clock is ahead of ours, less than 0 if it is behind, by what it said when the
    /// present connection began and how ours was set since; `None` if the peer did not say what time it is.
    pub fn clock_skew(&self) -> Option<i64> {
        self.0.handover.with(|present| present?.traffic.clock_skew())
    }

    /// Whether a connection is up.
    pub fn is_connected(&self) -> bool {
        self.0.handover.with(|present| present.is_some())
    }

    /// Whether [`SessionHandle::close`] was called.
    pub fn is_closing(&self) -> bool {
        self.0.handover.is_closing()
    }

    /// A polled connection begins, see [`Handover::attach_polled`].
    pub(super) fn attach_polled(
        &self,
        (kick, traffic): (ConnectionKick, Arc<Traffic>),
        writer: Arc<Mutex<Box<dyn WriteHalf>>>,
        wake: WakeWriter,
    ) -> Epoch {
        let present = PresentConnection { kick, traffic, writer, verdict: None, writing_since: None };
        self.0.handover.attach_polled(present, wake)
    }

    /// See [`Handover::try_work`].
    pub(super) fn try_work(&self, epoch: Epoch, control: bool) -> Option<Work> {
        self.0.handover.try_work(epoch, control)
    }

    /// See [`Handover::signal`].
    pub(super) fn signal(&self, signal: Signal) {
        self.0.handover.signal(signal);
    }

    /// The polled connection is over; gives why, which may be another cause than what was met: it was kicked for that.
    pub(super) fn detach_polled(&self, end: SessionEnd) -> SessionEnd {
        let verdict = self.0.handover.with(|present| present.and_then(|present| present.verdict.take()));
        self.0.handover.detach();
        match end {
            SessionEnd::Closed(ref info) if info.clean => {
                self.0.handover.closed(info.code);
                end
            }
            SessionEnd::Broken(_) => verdict.unwrap_or(end),
            end => end,
        }
    }

    /// Since when a write is under way.
    pub(super) fn writing_since(&self) -> Option<Instant> {
        self.0.handover.with(|present| present.and_then(|present| present.writing_since))
    }

    pub(super) fn write_begins(&self, now: Option<Instant>) {
        self.0.handover.with(|present| {
            if let Some(present) = present {
                present.writing_since = now;
            }
        });
    }
}

/// Kicks the present connection and remembers why.
fn kick_with(shared: &Weak<SessionShared>, why: SessionEnd) {
    let Some(shared) = shared.upgrade() else { return };
    let kick = shared.handover.with(|present| {
        let present = present?;
        present.verdict.get_or_insert(why);
        Some(present.kick.clone())
    });
    if let Some(kick) = kick {
        kick.kick();
    }
}

/// What the receiver of a session gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Arrival {
    /// A text.
    Text(Utf8Bytes),
    /// All texts that were received have been given, or the connection has ended; what was put off to do it for several
    /// texts at once is done now.
    Pause,
}

/// Runs one connection until it ends. Blocks for the whole life of the connection; [`SessionHandle::close`] and
/// [`SessionHandle::kick`] end it.
///
/// `on_arrival` runs on the calling thread for every text, in order; while it blocks, the peer is slowed by TCP and
/// does not count as silent. Its panic ends the session, and goes on to the caller.
pub fn run(
    connection: Connection,
    handle: &SessionHandle,
    config: &SessionConfig,
    mut on_arrival: impl FnMut(Arrival),
) -> SessionEnd {
    run_until(connection, handle, config, |arrival| {
        on_arrival(arrival);
        ControlFlow::Continue(())
    })
}

/// As [`run`], but `on_arrival` may also break the session off after a text, with [`SessionEnd::Detached`]: nothing
/// more is read, what was not written yet stays in the outbox.
pub fn run_until(
    connection: Connection,
    handle: &SessionHandle,
    config: &SessionConfig,
    mut on_arrival: impl FnMut(Arrival) -> ControlFlow<()>,
) -> SessionEnd {
    let Connection { mut reader, writer, kick, traffic, intake, peer } = connection;
    let writer = Arc::new(Mutex::new(writer));
    let present = PresentConnection {
        kick: kick.clone(),
        traffic: traffic.clone(),
        writer: writer.clone(),
        verdict: None,
        writing_since: None,
    };
    let epoch = handle.0.handover.attach(present, config.beat.is_some());
    let watch = Watch::start(handle, config, traffic.clone());
    let writing = handle.clone();
    let beat = config.beat.as_ref().map(|beat| beat.text.clone());
    let (write_kick, broken_kick, pings) = (kick.clone(), kick.clone(), traffic.clone());
    let write_kick = Kick::new("connection", move || write_kick.kick());
    let thread = try_spawn(config.writer_name.clone(), write_kick, move || {
        write_loop(&writing, epoch, &writer, beat, (&broken_kick, &pings));
        writer
    });
    let thread = match thread {
        Ok(thread) => thread,
        Err(none) => {
            drop(Attached(&handle.0.handover));
            kick.kick();
            return SessionEnd::Broken(TransportError::io("starting its writer")(std::io::Error::other(none)));
        }
    };
    // Declared after the thread: a panic frees the writer first, then joins it.
    let attached = Attached(&handle.0.handover);

    let (mut detached, mut binary) = (false, Throttle::default());
    let end = loop {
        let incoming = match reader.read_ready() {
            Ok(Some(incoming)) => Ok(incoming),
            Ok(None) => {
                // Only a text breaks it off.
                let _ = watch.while_busy(|| on_arrival(Arrival::Pause));
                let _waiting = waiting("the peer's next frame", None);
                reader.read()
            }
            Err(error) => Err(error),
        };
        match incoming {
            Ok(Incoming::Text(text)) => {
                handle.note_text(FrameWay::Received, &text);
                if watch.while_busy(|| on_arrival(Arrival::Text(text))).is_break() {
                    detached = true;
                    break SessionEnd::Broken(TransportError::Closed);
                }
            }
            Ok(Incoming::Control) => {
                handle.note(FrameWay::ControlReceived, 0);
                handle.0.handover.signal(Signal::Control);
            }
            Ok(Incoming::Pong) => {
                handle.note(FrameWay::PongReceived, 0);
                traffic.ponged(handle.0.timer.clock().now());
            }
            Ok(Incoming::Binary(data)) => {
                handle.note(FrameWay::Ignored, data.len());
                let what = format_args!("ignored a binary message of {} bytes: this link speaks text", data.len());
                binary.warn(handle.0.timer.clock().now(), &what);
            }
            Ok(Incoming::Closed(info)) => break SessionEnd::Closed(info),
            Err(error) => break SessionEnd::Broken(error),
        }
    };
    // What came right before the end counts, as long as the outbox is that of this connection.
    let _ = watch.while_busy(|| on_arrival(Arrival::Pause));
    drop(watch);
    let answered = detached || matches!(end, SessionEnd::Closed(_));
    if !answered {
        kick.kick();
    }
    let verdict = handle.0.handover.with(|present| present.and_then(|present| present.verdict.take()));
    drop(attached);
    let grace = if answered { CLOSE_REPLY_TIME } else { KICK_GRACE };
    match thread.join_or_kick(Instant::now() + grace, KICK_GRACE) {
        // The writer was the last to have it: senders let go of it before they give their turn back.
        Ok(writer) if detached && verdict.is_none() => {
            if let Some(writer) = Arc::into_inner(writer) {
                let writer = writer.into_inner().unwrap_or_else(PoisonError::into_inner);
                return SessionEnd::Detached(Box::new(Connection { reader, writer, kick, traffic, intake, peer }));
            }
        }
        Ok(_) | Err(JoinError::Panicked(_)) => {}
        Err(JoinError::Late(thread)) => thread.abandon("a kicked write did not return"),
    }
    // The socket goes with the last kick, so a peer that waits for our end of stream gets it now.
    kick.kick();
    match end {
        SessionEnd::Closed(ref info) if info.clean => {
            handle.0.handover.closed(info.code);
            end
        }
        SessionEnd::Broken(_) => verdict.unwrap_or(end),
        end => end,
    }
}

/// The connection of a session, which is over when this is dropped.
struct Attached<'a>(&'a Handover<PresentConnection>);

impl Drop for Attached<'_> {
    fn drop(&mut self) {
        self.0.detach();
    }
}

fn write_loop(
    handle: &SessionHandle,
    epoch: Epoch,
    writer: &Mutex<Box<dyn WriteHalf>>,
    beat: Option<Utf8Bytes>,
    (kick, traffic): (&ConnectionKick, &Traffic),
) {
    let outcome = loop {
        match handle.0.handover.next_work(epoch) {
            Work::Batch { texts, beat: beat_due, ping } => {
                let now = handle.0.timer.clock().now();
                handle.write_begins(Some(now));
                let first = beat.clone().filter(|_| beat_due);
                // No heartbeat is answered, so a ping goes with each: that is how a busy link is measured, too.
                let ping = ping || first.is_some();
                if ping {
                    handle.note(FrameWay::PingSent, 0);
                    traffic.pinged(now);
                }
                let mut writer = lock(writer);
                let write = |text: Utf8Bytes| {
                    handle.note_text(FrameWay::Sent, &text);
                    writer.write(text)
                };
                let written = first
                    .into_iter()
                    .chain(texts)
                    .try_for_each(write)
                    .and_then(|()| if ping { writer.ping() } else { Ok(()) })
                    .and_then(|()| writer.flush());
                handle.write_begins(None);
                if written.is_err() {
                    break written;
                }
            }
            Work::Close(code, reason) => {
                handle.note(FrameWay::CloseSent, 0);
                break lock(writer).close(code, &reason);
            }
            Work::Over => break lock(writer).flush(),
        }
    };
    if let Err(error) = outcome {
        // The reader reports the cause: it meets the same broken connection, freed by this kick if need be.
        log::debug!("writer of {epoch} ends: {error}");
        kick.kick();
    }
}

/// The timers of one connection: liveness and heartbeat. Dropping it ends both.
struct Watch(Arc<WatchShared>);

struct WatchShared {
    session: Weak<SessionShared>,
    timer: TimerHandle,
    liveness: LivenessConfig,
    beat_every: Option<Duration>,
    traffic: Arc<Traffic>,
    /// The reader is busy with a text and reads nothing, so the peer's silence is ours.
    busy: AtomicBool,
    progress: Mutex<Progress>,
    /// `None` in the first place once the session is over, so that no alarm arms itself again.
    alarms: Mutex<Option<[Option<Alarm>; 2]>>,
}

impl Watch {
    fn start(handle: &SessionHandle, config: &SessionConfig, traffic: Arc<Traffic>) -> Self {
        let now = handle.0.timer.clock().now();
        let progress = Progress::new(now, traffic.read_bytes(), traffic.written_bytes());
        let inner = Arc::new(WatchShared {
            session: Arc::downgrade(&handle.0),
            timer: handle.0.timer.clone(),
            liveness: config.liveness,
            beat_every: config.beat.as_ref().map(|beat| beat.every),
            traffic,
            busy: AtomicBool::new(false),
            progress: Mutex::new(progress),
            alarms: Mutex::new(Some([None, None])),
        });
        inner.look();
        if let Some(every) = inner.beat_every {
            inner.arm(1, now + every, WatchShared::beat);
        }
        Self(inner)
    }

    fn while_busy<T>(&self, work: impl FnOnce() -> T) -> T {
        self.0.busy.store(true, Ordering::Relaxed);
        let done = work();
        self.0.busy.store(false, Ordering::Relaxed);
        done
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let alarms = lock(&self.0.alarms).take();
        drop(alarms);
    }
}

impl WatchShared {
    fn arm(self: &Arc<Self>, slot: usize, when: Instant, action: fn(&Arc<Self>)) {
        let weak = Arc::downgrade(self);
        let alarm = self.timer.at(when, move || {
            if let Some(watch) = weak.upgrade() {
                action(&watch);
            }
        });
        let mut alarms = lock(&self.alarms);
        let old = match alarms.as_mut() {
            Some(alarms) => alarms[slot].replace(alarm),
            None => Some(alarm),
        };
        drop(alarms);
        drop(old);
    }

    fn look(self: &Arc<Self>) {
        let Some(session) = self.session.upgrade() else { return };
        let now = self.timer.clock().now();
        let progress = {
            let mut progress = lock(&self.progress);
            progress.look(now, self.traffic.read_bytes(), self.traffic.written_bytes());
            if self.busy.load(Ordering::Relaxed) {
                progress.last_read = now;
            }
            *progress
        };
        let writing_since = session.handover.with(|present| present.and_then(|present| present.writing_since));
        let unmoved_since = writing_since.map(|since| since.max(progress.last_written));
        match judge(&self.liveness, now, progress.last_read, unmoved_since) {
            Verdict::Wait(then) => self.arm(0, then, Self::look),
            Verdict::Ping(then) => {
                session.handover.signal(Signal::Ping);
                self.arm(0, then, Self::look);
            }
            Verdict::Silent => kick_with(&self.session, SessionEnd::Silent),
            Verdict::Stuck => kick_with(&self.session, SessionEnd::Stuck),
        }
    }

    fn beat(self: &Arc<Self>) {
        let (Some(session), Some(every)) = (self.session.upgrade(), self.beat_every) else { return };
        session.handover.signal(Signal::Beat);
        self.arm(1, self.timer.clock().now() + every, Self::beat);
    }
}
