//! Security checks of hosts: real probes on the engine, the version of a stand-in toolkit, and how long both count.

use crate::testkit::engine::{IMAGE, StandIn, docker, left, ready};
use crate::testkit::wait::far;
use std::sync::Arc;
use std::time::{Duration, Instant};

use phalanx::base::shutdown::Shutdown;
use phalanx::executor::sandbox::{Profile, Sandbox};
use phalanx::miner::ExecutorBackend;
use phalanx::miner::executor_manager::{
    ExecutorEnd, ExecutorExit, ExecutorSpec, Probe, RareChecks, SecuredBackend, SecurityChecks, ToolkitVersion,
};
use phalanx::proc::docker::labels;

/// A back end that is always well.
struct Well;

impl ExecutorBackend for Well {
    fn run(&self, _: &ExecutorSpec, _: &Shutdown) -> ExecutorEnd {
        Ok(ExecutorExit::Code(0))
    }
}

const HOURS: RareChecks = RareChecks { interval: Duration::from_secs(3600), retry: Duration::from_secs(3600) };
const ALWAYS: RareChecks = RareChecks { interval: Duration::ZERO, retry: Duration::ZERO };

/// An image whose command is this script; removed when dropped.
struct ProbeImage(String);

impl ProbeImage {
    fn new(script: &str) -> Self {
        let image = format!("phalanx-test-probe:{}", uuid::Uuid::new_v4());
        let made = docker(&["create", IMAGE, "true"]).unwrap();
        let command = serde_json::json!(["sh", "-c", script]);
        docker(&["commit", "--change", &format!("CMD {command}"), &made, &image]).unwrap();
        docker(&["rm", &made]).unwrap();
        Self(image)
    }

    /// The probe, in the strictest sandbox.
    fn probe(&self, says: Option<&str>) -> Probe {
        let strict = Sandbox {
            profile: Profile::Strict,
            user: Some("65534:65534".into()),
            capabilities: vec![],
            ..Sandbox::default()
        };
        Probe {
            image: self.0.clone(),
            says: says.map(str::to_owned),
            options: strict.arguments(),
            owner: self.0.clone(),
        }
    }
}

impl Drop for ProbeImage {
    fn drop(&mut self) {
        docker(&["rmi", "--force", &self.0]).unwrap();
    }
}

/// A container that goes when dropped.
struct Theirs(String);

impl Drop for Theirs {
    fn drop(&mut self) {
        let removed = docker(&["rm", "--force", &self.0]);
        assert!(std::thread::panicking() || removed.is_ok(), "{removed:?}");
    }
}

fn check(backend: &SecuredBackend) -> Result<String, String> {
    let outcome = backend.check(&Shutdown::new(), far());
    if let Err(why) = &outcome {
        assert!(why.starts_with("a security check has failed: ") && !why.contains(['\n', '\u{1b}']), "{why}");
    }
    outcome
}

#[test]
fn a_host_is_well_while_a_probe_does_not_get_out_of_a_job_s_sandbox() {
    if !ready() {
        return;
    }
    // In the sandbox of jobs: no rights, no network, another user.
    let confined = ProbeImage::new(
        "[ $(id -u) = 65534 ] && [ $(ip link | wc -l) -le 2 ] && ! touch /bin/x 2>&1 && echo contained",
    );
    let outcome = |probe: Probe, limit| {
        let mut checks = SecurityChecks::new(Default::default(), HOURS);
        let owner = probe.owner.clone();
        (checks.probes, checks.limit) = (vec![probe], limit);
        let outcome = check(&SecuredBackend::new(Arc::new(Well), checks));
        assert_eq!(left(labels::PROBE, &owner), Vec::<String>::new());
        outcome
    };
    let minute = Duration::from_secs(60);
    assert_eq!(outcome(confined.probe(None), minute), Ok("as the back end runs them".to_owned()));
    assert!(outcome(confined.probe(Some("contained")), minute).is_ok());
    let why = outcome(confined.probe(Some("safe")), minute).unwrap_err();
    assert!(why.ends_with("did not say \"safe\", but at last: contained"), "{why}");

    let escaped = ProbeImage::new("echo 1; printf 'got \\033[1mout\\n\\n' >&2; exit 3");
    let why = outcome(escaped.probe(None), minute).unwrap_err();
    assert!(why.ends_with("ended with exit code 3: got \\u{1b}[1mout"), "{why}");
    let hangs = ProbeImage::new("trap '' TERM; echo begun; while true; do sleep 1; done");
    let why = outcome(hangs.probe(None), Duration::from_secs(3)).unwrap_err();
    assert!(why.contains("did not end within 3 s: "), "{why}");
    let absent = Probe { image: "phalanx-test-no-such-probe:1".to_owned(), ..confined.probe(None) };
    let why = outcome(absent, minute).unwrap_err();
    assert!(why.contains("did not run") && why.contains("No such image"), "{why}");
}

