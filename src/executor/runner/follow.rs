//! Follows a container from its start to its end, by as many connections as that takes: an engine may be started again
//! meanwhile, and its client may be killed.
//!
//! The engine says how it ended; the exit code of a client tells a job's own failure neither from the client's nor from
//! a broken connection's. What a job writes while nobody is connected is lost, because no engine keeps it.

use std::fmt::Display;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use super::common::{RunError, Streams, io_error, of_engine};
use super::run::{RunEnd, RunOutcome};
use crate::base::backoff::exponential;
use crate::base::shutdown::{Level, Shutdown};
use crate::executor::workspace::Workspace;
use crate::ops::errors::{ErrorClass, ErrorHandler};
use crate::proc::docker::{Container, ContainerState};
use crate::proc::tool::ToolError;

/// The first pause after a try that was in vain, and the longest: an engine is started again in seconds.
const PAUSE: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(3);

/// How long an engine may still need for a container whose client was ended while it was being made; what comes later
/// is left to the miner, which removes what carries its label.
const MAKING_TIME: Duration = Duration::from_secs(1);

const MAKING: &str = "create the container";

/// The exit code of a client that has failed by itself.
const CLIENT_FAILED: i32 = 125;

/// How long an engine has to answer a look.
const LOOK_TIME: Duration = Duration::from_secs(10);

/// The same at the job's deadline, for one that ended just before. An engine that is well answers at once; what is
/// waited longer is taken from the reports' way.
const LAST_LOOK_TIME: Duration = Duration::from_secs(3);

const GAP: &str = "the connection to the job's container was lost; what it wrote meanwhile is missing here";

/// Clients that may be lost in the making of one container.
const LOST_CLIENTS: u32 = 1;

/// Makes and starts the container by `run`, a completed [`Container::run`] with the file `made`, and keeps what it
/// writes. Blocks until it has ended, `deadline` passes or `stop` is cancelled.
///
/// A client that a signal has ended before it knew of a container has started none, so another one takes its place: a
/// service manager may signal whatever it finds.
///
/// # Errors
/// [`RunError::Removed`] and [`RunError::EngineLost`], if its end is not known; what the engine says, if it was not
/// made or did not start.
pub(super) fn follow(
    container: &Container,
    (run, made): (impl Fn() -> Command, &Path),
    workspace: &Workspace,
    (stop, deadline): (&Shutdown, Instant),
    errors: &ErrorHandler,
) -> Result<RunOutcome, RunError> {
    let trouble = |class, text: &dyn Display| {
        errors.report(class, "job-container", &format_args!("container {}: {text}", container.name()));
    };
    let mut streams = Streams::create(workspace)?;
    let mut connection = Some(run());
    // How the last connection ended, and whether the engine has failed to answer since; tries in vain.
    let (mut client, mut away, mut tries) = (RunEnd::Exited(0), false, 0);
    let (mut is_made, mut lost) = (false, 0);
    loop {
        if let Some(command) = connection.take() {
            let began = Instant::now();
            client = streams.run(command, stop, deadline, Some(&|| container.terminate()))?;
            if !is_made && !std::fs::metadata(made).is_ok_and(|file| file.len() > 0) {
                let is_signalled = matches!(client, RunEnd::Signalled(_) | RunEnd::Exited(129..=192));
                if lost > 0 && client == RunEnd::TimedOut {
                    // The first one was ended by nobody's fault, and too little time was left for another.
                    return Err(RunError::Late(MAKING));
                }
                if !is_signalled || lost == LOST_CLIENTS {
                    return not_made(client, streams);
                }
                lost += 1;
                let text = format_args!("its client was ended while it was being made ({client:?})");
                trouble(ErrorClass::Retry, &text);
                // The engine may be making it nevertheless.
                let left = || deadline.saturating_duration_since(Instant::now());
                stop.wait_for(Level::Cancel, MAKING_TIME.min(left()));
                match container.undo(stop, Instant::now() + LOOK_TIME.min(left())) {
                    Err(ToolError::TimedOut(_)) if left().is_zero() => return Err(RunError::Late(MAKING)),
                    undone => undone?,
                }
                let removed = std::fs::remove_file(made).or_else(|e| match e.kind() {
                    std::io::ErrorKind::NotFound => Ok(()),
                    _ => Err(e),
                });
                removed.map_err(io_error("remove the number of a container that was not made"))?;
                streams = Streams::again(workspace)?;
                connection = Some(run());
                continue;
            }
            is_made = true;
            if matches!(client, RunEnd::TimedOut | RunEnd::Cancelled) {
                return streams.finish(client);
            }
            (away, tries) = (false, if began.elapsed() > PAUSE_MAX { 0 } else { tries });
        }
        if tries > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            stop.wait_for(Level::Cancel, exponential(PAUSE, PAUSE_MAX, tries - 1).min(left));
        }
        tries += 1;
        let now = Instant::now();
        match container.state(stop, deadline.max(now + LAST_LOOK_TIME).min(now + LOOK_TIME)) {
            Ok(Some(state)) if state.status == "running" => {
                trouble(ErrorClass::Reconnect, &"the connection to it ended while it runs; it is made again");
                streams.note(GAP);
                connection = Some(container.attached_again());
            }
            Ok(Some(state)) if matches!(state.status.as_str(), "exited" | "dead") => {
                let is_broken = away || client != RunEnd::Exited(state.exit_code);
                if is_broken {
                    streams.note(GAP);
                }
                return streams.finish(end_of(container.name(), &state, is_broken)?);
            }
            Ok(Some(state)) if state.status == "created" => return not_started(state, streams),
            // Paused by somebody, or in between.
            Ok(Some(_)) if now >= deadline => return streams.finish(RunEnd::TimedOut),
            Ok(Some(state)) => {
                trouble(ErrorClass::Retry, &format_args!("it is {}; it is looked at again", state.status))
            }
            Ok(None) => return Err(RunError::Removed { name: container.name().to_owned() }),
            Err(ToolError::Cancelled(_)) => return streams.finish(RunEnd::Cancelled),
            Err(error) if now >= deadline => {
                return Err(RunError::EngineLost { name: container.name().to_owned(), text: error.to_string() });
            }
            Err(error) => {
                trouble(ErrorClass::Retry, &format_args!("{error}; the engine is asked again"));
                away = true;
            }
        }
    }
}

