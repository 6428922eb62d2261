//! Tasks on threads: submitted, watched, limited, cancelled, and never lost sight of.
//!
//! [`TaskManager`] owns the threads; [`Tasks`] submits; a [`TaskHandle`] waits for one task and takes its result; the
//! work sees a [`TaskContext`]. A task is `PENDING`, `RUNNING`, and then `COMPLETED`, `FAILED` or `CANCELLED` for good;
//! one that is retried goes from `RUNNING` back to `PENDING` ([`TaskState::may_become`]).
//!
//! * Every queue has a limit and a rule for "full" ([`WhenFull`]); a refused task's work is handed back.
//! * A panic is a result, with its message, and with its backtrace if the program keeps those ([`keep_backtraces`]).
//! * Limits in time are separate ([`Limits`]): waiting, running, in all, silence.
//! * A task that does not end when it is cancelled is marked unresponsive and its worker replaced, so that it costs a
//!   thread but not the pool; the stop names it.
//! * Nothing polls: a manager with nothing to do does not wake.
//! * A task with a plain `&str` for a name and nothing else is several times as cheap as one with options; without a
//!   handle ([`Tasks::spawn`]) it is cheaper still.
//!
//! ```
//! use std::time::Duration;
//!
//! use phalanx::tasks::{TaskConfig, TaskManager, TaskOptions};
//!
//! let manager = TaskManager::start(TaskConfig::new("example").workers(2))?;
//! let options = TaskOptions::new("sum").metadata("user", "7").run_limit(Duration::from_secs(5));
//! let sum = manager.submit(options, |cx| {
//!     for n in 0..100u32 {
//!         cx.check()?; // ends here when it is cancelled
//!         cx.progress(n as u8, "adding");
//!     }
//!     Ok::<u32, phalanx::tasks::Interrupted>((0..100).sum())
//! })?;
//! assert_eq!(sum.wait()?, 4950);
//!
//! let report = manager.stop(Duration::from_secs(5));
//! assert!(report.is_clean(), "{report}"); // names what did not end
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod cell;
mod context;
mod deadlines;
mod error;
mod fast;
mod group;
mod guard;
mod handle;
mod head;
mod info;
mod manager;
mod options;
mod queue;
mod retry;
mod scheduler;
mod sleepers;
mod state;
mod store;
mod table;
mod task;
#[cfg(test)]
mod tests;

pub use context::TaskContext;
pub use error::{Interrupted, Panic, Refusal, TaskError};
pub use group::{Group, GroupError};
pub use guard::keep_backtraces;
pub use handle::{ProgressWatch, TaskHandle, Watched};
pub use info::{Counts, Filter, TaskInfo, TasksStatus};
pub use manager::{ConfigError, Periodic, SubmitError, TaskManager, Tasks, TasksReport, WaitEnd};
pub use options::{Limits, TaskConfig, TaskOptions, WhenFull};
pub use queue::Priority;
pub use retry::RetryPolicy;
pub use state::{CancelReason, Limit, Progress, TaskState};
pub use store::TaskId;
