//! How much of jobs may be in memory for all answers together, and for those of one user: a job is read when there is
//! room for it.
//!
//! Who waits is served in the order of coming, but for users who have their share: nobody waits for those.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, bounded, select};

use crate::base::lock::lock;
use crate::base::shutdown::Shutdown;
use crate::base::waits::waiting;

/// Bytes of jobs in memory: three of the largest, which have 33 MiB, or a hundred with a message of the largest size.
const BYTES: u64 = 128 << 20;

/// Bytes of them for one user's answers.
const USER_BYTES: u64 = BYTES / 2;

/// How long an answer waits for room: a client that takes its answer slowly is held to a pace, so room comes.
const WAIT: Duration = Duration::from_secs(60);

/// The count; clones are the same.
#[derive(Debug, Clone, Default)]
pub(crate) struct Budget(Arc<Mutex<Held>>);

#[derive(Debug, Default)]
struct Held {
    bytes: u64,
    of_users: HashMap<String, u64>,
    waiters: VecDeque<Waiter>,
    next: u64,
}

#[derive(Debug)]
struct Waiter {
    id: u64,
    user: String,
    bytes: u64,
    go: Sender<()>,
}

/// Room for a job; dropping it gives it back.
#[derive(Debug)]
pub(super) struct Room {
    budget: Budget,
    user: String,
    bytes: u64,
}

impl Held {
    /// Whether there is room, at least for one job; `None` if the user has the share of one.
    fn fits(&self, user: &str, bytes: u64) -> Option<bool> {
        let own = self.of_users.get(user).copied().unwrap_or(0);
        (own == 0 || own + bytes <= USER_BYTES).then_some(self.bytes == 0 || self.bytes + bytes <= BYTES)
    }

    fn take(&mut self, user: &str, bytes: u64) {
        self.bytes += bytes;
        *self.of_users.entry(user.to_owned()).or_default() += bytes;
    }

    fn give_back(&mut self, user: &str, bytes: u64) {
        self.bytes -= bytes;
        if let Some(own) = self.of_users.get_mut(user) {
            *own -= bytes;
            if *own == 0 {
                self.of_users.remove(user);
            }
        }
        self.let_go();
    }

    /// Lets those go on for whom there is room.
    fn let_go(&mut self) {
        let mut at = 0;
        while let Some(Waiter { user, bytes, .. }) = self.waiters.get(at) {
            match self.fits(user, *bytes) {
                None => at += 1,
                Some(false) => return,
                Some(true) => {
                    let waiter = self.waiters.remove(at).expect("it is there");
                    self.take(&waiter.user, waiter.bytes);
                    // It has room for one; who waits no more gives back what was taken.
                    let _ = waiter.go.try_send(());
                }
            }
        }
    }
}

impl Budget {
    /// Waits for room for a job of so many bytes. Blocks until others have sent theirs, at most a minute; `None` then,
    /// and if `stop` is cancelled.
    pub(super) fn room(&self, user: &str, bytes: u64, stop: &Shutdown) -> Option<Room> {
        // A job that counts nothing would not keep its user from having many.
        let bytes = bytes.max(1);
        let room = || Room { budget: self.clone(), user: user.to_owned(), bytes };
        let (go, may_go) = bounded(1);
        let mut held = lock(&self.0);
        if held.waiters.is_empty() && held.fits(user, bytes) == Some(true) {
            held.take(user, bytes);
            return Some(room());
        }
        let id = held.next;
        held.next += 1;
        held.waiters.push_back(Waiter { id, user: user.to_owned(), bytes, go });
        // Those before it may all have their share.
        held.let_go();
        drop(held);
        let deadline = Instant::now() + WAIT;
        let _waiting = waiting("room for a job in memory", Some(deadline));
        select! {
            recv(may_go) -> _ => {}
            recv(stop.cancel_receiver()) -> _ => {}
            default(WAIT) => {}
        }
        let mut held = lock(&self.0);
        match held.waiters.iter().position(|waiter| waiter.id == id) {
            Some(at) => {
                held.waiters.remove(at);
                held.let_go();
                None
            }
            None => Some(room()),
        }
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        lock(&self.budget.0).give_back(&self.user, self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::thread::{Kick, spawn};
    use crate::base::wait::{far, until};

    fn waiters(budget: &Budget) -> usize {
        lock(&budget.0).waiters.len()
    }

    #[test]
    fn who_has_a_share_waits_and_others_do_not_wait_for_that() {
        let (budget, stop) = (Budget::default(), Shutdown::new());
        let first = budget.room("a", USER_BYTES, &stop).unwrap();
        let (done, ended) = bounded(2);
        let ask = |user: &'static str, bytes| {
            let (budget, stop, done) = (budget.clone(), stop.clone(), done.clone());
            spawn("t-room", Kick::dropped("room"), move || {
                let room = budget.room(user, bytes, &stop);
                done.send(user).unwrap();
                drop(room);
            })
        };
        let second = ask("a", 1);
        until("it waits", || waiters(&budget) == 1);
        let other = ask("b", USER_BYTES);
        assert_eq!(ended.recv().unwrap(), "b", "it has a share of its own");
        drop(first);
        assert_eq!(ended.recv().unwrap(), "a");
        for thread in [second, other] {
            thread.join_by(far()).unwrap();
        }
        let held = lock(&budget.0);
        assert_eq!((held.bytes, held.of_users.len(), held.waiters.len()), (0, 0, 0));
    }

    #[test]
    fn one_job_of_any_size_has_room_and_a_stop_ends_the_wait() {
        let (budget, stop) = (Budget::default(), Shutdown::new());
        let large = budget.room("a", 2 * BYTES, &stop).unwrap();
        stop.cancel();
        assert!(budget.room("b", 1, &stop).is_none());
        assert_eq!(waiters(&budget), 0);
        drop(large);
        assert!(budget.room("b", 1, &stop).is_some());
    }
}
