//! The flags of a miner that say where its executors come from.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use clap::ValueEnum;
use rustix::fs::{Access, access};

use super::images::ImageArgs;
use super::security::SecurityArgs;
use super::tls::TrustArgs;
use super::transfers::TransferArgs;
use super::values::{Arguments, command_line, duration, image};
use crate::app::{self, sandbox};
use crate::base::lock::lock;
use crate::base::shutdown::Shutdown;
use crate::executor::RunnerKind;
use crate::executor::sandbox::{Host, Profile, Sandbox};
use crate::executor::streaming::PortRange;
use crate::miner::images::ImageCare;
use crate::miner::{self, ClientPorts, DockerBackend, ExecutorBackend, ExecutorSettings, ProcessBackend};
use crate::ops::errors::ErrorHandler;
use crate::proc::docker::{Docker, EngineAddress};
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
    #[command(flatten)]
    pub(super) trust: TrustArgs,
    /// Ports of the executors' machines of which each streaming job takes one for its clients
    #[arg(
        long,
        value_name = "FIRST-LAST",
        default_value_t = PortRange::DEFAULT,
        env = "PHALANX_STREAMING_PORTS"
    )]
    streaming_ports: PortRange,
    #[command(flatten)]
    security: SecurityArgs,
    /// The name that executors ask of this miner's certificate, if it is not for the host that they dial
    #[arg(skip)]
    pub(super) server_name: Option<String>,
    /// The files of that certificate
    #[arg(skip)]
    pub(super) server_files: Option<PathBuf>,
    /// What is handed out of them, which stays so when the settings are read again
    #[arg(skip)]
    pub(super) ports: MachinePorts,
    /// What is told of trouble with them, and with engines
    #[arg(skip)]
    pub(super) errors: ErrorHandler,
}

/// The ports of each machine that executors have; clones are the same. This one has no name, others have that of their
/// address.
#[derive(Debug, Clone, Default)]
pub(super) struct MachinePorts(Arc<Mutex<BTreeMap<Option<String>, ClientPorts>>>);

impl MachinePorts {
    /// Those of a range on the machine of an engine.
    fn of(&self, engine: &EngineAddress, range: PortRange) -> ClientPorts {
        let url = engine.to_string();
        let authority = url.rsplit(['/', '@']).next().unwrap_or(&url);
        let name = authority.rsplit_once(':').map_or(authority, |(name, _)| name);
        let is_here = engine.is_on_this_machine() || app::hosts::leads_nowhere_else(&format!("tcp://{authority}"));
        let machine = (!is_here).then(|| name.to_owned());
        let mut all = lock(&self.0);
        all.entry(machine).or_insert_with(|| ClientPorts::new(range.all())).of_range(range.all())
    }
}

/// The sandbox of each class.
pub(super) type Sandboxes = Vec<(ExecutorClass, Sandbox)>;

