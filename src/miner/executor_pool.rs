//! How many executors of each class there are on each host and what each is doing. Pure: `now` is an argument.
//!
//! A slot goes from free to reserved to busy to ending and back to free. It is taken by exactly one [`Lease`], and it
//! is taken for as long as that lives: dropping the lease, in whatever way, gives the slot back, and nothing else does.
//! A slot whose executor does not end, or leaves something that cannot be removed, is quarantined with the reason until
//! that is gone.
//!
//! What is declared may change: free slots that are too many go at once, leased ones drain, which is to go when they
//! come back. At any time `free + leased + quarantined = declared + draining`, per host and class, and a place has free
//! or draining slots, not both ([`ExecutorPool::breach`]).

use std::collections::{BTreeMap, BTreeSet};
use std::ops::AddAssign;
use std::time::{Duration, Instant};

use super::host::HostName;
use crate::base::sync::{Arc, Weak};
use crate::protocol::ExecutorClass;

/// The right to one slot, which comes back when this is dropped. Not clonable, so that a slot comes back once.
#[derive(Debug)]
#[must_use = "the slot is free again when the lease is dropped"]
pub struct Lease {
    slot: SlotId,
    /// Only its end counts.
    _held: Arc<()>,
}

impl Lease {
    /// Which slot it is.
    pub fn slot(&self) -> SlotId {
        self.slot
    }
}

/// A slot, for as long as its lease lives; no other lease has the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct SlotId {
    host: HostName,
    class: ExecutorClass,
    number: u64,
}

impl SlotId {
    /// The host of the slot.
    pub fn host(&self) -> HostName {
        self.host
    }

    /// The class of the slot.
    pub fn class(&self) -> ExecutorClass {
        self.class
    }

    fn place(&self) -> Place {
        (self.host, self.class)
    }
}

/// Where slots are alike.
type Place = (HostName, ExecutorClass);

/// Why a slot is in quarantine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quarantine {
    /// In a word, for metrics: what does not go away.
    pub what: &'static str,
    /// In words, for people.
    pub reason: String,
}

/// What a leased slot is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Use {
    /// An executor is being started; it has to be ready by then.
    Reserved(Instant),
    /// The executor is ready, or at work.
    Busy,
    /// The job is over, the executor is not; it has to be gone by then.
    Ending(Instant),
    /// The executor did not end in time, or something of it is left.
    Quarantined(Quarantine),
}

#[derive(Debug)]
struct Leased {
    place: Place,
    used: Use,
    /// Whether the lease lives.
    held: Weak<()>,
}

impl Leased {
    fn slot(&self, number: u64) -> SlotId {
        let (host, class) = self.place;
        SlotId { host, class, number }
    }
}

/// The slots of one class on one host.
#[derive(Debug, Default)]
struct PlaceSlots {
    declared: usize,
    /// Counted on its own, so that the law can be broken and the breach be seen.
    free: usize,
    draining: usize,
}

impl PlaceSlots {
    /// So many are declared from now on.
    fn declare(&mut self, declared: usize) {
        let more = declared.saturating_sub(self.declared);
        let fewer = self.declared.saturating_sub(declared);
        // Those that were about to go stay, and free ones go before leased ones.
        let (stay, go) = (more.min(self.draining), fewer.min(self.free));
        self.draining = self.draining - stay + (fewer - go);
        self.free = self.free - go + (more - stay);
        self.declared = declared;
    }

    fn give_back(&mut self) {
        match self.draining {
            0 => self.free += 1,
            _ => self.draining -= 1,
        }
    }
}

/// How slots are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SlotCounts {
    /// Slots by configuration.
    pub declared: usize,
    /// Leased slots beyond those, which are no more when they come back.
    pub draining: usize,
    /// Open to a job.
    pub free: usize,
    /// Their executor is being started.
    pub reserved: usize,
    /// Their executor is ready or at work.
    pub busy: usize,
    /// Their job is over, their executor not yet.
    pub ending: usize,
    /// Their executor did not end when it was stopped, or left something that could not be removed.
    pub quarantined: usize,
}

impl SlotCounts {
    /// Slots that are taken by jobs.
    pub fn leased(&self) -> usize {
        self.reserved + self.busy + self.ending
    }

    /// How many slots jobs may have, now or later: all but those that drain or are in quarantine.
    pub fn offered(&self) -> usize {
        self.declared.min(self.free + self.leased())
    }
}

