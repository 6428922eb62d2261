//! The official Python client of miners, `OrganicMinerClient`, against our miner with our executors as real processes.
//!
//! Skipped without the Python environment, see `testkit/python.rs`.

use crate::testkit::wait::LONG;
use crate::testkit::{engine, python};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use phalanx::base::stop::Stopping;
use phalanx::base::thread::Group;
use phalanx::base::timer::Timer;
use phalanx::identity::KeyPair;
use phalanx::miner::{DATABASE, ExecutorSettings, Miner, MinerConfig, ProcessBackend};
use phalanx::proc::docker::labels;
use phalanx::protocol::{ExecutorClass, Receipt, ReceiptPayload};
use phalanx::store::receipts::ReceiptStore;
use phalanx::transport::ws::WsListener;
use serde_json::{Value, json};

const VALIDATOR: &str = "//Alice";
const STRANGER: &str = "//Eve";
const MINER: &str = "//Bob";

fn key(uri: &str) -> KeyPair {
    KeyPair::from_uri(uri).unwrap()
}

/// Command lines of the processes in whose environment one of the texts stands: executors have the uuid of their job
/// there, and so have the jobs.
fn processes_with(texts: &[&str]) -> Vec<String> {
    let read = |pid: &str, file: &str| {
        // A process may end while it is looked at.
        let bytes = std::fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).replace('\0', " ")
    };
    let names = std::fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let pids = names.filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()));
    let ours = pids.filter(|pid| texts.iter().any(|text| read(pid, "environ").contains(text)));
    ours.map(|pid| read(&pid, "cmdline")).collect()
}

