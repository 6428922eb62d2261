//! A breaker for each peer behind one lock; how many of them may be open; and when it is not the peers but us.
//!
//! **Cap.** At most a share of the peers is left alone at a time. A breaker that would be one too many stays closed,
//! and its peer is called, however bad it is: a program that leaves most of its peers alone does nothing any more.
//!
//! **Self-outage.** When most of the peers that are called fail at once, our own way out is the likely cause. Then no
//! breaker opens, those that opened within the window are closed again, and nothing that failed counts. It ends when of
//! those heard of since it began, enough answer, when nobody fails any more, or when only few are called.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::time::{Duration, Instant};

use super::breaker::{Breaker, BreakerConfig, BreakerState, Ended, Explanation, Ticket, Transition};
pub use super::events::{BreakersNumbers, Event, Outage};
use crate::base::lock::lock;
use crate::base::sync::{Arc, Mutex};

pub use super::breaker::Refused;

/// Events that wait to be taken: more than the transitions of all breakers of a fleet of 1,000 at once. Each is some
/// 150 bytes and a key, so below a megabyte.
pub const EVENTS_MAX: usize = 4096;

/// The numbers of [`Breakers`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BreakersConfig {
    /// Those of each breaker.
    pub breaker: BreakerConfig,
    /// Peers that are known at most. A new one then takes the place of the one that was not called for longest, of
    /// those that are closed if there is any. A few hundred bytes each.
    pub peers_max: usize,
    /// The share of the known peers whose breakers may be open, or half-open, by their calls; but always one.
    pub open_share: f64,
    /// The time within which peers fail at once.
    pub outage_window: Duration,
    /// The share of the peers called within that time that fail in a self-outage. Above 1 there is none.
    pub outage_share: f64,
    /// With fewer peers called in that time there is no self-outage, and fewer that are heard of do not end one.
    pub outage_least: usize,
}

impl Default for BreakersConfig {
    /// 4,096 peers, a tenth open; a self-outage if 80 % of at least 10 peers fail within 30 s.
    fn default() -> Self {
        Self {
            breaker: BreakerConfig::default(),
            peers_max: 4096,
            open_share: 0.1,
            outage_window: Duration::from_secs(30),
            outage_share: 0.8,
            outage_least: 10,
        }
    }
}

impl BreakersConfig {
    /// What is wrong with the numbers, all at once.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = self.breaker.problems();
        for (name, value) in [("peers_max", self.peers_max), ("outage_least", self.outage_least)] {
            if value == 0 {
                problems.push(format!("{name} is 0, it must be at least 1"));
            }
        }
        if !(0.0..=1.0).contains(&self.open_share) {
            problems.push(format!("open_share is {}, not 0 to 1", self.open_share));
        }
        if self.outage_share.is_nan() || self.outage_share < 0.5 {
            problems.push(format!("outage_share is {}, it must be at least 0.5", self.outage_share));
        }
        problems
    }
}

/// One peer.
#[derive(Debug)]
struct Peer {
    breaker: Breaker,
    /// Sets apart the permits of a peer that was forgotten and has come again.
    id: u64,
    /// Calls that are out.
    out: usize,
    asked: Instant,
    /// When its last call ended that tells something, and whether that failed.
    ended: Option<(Instant, bool)>,
    /// The cap was reported since it was last closed for good.
    capped: bool,
}

struct Group<K> {
    config: BreakersConfig,
    peers: BTreeMap<K, Peer>,
    next_id: u64,
    outage: Option<Outage>,
    /// When a call last failed.
    failed: Option<Instant>,
    /// Breakers that are open, or half-open, by their calls.
    open: usize,
    events: VecDeque<Event<K>>,
    numbers: BreakersNumbers,
}

/// A breaker for each peer; clones are the same group. Every call takes one lock for a moment; only a failure looks at
/// all peers.
///
/// ```
/// use std::time::{Duration, Instant};
///
/// use phalanx::pool::{Breakers, BreakersConfig};
///
/// let (breakers, now, took) = (Breakers::new(BreakersConfig::default()), Instant::now(), Duration::from_secs(1));
/// for _ in 0..5 {
///     breakers.ask(&"miner 1", now)?.failed(took);
/// }
/// let refused = breakers.ask(&"miner 1", now).unwrap_err();
/// assert_eq!(refused.to_string(), "its breaker is open: too many calls failed");
/// breakers.ask(&"miner 2", now)?.succeeded(took);
/// for event in breakers.take_events() {
///     assert!(event.to_string().starts_with("breaker of \"miner 1\": closed -> open"));
/// }
/// # Ok::<(), phalanx::pool::Refused>(())
/// ```
pub struct Breakers<K>(Arc<Mutex<Group<K>>>);

