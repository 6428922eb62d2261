//! The official Python SDK against our facilitator, with a scripted validator.
//!
//! Needs a Python environment with the SDK: the folder in `PHALANX_TEST_VENV`, or `target/venv`. Without it the test is
//! skipped, loudly; with `PHALANX_TEST_REQUIRE_ALL=1` it fails instead.

use crate::testkit::facilitator as facilitator_kit;
use crate::testkit::wait::LONG;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use facilitator_kit::{Fixture, alice, completed, dave};
use phalanx::facilitator::api::token::Tokens;
use phalanx::protocol::{JobStatus as S, SignedRequest, V2JobRequest};
use serde_json::{Value, json};

/// The Python of the environment, if it has the SDK.
fn python() -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let venv = std::env::var_os("PHALANX_TEST_VENV").map_or_else(|| root.join("target/venv"), PathBuf::from);
    let python = venv.join("bin/python");
    let found = Command::new(&python).args(["-c", "import compute_horde_sdk.v1"]).output();
    if found.is_ok_and(|output| output.status.success()) {
        return Some(python);
    }
    let required = std::env::var("PHALANX_TEST_REQUIRE_ALL").is_ok_and(|value| value == "1");
    assert!(!required, "{} cannot import compute_horde_sdk.v1", python.display());
    eprintln!("SKIPPED: {} cannot import compute_horde_sdk.v1; `make test` sets it up", python.display());
    None
}

fn validate(job: &V2JobRequest) -> Vec<(S, Option<Value>)> {
    job.verify().unwrap();
    match job.docker_image.as_str() {
        "good" => completed(&format!("{} {:?}\n", job.args[1], job.env)),
        "stream" => {
            let server = json!({"streaming_details": {"streaming_server_cert": "PEM",
                "streaming_server_address": "10.0.0.1", "streaming_server_port": 4433}});
            assert!(job.streaming_details.as_ref().is_some_and(|details| details.public_key.contains("CERTIFICATE")));
            vec![(S::Received, None), (S::StreamingReady, Some(server)), (S::Completed, completed("").pop().unwrap().1)]
        }
        _ => {
            let details = json!({"job_rejection_details":
                {"rejected_by": "validator", "reason": "busy", "message": "no miner is free", "context": {"n": 1}}});
            vec![(S::Received, None), (S::Unknown, None), (S::Rejected, Some(details))]
        }
    }
}

#[test]
fn the_official_sdk_runs_jobs() {
    let Some(python) = python() else { return };
    let fix = Fixture::new();
    let (kick, validator) = fix.validator(&alice()).serve(validate);
    let hour = Duration::from_secs(3600);
    let expired = Tokens::load(&fix.state_dir().join("jwt.secret"), hour).unwrap().issue(&dave().ss58(), 0);
    let output = Command::new(python)
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python/sdk_submit.py"))
        .args([format!("http://{}/", fix.running().http_addr()), alice().ss58(), "//Dave".to_owned(), expired])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let reported: Value = serde_json::from_slice(&output.stdout).unwrap();
    let expected = ["sent", "received", "accepted", "executor_ready", "volumes_ready", "execution_done", "completed"];
    assert_eq!(reported["seen"], json!(expected));
    assert_eq!(reported["stdout"], "zażółć {\"B\": \"2\", \"A\": \"1\"}\n");
    assert_eq!(reported["artifacts"], json!({"/artifacts/a.bin": [0, 255]}));
    assert_eq!(reported["uploads"], json!({"/output/out.txt": "b"}));
    assert_eq!(reported["relogged"], true);
    assert_eq!(reported["bad"], json!(["rejected", "busy", "no miner is free"]));
    assert_eq!(reported["stream"], json!(["10.0.0.1", 4433, "PEM"]));
    let uuids = reported["uuids"].as_array().unwrap();
    assert_eq!(reported["all"], json!(uuids), "the newest last");
    assert_eq!(reported["page"], json!(uuids[..2]));
    assert_eq!(reported["until_complete"], json!(["completed", "at once {}\n", "rejected", 3]));
    let cheated = reported["cheated"].as_array().unwrap();
    assert_eq!(cheated[..3], [json!("not found"), json!("not found"), json!(alice().ss58())]);
    assert!(cheated[3].as_str().unwrap().contains("400") && cheated[3].as_str().unwrap().contains("already"));
    assert_eq!(reported["missing"], "not found");
    assert!(reported["refusal"].as_str().unwrap().contains("403"), "{}", reported["refusal"]);
    kick.kick();
    validator.join_by(Instant::now() + LONG).unwrap();
}
