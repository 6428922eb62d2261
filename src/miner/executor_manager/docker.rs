//! Executors as containers: on the host's network, of an image whose entry point is this program.
//!
//! Whatever way a run ends, its container is removed, and so are those that the executor has made for its job.

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::backend::{
    END_GRACE, ExecutorBackend, ExecutorEnd, ExecutorError, ExecutorExit, ExecutorSpec, Leftover, LeftoverKind, Marked,
};
use super::folder;
use super::owner::Owner;
use super::ports::{ClientPorts, PORT};
use super::program;
use super::security::SecurityChecks;
use super::settings::ExecutorSettings;
use crate::base::backoff::exponential;
use crate::base::lock::lock;
use crate::base::shutdown::Shutdown;
use crate::ops::errors::{ErrorClass, ErrorHandler};
use crate::proc::docker::{Docker, Machine, labels};
use crate::proc::this;
use crate::proc::tool::ToolError;

/// Time for `docker` to make, list or remove containers.
pub(super) const DOCKER_TIME: Duration = Duration::from_secs(30);

/// Time to remove containers and networks once the miner has cancelled: what its stop has left after
/// [`FORCED_GRACE`](super::FORCED_GRACE).
const CANCELLED_TIME: Duration = Duration::from_secs(2);

/// How much longer than one here a check of an engine elsewhere may take: two connections, over SSH each with a
/// handshake of several round trips.
const ELSEWHERE_TIME: Duration = Duration::from_secs(10);

/// The first pause before an engine is asked again whether an executor lives, and the longest.
const PAUSE: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// Where the file of trusted authorities is in an executor's container.
const TLS_CA: &str = "/phalanx-tls-ca.pem";

/// The stage of an executor's own container.
const EXECUTOR: &str = "executor";

/// What executors on a machine are told beside what all are told; the error is one line.
pub type ByMachine = Arc<dyn Fn(&Machine) -> Result<ExecutorSettings, String> + Send + Sync>;

/// Runs executors through the `docker` command line.
pub struct DockerBackend {
    /// The client.
    pub docker: Docker,
    /// The image, whose entry point takes the arguments of `phalanx`. It is not pulled: a job has no time for that.
    pub image: String,
    /// The value of `--runner`.
    pub runner: String,
    /// Another executor's arguments after the image, instead of ours; `{startup_seconds}` in them is replaced.
    pub arguments: Option<Vec<String>>,
    /// Where such an executor finds its port for the clients of a streaming job.
    pub client_ports: Option<ClientPorts>,
    /// Further arguments of `docker create`, as the mounts that the executor's own runner needs.
    pub options: Vec<String>,
    /// What its executors are told.
    pub settings: ExecutorSettings,
    /// A file of this machine with the authorities that our executors trust; it is copied into each container.
    pub tls_ca: Option<PathBuf>,
    /// What they are told beside that by what the engine's machine has, for engines elsewhere. It is asked for once the
    /// engine answers, and no executor starts before.
    pub by_machine: Option<ByMachine>,
    /// Time from the first SIGTERM to SIGKILL.
    pub end_grace: Duration,
    /// What is checked of the engine's host every few hours.
    pub security: Option<SecurityChecks>,
    /// Is told of what goes wrong with an engine beside the end of an executor.
    pub errors: ErrorHandler,
    known: Mutex<Option<(Machine, ExecutorSettings)>>,
}

impl fmt::Debug for DockerBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { docker, image, runner, .. } = self;
        f.debug_struct("DockerBackend").field("docker", docker).field("image", image).field("runner", runner).finish()
    }
}

impl DockerBackend {
    /// A back end whose executors are made of this image.
    pub fn new(image: impl Into<String>, runner: impl Into<String>) -> Self {
        Self {
            docker: Docker { time: DOCKER_TIME, ..Docker::default() },
            image: image.into(),
            runner: runner.into(),
            arguments: None,
            client_ports: None,
            options: Vec::new(),
            settings: ExecutorSettings::default(),
            tls_ca: None,
            by_machine: None,
            end_grace: END_GRACE,
            security: None,
            errors: ErrorHandler::default(),
            known: Mutex::default(),
        }
    }

