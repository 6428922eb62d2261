//! `phalanx miners` against a running validator, and lists of miners that change while it runs.

use crate::testkit::http::{Reply, Server};
use crate::testkit::network::{ALICE, BOB, CHARLIE, NO_OP, Network};
use crate::testkit::process::{Finished, Running, nothing_left, phalanx, run};
use crate::testkit::wait::until_some;
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};

use rustix::process::Signal;
use serde_json::{Value, json};

fn miners(scratch: &Path, arguments: &[&str]) -> Finished {
    run(phalanx(scratch).arg("miners").args(arguments))
}

fn listed(scratch: &Path, pages: &str) -> Value {
    let finished = miners(scratch, &["--http", pages, "--json"]);
    assert_eq!(finished.code, Some(0), "{finished:?}");
    serde_json::from_str(&finished.stdout).unwrap()
}

fn hotkeys(answer: &Value) -> Vec<&str> {
    answer["miners"].as_array().unwrap().iter().map(|miner| miner["hotkey"].as_str().unwrap()).collect()
}

/// Asks until the list of miners is this, and what is wrong with a later one contains that.
fn until_listed(scratch: &Path, pages: &str, expected: &[&str], trouble: Option<&str>) -> Value {
    until_some("the list of miners", || {
        let answer = listed(scratch, pages);
        let error = answer["source"]["last_error"].as_str();
        let as_said = match trouble {
            None => error.is_none(),
            Some(trouble) => error.is_some_and(|error| error.contains(trouble)),
        };
        (hotkeys(&answer) == expected && as_said).then_some(answer)
    })
}

fn entry(hotkey: &str) -> String {
    format!("[[miner]]\nhotkey = \"{hotkey}\"\naddress = \"127.0.0.1\"\nport = 9\n")
}

#[test]
fn a_running_validator_lists_its_miners_and_says_what_decides_about_one() {
    let network = Network::start("info", "text");
    let (scratch, pages) = (network.scratch.path(), network.pages("validator"));
    let fresh = listed(scratch, pages);
    assert_eq!(hotkeys(&fresh), [BOB]);
    let miner = &fresh["miners"][0];
    assert_eq!(miner["reliability"], json!(1.0));

    network.job(NO_OP);
    let miner = &listed(scratch, pages)["miners"][0];
    assert_eq!((&miner["manifest"], &miner["running"]), (&json!({"always_on.test": 2}), &json!({})));
    assert!(miner["completed"].as_f64().unwrap() > 0.9, "{miner}");

    let table = miners(scratch, &["--http", pages]);
    assert_eq!(table.code, Some(0), "{table:?}");
    let lines: Vec<&str> = table.stdout.lines().collect();
    assert!(lines[0].starts_with("HOTKEY") && lines[1].starts_with(BOB), "{table:?}");
    assert!(lines[1].contains("always_on.test 2") && lines[2].starts_with("1 miner from "), "{table:?}");

    let explained = miners(scratch, &["--http", pages, "--explain", BOB]);
    assert_eq!(explained.code, Some(0), "{explained:?}");
    for line in [
        format!("miner {BOB} at 127.0.0.1:"),
        "  reliability  1.00 = (2 + completed 1.00) / (2 + completed 1.00 + incidents 0.00)".to_owned(),
        "  always_on.test           asked first, of 1 [".to_owned(),
        "  always_on.gpu-24gb       passed over: it has just said that it has no executor of the class".to_owned(),
    ] {
        assert!(explained.stdout.contains(&line), "{line}: {}", explained.stdout);
    }
    for (arguments, code, says) in [
        (vec!["--http", pages, "--explain", CHARLIE], 1, "is not among the miners here"),
        (vec!["--http", network.pages("facilitator")], 1, "what answers there has no page of miners"),
        (vec!["--http", pages, "--explain", "5abc"], 2, "--explain"),
        (vec![], 2, "--http is missing"),
    ] {
        let refused = miners(scratch, &arguments);
        assert!(refused.code == Some(code) && refused.stderr.contains(says), "{refused:?}");
        assert_eq!(refused.stderr.lines().count(), 1, "{refused:?}");
    }
    network.stop();
}

/// A validator whose facilitator is nowhere, with its pages.
fn alone(scratch: &Path, arguments: &[&str]) -> (Running, String) {
    let mut command = phalanx(scratch);
    command.args(["validator", "--facilitator", "ws://127.0.0.1:9/ws/v0/", "--key", "//Alice"]);
    command.args(["--http", "127.0.0.1:0", "--state-dir"]).arg(scratch.join("state")).args(arguments);
    let mut running = Running::start(command.env("RUST_LOG", "info"));
    let line: Value = serde_json::from_str(&running.line()).unwrap();
    (running, line["http"].as_str().unwrap().to_owned())
}

