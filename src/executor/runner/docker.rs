//! Runs the job in a container. Volumes are bind mounts: the engine must see the same file system as the executor.
//!
//! A job's environment may hold secrets, so it is in no command line, which every user of the host can read, unless
//! there is no other way; and what it sets must not reach the `docker` program itself.

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::common::{Prepared, RunError, Runner, io_error, open_to_job, publish};
use super::follow::follow;
use super::pull::{self, ImageSettings};
use super::quota::{Beside, DiskWatch};
use super::run::{RunEnd, RunOutcome, RunSpec, SCRIPT_PATH};
use crate::base::shutdown::Shutdown;
use crate::base::text::truncated;
use crate::base::tree::{self, Bounds};
use crate::executor::cleanup::Cleanup;
use crate::executor::image_name::check_image_name;
use crate::executor::sandbox::{ENTRIES, Sandbox};
use crate::executor::workspace::Workspace;
use crate::ops::errors::{ErrorClass, ErrorHandler};
use crate::proc::docker::{Docker, PrivateConfig, labels};
use crate::proc::helper::{self, Operation};
use crate::proc::tool::ToolError;

/// Folders inside the container that the artifacts must not hide.
const TAKEN_DIRS: [&str; 5] = ["/", "/volume", "/output", "/specs", SCRIPT_PATH];

/// The system takes paths of 4096 bytes; the engine puts the container's own folder before this one.
const DIR_BYTES_MAX: usize = 3 << 10;

/// How much of a name that is wrong an error tells.
const SHOWN_BYTES: usize = 80;

/// The longest name in a folder that file systems take.
const PART_BYTES_MAX: usize = 255;

/// Those of the kernel: no engine mounts anything there.
const KERNEL_DIRS: [&str; 3] = ["/proc", "/sys", "/dev"];

/// The docker runner. Its containers have the job's id as label [`labels::JOB`].
#[derive(Debug, Clone, Default)]
pub struct DockerRunner {
    /// The engine.
    pub docker: Docker,
    /// What its jobs may do.
    pub sandbox: Sandbox,
    /// Which images they may have, and how those get here.
    pub images: ImageSettings,
    /// Has the removal of a job's container, until that is done.
    pub cleanup: Cleanup,
    /// Is told of what a job lives on after.
    pub errors: ErrorHandler,
}

impl DockerRunner {
    /// A runner whose engine sees the operator's log-ins only if the settings say so.
    ///
    /// # Errors
    /// If there is no room for a configuration of its own.
    pub fn new(sandbox: Sandbox, images: ImageSettings) -> Result<Self, RunError> {
        let mut docker = Docker::default();
        if !images.registry_login {
            let config = PrivateConfig::create().map_err(io_error("make a configuration for the engine's client"))?;
            docker.config = Some(Arc::new(config));
        }
        Ok(Self { docker, sandbox, images, cleanup: Cleanup::default(), errors: ErrorHandler::default() })
    }
}

/// Time between two questions for what a container has changed in its image: the engine walks over all of it.
const LAYER_PAUSE: Duration = Duration::from_secs(5);

/// A pause is at least this many times as long as an answer took.
const LAYER_PAUSES: u32 = 20;

/// How long one answer may take.
const LAYER_TIME: Duration = Duration::from_secs(10);

