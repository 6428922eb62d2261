//! What others hold of a client: where it stands, what it has counted, what happens to it.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};

use super::config::ClientError;
use crate::base::ids::Epoch;
use crate::base::lock::lock;
use crate::base::shutdown::Shutdown;
use crate::base::waits::waiting;
use crate::link::{LinkHandle, LinkState};
use crate::ops::health::Health;
use crate::ops::metrics::{Counter, Metrics};
use crate::ops::status::Board;
use crate::protocol::V0MachineSpecsUpdate;
use crate::validator::ledger::{Counts, Delivery, GivenUp, Totals};

/// An update that waits longer makes the client not ready: jobs that it took would not be heard of.
const OLDEST_UPDATE: Duration = Duration::from_secs(120);

/// How far clocks may differ: a miner refuses what was signed longer ago, or later than its own time.
const CLOCK_SECONDS: u64 = 10;

/// Why no job will do well, if the facilitator's clock is ahead of ours by so many seconds.
fn clock_trouble(skew: i64) -> Option<String> {
    let (differs, way) = (skew.unsigned_abs(), if skew > 0 { "behind" } else { "ahead of" });
    (differs > CLOCK_SECONDS).then(|| {
        format!(
            "the clock differs by {differs} s: it is {way} the facilitator's, and miners refuse what is signed more \
             than {CLOCK_SECONDS} s off their own time"
        )
    })
}

/// Where a client stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientState {
    /// Dialling.
    Connecting,
    /// Connected; the facilitator has not answered our authentication yet.
    Authenticating,
    /// Authenticated: jobs come, updates leave.
    Ready,
    /// Waiting before the next attempt.
    Reconnecting,
    /// Taking no more jobs; what was taken ends and is reported.
    Draining,
    /// All threads have ended.
    Stopped,
}

impl ClientState {
    /// Every state.
    pub const ALL: [Self; 6] =
        [Self::Connecting, Self::Authenticating, Self::Ready, Self::Reconnecting, Self::Draining, Self::Stopped];

    /// In lower case, as in `Display` and as a label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::Authenticating => "authenticating",
            Self::Ready => "ready",
            Self::Reconnecting => "reconnecting",
            Self::Draining => "draining",
            Self::Stopped => "stopped",
        }
    }
}

impl fmt::Display for ClientState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a subscriber is notified of.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ClientEvent {
    /// Authenticated on a new connection.
    Ready {
        /// The number of the connection.
        epoch: Epoch,
    },
    /// The connection was lost, or an attempt failed; the client goes on trying.
    Lost {
        /// Why.
        why: String,
        /// The facilitator refused us.
        refused: bool,
    },
    /// An update was given up and is kept for the operator.
    GivenUp(GivenUp),
}

/// What others hold of a client; cheap to clone, may outlive it. Nothing here blocks but [`ClientHandle::flush`].
#[derive(Clone)]
pub struct ClientHandle {
    pub(super) shared: Arc<ClientShared>,
    pub(super) link: LinkHandle,
}

impl fmt::Debug for ClientHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientHandle").field("state", &self.state()).field("counts", &self.counts()).finish()
    }
}

impl ClientHandle {
    /// Where the client stands.
    pub fn state(&self) -> ClientState {
        match self.link.state() {
            LinkState::Stopped => ClientState::Stopped,
            _ if self.shared.draining.is_set() => ClientState::Draining,
            LinkState::Connecting => ClientState::Connecting,
            LinkState::Authenticating => ClientState::Authenticating,
            LinkState::Ready { .. } => ClientState::Ready,
            LinkState::Reconnecting { .. } => ClientState::Reconnecting,
        }
    }

    /// Why the last connection was lost or the last attempt failed.
    pub fn last_error(&self) -> Option<String> {
        lock(&self.shared.last_error).clone()
    }

    /// The facilitator's address that is in use, or is dialled next, and its number among those of the configuration,
    /// from 1.
    pub fn endpoint(&self) -> (usize, &str) {
        self.link.endpoint()
    }

    /// How long the last ping took that the facilitator has answered on the present connection. One is sent with each
    /// heartbeat.
    pub fn round_trip(&self) -> Option<Duration> {
        self.link.round_trip()
    }

    /// Seconds by which the facilitator's clock is ahead of ours, less than 0 if it is behind, by what it said when the
    /// present connection began and how ours was set since; `None` if it did not say what time it is.
    pub fn clock_skew(&self) -> Option<i64> {
        self.link.clock_skew()
    }

    /// Says on a page of health whether the client is authenticated, the clock is right, its updates go to disk, and
    /// none waits too long; and in the metrics of its board where it stands.
    pub fn measure(&self, health: &Health) {
        let now = self.state();
        for state in ClientState::ALL {
            let help = "1 for where the link to the facilitator stands, else 0.";
            let labels = [("state", state.as_str())];
            self.shared.board.metrics.gauge("phalanx_validator_link", help, &labels).set(usize::from(state == now));
        }
        match (now, self.last_error()) {
            (ClientState::Ready, _) => health.up("facilitator"),
            (state, Some(why)) => health.down("facilitator", format!("{state}: {why}")),
            (state, None) => health.down("facilitator", state.to_string()),
        }
        match self.clock_skew().and_then(clock_trouble) {
            None => health.up("clock"),
            Some(why) => health.down("clock", why),
        }
        match self.shared.delivery.broken() {
            None => health.up("state folder"),
            Some(why) => health.down("state folder", why),
        }
        match self.oldest_update().filter(|age| *age > OLDEST_UPDATE) {
            None => health.up("updates"),
            Some(age) => health.down("updates", format!("the oldest has waited for {} s", age.as_secs())),
        }
    }

