//! The bytes that all volumes of a job may have together. Pure.

/// What of them is left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Space {
    all: u64,
    left: u64,
}

/// There is not so much room.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("all volumes of the job together have more than the {0} bytes that there is room for")]
pub struct SpaceError(u64);

impl Space {
    pub(super) fn new(bytes: u64) -> Self {
        Self { all: bytes, left: bytes }
    }

    pub(super) fn left(&self) -> u64 {
        self.left
    }

    pub(super) fn used(&self) -> u64 {
        self.all - self.left
    }

    /// So many bytes are used.
    pub(super) fn take(&mut self, bytes: u64) {
        self.left = self.left.saturating_sub(bytes);
    }

    pub(super) fn exceeded(&self) -> SpaceError {
        SpaceError(self.all)
    }
}
