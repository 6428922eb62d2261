//! One download of a volume, and why there may be none.

use std::fs;
use std::io;
use std::path::Path;

use super::archive::ArchiveError;
use super::space::{Space, SpaceError};
use crate::executor::transfer::{Bounds, of_file};
use crate::executor::workspace::PathError;
use crate::net::http::client::{Download, Headers, HttpClient, HttpError};
use crate::ops::cause::Cause;

/// Why a volume is not there. The texts are for the wire: reason `download_failed`, unless it is
/// [`VolumeError::is_timeout`] or [`VolumeError::is_cancelled`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VolumeError {
    /// A `relative_path`, or the name of a file in a repository, leads elsewhere.
    #[error(transparent)]
    Path(#[from] PathError),
    /// An inline volume is not base64.
    #[error("inline volume: {0}; its contents must be a zip archive in base64")]
    Base64(#[from] base64::DecodeError),
    /// An archive is refused.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// A download failed.
    #[error(transparent)]
    Download(#[from] HttpError),
    /// There is not so much room.
    #[error(transparent)]
    Space(#[from] SpaceError),
    /// A Hugging Face volume cannot be understood.
    #[error("Hugging Face repository {repo_id:?}: {why}")]
    Repository {
        /// The repository.
        repo_id: String,
        /// What is wrong.
        why: String,
    },
    /// The disk refused.
    #[error("cannot write {path}: {source}")]
    File {
        /// The file, below the volume.
        path: String,
        /// The error of the system.
        source: io::Error,
    },
    /// A part of a multi-volume failed; the parts before it are in place.
    #[error("volume {number} of {of}: {source}")]
    Part {
        /// Which, counted from one.
        number: usize,
        /// How many there are.
        of: usize,
        /// Why.
        source: Box<VolumeError>,
    },
}

impl VolumeError {
    /// Whether the deadline was the reason.
    pub fn is_timeout(&self) -> bool {
        match self {
            Self::Download(HttpError::TimedOut { .. }) => true,
            Self::Archive(ArchiveError::Io { source, .. }) => source.kind() == io::ErrorKind::TimedOut,
            Self::Part { source, .. } => source.is_timeout(),
            _ => false,
        }
    }

    /// Whose fault it is, and whether the same may succeed later.
    pub fn cause(&self) -> Cause {
        match self {
            Self::Path(_) | Self::Base64(_) | Self::Space(_) | Self::Repository { .. } => Cause::JOB,
            Self::Archive(ArchiveError::Io { source, .. }) | Self::File { source, .. } => of_file(source),
            Self::Archive(_) => Cause::JOB,
            Self::Download(error) => error.cause(),
            Self::Part { source, .. } => source.cause(),
        }
    }

    /// Whether a cancel was the reason.
    pub fn is_cancelled(&self) -> bool {
        match self {
            Self::Download(HttpError::Cancelled { .. }) => true,
            Self::Archive(ArchiveError::Io { source, .. }) => source.kind() == io::ErrorKind::Interrupted,
            Self::Part { source, .. } => source.is_cancelled(),
            _ => false,
        }
    }
}

/// Downloads to a file, for errors with this name, of at most so many bytes, whose folders are made and which replaces
/// one of an earlier volume; gives its length, which is taken from the space.
pub(super) fn download(
    http: &HttpClient,
    url: &str,
    headers: Headers,
    (path, name): (&Path, &str),
    (max_bytes, space): (u64, &mut Space),
    bounds: Bounds,
) -> Result<u64, VolumeError> {
    let folder = path.parent().expect("a file in a workspace has a parent");
    let file_error = |source| VolumeError::File { path: name.to_owned(), source };
    fs::create_dir_all(folder).map_err(file_error)?;
    let mut file = Download::new(path, max_bytes.min(space.left()));
    let received = bounds.retry(|tries| {
        let before = file.received();
        let outcome = http.download(url, headers, &mut file, bounds.deadline);
        if file.received() > before {
            tries.progress();
        }
        outcome
    });
    match received {
        Ok(bytes) => {
            space.take(bytes);
            Ok(bytes)
        }
        Err(HttpError::TooLarge { .. }) if space.left() < max_bytes => Err(space.exceeded().into()),
        // Without the path on this machine, which is none of the job's business.
        Err(HttpError::File { source, .. }) => Err(file_error(source)),
        Err(error) => Err(error.into()),
    }
}
