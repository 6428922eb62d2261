//! Lock poisoning, handled once: a panicking holder has already been reported by its thread, so the data is taken as it is.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks `mutex`, also after a holder panicked.
///
/// Blocks only while another thread holds the lock; no code of this crate holds one across I/O or a channel operation.
pub fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
