//! The exit codes of the binary; `docs/operations.md` has the same table.

use std::process::ExitCode;
use std::sync::Mutex;

use super::settings;
use super::stderr;
use crate::base::lock::lock;
use crate::ops::redact::{self, OneLine};

/// All went well.
pub const DONE: u8 = 0;
/// It ran, and something failed: a job, a check.
pub const FAILED: u8 = 1;
/// A flag, file, key or setting is wrong; nothing was started.
pub const USAGE: u8 = 2;
/// Stopped as asked, but some messages were accepted from a producer and not by the peer.
pub const UNSENT: u8 = 3;
/// The stop did not end within its budget; the watchdog ended the process.
pub const WATCHDOG: u8 = 4;
/// The miner could not be told a job's end; it is kept in the spool folder, for the next contact.
pub const KEPT: u8 = 5;
/// The third signal, or SIGQUIT: ended at once, nothing was waited for but log lines, for some milliseconds.
pub const NOW: u8 = 130;

/// What is still done when the process is ended at once, until it is dropped.
#[derive(Debug)]
#[must_use = "it is done only while this lives"]
pub struct BeforeExit(());

type Last = Box<dyn Fn() + Send>;

static LAST: Mutex<Option<Last>> = Mutex::new(None);

/// Has this done before the process is ended at once, as by SIGQUIT; it must not block. There is one in a process.
pub fn before_exit(last: impl Fn() + Send + 'static) -> BeforeExit {
    *lock(&LAST) = Some(Box::new(last));
    BeforeExit(())
}

impl Drop for BeforeExit {
    fn drop(&mut self) {
        *lock(&LAST) = None;
    }
}

/// Ends the process with this code, without waiting for anything.
#[allow(clippy::exit)] // Nothing else ends a process whose threads are not waited for.
pub fn at_once(code: u8) -> ! {
    // Whoever has the lock is about to take them away, or says them already.
    if let Ok(last) = LAST.try_lock()
        && let Some(last) = &*last
    {
        last();
    }
    std::process::exit(code.into())
}

/// Says in one line on stderr what is wrong with the usage, and gives the code for it.
pub fn usage(problem: impl std::fmt::Display) -> ExitCode {
    say(&settings::named(&problem.to_string()));
    ExitCode::from(USAGE)
}

/// Says in one line on stderr what failed, and gives the code for it.
pub fn failed(problem: impl std::fmt::Display) -> ExitCode {
    say(&problem);
    ExitCode::from(FAILED)
}

/// What it quotes may be of a file, a server or a miner.
fn say(problem: &dyn std::fmt::Display) {
    let line = format!("error: {}\n", OneLine(&redact::secrets(&problem.to_string())));
    stderr::write(line.into_bytes());
}
