//! A facilitator reads its lists again at SIGHUP, and tells in its audit log who came and went.

use std::fs;

use phalanx::app::job_client::JobClient;
use phalanx::base::shutdown::Shutdown;
use phalanx::identity::KeyPair;
use rustix::process::Signal;
use serde_json::Value;

use crate::testkit::network::{ALICE, BOB, CHARLIE};
use crate::testkit::process::{Running, nothing_left, phalanx, run};
use crate::testkit::roles;
use crate::testkit::wait::until;

const EVE: &str = "5HGjWAeFDfFCWPsjFQdVV2Msvz2XtMktvgocEZcCj68kUMaw";

#[test]
fn lists_are_read_again_at_sighup_and_the_audit_log_tells_it() {
    let (folder, scratch) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (config, state) = (folder.path().join("phalanx.toml"), folder.path().join("facilitator"));
    let write = |validators: &str, users: &str| {
        let settings = format!("[facilitator]\nvalidator = [{validators}]\nuser = [{users}]\n");
        fs::write(&config, settings).unwrap();
    };
    write(&format!("\"{ALICE}\""), &format!("\"{CHARLIE}\""));
    let mut command = phalanx(scratch.path());
    command.args(["facilitator", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--config"]).arg(&config);
    let mut facilitator = Running::start(command.arg("--state-dir").arg(&state));
    let line: Value = serde_json::from_str(&facilitator.line()).unwrap();
    let (listen, http) = (line["listening"].as_str().unwrap(), format!("http://{}", line["http"].as_str().unwrap()));
    let mut command = phalanx(scratch.path());
    command.args(["validator", "--dispatch", "stub", "--trusted-signer", CHARLIE, "--http", "127.0.0.1:0"]);
    command.args(["--facilitator", &format!("ws://{listen}/ws/v0/")]).env("PHALANX_KEY", "//Alice");
    let validator = Running::start(&mut command);
    until("the validator is there", || validator.stderr().contains("authenticated"));
    let (charlie, never) = (KeyPair::from_uri("//Charlie").unwrap(), Shutdown::new());
    let mut user = JobClient::login(&http, charlie.clone(), &never).unwrap();
    let alice = KeyPair::from_uri("//Alice").unwrap().public();
    let job = user.submit(roles::job(&charlie), &alice).unwrap();
    let mut seen = job.status_history.len();
    until("its end", || {
        let job = user.news(&job.uuid, seen).unwrap();
        seen = job.status_history.len();
        job.is_completed()
    });

    let hangup = |said: &str| {
        facilitator.signal(Signal::HUP);
        until(said, || facilitator.stderr().contains(said));
    };
    // Wrong in every way: the old ones stay.
    fs::write(&config, "[facilitator]\nvalidator = [\"nobody\"]\n").unwrap();
    hangup("SIGHUP: the settings stay as they are: ");
    fs::write(&config, "[facilitator\n").unwrap();
    hangup("SIGHUP: the settings stay as they are: settings file");
    assert!(user.submit(roles::job(&charlie), &alice).is_ok());

    write(&format!("\"{BOB}\""), &format!("\"{EVE}\""));
    hangup("SIGHUP: the settings were read again: 1 validators, 1 users");
    until("the validator is told", || validator.stderr().contains("3001"));
    let refused = user.submit(roles::job(&charlie), &alice).unwrap_err().to_string();
    assert!(refused.contains("is not a user of this facilitator any more"), "{refused}");
    let errors = facilitator.stderr().lines().filter(|line| line.contains("SIGHUP: the settings stay")).count();
    assert_eq!(errors, 2, "one line for each: {}", facilitator.stderr());

    // Beside the running facilitator; it writes a moment later than it acts.
    let audit = |arguments: &[&str]| {
        let finished = run(phalanx(scratch.path()).arg("audit").arg("--state-dir").arg(&state).args(arguments));
        assert_eq!(finished.code, Some(0), "{finished:?}");
        finished.stdout
    };
    let of_alice = ["--validator", ALICE, "--since", "1h", "--json"];
    until("the line of the removal", || audit(&of_alice).contains("\"removed\""));
    let events: Vec<String> = audit(&["--json"])
        .lines()
        .map(|line| {
            let line: Value = serde_json::from_str(line).unwrap();
            format!("{} {}", line["event"].as_str().unwrap(), line["why"].as_str().unwrap_or_default())
        })
        .collect();
    let expected = ["started ", "authenticated ", "job_sent ", "job_taken_up received", "closed removed"];
    for event in expected {
        assert!(events.iter().any(|seen| seen == event), "{event} is not in {events:?}");
    }
    assert!(events.contains(&"reloaded 1 validators: 1 new, 1 gone".to_owned()), "{events:?}");
    let of_job = audit(&["--job", &job.uuid, "--event", "job_sent,job_taken_up"]);
    assert_eq!(of_job.lines().count(), 2, "{of_job}");
    assert!(of_job.contains(ALICE) && of_job.contains(&job.uuid), "{of_job}");
    assert_eq!(audit(&["--event", "job_given_up"]), "");
    let missing = run(phalanx(scratch.path()).args(["audit", "--state-dir"]).arg(folder.path()));
    assert_eq!(missing.code, Some(2), "{missing:?}");
    assert!(missing.stderr.contains("should be the state folder of a facilitator"), "{missing:?}");

    validator.stop(Signal::TERM);
    assert_eq!(facilitator.stop(Signal::TERM).code, Some(0));
    let last = audit(&["--json"]);
    assert!(last.contains("\"stopping\"") && last.contains("\"disconnected\""), "{last}");
    nothing_left(scratch.path());
}
