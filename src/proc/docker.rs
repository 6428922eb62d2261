//! The Docker Engine, through the `docker` command, which `podman` may stand for.
//!
//! The command's environment has what finds the engine and nothing else of ours. A container is ours by its labels
//! only, never by its name. It is removed by a command of its own, not by `--rm`: a client that is interrupted while
//! the container is being made would leave it behind.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use super::address::{EngineAddress, SshPlace, TlsFiles};
use super::client;
pub use super::client::PrivateConfig;
use super::tool::{self, ToolError};
use crate::base::shutdown::Shutdown;

/// How long an engine may take to make a container, which unpacks nothing: an engine that needs longer is in trouble.
pub const CREATE_TIME: Duration = Duration::from_secs(30);

/// How long an engine may take to signal a container that is to end: it is removed soon after.
pub const SIGNAL_TIME: Duration = Duration::from_secs(2);

/// The labels of our containers. Whoever cleans up relies on those of whoever creates.
pub mod labels {
    /// The job that a container is for.
    pub const JOB: &str = "phalanx.job";
    /// The one run that a container is for; no other has its value.
    pub const RUN: &str = "phalanx.run";
    /// The hotkey of the miner whose executor a container is.
    pub const MINER: &str = "phalanx.miner";
    /// The miner's state folder: a miner touches only what carries its own.
    pub const INSTANCE: &str = "phalanx.instance";
    /// The miner's process: each that opens the state folder has a higher number.
    pub const EPOCH: &str = "phalanx.epoch";
    /// The executor that a container was made for, and its own container; no other has its value.
    pub const EXECUTOR: &str = "phalanx.executor";
    /// What a container is for: `executor`, `job`, or `probe`, which is a security check.
    pub const STAGE: &str = "phalanx.stage";
    /// An image of helpers, of which there is one for each version of this program: when it was made, in seconds of
    /// Unix time.
    pub const HELPER: &str = "phalanx.helper";
}

/// What an engine says of itself and of its machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// The engine's version.
    pub version: String,
    /// Processors.
    pub cpus: u32,
    /// Bytes of memory.
    pub memory_bytes: u64,
}

/// The number of a container or network, and two of its labels.
pub type Labelled = (String, [String; 2]);

/// A client of the engine. Every method blocks until the engine has answered.
#[derive(Debug, Clone)]
pub struct Docker {
    /// The program, by default `docker` on the `PATH`.
    pub program: PathBuf,
    /// How long a command may take that no stop signal ends, because what it makes or removes is to be known.
    pub time: Duration,
    /// What stands for the operator's configuration; `None` for that itself, with its log-ins.
    pub config: Option<Arc<PrivateConfig>>,
    /// Where the engine is.
    pub address: EngineAddress,
}

impl Default for Docker {
    fn default() -> Self {
        let program = PathBuf::from("docker");
        Self { program, time: Duration::from_secs(10), config: None, address: EngineAddress::local() }
    }
}

