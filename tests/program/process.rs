//! The roles as processes of their own, by the command-line contract: a network of four, its signals, and bad input.

use crate::testkit::process;
use crate::testkit::wait::{LONG, until};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use process::{Running, nothing_left, phalanx, processes_of, run};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

pub const ALICE: &str = "5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY";
const BOB: &str = "5FHneW46xGXgs5mUiveU4sbTyGBzmstUspZC92UhjJM694ty";
const CHARLIE: &str = "5FLSigC9HGRKVhB9FiEo4Y3koPsNmBmLJbpXg2mp1hXcS59Y";

/// A facilitator, a miner (Bob) and a validator (Alice); Charlie is the user.
pub struct Network {
    pub facilitator: Running,
    pub miner: Running,
    /// Where the miner listens.
    pub listening: String,
    pub validator: Running,
    http: String,
    pub folder: tempfile::TempDir,
    /// The roles' `TMPDIR`, which has to be empty in the end.
    pub scratch: tempfile::TempDir,
}

fn announced(running: &mut Running, key: &str) -> String {
    let line: Value = serde_json::from_str(&running.line()).unwrap();
    line[key].as_str().unwrap().to_owned()
}

/// A miner with its state in `folder`, and where it listens.
pub fn start_miner(
    (folder, scratch): (&Path, &Path),
    listen: &str,
    tls: bool,
    arguments: &[&str],
) -> (Running, String) {
    start_miner_of(env!("CARGO_BIN_EXE_phalanx").as_ref(), (folder, scratch), listen, tls, arguments)
}

/// The same of a copy of the program.
fn start_miner_of(
    program: &Path,
    (folder, scratch): (&Path, &Path),
    listen: &str,
    tls: bool,
    arguments: &[&str],
) -> (Running, String) {
    let path = |name: &str| folder.join(name);
    let mut miner = process::in_scratch(Command::new(program), scratch);
    miner.args(["miner", "--listen", listen, "--validator", ALICE, "--executors", "always_on.test=2"]);
    miner.env("PHALANX_DRAIN_TIME", "1s");
    miner.args(arguments).arg("--state-dir").arg(path("miner"));
    if tls {
        miner.arg("--tls-cert").arg(path("cert.pem")).arg("--tls-key").arg(path("key.pem"));
    }
    if path("cert.pem").exists() {
        miner.env("PHALANX_TLS_CA", path("cert.pem"));
    }
    miner.env("PHALANX_KEY", "//Bob").env("RUST_LOG", "info");
    let mut miner = Running::start(&mut miner);
    let listening = announced(&mut miner, "listening");
    (miner, listening)
}

impl Network {
    pub fn start(tls: bool) -> Self {
        Self::start_with(tls, &["--runner", "process"])
    }

