//! Why an archive was not unpacked.

use std::io;

use crate::executor::volumes::space::SpaceError;

/// Why an archive was not unpacked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ArchiveError {
    /// It cannot be read at all.
    #[error("not a readable zip archive: {0}")]
    Unreadable(String),
    /// One entry is refused; nothing of the archive is unpacked then, unless the entry lied about its size.
    #[error("zip entry {entry:?}: {why}")]
    Entry {
        /// The entry's name as it stands in the archive.
        entry: String,
        /// What is wrong with it.
        why: String,
    },
    /// It holds too much.
    #[error("zip archive is too large: {0}")]
    TooLarge(String),
    /// It holds more than the job has room for.
    #[error(transparent)]
    Space(#[from] SpaceError),
    /// Cancelled, timed out, or the disk refused.
    #[error("cannot unpack zip entry {entry:?}: {source}")]
    Io {
        /// The entry's name.
        entry: String,
        /// The error of the system.
        source: io::Error,
    },
}
