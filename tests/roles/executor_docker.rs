//! The docker runner against a real Docker Engine: every container is ours, is confined, and is gone afterwards.
//!
//! The image is made here, from a static busybox. Without an engine or a busybox the tests say loudly that they were
//! skipped; with `PHALANX_TEST_REQUIRE_ALL=1` they fail instead.

use crate::testkit::engine::{IMAGE, docker, ready};
use crate::testkit::job;
use crate::testkit::wait::far;
use std::fs;
use std::time::{Duration, Instant};

use job::Bench;
use phalanx::base::shutdown::Shutdown;
use phalanx::base::thread::{Kick, spawn};
use phalanx::executor::runner::docker::DockerRunner;
use phalanx::executor::runner::{RunEnd, RunError, RunOutcome, RunSpec, Runner};
use phalanx::executor::sandbox::{Host, Profile, Sandbox};
use phalanx::ops::cause::Cause;
use phalanx::proc::docker::{Docker, labels};
use phalanx::proc::tool::ToolError;

/// A test's surroundings and the id of its job.
pub fn bench() -> (Bench, String) {
    (Bench::new(), uuid::Uuid::new_v4().to_string())
}

pub fn spec(bench: &Bench, id: &str, script: &str) -> RunSpec {
    RunSpec { id: id.to_owned(), image: IMAGE.to_owned(), ..bench.sh(script) }
}

fn run(spec: &RunSpec, bench: &Bench) -> Result<RunOutcome, RunError> {
    run_in(Sandbox::default(), spec, bench)
}

fn run_in(sandbox: Sandbox, spec: &RunSpec, bench: &Bench) -> Result<RunOutcome, RunError> {
    let workspace = bench.workspace();
    DockerRunner { sandbox, ..DockerRunner::default() }.run(spec, &workspace, &Shutdown::new(), far())
}

/// What a job that prints it sees of its own limits, as `name=value` lines.
fn seen(outcome: &RunOutcome) -> std::collections::BTreeMap<&str, &str> {
    outcome.stdout.text.lines().filter_map(|line| line.split_once('=')).collect()
}

/// Prints what [`seen`] reads. The engine's host has one of the two versions of control groups.
const SHOW: &str = r"
    while read name value rest; do
        case $name in CapPrm:|CapBnd:|NoNewPrivs:) echo ${name%:}=$value;; esac
    done </proc/self/status
    echo uid=$(id -u)
    echo files=$(ulimit -n)
    echo blocks=$(ulimit -f)
    echo core=$(ulimit -c)
    cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null | while read n; do
        echo memory=$n
    done
    cat /sys/fs/cgroup/pids.max /sys/fs/cgroup/pids/pids.max 2>/dev/null | while read n; do echo pids=$n; done
    cat /sys/fs/cgroup/cpu.max 2>/dev/null | while read n m; do echo cpu=$n; done
    cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us 2>/dev/null | while read n; do echo cpu=$n; done
    for folder in / /tmp /output /volume /artifacts; do
        if touch $folder/x 2>/dev/null; then echo write_$folder=yes; else echo write_$folder=no; fi
    done
    if busybox mknod /output/disk b 8 0 2>/dev/null; then echo mknod=yes; else echo mknod=no; fi
    if busybox chroot / true 2>/dev/null; then echo chroot=yes; else echo chroot=no; fi
";

pub fn containers(id: &str) -> String {
    docker(&["ps", "--all", "--quiet", "--filter", &format!("label={}={id}", labels::JOB)]).unwrap()
}

pub fn assert_clean(bench: Bench, id: &str) {
    assert_eq!(containers(id), "", "a container is left");
    bench.assert_clean();
}