fn stop(running: Running, scratch: &Path) -> String {
    let finished = running.stop(Signal::TERM);
    assert_eq!(finished.code, Some(0), "{finished:?}");
    fs::remove_dir_all(scratch.join("state")).unwrap();
    finished.stderr
}

#[test]
fn a_changed_file_is_read_by_itself_and_at_once_with_sighup() {
    let (scratch, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (scratch, file) = (scratch.path(), folder.path().join("miners.toml"));
    fs::write(&file, entry(BOB)).unwrap();
    let (validator, pages) = alone(scratch, &["--miners", file.to_str().unwrap()]);
    assert_eq!(hotkeys(&listed(scratch, &pages)), [BOB]);
    fs::write(&file, entry(BOB) + &entry(CHARLIE)).unwrap();
    until_listed(scratch, &pages, &[BOB, CHARLIE], None);
    // Half of an entry, and none at all.
    fs::write(&file, &(entry(BOB) + &entry(ALICE))[..150]).unwrap();
    until_listed(scratch, &pages, &[BOB, CHARLIE], Some("miners.toml"));
    fs::write(&file, "miner = []\n").unwrap();
    until_listed(scratch, &pages, &[BOB, CHARLIE], Some("it names no miner; name at least one"));
    fs::write(&file, entry(ALICE)).unwrap();
    validator.signal(Signal::HUP);
    until_listed(scratch, &pages, &[ALICE], None);
    fs::remove_file(&file).unwrap();
    validator.signal(Signal::HUP);
    let answer = until_listed(scratch, &pages, &[ALICE], Some("cannot read it"));
    assert_eq!(answer["source"]["miners"], 1, "{answer}");
    let log = stop(validator, scratch);
    for line in [
        "SIGHUP: 1 miners from ",
        "2 miners from ",
        "the miners stay as they are: miners file",
        "SIGHUP: the miners stay as they are: miners file",
    ] {
        assert!(log.contains(line), "{line}: {log}");
    }
    nothing_left(scratch);
}

#[test]
fn a_list_from_a_server_is_refreshed_and_outlives_its_faults() {
    let (scratch, list) = (tempfile::tempdir().unwrap(), Arc::new(Mutex::new(String::new())));
    let scratch = scratch.path();
    let served = list.clone();
    let server = Server::start(move |_| Reply::ok(served.lock().unwrap().clone()));
    let name = |hotkeys: &[&str]| {
        let miners: Vec<Value> =
            hotkeys.iter().map(|hotkey| json!({"hotkey": hotkey, "address": "127.0.0.1", "port": 9})).collect();
        *list.lock().unwrap() = json!({ "miner": miners }).to_string();
    };
    let url = server.url("/miners.json?token=secret");
    let arguments = ["--miners", &url, "--miners-interval", "1s"];

    // At the start there is no old list.
    for (served, says) in [("", "not a JSON object of miners"), (r#"{"miner": []}"#, "it names no miner")] {
        *list.lock().unwrap() = served.to_owned();
        let mut command = phalanx(scratch);
        command.args(["validator", "--facilitator", "ws://127.0.0.1:9/ws/v0/", "--key", "//Alice", "--state-dir"]);
        let refused = run(command.arg(scratch.join("state")).args(arguments));
        assert_eq!((refused.code, refused.stderr.lines().count()), (Some(2), 1), "{refused:?}");
        assert!(refused.stderr.contains(says) && !refused.stderr.contains("secret"), "{refused:?}");
    }

    name(&[BOB]);
    let (validator, pages) = alone(scratch, &arguments);
    assert_eq!(hotkeys(&listed(scratch, &pages)), [BOB]);
    name(&[BOB, CHARLIE]);
    until_listed(scratch, &pages, &[BOB, CHARLIE], None);
    name(&[]);
    until_listed(scratch, &pages, &[BOB, CHARLIE], Some("it names no miner"));
    *list.lock().unwrap() = "<html>".to_owned();
    until_listed(scratch, &pages, &[BOB, CHARLIE], Some("not a JSON object of miners"));
    name(&[CHARLIE]);
    let answer = until_listed(scratch, &pages, &[CHARLIE], None);
    let log = stop(validator, scratch);
    for text in [log, answer.to_string()] {
        assert!(!text.contains("secret"), "{text}");
    }
    nothing_left(scratch);
}
