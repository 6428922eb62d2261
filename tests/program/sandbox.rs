//! What a job may do, as a miner's settings file says it: shown, handed to executors, and held.

use crate::testkit::network::Network;
use crate::testkit::process::{phalanx, run};

use serde_json::{Value, json};

fn job(script: &str) -> Value {
    json!({"executor_class": "always_on.test", "docker_image": "x", "artifacts_dir": "/artifacts",
        "args": ["sh", "-c", script]})
}

#[test]
fn a_miner_shows_its_sandbox_and_its_jobs_are_held_to_it() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("phalanx.toml");
    std::fs::write(
        &config,
        "[miner.sandbox]\ndisk = \"128MiB\"\ncpus = 1.5\n[miner.sandbox.\"always_on.test\"]\npids = 99\n",
    )
    .unwrap();
    let network = Network::start_with("info", "text", |miner| {
        miner.args(["--runner", "process", "--sandbox", "strict"]).env("PHALANX_CONFIG", &config);
    });
    let pages = network.pages("miner");
    let shown = run(phalanx(network.scratch.path()).args(["status", "--http", pages]));
    let shown = shown.stdout.split_whitespace().collect::<Vec<_>>().join(" ");
    for says in ["a plain process, of which nothing but its disk is bounded", "disk 128 MiB"] {
        assert!(shown.contains(says), "{says} is not in {shown}");
    }
    // What only a container is held to is not said of a process.
    assert!(!shown.contains("profile strict") && !shown.contains("processes 99"), "{shown}");

    let end = network.end_of(&job("while true; do head -c 1000000 /dev/zero >>output/f; done"));
    let text = end.to_string();
    assert_eq!(end["status"], "failed", "{end}");
    assert!(text.contains("bytes of disk, more than the 134217728 that it may"), "{end}");

    // What is left out is told, and the job is completed.
    let end = network.end_of(&job("ln -s /etc/passwd artifacts/link; echo a >artifacts/a; echo err >&2"));
    assert_eq!(end["status"], "completed", "{end}");
    let text = end.to_string();
    assert!(text.contains("err\\n[phalanx: artifact link is left out: it is a symbolic link]\\n"), "{end}");

    let many = "i=0; while [ $i -le 10000 ]; do : >artifacts/$i; i=$((i+1)); done";
    let end = network.end_of(&job(many));
    assert_eq!(end["status"], "failed", "{end}");
    assert!(end.to_string().contains("more than 10000 entries"), "{end}");

    // From the inside out, because a shell cannot be in a folder this deep. PHALANX_TEST_LEVELS=20000 takes minutes.
    let levels = std::env::var("PHALANX_TEST_LEVELS").unwrap_or_else(|_| "300".to_owned());
    let deep = format!("mkdir d; i=0; while [ $i -lt {levels} ]; do mkdir x; mv d x/d; mv x d; i=$((i+1)); done");
    let end = network.end_of(&job(&deep));
    assert_eq!(end["status"], "completed", "{end}");

    let reported = network.stop();
    let (_, log) = reported.iter().find(|(role, _)| *role == "miner").unwrap();
    assert!(log.contains("jobs of class always_on.test: a plain process, "), "{log}");
}

#[test]
fn mistakes_in_the_table_start_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("phalanx.toml");
    for (table, says) in [
        ("memry = 1", "unknown key \"memry\"; did you mean \"memory\"?"),
        ("memory = \"much\"", "memory is \"much\"; it should be a size"),
        ("[miner.sandbox.\"always_on.gpu-24gb\"]\npids = 1", "this miner has no executors of that class"),
    ] {
        std::fs::write(&config, format!("[miner.sandbox]\n{table}\n")).unwrap();
        let mut miner = phalanx(folder.path());
        miner.args(["miner", "--listen", "127.0.0.1:0", "--key", "//Bob", "--executors", "always_on.test=1"]);
        miner.args(["--validator", crate::testkit::network::ALICE, "--runner", "process", "--state-dir"]);
        let finished = run(miner.arg(folder.path().join("state")).env("PHALANX_CONFIG", &config));
        assert_eq!(finished.code, Some(2), "{finished:?}");
        assert!(finished.stderr.contains(says) && finished.stderr.trim().lines().count() == 1, "{finished:?}");
    }
}