#[test]
fn a_job_gets_its_folders_environment_and_script_and_no_network() {
    if !ready() {
        return;
    }
    let (bench, id) = bench();
    let workspace = bench.workspace();
    fs::write(workspace.volume().join("in.txt"), "from the volume\n").unwrap();
    let script = "cat /volume/in.txt; cat /script.py; echo \"A=$A\"; ls /specs | wc -l; ip -o link | wc -l; \
                  echo out > /output/o.txt; echo art > /artifacts/a.txt; echo err >&2; exit 7";
    let mut spec = spec(&bench, &id, script);
    spec.env.push(("A".into(), "1 and \"2\"".into()));
    spec.raw_script = Some("the script\n".into());
    spec.artifacts_dir = Some("/artifacts".into());
    let outcome = DockerRunner::default().run(&spec, &workspace, &Shutdown::new(), far()).unwrap();
    assert_eq!((outcome.end, outcome.stderr.text.as_str()), (RunEnd::Exited(7), "err\n"));
    // One network interface: the loopback.
    assert_eq!(outcome.stdout.text, "from the volume\nthe script\nA=1 and \"2\"\n0\n1\n");
    assert_eq!(fs::read_to_string(workspace.output().join("o.txt")).unwrap(), "out\n");
    assert_eq!(fs::read_to_string(workspace.artifacts().join("a.txt")).unwrap(), "art\n");
    assert_eq!(fs::read_to_string(workspace.output().join("stdout.txt")).unwrap(), outcome.stdout.text);
    drop(workspace);
    assert_clean(bench, &id);
}

#[test]
fn every_variable_reaches_the_job_unchanged_and_none_reaches_docker() {
    if !ready() {
        return;
    }
    let (bench, id) = bench();
    // No shell, which would drop what has an odd name.
    let command = ["cat", "/proc/self/environ"].map(str::to_owned).into();
    let mut spec = RunSpec { command, ..spec(&bench, &id, "") };
    let long = "x".repeat(100_000);
    let wanted = [
        ("EMPTY", ""),
        ("BLANKS", " # a = 'b' \"c\" $HOME \\ "),
        ("TEXT", "äöü\ttab"),
        ("KEY", "-----BEGIN-----\nline 2\r\n\n-----END-----\n"),
        ("LONG", &long),
        // What the docker program would take for its own settings, were they in its environment.
        ("HOME", "/no/such/home"),
        ("PATH", "/bin:/elsewhere"),
        ("DOCKER_HOST", "tcp://127.0.0.1:1"),
        ("DOCKER_CONTEXT", "nowhere\nat all"),
        ("LD_PRELOAD", "/no/such.so\n"),
        ("HTTPS_PROXY", "http://127.0.0.1:1"),
        ("odd name", "odd"),
        ("#odd", "odd"),
    ];
    spec.env = wanted.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    let workspace = bench.workspace();
    let outcome = DockerRunner::default().run(&spec, &workspace, &Shutdown::new(), far()).unwrap();
    assert_eq!(outcome.end, RunEnd::Exited(0), "{outcome:?}");
    let environ = outcome.stdout.text;
    let seen: Vec<&str> = environ.split('\0').collect();
    for (name, value) in wanted {
        assert!(seen.contains(&format!("{name}={value}").as_str()), "{name:?} is not as it was");
    }
    assert!(!workspace.private().join("env").exists(), "the file with the values is left");
    drop(workspace);
    assert_clean(bench, &id);
}

#[test]
fn a_command_that_is_not_there_is_the_job_s_failure_with_127() {
    if !ready() {
        return;
    }
    let (bench, id) = bench();
    let outcome = run(&RunSpec { command: vec!["no-such-command".into()], ..spec(&bench, &id, "") }, &bench).unwrap();
    assert_eq!(outcome.end, RunEnd::Exited(127), "{outcome:?}");
    assert!(outcome.stderr.text.contains("no-such-command"), "{outcome:?}");
    assert_clean(bench, &id);
}

#[test]
fn a_job_that_uses_too_much_memory_is_distinguished() {
    if !ready() {
        return;
    }
    let (bench, id) = bench();
    let command = "busybox dd if=/dev/zero of=/dev/null bs=300000000 count=1";
    let spec = spec(&bench, &id, &format!("{command}; exit 9"));
    let sandbox = Sandbox { memory_bytes: Some(64 << 20), ..Sandbox::default() };
    let outcome = run_in(sandbox, &spec, &bench).unwrap();
    let is_told = matches!(outcome.end, RunEnd::OutOfMemory { limit: Some(_) });
    assert!(is_told && outcome.exit_code() == Some(137), "{outcome:?}");
    assert_clean(bench, &id);
}

/// A machine of whose shares a test knows the numbers.
const HOST: Host = Host { memory_bytes: 1 << 30, cpus: 2, disk_bytes: 10 << 30, slots: 2 };

