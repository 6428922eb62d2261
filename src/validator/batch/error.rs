//! Why a batch cannot begin, or could not go on. Pure.

use std::time::Duration;

use crate::store::StoreError;

/// Why a batch cannot begin, or could not go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BatchError {
    /// The settings do not go together.
    #[error("{}", .0.join("; "))]
    Config(Vec<String>),
    /// The state folder cannot be used; results that are not on disk are not shown.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The folder holds a batch that has not ended.
    #[error(
        "the state folder holds a batch of seed {seed} that has not ended: resume it, or give another folder, or \
         remove its files batch.db*"
    )]
    Unfinished {
        /// The seed of that batch.
        seed: u64,
    },
    /// There is no batch in the folder.
    #[error("the state folder holds no batch; give that of one, or begin one there")]
    NoBatch,
    /// The folder holds another batch than the one to go on with.
    #[error("the state folder holds another batch: {0}")]
    Another(String),
    /// What the folder holds cannot be read.
    #[error("the batch in the state folder cannot be read: {0}")]
    Damaged(String),
    /// The last results did not get to the disk in time.
    #[error("the state folder did not take the last results within {0:.0?}; what it has can be resumed")]
    SlowDisk(Duration),
    /// The batch's thread has panicked; what is on disk can be resumed.
    #[error("the batch broke off by a fault of this program: {0}")]
    Panicked(String),
}
