//! Who gets which connection, and which ones are closed. Pure: each call takes `now`; the lock around it is
//! [`super::connections`], and who calls it from time to time [`super::keeper`].
//!
//! Whoever wants a connection joins one queue. `assign` goes through it in the order of coming and gives each
//! what it may have: an idle connection of its key, the newest first, or room to make one. At the whole limit the
//! longest idle connection of another key is closed to make room. Who cannot have either stays, and whoever wants
//! another key may pass; nobody of the same key passes.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use super::config::{LastConnectError, PoolConfig, PoolNumbers};
use crate::base::limits::LONGEST_TIME;
use crate::base::rng::Rng;

/// Keys of which the last failure to connect is kept.
const LAST_ERRORS: usize = 1024;

/// A connection with its dates.
#[derive(Debug)]
pub(super) struct Kept<C> {
    pub(super) connection: C,
    /// From then on it is closed when it comes back.
    ends: Instant,
    /// Since when it is idle; while it is leased, since when it was.
    idle_since: Instant,
    /// When it was last known to be good.
    good: Instant,
}

/// What a caller may do.
#[derive(Debug)]
pub(super) enum Grant<C> {
    /// Have this one. It is to be validated first if it was idle for long.
    Use { kept: Kept<C>, validate: bool },
    /// Make one, once the idle one of another key that makes room for it, if there is any, is closed.
    Connect { first_close: Option<C> },
}

/// What a caller has got by its grant.
#[derive(Debug)]
pub(super) enum Opened<C> {
    /// An idle connection, which is good.
    Again(Kept<C>),
    /// One that was made.
    New(C),
}

/// Why a connection is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Closed {
    Idled,
    Retired,
    Discarded,
    Invalid,
    Stopped,
}

#[derive(Debug)]
struct KeyConnections<C> {
    /// The newest last.
    idle: Vec<Kept<C>>,
    /// Leased, being made, being validated, being closed.
    busy: usize,
}

impl<C> KeyConnections<C> {
    fn all(&self) -> usize {
        self.idle.len() + self.busy
    }
}

/// The state of a pool.
#[derive(Debug)]
pub(super) struct Policy<K, C, E> {
    config: PoolConfig,
    keys: BTreeMap<K, KeyConnections<C>>,
    waiting: BTreeMap<u64, K>,
    granted: BTreeMap<u64, Grant<C>>,
    next_ticket: u64,
    last_errors: BTreeMap<K, (Instant, E)>,
    to_close: VecDeque<(K, C)>,
    next_due: Option<Instant>,
    rng: Rng,
    stopped: bool,
    numbers: PoolNumbers,
}

impl<K: Ord + Clone, C, E: Clone> Policy<K, C, E> {
    pub(super) fn new(config: PoolConfig, rng: Rng) -> Self {
        Self {
            config,
            keys: BTreeMap::new(),
            waiting: BTreeMap::new(),
            granted: BTreeMap::new(),
            next_ticket: 0,
            last_errors: BTreeMap::new(),
            to_close: VecDeque::new(),
            next_due: None,
            rng,
            stopped: false,
            numbers: PoolNumbers::default(),
        }
    }

    /// A caller joins the queue; `None` if it is full. [`Policy::assign`] comes next.
    pub(super) fn join(&mut self, key: &K) -> Option<u64> {
        // Those who need not wait are not in the queue when the next one comes.
        if self.waiting.len() >= self.config.waiting_max.max(1) {
            self.numbers.full += 1;
            return None;
        }
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.waiting.insert(ticket, key.clone());
        Some(ticket)
    }

    /// What the caller was given, if anything yet.
    pub(super) fn take_grant(&mut self, ticket: u64) -> Option<Grant<C>> {
        self.granted.remove(&ticket)
    }

    /// A caller has no use for its grant any more.
    pub(super) fn undo(&mut self, key: &K, grant: Grant<C>, now: Instant) {
        self.numbers.connecting -= 1;
        self.numbers.gave_up += 1;
        match grant {
            Grant::Connect { first_close: None } => self.free(key),
            Grant::Connect { first_close: Some(connection) } => self.push_to_close(key, connection),
            Grant::Use { kept, .. } => self.keep(key, kept, true, now),
        }
    }

    /// A caller that has no grant goes away.
    pub(super) fn leave(&mut self, ticket: u64) {
        if self.waiting.remove(&ticket).is_some() {
            self.numbers.gave_up += 1;
        }
    }

