//! How many bytes a connection has moved, so that liveness can tell a slow peer from a dead one.

use std::sync::atomic::{AtomicU64, Ordering};

/// The bytes that one connection has moved since its handshake, as they are on the wire: with frames, and sealed if by
/// TLS.
///
/// They are counted as they move, not when a message is whole. The counts only grow; no memory order comes with them,
/// so they tell of progress and of nothing else.
#[derive(Debug, Default)]
pub struct Traffic {
    read: AtomicU64,
    written: AtomicU64,
}

impl Traffic {
    /// Bytes received from the system.
    pub fn read_bytes(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }

    /// Bytes that the system took for sending, which may still wait there; counted in parts of at most 256 KiB (over
    /// `memory` whole messages).
    pub fn written_bytes(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    pub(super) fn count_read(&self, bytes: usize) {
        self.read.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(super) fn count_written(&self, bytes: usize) {
        self.written.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}