/// The same in words: what of it holds.
pub(super) type Shown = Vec<(ExecutorClass, String)>;

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
    /// Whether executors are containers, as they are on other hosts.
    pub(super) fn are_containers(&self) -> bool {
        self.executor_backend == BackendArg::Docker
    }

    /// What the jobs of each class may do on this host.
    ///
    /// # Errors
    /// One line that names the setting.
    pub(super) fn sandboxes(&self, classes: &[ExecutorClass], host: Host) -> Result<Sandboxes, String> {
        sandbox::sandboxes(self.sandbox, self.sandbox_settings.as_deref(), host, classes)
    }

    /// What of the sandboxes holds with this runner, in words.
    pub(super) fn in_words(&self, sandboxes: &Sandboxes) -> Shown {
        let words = |sandbox: &Sandbox| match self.runner {
            RunnerKind::Process => sandbox.of_process(),
            RunnerKind::Docker => sandbox.to_string(),
        };
        sandboxes.iter().map(|(class, sandbox)| (*class, words(sandbox))).collect()
    }

    /// What is wrong with hooks that are no programs, and with runtimes that the engine of this machine does not have:
    /// each job would fail. Blocks for the engine, until `by`.
    pub(super) fn problems_of_jobs(&self, sandboxes: &Sandboxes, stop: &Shutdown, by: Instant) -> Vec<String> {
        let hooks = [("--before-job", &self.before_job), ("--after-job", &self.after_job)];
        let programs = hooks.into_iter().filter_map(|(flag, words)| Some((flag, words.as_ref()?.front()?)));
        let mut problems: Vec<String> = programs
            .filter(|(_, program)| !is_program(program))
            .map(|(flag, program)| format!("{flag}: {program:?} is no program that can be run; each job would fail"))
            .collect();
        let runtimes: BTreeSet<&str> = sandboxes.iter().filter_map(|(_, sandbox)| sandbox.runtime.as_deref()).collect();
        if self.runner == RunnerKind::Docker && !runtimes.is_empty() {
            match Docker::default().runtimes(stop, by) {
                Ok(known) => {
                    problems.extend(runtimes.iter().filter(|name| !known.iter().any(|k| k == *name)).map(|name| {
                        let known = known.join(", ");
                        format!("[miner.sandbox] runtime {name:?}: the engine has {known}; each job would fail")
                    }))
                }
                Err(error) => problems.push(format!("[miner.sandbox] runtime: {error}")),
            }
        }
        problems
    }

    /// Whether executors can use what they are told of trust and proxies.
    ///
    /// # Errors
    /// One line that names the flag.
    pub(super) fn check_transfers(&self) -> Result<(), String> {
        self.trust.transfers()?;
        self.transfers.proxies().map(drop)
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

    /// What all executors are told, where there are so many.
    fn settings(&self, executors: usize) -> Result<ExecutorSettings, String> {
        let mut settings = ExecutorSettings::default();
        settings.set("PHALANX_MINER_GONE_AFTER", format!("{}ms", self.miner_gone_after.as_millis()));
        if let Some(time) = self.max_job_time {
            settings.set("PHALANX_MAX_JOB_TIME", format!("{}ms", time.as_millis()));
        }
        self.transfers.hand_on(&mut settings);
        self.trust.hand_on(&mut settings);
        if let Some(name) = &self.server_name {
            settings.set("PHALANX_TLS_SERVER_NAME", name.clone());
        }
        self.images.hand_on(executors, &mut settings);
        for (name, hook) in [("PHALANX_BEFORE_JOB", &self.before_job), ("PHALANX_AFTER_JOB", &self.after_job)] {
            if let Some(words) = hook {
                // Words that were read from a text hold no NUL, which is all that cannot be written as one.
                let line = shlex::try_join(words.iter().map(String::as_str)).map_err(|e| e.to_string())?;
                settings.set(name, line);
            }
        }
        settings.set("PHALANX_STREAMING_PORTS", self.streaming_ports.to_string());
        Ok(settings)
    }

    /// What starts executors on this machine.
    ///
    /// # Errors
    /// One line that names the flag.
    pub(super) fn backend(
        &self,
        sandboxes: &Sandboxes,
        images: &Images,
        state_dir: &Path,
    ) -> Result<Arc<dyn ExecutorBackend>, String> {
        let mut settings = self.settings(images.executors)?;
        settings.extend(confined(sandboxes));
        let runner = self.runner.name();
        match (self.executor_backend, &self.executor_image) {
            (BackendArg::Process, None) if !self.executor_option.is_empty() => {
                Err("--executor-option goes with --executor-backend docker".to_owned())
            }
            (BackendArg::Process, None) => {
                // Executors in containers see these folders only if an option mounts them.
                let folder = std::path::absolute(&images.folder).map_err(|e| format!("--state-dir: {e}"))?;
                settings.set("PHALANX_IMAGES_DIR", folder.to_string_lossy());
                if let Some(file) = self.trust.file_for_executors(self.server_files.as_deref()) {
                    settings.set("PHALANX_TLS_CA", file.to_string_lossy());
                }
                let spool = state_dir.join(miner::SPOOL);
                settings.set("PHALANX_SPOOL_DIR", std::path::absolute(&spool).unwrap_or(spool).display().to_string());
                let ours = ProcessBackend::new(runner).map_err(|e| format!("cannot find this program: {e}"))?;
                let mut backend = match self.executor_command.clone() {
                    Some(mut words) => {
                        let program = words.pop_front().map(PathBuf::from).unwrap_or_default();
                        ProcessBackend {
                            program,
                            arguments: Some(words.into()),
                            client_ports: Some(self.ports.of(&EngineAddress::local(), self.streaming_ports)),
                            settings,
                            ..ours
                        }
                    }
                    None => ProcessBackend { settings, ..ours },
                };
                backend.errors = self.errors.clone();
                // Without containers there is nothing to get out of.
                if self.runner == RunnerKind::Docker {
                    backend.security = self.security.checks(Docker::default(), sandboxes);
                }
                Ok(Arc::new(backend))
            }
            (BackendArg::Process, Some(_)) => Err("--executor-image goes with --executor-backend docker".to_owned()),
            (BackendArg::Docker, _) => {
                let mut backend = self.in_containers(EngineAddress::local())?;
                backend.settings = settings;
                backend.security = self.security.checks(backend.docker.clone(), sandboxes);
                Ok(Arc::new(backend))
            }
        }
    }

    /// What starts executors on the machine of another engine, in containers of its images whatever this machine's are.
    /// What its jobs share is asked of that engine; what is free on its disk cannot be, so each job may have the least.
    /// `classes` are all that the settings may name, on whichever host; only those of its own `executors` count there.
    ///
    /// # Errors
    /// One line that names the flag.
    pub(super) fn backend_elsewhere(
        &self,
        address: EngineAddress,
        executors: &[(ExecutorClass, u32)],
        classes: &[ExecutorClass],
    ) -> Result<DockerBackend, String> {
        let slots = executors.iter().map(|(_, count)| *count).sum();
        let (classes, here) = (classes.to_vec(), executors.to_vec());
        let (profile, table) = (self.sandbox, self.sandbox_settings.clone());
        let of = move |cpus, memory_bytes| {
            let host = Host { memory_bytes, cpus, disk_bytes: 0, slots };
            let mut sandboxes = sandbox::sandboxes(profile, table.as_deref(), host, &classes)?;
            sandboxes.retain(|(class, _)| here.iter().any(|(of, _)| of == class));
            Ok::<_, String>(sandboxes)
        };
        // A mistake in the settings is told at once, whatever that machine has; its probes have the least.
        let least = of(1, 0)?;
        let mut backend = self.in_containers(address.clone())?;
        backend.settings = self.settings(slots as usize)?;
        backend.docker.checks_host_keys()?;
        backend.security = self.security.checks(backend.docker.clone(), &least);
        backend.by_machine = Some(Arc::new(move |machine| {
            let sandboxes = of(machine.cpus, machine.memory_bytes)?;
            for (class, sandbox) in &sandboxes {
                log::info!("engine {address}: jobs of class {}: {sandbox}", class.as_str());
            }
            Ok(confined(&sandboxes))
        }));
        Ok(backend)
    }

    fn in_containers(&self, engine: EngineAddress) -> Result<DockerBackend, String> {
        let missing = "--executor-image is missing; name the image whose entry point is phalanx";
        let image = self.executor_image.as_deref().ok_or(missing)?;
        let mut backend = DockerBackend::new(image, self.runner.name());
        if let Some(words) = self.executor_command.clone() {
            backend.arguments = Some(words.into());
            backend.client_ports = Some(self.ports.of(&engine, self.streaming_ports));
        }
        backend.errors = self.errors.clone();
        backend.docker.address = engine;
        backend.options.clone_from(&self.executor_option);
        backend.tls_ca = self.trust.file_for_executors(self.server_files.as_deref());
        Ok(backend)
    }
}

/// Whether a name leads to a file that can be run, as a shell finds it.
fn is_program(name: &str) -> bool {
    let can_run = |path: &Path| path.is_file() && access(path, Access::EXEC_OK).is_ok();
    match name.contains('/') {
        true => can_run(Path::new(name)),
        false => {
            std::env::var_os("PATH").is_some_and(|all| std::env::split_paths(&all).any(|at| can_run(&at.join(name))))
        }
    }
}

/// Tells the executors of each class what its jobs may do.
fn confined(sandboxes: &Sandboxes) -> ExecutorSettings {
    let mut settings = ExecutorSettings::default();
    for (class, sandbox) in sandboxes {
        settings.set_for(*class, "PHALANX_SANDBOX", sandbox.to_json());
    }
    settings
}
