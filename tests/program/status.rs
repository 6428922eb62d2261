//! `phalanx status` against real roles, and what their pages have in common: the names of metrics, the job in the logs.

use crate::testkit::http;
use crate::testkit::network;
use crate::testkit::process;
use crate::testkit::wait::{LONG, until_some};
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Instant;

use http::{Reply, Server};
use network::{ALICE, BOB, CHARLIE, NO_OP, Network};
use phalanx::base::shutdown::Shutdown;
use phalanx::base::thread::{Kick, spawn};
use phalanx::net::http::client::HttpClient;
use phalanx::ops::health::PartState;
use phalanx::ops::metrics::LABELS;
use phalanx::ops::status::{RoleState, Snapshot};
use process::{Finished, Running, nothing_left, phalanx, run};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

fn status(scratch: &Path, arguments: &[&str]) -> Finished {
    run(phalanx(scratch).arg("status").args(arguments))
}

/// Asks until the role is ready: a link takes a moment.
fn until_ready(scratch: &Path, pages: &str) -> Snapshot {
    until_some("a role that is ready", || {
        let finished = status(scratch, &["--http", pages, "--json"]);
        let snapshot: Snapshot = serde_json::from_str(&finished.stdout).unwrap();
        assert_eq!(finished.code, Some(if snapshot.ready { 0 } else { 1 }), "{finished:?}");
        snapshot.ready.then_some(snapshot)
    })
}

#[test]
fn each_role_is_shown_and_its_readiness_is_the_exit_code() {
    let network = Network::start("debug", "text");
    let scratch = network.scratch.path();
    let client = HttpClient::new(Shutdown::new());
    for (role, _, pages) in &network.roles {
        let ask = |page: &str| {
            let headers = [("Origin".to_owned(), format!("https://{page}"))];
            client.get(&format!("http://{pages}/status.json"), &headers, Instant::now() + LONG).unwrap().status
        };
        assert_eq!((ask("pages.example"), ask("roles.example"), ask("evil.example")), (200, 200, 403), "{role}");
        let snapshot = until_ready(scratch, pages);
        assert_eq!((snapshot.role.as_str(), snapshot.state), (*role, RoleState::Running), "{snapshot:?}");
        assert!(snapshot.parts.iter().any(|part| part.name == "timer"), "{snapshot:?}");
        assert!(snapshot.threads.len() >= 4 && snapshot.process.is_some(), "{snapshot:?}");
        let page = status(scratch, &["--http", &format!("http://{pages}/")]);
        assert_eq!(page.code, Some(0), "{page:?}");
        assert!(page.stdout.starts_with(&format!("{role} {}, running, up ", env!("CARGO_PKG_VERSION"))), "{page:?}");
        assert!(page.stdout.contains(": ready\n") && !page.stdout.contains("kick: "), "{page:?}");
        let threads = run(phalanx(scratch).args(["status", "--verbose"]).env("PHALANX_HTTP", pages));
        let accept = format!("  {}-http ", &role[..3]);
        assert!(threads.code == Some(0) && threads.stdout.contains(&accept), "{threads:?}");
    }
    // A validator that has lost its facilitator says so, and goes on trying.
    let Network { roles, folder: _folder, scratch } = network;
    let [(_, validator, pages), (_, miner, _), (_, facilitator, _)] = roles;
    assert_eq!(facilitator.stop(Signal::TERM).code, Some(0));
    let limit = Instant::now() + LONG;
    let finished = loop {
        let finished = status(scratch.path(), &["--http", &pages]);
        if finished.code == Some(1) {
            break finished;
        }
        assert!(Instant::now() < limit, "still ready: {finished:?}");
    };
    let shown = &finished.stdout;
    assert!(shown.contains(": not ready\n") && shown.contains("\n  facilitator            down  "), "{finished:?}");
    assert_eq!(finished.stderr, "");
    let finished = status(scratch.path(), &["--http", &pages, "--json"]);
    let snapshot: Snapshot = serde_json::from_str(&finished.stdout).unwrap();
    assert_eq!((snapshot.state, snapshot.ready), (RoleState::Running, false), "{snapshot:?}");
    assert!(snapshot.parts.iter().any(|p| p.name == "facilitator" && p.state == PartState::Down), "{snapshot:?}");
    for role in [validator, miner] {
        assert_eq!(role.stop(Signal::TERM).code, Some(0));
    }
    nothing_left(scratch.path());
}

