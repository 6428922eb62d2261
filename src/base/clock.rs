//! Time as an argument: policies take `now`, and the thread around them asks a [`Clock`].
//!
//! Whoever waits for a moment of a manual clock says so ([`Clock::plan`], [`Clock::at`]), so that a test can go from
//! one planned moment to the next: `base::simulate` does it, and says what the clock reaches.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crossbeam_channel::{Receiver, Sender, bounded, never, select};

use super::lock::lock;
use super::now::Now;
use super::shutdown::{Level, Shutdown};

/// The present moment on both of the system's clocks.
pub fn now() -> Now {
    Now { mono: Instant::now(), wall: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default() }
}

/// Where a thread gets its `now` from: the system, or a test's hand.
#[derive(Debug, Clone, Default)]
pub struct Clock(Option<Arc<Manual>>);

struct Manual {
    began: Now,
    now: Mutex<Instant>,
    /// Each returns whether it still wants to be notified.
    listeners: Mutex<Vec<Listener>>,
    /// What somebody waits for, and whom to tell; whoever has a listener is not told here.
    planned: Mutex<BTreeMap<PlanKey, Option<Sender<Instant>>>>,
    next_plan: AtomicU64,
}

type Listener = Box<dyn Fn() -> bool + Send>;

/// A moment, and a number of its own.
type PlanKey = (Instant, u64);

impl fmt::Debug for Manual {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Manual").field(&*lock(&self.now)).finish()
    }
}

/// A moment that somebody waits for, until this is dropped.
#[derive(Debug)]
#[must_use = "the moment is planned only while this lives"]
pub struct Planned(Option<(Arc<Manual>, PlanKey)>);

impl Drop for Planned {
    fn drop(&mut self) {
        if let Some((manual, key)) = &self.0 {
            lock(&manual.planned).remove(key);
        }
    }
}

/// A moment as an arm of `select!`.
#[derive(Debug)]
pub struct Moment {
    due: Receiver<Instant>,
    _planned: Planned,
}

impl Moment {
    /// Receives when the moment has come.
    pub fn receiver(&self) -> &Receiver<Instant> {
        &self.due
    }
}

impl Clock {
    /// The monotonic clock of the system.
    pub fn system() -> Self {
        Self(None)
    }

    /// A clock that stands still until [`Clock::advance`]; clones share it.
    pub fn manual() -> Self {
        let began = now();
        Self(Some(Arc::new(Manual {
            began,
            now: Mutex::new(began.mono),
            listeners: Mutex::default(),
            planned: Mutex::default(),
            next_plan: AtomicU64::new(0),
        })))
    }

    /// The present moment of this clock.
    pub fn now(&self) -> Instant {
        match &self.0 {
            None => Instant::now(),
            Some(manual) => *lock(&manual.now),
        }
    }

    /// The present moment of this clock, and of the wall clock; with a manual clock, the wall clock stands and moves
    /// with it.
    pub fn now_and_wall(&self) -> Now {
        match &self.0 {
            None => now(),
            Some(manual) => manual.began + self.now().saturating_duration_since(manual.began.mono),
        }
    }

    /// Whether time passes only by [`Clock::advance`]; a thread that waits for a moment of such a clock waits for
    /// [`Clock::on_advance`], and has the moment planned.
    pub fn is_manual(&self) -> bool {
        self.0.is_some()
    }

    /// Moves a manual clock forward, and tells its listeners and those who wait for a moment up to then.
    ///
    /// # Panics
    /// On the system's clock, which nobody can move.
    pub fn advance(&self, by: Duration) {
        let manual = self.0.as_ref().expect("only a manual clock can be advanced");
        {
            // Both locks, so that nobody plans a moment between the look at the clock and the plan, and is not told.
            let mut planned = lock(&manual.planned);
            let mut now = lock(&manual.now);
            *now += by;
            let due = planned.iter_mut().take_while(|((at, _), _)| *at <= *now);
            for to in due.filter_map(|(_, to)| to.take()) {
                // Who does not wait any more need not know; each is told once, so there is room.
                let _told = to.try_send(*now);
            }
        }
        lock(&manual.listeners).retain(|listener| listener());
    }

