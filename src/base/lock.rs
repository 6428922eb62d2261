//! Lock poisoning, handled once: a panicking holder has already been reported by its thread, so the data is taken as it
//! is.

use std::time::{Duration, Instant};

use super::limits::LOCK_TIME;
use super::sync::{Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use super::waits::waiting;

/// Tries before a wait is marked, because the mark costs more than most waits for a lock.
const SPINS: usize = 16;

/// Locks `mutex`, also after a holder panicked.
///
/// Blocks only while another thread holds the lock; no code of this crate holds one across I/O or a channel operation.
/// Who has to wait says so, with [`LOCK_TIME`] as its deadline: a lock that is held too long shows on those who want
/// it.
#[inline]
pub fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    match mutex.try_lock() {
        Ok(guard) => guard,
        Err(TryLockError::Poisoned(guard)) => guard.into_inner(),
        Err(TryLockError::WouldBlock) => lock_contended(mutex),
    }
}

#[cold]
fn lock_contended<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    for _ in 0..SPINS {
        std::hint::spin_loop();
        match mutex.try_lock() {
            Ok(guard) => return guard,
            Err(TryLockError::Poisoned(guard)) => return guard.into_inner(),
            Err(TryLockError::WouldBlock) => {}
        }
    }
    let _waiting = waiting("a lock", Instant::now().checked_add(LOCK_TIME));
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
