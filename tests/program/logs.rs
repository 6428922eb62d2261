//! The log of the real binary: nobody waits for its reader, and its lines say how bad what they tell is.

use std::fs::File;
use std::io::{BufRead, BufReader, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use phalanx::base::lock::lock;
use phalanx::base::shutdown::Shutdown;
use phalanx::base::thread::{Kick, spawn};
use phalanx::net::http::HttpClient;
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::process::Signal;
use serde_json::Value;

use crate::process::ALICE;
use crate::testkit::network::{NO_OP, Network};
use crate::testkit::process::{Running, phalanx};
use crate::testkit::wait::{LONG, far, until};

/// A pipe that takes nothing more.
fn full_pipe() -> (PipeReader, PipeWriter) {
    let (reader, mut writer) = std::io::pipe().unwrap();
    let flags = fcntl_getfl(&writer).unwrap();
    fcntl_setfl(writer.as_fd(), flags | OFlags::NONBLOCK).unwrap();
    while writer.write(&[b'.'; 4096]).is_ok() {}
    while writer.write(b".").is_ok() {}
    // Else a write of the program would fail in place of waiting.
    fcntl_setfl(writer.as_fd(), flags).unwrap();
    (reader, writer)
}

/// A validator that has no facilitator.
fn validator(scratch: &Path, folder: &Path) -> Command {
    let mut command = phalanx(scratch);
    command.args(["validator", "--facilitator", "ws://127.0.0.1:1/", "--key", "//Alice", "--dispatch", "stub"]);
    command.args(["--http", "127.0.0.1:0", "--state-dir"]).arg(folder);
    command
}

/// Where a role's pages are.
fn pages(role: &mut Running) -> String {
    let line: Value = serde_json::from_str(&role.line()).unwrap();
    format!("http://{}", line["http"].as_str().unwrap())
}

fn get(url: &str) -> String {
    let answer = HttpClient::new(Shutdown::new()).get(url, &[], far()).unwrap();
    String::from_utf8(answer.body).unwrap()
}

/// How many lines the role has dropped.
fn dropped(pages: &str) -> u64 {
    let metrics = get(&format!("{pages}/metrics"));
    let line = metrics.lines().find_map(|line| line.strip_prefix("phalanx_log_lines_dropped_total "));
    line.expect("the metric").parse().unwrap()
}

/// Has the role log a hundred long lines: some three hundred are more than wait for a reader.
fn fill(pages: &str) {
    let long = "x".repeat(6000);
    (0..100).for_each(|_| drop(get(&format!("{pages}/{long}"))));
}

fn folders() -> (tempfile::TempDir, tempfile::TempDir) {
    (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap())
}

#[test]
fn a_stderr_that_nobody_reads_holds_up_nothing() {
    let (scratch, folder) = folders();
    let (mut reader, writer) = full_pipe();
    let mut command = validator(scratch.path(), folder.path());
    let mut role = Running::start_saying(command.env("RUST_LOG", "trace"), Stdio::from(OwnedFd::from(writer)));
    let pages = pages(&mut role);
    until("lines are dropped", || {
        assert_eq!(get(&format!("{pages}/healthz")), "ok\n");
        fill(&pages);
        dropped(&pages) > 0
    });
    role.signal(Signal::TERM);
    assert!(role.ended_within(LONG), "a stop waits for a reader");
    assert_eq!(role.finish().code, Some(0));
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert!(text.trim_matches('.').is_empty(), "a full pipe takes nothing: {text}");
}

#[test]
fn a_reader_that_comes_back_is_told_how_many_lines_are_missing() {
    let (scratch, folder) = folders();
    let (reader, writer) = full_pipe();
    let mut command = validator(scratch.path(), folder.path());
    let mut role = Running::start_saying(command.env("RUST_LOG", "trace"), Stdio::from(OwnedFd::from(writer)));
    let pages = pages(&mut role);
    until("lines are dropped", || {
        fill(&pages);
        dropped(&pages) > 0
    });
    let said = Arc::<Mutex<String>>::default();
    let heard = said.clone();
    let reader = spawn("t-reader", Kick::dropped("the process"), move || {
        for line in BufReader::new(reader).lines() {
            *lock(&heard) += &(line.unwrap() + "\n");
        }
    });
    // Whether lines are missing is told with the next one that finds room.
    until("the gap is told of", || {
        get(&format!("{pages}/readyz"));
        lock(&said).contains("missing here")
    });
    assert_eq!(role.stop(Signal::TERM).code, Some(0));
    reader.join_by(Instant::now() + LONG).unwrap();
    let text = lock(&said).clone();
    let told = text.lines().filter(|line| line.contains("missing here: stderr could not take them"));
    let told: Vec<_> = told.collect();
    assert!(!told.is_empty() && told.iter().all(|line| line.contains(" WARN ")), "{told:?}");
    let stop = text.lines().last().unwrap();
    assert!(stop.contains("stop: signals took"), "{stop}");
}

#[test]
fn a_full_stderr_holds_up_no_usage_error_and_no_exit_at_once() {
    let (scratch, folder) = folders();
    let (_reader, writer) = full_pipe();
    let mut wrong = phalanx(scratch.path());
    let writer = OwnedFd::from(writer);
    let wrong = Running::start_saying(wrong.arg("--no-such-flag"), Stdio::from(writer.try_clone().unwrap()));
    assert_eq!(wrong.finish().code, Some(2));
    let mut command = validator(scratch.path(), folder.path());
    let mut role = Running::start_saying(command.env("RUST_LOG", "trace"), Stdio::from(writer));
    pages(&mut role);
    assert_eq!(role.stop(Signal::QUIT).code, Some(130));
}

#[test]
fn a_stderr_that_is_gone_or_full_for_good_is_no_error() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let full = File::options().write(true).open("/dev/full").unwrap();
    for stderr in [Stdio::from(OwnedFd::from(writer)), Stdio::from(full)] {
        let (scratch, folder) = folders();
        let mut command = validator(scratch.path(), folder.path());
        let mut role = Running::start_saying(command.env("RUST_LOG", "debug"), stderr);
        let pages = pages(&mut role);
        until("lines are counted", || dropped(&pages) > 0);
        assert_eq!(get(&format!("{pages}/healthz")), "ok\n");
        assert_eq!(role.stop(Signal::TERM).code, Some(0));
    }
}

