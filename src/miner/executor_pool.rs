//! How many executors of each class there are and what each is doing. Pure: `now` is an argument.
//!
//! A slot goes from free to reserved to busy to ending and back to free. It is taken by exactly one lease and comes
//! back exactly once: [`ExecutorPool::released`] needs the lease by value. A slot whose executor does not end when it
//! is stopped is quarantined, which the counts and the manifest show, until it has ended after all. At any time `free +
//! reserved + busy + ending + quarantined = declared`, per class.

use std::collections::BTreeMap;
use std::time::Instant;

use crate::protocol::ExecutorClass;

/// The right to one slot; not clonable, so that a slot is given back once.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a lease that is lost keeps its slot for ever"]
pub struct Lease {
    class: ExecutorClass,
    number: u64,
}

impl Lease {
    /// The class of the slot.
    pub fn class(&self) -> ExecutorClass {
        self.class
    }
}

/// What the slot of a lease is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use {
    /// An executor is being started; it has to be ready by then.
    Reserved(Instant),
    /// The executor is ready, or at work.
    Busy,
    /// The job is over, the executor is not; it has to be gone by then.
    Ending(Instant),
    /// The executor did not end in time.
    Quarantined,
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
    /// Their executor did not end when it was stopped.
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
    declared: BTreeMap<ExecutorClass, usize>,
    used: BTreeMap<u64, (ExecutorClass, Use)>,
    next: u64,
}

impl ExecutorPool {
    /// A pool with all slots free; numbers for the same class add up.
    pub fn new(executors: impl IntoIterator<Item = (ExecutorClass, u32)>) -> Self {
        let mut declared = BTreeMap::new();
        for (class, count) in executors {
            *declared.entry(class).or_insert(0) += count as usize;
        }
        Self { declared, ..Self::default() }
    }

