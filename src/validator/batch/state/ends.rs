//! The ends: what is due, what is left behind, and the line of each job and miner. Pure.

use super::super::deadlines::Due;
use super::super::job::{Job, Phase};
use super::super::kept::{KeptState, Place};
use super::super::line::{BatchOutcome, JobLine, one_line};
use super::types::{Action, Ending};
use super::{Batch, Miner, MinerPhase};
use crate::base::now::Now;
use crate::protocol::stages::Stage;
use crate::validator::status::Outcome;

impl Batch {
    pub(super) fn tick(&mut self, now: Now) {
        while let Some(due) = self.deadlines.take(now.mono) {
            match due {
                Due::Miner(miner) => {
                    let (outcome, why) = self.no_connection(miner);
                    self.end_miner(miner, outcome, &why);
                }
                Due::Job(number) => self.job_is_due(number, now),
                Due::Ask => self.ask_some(now),
                Due::Gate => self.leave_behind("when the gate opened", now),
                Due::SoftLimit => {
                    self.leave_behind("when the batch's time was over", now);
                    for number in 0..self.jobs.len() {
                        match self.jobs[number].phase {
                            Phase::Ready => {
                                let why = Some("the batch's time was over before the gate opened");
                                self.end_job(number, BatchOutcome::Timeout, why, None, now);
                            }
                            Phase::Sent(stage) => self.over(number, stage, now),
                            _ => {}
                        }
                    }
                }
                Due::HardLimit => {
                    for number in 0..self.jobs.len() {
                        if self.jobs[number].phase != Phase::Ended {
                            self.timed_out(number, now);
                        }
                    }
                }
            }
        }
    }

    pub(super) fn job_is_due(&mut self, number: usize, now: Now) {
        match self.jobs[number].phase {
            Phase::Sent(stage) => self.over(number, stage, now),
            _ => self.timed_out(number, now),
        }
    }

    /// A job that has left has used up its time; what still comes is noted and counts for nothing.
    pub(super) fn over(&mut self, number: usize, stage: Stage, now: Now) {
        let (soft, hard) = self.limits.unwrap_or((now.mono, now.mono));
        let until = (now.mono + self.config.late).min(hard);
        if until <= now.mono {
            return self.timed_out(number, now);
        }
        let job = &mut self.jobs[number];
        job.phase = Phase::Over(stage);
        job.deadline = job.deadline.map(|deadline| deadline.min(soft));
        self.deadlines.set(Due::Job(number), Some(until));
    }

    pub(super) fn timed_out(&mut self, number: usize, now: Now) {
        let job = &self.jobs[number];
        let (miner, what) = (&self.miners[job.miner], job.waits_for());
        let trouble = self.trouble(job.miner);
        let (outcome, why) = if miner.lost {
            (BatchOutcome::HordeFailed, format!("the connection was lost while waiting for {what}{trouble}"))
        } else if miner.unreadable > 0 {
            (BatchOutcome::ProtocolError, format!("it said what cannot be read while waiting for {what}"))
        } else {
            (BatchOutcome::Timeout, format!("waiting for {what} took too long{trouble}"))
        };
        self.end_job(number, outcome, Some(&why), None, now);
    }

    /// Those that are not ready end; the gate does not wait for them.
    pub(super) fn leave_behind(&mut self, when: &str, now: Now) {
        for miner in 0..self.miners.len() {
            match self.miners[miner].phase {
                MinerPhase::Waiting => {
                    self.waiting.retain(|other| *other != miner);
                    let why = format!("its turn to be connected to had not come {when}");
                    self.end_miner_without_blame(miner, &why);
                }
                MinerPhase::Connecting if self.miners[miner].no_connection.is_some() => {
                    let (outcome, why) = self.no_connection(miner);
                    self.end_miner(miner, outcome, &format!("{why}, {when}"));
                }
                MinerPhase::Connecting => {
                    let why = format!("its time to connect was not over {when}{}", self.trouble(miner));
                    self.end_miner_without_blame(miner, &why);
                }
                MinerPhase::Up | MinerPhase::Closed => {}
            }
        }
        for number in 0..self.jobs.len() {
            let job = &self.jobs[number];
            if job.is_before_gate() {
                let (miner, what) = (job.miner, job.waits_for());
                // That it was not asked is nobody's fault but ours.
                let (outcome, why) = match (job.asked.is_some(), self.miners[miner].lost) {
                    (true, true) => {
                        let trouble = self.trouble(miner);
                        (
                            BatchOutcome::HordeFailed,
                            format!("the connection was lost while waiting for {what}{trouble}"),
                        )
                    }
                    (true, false) => (BatchOutcome::Timeout, format!("waiting for {what}")),
                    (false, _) => (BatchOutcome::HordeFailed, format!("waiting for {what}")),
                };
                let why = format!("not ready {when}: {why}");
                self.end_job(number, outcome, Some(&why), None, now);
            }
        }
    }

