//! Real executors: processes, their groups and containers are gone when a run is over, in whatever way.

use crate::testkit::wait::{LONG, until};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use phalanx::base::shutdown::Shutdown;
use phalanx::base::thread::{Group, Kick, Thread, spawn};
use phalanx::miner::executor_manager::{
    Backends, DockerBackend, ExecutorBackend, ExecutorEnd, ExecutorError, ExecutorExit, ExecutorManager, ExecutorSpec,
    Leftover, LeftoverKind, Owner, ProcessBackend, Report,
};
use phalanx::miner::executor_pool::ExecutorPool;
use phalanx::miner::host::HostName;
use phalanx::proc::docker::labels;
use phalanx::proc::tool::ToolError;
use phalanx::protocol::ExecutorClass;

pub(crate) fn spec() -> ExecutorSpec {
    let token = uuid::Uuid::new_v4().to_string();
    ExecutorSpec {
        run: uuid::Uuid::new_v4().simple().to_string(),
        owner: Owner { miner: "5Miner".to_owned(), instance: "test".to_owned(), epoch: 3 },
        job_uuid: "00000000-0000-0000-0000-000000000001".to_owned(),
        token,
        miner_address: "ws://127.0.0.1:1".to_owned(),
        class: ExecutorClass::AlwaysOnTest,
        startup_time_limit: Duration::from_millis(4500),
    }
}

const HOST: HostName = HostName::LOCAL;

fn backends(backend: impl ExecutorBackend + 'static) -> Backends {
    Backends::from([(HOST, Arc::new(backend) as Arc<dyn ExecutorBackend>)])
}

fn process(program: &str, arguments: &[&str]) -> ProcessBackend {
    ProcessBackend {
        program: PathBuf::from(program),
        phalanx: PathBuf::from(env!("CARGO_BIN_EXE_phalanx")),
        arguments: Some(arguments.iter().map(|a| (*a).to_owned()).collect()),
        end_grace: Duration::from_secs(3600),
        ..ProcessBackend::new("process").unwrap()
    }
}

/// Processes whose environment holds the token: the executor and all that it started.
fn with_token(token: &str) -> Vec<u32> {
    let wanted = format!("EXECUTOR_TOKEN={token}");
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let numbers = processes.filter_map(|entry| entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()));
    let holds = |number: &u32| {
        // A process may end while it is looked at.
        let environ = std::fs::read(format!("/proc/{number}/environ")).unwrap_or_default();
        environ.split(|byte| *byte == 0).any(|variable| variable == wanted.as_bytes())
    };
    numbers.filter(holds).collect()
}

/// A run and what follows it: nothing is left then.
pub(crate) fn run(backend: &impl ExecutorBackend, spec: &ExecutorSpec, stop: &Shutdown) -> ExecutorEnd {
    let end = backend.run(spec, stop);
    let by_itself = matches!(end, Ok(ExecutorExit::Code(_)) | Err(ExecutorError::Start { .. }));
    backend.clean(spec, by_itself, stop).unwrap();
    end
}

pub(crate) fn start(
    backend: impl ExecutorBackend + 'static,
    spec: &ExecutorSpec,
    stop: &Shutdown,
) -> Thread<ExecutorEnd> {
    let (spec, stop, kicked) = (spec.clone(), stop.clone(), stop.clone());
    spawn("t-run", Kick::new("stop", move || kicked.cancel()), move || run(&backend, &spec, &stop))
}

pub(crate) fn join(thread: Thread<ExecutorEnd>) -> ExecutorEnd {
    thread.join_by(Instant::now() + LONG).unwrap()
}

