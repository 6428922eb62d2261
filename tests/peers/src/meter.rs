//! What the kernel knows of a process.

use std::fs;

use nix::time::{ClockId, clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;

/// The state of a process at one moment.
#[derive(Clone, Copy, Default)]
pub struct Reading {
    /// CPU nanoseconds of all its threads, those that ended included.
    pub cpu: u64,
    /// Context switches, voluntary and not, of the threads that live.
    pub switches: u64,
    /// The most resident memory so far, KiB.
    pub peak_kib: u64,
    /// Resident memory now, KiB.
    pub resident_kib: u64,
    /// Threads that live.
    pub threads: u64,
}

/// CPU nanoseconds of a process: all its threads, those that ended included.
///
/// # Errors
/// What the system says.
pub fn cpu(pid: u32) -> Result<u64, String> {
    nanos(clock_getcpuclockid(Pid::from_raw(pid as i32)).map_err(|e| format!("CPU clock of {pid}: {e}"))?)
}

fn nanos(clock: ClockId) -> Result<u64, String> {
    let time = clock_gettime(clock).map_err(|e| format!("CPU clock: {e}"))?;
    Ok(time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64)
}

/// CPU nanoseconds of the calling thread.
///
/// # Errors
/// What the system says.
pub fn own_cpu() -> Result<u64, String> {
    nanos(ClockId::CLOCK_THREAD_CPUTIME_ID)
}

/// Reads the state of a process.
///
/// # Errors
/// What the system says, as when the process has ended.
pub fn read(pid: u32) -> Result<Reading, String> {
    let mut reading = Reading { cpu: cpu(pid)?, ..Reading::default() };
    let status = fs::read_to_string(format!("/proc/{pid}/status")).map_err(|e| format!("/proc/{pid}/status: {e}"))?;
    reading.peak_kib = field(&status, "VmHWM:")?;
    reading.resident_kib = field(&status, "VmRSS:")?;
    for task in fs::read_dir(format!("/proc/{pid}/task")).map_err(|e| format!("/proc/{pid}/task: {e}"))? {
        let path = task.map_err(|e| e.to_string())?.path().join("status");
        // A thread may end between the listing and the reading.
        let Ok(status) = fs::read_to_string(path) else { continue };
        reading.switches +=
            field(&status, "voluntary_ctxt_switches:")? + field(&status, "nonvoluntary_ctxt_switches:")?;
        reading.threads += 1;
    }
    Ok(reading)
}

fn field(status: &str, name: &str) -> Result<u64, String> {
    let line = status.lines().find_map(|line| line.strip_prefix(name)).ok_or_else(|| format!("no {name} in status"))?;
    let number = line.split_whitespace().next().unwrap_or_default();
    number.parse().map_err(|e| format!("{name} {number:?}: {e}"))
}
