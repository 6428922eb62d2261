//! Whose turn it is when many miners are asked by few threads, and for how long. Pure: `now` is an argument.
//!
//! A miner that says nothing holds its thread. So that it does not take the time of those that wait for one, each
//! attempt has a share of what is left: that by the number of rounds in which all that have not been asked get their
//! turn. When nobody waits, that is all of it. Whoever was cut short by its share comes again, after the others; the
//! same holds for a second try after a failure that may pass, once its pause is over.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// The least share: a dial across the world with TLS takes less. With it, a thousand black holes in a row may leave no
/// time for the last, which are then not asked.
pub const LEAST_SHARE: Duration = Duration::from_millis(500);

/// What a thread does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// Ask this one.
    Ask {
        /// Its number.
        peer: usize,
        /// Until when.
        until: Instant,
        /// Whether that is less than all the time that there is.
        cut: bool,
    },
    /// Nobody has a turn before then. Then it asks once more.
    Wait(Instant),
    /// The thread is not needed any more: all have had their turn but for those that other threads see to, or the time
    /// is over.
    Over,
}

/// Peers that wait for their turn.
#[derive(Debug)]
pub struct Turns {
    threads: usize,
    deadline: Instant,
    /// Not asked yet.
    first: VecDeque<usize>,
    /// To be asked once more, each after its time.
    again: Vec<(Instant, usize)>,
    asking: usize,
    /// Threads that have not been told that it is over.
    left: usize,
}

impl Turns {
    /// All of `peers` wait; at most `threads` are asked at a time, until `deadline`.
    pub fn new(peers: usize, threads: usize, deadline: Instant) -> Self {
        let threads = threads.clamp(1, peers.max(1));
        Self { threads, deadline, first: (0..peers).collect(), again: Vec::new(), asking: 0, left: threads }
    }

    /// How many threads take turns: no more than there are peers.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// The next turn of a thread; [`Turns::ended`] follows each [`Turn::Ask`].
    pub fn next(&mut self, now: Instant) -> Turn {
        if now >= self.deadline {
            return self.over();
        }
        if let Some(peer) = self.first.pop_front() {
            return self.ask(peer, self.first.len() + 1, now);
        }
        if let Some(index) = self.again.iter().position(|(due, _)| *due <= now) {
            let (_, peer) = self.again.remove(index);
            return self.ask(peer, self.again.len() + 1, now);
        }
        // Whoever is asked now may be asked again; the thread that asks sees to that.
        let waiting = self.left.saturating_sub(self.asking);
        match self.again.iter().map(|(due, _)| *due).min() {
            Some(due) if waiting <= self.again.len() => Turn::Wait(due),
            _ => self.over(),
        }
    }

    fn over(&mut self) -> Turn {
        self.left = self.left.saturating_sub(1);
        Turn::Over
    }

    fn ask(&mut self, peer: usize, waiting: usize, now: Instant) -> Turn {
        self.asking += 1;
        let rounds = u32::try_from(waiting.div_ceil(self.threads)).unwrap_or(u32::MAX);
        let left = self.deadline.saturating_duration_since(now);
        let share = (left / rounds).max(LEAST_SHARE).min(left);
        Turn::Ask { peer, until: now + share, cut: share < left }
    }