    /// Where the client counts and reports errors.
    pub fn board(&self) -> &Board {
        &self.shared.board
    }

    /// How much waits for the facilitator.
    pub fn counts(&self) -> Counts {
        self.shared.delivery.counts()
    }

    /// How long the oldest update has waited for the facilitator.
    pub fn oldest_update(&self) -> Option<Duration> {
        self.shared.delivery.oldest()
    }

    /// What became of the updates so far.
    pub fn totals(&self) -> &Totals {
        self.shared.delivery.totals()
    }

    /// What came from the facilitator so far.
    pub fn counted(&self) -> &Counted {
        &self.shared.counted
    }

    /// Sends the specs of a miner's machine; of each miner only the newest waits for the facilitator.
    ///
    /// # Errors
    /// [`ClientError::Stopped`].
    pub fn machine_specs(&self, specs: V0MachineSpecsUpdate) -> Result<(), ClientError> {
        if self.state() == ClientState::Stopped {
            return Err(ClientError::Stopped);
        }
        self.shared.delivery.machine_specs(specs);
        Ok(())
    }

    /// Blocks until the facilitator has answered every update, the timeout is over, or the client has stopped.
    ///
    /// # Errors
    /// [`ClientError::Unsent`] with their number, [`ClientError::Stopped`] if nothing can change any more.
    pub fn flush(&self, timeout: Duration) -> Result<(), ClientError> {
        // Ended by the last answer, by a stop, or by time: the counts tell which.
        let _waiting = waiting("the facilitator's answers", Instant::now().checked_add(timeout));
        let _ended = self.shared.delivery.drained().recv_timeout(timeout);
        let unsent = self.counts().unsent;
        match (unsent, self.state()) {
            (0, _) => Ok(()),
            (_, ClientState::Stopped) => Err(ClientError::Stopped),
            (unsent, _) => Err(ClientError::Unsent(unsent)),
        }
    }

    /// A new subscription that holds this many events. A subscriber that does not keep up misses the newest; it cannot
    /// hold up the client.
    pub fn subscribe(&self, capacity: usize) -> Receiver<ClientEvent> {
        self.shared.events.subscribe(capacity)
    }

    /// Breaks the connection; it comes back by itself.
    pub fn kick_link(&self) {
        self.link.kick();
    }

    pub(in crate::validator) fn delivery(&self) -> &Delivery {
        &self.shared.delivery
    }
}

/// What the parts of a client share.
pub(super) struct ClientShared {
    pub(super) delivery: Delivery,
    pub(super) draining: Shutdown,
    /// Each job that somebody holds has a clone; `None` when there are to be no more.
    pub(super) alive: Mutex<Option<Sender<()>>>,
    pub(super) events: Arc<Events>,
    pub(super) last_error: Mutex<Option<String>>,
    pub(super) counted: Counted,
    pub(super) board: Board,
}

/// What came from the facilitator, counted since the start.
#[derive(Debug)]
pub struct Counted {
    /// Authenticated connections.
    pub connections: Counter,
    /// Job requests, repeats included.
    pub requests: Counter,
    /// Job requests whose uuid came before.
    pub repeats: Counter,
    /// Job requests that were turned away because too much waited.
    pub turned_away: Counter,
    /// Messages that could not be read.
    pub unreadable: Counter,
}

impl Counted {
    pub(super) fn new(metrics: &Metrics) -> Self {
        let counter = |name, help| metrics.counter(name, help, &[]);
        Self {
            connections: counter("phalanx_validator_connections_total", "Authenticated facilitator connections."),
            requests: counter("phalanx_validator_job_requests_total", "Job requests, repeats included."),
            repeats: counter("phalanx_validator_job_repeats_total", "Job requests whose uuid came before."),
            turned_away: counter("phalanx_validator_jobs_turned_away_total", "Jobs rejected as busy at the door."),
            unreadable: counter("phalanx_validator_unreadable_total", "Messages that could not be read."),
        }
    }
}

/// The subscribers. A full or gone one is never waited for.
#[derive(Default)]
pub(super) struct Events(Mutex<Vec<Sender<ClientEvent>>>);

impl Events {
    fn subscribe(&self, capacity: usize) -> Receiver<ClientEvent> {
        let (sender, receiver) = bounded(capacity.max(1));
        lock(&self.0).push(sender);
        receiver
    }

    pub(super) fn notify(&self, event: &ClientEvent) {
        lock(&self.0).retain(|sender| !matches!(sender.try_send(event.clone()), Err(TrySendError::Disconnected(_))));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_beyond_what_signatures_allow_is_told() {
        for right in [0, 10, -10] {
            assert_eq!(clock_trouble(right), None);
        }
        let behind = clock_trouble(11).unwrap();
        assert!(behind.starts_with("the clock differs by 11 s: it is behind the facilitator's"), "{behind}");
        assert!(clock_trouble(-300).unwrap().contains("by 300 s: it is ahead of"));
    }
}
