//! Executors as processes of this machine: `phalanx executor`, each in a process group that is ended as a whole.

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use super::backend::{
    END_GRACE, ExecutorBackend, ExecutorEnd, ExecutorError, ExecutorExit, ExecutorSpec, Leftover, LeftoverKind, Marked,
    check_runner,
};
use super::docker::{DOCKER_TIME, find_in_engine, remove_containers, remove_from_engine};
use super::folder;
use super::owner::Owner;
use super::ports::ClientPorts;
use super::program;
use super::security::SecurityChecks;
use super::settings::ExecutorSettings;
use crate::base::shutdown::Shutdown;
use crate::ops::errors::ErrorHandler;
use crate::proc::docker::Docker;
use crate::proc::this;

/// Runs `<program> executor --startup-time-limit S --runner R` with `MINER_ADDRESS` and `EXECUTOR_TOKEN`.
///
/// Its environment is the miner's, without the miner's own `PHALANX_…` variables, with its settings, and with a
/// `TMPDIR` of its own that is removed after the run. What a killed executor leaves of its job is ended as well: its
/// processes, and the container, which nobody else would remove.
#[derive(Debug, Clone)]
pub struct ProcessBackend {
    /// The program, by default this one.
    pub program: PathBuf,
    /// `phalanx`, which removes what executors leave; by default this program.
    pub phalanx: PathBuf,
    /// The value of `--runner`.
    pub runner: String,
    /// Another executor's arguments, instead of ours; `{startup_seconds}` in them is replaced.
    pub arguments: Option<Vec<String>>,
    /// Where such an executor finds its port for the clients of a streaming job.
    pub client_ports: Option<ClientPorts>,
    /// What its executors are told.
    pub settings: ExecutorSettings,
    /// Time from the first SIGTERM to SIGKILL.
    pub end_grace: Duration,
    /// What is checked of the engine's host every few hours.
    pub security: Option<SecurityChecks>,
    /// Is told of what goes wrong beside the end of an executor.
    pub errors: ErrorHandler,
}

impl ProcessBackend {
    /// A back end that runs this program.
    ///
    /// # Errors
    /// What the system says when it cannot tell which program this is.
    pub fn new(runner: impl Into<String>) -> io::Result<Self> {
        let program = this::program()?;
        Ok(Self {
            phalanx: program.clone(),
            program,
            runner: runner.into(),
            arguments: None,
            client_ports: None,
            settings: ExecutorSettings::default(),
            end_grace: END_GRACE,
            security: None,
            errors: ErrorHandler::default(),
        })
    }

    /// What removes a folder, without what follows from the folder.
    fn tree_removal(&self) -> Command {
        folder::removal(&self.phalanx, &self.runner)
    }
}

fn engine() -> Docker {
    Docker { time: DOCKER_TIME, ..Docker::default() }
}

impl ExecutorBackend for ProcessBackend {
    fn run(&self, spec: &ExecutorSpec, stop: &Shutdown) -> ExecutorEnd {
        if stop.is_set() {
            return Ok(ExecutorExit::Unknown);
        }
        let folder = folder::of(spec);
        folder::create(&folder).map_err(ExecutorError::Folder)?;
        let mut command = Command::new(&self.program);
        command.args(program::arguments(spec, &self.runner, self.arguments.as_deref()));
        program::environment(&mut command, spec, &self.settings);
        command.env("TMPDIR", folder);
        let port = program::client_port(&mut command, self.client_ports.as_ref(), &self.errors);
        let ended = program::run(command, spec, stop, self.end_grace);
        drop(port);
        ended
    }

    fn adopt(&self, spec: &ExecutorSpec, stop: &Shutdown) -> ExecutorEnd {
        program::adopt(spec, stop, self.end_grace)
    }

    fn clean(&self, spec: &ExecutorSpec, by_itself: bool, stop: &Shutdown) -> Result<(), Leftover> {
        let folder = folder::of(spec);
        if !by_itself {
            folder::end_processes(folder.file_name().unwrap_or_default())?;
        }
        if self.runner != "process" {
            remove_containers(&engine(), spec, stop)?;
        }
        let mut tree = self.tree_removal();
        program::labelled(&mut tree, spec);
        folder::remove(&folder, tree, stop)
    }

    fn find(&self, owner: &Owner, stop: &Shutdown) -> Result<Vec<Marked>, String> {
        let mut found = folder::find(owner).map_err(|error| error.to_string())?;
        if self.runner != "process" {
            found.extend(find_in_engine(&engine(), owner, stop)?);
        }
        Ok(found)
    }

    fn living(&self, owner: &Owner, _: &Shutdown) -> Result<BTreeSet<String>, String> {
        folder::living(owner).map_err(|error| error.to_string())
    }

    fn remove(&self, marked: &Marked, stop: &Shutdown) -> Result<(), Leftover> {
        match marked.kind {
            LeftoverKind::Processes => folder::end_processes(marked.id.as_ref()),
            LeftoverKind::Folder => folder::remove(marked.id.as_ref(), self.tree_removal(), stop),
            LeftoverKind::Container | LeftoverKind::Network => remove_from_engine(&engine(), marked, stop),
        }
    }

    fn security(&self) -> Option<&SecurityChecks> {
        self.security.as_ref()
    }

    fn check(&self, stop: &Shutdown, deadline: Instant) -> Result<String, String> {
        // What another executor needs is not known here.
        if self.arguments.is_some() {
            return Ok(format!("as {} runs them", self.program.display()));
        }
        check_runner(&self.runner, &Docker::default(), stop, deadline)
    }
}
