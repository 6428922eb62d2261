//! The official SDK against the four roles as processes: jobs of every end. Streaming is in `streaming.rs`.

use serde_json::{Value, json};

use crate::testkit::network::{ALICE, Network};
use crate::testkit::process::{in_scratch, run};
use crate::testkit::python;

#[test]
fn jobs_of_every_end_go_through_the_four_roles() {
    let Some(script) = python::script("sdk_roles.py", "compute_horde_sdk.v1") else { return };
    let network = Network::start("info", "text");
    let mut script = in_scratch(script, network.scratch.path());
    script.arg(format!("http://{}/", network.pages("facilitator"))).args([ALICE, "//Charlie"]);
    let finished = run(&mut script);
    let logs = network.stop();
    assert_eq!(finished.code, Some(0), "{}\n{logs:?}", finished.stderr);
    let seen: Value = serde_json::from_str(&finished.stdout).unwrap();
    assert_eq!(seen["good"], json!(["completed", "out\n", "err\n", ["kept\n"]]));
    let way = ["sent", "received", "accepted", "executor_ready", "volumes_ready", "execution_done", "completed"];
    assert_eq!(seen["history"], json!(way));
    assert_eq!(seen["failed"], json!(["failed", "nonzero_return_code", "before\n"]));
    assert_eq!(seen["late"], json!(["failed", "timeout"]));
    assert_eq!(seen["rejected"], json!(["rejected", "no_miner_for_job"]));
    assert_eq!(seen["complete"], json!(["completed", "failed", 3]));
    assert_eq!(
        (&seen["listed"], &seen["trusted"], &seen["cheated"]),
        (&json!(true), &json!(true), &json!("not found"))
    );
}