    pub(super) fn no_connection(&self, miner: usize) -> (BatchOutcome, String) {
        let Miner { trouble, no_connection, .. } = &self.miners[miner];
        match trouble {
            Some(why) => (no_connection.unwrap_or(BatchOutcome::Refused), why.clone()),
            None => (BatchOutcome::Timeout, "no connection in time".to_owned()),
        }
    }

    pub(super) fn trouble(&self, miner: usize) -> String {
        let trouble = self.miners[miner].trouble.as_ref();
        trouble.map_or_else(String::new, |trouble| format!(" (last trouble: {})", one_line(trouble)))
    }

    /// Ends what a miner has, or the miner itself if it has nothing yet.
    pub(super) fn end_jobs(&mut self, miner: usize, outcome: BatchOutcome, why: &str, now: Now) {
        if self.miners[miner].phase == MinerPhase::Connecting {
            return self.end_miner(miner, outcome, why);
        }
        for number in self.miners[miner].jobs.clone() {
            self.end_job(number, outcome, Some(why), None, now);
        }
    }

    pub(super) fn end_miner(&mut self, miner: usize, outcome: BatchOutcome, why: &str) {
        self.end_miner_as(miner, (outcome, false), why);
    }

    /// Ends a miner that had less than its time to connect, which is our doing.
    fn end_miner_without_blame(&mut self, miner: usize, why: &str) {
        self.end_miner_as(miner, (BatchOutcome::HordeFailed, true), why);
    }

    fn end_miner_as(&mut self, miner: usize, (outcome, excused): (BatchOutcome, bool), why: &str) {
        self.connected(miner);
        self.progress.answered += usize::from(self.miners[miner].phase != MinerPhase::Up);
        let kept = std::mem::take(&mut self.miners[miner].kept);
        if kept.is_empty() {
            let line = JobLine { excused, ..JobLine::of_miner(self.name(miner), outcome, why) };
            self.miners[miner].lines = 1;
            self.progress.lines += 1;
            self.count(miner, &line);
            self.out.push(Action::End(Place { miner, job: Place::NO_JOB }, Box::new(line), None));
        }
        for kept in kept {
            if let KeptState::Planned(planned) = kept.state {
                let line = JobLine { excused, ..Job::kept(*planned).line(self.name(miner), outcome, Some(why)) };
                self.progress.jobs += 1;
                self.count(miner, &line);
                self.out.push(Action::End(kept.place, Box::new(line), None));
            }
        }
        self.close(miner);
    }

    pub(super) fn end_job(
        &mut self,
        number: usize,
        outcome: BatchOutcome,
        reason: Option<&str>,
        answer: Option<Box<Outcome>>,
        now: Now,
    ) {
        let job = &self.jobs[number];
        let (miner, place) = (job.miner, Place { miner: job.miner, job: job.place });
        match job.phase {
            Phase::Ended => return,
            Phase::Asked | Phase::Starting => self.before_gate -= 1,
            Phase::Ready => self.progress.ready -= 1,
            Phase::Sent(_) | Phase::Over(_) => {}
        }
        let line = job.line(self.name(miner), outcome, reason);
        if outcome != BatchOutcome::Declined {
            self.send_receipt(number, line.scored, now);
        }
        self.prepared.remove(&number);
        self.jobs[number].phase = Phase::Ended;
        self.jobs[number].deadline = None;
        self.set_deadline(number);
        self.count(miner, &line);
        self.out.push(Action::End(place, Box::new(line), answer));
        self.miners[miner].open -= 1;
        if self.miners[miner].open == 0 {
            self.close(miner);
        }
    }

    pub(super) fn count(&mut self, miner: usize, line: &JobLine) {
        let failed = usize::from(line.outcome != Some(BatchOutcome::Completed) && !line.excused);
        self.progress.ended += 1;
        self.progress.failed += failed;
        let miner = &mut self.miners[miner];
        let before = miner.has_failed();
        miner.failed += failed;
        if miner.has_failed() && !before {
            self.failed_miners += 1;
            self.failed_anew = true;
        }
    }

    /// An attempt to connect is over.
    pub(super) fn connected(&mut self, miner: usize) {
        if self.miners[miner].phase == MinerPhase::Connecting {
            self.connecting -= 1;
            self.deadlines.set(Due::Miner(miner), None);
        }
    }

    pub(super) fn close(&mut self, miner: usize) {
        let before = std::mem::replace(&mut self.miners[miner].phase, MinerPhase::Closed);
        if before != MinerPhase::Closed {
            self.open_miners -= 1;
            self.out.push(Action::Close(miner));
        }
    }

    /// Everything is closed, and what has not ended stays without an outcome. Who has an executor for it learns that
    /// nobody waits for that any more.
    pub(super) fn stop(&mut self, ending: Ending, now: Now) {
        for number in 0..self.jobs.len() {
            if self.jobs[number].phase != Phase::Ended {
                self.send_receipt(number, false, now);
            }
        }
        let anew = self.anew();
        if !anew.is_empty() {
            self.out.push(Action::PlanAnew(anew));
        }
        self.waiting.clear();
        for miner in 0..self.miners.len() {
            self.connected(miner);
            self.close(miner);
        }
        self.done = true;
        self.out.push(Action::Done(ending));
    }
}
