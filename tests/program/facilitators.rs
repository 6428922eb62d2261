//! A validator with several addresses of its facilitator, and what is measured of the link.

use crate::testkit::process::{Running, nothing_left, phalanx, run};
use crate::testkit::roles::{FakeFacilitator, World};
use crate::testkit::wait::{LONG, until_some};
use std::time::Instant;

use phalanx::base::shutdown::Shutdown;
use phalanx::net::http::client::HttpClient;
use phalanx::ops::status::Snapshot;
use phalanx::transport::ws::WsListener;
use rustix::process::Signal;
use serde_json::Value;

#[test]
fn a_validator_turns_to_the_address_that_answers_and_shows_its_round_trip_and_clock() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new();
    let listener = WsListener::bind("127.0.0.1:0", None).unwrap();
    let url = format!("ws://{}/ws/v0/", listener.local_addr());
    let facilitator = FakeFacilitator::start_on(&world, Box::new(listener));
    let mut validator = phalanx(folder.path());
    validator.args(["validator", "--dispatch", "stub", "--http", "127.0.0.1:0", "--key", "//Alice"]);
    validator.args(["--facilitator", &format!("ws://127.0.0.1:1/ws/v0/,{url}")]);
    let mut validator = Running::start(&mut validator);
    let pages = serde_json::from_str::<Value>(&validator.line()).unwrap()["http"].as_str().unwrap().to_owned();
    let status = |arguments: &[&str]| run(phalanx(folder.path()).args(["status", "--http", &pages]).args(arguments));
    let details = until_some("a ping that is answered", || {
        let finished = status(&["--json"]);
        let snapshot: Snapshot = serde_json::from_str(&finished.stdout).unwrap();
        (snapshot.ready && !snapshot.details["round_trip_ms"].is_null()).then_some(snapshot.details)
    });
    assert_eq!(details["facilitator_url"], url.as_str());
    assert!((-1..=1).contains(&details["clock_skew_seconds"].as_i64().unwrap()), "{details}");
    let metrics = HttpClient::new(Shutdown::new());
    let metrics = metrics.get(&format!("http://{pages}/metrics"), &[], Instant::now() + LONG).unwrap().text();
    assert!(metrics.contains("\nphalanx_validator_facilitator_endpoint 2\n"), "{metrics}");
    let value = |name: &str| -> f64 {
        let line = metrics.lines().find_map(|line| line.strip_prefix(&format!("{name} ")));
        line.unwrap_or_else(|| panic!("{name} is not in {metrics}")).parse().unwrap()
    };
    assert!(value("phalanx_validator_facilitator_round_trip_seconds") > 0.0);
    assert!(value("phalanx_validator_facilitator_clock_skew_seconds").abs() <= 1.0);
    assert!(status(&[]).stdout.contains(&url));
    let finished = validator.stop(Signal::TERM);
    assert_eq!(finished.code, Some(0), "{finished:?}");
    let turned = format!("val-fac: the next try goes to {url} (2 of 2)");
    assert!(finished.stderr.contains(&turned), "{}", finished.stderr);
    facilitator.stop();
    nothing_left(folder.path());
}