impl Docker {
    pub(super) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.env_clear().envs(client::environment(std::env::vars_os()));
        if let Some(config) = &self.config {
            command.envs(config.environment());
        }
        self.address.apply(&mut command);
        command.args(args);
        command
    }

    fn output(
        &self,
        command: Command,
        doing: &'static str,
        stop: &Shutdown,
        deadline: Instant,
    ) -> Result<String, ToolError> {
        tool::output(command, doing, stop, deadline).map_err(|error| self.address.explained(error))
    }

    pub(super) fn run(
        &self,
        doing: &'static str,
        args: &[&str],
        stop: &Shutdown,
        deadline: Instant,
    ) -> Result<String, ToolError> {
        self.output(self.command(args), doing, stop, deadline)
    }

    /// Runs a command to its end, whoever is to stop: it is what is done after a stop.
    pub(super) fn run_unstopped(&self, doing: &'static str, args: &[&str]) -> Result<String, ToolError> {
        self.run(doing, args, &Shutdown::new(), Instant::now() + self.time)
    }

    /// Asks the engine for its version, by `deadline`, unless `stop` is cancelled.
    ///
    /// # Errors
    /// If there is no `docker` program or no engine.
    pub fn version(&self, stop: &Shutdown, deadline: Instant) -> Result<String, ToolError> {
        let args = ["version", "--format", "{{.Server.Version}}"];
        self.run("ask the docker engine for its version", &args, stop, deadline)
    }

    /// Asks the engine for its version and what its machine has, by `deadline`, unless `stop` is cancelled.
    ///
    /// # Errors
    /// If there is no `docker` program or no engine, or it does not tell.
    pub fn machine(&self, stop: &Shutdown, deadline: Instant) -> Result<Machine, ToolError> {
        let doing = "ask the docker engine for its machine";
        let args = ["info", "--format", "{{.NCPU}} {{.MemTotal}} {{.ServerVersion}}"];
        let told = self.run(doing, &args, stop, deadline)?;
        let mut fields = told.splitn(3, ' ');
        let mut machine = || {
            let (cpus, memory_bytes) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
            Some(Machine { version: fields.next()?.to_owned(), cpus, memory_bytes })
        };
        // A client that has not reached it may say so in numbers alone.
        let machine = machine().filter(|machine| machine.cpus > 0 && machine.memory_bytes > 0);
        machine.ok_or_else(|| ToolError::Failed { doing, text: format!("docker describes it as {told:?}") })
    }

    /// The names of the runtimes that the engine has, by `deadline`, unless `stop` is cancelled.
    ///
    /// # Errors
    /// If there is no `docker` program or no engine.
    pub fn runtimes(&self, stop: &Shutdown, deadline: Instant) -> Result<Vec<String>, ToolError> {
        let args = ["info", "--format", "{{range $name, $_ := .Runtimes}}{{$name}} {{end}}"];
        let told = self.run("ask the docker engine for its runtimes", &args, stop, deadline)?;
        Ok(told.split_whitespace().map(str::to_owned).collect())
    }

    /// Has this client check host keys if its engine is behind SSH, by the `ssh` of its address, which is written.
    /// Podman has a library of its own, which takes any key. Blocks until the program has told its version, for
    /// [`Docker::time`] at most.
    ///
    /// # Errors
    /// One line.
    pub fn checks_host_keys(&self) -> Result<(), String> {
        if !self.address.is_ssh() {
            return Ok(());
        }
        self.address.write_ssh()?;
        // Without the address, so that nothing is dialled.
        let program = Docker { address: EngineAddress::local(), ..self.clone() };
        let told = program.run_unstopped("ask docker for its version", &["--version"]).map_err(|e| e.to_string())?;
        match told.starts_with("Docker version ") {
            true => Ok(()),
            false => Err(format!(
                "{} is {told:?}, which is not known to check host keys over SSH; use the docker program of Docker, or \
                 TLS",
                self.program.display()
            )),
        }
    }

    /// Makes an image of the files of `folder`, with `/bin` on its path and perhaps a label.
    ///
    /// # Errors
    /// What `tar` or the engine says.
    pub fn import(
        &self,
        folder: &Path,
        image: &str,
        label: Option<(&str, &str)>,
        stop: &Shutdown,
        deadline: Instant,
    ) -> Result<(), ToolError> {
        let doing = "pack the image";
        let archive = tempfile::NamedTempFile::new().map_err(|e| ToolError::Failed { doing, text: e.to_string() })?;
        let archive = archive.path().to_string_lossy();
        let mut tar = Command::new("tar");
        tar.arg("-C").arg(folder).args(["-cf", &archive, "."]);
        tool::output(tar, doing, stop, deadline)?;
        let label = label.map(|(label, value)| format!("LABEL {label}={value}"));
        let mut args = vec!["import", "--change", "ENV PATH=/bin"];
        label.iter().for_each(|label| args.extend(["--change", label]));
        args.extend([archive.as_ref(), image]);
        self.run("import the image", &args, stop, deadline).map(drop)
    }

    /// Bytes of what a container has changed in its image, by its number or name.
    ///
    /// # Errors
    /// If the engine does not answer, does not know it, or does not tell.
    pub fn changed_bytes(&self, container: &str, stop: &Shutdown, deadline: Instant) -> Result<u64, ToolError> {
        let doing = "ask for the size of the container";
        let args = ["container", "inspect", "--size", "--format", "{{.SizeRw}}", container];
        let told = self.run(doing, &args, stop, deadline)?;
        // It is negative while the engine does not know it.
        let bytes = told.parse::<i64>().ok().and_then(|bytes| u64::try_from(bytes).ok());
        bytes.ok_or_else(|| ToolError::Failed { doing, text: format!("docker says {told:?}") })
    }

    /// The numbers of all containers, running or not, whose label has the given value.
    ///
    /// # Errors
    /// If the engine does not answer.
    pub fn containers(&self, label: &str, value: &str) -> Result<Vec<String>, ToolError> {
        let filter = format!("label={label}={value}");
        let args = ["ps", "--all", "--quiet", "--no-trunc", "--filter", &filter];
        let listed = self.run_unstopped("list containers", &args)?;
        Ok(listed.split_whitespace().map(str::to_owned).collect())
    }

    /// The containers, running or not, and the networks that have a label: their numbers and two more labels of each.
    /// A cancel of `stop` ends it.
    ///
    /// # Errors
    /// If the engine does not answer.
    pub fn with_label(
        &self,
        (label, value): (&str, &str),
        shown: [&str; 2],
        stop: &Shutdown,
    ) -> Result<(Vec<Labelled>, Vec<Labelled>), ToolError> {
        let filter = format!("label={label}={value}");
        let format = format!("{{{{.ID}}}}|{{{{.Label \"{}\"}}}}|{{{{.Label \"{}\"}}}}", shown[0], shown[1]);
        let ask = |doing, what: &[&str]| {
            let args = [what, &["--no-trunc", "--filter", &filter, "--format", &format]].concat();
            let listed = self.run(doing, &args, stop, Instant::now() + self.time)?;
            let line = |line: &str| {
                let mut fields = line.splitn(3, '|').map(str::to_owned);
                Some((fields.next()?, [fields.next()?, fields.next()?]))
            };
            Ok(listed.lines().filter_map(line).collect())
        };
        Ok((ask("list containers", &["ps", "--all"])?, ask("list networks", &["network", "ls"])?))
    }

    /// Removes a network. A cancel of `stop` ends it.
    ///
    /// # Errors
    /// If the engine does not answer or refuses.
    pub fn remove_network(&self, id: &str, stop: &Shutdown) -> Result<(), ToolError> {
        self.run("remove the network", &["network", "rm", id], stop, Instant::now() + self.time).map(drop)
    }

    /// The running containers that have all of these labels: the number of each, and the value of one more label. A
    /// cancel of `stop` ends it.
    ///
    /// # Errors
    /// If the engine does not answer.
    pub fn running(
        &self,
        labels: &[(&str, &str)],
        shown: &str,
        stop: &Shutdown,
    ) -> Result<Vec<(String, String)>, ToolError> {
        let filters: Vec<String> = labels.iter().map(|(label, value)| format!("label={label}={value}")).collect();
        let format = format!("{{{{.ID}}}}|{{{{.Label \"{shown}\"}}}}");
        let mut args = vec!["ps", "--no-trunc", "--format", &format];
        filters.iter().for_each(|filter| args.extend(["--filter", filter]));
        let listed = self.run("list containers", &args, stop, Instant::now() + self.time)?;
        let line = |line: &str| line.split_once('|').map(|(id, value)| (id.to_owned(), value.to_owned()));
        Ok(listed.lines().filter_map(line).collect())
    }

    /// Tells a container to end, and waits for that for `grace`, unless `stop` is cancelled; then it is killed.
    ///
    /// # Errors
    /// If the engine does not answer or refuses.
    pub fn end(&self, id: &str, grace: Duration, stop: &Shutdown) -> Result<(), ToolError> {
        let args = ["stop", "--time", &grace.as_secs().to_string(), id];
        match self.run("end the container", &args, stop, Instant::now() + grace + self.time) {
            Ok(_) | Err(ToolError::Cancelled(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The command that ends when a container that somebody else has started does.
    pub fn wait_for(&self, id: &str) -> Command {
        self.command(&["wait", id])
    }

    /// Removes containers, running or not. A cancel of `stop` ends it.
    ///
    /// # Errors
    /// If the engine does not answer or refuses.
    pub fn remove(&self, ids: &[String], stop: &Shutdown) -> Result<(), ToolError> {
        if ids.is_empty() {
            return Ok(());
        }
        let args = ["rm", "--force", "--volumes"].into_iter().chain(ids.iter().map(String::as_str));
        self.run("remove containers", &args.collect::<Vec<_>>(), stop, Instant::now() + self.time).map(drop)
    }

    /// Removes all containers whose label has the given value, by `deadline`, unless `stop` is cancelled; says how many
    /// there were.
    ///
    /// # Errors
    /// As [`Docker::remove`].
    pub fn remove_labelled(&self, label: (&str, &str), stop: &Shutdown, deadline: Instant) -> Result<usize, ToolError> {
        self.remove_all(&CONTAINERS, label, stop, deadline)
    }

    /// Removes all things of a kind that have the label; says how many there were. Of one that somebody else has
    /// removed meanwhile the engine complains, although nothing of it is left.
    fn remove_all(
        &self,
        kind: &Kind,
        (label, value): (&str, &str),
        stop: &Shutdown,
        deadline: Instant,
    ) -> Result<usize, ToolError> {
        let filter = format!("label={label}={value}");
        let list = || {
            let args = [kind.list, &["--quiet", "--no-trunc", "--filter", &filter]].concat();
            let listed = self.run(kind.listing, &args, stop, deadline)?;
            Ok::<_, ToolError>(listed.split_whitespace().map(str::to_owned).collect::<Vec<String>>())
        };
        let ids = list()?;
        if ids.is_empty() {
            return Ok(0);
        }
        let args: Vec<&str> = kind.remove.iter().copied().chain(ids.iter().map(String::as_str)).collect();
        match self.run(kind.removing, &args, stop, deadline) {
            Err(failed @ ToolError::Failed { .. }) if !list()?.is_empty() => Err(failed),
            Ok(_) | Err(ToolError::Failed { .. }) => Ok(ids.len()),
            Err(error) => Err(error),
        }
    }

    /// A container of a run of its own, which does not exist yet.
    pub fn container(&self, name: String) -> Container<'_> {
        Container { docker: self, id: name.clone(), name, run: uuid::Uuid::new_v4().to_string(), handed_over: false }
    }

    /// Makes a network of its own that leads nowhere but to the containers on it, with labels for whoever cleans up. No
    /// stop ends it: whether there is a network is to be known.
    ///
    /// # Errors
    /// What the engine says; then there is no network.
    pub fn network(&self, name: String, labels: &[(&str, &str)]) -> Result<Network<'_>, ToolError> {
        // Made first, so that one of which the engine did not tell us in time is removed, too.
        let network = Network { docker: self, run: uuid::Uuid::new_v4().to_string(), name, handed_over: false };
        let run = (labels::RUN, network.run.as_str());
        let mut command = self.command(&["network", "create", "--internal"]);
        for (label, value) in labels.iter().chain([&run]) {
            command.arg("--label").arg(format!("{label}={value}"));
        }
        command.arg("--").arg(&network.name);
        self.output(command, "create the network", &Shutdown::new(), Instant::now() + self.time)?;
        Ok(network)
    }

    /// The address of the container that is on a network of ours and on no other; `None` as long as none has started
    /// there.
    ///
    /// # Errors
    /// If the engine does not answer.
    pub fn address_on(&self, network: &str, stop: &Shutdown, deadline: Instant) -> Result<Option<IpAddr>, ToolError> {
        let doing = "look for the address of the container";
        // Podman's networks do not tell who is on them.
        let filter = format!("network={network}");
        let listed = self.run(doing, &["ps", "--quiet", "--no-trunc", "--filter", &filter], stop, deadline)?;
        let Some(id) = listed.lines().next() else { return Ok(None) };
        let format = "{{range .NetworkSettings.Networks}}{{.IPAddress}} {{.GlobalIPv6Address}} {{end}}";
        let addresses = self.run(doing, &["container", "inspect", "--format", format, "--", id], stop, deadline)?;
        Ok(addresses.split_whitespace().find_map(|address| address.parse().ok()))
    }

    /// Removes all networks whose label has the given value, by `deadline`, unless `stop` is cancelled; says how many
    /// there were. One that a container is still on is an error.
    ///
    /// # Errors
    /// If the engine does not answer or refuses.
    pub fn remove_networks(&self, label: (&str, &str), stop: &Shutdown, deadline: Instant) -> Result<usize, ToolError> {
        self.remove_all(&NETWORKS, label, stop, deadline)
    }
}

/// Things of the engine that are found by a label and removed.
struct Kind {
    list: &'static [&'static str],
    listing: &'static str,
    remove: &'static [&'static str],
    removing: &'static str,
}

