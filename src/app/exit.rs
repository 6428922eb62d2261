//! The exit codes of the binary; `docs/operations.md` has the same table.

use std::process::ExitCode;
use std::sync::Mutex;

use super::{logging, settings, stderr};
use crate::base::io;
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
///
/// Nothing has started, so what was logged on the way there is of no use, and is dropped.
pub fn usage(problem: impl std::fmt::Display) -> ExitCode {
    stderr::drop_held();
    say(&settings::named(&problem.to_string()));
    ExitCode::from(USAGE)
}

/// Why a role has not started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotStarted {
    /// In one line.
    problem: String,
    /// It is not a setting that is wrong, and the same start may succeed later.
    may_pass: bool,
}

impl NotStarted {
    /// A problem, and whether the same start may succeed later.
    pub fn new(problem: impl std::fmt::Display, may_pass: bool) -> Self {
        Self { problem: problem.to_string(), may_pass }
    }

    /// A problem with an error of the system.
    pub fn of_io(problem: impl std::fmt::Display, error: &std::io::Error) -> Self {
        Self::new(problem, io::may_pass(error))
    }
}

/// A wrong setting.
impl From<String> for NotStarted {
    fn from(problem: String) -> Self {
        Self { problem, may_pass: false }
    }
}

/// Says in one line on stderr why a role has not started, and gives the code for it: [`FAILED`] for what may pass, so
/// that a service manager tries again, [`USAGE`] for settings, which a restart does not change.
pub fn not_started(why: impl Into<NotStarted>) -> ExitCode {
    let NotStarted { problem, may_pass } = why.into();
    stderr::drop_held();
    if may_pass { failed(settings::named(&problem)) } else { usage(problem) }
}

/// Says in one line on stderr what failed, and gives the code for it.
pub fn failed(problem: impl std::fmt::Display) -> ExitCode {
    say(&problem);
    ExitCode::from(FAILED)
}

/// What it quotes may be of a file, a server or a miner.
fn say(problem: &dyn std::fmt::Display) {
    let name = logging::named().map(|name| format!("{name}: ")).unwrap_or_default();
    let line = format!("error: {name}{}\n", OneLine(&redact::secrets(&problem.to_string())));
    stderr::write(line.into_bytes());
}
