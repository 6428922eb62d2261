//! How many log lines of this process nobody got: its reader was too slow, or has gone. Whoever writes the log counts
//! them here; every role shows the number as a metric.

use std::sync::atomic::{AtomicU64, Ordering};

static DROPPED: AtomicU64 = AtomicU64::new(0);

/// Counts lines that were not written.
pub fn count_dropped(lines: u64) {
    DROPPED.fetch_add(lines, Ordering::Relaxed);
}

/// The lines of this process that were not written.
pub fn dropped() -> u64 {
    DROPPED.load(Ordering::Relaxed)
}
