//! How many executors of each class there are and what each is doing. Pure: `now` is an argument.
//!
//! A slot goes from free to reserved to busy to ending and back to free. It is taken by exactly one [`Lease`], and it
//! is taken for as long as that lives: dropping the lease, in whatever way, gives the slot back, and nothing else does.
//! A slot whose executor does not end, or leaves something that cannot be removed, is quarantined with the reason until
//! that is gone. At any time `free + leased + quarantined = declared`, per class ([`ExecutorPool::breach`]).

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

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
    class: ExecutorClass,
    number: u64,
}

impl SlotId {
    /// The class of the slot.
    pub fn class(&self) -> ExecutorClass {
        self.class
    }
}

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
    class: ExecutorClass,
    used: Use,
    /// Whether the lease lives.
    held: Weak<()>,
}

/// The slots of one class.
#[derive(Debug, Default)]
struct ClassSlots {
    declared: usize,
    /// Counted on its own, so that the law can be broken and the breach be seen.
    free: usize,
}

/// How the slots of one class are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SlotCounts {
    /// Slots by configuration.
    pub declared: usize,
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

/// No slot of the class is free.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("all {} executors of class {class} are taken ({} quarantined)", counts.declared, counts.quarantined)]
pub struct Busy {
    /// The class that was asked for.
    pub class: ExecutorClass,
    /// How its slots are used; all zero for a class that is not offered.
    pub counts: SlotCounts,
}

/// The slots of all classes.
#[derive(Debug, Default)]
pub struct ExecutorPool {
    classes: BTreeMap<ExecutorClass, ClassSlots>,
    leased: BTreeMap<u64, Leased>,
    next: u64,
}

impl ExecutorPool {
    /// A pool with all slots free; numbers for the same class add up.
    pub fn new(executors: impl IntoIterator<Item = (ExecutorClass, u32)>) -> Self {
        let mut classes = BTreeMap::<_, ClassSlots>::new();
        for (class, count) in executors {
            let slots = classes.entry(class).or_default();
            slots.declared += count as usize;
            slots.free += count as usize;
        }
        Self { classes, ..Self::default() }
    }