#[test]
fn an_outcome_is_remembered_and_no_job_waits_for_a_probe() {
    if !ready() {
        return;
    }
    let image = ProbeImage::new("true");
    for (times, probes) in [(HOURS, 1), (ALWAYS, 3)] {
        let engine = StandIn::new();
        let mut checks = SecurityChecks::new(engine.client(), times);
        checks.probes = vec![image.probe(None)];
        let backend = SecuredBackend::new(Arc::new(Well), checks);
        assert!(backend.more_time() > Duration::ZERO);
        for _ in 0..3 {
            check(&backend).unwrap();
        }
        assert_eq!(engine.calls("start").len(), probes);
        assert_eq!(backend.more_time() > Duration::ZERO, times == ALWAYS);
    }
    // A stop tells nothing of the host.
    let (engine, stop) = (StandIn::new(), Shutdown::new());
    let mut checks = SecurityChecks::new(engine.client(), HOURS);
    checks.probes = vec![image.probe(None)];
    let backend = SecuredBackend::new(Arc::new(Well), checks);
    stop.cancel();
    backend.check(&stop, Instant::now()).unwrap_err();
    check(&backend).unwrap();
}

#[test]
fn a_probe_that_a_killed_miner_has_left_is_removed_by_the_next_and_no_other() {
    if !ready() {
        return;
    }
    let image = ProbeImage::new("true");
    let run = |owner: &str| {
        let label = format!("{}={owner}", labels::PROBE);
        Theirs(docker(&["run", "--detach", "--network", "none", "--label", &label, IMAGE, "sleep", "1000"]).unwrap())
    };
    let other = uuid::Uuid::new_v4().to_string();
    let probe = image.probe(None);
    let left_over = run(&probe.owner);
    let theirs = run(&other);
    let mut checks = SecurityChecks::new(Default::default(), HOURS);
    checks.probes = vec![probe.clone()];
    check(&SecuredBackend::new(Arc::new(Well), checks)).unwrap();
    assert_eq!(left(labels::PROBE, &probe.owner), Vec::<String>::new());
    assert_eq!(left(labels::PROBE, &other).len(), 1);
    drop((left_over, theirs));
}

#[test]
fn a_host_with_gpus_needs_a_toolkit_without_known_ways_out() {
    let tools = StandIn::new();
    let outcome = |script: Option<&str>| {
        let mut checks = SecurityChecks::new(Default::default(), HOURS);
        checks.toolkit = Some(ToolkitVersion::SAFE);
        checks.toolkit_program = tools.folder().join("nvidia-ctk");
        checks.limit = Duration::from_secs(3);
        match script {
            Some(script) => tools.tool("nvidia-ctk", script),
            None => checks.toolkit_program = "/nonexistent/nvidia-ctk".into(),
        }
        check(&SecuredBackend::new(Arc::new(Well), checks))
    };
    let says =
        |version: &str| format!("[ \"$1\" = --version ] && echo 'NVIDIA Container Toolkit CLI version {version}'");
    assert!(outcome(Some(&says("1.17.8"))).is_ok() && outcome(Some(&says("1.18.0"))).is_ok());
    for (script, wanted) in [
        (Some(says("1.17.7").as_str()), "is 1.17.7, and jobs get out of containers by known faults before 1.17.8"),
        (Some("echo odd"), "says no version but \"odd\"; see --nvidia-toolkit"),
        (Some("echo broken >&2; exit 1"), "broken; see --nvidia-toolkit"),
        (Some("sleep 1000"), "deadline passed while trying to ask for the version"),
        (None, "cannot start /nonexistent/nvidia-ctk: "),
    ] {
        let why = outcome(script).unwrap_err();
        assert!(why.contains(wanted), "{why}");
    }
}
