//! The link to one miner for the time of one job: authenticated afresh after each reconnect, then messages by deadline.
//!
//! Owner: the job's worker, or a batch. The link's two threads end with [`MinerClient::stop`], or when the client is
//! dropped.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, TryRecvError, bounded, select};

use crate::base::backoff::BackoffConfig;
use crate::base::clock::Clock;
use crate::base::limits::INBOUND_MESSAGES;
use crate::base::shutdown::Shutdown;
use crate::base::stop::{Step, StopReport, stop_alone};
use crate::base::timer::TimerHandle;
use crate::base::waits::{send, waiting};
use crate::identity::{KeyPair, PublicKey};
use crate::link::{
    Authenticate, Authenticated, Full, Link, LinkConfig, LinkEvent, LinkHandle, LinkState, Outgoing, Refused, Text,
};
use crate::ops::metrics::Metrics;
use crate::protocol::{MinerToValidator, ValidatorToMiner, kind_of};
use crate::transport::{Connection, Dialer, MessageTypes, PeerMeters, Utf8Bytes};

use super::from_miner::{self, Unreadable};
use super::manifests::exchange::{MinerDialer, OpenMiner, hello, outcome_of};
use super::manifests::outcome::{AskOutcome, FirstMessage, MinerManifest, is_of_a_job, read_first};
use super::routing::MinerAddress;

/// Attempts follow one another quickly: a job waits for the miner, and not for long.
pub(super) const BACKOFF: BackoffConfig = BackoffConfig {
    base: Duration::from_millis(200),
    cap: Duration::from_secs(3),
    stable_after: Duration::from_secs(10),
};

/// Counts the connections to miners, and what goes over them.
pub(super) fn miner_meters(metrics: &Metrics) -> PeerMeters {
    let (sent, received) = (ValidatorToMiner::TYPES, MinerToValidator::TYPES);
    PeerMeters::new(metrics, "miner", MessageTypes::of(sent, kind_of), MessageTypes::of(received, kind_of))
}

/// How long a miner may take to show that it has read what it was sent, before its connection is closed instead.
const RETURN_TIME: Duration = Duration::from_secs(5);

/// What happens on the link to a miner.
#[derive(Debug)]
pub enum MinerEvent {
    /// Connected and authenticated, for the first time or again.
    Ready,
    /// A message.
    Message(Box<MinerToValidator>),
    /// An attempt to connect failed; another will follow.
    Failed {
        /// Why.
        why: String,
        /// Whether the miner answered and does not want us.
        refused: bool,
        /// Whether there was a connection and it broke: somebody is there.
        cut: bool,
        /// What it counts as.
        outcome: AskOutcome,
    },
    /// The connection was lost; another will follow.
    Lost {
        /// Why.
        why: String,
    },
    /// A message came that is not taken; the miner has been told.
    Unreadable {
        /// What is wrong with it.
        why: String,
        /// Whether it is none of the protocol, rather than too large to be passed on.
        broken: bool,
    },
}

/// Why [`MinerClient::next`] gave no event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoEvent {
    /// The deadline passed.
    Deadline,
    /// The job was cancelled.
    Cancelled,
}

/// A running link to a miner, which tells a sink what happens.
#[derive(Debug)]
pub(super) struct MinerLink {
    handle: LinkHandle,
    link: Link,
    /// The next manifest is the last message, see [`MinerLink::ask_back`].
    asked_back: Arc<AtomicBool>,
}

impl MinerLink {
    /// Begins to connect; the first event is `Ready` or `Failed`. `number` tells the threads of several links apart.
    /// `sink` runs on the link's thread; while it blocks, the miner is slowed by TCP.
    pub(super) fn start(
        miner: &MinerAddress,
        key: &KeyPair,
        dialer: Arc<dyn Dialer>,
        timer: TimerHandle,
        number: u64,
        sink: impl FnMut(MinerEvent) + Send + 'static,
    ) -> Self {
        Self::start_on(miner, &MinerDialer { key: key.clone(), dialer, timer }, number, None, sink)
    }

