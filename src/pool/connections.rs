//! The connections of a pool behind one lock, and the leases that callers have of them.
//!
//! Callers block in: a condition variable, until they have a grant, their deadline, or their shutdown signal, whose
//! kick notifies it; then in the connector's `connect` and `validate`. Nothing of the connector runs under the lock.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::panic::{AssertUnwindSafe, Location, catch_unwind};
use std::time::Instant;

use super::config::{LastConnectError, PoolConfig, PoolNumbers};
use super::connector::Connector;
use super::error::{AcquireError, LeaseInfo};
use super::policy::{Grant, Kept, Opened, Policy};
use super::until::Until;
use crate::base::drained::Drained;
use crate::base::lock::{lock, wait_timeout};
use crate::base::rng::Rng;
use crate::base::shutdown::Shutdown;
use crate::base::sync::{Arc, Condvar, Mutex, MutexGuard, Receiver};
use crate::base::thread::{self, panic_message};
use crate::base::waits::waiting_unless_noted;

type Key<C> = <C as Connector>::Key;
type Connection<C> = <C as Connector>::Connection;
type Error<C> = <C as Connector>::Error;

/// Where connections are had; clones are the same pool. It gives none any more once its [`Pool`](super::Pool) stops.
pub struct Connections<C: Connector>(pub(super) Arc<PoolShared<C>>);

pub(super) struct PoolShared<C: Connector> {
    pub(super) connector: C,
    pub(super) config: PoolConfig,
    pub(super) state: Mutex<PoolState<C>>,
    /// For those who wait for a connection.
    granted: Condvar,
    /// For the keeper: something is due earlier than it knows.
    pub(super) due: Condvar,
    /// Ends what the keeper does.
    pub(super) stopping: Shutdown,
}

pub(super) struct PoolState<C: Connector> {
    pub(super) policy: Policy<Key<C>, Connection<C>, Error<C>>,
    leases: BTreeMap<u64, LeaseEntry<Key<C>>>,
    next_lease: u64,
    /// Until when the keeper sleeps; `None` if it sleeps for ever.
    pub(super) sleeps_until: Option<Instant>,
    drained: Drained,
}

struct LeaseEntry<K> {
    info: LeaseInfo<K>,
    reported: bool,
}

impl<C: Connector> Clone for Connections<C> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<C: Connector> fmt::Debug for Connections<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Connections({})", self.numbers())
    }
}

impl<C: Connector> Connections<C> {
    pub(super) fn new(config: PoolConfig, connector: C) -> Self {
        let state = PoolState {
            policy: Policy::new(config, Rng::from_entropy()),
            leases: BTreeMap::new(),
            next_lease: 0,
            sleeps_until: None,
            drained: Drained::default(),
        };
        let (granted, due) = (Condvar::new(), Condvar::new());
        let stopping = Shutdown::new();
        Self(Arc::new(PoolShared { connector, config, state: Mutex::new(state), granted, due, stopping }))
    }

    /// Leases a connection of `key`: the newest idle one, validated if it was idle for long, or a new one.
    ///
    /// Blocks until there is one or room to make one, in the order of coming, and while one is made or validated; at
    /// most until the deadline or the signal, as far as the connector keeps to them.
    ///
    /// # Errors
    /// See [`AcquireError`].
    #[track_caller]
    pub fn acquire(&self, key: &Key<C>, until: Until<'_>) -> Result<Lease<C>, AcquireError<Error<C>>> {
        let at = Location::caller();
        let grant = self.granted(key, until)?;
        // Gives the place back, whatever way this ends.
        let opening = Opening { pool: self, key, is_open: true };
        let opened = match grant {
            Grant::Use { kept, validate } => self.again(kept, validate, until),
            Grant::Connect { first_close } => {
                first_close.into_iter().for_each(|connection| self.close(connection));
                None
            }
        };
        match opened.map_or_else(|| self.connected(key, until), Ok) {
            Ok(opened) => Ok(opening.lease(opened, at)),
            Err(error) => {
                drop(opening);
                let state = lock(&self.0.state);
                let numbers = Box::new(state.policy.numbers());
                Err(match () {
                    () if state.policy.is_stopped() => AcquireError::PoolStopped,
                    () if until.is_stopped() => AcquireError::Stopped { numbers },
                    () => AcquireError::ConnectFailed { error, numbers },
                })
            }
        }
    }