    /// An attempt has ended; `again` says from when on its peer is to be asked once more.
    pub fn ended(&mut self, peer: usize, again: Option<Instant>) {
        self.asking -= 1;
        if let Some(due) = again.filter(|due| *due < self.deadline) {
            self.again.push((due, peer));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Asks all of `peers` in virtual time; `takes` says how long one would take, never if `None`, and the answer is
    /// when each was done. Fails if more are asked at a time than there are threads.
    fn simulate(peers: usize, threads: usize, time: Duration, takes: impl Fn(usize) -> Option<Duration>) -> Vec<f64> {
        let start = Instant::now();
        let (mut turns, mut now) = (Turns::new(peers, threads, start + time), start);
        let mut threads = turns.threads();
        let mut done = vec![f64::INFINITY; peers];
        // When it ends, who it is, whether it has answered.
        let mut running: Vec<(Instant, usize, bool)> = Vec::new();
        loop {
            let mut wake = None;
            while running.len() < threads {
                match turns.next(now) {
                    Turn::Ask { peer, until, .. } => {
                        let end = takes(peer).map(|took| now + took).filter(|end| *end <= until);
                        running.push((end.unwrap_or(until), peer, end.is_some()));
                    }
                    Turn::Wait(until) => {
                        wake = Some(until);
                        break;
                    }
                    Turn::Over => threads -= 1,
                }
            }
            let Some(next) = running.iter().map(|(end, ..)| *end).chain(wake).min() else { return done };
            now = next;
            let (ended, rest) = running.into_iter().partition(|(end, ..)| *end <= now);
            running = rest;
            for (end, peer, answered) in ended as Vec<(Instant, usize, bool)> {
                if answered {
                    done[peer] = (end - start).as_secs_f64();
                }
                turns.ended(peer, (!answered).then_some(now));
            }
            assert!(now <= start + time, "it goes on after the deadline");
        }
    }

    #[test]
    fn more_black_holes_than_threads_cost_nobody_the_deadline() {
        // The first 200 of 256 say nothing; all others answer in 50 ms.
        let quick = Some(SECOND / 20);
        let done = simulate(256, 64, 30 * SECOND, |peer| if peer < 200 { None } else { quick });
        assert!(done[..200].iter().all(|at| at.is_infinite()));
        assert!(done[200..].iter().all(|at| *at < 24.0), "{:?}", &done[200..]);
        // With a tenth of them, nobody notices.
        let done = simulate(256, 64, 30 * SECOND, |peer| if peer % 10 == 0 { None } else { quick });
        let slowest = done.iter().copied().filter(|at| at.is_finite()).fold(0.0, f64::max);
        assert!(slowest < 0.5, "{slowest}");
    }

    #[test]
    fn a_slow_one_that_was_cut_short_has_all_the_time_later() {
        // Its first share is 30 s / 4.
        let slow = Some(10 * SECOND);
        let done = simulate(256, 64, 30 * SECOND, |peer| if peer == 0 { slow } else { Some(SECOND / 20) });
        assert!((17.4..17.6).contains(&done[0]), "{}", done[0]);
    }

    #[test]
    fn a_thousand_get_a_turn_each() {
        let done = simulate(1000, 64, 30 * SECOND, |peer| if peer < 900 { None } else { Some(SECOND) });
        assert!(done[900..].iter().all(|at| at.is_finite()), "{:?}", &done[900..]);
    }

    #[test]
    fn shares_are_never_less_than_the_least_nor_more_than_what_is_left() {
        let now = Instant::now();
        let mut turns = Turns::new(100, 1, now + SECOND);
        assert_eq!(turns.next(now), Turn::Ask { peer: 0, until: now + LEAST_SHARE, cut: true });
        let late = now + SECOND - LEAST_SHARE / 2;
        assert_eq!(turns.next(late), Turn::Ask { peer: 1, until: now + SECOND, cut: false });
        assert_eq!(turns.next(now + SECOND), Turn::Over);
    }

    #[test]
    fn a_second_try_waits_for_its_time_and_for_those_that_had_none() {
        let now = Instant::now();
        let mut turns = Turns::new(2, 1, now + 10 * SECOND);
        assert_eq!(turns.next(now), Turn::Ask { peer: 0, until: now + 5 * SECOND, cut: true });
        turns.ended(0, Some(now + SECOND));
        assert_eq!(turns.next(now), Turn::Ask { peer: 1, until: now + 10 * SECOND, cut: false });
        assert_eq!(turns.next(now), Turn::Wait(now + SECOND), "for its time");
        assert!(matches!(turns.next(now + SECOND), Turn::Ask { peer: 0, cut: false, .. }));
        turns.ended(0, Some(now + 11 * SECOND));
        assert_eq!(turns.next(now + SECOND), Turn::Over, "its time comes too late");
    }
}
