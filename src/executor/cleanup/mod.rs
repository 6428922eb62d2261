//! What is undone of a job when it is over, or when its thread has panicked: container, network, the operator's program
//! after the job, folder; the last that was made first. Each step has a time of its own, and one that fails or does not
//! end has its line in the log and keeps no other from being done.
//!
//! Owner of the thread `exec-clean`, one for each step: whoever undoes it. Blocks in: what the step waits for: the
//! engine, a program, the disk. Kick: its stop signal. Ends: with the step; one that does not end is left behind.

mod order;

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use self::order::Order;
pub use self::order::Ticket;
use crate::base::lock::lock;
use crate::base::shutdown::Shutdown;
use crate::base::stop::Stopping;
use crate::base::thread::{Kick, spawn};
use crate::ops::errors::{ErrorClass, ErrorHandler};

/// How long a step may take beyond its time, which it keeps itself unless it hangs: a tool is ended within that.
const END_TIME: Duration = Duration::from_secs(1);

/// Where a step that fails is reported.
const PLACE: &str = "clean-up";

/// Undoes something, until its signal or the time; what it says if it cannot.
type Undo = Box<dyn FnOnce(&Shutdown, Instant) -> Result<(), String> + Send>;

struct Step {
    name: &'static str,
    time: Duration,
    undo: Undo,
}

/// The steps of one job, for whoever makes something for it. Dropping the last copy undoes what is left.
#[derive(Clone)]
pub struct Cleanup(Arc<Steps>);

struct Steps {
    order: Mutex<Order<Step>>,
    /// Its cancel shortens what is left.
    shutdown: Shutdown,
    errors: ErrorHandler,
}

impl Default for Cleanup {
    /// One that no signal shortens.
    fn default() -> Self {
        Self::new(&Shutdown::new(), &ErrorHandler::default())
    }
}

impl fmt::Debug for Cleanup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cleanup").finish_non_exhaustive()
    }
}

impl Cleanup {
    /// No step yet. A cancel of `shutdown` leaves each step the time that a cancelled stop has; `errors` is told of
    /// one that fails.
    pub fn new(shutdown: &Shutdown, errors: &ErrorHandler) -> Self {
        let (shutdown, errors) = (shutdown.clone(), errors.clone());
        Self(Arc::new(Steps { order: Mutex::new(Order::new()), shutdown, errors }))
    }

    /// From now on there is something to be undone, within `time`. To be called before the thing is made where that is
    /// possible, so that nothing lies between.
    pub fn push(
        &self,
        name: &'static str,
        time: Duration,
        undo: impl FnOnce(&Shutdown, Instant) -> Result<(), String> + Send + 'static,
    ) -> Ticket {
        lock(&self.0.order).push(Step { name, time, undo: Box::new(undo) })
    }

    /// Undoes it now, after what was made later. Blocks until then, at most for the times of the steps.
    pub fn undo(&self, step: Ticket) {
        self.0.undo(Some(step));
    }

    /// Undoes all that is left.
    pub fn undo_all(&self) {
        self.0.undo(None);
    }
}

impl Steps {
    fn undo(&self, last: Option<Ticket>) {
        let mut stopping = Stopping::new(&self.shutdown);
        let next = || lock(&self.order).pop(last);
        while let Some(Step { name, time, undo }) = next() {
            let done = stopping.step(name, time + END_TIME, |bounds| {
                let deadline = bounds.deadline() - END_TIME;
                let stop = Shutdown::new();
                let kicked = stop.clone();
                let kick = Kick::new("its stop signal", move || kicked.cancel());
                bounds.join(spawn("exec-clean", kick, move || undo(&stop, deadline)))
            });
            match done {
                Some(Ok(())) => {}
                Some(Err(why)) => self.errors.report(ErrorClass::Rejected, PLACE, &format_args!("{name}: {why}")),
                None => {
                    let why = format_args!("{name}: it panicked, or did not end within {time:?} and its kick");
                    self.errors.report(ErrorClass::Fatal, PLACE, &why);
                }
            }
        }
    }
}

impl Drop for Steps {
    fn drop(&mut self) {
        self.undo(None);
    }
}

#[cfg(test)]
mod tests {
    use crossbeam_channel::bounded;

    use super::*;
    use crate::base::wait::far;

    /// Steps that note their names, each of its own kind.
    #[test]
    fn a_step_that_fails_panics_or_hangs_keeps_no_other_from_being_done() {
        for cancelled in [false, true] {
            let shutdown = Shutdown::new();
            if cancelled {
                shutdown.cancel();
            }
            let cleanup = Cleanup::new(&shutdown, &ErrorHandler::default());
            let (done, names) = bounded(10);
            let note = |name: &'static str, end: fn(&Shutdown, Instant) -> Result<(), String>| {
                let done = done.clone();
                cleanup.push(name, Duration::from_millis(300), move |stop, deadline| {
                    done.send(name).unwrap();
                    end(stop, deadline)
                })
            };
            note("folder", |_, _| Ok(()));
            note("fails", |_, _| Err("no".to_owned()));
            // As a program that is ended at its deadline.
            note("late", |stop, deadline| match stop.wait(deadline.saturating_duration_since(Instant::now())) {
                true => Err("cancelled".to_owned()),
                false => Err("late".to_owned()),
            });
            let (hold, held) = bounded::<()>(0);
            let hang = held.clone();
            let hangs = done.clone();
            // As a call that nothing interrupts.
            let stuck = cleanup.push("hangs", Duration::from_millis(300), move |_, _| {
                hangs.send("hangs").unwrap();
                hang.recv().map_err(|error| error.to_string())
            });
            note("panics", |_, _| panic!("a step that panics"));
            let began = Instant::now();
            cleanup.undo(stuck);
            assert_eq!(names.try_iter().collect::<Vec<_>>(), ["panics", "hangs"]);
            cleanup.undo_all();
            assert_eq!(names.try_iter().collect::<Vec<_>>(), ["late", "fails", "folder"]);
            assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
            drop(hold);
        }
    }

    #[test]
    fn what_is_left_is_undone_when_nobody_holds_the_steps_any_more() {
        let (done, names) = bounded(10);
        let cleanup = Cleanup::default();
        let worker = cleanup.clone();
        let working = spawn("t-work", Kick::dropped("nothing"), move || {
            for name in ["folder", "container"] {
                let done = done.clone();
                worker.push(name, Duration::from_secs(60), move |_, _| done.send(name).map_err(|e| e.to_string()));
            }
            panic!("a worker that panics");
        });
        assert!(working.join_by(far()).is_err());
        assert!(names.is_empty());
        drop(cleanup);
        assert_eq!(names.try_iter().collect::<Vec<_>>(), ["container", "folder"]);
    }
}