impl DockerRunner {
    /// What a job uses of the disk beside what this process sees in its folders.
    fn beside(&self, spec: &RunSpec, workspace: &Workspace, container: &str) -> Beside {
        let (docker, container, errors) = (self.docker.clone(), container.to_owned(), self.errors.clone());
        let (job, folder, labels) = (spec.id.clone(), workspace.job().to_owned(), all_labels(spec));
        let writable = !self.sandbox.read_only_root;
        let (mut next, mut known) = (Instant::now() + LAYER_PAUSE, 0);
        Box::new(move |seen, stop| {
            let began = Instant::now();
            if began < next {
                return known;
            }
            let deadline = began + LAYER_TIME;
            let mut bytes = 0;
            if writable {
                match docker.changed_bytes(&container, stop, deadline) {
                    Ok(changed) => bytes += changed,
                    Err(error) => log::debug!("job {job}: {error}"),
                }
            }
            if seen.closed > 0 {
                // As root, of all of it; what this process sees counts once.
                let told = helper::run(&docker, (Operation::Measure, &folder), &labels, stop, deadline);
                let all = told.map_err(|error| error.to_string()).and_then(|told| {
                    told_bytes(&told).ok_or_else(|| format!("the helper's measurement cannot be read: {told}"))
                });
                match all {
                    Ok(all) => bytes += all.saturating_sub(seen.bytes),
                    Err(why) => errors.report(ErrorClass::Retry, "job-disk", &format_args!("job {job}: {why}")),
                }
            }
            known = bytes;
            next = Instant::now() + LAYER_PAUSE.max(began.elapsed() * LAYER_PAUSES);
            known
        })
    }
}

/// The labels of every container of a job.
fn all_labels(spec: &RunSpec) -> Vec<(String, String)> {
    [(labels::JOB.to_owned(), spec.id.clone())].into_iter().chain(spec.labels.iter().cloned()).collect()
}

/// The bytes of a measurement in JSON.
fn told_bytes(told: &str) -> Option<u64> {
    serde_json::from_str::<serde_json::Value>(told).ok()?["bytes"].as_u64()
}

impl Runner for DockerRunner {
    fn name(&self) -> &'static str {
        "docker"
    }

    fn docker(&self) -> Option<&Docker> {
        Some(&self.docker)
    }

    fn prepare(&self, image: &str, token: &Shutdown, deadline: Instant) -> Result<Prepared, RunError> {
        check_image(image)?;
        pull::prepare(&self.docker, &self.images, image, (token, deadline), &self.errors)
    }

    fn run(
        &self,
        spec: &RunSpec,
        workspace: &Workspace,
        token: &Shutdown,
        deadline: Instant,
    ) -> Result<RunOutcome, RunError> {
        let args = create_args(spec, &self.sandbox, workspace)?;
        open_to_job(workspace, token, deadline)?;
        if let Some(script) = &spec.raw_script {
            write_script(&script_file(workspace), script).map_err(io_error("write the job's script"))?;
        }
        let mut container = self.docker.container(container_name(spec));
        let env = JobEnv::of(spec);
        std::fs::write(env_file(workspace), &env.file).map_err(io_error("write the job's environment"))?;
        if token.is_cancelled() {
            return Err(ToolError::Cancelled("create the container").into());
        }
        let removal = container.removal();
        let removed = self.cleanup.push("container", self.docker.time * 2, move |stop, by| removal.run(stop, by));
        let made = workspace.private().join("container");
        let run = || {
            let mut run = container.run(&made);
            run.args(&args);
            run
        };
        let beside = self.beside(spec, workspace, container.id());
        let watch = DiskWatch::start(&self.sandbox, workspace.private(), (token, &self.errors), beside);
        let ran = follow(&container, (run, &made), workspace, (&watch.run, deadline), &self.errors);
        let over = watch.finish(&self.errors);
        // This kills what has not ended within its grace.
        self.cleanup.undo(removed);
        // The client reads it before it makes the container, which is known to be over only now.
        std::fs::remove_file(env_file(workspace)).map_err(io_error("remove the job's environment"))?;
        let outcome = ran.map_err(|error| match error {
            RunError::Tool(ToolError::Start { source, .. })
                if source.kind() == std::io::ErrorKind::ArgumentListTooLong =>
            {
                RunError::Spec("its command and its environment are longer than the system takes".to_owned())
            }
            error => error,
        })?;
        let outcome = outcome.or_over(over).with_memory(self.sandbox.memory_bytes);
        match reclaim(&self.docker, spec, workspace, token) {
            // A job that has not ended well has its end; the folder is the miner's then, which removes it once more.
            Err(error) if outcome.end != RunEnd::Exited(0) => {
                self.errors.report(ErrorClass::Rejected, "job-folder", &format_args!("job {}: {error}", spec.id));
            }
            reclaimed => reclaimed?,
        }
        publish(workspace)?;
        Ok(outcome)
    }
}

