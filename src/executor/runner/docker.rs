//! Runs the job in a container, through the `docker` command; `DOCKER_HOST` and the rest of its environment pass through.
//!
//! A container is found and removed by a label with a number of its own run, never by a pattern of names, so a runner
//! cannot touch what is not its own. Volumes are bind mounts: the engine must see the same file system as the executor.
//!
//! A job's environment may hold secrets, so it is in no command line, which every user of the host can read; and what it
//! sets must not reach the `docker` program itself.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use super::child::{self, Ended};
use super::{
    RunEnd, RunError, RunOutcome, RunSpec, Runner, SCRIPT_PATH, captures, child_error, io_error, publish, tool,
    tool_command,
};
use crate::base::shutdown::Shutdown;
use crate::executor::workspace::Workspace;

/// How long the engine may take to answer whether it is there.
pub const PROBE_TIME: Duration = Duration::from_secs(5);

/// The label of every container that a runner creates; its value is the job's id.
pub const JOB_LABEL: &str = "phalanx.job";

/// The label that one run of one runner has alone.
const RUN_LABEL: &str = "phalanx.run";

/// How long looking at or removing a container may take once its job is over; the job's own deadline may have passed.
const CLEANUP_TIME: Duration = Duration::from_secs(10);

/// Processes and threads in a container: far more than a job needs, far less than a fork bomb takes.
const PIDS_MAX: &str = "4096";

/// Folders inside the container that the artifacts must not hide.
const TAKEN_DIRS: [&str; 4] = ["/", "/volume", "/output", "/specs"];

/// The docker runner.
#[derive(Debug, Clone, Copy, Default)]
pub struct DockerRunner;

/// Asks the engine for its version. Blocks until it answers, `deadline` passes or `token` is cancelled.
///
/// # Errors
/// If there is no `docker` program or no engine.
pub fn docker_available(token: &Shutdown, deadline: Instant) -> Result<String, RunError> {
    docker("ask the docker engine for its version", &["version", "--format", "{{.Server.Version}}"], token, deadline)
}

/// Whether the image is here.
///
/// # Errors
/// As [`docker_available`].
pub fn has_image(image: &str, token: &Shutdown, deadline: Instant) -> Result<bool, RunError> {
    let listed = docker("look for the image", &["images", "--quiet", image], token, deadline)?;
    Ok(!listed.trim().is_empty())
}

/// Makes an image of the files of `folder`, with `/bin` on its path. Blocks until it is there, `deadline` passes or `token`
/// is cancelled.
///
/// # Errors
/// What `tar` or the engine says.
pub fn import_image(folder: &Path, image: &str, token: &Shutdown, deadline: Instant) -> Result<(), RunError> {
    let archive = tempfile::NamedTempFile::new().map_err(|source| RunError::Io { doing: "make an archive", source })?;
    let (archive, folder) = (archive.path().to_string_lossy(), folder.to_string_lossy());
    tool("tar", "pack the image", &["-C", &folder, "-cf", &archive, "."], token, deadline)?;
    docker("import the image", &["import", "--change", "ENV PATH=/bin", &archive, image], token, deadline)?;
    Ok(())
}

/// Removes every container whose label `key` has the given value, running or not; says how many.
///
/// For an owner that cleans up after an executor which was killed. Blocks until `deadline`.
///
/// # Errors
/// If the engine does not answer or refuses.
pub fn remove_labelled(key: &str, value: &str, deadline: Instant) -> Result<usize, RunError> {
    // Not the caller's token, because this is what is done after it was cancelled.
    let token = Shutdown::new();
    let filter = format!("label={key}={value}");
    let ids = docker("list containers", &["ps", "--all", "--quiet", "--filter", &filter], &token, deadline)?;
    let ids: Vec<&str> = ids.split_whitespace().collect();
    if !ids.is_empty() {
        let args: Vec<&str> = ["rm", "--force", "--volumes"].into_iter().chain(ids.iter().copied()).collect();
        docker("remove containers", &args, &token, deadline)?;
    }
    Ok(ids.len())
}

