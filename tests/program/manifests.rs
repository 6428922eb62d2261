//! `phalanx manifests`, and the rounds of a validator, against a real miner, one that says nothing and one that is not
//! there.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Command;

use rustix::process::Signal;
use serde_json::Value;

use crate::testkit::network::{BOB, CHARLIE, Network};
use crate::testkit::process::{Finished, Running, phalanx, run};
use crate::testkit::wait::until;

const ALICE: &str = crate::testkit::network::ALICE;

/// Bob is the network's miner; Charlie's port is open and nobody accepts there; at Alice's nobody listens.
fn miners(network: &Network, hole: &TcpListener) -> PathBuf {
    let mut text = std::fs::read_to_string(network.folder.path().join("miners.toml")).unwrap();
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let hole = hole.local_addr().unwrap().port();
    for (hotkey, port) in [(CHARLIE, hole), (ALICE, nobody)] {
        text += &format!("[[miner]]\nhotkey = \"{hotkey}\"\naddress = \"127.0.0.1\"\nport = {port}\n");
    }
    let path = network.folder.path().join("all.toml");
    std::fs::write(&path, text).unwrap();
    path
}

fn manifests(network: &Network, key: &str, miners: &PathBuf, more: &[&str]) -> Command {
    let mut command = phalanx(network.scratch.path());
    command.args(["manifests", "--key", key, "--miners"]).arg(miners).args(more);
    command
}

fn outcomes(finished: &Finished) -> Vec<(String, String)> {
    let lines = finished.stdout.lines().map(|line| serde_json::from_str(line).unwrap());
    let pair = |line: Value| {
        let fields: Vec<_> = line.as_object().unwrap().keys().cloned().collect();
        assert_eq!(fields, ["hotkey", "outcome", "manifest", "error", "seconds"]);
        let text = |name: &str| line[name].as_str().unwrap().to_owned();
        (text("hotkey"), text("outcome"))
    };
    lines.map(pair).collect()
}

#[test]
fn miners_are_asked_by_hand_and_by_their_validator() {
    let network = Network::start("info", "text");
    let hole = TcpListener::bind("127.0.0.1:0").unwrap();
    let file = miners(&network, &hole);
    let asked = run(&mut manifests(&network, "//Alice", &file, &["--timeout", "2s", "--json"]));
    assert_eq!(asked.code, Some(0), "{}", asked.stderr);
    let pairs = [(BOB, "ok"), (CHARLIE, "timeout"), (ALICE, "refused")];
    assert_eq!(outcomes(&asked), pairs.map(|(hotkey, outcome)| (hotkey.to_owned(), outcome.to_owned())));
    let first: Value = serde_json::from_str(asked.stdout.lines().next().unwrap()).unwrap();
    assert_eq!(first["manifest"], serde_json::json!({"always_on.test": 2}));

    // A stranger is told so, and that is no failure of the command.
    let stranger = run(&mut manifests(&network, "//Eve", &file, &["--timeout", "2s"]));
    assert_eq!(stranger.code, Some(0), "{}", stranger.stderr);
    let shown = |hotkey: &str| stranger.stdout.lines().find(|line| line.starts_with(hotkey)).unwrap().to_owned();
    assert!(shown(BOB).contains("unauthorized") && shown(BOB).contains("Unknown validator"), "{}", stranger.stdout);
    assert!(stranger.stdout.ends_with("3 miners: 1 refused, 1 timeout, 1 unauthorized\n"), "{}", stranger.stdout);

    // The validator's own rounds have found the same.
    let status =
        || run(phalanx(network.scratch.path()).args(["status", "--json", "--http", network.pages("validator")]));
    until("the first round", || {
        let status: Value = serde_json::from_str(&status().stdout).unwrap();
        let asked = &status["details"]["asked"];
        asked["manifests"]["outcomes"] == serde_json::json!({"ok": 1}) && asked["connections"]["idle"] == 1
    });
    network.stop();
}

#[test]
fn a_signal_reports_what_is_there() {
    let network = Network::start("info", "text");
    let hole = TcpListener::bind("127.0.0.1:0").unwrap();
    let file = miners(&network, &hole);
    let running = Running::start(&mut manifests(&network, "//Alice", &file, &["--json", "--threads", "1"]));
    // With one thread, Bob has answered by then, and nobody has asked Alice.
    let held = hole.accept().unwrap();
    let finished = running.stop(Signal::INT);
    assert_eq!(finished.code, Some(1), "{}", finished.stderr);
    let pairs = [(BOB, "ok"), (CHARLIE, "skipped"), (ALICE, "skipped")];
    assert_eq!(outcomes(&finished), pairs.map(|(hotkey, outcome)| (hotkey.to_owned(), outcome.to_owned())));
    drop(held);
    network.stop();
}

#[test]
fn mistakes_are_named_all_at_once() {
    let scratch = tempfile::tempdir().unwrap();
    let arguments = ["manifests", "--key", "//Alice", "--miners", "/nowhere", "--timeout", "0s", "--threads", "0"];
    let finished = run(phalanx(scratch.path()).args(arguments));
    assert_eq!(finished.code, Some(2));
    for part in ["/nowhere", "--timeout is 0", "--threads is 0; it should be from 1 to 1024"] {
        assert!(finished.stderr.contains(part), "{}", finished.stderr);
    }
}
