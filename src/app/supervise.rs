//! Starts one role, waits for the signal, stops it in order, and turns the report into an exit code.
//!
//! Owner of the thread `watchdog`: [`stop_within`]. Blocks in: the end of the stop, with a limit. Kick: the drop of
//! `done`. Ends: with the stop; or it ends the process.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::bounded;

use super::flight::FlightFile;
use super::service_manager::ServiceManager;
use super::signals::{Reload, Signals};
use super::{exit, stderr};
use crate::base::shutdown::Shutdown;
use crate::base::stop::{StopReport, Stopping};
use crate::base::thread::{Kick, adopt, live, no_thread, on_panic, try_spawn};
use crate::base::timer::{Timer, TimerHandle};
use crate::base::waits::waiting;

/// What a role is started with.
#[derive(Debug, Clone)]
pub struct Env {
    /// The process' signal.
    pub shutdown: Shutdown,
    /// The process' timer.
    pub timer: TimerHandle,
    /// What SIGHUP does.
    pub reload: Reload,
    /// Where the flight recorder is written.
    pub flight: FlightFile,
    /// The service manager, if one has started the process as a service.
    pub manager: ServiceManager,
}

/// Beyond the budgets of the steps: what the watchdog allows for joins after kicks.
const WATCHDOG_GRACE: Duration = Duration::from_secs(5);
/// Budget of each closing step of the process itself: it only waits for threads whose stop was requested.
pub const CLOSING: Duration = Duration::from_secs(2);

/// Runs `main` between the start and the stop of what every command needs: signals and the timer.
///
/// `main` gets the environment and returns the exit code; it stops what it has started.
///
/// Where the system has no thread for something that cannot do without, whatever was started is stopped, and the exit
/// code is [`exit::FAILED`], with one line that says so.
pub fn with_env(main: impl FnOnce(&Env) -> ExitCode) -> ExitCode {
    with_env_of(&ServiceManager::default(), main)
}

fn with_env_of(manager: &ServiceManager, main: impl FnOnce(&Env) -> ExitCode) -> ExitCode {
    match no_thread(|| in_env(manager, main)) {
        Ok(code) => code,
        Err(none) => exit::failed(none),
    }
}

fn in_env(manager: &ServiceManager, main: impl FnOnce(&Env) -> ExitCode) -> ExitCode {
    let _main = adopt("main", "the signals");
    raise_descriptors();
    let (shutdown, reload, flight) = (Shutdown::new(), Reload::telling(manager), FlightFile::default());
    let signals = match Signals::install(&shutdown, &reload, &flight) {
        Ok(signals) => signals,
        Err(problem) => return exit::failed(problem),
    };
    // A thread that has panicked leaves a process that only looks alive: it is stopped as by a first signal.
    let panicked = Arc::new(AtomicBool::new(false));
    let (seen, stop, recorder) = (panicked.clone(), shutdown.clone(), flight.clone());
    on_panic(move || {
        seen.store(true, Ordering::SeqCst);
        stop.drain();
        recorder.write("a thread has panicked");
    });
    let timer = Timer::start();
    let env = Env { shutdown, timer: timer.handle(), reload, flight, manager: manager.clone() };
    let mut code = no_thread(|| main(&env)).unwrap_or_else(exit::failed);
    if panicked.load(Ordering::SeqCst) {
        code = ExitCode::from(exit::FAILED);
    }
    let mut stopping = Stopping::new(&env.shutdown);
    stopping.step("timer", CLOSING, |step| timer.stop_in(step));
    stopping.step("signals", CLOSING, |step| signals.stop_in(step));
    let report = stopping.finish();
    if report.is_clean() { code } else { ended(&report) }
}

/// Lifts the soft limit of open files to the hard one: a server has a descriptor for each connection, and the usual
/// soft limit of 1,024 is for programs that use `select`.
fn raise_descriptors() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })
    {
        log::warn!("the limit of open files stays at {current:?}: {error}");
    }
}

/// Runs a role until the first signal: `start` starts it, `stop` stops it within `budget`, the sum of its steps'
/// budgets.
pub fn serve<R>(
    budget: Duration,
    start: impl FnOnce(&Env) -> Result<R, ExitCode>,
    stop: impl FnOnce(R, &mut Stopping),
) -> ExitCode {
    let manager = ServiceManager::of_env();
    with_env_of(&manager, |env| {
        let role = match start(env) {
            Ok(role) => role,
            Err(code) => return code,
        };
        stderr::release();
        let alive = env.manager.ready();
        // Nothing is ever sent: it disconnects at the first signal.
        let waits = waiting("the first signal", None);
        let _ = env.shutdown.drain_receiver().recv();
        drop(waits);
        let code = stop_within(env, budget, |stopping| stop(role, stopping));
        drop(alive);
        code
    })
}

/// Stops under the watchdog, logs the report, and gives the exit code for it.
pub fn stop_within(env: &Env, budget: Duration, stop: impl FnOnce(&mut Stopping)) -> ExitCode {
    let (done, watched) = bounded::<()>(0);
    let limit = budget + WATCHDOG_GRACE;
    let watchdog = try_spawn("watchdog", Kick::dropped("done"), move || {
        let _waiting = waiting("the end of the stop", Some(Instant::now() + limit));
        if watched.recv_timeout(limit).is_err_and(|e| e.is_timeout()) {
            // Said by another thread: whatever that may wait for, this one ends the process.
            stderr::last_words(stderr::FLUSH_TIME, move || {
                let names: Vec<String> = live().iter().map(ToString::to_string).collect();
                log::error!("the stop did not end within {limit:?}; still running: {}", names.join("; "));
            });
            // The last resort: threads are stuck, so nothing else would end the process.
            exit::at_once(exit::WATCHDOG);
        }
    });
    if let Err(none) = &watchdog {
        log::warn!("nothing ends the stop if it takes longer than {limit:?}: {none}");
    }
    // And what the process itself takes to end.
    env.manager.stopping(limit + 2 * CLOSING + stderr::FLUSH_TIME);
    let told = env.manager.clone();
    let mut stopping = Stopping::new(&env.shutdown).telling(move |step| told.step(step));
    stop(&mut stopping);
    drop(done);
    drop(watchdog);
    ended(&stopping.finish())
}

fn ended(report: &StopReport) -> ExitCode {
    if report.is_clean() {
        log::info!("{report}");
        return ExitCode::from(exit::DONE);
    }
    log::error!("{report}");
    let code = if report.stragglers().is_empty() { exit::UNSENT } else { exit::WATCHDOG };
    ExitCode::from(code)
}
