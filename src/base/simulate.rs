//! Hours in milliseconds, for tests: moves a manual clock to the next planned moment whenever all other threads wait.
//!
//! Each wait for time must be one of the clock's ([`Clock::at`], [`Clock::plan`], [`Clock::wait`]): for a thread that
//! waits on the system's clock no time passes. The clock reaches timers, links and servers, tasks and their sleep,
//! connections in memory, and a batch of jobs with its miners. It does not reach sockets, files and processes, nor the
//! joins and budgets of a stop: how long threads take to end is the system's time.
//!
//! All threads of the process are looked at, so a test that uses it runs in a process of its own. They may be
//! thousands; a moment costs some ten microseconds for each.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};

use super::clock::Clock;
use super::shutdown::Shutdown;

/// Between two looks, so that the others have the processor.
const LOOK_AGAIN: Duration = Duration::from_micros(20);

/// Enough of what the system tells of a thread: its number, its name of at most 15 bytes, its state, some numbers more.
const STATE_BYTES: usize = 40;

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
/// None of them gave up the processor or ended between two readings of the counts, and a look between the two found
/// each of them asleep. Whoever ran after the first reading would still run, and be seen so, or would have been counted
/// when it fell asleep; so nobody ran, and nobody can have woken another behind the look's back.
fn wait_until_idle() {
    let never = Shutdown::new();
    let (mut before, mut asleep) = (None, false);
    loop {
        let begun = Instant::now();
        let counts = counts();
        let took = begun.elapsed();
        if counts.is_some() && counts == before {
            if asleep {
                return;
            }
            asleep = all_asleep();
        } else {
            asleep = false;
        }
        before = counts;
        // A thread is seen asleep an instant before it is counted, and the nap is longer than that. It is as long as a
        // reading, so that of many threads it does not take the processor from them.
        never.wait(LOOK_AGAIN.max(took));
    }
}

/// How often the other threads, those that have ended too, have given up the processor so far, and how many threads
/// there are. Nothing if the calling one gave it up meanwhile.
fn counts() -> Option<(i64, u64)> {
    let of = |who| {
        let usage = getrusage(who).expect("a thread may read its own count");
        usage.voluntary_context_switches() + usage.involuntary_context_switches()
    };
    let (before, all, after) = (of(UsageWho::RUSAGE_THREAD), of(UsageWho::RUSAGE_SELF), of(UsageWho::RUSAGE_THREAD));
    // A folder has as many links as it has folders, one for each thread.
    let threads = fs::metadata("/proc/self/task").expect("the threads of this process are listed").nlink();
    (before == after).then_some((all - after, threads))
}

/// Whether each other thread of the process is asleep.
fn all_asleep() -> bool {
    let me = fs::read_link("/proc/thread-self").expect("this thread is listed");
    let threads = fs::read_dir("/proc/self/task").expect("the threads of this process are listed");
    threads.map(|thread| thread.expect("the threads of this process are listed")).all(|thread| {
        if me.file_name() == Some(&thread.file_name()) {
            return true;
        }
        let mut stat = [0; STATE_BYTES];
        let read = File::open(thread.path().join("stat")).and_then(|mut file| file.read(&mut stat));
        // Behind the name, which is in parentheses and may have some itself. One that ends meanwhile has run.
        let state = stat.iter().rposition(|byte| *byte == b')').and_then(|end| stat.get(end + 2));
        read.is_ok() && state == Some(&b'S')
    })
}
