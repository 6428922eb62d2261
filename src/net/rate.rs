//! How often somebody may do something: a token bucket for each. Pure: no thread, no lock, no clock.
//!
//! A bucket is one moment, that at which it is full again. One that is full is as good as none and is forgotten, so the
//! table holds only those who did something within the last period.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

/// Buckets at a time, some 60 bytes each. Those who come when there are as many share one.
const BUCKETS: usize = 8192;

/// At how many buckets the full ones are looked for first.
const FIRST_LOOK: usize = 64;

/// So many at once, and over time so many in each period.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// How many; 0 counts as 1.
    pub count: u32,
    /// In which time they come back, one by one.
    pub period: Duration,
}

impl Rate {
    /// A rate.
    pub const fn new(count: u32, period: Duration) -> Self {
        Self { count, period }
    }

    /// In which time one comes back.
    fn each(self) -> Duration {
        self.period / self.count.max(1)
    }
}

/// The buckets of all who do one thing.
#[derive(Debug)]
pub struct Buckets<K> {
    rate: Rate,
    full_at: HashMap<K, Instant>,
    /// Of those who have none of their own.
    others: Option<Instant>,
    look_at: usize,
}

impl<K: Eq + Hash> Buckets<K> {
    /// Full buckets.
    pub fn new(rate: Rate) -> Self {
        Self { rate, full_at: HashMap::new(), others: None, look_at: FIRST_LOOK }
    }

    /// How often each may.
    pub fn rate(&self) -> Rate {
        self.rate
    }

    /// Whether `who` may do it `now`; if so, it counts.
    pub fn take(&mut self, who: K, now: Instant) -> bool {
        if self.full_at.len() >= self.look_at {
            self.full_at.retain(|_, full_at| *full_at > now);
            self.look_at = (2 * self.full_at.len()).clamp(FIRST_LOOK, BUCKETS);
        }
        let is_full = self.full_at.len() >= BUCKETS;
        let full_at = match self.full_at.get_mut(&who) {
            Some(full_at) => full_at,
            None if is_full => self.others.get_or_insert(now),
            None => self.full_at.entry(who).or_insert(now),
        };
        let then = (*full_at).max(now) + self.rate.each();
        let may = then <= now + self.rate.period;
        if may {
            *full_at = then;
        }
        may
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn so_many_at_once_and_then_one_for_each_part_of_the_period() {
        let mut buckets = Buckets::new(Rate::new(4, SECOND));
        let start = Instant::now();
        let mut taken = |who, millis, of| {
            let at = start + Duration::from_millis(millis);
            (0..of).filter(|_| buckets.take(who, at)).count()
        };
        assert_eq!(taken("a", 0, 10), 4);
        assert_eq!(taken("b", 0, 1), 1, "each has a bucket of its own");
        assert_eq!(taken("a", 249, 10), 0);
        assert_eq!(taken("a", 250, 10), 1, "what was refused costs nothing");
        assert_eq!(taken("a", 800, 10), 2);
        assert_eq!(taken("a", 60_000, 10), 4, "no more come together than at the start");
        let mut none = Buckets::new(Rate::new(0, SECOND));
        assert_eq!([none.take(1, start), none.take(1, start)], [true, false]);
    }

    #[test]
    fn over_any_time_no_more_than_the_rate_and_its_burst() {
        let seed = crate::base::rng::Rng::from_entropy().next_u64();
        println!("seed {seed}");
        let mut rng = crate::base::rng::Rng::new(seed);
        let rate = Rate::new(7, SECOND);
        let (mut buckets, mut now) = (Buckets::new(rate), Instant::now());
        let mut taken: Vec<Instant> = Vec::new();
        for _ in 0..5000 {
            now += Duration::from_millis(rng.next_u64() % 200);
            if buckets.take((), now) {
                taken.push(now);
            }
        }
        for (at, first) in taken.iter().enumerate() {
            let in_a_period = taken[at..].iter().take_while(|then| **then < *first + rate.period).count();
            assert!(in_a_period <= 14, "{in_a_period} within a period");
        }
        let sustained = taken.len() as f64 / (now - taken[0]).as_secs_f64();
        assert!((6.5..7.5).contains(&sustained), "{sustained} a second");
    }

    #[test]
    fn the_table_is_bounded_and_those_whose_bucket_is_full_are_forgotten() {
        let mut buckets = Buckets::new(Rate::new(2, SECOND));
        let start = Instant::now();
        for who in 0..BUCKETS {
            assert!(buckets.take(who, start));
        }
        // There is no room for more, who share one bucket; those who have one keep it.
        let late =
            |buckets: &mut Buckets<usize>| (BUCKETS..BUCKETS + 5).filter(|who| buckets.take(*who, start)).count();
        assert_eq!(late(&mut buckets), 2);
        assert!(buckets.take(0, start) && !buckets.take(0, start));
        assert_eq!(buckets.full_at.len(), BUCKETS);
        assert!(buckets.take(BUCKETS, start + SECOND));
        assert_eq!(buckets.full_at.len(), 1);
    }
}
