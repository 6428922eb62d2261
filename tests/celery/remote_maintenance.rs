//! What an operator does with workers beside looking at them: a pause, workers that stop by themselves, wrong flags, a
//! Redis that is away.

use crate::remote::{Scene, jobs, stopped, until};
use crate::testkit::process::{phalanx, run};
use crate::testkit::redis as redis_server;
use crate::testkit::scripted_facilitator::{GOOD, key};
use crate::testkit::threads::NoThreads;
use crate::testkit::wait;

use std::process::Command;

use phalanx::protocol::JobStatus as S;
use rustix::process::Signal;
use serde_json::Value;

#[test]
fn a_paused_worker_takes_no_job_until_it_is_resumed_and_one_stops_by_itself() {
    let _none = NoThreads::expected();
    let Some(scene) = Scene::set() else { return };
    let (scratch, state) = (scene.scratch.path(), tempfile::tempdir().unwrap());
    let folder = state.path().join("worker");
    let folder = folder.to_str().unwrap();
    let front = scene.front(&["--queue-time", "5m"]);
    let pages = format!("127.0.0.1:{}", redis_server::free_port());
    let flags = ["--stub-time", "0s", "--state-dir", folder, "--http", &pages];
    let worker = scene.worker("w@here", &flags);
    let told = |words: &[&str]| run(phalanx(scratch).args(words).args(["--state-dir", folder]));
    let paused = told(&["pause", "--note", "new disk", "--for", "1h"]);
    assert!(paused.code == Some(0) && paused.stdout.contains("is told"), "{paused:?}");
    let is_there = |status: &Value| status["state"] == "paused" && status["details"]["consuming"] == true;
    let status = until(scratch, &pages, is_there);
    let why = status["paused"].as_str().unwrap();
    assert!(why.starts_with("paused for another ") && why.ends_with(": new disk"), "{status:#}");
    assert_eq!(status["ready"], false, "{status:#}");
    let job = jobs(1).remove(0);
    scene.facilitator.submit(job.clone());
    wait::until("the job waits", || scene.redis.cli::<usize>(&["LLEN", "phalanx"]) == 1);
    // It is paused also after a restart.
    assert!(stopped(worker).contains("new disk"));
    let worker = scene.worker("w@here", &flags);
    until(scratch, &pages, |status| status["details"]["consuming"] == true);
    assert_eq!(scene.redis.cli::<usize>(&["LLEN", "phalanx"]), 1);
    assert_eq!(told(&["resume"]).code, Some(0));
    assert_eq!(scene.facilitator.history(&job.uuid), GOOD);
    // The folder is one worker's, and no front's.
    for (folder, why) in
        [(folder, "is in use"), (scene.state.path().to_str().unwrap(), "another has it (journal.lock)")]
    {
        let mut second = phalanx(scratch);
        second.args(["worker", "--stub-time", "0s", "--name", "x@here", "--state-dir", folder]);
        second.env("PHALANX_KEY", "//Validator").env("PHALANX_REDIS", scene.redis.url());
        let refused = run(&mut second);
        assert!(refused.code == Some(2) && refused.stderr.contains(why), "{refused:?}");
    }
    stopped(worker);

    for (flag, said) in [("--stop-after-uptime", "--stop-after-uptime 1s is over"), ("--stop-when-idle", "is over")] {
        let finished = scene.worker("w@here", &["--stub-time", "0s", flag, "1s"]).finish();
        assert!(finished.code == Some(0) && finished.stderr.contains(said), "{finished:?}");
    }
    // Two jobs wait; one is run.
    let jobs = jobs(2);
    jobs.iter().for_each(|job| scene.facilitator.submit(job.clone()));
    wait::until("both wait", || scene.redis.cli::<usize>(&["LLEN", "phalanx"]) == 2);
    let finished = scene.worker("w@here", &["--stub-time", "0s", "--run-one-job"]).finish();
    assert_eq!(finished.code, Some(0), "{finished:?}");
    assert_eq!(scene.redis.cli::<usize>(&["LLEN", "phalanx"]), 1, "{finished:?}");
    let worker = scene.worker("w@here", &["--stub-time", "0s"]);
    for job in &jobs {
        assert_eq!(scene.facilitator.history(&job.uuid), GOOD);
    }
    for running in [front, worker] {
        stopped(running);
    }
    scene.end();
}