    /// As [`MinerLink::start`], but begins on a connection if there is one.
    fn start_on(
        miner: &MinerAddress,
        MinerDialer { key, dialer, timer }: &MinerDialer,
        number: u64,
        open: Option<OpenMiner>,
        mut sink: impl FnMut(MinerEvent) + Send + 'static,
    ) -> Self {
        let mut config = LinkConfig::new(format!("val-mi-{}", number % 10_000), miner.url(&key.public()));
        config.backoff = BACKOFF;
        config.kind_of = kind_of;
        let authenticate = MinerAuthentication { key: key.clone(), miner: miner.hotkey };
        let name = miner.hotkey;
        let (handle, mut link) = Link::new(config, dialer.clone(), timer.clone());
        if let Some(open) = open {
            link = link.begin_on(open.connection, open.manifest.message().encode().into());
        }
        let answers = handle.clone();
        let asked_back = Arc::new(AtomicBool::new(false));
        let asked = asked_back.clone();
        let classify = move |text: Utf8Bytes| {
            let is_last = asked.load(Ordering::SeqCst) && matches!(read_first(&text), FirstMessage::Manifest(_));
            if is_last { Text::<_>::Last(text) } else { Text::Message(text) }
        };
        let link = link.start(Some(Box::new(authenticate)), classify, move |event| {
            sink(match event {
                LinkEvent::Ready { .. } => MinerEvent::Ready,
                LinkEvent::Answered(_) => return,
                LinkEvent::Lost { why } => MinerEvent::Lost { why },
                LinkEvent::Failed { why, refused, cut, error, .. } => {
                    let outcome = error.as_ref().map_or(AskOutcome::Unauthorized, outcome_of);
                    MinerEvent::Failed { why, refused, cut, outcome }
                }
                LinkEvent::Message(text) => match decode(&text) {
                    Ok(message) => MinerEvent::Message(Box::new(message)),
                    Err(error) => {
                        let why = format!("miner {name} sent a message that is not taken: {error}");
                        let broken = !matches!(error, Unreadable::Specs(_));
                        match error {
                            Unreadable::Decode(error) => {
                                let answer = crate::protocol::answer::to_miner(&error, &text, &name.to_string());
                                let answer = Outgoing::once(ValidatorToMiner::from(answer).encode());
                                if let Err(full) = answers.send(answer) {
                                    log::debug!("the miner is not notified: {full}");
                                }
                            }
                            Unreadable::Manifest(_) | Unreadable::Specs(_) => {}
                        }
                        MinerEvent::Unreadable { why, broken }
                    }
                },
            });
        });
        Self { handle, link, asked_back }
    }

    /// Authenticates once more, behind all that was sent: the miner's manifest is the last message of this link, and
    /// leaves its connection open for [`MinerLink::detach`].
    ///
    /// # Errors
    /// [`Full`].
    fn ask_back(&self, hello: Utf8Bytes) -> Result<(), Full> {
        self.asked_back.store(true, Ordering::SeqCst);
        self.handle.send(Outgoing::once(hello))
    }

    /// Joins a link that has given its last message; gives its connection.
    fn detach(self, step: &mut Step) -> Option<Connection> {
        self.link.detach(step)
    }

    /// As [`MinerClient::send`].
    pub(super) fn send(&self, message: ValidatorToMiner) -> Result<(), Full> {
        let last = matches!(message, ValidatorToMiner::V0JobFinishedReceiptRequest(_));
        let text = message.encode();
        self.handle.send(if last { Outgoing::repeated(text) } else { Outgoing::once(text) })
    }

    /// Queues a text as it is; on an idle connection it is written before this returns.
    #[cfg(feature = "roles")]
    pub(super) fn send_text(&self, text: Outgoing) -> Result<(), Full> {
        self.handle.send(text)
    }

    /// Takes no more messages, sends what is queued within `time` of the timer's clock, and closes; returns at once.
    #[cfg(feature = "roles")]
    pub(super) fn close(&mut self, time: Duration) {
        self.link.request_stop(time);
    }

    /// Whether the miner is connected and has authenticated us.
    pub(super) fn is_ready(&self) -> bool {
        matches!(self.handle.state(), LinkState::Ready { .. })
    }

    /// Sends what is queued, closes, joins. Whoever may hold the sink back must let it go first.
    pub(super) fn stop_in(self, step: &mut Step) {
        self.asked_back.store(false, Ordering::SeqCst);
        self.link.stop_in(step);
    }
}

/// A running link to a miner.
#[derive(Debug)]
pub struct MinerClient {
    /// Dropped first, so that the link's thread, which may wait for room in the queue, is freed before it is joined.
    events: Receiver<MinerEvent>,
    link: MinerLink,
    clock: Clock,
}

impl MinerClient {
    /// Begins to connect; the first event is `Ready` or `Failed`. `number` tells the threads of several jobs apart.
    pub fn start(
        miner: &MinerAddress,
        key: &KeyPair,
        dialer: Arc<dyn Dialer>,
        timer: TimerHandle,
        number: u64,
    ) -> Self {
        let ((sink, events), clock) = (queue(), timer.clock().clone());
        Self { events, link: MinerLink::start(miner, key, dialer, timer, number, sink), clock }
    }

    /// As [`MinerClient::start`], but begins on an open connection, and dials once that is lost: `Ready` and the
    /// manifest come at once.
    pub fn start_on(miner: &MinerAddress, dialer: &MinerDialer, number: u64, open: OpenMiner) -> Self {
        let ((sink, events), clock) = (queue(), dialer.timer.clock().clone());
        Self { events, link: MinerLink::start_on(miner, dialer, number, Some(open), sink), clock }
    }

