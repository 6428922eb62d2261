//! What stands for `base::sync` here: the same names and signatures on a scheduler that chooses who runs next.
//!
//! Time does not pass: a bounded wait ends only when it is notified. Every memory order is the strongest one. No
//! message is ever sent on a channel: the modelled files use channels only for their disconnection.

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::sync::{LockResult, TryLockResult};
use std::time::Duration;

use crossbeam_channel::{RecvError, TryRecvError};
use shuttle::rand::Rng as _;
pub use shuttle::sync::atomic::{AtomicU8, Ordering};
pub use shuttle::sync::{Arc, PoisonError, TryLockError, Weak};

use crate::seed::{Seed, is_quiet};

/// One wait in so many ends at once and for no reason, as real ones may.
const SPURIOUS_ONE_IN: u32 = 8;

#[derive(Debug)]
pub struct Mutex<T: ?Sized>(shuttle::sync::Mutex<T>);

/// Knows its mutex, so that a wait can let go of it and take it again.
pub struct MutexGuard<'a, T: ?Sized> {
    mutex: &'a Mutex<T>,
    held: shuttle::sync::MutexGuard<'a, T>,
}

impl<T> Mutex<T> {
    pub fn new(value: T) -> Self {
        Self(shuttle::sync::Mutex::new(value))
    }
}

impl<T: ?Sized> Mutex<T> {
    /// Never poisoned: a panic ends the whole model.
    pub fn lock(&self) -> LockResult<MutexGuard<'_, T>> {
        Ok(self.take())
    }

    /// Always waits for the lock, so that whoever tries is scheduled as one who takes it.
    pub fn try_lock(&self) -> TryLockResult<MutexGuard<'_, T>> {
        Ok(self.take())
    }

    fn take(&self) -> MutexGuard<'_, T> {
        let held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        MutexGuard { mutex: self, held }
    }
}

impl<T: ?Sized> Deref for MutexGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.held
    }
}

impl<T: ?Sized> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.held
    }
}

#[derive(Debug)]
pub struct Condvar(shuttle::sync::Condvar);

impl Condvar {
    pub fn new() -> Self {
        Self(shuttle::sync::Condvar::new())
    }

    pub fn wait<'a, T>(&self, guard: MutexGuard<'a, T>) -> LockResult<MutexGuard<'a, T>> {
        Ok(self.sleep(guard))
    }

    pub fn wait_timeout<'a, T>(&self, guard: MutexGuard<'a, T>, _: Duration) -> LockResult<(MutexGuard<'a, T>, ())> {
        Ok((self.sleep(guard), ()))
    }

    fn sleep<'a, T>(&self, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        let MutexGuard { mutex, mut held } = guard;
        if shuttle::rand::thread_rng().gen_ratio(1, SPURIOUS_ONE_IN) {
            drop(held);
            return mutex.take();
        }
        if Seed::GapBeforeWait.is_planted() {
            drop(held);
            held = mutex.take().held;
        }
        let held = self.0.wait(held).unwrap_or_else(PoisonError::into_inner);
        MutexGuard { mutex, held }
    }

    pub fn notify_all(&self) {
        if !is_quiet() {
            self.0.notify_all();
        }
    }

    pub fn notify_one(&self) {
        if !is_quiet() {
            self.0.notify_one();
        }
    }
}

/// Whether the sender is gone, and who waits for that.
type Gate = (shuttle::sync::Mutex<bool>, shuttle::sync::Condvar);

#[derive(Debug)]
pub struct Sender<T>(Arc<Gate>, PhantomData<fn(T)>);

pub struct Receiver<T>(Arc<Gate>, PhantomData<fn() -> T>);

pub fn bounded<T>(_: usize) -> (Sender<T>, Receiver<T>) {
    let gate = Arc::new(Gate::default());
    (Sender(gate.clone(), PhantomData), Receiver(gate, PhantomData))
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.0.1.notify_all();
    }
}

impl<T> Receiver<T> {
    pub fn recv(&self) -> Result<T, RecvError> {
        let mut gone = self.0.0.lock().unwrap();
        while !*gone {
            gone = self.0.1.wait(gone).unwrap();
        }
        Err(RecvError)
    }

    pub fn try_recv(&self) -> Result<T, TryRecvError> {
        match *self.0.0.lock().unwrap() {
            true => Err(TryRecvError::Disconnected),
            false => Err(TryRecvError::Empty),
        }
    }
}
