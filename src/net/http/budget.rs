//! What all requests of a server share: so much in all, of which each has a part until its answer is sent.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use crate::base::lock::lock;

/// So much of something; clones are the same.
#[derive(Debug, Clone)]
pub(super) struct Budget(Arc<AtomicUsize>);

/// A part of a budget, which is given back when this is dropped.
#[derive(Debug)]
pub(super) struct Charge {
    budget: Budget,
    amount: usize,
}

impl Budget {
    /// With so much in it.
    pub(super) fn new(amount: usize) -> Self {
        Self(Arc::new(AtomicUsize::new(amount)))
    }

    /// A part of it, unless there is less.
    pub(super) fn take(&self, amount: usize) -> Option<Charge> {
        self.subtract(amount).then(|| Charge { budget: self.clone(), amount })
    }

    /// What nobody has.
    #[cfg(test)]
    fn left(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    fn subtract(&self, amount: usize) -> bool {
        let less = |left: usize| left.checked_sub(amount);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok()
    }
}

impl Charge {
    /// So much more; `false`, and nothing changes, if there is less.
    pub(super) fn grow(&mut self, amount: usize) -> bool {
        let grown = self.budget.subtract(amount);
        if grown {
            self.amount += amount;
        }
        grown
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.budget.0.fetch_add(self.amount, Ordering::Relaxed);
    }
}

/// Places, of which one who asks may have half, rounded up; clones are the same. It knows those who have one, so no
/// more than there are places.
#[derive(Debug)]
pub(super) struct Shares<K>(Arc<Shared<K>>);

#[derive(Debug)]
struct Shared<K> {
    total: usize,
    taken: Mutex<Taken<K>>,
}

#[derive(Debug)]
struct Taken<K> {
    all: usize,
    of: HashMap<K, usize>,
}

/// A place, which is given back when this is dropped.
#[derive(Debug)]
pub(super) struct Share<K: Eq + Hash> {
    shares: Shares<K>,
    who: K,
}

impl<K: Eq + Hash + Clone> Shares<K> {
    /// So many places.
    pub(super) fn new(total: usize) -> Self {
        Self(Arc::new(Shared { total, taken: Mutex::new(Taken { all: 0, of: HashMap::new() }) }))
    }

    /// A place, unless all are taken, or `who` has as many as one may.
    pub(super) fn take(&self, who: K) -> Option<Share<K>> {
        let Shared { total, taken } = &*self.0;
        let mut taken = lock(taken);
        let has = taken.of.get(&who).copied().unwrap_or(0);
        if taken.all >= *total || has >= total.div_ceil(2) {
            return None;
        }
        taken.all += 1;
        taken.of.insert(who.clone(), has + 1);
        Some(Share { shares: Self(self.0.clone()), who })
    }
}

impl<K: Eq + Hash> Drop for Share<K> {
    fn drop(&mut self) {
        let mut taken = lock(&self.shares.0.taken);
        taken.all -= 1;
        if let Some(has) = taken.of.get_mut(&self.who) {
            *has -= 1;
            if *has == 0 {
                taken.of.remove(&self.who);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_has_half_of_the_places_and_all_come_back() {
        let places = Shares::new(5);
        let mut first: Vec<_> = (0..3).map(|_| places.take("a").unwrap()).collect();
        assert!(places.take("a").is_none());
        let second = [places.take("b").unwrap(), places.take("b").unwrap()];
        assert!(places.take("b").is_none() && places.take("c").is_none(), "all are taken");
        first.pop();
        let third = places.take("c").unwrap();
        drop((first, second, third));
        let taken = lock(&places.0.taken);
        assert_eq!((taken.all, taken.of.len()), (0, 0));
        assert!(Shares::new(1).take("a").is_some());
    }

    #[test]
    fn no_more_is_taken_than_there_is_and_all_comes_back() {
        let budget = Budget::new(10);
        let mut first = budget.take(4).unwrap();
        assert!(first.grow(3) && !first.grow(4));
        assert!(budget.take(4).is_none());
        let second = budget.take(3).unwrap();
        assert_eq!(budget.left(), 0);
        drop(first);
        assert_eq!(budget.left(), 7);
        drop(second);
        assert_eq!(budget.left(), 10);
    }
}
