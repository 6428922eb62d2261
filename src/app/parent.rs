//! A process that ends when the one that has started it ends, in whatever way, as a role of `phalanx dev`.

use std::io;

use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};

/// The flag that says whose end it is.
pub const FLAG: &str = "--end-with";

/// From now on this process gets SIGTERM when that one ends, if that one has started it: what it starts itself, with
/// the same flags, as a miner's watcher, is not meant.
///
/// # Errors
/// What the system says.
pub fn end_with(process: i32) -> io::Result<()> {
    if getppid().map(Pid::as_raw_pid) == Some(process) {
        set_parent_process_death_signal(Some(Signal::TERM))?;
    }
    Ok(())
}
