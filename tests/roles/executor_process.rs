//! The process runner runs real commands, bounds what they print, and leaves nothing of them running.

use crate::testkit::job;
use crate::testkit::wait::{far, until_some};
use std::fs;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use job::Bench;
use phalanx::base::limits::OUTPUT_CHARS;
use phalanx::base::shutdown::Shutdown;
use phalanx::base::thread::{Kick, spawn};
use phalanx::executor::runner::process::ProcessRunner;
use phalanx::executor::runner::{RunEnd, RunError, RunOutcome, RunSpec, Runner};
use phalanx::executor::sandbox::Sandbox;
use phalanx::executor::workspace::Workspace;

fn run(spec: &RunSpec, workspace: &Workspace) -> RunOutcome {
    ProcessRunner::default().run(spec, workspace, &Shutdown::new(), far()).unwrap()
}

/// Runs `spec` and calls `when_ready` once the job has connected to the socket in its folder.
fn run_until_ready(
    spec: &RunSpec,
    workspace: &Workspace,
    when_ready: impl FnOnce(&Shutdown) + Send + 'static,
) -> RunOutcome {
    let token = Shutdown::new();
    let path = workspace.job().join("ready");
    let ready = UnixListener::bind(&path).unwrap();
    let job_token = token.clone();
    let kick = Kick::new("a connection of its own", move || drop(UnixStream::connect(&path)));
    let watcher = spawn("t-ready", kick, move || {
        ready.accept().unwrap();
        when_ready(&job_token);
    });
    let outcome = ProcessRunner::default().run(spec, workspace, &token, far()).unwrap();
    watcher.join_by(far()).unwrap();
    outcome
}

/// A Python line that tells the test that the job has come this far.
const READY: &str = "import socket; socket.socket(socket.AF_UNIX).connect('ready')";

#[test]
fn output_and_exit_code_come_back_and_the_streams_are_files_in_the_output() {
    let bench = Bench::new();
    let workspace = bench.workspace();
    let outcome = run(&bench.sh("echo hi; echo oops >&2; exit 3"), &workspace);
    assert_eq!((outcome.end, outcome.exit_code()), (RunEnd::Exited(3), Some(3)));
    assert_eq!((outcome.stdout.text.as_str(), outcome.stderr.text.as_str()), ("hi\n", "oops\n"));
    assert_eq!(fs::read_to_string(workspace.output().join("stdout.txt")).unwrap(), "hi\n");
    assert_eq!(fs::read_to_string(workspace.output().join("stderr.txt")).unwrap(), "oops\n");
    drop(workspace);
    bench.assert_clean();
}

#[test]
fn the_environment_is_the_request_s_and_a_path_only() {
    let bench = Bench::new();
    let workspace = bench.workspace();
    let mut spec = bench.spec(&["env"]);
    spec.env.extend([("B".into(), "2".into()), ("A".into(), "zażółć = \n1".into())]);
    spec.env.push(("PHALANX_OUTPUT_DIR".into(), "/elsewhere".into()));
    let text = run(&spec, &workspace).stdout.text;
    let names: Vec<&str> = text.lines().filter_map(|line| Some(line.split_once('=')?.0)).collect();
    let mut sorted = names.clone();
    sorted.sort_unstable();
    let expected =
        ["A", "B", "PATH", "PHALANX_ARTIFACTS_DIR", "PHALANX_OUTPUT_DIR", "PHALANX_TEST_MARK", "PHALANX_VOLUME_DIR"];
    assert_eq!(sorted, expected, "{text}");
    assert!(text.contains("A=zażółć = \n1\n"));
    assert!(text.contains(&format!("PHALANX_OUTPUT_DIR={}\n", workspace.output().display())), "{text}");
    drop(workspace);
    bench.assert_clean();
}

#[test]
fn the_job_runs_in_its_folder_with_an_empty_stdin_and_volume_files_are_executable() {
    let bench = Bench::new();
    let workspace = bench.workspace();
    fs::write(workspace.volume().join("run.sh"), "#!/bin/sh\ncat; pwd; ls; echo kept > output/o.txt\n").unwrap();
    let outcome = run(&bench.spec(&["volume/run.sh"]), &workspace);
    let expected = format!("{}\nartifacts\noutput\nspecs\nvolume\n", workspace.job().display());
    assert_eq!((outcome.stdout.text, outcome.end), (expected, RunEnd::Exited(0)));
    assert_eq!(fs::read_to_string(workspace.output().join("o.txt")).unwrap(), "kept\n");
    drop(workspace);
    bench.assert_clean();
}

