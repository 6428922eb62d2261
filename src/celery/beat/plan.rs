//! When each periodic task is due. Pure.

use std::time::{Duration, Instant};

use super::crontab::Crontab;
use crate::celery::moment::Moment;

/// The longest that is waited for a time of the calendar without a look at the clock, which somebody may have set.
const LOOK: Duration = Duration::from_secs(60);

/// When a periodic task is sent.
#[derive(Debug, Clone)]
pub enum Schedule {
    /// Each time that so much is over since the start, whatever the clock of the machine says.
    Every(Duration),
    /// At times of the calendar.
    Crontab(Box<Crontab>),
}

/// The time of two clocks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Now {
    pub steady: Instant,
    pub calendar: Moment,
}

/// What is due next of each entry, by its place.
#[derive(Debug)]
pub(super) struct Plan(Vec<Planned>);

#[derive(Debug)]
enum Planned {
    Every(Duration, Instant),
    /// `None` if no time comes any more.
    Crontab(Box<Crontab>, Option<Moment>),
}

impl Plan {
    /// Everything is due for the first time after `now`.
    pub(super) fn new(schedules: impl IntoIterator<Item = Schedule>, now: Now) -> Self {
        let planned = |schedule| match schedule {
            Schedule::Every(interval) => Planned::Every(interval, now.steady + interval),
            Schedule::Crontab(crontab) => {
                let next = crontab.after(now.calendar);
                Planned::Crontab(crontab, next)
            }
        };
        Self(schedules.into_iter().map(planned).collect())
    }

    /// Whether an entry is due. Times that have passed meanwhile, as while the machine slept, count as one.
    pub(super) fn take(&mut self, entry: usize, now: Now) -> bool {
        match &mut self.0[entry] {
            Planned::Every(interval, next) => {
                let due = *next <= now.steady;
                if due {
                    // In step with the start, without those that were missed.
                    let late = now.steady.saturating_duration_since(*next).as_nanos() % interval.as_nanos().max(1);
                    *next = now.steady + *interval - Duration::from_nanos(u64::try_from(late).unwrap_or(0));
                }
                due
            }
            Planned::Crontab(crontab, next) => {
                let due = next.is_some_and(|next| next <= now.calendar);
                // The clock may also have been set back.
                let ahead = crontab.after(now.calendar);
                if due || ahead < *next {
                    *next = ahead;
                }
                due
            }
        }
    }

    /// How long until an entry is due.
    pub(super) fn left(&self, entry: usize, now: Now) -> Duration {
        match &self.0[entry] {
            Planned::Every(_, next) => next.saturating_duration_since(now.steady),
            Planned::Crontab(_, next) => next.map_or(Duration::MAX, |next| next.since(now.calendar)),
        }
    }

    /// How long until one of them is due, or the clock is to be looked at, if there is any.
    pub(super) fn wait(&self, now: Now) -> Option<Duration> {
        let wait = |entry| match &self.0[entry] {
            Planned::Every(..) => self.left(entry, now),
            Planned::Crontab(..) => self.left(entry, now).min(LOOK),
        };
        (0..self.0.len()).map(wait).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn plan(schedule: Schedule) -> (Plan, impl Fn(f64) -> Now) {
        let (start, noon) = (Instant::now(), "2026-11-21T12:00:30Z".parse::<Moment>().unwrap());
        let after = move |seconds: f64| {
            let passed = Duration::from_secs_f64(seconds);
            Now { steady: start + passed, calendar: noon.plus(passed) }
        };
        (Plan::new([schedule], after(0.0)), after)
    }

    #[test]
    fn an_interval_keeps_its_step_and_what_was_missed_counts_as_one() {
        let (mut plan, after) = plan(Schedule::Every(10 * SECOND));
        assert!(!plan.take(0, after(0.0)) && plan.left(0, after(1.0)) == 9 * SECOND);
        assert!(plan.take(0, after(10.5)) && !plan.take(0, after(10.5)));
        assert_eq!(plan.left(0, after(11.0)), 9 * SECOND, "lateness does not add up");
        assert!(plan.take(0, after(57.0)) && !plan.take(0, after(57.0)));
        assert_eq!(plan.wait(after(57.0)), Some(3 * SECOND));
    }

    #[test]
    fn a_crontab_goes_by_the_clock_also_when_it_is_set() {
        let hourly = || Schedule::Crontab(Box::new(Crontab::parse("0 * * * *").unwrap()));
        let (mut plan, after) = plan(hourly());
        assert_eq!(plan.wait(after(0.0)), Some(LOOK), "the clock is looked at each minute");
        assert_eq!((plan.left(0, after(0.0)), plan.left(0, after(3560.0))), (3570 * SECOND, 10 * SECOND));
        assert!(!plan.take(0, after(3569.9)) && plan.take(0, after(3570.0)) && !plan.take(0, after(3570.0)));
        // The machine slept for two hours: once.
        assert!(plan.take(0, after(3.0 * 3600.0)) && !plan.take(0, after(3.0 * 3600.0)));
        // Somebody sets the clock back by a day.
        let early = Now { calendar: "2026-11-20T12:59:50Z".parse().unwrap(), ..after(3.0 * 3600.0 + 1.0) };
        assert!(!plan.take(0, early));
        assert_eq!(plan.wait(early), Some(10 * SECOND));
    }
}
