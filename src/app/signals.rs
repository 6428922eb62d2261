//! One ladder for all signals: the first SIGINT or SIGTERM drains, the second cancels, the third exits now. SIGHUP
//! reloads.
//!
//! Owner: [`Signals`]. Blocks in: signal-hook's iterator. Kick: closing the iterator. Ends: with the process' stop.
//!
//! `ctrlc` takes SIGINT and is installed first; signal-hook takes the others and never SIGINT, because when ctrlc comes
//! second, signal-hook is never called again.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use signal_hook::consts::{SIGHUP, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::iterator::Signals as Iterator;

use super::flight::FlightFile;
use super::service_manager::ServiceManager;
use super::{exit, logging, stderr, thread_list};
use crate::base::lock::lock;
use crate::base::shutdown::Shutdown;
use crate::base::stop::{Step, StopReport, stop_alone};
use crate::base::thread::{Kick, Thread, spawn};
use crate::base::waits::waiting;

/// How long the third signal waits for lines that are still to be written.
const LAST_LINES: Duration = Duration::from_millis(50);

/// The signal handlers of the process.
#[derive(Debug)]
pub struct Signals {
    thread: Thread<()>,
}

/// What SIGHUP does; nothing until a role says so. Clones are the same.
#[derive(Clone, Default)]
pub struct Reload {
    actions: Arc<Mutex<Actions>>,
    manager: ServiceManager,
}

#[derive(Default)]
struct Actions {
    /// What the role does.
    role: Option<Action>,
    /// What goes before that.
    also: Vec<Action>,
}

type Action = Box<dyn Fn() + Send>;

impl std::fmt::Debug for Reload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Reload")
    }
}

impl Reload {
    /// The same, of which the service manager is told.
    pub(super) fn telling(manager: &ServiceManager) -> Self {
        Self { manager: manager.clone(), ..Self::default() }
    }

    /// From now on SIGHUP does this, on the thread of the signals: it may read a file, and must not wait for anything.
    pub fn set(&self, reload: impl Fn() + Send + 'static) {
        lock(&self.actions).role = Some(Box::new(reload));
    }

    /// From now on SIGHUP does this too, before what the role does.
    pub fn also(&self, reload: impl Fn() + Send + 'static) {
        lock(&self.actions).also.push(Box::new(reload));
    }

    fn run(&self) {
        let actions = lock(&self.actions);
        if actions.role.is_none() && actions.also.is_empty() {
            // Also in a command that logs warnings only: somebody has asked for it.
            logging::say(log::Level::Info, format_args!("SIGHUP: there is nothing to reload"));
        }
        // A manager that has asked for it waits for an answer, also where there is nothing.
        self.manager.reloading(|| actions.also.iter().chain(&actions.role).for_each(|reload| reload()));
    }
}

struct Ladder {
    shutdown: Shutdown,
    rung: AtomicU32,
}

impl Ladder {
    fn climb(&self, signal: &str) {
        match self.rung.fetch_add(1, Ordering::SeqCst) {
            0 => {
                log::info!("{signal}: finishing what runs; once more to cancel it");
                self.shutdown.drain();
            }
            1 => {
                log::info!("{signal}: cancelling what runs; once more to exit now");
                self.shutdown.cancel();
            }
            _ => now(),
        }
    }
}

/// Ends the process without a word of its own; lines that were logged before it have some milliseconds.
fn now() -> ! {
    stderr::flush(LAST_LINES);
    exit::at_once(exit::NOW)
}

impl Signals {
    /// Installs the handlers; once in a process.
    ///
    /// # Errors
    /// What the system or a handler installed before says, in words.
    pub fn install(shutdown: &Shutdown, reload: &Reload, flight: &FlightFile) -> Result<Self, String> {
        let ladder = Arc::new(Ladder { shutdown: shutdown.clone(), rung: AtomicU32::new(0) });
        let on_int = ladder.clone();
        ctrlc::set_handler(move || on_int.climb("SIGINT")).map_err(|e| format!("cannot handle SIGINT: {e}"))?;
        let mut signals = Iterator::new([SIGTERM, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2])
            .map_err(|e| format!("cannot handle signals: {e}"))?;
        let handle = signals.handle();
        let (reload, flight) = (reload.clone(), flight.clone());
        let thread = spawn("signals", Kick::new("close the iterator", move || handle.close()), move || {
            let mut signals = signals.forever();
            let mut next = || {
                let _waiting = waiting("a signal", None);
                signals.next()
            };
            while let Some(signal) = next() {
                match signal {
                    SIGTERM => ladder.climb("SIGTERM"),
                    SIGQUIT => now(),
                    SIGHUP => reload.run(),
                    SIGUSR2 => logging::switch_debug(),
                    _ => {
                        thread_list::say();
                        flight.write("SIGUSR1");
                    }
                }
            }
        });
        Ok(Self { thread })
    }

    /// Stops it alone, within `budget`, as [`Signals::stop_in`] does.
    pub fn stop(self, budget: Duration) -> StopReport {
        stop_alone("signals", budget, |step| self.stop_in(step))
    }

    /// Stops listening for signals other than SIGINT, whose handler stays until the process ends.
    pub fn stop_in(self, step: &mut Step) {
        self.thread.kick();
        step.join(self.thread);
    }
}
