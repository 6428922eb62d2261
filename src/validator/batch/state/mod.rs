//! A whole batch: whom to connect to, what to ask for, when the gate opens, how each job ends. Pure: `now` is given.
//!
//! ```text
//! waiting ─► connecting ─► planned ─► asked ─► starting ─► ready │ gate │ sent ─► (over: late answers) ─► ended
//! ```
//!
//! Miners are connected to a few at a time, in an order that the seed decides. Nobody is asked before the attempt to
//! connect to the last has begun: those that say nothing hold places for their time, and no executor waits that long.
//! A job that is ready waits at the gate. The gate's time counts once the last attempt to connect has begun, all that
//! are connected have been asked, and the first is ready. It opens once, when nobody is before it any more, or when its
//! time is over; who is not ready by then has ended, and no miner is blamed whose time to connect that cuts. It is on
//! disk which jobs leave before the first of them does. After the gate nothing is asked for again.
//!
//! What happens to one miner touches no other. What ends a job twice, or comes twice, is counted and changes nothing.

mod ask;
mod ends;
mod gate;
mod says;
mod types;

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

pub(super) use types::{Action, GateSend, Input, MinerInput};
pub use types::{BatchProgress, Ending};

use super::config::BatchConfig;
use super::deadlines::{Deadlines, Due};
use super::job::{Job, Judge};
use super::kept::{KeptJob, KeptState};
use super::line::BatchOutcome;
use super::plan::{JobMaker, share, shuffle};
use crate::base::now::Now;
use crate::base::rng::Rng;
use crate::ops::throttle::Throttle;
use crate::protocol::{ExecutorClass, ValidatorToMiner};
use crate::validator::excuses::Verdict;
use crate::validator::job_messages::JobMessages;
use crate::validator::routing::MinerAddress;

/// Unreadable messages after which nothing of a miner is waited for any more.
const UNREADABLE: u32 = 16;

/// How often an accepted-receipt is sent again after a reconnect. A Python miner breaks the connection at the second
/// one, so not on each.
const RECEIPT_REPEATS: u32 = 2;

/// Jobs that are asked for in one go: some 5 ms of signing, in which nothing that miners say is taken in.
const ASK_AT_ONCE: usize = 64;

/// Between two goes, so that what has come is taken in first.
const ASK_PAUSE: Duration = Duration::from_millis(1);

/// Why a job has ended that had left when the batch was killed.
const INTERRUPTED: &str = "the batch was interrupted after the request had left; what the miner answered is not known";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum MinerPhase {
    Waiting,
    Connecting,
    Up,
    Closed,
}

#[derive(Debug)]
struct Miner {
    address: MinerAddress,
    phase: MinerPhase,
    failures: u32,
    trouble: Option<String>,
    /// What its last attempt to connect counts as.
    no_connection: Option<BatchOutcome>,
    unreadable: u32,
    lost: bool,
    jobs: Vec<usize>,
    /// Jobs that have not ended.
    open: usize,
    /// Lines that it will have, as far as that is known, and how many of them have failed.
    lines: usize,
    failed: usize,
    /// Executors by the manifest by which its jobs were planned.
    executors: Vec<(ExecutorClass, i64)>,
    /// What its first refusal of a job of a class, as busy, is worth: all jobs are asked for together, so the others
    /// have no other excuse, and a miner cannot have its signatures checked for ever.
    excuses: HashMap<ExecutorClass, Verdict>,
    /// What was planned for it before a restart and has not ended.
    kept: Vec<KeptJob>,
}

impl Miner {
    fn new(address: MinerAddress) -> Self {
        Self {
            address,
            phase: MinerPhase::Waiting,
            failures: 0,
            trouble: None,
            no_connection: None,
            unreadable: 0,
            lost: false,
            jobs: Vec::new(),
            open: 0,
            lines: 0,
            failed: 0,
            executors: Vec::new(),
            excuses: HashMap::new(),
            kept: Vec::new(),
        }
    }