    /// Gives out what can be given; says whether anybody got something.
    pub(super) fn assign(&mut self, now: Instant) -> bool {
        let mut given = Vec::new();
        let tickets: Vec<u64> = if self.stopped { Vec::new() } else { self.waiting.keys().copied().collect() };
        for ticket in tickets {
            let Some(key) = self.waiting.get(&ticket).cloned() else { continue };
            let grant = match self.newest_idle(&key, now) {
                Some(kept) => {
                    let validate = now.saturating_duration_since(kept.good) >= self.config.validate_after;
                    Grant::Use { kept, validate }
                }
                None if self.keys.get(&key).is_some_and(|own| own.all() >= self.config.per_key_max.max(1)) => continue,
                None if self.all() < self.config.connections_max.max(1) => Grant::Connect { first_close: None },
                None => match self.evict() {
                    Some(oldest) => Grant::Connect { first_close: Some(oldest) },
                    // Nothing is idle, so nobody who came later has a chance either.
                    None => break,
                },
            };
            let own = self.keys.entry(key).or_insert_with(|| KeyConnections { idle: Vec::new(), busy: 0 });
            own.busy += 1;
            self.numbers.connecting += 1;
            self.waiting.remove(&ticket);
            given.push((ticket, grant));
        }
        let any = !given.is_empty();
        self.granted.extend(given);
        any
    }

    /// The newest idle connection of a key that is neither too old nor idle for too long; those that are, are closed.
    fn newest_idle(&mut self, key: &K, now: Instant) -> Option<Kept<C>> {
        loop {
            let kept = self.keys.get_mut(key)?.idle.pop()?;
            match why_over(&kept, self.config.idle_time, now) {
                Some(why) => self.close_idle(key, kept, why),
                None => return Some(kept),
            }
        }
    }

    fn all(&self) -> usize {
        self.keys.values().map(KeyConnections::all).sum()
    }

    /// The longest idle connection of all keys.
    fn evict(&mut self) -> Option<C> {
        let idle = self.keys.iter().filter_map(|(key, own)| Some((own.idle.first()?.idle_since, key)));
        let (_, key) = idle.min_by_key(|(since, _)| *since)?;
        let key = key.clone();
        let own = self.keys.get_mut(&key)?;
        let oldest = own.idle.remove(0);
        if own.all() == 0 {
            self.keys.remove(&key);
        }
        self.numbers.evicted += 1;
        Some(oldest.connection)
    }

    /// A connection that is in nobody's hand is to be closed.
    fn close_idle(&mut self, key: &K, kept: Kept<C>, why: Closed) {
        if let Some(own) = self.keys.get_mut(key) {
            own.busy += 1;
        }
        self.close(key, kept, why);
    }

    /// A connection that counts as busy is to be closed; it counts until [`Policy::closed`].
    fn close(&mut self, key: &K, kept: Kept<C>, why: Closed) {
        match why {
            Closed::Idled => self.numbers.idled += 1,
            Closed::Retired => self.numbers.retired += 1,
            Closed::Discarded => self.numbers.discarded += 1,
            Closed::Invalid => self.numbers.invalid += 1,
            Closed::Stopped => {}
        }
        self.push_to_close(key, kept.connection);
    }

    fn push_to_close(&mut self, key: &K, connection: C) {
        self.numbers.closing += 1;
        self.to_close.push_back((key.clone(), connection));
    }

    /// What [`Policy::next_to_close`] gave is closed.
    pub(super) fn closed(&mut self, key: &K) {
        self.numbers.closing -= 1;
        self.free(key);
    }

    pub(super) fn has_to_close(&self) -> bool {
        !self.to_close.is_empty()
    }

    /// A connection that is to be closed, by whoever has let go of the lock.
    pub(super) fn next_to_close(&mut self) -> Option<(K, C)> {
        self.to_close.pop_front()
    }

    /// A caller has what it was granted, and now leases it.
    pub(super) fn lease(&mut self, opened: Opened<C>, now: Instant) -> Kept<C> {
        self.numbers.connecting -= 1;
        self.numbers.leased += 1;
        match opened {
            Opened::Again(kept) => {
                self.numbers.reused += 1;
                kept
            }
            Opened::New(connection) => {
                self.numbers.connected += 1;
                let life = self.config.life_time.min(LONGEST_TIME);
                let ends = now + life.mul_f64(1.0 - self.rng.unit() / 10.0);
                Kept { connection, ends, idle_since: now, good: now }
            }
        }
    }

    /// A caller has not got what it was granted.
    pub(super) fn not_opened(&mut self, key: &K) {
        self.numbers.connecting -= 1;
        self.free(key);
    }

    /// A connection could not be made.
    pub(super) fn connect_failed(&mut self, key: &K, error: E, now: Instant) {
        self.numbers.connect_failed += 1;
        if !self.last_errors.contains_key(key) && self.last_errors.len() >= LAST_ERRORS {
            let oldest = self.last_errors.iter().min_by_key(|(_, (at, _))| *at).map(|(key, _)| key.clone());
            oldest.and_then(|oldest| self.last_errors.remove(&oldest));
        }
        self.last_errors.insert(key.clone(), (now, error));
    }

    /// A connection has proved to be no good; whoever wanted it makes another in its place.
    pub(super) fn invalid(&mut self) {
        self.numbers.invalid += 1;
    }

    /// A leased connection comes back. It is kept if it is good, not too old, and the pool has not stopped.
    pub(super) fn put_back(&mut self, key: &K, kept: Kept<C>, good: bool, now: Instant) {
        self.numbers.leased -= 1;
        let kept = Kept { idle_since: now, good: now, ..kept };
        self.keep(key, kept, good, now);
    }

