//! Pausing roles, roles that stop by themselves, the flight recorder, and `phalanx doctor`.

use crate::testkit::network::{BOB, NO_OP, Network};
use crate::testkit::process::{Finished, Running, in_scratch, nothing_left, phalanx, run};
use crate::testkit::roles::{FakeFacilitator, World, job, statuses};
use crate::testkit::wait::{LONG, until, until_some};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use phalanx::base::shutdown::Shutdown;
use phalanx::identity::KeyPair;
use phalanx::link::recorder::{FrameWay, LinkRecord};
use phalanx::net::http::client::HttpClient;
use phalanx::protocol::{JobStatus, V0JobStatusUpdate};
use phalanx::transport::ws::WsListener;
use rustix::process::{Signal, geteuid};
use serde_json::Value;

/// The status and the text of a page.
fn page(pages: &str, name: &str) -> (u16, String) {
    let url = format!("http://{pages}/{name}");
    let response = HttpClient::new(Shutdown::new()).get(&url, &[], Instant::now() + LONG).unwrap();
    (response.status, response.text())
}

/// A validator that answers jobs itself, and its facilitator.
struct Stub {
    folder: tempfile::TempDir,
    scratch: tempfile::TempDir,
    facilitator: FakeFacilitator,
    url: String,
    _world: World,
}

impl Stub {
    fn new() -> Self {
        let world = World::new();
        let listener = WsListener::bind("127.0.0.1:0", None).unwrap();
        let url = format!("ws://{}/ws/v0/", listener.local_addr());
        let facilitator = FakeFacilitator::start_on(&world, Box::new(listener));
        let [folder, scratch] = [(), ()].map(|()| tempfile::tempdir().unwrap());
        Self { folder, scratch, facilitator, url, _world: world }
    }

    fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    /// A validator, and where its pages are.
    fn validator(&self, arguments: &[&str]) -> (Running, String) {
        let mut command = phalanx(self.scratch.path());
        command.args(["validator", "--dispatch", "stub", "--facilitator", &self.url, "--http", "127.0.0.1:0"]);
        command.args(["--key", "//Alice", "--state-dir"]).arg(self.state()).args(arguments);
        let mut running = Running::start(&mut command);
        let line: Value = serde_json::from_str(&running.line()).unwrap();
        let pages = line["http"].as_str().unwrap().to_owned();
        (running, pages)
    }

    fn command(&self, words: &[&str]) -> Finished {
        run(phalanx(self.scratch.path()).args(words).arg("--state-dir").arg(self.state()))
    }

    fn ready(&self, pages: &str) {
        until("a validator that is ready", || page(pages, "readyz").0 == 200);
    }

    /// Asks for a job; how it went.
    fn job(&self) -> Vec<V0JobStatusUpdate> {
        let request = job(&KeyPair::load("//Alice").unwrap());
        let uuid = request.uuid.clone();
        self.facilitator.push(request);
        self.facilitator.history(&uuid)
    }

    fn stop(self) {
        self.facilitator.stop();
        nothing_left(self.scratch.path());
    }
}

fn last(history: &[V0JobStatusUpdate]) -> JobStatus {
    *statuses(history).last().unwrap()
}

