//! Executors in containers, made of the binary itself: they outlive their miner, which takes them back.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use phalanx::proc::docker::labels;
use rustix::process::Signal;
use serde_json::json;

use crate::chaos::{free_address, status};
use crate::process::{Network, descendants, result, start_miner};
use crate::testkit::engine::{self, docker};
use crate::testkit::process::{Running, nothing_left, run};
use crate::testkit::wait::until;
use crate::watch::{STATED, kill, lives, stop_the_rest, watcher};

/// An image of the binary and of the engine's client, with the libraries that they load, and of busybox; removed when
/// dropped.
pub struct ExecutorImage(pub String);

impl ExecutorImage {
    /// `None`, loudly, without an engine or what an image is made of.
    pub fn build() -> Option<Self> {
        if !engine::ready() {
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let add = |from: &str, to: &str| {
            let to = folder.path().join(to.trim_start_matches('/'));
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::copy(from, to).unwrap();
        };
        let path = std::env::var_os("PATH").unwrap();
        let client: PathBuf =
            std::env::split_paths(&path).map(|bin| bin.join("docker")).find(|path| path.exists()).unwrap();
        for (program, name) in
            [(env!("CARGO_BIN_EXE_phalanx"), "/bin/phalanx"), (client.to_str().unwrap(), "/bin/docker")]
        {
            add(program, name);
            let loaded = Command::new("ldd").arg(program).output().expect("ldd");
            // A static program loads nothing.
            for word in String::from_utf8(loaded.stdout).unwrap().split_whitespace().filter(|w| w.starts_with('/')) {
                add(word, word);
            }
        }
        let busybox = ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|path| Path::new(path).exists()).unwrap();
        add(busybox, "/bin/busybox");
        for applet in ["sh", "echo", "sleep", "touch"] {
            symlink("busybox", folder.path().join("bin").join(applet)).unwrap();
        }
        fs::create_dir(folder.path().join("tmp")).unwrap();
        let archive = folder.path().join("image.tar");
        let mut pack = Command::new("tar");
        pack.arg("-C").arg(folder.path()).arg("-cf").arg(&archive).args(["--exclude", "image.tar", "."]);
        assert!(pack.status().unwrap().success());
        let name = format!("phalanx-test-executor:{}", uuid::Uuid::new_v4());
        let entry = r#"ENTRYPOINT ["/bin/phalanx"]"#;
        docker(&["import", "--change", entry, "--change", "ENV PATH=/bin", archive.to_str().unwrap(), &name]).unwrap();
        Some(Self(name))
    }
}

impl Drop for ExecutorImage {
    fn drop(&mut self) {
        // A test that has failed may have left a container of it.
        drop(docker(&["rmi", "--force", &self.0]));
    }
}

/// A miner's arguments for executors of this image, which see `shared` and the engine.
pub fn arguments(image: &ExecutorImage, runner: &str, shared: &Path) -> Vec<String> {
    let folder = format!("--executor-option=--volume={0}:{0}", shared.display());
    let temporary = format!("--executor-option=--env=TMPDIR={}", shared.display());
    let socket = "--executor-option=--volume=/var/run/docker.sock:/var/run/docker.sock";
    let backend = ["--executor-backend", "docker", "--executor-image", &image.0];
    [&["--runner", runner][..], &backend, &[&folder, &temporary, socket]]
        .concat()
        .iter()
        .map(|word| (*word).to_owned())
        .collect()
}

/// A job that says in the shared folder when it runs, and goes on when it may; in a container it sees its output only.
fn job(runner: &str) -> String {
    let output = if runner == "docker" { "/output" } else { "output" };
    let script = format!(
        "touch {output}/begun; i=0
         while [ ! -e {output}/go -a $i -lt 600 ]; do sleep 0.2; i=$((i+1)); done; echo went on"
    );
    json!({
        "executor_class": "always_on.test",
        "docker_image": engine::IMAGE,
        "args": ["sh", "-c", script],
        "execution_time_limit": 600,
    })
    .to_string()
}

