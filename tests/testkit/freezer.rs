//! Holds single threads of a process, so that a test sees what becomes of a loop that hangs: the freezer of control
//! groups, version 1, which takes threads. It takes root.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use super::wait::until;

const ROOT: &str = "/sys/fs/cgroup/freezer";

static NEXT: AtomicU32 = AtomicU32::new(0);

/// Threads that are held; they go on when it is dropped.
pub struct Frozen {
    group: PathBuf,
}

/// Whether this machine can; `tests/preflight` says so too.
pub fn is_there() -> bool {
    let there = Path::new(ROOT).join("tasks").exists() && rustix::process::geteuid().is_root();
    assert!(there || std::env::var_os("PHALANX_TEST_REQUIRE_ALL").is_none(), "there is no freezer in {ROOT}");
    there
}

/// The number of a process' thread, by the beginning of its name.
pub fn thread_of(process: u32, name: &str) -> Option<u32> {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).ok()?;
    tasks.flatten().find_map(|task| {
        let known = fs::read_to_string(task.path().join("comm")).ok()?;
        known.starts_with(name).then(|| task.file_name().to_str()?.parse().ok()).flatten()
    })
}

impl Frozen {
    /// Holds those threads, wherever they are.
    pub fn hold(threads: &[u32]) -> Self {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let group = Path::new(ROOT).join(format!("phalanx-test-{}-{number}", std::process::id()));
        fs::create_dir(&group).unwrap();
        let frozen = Self { group };
        for thread in threads {
            fs::write(frozen.group.join("tasks"), thread.to_string()).unwrap();
        }
        fs::write(frozen.state(), "FROZEN").unwrap();
        until("the threads are held", || fs::read_to_string(frozen.state()).unwrap().trim() == "FROZEN");
        frozen
    }

    fn state(&self) -> PathBuf {
        self.group.join("freezer.state")
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        fs::write(self.state(), "THAWED").unwrap();
        let tasks = fs::read_to_string(self.group.join("tasks")).unwrap_or_default();
        for task in tasks.lines() {
            // It may have ended meanwhile.
            let _ended = fs::write(Path::new(ROOT).join("tasks"), task);
        }
        // It fails as long as one that has ended is not gone yet; the folder is empty and costs nothing.
        let _left = fs::remove_dir(&self.group);
    }
}