    pub fn start_with(tls: bool, miner_arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let scratch = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let start = |command: &mut Command| Running::start(command.env("RUST_LOG", "info"));
        let cert = rcgen::generate_simple_self_signed(["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
        std::fs::write(path("cert.pem"), cert.cert.pem()).unwrap();
        std::fs::write(path("key.pem"), cert.signing_key.serialize_pem()).unwrap();
        let mut facilitator = phalanx(scratch.path());
        facilitator.args(["facilitator", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"]);
        facilitator.args(["--validator", ALICE, "--user", CHARLIE, "--state-dir"]).arg(path("facilitator"));
        if tls {
            facilitator.arg("--tls-cert").arg(path("cert.pem")).arg("--tls-key").arg(path("key.pem"));
        }
        let mut facilitator = start(&mut facilitator);
        let line: Value = serde_json::from_str(&facilitator.line()).unwrap();
        let http = format!("http://{}", line["http"].as_str().unwrap());
        let port = line["listening"].as_str().unwrap().rsplit(':').next().unwrap().to_owned();
        let url = if tls { format!("wss://localhost:{port}/ws/v0/") } else { format!("ws://127.0.0.1:{port}/ws/v0/") };

        let folders = (folder.path(), scratch.path());
        let (miner, listening) = start_miner(folders, "127.0.0.1:0", tls, miner_arguments);
        let port = listening.rsplit(':').next().unwrap();
        let miners = format!("[[miner]]\nhotkey = \"{BOB}\"\naddress = \"127.0.0.1\"\nport = {port}\ntls = {tls}\n");
        std::fs::write(path("miners.toml"), miners).unwrap();

        let mut validator = phalanx(scratch.path());
        validator.args(["validator", "--http", "127.0.0.1:0", "--drain-time", "1s", "--trusted-signer", CHARLIE]);
        validator.arg("--miners").arg(path("miners.toml")).arg("--state-dir").arg(path("validator"));
        if tls {
            validator.arg("--tls-ca").arg(path("cert.pem"));
        }
        let mut validator = start(validator.env("PHALANX_KEY", "//Alice").env("FACILITATOR_URI", url));
        announced(&mut validator, "http");
        Self { facilitator, miner, listening, validator, http, folder, scratch }
    }

    pub fn submit(&self, job: &str) -> Command {
        let file = self.folder.path().join("job.json");
        std::fs::write(&file, job).unwrap();
        let mut command = phalanx(self.scratch.path());
        command.arg("submit").arg(file).args(["--facilitator", &self.http, "--target", ALICE, "--wait", "--json"]);
        command.env("PHALANX_KEY", "//Charlie");
        command
    }

    /// Stops each role and asserts that all is gone; the codes of validator, miner and facilitator.
    pub fn stop(self, signal: Signal) -> [Option<i32>; 3] {
        let Self { facilitator, miner, validator, scratch, .. } = self;
        let codes = [("validator", validator), ("miner", miner), ("facilitator", facilitator)].map(|(name, role)| {
            let finished = role.stop(signal);
            for secret in ["//Alice", "//Bob", "executor_interface/"] {
                assert!(!finished.stderr.contains(secret), "{name} logs {secret}:\n{}", finished.stderr);
            }
            finished.code
        });
        nothing_left(scratch.path());
        codes
    }
}

pub const NO_OP: &str = r#"{"executor_class": "always_on.test", "docker_image": "x", "args": ["echo", "done"]}"#;
const LONG_JOB: &str = r#"{"executor_class": "always_on.test", "docker_image": "x", "args": ["sleep", "600"],
    "execution_time_limit": 600}"#;

pub fn result(stdout: &str) -> Value {
    serde_json::from_str(stdout.lines().next().expect("a result")).unwrap()
}

#[test]
fn four_processes_run_a_job_over_plain_and_tls_and_end_on_either_signal() {
    for (tls, signal) in [(false, Signal::INT), (true, Signal::TERM)] {
        let network = Network::start(tls);
        let finished = run(&mut network.submit(NO_OP));
        assert_eq!(finished.code, Some(0), "{}", finished.stderr);
        let job = result(&finished.stdout);
        assert_eq!((job["status"].as_str(), job["stdout"].as_str()), (Some("completed"), Some("done\n")));
        assert_eq!(network.stop(signal), [Some(0); 3]);
    }
}

/// What becomes of a no-op job.
pub fn status_of_a_job(network: &Network) -> String {
    let finished = run(&mut network.submit(NO_OP));
    result(&finished.stdout)["status"].as_str().unwrap().to_owned()
}

#[test]
fn a_miner_reads_its_settings_again_and_keeps_them_when_they_are_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("phalanx.toml");
    let write = |text: String| std::fs::write(&file, text).unwrap();
    // Another program that stands for the executor: ours, by its command line.
    let ours = env!("CARGO_BIN_EXE_phalanx");
    let command = format!("'{ours}' executor --runner process --startup-time-limit {{startup_seconds}}");
    write(format!("[miner]\nexecutor_command = \"{command}\"\n"));
    let network = Network::start_with(false, &["--config", file.to_str().unwrap()]);
    assert_eq!(status_of_a_job(&network), "completed");

    let hangup = || network.miner.signal(Signal::HUP);
    write("[miner]\nblacklists = []\n".to_owned());
    hangup();
    assert_eq!(status_of_a_job(&network), "completed");
    write(format!("[miner]\nexecutor_command = \"{command}\"\nblacklist = [\"{BOB}\"]\n"));
    hangup();
    assert_eq!(status_of_a_job(&network), "completed");
    write(format!("[miner]\nexecutor_command = \"{command}\"\nblacklist = [\"{ALICE}\"]\n"));
    hangup();
    until("the validator's job is declined", || status_of_a_job(&network) == "rejected");

    let Network { facilitator, miner, validator, scratch, .. } = network;
    assert_eq!(validator.stop(Signal::TERM).code, Some(0));
    let finished = miner.stop(Signal::TERM);
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    for said in [
        "SIGHUP: the settings stay as they are: settings file",
        "[miner] unknown key \"blacklists\"; did you mean \"blacklist\"?",
        "is none of the validators",
        "SIGHUP: the settings were read again",
    ] {
        assert!(finished.stderr.contains(said), "{said}: {}", finished.stderr);
    }
    assert_eq!(facilitator.stop(Signal::TERM).code, Some(0));
    nothing_left(scratch.path());
}

#[test]
fn a_miner_whose_program_was_replaced_in_place_starts_executors_after_a_hangup() {
    let mut network = Network::start(false);
    network.miner.signal(Signal::TERM);
    assert!(network.miner.ended_within(LONG));
    let program = network.folder.path().join("phalanx");
    let put = || {
        let beside = program.with_extension("new");
        std::fs::copy(env!("CARGO_BIN_EXE_phalanx"), &beside).unwrap();
        std::fs::rename(beside, &program).unwrap();
    };
    put();
    let folders = (network.folder.path(), network.scratch.path());
    let (miner, _) = start_miner_of(&program, folders, &network.listening, false, &["--runner", "process"]);
    network.miner = miner;
    assert_eq!(status_of_a_job(&network), "completed");
    put();
    network.miner.signal(Signal::HUP);
    until("the settings are read", || network.miner.stderr().contains("the settings were read again"));
    assert_eq!(status_of_a_job(&network), "completed");
    assert_eq!(network.stop(Signal::TERM), [Some(0); 3]);
}

/// The command line of each job process that belongs to the folder.
fn job_runs(scratch: &Path) -> bool {
    processes_of(scratch).iter().any(|line| line.starts_with("sleep 600"))
}

#[test]
fn a_job_that_a_stop_cancels_ends_as_horde_failed_and_leaves_nothing() {
    let network = Network::start(false);
    let submit = Running::start(&mut network.submit(LONG_JOB));
    until("the job runs", || job_runs(network.scratch.path()));
    // The validator's drain time is a second, then it gives the job up, and says so.
    let Network { facilitator, miner, validator, scratch, folder: _folder, http: _, listening: _ } = network;
    let start = Instant::now();
    let finished = validator.stop(Signal::TERM);
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    assert!(start.elapsed() >= Duration::from_secs(1), "{:?}", start.elapsed());
    let submitted = submit.finish();
    assert_eq!(submitted.code, Some(1));
    let job = result(&submitted.stdout);
    assert_eq!(job["status"], "horde_failed");
    assert!(job["error"].as_str().unwrap().contains("stopped before the job had ended"), "{job}");
    assert_eq!(miner.stop(Signal::TERM).code, Some(0));
    assert_eq!(facilitator.stop(Signal::TERM).code, Some(0));
    nothing_left(scratch.path());
}

/// A service manager signals every process of a unit at once; a terminal does the like.
#[test]
fn a_signal_to_all_processes_at_once_lets_the_running_job_end() {
    let network = Network::start_with(false, &["--runner", "process", "--drain-time", "60s"]);
    let gate = network.folder.path().join("gate");
    let script = format!("trap '' TERM; while [ ! -e {} ]; do sleep 0.05; done; echo ok", gate.display());
    let job = json!({"executor_class": "always_on.test", "docker_image": "x", "args": ["sh", "-c", script],
        "execution_time_limit": 600});
    let submit = Running::start(&mut network.submit(&job.to_string()));
    let scratch = network.scratch.path().to_owned();
    until("the job runs", || processes_of(&scratch).iter().any(|line| line.starts_with("sh -c trap")));
    let all = descendants(network.miner.id());
    assert!(all.len() >= 2, "the executor and its job");
    network.miner.signal(Signal::TERM);
    for pid in all {
        // A short sleep of the job may have ended meanwhile.
        let _ended = kill_process(Pid::from_raw(pid).unwrap(), Signal::TERM);
    }
    std::fs::write(&gate, "").unwrap();
    let submitted = submit.finish();
    assert_eq!(submitted.code, Some(0), "{}", submitted.stderr);
    let job = result(&submitted.stdout);
    assert_eq!((job["status"].as_str(), job["stdout"].as_str()), (Some("completed"), Some("ok\n")), "{job}");
    let Network { facilitator, miner, validator, scratch, .. } = network;
    let finished = miner.finish();
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    assert!(finished.stderr.contains("its miner decides"), "{}", finished.stderr);
    for role in [validator, facilitator] {
        assert_eq!(role.stop(Signal::TERM).code, Some(0));
    }
    nothing_left(scratch.path());
}

/// All processes that a process has started, and those that they have.
pub fn descendants(ancestor: u32) -> Vec<i32> {
    let mut parents = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        // After the name, which may hold anything, come the state and the parent.
        let parent = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(1)?.parse::<i32>().ok());
        parents.extend(parent.map(|parent| (pid, parent)));
    }
    let mut found = vec![ancestor as i32];
    let mut at = 0;
    while at < found.len() {
        let children = parents.iter().filter(|(_, parent)| *parent == found[at]).map(|(pid, _)| *pid);
        found.extend(children.collect::<Vec<_>>());
        at += 1;
    }
    found.split_off(1)
}