    /// Waits for a grant.
    fn granted(&self, key: &Key<C>, until: Until<'_>) -> Result<Grant<Connection<C>>, AcquireError<Error<C>>> {
        let shared = &self.0;
        let mut state = lock(&shared.state);
        let numbers = |state: &PoolState<C>| Box::new(state.policy.numbers());
        if state.policy.is_stopped() {
            return Err(AcquireError::PoolStopped);
        }
        if until.is_stopped() {
            return Err(AcquireError::Stopped { numbers: numbers(&state) });
        }
        let now = Instant::now();
        let Some(ticket) = state.policy.join(key) else {
            return Err(AcquireError::Full { numbers: numbers(&state), last_error: state.policy.last_error(key, now) });
        };
        self.assign(&mut state, now);
        if let Some(grant) = state.policy.take_grant(ticket) {
            self.let_go(state);
            return Ok(grant);
        }
        self.let_go(state);

        // Outside the lock, because a signal that is at its level already kicks at once.
        let kicked = shared.clone();
        let _kick = until.shutdown.on(until.level, move || {
            // With the lock, so that nobody is between the look at the signal and the wait.
            drop(lock(&kicked.state));
            kicked.granted.notify_all();
        });
        let _waiting = waiting_unless_noted("a connection of a pool", Some(until.deadline));
        let mut state = lock(&shared.state);
        loop {
            let (left, now) = (until.left(), Instant::now());
            let is_over = state.policy.is_stopped() || until.is_stopped() || left.is_zero();
            match state.policy.take_grant(ticket) {
                Some(grant) if !is_over => return Ok(grant),
                Some(grant) => state.policy.undo(key, grant, now),
                None if is_over => state.policy.leave(ticket),
                None => {
                    state = wait_timeout(&shared.granted, state, left);
                    continue;
                }
            }
            let error = match () {
                () if state.policy.is_stopped() => AcquireError::PoolStopped,
                () if until.is_stopped() => AcquireError::Stopped { numbers: numbers(&state) },
                () => {
                    AcquireError::TimedOut { numbers: numbers(&state), last_error: state.policy.last_error(key, now) }
                }
            };
            // What it does not take may be another's.
            self.assign(&mut state, now);
            self.let_go(state);
            return Err(error);
        }
    }

    /// The idle connection, if it is still good.
    fn again(&self, mut kept: Kept<Connection<C>>, validate: bool, until: Until<'_>) -> Option<Opened<Connection<C>>> {
        if self.is_good(&mut kept, validate, until) {
            return Some(Opened::Again(kept));
        }
        lock(&self.0.state).policy.invalid();
        self.close(kept.connection);
        None
    }

    /// Closes a connection. A panic of the connector is logged: it is not the trouble of whoever happens to do this.
    fn close(&self, connection: Connection<C>) {
        if let Err(payload) = catch_unwind(AssertUnwindSafe(|| self.0.connector.close(connection))) {
            log::error!("the connector of a pool panicked while it closed: {}", panic_message(payload.as_ref()));
        }
    }

    /// Whether the connector says so, or panics when it is asked.
    fn is_broken(&self, kept: &mut Kept<Connection<C>>) -> bool {
        let asked = catch_unwind(AssertUnwindSafe(|| self.0.connector.is_broken(&mut kept.connection)));
        asked.unwrap_or_else(|payload| {
            log::error!("the connector of a pool panicked at a connection: {}", panic_message(payload.as_ref()));
            true
        })
    }

    pub(super) fn is_good(&self, kept: &mut Kept<Connection<C>>, validate: bool, until: Until<'_>) -> bool {
        if self.is_broken(kept) {
            return false;
        }
        if !validate {
            return true;
        }
        let until = until.or_by(Instant::now() + self.0.config.validate_time);
        match self.0.connector.validate(&mut kept.connection, until) {
            // What came too late may be the answer to something else.
            Ok(()) => !until.left().is_zero(),
            Err(error) => {
                log::debug!("an idle connection is no good: {error}");
                false
            }
        }
    }

