//! When a role stops by itself: after one job, when it has been idle, after a time. Each drains as a first signal does.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::supervise::Env;
use crate::base::lock::lock;
use crate::base::shutdown::Shutdown;
use crate::base::timer::{Alarm, TimerHandle};
use crate::ops::jobs::JobEvent;
use crate::ops::status::Board;

/// Why no other job is taken.
const ONE_JOB: &str = "to run one job only (--run-one-job)";

/// When to stop; never, unless something is set.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ending {
    /// After the first job that has run, however that has ended; while one is open no other is taken.
    pub one_job: bool,
    /// When no job was open for so long.
    pub idle: Option<Duration>,
    /// So long after the start.
    pub uptime: Option<Duration>,
}

/// The watch over a role's end, as long as the value lives.
#[derive(Debug, Default)]
#[must_use = "nothing ends by itself once this is dropped"]
pub struct EndingWatch {
    _uptime: Option<Alarm>,
    /// Armed while no job is open.
    idle: Arc<Mutex<Option<Alarm>>>,
}

impl Drop for EndingWatch {
    fn drop(&mut self) {
        let alarm = lock(&self.idle).take();
        drop(alarm);
    }
}

impl Ending {
    /// Begins to watch a role that has just been started, whose jobs are on this board.
    pub fn watch(self, env: &Env, board: &Board) -> EndingWatch {
        let Self { one_job, idle: idle_time, uptime } = self;
        let (timer, shutdown) = (env.timer.clone(), env.shutdown.clone());
        let uptime = uptime.and_then(|time| drain_after("--stop-after-uptime", time, &timer, &shutdown));
        let watch = EndingWatch { _uptime: uptime, idle: Arc::default() };
        if !one_job && idle_time.is_none() {
            return watch;
        }
        let (pause, slot) = (board.pause.clone(), Arc::downgrade(&watch.idle));
        let rest = move |is_idle: bool| {
            let Some((slot, time)) = slot.upgrade().zip(idle_time) else { return };
            let alarm = is_idle.then(|| drain_after("--stop-when-idle", time, &timer, &shutdown)).flatten();
            let old = std::mem::replace(&mut *lock(&slot), alarm);
            drop(old);
        };
        rest(board.jobs.open() == 0);
        let shutdown = env.shutdown.clone();
        board.jobs.watch(move |event| match event {
            JobEvent::Begun => {
                rest(false);
                if one_job {
                    pause.close(Some(ONE_JOB));
                }
            }
            JobEvent::Ended { ran: true, .. } if one_job => {
                log::info!("--run-one-job: it has ended, finishing what is left");
                shutdown.drain();
            }
            JobEvent::Ended { open: 0, .. } => {
                rest(true);
                // None has run, so the next is the one.
                pause.close(None);
            }
            JobEvent::Ended { .. } => {}
        });
        watch
    }
}

/// Drains in so long; `None` if that is never.
fn drain_after(flag: &'static str, time: Duration, timer: &TimerHandle, shutdown: &Shutdown) -> Option<Alarm> {
    let (at, shutdown) = (timer.clock().now().checked_add(time)?, shutdown.clone());
    Some(timer.at(at, move || {
        log::info!("{flag} {time:?} is over: finishing what runs");
        shutdown.drain();
    }))
}
