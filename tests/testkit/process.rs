//! The real binary: started, signalled, waited for with a limit, and nothing of it left.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crossbeam_channel::{Receiver, bounded};
use phalanx::base::thread::{Kick, Thread, spawn};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

use super::wait::{LONG, far};

/// The output of a finished process.
#[derive(Debug)]
pub struct Finished {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// A command of the binary, with its temporary files in `scratch` and none of the caller's settings.
pub fn phalanx(scratch: &Path) -> Command {
    in_scratch(Command::new(env!("CARGO_BIN_EXE_phalanx")), scratch)
}

/// A command with its temporary files in `scratch`, and none of the caller's settings.
pub fn in_scratch(mut command: Command, scratch: &Path) -> Command {
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("PHALANX_") {
            command.env_remove(name);
        }
    }
    command.env_remove("FACILITATOR_URI").env_remove("RUST_LOG").env("TMPDIR", scratch).stdin(Stdio::null());
    // Tests submit as soon as the roles say where they listen.
    command.env("PHALANX_HOLD_JOBS", "true");
    command
}

/// The command with a umask that lets everybody read and write what it makes.
pub fn for_everybody(command: &Command) -> Command {
    let mut shell = Command::new("sh");
    shell.args(["-c", "umask 000; exec \"$0\" \"$@\""]).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    shell.stdin(Stdio::null());
    shell
}

/// Runs a command to its end.
pub fn run(command: &mut Command) -> Finished {
    let output = command.output().unwrap();
    Finished {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// A running process, ended when dropped. Its output is read as it comes, so that it never waits for us.
pub struct Running {
    child: Child,
    lines: Receiver<String>,
    errors: Arc<Mutex<String>>,
    readers: Vec<Thread<String>>,
}

impl Running {
    pub fn start(command: &mut Command) -> Self {
        Self::start_saying(command, Stdio::piped())
    }

    /// As [`Running::start`], with another stderr; nothing of what goes there is in the output.
    pub fn start_saying(command: &mut Command, stderr: Stdio) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(stderr).spawn().unwrap();
        // Its own copies of what it was given are to be the last ones.
        command.stderr(Stdio::null());
        let (stdout, stderr) = (child.stdout.take().unwrap(), child.stderr.take());
        let (report, lines) = bounded(1000);
        let errors = Arc::<Mutex<String>>::default();
        let out = spawn("t-stdout", Kick::dropped("the process"), move || {
            let mut text = String::new();
            for line in BufReader::new(stdout).lines() {
                let line = line.unwrap();
                text.push_str(&line);
                text.push('\n');
                // Most tests look at the whole text only.
                let _ = report.try_send(line);
            }
            text
        });
        let said = errors.clone();
        let err = spawn("t-stderr", Kick::dropped("the process"), move || {
            for line in stderr.into_iter().flat_map(|stderr| BufReader::new(stderr).lines()) {
                let mut text = said.lock().unwrap();
                text.push_str(&line.unwrap());
                text.push('\n');
            }
            said.lock().unwrap().clone()
        });
        Self { child, lines, errors, readers: vec![out, err] }
    }

    /// The next line of stdout.
    pub fn line(&mut self) -> String {
        self.lines.recv_timeout(LONG).expect("a line of stdout")
    }

    /// What it has said on stderr so far.
    pub fn stderr(&self) -> String {
        self.errors.lock().unwrap().clone()
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits until the process has ended, at most for `limit`; says whether it has.
    pub fn ended_within(&self, limit: Duration) -> bool {
        let fd = pidfd_open(Pid::from_child(&self.child), PidfdFlags::empty()).unwrap();
        let limit = Timespec::try_from(limit).unwrap();
        rustix::event::poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&limit)).unwrap() > 0
    }

    /// Waits for the end, which has to come, and gives all its output.
    pub fn finish(mut self) -> Finished {
        assert!(self.ended_within(LONG), "the process does not end");
        let code = self.child.wait().unwrap().code();
        let mut texts = self.readers.drain(..).map(|reader| reader.join_by(far()).unwrap());
        let (stdout, stderr) = (texts.next().unwrap(), texts.next().unwrap());
        Finished { code, stdout, stderr }
    }

    /// Sends a signal, waits for the end, which has to come, and gives all its output.
    pub fn stop(self, signal: Signal) -> Finished {
        self.signal(signal);
        self.finish()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Processes whose environment names the folder: executors have it as `TMPDIR`, jobs in the paths of their folders.
pub fn processes_of(folder: &Path) -> Vec<String> {
    let needle = folder.to_string_lossy().into_owned().into_bytes();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let path = entry.path();
        let Ok(environ) = std::fs::read(path.join("environ")) else { continue };
        if environ.windows(needle.len()).any(|window| window == needle) {
            let line = std::fs::read(path.join("cmdline")).unwrap_or_default();
            // A process that has just ended has no command line any more.
            if !line.is_empty() {
                found.push(String::from_utf8_lossy(&line).replace('\0', " "));
            }
        }
    }
    found
}

/// Asserts that no process and no file of a run is left.
pub fn nothing_left(scratch: &Path) {
    let processes = processes_of(scratch);
    assert!(processes.is_empty(), "left running: {processes:?}");
    let files: Vec<_> = std::fs::read_dir(scratch).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(files.is_empty(), "left in the temporary folder: {files:?}");
}
