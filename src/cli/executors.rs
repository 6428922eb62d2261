//! The flags of a miner that say where its executors come from.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::ValueEnum;

use super::images::ImageArgs;
use super::transfers::TransferArgs;
use super::values::{Arguments, command_line, duration, image};
use crate::app::sandbox;
use crate::executor::RunnerKind;
use crate::executor::sandbox::{Host, Profile, Sandbox};
use crate::executor::streaming::PortRange;
use crate::miner::images::ImageCare;
use crate::miner::{self, ClientPorts, DockerBackend, ExecutorBackend, ExecutorSettings, ProcessBackend};
use crate::proc::docker::Docker;
use crate::protocol::ExecutorClass;

/// Where the executors of a miner come from, and what they are told.
#[derive(Debug, clap::Args)]
pub(super) struct ExecutorArgs {
    /// Where executors run
    #[arg(long, value_enum, default_value_t = BackendArg::Process, env = "PHALANX_EXECUTOR_BACKEND")]
    executor_backend: BackendArg,
    /// Image of executors in containers; its entry point takes the arguments of phalanx
    #[arg(long, value_name = "IMAGE", env = "PHALANX_EXECUTOR_IMAGE")]
    executor_image: Option<String>,
    /// Another executor than ours, as a command line; {startup_seconds} stands for its time until the job comes. With
    /// --executor-image it is what follows the image
    #[arg(long, value_name = "COMMAND", value_parser = command_line, env = "PHALANX_EXECUTOR_COMMAND")]
    executor_command: Option<Arguments>,
    /// An option of `docker create` for executors in containers, as --volume=/tmp:/tmp; may be repeated
    #[arg(long, value_name = "OPTION", allow_hyphen_values = true, env = "PHALANX_EXECUTOR_OPTION")]
    executor_option: Vec<String>,
    /// How executors run the jobs' commands, from the start on: without an engine no job is taken
    #[arg(long, value_enum, default_value_t, env = "PHALANX_RUNNER")]
    pub(super) runner: RunnerKind,
    /// A program of the operator's before each job, as a command line; where it fails, so does the job
    #[arg(long, value_name = "COMMAND", value_parser = command_line, env = "PHALANX_BEFORE_JOB")]
    before_job: Option<Arguments>,
    /// A program of the operator's after each job
    #[arg(long, value_name = "COMMAND", value_parser = command_line, env = "PHALANX_AFTER_JOB")]
    after_job: Option<Arguments>,
    /// How long an executor goes on without a connection to this miner
    #[arg(long, value_name = "DUR", default_value = "30s", value_parser = duration, env = "PHALANX_MINER_GONE_AFTER")]
    miner_gone_after: Duration,
    /// The longest job that is taken, by its limits together without the leeway; without it any
    #[arg(long, value_name = "DUR", value_parser = duration, env = "PHALANX_MAX_JOB_TIME")]
    pub(super) max_job_time: Option<Duration>,
    /// What jobs may do on this host; limits are in the table [miner.sandbox] of the settings file
    #[arg(long, value_enum, value_name = "PROFILE", env = "PHALANX_SANDBOX_PROFILE")]
    sandbox: Option<Profile>,
    /// That table, as JSON
    #[arg(long, value_name = "JSON", env = "PHALANX_SANDBOX_SETTINGS")]
    sandbox_settings: Option<String>,
    #[command(flatten)]
    pub(super) images: ImageArgs,
    /// An image that is pulled at the start and every hour, before jobs ask for it, and stays; may be repeated
    #[arg(long, value_name = "IMAGE", value_parser = image, env = "PHALANX_PRE_PULL", value_delimiter = ',')]
    pub(super) pre_pull: Vec<String>,
    #[command(flatten)]
    transfers: TransferArgs,
    /// Ports of the executors' machines of which each streaming job takes one for its clients
    #[arg(
        long,
        value_name = "FIRST-LAST",
        default_value_t = PortRange::DEFAULT,
        env = "PHALANX_STREAMING_PORTS"
    )]
    streaming_ports: PortRange,
}

/// The sandbox of each class.
pub(super) type Sandboxes = Vec<(ExecutorClass, Sandbox)>;