    /// Queues a message; it leaves when the link is ready. A finished-receipt leaves again on each connection, until
    /// the miner has answered our Close: nothing that the miner says shows that it has it.
    ///
    /// # Errors
    /// [`Full`], with the message.
    pub fn send(&self, message: impl Into<ValidatorToMiner>) -> Result<(), Full> {
        self.link.send(message.into())
    }

    /// Whether the miner is connected and has authenticated us.
    pub fn is_ready(&self) -> bool {
        self.link.is_ready()
    }

    /// The next event. Blocks until there is one, the deadline on the timer's clock, or `cancel` at its highest level.
    ///
    /// # Errors
    /// [`NoEvent`].
    pub fn next(&self, deadline: Instant, cancel: &Shutdown) -> Result<MinerEvent, NoEvent> {
        let due = self.clock.at(deadline);
        let _waiting = waiting("what the miner says", Some(deadline));
        select! {
            recv(self.events) -> event => event.map_err(|_| NoEvent::Cancelled),
            recv(cancel.cancel_receiver()) -> _ => Err(NoEvent::Cancelled),
            recv(due.receiver()) -> _ => self.events.try_recv().map_err(|e| match e {
                TryRecvError::Empty => NoEvent::Deadline,
                TryRecvError::Disconnected => NoEvent::Cancelled,
            }),
        }
    }

    /// Ends the link and gives its connection, for a job that is over on both sides: what was sent before, the
    /// finished-receipt too, has been read by the miner, and nothing is on its way. `None`, after an end as that of
    /// [`MinerClient::stop`], if the connection is lost or the miner says something else.
    ///
    /// Blocks for one question and its answer, at most 5 s, and then as `stop`.
    pub fn give_back(self, miner: &MinerAddress, key: &KeyPair, step: &mut Step) -> Option<OpenMiner> {
        let manifest = self.is_ready().then(|| self.last_manifest(miner, key, step)).flatten();
        let Some(manifest) = manifest else {
            self.stop_in(step);
            return None;
        };
        let Self { events, link, clock } = self;
        drop(events);
        let connection = link.detach(step)?;
        Some(OpenMiner { connection, manifest, at: clock.now() })
    }

    fn last_manifest(&self, miner: &MinerAddress, key: &KeyPair, step: &Step) -> Option<MinerManifest> {
        self.link.ask_back(hello(key, &miner.hotkey)).ok()?;
        let until = self.clock.now() + step.left().min(RETURN_TIME);
        match self.next(until, step.shutdown()) {
            Ok(MinerEvent::Message(message)) => match *message {
                MinerToValidator::V0ExecutorManifestRequest(told) => MinerManifest::of(&told).ok(),
                _ => None,
            },
            _ => None,
        }
    }

    /// Stops it alone, within `budget`, as [`MinerClient::stop_in`] does.
    pub fn stop(self, budget: Duration) -> StopReport {
        stop_alone("miner client", budget, |step| self.stop_in(step))
    }

    /// Sends what is queued, closes, joins.
    pub fn stop_in(self, step: &mut Step) {
        let Self { events, link, .. } = self;
        // Dropped first, so that a reader that waits for room in the queue is freed.
        drop(events);
        link.stop_in(step);
    }
}

/// A bounded queue of what happens on a link.
fn queue() -> (impl FnMut(MinerEvent) + Send + 'static, Receiver<MinerEvent>) {
    let (tx, events) = bounded(INBOUND_MESSAGES);
    let sink = move |event| {
        // The receiver goes when the job ends; what the miner says after that concerns nobody.
        let _ = send(&tx, event, "room for what the miner says");
    };
    (sink, events)
}

struct MinerAuthentication {
    key: KeyPair,
    miner: PublicKey,
}

impl Authenticate for MinerAuthentication {
    fn hello(&mut self) -> Vec<Utf8Bytes> {
        vec![hello(&self.key, &self.miner)]
    }

    /// The miner says nothing to a validator that it does not know; its manifest, which comes unasked, is the welcome.
    fn answer(&mut self, text: &str) -> Result<Authenticated, Refused> {
        let refused = |reason, broken| Err(Refused { reason, passing: true, broken });
        match read_first(text) {
            FirstMessage::Manifest(_) => Ok(Authenticated::YesAndDeliver),
            FirstMessage::Unwanted(reason) => refused(reason, false),
            FirstMessage::Wrong(_) if is_of_a_job(text) => Ok(Authenticated::NotYet),
            FirstMessage::Wrong(reason) => refused(reason, true),
        }
    }
}

/// Reads a message; of a manifest, classes that we do not know are left out.
fn decode(text: &str) -> Result<MinerToValidator, Unreadable> {
    from_miner::read(text).or_else(|error| match read_first(text) {
        FirstMessage::Manifest(manifest) => Ok(manifest.message()),
        FirstMessage::Unwanted(_) | FirstMessage::Wrong(_) => Err(error),
    })
}