#[test]
fn a_job_sees_the_limits_and_rights_of_the_default_profile() {
    if !ready() {
        return;
    }
    let (bench, id) = bench();
    let spec = RunSpec { artifacts_dir: Some("/artifacts".into()), ..spec(&bench, &id, SHOW) };
    let sandbox = Sandbox { pids: Some(100), open_files: Some(2048), ..Sandbox::of(Profile::Default, HOST) };
    let outcome = run_in(sandbox, &spec, &bench).unwrap();
    let seen = seen(&outcome);
    for (name, value) in [
        // CHOWN, DAC_OVERRIDE, FOWNER, FSETID, KILL, SETGID, SETUID, NET_BIND_SERVICE: bits 0, 1, 3 to 7, 10.
        ("CapPrm", "00000000000004fb"),
        ("CapBnd", "00000000000004fb"),
        ("NoNewPrivs", "1"),
        ("uid", "0"),
        ("files", "2048"),
        // In units of 512 bytes: 4 GiB.
        ("blocks", "8388608"),
        ("core", "0"),
        ("memory", "469762048"),
        ("pids", "100"),
        ("cpu", "100000"),
        ("write_/", "yes"),
        ("write_/output", "yes"),
        ("write_/artifacts", "yes"),
        ("mknod", "no"),
        ("chroot", "no"),
    ] {
        assert_eq!(seen.get(name), Some(&value), "{name} of {outcome:?}");
    }
    assert_clean(bench, &id);
}

#[test]
fn a_job_in_the_strict_profile_has_no_capability_and_writes_only_into_its_folders() {
    if !ready() {
        return;
    }
    let (bench, id) = bench();
    let spec = RunSpec { artifacts_dir: Some("/artifacts".into()), ..spec(&bench, &id, SHOW) };
    let outcome = run_in(Sandbox::of(Profile::Strict, HOST), &spec, &bench).unwrap();
    let seen = seen(&outcome);
    for (name, value) in [
        ("CapPrm", "0000000000000000"),
        ("CapBnd", "0000000000000000"),
        ("NoNewPrivs", "1"),
        ("uid", "65534"),
        ("pids", "512"),
        ("write_/", "no"),
        ("write_/tmp", "yes"),
        ("write_/output", "yes"),
        ("write_/volume", "yes"),
        ("write_/artifacts", "yes"),
        ("mknod", "no"),
        ("chroot", "no"),
    ] {
        assert_eq!(seen.get(name), Some(&value), "{name} of {outcome:?}");
    }
    assert_clean(bench, &id);
}

#[test]
fn a_job_that_fills_the_disk_is_ended_wherever_it_writes() {
    if !ready() {
        return;
    }
    let small = Sandbox { disk_bytes: Some(8 << 20), disk_entries: Some(2000), ..Sandbox::default() };
    let endless =
        "i=0; while true; do busybox dd if=/dev/zero of={}/$i bs=1048576 count=1 2>/dev/null; i=$((i+1)); done";
    let files = "i=0; while true; do mkdir /volume/$i; i=$((i+1)); done";
    for (script, unit) in [
        (endless.replace("{}", "/output"), "bytes"),
        // In its container's own layer, which only the engine sees.
        (endless.replace("{}", "/bin"), "bytes"),
        (files.to_owned(), "files and folders"),
    ] {
        let (bench, id) = bench();
        let outcome = run_in(small.clone(), &spec(&bench, &id, &format!("echo begun; {script}")), &bench).unwrap();
        let RunEnd::OverQuota { limit, used, unit: of } = outcome.end else { panic!("{script}: {outcome:?}") };
        assert!(of == unit && used > limit, "{outcome:?}");
        assert_eq!((outcome.stdout.text.as_str(), outcome.exit_code()), ("begun\n", None));
        assert_clean(bench, &id);
    }
    // One file ends at the quota by the system itself, before anything is measured.
    let (bench, id) = bench();
    let one = Sandbox { file_bytes: Some(1 << 20), ..Sandbox::default() };
    let outcome = run_in(one, &spec(&bench, &id, "cat /dev/zero >/output/f; wc -c </output/f"), &bench).unwrap();
    assert_eq!(outcome.stdout.text.trim(), "1048576", "{outcome:?}");
    assert_clean(bench, &id);
}

