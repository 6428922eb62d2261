//! Hours in milliseconds, for tests: moves a manual clock to the next planned moment whenever all other threads wait.
//!
//! Each wait for time must be one of the clock's ([`Clock::at`], [`Clock::plan`], [`Clock::wait`]): for a thread that
//! waits on the system's clock no time passes. It looks at all threads of the process, so a test that uses it runs in a
//! process of its own.

use std::fs;
use std::time::Duration;

use super::clock::Clock;
use super::shutdown::Shutdown;

/// Between two looks, so that the others have the processor.
const LOOK_AGAIN: Duration = Duration::from_micros(20);

/// Nothing happens any more, and what was waited for has not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Standstill {
    /// All threads wait, and none for a moment.
    #[error("all threads wait, and none of them for a moment")]
    NothingPlanned,
    /// So much time of the clock has passed.
    #[error("not seen within {0:?} of the clock")]
    TooLong(Duration),
}

/// Lets time pass until `done`, which is asked only while all other threads wait; says how much has passed.
///
/// Blocks as long as other threads run.
///
/// # Errors
/// [`Standstill`]: nothing is planned any more, or `limit` has passed.
///
/// # Panics
/// If the clock is the system's, or the threads of the process cannot be listed.
pub fn pass_until(clock: &Clock, limit: Duration, mut done: impl FnMut() -> bool) -> Result<Duration, Standstill> {
    let start = clock.now();
    loop {
        wait_until_idle();
        let (now, passed) = (clock.now(), clock.now() - start);
        if done() {
            return Ok(passed);
        }
        let next = clock.next_planned().ok_or(Standstill::NothingPlanned)?;
        if next - start > limit {
            return Err(Standstill::TooLong(limit));
        }
        clock.advance(next - now);
    }
}

/// Waits until all other threads of the process wait for something.
///
/// Two looks in a row find each of them asleep and none of them switched: whoever is woken can run at once, so none was
/// woken between its two looks, and so none can have woken another.
fn wait_until_idle() {
    let never = Shutdown::new();
    let mut before = None;
    loop {
        let seen = all_asleep();
        if seen.is_some() && seen == before {
            return;
        }
        // A look of its own makes the second one; only who runs is worth a wait.
        if seen.is_none() {
            never.wait(LOOK_AGAIN);
        }
        before = seen;
    }
}

/// The other threads with how often each has given up the processor; `None` if one of them runs.
fn all_asleep() -> Option<Vec<(String, u64)>> {
    let me = fs::read_link("/proc/thread-self").expect("this thread is listed");
    let me = me.file_name().map(|name| name.to_string_lossy().into_owned());
    let threads = fs::read_dir("/proc/self/task").expect("the threads of this process are listed");
    let mut seen = Vec::new();
    for thread in threads {
        let name = thread.expect("the threads of this process are listed").file_name().to_string_lossy().into_owned();
        if Some(&name) == me.as_ref() {
            continue;
        }
        // One that ends meanwhile has run.
        let status = fs::read_to_string(format!("/proc/self/task/{name}/status")).ok()?;
        let value = |key: &str| status.lines().find_map(|line| line.strip_prefix(key)).map(str::trim);
        if !value("State:")?.starts_with('S') {
            return None;
        }
        let switches = ["voluntary_ctxt_switches:", "nonvoluntary_ctxt_switches:"];
        let switches = switches.iter().map(|key| value(key)?.parse::<u64>().ok()).sum::<Option<u64>>()?;
        seen.push((name, switches));
    }
    seen.sort();
    Some(seen)
}
