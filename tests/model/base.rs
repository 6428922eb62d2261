//! `crate::base` as the modelled files see it: their own neighbours, and other locks.

pub use phalanx::base::{backoff, ids, limits, rng, thread, waits};

#[path = "../../src/base/drained.rs"]
pub mod drained;
#[path = "../../src/base/lock.rs"]
pub mod lock;
#[path = "../../src/base/shutdown.rs"]
pub mod shutdown;
#[path = "sync.rs"]
pub mod sync;
