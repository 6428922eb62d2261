//! The clock, the queue of what is planned, and the dice: what all parts of a world share.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::{Duration, Instant};

use phalanx::base::now::Now;
use phalanx::base::rng::Rng;
use phalanx::transport::Utf8Bytes;

use super::book::Book;
use super::network::{Connections, Side};
use super::world::{Config, Keys};

pub const MS: u64 = 1_000;
pub const SECOND: u64 = 1_000_000;

/// The wall clock at the beginning, in seconds since 1970.
const BEGIN: u64 = 1_800_000_000;

/// Whose a thing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Node {
    Facilitator,
    Validator(u32),
    Miner(u32),
    /// One executor of a miner; it outlives the miner's process.
    Executor(u32, u32),
}

/// A process of a node, by its number: what is meant for an earlier one comes to nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Process {
    pub node: Node,
    pub life: u32,
}

/// One end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End {
    pub of: Process,
    /// Which of its links; nothing at a server.
    pub link: u64,
}

/// What is planned.
#[derive(Debug)]
pub enum Event {
    /// A user submits the next job.
    Submit,
    /// A user who got no answer for this job submits another in its place.
    SubmitAgain,
    /// A connection is made, or is not.
    Dial(End, Node),
    /// Nothing comes back from there.
    NoAnswer(End),
    /// A link without a connection dials again.
    Redial(End),
    /// A text arrives.
    Text(u64, Side, Utf8Bytes),
    /// A side learns of the end of a connection.
    Ended(u64, Side, super::network::Ending),
    /// Something is due.
    Wake(Process),
    /// The same, for a job of a validator.
    WakeJob(Process, u64),
    /// A link to a miner has had its time.
    GiveUp(End),
    /// What was being written is with the system, or on the disk.
    Written(Process),
    Synced(Process),
    /// A validator's heartbeat.
    Beat(Process),
    /// An executor goes on to its next step.
    Step(u32, u32, super::executor::Step),
    /// A process starts.
    Start(Node),
    /// Something breaks.
    Fault,
}

/// A moment, what was planned before, and where the event is: small, because a million of them are moved about.
type Planned = (u64, u64, u32);

/// What all share.
pub struct Shared {
    pub config: Config,
    pub keys: Keys,
    /// Microseconds since the beginning.
    pub at: u64,
    base: Instant,
    planned: BinaryHeap<Reverse<Planned>>,
    /// The events that are planned, and the places that are free.
    events: Vec<Option<Event>>,
    free: Vec<u32>,
    /// Events so far; of two of one moment the one that was planned first comes first.
    sequence: u64,
    pub rng: Rng,
    pub connections: Connections,
    pub book: Book,
}

impl Shared {
    pub fn new(config: Config, keys: Keys) -> Self {
        Self {
            keys,
            at: 0,
            base: Instant::now(),
            planned: BinaryHeap::new(),
            events: Vec::new(),
            free: Vec::new(),
            sequence: 0,
            rng: Rng::new(config.seed),
            connections: Connections::default(),
            book: Book::default(),
            config,
        }
    }

    /// Both clocks.
    pub fn now(&self) -> Now {
        let since = Duration::from_micros(self.at);
        Now { mono: self.base + since, wall: Duration::from_secs(BEGIN) + since }
    }

    /// A moment of a state machine as one of the queue: not before it.
    pub fn moment(&self, at: Instant) -> u64 {
        let since = at.saturating_duration_since(self.base);
        u64::try_from(since.as_nanos().div_ceil(1_000)).expect("no simulation takes so long")
    }

    pub fn plan(&mut self, at: u64, event: Event) {
        self.sequence += 1;
        let place = self.free.pop().unwrap_or_else(|| {
            self.events.push(None);
            u32::try_from(self.events.len() - 1).expect("they fit into memory")
        });
        self.events[place as usize] = Some(event);
        self.planned.push(Reverse((at.max(self.at), self.sequence, place)));
    }

    pub fn after(&mut self, time: u64, event: Event) {
        self.plan(self.at + time, event);
    }

    /// Events that are planned.
    pub fn planned(&self) -> usize {
        self.planned.len()
    }

    /// Goes to the next event.
    pub fn next(&mut self) -> Option<Event> {
        let Reverse((at, _, place)) = self.planned.pop()?;
        self.at = at;
        self.free.push(place);
        self.events[place as usize].take()
    }

    /// A number from the one on and below the other.
    pub fn between(&mut self, from: u64, to: u64) -> u64 {
        from + self.rng.next_u64() % (to - from)
    }

    /// A pause of a process without memory, of `mean` on average.
    pub fn pause(&mut self, mean: f64) -> u64 {
        (-(1.0 - self.rng.unit()).ln() * mean) as u64
    }
}
