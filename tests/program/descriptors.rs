//! A miner at the end of its descriptors.

use std::fs;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, Signal, prlimit};

use crate::miner_restart::with_a_running_job;
use crate::process::{ALICE, result, start_miner, status_of_a_job};
use crate::testkit::process::{Running, in_scratch};
use crate::testkit::transport::{REQUEST, raw_client, read_head};
use crate::testkit::wait::until;

#[test]
fn the_soft_limit_of_descriptors_is_raised_to_the_hard_one() {
    let folder = tempfile::tempdir().unwrap();
    let mut miner = in_scratch(Command::new("sh"), folder.path());
    miner.args(["-c", "ulimit -Sn 100 && ulimit -Hn 300 && exec \"$@\"", "sh", env!("CARGO_BIN_EXE_phalanx"), "miner"]);
    miner.args(["--listen", "127.0.0.1:0", "--validator", ALICE, "--executors", "always_on.test=1"]);
    miner.args(["--runner", "process", "--state-dir"]).arg(folder.path().join("miner")).env("PHALANX_KEY", "//Bob");
    let mut miner = Running::start(&mut miner);
    miner.line();
    let limits = fs::read_to_string(format!("/proc/{}/limits", miner.id())).unwrap();
    let files = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    assert_eq!(files.split_whitespace().collect::<Vec<_>>()[3..5], ["300", "300"]);
    assert_eq!(miner.stop(Signal::TERM).code, Some(0));
}

#[test]
fn without_descriptors_a_miner_serves_who_is_there_says_so_once_in_ten_seconds_and_accepts_again() {
    let (network, folder, submit, _) = with_a_running_job(&["--runner", "process"]);

    // From now on there are no more than it has, and some for a connection or two.
    let open = fs::read_dir(format!("/proc/{}/fd", network.miner.id())).unwrap().count() as u64;
    let limit = Rlimit { current: Some(open + 5), maximum: Some(open + 5) };
    prlimit(Some(Pid::from_raw(network.miner.id() as i32).unwrap()), Resource::Nofile, limit).unwrap();
    let address: SocketAddr = network.listening.parse().unwrap();
    let began = Instant::now();
    let clients: Vec<_> = (0..64).map(|_| raw_client(address)).collect();
    let warnings = || {
        let log = network.miner.stderr();
        log.lines().filter(|line| line.contains("cannot accept")).map(str::to_owned).collect::<Vec<_>>()
    };
    until("the miner cannot accept", || !warnings().is_empty());

    // The validator and the executor that were there are as before.
    fs::write(folder.join("go"), "").unwrap();
    assert_eq!(result(&submit.finish().stdout)["status"], "completed");

    until("it says so again", || warnings().len() > 1);
    assert!(began.elapsed() >= Duration::from_secs(10), "{:?}", warnings());
    let [first, second] = warnings().try_into().unwrap();
    assert!(first.ends_with("Too many open files (os error 24)"), "{first}");
    let more = second.split_once("(and ").unwrap().1.split_once(" more like it)").unwrap().0;
    assert!(more.parse::<u32>().unwrap() > 10, "it tried again and again: {second}");

    drop(clients);
    let mut client = raw_client(address);
    client.write_all(b"GET /version HTTP/1.1\r\nHost: h\r\n\r\n").unwrap();
    assert!(read_head(&mut client).starts_with("HTTP/1.1 200 "));
    drop(client);
    // Both slots are there again.
    assert_eq!([status_of_a_job(&network), status_of_a_job(&network)], ["completed", "completed"]);
    assert_eq!(network.stop(Signal::TERM), [Some(0); 3]);
}

#[test]
fn strangers_that_come_again_and_again_are_one_line_in_ten_seconds() {
    let (folder, scratch) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (miner, listening) =
        start_miner((folder.path(), scratch.path()), "127.0.0.1:0", false, &["--runner", "process"]);
    let began = Instant::now();
    for _ in 0..100 {
        let mut client = raw_client(listening.parse().unwrap());
        let request = REQUEST.replace("GET / ", "GET /v0.1/executor_interface/nobody ");
        client.write_all(request.as_bytes()).unwrap();
        assert!(read_head(&mut client).starts_with("HTTP/1.1 101 "));
        // It is turned away, with a word and a close.
        assert!(client.read(&mut [0; 256]).unwrap() > 0);
    }
    let finished = miner.stop(Signal::TERM);
    let lines = finished.stderr.lines().filter(|line| line.contains("no job waits for its token")).count();
    assert!((1..=1 + began.elapsed().as_secs() as usize / 10).contains(&lines), "{lines}: {}", finished.stderr);
    assert_eq!(finished.code, Some(0));
}
