//! The disk that a running job may use: measured while it runs, and the job is ended when it uses more.
//!
//! Owner: the runner, for one run. Blocks in: its pause, the walk over the job's folders, and the engine's answer.
//! Kick: its stop signal. Ends: with the run, or when the job has used too much.
//!
//! What a job can write beyond its quota is what it writes in one pause, one walk and the time to kill it: at 1 GiB/s
//! and a small tree some 1 GiB. A single file ends at the quota itself, by the limit that the system holds.

use std::path::Path;
use std::time::{Duration, Instant};

use super::run::RunEnd;
use crate::base::shutdown::Shutdown;
use crate::base::thread::{Kick, Thread, spawn};
use crate::base::tree::{self, Bounds, Size, TreeError};
use crate::executor::sandbox::Sandbox;
use crate::ops::errors::{ErrorClass, ErrorHandler};

/// Time between two measurements of a small tree.
const PAUSE: Duration = Duration::from_millis(500);

/// A pause is at least this many times as long as what it follows, so that a large tree takes a fifth of a processor.
const PAUSES: u32 = 4;

/// How long one walk may take; what it has seen until then counts.
const WALK_TIME: Duration = Duration::from_secs(10);

/// How long the thread may take to end once its stop is set: what it is in ends at once.
const END_TIME: Duration = Duration::from_secs(10);

/// Where its trouble is reported.
const PLACE: &str = "job-disk";

/// Measures what is beside the job's folders, or in them and closed to us; gives bytes to be added.
pub(super) type Beside = Box<dyn FnMut(&Size, &Shutdown) -> u64 + Send>;

/// The watch over one run.
pub(super) struct DiskWatch {
    /// Ends the run: the job's own signal, or that it has used too much.
    pub(super) run: Shutdown,
    stop: Shutdown,
    thread: Option<Thread<Option<RunEnd>>>,
}

impl DiskWatch {
    /// Watches `folder`; without a quota there is no thread.
    pub(super) fn start(
        sandbox: &Sandbox,
        folder: &Path,
        (token, errors): (&Shutdown, &ErrorHandler),
        beside: Beside,
    ) -> Self {
        let (run, stop) = (token.child(), Shutdown::new());
        let quota = Quota { bytes: sandbox.disk_bytes, entries: sandbox.disk_entries };
        let thread = (quota.bytes.is_some() || quota.entries.is_some()).then(|| {
            let (kicked, ended, stop) = (stop.clone(), run.clone(), stop.clone());
            let (folder, errors) = (folder.to_owned(), errors.clone());
            spawn("exec-disk", Kick::new("its stop signal", move || kicked.cancel()), move || {
                let over = watch(quota, &folder, (&stop, &errors), beside);
                if over.is_some() {
                    ended.cancel();
                }
                over
            })
        });
        Self { run, stop, thread }
    }

    /// Ends the watch over a run that has ended; gives how the run ended if the watch has ended it.
    pub(super) fn finish(self, errors: &ErrorHandler) -> Option<RunEnd> {
        let Self { stop, thread, .. } = self;
        stop.cancel();
        match thread?.join_by(Instant::now() + END_TIME) {
            Ok(over) => over,
            Err(error) => {
                errors.report(ErrorClass::Fatal, PLACE, &format_args!("the watch over it did not end: {error:?}"));
                None
            }
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Quota {
    bytes: Option<u64>,
    entries: Option<u64>,
}

impl Quota {
    /// How a job that uses this much ends, if it uses too much.
    fn exceeded(self, used: Size) -> Option<RunEnd> {
        let over = |limit: Option<u64>, used: u64, unit| {
            limit.filter(|limit| used > *limit).map(|limit| RunEnd::OverQuota { limit, used, unit })
        };
        over(self.bytes, used.bytes, "bytes").or_else(|| over(self.entries, used.entries, "files and folders"))
    }
}

fn watch(
    quota: Quota,
    folder: &Path,
    (stop, errors): (&Shutdown, &ErrorHandler),
    mut beside: Beside,
) -> Option<RunEnd> {
    let mut pause = PAUSE;
    while !stop.wait(pause) {
        let began = Instant::now();
        let entries = quota.entries.map_or(u64::MAX, |most| most.saturating_add(1));
        let bounds = Bounds { entries, ..Bounds::until(began + WALK_TIME, stop) };
        let mut size = match tree::open_dir(folder) {
            Ok(root) => match tree::measure(root, &bounds) {
                (_, Err(TreeError::Stopped)) => return None,
                // The names alone are more than a walk keeps: that is no tree of a job either.
                (size, Err(TreeError::TooMany(..))) => Size { entries: size.entries.max(entries), ..size },
                (size, ended) => {
                    if let Err(error) = ended {
                        log::debug!("the job's disk is not measured to its end: {error}");
                    }
                    size
                }
            },
            Err(error) => {
                errors.report(ErrorClass::Retry, PLACE, &format_args!("it cannot be measured: {error}"));
                Size::default()
            }
        };
        size.bytes = size.bytes.saturating_add(beside(&size, stop));
        if let Some(end) = quota.exceeded(size) {
            let used = format_args!("the job is ended: {} bytes in {} files and folders", size.bytes, size.entries);
            errors.report(ErrorClass::Rejected, PLACE, &used);
            return Some(end);
        }
        pause = PAUSE.max(began.elapsed() * PAUSES);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_over_its_quota_by_bytes_or_by_entries() {
        let size = |bytes, entries| Size { bytes, entries, closed: 0 };
        let both = Quota { bytes: Some(100), entries: Some(10) };
        assert_eq!(both.exceeded(size(100, 10)), None);
        assert_eq!(both.exceeded(size(101, 11)), Some(RunEnd::OverQuota { limit: 100, used: 101, unit: "bytes" }));
        assert_eq!(
            both.exceeded(size(0, 11)),
            Some(RunEnd::OverQuota { limit: 10, used: 11, unit: "files and folders" })
        );
        assert_eq!(Quota { bytes: None, entries: None }.exceeded(size(u64::MAX, u64::MAX)), None);
    }
}
