//! A network whose miner has the default runner, with an engine that is late, fails, goes and comes back: no job ever
//! runs on the host.

use crate::testkit::engine::{IMAGE, StandIn, docker, ready};
use crate::testkit::network::{ALICE, Network};
use crate::testkit::process::{phalanx, run};
use crate::testkit::wait::until;
use std::process::Command;

use serde_json::{Value, json};

fn page(network: &Network, page: &str) -> String {
    let url = format!("http://{}{page}", network.pages("miner"));
    let agent = ureq::Agent::new_with_config(ureq::Agent::config_builder().http_status_as_error(false).build());
    agent.get(&url).call().unwrap().body_mut().read_to_string().unwrap()
}

fn settings(stand_in: &StandIn) -> impl Fn(&mut Command) {
    let path = stand_in.path();
    move |miner| {
        miner.env("PATH", &path);
    }
}

/// A job that shows where it runs: in a container there is no `/proc/1/comm` of the host, and no file of ours.
fn job() -> Value {
    let script = format!("test -e {} && echo host || echo container", env!("CARGO_MANIFEST_DIR"));
    json!({"executor_class": "always_on.test", "docker_image": IMAGE, "args": ["sh", "-c", script],
        "download_time_limit": 5})
}

#[test]
fn an_engine_that_fails_never_makes_a_job_run_on_the_host() {
    if !ready() {
        return;
    }
    let stand_in = StandIn::new();
    let network = Network::start_with("info", "text", settings(&stand_in));
    let end = network.end_of(&job());
    assert_eq!((end["status"].as_str(), end["stdout"].as_str()), (Some("completed"), Some("container\n")), "{end}");
    let status: Value = serde_json::from_str(&page(&network, "/status.json")).unwrap();
    assert!(status["details"]["jobs_run"].as_str().unwrap().starts_with("in containers of engine "), "{status}");

    // All commands, only the one that asks for the version, or one that a job needs.
    for (commands, trouble) in [
        (&["version"][..], "exec sleep 6"),
        (&["run"], "echo 'Cannot connect to the Docker daemon at unix:///run/docker.sock.' >&2; exit 1"),
        (&["version", "pull", "image", "create", "start", "run", "ps", "rm"], "echo 'no answer' >&2; exit 1"),
    ] {
        commands.iter().for_each(|command| stand_in.say(command, trouble));
        let end = network.end_of(&job());
        let of_horde = end["status"] == "horde_failed";
        assert!(of_horde || end["status"] == "completed" && end["stdout"] == "container\n", "{commands:?}: {end}");
        assert!(of_horde || commands == ["version"], "{commands:?}: {end}");
        if commands.len() == 1 {
            commands.iter().for_each(|command| stand_in.relent(command));
        }
    }

    until("the miner is unready", || page(&network, "/readyz").contains("engine: cannot ask the docker engine"));
    let end = network.end_of(&job());
    assert_eq!(end["status"], "horde_failed", "{end}");
    for command in ["version", "pull", "image", "create", "start", "run", "ps", "rm"] {
        stand_in.relent(command);
    }
    until("the miner is ready again", || page(&network, "/readyz").starts_with("ready"));
    until("a job completes again", || network.end_of(&job())["status"] == "completed");
    network.stop();
}

#[test]
fn a_miner_that_starts_without_an_engine_takes_no_job_and_one_that_comes_later_is_used() {
    if !ready() {
        return;
    }
    let stand_in = StandIn::new();
    stand_in.say("version", "echo 'Cannot connect to the Docker daemon' >&2; exit 1");
    let network = Network::start_with("info", "text", settings(&stand_in));
    assert!(page(&network, "/readyz").contains("Cannot connect to the Docker daemon"), "{}", page(&network, "/readyz"));
    let end = network.end_of(&job());
    assert_eq!(end["status"], "horde_failed", "{end}");
    assert_eq!(stand_in.calls("run"), [] as [&str; 0]);
    stand_in.relent("version");
    until("the miner is ready", || page(&network, "/readyz").starts_with("ready"));
    until("a job completes", || network.end_of(&job())["status"] == "completed");
    let [_, (_, log), _] = network.stop();
    for said in ["no job can run, and none is taken", "jobs run in containers of engine "] {
        assert!(log.contains(said), "{said:?} is not in {log}");
    }
}

#[test]
fn a_miner_says_which_runner_it_has_and_knows_none_that_decides_later() {
    let network = Network::start("info", "text");
    let status: Value = serde_json::from_str(&page(&network, "/status.json")).unwrap();
    assert_eq!(status["details"]["jobs_run"], "as plain processes of this host, which confine nothing", "{status}");
    let scratch = tempfile::tempdir().unwrap();
    for command in ["miner", "executor"] {
        let refused = run(phalanx(scratch.path()).args([command, "--runner", "auto"]));
        assert_eq!(refused.code, Some(2), "{refused:?}");
        assert!(refused.stderr.contains("[possible values: docker, process]"), "{refused:?}");
    }
    let [_, (_, log), _] = network.stop();
    assert!(log.contains("jobs run as plain processes of this host, which confine nothing"), "{log}");
}