/// What is known of the images of a miner.
pub(super) struct Images {
    /// Where it is written down which of them jobs have brought.
    pub(super) folder: PathBuf,
    /// For how many executors.
    pub(super) executors: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum BackendArg {
    /// Processes of this machine
    Process,
    /// Containers of the Docker Engine (needs --executor-image)
    Docker,
}

/// This host as it is now, which so many executors share.
///
/// # Errors
/// One line.
pub(super) fn host(executors: &[(ExecutorClass, u32)]) -> Result<Host, String> {
    let slots = executors.iter().map(|(_, count)| count).sum();
    sandbox::host(slots, &std::env::temp_dir()).map_err(|e| format!("cannot measure this host: {e}"))
}

impl ExecutorArgs {
    /// What the jobs of each class may do on this host.
    ///
    /// # Errors
    /// One line that names the setting.
    pub(super) fn sandboxes(&self, executors: &[(ExecutorClass, u32)], host: Host) -> Result<Sandboxes, String> {
        let classes: Vec<ExecutorClass> = executors.iter().map(|(class, _)| *class).collect();
        sandbox::sandboxes(self.sandbox, self.sandbox_settings.as_deref(), host, &classes)
    }

    /// What the miner does about the images of jobs.
    ///
    /// # Errors
    /// One line that names the flag.
    pub(super) fn image_care(&self, images: &Images) -> Result<Option<ImageCare>, String> {
        if self.runner == RunnerKind::Process {
            return match self.pre_pull.is_empty() {
                true => Ok(None),
                false => Err("--pre-pull goes with --runner docker".to_owned()),
            };
        }
        Ok(Some(ImageCare {
            docker: Docker::default(),
            folder: images.folder.clone(),
            bounds: self.images.bounds(images.executors),
            pre_pull: self.pre_pull.clone(),
            silence: self.images.pull_silence,
        }))
    }

    /// What starts the executors.
    ///
    /// # Errors
    /// One line that names the flag.
    pub(super) fn backend(
        self,
        sandboxes: &Sandboxes,
        images: &Images,
        state_dir: &Path,
    ) -> Result<Arc<dyn ExecutorBackend>, String> {
        let mut settings = ExecutorSettings::default();
        settings.set("PHALANX_MINER_GONE_AFTER", format!("{}ms", self.miner_gone_after.as_millis()));
        if let Some(time) = self.max_job_time {
            settings.set("PHALANX_MAX_JOB_TIME", format!("{}ms", time.as_millis()));
        }
        self.transfers.hand_on(&mut settings);
        self.images.hand_on(images.executors, &mut settings);
        // Executors in containers see this folder only if an option mounts it.
        if self.executor_backend == BackendArg::Process {
            let folder = std::path::absolute(&images.folder).map_err(|e| format!("--state-dir: {e}"))?;
            settings.set("PHALANX_IMAGES_DIR", folder.to_string_lossy());
        }
        for (name, hook) in [("PHALANX_BEFORE_JOB", self.before_job), ("PHALANX_AFTER_JOB", self.after_job)] {
            if let Some(words) = hook {
                // Words that were read from a text hold no NUL, which is all that cannot be written as one.
                let line = shlex::try_join(words.iter().map(String::as_str)).map_err(|e| e.to_string())?;
                settings.set(name, line);
            }
        }
        for (class, sandbox) in sandboxes {
            settings.set_for(*class, "PHALANX_SANDBOX", sandbox.to_json());
        }
        let runner = self.runner.name();
        settings.set("PHALANX_STREAMING_PORTS", self.streaming_ports.to_string());
        let client_ports = Some(Arc::new(ClientPorts::new(self.streaming_ports.all())));
        match (self.executor_backend, self.executor_image) {
            (BackendArg::Process, None) if !self.executor_option.is_empty() => {
                Err("--executor-option goes with --executor-backend docker".to_owned())
            }
            (BackendArg::Process, None) => {
                // One in a container has another file system.
                let spool = state_dir.join(miner::SPOOL);
                settings.set("PHALANX_SPOOL_DIR", std::path::absolute(&spool).unwrap_or(spool).display().to_string());
                let ours = ProcessBackend::new(runner).map_err(|e| format!("cannot find this program: {e}"))?;
                let backend = match self.executor_command {
                    Some(mut words) => {
                        let program = words.pop_front().map(PathBuf::from).unwrap_or_default();
                        ProcessBackend { program, arguments: Some(words.into()), client_ports, settings, ..ours }
                    }
                    None => ProcessBackend { settings, ..ours },
                };
                Ok(Arc::new(backend))
            }
            (BackendArg::Process, Some(_)) => Err("--executor-image goes with --executor-backend docker".to_owned()),
            (BackendArg::Docker, Some(image)) => {
                let mut backend = DockerBackend::new(image, runner);
                if let Some(words) = self.executor_command {
                    (backend.arguments, backend.client_ports) = (Some(words.into()), client_ports);
                }
                backend.options = self.executor_option;
                backend.settings = settings;
                Ok(Arc::new(backend))
            }
            (BackendArg::Docker, None) => {
                Err("--executor-image is missing; name the image whose entry point is phalanx".to_owned())
            }
        }
    }
}
