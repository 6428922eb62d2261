//! Security checks of hosts: real probes on the engine, the version of a stand-in toolkit, and how long both count.

use crate::miner::Fixture;
use crate::testkit::engine::{IMAGE, StandIn, docker, left, ready};
use crate::testkit::transport::{background, join};
use crate::testkit::wait::{until, until_some};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use phalanx::base::shutdown::Shutdown;
use phalanx::executor::sandbox::{Profile, Sandbox};
use phalanx::miner::HostState;
use phalanx::miner::check::CheckPolicy;
use phalanx::miner::executor_manager::{
    Answered, DockerBackend, ExecutorBackend, ExecutorEnd, ExecutorExit, ExecutorSpec, Owner, Probe, RareChecks,
    SecurityChecks, ToolkitVersion,
};
use phalanx::proc::docker::labels;

/// A back end that is always well, on a host with these security checks; it counts how often it was asked.
struct Checked(SecurityChecks, Arc<AtomicUsize>);

impl ExecutorBackend for Checked {
    fn run(&self, _: &ExecutorSpec, _: &Shutdown) -> ExecutorEnd {
        Ok(ExecutorExit::Code(0))
    }

    fn check(&self, _: &Shutdown, _: Instant) -> Result<String, String> {
        self.1.fetch_add(1, Ordering::SeqCst);
        Ok("well".to_owned())
    }

    fn security(&self) -> Option<&SecurityChecks> {
        Some(&self.0)
    }
}

const HOURS: RareChecks = RareChecks { interval: Duration::from_secs(3600), retry: Duration::from_secs(3600) };

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
        Probe { image: self.0.clone(), says: says.map(str::to_owned), options: strict.arguments() }
    }
}

impl Drop for ProbeImage {
    fn drop(&mut self) {
        docker(&["rmi", "--force", &self.0]).unwrap();
    }
}

fn owner() -> Owner {
    Owner { miner: "5M".to_owned(), instance: uuid::Uuid::new_v4().to_string(), epoch: 3 }
}

/// What they show; nothing is left of them.
fn check(checks: &SecurityChecks) -> Result<Result<(), String>, String> {
    let (owner, answered) = (owner(), Answered::default());
    let verdict = checks.run(&owner, &answered, &Shutdown::new());
    for why in [verdict.as_ref().err(), verdict.as_ref().ok().and_then(|shown| shown.as_ref().err())] {
        assert!(why.is_none_or(|why| !why.contains(['\n', '\u{1b}'])), "{why:?}");
    }
    assert!(answered.living().is_empty());
    if !checks.probes.is_empty() {
        assert_eq!(left(labels::INSTANCE, &owner.instance), [""; 0]);
    }
    verdict
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
        (checks.probes, checks.limit) = (vec![probe], limit);
        check(&checks)
    };
    let minute = Duration::from_secs(60);
    assert_eq!(outcome(confined.probe(None), minute), Ok(Ok(())));
    assert_eq!(outcome(confined.probe(Some("contained")), minute), Ok(Ok(())));
    let why = outcome(confined.probe(Some("safe")), minute).unwrap().unwrap_err();
    assert!(why.ends_with("did not say \"safe\", but at last: contained"), "{why}");

    let escaped = ProbeImage::new("echo 1; printf 'got \\033[1mout\\n\\n' >&2; exit 3");
    let why = outcome(escaped.probe(None), minute).unwrap().unwrap_err();
    assert!(why.ends_with("ended with exit code 3: got \\u{1b}[1mout"), "{why}");
    // What does not run, or not to its end, tells nothing of the host.
    let hangs = ProbeImage::new("trap '' TERM; echo begun; while true; do sleep 1; done");
    let why = outcome(hangs.probe(None), Duration::from_secs(3)).unwrap_err();
    assert!(why.contains("did not end within 3 s: "), "{why}");
    let absent = Probe { image: "phalanx-test-no-such-probe:1".to_owned(), ..confined.probe(None) };
    let why = outcome(absent, minute).unwrap_err();
    assert!(why.contains("did not run") && why.contains("No such image"), "{why}");
}

/// Removed by the reaper, or by the watcher, once nobody answers for it.
#[test]
fn a_probe_is_marked_as_executors_of_its_miner_are_and_of_no_other() {
    if !ready() {
        return;
    }
    let image = ProbeImage::new("trap '' TERM; while true; do sleep 1; done");
    let (owner, other, answered, stop) = (owner(), owner(), Answered::default(), Shutdown::new());
    let mut checks = SecurityChecks::new(Default::default(), HOURS);
    (checks.probes, checks.limit) = (vec![image.probe(None)], Duration::from_secs(600));
    let (whose, answering, kicked) = (owner.clone(), answered.clone(), stop.clone());
    let running = background("t-probe", move || checks.run(&whose, &answering, &kicked));
    let engine = DockerBackend::new(IMAGE, "docker");
    let found = until_some("the probe runs", || engine.find(&owner, &Shutdown::new()).unwrap().pop());
    assert_eq!((found.epoch, answered.living().contains(&found.run)), (owner.epoch, true));
    assert!(engine.find(&other, &Shutdown::new()).unwrap().is_empty());
    assert!(engine.living(&owner, &Shutdown::new()).unwrap().is_empty(), "it is no executor");
    stop.cancel();
    // A stop tells nothing of the host.
    join(running).unwrap_err();
    assert!(answered.living().is_empty());
    assert_eq!(left(labels::INSTANCE, &owner.instance), [""; 0]);
}