fn status_of_a_small_job(network: &Network) -> String {
    let job = json!({"executor_class": "always_on.test", "docker_image": engine::IMAGE, "args": ["echo", "done"]});
    let finished = run(&mut network.submit(&job.to_string()));
    result(&finished.stdout)["status"].as_str().unwrap().to_owned()
}

/// The output folder of the one job that runs.
fn output(shared: &Path) -> Option<PathBuf> {
    let entries = fs::read_dir(shared).unwrap().flatten();
    entries.map(|entry| entry.path().join("job/output")).find(|output| output.join("begun").exists())
}

fn executors(instance: &str) -> Vec<String> {
    let [of_miner, stage] = [(labels::INSTANCE, instance), (labels::STAGE, "executor")]
        .map(|(label, value)| format!("label={label}={value}"));
    let listed = docker(&["ps", "--quiet", "--filter", &of_miner, "--filter", &stage]).unwrap();
    listed.lines().map(str::to_owned).collect()
}

#[test]
fn executors_run_in_containers_too() {
    let Some(image) = ExecutorImage::build() else { return };
    let arguments = ["--runner", "process", "--executor-backend", "docker", "--executor-image", &image.0];
    let network = Network::start_with(false, &arguments);
    let (_, instance) = watcher(&network);
    assert_eq!(status_of_a_small_job(&network), "completed");
    assert_eq!(network.stop(Signal::TERM), [Some(0); 3]);
    assert_eq!(engine::left(labels::INSTANCE, &instance), [""; 0], "a container is left");
}

/// The state of each host, as the page shows it.
fn hosts(pages: &str) -> Option<BTreeMap<String, String>> {
    let shown = status(pages)?["details"]["hosts"].as_array()?.clone();
    let text = |host: &serde_json::Value, key: &str| host[key].as_str().map(str::to_owned);
    shown.iter().map(|host| Some((text(host, "name")?, text(host, "state")?))).collect()
}

#[test]
fn jobs_spread_over_hosts_that_come_and_go_with_the_settings() {
    let Some(image) = ExecutorImage::build() else { return };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("phalanx.toml");
    // The same engine at several sockets; one more is nowhere.
    for name in ["one", "two", "new"] {
        symlink("/var/run/docker.sock", folder.path().join(name)).unwrap();
    }
    let table = |name: &str| {
        let socket = folder.path().join(name);
        let socket = socket.display();
        format!("[miner.hosts.{name}]\naddress = \"unix://{socket}\"\nexecutors = {{ \"always_on.test\" = 1 }}\n")
    };
    let write = |hosts: &[&str]| {
        let hosts: String = hosts.iter().map(|name| table(name)).collect();
        fs::write(&file, format!("[miner]\nplacement = \"round-robin\"\n{hosts}")).unwrap();
    };
    write(&["one", "two", "gone"]);
    let pages = free_address().to_string();
    let backend = ["--runner", "process", "--executor-backend", "docker", "--executor-image", &image.0];
    let config = ["--config", file.to_str().unwrap(), "--http", &pages];
    let network = Network::start_with(false, &[&backend[..], &config].concat());
    let states = |states: &[(&str, &str)]| -> BTreeMap<String, String> {
        states.iter().map(|(name, state)| ((*name).to_owned(), (*state).to_owned())).collect()
    };
    let first = [("local", "up"), ("one", "up"), ("two", "up"), ("gone", "down")];
    assert_eq!(hosts(&pages), Some(states(&first)));
    assert_eq!(status(&pages).unwrap()["ready"], true, "one broken host hides no other");
    for _ in 0..3 {
        assert_eq!(status_of_a_small_job(&network), "completed");
    }
    let metrics = || ureq::get(format!("http://{pages}/metrics")).call().unwrap().body_mut().read_to_string().unwrap();
    for line in [
        "phalanx_miner_host_up{host=\"gone\"} 0",
        "phalanx_miner_host_up{host=\"one\"} 1",
        "phalanx_miner_slots{host=\"two\",class=\"always_on.test\",state=\"free\"} 1",
    ] {
        // A slot is free when nothing of its executor is left.
        until(line, || metrics().lines().any(|of_page| of_page == line));
    }

    write(&["one", "new"]);
    network.miner.signal(Signal::HUP);
    let second = Some(states(&[("local", "up"), ("one", "up"), ("new", "up")]));
    until("the hosts are the new ones", || hosts(&pages) == second);
    for _ in 0..3 {
        assert_eq!(status_of_a_small_job(&network), "completed");
    }
    let log = network.miner.stderr();
    for host in ["local", "one", "two", "new"] {
        assert!(log.contains(&format!(", for host {host}\n")), "no job ran on {host}: {log}");
    }
    assert_eq!(network.stop(Signal::TERM), [Some(0); 3]);
}