#[test]
fn exits_and_failures_are_distinguished() {
    let group = Group::enter();
    let ends = |backend: ProcessBackend| run(&backend, &spec(), &Shutdown::new());
    assert_eq!(ends(process("/bin/true", &[])).unwrap(), ExecutorExit::Code(0));
    assert_eq!(ends(process("/bin/false", &[])).unwrap(), ExecutorExit::Code(1));
    let error = ends(process("/nonexistent/executor", &[])).unwrap_err();
    assert!(matches!(error, ExecutorError::Start { .. }), "{error:?}");
    assert!(error.to_string().starts_with("cannot start /nonexistent/executor: "), "{error}");
    let killed = spec();
    let thread = start(process("/bin/sleep", &["1000"]), &killed, &Shutdown::new());
    until("it runs", || !with_token(&killed.token).is_empty());
    for number in with_token(&killed.token) {
        assert!(Command::new("/bin/kill").args(["-9", &number.to_string()]).status().unwrap().success());
    }
    assert_eq!(join(thread).unwrap(), ExecutorExit::Signal(9));
    assert!(group.live().is_empty());
}

#[test]
fn our_executor_gets_its_arguments_and_its_environment() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    // A program that copies its own environment to a file.
    let backend = process("/bin/cp", &["/proc/self/environ", out.to_str().unwrap()]);
    let spec = spec();
    assert_eq!(run(&backend, &spec, &Shutdown::new()).unwrap(), ExecutorExit::Code(0));
    let environ = String::from_utf8_lossy(&std::fs::read(&out).unwrap()).into_owned();
    let variables: Vec<&str> = environ.split('\0').collect();
    assert!(variables.contains(&format!("EXECUTOR_TOKEN={}", spec.token).as_str()), "{variables:?}");
    assert!(variables.contains(&"MINER_ADDRESS=ws://127.0.0.1:1"), "{variables:?}");
    let ours: Vec<_> = variables.iter().filter(|variable| variable.starts_with("PHALANX_")).collect();
    let labels = "phalanx.miner=5Miner,phalanx.instance=test,phalanx.epoch=3,phalanx.executor=";
    assert_eq!(ours, [&format!("PHALANX_LABEL={labels}{}", spec.run)]);

    let backend = ProcessBackend { program: "/bin/cp".into(), arguments: None, ..process("", &[]) };
    // `cp executor --startup-time-limit …` knows no such option.
    assert_eq!(run(&backend, &spec, &Shutdown::new()).unwrap(), ExecutorExit::Code(1));
}

#[test]
fn a_stop_ends_the_whole_group() {
    let group = Group::enter();
    for forced in [false, true] {
        let (spec, stop) = (spec(), Shutdown::new());
        let grace = Duration::from_secs(3600);
        // `timeout --foreground` stays in the group with the child it starts.
        let backend = ProcessBackend {
            end_grace: grace,
            ..process("/usr/bin/timeout", &["--foreground", "1000", "/bin/sleep", "1000"])
        };
        let thread = start(backend, &spec, &stop);
        until("both run", || with_token(&spec.token).len() == 2);
        if forced {
            stop.cancel()
        } else {
            stop.drain()
        }
        let exit = join(thread).unwrap();
        assert!(matches!(exit, ExecutorExit::Signal(15) | ExecutorExit::Code(124 | 143)), "{exit}");
        // A child that was killed is reaped by init, a moment later.
        until("the group is gone", || with_token(&spec.token).is_empty());
    }
    assert!(group.live().is_empty());
}

#[test]
fn children_that_outlive_the_executor_are_ended() {
    let spec = spec();
    // The shell ends at once and leaves a child in the background.
    let backend = process("/bin/sh", &["-c", "sleep 1000 & exit 3"]);
    assert_eq!(run(&backend, &spec, &Shutdown::new()).unwrap(), ExecutorExit::Code(3));
    until("the child is gone", || with_token(&spec.token).is_empty());
}

/// The value of `TMPDIR` in a process's environment.
fn tmpdir_of(number: u32) -> PathBuf {
    let environ = std::fs::read(format!("/proc/{number}/environ")).unwrap();
    let variables = String::from_utf8(environ).unwrap();
    let value = variables.split('\0').find_map(|variable| variable.strip_prefix("TMPDIR=")).unwrap();
    PathBuf::from(value)
}

