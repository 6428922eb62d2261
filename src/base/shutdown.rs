//! The one signal that every wait of the process listens to.
//!
//! It latches (once set it stays set), has two levels, and reaches a thread in three ways: as a flag
//! ([`Shutdown::is_set`]), as a bounded wait ([`Shutdown::wait`]) or an arm of `select!`
//! ([`Shutdown::drain_receiver`]), and as a *kick* that interrupts a call which no channel can reach
//! ([`Shutdown::on`]).

use std::fmt;
use std::time::{Duration, Instant};

use super::lock::{lock, wait_timeout};
use super::sync::{Arc, AtomicU8, Condvar, Mutex, Ordering, Receiver, Sender, Weak, bounded};
use super::waits::waiting_unless_noted;

/// How urgently to stop. Levels only rise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Level {
    /// Not stopping.
    Run = 0,
    /// Take no new work; finish and report what runs.
    Drain = 1,
    /// End what runs now.
    Cancel = 2,
}

/// Nothing is ever sent on the receivers of a [`Shutdown`]; they only disconnect.
pub enum Never {}

type KickFn = Arc<dyn Fn() + Send + Sync>;

/// A latching stop signal; clones are the same signal.
#[derive(Clone)]
pub struct Shutdown(Arc<Signal>);

struct Signal {
    level: AtomicU8,
    state: Mutex<SignalState>,
    changed: Condvar,
    drain: Receiver<Never>,
    cancel: Receiver<Never>,
}

struct SignalState {
    /// Dropped when the level is reached, which disconnects every receiver, also those cloned later.
    drain: Option<Sender<Never>>,
    cancel: Option<Sender<Never>>,
    kicks: Vec<(u64, Level, KickFn)>,
    next_kick: u64,
    children: Vec<Weak<Signal>>,
}

impl Default for Shutdown {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Shutdown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Shutdown").field(&self.level()).finish()
    }
}

impl Shutdown {
    /// A signal at [`Level::Run`].
    pub fn new() -> Self {
        let (drain_tx, drain) = bounded(0);
        let (cancel_tx, cancel) = bounded(0);
        let state = SignalState {
            drain: Some(drain_tx),
            cancel: Some(cancel_tx),
            kicks: Vec::new(),
            next_kick: 0,
            children: Vec::new(),
        };
        Self(Arc::new(Signal {
            level: AtomicU8::new(Level::Run as u8),
            state: Mutex::new(state),
            changed: Condvar::new(),
            drain,
            cancel,
        }))
    }

    /// A signal that rises with this one and can also be raised alone, as one job's.
    pub fn child(&self) -> Self {
        let child = Self::new();
        {
            let mut state = lock(&self.0.state);
            state.children.retain(|c| c.strong_count() > 0);
            state.children.push(Arc::downgrade(&child.0));
        }
        child.raise(self.level());
        child
    }

    /// Raises the level; lower or equal requests change nothing. Runs the kicks of the level on the caller's thread.
    pub fn raise(&self, to: Level) {
        let (kicks, children) = {
            let mut state = lock(&self.0.state);
            if to <= self.level() {
                return;
            }
            self.0.level.store(to as u8, Ordering::Release);
            state.drain = None;
            if to == Level::Cancel {
                state.cancel = None;
            }
            let kicks: Vec<KickFn> =
                state.kicks.iter().filter(|(_, at, _)| *at <= to).map(|(_, _, kick)| kick.clone()).collect();
            state.kicks.retain(|(_, at, _)| *at > to);
            let children: Vec<_> = state.children.iter().filter_map(Weak::upgrade).collect();
            (kicks, children)
        };
        self.0.changed.notify_all();
        // Outside the lock, because a kick may take locks of its own.
        for kick in kicks {
            kick();
        }
        for child in children {
            Shutdown(child).raise(to);
        }
    }

    /// Shorthand for `raise(Level::Drain)`.
    pub fn drain(&self) {
        self.raise(Level::Drain);
    }

    /// Shorthand for `raise(Level::Cancel)`.
    pub fn cancel(&self) {
        self.raise(Level::Cancel);
    }

    /// The present level.
    pub fn level(&self) -> Level {
        match self.0.level.load(Ordering::Acquire) {
            0 => Level::Run,
            1 => Level::Drain,
            _ => Level::Cancel,
        }
    }

    /// Whether any stop was asked for.
    pub fn is_set(&self) -> bool {
        self.level() >= Level::Drain
    }

    /// Whether work is to end now.
    pub fn is_cancelled(&self) -> bool {
        self.level() == Level::Cancel
    }

    /// Sleeps for `duration`, or until a stop of any level; says whether a stop was asked for.
    pub fn wait(&self, duration: Duration) -> bool {
        self.wait_for(Level::Drain, duration)
    }

    /// Sleeps for `duration`, or until the level is at least `level`; says whether it is.
    pub fn wait_for(&self, level: Level, duration: Duration) -> bool {
        let deadline = Instant::now().checked_add(duration);
        let mut state = lock(&self.0.state);
        while self.level() < level {
            let left = match deadline {
                Some(deadline) => deadline.saturating_duration_since(Instant::now()),
                None => Duration::MAX,
            };
            if left.is_zero() {
                return false;
            }
            let _waiting = waiting_unless_noted("time to pass, or a stop", deadline);
            state = wait_timeout(&self.0.changed, state, left);
        }
        true
    }

    /// Disconnects at [`Level::Drain`]; for an arm of `select!`.
    pub fn drain_receiver(&self) -> &Receiver<Never> {
        &self.0.drain
    }

    /// Disconnects at [`Level::Cancel`]; for an arm of `select!`.
    pub fn cancel_receiver(&self) -> &Receiver<Never> {
        &self.0.cancel
    }

    /// Runs `kick` once when the level reaches `level` (at once if it already has), unless the registration was dropped
    /// before. `kick` must be quick and must not block: it runs on the thread that raises the level.
    ///
    /// Dropping the registration does not wait for a kick that is already running, so a kick must tolerate that its
    /// target has gone.
    pub fn on(&self, level: Level, kick: impl Fn() + Send + Sync + 'static) -> KickRegistration {
        let kick: KickFn = Arc::new(kick);
        let id = {
            let mut state = lock(&self.0.state);
            if self.level() < level {
                let id = state.next_kick;
                state.next_kick += 1;
                state.kicks.push((id, level, kick.clone()));
                Some(id)
            } else {
                None
            }
        };
        if id.is_none() {
            kick();
        }
        KickRegistration { shutdown: Arc::downgrade(&self.0), id }
    }
}

/// Keeps a kick registered; dropping it takes the kick back.
#[must_use = "dropping the registration takes the kick back"]
pub struct KickRegistration {
    shutdown: Weak<Signal>,
    id: Option<u64>,
}

impl fmt::Debug for KickRegistration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KickRegistration").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Drop for KickRegistration {
    fn drop(&mut self) {
        if let (Some(id), Some(inner)) = (self.id, self.shutdown.upgrade()) {
            lock(&inner.state).kicks.retain(|(other, _, _)| *other != id);
        }
    }
}