    fn connected(&self, key: &Key<C>, until: Until<'_>) -> Result<Opened<Connection<C>>, Error<C>> {
        let until = until.or_by(Instant::now() + self.0.config.connect_time);
        self.0.connector.connect(key, until).map(Opened::New).inspect_err(|error| {
            lock(&self.0.state).policy.connect_failed(key, error.clone(), Instant::now());
        })
    }

    /// Gives out what can be given, and wakes those who got something.
    fn assign(&self, state: &mut PoolState<C>, now: Instant) {
        if state.policy.assign(now) {
            self.0.granted.notify_all();
        }
        if state.policy.is_stopped() && state.policy.is_drained() {
            state.drained.notify();
        }
    }

    /// Lets go of the lock, has the keeper know what is due, and closes what is to be closed.
    pub(super) fn let_go<'a>(&'a self, mut state: MutexGuard<'a, PoolState<C>>) {
        let due = state.policy.next_due();
        self.wake_by(&mut state, due);
        while state.policy.has_to_close() {
            let next = || state.policy.next_to_close();
            let closing: Vec<_> = std::iter::from_fn(next).map(|(key, it)| (Closing { pool: self, key }, it)).collect();
            drop(state);
            // Each place is free once its connection is closed.
            for (place, connection) in closing {
                self.close(connection);
                drop(place);
            }
            state = lock(&self.0.state);
        }
    }

    /// How things are now.
    pub fn numbers(&self) -> PoolNumbers {
        lock(&self.0.state).policy.numbers()
    }

    /// The last failure to connect to `key`, of those that are kept.
    pub fn last_error(&self, key: &Key<C>) -> Option<LastConnectError<Error<C>>> {
        lock(&self.0.state).policy.last_error(key, Instant::now())
    }

    /// Who has connections, the oldest lease first.
    pub fn leases(&self) -> Vec<LeaseInfo<Key<C>>> {
        lock(&self.0.state).leases.values().map(|entry| entry.info.clone()).collect()
    }

    /// Ends what the keeper does.
    pub(super) fn stop_keeper(&self) {
        self.0.stopping.cancel();
        // With the lock, so that the keeper is not between its look at the signal and its wait.
        drop(lock(&self.0.state));
        self.0.due.notify_all();
    }

    /// Gives nothing out any more, and closes what is idle. Those who wait are told.
    pub(super) fn stop(&self) {
        let mut state = lock(&self.0.state);
        state.policy.stop();
        self.assign(&mut state, Instant::now());
        self.0.granted.notify_all();
        self.let_go(state);
    }

    /// Disconnects when nobody has a connection of the stopped pool any more.
    pub(super) fn drained(&self) -> Receiver<()> {
        let mut state = lock(&self.0.state);
        let empty = state.policy.is_drained();
        state.drained.watch(empty)
    }

    /// Leases that are too old, each once, and when the next one will be.
    pub(super) fn leaks(&self, state: &mut PoolState<C>, now: Instant) -> (Vec<LeaseInfo<Key<C>>>, Option<Instant>) {
        let after = self.0.config.leak_after;
        let mut leaks = Vec::new();
        for entry in state.leases.values_mut().filter(|entry| !entry.reported) {
            if now.saturating_duration_since(entry.info.since) < after {
                // The oldest comes first.
                return (leaks, entry.info.since.checked_add(after));
            }
            entry.reported = true;
            state.policy.leaked();
            leaks.push(entry.info.clone());
        }
        (leaks, None)
    }

    /// A look of the keeper at an idle connection has ended.
    pub(super) fn kept_alive(&self, key: &Key<C>, kept: Kept<Connection<C>>, good: bool) {
        let mut state = lock(&self.0.state);
        let now = Instant::now();
        state.policy.kept_alive(key, kept, good, now);
        self.assign(&mut state, now);
        self.let_go(state);
    }

    /// The keeper sleeps no longer than until then.
    fn wake_by(&self, state: &mut PoolState<C>, due: Option<Instant>) {
        if due.is_some_and(|due| state.sleeps_until.is_none_or(|until| due < until)) {
            state.sleeps_until = due;
            self.0.due.notify_all();
        }
    }

    fn put_back(&self, key: &Key<C>, id: u64, back: Back<Connection<C>>) {
        let mut state = lock(&self.0.state);
        let now = Instant::now();
        let reported = state.leases.remove(&id).filter(|entry| entry.reported);
        match back {
            Back::Kept { kept, good } => state.policy.put_back(key, kept, good, now),
            Back::TakenOut => state.policy.taken_out(key),
        }
        self.assign(&mut state, now);
        self.let_go(state);
        if let Some(entry) = reported {
            log::info!("came back: {}", entry.info.line(now));
        }
    }
}

