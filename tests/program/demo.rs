//! `phalanx demo` as a process: every job completes, and Ctrl-C at any moment leaves nothing behind.

use crate::testkit::process;
use crate::testkit::wait::LONG;
use std::collections::BTreeSet;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use phalanx::base::rng::Rng;
use process::{Finished, Running, nothing_left, phalanx, run};
use rustix::process::Signal;
use serde_json::Value;

fn demo(scratch: &Path, runner: &str, jobs: usize) -> Command {
    let mut command = phalanx(scratch);
    command.args(["demo", "--json", "--runner", runner, "--jobs", &jobs.to_string()]);
    command
}

fn results(finished: &Finished) -> Vec<Value> {
    finished.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn check_jobs(finished: &Finished, jobs: usize) {
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    let results = results(finished);
    assert_eq!(results.len(), jobs);
    let uuids: BTreeSet<_> = results.iter().map(|job| job["uuid"].as_str().unwrap()).collect();
    assert_eq!(uuids.len(), jobs);
    for job in &results {
        assert_eq!(job["status"], "completed", "{job}");
        let history: Vec<_> =
            job["history"].as_array().unwrap().iter().map(|e| e["status"].as_str().unwrap()).collect();
        let expected =
            ["sent", "received", "accepted", "executor_ready", "volumes_ready", "execution_done", "completed"];
        assert_eq!(history, expected);
        let times: Vec<_> = job["history"].as_array().unwrap().iter().map(|e| e["at"].as_str().unwrap()).collect();
        assert!(times.is_sorted(), "{times:?}");
        assert!(job["seconds"].as_f64().unwrap() > 0.0);
        let stdout = job["stdout"].as_str().unwrap();
        match job["file"].as_str().unwrap().trim_end_matches(|c: char| c.is_ascii_digit() || c == '-') {
            "word-count" => assert!(stdout.contains("9 notes/orders.txt"), "{stdout}"),
            "sha" => assert!(stdout.starts_with("080acf35a507ac9849cfcba47dc2ad83e01b75663a516279c8b9d243b719643e")),
            "artifacts" => assert_eq!(stdout, "wrote 6 artifacts\n"),
            "big-output" => {
                assert_eq!(stdout.chars().count(), 1_000_000);
                assert!(stdout.starts_with("1\n2\n") && stdout.ends_with("299999\n300000\n"));
            }
            "environment" => assert_eq!(stdout, "hello, horde, in formation\n"),
            other => panic!("an unknown job {other}"),
        }
    }
}

#[test]
fn every_job_completes_and_nothing_is_left() {
    let scratch = tempfile::tempdir().unwrap();
    check_jobs(&run(&mut demo(scratch.path(), "process", 12)), 12);
    nothing_left(scratch.path());
}

#[test]
fn the_table_shows_each_job() {
    let scratch = tempfile::tempdir().unwrap();
    let finished = run(phalanx(scratch.path()).args(["demo", "--runner", "process"]));
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    for expected in
        ["word-count", "completed  exit 0", "execution_done", "| hello, horde, in formation", "1000000 characters"]
    {
        assert!(finished.stdout.contains(expected), "{expected} is not in\n{}", finished.stdout);
    }
    let longest = finished.stdout.lines().map(|line| line.chars().count()).max().unwrap();
    assert!(finished.stdout.lines().count() < 60 && longest < 250, "{}", finished.stdout);
    assert!(finished.stdout.contains("\n    artifact /artifacts/square-5.txt, 3 bytes\n"), "{}", finished.stdout);
    nothing_left(scratch.path());
}

#[test]
fn all_that_jobs_wrote_is_shown_and_kept() {
    let (scratch, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let kept = folder.path().join("kept");
    let mut command = phalanx(scratch.path());
    let finished = run(command.args(["demo", "--runner", "process", "--full", "--output"]).arg(&kept));
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    assert!(finished.stdout.contains("\n    | 2\n    | 3\n    | 4\n") && finished.stdout.ends_with('\n'));
    let folders: Vec<_> = std::fs::read_dir(&kept).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(folders.len(), 5, "{folders:?}");
    let sizes = |name: &str| -> Vec<u64> {
        let mut sizes: Vec<u64> =
            folders.iter().filter_map(|folder| Some(folder.join(name).metadata().ok()?.len())).collect();
        sizes.sort_unstable();
        sizes
    };
    // The last is a million characters, one of which is not of one byte.
    let outputs = sizes("stdout");
    assert!(outputs.len() == 5 && outputs[4] >= 1_000_000, "{outputs:?}");
    assert_eq!((sizes("stderr"), sizes("artifacts/square-5.txt")), (vec![0; 5], vec![3]));
    nothing_left(scratch.path());
}

#[test]
fn a_signal_at_any_moment_leaves_nothing() {
    let seed = Rng::from_entropy().next_u64();
    println!("seed {seed}");
    let mut rng = Rng::new(seed);
    for round in 0..16 {
        let scratch = tempfile::tempdir().unwrap();
        let running = Running::start(&mut demo(scratch.path(), "process", 200));
        let moment = Duration::from_millis(rng.next_u64() % 1500);
        let at = format!("seed {seed}, round {round}, after {moment:?}");
        assert!(!running.ended_within(moment), "{at}: ended before the signal");
        let signal = if rng.one_in(2) { Signal::INT } else { Signal::TERM };
        let finished = running.stop(signal);
        // Before its handler is installed, the signal ends the process at once, and there is nothing to leave.
        assert!(matches!(finished.code, Some(1) | None), "{at}: {finished:?}");
        nothing_left(scratch.path());
    }
}

#[test]
fn an_output_that_nobody_reads_does_not_hold_it() {
    let scratch = tempfile::tempdir().unwrap();
    let mut command = demo(scratch.path(), "process", 50);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    // Its first line is longer than a pipe, or the second is; after a byte of it nothing is read any more.
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut [0]).unwrap();
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, Signal::INT).unwrap();
    let fd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap();
    let limit = rustix::event::Timespec::try_from(LONG).unwrap();
    let mut ready = [rustix::event::PollFd::new(&fd, rustix::event::PollFlags::IN)];
    assert_eq!(rustix::event::poll(&mut ready, Some(&limit)).unwrap(), 1, "it does not end");
    assert_eq!(child.wait().unwrap().code(), Some(1));
    drop(stdout);
    nothing_left(scratch.path());
}