/// An engine that is a script: `start` takes as long as there is no file `go`, and says what `start-says` does.
fn scripted() -> StandIn {
    let engine = StandIn::new();
    for (command, script) in [
        ("create", "echo made"),
        ("ps", "exit 0"),
        ("rm", "exit 0"),
        ("start", "while [ ! -e \"$folder/go\" ]; do sleep 0.05; done; cat \"$folder/code\" >/dev/null"),
        ("container-inspect", "read code <\"$folder/code\" && echo \"exited|$code|false|\""),
    ] {
        engine.say(command, script);
    }
    engine
}

#[test]
fn the_start_does_not_wait_for_a_probe_and_its_host_offers_nothing_before() {
    let engine = scripted();
    let mut checks = SecurityChecks::new(engine.client(), HOURS);
    checks.probes = vec![Probe { image: "probe:1".to_owned(), says: None, options: vec![] }];
    checks.limit = Duration::from_secs(600);
    let begun = Instant::now();
    let (asked, moment) = (Arc::new(AtomicUsize::new(0)), Duration::from_millis(20));
    let mut backend = Some(Checked(checks, asked.clone()));
    let mut f = Fixture::with(1, false, |config| {
        config.backend = Arc::new(backend.take().unwrap());
        config.limits.checks = CheckPolicy { interval: moment, retry: moment, limit: moment, ..CheckPolicy::default() };
    });
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(25), "executors of an earlier process have given up after {took:?}");
    let host = |f: &Fixture| f.miner.as_ref().unwrap().status().hosts[0].clone();
    assert_eq!((host(&f).state, host(&f).why.as_deref()), (HostState::Down, Some("it has not answered yet")));
    // An engine that does not tell how it has ended makes no verdict: it is asked again at once.
    engine.keep("go", "");
    until("the probe runs again", || engine.calls("start").len() > 2);
    let why = host(&f).why.unwrap_or_default();
    assert!(why.starts_with("a security check could not be made: "), "{why}");
    engine.keep("code", "0\n");
    until("the host is up", || host(&f).state == HostState::Up);
    let (probes, before) = (engine.calls("start").len(), asked.load(Ordering::SeqCst));
    until("it is checked again and again", || asked.load(Ordering::SeqCst) > before + 5);
    assert_eq!(engine.calls("start").len(), probes, "a verdict counts for hours");
    drop(f.miner.take());
}

/// One look is enough: jobs would run there until the next.
#[test]
fn a_host_that_is_up_is_down_with_the_first_security_check_that_fails() {
    let engine = scripted();
    engine.keep("go", "");
    engine.keep("code", "0\n");
    let moment = Duration::from_millis(20);
    let mut checks = SecurityChecks::new(engine.client(), RareChecks { interval: moment, retry: HOURS.retry });
    checks.probes = vec![Probe { image: "probe:1".to_owned(), says: None, options: vec![] }];
    let mut backend = Some(Checked(checks, Arc::default()));
    let mut f = Fixture::with(1, false, |config| {
        config.backend = Arc::new(backend.take().unwrap());
        let policy = CheckPolicy { interval: moment, retry: HOURS.retry, ..CheckPolicy::default() };
        config.limits.checks = policy;
    });
    let host = |f: &Fixture| f.miner.as_ref().unwrap().status().hosts[0].clone();
    until("the host is up", || host(&f).state == HostState::Up);
    engine.keep("code", "3\n");
    // After a check that has not gone well, the next is hours away.
    until("the host is down", || host(&f).state == HostState::Down);
    let why = host(&f).why.unwrap_or_default();
    assert!(why.starts_with("a security check has failed: the probe \"probe:1\" ended with exit code 3"), "{why}");
    drop(f.miner.take());
}

#[test]
fn a_host_with_gpus_needs_a_toolkit_without_known_ways_out() {
    let tools = StandIn::new();
    let here = String::from_utf8(std::process::Command::new("uname").arg("-n").output().unwrap().stdout).unwrap();
    let machine = |name: &str| tools.say("info", &format!("echo '{{\"Name\": \"{name}\"}}'"));
    machine(here.trim());
    let outcome = |script: Option<&str>| {
        let mut checks = SecurityChecks::new(tools.client(), HOURS);
        checks.toolkit = Some(ToolkitVersion::SAFE);
        checks.toolkit_program = tools.folder().join("nvidia-ctk");
        checks.limit = Duration::from_secs(3);
        match script {
            Some(script) => tools.tool("nvidia-ctk", script),
            None => checks.toolkit_program = "/nonexistent/nvidia-ctk".into(),
        }
        check(&checks)
    };
    let says =
        |version: &str| format!("[ \"$1\" = --version ] && echo 'NVIDIA Container Toolkit CLI version {version}'");
    for version in ["1.17.8", "1.18.0"] {
        assert_eq!(outcome(Some(&says(version))), Ok(Ok(())));
    }
    for (script, wanted) in [
        (says("1.17.7").as_str(), "is 1.17.7, and jobs get out of containers by known faults before 1.17.8"),
        ("echo odd", "says no version but \"odd\"; see --nvidia-toolkit"),
    ] {
        let why = outcome(Some(script)).unwrap().unwrap_err();
        assert!(why.contains(wanted), "{why}");
    }
    // No verdict: it may answer next time.
    for (script, wanted) in [
        (Some("echo broken >&2; exit 1"), "broken; see --nvidia-toolkit"),
        (Some("sleep 1000"), "deadline passed while trying to ask for the version"),
        (None, "cannot start /nonexistent/nvidia-ctk: "),
    ] {
        let why = outcome(script).unwrap_err();
        assert!(why.contains(wanted), "{why}");
    }
    // What a context or a tunnel leads to is not asked by a program of this machine.
    machine("elsewhere");
    let why = outcome(Some(&says("1.18.0"))).unwrap().unwrap_err();
    assert!(why.contains("which is another one, cannot be asked for; see --nvidia-toolkit"), "{why}");
}