const CONTAINERS: Kind = Kind {
    list: &["ps", "--all"],
    listing: "list containers",
    remove: &["rm", "--force", "--volumes"],
    removing: "remove containers",
};

const NETWORKS: Kind = Kind {
    list: &["network", "ls"],
    listing: "list networks",
    remove: &["network", "rm"],
    removing: "remove networks",
};

/// What removes a container or a network of ours in place of its drop, which does nothing any more. It may be called
/// before the thing is made.
pub struct Removal {
    docker: Docker,
    kind: &'static Kind,
    name: String,
    run: String,
}

impl fmt::Debug for Removal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Removal").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Removal {
    /// Removes it, by `deadline`, unless `stop` is cancelled.
    ///
    /// # Errors
    /// What the engine says, with what to look for by hand.
    pub fn run(&self, stop: &Shutdown, deadline: Instant) -> Result<(), String> {
        let Self { docker, kind, name, run } = self;
        let removed = docker.remove_all(kind, (labels::RUN, run), stop, deadline);
        removed.map(drop).map_err(|error| format!("{name} (label {}={run}) may be left behind: {error}", labels::RUN))
    }
}

/// A network of ours; dropping it removes it. Drop it after its containers.
#[derive(Debug)]
pub struct Network<'a> {
    docker: &'a Docker,
    name: String,
    run: String,
    handed_over: bool,
}