#[test]
fn a_killed_executor_leaves_neither_processes_nor_files() {
    let spec = spec();
    // As an executor starts its job: in a group of its own, known by a path below the folder only. Here even in a
    // session of its own, with a child, and with a folder that cannot be listed.
    let job = r#"mkdir -p "$TMPDIR/phalanx-job-1/closed" && touch "$TMPDIR/phalanx-job-1/closed/file"
        chmod 0 "$TMPDIR/phalanx-job-1/closed"
        env -i PATH="$PATH" PHALANX_VOLUME_DIR="$TMPDIR/phalanx-job-1" setsid sh -c 'sleep 1000 & sleep 1000' &
        exec sleep 1000"#;
    let thread = start(process("/bin/sh", &["-c", job]), &spec, &Shutdown::new());
    until("it runs", || !with_token(&spec.token).is_empty());
    let executor = with_token(&spec.token)[0];
    let folder = tmpdir_of(executor);
    assert!(folder.file_name().unwrap().to_string_lossy().starts_with("phalanx-exec-"), "{folder:?}");
    let of_job = || {
        let wanted = format!("PHALANX_VOLUME_DIR={}/phalanx-job-1", folder.display());
        let environ = |entry: std::fs::DirEntry| std::fs::read(entry.path().join("environ")).unwrap_or_default();
        let all = std::fs::read_dir("/proc").unwrap().flatten().map(environ);
        all.filter(|environ| environ.split(|byte| *byte == 0).any(|variable| variable == wanted.as_bytes())).count()
    };
    until("the job and its child run", || of_job() == 3);
    assert!(Command::new("/bin/kill").args(["-9", &executor.to_string()]).status().unwrap().success());
    assert_eq!(join(thread).unwrap(), ExecutorExit::Signal(9));
    assert_eq!(of_job(), 0);
    assert!(!folder.exists(), "{folder:?} is left");
}

#[test]
fn the_temporary_folder_of_an_executor_that_exits_is_removed() {
    let out = tempfile::tempdir().unwrap();
    let noted = out.path().join("tmpdir");
    let note = format!("touch \"$TMPDIR/file\" && printf %s \"$TMPDIR\" > {}", noted.display());
    let backend = process("/bin/sh", &["-c", &note]);
    assert_eq!(run(&backend, &spec(), &Shutdown::new()).unwrap(), ExecutorExit::Code(0));
    let folder = PathBuf::from(std::fs::read_to_string(noted).unwrap());
    assert!(folder.is_absolute() && !folder.exists(), "{folder:?}");
}

#[test]
fn an_executor_that_ignores_sigterm_is_killed() {
    for forced in [false, true] {
        let (spec, stop) = (spec(), Shutdown::new());
        let grace = Duration::from_millis(if forced { 3_600_000 } else { 50 });
        let ignores = "trap '' TERM; while :; do sleep 1000; done";
        let backend = ProcessBackend { end_grace: grace, ..process("/bin/sh", &["-c", ignores]) };
        let thread = start(backend, &spec, &stop);
        until("both run", || with_token(&spec.token).len() == 2);
        stop.drain();
        if forced {
            stop.cancel();
        }
        assert_eq!(join(thread).unwrap(), ExecutorExit::Signal(9));
        // A child that was killed is reaped by init, a moment later.
        until("the group is gone", || with_token(&spec.token).is_empty());
    }
}

#[test]
fn an_executor_that_floods_its_stderr_is_not_held_up() {
    let flood = "head -c 3000000 /dev/zero >&2; echo last >&2; exit 5";
    let backend = process("/bin/sh", &["-c", flood]);
    assert_eq!(run(&backend, &spec(), &Shutdown::new()).unwrap(), ExecutorExit::Code(5));
}

#[test]
fn a_stop_before_the_start_starts_nothing() {
    let stop = Shutdown::new();
    stop.drain();
    assert_eq!(run(&process("/nonexistent", &[]), &spec(), &stop).unwrap(), ExecutorExit::Unknown);
}

