//! Trees of files that somebody else has written: listed, measured, taken over, removed.
//!
//! The writer may be hostile, and may still run. So a walk is a loop with a handful of descriptors whatever the depth,
//! under [`Bounds`]; no link is followed; and nothing is opened that is neither a regular file nor a folder, because to
//! open a device acts on it, and to open a FIFO waits.
//!
//! * [`walk`]: every entry of a tree, and what is made of it: [`files`], [`measure`], [`is_all_of`], [`give`].
//! * [`remove`]: all of it, at any depth.
//! * [`open_dir`], [`open_file`], [`names`]: one folder, one file.

mod open;
mod remove;
mod walk;

use std::io;
use std::path::PathBuf;
use std::time::Instant;

pub use open::{names, open_dir, open_file};
pub use remove::{remove, remove_at};
pub use walk::{Access, Entry, Found, Size, Walked, files, give, is_all_of, measure, walk};

use super::shutdown::Shutdown;

/// What a walk may cost.
#[derive(Debug, Clone, Copy)]
pub struct Bounds<'a> {
    /// Entries that are looked at.
    pub entries: u64,
    /// Folders inside folders.
    pub depth: usize,
    /// It ends then.
    pub deadline: Instant,
    /// It ends when this is cancelled.
    pub stop: &'a Shutdown,
}

impl<'a> Bounds<'a> {
    /// Without a bound but time.
    pub fn until(deadline: Instant, stop: &'a Shutdown) -> Self {
        Self { entries: u64::MAX, depth: usize::MAX, deadline, stop }
    }

    fn check(&self) -> Result<(), TreeError> {
        if self.stop.is_cancelled() {
            return Err(TreeError::Stopped);
        }
        if Instant::now() >= self.deadline { Err(TreeError::Late) } else { Ok(()) }
    }
}

/// Why a tree was not walked or removed to its end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TreeError {
    /// It is too large; what was seen until then counts.
    #[error("there are more than {0} {1}")]
    TooMany(u64, &'static str),
    /// It is too deep.
    #[error("folders are nested more than {0} deep")]
    TooDeep(usize),
    /// The deadline came first.
    #[error("it took too long")]
    Late,
    /// The stop signal came first.
    #[error("it was stopped")]
    Stopped,
    /// The system refuses.
    #[error("{}: {source}", shown(path))]
    Io {
        /// What.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl From<TreeError> for io::Error {
    fn from(error: TreeError) -> Self {
        let kind = match &error {
            TreeError::TooMany(..) | TreeError::TooDeep(_) => io::ErrorKind::Other,
            TreeError::Late => io::ErrorKind::TimedOut,
            TreeError::Stopped => io::ErrorKind::Interrupted,
            TreeError::Io { source, .. } => source.kind(),
        };
        io::Error::new(kind, error)
    }
}

/// Characters of a path in a message; a deep one has megabytes.
const SHOWN_CHARS: usize = 200;

/// A path for a message: its end, if it is long.
fn shown(path: &std::path::Path) -> String {
    let text = path.to_string_lossy();
    match text.char_indices().nth_back(SHOWN_CHARS) {
        Some((at, _)) => format!("…{}", &text[at..]),
        None => text.into_owned(),
    }
}

#[cfg(test)]
mod tests;