/// One job completed, one failed and one was rejected: no two of them are counted as the same.
#[test]
fn ends_are_counted_by_outcome_in_all_roles_and_several_are_shown_at_once() {
    let network = Network::start("info", "text");
    let scratch = network.scratch.path();
    let (uuid, _) = network.job(NO_OP);
    for (class, args, end) in [("always_on.test", ["false"], "failed"), ("always_on.gpu-24gb", ["true"], "rejected")] {
        let job = serde_json::json!({"executor_class": class, "docker_image": "x", "args": args});
        assert_eq!(network.end_of(&job)["status"], end);
    }
    let pages: Vec<&str> = ["facilitator", "validator", "miner"].map(|role| network.pages(role)).into();
    let of = |role: &str| -> Snapshot {
        serde_json::from_str(&status(scratch, &["--json", "--http", network.pages(role)]).stdout).unwrap()
    };
    for role in ["facilitator", "validator"] {
        let jobs = until_some("all ends", || Some(of(role).jobs).filter(|jobs| jobs.ended_in_all() == 3));
        let ended: Vec<_> = jobs.ended.iter().filter(|(_, count)| **count > 0).map(|(end, _)| end.as_str()).collect();
        assert_eq!((ended, jobs.open), (vec!["completed", "failed", "rejected"], 0), "{role}");
        let job = jobs.ended_jobs.iter().find(|job| job.uuid == uuid).unwrap();
        let stages: Vec<_> = job.history.iter().map(|stage| stage.stage.as_str()).collect();
        let first = if role == "validator" { "requested" } else { "sent" };
        let all = [first, "received", "accepted", "executor_ready", "volumes_ready", "execution_done", "completed"];
        assert_eq!(stages, all, "{role}");
        assert_eq!(job.peer.as_deref(), Some(if role == "validator" { BOB } else { ALICE }));
    }
    let ended = of("miner").jobs.ended;
    assert_eq!((ended["completed"], ended["failed"]), (1, 1), "{ended:?}");
    let client = HttpClient::new(Shutdown::new());
    for (role, counts) in [
        ("facilitator", ["completed\"} 1", "failed\"} 1", "rejected\"} 1", "horde_failed\"} 0"]),
        ("validator", ["completed\"} 1", "failed\"} 1", "rejected\"} 1", "horde_failed\"} 0"]),
        ("miner", ["completed\"} 1", "failed\"} 1", "declined\"} 0", "horde_failed\"} 0"]),
    ] {
        let url = format!("http://{}/metrics", network.pages(role));
        let text = client.get(&url, &[], Instant::now() + LONG).unwrap().text();
        for count in counts {
            let line = format!("phalanx_{role}_jobs_ended_total{{outcome=\"{count}\n");
            assert!(text.contains(&line), "{line} is not in {text}");
        }
    }
    let all = pages.iter().flat_map(|page| ["--http", page]).collect::<Vec<_>>();
    let shown = status(scratch, &all);
    assert_eq!(shown.code, Some(0), "{shown:?}");
    assert!(shown.stdout.lines().all(|line| line.chars().count() <= 80), "{}", shown.stdout);
    assert_eq!(shown.stdout.matches(": ready\n").count(), 3, "{}", shown.stdout);
    assert!(shown.stdout.matches("  completed              1\n").count() >= 2 && shown.stdout.contains(&uuid));
    let json = status(scratch, &[&all[..], &["--json"]].concat());
    assert_eq!(json.stdout.lines().filter_map(|line| serde_json::from_str::<Snapshot>(line).ok()).count(), 3);
    // One that does not answer hides no other.
    let shown = status(scratch, &[&all[..2], &["--http", "127.0.0.1:1"]].concat());
    assert_eq!((shown.code, shown.stderr.lines().count()), (Some(1), 1), "{shown:?}");
    assert!(shown.stdout.starts_with("facilitator "), "{shown:?}");
    network.stop();
}