#[test]
fn a_miner_that_was_killed_takes_back_its_executors_in_containers() {
    let Some(image) = ExecutorImage::build() else { return };
    for runner in ["process", "docker"] {
        let shared = tempfile::tempdir().unwrap();
        let arguments = arguments(&image, runner, shared.path());
        let pages = free_address().to_string();
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).chain(["--http", &pages]).collect();
        let mut network = Network::start_with(false, &arguments);
        let (_, instance) = watcher(&network);
        let submit = Running::start(&mut network.submit(&job(runner)));
        until("the job runs", || output(shared.path()).is_some());
        let before = engine::left(labels::INSTANCE, &instance);
        let executor = executors(&instance);
        assert_eq!((before.len(), executor.len()), (if runner == "docker" { 2 } else { 1 }, 1));
        // Its engine's clients as well; not its watcher.
        let clients = descendants(network.miner.id());
        network.miner_again(&clients, &arguments);
        assert_eq!(executors(&instance), executor, "it lives, and there is no other");
        fs::write(output(shared.path()).unwrap().join("go"), "").unwrap();
        let ended = result(&submit.finish().stdout);
        assert_eq!(
            (ended["status"].as_str(), ended["stdout"].as_str()),
            (Some("completed"), Some("went on\n")),
            "{ended}"
        );
        until("its containers are gone", || engine::left(labels::INSTANCE, &instance).is_empty());
        // Both slots are there again.
        until("all slots are free", || {
            let slots = status(&pages).unwrap_or_default()["details"]["executors"]["always_on.test"].clone();
            (slots["declared"].as_u64(), slots["free"].as_u64()) == (Some(2), Some(2))
        });
        assert_eq!([status_of_a_small_job(&network), status_of_a_small_job(&network)], ["completed", "completed"]);
        let Network { facilitator, miner, validator, scratch, .. } = network;
        assert_eq!(validator.stop(Signal::TERM).code, Some(0));
        let log = miner.stop(Signal::TERM).stderr;
        assert!(log.contains("lives and is watched again"), "{log}");
        assert_eq!(facilitator.stop(Signal::TERM).code, Some(0));
        nothing_left(scratch.path());
        assert_eq!(fs::read_dir(shared.path()).unwrap().count(), 0);
    }
}

#[test]
fn a_job_outlives_the_engine_s_client_that_runs_its_executor() {
    let Some(image) = ExecutorImage::build() else { return };
    let shared = tempfile::tempdir().unwrap();
    let arguments = arguments(&image, "process", shared.path());
    let network = Network::start_with(false, &arguments.iter().map(String::as_str).collect::<Vec<_>>());
    let (_, instance) = watcher(&network);
    let submit = Running::start(&mut network.submit(&job("process")));
    until("the job runs", || output(shared.path()).is_some());
    let executor = executors(&instance).remove(0);
    let of_executor = |pid: &i32| {
        let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split('\0').any(|word| word.starts_with(&executor))
    };
    let clients = || descendants(network.miner.id()).into_iter().filter(of_executor).collect::<Vec<_>>();
    let attached = clients();
    assert_eq!(attached.len(), 1);
    kill(attached[0]);
    until("another client waits for it", || clients().iter().any(|client| *client != attached[0]));
    fs::write(output(shared.path()).unwrap().join("go"), "").unwrap();
    let ended = result(&submit.finish().stdout);
    assert_eq!((ended["status"].as_str(), ended["stdout"].as_str()), (Some("completed"), Some("went on\n")), "{ended}");
    assert_eq!(network.stop(Signal::TERM), [Some(0); 3]);
    assert_eq!(engine::left(labels::INSTANCE, &instance), [""; 0], "a container is left");
}

