//! What remote control changes of a worker that runs. On the thread of remote control and on the timer's; nothing
//! blocks.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::core::{Core, stamps_of};
use super::held::Stage;
use super::outcome::Outcome;
use super::pool::Pool;
use super::rate::Rate;
use super::run::{CancelCause, Run};
use crate::base::lock::lock;
use crate::celery::message::TaskMessage;

impl Core {
    /// Whether a task was called off, by its id or by one of its stamps.
    pub(super) fn is_revoked(&self, message: &TaskMessage) -> bool {
        let now = Instant::now();
        if lock(&self.revoked).contains(&message.id, now) {
            return true;
        }
        let mut stamps = lock(&self.revoked_stamps);
        !stamps.is_empty() && stamps_of(message).iter().any(|stamp| stamps.contains(stamp, now))
    }

    /// Calls off tasks with one of these stamps: those that wait, those that come, and, if `terminate`, those that run.
    pub(super) fn revoke_stamped(self: &Arc<Self>, stamps: &[String], terminate: bool) {
        {
            let mut revoked = lock(&self.revoked_stamps);
            stamps.iter().for_each(|stamp| revoked.add(stamp, Instant::now()));
        }
        let held: Vec<_> = {
            let held = lock(&self.held);
            let stamped = held.iter().filter(|(_, entry)| {
                let message = entry.item.message.as_deref();
                message.is_some_and(|message| stamps_of(message).iter().any(|stamp| stamps.contains(stamp)))
            });
            stamped.map(|(tag, entry)| (tag.clone(), entry.stage, entry.item.run.clone())).collect()
        };
        self.call_off(held, terminate);
    }

    /// Calls off these messages, by their tags: those that have not begun, and, if `terminate`, those that run.
    pub(super) fn call_off(self: &Arc<Self>, held: Vec<(String, Stage, Option<Arc<Run>>)>, terminate: bool) {
        for (tag, stage, run) in held {
            match (stage, run) {
                (Stage::Scheduled | Stage::Waiting, _) => self.conclude(&tag, None, Outcome::Revoked("revoked")),
                (Stage::Running, Some(run)) if terminate => {
                    self.conclude(&tag, Some(&run), Outcome::Revoked("terminated"));
                    run.end(CancelCause::Revoked);
                }
                _ => {}
            }
        }
    }

    /// Another rate at which tasks of this name begin; those that wait count by it at once.
    pub(super) fn set_rate(self: &Arc<Self>, task: &str, rate: Option<Rate>) {
        lock(&self.limits).set_rate(task, rate, Instant::now());
        self.take_turns(task);
    }

    /// Lets those begin whose turn it is, and plans the next.
    fn take_turns(self: &Arc<Self>, task: &str) {
        loop {
            let next = {
                let mut limits = lock(&self.limits);
                let waits = |tag: &str| lock(&self.held).get(tag).is_some_and(|entry| entry.stage == Stage::Waiting);
                limits.take(task, Instant::now(), waits)
            };
            let Some(tag) = next else { break };
            let message = lock(&self.held).get(&tag).and_then(|entry| entry.item.message.clone());
            if let Some(message) = message {
                self.begin_run(&tag, &message);
            }
        }
        self.await_turn(task);
    }

    /// Plans when the next task of this name may begin, if one waits.
    pub(super) fn await_turn(self: &Arc<Self>, task: &str) {
        let Some(at) = lock(&self.limits).next(task, Instant::now()) else { return };
        let name = task.to_owned();
        let alarm = self.at(at, move |core| core.take_turns(&name));
        let old = lock(&self.turns).insert(task.to_owned(), alarm);
        drop(old);
    }

    /// Takes from these queues from now on. What it holds of others it keeps.
    pub(super) fn change_queues(&self, change: impl FnOnce(&mut Vec<String>)) {
        change(&mut lock(&self.queues));
        self.wake.raise();
    }

    /// Runs so many tasks at a time from now on.
    pub(super) fn resize(&self, pool: &Pool, size: usize) {
        self.concurrency.store(size, Ordering::SeqCst);
        lock(&self.held).set_prefetch(self.config.prefetch_of(size));
        pool.resize(size);
        self.room_made();
    }
}
