//! In which order, and when, a process group is ended. Pure.

use std::time::{Duration, Instant};

/// How a process group is ended: SIGTERM, again if so wished, then SIGKILL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ladder {
    /// How often SIGTERM is sent, evenly over the grace; at least once.
    pub terms: u32,
    /// Time from the first SIGTERM to SIGKILL.
    pub grace: Duration,
    /// The same once the stop signal is at cancel, if that is shorter.
    pub forced_grace: Duration,
    /// How long the killed program may take to end before it is given up; `None`: for ever. It ends at once, unless the
    /// system holds it in a call that cannot be interrupted (a dead disk).
    pub kill_time: Option<Duration>,
}

/// What is due on a ladder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// SIGTERM.
    Terminate,
    /// SIGKILL.
    Kill,
    GiveUp,
}

/// A ladder in use.
#[derive(Debug)]
pub(super) struct Climb {
    ladder: Ladder,
    steps: u32,
    next: Option<Instant>,
}

impl Climb {
    pub(super) fn new(ladder: Ladder) -> Self {
        Self { ladder, steps: 0, next: None }
    }

    /// The first signal is due now.
    pub(super) fn begin(&mut self, now: Instant) {
        self.next = Some(now);
    }

    /// The rest of the signals follow within the forced grace.
    pub(super) fn hurry(&mut self, now: Instant) {
        self.ladder.grace = self.ladder.grace.min(self.ladder.forced_grace);
        if self.steps <= self.ladder.terms {
            self.next = self.next.map(|at| at.min(now + self.pause()));
        }
    }

    /// The last step took this long.
    pub(super) fn postpone(&mut self, by: Duration) {
        self.next = self.next.map(|at| at + by);
    }

    /// When the next step is due; `None`: never.
    pub(super) fn next(&self) -> Option<Instant> {
        self.next
    }

    /// The step that is due now.
    pub(super) fn due(&mut self, now: Instant) -> Option<Step> {
        self.next.filter(|at| *at <= now)?;
        self.steps += 1;
        let (step, pause) = match self.steps.cmp(&(self.ladder.terms + 1)) {
            std::cmp::Ordering::Less => (Step::Terminate, Some(self.pause())),
            std::cmp::Ordering::Equal => (Step::Kill, self.ladder.kill_time),
            std::cmp::Ordering::Greater => (Step::GiveUp, None),
        };
        self.next = pause.map(|pause| now + pause);
        Some(step)
    }

    fn pause(&self) -> Duration {
        self.ladder.grace / self.ladder.terms
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);
    const TERM: Option<Step> = Some(Step::Terminate);
    const KILL: Option<Step> = Some(Step::Kill);

    fn climb(terms: u32, kill_time: Option<Duration>) -> (Climb, Instant) {
        (Climb::new(Ladder { terms, grace: 10 * S, forced_grace: 2 * S, kill_time }), Instant::now())
    }

    #[test]
    fn the_signals_come_in_order_and_evenly() {
        let (mut climb, t) = climb(2, None);
        assert_eq!((climb.next(), climb.due(t)), (None, None), "nothing before the begin");
        climb.begin(t);
        assert_eq!((climb.due(t), climb.next()), (TERM, Some(t + 5 * S)));
        assert_eq!(climb.due(t + 4 * S), None);
        assert_eq!((climb.due(t + 5 * S), climb.due(t + 10 * S)), (TERM, KILL));
        assert_eq!(climb.next(), None, "without a kill time it is waited for");
    }

    #[test]
    fn a_program_that_does_not_end_when_it_is_killed_is_given_up() {
        let (mut climb, t) = climb(1, Some(3 * S));
        climb.begin(t);
        assert_eq!((climb.due(t), climb.due(t + 10 * S)), (TERM, KILL));
        climb.hurry(t + 10 * S);
        assert_eq!((climb.due(t + 12 * S), climb.due(t + 13 * S)), (None, Some(Step::GiveUp)));
        assert_eq!(climb.next(), None);
    }

    #[test]
    fn a_hurry_brings_the_rest_forward() {
        let (mut climb, t) = climb(2, None);
        climb.hurry(t);
        assert_eq!(climb.next(), None, "a hurry begins nothing");
        climb.begin(t);
        assert_eq!(climb.due(t), TERM);
        climb.hurry(t);
        climb.hurry(t + S / 2);
        assert_eq!((climb.due(t + S), climb.due(t + 2 * S)), (TERM, KILL));
    }

    #[test]
    fn the_grace_begins_after_a_signal_that_takes_its_time() {
        let (mut climb, t) = climb(1, None);
        climb.begin(t);
        assert_eq!(climb.due(t), TERM);
        climb.postpone(3 * S);
        assert_eq!((climb.due(t + 12 * S), climb.due(t + 13 * S)), (None, KILL));
    }
}
