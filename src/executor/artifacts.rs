//! Artifacts: small files that travel in the result itself.

use std::io::{self, Read};
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::workspace::{Workspace, untrusted};
use crate::base::limits::ARTIFACT_BYTES;
use crate::protocol::StrMap;

/// Characters of base64 of all artifacts together: 16 MiB, so that a result with them and with two outputs of a million
/// characters (escaped at worst six bytes each) stays under the 32 MiB of the facilitator link.
pub(super) const ARTIFACTS_CHARS: usize = 16 << 20;

/// Files that are looked at; more are skipped.
const FILES_MAX: usize = 10_000;

/// What the job has left in its artifacts folder.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Artifacts {
    /// The path in the container, `artifacts_dir/name`, to the content in base64.
    pub files: StrMap,
    /// A sentence for each file or folder that was left out.
    pub skipped: Vec<String>,
}

/// Collects the files that lie in the artifacts folder itself, as the Python executor does: folders, links, other
/// special files and files of [`ARTIFACT_BYTES`] or more are skipped. Without an `artifacts_dir` there are none.
///
/// # Errors
/// If the folder cannot be read.
pub(super) fn collect(workspace: &Workspace, artifacts_dir: Option<&str>) -> io::Result<Artifacts> {
    let mut artifacts = Artifacts::default();
    let Some(prefix) = artifacts_dir.filter(|dir| !dir.is_empty()) else { return Ok(artifacts) };
    let dir = untrusted::open_dir(&workspace.artifacts())?;
    let mut chars = 0;
    for name in untrusted::names(&dir, FILES_MAX)? {
        let shown = name.to_string_lossy().into_owned();
        let skipped = match read(&dir, Path::new(&name)) {
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
            Err(why) => why.to_string(),
        };
        let sentence = format!("artifact {shown} is left out: {skipped}");
        log::warn!("{sentence}");
        artifacts.skipped.push(sentence);
    }
    Ok(artifacts)
}

fn read(dir: &std::os::fd::OwnedFd, name: &Path) -> io::Result<Vec<u8>> {
    let (file, size) = untrusted::open_file(dir, name)?;
    let too_large = || io::Error::other(format!("it has {ARTIFACT_BYTES} bytes or more"));
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
            let skipped = artifacts.skipped.join("\n");
            for name in ["artifact large ", "artifact sub ", "artifact link "] {
                assert!(skipped.contains(name), "{skipped}");
            }
            assert_eq!(artifacts.skipped.len(), 3);
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
        assert_eq!((artifacts.files.len(), artifacts.skipped.len()), (13, 2));
        assert!(artifacts.files.values().map(String::len).sum::<usize>() <= ARTIFACTS_CHARS);
    }

    #[test]
    fn a_folder_swapped_for_a_link_is_not_read() {
        let workspace = Workspace::create().unwrap();
        fs::remove_dir(workspace.artifacts()).unwrap();
        symlink("/etc", workspace.artifacts()).unwrap();
        assert!(collect(&workspace, Some("/a")).is_err());
    }
}
