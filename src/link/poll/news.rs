//! What other threads tell the poll thread, which waits for sockets and not for a lock.
//!
//! Whoever tells something when nothing is told yet raises the event on which the poll thread waits; the others need no
//! system call. The poll thread lowers the event first and takes the news then, so nothing waits without an event.

use crate::base::lock::lock;
use crate::base::sync::Mutex;

/// What was told and not taken yet, with the event.
pub(crate) struct News<T, R> {
    state: Mutex<Told<T>>,
    raise: R,
}

struct Told<T> {
    news: T,
    /// The event was raised since the last taking.
    raised: bool,
}

impl<T: Default, R: Fn()> News<T, R> {
    /// Without news; `raise` ends the present wait of whoever takes them, or the next one.
    pub(crate) fn new(raise: R) -> Self {
        Self { state: Mutex::new(Told { news: T::default(), raised: false }), raise }
    }

    /// Tells something.
    pub(crate) fn tell(&self, tell: impl FnOnce(&mut T)) {
        let mut state = lock(&self.state);
        tell(&mut state.news);
        let first = !std::mem::replace(&mut state.raised, true);
        drop(state);
        if first {
            (self.raise)();
        }
    }

    /// All that was told since the last time. If the event was raised it must be lowered before, not after.
    pub(crate) fn take(&self) -> T {
        let mut state = lock(&self.state);
        state.raised = false;
        std::mem::take(&mut state.news)
    }
}