    /// Has `listener` called after each [`Clock::advance`] until it says false; nothing on the system's clock. It must
    /// not block, nor advance the clock.
    pub fn on_advance(&self, listener: impl Fn() -> bool + Send + 'static) {
        if let Some(manual) = &self.0 {
            lock(&manual.listeners).push(Box::new(listener));
        }
    }

    /// Says that somebody waits for `at`, whom a listener wakes; nothing on the system's clock.
    pub fn plan(&self, at: Instant) -> Planned {
        self.planned(at, None)
    }

    fn planned(&self, at: Instant, to: Option<Sender<Instant>>) -> Planned {
        Planned(self.0.as_ref().map(|manual| {
            let key = (at, manual.next_plan.fetch_add(1, Ordering::Relaxed));
            let mut planned = lock(&manual.planned);
            match to {
                Some(to) if at <= *lock(&manual.now) => {
                    // Its own, and empty.
                    let _told = to.try_send(at);
                    planned.insert(key, None);
                }
                to => drop(planned.insert(key, to)),
            }
            (manual.clone(), key)
        }))
    }

    /// The moment `at`, to wait for in a `select!`.
    pub fn at(&self, at: Instant) -> Moment {
        match &self.0 {
            None => Moment { due: crossbeam_channel::at(at), _planned: Planned(None) },
            Some(_) => {
                let (tell, due) = bounded(1);
                Moment { due, _planned: self.planned(at, Some(tell)) }
            }
        }
    }

    /// Sleeps for `duration` of this clock, or until the level of `shutdown` is at least `level`; says whether it is.
    pub fn wait(&self, shutdown: &Shutdown, level: Level, duration: Duration) -> bool {
        if !self.is_manual() {
            return shutdown.wait_for(level, duration);
        }
        // What is too far away for a moment never comes.
        let (moment, never) = (self.now().checked_add(duration).map(|at| self.at(at)), never());
        let stop = if level >= Level::Cancel { shutdown.cancel_receiver() } else { shutdown.drain_receiver() };
        select! {
            recv(stop) -> _ => {}
            recv(moment.as_ref().map_or(&never, Moment::receiver)) -> _ => {}
        }
        shutdown.level() >= level
    }

    /// The earliest moment after now that somebody waits for; nothing on the system's clock.
    pub fn next_planned(&self) -> Option<Instant> {
        let manual = self.0.as_ref()?;
        let planned = lock(&manual.planned);
        let now = *lock(&manual.now);
        planned.keys().map(|(at, _)| *at).find(|at| *at > now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manual_clock_moves_only_by_hand_and_is_shared() {
        let clock = Clock::manual();
        let twin = clock.clone();
        let start = clock.now();
        assert_eq!(twin.now(), start);
        let wall = clock.now_and_wall().wall;
        twin.advance(Duration::from_secs(60));
        assert_eq!(clock.now() - start, Duration::from_secs(60));
        let moment = clock.now_and_wall();
        assert_eq!((moment.mono, moment.wall - wall), (clock.now(), Duration::from_secs(60)));
    }

    #[test]
    fn who_waits_for_a_moment_is_told_once_it_has_come() {
        let (clock, hour) = (Clock::manual(), Duration::from_secs(3600));
        let start = clock.now();
        let (first, second) = (clock.at(start + hour), clock.at(start + 2 * hour));
        let planned = clock.plan(start + hour / 2);
        assert_eq!(clock.next_planned(), Some(start + hour / 2));
        drop(planned);
        assert_eq!(clock.next_planned(), Some(start + hour));
        assert!(first.receiver().try_recv().is_err());
        clock.advance(hour);
        assert_eq!(first.receiver().try_recv(), Ok(start + hour));
        assert!(second.receiver().try_recv().is_err());
        assert_eq!(clock.next_planned(), Some(start + 2 * hour));
        drop(second);
        assert_eq!(clock.next_planned(), None);
        // A moment that is past has come.
        assert_eq!(clock.at(start).receiver().try_recv(), Ok(start));
    }

    #[test]
    fn a_stop_ends_a_wait_on_a_manual_clock() {
        let (clock, shutdown) = (Clock::manual(), Shutdown::new());
        shutdown.drain();
        assert!(clock.wait(&shutdown, Level::Drain, Duration::from_secs(3600)));
        assert!(clock.wait(&shutdown, Level::Drain, Duration::MAX), "what never comes is no panic");
        assert!(!clock.wait(&shutdown, Level::Cancel, Duration::ZERO));
    }
}
