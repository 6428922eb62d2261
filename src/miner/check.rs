//! When what jobs run on is asked whether it answers, and when an answer counts. Pure: `now` is an argument.
//!
//! One lost answer is no outage and one answer is no recovery, but for the very first, before which nothing is known.

use std::time::{Duration, Instant};

/// How often and how patiently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CheckPolicy {
    /// Time between two checks while all is well.
    pub interval: Duration,
    /// The same after a failure, and while it is down.
    pub retry: Duration,
    /// How long one check may take.
    pub limit: Duration,
    /// Failures in a row that make it down.
    pub failures: u32,
    /// Answers in a row that make it up again.
    pub recoveries: u32,
}

impl Default for CheckPolicy {
    /// An engine that has gone is noticed within half a minute, and one that is back within ten seconds. A check costs
    /// the engine a tenth of a second.
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self { interval: seconds(10), retry: seconds(3), limit: seconds(5), failures: 3, recoveries: 2 }
    }
}

/// What the checks have shown.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Verdict {
    Unknown,
    Up(String),
    Down(String),
}

/// Counts the outcomes of checks.
#[derive(Debug)]
pub struct Gate {
    policy: CheckPolicy,
    verdict: Verdict,
    /// Outcomes in a row that speak against the verdict.
    against: u32,
    next: Instant,
}

impl Gate {
    /// Nothing is known, and the first check is due.
    pub fn new(policy: CheckPolicy, now: Instant) -> Self {
        Self { policy, verdict: Verdict::Unknown, against: 0, next: now }
    }

    /// When the next check is due.
    pub fn next_check(&self) -> Instant {
        self.next
    }

    /// By when a check that begins now must have its outcome.
    pub fn limit(&self, now: Instant) -> Instant {
        now + self.policy.limit
    }

    /// Takes the outcome of a check: what answers, or why nothing does. Gives it back if it is news: the verdict is
    /// another one, or it is of another thing.
    pub fn checked(&mut self, outcome: Result<String, String>, now: Instant) -> Option<Result<String, String>> {
        let enough = match (&self.verdict, &outcome) {
            (Verdict::Unknown, _) => 1,
            (Verdict::Up(known), Ok(what)) if known != what => 1,
            (Verdict::Up(_), Ok(_)) | (Verdict::Down(_), Err(_)) => 0,
            (Verdict::Up(_), Err(_)) => self.policy.failures,
            (Verdict::Down(_), Ok(_)) => self.policy.recoveries,
        };
        self.against = if enough == 0 { 0 } else { self.against + 1 };
        let news = enough > 0 && self.against >= enough;
        if news {
            self.against = 0;
            self.verdict = match outcome.clone() {
                Ok(what) => Verdict::Up(what),
                Err(why) => Verdict::Down(why),
            };
        }
        let well = matches!(self.verdict, Verdict::Up(_)) && self.against == 0;
        self.next = now + if well { self.policy.interval } else { self.policy.retry };
        news.then_some(outcome)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn up(what: &str) -> Result<String, String> {
        Ok(what.to_owned())
    }

    fn down() -> Result<String, String> {
        Err("gone".to_owned())
    }

    #[test]
    fn the_first_outcome_counts_at_once_and_later_ones_in_a_row() {
        let (start, policy) = (Instant::now(), CheckPolicy::default());
        let mut gate = Gate::new(policy, start);
        assert_eq!(gate.next_check(), start);
        assert_eq!(gate.checked(up("1"), start), Some(up("1")));
        assert_eq!(gate.next_check(), start + policy.interval);
        // Two failures and an answer are no outage.
        for outcome in [down(), down(), up("1"), down(), down()] {
            assert_eq!(gate.checked(outcome, start), None);
        }
        assert_eq!(gate.next_check(), start + policy.retry, "a failure is followed up sooner");
        assert_eq!(gate.checked(down(), start), Some(down()));
        // One answer is no recovery.
        for outcome in [down(), up("1"), down(), up("1")] {
            assert_eq!(gate.checked(outcome, start), None);
            assert_eq!(gate.next_check(), start + policy.retry);
        }
        assert_eq!(gate.checked(up("1"), start), Some(up("1")));
        assert_eq!(gate.checked(up("2"), start), Some(up("2")), "another engine is news");
    }

    #[test]
    fn what_never_answered_is_down_at_once_and_comes_up_later() {
        let now = Instant::now();
        let mut gate = Gate::new(CheckPolicy::default(), now);
        assert_eq!(gate.checked(down(), now), Some(down()));
        assert_eq!((gate.checked(up("1"), now), gate.checked(up("1"), now)), (None, Some(up("1"))));
    }
}
