//! What many ask for at the same time is made once, or twice.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use crate::base::lock::lock;

/// A value that is made when somebody asks, for all who ask meanwhile.
#[derive(Debug)]
pub(super) struct Latest<T>(Mutex<Option<(Instant, Arc<T>)>>);

impl<T> Latest<T> {
    /// Not made yet.
    pub(super) fn new() -> Self {
        Self(Mutex::new(None))
    }

    /// A value whose making began after this call: nobody gets an old one. Of many who come while one is being made,
    /// the first makes the next, and the others have that. `make` must not block.
    pub(super) fn get(&self, make: impl FnOnce() -> T) -> Arc<T> {
        self.since(Instant::now(), make)
    }

    fn since(&self, asked: Instant, make: impl FnOnce() -> T) -> Arc<T> {
        let mut latest = lock(&self.0);
        match &*latest {
            Some((begun, value)) if *begun > asked => value.clone(),
            _ => {
                let begun = Instant::now();
                // The old one goes first, so that there are not two.
                *latest = None;
                let value = Arc::new(make());
                *latest = Some((begun, value.clone()));
                value
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asked_before_one_was_begun_has_that_and_who_comes_later_has_a_new_one() {
        let (latest, mut made) = (Latest::new(), 0);
        let before = Instant::now();
        let mut get = |asked| {
            let value = latest.since(asked, || {
                made += 1;
                made
            });
            *value
        };
        // The first, and those who waited while it was made.
        assert_eq!([get(before), get(before), get(before)], [1, 1, 1]);
        let later = Instant::now();
        assert_eq!([get(later), get(before), get(later)], [2, 2, 2]);
        assert_eq!(get(Instant::now()), 3);
    }
}