#[test]
fn an_executor_that_a_signal_stops_before_its_job_says_why() {
    let scratch = tempfile::tempdir().unwrap();
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut command = phalanx(scratch.path());
    command.args(["executor", "--runner", "process"]).env("EXECUTOR_TOKEN", "t");
    command.env("MINER_ADDRESS", format!("ws://{}", silent.local_addr().unwrap()));
    let executor = Running::start(&mut command);
    // It has installed its handlers before it dials.
    let dialled = silent.accept().unwrap();
    let finished = executor.stop(Signal::TERM);
    drop(dialled);
    assert_eq!(finished.code, Some(1), "{}", finished.stderr);
    assert!(finished.stderr.contains("a signal stopped this executor before a job came"), "{}", finished.stderr);
    nothing_left(scratch.path());
}

#[test]
fn an_executor_that_is_killed_ends_its_job_in_horde_failed_and_nothing_is_left() {
    let network = Network::start(false);
    let submit = Running::start(&mut network.submit(LONG_JOB));
    until("the job runs", || job_runs(network.scratch.path()));
    let mut executors = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        let read = |name: &str| std::fs::read(entry.path().join(name)).unwrap_or_default();
        let line = String::from_utf8_lossy(&read("cmdline")).replace('\0', " ");
        let environ = String::from_utf8_lossy(&read("environ")).into_owned();
        let ours = environ.contains(&*network.scratch.path().to_string_lossy());
        if ours && line.contains("phalanx executor") {
            executors.push(pid);
            // Whom to trust is all that it has of the miner's own environment; the rest is meant for it.
            let settings: Vec<&str> = environ.split('\0').filter(|variable| variable.starts_with("PHALANX_")).collect();
            let trusts = format!("PHALANX_TLS_CA={}", network.folder.path().join("cert.pem").display());
            assert!(settings.contains(&trusts.as_str()), "{settings:?}");
            let miners_own = ["PHALANX_KEY=", "PHALANX_STATE_DIR=", "PHALANX_VALIDATOR=", "PHALANX_LISTEN="];
            let is_miners = |setting: &&str| miners_own.iter().any(|name| setting.starts_with(name));
            assert!(!settings.iter().any(is_miners), "{settings:?}");
        }
    }
    assert_eq!(executors.len(), 1);
    kill_process(Pid::from_raw(executors[0]).unwrap(), Signal::KILL).unwrap();
    let submitted = submit.finish();
    assert_eq!(submitted.code, Some(1));
    let job = result(&submitted.stdout);
    assert_eq!(job["status"], "horde_failed");
    assert!(job["error"].as_str().unwrap().starts_with("executor_disconnected"), "{job}");
    // The end is reported when the connection breaks, and the miner cleans up after that; its stop waits for it.
    let Network { facilitator, miner, validator, scratch, .. } = network;
    for role in [validator, miner, facilitator] {
        assert_eq!(role.stop(Signal::TERM).code, Some(0));
    }
    nothing_left(scratch.path());
}

