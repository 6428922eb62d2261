//! A miner that is killed and not started again: its watcher removes what it has left, and nothing else.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use phalanx::proc::docker::labels;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::process::{Network, descendants, result};
use crate::testkit::engine;
use crate::testkit::process::{Running, nothing_left};
use crate::testkit::wait::until;

/// By when nothing of a killed tree is left, as the docs say.
pub const STATED: Duration = Duration::from_secs(20);

/// A job that says when it runs, and goes on when it may, or when its test has failed.
fn job(runner: &str) -> String {
    let script = "touch /output/begun || touch output/begun; i=0
        while [ ! -e /output/go -a ! -e output/go -a $i -lt 1200 ]; do sleep 0.1; i=$((i+1)); done; echo went on";
    let image = if runner == "docker" { engine::IMAGE } else { "x" };
    json!({
        "executor_class": "always_on.test",
        "docker_image": image,
        "args": ["sh", "-c", script],
        "execution_time_limit": 600,
    })
    .to_string()
}

/// The output folders of the network's jobs.
fn outputs(network: &Network) -> Vec<PathBuf> {
    let folders = |path: &Path| -> Vec<PathBuf> {
        // An executor may remove it meanwhile.
        let entries = fs::read_dir(path).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect()
    };
    let executors = folders(network.scratch.path());
    let jobs = executors.iter().flat_map(|folder| folders(folder));
    jobs.map(|folder| folder.join("job/output")).filter(|output| output.join("begun").exists()).collect()
}

fn with_job(runner: &str) -> (Network, Running) {
    let network = Network::start_with(false, &["--runner", runner]);
    let submit = Running::start(&mut network.submit(&job(runner)));
    until("the job runs", || outputs(&network).len() == 1);
    (network, submit)
}

/// The executors of a network's miner.
fn executors(network: &Network) -> Vec<i32> {
    let line = |pid: &i32| fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let is_executor = |pid: &i32| String::from_utf8_lossy(&line(pid)).replace('\0', " ").contains("phalanx executor");
    descendants(network.miner.id()).into_iter().filter(is_executor).collect()
}

/// The watcher of a network's miner, and the instance that it watches for.
pub fn watcher(network: &Network) -> (i32, String) {
    let state = network.folder.path().join("miner").display().to_string();
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let found = entries.filter_map(|entry| {
        let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
        let line = fs::read(entry.path().join("cmdline")).ok()?;
        let words: Vec<_> =
            line.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect();
        let watches = words.iter().position(|word| word == "--watch")?;
        let detached = words.contains(&state) && words.iter().any(|word| word == "--watch-detached");
        detached.then(|| (pid, words[watches + 1].split_once(':').unwrap().0.to_owned()))
    });
    let found: Vec<_> = found.collect();
    assert_eq!(found.len(), 1, "{found:?}");
    found[0].clone()
}

pub fn lives(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

pub fn kill(pid: i32) {
    // It may have ended by the death of another.
    let _ = kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL);
}

/// What is left of the instance in the engine.
fn in_engine(runner: &str, instance: &str) -> Vec<String> {
    if runner == "docker" { engine::left(labels::INSTANCE, instance) } else { vec![] }
}

pub fn stop_the_rest(network: Network) {
    let Network { facilitator, miner, validator, scratch, folder: _folder, .. } = network;
    drop(miner);
    for role in [validator, facilitator] {
        assert_eq!(role.stop(Signal::TERM).code, Some(0));
    }
    nothing_left(scratch.path());
}

#[test]
fn nothing_is_left_of_a_tree_that_was_killed_and_a_sibling_s_job_goes_on() {
    for runner in ["process", "docker"] {
        if runner == "docker" && !engine::ready() {
            return;
        }
        let ((network, _submit), (sibling, of_sibling)) = (with_job(runner), with_job(runner));
        let (watcher, instance) = watcher(&network);
        if runner == "docker" {
            // As a streaming job has one.
            let run = uuid::Uuid::new_v4().simple().to_string();
            let labels = [(labels::INSTANCE, instance.as_str()), (labels::EPOCH, "1"), (labels::EXECUTOR, &run)];
            let labels = labels.map(|(label, value)| format!("--label={label}={value}"));
            let network: Vec<_> = labels.iter().map(String::as_str).chain([run.as_str()]).collect();
            engine::docker(&[&["network", "create", "--internal"], &network[..]].concat()).unwrap();
            assert_eq!(in_engine(runner, &instance).len(), 2);
        }
        let tree = descendants(network.miner.id());
        assert!(!tree.contains(&watcher), "it is nobody's child");
        let killed = Instant::now();
        network.miner.signal(Signal::KILL);
        tree.into_iter().for_each(kill);
        until("nothing is left", || {
            fs::read_dir(network.scratch.path()).unwrap().count() == 0 && in_engine(runner, &instance).is_empty()
        });
        println!("{runner}: nothing was left {:?} after the kill", killed.elapsed());
        assert!(killed.elapsed() < STATED, "{:?}", killed.elapsed());
        until("the watcher ends", || !lives(watcher));
        println!("{runner}: the watcher ended {:?} after the kill", killed.elapsed());
        let said = fs::read_to_string(network.folder.path().join("miner/watch.log")).unwrap();
        assert!(
            said.contains("was killed") && said.contains(": removed") && said.contains("nothing is left"),
            "{said}"
        );
        stop_the_rest(network);

        fs::write(outputs(&sibling)[0].join("go"), "").unwrap();
        let ended = result(&of_sibling.finish().stdout);
        assert_eq!(
            (ended["status"].as_str(), ended["stdout"].as_str()),
            (Some("completed"), Some("went on\n")),
            "{ended}"
        );
        assert_eq!(sibling.stop(Signal::TERM), [Some(0); 3]);
    }
}