#[test]
fn dropping_an_executor_manager_stops_it() {
    let group = Group::enter();
    let specs = [spec(), spec(), spec()];
    let backend = process("/bin/sh", &["-c", "trap '' TERM; while :; do sleep 1000; done"]);
    let mut manager = ExecutorManager::new(backends(backend), Shutdown::new());
    let mut pool = ExecutorPool::new([(HOST, ExecutorClass::AlwaysOnTest, 3)]);
    for spec in &specs {
        let lease = pool.reserve(HOST, ExecutorClass::AlwaysOnTest, Instant::now()).unwrap();
        manager.start(spec.clone(), lease, |_| {});
    }
    specs.iter().for_each(|spec| until("it runs", || !with_token(&spec.token).is_empty()));
    // The grace of the back end is beyond the patience of this test; a dropped manager forces it.
    drop(manager);
    assert!(group.live().is_empty());
    pool.take_back();
    assert_eq!(pool.counts(HOST, ExecutorClass::AlwaysOnTest).free, 3, "the threads had the leases");
    specs.iter().for_each(|spec| until("the group is gone", || with_token(&spec.token).is_empty()));
}

/// Its executors leave something that goes away only when told.
struct Untidy {
    gone: Receiver<()>,
    tries: Sender<()>,
}

impl ExecutorBackend for Untidy {
    fn run(&self, _: &ExecutorSpec, _: &Shutdown) -> ExecutorEnd {
        Ok(ExecutorExit::Code(0))
    }

    fn clean(&self, _: &ExecutorSpec, _: bool, _: &Shutdown) -> Result<(), Leftover> {
        // The test looks at the first ones only.
        let _ = self.tries.try_send(());
        match self.gone.try_recv() {
            Ok(()) => Ok(()),
            Err(_) => Err(Leftover { kind: LeftoverKind::Container, text: "it is stuck".to_owned() }),
        }
    }
}

#[test]
fn a_slot_comes_back_when_a_later_attempt_finds_nothing_left_or_the_miner_stops() {
    let group = Group::enter();
    let class = ExecutorClass::AlwaysOnTest;
    for goes_away in [true, false] {
        let ((tell, gone), (tries, tried), (reports, reported)) = (bounded(1), bounded(2), bounded(10));
        let stop = Shutdown::new();
        let mut manager = ExecutorManager::new(backends(Untidy { gone, tries }), stop.clone());
        let mut pool = ExecutorPool::new([(HOST, class, 1)]);
        let (spec, lease) = (spec(), pool.reserve(HOST, class, Instant::now()).unwrap());
        let token = spec.token.clone();
        manager.start(spec, lease, move |report| reports.send(report).unwrap());
        let next = || reported.recv_timeout(LONG).unwrap();
        assert!(matches!(next(), Report::Ended(Ok(ExecutorExit::Code(0)))));
        let Report::Left(left) = next() else { panic!("it is not gone yet") };
        assert_eq!((left.kind, left.text.as_str()), (LeftoverKind::Container, "it is stuck"));
        assert_eq!((pool.take_back(), pool.counts(HOST, class).free), (vec![], 0));
        // It is tried again, and the same obstacle is not reported again.
        for _ in 0..2 {
            tried.recv_timeout(LONG).unwrap();
        }
        if goes_away {
            tell.send(()).unwrap();
        } else {
            stop.drain();
        }
        let Report::Returned { clean } = next() else { panic!("the same obstacle is reported again") };
        assert_eq!(clean, goes_away);
        assert_eq!(
            (pool.take_back(), pool.counts(HOST, class).free),
            (vec![(HOST, class)], 1),
            "before it was reported"
        );
        manager.reap(&token);
    }
    assert!(group.live().is_empty());
}

