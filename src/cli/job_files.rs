//! What jobs wrote, in files: `UUID/stdout`, `UUID/stderr` and `UUID/artifacts/NAME` in a folder of the user's.
//!
//! The folder of a job is new and 0700, and files are 0600 and new: nothing that was there is overwritten or followed.

use std::collections::BTreeSet;
use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use crate::app::job_client::SubmittedJob;
use crate::base::text::truncated;
use crate::ops::foreign::Foreign;

/// Artifacts of a job that are written: as many as an executor looks at.
const FILES_MAX: usize = 10_000;

/// Bytes of an artifact's name that are kept: a file system takes 255, and a number may come before it.
const NAME_BYTES: usize = 200;

/// Makes the folder, 0700, unless it is there. Blocks on the disk.
///
/// # Errors
/// If it cannot be made, or is something else.
pub(super) fn prepare(folder: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

/// Writes what a job wrote; gives how many artifacts were left out, because they are not base64 or more than
/// [`FILES_MAX`]. Blocks on the disk.
///
/// # Errors
/// If the disk fails, or the folder has a job of this uuid already. What was written stays.
pub(super) fn write(folder: &Path, job: &SubmittedJob) -> io::Result<usize> {
    let own = folder.join(&job.uuid);
    let new_folder = |path: &Path| DirBuilder::new().mode(0o700).create(path);
    new_folder(&own)?;
    file(&own.join("stdout"), job.stdout.as_written().as_bytes())?;
    file(&own.join("stderr"), job.stderr.as_written().as_bytes())?;
    let artifacts = own.join("artifacts");
    let (mut taken, mut left_out) = (BTreeSet::new(), 0);
    for (number, (path, content)) in job.artifacts().enumerate() {
        let Some(content) = content.filter(|_| number < FILES_MAX) else {
            left_out += 1;
            continue;
        };
        if taken.is_empty() {
            new_folder(&artifacts)?;
        }
        file(&artifacts.join(name(number, &path, &mut taken)), &content)?;
    }
    Ok(left_out)
}

fn file(path: &Path, content: &[u8]) -> io::Result<()> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?.write_all(content)
}

/// The last part of an artifact's path, escaped and cut; behind its number if that is taken.
fn name(number: usize, path: &Foreign, taken: &mut BTreeSet<String>) -> String {
    let last = path.as_written().rsplit('/').next().unwrap_or_default();
    let shown = Foreign::from(last).to_string();
    let mut name = match truncated(&shown, NAME_BYTES) {
        // They are folders.
        "" | "." | ".." => number.to_string(),
        name => name.to_owned(),
    };
    while !taken.insert(name.clone()) {
        name = format!("{number}-{name}");
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    const UUID: &str = "3f3d3b38-8b0f-4a8c-a5cb-7a4c0f3b3e10";

    fn job(artifacts: Value) -> SubmittedJob {
        let job =
            json!({"uuid": UUID, "status_history": [], "stdout": "a\u{1b}", "stderr": "", "artifacts": artifacts});
        serde_json::from_value(job).unwrap()
    }

    #[test]
    fn all_that_a_job_wrote_is_in_files_of_the_user_alone() {
        let folder = tempfile::tempdir().unwrap();
        let deep = folder.path().join("a/b");
        prepare(&deep).unwrap();
        prepare(&deep).unwrap();
        let artifacts = json!({"/artifacts/a.bin": "AP8=", "/artifacts/b": "no base64", "/x/a.bin": "AA=="});
        assert_eq!(write(&deep, &job(artifacts)).unwrap(), 1);
        let own = deep.join(UUID);
        for (name, content) in
            [("stdout", &b"a\x1b"[..]), ("stderr", b""), ("artifacts/a.bin", &[0, 255]), ("artifacts/2-a.bin", &[0])]
        {
            assert_eq!(fs::read(own.join(name)).unwrap(), content, "{name}");
            assert_eq!(fs::metadata(own.join(name)).unwrap().permissions().mode() & 0o777, 0o600, "{name}");
        }
        for folder in [&deep, &own, &own.join("artifacts")] {
            assert_eq!(fs::metadata(folder).unwrap().permissions().mode() & 0o777, 0o700, "{folder:?}");
        }
    }

    #[test]
    fn nothing_is_overwritten_or_followed() {
        let (folder, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        symlink(outside.path(), folder.path().join(UUID)).unwrap();
        let refused = write(folder.path(), &job(Value::Null)).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::AlreadyExists);
        fs::remove_file(folder.path().join(UUID)).unwrap();
        write(folder.path(), &job(Value::Null)).unwrap();
        assert_eq!(write(folder.path(), &job(Value::Null)).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
        fs::write(folder.path().join("file"), "").unwrap();
        prepare(&folder.path().join("file")).unwrap_err();
    }

    #[test]
    fn a_name_is_one_part_that_no_terminal_obeys() {
        let mut taken = BTreeSet::new();
        let mut name = |number, path: &str| name(number, &Foreign::from(path), &mut taken);
        for (number, path, expected) in [
            (0, "/artifacts/a", "a"),
            (1, "b/a", "1-a"),
            (2, "1-a", "2-1-a"),
            (3, "../..", "3"),
            (4, ".", "4"),
            (5, "a/", "5"),
            (6, "", "6"),
            (7, "\u{1b}\u{9b}\0\u{202e}\n", "\\u{1b}\\u{9b}\\u{0}\\u{202e}\\n"),
            (8, "..\\a", "..\\a"),
        ] {
            assert_eq!(name(number, path), expected);
        }
        assert_eq!(name(9, &"ä".repeat(300)).len(), NAME_BYTES);
        assert!(name(10, &"ä".repeat(300)).starts_with("10-ä"));
    }

    #[test]
    fn a_job_has_so_many_files_and_no_more() {
        let folder = tempfile::tempdir().unwrap();
        let many: serde_json::Map<_, _> = (0..FILES_MAX + 3).map(|n| (format!("/a/{n}"), json!(""))).collect();
        assert_eq!(write(folder.path(), &job(many.into())).unwrap(), 3);
        assert_eq!(fs::read_dir(folder.path().join(UUID).join("artifacts")).unwrap().count(), FILES_MAX);
    }
}
