//! The binary as process 1 of a process namespace, as in a container without an init.

use crate::testkit::process::{Running, in_scratch, nothing_left, run};
use crate::testkit::wait::until;
use std::path::Path;
use std::process::Command;

use rustix::process::{Pid, Signal, kill_process};

/// The binary as process 1; `None` if this user may not make namespaces.
fn as_process_1(scratch: &Path) -> Option<Command> {
    let probe = Command::new("unshare").args(["-pf", "--mount-proc", "true"]).output();
    if !probe.is_ok_and(|output| output.status.success()) {
        assert!(std::env::var_os("PHALANX_TEST_REQUIRE_ALL").is_none(), "required, but there are no namespaces");
        println!("SKIPPED: this user may not make process namespaces");
        return None;
    }
    let mut command = in_scratch(Command::new("unshare"), scratch);
    command.args(["-pf", "--mount-proc", env!("CARGO_BIN_EXE_phalanx")]);
    Some(command)
}

/// The children of a process: number, state and name of each.
fn children(pid: u32) -> Vec<(u32, char, String)> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let numbers = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let child = |number: u32| {
        let stat = std::fs::read_to_string(format!("/proc/{number}/stat")).ok()?;
        let (name, rest) = (stat.split(['(', ')']).nth(1)?.to_owned(), stat.rsplit(')').next()?.trim().to_owned());
        let mut fields = rest.split(' ');
        let (state, parent) = (fields.next()?.chars().next()?, fields.next()?.parse::<u32>().ok()?);
        (parent == pid).then_some((number, state, name))
    };
    numbers.filter_map(child).collect()
}

#[test]
fn process_1_waits_for_orphans_and_hands_signals_and_exit_codes_on() {
    let scratch = tempfile::tempdir().unwrap();
    let Some(mut command) = as_process_1(scratch.path()) else { return };
    assert_eq!(run(command.arg("--version")).code, Some(0));
    let mut command = as_process_1(scratch.path()).unwrap();
    let refused = run(command.args(["miner", "--no-such-flag"]));
    assert!(refused.code == Some(2) && refused.stderr.contains("--no-such-flag"), "{refused:?}");

    let folder = tempfile::tempdir().unwrap();
    let mut command = as_process_1(scratch.path()).unwrap();
    command.args(["miner", "--listen", "127.0.0.1:0", "--key", "//Bob", "--runner", "process", "--executors"]);
    command.args(["always_on.test=1", "--validator", "5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY"]);
    command.arg("--state-dir").arg(folder.path());
    let mut running = Running::start(&mut command);
    running.line();
    let first = children(running.id())[0].0;
    // A process in the namespace whose parent ends at once becomes a child of process 1, and ends too.
    let orphan = ["-t", &first.to_string(), "-p", "-m", "sh", "-c", "sh -c 'exec sleep 0.2' & exit 0"];
    for _ in 0..3 {
        assert!(Command::new("nsenter").args(orphan).status().unwrap().success());
    }
    until("the orphans are gone, not zombies", || children(first).iter().all(|(_, _, name)| name == "phalanx"));
    // The program, and its watcher, which is nobody else's child.
    let programs = children(first);
    assert_eq!(programs.len(), 2, "{programs:?}");
    assert!(programs.iter().all(|(_, state, _)| *state != 'Z'), "{programs:?}");
    kill_process(Pid::from_raw(first as i32).unwrap(), Signal::TERM).unwrap();
    let finished = running.finish();
    assert_eq!(finished.code, Some(0), "{finished:?}");
    nothing_left(scratch.path());
}