impl<K> Clone for Breakers<K> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<K: Ord + Clone> fmt::Debug for Breakers<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Breakers").field(&self.numbers()).finish()
    }
}

/// One call that may be made. Its outcome is told by one of its methods; dropping it tells nothing, also in a panic,
/// and its place, if it is a probe, is free for another.
#[must_use = "the outcome of the call is told to the permit"]
pub struct Permit<K: Ord + Clone> {
    group: Breakers<K>,
    key: K,
    id: u64,
    ticket: Ticket,
    asked: Instant,
    told: bool,
}

impl<K: Ord + Clone> fmt::Debug for Permit<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Permit").field("ticket", &self.ticket).finish_non_exhaustive()
    }
}

impl<K: Ord + Clone> Breakers<K> {
    /// A group that knows nobody yet. Its numbers should have no [`BreakersConfig::problems`].
    pub fn new(config: BreakersConfig) -> Self {
        Self(Arc::new(Mutex::new(Group {
            config,
            peers: BTreeMap::new(),
            next_id: 0,
            outage: None,
            failed: None,
            open: 0,
            events: VecDeque::new(),
            numbers: BreakersNumbers::default(),
        })))
    }

    /// Whether the peer may be called. Never blocks.
    ///
    /// # Errors
    /// [`Refused`]: not now.
    pub fn ask(&self, key: &K, now: Instant) -> Result<Permit<K>, Refused> {
        let mut group = lock(&self.0);
        group.pass_time(now);
        let peer = group.peer(key, now);
        let asked = peer.breaker.ask(now);
        if asked.is_ok() {
            (peer.out, peer.asked) = (peer.out + 1, now);
        }
        let id = peer.id;
        group.collect(key);
        match asked {
            Ok(ticket) => {
                let (group, key) = (self.clone(), key.clone());
                Ok(Permit { group, key, id, ticket, asked: now, told: false })
            }
            Err(refused) => {
                group.numbers.refused += 1;
                Err(refused)
            }
        }
    }

    /// Whether the peer would be refused now, without asking for a call: for whoever chooses among many.
    pub fn refuses(&self, key: &K, now: Instant) -> Option<Explanation> {
        let explanation = self.explain(key, now)?;
        let refuses = match explanation.state {
            BreakerState::Open | BreakerState::ForcedOpen => true,
            BreakerState::HalfOpen => {
                let probes = explanation.probes_out + explanation.numbers.calls;
                probes >= lock(&self.0).config.breaker.half_open_calls
            }
            BreakerState::Closed | BreakerState::ForcedClosed => false,
        };
        refuses.then_some(explanation)
    }

    /// How things stand with a peer; `None` if it is not known.
    pub fn explain(&self, key: &K, now: Instant) -> Option<Explanation> {
        let mut group = lock(&self.0);
        let explanation = group.peers.get_mut(key).map(|peer| peer.breaker.explain(now));
        group.collect(key);
        explanation
    }

    /// How things stand with each known peer, by key.
    pub fn explain_all(&self, now: Instant) -> Vec<(K, Explanation)> {
        let mut group = lock(&self.0);
        let keys: Vec<K> = group.peers.keys().cloned().collect();
        let mut all = Vec::with_capacity(keys.len());
        for key in keys {
            let explanation = group.peers.get_mut(&key).map(|peer| peer.breaker.explain(now));
            group.collect(&key);
            all.extend(explanation.map(|explanation| (key, explanation)));
        }
        all
    }

    /// Leaves the peer alone until [`Breakers::force_close`] or [`Breakers::reset`].
    pub fn force_open(&self, key: &K, now: Instant) {
        self.by_hand(key, now, Breaker::force_open);
    }

    /// Lets the peer be called, whatever its calls say, until [`Breakers::force_open`] or [`Breakers::reset`].
    pub fn force_close(&self, key: &K, now: Instant) {
        self.by_hand(key, now, Breaker::force_close);
    }

    /// The peer's breaker is as new.
    pub fn reset(&self, key: &K, now: Instant) {
        self.by_hand(key, now, Breaker::reset);
    }

