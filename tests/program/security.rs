//! Security checks of a real miner: a host that fails one offers nothing, and SIGHUP has it checked again.

use crate::testkit::engine::{IMAGE, StandIn, ready};
use crate::testkit::network::Network;
use crate::testkit::wait::until;

use rustix::process::Signal;
use serde_json::json;

#[test]
fn a_miner_whose_toolkit_lets_jobs_out_offers_nothing_until_it_is_checked_again() {
    if !ready() {
        return;
    }
    let tools = StandIn::new();
    let toolkit = |version: &str| {
        let script = format!("echo asked >>\"$folder/asked\"; echo 'NVIDIA Container Toolkit CLI version {version}'");
        tools.tool("bin/nvidia-ctk", &script);
    };
    toolkit("1.16.1");
    let path = tools.path();
    let network = Network::start_with("info", "text", |miner| {
        miner.env("PATH", &path).args(["--executors", "always_on.gpu-24gb=1"]);
    });
    let page = |page: &str| {
        let url = format!("http://{}{page}", network.pages("miner"));
        let agent = ureq::Agent::new_with_config(ureq::Agent::config_builder().http_status_as_error(false).build());
        agent.get(&url).call().unwrap().body_mut().read_to_string().unwrap()
    };
    let why = "a security check has failed: NVIDIA's container toolkit is 1.16.1, and jobs get out";
    assert!(page("/readyz").contains(why), "{}", page("/readyz"));
    // Of every class: they share the machine.
    let job = json!({"executor_class": "always_on.test", "docker_image": IMAGE, "args": ["echo", "done"]});
    assert_eq!(network.end_of(&job)["status"], "horde_failed");
    toolkit("1.17.8");
    let miner = network.roles.iter().find(|(name, ..)| *name == "miner").unwrap();
    miner.1.signal(Signal::HUP);
    until("the miner is ready", || page("/readyz").starts_with("ready"));
    until("a job completes", || network.end_of(&job)["status"] == "completed");
    assert_eq!(
        tools.file("asked").lines().count(),
        2,
        "at the start and at SIGHUP, not for jobs or checks of the engine"
    );
    let [_, (_, log), _] = network.stop();
    assert!(log.contains(why), "{log}");
}