impl Network<'_> {
    /// The network's name, for `--network`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Hands its removal over.
    pub fn removal(&mut self) -> Removal {
        self.handed_over = true;
        Removal { docker: self.docker.clone(), kind: &NETWORKS, name: self.name.clone(), run: self.run.clone() }
    }
}

impl Drop for Network<'_> {
    fn drop(&mut self) {
        if !self.handed_over
            && let Err(why) = self.removal().run(&Shutdown::new(), Instant::now() + self.docker.time * 2)
        {
            log::error!("network {why}");
        }
    }
}

/// A container of ours, whether it exists yet or not; dropping it removes it.
#[derive(Debug)]
pub struct Container<'a> {
    docker: &'a Docker,
    name: String,
    run: String,
    /// The name, as long as the engine has given no number.
    id: String,
    handed_over: bool,
}

/// What the engine says of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerState {
    /// `created`, `running`, `exited`, `dead` and others.
    pub status: String,
    /// The exit code of its process.
    pub exit_code: i32,
    /// Whether a process in it was killed for its memory.
    pub out_of_memory: bool,
    /// Why it could not be started.
    pub error: String,
}

impl Container<'_> {
    /// The container's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Hands its removal over.
    pub fn removal(&mut self) -> Removal {
        self.handed_over = true;
        Removal { docker: self.docker.clone(), kind: &CONTAINERS, name: self.name.clone(), run: self.run.clone() }
    }

    /// What the engine knows it by.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The beginning of `docker create`, without the image and what follows it.
    pub fn creation(&self) -> Command {
        let label = format!("{}={}", labels::RUN, self.run);
        self.docker.command(&["create", "--pull", "never", "--name", &self.name, "--label", &label])
    }

    /// The beginning of the `docker run` that makes and starts the container and writes what it writes, until it ends;
    /// without the image and what follows it. Unlike `docker start`, it does not hand its signals on. When the engine
    /// has made the container, its number is in the new file `made`. A removal gives it a second to end, where engines
    /// ask it to (podman, 10 s otherwise).
    pub fn run(&self, made: &Path) -> Command {
        let label = format!("{}={}", labels::RUN, self.run);
        let mut command = self.docker.command(&["run", "--sig-proxy=false", "--pull", "never", "--name", &self.name]);
        command.args(["--label", &label, "--cidfile"]).arg(made).args(["--stop-timeout", "1"]);
        command
    }

    /// Creates the container by a [`Container::creation`] that was completed. Blocks for at most [`CREATE_TIME`]; no
    /// stop ends it, because an engine that was interrupted may make the container later, when nobody looks for it.
    ///
    /// # Errors
    /// What the engine says.
    pub fn create(&mut self, creation: Command) -> Result<(), ToolError> {
        let deadline = Instant::now() + CREATE_TIME;
        self.id = self.docker.output(creation, "create the container", &Shutdown::new(), deadline)?;
        Ok(())
    }

    /// Copies a file of this machine into it, whichever machine the engine is on. Blocks until then, until `deadline`,
    /// or until `stop` is cancelled.
    ///
    /// # Errors
    /// What the engine says, as that the container's root is read-only; or why the file is not read.
    pub fn copy_in(&self, file: &Path, to: &str, stop: &Shutdown, deadline: Instant) -> Result<(), ToolError> {
        let doing = "copy a file into the container";
        // A link would be copied as one.
        let file = file.canonicalize().map_err(|error| {
            let text = format!("{}: {error}", file.display());
            ToolError::Failed { doing, text }
        })?;
        let mut command = self.docker.command(&["cp"]);
        command.arg(file).arg(format!("{}:{to}", self.id));
        self.docker.output(command, doing, stop, deadline).map(drop)
    }

    /// The command that starts it and writes what it writes, until it ends. It hands its signals on.
    pub fn attached(&self) -> Command {
        self.docker.command(&["start", "--attach", &self.id])
    }

    /// The command that writes what it writes from now on, until it ends. It keeps its signals to itself.
    pub fn attached_again(&self) -> Command {
        self.docker.command(&["attach", "--sig-proxy=false", "--no-stdin", &self.id])
    }

    /// Sends it SIGTERM, by itself: no client of a job hands a signal on. Says nothing: one that has just ended gets no
    /// signal, and removal follows and reports. Blocks for at most [`SIGNAL_TIME`].
    pub fn terminate(&self) {
        let (args, stop) = (["kill", "--signal", "TERM", &self.id], Shutdown::new());
        if let Err(error) = self.docker.run("signal the container", &args, &stop, Instant::now() + SIGNAL_TIME) {
            log::debug!("container {}: {error}", self.name);
        }
    }

    /// Removes whatever the engine has made of it.
    ///
    /// # Errors
    /// If the engine does not answer or refuses.
    pub fn undo(&self, stop: &Shutdown, deadline: Instant) -> Result<(), ToolError> {
        self.docker.remove_all(&CONTAINERS, (labels::RUN, &self.run), stop, deadline).map(drop)
    }

    /// Tells it to end, and waits for that for `grace`, unless `stop` is cancelled; then it is killed.
    ///
    /// # Errors
    /// If the engine does not answer or refuses.
    pub fn end(&self, grace: Duration, stop: &Shutdown) -> Result<(), ToolError> {
        self.docker.end(&self.id, grace, stop)
    }

    /// What the engine says of it; `None` if it does not know it any more. The exit code of a client tells
    /// neither a program's failure from docker's nor, when it was signalled itself, anything.
    ///
    /// # Errors
    /// If the engine does not answer.
    pub fn state(&self, stop: &Shutdown, deadline: Instant) -> Result<Option<ContainerState>, ToolError> {
        let doing = "inspect the container";
        let format = "{{.State.Status}}|{{.State.ExitCode}}|{{.State.OOMKilled}}|{{.State.Error}}";
        let args = ["container", "inspect", "--format", format, &self.id];
        match self.docker.run(doing, &args, stop, deadline) {
            Ok(told) => match parse(&told) {
                None => Err(ToolError::Failed { doing, text: format!("docker describes its state as {told:?}") }),
                state => Ok(state),
            },
            // An engine that answers lists it or does not; the words for a missing one differ.
            Err(failed @ ToolError::Failed { .. }) => {
                let filter = format!("label={}={}", labels::RUN, self.run);
                let args = ["ps", "--all", "--quiet", "--filter", &filter];
                let listed = self.docker.run("look for the container", &args, stop, deadline)?;
                if listed.is_empty() { Ok(None) } else { Err(failed) }
            }
            Err(error) => Err(error),
        }
    }
}

fn parse(state: &str) -> Option<ContainerState> {
    let mut fields = state.splitn(4, '|');
    let mut field = || fields.next();
    Some(ContainerState {
        status: field()?.to_owned(),
        exit_code: field()?.parse().ok()?,
        out_of_memory: field()? == "true",
        error: field()?.to_owned(),
    })
}

impl Drop for Container<'_> {
    fn drop(&mut self) {
        if !self.handed_over
            && let Err(why) = self.removal().run(&Shutdown::new(), Instant::now() + self.docker.time * 2)
        {
            log::error!("container {why}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_read_whole_or_not_at_all() {
        let state = parse("exited|137|true|a | b").unwrap();
        assert_eq!((state.status.as_str(), state.exit_code, state.out_of_memory), ("exited", 137, true));
        assert_eq!(state.error, "a | b");
        assert_eq!(parse("created|127|false|").unwrap().error, "");
        for bad in ["", "exited|0|true", "exited|zero|false|"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
