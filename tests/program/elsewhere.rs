//! A miner with a host behind SSH: the real `docker`, `ssh` and `sshd`, and executors that dial back.

use crate::chaos::free_address;
use crate::containers::{ExecutorImage, arguments};
use crate::testkit::elsewhere::Ssh;
use crate::testkit::engine::{IMAGE, left};
use crate::testkit::network::Network;
use crate::testkit::wait::until;

use phalanx::proc::docker::labels;
use serde_json::{Value, json};

#[test]
fn jobs_run_on_a_host_behind_ssh_while_its_key_is_the_one_that_is_known() {
    let Some(ssh) = Ssh::start() else { return };
    let Some(image) = ExecutorImage::build() else { return };
    let (shared, listen) = (tempfile::tempdir().unwrap(), free_address());
    let class = "always_on.cpu.8c.16gb";
    let hosts = json!({"other": {"address": "ssh://engine", "executors": {class: 1}}}).to_string();
    // As another machine would dial it, so not as loopback is written.
    let dialled = format!("ws://127.1:{}", listen.port());
    let network = Network::start_with("info", "text", |miner| {
        miner.env("PATH", ssh.path()).env("PHALANX_LISTEN", listen.to_string());
        miner.args(arguments(&image, "docker", shared.path()));
        miner.args(["--hosts", &hosts, "--executor-address", &dialled]);
    });
    let status = || {
        let url = format!("http://{}/status.json", network.pages("miner"));
        let text = ureq::get(url).call().unwrap().body_mut().read_to_string().unwrap();
        serde_json::from_str::<Value>(&text).unwrap()["details"].clone()
    };
    let other = || {
        let status = status();
        status["hosts"].as_array().unwrap().iter().find(|host| host["name"] == "other").unwrap().clone()
    };
    until("the host is up", || other()["state"] == "up");
    let runs = other()["jobs_run"].as_str().unwrap().to_owned();
    assert!(runs.contains(" processors and ") && runs.ends_with(" MiB"), "{runs}");
    let job = |class: &str| {
        let job = json!({"executor_class": class, "docker_image": IMAGE, "args": ["echo", "done"]});
        network.end_of(&job)
    };
    let end = job(class);
    assert_eq!((end["status"].as_str(), end["stdout"].as_str()), (Some("completed"), Some("done\n")), "{end}");

    ssh.know("other");
    until("the host is down", || other()["state"] == "down");
    let why = other()["why"].as_str().unwrap().to_owned();
    assert!(why.contains("ssh://engine: its host key is not the one in known_hosts") && !why.contains('\n'), "{why}");
    let connections = ssh.connections();
    assert_eq!(job(class)["status"], "rejected", "no other has the class");
    assert_eq!(job("always_on.test")["status"], "completed", "the machine of the miner is not concerned");
    assert!(ssh.connections() < connections + 20, "it is checked, not dialled by jobs");
    ssh.know("host");
    until("the host is up again", || other()["state"] == "up");
    // The validator hears of it a little later.
    until("a job completes there again", || job(class)["status"] == "completed");

    let instance = status()["instance"].as_str().unwrap().to_owned();
    let [_, (_, log), _] = network.stop();
    assert!(log.contains(&format!("engine ssh://engine: jobs of class {class}: profile default")), "{log}");
    assert_eq!(left(labels::INSTANCE, &instance), [""; 0], "a container is left");
}
