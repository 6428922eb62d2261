//! `crate::link` as the modelled file sees it.

#[path = "../../src/link/handover.rs"]
pub mod handover;

/// The outbox is pure and comes from the library as it is, but for one bug that can be planted.
pub mod outbox {
    use std::ops::{Deref, DerefMut};

    use crate::seed::Seed;
    use phalanx::link::outbox as real;
    pub use real::{Answered, Full, OutboxLimits, Outgoing};

    #[derive(Debug)]
    pub struct Outbox(real::Outbox);

    impl Outbox {
        pub fn new(limits: OutboxLimits) -> Self {
            Self(real::Outbox::new(limits))
        }

        pub fn rewind(&mut self) {
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
