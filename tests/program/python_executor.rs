//! An executor made of the official Python packages, under our miner: `--executor-command`.

use std::io::{Cursor, Read};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::process::{Network, result};
use crate::testkit::http::{Reply, Server};
use crate::testkit::process::{Running, run};
use crate::testkit::python;
use crate::testkit::wait::until;

fn job(script: &str, more: Value) -> String {
    let mut job = json!({"executor_class": "always_on.test", "docker_image": "x", "args": ["sh", "-c", script]});
    job.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    job.to_string()
}

#[test]
fn jobs_complete_fail_and_time_out_at_an_executor_of_the_official_packages() {
    let Some(script) = python::script("executor.py", "compute_horde, compute_horde_core, bittensor_wallet") else {
        return;
    };
    let words = std::iter::once(script.get_program()).chain(script.get_args());
    let words: Vec<_> = words.map(|word| format!("'{}'", word.to_str().unwrap())).collect();
    let command = format!("{} {{startup_seconds}}", words.join(" "));
    let ports = ["--streaming-ports", "6400-6499"];
    let network =
        Network::start_with(false, &[&["--runner", "process", "--executor-command", &command], &ports[..]].concat());
    let end_of = |job: &str| result(&run(&mut network.submit(job)).stdout);

    let server = Server::start(|_| Reply::ok("stored"));
    let upload = json!({"output_upload": {"output_upload_type": "zip_and_http_put", "url": server.url("/o")}});
    let ended = end_of(&job("echo out; echo made > output/file", upload));
    assert_eq!((ended["status"].as_str(), ended["stdout"].as_str()), (Some("completed"), Some("out\n")), "{ended}");
    let body = server.seen().pop().expect("an upload").body;
    let mut text = String::new();
    zip::ZipArchive::new(Cursor::new(body)).unwrap().by_name("file").unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(text, "made\n");

    let ended = end_of(&job("echo partial; exit 3", json!({})));
    assert_eq!((ended["status"].as_str(), ended["exit_code"].as_i64()), (Some("failed"), Some(3)), "{ended}");
    assert_eq!(ended["stdout"], "partial\n");

    // The network's deadlines are behind the executor's.
    let ended = end_of(&job("echo begun; exec sleep 600", json!({"execution_time_limit": 2})));
    assert_eq!((ended["status"].as_str(), ended["stdout"].as_str()), (Some("failed"), Some("begun\n")), "{ended}");
    assert!(ended["error"].as_str().unwrap().starts_with("timeout"), "{ended}");
    assert!(ended["seconds"].as_f64().unwrap() >= 2.0, "{ended}");

    // Two at a time have a port each for clients of streaming jobs.
    let gate = network.folder.path().join("gate");
    let here = |name: &str| network.folder.path().join(name).display().to_string();
    let submits = ["a", "b"].map(|name| {
        let script = format!("touch {}; while [ ! -e {} ]; do sleep 0.05; done", here(name), gate.display());
        let submit = Running::start(&mut network.submit(&job(&script, json!({}))));
        until("it runs", || network.folder.path().join(name).exists());
        submit
    });
    std::fs::write(&gate, "").unwrap();
    let ports = submits.map(|submit| {
        let ended = result(&submit.finish().stdout);
        ended["stderr"].as_str().unwrap().parse::<u16>().unwrap()
    });
    assert!(ports[0] != ports[1] && ports.iter().all(|port| (6400..6500).contains(port)), "{ports:?}");
    assert_eq!(network.stop(Signal::TERM), [Some(0); 3]);
}
