//! The locks and channels of the parts that are explored under a controlled scheduler: `tests/model/` compiles those
//! very files against another module of this name, whose locks let it choose every interleaving.

pub use std::sync::atomic::{AtomicU8, Ordering};
pub use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError, Weak};

pub use crossbeam_channel::{Receiver, Sender, bounded};
