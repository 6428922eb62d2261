//! A streaming job of the official SDK through the four roles as processes, in a container of a real engine.

use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use phalanx::proc::docker::labels;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::testkit::network::{ALICE, Network};
use crate::testkit::process::{in_scratch, phalanx, run};
use crate::testkit::wait::until;
use crate::testkit::{engine, python};

/// A streaming job whose server runs until the file is there: `ready` when it was asked for its health, `quit`.
fn job(until: &str) -> Value {
    let server = STANDARD.encode(include_str!("../fixtures/streaming_server.sh"));
    let client = rcgen::generate_simple_self_signed(["client".to_owned()]).unwrap().cert.pem();
    let command = format!(
        "busybox nc -ll -p 8000 -e sh /volume/server.sh & until [ -e /output/{until} ]; do sleep 0.1; done; echo served"
    );
    json!({
        "executor_class": "always_on.test",
        "docker_image": engine::IMAGE,
        "args": ["sh", "-c", command],
        "files": {"server.sh": {"base64": server}},
        "streaming_details": {"public_key": client},
        "streaming_start_time_limit": 60,
    })
}

#[test]
fn the_official_sdk_streams() {
    let Some(script) = python::script("sdk_streaming.py", "compute_horde_sdk.v1, aiohttp") else { return };
    if !engine::ready() {
        return;
    }
    let network = Network::start_with("info", "text", |miner| {
        miner.args(["--runner", "docker"]);
    });
    let server = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/streaming_server.sh");
    let mut script = in_scratch(script, network.scratch.path());
    script.arg(format!("http://{}/", network.pages("facilitator")));
    let finished = run(script.args([ALICE, "//Charlie", engine::IMAGE]).arg(server));
    let logs = network.stop();
    assert_eq!(finished.code, Some(0), "{}\n{logs:?}", finished.stderr);
    let seen: Value = serde_json::from_str(&finished.stdout).unwrap();
    assert_eq!(engine::left(labels::JOB, seen["uuid"].as_str().unwrap()), [""; 0], "containers or networks are left");
    assert_eq!((&seen["address"], &seen["names"]), (&json!("127.0.0.1"), &json!(["localhost", "127.0.0.1"])));
    // Nothing of the server was reached without the right certificate.
    for who in ["none", "other"] {
        let why = seen[who].as_str().unwrap();
        assert!(why.contains("SSL") && why.contains("ALERT"), "{who}: {why}");
    }
    let (status, head) = (&seen["echo"][0], seen["echo"][1].as_array().unwrap());
    assert_eq!((status, &head[0]), (&json!(200), &json!("GET /echo/a%20b?c=d")));
    assert!(head.contains(&json!("X-Mine: 1")), "{head:?}");
    assert!(head[1].as_str().unwrap().starts_with("Host: 127.0.0.1:"), "{head:?}");
    assert_eq!(seen["stream"], json!(["first\n", 200, "last\n"]));
    assert_eq!(seen["socket"], json!(["zażółć", true]));
    assert_eq!((&seen["quit"], &seen["stdout"]), (&json!(200), &json!("served\n")));
    let way = ["accepted", "executor_ready", "volumes_ready", "streaming_ready", "execution_done", "completed"];
    let statuses = seen["statuses"].as_array().unwrap();
    assert_eq!(statuses[statuses.len() - way.len()..], way.map(|status| json!(status)), "{statuses:?}");
}

#[test]
fn submit_tells_where_a_streaming_job_is_served_and_by_which_certificate() {
    if !engine::ready() {
        return;
    }
    let network = Network::start_with("info", "text", |miner| {
        miner.args(["--runner", "docker"]);
    });
    let job = job("ready");
    let (uuid, told) = network.job(&job.to_string());
    let logs = network.stop();
    assert!(told.contains(": streaming_ready at https://127.0.0.1:"), "{told}\n{logs:?}");
    assert!(told.contains(", by\n-----BEGIN CERTIFICATE-----\n"), "{told}");
    assert_eq!(engine::left(labels::JOB, &uuid), [""; 0], "containers or networks are left");
}

#[test]
fn of_a_killed_executor_no_container_and_no_network_is_left() {
    if !engine::ready() {
        return;
    }
    let network = Network::start_with("info", "text", |miner| {
        miner.args(["--runner", "docker"]);
    });
    let file = network.folder.path().join("job.json");
    std::fs::write(&file, job("quit").to_string()).unwrap();
    let facilitator = format!("http://{}", network.pages("facilitator"));
    let mut submit = phalanx(network.scratch.path());
    submit.arg("submit").arg(file).args(["--facilitator", &facilitator, "--target", ALICE, "--key", "//Charlie"]);
    let submitted = run(submit.arg("--json"));
    assert_eq!(submitted.code, Some(0), "{}", submitted.stderr);
    let uuid = serde_json::from_str::<Value>(&submitted.stdout).unwrap()["uuid"].as_str().unwrap().to_owned();
    until("a container and a network", || engine::left(labels::JOB, &uuid).len() == 2);
    let executors: Vec<i32> = std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| {
            let entry = entry.ok()?;
            // A process may end while it is looked at.
            let read = |name: &str| std::fs::read(entry.path().join(name)).unwrap_or_default();
            let line = String::from_utf8_lossy(&read("cmdline")).replace('\0', " ");
            let ours = String::from_utf8_lossy(&read("environ")).contains(network.scratch.path().to_str()?);
            (ours && line.contains("phalanx executor")).then(|| entry.file_name().to_str()?.parse().ok())?
        })
        .collect();
    assert_eq!(executors.len(), 1);
    kill_process(Pid::from_raw(executors[0]).unwrap(), Signal::KILL).unwrap();
    until("nothing is left", || engine::left(labels::JOB, &uuid).is_empty());
    network.stop();
}
