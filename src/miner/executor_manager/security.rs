//! What is checked of a host beside its engine, every few hours and never for a job: whether a container of the
//! operator's gets out of its confines, and whether NVIDIA's toolkit is one without known ways out.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::owner::{Answered, Owner};
use super::toolkit::{RareChecks, ToolkitVersion};
use crate::base::shutdown::{Level, Shutdown};
use crate::ops::redact::OneLine;
use crate::proc::docker::{Docker, labels};
use crate::proc::group::{Cause, GroupRun};
use crate::proc::tool::{self, ToolError};

/// How long a probe, or the question for a version, may take.
pub const PROBE_TIME: Duration = Duration::from_secs(30);

/// The tool that tells the toolkit's version.
const TOOLKIT: &str = "nvidia-ctk";

/// The stage of a probe's container.
const PROBE: &str = "probe";

/// Bytes that are kept of what a probe writes, the last ones of its output and of its errors.
const KEPT_BYTES: usize = 16 << 10;

/// Characters of its last line that are shown.
const SHOWN_CHARS: usize = 300;

/// A container of the operator's that tries to get out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// Its image, which is not pulled. With exit code 0 it says that it could not get out.
    pub image: String,
    /// What it must have written, for images whose exit code says nothing.
    pub says: Option<String>,
    /// The options of `docker create` that confine a job, but for the network, which is none.
    pub options: Vec<String>,
}

/// What is checked.
#[derive(Debug, Clone)]
pub struct SecurityChecks {
    /// The engine.
    pub docker: Docker,
    /// Containers that try to get out, one after the other.
    pub probes: Vec<Probe>,
    /// The least version of NVIDIA's container toolkit, where jobs have GPUs.
    pub toolkit: Option<ToolkitVersion>,
    /// The tool that tells it, on the engine's machine.
    pub toolkit_program: PathBuf,
    /// How often.
    pub times: RareChecks,
    /// How long one check may take.
    pub limit: Duration,
}

impl SecurityChecks {
    /// No check of this engine yet.
    pub fn new(docker: Docker, times: RareChecks) -> Self {
        Self { docker, probes: Vec::new(), toolkit: None, toolkit_program: TOOLKIT.into(), times, limit: PROBE_TIME }
    }
}

/// What a check has shown, which counts for hours: well, or why not, in one line. The error is that it could not be
/// made, which tells nothing of the host.
pub type Verdict = Result<Result<(), String>, String>;

impl SecurityChecks {
    /// How long all together may take: each its limit, and as much again for what the engine makes and removes.
    pub fn longest(&self) -> Duration {
        self.limit * (1 + u32::try_from(self.probes.len()).unwrap_or(u32::MAX - 1))
    }

    /// Makes all checks, one after the other, until one has not gone well. The containers of probes carry the labels of
    /// executors of this miner; they are `answered` for until they are removed. Blocks for about
    /// [`SecurityChecks::longest`]; a cancel of `stop` ends it.
    ///
    /// # Errors
    /// Why a check could not be made, in one line.
    pub fn run(&self, owner: &Owner, answered: &Answered, stop: &Shutdown) -> Verdict {
        if let Some(least) = self.toolkit {
            let found = self.ask_toolkit(least, stop)?;
            if found.is_err() {
                return Ok(found);
            }
        }
        for probe in &self.probes {
            let run = uuid::Uuid::new_v4().to_string();
            answered.answer_for(&run);
            let found = self.run_probe(probe, &owner.labels(&run), stop);
            answered.forget(&run);
            if !matches!(found, Ok(Ok(()))) {
                return found;
            }
        }
        Ok(Ok(()))
    }

    fn ask_toolkit(&self, least: ToolkitVersion, stop: &Shutdown) -> Verdict {
        let (right, deadline) = ("see --nvidia-toolkit", Instant::now() + self.limit);
        let failed = |error: ToolError| format!("{}; {right}", last_line(&error.to_string()));
        let address = &self.docker.address;
        // Here or over SSH; what is found here may be an engine elsewhere, by a context or a tunnel.
        let here =
            address.is_on_this_machine() && self.docker.has_name_of_this_machine(stop, deadline).map_err(failed)?;
        let command = address.program(&self.toolkit_program, &["--version"]);
        let Some(command) = command.filter(|_| here || !address.is_on_this_machine()) else {
            return Ok(Err(format!(
                "the version of NVIDIA's container toolkit on the engine's machine, which is another one, cannot be \
                 asked for; {right}"
            )));
        };
        let doing = "ask for the version of NVIDIA's container toolkit";
        let said = tool::output(command, doing, stop, deadline).map_err(failed)?;
        Ok(match ToolkitVersion::find(&said) {
            Some(version) if version >= least => Ok(()),
            Some(version) => Err(format!(
                "NVIDIA's container toolkit is {version}, and jobs get out of containers by known faults before {least}"
            )),
            None => Err(format!("NVIDIA's container toolkit says no version but {:?}; {right}", last_line(&said))),
        })
    }