    fn keep(&mut self, key: &K, kept: Kept<C>, good: bool, now: Instant) {
        let over = match () {
            () if !good => Some(Closed::Discarded),
            () if self.stopped => Some(Closed::Stopped),
            () => why_over(&kept, self.config.idle_time, now),
        };
        if let Some(why) = over {
            return self.close(key, kept, why);
        }
        let due = self.due(&kept);
        self.next_due = Some(self.next_due.map_or(due, |next| next.min(due)));
        if let Some(own) = self.keys.get_mut(key) {
            own.busy -= 1;
            own.idle.push(kept);
            own.idle.sort_by_key(|kept| kept.idle_since);
        }
    }

    /// A leased connection was taken out for good: the pool does not count it any more.
    pub(super) fn taken_out(&mut self, key: &K) {
        self.numbers.leased -= 1;
        self.numbers.taken_out += 1;
        self.free(key);
    }

    fn free(&mut self, key: &K) {
        if let Some(own) = self.keys.get_mut(key) {
            own.busy = own.busy.saturating_sub(1);
            if own.all() == 0 {
                self.keys.remove(key);
            }
        }
    }

    /// Closes what is idle for too long or too old.
    pub(super) fn sweep(&mut self, now: Instant) {
        let idle_time = self.config.idle_time;
        let mut over = Vec::new();
        for (key, own) in &mut self.keys {
            let gone = own.idle.extract_if(.., |kept| why_over(kept, idle_time, now).is_some());
            over.extend(gone.map(|kept| (key.clone(), kept)));
        }
        for (key, kept) in over {
            if let Some(why) = why_over(&kept, idle_time, now) {
                self.close_idle(&key, kept, why);
            }
        }
        self.next_due = self.keys.values().flat_map(|own| &own.idle).map(|kept| self.due(kept)).min();
    }

    /// An idle connection that is due to be validated; it counts as being validated until [`Policy::kept_alive`].
    pub(super) fn take_silent(&mut self, now: Instant) -> Option<(K, Kept<C>)> {
        let keepalive = self.config.keepalive?;
        for (key, own) in &mut self.keys {
            let silent = own.idle.iter().position(|kept| now.saturating_duration_since(kept.good) >= keepalive);
            if let Some(at) = silent {
                let kept = own.idle.remove(at);
                own.busy += 1;
                self.numbers.connecting += 1;
                return Some((key.clone(), kept));
            }
        }
        None
    }

    /// What [`Policy::take_silent`] gave is good, or not.
    pub(super) fn kept_alive(&mut self, key: &K, kept: Kept<C>, good: bool, now: Instant) {
        self.numbers.connecting -= 1;
        // It was not used: idle it is since before.
        let kept = Kept { good: if good { now } else { kept.good }, ..kept };
        match good {
            true => self.keep(key, kept, true, now),
            false => self.close(key, kept, Closed::Invalid),
        }
    }

    /// When [`Policy::sweep`] or [`Policy::take_silent`] next has something to do, at the earliest.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.next_due
    }

    fn due(&self, kept: &Kept<C>) -> Instant {
        let idle = kept.idle_since + self.config.idle_time.min(LONGEST_TIME);
        let silent = self.config.keepalive.map(|keepalive| kept.good + keepalive.min(LONGEST_TIME));
        idle.min(kept.ends).min(silent.unwrap_or(idle))
    }

    /// Gives nothing out any more, and closes what is idle.
    pub(super) fn stop(&mut self) {
        self.stopped = true;
        let mut idle = Vec::new();
        for (key, own) in &mut self.keys {
            idle.extend(own.idle.drain(..).map(|kept| (key.clone(), kept)));
        }
        idle.into_iter().for_each(|(key, kept)| self.close_idle(&key, kept, Closed::Stopped));
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// Whether no connection is with anybody, and none is being closed.
    pub(super) fn is_drained(&self) -> bool {
        self.keys.values().all(|own| own.busy == 0)
    }

    /// A lease was reported.
    pub(super) fn leaked(&mut self) {
        self.numbers.leaked += 1;
    }

    pub(super) fn last_error(&self, key: &K, now: Instant) -> Option<LastConnectError<E>> {
        let (at, error) = self.last_errors.get(key)?;
        Some(LastConnectError { error: error.clone(), age: now.saturating_duration_since(*at) })
    }

    pub(super) fn numbers(&self) -> PoolNumbers {
        let idle = self.keys.values().map(|own| own.idle.len()).sum();
        PoolNumbers { idle, waiting: self.waiting.len(), ..self.numbers }
    }
}

fn why_over<C>(kept: &Kept<C>, idle_time: Duration, now: Instant) -> Option<Closed> {
    match () {
        () if now >= kept.ends => Some(Closed::Retired),
        () if now.saturating_duration_since(kept.idle_since) >= idle_time => Some(Closed::Idled),
        () => None,
    }
}