    fn by_hand(&self, key: &K, now: Instant, act: impl FnOnce(&mut Breaker, Instant)) {
        let mut group = lock(&self.0);
        let peer = group.peer(key, now);
        act(&mut peer.breaker, now);
        peer.capped = false;
        group.collect(key);
    }

    /// Forgets all peers that `keep` does not name; what their permits say later is not heard.
    pub fn retain(&self, keep: impl Fn(&K) -> bool) {
        let mut group = lock(&self.0);
        group.peers.retain(|key, _| keep(key));
        group.count_open();
    }

    /// The self-outage that is on. While it is, what fails tells nothing of the peers: other scores should stand still
    /// as well.
    pub fn outage(&self, now: Instant) -> Option<Outage> {
        let mut group = lock(&self.0);
        group.pass_time(now);
        group.outage
    }

    /// What has happened since this was last asked, the oldest first; of more than [`EVENTS_MAX`], the last ones.
    pub fn take_events(&self) -> Vec<Event<K>> {
        lock(&self.0).events.drain(..).collect()
    }

    /// What the group has and has done, with states as of the last calls.
    pub fn numbers(&self) -> BreakersNumbers {
        let group = lock(&self.0);
        let mut numbers = group.numbers.clone();
        for peer in group.peers.values() {
            *numbers.states.entry(peer.breaker.state()).or_default() += 1;
        }
        numbers
    }
}

impl<K: Ord + Clone> Permit<K> {
    /// The call has succeeded. It took so long, from when the permit was asked for.
    pub fn succeeded(self, took: Duration) {
        self.tell(Some(false), took);
    }

    /// The call has failed by the peer's fault, after so long.
    pub fn failed(self, took: Duration) {
        self.tell(Some(true), took);
    }

    /// The call was not made, or tells nothing of the peer: it was cancelled, or the caller's own mistake.
    pub fn ignored(self) {
        self.tell(None, Duration::ZERO);
    }

    fn tell(mut self, failed: Option<bool>, took: Duration) {
        self.told = true;
        let mut group = lock(&self.group.0);
        // The peer may be forgotten since, or be another of the same key.
        let Some(peer) = group.peers.get_mut(&self.key).filter(|peer| peer.id == self.id) else { return };
        peer.out = peer.out.saturating_sub(1);
        match failed {
            None => peer.breaker.ignored(self.ticket),
            Some(failed) => {
                let now = self.asked.checked_add(took).unwrap_or(self.asked);
                group.ended(&self.key, self.ticket, Ended { now, took, failed });
            }
        }
        group.collect(&self.key);
    }
}

impl<K: Ord + Clone> Drop for Permit<K> {
    fn drop(&mut self) {
        if self.told {
            return;
        }
        let mut group = lock(&self.group.0);
        if let Some(peer) = group.peers.get_mut(&self.key).filter(|peer| peer.id == self.id) {
            peer.out = peer.out.saturating_sub(1);
            peer.breaker.ignored(self.ticket);
        }
    }
}

impl<K: Ord + Clone> Group<K> {
    fn peer(&mut self, key: &K, now: Instant) -> &mut Peer {
        if !self.peers.contains_key(key) && self.peers.len() >= self.config.peers_max.max(1) {
            let oldest = self.peers.iter().min_by_key(|(_, peer)| {
                let is_held = peer.breaker.state() != BreakerState::Closed;
                (is_held, peer.out > 0, peer.asked)
            });
            if let Some(oldest) = oldest.map(|(key, _)| key.clone()) {
                self.peers.remove(&oldest);
                self.count_open();
            }
        }
        let (next_id, breaker) = (&mut self.next_id, self.config.breaker);
        self.peers.entry(key.clone()).or_insert_with(|| {
            *next_id += 1;
            Peer { breaker: Breaker::new(breaker, now), id: *next_id, out: 0, asked: now, ended: None, capped: false }
        })
    }

    /// Makes events of what a breaker has done.
    fn collect(&mut self, key: &K) {
        let Some(peer) = self.peers.get_mut(key) else { return };
        let changes: Vec<Transition> = peer.breaker.take_transitions().collect();
        for change in changes {
            self.open += usize::from(change.to.is_by_calls());
            self.open -= usize::from(change.from.is_by_calls());
            self.tell(Event::Changed { key: key.clone(), change });
        }
    }

    fn tell(&mut self, event: Event<K>) {
        if self.events.len() >= EVENTS_MAX {
            self.events.pop_front();
            self.numbers.events_lost += 1;
        }
        self.events.push_back(event);
    }