impl AddAssign for SlotCounts {
    fn add_assign(&mut self, other: Self) {
        let Self { declared, draining, free, reserved, busy, ending, quarantined } = other;
        self.declared += declared;
        self.draining += draining;
        self.free += free;
        self.reserved += reserved;
        self.busy += busy;
        self.ending += ending;
        self.quarantined += quarantined;
    }
}

/// No slot of the class is free.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("all {} executors of class {class} are taken ({} quarantined)", counts.declared, counts.quarantined)]
pub struct Busy {
    /// The class that was asked for.
    pub class: ExecutorClass,
    /// How its slots are used; all zero for a class that is not offered.
    pub counts: SlotCounts,
}

/// The slots of all classes on all hosts.
#[derive(Debug, Default)]
pub struct ExecutorPool {
    places: BTreeMap<Place, PlaceSlots>,
    leased: BTreeMap<u64, Leased>,
    next: u64,
}

impl ExecutorPool {
    /// A pool with all slots free; numbers for the same class on the same host add up.
    pub fn new(executors: impl IntoIterator<Item = (HostName, ExecutorClass, u32)>) -> Self {
        let mut pool = Self::default();
        pool.declare(executors);
        pool
    }

    /// From now on these slots are declared, and no others. What is leased stays so.
    pub fn declare(&mut self, executors: impl IntoIterator<Item = (HostName, ExecutorClass, u32)>) {
        let mut declared = BTreeMap::<Place, usize>::new();
        for (host, class, count) in executors {
            *declared.entry((host, class)).or_default() += count as usize;
        }
        let places: BTreeSet<Place> = self.places.keys().chain(declared.keys()).copied().collect();
        for place in places {
            let of_place = declared.get(&place);
            self.places.entry(place).or_default().declare(of_place.copied().unwrap_or(0));
        }
        self.places.retain(|place, slots| declared.contains_key(place) || slots.draining > 0);
    }

