//! Volumes: the input files of a job, put below the workspace's `volume/`.

mod archive;
mod download;
mod hub;
mod space;

use std::fs;
use std::io::{self, Cursor};
use std::time::Instant;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

pub use self::archive::{ArchiveError, ArchiveLimits};
pub use self::download::VolumeError;
use self::download::download;
pub use self::hub::Hub;
use self::space::Space;
pub use self::space::SpaceError;

use super::transfer::Bounds;
use super::workspace::{PathError, Workspace, relative};
use crate::base::shutdown::Shutdown;
use crate::net::http::client::{HttpClient, HttpSettings};
use crate::ops::errors::ErrorHandler;
use crate::protocol::{SingleVolume, Volume};

/// What errors call a zip archive that was downloaded.
const ARCHIVE: &str = "the downloaded archive";

/// Bytes of one download (an archive, a single file): 2 GiB, as on the Python executor.
pub const DOWNLOAD_BYTES: u64 = 2 << 30;

/// Bytes of all volumes of a job together, where its disk has no quota: 256 GiB, above the largest models of today.
pub const VOLUMES_BYTES: u64 = 256 << 30;

/// Loads volumes.
#[derive(Debug, Clone)]
pub struct VolumeLoader {
    http: HttpClient,
    hub: Hub,
    limits: ArchiveLimits,
    space: u64,
    token: Shutdown,
    errors: ErrorHandler,
}

impl VolumeLoader {
    /// A loader whose work ends when `token` cancels, and that goes where `settings` allow, the hub too.
    pub fn new(token: Shutdown, hub: Hub, settings: impl Into<HttpSettings>) -> Self {
        let http = HttpClient::within(settings, token.clone());
        Self {
            http,
            hub,
            limits: ArchiveLimits::default(),
            space: VOLUMES_BYTES,
            token,
            errors: ErrorHandler::default(),
        }
    }

    /// The same, for volumes that have at most so many bytes together.
    #[must_use]
    pub fn with_space(self, bytes: u64) -> Self {
        Self { space: bytes, ..self }
    }

    /// The same, which tells this handler of what it tries again.
    #[must_use]
    pub fn with_errors(self, errors: ErrorHandler) -> Self {
        Self { errors, ..self }
    }

    /// Puts `volume` below the workspace's `volume/`, and gives the bytes that it has there. Blocks until it is there,
    /// `deadline` passes or the token cancels.
    ///
    /// A download that breaks goes on where it broke off, if the server can say that it still has the same file.
    /// Otherwise, and after 5xx, 408 and 429, it begins anew, a few times; a server that says when to come again is
    /// obeyed. Other answers fail at once.
    ///
    /// # Errors
    /// See [`VolumeError`]; part of the volume may be in place then.
    pub fn load(&self, volume: &Volume, workspace: &Workspace, deadline: Instant) -> Result<u64, VolumeError> {
        let mut space = Space::new(self.space);
        let single = match volume {
            Volume::Multi(multi) => {
                for (n, part) in multi.volumes.iter().enumerate() {
                    self.load_one(part, workspace, &mut space, deadline).map_err(|source| VolumeError::Part {
                        number: n + 1,
                        of: multi.volumes.len(),
                        source: Box::new(source),
                    })?;
                }
                return Ok(space.used());
            }
            Volume::Inline(volume) => SingleVolume::Inline(volume.clone()),
            Volume::ZipUrl(volume) => SingleVolume::ZipUrl(volume.clone()),
            Volume::SingleFile(volume) => SingleVolume::SingleFile(volume.clone()),
            Volume::Huggingface(volume) => SingleVolume::Huggingface(volume.clone()),
        };
        self.load_one(&single, workspace, &mut space, deadline)?;
        Ok(space.used())
    }

    fn load_one(
        &self,
        volume: &SingleVolume,
        workspace: &Workspace,
        space: &mut Space,
        deadline: Instant,
    ) -> Result<(), VolumeError> {
        let bounds = Bounds { token: &self.token, deadline, errors: &self.errors };
        let below = |path: Option<&str>| Ok::<_, PathError>(workspace.volume().join(relative(path.unwrap_or(""))?));
        match volume {
            SingleVolume::Inline(volume) => {
                let into = below(volume.relative_path.as_deref())?;
                let text: String = volume.contents.chars().filter(|c| !c.is_ascii_whitespace()).collect();
                let bytes = STANDARD.decode(text)?;
                let size = bytes.len() as u64;
                Ok(archive::unpack(Cursor::new(&bytes), size, &into, (self.limits, space), bounds)?)
            }
            SingleVolume::ZipUrl(volume) => {
                let into = below(volume.relative_path.as_deref())?;
                // Beside the job's folders, and on disk, because an archive may be larger than the memory.
                let zip = workspace.private().join("volume.zip");
                // It counts only until it is unpacked.
                let room = (DOWNLOAD_BYTES, &mut space.clone());
                let size = download(&self.http, &volume.contents, &[], (&zip, ARCHIVE), room, bounds)?;
                let file_error = |source| VolumeError::File { path: ARCHIVE.into(), source };
                let file = io::BufReader::new(fs::File::open(&zip).map_err(file_error)?);
                archive::unpack(file, size, &into, (self.limits, space), bounds)?;
                fs::remove_file(&zip).map_err(file_error)
            }
            SingleVolume::SingleFile(volume) => {
                let path = relative(&volume.relative_path)?;
                if path.as_os_str().is_empty() {
                    let path = volume.relative_path.clone();
                    return Err(PathError { path, why: "it names no file" }.into());
                }
                let place = (&*workspace.volume().join(path), &*volume.relative_path);
                download(&self.http, &volume.url, &[], place, (DOWNLOAD_BYTES, space), bounds).map(drop)
            }
            SingleVolume::Huggingface(volume) => {
                let into = below(volume.relative_path.as_deref())?;
                hub::fetch(&self.http, &self.hub, volume, &into, space, bounds)
            }
        }
    }
}