    /// Most of its lines have failed.
    fn has_failed(&self) -> bool {
        self.failed * 2 > self.lines
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Gate {
    Closed,
    /// It is being kept who leaves.
    Keeping,
    Open(Now),
}

/// The batch.
pub(super) struct Batch {
    config: BatchConfig,
    /// Tells batches apart: their uuids are made of it.
    number: u64,
    maker: Box<dyn JobMaker>,
    judge: Box<dyn Judge>,
    miners: Vec<Miner>,
    jobs: Vec<Job>,
    by_uuid: HashMap<String, usize>,
    /// The job requests of those that are ready.
    prepared: HashMap<usize, String>,
    deadlines: Deadlines,
    gate: Gate,
    waiting: VecDeque<usize>,
    /// Jobs that have not been asked for yet.
    to_ask: VecDeque<usize>,
    /// Whether the gate's time counts.
    gate_counts: bool,
    /// Jobs that a miner may have.
    share: usize,
    failed_miners: usize,
    /// Whether a miner has failed since the batch has begun or gone on.
    failed_anew: bool,
    connecting: usize,
    before_gate: usize,
    open_miners: usize,
    progress: BatchProgress,
    /// What miners may say without end, in the log: repeats, and failures that are tried again.
    repeats: Throttle,
    again: Throttle,
    /// When everything is late, and when everything ends.
    limits: Option<(Instant, Instant)>,
    rng: Rng,
    done: bool,
    kept: Vec<KeptJob>,
    out: Vec<Action>,
}

impl Batch {
    /// A batch that has not begun. `kept` is what is on disk of it, if it goes on.
    pub(super) fn new(
        config: BatchConfig,
        number: u64,
        miners: Vec<MinerAddress>,
        (maker, judge): (Box<dyn JobMaker>, Box<dyn Judge>),
        kept: Vec<KeptJob>,
    ) -> Self {
        let rng = Rng::new(config.seed);
        let miners: Vec<Miner> = miners.into_iter().map(Miner::new).collect();
        Self {
            maker,
            judge,
            progress: BatchProgress { miners: miners.len(), ..BatchProgress::default() },
            open_miners: miners.len(),
            miners,
            jobs: Vec::new(),
            by_uuid: HashMap::new(),
            prepared: HashMap::new(),
            deadlines: Deadlines::default(),
            gate: Gate::Closed,
            waiting: VecDeque::new(),
            to_ask: VecDeque::new(),
            gate_counts: false,
            share: 0,
            failed_miners: 0,
            failed_anew: false,
            connecting: 0,
            before_gate: 0,
            repeats: Throttle::default(),
            again: Throttle::default(),
            limits: None,
            rng,
            done: false,
            kept,
            out: Vec::new(),
            config,
            number,
        }
    }

    /// Takes in what happened at `now` and says what to do, in this order.
    pub(super) fn handle(&mut self, input: Input, now: Now) -> Vec<Action> {
        if !self.done {
            match input {
                Input::Start => self.start(now),
                Input::Miner(miner, input) => self.miner(miner, input, now),
                Input::GateKept => self.open_gate(now),
                Input::Sent { job, before, after, error } => self.sent(job, before, after, error),
                Input::Tick => self.tick(now),
                Input::Cancel => self.stop(Ending::Cancelled, now),
            }
            self.go_on(now);
        }
        std::mem::take(&mut self.out)
    }

    /// When [`Input::Tick`] is due next.
    pub(super) fn next_wake(&self) -> Option<Instant> {
        self.deadlines.first()
    }

    /// Where it stands.
    pub(super) fn progress(&self) -> BatchProgress {
        self.progress
    }

    fn start(&mut self, now: Now) {
        let soft = now.mono + self.config.limit;
        let hard = soft + self.config.grace;
        self.limits = Some((soft, hard));
        self.deadlines.set(Due::SoftLimit, Some(soft));
        self.deadlines.set(Due::HardLimit, Some(hard));
        let mut order: Vec<usize> = (0..self.miners.len()).collect();
        shuffle(&mut order, &mut self.rng);
        let kept = std::mem::take(&mut self.kept);
        for kept in &kept {
            self.miners[kept.place.miner].lines += 1;
            self.progress.lines += 1;
        }
        let known: Vec<bool> = self.miners.iter().map(|miner| miner.lines > 0).collect();
        self.share = share(kept.len(), self.miners.len(), known.iter().filter(|known| !**known).count());
        for kept in kept {
            match kept.state {
                KeptState::Planned(_) => self.miners[kept.place.miner].kept.push(kept),
                KeptState::Sent(mut line) => {
                    self.progress.jobs += 1;
                    line.reason = Some(INTERRUPTED.to_owned());
                    self.count(kept.place.miner, &line);
                    self.out.push(Action::End(kept.place, line, None));
                }
                KeptState::Ended(line) => {
                    self.progress.jobs += usize::from(line.job_uuid.is_some());
                    self.count(kept.place.miner, &line);
                    self.out.push(Action::Show(line));
                }
            }
        }
        // What failed before is no reason to abort what goes on.
        self.failed_anew = false;
        for miner in order {
            if known[miner] && self.miners[miner].kept.is_empty() {
                self.progress.answered += 1;
                self.close(miner);
            } else {
                self.waiting.push_back(miner);
            }
        }
    }

    /// What follows from what has just happened: connections, the gate, the end.
    fn go_on(&mut self, now: Now) {
        while self.gate == Gate::Closed
            && self.connecting < self.config.connects
            && let Some(miner) = self.waiting.pop_front()
        {
            self.connecting += 1;
            self.miners[miner].phase = MinerPhase::Connecting;
            self.deadlines.set(Due::Miner(miner), Some(now.mono + self.config.times.connect));
            self.out.push(Action::Connect(miner));
        }
        if self.waiting.is_empty() && !self.done {
            if !self.to_ask.is_empty() && !self.deadlines.has(Due::Ask) {
                self.deadlines.set(Due::Ask, Some(now.mono));
            }
            self.count_gate(now);
        }
        let nobody_before = self.waiting.is_empty() && self.connecting == 0 && self.before_gate == 0;
        if self.gate == Gate::Closed && nobody_before && !self.done {
            self.keep_gate(now);
        }
        if self.max_fail_exceeded() && !self.done {
            self.stop(Ending::Aborted, now);
        }
        if self.open_miners == 0 && self.gate != Gate::Keeping && !self.done {
            self.done = true;
            self.out.push(Action::Done(Ending::Complete));
        }
    }

    fn max_fail_exceeded(&self) -> bool {
        let Some(percent) = self.config.max_fail else { return false };
        self.failed_anew && self.failed_miners * 100 > usize::from(percent) * self.miners.len()
    }

    fn miner(&mut self, miner: usize, input: MinerInput, now: Now) {
        let phase = self.miners[miner].phase;
        match (input, phase) {
            (_, MinerPhase::Closed | MinerPhase::Waiting) => {}
            (MinerInput::Message(message), _) => self.message(miner, *message, now),
            (MinerInput::Failed { why, refused, outcome }, MinerPhase::Connecting) => {
                let state = &mut self.miners[miner];
                state.failures += 1;
                let outcome = BatchOutcome::of_no_connection(outcome);
                (state.trouble, state.no_connection) = (Some(why.clone()), Some(outcome));
                if refused || outcome == BatchOutcome::Unauthorized || state.failures > self.config.retries {
                    self.end_miner(miner, outcome, &why);
                }
            }
            (MinerInput::Failed { why, refused: true, outcome }, MinerPhase::Up) => {
                self.end_jobs(miner, BatchOutcome::of_no_connection(outcome), &why, now);
            }
            (MinerInput::Failed { why, .. }, MinerPhase::Up) => self.miners[miner].trouble = Some(why),
            (MinerInput::Lost(why), _) => {
                self.miners[miner].lost = true;
                self.miners[miner].trouble = Some(why);
            }
            (MinerInput::Unreadable, phase) => {
                self.miners[miner].unreadable += 1;
                if self.miners[miner].unreadable >= UNREADABLE || phase == MinerPhase::Connecting {
                    self.end_jobs(miner, BatchOutcome::ProtocolError, "what it says cannot be read", now);
                }
            }
            (MinerInput::NotSent(why), _) => self.end_jobs(miner, BatchOutcome::HordeFailed, &why, now),
        }
    }

    fn set_deadline(&mut self, number: usize) {
        self.deadlines.set(Due::Job(number), self.jobs[number].deadline);
    }

    fn name(&self, miner: usize) -> String {
        self.miners[miner].address.hotkey.to_ss58()
    }

    fn send(&mut self, miner: usize, message: impl Into<ValidatorToMiner>) {
        self.out.push(Action::Send(miner, Box::new(message.into())));
    }

    fn send_receipt(&mut self, number: usize, completed: bool, now: Now) {
        let Some(asked) = self.jobs[number].asked else { return };
        let (miner, took) = (self.jobs[number].miner, self.jobs[number].took(now));
        let receipt = self.messages(number).finished_receipt(asked, took, completed, now);
        self.send(miner, receipt);
    }

    fn messages(&self, number: usize) -> JobMessages<'_> {
        let job = &self.jobs[number];
        JobMessages {
            key: &self.config.key,
            times: &self.config.times,
            request: &job.request,
            uuid: &job.uuid,
            miner: self.miners[job.miner].address.hotkey,
            is_organic: false,
        }
    }
}
