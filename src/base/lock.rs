//! Lock poisoning, handled once: a panicking holder has already been reported by its thread, so the data is taken as it is.

use std::time::Duration;

use super::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Locks `mutex`, also after a holder panicked.
///
/// Blocks only while another thread holds the lock; no code of this crate holds one across I/O or a channel operation.
pub fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits on `condition`, also after a holder panicked. Blocks until somebody notifies; look at the data in a loop.
pub fn wait<'a, T>(condition: &Condvar, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
    condition.wait(guard).unwrap_or_else(PoisonError::into_inner)
}

/// As [`wait`], for `duration` at most; tells nothing of why it returns.
pub fn wait_timeout<'a, T>(condition: &Condvar, guard: MutexGuard<'a, T>, duration: Duration) -> MutexGuard<'a, T> {
    condition.wait_timeout(guard, duration).unwrap_or_else(PoisonError::into_inner).0
}