#[test]
fn a_miner_whose_engine_has_no_room_takes_no_job_until_it_has() {
    if !ready() {
        return;
    }
    let (stand_in, place) = (StandIn::new(), tempfile::tempdir().unwrap());
    let disk = place.path().join("disk");
    // A file system of the kernel's has nothing free.
    std::os::unix::fs::symlink("/proc", &disk).unwrap();
    let told = format!("echo '{{\"Name\": \"'$(uname -n)'\", \"DockerRootDir\": \"{}\"}}'", disk.display());
    stand_in.say("info", &told);
    let network = Network::start_with("info", "text", settings(&stand_in));
    let unready = page(&network, "/readyz");
    assert!(
        unready.contains("engine: the disk of the engine's images") && unready.contains(" has 0 MB free"),
        "{unready}"
    );
    let status: Value = serde_json::from_str(&page(&network, "/status.json")).unwrap();
    until("the disk is looked at", || page(&network, "/metrics").contains("phalanx_miner_image_disk_free_bytes 0\n"));
    assert_eq!(status["details"]["pre_pull"], json!([]), "{status}");
    let end = network.end_of(&job());
    assert_eq!(end["status"], "horde_failed", "{end}");
    std::fs::remove_file(&disk).unwrap();
    std::os::unix::fs::symlink(place.path(), &disk).unwrap();
    until("the miner is ready", || page(&network, "/readyz").starts_with("ready"));
    until("a job completes", || network.end_of(&job())["status"] == "completed");
    network.stop();
}

#[test]
fn images_are_pulled_before_jobs_ask_for_them_as_the_flags_say() {
    if !ready() {
        return;
    }
    let stand_in = StandIn::new();
    let image = format!("phalanx-test-{}:1", uuid::Uuid::new_v4());
    stand_in.say("pull", &format!("exec $real tag {IMAGE} $2"));
    let path = stand_in.path();
    let network = Network::start_with("info", "text", |miner: &mut Command| {
        miner.env("PATH", &path).args(["--pre-pull", &image, "--image-free-space", "0"]);
    });
    let here = json!([{"image": image, "is_here": true, "trouble": null}]);
    let status = || serde_json::from_str::<Value>(&page(&network, "/status.json")).unwrap()["details"].clone();
    until("the image is here", || status()["pre_pull"] == here);
    assert_eq!(status()["image_disk"], Value::Null, "nobody looks");
    network.stop();
    docker(&["rmi", &image]).unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let refused = |more: &[&str]| {
        let line = ["miner", "--listen", "127.0.0.1:0", "--key", "//Bob", "--validator", ALICE, "--executors"];
        let line = [&line[..], &["always_on.test=1", "--state-dir", "s"], more].concat();
        let refused = run(phalanx(scratch.path()).current_dir(scratch.path()).args(line));
        assert_eq!(refused.code, Some(2), "{refused:?}");
        refused.stderr
    };
    assert!(refused(&["--runner", "process", "--pre-pull", "a"]).contains("--pre-pull goes with --runner docker"));
    assert!(refused(&["--pre-pull", "a b"]).contains("is not the name of an image, as in ubuntu:latest"));
}

/// The slots of the one class, by what they are doing.
fn slots(network: &Network) -> (u64, u64) {
    let status: Value = serde_json::from_str(&page(network, "/status.json")).unwrap();
    let class = &status["details"]["executors"]["always_on.test"];
    (class["free"].as_u64().unwrap(), class["quarantined"].as_u64().unwrap())
}

#[test]
fn each_fault_of_an_engine_ends_a_job_once_and_its_slot_comes_back() {
    if !ready() {
        return;
    }
    let stand_in = StandIn::new();
    let network = Network::start_with("info", "text", settings(&stand_in));
    let short = "echo done";
    // Its group, with the client in it, goes when the job runs.
    let begun = format!("find {} -name begun 2>/dev/null", network.scratch.path().display());
    let dies = format!(r#""$real" "$@" & until {begun} | grep -q .; do sleep 0.05; done; kill -9 0"#);
    let long = "echo done; sleep 1000";
    // The command, what it does, the job, how that ends and what is said of it, and whether its slot waits until the
    // engine is well again.
    for (command, fault, script, status, says, quarantined) in [
        // It says that it has signalled, and has not.
        ("kill", "exit 0", long, "failed", "timed out during execution", false),
        // The client dies in mid-job.
        ("run", &dies, "touch /output/begun; sleep 1; echo done", "completed", "", false),
        // Somebody else removes the container at the same moment.
        ("rm", r#""$real" "$@" >/dev/null; echo 'No such container' >&2; exit 1"#, short, "completed", "done", false),
        // The removal fails.
        ("rm", "echo 'device or resource busy' >&2; exit 1", short, "completed", "done", true),
        // It hangs while it makes the container.
        ("run", "exec sleep 1000", short, "horde_failed", "create the container", false),
    ] {
        stand_in.say(command, fault);
        let mut job = job();
        job["args"] = json!(["sh", "-c", script]);
        job["execution_time_limit"] = json!(if status == "completed" { 60 } else { 4 });
        let end = network.end_of(&job);
        let shown = format!("{command}: {fault}: {end}");
        assert_eq!(end["status"], status, "{shown}");
        assert!(end.to_string().contains(says), "{shown}");
        let ends = ["completed", "failed", "rejected", "horde_failed"];
        let history = end["history"].as_array().unwrap().iter();
        let ends = history.filter(|step| ends.contains(&step["status"].as_str().unwrap())).count();
        assert_eq!(ends, 1, "{shown}");
        if quarantined {
            until("its slot is in quarantine", || slots(&network) == (1, 1));
        }
        stand_in.relent(command);
        until("its slot is free", || slots(&network) == (2, 0));
    }
    assert_eq!(network.end_of(&job())["status"], "completed");
    network.stop();
}
