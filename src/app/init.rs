//! Process 1 of a container without an init: it starts this program once more, hands signals on to it, and waits for
//! every orphan that the kernel gives to process 1, until the program has ended.
//!
//! The program itself does not do that, because whoever waits for all children takes away the exit codes of those that
//! others wait for.
//!
//! Owner of the thread: [`run`]. Blocks in: signal-hook's iterator. Kick: closing the iterator. Ends: with the program.

use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions, kill_process, wait};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::iterator::Signals;

use super::exit;
use crate::base::thread::{Kick, spawn};
use crate::base::waits::waiting;

/// How long the thread that hands signals on may take to end once it is kicked.
const END_TIME: Duration = Duration::from_secs(1);

/// Whether the kernel gives orphans to this process.
pub fn is_needed() -> bool {
    std::process::id() == 1
}

/// Runs this program as a child, to its end, and gives its exit code; 128 and the signal if one has ended it.
pub fn run() -> ExitCode {
    match supervise() {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            exit::failed(format!("as process 1, the program cannot be run below an init of its own: {error}"))
        }
    }
}

fn supervise() -> std::io::Result<u8> {
    // Before the program starts, so that no signal is lost; one that comes before waits in the iterator.
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2])?;
    let mut command = Command::new(std::env::current_exe()?);
    let mut arguments = std::env::args_os();
    if let Some(name) = arguments.next() {
        command.arg0(name);
    }
    // A group of its own: else a Ctrl-C would reach it from the terminal and from us, and count twice.
    let child = Pid::from_child(&command.args(arguments).process_group(0).spawn()?);
    let handle = signals.handle();
    let thread = spawn("init", Kick::new("closing the signal iterator", move || handle.close()), move || {
        loop {
            let waits = waiting("signals for the program", None);
            let Some(signal) = signals.forever().next() else { return };
            drop(waits);
            let signal = match signal {
                SIGHUP => Signal::HUP,
                SIGINT => Signal::INT,
                SIGQUIT => Signal::QUIT,
                SIGUSR1 => Signal::USR1,
                SIGUSR2 => Signal::USR2,
                _ => Signal::TERM,
            };
            match kill_process(child, signal) {
                // It has just ended.
                Ok(()) | Err(Errno::SRCH) => {}
                Err(error) => log::error!("{signal:?} cannot be handed on: {error}"),
            }
        }
    });
    let code = loop {
        let waits = waiting("the program or an orphan to end", None);
        let ended = wait(WaitOptions::empty());
        drop(waits);
        match ended {
            Ok(Some((pid, status))) if pid == child => {
                break match (status.exit_status(), status.terminating_signal()) {
                    (Some(code), _) => code,
                    (None, signal) => 128 + signal.unwrap_or(0),
                };
            }
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    };
    thread.kick();
    if let Err(error) = thread.join_by(Instant::now() + END_TIME) {
        log::warn!("{error}");
    }
    Ok(u8::try_from(code).unwrap_or(exit::FAILED))
}
