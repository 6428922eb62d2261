//! A workspace for one test, and the proof that nothing of the test's jobs is left.

use std::fs;

use phalanx::executor::runner::RunSpec;
use phalanx::executor::workspace::Workspace;

use super::threads::NoThreads;
use super::wait::until;

/// The surroundings of one test; [`Bench::assert_clean`] must be its last line.
pub struct Bench {
    /// Where workspaces are made, so that what is left of them is seen.
    pub folder: tempfile::TempDir,
    mark: String,
    /// Dropped last.
    _threads: NoThreads,
}

impl Bench {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mark = format!("PHALANX_TEST_MARK={}", folder.path().display());
        Self { folder, mark, _threads: NoThreads::expected() }
    }

    pub fn workspace(&self) -> Workspace {
        Workspace::create_in(self.folder.path()).unwrap()
    }

    /// A job with a mark in its environment, by which its processes are found.
    pub fn spec(&self, command: &[&str]) -> RunSpec {
        let (key, value) = self.mark.split_once('=').unwrap();
        RunSpec {
            command: command.iter().map(|arg| (*arg).to_owned()).collect(),
            env: vec![(key.to_owned(), value.to_owned())],
            ..RunSpec::default()
        }
    }

    pub fn sh(&self, script: &str) -> RunSpec {
        self.spec(&["sh", "-c", script])
    }

    /// Numbers of the live processes of this test's jobs, wherever they have moved.
    pub fn processes(&self) -> Vec<u32> {
        let numbers =
            fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
        numbers.filter(|pid| self.is_ours(*pid)).collect()
    }

    fn is_ours(&self, pid: u32) -> bool {
        // A process that has ended meanwhile cannot be read, and a zombie has no environment any more.
        let environ = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environ.split(|byte| *byte == 0).any(|variable| variable == self.mark.as_bytes())
    }

    /// No process and no folder is left, and then no thread.
    pub fn assert_clean(self) {
        // On a busy machine one that was killed takes a moment to be gone; a `sleep 1000` is not gone by itself.
        until("the processes of the job are gone", || self.processes().is_empty());
        let left: Vec<_> = fs::read_dir(self.folder.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert!(left.is_empty(), "folders are left: {left:?}");
    }
}