#[test]
fn a_second_signal_cancels_and_a_third_exits_now() {
    let network = Network::start(false);
    let submit = Running::start(&mut network.submit(LONG_JOB));
    until("the job runs", || job_runs(network.scratch.path()));
    let Network { facilitator, miner, validator, scratch, .. } = network;
    miner.signal(Signal::TERM);
    let finished = miner.stop(Signal::TERM);
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    let submitted = submit.finish();
    assert_eq!(result(&submitted.stdout)["status"], "horde_failed", "{submitted:?}");
    assert_eq!(validator.stop(Signal::TERM).code, Some(0));
    let finished = facilitator.stop(Signal::QUIT);
    assert_eq!(finished.code, Some(130));
    nothing_left(scratch.path());
}

#[test]
fn a_third_signal_ends_a_miner_whose_executor_does_not_end() {
    let network = Network::start_with(false, &["--runner", "process", "--drain-time", "60s"]);
    let submit = Running::start(&mut network.submit(LONG_JOB));
    until("the job runs", || job_runs(network.scratch.path()));
    let Network { facilitator, miner, validator, scratch, folder: _folder, .. } = network;
    let stopped: Vec<_> = descendants(miner.id()).into_iter().map(|pid| Pid::from_raw(pid).unwrap()).collect();
    let send_all = |signal| {
        for pid in &stopped {
            // One may have ended meanwhile.
            let _ended = kill_process(*pid, signal);
        }
    };
    send_all(Signal::STOP);
    for said in ["SIGTERM: finishing what runs", "SIGTERM: cancelling what runs"] {
        miner.signal(Signal::TERM);
        until(said, || miner.stderr().contains(said));
    }
    let finished = miner.stop(Signal::TERM);
    assert_eq!(finished.code, Some(130), "{}", finished.stderr);
    for line in finished.stderr.lines().filter(|line| line.contains("SIGTERM: ")) {
        assert!(line.contains(" INFO "), "{line}");
    }
    // With a process that is stopped its executor would wait for a miner for half a minute.
    send_all(Signal::KILL);
    for role in [validator, facilitator] {
        let finished = role.stop(Signal::TERM);
        assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    }
    assert_eq!(submit.finish().code, Some(1));
    until("nothing is left running", || processes_of(scratch.path()).is_empty());
}