#[test]
fn a_stdout_that_nobody_reads_does_not_keep_a_role_from_ending() {
    let (scratch, folder) = folders();
    let (_reader, writer) = full_pipe();
    let mut command = validator(scratch.path(), folder.path());
    let mut child = command.stdout(OwnedFd::from(writer)).stderr(Stdio::piped()).spawn().unwrap();
    // It has installed its handlers before it has threads for them.
    let threads = format!("/proc/{}/task", child.id());
    until("the role waits for a reader", || {
        let tasks = std::fs::read_dir(&threads).unwrap();
        tasks.flatten().any(|task| {
            std::fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name.starts_with("val-http"))
        })
    });
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), Signal::TERM).unwrap();
    let mut text = String::new();
    child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0), "{text}");
    assert!(text.contains("stdout did not take the line {\"http\":"), "{text}");
}

#[test]
fn the_first_line_of_a_role_is_that_it_is_ready() {
    let (scratch, folder) = folders();
    let (mut reader, writer) = std::io::pipe().unwrap();
    let writer = OwnedFd::from(writer);
    let mut command = validator(scratch.path(), folder.path());
    command.env("RUST_LOG", "trace").stdout(writer.try_clone().unwrap()).stderr(writer);
    let mut child = command.spawn().unwrap();
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut first = Vec::new();
    while first.last() != Some(&b'\n') {
        let mut byte = [0];
        reader.read_exact(&mut byte).unwrap();
        first.push(byte[0]);
    }
    assert!(first.starts_with(b"{\"http\":"), "{}", String::from_utf8_lossy(&first));
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), Signal::TERM).unwrap();
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert!(text.contains("thread timer starts"), "what was logged before is there: {text}");
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_word_in_rust_log_that_names_nothing_silences_nothing() {
    for (asked, problem) in [
        ("foo", "RUST_LOG names nothing of this program, so its logs stay as by \"info\""),
        ("info,phalanx::lnk=debug", "RUST_LOG: there is no module \"lnk\" in phalanx; there are app, "),
        ("inof", "RUST_LOG names nothing of this program"),
    ] {
        let (scratch, folder) = folders();
        let mut role = Running::start(validator(scratch.path(), folder.path()).env("RUST_LOG", asked));
        role.line();
        let finished = role.stop(Signal::TERM);
        assert_eq!(finished.code, Some(0));
        for said in [problem, "SIGTERM: finishing what runs", "stopped in "] {
            assert!(finished.stderr.contains(said), "{asked}, {said}: {}", finished.stderr);
        }
    }
}

#[test]
fn a_list_of_threads_that_is_asked_for_is_information_whatever_the_filter() {
    let (scratch, folder) = folders();
    let mut role = Running::start(validator(scratch.path(), folder.path()).env("RUST_LOG", "off"));
    role.line();
    role.signal(Signal::USR1);
    until("the threads are listed", || role.stderr().contains("thread signals"));
    let finished = role.stop(Signal::TERM);
    for line in finished.stderr.lines() {
        let is_thread = line.contains(" INFO  [signals] thread ") && line.contains(", kick: ");
        assert!(is_thread || line.contains(" INFO  [signals] the flight recorder is in "), "{line}");
    }
}

#[test]
fn each_role_tells_of_a_job_once_and_executors_lines_keep_their_level() {
    let folder = tempfile::tempdir().unwrap();
    let good = folder.path().join("good");
    std::fs::write(&good, "").unwrap();
    // A machine that is in order as long as there is that file.
    let hook = format!("test -e {}", good.display());
    let network = Network::start_with("info", "text", |miner| {
        miner.args(["--runner", "process", "--before-job", &hook]);
    });
    let (uuid, _) = network.job(NO_OP);
    std::fs::remove_file(&good).unwrap();
    let failed = network.end_of(&serde_json::from_str(NO_OP).unwrap());
    assert_eq!(failed["status"], "horde_failed", "{failed}");
    let other = failed["uuid"].as_str().unwrap().to_owned();
    for (role, stderr) in network.stop() {
        let about = |uuid: &str, what: &str| -> Vec<String> {
            let job = format!("] job {uuid}: ");
            stderr.lines().filter(|line| line.contains(&job) && line.contains(what)).map(str::to_owned).collect()
        };
        match role {
            "facilitator" => {
                let ends = about(&uuid, "");
                let end = format!("] job {uuid}: ended as completed, validator {ALICE}");
                assert!(ends.len() == 1 && ends[0].contains(" INFO ") && ends[0].ends_with(&end), "{ends:?}");
            }
            "validator" => assert_eq!(about(&uuid, ": ended as completed, ").len(), 1, "{stderr}"),
            _ => {
                let lines = about(&other, "executor says: ");
                assert!(lines.iter().any(|line| line.contains(" WARN  [min-ex-")), "{stderr}");
                for line in &lines {
                    // No time, level and thread of the executor's own, and the job once.
                    assert!(line.matches(&other).count() == 1 && line.matches(" [").count() == 1, "{line}");
                }
            }
        }
    }
}