#[test]
fn without_redis_both_say_so_on_their_pages_and_stop_at_once() {
    let _none = NoThreads::expected();
    let Some(mut scene) = Scene::set() else { return };
    scene.redis.kill();
    let address = || format!("127.0.0.1:{}", redis_server::free_port());
    let (front_pages, worker_pages) = (address(), address());
    let front = scene.front(&["--http", &front_pages, "--queue-time", "300ms"]);
    let worker = scene.worker("w@here", &["--stub-time", "0s", "--http", &worker_pages]);
    let parts_down = |status: &Value| -> Vec<String> {
        let parts = status["parts"].as_array().unwrap().iter();
        let down = parts.filter(|part| part["state"] != "up").map(|part| part["name"].as_str().unwrap().to_owned());
        down.collect()
    };
    for (pages, part) in [(&front_pages, "rds-sub"), (&worker_pages, "cel-take")] {
        let notified = |status: &Value| {
            let reported = status["parts"]
                .as_array()
                .unwrap()
                .iter()
                .any(|p| p["name"] == part && p.to_string().contains("refused"));
            status["ready"] == false && reported
        };
        let status = until(scene.scratch.path(), pages, notified);
        assert!(parts_down(&status).contains(&part.to_owned()), "{status:#}");
    }
    let job = jobs(1).remove(0);
    scene.facilitator.submit(job.clone());
    assert_eq!(scene.facilitator.history(&job.uuid), [S::Received, S::Rejected]);
    let end = scene.facilitator.state().histories[&job.uuid].end.clone().unwrap();
    let why = end.job_rejection_details.unwrap().message;
    assert!(why.contains("not handed to the workers") || why.contains("no worker took the job"), "{why}");
    for running in [front, worker] {
        let finished = running.stop(Signal::TERM);
        assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    }
    scene.end();
}

#[test]
fn wrong_flags_are_one_clear_line_each() {
    let scratch = tempfile::tempdir().unwrap();
    let refused = |arguments: &[&str]| {
        let mut command: Command = phalanx(scratch.path());
        let finished = run(command.args(arguments).env("PHALANX_KEY", "//Alice"));
        assert_eq!((finished.code, finished.stdout.as_str()), (Some(2), ""), "{finished:?}");
        assert_eq!(finished.stderr.lines().count(), 1, "{}", finished.stderr);
        finished.stderr
    };
    let front = ["validator", "--facilitator", "ws://127.0.0.1:1/ws/v0/", "--state-dir", "s"];
    let with = |more: &[&str]| refused(&[&front[..], more].concat());
    assert!(with(&["--dispatch", "celery"]).contains("--redis is missing; give the URL"));
    let miners = scratch.path().join("miners.toml");
    let text = format!("[[miner]]\nhotkey = \"{}\"\naddress = \"127.0.0.1\"\nport = 1\n", key("//Miner").ss58());
    std::fs::write(&miners, text).unwrap();
    let stray = with(&["--miners", miners.to_str().unwrap(), "--redis", "redis://127.0.0.1"]);
    assert!(stray.contains("--redis goes with --dispatch celery"), "{stray}");
    let url = with(&["--dispatch", "celery", "--redis", "http://u:secret@h"]);
    assert!(url.contains("redis://") && !url.contains("secret"), "{url}");
    assert!(refused(&["worker", "--stub-time", "0s"]).contains("--redis is missing"));
    let redis = ["worker", "--redis", "redis://127.0.0.1"];
    assert!(refused(&redis).contains("--miners is missing"));
    let both = refused(&[&redis[..], &["--stub-time", "0s", "--miners", "/dev/null"]].concat());
    assert!(both.contains("give --miners or --stub-time, not both"), "{both}");
    let none = refused(&[&redis[..], &["--stub-time", "0s", "--workers", "0"]].concat());
    assert!(none.contains("workers is 0; it should be from 1 to 1000"), "{none}");
    let age = refused(&[&redis[..], &["--stub-time", "0s", "--max-signature-age", "721h"]].concat());
    assert!(age.contains("at most 2592000 s (30 days)"), "{age}");
    let haste =
        refused(&[&redis[..], &["--miners", miners.to_str().unwrap(), "--manifest-interval", "500ms"]].concat());
    assert!(haste.contains("--manifest-interval is 500ms; it should be 1s or more"), "{haste}");
    let queue_time = ["--dispatch", "celery", "--redis", "redis://127.0.0.1", "--queue-time", "31m"];
    assert!(with(&queue_time).contains("--queue-time is 1860s; it should be at most 1800s"));
    let dead = refused(&[&redis[..], &["--stub-time", "0s", "--liveness", "10ms"]].concat());
    assert!(dead.contains("150 ms or more"), "{dead}");
    let settings = |json: &str| refused(&[&redis[..], &["--stub-time", "0s", "--celery", json]].concat());
    let unknown = settings(r#"{"enable_UTC": true}"#);
    assert!(unknown.contains("unknown field `enable_UTC`, expected one of"), "{unknown}");
    let wrong = settings(r#"{"result_backend": "redis://u:secret@h:x", "timezone": "Mars/Base"}"#);
    assert!(wrong.contains("result_backend: bad Redis URL") && wrong.contains("Mars/Base"), "{wrong}");
    assert!(!wrong.contains("secret"), "{wrong}");
}
