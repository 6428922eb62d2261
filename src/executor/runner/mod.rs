//! Running a job. The runners are `process` and `docker`; an operator chooses.

mod common;
pub mod docker;
mod follow;
pub mod process;
mod pull;
mod quota;
pub(super) mod run;

pub use common::{Prepared, RunError, Runner};
use docker::DockerRunner;
use process::ProcessRunner;
pub use pull::{ImagePattern, ImageSettings, PullPolicy};
pub use run::{Captured, RunEnd, RunOutcome, RunSpec};

use super::cleanup::Cleanup;
use super::sandbox::Sandbox;
use crate::ops::errors::ErrorHandler;

/// How jobs run, by the operator's word. Nothing changes it later: an engine that does not answer fails the job,
/// because a job that runs on the host is another thing than the one that the user has signed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum RunnerKind {
    /// Containers.
    #[default]
    Docker,
    /// Plain processes, for development and trusted work.
    Process,
}

impl RunnerKind {
    /// The name, as the flag has it.
    pub fn name(self) -> &'static str {
        match self {
            RunnerKind::Docker => "docker",
            RunnerKind::Process => "process",
        }
    }

    /// The runner; what it makes is undone with `cleanup` if its own run does not get there, and `errors` is told of
    /// what it lives on after. Asks nobody: what the engine says, the job will see.
    ///
    /// # Errors
    /// If the engine's client cannot be given a configuration of its own.
    pub fn open(
        self,
        sandbox: &Sandbox,
        images: &ImageSettings,
        cleanup: &Cleanup,
        errors: &ErrorHandler,
    ) -> Result<Box<dyn Runner>, RunError> {
        Ok(match self {
            RunnerKind::Docker => {
                let docker = DockerRunner::new(sandbox.clone(), images.clone())?;
                Box::new(DockerRunner { cleanup: cleanup.clone(), errors: errors.clone(), ..docker })
            }
            RunnerKind::Process => Box::new(ProcessRunner { sandbox: sandbox.clone(), errors: errors.clone() }),
        })
    }
}