#[test]
fn bad_input_is_one_line_with_exit_2_and_starts_nothing() {
    let scratch = tempfile::tempdir().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_string_lossy().into_owned()
    };
    let state = folder.path().join("state").to_string_lossy().into_owned();
    let miners = path("miners.toml", &format!("[[miner]]\nhotkey = \"{BOB}\"\naddress = \"x\"\nport = 0\n"));
    let good = path("good.toml", &format!("[[miner]]\nhotkey = \"{BOB}\"\naddress = \"x\"\nport = 1\n"));
    let job = path("job.json", r#"{"executor_class": "always_on.test", "docker_image": "x", "argz": []}"#);
    let upload = r#"{"output_upload_type": "zip_and_http_put", "url": "https://h/rest"}"#;
    let rest = path(
        "rest.json",
        &format!(
            r#"{{"executor_class": "always_on.test", "docker_image": "x", "output_upload":
                {{"output_upload_type": "multi_upload", "uploads": [], "system_output": {upload}}}}}"#
        ),
    );
    let config = path("phalanx.toml", "[validator]\nfacilitater = \"ws://x\"\n");
    let validator = ["validator", "--facilitator", "ws://127.0.0.1:1", "--state-dir", &state];
    let miner = ["miner", "--validator", ALICE, "--state-dir", &state, "--key", "//Bob", "--executors"];
    let far = r#"{"far": {"address": "ssh://root@192.0.2.1", "executors": {"always_on.test": 1}}}"#;
    let containers = ["--executor-backend", "docker", "--executor-image", "x"];
    let cases: Vec<(Vec<&str>, Vec<&str>)> = vec![
        (
            [&validator[..], &["--key", "//Alice", "--miners", &miners]].concat(),
            vec!["miners.toml", "port is 0", "1 to 65535"],
        ),
        ([&validator[..], &["--key", "/no/such/key", "--miners", &good]].concat(), vec!["--key", "/no/such/key"]),
        ([&validator[..], &["--key", "//Alice", "--miners", "/no/such.toml"]].concat(), vec!["/no/such.toml"]),
        ([&validator[..], &["--key", "//Alice"]].concat(), vec!["--miners is missing"]),
        ([&validator[..], &["--key", "//Alice", "--miners", &good, "--workers", "0"]].concat(), vec!["workers is 0"]),
        (
            [&validator[..], &["--key", "//Alice", "--miners", &good, "--manifest-interval", "20ms"]].concat(),
            vec!["--manifest-interval is 20ms", "1s or more"],
        ),
        (
            [&validator[..], &["--config", &config]].concat(),
            vec!["phalanx.toml", "facilitater", "did you mean \"facilitator\""],
        ),
        (
            vec![
                "validator",
                "--key",
                "//Alice",
                "--state-dir",
                &state,
                "--miners",
                &good,
                "--facilitator",
                "http://x",
            ],
            vec!["http://x", "wss://"],
        ),
        ([&miner[..], &["always_on.test=0", "--listen", "127.0.0.1:0"]].concat(), vec!["--executors", "1 to 1000"]),
        ([&miner[..], &["nope=1", "--listen", "127.0.0.1:0"]].concat(), vec!["--executors", "nope", "always_on.test"]),
        (
            [&miner[..], &["always_on.test=1", "--listen", "127.0.0.1:0", "--reach", "10.0.0.1/8"]].concat(),
            vec!["--reach", "should it be 10.0.0.0/8?"],
        ),
        (
            vec!["submit", &rest, "--facilitator", "http://127.0.0.1:1", "--key", "//Bob", "--target", ALICE],
            vec!["rest.json", "output_upload.system_output", "zip_and_http_put"],
        ),
        ([&miner[..], &["always_on.test=1", "--listen", "nowhere"]].concat(), vec!["--listen", "ADDRESS:PORT"]),
        (
            [&miner[..], &["always_on.test=1", "--listen", "127.0.0.1:0", "--executor-backend", "docker"]].concat(),
            vec!["--executor-image"],
        ),
        (
            [&miner[..], &["always_on.test=1", "--listen", "127.0.0.1:0", "--executor-command", "a 'b"]].concat(),
            vec!["--executor-command", "a quote is not closed"],
        ),
        (
            [&miner[..], &["always_on.test=1", "--listen", "127.0.0.1:0", "--executor-option", "--privileged"]]
                .concat(),
            vec!["--executor-option", "--executor-backend docker"],
        ),
        (
            [&miner[..], &["always_on.test=1", "--listen", "127.0.0.1:0", "--hosts", far]].concat(),
            vec!["[miner.hosts], or --hosts, goes with --executor-backend docker"],
        ),
        (
            [&miner[..], &["always_on.test=1", "--listen", "127.0.0.1:0", "--hosts", far], &containers].concat(),
            vec!["host far", "cannot dial ws://127.0.0.1:0", "--executor-address"],
        ),
        (
            [&miner[..], &["always_on.test=1", "--listen", "127.0.0.1:0", "--hosts", "{\"far\": 1}"]].concat(),
            vec!["--hosts: host \"far\"", "it should be a table"],
        ),
        (
            vec![
                "facilitator",
                "--listen",
                "127.0.0.1:0",
                "--http",
                "127.0.0.1:0",
                "--validator",
                "5abc",
                "--user",
                BOB,
                "--state-dir",
                &state,
            ],
            vec!["--validator", "5abc"],
        ),
        (
            vec!["submit", &job, "--facilitator", "http://127.0.0.1:1", "--key", "//Bob", "--target", ALICE],
            vec!["job.json", "argz", "did you mean \"args\""],
        ),
        (
            vec!["submit", "/no/such.json", "--facilitator", "http://127.0.0.1:1", "--key", "//Bob", "--target", ALICE],
            vec!["/no/such.json"],
        ),
        (vec!["executor"], vec!["MINER_ADDRESS is not set"]),
        (vec!["wire", "check", "--link", "nope"], vec!["--link", "nope"]),
        (vec!["key", "show", "--key", "//"], vec!["--key"]),
        (vec!["frobnicate"], vec!["frobnicate"]),
    ];
    for (args, expected) in cases {
        let finished = run(phalanx(scratch.path()).args(&args));
        assert_eq!(finished.code, Some(2), "{args:?}: {finished:?}");
        assert_eq!(finished.stdout, "", "{args:?}");
        assert_eq!(finished.stderr.lines().count(), 1, "{args:?}: {}", finished.stderr);
        assert!(finished.stderr.starts_with("error: "), "{args:?}: {}", finished.stderr);
        for part in expected {
            assert!(finished.stderr.contains(part), "{args:?}: {part:?} is not in {}", finished.stderr);
        }
    }
    assert!(!Path::new(&state).exists(), "something was started");
    nothing_left(scratch.path());
}