#[test]
fn a_back_end_that_panics_gives_its_slot_back() {
    struct Panics;
    impl ExecutorBackend for Panics {
        fn run(&self, _: &ExecutorSpec, _: &Shutdown) -> ExecutorEnd {
            panic!("on run")
        }
        fn clean(&self, _: &ExecutorSpec, _: bool, _: &Shutdown) -> Result<(), Leftover> {
            panic!("on clean")
        }
    }
    let (class, stop) = (ExecutorClass::AlwaysOnTest, Shutdown::new());
    let (reports, reported) = bounded(10);
    let mut manager = ExecutorManager::new(backends(Panics), stop.clone());
    let mut pool = ExecutorPool::new([(HOST, class, 1)]);
    let (spec, lease) = (spec(), pool.reserve(HOST, class, Instant::now()).unwrap());
    let token = spec.token.clone();
    manager.start(spec, lease, move |report| reports.send(report).unwrap());
    let next = || reported.recv_timeout(LONG).unwrap();
    let Report::Ended(Err(error)) = next() else { panic!("it has run") };
    assert!(error.to_string().ends_with("panicked: on run"), "{error}");
    let Report::Left(left) = next() else { panic!("it is clean") };
    assert!(left.text.ends_with("panicked: on clean"), "{left}");
    stop.drain();
    assert!(matches!(next(), Report::Returned { clean: false }));
    assert_eq!(pool.take_back(), [(HOST, class)]);
    manager.reap(&token);
}

#[test]
fn what_cannot_be_removed_is_told_with_its_kind() {
    let spec = spec();
    let mut backend = process("/bin/true", &[]);
    assert_eq!(backend.run(&spec, &Shutdown::new()).unwrap(), ExecutorExit::Code(0));
    let mark = format!("-{}", spec.run);
    let of_run = |entry: std::fs::DirEntry| entry.file_name().to_string_lossy().ends_with(&mark).then(|| entry.path());
    let folder = std::fs::read_dir(std::env::temp_dir()).unwrap().flatten().find_map(of_run).unwrap();
    let mut deep = std::fs::File::open(&folder).unwrap().into();
    for _ in 0..200 {
        rustix::fs::mkdirat(&deep, "d", rustix::fs::Mode::RWXU).unwrap();
        let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY;
        deep = rustix::fs::openat(&deep, "d", flags, rustix::fs::Mode::empty()).unwrap();
    }
    let ours = std::mem::replace(&mut backend.phalanx, "/nonexistent/phalanx".into());
    let left = backend.clean(&spec, true, &Shutdown::new()).unwrap_err();
    assert_eq!(left.kind, LeftoverKind::Folder);
    assert!(left.text.contains(&spec.run) && left.text.contains("cannot start"), "{left}");
    backend.phalanx = ours;
    let stopped = Shutdown::new();
    stopped.cancel();
    let left = backend.clean(&spec, true, &stopped).unwrap_err();
    assert!(left.text.contains("cancelled"), "{left}");
    backend.clean(&spec, true, &Shutdown::new()).unwrap();
    assert!(!folder.exists());

    let mut without_engine = DockerBackend::new("image", "process");
    without_engine.docker.program = "/nonexistent/docker".into();
    let left = without_engine.clean(&spec, true, &Shutdown::new()).unwrap_err();
    assert_eq!(left.kind, LeftoverKind::Container);
    assert!(left.text.contains(&format!("phalanx.executor={}", spec.run)), "{left}");
}

