//! Rates and time limits of the tasks of each name: those of their options, until remote control sets others. Pure.

use std::collections::BTreeMap;
use std::time::Instant;

use super::policy::Policies;
use super::rate::{Rate, Turns};
use crate::celery::message::TaskMessage;

/// By the name of the task. Only names of registered tasks come in.
#[derive(Debug, Default)]
pub(super) struct Limits(BTreeMap<String, TaskLimits>);

#[derive(Debug, Default)]
struct TaskLimits {
    soft: Option<f64>,
    hard: Option<f64>,
    turns: Turns,
}

impl Limits {
    /// As the options of the tasks have them.
    pub(super) fn new(policies: &Policies, now: Instant) -> Self {
        let mut limits = Self::default();
        for (task, policy) in policies.iter() {
            let (soft, hard) = policy.time_limits();
            limits.set_times(task, soft, hard);
            limits.set_rate(task, policy.rate().cloned(), now);
        }
        limits
    }

    pub(super) fn set_times(&mut self, task: &str, soft: Option<f64>, hard: Option<f64>) {
        let limits = self.0.entry(task.to_owned()).or_default();
        (limits.soft, limits.hard) = (soft, hard);
    }

    pub(super) fn set_rate(&mut self, task: &str, rate: Option<Rate>, now: Instant) {
        self.0.entry(task.to_owned()).or_default().turns.set(rate, now);
    }

    /// As it was given, as `10/m`.
    pub(super) fn rate_of(&self, task: &str) -> Option<String> {
        self.0.get(task)?.turns.rate().map(|rate| rate.text.clone())
    }

    /// The soft and the hard time limit of its kind.
    pub(super) fn times_of(&self, task: &str) -> (Option<f64>, Option<f64>) {
        self.0.get(task).map_or((None, None), |limits| (limits.soft, limits.hard))
    }

    /// The soft and the hard time limit of a message: its own, unless that is 0, or those of its kind.
    pub(super) fn time_limits(&self, message: &TaskMessage) -> (Option<f64>, Option<f64>) {
        let ((soft, hard), some) = (self.times_of(&message.task), |limit: &f64| *limit > 0.0);
        (message.soft_time_limit.filter(some).or(soft), message.time_limit.filter(some).or(hard))
    }

    /// Whether a task may begin now; else it waits.
    pub(super) fn offer(&mut self, task: &str, tag: &str, now: Instant) -> bool {
        self.0.get_mut(task).is_none_or(|limits| limits.turns.offer(tag, now))
    }

    /// The next task of a name that may begin now, of those that still want to.
    pub(super) fn take(&mut self, task: &str, now: Instant, wants: impl Fn(&str) -> bool) -> Option<String> {
        self.0.get_mut(task)?.turns.take(now, wants)
    }

    /// When the first of those that wait may begin.
    pub(super) fn next(&self, task: &str, now: Instant) -> Option<Instant> {
        self.0.get(task)?.turns.next(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_has_its_own_limits_or_those_of_its_kind() {
        let mut limits = Limits::default();
        let mut message = TaskMessage::new("id", "add");
        assert_eq!(limits.time_limits(&message), (None, None));
        limits.set_times("add", Some(1.0), Some(2.0));
        assert_eq!(limits.time_limits(&message), (Some(1.0), Some(2.0)));
        (message.soft_time_limit, message.time_limit) = (Some(5.0), Some(0.0));
        assert_eq!(limits.time_limits(&message), (Some(5.0), Some(2.0)));
        assert_eq!(limits.time_limits(&TaskMessage::new("id", "mul")), (None, None));
    }
}