impl Runner for DockerRunner {
    fn name(&self) -> &'static str {
        "docker"
    }

    fn prepare(&self, image: &str, token: &Shutdown, deadline: Instant) -> Result<(), RunError> {
        check_image(image)?;
        match docker("look for the image", &["image", "inspect", "--format", "{{.Id}}", image], token, deadline) {
            Ok(_) => return Ok(()),
            Err(RunError::Tool { text, .. }) if text.to_lowercase().contains("no such image") => {}
            Err(error) => return Err(error),
        }
        log::info!("pulling image {image}");
        match docker("pull the image", &["pull", "--quiet", image], token, deadline) {
            Ok(_) => Ok(()),
            Err(RunError::Tool { text, .. }) => Err(RunError::Image { image: image.to_owned(), text }),
            Err(error) => Err(error),
        }
    }

    fn run(
        &self,
        spec: &RunSpec,
        workspace: &Workspace,
        token: &Shutdown,
        deadline: Instant,
    ) -> Result<RunOutcome, RunError> {
        let run_id = uuid::Uuid::new_v4().to_string();
        let args = create_args(spec, workspace, &run_id)?;
        workspace.open_to_job().map_err(io_error("open the job's folders"))?;
        if let Some(script) = &spec.raw_script {
            std::fs::write(script_file(workspace), script).map_err(io_error("write the job's script"))?;
        }
        // Before the container is created, because a create that is interrupted may have created it.
        let container = Container { name: container_name(spec), run_id, removed: false };
        let env = JobEnv::of(spec);
        std::fs::write(env_file(workspace), &env.file).map_err(io_error("write the job's environment"))?;
        let mut create = Command::new("docker");
        create.args(&args).envs(env.inherited.iter().map(|(name, value)| (name, value)));
        let created = tool_command(create, "create the container", token, deadline);
        std::fs::remove_file(env_file(workspace)).map_err(io_error("remove the job's environment"))?;
        let id = created?;

        let mut start = Command::new("docker");
        start.args(["start", "--attach", &id]);
        let kill = || {
            // Removal follows and reports, so a container that has just ended by itself is no error here.
            let killed = docker("kill the container", &["kill", &id], &Shutdown::new(), Instant::now() + CLEANUP_TIME);
            if let Err(error) = killed {
                log::debug!("container {}: {error}", container.name);
            }
        };
        let ended = child::run(&mut start, captures(workspace)?, token, deadline, kill);
        let ended = ended.map_err(|error| child_error("docker", "start the container", error))?;
        let end = container.end(&id, &ended);
        container.remove();
        publish(workspace)?;
        Ok(RunOutcome { end: end?, stdout: ended.stdout, stderr: ended.stderr, took: ended.took })
    }
}

fn container_name(spec: &RunSpec) -> String {
    format!("ch-{}-job", spec.id)
}

fn script_file(workspace: &Workspace) -> std::path::PathBuf {
    workspace.private().join("script.py")
}

/// Beside the job's part of the workspace, in a folder that is ours alone.
fn env_file(workspace: &Workspace) -> std::path::PathBuf {
    workspace.private().join("env")
}

/// Longer values do not go into the file: docker reads lines of up to 64 KiB.
const FILE_VALUE_BYTES: usize = 32 << 10;

/// Variables, or beginnings of their names, that configure the `docker` program, its TLS or its proxy, or the loader and
/// the libraries under it.
const READ_BY_DOCKER: [&str; 24] = [
    "PATH",
    "HOME",
    "TMPDIR",
    "TZ",
    "TERM",
    "LANG",
    "LC_",
    "LD_",
    "DOCKER_",
    "BUILDX_",
    "BUILDKIT_",
    "COMPOSE_",
    "GO",
    "GLIBC_",
    "MALLOC_",
    "OTEL_",
    "SSL_",
    "SSH_",
    "XDG_",
    "HTTP",
    "ALL_PROXY",
    "NO_",
    "RES_OPTIONS",
    "LOCALDOMAIN",
];

/// The ways in which a job's variables get into its container.
struct JobEnv<'a> {
    /// The text of an `--env-file`: all that such a file can express.
    file: String,
    /// The rest, as values with line breaks: by name, with the value in the environment of `docker create`.
    inherited: Vec<&'a (String, String)>,
    /// The rest of the rest, with names that the program itself reads: in the arguments, which others can see.
    arguments: Vec<&'a (String, String)>,
}

impl<'a> JobEnv<'a> {
    fn of(spec: &'a RunSpec) -> Self {
        let mut env = Self { file: String::new(), inherited: Vec::new(), arguments: Vec::new() };
        for variable in &spec.env {
            let (name, value) = variable;
            let upper = name.to_ascii_uppercase();
            // In the file a # begins a comment, and a name has no blanks.
            let plain = !name.starts_with('#') && name.chars().all(|c| c.is_ascii_graphic());
            if plain && value.len() <= FILE_VALUE_BYTES && !value.contains(['\n', '\r']) {
                env.file.push_str(&format!("{name}={value}\n"));
            } else if READ_BY_DOCKER.iter().any(|read| upper.starts_with(read)) {
                env.arguments.push(variable);
            } else {
                env.inherited.push(variable);
            }
        }
        env
    }
}