#[test]
fn a_paused_validator_refuses_jobs_with_its_note_until_it_is_resumed_also_over_a_restart() {
    let stub = Stub::new();
    let unknown = stub.command(&["pause"]);
    assert_eq!(unknown.code, Some(2), "{unknown:?}");
    assert!(unknown.stderr.contains("no validator, worker or miner"), "{unknown:?}");
    let (validator, pages) = stub.validator(&[]);
    stub.ready(&pages);
    assert_eq!(last(&stub.job()), JobStatus::Completed);
    assert_eq!(stub.command(&["pause", "--note", "two\nlines"]).code, Some(2));
    let paused = stub.command(&["pause", "--note", "new disk", "--for", "1h"]);
    assert_eq!(paused.code, Some(0), "{paused:?}");
    assert!(paused.stdout.ends_with(&format!("new disk; process {} is told\n", validator.id())), "{paused:?}");
    until("a validator that is paused", || page(&pages, "readyz").0 == 503);
    let said = page(&pages, "readyz").1;
    assert!(said.starts_with("the validator takes no new work: it is paused for another "), "{said}");
    assert_eq!(page(&pages, "healthz"), (200, "ok\n".to_owned()));
    assert!(page(&pages, "metrics").1.contains("\nphalanx_paused 1\n"));
    let history = stub.job();
    assert_eq!(statuses(&history), [JobStatus::Rejected]);
    let details = history[0].metadata.as_ref().unwrap().job_rejection_details.as_ref().unwrap();
    assert!(details.message.starts_with("the validator is paused for another "), "{details:?}");
    assert!(details.message.ends_with(": new disk"), "{details:?}");
    let status = run(phalanx(stub.scratch.path()).args(["status", "--http", &pages]));
    assert!(status.stdout.contains(", paused, up ") && status.stdout.contains("takes no new work"), "{status:?}");
    assert_eq!(fs::metadata(stub.state().join("paused.json")).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(validator.stop(Signal::TERM).code, Some(0));

    let (validator, pages) = stub.validator(&[]);
    assert!(page(&pages, "readyz").1.contains(": new disk\n"), "{}", page(&pages, "readyz").1);
    assert_eq!(stub.command(&["resume"]).code, Some(0));
    stub.ready(&pages);
    assert_eq!(last(&stub.job()), JobStatus::Completed);
    assert!(stub.command(&["resume"]).stdout.starts_with("it was not paused; process "));
    // Its end comes by itself.
    assert_eq!(stub.command(&["pause", "--for", "1s"]).code, Some(0));
    stub.ready(&pages);
    assert_eq!(validator.stop(Signal::TERM).code, Some(0));
    let told = stub.command(&["pause"]);
    assert!(told.stdout.contains("no role runs there now"), "{told:?}");
    stub.stop();
}

#[test]
fn a_paused_miner_offers_no_executor_and_takes_no_job() {
    let network = Network::start("info", "text");
    let (scratch, miners) = (network.scratch.path(), network.folder.path().join("miners.toml"));
    let command = |words: &[&str]| {
        let state = network.folder.path().join("miner");
        assert_eq!(run(phalanx(scratch).args(words).arg("--state-dir").arg(state)).code, Some(0));
    };
    let offered = || -> Value {
        let asked = run(phalanx(scratch).args(["manifests", "--key", "//Alice", "--json", "--miners"]).arg(&miners));
        let line: Value = serde_json::from_str(&asked.stdout).unwrap_or_else(|error| panic!("{error}: {asked:?}"));
        assert_eq!((&line["hotkey"], &line["outcome"]), (&BOB.into(), &"ok".into()), "{line}");
        line["manifest"].clone()
    };
    command(&["pause", "--note", "moving"]);
    until("a miner that offers nothing", || offered() == serde_json::json!({}));
    assert!(page(network.pages("miner"), "readyz").1.contains(": moving\n"));
    let end = network.end_of(&serde_json::from_str(NO_OP).unwrap());
    assert_eq!(end["status"], "rejected", "{end}");
    command(&["resume"]);
    until("a miner that offers all", || offered() == serde_json::json!({"always_on.test": 2}));
    network.stop();
}

#[test]
fn a_validator_stops_by_itself_after_a_time_when_idle_and_after_one_job() {
    let stub = Stub::new();
    for (arguments, said) in [
        (["--stop-after-uptime", "1s"], "--stop-after-uptime 1s is over"),
        (["--stop-when-idle", "1s"], "--stop-when-idle 1s is over"),
    ] {
        let finished = stub.validator(&arguments).0.finish();
        assert_eq!(finished.code, Some(0), "{finished:?}");
        assert!(finished.stderr.contains(said), "{finished:?}");
    }
    let wrong = ["validator", "--stop-when-idle", "1ms", "--dispatch", "stub", "--key", "//Alice", "--facilitator"];
    let wrong = stub.command(&[&wrong[..], &[&stub.url]].concat());
    assert!(wrong.code == Some(2) && wrong.stderr.contains("--stop-when-idle: it should be 1s or more"), "{wrong:?}");

    // The first job takes a while, so the second comes while it runs.
    let (validator, pages) = stub.validator(&["--run-one-job", "--stub-time", "300ms"]);
    stub.ready(&pages);
    let requests = [(), ()].map(|()| job(&KeyPair::load("//Alice").unwrap()));
    requests.into_iter().for_each(|request| stub.facilitator.push(request));
    let updates = std::iter::repeat_with(|| stub.facilitator.updates.recv_timeout(LONG).unwrap().status);
    let mut ends: Vec<JobStatus> = updates.filter(|status| status.is_terminal()).take(2).collect();
    ends.sort_by_key(|status| status.as_str());
    assert_eq!(ends, [JobStatus::Completed, JobStatus::Rejected]);
    let finished = validator.finish();
    assert_eq!(finished.code, Some(0), "{finished:?}");
    stub.stop();
}

#[test]
fn a_miner_stops_by_itself_after_one_job() {
    let network = Network::start_with("info", "text", |miner| {
        miner.args(["--runner", "process", "--run-one-job"]);
    });
    network.job(NO_OP);
    let Network { roles, folder: _folder, scratch } = network;
    for (role, running, _) in roles {
        let finished = if role == "miner" { running.finish() } else { running.stop(Signal::TERM) };
        assert_eq!(finished.code, Some(0), "{role}: {finished:?}");
    }
    nothing_left(scratch.path());
}

#[test]
fn the_flight_recorder_has_the_last_frames_of_each_link_without_what_they_say() {
    let network = Network::start("info", "text");
    network.job(r#"{"executor_class": "always_on.test", "docker_image": "x", "args": ["echo", "unheard-of"]}"#);
    let (_, validator, pages) = &network.roles[0];
    validator.signal(Signal::USR1);
    let path = network.folder.path().join("validator/flight.json");
    let written: Value = until_some("the file", || serde_json::from_str(&fs::read_to_string(&path).ok()?).ok());
    assert_eq!(written["why"], "SIGUSR1");
    assert!(written["threads"].as_array().unwrap().iter().any(|line| line.as_str().unwrap().contains("val-fac-rd")));
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let shown = page(pages, "links.json");
    assert_eq!(shown.0, 200);
    for text in [written.to_string(), shown.1] {
        assert!(!text.contains("unheard-of") && !text.contains("signature"), "{text}");
        let links = serde_json::from_str::<Value>(&text).unwrap()["links"].take();
        let links: Vec<LinkRecord> = serde_json::from_value(links).unwrap();
        let has = |name: &str, way: FrameWay, kind: &str| {
            let of = links.iter().filter(|link| link.link.starts_with(name)).flat_map(|link| &link.entries);
            let mut of = of.filter(|entry| entry.frame == Some(way) && entry.bytes.is_some_and(|bytes| bytes > 2));
            assert!(of.any(|entry| entry.kind.as_deref() == Some(kind)), "{name} {way:?} {kind}: {links:?}");
        };
        has("val-fac", FrameWay::Received, "V2JobRequest");
        has("val-fac", FrameWay::Sent, "V0JobStatusUpdate");
        has("val-mi-", FrameWay::Sent, "V0InitialJobRequest");
        has("val-mi-", FrameWay::Received, "V0JobFinishedRequest");
        let fac = links.iter().find(|link| link.link == "val-fac").unwrap();
        assert!(fac.entries.iter().any(|entry| entry.event.as_deref() == Some("ready, epoch 1")), "{fac:?}");
    }
    let of_facilitator = page(network.pages("facilitator"), "links.json").1;
    assert!(of_facilitator.contains("\"fac-accept\"") && of_facilitator.contains(" is open\""), "{of_facilitator}");
    network.stop();
}

/// A thread panics here because the system has none for the one that it wants to start.
#[test]
fn a_thread_that_panics_leaves_the_flight_recorder_and_ends_the_process() {
    if !geteuid().is_root() {
        return;
    }
    // A user without other processes, whose limit of threads can be lowered while one runs.
    const UID: u32 = 61_011;
    let world = World::new();
    let listener = WsListener::bind("127.0.0.1:0", None).unwrap();
    let url = format!("ws://{}/ws/v0/", listener.local_addr());
    let facilitator = FakeFacilitator::start_on(&world, Box::new(listener));
    let [folder, scratch] = [(), ()].map(|()| tempfile::tempdir_in("/tmp").unwrap());
    let path = |name: &str| folder.path().join(name);
    fs::copy(env!("CARGO_BIN_EXE_phalanx"), path("phalanx")).unwrap();
    let miners = format!("[[miner]]\nhotkey = \"{BOB}\"\naddress = \"127.0.0.1\"\nport = 1\n");
    fs::write(path("miners.toml"), miners).unwrap();
    for owned in [folder.path(), scratch.path()] {
        std::os::unix::fs::chown(owned, Some(UID), Some(UID)).unwrap();
    }
    let as_user = ["--reuid", &UID.to_string(), "--regid", &UID.to_string(), "--clear-groups"];
    let mut command = in_scratch(Command::new("setpriv"), scratch.path());
    command.args(as_user).arg(path("phalanx")).args(["validator", "--facilitator", &url, "--http", "127.0.0.1:0"]);
    command.args(["--key", "//Alice", "--manifest-interval", "1s", "--miners"]).arg(path("miners.toml"));
    command.arg("--state-dir").arg(path("state")).env("RUST_LOG", "info");
    let mut validator = Running::start(&mut command);
    let line: Value = serde_json::from_str(&validator.line()).unwrap();
    let pages = line["http"].as_str().unwrap().to_owned();
    until("a validator that is ready", || page(&pages, "readyz").0 == 200);
    let limit = ["prlimit", "--pid", &validator.id().to_string(), "--nproc=1:1"];
    assert!(Command::new("setpriv").args(as_user).args(limit).status().unwrap().success());
    // The next round of manifests begins within a second, and begins with a thread.
    let finished = validator.finish();
    assert_eq!(finished.code, Some(1), "{finished:?}");
    assert!(finished.stderr.contains("thread val-manifests cannot go on: "), "{finished:?}");
    let flight = path("state/flight.json");
    assert!(finished.stderr.contains(&format!("the flight recorder is in {}", flight.display())), "{finished:?}");
    let written: Value = serde_json::from_str(&fs::read_to_string(&flight).unwrap()).unwrap();
    assert_eq!(written["why"], "a thread has panicked");
    let threads = written["threads"].as_array().unwrap();
    for thread in ["val-fac-rd", "val-manifests", "main"] {
        assert!(threads.iter().any(|line| line.as_str().unwrap().starts_with(thread)), "{thread}: {written:#}");
    }
    let links: Vec<LinkRecord> = serde_json::from_value(written["links"].clone()).unwrap();
    let link = links.iter().find(|link| link.link == "val-fac").unwrap();
    assert!(link.entries.iter().any(|entry| entry.kind.as_deref() == Some("V0Heartbeat")), "{link:?}");
    assert_eq!(fs::metadata(&flight).unwrap().permissions().mode() & 0o777, 0o600);
    facilitator.stop();
    nothing_left(scratch.path());
}

#[test]
fn doctor_puts_roles_settings_and_a_check_into_one_file_without_a_secret() {
    let network = Network::start("info", "text");
    let scratch = network.scratch.path();
    network.job(NO_OP);
    // Secrets wherever one may be, in a role that runs and in settings that are only looked at.
    let url = "ws://127.0.0.1:1/ws/v0/?token=s3cret-2";
    let proxy = "http://me:s3cret-4@127.0.0.1:1";
    let flags =
        ["validator", "--dispatch", "celery", "--facilitator", url, "--proxy", proxy, "--key", "//Alice//s3cret-5"];
    let mut stub = phalanx(scratch);
    stub.args(["validator", "--dispatch", "stub", "--http", "127.0.0.1:0", "--facilitator", url, "--proxy", proxy]);
    let mut stub = Running::start(stub.args(["--key", "//Alice//s3cret-5"]));
    let pages = serde_json::from_str::<Value>(&stub.line()).unwrap()["http"].as_str().unwrap().to_owned();
    let file = network.folder.path().join("report.json");
    let mut doctor = phalanx(scratch);
    doctor.args(["doctor", "--http", network.pages("miner"), "--http", network.pages("facilitator")]);
    doctor.args(["--http", &pages, "--http", "127.0.0.1:1", "--output"]).arg(&file).args(flags);
    doctor.env("PHALANX_REDIS", "redis://:s3cret-6@127.0.0.1:1/0").arg("--state-dir").arg(scratch.join("none"));
    let finished = run(&mut doctor);
    assert_eq!((finished.code, finished.stderr.lines().count()), (Some(1), 1), "{finished:?}");
    assert!(finished.stderr.starts_with("error: no role of phalanx answers: "), "{finished:?}");
    assert_eq!(finished.stdout, format!("{}\n", file.display()));
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let text = fs::read_to_string(&file).unwrap();
    let report: Value = serde_json::from_str(&text).unwrap();
    for (at, role) in ["miner", "facilitator", "validator"].into_iter().enumerate() {
        let of = &report["roles"][at];
        assert_eq!(of["status.json"]["role"], role, "{of:#}");
        assert!(of["status.json"]["threads"].as_array().is_some_and(|threads| threads.len() > 3), "{of:#}");
        assert!(of["links.json"]["links"].as_array().is_some_and(|links| !links.is_empty()), "{of:#}");
        assert!(of["metrics"].as_str().unwrap().contains("phalanx_build_info"), "{of:#}");
        assert_eq!(of["healthz"], "ok\n");
    }
    assert!(report["roles"][3]["error"].is_string(), "{report:#}");
    assert_eq!(report["problems"].as_array().unwrap().len(), 1);
    let (show, check) = (&report["settings"]["show"], &report["settings"]["check"]);
    assert!(show["said"].as_str().unwrap().contains("dispatch = \"celery\""), "{show:#}");
    assert!(check["said"].as_str().unwrap().contains("warn   facilitator: "), "{check:#}");
    assert!(!text.contains("s3cret"), "{text}");
    for wrong in [&["doctor"][..], &["doctor", "--http", "nowhere"], &["doctor", "pirate"]] {
        assert_eq!(run(phalanx(scratch).args(wrong)).code, Some(2), "{wrong:?}");
    }
    assert_eq!(stub.stop(Signal::TERM).code, Some(0));
    network.stop();
}