    /// Where there are slots, by host and class.
    pub fn places(&self) -> impl Iterator<Item = (HostName, ExecutorClass)> + '_ {
        self.places.keys().copied()
    }

    /// How the slots of one class on one host are used.
    pub fn counts(&self, host: HostName, class: ExecutorClass) -> SlotCounts {
        self.all_counts().remove(&(host, class)).unwrap_or_default()
    }

    /// How the slots of each class on each host are used.
    pub fn all_counts(&self) -> BTreeMap<(HostName, ExecutorClass), SlotCounts> {
        let declared = self.places.iter().map(|(place, slots)| {
            let PlaceSlots { declared, free, draining } = *slots;
            (*place, SlotCounts { declared, free, draining, ..SlotCounts::default() })
        });
        let mut all: BTreeMap<Place, SlotCounts> = declared.collect();
        for leased in self.leased.values() {
            let counts = all.entry(leased.place).or_default();
            match leased.used {
                Use::Reserved(_) => counts.reserved += 1,
                Use::Busy => counts.busy += 1,
                Use::Ending(_) => counts.ending += 1,
                Use::Quarantined(_) => counts.quarantined += 1,
            }
        }
        all
    }

    /// The slots in quarantine, and why.
    pub fn quarantined(&self) -> impl Iterator<Item = (SlotId, &Quarantine)> {
        self.leased.iter().filter_map(|(number, leased)| match &leased.used {
            Use::Quarantined(why) => Some((leased.slot(*number), why)),
            _ => None,
        })
    }

    /// Takes a free slot; its executor has to be ready by `ready_by`.
    ///
    /// # Errors
    /// [`Busy`], if no slot of the class on the host is free.
    pub fn reserve(&mut self, host: HostName, class: ExecutorClass, ready_by: Instant) -> Result<Lease, Busy> {
        match self.places.get_mut(&(host, class)) {
            Some(slots) if slots.free > 0 => slots.free -= 1,
            _ => return Err(Busy { class, counts: self.counts(host, class) }),
        }
        let slot = SlotId { host, class, number: self.next };
        self.next += 1;
        let held = Arc::new(());
        let leased = Leased { place: slot.place(), used: Use::Reserved(ready_by), held: Arc::downgrade(&held) };
        self.leased.insert(slot.number, leased);
        Ok(Lease { slot, _held: held })
    }

    /// Takes back the slots whose leases have been dropped, and gives their hosts and classes.
    pub fn take_back(&mut self) -> Vec<(HostName, ExecutorClass)> {
        let mut returned = Vec::new();
        self.leased.retain(|_, leased| {
            let held = leased.held.strong_count() > 0;
            if !held {
                returned.push(leased.place);
            }
            held
        });
        for place in &returned {
            let slots = self.places.entry(*place).or_default();
            slots.give_back();
            if slots.declared + slots.draining == 0 {
                self.places.remove(place);
            }
        }
        returned
    }

    /// The executor is ready: the reservation no longer expires.
    pub fn ready(&mut self, slot: SlotId) {
        self.set(slot, Use::Busy);
    }

    /// A reserved executor has lost its connection, and has that much longer to be ready.
    pub fn postpone(&mut self, slot: SlotId, by: Duration) {
        if let Some(Leased { used: Use::Reserved(ready_by), .. }) = self.leased.get_mut(&slot.number) {
            *ready_by += by;
        }
    }

    /// The job is over; its executor has to be gone by `gone_by`.
    pub fn ending(&mut self, slot: SlotId, gone_by: Instant) {
        self.set(slot, Use::Ending(gone_by));
    }

    /// Something of the executor does not go away: nobody gets the slot until its lease is dropped.
    pub fn quarantine(&mut self, slot: SlotId, why: Quarantine) {
        self.set(slot, Use::Quarantined(why));
    }

    /// Whether the reservation of the slot has expired.
    pub fn has_expired(&self, slot: SlotId, now: Instant) -> bool {
        let leased = self.leased.get(&slot.number);
        leased.is_some_and(|leased| matches!(leased.used, Use::Reserved(ready_by) if ready_by <= now))
    }

    /// Slots whose executor should be gone by now.
    pub fn overdue(&self, now: Instant) -> Vec<SlotId> {
        let overdue = self.leased.iter().filter(|(_, leased)| matches!(leased.used, Use::Ending(at) if at <= now));
        overdue.map(|(number, leased)| leased.slot(*number)).collect()
    }

    /// When to look again at what expires or is overdue.
    pub fn next_deadline(&self) -> Option<Instant> {
        let deadlines = self.leased.values().filter_map(|leased| match leased.used {
            Use::Reserved(at) | Use::Ending(at) => Some(at),
            Use::Busy | Use::Quarantined(_) => None,
        });
        deadlines.min()
    }

    /// The first place where slots were lost or made, in words: a mistake in the program, whatever happens outside.
    pub fn breach(&self) -> Option<String> {
        self.all_counts().into_iter().find_map(|((host, class), counts)| {
            let SlotCounts { declared, draining, free, quarantined, .. } = counts;
            let leased = counts.leased();
            let adds_up = free + leased + quarantined == declared + draining;
            (!adds_up || free > 0 && draining > 0).then(|| {
                format!(
                    "host {host}, class {class}: {free} free + {leased} leased + {quarantined} quarantined slots are \
                     not {declared} declared + {draining} draining ones"
                )
            })
        })
    }

    /// A slot that has come back is nobody's any more.
    fn set(&mut self, slot: SlotId, to: Use) {
        if let Some(leased) = self.leased.get_mut(&slot.number) {
            leased.used = to;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::rng::Rng;

    const HERE: HostName = HostName::LOCAL;
    const TEST: ExecutorClass = ExecutorClass::AlwaysOnTest;
    const GPU: ExecutorClass = ExecutorClass::AlwaysOnGpu24gb;

    fn there() -> HostName {
        "there".parse().unwrap()
    }

    fn left(what: &'static str) -> Quarantine {
        Quarantine { what, reason: format!("the {what} is busy") }
    }

    fn pool() -> ExecutorPool {
        ExecutorPool::new([(HERE, TEST, 3), (HERE, GPU, 1), (HERE, ExecutorClass::SpinUp4minGpu24gb, 0)])
    }

    /// What is declared, as the test knows it.
    type Declared = Vec<(HostName, ExecutorClass, u32)>;

    fn some_settings(rng: &mut Rng) -> Declared {
        let places = [(HERE, TEST), (HERE, GPU), (there(), TEST), (there(), GPU), ("third".parse().unwrap(), TEST)];
        let mut declared = Vec::new();
        for (host, class) in places {
            // Not in the settings at all, or up to three.
            let count = rng.next_u64() % 5;
            declared.extend(u32::try_from(count).ok().filter(|count| *count < 4).map(|count| (host, class, count)));
        }
        declared
    }

    fn of(declared: &Declared, place: Place) -> usize {
        let of_place = declared.iter().filter(|(host, class, _)| (*host, *class) == place);
        of_place.map(|(_, _, count)| *count as usize).sum()
    }

    #[test]
    fn random_use_never_overcommits_and_never_leaks_whatever_is_declared_meanwhile() {
        let seed = Rng::from_entropy().next_u64();
        println!("seed {seed}");
        let mut rng = Rng::new(seed);
        let mut declared: Declared = vec![(HERE, TEST, 3), (there(), TEST, 2), (there(), GPU, 1)];
        let mut pool = ExecutorPool::new(declared.clone());
        let mut now = Instant::now();
        let mut leases: Vec<Lease> = Vec::new();
        let (mut refused, mut overdue, mut reserved, mut returned) = (0, 0, 0, 0);
        let (mut drained, mut stayed, mut gone) = (0, 0, 0);
        for step in 0..20_000 {
            let pick = |rng: &mut Rng, of: usize| (rng.next_u64() % of as u64) as usize;
            let held = |leases: &[Lease], place: Place| leases.iter().filter(|l| l.slot().place() == place).count();
            match pick(&mut rng, 8) {
                0 | 1 => {
                    let host = [HERE, there(), "third".parse().unwrap()][pick(&mut rng, 3)];
                    let class = [TEST, GPU][pick(&mut rng, 2)];
                    let (held, declared) = (held(&leases, (host, class)), of(&declared, (host, class)));
                    match pool.reserve(host, class, now + Duration::from_secs(5)) {
                        Ok(lease) => {
                            assert!(held < declared, "over-committed at step {step}, seed {seed}");
                            assert_eq!(lease.slot().place(), (host, class));
                            reserved += 1;
                            leases.push(lease);
                        }
                        Err(busy) => {
                            assert!(held >= declared, "refused without need at step {step}, seed {seed}");
                            assert_eq!(busy.counts, pool.counts(host, class));
                            refused += 1;
                        }
                    }
                }
                7 if pick(&mut rng, 10) > 0 => {}
                7 => {
                    let before: usize = pool.places().map(|(host, class)| pool.counts(host, class).draining).sum();
                    declared = some_settings(&mut rng);
                    pool.declare(declared.clone());
                    let after: usize = pool.places().map(|(host, class)| pool.counts(host, class).draining).sum();
                    drained += usize::from(after > before);
                    stayed += usize::from(after < before);
                }
                _ if leases.is_empty() => {}
                2 if step % 3 == 0 => {
                    pool.postpone(leases[pick(&mut rng, leases.len())].slot(), Duration::from_secs(1));
                }
                2 => pool.ready(leases[pick(&mut rng, leases.len())].slot()),
                3 => pool.ending(leases[pick(&mut rng, leases.len())].slot(), now + Duration::from_secs(2)),
                4 => {
                    let place = leases.swap_remove(pick(&mut rng, leases.len())).slot().place();
                    assert_eq!(pool.take_back(), [place], "step {step}, seed {seed}");
                    returned += 1;
                    gone += usize::from(!pool.places().any(|of| of == place));
                }
                5 => pool.quarantine(leases[pick(&mut rng, leases.len())].slot(), left("folder")),
                _ => {
                    now += Duration::from_secs(1);
                    for slot in pool.overdue(now) {
                        pool.quarantine(slot, left("executor"));
                        overdue += 1;
                    }
                }
            }
            assert_eq!(pool.breach(), None, "at step {step}, seed {seed}");
            // What is declared and held is known here, so that both sides of the law are.
            for (host, class) in pool.places() {
                let counts = pool.counts(host, class);
                let (held, declared) = (held(&leases, (host, class)), of(&declared, (host, class)));
                assert_eq!(counts.declared, declared, "at step {step}, seed {seed}");
                assert_eq!(counts.draining, held.saturating_sub(declared), "at step {step}, seed {seed}");
                assert!(counts.offered() <= declared, "at step {step}, seed {seed}");
            }
        }
        let happened = [refused, overdue, reserved, returned, drained, stayed, gone];
        assert!(happened.iter().all(|count| *count > 0), "{happened:?}, seed {seed}");
        leases.clear();
        pool.take_back();
        for (host, class) in pool.places() {
            assert_eq!(pool.counts(host, class).free, of(&declared, (host, class)), "leaked, seed {seed}");
        }
        pool.declare([]);
        assert_eq!(pool.places().count(), 0, "seed {seed}");
    }

    #[test]
    fn what_is_declared_no_more_goes_at_once_if_it_is_free_and_when_it_comes_back_if_not() {
        let mut pool = ExecutorPool::new([(HERE, TEST, 3), (there(), TEST, 1)]);
        let counts = |pool: &ExecutorPool| {
            let SlotCounts { declared, draining, free, reserved, .. } = pool.counts(HERE, TEST);
            (declared, draining, free, reserved)
        };
        let now = Instant::now();
        let mut leases: Vec<_> = (0..2).map(|_| pool.reserve(HERE, TEST, now).unwrap()).collect();
        pool.declare([(HERE, TEST, 1)]);
        assert_eq!((counts(&pool), pool.counts(HERE, TEST).offered()), ((1, 1, 0, 2), 1));
        assert_eq!(pool.places().collect::<Vec<_>>(), [(HERE, TEST)], "a free host has gone");
        // What was about to go stays when it is wanted again.
        pool.declare([(HERE, TEST, 3)]);
        assert_eq!(counts(&pool), (3, 0, 1, 2));
        pool.declare([]);
        assert_eq!(counts(&pool), (0, 2, 0, 2));
        assert!(pool.reserve(HERE, TEST, now).is_err(), "what drains takes nothing");
        for places in [1, 0] {
            drop(leases.pop());
            assert_eq!(pool.take_back(), [(HERE, TEST)]);
            assert_eq!((pool.places().count(), pool.breach()), (places, None));
        }
    }

    #[test]
    fn a_slot_comes_back_once_in_whatever_way_its_lease_is_lost() {
        let mut pool = pool();
        let lose: [fn(Lease); 3] = [
            drop,
            |lease| {
                let panics = std::panic::AssertUnwindSafe(|| {
                    let _held = lease;
                    panic!("with the lease");
                });
                assert!(std::panic::catch_unwind(panics).is_err());
            },
            |lease| drop(Err::<(), _>(Some(lease))),
        ];
        for lose in lose {
            let lease = pool.reserve(HERE, GPU, Instant::now()).unwrap();
            let slot = lease.slot();
            assert_eq!((pool.take_back(), pool.counts(HERE, GPU).free), (vec![], 0), "it is held");
            lose(lease);
            assert_eq!((pool.take_back(), pool.counts(HERE, GPU).free), (vec![(HERE, GPU)], 1));
            // What is still said of a slot that is back concerns nobody.
            pool.quarantine(slot, left("folder"));
            assert_eq!((pool.take_back(), pool.counts(HERE, GPU).free, pool.breach()), (vec![], 1, None));
        }
    }

    #[test]
    fn a_slot_in_quarantine_is_not_offered_until_its_lease_is_dropped() {
        let mut pool = pool();
        let now = Instant::now();
        let lease = pool.reserve(HERE, GPU, now).unwrap();
        assert!(pool.has_expired(lease.slot(), now));
        pool.ending(lease.slot(), now);
        assert_eq!(pool.next_deadline(), Some(now));
        assert_eq!(pool.overdue(now), [lease.slot()]);
        assert_eq!(pool.counts(HERE, GPU).offered(), 1);
        pool.quarantine(lease.slot(), left("container"));
        assert_eq!((pool.overdue(now), pool.next_deadline()), (vec![], None));
        assert_eq!(pool.quarantined().collect::<Vec<_>>(), [(lease.slot(), &left("container"))]);
        assert_eq!(pool.counts(HERE, GPU).offered(), 0);
        let busy = pool.reserve(HERE, GPU, now).unwrap_err();
        assert_eq!(busy.to_string(), "all 1 executors of class always_on.gpu-24gb are taken (1 quarantined)");
        drop(lease);
        pool.take_back();
        assert_eq!(pool.counts(HERE, GPU).offered(), 1);
    }

    #[test]
    fn a_breach_of_the_law_is_told_with_its_numbers() {
        let mut pool = pool();
        let lease = pool.reserve(HERE, TEST, Instant::now()).unwrap();
        pool.quarantine(lease.slot(), left("folder"));
        pool.places.entry((HERE, TEST)).or_default().free += 1;
        let says = "host local, class always_on.test: 3 free + 0 leased + 1 quarantined slots are not 3 declared + 0 \
                    draining ones";
        assert_eq!(pool.breach().as_deref(), Some(says));
        // Both sides add up, but what drains is not to be had.
        pool.places.entry((HERE, TEST)).or_default().draining += 1;
        assert!(pool.breach().is_some());
        drop(lease);
    }
}
