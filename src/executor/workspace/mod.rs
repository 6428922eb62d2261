//! The temporary folder of one job: what is private to the executor, and the folders that the job sees.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, renameat};

use super::output::{STDERR_FILE, STDOUT_FILE};
use crate::base::shutdown::Shutdown;
use crate::base::tree::{self, Access, Bounds, TreeError};

/// How long the removal of the folder may take: the job's last message waits for it. What is left then is removed by
/// the miner, with the folder that it has given to its executor.
pub(super) const REMOVE_TIME: Duration = Duration::from_secs(10);

/// Bytes of one path, and of one part of it: what Linux takes.
pub(super) const PATH_BYTES: usize = 4095;
pub(super) const PART_BYTES: usize = 255;

/// Bytes of a path from the wire: [`PATH_BYTES`] without what is before the folder.
const RELATIVE_BYTES: usize = PATH_BYTES - 1024;

/// Why a path that came from the wire is not used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("bad path {path:?}: {why}; give a relative path with forward slashes that stays inside its folder")]
pub struct PathError {
    /// The path as it came.
    pub path: String,
    /// What is wrong with it.
    pub why: &'static str,
}

/// Checks a path that came from the wire (a `relative_path`, a name in an archive): it may not leave its folder.
///
/// Empty and `.` components are dropped; an empty result means the folder itself.
///
/// # Errors
/// For `..`, absolute paths, drive letters, backslashes, NUL, and what is longer than Linux takes it.
pub fn relative(path: &str) -> Result<PathBuf, PathError> {
    let bad = |why| Err(PathError { path: path.to_owned(), why });
    if path.starts_with('/') {
        return bad("it is absolute");
    }
    if path.contains('\\') {
        return bad("it has a backslash");
    }
    if path.contains('\0') {
        return bad("it has a NUL byte");
    }
    if path.as_bytes().get(1) == Some(&b':') && path.as_bytes()[0].is_ascii_alphabetic() {
        return bad("it begins with a drive letter");
    }
    let parts: Vec<&str> = path.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    if parts.contains(&"..") {
        return bad("it climbs with ..");
    }
    if path.len() > RELATIVE_BYTES {
        return bad("it has more than 3071 bytes");
    }
    if parts.iter().any(|part| part.len() > PART_BYTES) {
        return bad("a part of it has more than 255 bytes");
    }
    Ok(parts.iter().collect())
}

/// The folder of one job, `0700`, removed when the value is dropped.
///
/// `job/` is the part that the job sees: `volume/`, `output/`, `artifacts/`, `specs/`. What lies beside it (streams
/// that are being written, archives in the making) is the executor's alone.
#[derive(Debug)]
pub struct Workspace {
    root: PathBuf,
    job: PathBuf,
    /// Whether the drop removes it.
    ours: bool,
}

impl Workspace {
    /// A new workspace in the system's folder for temporary files.
    ///
    /// # Errors
    /// What the system says.
    pub fn create() -> io::Result<Self> {
        Self::create_in(&std::env::temp_dir())
    }

    /// A new workspace in `parent`.
    ///
    /// # Errors
    /// What the system says.
    pub fn create_in(parent: &Path) -> io::Result<Self> {
        let root = tempfile::Builder::new()
            .prefix("phalanx-job-")
            .permissions(Permissions::from_mode(0o700))
            .tempdir_in(parent)?;
        // From here on the folder is ours to remove; TempDir would recurse, and swallow the error.
        let root = root.keep();
        let workspace = Self { job: root.join("job"), root, ours: true };
        for folder in
            [&workspace.job, &workspace.volume(), &workspace.output(), &workspace.artifacts(), &workspace.specs()]
        {
            DirBuilder::new().mode(0o700).create(folder)?;
        }
        Ok(workspace)
    }

    /// The executor's own part; the job does not see what is beside `job/`.
    pub fn private(&self) -> &Path {
        &self.root
    }

    /// The job's part, the working folder of the process runner.
    pub fn job(&self) -> &Path {
        &self.job
    }

    /// Input files.
    pub fn volume(&self) -> PathBuf {
        self.job.join("volume")
    }

    /// Files that the job leaves for upload.
    pub fn output(&self) -> PathBuf {
        self.job.join("output")
    }

    /// Small files that travel in the result itself.
    pub fn artifacts(&self) -> PathBuf {
        self.job.join("artifacts")
    }

    /// Mounted at `/specs/` as on the Python executor, which leaves it empty.
    pub fn specs(&self) -> PathBuf {
        self.job.join("specs")
    }

    /// Where a stream is written while the job runs: beside the job's part, so that it cannot be swapped for a link.
    pub(super) fn stream(&self, name: &str) -> PathBuf {
        self.private().join(name)
    }

    /// Lets any user read, write and run everything in the job's folders, because a container runs as whatever user its
    /// image names; other users of this host are kept out by the workspace itself. The Python executor does the same.
    ///
    /// # Errors
    /// What the system says, or that the time was over or `stop` was cancelled.
    pub fn open_to_job(&self, stop: &Shutdown, deadline: Instant) -> Result<(), TreeError> {
        for folder in [self.volume(), self.output(), self.artifacts(), self.specs()] {
            let open = || {
                fs::set_permissions(&folder, Permissions::from_mode(0o777))?;
                tree::open_dir(&folder)
            };
            let opened = open().map_err(|source| TreeError::Io { path: folder.clone(), source })?;
            tree::give(opened, Access::Everybody, &Bounds::until(deadline, stop))?;
        }
        Ok(())
    }

