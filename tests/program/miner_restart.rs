//! A miner that is killed and started again on its state folder: what runs goes on, what is gone is cleaned up.

use std::path::{Path, PathBuf};

use rusqlite::Connection;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::process::{NO_OP, Network, result, start_miner, status_of_a_job};
use crate::testkit::process::{Running, run};
use crate::testkit::wait::{LONG, until};

/// A job that says when it runs, and goes on when it may.
fn job(folder: &Path) -> String {
    let script = "touch begun; while [ ! -e go ]; do sleep 0.05; done; echo went on".to_owned();
    let script = script.replace("begun", &at(folder, "begun")).replace("-e go", &format!("-e {}", at(folder, "go")));
    let job = json!({
        "executor_class": "always_on.test",
        "docker_image": "x",
        "args": ["sh", "-c", script],
        "execution_time_limit": 600,
    });
    job.to_string()
}

fn at(folder: &Path, name: &str) -> String {
    folder.join(name).display().to_string()
}

/// Processes whose command line has this.
fn processes_with(text: &str) -> Vec<i32> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let numbers = processes.filter_map(|entry| entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()));
    let has = |pid: &i32| {
        // A process may end while it is looked at.
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        *pid != std::process::id() as i32 && String::from_utf8_lossy(&line).replace('\0', " ").contains(text)
    };
    numbers.filter(has).collect()
}

/// Processes of the network's temporary folder whose command line has this.
fn processes_in(scratch: &Path, text: &str) -> Vec<i32> {
    let scratch = scratch.display().to_string();
    let environ = |pid: &i32| std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    processes_with(text).into_iter().filter(|pid| String::from_utf8_lossy(&environ(pid)).contains(&scratch)).collect()
}

impl Network {
    /// Kills the miner, and whatever else, as one blow; starts it again on the same folder and port.
    pub fn miner_again(&mut self, killed_too: &[i32], arguments: &[&str]) -> String {
        self.miner.signal(Signal::KILL);
        for pid in killed_too {
            kill_process(Pid::from_raw(*pid).unwrap(), Signal::KILL).unwrap();
        }
        assert!(self.miner.ended_within(LONG));
        let folders = (self.folder.path(), self.scratch.path());
        let (miner, _) = start_miner(folders, &self.listening, false, arguments);
        let before = std::mem::replace(&mut self.miner, miner);
        // Its executor may still have the pipe that it wrote to.
        drop(before);
        self.listening.clone()
    }
}

/// A network whose job runs: with its folder, who waits for it, and its executor.
pub fn with_a_running_job(miner_arguments: &[&str]) -> (Network, PathBuf, Running, Vec<i32>) {
    let network = Network::start_with(false, miner_arguments);
    let folder = network.folder.path().to_owned();
    let submit = Running::start(&mut network.submit(&job(&folder)));
    until("the job runs", || folder.join("begun").exists());
    let executors = processes_in(network.scratch.path(), "phalanx executor");
    assert_eq!(executors.len(), 1);
    (network, folder, submit, executors)
}

#[test]
fn a_running_job_goes_on_when_its_miner_was_killed() {
    let (mut network, folder, submit, executors) = with_a_running_job(&["--runner", "process"]);
    network.miner_again(&[], &["--runner", "process"]);
    assert_eq!(processes_in(network.scratch.path(), "phalanx executor"), executors, "it lives, and there is no other");
    std::fs::write(folder.join("go"), "").unwrap();
    let submitted = submit.finish();
    let ended = result(&submitted.stdout);
    assert_eq!((ended["status"].as_str(), ended["stdout"].as_str()), (Some("completed"), Some("went on\n")), "{ended}");
    // Both slots are there again.
    assert_eq!([status_of_a_job(&network), status_of_a_job(&network)], ["completed", "completed"]);
    assert_eq!(network.stop(Signal::TERM), [Some(0); 3]);
}

