//! One download of a volume, and why there may be none.

use std::fs;
use std::io;
use std::path::Path;

use super::archive::ArchiveError;
use crate::executor::transfer::Bounds;
use crate::executor::workspace::PathError;
use crate::net::http::client::{Headers, HttpClient, HttpError};

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

/// Downloads to a file, whose folders are made and which replaces one of an earlier volume; gives its length.
pub(super) fn download(
    http: &HttpClient,
    url: &str,
    headers: Headers,
    path: &Path,
    max_bytes: u64,
    bounds: Bounds,
) -> Result<u64, VolumeError> {
    let folder = path.parent().expect("a file in a workspace has a parent");
    fs::create_dir_all(folder)
        .map_err(|source| VolumeError::File { path: folder.to_string_lossy().into_owned(), source })?;
    Ok(bounds.retry(|| http.get_to_file(url, headers, path, max_bytes, bounds.deadline))?)
}
