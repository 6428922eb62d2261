//! Counts of threads that sleep on one condition, so that none is woken twice before it knows. Pure.

/// Threads that sleep on one condition.
#[derive(Debug, Default)]
pub(super) struct Sleepers {
    pub(super) asleep: usize,
    /// Those that were notified and have not run since.
    pub(super) woken: usize,
}

impl Sleepers {
    /// Whether there is one to notify; it counts as woken from now on.
    pub(super) fn wake_one(&mut self) -> bool {
        let any = self.asleep > 0;
        if any {
            self.asleep -= 1;
            self.woken += 1;
        }
        any
    }

    /// The caller has slept; if nobody was woken, it woke by itself.
    pub(super) fn has_slept(&mut self) {
        match self.woken.checked_sub(1) {
            Some(woken) => self.woken = woken,
            None => self.asleep -= 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_sleeper_is_woken_once_and_may_wake_by_itself() {
        let mut sleepers = Sleepers { asleep: 2, woken: 0 };
        assert!(sleepers.wake_one());
        assert_eq!((sleepers.asleep, sleepers.woken), (1, 1));
        sleepers.has_slept();
        // The other wakes without a notice.
        sleepers.has_slept();
        assert_eq!((sleepers.asleep, sleepers.woken), (0, 0));
        assert!(!sleepers.wake_one());
    }
}
