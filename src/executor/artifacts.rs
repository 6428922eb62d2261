//! Artifacts: small files that travel in the result itself.

use std::io::{self, Read};
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::workspace::Workspace;
use crate::base::limits::ARTIFACT_BYTES;
use crate::base::tree;
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
}

/// Collects the files that lie in the artifacts folder itself, as the Python executor does: folders, links, other
/// special files and files of [`ARTIFACT_BYTES`] or more are left out, and named. Without an `artifacts_dir` there are
/// none.
///
/// # Errors
/// [`ArtifactsError`].
pub(super) fn collect(workspace: &Workspace, artifacts_dir: Option<&str>) -> Result<Artifacts, ArtifactsError> {
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
        let shown = name.to_string_lossy().into_owned();
        let why = match read(&dir, Path::new(&name)) {
            Ok(_) if name.to_str().is_none() => "its name is not UTF-8".to_owned(),
            Ok(content) => {
                let text = STANDARD.encode(content);
                if chars + text.len() <= ARTIFACTS_CHARS {
                    chars += text.len();
                    artifacts.files.insert(format!("{}/{shown}", prefix.trim_end_matches('/')), text);
                    continue;
                }
                format!("all artifacts together would have more than {ARTIFACTS_CHARS} characters of base64")
            }
            // What it is, or that a process of the job has just removed it.
            Err(why) if matches!(why.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::NotFound) => why.to_string(),
            Err(error) => return Err(ArtifactsError::Unreadable(error)),
        };
        // Names may hold what a terminal obeys.
        let sentence = format!("artifact {} is left out: {why}", shown.escape_debug());
        log::warn!("{sentence}");
        artifacts.left_out.push(sentence);
    }
    Ok(artifacts)
}

fn read(dir: &std::os::fd::OwnedFd, name: &Path) -> io::Result<Vec<u8>> {
    let (file, size) = tree::open_file(dir, name)?;
    let why = || format!("it has {ARTIFACT_BYTES} bytes or more");
    let too_large = || io::Error::new(io::ErrorKind::InvalidInput, why());
    if size >= ARTIFACT_BYTES {
        return Err(too_large());
    }
    let mut content = Vec::new();
    // Something may still be writing to it.
    file.take(ARTIFACT_BYTES).read_to_end(&mut content)?;
    if content.len() as u64 >= ARTIFACT_BYTES { Err(too_large()) } else { Ok(content) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

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
            let artifacts = collect(&workspace, Some(dir)).unwrap();
            let names: Vec<&str> = artifacts.files.keys().map(String::as_str).collect();
            assert_eq!(names, ["/artifacts/a.bin", "/artifacts/empty", "/artifacts/just"]);
            assert_eq!(artifacts.files["/artifacts/a.bin"], "AAEC");
            let left_out = artifacts.left_out.join("\n");
            for name in ["artifact large ", "artifact sub ", "artifact link "] {
                assert!(left_out.contains(name), "{left_out}");
            }
            assert_eq!(artifacts.left_out.len(), 3);
        }
        assert_eq!(collect(&workspace, None).unwrap(), Artifacts::default());
        assert_eq!(collect(&workspace, Some("")).unwrap(), Artifacts::default());
    }

    #[test]
    fn all_together_are_bounded() {
        let workspace = Workspace::create().unwrap();
        for n in 0..15 {
            fs::write(workspace.artifacts().join(format!("{n:02}")), vec![7; 900_000]).unwrap();
        }
        let artifacts = collect(&workspace, Some("/a")).unwrap();
        assert_eq!((artifacts.files.len(), artifacts.left_out.len()), (13, 2));
        assert!(artifacts.files.values().map(String::len).sum::<usize>() <= ARTIFACTS_CHARS);
    }

    #[test]
    fn a_folder_swapped_for_a_link_is_not_read() {
        let workspace = Workspace::create().unwrap();
        fs::remove_dir(workspace.artifacts()).unwrap();
        symlink("/etc", workspace.artifacts()).unwrap();
        assert!(matches!(collect(&workspace, Some("/a")), Err(ArtifactsError::OfJob(_))));
        fs::remove_file(workspace.artifacts()).unwrap();
        assert!(matches!(collect(&workspace, Some("/a")), Err(ArtifactsError::OfJob(_))));
    }

    #[test]
    fn too_many_are_the_job_s_fault() {
        let workspace = Workspace::create().unwrap();
        for n in 0..=FILES_MAX {
            fs::write(workspace.artifacts().join(n.to_string()), []).unwrap();
        }
        let Err(error @ ArtifactsError::OfJob(_)) = collect(&workspace, Some("/a")) else { panic!("not refused") };
        assert!(error.to_string().contains("more than 10000 entries"), "{error}");
    }
}