#[test]
fn a_script_runs_with_python_with_and_without_a_command() {
    let bench = Bench::new();
    let script = Some("import sys; print('args', sys.argv[1:])".to_owned());
    let workspace = bench.workspace();
    let outcome = run(&RunSpec { raw_script: script.clone(), ..bench.spec(&[]) }, &workspace);
    assert_eq!(outcome.stdout.text, "args []\n", "{outcome:?}");
    drop(workspace);
    let workspace = bench.workspace();
    let outcome = run(&RunSpec { raw_script: script, ..bench.spec(&["python3", "/script.py", "x"]) }, &workspace);
    assert_eq!(outcome.stdout.text, "args ['x']\n", "{outcome:?}");
    drop(workspace);
    bench.assert_clean();
}

#[test]
fn a_command_that_cannot_run_fails_like_in_a_shell() {
    let bench = Bench::new();
    let workspace = bench.workspace();
    let outcome = run(&bench.spec(&["no-such-command", "x"]), &workspace);
    assert_eq!(outcome.end, RunEnd::Exited(127));
    assert_eq!(outcome.stderr.text, "phalanx: no-such-command: command not found\n");
    let file = fs::read_to_string(workspace.output().join("stderr.txt")).unwrap();
    assert_eq!(file, outcome.stderr.text);
    drop(workspace);

    let workspace = bench.workspace();
    let outcome = run(&bench.spec(&["./volume"]), &workspace);
    assert_eq!(outcome.end, RunEnd::Exited(126), "{outcome:?}");

    let error =
        ProcessRunner::default().run(&bench.spec(&[]), &bench.workspace(), &Shutdown::new(), far()).unwrap_err();
    assert!(matches!(&error, RunError::Spec(text) if text.contains("command is empty")), "{error}");
    drop(workspace);
    bench.assert_clean();
}

#[test]
fn a_signal_is_distinguished_from_an_exit() {
    let bench = Bench::new();
    let outcome = run(&bench.sh("kill -9 $$"), &bench.workspace());
    assert_eq!((outcome.end, outcome.exit_code()), (RunEnd::Signalled(9), Some(137)));
    bench.assert_clean();
}

#[test]
fn three_megabytes_are_whole_in_the_file_and_truncated_in_the_middle_in_the_result() {
    let bench = Bench::new();
    let workspace = bench.workspace();
    let outcome = run(&bench.sh("seq 1 450000; seq 1 450000 | sed 's/^/é/' >&2"), &workspace);
    let whole: String = (1..=450_000).map(|n| format!("{n}\n")).collect();
    assert!(whole.len() > 3_000_000);
    assert_eq!(fs::read_to_string(workspace.output().join("stdout.txt")).unwrap(), whole);
    assert!(outcome.stdout.truncated && !outcome.stdout.file_truncated);
    assert_eq!(outcome.stdout.bytes, whole.len() as u64);
    let half = OUTPUT_CHARS / 2;
    assert!(outcome.stdout.text[..half] == whole[..half] && outcome.stdout.text[half..] == whole[whole.len() - half..]);

    let whole: Vec<char> = (1..=450_000).flat_map(|n| format!("é{n}\n").chars().collect::<Vec<_>>()).collect();
    let got: Vec<char> = outcome.stderr.text.chars().collect();
    assert_eq!(got.len(), OUTPUT_CHARS);
    assert!(got[..half] == whole[..half] && got[half..] == whole[whole.len() - half..]);
    drop(workspace);
    bench.assert_clean();
}

#[test]
fn children_left_behind_by_a_normal_exit_do_not_survive() {
    let bench = Bench::new();
    let outcome = run(&bench.sh("sleep 1000 & (sleep 1000 & sleep 1000) & echo done"), &bench.workspace());
    assert_eq!((outcome.end, outcome.stdout.text.as_str()), (RunEnd::Exited(0), "done\n"));
    bench.assert_clean();
}

#[test]
fn cancel_ends_the_whole_group_even_if_it_ignores_sigterm() {
    let bench = Bench::new();
    let workspace = bench.workspace();
    let spec = bench.sh(&format!(
        "trap '' TERM; echo before; (trap '' TERM; sleep 1000 & sleep 1000) & python3 -c \"{READY}\"; wait"
    ));
    let outcome = run_until_ready(&spec, &workspace, Shutdown::cancel);
    assert_eq!((outcome.end, outcome.exit_code(), outcome.stdout.text.as_str()), (RunEnd::Cancelled, None, "before\n"));
    drop(workspace);
    bench.assert_clean();
}

