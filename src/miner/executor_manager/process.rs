//! Executors as processes of this machine: `phalanx executor`, each in a process group that is ended as a whole.
//!
//! The thread that runs an executor blocks in one `poll` over three things: the process (a pidfd), its stderr, and a pipe
//! that the stop signal writes to. So nothing is signalled after it was reaped, and no second thread is needed.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

use super::docker::remove_containers_of;
use super::leftovers::ExecutorFolder;
use super::{END_GRACE, ExecutorBackend, ExecutorError, ExecutorExit, ExecutorSpec, FORCED_GRACE};
use crate::base::shutdown::{Level, Shutdown};
use crate::base::waits::waiting;

/// A line of an executor's output is taken in pieces of at most this many bytes.
const LINE_BYTES: usize = 8 << 10;

/// Variables that are not handed on, because they configure the miner, its key among them…
const OWN_VARIABLES: &str = "PHALANX_";

/// …except this one: whom to trust at the other end of `wss://`, which is the miner, with perhaps a private authority.
const TLS_CA: &str = "PHALANX_TLS_CA";

fn is_own(name: &OsStr) -> bool {
    name != TLS_CA && name.as_bytes().starts_with(OWN_VARIABLES.as_bytes())
}

/// Runs `<program> executor --startup-time-limit S --runner R` with `MINER_ADDRESS` and `EXECUTOR_TOKEN`.
///
/// Its environment is the miner's, without the miner's own `PHALANX_…` variables but `PHALANX_TLS_CA`, and with a `TMPDIR` of its own that is
/// removed after the run. What a killed executor leaves of its job is killed as well. Linux only, for the pidfd.
#[derive(Debug, Clone)]
pub struct ProcessBackend {
    /// The program, by default this one.
    pub program: PathBuf,
    /// The value of `--runner`.
    pub runner: String,
    /// Another executor's arguments, instead of ours.
    pub arguments: Option<Vec<String>>,
    /// Time from the first SIGTERM to SIGKILL.
    pub end_grace: Duration,
}

impl ProcessBackend {
    /// A back end that runs this program.
    ///
    /// # Errors
    /// What the system says when it cannot tell which program this is.
    pub fn new(runner: impl Into<String>) -> io::Result<Self> {
        let program = std::env::current_exe()?;
        Ok(Self { program, runner: runner.into(), arguments: None, end_grace: END_GRACE })
    }
}

/// Our executor's arguments.
pub(super) fn executor_arguments(spec: &ExecutorSpec, runner: &str) -> Vec<String> {
    // Whole seconds, rounded up: that is what the Python executor takes.
    let seconds = spec.startup_time_limit.as_secs() + u64::from(spec.startup_time_limit.subsec_nanos() > 0);
    let seconds = seconds.to_string();
    ["executor", "--startup-time-limit", &seconds, "--runner", runner].map(str::to_owned).into()
}

impl ExecutorBackend for ProcessBackend {
    fn run(&self, spec: &ExecutorSpec, stop: &Shutdown) -> Result<ExecutorExit, ExecutorError> {
        if stop.is_set() {
            return Ok(ExecutorExit::Unknown);
        }
        let folder = ExecutorFolder::create().map_err(ExecutorError::Folder)?;
        let mut command = Command::new(&self.program);
        match &self.arguments {
            Some(arguments) => command.args(arguments),
            None => command.args(executor_arguments(spec, &self.runner)),
        };
        command.env("MINER_ADDRESS", &spec.miner_address).env("EXECUTOR_TOKEN", &spec.token);
        command.env("TMPDIR", folder.path());
        let who = format!("executor of job {}", spec.job_uuid);
        let end = GroupRun { command, who: &who, stop, end_grace: self.end_grace, deadline: None, stdout: None }.run();
        // One that exits by itself has ended its job before.
        if !matches!(end, Ok(ExecutorExit::Code(_)) | Err(ExecutorError::Start { .. })) {
            if let Err(error) = folder.end_processes() {
                log::error!("{who}: what is left of its job may still run: {error}");
            }
            if self.runner != "process" {
                remove_containers_of(&spec.job_uuid);
            }
        }
        end
    }
}