#[test]
fn a_role_with_a_certificate_of_its_own_is_asked_by_who_trusts_it() {
    let (scratch, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let [cert, key] = ["cert.pem", "key.pem"].map(|name| folder.path().join(name).display().to_string());
    std::fs::write(&cert, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let mut command = phalanx(scratch.path());
    command.args(["validator", "--facilitator", "ws://127.0.0.1:1/", "--key", "//Alice", "--dispatch", "stub"]);
    let mut running =
        Running::start(command.args(["--http", "127.0.0.1:0", "--http-tls-cert", &cert, "--http-tls-key", &key]));
    let line: Value = serde_json::from_str(&running.line()).unwrap();
    let port = line["http"].as_str().unwrap().rsplit_once(':').unwrap().1.to_owned();
    let url = format!("https://localhost:{port}");
    let trusted = status(scratch.path(), &["--http", &url, "--tls-ca", &cert]);
    assert!(trusted.code == Some(1) && trusted.stdout.starts_with("validator "), "{trusted:?}");
    let stranger = status(scratch.path(), &["--http", &url]);
    assert!(stranger.code == Some(1) && stranger.stdout.is_empty(), "{stranger:?}");
    assert!(stranger.stderr.starts_with("error: no role of phalanx answers: "), "{stranger:?}");
    let missing = status(scratch.path(), &["--http", &url, "--tls-ca", "/nowhere"]);
    assert!(missing.code == Some(2) && missing.stderr.starts_with("error: --tls-ca: "), "{missing:?}");
    running.stop(Signal::TERM);
}

#[test]
fn the_way_of_a_job_through_a_miner_is_shown_and_an_unknown_job_is_exit_1() {
    let network = Network::start("info", "text");
    let (uuid, _) = network.job(NO_OP);
    let trace = |arguments: &[&str]| run(phalanx(network.scratch.path()).args(["job", "trace"]).args(arguments));
    let pages = network.pages("miner");
    // The validator's last receipt follows the end that the user sees.
    let finished = until_some("the last receipt", || {
        let finished = trace(&[&uuid, "--http", pages]);
        finished.stdout.contains("Confirmed              Ended").then_some(finished)
    });
    assert_eq!(finished.code, Some(0), "{finished:?}");
    let events = ["Asked", "Accepted ", "InitialSent", "RequestSent", "VolumesReady ", "Ended "];
    let at = events.map(|event| finished.stdout.find(event).unwrap_or_else(|| panic!("{event}: {}", finished.stdout)));
    assert!(at.is_sorted(), "{}", finished.stdout);
    assert!(finished.stdout.contains(&format!("job {uuid} of validator {ALICE}, always_on.test")), "{finished:?}");
    let json: Value = serde_json::from_str(&trace(&[&uuid, "--http", pages, "--json"]).stdout).unwrap();
    assert_eq!(json["jobs"][0]["job_uuid"], uuid.as_str());
    let unknown = trace(&["00000000-0000-0000-0000-000000000001", "--http", pages]);
    assert_eq!(unknown.code, Some(1), "{unknown:?}");
    assert!(unknown.stderr.contains("the miner does not know job"), "{unknown:?}");
    assert_eq!(trace(&["x", "--http", pages]).code, Some(2));
    network.stop();
}

/// Threads that do not wait, but for the one that makes the page.
fn running(snapshot: &Snapshot) -> Vec<&str> {
    let answers = format!("{}-http-", &snapshot.role[..3]);
    let runs =
        snapshot.threads.iter().filter(|thread| thread.waits_for.is_none() && !thread.name.starts_with(&answers));
    runs.map(|thread| thread.name.as_str()).collect()
}

#[test]
fn every_thread_of_an_idle_role_says_what_it_waits_for() {
    let network = Network::start("debug", "text");
    let scratch = network.scratch.path();
    // The threads of jobs are there as well, once there has been one.
    network.job(NO_OP);
    for (role, _, pages) in &network.roles {
        let limit = Instant::now() + LONG;
        let snapshot = loop {
            let snapshot = until_ready(scratch, pages);
            if running(&snapshot).is_empty() {
                break snapshot;
            }
            assert!(Instant::now() < limit, "{role}: never idle: {:?}", running(&snapshot));
        };
        println!(
            "{role}: {:#?}",
            snapshot.threads.iter().map(|thread| (&thread.name, &thread.waits_for)).collect::<Vec<_>>()
        );
        assert_eq!(snapshot.warnings, Vec::<String>::new());
        let waits = |name: &str| {
            let thread = snapshot.threads.iter().find(|thread| thread.name == name);
            thread.unwrap_or_else(|| panic!("{role} has no {name}: {snapshot:?}")).waits_for.clone().unwrap()
        };
        assert_eq!(waits("main"), "the first signal");
        assert_eq!(waits("signals"), "a signal");
        assert_eq!(waits(&format!("{}-http", &role[..3])), "a connection");
        assert!(["its next alarm", "an alarm"].contains(&waits("timer").as_str()));
        let page = run(phalanx(scratch).args(["status", "--verbose", "--http", pages]));
        let (_, main) = page.stdout.split_once("\n  main ").unwrap();
        let words = main.split_whitespace().collect::<Vec<_>>().join(" ");
        let (does, kick) = words.split_once("; kick: ").unwrap();
        assert!(does.contains(" waits for the first signal for ") && kick.starts_with("the signals"), "{page:?}");
        assert!(page.stdout.lines().all(|line| line.chars().count() <= 80), "{}", page.stdout);
    }
    network.stop();
}

#[test]
fn what_does_not_answer_is_one_clear_line() {
    let scratch = tempfile::tempdir().unwrap();
    // A port that was free a moment ago.
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let other = Server::start(|request| match request.path.as_str() {
        "/json/status.json" => Reply::ok(r#"{"status": "fine"}"#),
        _ => Reply::status(404),
    });
    let (no_page, wrong_page) = (other.url(""), other.url("/json"));
    for (http, code, says) in [
        (nobody.as_str(), 1, "no role of phalanx answers: cannot talk to http://127.0.0.1:"),
        (&no_page, 1, "/status.json answered 404"),
        (&wrong_page, 1, "/json/status.json cannot be read: bad JSON: missing field"),
        ("nowhere", 2, "--http \"nowhere\": give the --http address of the role, as 127.0.0.1:8080"),
        ("http://me:pass-word@127.0.0.1:1", 1, "cannot talk to http://127.0.0.1:1/"),
    ] {
        let finished = status(scratch.path(), &["--http", http]);
        assert_eq!((finished.code, finished.stdout.as_str()), (Some(code), ""), "{http}: {finished:?}");
        assert!(finished.stderr.starts_with("error: ") && finished.stderr.lines().count() == 1, "{finished:?}");
        assert!(finished.stderr.contains(says), "{http}: {finished:?}");
        assert!(!finished.stderr.contains("pass-word"), "{finished:?}");
    }
    let finished = status(scratch.path(), &[]);
    assert_eq!(finished.code, Some(2));
    assert!(finished.stderr.starts_with("error: --http is missing; give the --http address"), "{finished:?}");
}

/// The name, the labels and the value of one sample.
fn sample(line: &str) -> (&str, Vec<(&str, &str)>, f64) {
    let (series, value) = line.rsplit_once(' ').unwrap();
    let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
    let labels = labels.strip_suffix('}').unwrap();
    let pairs = labels.split("\",").filter(|pair| !pair.is_empty());
    let pairs =
        pairs.map(|pair| pair.split_once("=\"").map(|(name, value)| (name, value.trim_end_matches('"'))).unwrap());
    (name, pairs.collect(), value.parse().unwrap())
}

#[test]
fn the_metrics_of_all_roles_are_named_by_the_rules_and_bounded() {
    let network = Network::start("debug", "text");
    let uuid = network.job(NO_OP).0;
    let client = HttpClient::new(Shutdown::new());
    let mut names = BTreeSet::new();
    for (role, _, pages) in &network.roles {
        let answer = client.get(&format!("http://{pages}/metrics"), &[], Instant::now() + LONG).unwrap();
        let text = answer.ok().unwrap().text();
        for secret in [ALICE, BOB, CHARLIE, &uuid] {
            assert!(!text.contains(secret), "{role}: {secret} in\n{text}");
        }
        let mut kind = "";
        for line in text.lines() {
            if let Some(family) = line.strip_prefix("# TYPE ") {
                let (name, of) = family.split_once(' ').unwrap();
                kind = of;
                names.insert(name.to_owned());
                let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
                assert!(name.starts_with("phalanx_") && name.chars().all(good), "{role}: {name}");
                let ends = |units: &[&str]| units.iter().any(|unit| name.ends_with(unit));
                assert_eq!(kind == "counter", ends(&["_total"]), "{role}: {name}");
                assert!(kind != "histogram" || ends(&["_seconds", "_bytes"]), "{role}: {name}");
                for (words, units) in [
                    (&["time", "age", "duration", "latency", "uptime"][..], ["_seconds", "_seconds_total"]),
                    (&["memory", "size"], ["_bytes", "_bytes_total"]),
                ] {
                    let measured = name.split('_').any(|word| words.contains(&word));
                    assert!(!measured || ends(&units), "{role}: {name} should end in one of {units:?}");
                }
            } else if !line.starts_with('#') {
                let (name, labels, value) = sample(line);
                assert!(value.is_finite(), "{role}: {line}");
                for (label, value) in labels {
                    let bound = label == "le" && kind == "histogram" && name.ends_with("_bucket");
                    assert!(bound || LABELS.contains(&label), "{role}: {line}");
                    assert!(value.len() <= 32, "{role}: {line}");
                }
            }
        }
        for common in
            ["process_resident_memory_bytes", "process_threads", "process_open_fds", "uptime_seconds", "ready"]
        {
            let name = format!("phalanx_{common} ");
            let found = text.lines().find_map(|line| line.strip_prefix(&name));
            let value: f64 = found.unwrap_or_else(|| panic!("{role}: no {name}in\n{text}")).parse().unwrap();
            assert!(value >= 1.0 || common == "uptime_seconds", "{role}: {name}{value}");
        }
        let build = format!("phalanx_build_info{{version=\"{}\"}} 1\n", env!("CARGO_PKG_VERSION"));
        assert!(text.contains(&build), "{role}: {text}");
    }
    for (role, series) in [
        ("facilitator", r#"messages_sent_total{peer="validator",type="V2JobRequest",result="sent"} 1"#),
        ("facilitator", r#"connections{peer="validator",state="open"} 1"#),
        ("facilitator", r#"parts{state="stuck"} 0"#),
        ("validator", r#"messages_received_total{peer="facilitator",type="V2JobRequest"} 1"#),
        ("validator", r#"messages_sent_total{peer="facilitator",type="V0AuthenticationRequest",result="sent"} 1"#),
        ("validator", r#"dials_total{peer="facilitator",result="connected"} 1"#),
        ("validator", r#"link{state="ready"} 1"#),
        ("validator", r#"messages_sent_total{peer="miner",type="V0InitialJobRequest",result="sent"} 1"#),
        ("validator", r#"messages_received_total{peer="miner",type="V0JobFinishedRequest"} 1"#),
        ("miner", r#"messages_received_total{peer="validator",type="V0InitialJobRequest"} 1"#),
        ("miner", r#"messages_sent_total{peer="executor",type="V0JobRequest",result="sent"} 1"#),
        ("miner", r#"messages_received_total{peer="executor",type="V0JobFinishedRequest"} 1"#),
    ] {
        let pages = network.pages(role);
        let text = client.get(&format!("http://{pages}/metrics"), &[], Instant::now() + LONG).unwrap().text();
        let name = if series.starts_with("link") { "phalanx_validator_" } else { "phalanx_" };
        assert!(text.contains(&format!("\n{name}{series}\n")), "{role}: {series} is not in\n{text}");
    }
    // What dashboard and alerts show is there from the start, but for what has to happen first, and what only a worker,
    // or an engine, has.
    let rare = [
        "errors",
        "start_failures",
        "quarantined",
        "over_rate",
        "image_",
        "images_",
        "worker",
        "redis",
        "celery",
        "incidents",
    ];
    for file in ["grafana/phalanx.json", "prometheus/phalanx.yml"] {
        let text = std::fs::read_to_string(format!("{}/packaging/{file}", env!("CARGO_MANIFEST_DIR"))).unwrap();
        let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        for name in words.filter(|word| word.starts_with("phalanx_") && !rare.iter().any(|rare| word.contains(rare))) {
            let name = name.strip_suffix("_bucket").unwrap_or(name);
            assert!(names.contains(name), "{file}: no role exports {name}: {names:?}");
        }
    }
    // Each role has some of its own.
    for role in ["facilitator", "validator", "miner"] {
        assert!(names.iter().any(|name| name.starts_with(&format!("phalanx_{role}_"))), "{names:?}");
    }
    network.stop();
}

#[test]
fn the_log_lines_of_a_job_name_it_in_both_formats() {
    for format in ["text", "json"] {
        let network = Network::start("debug", format);
        let uuid = network.job(NO_OP).0;
        for (role, stderr) in network.stop() {
            for line in stderr.lines() {
                if format == "json" {
                    let record: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{role}: {line}: {e}"));
                    let message = record["message"].as_str().unwrap();
                    assert!(!message.starts_with("job ") && !message.contains("executor of job"), "{role}: {line}");
                    if record["thread"].as_str().unwrap().starts_with("min-ex-") {
                        assert_eq!(record["job"], uuid, "{line}");
                    }
                } else {
                    assert!(line.matches(&format!("job {uuid}: ")).count() <= 1, "{role}: {line}");
                    if line.contains("[min-ex-") {
                        assert!(line.contains(&format!("] job {uuid}: ")), "{line}");
                    }
                }
            }
            if role == "miner" {
                assert!(stderr.contains("min-ex-"), "the thread of the executor says something at debug:\n{stderr}");
            }
        }
    }
}

/// A process that does not outlive its test.
struct KilledOnDrop(Child);

impl Drop for KilledOnDrop {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_signal_makes_a_running_role_say_more_and_another_less() {
    let (scratch, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut command = phalanx(scratch.path());
    command.args(["validator", "--facilitator", "ws://127.0.0.1:1/", "--key", "//Alice", "--dispatch", "stub"]);
    command.args(["--http", "127.0.0.1:0", "--state-dir"]).arg(folder.path()).env("RUST_LOG", "error");
    let mut child = KilledOnDrop(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
    let pid = Pid::from_child(&child.0);
    let (stdout, stderr) = (child.0.stdout.take().unwrap(), child.0.stderr.take().unwrap());
    let (report, lines) = crossbeam_channel::bounded(10_000);
    let reader = spawn("t-stderr", Kick::dropped("the process"), move || {
        BufReader::new(stderr).lines().for_each(|line| report.send(line.unwrap()).unwrap());
    });
    let mut announced = String::new();
    BufReader::new(stdout).read_line(&mut announced).unwrap();
    let announced: Value = serde_json::from_str(&announced).unwrap();
    let client = HttpClient::new(Shutdown::new());
    let get = |page: &str| {
        let url = format!("http://{}{page}", announced["http"].as_str().unwrap());
        client.get(&url, &[], Instant::now() + LONG).unwrap();
    };
    let until = |what: &str| loop {
        let line = lines.recv_timeout(LONG).unwrap_or_else(|_| panic!("never: {what}"));
        assert!(!line.contains("/quiet"), "{line}");
        if line.contains(what) {
            return;
        }
    };
    get("/quiet-1");
    kill_process(pid, Signal::USR2).unwrap();
    until("logging all up to debug");
    get("/healthz");
    until("http GET /healthz from ");
    kill_process(pid, Signal::USR2).unwrap();
    until("logging as at the start");
    get("/quiet-2");
    kill_process(pid, Signal::TERM).unwrap();
    assert_eq!(child.0.wait().unwrap().code(), Some(0));
    reader.join_by(Instant::now() + LONG).unwrap();
    let rest: Vec<String> = lines.iter().collect();
    assert!(!rest.iter().any(|line| line.contains("DEBUG")), "{rest:?}");
}