/// How long it may take to take over what a job has left: a helper's image is made at the first time.
const RECLAIM_TIME: Duration = Duration::from_secs(60);

/// Makes what the job has left ours, if it is not: its container's users are not this process' user.
fn reclaim(docker: &Docker, spec: &RunSpec, workspace: &Workspace, stop: &Shutdown) -> Result<(), RunError> {
    let (user, deadline) = (rustix::process::geteuid(), Instant::now() + RECLAIM_TIME);
    if user.is_root() || stop.is_cancelled() {
        return Ok(());
    }
    let bounds = Bounds { entries: ENTRIES, ..Bounds::until(deadline, stop) };
    let job = tree::open_dir(workspace.job()).map_err(io_error("open the job's folder"))?;
    match tree::is_all_of(job, user, &bounds) {
        Ok(true) => return Ok(()),
        Ok(false) => {}
        Err(error) => log::debug!("job {}: whose its files are is not known: {error}", spec.id),
    }
    // Also when the time for it is over: that is no failure of the job, which has run.
    let failed = |error: ToolError| io_error("take over what the job has left")(std::io::Error::other(error));
    helper::run(docker, (Operation::Own, workspace.job()), &all_labels(spec), stop, deadline).map_err(failed).map(drop)
}

/// A name for people. It is unlike that of the Python executor's containers, `ch-…-job`, because such an executor on
/// the same engine kills all of that name.
fn container_name(spec: &RunSpec) -> String {
    format!("phalanx-job-{}-{}", spec.id, uuid::Uuid::new_v4().simple())
}

/// Every user may read it, whatever the umask: nobody knows which the image has.
fn write_script(path: &std::path::Path, script: &str) -> std::io::Result<()> {
    std::fs::write(path, script)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644))
}

fn script_file(workspace: &Workspace) -> std::path::PathBuf {
    workspace.private().join("script.py")
}

/// Beside the job's part of the workspace, in a folder that is ours alone.
fn env_file(workspace: &Workspace) -> std::path::PathBuf {
    workspace.private().join("env")
}

/// Longer variables, name and value together, do not go into the file: docker reads lines of up to 64 KiB.
const FILE_VARIABLE_BYTES: usize = 32 << 10;

/// The system takes no longer argument than 128 KiB, with its final NUL.
const ARGUMENT_BYTES_MAX: usize = (128 << 10) - 1;

/// The ways in which a job's variables get into its container. The environment of the `docker` program is none of
/// them: it would take some for its own settings.
struct JobEnv<'a> {
    /// The text of an `--env-file`: all that such a file can express.
    file: String,
    /// The rest, as values with line breaks: in the arguments of `docker run`, which users of the host can see while
    /// the job runs.
    arguments: Vec<&'a (String, String)>,
}

impl<'a> JobEnv<'a> {
    fn of(spec: &'a RunSpec) -> Self {
        let mut env = Self { file: String::new(), arguments: Vec::new() };
        for variable in &spec.env {
            let (name, value) = variable;
            // In the file a # begins a comment, and a name has no blanks.
            let plain = !name.starts_with('#') && name.chars().all(|c| c.is_ascii_graphic());
            if plain && name.len() + value.len() <= FILE_VARIABLE_BYTES && !value.contains(['\n', '\r']) {
                env.file.push_str(&format!("{name}={value}\n"));
            } else {
                env.arguments.push(variable);
            }
        }
        env
    }
}