    /// The classes on offer and how many executors of each: all but those in quarantine, busy or not.
    pub fn manifest(&self) -> impl Iterator<Item = (ExecutorClass, usize)> + '_ {
        self.declared.keys().map(|class| {
            let counts = self.counts(*class);
            (*class, counts.declared - counts.quarantined)
        })
    }

    /// How the slots of one class are used.
    pub fn counts(&self, class: ExecutorClass) -> SlotCounts {
        let mut counts = SlotCounts::default();
        for (_, used) in self.used.values().filter(|(of, _)| *of == class) {
            match used {
                Use::Reserved(_) => counts.reserved += 1,
                Use::Busy => counts.busy += 1,
                Use::Ending(_) => counts.ending += 1,
                Use::Quarantined => counts.quarantined += 1,
            }
        }
        counts.declared = self.declared.get(&class).copied().unwrap_or(0);
        counts.free = counts.declared - (counts.reserved + counts.busy + counts.ending + counts.quarantined);
        counts
    }

    /// Takes a free slot; its executor has to be ready by `ready_by`.
    ///
    /// # Errors
    /// [`Busy`], if no slot of the class is free.
    pub fn reserve(&mut self, class: ExecutorClass, ready_by: Instant) -> Result<Lease, Busy> {
        let counts = self.counts(class);
        if counts.free == 0 {
            return Err(Busy { class, counts });
        }
        let number = self.next;
        self.next += 1;
        self.used.insert(number, (class, Use::Reserved(ready_by)));
        Ok(Lease { class, number })
    }

    /// The executor is ready: the reservation no longer expires.
    pub fn ready(&mut self, lease: &Lease) {
        self.set(lease, Use::Busy);
    }

    /// The job is over; its executor has to be gone by `gone_by`.
    pub fn ending(&mut self, lease: &Lease, gone_by: Instant) {
        self.set(lease, Use::Ending(gone_by));
    }

    /// The executor is gone: the slot is free again.
    pub fn released(&mut self, lease: Lease) {
        let used = self.used.remove(&lease.number);
        debug_assert!(used.is_some(), "a lease exists only while its slot is used");
    }

    /// Whether the reservation behind the lease has expired.
    pub fn has_expired(&self, lease: &Lease, now: Instant) -> bool {
        matches!(self.used.get(&lease.number), Some((_, Use::Reserved(ready_by))) if *ready_by <= now)
    }

    /// Puts slots in quarantine whose executor should be gone by now, and says how many of which class.
    pub fn quarantine_overdue(&mut self, now: Instant) -> Vec<ExecutorClass> {
        let mut classes = Vec::new();
        for (class, used) in self.used.values_mut() {
            if matches!(used, Use::Ending(gone_by) if *gone_by <= now) {
                *used = Use::Quarantined;
                classes.push(*class);
            }
        }
        classes
    }

    /// When to look again at what expires or is overdue.
    pub fn next_deadline(&self) -> Option<Instant> {
        let deadlines = self.used.values().filter_map(|(_, used)| match used {
            Use::Reserved(at) | Use::Ending(at) => Some(*at),
            Use::Busy | Use::Quarantined => None,
        });
        deadlines.min()
    }

    fn set(&mut self, lease: &Lease, to: Use) {
        let slot = self.used.get_mut(&lease.number).expect("a lease exists only while its slot is used");
        slot.1 = to;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::rng::Rng;
    use std::time::Duration;

    const CLASSES: [(ExecutorClass, u32); 3] =
        [(ExecutorClass::AlwaysOnTest, 3), (ExecutorClass::AlwaysOnGpu24gb, 1), (ExecutorClass::SpinUp4minGpu24gb, 0)];

    fn balanced(counts: SlotCounts) -> bool {
        counts.free + counts.reserved + counts.busy + counts.ending + counts.quarantined == counts.declared
    }

    #[test]
    fn random_use_never_overcommits_and_never_leaks() {
        let seed = Rng::from_entropy().next_u64();
        println!("seed {seed}");
        let mut rng = Rng::new(seed);
        let mut pool = ExecutorPool::new(CLASSES);
        let mut now = Instant::now();
        let mut leases: Vec<Lease> = Vec::new();
        let (mut refused, mut quarantined, mut reserved) = (0, 0, 0);
        for step in 0..20_000 {
            let pick = |rng: &mut Rng, of: usize| (rng.next_u64() % of as u64) as usize;
            match pick(&mut rng, 6) {
                0 | 1 => {
                    let (class, declared) = CLASSES[pick(&mut rng, 3)];
                    let held = leases.iter().filter(|lease| lease.class() == class).count();
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
                2 => pool.ready(&leases[pick(&mut rng, leases.len())]),
                3 => pool.ending(&leases[pick(&mut rng, leases.len())], now + Duration::from_secs(2)),
                4 => {
                    let lease = leases.swap_remove(pick(&mut rng, leases.len()));
                    pool.released(lease);
                }
                _ => {
                    now += Duration::from_secs(1);
                    quarantined += pool.quarantine_overdue(now).len();
                    assert!(leases.iter().filter(|lease| pool.has_expired(lease, now)).count() <= leases.len());
                }
            }
            for (class, _) in CLASSES {
                assert!(balanced(pool.counts(class)), "{:?} at step {step}, seed {seed}", pool.counts(class));
            }
        }
        assert!(refused > 0 && quarantined > 0 && reserved > 0, "{refused} {quarantined} {reserved}, seed {seed}");
        leases.into_iter().for_each(|lease| pool.released(lease));
        for (class, declared) in CLASSES {
            assert_eq!(pool.counts(class).free, declared as usize, "leaked, seed {seed}");
        }
    }

    #[test]
    fn a_slot_in_quarantine_leaves_the_manifest_until_its_executor_is_gone() {
        let mut pool = ExecutorPool::new(CLASSES);
        let now = Instant::now();
        let lease = pool.reserve(ExecutorClass::AlwaysOnGpu24gb, now).unwrap();
        assert!(pool.has_expired(&lease, now));
        pool.ending(&lease, now);
        assert_eq!(pool.next_deadline(), Some(now));
        assert_eq!(pool.quarantine_overdue(now), [ExecutorClass::AlwaysOnGpu24gb]);
        assert_eq!(pool.quarantine_overdue(now), []);
        let offered =
            |pool: &ExecutorPool| pool.manifest().find(|(c, _)| *c == ExecutorClass::AlwaysOnGpu24gb).unwrap().1;
        assert_eq!(offered(&pool), 0);
        let busy = pool.reserve(ExecutorClass::AlwaysOnGpu24gb, now).unwrap_err();
        assert_eq!(busy.to_string(), "all 1 executors of class always_on.gpu-24gb are taken (1 quarantined)");
        pool.released(lease);
        assert_eq!(offered(&pool), 1);
    }
}