    /// The classes on offer and how many executors of each: all but those in quarantine, busy or not.
    pub fn manifest(&self) -> impl Iterator<Item = (ExecutorClass, usize)> + '_ {
        self.classes.keys().map(|class| {
            let counts = self.counts(*class);
            (*class, counts.declared - counts.quarantined)
        })
    }

    /// How the slots of one class are used.
    pub fn counts(&self, class: ExecutorClass) -> SlotCounts {
        let mut counts = SlotCounts::default();
        for leased in self.leased.values().filter(|leased| leased.class == class) {
            match leased.used {
                Use::Reserved(_) => counts.reserved += 1,
                Use::Busy => counts.busy += 1,
                Use::Ending(_) => counts.ending += 1,
                Use::Quarantined(_) => counts.quarantined += 1,
            }
        }
        if let Some(slots) = self.classes.get(&class) {
            (counts.declared, counts.free) = (slots.declared, slots.free);
        }
        counts
    }

    /// The slots in quarantine, and why.
    pub fn quarantined(&self) -> impl Iterator<Item = (SlotId, &Quarantine)> {
        self.leased.iter().filter_map(|(number, leased)| match &leased.used {
            Use::Quarantined(why) => Some((SlotId { class: leased.class, number: *number }, why)),
            _ => None,
        })
    }

    /// Takes a free slot; its executor has to be ready by `ready_by`.
    ///
    /// # Errors
    /// [`Busy`], if no slot of the class is free.
    pub fn reserve(&mut self, class: ExecutorClass, ready_by: Instant) -> Result<Lease, Busy> {
        match self.classes.get_mut(&class) {
            Some(slots) if slots.free > 0 => slots.free -= 1,
            _ => return Err(Busy { class, counts: self.counts(class) }),
        }
        let slot = SlotId { class, number: self.next };
        self.next += 1;
        let held = Arc::new(());
        let leased = Leased { class, used: Use::Reserved(ready_by), held: Arc::downgrade(&held) };
        self.leased.insert(slot.number, leased);
        Ok(Lease { slot, _held: held })
    }

    /// Takes back the slots whose leases have been dropped, and gives the class of each.
    pub fn take_back(&mut self) -> Vec<ExecutorClass> {
        let mut returned = Vec::new();
        self.leased.retain(|_, leased| {
            let held = leased.held.strong_count() > 0;
            if !held {
                returned.push(leased.class);
            }
            held
        });
        for class in &returned {
            self.classes.entry(*class).or_default().free += 1;
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
        overdue.map(|(number, leased)| SlotId { class: leased.class, number: *number }).collect()
    }

    /// When to look again at what expires or is overdue.
    pub fn next_deadline(&self) -> Option<Instant> {
        let deadlines = self.leased.values().filter_map(|leased| match leased.used {
            Use::Reserved(at) | Use::Ending(at) => Some(at),
            Use::Busy | Use::Quarantined(_) => None,
        });
        deadlines.min()
    }

    /// The first class in which slots were lost or made, in words: a mistake in the program, whatever happens outside.
    pub fn breach(&self) -> Option<String> {
        self.classes.keys().find_map(|class| {
            let SlotCounts { declared, free, reserved, busy, ending, quarantined } = self.counts(*class);
            let leased = reserved + busy + ending;
            (free + leased + quarantined != declared).then(|| {
                format!(
                    "class {class}: {free} free + {leased} leased + {quarantined} quarantined slots are not the \
                     {declared} declared ones"
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

    const CLASSES: [(ExecutorClass, u32); 3] =
        [(ExecutorClass::AlwaysOnTest, 3), (ExecutorClass::AlwaysOnGpu24gb, 1), (ExecutorClass::SpinUp4minGpu24gb, 0)];

    fn left(what: &'static str) -> Quarantine {
        Quarantine { what, reason: format!("the {what} is busy") }
    }

    #[test]
    fn random_use_never_overcommits_and_never_leaks() {
        let seed = Rng::from_entropy().next_u64();
        println!("seed {seed}");
        let mut rng = Rng::new(seed);
        let mut pool = ExecutorPool::new(CLASSES);
        let mut now = Instant::now();
        let mut leases: Vec<Lease> = Vec::new();
        let (mut refused, mut overdue, mut reserved, mut returned) = (0, 0, 0, 0);
        for step in 0..20_000 {
            let pick = |rng: &mut Rng, of: usize| (rng.next_u64() % of as u64) as usize;
            match pick(&mut rng, 7) {
                0 | 1 => {
                    let (class, declared) = CLASSES[pick(&mut rng, 3)];
                    let held = leases.iter().filter(|lease| lease.slot().class() == class).count();
                    match pool.reserve(class, now + Duration::from_secs(5)) {
                        Ok(lease) => {
                            assert!(held < declared as usize, "over-committed at step {step}, seed {seed}");
                            reserved += 1;
                            leases.push(lease);
                        }
                        Err(busy) => {
                            assert_eq!(held, declared as usize, "refused without need at step {step}, seed {seed}");
                            assert_eq!(busy.counts, pool.counts(class));
                            refused += 1;
                        }
                    }
                }
                _ if leases.is_empty() => {}
                2 if step % 3 == 0 => {
                    pool.postpone(leases[pick(&mut rng, leases.len())].slot(), Duration::from_secs(1));
                }
                2 => pool.ready(leases[pick(&mut rng, leases.len())].slot()),
                3 => pool.ending(leases[pick(&mut rng, leases.len())].slot(), now + Duration::from_secs(2)),
                4 => {
                    let class = leases.swap_remove(pick(&mut rng, leases.len())).slot().class();
                    assert_eq!(pool.take_back(), [class], "step {step}, seed {seed}");
                    returned += 1;
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
        }
        let happened = [refused, overdue, reserved, returned];
        assert!(happened.iter().all(|count| *count > 0), "{happened:?}, seed {seed}");
        leases.clear();
        pool.take_back();
        for (class, declared) in CLASSES {
            assert_eq!(pool.counts(class).free, declared as usize, "leaked, seed {seed}");
        }
    }

    #[test]
    fn a_slot_comes_back_once_in_whatever_way_its_lease_is_lost() {
        let class = ExecutorClass::AlwaysOnGpu24gb;
        let mut pool = ExecutorPool::new(CLASSES);
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
            let lease = pool.reserve(class, Instant::now()).unwrap();
            let slot = lease.slot();
            assert_eq!((pool.take_back(), pool.counts(class).free), (vec![], 0), "it is held");
            lose(lease);
            assert_eq!((pool.take_back(), pool.counts(class).free), (vec![class], 1));
            // What is still said of a slot that is back concerns nobody.
            pool.quarantine(slot, left("folder"));
            assert_eq!((pool.take_back(), pool.counts(class).free, pool.breach()), (vec![], 1, None));
        }
    }

    #[test]
    fn a_slot_in_quarantine_leaves_the_manifest_until_its_lease_is_dropped() {
        let class = ExecutorClass::AlwaysOnGpu24gb;
        let mut pool = ExecutorPool::new(CLASSES);
        let now = Instant::now();
        let lease = pool.reserve(class, now).unwrap();
        assert!(pool.has_expired(lease.slot(), now));
        pool.ending(lease.slot(), now);
        assert_eq!(pool.next_deadline(), Some(now));
        assert_eq!(pool.overdue(now), [lease.slot()]);
        pool.quarantine(lease.slot(), left("container"));
        assert_eq!((pool.overdue(now), pool.next_deadline()), (vec![], None));
        assert_eq!(pool.quarantined().collect::<Vec<_>>(), [(lease.slot(), &left("container"))]);
        let offered = |pool: &ExecutorPool| pool.manifest().find(|(c, _)| *c == class).unwrap().1;
        assert_eq!(offered(&pool), 0);
        let busy = pool.reserve(class, now).unwrap_err();
        assert_eq!(busy.to_string(), "all 1 executors of class always_on.gpu-24gb are taken (1 quarantined)");
        drop(lease);
        pool.take_back();
        assert_eq!(offered(&pool), 1);
    }

    #[test]
    fn a_breach_of_the_law_is_told_with_its_numbers() {
        let mut pool = ExecutorPool::new(CLASSES);
        let lease = pool.reserve(ExecutorClass::AlwaysOnTest, Instant::now()).unwrap();
        pool.quarantine(lease.slot(), left("folder"));
        pool.classes.entry(ExecutorClass::AlwaysOnTest).or_default().free += 1;
        let says = "class always_on.test: 3 free + 0 leased + 1 quarantined slots are not the 3 declared ones";
        assert_eq!(pool.breach().as_deref(), Some(says));
    }
}
