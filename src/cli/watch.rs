//! `phalanx miner --watch`: the process that removes what a killed miner has left. For this program's own use: a miner
//! starts it, with its own arguments and a pipe as standard input.

use std::io;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use rustix::process::setsid;
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::flag;

use crate::app::exit;

/// The flag of the process that watches.
pub(super) const DETACHED: &str = "--watch-detached";

/// Starts the process that watches, in a session of its own, and leaves it to the system.
pub(super) fn detach() -> ExitCode {
    let start = || {
        setsid()?;
        Command::new(std::env::current_exe()?).args(std::env::args_os().skip(1)).arg(DETACHED).spawn()
    };
    match start() {
        Ok(_) => ExitCode::from(exit::DONE),
        Err(error) => exit::failed(format!("the watcher cannot be started: {error}")),
    }
}

/// Takes the signals that end or report on roles, for which there is nothing to do here: whoever stops all processes of
/// a service stops the miner, and the watcher ends after it.
///
/// # Errors
/// What the system says.
pub(super) fn ignore_signals() -> io::Result<()> {
    let seen = Arc::new(AtomicBool::new(false));
    for signal in [SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2] {
        flag::register(signal, seen.clone())?;
    }
    Ok(())
}
