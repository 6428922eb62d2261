//! Artifacts: small files that travel in the result itself.

use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::transfer::Bounds;
use super::workspace::Workspace;
use crate::base::limits::ARTIFACT_BYTES;
use crate::base::tree;
use crate::ops::errors::ErrorClass;
use crate::protocol::StrMap;

/// Characters of base64 of all artifacts together: 16 MiB, so that a result with them and with two outputs of a million
/// characters (escaped at worst six bytes each) stays under the 32 MiB of the facilitator link.
pub(super) const ARTIFACTS_CHARS: usize = 16 << 20;

/// Entries of the artifacts folder; a job with more has not said what it wants back.
const FILES_MAX: usize = 10_000;

/// What the job has left in its artifacts folder.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Artifacts {
    /// The path in the container, `artifacts_dir/name`, to the content in base64.
    pub files: StrMap,
    /// A sentence for each file or folder that was left out.
    pub left_out: Vec<String>,
}

/// Why there are no artifacts.
#[derive(Debug, thiserror::Error)]
pub(super) enum ArtifactsError {
    /// The job has left what cannot be carried.
    #[error("the artifacts cannot be collected: {0}")]
    OfJob(io::Error),
    /// This machine cannot read them.
    #[error("cannot read the job's artifacts: {0}")]
    Unreadable(io::Error),
    /// The deadline or a cancel came first.
    #[error("collecting the artifacts: {0}")]
    Ended(io::Error),
}

/// Collects the files that lie in the artifacts folder itself, as the Python executor does: folders, links, other
/// special files, files that cannot be read and files of [`ARTIFACT_BYTES`] or more are left out, and named. So is,
/// unread, what would make more than [`ARTIFACTS_CHARS`]. Without an `artifacts_dir` there are none. Blocks until the
/// files are read, and at most for one file after the end of `bounds`.
///
/// # Errors
/// [`ArtifactsError`].
pub(super) fn collect(
    workspace: &Workspace,
    artifacts_dir: Option<&str>,
    bounds: &Bounds<'_>,
) -> Result<Artifacts, ArtifactsError> {
    let mut artifacts = Artifacts::default();
    let Some(prefix) = artifacts_dir.filter(|dir| !dir.is_empty()) else { return Ok(artifacts) };
    let names = tree::open_dir(&workspace.artifacts()).and_then(|dir| Ok((tree::names(&dir, FILES_MAX)?, dir)));
    let (names, dir) = names.map_err(|error| match error.kind() {
        // Too many, or a job in a process has removed the folder or put something else in its place.
        io::ErrorKind::Other | io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => ArtifactsError::OfJob(error),
        _ => ArtifactsError::Unreadable(error),
    })?;
    let mut chars = 0;
    for name in names {
        bounds.check().map_err(ArtifactsError::Ended)?;
        let shown = name.to_string_lossy().into_owned();
        let why = match read(&dir, Path::new(&name), ARTIFACTS_CHARS - chars) {
            Ok(_) if name.to_str().is_none() => "its name is not UTF-8".to_owned(),
            Ok(text) => {
                chars += text.len();
                artifacts.files.insert(format!("{}/{shown}", prefix.trim_end_matches('/')), text);
                continue;
            }
            Err(why) if is_of_file(&why) => why.to_string(),
            Err(error) => return Err(ArtifactsError::Unreadable(error)),
        };
        // Names may hold what a terminal obeys.
        let sentence = format!("artifact {} is left out: {why}", shown.escape_debug());
        bounds.errors.report(ErrorClass::Rejected, "artifacts", &sentence);
        artifacts.left_out.push(sentence);
    }
    Ok(artifacts)
}

/// What it is, that it is closed, or that a process of the job has just removed it.
fn is_of_file(why: &io::Error) -> bool {
    use io::ErrorKind::{InvalidInput, NotFound, PermissionDenied};
    matches!(why.kind(), InvalidInput | NotFound | PermissionDenied)
}

/// A file in base64 of at most `room` characters.
fn read(dir: &OwnedFd, name: &Path, room: usize) -> io::Result<String> {
    let (file, size) = tree::open_file(dir, name)?;
    fits(size, room)?;
    let mut content = Vec::new();
    // Something may still be writing to it.
    file.take(ARTIFACT_BYTES).read_to_end(&mut content)?;
    fits(content.len() as u64, room)?;
    Ok(STANDARD.encode(content))
}