#[test]
fn sigterm_comes_first_so_that_a_job_can_finish_its_files() {
    let bench = Bench::new();
    let workspace = bench.workspace();
    let spec = bench.sh(&format!(
        "trap 'echo saved > output/saved; exit 0' TERM; python3 -c \"{READY}\"; while :; do sleep 0.05; done"
    ));
    let outcome = run_until_ready(&spec, &workspace, Shutdown::cancel);
    assert_eq!(outcome.end, RunEnd::Cancelled);
    assert_eq!(fs::read_to_string(workspace.output().join("saved")).unwrap(), "saved\n");
    drop(workspace);
    bench.assert_clean();
}

#[test]
fn a_drain_lets_the_job_finish() {
    let bench = Bench::new();
    let workspace = bench.workspace();
    let spec = bench.sh(&format!("python3 -c \"{READY}\"; echo finished"));
    let outcome = run_until_ready(&spec, &workspace, Shutdown::drain);
    assert_eq!((outcome.end, outcome.stdout.text.as_str()), (RunEnd::Exited(0), "finished\n"));
    drop(workspace);
    bench.assert_clean();
}

#[test]
fn the_deadline_ends_the_job_and_keeps_what_it_printed() {
    let bench = Bench::new();
    // A busy machine may take longer than the first deadlines to start a shell.
    let printed = [1, 4, 16, 64].into_iter().any(|seconds| {
        let workspace = bench.workspace();
        let deadline = Instant::now() + Duration::from_secs(seconds);
        let spec = bench.sh("echo begun; sleep 1000");
        let outcome = ProcessRunner::default().run(&spec, &workspace, &Shutdown::new(), deadline).unwrap();
        assert!(outcome.end == RunEnd::TimedOut && Instant::now() >= deadline, "{outcome:?}");
        assert_eq!(fs::read_to_string(workspace.output().join("stdout.txt")).unwrap(), outcome.stdout.text);
        outcome.stdout.text == "begun\n"
    });
    assert!(printed, "what was printed before the deadline is not kept");
    bench.assert_clean();
}

#[test]
fn a_process_that_left_the_group_survives_but_delays_nothing() {
    let bench = Bench::new();
    let workspace = bench.workspace();
    // The shell exits only once the daemon has its own session, so that the group's end cannot reach it.
    let script =
        "setsid sh -c 'echo ready > output/ready; exec sleep 1000' & until [ -s output/ready ]; do :; done; echo done";
    let outcome = run(&bench.sh(script), &workspace);
    assert_eq!((outcome.end, outcome.stdout.text.as_str()), (RunEnd::Exited(0), "done\n"));
    // Had the run waited for the stream that it holds, it would have ended by now.
    // While it executes its next program, its environment cannot be read.
    let left = until_some("documented: a setsid'ed process is out of reach", || {
        let left = bench.processes();
        (!left.is_empty()).then_some(left)
    });
    assert_eq!(left.len(), 1);
    let pid = rustix::process::Pid::from_raw(i32::try_from(left[0]).unwrap()).unwrap();
    let ended = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    let mut fds = [rustix::event::PollFd::new(&ended, rustix::event::PollFlags::IN)];
    assert_eq!(rustix::event::poll(&mut fds, None).unwrap(), 1);
    drop(workspace);
    bench.assert_clean();
}

#[test]
fn a_job_that_fills_the_disk_is_ended() {
    let bench = Bench::new();
    let workspace = bench.workspace();
    let sandbox = Sandbox { disk_bytes: Some(4 << 20), ..Sandbox::default() };
    let script = "echo begun; while true; do head -c 1048576 /dev/zero >>output/f; done";
    let outcome = ProcessRunner { sandbox, ..ProcessRunner::default() }
        .run(&bench.sh(script), &workspace, &Shutdown::new(), far())
        .unwrap();
    let RunEnd::OverQuota { limit, used, unit } = outcome.end else { panic!("{outcome:?}") };
    assert!(limit == 4 << 20 && used > limit && unit == "bytes", "{outcome:?}");
    assert_eq!(outcome.stdout.text, "begun\n");
    drop(workspace);
    bench.assert_clean();
}