/// Runs a client to its end against a miner with one executor, whose stop is clean; what the client prints. Its
/// arguments are the miner's address and keys, and then `more`.
fn at_a_miner(mut client: Command, runner: &str, state: &Path, more: &[&str]) -> Value {
    let group = Group::enter();
    // The client serves its upload from loopback.
    let mut settings = ExecutorSettings::default();
    settings.set("PHALANX_REACH", "127.0.0.0/8");
    let phalanx = PathBuf::from(env!("CARGO_BIN_EXE_phalanx"));
    let backend =
        ProcessBackend { program: phalanx.clone(), phalanx, settings, ..ProcessBackend::new(runner).unwrap() };
    let config = MinerConfig {
        validators: vec![key(VALIDATOR).public()],
        executors: vec![(ExecutorClass::AlwaysOnTest, 1)],
        ..MinerConfig::new(key(MINER), state, Arc::new(backend))
    };
    let timer = Timer::start();
    let listener = WsListener::bind("127.0.0.1:0", None).unwrap();
    let port = listener.local_addr().port().to_string();
    let miner = Miner::start(config, Box::new(listener), timer.handle()).unwrap();
    let output = client.args(["127.0.0.1", &port, &key(MINER).ss58(), VALIDATOR]).args(more).output().unwrap();
    let mut stopping = Stopping::alone();
    miner.stop_in(&mut stopping);
    stopping.step("timer", LONG, |step| timer.stop_in(step));
    let report = stopping.finish();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(report.is_clean() && report.cancelled_jobs == 0, "{report}");
    assert!(group.live().is_empty(), "threads are left: {:?}", group.live());
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn the_official_client_runs_jobs_on_our_miner() {
    let Some(client) = python::script("organic_client.py", "compute_horde, bittensor_wallet, django, aiohttp") else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let reported = at_a_miner(client, "process", folder.path(), &[STRANGER]);
    let uuid = |case: &str| reported[case]["uuid"].as_str().unwrap().to_owned();
    let uuids: Vec<String> = ["good", "failing", "endless", "interrupted", "busy"].map(uuid).to_vec();
    let uuids: Vec<&str> = uuids.iter().map(String::as_str).collect();
    assert_eq!(processes_with(&uuids), [""; 0], "executors are left");

    let all_steps = json!(["accepted", "executor_ready", "volumes_ready", "execution_done"]);
    let good = &reported["good"];
    assert_eq!((&good["end"], &good["complaints"]), (&json!("finished"), &json!([])), "{good}");
    assert_eq!(good["steps"], all_steps);
    assert_eq!(good["manifest"], json!({"always_on.test": 1}));
    assert_eq!((&good["stdout"], &good["stderr"]), (&json!("zażółć\n"), &json!("hello\n")));
    assert_eq!(good["artifacts"], json!({"/artifacts/a.bin": [0, 255]}));
    assert_eq!(good["received"], json!({"/o.txt": "o\n"}));
    assert_eq!(good["uploads"]["o.txt"]["body"], "stored");
    for specs in ["cpu", "gpu", "hard_disk", "os", "ram"] {
        assert!(good["specs"].as_array().unwrap().contains(&json!(specs)), "{good}");
    }

    let failing = &reported["failing"];
    assert_eq!((&failing["end"], &failing["complaints"]), (&json!("failed"), &json!([])), "{failing}");
    let details = &failing["details"];
    assert_eq!((&details["reason"], &details["stage"]), (&json!("nonzero_return_code"), &json!("execution")));
    assert_eq!(details["docker_process_exit_status"], 3);
    assert_eq!(details["docker_process_stdout"], "partial\n");
    assert_eq!(details["docker_process_stderr"], "why\n");

    // The client itself would wait for the time of the download as well.
    let endless = &reported["endless"];
    assert_eq!((&endless["end"], &endless["complaints"]), (&json!("failed"), &json!([])), "{endless}");
    let details = &endless["details"];
    assert_eq!((&details["reason"], &details["stage"]), (&json!("timeout"), &json!("execution")));
    assert_eq!(details["docker_process_stdout"], "begun\n");
    assert_eq!(details["context"]["artifacts"], json!({"/artifacts/x": "YQo="}));
    let seconds = details["context"]["stage_seconds"].as_f64().unwrap();
    assert!((1.0..30.0).contains(&seconds), "{seconds}");

    let interrupted = &reported["interrupted"];
    assert_eq!((&interrupted["end"], &interrupted["complaints"]), (&json!("finished"), &json!([])), "{interrupted}");
    assert_eq!((&interrupted["steps"], &interrupted["stdout"]), (&all_steps, &json!("through\n")));
    let busy = &reported["busy"];
    assert_eq!((&busy["end"], &busy["reason"]), (&json!("rejected"), &json!("busy")), "{busy}");
    assert_eq!(busy["excuses"], json!([uuid("interrupted")]));

    let refused = &reported["wrong_miner"];
    assert_eq!((&refused["end"], &refused["manifest"]), (&json!("timed out"), &Value::Null), "{refused}");
    let why = format!("wrong miner hotkey ({}!={})", key(MINER).ss58(), key("//Nobody").ss58());
    let complaints = refused["complaints"].as_array().unwrap();
    assert!(
        !complaints.is_empty() && complaints.iter().all(|reported| reported.as_str().unwrap().ends_with(&why)),
        "{refused}"
    );
    let why = format!("Unknown validator: {}", key(STRANGER).ss58());
    assert_eq!(reported["stranger"], json!({"complaints": [why], "manifest": false}));

    let mut stored: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for row in ReceiptStore::open(&folder.path().join(DATABASE), 0).unwrap().since(0, 100).unwrap() {
        // The payload goes in as the text that was signed.
        let (by_validator, by_miner) = (&row.validator_signature, &row.miner_signature);
        let receipt = Receipt::decode(&format!(
            r#"{{"payload":{},"validator_signature":"{by_validator}","miner_signature":"{by_miner}"}}"#,
            row.payload
        ))
        .unwrap();
        assert_eq!(receipt.payload.blob_for_signing(), row.payload);
        assert_eq!(receipt.verify_validator().unwrap(), key(VALIDATOR).public());
        assert_eq!(receipt.verify_miner().unwrap(), key(MINER).public());
        assert_eq!(receipt.payload.job_uuid(), row.job_uuid);
        stored.entry(row.job_uuid).or_default().push(match receipt.payload {
            ReceiptPayload::JobFinished(payload) => {
                format!("finished {} {:?}", payload.score_str, payload.block_numbers)
            }
            _ => row.kind,
        });
    }
    let started = ["JobStartedReceipt", "JobAcceptedReceipt"];
    let [good, failing, endless, interrupted] =
        ["good", "failing", "endless", "interrupted"].map(|case| &stored[&uuid(case)]);
    assert_eq!(*good, [started[0], started[1], "finished 7.000000 [3, 4]"]);
    assert_eq!(*failing, [started[0], started[1], "finished 0.000000 []"]);
    assert_eq!(*endless, [started[0], started[1], "finished 0.000000 []"]);
    assert_eq!(*interrupted, [started[0], started[1], "finished 0.000000 []"]);
    // The client writes one for whatever did not finish; of a job that was declined it is not kept.
    assert!(!stored.contains_key(&uuid("busy")) && stored.len() == 4, "{stored:?}");
}

#[test]
fn the_official_client_streams_from_our_miner() {
    let Some(client) = python::script("organic_streaming.py", "compute_horde, bittensor_wallet, django, aiohttp")
    else {
        return;
    };
    if !engine::ready() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let server = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/streaming_server.sh");
    let seen = at_a_miner(client, "docker", folder.path(), &[engine::IMAGE, server.to_str().unwrap()]);
    assert_eq!(engine::left(labels::JOB, seen["uuid"].as_str().unwrap()), [""; 0], "containers or networks are left");
    assert_eq!((&seen["signed"], &seen["stdout"]), (&json!(true), &json!("served\n")));
    assert_eq!(seen["stream"], json!(["first\n", 200, "last\n"]));
    assert_eq!(seen["socket"], json!(["zażółć", true]));
}
