//! `crate::link` as the modelled file sees it.

#[path = "../../src/link/handover.rs"]
pub mod handover;

#[path = "../../src/link/poll/news.rs"]
pub mod news;

#[path = "../../src/link/poll/runs.rs"]
pub mod runs;

/// The outbox is pure and comes from the library as it is, but for one bug that can be planted and for notes of what it
/// gives.
pub mod outbox {
    use std::cell::RefCell;
    use std::ops::{Deref, DerefMut};

    use crate::seed::Seed;
    use phalanx::link::outbox as real;
    pub use real::{About, Answered, Full, Kind, OutboxLimits, Outgoing};
    use tungstenite::Utf8Bytes;

    thread_local! {
        // All tasks of a model run on the thread of its test.
        static GIVEN: RefCell<Vec<Vec<u64>>> = const { RefCell::new(Vec::new()) };
    }

    /// The texts that the newest outbox gave, in order, for each connection.
    pub fn given() -> Vec<Vec<u64>> {
        GIVEN.with_borrow(Clone::clone)
    }

    #[derive(Debug)]
    pub struct Outbox(real::Outbox);

    impl Outbox {
        pub fn new(limits: OutboxLimits) -> Self {
            GIVEN.set(vec![Vec::new()]);
            Self(real::Outbox::new(limits))
        }

        pub fn next_to_write(&mut self) -> Option<Utf8Bytes> {
            let text = self.0.next_to_write()?;
            GIVEN.with_borrow_mut(|given| given.last_mut().unwrap().push(text.parse().unwrap()));
            Some(text)
        }

        pub fn rewind(&mut self) {
            GIVEN.with_borrow_mut(|given| given.push(Vec::new()));
            if !Seed::NoRewind.is_planted() {
                self.0.rewind();
            }
        }
    }

    impl Deref for Outbox {
        type Target = real::Outbox;
        fn deref(&self) -> &real::Outbox {
            &self.0
        }
    }

    impl DerefMut for Outbox {
        fn deref_mut(&mut self) -> &mut real::Outbox {
            &mut self.0
        }
    }
}
