//! What came of a run: what was shown, and what it cost.

use std::fmt;
use std::fs;
use std::time::{Duration, Instant};

use phalanx::protocol::JobStatus;
use rustix::time::{ClockId, clock_gettime};

use super::clock::{Node, SECOND, Shared};
use super::world::Config;

/// Whose an event is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Facilitator,
    Validator,
    /// With its executors.
    Miner,
    World,
}

impl Role {
    pub fn of(node: Node) -> Self {
        match node {
            Node::Facilitator => Self::Facilitator,
            Node::Validator(_) => Self::Validator,
            Node::Miner(_) | Node::Executor(..) => Self::Miner,
        }
    }
}

/// Of so many events one is timed: a prime, so that none that comes in turn is left out.
const TIMED: u64 = 17;

const ROLES: [&str; 4] = ["facilitator", "validators", "miners", "world"];

#[derive(Debug)]
pub struct Page {
    config: Config,
    began: Instant,
    /// KiB with the keys, with all miners too, with all validators too.
    idle: [u64; 3],
    events: [u64; 4],
    timed: [u64; 4],
    times: [Duration; 4],
    processor: Duration,
    took: Duration,
    peak: u64,
    virtual_seconds: u64,
    ends: Vec<(JobStatus, usize)>,
    stored: usize,
    counts: Vec<(&'static str, u64)>,
    faults: Vec<(&'static str, u64)>,
    digest: u64,
}

impl Page {
    pub fn new(config: Config, began: Instant, idle: [u64; 3]) -> Self {
        Self {
            config,
            began,
            idle,
            events: [0; 4],
            timed: [0; 4],
            times: [Duration::ZERO; 4],
            processor: processor_time(),
            took: Duration::ZERO,
            peak: 0,
            virtual_seconds: 0,
            ends: Vec::new(),
            stored: 0,
            counts: Vec::new(),
            faults: Vec::new(),
            digest: 0,
        }
    }

    /// Does one event; of so many one is timed, because looking at the clock takes as long as some events.
    pub fn happens(&mut self, event: impl FnOnce() -> Role) {
        let number: u64 = self.events.iter().sum();
        let began = (number.is_multiple_of(TIMED)).then(processor_time);
        let role = event() as usize;
        self.events[role] += 1;
        if let Some(began) = began {
            self.timed[role] += 1;
            self.times[role] += processor_time() - began;
        }
    }

    pub fn ended(&mut self, shared: &Shared) {
        let book = &shared.book;
        self.took = self.began.elapsed();
        self.processor = processor_time() - self.processor;
        self.peak = memory("VmHWM");
        self.virtual_seconds = shared.at / SECOND;
        let ends = [JobStatus::Completed, JobStatus::Failed, JobStatus::Rejected, JobStatus::HordeFailed];
        self.ends = ends.into_iter().map(|end| (end, book.ended_as(end))).collect();
        self.stored = book.jobs.iter().filter(|job| job.is_stored).count();
        self.counts = vec![
            ("connections", shared.connections.made()),
            ("connections at a time", shared.connections.most as u64),
            ("statuses that came again", book.repeated),
            ("statuses after the end, kept beside the history", book.late),
            ("statuses of a job that is not known", book.unknown),
            ("submissions that were turned away", book.turned_away),
            ("jobs that a validator found begun at its start", book.restarted_jobs),
        ];
        self.faults = book.faults.iter().map(|(fault, count)| (fault.words(), *count)).collect();
        self.digest = book.digest();
    }

    pub fn faults(&self) -> u64 {
        self.faults.iter().map(|(_, count)| count).sum()
    }

    pub fn completed(&self) -> usize {
        self.ends.iter().filter(|(end, _)| *end == JobStatus::Completed).map(|(_, count)| count).sum()
    }

    pub fn digest(&self) -> u64 {
        self.digest
    }
}

impl fmt::Display for Page {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all: u64 = self.events.iter().sum();
        let (jobs, seconds) = (self.stored as f64, self.took.as_secs_f64());
        writeln!(f, "{} jobs, {all} events, {} virtual seconds", self.stored, self.virtual_seconds)?;
        let processor = self.processor.as_secs_f64();
        writeln!(f, "{seconds:.0} s, of them {processor:.0} s of one core")?;
        writeln!(f, "lost 0, ended twice 0, run twice 0, led back 0, left behind 0")?;
        for (end, count) in &self.ends {
            writeln!(f, "  {count} {}", end.as_str())?;
        }
        for (what, count) in self.faults.iter().chain(&self.counts) {
            writeln!(f, "  {count} {what}")?;
        }
        writeln!(f, "time: {:.0} µs of one core a job", processor * 1e6 / jobs)?;
        for (n, role) in ROLES.iter().enumerate() {
            let each = self.times[n].as_secs_f64() * 1e6 / self.timed[n].max(1) as f64;
            let events = self.events[n] as f64 / jobs;
            writeln!(f, "  {role}: {:.0} µs a job, {events:.1} events of {each:.1} µs", each * events)?;
        }
        let Self { idle: [keyed, miners, validators], peak, config, .. } = self;
        let each = |more: u64, count: u32| more as f64 / f64::from(count);
        writeln!(f, "memory: {} MiB at most, {} with all idle", peak >> 10, validators >> 10)?;
        writeln!(
            f,
            "  {:.1} KiB a miner, {:.1} KiB a validator with {} miners, {:.2} KiB a job",
            each(miners.saturating_sub(*keyed), config.miners),
            each(validators.saturating_sub(*miners), config.validators),
            config.known,
            peak.saturating_sub(*validators) as f64 / jobs
        )
    }
}

/// The processor time of this thread.
pub fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).expect("less than a second"))
}

/// What this process has resident, in KiB.
pub fn resident() -> u64 {
    memory("VmRSS")
}

/// A line of `/proc/self/status`, in KiB; 0 where there is none.
fn memory(name: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}