#[test]
fn nothing_is_left_of_executors_in_containers_whose_miner_does_not_come_back() {
    let Some(image) = ExecutorImage::build() else { return };
    // Its executor ends by itself, because its miner is gone; or it is killed.
    for killed in [false, true] {
        let shared = tempfile::tempdir().unwrap();
        let mut arguments = arguments(&image, "docker", shared.path());
        arguments.extend(["--miner-gone-after", if killed { "600s" } else { "2s" }].map(str::to_owned));
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let network = Network::start_with(false, &arguments);
        let (watcher, instance) = watcher(&network);
        let _submit = Running::start(&mut network.submit(&job("docker")));
        until("the job runs", || output(shared.path()).is_some());
        let executor = executors(&instance);
        let clients = descendants(network.miner.id());
        network.miner.signal(Signal::KILL);
        clients.into_iter().for_each(kill);
        if killed {
            docker(&["kill", &executor[0]]).unwrap();
        }
        until("its executor ends", || executors(&instance).is_empty());
        let began = Instant::now();
        until("its containers are gone", || engine::left(labels::INSTANCE, &instance).is_empty());
        println!("killed {killed}: nothing was left in the engine {:?} after the executor", began.elapsed());
        assert!(began.elapsed() < STATED, "{:?}", began.elapsed());
        until("the watcher ends", || !lives(watcher));
        if !killed {
            assert_eq!(fs::read_dir(shared.path()).unwrap().count(), 0);
        }
        stop_the_rest(network);
    }
}

/// What the engine has of a miner that was asked to remove nothing, and the folder of an executor.
#[test]
fn a_dry_run_says_what_it_would_remove_and_removes_nothing() {
    if !engine::ready() {
        return;
    }
    let network = Network::start_with(false, &["--runner", "docker"]);
    let (_, instance) = watcher(&network);
    let run = uuid::Uuid::new_v4().simple().to_string();
    let marks = [(labels::INSTANCE, instance.as_str()), (labels::EPOCH, "1"), (labels::EXECUTOR, &run)];
    let marks = marks.map(|(label, value)| format!("--label={label}={value}"));
    let marks: Vec<&str> = marks.iter().map(String::as_str).collect();
    let of_dead =
        docker(&[&["run", "--detach", "--network", "none"], &marks[..], &[engine::IMAGE, "sleep", "600"]].concat())
            .unwrap();
    let network_of_dead = docker(&[&["network", "create", "--internal"], &marks[..], &[&run]].concat()).unwrap();
    let folder = network.scratch.path().join(format!("phalanx-exec-{instance}-1-{run}"));
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("file"), "").unwrap();

    let mut network = network;
    network.miner_again(&[], &["--runner", "docker", "--reap-dry-run"]);
    assert_eq!(status_of_a_small_job(&network), "completed");
    let left = [
        format!("container {of_dead} "),
        format!("network {network_of_dead} "),
        format!("folder {} ", folder.display()),
    ];
    let Network { facilitator, miner, listening, validator, scratch, folder: state, .. } = network;
    let log = miner.stop(Signal::TERM).stderr;
    for what in left {
        let says = |line: &str| line.contains(&format!("nobody answers for {what}")) && line.contains(&run);
        let said = log.lines().find(|line| says(line)).expect(&log);
        assert!(said.ends_with("it would be removed"), "{said}");
    }
    assert!(engine::left(labels::INSTANCE, &instance).len() == 2 && folder.join("file").exists());
    // The next one, which may, removes all.
    let (miner, _) = start_miner((state.path(), scratch.path()), &listening, false, &["--runner", "docker"]);
    until("all is removed", || engine::left(labels::INSTANCE, &instance).is_empty() && !folder.exists());
    for role in [validator, miner, facilitator] {
        assert_eq!(role.stop(Signal::TERM).code, Some(0));
    }
    nothing_left(scratch.path());
}
