//! The gate: who leaves is kept first, then all leave at once. Pure.

use super::super::deadlines::Due;
use super::super::job::Phase;
use super::super::kept::Place;
use super::super::line::{BatchOutcome, JobLine};
use super::super::plan::shuffle;
use super::types::{Action, GateSend};
use super::{Batch, Gate, INTERRUPTED};
use crate::base::now::Now;
use crate::protocol::stages::Timing;

impl Batch {
    pub(super) fn keep_gate(&mut self, now: Now) {
        self.deadlines.set(Due::Gate, None);
        let leaving: Vec<(Place, JobLine)> = (self.jobs.iter())
            .filter(|job| job.phase == Phase::Ready)
            .map(|job| {
                let line = job.line(self.name(job.miner), BatchOutcome::HordeFailed, Some(INTERRUPTED));
                (Place { miner: job.miner, job: job.place }, line)
            })
            .collect();
        if leaving.is_empty() {
            self.gate = Gate::Open(now);
        } else {
            self.gate = Gate::Keeping;
            self.out.push(Action::KeepGate(leaving));
        }
    }

    /// The gate's time counts once nobody waits for a turn to be connected to or asked, and the first is ready: who is
    /// being connected to does not put it off.
    pub(super) fn count_gate(&mut self, now: Now) {
        if self.gate == Gate::Closed && !self.gate_counts && self.to_ask.is_empty() && self.progress.ready > 0 {
            self.gate_counts = true;
            self.deadlines.set(Due::Gate, Some(now.mono + self.config.gate));
        }
    }

    pub(super) fn open_gate(&mut self, now: Now) {
        if self.gate != Gate::Keeping {
            return;
        }
        self.gate = Gate::Open(now);
        let mut leaving: Vec<usize> =
            (0..self.jobs.len()).filter(|number| self.jobs[*number].phase == Phase::Ready).collect();
        shuffle(&mut leaving, &mut self.rng);
        let mut sends = Vec::with_capacity(leaving.len());
        for number in leaving {
            let miner = self.jobs[number].miner;
            match self.prepared.remove(&number) {
                Some(text) if !self.miners[miner].lost => sends.push(GateSend { job: number, miner, text }),
                _ => {
                    let trouble = self.trouble(miner);
                    let why = format!("not connected when the gate opened{trouble}");
                    self.end_job(number, BatchOutcome::HordeFailed, Some(&why), None, now);
                }
            }
        }
        self.out.push(Action::OpenGate(sends));
    }

    pub(super) fn sent(&mut self, number: usize, before: Now, after: Now, error: Option<String>) {
        let Gate::Open(opened) = self.gate else { return };
        if self.jobs[number].phase != Phase::Ready {
            return;
        }
        if let Some(why) = error {
            return self.end_job(number, BatchOutcome::HordeFailed, Some(&why), None, after);
        }
        let timing = Timing::from(&self.messages(number).timing());
        let since = after.mono.saturating_duration_since(opened.mono);
        self.jobs[number].sent((before, after), since, timing, self.config.times.margin);
        self.progress.ready -= 1;
        self.progress.sent += 1;
        self.set_deadline(number);
    }
}