/// One run of a command in a process group of its own.
pub(super) struct GroupRun<'a> {
    /// What to run.
    pub command: Command,
    /// Under which name its stderr goes to our log.
    pub who: &'a str,
    /// Ends it: at `Drain` with `end_grace`, at `Cancel` with [`FORCED_GRACE`].
    pub stop: &'a Shutdown,
    /// Time from the first SIGTERM to SIGKILL.
    pub end_grace: Duration,
    /// Ends it then.
    pub deadline: Option<Instant>,
    /// Takes the lines of its stdout; then its stderr is dropped instead of logged.
    pub stdout: Option<&'a mut Vec<String>>,
}

impl GroupRun<'_> {
    /// Waits until the command has ended, and then ends whatever is left of its group.
    pub fn run(mut self) -> Result<ExecutorExit, ExecutorError> {
        if self.stop.is_set() {
            return Ok(ExecutorExit::Unknown);
        }
        let command = &mut self.command;
        for (name, _) in std::env::vars_os() {
            if is_own(&name) {
                command.env_remove(&name);
            }
        }
        let (out, err) = match self.stdout {
            Some(_) => (Stdio::piped(), Stdio::null()),
            None => (Stdio::null(), Stdio::piped()),
        };
        command.stdin(Stdio::null()).stdout(out).stderr(err).process_group(0);
        let program = PathBuf::from(command.get_program());
        let child = command.spawn().map_err(|source| ExecutorError::Start { program, source })?;
        let mut group = Group { child };
        log::debug!("{}: started as process {}", self.who, group.child.id());
        self.watch(&mut group).map_err(ExecutorError::Watch)
    }

    fn watch(mut self, group: &mut Group) -> io::Result<ExecutorExit> {
        let ended = pidfd_open(Pid::from_child(&group.child), PidfdFlags::empty())?;
        let (mut woken, wake) = io::pipe()?;
        let wake = Arc::new(wake);
        let _kicks = [Level::Drain, Level::Cancel].map(|level| {
            let wake = wake.clone();
            // Only fails when the reading end is gone, and then nobody waits any more.
            self.stop.on(level, move || drop(wake.as_ref().write(&[1])))
        });
        let stream = match (group.child.stdout.take(), group.child.stderr.take()) {
            (Some(stdout), _) => Some(OwnedFd::from(stdout)),
            (None, stderr) => stderr.map(OwnedFd::from),
        };
        let mut lines = stream.map(|fd| Lines { stream: File::from(fd), line: Vec::new() });
        let mut ladder = Ladder { step: 0, next: self.deadline, grace: self.end_grace };
        loop {
            let mut waits = vec![PollFd::new(&ended, PollFlags::IN), PollFd::new(&woken, PollFlags::IN)];
            waits.extend(lines.as_ref().map(|lines| PollFd::new(&lines.stream, PollFlags::IN)));
            let marked = waiting("its executor to say something, or to end", ladder.next);
            match poll(&mut waits, ladder.wait(Instant::now()).as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            drop(marked);
            let ready: Vec<bool> = waits.iter().map(|wait| !wait.revents().is_empty()).collect();
            if let Some(reading) = &mut lines
                && ready[2]
                && !reading.read(&mut |line| self.take(line))?
            {
                lines = None;
            }
            if ready[1] {
                // One byte a kick; which it was, the level says.
                woken.read_exact(&mut [0])?;
                ladder.begin(Instant::now());
                if self.stop.is_cancelled() {
                    ladder.hurry(Instant::now());
                }
            }
            if let Some(signal) = ladder.due(Instant::now()) {
                log::debug!("{}: {signal:?} to its process group", self.who);
                group.signal(signal);
            }
            if ready[0] {
                break;
            }
        }
        group.signal(Signal::KILL);
        if let Some(mut reading) = lines {
            reading.drain(&mut |line| self.take(line))?;
        }
        let status = group.child.wait()?;
        Ok(match (status.code(), status.signal()) {
            (Some(code), _) => ExecutorExit::Code(code),
            (None, Some(signal)) => ExecutorExit::Signal(signal),
            (None, None) => ExecutorExit::Unknown,
        })
    }

    fn take(&mut self, line: &str) {
        match &mut self.stdout {
            Some(lines) => lines.push(line.to_owned()),
            None => log::info!("{}: {line}", self.who),
        }
    }
}

