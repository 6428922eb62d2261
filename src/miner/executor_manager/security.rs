//! What is checked of a host beside its engine, every few hours and never for a job: whether a container of the
//! operator's gets out of its confines, and whether NVIDIA's toolkit is one without known ways out.

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::backend::{ExecutorBackend, ExecutorEnd, ExecutorSpec, Leftover, Marked, Owner};
use super::toolkit::{RareChecks, Remembered, ToolkitVersion};
use crate::base::lock::lock;
use crate::base::shutdown::{Level, Shutdown};
use crate::ops::redact::OneLine;
use crate::proc::docker::{Docker, labels};
use crate::proc::group::{Cause, GroupRun};
use crate::proc::tool::{self, ToolError};

/// How long a probe, or the question for a version, may take.
pub const PROBE_TIME: Duration = Duration::from_secs(30);

/// The tool that tells the toolkit's version.
const TOOLKIT: &str = "nvidia-ctk";

/// Bytes that are kept of what a probe writes, the last ones.
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
    /// Whose probes these are; others with the same are dead, and are removed.
    pub owner: String,
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

/// Another back end, which is well only while the security checks of its host are. Their outcome is remembered; what is
/// asked of the other back end is not.
pub struct SecuredBackend {
    backend: Arc<dyn ExecutorBackend>,
    checks: SecurityChecks,
    remembered: Mutex<Remembered>,
}

impl fmt::Debug for SecuredBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SecuredBackend").field("checks", &self.checks).finish_non_exhaustive()
    }
}

impl SecuredBackend {
    /// That back end with these checks, of which nothing is known yet.
    pub fn new(backend: Arc<dyn ExecutorBackend>, checks: SecurityChecks) -> Self {
        Self { backend, checks, remembered: Mutex::default() }
    }
}

impl ExecutorBackend for SecuredBackend {
    fn run(&self, spec: &ExecutorSpec, stop: &Shutdown) -> ExecutorEnd {
        self.backend.run(spec, stop)
    }

    fn adopt(&self, spec: &ExecutorSpec, stop: &Shutdown) -> ExecutorEnd {
        self.backend.adopt(spec, stop)
    }

    fn clean(&self, spec: &ExecutorSpec, by_itself: bool, stop: &Shutdown) -> Result<(), Leftover> {
        self.backend.clean(spec, by_itself, stop)
    }

    fn find(&self, owner: &Owner, stop: &Shutdown) -> Result<Vec<Marked>, String> {
        self.backend.find(owner, stop)
    }

    fn living(&self, owner: &Owner, stop: &Shutdown) -> Result<BTreeSet<String>, String> {
        self.backend.living(owner, stop)
    }

    fn remove(&self, marked: &Marked, stop: &Shutdown) -> Result<(), Leftover> {
        self.backend.remove(marked, stop)
    }

    fn check(&self, stop: &Shutdown, deadline: Instant) -> Result<String, String> {
        let what = self.backend.check(stop, deadline)?;
        let known = lock(&self.remembered).known(Instant::now());
        let outcome = match known {
            Some(known) => known,
            None => {
                let outcome = self.checks.run(stop);
                // What a stop has cut short tells nothing.
                if !stop.is_cancelled() {
                    lock(&self.remembered).keep(outcome.clone(), self.checks.times, Instant::now());
                }
                outcome
            }
        };
        outcome.map(|()| what).map_err(|why| format!("a security check has failed: {why}"))
    }

    fn images(&self, stop: &Shutdown, deadline: Instant) -> Result<Vec<String>, String> {
        self.backend.images(stop, deadline)
    }

    fn more_time(&self) -> Duration {
        let more = self.backend.more_time();
        match lock(&self.remembered).known(Instant::now()) {
            Some(_) => more,
            None => more + self.checks.limit * (1 + u32::try_from(self.checks.probes.len()).unwrap_or(u32::MAX)),
        }
    }
}

impl SecurityChecks {
    fn run(&self, stop: &Shutdown) -> Result<(), String> {
        if let Some(least) = self.toolkit {
            self.ask_toolkit(least, stop)?;
        }
        self.probes.iter().try_for_each(|probe| self.run_probe(probe, stop))
    }

    fn ask_toolkit(&self, least: ToolkitVersion, stop: &Shutdown) -> Result<(), String> {
        let right = "see --nvidia-toolkit";
        let Some(command) = self.docker.address.program(&self.toolkit_program, &["--version"]) else {
            return Err(format!(
                "the version of NVIDIA's container toolkit cannot be asked for through an engine; {right}"
            ));
        };
        let doing = "ask for the version of NVIDIA's container toolkit";
        let said = tool::output(command, doing, stop, Instant::now() + self.limit);
        let said = said.map_err(|error| format!("{}; {right}", last_line(&error.to_string())))?;
        match ToolkitVersion::find(&said) {
            Some(version) if version >= least => Ok(()),
            Some(version) => Err(format!(
                "NVIDIA's container toolkit is {version}, and jobs get out of containers by known faults before {least}"
            )),
            None => Err(format!("NVIDIA's container toolkit says no version but {:?}; {right}", last_line(&said))),
        }
    }

    /// Runs the probe as a job is run.
    fn run_probe(&self, probe: &Probe, stop: &Shutdown) -> Result<(), String> {
        let (docker, deadline) = (&self.docker, Instant::now() + self.limit);
        let text =
            |error: ToolError| format!("the probe {:?} did not run: {}", probe.image, OneLine(&error.to_string()));
        docker.remove_labelled(labels::PROBE, &probe.owner).map_err(text)?;
        let mut container = docker.container(format!("phalanx-probe-{}", uuid::Uuid::new_v4().simple()));
        let mut creation = container.creation();
        creation.args(["--network", "none", "--log-driver", "none"]);
        creation.arg("--label").arg(format!("{}={}", labels::PROBE, probe.owner));
        creation.args(&probe.options).arg(&probe.image);
        container.create(creation).map_err(text)?;
        let said = Mutex::new(Vec::new());
        let mut take = |bytes: &[u8]| keep_last(&mut lock(&said), bytes);
        let mut take_too = |bytes: &[u8]| keep_last(&mut lock(&said), bytes);
        let run = GroupRun {
            command: container.attached(),
            stop,
            stop_at: Level::Cancel,
            deadline: Some(deadline),
            silence: None,
            ladder: tool::LADDER,
            stdout: Some(&mut take),
            stderr: Some(&mut take_too),
            terminate: None,
        };
        let ended = run.run().map_err(|error| text(ToolError::of("docker", "run it", error)))?;
        let said = String::from_utf8_lossy(&lock(&said)).into_owned();
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
        match (code, &probe.says) {
            (Some(0), None) => Ok(()),
            (Some(0), Some(wanted)) if said.contains(wanted.as_str()) => Ok(()),
            (Some(0), Some(wanted)) => {
                Err(format!("the probe {:?} did not say {wanted:?}, but at last: {shown}", probe.image))
            }
            (Some(code), _) => Err(format!("the probe {:?} ended with exit code {code}: {shown}", probe.image)),
            (None, _) => Err(format!("the probe {:?} was removed while it ran", probe.image)),
        }
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