fn docker_is_here() -> bool {
    let engine = Command::new("docker").args(["version"]).output().is_ok_and(|o| o.status.success());
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].iter().any(|p| Path::new(p).exists());
    if engine && busybox {
        return true;
    }
    assert!(std::env::var_os("PHALANX_TEST_REQUIRE_ALL").is_none(), "a Docker Engine and busybox-static are required");
    println!("SKIPPED: no Docker Engine or no static busybox");
    false
}

/// The containers that have a folder of the run mounted, as each job's has; others are not ours.
fn containers(scratch: &Path) -> Vec<String> {
    let format = "{{.Names}} {{.Status}} {{.Mounts}}";
    let list = ["ps", "--all", "--no-trunc", "--filter", "label=phalanx.job", "--format", format];
    let list = String::from_utf8(Command::new("docker").args(list).output().unwrap().stdout).unwrap();
    list.lines().filter(|line| line.contains(scratch.to_str().unwrap())).map(str::to_owned).collect()
}

#[test]
fn in_containers_too() {
    if !docker_is_here() {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    check_jobs(&run(&mut demo(scratch.path(), "docker", 5)), 5);
    nothing_left(scratch.path());
    let seed = Rng::from_entropy().next_u64();
    println!("seed {seed}");
    let mut rng = Rng::new(seed);
    for round in 0..4 {
        let scratch = tempfile::tempdir().unwrap();
        let running = Running::start(&mut demo(scratch.path(), "docker", 100));
        let moment = Duration::from_millis(200 + rng.next_u64() % 2500);
        let at = format!("seed {seed}, round {round}, after {moment:?}");
        assert!(!running.ended_within(moment), "{at}: ended before the signal");
        let finished = running.stop(Signal::INT);
        assert_eq!(finished.code, Some(1), "{at}: {finished:?}");
        nothing_left(scratch.path());
        assert_eq!(containers(scratch.path()), [] as [&str; 0], "{at}");
    }
}

#[test]
fn a_wrong_flag_is_one_line() {
    let scratch = tempfile::tempdir().unwrap();
    for (args, expected) in [
        (["--jobs", "0"], "--jobs is 0; it should be from 1 to 10000"),
        (["--jobs", "many"], "invalid value 'many' for '--jobs <N>'"),
        (["--runner", "vm"], "invalid value 'vm' for '--runner <RUNNER>'"),
        (["--raw", "--json"], "the argument '--raw' cannot be used with '--json'"),
        (["--output", "/dev/null/x"], "--output /dev/null/x: "),
    ] {
        let finished = run(phalanx(scratch.path()).arg("demo").args(args));
        assert_eq!(finished.code, Some(2));
        assert!(finished.stderr.starts_with("error: ") && finished.stderr.contains(expected), "{}", finished.stderr);
        assert_eq!(finished.stderr.lines().count(), 1, "{}", finished.stderr);
        assert_eq!(finished.stdout, "");
    }
    nothing_left(scratch.path());
}
