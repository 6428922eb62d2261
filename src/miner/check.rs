//! When a host is asked whether it answers, when an answer counts, and what becomes of a host that answers but does not
//! work. Pure: `now` is an argument.
//!
//! One lost answer is no outage and one answer is no recovery, but for the very first, before which nothing is known.
//! An answer that shows a host unfit counts at once.

use std::time::{Duration, Instant};

use crate::base::backoff::exponential;

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

/// Why a check has not gone well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trouble {
    /// The host did not answer, or not as it should, which may be over by the next check.
    Unanswered(String),
    /// The host is known to be unfit for jobs; a second look would show the same.
    Unfit(String),
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

    /// What answers is known from earlier checks, if anything does; the first one is due.
    pub fn resumed(policy: CheckPolicy, known: Option<String>, now: Instant) -> Self {
        Self { verdict: known.map_or(Verdict::Unknown, Verdict::Up), ..Self::new(policy, now) }
    }

    /// What the checks have shown: what answers, or why nothing does.
    pub fn verdict(&self) -> Result<String, String> {
        match &self.verdict {
            Verdict::Unknown => Err(UNKNOWN.to_owned()),
            Verdict::Up(what) => Ok(what.clone()),
            Verdict::Down(why) => Err(why.clone()),
        }
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
    pub fn checked(&mut self, outcome: Result<String, Trouble>, now: Instant) -> Option<Result<String, String>> {
        let unfit = matches!(outcome, Err(Trouble::Unfit(_)));
        let outcome = outcome.map_err(|(Trouble::Unanswered(why) | Trouble::Unfit(why))| why);
        let enough = match (&self.verdict, &outcome) {
            (Verdict::Unknown, _) => 1,
            (Verdict::Up(_), Err(_)) if unfit => 1,
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

/// Why nothing runs on a host of which nothing is known.
pub const UNKNOWN: &str = "it has not answered yet";

/// So many jobs that a host fails one after the other show that it does not work, whatever its engine says: one may
/// have been bad luck, and a host that fails fast would otherwise draw all jobs to it.
pub const FAILURES: u32 = 3;

/// How long such a host gets no job: at first, and at most as it is doubled with each job that it fails again.
const PAUSE: Duration = Duration::from_secs(10);
const PAUSE_MAX: Duration = Duration::from_secs(300);

/// How many jobs a host may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Room {
    /// None.
    Nothing,
    /// One, as a trial.
    OneJob,
    /// As many as it has slots.
    AllSlots,
}

/// Counts the jobs that a host itself has failed, as by executors that do not start.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Trials {
    /// In a row.
    failures: u32,
    down: Option<Down>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Down {
    why: String,
    /// From then on one job may show whether it works again.
    trial_at: Instant,
    /// Whether one was given to it since.
    on_trial: bool,
    /// Trials that it has failed.
    failed: u32,
}

impl Down {
    fn pause(&self) -> Duration {
        exponential(PAUSE, PAUSE_MAX, self.failed)
    }
}

impl Trials {
    /// How many jobs the host may have now.
    pub fn room(&self, now: Instant) -> Room {
        match &self.down {
            None => Room::AllSlots,
            Some(down) if down.trial_at <= now => Room::OneJob,
            Some(_) => Room::Nothing,
        }
    }

    /// Why it may have no job, or only one.
    pub fn why(&self) -> Option<&str> {
        self.down.as_ref().map(|down| down.why.as_str())
    }

    /// A job was given to it. One that shows nothing is followed by another after the pause.
    pub fn begun(&mut self, now: Instant) {
        if let Some(down) = &mut self.down {
            (down.trial_at, down.on_trial) = (now + down.pause(), true);
        }
    }

    /// A job has come as far as a host that works lets it come.
    pub fn worked(&mut self) {
        *self = Self::default();
    }

    /// It has failed a job; says whether that has brought it down.
    pub fn failed(&mut self, why: &str, now: Instant) -> bool {
        self.failures = self.failures.saturating_add(1);
        match &mut self.down {
            None if self.failures < FAILURES => return false,
            None => {
                let why = format!("{FAILURES} jobs in a row could not be run there, at last: {why}");
                self.down = Some(Down { why, trial_at: now + PAUSE, on_trial: false, failed: 0 });
                return true;
            }
            // Jobs that were given to it before fail too, which is no news.
            Some(down) if down.on_trial => {
                down.failed = down.failed.saturating_add(1);
                down.on_trial = false;
                down.trial_at = now + down.pause();
                down.why = format!("it was tried again, and {why}");
            }
            Some(_) => {}
        }
        false
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

    fn found(what: &str) -> Result<String, Trouble> {
        Ok(what.to_owned())
    }

    fn silent() -> Result<String, Trouble> {
        Err(Trouble::Unanswered("gone".to_owned()))
    }

    #[test]
    fn the_first_outcome_counts_at_once_and_later_ones_in_a_row() {
        let (start, policy) = (Instant::now(), CheckPolicy::default());
        let mut gate = Gate::new(policy, start);
        assert_eq!(gate.next_check(), start);
        assert_eq!(gate.checked(found("1"), start), Some(up("1")));
        assert_eq!(gate.next_check(), start + policy.interval);
        // Two failures and an answer are no outage.
        for outcome in [silent(), silent(), found("1"), silent(), silent()] {
            assert_eq!(gate.checked(outcome, start), None);
        }
        assert_eq!(gate.next_check(), start + policy.retry, "a failure is followed up sooner");
        assert_eq!(gate.checked(silent(), start), Some(down()));
        // One answer is no recovery.
        for outcome in [silent(), found("1"), silent(), found("1")] {
            assert_eq!(gate.checked(outcome, start), None);
            assert_eq!(gate.next_check(), start + policy.retry);
        }
        assert_eq!(gate.checked(found("1"), start), Some(up("1")));
        assert_eq!(gate.checked(found("2"), start), Some(up("2")), "another engine is news");
    }

    #[test]
    fn what_is_shown_unfit_is_down_at_once_and_comes_back_as_others_do() {
        let (now, policy) = (Instant::now(), CheckPolicy::default());
        let unfit = || Err(Trouble::Unfit("a way out".to_owned()));
        let mut gate = Gate::resumed(policy, Some("1".to_owned()), now);
        assert_eq!(gate.checked(unfit(), now), Some(Err("a way out".to_owned())));
        assert_eq!((gate.checked(unfit(), now), gate.next_check()), (None, now + policy.retry));
        assert_eq!((gate.checked(found("1"), now), gate.checked(found("1"), now)), (None, Some(up("1"))));
    }

    #[test]
    fn what_answered_before_new_settings_is_not_down_by_one_lost_answer() {
        let (now, policy) = (Instant::now(), CheckPolicy::default());
        let mut gate = Gate::resumed(policy, Some("1".to_owned()), now);
        assert_eq!((gate.verdict(), gate.next_check()), (up("1"), now));
        assert_eq!([silent(), silent()].map(|outcome| gate.checked(outcome, now)), [None, None]);
        assert_eq!(gate.checked(silent(), now), Some(down()));
        assert_eq!(Gate::resumed(policy, None, now).checked(silent(), now), Some(down()));
    }

    #[test]
    fn what_never_answered_is_down_at_once_and_comes_up_later() {
        let now = Instant::now();
        let mut gate = Gate::new(CheckPolicy::default(), now);
        assert_eq!(gate.checked(silent(), now), Some(down()));
        assert_eq!((gate.checked(found("1"), now), gate.checked(found("1"), now)), (None, Some(up("1"))));
    }

    #[test]
    fn a_host_that_fails_three_jobs_in_a_row_gets_one_at_a_time_until_one_goes_well() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut trials = Trials::default();
        // Two are bad luck, and so are two more after one that went well.
        for _ in 0..2 {
            assert!(!trials.failed("no disk", start) && !trials.failed("no disk", start));
            assert_eq!((trials.room(start), trials.why()), (Room::AllSlots, None));
            trials.worked();
        }
        assert!(
            !trials.failed("no disk", start) && !trials.failed("no disk", start) && trials.failed("no disk", start)
        );
        assert_eq!(trials.why(), Some("3 jobs in a row could not be run there, at last: no disk"));
        // What was given to it before fails as well.
        assert!(!trials.failed("no disk", at(9)));
        assert_eq!((trials.room(at(9)), trials.room(at(10))), (Room::Nothing, Room::OneJob));
        // The pause is doubled with each trial that fails, up to a limit.
        let mut now = 10;
        for pause in [20, 40, 80, 160, 300, 300] {
            trials.begun(at(now));
            assert_eq!(trials.room(at(now)), Room::Nothing, "one at a time");
            assert!(!trials.failed("still none", at(now)));
            assert_eq!(trials.why(), Some("it was tried again, and still none"));
            assert_eq!(trials.room(at(now + pause - 1)), Room::Nothing);
            now += pause;
            assert_eq!(trials.room(at(now)), Room::OneJob);
        }
        // A trial that shows nothing is followed by another.
        trials.begun(at(now));
        assert_eq!((trials.room(at(now + 299)), trials.room(at(now + 300))), (Room::Nothing, Room::OneJob));
        trials.worked();
        assert_eq!((trials.room(at(now)), trials.why()), (Room::AllSlots, None));
    }
}
