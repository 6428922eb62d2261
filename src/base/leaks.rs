//! What was left behind: threads and file descriptors that were not there before, each with what is known of it.
//!
//! For tests, ours and those of programs that embed this crate: look before anything starts, and again when all is
//! stopped.
//!
//! ```
//! use std::time::Duration;
//!
//! use phalanx::base::leaks::Before;
//! use phalanx::tasks::{TaskConfig, TaskManager};
//!
//! // Beside other tests in one process; `Before::of_process` also sees foreign threads and file descriptors.
//! let before = Before::of_group();
//! let manager = TaskManager::start(TaskConfig::new("example"))?;
//! assert!(manager.submit("one", |_| Ok::<_, String>(1))?.wait().is_ok());
//! assert!(!before.leaks(Duration::ZERO).is_empty());
//!
//! println!("{}", manager.stop(Duration::from_secs(5)));
//! before.assert_none(); // panics, and names what was left behind
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::time::{Duration, Instant};

use super::shutdown::Shutdown;
use super::thread::Group;

/// Time for the system to take an ended thread or a killed connection off its lists, when [`Before::assert_none`]
/// looks.
const SETTLE_TIME: Duration = Duration::from_secs(10);

/// Between two looks: nobody tells when the system has done so.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// What there was before; threads that the calling thread spawns, and those that they spawn, are distinguished from
/// others.
#[derive(Debug)]
pub struct Before {
    group: Group,
    process: Option<Process>,
}

/// What is there now and was not before.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Leaks {
    /// The threads, each by its name; of ours also what they wait for and what would interrupt them.
    pub threads: Vec<String>,
    /// The file descriptors, each with what it is open on.
    pub descriptors: Vec<String>,
}

impl Leaks {
    /// Whether nothing was left behind.
    pub fn is_empty(&self) -> bool {
        self.threads.is_empty() && self.descriptors.is_empty()
    }
}

impl fmt::Display for Leaks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { threads, descriptors } = self;
        let list = |what: &str, found: &[String]| match found {
            [] => format!("no {what}"),
            found => format!("{} {what}: {}", found.len(), found.join("; ")),
        };
        write!(f, "{}. {}", list("threads", threads), list("descriptors", descriptors))
    }
}

impl Before {
    /// Looks only at threads of this crate that the calling thread brings about from now on: right beside other tests
    /// in one process.
    pub fn of_group() -> Self {
        Self { group: Group::enter(), process: None }
    }

    /// Looks at all threads and descriptors of the process as well, on Linux: only where nothing else goes on beside.
    pub fn of_process() -> Self {
        Self { group: Group::enter(), process: Some(Process::now()) }
    }

    /// What was left behind. Blocks until that is nothing, or for `within`: the system takes a thread off its list a
    /// moment after its join.
    pub fn leaks(&self, within: Duration) -> Leaks {
        let limit = Instant::now() + within;
        loop {
            let leaks = self.look();
            if leaks.is_empty() || Instant::now() >= limit {
                return leaks;
            }
            Shutdown::new().wait(LOOK_AGAIN);
        }
    }

    /// As [`Before::leaks`], within ten seconds.
    ///
    /// # Panics
    /// If anything was left behind; the message names it.
    pub fn assert_none(&self) {
        let leaks = self.leaks(SETTLE_TIME);
        assert!(leaks.is_empty(), "left behind: {leaks}");
    }

    fn look(&self) -> Leaks {
        let ours = self.group.live();
        let mut leaks = Leaks { threads: ours.iter().map(ToString::to_string).collect(), descriptors: Vec::new() };
        if let Some(before) = &self.process {
            let now = Process::now();
            let mut known: Vec<&str> = ours.iter().map(|thread| thread.name.as_str()).collect();
            for name in now.threads.iter().filter(|(id, _)| !before.threads.contains_key(*id)).map(|(_, name)| name) {
                match known.iter().position(|known| known == name) {
                    Some(at) => drop(known.swap_remove(at)),
                    None => leaks.threads.push(name.clone()),
                }
            }
            leaks.descriptors =
                now.descriptors.difference(&before.descriptors).map(|(n, on)| format!("{n} on {on}")).collect();
        }
        leaks
    }
}

/// Names of threads by their numbers, and descriptors with what they are open on.
#[derive(Debug)]
struct Process {
    threads: BTreeMap<String, String>,
    descriptors: BTreeSet<(u32, String)>,
}

impl Process {
    /// What ends while it is looked at is left out.
    fn now() -> Self {
        let entries = |folder| fs::read_dir(folder).into_iter().flatten().flatten();
        let threads = entries("/proc/self/task").filter_map(|entry| {
            let name = fs::read_to_string(entry.path().join("comm")).ok()?;
            Some((entry.file_name().into_string().ok()?, name.trim_end().to_owned()))
        });
        let threads = threads.collect();
        // That of the listing itself.
        let own = format!("/proc/{}/fd", std::process::id());
        let descriptors = entries("/proc/self/fd").filter_map(|entry| {
            let on = fs::read_link(entry.path()).ok()?.to_string_lossy().into_owned();
            (on != own).then_some((entry.file_name().to_str()?.parse().ok()?, on))
        });
        Self { threads, descriptors: descriptors.collect() }
    }
}

#[cfg(test)]
mod tests {
    use crossbeam_channel::bounded;

    use super::*;
    use crate::base::thread::{Kick, spawn};
    use crate::base::waits;

    #[test]
    fn a_thread_that_is_left_is_named_with_what_it_waits_for() {
        let before = Before::of_group();
        let (tx, rx) = bounded::<()>(0);
        let (ready, is_ready) = bounded::<()>(0);
        let thread = spawn("t-left", Kick::dropped("tx"), move || {
            let _waiting = waits::waiting("the test", None);
            drop(ready);
            rx.recv().is_err()
        });
        assert!(is_ready.recv().is_err());
        let leaks = before.leaks(Duration::ZERO);
        assert!(leaks.threads.len() == 1 && leaks.descriptors.is_empty(), "{leaks:?}");
        assert!(leaks.to_string().starts_with("1 threads: t-left waits for the test for "), "{leaks}");
        drop(tx);
        assert!(thread.join_by(Instant::now() + SETTLE_TIME).unwrap());
        before.assert_none();
        assert_eq!(before.leaks(Duration::ZERO).to_string(), "no threads. no descriptors");
    }
}