#[test]
fn an_executor_that_lives_without_its_miner_is_left_alone_until_it_is_killed_too() {
    for runner in ["process", "docker"] {
        if runner == "docker" && !engine::ready() {
            return;
        }
        let (network, _submit) = with_job(runner);
        let (watcher, instance) = watcher(&network);
        let executors = executors(&network);
        assert_eq!(executors.len(), 1);
        // What is of a dead one shows that there was a look.
        let dead = network.scratch.path().join(format!("phalanx-exec-{instance}-1-{}", uuid::Uuid::new_v4().simple()));
        fs::create_dir(&dead).unwrap();
        fs::write(dead.join("file"), "").unwrap();
        network.miner.signal(Signal::KILL);
        until("there was a look", || !dead.exists());
        assert_eq!(outputs(&network).len(), 1, "its folder is there");
        assert!(lives(executors[0]) && lives(watcher));
        let killed = Instant::now();
        kill(executors[0]);
        until("nothing is left", || {
            fs::read_dir(network.scratch.path()).unwrap().count() == 0 && in_engine(runner, &instance).is_empty()
        });
        println!("{runner}: nothing was left {:?} after the kill", killed.elapsed());
        assert!(killed.elapsed() < STATED, "{:?}", killed.elapsed());
        until("the watcher ends", || !lives(watcher));
        stop_the_rest(network);
    }
}

#[test]
fn a_watcher_is_nobody_s_child_ignores_signals_and_ends_with_its_miner() {
    let network = Network::start(false);
    let (watcher, _) = watcher(&network);
    // 0 is one whose leader is in another PID namespace, which `getsid` of the library takes for impossible.
    let session = |pid: i32| -> i32 {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        stat.rsplit_once(") ").unwrap().1.split(' ').nth(3).unwrap().parse().unwrap()
    };
    assert_ne!(session(watcher), session(i32::try_from(network.miner.id()).unwrap()));
    let open = |pid: &str| -> Vec<String> {
        let entries = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
        entries.filter_map(|entry| Some(fs::read_link(entry.path()).ok()?.display().to_string())).collect()
    };
    // What whoever runs the tests has left open for all is not the watcher's.
    let ours = open("self");
    let mut files: Vec<_> = open(&watcher.to_string()).into_iter().filter(|file| !ours.contains(file)).collect();
    files.sort();
    let kinds = files.iter().map(|file| file.split(':').next().unwrap()).collect::<Vec<_>>();
    let log = network.folder.path().join("miner/watch.log").display().to_string();
    // The sockets wake the thread that writes the log.
    assert_eq!(kinds, [&log, "anon_inode", "pipe", "pipe", "socket", "socket"], "{files:?}");
    let status = fs::read_to_string(format!("/proc/{watcher}/status")).unwrap();
    println!(
        "{}",
        status
            .lines()
            .filter(|line| line.starts_with("VmRSS") || line.starts_with("Rss"))
            .collect::<Vec<_>>()
            .join(" ")
    );
    // One watches, one writes the log.
    assert!(status.contains("\nThreads:\t2\n"), "{status}");
    // A look at whether it lives right after a signal would tell little: signals take a moment.
    let mask = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        u64::from_str_radix(line.trim_start_matches(':').trim(), 16).unwrap()
    };
    let harmless = mask("SigCgt") | mask("SigIgn");
    for signal in [Signal::TERM, Signal::INT, Signal::HUP, Signal::QUIT, Signal::USR1] {
        assert!(harmless & (1 << (signal.as_raw() - 1)) != 0, "{signal:?} would end it: {status}");
        kill_process(Pid::from_raw(watcher).unwrap(), signal).unwrap();
    }
    // Its stop asserts that nothing is left that has its folder in the environment, as the watcher has.
    assert_eq!(network.stop(Signal::TERM), [Some(0); 3]);
    assert!(!lives(watcher));
}

#[test]
fn an_executor_that_is_killed_takes_no_sibling_with_it() {
    for runner in ["process", "docker"] {
        if runner == "docker" && !engine::ready() {
            return;
        }
        let network = Network::start_with(false, &["--runner", runner]);
        let submits = [(); 2].map(|()| Running::start(&mut network.submit(&job(runner))));
        until("both jobs run", || outputs(&network).len() == 2);
        let (first, second) = (outputs(&network)[0].clone(), outputs(&network)[1].clone());
        // An executor has the folder that its job's is in.
        let folder = first.ancestors().nth(3).unwrap().display().to_string();
        let executors: Vec<i32> = executors(&network);
        let environ = |pid: &i32| fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        let of_first: Vec<_> =
            executors.iter().filter(|pid| String::from_utf8_lossy(&environ(pid)).contains(&folder)).collect();
        assert_eq!((executors.len(), of_first.len()), (2, 1));
        kill(*of_first[0]);
        until("nothing is left of it", || !Path::new(&folder).exists());
        assert!(second.join("begun").exists());
        fs::write(second.join("go"), "").unwrap();
        let mut ends = submits.map(|submit| result(&submit.finish().stdout)["status"].as_str().unwrap().to_owned());
        ends.sort();
        assert_eq!(ends, ["completed", "horde_failed"]);
        assert_eq!(network.stop(Signal::TERM), [Some(0); 3]);
    }
}