#[test]
fn an_artifacts_folder_where_none_can_be_is_the_job_s_fault() {
    if !ready() {
        return;
    }
    let with = |id: &str, bench: &Bench, dir: &str| {
        let spec = RunSpec { artifacts_dir: Some(dir.into()), ..spec(bench, id, "true") };
        run(&spec, bench)
    };
    let (bench, id) = bench();
    let error = with(&id, &bench, "/proc/self").unwrap_err();
    assert!(matches!(&error, RunError::Spec(text) if text.contains("folder of the kernel")), "{error}");
    // A file of the image; the engine's words are what the job is reported with.
    let outcome = with(&id, &bench, "/bin/busybox").unwrap();
    assert!(matches!(outcome.end, RunEnd::Exited(127)) && outcome.stderr.text.contains("mount"), "{outcome:?}");
    assert_clean(bench, &id);
}

#[test]
fn a_fork_bomb_ends_at_its_own_limit() {
    if !ready() {
        return;
    }
    let (bench, id) = bench();
    let script = "n=0; while [ $n -lt 400 ]; do sleep 30 & n=$((n+1)); done; echo all";
    let sandbox = Sandbox { pids: Some(64), ..Sandbox::default() };
    let outcome = run_in(sandbox, &spec(&bench, &id, script), &bench).unwrap();
    assert!(matches!(outcome.end, RunEnd::Exited(code) if code != 0), "{outcome:?}");
    assert!(outcome.stderr.text.contains("fork"), "{outcome:?}");
    assert_clean(bench, &id);
}

#[test]
fn a_job_of_a_millisecond_has_its_code_and_its_output() {
    if !ready() {
        return;
    }
    for _ in 0..5 {
        let (bench, id) = bench();
        let outcome = run(&RunSpec { command: vec!["echo".into(), "quick".into()], ..spec(&bench, &id, "") }, &bench);
        let outcome = outcome.unwrap();
        assert_eq!((outcome.end, outcome.stdout.text.as_str()), (RunEnd::Exited(0), "quick\n"));
        assert_clean(bench, &id);
    }
}

#[test]
fn an_image_that_cannot_be_had_is_reported_with_docker_s_text() {
    if !ready() {
        return;
    }
    let (bench, id) = bench();
    DockerRunner::default().prepare(IMAGE, &Shutdown::new(), far()).unwrap();
    // A registry that refuses at once, so that the test needs no network.
    let missing = "127.0.0.1:1/phalanx/no-such-image:1";
    let error = DockerRunner::default()
        .prepare(missing, &Shutdown::new(), Instant::now() + Duration::from_secs(3))
        .unwrap_err();
    assert!(
        matches!(&error, RunError::Engine { doing, text, cause: Cause::NETWORK_PASSING }
        if doing.ends_with(missing) && text.contains("refused")),
        "{error}"
    );
    let error = run(&RunSpec { image: missing.into(), ..spec(&bench, &id, "true") }, &bench).unwrap_err();
    assert!(
        matches!(&error, RunError::Engine { text, cause: Cause::OPERATOR_PASSING, .. }
        if text.contains("No such image")),
        "{error}"
    );
    assert_clean(bench, &id);
}

/// An image of a test's own, with what a job's image may ask for; it goes with the test.
struct OddImage(String);

impl OddImage {
    fn new(change: &str) -> Self {
        let name = format!("phalanx-test-odd:{}", uuid::Uuid::new_v4());
        let container = docker(&["create", IMAGE, "/bin/true"]).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let tar = folder.path().join("root.tar");
        let tar = tar.to_str().unwrap();
        docker(&["export", "--output", tar, &container]).unwrap();
        docker(&["rm", &container]).unwrap();
        docker(&["import", "--change", change, tar, &name]).unwrap();
        Self(name)
    }
}

impl Drop for OddImage {
    fn drop(&mut self) {
        docker(&["rmi", &self.0]).unwrap();
    }
}

