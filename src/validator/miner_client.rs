//! The link to one miner for the time of one job: authenticated afresh after each reconnect, then messages by deadline.
//!
//! Owner: the job's worker, or a batch. The link's two threads end with [`MinerClient::stop`], or when the client is
//! dropped.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, bounded, select};

use crate::base::backoff::BackoffConfig;
use crate::base::clock::now;
use crate::base::limits::INBOUND_MESSAGES;
use crate::base::shutdown::Shutdown;
use crate::base::stop::Step;
use crate::base::timer::TimerHandle;
use crate::base::waits::{send, waiting};
use crate::identity::{KeyPair, PublicKey};
use crate::link::{
    Authenticate, Authenticated, Full, Link, LinkConfig, LinkEvent, LinkHandle, LinkState, Outgoing, Refused, Text,
};
use crate::ops::throttle::Throttle;
use crate::protocol::{MinerToValidator, ValidatorAuthForMiner, ValidatorToMiner};
use crate::transport::{Dialer, Utf8Bytes};

use super::from_miner::{self, Unreadable};
use super::routing::MinerAddress;

/// Attempts follow one another quickly: a job waits for the miner, and not for long.
const BACKOFF: BackoffConfig = BackoffConfig {
    base: Duration::from_millis(200),
    cap: Duration::from_secs(3),
    stable_after: Duration::from_secs(10),
};

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
    },
    /// The connection was lost; another will follow.
    Lost {
        /// Why.
        why: String,
    },
    /// A message came that cannot be read; the miner has been told.
    Unreadable,
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
        mut sink: impl FnMut(MinerEvent) + Send + 'static,
    ) -> Self {
        let mut config = LinkConfig::new(format!("val-mi-{}", number % 10_000), miner.url(&key.public()));
        config.backoff = BACKOFF;
        let authenticate = MinerAuthentication { key: key.clone(), miner: miner.hotkey };
        let name = miner.hotkey;
        let (handle, link) = Link::new(config, dialer, timer);
        let answers = handle.clone();
        let mut unreadable = Throttle::default();
        let link = link.start(Some(Box::new(authenticate)), Text::<_>::Message, move |event| {
            sink(match event {
                LinkEvent::Ready { .. } => MinerEvent::Ready,
                LinkEvent::Answered(_) => return,
                LinkEvent::Lost { why } => MinerEvent::Lost { why },
                LinkEvent::Failed { why, refused, cut, .. } => MinerEvent::Failed { why, refused, cut },
                LinkEvent::Message(text) => match from_miner::read(&text) {
                    Ok(message) => MinerEvent::Message(Box::new(message)),
                    Err(error) => {
                        let what = format!("miner {name} sent a message that is not taken: {error}");
                        unreadable.warn(Instant::now(), &what);
                        let Unreadable::Decode(error) = error else { return };
                        let answer = crate::protocol::answer::to_miner(&error, &text, &name.to_string());
                        if let Err(full) = answers.send(Outgoing::once(ValidatorToMiner::from(answer).encode())) {
                            log::debug!("the miner is not notified: {full}");
                        }
                        MinerEvent::Unreadable
                    }
                },
            });
        });
        Self { handle, link }
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

    /// Takes no more messages, sends what is queued until `deadline`, and closes; returns at once.
    #[cfg(feature = "roles")]
    pub(super) fn close(&mut self, deadline: Instant) {
        self.link.request_stop(deadline);
    }

    /// Whether the miner is connected and has authenticated us.
    pub(super) fn is_ready(&self) -> bool {
        matches!(self.handle.state(), LinkState::Ready { .. })
    }

    /// Sends what is queued, closes, joins. Whoever may hold the sink back must let it go first.
    pub(super) fn stop(self, step: &mut Step) {
        self.link.stop(step);
    }
}

/// A running link to a miner.
#[derive(Debug)]
pub struct MinerClient {
    /// Dropped first, so that the link's thread, which may wait for room in the queue, is freed before it is joined.
    events: Receiver<MinerEvent>,
    link: MinerLink,
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
        let (tx, events) = bounded(INBOUND_MESSAGES);
        let link = MinerLink::start(miner, key, dialer, timer, number, move |event| {
            // The receiver goes when the job ends; what the miner says after that concerns nobody.
            let _ = send(&tx, event, "room for what the miner says");
        });
        Self { events, link }
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

    /// The next event. Blocks until there is one, the deadline, or `cancel` at its highest level.
    ///
    /// # Errors
    /// [`NoEvent`].
    pub fn next(&self, deadline: Instant, cancel: &Shutdown) -> Result<MinerEvent, NoEvent> {
        let left = deadline.saturating_duration_since(Instant::now());
        let _waiting = waiting("what the miner says", Some(deadline));
        select! {
            recv(self.events) -> event => event.map_err(|_| NoEvent::Cancelled),
            recv(cancel.cancel_receiver()) -> _ => Err(NoEvent::Cancelled),
            default(left) => self.events.recv_timeout(Duration::ZERO).map_err(|e| match e {
                RecvTimeoutError::Timeout => NoEvent::Deadline,
                RecvTimeoutError::Disconnected => NoEvent::Cancelled,
            }),
        }
    }

    /// Sends what is queued, closes, joins.
    pub fn stop(self, step: &mut Step) {
        let Self { events, link } = self;
        // Dropped first, so that a reader that waits for room in the queue is freed.
        drop(events);
        link.stop(step);
    }
}

struct MinerAuthentication {
    key: KeyPair,
    miner: PublicKey,
}

impl Authenticate for MinerAuthentication {
    fn hello(&mut self) -> Vec<Utf8Bytes> {
        // Signed for each connection, because a miner refuses what is older than ten seconds.
        let message = ValidatorAuthForMiner::sign(&self.key, &self.miner.to_ss58(), now().unix_seconds());
        vec![ValidatorToMiner::from(message).encode().into()]
    }

    /// The miner says nothing to a validator that it does not know; its manifest, which comes unasked, is the welcome.
    fn answer(&mut self, text: &str) -> Result<Authenticated, Refused> {
        match from_miner::read(text) {
            Ok(MinerToValidator::V0ExecutorManifestRequest(_)) => Ok(Authenticated::YesAndDeliver),
            Ok(MinerToValidator::UnauthorizedError(error)) => {
                let details = error.details.unwrap_or_default();
                Err(refused(format!("{} {details}", error.code).trim_end()))
            }
            Ok(MinerToValidator::GenericError(error)) => Err(refused(error.details.unwrap_or_default())),
            Ok(_) => Ok(Authenticated::NotYet),
            Err(error) => Err(refused(format!("its first message cannot be read: {error}"))),
        }
    }
}

fn refused(reason: impl Into<String>) -> Refused {
    Refused { reason: reason.into(), passing: true }
}
