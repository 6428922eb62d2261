//! The list of all threads in the log, for SIGUSR1 and for when a loop hangs.

use log::Level;

use super::logging;
use crate::base::thread::live;

/// Logs what lives, since when, what it waits for, and what would interrupt it; whatever `RUST_LOG` says.
pub(super) fn say() {
    for thread in live() {
        let age = thread.since.elapsed();
        let (name, activity, kick) = (thread.name, thread.activity, thread.kick);
        logging::say(Level::Info, format_args!("thread {name:<15} for {age:>9.1?}, {activity}, kick: {kick}"));
    }
}
