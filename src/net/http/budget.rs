//! What all requests of a server share: so much in all, of which each has a part until its answer is sent.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

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

#[cfg(test)]
mod tests {
    use super::*;

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