#[test]
fn flags_beat_environment_beats_file() {
    let scratch = tempfile::tempdir().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("phalanx.toml");
    std::fs::write(&config, "[key]\n\n[validator]\nworkers = 0\nstub_time = \"1s\"\ndispatch = \"stub\"\n").unwrap();
    let base = |scratch: &Path| {
        let mut command = phalanx(scratch);
        command.args(["validator", "--key", "//Alice", "--facilitator", "ws://127.0.0.1:1/", "--state-dir"]);
        command.arg(folder.path().join("state")).arg("--config").arg(&config);
        command
    };
    let from_file = run(&mut base(scratch.path()));
    assert!(from_file.stderr.contains("phalanx.toml: [validator] workers) is 0"), "{}", from_file.stderr);
    let from_env = run(base(scratch.path()).env("PHALANX_WORKERS", "8193"));
    assert!(from_env.stderr.contains("--workers (PHALANX_WORKERS) is 8193"), "{}", from_env.stderr);
    let from_flag = run(base(scratch.path()).env("PHALANX_WORKERS", "1").args(["--workers", "9000"]));
    assert!(from_flag.stderr.contains("--workers is 9000"), "{}", from_flag.stderr);
}

#[test]
fn the_wire_and_the_keys_are_checked_by_the_binary() {
    use std::io::Write;
    use std::process::Stdio;
    let scratch = tempfile::tempdir().unwrap();
    let mut check = phalanx(scratch.path());
    check.args(["wire", "check", "--link", "validator-to-facilitator"]);
    let mut check = check.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = check.stdin.take().unwrap();
    stdin.write_all(b"{\"message_type\" : \"V0Heartbeat\"}\n{\"message_type\":\"Nope\"}\n").unwrap();
    drop(stdin);
    let output = check.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let stdout = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<&str> = stdout.lines().collect();
    assert_eq!(lines[0], "ok\t{\"message_type\":\"V0Heartbeat\"}");
    assert!(lines[1].starts_with("error\tunion_tag_invalid"), "{}", lines[1]);

    let show = run(phalanx(scratch.path()).args(["key", "show", "--key", "//Alice"]));
    let shown: Value = serde_json::from_str(&show.stdout).unwrap();
    assert_eq!(shown["ss58"], ALICE);
    let sign = run(phalanx(scratch.path()).args(["key", "sign", "--key", "//Alice", "--hex", "00ff"]));
    let verify = |hex: &str| {
        let args = ["key", "verify", "--signer", ALICE, "--hex", hex, "--signature", sign.stdout.trim()];
        run(phalanx(scratch.path()).args(args)).code
    };
    assert_eq!([verify("00ff"), verify("00fe")], [Some(0), Some(1)]);
}
