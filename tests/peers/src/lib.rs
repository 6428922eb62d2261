//! What the driver and the tokio client share: the messages of the facilitator link and their signatures, written from
//! the protocol and its vectors without a line of phalanx, so that an error of ours cannot hide in both ends.

#![forbid(unsafe_code)]

pub mod job;
pub mod keys;
pub mod meter;
pub mod table;

/// The statuses of a good job, in order.
pub const STATUSES: [&str; 6] =
    ["received", "accepted", "executor_ready", "volumes_ready", "execution_done", "completed"];
