//! Tells whoever waits that nothing is left to do.

use super::sync::{Receiver, Sender, bounded};

/// The waiters for "nothing is left". It lies inside the state that a lock guards, so that no waiter misses the moment.
#[derive(Debug, Default)]
pub struct Drained(Vec<Sender<()>>);

impl Drained {
    /// A receiver that disconnects with the next [`Drained::notify`]; it is disconnected already if `empty`.
    pub fn watch(&mut self, empty: bool) -> Receiver<()> {
        let (waiter, watched) = bounded(0);
        if !empty {
            self.0.push(waiter);
        }
        watched
    }

    /// Nothing is left: disconnects all receivers given so far.
    pub fn notify(&mut self) {
        self.0.clear();
    }
}
