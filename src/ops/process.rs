//! What the system says of this process.

use std::fs;

use serde::{Deserialize, Serialize};

/// Read from `/proc/self`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Resident memory in bytes.
    pub resident_memory_bytes: usize,
    /// Threads, also those that are not ours.
    pub threads: usize,
    /// Open file descriptors.
    pub open_fds: usize,
}

impl Process {
    /// The present numbers; `None` where the system has no `/proc` as Linux has it.
    pub fn read() -> Option<Self> {
        let (resident_memory_bytes, threads) = memory_and_threads(&fs::read_to_string("/proc/self/status").ok()?)?;
        // The listing itself is one more descriptor.
        let open_fds = fs::read_dir("/proc/self/fd").ok()?.count().saturating_sub(1);
        Some(Self { resident_memory_bytes, threads, open_fds })
    }
}

fn memory_and_threads(status: &str) -> Option<(usize, usize)> {
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let kib: usize = field("VmRSS:")?.strip_suffix("kB")?.trim().parse().ok()?;
    Some((kib * 1024, field("Threads:")?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_systems_text_is_read() {
        let status = "Name:\tx\nVmRSS:\t    2048 kB\nRssAnon:\t 1 kB\nThreads:\t7\n";
        assert_eq!(memory_and_threads(status), Some((2 << 20, 7)));
        for wrong in ["", "VmRSS:\t1 MB\nThreads:\t1\n", "VmRSS:\t1 kB\n", "VmRSS:\t1 kB\nThreads:\tx\n"] {
            assert_eq!(memory_and_threads(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn an_open_file_is_counted() {
        // Other tests of this process open and close files as well, so only a large difference tells.
        let files: Vec<_> = (0..200).map(|_| fs::File::open("/dev/null").unwrap()).collect();
        let now = Process::read().unwrap();
        assert!(now.open_fds >= files.len() && now.threads >= 1 && now.resident_memory_bytes > 1 << 20, "{now:?}");
    }
}