    /// The engine in a few words, which is asked for its machine if that counts.
    fn engine(&self, stop: &Shutdown, deadline: Instant) -> Result<String, String> {
        let text = |error: ToolError| error.to_string();
        let Some(by_machine) = &self.by_machine else {
            return self.docker.version(stop, deadline).map_err(text);
        };
        let machine = self.docker.machine(stop, deadline).map_err(text)?;
        let Machine { version, cpus, memory_bytes } = &machine;
        let words = format!("{version} with {cpus} processors and {} MiB", memory_bytes >> 20);
        let mut known = lock(&self.known);
        if known.as_ref().is_none_or(|(known, _)| *known != machine) {
            let settings = by_machine(&machine)?;
            *known = Some((machine, settings));
        }
        Ok(words)
    }

    /// What its executors are told.
    fn told(&self, stop: &Shutdown) -> Result<ExecutorSettings, ExecutorError> {
        let mut settings = self.settings.clone();
        if self.by_machine.is_some() {
            if lock(&self.known).is_none() {
                self.engine(stop, Instant::now() + self.docker.time).map_err(ExecutorError::Other)?;
            }
            if let Some((_, more)) = &*lock(&self.known) {
                settings.extend(more.clone());
            }
        }
        Ok(settings)
    }

    /// Waits until the executor's container does not run, and ends it if `stop` is set first; gives the container, if
    /// it was `known` or has been seen. A client that has ended says nothing, and an engine that does not answer says
    /// nothing either, so both are tried again for as long as that takes: the router knows when it is too long.
    fn follow(&self, spec: &ExecutorSpec, stop: &Shutdown, mut known: Option<String>) -> Option<String> {
        let of_executor = [(labels::EXECUTOR, spec.run.as_str()), (labels::STAGE, EXECUTOR)];
        let mut tries = 0;
        while !stop.is_set() {
            let began = Instant::now();
            match self.docker.running(&of_executor, labels::EXECUTOR, stop).map(|found| found.into_iter().next()) {
                Ok(None) => return known,
                Ok(Some((id, _))) => {
                    log::info!("executor of job {}: its container {id} lives and is watched again", spec.job_uuid);
                    match program::run(self.docker.wait_for(&id), spec, stop, Duration::ZERO) {
                        Ok(waited) => log::debug!("executor of job {}: docker wait ended with {waited}", spec.job_uuid),
                        Err(error) => self.trouble(spec, &error),
                    }
                    known = Some(id);
                }
                Err(error) => self.trouble(spec, &format_args!("{error}; the engine is asked again")),
            }
            tries = if began.elapsed() > PAUSE_MAX { 0 } else { tries + 1 };
            stop.wait(exponential(PAUSE, PAUSE_MAX, tries));
        }
        if let Some(id) = &known
            && let Err(error) = self.docker.end(id, self.end_grace, stop)
        {
            self.trouble(spec, &format_args!("container {id} could not be stopped: {error}"));
        }
        known
    }

    fn trouble(&self, spec: &ExecutorSpec, what: &dyn fmt::Display) {
        let what = format_args!("executor of job {}: {what}", spec.job_uuid);
        self.errors.report(ErrorClass::Reconnect, "engine", &what);
    }
}

/// Removes every container that was made for an executor, its own included, and then every network. A cancel of `stop`
/// ends it; where that came before, it is tried for [`CANCELLED_TIME`].
pub(super) fn remove_containers(docker: &Docker, spec: &ExecutorSpec, stop: &Shutdown) -> Result<(), Leftover> {
    let (stop, time) = match stop.is_cancelled() {
        true => (&Shutdown::new(), CANCELLED_TIME),
        false => (stop, docker.time * 2),
    };
    let (label, deadline) = ((labels::EXECUTOR, spec.run.as_str()), Instant::now() + time);
    let containers = docker.remove_labelled(label, stop, deadline);
    let removed = containers.and_then(|_| docker.remove_networks(label, stop, deadline));
    removed.map(drop).map_err(|error| Leftover {
        kind: LeftoverKind::Container,
        text: format!("containers or networks with label {}={} may be there: {error}", labels::EXECUTOR, spec.run),
    })
}

