//! The threads of the reaper, one for each host: they look for what executors have left there that nobody answers for,
//! and remove it. Whoever runs an executor removes what that leaves; this is for what came into being behind its back,
//! and for executors that nobody remembers.
//!
//! Owner: the miner's router thread, by [`HostThreads`](super::host_threads::HostThreads). Blocks in: the tools of the
//! back end, each with a deadline of its own, and the pause between two looks. Kick: the thread's stop signal, for
//! both. Ends: when that is raised; what is left then is for the next process.

use std::time::{Duration, Instant};

use super::executor_manager::orphans::Orphans;
use super::executor_manager::{Answered, ExecutorBackend, Marked, Owner};
use super::host::HostName;
use super::router::Input;
use super::watch::Watcher;
use crate::base::shutdown::{Level, Shutdown};
use crate::ops::errors::ErrorClass;
use crate::ops::status::Board;

/// Between two looks; what is of this process must be an orphan at two of them, so it is at least this old.
const PERIOD: Duration = Duration::from_secs(30);

/// Longest that one look may take, with all that is to be removed.
const LOOK_TIME: Duration = Duration::from_secs(300);

/// What the threads of all hosts work with.
#[derive(Clone)]
pub(super) struct Reaper {
    pub answered: Answered,
    pub owner: Owner,
    /// Only say what would be removed.
    pub dry_run: bool,
    /// Is looked after as well.
    pub watcher: Option<Watcher>,
    pub board: Board,
}

impl Reaper {
    /// Looks at once, and then every [`PERIOD`], until `stop` is raised; reports how each look has ended.
    pub(super) fn run(self, host: HostName, backend: &dyn ExecutorBackend, stop: &Shutdown, report: impl Fn(Input)) {
        // Nothing here is worth that a stop waits for it.
        let cancel = Shutdown::new();
        let kicked = cancel.clone();
        let _at_once = stop.on(Level::Drain, move || kicked.cancel());
        let mut orphans = Orphans::new(self.owner.epoch);
        report(Input::Reaped { host, trouble: None, due: Instant::now() + LOOK_TIME });
        loop {
            let trouble = match backend.find(&self.owner, &cancel) {
                Ok(found) => {
                    for orphan in orphans.of(found, &self.answered.living()) {
                        if stop.is_set() {
                            break;
                        }
                        self.remove(host, backend, &orphan, &cancel);
                    }
                    None
                }
                Err(_) if stop.is_set() => None,
                Err(why) => Some(format!("what executors have left is not known: {why}")),
            };
            if !stop.is_set() {
                self.watcher.iter().for_each(Watcher::check);
            }
            report(Input::Reaped { host, trouble, due: Instant::now() + PERIOD + LOOK_TIME });
            if stop.wait(PERIOD) {
                return;
            }
        }
    }

    fn remove(&self, host: HostName, backend: &dyn ExecutorBackend, orphan: &Marked, stop: &Shutdown) {
        let Marked { kind, id, run, epoch } = orphan;
        let kind = kind.as_str();
        let what =
            format!("{kind} {id} on host {host} of executor {run}, which process {epoch} of this miner has started");
        if self.dry_run {
            return log::info!("nobody answers for {what}; it would be removed");
        }
        match backend.remove(orphan, stop) {
            Ok(()) => {
                log::info!("nobody answered for {what}: removed");
                let help = "What executors have left and nobody answered for, removed, by what it was.";
                self.board.metrics.counter("phalanx_miner_reaped_total", help, &[("kind", kind)]).inc();
            }
            Err(_) if stop.is_set() => {}
            Err(left) => {
                let what = format_args!("nobody answers for {what}, and it cannot be removed: {left}");
                self.board.errors.report(ErrorClass::Reconnect, "leftovers", &what);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crossbeam_channel::{Sender, bounded};

    use super::*;
    use crate::miner::executor_manager::{ExecutorEnd, ExecutorError, ExecutorSpec};

    /// An engine that does not answer until it is asked no more.
    struct Hangs(Sender<&'static str>);

    impl ExecutorBackend for Hangs {
        fn run(&self, _: &ExecutorSpec, _: &Shutdown) -> ExecutorEnd {
            Err(ExecutorError::Lost)
        }

        fn find(&self, _: &Owner, stop: &Shutdown) -> Result<Vec<Marked>, String> {
            self.0.send("asked").unwrap();
            match stop.cancel_receiver().recv_timeout(Duration::from_secs(30)) {
                Err(crossbeam_channel::RecvTimeoutError::Timeout) => self.0.send("still asked").unwrap(),
                _ => self.0.send("given up").unwrap(),
            }
            Err("no answer".to_owned())
        }
    }

    #[test]
    fn a_look_at_an_engine_that_hangs_ends_with_the_first_signal() {
        let (says, heard) = bounded(3);
        let stop = Shutdown::new();
        let reaper = Reaper {
            answered: Answered::default(),
            owner: Owner { miner: "5M".to_owned(), instance: "i".to_owned(), epoch: 1 },
            dry_run: false,
            watcher: None,
            board: Board::default(),
        };
        let (found, finds) = bounded(2);
        let next = || heard.recv_timeout(Duration::from_secs(60));
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                reaper.run(HostName::LOCAL, &Hangs(says), &stop, |input| found.send(input).unwrap());
            });
            assert_eq!(next(), Ok("asked"));
            stop.drain();
            assert_eq!(next(), Ok("given up"));
            thread.join().unwrap();
        });
        let troubles: Vec<_> =
            finds.try_iter().filter(|input| !matches!(input, Input::Reaped { trouble: None, .. })).collect();
        assert!(troubles.is_empty(), "a stop is no trouble: {troubles:?}");
    }
}
