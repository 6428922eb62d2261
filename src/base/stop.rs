//! What a stop did: how long each step took and who did not end.

use std::fmt;
use std::time::{Duration, Instant};

use super::thread::{JoinError, Thread};

/// How long a kicked thread may still take; a kicked call returns within a millisecond, so this is for a busy machine.
pub const KICK_GRACE: Duration = Duration::from_millis(500);

/// One step of a stop, in the order of the steps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StopStep {
    /// What was stopped.
    pub name: String,
    /// How long it took.
    pub took: Duration,
    /// Names of the threads that did not end within the step's budget, not even after their kick.
    pub stragglers: Vec<String>,
}

/// The account of a whole stop.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StopReport {
    /// The steps, in order.
    pub steps: Vec<StopStep>,
    /// Messages that were accepted from a producer but not by the peer.
    pub unsent: usize,
    /// Jobs that were still running and were cancelled.
    pub cancelled_jobs: usize,
}

impl StopReport {
    /// Whether every thread ended and every message was accepted by its peer.
    pub fn is_clean(&self) -> bool {
        self.unsent == 0 && self.steps.iter().all(|s| s.stragglers.is_empty())
    }

    /// Names of all threads that did not end.
    pub fn stragglers(&self) -> Vec<&str> {
        self.steps.iter().flat_map(|s| s.stragglers.iter().map(String::as_str)).collect()
    }

    /// Runs one step and records it; `work` gets the step so that it can name stragglers.
    pub fn step(&mut self, name: &str, work: impl FnOnce(&mut StopStep)) {
        let start = Instant::now();
        let mut step = StopStep { name: name.to_owned(), took: Duration::ZERO, stragglers: Vec::new() };
        work(&mut step);
        step.took = start.elapsed();
        log::debug!("stop: {} took {:?}", step.name, step.took);
        self.steps.push(step);
    }

    /// Takes over the steps and counts of another report, with its names under `prefix`.
    pub fn absorb(&mut self, prefix: &str, other: StopReport) {
        self.unsent += other.unsent;
        self.cancelled_jobs += other.cancelled_jobs;
        self.steps.extend(other.steps.into_iter().map(|mut step| {
            step.name = format!("{prefix}: {}", step.name);
            step
        }));
    }
}

impl StopStep {
    /// Joins a thread until `deadline`, kicks it then, and records it as a straggler if even that does not end it.
    pub fn join<T>(&mut self, thread: Thread<T>, deadline: Instant) -> Option<T> {
        match thread.join_or_kick(deadline, KICK_GRACE) {
            Ok(value) => Some(value),
            Err(JoinError::Panicked(_)) => None,
            Err(JoinError::Late(thread)) => {
                self.stragglers.push(thread.name().to_owned());
                thread.abandon("it outlived its step of the stop and its kick");
                None
            }
        }
    }
}

impl fmt::Display for StopReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let total: Duration = self.steps.iter().map(|s| s.took).sum();
        write!(f, "stopped in {total:.3?}")?;
        if self.cancelled_jobs > 0 {
            write!(f, ", {} jobs cancelled", self.cancelled_jobs)?;
        }
        if self.unsent > 0 {
            write!(f, ", {} messages unsent", self.unsent)?;
        }
        for step in self.steps.iter().filter(|s| !s.stragglers.is_empty()) {
            write!(f, "; {} left behind: {}", step.name, step.stragglers.join(", "))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::thread::{Kick, spawn};
    use crossbeam_channel::bounded;

    #[test]
    fn a_straggler_is_named_and_the_stop_goes_on() {
        let (tx, rx) = bounded::<()>(0);
        let stuck = spawn("t-stuck", Kick::dropped("a sender that the test keeps"), move || rx.recv().is_err());
        let mut report = StopReport::default();
        report.step("workers", |step| assert!(step.join(stuck, Instant::now()).is_none()));
        report.step("rest", |_| {});
        assert_eq!(report.stragglers(), ["t-stuck"]);
        assert!(!report.is_clean());
        assert!(report.to_string().contains("workers left behind: t-stuck"), "{report}");
        assert_eq!(report.steps.len(), 2);
        drop(tx);
    }
}