fn fits(bytes: u64, room: usize) -> io::Result<()> {
    let why = if bytes >= ARTIFACT_BYTES {
        format!("it has {ARTIFACT_BYTES} bytes or more")
    } else if bytes.div_ceil(3) * 4 > room as u64 {
        format!("all artifacts together would have more than {ARTIFACTS_CHARS} characters of base64")
    } else {
        return Ok(());
    };
    Err(io::Error::new(io::ErrorKind::InvalidInput, why))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::time::Instant;

    use crate::base::shutdown::Shutdown;
    use crate::base::wait::far;
    use crate::ops::errors::ErrorHandler;

    fn collected(workspace: &Workspace, artifacts_dir: Option<&str>) -> Result<Artifacts, ArtifactsError> {
        collect(
            workspace,
            artifacts_dir,
            &Bounds { token: &Shutdown::new(), deadline: far(), errors: &ErrorHandler::default() },
        )
    }

    #[test]
    fn small_files_come_back_and_the_rest_is_named() {
        let workspace = Workspace::create().unwrap();
        let folder = workspace.artifacts();
        fs::write(folder.join("a.bin"), [0, 1, 2]).unwrap();
        fs::write(folder.join("empty"), []).unwrap();
        fs::write(folder.join("just"), vec![7; ARTIFACT_BYTES as usize - 1]).unwrap();
        fs::write(folder.join("large"), vec![7; ARTIFACT_BYTES as usize]).unwrap();
        fs::create_dir(folder.join("sub")).unwrap();
        fs::write(folder.join("sub/deep"), "x").unwrap();
        symlink("/etc/passwd", folder.join("link")).unwrap();
        for dir in ["/artifacts", "/artifacts/"] {
            let artifacts = collected(&workspace, Some(dir)).unwrap();
            let names: Vec<&str> = artifacts.files.keys().map(String::as_str).collect();
            assert_eq!(names, ["/artifacts/a.bin", "/artifacts/empty", "/artifacts/just"]);
            assert_eq!(artifacts.files["/artifacts/a.bin"], "AAEC");
            let left_out = artifacts.left_out.join("\n");
            for name in ["artifact large ", "artifact sub ", "artifact link "] {
                assert!(left_out.contains(name), "{left_out}");
            }
            assert_eq!(artifacts.left_out.len(), 3);
        }
        assert_eq!(collected(&workspace, None).unwrap(), Artifacts::default());
        assert_eq!(collected(&workspace, Some("")).unwrap(), Artifacts::default());
    }

    #[test]
    fn all_together_are_bounded() {
        let workspace = Workspace::create().unwrap();
        for n in 0..15 {
            fs::write(workspace.artifacts().join(format!("{n:02}")), vec![7; 900_000]).unwrap();
        }
        let artifacts = collected(&workspace, Some("/a")).unwrap();
        assert_eq!((artifacts.files.len(), artifacts.left_out.len()), (13, 2));
        assert!(artifacts.files.values().map(String::len).sum::<usize>() <= ARTIFACTS_CHARS);
    }

    #[test]
    fn what_has_no_room_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("file"), "abcd").unwrap();
        let dir = tree::open_dir(folder.path()).unwrap();
        assert_eq!(read(&dir, Path::new("file"), 8).unwrap(), "YWJjZA==");
        let error = read(&dir, Path::new("file"), 7).unwrap_err();
        assert!(error.to_string().contains("all artifacts together"), "{error}");
    }

    #[test]
    fn a_file_that_is_closed_is_left_out_and_a_broken_disk_is_not_the_job_s() {
        // Root, who may run this test, may read all files.
        assert!(is_of_file(&io::Error::from_raw_os_error(rustix::io::Errno::ACCESS.raw_os_error())));
        assert!(!is_of_file(&io::Error::from_raw_os_error(rustix::io::Errno::IO.raw_os_error())));
    }

    #[test]
    fn a_cancel_and_the_deadline_end_it() {
        let workspace = Workspace::create().unwrap();
        fs::write(workspace.artifacts().join("file"), "x").unwrap();
        let token = Shutdown::new();
        let late = Bounds { token: &token, deadline: Instant::now(), errors: &ErrorHandler::default() };
        let Err(ArtifactsError::Ended(error)) = collect(&workspace, Some("/a"), &late) else { panic!("not ended") };
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        token.cancel();
        let cancelled = Bounds { token: &token, deadline: far(), errors: &ErrorHandler::default() };
        let Err(ArtifactsError::Ended(error)) = collect(&workspace, Some("/a"), &cancelled) else {
            panic!("not ended")
        };
        assert_eq!(error.kind(), io::ErrorKind::Interrupted);
    }

    #[test]
    fn a_folder_swapped_for_a_link_is_not_read() {
        let workspace = Workspace::create().unwrap();
        fs::remove_dir(workspace.artifacts()).unwrap();
        symlink("/etc", workspace.artifacts()).unwrap();
        assert!(matches!(collected(&workspace, Some("/a")), Err(ArtifactsError::OfJob(_))));
        fs::remove_file(workspace.artifacts()).unwrap();
        assert!(matches!(collected(&workspace, Some("/a")), Err(ArtifactsError::OfJob(_))));
    }

    #[test]
    fn too_many_are_the_job_s_fault() {
        let workspace = Workspace::create().unwrap();
        for n in 0..=FILES_MAX {
            fs::write(workspace.artifacts().join(n.to_string()), []).unwrap();
        }
        let Err(error @ ArtifactsError::OfJob(_)) = collected(&workspace, Some("/a")) else { panic!("not refused") };
        assert!(error.to_string().contains("more than 10000 entries"), "{error}");
    }
}
