//! A program whose output is only looked at, under a deadline.

use std::io;
use std::process::Command;
use std::time::{Duration, Instant};

use super::group::{Cause, GroupError, GroupRun};
use super::ladder::Ladder;
use crate::base::shutdown::{Level, Shutdown};

/// Bytes that are kept of each stream.
const KEPT_BYTES: usize = 1 << 20;

/// How a tool is ended. The grace is enough to close files, and short enough that a cancelled caller ends within a
/// second.
pub(crate) const LADDER: Ladder = {
    let grace = Duration::from_millis(500);
    Ladder { terms: 1, grace, forced_grace: grace, kill_time: Some(Duration::from_secs(10)) }
};

/// Why a tool did not do what it was to do. `doing` completes "cannot …".
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ToolError {
    /// It could not be started.
    #[error("cannot start {program}: {source}")]
    Start {
        /// The program.
        program: String,
        /// The error of the system.
        source: io::Error,
    },
    /// It could not be watched, or did not end.
    #[error("cannot {doing}: {source}")]
    Watch {
        /// What was to be done.
        doing: &'static str,
        /// Why.
        source: GroupError,
    },
    /// It failed.
    #[error("cannot {doing}: {text}")]
    Failed {
        /// What was to be done.
        doing: &'static str,
        /// The stderr of the tool.
        text: String,
    },
    /// The deadline passed first, and it was ended.
    #[error("deadline passed while trying to {0}")]
    TimedOut(&'static str),
    /// The stop signal came first, and it was ended.
    #[error("cancelled while trying to {0}")]
    Cancelled(&'static str),
}

impl ToolError {
    /// The error of a program that was to do something and did not run to its end.
    pub(crate) fn of(command: &str, doing: &'static str, error: GroupError) -> Self {
        match error {
            GroupError::Start(source) => ToolError::Start { program: command.to_owned(), source },
            source => ToolError::Watch { doing, source },
        }
    }
}

/// Runs a program and gives what it prints, trimmed. Blocks until it ends, `deadline` passes or `stop` is cancelled.
///
/// # Errors
/// [`ToolError`]; a failure of its own is [`ToolError::Failed`] with what it says.
pub fn output(command: Command, doing: &'static str, stop: &Shutdown, deadline: Instant) -> Result<String, ToolError> {
    watched(command, doing, stop, Limits { deadline, silence: None }, &mut |_| {})
}

/// When a tool is ended.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) deadline: Instant,
    /// How long it may write nothing.
    pub(crate) silence: Option<Duration>,
}

/// The same as [`output`] of a program that tells how it gets on: each piece of its standard output is handed over as
/// it comes.
pub(crate) fn watched(
    command: Command,
    doing: &'static str,
    stop: &Shutdown,
    limits: Limits,
    progress: &mut dyn FnMut(&[u8]),
) -> Result<String, ToolError> {
    let program = command.get_program().to_string_lossy().into_owned();
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let run = GroupRun {
        command,
        stop,
        stop_at: Level::Cancel,
        deadline: Some(limits.deadline),
        silence: limits.silence,
        ladder: LADDER,
        stdout: Some(&mut |bytes| {
            progress(bytes);
            keep(&mut stdout, bytes);
        }),
        stderr: Some(&mut |bytes| keep(&mut stderr, bytes)),
        terminate: None,
    };
    let ended = run.run().map_err(|error| ToolError::of(&program, doing, error))?;
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).trim().to_owned();
    match ended.cause {
        Some(Cause::Deadline) => Err(ToolError::TimedOut(doing)),
        Some(Cause::Silence) => {
            let silence = limits.silence.unwrap_or_default();
            let text = format!("nothing happened for {} s; {}", silence.as_secs_f64(), text(stderr));
            Err(ToolError::Failed { doing, text: text.trim_end_matches("; ").to_owned() })
        }
        Some(Cause::Stop) => Err(ToolError::Cancelled(doing)),
        None if ended.status.success() => Ok(text(stdout)),
        None => {
            let stderr = text(stderr);
            let text = if stderr.is_empty() { format!("{program} ended with {}", ended.status) } else { stderr };
            Err(ToolError::Failed { doing, text })
        }
    }
}

fn keep(kept: &mut Vec<u8>, bytes: &[u8]) {
    let room = KEPT_BYTES - kept.len();
    kept.extend_from_slice(&bytes[..bytes.len().min(room)]);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Result<String, ToolError> {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        output(command, "try", &Shutdown::new(), Instant::now() + Duration::from_secs(60))
    }

    #[test]
    fn output_is_trimmed_and_bounded_and_a_failure_has_the_stderr_of_the_tool() {
        assert_eq!(sh("echo ' a b '; echo no >&2").unwrap(), "a b");
        assert_eq!(sh("head -c 3000000 /dev/zero | tr '\\0' x").unwrap().len(), KEPT_BYTES);
        assert_eq!(sh("echo no >&2; exit 3").unwrap_err().to_string(), "cannot try: no");
        assert_eq!(sh("exit 3").unwrap_err().to_string(), "cannot try: sh ended with exit status: 3");
        let deadline = Instant::now() + Duration::from_secs(60);
        let missing = output(Command::new("/nonexistent/tool"), "try", &Shutdown::new(), deadline).unwrap_err();
        assert!(missing.to_string().starts_with("cannot start /nonexistent/tool: "), "{missing}");
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn deadline_and_silence_and_cancel_end_a_tool() {
        let sleep = || {
            let mut command = Command::new("sleep");
            command.arg("1000");
            command
        };
        let stop = Shutdown::new();
        let error = output(sleep(), "sleep", &stop, Instant::now()).unwrap_err();
        assert!(matches!(error, ToolError::TimedOut("sleep")), "{error}");
        // What it writes puts the end of a silent one off.
        let mut command = Command::new("sh");
        command.args(["-c", "for i in 1 2 3; do echo $i; sleep 0.4; done; echo but >&2; exec sleep 1000"]);
        let limits = Limits { deadline: Instant::now() + 1000 * SECOND, silence: Some(SECOND) };
        let (begun, mut lines) = (Instant::now(), 0);
        let error = watched(command, "sleep", &stop, limits, &mut |_| lines += 1).unwrap_err();
        assert_eq!(error.to_string(), "cannot sleep: nothing happened for 1 s; but");
        assert!(lines >= 1 && begun.elapsed() > 2 * SECOND, "{lines} in {:?}", begun.elapsed());
        let mut command = Command::new("echo");
        command.arg("done");
        let limits = Limits { deadline: Instant::now() + 1000 * SECOND, silence: Some(Duration::MAX) };
        assert_eq!(watched(command, "echo", &stop, limits, &mut |_| {}).unwrap(), "done");
        stop.cancel();
        let error = output(sleep(), "sleep", &stop, Instant::now() + Duration::from_secs(1000)).unwrap_err();
        assert!(matches!(error, ToolError::Cancelled("sleep")), "{error}");
    }
}