    /// Runs the probe as a job is run.
    fn run_probe(&self, probe: &Probe, marks: &[(&str, String)], stop: &Shutdown) -> Verdict {
        let (docker, deadline) = (&self.docker, Instant::now() + self.limit);
        let text =
            |error: ToolError| format!("the probe {:?} did not run: {}", probe.image, OneLine(&error.to_string()));
        let mut container = docker.container(format!("phalanx-probe-{}", uuid::Uuid::new_v4().simple()));
        let mut creation = container.creation();
        creation.args(["--network", "none", "--log-driver", "none"]);
        for (label, value) in marks.iter().chain([&(labels::STAGE, PROBE.to_owned())]) {
            creation.arg("--label").arg(format!("{label}={value}"));
        }
        creation.args(&probe.options).arg(&probe.image);
        container.create(creation).map_err(text)?;
        let (mut output, mut errors) = (Vec::new(), Vec::new());
        let mut take = |bytes: &[u8]| keep_last(&mut output, bytes);
        let mut take_errors = |bytes: &[u8]| keep_last(&mut errors, bytes);
        let run = GroupRun {
            command: container.attached(),
            stop,
            stop_at: Level::Cancel,
            deadline: Some(deadline),
            silence: None,
            ladder: tool::LADDER,
            stdout: Some(&mut take),
            stderr: Some(&mut take_errors),
            terminate: None,
        };
        let ended = run.run().map_err(|error| text(ToolError::of("docker", "run it", error)))?;
        // What came last on two pipes cannot be known; errors tell more.
        output.extend(errors);
        let said = String::from_utf8_lossy(&output);
        match ended.cause {
            Some(Cause::Stop) => return Err("it was stopped".to_owned()),
            Some(_) => {
                let seconds = self.limit.as_secs_f64();
                return Err(format!(
                    "the probe {:?} did not end within {seconds} s: {}",
                    probe.image,
                    last_line(&said)
                ));
            }
            None => {}
        }
        let state = container.state(stop, Instant::now() + docker.time).map_err(text)?;
        let code = state.filter(|state| state.status == "exited").map(|state| state.exit_code);
        let shown = last_line(&said);
        let Some(code) = code else { return Err(format!("the probe {:?} was removed while it ran", probe.image)) };
        Ok(match (code, &probe.says) {
            (0, None) => Ok(()),
            (0, Some(wanted)) if said.contains(wanted.as_str()) => Ok(()),
            (0, Some(wanted)) => {
                Err(format!("the probe {:?} did not say {wanted:?}, but at last: {shown}", probe.image))
            }
            (code, _) => Err(format!("the probe {:?} ended with exit code {code}: {shown}", probe.image)),
        })
    }
}

fn keep_last(kept: &mut Vec<u8>, bytes: &[u8]) {
    kept.extend_from_slice(&bytes[bytes.len().saturating_sub(KEPT_BYTES)..]);
    let over = kept.len().saturating_sub(KEPT_BYTES);
    kept.drain(..over);
}

/// The last line with something in it, escaped and bounded.
fn last_line(text: &str) -> String {
    let line = text.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or("(nothing)");
    OneLine(&line.chars().take(SHOWN_CHARS).collect::<String>()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_what_a_probe_writes_the_last_line_is_shown_bounded_and_escaped() {
        let mut kept = Vec::new();
        for at in 0..5000 {
            keep_last(&mut kept, format!("line {at}\n").as_bytes());
        }
        keep_last(&mut kept, &vec![b'x'; 2 * KEPT_BYTES]);
        assert_eq!((kept.len(), kept[0]), (KEPT_BYTES, b'x'));
        assert_eq!(last_line("a\nescaped: \u{1b}[1m\r\n\n  \n"), "escaped: \\u{1b}[1m");
        assert_eq!(last_line(&"y".repeat(1000)).len(), SHOWN_CHARS);
        assert_eq!(last_line(" \n"), "(nothing)");
    }
}
