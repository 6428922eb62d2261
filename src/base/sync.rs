//! The locks of the parts that are explored under a controlled scheduler: `tests/model.rs` compiles those very files
//! against another module of this name, whose locks let it choose every interleaving.

pub use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
