//! What is asked of a miner: the plan by its manifest, each job, and what may have been lost with a connection. Pure.

use super::super::job::{Job, Phase};
use super::super::kept::{KeptState, Place, PlannedRow};
use super::super::line::{BatchOutcome, in_words};
use super::super::plan::{plan, uuid_of};
use super::types::Action;
use super::{ASK_AT_ONCE, ASK_PAUSE, Batch, Due, Gate, MinerPhase, RECEIPT_REPEATS};
use crate::base::now::Now;
use crate::protocol::ExecutorClass;
use crate::validator::status::Outcome;

impl Batch {
    pub(super) fn plan(&mut self, miner: usize, manifest: Vec<(ExecutorClass, i64)>) {
        self.connected(miner);
        self.miners[miner].phase = MinerPhase::Up;
        self.miners[miner].lost = false;
        self.progress.answered += 1;
        let hotkey = self.miners[miner].address.hotkey;
        let mut jobs: Vec<Job> = Vec::new();
        for kept in std::mem::take(&mut self.miners[miner].kept) {
            if let KeptState::Planned(planned) = kept.state {
                jobs.push(Job::kept(*planned));
            }
        }
        if jobs.is_empty() {
            let planned = plan(self.config.seed, &hotkey, &manifest, self.config.per_miner, &mut *self.maker);
            if planned.is_empty() {
                return self.end_miner(miner, BatchOutcome::Declined, "its manifest has no executors for these jobs");
            }
            let share = self.share;
            if share == 0 {
                return self.end_miner(miner, BatchOutcome::HordeFailed, "the batch that goes on has no room for it");
            }
            if planned.len() > share {
                log::info!("miner {hotkey} gets {share} of {} jobs, its share of the batch", planned.len());
            }
            for (place, job) in planned.into_iter().take(share).enumerate() {
                let uuid = uuid_of(self.number, &hotkey, place, 1);
                jobs.push(Job::new(miner, place, uuid, job.class, job.request));
            }
            self.miners[miner].lines = jobs.len();
            self.progress.lines += jobs.len();
        }
        self.miners[miner].executors = manifest;
        if self.config.dry_run {
            for job in &jobs {
                let mut line = job.line(self.name(miner), BatchOutcome::Declined, None);
                line.outcome = None;
                self.progress.ended += 1;
                self.out.push(Action::Show(Box::new(line)));
            }
            self.progress.jobs += jobs.len();
            return self.close(miner);
        }
        self.out.push(Action::Plan(jobs.iter().map(|job| self.row(job)).collect()));
        for job in jobs {
            let number = self.jobs.len();
            self.by_uuid.insert(job.uuid.clone(), number);
            self.miners[miner].jobs.push(number);
            self.miners[miner].open += 1;
            self.before_gate += 1;
            self.progress.jobs += 1;
            self.jobs.push(job);
            self.to_ask.push_back(number);
        }
    }

    /// Asks for some of the jobs, and for the others soon: by the clock, because what miners say may be older.
    pub(super) fn ask_some(&mut self, now: Now) {
        for _ in 0..ASK_AT_ONCE {
            let Some(number) = self.to_ask.pop_front() else { break };
            if self.jobs[number].phase == Phase::Asked {
                self.ask(number, now);
            }
        }
        self.deadlines.set(Due::Ask, (!self.to_ask.is_empty()).then(|| now.mono + ASK_PAUSE));
    }

    pub(super) fn row(&self, job: &Job) -> PlannedRow {
        PlannedRow {
            place: Place { miner: job.miner, job: job.place },
            uuid: job.uuid.clone(),
            class: job.class,
            request: job.request.clone(),
            attempts: job.attempts,
        }
    }

    pub(super) fn ask(&mut self, number: usize, now: Now) {
        let job = &mut self.jobs[number];
        job.asked = Some(now);
        job.deadline = Some(now.mono + self.config.times.reservation);
        let miner = job.miner;
        let initial = self.messages(number).initial_request(now);
        self.send(miner, initial);
        self.set_deadline(number);
    }

    /// The horde failed the job before the gate, or its miner takes its uuid no more: it is asked for once more.
    pub(super) fn ask_again(&mut self, number: usize, outcome: &Outcome, now: Now) {
        let why = in_words(outcome).1.unwrap_or_default();
        self.again.info(now.mono, &format_args!("job {}: asked for again: {why}", self.jobs[number].uuid));
        let trouble = matches!(outcome, Outcome::HordeFailed(_)).then_some(why);
        if !self.jobs[number].is_before_gate() {
            self.progress.ready -= 1;
            self.before_gate += 1;
            self.prepared.remove(&number);
        }
        self.send_receipt(number, false, now);
        let job = &mut self.jobs[number];
        let hotkey = self.miners[job.miner].address.hotkey;
        let uuid = uuid_of(self.number, &hotkey, job.place, job.attempts + 1);
        job.again(uuid.clone(), trouble);
        self.by_uuid.insert(uuid, number);
        let row = self.row(&self.jobs[number]);
        self.out.push(Action::Plan(vec![row]));
        self.ask(number, now);
    }

    /// Jobs that have not left, for whoever goes on: under other uuids, because their miners were told that nobody
    /// waits for these any more. Those that are ready have left once the gate is open, heard of or not.
    pub(super) fn anew(&self) -> Vec<PlannedRow> {
        let is_open = matches!(self.gate, Gate::Open(_));
        let is_ready = |job: &Job| job.phase == Phase::Ready && !is_open;
        let was_asked = |job: &&Job| job.asked.is_some() && (job.is_before_gate() || is_ready(job));
        let row = |job: &Job| {
            let attempts = job.attempts + 1;
            let uuid = uuid_of(self.number, &self.miners[job.miner].address.hotkey, job.place, attempts);
            PlannedRow { uuid, attempts, ..self.row(job) }
        };
        self.jobs.iter().filter(was_asked).map(row).collect()
    }

    /// The miner is connected again: what may have been lost is sent again, and counts once.
    pub(super) fn is_back(&mut self, miner: usize) {
        if !std::mem::take(&mut self.miners[miner].lost) {
            return;
        }
        for number in self.miners[miner].jobs.clone() {
            let job = &self.jobs[number];
            match job.phase {
                Phase::Asked => {
                    if let Some(asked) = job.asked {
                        let initial = self.messages(number).initial_request(asked);
                        self.send(miner, initial);
                    }
                }
                Phase::Starting if job.receipt_repeats < RECEIPT_REPEATS => {
                    if let Some(accepted) = job.accepted {
                        let receipt = self.messages(number).accepted_receipt(accepted);
                        self.jobs[number].receipt_repeats += 1;
                        self.send(miner, receipt);
                    }
                }
                // By it the miner knows which connection wants the news; it takes the first one only.
                Phase::Sent(_) | Phase::Over(_) => {
                    let request = self.messages(number).job_request();
                    self.send(miner, request);
                }
                Phase::Starting | Phase::Ready | Phase::Ended => {}
            }
        }
    }
}