    fn ended(&mut self, key: &K, ticket: Ticket, ended: Ended) {
        let Ended { now, failed, .. } = ended;
        let Some(peer) = self.peers.get_mut(key) else { return };
        peer.ended = Some((now, failed));
        if failed {
            self.failed = self.failed.max(Some(now));
            self.outage_may_begin(now);
        } else {
            self.outage_may_end(now);
        }
        let (is_outage, may_open, open) = (self.outage.is_some(), self.open < self.open_max(), self.open);
        let Some(peer) = self.peers.get_mut(key) else { return };
        if failed && is_outage {
            return peer.breaker.ignored(ticket);
        }
        let breached = peer.breaker.ended_with(ticket, ended, may_open);
        let is_held = breached && peer.breaker.opened_by_calls().is_none();
        let was_held = std::mem::replace(&mut peer.capped, is_held);
        self.numbers.capped += u64::from(is_held);
        if is_held && !was_held {
            self.tell(Event::Capped { key: key.clone(), open });
        }
    }

    fn count_open(&mut self) {
        self.open = self.peers.values().filter(|peer| peer.breaker.state().is_by_calls()).count();
    }

    fn open_max(&self) -> usize {
        ((self.peers.len() as f64 * self.config.open_share) as usize).max(1)
    }

    /// Peers whose last call failed within the window, and peers that were called in it.
    fn failing(&self, now: Instant, since: Option<Instant>) -> (usize, usize) {
        let window = self.config.outage_window;
        let is_recent = |at: Instant| now.saturating_duration_since(at) < window;
        let is_new = |at: Instant| is_recent(at) && since.is_none_or(|since| at >= since);
        let (mut failing, mut called) = (0, 0);
        for peer in self.peers.values() {
            let ended = peer.ended.filter(|(at, _)| is_new(*at));
            // What is out counts as called: many quick refusals before the first answer are no outage.
            let is_called = ended.is_some() || (since.is_none() && (peer.out > 0 || is_recent(peer.asked)));
            called += usize::from(is_called);
            failing += usize::from(ended.is_some_and(|(_, failed)| failed));
        }
        (failing, called)
    }

    fn outage_may_begin(&mut self, now: Instant) {
        if self.outage.is_some() {
            return;
        }
        let (failing, called) = self.failing(now, None);
        if called < self.config.outage_least || (failing as f64) < self.config.outage_share * called as f64 {
            return;
        }
        let outage = Outage { since: now, failing, called };
        self.outage = Some(outage);
        self.numbers.outages += 1;
        self.tell(Event::OutageBegan(outage));
        let window = self.config.outage_window;
        let mut forgiven = Vec::new();
        for (key, peer) in &mut self.peers {
            let failed = peer.ended.is_some_and(|(at, failed)| failed && now.saturating_duration_since(at) < window);
            let opened = peer.breaker.opened_by_calls();
            if failed && opened.is_none_or(|at| now.saturating_duration_since(at) < window) {
                peer.breaker.forgive(now);
                peer.capped = false;
                forgiven.push(key.clone());
            }
        }
        forgiven.iter().for_each(|key| self.collect(key));
    }

    /// Of the peers heard of since it began, enough answer.
    fn outage_may_end(&mut self, now: Instant) {
        let Some(outage) = self.outage else { return };
        let (failing, heard) = self.failing(now, Some(outage.since));
        // One that is near is heard of first, and alone says nothing of the way to the others.
        if heard >= self.config.outage_least && (failing as f64) < self.config.outage_share * heard as f64 {
            self.end_outage(now, outage);
        }
    }

    /// Nobody has failed for the length of the window, or so few were called in it that they are no crowd.
    fn pass_time(&mut self, now: Instant) {
        let Some(outage) = self.outage else { return };
        let window = self.config.outage_window;
        if now.saturating_duration_since(outage.since) < window {
            return;
        }
        let has_failed = self.failed.is_some_and(|failed| now.saturating_duration_since(failed) < window);
        if !has_failed || self.failing(now, Some(outage.since)).1 < self.config.outage_least {
            self.end_outage(now, outage);
        }
    }

    fn end_outage(&mut self, now: Instant, outage: Outage) {
        self.outage = None;
        // What failed in it does not begin the next one.
        self.peers.values_mut().for_each(|peer| peer.ended = peer.ended.filter(|(_, failed)| !failed));
        self.tell(Event::OutageEnded { lasted: now.saturating_duration_since(outage.since) });
    }
}
