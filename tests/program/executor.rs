//! Executors of a network of real processes: what their machine and their operator's settings do to jobs.

use crate::testkit::miner::{Pen, uuid};
use crate::testkit::network::{NO_OP, Network};
use crate::testkit::process::{Running, phalanx, run};
use crate::testkit::wait::until;
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;

use phalanx::protocol::{MinerToExecutor, V0InitialJobRequest, V0JobRequest};
use rustix::process::Signal;
use serde_json::{Value, json};

/// What the miner remembers of a job: each event, and when it was.
fn trace(network: &Network, uuid: &str) -> Vec<(String, f64)> {
    let mut command = phalanx(network.scratch.path());
    let shown = run(command.args(["job", "trace", uuid, "--http", network.pages("miner"), "--json"]));
    let traces: Value = serde_json::from_str(&shown.stdout).unwrap_or_else(|error| panic!("{error}: {shown:?}"));
    let events = traces["jobs"][0]["events"].as_array().unwrap();
    events.iter().map(|line| (line["event"].as_str().unwrap().to_owned(), line["seconds"].as_f64().unwrap())).collect()
}

#[test]
fn a_tool_that_hangs_while_the_machine_is_described_delays_no_result() {
    let tools = tempfile::tempdir().unwrap();
    let (nvidia, asked) = (tools.path().join("nvidia-smi"), tools.path().join("asked"));
    // A driver that is broken; it is not even ended by SIGTERM.
    let script = format!("#!/bin/sh\ntrap '' TERM\necho >>{}\nwhile true; do sleep 1000; done\n", asked.display());
    fs::write(&nvidia, script).unwrap();
    fs::set_permissions(&nvidia, fs::Permissions::from_mode(0o755)).unwrap();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths([tools.path().to_owned()].into_iter().chain(std::env::split_paths(&path))).unwrap();
    let network = Network::start_with("info", "text", |miner| {
        miner.args(["--runner", "process"]).env("PATH", &path);
    });
    let (uuid, _) = network.job(NO_OP);
    let asked = fs::read_to_string(asked).unwrap();
    assert_eq!(asked, "\n", "the machine is described once for each executor");
    let trace = trace(&network, &uuid);
    let at = |event: &str| trace.iter().find(|(name, _)| name == event).map(|(_, at)| *at);
    assert_eq!(at("machine_specs"), None, "the result waited for the machine: {trace:?}");
    // It would be 5 s until the tool is given up.
    let waited = at("ended").unwrap() - at("execution_done").unwrap();
    assert!(waited < 2.5, "{waited} s: {trace:?}");
    network.stop();
}

#[test]
fn a_job_that_asks_for_more_time_than_the_operator_allows_is_declined_in_words() {
    let network = Network::start_with("info", "text", |miner| {
        miner.args(["--runner", "process", "--max-job-time", "1m"]);
    });
    let mut job: Value = serde_json::from_str(NO_OP).unwrap();
    for (execution, status) in [(61, "rejected"), (30, "completed")] {
        job["execution_time_limit"] = json!(execution);
        for limit in ["download_time_limit", "upload_time_limit", "streaming_start_time_limit"] {
            job[limit] = json!(0);
        }
        job["upload_time_limit"] = json!(10);
        job["download_time_limit"] = json!(10);
        let end = network.end_of(&job);
        assert_eq!(end["status"], status, "{end}");
        let why = "its limits are 81 s together; this miner takes jobs of at most 60 s";
        assert_eq!(end.to_string().contains(why), status == "rejected", "{end}");
    }
    network.stop();
    let scratch = tempfile::tempdir().unwrap();
    let refused = run(phalanx(scratch.path())
        .args(["executor", "--max-job-time", "0s"])
        .env("MINER_ADDRESS", "ws://m")
        .env("EXECUTOR_TOKEN", "t"));
    assert_eq!(refused.code, Some(2), "{refused:?}");
}

#[test]
fn an_executor_whose_miner_is_gone_keeps_the_end_of_its_job_and_ends_with_5() {
    let (scratch, spool) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let miner = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut command = phalanx(scratch.path());
    command.args(["executor", "--runner", "process", "--spool-dir"]).arg(spool.path()).env("EXECUTOR_TOKEN", "token");
    command.env("MINER_ADDRESS", format!("ws://{}", miner.local_addr().unwrap()));
    let executor = Running::start(&mut command);
    let (stream, _) = miner.accept().unwrap();
    let mut link = tungstenite::accept(stream).unwrap();
    let (pen, job) = (Pen::new("//Alice"), uuid());
    let asked = pen.initial(&job);
    let initial = MinerToExecutor::from(V0InitialJobRequest { timeout_seconds: None, ..asked });
    link.send(initial.encode().into()).unwrap();
    let until_said = |link: &mut tungstenite::WebSocket<_>, kind: &str| loop {
        let message: tungstenite::Message = link.read().unwrap();
        if message.is_text() && message.to_text().unwrap().contains(kind) {
            return;
        }
    };
    until_said(&mut link, "V0ExecutorReadyRequest");
    let full = V0JobRequest { docker_run_cmd: vec!["sleep".to_owned(), "600".to_owned()], ..pen.full(&job) };
    link.send(MinerToExecutor::from(full).encode().into()).unwrap();
    until_said(&mut link, "V0VolumesReadyRequest");
    drop((link, miner));
    // The first leaves the job to its miner, the second cancels it; it has a second for its last message then.
    executor.signal(Signal::TERM);
    until("the first signal is seen", || executor.stderr().contains("a second signal cancels it"));
    let finished = executor.stop(Signal::TERM);
    assert_eq!(finished.code, Some(5), "{}", finished.stderr);
    assert_eq!(fs::read_dir(spool.path()).unwrap().count(), 1, "{}", finished.stderr);
}
