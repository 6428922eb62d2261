//! What operators look at: metrics, health, error classes, the status snapshot.
//!
//! * [`part`]: one part of a process, and how it is. Pure.
//! * [`metrics`]: counters, gauges and histograms with Prometheus text.
//! * [`health`]: what is up, what is not, what is stuck, and why.
//! * [`cause`]: whose fault a failure of something external is, and whether to try again. Pure.
//! * [`errors`]: errors that a loop lives on after, by what it does about them.
//! * [`expiry`]: when certificates end.
//! * [`throttle`]: how often one kind of trouble is logged. Pure.
//! * [`foreign`]: a text that somebody else wrote, which is escaped wherever it is shown. Pure.
//! * [`jobs`]: the open jobs of a role and the newest that have ended, counted by outcome.
//! * [`log_lines`]: how many log lines nobody got.
//! * [`overview`]: a snapshot as people read it. Pure.
//! * [`pause`]: whether a role takes new work.
//! * [`redact`]: takes secrets and control characters out of what the process says. Pure.
//! * [`process`]: what the system says of this process.
//! * [`status`]: one snapshot of a role, and the pages made from it.

#[cfg(feature = "net")]
pub mod cause;
pub mod errors;
pub mod expiry;
pub mod foreign;
pub mod health;
pub mod jobs;
pub mod log_lines;
pub mod metrics;
pub mod overview;
pub mod part;
pub mod pause;
pub mod process;
pub mod redact;
pub mod status;
pub mod throttle;