/// The containers and networks of a miner.
pub(super) fn find_in_engine(docker: &Docker, owner: &Owner, stop: &Shutdown) -> Result<Vec<Marked>, String> {
    let of_miner = (labels::INSTANCE, owner.instance.as_str());
    let (containers, networks) =
        docker.with_label(of_miner, [labels::EXECUTOR, labels::EPOCH], stop).map_err(|error| error.to_string())?;
    let kinds = [(LeftoverKind::Container, containers), (LeftoverKind::Network, networks)];
    let all = kinds.into_iter().flat_map(|(kind, found)| found.into_iter().map(move |found| (kind, found)));
    // What has no such labels was not made by a miner.
    Ok(all
        .filter_map(|(kind, (id, [run, epoch]))| Some(Marked { kind, id, run, epoch: epoch.parse().ok()? }))
        .collect())
}

/// Removes one of them.
pub(super) fn remove_from_engine(docker: &Docker, marked: &Marked, stop: &Shutdown) -> Result<(), Leftover> {
    let Marked { kind, id, .. } = marked;
    let removed = match kind {
        LeftoverKind::Network => docker.remove_network(id, stop),
        _ => docker.remove(std::slice::from_ref(id), stop),
    };
    removed.map_err(|error| Leftover { kind: *kind, text: error.to_string() })
}

/// A name for people, without the token, because names are for everybody to see. The job's uuid comes from a validator,
/// so only what Docker takes is left of it.
fn container_name(job_uuid: &str) -> String {
    let uuid: String = job_uuid.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').take(64).collect();
    format!("phalanx-executor-{uuid}-{}", uuid::Uuid::new_v4().simple())
}

impl ExecutorBackend for DockerBackend {
    fn run(&self, spec: &ExecutorSpec, stop: &Shutdown) -> ExecutorEnd {
        if stop.is_set() {
            return Ok(ExecutorExit::Unknown);
        }
        let mut container = self.docker.container(container_name(&spec.job_uuid));
        // `clean` removes it, by its labels: a drop would heed no stop.
        drop(container.removal());
        let mut creation = container.creation();
        let settings = self.told(stop)?;
        program::environment(&mut creation, spec, &settings);
        creation.args(["--network", "host", "--env", "MINER_ADDRESS", "--env", "EXECUTOR_TOKEN"]);
        let port = program::client_port(&mut creation, self.client_ports.as_ref(), &self.errors);
        if port.is_some() {
            creation.args(["--env", PORT]);
        }
        for (name, _) in settings.of(&spec.class).chain([(program::LABELS, "")]) {
            creation.args(["--env", name]);
        }
        let stage = [(labels::JOB, spec.job_uuid.clone()), (labels::STAGE, EXECUTOR.to_owned())];
        for (label, value) in spec.labels().into_iter().chain(stage) {
            creation.arg("--label").arg(format!("{label}={value}"));
        }
        if spec.class.has_gpu() {
            creation.args(["--gpus", "all"]);
        }
        // Another executor than ours would not know the variable.
        let tls_ca = self.tls_ca.as_deref().filter(|_| self.arguments.is_none());
        if tls_ca.is_some() {
            creation.arg("--env").arg(format!("PHALANX_TLS_CA={TLS_CA}"));
        }
        creation.args(&self.options).arg(&self.image).args(program::arguments(
            spec,
            &self.runner,
            self.arguments.as_deref(),
        ));
        container.create(creation).map_err(ExecutorError::Docker)?;
        if let Some(file) = tls_ca {
            let deadline = Instant::now() + self.docker.time;
            container.copy_in(file, TLS_CA, stop, deadline).map_err(ExecutorError::Docker)?;
        }
        if stop.is_set() {
            return Ok(ExecutorExit::Unknown);
        }
        let attached = program::run(container.attached(), spec, stop, self.end_grace)?;
        log::debug!("executor of job {}: docker start ended with {attached}", spec.job_uuid);
        let exit = || match container.state(stop, Instant::now() + self.docker.time) {
            Ok(Some(state)) if state.status == "exited" => Some(ExecutorExit::Code(state.exit_code)),
            _ => None,
        };
        let ended = exit().or_else(|| {
            // The client has ended, by a signal or because its connection has; perhaps the executor lives.
            self.follow(spec, stop, Some(container.id().to_owned()));
            exit()
        });
        drop(port);
        // Removed by somebody else, for example: then nobody knows.
        Ok(ended.unwrap_or(ExecutorExit::Unknown))
    }