#[test]
fn what_a_killed_tree_has_left_is_removed_by_the_next_start_and_its_job_fails() {
    let (mut network, folder, submit, executors) = with_a_running_job(&["--runner", "process"]);
    // The job itself is in a group of its own, and lives on.
    let jobs = || processes_with(&at(&folder, "go"));
    assert!(!jobs().is_empty());
    network.miner_again(&executors, &["--runner", "process"]);
    until("the job is ended", || jobs().is_empty());
    let submitted = submit.finish();
    let ended = result(&submitted.stdout);
    assert_eq!(ended["status"], "horde_failed");
    assert!(ended["error"].as_str().unwrap().contains("ended while its miner did not run"), "{ended}");
    assert_eq!(status_of_a_job(&network), "completed");
    // Nothing is left in the temporary folder, which the stop asserts.
    assert_eq!(network.stop(Signal::TERM), [Some(0); 3]);
}

#[test]
fn an_executor_whose_miner_does_not_come_back_ends_and_leaves_nothing() {
    let arguments = ["--runner", "process", "--miner-gone-after", "1s"];
    let (mut network, folder, submit, _) = with_a_running_job(&arguments);
    network.miner.signal(Signal::KILL);
    until("the executor is gone", || processes_in(network.scratch.path(), "phalanx executor").is_empty());
    assert!(processes_with(&at(&folder, "go")).is_empty(), "its job is gone before it");
    assert_eq!(std::fs::read_dir(network.scratch.path()).unwrap().count(), 0);
    network.miner_again(&[], &arguments);
    assert_eq!(result(&submit.finish().stdout)["status"], "horde_failed");
    assert_eq!(network.stop(Signal::TERM), [Some(0); 3]);
}

#[test]
fn a_miner_that_is_killed_as_it_accepts_a_job_has_no_job_without_its_receipt() {
    let mut network = Network::start(false);
    let database = Connection::open(network.folder.path().join("miner/miner.db")).unwrap();
    let count = |sql: &str| database.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap();
    let without = "SELECT count(*) FROM jobs WHERE NOT EXISTS (SELECT 1 FROM receipts WHERE job_uuid = jobs.uuid
                   AND validator_hotkey = jobs.validator AND kind = 'JobStartedReceipt')";
    for round in 1..=8 {
        let submit = Running::start(&mut network.submit(NO_OP));
        // As soon as it is there, so that little can follow before the blow.
        until("a job is on disk", || (0..100).any(|_| count("SELECT count(*) FROM jobs") > 0));
        network.miner.signal(Signal::KILL);
        assert!(network.miner.ended_within(LONG));
        assert_eq!(count(without), 0, "round {round}");
        network.miner_again(&[], &["--runner", "process"]);
        let submitted = submit.finish();
        let status = result(&submitted.stdout)["status"].as_str().unwrap().to_owned();
        assert!(["completed", "horde_failed"].contains(&status.as_str()), "{}", submitted.stdout);
        until("nothing is left of it", || count("SELECT count(*) FROM jobs") == 0);
    }
    drop(database);
    assert_eq!(network.stop(Signal::TERM), [Some(0); 3]);
}

#[test]
fn two_miners_on_one_state_folder_are_refused_in_one_line() {
    let network = Network::start(false);
    let mut second = crate::testkit::process::phalanx(network.scratch.path());
    second.args(["miner", "--listen", "127.0.0.1:0", "--executors", "always_on.test=1", "--runner", "process"]);
    second.args(["--validator", "5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY", "--state-dir"]);
    let finished = run(second.arg(network.folder.path().join("miner")).env("PHALANX_KEY", "//Bob"));
    assert_eq!(finished.code, Some(1), "{}", finished.stderr);
    let says = format!("is in use by process {}", network.miner.id());
    assert!(finished.stderr.contains(&says), "{}", finished.stderr);
    assert_eq!(network.stop(Signal::TERM), [Some(0); 3]);
}