#[test]
fn what_an_image_asks_for_is_never_the_machine_s_fault() {
    if !ready() {
        return;
    }
    for change in [
        "USER \"no space left on device\"",
        "USER root:no space left on device",
        "WORKDIR /bin/busybox/no space left on device",
        "WORKDIR /bin/busybox",
        "WORKDIR /sys/none",
        "VOLUME /sys/none",
        "VOLUME /bin/busybox",
    ] {
        let (bench, id) = bench();
        let image = OddImage::new(change);
        let error = run(&RunSpec { image: image.0.clone(), ..spec(&bench, &id, "true") }, &bench).unwrap_err();
        assert!(matches!(&error, RunError::Engine { cause: Cause::JOB, .. }), "{change}: {error}");
        assert_clean(bench, &id);
    }
    let (bench, id) = bench();
    let image = OddImage::new("ENTRYPOINT [\"/no space left on device\"]");
    let outcome = run(&RunSpec { image: image.0.clone(), ..spec(&bench, &id, "true") }, &bench).unwrap();
    assert_eq!(outcome.end, RunEnd::Exited(127), "{outcome:?}");
    assert_clean(bench, &id);
}

/// Runs a job that would go on for ever and calls `then` when it has written to its output folder.
fn run_until_ready(
    spec: &RunSpec,
    bench: &Bench,
    then: impl FnOnce(&Shutdown) + Send + 'static,
) -> Result<RunOutcome, RunError> {
    run_until_ready_by(&DockerRunner::default(), far(), spec, bench, then)
}

/// The same by a runner and a deadline of the test's own.
pub fn run_until_ready_by(
    runner: &DockerRunner,
    deadline: Instant,
    spec: &RunSpec,
    bench: &Bench,
    then: impl FnOnce(&Shutdown) + Send + 'static,
) -> Result<RunOutcome, RunError> {
    let workspace = bench.workspace();
    let token = Shutdown::new();
    let fifo = workspace.output().join("ready");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o666.into(), 0).unwrap();
    let (job_token, path) = (token.clone(), fifo.clone());
    let kick =
        Kick::new("a writer of its own", move || drop(fs::OpenOptions::new().read(true).write(true).open(&path)));
    // Opening a FIFO blocks until the other side opens it too.
    let watcher = spawn("t-ready", kick, move || {
        let read = fs::read_to_string(&fifo).unwrap();
        then(&job_token);
        read
    });
    let outcome = runner.run(spec, &workspace, &token, deadline);
    assert_eq!(watcher.join_by(far()).unwrap(), "ready\n");
    outcome
}

#[test]
fn cancel_kills_the_container_whatever_it_does_with_sigterm() {
    if !ready() {
        return;
    }
    let (bench, id) = bench();
    let spec = spec(&bench, &id, "trap '' TERM; echo begun; echo ready > /output/ready; sleep 1000 & sleep 1000");
    // The job would go on for longer than the deadline of the run, which would be another end.
    let outcome = run_until_ready(&spec, &bench, Shutdown::cancel).unwrap();
    assert_eq!((outcome.end, outcome.stdout.text.as_str()), (RunEnd::Cancelled, "begun\n"));
    assert_clean(bench, &id);
}

#[test]
fn a_job_at_its_deadline_gets_sigterm_and_its_last_words_are_kept() {
    if !ready() {
        return;
    }
    let (bench, id) = bench();
    let workspace = bench.workspace();
    // Long enough for this machine to start a container under its present load, twice over.
    let start = Instant::now();
    run(&spec(&bench, &format!("{id}-first"), "true"), &bench).unwrap();
    let deadline = Instant::now() + (2 * start.elapsed()).max(Duration::from_secs(2));
    let spec = spec(&bench, &id, "trap 'echo last words; exit 0' TERM; echo begun; sleep 1000 & wait");
    let outcome = DockerRunner::default().run(&spec, &workspace, &Shutdown::new(), deadline).unwrap();
    assert_eq!((outcome.end, outcome.stdout.text.as_str()), (RunEnd::TimedOut, "begun\nlast words\n"));
    drop(workspace);
    assert_clean(bench, &id);
}

#[test]
fn a_container_removed_by_somebody_else_is_told_as_that() {
    if !ready() {
        return;
    }
    let (bench, id) = bench();
    let spec = spec(&bench, &id, "echo ready > /output/ready; sleep 1000");
    let job = id.clone();
    let outcome = run_until_ready(&spec, &bench, move |_| drop(docker(&["rm", "--force", &containers(&job)]).unwrap()));
    let error = outcome.unwrap_err();
    assert!(matches!(error, RunError::Removed { .. }), "{error}");
    assert!(error.to_string().contains("removed while it ran, by somebody else"), "{error}");
    assert_clean(bench, &id);
}