/// A folder of an executor that nobody runs, and a process that knows it.
#[test]
fn what_carries_a_miner_s_marks_is_found_and_removed_and_nothing_else() {
    let owner = |instance: &str| Owner { miner: "5M".to_owned(), instance: instance.to_owned(), epoch: 2 };
    let (ours, another) = (uuid::Uuid::new_v4().to_string(), uuid::Uuid::new_v4().to_string());
    let run = uuid::Uuid::new_v4().simple().to_string();
    let make = |instance: &str| {
        let folder = std::env::temp_dir().join(format!("phalanx-exec-{instance}-1-{run}"));
        std::fs::create_dir_all(folder.join("phalanx-job-1/deep")).unwrap();
        let mut sleep = Command::new("/bin/sleep");
        (sleep.arg("1000").env("PHALANX_VOLUME_DIR", folder.join("phalanx-job-1")).spawn().unwrap(), folder)
    };
    let ((mut process, folder), (mut other_process, other_folder)) = (make(&ours), make(&another));
    let backend = self::process("/bin/true", &[]);
    let mut found = backend.find(&owner(&ours), &Shutdown::new()).unwrap();
    found.sort();
    let kinds: Vec<_> = found.iter().map(|marked| (marked.kind, marked.run.as_str(), marked.epoch)).collect();
    assert_eq!(kinds, [(LeftoverKind::Processes, run.as_str(), 1), (LeftoverKind::Folder, run.as_str(), 1)]);
    let reap = spawn("t-reap", Kick::dropped("the process"), move || process.wait().unwrap());
    for marked in &found {
        backend.remove(marked, &Shutdown::new()).unwrap();
    }
    reap.join_by(Instant::now() + LONG).unwrap();
    assert!(!folder.exists());
    assert_eq!(backend.find(&owner(&ours), &Shutdown::new()).unwrap(), []);
    assert!(other_process.try_wait().unwrap().is_none() && other_folder.exists(), "another miner's were touched");
    other_process.kill().unwrap();
    other_process.wait().unwrap();
    std::fs::remove_dir_all(other_folder).unwrap();
}

#[test]
fn containers_and_networks_with_a_miner_s_marks_are_found_and_removed() {
    let Some(image) = image() else { return };
    let (ours, another) = (uuid::Uuid::new_v4().to_string(), uuid::Uuid::new_v4().to_string());
    let labels_of = |instance: &str| {
        [
            format!("{}={instance}", labels::INSTANCE),
            format!("{}=4", labels::EPOCH),
            format!("{}=run-of-{instance}", labels::EXECUTOR),
        ]
    };
    let docker = |args: &[&str], labels: &[String]| {
        let mut command = Command::new("docker");
        command.args(args);
        for label in labels {
            command.args(["--label", label]);
        }
        command
    };
    for instance in [&ours, &another] {
        let network =
            docker(&["network", "create", "--internal"], &labels_of(instance)).arg(instance).output().unwrap();
        assert!(network.status.success(), "{network:?}");
        let args = ["run", "-d", "--network", instance, "--env", "SLEEP=1000"];
        assert!(docker(&args, &labels_of(instance)).arg(&image.0).output().unwrap().status.success());
    }
    let backend = DockerBackend::new(&image.0, "process");
    let owner = |instance: &str| Owner { miner: "5M".to_owned(), instance: instance.to_owned(), epoch: 5 };
    let reap = |instance: &str| {
        let mut found = backend.find(&owner(instance), &Shutdown::new()).unwrap();
        found.sort();
        found.iter().for_each(|marked| backend.remove(marked, &Shutdown::new()).unwrap());
        found.into_iter().map(|marked| (marked.kind, marked.run, marked.epoch)).collect::<Vec<_>>()
    };
    let both = |instance: &str| {
        [LeftoverKind::Container, LeftoverKind::Network].map(|kind| (kind, format!("run-of-{instance}"), 4))
    };
    assert_eq!(reap(&ours), both(&ours));
    assert_eq!(reap(&ours), []);
    // Those of another miner are still there, until they are asked for.
    assert_eq!(reap(&another), both(&another));
}

/// An image of this test run, removed when dropped.
pub(crate) struct Image(pub(crate) String);

impl Drop for Image {
    fn drop(&mut self) {
        drop(Command::new("docker").args(["rmi", "--force", &self.0]).output());
    }
}