fn check_image(image: &str) -> Result<(), RunError> {
    if image.is_empty() || image.starts_with('-') || image.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err(RunError::Spec(format!("image {image:?} is not the name of an image, as in ubuntu:latest")));
    }
    Ok(())
}

/// The arguments of `docker create`: nothing of the request may become an option or a second mount.
fn create_args(spec: &RunSpec, workspace: &Workspace, run_id: &str) -> Result<Vec<String>, RunError> {
    spec.check()?;
    check_image(&spec.image)?;
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    if spec.id.is_empty() || !spec.id.chars().all(allowed) {
        return Err(RunError::Spec(format!(
            "job id {:?}: only letters, digits, _ . and - make a container name",
            spec.id
        )));
    }
    let mut args: Vec<String> = ["create", "--pull", "never", "--init", "--log-driver", "none"].map(Into::into).into();
    let mut option = |name: &str, value: String| args.extend([name.to_owned(), value]);
    option("--name", container_name(spec));
    option("--label", format!("{JOB_LABEL}={}", spec.id));
    option("--label", format!("{RUN_LABEL}={run_id}"));
    spec.labels.iter().for_each(|(key, value)| option("--label", format!("{key}={value}")));
    option("--network", spec.network.clone().unwrap_or_else(|| "none".into()));
    option("--security-opt", "no-new-privileges".into());
    option("--pids-limit", PIDS_MAX.into());
    if let Some(bytes) = spec.memory_bytes {
        // The same limit with swap, so that there is none.
        option("--memory", bytes.to_string());
        option("--memory-swap", bytes.to_string());
    }
    if spec.gpus {
        option("--gpus", "all".into());
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
    let env = JobEnv::of(spec);
    option("--env-file", env_file(workspace).to_string_lossy().into_owned());
    env.inherited.iter().for_each(|(name, _)| option("--env", name.clone()));
    env.arguments.iter().for_each(|(name, value)| option("--env", format!("{name}={value}")));
    args.extend(["--".to_owned(), spec.image.clone()]);
    args.extend(spec.command_or_script());
    Ok(args)
}

fn check_artifacts_dir(dir: &str) -> Result<&str, RunError> {
    let bad = |why| Err(RunError::Spec(format!("artifacts_dir {dir:?} {why}; give an absolute path as in /artifacts")));
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
    Ok(dir)
}

/// A bind mount in the syntax of `--mount`, whose fields are those of CSV and are kept apart by refusing its separators.
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

/// A container of this run, whether it exists yet or not; dropping it removes it.
struct Container {
    name: String,
    run_id: String,
    removed: bool,
}

impl Container {
    /// How the container's process ended, from the engine: the exit code of `docker start` alone does not tell a job's
    /// own failure from docker's.
    fn end(&self, id: &str, ended: &Ended) -> Result<RunEnd, RunError> {
        if matches!(ended.end, RunEnd::TimedOut | RunEnd::Cancelled) {
            return Ok(ended.end);
        }
        let lost = |text: String| RunError::Lost { name: self.name.clone(), text };
        let format = "{{.State.Status}}|{{.State.ExitCode}}|{{.State.OOMKilled}}|{{.State.Error}}";
        let args = ["container", "inspect", "--format", format, id];
        let state = docker("inspect the container", &args, &Shutdown::new(), Instant::now() + CLEANUP_TIME)
            .map_err(|error| lost(error.to_string()))?;
        let fields: Vec<&str> = state.splitn(4, '|').collect();
        let [status, code, out_of_memory, error] = fields[..] else {
            return Err(lost(format!("docker describes its state as {state:?}")));
        };
        let code: i32 = code.parse().map_err(|_| lost(format!("docker gives the exit code {code:?}")))?;
        match status {
            // A job whose child was killed for its memory may still have ended well.
            "exited" | "dead" if out_of_memory == "true" && code != 0 => Ok(RunEnd::OutOfMemory),
            "exited" | "dead" => Ok(RunEnd::Exited(code)),
            // The engine could not run the command itself; these are a shell's codes for that.
            "created" if matches!(code, 126 | 127) => Ok(RunEnd::Exited(code)),
            "created" => {
                let text = if error.is_empty() { ended.stderr.text.trim() } else { error };
                Err(RunError::Tool { doing: "start the container", text: text.to_owned() })
            }
            status => Err(lost(format!("the connection to it ended while it is {status}"))),
        }
    }

    fn remove(mut self) {
        self.remove_now();
    }

    fn remove_now(&mut self) {
        if std::mem::replace(&mut self.removed, true) {
            return;
        }
        if let Err(error) = remove_labelled(RUN_LABEL, &self.run_id, Instant::now() + CLEANUP_TIME) {
            log::error!("container {} (label {RUN_LABEL}={}) may be left behind: {error}", self.name, self.run_id);
        }
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        self.remove_now();
    }
}

/// Runs one docker command and gives what it prints, trimmed.
fn docker(doing: &'static str, args: &[&str], token: &Shutdown, deadline: Instant) -> Result<String, RunError> {
    tool("docker", doing, args, token, deadline)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(spec: &RunSpec) -> Result<Vec<String>, RunError> {
        create_args(spec, &Workspace::create().unwrap(), "run-1")
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
            memory_bytes: Some(1 << 30),
            ..spec()
        };
        let args = args(&spec).unwrap();
        let end = args.iter().position(|arg| arg == "--").unwrap();
        assert_eq!(args[end + 1..], ["ubuntu:latest", "--rm", "-v/:/host"]);
        for pair in [
            ["--name", "ch-abc-job"],
            ["--network", "ch-abc"],
            ["--memory", "1073741824"],
            ["--gpus", "all"],
            ["--label", "phalanx.job=abc"],
            ["--label", "owner=miner"],
        ] {
            assert!(args[..end].chunks(1).zip(args[1..].chunks(1)).any(|(a, b)| [&a[0], &b[0]] == pair), "{pair:?}");
        }
        assert_eq!(args.iter().filter(|arg| *arg == "--mount").count(), 5);
        assert!(args.iter().any(|arg| arg.ends_with("target=/script.py,readonly")));
    }

    #[test]
    fn no_value_of_the_environment_is_an_argument_unless_docker_would_read_it() {
        let long = "x".repeat(FILE_VALUE_BYTES + 1);
        let variable = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let env = vec![
            variable("A", " secret # \"1\" "),
            variable("DOCKER_HOST", "tcp://evil"),
            variable("KEY", "two\nlines"),
            variable("#odd", "odd-value"),
            variable("a b", "blank"),
            variable("LONG", &long),
            variable("LD_PRELOAD", "/evil.so\n"),
            variable("https_proxy", "http://evil\r"),
        ];
        let spec = RunSpec { env, ..spec() };
        let sorted = JobEnv::of(&spec);
        assert_eq!(sorted.file, "A= secret # \"1\" \nDOCKER_HOST=tcp://evil\n");
        let names =
            |variables: &[&(String, String)]| variables.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
        assert_eq!(names(&sorted.inherited), ["KEY", "#odd", "a b", "LONG"]);
        assert_eq!(names(&sorted.arguments), ["LD_PRELOAD", "https_proxy"]);
        let args = args(&spec).unwrap();
        for value in ["secret", "two\n", "odd-value", "blank", "tcp://evil", &long] {
            assert!(!args.iter().any(|arg| arg.contains(value)), "{value}");
        }
        assert!(args.contains(&"KEY".to_owned()) && args.contains(&"LD_PRELOAD=/evil.so\n".to_owned()), "{args:?}");
    }

    #[test]
    fn a_script_without_a_command_is_run_by_python() {
        let spec = RunSpec { raw_script: Some("print(1)".into()), ..spec() };
        let args = args(&spec).unwrap();
        assert!(args.ends_with(&["ubuntu:latest".into(), "python".into(), "/script.py".into()]));
        assert!(args.join(" ").contains("--network none "), "no network unless one is named");
    }

    #[test]
    fn bad_requests_are_refused_with_the_field_and_the_rule() {
        let artifacts = |dir: &str| RunSpec { artifacts_dir: Some(dir.into()), ..spec() };
        for (bad, says) in [
            (RunSpec { image: "--privileged".into(), ..spec() }, "image \"--privileged\""),
            (RunSpec { image: String::new(), ..spec() }, "image \"\""),
            (RunSpec { id: "a/b".into(), ..spec() }, "job id \"a/b\""),
            (RunSpec { env: vec![("A=B".into(), "c".into())], ..spec() }, "env \"A=B\""),
            (RunSpec { env: vec![(String::new(), "c".into())], ..spec() }, "env \"\""),
            (RunSpec { command: vec!["a\0".into()], ..spec() }, "command argument"),
            (artifacts("relative"), "not absolute"),
            (artifacts("/a/../b"), ".. in it"),
            (artifacts("/output/"), "folder of its own"),
            (artifacts("/"), "folder of its own"),
            (artifacts("/a,source=/etc"), "comma"),
        ] {
            let error = args(&bad).unwrap_err().to_string();
            assert!(error.starts_with("bad job request") && error.contains(says), "{error}");
        }
        assert_eq!(args(&artifacts("")).unwrap().iter().filter(|arg| *arg == "--mount").count(), 3);
    }
}