    fn adopt(&self, spec: &ExecutorSpec, stop: &Shutdown) -> ExecutorEnd {
        match self.follow(spec, stop, None) {
            None if !stop.is_set() => Err(ExecutorError::Lost),
            _ => Ok(ExecutorExit::Unknown),
        }
    }

    fn clean(&self, spec: &ExecutorSpec, _: bool, stop: &Shutdown) -> Result<(), Leftover> {
        remove_containers(&self.docker, spec, stop)
    }

    fn find(&self, owner: &Owner, stop: &Shutdown) -> Result<Vec<Marked>, String> {
        let mut found = find_in_engine(&self.docker, owner, stop)?;
        if self.docker.address.is_local() {
            // Of processes that were this miner's executors before it had another back end.
            found.extend(folder::find(owner).map_err(|error| error.to_string())?);
        }
        Ok(found)
    }

    fn living(&self, owner: &Owner, stop: &Shutdown) -> Result<BTreeSet<String>, String> {
        let of_miner = [(labels::INSTANCE, owner.instance.as_str()), (labels::STAGE, EXECUTOR)];
        let running = self.docker.running(&of_miner, labels::EXECUTOR, stop).map_err(|error| error.to_string())?;
        Ok(running.into_iter().map(|(_, run)| run).collect())
    }

    fn remove(&self, marked: &Marked, stop: &Shutdown) -> Result<(), Leftover> {
        match marked.kind {
            LeftoverKind::Processes => folder::end_processes(marked.id.as_ref()),
            LeftoverKind::Folder => {
                let phalanx = this::program().map_err(|e| Leftover { kind: marked.kind, text: e.to_string() })?;
                folder::remove(marked.id.as_ref(), folder::removal(&phalanx, &self.runner), stop)
            }
            LeftoverKind::Container | LeftoverKind::Network => remove_from_engine(&self.docker, marked, stop),
        }
    }

    fn check(&self, stop: &Shutdown, deadline: Instant) -> Result<String, String> {
        let deadline = deadline + self.more_time();
        // The executors need an engine, whatever they run jobs with.
        let version = self.engine(stop, deadline)?;
        match self.docker.image(&self.image, stop, deadline) {
            Ok(Some(_)) => Ok(format!("by executors in containers of engine {version}")),
            Ok(None) => Err(format!("the executors' image {} is not there: pull or import it", self.image)),
            Err(error) => Err(error.to_string()),
        }
    }

    fn images(&self, stop: &Shutdown, deadline: Instant) -> Result<Vec<String>, String> {
        self.docker.image_names(stop, deadline + self.more_time()).map_err(|error| error.to_string())
    }

    fn security(&self) -> Option<&SecurityChecks> {
        self.security.as_ref()
    }

    fn more_time(&self) -> Duration {
        if self.docker.address.is_local() { Duration::ZERO } else { ELSEWHERE_TIME }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_s_name_is_of_its_job_and_unique_and_one_that_docker_takes() {
        let names = [(); 2].map(|()| container_name("3f2504e0-4f89"));
        assert!(names.iter().all(|name| name.starts_with("phalanx-executor-3f2504e0-4f89-")), "{names:?}");
        assert_ne!(names[0], names[1]);
        let odd = container_name(&format!("../ä {}", "x".repeat(1000)));
        assert!(odd.len() < 128 && odd.chars().all(|c| c.is_ascii_alphanumeric() || c == '-'), "{odd}");
    }
}