/// `is_broken`: nobody was connected to it when it ended.
fn end_of(name: &str, state: &ContainerState, is_broken: bool) -> Result<RunEnd, RunError> {
    let code = state.exit_code;
    match code - 128 {
        // A job whose child was killed for its memory may still have ended well.
        _ if state.out_of_memory && code != 0 => Ok(RunEnd::OutOfMemory { limit: None }),
        // An engine that goes ends its containers.
        signal @ 1..=64 if is_broken => {
            let text = format!("the job was ended by signal {signal} while the connection to it was lost");
            Err(RunError::EngineLost { name: name.to_owned(), text })
        }
        signal @ 1..=64 => Ok(RunEnd::Signalled(signal)),
        _ => Ok(RunEnd::Exited(code)),
    }
}

/// The client has ended and knows of no container.
fn not_made(client: RunEnd, streams: Streams) -> Result<RunOutcome, RunError> {
    if client != RunEnd::Exited(CLIENT_FAILED) {
        // The engine may be making it nevertheless; it is removed after this.
        Shutdown::new().wait_for(Level::Cancel, MAKING_TIME);
    }
    let outcome = streams.finish(client)?;
    match client {
        RunEnd::Cancelled => Ok(outcome),
        RunEnd::TimedOut => Err(ToolError::TimedOut(MAKING).into()),
        _ => Err(of_engine(ToolError::Failed { doing: MAKING, text: said(&outcome, client) })),
    }
}

/// What a client says of its failure, without the hint at its help.
fn said(outcome: &RunOutcome, client: RunEnd) -> String {
    let text = outcome.stderr.text.trim();
    let text = text.strip_prefix("docker: ").unwrap_or(text);
    let is_hint = |line: &&str| line.ends_with("--help' for more information") || line.ends_with("--help'.");
    let lines: Vec<&str> = text.lines().filter(|line| !is_hint(line)).collect();
    match lines.join("\n").trim() {
        text if !text.is_empty() => text.to_owned(),
        _ => match client {
            RunEnd::Signalled(signal) => format!("the engine's client was ended by signal {signal} and said nothing"),
            RunEnd::Exited(code) => format!("the engine's client ended with exit code {code} and said nothing"),
            _ => "the engine's client was ended and said nothing".to_owned(),
        },
    }
}

fn not_started(state: ContainerState, streams: Streams) -> Result<RunOutcome, RunError> {
    let outcome = streams.finish(RunEnd::Exited(state.exit_code))?;
    match state.exit_code {
        // The engine could not run the command itself; these are a shell's codes for that.
        126 | 127 => Ok(outcome),
        _ => {
            let text = if state.error.is_empty() { said(&outcome, outcome.end) } else { state.error };
            Err(of_engine(ToolError::Failed { doing: "start the container", text }))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(exit_code: i32, out_of_memory: bool) -> ContainerState {
        ContainerState { status: "exited".to_owned(), exit_code, out_of_memory, error: String::new() }
    }

    #[test]
    fn each_end_of_a_container_is_told_apart() {
        for (code, out_of_memory, end) in [
            (0, false, RunEnd::Exited(0)),
            (0, true, RunEnd::Exited(0)),
            (3, false, RunEnd::Exited(3)),
            (127, false, RunEnd::Exited(127)),
            (128, false, RunEnd::Exited(128)),
            (137, true, RunEnd::OutOfMemory { limit: None }),
            (137, false, RunEnd::Signalled(9)),
            (139, false, RunEnd::Signalled(11)),
            (192, false, RunEnd::Signalled(64)),
            (193, false, RunEnd::Exited(193)),
            (255, false, RunEnd::Exited(255)),
        ] {
            assert_eq!(end_of("c", &state(code, out_of_memory), false).unwrap(), end, "{code} {out_of_memory}");
            let broken = end_of("c", &state(code, out_of_memory), true);
            match end {
                RunEnd::Signalled(_) => assert!(matches!(broken, Err(RunError::EngineLost { .. })), "{code}"),
                end => assert_eq!(broken.unwrap(), end, "{code} {out_of_memory}"),
            }
        }
    }
}