    /// Puts the whole streams into the output folder, which is made again if the job has removed it; what the job has
    /// left under their names is replaced.
    ///
    /// # Errors
    /// If the output folder is a link now.
    pub(super) fn publish_streams(&self) -> io::Result<()> {
        let output = match tree::open_dir(&self.output()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                DirBuilder::new().mode(0o700).create(self.output())?;
                tree::open_dir(&self.output())
            }
            opened => opened,
        }?;
        for name in [STDOUT_FILE, STDERR_FILE] {
            let from = self.stream(name);
            if from.exists() {
                let stop = Shutdown::new();
                tree::remove_at(&output, name.as_ref(), &Bounds::until(Instant::now() + REMOVE_TIME, &stop))?;
                renameat(CWD, &from, &output, name)?;
            }
        }
        Ok(())
    }

    /// Removes the folder now, within 10 s. Links in it are removed, never followed.
    ///
    /// # Errors
    /// If something is left; the folder is then kept.
    pub fn remove(mut self) -> Result<(), TreeError> {
        self.remove_tree()
    }

    /// Hands its removal over: what removes it, in place of the drop.
    pub(super) fn removal(&mut self) -> impl FnOnce(&Shutdown, Instant) -> Result<(), TreeError> + Send + use<> {
        self.ours = false;
        let root = self.root.clone();
        move |stop, deadline| tree::remove(&root, &Bounds::until(deadline, stop))
    }

    fn remove_tree(&mut self) -> Result<(), TreeError> {
        if !std::mem::take(&mut self.ours) {
            return Ok(());
        }
        tree::remove(&self.root, &Bounds::until(Instant::now() + REMOVE_TIME, &Shutdown::new()))
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        if let Err(error) = self.remove_tree() {
            log::warn!("job folder {} is left behind: {error}", self.root.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn paths_from_the_wire_stay_inside() {
        for (path, is) in [("a/b.txt", "a/b.txt"), ("", ""), (".", ""), ("./a//b/", "a/b"), ("..a/b..", "..a/b..")] {
            assert_eq!(relative(path).unwrap(), Path::new(is), "{path:?}");
        }
        for (path, why) in [
            ("../a", "climbs"),
            ("a/../../b", "climbs"),
            ("a/..", "climbs"),
            ("/etc/passwd", "absolute"),
            ("C:/a", "drive"),
            ("c:a", "drive"),
            ("a\\..\\b", "backslash"),
            ("a\0b", "NUL"),
            (&format!("a/{}", "b".repeat(PART_BYTES + 1)), "255 bytes"),
            (&"a/".repeat(RELATIVE_BYTES / 2 + 1), "3071 bytes"),
        ] {
            let error = relative(path).unwrap_err();
            assert!(error.why.contains(why), "{path:?}: {error}");
            assert!(error.to_string().contains(&format!("{path:?}")), "{error}");
        }
    }

    #[test]
    fn the_folder_is_private_and_opened_only_inside() {
        let parent = tempfile::tempdir().unwrap();
        let workspace = Workspace::create_in(parent.path()).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(workspace.private()), 0o700);
        fs::create_dir(workspace.volume().join("in")).unwrap();
        fs::write(workspace.volume().join("in/run.sh"), "x").unwrap();
        workspace.open_to_job(&Shutdown::new(), crate::base::wait::far()).unwrap();
        assert_eq!(mode(&workspace.volume().join("in/run.sh")), 0o777);
        assert_eq!(mode(&workspace.output()), 0o777);
        assert_eq!(mode(workspace.private()), 0o700);
        drop(workspace);
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 0);
    }

    #[test]
    fn removal_takes_read_only_trees_and_follows_no_link() {
        let parent = tempfile::tempdir().unwrap();
        let outside = parent.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("kept"), "x").unwrap();
        let workspace = Workspace::create_in(parent.path()).unwrap();
        let folder = workspace.output().join("locked");
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("file"), "x").unwrap();
        symlink(&outside, folder.join("link")).unwrap();
        fs::set_permissions(&folder, Permissions::from_mode(0o000)).unwrap();
        workspace.remove().unwrap();
        assert!(outside.join("kept").exists());
        assert_eq!(fs::metadata(outside.join("kept")).unwrap().permissions().mode() & 0o777, 0o644);
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 1);
    }

    #[test]
    fn streams_replace_whatever_the_job_left_there() {
        let parent = tempfile::tempdir().unwrap();
        let victim = parent.path().join("victim");
        fs::write(&victim, "old").unwrap();
        let workspace = Workspace::create_in(parent.path()).unwrap();
        fs::write(workspace.stream(STDOUT_FILE), "out").unwrap();
        fs::write(workspace.stream(STDERR_FILE), "err").unwrap();
        symlink(&victim, workspace.output().join(STDOUT_FILE)).unwrap();
        fs::create_dir_all(workspace.output().join(STDERR_FILE).join("deep")).unwrap();
        workspace.publish_streams().unwrap();
        assert_eq!(fs::read_to_string(workspace.output().join(STDOUT_FILE)).unwrap(), "out");
        assert_eq!(fs::read_to_string(workspace.output().join(STDERR_FILE)).unwrap(), "err");
        assert_eq!(fs::read_to_string(&victim).unwrap(), "old");

        fs::remove_dir_all(workspace.output()).unwrap();
        fs::write(workspace.stream(STDOUT_FILE), "again").unwrap();
        workspace.publish_streams().unwrap();
        assert_eq!(fs::read_to_string(workspace.output().join(STDOUT_FILE)).unwrap(), "again");

        fs::remove_dir_all(workspace.output()).unwrap();
        symlink(parent.path(), workspace.output()).unwrap();
        fs::write(workspace.stream(STDOUT_FILE), "out").unwrap();
        assert!(workspace.publish_streams().is_err(), "an output folder swapped for a link is not written to");
    }
}
