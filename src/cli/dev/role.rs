//! One role of `phalanx dev`: this program as a process of its own, which ends when we do, however we end.
//!
//! Owner of the threads `dev-NAME`: [`RoleProcess`]. Each blocks in: a read of the role's stdout until it is ready, and
//! then until it has ended. Kick: SIGKILL to the role. It ends: with the role.

use std::io::{self, BufRead, BufReader, Read};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;

use crossbeam_channel::{Receiver, bounded, select};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::app::logging::NAME_FLAG;
use crate::app::parent;
use crate::base::shutdown::Shutdown;
use crate::base::thread::{Kick, Thread, spawn};
use crate::base::waits::waiting;
use crate::proc::this;

/// Bytes of a role's ready line: two addresses.
const LINE_BYTES: u64 = 4096;

/// A role that runs.
#[derive(Debug)]
pub(super) struct RoleProcess {
    /// The command that it is.
    pub(super) name: &'static str,
    process: Process,
    ready: Receiver<()>,
    /// How it has ended, in words.
    ended: Receiver<String>,
    thread: Thread<io::Result<ExitStatus>>,
}

/// The process of a role. Clones are the same; a signal to one that has ended goes nowhere.
#[derive(Debug, Clone)]
pub(super) struct Process(Arc<OwnedFd>);

impl Process {
    /// Asks it to stop.
    pub(super) fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// Asks one that was asked to stop to hurry; by another signal, because two of a kind may arrive as one.
    pub(super) fn hurry(&self) {
        self.signal(Signal::INT);
    }

    /// Has it read its settings again.
    pub(super) fn reload(&self) {
        self.signal(Signal::HUP);
    }

    fn signal(&self, signal: Signal) {
        match pidfd_send_signal(&self.0, signal) {
            Ok(()) | Err(Errno::SRCH) => {}
            Err(error) => log::warn!("{signal:?} cannot be sent to a role: {error}"),
        }
    }
}

impl RoleProcess {
    /// Starts the role with the settings of this file alone. `over` is set when it ends. Its stderr is ours, in which
    /// its lines have its name.
    ///
    /// # Errors
    /// What the system says.
    pub(super) fn start(name: &'static str, config: &Path, over: &Shutdown) -> io::Result<Self> {
        let mut command = Command::new(this::program()?);
        command.arg("--config").arg(config).arg(name).arg(parent::FLAG).arg(std::process::id().to_string());
        command.arg(NAME_FLAG).arg(name);
        for (variable, _) in std::env::vars_os() {
            if variable.to_string_lossy().starts_with("PHALANX_") {
                command.env_remove(variable);
            }
        }
        // It is not the service that a manager has started.
        command.env_remove("FACILITATOR_URI").env_remove("NOTIFY_SOCKET").env_remove("WATCHDOG_PID");
        // A group of its own: a Ctrl-C is for us, who stop the roles in order.
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).process_group(0).spawn()?;
        let process = match pidfd_open(Pid::from_child(&child), PidfdFlags::empty()) {
            Ok(process) => Process(Arc::new(process)),
            Err(error) => {
                child.kill()?;
                child.wait()?;
                return Err(error.into());
            }
        };
        let (told, ready) = bounded(1);
        let (told_end, ended) = bounded(1);
        let (killed, over) = (process.clone(), over.clone());
        let kick = Kick::new("SIGKILL to the role", move || killed.signal(Signal::KILL));
        let thread = spawn(format!("dev-{name}"), kick, move || {
            let waits = waiting("a role to be ready", None);
            // Nothing else comes there; it stays open for as long as the role runs.
            let mut stdout = child.stdout.take().map(|stdout| BufReader::new(stdout.take(LINE_BYTES)));
            let mut line = String::new();
            let read = stdout.as_mut().map_or(Ok(0), |stdout| stdout.read_line(&mut line));
            drop(waits);
            if read.is_ok_and(|_| line.ends_with('\n')) {
                // Who has given up waiting needs it no more.
                let _ = told.send(());
            }
            let waits = waiting("a role to end", None);
            let status = child.wait();
            drop(waits);
            let how = status.as_ref().map_or_else(|error| format!("an unknown status ({error})"), ToString::to_string);
            // There is room for one.
            let _ = told_end.send(how);
            over.drain();
            status
        });
        Ok(Self { name, process, ready, ended, thread })
    }

    /// Waits until it is ready, or `over` is set.
    pub(super) fn wait_until_ready(&self, over: &Shutdown) {
        select! {
            recv(self.ready) -> _ => {},
            recv(over.drain_receiver()) -> _ => {},
        }
    }

    pub(super) fn process(&self) -> Process {
        self.process.clone()
    }

    /// How it has ended, if it has; said once.
    pub(super) fn how_ended(&self) -> Option<String> {
        self.ended.try_recv().ok()
    }

    /// The thread that gives how it has ended.
    pub(super) fn into_thread(self) -> (&'static str, Thread<io::Result<ExitStatus>>) {
        (self.name, self.thread)
    }
}