fn check_image(image: &str) -> Result<(), RunError> {
    check_image_name(image).map_err(RunError::Spec)
}

/// The further arguments of `docker run`: nothing of the request may become an option or a second mount.
fn create_args(spec: &RunSpec, sandbox: &Sandbox, workspace: &Workspace) -> Result<Vec<String>, RunError> {
    if let Some(problem) = spec.problem() {
        return Err(RunError::Spec(problem));
    }
    check_image(&spec.image)?;
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    if spec.id.is_empty() || !spec.id.chars().all(allowed) {
        return Err(RunError::Spec(format!(
            "job id {:?}: only letters, digits, _ . and - make a container name",
            spec.id
        )));
    }
    let mut args: Vec<String> = ["--init", "--log-driver", "none"].map(Into::into).into();
    let mut option = |name: &str, value: String| args.extend([name.to_owned(), value]);
    option("--label", format!("{}={}", labels::JOB, spec.id));
    option("--label", format!("{}=job", labels::STAGE));
    spec.labels.iter().for_each(|(key, value)| option("--label", format!("{key}={value}")));
    option("--network", spec.network.clone().unwrap_or_else(|| sandbox.network.clone()));
    match (spec.gpus, sandbox.gpus) {
        (true, true) => option("--gpus", "all".into()),
        // The official client asks for them whatever the class, so it is no reason to refuse the job.
        (true, false) => log::info!("the job asks for GPUs, which its class has not; it runs without"),
        (false, _) => {}
    }
    for (from, to) in [(workspace.volume(), "/volume"), (workspace.output(), "/output"), (workspace.specs(), "/specs")]
    {
        option("--mount", mount(&from, to)?);
    }
    if let Some(dir) = spec.artifacts_dir() {
        option("--mount", mount(&workspace.artifacts(), check_artifacts_dir(dir)?)?);
    }
    if spec.raw_script.is_some() {
        option("--mount", format!("{},readonly", mount(&script_file(workspace), SCRIPT_PATH)?));
    }
    args.extend(sandbox.arguments());
    let mut option = |name: &str, value: String| args.extend([name.to_owned(), value]);
    let env = JobEnv::of(spec);
    option("--env-file", env_file(workspace).to_string_lossy().into_owned());
    for (name, value) in env.arguments {
        let argument = format!("{name}={value}");
        if argument.len() > ARGUMENT_BYTES_MAX {
            let name = truncated(name, SHOWN_BYTES);
            let text = format!("env {name:?} has {} bytes; at most {ARGUMENT_BYTES_MAX} fit", argument.len());
            return Err(RunError::Spec(text));
        }
        option("--env", argument);
    }
    args.extend(["--".to_owned(), spec.image.clone()]);
    args.extend(spec.command_or_script());
    Ok(args)
}

