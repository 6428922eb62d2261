//! The program that is an executor, or that stands for one: its arguments, its environment, its end, its lines in our
//! log.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use super::backend::{ExecutorError, ExecutorExit, ExecutorSpec, FORCED_GRACE};
use super::ports::{ClientPort, ClientPorts, PORT, PORTS};
use super::said::Said;
use super::settings::{ExecutorSettings, TOKEN};
use crate::base::shutdown::{Level, Shutdown};
use crate::ops::errors::{ErrorClass, ErrorHandler};
use crate::proc::adopted::Adopted;
use crate::proc::group::{GroupError, GroupRun};
use crate::proc::ladder::Ladder;
use crate::proc::notify;

/// A line of an executor's output is taken in pieces of at most this many bytes.
const LINE_BYTES: usize = 8 << 10;

/// Tells our executor how to label what it makes: the variable of its flag `--label`.
pub(super) const LABELS: &str = "PHALANX_LABEL";

/// Variables that are not handed on, because they configure the miner, its key among them. What executors are to have
/// of them is in their settings.
const OWN_VARIABLES: &str = "PHALANX_";

/// Neither are, beside those of its notices, the one by which the service manager gives the miner its secrets.
const CREDENTIALS: &str = "CREDENTIALS_DIRECTORY";

fn is_own(name: &OsStr) -> bool {
    let of_service = name == CREDENTIALS || notify::VARIABLES.iter().any(|of_service| name == *of_service);
    of_service || name.as_bytes().starts_with(OWN_VARIABLES.as_bytes())
}

/// Stands in another executor's arguments for the seconds that it has until its job comes.
const STARTUP_SECONDS: &str = "{startup_seconds}";

/// An executor's arguments: those of `other`, or ours.
pub(super) fn arguments(spec: &ExecutorSpec, runner: &str, other: Option<&[String]>) -> Vec<String> {
    // Whole seconds, rounded up: that is what the Python executor takes.
    let seconds = spec.startup_time_limit.as_secs() + u64::from(spec.startup_time_limit.subsec_nanos() > 0);
    let seconds = seconds.to_string();
    match other {
        Some(arguments) => arguments.iter().map(|argument| argument.replace(STARTUP_SECONDS, &seconds)).collect(),
        None => ["executor", "--startup-time-limit", &seconds, "--runner", runner].map(str::to_owned).into(),
    }
}

/// Gives a program the environment of an executor: ours without our own settings, its settings, where to dial and with
/// what. Names only are in its arguments, if anywhere, so no process list shows the token.
pub(super) fn environment(command: &mut Command, spec: &ExecutorSpec, settings: &ExecutorSettings) {
    labelled(command, spec);
    command.envs(settings.of(&spec.class));
    command.env("MINER_ADDRESS", &spec.miner_address).env(TOKEN, &spec.token);
}

/// Gives another executor than ours a port for the clients of a streaming job, as long as the value lives.
pub(super) fn client_port<'a>(
    command: &mut Command,
    ports: Option<&'a ClientPorts>,
    errors: &ErrorHandler,
) -> Option<ClientPort<'a>> {
    let port = ports?.take(errors);
    match &port {
        Some(port) => drop(command.env(PORT, port.port.to_string())),
        None => {
            let what = "none is free for the clients of a streaming job; the executor has to find one";
            errors.report(ErrorClass::Rejected, PORTS, &what);
        }
    }
    port
}

/// Gives a program our environment without our own settings, and what it labels its containers with.
pub(super) fn labelled(command: &mut Command, spec: &ExecutorSpec) {
    std::env::vars_os().map(|(name, _)| name).filter(|name| is_own(name)).for_each(|name| {
        command.env_remove(name);
    });
    let labels = spec.labels().map(|(name, value)| format!("{name}={value}"));
    command.env(LABELS, labels.join(","));
}

/// Runs the program until it ends. At `Drain` it is stopped within `end_grace`, at `Cancel` within [`FORCED_GRACE`].
///
/// It gets a second SIGTERM half-way, for executors that finish their work on the first. One that does not even end
/// when it is killed is waited for, because its slot is not free before.
pub(super) fn run(
    command: Command,
    spec: &ExecutorSpec,
    stop: &Shutdown,
    end_grace: Duration,
) -> Result<ExecutorExit, ExecutorError> {
    let program = PathBuf::from(command.get_program());
    let ladder = ladder(end_grace);
    let mut lines = Lines { job: &spec.job_uuid, line: Vec::new() };
    let run = GroupRun {
        command,
        stop,
        stop_at: Level::Drain,
        deadline: None,
        silence: None,
        ladder,
        stdout: None,
        stderr: Some(&mut |bytes| lines.take(bytes)),
        terminate: None,
    };
    let ended = run.run();
    lines.flush();
    match ended {
        Ok(ended) => Ok(ended.status.into()),
        Err(GroupError::Start(source)) => Err(ExecutorError::Start { program, source }),
        Err(error) => Err(ExecutorError::Watch(error)),
    }
}

fn ladder(end_grace: Duration) -> Ladder {
    Ladder { terms: 2, grace: end_grace, forced_grace: FORCED_GRACE, kill_time: None }
}

/// As [`run`], for a program that an earlier process has started; its lines are in no log any more. It is known by its
/// token, which no other program has.
pub(super) fn adopt(spec: &ExecutorSpec, stop: &Shutdown, end_grace: Duration) -> Result<ExecutorExit, ExecutorError> {
    let watch = |error| ExecutorError::Watch(GroupError::Watch(error));
    let marker = format!("{TOKEN}={}", spec.token);
    let Some(found) = Adopted::find(marker.as_bytes()).map_err(watch)? else { return Err(ExecutorError::Lost) };
    log::info!("job {}: its executor lives and is watched again", spec.job_uuid);
    found.wait(stop, Level::Drain, ladder(end_grace)).map_err(watch)?;
    Ok(ExecutorExit::Unknown)
}

/// What an executor says, by lines.
struct Lines<'a> {
    job: &'a str,
    line: Vec<u8>,
}

impl Lines<'_> {
    fn take(&mut self, bytes: &[u8]) {
        for byte in bytes {
            if *byte == b'\n' || self.line.len() == LINE_BYTES {
                self.flush();
            }
            if *byte != b'\n' {
                self.line.push(*byte);
            }
        }
    }

    fn flush(&mut self) {
        if !self.line.is_empty() {
            let line = String::from_utf8_lossy(&self.line);
            let said = Said::read(&line);
            let message = said.message.replace(&format!("job {}: ", self.job), "");
            log::log!(said.level, "job {}: executor says: {message}", self.job);
            self.line.clear();
        }
    }
}