/// A process group whose leader is our child; dropping it kills the group and reaps the leader.
struct Group {
    child: Child,
}

impl Group {
    fn signal(&self, signal: Signal) {
        // The leader is not reaped before this value is dropped, so the number cannot belong to another group.
        match kill_process_group(Pid::from_child(&self.child), signal) {
            Ok(()) | Err(Errno::SRCH) => {}
            Err(error) => log::warn!("cannot signal process group {}: {error}", self.child.id()),
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // After a wait this finds no child to kill, and the status is known.
        if matches!(self.child.try_wait(), Ok(None)) {
            self.signal(Signal::KILL);
            if let Err(error) = self.child.wait() {
                log::warn!("cannot reap process {}: {error}", self.child.id());
            }
        }
    }
}

/// Which signal comes next, and when.
struct Ladder {
    step: usize,
    next: Option<Instant>,
    grace: Duration,
}

impl Ladder {
    const STEPS: [Signal; 3] = [Signal::TERM, Signal::TERM, Signal::KILL];

    /// The first signal is due now, unless it was sent already.
    fn begin(&mut self, now: Instant) {
        if self.step == 0 {
            self.next = Some(now);
        }
    }

    /// The rest of the signals follow within [`FORCED_GRACE`].
    fn hurry(&mut self, now: Instant) {
        self.grace = self.grace.min(FORCED_GRACE);
        self.next = self.next.map(|at| at.min(now + self.grace / 2));
    }

    /// How long to wait for the next signal; `None`: for ever.
    fn wait(&self, now: Instant) -> Option<Timespec> {
        // A timespec holds any wait of a stop; one that it does not hold ends early, which only makes the loop turn.
        let left = self.next?.saturating_duration_since(now);
        Some(Timespec::try_from(left).unwrap_or(Timespec { tv_sec: 3600, tv_nsec: 0 }))
    }

    fn due(&mut self, now: Instant) -> Option<Signal> {
        self.next.filter(|at| *at <= now)?;
        let signal = Self::STEPS[self.step];
        self.step += 1;
        self.next = (self.step < Self::STEPS.len()).then(|| now + self.grace / 2);
        Some(signal)
    }
}

/// A stream of an executor, by lines.
struct Lines {
    stream: File,
    line: Vec<u8>,
}

impl Lines {
    /// Reads once, which does not block after a poll; says whether there may be more.
    fn read(&mut self, take: &mut dyn FnMut(&str)) -> io::Result<bool> {
        let mut bytes = [0; LINE_BYTES];
        let count = match self.stream.read(&mut bytes) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(true),
            read => read?,
        };
        for byte in &bytes[..count] {
            if *byte == b'\n' || self.line.len() == LINE_BYTES {
                self.flush(take);
            }
            if *byte != b'\n' {
                self.line.push(*byte);
            }
        }
        if count == 0 {
            self.flush(take);
        }
        Ok(count > 0)
    }

    /// Reads what is there now. Somebody outside the group may hold the other end, so the end is not waited for.
    fn drain(&mut self, take: &mut dyn FnMut(&str)) -> io::Result<()> {
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        while poll(&mut [PollFd::new(&self.stream, PollFlags::IN)], Some(&now))? == 1 && self.read(take)? {}
        self.flush(take);
        Ok(())
    }

    fn flush(&mut self, take: &mut dyn FnMut(&str)) {
        if !self.line.is_empty() {
            take(&String::from_utf8_lossy(&self.line));
            self.line.clear();
        }
    }
}