/// An image with one program in it, made on the spot; `None` if the machine has no Docker or no static busybox.
pub(crate) fn image() -> Option<Image> {
    let image = Image(format!("phalanx-test-executor:{}", uuid::Uuid::new_v4()));
    let skip = |why: &str| {
        assert!(std::env::var_os("PHALANX_TEST_REQUIRE_ALL").is_none(), "required, but {why}");
        println!("SKIPPED: {why}");
        None
    };
    if !Command::new("docker").arg("info").output().is_ok_and(|output| output.status.success()) {
        return skip("there is no Docker Engine");
    }
    let Some(busybox) = ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|path| PathBuf::from(path).exists())
    else {
        return skip("there is no busybox");
    };
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("bin")).unwrap();
    std::fs::copy(busybox, folder.path().join("bin/busybox")).unwrap();
    let tar = folder.path().join("image.tar");
    let packed = Command::new("tar").arg("-cf").arg(&tar).arg("-C").arg(folder.path()).arg("bin").status().unwrap();
    assert!(packed.success());
    // The entry point takes our executor's arguments, ignores them, and runs for as long as asked.
    let script = "trap 'exit 9' TERM; /bin/busybox sleep ${SLEEP:-0} & wait $!; exit 4";
    let entry = format!(r#"ENTRYPOINT ["/bin/busybox", "sh", "-c", "{script}"]"#);
    let imported =
        Command::new("docker").args(["import", "--change", &entry]).arg(&tar).arg(&image.0).output().unwrap();
    if !imported.status.success() {
        return skip(&format!("docker import failed: {}", String::from_utf8_lossy(&imported.stderr)));
    }
    Some(image)
}

pub(crate) fn containers(label: &str) -> Vec<String> {
    let output = Command::new("docker").args(["ps", "-aq", "--filter", &format!("label={label}")]).output().unwrap();
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn containers_are_run_ended_and_removed() {
    let Some(image) = image() else { return };
    let group = Group::enter();
    let miner = uuid::Uuid::new_v4().to_string();
    let ours = format!("{}={miner}", labels::MINER);
    let our_spec = || {
        let mut spec = spec();
        spec.owner.miner.clone_from(&miner);
        spec
    };
    // Of another miner, with the same job.
    let another = uuid::Uuid::new_v4().to_string();
    let mut command = Command::new("docker");
    command.args(["run", "-d", "--network", "none", "--env", "SLEEP=1000"]);
    for label in [format!("{}={another}", labels::MINER), format!("{}={}", labels::JOB, spec().job_uuid)] {
        command.args(["--label", &label]);
    }
    assert!(command.arg(&image.0).output().unwrap().status.success());

    let docker = |sleep: &str| {
        let mut backend = DockerBackend::new(&image.0, "process");
        backend.options = vec!["--env".to_owned(), format!("SLEEP={sleep}")];
        backend
    };
    assert_eq!(run(&docker("0"), &our_spec(), &Shutdown::new()).unwrap(), ExecutorExit::Code(4));
    assert_eq!(containers(&ours), Vec::<String>::new());
    let other = containers(&format!("{}={another}", labels::MINER));
    assert_eq!(other.len(), 1, "another miner's container was touched");
    assert!(Command::new("docker").args(["rm", "-f", &other[0]]).output().unwrap().status.success());

    // While it is being made, while it runs, and at once while it runs.
    for (running, forced) in [(false, false), (true, false), (true, true)] {
        let (spec, stop) = (our_spec(), Shutdown::new());
        let thread = start(docker("1000"), &spec, &stop);
        let label = format!("label={ours}");
        let which = if running { ["ps", "-q", "--filter", &label] } else { ["ps", "-aq", "--filter", &label] };
        until("it is there", || !Command::new("docker").args(which).output().unwrap().stdout.is_empty());
        if forced {
            stop.cancel()
        } else {
            stop.drain()
        }
        let exit = join(thread).unwrap();
        if running && !forced {
            assert_eq!(exit, ExecutorExit::Code(9), "the container was not stopped");
        }
        assert_eq!(containers(&ours), Vec::<String>::new(), "left behind");
    }
    let mut backend = docker("0");
    backend.image = "phalanx-test-no-such-image-anywhere:0".to_owned();
    let error = run(&backend, &our_spec(), &Shutdown::new()).unwrap_err();
    let ExecutorError::Docker(ToolError::Failed { text, .. }) = &error else { panic!("{error:?}") };
    assert!(text.contains("No such image"), "{error}");
    assert!(group.live().is_empty());
}
