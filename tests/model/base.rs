//! `crate::base` as the modelled files see it: their own neighbours, and other locks.

pub use phalanx::base::{ids, limits, rng, waits};

#[path = "../../src/base/lock.rs"]
pub mod lock;
#[path = "../../src/base/shutdown.rs"]
pub mod shutdown;
#[path = "sync.rs"]
pub mod sync;