fn check_artifacts_dir(dir: &str) -> Result<&str, RunError> {
    let bad = |why: &str| {
        let dir = truncated(dir, SHOWN_BYTES);
        Err(RunError::Spec(format!("artifacts_dir {dir:?} {why}; give an absolute path as in /artifacts")))
    };
    if dir.len() > DIR_BYTES_MAX || dir.split('/').any(|part| part.len() > PART_BYTES_MAX) {
        return bad("is longer than the system takes");
    }
    let clean = format!("/{}", dir.split('/').filter(|part| !part.is_empty()).collect::<Vec<_>>().join("/"));
    if !dir.starts_with('/') {
        return bad("is not absolute");
    }
    if dir.split('/').any(|part| matches!(part, "." | "..")) {
        return bad("has . or .. in it");
    }
    if TAKEN_DIRS.contains(&clean.as_str()) {
        return bad("is a folder of its own kind");
    }
    if KERNEL_DIRS
        .iter()
        .any(|kernel| clean.strip_prefix(kernel).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')))
    {
        return bad("is a folder of the kernel");
    }
    Ok(dir)
}

/// A bind mount in the syntax of `--mount`, whose fields are those of CSV and are kept apart by refusing its
/// separators.
fn mount(from: &std::path::Path, to: &str) -> Result<String, RunError> {
    let from = from.to_string_lossy();
    for path in [&*from, to] {
        if path.contains([',', '"', '\n', '\r']) {
            return Err(RunError::Spec(format!(
                "path {path:?} cannot be mounted: it has a comma, a quote or a line break"
            )));
        }
    }
    Ok(format!("type=bind,source={from},target={to}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::executor::runner::common::of_engine;
    use crate::ops::cause::Fault;

    fn args(spec: &RunSpec) -> Result<Vec<String>, RunError> {
        create_args(spec, &Sandbox::default(), &Workspace::create().unwrap())
    }

    fn spec() -> RunSpec {
        RunSpec { id: "abc".into(), image: "ubuntu:latest".into(), ..RunSpec::default() }
    }

    #[test]
    fn a_request_becomes_arguments_that_are_not_options() {
        let spec = RunSpec {
            command: vec!["--rm".into(), "-v/:/host".into()],
            env: vec![("A".into(), "--privileged".into())],
            gpus: true,
            artifacts_dir: Some("/artifacts".into()),
            raw_script: Some("print(1)".into()),
            labels: vec![("owner".into(), "miner".into())],
            network: Some("ch-abc".into()),
            ..spec()
        };
        let args = args(&spec).unwrap();
        let end = args.iter().position(|arg| arg == "--").unwrap();
        assert_eq!(args[end + 1..], ["ubuntu:latest", "--rm", "-v/:/host"]);
        for pair in [
            ["--network", "ch-abc"],
            ["--pids-limit", "512"],
            ["--cap-drop", "ALL"],
            ["--gpus", "all"],
            ["--label", "phalanx.job=abc"],
            ["--label", "owner=miner"],
        ] {
            assert!(args[..end].chunks(1).zip(args[1..].chunks(1)).any(|(a, b)| [&a[0], &b[0]] == pair), "{pair:?}");
        }
        assert!(container_name(&spec).starts_with("phalanx-job-abc-"), "{}", container_name(&spec));
        assert_eq!(args.iter().filter(|arg| *arg == "--mount").count(), 5);
        assert!(args.iter().any(|arg| arg.ends_with("target=/script.py,readonly")));
    }

    #[test]
    fn a_value_is_an_argument_only_if_no_file_can_express_it() {
        let long = "x".repeat(FILE_VARIABLE_BYTES + 1);
        let variable = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let env = vec![
            variable("A", " secret # \"1\" "),
            variable("DOCKER_HOST", "tcp://evil"),
            variable("KEY", "two\nlines"),
            variable("#odd", "odd-value"),
            variable("a b", "blank"),
            variable("LONG", &long),
            variable(&long, "named"),
        ];
        let spec = RunSpec { env, ..spec() };
        assert_eq!(JobEnv::of(&spec).file, "A= secret # \"1\" \nDOCKER_HOST=tcp://evil\n");
        let args = args(&spec).unwrap();
        for value in ["secret", "tcp://evil"] {
            assert!(!args.iter().any(|arg| arg.contains(value)), "{value}");
        }
        for argument in
            ["KEY=two\nlines", "#odd=odd-value", "a b=blank", &format!("LONG={long}"), &format!("{long}=named")]
        {
            assert!(args.iter().any(|arg| arg == argument), "{argument}");
        }
    }

    #[test]
    fn only_what_is_known_of_an_engine_is_the_operator_s_trouble() {
        for (text, says) in [("no space left on device", Fault::Operator), ("something new", Fault::Network)] {
            let error = of_engine(ToolError::Failed { doing: "create the container", text: text.to_owned() });
            assert!(matches!(&error, RunError::Engine { cause, .. } if cause.fault == says), "{error}");
        }
    }

    #[test]
    fn a_script_without_a_command_is_run_by_python() {
        let spec = RunSpec { raw_script: Some("print(1)".into()), ..spec() };
        let args = args(&spec).unwrap();
        assert!(args.ends_with(&["ubuntu:latest".into(), "python".into(), "/script.py".into()]));
        assert!(args.join(" ").contains("--network none "), "no network unless one is named");
    }

    #[test]
    fn gpus_are_for_classes_that_have_some_and_a_network_for_those_that_may() {
        let spec = RunSpec { gpus: true, ..spec() };
        for (gpus, network) in [(true, "none"), (false, "bridge")] {
            let sandbox = Sandbox { gpus, network: network.to_owned(), ..Sandbox::default() };
            let args = create_args(&spec, &sandbox, &Workspace::create().unwrap()).unwrap().join(" ");
            assert_eq!(args.contains("--gpus all"), gpus, "{args}");
            assert!(args.contains(&format!("--network {network} ")), "{args}");
        }
    }

    #[test]
    fn bad_requests_are_refused_with_the_field_and_the_rule() {
        let artifacts = |dir: &str| RunSpec { artifacts_dir: Some(dir.into()), ..spec() };
        for (bad, says) in [
            (RunSpec { image: "--privileged".into(), ..spec() }, "image \"--privileged\""),
            (RunSpec { image: String::new(), ..spec() }, "image \"\""),
            (RunSpec { image: "x".repeat(ARGUMENT_BYTES_MAX), ..spec() }, "at most 1024 fit"),
            (RunSpec { id: "a/b".into(), ..spec() }, "job id \"a/b\""),
            (RunSpec { env: vec![("A=B".into(), "c".into())], ..spec() }, "env \"A=B\""),
            (RunSpec { env: vec![(String::new(), "c".into())], ..spec() }, "env \"\""),
            (RunSpec { env: vec![("A".into(), "x".repeat(ARGUMENT_BYTES_MAX))], ..spec() }, "at most 131071 fit"),
            (RunSpec { command: vec!["a\0".into()], ..spec() }, "command argument"),
            (RunSpec { env: vec![("x".repeat(ARGUMENT_BYTES_MAX), "c".into())], ..spec() }, "at most 131071 fit"),
            (artifacts("relative"), "not absolute"),
            (artifacts(&format!("/a/{}", "b".repeat(256))), "longer than the system takes"),
            (artifacts(&"/a".repeat(1 << 11)), "longer than the system takes"),
            (artifacts("/a/../b"), ".. in it"),
            (artifacts("/output/"), "folder of its own"),
            (artifacts("/"), "folder of its own"),
            (artifacts("/script.py"), "folder of its own"),
            (artifacts("/proc/self"), "folder of the kernel"),
            (artifacts("//sys/"), "folder of the kernel"),
            (artifacts("/dev"), "folder of the kernel"),
            (artifacts("/a,source=/etc"), "comma"),
        ] {
            let error = args(&bad).unwrap_err().to_string();
            assert!(error.starts_with("bad job request") && error.contains(says), "{error}");
            assert!(error.len() < 300, "{error}");
        }
        args(&artifacts(&format!("/{}", "b".repeat(255)))).unwrap();
        assert_eq!(args(&artifacts("")).unwrap().iter().filter(|arg| *arg == "--mount").count(), 3);
    }

    #[test]
    fn every_user_may_read_the_script() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("script.py");
        // As a umask of 077 makes it.
        std::fs::write(&path, "").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        write_script(&path, "pass").unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o644);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "pass");
    }

    #[test]
    fn a_measurement_that_cannot_be_read_is_not_nothing() {
        assert_eq!(told_bytes(r#"{"bytes":7,"entries":1,"closed":0}"#), Some(7));
        assert_eq!((told_bytes("7 bytes"), told_bytes("{}")), (None, None));
    }
}
