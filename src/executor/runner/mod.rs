//! Running a job. The runners are `process` and `docker`; an operator chooses.

mod common;
pub mod docker;
pub mod process;
pub(super) mod run;

use std::time::Instant;

pub use common::{RunError, Runner};
use docker::DockerRunner;
use process::ProcessRunner;
pub use run::{Captured, RunEnd, RunOutcome, RunSpec};

use super::sandbox::Sandbox;
use crate::base::shutdown::Shutdown;
use crate::proc::docker::Docker;
use crate::proc::tool::ToolError;

/// Which runner an operator asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum RunnerKind {
    /// Docker if its engine answers, else processes.
    #[default]
    Auto,
    /// Containers.
    Docker,
    /// Plain processes, for development and trusted work.
    Process,
}

impl RunnerKind {
    /// Opens the runner. Blocks for at most [`docker::PROBE_TIME`] while it asks for the engine; `token` ends that.
    ///
    /// # Errors
    /// If docker was asked for by name and does not answer.
    pub fn open(self, sandbox: &Sandbox, token: &Shutdown) -> Result<Box<dyn Runner>, RunError> {
        let docker = || DockerRunner { sandbox: sandbox.clone(), ..DockerRunner::default() };
        let probe = || Docker::default().version(token, Instant::now() + docker::PROBE_TIME);
        match self {
            RunnerKind::Process => Ok(Box::new(ProcessRunner)),
            RunnerKind::Docker => Ok(probe().map(|_| Box::new(docker()))?),
            RunnerKind::Auto => match probe() {
                Ok(version) => {
                    log::info!("docker engine {version} answers, jobs run in containers");
                    Ok(Box::new(docker()))
                }
                Err(error @ ToolError::Cancelled(_)) => Err(error.into()),
                Err(error) => {
                    log::warn!("jobs run as plain processes: {error}");
                    Ok(Box::new(ProcessRunner))
                }
            },
        }
    }
}
