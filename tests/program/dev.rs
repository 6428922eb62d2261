//! `phalanx dev`: a network in a folder, for as long as one likes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::testkit::process::{Finished, Running, nothing_left, phalanx, processes_of, run};
use crate::testkit::wait::until;

/// A network whose jobs are plain processes, on ports that the system chooses.
fn network(scratch: &Path, folder: &Path) -> Command {
    let mut command = phalanx(scratch);
    command.args(["dev", "--runner", "process", "--port", "0", "--state-dir"]).arg(folder);
    command
}

/// Reads the last line that it says of itself.
pub fn wait_until_ready(running: &mut Running) {
    while !running.line().starts_with("  phalanx status --http ") {}
}

fn started(command: &mut Command) -> Running {
    let mut running = Running::start(command);
    wait_until_ready(&mut running);
    running
}

/// A command with the settings file of the network.
fn client(scratch: &Path, folder: &Path, line: &str) -> Finished {
    let mut command = phalanx(scratch);
    run(command.arg("--config").arg(folder.join("phalanx.toml")).args(line.split(' ')))
}

/// The process that has the state folder of a role.
fn process_of(folder: &Path, role: &str) -> Pid {
    let files = fs::read_dir(folder.join(role)).unwrap().map(|entry| entry.unwrap().path());
    let lock: Vec<PathBuf> = files.filter(|path| path.extension().is_some_and(|name| name == "lock")).collect();
    let [lock] = &lock[..] else { panic!("one lock: {lock:?}") };
    Pid::from_raw(fs::read_to_string(lock).unwrap().trim().parse().unwrap()).unwrap()
}

#[test]
fn a_network_runs_jobs_and_has_them_still_when_it_is_started_again() {
    let (scratch, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (scratch, folder) = (scratch.path(), folder.path().join("my network"));
    let running = started(&mut network(scratch, &folder));
    let job = folder.join("hello.json");
    let mut submit = phalanx(scratch);
    submit.arg("--config").arg(folder.join("phalanx.toml")).args(["submit", "--wait", "--json", "--tag", "first"]);
    let finished = run(submit.arg(job));
    assert_eq!(finished.code, Some(0), "{finished:?}\n{}", running.stderr());
    let result: Value = serde_json::from_str(&finished.stdout).unwrap();
    assert_eq!(result["stdout"], "Iphicrates\nLeonidas\n", "{result}");
    let uuid = result["uuid"].as_str().unwrap();
    let finished = client(scratch, &folder, "status");
    assert_eq!(finished.code, Some(0), "{finished:?}");
    for role in ["facilitator", "validator", "miner"] {
        assert!(finished.stdout.contains(role), "{}", finished.stdout);
    }
    let finished = client(scratch, &folder, &format!("job trace {uuid}"));
    assert_eq!(finished.code, Some(0), "{finished:?}");

    let second = run(&mut network(scratch, &folder));
    let expected = format!("in use by process {}", running.id());
    assert!(second.code == Some(2) && second.stderr.contains(&expected), "{second:?}");
    assert_eq!((second.stderr.lines().count(), second.stdout.as_str()), (1, ""), "{second:?}");

    let finished = running.stop(Signal::INT);
    assert_eq!(finished.code, Some(0), "{finished:?}");
    nothing_left(scratch);
    let running = started(&mut network(scratch, &folder));
    let finished = client(scratch, &folder, "jobs ls --tag first");
    assert!(finished.code == Some(0) && finished.stdout.contains(uuid), "{finished:?}");
    // However it ends, its roles end.
    running.signal(Signal::KILL);
    drop(running);
    until("the roles end", || processes_of(scratch).is_empty());
}

/// A job runs for a minute; the first signal waits for it, and the second cancels it. Each role is there until those
/// that need it have stopped, so nothing is lost, and nobody is killed.
#[test]
fn a_second_signal_hurries_the_roles_in_their_order() {
    let (scratch, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let running = started(&mut network(scratch.path(), folder.path()));
    let job = folder.path().join("long.json");
    let text = r#"{"executor_class": "always_on.test", "docker_image": "busybox", "args": ["sleep", "60"]}"#;
    fs::write(&job, text).unwrap();
    let finished = client(scratch.path(), folder.path(), &format!("submit {}", job.display()));
    assert_eq!(finished.code, Some(0), "{finished:?}");
    let runs = || client(scratch.path(), folder.path(), "jobs ls").stdout.contains("volumes_ready");
    until("the job runs", runs);
    running.signal(Signal::HUP);
    until("all roles are told to reload", || running.stderr().contains("SIGHUP: passed on to all roles"));
    until("the miner has reloaded", || {
        running.stderr().lines().any(|line| line.contains(" miner [") && line.contains("SIGHUP: "))
    });
    running.signal(Signal::INT);
    until("the validator stops", || {
        running.stderr().lines().any(|line| line.contains(" validator [") && line.contains("SIGTERM: finishing"))
    });
    running.signal(Signal::INT);
    let finished = running.finish();
    assert_eq!(finished.code, Some(0), "{finished:?}");
    assert!(!finished.stderr.contains("has ended with"), "{}", finished.stderr);
    nothing_left(scratch.path());
}

#[test]
fn without_an_engine_it_says_so_in_a_line_and_runs_jobs_as_plain_processes() {
    let (scratch, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (scratch, folder) = (scratch.path(), folder.path().join("network"));
    let network = |runner: &str| {
        let mut command = phalanx(scratch);
        command.args(["dev", "--port", "0", "--runner", runner, "--state-dir"]).arg(&folder);
        command.env("DOCKER_HOST", "unix:///no/such/socket");
        command
    };
    let refused = run(&mut network("docker"));
    assert!(refused.code == Some(2) && refused.stderr.contains("--runner docker: "), "{refused:?}");
    assert_eq!((refused.stderr.lines().count(), refused.stdout.as_str()), (1, ""), "{refused:?}");

    let mut running = Running::start(&mut network("auto"));
    let said = running.line();
    for part in [
        "jobs are plain processes, which nothing isolates, and their images are not looked at; ",
        "with a Docker Engine they would run in containers (",
        "/no/such/socket",
    ] {
        assert!(said.contains(part), "{said}");
    }
    wait_until_ready(&mut running);
    let job = folder.join("hello.json").display().to_string();
    let finished = client(scratch, &folder, &format!("submit --wait --json {job}"));
    assert!(finished.code == Some(0) && finished.stdout.contains("Leonidas"), "{finished:?}\n{}", running.stderr());
    assert_eq!(running.stop(Signal::INT).code, Some(0));
    nothing_left(scratch);
}

#[test]
fn a_role_that_ends_by_itself_ends_all_and_is_named() {
    let (scratch, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let running = started(&mut network(scratch.path(), folder.path()));
    kill_process(process_of(folder.path(), "facilitator"), Signal::KILL).unwrap();
    let finished = running.finish();
    assert_eq!(finished.code, Some(1), "{finished:?}");
    let at = |says: &str| finished.stderr.lines().position(|line| line.contains(says));
    let (told, stopped) = (at("the facilitator has ended with signal: 9"), at(" [signals] SIGTERM: "));
    assert!(told.is_some() && told < stopped, "it is said before the others stop: {}", finished.stderr);
    let last = finished.stderr.lines().last().unwrap();
    assert_eq!(last, "error: the facilitator has ended, and with it the others", "{}", finished.stderr);
    nothing_left(scratch.path());
}