enum Back<C> {
    Kept { kept: Kept<C>, good: bool },
    TakenOut,
}

/// The place of a connection that is being closed.
struct Closing<'a, C: Connector> {
    pool: &'a Connections<C>,
    key: Key<C>,
}

impl<C: Connector> Drop for Closing<'_, C> {
    fn drop(&mut self) {
        let mut state = lock(&self.pool.0.state);
        state.policy.closed(&self.key);
        self.pool.assign(&mut state, Instant::now());
    }
}

/// A place in which a connection is made or validated; dropping it frees the place, also in a panic of the connector.
struct Opening<'a, C: Connector> {
    pool: &'a Connections<C>,
    key: &'a Key<C>,
    is_open: bool,
}

impl<C: Connector> Opening<'_, C> {
    fn lease(mut self, opened: Opened<Connection<C>>, at: &'static Location<'static>) -> Lease<C> {
        self.is_open = false;
        let (pool, key, thread) = (self.pool.clone(), self.key.clone(), thread::current_name());
        let mut state = lock(&pool.0.state);
        let (id, since) = (state.next_lease, Instant::now());
        state.next_lease += 1;
        let kept = state.policy.lease(opened, since);
        let info = LeaseInfo { key: key.clone(), thread, at, since };
        state.leases.insert(id, LeaseEntry { info, reported: false });
        pool.wake_by(&mut state, since.checked_add(pool.0.config.leak_after));
        drop(state);
        Lease { pool, key, id, kept: Some(kept) }
    }
}

impl<C: Connector> Drop for Opening<'_, C> {
    fn drop(&mut self) {
        if self.is_open {
            let mut state = lock(&self.pool.0.state);
            state.policy.not_opened(self.key);
            self.pool.assign(&mut state, Instant::now());
            self.pool.let_go(state);
        }
    }
}

/// A connection that the caller has. Dropping it gives it back: to the next caller if it is good and not too old; it is
/// closed if the connector says that it is broken, or if it is dropped by a panic, which may have left it half-way
/// through an exchange.
#[must_use = "the connection goes back to the pool when this is dropped"]
pub struct Lease<C: Connector> {
    pool: Connections<C>,
    key: Key<C>,
    id: u64,
    /// `None` once it has gone back.
    kept: Option<Kept<Connection<C>>>,
}

impl<C: Connector> fmt::Debug for Lease<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease").field("key", &self.key).field("id", &self.id).finish_non_exhaustive()
    }
}

const THERE: &str = "a lease has its connection until it is dropped, discarded or taken out, which consume it";

impl<C: Connector> Lease<C> {
    /// Whose connection it is.
    pub fn key(&self) -> &Key<C> {
        &self.key
    }

    /// Closes the connection: it is no good, as after a failed or unfinished exchange.
    pub fn discard(mut self) {
        self.give_back(false);
    }

    /// Takes the connection out of the pool, which does not count it any more.
    pub fn take_out(mut self) -> Connection<C> {
        let kept = self.kept.take().expect(THERE);
        self.pool.put_back(&self.key, self.id, Back::TakenOut);
        kept.connection
    }

    fn give_back(&mut self, good: bool) {
        if let Some(mut kept) = self.kept.take() {
            let good = good && !self.pool.is_broken(&mut kept);
            self.pool.put_back(&self.key, self.id, Back::Kept { kept, good });
        }
    }
}

impl<C: Connector> Deref for Lease<C> {
    type Target = Connection<C>;
    fn deref(&self) -> &Connection<C> {
        &self.kept.as_ref().expect(THERE).connection
    }
}

impl<C: Connector> DerefMut for Lease<C> {
    fn deref_mut(&mut self) -> &mut Connection<C> {
        &mut self.kept.as_mut().expect(THERE).connection
    }
}

impl<C: Connector> Drop for Lease<C> {
    fn drop(&mut self) {
        self.give_back(!thread::is_panicking());
    }
}