#[test]
fn a_cancel_before_the_start_leaves_nothing() {
    if !ready() {
        return;
    }
    let (bench, id) = bench();
    let token = Shutdown::new();
    token.cancel();
    let workspace = bench.workspace();
    let error = DockerRunner::default().run(&spec(&bench, &id, "true"), &workspace, &token, far()).unwrap_err();
    assert!(matches!(error, RunError::Tool(ToolError::Cancelled(_))), "{error}");
    drop(workspace);
    assert_clean(bench, &id);
}

#[test]
fn only_the_labelled_container_is_removed() {
    if !ready() {
        return;
    }
    let (bench, id) = bench();
    let sibling = format!("sibling-{id}");
    let create = |owner: &str, name: &str| {
        let label = format!("{}={owner}", labels::JOB);
        docker(&["create", "--name", &format!("phalanx-job-{name}"), "--label", &label, IMAGE, "true"]).unwrap()
    };
    create(&id, &id);
    create(&sibling, &sibling);
    let docker_client = Docker::default();
    assert_eq!(docker_client.remove_labelled((labels::JOB, &id), &Shutdown::new(), far()).unwrap(), 1);
    assert_ne!(containers(&sibling), "", "the sibling was harmed");
    assert_eq!(docker_client.remove_labelled((labels::JOB, &sibling), &Shutdown::new(), far()).unwrap(), 1);
    assert_eq!(docker_client.remove_labelled((labels::JOB, &sibling), &Shutdown::new(), far()).unwrap(), 0);
    assert_clean(bench, &id);
}

#[test]
fn two_jobs_of_one_name_do_not_meet() {
    if !ready() {
        return;
    }
    let (bench, id) = bench();
    // As another validator's job of the same uuid, or one that has squatted on the name.
    let holder = docker(&["create", "--name", &format!("phalanx-job-{id}"), IMAGE, "true"]).unwrap();
    let (first, other) = (spec(&bench, &id, "echo ready > /output/ready; sleep 1000"), spec(&bench, &id, "echo other"));
    let workspace = bench.workspace();
    let outcome = run_until_ready(&first, &bench, move |token| {
        let outcome = DockerRunner::default().run(&other, &workspace, &Shutdown::new(), far()).unwrap();
        assert_eq!(outcome.stdout.text, "other\n");
        token.cancel();
    });
    assert_eq!(outcome.unwrap().end, RunEnd::Cancelled);
    docker(&["rm", &holder]).expect("the holder of the name is still there");
    assert_clean(bench, &id);
}

#[test]
fn a_network_leads_nowhere_and_is_removed_with_its_owner() {
    if !ready() {
        return;
    }
    let (bench, id) = bench();
    let engine = Docker::default();
    let name = format!("phalanx-test-{id}");
    let listed = || docker(&["network", "ls", "--quiet", "--filter", &format!("label={}={id}", labels::JOB)]).unwrap();
    let network = engine.network(name.clone(), &[(labels::JOB, &id)]).unwrap();
    assert_ne!(listed(), "");
    assert_eq!(docker(&["network", "inspect", "--format", "{{.Internal}}", network.name()]).unwrap(), "true");
    let outcome = run(&RunSpec { network: Some(name.clone()), ..spec(&bench, &id, "ip -o link | wc -l") }, &bench);
    assert_eq!(outcome.unwrap().stdout.text, "2\n", "the loopback and the network");
    // Its holder is dead, and another one cleans up by the label.
    std::mem::forget(network);
    assert_eq!(engine.remove_networks((labels::JOB, &id), &Shutdown::new(), far()).unwrap(), 1);
    assert_eq!(engine.remove_networks((labels::JOB, &id), &Shutdown::new(), far()).unwrap(), 0);
    drop(engine.network(name.clone(), &[(labels::JOB, &id)]).unwrap());
    assert_eq!(listed(), "");
    assert_clean(bench, &id);
}

#[test]
fn files_of_other_users_and_locked_folders_are_removed_with_the_workspace() {
    if !ready() {
        return;
    }
    let (bench, id) = bench();
    let script = "mkdir /output/d; touch /output/d/f; chmod 000 /output/d; id -u";
    let outcome = run(&spec(&bench, &id, script), &bench).unwrap();
    assert_eq!((outcome.end, outcome.stdout.text.as_str()), (RunEnd::Exited(0), "0\n"));
    assert_clean(bench, &id);
}
